r"""The Transformer block, the models that are stacks of it, and two of them with trained weights.

:func:`minilm` and :func:`smollm2` load the book's encoder and decoder, and
:func:`load_pretrained` any checkpoint directory of BERT, GPT-2 or Llama architecture, all into
:class:`Encoder` and :class:`Decoder`, which a frozen :class:`TransformerConfig` describes.

Book: :doc:`/book/transformer/block`.
"""

from companion.transformer.block._block import Block
from companion.transformer.block._checkpoint import load_pretrained, minilm, smollm2
from companion.transformer.block._config import (
    AlibiBias,
    Learned,
    NoPositions,
    Rope,
    Shaw,
    Sinusoidal,
    T5Buckets,
    TransformerConfig,
    parameter_count,
)
from companion.transformer.block._feed_forward import FeedForward, GatedFeedForward
from companion.transformer.block._generate import greedy
from companion.transformer.block._initialization import branch_outputs, initialize_
from companion.transformer.block._model import Decoder, Encoder, EncoderDecoder, Trace
from companion.transformer.block._norms import (
    LayerNorm,
    LayerNormFunction,
    RMSNorm,
    RMSNormFunction,
    layer_norm_backward,
    layer_norm_by_hand,
    rms_norm_backward,
    rms_norm_by_hand,
)
from companion.transformer.block._text import TextDecoder, TextEncoder

__all__ = [
    "AlibiBias",
    "Block",
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "FeedForward",
    "GatedFeedForward",
    "LayerNorm",
    "LayerNormFunction",
    "Learned",
    "NoPositions",
    "RMSNorm",
    "RMSNormFunction",
    "Rope",
    "Shaw",
    "Sinusoidal",
    "T5Buckets",
    "TextDecoder",
    "TextEncoder",
    "Trace",
    "TransformerConfig",
    "branch_outputs",
    "greedy",
    "initialize_",
    "layer_norm_backward",
    "layer_norm_by_hand",
    "load_pretrained",
    "minilm",
    "parameter_count",
    "rms_norm_backward",
    "rms_norm_by_hand",
    "smollm2",
]
