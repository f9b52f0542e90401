r"""Regularization: what weight decay, dropout, early stopping and capacity provably do.

Notation of the book: inputs :math:`X` with one row an example, weights :math:`w`, strength
:math:`\lambda` of a penalty :math:`\tfrac\lambda2 \lVert w \rVert^2`. The letter :math:`p` is
always the probability to **drop**, as in PyTorch. Srivastava et al. 2014 write :math:`p` for the
probability to keep.

Losses of least squares are :math:`\tfrac12 \lVert y - Xw \rVert^2`, summed over examples, not
averaged. Divide :math:`\lambda` by their number for a mean.

Label smoothing is an argument of :func:`companion.foundations.cross_entropy.cross_entropy`, and
coupled and decoupled weight decay belong to the rules of
:mod:`companion.foundations.optimization`; neither is repeated here.

Book: :doc:`/book/foundations/regularization`.
"""

from companion.foundations.regularization._capacity import (
    rademacher_bound,
    rademacher_linear,
    random_features,
    random_frequencies,
)
from companion.foundations.regularization._dropout import (
    Dropout,
    dropout,
    dropout_mask,
    enumerate_masks,
    hashed_mask,
    mc_dropout,
)
from companion.foundations.regularization._linear import (
    dropout_penalty,
    dropout_ridge_equivalent,
    early_stopping_factors,
    ridge,
    shrinkage_factors,
    spectral_solution,
)

__all__ = [
    "Dropout",
    "dropout",
    "dropout_mask",
    "dropout_penalty",
    "dropout_ridge_equivalent",
    "early_stopping_factors",
    "enumerate_masks",
    "hashed_mask",
    "mc_dropout",
    "rademacher_bound",
    "rademacher_linear",
    "random_features",
    "random_frequencies",
    "ridge",
    "shrinkage_factors",
    "spectral_solution",
]
