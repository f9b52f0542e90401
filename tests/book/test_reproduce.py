"""nbval compares every kind of output, so that the second execution means something."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

import chapters as book
import nbval_strict

from .conftest import ROOT, chapter_text

RECORD = "application/vnd.companion.verification+json"
CELLS = (
    "import matplotlib.pyplot as plt\nimport torch\nfrom IPython.display import Math, display",
    "print(torch.arange(3))",
    f"display({{'text/plain': 'ok', '{RECORD}': {{'label': 'eq:a', 'error': 1e-9}}}}, raw=True)",
    "fig, ax = plt.subplots(figsize=(1, 1))\nax.plot([1, 2]);",
    "display(Math('x^2'))",
    """from companion.core import figures\nfigures.style()
fig, ax = plt.subplots(figsize=(1, 1))\nax.plot([1, 2], label='a')\nax.legend();""",
    "# tagged below\nimport time; print(time.time_ns())",
)


def nbval(root: Path, notebook: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "--color=no"]
    command += ["-p", "nbval_strict", "-p", "no:cacheprovider", "--rootdir", str(root)]
    environment = {**book.kernel_environment(root), "PYTHONPATH": str(ROOT / "tools")}
    return subprocess.run(
        [*command, str(notebook)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=root,
    )


def alter_text(cells: list[NotebookNode]) -> None:
    cells[1].outputs[0].text = "tensor([0, 1, 3])\n"


def alter_record(cells: list[NotebookNode]) -> None:
    cells[2].outputs[0].data[RECORD]["error"] = 2e-9


def alter_figure(cells: list[NotebookNode]) -> None:
    picture = cells[3].outputs[0].data["image/png"]
    cells[3].outputs[0].data["image/png"] = picture.replace("A", "B", 1)


def alter_latex(cells: list[NotebookNode]) -> None:
    cells[4].outputs[0].data["text/latex"] = "$\\displaystyle x^3$"


def alter_drawing(cells: list[NotebookNode]) -> None:
    drawing = cells[5].outputs[0].data["image/svg+xml"]
    assert drawing.startswith("<svg data-panels=")
    cells[5].outputs[0].data["image/svg+xml"] = drawing.replace(">a<", ">b<", 1)


def drop_output(cells: list[NotebookNode]) -> None:
    cells[1].outputs = []


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A notebook with an output of each kind, executed by the book's own executor."""
    root = tmp_path_factory.mktemp("book")
    text = chapter_text("Kinds", *CELLS)
    text = text.replace("# tagged below", "---\ntags: [nbval-ignore-output]\n---")
    path = root / "book/part/kinds.md"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    chapter = book.Chapter(root, "book/part/kinds")
    book.prepare_kernels(root)
    asyncio.run(book.execute(chapter, "key"))
    return root, chapter.executed


def test_a_second_execution_reproduces_the_first(executed: tuple[Path, Path]) -> None:
    root, notebook = executed
    assert book.unexecuted(nbformat.read(notebook, as_version=4)) == []
    done = nbval(root, notebook)
    assert done.returncode == 0, done.stdout
    assert f"{len(CELLS)} passed" in done.stdout


@pytest.mark.parametrize(
    ("alter", "cell"),
    [
        (alter_text, 1),
        (alter_record, 2),
        (alter_figure, 3),
        (alter_latex, 4),
        (alter_drawing, 5),
        (drop_output, 1),
    ],
)
def test_one_altered_output_is_found(
    executed: tuple[Path, Path], alter: Callable[[list[NotebookNode]], None], cell: int
) -> None:
    root, path = executed
    notebook = nbformat.read(path, as_version=4)
    alter([c for c in notebook.cells if c.cell_type == "code"])
    altered = path.with_name(f"{alter.__name__}.ipynb")
    altered.write_text(nbformat.writes(notebook), encoding="utf-8")
    done = nbval(root, altered)
    assert done.returncode == 1, done.stdout
    assert f"1 failed, {len(CELLS) - 1} passed" in done.stdout
    assert f"{altered.name}::Cell {cell}" in done.stdout


def record(error: float) -> dict[str, object]:
    line = f"✓ eq:a · equality by evaluation · largest error {error:.0e} · 3 mutants rejected"
    return {
        "label": "eq:a",
        "largest_error": error,
        "routes": [["evaluation", error], ["autograd", 1e-9]],
        "tolerance_used": error / 1e-10,
        "line": line,
        "mutants": ["a sign"],
    }


def test_digits_of_rounding_are_no_difference_and_all_else_is() -> None:
    settle = nbval_strict.settle
    one, other = record(3e-16), record(2e-16)
    assert one != other
    assert settle(one) == settle(other) == settle(record(0.0) | {"line": other["line"]})
    assert one == record(3e-16), "the record itself stays as it was"
    assert settle(record(3e-9)) == record(3e-9) != settle(record(2e-9))
    assert settle(one | {"mutants": []}) != settle(other)
    assert settle(one | {"label": "eq:b"}) != settle(other)
    assert settle(str(one["line"])) == settle(str(other["line"])) != one["line"]
    assert settle("the largest error 0.25") == "the largest error 0.25"
    assert settle("3e-16") == "3e-16", "numbers of the lesson are compared to the last digit"
    assert settle({"largest_error": 3e-16}) == {"largest_error": 3e-16}, "no record of a check"
