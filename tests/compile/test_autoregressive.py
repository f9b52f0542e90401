"""The loss of a language model and the query layer compile to one graph."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from companion.pretraining.autoregressive import (
    QueryLayer,
    draw,
    gpt2_config,
    initialize,
    llama_config,
    next_token_log_probs,
    next_token_loss,
    scaling_objective,
)
from companion.transformer.block import Decoder, TransformerConfig

V, N = 29, 11
CLOSE = {"rtol": 1e-10, "atol": 1e-11}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True)


def model_of(form: str, g: torch.Generator) -> Decoder:
    config = (
        gpt2_config((2, 24, 3), vocab=V, context=N)
        if form == "gpt2"
        else llama_config((2, 24, 6), vocab=V, context=N, kv_heads=2, ff_dim=37)
    )
    return initialize(config, generator=g, dtype=torch.float64)


# TorchDynamo itself makes an instance of autograd.Function while it traces one.
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    ("form", "chunked"),
    [
        ("gpt2", True),
        ("gpt2", False),
        ("llama", True),
        pytest.param("llama", False, marks=pytest.mark.inductor),
    ],
)
def test_the_loss_compiles_with_its_gradient(form: str, chunked: bool, g: torch.Generator) -> None:
    model = model_of(form, g)
    ids = torch.randint(0, V, (3, N + 1), generator=g)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return next_token_loss(model, x, chunked=chunked)

    made, expected = compiled(loss)(ids), loss(ids)
    torch.testing.assert_close(made, expected, **CLOSE)
    a, b = (torch.autograd.grad(x, model.tokens.weight)[0] for x in (made, expected))
    torch.testing.assert_close(a, b, **CLOSE)


def test_scores_compile(g: torch.Generator) -> None:
    model = model_of("gpt2", g).requires_grad_(False)
    ids = torch.randint(0, V, (3, N + 1), generator=g)
    made = compiled(lambda x: next_token_log_probs(model, x))(ids)
    torch.testing.assert_close(made, next_token_log_probs(model, ids), **CLOSE)


def test_the_query_layer_compiles(g: torch.Generator) -> None:
    config = TransformerConfig(vocab=V, dim=24, layers=2, heads=3, ff_dim=37, context=N)
    layer = QueryLayer(config).double().requires_grad_(False)
    x = torch.randn(2, 7, 24, generator=g, dtype=torch.float64)
    torch.testing.assert_close(compiled(layer)(x), layer(x), **CLOSE)


def test_the_objective_of_the_scaling_law_compiles() -> None:
    theta = torch.tensor([0.3, 3.0, 4.1, 0.36, 0.3], dtype=torch.float64)
    runs = torch.tensor([[1e4, 3e5], [1e6, 7e5], [3.1, 2.9]], dtype=torch.float64)
    made = compiled(scaling_objective)(theta, *runs)
    torch.testing.assert_close(made, scaling_objective(theta, *runs), **CLOSE)


def test_draws_differ_only_by_the_generator(g: torch.Generator) -> None:
    # Drawing reads a generator, which a graph cannot hold; the same seed gives the same draws.
    logits = torch.randn(5, V, generator=g)
    first, second = (draw(logits, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
