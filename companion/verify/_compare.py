"""Comparison of tensors, and the wrong values that each comparison must reject."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.verify._record import VerificationError

__all__ = [
    "as_tensor",
    "largest_size",
    "mutant_value",
    "reject_mutants",
    "relative_error",
    "value_mutants",
]


def as_tensor(label: str, who: str, value: Any) -> Tensor:
    """Return a value as a detached tensor on the CPU in at least float64 if floating."""
    # Through float64: plain Python numbers would be rounded to the default float32 on the way.
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    tensor = tensor.detach().cpu()
    if tensor.numel() == 0:
        raise VerificationError(f"{label}: {who} is empty, so there is nothing to compare")
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Return the largest deviation over the largest magnitude of the reference.

    A different shape, NaN or infinity counts as an infinite error.
    """
    if value.shape != reference.shape:
        return float("inf")
    difference = (value - reference).abs().max()
    scale = reference.abs().max()
    if not bool(torch.isfinite(difference)) or not bool(torch.isfinite(scale)):
        return float("inf")
    return float(difference / scale) if scale > 0 else float("inf" if difference > 0 else 0)


def value_mutants(value: Tensor, *, symmetric: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield wrong versions of a value: sign, factor, dropped entry, index off by one, transpose."""
    yield "negated", -value
    yield "doubled", 2 * value
    if value.numel() > 1:
        sparse = value.clone().reshape(-1)
        magnitude = sparse.abs()
        magnitude[magnitude == 0] = float("inf")
        sparse[magnitude.argmin()] = 0
        yield "smallest entry dropped", sparse.reshape(value.shape)
    for axis, size in enumerate(value.shape):
        if size > 1:
            yield f"index off by one on axis {axis}", value.roll(1, axis)
    if value.ndim >= 2 and value.shape[-1] == value.shape[-2] and not symmetric:
        yield "transposed", value.mT


def largest_size(inputs: Mapping[str, Any]) -> int:
    """Return the largest size in sight: the longest axis or list, or the largest setting."""
    sizes = [1]
    for value in inputs.values():
        if isinstance(value, Tensor | np.ndarray):
            sizes.extend(value.shape)
        elif isinstance(value, bool):
            continue
        elif isinstance(value, int):
            sizes.append(abs(value))
        elif isinstance(value, list | tuple | dict):
            sizes.append(len(value))
    return max(sizes)


def mutant_value(
    label: str,
    name: str,
    mutant: Callable[..., Any],
    inputs: Mapping[str, Any] | None = None,
    *,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """Evaluate a mutant, and refuse one that would be rejected for another reason than its value.

    An error, nothing, another shape or NaN is told from any claim, right or wrong, so it shows no
    power. A mutant must run and give wrong numbers, of the given shape if there is one.
    """
    try:
        made = mutant(**(inputs or {}))
    except Exception as error:
        raise VerificationError(
            f"{label}: mutant {name!r} raised {type(error).__name__}: {error}. "
            "A mutant must run and give a wrong number."
        ) from error
    try:
        candidate = as_tensor(label, f"mutant {name!r}", made)
    except (TypeError, ValueError, RuntimeError) as error:
        raise VerificationError(
            f"{label}: mutant {name!r} gives {str(made)[:60]!r}, which is no number. "
            "A mutant must run and give a wrong number."
        ) from error
    if shape is not None and candidate.shape != shape:
        raise VerificationError(
            f"{label}: mutant {name!r} has shape {tuple(candidate.shape)}, the claim "
            f"{tuple(shape)}. It would be rejected for its shape, whatever its numbers are."
        )
    if not bool(torch.isfinite(candidate).all()):
        raise VerificationError(
            f"{label}: mutant {name!r} is NaN or infinite, so it would be rejected for that, "
            "whatever the claim is. A mutant must run and give a wrong number."
        )
    return candidate


def reject_mutants(
    label: str,
    value: Tensor,
    references: Mapping[str, tuple[Tensor, float]],
    mutants: Mapping[str, Callable[..., Any]],
    inputs: Mapping[str, Any],
    *,
    symmetric: bool,
) -> list[str]:
    """Require that every reference rejects every wrong version of the claim."""
    if not mutants:
        raise VerificationError(
            f"{label}: give at least one mutant, a wrong version of the claim that a slip of the "
            "pen would produce"
        )
    if not bool((value != 0).any()):
        raise VerificationError(f"{label}: the value is zero everywhere, so no sign can be wrong")
    if symmetric and relative_error(value.mT, value) > 1e-9:
        raise VerificationError(f"{label}: declared symmetric, but it differs from its transpose")
    candidates = list(value_mutants(value, symmetric=symmetric))
    size = largest_size(inputs)
    if size > 1:
        # n - 1 for n, the smallest slip in a count or a mean, at the largest n in sight.
        candidates.append((f"off by one in {size}", value * (1 - 1 / size)))
    for name, mutant in mutants.items():
        candidates.append((name, mutant_value(label, name, mutant, inputs, shape=value.shape)))
    for name, candidate in candidates:
        for route, (reference, tolerance) in references.items():
            if relative_error(candidate, reference) <= tolerance:
                raise VerificationError(
                    f"{label}: the check by {route} accepts the wrong claim {name!r}. "
                    "Choose inputs at which it differs from the right one."
                )
    return [name for name, _ in candidates]
