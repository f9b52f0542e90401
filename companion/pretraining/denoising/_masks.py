"""Attention masks that follow from the order in which tokens are predicted."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import check_count, check_in_range, check_shape
from companion.pretraining.denoising._tokens import choose, rounded
from companion.transformer.attention import Mask

__all__ = [
    "TwoStreamMasks",
    "influence",
    "order_ranks",
    "random_ranks",
    "rank_masks",
    "reach",
    "right_to_left",
]


class TwoStreamMasks(NamedTuple):
    """The rules of XLNet's two streams.

    Attributes:
        content: Who reads whom among the tokens; each reads itself.
        query: What may be read to predict a token; never the token itself.
    """

    content: Mask
    query: Mask


def right_to_left() -> Mask:
    r"""Return the mask under which a query reads its own position and what follows.

    .. math:: j \ge i

    Returns:
        The mask.

    References:
        L. Dong et al., "UniLM", arXiv:1905.03197, section 2.3.

    Book: :doc:`/book/pretraining/denoising`

    Example:
        >>> right_to_left().dense(2, 3)[0, 0].int()
        tensor([[1, 1, 1],
                [0, 1, 1]], dtype=torch.int32)
    """
    return Mask(lambda b, h, i, j: j >= i, (0.0, float("inf")), (0.0, float("inf")))


def rank_masks(rank: Integer[Tensor, "batch n"]) -> TwoStreamMasks:
    r"""Return the masks of a model that predicts tokens in the order of their ranks.

    With :math:`r_i = -1` for a token that is given, and otherwise the step at which it is
    predicted, what is read to predict token :math:`i` is

    .. math:: \mathcal Q_i = \{j : r_j < \max(r_i, 0)\}, \qquad
        \mathcal C_i = \mathcal Q_i \cup \{i\}

    and :math:`\mathcal C_i` is what its content reads. Tokens of the same rank do not see each
    other. All ranks different: one factorization order, as in XLNet. Rank 0 for the masked tokens
    and -1 for the others: masked language modeling. Ranks 0, 1, 2, ...: a causal model.

    Args:
        rank: Ranks, -1 or more.

    Returns:
        Content and query mask.

    Raises:
        ValueError: If ``rank`` does not have two axes of integers.

    References:
        Z. Yang et al., "XLNet", arXiv:1906.08237, section 2.3.

    Book: :doc:`/book/pretraining/denoising`

    Example:
        >>> masks = rank_masks(torch.tensor([[2, 0, 1]]))  # x2, then x3, then x1
        >>> masks.query.dense(3, 3)[0, 0].int()
        tensor([[0, 1, 1],
                [0, 0, 0],
                [0, 1, 0]], dtype=torch.int32)
    """
    if rank.ndim != 2 or rank.is_floating_point() or rank.dtype == torch.bool:
        raise ValueError(
            "rank must be integers of shape (batch, n), "
            f"got {rank.dtype} of shape {tuple(rank.shape)}"
        )
    batch, n = rank.shape

    def query(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return rank[b, j] < rank[b, i].clamp(min=0)

    def content(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return query(b, h, i, j) | (i == j)

    return TwoStreamMasks(
        *(
            Mask(rule, batch=batch, queries=n, keys=n, device=rank.device)
            for rule in (content, query)
        )
    )


def order_ranks(order: Integer[Tensor, "batch n"]) -> Integer[Tensor, "batch n"]:
    r"""Turn factorization orders into ranks: the inverse permutations.

    .. math:: r_{z_t} = t

    Args:
        order: In row :math:`b` the positions :math:`z_1, z_2, \dots` in the order of prediction.

    Returns:
        For each position the step at which it is predicted, from 0.

    Raises:
        ValueError: If ``order`` does not have two axes.

    Book: :doc:`/book/pretraining/denoising`

    Example:
        >>> order_ranks(torch.tensor([[1, 2, 0]]))
        tensor([[2, 0, 1]])
    """
    check_shape("order", order, (None, None))
    return order.long().argsort(1)


def random_ranks(
    real: Bool[Tensor, "batch n"], *, ratio: float = 1 / 6, generator: torch.Generator
) -> tuple[Integer[Tensor, "batch n"], Integer[Tensor, "batch k"]]:
    r"""Draw XLNet's partial prediction: the last tokens of a random order.

    :math:`k = \mathrm{round}(rn)` tokens of each row, all subsets being equally likely, are
    predicted in a random order. The others are given and read each other, as in the published code.

    Args:
        real: ``True`` for tokens, which come first in each row.
        ratio: The share :math:`r` in [0, 1]; XLNet has 1/6 or 1/7.
        generator: The source of randomness.

    Returns:
        Ranks, and the positions that are predicted, in the order of the text. Rows with fewer
        than the most have positions of rank -1 at the end, which shall not count.

    Raises:
        ValueError: If the ratio lies outside of [0, 1].

    References:
        Z. Yang et al., "XLNet", arXiv:1906.08237, eq. 5.

    Book: :doc:`/book/pretraining/denoising`
    """
    check_in_range("ratio", ratio, low=0.0, high=1.0)
    check_shape("real", real, (None, None))
    counts = rounded(ratio, real.sum(1))
    chosen = choose(counts, real, generator=generator)
    scores = torch.rand(real.shape, generator=generator, device=generator.device).to(real.device)
    place = scores.masked_fill(~chosen, 2.0).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    most = int(rounded(ratio, torch.tensor(real.shape[1])))
    where = (~chosen).long().argsort(dim=1, stable=True)[:, :most]
    return place.masked_fill(~chosen, -1), where


def reach(allowed: Bool[Tensor, "*batch n n"], *, layers: int) -> Bool[Tensor, "*batch n n"]:
    r"""Tell which inputs can influence which outputs of several layers under one mask.

    .. math:: R = (I \lor M)^{L}

    as a Boolean matrix power: a path from :math:`i` to :math:`j` takes at most :math:`L` steps,
    each of which the mask allows. The residual stream lets a token pass to itself.

    Args:
        allowed: :math:`M`, ``True`` where a query (row) reads a key (column).
        layers: :math:`L`, 0 or more.

    Returns:
        ``True`` where the output at the row can depend on the input at the column.

    Raises:
        ValueError: If the mask is not square, or ``layers`` is below 0.

    Book: :doc:`/book/pretraining/denoising`

    Example:
        >>> window = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]]).bool()
        >>> reach(window, layers=2)[2]
        tensor([True, True, True])
    """
    check_count("layers", layers, low=0)
    n = allowed.shape[-1]
    if allowed.ndim < 2 or allowed.shape[-2] != n:
        raise ValueError(f"allowed must be square, got shape {tuple(allowed.shape)}")
    step = (allowed | torch.eye(n, dtype=torch.bool, device=allowed.device)).float()
    out = torch.eye(n, device=allowed.device).expand_as(step)
    for _ in range(layers):
        out = (out @ step > 0).float()
    return out > 0


def influence(
    function: Callable[[Tensor], Tensor], x: Float[Tensor, "n dim"]
) -> Bool[Tensor, "rows n"]:
    r"""Tell which rows of a function's output depend on which rows of its input, at one point.

    .. math:: \frac{\partial y_i}{\partial x_j} \ne 0

    A mask that forbids reading gives exact zeros, so no threshold is needed. An entry that is
    allowed may still be zero by accident, for example behind a ReLU.

    Args:
        function: Maps tokens as rows to rows.
        x: Where the Jacobian is taken.

    Returns:
        ``True`` where any entry of the block of the Jacobian is not zero.

    Numerics:
        One backward pass for each entry of the output: for small models and short texts.

    Book: :doc:`/book/pretraining/denoising`

    Example:
        >>> influence(lambda x: x.cumsum(0), torch.ones(3, 2)).int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
    """
    check_shape("x", x, (None, None))
    blocks: Tensor = torch.autograd.functional.jacobian(function, x)  # type: ignore[no-untyped-call]
    return (blocks != 0).any(3).any(1)
