"""Named sites: read or replace what a model computes on the way, from outside of the model.

A module that has sites is a :class:`HasSites`. It names its activations in :attr:`HasSites.sites`,
and hands each one on through :meth:`HasSites.site`. The name of a site in a model is the path of
the module and that name, such as ``blocks.3.attention.weights``.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Protocol

from torch import Tensor, nn

__all__ = ["HasSites", "Replacement", "Seen", "site_names", "watch"]

#: What :func:`watch` puts in the place of an activation: a tensor, or a function of the activation
#: that returns a tensor, or ``None`` to leave it as it is.
Replacement = Tensor | Callable[[Tensor], Tensor | None]


class _Tap(Protocol):
    def watches(self, name: str) -> bool: ...

    def visit(self, name: str, value: Tensor) -> Tensor: ...


class HasSites(nn.Module):
    """A module whose activations can be read and replaced by :func:`watch`.

    Attributes:
        sites: Names of the activations that pass through :meth:`site`.

    Numerics:
        A site that nobody watches costs one look at an empty tuple: nothing is kept or copied, and
        no graph of ``torch.compile`` breaks. A compiled model is compiled anew when it is watched.

    Example:
        >>> import torch
        >>> class Double(HasSites):
        ...     sites = ("twice",)
        ...     def forward(self, x):
        ...         return self.site("twice", 2 * x) + 1
        >>> model = nn.Sequential(Double())
        >>> with watch(model, replace={"0.twice": lambda twice: -twice}):
        ...     model(torch.ones(1))
        tensor([-1.])
    """

    sites: tuple[str, ...] = ()
    _taps: tuple[_Tap, ...] = ()

    def site(self, name: str, value: Tensor) -> Tensor:
        """Hand on an activation, or what takes its place.

        Args:
            name: One of :attr:`sites`.
            value: The activation.

        Returns:
            The activation, unless it is replaced.
        """
        for tap in self._taps:
            value = tap.visit(name, value)
        return value

    def watched(self, *names: str) -> bool:
        """Tell whether anybody reads or replaces one of these sites.

        For what is computed on demand only, such as attention weights beside a fused kernel.

        Args:
            names: Some of :attr:`sites`.

        Returns:
            Whether one of them is watched.
        """
        for tap in self._taps:
            for name in names:
                if tap.watches(name):
                    return True
        return False


class Seen(Mapping[str, Tensor]):
    """The activations that :func:`watch` has read, by the names of their sites.

    In the order of the model's modules. A site that is visited several times holds the value of
    its last visit.
    """

    def __init__(self, wanted: Sequence[str]) -> None:
        self._wanted = tuple(wanted)
        self._held: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """Return the activation of a site."""
        if name in self._held:
            return self._held[name]
        if name in self._wanted:
            raise KeyError(f"{name} was not visited: run the model inside of the with block")
        raise KeyError(f"{name} is not read: name it in read")

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the sites that were visited."""
        return (name for name in self._wanted if name in self._held)

    def __len__(self) -> int:
        """Count the sites that were visited."""
        return len(self._held)


class _Here:
    """Under which of its names a shared module runs at present."""

    path: str | None = None


class _Action:
    """What one context does at the sites of one module."""

    def __init__(
        self,
        paths: Sequence[str],
        here: _Here,
        read: Sequence[str],
        replace: Mapping[str, Sequence[Replacement]],
        held: dict[str, Tensor],
    ) -> None:
        self.path = paths[0] if len(paths) == 1 else None
        self.here, self.held = here, held
        self.read, self.replace = frozenset(read), replace
        self.names = frozenset(name.rpartition(".")[2] for name in (*read, *replace))

    def watches(self, name: str) -> bool:
        return name in self.names

    def visit(self, name: str, value: Tensor) -> Tensor:
        if name not in self.names:
            return value
        path = self.here.path if self.path is None else self.path
        assert path is not None  # a marker of an ancestor was visited before
        full = f"{path}.{name}" if path else name
        for made in self.replace.get(full, ()):
            value = _replaced(full, value, made)
        if full in self.read:
            self.held[full] = value
        return value


class _Marker:
    """Notes, at any site of an ancestor, under which name a shared module runs next."""

    def __init__(self, here: _Here, path: str) -> None:
        self.here, self.path = here, path

    def watches(self, name: str) -> bool:
        return False

    def visit(self, name: str, value: Tensor) -> Tensor:
        self.here.path = self.path
        return value


def _replaced(name: str, value: Tensor, made: Replacement) -> Tensor:
    new = made if isinstance(made, Tensor) else made(value)
    if new is None:
        return value
    if not isinstance(new, Tensor) or new.shape != value.shape:
        got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise ValueError(
            f"what replaces {name} must be a tensor of its shape {tuple(value.shape)}, got {got}"
        )
    return new.to(value.dtype)


def site_names(model: nn.Module) -> tuple[str, ...]:
    """List the sites of a model, in the order of its modules.

    Args:
        model: Any module.

    Returns:
        The names. A module that stands in several places has its sites under each.

    Example:
        >>> class Double(HasSites):
        ...     sites = ("twice",)
        >>> site_names(nn.Sequential(Double(), nn.Linear(2, 3), Double()))
        ('0.twice', '2.twice')
    """
    return tuple(
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, HasSites)
        for name in module.sites
    )


@contextmanager
def watch(
    model: nn.Module,
    *,
    read: Sequence[str] = (),
    replace: Mapping[str, Replacement] | None = None,
) -> Iterator[Seen]:
    r"""Read and replace activations of a model while the ``with`` block runs.

    Contexts nest: of two that watch one site, the outer one acts first. Within one, replacements
    act in their order, and what is read is what they return. Gradients flow through both: a loss
    may be a function of what was read, and a replacement may hold parameters.

    Args:
        model: Any module with :class:`HasSites` inside. Names count from it.
        read: Names of the sites to read. A ``*`` stands for any characters, dots included:
            ``"blocks.*.stream"``, ``"*.weights"``.
        replace: For each name, also with ``*``, a tensor of the activation's shape, or a function
            of the activation that returns one. A function that returns ``None`` only looks.

    Yields:
        What was read: a mapping from names to tensors. They belong to the graph of the call.

    Raises:
        ValueError: If no site has a name, or if it belongs to a module that is shared in a way
            that hides which of its names is meant.

    Numerics:
        What is read stays in memory as long as the mapping does. With recomputation of
        activations, call ``backward`` inside of the block, so that the second pass equals the
        first.

    Example:
        >>> import torch
        >>> class Double(HasSites):
        ...     sites = ("twice",)
        ...     def forward(self, x):
        ...         return self.site("twice", 2 * x) + 1
        >>> model = nn.Sequential(Double(), Double())
        >>> with watch(model, read=["*.twice"], replace={"1.twice": torch.zeros(1)}) as seen:
        ...     model(torch.ones(1))
        tensor([1.])
        >>> dict(seen)
        {'0.twice': tensor([2.]), '1.twice': tensor([0.])}
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile has wrapped
    known = site_names(model)
    wanted = _matching(read, known)
    changes: dict[str, list[Replacement]] = {}
    for pattern, made in (replace or {}).items():
        for name in _matching([pattern], known):
            changes.setdefault(name, []).append(made)

    seen = Seen([name for name in known if name in wanted])
    taps = list(_taps(model, seen, changes))
    try:
        for module, tap in taps:
            module._taps = (*module._taps, tap)
        yield seen
    finally:
        for module, tap in taps:
            module._taps = tuple(other for other in module._taps if other is not tap)


def _taps(
    model: nn.Module, seen: Seen, changes: Mapping[str, Sequence[Replacement]]
) -> Iterator[tuple[HasSites, _Tap]]:
    """What is to be put at which module."""
    places: dict[HasSites, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, HasSites):
            places.setdefault(module, []).append(path)
    alone = {paths[0]: module for module, paths in places.items() if len(paths) == 1}
    for module, paths in places.items():
        own = [f"{path}.{name}" if path else name for path in paths for name in module.sites]
        read = [name for name in own if name in seen._wanted]
        replace = {name: changes[name] for name in own if name in changes}
        if not read and not replace:
            continue
        here = _Here()
        if len(paths) > 1:
            above = [_ancestor(path, alone) for path in paths]
            if None in above or len(set(above)) < len(above):
                raise ValueError(
                    f"one module is {' and '.join(paths)}, and nothing tells which of them runs: "
                    "read or replace a site of what is around it"
                )
            yield from (
                (alone[up], _Marker(here, path))
                for up, path in zip(above, paths, strict=True)
                if up is not None
            )
        yield module, _Action(paths, here, read, replace, seen._held)


def _ancestor(path: str, alone: Mapping[str, HasSites]) -> str | None:
    """The nearest module around a path that has sites and stands in one place."""
    while path:
        path = path.rpartition(".")[0]
        if path in alone:
            return path
    return None


def _matching(patterns: Sequence[str], known: Sequence[str]) -> set[str]:
    """The known names that match one of the patterns."""
    if isinstance(patterns, str):
        raise ValueError(f"give a list of names, got the string {patterns!r}")
    matching: set[str] = set()
    for pattern in patterns:
        found = [name for name in known if fnmatchcase(name, pattern)]
        if not found:
            # One line for all layers.
            there = dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in known)
            raise ValueError(
                f"there is no site {pattern!r}: the model has {', '.join(there) or 'none'}"
            )
        matching.update(found)
    return matching
