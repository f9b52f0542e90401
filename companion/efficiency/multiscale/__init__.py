r"""Attention that keeps the far context coarse and the near context sharp, and small caches.

Notation of the book: tokens are rows. Tensors of queries, keys and values have the shape
``(batch, heads, n, width)``; there may be fewer heads of keys than of queries. ``real`` is True
for tokens and False for padding. Where something is *causal*, queries are the last ones of the keys
and a block of keys is read only when its last token is not after the query.

* **Pooled**: :func:`block_means`, :func:`pooled_attention`, :func:`multiscale_attention`.
* **Windows of heads**: :func:`head_windows`, :func:`headwise_window_mask`, and how far heads look,
  :func:`distance_mass`, :func:`windows_from_mass`.
* **Hierarchies**: :func:`hierarchical_attention`.
* **Landmarks**: :func:`nystrom_attention`, :func:`newton_pinverse`.
* **Memories**: :class:`MemoryCompressedAttention`, :class:`CompressiveMemory`.
* **Latent vectors**: :class:`LatentArray`, :class:`MultiHeadLatentAttention`.
* **Selection**: :func:`native_sparse_attention`.

Book: :doc:`/book/efficiency/multiscale`.
"""

from companion.efficiency.multiscale._array import LatentArray
from companion.efficiency.multiscale._hierarchical import (
    HierarchicalAttention,
    hierarchical_attention,
    hierarchy_levels,
)
from companion.efficiency.multiscale._latent import (
    LatentCache,
    MultiHeadLatentAttention,
    latent_cache_numbers,
)
from companion.efficiency.multiscale._memory import (
    CompressiveMemory,
    ConvCompressor,
    MemoryCompressedAttention,
    compressive_range,
    reconstruction_loss,
)
from companion.efficiency.multiscale._native import (
    NativeSparseAttention,
    native_sparse_attention,
    selected_blocks,
)
from companion.efficiency.multiscale._nystrom import (
    newton_pinverse,
    nystrom_attention,
    pinverse_residual,
)
from companion.efficiency.multiscale._pooled import (
    PooledAttention,
    block_means,
    multiscale_attention,
    pooled_attention,
)
from companion.efficiency.multiscale._windows import (
    distance_mass,
    head_windows,
    headwise_window_mask,
    windows_from_mass,
)

__all__ = [
    "CompressiveMemory",
    "ConvCompressor",
    "HierarchicalAttention",
    "LatentArray",
    "LatentCache",
    "MemoryCompressedAttention",
    "MultiHeadLatentAttention",
    "NativeSparseAttention",
    "PooledAttention",
    "block_means",
    "compressive_range",
    "distance_mass",
    "head_windows",
    "headwise_window_mask",
    "hierarchical_attention",
    "hierarchy_levels",
    "latent_cache_numbers",
    "multiscale_attention",
    "native_sparse_attention",
    "newton_pinverse",
    "nystrom_attention",
    "pinverse_residual",
    "pooled_attention",
    "reconstruction_loss",
    "selected_blocks",
    "windows_from_mass",
]
