r"""Robustness: test data that chance, a slip of the keyboard or an opponent has moved.

* **Balls of changes**: :func:`steepest`, :func:`project`, :func:`random_in_ball`,
  :func:`dual_norm`, for the norms :data:`NORMS`.
* **Attacks on inputs**: :func:`fgsm`, :func:`pgd`, and :func:`random_search` without gradients;
  :class:`Normalized` gives a model its normalizer, :func:`accuracy` judges, :func:`evaluating`
  restores modes, and :func:`masking_audit` looks for gradients that hide.
* **Adversaries on embeddings**: :func:`fgm`, :func:`freelb` with :func:`freelb_start`,
  :func:`vat_direction` and :func:`vat_loss`.
* **Exchanged words**: :func:`flip_gains`, :func:`hotflip`, :func:`flip_text` with
  :func:`whole_words`.
* **Certificates**: :func:`certify`, :func:`smooth_votes`, :func:`smooth_predict`,
  :func:`binomial_lower`, :func:`certified_radius`, :func:`certified_accuracy`.
* **Learning to learn**: :func:`adapt`, :func:`maml`, :func:`reptile`; :func:`sine_tasks`.
* **Shift**: :func:`hypothesis_divergence`, :func:`proxy_a_distance`, :func:`domain_weights`,
  :func:`weighted_risk`; :class:`GroupDRO` with :func:`group_means`, :func:`group_weights` and
  :func:`robust_value`; :func:`reverse_gradient`.
* **Changed copies**: :func:`mixup`, :func:`mixup_cross_entropy`, :func:`eda`, :func:`typos`.

Book: :doc:`/book/knowledge/robustness`.
"""

from companion.knowledge.robustness._attacks import (
    Normalized,
    accuracy,
    evaluating,
    fgsm,
    pgd,
    random_search,
)
from companion.knowledge.robustness._audit import MaskingAudit, masking_audit
from companion.knowledge.robustness._augment import (
    KEYBOARD,
    Mixed,
    eda,
    mixup,
    mixup_cross_entropy,
    typos,
)
from companion.knowledge.robustness._embeddings import (
    FreeLB,
    fgm,
    freelb,
    freelb_start,
    vat_direction,
    vat_loss,
)
from companion.knowledge.robustness._flips import (
    Flips,
    TextAttack,
    flip_gains,
    flip_text,
    hotflip,
    whole_words,
)
from companion.knowledge.robustness._meta import (
    MetaGradient,
    SineTasks,
    adapt,
    maml,
    reptile,
    sine_tasks,
)
from companion.knowledge.robustness._norms import (
    NORMS,
    dual_norm,
    project,
    random_in_ball,
    steepest,
)
from companion.knowledge.robustness._shift import (
    GroupDRO,
    GroupMeans,
    domain_weights,
    group_means,
    group_weights,
    hypothesis_divergence,
    proxy_a_distance,
    reverse_gradient,
    robust_value,
    weighted_risk,
)
from companion.knowledge.robustness._smoothing import (
    ABSTAIN,
    Certificate,
    binomial_lower,
    certified_accuracy,
    certified_radius,
    certify,
    smooth_predict,
    smooth_votes,
)

__all__ = [
    "ABSTAIN",
    "KEYBOARD",
    "NORMS",
    "Certificate",
    "Flips",
    "FreeLB",
    "GroupDRO",
    "GroupMeans",
    "MaskingAudit",
    "MetaGradient",
    "Mixed",
    "Normalized",
    "SineTasks",
    "TextAttack",
    "accuracy",
    "adapt",
    "binomial_lower",
    "certified_accuracy",
    "certified_radius",
    "certify",
    "domain_weights",
    "dual_norm",
    "eda",
    "evaluating",
    "fgm",
    "fgsm",
    "flip_gains",
    "flip_text",
    "freelb",
    "freelb_start",
    "group_means",
    "group_weights",
    "hotflip",
    "hypothesis_divergence",
    "maml",
    "masking_audit",
    "mixup",
    "mixup_cross_entropy",
    "pgd",
    "project",
    "proxy_a_distance",
    "random_in_ball",
    "random_search",
    "reptile",
    "reverse_gradient",
    "robust_value",
    "sine_tasks",
    "smooth_predict",
    "smooth_votes",
    "steepest",
    "typos",
    "vat_direction",
    "vat_loss",
    "weighted_risk",
    "whole_words",
]
