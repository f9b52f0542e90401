"""What a family of checkpoints is: one table of names that is read in both directions."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from companion.core import check_finite
from companion.transformer.block import TransformerConfig

__all__ = [
    "ACTIVATIONS",
    "CONTEXT",
    "Codec",
    "Entry",
    "Piece",
    "activation",
    "linear",
    "norm",
    "require",
    "their_name",
]

#: What we write where the configuration of a family has no word for the longest text. Hugging Face
#: keeps what it does not know.
CONTEXT = "companion_context"

#: Activations by the names that Hugging Face's configurations give them, and by ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True)
class Piece:
    """A tensor of a checkpoint.

    Attributes:
        name: Its name in full.
        shape: Its shape.
        also: Other names of the same tensor, where weights are tied. A file may hold any of them.
    """

    name: str
    shape: tuple[int, ...]
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One of our parameters, and the tensors of a checkpoint that it is made of.

    Attributes:
        ours: Its name, or its names where weights are tied.
        pieces: What is joined, one below the other.
        turned: Whether the checkpoint holds the transposed matrices.
    """

    ours: tuple[str, ...]
    pieces: tuple[Piece, ...]
    turned: bool = False

    def read(self, parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """Join the tensors of a checkpoint. A single one is kept as it is, without a copy."""
        if self.turned:
            parts = [part.reshape(part.shape[0], -1).T.contiguous() for part in parts]
        joined = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        return joined.reshape(tuple(shape))

    def write(self, parameter: Tensor) -> list[Tensor]:
        """Take a parameter apart again."""
        if len(self.pieces) == 1:
            parts: Sequence[Tensor] = [parameter]
        else:
            rows = [prod(p.shape[1:]) if self.turned else p.shape[0] for p in self.pieces]
            parts = torch.split(parameter, rows)
        return [
            (part.T if self.turned else part).reshape(piece.shape)
            for part, piece in zip(parts, self.pieces, strict=True)
        ]


def norm(ours: str, theirs: str, dim: int, *, bias: bool = True) -> list[Entry]:
    """Entries of a norm."""
    return [
        Entry((f"{ours}.{part}",), (Piece(f"{theirs}.{part}", (dim,)),))
        for part in (("weight", "bias") if bias else ("weight",))
    ]


def linear(
    ours: str,
    theirs: Mapping[str, int] | str,
    outputs: int,
    inputs: int,
    *,
    bias: bool = True,
    turned: bool = False,
) -> list[Entry]:
    """Entries of a linear map, or of several that are one here, with the outputs of each."""
    names = {theirs: outputs} if isinstance(theirs, str) else theirs
    weights = tuple(
        Piece(f"{name}.weight", (inputs, rows) if turned else (rows, inputs))
        for name, rows in names.items()
    )
    entries = [Entry((f"{ours}.weight",), weights, turned)]
    if bias:
        biases = tuple(Piece(f"{name}.bias", (rows,)) for name, rows in names.items())
        entries.append(Entry((f"{ours}.bias",), biases))
    return entries


def activation(name: Any, folder: Path) -> str:
    """Our name of an activation."""
    if name not in ACTIVATIONS:
        raise ValueError(f"{folder}: activation {name!r} is not supported")
    return ACTIVATIONS[name]


def their_name(ours: str) -> str:
    """The name of an activation in a configuration."""
    return next(theirs for theirs, mine in ACTIVATIONS.items() if mine == ours)


@dataclass(frozen=True, kw_only=True)
class Codec:
    """One family of checkpoints, both ways.

    Attributes:
        name: Its name in messages.
        types: What ``model_type`` of ``config.json`` says.
        build: Makes the model from its description.
        configure: Reads the description; it may look at the tensors.
        entries: The table of names, from the description.
        describe: Writes the description in the words of ``config.json``; refuses another form.
        prefix: Beginning of names that some files leave out.
        ignored: Parts of names of tensors that have no place here, and need none.
    """

    name: str
    types: tuple[str, ...]
    build: Callable[[TransformerConfig], nn.Module]
    configure: Callable[[Mapping[str, Any], Mapping[str, Tensor], Path], TransformerConfig]
    entries: Callable[[TransformerConfig], list[Entry]]
    describe: Callable[[TransformerConfig], dict[str, Any]]
    prefix: str = ""
    ignored: tuple[str, ...] = ()

    def load(
        self,
        raw: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        folder: Path,
        *,
        device: str | torch.device | None,
        dtype: torch.dtype,
    ) -> Any:
        """Build the model of a folder without memory, and put the weights in."""
        try:
            config = self.configure(raw, tensors, folder)
        except KeyError as error:
            raise ValueError(f"{folder / 'config.json'} does not give {error}") from error
        except TypeError as error:
            raise ValueError(
                f"{folder / 'config.json'} holds a value of a wrong type: {error}"
            ) from error
        return self.fill(config, tensors, device=device, dtype=dtype)

    def fill(
        self,
        config: TransformerConfig,
        tensors: Mapping[str, Tensor],
        *,
        device: str | torch.device | None,
        dtype: torch.dtype,
    ) -> Any:
        """Build a model from its description, and put the weights in."""
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be floating, got {dtype}")
        with torch.device("meta"), _NoInitialization():
            model = self.build(config)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        place = device or "cpu"
        source = _Source(tensors, self.prefix, self.ignored)
        weights: dict[str, Tensor] = {}
        for entry in self.entries(config):
            parts = [source.take(piece) for piece in entry.pieces]
            made = entry.read(parts, shapes[entry.ours[0]]).to(device=place, dtype=dtype)
            weights |= dict.fromkeys(entry.ours, made)
        source.refuse_rest()
        tied = _tied(model)
        model.load_state_dict(weights, assign=True)
        # Assignment made several parameters of one tensor; a step of training must see one.
        for names in tied:
            first = model.get_parameter(names[0])
            for name in names[1:]:
                module, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(module), leaf, first)
        _make_buffers(model, place)
        return model.eval()

    def tensors(self, config: TransformerConfig, model: nn.Module) -> dict[str, Tensor]:
        """Return a model's parameters by the names of the family, each tied one once."""
        with torch.device("meta"), _NoInitialization():
            plain = {name: type(module) for name, module in self.build(config).named_modules()}
        for name, module in model.named_modules():
            if name and type(module) is not plain.get(name):
                usual = plain[name].__name__ if name in plain else "nothing"
                raise ValueError(
                    f"a {self.name} has {usual} at {name!r}, this model a {type(module).__name__}: "
                    "merge or remove what was added to the layers first"
                )
        left = dict(model.state_dict())
        made: dict[str, Tensor] = {}
        for entry in self.entries(config):
            values = [left.pop(name, None) for name in entry.ours]
            first = values[0]
            for name, value in zip(entry.ours, values, strict=True):
                if value is None or first is None:
                    raise ValueError(f"a {self.name} has a parameter {name!r}, this model has none")
                if value is not first and not torch.equal(value, first):
                    raise ValueError(
                        f"a {self.name} ties {name!r} to {entry.ours[0]!r}, which differ here"
                    )
            assert first is not None
            for piece, part in zip(entry.pieces, entry.write(first), strict=True):
                made[piece.name] = part
        if left:
            raise ValueError(
                f"{len(left)} tensors of this model have no place in a {self.name}, "
                f"the first is {min(left)!r}"
            )
        return made


class _NoInitialization(TorchFunctionMode):
    """Leave out the draws of fresh parameters, which are about to be replaced.

    On the ``meta`` device they cost nothing but an import of PyTorch's compiler, which takes longer
    than to read a small model.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


class _Source:
    """Tensors of a checkpoint, each to be taken once, under an optional common prefix."""

    def __init__(
        self, tensors: Mapping[str, Tensor], prefix: str, ignored: tuple[str, ...]
    ) -> None:
        self.bare = prefix if not any(name.startswith(prefix) for name in tensors) else ""
        self.left = dict(tensors)
        self.ignored = ignored

    def take(self, piece: Piece) -> Tensor:
        """Hand over one tensor, by whichever of its names the file has it."""
        names = [name.removeprefix(self.bare) for name in (piece.name, *piece.also)]
        found = [name for name in names if name in self.left]
        if not found:
            raise ValueError(f"the checkpoint has no tensor {names[0]!r}")
        name = found[0]
        tensor = self.left.pop(name)
        if tensor.shape != piece.shape:
            raise ValueError(
                f"tensor {name!r} must have shape {piece.shape} to fit the configuration, "
                f"got {tuple(tensor.shape)}"
            )
        check_finite(f"tensor {name!r}", tensor)
        for other in found[1:]:
            if any(part in other for part in self.ignored):
                continue
            # Two that differ: one of them would be lost silently.
            again = self.left.pop(other)
            if again.shape != tensor.shape or not torch.equal(again, tensor):
                raise ValueError(
                    f"the configuration ties {other!r} to {name!r}, but the two differ"
                )
        return tensor

    def refuse_rest(self) -> None:
        """Refuse what is left over and has no reason to be."""
        odd = sorted(n for n in self.left if not any(part in n for part in self.ignored))
        if odd:
            raise ValueError(
                f"{len(odd)} tensors of the checkpoint have no place in this model, "
                f"the first is {odd[0]!r}"
            )


def _tied(model: nn.Module) -> list[list[str]]:
    """Names that belong to one parameter, group by group."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _make_buffers(model: nn.Module, device: str | torch.device) -> None:
    """Make anew what is no weight and was built without memory."""
    from companion.transformer.positions import Rotary, T5Bias

    for module in model.modules():
        if isinstance(module, Rotary):
            # Its ``_apply`` computes the frequencies anew, on the device where it finds them.
            module.frequencies = torch.empty(0)
            module.to(device)
        if isinstance(module, T5Bias):
            fresh = T5Bias(
                module.weight.shape[1],
                buckets=module.buckets,
                max_distance=module.max_distance,
                bidirectional=module.bidirectional,
                device=device,
            )
            module.edges = fresh.edges


_OPTIONS = {"head_width": "head_dim", "key_value_heads": "kv_heads"}


def require(name: str, config: TransformerConfig, wanted: Mapping[str, Collection[Any]]) -> None:
    """Refuse a description in which a setting has none of the values that a family can say.

    A property that fills a default in is told by the name of the option behind it.
    """
    for setting, values in wanted.items():
        have = getattr(config, setting)
        if have not in values:
            said = " or ".join(repr(value) for value in values)
            option = _OPTIONS.get(setting, setting)
            raise ValueError(
                f"this model is no {name}: {option} must be {said} there, and is {have!r}"
            )
