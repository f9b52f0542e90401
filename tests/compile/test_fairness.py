"""Counts, rates and gaps compile to one graph, and the graph computes the same."""

import torch
from torch import Tensor

from companion.trust.fairness import (
    Cells,
    cells,
    class_means,
    disparities,
    generalized_entropy,
    lipschitz,
    rates,
)


def test_counts_and_gaps_compile() -> None:
    g = torch.Generator().manual_seed(0)
    y, decided = torch.randint(0, 2, (2, 211), generator=g)
    group = torch.randint(0, 5, (211,), generator=g)
    scores = torch.rand(211, generator=g, dtype=torch.float64)

    def everything(y: Tensor, decided: Tensor, group: Tensor, scores: Tensor) -> list[Tensor]:
        counts = cells(y, decided, group, size=5)
        means = class_means(y, scores, group, size=5)
        apart = (scores[:, None] - scores).abs() + 0.1
        steep = lipschitz(scores, apart)
        unequal = generalized_entropy(scores, alpha=2.0)
        return [*counts, *disparities(rates(counts)), *means, *steep, unequal]

    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    have = compiled(y, decided, group, scores)
    for one, other in zip(have, everything(y, decided, group, scores), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert isinstance(cells(y, decided, group), Cells)
