"""One small training loop, shared by every chapter that trains something.

The loop owns no model and no data. It repeats: next batch, loss, backward, clip, step. What is
random (data order, dropout) is the caller's, through generators, so a run can be repeated.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["TrainingLog", "train"]

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """What a training run leaves behind.

    Attributes:
        loss: The loss of every step before its update, shape ``(steps,)``, float32 on the CPU.
        grad_norm: The global gradient norm of every step before clipping, same shape; NaN where
            the loop did not clip, since it then never computes the norm.
        seconds: Wall time of the whole run.
    """

    loss: Tensor
    grad_norm: Tensor
    seconds: float

    @property
    def steps(self) -> int:
        """Number of optimizer steps taken."""
        return len(self.loss)

    def final(self, last: int = 10) -> float:
        """Return the mean loss of the last steps.

        Args:
            last: How many steps to average, 1 or more.

        Returns:
            The mean, in the unit of the loss.
        """
        return float(self.loss[-last:].mean())


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "batches ran out: pass an iterable that can be iterated again (a list or a "
                "DataLoader), or a generator that yields at least `steps` batches"
            )


def train(
    loss_fn: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    schedule: Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    autocast: torch.dtype | None = None,
    progress: str | None = None,
) -> TrainingLog:
    """Minimize a loss over batches.

    Args:
        loss_fn: Maps a batch to a scalar loss. It may be compiled with ``torch.compile``.
        batches: Batches on the device of the parameters; iterated again when exhausted.
        optimizer: Any PyTorch optimizer. Its learning rates at the start are the base rates.
        steps: Number of updates, 1 or more.
        schedule: Maps the step 0, 1, ... to a factor of the base rates. They are restored at the
            end.
        clip_norm: Largest global gradient norm; larger gradients are scaled down to it.
        autocast: ``torch.bfloat16`` (or ``torch.float16`` on CUDA, where gradients are then
            scaled) computes the loss in mixed precision.
        progress: A title. When given, a line on standard error shows step, loss and time left.

    Returns:
        Losses, gradient norms and wall time.

    Raises:
        ValueError: If an argument is out of its domain, the batches run out, or the loss is not
            a scalar.
        FloatingPointError: If a loss is NaN or infinite. The run stops at most 50 steps later,
            since looking at every loss would make an accelerator wait at every step.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor(4.0))
        >>> sgd = torch.optim.SGD([weight], lr=0.25)
        >>> log = train(lambda target: (weight - target) ** 2, [1.0], sgd, steps=2)
        >>> log.loss
        tensor([9.0000, 2.2500])
    """
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be above 0, got {clip_norm}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device
    base_rates = [group["lr"] for group in optimizer.param_groups]
    scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)
    losses = torch.full((steps,), math.nan, device=device)
    norms = torch.full((steps,), math.nan, device=device)
    source = _endless(batches)
    start = time.perf_counter()
    checked = 0
    try:
        for step in range(steps):
            if schedule is not None:
                for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                    group["lr"] = rate * schedule(step)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                loss = loss_fn(next(source))
            if loss.ndim != 0:
                raise ValueError(f"loss_fn must return a scalar, got shape {tuple(loss.shape)}")
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            if clip_norm is not None:
                scaler.unscale_(optimizer)
                norms[step] = torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
            losses[step] = loss.detach()
            scaler.step(optimizer)
            scaler.update()
            if (step + 1) % 50 == 0 or step + 1 == steps:
                _require_finite(losses, checked, step + 1)
                checked = step + 1
                if progress is not None:
                    _show(progress, step + 1, steps, float(losses[step]), start)
    finally:
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate
    return TrainingLog(
        loss=losses.cpu(), grad_norm=norms.cpu(), seconds=time.perf_counter() - start
    )


def _require_finite(losses: Tensor, first: int, end: int) -> None:
    bad = torch.nonzero(~torch.isfinite(losses[first:end]))
    if len(bad):
        raise FloatingPointError(
            f"the loss at step {first + int(bad[0])} is {float(losses[first + int(bad[0])])}: "
            "lower the learning rate, clip the gradient, or look for a logarithm of zero"
        )


def _show(title: str, step: int, steps: int, loss: float, start: float) -> None:
    elapsed = time.perf_counter() - start
    left = elapsed / step * (steps - step)
    end = "\n" if step == steps else ""
    sys.stderr.write(f"\r{title}: step {step}/{steps}, loss {loss:.4f}, {left:.0f} s left {end}")
    sys.stderr.flush()
