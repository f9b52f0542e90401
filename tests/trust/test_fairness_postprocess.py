"""Derived predictors: the linear program against brute force, geometry, and fairlearn."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from fairlearn.postprocessing import ThresholdOptimizer
from sklearn.base import BaseEstimator
from torch import Tensor

from companion import data
from companion.trust import fairness as fa
from companion.trust.fairness._postprocess import Constraint

TIGHT = 1e-9  # HiGHS solves these small programs to rounding


def masses(g: torch.Generator, scores: int, groups: int) -> tuple[Tensor, Tensor]:
    positive = torch.rand(scores, groups, generator=g, dtype=torch.float64) + 0.05
    negative = torch.rand(scores, groups, generator=g, dtype=torch.float64) + 0.05
    up = torch.linspace(0.2, 1, scores, dtype=torch.float64)[:, None]
    return positive * up, negative * (1.2 - up)


def accuracy(q: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    return (q * positive).sum((-2, -1)) - (q * negative).sum((-2, -1))


@pytest.mark.parametrize("constraint", ["demographic parity", "equal opportunity"])
def test_one_equality_is_optimal_against_every_vertex(
    constraint: Constraint, g: torch.Generator
) -> None:
    # Two groups, two scores, one equation: at a vertex of the feasible set three of the four
    # probabilities are 0 or 1, and the equation gives the fourth.
    positive, negative = masses(g, 2, 2)
    w = positive if constraint == "equal opportunity" else positive + negative
    law = (w / w.sum(0) * torch.tensor([1.0, -1.0])).flatten()
    best = -torch.inf
    for free in range(4):
        for ends in itertools.product((0.0, 1.0), repeat=3):
            q = torch.tensor([*ends[:free], 0.0, *ends[free:]], dtype=torch.float64)
            q[free] = -(law @ q) / law[free]
            if -1e-12 <= q[free] <= 1 + 1e-12:
                best = max(best, float(accuracy(q.view(2, 2), positive, negative)))
    made = fa.best_acceptance(positive, negative, constraint=constraint)
    assert made.gain == pytest.approx(best, abs=TIGHT)
    rate = made.tpr if constraint == "equal opportunity" else made.selection
    assert float(fa.gap(rate)) < TIGHT


def test_equalized_odds_is_optimal_against_a_fine_grid(g: torch.Generator) -> None:
    positive, negative = masses(g, 2, 2)
    made = fa.best_acceptance(positive, negative, constraint="equalized odds")
    assert float(fa.gap(made.tpr)) < TIGHT
    assert float(fa.gap(made.fpr)) < TIGHT
    # Two equations leave a plane: q of group 0 gives its two rates, and group 1 must match them.
    line = torch.linspace(0, 1, 401, dtype=torch.float64)
    q0 = torch.cartesian_prod(line, line)
    law = torch.stack([positive / positive.sum(0), negative / negative.sum(0)])
    rates = q0 @ law[:, :, 0].T
    q1 = torch.linalg.solve(law[:, :, 1], rates.T).T
    inside = ((q1 >= 0) & (q1 <= 1)).all(1)
    q = torch.stack([q0, q1], -1)[inside]
    grid = accuracy(q, positive, negative)
    assert float(grid.max()) <= made.gain + TIGHT
    # A step of the grid changes the gain by at most its size times the mass.
    assert float(grid.max()) > made.gain - float(positive.sum() + negative.sum()) / 400


def test_no_random_rule_that_obeys_gains_more(g: torch.Generator) -> None:
    positive, negative = masses(g, 5, 3)
    made = fa.best_acceptance(positive, negative, constraint="equalized odds", gain=2.0, loss=3.0)
    law = torch.cat([positive / positive.sum(0), negative / negative.sum(0)])
    # Random directions in which nothing changes in the rates of any group.
    for _ in range(50):
        step = torch.randn(5, 3, generator=g, dtype=torch.float64)
        for a in range(3):
            own = law[:, a].view(2, 5)
            step[:, a] -= torch.linalg.pinv(own) @ (own @ step[:, a])
        for t in (1e-3, -1e-3):
            q = made.accept + t * step
            if bool(((q >= 0) & (q <= 1)).all()):
                gain = float((q * (2 * positive - 3 * negative)).sum())
                assert gain <= made.gain + TIGHT


def test_without_a_constraint_it_is_the_pointwise_rule(g: torch.Generator) -> None:
    positive, negative = masses(g, 7, 3)
    made = fa.best_acceptance(positive, negative, constraint="none", gain=2.0, loss=3.0)
    gains = 2 * positive - 3 * negative
    assert torch.equal(made.accept, (gains > 0).double())
    assert made.gain == pytest.approx(float(gains.clamp(min=0).sum()), abs=TIGHT)


def test_more_freedom_gains_more(g: torch.Generator) -> None:
    positive, negative = masses(g, 7, 3)
    gains = [
        fa.best_acceptance(
            positive, negative, constraint="equalized odds", tolerance=tolerance
        ).gain
        for tolerance in (0.0, 0.01, 0.1, 1.0)
    ]
    assert gains == sorted(gains)
    free = fa.best_acceptance(positive, negative, constraint="none").gain
    assert gains[-1] == pytest.approx(free, abs=TIGHT)
    assert gains[0] < gains[1] < gains[2]
    made = fa.best_acceptance(positive, negative, constraint="equalized odds", tolerance=0.1)
    assert max(float(fa.gap(made.tpr)), float(fa.gap(made.fpr))) == pytest.approx(0.1, abs=1e-9)


def test_the_point_lies_in_the_hull_of_each_groups_curve(g: torch.Generator) -> None:
    # Scores in the order of their likelihood ratios: the hull is that of the thresholds.
    positive, negative = masses(g, 7, 3)
    made = fa.best_acceptance(positive, negative, constraint="equalized odds")
    for a in range(3):
        order = (positive[:, a] / negative[:, a]).argsort(descending=True)
        up = torch.cat([torch.zeros(1), (positive[order, a] / positive[:, a].sum()).cumsum(0)])
        right = torch.cat([torch.zeros(1), (negative[order, a] / negative[:, a].sum()).cumsum(0)])
        top = np.interp(float(made.fpr[a]), right.numpy(), up.numpy())
        assert float(made.tpr[a]) <= top + TIGHT


class Given(BaseEstimator):  # type: ignore[misc]
    """An estimator whose prediction is its input."""

    def fit(self, *_: Any, **__: Any) -> "Given":
        self.fitted_ = True
        return self

    def predict(self, x: Any) -> Any:
        return np.asarray(x)[:, 0]


def test_fairlearns_optimizer_is_no_better_on_compas() -> None:
    table = data.compas()
    two = table.equals("race", "African-American") | table.equals("race", "Caucasian")
    table = table.where(two)
    y, score = table.number("two_year_recid"), table.number("decile_score")
    ids, names = fa.group_ids(table.category("race"))
    ours = fa.derive(y, score, ids, constraint="equalized odds")
    chance = ours.predict_proba(score, ids)
    right = float((chance * y + (1 - chance) * (1 - y)).mean())
    theirs = ThresholdOptimizer(
        estimator=Given(), constraints="equalized_odds", objective="accuracy_score",
        prefit=False, predict_method="predict", grid_size=2000,
    )  # fmt: skip
    x, group = score.numpy()[:, None], np.array(names)[ids.numpy()]
    theirs.fit(x, y.numpy(), sensitive_features=group)
    made = torch.as_tensor(theirs._pmf_predict(x, sensitive_features=group)[:, 1])
    accuracy = float((made * y + (1 - made) * (1 - y)).mean())
    assert accuracy <= right + TIGHT
    assert accuracy > right - 1e-3  # their grid has 2000 points
    # The expected rates of ours are equal on these data, to rounding.
    for outcome in (0, 1):
        share = [float(chance[(ids == a) & (y == outcome)].mean()) for a in (0, 1)]
        assert share[0] == pytest.approx(share[1], abs=TIGHT)


def test_the_published_profits_on_fico_return() -> None:
    scores = data.fico()
    law = torch.diff(scores.cdf, dim=0, prepend=torch.zeros(1, 4).double())
    mass = law * scores.people / scores.people.sum()
    parts = mass * scores.repaid, mass * (1 - scores.repaid)
    loss = 0.82 / 0.18

    def profit(constraint: Constraint) -> float:
        return fa.best_acceptance(*parts, constraint=constraint, loss=loss).gain

    most = profit("none")
    # Hardt, Price and Srebro 2016, section 6, in percent: 92.8, 80.2, 69.8. Lotteries between
    # neighboring thresholds, which the program allows, gain a little more.
    for constraint, published in (
        ("equal opportunity", 0.928),
        ("equalized odds", 0.802),
        ("demographic parity", 0.698),
    ):
        share = profit(constraint) / most  # type: ignore[arg-type]
        assert published < share < published + 0.01
    one = (parts[0] - loss * parts[1]).sum(1).flip(0).cumsum(0).max()
    assert float(one) / most == pytest.approx(0.993, abs=1e-3)


def test_predictions_are_drawn_with_their_probabilities(g: torch.Generator) -> None:
    positive, negative = masses(g, 3, 2)
    best = fa.best_acceptance(positive, negative, constraint="equalized odds")
    made = fa.DerivedPredictor(levels=torch.tensor([1.0, 2.0, 4.0]), best=best)
    score = torch.tensor([0.0, 1.0, 3.0, 4.0, 9.0]).double()
    chance = made.predict_proba(score, torch.tensor([0, 1, 0, 1, 0]))
    q = best.accept
    assert torch.equal(chance, torch.stack([q[0, 0], q[0, 1], q[1, 0], q[2, 1], q[2, 0]]))
    rows = torch.full((20_000,), 2.0).double()
    for a in (0, 1):
        drawn = made.predict(rows, torch.full((20_000,), a), generator=g).double()
        assert float(drawn.mean()) == pytest.approx(float(q[1, a]), abs=5 * 0.5 / 141)


@pytest.mark.usefixtures("own_checks")
def test_what_is_wrong_is_refused(g: torch.Generator) -> None:
    positive, negative = masses(g, 3, 2)
    none = positive.clone()
    none[:, 1] = 0
    with pytest.raises(ValueError, match="group 1 has nobody with a positive outcome"):
        fa.best_acceptance(none, negative, constraint="equalized odds")
    fa.best_acceptance(none, negative, constraint="demographic parity")  # which needs none
    with pytest.raises(ValueError, match=r"constraint must be one of .* got 'fair'"):
        fa.best_acceptance(positive, negative, constraint="fair")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="masses must be 0 or more"):
        fa.best_acceptance(-positive, negative, constraint="none")
    with pytest.raises(ValueError, match="same shape"):
        fa.best_acceptance(positive, negative[:2], constraint="none")
    with pytest.raises(ValueError, match="tolerance must lie in"):
        fa.best_acceptance(positive, negative, constraint="none", tolerance=2.0)
    with pytest.raises(ValueError, match="positive must be finite"):
        fa.best_acceptance(positive / 0, negative, constraint="none")
    y = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="scores must be floating"):
        fa.derive(y, y, y, constraint="none")
    with pytest.raises(ValueError, match="y must be 0 or 1"):
        fa.derive(y + 1, y.double(), y, constraint="none")
    made = fa.derive(y, y.double(), y, constraint="none")
    with pytest.raises(ValueError, match=r"groups must lie in \[0, 2\), got 4"):
        made.predict_proba(y.double(), y + 4)
