r"""Several heads of attention: layers, grouped keys and values, and the cache for decoding.

Notation of the book: a layer has :math:`h` query heads and :math:`h_{kv}` key-value heads, of
:math:`d_k` components for queries and keys and :math:`d_v` for values. Tokens are rows, so a head's
maps :math:`W^Q_i, W^K_g, W^V_g` have the shapes ``(dim, head_dim)`` and ``(dim, value_dim)``, and
its row block :math:`W^O_i` of the output map the shape ``(value_dim, dim)``. PyTorch's linear
layers hold the transposes.

Masks are True where a query may read a key, as everywhere in this library.

Book: :doc:`/book/transformer/multi_head`.
"""

from companion.transformer.multi_head._attention import MultiHeadAttention, attention_at_sites
from companion.transformer.multi_head._cache import KVCache, LayerCache
from companion.transformer.multi_head._circuits import output_value_circuit, query_key_circuit
from companion.transformer.multi_head._grouped import kv_cache_bytes, pool_kv_heads
from companion.transformer.multi_head._importance import (
    attention_layers,
    head_importance,
    prune_heads,
)
from companion.transformer.multi_head._tree import ancestors, tree

__all__ = [
    "KVCache",
    "LayerCache",
    "MultiHeadAttention",
    "ancestors",
    "attention_at_sites",
    "attention_layers",
    "head_importance",
    "kv_cache_bytes",
    "output_value_circuit",
    "pool_kv_heads",
    "prune_heads",
    "query_key_circuit",
    "tree",
]
