"""Attention: the library's function against PyTorch's kernels and x-transformers."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._pair import Pair, Side, close
from companion.transformer.attention import (
    attention,
    causal,
    dense_attention,
    padding,
    sliding_window,
    tiled_attention,
)

HEADS, WIDTH = 9, 64


def inputs(
    device: torch.device, n: int, *, queries: int | None = None, grad: bool = False
) -> list[Tensor]:
    """Queries, keys and values of a batch of one."""
    g = torch.Generator().manual_seed(0)
    shapes = [(1, HEADS, queries or n, WIDTH), (1, HEADS, n, WIDTH), (1, HEADS, n, WIDTH)]
    return [torch.randn(s, generator=g).to(device).requires_grad_(grad) for s in shapes]


def _forward(
    function: Callable[..., Tensor], n: int, *, queries: int | None = None, **options: Any
) -> Callable[[torch.device], Side]:
    def make(device: torch.device) -> Side:
        Q, K, V = inputs(device, n, queries=queries)
        made = {k: v(device) if callable(v) else v for k, v in options.items()}

        def run() -> Tensor:
            with torch.no_grad():
                return function(Q, K, V, **made)

        return run

    return make


def _training(function: Callable[..., Tensor], n: int) -> Callable[[torch.device], Side]:
    def make(device: torch.device) -> Side:
        Q, K, V = inputs(device, n, grad=True)

        def run() -> list[Tensor]:
            O = function(Q, K, V)  # noqa: E741
            return [O, *torch.autograd.grad(O.square().sum(), (Q, K, V))]

        return run

    return make


def _sdpa(Q: Tensor, K: Tensor, V: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(Q, K, V, **options)


def _real(device: torch.device, n: int) -> Tensor:
    real = torch.ones(1, n, dtype=torch.bool, device=device)
    real[:, -n // 5 :] = False
    return real


def _window(n: int, width: int) -> Callable[[torch.device], Side]:
    def make(device: torch.device) -> Side:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        Q, K, V = inputs(device, n)
        block = create_block_mask(
            lambda b, h, i, j: (j <= i) & (i - j < width), None, None, n, n, device=device
        )
        compiled = torch.compile(flex_attention)

        def run() -> Tensor:
            with torch.no_grad():
                made: Tensor = compiled(Q, K, V, block_mask=block)
                return made

        return run

    return make


def _x_transformers(device: torch.device) -> Side:
    from x_transformers.attend import Attend

    attend = Attend(causal=True, flash=True, heads=HEADS).to(device)
    Q, K, V = inputs(device, 1024)

    def run() -> Tensor:
        with torch.no_grad():
            made: Tensor = attend(Q, K, V)[0]
            return made

    return run


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    size = f"{HEADS} heads of {WIDTH}"
    same = close(1e-5)
    yield Pair(
        name="attention/full",
        task=f"512 tokens, {size}, every key read",
        peer="torch scaled_dot_product_attention",
        ours=_forward(attention, 512),
        theirs=_forward(_sdpa, 512),
        same=same,
        speed=0.95,
    )
    yield Pair(
        name="attention/causal",
        task=f"1,024 tokens, {size}, causal",
        peer="torch scaled_dot_product_attention",
        ours=_forward(attention, 1024, mask=lambda device: causal()),
        theirs=_forward(_sdpa, 1024, is_causal=True),
        same=same,
        speed=0.95,
    )
    yield Pair(
        name="attention/padded",
        task=f"512 tokens, a fifth of them padding, {size}",
        peer="torch scaled_dot_product_attention with a mask",
        ours=_forward(attention, 512, mask=lambda device: padding(_real(device, 512))),
        theirs=_forward(_sdpa, 512, attn_mask=lambda device: _real(device, 512)[:, None, None]),
        same=same,
        speed=0.95,
    )
    yield Pair(
        name="attention/decode",
        task=f"one query and 1,024 keys, {size}",
        peer="torch scaled_dot_product_attention",
        ours=_forward(attention, 1024, queries=1),
        theirs=_forward(_sdpa, 1024, queries=1),
        same=same,
        speed=0.95,
        note="Microseconds: what differs is the checking of shapes.",
    )
    yield Pair(
        name="attention/x-transformers",
        task=f"1,024 tokens, {size}, causal",
        peer="x-transformers Attend(flash=True)",
        needs=["x_transformers"],
        ours=_forward(attention, 1024, mask=lambda device: causal()),
        theirs=_x_transformers,
        same=same,
        speed=0.95,
    )
    yield Pair(
        name="attention/window",
        task=f"4,096 tokens, {size}, causal window of 256",
        peer="FlexAttention, compiled, with a block mask",
        ours=_forward(attention, 4096, mask=lambda device: sliding_window(256), backend="flex"),
        theirs=_window(4096, 256),
        same=same,
        note="Ours makes the block mask in the call; theirs was made before.",
    )
    yield Pair(
        name="attention/dense",
        task=f"forward and backward, 1,024 tokens, {size}",
        peer="torch scaled_dot_product_attention",
        ours=_training(lambda Q, K, V: dense_attention(Q, K, V)[0], 1024),
        theirs=_training(_sdpa, 1024),
        same=close(1e-4),
        note="The readable definition: it holds all scores.",
    )
    yield Pair(
        name="attention/tiled",
        task=f"forward and backward, 2,048 tokens, {size}",
        peer="torch scaled_dot_product_attention",
        ours=_training(tiled_attention, 2048),
        theirs=_training(_sdpa, 2048),
        same=close(1e-4),
        note="The algorithm in Python over PyTorch's matrix products, to be read.",
    )
