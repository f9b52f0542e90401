r"""Fairness while learning: weights, constraints, and adversaries."""

from dataclasses import dataclass

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
    check_shape,
    wide,
)
from companion.trust.debiasing._probe import LinearProbe, newton

__all__ = [
    "FairLogistic",
    "decision_covariance",
    "fair_logistic",
    "project_gradient",
    "reweigh",
]


def reweigh(
    labels: Integer[Tensor, " n"],
    groups: Integer[Tensor, " n"],
    *,
    size: int | None = None,
) -> Float[Tensor, " n"]:
    r"""Weigh rows so that the outcome is independent of the group.

    .. math:: w(a,y) = \frac{P(a)\,P(y)}{P(a,y)}

    Args:
        labels: Outcomes, classes from 0.
        groups: Groups from 0.
        size: How many groups there are; by default one more than the largest number.

    Returns:
        A weight for each row, float64; they sum to the number of rows.

    Raises:
        ValueError: If the shapes differ, or a group that occurs never has an outcome that occurs:
            no weight can make up for nobody.

    References:
        Kamiran and Calders 2012, doi:10.1007/s10115-011-0463-8.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> y, a = torch.tensor([0, 0, 0, 1, 0, 1]), torch.tensor([0, 0, 0, 0, 1, 1])
        >>> reweigh(y, a)[[0, 3, 4, 5]]
        tensor([0.8889, 1.3333, 1.3333, 0.6667], dtype=torch.float64)
    """
    check_same_shape("labels", labels, "groups", groups)
    check_shape("labels", labels, (None,))
    check_count("rows", len(labels))
    kinds = int(labels.max()) + 1
    size = int(groups.max()) + 1 if size is None else size
    check_ids("labels", labels, kinds)
    check_ids("groups", groups, size)
    place = groups.long() * kinds + labels.long()
    table = torch.bincount(place, minlength=size * kinds).view(size, kinds).double()
    of_group, of_label = table.sum(1), table.sum(0)
    empty = (table == 0) & (of_group > 0)[:, None] & (of_label > 0)
    if bool(empty.any()):
        a, y = empty.nonzero()[0].tolist()
        raise ValueError(
            f"group {a} never has the outcome {y}: no weight makes up for nobody; merge groups, "
            "or leave this one out"
        )
    weights = torch.outer(of_group, of_label) / (len(labels) * table)
    return weights.flatten()[place]


def decision_covariance(
    scores: Float[Tensor, " n"], groups: Shaped[Tensor, " n"]
) -> Float[Tensor, ""]:
    r"""Compute the covariance of a score and a group.

    .. math:: \frac1n\sum_i (a_i-\bar a)\,s_i

    Args:
        scores: :math:`s_i`, such as signed distances from the boundary of a classifier.
        groups: :math:`a_i`, 0 or 1, or any number.

    Returns:
        The covariance.

    Raises:
        ValueError: If the shapes differ or there is no row.

    References:
        Zafar et al. 2017, arXiv:1507.05259, eq. 2.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> decision_covariance(torch.tensor([1.0, 3.0]), torch.tensor([0, 1]))
        tensor(0.5000)
    """
    check_floating("scores", scores)
    check_same_shape("scores", scores, "groups", groups)
    check_shape("scores", scores, (None,))
    check_count("rows", len(scores))
    held = wide(scores)
    a = groups.to(held)
    return ((a - a.mean()) * held).mean()


@dataclass(frozen=True, eq=False, kw_only=True)
class FairLogistic:
    """A logistic classifier whose score has little covariance with a group.

    Attributes:
        probe: The classifier.
        covariance: What its score has on the data it was fitted to.
        free: What the best classifier without a constraint has.
    """

    probe: LinearProbe
    covariance: float
    free: float


def fair_logistic(
    x: Float[Tensor, "n dim"],
    labels: Integer[Tensor, " n"],
    groups: Shaped[Tensor, " n"],
    *,
    limit: float = float("inf"),
    penalty: float = 1e-3,
    weights: Float[Tensor, " n"] | None = None,
) -> FairLogistic:
    r"""Fit a logistic classifier whose score has a covariance of at most a limit with a group.

    .. math:: \min_\theta\ \mathcal L(\theta) + \frac\lambda2\lVert\theta\rVert^2
        \quad\text{such that}\quad \Big\lvert\frac1n\sum_i(a_i-\bar a)\,x_i\theta\Big\rvert\le c

    The constraint is linear in :math:`\theta` and the loss convex. So either the best classifier
    without it satisfies it, or the best one with it lies at its nearer end: two solutions of
    Newton's method, and no parameters to tune.

    Args:
        x: Features. The bias is added, and not penalized.
        labels: 0 or 1, and both occur.
        groups: :math:`a_i`, numbers.
        limit: :math:`c \ge 0`. With infinity the constraint is off.
        penalty: :math:`\lambda > 0`.
        weights: How much each row counts in the loss (not in the constraint), 0 or more.

    Returns:
        The classifier.

    Raises:
        ValueError: If shapes do not fit, an entry is not finite, labels are not 0 and 1, or the
            limit is below 0.

    Numerics:
        A covariance of 0 does not make shares selected equal: it compares means of a score.

    References:
        Zafar et al. 2017, arXiv:1507.05259, eq. 4.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
        >>> y = torch.tensor([0, 1, 1, 0])
        >>> made = fair_logistic(x, y, y, limit=0.0)
        >>> abs(made.covariance) < 1e-9
        True
    """
    check_floating("x", x)
    check_shape("x", x, (None, None))
    check_shape("labels", labels, (len(x),))
    check_shape("groups", groups, (len(x),))
    check_count("rows", len(x))
    check_finite("x", x)
    check_finite("groups", groups)
    check_ids("labels", labels, 2)
    check_in_range("limit", limit, low=0.0)
    check_in_range("penalty", penalty, low=0.0, open_low=True, open_high=True)
    if not bool((labels == 0).any() and (labels == 1).any()):
        raise ValueError("labels must hold both 0 and 1")
    held, y = x.detach().double(), labels.double()
    if weights is None:
        each = torch.ones_like(y)
    else:
        check_shape("weights", weights, (len(x),))
        check_finite("weights", weights)
        each = weights.double()
        if bool((each < 0).any()) or not bool((each > 0).any()):
            raise ValueError("weights must be 0 or more, and not all 0")
    a = groups.double()
    along = torch.cat([(a - a.mean()) @ held / len(x), a.new_zeros(1)])
    theta = newton(held, y, weights=each, penalty=penalty)
    free = float(along @ theta)
    if abs(free) > limit and bool((along != 0).any()):
        end = limit if free > 0 else -limit
        theta = newton(held, y, weights=each, penalty=penalty, along=along, reach=end)
    made = theta.to(wide(x[:0]).dtype)
    probe = LinearProbe(weight=made[:-1, None], bias=made[-1:])
    return FairLogistic(probe=probe, covariance=float(along @ theta), free=free)


def project_gradient(
    gradient: Float[Tensor, " parameters"],
    adversary: Float[Tensor, " parameters"],
    *,
    strength: float,
) -> Float[Tensor, " parameters"]:
    r"""Take from a gradient what would help the adversary, and add what hurts it.

    .. math:: g - \frac{g\cdot h}{\lVert h\rVert^2}\,h - \alpha h

    Both are gradients of losses in all parameters of the predictor, as one vector.

    Args:
        gradient: :math:`g`, of the predictor's own loss.
        adversary: :math:`h`, of the adversary's loss.
        strength: :math:`\alpha`, 0 or more.

    Returns:
        The direction to descend. Its product with h is :math:`-\alpha\lVert h\rVert^2`, so to
        first order a step does not lower the adversary's loss. Where h is 0, that is g.

    Raises:
        ValueError: If the shapes differ, or the strength is below 0.

    References:
        Zhang, Lemoine and Mitchell 2018, arXiv:1801.07593, eq. 1.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> project_gradient(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0]), strength=0.5)
        tensor([-1.,  2.])
    """
    check_floating("gradient", gradient)
    check_same_shape("gradient", gradient, "adversary", adversary)
    check_shape("gradient", gradient, (None,))
    check_in_range("strength", strength, low=0.0, open_high=True)
    check_count("parameters", len(gradient))
    g, h = wide(gradient), wide(adversary)
    top = h.abs().amax()
    unit = h / torch.where(top > 0, top, 1.0)  # no square overflows or vanishes
    unit = unit / torch.where(top > 0, unit.norm(), 1.0)
    return (g - (g @ unit) * unit - strength * h).to(gradient.dtype)
