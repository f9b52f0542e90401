r"""Fair classification as a game: exponentiated gradient against a best response."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import (
    check_count,
    check_floating,
    check_ids,
    check_in_range,
    check_shape,
)
from companion.trust.debiasing._probe import newton

__all__ = [
    "FairMixture",
    "Learner",
    "Moment",
    "exponentiated_gradient",
    "game_gap",
    "logistic_learner",
    "moment_matrix",
]

Moment = Literal["demographic parity", "equal opportunity", "equalized odds"]
#: Fits a rule to features, targets 0 or 1, and weights; the rule decides 0 or 1 for features.
Learner = Callable[[Tensor, Tensor, Tensor], Callable[[Tensor], Tensor]]


def moment_matrix(
    labels: Integer[Tensor, " n"],
    groups: Integer[Tensor, " n"],
    *,
    constraint: Moment,
    size: int | None = None,
) -> Float[Tensor, "constraints n"]:
    r"""Write a criterion as rows that act on decisions.

    With :math:`h\in\{0,1\}^n` and an event such as *everybody* or *outcome 1*, the rows of a group
    give :math:`\pm\big(\mathbb E[h\mid a,\text{event}]-\mathbb E[h\mid\text{event}]\big)`.

    Args:
        labels: Outcomes, 0 or 1.
        groups: Groups from 0.
        constraint: ``"demographic parity"`` has the event *everybody*, ``"equal opportunity"``
            *outcome 1*, ``"equalized odds"`` both outcomes.
        size: How many groups there are; by default one more than the largest number.

    Returns:
        Two rows for each event and group, float64. With all of them at most :math:`\epsilon`, two
        groups differ by at most :math:`2\epsilon`: the difference is to everybody, and not to each
        other.

    Raises:
        ValueError: If shapes differ, an id is unknown, the constraint is, or a group has nobody in
            an event.

    References:
        Agarwal et al. 2018, arXiv:1803.02453, examples 1 and 2.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> y, a = torch.tensor([1, 0, 1]), torch.tensor([0, 0, 1])
        >>> moment_matrix(y, a, constraint="demographic parity")[2] * 6
        tensor([-2., -2.,  4.], dtype=torch.float64)
    """
    check_shape("labels", labels, (None,))
    check_shape("groups", groups, (len(labels),))
    check_count("rows", len(labels))
    size = int(groups.max()) + 1 if size is None else size
    check_ids("labels", labels, 2)
    check_ids("groups", groups, size)
    events = {
        "demographic parity": [("at all", torch.ones_like(labels, dtype=torch.bool))],
        "equal opportunity": [("with outcome 1", labels == 1)],
        "equalized odds": [("with outcome 0", labels == 0), ("with outcome 1", labels == 1)],
    }
    if constraint not in events:
        raise ValueError(f"constraint must be one of {', '.join(events)}; got {constraint!r}")
    rows = []
    for name, event in events[constraint]:
        everybody = event.double() / event.double().sum()
        for a in range(size):
            here = (event & (groups == a)).double()
            if not bool(here.any()):
                raise ValueError(
                    f"group {a} has nobody {name}, so it has no such rate: leave the group out"
                )
            row = here / here.sum() - everybody
            rows += [row, -row]
    return torch.stack(rows)


def game_gap(*, bound: float, constraints: int, rounds: int, step: float, size: float) -> float:
    r"""Bound how far from a saddle point the averages of the game are.

    .. math:: \nu \le B\Big(\frac{\log(K+1)}{\eta T} + \frac{\eta\rho^2}2\Big)

    Args:
        bound: :math:`B`, the most that all multipliers sum to.
        constraints: :math:`K`.
        rounds: :math:`T`.
        step: :math:`\eta`.
        size: :math:`\rho`, the largest magnitude of a constraint's value.

    Returns:
        The bound. It is least for :math:`\eta=\sqrt{2\log(K+1)/T}/\rho`, where it is
        :math:`B\rho\sqrt{2\log(K+1)/T}`. It holds if responses are best ones.

    Raises:
        ValueError: If a number is out of its range.

    References:
        Agarwal et al. 2018, arXiv:1803.02453, theorem 1, has :math:`\eta\rho^2` for the second
        term; half of it follows from Hoeffding's lemma.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> round(game_gap(bound=1.0, constraints=1, rounds=200, step=0.1, size=1.0), 4)
        0.0847
    """
    for name, value in (("bound", bound), ("step", step), ("size", size)):
        check_in_range(name, value, low=0.0, open_low=True, open_high=True)
    check_count("constraints", constraints)
    check_count("rounds", rounds)
    return bound * (math.log(constraints + 1) / (step * rounds) + step * size**2 / 2)


@dataclass(frozen=True, eq=False, kw_only=True)
class FairMixture:
    """A lottery between rules: each person's decision is made by one that is drawn.

    Attributes:
        rules: The rules, in the order of their rounds; equal ones are one.
        weights: With which probability each decides.
        multipliers: The averages of the multipliers.
        gap: How far the averages are from a saddle point of the game, at most, if the learner's
            responses are best ones.
        error: Share of wrong decisions on the data it was fitted to.
        violation: The largest value of a constraint there, above its slack if positive.

    Book: :doc:`/book/trust/debiasing`
    """

    rules: tuple[Callable[[Tensor], Tensor], ...]
    weights: Float[Tensor, " rules"]
    multipliers: Float[Tensor, " constraints"]
    gap: float
    error: float
    violation: float

    def predict_proba(self, x: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
        """Compute the probability of a positive decision.

        Args:
            x: Features.

        Returns:
            Probabilities, float64.
        """
        votes = torch.stack([rule(x).double() for rule in self.rules])
        return self.weights.to(votes) @ votes


def logistic_learner(*, penalty: float = 1e-3) -> Learner:
    r"""Make a learner of linear rules: a weighted logistic regression, cut at one half.

    It does not minimize the weighted number of errors, which is hard, but a convex loss above it.
    So its responses are not best ones, and the gap of the game is then no bound.

    Args:
        penalty: As in :func:`companion.trust.debiasing.fair_logistic`.

    Returns:
        The learner.

    Raises:
        ValueError: If the penalty is not above 0.

    Book: :doc:`/book/trust/debiasing`
    """
    check_in_range("penalty", penalty, low=0.0, open_low=True, open_high=True)

    def learn(x: Tensor, y: Tensor, weights: Tensor) -> Callable[[Tensor], Tensor]:
        theta = newton(x.double(), y.double(), weights=weights.double(), penalty=penalty, steps=8)

        def rule(features: Tensor) -> Tensor:
            return (features.to(theta) @ theta[:-1] + theta[-1] > 0).long()

        return rule

    return learn


def exponentiated_gradient(
    x: Float[Tensor, "n dim"],
    labels: Integer[Tensor, " n"],
    groups: Integer[Tensor, " n"],
    *,
    learner: Learner,
    constraint: Moment,
    slack: float,
    bound: float,
    rounds: int,
    step: float | None = None,
    size: int | None = None,
) -> FairMixture:
    r"""Play multipliers against classifiers, and return the average classifier.

    .. math:: \min_Q\ \max_{\lambda\ge0,\ \sum_k\lambda_k\le B}\
        \mathrm{err}(Q) + \sum_k\lambda_k\big((Gh)_k - \epsilon\big)

    In each round :math:`\lambda_k = B\,e^{\theta_k}/(1+\sum_j e^{\theta_j})`, the learner responds
    to these prices with a rule, and :math:`\theta` grows by :math:`\eta` times what the rule
    violates.

    Args:
        x: Features.
        labels: Outcomes, 0 or 1.
        groups: Groups from 0.
        learner: Finds a rule for weighted targets.
        constraint: As in :func:`moment_matrix`.
        slack: :math:`\epsilon \ge 0`, of each group to everybody.
        bound: :math:`B > 0`.
        rounds: :math:`T`.
        step: :math:`\eta`; by default the one of the best guarantee,
            :math:`\sqrt{2\log(K+1)/T}/(1+\epsilon)`, which is slow where violations are small.
        size: As in :func:`moment_matrix`.

    Returns:
        The lottery. Its error is at most that of the best one that satisfies the constraint, plus
        twice the gap, and its violation at most :math:`(1+2\nu)/B`, for best responses.

    Raises:
        ValueError: If shapes do not fit, a parameter is out of its range, or the learner's rule
            does not decide 0 or 1.

    References:
        Agarwal et al. 2018, arXiv:1803.02453, algorithm 1.

    Book: :doc:`/book/trust/debiasing`
    """
    check_floating("x", x)
    check_shape("x", x, (None, None))
    check_shape("labels", labels, (len(x),))
    check_in_range("slack", slack, low=0.0, open_high=True)
    check_in_range("bound", bound, low=0.0, open_low=True, open_high=True)
    check_count("rounds", rounds)
    moments = moment_matrix(labels, groups, constraint=constraint, size=size).to(x.device)
    n, k = len(x), len(moments)
    eta = math.sqrt(2 * math.log(k + 1) / rounds) / (1 + slack) if step is None else step
    check_in_range("step", eta, low=0.0, open_low=True, open_high=True)
    y = labels.double()

    def respond(prices: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        cost = (1 - 2 * y) / n + prices @ moments  # of deciding 1 rather than 0
        rule = learner(x, (cost < 0).long(), cost.abs() * n)
        decided = rule(x)
        if decided.shape != (n,) or not bool(((decided == 0) | (decided == 1)).all()):
            raise ValueError("a rule must decide 0 or 1 for each row of features")
        return rule, decided.double()

    def error(decided: Tensor) -> Tensor:
        return (y + (1 - 2 * y) * decided).mean()

    theta = moments.new_zeros(k)
    prices = moments.new_zeros(k)
    known: dict[bytes, int] = {}
    rules: list[Callable[[Tensor], Tensor]] = []
    votes: list[Tensor] = []
    counts: list[int] = []
    for _ in range(rounds):
        logits = torch.cat([theta, theta.new_zeros(1)])
        now = bound * logits.softmax(0)[:-1]
        prices = prices + now / rounds
        rule, decided = respond(now)
        key = decided.bool().cpu().numpy().tobytes()
        if key not in known:
            known[key] = len(rules)
            rules.append(rule)
            votes.append(decided)
            counts.append(0)
        counts[known[key]] += 1
        theta = theta + eta * (moments @ decided - slack)
    weights = torch.tensor(counts, dtype=torch.float64, device=x.device) / rounds
    mean = weights @ torch.stack(votes)
    violation = moments @ mean - slack
    above = error(mean) + bound * violation.amax().clamp(min=0)
    _, best = respond(prices)
    below = error(best) + prices @ (moments @ best - slack)
    return FairMixture(
        rules=tuple(rules),
        weights=weights,
        multipliers=prices,
        gap=float(above - below),
        error=float(error(mean)),
        violation=float(violation.amax()),
    )
