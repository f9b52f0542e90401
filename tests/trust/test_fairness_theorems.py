"""The impossibility theorems: identities to machine precision, and hypotheses that are needed."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion import data
from companion.trust import fairness as fa


def compas(followed: bool) -> fa.Cells:
    table = data.compas(filtered=False, followed=followed)
    ids, names = fa.group_ids(table.category("race"))
    decided = table.number("decile_score") >= 5
    counts = fa.cells(table.number("two_year_recid"), decided, ids)
    two = [names.index("African-American"), names.index("Caucasian")]
    return fa.Cells(*(count[two] for count in counts))


def test_compas_gives_the_table_of_propublica() -> None:
    counts = compas(followed=False)
    assert [c.tolist() for c in counts] == [[1369, 505], [805, 349], [532, 461], [990, 1139]]
    found = fa.rates(counts)
    for have, want in (
        (found.fpr, (0.4485, 0.2345)),
        (found.fnr, (0.2799, 0.4772)),
        (found.ppv, (0.63, 0.59)),
        (found.base_rate, (0.51, 0.39)),
    ):
        digits = 4 if want[0] in (0.4485, 0.2799) else 2
        assert [round(float(v), digits) for v in have] == list(want)


def test_the_correction_of_the_window_changes_precision_and_leaves_false_positives() -> None:
    before, after = fa.rates(compas(followed=False)), fa.rates(compas(followed=True))
    assert torch.equal(before.fpr, after.fpr)
    assert [round(float(v), 3) for v in before.ppv] == [0.630, 0.591]
    assert [round(float(v), 3) for v in after.ppv] == [0.546, 0.486]


@pytest.mark.parametrize("followed", [False, True])
def test_chouldechovas_identity_holds_on_compas(followed: bool) -> None:
    found = fa.rates(compas(followed))
    made = fa.chouldechova_fpr(found.base_rate, found.ppv, found.fnr)
    torch.testing.assert_close(made, found.fpr, rtol=4e-16 * 4, atol=0)
    bayes = fa.odds_ppv(found.base_rate, found.tpr, found.fpr)
    torch.testing.assert_close(bayes, found.ppv, rtol=4e-16 * 4, atol=0)


def test_rounded_rates_do_not_meet_the_identity() -> None:
    rows = torch.tensor([[0.514, 0.394], [0.63, 0.591], [0.28, 0.477]], dtype=torch.float64)
    rounded = fa.chouldechova_fpr(*rows)
    assert [round(float(v), 4) for v in rounded] == [0.4472, 0.2353]


@given(*[st.integers(1, 500)] * 4)
def test_chouldechovas_identity_holds_for_any_counts(tp: int, fp: int, fn: int, tn: int) -> None:
    found = fa.rates(fa.Cells(*(torch.tensor([n]) for n in (tp, fp, fn, tn))))
    made = fa.chouldechova_fpr(found.base_rate, found.ppv, found.fnr)
    assert float(made) == pytest.approx(float(found.fpr), rel=1e-13)


def test_each_hypothesis_of_chouldechovas_theorem_is_needed() -> None:
    def equal(*columns: tuple[int, int, int, int]) -> tuple[bool, bool, bool, bool]:
        found = fa.rates(fa.Cells(*torch.tensor(list(zip(*columns, strict=True)))))
        names = ("base_rate", "ppv", "fpr", "fnr")
        return tuple(bool(getattr(found, n)[0] == getattr(found, n)[1]) for n in names)  # type: ignore[return-value]

    # In the order tp, fp, fn, tn. Perfect decisions: three rates are equal, base rates are not.
    assert equal((3, 0, 0, 7), (6, 0, 0, 4)) == (False, True, True, True)
    # Nobody is rightly selected (FNR 1, PPV 0): the same.
    assert equal((0, 2, 5, 8), (0, 3, 7, 12)) == (False, True, True, True)
    # Equal base rates: everything may be equal and imperfect.
    assert equal((3, 1, 1, 3), (6, 2, 2, 6)) == (True, True, True, True)


def test_no_imperfect_small_table_escapes_the_theorem() -> None:
    # All pairs of tables of up to four people a cell: three equal rates need equal base rates.
    tables = torch.tensor(list(itertools.product(range(5), repeat=4)))
    found = fa.rates(fa.Cells(*tables.T))
    free = (found.base_rate > 0) & (found.base_rate < 1) & (found.ppv > 0) & (found.ppv < 1)
    free &= found.fnr < 1
    kept = torch.stack([found.ppv, found.fnr, found.fpr, found.base_rate])[:, free]
    # Equal up to rounding: different fractions of such numbers are 1/64 apart or more.
    same = (kept[:, :, None] - kept[:, None]).abs() < 1e-9
    three = same[0] & same[1] & same[2]
    assert int(three.sum()) > len(kept[0])
    assert bool(same[3][three].all())


def test_kleinbergs_identity_holds_for_calibrated_compas() -> None:
    table = data.compas(filtered=False)
    y, decile = table.number("two_year_recid"), table.number("decile_score").long()
    ids, _ = fa.group_ids(table.category("race"))
    cell = ids * 11 + decile
    n = torch.bincount(cell, minlength=66)
    score = (torch.zeros(66).double().scatter_add(0, cell, y) / n)[cell]  # calibrated exactly
    made = fa.class_means(y, score, ids)
    p = made.base_rate
    torch.testing.assert_close(made.everyone, p, rtol=1e-13, atol=0)
    torch.testing.assert_close(p * made.positive + (1 - p) * made.negative, p, rtol=1e-13, atol=0)
    # Base rates differ and the score is not perfect, so balance fails.
    assert float(fa.gap(made.positive)) > 0.01
    assert float(fa.gap(made.negative)) > 0.01
    # By a loop.
    for a in range(6):
        here = (ids == a) & (y == 1)
        assert float(made.positive[a]) == pytest.approx(float(score[here].mean()), abs=1e-13)


def test_class_means_work_without_values() -> None:
    y = torch.empty(11, dtype=torch.long, device="meta")
    made = fa.class_means(y, y.double(), y, size=3)
    assert made.positive.device.type == "meta"


@pytest.mark.usefixtures("own_checks")
def test_what_is_wrong_is_refused() -> None:
    half, percent = torch.tensor(0.5), torch.tensor(50.0)
    for function in (fa.chouldechova_fpr, fa.odds_ppv):
        with pytest.raises(ValueError, match="base_rate must be shares from 0 to 1"):
            function(percent, half, half)
        with pytest.raises(ValueError, match="same shape"):
            function(half, half, half[None])
    y = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="scores must be floating"):
        fa.class_means(y, y, y)
    with pytest.raises(ValueError, match="y must be 0 or 1, got 2"):
        fa.class_means(y + 1, y.double(), y)
