"""Checks that the position schemes share."""

import torch
from torch import Tensor

from companion.core import can_read

__all__ = ["check_even", "check_positions", "check_step", "relative_distance"]


def check_positions(name: str, positions: Tensor, *, axes: tuple[int, ...] = (1, 2)) -> None:
    """Require integer positions of shape (n,) or (batch, n)."""
    if positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool:
        raise ValueError(f"{name} must hold integers, got {positions.dtype}")
    if positions.ndim not in axes:
        wanted = " or ".join({1: "(n,)", 2: "(batch, n)"}[axis] for axis in axes)
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(positions.shape)}")


def check_even(name: str, size: int) -> None:
    """Require an even size of at least 2: the coordinates are used in pairs."""
    if size < 2 or size % 2:
        raise ValueError(f"{name} must be even and 2 or more, got {size}")


def check_step(name: str, positions: Tensor) -> None:
    """Require positions that rise by one, where reading them costs nothing."""
    if len(positions) > 1 and can_read(positions) and not bool((positions.diff() == 1).all()):
        raise ValueError(f"{name} must rise by 1 from each to the next, got {positions.tolist()}")


def relative_distance(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """Return the offset j - i of every key from every query, shape (..., n, m)."""
    check_positions("query_positions", query_positions)
    check_positions("key_positions", key_positions)
    # int64 first: differences of unsigned or narrow integers would wrap around.
    return key_positions.long()[..., None, :] - query_positions.long()[..., :, None]
