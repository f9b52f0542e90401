"""Adam and AdamW: running averages of the gradient and of its square."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.optimizer import ParamsT

from companion.foundations.optimization._base import (
    UpdateRule,
    check_betas,
    check_decay_rate,
    check_nonnegative,
)

__all__ = ["Adam", "AdamW", "adam_update", "adamw_update", "bias_correction"]


def bias_correction(beta: float, step: int) -> float:
    r"""Return the weight that a running average from zero has given to its data.

    .. math:: 1 - \beta^t = (1 - \beta) \sum_{s=1}^{t} \beta^{t-s}

    Args:
        beta: Weight of the past, in [0, 1).
        step: Number of terms :math:`t`, 1 or more.

    Returns:
        A number in (0, 1]. Divide the average by it to make it unbiased.

    Raises:
        ValueError: If an argument is out of its domain.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> bias_correction(0.5, 3)
        0.875
    """
    check_decay_rate("beta", beta)
    if step < 1:
        raise ValueError(f"step counts from 1, got {step}")
    return 1 - beta**step


def adam_update(
    param: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    first: Float[Tensor, "*shape"],
    second: Float[Tensor, "*shape"],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    r"""Take one step of Adam.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2

    .. math::
        \theta_t = \theta_{t-1} - \eta \, \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}, \qquad
        \hat m_t = \frac{m_t}{1 - \beta_1^t}, \quad \hat v_t = \frac{v_t}{1 - \beta_2^t}

    Args:
        param: Parameter :math:`\theta_{t-1}`.
        grad: Gradient :math:`g_t`.
        first: First moment :math:`m_{t-1}`, zero at the start.
        second: Second moment :math:`v_{t-1}`, zero at the start.
        step: :math:`t`, 1 for the first update.
        lr: Learning rate :math:`\eta \ge 0`. A coordinate usually moves by about it or less in a
            step; the bound is 7.3 times it at the default rates.
        betas: :math:`\beta_1, \beta_2` in [0, 1).
        eps: :math:`\epsilon \ge 0`, outside the root and added after the bias correction.
        weight_decay: :math:`\lambda \ge 0`, coupled: :math:`\lambda \theta` is added to the
            gradient, so it passes through both moments. See :func:`adamw_update`.

    Returns:
        The next parameter and the next two moments.

    References:
        D. P. Kingma and J. Ba, 2015, arXiv:1412.6980, algorithm 1. The faster form at the end of
        their section 2 adds the constant before the correction, to :math:`\sqrt{v_t}`, and so
        means another :math:`\epsilon`; TensorFlow follows that form, PyTorch and this function
        follow algorithm 1.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> param, first, second = adam_update(
        ...     torch.tensor(1.0), torch.tensor(-7.0), torch.tensor(0.0), torch.tensor(0.0),
        ...     step=1, lr=0.25)
        >>> param  # the first step has length lr, whatever the gradient
        tensor(1.2500)
    """
    grad = grad + weight_decay * param
    beta1, beta2 = betas
    first = beta1 * first + (1 - beta1) * grad
    second = beta2 * second + (1 - beta2) * grad**2
    mean = first / bias_correction(beta1, step)
    square = second / bias_correction(beta2, step)
    return param - lr * mean / (square.sqrt() + eps), first, second


def adamw_update(
    param: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    first: Float[Tensor, "*shape"],
    second: Float[Tensor, "*shape"],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    r"""Take one step of Adam with decoupled weight decay.

    .. math:: \theta_t = (1 - \eta \lambda) \, \theta_{t-1}
        - \eta \, \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}

    with the moments of :func:`adam_update`, which see the gradient of the loss alone.

    Args:
        param: Parameter :math:`\theta_{t-1}`.
        grad: Gradient :math:`g_t`.
        first: First moment :math:`m_{t-1}`, zero at the start.
        second: Second moment :math:`v_{t-1}`, zero at the start.
        step: :math:`t`, 1 for the first update.
        lr: Learning rate :math:`\eta \ge 0`.
        betas: :math:`\beta_1, \beta_2` in [0, 1).
        eps: :math:`\epsilon \ge 0`, outside the root.
        weight_decay: :math:`\lambda \ge 0`. The parameter shrinks by the factor
            :math:`1 - \eta \lambda`.

    Returns:
        The next parameter and the next two moments.

    References:
        I. Loshchilov and F. Hutter, 2019, arXiv:1711.05101, algorithm 2. In the paper the decay
        is :math:`\eta_t \lambda` with a schedule factor :math:`\eta_t` that leaves out the base
        rate :math:`\alpha`. PyTorch and this function multiply :math:`\lambda` by the whole
        learning rate, so halving it halves the decay too.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> zero = torch.tensor(0.0)
        >>> adamw_update(torch.tensor(8.0), zero, zero, zero, step=1, lr=0.5, weight_decay=0.25)
        (tensor(7.), tensor(0.), tensor(0.))
    """
    shrunk = (1 - lr * weight_decay) * param
    return adam_update(shrunk, grad, first, second, step=step, lr=lr, betas=betas, eps=eps)


class Adam(UpdateRule):
    r"""Adam, by :func:`adam_update`. Its weight decay is coupled, that is an L2 penalty.

    The trajectory is that of ``torch.optim.Adam``.

    Args:
        params: Parameters or groups.
        lr: Learning rate :math:`\eta \ge 0`.
        betas: :math:`\beta_1, \beta_2` in [0, 1).
        eps: :math:`\epsilon \ge 0`, outside the root.
        weight_decay: :math:`\lambda \ge 0`, added to the gradient as :math:`\lambda \theta`.
        maximize: Whether to ascend.
        foreach: Whether to take the fast path.

    Raises:
        ValueError: If a hyper-parameter is out of its domain.

    Book: :doc:`/book/foundations/optimization`
    """

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
            foreach=foreach,
        )

    def check_group(self, group: dict[str, Any]) -> None:
        r"""Require both rates in [0, 1) and :math:`\epsilon \ge 0` besides the rest."""
        super().check_group(group)
        check_betas(group)
        check_nonnegative("eps", group["eps"])

    def update(
        self, param: Tensor, grad: Tensor, *slots: Tensor, step: int, group: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Apply :func:`adam_update`."""
        return adam_update(param, grad, slots[0], slots[1], step=step, **_adam_settings(group))

    def update_foreach(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        *slots: list[Tensor],
        step: int,
        group: dict[str, Any],
    ) -> None:
        """Apply the same rule to lists, in place."""
        if group["weight_decay"] != 0:
            grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        _adam_foreach(params, grads, slots[0], slots[1], step, group)


class AdamW(Adam):
    r"""Adam with decoupled weight decay, by :func:`adamw_update`.

    The trajectory is that of ``torch.optim.AdamW``.

    Args:
        params: Parameters or groups.
        lr: Learning rate :math:`\eta \ge 0`.
        betas: :math:`\beta_1, \beta_2` in [0, 1).
        eps: :math:`\epsilon \ge 0`, outside the root.
        weight_decay: :math:`\lambda \ge 0`. Parameters shrink by :math:`1 - \eta \lambda` a step.
            Give gains and biases a group of their own with 0.
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
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        maximize: bool = False,
        foreach: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
            foreach=foreach,
        )

    def update(
        self, param: Tensor, grad: Tensor, *slots: Tensor, step: int, group: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Apply :func:`adamw_update`."""
        return adamw_update(param, grad, slots[0], slots[1], step=step, **_adam_settings(group))

    def update_foreach(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        *slots: list[Tensor],
        step: int,
        group: dict[str, Any],
    ) -> None:
        """Apply the same rule to lists, in place."""
        if group["weight_decay"] != 0:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        _adam_foreach(params, grads, slots[0], slots[1], step, group)


def _adam_settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}


def _adam_foreach(
    params: list[Tensor],
    grads: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    step: int,
    group: dict[str, Any],
) -> None:
    beta1, beta2 = group["betas"]
    torch._foreach_lerp_(first, grads, 1 - beta1)
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
    # With c = sqrt(1 - beta2^t):  m / (sqrt(v) / c + eps) = c m / (sqrt(v) + c eps).
    # The correction moves into two numbers, which saves a pass over the parameters.
    root = bias_correction(beta2, step) ** 0.5
    scale = torch._foreach_sqrt(second)
    torch._foreach_add_(scale, root * group["eps"])
    size = group["lr"] * root / bias_correction(beta1, step)
    torch._foreach_addcdiv_(params, first, scale, -size)
