r"""Exact attention, forward and backward, in memory that grows with n and not with n squared.

Queries and keys are cut into blocks. The forward pass goes over the blocks of keys with the
online softmax and keeps, for each query, the output and one number, the logarithm of the
normalizer. From it the backward pass computes each block of weights again, uses it and throws it
away. Blocks that a band mask leaves empty are never visited.
"""

from collections.abc import Iterator
from typing import Any, Literal, overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import check_count, wide_dtype
from companion.transformer.attention._inputs import (
    cast,
    check_inputs,
    default_scale,
    drop,
    full_precision,
    lift,
    lift_mask,
)
from companion.transformer.attention._masks import Mask

__all__ = ["tiled_attention"]


@overload
def tiled_attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    *,
    mask: Mask | Tensor | None = None,
    scale: float | None = None,
    block: int = 256,
    return_lse: Literal[False] = False,
) -> Tensor: ...


@overload
def tiled_attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    *,
    mask: Mask | Tensor | None = None,
    scale: float | None = None,
    block: int = 256,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def tiled_attention(
    Q: Float[Tensor, "*batch n key"],
    K: Float[Tensor, "*kv_batch m key"],
    V: Float[Tensor, "*kv_batch m value"],
    *,
    mask: Mask | Bool[Tensor, "*#mask"] | None = None,
    scale: float | None = None,
    block: int = 256,
    return_lse: bool = False,
) -> Float[Tensor, "*batch n value"] | tuple[Float[Tensor, "*batch n value"], Tensor]:
    r"""Return the outputs of attention without ever holding its matrix of weights.

    Equal, up to rounding, to :func:`companion.transformer.attention.dense_attention` in value and
    in all gradients.

    Args:
        Q: Queries, as in :func:`companion.transformer.attention.attention`.
        K: Keys.
        V: Values.
        mask: Which query may read which key. A :class:`companion.transformer.attention.Mask` is
            evaluated block by block, and blocks outside its outer band are skipped: half of them
            under a causal mask, nearly all of them under a narrow window. A Bool tensor is
            quadratic itself.
        scale: Factor of the scores. ``None`` is :math:`1/\sqrt{d_k}`.
        block: Number of queries and of keys in a block, 1 or more.
        return_lse: Whether to return the logarithms of the normalizers as well.

    Returns:
        The outputs, in the dtype of ``Q``; 0 where nothing may be read. With ``return_lse`` also
        :math:`\log \sum_j e^{s_j}` of each query's scores, of shape ``(*batch, n)`` in float32 or
        better, :math:`-\infty` where nothing may be read. Gradients flow through both. As
        ``(lse, ones, output)`` it is a state that
        :func:`companion.transformer.attention.merge_states` joins with that of other keys.

    Raises:
        ValueError: If shapes, dtypes or the block size do not fit.
        RuntimeError: If the gradient is differentiated again, or under ``torch.func.vmap``: for
            these use :func:`companion.transformer.attention.attention_by_hand`.

    Numerics:
        Time as the dense path: the backward pass computes the scores once more, 14 instead of 12
        units of :math:`nm d_k` operations in all if :math:`d_k = d_v`. Memory beyond the inputs:
        outputs and :math:`n` normalizers forward, three gradients backward, and a few matrices of
        ``block × block`` for each head. Arithmetic is in float32 or better.

    References:
        M. N. Rabe and C. Staats, arXiv:2112.05682; T. Dao et al., "FlashAttention",
        arXiv:2205.14135, algorithms 1 and 4. The loop order of the forward pass and the one saved
        number a query follow T. Dao, "FlashAttention-2", arXiv:2307.08691, algorithms 1 and 2.
        Theirs are kernels that keep blocks in fast memory; this is plain PyTorch, for its memory
        and not for its speed.

    Book: :doc:`/book/transformer/attention`

    Example:
        >>> x = torch.eye(3, dtype=torch.float64)
        >>> tiled_attention(x, x, 3 * x, scale=0.0, block=2)
        tensor([[1., 1., 1.],
                [1., 1., 1.],
                [1., 1., 1.]], dtype=torch.float64)
    """
    check_inputs(Q, K, V)
    check_count("block", block)
    if isinstance(mask, Mask):
        n, m = Q.shape[-2], K.shape[-2]
        mask.check(n, m, batch=Q.shape[0] if Q.ndim > 2 else 1, device=Q.device)
        allowed: Mask | Tensor | None = None if mask.allows_all(n, m) else mask
    else:
        allowed = lift_mask(mask, Q, K)
    Q, K, V = cast(Q, K, V)
    with full_precision(Q):
        O, lse = _TiledAttention.apply(  # type: ignore[no-untyped-call]  # noqa: E741
            lift(Q), lift(K), lift(V), allowed, default_scale(Q, scale), block
        )
    O = drop(O, Q.ndim)  # noqa: E741
    if not return_lse:
        return O
    return O, drop(lse.masked_fill(torch.isposinf(lse), -torch.inf), Q.ndim).squeeze(-1)


class _Tiles:
    """The blocks of a problem, and the scores of each.

    The query heads that share a head of keys are stacked as rows: queries have the shape
    (batch, kv_heads, group * rows, width), so that one product serves the group.
    """

    def __init__(
        self, Q: Tensor, K: Tensor, mask: Mask | Tensor | None, scale: float, block: int
    ) -> None:
        self.batch, self.heads, self.n = Q.shape[:3]
        self.kv_heads, self.m = K.shape[1:3]
        self.group = self.heads // self.kv_heads
        self.mask, self.scale, self.block = mask, scale, block
        self.high = wide_dtype(Q.dtype)

    def query_blocks(self) -> Iterator[tuple[int, int]]:
        """Go over the blocks of queries."""
        return ((at, min(at + self.block, self.n)) for at in range(0, self.n, self.block))

    def key_blocks(self) -> Iterator[tuple[int, int]]:
        """Go over the blocks of keys."""
        return ((at, min(at + self.block, self.m)) for at in range(0, self.m, self.block))

    def skips(self, rows: tuple[int, int], cols: tuple[int, int]) -> bool:
        """Tell whether the band of the mask leaves a block empty."""
        if not isinstance(self.mask, Mask):
            return False
        first, last = cols[0] - (rows[1] - 1), cols[1] - 1 - rows[0]  # its diagonals j - i
        return last < self.mask.outer[0] or self.mask.outer[1] < first

    def stack(self, tensor: Tensor, rows: tuple[int, int]) -> Tensor:
        """Cut rows out of (batch, heads, n, width) and stack them by group."""
        part = tensor[:, :, rows[0] : rows[1]]
        return part.reshape(self.batch, self.kv_heads, -1, part.shape[-1]).to(self.high)

    def spread(self, stacked: Tensor) -> Tensor:
        """Undo :meth:`stack`."""
        return stacked.reshape(self.batch, self.heads, -1, stacked.shape[-1])

    def cut(self, tensor: Tensor, cols: tuple[int, int]) -> Tensor:
        """Cut keys or values out."""
        return tensor[:, :, cols[0] : cols[1]].to(self.high)

    def scores(self, q: Tensor, k: Tensor, rows: tuple[int, int], cols: tuple[int, int]) -> Tensor:
        """Return the scores of a block, -inf where the mask forbids; ``q`` is scaled already."""
        S = q @ k.mT
        allowed = self._allowed(rows, cols, q.device)
        if allowed is None:
            return S
        by_head = S.view(self.batch, self.heads, -1, S.shape[-1])
        return by_head.masked_fill_(~allowed, -torch.inf).view(S.shape)

    def _allowed(
        self, rows: tuple[int, int], cols: tuple[int, int], device: torch.device
    ) -> Tensor | None:
        mask = self.mask
        if mask is None:
            return None
        if isinstance(mask, Tensor):
            i = slice(*rows) if mask.shape[2] > 1 else slice(None)
            j = slice(*cols) if mask.shape[3] > 1 else slice(None)
            return mask[:, :, i, j]
        first, last = cols[0] - (rows[1] - 1), cols[1] - 1 - rows[0]
        if mask.inner[0] <= first and last <= mask.inner[1]:
            return None
        b = torch.arange(self.batch, device=device).view(-1, 1, 1, 1)
        h = torch.arange(self.heads, device=device).view(-1, 1, 1)
        i_s = torch.arange(*rows, device=device).view(-1, 1)
        return mask.rule(b, h, i_s, torch.arange(*cols, device=device))


class _TiledAttention(torch.autograd.Function):
    """Forward with the online softmax; backward with weights computed again from the normalizer."""

    @staticmethod
    def forward(
        Q: Tensor, K: Tensor, V: Tensor, mask: Mask | Tensor | None, scale: float, block: int
    ) -> tuple[Tensor, Tensor]:
        tiles = _Tiles(Q, K, mask, scale, block)
        O = Q.new_empty(*Q.shape[:-1], V.shape[-1])  # noqa: E741
        lse = Q.new_empty(*Q.shape[:-1], 1, dtype=tiles.high)
        for rows in tiles.query_blocks():
            q = tiles.stack(Q, rows) * scale
            m = q.new_full((*q.shape[:-1], 1), -torch.inf)  # largest score so far
            norm = torch.zeros_like(m)  # sum of exponentials relative to it
            o = q.new_zeros(*q.shape[:-1], V.shape[-1])  # weighted sum of values, not divided yet
            for cols in tiles.key_blocks():
                if tiles.skips(rows, cols):
                    continue
                S = tiles.scores(q, tiles.cut(K, cols), rows, cols)
                top = torch.maximum(m, S.amax(-1, keepdim=True))
                # A row that has read nothing yet has the maximum -inf, and -inf - -inf is NaN.
                shift = top.masked_fill(torch.isneginf(top), 0.0)
                P = S.sub_(shift).exp_()
                decay = (m - shift).exp_()
                norm = norm.mul_(decay).add_(P.sum(-1, keepdim=True))
                o = o.mul_(decay).add_(P @ tiles.cut(V, cols))
                m = top
                del S, P
            empty = norm == 0
            O[:, :, slice(*rows)] = tiles.spread(o / norm.masked_fill(empty, 1.0)).to(O.dtype)
            # exp(s - inf) is 0: this is how the backward pass knows an empty row.
            lse[:, :, slice(*rows)] = tiles.spread((m + norm.log()).masked_fill_(empty, torch.inf))
        return O, lse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        Q, K, V, mask, scale, block = inputs
        tensor_mask = mask if isinstance(mask, Tensor) else None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(Q, K, V, tensor_mask, *output)
        ctx.rule = None if isinstance(mask, Tensor) else mask
        ctx.scale, ctx.block = scale, block

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if grads[0] is None and grads[1] is None:
            return (None,) * 6
        Q, K, V, tensor_mask, O, lse = ctx.saved_tensors  # noqa: E741
        dO = torch.zeros_like(O) if grads[0] is None else grads[0]
        with full_precision(Q):
            found: tuple[Tensor, ...] = _tiled_backward(
                Q,
                K,
                V,
                O,
                lse,
                dO,
                grads[1],
                ctx.rule if tensor_mask is None else tensor_mask,
                ctx.scale,
                ctx.block,
            )
        if torch.is_grad_enabled():  # create_graph=True
            found = tuple(
                _Final.apply(d, Q, K, V, *grads)  # type: ignore[no-untyped-call]
                for d in found
            )
        return (*found, None, None, None)


def _tiled_backward(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    O: Tensor,  # noqa: E741
    lse: Tensor,
    dO: Tensor,
    d_lse: Tensor | None,
    mask: Mask | Tensor | None,
    scale: float,
    block: int,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        tiles = _Tiles(Q, K, mask, scale, block)
        high = tiles.high
        dQ = torch.zeros_like(Q, dtype=high)
        dK, dV = torch.empty_like(K), torch.empty_like(V)
        for cols in tiles.key_blocks():
            k, v = tiles.cut(K, cols), tiles.cut(V, cols)
            dk, dv = torch.zeros_like(k), torch.zeros_like(v)
            for rows in tiles.query_blocks():
                if tiles.skips(rows, cols):
                    continue
                q, do = tiles.stack(Q, rows) * scale, tiles.stack(dO, rows)
                delta = (do * tiles.stack(O, rows)).sum(-1, keepdim=True)
                if d_lse is not None:  # the gradient of lse with respect to the scores is P
                    delta = delta - tiles.stack(d_lse, rows)
                P = tiles.scores(q, k, rows, cols).sub_(tiles.stack(lse, rows)).exp_()
                dv += P.mT @ do
                dS = (do @ v.mT).sub_(delta).mul_(P)
                del P
                dk += dS.mT @ q
                dQ[:, :, slice(*rows)] += tiles.spread((dS @ k).mul_(scale))
                del dS
            dK[:, :, slice(*cols)], dV[:, :, slice(*cols)] = dk.to(K.dtype), dv.to(V.dtype)
        return dQ.to(Q.dtype), dK, dV


class _Final(torch.autograd.Function):
    """Identity on a first derivative that refuses to be differentiated again."""

    @staticmethod
    def forward(value: Tensor, *depends: Tensor | None) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            "tiled_attention can be differentiated once: for second derivatives use "
            "attention_by_hand"
        )
