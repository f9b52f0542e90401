r"""Self-supervised learning: bounds on information, contrastive losses, and losses without them.

Two views of one example stand in row :math:`i` of :math:`U` and in row :math:`i` of :math:`V`,
both of shape ``(n, dim)``. Losses are means over the batch, in nats where they are logarithms,
and are computed in float32 or better. Rows are used as they are unless a function says that it
normalizes them. A critic's score matrix has :math:`f(x_i, y_j)` in row i and column j.

Book: :doc:`/book/pretraining/self_supervised`.
"""

from companion.pretraining.self_supervised._bounds import (
    gaussian_log_ratio,
    gaussian_mutual_information,
    mi_ba,
    mi_dv,
    mi_info_nce,
    mi_nwj,
    mutual_information,
)
from companion.pretraining.self_supervised._contrastive import info_nce, nt_xent
from companion.pretraining.self_supervised._exact import (
    batch_expectation,
    chi_squared,
    expected_info_nce,
)
from companion.pretraining.self_supervised._geometry import (
    alignment,
    effective_rank,
    uniformity,
    uniformity_floor,
)
from companion.pretraining.self_supervised._predictive import (
    byol_target_update_,
    siamese_flow,
    simsiam_loss,
)
from companion.pretraining.self_supervised._redundancy import (
    VICRegTerms,
    barlow_twins,
    cross_correlation,
    vicreg,
    vicreg_terms,
)
from companion.pretraining.self_supervised._spectral import (
    normalized_adjacency,
    spectral_contrastive,
    spectral_optimum,
)
from companion.pretraining.self_supervised._views import projector, random_affine

__all__ = [
    "VICRegTerms",
    "alignment",
    "barlow_twins",
    "batch_expectation",
    "byol_target_update_",
    "chi_squared",
    "cross_correlation",
    "effective_rank",
    "expected_info_nce",
    "gaussian_log_ratio",
    "gaussian_mutual_information",
    "info_nce",
    "mi_ba",
    "mi_dv",
    "mi_info_nce",
    "mi_nwj",
    "mutual_information",
    "normalized_adjacency",
    "nt_xent",
    "projector",
    "random_affine",
    "siamese_flow",
    "simsiam_loss",
    "spectral_contrastive",
    "spectral_optimum",
    "uniformity",
    "uniformity_floor",
    "vicreg",
    "vicreg_terms",
]
