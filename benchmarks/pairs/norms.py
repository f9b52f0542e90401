"""LayerNorm and RMSNorm, forward and backward, with the backward pass by hand."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._pair import Pair, Side, close
from companion.transformer.block import (
    layer_norm_by_hand,
    rms_norm_by_hand,
)

SHAPE = (8, 512, 576)


def _run(device: torch.device, norm: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Side:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=g).to(device).requires_grad_()
    weight, bias = (torch.randn(SHAPE[-1], generator=g).to(device).requires_grad_() for _ in "wb")
    above = torch.randn(SHAPE, generator=g).to(device)

    def run() -> list[Tensor]:
        y = norm(x, weight, bias)
        return [y, *torch.autograd.grad(y, (x, weight), above)]

    return run


def _layer_peer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (SHAPE[-1],), weight, bias, 1e-5)


def _rms_peer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.rms_norm(x, (SHAPE[-1],), weight, 1e-5)


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    sizes = " x ".join(map(str, SHAPE))
    by_hand = "Written to be read: several kernels where torch has one."
    for name, ours, theirs, note in (
        (
            "norm/layer-by-hand",
            lambda x, w, b: layer_norm_by_hand(x, w, b, eps=1e-5),
            _layer_peer,
            by_hand,
        ),
        (
            "norm/rms-by-hand",
            lambda x, w, b: rms_norm_by_hand(x, w, eps=1e-5),
            _rms_peer,
            by_hand,
        ),
    ):
        yield Pair(
            name=name,
            task=f"forward and backward on {sizes}",
            peer=f"torch.nn.functional.{'layer' if 'layer' in name else 'rms'}_norm",
            ours=lambda device, f=ours: _run(device, f),
            theirs=lambda device, f=theirs: _run(device, f),
            same=close(1e-4),
            note=note,
        )
