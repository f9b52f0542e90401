"""Whether a probability means what it says, and the one number that often mends it."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import check_finite, check_floating, check_same_shape, wide
from companion.foundations.cross_entropy._loss import check_targets
from companion.foundations.cross_entropy._softmax import softmax

__all__ = [
    "CalibrationBins",
    "calibration_bins",
    "expected_calibration_error",
    "fit_temperature",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class CalibrationBins:
    """Predictions grouped by confidence, the data of a reliability diagram.

    Attributes:
        confidence: Mean confidence in each bin, in [0, 1]; NaN in an empty bin.
        accuracy: Fraction of right predictions in each bin; NaN in an empty bin.
        count: Number of predictions in each bin, int64.
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor


def calibration_bins(
    confidence: Float[Tensor, " n"], correct: Bool[Tensor, " n"], *, bins: int = 15
) -> CalibrationBins:
    r"""Group predictions by confidence into bins of equal width.

    Bin :math:`b` of :math:`B` holds the confidences in :math:`((b - 1)/B, b/B]`; a confidence of
    exactly 0 goes to the first.

    Args:
        confidence: Probability that the model gave to its prediction, in [0, 1].
        correct: Whether the prediction was right.
        bins: Number :math:`B` of bins, 1 or more.

    Returns:
        Mean confidence, accuracy and count of each bin, each of shape ``(bins,)``.

    Raises:
        ValueError: If shapes differ, there is no prediction, ``bins`` is below 1, or (checked on
            the CPU) a confidence lies outside [0, 1].

    Numerics:
        :math:`O(n \log B)`; no loop over predictions or bins. Sums are taken in float32 or
        better.

    References:
        C. Guo et al., arXiv:1706.04599, section 2, with the same bins.

    Book: :doc:`/book/foundations/cross_entropy`

    Example:
        >>> calibration_bins(torch.tensor([0.6, 0.9, 0.8]), torch.tensor([True, True, False]),
        ...                  bins=2).accuracy
        tensor([   nan, 0.6667])
    """
    check_floating("confidence", confidence)
    check_same_shape("confidence", confidence, "correct", correct)
    if confidence.ndim != 1 or not len(confidence):
        raise ValueError(f"need a row of predictions, got shape {tuple(confidence.shape)}")
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, got {bins}")
    c = wide(confidence)
    if c.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = float(c.detach().min()), float(c.detach().max())
        # Rounding may take a probability this far above 1.
        if not (low >= 0 and high <= 1 + 1e-5):
            raise ValueError(f"confidence must lie in [0, 1], got values from {low} to {high}")
    edges = torch.arange(1, bins, device=c.device, dtype=c.dtype) / bins
    index = torch.bucketize(c, edges)
    zeros = torch.zeros(bins, device=c.device, dtype=c.dtype)
    count = torch.zeros(bins, device=c.device, dtype=torch.int64)
    count = count.index_add(0, index, torch.ones_like(index))
    return CalibrationBins(
        confidence=zeros.index_add(0, index, c) / count,
        accuracy=zeros.index_add(0, index, correct.to(c.dtype)) / count,
        count=count,
    )


def expected_calibration_error(
    confidence: Float[Tensor, " n"], correct: Bool[Tensor, " n"], *, bins: int = 15
) -> Float[Tensor, ""]:
    r"""Return the binned estimate of the expected calibration error.

    .. math:: \widehat{\mathrm{ECE}} = \sum_{b=1}^{B} \frac{n_b}{n}
        \left| \mathrm{acc}_b - \mathrm{conf}_b \right|

    Args:
        confidence: Probability that the model gave to its prediction, in [0, 1].
        correct: Whether the prediction was right.
        bins: Number :math:`B` of bins of equal width, 1 or more.

    Returns:
        A fraction in [0, 1]; multiply by 100 for percentage points. This is an estimator: with
        few predictions in a bin it is above 0 even for a perfectly calibrated model, and it
        depends on the number of bins.

    Raises:
        ValueError: As in :func:`calibration_bins`.

    References:
        M. P. Naeini et al., doi:10.1609/aaai.v29i1.9602; C. Guo et al., arXiv:1706.04599, eq. 3.

    Book: :doc:`/book/foundations/cross_entropy`

    Example:
        >>> expected_calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([True, False]))
        tensor(0.2500)
    """
    made = calibration_bins(confidence, correct, bins=bins)
    gap = (made.accuracy - made.confidence).abs()
    gap = torch.where(made.count > 0, gap, torch.zeros_like(gap))
    return (gap * made.count).sum() / made.count.sum()


def fit_temperature(
    logits: Float[Tensor, "n classes"], targets: Integer[Tensor, " n"], *, tol: float = 1e-10
) -> float:
    r"""Fit the temperature that minimizes the cross-entropy of held-out predictions.

    .. math:: T = 1/\beta, \qquad \beta = \arg\min_{\beta > 0}
        \frac1n \sum_i \big( \mathrm{lse}(\beta z_i) - \beta z_{i, y_i} \big)

    The loss is convex in :math:`\beta`: its slope is the mean of :math:`\langle p, z \rangle -
    z_y`, and its curvature the mean of :math:`\mathrm{Var}_p(z) \ge 0`. Newton's method inside a
    shrinking bracket finds the root of the slope.

    Args:
        logits: Scores on data that the model was not trained on. Finite.
        targets: The true class ids.
        tol: Relative accuracy of :math:`\beta`.

    Returns:
        The temperature, above 0. Above 1 says that the model was over-confident.

    Raises:
        ValueError: If shapes, dtypes or ids do not fit, or no finite temperature above 0 is best:
            the true class has the largest logit in every row (the best temperature is 0), or the
            true logits are on average no larger than their rows (it is infinite).

    Numerics:
        Computed in float64, a few passes over the logits. The result is a plain number, so an
        accelerator is waited for; ``meta`` tensors and ``torch.compile`` are not supported.

    References:
        C. Guo et al., arXiv:1706.04599, section 4.2, who optimize the same loss.

    Book: :doc:`/book/foundations/cross_entropy`

    Example:
        >>> logits = torch.tensor([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 4)  # 3 / log 3
        2.7307
    """
    check_floating("logits", logits)
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must be (n, classes), got shape {tuple(logits.shape)}")
    if targets.is_floating_point():
        raise ValueError(f"targets must be class ids, got {targets.dtype}")
    check_finite("logits", logits)
    # Not every device has float64.
    z = logits.detach().to("cpu").double()
    ids = targets.detach().to("cpu")
    check_targets(ids, (len(z),), z.shape[1], None)
    ids = ids.long()
    score = z.gather(1, ids.unsqueeze(1)).squeeze(1)
    if bool((score == z.amax(1)).all()):
        raise ValueError(
            "the true class has the largest logit in every row, so the loss falls for ever as the "
            "temperature goes to 0: fit on data with at least one mistake"
        )
    if float((z.mean(1) - score).mean()) >= 0:
        raise ValueError(
            "the true logits are on average no larger than the mean of their rows, so the best "
            "temperature is infinite: these logits say nothing about these targets"
        )

    def slope_and_curvature(beta: float) -> tuple[float, float]:
        p = softmax(beta * z)
        mean = (p * z).sum(1)
        variance = (p * (z - mean.unsqueeze(1)) ** 2).sum(1)
        return float((mean - score).mean()), float(variance.mean())

    low, high = 0.0, 1.0
    while slope_and_curvature(high)[0] < 0:
        low, high = high, 2 * high
    beta = (low + high) / 2
    for _ in range(200):
        slope, curvature = slope_and_curvature(beta)
        low, high = (beta, high) if slope < 0 else (low, beta)
        step = beta - slope / curvature if curvature > 0 else low
        following = step if low < step < high else (low + high) / 2
        if abs(following - beta) <= tol * beta:
            return 1 / following
        beta = following
    return 1 / beta
