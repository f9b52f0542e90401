r"""One number for several groups: differences and ratios of their rates.

A group whose rate cannot be estimated makes the number NaN. To leave it out is a decision, and
the caller's.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import check_in_range, check_same_shape
from companion.trust.fairness._cells import Rates

__all__ = [
    "Disparities",
    "differential_fairness",
    "disparities",
    "gap",
    "pairwise_differences",
    "ratio_of_extremes",
]


def gap(values: Float[Tensor, "*batch groups"]) -> Float[Tensor, "*batch"]:
    r"""Compute the largest difference between two groups, :math:`\max_a v_a - \min_a v_a`.

    It is never negative, so its estimate is too large on average, the more so the smaller the
    groups (see :func:`companion.trust.fairness.expected_gap`).

    Args:
        values: A rate of each group.

    Returns:
        The gap, 0 or more; NaN if a rate is.

    Raises:
        ValueError: If there are less than two groups.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> gap(torch.tensor([0.5, 0.25, 0.375]))
        tensor(0.2500)
    """
    _check_groups(values)
    return values.amax(-1) - values.amin(-1)


def ratio_of_extremes(values: Float[Tensor, "*batch groups"]) -> Float[Tensor, "*batch"]:
    r"""Compute the smallest rate over the largest, :math:`\min_a v_a/\max_a v_a`.

    Of the rates of selection it is the number that the four-fifths rule compares with 0.8.

    Args:
        values: A rate of each group, 0 or more.

    Returns:
        From 0 to 1; 1 is equality. NaN if all rates are 0 or one is NaN.

    Raises:
        ValueError: If there are less than two groups.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> ratio_of_extremes(torch.tensor([0.5, 0.25, 0.375]))
        tensor(0.5000)
    """
    _check_groups(values)
    return values.amin(-1) / values.amax(-1)


def pairwise_differences(
    values: Float[Tensor, "*batch groups"],
) -> Float[Tensor, "*batch groups groups"]:
    """Compute the difference of each group and each other one, with its sign.

    Args:
        values: A rate of each group.

    Returns:
        Entry (a, b) is the rate of a minus that of b.

    Raises:
        ValueError: If there are less than two groups.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> pairwise_differences(torch.tensor([0.5, 0.25]))
        tensor([[ 0.0000,  0.2500],
                [-0.2500,  0.0000]])
    """
    _check_groups(values)
    return values.unsqueeze(-1) - values.unsqueeze(-2)


def _check_groups(values: Tensor) -> None:
    if values.ndim < 1 or values.shape[-1] < 2:
        raise ValueError(f"need two groups or more, got values of shape {tuple(values.shape)}")


class Disparities(NamedTuple):
    """How far groups are apart; shape ``(...)`` of each field.

    Attributes:
        dp_difference: Gap of the rates of selection.
        dp_ratio: Smallest over largest rate of selection.
        eopp_difference: Gap of the true-positive rates.
        eo_worst: The larger of the gaps of true- and of false-positive rates.
        eo_mean: The mean of those two gaps.
        ppv_difference: Gap of the precisions.
        npv_difference: Gap of the negative predictive values.
        accuracy_difference: Gap of the accuracies.
    """

    dp_difference: Float[Tensor, "..."]
    dp_ratio: Float[Tensor, "..."]
    eopp_difference: Float[Tensor, "..."]
    eo_worst: Float[Tensor, "..."]
    eo_mean: Float[Tensor, "..."]
    ppv_difference: Float[Tensor, "..."]
    npv_difference: Float[Tensor, "..."]
    accuracy_difference: Float[Tensor, "..."]


def disparities(of: Rates) -> Disparities:
    r"""Compute the usual gaps between groups.

    What others call them, for two groups a and b:

    * fairlearn: ``demographic_parity_difference``, ``demographic_parity_ratio``,
      ``equal_opportunity_difference``; ``equalized_odds_difference`` with ``agg="worst_case"`` is
      ``eo_worst``, with ``agg="mean"`` it is ``eo_mean``. Where a group has no positive outcome,
      fairlearn takes its true-positive rate to be 0, and this function says NaN.
    * aif360: ``statistical_parity_difference`` and ``disparate_impact`` are the signed difference
      and the ratio of the unprivileged to the privileged group, so the latter may exceed 1.
      ``average_odds_difference`` is the *signed* mean of the two differences, which may be 0 where
      both differ; ``average_abs_odds_difference`` is ``eo_mean``.

    Args:
        of: As :func:`companion.trust.fairness.rates` gives them.

    Returns:
        Eight numbers, or as many for each resample. NaN where a group's rate is not estimable.

    Raises:
        ValueError: If there are less than two groups.

    References:
        Hardt, Price and Srebro 2016, arXiv:1610.02413, definitions 2.1 and 2.2 for equalized odds
        and equal opportunity.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> from companion.trust.fairness import Cells, rates
        >>> counts = Cells(*torch.tensor([[6, 5], [1, 2], [2, 3], [3, 2]]))
        >>> round(float(disparities(rates(counts)).eo_worst), 3)
        0.25
    """
    tpr, fpr = gap(of.tpr), gap(of.fpr)
    return Disparities(
        dp_difference=gap(of.selection),
        dp_ratio=ratio_of_extremes(of.selection),
        eopp_difference=tpr,
        eo_worst=torch.maximum(tpr, fpr),
        eo_mean=(tpr + fpr) / 2,
        ppv_difference=gap(of.ppv),
        npv_difference=gap(of.npv),
        accuracy_difference=gap(of.accuracy),
    )


def differential_fairness(
    selected: Integer[Tensor, "*batch groups"],
    trials: Integer[Tensor, "*batch groups"],
    *,
    alpha: float = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""Compute :math:`\epsilon` of differential fairness, the largest log-ratio of any decision.

    .. math:: \epsilon = \max_{a, b} \max_{d \in \{0, 1\}}
        \Big| \log \frac{\hat P(d \mid a)}{\hat P(d \mid b)} \Big|,
        \qquad \hat P(1 \mid a) = \frac{s_a + \alpha}{n_a + 2 \alpha}

    Args:
        selected: Number :math:`s_a` of positive decisions in each group.
        trials: Number :math:`n_a` of people in each group. The groups are usually intersections.
        alpha: Added to each count, 0 or more. With 0, a group that is always or never selected
            makes :math:`\epsilon` infinite.

    Returns:
        0 or more, in nats.

    Raises:
        ValueError: If the shapes differ, there are less than two groups, or alpha is below 0.

    References:
        Foulds et al. 2020, arXiv:1807.08362: the definition, and smoothing by a Dirichlet prior.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> differential_fairness(torch.tensor([6, 3]), torch.tensor([12, 12]), alpha=0.0)
        tensor(0.6931, dtype=torch.float64)
    """
    check_same_shape("selected", selected, "trials", trials)
    check_in_range("alpha", alpha, low=0.0)
    _check_groups(selected)
    yes = (selected.double() + alpha) / (trials.double() + 2 * alpha)
    logs = torch.stack([yes, 1 - yes]).log()
    return (logs.amax(-1) - logs.amin(-1)).amax(0)
