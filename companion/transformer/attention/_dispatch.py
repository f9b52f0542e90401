r"""Attention for use: one function before PyTorch's fused kernels."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from companion.core import check_in_range
from companion.transformer.attention._dense import dense_attention
from companion.transformer.attention._flex import flex
from companion.transformer.attention._inputs import (
    check_inputs,
    drop,
    lift,
    lift_bias,
    lift_mask,
)
from companion.transformer.attention._masks import Mask
from companion.transformer.attention._tiled import tiled_attention

__all__ = ["attention"]


def attention(
    Q: Float[Tensor, "*batch n key"],
    K: Float[Tensor, "*kv_batch m key"],
    V: Float[Tensor, "*kv_batch m value"],
    *,
    mask: Mask | BlockMask | Bool[Tensor, "*#mask"] | None = None,
    bias: Float[Tensor, "*#bias"] | None = None,
    scale: float | None = None,
    backend: Literal["auto", "sdpa", "flex", "tiled", "dense"] = "auto",
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch n value"]:
    r"""Return the outputs of attention, by the fastest way that there is.

    .. math:: O = \mathrm{softmax}\big(s \, Q K^\top + B + M\big) V

    with the scale :math:`s = 1/\sqrt{d_k}`, a bias :math:`B`, and :math:`M` equal to 0 where the
    mask is True and :math:`-\infty` where it is False.

    Args:
        Q: Queries: ``(batch, heads, n, d_k)``, or ``(batch, n, d_k)`` for one head, or
            ``(n, d_k)``.
        K: Keys, with as many axes as the queries. With four axes there may be fewer heads of keys
            and values than of queries, if their number divides that of the queries (grouped-query
            attention): query head :math:`i` then reads key head
            ``i // (heads // kv_heads)``.
        V: Values, one for each key, of any width :math:`d_v`.
        mask: Which query may read which key, True means it may: a
            :class:`companion.transformer.attention.Mask`, or a Bool tensor that broadcasts to the
            scores ``(batch, heads, n, m)``. ``None`` allows all. For ``"flex"`` also a
            ``BlockMask`` of PyTorch.
        bias: Added to the scaled scores; broadcasts to them. May be :math:`-\infty`.
        scale: Factor :math:`s` of the scores. ``None`` is :math:`1/\sqrt{d_k}`.
        backend: ``"auto"`` and ``"sdpa"`` call PyTorch's ``scaled_dot_product_attention``, which
            picks a fused kernel of the device; ``"flex"`` its FlexAttention, compiled;
            ``"tiled"`` is :func:`companion.transformer.attention.tiled_attention`, and
            ``"dense"`` is :func:`companion.transformer.attention.dense_attention`. ``"auto"``
            takes FlexAttention for a ``BlockMask``.
        dropout: Share :math:`p` of the weights that are set to 0, each by itself; the others are
            multiplied by :math:`1/(1-p)`, so that every weight keeps its mean. For training.
        generator: Where the dropped weights are drawn from. Without it the kernels of PyTorch
            draw from the default generator of the device; with it the weights are made in full,
            as ``"dense"`` makes them.

    Returns:
        The outputs, in the dtype of ``Q``. A query that may read nothing has the output 0 and
        sends no gradient, on every backend.

    Raises:
        ValueError: If shapes, dtypes, the mask or the backend do not fit, or the dropout does not
            lie in [0, 1).

    Numerics:
        A plain causal mask over as many keys as queries, and a mask that allows everything, such
        as the causal one of a single query over its cache, make no mask tensor. Others are made
        dense, ``(n, m)`` Bools for a rule that does not depend on batch and head: use
        ``mask.dense(...)`` once and pass the result where many layers share one mask. A single
        query with grouped heads reads each key once.

        FlexAttention is for masks with many empty blocks on an accelerator. It is compiled at the
        first call, which takes many seconds; inside a function under ``torch.compile`` it is
        compiled with that function. Make the block mask once, and keep it::

            blocks = sliding_window(1024).block_mask(n, n, device="cuda")
            out = attention(Q, K, V, mask=blocks)

        On the CPU FlexAttention has no backward pass and needs float32 or narrower.

    References:
        A. Vaswani et al., "Attention is all you need", arXiv:1706.03762, eq. (1); grouped heads:
        J. Ainslie et al., arXiv:2305.13245; FlexAttention: J. Dong et al., arXiv:2412.05496.

    Book: :doc:`/book/transformer/attention`

    Example:
        >>> from companion.transformer.attention import causal
        >>> x = torch.eye(2, dtype=torch.float64)
        >>> attention(x, x, 2 * x, mask=causal(), scale=0.0)
        tensor([[2., 0.],
                [1., 1.]], dtype=torch.float64)
    """
    check_inputs(Q, K, V)
    if dropout:
        return _with_dropout(Q, K, V, mask, bias, scale, backend, dropout, generator)
    if isinstance(mask, BlockMask):
        if backend not in ("auto", "flex"):
            raise ValueError(f"a BlockMask is for backend='flex', got {backend!r}: pass a Mask")
        return flex(Q, K, V, mask, bias, scale)
    if backend in ("auto", "sdpa"):
        return _sdpa(Q, K, V, mask, bias, scale)
    if backend == "flex":
        return flex(Q, K, V, mask, bias, scale)
    if backend == "dense":
        return dense_attention(Q, K, V, mask=mask, bias=bias, scale=scale)[0]
    if backend != "tiled":
        raise ValueError(f"backend must be one of auto, sdpa, flex, tiled, dense, got {backend!r}")
    if bias is not None:
        raise ValueError("backend='tiled' takes no bias: use 'auto', 'flex' or 'dense'")
    return tiled_attention(Q, K, V, mask=mask, scale=scale)


def _with_dropout(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    mask: Mask | BlockMask | Tensor | None,
    bias: Tensor | None,
    scale: float | None,
    backend: str,
    dropout: float,
    generator: torch.Generator | None,
) -> Tensor:
    check_in_range("dropout", dropout, low=0.0, high=1.0, open_high=True)
    if isinstance(mask, BlockMask) or backend in ("flex", "tiled"):
        raise ValueError("FlexAttention and backend='tiled' drop no weights: use 'sdpa' or 'dense'")
    if generator is None and backend != "dense":
        return _sdpa(Q, K, V, mask, bias, scale, dropout)
    return dense_attention(
        Q, K, V, mask=mask, bias=bias, scale=scale, dropout=dropout, generator=generator
    )[0]


def _sdpa(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    mask: Mask | Tensor | None,
    bias: Tensor | None,
    scale: float | None,
    dropout: float = 0.0,
) -> Tensor:
    axes, n = Q.ndim, Q.shape[-2]
    q, k, v = (Q, K, V) if axes == 4 else (lift(Q), lift(K), lift(V))
    addend, is_causal = None, False
    if mask is None and bias is None:
        pass  # first, since a decoding step comes here in every layer and counts microseconds
    elif (
        bias is None
        and isinstance(mask, Mask)
        and mask.is_causal
        and n == K.shape[-2]
        and (scale is None or scale > 0)  # the kernel multiplies its -inf by the scale
    ):
        is_causal = True  # not `n > 1`: torch.compile would make that a symbol, and SDPA refuse it
    else:
        addend = _addend(Q, K, mask, bias)
    heads, kv_heads = q.shape[1], k.shape[1]
    if heads == kv_heads:
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=addend, dropout_p=dropout, is_causal=is_causal, scale=scale
        )
        return drop(out, axes)
    if n > 1:
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=addend,
            dropout_p=dropout,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=True,
        )
    # One query: the heads of a group become rows of one head, which reads its keys once.
    groups = (q.shape[0], kv_heads, heads // kv_heads)
    if addend is not None and addend.shape[1] > 1:
        addend = addend.reshape(addend.shape[0], *groups[1:], addend.shape[3])
    out = F.scaled_dot_product_attention(
        q.reshape(*groups, q.shape[3]), k, v, attn_mask=addend, dropout_p=dropout, scale=scale
    )
    return out.reshape(groups[0], heads, 1, v.shape[3])


def _addend(Q: Tensor, K: Tensor, mask: Mask | Tensor | None, bias: Tensor | None) -> Tensor | None:
    """Return what PyTorch's kernels take: a Bool mask, or one bias that holds both."""
    allowed, B = lift_mask(mask, Q, K), lift_bias(bias, Q, K)
    if B is None:
        return allowed
    B = B.to(Q.dtype)
    return B if allowed is None else B.masked_fill(~allowed, -torch.inf)
