"""The functions of attention weights compile to one graph, and the graph computes the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from companion.transformer.attention import (
    attention_entropy,
    attention_with_sink,
    sink_mass,
    softmax_one,
)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True)


@pytest.mark.parametrize(
    "function",
    [
        attention_entropy,
        sink_mass,
        softmax_one,
        lambda A: sink_mass(A, position=-1),
        lambda A: softmax_one(A, sink=A[..., :1], dim=-1),
    ],
    ids=["entropy", "sink", "one", "last", "learned"],
)
def test_functions_of_weights_compile(
    function: Callable[[Tensor], Tensor], g: torch.Generator
) -> None:
    A = torch.softmax(torch.randn(2, 3, 5, 5, generator=g, dtype=torch.float64), -1)
    torch.testing.assert_close(compiled(function)(A), function(A), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("learned", [False, pytest.param(True, marks=pytest.mark.inductor)])
def test_attention_with_a_sink_compiles_with_its_backward_pass(
    learned: bool, g: torch.Generator
) -> None:
    Q, K, V = (
        torch.randn(2, 4, 7, 6, generator=g, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    )
    sink = torch.randn(4, generator=g, dtype=torch.float64, requires_grad=True)

    def layer(q: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return attention_with_sink(q, k, v, sink=b if learned else 0.5)

    wrt = (Q, K, V, sink) if learned else (Q, K, V)
    made, expected = compiled(layer)(Q, K, V, sink), layer(Q, K, V, sink)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-13)
    for a, b in zip(
        torch.autograd.grad(made.square().sum(), wrt),
        torch.autograd.grad(expected.square().sum(), wrt),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
