"""A displayed formula, read from the page, evaluated, and told from its wrong versions."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import pairwise, product
from typing import Any, cast

import torch
from torch import Tensor

from companion.core import check_several
from companion.verify._independence import in_library
from companion.verify._inputs import check_generic, check_unchanged, snapshot
from companion.verify._record import Verification, VerificationError, check_label, emit
from companion.verify.tex import _arithmetic as arithmetic
from companion.verify.tex._arithmetic import Misfit, tensor
from companion.verify.tex._differentiate import by_symbols
from companion.verify.tex._evaluate import (
    FOLDS,
    KRONECKER,
    bare_indices,
    bound_at,
    evaluate,
    free_names,
    index_range,
    sets_of,
    truth,
)
from companion.verify.tex._lexicon import forms_of, text_of
from companion.verify.tex._mutants import mutants_of
from companion.verify.tex._nodes import (
    Apply,
    BigOp,
    Derivative,
    Display,
    Index,
    Name,
    Node,
    Number,
    Relation,
    Statement,
    Tuple,
    nodes_of,
    put,
)
from companion.verify.tex._parser import parse
from companion.verify.tex._printer import to_tex
from companion.verify.tex._reading import (
    UPDATED,
    Adjoint,
    Definition,
    Opaque,
    Scope,
    Table,
    Unread,
    parameters,
    texts_of_parameters,
)
from companion.verify.tex._source import tex_of

__all__ = ["check", "page"]

Reading = Mapping[str, Any]

_EXACT = 1e-10
_DIFFERENCES = 1e-6
#: Names whose tensors are what they are, and not generic.
_ONES, _IDENTITY = (r"\mathbf 1",), ("I", r"\mathbf I")
#: Keys of a reading that are no names: what the library computes for a side of the first claim.
_ENDS = ("left side", "right side")
#: What a wrong version may raise where it has no value: it may index, compare or call anything.
_NO_VALUE = (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, AttributeError)
#: Functions that choose a number format, and compute nothing.
_CASTS = "companion.core.precision."
_BOUNDS = {r"\le": 1, "<": 1, r"\ge": -1, ">": -1}


def page(
    label: str,
    reading: Reading | Sequence[Reading] | Callable[[], Reading],
    *,
    given: Sequence[str] = (),
    loss: Callable[..., Any] | None = None,
    equivalent: Mapping[str, str] | None = None,
    special: Mapping[str, str] | None = None,
    origin: int | Mapping[str, int] = 1,
    tol: float | None = None,
    approx: float | None = None,
    slack: float = 0.1,
    z: float = 5.0,
    sizes: tuple[int, ...] = (500, 1000, 2000, 4000),
) -> Verification:
    r"""Verify a displayed formula as it stands on the page.

    The TeX is found by its label, read, and evaluated under a reading: what each name on the page
    stands for. Then wrong versions are made from its tree (a sign, a lost term, factor, exponent or
    transpose, an index moved by one, ...), and each must come out wrong.

    A name stands for a number, a tensor, a function that the page applies, a function of other
    names on the page (its parameters are their names; so derivatives know what depends on what), a
    function of indices, a ``range`` of an index, a set, or a law of expectations. Indices without a
    range run over the arrays that they index. What the formula itself defines needs no reading. The
    key ``"right side"`` (or ``"left side"``) holds that side of the formula against what the
    library computes for it; a function of free indices is called at each of their values.

    Derivatives are those of the functions in the reading, by autograd and finite differences. SymPy
    is a third route where the page displays the differentiated function, as a formula of numbers.

    Two sides that go through one function of the library are refused, for a mistake there would not
    show. A name that stands on both sides is what the formula leaves open; and in
    a chain of equations each side needs one other that is independent of it.

    A wrong version counts as rejected by its numbers alone. One that has no value somewhere (its
    shapes do not fit, an index is out of range, a word is compared with a number) and that agrees
    elsewhere is idle: neither evidence nor a survivor. Where a claim or a definition has wrong
    versions, one at least must be rejected.

    Args:
        label: Label of the formula.
        reading: Names and what they stand for. Several readings, or a function that draws one (it
            is called three times), test the formula at several points.
        given: Labels of displayed definitions that the formula uses, or of what it differentiates.
        loss: A function of names on the page. Its gradient by X is what the page calls ``dX`` or
            ``\bar X``.
        equivalent: Wrong versions that are right after all, each with the reason.
        special: Names whose tensors are not generic, each with the reason.
        origin: What the page counts entries from, for all arrays or by name.
        tol: Largest relative error, by default 1e-10 and for finite differences 1e-6.
        approx: Relative error that the sign for approximate equality allows here.
        slack: Relative gap at which a bound counts as close to equality.
        z: Standard errors that separate agreement from disagreement, where samples are used.
        sizes: Where to evaluate what is taken to a limit at infinity. Each doubles the one before.

    Returns:
        The record.

    Raises:
        TexError: If the formula cannot be read. A caret shows where.
        VerificationError: If it is wrong, a name lacks a reading, or a wrong version survives.
    """
    check_several("given", given)
    return check(
        label,
        tex_of(label),
        reading,
        given=[tex_of(name) for name in given],
        loss=loss,
        equivalent=equivalent,
        special=special,
        origin=origin,
        tol=tol,
        approx=approx,
        slack=slack,
        z=z,
        sizes=sizes,
    )


@dataclass(frozen=True)
class _Settings:
    label: str
    tol: float
    approx: float | None
    slack: float
    z: float


@dataclass
class _Claim:
    """One claim of a display: its relation, and the points at which it is to hold."""

    relation: Relation
    points: list[dict[str, Any]]
    arrow: Relation | None = None  # what is equivalent to it
    values: dict[tuple[int, str], Any] = field(default_factory=dict)
    infinite: bool = False


@dataclass
class _Sheet:
    """A display under one reading."""

    scope: Scope
    claims: list[_Claim]
    definitions: dict[str, Definition]
    conditions: list[Node]
    given: Reading = field(default_factory=dict)


def check(
    label: str,
    tex: str,
    reading: Reading | Sequence[Reading] | Callable[[], Reading],
    *,
    given: Sequence[str] = (),
    loss: Callable[..., Any] | None = None,
    equivalent: Mapping[str, str] | None = None,
    special: Mapping[str, str] | None = None,
    origin: int | Mapping[str, int] = 1,
    tol: float | None = None,
    approx: float | None = None,
    slack: float = 0.1,
    z: float = 5.0,
    sizes: tuple[int, ...] = (500, 1000, 2000, 4000),
) -> Verification:
    """Verify a formula that is given as TeX; see :func:`page`, which finds it by its label."""
    check_label(label)
    if not 0 < slack <= 0.5 or z < 3:
        raise ValueError(f"need 0 < slack <= 0.5 and z >= 3, got slack = {slack}, z = {z}")
    if tol is not None and not 0 < tol <= 1e-3:
        raise ValueError(f"tol must lie in (0, 1e-3], got {tol}")
    if approx is not None and not 0 < approx <= 0.1:
        raise ValueError(f"approx must lie in (0, 0.1], got {approx}")
    readings = _readings(reading)
    sheets = []
    befores = []
    for one in readings:
        _check_generic(label, one, special or {})
        values = {name: _plain(value) for name, value in one.items() if name not in _ENDS}
        ends = {name: _plain(one[name]) for name in _ENDS if name in one}
        adjoints = _adjoints(values, loss)
        scope = Scope(values, origin=origin, sizes=sizes, loss=loss, adjoints=adjoints)
        befores.append(snapshot(values))
        sheets.append(_ended(_sheet(label, tex, given, scope), ends, values))
    settings = _Settings(label, tol or _EXACT, approx, slack, z)
    try:
        routes, kind, unit = _confirm(settings, sheets, tol)
        rejected = _reject(settings, sheets, equivalent or {})
    finally:  # a reading that was changed explains every other failure
        for sheet, before in zip(sheets, befores, strict=True):
            check_unchanged(label, sheet.given, before)
    return emit(
        label=label,
        kind=kind,
        routes=routes,
        tolerance={"expectation": z, "bound": slack}.get(kind, tol or _EXACT),
        mutants=rejected,
        points=sum(len(claim.points) for sheet in sheets for claim in sheet.claims),
        unit=unit,
        read=True,
    )


# ------------------------------------------------------------------------------------ readings


def _readings(reading: Any) -> list[Reading]:
    if isinstance(reading, Mapping):
        return [reading]
    if callable(reading):
        return [reading() for _ in range(3)]
    found = list(reading)
    if not found:
        raise ValueError("give at least one reading")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return value.double().clone() if value.is_floating_point() else value
    if isinstance(value, Table):
        return Table(_plain(value.values))
    return value


def _check_generic(label: str, reading: Reading, special: Mapping[str, str]) -> None:
    for name in special:
        if name not in reading:
            raise VerificationError(f"{label}: {name!r} is called special, but has no reading")
    tensors = {}
    for name, value in reading.items():
        if isinstance(value, Tensor) and name not in special and name not in _ENDS:
            text = text_of(forms_of(name)[0])
            if text in _ONES and bool((value == 1).all()):
                continue
            if (
                text in _IDENTITY
                and value.ndim == 2
                and torch.equal(value, torch.eye(*value.shape))
            ):
                continue
            tensors[name] = value
    check_generic(label, tensors)


def _adjoints(values: Reading, loss: Callable[..., Any] | None) -> list[str]:
    if loss is None:
        return []
    names = [name for name, value in values.items() if isinstance(value, Tensor) or callable(value)]
    return list(dict.fromkeys([*names, *parameters(loss)]))


# -------------------------------------------------------------------------------------- sorting


def _sheet(label: str, tex: str, given: Sequence[str], scope: Scope) -> _Sheet:
    """Sort the statements of a display into claims, definitions and conditions."""
    for text in given:
        other = parse(text, scope.lexicon)
        scope.sets |= sets_of(other, scope)
        _define_from(_bind(other, scope), scope)
    display = parse(tex, scope.lexicon)
    scope.sets |= sets_of(display, scope)
    display = _bind(display, scope)
    claims: list[Relation | tuple[Relation, Relation]] = []
    conditions: list[Node] = []
    definitions: dict[str, Definition] = {}
    for statement in display.statements:
        for relation, arrow, aside in _relations(label, statement):
            if _declares(relation):
                continue
            relation = _updated(relation)
            if aside or _is_condition(relation, scope):
                conditions.append(relation)
                continue
            head = _defined_head(relation, scope, definitions)
            if head is None:
                claims.append((relation, arrow) if arrow is not None else relation)
                continue
            name, parts = head
            definitions[name] = Definition(relation.sides[1], parts)
            if len(relation.sides) > 2:
                claims.append(Relation(relation.signs[1:], relation.sides[1:]))
    for claim in claims:
        # What holds under conditions alone is no formula for the quantity everywhere.
        if isinstance(claim, Relation) and claim.signs[0] == "=" and not conditions:
            _note_displayed(claim, scope)
    scope.definitions |= definitions
    _require_readings(label, claims, conditions, scope, definitions)
    everything = [
        part for claim in claims for part in (claim if isinstance(claim, tuple) else (claim,))
    ]
    made = []
    for claim in claims:
        relation, arrow = claim if isinstance(claim, tuple) else (claim, None)
        points = _points(label, relation, arrow, [*everything, *conditions], conditions, scope)
        made.append(_Claim(relation, points, arrow))
    return _Sheet(scope, made, definitions, conditions)


def _bind(display: Display, scope: Scope) -> Display:
    r"""Let a second name below a sum sign run as well, where it occurs nowhere else: i \ne j."""
    for path, node in list(nodes_of(display)):
        if not isinstance(node, BigOp) or node.condition is None:
            continue
        own = {name.text for name in node.names}
        # What stands elsewhere, or runs under a sum sign around this one, is given from outside.
        outside = set(free_names(put(display, path, Number("0")))) | bound_at(display, path)
        extra = [
            Name(text)
            for text in dict.fromkeys(free_names(node.condition))
            if text not in own | outside | scope.sets
            and isinstance(scope.values.get(text, ()), range | list | tuple)
            and not (_known(text, scope) and text not in scope.values)
        ]
        if extra:
            bound = replace(node, names=(*node.names, *extra))
            display = cast(Display, put(display, path, bound))
    return display


def _ended(sheet: _Sheet, ends: Reading, given: Reading) -> _Sheet:
    """Hold a side against the library: it stands in the chain as one more side."""
    sheet.given = given
    for name, value in ends.items():
        sheet.scope.values[name] = value
        if callable(value):  # of the free indices, too: then it is called at each of their values
            sheet.scope.watched |= texts_of_parameters(value)
        relation = sheet.claims[0].relation
        if name == "left side":
            signs, sides = ("=", *relation.signs), (Name(name), *relation.sides)
        else:
            signs, sides = (*relation.signs, "="), (*relation.sides, Name(name))
        sheet.claims[0].relation = Relation(signs, sides)
    return sheet


def _define_from(display: Display, scope: Scope) -> None:
    """Take over what another display defines, and the gradients by it."""
    for statement in display.statements:
        relation = statement.relation
        if isinstance(relation, Relation) and relation.signs[0] in ("=", r"\equiv"):
            head = _defined_head(relation, scope, {})
            if head is None:
                _note_displayed(relation, scope)
            else:
                scope.definitions[head[0]] = Definition(relation.sides[-1], head[1])
                scope.lexicon.add(head[0], function=isinstance(relation.sides[0], Apply))
                if scope.loss is not None:
                    scope.add_adjoint(head[0])


def _relations(
    label: str, statement: Statement
) -> Iterator[tuple[Relation, Relation | None, bool]]:
    first, then = statement.relation, statement.then
    for part in (first, then):
        if part is not None and not isinstance(part, Relation):
            raise VerificationError(f"{label}: {to_tex(part)!r} states nothing that could be wrong")
    assert isinstance(first, Relation)
    if statement.arrow == r"\iff":
        assert isinstance(then, Relation)
        yield first, then, statement.aside
        return
    yield first, None, statement.aside
    if isinstance(then, Relation):
        yield then, None, False


def _updated(relation: Relation) -> Relation:
    """What stands left of an arrow is the value after the update."""
    if relation.signs != (r"\leftarrow",):
        return relation
    left, right = relation.sides
    if isinstance(left, Index) and isinstance(left.base, Name):
        left = replace(left, base=Name(left.base.text + UPDATED))
    elif isinstance(left, Name):
        left = Name(left.text + UPDATED)
    return Relation(("=",), (left, right))


def _declares(relation: Relation) -> bool:
    """A statement that says of what kind a name is claims nothing."""
    last = relation.sides[-1]
    sign = relation.signs[-1]
    return sign == r"\sim" or (
        sign == r"\in" and isinstance(last, Name) and last.text.startswith(r"\mathbb")
    )


def _is_condition(relation: Relation, scope: Scope) -> bool:
    """A relation between indices alone restricts them."""
    names = set(free_names(relation))
    if not names or relation.signs[0] in ("=", r"\ne"):
        return False
    values = [scope.values.get(name) for name in names]
    return all(
        value is None or isinstance(value, int | range | list | tuple | set) for value in values
    ) and any(not isinstance(value, int) for value in values)


def _defined_head(
    relation: Relation, scope: Scope, definitions: Mapping[str, Definition]
) -> tuple[str, tuple[str, ...]] | None:
    """Return the name that a statement defines, with its parameters."""
    if relation.signs[0] not in ("=", r"\equiv"):
        return None
    head = _head(relation)
    known = (scope.values, scope.definitions, definitions, arithmetic.FUNCTIONS)
    if head is None or any(head[0] in place for place in known):
        return None
    return head


def _head(relation: Relation) -> tuple[str, tuple[str, ...]] | None:
    """Return the name on the left of an equation, with its parameters."""
    left = relation.sides[0]
    base: Node = left
    places: tuple[Node, ...] = ()
    if isinstance(left, Index):
        base, places = left.base, left.at
    elif isinstance(left, Apply):
        base, places = left.function, left.arguments
    if not isinstance(base, Name) or not all(isinstance(one, Name) for one in places):
        return None
    return base.text, tuple(one.text for one in places if isinstance(one, Name))


def _note_displayed(relation: Relation, scope: Scope) -> None:
    """Keep what the page displays for a quantity of the reading, for SymPy to differentiate."""
    head = _head(relation)
    if head is not None and callable(scope.values.get(head[0])):
        scope.displayed.setdefault(head[0], Definition(relation.sides[-1], head[1]))


def _law_names(scope: Scope) -> set[str]:
    return {
        text_of(form)
        for law in scope.laws.values()
        for name in law.outcomes
        for form in forms_of(name)
    }


def _known(text: str, scope: Scope) -> bool:
    return (
        text in scope.values
        or text in scope.definitions
        or text in arithmetic.CONSTANTS
        or text in arithmetic.FUNCTIONS
        or text.startswith(r"\mathbb")
        or text in (r"\cdot", KRONECKER)
    )


def _require_readings(
    label: str,
    claims: Sequence[Any],
    conditions: Sequence[Node],
    scope: Scope,
    definitions: Mapping[str, Definition],
) -> None:
    stated: list[Node] = list(conditions)
    for claim in claims:
        stated += claim if isinstance(claim, tuple) else (claim,)
    indices: set[str] = set()
    for part in stated:
        indices |= bare_indices(part)
    fine = indices | _law_names(scope)
    missing = [
        name
        for part in stated
        for name in free_names(part)
        if not _known(name, scope) and name not in fine
    ]
    # A definition has no index but those that it names on its left side.
    fine = _law_names(scope)
    for made in scope.definitions.values():
        for name in free_names(made.body, frozenset(made.parameters)):
            if not _known(name, scope) and name not in fine:
                missing.append(name)
    if not claims and not missing:
        missing = list(definitions)
    if missing or not claims:
        names = ", ".join(dict.fromkeys(missing))
        raise VerificationError(
            f"{label}: these names on the page lack a reading: {names or 'all of them'}"
        )


def _points(
    label: str,
    relation: Relation,
    arrow: Relation | None,
    everything: Sequence[Node],
    conditions: Sequence[Node],
    scope: Scope,
) -> list[dict[str, Any]]:
    """List the values of the free indices at which a claim is to hold."""
    laws = _law_names(scope)
    whole = Tuple(tuple(everything), ",")
    names: list[str] = []
    for part in (relation, *([arrow] if arrow else []), *conditions):
        for text in free_names(part):
            value = scope.values.get(text)
            is_range = isinstance(value, range | list) and text not in scope.sets
            unknown = not _known(text, scope) and text not in laws
            if (is_range or unknown) and text not in names and _is_index(text, part, scope):
                names.append(text)
    used = set(free_names(relation)) | (set(free_names(arrow)) if arrow else set())
    # A condition on other indices is none of this claim; one without an index may concern a
    # parameter that the page does not print, such as M(T) at \rho = 0.
    relevant = [
        c for c in conditions if set(free_names(c)) & used or not set(free_names(c)) & set(names)
    ]
    ranges = []
    for text in names:
        try:
            found = index_range(text, whole, scope)
        except Misfit as error:
            raise VerificationError(f"{label}: {error}") from error
        if found is None:
            raise VerificationError(f"{label}: these names on the page lack a reading: {text}")
        ranges.append(found)
    points = []
    for values in product(*ranges):
        point = dict(zip(names, values, strict=True))
        inner = scope.child(point)
        try:
            if all(truth(condition, inner) for condition in relevant):
                points.append(point)
        except (Misfit, Unread) as error:
            raise VerificationError(f"{label}: a condition cannot be evaluated: {error}") from error
    if not points:
        raise VerificationError(f"{label}: the conditions hold nowhere under this reading")
    return points


def _is_index(text: str, part: Node, scope: Scope) -> bool:
    """A list may also be an array of functions, which is no index."""
    value = scope.values.get(text)
    if not isinstance(value, list):
        return True
    return not any(
        isinstance(node, Index | Apply)
        and (node.base if isinstance(node, Index) else node.function) == Name(text)
        for _, node in nodes_of(part)
    )


# ------------------------------------------------------------------------------------- holding


def _side(
    claim: _Claim, which: int, node: Node, scope: Scope, *, keep: bool, partial: bool = False
) -> list[Tensor | None]:
    """Evaluate a side at all points. A wrong version may have no value at some of them."""
    key = (which, f"{scope.route}{scope.fold}")
    if keep and key in claim.values:
        made: list[Tensor | None] = claim.values[key]
        return made
    found: list[Tensor | None] = []
    scope.root.touched = False
    for point in claim.points:
        try:
            value = tensor(evaluate(node, scope.child(point))).detach()
            if bool(value.isnan().any()):
                raise Misfit("a side is not a number")
            if bool(value.isinf().any()):
                claim.infinite |= not partial
                if not claim.infinite:  # no evidence, unless the claim itself is about infinity
                    raise Misfit("a side is infinite")
            found.append(value)
        except _NO_VALUE:
            if not partial:
                raise
            found.append(None)
    if keep:
        claim.values[key] = found
        claim.values[which, "drawn"] = scope.root.touched
    return found


def _distance(
    values: Sequence[Tensor | None], reference: Sequence[Tensor | None]
) -> tuple[float, int]:
    """Return the relative distance, and at how many points there is something to compare."""
    gap, scale, count = 0.0, 0.0, 0
    for a, b in zip(values, reference, strict=True):
        if a is None or b is None:
            continue
        if a.shape != b.shape and 1 not in (a.numel(), b.numel()):
            return math.inf, -1
        count += 1
        same = a == b  # so that infinities may agree
        gap = max(gap, float((a - b).abs().masked_fill(same, 0.0).max()))
        finite = [x[x.isfinite()].abs() for x in (a, b)]
        scale = max([scale, *(float(x.max()) for x in finite if x.numel())])
    if not math.isfinite(gap):
        return math.inf, count
    # What is zero on both sides is compared with one.
    return gap / (scale if scale > 1e-9 else 1.0), count


def _scope(sheet: _Sheet, route: str, fold: int | None = None) -> Scope:
    scope = sheet.scope.child({})
    if route != scope.route or fold != scope.fold:
        scope.cache = {}
        scope.route, scope.fold = route, fold
    return scope


class _Fate(Enum):
    """What becomes of a wrong version."""

    REJECTED = "its numbers differ from the formula's"
    ACCEPTED = "its numbers agree everywhere"
    IDLE = "its numbers agree where it has any, and it lacks some that the formula has"
    NONE = "it has no value at all"


@dataclass
class _Verdict:
    """How a relation fares at all points of a reading."""

    error: float = 0.0
    gaps: dict[int, tuple[float, float]] = field(default_factory=dict)  # of each bound, extremes
    off: float = 0.0
    evaluable: bool = True
    compared: int = 0
    missing: bool = False  # whether a wrong version lacks a value where the formula has one

    @property
    def least(self) -> float:
        return min((low for low, _ in self.gaps.values()), default=math.inf)


def _join(one: dict[int, tuple[float, float]], other: dict[int, tuple[float, float]]) -> None:
    for k, (low, high) in other.items():
        before = one.get(k, (math.inf, -math.inf))
        one[k] = min(before[0], low), max(before[1], high)


def _verdict(
    settings: _Settings,
    claim: _Claim,
    signs: Sequence[str],
    sides: Sequence[Node],
    scope: Scope,
    sheet: _Sheet,
    *,
    changed: int | None = None,
    fresh: bool = False,
    partial: bool | None = None,
) -> _Verdict:
    verdict = _Verdict()
    partial = (fresh or changed is not None) if partial is None else partial
    values = [
        _side(claim, i, side, scope, keep=i != changed and not fresh, partial=partial)
        for i, side in enumerate(sides)
    ]
    verdict.missing = any(value is None for side in values for value in side)
    if changed is not None and all(v is None for v in values[changed]):
        return replace(verdict, evaluable=False)
    for k, ((a, b), sign) in enumerate(zip(pairwise(values), signs, strict=True)):
        if sign in ("=", r"\equiv", r"\leftarrow", r"\approx"):
            distance, count = _distance(a, b)
            if count == -1:
                return replace(verdict, evaluable=False, error=math.inf)
            verdict.compared += count
            if sign == r"\approx":
                if settings.approx is None:
                    raise VerificationError(
                        f"{settings.label}: say with approx= how near \\approx is"
                    )
                distance *= settings.tol / settings.approx
            verdict.error = max(verdict.error, distance)
        elif sign == r"\propto":
            error, count = _proportion(a, b)
            verdict.error, verdict.compared = max(verdict.error, error), verdict.compared + count
        elif sign == r"\ne":
            distances = [
                _distance([x], [y])[0] for x, y in zip(a, b, strict=True) if None not in (x, y)
            ]
            verdict.compared += len(distances)
            if any(d <= settings.tol for d in distances):
                verdict.error = math.inf
        elif sign in _BOUNDS:
            for x, y in zip(a, b, strict=True):
                if x is None or y is None:
                    continue
                verdict.compared += 1
                gap = ((y - x) * _BOUNDS[sign]).masked_fill(x == y, 0.0)
                if Number("0") in (sides[k], sides[k + 1]):  # a sign, which nothing comes near
                    if bool((gap < 0).any()) or (sign in ("<", ">") and bool((gap == 0).any())):
                        verdict.error = math.inf
                    continue
                scale = torch.maximum(x.abs(), y.abs()).clamp(min=1e-300)
                relative = torch.where(gap == 0, gap, gap / scale)
                _join(verdict.gaps, {k: (float(relative.min()), float(relative.max()))})
                if sign in ("<", ">") and bool((gap <= 0).any()):
                    verdict.error = math.inf
        else:
            raise VerificationError(f"{settings.label}: the sign {sign} cannot be checked")
    if verdict.least < -1e-12:
        verdict.error = math.inf
    return verdict


def _proportion(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> tuple[float, int]:
    """Compare up to one factor for all points and entries."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    left = torch.cat([x.reshape(-1) for x, _ in pairs])
    right = torch.cat([y.expand(x.shape).reshape(-1) for x, y in pairs])
    if len(left) < 2:
        raise Misfit("one number is proportional to every other; give a range of an index")
    left, right = left / left.norm(), right / right.norm()
    return float((left - right).abs().max() / right.abs().max()), len(left)


def _standard_errors(
    settings: _Settings,
    claim: _Claim,
    signs: Sequence[str],
    sides: Sequence[Node],
    sheet: _Sheet,
    *,
    changed: int | None = None,
) -> _Verdict:
    """Judge a relation of means over samples by how far they may be off, by the jackknife."""
    scopes = [_scope(sheet, "autograd", k) for k in range(FOLDS)]
    whole = _scope(sheet, "autograd")
    verdict = _Verdict()

    def values(scope: Scope, i: int) -> list[Tensor | None]:
        return _side(claim, i, sides[i], scope, keep=i != changed, partial=changed is not None)

    means, drawn = [], []
    for i in range(len(sides)):
        means.append(values(whole, i))
        drawn.append(sheet.scope.touched if i == changed else claim.values[i, "drawn"])

    def part(scope: Scope, i: int) -> list[Tensor | None]:
        return values(scope, i) if drawn[i] else means[i]  # what has no samples has no error

    for i, sign in enumerate(signs):
        full = means[i], means[i + 1]
        for p in range(len(claim.points)):
            a, b = full[0][p], full[1][p]
            if a is None or b is None:
                verdict.evaluable &= changed is None
                continue
            if a.shape != b.shape and 1 not in (a.numel(), b.numel()):
                return replace(verdict, evaluable=False)
            verdict.compared += 1
            parts = []
            for scope in scopes:
                x, y = part(scope, i)[p], part(scope, i + 1)[p]
                assert x is not None
                assert y is not None
                parts.append(y - x)
            spread = torch.stack(parts)
            error = ((FOLDS - 1) * ((spread - spread.mean(0)) ** 2).mean(0)).sqrt()
            gap = b - a
            floor = 1e-12 * (a.abs() + b.abs())
            deviation = gap / torch.maximum(error, floor).clamp(min=1e-300)
            if sign in _BOUNDS:
                deviation = (-deviation * _BOUNDS[sign]).clamp(min=0)
            verdict.off = max(verdict.off, float(deviation.abs().max()))
    return verdict


def _confirm(
    settings: _Settings, sheets: Sequence[_Sheet], tol: float | None
) -> tuple[list[tuple[str, float]], str, str]:
    """Require that every claim holds under every reading; say by which routes."""
    label = settings.label
    routes: dict[str, float] = {}
    gaps: dict[tuple[int, int], tuple[float, float]] = {}
    off = 0.0
    for sheet in sheets:
        sheet.scope.made_by = {} if sheet is sheets[0] else None  # once tells it
        for c, claim in enumerate(sheet.claims):
            relation = claim.relation
            try:
                if claim.arrow is not None:
                    _equivalence(settings, claim, sheet)
                    continue
                verdict = _verdict(
                    settings,
                    claim,
                    relation.signs,
                    relation.sides,
                    _scope(sheet, "autograd"),
                    sheet,
                )
                if sheet.scope.made_by is not None:
                    _require_independent_sides(label, claim, sheet)
            except Unread as error:
                raise VerificationError(
                    f"{label}: these names on the page lack a reading: {error}"
                ) from error
            except Misfit as error:
                raise VerificationError(
                    f"{label}: the formula cannot be evaluated: {error}"
                ) from error
            if sheet.scope.monte_carlo:
                verdict = _standard_errors(settings, claim, relation.signs, relation.sides, sheet)
                if not verdict.off <= settings.z:
                    raise VerificationError(
                        f"{label}: {to_tex(relation)} is {verdict.off:.1f} standard errors off, "
                        f"more than {settings.z:g}"
                    )
                off = max(off, verdict.off)
                continue
            if not verdict.error <= settings.tol:
                raise VerificationError(_refusal(settings, claim, sheet, verdict))
            for k, extremes in verdict.gaps.items():
                before = gaps.get((c, k), (math.inf, -math.inf))
                gaps[c, k] = min(before[0], extremes[0]), max(before[1], extremes[1])
            routes["evaluation"] = max(routes.get("evaluation", 0.0), verdict.error)
            if sheet.scope.differentiated:
                second = _verdict(
                    settings,
                    claim,
                    relation.signs,
                    relation.sides,
                    _scope(sheet, "differences"),
                    sheet,
                )
                allowed = tol if tol is not None and tol > _DIFFERENCES else _DIFFERENCES
                if not (second.error <= allowed or (second.gaps and second.least > -allowed)):
                    raise VerificationError(
                        f"{label}: by finite differences {to_tex(relation)} is off by "
                        f"{second.error:.1e} (relative), more than {allowed:.0e}"
                    )
                by_steps = second.error if math.isfinite(second.error) else 0.0
                routes["finite differences"] = max(routes.get("finite differences", 0.0), by_steps)
                symbolic = _by_symbols(settings, claim, sheet)
                if symbolic is not None:
                    routes["SymPy"] = max(routes.get("SymPy", 0.0), symbolic)
        sheet.scope.made_by = None
    if any(sheet.scope.monte_carlo for sheet in sheets):
        return [("Monte Carlo", off)], "expectation", "standard errors"
    for gap, widest in gaps.values():
        if gap > settings.slack:
            raise VerificationError(
                f"{label}: the bound is flat under these readings, none comes closer to equality "
                f"than {gap:.2f} (relative), so a wrong constant would pass. Add an extremal one."
            )
        if widest < 1e-6:
            raise VerificationError(
                f"{label}: both sides are equal under every reading, so the bound turned around "
                "would pass. Add a reading away from equality."
            )
    if gaps:
        count = len(sheets)
        name = f"{count} reading{'s' if count > 1 else ''}"
        return [(name, max(min(low for low, _ in gaps.values()), 0.0))], "bound", "relative gap"
    kind = "equality"
    if any(sheet.scope.took_limit for sheet in sheets):
        kind, routes = "limit", {"Richardson": routes.pop("evaluation"), **routes}
    if any(sheet.scope.differentiated for sheet in sheets):
        kind = "gradient"
        routes = {"autograd": routes.pop("evaluation", 0.0), **routes}
    return list(routes.items()) or [("evaluation", 0.0)], kind, "relative"


def _require_independent_sides(label: str, claim: _Claim, sheet: _Sheet) -> None:
    """Refuse sides that go through one library function, but for names that stand on both.

    In a chain of equations it is enough that each side is tied to the others by independent pairs.
    """
    relation, scope = claim.relation, sheet.scope
    made_by = scope.made_by or {}
    used = [_names_behind(side, scope) for side in relation.sides]

    def shared(i: int, j: int) -> set[str]:
        one, other = (
            {
                code: who
                for name in names
                for code, who in made_by.get(name, {}).items()
                if in_library(code) and not who.startswith(_CASTS)
            }
            for names in (used[i] - used[j], used[j] - used[i])
        )
        return {one[code] for code in one.keys() & other.keys()}

    start = 0
    for k, sign in enumerate([*relation.signs, ""]):
        equal = range(start, k + 1)  # the sides of a chain of equations
        reached = [start]
        for i in reached:
            reached += [j for j in equal if j not in reached and not shared(i, j)]
        alike = {name for j in equal if j not in reached for i in reached for name in shared(i, j)}
        if sign == "=":
            continue
        if sign:
            alike |= shared(k, k + 1)
        if alike:
            raise VerificationError(
                f"{label}: two sides of {to_tex(relation)} both go through "
                f"{', '.join(sorted(alike)[:4])}, so a mistake there would not show. Write one "
                "reading without it, in plain PyTorch or from another library."
            )
        start = k + 1


def _names_behind(node: Node, scope: Scope) -> set[str]:
    """Return the names on which a side depends, also by way of readings and definitions."""
    found: set[str] = set()
    waiting = list(free_names(node))
    while waiting:
        text = waiting.pop()
        if text in found:
            continue
        found.add(text)
        value = scope.values.get(text)
        if callable(value):
            waiting += map(scope.text_of_parameter, parameters(value))
        elif isinstance(value, Adjoint) and scope.loss is not None:
            waiting += [value.of, *map(scope.text_of_parameter, parameters(scope.loss))]
        elif text in scope.definitions:
            waiting += free_names(scope.definitions[text].body)
    return found


def _by_symbols(settings: _Settings, claim: _Claim, sheet: _Sheet) -> float | None:
    """Confirm derivatives by SymPy, if the page displays what is differentiated."""
    relation = claim.relation
    if not any(isinstance(node, Derivative) for _, node in nodes_of(relation)):
        return None
    scope = _scope(sheet, "autograd").with_symbols(by_symbols)
    try:
        verdict = _verdict(
            settings, claim, relation.signs, relation.sides, scope, sheet, fresh=True, partial=False
        )
    except (Opaque, *_NO_VALUE):  # a formula of arrays, or not displayed: the other routes remain
        return None
    if not verdict.error <= settings.tol:
        raise VerificationError(
            f"{settings.label}: by SymPy, from the formula that the page displays for what is "
            f"differentiated, {to_tex(relation)} is off by {verdict.error:.1e} (relative)"
        )
    return verdict.error


def _refusal(settings: _Settings, claim: _Claim, sheet: _Sheet, verdict: _Verdict) -> str:
    label, relation = settings.label, claim.relation
    if not verdict.evaluable:
        shapes = []
        for i, side in enumerate(relation.sides):
            first = _side(claim, i, side, _scope(sheet, "autograd"), keep=True)[0]
            shapes.append(str(tuple(first.shape)) if first is not None else "none")
        return f"{label}: the sides of {to_tex(relation)} have the shapes {', '.join(shapes)}"
    if verdict.least < 0:
        return f"{label}: {to_tex(relation)} is violated, by up to {-verdict.least:.1e} (relative)"
    where = ""
    for i, point in enumerate(claim.points):
        sides = [
            _side(claim, k, side, _scope(sheet, "autograd"), keep=True)[i]
            for k, side in enumerate(relation.sides)
        ]
        if point and _distance([sides[0]], [sides[1]])[0] > settings.tol:
            where = " at " + ", ".join(f"{name} = {value}" for name, value in point.items())
            break
    return (
        f"{label}: the page is wrong or its reading is: the sides of {to_tex(relation)} differ by "
        f"{verdict.error:.1e} (relative){where}, more than {settings.tol:.0e}"
    )


def _equivalence(settings: _Settings, claim: _Claim, sheet: _Sheet) -> None:
    assert claim.arrow is not None
    first, second = (_truths(claim, part, sheet) for part in (claim.relation, claim.arrow))
    if first != second:
        at = claim.points[[a == b for a, b in zip(first, second, strict=True)].index(False)]
        raise VerificationError(f"{settings.label}: one side holds and the other does not, at {at}")
    if len(set(first)) < 2:
        raise VerificationError(
            f"{settings.label}: both sides are {first[0]} everywhere; give a reading under which "
            "each holds somewhere and fails somewhere"
        )


def _truths(claim: _Claim, relation: Relation, sheet: _Sheet) -> list[bool]:
    found = []
    for point in claim.points:
        scope = sheet.scope.child(point)
        holds = True
        for sign, a, b in zip(relation.signs, relation.sides, relation.sides[1:], strict=False):
            if sign in ("=", r"\ne"):
                left, right = tensor(evaluate(a, scope)), tensor(evaluate(b, scope))
                same = _distance([left], [right])[0] <= _EXACT
                holds &= same == (sign == "=")
            else:
                holds &= truth(Relation((sign,), (a, b)), scope)
        found.append(holds)
    return found


# ------------------------------------------------------------------------------------- mutants


def _reject(
    settings: _Settings, sheets: Sequence[_Sheet], equivalent: Mapping[str, str]
) -> list[str]:
    """Make wrong versions and require that each comes out wrong under some reading."""
    rejected: list[str] = []
    survivors: list[str] = []
    idle: list[str] = []
    fruitless: dict[str, bool] = {}  # of each tree, whether no wrong version failed so far
    for tree, name, fares in _candidates(settings, sheets):
        fate = fares()
        unique, count = name, 1
        while unique in rejected or unique in survivors or unique in idle:
            count += 1
            unique = f"{name} [{count}]"
        fruitless[tree] = fruitless.get(tree, True) and fate is not _Fate.REJECTED
        if fate is _Fate.REJECTED:
            rejected.append(unique)
        elif fate is _Fate.IDLE:
            idle.append(unique)
        elif fate is _Fate.ACCEPTED and not _may_be_right(name):
            survivors.append(unique)
    for name, reason in equivalent.items():
        if not reason.strip():
            raise VerificationError(f"{settings.label}: say why {name!r} is right as well")
        if name in survivors:
            survivors.remove(name)
        elif name in rejected:
            raise VerificationError(
                f"{settings.label}: {name!r} is called equivalent, but it is rejected"
            )
        elif name not in idle:
            raise VerificationError(
                f"{settings.label}: {name!r} is called equivalent, but there is no such mutant"
            )
    if survivors:
        raise VerificationError(
            f"{settings.label}: the check accepts wrong versions of the formula: "
            f"{'; '.join(survivors)}. Choose readings at which they differ, or name those that are "
            "right as well in equivalent=, with the reason."
        )
    if len(rejected) < 2:
        raise VerificationError(
            f"{settings.label}: only {len(rejected)} wrong versions can be told from the formula, "
            "so it says too little to be checked"
        )
    for tree, nothing in fruitless.items():
        if nothing:
            raise VerificationError(
                f"{settings.label}: no wrong version of {tree} comes out wrong, so that part is "
                "not checked"
            )
    return rejected


def _may_be_right(name: str) -> bool:
    """Tell what is no mistake in a symmetric function, at a boundary, in a sum over all."""
    return name.startswith(("arguments of", "boundary of")) or " turned by one" in name


def _candidates(
    settings: _Settings, sheets: Sequence[_Sheet]
) -> Iterator[tuple[str, str, Callable[[], _Fate]]]:
    """Yield wrong versions: of which claim or definition, what was done, and how it fares."""
    first = sheets[0]
    for c, claim in enumerate(first.claims):
        relation = claim.relation
        tree = to_tex(relation)
        if claim.arrow is not None:
            for name, fares in _arrow_mutants(settings, sheets, c):
                yield tree, name, fares
            continue
        alike = _alike(first, relation)
        for side in relation.sides:  # y for x in y = f(x) is no slip of the pen
            head = side.base if isinstance(side, Index) else side
            if isinstance(head, Name):
                alike = {one: other for one, other in alike.items() if other != head.text}
        for i, side in enumerate(relation.sides):
            if side == Number("0"):
                continue
            last = i == len(relation.sides) - 1 and Number("0") not in relation.sides
            for name, wrong in mutants_of(side, alike=alike, whole=last):
                sides = (*relation.sides[:i], wrong, *relation.sides[i + 1 :])
                yield tree, name, _trial(settings, sheets, c, relation.signs, sides, i)
        for k, sign in enumerate(relation.signs):
            if sign in _BOUNDS:
                other = {r"\le": r"\ge", r"\ge": r"\le", "<": ">", ">": "<"}[sign]
                signs = (*relation.signs[:k], other, *relation.signs[k + 1 :])
                fares = _trial(settings, sheets, c, signs, relation.sides, None)
                yield tree, f"{other} for {sign}", fares
    for name, made in first.definitions.items():
        alike = _alike(first, made.body)
        for what, wrong in mutants_of(made.body, alike=alike, whole=False):
            changed = Definition(wrong, made.parameters)
            fares = _redefined(settings, sheets, name, changed)
            yield f"the definition of {name}", f"{what} in {name}", fares


def _alike(sheet: _Sheet, node: Node) -> dict[str, str]:
    """Pair names of one shape, so that one can be written for another by mistake."""
    groups: dict[Any, list[str]] = {}
    scope = sheet.scope
    indices = {name for claim in sheet.claims for point in claim.points[:1] for name in point}
    used = [part.text for _, part in nodes_of(node) if isinstance(part, Name)]
    # Names on the page first, then the others of the reading: O for dO is a slip as well.
    keys = {scope.lexicon.key.get(text) for text in used}
    others = [key for key in dict.fromkeys(scope.lexicon.key.values()) if key not in keys]
    spelled = map(scope.spelling, others)
    names = dict.fromkeys([*used, *(text for text in spelled if text in scope.values)])
    for text in names:
        if text in indices:
            if text in used:
                groups.setdefault("index", []).append(text)
            continue
        value = scope.values.get(text)
        if text not in used and not (isinstance(value, Tensor | int | float) or callable(value)):
            continue
        try:
            value = evaluate(Name(text), scope)
        except (Misfit, Unread):
            continue
        if isinstance(value, Tensor | int | float) and text in scope.values:
            shape = tuple(value.shape) if isinstance(value, Tensor) else ()
            groups.setdefault(shape, []).append(text)
    found = {}
    for group in groups.values():
        for one, other in pairwise([*group, group[0]]):
            if one in used and one != other:
                found[one] = other
    return found


def _trial(
    settings: _Settings,
    sheets: Sequence[_Sheet],
    c: int,
    signs: Sequence[str],
    sides: Sequence[Node],
    changed: int | None,
) -> Callable[[], _Fate]:
    def fares() -> _Fate:
        evaluable = missing = False
        gaps: dict[int, tuple[float, float]] = {}
        for sheet in sheets:
            claim = sheet.claims[c]
            try:
                if sheet.scope.monte_carlo:
                    verdict = _standard_errors(
                        settings, claim, signs, sides, sheet, changed=changed
                    )
                    if verdict.evaluable and verdict.off > settings.z:
                        return _Fate.REJECTED
                    evaluable |= verdict.evaluable
                    missing |= not verdict.evaluable
                    continue
                verdict = _verdict(
                    settings, claim, signs, sides, _scope(sheet, "autograd"), sheet, changed=changed
                )
            except _NO_VALUE:
                missing = True
                continue
            missing |= verdict.missing
            if not verdict.evaluable or not verdict.compared:
                missing = True
                continue
            evaluable = True
            _join(gaps, verdict.gaps)
            if not verdict.error <= settings.tol:
                return _Fate.REJECTED
        return _fate(settings, gaps, evaluable=evaluable, missing=missing)

    return fares


def _fate(
    settings: _Settings,
    gaps: Mapping[Any, tuple[float, float]],
    *,
    evaluable: bool,
    missing: bool,
) -> _Fate:
    """Judge a wrong version that agrees with the formula wherever it has a value."""
    if not evaluable:
        return _Fate.NONE
    if missing:  # it is told from the formula, but by no number
        return _Fate.IDLE
    # A bound that holds, but that no reading comes near, says less than the page.
    flat = any(low > settings.slack for low, _ in gaps.values())
    return _Fate.REJECTED if flat else _Fate.ACCEPTED


def _redefined(
    settings: _Settings, sheets: Sequence[_Sheet], name: str, wrong: Definition
) -> Callable[[], _Fate]:
    def fares() -> _Fate:
        evaluable = missing = False
        gaps: dict[tuple[int, int], tuple[float, float]] = {}
        for sheet in sheets:
            scope = _scope(sheet, "autograd")
            scope.definitions = {**scope.definitions, name: wrong}
            scope.cache, scope.drawn = {}, {}
            for c, claim in enumerate(sheet.claims):
                if claim.arrow is not None:
                    continue
                try:
                    verdict = _verdict(
                        settings,
                        claim,
                        claim.relation.signs,
                        claim.relation.sides,
                        scope,
                        sheet,
                        fresh=True,
                    )
                except _NO_VALUE:
                    missing = True
                    continue
                missing |= verdict.missing
                if not verdict.evaluable or not verdict.compared:
                    missing = True
                    continue
                evaluable = True
                for k, extremes in verdict.gaps.items():
                    low, high = gaps.get((c, k), (math.inf, -math.inf))
                    gaps[c, k] = min(low, extremes[0]), max(high, extremes[1])
                if not verdict.error <= settings.tol:
                    return _Fate.REJECTED
        return _fate(settings, gaps, evaluable=evaluable, missing=missing)

    return fares


def _arrow_mutants(
    settings: _Settings, sheets: Sequence[_Sheet], c: int
) -> Iterator[tuple[str, Callable[[], _Fate]]]:
    claim = sheets[0].claims[c]
    assert claim.arrow is not None
    for relation in (claim.relation, claim.arrow):
        changes: list[tuple[str, Relation]] = []
        other = {r"\le": "<", "<": r"\le", r"\ge": ">", ">": r"\ge", "=": r"\ne", r"\ne": "="}
        turned = {r"\le": r"\ge", r"\ge": r"\le", "<": ">", ">": "<"}
        for k, sign in enumerate(relation.signs):
            for table in (other, turned):
                if sign in table:
                    signs = (*relation.signs[:k], table[sign], *relation.signs[k + 1 :])
                    changes.append((f"{table[sign]} for {sign}", replace(relation, signs=signs)))
        for i, side in enumerate(relation.sides):
            if side == Number("0"):
                continue
            for name, wrong in mutants_of(side, alike=_alike(sheets[0], side), whole=False):
                sides = (*relation.sides[:i], wrong, *relation.sides[i + 1 :])
                changes.append((name, replace(relation, sides=sides)))
        for name, wrong_relation in changes:
            yield name, _arrow_trial(sheets, c, wrong_relation)


def _arrow_trial(sheets: Sequence[_Sheet], c: int, wrong: Relation) -> Callable[[], _Fate]:
    def fares() -> _Fate:
        evaluable = missing = False
        for sheet in sheets:
            claim = sheet.claims[c]
            assert claim.arrow is not None
            try:
                one = _truths(claim, wrong, sheet)
                # Which side does not matter: under these readings both hold at the same points.
                two = _truths(claim, claim.relation, sheet)
            except _NO_VALUE:
                missing = True
                continue
            evaluable = True
            if one != two:
                return _Fate.REJECTED
        if not evaluable:
            return _Fate.NONE
        return _Fate.IDLE if missing else _Fate.ACCEPTED

    return fares
