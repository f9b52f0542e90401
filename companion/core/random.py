"""Random numbers that a reader can reproduce on any device.

Nothing here touches the global random state. Numbers are drawn on the generator's own device and
then moved, so a CPU generator gives the same numbers on a laptop and on a GPU server.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["generator", "rand", "randint", "randn"]


def generator(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a new generator with the given seed.

    Args:
        seed: Any integer that PyTorch accepts, 0 and above.
        device: The device on which it draws. Keep the CPU to have equal numbers everywhere.

    Returns:
        The generator.

    Raises:
        ValueError: If the seed is negative.

    Example:
        >>> torch.equal(randn(3, generator=generator(0)), randn(3, generator=generator(0)))
        True
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or above, got {seed}")
    made = torch.Generator(device=device)
    made.manual_seed(seed)
    return made


def randn(
    *size: int,
    generator: torch.Generator,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw standard normal numbers.

    Args:
        size: The shape.
        generator: The source of randomness.
        device: Where the result is moved; by default it stays with the generator.
        dtype: Floating dtype of the result; by default PyTorch's default dtype.

    Returns:
        A tensor of the given shape.
    """
    drawn = torch.randn(size, generator=generator, device=generator.device, dtype=dtype)
    return drawn if device is None else drawn.to(device)


def rand(
    *size: int,
    generator: torch.Generator,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw uniform numbers from [0, 1).

    Args:
        size: The shape.
        generator: The source of randomness.
        device: Where the result is moved; by default it stays with the generator.
        dtype: Floating dtype of the result; by default PyTorch's default dtype.

    Returns:
        A tensor of the given shape.
    """
    drawn = torch.rand(size, generator=generator, device=generator.device, dtype=dtype)
    return drawn if device is None else drawn.to(device)


def randint(
    low: int,
    high: int,
    size: Sequence[int],
    *,
    generator: torch.Generator,
    device: str | torch.device | None = None,
) -> Tensor:
    """Draw integers uniformly from low, ..., high - 1.

    Args:
        low: Smallest value.
        high: One above the largest value.
        size: The shape.
        generator: The source of randomness.
        device: Where the result is moved; by default it stays with the generator.

    Returns:
        An int64 tensor of the given shape.

    Raises:
        ValueError: If there is no integer to draw.
    """
    if low >= high:
        raise ValueError(f"no integer lies in [low, high) = [{low}, {high})")
    drawn = torch.randint(low, high, tuple(size), generator=generator, device=generator.device)
    return drawn if device is None else drawn.to(device)
