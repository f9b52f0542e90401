r"""Facts as geometry, graphs as layers, and how either enters a language model.

A fact is a triple of numbers (head, relation, tail).

* **Scores of facts**: :func:`transe`, :func:`distmult`, :func:`complex_bilinear`,
  :func:`rotate_score` with :func:`turn`; as models with their tables, :class:`TransE`,
  :class:`DistMult`, :class:`ComplEx`, :class:`RotatE`, all of them a :class:`LinkModel`.
* **Training**: :func:`corrupt_facts`, :func:`margin_loss`, :func:`self_adversarial_loss`.
* **Judging**: :func:`rank` and :func:`filtered_ranks` give :class:`Ranks`, with three rules for
  :data:`Ties`; :class:`KnownFacts` is the filter, :func:`link_metrics` gives
  :class:`LinkMetrics`. Anything that scores all entities is a :class:`Scorer`.
* **Baselines without vectors**: :class:`Popularity`, :class:`InverseRules`; a count of leaks,
  :func:`reversed_share`.
* **Message passing**: :class:`GCN` with :func:`gcn_norm`, :func:`sparse_matrix` and
  :func:`gcn_backward`, :class:`RGCN` with :class:`Relations`, :class:`GAT`;
  :func:`neighbor_sum`, :func:`neighbor_softmax`, :func:`dirichlet_energy`.
* **What neighborhoods can tell apart**: :func:`wl_colors`, :func:`wl_same`.
* **Into a language model**: :func:`attend_with_facts`, :func:`fact_share`,
  :func:`retrieval_marginal`, :func:`retrieval_posterior`. A graph as a teacher is
  :func:`companion.efficiency.distillation.knowledge_loss`.

Book: :doc:`/book/knowledge/knowledge_graphs`.
"""

from companion.knowledge.knowledge_graphs._baselines import InverseRules, Popularity, reversed_share
from companion.knowledge.knowledge_graphs._graphs import (
    dirichlet_energy,
    gcn_norm,
    neighbor_softmax,
    neighbor_sum,
    sparse_matrix,
    wl_colors,
    wl_same,
)
from companion.knowledge.knowledge_graphs._inject import (
    attend_with_facts,
    fact_share,
    retrieval_marginal,
    retrieval_posterior,
)
from companion.knowledge.knowledge_graphs._layers import GAT, GCN, RGCN, Relations, gcn_backward
from companion.knowledge.knowledge_graphs._losses import (
    corrupt_facts,
    margin_loss,
    self_adversarial_loss,
)
from companion.knowledge.knowledge_graphs._models import (
    ComplEx,
    DistMult,
    LinkModel,
    RotatE,
    Scorer,
    TransE,
)
from companion.knowledge.knowledge_graphs._ranks import (
    KnownFacts,
    LinkMetrics,
    Ranks,
    Ties,
    filtered_ranks,
    link_metrics,
    rank,
)
from companion.knowledge.knowledge_graphs._scores import (
    complex_bilinear,
    distmult,
    rotate_score,
    transe,
    turn,
)

__all__ = [
    "GAT",
    "GCN",
    "RGCN",
    "ComplEx",
    "DistMult",
    "InverseRules",
    "KnownFacts",
    "LinkMetrics",
    "LinkModel",
    "Popularity",
    "Ranks",
    "Relations",
    "RotatE",
    "Scorer",
    "Ties",
    "TransE",
    "attend_with_facts",
    "complex_bilinear",
    "corrupt_facts",
    "dirichlet_energy",
    "distmult",
    "fact_share",
    "filtered_ranks",
    "gcn_backward",
    "gcn_norm",
    "link_metrics",
    "margin_loss",
    "neighbor_softmax",
    "neighbor_sum",
    "rank",
    "retrieval_marginal",
    "retrieval_posterior",
    "reversed_share",
    "rotate_score",
    "self_adversarial_loss",
    "sparse_matrix",
    "transe",
    "turn",
    "wl_colors",
    "wl_same",
]
