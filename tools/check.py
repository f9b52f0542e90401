"""Check everything: what ``make test`` and CI run, stage by stage, with a summary at the end."""

import argparse
import os
import re
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

TOOLS = Path(__file__).resolve().parent
# Annotated shapes and types are checked at run time. As in typing, an int will do for a float.
SHAPES = (
    "--jaxtyping-packages=companion,"
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)
CODE = ("companion", "tests", "tools", "benchmarks", "book/_ext", "book/_runs")
# A chapter imports where a lesson needs it, the last line of a cell shows or hides a value, a short
# formula is named by a lambda, and a chapter may import all public names of its own module.
CHAPTER_RULES = "B018,B905,D,E402,E703,E731,F403,F405,I001,NPY002,RUF005"


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
        if match := re.search(r"(\d+) passed", last):
            self.passed += int(match[1])
        return started.returncode == 0

    def pytest(self, *arguments: str, env: dict[str, str] | None = None) -> bool:
        """Run pytest."""
        return self.command("-m", "pytest", *arguments, env=env)


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
    others = ("--ignore=tests/compile", "--ignore=tests/site")
    return run.pytest("tests", *others, SHAPES)


def doctests(run: Run) -> bool:
    """Check the examples in the docstrings."""
    return run.pytest("--doctest-modules", "companion")


def compiled(run: Run) -> bool:
    """torch.compile, which the run-time shape checks of the other tests would break."""
    return run.pytest("tests/compile", "-p", "no:logging")  # the compiler logs at length


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
    environment = {**book.kernel_environment(run.root), "PYTHONPATH": str(TOOLS)}
    timeout = f"--nbval-cell-timeout={book.CELL_SECONDS}"
    flags = (
        "--nbval",
        "--nbval-current-env",
        timeout,
        "-p",
        "nbval_strict",
        "-p",
        "no:cacheprovider",
    )
    files = [str(chapter.executed.relative_to(run.root)) for chapter in found]
    good = run.pytest(*flags, *files, env=environment) and not faults
    run.notes["notebooks reproduced"] = f"{len(found)}" if good else "not all"
    return good


def site(run: Run) -> bool:
    """Open the rendered site in a headless Chromium."""
    return run.pytest("tests/site")


STAGES: dict[str, Callable[[Run], bool]] = {
    "lint": lint,
    "types": types,
    "tests": tests,
    "doctests": doctests,
    "compile": compiled,
    "book": render,
    "nbval": reproduce,
    "site": site,
}
NEEDS_BOOK = ("nbval", "site")


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
    run, begun, rows = Run(arguments.root.resolve()), time.monotonic(), {}
    for number, name in enumerate(chosen, 1):
        said = (STAGES[name].__doc__ or "").splitlines()[0]
        print(f"\n== {number}/{len(chosen)} {name}: {said}", flush=True)
        started = time.monotonic()
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
        print(f"== {name} {rows[name]} in {minutes(time.monotonic() - started)}", flush=True)
    facts = {
        **run.notes,
        "tests passed": str(run.passed),
        "total time": minutes(time.monotonic() - begun),
    }
    print("\nSummary")
    for name, result in {**rows, **facts}.items():
        print(f"  {name:<21} {result}")
    bad = [name for name, result in rows.items() if result != "passed"]
    print(f"{'FAILED: ' + ', '.join(bad) if bad else 'Everything passed.'}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
