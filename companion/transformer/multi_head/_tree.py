"""A mask for several continuations that share their beginnings."""

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from companion.core import can_read, check_count
from companion.transformer.attention import Mask

__all__ = ["ancestors", "tree"]


def ancestors(parents: Integer[Tensor, " n"]) -> Bool[Tensor, "n n"]:
    r"""Return which tokens of a tree lie on the way from a root to each token.

    .. math:: R_{ij} = 1 \iff j \text{ is } i, \text{ its parent, the parent of that, } \dots

    Args:
        parents: For each token the index of its parent, which comes before it; -1 for a root.

    Returns:
        ``True`` in row :math:`i` for the token itself and its ancestors. The number of ``True``
        in a row, less one, is the token's depth, hence its position in the text.

    Raises:
        ValueError: If the parents are not integers on one axis, each from -1 to the index before.

    Numerics:
        :math:`\lceil \log_2 n \rceil` products of :math:`n \times n` matrices.

    Book: :doc:`/book/transformer/multi_head`

    Example:
        >>> ancestors(torch.tensor([-1, 0, 0, 2])).int()
        tensor([[1, 0, 0, 0],
                [1, 1, 0, 0],
                [1, 0, 1, 0],
                [1, 0, 1, 1]], dtype=torch.int32)
    """
    if parents.ndim != 1 or parents.is_floating_point() or parents.dtype == torch.bool:
        raise ValueError(
            f"parents must be integers of shape (n,), got {parents.dtype} of shape "
            f"{tuple(parents.shape)}"
        )
    index = torch.arange(parents.shape[0], device=parents.device)
    if can_read(parents):
        wrong = (parents < -1) | (parents >= index)
        if bool(wrong.any()):
            token = int(wrong.nonzero()[0])
            raise ValueError(
                f"a parent comes before its child, or is -1 for a root: token {token} has "
                f"{int(parents[token])}"
            )
    itself = index[:, None] == index
    reached = (itself | (parents[:, None] == index)).float()
    # Each product doubles the number of generations that are reached.
    for _ in range(max(parents.shape[0] - 1, 0).bit_length()):
        reached = (reached @ reached).clamp(max=1.0)
    return reached > 0


def tree(parents: Integer[Tensor, " n"], *, offset: int = 0) -> Mask:
    r"""Return the mask under which a token of a tree reads its ancestors and itself.

    So one pass scores several continuations of a text, and what they share is computed once. A
    chain, in which the parent of token :math:`i` is :math:`i - 1`, gives the causal mask.

    Args:
        parents: For each token the index of its parent, which comes before it; -1 for a root.
        offset: Number of keys before those of the tree, such as the positions that a cache
            holds; every token reads them.

    Returns:
        The mask, for n queries and ``offset + n`` keys. The positions of the tokens are not their
        indices but their depths, see :func:`ancestors`.

    Raises:
        ValueError: If the parents are not integers on one axis, each from -1 to the index before.

    References:
        X. Miao et al. 2023, "SpecInfer", arXiv:2305.09781, sec. 4.

    Book: :doc:`/book/transformer/multi_head`

    Example:
        >>> tree(torch.tensor([-1, 0, 0]), offset=1).dense(3, 4)[0, 0].int()
        tensor([[1, 1, 0, 0],
                [1, 1, 1, 0],
                [1, 1, 0, 1]], dtype=torch.int32)
    """
    check_count("offset", offset, low=0)
    reached = ancestors(parents)
    n = parents.shape[0]
    return Mask(
        lambda b, h, i, j: (j < offset) | reached[i, (j - offset).clamp(min=0)],
        queries=n,
        keys=offset + n,
        device=parents.device,
    )
