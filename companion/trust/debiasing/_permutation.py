r"""Exact permutation tests of a difference of means."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_finite, check_floating, check_shape

__all__ = ["PermutationTest", "Side", "permutation_test"]

Side = Literal["greater", "two-sided"]
#: Two halves of 2^22 sums each fit into some hundred megabytes.
_MOST_WORDS = 44


@dataclass(frozen=True, kw_only=True)
class PermutationTest:
    """What re-partitions of the words say.

    Attributes:
        p_value: Share of the partitions that are at least as extreme as the one given, which is
            one of them. So it is never 0.
        partitions: How many partitions there are, or were drawn (without the one given).
        exact: Whether all were counted.
    """

    p_value: float
    partitions: int
    exact: bool


def permutation_test(
    first: Float[Tensor, " n"],
    second: Float[Tensor, " m"],
    *,
    side: Side = "greater",
    draws: int = 100_000,
    generator: torch.Generator | None = None,
) -> PermutationTest:
    r"""Test whether two groups differ in their mean, by all partitions into groups of their sizes.

    .. math:: p = \frac{\#\{(X',Y') : \bar s_{X'}-\bar s_{Y'} \ge \bar s_X-\bar s_Y\}}
        {\binom{n+m}{n}}

    With up to 44 numbers all partitions are counted, without making them: numbers are split in two
    halves, and for each subset of the one a sorted list of the subsets of the other tells how many
    go with it. With more, partitions are drawn, and the one given is counted among them.

    Args:
        first: Numbers of X.
        second: Numbers of Y.
        side: ``"greater"``: X was expected to be larger before anybody looked. ``"two-sided"``
            counts magnitudes.
        draws: Partitions to draw where they are too many to count.
        generator: The source of randomness; only needed where partitions are drawn.

    Returns:
        The test.

    Raises:
        ValueError: If a group is empty or not finite, the side is unknown, or partitions must be
            drawn and there is no generator.

    Numerics:
        Sums that differ by less than :math:`10^{-10}` of the largest possible one count as equal,
        so that roundings do not decide ties. Time and memory grow with :math:`2^{(n+m)/2}`.

    References:
        The test: Caliskan, Bryson and Narayanan 2017. Halves: Horowitz and Sahni 1974,
        doi:10.1145/321812.321823.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> permutation_test(torch.tensor([1.0, 1.0]), torch.tensor([-1.0, -1.0]))
        PermutationTest(p_value=0.16666666666666666, partitions=6, exact=True)
    """
    for name, group in (("first", first), ("second", second)):
        check_shape(name, group, (None,))
        check_floating(name, group)
        check_count(f"numbers in {name}", len(group))
        check_finite(name, group)
    if side not in ("greater", "two-sided"):
        raise ValueError(f"side must be 'greater' or 'two-sided', got {side!r}")
    n, m = len(first), len(second)
    values = torch.cat([first, second]).detach().cpu().double()
    values = values - values.mean()  # sums are then 0 on average
    slack = 1e-10 * float(values.abs().sum())
    reached = float(values[:n].sum())
    if n + m > _MOST_WORDS:
        check_count("draws", draws)
        if generator is None:
            raise ValueError(
                f"{n + m} numbers have too many partitions to count: give a generator to draw some"
            )
        return _drawn(values, n, reached, slack, side, draws, generator)
    # The mean of X' minus that of Y' grows with the sum of X', and is 0 where that is.
    ends = [(reached - slack, True)]
    if side == "two-sided":
        far = abs(reached)
        ends = [(far - slack, True), (-far + slack, False)] if far > slack else [(-math.inf, True)]
    total = math.comb(n + m, n)
    extreme = sum(_count(values, n, end, above) for end, above in ends)
    return PermutationTest(p_value=float(Fraction(extreme, total)), partitions=total, exact=True)


def _count(values: Tensor, size: int, end: float, above: bool) -> int:
    """Subsets of that size whose sum is at least the end, or at most."""
    if not above:
        values, end = -values, -end
    half = len(values) // 2
    left, right = (_subsets(part) for part in (values[:half], values[half:]))
    count = 0
    for taken, sums in enumerate(left):
        if 0 <= size - taken < len(right):
            sorted_sums = right[size - taken].sort().values
            below = torch.searchsorted(sorted_sums, end - sums, right=False)
            count += int((len(sorted_sums) - below).sum())
    return count


def _subsets(values: Tensor) -> list[Tensor]:
    """Sums of all subsets, by their sizes."""
    sums, sizes = torch.zeros(1, dtype=values.dtype), torch.zeros(1, dtype=torch.int8)
    for value in values:
        sums = torch.cat([sums, sums + value])
        sizes = torch.cat([sizes, sizes + 1])
    return [sums[sizes == size] for size in range(len(values) + 1)]


def _drawn(
    values: Tensor,
    n: int,
    reached: float,
    slack: float,
    side: Side,
    draws: int,
    generator: torch.Generator,
) -> PermutationTest:
    extreme, block = 0, 10_000
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        order = torch.rand(rows, len(values), generator=generator, device=generator.device).argsort(
            1
        )
        sums = values[order[:, :n].cpu()].sum(1)
        far = sums.abs() >= abs(reached) - slack if side == "two-sided" else sums >= reached - slack
        extreme += int(far.sum())
    return PermutationTest(p_value=(1 + extreme) / (1 + draws), partitions=draws, exact=False)
