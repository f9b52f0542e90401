"""T-norms, weighted counts, chains and votes compile to one graph that computes the same."""

import torch
from torch import Tensor

from companion.frontiers import reasoning as re


def test_the_hot_functions_compile() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(7, 4, generator=g, dtype=torch.float64)
    diagram = re.compile_formula(re.parse("(a | ~b) & (c -> d) & (b | d)"))

    def everything(z: Tensor) -> list[Tensor]:
        p = z.sigmoid()
        return [
            re.semantic_loss(z, diagram),
            re.wmc(diagram, p),
            re.t_norm(p, p.flip(0), kind="lukasiewicz"),
            re.marginalize(z.log_softmax(-1), z).log_prob,
            re.best_of_n_success(p, n=5, t=0.9, f=0.2),
            re.majority_accuracy(p, n=5),
        ]

    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(z), everything(z), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    free = z.clone().requires_grad_()
    compiled(free)[0].sum().backward()
    plain = z.clone().requires_grad_()
    re.semantic_loss(plain, diagram).sum().backward()
    torch.testing.assert_close(free.grad, plain.grad, rtol=1e-12, atol=1e-13)
