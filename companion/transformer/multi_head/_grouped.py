"""Fewer heads of keys and values: what it saves, and how a layer is turned into one."""

import copy

import torch
from torch import Tensor

from companion.core import check_count
from companion.transformer.multi_head._attention import MultiHeadAttention

__all__ = ["kv_cache_bytes", "pool_kv_heads"]


def kv_cache_bytes(
    *,
    layers: int,
    positions: int,
    kv_heads: int,
    head_dim: int,
    value_dim: int | None = None,
    batch: int = 1,
    dtype: torch.dtype = torch.float16,
) -> int:
    r"""Count the bytes of a cache of keys and values.

    .. math:: B \, L \, n \, h_{kv} \, (d_k + d_v) \, b

    Args:
        layers: Number :math:`L` of layers.
        positions: Number :math:`n` of positions that fit.
        kv_heads: Key and value heads :math:`h_{kv}` of a layer.
        head_dim: Components :math:`d_k` of a key.
        value_dim: Components :math:`d_v` of a value; by default as many.
        batch: Number :math:`B` of sequences.
        dtype: Type of the stored numbers, of :math:`b` bytes each.

    Returns:
        Bytes. :class:`companion.transformer.multi_head.KVCache` reserves exactly as many.

    Raises:
        ValueError: If a size is smaller than 1.

    Book: :doc:`/book/transformer/multi_head`

    Example:
        >>> kv_cache_bytes(layers=30, positions=2048, kv_heads=3, head_dim=64)  # SmolLM2
        47185920
    """
    value_dim = head_dim if value_dim is None else value_dim
    sizes = {
        "layers": layers,
        "positions": positions,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "value_dim": value_dim,
        "batch": batch,
    }
    for name, size in sizes.items():
        check_count(name, size)
    return batch * layers * positions * kv_heads * (head_dim + value_dim) * dtype.itemsize


def pool_kv_heads(layer: MultiHeadAttention, kv_heads: int) -> MultiHeadAttention:
    r"""Turn a layer into one with fewer key-value heads, by averaging those that are to be shared.

    .. math:: \bar W^K_g = \frac1{|g|} \sum_{j \in g} W^K_j, \qquad
        \bar W^V_g = \frac1{|g|} \sum_{j \in g} W^V_j

    The mean is the one matrix that is closest to those of its group in squared distance. With
    ``kv_heads=1`` the result is multi-query attention.

    Args:
        layer: The layer.
        kv_heads: Key-value heads of the result, a divisor of the layer's.

    Returns:
        A new layer, with parameters of its own. Queries and output are copied; neighboring
        key-value heads form a group :math:`g`.

    Raises:
        ValueError: If the number does not divide the layer's, or the layer has a prefix or LoRA.

    Numerics:
        The result computes something else than the layer, unless the heads of a group are equal.
        The reference trains it for a further 5% of the original training steps.

    References:
        J. Ainslie et al. 2023, arXiv:2305.13245, sec. 2.1.

    Book: :doc:`/book/transformer/multi_head`

    Example:
        >>> pool_kv_heads(MultiHeadAttention(12, 6), 2).kv_heads
        2
    """
    check_count("kv_heads", kv_heads)
    if layer.kv_heads % kv_heads:
        raise ValueError(f"kv_heads must divide the layer's {layer.kv_heads}, got {kv_heads}")
    layer._check_plain("key-value heads of a layer", "pooled")
    pooled = layer._sized(layer.heads, kv_heads)
    queries = layer.heads * layer.head_dim
    keys = layer.kv_heads * layer.head_dim

    def pool(rows: Tensor, width: int) -> Tensor:
        split = rows.reshape(kv_heads, -1, width, *rows.shape[1:])
        return split.mean(1).flatten(0, 1)

    with torch.no_grad():
        for made, old in (
            (pooled.qkv.weight, layer.qkv.weight),
            (pooled.qkv.bias, layer.qkv.bias),
        ):
            if old is not None:
                K = pool(old[queries : queries + keys], layer.head_dim)
                V = pool(old[queries + keys :], layer.value_dim)
                made.copy_(torch.cat([old[:queries], K, V]))
        pooled.out.load_state_dict(layer.out.state_dict())
    pooled.relative = copy.deepcopy(layer.relative)
    return pooled
