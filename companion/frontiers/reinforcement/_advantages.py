r"""How much better a choice was than expected: baselines, groups, and values that look ahead."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import (
    can_read,
    check_finite,
    check_floating,
    check_in_range,
    check_same_shape,
    check_shape,
    wide,
)
from companion.frontiers.reinforcement._checks import check_mask

__all__ = [
    "Advantages",
    "bandit_gradient",
    "gae",
    "grpo_advantages",
    "optimal_baseline",
    "rloo_advantages",
]


class Advantages(NamedTuple):
    r"""What :func:`gae` finds for each token.

    Attributes:
        advantages: :math:`\hat A_t`; 0 where a place does not count.
        returns: :math:`\hat A_t + V_t`, what a critic should have said.
    """

    advantages: Tensor
    returns: Tensor


def bandit_gradient(
    logits: Float[Tensor, "*batch actions"], rewards: Float[Tensor, "*batch actions"]
) -> Float[Tensor, "*batch actions"]:
    r"""Differentiate the mean reward of a softmax policy by its logits, exactly.

    .. math:: \frac{\partial J}{\partial z} = p \odot (r - p \cdot r), \qquad
        p = \mathrm{softmax}(z)

    Args:
        logits: :math:`z`.
        rewards: :math:`r`, of each action.

    Returns:
        The gradient. It sums to 0 over the actions.

    Raises:
        ValueError: If the shapes differ or a reward is not finite.

    References:
        Sutton and Barto 2018, "Reinforcement Learning", section 2.8.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> p, r = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.0, 1.0, 2.0])
        >>> bandit_gradient(p.log(), r)
        tensor([-0.3500,  0.0900,  0.2600])
    """
    check_floating("logits", logits)
    check_same_shape("logits", logits, "rewards", rewards)
    check_finite("rewards", rewards)
    p = wide(logits).softmax(-1)
    return p * (rewards - (p * rewards).sum(-1, keepdim=True))


def optimal_baseline(
    scores: Float[Tensor, "draws parameters"], rewards: Float[Tensor, " draws"]
) -> Float[Tensor, ""]:
    r"""Estimate the constant that makes the variance of REINFORCE smallest.

    .. math:: b^* = \frac{\mathrm E\big[\lVert s\rVert^2 R\big]}{\mathrm E\lVert s\rVert^2}, \qquad
        s = \nabla \log \pi

    Args:
        scores: :math:`s`, the score of each draw.
        rewards: :math:`R` of each draw.

    Returns:
        The baseline, with means in place of the expectations.

    Raises:
        ValueError: If the shapes do not fit, or all scores are 0: any constant is as good then.

    References:
        Greensmith, Bartlett and Baxter 2004, Journal of Machine Learning Research 5.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> optimal_baseline(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0]))
        tensor(0.9000)
    """
    check_shape("scores", scores, (None, None))
    check_shape("rewards", rewards, (scores.shape[0],))
    square = wide(scores).square().sum(1)
    total = square.sum()
    if can_read(total) and not bool(total > 0):
        raise ValueError("scores must have an entry that is not 0, so that a baseline matters")
    return (square * rewards).sum() / total


def _check_groups(rewards: Tensor) -> Tensor:
    check_floating("rewards", rewards)
    if rewards.ndim == 0 or rewards.shape[-1] == 0:
        raise ValueError(f"rewards need an axis of a group, got shape {tuple(rewards.shape)}")
    check_finite("rewards", rewards)
    return wide(rewards)


def rloo_advantages(rewards: Float[Tensor, "*prompts group"]) -> Float[Tensor, "*prompts group"]:
    r"""Compare each answer with the mean of the others to the same prompt.

    .. math:: \hat A_i = R_i - \frac{1}{G - 1} \sum_{j \ne i} R_j

    The baseline does not depend on answer i, so the gradient stays unbiased.

    Args:
        rewards: Of the answers to each prompt, a row a prompt.

    Returns:
        Advantages, float32 or better. In a group of one there is no other answer: 0. Where all
        rewards of a group are equal they are exactly 0.

    Raises:
        ValueError: If a reward is not finite, or there is no answer.

    References:
        Kool, van Hoof and Welling 2019; Ahmadian et al. 2024, arXiv:2402.14740.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> rloo_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
        tensor([[ 0.6667, -0.6667, -0.6667,  0.6667]])
    """
    rewards = _check_groups(rewards)
    size = rewards.shape[-1]
    return _centered(rewards) * (size / max(size - 1, 1))


def _centered(rewards: Tensor) -> Tensor:
    """Distances from the group's mean, exactly 0 where all are equal: rounding moves a mean."""
    same = rewards.amax(-1, keepdim=True) == rewards.amin(-1, keepdim=True)
    return torch.where(same, 0.0, rewards - rewards.mean(-1, keepdim=True))


def grpo_advantages(
    rewards: Float[Tensor, "*prompts group"],
    *,
    scale: Literal["group", "batch", "none"] = "group",
    ddof: int = 1,
    eps: float = 0.0,
) -> Float[Tensor, "*prompts group"]:
    r"""Compare each answer with its group, in units of the group's standard deviation.

    .. math:: \hat A_i = \frac{R_i - \bar R}{\mathrm{sd}(R)}

    Args:
        rewards: Of the answers to each prompt, a row a prompt.
        scale: What to divide by: the standard deviation of the ``"group"``, that of all rewards of
            the ``"batch"``, or nothing, ``"none"``, as in Dr. GRPO.
        ddof: 1 divides squares by G - 1, as ``torch.std`` and most trainers do, and 0 by G.
        eps: Added to the standard deviation; trainers add 1e-4 or so.

    Returns:
        Advantages, float32 or better. Where all rewards of a group are equal, or it has one
        answer, they are exactly 0: such a group says nothing.

    Raises:
        ValueError: If a reward is not finite, there is no answer, or a setting is unknown.

    Numerics:
        Groups of equal rewards are found by comparing, not by a small standard deviation, which
        rounding can make of equal numbers. Squares are of shares of the largest distance, so they
        neither overflow nor vanish.

    References:
        Shao et al. 2024, arXiv:2402.03300, section 4.1.2; Liu et al. 2025, arXiv:2503.20783 (Dr.
        GRPO), who show which bias the division brings.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> grpo_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]))
        tensor([[ 0.8660, -0.8660, -0.8660,  0.8660],
                [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    if scale not in ("group", "batch", "none"):
        raise ValueError(f'scale must be "group", "batch" or "none", got {scale!r}')
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, got {ddof}")
    check_in_range("eps", eps, low=0.0, open_high=True)
    rewards = _check_groups(rewards)
    centered = _centered(rewards)
    if scale == "none":
        return centered
    if scale == "group":
        spread = _deviation(centered, ddof)
    else:
        spread = _deviation((rewards - rewards.mean()).flatten(), ddof)
    silent = (centered == 0).all(-1, keepdim=True)
    return centered / torch.where(silent, 1.0, spread + eps)


def _deviation(off: Tensor, ddof: int) -> Tensor:
    """Standard deviation along the last axis of numbers that are distances from a mean."""
    largest = off.abs().amax(-1, keepdim=True)
    unit = torch.where(largest > 0, largest, 1.0)
    return (
        unit * ((off / unit).square().sum(-1, keepdim=True) / max(off.shape[-1] - ddof, 1)).sqrt()
    )


def gae(
    rewards: Float[Tensor, "batch tokens"],
    values: Float[Tensor, "batch tokens"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    real: Bool[Tensor, "batch tokens"] | None = None,
    last_value: Float[Tensor, " batch"] | None = None,
) -> Advantages:
    r"""Estimate the advantage of each token: generalized advantage estimation.

    .. math:: \hat A_t = \sum_{k \ge 0} (\gamma\lambda)^k \delta_{t+k}, \qquad
        \delta_t = r_t + \gamma V_{t+1} - V_t

    With :math:`\lambda = 0` it is the error of one step, with :math:`\lambda = 1` the discounted
    return minus the value.

    Args:
        rewards: :math:`r_t`.
        values: :math:`V_t`, what a critic says before the token. It gets no gradient through here.
        gamma: :math:`\gamma`, from 0 to 1.
        lam: :math:`\lambda`, from 0 to 1.
        real: ``True`` for tokens that the policy chose. Others, such as padding or what a tool has
            written, are stepped over: they neither count as time nor lend their value.
        last_value: The value of the state after the last token of each row, for texts that were
            cut off. By default 0: the text has ended there.

    Returns:
        Advantages, and the returns that a critic learns from; 0 where a place does not count.

    Raises:
        ValueError: If shapes do not fit, or gamma or lambda is out of range.

    Numerics:
        A recurrence :math:`A_t = \delta_t + c A_{t+1}` by doubling: :math:`\log_2` of the length
        many steps on whole rows, and no loop over tokens.

    References:
        Schulman et al. 2016, arXiv:1506.02438, eq. 16.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> r, v = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.2, 0.5]])
        >>> gae(r, v, lam=0.5).advantages  # 0.5 - 0.2 + 0.5 * (1 - 0.5), 1 - 0.5
        tensor([[0.5500, 0.5000]])
    """
    check_shape("rewards", rewards, (None, None))
    check_floating("rewards", rewards)
    check_floating("values", values)
    check_same_shape("rewards", rewards, "values", values)
    check_in_range("gamma", gamma, low=0.0, high=1.0)
    check_in_range("lam", lam, low=0.0, high=1.0)
    if real is None:
        real = torch.ones_like(rewards, dtype=torch.bool)
    check_mask(real, rewards)
    if last_value is not None:
        check_shape("last_value", last_value, (rewards.shape[0],))
    high = torch.promote_types(wide(rewards).dtype, wide(values).dtype)
    r = rewards.to(high).masked_fill(~real, 0.0)
    v = values.detach().to(high).masked_fill(~real, 0.0)
    end = v.new_zeros(len(v), 1) if last_value is None else last_value.detach().to(high)[:, None]
    # The value of the next place that counts: a recurrence that only hands on.
    after = _scan(v, (~real).to(high), end)
    delta = torch.where(real, r + gamma * after[:, 1:] - v, 0.0)
    keep = torch.where(real, r.new_full((), gamma * lam), r.new_ones(()))
    found = _scan(delta, keep, v.new_zeros(len(v), 1))[:, :-1]
    advantages = torch.where(real, found, 0.0)
    return Advantages(advantages, torch.where(real, advantages + v, 0.0))


def _scan(new: Tensor, keep: Tensor, end: Tensor) -> Tensor:
    """Solve x[t] = new[t] + keep[t] x[t + 1] from the right, with x after the last given."""
    x = torch.cat([new, end], dim=1)
    factor = torch.cat([keep, torch.zeros_like(end)], dim=1)
    step = 1
    while step < x.shape[1]:
        # Each place holds its part of the sum up to `step` places further on, and what multiplies
        # the rest of it.
        ahead = torch.nn.functional.pad(x[:, step:], (0, step))
        further = torch.nn.functional.pad(factor[:, step:], (0, step))
        x = x + factor * ahead
        factor = factor * further
        step *= 2
    return x
