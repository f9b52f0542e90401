"""Derivatives by SymPy, of the formula that the page itself displays: a third route."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, cast

import sympy as sp
import torch
from torch import Tensor

from companion.verify.tex import _arithmetic as arithmetic
from companion.verify.tex._arithmetic import tensor
from companion.verify.tex._evaluate import evaluate, free_names, terms_of
from companion.verify.tex._nodes import (
    Add,
    Apply,
    BigOp,
    Binary,
    Derivative,
    Fraction,
    Index,
    Name,
    Negative,
    Node,
    Power,
    Product,
    Root,
)
from companion.verify.tex._reading import Definition, Opaque, Scope, parameters

__all__ = ["by_symbols"]

_MOST_TERMS = 60
_FUNCTIONS: Mapping[str, Callable[[sp.Expr], sp.Expr]] = {
    r"\log": sp.log,
    r"\ln": sp.log,
    r"\exp": sp.exp,
    r"\cos": sp.cos,
    r"\sin": sp.sin,
    r"\tan": sp.tan,
    r"\cosh": sp.cosh,
    r"\sinh": sp.sinh,
    r"\tanh": sp.tanh,
}


def by_symbols(node: Derivative, arguments: Sequence[Node], scope: Scope) -> Tensor:
    """Differentiate what the page displays, and give the value at the point of the reading.

    Args:
        node: The derivative.
        arguments: What a derivative by primes is applied to.
        scope: The names.

    Returns:
        The value. The axes of the variables come first, in the order of the page.

    Raises:
        Opaque: If the formula is not displayed, or is not one of numbers.
    """
    if node.style == "prime":
        return _prime(node, arguments, scope)
    symbols: dict[str, _Entries] = {}
    axes: list[list[sp.Symbol]] = []
    shape: list[int] = []
    for one in node.by:
        base, at = (one.base, one.at) if isinstance(one, Index) else (one, ())
        if not isinstance(base, Name):
            raise Opaque
        if base.text not in symbols:
            symbols[base.text] = _Entries(base.text, tensor(evaluate(base, scope)))
        entries = symbols[base.text]
        if at:
            axes.append([entries.at(at, scope)])
        else:
            axes.append(list(entries.all))
            shape += entries.value.shape
    if not axes:
        raise Opaque
    made = _Reader(symbols).read(node.body, scope)
    point = {symbol: number for one in symbols.values() for symbol, number in one.all.items()}
    values = [_number(sp.diff(made, *chosen), point) for chosen in product(*axes)]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def _prime(node: Derivative, arguments: Sequence[Node], scope: Scope) -> Tensor:
    times, inner = 1, node.body
    while isinstance(inner, Derivative) and inner.style == "prime":
        times, inner = times + 1, inner.body
    shown = _displayed(inner.text, scope) if isinstance(inner, Name) else None
    if shown is None or len(shown.parameters) != 1 or len(arguments) != 1:
        raise Opaque
    x = sp.Symbol("x", real=True)
    made = _Reader({}).read(shown.body, scope.child({shown.parameters[0]: x}))
    slope = sp.diff(made, x, times)
    at = tensor(evaluate(arguments[0], scope))
    values = [_number(slope, {x: float(one)}) for one in at.reshape(-1)]
    return torch.tensor(values, dtype=torch.float64).reshape(at.shape)


def _displayed(text: str, scope: Scope) -> Definition | None:
    """Return the formula that the page displays for a name, also for one with a reading."""
    return scope.displayed.get(text) or scope.definitions.get(text)


def _number(expression: sp.Expr, point: Mapping[sp.Symbol, float]) -> float:
    value = expression.evalf(subs=point)
    if not (value.is_Number and value.is_finite):
        raise Opaque
    return float(value)


class _Entries:
    """The symbols of a variable, one for each entry, and their values."""

    def __init__(self, text: str, value: Tensor) -> None:
        self.text, self.value = text, value
        places = product(*map(range, value.shape))
        self.symbols = {place: sp.Symbol(f"{text}{list(place)}", real=True) for place in places}
        self.all = {symbol: float(value[place]) for place, symbol in self.symbols.items()}

    def at(self, at: Sequence[Node], scope: Scope) -> sp.Symbol:
        origin = scope.origin(self.text)
        numbers = [arithmetic.number(evaluate(one, scope)) - origin for one in at]
        found = self.symbols.get(tuple(numbers))
        if found is None:
            raise Opaque
        return found


class _Reader:
    """From a tree to a SymPy expression: what does not depend on the variables is a number."""

    def __init__(self, symbols: Mapping[str, _Entries]) -> None:
        self.symbols = symbols

    def depends(self, node: Node, scope: Scope, depth: int = 0) -> bool:
        """Tell whether the value of a tree depends on the variables."""
        return any(self._name_depends(text, scope, depth) for text in set(free_names(node)))

    def _name_depends(self, text: str, scope: Scope, depth: int) -> bool:
        if depth > 20:
            raise Opaque
        if text in scope.bound:
            return text in self.symbols or isinstance(scope.bound[text], sp.Basic)
        if text in self.symbols:
            return True
        shown = _displayed(text, scope)
        if shown is not None:
            own = frozenset(shown.parameters)
            names = set(free_names(shown.body, own))
            return any(self._name_depends(name, scope, depth + 1) for name in names)
        value = scope.values.get(text)
        if not callable(value):
            return False
        names = set(map(scope.text_of_parameter, parameters(value)))
        return any(self._name_depends(name, scope, depth + 1) for name in names)

    def read(self, node: Node, scope: Scope) -> sp.Expr:
        """Return the expression of a tree."""
        if not self.depends(node, scope):
            return _constant(evaluate(node, scope))
        rule = _RULES.get(type(node))
        if rule is None:
            raise Opaque
        return rule(self, node, scope)

    def all(self, nodes: Sequence[Node], scope: Scope) -> list[sp.Expr]:
        """Return the expressions of several trees."""
        return [self.read(node, scope) for node in nodes]

    def name(self, node: Name, scope: Scope) -> sp.Expr:
        if isinstance(scope.bound.get(node.text), sp.Basic):
            return cast(sp.Expr, scope.bound[node.text])
        if node.text in self.symbols:
            (only, *more) = self.symbols[node.text].all
            if more:
                raise Opaque
            return only
        shown = _displayed(node.text, scope)
        if shown is None or shown.parameters:
            raise Opaque
        return self.read(shown.body, scope)

    def index(self, node: Index, scope: Scope) -> sp.Expr:
        if not isinstance(node.base, Name):
            raise Opaque
        if node.base.text in self.symbols:
            return self.symbols[node.base.text].at(node.at, scope)
        return self.defined(node.base, node.at, scope)

    def apply(self, node: Apply, scope: Scope) -> sp.Expr:
        function, arguments = node.function, node.arguments
        if not isinstance(function, Name):
            raise Opaque
        known = _FUNCTIONS.get(function.text)
        if known is not None and function.text not in scope.values and len(arguments) == 1:
            return known(self.read(arguments[0], scope))
        return self.defined(function, arguments, scope)

    def defined(self, function: Name, arguments: Sequence[Node], scope: Scope) -> sp.Expr:
        shown = _displayed(function.text, scope)
        if shown is None or len(shown.parameters) != len(arguments):
            raise Opaque
        bound: dict[str, Any] = {}
        for name, argument in zip(shown.parameters, arguments, strict=True):
            if argument == Name(name):
                continue  # L(z) of the variable z itself
            dependent = self.depends(argument, scope)
            bound[name] = self.read(argument, scope) if dependent else evaluate(argument, scope)
        return self.read(shown.body, scope.child(bound))

    def power(self, node: Power, scope: Scope) -> sp.Expr:
        exponent = self.read(node.exponent, scope)
        if node.base == Name("e") and "e" not in scope.values:
            return sp.exp(exponent)
        return cast(sp.Expr, self.read(node.base, scope) ** exponent)

    def binary(self, node: Binary, scope: Scope) -> sp.Expr:
        left, right = self.all((node.left, node.right), scope)
        if node.sign == "/":
            return cast(sp.Expr, left / right)
        if node.sign in (r"\cdot", r"\times"):
            return cast(sp.Expr, left * right)
        raise Opaque

    def big(self, node: BigOp, scope: Scope) -> sp.Expr:
        if node.sign not in (r"\sum", r"\prod"):
            raise Opaque
        made = []
        for inner, _ in terms_of(node, scope):
            made.append(self.read(node.body, inner))
            if len(made) > _MOST_TERMS:
                raise Opaque
        return sp.Add(*made) if node.sign == r"\sum" else sp.Mul(*made)


def _constant(value: Any) -> sp.Expr:
    if isinstance(value, int):
        return sp.Integer(value)
    number = tensor(value)
    if number.ndim or number.is_complex() or not bool(number.isfinite()):
        raise Opaque
    return sp.Float(float(number))


_RULES: dict[type, Callable[[_Reader, Any, Scope], sp.Expr]] = {
    Name: _Reader.name,
    Index: _Reader.index,
    Apply: _Reader.apply,
    Power: _Reader.power,
    Binary: _Reader.binary,
    BigOp: _Reader.big,
    Negative: lambda reader, node, scope: -reader.read(node.body, scope),
    Add: lambda reader, node, scope: sp.Add(*reader.all(node.terms, scope)),
    Product: lambda reader, node, scope: sp.Mul(*reader.all(node.factors, scope)),
    Fraction: lambda reader, node, scope: (
        reader.read(node.top, scope) / reader.read(node.bottom, scope)
    ),
    Root: lambda reader, node, scope: sp.root(
        reader.read(node.body, scope),
        2 if node.degree is None else reader.read(node.degree, scope),
    ),
}
