"""Training runs that survive a kill at any moment, and go on as if nothing had happened.

A checkpoint is a folder ``step-<number>`` of safetensors and JSON files: opening one never runs
code, as unpickling does. It is written under another name and renamed when all of it is on disk.
Renaming is atomic, so a folder of that name is whole, and the newest one is where a run goes on.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from companion.core._storage import (
    file_hash,
    pack,
    sync,
    unpack,
    unshared,
    whole,
    write_tensors,
)
from companion.core.parallel import exchange_device, is_main, on_main, world_size
from companion.core.validation import check_count

__all__ = ["Checkpoints", "Progress", "Stateful"]

_FORMAT = 1
_FILES = ("model.safetensors", "state.safetensors", "state.json")


@runtime_checkable
class Stateful(Protocol):
    """What can hand over its state and take it back: plain numbers, strings, lists and tensors."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Take a state back."""


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a run has come.

    Attributes:
        step: Updates done.
        loss: The loss of each, shape ``(step,)``; empty where the loop keeps none.
        grad_norm: The gradient norm of each, same shape as ``loss``.
        seconds: Wall time so far.
    """

    step: int
    loss: Tensor = field(default_factory=lambda: torch.empty(0))
    grad_norm: Tensor = field(default_factory=lambda: torch.empty(0))
    seconds: float = 0.0


class Checkpoints:
    """A folder of checkpoints, and everything that goes into them.

    Pass it to :func:`companion.core.train`, which saves and continues; or call :meth:`load` before
    a loop of your own and :meth:`save` in it. Saved are the model, the optimizer, the losses so
    far, the position in the data and in the schedule, the scaler of float16, PyTorch's global
    generators on every process, the given generators, and the state of further objects: a
    schedule of ``torch.optim.lr_scheduler`` or a second optimizer is one.

    Models and optimizers sharded by FSDP2 are gathered, one tensor at a time, and written whole
    by process 0, so the files look the same for every kind of parallelism. All processes must see
    the folder.

    Args:
        directory: The folder; it is made when the first checkpoint is written. Give every run one
            of its own.
        model: The module whose parameters and buffers are saved. It must hold all parameters that
            the optimizer updates.
        every: A checkpoint is written after so many steps, and after the last.
        keep: How many of the newest to keep, 1 or more.
        state: Further objects with ``state_dict`` and ``load_state_dict``, by name. Their state
            must be the same on all processes.
        generators: Generators that the run draws from, by name; each process has its own.

    Raises:
        ValueError: If ``every`` or ``keep`` is smaller than 1.

    Numerics:
        Tensors keep their type, and numbers their last bit. The hash of each file is checked when
        it is read. A checkpoint fits the number of processes that wrote it, because each has
        generators of its own.

    Example:
        >>> import tempfile
        >>> from companion.core import train
        >>> def run(steps):
        ...     model = nn.Linear(1, 1, bias=False)
        ...     _ = nn.init.ones_(model.weight)
        ...     sgd = torch.optim.SGD(model.parameters(), lr=0.25)
        ...     saved = Checkpoints(folder, model=model, every=2)
        ...     loss = lambda x: model(x).square().mean()
        ...     return train(loss, [torch.ones(3, 1)], sgd, steps=steps, checkpoints=saved)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run(2).loss, run(4).loss
        (tensor([1.0000, 0.2500]), tensor([1.0000, 0.2500, 0.0625, 0.0156]))

        The same in a loop of one's own. It is called twice, and the second call goes on:

        >>> def own(steps):
        ...     weight = nn.Linear(1, 1, bias=False)
        ...     _ = nn.init.ones_(weight.weight)
        ...     sgd = torch.optim.SGD(weight.parameters(), lr=0.25)
        ...     saved = Checkpoints(folder, model=weight)
        ...     found = saved.load(sgd)
        ...     first = 0 if found is None else found.step
        ...     for step in range(first, steps):
        ...         sgd.zero_grad()
        ...         weight(torch.ones(3, 1)).square().mean().backward()
        ...         sgd.step()
        ...         saved.save(Progress(step + 1), sgd)
        ...     return first, weight.weight.item()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     own(2), own(4)
        ((0, 0.25), (2, 0.0625))
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        model: nn.Module,
        every: int = 100,
        keep: int = 2,
        state: Mapping[str, Stateful] | None = None,
        generators: Mapping[str, torch.Generator] | None = None,
    ) -> None:
        check_count("every", every)
        check_count("keep", keep)
        self.directory = Path(directory).expanduser()
        self.model = model
        self.every = every
        self.keep = keep
        self.state = dict(state or {})
        self.generators = dict(generators or {})
        self._random: dict[str, Tensor] = {}

    def steps(self) -> list[int]:
        """List the steps of which there are checkpoints.

        Returns:
            Numbers of updates, ascending.
        """
        if not self.directory.is_dir():
            return []
        names = [path.name.removeprefix("step-") for path in self.directory.glob("step-*")]
        return sorted(int(name) for name in names if name.isdecimal())

    # --- writing ---------------------------------------------------------------------------------

    def save(
        self,
        progress: Progress,
        optimizer: torch.optim.Optimizer,
        *,
        base_rates: list[float] | list[Tensor] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        batches: object = None,
    ) -> None:
        """Write a checkpoint, after an update. All processes must call.

        Args:
            progress: How far the run has come; ``Progress(step)`` is enough.
            optimizer: The optimizer.
            base_rates: Learning rates of its groups without the schedule's factor, where a
                schedule is a function of the step; by default the rates as they are.
            scaler: Scales float16 gradients, if they are scaled.
            batches: The data; their position is saved if they are :class:`Stateful`.

        Raises:
            ValueError: If a state holds something other than tensors and plain values, or there
                is a checkpoint of this step or a later one.
            OSError: If it could not be written. Those before it are left as they were.
        """
        newest = max(self.steps(), default=0)
        if progress.step <= newest:
            raise ValueError(
                f"{self.directory} already has a checkpoint of step {newest}, and step "
                f"{progress.step} is not beyond it: load() it first, or choose another folder"
            )
        updates = optimizer.state_dict()
        if base_rates is not None:
            for group, rate in zip(updates["param_groups"], base_rates, strict=True):
                group["lr"] = rate
        tensors: dict[str, Tensor] = {}
        told = pack(
            {
                "step": progress.step,
                "seconds": progress.seconds,
                "loss": progress.loss,
                "grad_norm": progress.grad_norm,
                "optimizer": updates,
                "scaler": {} if scaler is None else scaler.state_dict(),
                "batches": batches.state_dict() if isinstance(batches, Stateful) else None,
                "state": {name: held.state_dict() for name, held in self.state.items()},
                "random": {name: _gather(s) for name, s in self._generator_states().items()},
            },
            tensors,
            "",
        )
        model = {name: whole(tensor) for name, tensor in self._tensors().items()}
        on_main(lambda: self._write(progress.step, model, tensors, told))

    def _write(
        self, step: int, model: dict[str, Tensor], tensors: dict[str, Tensor], told: Any
    ) -> None:
        final = self.directory / f"step-{step:08d}"
        unfinished = self.directory / f".unfinished-{step}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._clean()
            unfinished.mkdir()
            write_tensors(unfinished / _FILES[0], unshared(model))
            write_tensors(unfinished / _FILES[1], unshared(tensors))
            (unfinished / _FILES[2]).write_text(json.dumps(told), encoding="utf-8")
            manifest = {
                "format": _FORMAT,
                "step": step,
                "processes": world_size(),
                "sha256": {name: file_hash(unfinished / name) for name in _FILES},
            }
            text = json.dumps(manifest, indent=1)
            (unfinished / "manifest.json").write_text(text, encoding="utf-8")
            for path in (*sorted(unfinished.iterdir()), unfinished):
                sync(path)
            os.rename(unfinished, final)
            sync(self.directory)
        except Exception as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise OSError(
                f"could not write the checkpoint of step {step} to {self.directory}: {error}. "
                f"Those of steps {self.steps()} are unharmed"
            ) from error
        self._clean()

    def _clean(self) -> None:
        """Remove the oldest checkpoints, and what killed runs left behind."""
        for old in self.steps()[: -self.keep]:
            # Under its name a folder is always whole, also while it is being deleted.
            os.rename(self.directory / f"step-{old:08d}", self.directory / f".old-{old}")
        for pattern in (".unfinished-*", ".old-*"):
            for path in self.directory.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    # --- reading ---------------------------------------------------------------------------------

    def load(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        scaler: torch.amp.GradScaler | None = None,
        batches: object = None,
        steps: int | None = None,
        generators: bool = True,
    ) -> Progress | None:
        """Restore the newest checkpoint. All processes must call.

        Data without a state are not moved: draw and put away as many batches as were used. Where
        that draws from a generator that is saved, pass ``generators=False`` and call
        :meth:`restore_generators` afterwards.

        Args:
            optimizer: Receives state and settings, those of the learning rate included.
            scaler: Receives its state.
            batches: Continue at their position if they are :class:`Stateful`.
            steps: How many the run is to take, if that is known.
            generators: Whether generators are put back as well.

        Returns:
            How far the run had come, or ``None`` if there is no checkpoint.

        Raises:
            ValueError: If the checkpoint is damaged, or of another model, optimizer, number of
                processes or data, or beyond the last step. Nothing is changed then, except for
                the data and the further objects.
        """
        if is_main():
            self._clean()
        found = self.steps()
        if not found:
            return None
        step, folder = found[-1], self.directory / f"step-{found[-1]:08d}"
        model, told = _read(folder)
        if steps is not None and step > steps:
            raise ValueError(f"{folder} is beyond the last step, {steps}: ask for more steps")
        if len(told["loss"]) not in (0, step):
            raise ValueError(f"{folder} holds {len(told['loss'])} losses: it is not of this step")
        own = self._tensors()
        _check_fit(folder, model, own)
        _check_groups(folder, told["optimizer"], optimizer)
        for what, wanted, there in (
            ("objects with a state", set(self.state), set(told["state"])),
            ("generators", set(self._generator_states()), set(told["random"])),
        ):
            if wanted != there:
                raise ValueError(
                    f"{folder} has the {what} {sorted(there)}, this run {sorted(wanted)}"
                )
        if isinstance(batches, Stateful) != (told["batches"] is not None):
            raise ValueError(f"{folder} is of a run whose data were of another kind")
        if told["scaler"] and scaler is None:
            raise ValueError(f"{folder} is of a run that scales its gradients: pass its scaler")

        if isinstance(batches, Stateful):
            batches.load_state_dict(told["batches"])
        for name, held in self.state.items():
            held.load_state_dict(told["state"][name])
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, slots in told["optimizer"]["state"].items():
            for name, value in slots.items():
                slots[name] = _like(value, parameters[index])
        optimizer.load_state_dict(told["optimizer"])
        # PyTorch gives the state the type of the parameter, also where it had another.
        for index, slots in told["optimizer"]["state"].items():
            held_now = optimizer.state[parameters[index]]
            for name, value in slots.items():
                if isinstance(value, Tensor) and held_now[name].dtype != value.dtype:
                    held_now[name] = value.to(held_now[name].device)
        if told["scaler"] and scaler is not None:
            scaler.load_state_dict(told["scaler"])
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(_like(model[name], tensor))
        self._random = told["random"]
        if generators:
            self.restore_generators()
        return Progress(step, told["loss"], told["grad_norm"], told["seconds"])

    def restore_generators(self) -> None:
        """Put all generators where they were when the checkpoint just loaded was written."""
        rank = dist.get_rank() if world_size() > 1 else 0
        for name, states in self._random.items():
            state = states[rank].clone()
            if name == "global cpu":
                torch.set_rng_state(state)
            elif name == "global cuda":
                torch.cuda.set_rng_state(state)
            else:
                self.generators[name].set_state(state)

    # --- what belongs to the run -----------------------------------------------------------------

    def _generator_states(self) -> dict[str, Tensor]:
        states = {"global cpu": torch.get_rng_state()}
        device = next(self.model.parameters()).device
        if device.type == "cuda":
            states["global cuda"] = torch.cuda.get_rng_state(device)
        return states | {name: made.get_state() for name, made in self.generators.items()}

    def _tensors(self) -> dict[str, Tensor]:
        """Each parameter and each saved buffer once, under the first of its names."""
        module = self.model
        if isinstance(module, nn.parallel.DistributedDataParallel):
            module = module.module
        held = module.state_dict()
        named = [
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        ]
        first: dict[int, str] = {}
        also = {
            name
            for name, tensor in named
            if name in held and first.setdefault(id(tensor), name) != name
        }
        return {name: tensor for name, tensor in held.items() if name not in also}


def _like(value: Any, pattern: Tensor) -> Any:
    """Shard a tensor as another one is, if that is sharded and has its shape."""
    if not isinstance(value, Tensor) or value.shape != pattern.shape:
        return value
    if not hasattr(pattern, "placements"):
        return value.to(pattern.device) if value.ndim else value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(pattern, DTensor)
    mesh = pattern.device_mesh
    return distribute_tensor(
        value.to(mesh.device_type), mesh, pattern.placements, src_data_rank=None
    )


def _gather(state: Tensor) -> Tensor:
    """The bytes of all processes, one row each."""
    if world_size() == 1:
        return state[None]
    here = state.to(exchange_device())
    rows = [torch.empty_like(here) for _ in range(world_size())]
    dist.all_gather(rows, here)
    return torch.stack(rows).cpu()


def _check_fit(folder: Path, saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    for name, tensor in own.items():
        if name not in saved:
            raise ValueError(f"{folder} is of another model: it has no {name!r}")
        have, want = saved[name], tensor
        if have.shape != want.shape or have.dtype != want.dtype:
            raise ValueError(
                f"{folder} is of another model: {name!r} is {have.dtype} of shape "
                f"{tuple(have.shape)} there, {want.dtype} of shape {tuple(want.shape)} here"
            )
    more = sorted(set(saved) - set(own))
    if more:
        raise ValueError(f"{folder} is of another model: it also has {more[0]!r}")


def _check_groups(folder: Path, saved: Any, optimizer: torch.optim.Optimizer) -> None:
    there = [len(group["params"]) for group in saved["param_groups"]]
    here = [len(group["params"]) for group in optimizer.param_groups]
    if there != here:
        raise ValueError(
            f"{folder} is of another optimizer: its groups have {there} parameters, "
            f"these have {here}"
        )


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Model tensors and everything else of a checkpoint, after a check of all hashes."""
    from safetensors.torch import load_file

    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT:
            raise ValueError(f"it has format {manifest['format']}, not {_FORMAT}")
        for name in _FILES:
            if file_hash(folder / name) != manifest["sha256"][name]:
                raise ValueError(f"{name} has changed since it was written")
        written = manifest["processes"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder} is damaged: {error}. Delete this folder to go on from the one before it"
        ) from error
    if written != world_size():
        raise ValueError(
            f"{folder} was written by {written} processes, and {world_size()} run now: "
            f"start {written} to continue exactly"
        )
    tensors = load_file(folder / _FILES[1])
    told = json.loads((folder / _FILES[2]).read_text(encoding="utf-8"))
    return load_file(folder / _FILES[0]), unpack(told, tensors)
