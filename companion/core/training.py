"""One small training loop, shared by every chapter that trains something.

The loop owns no model and no data. It repeats: next batch, loss, backward, clip, step. What is
random (data order, dropout) is the caller's, through generators, so a run can be repeated. The
same loop runs on several processes, on a model from :func:`companion.core.parallelize`, and goes
on where an interrupted run stopped, with :class:`companion.core.Checkpoints`.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from companion.core.checkpoints import Checkpoints, Progress, Stateful
from companion.core.parallel import average_, is_main, is_parallel

__all__ = ["TrainingLog", "train"]

Batch = TypeVar("Batch")

# How many steps a loss that is not finite may stay unseen: looking makes an accelerator wait.
_INTERVAL = 50


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingLog:
    """What a training run leaves behind.

    Attributes:
        loss: The loss of every step before its update, shape ``(steps,)``, float32 on the CPU;
            with several processes, the mean of theirs.
        grad_norm: The global gradient norm of every step before clipping, same shape; NaN where
            the loop did not clip, since it then never computes the norm.
        seconds: Wall time of the whole run, that before an interruption included.
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
    accumulate: int = 1,
    checkpoints: Checkpoints | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
    progress: str | None = None,
) -> TrainingLog:
    r"""Minimize a loss over batches.

    Args:
        loss_fn: Maps a batch to a scalar loss. It may be compiled with ``torch.compile``. To
            train on several processes, pass the module that :func:`companion.core.parallelize`
            returned itself, not a function that calls it.
        batches: Batches on the device of the parameters; iterated again when exhausted.
        optimizer: Any PyTorch optimizer. Its learning rates at the start are the base rates.
        steps: Number of updates, 1 or more, those before an interruption included.
        schedule: Maps the step 0, 1, ... to a factor of the base rates. They are restored at the
            end.
        clip_norm: Largest global gradient norm; larger gradients are scaled down to it.
        autocast: ``torch.bfloat16`` (or ``torch.float16`` on CUDA, where gradients are then
            scaled) computes the loss in mixed precision.
        accumulate: How many batches make a step, 1 or more. The gradient is that of the mean of
            their losses, and memory is needed for one batch at a time. It equals the gradient of
            one large batch where every batch counts equally many tokens.
        checkpoints: Saves the run as it goes, and continues it where a saved one is found. Where
            ``batches`` has ``state_dict`` and ``load_state_dict``, its position is saved;
            otherwise as many batches are drawn and put away as had been used.
        on_step: Called after each update, before anything is saved, with the number of updates
            done and the loss of this process, which is not read back to the host.
        progress: A title. When given, a line on standard error shows step, loss and time left.

    Returns:
        Losses, gradient norms and wall time.

    Raises:
        ValueError: If an argument is out of its domain, the batches run out, the loss is not
            a scalar, or a saved run does not fit.
        FloatingPointError: If a loss is NaN or infinite. The run stops at most 50 steps later,
            since looking at every loss would make an accelerator wait at every step. No
            checkpoint is written after such a loss.

    Numerics:
        On ``W`` processes the gradient is the mean of theirs, which is the gradient of the whole
        batch where each of them counts equally many tokens; otherwise tokens on a process with
        few of them weigh more. Sums are taken in another order than on one process, so losses
        agree to rounding. A run that was interrupted and continued agrees to the last bit with
        one that was not, on the same machine with the same number of processes, as far as
        PyTorch's kernels are deterministic there.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor(4.0))
        >>> sgd = torch.optim.SGD([weight], lr=0.25)
        >>> log = train(lambda target: (weight - target) ** 2, [1.0], sgd, steps=2)
        >>> log.loss
        tensor([9.0000, 2.2500])
    """
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    if accumulate < 1:
        raise ValueError(f"accumulate must be 1 or more, got {accumulate}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be above 0, got {clip_norm}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device
    sharded = hasattr(parameters[0], "full_tensor")
    if sharded and autocast == torch.float16:
        raise ValueError("float16 gradients of sharded models are not scaled here: use bfloat16")
    parallel = is_parallel(loss_fn)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)
    losses = torch.full((steps,), math.nan, device=device)
    norms = torch.full((steps,), math.nan, device=device)
    source = _endless(batches)

    first, before = 0, 0.0
    if checkpoints is not None:
        found = checkpoints.load(
            optimizer, scaler=scaler, batches=batches, steps=steps, generators=False
        )
        if found is not None:
            if len(found.loss) != found.step:
                raise ValueError(
                    f"the checkpoint of step {found.step} in {checkpoints.directory} was written "
                    "by another loop, which kept no losses: go on with that one"
                )
            first, before = found.step, found.seconds
            losses[:first], norms[:first] = found.loss.to(device), found.grad_norm.to(device)
            if not isinstance(batches, Stateful) and first < steps:
                for _ in range(first * accumulate):
                    next(source)
            # Only now: drawing batches may have used the generators.
            checkpoints.restore_generators()
    base_rates = [group["lr"] for group in optimizer.param_groups]
    title = progress if is_main() else None
    start = time.perf_counter()
    checked = first
    try:
        for step in range(first, steps):
            if schedule is not None:
                for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                    group["lr"] = rate * schedule(step)
            optimizer.zero_grad(set_to_none=True)
            parts: list[Tensor] = []
            for part in range(accumulate):
                with _reducing(loss_fn, part + 1 == accumulate):
                    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                        loss = loss_fn(next(source))
                    if loss.ndim != 0:
                        raise ValueError(
                            f"loss_fn must return a scalar, got shape {tuple(loss.shape)}"
                        )
                    share = loss if accumulate == 1 else loss / accumulate
                    scaler.scale(share).backward()  # type: ignore[no-untyped-call]
                parts.append(share.detach())
            total = parts[0] if accumulate == 1 else torch.stack(parts).sum()
            if clip_norm is not None:
                scaler.unscale_(optimizer)
                norm: Any = torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
                norms[step] = norm.full_tensor() if sharded else norm
            losses[step] = total
            scaler.step(optimizer)
            scaler.update()
            done = step + 1
            if on_step is not None:
                on_step(done, total)
            save = checkpoints is not None and (done % checkpoints.every == 0 or done == steps)
            if save or done % _INTERVAL == 0 or done == steps:
                if parallel:
                    average_(losses[checked:done])
                _require_finite(losses, checked, done)
                checked = done
                if title is not None:
                    _show(title, done, steps, float(losses[step]), start, first)
            if save and checkpoints is not None:
                seconds = before + time.perf_counter() - start
                made = Progress(done, losses[:done], norms[:done], seconds)
                checkpoints.save(
                    made, optimizer, base_rates=base_rates, scaler=scaler, batches=batches
                )
    finally:
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate
    return TrainingLog(
        loss=losses.cpu(),
        grad_norm=norms.cpu(),
        seconds=before + time.perf_counter() - start,
    )


def _reducing(loss_fn: object, last: bool) -> AbstractContextManager[object]:
    """Exchange gradients between processes with the last batch of a step only."""
    if hasattr(loss_fn, "set_requires_gradient_sync"):  # FSDP2
        loss_fn.set_requires_gradient_sync(last)
    elif not last and hasattr(loss_fn, "no_sync"):  # DDP
        context: AbstractContextManager[object] = loss_fn.no_sync()
        return context
    return nullcontext()


def _require_finite(losses: Tensor, first: int, end: int) -> None:
    bad = torch.nonzero(~torch.isfinite(losses[first:end]))
    if len(bad):
        raise FloatingPointError(
            f"the loss at step {first + int(bad[0])} is {float(losses[first + int(bad[0])])}: "
            "lower the learning rate, clip the gradient, or look for a logarithm of zero"
        )


def _show(title: str, step: int, steps: int, loss: float, start: float, first: int) -> None:
    elapsed = time.perf_counter() - start
    left = elapsed / (step - first) * (steps - step)
    end = "\n" if step == steps else ""
    sys.stderr.write(f"\r{title}: step {step}/{steps}, loss {loss:.4f}, {left:.0f} s left {end}")
    sys.stderr.flush()
