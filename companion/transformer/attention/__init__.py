r"""Scaled dot-product attention: what it computes, its masks, and four ways to compute it.

Notation of the book: tokens are rows. Queries :math:`Q` of shape ``(n, d_k)`` meet keys
:math:`K` of shape ``(m, d_k)`` in the scores :math:`S = QK^\top/\sqrt{d_k} + M`. The weights are
:math:`A = \mathrm{softmax}(S)` along rows, and the outputs :math:`O = AV`. Before the last two
axes there may be one of batch, or one of batch and one of heads.

Masks are True where a query may read a key, as in PyTorch. A query that may read nothing has
weights 0, output 0, and sends gradient 0 to everything, on every path. Arithmetic of the scores
is in float32 or better, and results have the dtype of the queries.

Book: :doc:`/book/transformer/attention`.
"""

from companion.transformer.attention._backward import (
    AttentionFunction,
    attention_backward,
    attention_by_hand,
)
from companion.transformer.attention._dense import attention_weights, dense_attention
from companion.transformer.attention._dispatch import attention
from companion.transformer.attention._masks import (
    Mask,
    causal,
    documents,
    everything,
    padding,
    prefix,
    sliding_window,
    streaming_mask,
)
from companion.transformer.attention._merge import (
    AttentionState,
    attention_state,
    merge_states,
)
from companion.transformer.attention._module import SelfAttention
from companion.transformer.attention._sinks import (
    attention_entropy,
    attention_with_sink,
    sink_mass,
    softmax_one,
)
from companion.transformer.attention._tiled import tiled_attention

__all__ = [
    "AttentionFunction",
    "AttentionState",
    "Mask",
    "SelfAttention",
    "attention",
    "attention_backward",
    "attention_by_hand",
    "attention_entropy",
    "attention_state",
    "attention_weights",
    "attention_with_sink",
    "causal",
    "dense_attention",
    "documents",
    "everything",
    "merge_states",
    "padding",
    "prefix",
    "sink_mass",
    "sliding_window",
    "softmax_one",
    "streaming_mask",
    "tiled_attention",
]
