"""The executor and the renderer: what runs again when, and how they say what went wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

import chapters as book
from build_book import execute_all, readable, stage, write_notebooks

from .conftest import ROOT, chapter_text

Edit = Callable[[str, str, str], None]
BUILD = [sys.executable, str(ROOT / "tools" / "build_book.py"), "--root"]


def build(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BUILD, str(root), *arguments], check=False, capture_output=True, text=True
    )


def outdated(root: Path) -> list[str]:
    """Name the chapters that the next build would execute."""
    library = book.library_key(root)
    return [
        chapter.short
        for chapter in book.chapters(root)
        if book.build_metadata(chapter).get("key") != book.chapter_key(chapter, library)
    ]


def pretend_executed(root: Path) -> None:
    """Leave executed notebooks with the present keys, without running a kernel."""
    library = book.library_key(root)
    for chapter in book.chapters(root):
        notebook = book.read_chapter(chapter)
        key = book.chapter_key(chapter, library)
        notebook.metadata["companion_build"] = {"key": key, "seconds": 1.0, "date": "2000-01-01"}
        book.write_atomically(chapter.executed, nbformat.writes(notebook))


def test_pages_without_a_kernel_are_not_chapters(tiny: Path) -> None:
    assert [chapter.short for chapter in book.chapters(tiny)] == ["part/one", "part/two"]


def test_a_page_in_the_contents_that_does_not_exist_is_named(tiny: Path, edit: Edit) -> None:
    edit("_toc.yml", "part/two", "part/three")
    with pytest.raises(book.ChapterError, match=r"lists book/part/three, but there is no"):
        book.chapters(tiny)


def test_an_unchanged_book_executes_nothing(tiny: Path) -> None:
    assert outdated(tiny) == ["part/one", "part/two"]
    pretend_executed(tiny)
    assert outdated(tiny) == []
    assert execute_all(tiny, book.chapters(tiny)) == 0


def test_editing_one_chapter_executes_that_one(tiny: Path, edit: Edit) -> None:
    pretend_executed(tiny)
    edit("book/part/two.md", "'two'", "'2'")
    assert outdated(tiny) == ["part/two"]


@pytest.mark.parametrize(
    "name", ["companion/__init__.py", "requirements/lock.txt", "requirements/data.txt"]
)
def test_editing_what_all_chapters_rest_on_executes_all(tiny: Path, name: str) -> None:
    pretend_executed(tiny)
    with (tiny / name).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert outdated(tiny) == ["part/one", "part/two"]


def test_a_damaged_execution_is_done_again(tiny: Path) -> None:
    pretend_executed(tiny)
    (tiny / "_build/executed/book/part/one.ipynb").write_text('{"cells": [', encoding="utf-8")
    assert outdated(tiny) == ["part/one"]


def test_a_failing_cell_is_reported_with_chapter_cell_and_message(tiny: Path, edit: Edit) -> None:
    edit("book/part/one.md", "print(x + 1)", "y = 0\nprint(x / y)")
    done = build(tiny)
    assert done.returncode == 1
    line = (tiny / "book/part/one.md").read_text(encoding="utf-8").split("y = 0")[0].count("\n") + 1
    assert f"book/part/one.md, line {line}: code cell 2 of 2 failed" in done.stderr
    assert "    | y = 0\n    | print(x / y)\n" in done.stderr
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert "\x1b[" not in done.stderr + done.stdout
    # The others are attempted all the same, and nothing is left of the failed one.
    assert [c.name for c in book.chapters(tiny) if c.executed.is_file()] == ["book/part/two"]
    assert not (tiny / "_build/html").exists()


def test_an_executed_chapter_is_the_same_each_time_but_for_its_time(tiny: Path) -> None:
    one = book.chapters(tiny)[0]
    texts = []
    for _ in range(2):
        book.prepare_kernels(tiny)
        book.execute(one, "key")
        notebook = nbformat.read(one.executed, as_version=4)
        assert notebook.metadata.pop("companion_build")["key"] == "key"
        texts.append(nbformat.writes(notebook))
    assert texts[0] == texts[1]
    assert book.unexecuted(notebook) == []


def test_a_killed_build_leaves_nothing_half_written_and_goes_on(tiny: Path) -> None:
    slow = chapter_text("Two", "import time; time.sleep(120)")
    (tiny / "book/part/two.md").write_text(slow, encoding="utf-8")
    process = subprocess.Popen([*BUILD, str(tiny)], stdout=subprocess.PIPE, text=True)
    one, two = book.chapters(tiny)
    deadline = time.monotonic() + 60
    while not one.executed.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert one.executed.is_file()
    assert not two.executed.exists()
    assert outdated(tiny) == ["part/two"]


def test_cells_that_did_not_run_or_lost_their_output_are_found(tiny: Path) -> None:
    fresh = book.read_chapter(book.chapters(tiny)[0])
    assert book.unexecuted(fresh) == [
        "code cell 1 was not executed",
        "code cell 2 was not executed",
    ]
    for count, cell in enumerate((c for c in fresh.cells if c.cell_type == "code"), 1):
        cell.execution_count = count
    assert book.unexecuted(fresh) == ["code cell 2 left no output"]


@pytest.mark.parametrize(
    ("source", "must"),
    [
        ("print(1)", True),
        ("verify.equal('eq:a', f)", True),
        ("record = verify.cost('eq:a', f)", True),
        ("def show():\n    print(1)", False),
        ("x = 1", False),
    ],
)
def test_which_cells_must_leave_an_output(source: str, must: bool) -> None:
    assert book.must_output(nbformat.v4.new_code_cell(source)) is must


def test_one_unknown_chapter_lists_those_there_are(tiny: Path) -> None:
    for name, said in (("part/three", "there is no chapter 'part/three'"), ("", "name a chapter")):
        done = build(tiny, "--chapter", name)
        assert done.returncode == 1
        assert said in done.stderr
        assert done.stderr.rstrip().endswith("part/one\n  part/two")


def test_one_chapter_shows_what_it_printed(tiny: Path) -> None:
    done = build(tiny, "--chapter", "part/one")
    assert done.returncode == 0, done.stderr
    assert "\n2\n" in done.stdout
    assert outdated(tiny) == ["part/two"]


def test_notebooks_to_run_have_no_outputs(tiny: Path) -> None:
    done = build(tiny, "--notebooks")
    assert done.returncode == 0, done.stderr
    for name in ("one", "two"):
        written = nbformat.read(tiny / f"_build/notebooks/part/{name}.ipynb", as_version=4)
        assert written.metadata.kernelspec.name == "python3"
        assert not any(cell.get("outputs") for cell in written.cells)
    # A chapter that is gone takes its notebook with it.
    write_notebooks(tiny, book.chapters(tiny)[:1])
    assert not (tiny / "_build/notebooks/part/two.ipynb").exists()


def test_staging_writes_what_changed_and_removes_what_is_gone(tiny: Path, edit: Edit) -> None:
    pretend_executed(tiny)
    found = book.chapters(tiny)
    assert stage(tiny, found), "the first staging is a whole one"
    source = tiny / "_build/src"
    assert (source / "book/part/one.ipynb").is_file()
    assert not (source / "book/part/one.md").exists()
    before = {f: f.stat().st_mtime_ns for f in source.rglob("*") if f.is_file()}

    edit("book/preface.md", "Hello", "Good day")
    assert not stage(tiny, found), "a changed page needs no whole rendering"
    changed = [f.name for f, old in before.items() if f.stat().st_mtime_ns != old]
    assert changed == ["preface.md"]

    edit("_config.yml", "Tiny", "Small")
    assert stage(tiny, found), "a changed configuration does"
    (tiny / "book/preface.md").unlink()
    assert stage(tiny, found), "and so does a page that is gone"
    assert not (source / "book/preface.md").exists()


def test_messages_speak_of_cells(tmp_path: Path) -> None:
    line = f"\x1b[91m{tmp_path}/book/part/one.ipynb:30004: WARNING: no such label\x1b[39;49;00m"
    said = "book/part/one.md: cell 3, line 4: WARNING: no such label"
    assert readable(line, tmp_path) == said


def test_a_book_with_warnings_fails_each_time_until_it_is_mended(tiny: Path, edit: Edit) -> None:
    pretend_executed(tiny)
    edit("book/preface.md", "Hello.", "See {ref}`nowhere`.")
    for _ in range(2):  # Sphinx alone would be silent about a page that it has read before
        done = build(tiny)
        assert done.returncode == 1
        assert "book/preface.md:3: WARNING: undefined label: 'nowhere'" in done.stderr
    edit("book/preface.md", "See {ref}`nowhere`.", "Hello again.")
    ledger = {"equations": [{"label": "eq:a"}, {"label": "eq:b"}]}
    (tiny / "_build/ledger.json").write_text(json.dumps(ledger), encoding="utf-8")
    done = build(tiny)
    assert done.returncode == 0, done.stderr
    assert "Hello again" in (tiny / "_build/html/book/preface.html").read_text(encoding="utf-8")
    assert "equations verified  2" in done.stdout
    assert "make serve" in done.stdout
