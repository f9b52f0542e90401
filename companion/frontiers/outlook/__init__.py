r"""Applications, how they are judged, and by how much one may be sure.

* **Translations**: :func:`bleu` and :func:`sentence_bleu`, from :func:`bleu_counts` by
  :func:`bleu_from_counts`, with :func:`tokenize_13a`; :func:`chrf`, from :func:`chrf_counts` by
  :func:`chrf_from_counts`; :class:`PhraseTable`, which translates.
* **Summaries**: :func:`rouge_n`, :func:`rouge_l` with :func:`common_subsequence`,
  :func:`rouge_lsum`, :func:`rouge_tokens`; :func:`bertscore`, of texts :func:`text_bertscore`;
  made by :func:`split_sentences`, :func:`word_overlap`, :func:`pagerank`, and :func:`mmr`.
* **Answers**: :func:`exact_match`, :func:`token_f1`, :func:`normalize_answer`,
  :func:`span_answer`.
* **Retrieval**: :class:`BM25` with :func:`bm25_idf` and :func:`bm25_saturation`;
  :func:`reciprocal_rank_fusion`.
* **Comparison**: :func:`paired_bootstrap`, :func:`paired_permutation`, :func:`mcnemar`.
* **Ratings**: :func:`elo_expected`, :func:`elo_update`, :func:`elo_ratings`, :func:`elo_scale`,
  :func:`win_matrix`, :func:`rank_intervals`.
* **Doubt**: :func:`risk_coverage`, :func:`deferral_curve`. **Laws of texts**:
  :func:`divergence_frontier`.

Book: :doc:`/book/frontiers/outlook`.
"""

from companion.frontiers.outlook._answers import (
    Spans,
    exact_match,
    normalize_answer,
    span_answer,
    token_f1,
)
from companion.frontiers.outlook._bleu import (
    BLEU,
    Smoothing,
    bleu,
    bleu_counts,
    bleu_from_counts,
    sentence_bleu,
    tokenize_13a,
)
from companion.frontiers.outlook._bm25 import BM25, Found, IdfVariant, bm25_idf, bm25_saturation
from companion.frontiers.outlook._chrf import chrf, chrf_counts, chrf_from_counts
from companion.frontiers.outlook._compare import (
    McNemar,
    PairedBootstrap,
    PairedTest,
    mcnemar,
    mean_statistic,
    paired_bootstrap,
    paired_permutation,
)
from companion.frontiers.outlook._divergence import Frontier, divergence_frontier
from companion.frontiers.outlook._matching import bertscore, text_bertscore
from companion.frontiers.outlook._phrases import PhraseTable
from companion.frontiers.outlook._ranking import (
    mmr,
    pagerank,
    reciprocal_rank_fusion,
    split_sentences,
    word_overlap,
)
from companion.frontiers.outlook._ratings import (
    ELO_UNIT,
    RankIntervals,
    elo_expected,
    elo_ratings,
    elo_scale,
    elo_update,
    rank_intervals,
    win_matrix,
)
from companion.frontiers.outlook._rouge import (
    Overlap,
    common_subsequence,
    rouge_l,
    rouge_lsum,
    rouge_n,
    rouge_tokens,
)
from companion.frontiers.outlook._selective import RiskCoverage, deferral_curve, risk_coverage

__all__ = [
    "BLEU",
    "BM25",
    "ELO_UNIT",
    "Found",
    "Frontier",
    "IdfVariant",
    "McNemar",
    "Overlap",
    "PairedBootstrap",
    "PairedTest",
    "PhraseTable",
    "RankIntervals",
    "RiskCoverage",
    "Smoothing",
    "Spans",
    "bertscore",
    "bleu",
    "bleu_counts",
    "bleu_from_counts",
    "bm25_idf",
    "bm25_saturation",
    "chrf",
    "chrf_counts",
    "chrf_from_counts",
    "common_subsequence",
    "deferral_curve",
    "divergence_frontier",
    "elo_expected",
    "elo_ratings",
    "elo_scale",
    "elo_update",
    "exact_match",
    "mcnemar",
    "mean_statistic",
    "mmr",
    "normalize_answer",
    "pagerank",
    "paired_bootstrap",
    "paired_permutation",
    "rank_intervals",
    "reciprocal_rank_fusion",
    "risk_coverage",
    "rouge_l",
    "rouge_lsum",
    "rouge_n",
    "rouge_tokens",
    "sentence_bleu",
    "span_answer",
    "split_sentences",
    "text_bertscore",
    "token_f1",
    "tokenize_13a",
    "win_matrix",
    "word_overlap",
]
