"""From a tree back to TeX, so that reading it gives the same tree."""

from collections.abc import Callable
from typing import Any

from companion.verify.tex._nodes import (
    Add,
    Apply,
    At,
    Bars,
    BigOp,
    Binary,
    Binomial,
    Cases,
    Derivative,
    Display,
    Expect,
    Factorial,
    Fraction,
    Index,
    Limit,
    Matrix,
    Name,
    Negative,
    Node,
    Number,
    Postfix,
    Power,
    Product,
    Relation,
    Root,
    Slice,
    Statement,
    Transpose,
    Tuple,
    Turned,
)

__all__ = ["to_tex"]

# From loose to tight.
_RELATION, _SUM, _TERM, _CHAIN, _FACTOR, _BASE = range(6)


def to_tex(node: Node, level: int = _RELATION) -> str:
    """Write a tree as TeX, in parentheses where it binds more loosely than its place asks."""
    own, text = _RULES[type(node)](node)
    return rf"({text})" if own < level else text


def _script(text: str) -> str:
    return "{" + text + "}"


def _add(node: Add) -> tuple[int, str]:
    out = ""
    for term in node.terms:
        if isinstance(term, Negative):
            out += "-" + to_tex(term.body, _TERM)
        else:
            out += ("+" if out else "") + to_tex(term, _TERM)
    return _SUM, out


def _product(node: Product) -> tuple[int, str]:
    return _CHAIN, r"\,".join(to_tex(factor, _FACTOR) for factor in node.factors)


def _binary(node: Binary) -> tuple[int, str]:
    sign = "/" if node.sign == "/" else f"{node.sign} "
    return _TERM, f"{to_tex(node.left, _TERM)}{sign}{to_tex(node.right, _CHAIN)}"


def _index(node: Index) -> tuple[int, str]:
    return _BASE - 1, f"{to_tex(node.base, _BASE)}_{_script(','.join(map(to_tex, node.at)))}"


def _slice(node: Slice) -> tuple[int, str]:
    if node.relation in (":", r"\cdot"):
        return _BASE, node.relation
    bound = to_tex(node.bound, _SUM) if node.bound else ""
    low = to_tex(node.low, _SUM) if node.low else ""
    return _BASE, f"{low}{node.relation} {bound}"


def _scripted(base: Node, upper: str) -> tuple[int, str]:
    # An index may carry a power: x_i^2. A power may not carry another.
    plain = isinstance(base, Name | Index | Number)
    return _FACTOR, f"{to_tex(base, _FACTOR if plain else _BASE)}^{_script(upper)}"


def _apply(node: Apply) -> tuple[int, str]:
    separators = node.separators or (",",) * (len(node.arguments) - 1)
    inside = to_tex(node.arguments[0]) if node.arguments else ""
    for sign, argument in zip(separators, node.arguments[1:], strict=True):
        inside += f"{sign} {to_tex(argument)}"
    return _BASE - 1, f"{to_tex(node.function, _FACTOR)}({inside})"


def _bigop(node: BigOp) -> tuple[int, str]:
    names = ",".join(name.text for name in node.names)
    below = names
    if node.low is not None:
        below = f"{names}={to_tex(node.low, _SUM)}"
    elif node.condition is not None:
        first = node.condition.sides[0] if isinstance(node.condition, Relation) else None
        if first in node.names and len(node.names) == 1:
            below = to_tex(node.condition)
        else:
            below = f"{names}:{to_tex(node.condition)}"
    above = f"^{_script(to_tex(node.high, _SUM))}" if node.high is not None else ""
    if node.sign == r"\mathrm{diag}":
        return _BASE - 1, f"{node.sign}_{_script(below)}({to_tex(node.body)})"
    return _SUM, f"{node.sign}_{_script(below)}{above}{to_tex(node.body, _TERM)}"


def _relation(node: Relation) -> tuple[int, str]:
    out = to_tex(node.sides[0], _SUM)
    for sign, side in zip(node.signs, node.sides[1:], strict=True):
        out += f"{sign} {to_tex(side, _SUM)}"
    return _RELATION, out


def _bars(node: Bars) -> tuple[int, str]:
    inside = ",".join(map(to_tex, node.body))
    left, right = {
        "norm": (r"\lVert ", r"\rVert "),
        "abs": (r"\lvert ", r"\rvert "),
        "floor": (r"\lfloor ", r"\rfloor "),
        "ceil": (r"\lceil ", r"\rceil "),
        "round": (r"\lfloor ", r"\rceil "),
        "inner": (r"\langle ", r"\rangle "),
        "mean": (r"\langle ", r"\rangle ") if node.kind == "angle" else (r"\overline{", "}"),
        "indicator": (r"\mathbb 1[", "]"),
    }[node.sort]
    kind = f"_{_script(node.kind)}" if node.sort == "norm" and node.kind else ""
    return _BASE if not kind else _BASE - 1, f"{left}{inside}{right}{kind}"


def _derivative(node: Derivative) -> tuple[int, str]:
    if node.style == "prime":
        return _FACTOR, to_tex(node.body, _FACTOR) + "'"
    if node.style == "nabla":
        times = f"^{len(node.by)}" if len(node.by) > 1 else ""
        by = f"_{_script(to_tex(node.by[0]))}" if node.by else ""
        return _FACTOR, rf"\nabla{by}{times} {to_tex(node.body, _FACTOR)}"
    sign = r"\partial " if node.style == "partial" else "d "
    times = f"^{len(node.by)}" if len(node.by) > 1 else ""
    below = "".join(sign + to_tex(one, _FACTOR) for one in node.by)
    return _FACTOR, rf"\frac{{{sign}{times}{to_tex(node.body, _SUM)}}}{{{below}}}"


def _expect(node: Expect) -> tuple[int, str]:
    return _BASE - 1, f"{node.law}[{to_tex(node.body)}]"


def _limit(node: Limit) -> tuple[int, str]:
    return _SUM, rf"\lim_{{{node.name.text}\to {to_tex(node.to, _SUM)}}}{to_tex(node.body, _TERM)}"


def _matrix(node: Matrix) -> tuple[int, str]:
    rows = r"\\".join("&".join(to_tex(entry) for entry in row) for row in node.rows)
    return _BASE, rf"\begin{{{node.style}}}{rows}\end{{{node.style}}}"


def _cases(node: Cases) -> tuple[int, str]:
    rows = r"\\".join(
        f"{to_tex(value)}&" + (to_tex(condition) if condition else r"\text{otherwise}")
        for value, condition in zip(node.values, node.conditions, strict=True)
    )
    return _BASE, rf"\begin{{cases}}{rows}\end{{cases}}"


def _tuple(node: Tuple) -> tuple[int, str]:
    if node.style == ",":
        return _RELATION, ", ".join(map(to_tex, node.items))
    comma, close = (";", "]") if node.style == "[" else (",", ")")
    return _BASE, f"{node.style}{comma.join(map(to_tex, node.items))}{close}"


def _statement(node: Statement) -> tuple[int, str]:
    text = to_tex(node.relation)
    if node.aside:
        text = rf"\text{{for }}{text}"
    return _RELATION, text + (rf"{node.arrow} {to_tex(node.then)}" if node.then else "")


_RULES: dict[type, Callable[[Any], tuple[int, str]]] = {
    Number: lambda node: (_BASE, node.text),
    Name: lambda node: (_BASE - 1 if set("_^'") & set(node.text) else _BASE, node.text),
    Index: _index,
    Slice: _slice,
    Turned: lambda node: (_SUM, to_tex(node.index, _TERM) + "+1"),
    Power: lambda node: _scripted(node.base, to_tex(node.exponent)),
    Transpose: lambda node: _scripted(node.base, r"\top"),
    Postfix: lambda node: _scripted(node.base, node.sign),
    Negative: lambda node: (_SUM, "-" + to_tex(node.body, _TERM)),
    Add: _add,
    Product: _product,
    Binary: _binary,
    Fraction: lambda node: (
        _BASE,
        rf"\frac{{{to_tex(node.top)}}}{{{to_tex(node.bottom)}}}",
    ),
    Root: lambda node: (
        _BASE,
        r"\sqrt"
        + (f"[{to_tex(node.degree, _SUM)}]" if node.degree else "")
        + _script(to_tex(node.body)),
    ),
    Factorial: lambda node: (_FACTOR, to_tex(node.body, _BASE) + "!"),
    Binomial: lambda node: (_BASE, rf"\binom{{{to_tex(node.top)}}}{{{to_tex(node.bottom)}}}"),
    Apply: _apply,
    BigOp: _bigop,
    Relation: _relation,
    Bars: _bars,
    Derivative: _derivative,
    At: lambda node: (
        _TERM,
        rf"{to_tex(node.body, _CHAIN)}|_{{{node.name.text}={to_tex(node.value, _SUM)}}}",
    ),
    Expect: _expect,
    Limit: _limit,
    Matrix: _matrix,
    Cases: _cases,
    Tuple: _tuple,
    Statement: _statement,
    Display: lambda node: (
        _RELATION,
        r",\qquad ".join(to_tex(one) for one in node.statements),
    ),
}
