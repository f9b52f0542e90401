"""A learning rate for each coordinate: AdaGrad and RMSProp."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.optimizer import ParamsT

from companion.foundations.optimization._base import (
    UpdateRule,
    check_decay_rate,
    check_nonnegative,
)

__all__ = ["AdaGrad", "RMSProp", "adagrad_update", "rmsprop_update"]


def adagrad_update(
    param: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    total: Float[Tensor, "*shape"],
    *,
    lr: float,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    r"""Take one step of AdaGrad with a diagonal matrix.

    .. math:: s_t = s_{t-1} + g_t^2, \qquad
        \theta_t = \theta_{t-1} - \eta \, \frac{g_t}{\sqrt{s_t} + \epsilon}

    Args:
        param: Parameter :math:`\theta_{t-1}`.
        grad: Gradient :math:`g_t`.
        total: Sum of squares :math:`s_{t-1}`, zero at the start.
        lr: Learning rate :math:`\eta \ge 0`.
        eps: :math:`\epsilon \ge 0`, outside the root. It has the unit of the gradient.
        weight_decay: :math:`\lambda \ge 0`, coupled: :math:`\lambda \theta` is added to the
            gradient.

    Returns:
        The next parameter and the next sum.

    References:
        J. Duchi, E. Hazan and Y. Singer, "Adaptive subgradient methods for online learning and
        stochastic optimization", JMLR 12, 2011, https://jmlr.org/papers/v12/duchi11a.html. The
        paper adds :math:`\delta` to the root as here. PyTorch's ``lr_decay`` and initial sum are
        left out.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> adagrad_update(torch.tensor(1.0), torch.tensor(3.0), torch.tensor(16.0), lr=0.5)
        (tensor(0.7000), tensor(25.))
    """
    grad = grad + weight_decay * param
    total = total + grad**2
    return param - lr * grad / (total.sqrt() + eps), total


def rmsprop_update(
    param: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    square: Float[Tensor, "*shape"],
    *,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    r"""Take one step of RMSProp.

    .. math:: v_t = \alpha v_{t-1} + (1 - \alpha) g_t^2, \qquad
        \theta_t = \theta_{t-1} - \eta \, \frac{g_t}{\sqrt{v_t} + \epsilon}

    Args:
        param: Parameter :math:`\theta_{t-1}`.
        grad: Gradient :math:`g_t`.
        square: Running mean of squares :math:`v_{t-1}`, zero at the start.
        lr: Learning rate :math:`\eta \ge 0`.
        alpha: Weight of the past, in [0, 1).
        eps: :math:`\epsilon \ge 0`, outside the root as in PyTorch. TensorFlow's original and
            Graves put it inside, :math:`\sqrt{v_t + \epsilon}`, where the same number acts like
            its square root does here.
        weight_decay: :math:`\lambda \ge 0`, coupled.

    Returns:
        The next parameter and the next mean.

    Numerics:
        The mean starts at zero and is not corrected for it, so the first step is about
        :math:`\eta / \sqrt{1 - \alpha}` in every coordinate: ten times :math:`\eta` at
        :math:`\alpha = 0.99`.

    References:
        T. Tieleman and G. Hinton, *Neural Networks for Machine Learning*, lecture 6.5, 2012;
        A. Graves, 2013, arXiv:1308.0850, eqs. 38-45, for the centered form with the constant
        inside the root. The centered form and momentum are left out here.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> rmsprop_update(torch.tensor(1.0), torch.tensor(4.0), torch.tensor(0.0),
        ...                lr=0.5, alpha=0.75, eps=0.0)
        (tensor(0.), tensor(4.))
    """
    grad = grad + weight_decay * param
    square = alpha * square + (1 - alpha) * grad**2
    return param - lr * grad / (square.sqrt() + eps), square


def _coupled(params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    if group["weight_decay"] == 0:
        return grads
    return list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))


class AdaGrad(UpdateRule):
    r"""AdaGrad, by :func:`adagrad_update`.

    The trajectory is that of ``torch.optim.Adagrad`` with its defaults.

    Args:
        params: Parameters or groups.
        lr: Learning rate :math:`\eta \ge 0`.
        eps: :math:`\epsilon \ge 0`, outside the root.
        weight_decay: :math:`\lambda \ge 0`, coupled.
        maximize: Whether to ascend.
        foreach: Whether to take the fast path.

    Raises:
        ValueError: If a hyper-parameter is out of its domain.

    Book: :doc:`/book/foundations/optimization`
    """

    slots = ("sum",)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        *,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool = True,
    ) -> None:
        super().__init__(
            params, lr=lr, eps=eps, weight_decay=weight_decay, maximize=maximize, foreach=foreach
        )

    def check_group(self, group: dict[str, Any]) -> None:
        r"""Require :math:`\epsilon \ge 0` besides the rest."""
        super().check_group(group)
        check_nonnegative("eps", group["eps"])

    def update(
        self, param: Tensor, grad: Tensor, *slots: Tensor, step: int, group: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Apply :func:`adagrad_update`."""
        return adagrad_update(
            param,
            grad,
            slots[0],
            lr=group["lr"],
            eps=group["eps"],
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
        grads = _coupled(params, grads, group)
        torch._foreach_addcmul_(slots[0], grads, grads, 1.0)
        scale = torch._foreach_sqrt(slots[0])
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_addcdiv_(params, grads, scale, -group["lr"])


class RMSProp(UpdateRule):
    r"""RMSProp, by :func:`rmsprop_update`.

    The trajectory is that of ``torch.optim.RMSprop`` with its defaults.

    Args:
        params: Parameters or groups.
        lr: Learning rate :math:`\eta \ge 0`.
        alpha: Weight of the past, in [0, 1).
        eps: :math:`\epsilon \ge 0`, outside the root.
        weight_decay: :math:`\lambda \ge 0`, coupled.
        maximize: Whether to ascend.
        foreach: Whether to take the fast path.

    Raises:
        ValueError: If a hyper-parameter is out of its domain.

    Book: :doc:`/book/foundations/optimization`
    """

    slots = ("square_avg",)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
            foreach=foreach,
        )

    def check_group(self, group: dict[str, Any]) -> None:
        r"""Require :math:`\alpha` in [0, 1) and :math:`\epsilon \ge 0` besides the rest."""
        super().check_group(group)
        check_decay_rate("alpha", group["alpha"])
        check_nonnegative("eps", group["eps"])

    def update(
        self, param: Tensor, grad: Tensor, *slots: Tensor, step: int, group: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Apply :func:`rmsprop_update`."""
        return rmsprop_update(
            param,
            grad,
            slots[0],
            lr=group["lr"],
            alpha=group["alpha"],
            eps=group["eps"],
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
        grads = _coupled(params, grads, group)
        torch._foreach_mul_(slots[0], group["alpha"])
        torch._foreach_addcmul_(slots[0], grads, grads, 1 - group["alpha"])
        scale = torch._foreach_sqrt(slots[0])
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_addcdiv_(params, grads, scale, -group["lr"])
