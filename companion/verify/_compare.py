"""Comparison of tensors, and the wrong values that each comparison must reject."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from companion.verify._record import VerificationError

__all__ = ["as_tensor", "reject_mutants", "relative_error", "value_mutants"]


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
    for name, mutant in mutants.items():
        try:
            candidates.append((name, as_tensor(label, f"mutant {name!r}", mutant(**inputs))))
        except VerificationError:
            raise
        except Exception as error:
            raise VerificationError(
                f"{label}: mutant {name!r} raised {type(error).__name__}: {error}. "
                "A mutant must run and give a wrong number."
            ) from error
    for name, candidate in candidates:
        for route, (reference, tolerance) in references.items():
            if relative_error(candidate, reference) <= tolerance:
                raise VerificationError(
                    f"{label}: the check by {route} accepts the wrong claim {name!r}. "
                    "Choose inputs at which it differs from the right one."
                )
    return [name for name, _ in candidates]
