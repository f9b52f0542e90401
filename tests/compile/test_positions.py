"""Positions compile to one graph, which computes the same."""

import pytest
import torch

from companion.core import generator, randn
from companion.transformer.positions import (
    Alibi,
    DynamicNTKScaling,
    LearnedPositions,
    LinearScaling,
    Rotary,
    ShawRelative,
    SinusoidalPositions,
    T5Bias,
    TransformerXLBias,
    interleave_pairs,
    relative_shift,
    rotate,
    sinusoidal_shift,
    t5_bucket,
)


def compiled(function, backend="aot_eager"):
    # One graph is the claim here; making machine code of it is tried where it is hot.
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.parametrize(
    "scaling", [None, LinearScaling(2.0), DynamicNTKScaling(2.0, 3)], ids=["plain", "linear", "dyn"]
)
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_compiles_with_its_backward_pass(scaling, interleaved):
    rotary = Rotary(6, scaling=scaling, interleaved=interleaved)

    def turned(x, positions):
        return rotate(x, rotary(positions), interleaved=interleaved, head_axis=2)

    x = randn(2, 5, 3, 6, generator=generator(0)).requires_grad_()
    t = torch.arange(5)
    run = compiled(turned, "aot_eager" if scaling else "inductor")
    torch.testing.assert_close(run(x, t), turned(x, t), rtol=1e-5, atol=1e-6)
    made, expected = (torch.autograd.grad(f(x, t).square().sum(), x)[0] for f in (run, turned))
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (SinusoidalPositions(6), 1),
        (LearnedPositions(11, 3), 1),
        (Alibi(3), 2),
        (T5Bias(3), 2),
    ],
    ids=["sinusoidal", "learned", "alibi", "t5"],
)
def test_modules_compile(module, arguments):
    inputs = [torch.arange(5)] * arguments
    torch.testing.assert_close(compiled(module)(*inputs), module(*inputs))


@pytest.mark.parametrize(
    "module", [ShawRelative(5, 2), TransformerXLBias(4, 5)], ids=["shaw", "xl"]
)
def test_relative_terms_compile(module):
    q, t = randn(2, 4, 7, 5, generator=generator(0)), torch.arange(7)
    torch.testing.assert_close(compiled(module)(q, t, t), module(q, t, t), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: relative_shift(x),
        lambda x: interleave_pairs(x),
        lambda x: x @ sinusoidal_shift(3, 8),
        lambda x: t5_bucket((10 * x).long()),
    ],
    ids=["skew", "interleave", "shift", "bucket"],
)
def test_functions_compile(function):
    x = randn(3, 8, generator=generator(0))
    torch.testing.assert_close(compiled(function)(x), function(x))
