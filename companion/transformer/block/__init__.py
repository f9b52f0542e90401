r"""The Transformer block, and the models that are stacks of it.

A frozen :class:`TransformerConfig` describes an :class:`Encoder`, a :class:`Decoder` or an
:class:`EncoderDecoder`. A :class:`StreamingCache` lets a decoder read without end. Trained weights
come into the models by :mod:`companion.models`.

Book: :doc:`/book/transformer/block`.
"""

from companion.transformer.block._block import Block, PartFactory
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
from companion.transformer.block._initialization import branch_outputs, initialize_
from companion.transformer.block._model import Decoder, Encoder, EncoderDecoder
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
from companion.transformer.block._streaming import StreamingCache, StreamingLayer
from companion.transformer.block._streams import streaming_logits

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
    "PartFactory",
    "RMSNorm",
    "RMSNormFunction",
    "Rope",
    "Shaw",
    "Sinusoidal",
    "StreamingCache",
    "StreamingLayer",
    "T5Buckets",
    "TransformerConfig",
    "branch_outputs",
    "initialize_",
    "layer_norm_backward",
    "layer_norm_by_hand",
    "parameter_count",
    "rms_norm_backward",
    "rms_norm_by_hand",
    "streaming_logits",
]
