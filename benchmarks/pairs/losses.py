"""Cross-entropy: of given logits, and of hidden states without ever holding all logits."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks._pair import Pair, Side, close
from companion.foundations.cross_entropy import chunked_cross_entropy, cross_entropy

TOKENS, VOCAB, DIM = 2048, 32_000, 576


def _logits(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(TOKENS, VOCAB, generator=g).to(device).requires_grad_()
    return logits, torch.randint(0, VOCAB, (TOKENS,), generator=g).to(device)


def _full(device: torch.device, loss: object) -> Side:
    logits, targets = _logits(device)

    def run() -> list[torch.Tensor]:
        value = loss(logits, targets)
        (grad,) = torch.autograd.grad(value, logits)
        return [value, grad]

    return run


def _head(device: torch.device, *, chunked: bool) -> Side:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, DIM, generator=g).to(device).requires_grad_()
    table = (0.05 * torch.randn(VOCAB, DIM, generator=g)).to(device).requires_grad_()
    targets = torch.randint(0, VOCAB, (TOKENS,), generator=g).to(device)

    def run() -> list[torch.Tensor]:
        if chunked:
            value = chunked_cross_entropy(hidden, table.T, targets)
        else:
            value = F.cross_entropy(hidden @ table.T, targets)
        return [value, *torch.autograd.grad(value, (hidden, table))]

    return run


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    yield Pair(
        name="loss/full",
        task=f"loss and gradient of {TOKENS:,} x {VOCAB:,} logits",
        peer="torch.nn.functional.cross_entropy",
        ours=lambda device: _full(device, cross_entropy),
        theirs=lambda device: _full(device, F.cross_entropy),
        same=close(1e-5),
    )
    yield Pair(
        name="loss/chunked",
        task=f"loss and gradients of a head, {TOKENS:,} tokens x {DIM} x {VOCAB:,} words",
        peer="hidden @ W, then torch.nn.functional.cross_entropy",
        ours=lambda device: _head(device, chunked=True),
        theirs=lambda device: _head(device, chunked=False),
        same=close(1e-4),
        speed=1.0,
        memory=0.25,
        note="The point is the memory: the logits are never held at once.",
    )
