"""The tree of a formula: small immutable nodes, so that a change makes a new tree."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

__all__ = [
    "Add",
    "Apply",
    "At",
    "Bars",
    "BigOp",
    "Binary",
    "Binomial",
    "Cases",
    "Derivative",
    "Display",
    "Expect",
    "Factorial",
    "Fraction",
    "Index",
    "Limit",
    "Matrix",
    "Name",
    "Negative",
    "Node",
    "Number",
    "Path",
    "Postfix",
    "Power",
    "Product",
    "Relation",
    "Root",
    "Slice",
    "Statement",
    "Transpose",
    "Tuple",
    "Turned",
    "nodes_of",
    "put",
]


@dataclass(frozen=True)
class Node:
    """A part of a formula."""


@dataclass(frozen=True)
class Number(Node):
    """A number as it is printed."""

    text: str


@dataclass(frozen=True)
class Name(Node):
    """A name of the page, decorations included, in its canonical form."""

    text: str


@dataclass(frozen=True)
class Index(Node):
    """An entry, row or part of an array: base with subscripts."""

    base: Node
    at: tuple[Node, ...]


@dataclass(frozen=True)
class Slice(Node):
    """A subscript that takes a part: everything, or what stands in a relation to a bound."""

    relation: str
    bound: Node | None = None
    low: Node | None = None


@dataclass(frozen=True)
class Turned(Node):
    """An index moved on by one, from the last to the first. Only mutants have it."""

    index: Node


@dataclass(frozen=True)
class Power(Node):
    """A power; of a square matrix the matrix power."""

    base: Node
    exponent: Node


@dataclass(frozen=True)
class Transpose(Node):
    """A transpose."""

    base: Node


@dataclass(frozen=True)
class Postfix(Node):
    """A superscript that is an operation of its own: ``+`` is the pseudo-inverse."""

    base: Node
    sign: str


@dataclass(frozen=True)
class Negative(Node):
    """Minus."""

    body: Node


@dataclass(frozen=True)
class Add(Node):
    """A sum of terms; a subtracted one is a :class:`Negative`."""

    terms: tuple[Node, ...]


@dataclass(frozen=True)
class Product(Node):
    """Factors that stand side by side."""

    factors: tuple[Node, ...]


@dataclass(frozen=True)
class Binary(Node):
    r"""A product or quotient with a sign: ``\cdot``, ``\times``, ``\odot`` or ``/``."""

    sign: str
    left: Node
    right: Node


@dataclass(frozen=True)
class Fraction(Node):
    """A fraction."""

    top: Node
    bottom: Node


@dataclass(frozen=True)
class Root(Node):
    """A square root, or the root of a degree."""

    body: Node
    degree: Node | None = None


@dataclass(frozen=True)
class Apply(Node):
    """A function and its arguments."""

    function: Node
    arguments: tuple[Node, ...]
    separators: tuple[str, ...] = ()


@dataclass(frozen=True)
class BigOp(Node):
    r"""A sum, product, maximum, minimum or the place of one, over indices.

    The range is ``low`` to ``high`` where the page gives it. Otherwise it is the reading's, or
    what the indexed arrays have, cut by the condition.
    """

    sign: str
    names: tuple[Name, ...]
    body: Node
    low: Node | None = None
    high: Node | None = None
    condition: Node | None = None
    cut: bool = False


@dataclass(frozen=True)
class Relation(Node):
    """A chain of relations."""

    signs: tuple[str, ...]
    sides: tuple[Node, ...]


@dataclass(frozen=True)
class Bars(Node):
    """What stands between two delimiters: norm, abs, floor, ceil, round, inner, mean, indicator."""

    sort: str
    body: tuple[Node, ...]
    kind: str = ""


@dataclass(frozen=True)
class Derivative(Node):
    """A derivative of the body; style is partial, d, nabla or prime."""

    style: str
    body: Node
    by: tuple[Node, ...]


@dataclass(frozen=True)
class At(Node):
    """The body with a name set to a value."""

    body: Node
    name: Name
    value: Node


@dataclass(frozen=True)
class Expect(Node):
    """An expectation, variance or covariance of the body under a law."""

    sign: str
    law: str
    body: Node


@dataclass(frozen=True)
class Limit(Node):
    """The limit of the body."""

    name: Name
    to: Node
    body: Node


@dataclass(frozen=True)
class Matrix(Node):
    """A matrix with its entries or blocks."""

    rows: tuple[tuple[Node, ...], ...]
    style: str = "pmatrix"


@dataclass(frozen=True)
class Cases(Node):
    """Values and the conditions under which they hold; the last may stand for the rest."""

    values: tuple[Node, ...]
    conditions: tuple[Node | None, ...]


@dataclass(frozen=True)
class Tuple(Node):
    """Values in parentheses, or rows and numbers joined in brackets."""

    items: tuple[Node, ...]
    style: str = "("


@dataclass(frozen=True)
class Factorial(Node):
    """A factorial."""

    body: Node


@dataclass(frozen=True)
class Binomial(Node):
    """A binomial coefficient."""

    top: Node
    bottom: Node


@dataclass(frozen=True)
class Statement(Node):
    r"""A chain of relations, and what follows from it after ``\Rightarrow`` or ``\iff``."""

    relation: Node
    arrow: str = ""
    then: Node | None = None
    aside: bool = False


@dataclass(frozen=True)
class Display(Node):
    """All statements of a displayed formula."""

    statements: tuple[Statement, ...]


Path = tuple[Any, ...]


def _parts(node: Node) -> Iterator[tuple[Path, Node]]:
    for item in fields(node):
        value = getattr(node, item.name)
        if isinstance(value, Node):
            yield (item.name,), value
        elif isinstance(value, tuple):
            for i, one in enumerate(value):
                if isinstance(one, Node):
                    yield (item.name, i), one
                elif isinstance(one, tuple):
                    for j, entry in enumerate(one):
                        if isinstance(entry, Node):
                            yield (item.name, i, j), entry


def nodes_of(node: Node, path: Path = ()) -> Iterator[tuple[Path, Node]]:
    """Yield a tree's nodes with their places, from the root."""
    yield path, node
    for step, child in _parts(node):
        yield from nodes_of(child, (*path, step))


def put(node: Node, path: Path, new: Node) -> Node:
    """Return the tree with another node at a place."""
    if not path:
        return new
    (name, *places), rest = path[0], path[1:]
    value = getattr(node, name)
    if not places:
        return replace(node, **{name: put(value, rest, new)})

    def inside(values: tuple[Any, ...], where: list[int]) -> tuple[Any, ...]:
        i = where[0]
        made = put(values[i], rest, new) if len(where) == 1 else inside(values[i], where[1:])
        return (*values[:i], made, *values[i + 1 :])

    return replace(node, **{name: inside(value, places)})
