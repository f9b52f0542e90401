"""Coarse attention compiles to one graph, and the graph computes the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from companion.core import randn
from companion.efficiency.multiscale import (
    hierarchical_attention,
    multiscale_attention,
    native_sparse_attention,
    nystrom_attention,
    pooled_attention,
)

REAL = torch.tensor([[True] * 23, [True] * 19 + [False] * 4])


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return randn(*shape, generator=generator, dtype=torch.float64)


def means(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return pooled_attention(q, k, v, size=4, causal=True, real=REAL)


def scales(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    gates = q[..., :3].softmax(-1)
    return multiscale_attention(q, k, v, gates, sizes=[1, 2, 4], causal=True, real=REAL)


def hierarchy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return hierarchical_attention(q, k, v, leaf=4, causal=True, real=REAL)


def landmarks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return nystrom_attention(q, k, v, landmarks=5, real=REAL)


def branches(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    gates = q[..., :3].softmax(-1)
    return native_sparse_attention(q, k, v, gates, block=4, count=2, window=5, real=REAL)


@pytest.mark.parametrize(
    "function", [means, scales, hierarchy, landmarks, branches], ids=lambda f: f.__name__
)
def test_coarse_attention_compiles(function: Callable[..., Tensor]) -> None:
    inputs = [
        numbers(2, 3, 23, width, seed=seed).requires_grad_() for seed, width in enumerate((5, 5, 7))
    ]
    found = torch.compile(function, fullgraph=True)(*inputs)
    expected = function(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    upstream = numbers(*expected.shape, seed=9)
    gradients = (torch.autograd.grad(y, inputs, upstream) for y in (found, expected))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
