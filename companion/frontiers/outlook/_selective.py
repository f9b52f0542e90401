r"""Answering only where one is sure: risk and coverage, and who takes the rest."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import can_read, check_floating, check_same_shape

__all__ = ["RiskCoverage", "deferral_curve", "risk_coverage"]


class RiskCoverage(NamedTuple):
    """What is risked at each coverage.

    Attributes:
        coverage: Share of items answered, from 1/n to 1.
        risk: Mean loss of those.
        area: Mean of the risks: the area under the curve (AURC).
        best: The same if the confidence had sorted the items by their loss.
    """

    coverage: Float[Tensor, " items"]
    risk: Float[Tensor, " items"]
    area: Float[Tensor, ""]
    best: Float[Tensor, ""]


def _ordered(confidence: Tensor, *losses: Tensor) -> list[Tensor]:
    """Losses from the surest item on; items of one confidence share their mean loss."""
    check_floating("confidence", confidence)
    if confidence.ndim != 1 or len(confidence) == 0:
        raise ValueError(f"confidence must have one value an item, got {tuple(confidence.shape)}")
    for loss in losses:
        check_same_shape("a loss", loss, "confidence", confidence)
    if can_read(confidence) and bool(confidence.isnan().any()):
        raise ValueError("confidence holds NaN, which has no place in an order")
    order = confidence.argsort(descending=True, stable=True)
    sure = confidence[order]
    first = torch.ones_like(sure, dtype=torch.bool)
    first[1:] = sure[1:] != sure[:-1]
    group = first.long().cumsum(0) - 1
    made = []
    for loss in losses:
        sorted_loss = loss[order].double()
        total = torch.zeros_like(sorted_loss)
        count = total.scatter_add(0, group, torch.ones_like(sorted_loss))
        total = total.scatter_add(0, group, sorted_loss)
        made.append((total / count.clamp_min(1))[group])
    return made


def risk_coverage(
    confidence: Float[Tensor, " items"], loss: Float[Tensor, " items"]
) -> RiskCoverage:
    r"""Compute the risk of answering the :math:`k` items of which one is surest, for all k.

    .. math:: r_k = \frac1k \sum_{i=1}^k \ell_{(i)}, \qquad
        \mathrm{AURC} = \frac1n \sum_{k=1}^n r_k

    Args:
        confidence: Higher is surer. Only the order matters.
        loss: :math:`\ell` of each item, such as 1 for an error.

    Returns:
        The curve and its area, float64. Items of equal confidence enter in an order of chance, on
        average: what the order of the file is does not matter.

    Raises:
        ValueError: If the shapes differ or a confidence is NaN.

    References:
        El-Yaniv and Wiener 2010, "On the Foundations of Noise-free Selective Classification",
        JMLR 11; the area: Geifman, Uziel, and El-Yaniv 2019, arXiv:1805.08206.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> made = risk_coverage(torch.tensor([0.9, 0.8, 0.6]), torch.tensor([0.0, 0.0, 1.0]))
        >>> made.risk
        tensor([0.0000, 0.0000, 0.3333], dtype=torch.float64)
    """
    (ordered,) = _ordered(confidence, loss)
    k = torch.arange(1, len(ordered) + 1, dtype=torch.float64, device=ordered.device)
    risk = ordered.cumsum(0) / k
    best = (loss.double().sort().values.cumsum(0) / k).mean()
    return RiskCoverage(k / len(ordered), risk, risk.mean(), best)


def deferral_curve(
    confidence: Float[Tensor, " items"],
    loss: Float[Tensor, " items"],
    other_loss: Float[Tensor, " items"],
) -> Float[Tensor, " items_and_one"]:
    r"""Compute the loss of a team: the model takes what it is surest of, the other the rest.

    .. math:: t_k = \frac1n \Bigl(\sum_{i \le k} \ell_{(i)} + \sum_{i > k} h_{(i)}\Bigr)

    Args:
        confidence: Of the model, higher is surer.
        loss: :math:`\ell` of the model on each item.
        other_loss: :math:`h` of a person or another model on it.

    Returns:
        Team losses for :math:`k = 0, \dots, n` items taken by the model, float64. The first is the
        other's alone, the last the model's. Below both, the two complement each other.

    Raises:
        ValueError: If the shapes differ or a confidence is NaN.

    References:
        Madras, Pitassi, and Zemel 2018, arXiv:1711.06664.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> sure = torch.tensor([0.9, 0.2])
        >>> deferral_curve(sure, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
        tensor([0.5000, 0.0000, 0.5000], dtype=torch.float64)
    """
    ours, theirs = _ordered(confidence, loss, other_loss)
    start = torch.zeros(1, dtype=torch.float64, device=ours.device)
    gain = torch.cat([start, (ours - theirs).cumsum(0)])
    return (theirs.sum() + gain) / len(ours)
