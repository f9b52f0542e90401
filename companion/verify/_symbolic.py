"""Identities of SymPy expressions, proven and then evaluated with many digits."""

import math
import random
from collections.abc import Iterator, Mapping
from itertools import pairwise, zip_longest
from typing import Any

import mpmath
import sympy as sp

from companion.verify._record import Verification, VerificationError, check_label, emit

__all__ = ["identity"]

_DIGITS = 40
_POINTS = 5
_TOLERANCE = 1e-20
_MOST_MUTANTS = 16
# Mutants of these kinds may turn out to be the same function (an even function does not see the
# sign of its argument). Such a mutant is not wrong, so it is left out.
_MAY_BE_EQUAL = ("swapped", "argument")


def identity(
    label: str,
    lhs: Any,
    rhs: Any,
    *,
    where: Mapping[Any, tuple[float, float]] | None = None,
    mutants: Mapping[str, Any] | None = None,
    show: str | None = None,
) -> Verification:
    """Verify that two SymPy expressions are equal, by proof and by 40-digit evaluation.

    Derivatives, sums and integrals may be left unevaluated; they are evaluated here. Wrong
    versions of the right side (of the left side where the right one is a constant) are made from
    its expression tree: a sign, a factor, a dropped term, an exponent, swapped symbols, a shifted
    limit, a transpose.

    Args:
        label: Label of the equation.
        lhs: An expression, a matrix or an array with explicit entries.
        rhs: The same shape.
        where: Domain of the random points for some symbols, as ``{symbol: (low, high)}``. Without
            an entry a positive symbol lies in (0.2, 2) and a real one in (-2, 2). Every integer
            symbol needs an entry.
        mutants: Further wrong versions of the right side, finite and in the symbols of the claim.
        show: Key under which the equation, as SymPy prints it, is glued into the page. Then what
            is shown is what was verified.

    Returns:
        The record.

    Raises:
        VerificationError: If SymPy cannot prove the identity, a point contradicts it, or a mutant
            survives.

    Example:
        >>> x = sp.Symbol("x", real=True)
        >>> record = identity(
        ...     "eq:tanh", sp.diff(sp.tanh(x), x), 1 - sp.tanh(x) ** 2
        ... )  # doctest: +ELLIPSIS
        ✓ eq:tanh · identity by SymPy, 40 digits · ... mutants rejected
    """
    check_label(label)
    if _same_open_expression(lhs, rhs):
        raise VerificationError(f"{label}: both sides are one and the same expression")
    left, right = _entries(label, lhs), _entries(label, rhs)
    if left[0] != right[0]:
        raise VerificationError(f"{label}: the sides have shapes {left[0]} and {right[0]}")
    shape, a, b = left[0], left[1], right[1]
    for one, other in zip(a, b, strict=True):
        if not _proven_zero(one - other):
            raise VerificationError(
                f"{label}: SymPy does not reduce the difference to zero, it leaves "
                f"{str(sp.simplify(one - other))[:120]}"
            )
    symbols = sorted(set().union(*(e.free_symbols for e in (*a, *b))), key=str)
    points = list(_points(label, symbols, where or {}))
    values_a = [_evaluate(a, point) for point in points]
    error = max(_distance(va, _evaluate(b, p)) for va, p in zip(values_a, points, strict=True))
    if not error <= _TOLERANCE:
        raise VerificationError(
            f"{label}: at a random point the sides differ by {error:.1e}, or are not real and "
            "finite there. Restrict the points with `where`."
        )

    on_left = not any(e.free_symbols for e in b)
    target, fixed = (a, b) if on_left else (b, a)
    fixed_values = [_evaluate(fixed, point) for point in points]
    rejected: list[str] = []
    # Zero has no sign and no factor to get wrong: there the terms of the other side are changed.
    candidates = list(_mutants(target, shape, whole=any(entry != 0 for entry in fixed)))
    for name, wrong in (mutants or {}).items():
        wrong_shape, entries = _entries(label, wrong)
        if wrong_shape != shape:
            raise VerificationError(f"{label}: mutant {name!r} has shape {wrong_shape}")
        foreign = set().union(*(entry.free_symbols for entry in entries)) - set(symbols)
        if foreign:
            raise VerificationError(
                f"{label}: mutant {name!r} holds {sorted(map(str, foreign))}, which the claim does "
                "not. It would be rejected for that, whatever else it says."
            )
        for point in points:
            if not _distance(_evaluate(entries, point), [mpmath.mpf(0)] * len(entries)) < math.inf:
                raise VerificationError(
                    f"{label}: mutant {name!r} is no finite real number at a point of the domain, "
                    "so it would be rejected for that, whatever the claim is."
                )
        candidates.append((name, entries))
    for name, wrong in candidates:
        compare = values_a if name in (mutants or {}) else fixed_values
        distances = [
            _distance(value, _evaluate(wrong, point))
            for value, point in zip(compare, points, strict=True)
        ]
        finite = [distance for distance in distances if distance < math.inf]
        if not finite:
            # Such as the logarithm of a negative number: told from the claim, but not by value.
            continue
        if max(finite) > _TOLERANCE:
            rejected.append(name)
        elif not name.startswith(_MAY_BE_EQUAL):
            raise VerificationError(
                f"{label}: the check accepts the wrong claim {name!r}. A part of the expression "
                "does not matter, or the points do not reach it."
            )
    if len(rejected) < 3:
        raise VerificationError(
            f"{label}: only {len(rejected)} wrong versions can be told from the claim, "
            "so it says too little to be checked. Are both sides zero?"
        )
    if show is not None:
        _glue(show, lhs, rhs)
    return emit(
        label=label,
        kind="identity",
        routes=[("SymPy", 0.0), (f"{_DIGITS} digits", error)],
        tolerance=_TOLERANCE,
        mutants=rejected,
        points=len(points),
        shown=show,
    )


def _same_open_expression(lhs: Any, rhs: Any) -> bool:
    """Tell whether both sides are the same before anything is evaluated.

    Expressions that SymPy evaluates as they are written may well come out the same; there the
    evaluation is the evidence.
    """
    if isinstance(lhs, sp.MatrixBase | sp.NDimArray) and lhs is rhs:
        return True
    one, other = sp.sympify(lhs), sp.sympify(rhs)
    return bool(one == other) and one.has(sp.Derivative, sp.Sum, sp.Integral, sp.Product)


def _glue(key: str, lhs: Any, rhs: Any) -> None:
    try:
        from myst_nb import glue
    except ImportError as error:
        raise ImportError("show= needs myst-nb: pip install 'llm-math-companion[book]'") from error
    glue(key, sp.Eq(lhs, rhs, evaluate=False), display=False)


def _entries(label: str, side: Any) -> tuple[tuple[int, ...], list[sp.Expr]]:
    side = sp.sympify(side)
    if isinstance(side, sp.MatrixExpr) and not isinstance(side, sp.MatrixBase):
        side = side.as_explicit()
    if isinstance(side, sp.MatrixBase | sp.NDimArray):
        shape = tuple(side.shape)
        flat = list(sp.flatten(side.tolist()))
    elif isinstance(side, sp.Expr):
        shape, flat = (), [side]
    else:
        raise VerificationError(f"{label}: a side must be an expression or a matrix, got {side!r}")
    done = [entry.doit() for entry in flat]
    for entry in done:
        if entry.has(sp.Derivative, sp.MatrixSymbol):
            raise VerificationError(
                f"{label}: {str(entry)[:60]!r} stays unevaluated. Use explicit entries; SymPy's "
                "derivative by a MatrixSymbol can silently be zero."
            )
    return shape, done


def _proven_zero(difference: sp.Expr) -> bool:
    def attempts() -> Iterator[sp.Expr]:
        yield difference
        yield sp.expand(difference)
        yield sp.simplify(difference)
        yield sp.simplify(sp.expand_log(sp.expand(difference), force=False))
        yield sp.simplify(sp.logcombine(sp.expand_log(difference)))
        yield sp.simplify(difference.rewrite(sp.exp))
        yield sp.simplify(sp.factor(sp.together(difference.rewrite(sp.exp))))

    return any(attempt == 0 for attempt in attempts())


def _points(
    label: str, symbols: list[Any], where: Mapping[Any, tuple[float, float]]
) -> Iterator[dict[Any, Any]]:
    # Seeded by the label: the same points in every run, other points for every equation.
    rng = random.Random(label)
    for symbol in symbols:
        if symbol.is_integer and symbol not in where:
            raise VerificationError(f"{label}: give a range of the integer {symbol} in `where`")
    for _ in range(_POINTS):
        point: dict[Any, Any] = {}
        for symbol in symbols:
            low, high = where.get(symbol, (0.2, 2.0) if symbol.is_positive else (-2.0, 2.0))
            if symbol.is_integer:
                point[symbol] = sp.Integer(rng.randint(int(low), int(high)))
                continue
            number = 0.0
            while abs(number) < 0.05 * (high - low) / 4 or abs(abs(number) - 1) < 1e-3:
                number = rng.uniform(low, high)
            # Thirty random bits more than a double holds, so that no two points look alike.
            point[symbol] = sp.Float(number, _DIGITS) + sp.Rational(rng.getrandbits(30), 2**90)
        yield point


def _evaluate(entries: list[sp.Expr], point: Mapping[Any, Any]) -> list[Any]:
    return [_number(entry, point) for entry in entries]


def _number(entry: sp.Expr, point: Mapping[Any, Any]) -> Any:
    integers = {s: v for s, v in point.items() if s.is_integer}
    # Integers first: they turn symbolic sums into explicit ones.
    made = entry.subs(integers).doit().subs(point).evalf(_DIGITS)
    with mpmath.workdps(_DIGITS):
        try:
            return mpmath.mpmathify(made)
        except (TypeError, ValueError):
            return None


def _distance(one: list[Any], other: list[Any]) -> float:
    worst = 0.0
    with mpmath.workdps(_DIGITS):
        # Numbers are of order one here. The floor is for claims that something is zero.
        scale = max((abs(v) for v in (*one, *other) if v is not None), default=mpmath.mpf(0))
        scale = max(scale, mpmath.mpf("1e-6"))
        for a, b in zip(one, other, strict=True):
            if a is None or b is None or not mpmath.isfinite(a) or not mpmath.isfinite(b):
                return float("inf")
            if any(isinstance(c, mpmath.mpc) and abs(c.imag) > _TOLERANCE * scale for c in (a, b)):
                return float("inf")
            worst = max(worst, float(abs(a - b) / scale))
    return worst


def _mutants(
    entries: list[sp.Expr], shape: tuple[int, ...], *, whole: bool
) -> Iterator[tuple[str, list[sp.Expr]]]:
    """Yield wrong versions of an array of expressions, by turns of every kind."""
    if whole:
        yield from _whole_mutants(entries, shape)
    # One entry is changed at a time. Taking turns over the entries covers many of them.
    made = [list(_tree_mutants(entry)) for entry in entries]
    budget = _MOST_MUTANTS
    for turn in zip_longest(*made):
        for index, mutant in enumerate(turn):
            if mutant is None:
                continue
            if budget == 0:
                return
            budget -= 1
            name, expression = mutant
            place = f" in entry {index}" if len(entries) > 1 else ""
            yield name + place, [*entries[:index], expression, *entries[index + 1 :]]


def _whole_mutants(
    entries: list[sp.Expr], shape: tuple[int, ...]
) -> Iterator[tuple[str, list[sp.Expr]]]:
    yield "negated", [-e for e in entries]
    yield "doubled", [2 * e for e in entries]
    if len(shape) == 2 and min(shape) > 1 and shape[0] == shape[1]:
        matrix = sp.Matrix(*shape, entries)
        if matrix != matrix.T:
            yield "transposed", list(matrix.T)
    if len(entries) > 1 and len(set(entries)) > 1:
        yield "index off by one", entries[1:] + entries[:1]


def _tree_mutants(expression: sp.Expr) -> Iterator[tuple[str, sp.Expr]]:
    by_kind: dict[str, list[tuple[str, sp.Expr]]] = {}

    def add(kind: str, detail: Any, old: sp.Basic, new: sp.Basic) -> None:
        changed = expression.xreplace({old: new})
        if changed != expression:
            by_kind.setdefault(kind, []).append((f"{kind} {str(detail)[:40]}", changed))

    seen: set[sp.Basic] = set()
    for node in sp.preorder_traversal(expression):
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, sp.Add):
            for term in node.args:
                rest = sp.Add(*(t for t in node.args if t != term))
                add("dropped", term, node, rest)
                add("sign of", term, node, rest - term)
        elif isinstance(node, sp.Pow) and node.exp.is_number:
            add("exponent of", node, node, sp.Pow(node.base, node.exp + 1))
        elif isinstance(node, sp.Mul) and node.args[0].is_Rational and node.args[0] != -1:
            add("factor of", node, node, sp.Mul(*node.args[1:]))
        elif isinstance(node, sp.Sum):
            index, low, high = node.limits[0]
            shifted = sp.Sum(node.function, (index, low, high - 1), *node.limits[1:])
            add("last term of sum", node, node, shifted)
        elif isinstance(node, sp.Function) and len(node.args) == 1:
            add("argument sign of", node, node, node.func(-node.args[0]))
    symbols = sorted(expression.free_symbols, key=str)
    for one, other in pairwise(symbols):
        changed = expression.xreplace({one: other, other: one})
        if changed != expression and one.is_integer == other.is_integer:
            by_kind.setdefault("swapped", []).append((f"swapped {one}, {other}", changed))
    for turn in zip_longest(*by_kind.values()):
        yield from (mutant for mutant in turn if mutant is not None)
