"""The executor and the renderer: what runs again when, and how they say what went wrong."""

import ast
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nbformat
import pytest

import chapters as book
from build_book import execute_all, readable, stage, write_notebooks

from .conftest import CHAPTERS, ROOT, chapter_text

Edit = Callable[[str, str, str], None]
BUILD = [sys.executable, str(ROOT / "tools" / "build_book.py"), "--root"]


def build(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BUILD, str(root), *arguments], check=False, capture_output=True, text=True
    )


def outdated(root: Path) -> list[str]:
    """Name the chapters that the next build would execute."""
    rests = book.Foundations(root)
    return [
        chapter.short
        for chapter in book.chapters(root)
        if book.build_metadata(chapter).get("key") != rests.key(chapter)
    ]


def pretend_executed(root: Path) -> None:
    """Leave executed notebooks with the present keys, without running a kernel."""
    rests = book.Foundations(root)
    for chapter in book.chapters(root):
        notebook = book.read_chapter(chapter)
        key = rests.key(chapter)
        notebook.metadata["companion_build"] = {"key": key, "seconds": 1.0, "date": "2000-01-01"}
        book.write_atomically(chapter.executed, nbformat.writes(notebook))


def importing(root: Path, one: str, two: str) -> None:
    """Write chapters with these imports, over a library of two rooms that share a first floor."""
    files = {
        "companion/core.py": "ONE = 1\n",
        "companion/left/__init__.py": "from companion.left._hidden import two\n",
        "companion/left/_hidden.py": "def two():\n    from ..core import ONE\n    return ONE\n",
        "companion/left/table.txt": "1 2\n",
        "companion/right.py": "from companion.core import *\n",
        "companion/data/__init__.py": "from companion.data.stored_runs import stored_run\n",
        "companion/data/stored_runs.py": "def stored_run(name): ...\n",
        "companion/data/runs/long.json": "{}\n",
        "companion/data/runs/short.json": "{}\n",
        "book/_data/terms.tsv": "a\tb\n",
        "book/part/one.md": chapter_text("One", *one.split("\n\n")),
        "book/part/two.md": chapter_text("Two", *two.split("\n\n")),
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


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
    "name", ["companion/core.py", "requirements/lock.txt", "requirements/data.txt"]
)
def test_editing_what_all_chapters_rest_on_executes_all(tiny: Path, name: str) -> None:
    importing(tiny, "from companion import core", "import companion.core")
    pretend_executed(tiny)
    with (tiny / name).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert outdated(tiny) == ["part/one", "part/two"]


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("companion/core.py", ["part/one", "part/two"]),
        ("companion/left/__init__.py", ["part/one"]),
        ("companion/left/_hidden.py", ["part/one"]),
        ("companion/left/table.txt", ["part/one"]),
        ("companion/right.py", ["part/two"]),
        ("companion/data/runs/long.json", ["part/two"]),
        ("companion/data/runs/short.json", []),
        ("companion/__init__.py", ["part/one", "part/two"]),
        ("book/_data/terms.tsv", []),
    ],
)
def test_editing_the_library_executes_the_chapters_that_rest_on_it(
    tiny: Path, changed: str, again: list[str]
) -> None:
    # One reaches core through a hidden module, inside of a function; two through a star.
    two = "from companion import data, right\n\nrun = data.stored_run('long')"
    importing(tiny, "from companion.left import two", two)
    pretend_executed(tiny)
    with (tiny / changed).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert outdated(tiny) == again


@pytest.mark.parametrize(
    "cell",
    [
        "import companion\ngetattr(companion, 'le' + 'ft')",
        "from companion import whatever_is_made_up",
        "from companion import *",
        "import importlib\nimportlib.import_module('companion.left')",
        "exec('from companion import left')",
        "%run left.py",
        "open('../../../companion/left/table.txt').read()",
        "from companion import data\ndata.stored_run(name)",
        "from companion.data import stored_run as read\nread('long')",
        "from companion import broken",
    ],
)
def test_a_chapter_that_does_not_say_what_it_rests_on_rests_on_everything(
    tiny: Path, cell: str
) -> None:
    importing(tiny, cell, "x = 1")
    init = 'def __getattr__(name):\n    return __import__(f"companion.{name}")\n'
    (tiny / "companion/__init__.py").write_text(init, encoding="utf-8")
    (tiny / "companion/broken.py").write_text("def (\n", encoding="utf-8")
    pretend_executed(tiny)
    changed = "data/runs/long.json" if "stored_run" in cell else "left/_hidden.py"
    with (tiny / "companion" / changed).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert outdated(tiny) == ["part/one"]


@pytest.mark.parametrize("table", ["{'two': '.left'}", "{'companion.left': ('two', 'three')}"])
def test_a_name_that_a_package_fetches_when_asked_is_found_in_its_table(
    tiny: Path, edit: Edit, table: str
) -> None:
    importing(tiny, "from companion import two", "import companion\ncompanion.right.ONE")
    init = f"TABLE = {table}\n\n\ndef __getattr__(name):\n    return __import__(TABLE[name])\n"
    (tiny / "companion/__init__.py").write_text(init, encoding="utf-8")
    pretend_executed(tiny)
    edit("companion/left/_hidden.py", "return ONE", "return 2 * ONE")
    assert outdated(tiny) == ["part/one"]
    pretend_executed(tiny)
    edit("companion/right.py", "*", "ONE")
    assert outdated(tiny) == ["part/two"]


def test_what_importing_really_loads_lies_in_the_closure() -> None:
    # Each chapter's imports run in a process of their own, forked from one that has torch.
    library, code = book.Foundations(ROOT), {}
    for chapter in CHAPTERS:
        cells = [c.source for c in book.read_chapter(chapter).cells if c.cell_type == "code"]
        nodes = ast.walk(ast.parse("\n".join(cells)))
        lines = [ast.unparse(n) for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
        code[chapter.short] = "\n".join(line for line in lines if "companion" in line)
    program = f"""
import json, os, sys
import torch, sympy, matplotlib.pyplot, scipy.stats
for name, lines in json.loads({json.dumps(json.dumps(code))}).items():
    if not os.fork():
        exec(lines)
        loaded = [m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "companion"]
        os.write(1, (json.dumps([name, loaded]) + "\\n").encode())
        os._exit(0)
    os.wait()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment
    )
    loaded = dict(json.loads(line) for line in done.stdout.splitlines())
    assert set(loaded) == set(code)
    for chapter in CHAPTERS:
        below = {str(file) for file in library.below(chapter)}
        assert len(loaded[chapter.short]) > 10
        assert not set(loaded[chapter.short]) - below, chapter.short


def test_no_chapter_of_the_book_rests_on_everything() -> None:
    library = book.Foundations(ROOT)
    for chapter in CHAPTERS:
        assert set(library.library.files) - set(library.below(chapter)), chapter.short


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
        asyncio.run(book.execute(one, "key"))
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


def test_an_interrupted_build_ends_its_kernels_and_says_so(tiny: Path) -> None:
    cell = "import os, pathlib, time\npathlib.Path(f'{os.getpid()}.pid').touch()\ntime.sleep(120)"
    for name in ("one", "two"):
        text = chapter_text(name.title(), cell)
        (tiny / f"book/part/{name}.md").write_text(text, encoding="utf-8")
    process = subprocess.Popen(
        [*BUILD, str(tiny)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JOBS": "2"},
    )
    folder, deadline = tiny / "_build/executed/book/part", time.monotonic() + 120
    while len(pids := list(folder.glob("*.pid"))) < 2:
        assert time.monotonic() < deadline, "the chapters do not run side by side"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    # A kernel that ends in the middle of a cell may write a line of its own before.
    assert said.rstrip().endswith("\ninterrupted; the same command goes on from here")
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.stem), 0)


def test_work_is_done_in_order_so_many_at_a_time() -> None:
    begun: list[int] = []
    running: list[int] = []
    most = 0

    async def piece(number: int) -> None:
        nonlocal most
        begun.append(number)
        running.append(number)
        most = max(most, len(running))
        await asyncio.sleep(0.01 * (number % 3))
        running.remove(number)

    for count in (1, 3, 20):
        begun.clear()
        most = 0
        asyncio.run(book.side_by_side(count, [partial(piece, n) for n in range(11)]))
        assert begun == list(range(11))
        assert most == min(count, 11)


def test_the_number_of_jobs_is_asked_for_or_fits_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JOBS", "7")
    assert book.jobs() == 7
    for wrong in ("0", "many", "-1"):
        monkeypatch.setenv("JOBS", wrong)
        with pytest.raises(book.ChapterError, match=f"JOBS={wrong}: say how many"):
            book.jobs()
    monkeypatch.setenv("JOBS", "")
    monkeypatch.setattr(book, "BYTES_PER_JOB", 1)
    monkeypatch.setattr(book, "cores", lambda: 5.0)
    assert book.jobs() == 5
    monkeypatch.setattr(book, "cores", lambda: 0.5)  # half a processor, in a container
    assert book.jobs() == 1
    monkeypatch.setattr(book, "BYTES_PER_JOB", 1 << 60)  # more than there is
    monkeypatch.setattr(book, "cores", lambda: 64.0)
    assert book.jobs() == 1


def test_a_busy_machine_is_given_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "cores", lambda: 2.0)
    for load, factor in ((0.3, 1.0), (2.0, 1.0), (12.0, 6.0)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert book.patience() == factor


def test_a_cell_that_takes_too_long_fails_with_its_limit(
    tiny: Path, edit: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book, "CELL_SECONDS", 1)
    monkeypatch.setattr(book, "patience", lambda: 2.0)
    edit("book/part/one.md", "print(x + 1)", "import time; time.sleep(60)")
    book.prepare_kernels(tiny)
    with pytest.raises(book.ChapterError, match=r"code cell 2 of 2 failed(?s:.*)after 2 seconds"):
        asyncio.run(book.execute(book.chapters(tiny)[0], "key"))


def test_long_chapters_come_first(tiny: Path) -> None:
    one, two = book.chapters(tiny)
    assert book.longest_first([one, two]) == [one, two], "never executed: one has more text"
    for chapter, seconds in ((one, 2.0), (two, 3.0)):
        notebook = book.read_chapter(chapter)
        notebook.metadata["companion_build"] = {"seconds": seconds}
        book.write_atomically(chapter.executed, nbformat.writes(notebook))
    assert book.longest_first([one, two]) == [two, one]


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


def test_notebooks_are_written_from_executed_chapters(tiny: Path) -> None:
    done = build(tiny, "--notebooks")
    assert done.returncode == 0, done.stderr
    assert "2 notebooks to read and to run are in _build/notebooks" in done.stdout
    for name, told in (("one", "2\n"), ("two", "two\n")):
        written = nbformat.read(tiny / f"_build/notebooks/part/{name}.ipynb", as_version=4)
        assert written.metadata.kernelspec.name == "python3"
        outputs = [output for cell in written.cells for output in cell.get("outputs", [])]
        assert [output.text for output in outputs] == [told]
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
