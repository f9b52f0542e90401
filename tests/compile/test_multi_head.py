"""The layer compiles to one graph, and the graph computes the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from companion.transformer.attention import causal, padding
from companion.transformer.multi_head import (
    KVCache,
    MultiHeadAttention,
    ancestors,
    output_value_circuit,
    query_key_circuit,
)

B, N, M, D = 2, 5, 7, 12
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True)


def draw(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("kv_heads", [6, 3])
@pytest.mark.parametrize(
    "rule", [None, pytest.param(causal(), marks=pytest.mark.inductor)], ids=["all", "causal"]
)
def test_the_layer_compiles_with_its_backward_pass(
    g: torch.Generator, kv_heads: int, rule: Any
) -> None:
    mha = MultiHeadAttention(D, 6, kv_heads=kv_heads, bias=True, dtype=torch.float64)
    x = draw(B, N, D, g=g).requires_grad_()
    made, expected = compiled(mha)(x, mask=rule), mha(x, mask=rule)
    torch.testing.assert_close(made, expected, **EXACT)
    for one, other in zip(
        torch.autograd.grad(made.square().sum(), [x, *mha.parameters()]),
        torch.autograd.grad(expected.square().sum(), [x, *mha.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, **EXACT)


def test_padding_and_cross_attention_compile(g: torch.Generator) -> None:
    mha = MultiHeadAttention(D, 6, kv_heads=3, dtype=torch.float64)
    x, context = draw(B, N, D, g=g), draw(B, M, D, g=g)
    real = draw(B, M, g=g) > -1

    def cross(x: Tensor, context: Tensor, real: Tensor) -> Tensor:
        return mha(x, context, mask=real[:, None, None]) + mha(x, context, mask=padding(real))

    made, expected = compiled(cross)(x, context, real), cross(x, context, real)
    torch.testing.assert_close(made, expected, **EXACT)


@pytest.mark.inductor
@torch.no_grad()
def test_a_decoding_step_with_its_cache_compiles(g: torch.Generator) -> None:
    mha = MultiHeadAttention(D, 6, kv_heads=3, dtype=torch.float64)
    x = draw(B, N, D, g=g)
    cache = KVCache(1, B, 3, N, 2, dtype=torch.float64).layers[0]
    step = compiled(lambda token: mha(token, cache=cache))
    made = torch.cat([step(token) for token in x.split(1, 1)], 1)
    torch.testing.assert_close(made, mha(x, mask=causal()), **EXACT)
    assert cache.length == N


def test_circuits_and_ancestors_compile() -> None:
    mha = MultiHeadAttention(D, 6, kv_heads=3, dtype=torch.float64)
    for circuit in (query_key_circuit, output_value_circuit):
        torch.testing.assert_close(compiled(circuit)(mha), circuit(mha), **EXACT)
    parents = torch.tensor([-1, 0, 0, 2, 3, 1])
    assert torch.equal(compiled(ancestors)(parents), ancestors(parents))
