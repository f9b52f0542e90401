r"""What attention buys and costs: operations, bytes, path lengths, and the collapse of rank.

A floating-point operation (FLOP) is one multiplication or one addition, so a product of matrices
of shapes ``(n, d)`` and ``(d, m)`` takes :math:`2ndm`. The ledgers count matrix products and
nothing else, as :func:`companion.verify.count_flops` does: norms, activations and softmax take few
operations, though not always little time. What the chapter says of sinks is in
:mod:`companion.transformer.attention`; the cache for decoding without end is in
:mod:`companion.transformer.block`.

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

__all__ = [
    "Flops",
    "LayerCost",
    "Memory",
    "Roofline",
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
    "token_diameter",
    "training_flops",
]
