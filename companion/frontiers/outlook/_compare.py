r"""Is one system better? Resampling of pairs, and McNemar's test."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from scipy import stats
from torch import Tensor

from companion.core import can_read, check_count, check_in_range, check_shape

__all__ = [
    "McNemar",
    "PairedBootstrap",
    "PairedTest",
    "mcnemar",
    "mean_statistic",
    "paired_bootstrap",
    "paired_permutation",
]


class PairedBootstrap(NamedTuple):
    """The difference of two systems on the same items, and its resamples.

    Attributes:
        first: Statistic of the first system.
        second: Statistic of the second.
        difference: First minus second.
        low: Lower end of the difference's percentile interval.
        high: Upper end.
        p_value: How often a resampled difference, moved to the mean 0, is as far from 0 as the one
            at hand; never 0.
        first_interval: Ends of the first system's interval.
        second_interval: Ends of the second system's.
    """

    first: Float[Tensor, ""]
    second: Float[Tensor, ""]
    difference: Float[Tensor, ""]
    low: Float[Tensor, ""]
    high: Float[Tensor, ""]
    p_value: float
    first_interval: tuple[float, float]
    second_interval: tuple[float, float]


def mean_statistic(values: Float[Tensor, "*batch counts"]) -> Float[Tensor, "*batch"]:
    """Compute the mean of scores whose rows are (score, 1), from sums of rows.

    Args:
        values: Sums of rows.

    Returns:
        The first entry over the second.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> mean_statistic(torch.tensor([3.0, 4.0]))
        tensor(0.7500)
    """
    return values[..., 0] / values[..., 1]


def paired_bootstrap(
    first: Float[Tensor, "items ..."],
    second: Float[Tensor, "items ..."],
    *,
    statistic: Callable[[Tensor], Tensor] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    generator: torch.Generator,
) -> PairedBootstrap:
    r"""Compare two systems on the same items, by resampling the items.

    Both systems get the same resample: what makes an item easy for both then cancels.

    Args:
        first: One score for each item; or its counts, such as :func:`bleu_counts` gives, with a
            ``statistic``.
        second: The same of the other system, item by item.
        statistic: Computes a score of counts summed over items, on any leading axes, such as
            ``lambda c: bleu_from_counts(c).score``. By default the mean of scores.
        resamples: :math:`B`.
        level: Share of the resamples inside an interval.
        generator: The source of randomness.

    Returns:
        Scores, difference, intervals, and the two-sided p-value :math:`(1 + \#)/(1 + B)`.

    Raises:
        ValueError: If the shapes differ, there are fewer than two items, a score is not finite, the
            statistic is missing or loses the axis of resamples, or a setting is out of range.

    References:
        Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation", EMNLP; the
        shift to mean 0 as in Riezler and Maxwell 2005 and in sacreBLEU.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> better = torch.tensor([0.9, 0.8, 0.7, 0.6]).repeat(10)
        >>> made = paired_bootstrap(better, better - 0.1, generator=torch.Generator())
        >>> round(float(made.low), 3), round(float(made.high), 3)
        (0.1, 0.1)
    """
    check_count("resamples", resamples)
    check_count("items", len(first), low=2)
    drawn = torch.randint(len(first), (resamples, len(first)), generator=generator)
    return compare_resamples(first, second, drawn, statistic=statistic, level=level)


def compare_resamples(
    first: Tensor,
    second: Tensor,
    drawn: Integer[Tensor, "resamples items"],
    *,
    statistic: Callable[[Tensor], Tensor] | None,
    level: float,
) -> PairedBootstrap:
    """Compare on given resamples, each a row of item numbers."""
    if first.shape != second.shape:
        raise ValueError(
            f"first has shape {tuple(first.shape)} and second {tuple(second.shape)}: score the "
            "same items by both systems"
        )
    _check_numbers(first, second)
    check_in_range("level", level, low=0.0, high=1.0, open_low=True, open_high=True)
    one, two = first.double(), second.double()
    if one.ndim == 1:
        if statistic is not None:
            raise ValueError("statistic takes counts: leave it out where items have one score")
        one, two = (torch.stack([s, torch.ones_like(s)], 1) for s in (one, two))
        statistic = mean_statistic
    elif statistic is None:
        raise ValueError("items have several counts: pass the statistic that they are for")
    times = torch.zeros(len(drawn), len(one), dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))

    def again(items: Tensor) -> Tensor:
        summed = (times @ items.flatten(1)).view(len(drawn), *items.shape[1:])
        made = statistic(summed)
        check_shape("statistic(sums)", made, (len(drawn),))
        return made

    a, b = again(one), again(two)
    whole_a, whole_b = statistic(one.sum(0)), statistic(two.sum(0))
    difference, differences = whole_a - whole_b, a - b
    far = (differences - differences.mean()).abs() >= difference.abs()
    p_value = (1 + int(far.sum())) / (1 + len(drawn))
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = differences.quantile(tails)
    ends = [tuple(x.quantile(tails).tolist()) for x in (a, b)]
    return PairedBootstrap(whole_a, whole_b, difference, low, high, p_value, ends[0], ends[1])


def _check_numbers(first: Tensor, second: Tensor) -> None:
    for name, scores in (("first", first), ("second", second)):
        if can_read(scores) and not bool(scores.isfinite().all()):
            raise ValueError(f"{name} must be finite: an item without a score makes every p small")


class PairedTest(NamedTuple):
    """A test by chance swaps.

    Attributes:
        difference: Mean difference of the scores.
        p_value: Two-sided, never 0.
    """

    difference: Float[Tensor, ""]
    p_value: float


def paired_permutation(
    first: Float[Tensor, " items"],
    second: Float[Tensor, " items"],
    *,
    draws: int = 10_000,
    generator: torch.Generator,
) -> PairedTest:
    r"""Test whether two systems' scores might as well be exchanged, item by item.

    Args:
        first: Scores of one system.
        second: Scores of the other on the same items.
        draws: How many random exchanges. With 2 to the number of items at most ``draws``, all are
            made, and the value is exact.
        generator: The source of randomness.

    Returns:
        The difference, and the share of exchanges with a mean difference as far from 0. Of random
        ones it is :math:`(1 + \#)/(1 + \text{draws})`: the data are one of the exchanges.

    Raises:
        ValueError: If the shapes differ, a score is not finite, or a count is out of range.

    References:
        Noreen 1989; Phipson and Smyth 2010, doi:10.2202/1544-6115.1585, on the added one.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> a, b = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)
        >>> paired_permutation(a, b, generator=torch.Generator()).p_value
        0.25
    """
    check_count("draws", draws)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"first and second must have one score an item, got shapes {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    n = len(first)
    check_count("items", n)
    _check_numbers(first, second)
    d = first.double() - second.double()
    observed = d.sum().abs()
    slack = 1e-12 * d.abs().sum()  # sums in another order differ by rounding
    if n < 63 and 2**n <= draws:
        signs = 1 - 2 * ((torch.arange(2**n)[:, None] >> torch.arange(n)) & 1).double()
        far = (signs @ d).abs() >= observed - slack
        return PairedTest(d.mean(), float(far.double().mean()))
    hits, left = 0, draws
    while left:
        size = min(left, max(1, 2**22 // n))
        signs = 1 - 2 * torch.randint(2, (size, n), generator=generator).double()
        hits += int(((signs @ d).abs() >= observed - slack).sum())
        left -= size
    return PairedTest(d.mean(), (1 + hits) / (1 + draws))


class McNemar(NamedTuple):
    """Two systems that are right or wrong on the same items.

    Attributes:
        both: Items on which both are right.
        first_only: Items on which only the first is.
        second_only: Items on which only the second is.
        neither: Items on which none is.
        p_value: Exact and two-sided, of the hypothesis that both are right equally often.
        approximate: By the normal approximation of the same test, without a correction.
    """

    both: int
    first_only: int
    second_only: int
    neither: int
    p_value: float
    approximate: float


def mcnemar(first: Tensor, second: Tensor) -> McNemar:
    r"""Compare two systems by the items on which only one is right.

    With :math:`n_{10}` and :math:`n_{01}` such items, each is on either side with probability one
    half if the systems are equally good, so the smaller is a count of heads.

    Args:
        first: Which items the first system has right, bool.
        second: The same of the second system.

    Returns:
        The four counts and the p-values.

    Raises:
        ValueError: If the shapes differ or a tensor is not bool.

    References:
        McNemar 1947, doi:10.1007/BF02295996; for learners Dietterich 1998,
        doi:10.1162/089976698300017197.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> a = torch.tensor([True] * 9 + [False])
        >>> b = torch.tensor([True] * 4 + [False] * 6)
        >>> mcnemar(a, b)[1:3], mcnemar(a, b).p_value
        ((5, 0), 0.0625)
    """
    if first.dtype != torch.bool or second.dtype != torch.bool or first.shape != second.shape:
        raise ValueError(
            "first and second must be bool and of one shape: compare answers with the truth first"
        )
    one, two = int((first & ~second).sum()), int((second & ~first).sum())
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    if one + two == 0:
        return McNemar(both, 0, 0, neither, 1.0, 1.0)
    exact = float(stats.binomtest(min(one, two), one + two, 0.5).pvalue)
    z = abs(one - two) / math.sqrt(one + two)
    return McNemar(both, one, two, neither, min(1.0, exact), math.erfc(z / math.sqrt(2)))
