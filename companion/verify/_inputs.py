"""Generic inputs: numbers that hide nothing."""

from collections.abc import Mapping
from typing import Any

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
        shape: The shape. Axis sizes above 1 must differ from each other, since a square input
            hides a transpose.
        generator: The source of randomness.
        low: Smallest value. Pass a positive one for positive data.
        high: Largest value.

    Returns:
        A float64 tensor with entries in [low, high], none within 0.1 of zero.

    Raises:
        ValueError: If two axes have the same size, or the interval leaves no room.

    Example:
        >>> x = generic(3, 5, generator=torch.Generator().manual_seed(0))
        >>> bool((x.abs() >= 0.1).all()), len(x.unique())
        (True, 15)
    """
    wide = [size for size in shape if size > 1]
    if len(set(wide)) < len(wide):
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
    """Refuse floating inputs that hide mistakes. Integers, masks and settings pass."""
    for name, value in inputs.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        problem = ""
        wide = [size for size in value.shape if size > 1]
        if not bool(torch.isfinite(value).all()):
            problem = "holds NaN or infinity"
        elif bool((value == 0).any()):
            problem = "holds a zero, which hides a dropped term"
        elif len(set(wide)) < len(wide):
            problem = f"has two axes of one size {tuple(value.shape)}, which hides a transpose"
        elif value.numel() > 1 and len(set(value.reshape(-1).tolist())) < value.numel():
            problem = "holds equal entries, which hide a wrong index"
        elif value.numel() == 1 and abs(float(value)) == 1.0:
            problem = "is 1 in magnitude, which hides a wrong power"
        if problem:
            raise VerificationError(
                f"{label}: input {name!r} {problem}. Use verify.generic to draw inputs."
            )


def snapshot(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copy the tensors, to see later whether a function wrote into them."""
    return {name: v.detach().clone() for name, v in inputs.items() if isinstance(v, Tensor)}


def check_unchanged(label: str, inputs: Mapping[str, Any], before: Mapping[str, Tensor]) -> None:
    """Refuse functions that wrote into their inputs."""
    for name, copy in before.items():
        if not torch.equal(inputs[name].detach(), copy):
            raise VerificationError(f"{label}: a function under test changed its input {name!r}")
