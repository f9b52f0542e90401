"""Replacing linear layers: low-rank changes, adapters, quantized weights, and what comes next.

A module names its linear maps by :meth:`HasLinears.linear_maps`, also several that share one
matrix. In any other module, each :class:`torch.nn.Linear` is a map by the name of its attribute.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

__all__ = [
    "HasLinears",
    "LinearLike",
    "LinearPlace",
    "Rows",
    "linear_places",
    "replace_linears",
    "restore_linears",
]

#: A block of outputs: the first, and the one after the last.
Rows = tuple[int, int]


@runtime_checkable
class HasLinears(Protocol):
    """A module that names its linear maps itself."""

    def linear_maps(self) -> Mapping[str, Mapping[str, Rows]]:
        """Return, for each attribute with a linear layer, its maps and their blocks of outputs."""
        ...


class LinearLike(nn.Module):
    """Acts like :class:`torch.nn.Linear`: what stands in the place of one derives from this.

    Attributes:
        weight: The matrix that it acts with, (outputs, inputs). Some layers read it, or rows of
            it, in place of calling the module.
        bias: What is added, (outputs,), or ``None``.
    """

    weight: Tensor
    bias: Tensor | None


class LinearPlace(NamedTuple):
    """Where a linear layer stands in a model, and which of its maps are meant.

    Attributes:
        path: Name of the layer, such as ``blocks.0.attention.qkv``.
        maps: The chosen maps by name, with their blocks of outputs, in order.
    """

    path: str
    maps: dict[str, Rows]


def linear_places(model: nn.Module) -> tuple[LinearPlace, ...]:
    """List the linear layers of a model and the maps in them.

    In the order of the modules that hold them: an output layer that the model holds itself comes
    before those of its blocks.

    Args:
        model: Any module.

    Returns:
        One entry for each layer; a layer that stands in several places has one for each.

    Example:
        >>> for place in linear_places(nn.Sequential(nn.Linear(3, 5), nn.ReLU())):
        ...     print(place)
        LinearPlace(path='0', maps={'0': (0, 5)})
    """
    return tuple(place for place, _, _ in _found(model))


def _found(model: nn.Module) -> Iterator[tuple[LinearPlace, nn.Module, str]]:
    """Places with the module that holds the layer, and the attribute."""
    # What stands in place of a linear layer is one layer, whatever it is made of.
    inside = tuple(
        f"{path}."
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, LinearLike)
    )
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LinearLike) or path.startswith(inside):
            continue
        for attribute, maps in _maps(module).items():
            layer = getattr(module, attribute)
            if isinstance(layer, nn.Linear | LinearLike):
                where = f"{path}.{attribute}" if path else attribute
                yield LinearPlace(where, dict(maps)), module, attribute


def _maps(module: nn.Module) -> Mapping[str, Mapping[str, Rows]]:
    if isinstance(module, HasLinears):
        return module.linear_maps()
    return {
        name: {name: (0, child.weight.shape[0])}
        for name, child in module._modules.items()  # named_children() names a layer once only
        if isinstance(child, nn.Linear | LinearLike)
    }


def replace_linears(
    model: nn.Module,
    targets: Sequence[str],
    make: Callable[[nn.Linear | LinearLike, LinearPlace], nn.Module],
) -> dict[str, nn.Module]:
    """Put other modules in the place of linear layers of a model. The model is changed in place.

    The maps of this library's layers are ``query``, ``key``, ``value`` (rows of one matrix) and
    ``out`` of attention; ``up``, ``down`` and, with a gate, ``gate`` (rows of one matrix with
    ``up``) of a feed-forward layer; and ``head``, the output layer of a language model.

    An output layer that shares its weight with the table of tokens is untied first, by the
    ``untie`` method of its model: it gets a copy, and the model's ``config.tied`` becomes False,
    so that a model built from its configuration has room for both.

    Args:
        model: Any module.
        targets: Names of maps, in which a ``*`` stands for any characters: either the map alone,
            such as ``"query"`` for those of all layers, or with its path, such as
            ``"blocks.3.attention.query"`` or ``"decoder.*.out"``.
        make: Called once for each layer that holds a target, with the layer and its place. What
            it returns takes the layer's place; other code may read its ``weight`` and ``bias``,
            so it should be a :class:`LinearLike`.

    Returns:
        The layers that were replaced, by their paths, for :func:`restore_linears`.

    Raises:
        ValueError: If a target is not in the model, or a layer shares its weight with something
            that cannot be untied. Nothing is changed then. If ``make`` raises an error, all layers
            are still in their places.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> old = replace_linears(model, ["2"], lambda linear, place: nn.Identity())
        >>> model(torch.ones(1, 3)).shape
        torch.Size([1, 5])
        >>> restore_linears(model, old)
        >>> model(torch.ones(1, 3)).shape
        torch.Size([1, 2])
    """
    if isinstance(targets, str) or not targets:
        raise ValueError(f"targets must be a list of names of linear maps, got {targets!r}")
    places: list[tuple[LinearPlace, nn.Module, str]] = []
    known: dict[str, None] = {}
    met: set[str] = set()
    for place, owner, attribute in _found(model):
        path = place.path.rpartition(".")[0]
        maps: dict[str, Rows] = {}
        for name, rows in place.maps.items():
            full = f"{path}.{name}" if path else name
            hits = {t for t in targets if fnmatchcase(name, t) or fnmatchcase(full, t)}
            known[name] = None
            met |= hits
            if hits:
                maps[name] = rows
        if maps:
            places.append((LinearPlace(place.path, maps), owner, attribute))
    if missing := [target for target in targets if target not in met]:
        raise ValueError(
            f"the model has no {', '.join(missing)}; it has {', '.join(sorted(known)) or 'none'}"
        )
    for owner in _tied_owners(model, places):
        owner.untie()  # type: ignore[operator]
    old = {place.path: getattr(owner, attribute) for place, owner, attribute in places}
    made: dict[int, nn.Module] = {}  # a layer in several places stays one layer
    for place, _, _ in places:
        layer = old[place.path]
        if id(layer) not in made:
            made[id(layer)] = make(layer, place)
    for place, owner, attribute in places:
        setattr(owner, attribute, made[id(old[place.path])])
    return old


def _tied_owners(
    model: nn.Module, places: Sequence[tuple[LinearPlace, nn.Module, str]]
) -> list[nn.Module]:
    """The modules whose layers share a weight with another module, once each."""
    holders: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), set()).add(id(module))
    owners: list[nn.Module] = []
    for place, owner, attribute in places:
        layer = getattr(owner, attribute)
        if all(len(holders[id(p)]) == 1 for p in layer.parameters(recurse=False)):
            continue
        if not callable(getattr(owner, "untie", None)):
            raise ValueError(
                f"{place.path} shares its weight with another module, and what holds it has no "
                "method untie(): give it a weight of its own first"
            )
        if all(owner is not other for other in owners):
            owners.append(owner)
    return owners


def restore_linears(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put layers into a model by their paths: what :func:`replace_linears` returned, or others.

    Args:
        model: The model, which is changed in place. What was untied stays so.
        layers: Layers by path.

    Raises:
        AttributeError: If a path is not in the model.
    """
    for path, layer in layers.items():
        model.set_submodule(path, layer, strict=True)
