"""Steps, projections and losses compile to one graph, and the graph computes the same."""

import math

import torch
from torch import Tensor

from companion.knowledge.robustness import (
    Mixed,
    flip_gains,
    group_means,
    group_weights,
    mixup_cross_entropy,
    project,
    robust_value,
    steepest,
)


def test_steps_and_losses_compile() -> None:
    g = torch.Generator().manual_seed(0)
    slope = torch.randn(5, 7, generator=g, dtype=torch.float64)
    losses, group = slope[:, 0].abs(), torch.tensor([0, 2, 2, 0, 1])
    y = torch.randint(0, 7, (2, 5), generator=g)

    def everything(slope: Tensor, losses: Tensor) -> list[Tensor]:
        made = []
        for norm in (1.0, 2.0, math.inf):
            made += [steepest(slope, norm=norm), project(slope, eps=0.7, norm=norm)]
        means, present = group_means(losses, group, groups=3)
        equal = torch.full_like(means, 1 / 3)
        made += [means, group_weights(equal, means, present, step=0.5)]
        mixed = Mixed(slope, y[0], y[1], losses[0] / (1 + losses[0]))
        return [
            *made,
            robust_value(means, step=0.5),
            mixup_cross_entropy(slope, mixed),
            flip_gains(slope, group, slope[:3]),
        ]

    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(slope, losses), everything(slope, losses), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
