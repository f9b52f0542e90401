"""The norms, the feed-forward networks and a block compile to one graph."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from companion.core import watch
from companion.transformer.attention import causal
from companion.transformer.block import (
    Block,
    Decoder,
    FeedForward,
    GatedFeedForward,
    LayerNorm,
    RMSNorm,
    TransformerConfig,
    layer_norm_backward,
    layer_norm_by_hand,
    rms_norm_backward,
    rms_norm_by_hand,
)

B, N, D = 2, 3, 5
CLOSE = {"rtol": 1e-12, "atol": 1e-13}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True)


def agree(function: Callable[..., Any], *inputs: Tensor) -> None:
    """The same values, and the same gradients of all inputs."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    made, expected = compiled(function)(*leaves), function(*leaves)
    torch.testing.assert_close(made, expected, **CLOSE)
    for a, b in zip(
        torch.autograd.grad(made.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **CLOSE)


# TorchDynamo itself makes an instance of autograd.Function while it traces one.
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
def test_norms_by_hand_compile_with_their_backward_pass(g: torch.Generator) -> None:
    x = torch.randn(B, N, D, generator=g, dtype=torch.float64)
    weight, bias = torch.randn(2, D, generator=g, dtype=torch.float64)
    agree(layer_norm_by_hand, x, weight, bias)
    agree(rms_norm_by_hand, x, weight)


@pytest.mark.parametrize("function", [layer_norm_backward, rms_norm_backward])
def test_backward_functions_compile(function: Callable[..., Any], g: torch.Generator) -> None:
    x, grad = torch.randn(2, B, N, D, generator=g, dtype=torch.float64)
    weight = torch.randn(D, generator=g, dtype=torch.float64)
    torch.testing.assert_close(
        compiled(function)(x, weight, grad), function(x, weight, grad), **CLOSE
    )


@pytest.mark.parametrize(
    "module",
    [LayerNorm(D), RMSNorm(D), FeedForward(D, 7), GatedFeedForward(D, 7)],
    ids=lambda m: type(m).__name__,
)
def test_modules_compile(module: torch.nn.Module, g: torch.Generator) -> None:
    agree(module.double(), torch.randn(B, N, D, generator=g, dtype=torch.float64))


@pytest.mark.parametrize("place", [pytest.param("pre", marks=pytest.mark.inductor), "post"])
def test_a_block_compiles(place: str, g: torch.Generator) -> None:
    config = TransformerConfig(
        vocab=11, dim=12, layers=1, heads=3, ff_dim=31, context=9, norm_place=place
    )
    block = Block(config).double()
    agree(block, torch.randn(B, N, 12, generator=g, dtype=torch.float64))


@pytest.mark.parametrize("kv_heads", [1, 3])
def test_one_compiled_block_serves_causal_texts_of_any_length(
    kv_heads: int, g: torch.Generator
) -> None:
    config = TransformerConfig(
        vocab=11, dim=12, layers=1, heads=3, kv_heads=kv_heads, ff_dim=31, context=29
    )
    block = Block(config).double().requires_grad_(False)
    fast = compiled(lambda x: block(x, mask=causal()))
    for n in (5, 7, 11, 1):
        x = torch.randn(B, n, 12, generator=g, dtype=torch.float64)
        torch.testing.assert_close(fast(x), block(x, mask=causal()), **CLOSE)


@torch.no_grad()
def test_one_graph_of_a_model_that_nobody_watches_and_one_of_a_watched_one(
    g: torch.Generator,
) -> None:
    torch._dynamo.reset()
    config = TransformerConfig(vocab=11, dim=12, layers=2, heads=3, ff_dim=31, context=29)
    model = Decoder(config).double()
    ids = torch.randint(11, (B, 7), generator=g)
    plain = model(ids)
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(fast(ids), plain, **CLOSE)
    arrow = torch.randn(12, generator=g, dtype=torch.float64)
    change = {"blocks.0.stream": lambda x: x + arrow}
    with watch(model, read=["*.weights", "logits"], replace=change) as expected:
        model(ids)
    with watch(fast, read=["*.weights", "logits"], replace=change) as seen:
        fast(ids)
    assert list(seen) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(seen[name], value, **CLOSE)
    torch.testing.assert_close(fast(ids), plain, **CLOSE)
