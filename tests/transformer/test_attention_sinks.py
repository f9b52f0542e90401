"""Entropy and sinks of attention weights against their definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from companion.core import watch
from companion.models import minilm, smollm2
from companion.transformer.attention import (
    attention_entropy,
    attention_with_sink,
    causal,
    sink_mass,
    softmax_one,
)

# Sums of at most some hundred products of order 1 in float64.
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def test_entropy_lies_between_zero_and_the_logarithm_of_the_keys() -> None:
    A = torch.eye(5, dtype=torch.float64)[None]
    assert attention_entropy(A).abs().max() == 0
    uniform = torch.full((2, 3, 7), 1 / 7, dtype=torch.float64)
    H = attention_entropy(uniform)
    torch.testing.assert_close(H, torch.full_like(H, math.log(7)), **EXACT)


@given(
    n=st.integers(2, 60),
    bound=st.floats(0.01, 8.0),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=50, deadline=None)
def test_bounded_scores_disperse(n: int, bound: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    s = (torch.rand(n, generator=g, dtype=torch.float64) * 2 - 1) * bound
    a = torch.softmax(s, -1)
    assert ((n * a).log().abs() <= 2 * bound + 1e-12).all()
    H = float(attention_entropy(a[None])[0])
    assert math.log(n) - 2 * bound <= H + 1e-12
    assert math.log(n) + 1e-12 >= H


def test_the_floor_of_the_entropy_cannot_be_halved() -> None:
    # Few high scores among many low ones: log n - B is not a floor.
    s = torch.full((2000,), -3.0, dtype=torch.float64)
    s[:20] = 3.0
    H = float(attention_entropy(torch.softmax(s, -1)[None])[0])
    assert math.log(2000) - 6 < H < math.log(2000) - 3


def test_sink_mass_is_the_mean_of_a_column_without_its_own_entry(g: torch.Generator) -> None:
    A = torch.softmax(torch.randn(2, 3, 7, 7, generator=g, dtype=torch.float64), -1)
    for p in (0, 3, -1):
        at = p % 7
        naive = torch.stack([A[..., i, at] for i in range(7) if i != at]).mean(0)
        torch.testing.assert_close(sink_mass(A, position=p), naive, **EXACT)
    uniform = torch.full((5, 5), 0.2, dtype=torch.float64)
    assert float(sink_mass(uniform)) == pytest.approx(0.2, rel=1e-15)


def test_a_causal_row_of_equal_weights_has_the_sink_mass_that_is_documented() -> None:
    A = torch.ones(11, 11, dtype=torch.float64).tril()
    A = A / A.sum(-1, keepdim=True)
    assert float(sink_mass(A)) == pytest.approx(sum(1 / i for i in range(2, 12)) / 10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_numbers_are_summed_in_wide_ones(dtype: torch.dtype) -> None:
    # A sum of hundreds has a spacing of 1/4 or more here: in this dtype the differences are lost.
    A = torch.full((701, 701), 0.1 / 700)
    A[:, 0] = 0.9
    for function in (sink_mass, attention_entropy):
        made, wide = function(A.to(dtype)), function(A.to(dtype).double())
        assert made.dtype == dtype
        # One rounding of the result.
        torch.testing.assert_close(made.double(), wide, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.usefixtures("own_checks")
def test_sink_mass_refuses_what_is_no_self_attention() -> None:
    with pytest.raises(ValueError, match=r"A must be square, of 2 tokens or more, got \(3, 5\)"):
        sink_mass(torch.ones(3, 5))
    with pytest.raises(ValueError, match=r"square, of 2 tokens or more, got \(1, 1\)"):
        sink_mass(torch.ones(1, 1))
    with pytest.raises(ValueError, match=r"position must lie in \[-3, 3\), got 3"):
        sink_mass(torch.ones(3, 3), position=3)
    with pytest.raises(ValueError, match="A must be floating"):
        attention_entropy(torch.ones(3, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="A must be floating"):
        sink_mass(torch.ones(3, 3, dtype=torch.long))


@pytest.mark.parametrize("dim", [-1, 1])
def test_softmax_one_is_its_fraction(dim: int, g: torch.Generator) -> None:
    s = torch.randn(2, 5, 3, generator=g, dtype=torch.float64)
    for b in (0.0, -0.7, 1.3):
        naive = s.exp() / (math.exp(b) + s.exp().sum(dim, keepdim=True))
        torch.testing.assert_close(softmax_one(s, sink=b, dim=dim), naive, **EXACT)


def test_softmax_one_approaches_softmax_and_nothing() -> None:
    s = torch.tensor([0.3, -0.2, 1.1], dtype=torch.float64)
    torch.testing.assert_close(softmax_one(s, sink=-torch.inf), torch.softmax(s, -1), **EXACT)
    assert float(softmax_one(s - 1000).sum()) == 0.0
    big = softmax_one(torch.tensor([1e4, 1e4, -1e4]))
    torch.testing.assert_close(big, torch.tensor([0.5, 0.5, 0.0]))


def test_softmax_one_of_nothing_is_zero_with_zero_gradient() -> None:
    s = torch.full((2, 3), -torch.inf, dtype=torch.float64, requires_grad=True)
    weights = softmax_one(s)
    weights.sum().backward()
    assert weights.abs().max() == 0
    assert s.grad is not None
    assert s.grad.abs().max() == 0


def test_softmax_one_and_its_sink_have_right_gradients(g: torch.Generator) -> None:
    s = torch.randn(2, 5, generator=g, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 1, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: softmax_one(x, sink=y), (s, b))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_softmax_one_keeps_the_dtype(dtype: torch.dtype) -> None:
    s = torch.tensor([11.0, 3.0, -2.0], dtype=dtype)
    made = softmax_one(s)
    assert made.dtype == dtype
    wide = softmax_one(s.double())
    # One rounding of weights below 1.
    assert (made.double() - wide).abs().max() <= torch.finfo(dtype).eps


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_sink_is_softmax_one_of_the_scores(
    kv_heads: int, masked: bool, g: torch.Generator
) -> None:
    Q = torch.randn(2, 6, 5, 4, generator=g, dtype=torch.float64)
    K = torch.randn(2, kv_heads, 5, 4, generator=g, dtype=torch.float64)
    V = torch.randn(2, kv_heads, 5, 7, generator=g, dtype=torch.float64)
    b = torch.randn(6, generator=g, dtype=torch.float64)
    copies = [t.clone() for t in (Q, K, V, b)]
    S = Q @ K.repeat_interleave(6 // kv_heads, 1).mT / 2
    if masked:
        S = S.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
    A = softmax_one(S, sink=b.view(6, 1, 1))
    mask = causal() if masked else None
    made = attention_with_sink(Q, K, V, sink=b, mask=mask)
    torch.testing.assert_close(made, A @ V.repeat_interleave(6 // kv_heads, 1), **EXACT)
    for now, before in zip((Q, K, V, b), copies, strict=True):
        assert torch.equal(now, before)


def test_attention_with_sink_is_that_of_gpt_oss(g: torch.Generator) -> None:
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    Q = torch.randn(2, 6, 5, 4, generator=g, dtype=torch.float64)
    K = torch.randn(2, 3, 5, 4, generator=g, dtype=torch.float64)
    V = torch.randn(2, 3, 5, 4, generator=g, dtype=torch.float64)
    module = nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    module.sinks = nn.Parameter(torch.randn(6, generator=g, dtype=torch.float64))
    module.eval()
    theirs, _ = eager_attention_forward(module, Q, K, V, None, scaling=0.5)
    ours = attention_with_sink(Q, K, V, sink=module.sinks)
    torch.testing.assert_close(ours, theirs.transpose(1, 2), **EXACT)


def test_a_query_that_may_read_nothing_gets_zero_beside_the_sink() -> None:
    x = torch.ones(1, 2, 3, 4, dtype=torch.float64)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    mask[..., 1, :] = False
    out = attention_with_sink(x, x, x, mask=mask)
    assert out[:, :, 1].abs().max() == 0
    assert out[:, :, 0].min() > 0


@pytest.mark.usefixtures("own_checks")
def test_a_sink_needs_one_score_for_each_head() -> None:
    x = torch.ones(1, 2, 3, 4)
    with pytest.raises(ValueError, match="one entry for each of 2 heads, got 3"):
        attention_with_sink(x, x, x, sink=torch.ones(3))
    with pytest.raises(ValueError, match="scores must be floating"):
        softmax_one(torch.ones(3, dtype=torch.long))


def test_tensor_functions_run_on_meta_and_leave_their_inputs_alone(g: torch.Generator) -> None:
    A = torch.softmax(torch.randn(2, 3, 5, 5, generator=g), -1)
    for function in (attention_entropy, sink_mass, softmax_one):
        before = A.clone()
        made = function(A)
        assert torch.equal(A, before)
        shape = function(A.to("meta"))
        assert (shape.shape, shape.dtype, shape.device.type) == (made.shape, made.dtype, "meta")
    hollow = torch.empty(2, 3, 5, 7, device="meta")
    assert attention_with_sink(hollow, hollow, hollow).shape == hollow.shape


def test_the_real_models_have_a_sink_at_the_first_token() -> None:
    text = "The old bridge was closed for repairs, so the children walked home along the river."
    real = smollm2()
    ids = torch.tensor([[0, *real.tokenizer.encode(text).ids]])
    encoder = minilm()
    words = torch.tensor([encoder.tokenizer.encode(text).ids])
    maps = []
    for model, tokens in ((real.model, ids), (encoder.model, words)):
        with torch.no_grad(), watch(model, read=["*.weights"]) as seen:
            model(tokens)
        maps.append(torch.stack([*seen.values()]))
    late, inner = maps[0][12:], maps[1][1:5]
    # Many times what uniform attention would give, 1/n = 0.05.
    assert sink_mass(late).mean() > 0.4
    assert sink_mass(inner).mean() > 0.25
    assert sink_mass(inner, position=-1).mean() < 0.1
