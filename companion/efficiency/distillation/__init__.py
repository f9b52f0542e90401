"""Distillation: a small model learns from the answers, texts, and states of a large one.

Logits of the student come first, those of the teacher second. All divergences are in nats, sums
over classes, and means over all positions that count.

Book: :doc:`/book/efficiency/distillation`.
"""

from companion.efficiency.distillation._divergences import (
    forward_kl,
    generalized_jsd,
    reverse_kl,
)
from companion.efficiency.distillation._hidden import feature_loss, minilm_loss, relation
from companion.efficiency.distillation._logits import (
    TopK,
    kd_loss,
    knowledge_loss,
    top_k_kd_loss,
    top_k_log_probs,
)
from companion.efficiency.distillation._texts import (
    WrittenTexts,
    gkd_loss,
    sequence_kd_loss,
    written_texts,
)

__all__ = [
    "TopK",
    "WrittenTexts",
    "feature_loss",
    "forward_kl",
    "generalized_jsd",
    "gkd_loss",
    "kd_loss",
    "knowledge_loss",
    "minilm_loss",
    "relation",
    "reverse_kl",
    "sequence_kd_loss",
    "top_k_kd_loss",
    "top_k_log_probs",
    "written_texts",
]
