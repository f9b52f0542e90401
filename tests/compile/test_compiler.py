"""The compiler of these tests sees what they are there to see."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torch._inductor import metrics
from torch._inductor.utils import fresh_cache

from companion.core import generator, randn


class Turned(torch.autograd.Function):
    """Identity, with a backward pass that branches on a value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad if grad.sum() > 0 else -grad


@pytest.mark.parametrize(
    "function",
    [lambda x: x if x.sum() > 0 else -x, lambda x: x * float(str(x.sum())[7:-1])],
    ids=["branch", "text"],
)
def test_what_breaks_the_graph_is_refused(function: Any) -> None:
    with pytest.raises(Unsupported):
        torch.compile(function, fullgraph=True)(torch.ones(3))


# TorchDynamo itself makes an instance of autograd.Function while it traces one.
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
def test_a_backward_pass_is_traced_with_the_forward_pass() -> None:
    with pytest.raises(Unsupported):
        torch.compile(Turned.apply, fullgraph=True)(torch.ones(3, requires_grad=True))


def test_a_graph_is_guarded() -> None:
    fast = torch.compile(lambda x: 2 * x, fullgraph=True, dynamic=False)
    fast(torch.ones(3))
    with torch.compiler.set_stance("fail_on_recompile"):
        assert fast(torch.ones(3)).tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="recompile"):
            fast(torch.ones(5))


def test_a_graph_is_differentiated_before_it_runs() -> None:
    x = randn(7, generator=generator(0)).requires_grad_()
    made = torch.compile(lambda x: x.sin().exp(), fullgraph=True)(x)
    # One node stands for the whole graph: AOTAutograd made its backward pass, not eager autograd.
    assert "CompiledFunction" in type(made.grad_fn).__name__
    (grad,) = torch.autograd.grad(made.sum(), x)
    torch.testing.assert_close(grad, x.sin().exp() * x.cos())


@pytest.mark.parametrize(
    "kernels", [pytest.param(1, marks=pytest.mark.inductor), 0], ids=["inductor", "without"]
)
def test_inductor_writes_kernels_where_it_is_asked_for(kernels: int) -> None:
    metrics.reset()
    x = randn(7, generator=generator(0))
    with fresh_cache():
        made = torch.compile(lambda x: x.sin().exp(), fullgraph=True)(x)
    torch.testing.assert_close(made, x.sin().exp())
    assert metrics.generated_kernel_count == kernels
