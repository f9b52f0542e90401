"""How representations lie on the sphere, and how many dimensions they use."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_floating, check_in_range, wide
from companion.pretraining.self_supervised._checks import check_pair, check_rows

__all__ = ["alignment", "effective_rank", "uniformity", "uniformity_floor"]


def alignment(U: Float[Tensor, "n dim"], V: Float[Tensor, "n dim"]) -> Float[Tensor, ""]:
    r"""Return the mean squared distance of the two views of an example.

    .. math:: L_{\mathrm{align}} = \frac1N \sum_i \lVert u_i - v_i \rVert^2

    Args:
        U: One view of each example; unit rows where distances on the sphere are meant.
        V: The other view, in the same order.

    Returns:
        0, where both views agree, or more; at most 4 for unit rows.

    Raises:
        ValueError: If shapes or dtypes do not fit.

    References:
        Wang and Isola 2020, arXiv:2005.10242, section 4.1, with :math:`\alpha = 2`.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> alignment(torch.eye(2), torch.eye(2).flip(0))
        tensor(2.)
    """
    check_pair(U, V)
    return ((wide(U) - wide(V)) ** 2).sum(-1).mean()


def uniformity(U: Float[Tensor, "n dim"], *, t: float = 2.0) -> Float[Tensor, ""]:
    r"""Return how evenly rows are spread: the logarithm of a mean Gaussian potential.

    .. math:: L_{\mathrm{unif}} = \log \frac2{N(N-1)} \sum_{i<j} e^{-t \lVert u_i - u_j \rVert^2}

    Args:
        U: Representations, unit rows where the sphere is meant.
        t: :math:`t > 0`. Distances well above :math:`t^{-1/2}` do not matter.

    Returns:
        0, where all rows are one point, or less. For unit rows at least about
        :func:`uniformity_floor`, the value of points that are uniform on the sphere.

    Raises:
        ValueError: If there are fewer than two rows, or ``t`` is not positive.

    Numerics:
        Distances come from products, :math:`\lVert u \rVert^2 + \lVert v \rVert^2 - 2 u \cdot v`,
        in float32 or better. Memory grows with :math:`N^2`.

    References:
        Wang and Isola 2020, arXiv:2005.10242, section 4.1.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> uniformity(torch.eye(3, dtype=torch.float64))
        tensor(-4., dtype=torch.float64)
    """
    check_rows("U", U, least=2)
    check_in_range("t", t, low=0.0, open_low=True, open_high=True)
    Z = wide(U)
    squares = (Z**2).sum(-1)
    distances = (squares[:, None] + squares - 2 * (Z @ Z.T)).clamp_min(0.0)
    index = torch.arange(Z.shape[0], device=Z.device)
    potentials = (-t * distances).masked_fill(index[:, None] == index, float("-inf"))
    return torch.logsumexp(potentials.flatten(), 0) - math.log(Z.shape[0] * (Z.shape[0] - 1))


def uniformity_floor(dim: int, *, t: float = 2.0) -> float:
    r"""Return the uniformity of points that are uniform on the unit sphere.

    .. math:: \log \mathbb E\, e^{-t \lVert u - u' \rVert^2}
        = -2t + \log \sum_{k \ge 0} \frac{t^{2k}}{k!\, (d/2)(d/2 + 1) \cdots (d/2 + k - 1)}

    No distribution on the sphere has a smaller value.

    Args:
        dim: Dimension :math:`d` of the space around the sphere, 1 or more.
        t: :math:`t > 0`.

    Returns:
        The value, below 0; it falls to :math:`-2t` as the dimension grows.

    Raises:
        ValueError: If an argument is out of its domain.

    Numerics:
        All terms of the series are positive. It is summed until they stop counting, which takes
        about :math:`2t` terms.

    References:
        The minimum: Wang and Isola 2020, arXiv:2005.10242, proposition 1.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> round(uniformity_floor(384), 4)
        -3.9792
    """
    check_count("dim", dim)
    check_in_range("t", t, low=0.0, high=300.0, open_low=True)
    term = total = 1.0
    k = 0
    while term > 1e-17 * total:
        term *= t**2 / ((k + 1) * (dim / 2 + k))
        total += term
        k += 1
    return math.log(total) - 2 * t


def effective_rank(
    Z: Float[Tensor, "*batch n dim"], *, center: bool = False
) -> Float[Tensor, "*batch"]:
    r"""Return how many directions a matrix uses: the exponential of the entropy of its spectrum.

    .. math:: \exp\Big(-\sum_i \pi_i \log \pi_i\Big), \qquad \pi_i = \frac{s_i}{\sum_j s_j}

    Args:
        Z: Representations as rows, with singular values :math:`s_i`.
        center: Subtract the mean row first. What is left of a collapsed representation is then
            noise, which may use many directions: to see a collapse, do not center.

    Returns:
        From 1, where one direction is left, to the smaller of both sizes, where all are used
        alike; 0 for a matrix of zeros. In float32, or float64 for float64 inputs.

    Raises:
        ValueError: If the input is not floating, or has no rows.

    Numerics:
        Singular values as small as the rounding of the largest still count a little.

    References:
        Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality",
        EUSIPCO; for self-supervised learning: Garrido et al. 2023, arXiv:2210.02885.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> effective_rank(torch.eye(4, dtype=torch.float64)).round(decimals=6)
        tensor(4., dtype=torch.float64)
    """
    check_floating("Z", Z)
    if Z.ndim < 2 or Z.shape[-2] < 1 or Z.shape[-1] < 1:
        raise ValueError(f"Z must hold rows, got shape {tuple(Z.shape)}")
    rows = wide(Z)
    rows = rows - rows.mean(-2, keepdim=True) if center else rows
    s = torch.linalg.svdvals(rows)
    total = s.sum(-1, keepdim=True)
    share = s / torch.where(total > 0, total, 1.0)
    rank: Tensor = torch.special.entr(share).sum(-1).exp()
    return torch.where(total[..., 0] > 0, rank, 0.0)
