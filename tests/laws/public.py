"""What the library shows: found by looking, so that nothing new escapes the laws."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

import companion


def _modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages(companion.__path__, "companion."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            yield importlib.import_module(found.name)


def callables() -> dict[str, Callable[..., Any]]:
    """Public functions, classes (their constructors) and public methods, by their short names.

    A short name is ``softmax`` or ``BPE.train``: it stays the same where a function moves.
    """
    found: dict[str, Callable[..., Any]] = {}
    for module in _modules():
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if not (inspect.isfunction(thing) or inspect.isclass(thing)):
                continue
            if found.get(name, thing) is not thing:  # two things of one name
                name = f"{module.__name__.removeprefix('companion.')}.{name}"
            found[name] = thing
            if inspect.isclass(thing):
                for attribute, member in vars(thing).items():
                    inner = getattr(member, "__func__", member)
                    if not attribute.startswith("_") and inspect.isfunction(inner):
                        found[f"{name}.{attribute}"] = getattr(thing, attribute)
    return found


def parameters(function: Callable[..., Any]) -> dict[str, str]:
    """The annotation of each parameter, as text."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return {}
    return {p.name: str(p.annotation) for p in signature.parameters.values()}


def plain(value: Any) -> Any:
    """Nested lists of what a result holds: two results are equal if these are."""
    if isinstance(value, Tensor):
        return value.detach().to_dense().tolist()
    if isinstance(value, nn.Module):
        return {name: plain(tensor) for name, tensor in value.state_dict().items()}
    if is_dataclass(value) and not isinstance(value, type):
        return [plain(getattr(value, f.name)) for f in fields(value)]
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def numbers(*shape: int, seed: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers that leave the global state alone."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)
