"""Training runs that took longer than a chapter may: their curves, stored with what made them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from companion.data.errors import CorruptDataError, MissingDataError

__all__ = ["StoredRun", "stored_run"]

FOLDER = Path(__file__).parent / "runs"
FIELDS = ("name", "command", "seed", "date", "seconds", "machine", "versions", "results")


class _Words(str):
    """Text that a notebook shows without quotation marks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _words(value: Any) -> Any:
    if isinstance(value, str):
        return _Words(value)
    if isinstance(value, list):
        return [_words(item) for item in value]
    if isinstance(value, dict):
        return {key: _words(item) for key, item in value.items()}
    return value


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """A training run as it came out on one machine, on one day.

    Another machine gives other roundings, and so slightly other curves. Strings are shown without
    quotation marks where a notebook shows them.

    Attributes:
        name: Name of the run.
        command: What repeats it, in the repository's folder.
        seed: What all its random numbers come from.
        date: Day on which it ended, as YYYY-MM-DD.
        seconds: Wall time.
        machine: Processor, number of threads, accelerator.
        versions: Versions of Python, PyTorch and this library.
        results: Curves and numbers; what they mean is said where they are used.
    """

    name: str
    command: str
    seed: int
    date: str
    seconds: float
    machine: str
    versions: dict[str, str]
    results: dict[str, Any]

    def __repr__(self) -> str:
        return f"StoredRun('{self.name}', {self.date}, {self.seconds:.0f} s on {self.machine})"


def stored_run(name: str) -> StoredRun:
    """Read a stored training run.

    Args:
        name: Name of the run.

    Returns:
        The run.

    Raises:
        MissingDataError: If there is none of this name.
        CorruptDataError: If its file is not what a run leaves behind.
    """
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json"))) or "none"
        raise MissingDataError(f"no stored run is called {name!r}; there is {known}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptDataError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(fields, dict) or set(fields) != set(FIELDS) or fields["name"] != name:
        raise CorruptDataError(f"{path.name} must hold {', '.join(FIELDS)}, and its own name")
    return StoredRun(**_words(fields))
