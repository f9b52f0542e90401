"""A tiny book in a folder of its own, on which the tools run in seconds."""

from collections.abc import Callable
from pathlib import Path

import pytest

import chapters as book

ROOT = Path(__file__).resolve().parents[2]
# The chapters that are there; `test_every_page_of_the_contents_exists` looks for the others.
CHAPTERS = [
    book.Chapter(ROOT, name)
    for name in book.pages(ROOT)
    if (ROOT / f"{name}.md").is_file()
    and "kernelspec" in book.front_matter((ROOT / f"{name}.md").read_text(encoding="utf-8"))
]
HEADER = """\
---
jupytext:
  formats: md:myst
  text_representation: {extension: .md, format_name: myst}
kernelspec: {display_name: Python 3, language: python, name: python3}
companion: [companion.core]
sources: [S1]
---
"""


def chapter_text(title: str, *cells: str) -> str:
    """Write a chapter with these code cells, and a sentence before each."""
    blocks = "".join(f"\nA sentence.\n\n```{{code-cell}} ipython3\n{cell}\n```\n" for cell in cells)
    return f"{HEADER}# {title}\n{blocks}"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A checkout with two chapters, a page, and a library of one line."""
    files = {
        "_config.yml": "title: Tiny\nonly_build_toc_files: true\n"
        'execute: {execute_notebooks: "off"}\n',
        "_toc.yml": "format: jb-book\nroot: book/preface\nchapters:\n"
        "  - file: book/part/one\n  - file: book/part/two\n",
        "book/preface.md": "# Preface\n\nHello.\n",
        "book/part/one.md": chapter_text("One", "x = 1", "print(x + 1)"),
        "book/part/two.md": chapter_text("Two", "print('two')"),
        "companion/__init__.py": "NUMBER = 1\n",
        "requirements/lock.txt": "",
        "requirements/data.txt": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def edit(tiny: Path) -> Callable[[str, str, str], None]:
    """Replace text in a file of the tiny book; the old text must be there."""

    def replace(name: str, old: str, new: str) -> None:
        text = (tiny / name).read_text(encoding="utf-8")
        assert old in text
        (tiny / name).write_text(text.replace(old, new), encoding="utf-8")

    return replace
