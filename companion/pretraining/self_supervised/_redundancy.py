"""Losses without negatives that keep the coordinates busy: Barlow Twins and VICReg."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_in_range, wide
from companion.pretraining.self_supervised._checks import check_pair

__all__ = ["VICRegTerms", "barlow_twins", "cross_correlation", "vicreg", "vicreg_terms"]


def cross_correlation(
    U: Float[Tensor, "n dim"], V: Float[Tensor, "n dim"], *, eps: float = 1e-5
) -> Float[Tensor, "dim dim"]:
    r"""Return the correlations of each coordinate of one view with each of the other.

    .. math:: C = \frac1N \hat U^\top \hat V, \qquad
        \hat u_{ic} = \frac{u_{ic} - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}}

    with mean :math:`\mu_c` and variance :math:`\sigma_c^2` (divided by N) over the batch.

    Args:
        U: One view of each example.
        V: The other view, in the same order.
        eps: Added to each variance, as batch normalization does.

    Returns:
        Entries in [-1, 1], in float32, or float64 for float64 inputs.

    Raises:
        ValueError: If shapes or dtypes do not fit, or there are fewer than two rows.

    Book: :doc:`/book/pretraining/self_supervised`
    """
    first, second = _standardized(U, V, eps)
    return first.T @ second / U.shape[0]


def _standardized(U: Tensor, V: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    check_pair(U, V, least=2)
    check_in_range("eps", eps, low=0.0, open_high=True)
    first, second = (
        (z - z.mean(0)) / (z.var(0, correction=0) + eps).sqrt() for z in (wide(U), wide(V))
    )
    return first, second


def barlow_twins(
    U: Float[Tensor, "n dim"],
    V: Float[Tensor, "n dim"],
    *,
    weight: float = 0.005,
    eps: float = 1e-5,
) -> Float[Tensor, ""]:
    r"""Return the Barlow Twins loss: the cross-correlation should be the identity.

    .. math:: L = \sum_c (1 - C_{cc})^2 + \lambda \sum_{c \ne e} C_{ce}^2

    Args:
        U: One view of each example.
        V: The other view, in the same order.
        weight: :math:`\lambda \ge 0`.
        eps: Added to each variance; without it a coordinate that is constant gives NaN.

    Returns:
        The loss, 0 or more; a sum over coordinates, not a mean.

    Raises:
        ValueError: If shapes or dtypes do not fit, or there are fewer than two rows.

    References:
        Zbontar et al. 2021, arXiv:2103.03230, eqs. 1-2; they report 0.005 as the best weight.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> U = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> barlow_twins(U, U.flip(1), weight=0.25, eps=0.0)
        tensor(2.5000)
    """
    check_in_range("weight", weight, low=0.0, open_high=True)
    first, second = _standardized(U, V, eps)
    C, kept = first.T @ second / U.shape[0], (first * second).mean(0)
    return ((1 - kept) ** 2).sum() + weight * ((C**2).sum() - (kept**2).sum())


class VICRegTerms(NamedTuple):
    """The three parts of VICReg, before they are weighted.

    Attributes:
        invariance: Mean squared difference of both views.
        variance: How far standard deviations of coordinates fall below one.
        covariance: Squared covariances of different coordinates.

    Book: :doc:`/book/pretraining/self_supervised`
    """

    invariance: Float[Tensor, ""]
    variance: Float[Tensor, ""]
    covariance: Float[Tensor, ""]


def vicreg_terms(
    U: Float[Tensor, "n dim"], V: Float[Tensor, "n dim"], *, eps: float = 1e-4
) -> VICRegTerms:
    r"""Return the three terms of VICReg.

    .. math:: s = \frac1{Nd} \sum_i \lVert u_i - v_i \rVert^2, \quad
        v(U) = \frac1d \sum_c \max\big(0, 1 - \sqrt{\sigma_c^2 + \epsilon}\big), \quad
        c(U) = \frac1d \sum_{c \ne e} \mathrm{Cov}(U)_{ce}^2

    The variance term is the mean of :math:`v(U)` and :math:`v(V)`, the covariance term the sum
    of :math:`c(U)` and :math:`c(V)`. Variances and covariances divide by :math:`N - 1`.

    Args:
        U: One view of each example.
        V: The other view, in the same order.
        eps: Added to each variance.

    Returns:
        The terms, each 0 or more.

    Raises:
        ValueError: If shapes or dtypes do not fit, or there are fewer than two rows.

    References:
        Bardes, Ponce and LeCun 2022, arXiv:2105.04906, eqs. 1-5. Two factors follow the authors'
        code, to which their weights belong, and not the paper: :math:`1/d` in the invariance, and
        the mean, not the sum, of the two variance terms.

    Book: :doc:`/book/pretraining/self_supervised`
    """
    check_pair(U, V, least=2)
    check_in_range("eps", eps, low=0.0, open_high=True)
    n, d = U.shape
    first, second = wide(U), wide(V)
    variance, covariance = first.new_zeros(()), first.new_zeros(())
    for z in (first, second):
        centered = z - z.mean(0)
        cov = centered.T @ centered / (n - 1)
        spread = (centered**2).sum(0) / (n - 1)
        variance = variance + torch.relu(1 - (spread + eps).sqrt()).mean() / 2
        covariance = covariance + ((cov**2).sum() - (spread**2).sum()) / d
    return VICRegTerms(((first - second) ** 2).mean(), variance, covariance)


def vicreg(
    U: Float[Tensor, "n dim"],
    V: Float[Tensor, "n dim"],
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    eps: float = 1e-4,
) -> Float[Tensor, ""]:
    r"""Return the VICReg loss, the weighted sum of :func:`vicreg_terms`.

    Args:
        U: One view of each example.
        V: The other view, in the same order.
        invariance: Weight of the term that pulls views together, 0 or more.
        variance: Weight of the term that keeps every coordinate at a standard deviation of one.
        covariance: Weight of the term that keeps coordinates from repeating each other.
        eps: Added to each variance.

    Returns:
        The loss, 0 or more. In float32, or float64 for float64 inputs.

    Raises:
        ValueError: If shapes or dtypes do not fit, a weight is negative, or there are fewer than
            two rows.

    References:
        Bardes, Ponce and LeCun 2022, arXiv:2105.04906, eq. 6 and its weights.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> U = torch.tensor([[3.0], [-3.0]])
        >>> vicreg(U, -U)
        tensor(900.)
    """
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
    for name, value in weights.items():
        check_in_range(name, value, low=0.0, open_high=True)
    terms = vicreg_terms(U, V, eps=eps)
    return invariance * terms.invariance + variance * terms.variance + covariance * terms.covariance
