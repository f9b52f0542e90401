"""What a verification leaves behind: one line for the reader, one record for the ledger."""

import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["MIME", "Verification", "VerificationError", "check_label", "emit"]

#: Media type of the machine-readable record in a notebook's outputs.
MIME = "application/vnd.companion.verification+json"

_LABEL = re.compile(r"eq:[a-z0-9]+(-[a-z0-9]+)*")


class VerificationError(AssertionError):
    """A claim is wrong, its inputs hide mistakes, or its check cannot fail."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The record of one check that passed.

    Attributes:
        label: Label of the equation, such as ``eq:softmax-shift``.
        kind: Which of the six checks.
        routes: Independent ways by which the claim was confirmed, each with its largest error.
        tolerance: Largest error that the loosest route would have accepted.
        mutants: Names of the wrong versions of the claim that were rejected.
        points: Number of points, samples or sizes at which it was checked.
        unit: Unit of the errors.
        shown: Key of the SymPy expression that the page prints, where it is the verified object.
        read: Whether the claim was read from the page, and not only compared with it.
    """

    label: str
    kind: str
    routes: tuple[tuple[str, float], ...]
    tolerance: float
    mutants: tuple[str, ...]
    points: int
    unit: str = "relative"
    shown: str | None = None
    read: bool = False
    _seen: list[bool] = field(default_factory=list, repr=False, compare=False)

    @property
    def largest_error(self) -> float:
        """Largest error over all routes."""
        return max(error for _, error in self.routes)

    @property
    def line(self) -> str:
        """The one line that the reader sees."""
        names = ", ".join(name for name, _ in self.routes)
        error = f"{self.largest_error:.0e}" if self.largest_error else "0"
        words = {"standard errors": f"{self.largest_error:.1f} standard errors off"}
        how = words.get(self.unit, f"largest error {error}")
        if self.kind == "bound":
            how = f"smallest gap {error}"
        count = len(self.mutants)
        source = "read from the page · " if self.read else ""
        return f"✓ {self.label} · {source}{self.kind} by {names} · {how} · {count} mutants rejected"

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON types."""
        record = {key: value for key, value in asdict(self).items() if not key.startswith("_")}
        record["routes"] = [list(route) for route in self.routes]
        record["mutants"] = list(self.mutants)
        # How much of the tolerance the error takes: near 0 it is idle, near 1 it is tight.
        used = self.largest_error / self.tolerance if self.tolerance else 0.0
        told = {"largest_error": self.largest_error, "tolerance_used": used, "line": self.line}
        return record | told

    def _ipython_display_(self) -> None:
        # A call at the end of a cell is also the cell's value. It was displayed when it passed.
        if not self._seen:
            self._display()

    def _display(self) -> None:
        self._seen.append(True)
        # Without a running notebook there is nothing to leave a record in.
        ipython = sys.modules.get("IPython")
        if ipython is not None and ipython.get_ipython() is not None:
            bundle = {"text/plain": self.line, MIME: self.as_dict()}
            ipython.display.display(bundle, raw=True)
        else:
            print(self.line)


def emit(
    *,
    label: str,
    kind: str,
    routes: Iterable[tuple[str, float]],
    tolerance: float,
    mutants: Iterable[str],
    points: int,
    unit: str = "relative",
    shown: str | None = None,
    read: bool = False,
) -> Verification:
    """Record a check that passed and show its line."""
    verification = Verification(
        label=label,
        kind=kind,
        routes=tuple((name, float(error)) for name, error in routes),
        tolerance=tolerance,
        mutants=tuple(mutants),
        points=points,
        unit=unit,
        shown=shown,
        read=read,
    )
    verification._display()
    return verification


def check_label(label: str) -> None:
    """Require the form of an equation label."""
    if not _LABEL.fullmatch(label):
        raise ValueError(f"label must look like 'eq:softmax-shift', got {label!r}")
