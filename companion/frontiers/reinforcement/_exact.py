r"""Worlds so small that the best policy is known: all texts, and the optimum under a penalty."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import (
    can_read,
    check_count,
    check_finite,
    check_floating,
    check_in_range,
    check_same_shape,
    check_shape,
    wide,
)

__all__ = [
    "KLOptimum",
    "OverOptimization",
    "all_texts",
    "fit_overoptimization",
    "kl_optimum",
    "overoptimization",
]


class KLOptimum(NamedTuple):
    r"""The best policy under a penalty, and what it reaches.

    Attributes:
        log_probs: :math:`\log \pi^*`, in nats.
        value: :math:`\beta \log Z`, the largest value of reward minus penalty.
        reward: :math:`\mathrm E_{\pi^*} r`.
        kl: :math:`\mathrm{KL}(\pi^* \,\|\, \pi_{\mathrm{ref}})`, in nats.
    """

    log_probs: Tensor
    value: Tensor
    reward: Tensor
    kl: Tensor


def kl_optimum(
    reference: Float[Tensor, "*batch outcomes"],
    rewards: Float[Tensor, "*batch outcomes"],
    *,
    beta: float,
) -> KLOptimum:
    r"""Find the policy that gains most when leaving the reference costs.

    .. math:: \pi^* = \arg\max_\pi\; \mathrm E_\pi r - \beta\,
        \mathrm{KL}(\pi \,\|\, \pi_{\mathrm{ref}}) = \frac{1}{Z} \pi_{\mathrm{ref}}\, e^{r/\beta}

    Args:
        reference: :math:`\log \pi_{\mathrm{ref}}`, or logits; minus infinity where impossible.
        rewards: :math:`r` of each outcome.
        beta: :math:`\beta > 0`.

    Returns:
        The policy, its value, reward, and divergence.

    Raises:
        ValueError: If the shapes differ, a reward is not finite, beta is not above 0, or a
            reference leaves nothing possible.

    Numerics:
        The divergence is a sum of terms that are never negative. As reward minus value, divided by
        beta, it would lose all digits where beta is very small or very large.

    References:
        Donsker and Varadhan 1975; for language models, Korbak et al. 2022, arXiv:2205.11275.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> ref = torch.tensor([0.5, 0.3, 0.2])
        >>> best = kl_optimum(ref.log(), torch.tensor([0.0, 1.0, 2.0]), beta=1.0)
        >>> best.log_probs.exp(), best.value
        (tensor([0.1790, 0.2919, 0.5291]), tensor(1.0272))
    """
    check_floating("reference", reference)
    check_same_shape("reference", reference, "rewards", rewards)
    check_finite("rewards", rewards)
    check_in_range("beta", beta, low=0.0, open_low=True, open_high=True)
    check_count("outcomes", reference.shape[-1])
    base = wide(reference).log_softmax(-1)
    r = wide(rewards)
    # From the best possible outcome down, so that a small beta hides nothing.
    top = r.masked_fill(base == -torch.inf, -torch.inf).amax(-1, keepdim=True)
    tilt = (r - top).clamp_max(0.0) / beta
    scores = base + tilt
    log_z = scores.logsumexp(-1, keepdim=True)
    if can_read(log_z) and not bool(log_z.isfinite().all()):
        raise ValueError(
            "reference must leave an outcome possible in each row, without NaN or plus infinity"
        )
    log_probs = scores - log_z
    p = log_probs.exp()
    value = (top + beta * log_z).squeeze(-1)
    # With log p = log q + d the divergence is the sum of q (d e^d - e^d + 1), all 0 or more.
    d = tilt - log_z
    near = d.clamp(-1.0, 1.0)
    terms = torch.where(
        d.abs() < 1,
        base.exp() * (near * near.exp() - near.expm1()),
        p * d - p + base.exp(),
    )
    return KLOptimum(log_probs, value, (p * r).sum(-1), terms.sum(-1))


def all_texts(
    vocab: int, length: int, *, device: torch.device | str = "cpu"
) -> Integer[Tensor, "texts length"]:
    """List every text of a length.

    Args:
        vocab: Number of tokens.
        length: Tokens of a text.
        device: Where the result lies.

    Returns:
        Token ids, shape ``(vocab ** length, length)``, in the order of counting.

    Raises:
        ValueError: If a number is below 1, or there are more than ten million texts.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> all_texts(2, 2).tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    check_count("vocab", vocab)
    check_count("length", length)
    if vocab**length > 10**7:
        raise ValueError(f"{vocab} ** {length} texts are too many to list: ten million at most")
    places = torch.arange(vocab**length, device=device)[:, None]
    powers = vocab ** torch.arange(length - 1, -1, -1, device=device)
    texts: Tensor = places // powers % vocab
    return texts


class OverOptimization(NamedTuple):
    r"""A fitted law of over-optimization.

    Attributes:
        alpha: How fast the true reward rises at first.
        beta: How fast that wears off.
        peak: The distance :math:`d` at which the true reward is largest.
        r2: Share of the variance of the rewards that the law explains; no number where they are
            all the same.
    """

    alpha: Tensor
    beta: Tensor
    peak: Tensor
    r2: Tensor


def _check_kind(kind: str) -> None:
    if kind not in ("bon", "rl"):
        raise ValueError(f'kind must be "bon" or "rl", got {kind!r}')


def _check_divergences(kl: Tensor) -> None:
    if can_read(kl) and not bool((kl >= 0).all()):
        raise ValueError("kl must be divergences, 0 or more")


def overoptimization(
    kl: Float[Tensor, "*batch"],
    alpha: float | Float[Tensor, ""],
    beta: float | Float[Tensor, ""],
    *,
    kind: Literal["bon", "rl"],
) -> Float[Tensor, "*batch"]:
    r"""Predict the true reward of a policy that was optimized for another one.

    .. math:: R_{\mathrm{bon}} = d\,(\alpha - \beta d), \qquad
        R_{\mathrm{rl}} = d\,(\alpha - \beta \log d), \qquad
        d = \sqrt{\mathrm{KL}(\pi \,\|\, \pi_{\mathrm{ref}})}

    Args:
        kl: Divergence from the reference, in nats, 0 or more.
        alpha: :math:`\alpha`.
        beta: :math:`\beta`.
        kind: ``"bon"`` for best of n, ``"rl"`` for reinforcement learning.

    Returns:
        The gain over the reference.

    Raises:
        ValueError: If the kind is unknown, or a divergence is negative.

    References:
        Gao, Schulman and Hilton 2022, arXiv:2210.10760, eq. 1; laws that were found, not derived.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> overoptimization(torch.tensor([0.0, 4.0]), 1.0, 0.25, kind="bon")
        tensor([0., 1.])
    """
    _check_kind(kind)
    check_floating("kl", kl)
    _check_divergences(kl)
    d = wide(kl).sqrt()
    if kind == "bon":
        bent: Tensor = d * (alpha - beta * d)
        return bent
    gain: Tensor = alpha * d - beta * torch.special.xlogy(d, d)
    return gain


def fit_overoptimization(
    kl: Float[Tensor, " points"],
    gain: Float[Tensor, " points"],
    *,
    kind: Literal["bon", "rl"],
) -> OverOptimization:
    r"""Fit the law of :func:`overoptimization` by least squares.

    Args:
        kl: Divergences, in nats, two or more above 0.
        gain: True rewards, minus that of the reference.
        kind: As in :func:`overoptimization`.

    Returns:
        Both constants, the distance of the peak, and how well the law fits. The peak is
        :math:`\alpha / 2\beta` for best of n and :math:`e^{\alpha/\beta - 1}` for RL; for
        :math:`\beta \le 0` there is none, and it is infinite.

    Raises:
        ValueError: If the shapes differ, a number is not finite, a divergence is negative, or
            fewer than two different ones are above 0.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> kl = torch.tensor([0.25, 1.0, 4.0])
        >>> fit_overoptimization(kl, overoptimization(kl, 1.0, 0.25, kind="bon"), kind="bon").peak
        tensor(2.)
    """
    _check_kind(kind)
    check_shape("kl", kl, (None,))
    check_count("points", len(kl), low=2)
    check_floating("kl", kl)
    check_floating("gain", gain)
    check_same_shape("kl", kl, "gain", gain)
    check_finite("kl", kl)
    check_finite("gain", gain)
    _check_divergences(kl)
    above = kl[kl > 0] if can_read(kl) else None
    if above is not None and (len(above) < 2 or bool((above == above[0]).all())):
        raise ValueError("a law of two constants needs two different divergences above 0")
    d, y = wide(kl).sqrt(), wide(gain)
    bend = d.square() if kind == "bon" else torch.special.xlogy(d, d)
    design = torch.stack([d, -bend], dim=1)
    # Two unknowns: the normal equations by hand, which also work on meta.
    alpha, beta = torch.linalg.solve(design.T @ design, design.T @ y)
    left = y - design @ torch.stack([alpha, beta])
    r2 = 1 - left.square().sum() / (y - y.mean()).square().sum()
    top = alpha / (2 * beta) if kind == "bon" else (alpha / beta - 1).exp()
    peak = torch.where(beta > 0, top, torch.inf)
    return OverOptimization(alpha, beta, peak, r2)
