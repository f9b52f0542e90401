"""Attention that leaves pairs out compiles to one graph, and the graph computes the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from companion.core import randn
from companion.efficiency.sparse_attention import (
    delta_rule,
    elu_features,
    favor_attention,
    linear_attention,
    linformer_attention,
    local_attention,
    lsh_attention,
)
from companion.transformer.attention import causal, padding

REAL = torch.tensor([[True] * 23, [True] * 19 + [False] * 4])


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return randn(*shape, generator=generator, dtype=torch.float64)


OMEGA, TURNS, MIXTURES = numbers(11, 5, seed=4), numbers(2, 5, 3, seed=5), numbers(7, 23, seed=6)


def window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return local_attention(q, k, v, before=5, sinks=2, block=8, mask=causal() & padding(REAL))


def mixtures(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return linformer_attention(q, k, v, E=MIXTURES, F=MIXTURES, real=REAL)


def hashing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return lsh_attention(q, v, rotations=TURNS, chunk=4, causal=True, real=REAL)


def features(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return favor_attention(q, k, v, omega=OMEGA, causal=True, real=REAL, chunk=8)


def memory(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    decay = -elu_features(q[..., 0])
    return linear_attention(elu_features(q), elu_features(k), v, log_decay=decay, chunk=8)


def corrected(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(k, dim=-1)
    return delta_rule(q, unit, v, beta=q[..., 0].sigmoid(), chunk=8)


@pytest.mark.parametrize(
    "function", [window, mixtures, hashing, features, memory, corrected], ids=lambda f: f.__name__
)
def test_sparse_and_linear_attention_compile(function: Callable[..., Tensor]) -> None:
    inputs = [
        numbers(2, 3, 23, width, seed=seed).requires_grad_() for seed, width in enumerate((5, 5, 7))
    ]
    found = torch.compile(function, fullgraph=True)(*inputs)
    expected = function(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    used = [t for t in inputs if function is not hashing or t is not inputs[1]]
    upstream = numbers(*expected.shape, seed=9)
    gradients = (torch.autograd.grad(y, used, upstream) for y in (found, expected))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
