"""The hand-written backward pass and the tiled one, held against autograd and by counting."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.transformer.attention import (
    AttentionFunction,
    Mask,
    attention,
    attention_backward,
    attention_by_hand,
    attention_state,
    causal,
    dense_attention,
    everything,
    merge_states,
    padding,
    sliding_window,
    tiled_attention,
)
from companion.verify import count_flops, peak_bytes

B, H, KV, N, M, DK, DV = 2, 6, 3, 5, 7, 11, 13
# Sums of at most 13 products of order 1 in float64.
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def problem(
    g: torch.Generator, *, b: int = B, n: int = N, m: int = M, h: int = H, kv: int = H
) -> tuple[Tensor, Tensor, Tensor]:
    Q, K, V = (
        torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_()
        for s in ((b, h, n, DK), (b, kv, m, DK), (b, kv, m, DV))
    )
    return Q, K, V


# --- by hand ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("kv", [H, KV, 1])
def test_the_formulas_are_what_autograd_finds(
    kv: int, scale: float | None, g: torch.Generator
) -> None:
    inputs = problem(g, kv=kv)
    mask = causal(offset=-1)  # the first query reads nothing
    O, A = dense_attention(*inputs, mask=mask, scale=scale)  # noqa: E741
    dO = torch.randn(B, H, N, DV, generator=g, dtype=torch.float64)
    expected = torch.autograd.grad(O, inputs, dO)
    made = attention_backward(*inputs, A, dO, scale=scale)
    for a, b in zip(made, expected, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("axes", [2, 3])
def test_the_formulas_take_fewer_axes(axes: int, g: torch.Generator) -> None:
    inputs = [t.detach()[0, 0] if axes == 2 else t.detach()[:, 0] for t in problem(g)]
    for t in inputs:
        t.requires_grad_()
    O, A = dense_attention(*inputs)  # noqa: E741
    dO = torch.randn(O.shape, generator=g, dtype=torch.float64)
    for a, b in zip(
        attention_backward(*inputs, A, dO), torch.autograd.grad(O, inputs, dO), strict=True
    ):
        torch.testing.assert_close(a, b, **EXACT)


def test_finite_differences_confirm_first_and_second_derivatives(g: torch.Generator) -> None:
    Q, K, V = (
        torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_()
        for s in ((1, 2, 3, 2), (1, 1, 5, 2), (1, 1, 5, 3))
    )
    bias = torch.randn(2, 1, 5, generator=g, dtype=torch.float64).requires_grad_()

    def function(q: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return attention_by_hand(q, k, v, mask=causal(offset=1), bias=b)

    assert torch.autograd.gradcheck(function, (Q, K, V, bias))
    assert torch.autograd.gradgradcheck(function, (Q, K, V, bias))


def test_the_weights_have_a_gradient_of_their_own(g: torch.Generator) -> None:
    inputs = problem(g)
    dA = torch.randn(B, H, N, M, generator=g, dtype=torch.float64)
    dO = torch.randn(B, H, N, DV, generator=g, dtype=torch.float64)
    scale = DK**-0.5
    for grads in ((None, dA), (dO, dA), (dO, None)):
        found = []
        for out in (
            AttentionFunction.apply(*inputs, None, None, scale),
            dense_attention(*inputs),
        ):
            total = sum((o * d).sum() for o, d in zip(out, grads, strict=True) if d is not None)
            found.append(torch.autograd.grad(total, inputs, allow_unused=True))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, **EXACT)


def test_transforms_of_functions_work_by_hand(g: torch.Generator) -> None:
    Q, K, V = (t.detach() for t in problem(g))

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (attention_by_hand(q, k, v, mask=causal()) ** 2).sum()

    each = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(
        *(t[:, None] for t in (Q, K, V))
    )
    whole = torch.func.grad(loss, argnums=(0, 1, 2))(Q, K, V)
    for a, b in zip(each, whole, strict=True):
        torch.testing.assert_close(a[:, 0], b, **EXACT)


def test_the_backward_formulas_refuse_other_shapes(g: torch.Generator) -> None:
    Q, K, V = problem(g)
    O, A = dense_attention(Q, K, V)  # noqa: E741
    with pytest.raises(ValueError, match=r"A must have shape \(2, 6, 5, 7\), got \(2, 6, 7, 5\)"):
        _unchecked(attention_backward)(Q, K, V, A.mT, O)
    with pytest.raises(ValueError, match=r"dO must have shape \(2, 6, 5, 13\), got \(2, 6, 5, 7\)"):
        _unchecked(attention_backward)(Q, K, V, A, A)


def _unchecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Get past the run-time check of shapes, to the function's own."""
    return getattr(function, "__wrapped__", function)


# --- tiled ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    block=st.integers(1, 11),
    offset=st.integers(-5, 9),
    width=st.integers(1, 9),
    kind=st.sampled_from(["none", "causal", "window", "padding", "both", "not"]),
    kv=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_tiles_give_the_same_whatever_the_sizes(
    n: int, m: int, block: int, offset: int, width: int, kind: str, kv: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    inputs = problem(g, n=n, m=m, h=4, kv=kv)
    real = torch.rand(B, m, generator=g) < 0.6
    mask: Mask | None = {
        "none": None,
        "causal": causal(offset=offset),
        "window": sliding_window(width, offset=offset),
        "padding": padding(real),
        "both": causal(offset=offset) & padding(real),
        "not": ~sliding_window(width, offset=offset),
    }[kind]
    dO = torch.randn(B, 4, n, DV, generator=g, dtype=torch.float64)
    made = tiled_attention(*inputs, mask=mask, block=block)
    expected = dense_attention(*inputs, mask=mask)[0]
    torch.testing.assert_close(made, expected, **EXACT)
    for a, b in zip(
        torch.autograd.grad(made, inputs, dO),
        torch.autograd.grad(expected, inputs, dO),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **EXACT)


def test_finite_differences_confirm_the_tiled_gradient(g: torch.Generator) -> None:
    Q, K, V = (
        torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_()
        for s in ((1, 2, 5, 2), (1, 1, 5, 2), (1, 1, 5, 3))
    )
    assert torch.autograd.gradcheck(
        lambda *a: tiled_attention(*a, mask=causal(), block=2), (Q, K, V)
    )


def train_step(
    function: Callable[..., Tensor], n: int, *, heads: int = 2, width: int = 8, **kw: Any
) -> None:
    g = torch.Generator().manual_seed(0)
    Q, K, V = (torch.randn(1, heads, n, width, generator=g).requires_grad_() for _ in range(3))
    function(Q, K, V, **kw).sum().backward()


@pytest.mark.parametrize("mask", [None, causal(), sliding_window(100)], ids=["all", "causal", "w"])
def test_peak_memory_is_linear_in_n(mask: Mask | None) -> None:
    peaks = [
        peak_bytes(lambda n=n: train_step(tiled_attention, n, heads=1, mask=mask))
        for n in (1024, 2048, 4096, 8192)
    ]
    first, second, third = (b - a for a, b in pairwise(peaks))
    assert first > 0
    # Exactly: each step doubles n, and so doubles what was added.
    assert second == 2 * first
    assert third == 2 * second
    # The definition: doubling n adds four times as much.
    dense = [
        peak_bytes(lambda n=n: train_step(attention_by_hand, n, heads=1)) for n in (256, 512, 1024)
    ]
    assert dense[2] - dense[1] > 3.5 * (dense[1] - dense[0])
    # At 8192 the matrix of weights alone would take this many bytes and more.
    assert peaks[-1] < 4 * 8192**2 / 50


def test_blocks_that_a_mask_rules_out_are_not_visited() -> None:
    def cost(mask: Mask | None) -> int:
        return count_flops(lambda: train_step(tiled_attention, 640, mask=mask, block=64))

    block = cost(None) // 100
    assert cost(everything()) == 100 * block
    assert cost(causal()) == 55 * block  # the diagonal and what is below it
    assert cost(sliding_window(64)) == 19 * block  # the diagonal, and one block before each
    assert cost(causal(offset=-640)) == 0
    assert cost(~everything()) == 0


def test_the_tiled_backward_pass_costs_five_products() -> None:
    n, heads, width = 64, 2, 8
    product = 2 * heads * n * n * width
    cost = count_flops(lambda: train_step(tiled_attention, n, block=16))
    assert cost == (2 + 5) * product
    assert count_flops(lambda: train_step(attention_by_hand, n)) == (2 + 4) * product


def test_second_derivatives_of_tiles_are_refused(g: torch.Generator) -> None:
    inputs = problem(g)
    out = tiled_attention(*inputs, block=3)
    gradients = torch.autograd.grad((out**2).sum(), inputs, create_graph=True)
    for a, b in zip(
        gradients,
        torch.autograd.grad((dense_attention(*inputs)[0] ** 2).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **EXACT)
    with pytest.raises(RuntimeError, match=r"differentiated once: .* use attention_by_hand"):
        (gradients[0] ** 2).sum().backward()


def test_functional_grad_works_through_tiles(g: torch.Generator) -> None:
    Q, K, V = (t.detach() for t in problem(g))
    made = torch.func.grad(lambda q: (tiled_attention(q, K, V, block=3) ** 2).sum())(Q)
    expected = torch.func.grad(lambda q: (dense_attention(q, K, V)[0] ** 2).sum())(Q)
    torch.testing.assert_close(made, expected, **EXACT)


def test_a_block_size_below_one_is_refused(g: torch.Generator) -> None:
    with pytest.raises(ValueError, match="block must be 1 or more, got 0"):
        tiled_attention(*problem(g), block=0)


def test_float32_tiles_are_as_exact_as_the_fused_kernel(g: torch.Generator) -> None:
    Q, K, V = (torch.randn(1, 2, 300, 16, generator=g, dtype=torch.float64) for _ in range(3))
    exact = dense_attention(Q, K, V)[0]
    made = tiled_attention(Q.float(), K.float(), V.float(), block=64)
    fused = attention(Q.float(), K.float(), V.float())
    # A few units in the last place of numbers of order 1.
    assert float((made - exact).abs().max()) < 16 * torch.finfo(torch.float32).eps
    assert float((fused - exact).abs().max()) < 16 * torch.finfo(torch.float32).eps


# --- merging ----------------------------------------------------------------------------------


def parts(g: torch.Generator, cuts: tuple[int, ...]) -> tuple[Any, list[Any]]:
    Q, K, V = problem(g)
    bias = torch.randn(N, M, generator=g, dtype=torch.float64)
    allowed = causal(offset=1).dense(N, M)
    whole = attention_state(Q, K, V, mask=allowed, bias=bias)
    ends = [0, *cuts, M]
    pieces = [
        attention_state(Q, K[:, :, a:b], V[:, :, a:b], mask=allowed[..., a:b], bias=bias[:, a:b])
        for a, b in pairwise(ends)
    ]
    return whole, pieces


@pytest.mark.parametrize("cuts", [(3,), (1, 2), (0, 6), (2, 2, 5)])
def test_states_of_parts_merge_to_the_state_of_the_whole(
    cuts: tuple[int, ...], g: torch.Generator
) -> None:
    whole, pieces = parts(g, cuts)
    merged = pieces[0]
    for piece in pieces[1:]:
        merged = merge_states(merged, piece)
    for a, b in zip(merged, whole, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_merging_is_associative_commutative_and_has_a_neutral_element(g: torch.Generator) -> None:
    _, (a, b, c) = parts(g, (2, 5))
    left = merge_states(merge_states(a, b), c)
    for x, y in zip(left, merge_states(a, merge_states(b, c)), strict=True):
        torch.testing.assert_close(x, y, **EXACT)
    for x, y in zip(left, merge_states(merge_states(c, a), b), strict=True):
        torch.testing.assert_close(x, y, **EXACT)
    nothing = (torch.full_like(a[0], -torch.inf), torch.zeros_like(a[1]), torch.zeros_like(a[2]))
    for x, y in zip(merge_states(a, nothing), a, strict=True):
        torch.testing.assert_close(x, y, **EXACT)
    for x, y in zip(merge_states(nothing, nothing), nothing, strict=True):
        assert torch.equal(x, y)


def test_gradients_flow_through_merged_states(g: torch.Generator) -> None:
    Q, K, V = problem(g)
    halves = [attention_state(Q, K[:, :, s], V[:, :, s]) for s in (slice(0, 3), slice(3, M))]
    made = torch.autograd.grad((merge_states(*halves).output ** 2).sum(), (Q, K, V))
    expected = torch.autograd.grad((dense_attention(Q, K, V)[0] ** 2).sum(), (Q, K, V))
    for a, b in zip(made, expected, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


# --- the logarithm of the normalizer ---------------------------------------------------------


@pytest.mark.parametrize("mask", [None, causal()])
def test_the_tiled_normalizers_are_those_of_the_scores(
    mask: Mask | None, g: torch.Generator
) -> None:
    Q, K, V = problem(g)
    out, lse = tiled_attention(Q, K, V, mask=mask, block=3, return_lse=True)
    assert torch.equal(out, tiled_attention(Q, K, V, mask=mask, block=3))
    K_each = K.repeat_interleave(Q.shape[1] // K.shape[1], dim=1)
    scores = Q @ K_each.mT / Q.shape[-1] ** 0.5
    if mask is not None:
        n, m = scores.shape[-2:]
        reads = torch.arange(m) <= torch.arange(n)[:, None]
        scores = scores.masked_fill(~reads, -torch.inf)
    want = scores.logsumexp(-1)
    torch.testing.assert_close(lse, want, rtol=1e-12, atol=1e-13)
    # Gradients of both outputs together, and of the normalizers alone.
    for weigh in (lambda o, z: (o**2).sum() + z.sin().sum(), lambda o, z: z.sin().sum()):
        ours = torch.autograd.grad(weigh(out, lse), (Q, K), retain_graph=True)
        weights = torch.softmax(scores, -1)
        dense = weights @ V.repeat_interleave(Q.shape[1] // V.shape[1], dim=1)
        oracle = torch.autograd.grad(weigh(dense, want), (Q, K), retain_graph=True)
        for mine, theirs in zip(ours, oracle, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_tiled_states_of_two_sets_of_keys_merge_into_the_whole(g: torch.Generator) -> None:
    Q, K, V = problem(g)
    states = []
    for cut in (slice(0, 2), slice(2, None)):
        out, lse = tiled_attention(Q, K[:, :, cut], V[:, :, cut], block=2, return_lse=True)
        states.append((lse, torch.ones_like(lse), out))
    torch.testing.assert_close(
        merge_states(*states).output, tiled_attention(Q, K, V), rtol=1e-12, atol=1e-13
    )


def test_the_normalizer_of_nothing_is_minus_infinity_and_has_no_gradient(
    g: torch.Generator,
) -> None:
    Q, K, V = problem(g)
    allowed = torch.ones(Q.shape[-2], K.shape[-2], dtype=torch.bool)
    allowed[1] = False
    out, lse = tiled_attention(Q, K, V, mask=allowed, block=2, return_lse=True)
    assert torch.isneginf(lse[:, :, 1]).all()
    assert lse[:, :, 0].isfinite().all()
    assert lse.dtype == torch.float64
    grads = torch.autograd.grad(out.sum() + lse[:, :, [0, 2]].sum(), (Q, K, V))
    assert all(grad.isfinite().all() for grad in grads)
    assert (grads[0][:, :, 1] == 0).all()
    half = tiled_attention(Q.half(), K.half(), V.half(), return_lse=True)[1]
    assert half.dtype == torch.float32
