"""Two towers on one of two processes; a test starts this file with torchrun."""

import sys

import torch
from torch import Tensor, nn

from companion.core import processes
from companion.knowledge.multimodal import DualEncoder, clip_loss


def towers() -> tuple[Tensor, Tensor, DualEncoder]:
    """Features of fourteen pairs, and a model that is the same everywhere."""
    g = torch.Generator().manual_seed(5)
    x = torch.randn(14, 5, generator=g, dtype=torch.float64)
    y = torch.randn(14, 3, generator=g, dtype=torch.float64)
    model = DualEncoder(5, 3, dim=4, generator=g).double()
    model.bias.requires_grad_(False)
    return x, y, model


def main() -> None:
    """Write loss and gradients, dense and in chunks."""
    with processes("cpu") as here:
        x, y, model = towers()
        wrapped = nn.parallel.DistributedDataParallel(model)
        mine = slice(7 * here.rank, 7 * here.rank + 7)
        found = []
        for chunk_size in (None, 3):
            model.zero_grad()
            U, V = wrapped(x[mine], y[mine])
            scale = model.log_scale
            loss = clip_loss(U, V, scale, chunk_size=chunk_size, across=True)
            loss.backward()
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            found.append([loss.detach(), *(grad.clone() for grad in grads)])
        torch.save(found, f"{sys.argv[1]}/{here.rank}.pt")


if __name__ == "__main__":
    main()
