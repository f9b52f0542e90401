r"""Several processes that train one model: PyTorch's own engine, put around a model of the book.

``torchrun`` starts the processes; :func:`processes` lets them find each other;
:func:`parallelize` wraps the model; :func:`companion.core.train` runs as on one process.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from companion.core.devices import resolve_device

__all__ = [
    "LossModule",
    "MainProcessError",
    "Processes",
    "average_",
    "is_main",
    "on_main",
    "parallelize",
    "processes",
]


class MainProcessError(RuntimeError):
    """Process 0 has failed at something that all processes need."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Where this process stands among those that train together.

    Attributes:
        rank: Its number, from 0 on; process 0 writes files and progress.
        world: How many there are.
        device: Where it computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0


@contextmanager
def processes(
    device: str | torch.device | None = None, *, timeout_minutes: float = 30.0
) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started; alone without it.

    They exchange data by NCCL where they compute on CUDA, one GPU a process, and by gloo on the
    CPU. At the end of the block, or at an error in it, the process leaves the group; ``torchrun``
    then ends the others.

    Args:
        device: Kind of device, such as ``"cpu"`` or ``"cuda"``; by default the best of the
            machine, as :func:`companion.core.resolve_device` chooses.
        timeout_minutes: How long to wait for a process that does not answer.

    Yields:
        Number of this process, their count, and its device.

    Raises:
        ValueError: If the machine lacks the device, or has fewer GPUs than processes.

    Example:
        >>> with processes("cpu") as here:
        ...     here
        Processes(rank=0, world=1, device=device(type='cpu'))
    """
    chosen = resolve_device(device)
    if dist.is_available() and dist.is_initialized():  # by the caller, who also ends it
        yield Processes(rank=dist.get_rank(), world=dist.get_world_size(), device=chosen)
        return
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Processes(rank=0, world=1, device=chosen)
        return
    if chosen.type == "mps":
        chosen = torch.device("cpu")  # no library exchanges tensors between processes on it
    if chosen.type == "cuda":
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            raise ValueError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes were started on a machine with "
                f"{count} GPUs: start one a GPU, or compute on the CPU"
            )
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo",
        timeout=timedelta(minutes=timeout_minutes),
        device_id=chosen if chosen.type == "cuda" else None,
    )
    try:
        yield Processes(rank=dist.get_rank(), world=dist.get_world_size(), device=chosen)
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Tell whether this is process 0, or the only one.

    Returns:
        Whether files and progress are this process' to write.
    """
    return world_size() == 1 or dist.get_rank() == 0


def exchange_device() -> torch.device:
    """Return where tensors must lie to be sent to other processes."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def average_(tensor: Tensor) -> Tensor:
    """Replace a tensor by its mean over all processes, in place.

    Args:
        tensor: Floating, of one shape on all processes. All must call.

    Returns:
        The same tensor.
    """
    if world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor


def on_main(action: Callable[[], object]) -> None:
    """Let process 0 do something while the others wait, and fail together if it fails.

    Args:
        action: What process 0 does. All processes must call.

    Raises:
        MainProcessError: On the other processes, if the action raised on process 0. There, what
            it raised is raised.
    """
    if world_size() == 1:
        action()
        return
    failed = torch.zeros((), dtype=torch.int32, device=exchange_device())
    try:
        if is_main():
            action()
    except BaseException:
        failed += 1
        raise
    finally:
        dist.broadcast(failed, src=0)
    if bool(failed):
        raise MainProcessError("process 0 failed, and says why")


class LossModule(nn.Module):
    """A model and its loss as one module: what several processes train.

    DDP and FSDP2 do their work around ``forward`` of the module that they wrap. A loss that reads
    ``model.hidden(...)`` and ``model.head.weight`` goes past the model's own ``forward``; inside
    the ``forward`` of this module it may do so.

    Args:
        model: The model.
        loss: Maps the model and a batch to a scalar.

    Example:
        >>> module = LossModule(nn.Linear(3, 1), lambda model, x: model(x).square().mean())
        >>> module(torch.ones(2, 3)).shape
        torch.Size([])
    """

    def __init__(self, model: nn.Module, loss: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> Tensor:
        """Compute the loss of a batch.

        Args:
            batch: What the loss takes.

        Returns:
            A scalar.
        """
        return self.loss(self.model, batch)


def parallelize(
    module: nn.Module,
    kind: Literal["none", "ddp", "fsdp"] = "none",
    *,
    activation_checkpointing: bool = False,
    compile: bool = False,
    gather_dtype: torch.dtype | None = None,
) -> nn.Module:
    r"""Prepare a module for training on several processes, with less memory, or compiled.

    Blocks are the entries of every module list named ``blocks`` inside the module, as the
    book's encoders and decoders have it. Each can be recomputed in the backward pass, compiled,
    and sharded by itself.

    Args:
        module: What computes the loss, usually a :class:`LossModule`, on the device of this
            process. It is changed in place, and its parameters become those of process 0.
        kind: ``"none"`` for one process. ``"ddp"`` keeps the whole model on each process and
            averages gradients. ``"fsdp"`` (FSDP2) also shards parameters, gradients and the
            optimizer's state, so each process holds one part in ``W`` of them, and gathers a
            block's parameters when it computes. Make the optimizer afterwards: sharding replaces
            the parameters.
        activation_checkpointing: Keep only the input of each block for the backward pass, and
            compute the block once more there: less memory for about a third more time.
        compile: Compile each block with ``torch.compile``. Blocks of one form share one
            compilation.
        gather_dtype: For ``"fsdp"``, the type in which parameters are gathered and computed
            with, such as ``torch.bfloat16``; gradients are then still averaged in float32.

    Returns:
        The module to call and to pass to :func:`companion.core.train`.

    Raises:
        ValueError: If the kind is unknown; if several processes are to train but did not start
            together, or did, but ``kind`` is ``"none"``; if there are no blocks to work on.

    Numerics:
        Both kinds average gradients over processes: see :func:`companion.core.train`. Tied
        parameters outside of the blocks stay tied. Recomputing draws the same numbers again from
        PyTorch's global generators only: dropout that draws from another generator would differ.
        Generation and validation leave out recomputation.

    References:
        Li et al. 2020, arXiv:2006.15704 (DDP); Zhao et al. 2023, arXiv:2304.11277 (FSDP); Chen et
        al. 2016, arXiv:1604.06174 (recomputation).

    Example:
        >>> model = nn.Linear(3, 1)
        >>> parallelize(model) is model
        True
    """
    if kind not in ("none", "ddp", "fsdp"):
        raise ValueError(f"kind must be 'none', 'ddp' or 'fsdp', got {kind!r}")
    together = dist.is_available() and dist.is_initialized()
    if kind == "none" and together and dist.get_world_size() > 1:
        raise ValueError(
            f"{dist.get_world_size()} processes run, but nothing joins their models: "
            "choose 'ddp' or 'fsdp'"
        )
    if kind != "none" and not together:
        raise ValueError(f"{kind!r} needs processes that know each other: start with torchrun")
    if gather_dtype is not None and kind != "fsdp":
        raise ValueError("gather_dtype is for 'fsdp' alone: elsewhere use autocast")

    blocks = _blocks(module)
    if not blocks and (activation_checkpointing or compile):
        raise ValueError(
            "found no blocks to recompute or compile: put them into a ModuleList named blocks"
        )
    for block in blocks:
        # On the method, not around the module: names in state_dict stay, and so do hooks.
        if compile:
            block.forward = torch.compile(block.forward)
        if activation_checkpointing:
            block.forward = _recomputed(block, block.forward)
    if kind == "none":
        return module
    if kind == "ddp":
        device = next(module.parameters()).device
        return nn.parallel.DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
    return _sharded(module, blocks, gather_dtype)


def is_parallel(module: object) -> bool:
    """Tell whether calling a module trains it together with other processes.

    Args:
        module: What :func:`parallelize` returned, or any other function.

    Returns:
        Whether gradients are exchanged.
    """
    # DDP has the first method, FSDP2 the second; so neither needs to be imported.
    joined = hasattr(module, "no_sync") or hasattr(module, "set_requires_gradient_sync")
    return joined and world_size() > 1


def _blocks(module: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for parent in module.modules():
        blocks = getattr(parent, "blocks", None)
        if isinstance(blocks, nn.ModuleList):
            found += [block for block in blocks if all(block is not have for have in found)]
    return found


def _recomputed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputed(*inputs: Any, **more: Any) -> Any:
        # Elsewhere nothing is kept anyway, and a cache must not be filled twice.
        if not (block.training and torch.is_grad_enabled()):
            return forward(*inputs, **more)
        return checkpoint(forward, *inputs, use_reentrant=False, **more)

    return recomputed


def _sharded(
    module: nn.Module, blocks: list[nn.Module], gather_dtype: torch.dtype | None
) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), src=0)
    device = next(module.parameters()).device
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if gather_dtype is not None:
        policy = MixedPrecisionPolicy(param_dtype=gather_dtype, reduce_dtype=torch.float32)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # What is outside of the blocks, tied tables among it, is one group, gathered by the root.
    fully_shard(module, mesh=mesh, mp_policy=policy)
    return module
