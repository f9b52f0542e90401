"""Maps of attention: rollout, flow, norms, and other weights with the same output."""

import itertools

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from companion.core import watch
from companion.transformer.multi_head import MultiHeadAttention
from companion.trust.interpretability import (
    alternative_attention,
    attention_flow,
    mixed_with_residual,
    null_attention,
    rollout,
    value_norms,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def some_maps(layers: int, heads: int, n: int, seed: int = 0) -> Tensor:
    return draw(layers, heads, n, n, seed=seed).softmax(-1)


def test_later_layers_stand_on_the_left() -> None:
    weights = some_maps(2, 3, 5)
    first, second = (0.5 * A.mean(0) + 0.5 * torch.eye(5).double() for A in weights)
    torch.testing.assert_close(rollout(weights), second @ first)
    assert not torch.allclose(rollout(weights), first @ second)


def test_rows_are_divided_and_not_columns() -> None:
    # Half of (A + I) with a row that lost a part: ((1, 0), (1/4, 1/2)).
    A = torch.tensor([[[1.0, 0.0], [0.5, 0.0]]], dtype=torch.float64)
    made = mixed_with_residual(A)
    torch.testing.assert_close(made[1], torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    torch.testing.assert_close(made.sum(-1), torch.ones(2).double())


def test_a_row_of_padding_stays_with_itself() -> None:
    A = torch.zeros(1, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(mixed_with_residual(A), torch.eye(3).double())
    assert torch.equal(mixed_with_residual(A, residual=0.0), torch.zeros(3, 3).double())


def test_rollout_takes_batches_and_keeps_causality() -> None:
    weights = draw(3, 2, 4, 5, 5).tril().exp().tril()
    weights = weights / weights.sum(-1, keepdim=True)
    made = rollout(weights)
    assert made.shape == (2, 5, 5)
    assert torch.equal(made.triu(1), torch.zeros_like(made))
    torch.testing.assert_close(made[1], rollout(weights[:, 1]))


@given(layers=st.integers(1, 4), n=st.integers(1, 6), seed=st.integers(0, 9999))
def test_rows_sum_to_one(layers: int, n: int, seed: int) -> None:
    R = rollout(some_maps(layers, 2, n, seed))
    torch.testing.assert_close(R.sum(-1), torch.ones(n).double())


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_flow_is_networkx_and_at_least_rollout(layers: int) -> None:
    weights, n = some_maps(layers, 2, 5, seed=layers), 5
    graph = nx.DiGraph()
    for layer, mixed in enumerate(mixed_with_residual(weights)):
        for q, k in itertools.product(range(n), range(n)):
            graph.add_edge((layer + 1, q), (layer, k), capacity=float(mixed[q, k]))
    F = attention_flow(weights)
    for i, j in itertools.product(range(n), range(n)):
        want = nx.maximum_flow_value(graph, (layers, i), (0, j))
        # Pipes are rounded down, so a flow may be too small, and is never too large.
        assert -1e-14 <= want - float(F[i, j]) <= n * layers * 2.0**-30
    assert bool((rollout(weights) - 1e-8 <= F).all())
    if layers == 1:
        torch.testing.assert_close(F, rollout(weights), rtol=0, atol=1e-8)


def test_pipes_that_hold_everything_hold_everything() -> None:
    cycle = torch.eye(3).roll(1, 0)[None, None]
    F = attention_flow(cycle.repeat(2, 1, 1, 1), residual=0.0)
    assert torch.equal(F, (cycle[0, 0] @ cycle[0, 0]).double())


def test_flow_equals_the_smallest_cut() -> None:
    weights = some_maps(2, 2, 3)
    first, second = mixed_with_residual(weights)
    F = attention_flow(weights)
    for i, j in itertools.product(range(3), range(3)):
        cuts = []
        for inside in itertools.product([False, True], repeat=3):  # tokens of the middle
            kept = torch.tensor(inside)
            cuts.append(float(second[i][~kept].sum() + first[kept, j].sum()))
        assert abs(float(F[i, j]) - min(cuts)) < 1e-8


@pytest.mark.parametrize("kv_heads", [3, 1])
def test_norms_are_those_of_the_vectors_that_a_layer_adds(kv_heads: int) -> None:
    layer = MultiHeadAttention(6, 3, kv_heads=kv_heads, value_dim=5, dtype=torch.float64)
    x = draw(2, 7, 6)
    with torch.no_grad(), watch(layer, read=["weights", "values"]) as seen:
        out = layer(x)
    a, v, W = seen["weights"], seen["values"], layer.output_matrix.detach()
    shared = v.expand(-1, 3, -1, -1) if kv_heads == 1 else v
    vectors = torch.einsum("bhij,bhjv,hvd->bhijd", a, shared, W)
    torch.testing.assert_close(vectors.sum((1, 3)), out)
    torch.testing.assert_close(value_norms(a, v, W), vectors.norm(dim=-1))
    torch.testing.assert_close(value_norms(a[1], v[1], W), vectors[1].norm(dim=-1))
    torch.testing.assert_close(value_norms(a, v, W, join=True), vectors.sum(1).norm(dim=-1))


def test_null_attention_is_a_basis_of_what_no_output_shows() -> None:
    V = draw(11, 3)
    N = null_attention(V)
    assert N.shape == (11 - 4, 11)
    torch.testing.assert_close(N @ N.T, torch.eye(7).double())
    assert float((N @ V).abs().max()) < 1e-13
    assert float(N.sum(1).abs().max()) < 1e-13
    assert null_attention(draw(4, 3)).shape == (0, 4)
    # Values of lower rank leave more: two columns that are equal.
    assert len(null_attention(V[:, [0, 0, 1]])) == 8
    # In float32 values of rank 2 are of rank 2, in spite of rounding.
    low = (draw(11, 2) @ draw(2, 7, seed=1)).float()
    assert len(null_attention(low)) == 11 - 3


def test_other_weights_are_distributions_with_the_same_output() -> None:
    A, V = draw(5, 13).softmax(-1), draw(13, 3, seed=1)
    before = A.clone(), V.clone()
    other = alternative_attention(A, V)
    assert torch.equal(A, before[0])
    assert torch.equal(V, before[1])
    assert bool((other >= 0).all())
    torch.testing.assert_close(other.sum(1), torch.ones(5).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(other @ V, A @ V, rtol=0, atol=1e-12)
    most = A.argmax(1, keepdim=True)
    assert bool((other.gather(1, most) < 0.7 * A.gather(1, most)).all())


def test_nothing_can_be_chosen_in_a_short_text() -> None:
    A, V = draw(5, 4).softmax(-1), draw(4, 3)
    assert torch.equal(alternative_attention(A, V), A)
    assert alternative_attention(draw(0, 9), draw(9, 2)).shape == (0, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_less_precision_are_distributions_too(dtype: torch.dtype) -> None:
    A, V = draw(50, 13).softmax(-1).to(dtype), draw(13, 3, seed=1).to(dtype)
    other = alternative_attention(A, V.requires_grad_())
    assert other.dtype == torch.float64
    assert not other.requires_grad
    torch.testing.assert_close(other @ V.detach().double(), A.double() @ V.detach().double())
    with pytest.raises(ValueError, match="distribution"):
        alternative_attention(0.97 * A, V)


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: rollout(torch.ones(2, 3, 3)), r"must be \(layers, \.\.\., heads, n, n\)"),
        (lambda: rollout(torch.ones(0, 2, 3, 3)), "layers must be 1 or more"),
        (lambda: mixed_with_residual(torch.ones(2, 3, 4)), r"must be \(\.\.\., heads, n, n\)"),
        (lambda: mixed_with_residual(torch.ones(2, 3, 3), residual=1.5), "residual must lie"),
        (lambda: mixed_with_residual(torch.ones(2, 3, 3).long()), "weights"),
        (lambda: attention_flow(torch.full((1, 1, 2, 2), torch.nan)), "weights"),
        (lambda: attention_flow(torch.ones(2, 1, 1, 3, 3)), r"\(layers, heads, n, n\)"),
        (lambda: attention_flow(-torch.ones(1, 1, 2, 2)), "weights must be 0 or more"),
        (
            lambda: value_norms(
                torch.ones(2, 4, 2, 2), torch.ones(3, 4, 2, 5), torch.ones(4, 5, 6)
            ),
            r"values must be \(2, kv_heads, 2, 5\)",
        ),
        (
            lambda: value_norms(torch.ones(4, 2, 2), torch.ones(3, 2, 5), torch.ones(4, 5, 6)),
            "do not divide",
        ),
        (
            lambda: value_norms(torch.ones(4, 2, 2), torch.ones(4, 3, 5), torch.ones(4, 5, 6)),
            "values must be",
        ),
        (lambda: alternative_attention(torch.ones(2, 3), torch.ones(3, 2)), "distribution"),
        (lambda: alternative_attention(torch.ones(2, 3), torch.ones(4, 2)), "values must have"),
        (lambda: null_attention(torch.full((3, 2), torch.inf)), "values"),
    ],
)
def test_what_does_not_fit_is_refused(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_maps_run_on_meta() -> None:
    A = torch.empty(2, 3, 4, 5, 5, device="meta")
    assert rollout(A).device.type == "meta"
    V, W = torch.empty(2, 3, 4, 5, 7, device="meta"), torch.empty(4, 7, 11, device="meta")
    assert value_norms(A, V, W).shape == (2, 3, 4, 5, 5)
    assert value_norms(A, V, W, join=True).shape == (2, 3, 5, 5)
