r"""Calibration group by group, and how large its error looks by chance alone."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor

from companion.core import check_count, check_ids, check_same_shape
from companion.foundations.cross_entropy import calibration_bins
from companion.trust.fairness._cells import check_binary

__all__ = ["GroupCalibration", "binomial_deviation", "calibration_by_group"]


class GroupCalibration(NamedTuple):
    """The data of a reliability diagram with a curve for each group.

    Attributes:
        confidence: Mean score in each bin; NaN in an empty one.
        frequency: Share of positive outcomes in each bin; NaN in an empty one.
        people: Number of people in each bin.
        ece: Expected calibration error of each group, as it is estimated.
        floor: What that estimate would be on average if the group's scores were calibrated.
    """

    confidence: Float[Tensor, "groups bins"]
    frequency: Float[Tensor, "groups bins"]
    people: Integer[Tensor, "groups bins"]
    ece: Float[Tensor, " groups"]
    floor: Float[Tensor, " groups"]


def calibration_by_group(
    y: Shaped[Tensor, " rows"],
    scores: Float[Tensor, " rows"],
    groups: Integer[Tensor, " rows"],
    *,
    bins: int = 10,
    size: int | None = None,
) -> GroupCalibration:
    r"""Compare scores, read as probabilities, with the frequency of positive outcomes.

    .. math:: \widehat{\mathrm{ECE}}_a
        = \sum_b \frac{n_{ab}}{n_a} \lvert \hat f_{ab} - \bar s_{ab} \rvert

    over bins of equal width. It is above 0 for calibrated scores too, by the mean deviation of a
    binomial frequency in each bin (:func:`binomial_deviation` at the bin's mean score), and more so
    in a small group: this is the floor.

    Args:
        y: Outcomes, 0 or 1, of any dtype.
        scores: Probabilities of a positive outcome, 0 to 1.
        groups: Number of each row's group, from 0.
        bins: Number of bins of equal width.
        size: How many groups there are; by default one more than the largest number.

    Returns:
        Bins and errors of each group. A group of nobody has NaN errors.

    Raises:
        ValueError: If shapes differ, there is no row, or a value is out of its domain.

    Numerics:
        Where scores differ within a bin, the number of positives varies a little less than a
        binomial one, and the floor is a little too high.

    References:
        Kleinberg, Mullainathan and Raghavan 2017, arXiv:1609.05807, condition A: calibration
        within groups. For the bias of the estimate, Kumar, Liang and Ma 2019, arXiv:1909.10155.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> y, scores = torch.tensor([1, 0, 1, 0]), torch.full((4,), 0.5)
        >>> made = calibration_by_group(y, scores, torch.tensor([0, 0, 1, 1]), bins=2)
        >>> made.ece, made.floor
        (tensor([0., 0.], dtype=torch.float64), tensor([0.2500, 0.2500], dtype=torch.float64))
    """
    check_same_shape("y", y, "scores", scores)
    check_same_shape("y", y, "groups", groups)
    if y.ndim != 1 or not len(y):
        raise ValueError(f"need a row of outcomes, got shape {tuple(y.shape)}")
    if size is None:
        size = int(groups.max()) + 1
    check_count("size", size)
    check_ids("groups", groups, size)
    check_binary("y", y)
    rows = []
    for group in range(size):
        here = groups == group
        if not bool(here.any()):
            empty = torch.full((bins,), float("nan"), dtype=torch.float64, device=y.device)
            rows.append((empty, empty, torch.zeros(bins, dtype=torch.long, device=y.device)))
            continue
        made = calibration_bins(scores[here].double(), y[here] == 1, bins=bins)
        rows.append((made.confidence, made.accuracy, made.count))
    confidence, frequency, count = (torch.stack(column) for column in zip(*rows, strict=True))
    weight = count.double() / count.sum(1, keepdim=True)
    used = count > 0
    off = torch.where(used, (frequency - confidence).abs(), 0.0)
    chance = binomial_deviation(
        count.clamp(min=1), torch.where(used, confidence, 0.0).clamp(0.0, 1.0)
    )
    return GroupCalibration(
        confidence, frequency, count, (weight * off).sum(1), (weight * chance).sum(1)
    )


def binomial_deviation(
    trials: Integer[Tensor, "*batch"], p: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    r"""Compute the mean deviation :math:`\mathbb E\lvert X/n - p \rvert` of a binomial frequency.

    By de Moivre it is :math:`2 (1 - p) \binom{n - 1}{k - 1} p^k (1 - p)^{n - k}` with
    :math:`k = \lfloor n p \rfloor + 1`, about :math:`\sqrt{2 p (1 - p)/(\pi n)}`.

    Args:
        trials: Number n of trials, 1 or more.
        p: Probability of success, 0 to 1.

    Returns:
        The deviation, float64.

    Raises:
        ValueError: If the shapes differ.

    References:
        de Moivre 1730; Diaconis and Zabell 1991, doi:10.1214/ss/1177011699.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> binomial_deviation(torch.tensor(2), torch.tensor(0.5))
        tensor(0.2500, dtype=torch.float64)
    """
    check_same_shape("trials", trials, "p", p)
    n, q = trials.double(), p.double()
    k = ((n * q).floor() + 1).clamp(max=n)
    log_choose = torch.lgamma(n) - torch.lgamma(k) - torch.lgamma(n - k + 1)
    logs = log_choose + torch.xlogy(k, q) + torch.xlogy(n - k + 1, 1 - q)
    return torch.where((q > 0) & (q < 1), 2 * logs.exp(), torch.zeros_like(q))
