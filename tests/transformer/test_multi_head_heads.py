"""Heads one by one: their importance, models without some of them, and shared keys and values."""

import copy
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from companion.core import watch
from companion.transformer.attention import causal
from companion.transformer.multi_head import (
    MultiHeadAttention,
    attention_layers,
    head_importance,
    output_value_circuit,
    pool_kv_heads,
    prune_heads,
    query_key_circuit,
)
from companion.transformer.positions import ShawRelative

B, N, D, H, L = 3, 5, 12, 6, 2
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def draw(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def layer(g: torch.Generator, heads: int = H, **sizes: Any) -> MultiHeadAttention:
    made = MultiHeadAttention(D, heads, bias=True, dtype=torch.float64, **sizes)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(draw(*parameter.shape, g=g) / parameter.shape[-1] ** 0.5)
    return made


class Residual(nn.Module):
    """A small model: two layers of attention around a residual stream."""

    def __init__(self, *layers: MultiHeadAttention) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for mha in self.layers:
            x = x + torch.tanh(mha(x, mask=causal()))
        return x


def model(g: torch.Generator, **sizes: Any) -> Residual:
    return Residual(*(layer(g, **sizes) for _ in range(L)))


def gated(layers: Any, gates: Tensor) -> ExitStack:
    """Multiply what the heads of each layer read by a row of gates, until closed."""
    watched = ExitStack()
    for mha, row in zip(layers, gates, strict=True):
        change = {"heads": lambda Z, row=row: Z * row[:, None, None]}
        watched.enter_context(watch(mha, replace=change))
    return watched


def by_gates(made: Residual, loss: Any, x: Tensor) -> Tensor:
    """The gradient of a scalar loss by one gate for each head."""
    gates = torch.ones(L, H, dtype=torch.float64, requires_grad=True)
    with gated(made.layers, gates):
        return torch.autograd.grad(loss(x), gates)[0]


# --- importance -----------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [{}, {"kv_heads": 3, "value_dim": 5}], ids=["plain", "grouped"])
def test_importance_is_the_mean_absolute_gradient_of_the_gates(
    g: torch.Generator, sizes: dict[str, int]
) -> None:
    made, x, target = model(g, **sizes), draw(B, N, D, g=g), draw(N, D, g=g)

    def losses(x: Tensor) -> Tensor:
        return (made(x) * target).sum((1, 2)) + made(x).square().mean((1, 2))

    each = torch.stack([by_gates(made, lambda t: losses(t).sum(), row[None]) for row in x])
    torch.testing.assert_close(head_importance(made, losses, [x]), each.abs().mean(0), **EXACT)
    # The examples count alike, however they are batched.
    split = head_importance(made, losses, [x[:1], x[1:]])
    torch.testing.assert_close(split, each.abs().mean(0), **EXACT)
    signed = head_importance(made, losses, [x[:1], x[1:]], signed=True)
    torch.testing.assert_close(signed, each.mean(0), **EXACT)
    # A scalar loss belongs to its whole batch.
    whole = head_importance(made, lambda t: losses(t).sum(), [x[:1], x[1:]])
    expected = (each[0].abs() + (each[1] + each[2]).abs()) / 2
    torch.testing.assert_close(whole, expected, **EXACT)
    unit = head_importance(made, losses, [x], normalize=True)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(L, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(
        unit, each.abs().mean(0) / each.abs().mean(0).norm(dim=1, keepdim=True), **EXACT
    )


def test_importance_of_a_linear_loss_is_the_change_when_the_head_goes(g: torch.Generator) -> None:
    """The theorem behind it: a loss linear in the gate has no higher terms."""
    mha, x, target = layer(g), draw(1, N, D, g=g), draw(N, D, g=g)

    def losses(x: Tensor) -> Tensor:
        return (mha(x) * target).sum((1, 2))

    importance = head_importance(mha, losses, [x])[0]
    signed = head_importance(mha, losses, [x], signed=True)[0]
    with torch.no_grad():
        full = losses(x)
        for head in range(H):
            gates = torch.ones(1, H, dtype=torch.float64)
            gates[0, head] = 0
            with gated([mha], gates):
                change = losses(x) - full
            torch.testing.assert_close(-signed[head : head + 1], change, **EXACT)
            torch.testing.assert_close(importance[head : head + 1], change.abs(), **EXACT)


def test_a_head_that_writes_nothing_matters_nothing(g: torch.Generator) -> None:
    made, x = model(g), draw(B, N, D, g=g)
    width = D // H
    with torch.no_grad():
        made.layers[1].out.weight[:, 2 * width : 3 * width] = 0
    importance = head_importance(made, lambda t: made(t).square().sum((1, 2)), [x])
    assert importance[1, 2] == 0
    assert (importance > 0).sum() == L * H - 1


def test_examples_may_pass_through_the_model_several_times(g: torch.Generator) -> None:
    made, x, y = model(g), draw(B, N, D, g=g), draw(B, 7, D, g=g)

    def losses(batch: tuple[Tensor, Tensor]) -> Tensor:
        first, second = (made(t).mean(1) for t in batch)
        return (first * second).sum(-1)

    each = [
        by_gates(made, lambda pair: losses(pair).sum(), (a[None], b[None]))
        for a, b in zip(x, y, strict=True)
    ]
    expected = torch.stack(each).abs().mean(0)
    torch.testing.assert_close(head_importance(made, losses, [(x, y)]), expected, **EXACT)


def test_a_layer_that_is_not_used_matters_nothing(g: torch.Generator) -> None:
    made, x = model(g), draw(B, N, D, g=g)
    importance = head_importance(
        made, lambda t: made.layers[1](t).square().sum((1, 2)), [x], normalize=True
    )
    assert torch.equal(importance[0], torch.zeros(H, dtype=torch.float64))
    assert importance[1].min() > 0


def test_measuring_leaves_the_model_as_it_was(g: torch.Generator) -> None:
    made, x = model(g), draw(B, N, D, g=g)
    gates = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.5, 1.0]], dtype=torch.float64)
    with gated(made.layers[:1], gates), torch.no_grad():  # works under it, too
        gradients = head_importance(made, lambda t: made(t).square().sum((1, 2)), [x])
    assert gradients[0, 1] == 0  # the gate was closed already
    before = made(x).clone()
    importance = head_importance(made, lambda t: made(t).square().sum((1, 2)), [x])
    assert importance[0, 1] > 0
    assert not importance.requires_grad
    assert torch.equal(made(x), before)
    assert all(p.grad is None for p in made.parameters())

    def fails(t: Tensor) -> Tensor:
        made(t)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        head_importance(made, fails, [x])
    assert torch.equal(made(x), before)
    assert not any(mha.watched(*mha.sites) for mha in made.layers)


@pytest.mark.usefixtures("own_checks")
def test_losses_without_a_gradient_or_of_a_wrong_shape_are_refused(g: torch.Generator) -> None:
    made, x = model(g), draw(B, N, D, g=g)
    uneven = Residual(layer(g, 6), layer(g, 3))
    for measured, loss, batches, message in (
        (made, lambda t: made(t).sum((1, 2)), [], "give at least one batch"),
        (made, lambda t: t.sum(), [x], "does not depend on the model"),
        (made, lambda t: made(t).detach().sum(), [x], "does not depend on the model"),
        (made, lambda t: made(t).sum(2), [x], r"\(\) or \(examples,\), got \(3, 5\)"),
        (
            made,
            lambda t: made(t).sum((0, 2)),
            [x],
            "5 losses need .* with as many rows, .* 3",
        ),
        (uneven, lambda t: uneven(t).sum(), [x], r"one number of heads, got \[6, 3\]"),
        (nn.Linear(3, 5), lambda t: t, [x], "Linear holds no MultiHeadAttention"),
    ):
        with pytest.raises(ValueError, match=message):
            head_importance(measured, loss, batches)


# --- models without some heads --------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(kept=st.lists(st.sets(st.integers(0, H - 1), min_size=1), min_size=L, max_size=L))
def test_property_a_pruned_model_computes_what_closed_gates_compute(kept: list[set[int]]) -> None:
    g = torch.Generator().manual_seed(sum(map(sum, kept)) + 7)
    made, x = model(g), draw(B, N, D, g=g)
    keep = torch.zeros(L, H, dtype=torch.bool)
    for row, heads in zip(keep, kept, strict=True):
        row[list(heads)] = True
    before = copy.deepcopy(made.state_dict())
    smaller = prune_heads(made, keep)
    assert [mha.heads for mha in attention_layers(smaller)] == keep.sum(1).tolist()
    with gated(made.layers, keep.double()):
        expected = made(x)
    torch.testing.assert_close(smaller(x), expected, **EXACT)
    assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())
    apart = {p.data_ptr() for p in made.parameters()} & {p.data_ptr() for p in smaller.parameters()}
    assert not apart


def test_a_layer_that_stands_in_two_places_is_pruned_in_both(g: torch.Generator) -> None:
    shared = layer(g)
    made, x = Residual(shared, shared), draw(B, N, D, g=g)
    keep = torch.ones(1, H, dtype=torch.bool)
    keep[0, 2] = False
    smaller = prune_heads(made, keep)
    assert smaller.layers[0] is smaller.layers[1]
    with gated([shared], keep.double()):
        expected = made(x)
    torch.testing.assert_close(smaller(x), expected, **EXACT)


def test_a_layer_alone_is_pruned_too(g: torch.Generator) -> None:
    mha = layer(g)
    keep = torch.tensor([[True, False, False, True, False, False]])
    smaller = prune_heads(mha, keep)
    assert torch.equal(smaller.qkv.weight, mha.keep_heads([0, 3]).qkv.weight)


@pytest.mark.usefixtures("own_checks")
def test_prunings_that_cannot_be_are_refused(g: torch.Generator) -> None:
    made, grouped = model(g), model(g, kv_heads=3)
    all_of = torch.ones(L, H, dtype=torch.bool)
    none, split = all_of.clone(), all_of.clone()
    none[1], split[0, 0] = False, False
    for pruned, keep, message in (
        (made, all_of.float(), "keep must be Bool, .* got torch.float32"),
        (made, all_of[:1], r"keep must have shape \(2, \*\), got \(1, 6\)"),
        (made, all_of[:, :5], "layer 0 has 6 heads, but keep has 5"),
        (made, none, "layer 1 would lose all of its heads"),
        (grouped, split, "keep whole groups"),
    ):
        with pytest.raises(ValueError, match=message):
            prune_heads(pruned, keep)


# --- shared keys and values -----------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_pooling_averages_neighboring_key_value_heads(g: torch.Generator, kv_heads: int) -> None:
    mha = layer(g, value_dim=5)
    pooled = pool_kv_heads(mha, kv_heads)
    size = H // kv_heads
    for group in range(kv_heads):
        members = slice(group * size, (group + 1) * size)
        for name in ("key_matrix", "value_matrix"):
            torch.testing.assert_close(
                getattr(pooled, name)[group], getattr(mha, name)[members].mean(0), **EXACT
            )
    assert torch.equal(pooled.query_matrix, mha.query_matrix)
    assert torch.equal(pooled.output_matrix, mha.output_matrix)
    queries = H * mha.head_dim
    keys = mha.qkv.bias[queries : 2 * queries].view(kv_heads, size, -1).mean(1).flatten()
    torch.testing.assert_close(pooled.qkv.bias[queries : queries + keys.numel()], keys, **EXACT)


def test_pooling_equal_heads_changes_nothing_and_composes(g: torch.Generator) -> None:
    grouped, x = layer(g, kv_heads=3), draw(B, N, D, g=g)
    full = layer(g)
    queries, width = D, D // H
    with torch.no_grad():
        for new, old in ((full.qkv.weight, grouped.qkv.weight), (full.qkv.bias, grouped.qkv.bias)):
            rest = old[queries:].reshape(2 * 3, width, *old.shape[1:]).repeat_interleave(2, 0)
            new.copy_(torch.cat([old[:queries], rest.flatten(0, 1)]))
        full.out.load_state_dict(grouped.out.state_dict())
    torch.testing.assert_close(pool_kv_heads(full, 3)(x), full(x), **EXACT)
    other = layer(g)
    twice = pool_kv_heads(pool_kv_heads(other, 3), 1)
    torch.testing.assert_close(twice(x), pool_kv_heads(other, 1)(x), **EXACT)
    assert torch.equal(pool_kv_heads(other, H)(x), other(x))


def test_pooling_keeps_relative_positions(g: torch.Generator) -> None:
    shaw = ShawRelative(2, 3, dtype=torch.float64)
    mha, x = layer(g, relative=shaw), draw(B, N, D, g=g)
    pooled = pool_kv_heads(mha, H)
    torch.testing.assert_close(pooled(x), mha(x), **EXACT)
    assert pooled.relative is not shaw
    with torch.no_grad():
        pooled.relative.weight.zero_()
    assert shaw.weight.abs().min() > 0


def test_a_number_of_groups_that_does_not_divide_is_refused(g: torch.Generator) -> None:
    with pytest.raises(ValueError, match="kv_heads must divide the layer's 6, got 4"):
        pool_kv_heads(layer(g), 4)
    with pytest.raises(ValueError, match="kv_heads must be 1 or more, got 0"):
        pool_kv_heads(layer(g), 0)


def test_a_layer_with_more_than_linear_maps_is_not_pooled(g: torch.Generator) -> None:
    adapted = layer(g)
    adapted.qkv = torch.nn.Sequential(adapted.qkv)
    with pytest.raises(ValueError, match=r"maps were replaced, as LoRA does, cannot be pooled"):
        pool_kv_heads(adapted, H)


def test_heads_can_be_looked_at_without_data_on_meta() -> None:
    mha = MultiHeadAttention(D, H, bias=True, device="meta")
    pooled = pool_kv_heads(mha, 2)
    assert pooled.qkv.weight.device.type == "meta"
    assert query_key_circuit(pooled).shape == (H, D, D)
    assert output_value_circuit(pooled).shape == (H, D, D)
    x = torch.ones(B, N, D, device="meta")
    importance = head_importance(mha, lambda t: mha(t).sum((1, 2)), [x])
    assert importance.device.type == "meta"
    assert importance.shape == (1, H)
    assert prune_heads(mha, torch.ones(1, H, dtype=torch.bool)).heads == H


def test_half_precision_is_measured_in_float32(g: torch.Generator) -> None:
    made, x = model(g).to(torch.bfloat16), draw(B, N, D, g=g).to(torch.bfloat16)

    def losses(t: Tensor) -> Tensor:
        return made(t).float().square().sum((1, 2))

    importance = head_importance(made, losses, [x])
    assert importance.dtype == torch.float32
    exact = head_importance(made.double(), lambda t: made(t).square().sum((1, 2)), [x.double()])
    # Gradients of products that are rounded to 8 bits a few times: some 2^-8 of the largest each.
    torch.testing.assert_close(importance.double(), exact, rtol=0, atol=2**-5 * float(exact.max()))
