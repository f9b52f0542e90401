r"""The best decisions that a score allows under an equality between groups: a linear program.

A *derived* predictor sees the score and the group, and decides at random with a probability that
depends on these two. Its rates are linear in those probabilities, so the best one under equal rates
is the solution of a linear program, and no search over thresholds is needed.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor

from companion.core import (
    check_count,
    check_finite,
    check_floating,
    check_ids,
    check_in_range,
    check_same_shape,
    rand,
)
from companion.trust.fairness._cells import check_binary

__all__ = ["Acceptance", "Constraint", "DerivedPredictor", "best_acceptance", "derive"]

Constraint = Literal["none", "demographic parity", "equal opportunity", "equalized odds"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Acceptance:
    """The best decisions for a distribution of scores.

    Attributes:
        accept: Probability of a positive decision at each score in each group.
        gain: What the decisions gain in all, in the units of the gains given.
        tpr: True-positive rate of each group; NaN if it has no positive outcome.
        fpr: False-positive rate of each group; NaN if it has no negative outcome.
        selection: Share of positive decisions in each group.
    """

    accept: Float[Tensor, "scores groups"]
    gain: float
    tpr: Float[Tensor, " groups"]
    fpr: Float[Tensor, " groups"]
    selection: Float[Tensor, " groups"]


def best_acceptance(
    positive: Float[Tensor, "scores groups"],
    negative: Float[Tensor, "scores groups"],
    *,
    constraint: Constraint,
    gain: float = 1.0,
    loss: float = 1.0,
    tolerance: float = 0.0,
) -> Acceptance:
    r"""Solve for the probabilities :math:`q_{sa}` of a positive decision that gain most.

    .. math:: \max_{0 \le q \le 1} \sum_{s, a} q_{sa}\, (g\, w^+_{sa} - l\, w^-_{sa})
        \quad\text{such that}\quad R_a(q) = R_b(q) \text{ for all } a, b

    where :math:`w^\pm_{sa}` is the mass of people of group a with score s and that outcome, and
    :math:`R_a` the rate that the constraint names: of selection, true positives, or both true and
    false positives. Its value is the best of all derived predictors; thresholds, and lotteries
    between thresholds, are among them.

    Args:
        positive: Mass with a positive outcome, 0 or more: counts, or shares.
        negative: Mass with a negative outcome.
        constraint: What is equal in all groups.
        gain: What a positive decision gains at a positive outcome.
        loss: What it loses at a negative one. With 1 and 1 the program maximizes accuracy.
        tolerance: How far two groups may be apart in each rate that is constrained.

    Returns:
        Probabilities and rates, float64, on the device of the masses.

    Raises:
        ValueError: If the shapes differ, a mass is negative, there is no score, the constraint is
            unknown, or a group has nobody from whom its constrained rate could be taken.

    Numerics:
        Solved by HiGHS on the host, exactly up to about 1e-7 in the rates. Where several
        solutions are best, it returns one of them.

    References:
        Hardt, Price and Srebro 2016, arXiv:1610.02413, sections 4.1 and 4.2.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> positive = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
        >>> negative = torch.tensor([[3.0, 2.0], [1.0, 2.0]])
        >>> made = best_acceptance(positive, negative, constraint="equalized odds")
        >>> round(float((made.tpr - made.fpr).abs().max()), 6)  # the second score is blind
        0.0
    """
    from scipy.optimize import linprog

    check_floating("positive", positive)
    check_same_shape("positive", positive, "negative", negative)
    check_in_range("tolerance", tolerance, low=0.0, high=1.0)
    check_finite("positive", positive)
    check_finite("negative", negative)
    if positive.ndim != 2 or 0 in positive.shape:
        raise ValueError(f"masses must be (scores, groups), got shape {tuple(positive.shape)}")
    w1, w0 = (w.detach().cpu().double() for w in (positive, negative))
    if bool((w1 < 0).any() | (w0 < 0).any()):
        raise ValueError("masses must be 0 or more: give counts or shares of people")
    laws = {
        "none": [],
        "demographic parity": [("anybody", w1 + w0)],
        "equal opportunity": [("a positive outcome", w1)],
        "equalized odds": [("a positive outcome", w1), ("a negative outcome", w0)],
    }
    if constraint not in laws:
        raise ValueError(f"constraint must be one of {', '.join(laws)}; got {constraint!r}")
    scores, groups = w1.shape
    rows = []
    for whom, w in laws[constraint]:
        mass = w.sum(0)
        if bool((mass == 0).any()):
            group = int((mass == 0).nonzero()[0, 0])
            raise ValueError(
                f"group {group} has nobody with {whom}, so its rate cannot be made equal: "
                "leave the group out or choose another constraint"
            )
        law = w / mass
        # With a tolerance each pair counts: differences from one group would not do.
        for a in range(groups):
            for b in range(a + 1, groups) if tolerance else range(a + 1, min(a + 2, groups)):
                row = torch.zeros(scores, groups, dtype=torch.float64)
                row[:, a], row[:, b] = law[:, a], -law[:, b]
                rows.append(row.flatten())
    objective = (loss * w0 - gain * w1).flatten()
    scale = float(objective.abs().max()) or 1.0
    equalities = torch.stack(rows).numpy() if rows else None
    limits = {"A_eq": equalities, "b_eq": None if equalities is None else [0.0] * len(rows)}
    if rows and tolerance:
        both = torch.stack([*rows, *(-row for row in rows)]).numpy()
        limits = {"A_ub": both, "b_ub": [tolerance] * len(both)}
    solved = linprog((objective / scale).numpy(), bounds=(0, 1), method="highs", **limits)
    if not solved.success:
        raise RuntimeError(f"the linear program was not solved: {solved.message}")
    q = torch.as_tensor(solved.x, dtype=torch.float64).view(scores, groups).clamp(0, 1)
    home = positive.device
    return Acceptance(
        accept=q.to(home),
        gain=-float((objective.view(scores, groups) * q).sum()),
        tpr=((q * w1).sum(0) / w1.sum(0)).to(home),
        fpr=((q * w0).sum(0) / w0.sum(0)).to(home),
        selection=((q * (w1 + w0)).sum(0) / (w1 + w0).sum(0)).to(home),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class DerivedPredictor:
    """Decides from a score and a group, where needed by lot.

    Attributes:
        levels: The scores that it knows, increasing.
        best: Its probabilities, and its rates on the data that it was derived from. On other data
            they hold only about.

    Book: :doc:`/book/trust/fairness`
    """

    levels: Float[Tensor, " scores"]
    best: Acceptance

    def predict_proba(
        self, scores: Float[Tensor, " rows"], groups: Integer[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """Look up the probability of a positive decision.

        Args:
            scores: Scores. One between two that are known is taken as the lower of them, one
                below all as the lowest.
            groups: Number of each row's group.

        Returns:
            Probabilities, float64.

        Raises:
            ValueError: If the shapes differ or a group is unknown.
        """
        check_same_shape("scores", scores, "groups", groups)
        check_ids("groups", groups, self.best.accept.shape[1])
        place = torch.searchsorted(self.levels, scores.to(self.levels.dtype), right=True) - 1
        return self.best.accept[place.clamp(min=0), groups.long()]

    def predict(
        self,
        scores: Float[Tensor, " rows"],
        groups: Integer[Tensor, " rows"],
        *,
        generator: torch.Generator,
    ) -> Integer[Tensor, " rows"]:
        """Decide, by lot where the probability is neither 0 nor 1.

        Args:
            scores: As in :meth:`predict_proba`.
            groups: As in :meth:`predict_proba`.
            generator: The source of randomness.

        Returns:
            Decisions, 0 or 1. The equality holds on average over the lots, not in each draw.

        Raises:
            ValueError: As in :meth:`predict_proba`.
        """
        chance = self.predict_proba(scores, groups)
        lot = rand(len(chance), generator=generator, device=chance.device, dtype=torch.float64)
        return (lot < chance).long()


def derive(
    y: Shaped[Tensor, " rows"],
    scores: Float[Tensor, " rows"],
    groups: Integer[Tensor, " rows"],
    *,
    constraint: Constraint,
    size: int | None = None,
    gain: float = 1.0,
    loss: float = 1.0,
    tolerance: float = 0.0,
) -> DerivedPredictor:
    """Derive the best predictor under a constraint from people's scores, outcomes, and groups.

    Args:
        y: Outcomes, 0 or 1, of any dtype.
        scores: Scores, or decisions 0 and 1 as floating numbers. Each different value is a level,
            so round a continuous score first: levels of one person each would be fitted to that
            person's outcome.
        groups: Number of each row's group, from 0.
        constraint: As in :func:`best_acceptance`.
        size: How many groups there are; by default one more than the largest number.
        gain: As in :func:`best_acceptance`.
        loss: As in :func:`best_acceptance`.
        tolerance: As in :func:`best_acceptance`.

    Returns:
        The predictor.

    Raises:
        ValueError: As in :func:`best_acceptance` and :func:`companion.trust.fairness.cells`.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> y = torch.tensor([1, 0, 1, 0, 1, 0])
        >>> scores = torch.tensor([2.0, 1.0, 2.0, 1.0, 1.0, 2.0])
        >>> made = derive(y, scores, torch.tensor([0, 0, 0, 1, 1, 1]), constraint="none")
        >>> made.best.gain
        2.0
    """
    check_floating("scores", scores)
    check_finite("scores", scores)
    check_same_shape("y", y, "scores", scores)
    check_same_shape("y", y, "groups", groups)
    if y.ndim != 1 or not len(y):
        raise ValueError(f"need a row of outcomes, got shape {tuple(y.shape)}")
    if size is None:
        size = int(groups.max()) + 1
    check_count("size", size)
    check_ids("groups", groups, size)
    check_binary("y", y)
    levels, place = torch.unique(scores, return_inverse=True)
    mass = torch.zeros(2, len(levels), size, dtype=torch.float64, device=y.device)
    one = torch.ones(len(y), dtype=torch.float64, device=y.device)
    mass.index_put_(((y == 0).long(), place, groups.long()), one, accumulate=True)
    best = best_acceptance(
        mass[0], mass[1], constraint=constraint, gain=gain, loss=loss, tolerance=tolerance
    )
    return DerivedPredictor(levels=levels, best=best)
