"""Weights, constraints, adversaries and the game: against brute force, SciPy, and fairlearn."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from fairlearn.reductions import DemographicParity, EqualizedOdds, ExponentiatedGradient
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from companion.knowledge.robustness import reverse_gradient
from companion.trust import debiasing as de


def numbers(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def people(g: torch.Generator, n: int = 211, d: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    x, a = numbers(n, d, g=g), torch.randint(0, 2, (n,), generator=g)
    x[:, 1] += 1.5 * a
    y = (x[:, 0] + x[:, 1] + numbers(n, g=g) > 0.7).long()
    return x, y, a


def test_weights_make_outcome_and_group_independent() -> None:
    # faults: these counts have the weights .625, 2.5, 2.5, .625.
    a = torch.tensor([0] * 5 + [1] * 5)
    y = torch.tensor([0] * 4 + [1] + [0] + [1] * 4)
    w = de.reweigh(y, a)
    assert w[[0, 4, 5, 6]].tolist() == [0.625, 2.5, 2.5, 0.625]
    assert float(w.sum()) == 10.0


@given(st.integers(0, 2**20))
def test_weighted_shares_are_those_of_independence(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.arange(3).repeat(5), torch.randint(0, 3, (97,), generator=g)])
    a = torch.cat([torch.arange(5).repeat_interleave(3), torch.randint(0, 5, (97,), generator=g)])
    w = de.reweigh(y, a, size=7).double()
    joint = torch.zeros(5, 3).double().index_put_((a, y), w, accumulate=True) / w.sum()
    want = torch.outer(joint.sum(1), joint.sum(0))
    torch.testing.assert_close(joint, want, rtol=0, atol=1e-14)
    # The margins stay what they were.
    torch.testing.assert_close(joint.sum(0), torch.bincount(y) / len(y) * 1.0, rtol=0, atol=1e-7,
        check_dtype=False)  # fmt: skip


def test_nobody_cannot_be_weighed(own_checks: None) -> None:
    with pytest.raises(ValueError, match="group 1 never has the outcome 1"):
        de.reweigh(torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="labels and groups must have the same shape"):
        de.reweigh(torch.tensor([0, 1]), torch.tensor([0]))


@pytest.mark.parametrize("share", [0.5, 0.1, 0.0])
def test_the_constrained_classifier_is_that_of_scipy(share: float, g: torch.Generator) -> None:
    x, y, a = people(g)
    free = de.fair_logistic(x, y, a, penalty=0.01)
    limit = share * abs(free.free)
    made = de.fair_logistic(x, y, a, limit=limit, penalty=0.01)
    along = ((a - a.double().mean())[:, None] * x).mean(0).numpy()
    rows, signs = x.numpy(), (2 * y - 1).numpy()

    def loss(theta: np.ndarray) -> float:
        score = rows @ theta[:-1] + theta[-1]
        return float(np.logaddexp(0, -signs * score).mean() + 0.005 * theta[:-1] @ theta[:-1])

    limits = [
        {"type": "ineq", "fun": lambda t: limit - along @ t[:-1]},
        {"type": "ineq", "fun": lambda t: limit + along @ t[:-1]},
    ]
    best = minimize(loss, np.zeros(6), constraints=limits, method="SLSQP", tol=1e-12)
    ours = torch.cat([made.probe.weight[:, 0], made.probe.bias]).numpy()
    assert loss(ours) == pytest.approx(float(best.fun), abs=1e-8)
    assert abs(made.covariance) <= limit + 1e-10
    found = de.decision_covariance(made.probe.scores(x)[:, 0], a)
    assert float(found) == pytest.approx(made.covariance, abs=1e-12)


def test_a_constraint_that_holds_changes_nothing(g: torch.Generator) -> None:
    x, y, a = people(g)
    free = de.fair_logistic(x, y, a)
    loose = de.fair_logistic(x, y, a, limit=2 * abs(free.free))
    assert torch.equal(free.probe.weight, loose.probe.weight)
    other = LogisticRegression(C=1 / (1e-3 * len(x)), tol=1e-10, max_iter=10_000).fit(x, y)
    torch.testing.assert_close(
        free.probe.weight[:, 0], torch.from_numpy(other.coef_[0]), rtol=1e-4, atol=1e-5
    )
    twice = de.fair_logistic(torch.cat([x, x[:50]]), torch.cat([y, y[:50]]),
        torch.cat([a, a[:50]]))  # fmt: skip
    weighted = torch.ones(len(x))
    weighted[:50] = 2
    again = de.fair_logistic(x, y, a, weights=weighted)
    torch.testing.assert_close(again.probe.weight, twice.probe.weight, rtol=1e-7, atol=1e-9)


def test_the_encoder_learns_against_the_adversary(g: torch.Generator) -> None:
    x, y, a = people(g, 31)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, reader, adversary = (nn.Linear(5, 3), nn.Linear(3, 1), nn.Linear(3, 1))
    for part in (encoder, reader, adversary):
        part.double()
    loss = nn.functional.binary_cross_entropy_with_logits

    def parts(strength: float | None) -> tuple[Tensor, Tensor]:
        hidden = encoder(x)
        seen = hidden if strength is None else reverse_gradient(hidden, strength=strength)
        return loss(reader(hidden)[:, 0], y.double()), loss(adversary(seen)[:, 0], a.double())

    own = [torch.autograd.grad(part, encoder.weight, retain_graph=True)[0] for part in parts(None)]
    plain = torch.autograd.grad(parts(None)[1], adversary.weight)[0]
    for strength in (0.0, 0.7):
        both = sum(parts(strength))
        encoded, told = torch.autograd.grad(both, [encoder.weight, adversary.weight])
        torch.testing.assert_close(encoded, own[0] - strength * own[1])
        torch.testing.assert_close(told, plain)  # the adversary's own gradient is not turned


def test_a_projected_step_does_not_help_the_adversary(g: torch.Generator) -> None:
    for strength in (0.0, 0.4):
        own, other = numbers(7, g=g), numbers(7, g=g)
        made = de.project_gradient(own, other, strength=strength)
        assert float(made @ other) == pytest.approx(-strength * float(other @ other), abs=1e-12)
        aside = own - made + 0.0
        assert float(torch.linalg.matrix_rank(torch.stack([aside, other]), tol=1e-9)) == 1
    assert torch.equal(de.project_gradient(own, torch.zeros(7).double(), strength=1.0), own)
    # Of all parameters as one vector: parameter by parameter is another direction.
    halves = [de.project_gradient(o, h, strength=0.0) for o, h in zip(own.split(4), other.split(4),
        strict=True)]  # fmt: skip
    assert (torch.cat(halves) - de.project_gradient(own, other, strength=0.0)).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # inside of fairlearn
@pytest.mark.parametrize("constraint", ["demographic parity", "equalized odds"])
def test_moments_are_those_of_fairlearn(constraint: str, g: torch.Generator) -> None:
    x, y, _ = people(g)
    a = torch.randint(0, 3, (len(x),), generator=g)
    ours = de.moment_matrix(y, a, constraint=constraint)  # type: ignore[arg-type]
    theirs = (DemographicParity if constraint == "demographic parity" else EqualizedOdds)()
    theirs.load_data(x.numpy(), y.numpy(), sensitive_features=a.numpy())
    decided = torch.randint(0, 2, (len(x),), generator=g)
    gamma = theirs.gamma(lambda _: decided.numpy())
    assert len(ours) == len(gamma)
    made = sorted((ours @ decided.double()).tolist())
    torch.testing.assert_close(
        torch.tensor(made), torch.tensor(sorted(gamma.tolist())), rtol=0, atol=1e-6
    )
    # The bound is to everybody, so two groups may differ by twice as much.
    rates = [float(decided[a == k].double().mean()) for k in range(3)]
    if constraint == "demographic parity":
        worst = float((ours @ decided.double()).max())
        assert worst <= max(rates) - min(rates) + 1e-12 <= 2 * worst + 1e-12


class Exact:
    """A finite class of rules on four kinds of people, and the best of them by enumeration."""

    def __init__(self) -> None:
        self.rules = [torch.tensor(r) for r in itertools.product((0, 1), repeat=4)]

    def __call__(self, x: Tensor, y: Tensor, weights: Tensor) -> Callable[[Tensor], Tensor]:
        costs = [float((weights * (rule[x[:, 0].long()] != y)).sum()) for rule in self.rules]
        best = self.rules[costs.index(min(costs))]
        return lambda features: best[features[:, 0].long()]


def small(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    kind = torch.randint(0, 4, (97,), generator=g)
    a = (torch.rand(97, generator=g) < 0.2 + 0.2 * kind).long()
    y = (torch.rand(97, generator=g) < 0.1 + 0.25 * kind).long()
    return kind[:, None].double(), y, a


@pytest.mark.parametrize("slack", [0.0, 0.05])
def test_the_game_finds_the_best_lottery(slack: float, g: torch.Generator) -> None:
    x, y, a = small(g)
    learner = Exact()
    moments = de.moment_matrix(y, a, constraint="demographic parity")
    decided = torch.stack([rule[x[:, 0].long()].double() for rule in learner.rules])
    errors = ((decided != y).double()).mean(1)
    best = linprog(
        errors.numpy(), A_ub=(decided @ moments.mT).mT.numpy(), b_ub=[slack] * 4,
        A_eq=np.ones((1, 16)), b_eq=[1.0],
    )  # fmt: skip
    bound, rounds = 4.0, 2000
    made = de.exponentiated_gradient(
        x, y, a, learner=learner, constraint="demographic parity", slack=slack, bound=bound,
        rounds=rounds,
    )  # fmt: skip
    promised = de.game_gap(
        bound=bound, constraints=4, rounds=rounds, size=1 + slack,
        step=math.sqrt(2 * math.log(5) / rounds) / (1 + slack),
    )  # fmt: skip
    assert 0 <= made.gap <= promised
    assert promised == pytest.approx(bound * (1 + slack) * math.sqrt(2 * math.log(5) / rounds))
    assert made.error <= best.fun + 2 * made.gap + 1e-9
    assert made.violation <= (1 + 2 * made.gap) / bound
    faster = de.exponentiated_gradient(
        x, y, a, learner=learner, constraint="demographic parity", slack=slack, bound=bound,
        rounds=rounds, step=0.5,
    )  # fmt: skip
    assert faster.error + bound * max(faster.violation, 0) <= best.fun + 0.02
    assert float(made.weights.sum()) == pytest.approx(1.0)
    votes = made.predict_proba(x)
    assert float(torch.where(y == 1, 1 - votes, votes).mean()) == pytest.approx(made.error)
    assert float((moments @ votes).max() - slack) == pytest.approx(made.violation)


@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # inside of fairlearn
def test_the_game_ends_near_where_fairlearn_ends(g: torch.Generator) -> None:
    x, y, a = people(g, 997)
    ours = de.exponentiated_gradient(
        x, y, a, learner=de.logistic_learner(penalty=1e-4), constraint="demographic parity",
        slack=0.02, bound=3.0, rounds=40, step=0.5,
    )  # fmt: skip
    theirs = ExponentiatedGradient(
        LogisticRegression(C=10.0), DemographicParity(difference_bound=0.02), eps=0.02
    ).fit(x.numpy(), y.numpy(), sensitive_features=a.numpy())
    votes = torch.from_numpy(theirs._pmf_predict(x.numpy())[:, 1]).double()
    their_error = float(torch.where(y == 1, 1 - votes, votes).mean())
    assert abs(ours.error - their_error) < 0.03
    assert ours.violation < 0.02
    gap = float(votes[a == 1].mean() - votes[a == 0].mean())
    assert abs(gap) < 0.1


@given(st.integers(1, 5), st.integers(1, 50), st.floats(0.05, 2.0), st.integers(0, 2**20))
def test_no_sequence_of_losses_beats_the_bound(k: int, rounds: int, rate: float, seed: int) -> None:
    # What the proof uses: the regret of exponentiated gradient, against losses that see its play.
    g = torch.Generator().manual_seed(seed)
    theta, gained, total = torch.zeros(k).double(), 0.0, torch.zeros(k).double()
    for _ in range(rounds):
        p = torch.cat([theta, torch.zeros(1).double()]).softmax(0)[:-1]
        losses = 2 * torch.rand(k, generator=g).double() - 1
        losses = torch.where(p > 1 / (k + 1), -losses.abs(), losses.abs())  # against the favorite
        gained += float(p @ losses)
        total += losses
        theta = theta + rate * losses
    regret = max(float(total.max()), 0.0) - gained
    bound = de.game_gap(bound=1.0, constraints=k, rounds=rounds, step=rate, size=1.0)
    assert regret / rounds <= bound + 1e-12


def test_what_is_refused(g: torch.Generator, own_checks: None) -> None:
    x, y, a = people(g, 13)
    with pytest.raises(ValueError, match="labels must hold both 0 and 1"):
        de.fair_logistic(x, torch.zeros(13).long(), a)
    with pytest.raises(ValueError, match="limit must lie in"):
        de.fair_logistic(x, y, a, limit=-1.0)
    with pytest.raises(ValueError, match="weights must be 0 or more"):
        de.fair_logistic(x, y, a, weights=-torch.ones(13))
    with pytest.raises(ValueError, match="penalty must lie in"):
        de.fair_logistic(x, y, a, penalty=0.0)
    with pytest.raises(ValueError, match="constraint must be one of"):
        de.moment_matrix(y, a, constraint="calibration")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="group 2 has nobody at all"):
        de.moment_matrix(y, a, constraint="demographic parity", size=3)
    with pytest.raises(ValueError, match="a rule must decide 0 or 1"):
        de.exponentiated_gradient(
            x, y, a, learner=lambda *_: lambda z: z[:, 0], constraint="demographic parity",
            slack=0.0, bound=1.0, rounds=1,
        )  # fmt: skip
    with pytest.raises(ValueError, match="step must lie in"):
        de.game_gap(bound=1.0, constraints=1, rounds=1, step=0.0, size=1.0)
    with pytest.raises(ValueError, match="scores and groups must have the same shape"):
        de.decision_covariance(x[:, 0], a[:5])


def test_shapes_without_values() -> None:
    x = torch.ones(7, 3, device="meta")
    assert de.project_gradient(x[:, 0], x[:, 1], strength=0.1).shape == (7,)
    assert de.decision_covariance(x[:, 0], x[:, 1]).shape == ()


def test_a_group_that_is_no_number_does_not_switch_the_constraint_off(g: torch.Generator) -> None:
    x, y = torch.randn(7, 2, generator=g), torch.tensor([0, 1, 0, 1, 1, 0, 1])
    groups = torch.tensor([float("nan"), 1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="groups must be finite"):
        de.fair_logistic(x, y, groups, limit=0.0)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_projected_gradient_has_no_scale(scale: float, g: torch.Generator) -> None:
    # The square of the adversary's gradient would overflow, or vanish, in float32.
    first, second = torch.randn(2, 13, generator=g)
    made = de.project_gradient(first, second * scale, strength=0.0)
    want = first - (first @ second) / (second @ second) * second
    torch.testing.assert_close(made, want, rtol=1e-5, atol=1e-6)
    assert torch.equal(de.project_gradient(first, 0 * second, strength=0.7), first)
