"""The conditional random field against pytorch-crf."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks._pair import Pair, Side, close
from companion.core import randn
from companion.knowledge.entity_linking import LinearChainCRF

BATCH, LENGTH, TAGS = 64, 40, 9


def _inputs(device: torch.device) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(0)
    emissions = randn(BATCH, LENGTH, TAGS, generator=g).to(device)
    tags = torch.randint(TAGS, (BATCH, LENGTH), generator=g).to(device)
    lengths = torch.randint(10, LENGTH + 1, (BATCH,), generator=g)
    lengths[0] = LENGTH
    real = (torch.arange(LENGTH) < lengths[:, None]).to(device)
    scores = {
        "transitions": randn(TAGS, TAGS, generator=g),
        "start": randn(TAGS, generator=g),
        "end": randn(TAGS, generator=g),
    }
    return emissions, tags, real, scores


def _ours(device: torch.device) -> tuple[LinearChainCRF, Tensor, Tensor, Tensor]:
    emissions, tags, real, scores = _inputs(device)
    layer = LinearChainCRF(TAGS).to(device)
    with torch.no_grad():
        for name, value in scores.items():
            getattr(layer, name).copy_(value)
    return layer, emissions, tags, real


def _theirs(device: torch.device) -> tuple[torch.nn.Module, Tensor, Tensor, Tensor]:
    from torchcrf import CRF

    emissions, tags, real, scores = _inputs(device)
    layer = CRF(TAGS, batch_first=True).to(device)
    with torch.no_grad():
        layer.transitions.copy_(scores["transitions"])
        layer.start_transitions.copy_(scores["start"])
        layer.end_transitions.copy_(scores["end"])
    return layer, emissions, tags, real


def _our_loss(device: torch.device) -> Side:
    layer, emissions, tags, real = _ours(device)
    emissions.requires_grad_()
    wanted = (emissions, layer.transitions, layer.start, layer.end)

    def run() -> list[Tensor]:
        loss = layer(emissions, tags, real=real)
        return [loss, *torch.autograd.grad(loss, wanted)]

    return run


def _their_loss(device: torch.device) -> Side:
    layer, emissions, tags, real = _theirs(device)
    emissions.requires_grad_()
    wanted = (emissions, layer.transitions, layer.start_transitions, layer.end_transitions)

    def run() -> list[Tensor]:
        loss = -layer(emissions, tags, mask=real, reduction="mean")
        return [loss, *torch.autograd.grad(loss, wanted)]

    return run


def _our_paths(device: torch.device) -> Side:
    layer, emissions, _, real = _ours(device)
    return lambda: layer.decode(emissions, real=real).tags.tolist()


def _their_paths(device: torch.device) -> Side:
    layer, emissions, _, real = _theirs(device)
    return lambda: layer.decode(emissions, real)  # type: ignore[operator]


def _same_paths(ours: list[list[int]], theirs: list[list[int]]) -> None:
    kept = [[tag for tag in row if tag >= 0] for row in ours]
    assert kept == theirs, "the best paths differ"


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    task = f"{BATCH} sentences of 10 to {LENGTH} words, {TAGS} tags"
    yield Pair(
        name="tagging/crf-loss",
        task=f"{task}: loss and all gradients",
        peer="pytorch-crf",
        needs=("torchcrf",),
        ours=_our_loss,
        theirs=_their_loss,
        same=close(1e-4),
        speed=3.0,
    )
    yield Pair(
        name="tagging/crf-paths",
        task=f"{task}: the best paths, as lists",
        peer="pytorch-crf",
        needs=("torchcrf",),
        ours=_our_paths,
        theirs=_their_paths,
        same=_same_paths,
        speed=1.5,
    )
