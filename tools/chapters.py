"""Find the book's chapters, execute them, and tell when an execution is out of date."""

import ast
import asyncio
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import psutil
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

import closure

ROOT = Path(__file__).resolve().parent.parent
# What a cell may take on an idle machine, many times what any takes; see `patience`.
CELL_SECONDS = 600
# What a chapter may take of the memory is 4 GB; hardly any takes half of that.
BYTES_PER_JOB = 3 << 30
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


class Foundations:
    """What chapters rest on beside their own text, read once for all of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.library = closure.Library(root)
        self.digests: dict[Path, bytes] = {}
        files = [root / "requirements" / "lock.txt", root / "requirements" / "data.txt"]
        self.always = [*files, Path(__file__), Path(closure.__file__)]
        self.others = sorted(f for f in (root / "book" / "_data").rglob("*") if f.is_file())

    def below(self, chapter: Chapter) -> list[Path]:
        """Return the files that a chapter rests on: all where its source does not tell which."""
        cells = jupytext.read(chapter.source).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        try:
            return [*self.always, *self.library.closure(code)]
        except closure.UnseenError:
            return [*self.always, *self.library.files, *self.others]

    def digest(self, file: Path) -> bytes:
        """Return a digest of a file's name and content."""
        if file not in self.digests:
            inside = file.is_relative_to(self.root)
            name = file.relative_to(self.root).as_posix() if inside else file.name
            content = hashlib.sha256(file.read_bytes()).digest()
            self.digests[file] = hashlib.sha256(name.encode() + b"\0" + content).digest()
        return self.digests[file]

    def key(self, chapter: Chapter) -> str:
        """Return the digest under which an executed chapter may be used again."""
        digest = hashlib.sha256(os.fsencode("{}.{}.{}".format(*sys.version_info[:3])))
        digest.update(hashlib.sha256(chapter.source.read_bytes()).digest())
        for file in self.below(chapter):
            digest.update(self.digest(file))
        return digest.hexdigest()


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


def cores() -> float:
    """Return how many processors this process may keep busy."""
    affinity = getattr(os, "sched_getaffinity", None)
    count: float = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:  # a container may have a part of the machine only
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return min(count, int(limit) / int(period))
    except (OSError, ValueError):
        return count


def jobs() -> int:
    """Return how many things to run side by side: JOBS, or what processors and memory allow."""
    if wanted := os.environ.get("JOBS"):
        if not wanted.isdecimal() or int(wanted) < 1:
            raise ChapterError(f"JOBS={wanted}: say how many things to run side by side, 1 or more")
        return int(wanted)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, int(min(cores(), memory / BYTES_PER_JOB)))


def patience() -> float:
    """Return how many times longer than on an idle machine to wait, at the present load."""
    return max(1.0, os.getloadavg()[0] / cores())


async def side_by_side(count: int, work: list[Callable[[], Awaitable[None]]]) -> None:
    """Do pieces of work in their order, ``count`` at a time.

    An interrupt cancels all of them, and each cleans up.
    """
    waiting = iter(work)

    async def worker() -> None:
        for piece in waiting:
            await piece()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(count, len(work))):
            group.create_task(worker())


def longest_first(found: list[Chapter]) -> list[Chapter]:
    """Sort chapters by the seconds they took last, those that never ran by their length.

    A long chapter that starts last would leave the other processors idle.
    """

    def expected(chapter: Chapter) -> float:
        if seconds := build_metadata(chapter).get("seconds"):
            return float(seconds)
        return chapter.source.stat().st_size / 1000

    return sorted(found, key=expected, reverse=True)


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
        # Beside each picture the drawing that the page is made from.
        "COMPANION_FIGURES": "svg",
        "COLUMNS": "80",
        # A waiting thread sleeps instead of spinning: on a busy machine that is many times faster.
        "OMP_WAIT_POLICY": "passive",
    }
    # Sums depend on the number of threads. With one, as many chapters run as there are processors.
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
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


def plain_signals() -> None:
    """Take back what nbclient does at a signal: it ends one kernel, and the others go on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().remove_signal_handler(number)


def processor_seconds(manager: Any) -> float:
    """Return the processor time of a kernel, which hardly depends on what else the machine does."""
    kernel = psutil.Process(manager.provisioner.pid)
    processes = [kernel, *kernel.children(recursive=True)]
    return float(sum(times.user + times.system for times in (p.cpu_times() for p in processes)))


async def execute(chapter: Chapter, key: str) -> float:
    """Execute a chapter in a fresh kernel, write it with its outputs, and return the seconds."""
    from companion.core import processor_name  # brings PyTorch, which other tools do not need

    notebook = read_chapter(chapter)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    chapter.executed.parent.mkdir(parents=True, exist_ok=True)
    client = NotebookClient(
        notebook,
        timeout_func=lambda cell: int(CELL_SECONDS * patience()),
        startup_timeout=int(60 * patience()),
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(chapter.executed.parent)}},
    )
    reached: list[NotebookNode] = []
    client.on_cell_start = lambda cell, cell_index: reached.append(cell)
    client.on_notebook_start = lambda notebook: plain_signals()
    used = [0.0]  # after the last cell; then the kernel is gone
    client.on_cell_complete = lambda cell, cell_index: used.append(processor_seconds(client.km))
    started = time.monotonic()
    try:
        await client.async_execute(env=kernel_environment(chapter.root))
    except CellExecutionError as error:
        message = f"{error.ename}: {error.evalue}"
        log = chapter.root / "_build" / "failed" / f"{chapter.name}.txt"
        write_atomically(log, ANSI.sub("", str(error)))
        message += f"\n  (whole traceback: {log.relative_to(chapter.root)})"
    except CellTimeoutError as error:
        message = str(error).splitlines()[0]
    except DeadKernelError:
        message = "the kernel died (out of memory?)"
    else:
        seconds = time.monotonic() - started
        date = datetime.now(UTC).strftime("%Y-%m-%d")
        built = {"key": key, "seconds": round(seconds, 1), "date": date}
        built |= {"processor_seconds": round(used[-1], 1), "processor": processor_name()}
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
            r"verify\.(page|identity|gradient|equal|bound|expectation|cost)", name
        ):
            return True
    return False
