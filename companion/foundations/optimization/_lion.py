"""Lion: the sign of an average, and nothing else."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.optimizer import ParamsT

from companion.foundations.optimization._base import UpdateRule, check_betas

__all__ = ["Lion", "lion_update"]


def lion_update(
    param: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    average: Float[Tensor, "*shape"],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    r"""Take one step of Lion.

    .. math:: \theta_t = (1 - \eta \lambda) \, \theta_{t-1}
        - \eta \, \mathrm{sign}\big(\beta_1 m_{t-1} + (1 - \beta_1) g_t\big), \qquad
        m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t

    Args:
        param: Parameter :math:`\theta_{t-1}`.
        grad: Gradient :math:`g_t`.
        average: :math:`m_{t-1}`, zero at the start.
        lr: Learning rate :math:`\eta \ge 0`: every coordinate moves by exactly it.
        betas: :math:`\beta_1, \beta_2` in [0, 1). Two rates for one average: the step looks at
            the gradient more closely than the memory does.
        weight_decay: :math:`\lambda \ge 0`, decoupled.

    Returns:
        The next parameter and the next average.

    Numerics:
        One state tensor instead of Adam's two. A coordinate whose sign argument is exactly zero
        only decays.

    References:
        X. Chen et al., 2023, arXiv:2302.06675, algorithm 2.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> lion_update(torch.tensor(1.0), torch.tensor(3.0), torch.tensor(-1.0),
        ...             lr=0.25, betas=(0.5, 0.5))
        (tensor(0.7500), tensor(1.))
    """
    beta1, beta2 = betas
    direction = (beta1 * average + (1 - beta1) * grad).sign()
    average = beta2 * average + (1 - beta2) * grad
    return (1 - lr * weight_decay) * param - lr * direction, average


class Lion(UpdateRule):
    r"""Lion, by :func:`lion_update`.

    Args:
        params: Parameters or groups.
        lr: Learning rate :math:`\eta \ge 0`. The authors advise 3 to 10 times less than for
            AdamW, with as much more decay.
        betas: :math:`\beta_1, \beta_2` in [0, 1).
        weight_decay: :math:`\lambda \ge 0`, decoupled.
        maximize: Whether to ascend.
        foreach: Whether to take the fast path.

    Raises:
        ValueError: If a hyper-parameter is out of its domain.

    Book: :doc:`/book/foundations/optimization`
    """

    slots = ("exp_avg",)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            weight_decay=weight_decay,
            maximize=maximize,
            foreach=foreach,
        )

    def check_group(self, group: dict[str, Any]) -> None:
        """Require both rates in [0, 1) besides the rest."""
        super().check_group(group)
        check_betas(group)

    def update(
        self, param: Tensor, grad: Tensor, *slots: Tensor, step: int, group: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Apply :func:`lion_update`."""
        return lion_update(
            param,
            grad,
            slots[0],
            lr=group["lr"],
            betas=group["betas"],
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
        beta1, beta2 = group["betas"]
        direction = torch._foreach_mul(slots[0], beta1)
        torch._foreach_add_(direction, grads, alpha=1 - beta1)
        torch._foreach_sign_(direction)
        if group["weight_decay"] != 0:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, direction, alpha=-group["lr"])
        torch._foreach_lerp_(slots[0], grads, 1 - beta2)
