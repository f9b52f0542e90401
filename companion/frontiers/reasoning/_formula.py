r"""Propositional formulas: written as text, put together by operators, evaluated."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from companion.core import check_count, check_several

__all__ = ["Formula", "at_most_one", "exactly_one", "parse", "variable"]


@dataclass(frozen=True)
class Formula:
    r"""A formula of propositional logic.

    Formulas are joined by ``&``, ``|``, ``~``, and ``>>`` for *if … then*.

    Attributes:
        operator: ``"var"``, ``"true"``, ``"false"``, ``"not"``, ``"and"``, or ``"or"``.
        parts: What the operator is applied to.
        name: Of a variable.

    Book: :doc:`/book/frontiers/reasoning`
    """

    operator: str
    parts: tuple["Formula", ...] = ()
    name: str = ""

    def __and__(self, other: "Formula") -> "Formula":
        return Formula("and", (self, other))

    def __or__(self, other: "Formula") -> "Formula":
        return Formula("or", (self, other))

    def __invert__(self) -> "Formula":
        return Formula("not", (self,))

    def __rshift__(self, other: "Formula") -> "Formula":
        return ~self | other

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables, each once, as they come first in the formula."""
        found: dict[str, None] = {}
        todo, seen = [self], set()  # parts may be shared, and nested deeply
        while todo:
            part = todo.pop()
            if id(part) not in seen:
                seen.add(id(part))
                if part.operator == "var":
                    found[part.name] = None
                todo += reversed(part.parts)
        return tuple(found)

    def holds(self, world: Mapping[str, bool]) -> bool:
        """Say whether the formula is true.

        Args:
            world: What each of its variables is.

        Returns:
            Whether the world is a model of the formula.
        """
        true: dict[int, bool] = {}
        todo = [self]  # parts may be shared, and nested deeply
        while todo:
            part = todo[-1]
            missing = [inner for inner in part.parts if id(inner) not in true]
            if missing:
                todo += missing
                continue
            todo.pop()
            inside = [true[id(inner)] for inner in part.parts]
            if part.operator == "var":
                true[id(part)] = bool(world[part.name])
            elif part.operator == "not":
                true[id(part)] = not inside[0]
            elif part.operator in ("and", "or"):
                true[id(part)] = all(inside) if part.operator == "and" else any(inside)
            else:
                true[id(part)] = part.operator == "true"
        return true[id(self)]


def variable(name: str) -> Formula:
    """Make a variable.

    Args:
        name: Letters, digits and underscores, and no digit first.

    Returns:
        The formula that is true where the variable is.

    Raises:
        ValueError: If the name is none, or ``true`` or ``false``.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> (variable("rain") >> variable("wet")).holds({"rain": True, "wet": False})
        False
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in ("true", "false"):
        raise ValueError(f"{name!r} is no name of a variable: write letters and digits, as in x1")
    return Formula("var", name=name)


def parse(text: str) -> Formula:
    r"""Read a formula.

    Operators from the one that binds most: ``~``, ``&``, ``|``, ``->`` (to the right), ``<->``.

    Args:
        text: Such as ``"rain & ~umbrella -> wet"``.

    Returns:
        The formula.

    Raises:
        ValueError: If the text is no formula; the message says where.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> parse("a -> b").holds({"a": True, "b": False})
        False
    """
    marks = [(m.group(), m.start()) for m in re.finditer(r"<->|->|[&|~()]|[A-Za-z_]\w*|\S", text)]
    try:
        made, place = _equivalence(text, marks, 0)
    except RecursionError as error:
        raise ValueError("no formula: its parentheses are nested too deeply") from error
    if place < len(marks):
        raise _wrong(text, marks, place)
    return made


def at_most_one(parts: Sequence[Formula]) -> Formula:
    """Say that no two of some formulas hold.

    Args:
        parts: One or more formulas.

    Returns:
        The formula, of a size that grows linearly.

    Raises:
        ValueError: If there is no part.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> x, y = variable("x"), variable("y")
        >>> at_most_one([x, y]).holds({"x": True, "y": True})
        False
    """
    check_several("parts", parts)
    check_count("parts", len(parts))
    # From the right: none of the rest, and one of it at the most, are built side by side.
    none, most = Formula("true"), Formula("true")
    for part in reversed(parts):
        most = (~part & most) | (part & none)
        none = ~part & none
    return most


def exactly_one(parts: Sequence[Formula]) -> Formula:
    """Say that one of some formulas holds, and no other.

    Args:
        parts: One or more formulas.

    Returns:
        The formula.

    Raises:
        ValueError: If there is no part.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> exactly_one([variable("x"), variable("y")]).holds({"x": True, "y": False})
        True
    """
    check_several("parts", parts)
    check_count("parts", len(parts))
    none, one = Formula("true"), Formula("false")
    for part in reversed(parts):
        one = (~part & one) | (part & none)
        none = ~part & none
    return one


_Marks = list[tuple[str, int]]
_Read = tuple[Formula, int]


def _wrong(text: str, marks: _Marks, place: int) -> ValueError:
    where = f"at {text[marks[place][1] :]!r}" if place < len(marks) else "at its end"
    return ValueError(f"no formula {where} of {text!r}: write, for example, 'a & ~b -> c'")


def _equivalence(text: str, marks: _Marks, place: int) -> _Read:
    left, place = _implication(text, marks, place)
    while place < len(marks) and marks[place][0] == "<->":
        right, place = _implication(text, marks, place + 1)
        left = (left >> right) & (right >> left)
    return left, place


def _implication(text: str, marks: _Marks, place: int) -> _Read:
    left, place = _or(text, marks, place)
    if place < len(marks) and marks[place][0] == "->":
        right, place = _implication(text, marks, place + 1)
        left = left >> right
    return left, place


def _or(text: str, marks: _Marks, place: int) -> _Read:
    left, place = _and(text, marks, place)
    while place < len(marks) and marks[place][0] == "|":
        right, place = _and(text, marks, place + 1)
        left = left | right
    return left, place


def _and(text: str, marks: _Marks, place: int) -> _Read:
    left, place = _not(text, marks, place)
    while place < len(marks) and marks[place][0] == "&":
        right, place = _not(text, marks, place + 1)
        left = left & right
    return left, place


def _not(text: str, marks: _Marks, place: int) -> _Read:
    if place >= len(marks):
        raise _wrong(text, marks, place)
    mark = marks[place][0]
    if mark == "~":
        inner, place = _not(text, marks, place + 1)
        return ~inner, place
    if mark == "(":
        inner, place = _equivalence(text, marks, place + 1)
        if place >= len(marks) or marks[place][0] != ")":
            raise _wrong(text, marks, place)
        return inner, place + 1
    if mark in ("true", "false"):
        return Formula(mark), place + 1
    if not re.fullmatch(r"[A-Za-z_]\w*", mark):
        raise _wrong(text, marks, place)
    return variable(mark), place + 1
