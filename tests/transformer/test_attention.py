"""Attention: the definition, the fused kernels, and independent implementations."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from companion.transformer.attention import (
    Mask,
    SelfAttention,
    attention,
    attention_by_hand,
    attention_state,
    attention_weights,
    causal,
    dense_attention,
    documents,
    everything,
    merge_states,
    padding,
    prefix,
    sliding_window,
    tiled_attention,
)

B, H, KV, N, M, DK, DV = 2, 6, 3, 5, 7, 11, 13
# Sums of at most 13 products of order 1 in float64.
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def problem(
    g: torch.Generator,
    *,
    n: int = N,
    m: int = M,
    kv: int = H,
    dv: int = DV,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((B, H, n, DK), (B, kv, m, DK), (B, kv, m, dv))
    Q, K, V = (
        torch.randn(*s, generator=g, dtype=torch.float64).to(device, dtype).requires_grad_()
        for s in shapes
    )
    return Q, K, V


def real_keys(m: int = M, device: torch.device | str = "cpu") -> Tensor:
    real = torch.ones(B, m, dtype=torch.bool, device=device)
    real[0, 2] = False
    real[1, 3:] = False
    return real


def square_masks(device: torch.device | str = "cpu") -> dict[str, Mask | None]:
    ids = torch.tensor([[0, 0, 1, 1, 2], [3, 3, 3, 3, 1]], device=device)
    real = real_keys(N, device)
    return {
        "none": None,
        "everything": everything(),
        "causal": causal(),
        "window": sliding_window(2),
        "prefix": prefix(2),
        "padding": padding(real),
        "causal & padding": causal() & padding(real),
        "documents": documents(ids) & causal(),
        "nothing for some": causal(offset=-2),
        "nothing at all": ~everything(),
        "by head": Mask(lambda b, h, i, j: (i + j + h) % 3 > 0),
    }


def paths(mask: Any, bias: Tensor | None, scale: float | None) -> dict[str, Callable[..., Tensor]]:
    """Every way to compute attention that has a backward pass on every device."""
    made: dict[str, Callable[..., Tensor]] = {
        "auto": lambda *a: attention(*a, mask=mask, bias=bias, scale=scale),
        "sdpa": lambda *a: attention(*a, mask=mask, bias=bias, scale=scale, backend="sdpa"),
        "dense": lambda *a: attention(*a, mask=mask, bias=bias, scale=scale, backend="dense"),
        "by hand": lambda *a: attention_by_hand(*a, mask=mask, bias=bias, scale=scale),
        "state": lambda *a: attention_state(*a, mask=mask, bias=bias, scale=scale).output,
    }
    if bias is None:
        made["tiled"] = lambda *a: attention(*a, mask=mask, scale=scale, backend="tiled")
        made["tiles"] = lambda *a: tiled_attention(*a, mask=mask, scale=scale, block=3)
    return made


def value_and_gradients(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], d_out: Tensor
) -> list[Tensor]:
    out = function(*inputs[:3])
    return [out, *torch.autograd.grad(out, inputs, d_out)]


# --- the definition ---------------------------------------------------------------------------


@pytest.mark.parametrize("kv", [H, KV, 1])
def test_the_definition_is_three_loops(kv: int, g: torch.Generator) -> None:
    Q, K, V = (t.detach() for t in problem(g, kv=kv))
    bias = torch.randn(H, N, M, generator=g, dtype=torch.float64)
    mask = causal(offset=1) & padding(real_keys())
    allowed = mask.dense(N, M)
    O, A = dense_attention(Q, K, V, mask=mask, bias=bias, scale=0.3)  # noqa: E741
    for b in range(B):
        for h in range(H):
            k_head = h // (H // kv)
            for i in range(N):
                scores = {
                    j: 0.3 * sum(float(Q[b, h, i, c] * K[b, k_head, j, c]) for c in range(DK))
                    + float(bias[h, i, j])
                    for j in range(M)
                    if allowed[b, 0, i, j]
                }
                total = sum(math.exp(s) for s in scores.values())
                out = torch.zeros(DV, dtype=torch.float64)
                for j in range(M):
                    weight = math.exp(scores[j]) / total if j in scores else 0.0
                    assert math.isclose(float(A[b, h, i, j]), weight, rel_tol=1e-12)
                    out += weight * V[b, k_head, j]
                torch.testing.assert_close(O[b, h, i], out, **EXACT)


# PyTorch's flash kernel wants values as wide as keys, others go another way.
@pytest.mark.parametrize(("scale", "dv"), [(None, DV), (0.3, DK)])
@pytest.mark.parametrize("kv", [H, KV, 1])
@pytest.mark.parametrize("name", square_masks())
def test_every_path_agrees_in_value_and_gradients(
    name: str, kv: int, scale: float | None, dv: int, g: torch.Generator, device: torch.device
) -> None:
    mask = square_masks(device)[name]
    inputs = problem(g, n=N, m=N, kv=kv, dv=dv, device=device)
    d_out = torch.randn(B, H, N, dv, generator=g, dtype=torch.float64).to(device)
    allowed = torch.ones(N, N, dtype=torch.bool) if mask is None else mask.dense(N, N, heads=H)
    for form in (mask, allowed.to(device)):  # as a rule, and as a tensor
        found = {
            way: value_and_gradients(function, inputs, d_out)
            for way, function in paths(form, None, scale).items()
        }
        for way, made in found.items():
            for a, b in zip(made, found["dense"], strict=True):
                torch.testing.assert_close(a, b, **EXACT, msg=lambda m, w=way: f"{w}: {m}")


@pytest.mark.parametrize("shape", [(N, M), (H, N, M), (B, 1, N, M), (B, H, 1, M), (1, 1, 1, M)])
@pytest.mark.parametrize("kv", [H, KV])
def test_a_bias_is_added_and_receives_its_gradient(
    kv: int, shape: tuple[int, ...], g: torch.Generator
) -> None:
    inputs = problem(g, kv=kv)
    bias = torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()
    d_out = torch.randn(B, H, N, DV, generator=g, dtype=torch.float64)
    for mask in (None, causal(offset=1) & padding(real_keys())):
        found = {
            way: value_and_gradients(function, (*inputs, bias), d_out)
            for way, function in paths(mask, bias, None).items()
        }
        for made in found.values():
            for a, b in zip(made, found["dense"], strict=True):
                torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("form", ["tensor", "Mask", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dv", [DK, DV])  # PyTorch has another kernel for values of another width
@pytest.mark.parametrize("kv", [H, KV])
def test_a_query_that_may_read_nothing_gives_zero_and_sends_zero(
    kv: int, dv: int, dtype: torch.dtype, form: str, g: torch.Generator, device: torch.device
) -> None:
    inputs = problem(g, kv=kv, dv=dv, dtype=dtype, device=device)
    allowed = torch.rand(B, 1, N, M, generator=g) < 0.7
    allowed[0, :, 2] = False
    allowed[1] = False  # a whole element of the batch
    allowed[0, :, 0] = True
    mask: Any = None
    bias: Tensor | None = None
    allowed = allowed.to(device)
    if form == "tensor":
        mask = allowed
    elif form == "Mask":
        mask = Mask(lambda b, h, i, j: allowed[b, 0, i, j])
    else:
        bias = torch.zeros(B, 1, N, M, dtype=dtype, device=device)
        bias = bias.masked_fill(~allowed, -torch.inf).requires_grad_()
    empty = ~allowed.any(-1).expand(B, H, N)
    d_out = torch.randn(B, H, N, dv, generator=g).to(device, dtype)
    wanted = inputs if bias is None else (*inputs, bias)
    for way, function in paths(mask, bias, None).items():
        out, *gradients = value_and_gradients(function, wanted, d_out)
        assert torch.equal(out[empty], torch.zeros_like(out[empty])), way
        assert bool((out[~empty] != 0).any()), way
        for gradient in gradients:
            assert bool(gradient.isfinite().all()), way
        assert not gradients[0][empty].any(), way
        assert not gradients[1][1].any(), way
        assert not gradients[2][1].any(), way
        if bias is not None:
            assert not gradients[3][~allowed].any(), way
            assert gradients[3][allowed].any(), way
    A = attention_weights(*inputs[:2], mask=mask, bias=bias)
    assert not A[empty].any()
    torch.testing.assert_close(A[~empty].sum(-1), torch.ones_like(A[~empty].sum(-1)))


@pytest.mark.parametrize("kv", [H, KV, 1])
@pytest.mark.parametrize("with_bias", [False, True])
def test_one_query_reads_what_the_last_of_many_reads(
    with_bias: bool, kv: int, g: torch.Generator
) -> None:
    Q, K, V = problem(g, n=M, kv=kv)
    bias = torch.randn(H, M, M, generator=g, dtype=torch.float64) if with_bias else None
    last = None if bias is None else bias[:, -1:]
    for whole, single in (
        (causal(), causal(offset=M - 1)),
        (sliding_window(3), sliding_window(3, offset=M - 1)),
        (causal() & padding(real_keys()), padding(real_keys())),
    ):
        expected = attention(Q, K, V, mask=whole, bias=bias)[:, :, -1:]
        made = attention(Q[:, :, -1:], K, V, mask=single, bias=last)
        torch.testing.assert_close(made, expected, **EXACT)


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_axes_of_batch_and_heads_may_be_missing(axes: int, g: torch.Generator) -> None:
    Q, K, V = problem(g)
    here = (0,) * (4 - axes) if axes < 3 else ((slice(None), 0) if axes == 3 else ())
    parts = [t[here] for t in (Q, K, V)]
    mask = causal(offset=1) & padding(real_keys()) if axes > 2 else causal(offset=1)
    whole = dense_attention(Q, K, V, mask=mask)
    expected_out, expected_weights = whole[0][here], whole[1][here]
    if axes == 2:
        expected_out, expected_weights = (t[0, 0] for t in dense_attention(Q, K, V, mask=mask))
    for way, function in paths(mask, None, None).items():
        torch.testing.assert_close(function(*parts), expected_out, **EXACT, msg=way)
    torch.testing.assert_close(attention_weights(*parts[:2], mask=mask), expected_weights, **EXACT)
    # A tensor for a mask has the axes of the scores, with those of size 1 left out or not.
    allowed = torch.rand(*expected_weights.shape, generator=g) < 0.6
    made = attention(*parts, mask=allowed)
    torch.testing.assert_close(made, dense_attention(*parts, mask=allowed)[0], **EXACT)


# --- independent implementations --------------------------------------------------------------


@pytest.mark.parametrize("kv", [H, KV])
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_definition_agrees_with_torch(
    is_causal: bool, kv: int, g: torch.Generator, device: torch.device
) -> None:
    inputs = problem(g, n=N, m=N, kv=kv, device=device)
    d_out = torch.randn(B, H, N, DV, generator=g, dtype=torch.float64).to(device)
    theirs = value_and_gradients(
        lambda q, k, v: F.scaled_dot_product_attention(
            q, k, v, is_causal=is_causal, enable_gqa=True
        ),
        inputs,
        d_out,
    )
    mask = causal() if is_causal else None
    ours = value_and_gradients(lambda *a: dense_attention(*a, mask=mask)[0], inputs, d_out)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_self_attention_is_one_head_of_torch(g: torch.Generator) -> None:
    d = 11
    ours = SelfAttention(d, d, d, dtype=torch.float64)
    theirs = nn.MultiheadAttention(d, 1, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(
            torch.cat([ours.query.weight, ours.key.weight, ours.value.weight])
        )
        theirs.out_proj.weight.copy_(torch.eye(d))
    x = torch.randn(B, N, d, generator=g, dtype=torch.float64)
    for mask in (None, causal(), padding(real_keys(N))):
        forbidden = None if mask is None else ~mask.dense(N, N).expand(B, 1, N, N)[:, 0]
        out, weights = theirs(x, x, x, attn_mask=forbidden)
        torch.testing.assert_close(ours(x, mask=mask), out, **EXACT)
        torch.testing.assert_close(ours.weights(x, mask=mask), weights, **EXACT)


@pytest.mark.filterwarnings("ignore:IProgress not found")
def test_attention_is_that_of_bert_in_transformers(g: torch.Generator) -> None:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertSelfAttention

    d, heads = 30, H
    settings_ = BertConfig(hidden_size=d, num_attention_heads=heads, attn_implementation="eager")
    bert = BertSelfAttention(settings_).double().eval()
    x = torch.randn(B, N, d, generator=g, dtype=torch.float64)
    real = real_keys(N)
    additive = torch.zeros(B, 1, 1, N, dtype=torch.float64)
    additive = additive.masked_fill(~real[:, None, None], torch.finfo(torch.float64).min)
    context, weights = bert(x, attention_mask=additive)[:2]
    Q, K, V = (
        layer(x).view(B, N, heads, -1).transpose(1, 2)
        for layer in (bert.query, bert.key, bert.value)
    )
    made, A = dense_attention(Q, K, V, mask=padding(real))
    torch.testing.assert_close(made.transpose(1, 2).reshape(B, N, d), context, **EXACT)
    torch.testing.assert_close(A, weights, **EXACT)


# --- laws -------------------------------------------------------------------------------------


def test_attention_without_a_mask_does_not_see_the_order_of_keys(g: torch.Generator) -> None:
    Q, K, V = problem(g)
    order = torch.randperm(M, generator=g)
    torch.testing.assert_close(
        attention(Q, K[:, :, order], V[:, :, order]), attention(Q, K, V), **EXACT
    )
    # The control: values in another order than their keys are other data.
    assert not torch.allclose(attention(Q, K, V[:, :, order.flip(0)]), attention(Q, K, V))


def test_self_attention_is_permutation_equivariant_and_a_causal_mask_ends_that(
    g: torch.Generator,
) -> None:
    layer = SelfAttention(5, 3, 2, dtype=torch.float64)
    x = torch.randn(B, N, 5, generator=g, dtype=torch.float64)
    order = torch.tensor([2, 0, 1, 4, 3])
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], **EXACT)
    assert not torch.allclose(layer(x[:, order], mask=causal()), layer(x, mask=causal())[:, order])


def test_weights_are_reachable_when_their_centered_logarithm_has_the_rank_of_a_head(
    g: torch.Generator,
) -> None:
    n = 7
    A = torch.softmax(torch.randn(n, n, generator=g, dtype=torch.float64), -1)
    centered = A.log() - A.log().mean(-1, keepdim=True)
    assert int(torch.linalg.matrix_rank(centered)) == n - 1
    left, sizes, right = torch.linalg.svd(centered)
    for width in (n - 1, n - 2):  # the widest head that is needed, and one too narrow
        Q, K = left[:, :width] * sizes[:width], right[:width].T
        made = attention_weights(Q, K, scale=1.0)
        assert torch.allclose(made, A, rtol=1e-9) == (width == n - 1)


@settings(deadline=None, max_examples=50)
@given(
    n=st.integers(1, 6), m=st.integers(1, 6), size=st.floats(0.01, 30.0), seed=st.integers(0, 99)
)
def test_outputs_stay_among_the_values(n: int, m: int, size: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    Q, K, V = problem(g, n=n, m=m)
    O = attention(size * Q, size * K, V)  # noqa: E741
    A = attention_weights(size * Q, size * K)
    assert bool((A >= 0).all())
    torch.testing.assert_close(A.sum(-1), torch.ones(B, H, n, dtype=torch.float64), **EXACT)
    slack = 1e-12
    assert bool((V.amax(-2, keepdim=True) + slack >= O).all())
    assert bool((V.amin(-2, keepdim=True) - slack <= O).all())


def test_a_bias_that_is_the_same_for_all_keys_changes_nothing(g: torch.Generator) -> None:
    Q, K, V = problem(g)
    shift = torch.randn(B, H, N, 1, generator=g, dtype=torch.float64).expand(B, H, N, M)
    torch.testing.assert_close(attention(Q, K, V, bias=100 * shift), attention(Q, K, V), **EXACT)


def test_the_causal_mask_hides_the_future(g: torch.Generator) -> None:
    Q, K, V = problem(g, n=N, m=N)
    for way, function in paths(causal(), None, None).items():
        (gradient,) = torch.autograd.grad(function(Q, K, V)[:, :, 2].sum(), V)
        assert not gradient[:, :, 3:].any(), way
        assert gradient[:, :, :3].all(), way


def test_inputs_are_not_changed(g: torch.Generator) -> None:
    inputs = problem(g, n=N, m=N)
    bias = torch.randn(N, N, generator=g, dtype=torch.float64)
    allowed = causal().dense(N, N)
    before = [t.clone() for t in (*inputs, bias, allowed)]
    for form in (causal(), allowed):
        for b in (None, bias):
            for function in paths(form, b, None).values():
                function(*inputs).sum().backward()
    for now, was in zip((*inputs, bias, allowed), before, strict=True):
        assert torch.equal(now, was)


# --- which kernel is called -------------------------------------------------------------------


def called(monkeypatch: pytest.MonkeyPatch, *inputs: Tensor, **kw: Any) -> dict[str, Any]:
    seen: list[dict[str, Any]] = []
    real = F.scaled_dot_product_attention

    def record(*args: Tensor, **kwargs: Any) -> Tensor:
        seen.append(kwargs | {"rows": tuple(args[0].shape), "keys": args[1]})
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", record)
        attention(*inputs, **kw)
    (only,) = seen
    return only


def test_no_mask_tensor_is_made_where_none_is_needed(
    monkeypatch: pytest.MonkeyPatch, g: torch.Generator
) -> None:
    Q, K, V = problem(g, n=N, m=N)
    one = called(monkeypatch, Q, K, V, mask=causal())
    assert one["is_causal"]
    assert one["attn_mask"] is None
    one = called(monkeypatch, Q, K, V, mask=everything())
    assert not one["is_causal"]
    assert one["attn_mask"] is None
    one = called(monkeypatch, Q[:, :, -1:], K, V, mask=causal(offset=N - 1))
    assert not one["is_causal"]
    assert one["attn_mask"] is None
    # A plain causal mask over more keys than queries is another one, as PyTorch means it.
    one = called(monkeypatch, Q[:, :, :3], K, V, mask=causal())
    assert not one["is_causal"]
    assert one["attn_mask"].shape == (1, 1, 3, N)
    one = called(monkeypatch, Q, K, V, mask=padding(real_keys(N)))
    assert one["attn_mask"].shape == (B, 1, 1, N)


@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_scales_of_zero_and_below_are_scales_too(scale: float, g: torch.Generator) -> None:
    """PyTorch 2.13's causal kernel on the CPU multiplies -inf by the scale: NaN."""
    inputs = problem(g, n=N, m=N, dv=DK)
    d_out = torch.randn(B, H, N, DK, generator=g, dtype=torch.float64)
    found = {
        way: value_and_gradients(function, inputs, d_out)
        for way, function in paths(causal(), None, scale).items()
    }
    for made in found.values():
        for a, b in zip(made, found["dense"], strict=True):
            torch.testing.assert_close(a, b, **EXACT)


def test_one_query_with_grouped_heads_reads_the_keys_where_they_are(
    monkeypatch: pytest.MonkeyPatch, g: torch.Generator
) -> None:
    Q, K, V = problem(g, n=1, kv=KV)
    one = called(monkeypatch, Q, K, V)
    assert one["rows"] == (B, KV, H // KV, DK)
    assert one["keys"].data_ptr() == K.data_ptr()


# --- precision, devices -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types_stay_close_and_keep_their_dtype(
    dtype: torch.dtype, g: torch.Generator
) -> None:
    Q, K, V = problem(g)
    narrow = [t.to(dtype) for t in (Q, K, V)]
    expected = dense_attention(*(t.double() for t in narrow), mask=causal(offset=2))[0]
    # Inputs are taken as they are; the output, of order 1, is rounded to the dtype, and a kernel
    # may round the weights to it before.
    tolerance = 4 * torch.finfo(dtype).eps
    for way, function in paths(causal(offset=2), None, None).items():
        made = function(*narrow)
        assert made.dtype == (torch.float32 if way == "state" else dtype)
        torch.testing.assert_close(made.double(), expected, rtol=tolerance, atol=tolerance)


def test_scores_beyond_float32_exponentials_stay_finite(g: torch.Generator) -> None:
    Q, K, V = (100 * t.detach().float() for t in problem(g))
    inputs = tuple(t.requires_grad_() for t in (Q, K, V))
    expected = dense_attention(*(t.double() for t in inputs))[0]
    for way, function in paths(None, None, 1.0).items():
        out, *gradients = value_and_gradients(function, inputs, torch.ones(B, H, N, DV))
        assert all(bool(t.isfinite().all()) for t in (out, *gradients)), way
    # The scores are of order 1e4 and rounded to 1e-3, so the weights of near ties differ by that.
    torch.testing.assert_close(
        attention(*inputs).double(), expected, rtol=2e-2, atol=2e-2 * float(V.detach().abs().max())
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_its_dtype_on_every_path(dtype: torch.dtype, g: torch.Generator) -> None:
    inputs = tuple(t.detach().float().requires_grad_() for t in problem(g))
    mask = causal(offset=1) & padding(real_keys())
    found = {}
    for way, function in paths(mask, None, None).items():
        with torch.autocast("cpu", dtype=dtype):
            out = function(*inputs)
        assert out.dtype == (torch.float32 if way == "state" else dtype), way
        gradients = torch.autograd.grad(out, inputs, torch.ones_like(out))
        assert all(t.dtype == torch.float32 and bool(t.isfinite().all()) for t in gradients), way
        found[way] = (out.float(), *gradients)
    tolerance = 16 * torch.finfo(dtype).eps  # sums of a dozen terms, each rounded to the dtype
    for made in found.values():
        for a, b in zip(made, found["dense"], strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kv", [H, KV])
def test_everything_runs_on_the_meta_device(kv: int, g: torch.Generator) -> None:
    inputs = tuple(t.detach().to("meta").requires_grad_() for t in problem(g, kv=kv))
    bias = torch.zeros(H, N, M, dtype=torch.float64, device="meta")
    for mask in (None, causal(offset=1) & padding(real_keys(device="meta"))):
        for b in (None, bias):
            for way, function in paths(mask, b, None).items():
                out = function(*inputs)
                assert out.is_meta, way
                assert out.shape == (B, H, N, DV), way
                out.sum().backward()
        assert attention_weights(*inputs[:2], mask=mask).is_meta
    layer = SelfAttention(5, 3, 2, device="meta")
    assert layer(torch.zeros(B, N, 5, device="meta")).shape == (B, N, 2)


def test_no_keys_and_no_queries_are_empty_sums(g: torch.Generator) -> None:
    Q, K, V = problem(g)
    for way, function in paths(None, None, None).items():
        assert not function(Q, K[:, :, :0], V[:, :, :0]).any(), way
        assert function(Q[:, :, :0], K, V).shape == (B, H, 0, DV), way


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [attention, dense_attention, attention_by_hand, tiled_attention, attention_state],
)
def test_shapes_and_dtypes_that_do_not_fit_are_named(
    function: Callable[..., Any], own_checks: None
) -> None:
    Q, K, V = torch.zeros(2, 6, 5, 11), torch.zeros(2, 3, 7, 11), torch.zeros(2, 3, 7, 13)
    with pytest.raises(ValueError, match=r"same width, got Q \(2, 6, 5, 11\) with 11 .* with 10"):
        function(Q, K[..., :10], V)
    with pytest.raises(ValueError, match=r"a value for each key, got K \(2, 3, 7, 11\) and V"):
        function(Q, K, V[:, :, :5])
    with pytest.raises(ValueError, match=r"batch sizes of Q \(2, .* and K \(1, .* differ"):
        function(Q, K[:1], V[:1])
    with pytest.raises(ValueError, match="the 3 heads of K and V must divide the 5 heads of Q"):
        function(Q[:, :5], K, V)
    with pytest.raises(ValueError, match=r"number of axes, 2 to 4, got shapes .* \(3, 7, 11\)"):
        function(Q, K[0], V)
    with pytest.raises(ValueError, match="number of axes, 2 to 4"):
        function(Q[None], K[None], V[None])
    with pytest.raises(ValueError, match=r"must be floating, got torch.int64"):
        function(Q.long(), K, V)
    with pytest.raises(ValueError, match=r"same dtype, got torch.float32, torch.float64"):
        function(Q, K.double(), V.double())
    with pytest.raises(ValueError, match=r"mask must be Bool.*got torch.int64: use mask.bool\(\)"):
        function(Q, K, V, mask=torch.ones(5, 7).long())
    with pytest.raises(ValueError, match=r"mask must be Bool.*float32: pass an additive one as b"):
        function(Q, K, V, mask=torch.ones(5, 7))
    with pytest.raises(ValueError, match=r"\(5, 6\) does not broadcast to .*\(2, 6, 5, 7\)$"):
        function(Q, K, V, mask=torch.ones(5, 6).bool())
    with pytest.raises(ValueError, match=r"\(2, 7\) does not broadcast .*: .*padding\(real\)"):
        function(Q, K, V, mask=torch.ones(2, 7).bool())
    with pytest.raises(ValueError, match=r"\(1, 2, 6, 5, 7\) does not broadcast"):
        function(Q, K, V, mask=torch.ones(1, 2, 6, 5, 7).bool())
    with pytest.raises(ValueError, match="made for a number of keys of 5, got 7"):
        function(Q, K, V, mask=padding(torch.ones(2, 5).bool()))
    with pytest.raises(ValueError, match="made for a batch size of 3, got 2"):
        function(Q, K, V, mask=padding(torch.ones(3, 7).bool()))
    if function is not tiled_attention:
        with pytest.raises(ValueError, match=r"bias of shape \(3, 5, 7\) does not broadcast"):
            function(Q, K, V, bias=torch.zeros(3, 5, 7))
        with pytest.raises(ValueError, match=r"bias must be floating, got torch.bool"):
            function(Q, K, V, bias=torch.ones(5, 7).bool())


def test_backends_are_known_by_name(own_checks: None, g: torch.Generator) -> None:
    Q, K, V = problem(g)
    with pytest.raises(ValueError, match="one of auto, sdpa, flex, tiled, dense, got 'flash'"):
        attention(Q, K, V, backend="flash")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend='tiled' takes no bias"):
        attention(Q, K, V, bias=torch.zeros(N, M, dtype=torch.float64), backend="tiled")
    blocks = causal().block_mask(N, M, device="cpu")
    with pytest.raises(ValueError, match="a BlockMask is for backend='flex', got 'dense'"):
        attention(Q, K, V, mask=blocks, backend="dense")
    with pytest.raises(ValueError, match="no backward pass on the CPU"):
        attention(Q, K, V, backend="flex")
    with pytest.raises(ValueError, match=r"takes float32 and narrower, got torch.float64"):
        attention(Q.detach(), K.detach(), V.detach(), backend="flex")
    with pytest.raises(ValueError, match="key_dim must be 1 or more, got 0"):
        SelfAttention(3, 0, 2)


def test_merging_refuses_states_of_other_queries(g: torch.Generator) -> None:
    Q, K, V = problem(g)
    whole, part = attention_state(Q, K, V), attention_state(Q[:, :, :3], K, V)
    with pytest.raises(ValueError, match=r"two states must have shapes .* got .*\(2, 6, 3, 13\)"):
        merge_states(whole, part)
    with pytest.raises(ValueError, match="two states must have shapes"):
        merge_states(whole, (whole.maximum, whole.normalizer, whole.output[..., :2]))


def blocks_of(num: Tensor, indices: Tensor) -> Tensor:
    """The listed blocks as a Bool matrix."""
    listed = torch.arange(indices.shape[-1]) < num[..., None]
    return torch.zeros_like(indices, dtype=torch.bool).scatter(-1, indices.long(), listed)


@pytest.mark.parametrize(
    "mask",
    [
        causal(),
        causal(offset=70),
        causal(offset=-9),
        sliding_window(5),
        sliding_window(40, offset=3),
        ~sliding_window(3),
        prefix(21),
        everything(),
        causal() | ~causal(offset=30),
        causal() & Mask(lambda b, h, i, j: (i + j) % 3 > 0),
        Mask(lambda b, h, i, j: (i - j).abs() % 50 < 2 + 9 * h),
        Mask(lambda b, h, i, j: j > 40 * b),
    ],
)
@pytest.mark.parametrize(("queries", "keys"), [(64, 96), (61, 93), (5, 40)])
def test_block_masks_list_the_blocks_that_the_dense_mask_has(
    mask: Mask, queries: int, keys: int
) -> None:
    side, batch, heads = 16, 2, 3
    made = mask.block_mask(queries, keys, device="cpu", batch=batch, heads=heads, block=side)
    dense = mask.dense(queries, keys, batch=batch, heads=heads).expand(batch, heads, -1, -1)
    tall, wide = -(-queries // side), -(-keys // side)
    padded = torch.zeros(batch, heads, tall * side, wide * side, dtype=torch.bool)
    padded[..., :queries, :keys] = dense
    counts = padded.view(batch, heads, tall, side, wide, side).sum((3, 5))
    full = blocks_of(made.full_kv_num_blocks, made.full_kv_indices)
    mixed = blocks_of(made.kv_num_blocks, made.kv_indices)
    assert torch.equal(full, counts == side * side)
    assert torch.equal(mixed, (counts > 0) & (counts < side * side))
    # The transposed lists, from which the backward pass reads.
    assert torch.equal(blocks_of(made.full_q_num_blocks, made.full_q_indices), full.mT)
    assert torch.equal(blocks_of(made.q_num_blocks, made.q_indices), mixed.mT)
    assert made.seq_lengths == (queries, keys)


def test_a_block_mask_of_a_band_never_asks_the_rule() -> None:
    def refuse(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        raise AssertionError("the rule was evaluated")

    band = (-255.0, 0.0)
    blocks = Mask(refuse, band, band).block_mask(65_536, 65_536, device="cpu")
    assert int(blocks.kv_num_blocks.sum()) == 512 + 510  # the diagonal, and two behind it
    assert int(blocks.full_kv_num_blocks.sum()) == 511
