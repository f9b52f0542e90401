r"""Softmax and cross-entropy: from logits to probabilities to the loss of every language model.

Notation of the book: logits :math:`z`, probabilities :math:`p`, targets :math:`y`, hidden states
:math:`h`, unembedding :math:`W_U`. Vectors are rows and tokens are rows, so the logits are
:math:`z = h W_U` with :math:`W_U` of shape ``(d, vocabulary)``. PyTorch's ``nn.Linear.weight`` is
the transpose: pass ``linear.weight.T``, a view, which costs nothing. Softmax runs over the last
axis unless ``dim`` says otherwise. Entropies and losses are in nats.

Three rules about precision hold everywhere. Arithmetic is done in float32 or better, whatever the
inputs are. Softmax and its kin return the dtype of the input. Losses return the dtype they
were computed in, since a loss of 11 in bfloat16 could only move in steps of 1/16.

Book: :doc:`/book/foundations/cross_entropy`.
"""

from companion.foundations.cross_entropy._calibration import (
    CalibrationBins,
    calibration_bins,
    expected_calibration_error,
    fit_temperature,
)
from companion.foundations.cross_entropy._chunked import (
    chunked_cross_entropy,
    linear_cross_entropy,
)
from companion.foundations.cross_entropy._loss import (
    IGNORE,
    cross_entropy,
    cross_entropy_backward,
    z_loss,
)
from companion.foundations.cross_entropy._softmax import (
    entropy,
    log_softmax,
    logsumexp,
    softmax,
    softmax_jacobian,
    softmax_vjp,
)

__all__ = [
    "IGNORE",
    "CalibrationBins",
    "calibration_bins",
    "chunked_cross_entropy",
    "cross_entropy",
    "cross_entropy_backward",
    "entropy",
    "expected_calibration_error",
    "fit_temperature",
    "linear_cross_entropy",
    "log_softmax",
    "logsumexp",
    "softmax",
    "softmax_jacobian",
    "softmax_vjp",
    "z_loss",
]
