"""Generic inputs: numbers that hide nothing."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.verify._record import VerificationError

__all__ = ["check_generic", "check_unchanged", "generic", "snapshot"]


def generic(
    *shape: int, generator: torch.Generator, low: float = -2.0, high: float = 2.0
) -> Tensor:
    """Draw float64 numbers that hide no mistake: nonzero and pairwise distinct.

    A zero hides a dropped term, equal entries hide a wrong index, and a one hides a wrong power.

    Args:
        shape: The shape. Axis sizes must be at least 2 and differ from each other: an axis of size
            1 hides a sum or an index, and a square hides a transpose.
        generator: The source of randomness.
        low: Smallest value. Pass a positive one for positive data.
        high: Largest value.

    Returns:
        A float64 tensor with entries in [low, high], none within 0.1 of zero.

    Raises:
        ValueError: If an axis has size 1, two have the same size, or the interval leaves no room.

    Example:
        >>> x = generic(3, 5, generator=torch.Generator().manual_seed(0))
        >>> bool((x.abs() >= 0.1).all()), len(x.unique())
        (True, 15)
    """
    if min(shape, default=2) < 2:
        raise ValueError(f"axis sizes must be at least 2, got {shape}: one entry hides an index")
    if len(set(shape)) < len(shape):
        raise ValueError(f"axis sizes must differ pairwise, got {shape}: square inputs hide a .T")
    if high - max(low, min(-0.1, high)) < 0.2 and high - low < 0.2:
        raise ValueError(f"[{low}, {high}] is too narrow for distinct numbers")
    drawn = torch.empty(0, dtype=torch.float64)
    count = 1
    for size in shape:
        count *= size
    # Rejection keeps the numbers uniform on what is left of the interval.
    for _ in range(1000):
        more = torch.rand(
            2 * count + 8, generator=generator, dtype=torch.float64, device=generator.device
        )
        more = (low + (high - low) * more).cpu()
        more = more[(more.abs() >= 0.1) & ((more.abs() - 1).abs() >= 0.01)]
        drawn = torch.cat([drawn, more])
        if len(drawn) >= count:
            break
    else:
        raise ValueError(f"[{low}, {high}] leaves no number at least 0.1 away from zero")
    return drawn[:count].reshape(shape)


def check_generic(label: str, inputs: Mapping[str, Any]) -> None:
    """Refuse inputs that hide mistakes: tensors, numbers, and lists of numbers.

    Whole numbers are sizes, ids and settings, and pass; but ids that are all alike do not, nor
    does a mask that lets everything or nothing through.
    """
    for name, value in inputs.items():
        problem = _problem(value)
        if problem:
            raise VerificationError(
                f"{label}: input {name!r} {problem}. Use verify.generic to draw inputs."
            )


def _problem(value: Any) -> str:
    """Say what an input hides, or nothing."""
    if isinstance(value, dict):
        return next((problem for v in value.values() if (problem := _problem(v))), "")
    if isinstance(value, list | tuple):
        numbers = list(_numbers(value))
        if not any(isinstance(number, float) for number in numbers):
            return next((problem for v in value if (problem := _problem(v))), "")
        value = torch.tensor(numbers, dtype=torch.float64)
    if isinstance(value, np.ndarray | np.generic):
        value = torch.as_tensor(value)
    if isinstance(value, float):
        value = torch.tensor(value, dtype=torch.float64)
    if not isinstance(value, Tensor) or value.device.type == "meta":
        return ""
    if value.dtype == torch.bool:
        alike = value.numel() > 1 and bool((value == value.reshape(-1)[0]).all())
        return "is a mask of one value, which hides what it masks" if alike else ""
    if value.numel() > 1 and bool((value == value.reshape(-1)[0]).all()):
        return "holds equal entries alone, which hide a wrong index"
    if not value.is_floating_point():
        return ""
    if not bool(torch.isfinite(value).all()):
        return "holds NaN or infinity"
    if bool((value == 0).any()):
        return "holds a zero, which hides a dropped term"
    if 1 in value.shape:
        return f"has an axis of size 1 {tuple(value.shape)}, which hides a sum, a mean, an index"
    if len(set(value.shape)) < value.ndim:
        return f"has two axes of one size {tuple(value.shape)}, which hides a transpose"
    if value.numel() > 1 and len(set(value.reshape(-1).tolist())) < value.numel():
        return "holds equal entries, which hide a wrong index"
    if value.ndim == 0:
        return _SPECIAL.get(abs(float(value)), "")
    return ""


#: Numbers at which different formulas agree.
_SPECIAL = {
    1.0: "is 1 in magnitude, which hides a wrong power or a missing factor",
    2.0: "is 2 in magnitude, where the double is the square",
    0.5: "is 1/2 in magnitude, where x is 1 - x",
}


def _numbers(value: Any) -> Iterator[Any]:
    for entry in value:
        if isinstance(entry, list | tuple):
            yield from _numbers(entry)
        elif isinstance(entry, int | float):
            yield entry


def snapshot(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copy the tensors, to see later whether a function wrote into them."""
    return {name: v.detach().clone() for name, v in inputs.items() if isinstance(v, Tensor)}


def check_unchanged(label: str, inputs: Mapping[str, Any], before: Mapping[str, Tensor]) -> None:
    """Refuse functions that wrote into their inputs."""
    for name, copy in before.items():
        if not torch.equal(inputs[name].detach(), copy):
            raise VerificationError(f"{label}: a function under test changed its input {name!r}")
