"""The hot functions compile to one graph, and the graph computes the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from companion.pretraining.self_supervised import (
    alignment,
    barlow_twins,
    effective_rank,
    info_nce,
    mi_dv,
    mi_info_nce,
    mi_nwj,
    nt_xent,
    random_affine,
    siamese_flow,
    simsiam_loss,
    spectral_contrastive,
    uniformity,
    vicreg,
)

N, D = 7, 5
Loss = Callable[[Tensor, Tensor], Tensor]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True)


LOSSES: dict[str, Loss] = {
    "info_nce": lambda u, v: info_nce(u, v, temperature=0.3, symmetric=True),
    "decoupled": lambda u, v: info_nce(u, v, temperature=0.3, positive_in_denominator=False),
    "queue": lambda u, v: info_nce(u, v, temperature=0.3, negatives=2 * v),
    "nt_xent": lambda u, v: nt_xent(u, v, temperature=0.3),
    "align-unif": lambda u, v: alignment(u, v) + uniformity(u),
    "spectral": spectral_contrastive,
    "barlow": barlow_twins,
    "vicreg": vicreg,
    "simsiam": lambda u, v: simsiam_loss(u, v, v, u),
    "bounds": lambda u, v: mi_info_nce(u @ v.T) + mi_dv(u @ v.T) + mi_nwj(u @ v.T),
    "flow": lambda u, v: siamese_flow(u, v, noise=0.1)[1].sum(),
    "rank": lambda u, v: effective_rank(u - v),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_compile_with_their_backward_pass(name: str, g: torch.Generator) -> None:
    u, v = (
        F.normalize(torch.randn(N, D, generator=g, dtype=torch.float64), dim=1).requires_grad_()
        for _ in range(2)
    )
    loss = LOSSES[name]
    made, expected = compiled(loss)(u, v), loss(u, v)
    torch.testing.assert_close(made, expected, rtol=1e-11, atol=1e-13)
    for a, b in zip(
        torch.autograd.grad(made, (u, v)), torch.autograd.grad(expected, (u, v)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# TorchDynamo itself makes an instance of autograd.Function while it traces one.
@pytest.mark.inductor
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
def test_the_chunked_loss_compiles(g: torch.Generator) -> None:
    u, v = (torch.randn(N, D, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2))

    def loss(u: Tensor, v: Tensor) -> Tensor:
        return info_nce(u, v, temperature=0.3, symmetric=True, chunk_size=3)

    made, expected = compiled(loss)(u, v), loss(u, v)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-14)
    for a, b in zip(
        torch.autograd.grad(made, (u, v)), torch.autograd.grad(expected, (u, v)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_random_affine_is_left_eager_and_repeats(g: torch.Generator) -> None:
    # A generator is drawn from outside of graphs: TorchDynamo does not trace it.
    images = torch.rand(N, 49, generator=g)
    first, again = (
        random_affine(images, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first, again)
