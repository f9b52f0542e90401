"""Keys and values pooled over blocks, at one scale and at several."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion.core import check_count, check_floating, wide_dtype
from companion.efficiency.multiscale._layer import CoarseAttention
from companion.efficiency.multiscale._shared import check_qkv, check_real, mix
from companion.transformer.attention import Mask, attention

__all__ = ["PooledAttention", "block_means", "multiscale_attention", "pooled_attention"]


def block_means(
    x: Float[Tensor, "*batch m width"],
    *,
    size: int,
    real: Bool[Tensor, "rows m"] | None = None,
) -> tuple[Float[Tensor, "*batch blocks width"], Float[Tensor, "rows blocks"]]:
    r"""Return the mean of each block of tokens, and how many tokens each mean stands for.

    .. math:: \bar x_b = \frac1{c_b} \sum_{j \in b} x_j, \qquad
              b = \{(b-1)s + 1, \dots, \min(bs, m)\}

    Args:
        x: Keys or values.
        size: Tokens in a block, :math:`s`. The last block holds what is left.
        real: Which tokens count; all by default. Padding enters no mean.

    Returns:
        The means, in the dtype of ``x``, zero for a block of padding; and the counts
        :math:`c_b`, in float32 or better.

    Raises:
        ValueError: If ``x`` is not floating with four axes, ``size`` is below 1, or ``real`` does
            not fit.

    Numerics:
        Sums are taken in float32 or better.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> x = torch.tensor([1.0, 3.0, 5.0]).view(1, 1, 3, 1)
        >>> means, counts = block_means(x, size=2)
        >>> means.flatten(), counts
        (tensor([2., 5.]), tensor([[2., 1.]]))
    """
    if x.ndim != 4:
        raise ValueError(f"x must have shape (batch, heads, tokens, width), got {tuple(x.shape)}")
    check_floating("x", x)
    check_count("size", size)
    batch, _, m, _ = x.shape
    if real is not None:
        check_real(real, (batch, m))
    high = wide_dtype(x.dtype)
    blocks = -(-m // size)
    counts = torch.ones(1, m, device=x.device, dtype=high) if real is None else real.to(high)
    summed = x.to(high) if real is None else x.to(high) * counts[:, None, :, None]
    short = blocks * size - m
    if short:
        summed = nn.functional.pad(summed, (0, 0, 0, short))
        counts = nn.functional.pad(counts, (0, short))
    counts = counts.reshape(counts.shape[0], blocks, size).sum(-1)
    sums = summed.reshape(*x.shape[:2], blocks, size, x.shape[3]).sum(3)
    return (sums / counts.clamp(min=1)[:, None, :, None]).to(x.dtype), counts


def pooled_attention(
    Q: Float[Tensor, "*batch n key"],
    K: Float[Tensor, "*kv_batch m key"],
    V: Float[Tensor, "*kv_batch m value"],
    *,
    size: int,
    causal: bool = False,
    real: Bool[Tensor, "rows m"] | None = None,
    correct: bool = True,
    scale: float | None = None,
) -> Float[Tensor, "*batch n value"]:
    r"""Let each query read the means of blocks of keys and values.

    .. math::
        o_i = \frac{\sum_b c_b\, e^{q_i \cdot \bar k_b / \sqrt{d_k}}\, \bar v_b}
                   {\sum_b c_b\, e^{q_i \cdot \bar k_b / \sqrt{d_k}}}

    The factor :math:`c_b`, the tokens that the mean stands for, enters as :math:`\log c_b` added
    to the score. With it the result is exact where the keys of a block are equal, whatever their
    values are.

    Args:
        Q: Queries.
        K: Keys, of as many heads or fewer.
        V: Values.
        size: Tokens in a block.
        causal: Whether query :math:`i` reads a block only when no token of it lies after
            :math:`i`. Queries are then the last ones of the keys.
        real: Which keys are tokens and not padding.
        correct: Whether :math:`\log c_b` is added. It has no effect where all blocks that are
            read have one size.
        scale: Factor of the scores; :math:`1/\sqrt{d_k}` by default.

    Returns:
        The outputs. A query that may read no block has zero.

    Raises:
        ValueError: If shapes do not fit, or there are more causal queries than keys.

    Numerics:
        :math:`\lceil m/s \rceil` scores a query. With ``size=1`` this is attention.

    References:
        The count correction: D. Bolya et al. 2023, "Token merging", arXiv:2210.09461, eq. (1).

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> q = torch.ones(1, 1, 1, 1)
        >>> k, v = torch.zeros(1, 1, 3, 1), torch.tensor([1.0, 1.0, 4.0]).view(1, 1, 3, 1)
        >>> pooled_attention(q, k, v, size=2).item()
        2.0
    """
    before = check_qkv(Q, K, V, causal=causal, real=real)
    keys, counts = block_means(K, size=size, real=real)
    values, _ = block_means(V, size=size, real=real)
    bias = None
    if correct and (real is not None or (K.shape[2] % size and not causal)):
        bias = counts.clamp(min=1).log().to(Q.dtype)[:, None, None]
    mask = None
    if causal:
        # The last token of block j has the index (j + 1) size - 1.
        mask = Mask(lambda b, h, i, j: (j + 1) * size - 1 <= i + before)
    if real is not None:
        some = Mask(lambda b, h, i, j: counts[b, j] > 0, batch=Q.shape[0], device=Q.device)
        mask = some if mask is None else mask & some
    return attention(Q, keys, values, mask=mask, bias=bias, scale=scale)


def multiscale_attention(
    Q: Float[Tensor, "*batch n key"],
    K: Float[Tensor, "*kv_batch m key"],
    V: Float[Tensor, "*kv_batch m value"],
    gates: Float[Tensor, "... scales"],
    *,
    sizes: Sequence[int],
    causal: bool = False,
    real: Bool[Tensor, "rows m"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*batch n value"]:
    r"""Mix attention to the same keys at several scales.

    .. math:: O = \sum_s g_s\, \mathrm{Attn}(Q, P_s K, P_s V), \qquad \sum_s g_s = 1

    :math:`P_s` takes the means of blocks, as :func:`pooled_attention` reads them.

    Args:
        Q: Queries.
        K: Keys.
        V: Values.
        gates: The weight of each scale, not negative, for example a softmax. Their sum is made 1
            over the scales at which a query can read anything: a causal query in front of the
            first complete block has only the finer ones.
        sizes: Tokens in a block at each scale; 1 is attention to single tokens.
        causal: As in :func:`pooled_attention`.
        real: As there.
        scale: As there.

    Returns:
        The outputs; zero for a query that can read nothing at any scale of positive gate.

    Raises:
        ValueError: If there is not one gate for each scale, or shapes do not fit.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> x = torch.tensor([1.0, 3.0]).view(1, 1, 2, 1)
        >>> gates = torch.tensor([0.5, 0.5]).view(1, 1, 1, 2)
        >>> multiscale_attention(0 * x, 0 * x, x, gates, sizes=[1, 2], causal=True).flatten()
        tensor([1., 2.])
    """
    if gates.shape[-1] != len(sizes) or not len(sizes):
        raise ValueError(f"give one gate a scale, got {gates.shape[-1]} for sizes {list(sizes)}")
    before = check_qkv(Q, K, V, causal=causal, real=real)
    outputs, some = [], []
    for size in sizes:
        outputs.append(pooled_attention(Q, K, V, size=size, causal=causal, real=real, scale=scale))
        some.append(readable(Q, K, size=size, before=before, causal=causal, real=real))
    return mix(outputs, gates, some)


def readable(
    Q: Tensor, K: Tensor, *, size: int, before: int, causal: bool, real: Tensor | None
) -> Tensor:
    """Tell which queries can read a block, (batch or 1, 1, n): a count, without a matrix."""
    n, m = Q.shape[2], K.shape[2]
    ends = torch.full((n,), m, device=Q.device)
    if causal:
        ends = (torch.arange(n, device=Q.device) + before + 1) // size * size
    if real is None:
        return (ends > 0)[None, None]
    seen = nn.functional.pad(real.long().cumsum(1), (1, 0))
    return (seen[:, ends] > 0)[:, None]


class PooledAttention(CoarseAttention):
    r"""Heads that read their keys at several scales, with learned gates.

    .. math:: O = \sum_s g_s(x)\, \mathrm{Attn}(Q, P_s K, P_s V), \qquad
              g(x) = \mathrm{softmax}(x W^g + b^g)

    The maps are those of :class:`~companion.transformer.multi_head.MultiHeadAttention`, so its
    weights can be loaded; the gates start with :math:`W^g = 0` and equal shares.

    Args:
        dim: Width of the tokens.
        heads: Query heads.
        sizes: Tokens in a block at each scale.
        causal: Whether a token reads the past only. The mask that the layer is called with must
            say the same.
        **rest: As of :class:`~companion.transformer.multi_head.MultiHeadAttention`.

    Attributes:
        gate: Maps a token to one logit for each head and scale.
        sites: As of the parent, without scores and weights, and ``gates``
            (batch, heads, n, scales).

    Raises:
        ValueError: If there is no size, or one is below 1. In a call: if the mask says more than
            causality and padding, or there is a bias.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> layer = PooledAttention(12, 3, sizes=[1, 4], causal=False)
        >>> layer(torch.ones(2, 7, 12)).shape
        torch.Size([2, 7, 12])
    """

    sites: tuple[str, ...] = ("queries", "keys", "values", "gates", "heads")

    def __init__(
        self, dim: int, heads: int, *, sizes: Sequence[int], causal: bool, **rest: Any
    ) -> None:
        super().__init__(dim, heads, causal=causal, **rest)
        if not sizes:
            raise ValueError("give the tokens of a block for at least one scale, got none")
        for size in sizes:
            check_count("size", size)
        self.sizes = tuple(sizes)
        like = self.out.weight
        outputs = heads * len(self.sizes)
        self.gate = nn.Linear(dim, outputs, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def _read(self, x: Tensor, Q: Tensor, K: Tensor, V: Tensor, real: Tensor | None) -> Tensor:
        logits = self.gate(x).unflatten(-1, (self.heads, len(self.sizes))).transpose(1, 2)
        gates = self.site("gates", logits.softmax(-1))
        return multiscale_attention(
            Q, K, V, gates, sizes=self.sizes, causal=self.causal, real=real, scale=self.scale
        )
