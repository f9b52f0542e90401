r"""What attention buys and costs: operations, bytes, path lengths, sinks, and the collapse of rank.

A floating-point operation (FLOP) is one multiplication or one addition, so a product of matrices
of shapes ``(n, d)`` and ``(d, m)`` takes :math:`2ndm`. The ledgers count matrix products and
nothing else, as :func:`companion.verify.count_flops` does: norms, activations and softmax take few
operations, though not always little time. Entropies are in nats. Attention weights :math:`A` have
the shape ``(batch, heads, queries, keys)``, and their rows sum to one.

Book: :doc:`/book/transformer/cost`.
"""

from companion.transformer.cost._collapse import (
    collapse_bound,
    rank_residual,
    token_diameter,
)
from companion.transformer.cost._counting import bytes_read
from companion.transformer.cost._ledger import (
    Flops,
    Memory,
    crossover,
    decode_bytes,
    forward_flops,
    matrix_weights,
    memory_bytes,
    training_flops,
)
from companion.transformer.cost._paths import LayerCost, layer_cost, path_length
from companion.transformer.cost._roofline import Roofline, measure_roofline
from companion.transformer.cost._sinks import (
    attention_entropy,
    attention_with_sink,
    sink_mass,
    softmax_one,
)
from companion.transformer.cost._streaming import StreamingCache, StreamingLayer
from companion.transformer.cost._streams import streaming_logits, streaming_mask

__all__ = [
    "Flops",
    "LayerCost",
    "Memory",
    "Roofline",
    "StreamingCache",
    "StreamingLayer",
    "attention_entropy",
    "attention_with_sink",
    "bytes_read",
    "collapse_bound",
    "crossover",
    "decode_bytes",
    "forward_flops",
    "layer_cost",
    "matrix_weights",
    "measure_roofline",
    "memory_bytes",
    "path_length",
    "rank_residual",
    "sink_mass",
    "softmax_one",
    "streaming_logits",
    "streaming_mask",
    "token_diameter",
    "training_flops",
]
