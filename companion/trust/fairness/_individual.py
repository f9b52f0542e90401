r"""People and not groups: like treatment of like people, inequality, and counterfactuals."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor

from companion.core import (
    can_read,
    check_count,
    check_floating,
    check_ids,
    check_in_range,
    check_same_shape,
    check_shape,
)

__all__ = [
    "EntropySplit",
    "LipschitzReport",
    "benefits",
    "entropy_split",
    "generalized_entropy",
    "linear_counterfactual",
    "lipschitz",
]


class LipschitzReport(NamedTuple):
    """How steep a score is between people.

    Attributes:
        constant: The largest ratio of a difference in score to a distance.
        violations: Share of the pairs in which the difference exceeds the distance.
    """

    constant: Float[Tensor, ""]
    violations: Float[Tensor, ""]


def lipschitz(
    scores: Float[Tensor, " people"], distances: Float[Tensor, "people people"]
) -> LipschitzReport:
    r"""Check :math:`\lvert f(x) - f(x') \rvert \le d(x, x')` on all pairs of people.

    Args:
        scores: :math:`f(x)`, the probability of a positive decision: for two outcomes the
            difference is the total variation of the two decisions.
        distances: :math:`d(x, x')`, how different two people are *for this decision*. The choice
            of d is where the ethics are; no data give it.

    Returns:
        The largest ratio, and the share of pairs above 1. Two people at distance 0 with different
        scores make the ratio infinite.

    Raises:
        ValueError: If the shapes do not fit, or there are less than two people.

    Numerics:
        All pairs at once: memory grows with the square of the number of people.

    References:
        Dwork et al. 2012, arXiv:1104.3913, definition 2.1.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> scores = torch.tensor([0.0, 0.5, 1.0])
        >>> lipschitz(scores, torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.25], [1.0, 0.25, 0.0]]))
        LipschitzReport(constant=tensor(2.), violations=tensor(0.3333))
    """
    check_floating("scores", scores)
    check_shape("distances", distances, (len(scores), len(scores)))
    if len(scores) < 2:
        raise ValueError(f"need two people or more, got {len(scores)}")
    apart = (scores.unsqueeze(0) - scores.unsqueeze(1)).abs()
    upper = torch.ones_like(distances, dtype=torch.bool).triu(1)
    ratio = torch.where(apart > 0, apart / distances, torch.zeros_like(apart))
    ratio = torch.where(upper, ratio, torch.zeros_like(ratio))
    pairs = len(scores) * (len(scores) - 1) / 2
    return LipschitzReport(ratio.amax(), (ratio > 1).to(scores.dtype).sum() / pairs)


def benefits(
    y: Shaped[Tensor, " rows"], predictions: Shaped[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    r"""Say what each person got against what was due: :math:`b = \hat y - y + 1`.

    Args:
        y: Outcomes, 0 or 1.
        predictions: Decisions, 0 or 1, where 1 is the good one.

    Returns:
        0 for a false negative, 1 for a right decision, 2 for a false positive; float64.

    Raises:
        ValueError: If the shapes differ.

    References:
        Speicher et al. 2018, arXiv:1807.00787.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> benefits(torch.tensor([1, 1, 0]), torch.tensor([0, 1, 1]))
        tensor([0., 1., 2.], dtype=torch.float64)
    """
    check_same_shape("y", y, "predictions", predictions)
    return predictions.double() - y.double() + 1


def generalized_entropy(
    values: Float[Tensor, "*batch people"], *, alpha: float = 1.0
) -> Float[Tensor, "*batch"]:
    r"""Compute the generalized-entropy index of inequality.

    With the mean :math:`\mu` and :math:`r_i = b_i/\mu`,

    .. math:: \mathcal E_\alpha = \frac1{n \alpha (\alpha - 1)} \sum_i \big( r_i^\alpha - 1 \big),
        \qquad \mathcal E_1 = \frac1n \sum_i r_i \log r_i

    with :math:`0 \log 0 = 0`. Theil's index is that of :math:`\alpha = 1`; that of
    :math:`\alpha = 2` is half the squared coefficient of variation.

    Args:
        values: Benefits, 0 or more, with a mean above 0.
        alpha: Above 0. The larger it is, the more the large benefits count.

    Returns:
        0 if all benefits are equal, and above 0 otherwise. NaN if the mean is 0.

    Raises:
        ValueError: If alpha is not above 0, or there is nobody.

    References:
        Speicher et al. 2018, arXiv:1807.00787, eq. 1; Shorrocks 1980, doi:10.2307/1913126.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> generalized_entropy(torch.tensor([1.0, 1.0, 0.0, 0.0]))
        tensor(0.6931)
    """
    check_floating("values", values)
    check_in_range("alpha", alpha, low=0.0, open_low=True)
    if values.ndim < 1 or values.shape[-1] < 1:
        raise ValueError(f"need at least one person, got shape {tuple(values.shape)}")
    share = values / values.mean(-1, keepdim=True)
    if alpha == 1.0:
        return torch.xlogy(share, share).mean(-1)
    return (share**alpha - 1).mean(-1) / (alpha * (alpha - 1))


class EntropySplit(NamedTuple):
    """Inequality in two parts that add up to it.

    Attributes:
        within: Inequality inside the groups, weighted.
        between: What is left if everybody got the mean of their group.
    """

    within: Float[Tensor, ""]
    between: Float[Tensor, ""]


def entropy_split(
    values: Float[Tensor, " people"], groups: Integer[Tensor, " people"], *, alpha: float = 1.0
) -> EntropySplit:
    r"""Split the index of inequality into that within and that between groups, exactly.

    .. math:: \mathcal E_\alpha = \sum_a \frac{n_a}n \Big( \frac{\mu_a}\mu \Big)^\alpha
        \mathcal E_\alpha^{(a)} + \mathcal E_\alpha(\mu_{a(1)}, \dots, \mu_{a(n)})

    Args:
        values: Benefits, 0 or more, with a mean above 0.
        groups: Number of each person's group, from 0.
        alpha: As in :func:`generalized_entropy`.

    Returns:
        Both parts.

    Raises:
        ValueError: As in :func:`generalized_entropy`, or if the shapes differ.

    References:
        Speicher et al. 2018, arXiv:1807.00787, section 3.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> entropy_split(torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([0, 0, 1, 1])).within
        tensor(0.)
    """
    check_floating("values", values)
    check_same_shape("values", values, "groups", groups)
    check_in_range("alpha", alpha, low=0.0, open_low=True)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"need a row of benefits, got shape {tuple(values.shape)}")
    size = int(groups.max()) + 1
    check_ids("groups", groups, size)
    index = groups.long()
    zeros = torch.zeros(size, dtype=values.dtype, device=values.device)
    count = zeros.scatter_add(0, index, torch.ones_like(values)).clamp(min=1)
    means = zeros.scatter_add(0, index, values) / count
    own = means[index]
    share = torch.where(own > 0, values / torch.where(own > 0, own, 1.0), torch.ones_like(values))
    if alpha == 1.0:
        each = torch.xlogy(share, share)
    else:
        each = (share**alpha - 1) / (alpha * (alpha - 1))
    weight = (own / values.mean()) ** alpha
    return EntropySplit((weight * each).mean(), generalized_entropy(own, alpha=alpha))


def linear_counterfactual(
    x: Float[Tensor, "*batch variables"],
    weights: Float[Tensor, "variables variables"],
    index: int,
    value: float,
) -> Float[Tensor, "*batch variables"]:
    r"""Compute what somebody would have been, had one variable been another.

    In the linear model :math:`x = x W + u` with row vectors, where variable j depends on those
    before it alone (:math:`W` is strictly upper triangular), there are three steps. *Abduction*:
    :math:`u = x - x W` is this person's noise. *Action*: the variable is set to the value, and its
    own equation dropped. *Prediction*: the later variables follow, with the same noise.

    Args:
        x: Variables of each person.
        weights: :math:`W`, entry (i, j) the effect of variable i on variable j.
        index: Which variable is set.
        value: What it is set to.

    Returns:
        The counterfactual variables. Those before the one that is set stay, and so do later ones
        that do not depend on it.

    Raises:
        ValueError: If the shapes do not fit, the weights are not strictly upper triangular, or
            the index is out of range.

    References:
        Pearl 2009, doi:10.1017/CBO9780511803161, section 7.1; Kusner et al. 2017,
        arXiv:1703.06856, who define counterfactual fairness by it.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> weights = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
        >>> linear_counterfactual(torch.tensor([1.0, 5.0]), weights, 0, 0.0)
        tensor([0., 3.])
    """
    check_floating("x", x)
    size = x.shape[-1] if x.ndim else 0
    check_shape("weights", weights, (size, size))
    check_count("index", index, low=0, high=size - 1)
    if can_read(weights) and bool((weights != weights.triu(1)).any()):
        raise ValueError(
            "weights must be strictly upper triangular: put causes before what they cause"
        )
    # A change of the variable spreads along all paths: d = e + d W off the set variable.
    effect = torch.zeros(size, dtype=x.dtype, device=x.device)
    effect[index] = 1.0
    cut = weights.to(x.dtype).clone()
    cut[:, index] = 0.0
    eye = torch.eye(size, dtype=x.dtype, device=x.device)
    total: Tensor = torch.linalg.solve((eye - cut).T, effect)
    moved: Tensor = x + (value - x[..., index, None]) * total
    return moved
