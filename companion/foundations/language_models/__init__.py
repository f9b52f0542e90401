r"""Language models: distributions over strings, by counting and by a small neural network.

Notation of the book: a string is :math:`w_{1:n} = w_1 \dots w_n`, its last symbol is EOS, and the
context of a symbol is :math:`c`, the symbols before it, of which an n-gram model sees the last
:math:`n - 1`. :math:`N(c, w)` counts how often :math:`w` follows :math:`c`, and :math:`N_{1+}(c,
\cdot)` how many different symbols follow it. Log-probabilities are in nats.

Outcomes are the ids ``0, ..., vocab_size - 1``, EOS among them. The id ``vocab_size`` stands for
BOS, the padding before the first symbol: contexts may hold it, and nothing predicts it.

Book: :doc:`/book/foundations/language_models`.
"""

from companion.foundations.language_models._added import AddedToken
from companion.foundations.language_models._bpe import BPE
from companion.foundations.language_models._counts import NGramCounts, count_ngrams, windows
from companion.foundations.language_models._interpolation import (
    JelinekMercerFit,
    MixtureFit,
    em_step,
    fit_mixture,
    jelinek_mercer,
)
from companion.foundations.language_models._metrics import bits_per_byte, perplexity
from companion.foundations.language_models._neural import NPLM, NPLMConfig
from companion.foundations.language_models._ngram import (
    NGramModel,
    absolute_discounts,
    additive,
    kneser_ney,
    maximum_likelihood,
)
from companion.foundations.language_models._pretokenize import pretokenize
from companion.foundations.language_models._words import ClosedVocabulary, sentences

__all__ = [
    "BPE",
    "NPLM",
    "AddedToken",
    "ClosedVocabulary",
    "JelinekMercerFit",
    "MixtureFit",
    "NGramCounts",
    "NGramModel",
    "NPLMConfig",
    "absolute_discounts",
    "additive",
    "bits_per_byte",
    "count_ngrams",
    "em_step",
    "fit_mixture",
    "jelinek_mercer",
    "kneser_ney",
    "maximum_likelihood",
    "perplexity",
    "pretokenize",
    "sentences",
    "windows",
]
