"""The value of a tree under a reading."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor

from companion.verify._independence import watch
from companion.verify.tex import _arithmetic as arithmetic
from companion.verify.tex._arithmetic import Misfit, number, tensor
from companion.verify.tex._lexicon import forms_of, text_of
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
    Path,
    Postfix,
    Power,
    Product,
    Relation,
    Root,
    Slice,
    Transpose,
    Tuple,
    Turned,
    nodes_of,
)
from companion.verify.tex._reading import (
    Adjoint,
    Definition,
    Law,
    Opaque,
    Scope,
    Table,
    Unread,
    parameters,
)

__all__ = [
    "bare_indices",
    "bound_at",
    "evaluate",
    "free_names",
    "index_range",
    "sets_of",
    "terms_of",
    "truth",
]

_MOST_TERMS = 10_000
KRONECKER = r"\delta"
#: Into how many parts samples are divided, to estimate the error of what is made of their means.
FOLDS = 50


def evaluate(node: Node, scope: Scope) -> Any:
    """Return the value of a tree: a number or a tensor.

    Raises:
        Unread: If names lack a reading.
        Misfit: If an operation does not fit its operands.
    """
    rule = _RULES.get(type(node))
    if rule is None:
        raise Misfit("a relation, or a part of an index, stands where a value is needed")
    return rule(node, scope)


# -------------------------------------------------------------------------------------- names


def _number(node: Number, scope: Scope) -> Any:
    return float(node.text) if "." in node.text else int(node.text)


def lookup(text: str, scope: Scope) -> Any:
    """Return what a name stands for, before a function of other names is called."""
    for place in (scope.bound, scope.values, scope.definitions):
        if text in place:
            return place[text]
    if text in arithmetic.CONSTANTS:
        return arithmetic.CONSTANTS[text]
    raise Unread([text])


def _name(node: Name, scope: Scope) -> Any:
    value = lookup(node.text, scope)
    if isinstance(value, Definition) and not value.parameters:
        return evaluate(value.body, scope)
    if isinstance(value, Adjoint):
        return _cached(("adjoint", value.of, scope.route), scope, lambda: _adjoint(value.of, scope))
    if isinstance(value, Table):
        return value.values
    if callable(value):
        return _cached(node.text, scope, lambda: _call_by_names(node.text, value, scope))
    return value


def _cached(key: Any, scope: Scope, make: Callable[[], Any]) -> Any:
    if key not in scope.cache:
        scope.cache[key] = make()
    return scope.cache[key]


def _call_by_names(text: str, function: Callable[..., Any], scope: Scope) -> Any:
    """Call a function of other names on the page: its parameters are those names."""
    if scope.depth > 50:
        raise Misfit(f"{text} depends on itself")
    deeper = scope.child({})
    deeper.depth = scope.depth + 1
    arguments = {}
    for parameter in parameters(function):
        on_page = scope.text_of_parameter(parameter)
        value = _name(Name(on_page), deeper)
        if isinstance(value, range | list | tuple | set | frozenset) and not scope.is_set(on_page):
            raise Misfit(
                f"{text} needs one value of {parameter}, which runs; a set is one value where a "
                r"sum binds it or it stands right of \in"
            )
        arguments[parameter] = value
    if not arguments:
        raise Misfit(f"{text} is a function, and stands without its arguments")
    try:
        return _checked(_noted(text, function, arguments, scope))
    except (Misfit, Unread):
        raise
    except Exception as error:  # the reading's own, at indices that a wrong version asks for
        raise Misfit(f"{text}: {type(error).__name__}: {error}") from error


def _noted(
    text: str, function: Callable[..., Any], arguments: Mapping[str, Any], scope: Scope
) -> Any:
    """Call a function of the reading, the first time with a note of what it goes through."""
    made_by = scope.root.made_by
    if made_by is None or text in made_by:
        return function(**arguments)
    watched = watch(function, arguments, models_are_open=True)
    made_by[text] = watched.made_by
    return watched.value


def _checked(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, bool | int | float | complex):
        return value
    raise Misfit(f"a function returned {type(value).__name__}, not a number or a tensor")


def _adjoint(of: str, scope: Scope) -> Tensor:
    assert scope.loss is not None
    if scope.by_symbols is not None:
        raise Opaque
    text = scope.text_of_parameter(of)
    scope.root.differentiated = True

    def value(x: Tensor) -> Tensor:
        inner = scope.child({text: x})
        return tensor(_call_by_names("the loss", scope.loss, inner))  # type: ignore[arg-type]

    return _jacobian(value, tensor(_name(Name(text), scope)), scope)


# ------------------------------------------------------------------------------------ indices


def _index(node: Index, scope: Scope) -> Any:
    base = node.base
    if base == Name(KRONECKER) and KRONECKER not in scope.values and len(node.at) == 2:
        one, other = (evaluate(index, scope) for index in node.at)
        return int(_compare("=", one, other))
    value = lookup(base.text, scope) if isinstance(base, Name) else evaluate(base, scope)
    if isinstance(value, Definition) and value.parameters:
        return _defined(value, [_at(one, 0, 0, scope) for one in node.at], scope)
    if _takes_indices(value, node.at, scope):
        return call(value, [_at(one, 0, 0, scope) for one in node.at])
    if isinstance(base, Name) and not isinstance(value, list | tuple):
        value = _name(base, scope)
    name = base.text if isinstance(base, Name) else ""
    return _entry(value, name, node.at, scope)


def _takes_indices(value: Any, at: Sequence[Node], scope: Scope) -> bool:
    """Tell a function of indices, as R_{t-j} of a number, from a quantity that is an array.

    The parameters of a quantity are names on the page; those of a function of indices are not, or
    they run.
    """
    if not callable(value) or isinstance(value, Table):
        return False
    names = [scope.text_of_parameter(name) for name in parameters(value)]
    if len(names) != len(at) or any(isinstance(one, Slice) for one in at):
        return False
    for text in names:
        if text in scope.definitions or isinstance(scope.bound.get(text), Tensor):
            return False
        given = scope.values.get(text)
        if given is not None and not isinstance(given, range | list | tuple | set | frozenset):
            return False
    return True


def _entry(value: Any, name: str, at: Sequence[Node], scope: Scope) -> Any:
    origin = scope.origin(name)
    if isinstance(value, list | tuple):
        (only,) = at
        return value[_at(only, len(value), origin, scope)]
    if not isinstance(value, Tensor):
        raise Misfit(f"{name or 'a number'} has no entries")
    only_digits = len(at) == 1 and isinstance(at[0], Number)
    if only_digits and value.ndim == len(at[0].text) > 1:  # type: ignore[attr-defined]
        at = [Number(digit) for digit in at[0].text]  # type: ignore[attr-defined]
    if len(at) > value.ndim:
        raise Misfit(f"{name} has {value.ndim} axes, but {len(at)} indices")
    axis = 0
    for one in at:
        size = value.shape[axis]
        if isinstance(one, Slice):
            if one.relation == r"\cdot":
                value = value.sum(axis)
                continue
            value = value.narrow(axis, *_part(one, size, origin, scope))
            axis += 1
        else:
            value = value.select(axis, _at(one, size, origin, scope))
    if value.ndim == 0 and not value.is_floating_point() and not value.is_complex():
        return int(value)
    return value


def _turned(node: Turned, scope: Scope) -> Any:
    raise Misfit("only the index of an array can be turned by one")


def _at(node: Node, size: int, origin: int, scope: Scope) -> int:
    turned = isinstance(node, Turned)
    place = number(evaluate(node.index if isinstance(node, Turned) else node, scope)) - origin
    if turned and size:
        place = (place + 1) % size
    if size and not 0 <= place < size:
        raise Misfit(f"the index {place + origin} is outside of {origin} to {origin + size - 1}")
    return place


def _part(one: Slice, size: int, origin: int, scope: Scope) -> tuple[int, int]:
    if one.relation == ":" or one.bound is None:
        return 0, size
    bound = number(evaluate(one.bound, scope)) - origin
    low = number(evaluate(one.low, scope)) - origin if one.low is not None else 0
    start, stop = {
        "<": (0, bound),
        r"\le": (0, bound + 1),
        ">": (bound + 1, size),
        r"\ge": (bound, size),
        "..": (low, bound + 1),
    }[one.relation]
    if not 0 <= start <= stop <= size:
        raise Misfit("a part outside of the array")
    return start, stop - start


def index_range(text: str, node: Node, scope: Scope) -> list[Any] | None:
    """Return the values of an index: those of the reading, or of the arrays that it indexes."""
    given = scope.values.get(text)
    if isinstance(given, range | list | tuple | set | frozenset):
        return list(given)
    sizes: set[tuple[int, int]] = set()
    for _, part in nodes_of(node):
        if isinstance(part, Index):
            base, at = part.base, part.at
        elif isinstance(part, Apply):
            base, at = part.function, part.arguments
        else:
            continue
        places = [i for i, one in enumerate(at) if _is_bare(one, text)]
        if not places or not isinstance(base, Name | Index):
            continue
        try:
            value = lookup(base.text, scope) if isinstance(base, Name) else evaluate(base, scope)
            if isinstance(part, Apply) and not isinstance(value, Table):
                continue
            if isinstance(base, Name) and not isinstance(value, list | tuple | Definition):
                value = _name(base, scope)
        except (Unread, Misfit):
            continue
        name = base.text if isinstance(base, Name) else ""
        for place in places:
            if isinstance(value, list | tuple):
                sizes.add((scope.origin(name), len(value)))
            elif isinstance(value, Tensor) and place < value.ndim:
                sizes.add((scope.origin(name), value.shape[place]))
    if not sizes:
        return None
    if len(sizes) > 1:
        raise Misfit(
            f"the index {text} runs over arrays of different lengths; give its range, such as "
            f"range(1, {max(size for _, size in sizes) + 1})"
        )
    ((origin, size),) = sizes
    return list(range(origin, origin + size))


def _is_bare(node: Node, text: str) -> bool:
    return isinstance(node.index if isinstance(node, Turned) else node, Name) and (
        (node.index if isinstance(node, Turned) else node).text == text  # type: ignore[attr-defined]
    )


def bare_indices(node: Node) -> set[str]:
    """Return the names that stand alone as an index somewhere in a tree."""
    found = set()
    for _, part in nodes_of(node):
        places = part.at if isinstance(part, Index) else ()
        if isinstance(part, Apply):
            places = part.arguments
        for one in places:
            one = one.index if isinstance(one, Turned) else one
            if isinstance(one, Name):
                found.add(one.text)
    return found


def free_names(node: Node, bound: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield the names that a tree does not bind itself."""
    if isinstance(node, Name):
        if node.text not in bound:
            yield node.text
        return
    if isinstance(node, BigOp):
        bound = bound | {name.text for name in node.names}
    elif isinstance(node, Limit | At):
        if isinstance(node, Limit | At) and isinstance(node, At):
            yield from free_names(node.value, bound)
        bound = bound | {node.name.text}
    for item in node.__dataclass_fields__:
        yield from _free_in(getattr(node, item), bound)


def _free_in(value: Any, bound: frozenset[str]) -> Iterator[str]:
    if isinstance(value, Node):
        yield from free_names(value, bound)
    elif isinstance(value, tuple):
        for one in value:
            yield from _free_in(one, bound)


def bound_at(node: Node, path: Path) -> set[str]:
    """Return the names that run, or are set, around the place of a tree to which a path leads."""
    found: set[str] = set()
    for place, part in nodes_of(node):
        if len(place) < len(path) and path[: len(place)] == place:
            if isinstance(part, BigOp):
                found |= {name.text for name in part.names}
            elif isinstance(part, Limit | At):
                found.add(part.name.text)
    return found


def sets_of(node: Node, scope: Scope) -> set[str]:
    r"""Return the names that are sets, and no values of an index: they stand beside an \in.

    What has sets as its elements is no such set. It runs over them.
    """
    found = set()
    for _, part in nodes_of(node):
        if not isinstance(part, Relation):
            continue
        for sign, left, right in zip(part.signs, part.sides, part.sides[1:], strict=False):
            holder = {r"\in": right, r"\notin": right, r"\not\ni": left}.get(sign)
            if isinstance(holder, Name):
                value = scope.values.get(holder.text)
                if isinstance(value, range | list | tuple | set | frozenset) and not any(
                    isinstance(one, range | list | set | frozenset | Tensor) for one in value
                ):
                    found.add(holder.text)
    return found


# --------------------------------------------------------------------------------- arithmetic


def _negative(node: Negative, scope: Scope) -> Any:
    return -_value(node.body, scope)


def _value(node: Node, scope: Scope) -> Any:
    value = evaluate(node, scope)
    if isinstance(value, Tensor | bool | int | float | complex):
        return value
    raise Misfit("a set, a range or a function is no number")


def _add(node: Add, scope: Scope) -> Any:
    total = _value(node.terms[0], scope)
    for term in node.terms[1:]:
        total = arithmetic.plus(total, _value(term, scope))
    return total


def _product(node: Product, scope: Scope) -> Any:
    total = _value(node.factors[0], scope)
    for factor in node.factors[1:]:
        total = arithmetic.times(total, _value(factor, scope))
    return total


def _binary(node: Binary, scope: Scope) -> Any:
    left, right = _value(node.left, scope), _value(node.right, scope)
    if node.sign == r"\cdot":
        return arithmetic.dot(left, right)
    if node.sign == r"\odot":
        return arithmetic.entrywise(left, right)
    if node.sign == "/":
        return arithmetic.divide(left, right)
    if node.sign == r"\times":
        return arithmetic.times(left, right)
    raise Misfit(f"the sign {node.sign} has no value")


def _fraction(node: Fraction, scope: Scope) -> Any:
    return arithmetic.divide(_value(node.top, scope), _value(node.bottom, scope))


def _power(node: Power, scope: Scope) -> Any:
    if isinstance(node.base, Name) and node.base.text == "e" and "e" not in scope.values:
        exponent = tensor(_value(node.exponent, scope))
        if exponent.ndim:
            raise Misfit("an array is no exponent; write softmax, or exp by entries")
        return torch.exp(exponent)
    if isinstance(node.base, Name):
        value = scope.values.get(node.base.text)
        if node.base.text in arithmetic.FUNCTIONS or isinstance(value, Table):
            raise Misfit("a power of a function")
    return arithmetic.power(_value(node.base, scope), _value(node.exponent, scope))


def _transpose(node: Transpose, scope: Scope) -> Any:
    return arithmetic.transpose(_value(node.base, scope))


def _postfix(node: Postfix, scope: Scope) -> Any:
    value = tensor(_value(node.base, scope))
    if node.sign == "+" and value.ndim == 2:
        return torch.linalg.pinv(value)
    raise Misfit(f"the upper sign {node.sign} has no value here")


def _root(node: Root, scope: Scope) -> Any:
    degree = _value(node.degree, scope) if node.degree is not None else 2
    return tensor(_value(node.body, scope)) ** (1 / degree)


def _factorial(node: Factorial, scope: Scope) -> Any:
    n = number(_value(node.body, scope))
    if n < 0:
        raise Misfit("a factorial of a negative number")
    return math.factorial(n)


def _binomial(node: Binomial, scope: Scope) -> Any:
    top, bottom = (number(_value(part, scope)) for part in (node.top, node.bottom))
    if top < 0 or bottom < 0:
        raise Misfit("a binomial coefficient of negative numbers")
    return math.comb(top, bottom)


def _matrix(node: Matrix, scope: Scope) -> Any:
    rows = [[tensor(_value(entry, scope)) for entry in row] for row in node.rows]
    if all(entry.ndim == 0 for row in rows for entry in row):
        return torch.stack([torch.stack(row) for row in rows])
    blocks = []
    for row in rows:
        wide = [entry[None] if entry.ndim == 1 else entry for entry in row]
        if any(entry.ndim != 2 or entry.shape[0] != wide[0].shape[0] for entry in wide):
            raise Misfit("blocks of different heights")
        blocks.append(torch.cat(wide, 1))
    if any(block.shape[1] != blocks[0].shape[1] for block in blocks):
        raise Misfit("blocks of different widths")
    return torch.cat(blocks)


def _tuple(node: Tuple, scope: Scope) -> Any:
    items = [tensor(_value(item, scope)) for item in node.items]
    if node.style == "[":
        items = [item[None] if item.ndim == 0 else item for item in items]
        if len({item.shape[:-1] for item in items}) != 1:
            raise Misfit("what is joined differs in its rows")
        return torch.cat(items, -1)
    if len({item.shape for item in items}) != 1:
        raise Misfit("what stands in parentheses differs in shape")
    return torch.stack(items)


def _cases(node: Cases, scope: Scope) -> Any:
    for value, condition in zip(node.values, node.conditions, strict=True):
        if condition is None or truth(condition, scope):
            return _value(value, scope)
    raise Misfit("no case holds")


def _bars(node: Bars, scope: Scope) -> Any:
    if node.sort == "indicator":
        return int(truth(node.body[0], scope))
    if node.sort == "inner":
        a, b = (tensor(_value(part, scope)) for part in node.body)
        if a.shape != b.shape:
            raise Misfit(f"an inner product of shapes {tuple(a.shape)} and {tuple(b.shape)}")
        return (a * b).sum()
    value = evaluate(node.body[0], scope)
    if node.sort == "abs":
        if isinstance(value, range | list | tuple | set | frozenset | str):
            return len(value)
        if not isinstance(value, Tensor):
            return abs(value)
        return value.abs()
    if node.sort == "norm":
        return arithmetic.norm(value, node.kind)
    if node.sort == "mean":
        return tensor(value).mean()
    if isinstance(value, int):
        return value
    rounding = {"floor": torch.floor, "ceil": torch.ceil, "round": torch.round}
    # A quotient or a logarithm may miss its integer by rounding, and its half as well.
    x = tensor(value)
    half = (2 * x).round() / 2
    near = (x - half).abs() <= 1e-9 * x.abs().clamp(min=1.0)
    return rounding[node.sort](torch.where(near, half, x))


# ---------------------------------------------------------------------------------- functions


def _defined(value: Definition, arguments: Sequence[Any], scope: Scope) -> Any:
    if len(arguments) != len(value.parameters):
        raise Misfit("a function of the page has another number of arguments")
    return evaluate(value.body, scope.child(dict(zip(value.parameters, arguments, strict=True))))


def _apply(node: Apply, scope: Scope) -> Any:
    function = node.function
    if isinstance(function, Derivative):
        return _prime(function, node.arguments, scope)
    if isinstance(function, Index) and function.base == Name(r"\log"):
        (argument,) = node.arguments
        base = _value(function.at[0], scope)
        return arithmetic.FUNCTIONS[r"\log"](_value(argument, scope), base)
    if isinstance(function, Index) and isinstance(function.base, Name):
        made = lookup(function.base.text, scope)
        if len(node.arguments) == 1 and _takes_indices(made, function.at, scope):
            # The indices are all that it takes, so what follows in parentheses is a factor.
            return arithmetic.times(_index(function, scope), _value(node.arguments[0], scope))
    value = _function(function, scope)
    if isinstance(value, Table):
        return _entry(value.values, _text(function), node.arguments, scope)
    arguments = [evaluate(argument, scope) for argument in node.arguments]
    if isinstance(value, Definition):
        return _defined(value, arguments, scope)
    name = function.base if isinstance(function, Index) else function

    def apply(*given: Any) -> Any:
        return _noted(_text(name), partial(value, *given), {}, scope)

    # Of numbers alone, a function is called once: a count of bytes may take its time.
    if isinstance(function, Name) and all(isinstance(one, int) for one in arguments):
        return _kept((id(value), *arguments), scope, lambda: call(apply, arguments))
    return call(apply, arguments)


def _kept(key: Any, scope: Scope, make: Callable[[], Any]) -> Any:
    kept = scope.root.called
    if key not in kept:
        kept[key] = make()
    return kept[key]


def call(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """Apply a function to values; what it cannot take is a misfit."""
    arguments = [tensor(a) if isinstance(a, float) else a for a in arguments]
    try:
        return _checked(function(*arguments))
    except (Misfit, Unread):
        raise
    except Exception as error:
        raise Misfit(f"{type(error).__name__}: {error}") from error


def _text(node: Node) -> str:
    return node.text if isinstance(node, Name) else ""


def _function(node: Node, scope: Scope) -> Any:
    if isinstance(node, Index):
        value = evaluate(node, scope) if not isinstance(node.base, Name) else None
        if value is None:
            assert isinstance(node.base, Name)
            made = lookup(node.base.text, scope)
            if isinstance(made, list | tuple):
                value = _entry(made, node.base.text, node.at, scope)
            elif isinstance(made, Table):
                value = Table(_entry(made.values, node.base.text, node.at, scope))
            elif callable(made):
                index = [evaluate(one, scope) for one in node.at]
                return lambda *arguments: made(*index, *arguments)
        if callable(value):
            return value
        raise Misfit("an array is no function")
    if isinstance(node, Name):
        if node.text in arithmetic.FUNCTIONS and not any(
            node.text in place for place in (scope.bound, scope.values, scope.definitions)
        ):
            return arithmetic.FUNCTIONS[node.text]
        value = lookup(node.text, scope)
        if callable(value) or (isinstance(value, Definition) and value.parameters):
            return value
        raise Misfit(f"{node.text} is no function")
    raise Misfit("this is no function")


# ---------------------------------------------------------------------- sums over an index


def _bigop(node: BigOp, scope: Scope) -> Any:
    if node.sign == r"\mathrm{diag}":
        entries = [tensor(_value(node.body, inner)) for inner, _ in terms_of(node, scope)]
        if not entries or any(entry.ndim for entry in entries):
            raise Misfit("the entries of a diagonal are numbers")
        return torch.stack(entries).diag_embed()
    values: Any = None
    best: Any = None
    for inner, names in terms_of(node, scope):
        value = _value(node.body, inner)
        if values is None:
            values, best = value, names
        elif node.sign == r"\sum":
            values = arithmetic.plus(values, value)
        elif node.sign == r"\prod":
            values = arithmetic.times(values, value)
        else:
            more = tensor(value) > tensor(values)
            less = tensor(value) < tensor(values)
            if bool(more if node.sign.endswith(("max", "sup")) else less):
                values, best = value, names
    if values is None:
        if node.sign in (r"\sum", r"\prod"):
            return 0 if node.sign == r"\sum" else 1
        raise Misfit("nothing to choose from")
    return best[0] if node.sign.startswith(r"\arg") else values


def terms_of(node: BigOp, scope: Scope) -> Iterator[tuple[Scope, list[Any]]]:
    """Yield the scope of each term, and the values of the names that run."""
    condition = node.condition
    names = [name.text for name in node.names]
    if node.low is not None:
        low = number(_value(node.low, scope))
        if node.high is None:
            high: float = _last_of(names[0], node, scope)
        else:
            high = float(_value(node.high, scope))
        if math.isinf(high):
            yield from _series(names[0], low, scope, node)
            return
        ranges: list[Iterable[Any]] = [range(low, number(high) + 1)]
    else:
        if _from_zero(node, scope):
            assert isinstance(condition, Relation)
            yield from _series(names[0], number(_value(condition.sides[1], scope)), scope, node)
            return
        ranges = [_candidates(name, node, scope) for name in names]
    chosen = []
    for values in product(*ranges):
        inner = scope.child(dict(zip(names, values, strict=True)))
        if condition is None or truth(condition, inner):
            chosen.append((inner, list(values)))
    yield from chosen[:-1] if node.cut else chosen


def _last_of(text: str, node: BigOp, scope: Scope) -> int:
    found = index_range(text, node.body, scope)
    if found is None:
        raise Misfit(f"where does {text} end?")
    return int(max(found))


def _from_zero(node: BigOp, scope: Scope) -> bool:
    condition = node.condition
    return (
        isinstance(condition, Relation)
        and condition.signs == (r"\ge",)
        and len(node.names) == 1
        and index_range(node.names[0].text, node.body, scope) is None
    )


def _candidates(text: str, node: BigOp, scope: Scope) -> list[Any]:
    condition = node.condition
    if (
        isinstance(condition, Relation)
        and condition.signs == (r"\in",)
        and condition.sides[0] == Name(text)
    ):
        values = _set(condition.sides[1], scope)
        return sorted(values) if isinstance(values, set | frozenset) else list(values)
    # A condition may index arrays as well, so it tells the range.
    found = index_range(text, node, scope)
    if found is None:
        raise Unread([text])
    return found


def _set(node: Node, scope: Scope) -> Any:
    if isinstance(node, Apply):
        value = _function(node.function, scope)
        made = value(*(evaluate(argument, scope) for argument in node.arguments))
    elif isinstance(node, Name):
        made = lookup(node.text, scope)
        if callable(made):
            made = made(
                **{
                    name: _name(Name(scope.text_of_parameter(name)), scope)
                    for name in parameters(made)
                }
            )
    elif isinstance(node, Index):
        made = evaluate(node, scope)
    else:
        made = None
    if isinstance(made, Tensor) and made.ndim == 1:
        made = made.tolist()
    if not isinstance(made, range | list | tuple | set | frozenset):
        raise Misfit("this is no set")
    return made


def _series(name: str, low: int, scope: Scope, node: BigOp) -> Iterator[tuple[Scope, list[Any]]]:
    """Add the terms of a series until they no longer count."""
    total, small, start = 0.0, 0, low + (1 if node.cut else 0)
    for k in range(start, start + _MOST_TERMS):
        inner = scope.child({name: k})
        size = float(tensor(_value(node.body, inner)).abs().max())
        total += size
        yield inner, [k]
        small = small + 1 if size <= 1e-17 * total else 0
        if small >= 3:
            return
    raise Misfit("the series does not converge here")


# --------------------------------------------------------------------------------- relations


def truth(node: Node, scope: Scope) -> bool:
    """Tell whether a relation holds, for conditions."""
    if isinstance(node, Tuple):
        return all(truth(item, scope) for item in node.items)
    if not isinstance(node, Relation):
        raise Misfit("a condition is a relation")
    for sign, left, right in zip(node.signs, node.sides, node.sides[1:], strict=False):
        if sign in (r"\in", r"\notin"):
            if isinstance(right, Name) and right.text.startswith(r"\mathbb"):
                continue
            inside = _plain(evaluate(left, scope)) in _set(right, scope)
            holds = inside == (sign == r"\in")
        elif sign == r"\not\ni":
            holds = _plain(evaluate(right, scope)) not in _set(left, scope)
        else:
            holds = _compare(sign, evaluate(left, scope), evaluate(right, scope))
        if not holds:
            return False
    return True


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _compare(sign: str, left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        left, right = tensor(left), tensor(right)
        if left.numel() != 1 or right.numel() != 1:
            raise Misfit("a condition compares numbers")
        left, right = left.item(), right.item()
    if isinstance(left, int | float) != isinstance(right, int | float):
        raise Misfit("a condition compares a number with what is none")
    if isinstance(left, float) and isinstance(right, int | float) and sign in ("=", r"\ne"):
        near = abs(left - right) <= 1e-12 * max(abs(left), abs(right), 1)
        return near == (sign == "=")
    if sign == "=":
        return bool(left == right)
    if sign == r"\ne":
        return bool(left != right)
    if not isinstance(left, int | float):
        raise Misfit("words and sets are not ordered")
    return bool(
        {"<": left < right, ">": left > right, r"\le": left <= right, r"\ge": left >= right}[sign]
    )


# ------------------------------------------------------------------------------- derivatives


def _jacobian(function: Callable[[Tensor], Tensor], x: Tensor, scope: Scope) -> Tensor:
    """Differentiate; the axes of the variable come first."""
    x = x.detach().double() if not scope.nested else x
    if scope.route == "differences" and not scope.nested:
        return _differences(function, x)
    made = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
        function, x, create_graph=scope.nested
    )
    assert isinstance(made, Tensor)
    extra = made.ndim - x.ndim
    return made.permute([*range(extra, made.ndim), *range(extra)])


def _differences(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    rows = []
    for index in product(*map(range, x.shape)):
        # The cube root of the rounding unit balances truncation against cancellation.
        step = 6e-6 * max(1.0, abs(float(x[index])))
        up, down = x.clone(), x.clone()
        up[index] += step
        down[index] -= step
        width = float(up[index] - down[index])
        rows.append((function(up).detach() - function(down).detach()) / width)
    return torch.stack(rows).reshape([*x.shape, *rows[0].shape])


def _derivative(node: Derivative, scope: Scope) -> Any:
    scope.root.differentiated = True
    if scope.by_symbols is not None:
        return scope.by_symbols(node, (), scope)
    if node.style == "prime":
        raise Misfit("a derivative of a function needs its argument, as in f'(x)")
    if not node.by:
        if isinstance(node.body, Apply) and len(node.body.arguments) == 1:
            return _prime(Derivative("prime", node.body.function, ()), node.body.arguments, scope)
        if isinstance(node.body, Apply):
            return _by_first(node.body, scope)
        raise Misfit(r"say by which name to differentiate, as in \nabla_x")
    first, rest = node.by[0], node.by[1:]
    body = Derivative(node.style, node.body, rest) if rest else node.body
    base, at = (first.base, first.at) if isinstance(first, Index) else (first, ())
    if not isinstance(base, Name):
        raise Misfit("a derivative is by a name")
    point = tensor(_name(base, scope))

    def value(x: Tensor) -> Tensor:
        inner = scope.child({base.text: x})
        inner.nested = True
        inner.cache = {}
        return tensor(_value(body, inner))

    made = _jacobian(value, point, scope)
    return _entry(made, base.text, at, scope) if at else made


def _by_first(node: Apply, scope: Scope) -> Tensor:
    first, *others = (evaluate(argument, scope) for argument in node.arguments)
    function = _callable(node.function, scope)
    return _jacobian(lambda x: tensor(function(x, *others)), tensor(first), scope)


def _callable(node: Node, scope: Scope) -> Callable[..., Any]:
    value = _function(node, scope)
    if isinstance(value, Definition):
        return lambda *arguments: _defined(value, arguments, scope)
    return lambda *arguments: call(value, arguments)


def _prime(node: Derivative, arguments: Sequence[Node], scope: Scope) -> Any:
    """Differentiate a function of one number, or entry by entry."""
    scope.root.differentiated = True
    if scope.by_symbols is not None:
        return scope.by_symbols(node, arguments, scope)
    times, inner = 1, node.body
    while isinstance(inner, Derivative) and inner.style == "prime":
        times, inner = times + 1, inner.body
    if len(arguments) != 1:
        raise Misfit("a derivative by a prime is of a function of one argument")
    function = _callable(inner, scope)
    x = tensor(_value(arguments[0], scope))
    for _ in range(times - 1):
        function = _slope(function)
    if scope.route == "differences" and not scope.nested:
        x = x.detach()
        if tensor(function(x)).shape != x.shape:
            return _differences(lambda t: tensor(function(t)), x)
        step = 6e-6 * x.abs().clamp(min=1.0)
        return (function(x + step).detach() - function(x - step).detach()) / (2 * step)
    if tensor(function(x)).shape != x.shape:
        return _jacobian(lambda t: tensor(function(t)), x, scope)
    return _slope(function)(x)


def _slope(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    def slope(x: Tensor) -> Tensor:
        at = x if x.requires_grad else x.detach().requires_grad_()
        (made,) = torch.autograd.grad(tensor(function(at)).sum(), at, create_graph=True)
        assert isinstance(made, Tensor)
        return made

    return slope


def _set_at(node: At, scope: Scope) -> Any:
    value = _value(node.value, scope)
    body = node.body
    if isinstance(body, Derivative) or not isinstance(value, Tensor):
        value = tensor(value) if isinstance(body, Derivative) else value
    return _value(body, scope.child({node.name.text: value}))


def _limit(node: Limit, scope: Scope) -> Any:
    """Take a limit by Richardson's extrapolation, with errors in powers of 1/n."""
    scope.root.took_limit = True
    to = _value(node.to, scope)
    if float(to) == math.inf:
        points: list[Any] = list(scope.sizes)
    else:
        points = [float(to) + 2.0 ** -(k + 4) for k in range(5)]
    row = [tensor(_value(node.body, scope.child({node.name.text: p}))) for p in points]
    order = 1
    while len(row) > 1:
        row = [b + (b - a) / (2**order - 1) for a, b in pairwise(row)]
        order += 1
    return row[0]


# ------------------------------------------------------------------------------ expectations


def _law(node: Expect, scope: Scope) -> Law:
    for text in (node.law, node.sign, r"\mathbb E"):
        if text in scope.laws:
            return scope.laws[text]
    raise Unread([node.law])


def _expect(node: Expect, scope: Scope) -> Any:
    law = _law(node, scope)
    if node.sign == r"\mathrm{Cov}":
        raise Misfit("a covariance is written as an expectation")
    outcomes = {
        next(iter(_texts(name, node.body, scope))): values for name, values in law.outcomes.items()
    }
    if law.weights is None:
        return _sampled(node, outcomes, law.count, scope)
    if law.indices:
        first = scope.origin("")
        outcomes = {name: [i + first for i in places] for name, places in outcomes.items()}
    values = []
    for i in range(law.count):
        values.append(
            tensor(_value(node.body, scope.child({k: v[i] for k, v in outcomes.items()})))
        )
    stacked = torch.stack(values)
    weights = law.weights.reshape(-1, *[1] * (stacked.ndim - 1))
    mean = (weights * stacked).sum(0)
    if node.sign == r"\mathbb E":
        return mean
    return (weights * (stacked - mean) ** 2).sum(0)


def _texts(name: str, body: Node, scope: Scope) -> Iterator[str]:
    """The spellings of a name of a law, those that occur first."""
    texts = list(map(text_of, forms_of(name)))
    used = set(free_names(body)) | scope.watched
    yield from (text for text in texts if text in used)
    yield from texts


def _sampled(node: Expect, outcomes: Mapping[str, Any], count: int, scope: Scope) -> Any:
    scope.root.monte_carlo = scope.root.touched = True
    numbers = tuple(sorted((k, v) for k, v in scope.bound.items() if isinstance(v, int)))
    names = list(outcomes)

    def one(*values: Tensor) -> Tensor:
        return tensor(_value(node.body, scope.child(dict(zip(names, values, strict=True)))))

    def draw() -> tuple[Tensor, Tensor]:
        drawn = torch.vmap(one)(*(outcomes[name].double() for name in names))
        if node.sign != r"\mathbb E":  # about the mean, so that squares lose nothing
            drawn = drawn - drawn.mean(0)
        parts = drawn.reshape(FOLDS, -1, *drawn.shape[1:])
        return parts.sum(1), (parts**2).sum(1)

    # What is drawn does not depend on the route, so all scopes of a reading share it.
    shared = all(isinstance(value, int) for value in scope.bound.values())
    key = (node, numbers)
    sums, squares = scope.drawn[key] if shared and key in scope.drawn else draw()
    if shared:
        scope.drawn[key] = sums, squares
    total, square, left = sums.sum(0), squares.sum(0), count
    if scope.fold is not None:  # leave one part out, to see how far the mean is off
        total, square = total - sums[scope.fold], square - squares[scope.fold]
        left = count - count // FOLDS
    if node.sign == r"\mathbb E":
        return total / left
    return square / left - (total / left) ** 2


_RULES: dict[type, Callable[[Any, Scope], Any]] = {
    Number: _number,
    Name: _name,
    Index: _index,
    Turned: _turned,
    Negative: _negative,
    Add: _add,
    Product: _product,
    Binary: _binary,
    Fraction: _fraction,
    Power: _power,
    Transpose: _transpose,
    Postfix: _postfix,
    Root: _root,
    Factorial: _factorial,
    Binomial: _binomial,
    Matrix: _matrix,
    Tuple: _tuple,
    Cases: _cases,
    Bars: _bars,
    Apply: _apply,
    BigOp: _bigop,
    Derivative: _derivative,
    At: _set_at,
    Limit: _limit,
    Expect: _expect,
}
