"""Checks at the door of a public function, with messages that name the offending values.

Shape and dtype checks cost nothing and never look at the data. Checks that read values
(:func:`check_ids`, :func:`check_finite`) do so only where :func:`can_read` allows it: on the CPU,
outside of ``torch.compile`` and ``torch.func.vmap``.
"""

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor

__all__ = [
    "can_read",
    "check_count",
    "check_finite",
    "check_floating",
    "check_ids",
    "check_in_range",
    "check_same_shape",
    "check_several",
    "check_shape",
]


def check_shape(name: str, tensor: Tensor, expected: tuple[int | None, ...]) -> None:
    """Require the shape of a tensor.

    Args:
        name: What the caller calls the tensor.
        tensor: The tensor.
        expected: One entry an axis; ``None`` accepts any size.

    Raises:
        ValueError: If the number of axes or a size differs.

    Example:
        >>> check_shape("hidden", torch.ones(2, 3), (None, 5))
        Traceback (most recent call last):
        ValueError: hidden must have shape (*, 5), got (2, 3)
    """
    shape = tuple(tensor.shape)
    fits = len(shape) == len(expected) and all(
        want is None or have == want for have, want in zip(shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join("*" if want is None else str(want) for want in expected)
        wanted += "," if len(expected) == 1 else ""
        raise ValueError(f"{name} must have shape ({wanted}), got {shape}")


def check_same_shape(first_name: str, first: Tensor, second_name: str, second: Tensor) -> None:
    """Require two tensors to have one shape.

    Args:
        first_name: What the caller calls the first tensor.
        first: The first tensor.
        second_name: What the caller calls the second tensor.
        second: The second tensor.

    Raises:
        ValueError: If the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"{first_name} and {second_name} must have the same shape, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}"
        )


def check_several(name: str, value: object) -> None:
    """Refuse one text where several are meant.

    A ``str`` is itself a sequence of ``str``, so its letters would be taken as words, silently.

    Args:
        name: What the caller calls the value.
        value: What should hold several texts, words or names.

    Raises:
        ValueError: If it is a single text.

    Example:
        >>> check_several("words", "where")
        Traceback (most recent call last):
        ValueError: words must hold several texts, got the one text 'where': put it into a list
    """
    if isinstance(value, str | bytes):
        raise ValueError(
            f"{name} must hold several texts, got the one text {value[:40]!r}: put it into a list"
        )


def check_floating(name: str, tensor: Tensor) -> None:
    """Require a floating dtype.

    Args:
        name: What the caller calls the tensor.
        tensor: The tensor.

    Raises:
        ValueError: If the tensor holds integers, booleans or complex numbers.
    """
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating, got {tensor.dtype}: convert it with .float()")


def check_in_range(
    name: str,
    value: float,
    *,
    low: float = float("-inf"),
    high: float = float("inf"),
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Require a plain number to lie in an interval. NaN lies in none.

    Args:
        name: What the caller calls the number.
        value: The number.
        low: Lower end.
        high: Upper end.
        open_low: Whether the lower end itself is excluded.
        open_high: Whether the upper end itself is excluded.

    Raises:
        ValueError: If the number lies outside.

    Example:
        >>> check_in_range("temperature", 0.0, low=0.0, open_low=True)
        Traceback (most recent call last):
        ValueError: temperature must lie in (0.0, inf], got 0.0
    """
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if not (above and below):
        interval = f"{'(' if open_low else '['}{low}, {high}{')' if open_high else ']'}"
        raise ValueError(f"{name} must lie in {interval}, got {value}")


def check_count(name: str, value: int, *, low: int = 1, high: int | None = None) -> None:
    """Require a whole number of at least ``low`` and, where given, at most ``high``.

    Args:
        name: What the caller calls the number.
        value: The number.
        low: Smallest value.
        high: Largest value, or ``None``.

    Raises:
        ValueError: If the number lies outside.

    Example:
        >>> check_count("epochs", 0)
        Traceback (most recent call last):
        ValueError: epochs must be 1 or more, got 0
    """
    if value < low or (high is not None and value > high):
        wanted = f"{low} or more" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be {wanted}, got {value}")


def can_read(tensor: Tensor) -> bool:
    """Tell whether the values of a tensor can be read at no cost.

    On an accelerator, reading would make the host wait at every call; there an id out of range
    fails in the kernel that uses it. A ``meta`` tensor, one of a graph that is being captured, and
    one inside ``torch.func.vmap`` have no values to read.

    Args:
        tensor: The tensor.

    Returns:
        Whether its values may be looked at.

    Example:
        >>> can_read(torch.ones(3)), can_read(torch.ones(3, device="meta"))
        (True, False)
    """
    if tensor.device.type != "cpu" or torch.compiler.is_compiling() or tensor.numel() == 0:
        return False
    # Transforms nest: vmap(grad(f)) wraps the batched tensor once more.
    while is_functorch_wrapped_tensor(tensor):
        if is_batchedtensor(tensor):
            return False
        tensor = get_unwrapped(tensor)
    return True


def check_ids(name: str, ids: Tensor, size: int, *, ignore: int | None = None) -> None:
    """Require integer ids that index a table of the given size.

    Args:
        name: What the caller calls the ids.
        ids: The ids, of any integer dtype.
        size: Number of rows of the table; ids must lie in 0, ..., size - 1.
        ignore: One further value that is accepted, such as -100 for "does not count".

    Raises:
        ValueError: If the dtype is not an integer one, or an id is out of range.
    """
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must hold integers, got {ids.dtype}")
    if not can_read(ids):
        return
    # As int64: the size may not fit into a narrow type, and would wrap around.
    ids = ids.detach().long()
    wrong = (ids < 0) | (ids >= size)
    if ignore is not None:
        wrong &= ids != ignore
    if bool(wrong.any()):
        first = int(ids[wrong][0])
        raise ValueError(f"{name} must lie in [0, {size}), got {first}")


def check_finite(name: str, tensor: Tensor) -> None:
    """Require every entry to be finite.

    Args:
        name: What the caller calls the tensor.
        tensor: The tensor.

    Raises:
        ValueError: If an entry is NaN or infinite.
    """
    if not can_read(tensor):
        return
    # NaN and infinity make every sum that they are in one of the two, so a finite sum says it all,
    # in a fraction of the time. One that is not may have overflowed: then each entry is looked at.
    if tensor.dtype in (torch.float32, torch.float64) and torch.isfinite(tensor.detach().sum()):
        return
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{name} must be finite, but {bad} of {tensor.numel()} entries are not")
