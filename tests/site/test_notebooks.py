"""The notebooks that the site offers read well in any editor, and run outside of the repository."""

from pathlib import Path
from typing import Any

import nbformat
import pytest

import chapters as book
from export_notebooks import LEFT, Book, install_elsewhere, path_of, run_elsewhere

from .conftest import ROOT

CHAPTERS = book.chapters(ROOT)
# The two that ran fastest when they were executed; all of them: python tools/export_notebooks.py
FASTEST = sorted(
    (chapter for chapter in CHAPTERS if "/" in chapter.short),
    key=lambda chapter: book.build_metadata(chapter).get("processor_seconds", 1e9),
)[:2]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.short)
def test_the_site_offers_the_exported_notebook(chapter: book.Chapter, site: Path) -> None:
    offered = site / "_sources" / f"{chapter.name}.ipynb"
    assert offered.read_bytes() == path_of(chapter).read_bytes()
    notebook = nbformat.read(offered, as_version=4)
    assert [cell.source for cell in notebook.cells if LEFT.search(cell.source)] == []
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.id == "install-what-is-missing"
    assert not any("myst_nb" in cell.source for cell in notebook.cells)


def test_notebooks_number_equations_as_the_pages_do(ledger: dict[str, Any], site: Path) -> None:
    targets = Book(ROOT, CHAPTERS).targets
    assert {e["label"]: targets[e["label"]].text for e in ledger["equations"]} == {
        e["label"]: e["number"] for e in ledger["equations"]
    }


@pytest.mark.parametrize("chapter", FASTEST, ids=lambda chapter: chapter.short)
def test_a_notebook_runs_outside_of_the_repository(chapter: book.Chapter, tmp_path: Path) -> None:
    library = install_elsewhere(ROOT, tmp_path / "library")
    ran = run_elsewhere(path_of(chapter), library, tmp_path / "folder")
    assert any(cell.get("outputs") for cell in ran.cells)
