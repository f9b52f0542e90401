"""Intervals: against SciPy, against their definition, and by how often they cover."""

import math

import pytest
import scipy.stats
import torch

from companion.trust import fairness as fa

COUNTS = fa.Cells(*torch.tensor([[60, 50, 7], [10, 20, 3], [20, 30, 4], [30, 20, 6]]))


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_exact_and_score_intervals_are_those_of_scipy(level: float) -> None:
    n = 23
    x = torch.arange(n + 1)
    exact = fa.clopper_pearson(x, torch.full_like(x, n), level=level)
    score = fa.wilson(x, torch.full_like(x, n), level=level)
    for k in range(n + 1):
        tested = scipy.stats.binomtest(k, n)
        for ours, method in ((exact, "exact"), (score, "wilson")):
            theirs = tested.proportion_ci(level, method=method)
            # SciPy finds the exact ends by a root to 1e-12.
            assert float(ours.low[k]) == pytest.approx(theirs.low, abs=1e-9)
            assert float(ours.high[k]) == pytest.approx(theirs.high, abs=1e-9)


def test_the_exact_interval_covers_at_every_rate() -> None:
    n, x = 29, torch.arange(30)
    exact = fa.clopper_pearson(x, torch.full_like(x, n))
    score = fa.wilson(x, torch.full_like(x, n))
    worst = {"exact": 1.0, "score": 1.0}
    for p in torch.linspace(0.001, 0.999, 499).double():
        law = torch.as_tensor(scipy.stats.binom.pmf(x.numpy(), n, float(p)))
        for name, ends in (("exact", exact), ("score", score)):
            inside = (ends.low <= p) & (p <= ends.high)
            worst[name] = min(worst[name], float(law[inside].sum()))
    assert worst["exact"] >= 0.95
    assert worst["score"] < 0.93  # so the law can fail


def test_the_difference_is_newcombes_published_example() -> None:
    # Newcombe 1998, table II, method 10: 56/70 - 48/80, 9/10 - 3/10, 0/10 - 0/10.
    table = torch.tensor([[56, 9, 0], [70, 10, 10], [48, 3, 0], [80, 10, 10]])
    ends = fa.newcombe(*table)
    want = [(0.0524, 0.3339), (0.1705, 0.8090), (-0.2775, 0.2775)]
    for k, (low, high) in enumerate(want):
        assert float(ends.low[k]) == pytest.approx(low, abs=5e-5)
        assert float(ends.high[k]) == pytest.approx(high, abs=5e-5)


def test_a_swap_of_groups_turns_the_difference_around() -> None:
    a, n, b, m = (torch.tensor(k) for k in (11, 29, 17, 31))
    one, two = fa.newcombe(a, n, b, m), fa.newcombe(b, m, a, n)
    assert float(one.low) == -float(two.high)
    assert float(one.high) == -float(two.low)


def test_nobody_gives_the_whole_interval() -> None:
    none = torch.tensor(0)
    for ends in (fa.clopper_pearson(none, none), fa.wilson(none, none)):
        assert [float(end) for end in ends] == [0.0, 1.0]


def test_resampled_counts_have_the_law_of_resampled_rows(g: torch.Generator) -> None:
    def itself(counts: fa.Cells) -> torch.Tensor:
        return torch.stack(list(counts), -1).double()

    made = fa.bootstrap(COUNTS, itself, resamples=4000, generator=g)
    table = torch.stack(list(COUNTS), -1).flatten()
    n = int(table.sum())
    share = table / n
    drawn = made.resamples.flatten(1)
    assert bool((drawn.sum(1) == n).all())
    # Mean and covariance of the multinomial; five standard errors of 4000 draws.
    error = (n * share * (1 - share) / 4000).sqrt()
    assert bool(((drawn.mean(0) - table).abs() < 5 * error).all())
    have = torch.cov(drawn.T)
    want = n * (torch.diag(share) - share[:, None] * share).double()
    scale = (want.diag()[:, None] * want.diag() / 4000 * 2).sqrt()
    assert bool(((have - want).abs() < 5 * scale).all())
    # The same from rows, drawn one by one.
    rows = torch.repeat_interleave(torch.arange(len(table)), table)
    picked = rows[torch.randint(0, n, (4000, n), generator=g)]
    by_rows = torch.zeros(4000, len(table)).scatter_add_(1, picked, torch.ones_like(picked).float())
    for cell in range(len(table)):
        test = scipy.stats.ks_2samp(drawn[:, cell].numpy(), by_rows[:, cell].numpy())
        assert test.pvalue > 1e-4


def test_the_bootstrap_agrees_with_the_exact_interval_of_a_large_group(g: torch.Generator) -> None:
    counts = fa.Cells(*(1000 * count for count in COUNTS))
    made = fa.bootstrap(counts, lambda c: fa.rates(c).tpr, resamples=2000, generator=g)
    exact = fa.clopper_pearson(counts.tp, counts.tp + counts.fn)
    width = (exact.high - exact.low).min()
    # A quantile of 2000 draws is off by a few percent of the width.
    torch.testing.assert_close(made.low, exact.low, rtol=0, atol=0.1 * float(width))
    torch.testing.assert_close(made.high, exact.high, rtol=0, atol=0.1 * float(width))
    assert torch.equal(made.estimate, fa.rates(counts).tpr)


def test_a_lost_group_leaves_a_gap_in_its_resamples(g: torch.Generator) -> None:
    counts = fa.Cells(*torch.tensor([[50, 1], [20, 5], [10, 0], [20, 5]]))
    made = fa.bootstrap(counts, lambda c: fa.rates(c).tpr, generator=g)
    lost = made.resamples[:, 1].isnan().double().mean()
    assert float(lost) == pytest.approx(math.exp(-1), abs=0.08)  # (1 - 1/n)^n
    assert bool(made.low.isfinite().all())


def test_the_interval_of_a_gap_leaves_out_zero_although_there_is_none(g: torch.Generator) -> None:
    sets, left_out = 40, 0
    for _ in range(sets):
        won = torch.binomial(torch.full((6,), 50.0), torch.full((6,), 0.5), generator=g).long()
        none = torch.zeros_like(won)
        counts = fa.Cells(won, none, 50 - won, none)
        made = fa.bootstrap(counts, lambda c: fa.gap(fa.rates(c).tpr), resamples=200, generator=g)
        left_out += float(made.low) > 0
    assert left_out == sets


@pytest.mark.parametrize(
    ("trials", "p"), [([100, 100], 0.5), ([7, 11, 13], 0.3), ([50] * 6, 0.1), ([3000, 17], 0.4)]
)
def test_the_expected_gap_is_the_mean_of_drawn_gaps(
    trials: list[int], p: float, g: torch.Generator
) -> None:
    sizes = torch.tensor(trials)
    drawn = fa.null_gaps(sizes, p, draws=20_000, generator=g)
    error = float(drawn.std()) / math.sqrt(20_000)
    normal = 2e-4 * (max(trials) > 2000)  # large groups are taken as normal
    assert abs(float(drawn.mean()) - fa.expected_gap(sizes, p)) < 5 * error + normal


def test_the_expected_gap_of_two_is_a_sum_over_pairs() -> None:
    law = [scipy.stats.binom.pmf(k, 5, 0.3) for k in range(6)]
    other = [scipy.stats.binom.pmf(k, 3, 0.3) for k in range(4)]
    by_hand = sum(
        p * q * abs(i / 5 - j / 3) for i, p in enumerate(law) for j, q in enumerate(other)
    )
    assert fa.expected_gap(torch.tensor([5, 3]), 0.3) == pytest.approx(by_hand, abs=1e-12)
    assert fa.expected_gap(torch.tensor([5, 3]), 1.0) == 0
    # The mean difference of two normal rates: sqrt(2/pi) of its standard deviation.
    normal = math.sqrt(2 / math.pi * 2 * 0.25 / 5000)
    assert fa.expected_gap(torch.tensor([5000, 5000]), 0.5) == pytest.approx(normal, rel=1e-4)


@pytest.mark.usefixtures("own_checks")
def test_what_is_wrong_is_refused(g: torch.Generator) -> None:
    one, two = torch.tensor(1), torch.tensor(2)
    for function in (fa.clopper_pearson, fa.wilson):
        with pytest.raises(ValueError, match="between 0 and trials, got 2 of 1"):
            function(two, one)
        with pytest.raises(ValueError, match=r"level must lie in \(0\.0, 1\.0\), got 95"):
            function(one, two, level=95)
    with pytest.raises(ValueError, match="same shape"):
        fa.newcombe(one, two, torch.tensor([1]), torch.tensor([2]))
    with pytest.raises(ValueError, match="resamples must be 1 or more"):
        fa.bootstrap(COUNTS, lambda c: fa.rates(c).tpr, resamples=0, generator=g)
    with pytest.raises(ValueError, match=r"shape \(groups,\), got \(1, 3\)"):
        fa.bootstrap(fa.Cells(*(c[None] for c in COUNTS)), lambda c: fa.rates(c).tpr, generator=g)
    with pytest.raises(ValueError, match="a group is empty"):
        fa.null_gaps(torch.tensor([0, 3]), 0.5, generator=g)
    with pytest.raises(ValueError, match="two groups or more"):
        fa.expected_gap(torch.tensor([3]), 0.5)
    with pytest.raises(ValueError, match="p must lie in"):
        fa.expected_gap(torch.tensor([3, 4]), 1.5)
