"""Matching, spans, fused ranks, and PageRank compile to one graph that computes the same."""

import torch
from torch import Tensor

from companion.frontiers import outlook as ou


def test_the_hot_functions_compile() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 7, 5, generator=g, dtype=torch.float64)
    real = torch.rand(3, 7, generator=g) < 0.7

    def everything(x: Tensor, y: Tensor) -> list[Tensor]:
        matched = ou.bertscore(x, y, candidate_real=real)
        best = ou.span_answer(x[..., 0], y[..., 0], longest=3, real=real)
        joined = ou.reciprocal_rank_fusion([x[..., 1], y[..., 1]])
        ranks = ou.pagerank((x @ x.mT).exp())
        rated = ou.elo_update(x[0], y[0], (x[1] > 0).double())
        return [*matched, best.score, best.end, joined, ranks, *rated]

    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(x, y), everything(x, y), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
