r"""What cannot hold together: the identities behind the impossibility theorems."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor

from companion.core import can_read, check_count, check_floating, check_ids, check_same_shape
from companion.trust.fairness._cells import check_binary

__all__ = ["ClassMeans", "chouldechova_fpr", "class_means", "odds_ppv"]


def _check_shares(**values: Tensor) -> None:
    (first, value), *others = values.items()
    for name, other in others:
        check_same_shape(first, value, name, other)
    for name, share in values.items():
        check_floating(name, share)
        if can_read(share) and bool(((share < 0) | (share > 1)).any()):
            raise ValueError(f"{name} must be shares from 0 to 1: divide percents by 100")


def chouldechova_fpr(
    base_rate: Float[Tensor, "*batch"],
    ppv: Float[Tensor, "*batch"],
    fnr: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch"]:
    r"""Compute the false-positive rate that the other three rates leave.

    .. math:: \mathrm{FPR} = \frac{p}{1 - p} \cdot \frac{1 - \mathrm{PPV}}{\mathrm{PPV}}
        \cdot (1 - \mathrm{FNR})

    Args:
        base_rate: Share :math:`p` of positive outcomes, in (0, 1).
        ppv: Precision, in (0, 1].
        fnr: False-negative rate.

    Returns:
        The false-positive rate. A value above 1 says that no decisions have these three rates.

    Raises:
        ValueError: If the shapes differ or a value lies outside 0 to 1.

    References:
        Chouldechova 2017, arXiv:1703.00056.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> one = torch.tensor(0.5)
        >>> chouldechova_fpr(one, torch.tensor(0.8), torch.tensor(0.2))
        tensor(0.2000)
    """
    _check_shares(base_rate=base_rate, ppv=ppv, fnr=fnr)
    return base_rate / (1 - base_rate) * ((1 - ppv) / ppv) * (1 - fnr)


def odds_ppv(
    base_rate: Float[Tensor, "*batch"],
    tpr: Float[Tensor, "*batch"],
    fpr: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch"]:
    r"""Compute the precision of a test in a population: Bayes' rule in odds.

    .. math:: \frac{\mathrm{PPV}}{1 - \mathrm{PPV}}
        = \frac{p}{1 - p} \cdot \frac{\mathrm{TPR}}{\mathrm{FPR}}

    Args:
        base_rate: Share :math:`p` of positive outcomes.
        tpr: True-positive rate of the test.
        fpr: False-positive rate of the test.

    Returns:
        The precision; NaN where nobody is decided positive.

    Raises:
        ValueError: If the shapes differ or a value lies outside 0 to 1.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> odds_ppv(torch.tensor(0.5), torch.tensor(0.75), torch.tensor(0.25))
        tensor(0.7500)
    """
    _check_shares(base_rate=base_rate, tpr=tpr, fpr=fpr)
    right = base_rate * tpr
    return right / (right + (1 - base_rate) * fpr)


class ClassMeans(NamedTuple):
    """Mean scores of each group; NaN where it has nobody of that outcome.

    Attributes:
        positive: Mean score of those with a positive outcome.
        negative: Mean score of those with a negative outcome.
        everyone: Mean score.
        base_rate: Share of positive outcomes.
    """

    positive: Float[Tensor, " groups"]
    negative: Float[Tensor, " groups"]
    everyone: Float[Tensor, " groups"]
    base_rate: Float[Tensor, " groups"]


def class_means(
    y: Shaped[Tensor, " rows"],
    scores: Float[Tensor, " rows"],
    groups: Integer[Tensor, " rows"],
    *,
    size: int | None = None,
) -> ClassMeans:
    r"""Compute the mean score of those with a positive, and with a negative outcome, by group.

    They are balanced if they are equal in all groups. With :math:`p` the base rate,
    :math:`p\,x_+ + (1 - p)\,x_-` is the mean score, and that is :math:`p` if the scores are
    calibrated in the group.

    Args:
        y: Outcomes, 0 or 1, of any dtype.
        scores: Scores.
        groups: Number of each row's group, from 0.
        size: How many groups there are; by default one more than the largest number.

    Returns:
        Means and base rates, float64.

    Raises:
        ValueError: As in :func:`companion.trust.fairness.cells`.

    References:
        Kleinberg, Mullainathan and Raghavan 2017, arXiv:1609.05807, conditions B and C.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> y, scores = torch.tensor([1, 0, 1, 0]), torch.tensor([0.5, 0.25, 0.75, 0.0])
        >>> class_means(y, scores, torch.tensor([0, 0, 1, 1])).positive
        tensor([0.5000, 0.7500], dtype=torch.float64)
    """
    check_floating("scores", scores)
    check_same_shape("y", y, "scores", scores)
    check_same_shape("y", y, "groups", groups)
    if y.ndim != 1 or not len(y):
        raise ValueError(f"need a row of outcomes, got shape {tuple(y.shape)}")
    if size is None:
        size = int(groups.max()) + 1
    check_count("size", size)
    check_ids("groups", groups, size)
    check_binary("y", y)
    index = (y == 0).long() * size + groups.long()
    zeros = torch.zeros(2 * size, dtype=torch.float64, device=y.device)
    counts = zeros.scatter_add(0, index, torch.ones_like(scores, dtype=torch.float64)).view(2, size)
    sums = zeros.scatter_add(0, index, scores.double()).view(2, size)
    means = sums / counts
    everyone = counts.sum(0)
    return ClassMeans(means[0], means[1], sums.sum(0) / everyone, counts[0] / everyone)
