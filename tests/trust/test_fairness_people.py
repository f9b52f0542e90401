"""Calibration by group, inequality, Lipschitz conditions, and counterfactuals."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion.foundations.cross_entropy import expected_calibration_error
from companion.trust import fairness as fa


def test_the_mean_deviation_is_a_sum_over_outcomes() -> None:
    for n in (1, 2, 5, 23):
        for p in (0.0, 0.1, 0.5, 0.77, 1.0):
            law = scipy.stats.binom.pmf(range(n + 1), n, p)
            want = sum(w * abs(k / n - p) for k, w in enumerate(law))
            have = fa.binomial_deviation(torch.tensor(n), torch.tensor(p, dtype=torch.float64))
            assert float(have) == pytest.approx(want, abs=1e-14)
    large = fa.binomial_deviation(torch.tensor(10**6), torch.tensor(0.3, dtype=torch.float64))
    assert float(large) == pytest.approx(math.sqrt(2 * 0.21 / (math.pi * 1e6)), rel=1e-5)


def test_calibration_of_each_group_is_that_of_its_rows(g: torch.Generator) -> None:
    n = 601
    scores = torch.rand(n, generator=g, dtype=torch.float64)
    y = (torch.rand(n, generator=g) < scores).long()
    group = torch.randint(0, 3, (n,), generator=g)
    made = fa.calibration_by_group(y, scores, group, bins=7, size=4)
    for a in range(3):
        here = group == a
        want = expected_calibration_error(scores[here], y[here] == 1, bins=7)
        assert float(made.ece[a]) == pytest.approx(float(want), abs=1e-15)
    assert made.ece[3].isnan()
    assert made.people.sum() == n
    assert made.people[3].sum() == 0


def test_the_floor_is_what_calibrated_scores_show(g: torch.Generator) -> None:
    sizes = (60, 600)
    group = torch.repeat_interleave(torch.arange(2), torch.tensor(sizes))
    scores = (torch.randint(0, 5, (660,), generator=g).double() + 0.5) / 5
    seen = []
    for _ in range(300):
        y = (torch.rand(660, generator=g) < scores).long()
        made = fa.calibration_by_group(y, scores, group, bins=5)
        seen.append(made.ece)
    ece = torch.stack(seen)
    error = ece.std(0) / math.sqrt(300)
    assert bool(((ece.mean(0) - made.floor).abs() < 4 * error).all())
    assert float(made.floor[0]) > 2.5 * float(made.floor[1])  # ten times fewer people


def test_theils_index_of_decisions_counts_a_false_negative_as_nothing() -> None:
    y, decided = torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 0])
    b = fa.benefits(y, decided)
    assert b.tolist() == [1, 0, 2, 1]
    # (1/4)(0 + 0 + 2 log 2 + 0): 0 log 0 is 0.
    assert float(fa.generalized_entropy(b)) == pytest.approx(math.log(2) / 2, abs=1e-15)
    assert float(fa.generalized_entropy(b, alpha=2.0)) == pytest.approx(0.25, abs=1e-15)


@given(
    st.lists(st.floats(0, 5), min_size=3, max_size=11).filter(lambda row: sum(row) > 0.1),
    st.sampled_from([0.5, 1.0, 2.0, 3.0]),
)
def test_inequality_splits_exactly(values: list[float], alpha: float) -> None:
    row = torch.tensor(values, dtype=torch.float64)
    group = torch.arange(len(values)) % 3
    parts = fa.entropy_split(row, group, alpha=alpha)
    whole = fa.generalized_entropy(row, alpha=alpha)
    assert float(parts.within + parts.between) == pytest.approx(float(whole), abs=1e-9)
    assert float(parts.between) >= -1e-12
    # Twice as much for everybody changes nothing.
    again = fa.generalized_entropy(2 * row, alpha=alpha)
    assert float(again) == pytest.approx(float(whole), abs=1e-12)


def test_inequality_is_continuous_in_alpha(g: torch.Generator) -> None:
    row = torch.rand(13, generator=g, dtype=torch.float64)
    near = fa.generalized_entropy(row, alpha=1 + 1e-6)
    assert float(near) == pytest.approx(float(fa.generalized_entropy(row)), rel=1e-4)


def test_lipschitz_is_that_of_a_loop_over_pairs(g: torch.Generator) -> None:
    x = torch.rand(17, 3, generator=g, dtype=torch.float64)
    scores = torch.rand(17, generator=g, dtype=torch.float64)
    d = torch.cdist(x, x)
    made = fa.lipschitz(scores, d)
    ratios = [
        float((scores[i] - scores[j]).abs() / d[i, j]) for i in range(17) for j in range(i + 1, 17)
    ]
    assert float(made.constant) == pytest.approx(max(ratios), rel=1e-9)
    assert float(made.violations) == pytest.approx(sum(r > 1 for r in ratios) / len(ratios))
    twins = torch.zeros(2, 2)
    assert float(fa.lipschitz(torch.tensor([0.1, 0.2]), twins).constant) == math.inf
    assert float(fa.lipschitz(torch.tensor([0.2, 0.2]), twins).constant) == 0


def test_a_counterfactual_is_the_same_person_run_again(g: torch.Generator) -> None:
    weights = torch.randn(4, 4, generator=g, dtype=torch.float64).triu(1)
    x = torch.randn(7, 4, generator=g, dtype=torch.float64)
    noise = x - x @ weights
    for index in range(4):
        made = fa.linear_counterfactual(x, weights, index, 0.7)
        again = torch.zeros_like(x)
        for j in range(4):
            again[:, j] = again @ weights[:, j] + noise[:, j]
            if j == index:
                again[:, j] = 0.7
        torch.testing.assert_close(made, again, rtol=1e-12, atol=1e-12)
    # What was is what would have been, had it been as it was.
    own = fa.linear_counterfactual(x[0], weights, 1, float(x[0, 1]))
    torch.testing.assert_close(own, x[0], rtol=1e-12, atol=1e-12)


def test_tensor_functions_work_without_values() -> None:
    x = torch.empty(5, device="meta", dtype=torch.float64)
    d = torch.empty(5, 5, device="meta", dtype=torch.float64)
    i = torch.empty(5, device="meta", dtype=torch.long)
    for made in (
        fa.lipschitz(x, d).constant,
        fa.benefits(i, i),
        fa.generalized_entropy(x),
        fa.linear_counterfactual(x, d, 1, 0.5),
        fa.binomial_deviation(i, x),
        fa.wilson(i, i).low,
        fa.newcombe(i, i, i, i).high,
        fa.chouldechova_fpr(x, x, x),
        fa.odds_ppv(x, x, x),
        fa.pairwise_differences(x),
    ):
        assert made.device.type == "meta"


@pytest.mark.usefixtures("own_checks")
def test_what_is_wrong_is_refused() -> None:
    x = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"alpha must lie in \(0\.0"):
        fa.generalized_entropy(x, alpha=0.0)
    with pytest.raises(ValueError, match="at least one person"):
        fa.generalized_entropy(x[:0])
    with pytest.raises(ValueError, match="same shape"):
        fa.entropy_split(x, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="two people or more"):
        fa.lipschitz(x[:1], torch.zeros(1, 1))
    with pytest.raises(ValueError, match="distances"):
        fa.lipschitz(x, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="strictly upper triangular"):
        fa.linear_counterfactual(x, torch.eye(3, dtype=torch.float64), 0, 1.0)
    with pytest.raises(ValueError, match="index must be from 0 to 2, got 3"):
        fa.linear_counterfactual(x, torch.zeros(3, 3, dtype=torch.float64), 3, 1.0)
    with pytest.raises(ValueError, match="y must be 0 or 1"):
        fa.calibration_by_group(torch.tensor([2, 0, 1]), x, torch.tensor([0, 0, 0]))
    with pytest.raises(ValueError, match="confidence must lie in"):
        fa.calibration_by_group(torch.tensor([1, 0, 1]), 2 * x, torch.tensor([0, 0, 0]))
