r"""Names in a text and what they mean: find them, link them, and let a model know.

* **Recognition**: :class:`LinearChainCRF` and its functions :func:`crf_nll`,
  :func:`crf_log_partition`, :func:`crf_score`, :func:`viterbi`, :func:`k_best_paths`,
  :func:`crf_marginals`, :func:`crf_entropy`; tags with :func:`tag_names`,
  :func:`tag_constraints`, :func:`spans`, :func:`tags_from_spans`; scores with :func:`span_f1`,
  :func:`overlap_scores`.
* **Disambiguation**: :class:`CandidateIndex`, :class:`Disambiguator`, :func:`link_log_probs`,
  :func:`coherent_links`, :func:`link_scores`.
* **Representation**: :func:`in_batch_loss`, :func:`span_vectors`.
* **Fusion**: :class:`ERNIEFusion`, :class:`GatedFusion`, :class:`KnowBertLayer`,
  :func:`first_tokens`.

Book: :doc:`/book/knowledge/entity_linking`.
"""

from companion.knowledge.entity_linking._crf import (
    CRFMarginals,
    LinearChainCRF,
    TagPaths,
    crf_entropy,
    crf_log_partition,
    crf_marginals,
    crf_nll,
    crf_score,
    k_best_paths,
    viterbi,
)
from companion.knowledge.entity_linking._fusion import (
    ERNIEFusion,
    GatedFusion,
    KnowBertLayer,
    first_tokens,
    span_vectors,
)
from companion.knowledge.entity_linking._linking import (
    CandidateIndex,
    Candidates,
    Disambiguator,
    LinkScores,
    coherent_links,
    in_batch_loss,
    link_log_probs,
    link_scores,
)
from companion.knowledge.entity_linking._spans import (
    OverlapScores,
    Scheme,
    Span,
    SpanScores,
    TagConstraints,
    overlap_scores,
    span_f1,
    spans,
    tag_constraints,
    tag_names,
    tags_from_spans,
)

__all__ = [
    "CRFMarginals",
    "CandidateIndex",
    "Candidates",
    "Disambiguator",
    "ERNIEFusion",
    "GatedFusion",
    "KnowBertLayer",
    "LinearChainCRF",
    "LinkScores",
    "OverlapScores",
    "Scheme",
    "Span",
    "SpanScores",
    "TagConstraints",
    "TagPaths",
    "coherent_links",
    "crf_entropy",
    "crf_log_partition",
    "crf_marginals",
    "crf_nll",
    "crf_score",
    "first_tokens",
    "in_batch_loss",
    "k_best_paths",
    "link_log_probs",
    "link_scores",
    "overlap_scores",
    "span_f1",
    "span_vectors",
    "spans",
    "tag_constraints",
    "tag_names",
    "tags_from_spans",
    "viterbi",
]
