"""Projected gradient descent on pictures, beside torchattacks."""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks._pair import Pair, Side, close
from companion.knowledge.robustness import pgd

EPS, STEP, STEPS, BATCH = 0.1, 0.02, 20, 256


def _case(device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=g) / p.shape[-1] ** 0.5
    x = torch.rand(BATCH, 1, 28, 28, generator=g)
    y = torch.randint(0, 10, (BATCH,), generator=g)
    return model.to(device).eval(), x.to(device), y.to(device)


def _ours(device: torch.device) -> Side:
    model, x, y = _case(device)
    return lambda: pgd(model, x, y, eps=EPS, step=STEP, steps=STEPS)


def _theirs(device: torch.device) -> Side:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchattacks
    model, x, y = _case(device)
    attack = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=STEPS, random_start=False)
    return lambda: attack(x, y)


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    yield Pair(
        name="robustness/pgd",
        task=f"{STEPS} projected steps for {BATCH} pictures of 784 pixels",
        peer="torchattacks.PGD",
        ours=_ours,
        theirs=_theirs,
        same=close(1e-6),
        needs=["torchattacks"],
        speed=1.0,
    )
