"""Text as one long row of token ids, cut into blocks that fill every batch to the brim."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Integer
from torch import Tensor

from companion.core import check_count, check_shape, generator

__all__ = ["PackedTokens", "document_places"]

# How many ids, evenly spread, vouch for a row of ids being the one of the checkpoint.
_PROBES = 1024


class PackedTokens:
    r"""Blocks of a long row of token ids, in a random order without replacement, epoch by epoch.

    Block :math:`i` of a row :math:`x_0, x_1, \dots` with context :math:`n` is

    .. math:: (x_{in}, \dots, x_{in + n})

    so neighbors share one token: the last target of a block is the first input of the next, and
    every token but the first is a target exactly once an epoch. What is left over at the end of
    the row, fewer than :math:`n` targets, is not used.

    Iterating yields batches without end. Epoch :math:`e` has its own order, drawn from the seed
    and :math:`e`; a batch may hold the last blocks of one epoch and the first of the next, so all
    batches are equally large. The order depends on nothing but the seed and the position, which
    :meth:`state_dict` holds: a run that loads it reads on where the other stopped.

    With ``world`` processes, each yields its own ``batch`` blocks of every ``world * batch``, so
    that together they read what one process with a batch ``world`` times as large reads.

    Args:
        ids: The row, of any integer dtype. It may be a memory-mapped file
            (``torch.from_file``): only the blocks of a batch are read.
        context: Tokens that the model reads at once, :math:`n`. Blocks have one more.
        batch: Blocks of a batch, on each process.
        seed: Of the order.
        rank: Number of this process.
        world: Number of processes.
        device: Where batches are put; by default they stay on the device of ``ids``.

    Raises:
        ValueError: If the row is not one-dimensional, holds no integers or no whole block, or a
            count is out of its domain.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> data = PackedTokens(torch.arange(9), context=4, batch=2)
        >>> next(iter(data)).sort(dim=0).values
        tensor([[0, 1, 2, 3, 4],
                [4, 5, 6, 7, 8]])
    """

    def __init__(
        self,
        ids: Integer[Tensor, " n"],
        *,
        context: int,
        batch: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        device: str | torch.device | None = None,
    ) -> None:
        check_shape("ids", ids, (None,))
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"ids must hold integers, got {ids.dtype}")
        check_count("context", context)
        check_count("batch", batch)
        check_count("seed", seed, low=0)
        check_count("world", world)
        check_count("rank", rank, low=0, high=world - 1)
        if len(ids) < context + 1:
            raise ValueError(
                f"{len(ids)} tokens do not fill one block of context + 1 = {context + 1}: "
                "use a longer text or a shorter context"
            )
        self.ids = ids
        self.context = context
        self.batch = batch
        self.seed = seed
        self.rank = rank
        self.world = world
        self.device = device
        #: How many blocks all processes together have yielded.
        self.position = 0
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long)

    @property
    def blocks(self) -> int:
        """Blocks of an epoch."""
        return (len(self.ids) - 1) // self.context

    @property
    def epoch(self) -> float:
        """How often the text has been read, as a fraction of its blocks."""
        return self.position / self.blocks

    def __iter__(self) -> Iterator[Integer[Tensor, "batch block"]]:
        """Yield batches without end, from the present position on."""
        while True:
            first = self.position + self.rank * self.batch
            # Before the batch is handed over: who saves the state then has used this batch.
            self.position += self.batch * self.world
            yield self._gather(self._blocks(first, first + self.batch))

    def _blocks(self, first: int, end: int) -> Tensor:
        """Numbers of the blocks at these places of the endless order."""
        pieces = []
        while first < end:
            epoch, within = divmod(first, self.blocks)
            stop = min(self.blocks, within + end - first)
            pieces.append(self._order_of(epoch)[within:stop])
            first += stop - within
        return torch.cat(pieces)

    def _order_of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            # Every pair of seed and epoch gets a seed of its own, with no pattern between them.
            mixed = hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()
            drawn = generator(int.from_bytes(mixed[:7], "little"))
            self._order = torch.randperm(self.blocks, generator=drawn)
            self._epoch = epoch
        return self._order

    def _gather(self, numbers: Tensor) -> Tensor:
        places = numbers[:, None] * self.context + torch.arange(self.context + 1)
        chosen = self.ids[places.to(self.ids.device)].long()
        return chosen if self.device is None else chosen.to(self.device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and what a row of ids must agree with to be read on.

        Returns:
            Plain numbers, the same on every process.
        """
        return {
            "position": self.position,
            "tokens": len(self.ids),
            "context": self.context,
            "blocks_of_a_step": self.batch * self.world,
            "seed": self.seed,
            "checksum": self._checksum(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read on from a saved position.

        Args:
            state: What :meth:`state_dict` returned.

        Raises:
            ValueError: If it is of other data, another block length, another number of blocks a
                batch over all processes, or another seed.
        """
        for name, own in self.state_dict().items():
            if name not in state:
                raise ValueError(f"the state of the data has no {name!r}")
            if name != "position" and state[name] != own:
                what = name.replace("_", " ")
                raise ValueError(
                    f"the data differ from those of the checkpoint: {what} {own} here, "
                    f"{state[name]} there"
                )
        self.position = int(state["position"])

    def _checksum(self) -> int:
        # Not a proof of equality, but enough to notice another text, and cheap on a mapped file.
        places = torch.linspace(0, len(self.ids) - 1, _PROBES, dtype=torch.float64).long()
        probes = self.ids[places.to(self.ids.device)].long().cpu()
        weights = torch.arange(1, _PROBES + 1)
        return int((probes * weights).sum())


def document_places(
    ids: Integer[Tensor, "batch n"], *, end: int
) -> tuple[Integer[Tensor, "batch n"], Integer[Tensor, "batch n"]]:
    r"""Number the documents of packed rows, and the tokens of each document.

    A document ends with the token ``end``, which belongs to it. The first numbers go to
    :func:`companion.transformer.attention.documents`, which keeps documents from reading each
    other; the second are positions that start anew with each.

    Args:
        ids: Packed rows.
        end: The token that ends a document.

    Returns:
        The document of each token and its place in it, both from 0 on.

    Numerics:
        Two cumulative scans along the row, without a loop.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> document_places(torch.tensor([[5, 6, 0, 7, 0, 8]]), end=0)
        (tensor([[0, 0, 0, 1, 1, 2]]), tensor([[0, 1, 2, 0, 1, 0]]))
    """
    check_shape("ids", ids, (None, None))
    starts = torch.zeros_like(ids, dtype=torch.long)
    starts[:, 1:] = (ids[:, :-1] == end).long()
    row = torch.arange(ids.shape[1], device=ids.device)
    last = (starts * row).cummax(dim=1).values
    return starts.cumsum(dim=1), row - last
