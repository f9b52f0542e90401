r"""Data quality: what is doubled, what is noise, and what there is too much of.

* **Duplicates**: :func:`shingles`, :func:`jaccard`, :func:`minhash` and
  :func:`signature_jaccard`; :func:`lsh_candidates` with its curve :func:`lsh_probability`,
  :func:`lsh_threshold` and :func:`choose_bands`; :func:`clusters`, :func:`keep_first`, and all in
  one, :func:`near_duplicates`. Repeated stretches inside of texts: :func:`suffix_array`,
  :func:`duplicate_spans`, :func:`cut_spans`.
* **Quality**: the published rules :func:`gopher_quality`, :func:`gopher_repetition`,
  :func:`c4_quality`, :func:`c4_lines` and :func:`fineweb_quality`, by name in
  :func:`quality_filters`; by a model, :func:`perplexity_filter`; by importance weights,
  :func:`hashed_ngrams`, :func:`ngram_log_probs`, :func:`dsir_log_weights` and
  :func:`dsir_resample`.
* **Wrong labels**: :func:`symmetric_noise` and :func:`flip_labels`;
  :func:`forward_cross_entropy`, :func:`backward_cross_entropy`,
  :func:`generalized_cross_entropy`, :func:`symmetric_risk`; :func:`confident_joint`,
  :func:`calibrate_joint` and :func:`label_errors`.
* **Balance**: :func:`importance_weights` and :func:`effective_sample_size`;
  :func:`logit_adjusted_cross_entropy` or :func:`adjust_logits`, :func:`focal_loss`,
  :func:`effective_number`, :func:`class_balanced_weights`; :func:`sampling_probs`; and for
  domains :class:`DoReMi`, with :func:`domain_excess` and :func:`doremi_step`.

A folder of texts is cleaned by ``companion clean FOLDER --out FOLDER``.

Book: :doc:`/book/knowledge/data_quality`.
"""

from companion.knowledge.data_quality._balance import (
    DoReMi,
    adjust_logits,
    class_balanced_weights,
    domain_excess,
    doremi_step,
    effective_number,
    effective_sample_size,
    focal_loss,
    importance_weights,
    logit_adjusted_cross_entropy,
    sampling_probs,
)
from companion.knowledge.data_quality._lsh import (
    Bands,
    Duplicates,
    choose_bands,
    clusters,
    keep_first,
    lsh_candidates,
    lsh_probability,
    lsh_threshold,
    near_duplicates,
)
from companion.knowledge.data_quality._minhash import (
    jaccard,
    minhash,
    shingles,
    signature_jaccard,
)
from companion.knowledge.data_quality._noise import (
    ConfidentJoint,
    backward_cross_entropy,
    calibrate_joint,
    confident_joint,
    flip_labels,
    forward_cross_entropy,
    generalized_cross_entropy,
    label_errors,
    symmetric_noise,
    symmetric_risk,
)
from companion.knowledge.data_quality._rules import (
    RULES,
    Measure,
    c4_lines,
    c4_quality,
    fineweb_quality,
    gopher_quality,
    gopher_repetition,
    quality_filters,
)
from companion.knowledge.data_quality._select import (
    dsir_log_weights,
    dsir_resample,
    hashed_ngrams,
    ngram_log_probs,
    perplexity_filter,
)
from companion.knowledge.data_quality._suffix import (
    Span,
    SuffixArray,
    cut_spans,
    duplicate_spans,
    suffix_array,
)

__all__ = [
    "RULES",
    "Bands",
    "ConfidentJoint",
    "DoReMi",
    "Duplicates",
    "Measure",
    "Span",
    "SuffixArray",
    "adjust_logits",
    "backward_cross_entropy",
    "c4_lines",
    "c4_quality",
    "calibrate_joint",
    "choose_bands",
    "class_balanced_weights",
    "clusters",
    "confident_joint",
    "cut_spans",
    "domain_excess",
    "doremi_step",
    "dsir_log_weights",
    "dsir_resample",
    "duplicate_spans",
    "effective_number",
    "effective_sample_size",
    "fineweb_quality",
    "flip_labels",
    "focal_loss",
    "forward_cross_entropy",
    "generalized_cross_entropy",
    "gopher_quality",
    "gopher_repetition",
    "hashed_ngrams",
    "importance_weights",
    "jaccard",
    "keep_first",
    "label_errors",
    "logit_adjusted_cross_entropy",
    "lsh_candidates",
    "lsh_probability",
    "lsh_threshold",
    "minhash",
    "near_duplicates",
    "ngram_log_probs",
    "perplexity_filter",
    "quality_filters",
    "sampling_probs",
    "shingles",
    "signature_jaccard",
    "suffix_array",
    "symmetric_noise",
    "symmetric_risk",
]
