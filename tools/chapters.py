"""Find the book's chapters, execute them, and tell when an execution is out of date."""

import ast
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
CELL_SECONDS = 600
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class ChapterError(Exception):
    """Raised where a chapter does not execute; the message names chapter, cell and error."""


@dataclass(frozen=True)
class Chapter:
    """One text notebook of the book; ``name`` is its path without the suffix."""

    root: Path
    name: str

    @property
    def source(self) -> Path:
        return self.root / f"{self.name}.md"

    @property
    def executed(self) -> Path:
        return self.root / "_build" / "executed" / f"{self.name}.ipynb"

    @property
    def short(self) -> str:
        return self.name.removeprefix("book/")


def front_matter(text: str) -> dict[str, Any]:
    """Return the YAML header of a page, empty where it has none."""
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    return (yaml.safe_load(match[1]) or {}) if match else {}


def pages(root: Path) -> list[str]:
    """Return the pages named in ``_toc.yml``, in reading order, without suffixes."""

    def walk(node: Any) -> Iterator[str]:
        for key, value in node.items() if isinstance(node, dict) else ():
            if key in ("root", "file"):
                yield re.sub(r"\.(md|ipynb)$", "", value)
            for child in value if isinstance(value, list) else ():
                yield from walk(child)

    return list(walk(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))))


def chapters(root: Path) -> list[Chapter]:
    """Return the pages that are executed: those whose header names a kernel."""
    found = []
    for name in pages(root):
        source = root / f"{name}.md"
        if not source.is_file():
            raise ChapterError(f"_toc.yml lists {name}, but there is no {name}.md")
        if "kernelspec" in front_matter(source.read_text(encoding="utf-8")):
            found.append(Chapter(root, name))
    return found


def library_key(root: Path) -> str:
    """Return a digest of what every chapter rests on: the library, the data, the dependencies."""
    files = [root / "requirements" / "lock.txt", root / "requirements" / "data.txt"]
    files += [*(root / "companion").rglob("*"), *(root / "book" / "_data").rglob("*")]
    digest = hashlib.sha256(os.fsencode("{}.{}.{}".format(*sys.version_info[:3])))
    for file in sorted([*files, Path(__file__)]):
        if file.is_file() and "__pycache__" not in file.parts:
            name = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
            digest.update(f"\0{name.as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def chapter_key(chapter: Chapter, library: str) -> str:
    """Return the digest under which an executed chapter may be used again."""
    return hashlib.sha256(library.encode() + chapter.source.read_bytes()).hexdigest()


def build_metadata(chapter: Chapter) -> dict[str, Any]:
    """Return what the last execution wrote down about itself, empty where there is none."""
    try:
        return dict(nbformat.read(chapter.executed, as_version=4).metadata["companion_build"])
    except (OSError, KeyError, ValueError, nbformat.validator.NotebookValidationError):
        return {}


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read_chapter(chapter: Chapter) -> NotebookNode:
    """Return a chapter as a notebook without outputs, with the same cell ids every time."""
    notebook = jupytext.read(chapter.source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{chapter.source.stem.replace('_', '-')[:50]}-{number}"
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def kernel_environment(root: Path) -> dict[str, str]:
    """Return the environment in which the build and nbval run kernels: the same, and offline."""
    build = root / "_build"
    own = {
        "PYTHONHASHSEED": "0",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "MPLCONFIGDIR": str(build / "matplotlib"),
        "IPYTHONDIR": str(build / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "COLUMNS": "80",
        # A waiting thread sleeps instead of spinning: on a busy machine that is many times faster.
        "OMP_WAIT_POLICY": "passive",
    }
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}  # sums depend on it
    return {**os.environ, **threads, **own}


def prepare_kernels(root: Path) -> None:
    """Quiet what a fresh kernel says on its own: its transport, and matplotlib's font cache."""
    environment = kernel_environment(root)
    profile = Path(environment["IPYTHONDIR"], "profile_default", "ipython_kernel_config.py")
    settings = "c.IPKernelApp.log_level = 40\nc.HistoryManager.enabled = False\n"
    write_atomically(profile, settings)
    if not list(Path(environment["MPLCONFIGDIR"]).glob("fontlist*.json")):
        command = [sys.executable, "-c", "import matplotlib.font_manager"]
        plain = {**environment, "MPLBACKEND": "agg"}
        subprocess.run(command, check=True, env=plain, capture_output=True)


def failure(chapter: Chapter, cell: NotebookNode, number: int, total: int, message: str) -> str:
    """Describe a cell that failed: where it stands, how it begins, what went wrong."""
    lines = cell.source.splitlines()
    at = chapter.source.read_text(encoding="utf-8").find(cell.source)
    text = chapter.source.read_text(encoding="utf-8")[: max(at, 0)]
    where = f", line {text.count(chr(10)) + 1}" if at >= 0 else ""
    shown = [f"    | {line}" for line in lines[:5]] + ["    | ..."] * (len(lines) > 5)
    return "\n".join(
        [f"{chapter.name}.md{where}: code cell {number} of {total} failed", *shown, f"  {message}"]
    )


def execute(chapter: Chapter, key: str) -> float:
    """Execute a chapter in a fresh kernel, write it with its outputs, and return the seconds."""
    notebook = read_chapter(chapter)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    chapter.executed.parent.mkdir(parents=True, exist_ok=True)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(chapter.executed.parent)}},
    )
    reached: list[NotebookNode] = []
    client.on_cell_start = lambda cell, cell_index: reached.append(cell)
    started = time.monotonic()
    try:
        client.execute(env=kernel_environment(chapter.root))
    except CellExecutionError as error:
        message = f"{error.ename}: {error.evalue}"
        log = chapter.root / "_build" / "failed" / f"{chapter.name}.txt"
        write_atomically(log, ANSI.sub("", str(error)))
        message += f"\n  (whole traceback: {log.relative_to(chapter.root)})"
    except CellTimeoutError:
        message = f"the cell ran for more than {CELL_SECONDS} s"
    except DeadKernelError:
        message = "the kernel died (out of memory?)"
    else:
        seconds = time.monotonic() - started
        date = datetime.now(UTC).strftime("%Y-%m-%d")
        built = {"key": key, "seconds": round(seconds, 1), "date": date}
        notebook.metadata["companion_build"] = built
        write_atomically(chapter.executed, nbformat.writes(notebook) + "\n")
        return seconds
    last = next((cell for cell in reversed(reached) if cell.cell_type == "code"), code[0])
    number = next(n for n, cell in enumerate(code, 1) if cell is last)
    raise ChapterError(failure(chapter, last, number, len(code), ANSI.sub("", message)))


def unexecuted(notebook: NotebookNode) -> list[str]:
    """List the cells that were not executed, or lack the output that their code must leave.

    nbval compares nothing where there is nothing to compare with; this is what keeps it honest.
    """
    faults, number = [], 0
    for cell in notebook.cells:
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        number += 1
        if cell.get("execution_count") is None:
            faults.append(f"code cell {number} was not executed")
        elif not cell.get("outputs") and must_output(cell):
            faults.append(f"code cell {number} left no output")
    return faults if number else ["there is no code cell"]


def must_output(cell: NotebookNode) -> bool:
    """Tell whether a cell prints, verifies or draws in its own statements (not in functions)."""
    if "figure" in cell.metadata.get("mystnb", {}):
        return True
    for statement in ast.parse(cell.source).body:
        call = statement.value if isinstance(statement, ast.Expr | ast.Assign) else None
        name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
        if name == "print" or re.fullmatch(
            r"verify\.(identity|gradient|equal|bound|expectation|cost)", name
        ):
            return True
    return False
