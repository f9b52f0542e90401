r"""Masked language models: corruption, BERT with both heads, pairs, scores, and baselines.

Notation of the book: :math:`x` is a text of n tokens, :math:`\mathcal M` the set of positions that
were chosen, :math:`\tilde x` the text as the model reads it, corrupted on :math:`\mathcal M`.

Book: :doc:`/book/pretraining/masked`.
"""

from companion.pretraining.masked._corrupt import (
    Corrupted,
    corrupt,
    span_corrupt,
    span_lengths,
    whole_word_corrupt,
    word_numbers,
)
from companion.pretraining.masked._fill_in import FillIn, kneser_ney_chain
from companion.pretraining.masked._model import BertForPreTraining, BertLogits, PreTrainingLoss
from companion.pretraining.masked._pairs import (
    Boundaries,
    SentencePairs,
    next_sentence_pairs,
    sentence_boundaries,
    sentence_order_pairs,
)
from companion.pretraining.masked._scores import pseudo_log_likelihood

__all__ = [
    "BertForPreTraining",
    "BertLogits",
    "Boundaries",
    "Corrupted",
    "FillIn",
    "PreTrainingLoss",
    "SentencePairs",
    "corrupt",
    "kneser_ney_chain",
    "next_sentence_pairs",
    "pseudo_log_likelihood",
    "sentence_boundaries",
    "sentence_order_pairs",
    "span_corrupt",
    "span_lengths",
    "whole_word_corrupt",
    "word_numbers",
]
