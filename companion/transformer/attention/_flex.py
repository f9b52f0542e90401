r"""Attention by PyTorch's FlexAttention: a kernel that is compiled for the mask at hand."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from companion.transformer.attention._inputs import drop, lift, lift_addend, lift_bias
from companion.transformer.attention._masks import Mask


@cache
def _compiled() -> Callable[..., Any]:
    """Return the compiled function, made at the first call: importing compiles nothing."""
    compiled: Callable[..., Any] = torch.compile(flex_attention)
    return compiled


def flex(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    mask: Mask | BlockMask | Tensor | None,
    bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Return the outputs of attention by FlexAttention."""
    if Q.device.type == "cpu":
        if torch.is_grad_enabled() and (Q.requires_grad or K.requires_grad or V.requires_grad):
            raise ValueError(
                "FlexAttention has no backward pass on the CPU: use backend='auto', or "
                "torch.no_grad() where no gradient is wanted"
            )
        if Q.dtype == torch.float64:
            raise ValueError(
                "FlexAttention on the CPU takes float32 and narrower, got torch.float64: "
                "use backend='auto'"
            )
    q, k, v = lift(Q), lift(K), lift(V)
    if isinstance(mask, Mask):
        mask.check(Q.shape[-2], K.shape[-2], batch=q.shape[0], device=Q.device)
        block_mask = _of_rule(mask, q, k)
    elif mask is None or isinstance(mask, BlockMask):
        block_mask = mask
    else:
        allowed = lift_addend("mask", mask, Q, K)
        block_mask = _of_rule(Mask(_reader(allowed)), q, k)
    B = lift_bias(bias, Q, K)
    run: Any = flex_attention if torch.compiler.is_compiling() else _compiled()
    out: Tensor = run(
        q,
        k,
        v,
        score_mod=None if B is None else _adder(B),
        block_mask=block_mask,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return drop(out, Q.ndim)


def _of_rule(mask: Mask, q: Tensor, k: Tensor) -> BlockMask | None:
    n, m = q.shape[2], k.shape[2]
    if mask.allows_all(n, m):
        return None
    return mask.block_mask(n, m, device=q.device, batch=q.shape[0], heads=q.shape[1])


def _reader(table: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the function that reads a table of four axes, some of which may have size 1."""
    B, H, N, M = (int(size > 1) for size in table.shape)
    return lambda b, h, i, j: table[b * B, h * H, i * N, j * M]


def _adder(bias: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    read = _reader(bias)
    return lambda score, b, h, i, j: score + read(b, h, i, j)
