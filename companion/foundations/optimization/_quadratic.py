r"""What theory says on a quadratic :math:`L(\theta) = \tfrac12 \theta H \theta^\top`.

The eigenvalues of :math:`H` lie in :math:`[\mu, \beta]` with :math:`\mu > 0`. In their basis every
coordinate goes its own way, so one number :math:`\lambda` at a time is enough. A *rate* is the
factor by which the distance to the minimum shrinks in a step, for the slowest coordinate.
"""

from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_floating, check_in_range

__all__ = [
    "descent_bound",
    "gradient_descent_optimum",
    "heavy_ball_matrix",
    "heavy_ball_optimum",
    "sgd_variance",
]


def _check_spectrum(smallest: float, largest: float) -> None:
    check_in_range("smallest", smallest, low=0.0, open_low=True, open_high=True)
    check_in_range("largest", largest, low=smallest, open_high=True)


def descent_bound(
    loss: Float[Tensor, ""] | float,
    grad_norm: Float[Tensor, ""] | float,
    *,
    lr: float,
    smoothness: float,
) -> Float[Tensor, ""] | float:
    r"""Return the most that the loss can be after a step of gradient descent.

    .. math:: L(\theta) - \eta \Big(1 - \frac{\eta \beta}{2}\Big) \lVert \nabla L \rVert^2

    Args:
        loss: :math:`L(\theta)` before the step.
        grad_norm: :math:`\lVert \nabla L(\theta) \rVert \ge 0`.
        lr: Learning rate :math:`\eta \ge 0`.
        smoothness: :math:`\beta \ge 0`, no smaller than the largest eigenvalue of the Hessian
            anywhere on the step.

    Returns:
        The bound, in the unit of the loss. It is below the loss for :math:`\eta < 2 / \beta`.

    Raises:
        ValueError: If a number is out of its domain.

    References:
        Y. Nesterov, *Lectures on Convex Optimization*, 2018, section 1.2.3,
        doi:10.1007/978-3-319-91578-4.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> descent_bound(3.0, 2.0, lr=0.5, smoothness=2.0)
        2.0
    """
    check_in_range("lr", lr, low=0.0, open_high=True)
    check_in_range("smoothness", smoothness, low=0.0, open_high=True)
    return loss - lr * (1 - lr * smoothness / 2) * grad_norm**2


def gradient_descent_optimum(smallest: float, largest: float) -> tuple[float, float]:
    r"""Return the best constant step on a quadratic, and its rate.

    .. math:: \eta^* = \frac{2}{\mu + \beta}, \qquad
        \rho^* = \frac{\kappa - 1}{\kappa + 1}, \qquad \kappa = \frac{\beta}{\mu}

    Args:
        smallest: :math:`\mu > 0`, the least eigenvalue of the Hessian.
        largest: :math:`\beta \ge \mu`, the greatest.

    Returns:
        The learning rate and the rate in [0, 1).

    Raises:
        ValueError: If an eigenvalue is out of its domain.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> gradient_descent_optimum(1.0, 3.0)
        (0.5, 0.5)
    """
    _check_spectrum(smallest, largest)
    return 2 / (smallest + largest), (largest - smallest) / (largest + smallest)


def heavy_ball_optimum(smallest: float, largest: float) -> tuple[float, float, float]:
    r"""Return the best constant step and momentum on a quadratic, and their rate.

    .. math:: \eta^* = \Big(\frac{2}{\sqrt{\mu} + \sqrt{\beta}}\Big)^2, \qquad
        \rho^* = \frac{\sqrt{\kappa} - 1}{\sqrt{\kappa} + 1}, \qquad
        \mu_{mom}^* = (\rho^*)^2

    Args:
        smallest: :math:`\mu > 0`, the least eigenvalue of the Hessian.
        largest: :math:`\beta \ge \mu`, the greatest.

    Returns:
        The learning rate, the momentum, and the rate.

    Raises:
        ValueError: If an eigenvalue is out of its domain.

    References:
        B. T. Polyak, 1964, doi:10.1016/0041-5553(64)90137-5.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> heavy_ball_optimum(1.0, 9.0)
        (0.25, 0.25, 0.5)
    """
    _check_spectrum(smallest, largest)
    low, high = sqrt(smallest), sqrt(largest)
    rate = (high - low) / (high + low)
    return (2 / (low + high)) ** 2, rate**2, rate


def heavy_ball_matrix(
    curvature: Float[Tensor, "*batch"], *, lr: float, momentum: float
) -> Float[Tensor, "*batch 2 2"]:
    r"""Return the matrix of one heavy-ball step in one coordinate.

    .. math:: (\theta_{t+1}, \theta_t) = (\theta_t, \theta_{t-1})
        \begin{pmatrix} 1 + \mu - \eta \lambda & 1 \\ -\mu & 0 \end{pmatrix}

    Args:
        curvature: Eigenvalues :math:`\lambda` of the Hessian.
        lr: Learning rate :math:`\eta`.
        momentum: :math:`\mu` in [0, 1).

    Returns:
        One matrix for each eigenvalue. The row vector of two iterates is multiplied from the
        left. The largest magnitude of its eigenvalues is the rate.

    Raises:
        ValueError: If the momentum is out of its domain or the curvature is not floating.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> heavy_ball_matrix(torch.tensor(2.0), lr=0.5, momentum=0.25)
        tensor([[ 0.2500,  1.0000],
                [-0.2500,  0.0000]])
    """
    check_floating("curvature", curvature)
    check_in_range("momentum", momentum, low=0.0, high=1.0, open_high=True)
    one = torch.ones_like(curvature)
    top = torch.stack([(1 + momentum) - lr * curvature, one], -1)
    return torch.stack([top, torch.stack([-momentum * one, 0 * one], -1)], -2)


def sgd_variance(curvature: float, *, lr: float, noise: float) -> float:
    r"""Return the variance at which SGD with a constant rate settles on a quadratic.

    .. math:: \mathrm{Var} = \frac{\eta \sigma^2}{\lambda (2 - \eta \lambda)}

    Args:
        curvature: :math:`\lambda > 0`, in one coordinate.
        lr: Learning rate with :math:`0 \le \eta < 2 / \lambda`.
        noise: Standard deviation :math:`\sigma \ge 0` of the gradient noise, the same everywhere
            and independent between steps.

    Returns:
        The stationary variance of the parameter.

    Raises:
        ValueError: If an argument is out of its domain. From :math:`\eta = 2 / \lambda` on there
            is no stationary variance.

    References:
        S. Mandt, M. Hoffman and D. Blei, 2017, arXiv:1704.04289, section 3, in continuous time;
        the denominator here is the exact one of discrete steps.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> sgd_variance(1.0, lr=1.0, noise=3.0)
        9.0
    """
    check_in_range("curvature", curvature, low=0.0, open_low=True, open_high=True)
    check_in_range("noise", noise, low=0.0, open_high=True)
    check_in_range("lr", lr, low=0.0, high=2 / curvature, open_high=True)
    return lr * noise**2 / (curvature * (2 - lr * curvature))
