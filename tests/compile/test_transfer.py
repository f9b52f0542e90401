"""What is added to a model for tuning compiles with it to one graph."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from companion.pretraining.transfer import (
    Adapter,
    LoRALinear,
    PrefixTuning,
    PromptTuning,
    ewc_penalty,
    mean_cosine,
    pool,
    self_similarity,
    trained_state,
)
from companion.transformer.attention import causal
from companion.transformer.block import Encoder, Learned, TransformerConfig
from companion.transformer.multi_head import MultiHeadAttention

CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def agree(function: Callable[..., Tensor], module: nn.Module, *inputs: Tensor) -> None:
    """The same output, and the same gradients of all trained parameters."""
    torch._dynamo.reset()
    trained = [p for p in module.parameters() if p.requires_grad]
    assert trained
    made, expected = torch.compile(function, fullgraph=True)(*inputs), function(*inputs)
    torch.testing.assert_close(made, expected, **CLOSE)
    for a, b in zip(
        torch.autograd.grad(made.square().sum(), trained),
        torch.autograd.grad(expected.square().sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **CLOSE)


def thawed(module: nn.Module, g: torch.Generator) -> nn.Module:
    with torch.no_grad():
        for p in trained_state(module).values():
            p += 0.3 * torch.randn(p.shape, generator=g).to(p.dtype)
    return module


@pytest.mark.inductor
@pytest.mark.parametrize("merged", [False, True])
def test_lora_compiles(g: torch.Generator, merged: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = nn.Linear(7, 11, dtype=torch.float64)
    layer = LoRALinear(base, rank=2, alpha=4.0, generator=g, rows=[(0, 4), (6, 11)])
    thawed(layer, g)
    x = torch.randn(2, 5, 7, generator=g, dtype=torch.float64)
    if merged:
        layer.merge()
        torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x), **CLOSE)
    else:
        agree(layer, layer, x)


def test_adapters_compile(g: torch.Generator) -> None:
    adapter = thawed(Adapter(7, 3, generator=g, dtype=torch.float64), g)
    agree(adapter, adapter, torch.randn(2, 5, 7, generator=g, dtype=torch.float64))


@pytest.mark.parametrize("mask", [None, causal()], ids=["all", "causal"])
def test_attention_with_a_prefix_compiles(g: torch.Generator, mask: object) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = MultiHeadAttention(12, 6, kv_heads=2, dtype=torch.float64)
    layer.prefix = PrefixTuning(layer, length=3, generator=g)
    x = torch.randn(2, 5, 12, generator=g, dtype=torch.float64)
    agree(lambda x: layer(x, mask=mask), layer, x)


def test_a_model_behind_a_prompt_compiles(g: torch.Generator) -> None:
    config = TransformerConfig(
        vocab=23, dim=12, layers=1, heads=6, ff_dim=31, context=29, positions=Learned()
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Encoder(config).double()
    tuned = PromptTuning(model, length=3, generator=g)
    ids = torch.randint(0, 23, (2, 5), generator=g)
    agree(tuned, tuned, ids)


def test_measures_and_penalties_compile(g: torch.Generator) -> None:
    torch._dynamo.reset()
    h = torch.randn(2, 7, 5, generator=g, dtype=torch.float64)
    real = torch.rand(2, 7, generator=g) < 0.8
    words = torch.arange(14) % 3

    def measure(h: Tensor) -> Tensor:
        rows = h.flatten(0, 1)
        return pool(h, real).sum() + mean_cosine(rows) + self_similarity(rows, words, count=3).sum()

    torch.testing.assert_close(torch.compile(measure, fullgraph=True)(h), measure(h), **CLOSE)
    start = {"a": torch.zeros_like(h)}

    def penalty(h: Tensor) -> Tensor:
        return ewc_penalty({"a": h}, start, {"a": h.detach().square()}, strength=3.0)

    torch.testing.assert_close(torch.compile(penalty, fullgraph=True)(h), penalty(h), **CLOSE)
