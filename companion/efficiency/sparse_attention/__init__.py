r"""Attention that leaves pairs out: windows, layouts of blocks, low rank, hashing, linear memories.

Notation of the book: tokens are rows. Queries :math:`Q` of shape ``(batch, heads, n, d_k)`` meet
keys :math:`K` and values :math:`V` of the same tokens. Each function computes the outputs at a cost
below that of all :math:`n^2` pairs, and each has a definition that is dense: a mask
(:func:`band_mask`, :func:`layout_mask`), a formula, or a form that goes from token to token.

The layers take the place of usual attention by ``attention=`` of the models, for example
``Decoder(config, attention=WindowAttention.factory(before=127, sinks=4))``.

Book: :doc:`/book/efficiency/sparse_attention`.
"""

from companion.efficiency.sparse_attention._blocks import (
    bigbird_layout,
    block_sparse,
    fixed_layout,
    layout_mask,
    longformer_layout,
    strided_layout,
    window_layout,
)
from companion.efficiency.sparse_attention._features import (
    elu_features,
    favor_attention,
    favor_features,
    gaussian_frequencies,
)
from companion.efficiency.sparse_attention._hashing import (
    amplified,
    lsh_attention,
    lsh_hash,
    lsh_rotations,
    simhash_collision,
)
from companion.efficiency.sparse_attention._layers import (
    BlockSparseAttention,
    GatedDeltaNet,
    LinearAttention,
    Linformer,
    LSHAttention,
    Performer,
    StateCache,
    WindowAttention,
    WindowCache,
)
from companion.efficiency.sparse_attention._linear import delta_rule, linear_attention
from companion.efficiency.sparse_attention._low_rank import jl_failure_bound, linformer_attention
from companion.efficiency.sparse_attention._window import band_mask, local_attention

__all__ = [
    "BlockSparseAttention",
    "GatedDeltaNet",
    "LSHAttention",
    "LinearAttention",
    "Linformer",
    "Performer",
    "StateCache",
    "WindowAttention",
    "WindowCache",
    "amplified",
    "band_mask",
    "bigbird_layout",
    "block_sparse",
    "delta_rule",
    "elu_features",
    "favor_attention",
    "favor_features",
    "fixed_layout",
    "gaussian_frequencies",
    "jl_failure_bound",
    "layout_mask",
    "linear_attention",
    "linformer_attention",
    "local_attention",
    "longformer_layout",
    "lsh_attention",
    "lsh_hash",
    "lsh_rotations",
    "simhash_collision",
    "strided_layout",
    "window_layout",
]
