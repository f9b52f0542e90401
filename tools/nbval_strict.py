"""A pytest plugin that makes nbval's second run the same as the first, and its comparison whole.

By itself nbval skips figures unless nbdime is installed, and does not let the kernel see the
semicolon that hides a cell's last value.
"""

import pytest
from nbval.kernel import RunningKernel


def execute_cell_input(
    self: RunningKernel, cell_input: str, allow_stdin: bool | None = None
) -> str:
    """Execute a cell as the build does, with history."""
    return self.kc.execute(
        cell_input, allow_stdin=allow_stdin, stop_on_error=False, store_history=True
    )


def pytest_configure() -> None:
    """Replace how nbval sends a cell to its kernel."""
    RunningKernel.execute_cell_input = execute_cell_input


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
