r"""How far a policy has gone from its reference: three estimators, and where they may stand.

An estimator may have the right mean and yet a gradient with another mean. So it matters whether a
penalty stands in the reward, where it is a number, or in the loss, where it is differentiated.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import check_finite, check_floating, check_in_range, check_shape, wide
from companion.frontiers.reinforcement._checks import check_mask, check_scores

__all__ = ["Estimator", "kl_estimate", "penalized_rewards"]

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(
    log_probs: Float[Tensor, "*batch"],
    reference: Float[Tensor, "*batch"],
    *,
    estimator: Estimator = "k3",
) -> Float[Tensor, "*batch"]:
    r"""Estimate :math:`\mathrm{KL}(\pi \,\|\, \pi_{\mathrm{ref}})` from draws of :math:`\pi`.

    .. math:: k_1 = \log\frac{\pi}{\pi_{\mathrm{ref}}}, \qquad
        k_2 = \tfrac12 \Big(\log\frac{\pi}{\pi_{\mathrm{ref}}}\Big)^2, \qquad
        k_3 = \frac{\pi_{\mathrm{ref}}}{\pi} - 1 - \log\frac{\pi_{\mathrm{ref}}}{\pi}

    The means of ``k1`` and ``k3`` over draws of :math:`\pi` are the divergence; that of ``k2`` is
    so to second order only. ``k2`` and ``k3`` are never negative.

    Args:
        log_probs: :math:`\log \pi` of what was drawn, in nats.
        reference: :math:`\log \pi_{\mathrm{ref}}` of the same.
        estimator: Which.

    Returns:
        One number for each draw, in nats, float32 or better.

    Raises:
        ValueError: If the shapes differ or the estimator is unknown.

    Numerics:
        ``k3`` uses ``expm1``, so it keeps its digits where both policies nearly agree, and is
        infinite only where the reference exceeds the policy by more than 88 nats in float32. Its
        variance is infinite where the reference has much heavier tails.

    References:
        Schulman 2020, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html; for
        their gradients, Tang and Munos 2025, arXiv:2506.09477.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> pi, ref = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])
        >>> for name in ("k1", "k2", "k3"):
        ...     print(f"{(pi * kl_estimate(pi.log(), ref.log(), estimator=name)).sum():.4f}")
        0.1927
        0.1723
        0.1927
    """
    check_floating("log_probs", log_probs)
    check_scores("reference", reference, log_probs)
    ratio = wide(log_probs) - wide(reference)
    if estimator == "k1":
        return ratio
    if estimator == "k2":
        return 0.5 * ratio.square()
    if estimator == "k3":
        return torch.expm1(-ratio) + ratio
    raise ValueError(f'estimator must be "k1", "k2" or "k3", got {estimator!r}')


def penalized_rewards(
    rewards: Float[Tensor, " batch"],
    log_probs: Float[Tensor, "batch tokens"],
    reference: Float[Tensor, "batch tokens"],
    real: Bool[Tensor, "batch tokens"],
    *,
    beta: float,
) -> Float[Tensor, "batch tokens"]:
    r"""Pay a reward at the end of each text, and charge for each token that the reference doubts.

    .. math:: r_t = R \, [t \text{ is last}] - \beta \log\frac{\pi(a_t \mid s_t)}
        {\pi_{\mathrm{ref}}(a_t \mid s_t)}

    The policy gradient of these rewards is that of
    :math:`\mathrm E R - \beta\, \mathrm{KL}(\pi \,\|\, \pi_{\mathrm{ref}})`: the estimator
    ``k1``, which as a loss has no gradient, is right as a reward.

    Args:
        rewards: :math:`R` of each text.
        log_probs: Of the written tokens under the policy that wrote them. No gradient passes.
        reference: The same under the reference.
        real: ``True`` for tokens that were written. A text without any is paid nothing.
        beta: :math:`\beta \ge 0`.

    Returns:
        A reward for each token, float32 or better; 0 where none was written.

    Raises:
        ValueError: If shapes do not fit, a reward is not finite, or beta is negative.

    References:
        Ziegler et al. 2019, arXiv:1909.08593, eq. 2.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> one = torch.ones(1, 3, dtype=torch.bool)
        >>> penalized_rewards(torch.ones(1), torch.zeros(1, 3), -torch.ones(1, 3), one, beta=0.1)
        tensor([[-0.1000, -0.1000,  0.9000]])
    """
    check_shape("log_probs", log_probs, (None, None))
    check_shape("rewards", rewards, (log_probs.shape[0],))
    check_finite("rewards", rewards)
    check_mask(real, log_probs)
    check_in_range("beta", beta, low=0.0, open_high=True)
    charge = -beta * kl_estimate(log_probs.detach(), reference, estimator="k1")
    # The last token that was written has none after it.
    after = real.flip(1).cumsum(1).flip(1)
    last = real & (after == 1)
    return charge.masked_fill(~real, 0.0) + torch.where(last, rewards[:, None], 0.0)
