"""The losses of distillation compile to one graph, and the graph computes the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from companion.core import randn
from companion.efficiency.distillation import (
    TopK,
    generalized_jsd,
    kd_loss,
    minilm_loss,
    top_k_kd_loss,
)

Y = torch.tensor([[0, 3, 6], [2, 2, 5]])
IDS = torch.tensor([[[0, 3], [6, 1], [2, 5]], [[4, 3], [0, 1], [2, 6]]])


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return randn(*shape, generator=generator, dtype=torch.float64)


def answers(s: Tensor, t: Tensor) -> Tensor:
    return kd_loss(s, t, Y, temperature=3.0, alpha=0.4)


def between(s: Tensor, t: Tensor) -> Tensor:
    return generalized_jsd(s, t, beta=0.3, scaled=True)


def few(s: Tensor, t: Tensor) -> Tensor:
    return top_k_kd_loss(s, TopK(t.log_softmax(-1).gather(-1, IDS), IDS))


def relations(s: Tensor, t: Tensor) -> Tensor:
    return minilm_loss((s[:, None],) * 3, (t[:, None],) * 3, causal=True)


@pytest.mark.parametrize("loss", [answers, between, few, relations])
def test_losses_compile_with_their_gradients(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    s, t = numbers(2, 3, 7, seed=0).requires_grad_(), numbers(2, 3, 7, seed=1)
    have, want = compiled(s, t), loss(s, t)
    torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-14)
    (have_slope,) = torch.autograd.grad(have, s)
    (want_slope,) = torch.autograd.grad(want, s)
    torch.testing.assert_close(have_slope, want_slope, rtol=1e-12, atol=1e-14)
