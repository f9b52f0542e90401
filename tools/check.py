"""Check everything: what ``make test`` and CI run, stage by stage, with a summary at the end.

Tests and notebooks run side by side, as many as there are processors (``JOBS=`` says another
number), each on one thread.
"""

import argparse
import asyncio
import functools
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import jupytext
import nbformat

import chapters as book
from build_book import equations, minutes
from chapters import Chapter

TOOLS = Path(__file__).resolve().parent
# Annotated shapes and types are checked at run time. As in typing, an int will do for a float.
SHAPES = (
    "--jaxtyping-packages=companion,"
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)
ELSEWHERE = ("--ignore=tests/compile", "--ignore=tests/site")  # have stages of their own
CODE = ("companion", "tests", "tools", "benchmarks", "book/_ext", "book/_runs")
# The text around a function of a chapter says what it does. A chapter imports where a lesson needs
# it, the last line of a cell shows or hides a value, and letters are the page's, O for outputs.
CHAPTER_RULES = "B018,D,E402,E703,E741"


@dataclass
class Run:
    """What a run has found out so far."""

    root: Path
    passed: int = 0
    notes: dict[str, str] = field(default_factory=dict)

    def command(self, *command: str, env: dict[str, str] | None = None) -> bool:
        """Run a command, showing its output as it comes, and count the tests that passed."""
        started = subprocess.Popen(
            [sys.executable, *command],
            cwd=self.root,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert started.stdout is not None
        last = ""
        for line in started.stdout:
            print(line, end="", flush=True)
            last = line if line.strip() else last
        if started.wait() == 5:
            print("pytest found no test here: a stage that checks nothing fails")
        self.count(last)
        return started.returncode == 0

    def count(self, last: str) -> None:
        """Count the tests that passed, of which pytest's last line tells."""
        if match := re.search(r"(\d+) passed", last):
            self.passed += int(match[1])

    def pytest(self, *arguments: str) -> bool:
        """Run pytest, its tests spread over processes that take from each other what is left."""
        jobs = book.jobs()
        spread = ("-n", str(jobs), "--dist", "worksteal") if jobs > 1 else ()
        return self.command("-m", "pytest", *spread, *arguments)


def lint(run: Run) -> bool:
    """Ruff over the code and, line by line where it stands, over the chapters' cells."""
    folder, sources = run.root / "_build" / "lint", []
    for chapter in book.chapters(run.root):
        text = chapter.source.read_text(encoding="utf-8")
        lines, at = [""] * len(text.splitlines()), 0
        for cell in jupytext.read(chapter.source).cells:
            if cell.cell_type == "code" and cell.source:
                at = text.index(cell.source, at)
                first = text[:at].count("\n")
                for offset, line in enumerate(cell.source.splitlines()):
                    lines[first + offset] = "" if line.startswith(("%", "!")) else line
        target = folder / f"{chapter.name}.md.py"
        book.write_atomically(target, "\n".join(lines).rstrip() + "\n")
        sources.append(str(target.relative_to(run.root)))
    results = [
        run.command("-m", "ruff", "check", *CODE),
        run.command("-m", "ruff", "format", "--check", *CODE),
        run.command(
            "-m", "ruff", "check", "--no-cache", "--extend-ignore", CHAPTER_RULES, *sources
        ),
    ]
    if not all(results):
        print("(make fmt mends most of it; _build/lint/X.md.py has the line numbers of X.md)")
    return all(results)


def types(run: Run) -> bool:
    """Mypy over the library."""
    return run.command("-m", "mypy")


def tests(run: Run) -> bool:
    """Unit, property and meta-device tests, with run-time checks of the annotated shapes."""
    return run.pytest("tests", *ELSEWHERE, SHAPES, "-m", "not alone")


def timing(run: Run) -> bool:
    """Tests that measure time: one by one, without the checks of shapes, nothing beside them."""
    return run.command("-m", "pytest", "tests", *ELSEWHERE, "-m", "alone")


def doctests(run: Run) -> bool:
    """Check the examples in the docstrings."""
    return run.pytest("--doctest-modules", "companion")


def compiled(run: Run) -> bool:
    """torch.compile, which the run-time shape checks of the other tests would break."""
    # The compiler logs at length, and would start processes of its own in each of ours.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    return run.pytest("tests/compile", "-p", "no:logging")


def render(run: Run) -> bool:
    """The strict build of the book."""
    good = run.command(str(TOOLS / "build_book.py"), "--root", str(run.root))
    run.notes["chapters"] = str(sum("/" in found.short for found in book.chapters(run.root)))
    run.notes["equations verified"] = equations(run.root) if good else "the book did not build"
    return good


def reproduce(run: Run) -> bool:
    """Execute every chapter a second time and compare all outputs with those of the first."""
    found = book.chapters(run.root)
    missing = [chapter.name for chapter in found if not chapter.executed.is_file()]
    if missing:
        print("not executed yet (the book stage does it):", *missing)
        return False
    faults = [
        f"{chapter.name}: {fault}"
        for chapter in found
        for fault in book.unexecuted(nbformat.read(chapter.executed, as_version=4))
    ]
    print(*faults, sep="\n", end="\n" if faults else "")
    book.prepare_kernels(run.root)
    failed: list[str] = []

    async def repeat(chapter: Chapter) -> None:
        if not await repeated(run, chapter):
            failed.append(chapter.name)

    work = [functools.partial(repeat, chapter) for chapter in book.longest_first(found)]
    asyncio.run(book.side_by_side(book.jobs(), work))
    print(*(f"not reproduced: {name}" for name in failed), sep="\n")
    good = bool(found) and not failed and not faults
    run.notes["notebooks reproduced"] = f"{len(found)}" if good else "not all"
    return good


async def repeated(run: Run, chapter: Chapter) -> bool:
    """Let nbval repeat one chapter, in a process of its own, and show in one piece what it said."""
    command = ["-m", "pytest", "--nbval", "--nbval-current-env", "-p", "nbval_strict"]
    command += ["-p", "no:cacheprovider", str(chapter.executed.relative_to(run.root))]
    command += [f"--nbval-cell-timeout={book.CELL_SECONDS * book.patience():.0f}"]
    command += [f"--nbval-kernel-startup-timeout={60 * book.patience():.0f}"]
    environment = book.kernel_environment(run.root)
    paths = filter(None, [str(TOOLS), environment.get("PYTHONPATH")])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=run.root,
        env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        said = (await process.communicate())[0].decode().rstrip().splitlines() or [""]
    finally:
        if process.returncode is None:
            process.terminate()
    run.count(said[-1])
    if process.returncode == 0:
        print(f"{chapter.short:<32} {said[-1].strip('= ')}", flush=True)
    else:
        print(f"\n{chapter.name}", *said, "", sep="\n", flush=True)
    return process.returncode == 0


def site(run: Run) -> bool:
    """Open the rendered site in a headless Chromium."""
    return run.pytest("tests/site")


STAGES: dict[str, Callable[[Run], bool]] = {
    "lint": lint,
    "types": types,
    "tests": tests,
    "timing": timing,
    "doctests": doctests,
    "compile": compiled,
    "book": render,
    "nbval": reproduce,
    "site": site,
}
NEEDS_BOOK = ("nbval", "site")


def cpu_seconds() -> float:
    """Return the processor time of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Run the stages asked for and summarize."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=book.ROOT, help="the checkout")
    parser.add_argument("--only", help=f"some of {','.join(STAGES)}")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else list(STAGES)
    if unknown := set(chosen) - set(STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run, begun, rows = Run(arguments.root.resolve()), time.monotonic(), {}
    times: dict[str, str] = {}
    for number, name in enumerate(chosen, 1):
        said = (STAGES[name].__doc__ or "").splitlines()[0]
        print(f"\n== {number}/{len(chosen)} {name}: {said}", flush=True)
        started, used = time.monotonic(), cpu_seconds()
        if name in NEEDS_BOOK and rows.get("book", "passed") != "passed":
            rows[name] = "not run"
            print("not run: the book did not build", flush=True)
            continue
        try:
            good = STAGES[name](run)
        except book.ChapterError as error:
            print(f"FAILED: {error}")
            good = False
        rows[name] = "passed" if good else "FAILED"
        wall, cpu = minutes(time.monotonic() - started), minutes(cpu_seconds() - used)
        times[name] = f"{wall:>13} {cpu:>13} of processor time"
        print(f"== {name} {rows[name]} in {wall}", flush=True)
    facts = {
        **run.notes,
        "tests passed": str(run.passed),
        "total time": minutes(time.monotonic() - begun),
    }
    print("\nSummary")
    for name, result in rows.items():
        print(f"  {name:<21} {result:<8}{times.get(name, '')}")
    for name, fact in facts.items():
        print(f"  {name:<21} {fact}")
    bad = [name for name, result in rows.items() if result != "passed"]
    print(f"{'FAILED: ' + ', '.join(bad) if bad else 'Everything passed.'}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
