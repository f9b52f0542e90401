"""The operations of the page on numbers and tensors: rows are vectors, products matrix products."""

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["Misfit", "divide", "norm", "number", "plus", "power", "tensor", "times", "transpose"]


class Misfit(ArithmeticError):
    """An operation that its operands do not allow. A wrong formula often has one."""


def tensor(value: Any) -> Tensor:
    """Return a value as a float64 tensor."""
    if isinstance(value, Tensor):
        exact = value.is_floating_point() or value.is_complex()
        return value if exact else value.double()
    if isinstance(value, bool | int | float):
        return torch.tensor(float(value), dtype=torch.float64)
    if isinstance(value, complex):
        return torch.tensor(value, dtype=torch.complex128)
    raise Misfit(f"{type(value).__name__} is no number")


def number(value: Any) -> int:
    """Return a value as an integer, for an index or a bound."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise Misfit("an array is no index")
        value = value.item()
    if isinstance(value, bool | int):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise Misfit(f"{value!r} is no index")


def _scalar(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.ndim == 0


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _same_or_broadcast(left: Any, right: Any, what: str) -> None:
    # A row of a matrix and a number fit anything of their kind. What would make a third shape is
    # an outer sum, which nobody writes as a sum.
    shapes = _shape(left), _shape(right)
    try:
        joint = tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    except RuntimeError:
        joint = (-1,)
    if joint not in shapes:
        raise Misfit(f"{what} of shapes {shapes[0]} and {shapes[1]}")


def plus(left: Any, right: Any) -> Any:
    """Add; a row is added to every row."""
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        _same_or_broadcast(left, right, "a sum")
    return left + right


def times(left: Any, right: Any) -> Any:
    """Multiply: a number scales, arrays have the matrix product, and one entry is a number."""
    if _scalar(left) or _scalar(right):
        return left * right
    a = left[None] if left.ndim == 1 else left
    b = right[None] if right.ndim == 1 else right
    if a.shape[-1] != b.shape[-2]:
        raise Misfit(f"a product of shapes {_shape(left)} and {_shape(right)}")
    joint = torch.promote_types(a.dtype, b.dtype)
    a, b = a.to(joint), b.to(joint)
    made = a @ b
    if made.ndim == 2 and made.shape == (1, 1):
        return made[0, 0]
    return made[0] if left.ndim == 1 else made


def entrywise(left: Any, right: Any) -> Any:
    r"""Multiply entry by entry, the sign ``\odot``."""
    _same_or_broadcast(left, right, "a product by entries")
    return left * right


def dot(left: Any, right: Any) -> Any:
    """Multiply with a dot: two rows give a number."""
    if _scalar(left) or _scalar(right):
        return left * right
    if left.ndim == 1 and left.shape == right.shape:
        return (left * right).sum()
    raise Misfit(f"a dot product of shapes {_shape(left)} and {_shape(right)}")


def divide(top: Any, bottom: Any) -> Any:
    """Divide by a number, or entry by entry."""
    if not _scalar(bottom) and _shape(top) != _shape(bottom):
        raise Misfit(f"a quotient of shapes {_shape(top)} and {_shape(bottom)}")
    if isinstance(bottom, int | float) and bottom == 0:
        raise Misfit("a division by zero")
    if isinstance(top, int) and isinstance(bottom, int) and top % bottom == 0:
        return top // bottom
    if isinstance(bottom, int) and abs(bottom) > 2**53:  # a factorial
        bottom = float(bottom) if abs(bottom) < 1e308 else math.inf
    return top / bottom


def power(base: Any, exponent: Any) -> Any:
    """Raise to a power: of a square matrix the matrix power, else entry by entry."""
    if not _scalar(exponent):
        raise Misfit("an array is no exponent")
    if isinstance(base, Tensor) and base.ndim == 2:
        if base.shape[0] != base.shape[1]:
            raise Misfit(f"a power of a matrix of shape {_shape(base)}")
        exact = float(exponent)
        if exact.is_integer():
            return torch.linalg.matrix_power(base, int(exact))
        if not torch.allclose(base, base.mT):
            raise Misfit("a broken power of a matrix that is not symmetric")
        values, vectors = torch.linalg.eigh(base)
        return (vectors * values**exact) @ vectors.mT
    if isinstance(base, int) and isinstance(exponent, int) and (exponent >= 0 or abs(base) == 1):
        return base**exponent
    made = tensor(base) ** (exponent if isinstance(exponent, int) else tensor(exponent))
    return made


def transpose(value: Any) -> Tensor:
    """Transpose; a row becomes a column."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        raise Misfit("a transpose of a number")
    return value[:, None] if value.ndim == 1 else value.mT


def norm(value: Any, kind: str) -> Tensor:
    """Return a norm: Euclidean, Frobenius, of a matrix with index 2 the largest singular value."""
    x = tensor(value)
    if kind in ("", "F") or (kind == "2" and x.ndim < 2):
        return torch.linalg.vector_norm(x)  # type: ignore[no-any-return]
    if kind == "2":
        return torch.linalg.matrix_norm(x, 2)  # type: ignore[no-any-return]
    if kind == "1" and x.ndim < 2:
        return x.abs().sum()
    if kind in (r"\infty", "infty") and x.ndim < 2:
        return x.abs().max()
    raise Misfit(f"no norm of kind {kind}")


def determinant(x: Any) -> Tensor:
    """Return a determinant."""
    x = tensor(x)
    if x.ndim != 2 or x.shape[0] != x.shape[1]:
        raise Misfit("a determinant needs a square matrix")
    return torch.linalg.det(x)  # type: ignore[no-any-return]


def diagonal(x: Any) -> Tensor:
    """Return the diagonal matrix of a row."""
    if not isinstance(x, Tensor) or x.ndim != 1:
        raise Misfit("a diagonal matrix is made of a row")
    return x.diag_embed()


def _trace(x: Any) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[0] != x.shape[1]:
        raise Misfit("a trace needs a square matrix")
    return x.diagonal().sum()


def _rank(x: Any) -> int:
    if not isinstance(x, Tensor) or x.ndim != 2:
        raise Misfit("a rank needs a matrix")
    return int(torch.linalg.matrix_rank(x))


def _softmax(x: Any) -> Tensor:
    raised = (tensor(x) - tensor(x).detach().amax(-1, keepdim=True)).exp()
    return raised / raised.sum(-1, keepdim=True)


def _rowsum(x: Any) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim != 2:
        raise Misfit("row sums need a matrix")
    return x.sum(-1, keepdim=True)


def _extreme(pick: Any) -> Any:
    def of(*values: Any) -> Any:
        if len(values) == 1:
            return tensor(values[0]).amax() if pick is torch.maximum else tensor(values[0]).amin()
        made = tensor(values[0])
        for value in values[1:]:
            made = pick(made, tensor(value))
        return made

    return of


def _log(x: Any, base: Any = None) -> Tensor:
    natural = torch.log(tensor(x))
    return natural if base is None else natural / math.log(float(base))


#: What a function means where the reading does not give it.
FUNCTIONS: dict[str, Any] = {
    r"\log": _log,
    r"\ln": _log,
    r"\exp": lambda x: torch.exp(tensor(x)),
    r"\cos": lambda x: torch.cos(tensor(x)),
    r"\sin": lambda x: torch.sin(tensor(x)),
    r"\tan": lambda x: torch.tan(tensor(x)),
    r"\cosh": lambda x: torch.cosh(tensor(x)),
    r"\sinh": lambda x: torch.sinh(tensor(x)),
    r"\tanh": lambda x: torch.tanh(tensor(x)),
    r"\det": determinant,
    r"\max": _extreme(torch.maximum),
    r"\min": _extreme(torch.minimum),
    r"\mathrm{rank}": _rank,
    r"\mathrm{tr}": _trace,
    r"\mathrm{diag}": diagonal,
    r"\mathrm{softmax}": _softmax,
    r"\mathrm{sign}": lambda x: torch.sign(tensor(x)),
    r"\mathrm{relu}": lambda x: torch.clamp(tensor(x), min=0),
    r"\mathrm{clip}": lambda x, low, high: torch.minimum(
        torch.maximum(tensor(x), tensor(low)), tensor(high)
    ),
    r"\mathrm{rowsum}": _rowsum,
    r"\mathrm{Re}": lambda x: tensor(x).real,
}
CONSTANTS: dict[str, Any] = {r"\pi": math.pi, r"\infty": math.inf, "e": math.e, r"\mathrm{i}": 1j}
