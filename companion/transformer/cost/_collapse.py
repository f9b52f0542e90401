r"""How fast tokens become alike when nothing but attention acts on them."""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_floating, wide

__all__ = ["collapse_bound", "rank_residual", "token_diameter"]


def rank_residual(X: Float[Tensor, "*batch n dim"]) -> Float[Tensor, " *batch"]:
    r"""Return how far tokens are from all being alike, relative to their size.

    .. math:: \frac{\lVert X - \mathbf 1^\top \bar x \rVert_F}{\lVert X \rVert_F},
        \qquad \bar x = \frac1n \sum_i x_i

    Args:
        X: Tokens as rows.

    Returns:
        From 0, where all tokens are one vector and the matrix has rank one, to 1, where their
        mean is zero. 0 for tokens that are all zero.

    Raises:
        ValueError: If the tokens are not floating.

    Numerics:
        Computed in float32 or better, and returned in the dtype of the tokens.

    References:
        The residual of Dong, Cordonnier and Loukas 2021, arXiv:2103.03404, there in another norm.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> rank_residual(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64))
        tensor(0.7071, dtype=torch.float64)
    """
    check_floating("X", X)
    tokens = wide(X)
    spread = torch.linalg.matrix_norm(tokens - tokens.mean(-2, keepdim=True))
    size = torch.linalg.matrix_norm(tokens)
    share: Tensor = spread / torch.where(size > 0, size, torch.ones_like(size))
    return share.to(X.dtype)


def token_diameter(X: Float[Tensor, "*batch n dim"]) -> Float[Tensor, " *batch"]:
    r"""Return the largest distance between two tokens.

    .. math:: \Delta(X) = \max_{i,j} \lVert x_i - x_j \rVert_2

    Args:
        X: Tokens as rows.

    Returns:
        0 or more.

    Raises:
        ValueError: If the tokens are not floating.

    Numerics:
        Distances are taken from differences and not from squared norms, so that small ones keep
        their digits, in float32 or better. Takes memory for all pairs.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> token_diameter(torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64))
        tensor(5., dtype=torch.float64)
    """
    check_floating("X", X)
    tokens = wide(X)
    pairs = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist")
    return pairs.amax((-2, -1)).to(X.dtype)


def collapse_bound(
    diameter: Float[Tensor, "..."], omega: float, *, layers: int = 1
) -> Float[Tensor, "..."]:
    r"""Bound the diameter of tokens after layers of attention alone.

    .. math:: \Delta_L \le \kappa^{(3^L - 1)/2} \, \Delta_0^{3^L}, \qquad \kappa = \omega / 4

    for layers :math:`X \to \mathrm{softmax}(XW^{QK}X^\top/\sqrt{d_k}) \, X W^{VO}` without mask,
    residual connection or feed-forward layer.

    Args:
        diameter: :math:`\Delta_0`, from :func:`token_diameter`.
        omega: :math:`\omega \ge \lVert W^{QK} \rVert_2 \lVert W^{VO} \rVert_2 / \sqrt{d_k}` in
            every layer.
        layers: Number of layers :math:`L`, 0 or more.

    Returns:
        The bound. It says something only where :math:`\kappa \Delta_0^2 < 1`.

    Raises:
        ValueError: If ``omega`` is negative or ``layers`` is.

    References:
        The rate is that of Dong, Cordonnier and Loukas 2021, arXiv:2103.03404, theorem 2.2; norm,
        constant and proof are the book's.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> collapse_bound(torch.tensor(0.5, dtype=torch.float64), 4.0, layers=2)
        tensor(0.0020, dtype=torch.float64)
    """
    check_count("layers", layers, low=0)
    if omega < 0:
        raise ValueError(f"omega must be 0 or more, got {omega}")
    power = 3**layers
    bound: Tensor = (omega / 4) ** ((power - 1) // 2) * diameter**power
    return bound
