"""The feed-forward networks: the formulas, the memory view, and who sees whom."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

from companion.foundations import backpropagation
from companion.transformer.block import FeedForward, GatedFeedForward
from companion.transformer.block._feed_forward import ACTIVATIONS
from companion.verify import count_flops

B, N, D, FF = 2, 3, 5, 11
# Sums of at most 11 products of order 1 in float64.
EXACT = {"rtol": 1e-12, "atol": 1e-13}
NAMES = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu"}


def filled(module: nn.Module, g: torch.Generator) -> nn.Module:
    """Random parameters, biases included."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    return module


def rows(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape or (B, N, D), generator=g, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_the_activations_are_those_of_transformers(name: str, g: torch.Generator) -> None:
    assert set(ACTIVATIONS) == set(NAMES)
    assert ACTIVATIONS[name] is backpropagation.ACTIVATIONS[name]  # one table
    x = 3 * rows(g)
    torch.testing.assert_close(ACTIVATIONS[name](x), ACT2FN[NAMES[name]](x), **EXACT)


def test_the_two_gelus_are_close_and_not_equal(g: torch.Generator) -> None:
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    gap = (ACTIVATIONS["gelu"](x) - ACTIVATIONS["gelu_tanh"](x)).abs().max()
    assert 1e-4 < float(gap) < 1e-3


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_the_formula_in_the_layout_of_the_book(name: str, bias: bool, g: torch.Generator) -> None:
    x = rows(g)
    plain = filled(FeedForward(D, FF, activation=name, bias=bias), g)
    hidden = x @ plain.up.weight.T + (plain.up.bias if bias else 0)
    expected = ACTIVATIONS[name](hidden) @ plain.down.weight.T + (plain.down.bias if bias else 0)
    torch.testing.assert_close(plain(x), expected, **EXACT)

    gated = filled(GatedFeedForward(D, FF, activation=name, bias=bias), g)
    both = x @ gated.gate_up.weight.T + (gated.gate_up.bias if bias else 0)
    hidden = ACTIVATIONS[name](both[..., :FF]) * both[..., FF:]
    expected = hidden @ gated.down.weight.T + (gated.down.bias if bias else 0)
    torch.testing.assert_close(gated(x), expected, **EXACT)


def test_swiglu_is_that_of_llama(g: torch.Generator) -> None:
    ours = filled(GatedFeedForward(D, FF), g)
    config = LlamaConfig(hidden_size=D, intermediate_size=FF, head_dim=2, num_attention_heads=1)
    theirs = LlamaMLP(config).double()
    gate, up = ours.gate_up.weight.chunk(2)
    theirs.load_state_dict(
        {
            "gate_proj.weight": gate,
            "up_proj.weight": up,
            "down_proj.weight": ours.down.weight,
        }
    )
    x = rows(g)
    torch.testing.assert_close(ours(x), theirs(x), **EXACT)
    # The control: gate and up exchanged are another network.
    theirs.load_state_dict(
        {"gate_proj.weight": up, "up_proj.weight": gate, "down_proj.weight": ours.down.weight}
    )
    assert not torch.allclose(ours(x), theirs(x))


def test_the_network_is_a_memory_of_keys_and_values(g: torch.Generator) -> None:
    network = filled(FeedForward(D, FF), g)
    keys, values = network.key_vectors, network.value_vectors
    assert (keys.shape, values.shape) == ((FF, D), (FF, D))
    for row in rows(g, N, D):
        total = network.down.bias.clone()
        for i in range(FF):
            total += F.gelu(row @ keys[i] + network.up.bias[i]) * values[i]
        torch.testing.assert_close(network(row), total, **EXACT)


@pytest.mark.parametrize("kind", [FeedForward, GatedFeedForward])
def test_gradients_by_finite_differences(
    kind: Callable[..., nn.Module], g: torch.Generator
) -> None:
    network = filled(kind(3, 5, bias=True), g)
    x = rows(g, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(network, (x,))


@pytest.mark.parametrize("kind", [FeedForward, GatedFeedForward])
@given(shape=st.lists(st.integers(1, 3), max_size=3), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=20, deadline=None)
def test_each_token_is_worked_on_by_itself(
    kind: Callable[..., nn.Module], shape: list[int], seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    network = filled(kind(D, FF), g)
    x = rows(g, *shape, D)
    whole = network(x)
    assert whole.shape == x.shape
    apart = torch.stack([network(row) for row in x.reshape(-1, D)])
    torch.testing.assert_close(whole.reshape(-1, D), apart, **EXACT)


def test_operations_and_parameters_as_documented() -> None:
    plain, gated = FeedForward(D, FF, bias=False), GatedFeedForward(D, FF)
    x = torch.ones(B, N, D)
    assert count_flops(plain, x) == 4 * B * N * D * FF
    assert count_flops(gated, x) == 6 * B * N * D * FF
    assert sum(p.numel() for p in plain.parameters()) == 2 * D * FF
    assert sum(p.numel() for p in gated.parameters()) == 3 * D * FF
    assert sum(p.numel() for p in FeedForward(D, FF).parameters()) == 2 * D * FF + FF + D


@pytest.mark.parametrize("kind", [FeedForward, GatedFeedForward])
def test_device_dtype_purity_and_meta(
    kind: Callable[..., nn.Module], device: torch.device, g: torch.Generator
) -> None:
    network = filled(kind(D, FF), g)
    x = rows(g)
    before = x.clone()
    expected = network(x)
    assert torch.equal(x, before)
    there = kind(D, FF, device=device, dtype=torch.float32)
    there.load_state_dict(network.state_dict())
    made = there(x.to(device, torch.float32))
    assert (made.device.type, made.dtype) == (device.type, torch.float32)
    torch.testing.assert_close(made.cpu().double(), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert bool(torch.isfinite(there(x.to(device, torch.float32))).all())
    empty = kind(D, FF, device="meta", dtype=torch.bfloat16)(x.to("meta", torch.bfloat16))
    assert empty.is_meta
    assert empty.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [FeedForward, GatedFeedForward])
def test_misfits_are_named(kind: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"got dim = 0 and ff_dim = 11"):
        kind(0, FF)
    with pytest.raises(ValueError, match=r"got dim = 5 and ff_dim = -1"):
        kind(D, -1)


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize("kind", [FeedForward, GatedFeedForward])
def test_an_unknown_activation_is_named(kind: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"one of gelu, gelu_tanh, relu, silu, got 'swish'"):
        kind(D, FF, activation="swish")


def test_the_repr_names_the_activation() -> None:
    assert "activation='gelu_tanh'" in repr(FeedForward(D, FF, activation="gelu_tanh"))
    assert "activation='silu'" in repr(GatedFeedForward(D, FF))
