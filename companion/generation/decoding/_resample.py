r"""What can be made of several samples: a better one, a mean, a ranking.

Weights and probabilities are given as logarithms, in nats.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import (
    check_count,
    check_floating,
    check_in_range,
    check_same_shape,
    check_shape,
    rand,
    wide,
)
from companion.pretraining.autoregressive._draw import check_rows

__all__ = [
    "Weighted",
    "best_of_n",
    "best_of_n_kl",
    "best_of_n_law",
    "expected_utilities",
    "gumbel_top_k",
    "noisy_channel",
    "rejection_accept",
    "snis",
]

Text = TypeVar("Text")


def best_of_n(
    rewards: Float[Tensor, "*batch n"],
) -> Integer[Tensor, "*batch"]:
    """Name the sample with the highest reward.

    Args:
        rewards: Of n samples.

    Returns:
        Its place. The first of equal ones.

    Raises:
        ValueError: If there is no sample, or a reward is NaN.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> best_of_n(torch.tensor([0.1, 0.9, 0.3]))
        tensor(1)
    """
    check_count("samples", rewards.shape[-1])
    _check_rewards(rewards)
    return rewards.argmax(-1)


def best_of_n_law(
    log_probs: Float[Tensor, " outcomes"], rewards: Float[Tensor, " outcomes"], n: int
) -> Float[Tensor, " outcomes"]:
    r"""Compute the distribution of the best of n samples.

    With :math:`F(r)` the probability of a reward of at most :math:`r`, an outcome that shares its
    reward with none is the best one with probability :math:`F(r)^n - F(r^-)^n`. Outcomes of equal
    reward share in proportion to their own probability, as when the first one is taken.

    Args:
        log_probs: The base distribution over finitely many outcomes.
        rewards: Of each outcome.
        n: How many samples are drawn.

    Returns:
        Probabilities of the outcomes, in float64.

    Raises:
        ValueError: If n is below 1, the shapes differ, a reward is NaN, or no outcome has a
            probability.

    Numerics:
        Rewards are sorted, so a whole vocabulary will do. Unlikely outcomes keep their digits.

    References:
        Beirami et al. 2024, arXiv:2401.01879.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> best_of_n_law(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.0, 1.0]), 4)
        tensor([0.0625, 0.9375], dtype=torch.float64)
    """
    check_count("n", n)
    check_shape("rewards", rewards, tuple(log_probs.shape))
    _check_rewards(rewards)
    check_rows(log_probs)
    p = log_probs.double().softmax(-1)
    levels, level = torch.unique(rewards, return_inverse=True)  # rising
    together = p.new_zeros(len(levels)).index_add(0, level, p)
    up_to = together.cumsum(0).clamp(max=1.0)
    # F^n - (F - f)^n as F^n (1 - (1 - f/F)^n), which keeps its digits where f is small.
    part = torch.where(up_to > 0, together / up_to, 1.0).clamp(max=1.0)
    taken = -(up_to**n) * torch.expm1(n * torch.log1p(-part))
    share = torch.where(together > 0, taken / together, 0.0)
    return p * share[level]


def best_of_n_kl(
    log_probs: Float[Tensor, " outcomes"], rewards: Float[Tensor, " outcomes"], n: int
) -> float:
    r"""Compute the divergence of the best of n samples from the base distribution, exactly.

    It is at most :math:`\log n - (n-1)/n`, which is reached where no outcome has much probability.

    Args:
        log_probs: The base distribution over finitely many outcomes.
        rewards: Of each outcome.
        n: How many samples are drawn.

    Returns:
        The divergence, in nats.

    Raises:
        ValueError: As :func:`best_of_n_law`.

    References:
        Beirami et al. 2024, arXiv:2401.01879, theorem 1 for the bound.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> round(best_of_n_kl(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.0, 1.0]), 4), 3)
        0.459
    """
    law = best_of_n_law(log_probs, rewards, n)
    base = log_probs.double().log_softmax(-1)
    return float(torch.where(law > 0, law * (law.log() - base), 0.0).sum())


def rejection_accept(
    log_ratio: Float[Tensor, "*batch"], log_bound: float, *, generator: torch.Generator
) -> Bool[Tensor, "*batch"]:
    r"""Accept samples of :math:`q` so that those kept have the distribution :math:`p`.

    A sample is kept with probability :math:`p(x)/(M\,q(x))`.

    Args:
        log_ratio: :math:`\log p(x) - \log q(x)` of each sample; p may lack its normalizer.
        log_bound: :math:`\log M`: no ratio may exceed it.
        generator: The source of randomness.

    Returns:
        Which samples to keep.

    Raises:
        ValueError: If a ratio exceeds the bound: what is kept would not have the distribution. If
            the bound is not finite: nothing would be kept.

    References:
        von Neumann 1951, "Various techniques used in connection with random digits".

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> bool(rejection_accept(torch.zeros(5), 0.0, generator=g).all())
        True
    """
    check_floating("log_ratio", log_ratio)
    check_in_range("log_bound", log_bound, open_low=True, open_high=True)
    worst = float(log_ratio.max()) if log_ratio.numel() else float("-inf")
    if not worst <= log_bound:
        raise ValueError(f"a log-ratio of {worst} exceeds the bound {log_bound}: raise log_bound")
    u = rand(*log_ratio.shape, generator=generator, device=log_ratio.device, dtype=torch.float64)
    return u < (log_ratio.double() - log_bound).exp()


class Weighted(NamedTuple):
    """An estimate from weighted samples.

    Attributes:
        value: The weighted mean.
        stderr: Its standard error, by the delta method.
        size: The effective number of samples, between 1 and how many there are.
    """

    value: Float[Tensor, "..."]
    stderr: Float[Tensor, "..."]
    size: Float[Tensor, ""]


def snis(log_weights: Float[Tensor, " samples"], values: Float[Tensor, "samples ..."]) -> Weighted:
    r"""Estimate a mean under p from samples of q: self-normalized importance sampling.

    .. math:: \hat\mu = \sum_i \bar w_i f(x_i), \qquad \bar w_i = \frac{w_i}{\sum_j w_j}

    Args:
        log_weights: :math:`\log p(x_i) - \log q(x_i)`, up to one constant.
        values: :math:`f(x_i)`.

    Returns:
        The estimate. Its bias falls like :math:`1/n`.

    Raises:
        ValueError: If there is no sample, the numbers differ, or no sample has a weight.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> snis(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 3.0])).value
        tensor(2.)
    """
    check_count("samples", len(log_weights))
    if len(values) != len(log_weights):
        raise ValueError(f"got {len(log_weights)} weights and {len(values)} values: give one each")
    check_rows(log_weights)
    weights = wide(log_weights).softmax(0)
    shaped = weights.view(-1, *[1] * (values.ndim - 1))
    value = (shaped * values).sum(0)
    stderr = (shaped.square() * (values - value).square()).sum(0).sqrt()
    return Weighted(value, stderr, 1 / weights.square().sum())


def gumbel_top_k(
    log_probs: Float[Tensor, "*batch vocab"], k: int, *, generator: torch.Generator
) -> Integer[Tensor, "*batch k"]:
    r"""Draw k different classes, one after the other, each from what is left.

    The k largest of :math:`\log p_i + g_i`, where the :math:`g_i` have Gumbel's distribution
    :math:`P(g \le x) = e^{-e^{-x}}`. With k = 1 this is a draw from p.

    Args:
        log_probs: Log-probabilities, or logits.
        k: How many classes.
        generator: The source of randomness.

    Returns:
        Class ids in the order of the draws.

    Raises:
        ValueError: If a row has fewer than k classes of positive probability, or a number is NaN.

    Numerics:
        Noise is drawn in float64: in float32 it ends at about 16.6, which makes the unlikely
        classes rarer than they should be.

    References:
        Kool et al. 2019, arXiv:1903.06059.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> gumbel_top_k(torch.tensor([0.0, -torch.inf, 0.0]), 2, generator=g).sort().values
        tensor([0, 2])
    """
    check_floating("log_probs", log_probs)
    check_rows(log_probs)
    possible = int((log_probs > float("-inf")).sum(-1).min()) if log_probs.numel() else 0
    check_count("k", k, high=max(possible, 0))
    u = rand(*log_probs.shape, generator=generator, device=log_probs.device, dtype=torch.float64)
    tiny = torch.finfo(torch.float64).tiny
    noise = -(-u.clamp(min=tiny).log()).log()
    return (log_probs.double() + noise).topk(k, dim=-1).indices


def expected_utilities(
    candidates: Sequence[Text],
    samples: Sequence[Text],
    utility: Callable[[Text, Text], float],
    *,
    weights: Float[Tensor, " samples"] | None = None,
) -> Float[Tensor, " candidates"]:
    r"""Estimate the expected utility of each candidate: its largest is the least Bayes risk.

    .. math:: \hat u(h) = \frac1S \sum_{s=1}^S u(h, y^{(s)})

    Args:
        candidates: Texts to choose from; the samples themselves will do.
        samples: Texts drawn from the model. A text that was drawn twice counts twice.
        utility: How good the first text is if the second is right. It need not be symmetric.
        weights: Of the samples; equal ones by default.

    Returns:
        A number for each candidate. With ``utility`` the equality of two texts these are relative
        frequencies, and the largest is the mode of the samples.

    Raises:
        ValueError: If there is no candidate or no sample, a utility is NaN, the weights are not as
            many as the samples, or one of them is negative or all are 0.

    References:
        Kumar and Byrne 2004; Eikema and Aziz 2020, arXiv:2005.10283.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> expected_utilities(["a", "b"], ["a", "b", "b"], lambda h, y: float(h == y))
        tensor([0.3333, 0.6667])
    """
    check_count("candidates", len(candidates))
    check_count("samples", len(samples))
    table = torch.tensor([[float(utility(h, y)) for y in samples] for h in candidates])
    if bool(table.isnan().any()):
        raise ValueError("a utility is NaN: it must rank every pair of a candidate and a sample")
    if weights is None:
        return table.mean(1)
    check_shape("weights", weights, (len(samples),))
    if not bool((weights >= 0).all()) or not float(weights.sum()) > 0:
        raise ValueError("weights must be 0 or more, and one of them positive")
    return table.to(weights.dtype) @ (weights / weights.sum())


def noisy_channel(
    direct: Float[Tensor, "*batch"],
    channel: Float[Tensor, "*batch"],
    prior: Float[Tensor, "*batch"],
    *,
    weight: float = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""Score candidates by Bayes' rule beside the direct model.

    .. math:: \log P(y \mid c) + \lambda \big( \log P(c \mid y) + \log P(y) \big)

    Args:
        direct: :math:`\log P(y \mid c)` by a model that reads the condition; zeros to leave it out.
        channel: :math:`\log P(c \mid y)` by a model that explains the condition.
        prior: :math:`\log P(y)` by a language model.
        weight: :math:`\lambda \ge 0`.

    Returns:
        The scores, not normalized.

    Raises:
        ValueError: If the weight is negative, or the shapes differ.

    References:
        Yee et al. 2019, arXiv:1908.05731; Ng et al. 2019, arXiv:1907.06616.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> one = torch.tensor([-1.0])
        >>> noisy_channel(one, 2 * one, 3 * one)
        tensor([-6.])
    """
    check_in_range("weight", weight, low=0.0, open_high=True)
    check_same_shape("direct", direct, "channel", channel)
    check_same_shape("direct", direct, "prior", prior)
    # A term of weight 0 is left out: it may be infinite, and 0 times that is NaN.
    return direct + weight * (channel + prior) if weight else direct.clone()


def _check_rewards(rewards: Tensor) -> None:
    if bool(rewards.isnan().any()):
        raise ValueError("a reward is NaN: leave such samples out")
