r"""Denoising, permuted and unified objectives: BART, T5, UL2, UniLM, GLM and XLNet.

A noise takes rows of tokens, :class:`Tokens`, and returns rows of tokens; noises compose. A mask
says who may read whom, and follows from the order in which tokens are predicted. A model is built
from the parts of the chapters before: :class:`UnifiedLM` is one stack under any mask,
:class:`TwoStream` is XLNet, and BART and T5 are
:class:`companion.transformer.block.EncoderDecoder`.

Everything random takes a keyword-only ``generator``, draws on its device, and moves the numbers
to the device of the ids. Nothing loops over rows or tokens.

Book: :doc:`/book/pretraining/denoising`.
"""

from companion.pretraining.denoising._glm import glm_batch
from companion.pretraining.denoising._masks import (
    TwoStreamMasks,
    influence,
    order_ranks,
    random_ranks,
    rank_masks,
    reach,
    right_to_left,
)
from companion.pretraining.denoising._noise import (
    compose,
    document_rotation,
    expected_infill_spans,
    fill_in_the_middle,
    infill_lengths,
    sentence_permutation,
    text_infilling,
    token_deletion,
    token_masking,
)
from companion.pretraining.denoising._spans import (
    UL2,
    Denoiser,
    mixture_of_denoisers,
    random_spans,
    span_corruption,
    span_counts,
    split_spans,
)
from companion.pretraining.denoising._tokens import (
    Pair,
    Tokens,
    enclose,
    pad_rows,
    shift_right,
    target_labels,
    trim,
    unpad,
)
from companion.pretraining.denoising._two_stream import (
    TwoStream,
    TwoStreamAttention,
    TwoStreamBlock,
)
from companion.pretraining.denoising._unified import (
    Batch,
    UnifiedLM,
    causal_batch,
    joined_batch,
    masked_batch,
    prefix_batch,
    reversed_batch,
    seq2seq_loss,
)

__all__ = [
    "UL2",
    "Batch",
    "Denoiser",
    "Pair",
    "Tokens",
    "TwoStream",
    "TwoStreamAttention",
    "TwoStreamBlock",
    "TwoStreamMasks",
    "UnifiedLM",
    "causal_batch",
    "compose",
    "document_rotation",
    "enclose",
    "expected_infill_spans",
    "fill_in_the_middle",
    "glm_batch",
    "infill_lengths",
    "influence",
    "joined_batch",
    "masked_batch",
    "mixture_of_denoisers",
    "order_ranks",
    "pad_rows",
    "prefix_batch",
    "random_ranks",
    "random_spans",
    "rank_masks",
    "reach",
    "reversed_batch",
    "right_to_left",
    "sentence_permutation",
    "seq2seq_loss",
    "shift_right",
    "span_corruption",
    "span_counts",
    "split_spans",
    "target_labels",
    "text_infilling",
    "token_deletion",
    "token_masking",
    "trim",
    "unpad",
]
