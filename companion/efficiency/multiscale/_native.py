"""Native sparse attention: summaries of all blocks, the best blocks in full, and a window."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion.core import check_count
from companion.efficiency.multiscale._layer import CoarseAttention
from companion.efficiency.multiscale._pooled import block_means, pooled_attention, readable
from companion.efficiency.multiscale._shared import check_qkv, mix
from companion.transformer.attention import Mask, attention, padding
from companion.transformer.attention._dense import masked_scores, softmax_or_zero
from companion.transformer.attention._inputs import default_scale

__all__ = ["NativeSparseAttention", "native_sparse_attention", "selected_blocks"]


def selected_blocks(
    Q: Float[Tensor, "*batch n key"],
    K: Float[Tensor, "*kv_batch m key"],
    *,
    block: int,
    count: int,
    real: Bool[Tensor, "rows m"] | None = None,
    scale: float | None = None,
) -> Bool[Tensor, "*kv_batch n blocks"]:
    r"""Return which blocks of keys each query reads in full.

    These are its own block, and of the blocks that ended before it the ``count - 1`` whose means
    get the largest weights, added over the query heads that share the keys.

    Args:
        Q: Queries, the last ones of the keys.
        K: Keys.
        block: Tokens in a block.
        count: Blocks to read, the own one included.
        real: Which keys are tokens and not padding; a block of padding is never chosen.
        scale: Factor of the scores.

    Returns:
        ``True`` for the blocks that are read. Where fewer blocks have ended, all of them.

    Raises:
        ValueError: If shapes do not fit or a number is below 1.

    Numerics:
        Blocks that have not ended are taken out before the choice, not made small. The choice has
        no gradient; ties go to the earlier block.

    References:
        J. Yuan et al. 2025, "Native sparse attention", arXiv:2502.11089, eq. (8) to (12), with
        blocks of compression and selection of one size.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> K = torch.tensor([3.0, 3.0, 1.0, 1.0, 0.0]).view(1, 1, 5, 1)
        >>> selected_blocks(torch.ones(1, 1, 1, 1), K, block=2, count=2).flatten()
        tensor([ True, False,  True])
    """
    before = check_qkv(Q, K, K, causal=True, real=real)
    check_count("block", block)
    check_count("count", count)
    n, _m = Q.shape[2], K.shape[2]
    with torch.no_grad():
        keys, counts = block_means(K, size=block, real=real)
        blocks = keys.shape[2]
        i = torch.arange(n, device=Q.device)[:, None] + before
        j = torch.arange(blocks, device=Q.device)
        ended = (j + 1) * block - 1 <= i
        own = i // block == j
        ended = ended & (counts[:, None, None] > 0)
        past = ended & ~own
        # A mean of fewer tokens weighs less, as in the compressed branch.
        sizes = counts.clamp(min=1).log()[:, None, None]
        S = masked_scores(Q, keys, ended, sizes, default_scale(Q, scale))
        A = softmax_or_zero(S)
        weights = A.view(A.shape[0], K.shape[1], -1, *A.shape[2:]).sum(2)
        weights = weights.masked_fill(~past, -torch.inf)
        chosen = own.expand(weights.shape)
        most = min(count - 1, blocks)
        if most:
            order = torch.sort(weights, dim=-1, descending=True, stable=True).indices[..., :most]
            best = torch.zeros_like(chosen).scatter(-1, order, True)
            chosen = chosen | (best & past)
    return chosen


def native_sparse_attention(
    Q: Float[Tensor, "*batch n key"],
    K: Float[Tensor, "*kv_batch m key"],
    V: Float[Tensor, "*kv_batch m value"],
    gates: Float[Tensor, "... branches"],
    *,
    block: int,
    count: int,
    window: int,
    real: Bool[Tensor, "rows m"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*batch n value"]:
    r"""Mix three causal views of the past: coarse, selected, and near.

    .. math:: O = g_1\, O_{\mathrm{cmp}} + g_2\, O_{\mathrm{slc}} + g_3\, O_{\mathrm{win}}

    * compressed: :func:`pooled_attention` to the means of all blocks that have ended,
    * selected: attention to the tokens of :func:`selected_blocks`,
    * window: attention to the last ``window`` tokens, the own one included.

    Args:
        Q: Queries, the last ones of the keys.
        K: Keys.
        V: Values.
        gates: The weights of the three, not negative. Their sum is made 1 over the branches that
            have anything to read.
        block: Tokens in a block.
        count: Blocks that are read in full, the own one included.
        window: Tokens of the window.
        real: Which keys are tokens and not padding.
        scale: Factor of the scores; :math:`1/\sqrt{d_k}` by default.

    Returns:
        The outputs.

    Raises:
        ValueError: If there are not three gates, shapes do not fit or a number is below 1.

    Numerics:
        A query reads at most :math:`\lfloor n/s \rfloor + ts + w` keys for blocks of :math:`s`,
        of which it reads :math:`t`. Here the selected blocks are gathered for each query, which
        takes memory for :math:`n t s` keys a head: a kernel that loads blocks once for
        neighboring queries is faster.

    References:
        J. Yuan et al. 2025, arXiv:2502.11089, eq. (5) and sec. 3.3, with means for the learned
        maps that compress blocks, one set of keys for the branches, and gates that sum to 1.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> x = torch.ones(1, 1, 9, 2)
        >>> gates = torch.full((1, 1, 1, 3), 1 / 3)
        >>> y = native_sparse_attention(x, x, x, gates, block=2, count=2, window=3)
        >>> bool(torch.allclose(y, x))
        True
    """
    if gates.shape[-1] != 3:
        raise ValueError(f"there are three branches, got {gates.shape[-1]} gates")
    check_count("window", window)
    before = check_qkv(Q, K, V, causal=True, real=real)
    if Q.shape[2] == 0:
        return Q[..., :1] * V.new_zeros(V.shape[-1])
    coarse = pooled_attention(Q, K, V, size=block, causal=True, real=real, scale=scale)
    chosen = selected_blocks(Q, K, block=block, count=count, real=real, scale=scale)
    full = _read_selected(Q, K, V, chosen, block=block, count=count, real=real, scale=scale)
    near = Mask(
        lambda b, h, i, j: (j <= i + before) & (j > i + before - window),
        outer=(float(before - window + 1), float(before)),
    )
    if real is not None:
        near = near & padding(real)
    recent = attention(Q, K, V, mask=near, scale=scale)
    some = readable(Q, K, size=block, before=before, causal=True, real=real)
    # Of the own block at least the own token is read, if it is one.
    tokens = torch.ones_like(some) if real is None else real[:, None, before:]
    return mix([coarse, full, recent], gates, [some, some | tokens, some | tokens])


def _read_selected(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    chosen: Tensor,
    *,
    block: int,
    count: int,
    real: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Attention to the tokens of chosen blocks up to the query, by gathering them."""
    batch, shared, n, blocks = chosen.shape
    m = K.shape[2]
    most = min(count, blocks)
    # The chosen blocks of each query, in order; queries with fewer repeat others, masked out.
    order = torch.sort((~chosen).to(torch.uint8), dim=-1, stable=True).indices[..., :most]
    taken = chosen.gather(-1, order)
    inner = torch.arange(block, device=Q.device)
    place = (order[..., None] * block + inner).flatten(-2)
    i = torch.arange(n, device=Q.device) + m - n
    allowed = taken.repeat_interleave(block, -1) & (place <= i[:, None])
    place = place.clamp(max=m - 1)
    if real is not None:
        allowed = allowed & real[:, None, None].expand(*place.shape[:3], m).gather(-1, place)
    b = torch.arange(batch, device=Q.device)[:, None, None, None]
    h = torch.arange(shared, device=Q.device)[:, None, None]
    keys, values = K[b, h, place], V[b, h, place]  # (batch, kv_heads, n, keys read, width)
    q = Q.reshape(batch, shared, -1, n, Q.shape[-1]).transpose(
        2, 3
    )  # the heads of a group side by side
    # Each query is a small problem of its own: its heads against the keys of its blocks.
    lead = batch * shared * n
    Z = attention(
        q.reshape(lead, 1, -1, q.shape[-1]),
        keys.reshape(lead, 1, -1, keys.shape[-1]),
        values.reshape(lead, 1, -1, values.shape[-1]),
        mask=allowed.reshape(lead, 1, 1, -1),
        scale=default_scale(Q, scale),
    )
    return Z.view(batch, shared, n, -1, V.shape[-1]).transpose(2, 3).flatten(1, 2)


class NativeSparseAttention(CoarseAttention):
    r"""Causal heads with the three branches of native sparse attention, and gates for them.

    .. math:: g(x) = \mathrm{softmax}(x W^g + b^g)

    The maps are those of :class:`~companion.transformer.multi_head.MultiHeadAttention`, so its
    weights can be loaded; the gates start with :math:`W^g = 0` and equal shares.

    Args:
        dim: Width of the tokens.
        heads: Query heads.
        block: As in :func:`native_sparse_attention`.
        count: As there.
        window: As there.
        **rest: As of :class:`~companion.transformer.multi_head.MultiHeadAttention`.

    Attributes:
        gate: Maps a token to three logits a head.
        sites: As of the parent, without scores and weights, and ``gates``.

    Raises:
        ValueError: If a number is below 1. In a call: if the mask says more than causality and
            padding.

    References:
        As :func:`native_sparse_attention`; the paper's gates are sigmoids.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> from companion.transformer.attention import causal
        >>> layer = NativeSparseAttention(12, 3, block=2, count=2, window=3)
        >>> layer(torch.ones(2, 7, 12), mask=causal()).shape
        torch.Size([2, 7, 12])
    """

    sites: tuple[str, ...] = ("queries", "keys", "values", "gates", "heads")

    def __init__(
        self, dim: int, heads: int, *, block: int, count: int, window: int, **rest: Any
    ) -> None:
        super().__init__(dim, heads, causal=True, **rest)
        for name, size in (("block", block), ("count", count), ("window", window)):
            check_count(name, size)
        self.block, self.count, self.window = block, count, window
        weight = self.out.weight
        self.gate = nn.Linear(dim, heads * 3, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def _read(self, x: Tensor, Q: Tensor, K: Tensor, V: Tensor, real: Tensor | None) -> Tensor:
        logits = self.gate(x).unflatten(-1, (self.heads, 3)).transpose(1, 2)
        gates = self.site("gates", logits.softmax(-1))
        sizes = {"block": self.block, "count": self.count, "window": self.window}
        return native_sparse_attention(Q, K, V, gates, real=real, scale=self.scale, **sizes)
