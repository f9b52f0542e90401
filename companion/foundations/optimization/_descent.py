"""Gradient descent without memory, with momentum, and with Nesterov's look ahead."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.optimizer import ParamsT

from companion.foundations.optimization._base import UpdateRule, check_decay_rate

__all__ = ["SGD", "Momentum", "Nesterov", "momentum_update", "nesterov_update", "sgd_update"]


def sgd_update(
    param: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    *,
    lr: float,
    weight_decay: float = 0.0,
) -> tuple[Float[Tensor, "*shape"]]:
    r"""Take one step of (stochastic) gradient descent.

    .. math:: \theta_t = \theta_{t-1} - \eta \, (g_t + \lambda \theta_{t-1})

    Args:
        param: Parameter :math:`\theta_{t-1}`.
        grad: Gradient :math:`g_t` of the loss, or an unbiased estimate of it.
        lr: Learning rate :math:`\eta \ge 0`.
        weight_decay: :math:`\lambda \ge 0`, the gradient of :math:`\tfrac{\lambda}{2}
            \lVert \theta \rVert^2`.

    Returns:
        The next parameter, alone in a tuple.

    References:
        H. Robbins and S. Monro, "A stochastic approximation method", 1951,
        doi:10.1214/aoms/1177729586.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> sgd_update(torch.tensor(1.0), torch.tensor(4.0), lr=0.125)
        (tensor(0.5000),)
    """
    return (param - lr * (grad + weight_decay * param),)


def momentum_update(
    param: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    velocity: Float[Tensor, "*shape"],
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    r"""Take one step of the heavy-ball method.

    .. math:: u_t = \mu u_{t-1} + g_t + \lambda \theta_{t-1}, \qquad
        \theta_t = \theta_{t-1} - \eta u_t

    Args:
        param: Parameter :math:`\theta_{t-1}`.
        grad: Gradient :math:`g_t`.
        velocity: :math:`u_{t-1}`, zero at the start.
        lr: Learning rate :math:`\eta \ge 0`.
        momentum: :math:`\mu` in [0, 1).
        weight_decay: :math:`\lambda \ge 0`, coupled: it passes through the velocity.

    Returns:
        The next parameter and the next velocity.

    Numerics:
        For a constant gradient the velocity tends to :math:`g / (1 - \mu)`: at :math:`\mu = 0.9`
        a step becomes ten times longer than without momentum.

    References:
        B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964,
        doi:10.1016/0041-5553(64)90137-5. The convention is PyTorch's: no factor
        :math:`1 - \mu` before the gradient, and the learning rate outside the sum, so that a new
        learning rate acts at once. Polyak's velocity contains :math:`-\eta`; the two trajectories
        are equal while :math:`\eta` is constant.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> momentum_update(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(4.0),
        ...                 lr=0.125, momentum=0.5)
        (tensor(0.5000), tensor(4.))
    """
    velocity = momentum * velocity + (grad + weight_decay * param)
    return param - lr * velocity, velocity


def nesterov_update(
    param: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    velocity: Float[Tensor, "*shape"],
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    r"""Take one step of Nesterov's accelerated gradient.

    .. math:: \tilde g_t = g_t + \lambda \theta_{t-1}, \qquad u_t = \mu u_{t-1} + \tilde g_t,
        \qquad \theta_t = \theta_{t-1} - \eta \, (\tilde g_t + \mu u_t)

    Args:
        param: Parameter :math:`\theta_{t-1}`.
        grad: Gradient :math:`g_t` at :math:`\theta_{t-1}`.
        velocity: :math:`u_{t-1}`, zero at the start.
        lr: Learning rate :math:`\eta \ge 0`.
        momentum: :math:`\mu` in [0, 1).
        weight_decay: :math:`\lambda \ge 0`, coupled.

    Returns:
        The next parameter and the next velocity.

    References:
        Y. Nesterov, *Lectures on Convex Optimization*, 2018, section 2.2,
        doi:10.1007/978-3-319-91578-4. Nesterov takes the gradient at a point :math:`y` ahead of
        the iterate. The parameter here, as in PyTorch, *is* that point ahead:
        :math:`\theta_t = x_t - \eta \mu u_t`. So the gradient is taken where the model is.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> nesterov_update(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(4.0),
        ...                 lr=0.125, momentum=0.5)
        (tensor(0.5000), tensor(4.))
    """
    grad = grad + weight_decay * param
    velocity = momentum * velocity + grad
    return param - lr * (grad + momentum * velocity), velocity


class SGD(UpdateRule):
    r"""Stochastic gradient descent, by :func:`sgd_update`.

    Args:
        params: Parameters or groups.
        lr: Learning rate :math:`\eta \ge 0`.
        weight_decay: :math:`\lambda \ge 0`.
        maximize: Whether to ascend.
        foreach: Whether to take the fast path.

    Raises:
        ValueError: If a hyper-parameter is out of its domain.

    Book: :doc:`/book/foundations/optimization`
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool = True,
    ) -> None:
        super().__init__(
            params, lr=lr, weight_decay=weight_decay, maximize=maximize, foreach=foreach
        )

    def update(
        self, param: Tensor, grad: Tensor, *slots: Tensor, step: int, group: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Apply :func:`sgd_update`."""
        return sgd_update(param, grad, lr=group["lr"], weight_decay=group["weight_decay"])

    def update_foreach(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        *slots: list[Tensor],
        step: int,
        group: dict[str, Any],
    ) -> None:
        """Apply the same rule to lists, in place."""
        # The decay first: theta - eta (g + lambda theta) = (1 - eta lambda) theta - eta g.
        if group["weight_decay"] != 0:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, grads, alpha=-group["lr"])


class Momentum(UpdateRule):
    r"""Heavy-ball momentum, by :func:`momentum_update`.

    The trajectory is that of ``torch.optim.SGD(params, lr, momentum)``.

    Args:
        params: Parameters or groups.
        lr: Learning rate :math:`\eta \ge 0`.
        momentum: :math:`\mu` in [0, 1).
        weight_decay: :math:`\lambda \ge 0`, coupled.
        maximize: Whether to ascend.
        foreach: Whether to take the fast path.

    Raises:
        ValueError: If a hyper-parameter is out of its domain.

    Book: :doc:`/book/foundations/optimization`
    """

    slots = ("momentum_buffer",)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            maximize=maximize,
            foreach=foreach,
        )

    def check_group(self, group: dict[str, Any]) -> None:
        r"""Require :math:`\mu` in [0, 1) besides the rest."""
        super().check_group(group)
        check_decay_rate("momentum", group["momentum"])

    def update(
        self, param: Tensor, grad: Tensor, *slots: Tensor, step: int, group: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Apply :func:`momentum_update`."""
        (velocity,) = slots
        return momentum_update(
            param,
            grad,
            velocity,
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
        )

    def update_foreach(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        *slots: list[Tensor],
        step: int,
        group: dict[str, Any],
    ) -> None:
        """Apply the same rule to lists, in place."""
        self._accumulate(params, grads, slots[0], group)
        torch._foreach_add_(params, slots[0], alpha=-group["lr"])

    @staticmethod
    def _accumulate(
        params: list[Tensor], grads: list[Tensor], velocities: list[Tensor], group: dict[str, Any]
    ) -> None:
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, grads)
        if group["weight_decay"] != 0:
            torch._foreach_add_(velocities, params, alpha=group["weight_decay"])


class Nesterov(Momentum):
    r"""Nesterov's accelerated gradient, by :func:`nesterov_update`.

    The trajectory is that of ``torch.optim.SGD(params, lr, momentum, nesterov=True)``.

    Args:
        params: Parameters or groups.
        lr: Learning rate :math:`\eta \ge 0`.
        momentum: :math:`\mu` in [0, 1).
        weight_decay: :math:`\lambda \ge 0`, coupled.
        maximize: Whether to ascend.
        foreach: Whether to take the fast path.

    Raises:
        ValueError: If a hyper-parameter is out of its domain.

    Book: :doc:`/book/foundations/optimization`
    """

    def update(
        self, param: Tensor, grad: Tensor, *slots: Tensor, step: int, group: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Apply :func:`nesterov_update`."""
        (velocity,) = slots
        return nesterov_update(
            param,
            grad,
            velocity,
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
        )

    def update_foreach(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        *slots: list[Tensor],
        step: int,
        group: dict[str, Any],
    ) -> None:
        """Apply the same rule to lists, in place."""
        self._accumulate(params, grads, slots[0], group)
        # Two additions into the parameter need no temporary tensor for g + mu u.
        if group["weight_decay"] != 0:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, grads, alpha=-group["lr"])
        torch._foreach_add_(params, slots[0], alpha=-group["lr"] * group["momentum"])
