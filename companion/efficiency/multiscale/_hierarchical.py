"""Near tokens one by one, far tokens by the block: a hierarchy of matrices."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from companion.core import check_count, wide_dtype
from companion.efficiency.multiscale._layer import CoarseAttention
from companion.efficiency.multiscale._pooled import block_means
from companion.efficiency.multiscale._shared import check_qkv
from companion.transformer.attention._dense import each_head, softmax_or_zero
from companion.transformer.attention._inputs import cast, default_scale, full_precision

__all__ = ["HierarchicalAttention", "hierarchical_attention", "hierarchy_levels"]


def hierarchy_levels(n: int, *, leaf: int) -> Integer[Tensor, "n n"]:
    r"""Return at which level of the hierarchy each pair of tokens is compared.

    A block of level :math:`l` holds :math:`\ell\, 2^l` tokens, with :math:`\ell` the size of a
    leaf. A pair belongs to the first level at which the two tokens stand in the same block or in
    neighbors:

    .. math::
        l(i, j) = \min\Big\{ l \ge 0 :
            \Big| \Big\lfloor \frac{i}{\ell 2^l} \Big\rfloor
                - \Big\lfloor \frac{j}{\ell 2^l} \Big\rfloor \Big| \le 1 \Big\},
            \qquad i, j = 0, \dots, n - 1

    Args:
        n: Tokens.
        leaf: Tokens in a block of level 0.

    Returns:
        The levels, 0 for the near field.

    Raises:
        ValueError: If a number is below 1.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> hierarchy_levels(6, leaf=1)[0]
        tensor([0, 0, 1, 1, 2, 2])
    """
    check_count("n", n)
    check_count("leaf", leaf)
    i = torch.arange(n)
    levels = torch.zeros(n, n, dtype=torch.long)
    size = leaf
    while size * 2 < n:
        block = i // size
        levels += ((block[:, None] - block).abs() > 1).long()
        size *= 2
    return levels


def hierarchical_attention(
    Q: Float[Tensor, "*batch n key"],
    K: Float[Tensor, "*kv_batch m key"],
    V: Float[Tensor, "*kv_batch m value"],
    *,
    leaf: int,
    causal: bool = False,
    real: Bool[Tensor, "rows m"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*batch n value"]:
    r"""Compute attention with exact scores nearby and scores of means far away.

    .. math::
        O = \mathrm{softmax}(\tilde S) V, \qquad
        \tilde s_{ij} = \frac{q_i \cdot \bar k_{l(i,j)}(j)}{\sqrt{d_k}}

    with :math:`l(i,j)` of :func:`hierarchy_levels` and :math:`\bar k_l(j)` the mean of the
    :math:`2^l` keys around :math:`j`, those with the same :math:`\lfloor \cdot / 2^l \rfloor`. At
    level 0 this is the key itself. All keys under one mean have one score, so a mean enters the sum
    once, with the factor of how many they are.

    Args:
        Q: Queries.
        K: Keys, of as many heads or fewer.
        V: Values.
        leaf: Tokens in a block of level 0, an even number.
        causal: Whether query :math:`i` reads :math:`j \le i` only; queries are then the last of
            the keys. A far mean always ends before the query, so nothing leaks.
        real: Which keys are tokens and not padding.
        scale: Factor of the scores; :math:`1/\sqrt{d_k}` by default.

    Returns:
        The outputs; zero for a query that may read nothing.

    Raises:
        ValueError: If ``leaf`` is odd or below 2, or shapes do not fit. Without ``causal`` there
            must be as many queries as keys.

    Numerics:
        A query has :math:`3\ell + \frac32 \ell L` scores, with
        :math:`L = \lceil \log_2 (n / 2\ell) \rceil` levels above the first; causal ones
        :math:`2\ell + \ell L`. So time and memory grow as
        :math:`n \log n`. Scores are in float32 or better. With a cache of earlier keys the cost
        is that of all positions.

    References:
        Z. Zhu and R. Soricut 2021, "H-Transformer-1D", arXiv:2107.11906, sec. 4 and 6, with the
        queries left as they are (there they are averaged too, which gives :math:`O(n)`).

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> x = torch.ones(1, 1, 16, 2)
        >>> bool(torch.allclose(hierarchical_attention(x, x, x, leaf=2), x))
        True
    """
    before = check_qkv(Q, K, V, causal=causal, real=real)
    check_count("leaf", leaf, low=2)
    if leaf % 2:
        raise ValueError(f"leaf must be even, since levels are made of half blocks, got {leaf}")
    if before and not causal:
        raise ValueError(
            f"there must be as many queries as keys, got {Q.shape[2]} and {K.shape[2]}"
        )
    Q, K, V = cast(Q, K, V)
    n, m = Q.shape[2], K.shape[2]
    with full_precision(Q):
        high = wide_dtype(Q.dtype)
        q = Q.to(high) * default_scale(Q, scale)
        k, v = (each_head(t.to(high), Q.shape[1]) for t in (K, V))
        levels = max((-(-m // leaf) - 1).bit_length() - 1, 0)
        total = -(-m // (leaf << levels)) * (leaf << levels)
        # Queries keep the places of the tokens that they belong to.
        q = nn.functional.pad(q, (0, 0, before, total - m))
        k, v = (nn.functional.pad(t, (0, 0, 0, total - m)) for t in (k, v))
        exists = torch.arange(total, device=Q.device)[None] < m
        if real is not None:
            exists = exists & nn.functional.pad(real, (0, total - m))
        fields = [_near(q, k, v, exists, leaf, causal)]
        for level in range(1, levels + 1):
            fields.append(_far(q, k, v, exists, leaf, level, causal))
        # One row of scores a query, the levels side by side.
        rows = [S.flatten(2, 3) for S, _ in fields]
        weights = softmax_or_zero(torch.cat(rows, -1))
        parts = torch.split(weights, [S.shape[-1] for S in rows], -1)
        O = torch.zeros_like(v)  # noqa: E741
        for part, (S, values) in zip(parts, fields, strict=True):
            O = O + (part.view(S.shape) @ values).flatten(2, 3)  # noqa: E741
    return O[:, :, before : before + n].to(Q.dtype)


def cut(tensor: Tensor, axis: int, size: int) -> Tensor:
    """Give an axis of tokens one of blocks before it."""
    shape = tensor.shape
    return tensor.reshape(*shape[:axis], -1, size, *shape[axis + 1 :])


def _near(
    q: Tensor, k: Tensor, v: Tensor, exists: Tensor, leaf: int, causal: bool
) -> tuple[Tensor, Tensor]:
    """Scores of each block of queries with its own and the neighboring blocks of keys."""
    blocks = q.shape[2] // leaf
    Q = cut(q, 2, leaf)
    sides = (-1, 0) if causal else (-1, 0, 1)
    place = torch.arange(blocks, device=q.device)[:, None] + torch.tensor(sides, device=q.device)
    inside = (place >= 0) & (place < blocks)
    place = place.clamp(0, blocks - 1)
    keys, values = (cut(t, 2, leaf)[:, :, place].flatten(3, 4) for t in (k, v))
    readable = cut(exists, 1, leaf)[:, place] & inside[..., None]
    allowed = readable.flatten(2)[:, None, :, None]
    if causal:
        i = torch.arange(leaf, device=q.device)
        j = torch.arange(-leaf, leaf, device=q.device)
        allowed = allowed & (j <= i[:, None])
    return (Q @ keys.mT).masked_fill(~allowed, -torch.inf), values


def _far(
    q: Tensor, k: Tensor, v: Tensor, exists: Tensor, leaf: int, level: int, causal: bool
) -> tuple[Tensor, Tensor]:
    """Scores with means of 2^level tokens, in the blocks that no finer level reaches.

    What the level below leaves out are the halves of the neighboring blocks that do not touch the
    queries' own half.
    """
    group = leaf << (level - 1)  # tokens in half a block of this level
    halves, coarse = q.shape[2] // group, leaf // 2
    keys, counts = block_means(k, size=1 << level, real=exists.expand(k.shape[0], -1))
    values, _ = block_means(v, size=1 << level, real=exists.expand(k.shape[0], -1))
    own = torch.arange(halves, device=q.device)[:, None]
    # An even half skips its right neighbor's first half, an odd one its left neighbor's second.
    even = torch.tensor([-2, halves] if causal else [-2, 2, 3], device=q.device)
    odd = torch.tensor([-3, -2] if causal else [-3, -2, 2], device=q.device)
    place = own + torch.where(own % 2 == 0, even, odd)
    inside = (place >= 0) & (place < halves)
    place = place.clamp(0, halves - 1)
    keys, values = (cut(t, 2, coarse)[:, :, place].flatten(3, 4) for t in (keys, values))
    size = cut(counts, 1, coarse)[:, place]
    size = (size * inside[..., None]).flatten(2)[:, None, :, None]
    S = cut(q, 2, group) @ keys.mT
    return S + size.log(), values


class HierarchicalAttention(CoarseAttention):
    r"""Heads that read near tokens one by one and far tokens in blocks.

    The maps are those of :class:`~companion.transformer.multi_head.MultiHeadAttention`, and so are
    the parameters: the weights of a trained model can be loaded.

    Args:
        dim: Width of the tokens.
        heads: Query heads.
        leaf: As in :func:`hierarchical_attention`.
        causal: Whether a token reads the past only. The mask that the layer is called with must
            say the same.
        **rest: As of :class:`~companion.transformer.multi_head.MultiHeadAttention`.

    Attributes:
        sites: As of the parent, without scores and weights.

    Raises:
        ValueError: If the leaf is odd. In a call: if the mask says more than causality and
            padding, or there is a bias.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> layer = HierarchicalAttention(12, 3, leaf=2, causal=False)
        >>> layer(torch.ones(2, 7, 12)).shape
        torch.Size([2, 7, 12])
    """

    sites = ("queries", "keys", "values", "heads")

    def __init__(self, dim: int, heads: int, *, leaf: int, causal: bool, **rest: Any) -> None:
        super().__init__(dim, heads, causal=causal, **rest)
        check_count("leaf", leaf, low=2)
        if leaf % 2:
            raise ValueError(f"leaf must be even, since levels are made of half blocks, got {leaf}")
        self.leaf = leaf

    def _read(self, x: Tensor, Q: Tensor, K: Tensor, V: Tensor, real: Tensor | None) -> Tensor:
        return hierarchical_attention(
            Q, K, V, leaf=self.leaf, causal=self.causal, real=real, scale=self.scale
        )
