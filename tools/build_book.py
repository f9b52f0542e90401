"""Execute the chapters and render the book: ``make book``, inside ``.venv``.

Every chapter runs once, several side by side (``JOBS=``), and is kept under ``_build/executed``
until it changes, or what it imports of the library, the data, or the lock. Then the pages are
staged in ``_build/src``, executed notebooks in place of the chapters, and Jupyter Book renders them
with every warning an error.
"""

import argparse
import asyncio
import functools
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat

import chapters as book
from chapters import Chapter, ChapterError
from export_notebooks import export_all

WARNING = re.compile(
    r"\b(WARNING|ERROR|CRITICAL|SEVERE)\b|^\S*(Error|Exception): \S|^Extension error"
)


def minutes(seconds: float) -> str:
    """Write a duration for people."""
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def execute_all(root: Path, found: list[Chapter]) -> int:
    """Execute the chapters that changed, all of them even if one fails; return how many ran."""
    rests, done = book.Foundations(root), 0
    failures: dict[str, str] = {}
    changed: list[Chapter] = []

    def tell(chapter: Chapter, what: str) -> None:
        nonlocal done
        done += 1
        print(f"[{done:2}/{len(found)}] {chapter.short:<32} {what}", flush=True)

    for chapter in found:
        built = book.build_metadata(chapter)
        if built.get("key") == rests.key(chapter):
            tell(chapter, f"unchanged ({built['seconds']:.0f} s when it ran)")
        else:
            changed.append(chapter)

    async def run(chapter: Chapter) -> None:
        try:
            tell(chapter, f"executed in {await book.execute(chapter, rests.key(chapter)):.0f} s")
        except ChapterError as error:
            failures[chapter.name] = str(error)
            tell(chapter, f"FAILED\n{error}")

    if changed:
        count = min(book.jobs(), len(changed))
        print(f"executing {len(changed)} of {len(found)}, {count} at a time", flush=True)
        book.prepare_kernels(root)
        work = [functools.partial(run, chapter) for chapter in book.longest_first(changed)]
        asyncio.run(book.side_by_side(count, work))
    if failures:
        said = [failures[chapter.name] for chapter in found if chapter.name in failures]
        count = f"{len(failures)} of {len(found)} chapters failed"
        raise ChapterError("\n\n".join([count, *said] if len(found) > 1 else [count]))
    return len(changed)


def prune(folder: Path, keep: set[Path]) -> bool:
    """Remove the files of ``folder`` that are not in ``keep``, and tell whether there were any."""
    stale = [f for f in folder.rglob("*") if f.is_file() and f not in keep]
    for file in stale:
        file.unlink()
    return bool(stale)


def write_notebooks(root: Path, found: list[Chapter]) -> list[Path]:
    """Write every executed chapter as a notebook that reads well and runs anywhere."""
    written = export_all(root, found)
    prune(root / "_build" / "notebooks", set(written))
    return written


def stage(root: Path, found: list[Chapter]) -> bool:
    """Refresh ``_build/src`` and tell whether more than the text of pages changed."""
    source = root / "_build" / "src"
    executed = {f"{chapter.name}.md": chapter.executed for chapter in found}
    files = [*root.glob("*.md"), *root.glob("*.bib"), root / "_config.yml", root / "_toc.yml"]
    files += [*root.glob("requirements/*.txt")]  # the versions that the page on tools shows
    files += [f for f in (root / "book").rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    kept, deep = set(), False
    for file in files:
        name = file.relative_to(root).as_posix()
        origin = executed.get(name, file)
        target = source / Path(name).with_suffix(origin.suffix)
        kept.add(target)
        content = origin.read_bytes()
        if not target.is_file() or target.read_bytes() != content:
            deep = deep or not target.is_file() or target.suffix not in (".md", ".ipynb")
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.partial")
            partial.write_bytes(content)
            partial.replace(target)
    return prune(source, kept) or deep


def readable(line: str, source: Path) -> str:
    """Rewrite a Sphinx message to speak of the chapter's cells rather than of the staged file."""
    line = book.ANSI.sub("", line).replace(f"{source}/", "").strip()
    return re.sub(
        r"\.ipynb:(\d+)",
        lambda m: f".md: cell {int(m[1]) // 10000}, line {int(m[1]) % 10000}",
        line,
    )


def render(root: Path, found: list[Chapter]) -> None:
    """Run Jupyter Book strictly, and say at the end what it warned of."""
    build, source = root / "_build", root / "_build" / "src"
    # Sphinx does not repeat the warnings of pages that it has read before. So what a failed or
    # killed rendering read is thrown away: the mark is there from before its start to its success.
    mark = build / "rendering"
    unfinished = mark.exists()
    mark.touch()
    if stage(root, found) or unfinished:
        shutil.rmtree(build / ".doctrees", ignore_errors=True)
        shutil.rmtree(build / "html", ignore_errors=True)
    fault = None
    try:
        write_notebooks(root, found)  # the pages offer them
    except ChapterError as error:
        fault = error  # Jupyter Book knows the line, and names all that is wrong
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    command += [str(source), "--path-output", str(root), "--config", str(source / "_config.yml")]
    command += ["--toc", str(source / "_toc.yml"), "-W", "-n", "--keep-going"]
    log: list[str] = []
    process = subprocess.Popen(
        command, cwd=source, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    phases = ["reading sources", "writing output"]
    for line in process.stdout:
        log.append(line)
        if phases and book.ANSI.sub("", line).startswith(phases[0]):
            print(f"rendering: {phases.pop(0)}", flush=True)
    code = process.wait()
    book.write_atomically(build / "render.log", "".join(log))
    said = dict.fromkeys(readable(line, source) for line in log if WARNING.search(line))
    if code:
        told = list(said) or [line.rstrip() for line in log[-15:]]
        raise ChapterError(
            "\n  ".join([f"the book did not render (exit code {code}):", *told])
            + "\n(Jupyter Book's whole output: _build/render.log)"
        )
    if fault is not None:
        raise fault
    mark.unlink()


def equations(root: Path) -> str:
    """Return how many equations the ledger of the last rendering counts as verified."""
    try:
        ledger = json.loads((root / "_build" / "ledger.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "no ledger was written"
    return str(len(ledger["equations"]))


def one_chapter(root: Path, found: list[Chapter], wanted: str) -> None:
    """Execute one chapter and show what it printed about its equations."""
    name = re.sub(r"^book/|\.md$", "", wanted)
    match = [chapter for chapter in found if chapter.short == name]
    if not match:
        listed = "\n  ".join(chapter.short for chapter in found)
        what = f"there is no chapter {wanted!r}" if wanted else "name a chapter"
        raise ChapterError(f"{what}: make chapter CH=... with one of\n  {listed}")
    execute_all(root, match)
    for cell in nbformat.read(match[0].executed, as_version=4).cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                print(output.text, end="")
    print(f"The executed notebook: {match[0].executed.relative_to(root)}")


def main() -> int:
    """Parse the arguments and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=book.ROOT, help="the checkout")
    parser.add_argument("--chapter", metavar="PART/NAME", help="only execute this chapter")
    parser.add_argument("--notebooks", action="store_true", help="write the notebooks, no pages")
    arguments = parser.parse_args()
    root, started = arguments.root.resolve(), time.monotonic()
    try:
        found = book.chapters(root)
        if arguments.chapter is not None:
            one_chapter(root, found, arguments.chapter)
            return 0
        executed = root / "_build" / "executed"
        prune(executed, {chapter.executed for chapter in found})
        ran = execute_all(root, found)
        if arguments.notebooks:
            written = write_notebooks(root, found)
            print(f"{len(written)} notebooks to read and to run are in _build/notebooks")
            return 0
        render(root, found)
    except ChapterError as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print("\nThe book is ready.")
    print(f"  chapters            {len(found)} ({ran} executed now, {len(found) - ran} unchanged)")
    print(f"  equations verified  {equations(root)}")
    print(f"  time                {minutes(time.monotonic() - started)}")
    print("  read it             open _build/html/index.html, or: make serve", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
