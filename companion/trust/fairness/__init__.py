r"""Which notions of fairness can be measured, how surely, and which cannot hold together.

* **Rates by group**: :func:`group_ids`, :func:`cells`, :func:`rates`; between groups :func:`gap`,
  :func:`ratio_of_extremes`, :func:`pairwise_differences`, :func:`disparities`,
  :func:`differential_fairness`.
* **How sure they are**: :func:`clopper_pearson`, :func:`wilson`, :func:`newcombe`,
  :func:`bootstrap`; what chance alone does, :func:`null_gaps`, :func:`expected_gap`.
* **What cannot hold together**: :func:`chouldechova_fpr`, :func:`odds_ppv`, :func:`class_means`;
  :func:`calibration_by_group`, :func:`binomial_deviation`.
* **The best decisions under an equality**: :func:`best_acceptance`, :func:`derive`.
* **People and not groups**: :func:`lipschitz`, :func:`benefits`, :func:`generalized_entropy`,
  :func:`entropy_split`, :func:`linear_counterfactual`.
* **Language models**: :func:`part_log_probs`, :func:`icat`, :func:`bbq_score`.
* **To hand in**: :func:`report`.

Book: :doc:`/book/trust/fairness`.
"""

from companion.trust.fairness._calibration import (
    GroupCalibration,
    binomial_deviation,
    calibration_by_group,
)
from companion.trust.fairness._cells import Cells, GroupIds, Rates, cells, group_ids, rates
from companion.trust.fairness._gaps import (
    Disparities,
    differential_fairness,
    disparities,
    gap,
    pairwise_differences,
    ratio_of_extremes,
)
from companion.trust.fairness._individual import (
    EntropySplit,
    LipschitzReport,
    benefits,
    entropy_split,
    generalized_entropy,
    linear_counterfactual,
    lipschitz,
)
from companion.trust.fairness._intervals import (
    Bootstrap,
    Interval,
    bootstrap,
    clopper_pearson,
    expected_gap,
    newcombe,
    null_gaps,
    wilson,
)
from companion.trust.fairness._language import (
    BBQScore,
    PartScores,
    bbq_score,
    icat,
    part_log_probs,
)
from companion.trust.fairness._postprocess import (
    Acceptance,
    DerivedPredictor,
    best_acceptance,
    derive,
)
from companion.trust.fairness._report import FairnessReport, report
from companion.trust.fairness._theorems import (
    ClassMeans,
    chouldechova_fpr,
    class_means,
    odds_ppv,
)

__all__ = [
    "Acceptance",
    "BBQScore",
    "Bootstrap",
    "Cells",
    "ClassMeans",
    "DerivedPredictor",
    "Disparities",
    "EntropySplit",
    "FairnessReport",
    "GroupCalibration",
    "GroupIds",
    "Interval",
    "LipschitzReport",
    "PartScores",
    "Rates",
    "bbq_score",
    "benefits",
    "best_acceptance",
    "binomial_deviation",
    "bootstrap",
    "calibration_by_group",
    "cells",
    "chouldechova_fpr",
    "class_means",
    "clopper_pearson",
    "derive",
    "differential_fairness",
    "disparities",
    "entropy_split",
    "expected_gap",
    "gap",
    "generalized_entropy",
    "group_ids",
    "icat",
    "linear_counterfactual",
    "lipschitz",
    "newcombe",
    "null_gaps",
    "odds_ppv",
    "pairwise_differences",
    "part_log_probs",
    "rates",
    "ratio_of_extremes",
    "report",
    "wilson",
]
