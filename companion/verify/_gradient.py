"""Derivatives by independent routes."""

import zlib
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import mpmath
import sympy as sp
import torch
from torch import Tensor

from companion.verify._compare import as_tensor, reject_mutants, relative_error
from companion.verify._independence import same_program
from companion.verify._inputs import check_generic, check_unchanged, snapshot
from companion.verify._record import Verification, VerificationError, check_label, emit

__all__ = ["gradient"]

# Routes that differ from the truth by rounding only. Ten digits of float64 are left for the
# conditioning of the function.
_EXACT = 1e-9
_DIGITS = 30
# Points drawn again beside the given one, and how often that is tried.
_REDRAWN = 3
_ATTEMPTS = 40


def gradient(
    label: str,
    f: Callable[..., Tensor],
    claim: Callable[..., Any],
    inputs: Mapping[str, Any],
    *,
    wrt: str,
    sympy: Callable[..., Any],
    mutants: Mapping[str, Callable[..., Any]],
    handwritten: Callable[..., Any] | None = None,
    domain: Mapping[str, tuple[float, float] | Callable[[torch.Generator], Tensor]] | None = None,
    tol: float = 1e-6,
    symmetric: bool = False,
) -> Verification:
    r"""Verify a claimed derivative by SymPy, autograd and finite differences, at several points.

    The layout is that of the book: for :math:`y = f(x)` the claim has the shape of :math:`x`
    followed by the shape of :math:`y`, with :math:`[\partial y/\partial x]_{ij} = \partial y_j /
    \partial x_i`. For a scalar :math:`y` it has the shape of :math:`x`. For a Hessian give the
    gradient as ``f``, for example ``lambda z: torch.func.grad(loss)(z)``.

    A single point lies on one side of every kink, where a wrong claim may agree. So the floating
    inputs are drawn again around the given ones, three times: each number is scaled and its sign
    drawn anew. Where an input has a domain that this leaves, name it in ``domain``. Where ``f`` is
    not finite or refuses the signs, they are kept.

    Args:
        label: Label of the equation.
        f: The function, in PyTorch. Called with the inputs as keywords.
        claim: The derivative that the equation claims, called in the same way.
        inputs: Names and values. Floating tensors are taken to float64 and must be generic.
        wrt: Name of the input by which to differentiate.
        sympy: The same function in SymPy. Floating tensors come as SymPy arrays (a symbol where
            there are no axes), integer tensors as nested lists.
        mutants: Names and wrong versions of the claim, at least one.
        handwritten: The library's own backward, where there is one. Same shape as the claim, but
            not the claim by another name.
        domain: For an input that may not take every sign, the interval from which its entries are
            drawn again, or a function that draws the whole input from a generator.
        tol: Relative error up to which finite differences count as equal. The other routes are
            held to 1e-9.
        symmetric: Declares a symmetric result, which waives the transpose among the mutants.

    Returns:
        The record.

    Raises:
        VerificationError: If a route disagrees, an input hides mistakes, or a mutant survives.

    Example:
        >>> from companion.verify import generic
        >>> x = generic(3, generator=torch.Generator().manual_seed(0))
        >>> record = gradient(
        ...     "eq:square", lambda x: (x**2).sum(), lambda x: 2 * x, {"x": x}, wrt="x",
        ...     sympy=lambda x: sum(entry**2 for entry in x), mutants={"no factor": lambda x: x},
        ... )  # doctest: +ELLIPSIS
        ✓ eq:square · gradient by SymPy, autograd, finite differences · ...
    """
    check_label(label)
    if handwritten is not None and same_program(claim, handwritten):
        raise VerificationError(f"{label}: the claim and the hand-written code are one program")
    if wrt not in inputs:
        raise ValueError(f"wrt is {wrt!r}, but the inputs are {sorted(inputs)}")
    if not (isinstance(inputs[wrt], Tensor) and inputs[wrt].is_floating_point()):
        raise ValueError(f"the input {wrt!r} must be a floating tensor to differentiate by it")
    values = {
        name: v.detach().double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for name, v in inputs.items()
    }
    check_generic(label, values)
    points = [values, *_redrawn(label, f, values, domain or {})]
    shape = tuple(values[wrt].shape)
    by_sympy = _derivative_by_sympy(label, sympy, values, wrt, f(**values))
    errors: dict[str, float] = {}
    first: dict[str, tuple[Tensor, float]] = {}
    for number, point in enumerate(points):
        before = snapshot(point)
        output = as_tensor(label, "f", f(**point))
        claimed = as_tensor(label, "the claim", claim(**point))
        check_unchanged(label, point, before)
        expected_shape = shape + tuple(output.shape)
        if tuple(claimed.shape) != expected_shape:
            raise VerificationError(
                f"{label}: the claim has shape {tuple(claimed.shape)}, but the derivative of a "
                f"{tuple(output.shape)} by a {shape} has shape {expected_shape}"
            )
        routes: dict[str, tuple[Tensor, float]] = {
            "SymPy": (by_sympy(point, output), _EXACT),
            "autograd": (_by_autograd(f, point, wrt, output), _EXACT),
            "finite differences": (_by_differences(f, point, wrt, output), tol),
        }
        if handwritten is not None:
            made = as_tensor(label, "the hand-written backward", handwritten(**point))
            routes["hand-written code"] = (made, _EXACT)
        for name, (reference, tolerance) in routes.items():
            error = relative_error(claimed, reference)
            errors[name] = max(errors.get(name, 0.0), error)
            if not error <= tolerance:
                where = "" if number == 0 else f" at inputs drawn again {_told(point)}"
                raise VerificationError(
                    f"{label}: the claim differs from {name} by {error:.1e} (relative), "
                    f"more than {tolerance:.0e}{where}"
                )
        check_unchanged(label, point, before)
        if number == 0:
            first, claim_at_first = routes, claimed
    before = snapshot(values)
    rejected = reject_mutants(label, claim_at_first, first, mutants, values, symmetric=symmetric)
    check_unchanged(label, values, before)
    return emit(
        label=label,
        kind="gradient",
        routes=errors.items(),
        tolerance=max(tol, _EXACT),
        mutants=rejected,
        points=len(points),
    )


def _redrawn(
    label: str,
    f: Callable[..., Tensor],
    values: Mapping[str, Any],
    domain: Mapping[str, tuple[float, float] | Callable[[torch.Generator], Tensor]],
) -> list[dict[str, Any]]:
    """Draw the floating inputs again around the given ones, with other signs where f has them."""
    for name in domain:
        if name not in values:
            raise ValueError(f"domain names {name!r}, but the inputs are {sorted(values)}")
    # Seeded by the label: the same points in every run, other points for every equation.
    generator = torch.Generator().manual_seed(zlib.crc32(label.encode()))
    points: list[dict[str, Any]] = []
    for attempt in range(_ATTEMPTS):
        point = dict(values)
        for name, value in values.items():
            if not (isinstance(value, Tensor) and value.is_floating_point()):
                continue
            rule = domain.get(name)
            if callable(rule):
                drawn = rule(generator).detach().double()
            else:
                uniform = torch.rand(value.shape, generator=generator, dtype=torch.float64)
                if rule is not None:
                    drawn = rule[0] + (rule[1] - rule[0]) * uniform
                else:
                    drawn = value.cpu() * (0.6 + 0.8 * uniform)
                    signs = torch.rand(value.shape, generator=generator) < 0.5
                    if attempt < _ATTEMPTS // 2:
                        drawn = torch.where(signs, -drawn, drawn)
            point[name] = drawn.to(value.device)
        if _finite(f, point):
            points.append(point)
        if len(points) == _REDRAWN:
            return points
    raise VerificationError(
        f"{label}: f is not finite at points drawn around the inputs. Give their `domain`."
    )


def _finite(f: Callable[..., Tensor], point: Mapping[str, Any]) -> bool:
    try:
        return bool(torch.isfinite(f(**point).detach()).all())
    except (ValueError, RuntimeError, ArithmeticError):
        return False


def _told(point: Mapping[str, Any]) -> str:
    """Write the small floating inputs of a point."""
    numbers = {
        name: [round(x, 3) for x in value.reshape(-1).tolist()]
        for name, value in point.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() <= 6
    }
    return str(numbers)


def _by_autograd(
    f: Callable[..., Tensor], values: Mapping[str, Any], wrt: str, output: Tensor
) -> Tensor:
    def of_one(x: Tensor) -> Tensor:
        return f(**{**values, wrt: x})

    jacobian = torch.autograd.functional.jacobian(of_one, values[wrt].clone())  # type: ignore[no-untyped-call]
    # PyTorch puts the axes of the output first, this book those of the variable.
    order = [*range(output.ndim, jacobian.ndim), *range(output.ndim)]
    return as_tensor("", "autograd", jacobian.permute(order))


def _by_differences(
    f: Callable[..., Tensor], values: Mapping[str, Any], wrt: str, output: Tensor
) -> Tensor:
    x = values[wrt]
    rows = []
    for index in product(*map(range, x.shape)):
        # The cube root of the rounding unit balances truncation against cancellation.
        step = 6e-6 * max(1.0, abs(float(x[index])))
        up, down = x.clone(), x.clone()
        up[index] += step
        down[index] -= step
        width = float(up[index] - down[index])
        difference = f(**{**values, wrt: up}).detach() - f(**{**values, wrt: down}).detach()
        rows.append(difference.cpu().double() / width)
    return torch.stack(rows).reshape(tuple(x.shape) + tuple(output.shape))


def _derivative_by_sympy(
    label: str, build: Callable[..., Any], values: Mapping[str, Any], wrt: str, output: Tensor
) -> Callable[[Mapping[str, Any], Tensor], Tensor]:
    """Differentiate the function in SymPy, and return the derivative as a function of a point."""
    arguments: dict[str, Any] = {}
    symbols: dict[str, list[sp.Symbol]] = {}
    for name, value in values.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            symbols[name] = [
                sp.Symbol("_".join([name, *map(str, index)]), real=True)
                for index in product(*map(range, value.shape))
            ]
            array = sp.Array(symbols[name], tuple(value.shape)) if value.ndim else None
            arguments[name] = symbols[name][0] if array is None else array
        else:
            arguments[name] = value.tolist() if isinstance(value, Tensor) else value
    components = _components(label, build(**arguments), tuple(output.shape))
    derivatives = [component.diff(x) for x in symbols[wrt] for component in components]
    for expression in (*components, *derivatives):
        if expression.has(sp.Derivative, sp.MatrixSymbol, sp.Integral):
            raise VerificationError(
                f"{label}: SymPy leaves {str(expression)[:60]!r} unevaluated. Write the function "
                "componentwise, with the symbols that it is given."
            )
    flat = [symbol for some in symbols.values() for symbol in some]
    evaluate = sp.lambdify(flat, [*components, *derivatives], "mpmath", cse=True)

    def at(point: Mapping[str, Any], output: Tensor) -> Tensor:
        entries = [x for name in symbols for x in point[name].reshape(-1).tolist()]
        with mpmath.workdps(_DIGITS):
            numbers = [_real(label, number) for number in evaluate(*map(mpmath.mpf, entries))]
        same = torch.tensor(numbers[: len(components)], dtype=torch.float64).reshape(output.shape)
        error = relative_error(same, output)
        if not error <= _EXACT:
            raise VerificationError(
                f"{label}: the SymPy function and f are different functions, their values differ "
                f"by {error:.1e} (relative) at {_told(point)}"
            )
        made = torch.tensor(numbers[len(components) :], dtype=torch.float64)
        return made.reshape(tuple(values[wrt].shape) + tuple(output.shape))

    return at


def _components(label: str, built: Any, shape: tuple[int, ...]) -> list[sp.Expr]:
    if isinstance(built, sp.MatrixBase):
        built = sp.Array(built)
    if isinstance(built, list | tuple):
        built = sp.Array(built)
    array = built if isinstance(built, sp.NDimArray) else None
    made = tuple(array.shape) if array is not None else ()
    if made != shape:
        raise VerificationError(
            f"{label}: the SymPy function returns shape {made}, but f returns {shape}"
        )
    parts = [built] if array is None else list(sp.flatten(array.tolist()))
    expressions = [sp.sympify(part) for part in parts]
    for expression in expressions:
        if isinstance(expression, sp.MatrixExpr) or not isinstance(expression, sp.Expr):
            raise VerificationError(f"{label}: the SymPy function must return scalars or an array")
    return expressions


def _real(label: str, number: Any) -> float:
    value = mpmath.mpmathify(number)
    if isinstance(value, mpmath.mpc):
        if abs(value.imag) > 1e-20:
            raise VerificationError(f"{label}: SymPy gives a complex number at a real point")
        value = value.real
    return float(value)
