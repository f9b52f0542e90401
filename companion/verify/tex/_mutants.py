"""Wrong versions of a formula, made from its tree: the slips of a pen."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from companion.verify.tex._nodes import (
    Add,
    Apply,
    At,
    Bars,
    BigOp,
    Binary,
    Cases,
    Derivative,
    Expect,
    Fraction,
    Index,
    Limit,
    Name,
    Negative,
    Node,
    Number,
    Power,
    Product,
    Relation,
    Root,
    Slice,
    Transpose,
    Turned,
    nodes_of,
    put,
)
from companion.verify.tex._printer import to_tex

__all__ = ["mutants_of"]

#: Functions that do not see the sign of a matrix, or see it by its size alone.
_NO_SIGN = (Name(r"\det"), Name(r"\mathrm{rank}"))
_OPPOSITE = {
    r"\le": r"\ge",
    r"\ge": r"\le",
    "<": ">",
    ">": "<",
    "=": r"\ne",
    r"\ne": "=",
    r"\in": r"\notin",
    r"\notin": r"\in",
    r"\not\ni": r"\ni",
}
_STRICT = {r"\le": "<", r"\ge": ">", "<": r"\le", ">": r"\ge"}
_OTHER = {r"\max": r"\min", r"\min": r"\max", r"\cos": r"\sin", r"\sin": r"\cos"}
_OTHER |= {r"\arg\max": r"\arg\min", r"\arg\min": r"\arg\max"}


def mutants_of(
    side: Node, *, alike: Mapping[str, str] | None = None, whole: bool = True
) -> Iterator[tuple[str, Node]]:
    """Yield the wrong versions of a side, each with what was done to it.

    Args:
        side: The tree.
        alike: For a name another one of the same shape, by which it is exchanged.
        whole: Whether to change the sign of the side itself as well. Of two sides of an equation
            that is needed of one only.
    """
    seen: set[Node] = {side}
    counts: dict[str, int] = {}
    for name, mutant in _mutants(side, alike or {}, whole):
        if mutant in seen:
            continue
        seen.add(mutant)
        counts[name] = counts.get(name, 0) + 1
        yield (name if counts[name] == 1 else f"{name} ({counts[name]})"), mutant


def _mutants(side: Node, alike: Mapping[str, str], whole: bool) -> Iterator[tuple[str, Node]]:
    if whole:
        flipped = side.body if isinstance(side, Negative) else Negative(side)
        yield f"sign of {_short(side)}", flipped
        yield f"{_short(side)} doubled", Product((Number("2"), side))
    indices = _index_paths(side)
    for path, node in nodes_of(side):
        if _inside_derivative(side, path):
            continue
        for name, new in _slips(node, alike):
            yield name, put(side, path, new)
        if path in indices and isinstance(node, Name | Add | Number):
            moved = Add((*(node.terms if isinstance(node, Add) else (node,)), Number("1")))
            yield f"index {_short(node)} moved by one", put(side, path, moved)
            yield f"index {_short(node)} turned by one", put(side, path, Turned(node))


def _short(node: Node) -> str:
    text = to_tex(node)
    return text if len(text) <= 40 else text[:37] + "..."


def _inside_derivative(side: Node, path: tuple[Any, ...]) -> bool:
    """What is differentiated, and by what, is a name of something else, not a formula."""
    node = side
    for step in path:
        if isinstance(node, Derivative) and (
            step[0] == "by" or isinstance(node.body, Name | Index | Apply)
        ):
            return not (isinstance(node.body, Apply) and step[0] == "arguments")
        if isinstance(node, BigOp) and step[0] == "names":
            return True
        if isinstance(node, Limit | At) and step[0] in ("name", "to"):
            return True
        if isinstance(node, Apply) and step[0] == "function":
            return True
        value = getattr(node, step[0])
        for place in step[1:]:
            value = value[place]
        node = value
    return False


def _index_paths(side: Node) -> set[Any]:
    found = set()
    for path, node in nodes_of(side):
        if isinstance(node, Index):
            found |= {(*path, ("at", i)) for i in range(len(node.at))}
    return found


def _slips(node: Node, alike: Mapping[str, str]) -> Iterator[tuple[str, Node]]:
    make: Callable[[Any, Mapping[str, str]], Iterator[tuple[str, Node]]] | None
    make = _RULES.get(type(node))
    if make is not None:
        yield from make(node, alike)


def _add(node: Add, _: Any) -> Iterator[tuple[str, Node]]:
    for i, term in enumerate(node.terms):
        flipped = term.body if isinstance(term, Negative) else Negative(term)
        rest = (*node.terms[:i], *node.terms[i + 1 :])
        bare = term.body if isinstance(term, Negative) else term
        yield f"sign of {_short(bare)}", Add((*node.terms[:i], flipped, *node.terms[i + 1 :]))
        yield f"without {_short(bare)}", rest[0] if len(rest) == 1 else Add(rest)


def _product(node: Product, _: Any) -> Iterator[tuple[str, Node]]:
    for i, factor in enumerate(node.factors):
        rest = (*node.factors[:i], *node.factors[i + 1 :])
        yield f"without {_short(factor)}", rest[0] if len(rest) == 1 else Product(rest)


def _binary(node: Binary, _: Any) -> Iterator[tuple[str, Node]]:
    yield f"without {_short(node.right)}", node.left
    if node.sign == "/":
        yield f"{_short(node)} upside down", Binary("/", node.right, node.left)
    else:
        yield f"without {_short(node.left)}", node.right


def _fraction(node: Fraction, _: Any) -> Iterator[tuple[str, Node]]:
    yield f"{_short(node)} upside down", Fraction(node.bottom, node.top)
    if node.top != Number("1"):
        yield f"{_short(node)} without its denominator", node.top
        yield f"{_short(node)} with numerator 1", Fraction(Number("1"), node.bottom)


def _transpose(node: Transpose, _: Any) -> Iterator[tuple[str, Node]]:
    yield f"{_short(node)} not transposed", node.base


def _power(node: Power, _: Any) -> Iterator[tuple[str, Node]]:
    if node.base != Name("e"):
        yield f"{_short(node)} without its exponent", node.base
    if not isinstance(node.exponent, Add | Number):
        flipped = node.exponent
        flipped = flipped.body if isinstance(flipped, Negative) else Negative(flipped)
        yield f"exponent of {_short(node)} with the other sign", Power(node.base, flipped)


def _root(node: Root, _: Any) -> Iterator[tuple[str, Node]]:
    yield f"{_short(node)} without its root", node.body


def _index(node: Index, _: Any) -> Iterator[tuple[str, Node]]:
    if node.base == Name(r"\delta"):  # Kronecker's is symmetric
        return
    if len(node.at) == 2 and not any(isinstance(one, Slice) for one in node.at):
        yield f"indices of {_short(node)} exchanged", Index(node.base, node.at[::-1])


def _slice(node: Slice, _: Any) -> Iterator[tuple[str, Node]]:
    if node.relation in _STRICT:
        yield (
            f"{node.relation} for another in an index",
            replace(node, relation=_STRICT[node.relation]),
        )


def _apply(node: Apply, _: Any) -> Iterator[tuple[str, Node]]:
    if len(node.arguments) == 1:
        if isinstance(node.function, Name) and node.function.text.startswith("\\"):
            yield f"without {_short(node.function)}", node.arguments[0]
        if not isinstance(node.arguments[0], Add) and node.function not in _NO_SIGN:
            yield from _argument_sign(node)
    if len(node.arguments) == 2:
        first, second = node.arguments
        yield f"arguments of {_short(node)} exchanged", replace(node, arguments=(second, first))
    if isinstance(node.function, Name) and node.function.text in _OTHER:
        other = Name(_OTHER[node.function.text])
        yield f"{other.text} for {node.function.text}", replace(node, function=other)


def _argument_sign(node: Apply) -> Iterator[tuple[str, Node]]:
    (only,) = node.arguments
    flipped = only.body if isinstance(only, Negative) else Negative(only)
    yield f"sign of the argument of {_short(node)}", replace(node, arguments=(flipped,))


def _bigop(node: BigOp, _: Any) -> Iterator[tuple[str, Node]]:
    sign = node.sign
    if node.low is not None:
        yield f"{sign} from one later", replace(node, low=Add((node.low, Number("1"))))
    if node.high is not None and node.high != Name(r"\infty"):
        shorter = Add((node.high, Negative(Number("1"))))
        yield f"{sign} to one earlier", replace(node, high=shorter)
    if node.low is None:
        yield f"{sign} without its last term", replace(node, cut=True)
    if isinstance(node.condition, Relation) and node.condition.signs[0] in _STRICT:
        changed = replace(
            node.condition, signs=(_STRICT[node.condition.signs[0]], *node.condition.signs[1:])
        )
        yield f"{sign} with {changed.signs[0]}", replace(node, condition=changed)
    elif isinstance(node.condition, Relation) and node.condition.signs == (r"\ne",):
        yield f"{sign} over all", replace(node, condition=None)
    if sign in _OTHER:
        yield f"{_OTHER[sign]} for {sign}", replace(node, sign=_OTHER[sign])


def _bars(node: Bars, _: Any) -> Iterator[tuple[str, Node]]:
    if node.sort == "indicator" and isinstance(node.body[0], Relation):
        relation = node.body[0]
        if relation.signs[0] in _OPPOSITE:
            turned = replace(relation, signs=(_OPPOSITE[relation.signs[0]],))
            yield f"{_short(node)} turned around", replace(node, body=(turned,))
    if node.sort in ("abs", "floor", "ceil", "round", "mean"):
        yield f"{_short(node)} without its bars", node.body[0]
    if node.sort == "norm" and node.kind in ("", "2", "F"):
        yield f"{_short(node)} as a sum of magnitudes", replace(node, kind="1")


def _cases(node: Cases, _: Any) -> Iterator[tuple[str, Node]]:
    if len(node.values) > 1:
        values = (node.values[1], node.values[0], *node.values[2:])
        yield "first two cases exchanged", replace(node, values=values)
    for i, condition in enumerate(node.conditions):
        if isinstance(condition, Relation) and condition.signs[0] in _STRICT:
            turned = replace(condition, signs=(_STRICT[condition.signs[0]], *condition.signs[1:]))
            conditions = (*node.conditions[:i], turned, *node.conditions[i + 1 :])
            yield (
                f"boundary of case {i + 1} with {turned.signs[0]}",
                replace(node, conditions=conditions),
            )


def _expect(node: Expect, _: Any) -> Iterator[tuple[str, Node]]:
    if isinstance(node.body, Power):
        yield (
            f"{_short(node)}: power of the mean",
            Power(replace(node, body=node.body.base), node.body.exponent),
        )


def _number(node: Number, _: Any) -> Iterator[tuple[str, Node]]:
    if "." in node.text:
        yield f"{node.text} doubled", Number(repr(2 * float(node.text)))
    else:
        yield f"{int(node.text) + 1} for {node.text}", Number(str(int(node.text) + 1))


def _name(node: Name, alike: Mapping[str, str]) -> Iterator[tuple[str, Node]]:
    if node.text in alike:
        yield f"{alike[node.text]} for {node.text}", Name(alike[node.text])


_RULES: dict[type, Callable[[Any, Mapping[str, str]], Iterator[tuple[str, Node]]]] = {
    Add: _add,
    Product: _product,
    Binary: _binary,
    Fraction: _fraction,
    Transpose: _transpose,
    Power: _power,
    Root: _root,
    Index: _index,
    Slice: _slice,
    Apply: _apply,
    BigOp: _bigop,
    Bars: _bars,
    Cases: _cases,
    Expect: _expect,
    Number: _number,
    Name: _name,
}
