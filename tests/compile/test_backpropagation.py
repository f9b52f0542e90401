"""The rules compile to one graph, and so does the network whose width changes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import companion.foundations.backpropagation as bp
from companion.foundations.backpropagation import WidthMLP

N, D, H, K = 3, 5, 7, 11
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def draw(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True)


@pytest.mark.parametrize(
    "name", ["relu", "sigmoid", "tanh", "gelu", "silu", "exp", "log", "log_softmax"]
)
def test_activation_rules_compile(name: str) -> None:
    rule = getattr(bp, f"{name}_backward")
    saved, grad = draw(N, D).abs() + 0.1, draw(N, D, seed=1)
    torch.testing.assert_close(compiled(rule)(saved, grad), rule(saved, grad), **EXACT)


IDS = torch.tensor([4, 0, 4])


STRUCTURAL: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "linear": (bp.linear_backward, [(2, N, D), (D, H), (2, N, H)]),
    "matmul": (bp.matmul_backward, [(2, N, D), (2, D, H), (2, N, H)]),
    "multiply": (bp.multiply_backward, [(N, 1), (D,), (N, D)]),
    "divide": (bp.divide_backward, [(N, 1), (D,), (N, D)]),
    "add": (lambda grad: bp.add_backward(grad, shapes=((N, 1), (D,))), [(N, D)]),
    "mean": (lambda grad: bp.mean_backward(grad, shape=(N, D), dim=1), [(N,)]),
    "embedding": (lambda grad: bp.embedding_backward(grad, IDS, rows=D), [(N, H)]),
    "index": (lambda grad: bp.index_backward(grad, (slice(None), IDS), shape=(N, D)), [(N, 3)]),
    "power": (lambda x, grad: bp.power_backward(x, grad, exponent=3), [(N,), (N,)]),
}


@pytest.mark.parametrize("name", STRUCTURAL)
def test_structural_rules_compile(name: str) -> None:
    rule, shapes = STRUCTURAL[name]
    inputs = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    torch.testing.assert_close(compiled(rule)(*inputs), rule(*inputs), **EXACT)


@pytest.mark.inductor
def test_a_width_mlp_compiles() -> None:
    g = torch.Generator().manual_seed(0)
    model = WidthMLP(D, H, K, base_width=2, generator=g, dtype=torch.float64)
    x = draw(N, D)
    torch.testing.assert_close(compiled(model)(x), model(x), **EXACT)
