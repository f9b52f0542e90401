"""LayerNorm and RMSNorm: the definition, the backward pass, and what they do not see."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.transformer.block import (
    LayerNorm,
    RMSNorm,
    layer_norm_backward,
    layer_norm_by_hand,
    rms_norm_backward,
    rms_norm_by_hand,
)

B, N, D = 2, 3, 7
EPS = 0.3  # large, so that a formula that is right for 0 alone fails
# Sums of a few products of order 1 in float64.
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def problem(
    g: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows with a mean of their own, gain, shift, and the gradient that arrives."""
    shape = shape or (B, N, D)
    d = shape[-1]
    x = 1.5 * torch.randn(shape, generator=g, dtype=torch.float64) + 0.7
    weight, bias = torch.randn(2, d, generator=g, dtype=torch.float64) + 1
    grad = torch.randn(shape, generator=g, dtype=torch.float64)
    return x.to(dtype), weight.to(dtype), bias.to(dtype), grad.to(dtype)


@pytest.mark.parametrize("eps", [0.0, 1e-5, EPS])
@pytest.mark.parametrize("biased", [True, False])
def test_layer_norm_follows_its_definition_in_numpy(
    biased: bool, eps: float, g: torch.Generator
) -> None:
    x, weight, bias, _ = problem(g)
    rows = x.numpy()
    expected = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + eps)
    expected = expected * weight.numpy() + (bias.numpy() if biased else 0)
    layer = LayerNorm(D, eps=eps, bias=biased, dtype=torch.float64)
    layer.load_state_dict({"weight": weight} | ({"bias": bias} if biased else {}))
    ours = layer_norm_by_hand(x, weight, bias if biased else None, eps=eps)
    torch.testing.assert_close(ours, torch.from_numpy(expected), **EXACT)
    torch.testing.assert_close(layer(x).detach(), torch.from_numpy(expected), **EXACT)


@pytest.mark.parametrize("eps", [0.0, 1e-5, EPS])
def test_rms_norm_follows_its_definition_in_numpy(eps: float, g: torch.Generator) -> None:
    x, weight, _, _ = problem(g)
    rows = x.numpy()
    expected = rows / np.sqrt((rows**2).mean(-1, keepdims=True) + eps) * weight.numpy()
    layer = RMSNorm(D, eps=eps, dtype=torch.float64)
    layer.load_state_dict({"weight": weight})
    ours = rms_norm_by_hand(x, weight, eps=eps)
    torch.testing.assert_close(ours, torch.from_numpy(expected), **EXACT)
    torch.testing.assert_close(layer(x).detach(), torch.from_numpy(expected), **EXACT)


def test_modules_agree_with_those_of_torch(g: torch.Generator) -> None:
    x, weight, bias, _ = problem(g)
    for ours, theirs, state in (
        (LayerNorm(D, eps=EPS), torch.nn.LayerNorm(D, eps=EPS), {"weight": weight, "bias": bias}),
        (LayerNorm(D, bias=False), torch.nn.LayerNorm(D, bias=False), {"weight": weight}),
        (RMSNorm(D, eps=EPS), torch.nn.RMSNorm(D, eps=EPS), {"weight": weight}),
    ):
        for module in (ours, theirs):
            module.double().load_state_dict(state)
        torch.testing.assert_close(ours(x), theirs(x), **EXACT)


def test_the_default_eps_is_the_same_everywhere() -> None:
    assert LayerNorm(D).eps == torch.nn.LayerNorm(D).eps == RMSNorm(D).eps == 1e-5
    x = torch.full((1, D), 1e-3, dtype=torch.float64)  # small, so that eps is felt
    weight = torch.ones(D, dtype=torch.float64)
    torch.testing.assert_close(rms_norm_by_hand(x, weight), RMSNorm(D).double()(x), **EXACT)


def test_layer_norm_backward_agrees_with_the_kernel_of_torch(g: torch.Generator) -> None:
    x, weight, bias, grad = problem(g)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    expected = torch.autograd.grad(F.layer_norm(leaves[0], (D,), *leaves[1:], EPS), leaves, grad)
    for made, wanted in zip(layer_norm_backward(x, weight, grad, eps=EPS), expected, strict=True):
        torch.testing.assert_close(made, wanted, **EXACT)
    by_hand = torch.autograd.grad(layer_norm_by_hand(*leaves, eps=EPS), leaves, grad)
    for made, wanted in zip(by_hand, expected, strict=True):
        torch.testing.assert_close(made, wanted, **EXACT)


def test_rms_norm_backward_agrees_with_autograd_of_torch(g: torch.Generator) -> None:
    x, weight, _, grad = problem(g)
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    expected = torch.autograd.grad(F.rms_norm(leaves[0], (D,), leaves[1], EPS), leaves, grad)
    for made, wanted in zip(rms_norm_backward(x, weight, grad, eps=EPS), expected, strict=True):
        torch.testing.assert_close(made, wanted, **EXACT)
    by_hand = torch.autograd.grad(rms_norm_by_hand(*leaves, eps=EPS), leaves, grad)
    for made, wanted in zip(by_hand, expected, strict=True):
        torch.testing.assert_close(made, wanted, **EXACT)


@pytest.mark.parametrize("function", [layer_norm_by_hand, rms_norm_by_hand])
def test_first_and_second_derivatives_by_finite_differences(
    function: Callable[..., Tensor], g: torch.Generator
) -> None:
    x, weight, bias, _ = problem(g, 2, 5)
    leaves = [t.requires_grad_() for t in (x, weight, bias)[: 3 - (function is rms_norm_by_hand)]]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_layer_norm_without_shift_has_a_backward_pass(g: torch.Generator) -> None:
    x, weight, _, _ = problem(g, 2, 5)
    assert torch.autograd.gradcheck(
        layer_norm_by_hand, (x.requires_grad_(), weight.requires_grad_())
    )


@given(
    rows=st.integers(1, 4),
    d=st.integers(2, 11),
    shift=st.floats(-3, 3),
    factor=st.floats(0.2, 5),
    seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=40, deadline=None)
def test_what_the_norms_do_not_see(
    rows: int, d: int, shift: float, factor: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    x, weight, bias, grad = problem(g, rows, d)
    x = x + torch.linspace(-1, 1, d, dtype=x.dtype)  # never a constant row
    same = layer_norm_by_hand(x, weight, bias, eps=0.0)
    # With d = 2 and nearly equal entries the division magnifies rounding.
    loose = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(
        layer_norm_by_hand(factor * x + shift, weight, bias, eps=0.0), same, **loose
    )
    torch.testing.assert_close(
        rms_norm_by_hand(factor * x, weight, eps=0.0), rms_norm_by_hand(x, weight, eps=0.0), **loose
    )
    dx = layer_norm_backward(x, weight, grad, eps=EPS)[0]
    torch.testing.assert_close(dx.sum(-1), torch.zeros(rows, dtype=x.dtype), rtol=0, atol=1e-10)
    # The negative control: RMSNorm does see a shift.
    if abs(shift) > 0.1 and d > 2:
        moved = rms_norm_by_hand(x + shift, weight, eps=0.0)
        assert not torch.allclose(moved, rms_norm_by_hand(x, weight, eps=0.0), atol=1e-9)


def test_the_jacobian_is_a_projector_of_rank_d_minus_2(g: torch.Generator) -> None:
    x = torch.randn(D, generator=g, dtype=torch.float64)
    ones, eye = torch.ones(D, dtype=x.dtype), torch.eye(D, dtype=x.dtype)
    jacobian = layer_norm_backward(x.expand(D, D), ones, eye, eps=0.0)[0]
    scaled = jacobian * x.std(correction=0)
    torch.testing.assert_close(scaled @ scaled, scaled, **EXACT)
    torch.testing.assert_close(scaled, scaled.T, **EXACT)
    assert round(float(scaled.trace()), 9) == D - 2
    rms = rms_norm_backward(x.expand(D, D), ones, eye, eps=0.0)[0] * x.square().mean().sqrt()
    torch.testing.assert_close(rms @ rms, rms, **EXACT)
    assert round(float(rms.trace()), 9) == D - 1


def test_rms_gradients_point_along_the_row_only_through_eps(g: torch.Generator) -> None:
    x, weight, _, grad = problem(g)
    r = (x.square().mean(-1) + EPS).sqrt()
    dx = rms_norm_backward(x, weight, grad, eps=EPS)[0]
    torch.testing.assert_close((dx * x).sum(-1), EPS * (weight * grad * x).sum(-1) / r**3, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_inputs_are_normalized_in_float32(dtype: torch.dtype, g: torch.Generator) -> None:
    x, weight, bias, grad = problem(g, N, 384, dtype=dtype)
    exact = layer_norm_by_hand(x.double(), weight.double(), bias.double())
    # One rounding of an output below 16 at the end, and float32 before it.
    close = {"rtol": torch.finfo(dtype).eps, "atol": 1e-5}
    for made, wanted in (
        (layer_norm_by_hand(x, weight, bias), exact),
        (rms_norm_by_hand(x, weight), rms_norm_by_hand(x.double(), weight.double())),
    ):
        assert made.dtype == dtype
        torch.testing.assert_close(made.double(), wanted, **close)
    for made in (*layer_norm_backward(x, weight, grad), *rms_norm_backward(x, weight, grad)):
        assert made.dtype == dtype


def test_a_narrow_gradient_does_not_round_what_meets_a_wide_row(g: torch.Generator) -> None:
    x, _, _, _ = problem(g, 5, 5)
    ones, eye = torch.ones(5), torch.eye(5)
    made = layer_norm_backward(x, ones, eye)[0]
    torch.testing.assert_close(
        made, layer_norm_backward(x, ones.double(), eye.double())[0], **EXACT
    )


def test_squares_that_overflow_float16_do_no_harm() -> None:
    x = torch.tensor([[300.0, -300.0, 600.0, 0.0]], dtype=torch.float16)  # 600² > 65504
    for layer in (LayerNorm(4), RMSNorm(4)):
        made = layer.half()(x)
        assert bool(torch.isfinite(made).all())
        torch.testing.assert_close(made.float(), layer.float()(x.float()), rtol=2e-3, atol=2e-3)


def test_a_mean_far_from_zero_does_not_cancel(g: torch.Generator) -> None:
    x = torch.randn(1, 384, generator=g) + 1000
    ones = torch.ones(384)
    exact = layer_norm_by_hand(x.double(), ones.double())
    # The mean is rounded to 1000 · 2⁻²⁴ = 6e-5; the one-pass formula is off by 0.1 here.
    torch.testing.assert_close(layer_norm_by_hand(x, ones).double(), exact, rtol=0, atol=2e-4)


def test_a_constant_row_gives_the_shift(g: torch.Generator) -> None:
    _, weight, bias, grad = problem(g, 1, D)
    x = torch.full((1, D), 3.0, dtype=torch.float64)
    torch.testing.assert_close(layer_norm_by_hand(x, weight, bias)[0], bias, **EXACT)
    assert bool(torch.isfinite(layer_norm_backward(x, weight, grad)[0]).all())
    zero = torch.zeros(1, D, dtype=torch.float64)
    assert torch.equal(rms_norm_by_hand(zero, weight), zero)
    # Without eps there is nothing to divide by, as documented.
    assert bool(layer_norm_by_hand(x, weight, eps=0.0).isnan().all())


@pytest.mark.parametrize("shape", [(D,), (N, D), (B, N, 5, D), (0, D)])
def test_any_number_of_leading_axes(shape: tuple[int, ...], g: torch.Generator) -> None:
    x, weight, bias, grad = problem(g, *shape)
    whole = layer_norm_by_hand(x, weight, bias)
    assert whole.shape == shape
    torch.testing.assert_close(whole, F.layer_norm(x, (D,), weight, bias), **EXACT)
    dx, d_weight, d_bias = layer_norm_backward(x, weight, grad)
    assert (dx.shape, d_weight.shape, d_bias.shape) == (shape, (D,), (D,))
    assert rms_norm_backward(x, weight, grad)[0].shape == shape


def test_tokens_do_not_see_each_other(g: torch.Generator) -> None:
    x, weight, bias, _ = problem(g)
    apart = torch.stack([layer_norm_by_hand(row, weight, bias) for row in x.flatten(0, 1)])
    assert torch.equal(layer_norm_by_hand(x, weight, bias).flatten(0, 1), apart)


def test_transforms_of_torch_func(g: torch.Generator) -> None:
    x, weight, bias, _ = problem(g)
    batched = torch.func.vmap(layer_norm_by_hand, in_dims=(0, None, None))(x, weight, bias)
    torch.testing.assert_close(batched, layer_norm_by_hand(x, weight, bias), **EXACT)
    jacobian = torch.func.jacrev(rms_norm_by_hand)(x[0, 0], weight)
    expected = torch.autograd.functional.jacobian(
        lambda row: F.rms_norm(row, (D,), weight, 1e-5), x[0, 0]
    )
    torch.testing.assert_close(jacobian, expected, **EXACT)


def test_inputs_are_left_alone(g: torch.Generator) -> None:
    inputs = problem(g)
    before = [t.clone() for t in inputs]
    x, weight, bias, grad = inputs
    layer_norm_by_hand(x, weight, bias)
    rms_norm_by_hand(x, weight)
    layer_norm_backward(x, weight, grad)
    rms_norm_backward(x, weight, grad)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_meta_tensors_pass(g: torch.Generator) -> None:
    x, weight, bias, grad = (t.to("meta") for t in problem(g))
    assert layer_norm_by_hand(x, weight, bias).is_meta
    assert rms_norm_by_hand(x, weight).is_meta
    assert all(t.is_meta for t in layer_norm_backward(x, weight, grad))
    assert all(t.is_meta for t in rms_norm_backward(x, weight, grad))
    for kind in (LayerNorm, RMSNorm):
        assert kind(D, device="meta", dtype=torch.float64)(x).is_meta


def test_every_device_agrees_with_the_cpu(device: torch.device, g: torch.Generator) -> None:
    x, weight, bias, grad = problem(g, dtype=torch.float32)
    there = [t.to(device) for t in (x, weight, bias, grad)]
    made: list[Any] = [
        layer_norm_by_hand(*there[:3]),
        *layer_norm_backward(there[0], there[1], there[3]),
        rms_norm_by_hand(*there[:2]),
        *rms_norm_backward(there[0], there[1], there[3]),
        RMSNorm(D).to(device)(there[0]).detach(),
    ]
    here = [
        layer_norm_by_hand(x, weight, bias),
        *layer_norm_backward(x, weight, grad),
        rms_norm_by_hand(x, weight),
        *rms_norm_backward(x, weight, grad),
        RMSNorm(D)(x).detach(),
    ]
    for a, b in zip(made, here, strict=True):
        assert a.device.type == device.type
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [LayerNorm, RMSNorm])
def test_autocast_stays_finite(
    kind: Callable[[int], torch.nn.Module], device: torch.device, g: torch.Generator
) -> None:
    x = 1e3 * torch.randn(N, D, generator=g).to(device)
    layer = kind(D).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        made = layer(x)
    made.float().sum().backward()
    assert bool(torch.isfinite(made).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in layer.parameters() if p.grad is not None)


@pytest.mark.usefixtures("own_checks")
def test_misfits_are_named(g: torch.Generator) -> None:
    x, weight, bias, grad = problem(g)
    with pytest.raises(ValueError, match=r"rows of 5 features .* got \(2, 3, 7\)"):
        LayerNorm(5)(x)
    with pytest.raises(ValueError, match=r"rows of 5 features .* got \(2, 3, 7\)"):
        RMSNorm(5)(x)
    with pytest.raises(ValueError, match=r"weight \(5,\) and x \(2, 3, 7\)"):
        layer_norm_by_hand(x, weight[:5])
    with pytest.raises(ValueError, match=r"bias must have shape \(7,\), got \(5,\)"):
        layer_norm_by_hand(x, weight, bias[:5])
    with pytest.raises(ValueError, match=r"weight \(5,\) and x \(2, 3, 7\)"):
        rms_norm_by_hand(x, weight[:5])
    with pytest.raises(ValueError, match=r"grad and x must have the same shape"):
        layer_norm_backward(x, weight, grad[:1])
    with pytest.raises(ValueError, match=r"grad and x must have the same shape"):
        rms_norm_backward(x, weight, grad[:1])
    with pytest.raises(ValueError, match=r"x must be floating, got torch.int64"):
        rms_norm_by_hand(x.long(), weight)


@pytest.mark.parametrize("kind", [LayerNorm, RMSNorm])
def test_settings_out_of_range_are_named(kind: Callable[..., Any], g: torch.Generator) -> None:
    x, weight, _, _ = problem(g)
    with pytest.raises(ValueError, match=r"dim must be 1 or more, got 0"):
        kind(0)
    for eps in (-1e-5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"eps must lie in \[0"):
            kind(D, eps=eps)
    with pytest.raises(ValueError, match=r"eps must lie in \[0"):
        rms_norm_by_hand(x, weight, eps=-1.0)


def test_the_repr_names_the_sizes() -> None:
    assert repr(LayerNorm(D, bias=False)) == "LayerNorm(7, eps=1e-05, bias=False)"
    assert repr(RMSNorm(D, eps=0.25)) == "RMSNorm(7, eps=0.25)"
