"""The losses compile to one graph, and the graph computes the same; so do their gradients."""

import torch
from torch import Tensor

from companion.frontiers.reinforcement import (
    dpo_loss,
    gae,
    grpo_advantages,
    grpo_loss,
    importance_weights,
    kl_estimate,
    kl_optimum,
    ppo_loss,
)


def test_losses_compile_with_their_gradients() -> None:
    g = torch.Generator().manual_seed(0)
    new, old, ref, values, rewards = torch.randn(5, 6, 7, generator=g, dtype=torch.float64)
    real = torch.arange(7) < torch.tensor([7, 1, 3, 5, 2, 6])[:, None]

    def everything(new: Tensor, old: Tensor, ref: Tensor) -> list[Tensor]:
        better = gae(rewards, values, gamma=0.9, lam=0.8, real=real).advantages
        groups = grpo_advantages(rewards.sum(1).view(2, 3)).flatten()
        weights = importance_weights(old, ref, real)
        pairs = [row.sum(1).view(2, 3) for row in (new, ref)]
        return [
            ppo_loss(new, old, better, real),
            grpo_loss(
                new,
                groups,
                real,
                old_log_probs=old,
                reference=ref,
                beta=0.1,
                weights=weights,
                normalize="token",
            ),
            dpo_loss(pairs[0][0], pairs[0][1], pairs[1][0], pairs[1][1]).loss,
            kl_estimate(new, ref).sum(),
            kl_optimum(ref, rewards, beta=0.5).value.sum(),
        ]

    def slope(f) -> tuple[list[Tensor], Tensor]:
        x = new.clone().requires_grad_()
        made = f(x, old, ref)
        (grad,) = torch.autograd.grad(sum(made), x)
        return made, grad

    made, grad = slope(torch.compile(everything, fullgraph=True))
    want, plain = slope(everything)
    for one, other in zip(made, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, plain, rtol=1e-12, atol=1e-12)
