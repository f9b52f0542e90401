"""What the options of several commands have in common: their domains, paths and texts."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "LARGEST",
    "Schema",
    "count",
    "device_name",
    "interval",
    "number",
    "path_of",
    "plain",
    "read_text",
]

#: No count of anything is larger: it would not fit into the memory of any machine.
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Schema:
    """A JSON schema, as ``json.loads`` gives it."""

    value: object


def count(name: str, value: int, *, low: int = 1, high: int = LARGEST) -> int:
    """Require an option to be a whole number in a range.

    Args:
        name: The option, without its dashes.
        value: What was given.
        low: Smallest value.
        high: Largest value.

    Returns:
        The value.

    Raises:
        ValueError: If it is out of range.
    """
    if value < low:
        raise ValueError(f"--{name} must be {low} or more, got {value}")
    if value > high:
        raise ValueError(f"--{name} must be {high} or less, got {value}")
    return value


def number(name: str, value: float, *, low: float, high: float, open_low: bool = False) -> float:
    """Require an option to be a number in a range, and not NaN.

    Args:
        name: The option, without its dashes.
        value: What was given.
        low: Smallest value.
        high: Largest value.
        open_low: Whether the smallest value itself is excluded.

    Returns:
        The value.

    Raises:
        ValueError: If it is out of range.
    """
    if open_low and not value > low:
        raise ValueError(f"--{name} must be above {low:g}, got {value}")
    if not low <= value <= high or math.isinf(value):
        wanted = f"{low:g} or more" if value < low else f"from {low:g} to {high:g}"
        raise ValueError(f"--{name} must be {wanted}, got {value}")
    return value


def interval(name: str, value: int | None, steps: int, parts: int) -> int:
    """Return the steps between two events: those asked for, or a part of all."""
    return max(1, steps // parts) if value is None else count(name, value)


def device_name(value: str | None) -> str | None:
    """Require a kind of device that a model can be trained on.

    Args:
        value: What was given; ``None`` leaves the choice to the machine.

    Returns:
        The value.

    Raises:
        ValueError: If it is of another kind.
    """
    kind, _, place = (value or "cpu").partition(":")
    if kind not in ("cpu", "cuda", "mps") or (":" in (value or "") and not place.isdecimal()):
        raise ValueError(f"unknown device {value!r}: --device takes cpu, cuda, cuda:1 or mps")
    return value


def path_of(value: str | Path, *, name: str) -> Path:
    """Return a path that was given in words, ``~`` being the home.

    Args:
        value: What was given.
        name: What the path is of.

    Returns:
        The path.

    Raises:
        ValueError: If it is empty, or the home of a user whom the machine does not know.
    """
    if not str(value).strip():
        raise ValueError(f"the path of {name} is empty")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{value} cannot be found: {error}") from error


def plain(name: str, value: str) -> str:
    """Require text that can be written as UTF-8: what came as other bytes cannot.

    Args:
        name: The option.
        value: What was given.

    Returns:
        The value.

    Raises:
        ValueError: If the words of the command line were other bytes.
    """
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        wrong = os.fsencode(value[error.start : error.start + 1])
        raise ValueError(f"{name} is not UTF-8 text: {wrong!r} is no character") from None
    return value


def read_text(path: str | Path) -> str:
    """Read a file as UTF-8, without the mark that some editors put before the first byte.

    Args:
        path: The file.

    Returns:
        Its text.

    Raises:
        ValueError: If it cannot be read, or is no UTF-8.
    """
    try:
        return path_of(path, name="a file").read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
