"""The hot functions compile to one graph, and the graph computes the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from companion.foundations.cross_entropy import (
    chunked_cross_entropy,
    cross_entropy,
    cross_entropy_backward,
    entropy,
    expected_calibration_error,
    linear_cross_entropy,
    log_softmax,
    logsumexp,
    softmax,
    softmax_jacobian,
    softmax_vjp,
    z_loss,
)

N, D, V = 11, 5, 13


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True)


@pytest.mark.parametrize(
    "function",
    [
        softmax,
        log_softmax,
        logsumexp,
        z_loss,
        lambda z: softmax(z, temperature=0.7),
        lambda z: entropy(softmax(z)),
        lambda z: softmax_jacobian(softmax(z)),
        lambda z: softmax_vjp(softmax(z), z),
    ],
    ids=["softmax", "log_softmax", "lse", "z_loss", "temperature", "entropy", "jacobian", "vjp"],
)
def test_functions_of_logits_compile(function: Callable[[Tensor], Tensor]) -> None:
    z = torch.randn(N, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(compiled(function)(z), function(z), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("function", [cross_entropy, cross_entropy_backward])
def test_losses_compile_with_hard_and_soft_targets(
    function: Callable[..., Tensor], g: torch.Generator
) -> None:
    z = torch.randn(N, V, generator=g, dtype=torch.float64)
    y = torch.randint(0, V, (N,), generator=g)
    y[3] = -100
    for targets in (y, torch.softmax(2 * z, -1)):
        made = compiled(function)(z, targets, label_smoothing=0.1)
        expected = function(z, targets, label_smoothing=0.1)
        torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-14)


# TorchDynamo itself makes an instance of autograd.Function while it traces one.
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "function",
    [pytest.param(chunked_cross_entropy, marks=pytest.mark.inductor), linear_cross_entropy],
)
def test_heads_compile_with_their_backward_pass(
    function: Callable[..., Tensor], g: torch.Generator
) -> None:
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, D, generator=g, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, V, (N,), generator=g)
    y[3] = -100
    settings: dict[str, Any] = {"label_smoothing": 0.1, "z_weight": 0.01}
    if function is chunked_cross_entropy:
        settings["chunk_size"] = 4

    def head(h: Tensor, w: Tensor) -> Tensor:
        return function(h, w.T, y, **settings)

    made, expected = compiled(head)(hidden, weight), head(hidden, weight)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-14)
    for a, b in zip(
        torch.autograd.grad(made, (hidden, weight)),
        torch.autograd.grad(expected, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_the_calibration_error_compiles(g: torch.Generator) -> None:
    confidence = torch.rand(N, generator=g, dtype=torch.float64)
    correct = torch.rand(N, generator=g) < 0.5
    made = compiled(expected_calibration_error)(confidence, correct)
    expected = expected_calibration_error(confidence, correct)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-14)
