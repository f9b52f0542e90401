r"""How sure a rate, a difference, and any function of the counts are.

The exact intervals are for independent people in a group of fixed size; the bootstrap draws
people anew from the whole table.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import can_read, check_count, check_in_range, check_same_shape
from companion.knowledge.robustness import binomial_lower
from companion.trust.fairness._cells import Cells

__all__ = [
    "Bootstrap",
    "Interval",
    "bootstrap",
    "clopper_pearson",
    "expected_gap",
    "newcombe",
    "null_gaps",
    "wilson",
]


class Interval(NamedTuple):
    """Ends of an interval, of equal shape.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: Float[Tensor, "..."]
    high: Float[Tensor, "..."]


def _check_trials(successes: Tensor, trials: Tensor, level: float) -> None:
    check_same_shape("successes", successes, "trials", trials)
    check_in_range("level", level, low=0.0, high=1.0, open_low=True, open_high=True)
    if can_read(successes) and bool(((successes < 0) | (successes > trials)).any()):
        wrong = (successes < 0) | (successes > trials)
        found, of = int(successes[wrong][0]), int(trials[wrong][0])
        raise ValueError(f"successes must lie between 0 and trials, got {found} of {of}")


def clopper_pearson(
    successes: Integer[Tensor, "*batch"], trials: Integer[Tensor, "*batch"], *, level: float = 0.95
) -> Interval:
    r"""Compute the exact interval of a rate.

    The lower end is the :math:`p` at which :math:`x` successes or more have the probability
    :math:`(1 - \text{level})/2`, the upper end that at which :math:`x` or fewer have it. It covers
    the true rate with at least the level, whatever the rate; usually with more.

    Args:
        successes: Number :math:`x` of successes.
        trials: Number of independent trials with one and the same rate.
        level: Probability with which the interval covers the rate, at least.

    Returns:
        Ends from 0 to 1, float64. Without a trial they are 0 and 1.

    Raises:
        ValueError: If the shapes differ, a count is out of range, or the level is not in (0, 1).

    Numerics:
        Quantiles of the beta distribution by SciPy, on the host: an accelerator is waited for.

    References:
        Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> low, high = clopper_pearson(torch.tensor(31), torch.tensor(60))
        >>> round(float(low), 2), round(float(high), 2)
        (0.38, 0.65)
    """
    _check_trials(successes, trials, level)
    alpha = (1 - level) / 2
    lower = binomial_lower(successes, trials, alpha=alpha)
    return Interval(lower, 1 - binomial_lower(trials - successes, trials, alpha=alpha))


def _quantile(level: float) -> float:
    return float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)))


def wilson(
    successes: Integer[Tensor, "*batch"], trials: Integer[Tensor, "*batch"], *, level: float = 0.95
) -> Interval:
    r"""Compute Wilson's interval of a rate: where the score test does not reject.

    With :math:`z` the normal quantile, these are the two solutions :math:`p` of
    :math:`(\hat p - p)^2 = z^2 p (1 - p)/n`. It covers with about the level on average over rates.

    Args:
        successes: Number of successes.
        trials: Number of trials.
        level: Probability with which the interval covers the rate, about.

    Returns:
        Ends from 0 to 1, float64. Without a trial they are 0 and 1.

    Raises:
        ValueError: As in :func:`clopper_pearson`.

    References:
        Wilson 1927, doi:10.1080/01621459.1927.10502953.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> low, high = wilson(torch.tensor(0), torch.tensor(10))
        >>> float(low), round(float(high), 3)
        (0.0, 0.278)
    """
    _check_trials(successes, trials, level)
    x, n = successes.double(), trials.double()
    z2 = _quantile(level) ** 2
    middle = (x + z2 / 2) / (n + z2)
    half = (z2 * (x * (n - x) / n.clamp(min=1) + z2 / 4)).sqrt() / (n + z2)
    low = torch.where(x > 0, middle - half, torch.zeros_like(x))
    high = torch.where(x < n, middle + half, torch.ones_like(x))
    return Interval(low.clamp(min=0), high.clamp(max=1))


def newcombe(
    successes: Integer[Tensor, "*batch"],
    trials: Integer[Tensor, "*batch"],
    other_successes: Integer[Tensor, "*batch"],
    other_trials: Integer[Tensor, "*batch"],
    *,
    level: float = 0.95,
) -> Interval:
    r"""Compute the interval of the difference of two rates of independent groups.

    With Wilson's ends :math:`l_a, u_a` of the first and :math:`l_b, u_b` of the second rate,

    .. math:: \hat d - \sqrt{(\hat p_a - l_a)^2 + (u_b - \hat p_b)^2}, \qquad
        \hat d + \sqrt{(u_a - \hat p_a)^2 + (\hat p_b - l_b)^2}, \qquad \hat d = \hat p_a - \hat p_b

    Args:
        successes: Of the first group.
        trials: Of the first group.
        other_successes: Of the second group.
        other_trials: Of the second group.
        level: Probability with which the interval covers the difference, about.

    Returns:
        Ends from -1 to 1, float64; NaN where a group has no trial.

    Raises:
        ValueError: As in :func:`clopper_pearson`.

    References:
        Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I,
        method 10, without a correction for continuity.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> ends = newcombe(*(torch.tensor(n) for n in (56, 70, 48, 80)))
        >>> [round(float(end), 4) for end in ends]
        [0.0524, 0.3339]
    """
    check_same_shape("successes", successes, "other_successes", other_successes)
    one = wilson(successes, trials, level=level)
    two = wilson(other_successes, other_trials, level=level)
    p = successes.double() / trials.double()
    q = other_successes.double() / other_trials.double()
    below = ((p - one.low) ** 2 + (two.high - q) ** 2).sqrt()
    above = ((one.high - p) ** 2 + (q - two.low) ** 2).sqrt()
    return Interval(p - q - below, p - q + above)


class Bootstrap(NamedTuple):
    """A statistic and its resamples.

    Attributes:
        estimate: The statistic of the table itself.
        low: Lower end of the percentile interval.
        high: Upper end.
        resamples: The statistic of each resampled table, first axis.
    """

    estimate: Float[Tensor, "..."]
    low: Float[Tensor, "..."]
    high: Float[Tensor, "..."]
    resamples: Float[Tensor, "resamples ..."]


def bootstrap(
    counts: Cells,
    statistic: Callable[[Cells], Tensor],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    generator: torch.Generator,
) -> Bootstrap:
    r"""Resample a table of people, by its counts.

    To draw :math:`n` rows with replacement is to draw the four counts of all groups from one
    multinomial distribution with the shares of the table. So a resample costs as many draws as
    there are cells, whatever the number of rows, and is exact for any statistic of the counts.

    Args:
        counts: As :func:`companion.trust.fairness.cells` gives them, of shape (groups,).
        statistic: What is computed from counts of shape (..., groups), row by row: rates,
            disparities, or anything made of them.
        resamples: How many tables are drawn.
        level: Share of the resamples inside the interval.
        generator: The source of randomness.

    Returns:
        Estimate, interval and resamples. Where a resample has no estimate (a small group may
        lose all its positives) it is NaN, and the interval is one of the others.

    Raises:
        ValueError: If the counts are not of shape (groups,), hold nobody or a number below 0, if
            the statistic loses the axis of the resamples, or a setting is out of range.

    Numerics:
        Drawn cell by cell from conditional binomial distributions in float64. A percentile
        interval of a gap never holds 0: see :func:`null_gaps`.

    References:
        Efron 1979, doi:10.1214/aos/1176344552.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> from companion.trust.fairness import rates
        >>> counts = Cells(*torch.tensor([[60, 50], [10, 20], [20, 30], [30, 20]]))
        >>> g = torch.Generator().manual_seed(0)
        >>> made = bootstrap(counts, lambda c: rates(c).tpr, generator=g)
        >>> made.estimate, made.resamples.shape
        (tensor([0.7500, 0.6250], dtype=torch.float64), torch.Size([1000, 2]))
    """
    check_count("resamples", resamples)
    check_in_range("level", level, low=0.0, high=1.0, open_low=True, open_high=True)
    if counts.tp.ndim != 1:
        raise ValueError(f"counts must be of shape (groups,), got {tuple(counts.tp.shape)}")
    table = torch.stack(list(counts)).flatten()
    if can_read(table) and (bool((table < 0).any()) or not bool(table.any())):
        raise ValueError("counts must be 0 or more, and count somebody")
    drawn = multinomial_counts(table, resamples, generator).view(resamples, 4, -1)
    again, estimate = statistic(Cells(*drawn.unbind(1))), statistic(counts)
    if again.shape != (resamples, *estimate.shape):
        raise ValueError(
            f"statistic gives shape {tuple(again.shape)} for {resamples} tables at once and "
            f"{tuple(estimate.shape)} for one: take groups from the last axis, count[..., 0]"
        )
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=again.dtype, device=again.device)
    low, high = torch.nanquantile(again, tails, dim=0)
    return Bootstrap(estimate, low, high, again)


def multinomial_counts(table: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Counts of tables with as many rows and the shares of this one, each a row of the result."""
    home = table.device
    share = table.to(generator.device).double()
    share = share / share.sum()
    # What is left for this cell and the ones after it.
    tail = share.flip(0).cumsum(0).flip(0)
    chance = torch.where(tail > 0, share / tail, 0.0).clamp(max=1.0)
    left = torch.full((draws,), float(table.sum()), dtype=torch.float64, device=share.device)
    rows = []
    for cell in range(len(table) - 1):
        drawn = torch.binomial(left, chance[cell].expand(draws), generator=generator)
        rows.append(drawn)
        left = left - drawn
    return torch.stack([*rows, left], 1).round().long().to(home)


def null_gaps(
    trials: Integer[Tensor, " groups"],
    p: float,
    *,
    draws: int = 1000,
    generator: torch.Generator,
) -> Float[Tensor, " draws"]:
    r"""Draw gaps of groups that do not differ: what chance alone does.

    Each group gets a binomial number of successes with the same rate. The share of these gaps
    that reach the observed one is a p-value for *all groups have one rate*.

    Args:
        trials: People in each group.
        p: The common rate.
        draws: How many gaps are drawn.
        generator: The source of randomness.

    Returns:
        Gaps, float64.

    Raises:
        ValueError: If there are less than two groups, one is empty, or p lies outside 0 to 1.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> gaps = null_gaps(torch.tensor([100, 100]), 0.5, draws=4000, generator=g)
        >>> round(float(gaps.mean()), 2)
        0.06
    """
    _check_null(trials, p)
    check_count("draws", draws)
    n = trials.to(generator.device).double().expand(draws, -1)
    won = torch.binomial(n, torch.full_like(n, p), generator=generator)
    share = won / n
    return (share.amax(1) - share.amin(1)).to(trials.device)


def _check_null(trials: Tensor, p: float) -> None:
    check_in_range("p", p, low=0.0, high=1.0)
    if trials.ndim != 1 or len(trials) < 2:
        raise ValueError(f"need the sizes of two groups or more, got shape {tuple(trials.shape)}")
    if can_read(trials) and bool((trials < 1).any()):
        raise ValueError("a group is empty: leave it out, and say so")


def expected_gap(trials: Integer[Tensor, " groups"], p: float) -> float:
    r"""Compute the mean gap of groups that do not differ.

    With :math:`F_a` the distribution function of the rate of group :math:`a`,

    .. math:: \mathbb E\big[\max_a - \min_a\big]
        = \int_0^1 \Big(1 - \prod_a F_a(x) - \prod_a \big(1 - F_a(x)\big)\Big)\,dx

    Args:
        trials: People in each group.
        p: The common rate.

    Returns:
        From 0 to 1. It is 0.0563 for two groups of 100 and a rate of one half.

    Raises:
        ValueError: If there are less than two groups, one is empty, or p lies outside 0 to 1.

    Numerics:
        The integrand is a step function with steps at multiples of the inverse sizes, and the sum
        over them is exact, but for counts of a group that are more than ten standard deviations and
        twenty people from their mean. Binomial probabilities by SciPy, on the host.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> round(expected_gap(torch.tensor([100, 100]), 0.5), 4)
        0.0563
    """
    from scipy.special import bdtr

    _check_null(trials, p)
    if p in (0.0, 1.0):
        return 0.0
    sizes = [int(n) for n in trials]
    steps = []
    for n in sorted(set(sizes)):
        reach = 10 * math.sqrt(n * p * (1 - p)) + 20
        first, last = max(0, math.floor(n * p - reach)), min(n, math.ceil(n * p + reach))
        steps.append(torch.arange(first, last + 1, dtype=torch.float64) / n)
    x = torch.cat(steps).sort().values  # a step of width 0 counts for nothing
    middle = (x[1:] + x[:-1]) / 2
    below = torch.ones_like(middle)
    above = torch.ones_like(middle)
    for n in sizes:
        whole = (middle * n).floor()
        law = torch.as_tensor(bdtr(whole.numpy(), n, p), dtype=torch.float64)
        below = below * law
        above = above * (1 - law)
    return float(((1 - below - above) * x.diff()).sum())
