"""Counts, rates and gaps: what they are by definition, and what fairlearn and scikit-learn say."""

import math

import fairlearn.metrics as fm
import pytest
import sklearn.metrics as skm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from companion import data
from companion.trust import fairness as fa


def people(g: torch.Generator, n: int = 997, groups: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.randint(0, 2, (n,), generator=g)
    decided = torch.where(torch.rand(n, generator=g) < 0.7, y, 1 - y)
    return y, decided, torch.randint(0, groups, (n,), generator=g)


def test_counts_are_those_of_a_loop_over_people(g: torch.Generator) -> None:
    y, decided, group = people(g, 53, 3)
    before = [t.clone() for t in (y, decided, group)]
    have = fa.cells(y, decided, group)
    want = torch.zeros(4, 3).long()
    for outcome, decision, a in zip(y.tolist(), decided.tolist(), group.tolist(), strict=True):
        want[{(1, 1): 0, (0, 1): 1, (1, 0): 2, (0, 0): 3}[outcome, decision], a] += 1
    assert torch.equal(torch.stack(list(have)), want)
    for one, other in zip((y, decided, group), before, strict=True):
        assert torch.equal(one, other)
    # Bool, float and int say the same.
    assert torch.equal(fa.cells(y.bool(), decided.double(), group.int()).fp, have.fp)


def test_rates_are_those_of_scikit_learn(g: torch.Generator) -> None:
    y, decided, group = people(g)
    found = fa.rates(fa.cells(y, decided, group))
    for a in range(5):
        here = group == a
        own, made = y[here].numpy(), decided[here].numpy()
        assert float(found.tpr[a]) == skm.recall_score(own, made)
        assert float(found.ppv[a]) == skm.precision_score(own, made)
        assert float(found.tnr[a]) == skm.recall_score(own, made, pos_label=0)
        assert float(found.npv[a]) == skm.precision_score(own, made, pos_label=0)
        assert float(found.accuracy[a]) == skm.accuracy_score(own, made)
        assert float(found.fpr[a] + found.tnr[a]) == pytest.approx(1, abs=1e-15)
        assert float(found.fnr[a] + found.tpr[a]) == pytest.approx(1, abs=1e-15)


def test_rates_and_gaps_are_those_of_fairlearn(g: torch.Generator) -> None:
    y, decided, group = people(g)
    found = fa.rates(fa.cells(y, decided, group))
    theirs = {
        "selection": fm.selection_rate,
        "tpr": fm.true_positive_rate,
        "fpr": fm.false_positive_rate,
        "fnr": fm.false_negative_rate,
        "tnr": fm.true_negative_rate,
        "accuracy": skm.accuracy_score,
        "ppv": skm.precision_score,
    }
    frame = fm.MetricFrame(
        metrics=theirs,
        y_true=y.numpy(),
        y_pred=decided.numpy(),
        sensitive_features=group.numpy(),
    )
    for name in theirs:
        want = torch.tensor(frame.by_group[name].to_numpy(), dtype=torch.float64)
        torch.testing.assert_close(getattr(found, name), want, rtol=1e-14, atol=0)
        apart = float(frame.difference(method="between_groups")[name])
        assert float(fa.gap(getattr(found, name))) == pytest.approx(apart, abs=1e-15)
    gaps = fa.disparities(found)
    told = {"sensitive_features": group.numpy()}
    pair = (y.numpy(), decided.numpy())
    for have, want in (
        (gaps.dp_difference, fm.demographic_parity_difference(*pair, **told)),
        (gaps.dp_ratio, fm.demographic_parity_ratio(*pair, **told)),
        (gaps.eopp_difference, fm.equal_opportunity_difference(*pair, **told)),
        (gaps.eo_worst, fm.equalized_odds_difference(*pair, agg="worst_case", **told)),
        (gaps.eo_mean, fm.equalized_odds_difference(*pair, agg="mean", **told)),
    ):
        assert float(have) == pytest.approx(float(want), abs=1e-14)


def test_a_group_without_positives_is_not_estimable_where_fairlearn_says_one() -> None:
    y = torch.tensor([1, 1, 0, 0, 0, 0])
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    gaps = fa.disparities(fa.rates(fa.cells(y, y, group)))  # a perfect classifier
    assert math.isnan(gaps.eo_worst)
    assert math.isnan(gaps.eopp_difference)
    assert not math.isnan(gaps.dp_difference)
    theirs = fm.equalized_odds_difference(y.numpy(), y.numpy(), sensitive_features=group.numpy())
    assert theirs == 1.0


def test_aggregates_of_equalized_odds_are_named() -> None:
    # True positives .8 and .6, false positives .3 and .4.
    counts = fa.Cells(*torch.tensor([[8, 6], [3, 4], [2, 4], [7, 6]]))
    gaps = fa.disparities(fa.rates(counts))
    assert float(gaps.eo_worst) == pytest.approx(0.2, abs=1e-15)
    assert float(gaps.eo_mean) == pytest.approx(0.15, abs=1e-15)
    # The signed mean of -.2 and +.2 would be 0; ours is .2.
    counts = fa.Cells(*torch.tensor([[6, 8], [5, 3], [4, 2], [5, 7]]))
    gaps = fa.disparities(fa.rates(counts))
    assert float(gaps.eo_mean) == pytest.approx(0.2, abs=1e-15)
    found = fa.rates(counts)
    signed = fa.pairwise_differences(found.tpr) + fa.pairwise_differences(found.fpr)
    assert float(signed[0, 1]) == pytest.approx(0, abs=1e-15)


def test_ratios_with_nobody_selected() -> None:
    assert float(fa.ratio_of_extremes(torch.tensor([0.0, 0.5]))) == 0
    assert math.isnan(fa.ratio_of_extremes(torch.tensor([0.0, 0.0])))
    assert math.isnan(fa.gap(torch.tensor([0.1, float("nan"), 0.5])))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=7), st.floats(-1, 1))
def test_a_gap_does_not_change_when_all_rates_shift(values: list[float], shift: float) -> None:
    row = torch.tensor(values, dtype=torch.float64)
    assert float(fa.gap(row + shift)) == pytest.approx(float(fa.gap(row)), abs=1e-12)
    table = fa.pairwise_differences(row)
    assert torch.equal(table, -table.T)
    assert float(table.max()) == float(fa.gap(row))


def test_groups_are_numbered_by_name_and_intersect() -> None:
    made = fa.group_ids(["b", "a", "b", "a"], ["y", "x", "x", "x"])
    assert made.names == ("a, x", "b, x", "b, y")
    assert made.ids.tolist() == [2, 0, 1, 0]
    table = data.compas(filtered=False)
    both = fa.group_ids(table.category("race"), table.category("sex"))
    size = torch.bincount(both.ids)
    assert int(size[both.names.index("Asian, Female")]) == 2
    assert int(size[both.names.index("Native American, Female")]) == 4


def test_differential_fairness_of_a_marginal_is_at_most_that_of_the_intersection(
    g: torch.Generator,
) -> None:
    trials = torch.randint(20, 90, (3, 5), generator=g)
    selected = (trials * torch.rand(3, 5, generator=g)).long().clamp(min=1)
    fine = fa.differential_fairness(selected.flatten(), trials.flatten(), alpha=0.0)
    for axis in (0, 1):
        coarse = fa.differential_fairness(selected.sum(axis), trials.sum(axis), alpha=0.0)
        assert float(coarse) <= float(fine)
    by_hand = max(
        abs(math.log(p / q))
        for a in range(15)
        for b in range(15)
        for p, q in (
            (
                float(selected.flatten()[a] / trials.flatten()[a]),
                float(selected.flatten()[b] / trials.flatten()[b]),
            ),
        )
        for p, q in ((p, q), (1 - p, 1 - q))
    )
    assert float(fine) == pytest.approx(by_hand, rel=1e-6)


def test_batches_of_counts_give_batches_of_rates(g: torch.Generator) -> None:
    counts = fa.Cells(*torch.randint(1, 40, (4, 7, 3), generator=g))
    many = fa.disparities(fa.rates(counts))
    for row in range(7):
        one = fa.disparities(fa.rates(fa.Cells(*(count[row] for count in counts))))
        for have, want in zip(many, one, strict=True):
            assert torch.equal(have[row], want)


def test_counts_work_without_values() -> None:
    y = torch.empty(11, dtype=torch.long, device="meta")
    made = fa.cells(y, y, y, size=3)
    gaps = fa.disparities(fa.rates(made))
    assert made.tp.device.type == gaps.eo_worst.device.type == "meta"
    assert made.tp.shape == (3,)
    assert fa.differential_fairness(made.tp, made.fp).device.type == "meta"


@pytest.mark.usefixtures("own_checks")
def test_what_is_wrong_is_refused() -> None:
    y, group = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match=r"predictions must be 0 or 1, got 0\.3.*threshold"):
        fa.cells(y, torch.tensor([0.3, 1.0, 0.0]), group)
    with pytest.raises(ValueError, match="y must be 0 or 1, got nan"):
        fa.cells(torch.tensor([0.0, 1.0, float("nan")]), y, group)
    with pytest.raises(ValueError, match="same shape"):
        fa.cells(y, y[:2], group)
    with pytest.raises(ValueError, match=r"groups must lie in \[0, 1\), got 1"):
        fa.cells(y, y, group, size=1)
    with pytest.raises(ValueError, match="need a row of outcomes"):
        fa.cells(y[:0], y[:0], group[:0])
    with pytest.raises(ValueError, match="two groups or more"):
        fa.gap(torch.tensor([0.5]))
    with pytest.raises(ValueError, match="at least one column"):
        fa.group_ids()
    with pytest.raises(ValueError, match=r"equal lengths .* got \[2, 3\]"):
        fa.group_ids(["a", "b"], ["a", "b", "c"])
    with pytest.raises(ValueError, match="must hold several texts"):
        fa.group_ids("abc")
    with pytest.raises(ValueError, match=r"alpha must lie in"):
        fa.differential_fairness(y, y, alpha=-1.0)
    with pytest.raises(ValueError, match="tp and fn must have the same shape"):
        fa.rates(fa.Cells(y, y, y[:2], y))
