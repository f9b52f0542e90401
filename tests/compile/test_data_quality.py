"""The losses and weights of data quality compile to one graph, which computes the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from companion.core import randn
from companion.knowledge import data_quality as dq

Y = torch.tensor([0, 3, 6, 2, 5])
NOISE = dq.symmetric_noise(7, 0.3)
PRIOR = torch.arange(1.0, 8.0, dtype=torch.float64) / 28


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return randn(*shape, generator=generator, dtype=torch.float64)


def forward(z: Tensor) -> Tensor:
    return dq.forward_cross_entropy(z, Y, NOISE)


def backward(z: Tensor) -> Tensor:
    return dq.backward_cross_entropy(z, Y, NOISE)


def generalized(z: Tensor) -> Tensor:
    return dq.generalized_cross_entropy(z, Y, q=0.6)


def adjusted(z: Tensor) -> Tensor:
    return dq.logit_adjusted_cross_entropy(z, Y, PRIOR, tau=0.8)


def focal(z: Tensor) -> Tensor:
    return dq.focal_loss(z, Y, gamma=1.5)


@pytest.mark.parametrize("loss", [forward, backward, generalized, adjusted, focal])
def test_a_loss_and_its_gradient_are_the_same_compiled(loss: Callable[[Tensor], Tensor]) -> None:
    z = numbers(5, 7, seed=0).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    plain, made = loss(z), compiled(z)
    assert torch.allclose(plain, made, rtol=1e-12)
    (a,), (b,) = torch.autograd.grad(plain, z), torch.autograd.grad(made, z)
    assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_a_step_of_the_domains_is_the_same_compiled() -> None:
    weights, excess = numbers(5, seed=1).softmax(0), numbers(5, seed=2)

    def step(weights: Tensor, excess: Tensor) -> Tensor:
        return dq.doremi_step(weights, excess, step=0.5)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(weights, excess), step(weights, excess), rtol=1e-12)
