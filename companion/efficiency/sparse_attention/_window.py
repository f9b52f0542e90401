r"""Attention within a window: memory and time in proportion to the tokens, not to their pairs.

Queries are cut into blocks of neighbors. All keys that a block may read lie in one short piece of
the sequence, so the pieces of neighboring blocks are overlapping views of the same memory, and one
call of a fused kernel computes them all.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import check_count
from companion.transformer.attention import Mask, attention
from companion.transformer.attention._inputs import cast, check_inputs, drop, lift

__all__ = ["band_mask", "local_attention"]


def band_mask(*, before: int, after: int = 0, sinks: int = 0, dilation: int = 1) -> Mask:
    r"""Return the mask that :func:`local_attention` computes: its definition.

    .. math::

        j = i - rt \ \text{ for some whole } {-a} \le t \le b, \qquad\text{or}\qquad
        j < s \ \text{ and } \ j \le i + ra

    Args:
        before: Keys :math:`b` on the left that a query reads, its own not counted.
        after: Keys :math:`a` on the right.
        sinks: First tokens :math:`s` that are read from everywhere.
        dilation: Distance :math:`r` between neighbors in the window.

    Returns:
        The mask. ``band_mask(before=w - 1)`` is
        ``companion.transformer.attention.sliding_window(w)``, and ``band_mask(before=w, after=w)``
        reads :math:`2w + 1` keys.

    Raises:
        ValueError: If a number is out of range.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> band_mask(before=1, sinks=1).dense(4, 4)[0, 0].int()
        tensor([[1, 0, 0, 0],
                [1, 1, 0, 0],
                [1, 1, 1, 0],
                [1, 0, 1, 1]], dtype=torch.int32)
    """
    _check(before, after, sinks, dilation)
    first, last = -before * dilation, after * dilation

    def rule(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        back = i - j
        near = (-back >= first) & (-back <= last) & (back % dilation == 0)
        return near | ((j < sinks) & (j <= i + last))

    band = (float(first), float(last))
    if sinks:
        return Mask(rule, (-float("inf"), last), band if dilation == 1 else (1.0, 0.0))
    return Mask(rule, band, band if dilation == 1 else (1.0, 0.0))


def local_attention(
    Q: Float[Tensor, "*batch n key"],
    K: Float[Tensor, "*kv_batch n key"],
    V: Float[Tensor, "*kv_batch n value"],
    *,
    before: int,
    after: int = 0,
    sinks: int = 0,
    dilation: int = 1,
    mask: Mask | None = None,
    scale: float | None = None,
    block: int | None = None,
) -> Float[Tensor, "*batch n value"]:
    r"""Return the outputs of attention within a window, in time and memory linear in the length.

    .. math:: O_i = \sum_{j \in N(i)} \mathrm{softmax}_{j \in N(i)}(s \, q_i k_j^\top) \, v_j

    with :math:`N(i)` the keys of :func:`band_mask`: ``before`` on the left, the query's own,
    ``after`` on the right, and the sinks. Both ends are included, as in the pair of FlashAttention:
    a window of :math:`w` keys with the query's own is ``before=w - 1``.

    Args:
        Q: Queries, ``(batch, heads, n, d_k)``, ``(batch, n, d_k)`` or ``(n, d_k)``.
        K: Keys of the same tokens. With four axes there may be fewer heads of keys than of queries.
        V: Values.
        before: Keys on the left of a query that it reads.
        after: Keys on the right.
        sinks: First tokens that are read from everywhere, as far as ``after`` allows.
        dilation: Distance between neighbors in the window; with sinks it must be 1.
        mask: What else must hold, for example ``causal() & padding(real)``. Its rule is evaluated
            at the pairs of the window only.
        scale: Factor :math:`s` of the scores. ``None`` is :math:`1/\sqrt{d_k}`.
        block: Queries of a block; by default half of the window, within [32, 128].

    Returns:
        The outputs. A query that may read nothing has output 0 and sends no gradient.

    Raises:
        ValueError: If shapes do not fit or numbers are out of range.

    Numerics:
        A block of :math:`c` queries meets :math:`c + b + a + s` keys, some of them masked:
        for :math:`n` a multiple of :math:`c`, :math:`4nd(c + b + a + s)` operations a head
        (:math:`d_k = d_v = d`). A window beyond the ends of the text costs no more than one that
        reaches them. Without sinks and dilation no key is copied.

    References:
        Beltagy et al. 2020, arXiv:2004.05150, sec. 3.1; sinks: Xiao et al. 2024, arXiv:2309.17453.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> x = torch.eye(3, dtype=torch.float64)
        >>> local_attention(x, x, x, before=1, scale=0.0)
        tensor([[1.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.0000, 0.5000, 0.5000]], dtype=torch.float64)
    """
    check_inputs(Q, K, V)
    _check(before, after, sinks, dilation)
    if Q.shape[-2] != K.shape[-2]:
        raise ValueError(
            f"a window needs queries and keys of the same tokens, got {Q.shape[-2]} queries and "
            f"{K.shape[-2]} keys"
        )
    q, k, v = (lift(t) for t in cast(Q, K, V))
    batch, heads, n, _ = q.shape
    kv_heads, group = k.shape[1], heads // k.shape[1]
    if n == 0:
        return drop(q[..., :1] * v.new_zeros(v.shape[-1]), Q.ndim)
    if mask is not None:
        mask.check(n, n, batch=batch, device=Q.device)
    length = -(-n // dilation)  # tokens of a residue class
    before, after = min(before, length - 1), min(after, length - 1)  # no more is there to be read
    size = block if block is not None else min(max((before + after + 1) // 2, 32), 128)
    check_count("block", size)
    size = min(size, length)
    blocks = -(-length // size)
    span = size + before + after

    def classes(t: Tensor, left: int, right: int) -> Tensor:
        """(batch, kv heads, ..., dilation, tokens, width), padded at both ends."""
        t = F.pad(t, (0, 0, 0, length * dilation - n))
        t = t.reshape(batch, -1, length, dilation, t.shape[-1]).transpose(2, 3)
        return F.pad(t, (0, 0, left, right))

    def pieces(t: Tensor) -> Tensor:
        """Overlapping pieces of keys, (batch * kv heads, dilation * blocks, span, width)."""
        t = classes(t, before, blocks * size - length + after)
        t = t.unfold(3, span, size).mT
        return t.reshape(batch * kv_heads, dilation * blocks, span, t.shape[-1])

    q = classes(q, 0, blocks * size - length)
    q = q.reshape(batch * kv_heads, group, dilation * blocks, size, q.shape[-1])
    q = q.transpose(1, 2).reshape(len(q), dilation * blocks, group * size, q.shape[-1])
    k_pieces, v_pieces = pieces(k), pieces(v)

    # Positions of the queries and of the keys that they meet, then which of the pairs are allowed.
    device = Q.device
    residue = torch.arange(dilation, device=device).view(-1, 1, 1, 1)
    start = torch.arange(blocks, device=device).view(-1, 1, 1) * size
    i = (start + torch.arange(size, device=device).view(-1, 1)) * dilation + residue
    j = (start + torch.arange(span, device=device) - before) * dilation + residue
    allowed = (j >= i - before * dilation) & (j <= i + after * dilation) & (j >= sinks) & (j < n)
    i, j, allowed = (t.flatten(0, 1) for t in (i, j, allowed))
    if sinks:
        first = torch.arange(min(sinks, n), device=device).expand(blocks, 1, -1)
        j = torch.cat([first, j], -1)
        allowed = torch.cat([first <= i + after, allowed], -1)
        k_pieces, v_pieces = (
            torch.cat([t[:, :, :sinks].flatten(0, 1)[:, None].expand(-1, blocks, -1, -1), parts], 2)
            for t, parts in ((k, k_pieces), (v, v_pieces))
        )
    allowed = pairs_allowed(mask, allowed, i, j, batch, heads, group, n)
    O = attention(q, k_pieces, v_pieces, mask=allowed, scale=scale)  # noqa: E741
    O = O.view(batch, kv_heads, dilation, blocks, group, size, -1)  # noqa: E741
    O = O.permute(0, 1, 4, 3, 5, 2, 6)  # noqa: E741
    O = O.reshape(batch, heads, blocks * size * dilation, -1)[:, :, :n]  # noqa: E741
    return drop(O, Q.ndim)


def pairs_allowed(
    mask: Mask | None,
    allowed: Bool[Tensor, "blocks rows keys"],
    i: Tensor,
    j: Tensor,
    batch: int,
    heads: int,
    group: int,
    n: int,
) -> Bool[Tensor, "..."]:
    """Join a mask to the pairs that blocks of queries meet: (batch * kv heads or 1, blocks, ...).

    The rows of a block repeat for each query head of a group.
    """
    if mask is not None:
        b = torch.arange(batch, device=i.device).view(-1, 1, 1, 1, 1)
        h = torch.arange(heads, device=i.device).view(-1, 1, 1, 1)
        # What lies beyond an edge repeats the last entry, so that rules may index tensors.
        said = mask.rule(b, h, i.clamp(0, n - 1), j.clamp(0, n - 1))
        said = said.reshape((1,) * (5 - said.ndim) + tuple(said.shape))
        if said.shape[0] > 1 or said.shape[1] > 1:
            said = (said & allowed).expand(batch, heads, *allowed.shape)
            said = said.reshape(batch, heads // group, group, *allowed.shape)
            return said.transpose(2, 3).flatten(3, 4).flatten(0, 1)
        allowed = said[0, 0] & allowed
    return allowed.repeat(1, group, 1)[None]


def _check(before: int, after: int, sinks: int, dilation: int) -> None:
    check_count("before", before, low=0)
    check_count("after", after, low=0)
    check_count("sinks", sinks, low=0)
    check_count("dilation", dilation)
    if sinks and dilation > 1:
        raise ValueError(
            f"sinks and a dilation do not go together here, got sinks={sinks} and "
            f"dilation={dilation}: use block_sparse with a layout"
        )
