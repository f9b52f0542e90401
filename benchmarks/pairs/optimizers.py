"""One step of each optimizer at ten million parameters."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._pair import Pair, Side, close
from companion.foundations import optimization as ours

SHAPES = [(1024, 1024)] * 9 + [(1024,)] * 20 + [(512, 1024)]


def _side(device: torch.device, make: Callable[[list[Tensor]], Any]) -> Side:
    g = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(s, generator=g).to(device)) for s in SHAPES]
    for parameter in params:
        parameter.grad = torch.randn(parameter.shape, generator=g).to(device)
    optimizer = make(params)

    def run() -> list[Tensor]:
        optimizer.step()
        return params

    return run


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    cases: list[tuple[str, str, Callable[[Any], Any], Callable[..., Any]]] = [
        ("sgd", "SGD", lambda p: ours.SGD(p, 0.1), lambda p, **k: torch.optim.SGD(p, 0.1, **k)),
        (
            "momentum",
            "SGD with momentum",
            lambda p: ours.Momentum(p, 0.1, momentum=0.9),
            lambda p, **k: torch.optim.SGD(p, 0.1, momentum=0.9, **k),
        ),
        (
            "adamw",
            "AdamW",
            lambda p: ours.AdamW(p, 1e-3, weight_decay=0.1),
            lambda p, **k: torch.optim.AdamW(p, 1e-3, weight_decay=0.1, **k),
        ),
    ]
    for name, title, mine, its in cases:
        for form in ("foreach", "fused"):
            yield Pair(
                name=f"optimizer/{name}-{form}",
                task=f"{title}: one step, 10 million parameters",
                peer=f"torch.optim, {form}=True",
                ours=lambda device, f=mine: _side(device, f),
                theirs=lambda device, f=its, k=form: _side(device, lambda p: f(p, **{k: True})),
                same=close(1e-5),
                note="Ours uses foreach; a fused kernel reads each tensor once."
                if form == "fused"
                else "",
                seconds=0.7,
            )
