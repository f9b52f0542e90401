"""What is measured: a task, and two sides that do it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Pair", "Side", "close"]

#: Something to time. It returns its result, so that the two sides can be compared.
Side = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A task that the companion and a peer do with the same inputs.

    Attributes:
        name: ``"group/task"``; ``--only`` takes either.
        task: What is done, with its sizes, in one line.
        peer: What the companion is compared with.
        ours: Prepares our side on a device and returns what is timed.
        theirs: The same for the peer, which it imports.
        same: Raises ``AssertionError`` if the two results differ; the result of ours comes first.
        needs: Modules that the peer needs.
        speed: The mark: ours shall be at least this many times as fast.
        memory: The mark: ours shall take at most this share of the peer's peak memory.
        note: What a reader should know about a ratio, in one sentence.
        rounds: Alternations; fewer where one takes long.
        seconds: How long each process repeats the call.
        devices: Where the pair makes sense.
    """

    name: str
    task: str
    peer: str
    ours: Callable[[torch.device], Side]
    theirs: Callable[[torch.device], Side]
    same: Callable[[Any, Any], None]
    needs: Sequence[str] = ()
    speed: float | None = None
    memory: float | None = None
    note: str = ""
    rounds: int = 3
    seconds: float = 1.0
    devices: Sequence[str] = ("cpu", "cuda")


def close(rtol: float, atol: float = 0.0) -> Callable[[Any, Any], None]:
    """Compare tensors, or sequences of them, relative to the largest entry.

    Args:
        rtol: Largest difference, as a share of the largest entry.
        atol: Added to it.

    Returns:
        A function of both results that raises ``AssertionError`` where they differ.
    """

    def same(ours: Any, theirs: Any) -> None:
        if isinstance(theirs, Tensor):
            ours, theirs = [ours], [theirs]
        assert len(ours) == len(theirs), f"{len(ours)} results against {len(theirs)}"
        for mine, its in zip(ours, theirs, strict=True):
            assert mine.shape == its.shape, f"shapes {tuple(mine.shape)} and {tuple(its.shape)}"
            scale = float(its.detach().abs().max()) if its.numel() else 0.0
            worst = float((mine - its).detach().abs().max()) if its.numel() else 0.0
            limit = atol + rtol * scale
            assert worst <= limit, f"results differ by {worst:.3g}, the limit is {limit:.3g}"

    return same
