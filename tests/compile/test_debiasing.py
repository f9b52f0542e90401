"""Association, erasers and gradient reversal compile to one graph that computes the same."""

import torch
from torch import Tensor

from companion.knowledge.robustness import reverse_gradient
from companion.trust import debiasing as de


def test_the_hot_functions_compile() -> None:
    g = torch.Generator().manual_seed(0)
    x, first, second = (torch.randn(n, 7, generator=g, dtype=torch.float64) for n in (13, 3, 5))
    eraser = de.leace(x, torch.arange(13) % 2)
    directions = torch.linalg.qr(first[:2].mT).Q.mT  # no row lies in their span

    def everything(x: Tensor) -> list[Tensor]:
        erased = eraser(x)
        turned = reverse_gradient(erased, strength=0.5)
        near = de.association(turned, first, second)
        logits = de.self_debias_logits(x, erased)
        return [turned, near, de.neutralize(x, directions), logits]

    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    free = x.clone().requires_grad_()
    for one, other in zip(compiled(x), everything(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    compiled(free)[0].sum().backward()
    want = -0.5 * eraser.matrix.sum(1)
    torch.testing.assert_close(free.grad, want.expand(13, 7), rtol=1e-12, atol=1e-13)
