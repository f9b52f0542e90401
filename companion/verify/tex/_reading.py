"""What the names on a page stand for."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from companion.verify.tex._lexicon import Lexicon, forms_of, text_of
from companion.verify.tex._nodes import Node

__all__ = [
    "Adjoint",
    "Definition",
    "Law",
    "Opaque",
    "Scope",
    "Table",
    "Unread",
    "over",
    "samples",
    "table",
]


class Unread(LookupError):
    """Names that the reading does not give."""

    def __init__(self, names: Iterable[str]) -> None:
        """List the names."""
        self.names = sorted(set(names))
        super().__init__(", ".join(self.names))


class Opaque(Exception):
    """A derivative that SymPy cannot follow on the page."""


@dataclass(frozen=True)
class Table:
    """An array that the page writes as a function of its indices, as in p(x, y)."""

    values: Tensor

    def __call__(self, *index: int) -> Any:
        raise TypeError("a table is read by the indices of the page")


def table(values: Tensor) -> Table:
    """Say that the page writes an array as a function of its indices.

    Args:
        values: The array, of any shape. ``p(x,y)`` is the entry of row ``x`` and column ``y``.

    Returns:
        What a reading takes.
    """
    return Table(values)


@dataclass(frozen=True)
class Law:
    """A distribution for the expectations of a page: outcomes of names, and their weights."""

    outcomes: Mapping[str, Any]
    weights: Tensor | None
    count: int
    indices: bool = False


def over(weights: Tensor, *names: str, **values: Tensor) -> Law:
    r"""Say over which indices an expectation runs, and with which weights: an exact sum.

    Args:
        weights: Probabilities, one axis for each name. They sum to one.
        names: The indices on the page.
        values: Names that are no index, and the values they take, along the first axis. They
            stand alone: then the weights have one axis.

    Returns:
        What a reading takes for a name such as ``r"\mathbb E_{p(x,y)}"``.

    Raises:
        ValueError: If names and axes differ in number, or the weights do not sum to one.

    Example:
        >>> law = over(torch.tensor([0.25, 0.75]), "x")
        >>> law.count
        2
    """
    if values and (names or any(len(weights) != len(taken) for taken in values.values())):
        raise ValueError("give one axis of weights and as many values of each name, or indices")
    if weights.ndim != (1 if values else len(names)):
        raise ValueError(f"{weights.ndim} axes of weights, but the names are {names}")
    if not torch.allclose(weights.double().sum(), torch.ones((), dtype=torch.float64)):
        raise ValueError(f"the weights sum to {float(weights.sum()):.6g}, not to 1")
    if values:
        outcomes = {name: taken.detach() for name, taken in values.items()}
        return Law(outcomes, weights.detach().double(), len(weights))
    index = torch.cartesian_prod(*(torch.arange(size) for size in weights.shape))
    index = index.reshape(-1, len(names))
    columns = {name: index[:, axis].tolist() for axis, name in enumerate(names)}
    return Law(columns, weights.detach().double().reshape(-1), len(index), indices=True)


def samples(**names: Tensor) -> Law:
    """Say what an expectation is a mean of: independent samples, along the first axis.

    Args:
        names: Names on the page and their samples, equally many. Means of them have an error,
            so an equation holds within some standard errors.

    Returns:
        What a reading takes for a name such as ``"E"``.

    Raises:
        ValueError: If the numbers of samples differ.
    """
    counts = {len(values) for values in names.values()}
    if len(counts) != 1:
        raise ValueError(f"equally many samples of each name are needed, got {sorted(counts)}")
    (count,) = counts
    if count % 50 or count < 1000:
        raise ValueError(f"a multiple of 50 samples is needed, at least 1000; got {count}")
    return Law(names, None, count)


def _law_text(key: str) -> str:
    r"""Return how a formula writes a law: ``E`` stands for the blackboard letter."""
    base, low, high, primes = forms_of(key)[0]
    if base in (("E",), (r"\mathbb", "E")):
        base = (r"\mathbb E",)
    return text_of((base, low, high, primes))


#: Ends the key of what stands on the left of an arrow: the value after the update.
UPDATED = r"\leftarrow"


@dataclass(frozen=True)
class Adjoint:
    """The gradient of the loss by a name: what the page writes dX, or x with a bar."""

    of: str


@dataclass(frozen=True)
class Definition:
    """What the page itself says that a name stands for."""

    body: Node
    parameters: tuple[str, ...] = ()


class Scope:
    """The names at one place of a formula: the reading, the page's definitions, the indices."""

    def __init__(
        self,
        reading: Mapping[str, Any],
        *,
        origin: int | Mapping[str, int] = 1,
        sizes: tuple[int, ...] = (500, 1000, 2000, 4000),
        loss: Callable[..., Any] | None = None,
        adjoints: Iterable[str] = (),
    ) -> None:
        """Take the names of a reading."""
        self.values: dict[str, Any] = {}
        self.laws: dict[str, Law] = {
            _law_text(key): value for key, value in reading.items() if isinstance(value, Law)
        }
        updates = {key: value for key, value in reading.items() if key.endswith(UPDATED)}
        reading = {
            key: value
            for key, value in reading.items()
            if not isinstance(value, Law) and key not in updates
        }
        functions = [
            key for key, value in reading.items() if callable(value) or isinstance(value, Table)
        ]
        self.lexicon = Lexicon(reading, functions)
        for law in self.laws.values():
            for name in law.outcomes:
                self.lexicon.add(name, function=False)
        for text, key in self.lexicon.key.items():
            if key in reading:
                self.values[text] = reading[key]
        for key in functions:
            names = parameters(reading[key]) if not isinstance(reading[key], Table) else []
            if names and all(
                any(text_of(form) in self.values for form in forms_of(name)) for name in names
            ):
                self.lexicon.quantities |= {t for t, k in self.lexicon.key.items() if k == key}
        for key, value in updates.items():
            for form in forms_of(key.removesuffix(UPDATED)):
                self.values[text_of(form) + UPDATED] = value
        self.loss = loss
        for name in adjoints:
            self.add_adjoint(name)
        self.origins = origin
        self.sizes = sizes
        self.definitions: dict[str, Definition] = {}
        # What the page displays for a name that has a reading, and how SymPy differentiates it.
        self.displayed: dict[str, Definition] = {}
        self.by_symbols: Callable[..., Tensor] | None = None
        self.bound: dict[str, Any] = {}
        self.sets: set[str] = set()  # names whose list or range is a set, and no index's values
        self.cache: dict[Any, Any] = {}
        self.drawn: dict[Any, Any] = {}
        self.called: dict[Any, Any] = {}  # functions of the reading at whole numbers
        self.route = "autograd"
        self.fold: int | None = None
        self.depth = 0
        self.nested = False
        self.monte_carlo = False
        # By name: the functions of the library and the page that its function goes through.
        self.made_by: dict[str, dict[CodeType, str]] | None = None
        self.touched = False  # whether samples were used since this was last set
        self.differentiated = False
        self.took_limit = False
        self.watched = self._parameters()
        self.root = self

    def add_adjoint(self, name: str) -> None:
        """Let the page write dX and x with a bar for the gradient of the loss by a name."""
        for form in forms_of(name):
            base, low, high, primes = form
            for made in (("d", *base), (r"\bar", *base)):
                text = text_of((made, low, high, primes))
                if text not in self.lexicon.key:
                    self.lexicon.add(text, function=False)
                    self.values[text] = Adjoint(name)

    def _parameters(self) -> set[str]:
        found: set[str] = set()
        callables = [v for v in self.values.values() if callable(v) and not isinstance(v, Table)]
        for value in [*callables, *([self.loss] if self.loss else [])]:
            found |= texts_of_parameters(value)
        return found

    def with_symbols(self, differentiate: Callable[..., Tensor]) -> "Scope":
        """Return a scope in which derivatives are those of the displayed formulas."""
        other = self.child({})
        other.cache, other.by_symbols = {}, differentiate
        return other

    def child(self, names: Mapping[str, Any]) -> "Scope":
        """Return a scope with names bound, as indices are."""
        other = object.__new__(Scope)
        other.__dict__.update(self.__dict__)
        other.bound = {**self.bound, **names}
        # What does not depend on the new names need not be computed again.
        if not self.watched.isdisjoint(names):
            other.cache = {}
        return other

    def is_set(self, text: str) -> bool:
        """Tell whether a name stands for a set as a whole, and not for what runs over it."""
        return text in self.bound or text in self.sets

    def origin(self, base: str) -> int:
        """Return the index of the first entry of an array, as the page counts."""
        if isinstance(self.origins, int):
            return self.origins
        for key, value in self.origins.items():
            if key and base in map(text_of, forms_of(key)):
                return value
        return self.origins.get("", 1)

    def spelling(self, key: str) -> str:
        """Return how the page writes a name of the reading, its first spelling."""
        return text_of(forms_of(key)[0])

    def text_of_parameter(self, name: str) -> str:
        """Find the name on the page that a parameter of a Python function stands for."""
        texts = list(map(text_of, forms_of(name)))
        for text in texts:
            if text in self.bound:
                return text
        for text in texts:
            if text in self.values or text in self.definitions:
                return text
        return texts[0]


def parameters(function: Callable[..., Any]) -> list[str]:
    """List the parameters of a function that have no default."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return []
    return [
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def texts_of_parameters(function: Callable[..., Any]) -> set[str]:
    """Return all names on a page for which the parameters of a function may stand."""
    return {text_of(form) for name in parameters(function) for form in forms_of(name)}
