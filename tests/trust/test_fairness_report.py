"""The report: it says what the numbers say, the same each time, and what they do not say."""

import matplotlib as mpl
import pytest
import torch

from companion import data
from companion.trust import fairness as fa

mpl.use("Agg")


def of_compas() -> fa.FairnessReport:
    table = data.compas(filtered=False)
    return fa.report(
        table.number("two_year_recid"), table.number("decile_score") >= 5, table.category("race")
    )


def test_the_report_holds_the_counts_and_exact_intervals() -> None:
    made = of_compas()
    a = made.names.index("Caucasian")
    assert [int(c[a]) for c in made.counts] == [505, 349, 461, 1139]
    exact = fa.clopper_pearson(torch.tensor(349), torch.tensor(349 + 1139))
    assert float(made.intervals["fpr"].low[a]) == float(exact.low)
    assert "0.235 [0.213, 0.257]" in made.text()
    assert "Native American has 18 people only" in made.text()
    assert made.reference == made.names.index("African-American")
    low, high = (float(end[a]) for end in made.differences["fpr"])
    assert low < 0.2345 - 0.4485 < high < 0
    # Five other groups: each interval is at a level of 99 percent.
    wide = fa.newcombe(*(torch.tensor(n) for n in (349, 1488, 805, 1795)), level=0.99)
    assert low == pytest.approx(float(wide.low), abs=1e-12)
    assert str(made) == str(of_compas())  # nothing is random
    assert repr(made) == "FairnessReport(6 groups, 7214 people)"


def test_the_gap_stands_beside_that_of_chance() -> None:
    made = of_compas()
    people = torch.stack(list(made.counts)).sum(0)
    want = fa.expected_gap(people, 3251 / 7214)
    assert made.chance["base_rate"] == pytest.approx(want, abs=1e-12)
    assert made.markdown().count("\n| ") == 9  # a rule, people, seven measures
    widths = {line.count(" | ") for line in made.markdown().splitlines() if line.startswith("| ")}
    assert widths == {7, 0} or widths == {7}


def test_a_group_without_positives_is_named_and_never_zero() -> None:
    y = torch.tensor([1, 0, 1, 0, 0, 0, 0, 0])
    decided = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0])
    made = fa.report(y, decided, ["a"] * 4 + ["b|c"] * 4)
    assert "b|c has nobody with a positive outcome: no true-positive rate." in made.warnings
    assert "not estimable" in made.text()
    rows = {row[0]: row for row in zip(*made.rows(), strict=True)}
    assert rows["true positives"][2] == "none"
    assert r"b\|c" in made.markdown()
    assert made.figure() is not None


def test_numbers_may_name_groups() -> None:
    y = torch.tensor([1, 0, 1, 0])
    by_number = fa.report(y, y, torch.tensor([3, 3, 5, 5]))
    assert by_number.names == ("3", "5")


def test_the_figure_shows_four_rates_of_all_groups() -> None:
    figure = of_compas().figure()
    assert len(figure.axes) == 4
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()][2] == "Caucasian"
    for ax in figure.axes:
        assert len(ax.containers[0].lines[0].get_xdata()) == 6


@pytest.mark.usefixtures("own_checks")
def test_what_is_wrong_is_refused() -> None:
    y = torch.tensor([1, 0, 1])
    with pytest.raises(ValueError, match="3 outcomes and 2 groups"):
        fa.report(y, y, ["a", "b"])
    with pytest.raises(ValueError, match="found only 'a'"):
        fa.report(y, y, ["a", "a", "a"])
    with pytest.raises(ValueError, match="no group is called 'c'; there are a, b"):
        fa.report(y, y, ["a", "a", "b"], reference="c")
    with pytest.raises(ValueError, match=r"predictions must be 0 or 1, got 0\.5"):
        fa.report(y, y / 2, ["a", "a", "b"])
    with pytest.raises(ValueError, match="level must lie in"):
        fa.report(y, y, ["a", "a", "b"], level=95)
