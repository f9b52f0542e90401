"""A pytest plugin that makes nbval's second run the same as the first, and its comparison whole.

By itself nbval skips figures unless nbdime is installed, and does not let the kernel see the
semicolon that hides a cell's last value.
"""

import re
from typing import Any

import pytest
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell

# An error of a check that is not above this is rounding. Its digits hang on where in memory an
# array lies, since vector instructions sum in blocks from there: no run can repeat them.
ROUNDING = 1e-12
PLAIN_SANITIZE = IPyNbCell.sanitize


def settle(value: Any) -> Any:
    """Replace the digits of rounding in a check's record and in its line; leave all else."""
    if isinstance(value, str):
        return re.sub(r"(largest error )([\d.e+-]+)", _settle_number, value)
    if isinstance(value, dict) and {"label", "largest_error", "routes"} <= value.keys():
        settled = {key: settle(item) for key, item in value.items()}
        if value["largest_error"] <= ROUNDING:
            settled["largest_error"] = "rounding"
            settled.pop("tolerance_used", None)  # the error again, as a share of what is allowed
        settled["routes"] = [
            [name, "rounding" if error <= ROUNDING else error] for name, error in value["routes"]
        ]
        return settled
    return value


def _settle_number(found: re.Match[str]) -> str:
    return found[1] + ("of rounding" if float(found[2]) <= ROUNDING else found[2])


def sanitize(self: IPyNbCell, value: Any) -> Any:
    """Prepare an output for the comparison as nbval does, without the digits of rounding."""
    return settle(PLAIN_SANITIZE(self, value))


def execute_cell_input(
    self: RunningKernel, cell_input: str, allow_stdin: bool | None = None
) -> str:
    """Execute a cell as the build does, with history."""
    return self.kc.execute(
        cell_input, allow_stdin=allow_stdin, stop_on_error=False, store_history=True
    )


def pytest_configure() -> None:
    """Replace how nbval sends a cell to its kernel, and how it reads what comes back."""
    RunningKernel.execute_cell_input = execute_cell_input
    IPyNbCell.sanitize = sanitize


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out of the comparison only what no run can repeat: counters and metadata.

    And wait longer than nbval's 5 s for what a cell wrote, on a machine that is busy.
    """
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 60
        skipped = getattr(item.parent, "skip_compare", ())
        if skipped:
            item.parent.skip_compare = tuple(key for key in skipped if not key.startswith("image/"))
