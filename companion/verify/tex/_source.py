"""The TeX of a displayed formula, found by its label."""

import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

__all__ = ["TABLE", "displays", "table_of", "tex_of"]

#: What the installed package carries of the book; the package build makes it.
TABLE = Path(__file__).with_name("displays.json")

_FENCE = re.compile(r"^(`{3,}|~{3,})\s*\{code.*?^\1\s*$", re.DOTALL | re.MULTILINE)
_DISPLAY = re.compile(r"\$\$((?:(?!\$\$).)+?)\$\$[ \t]*\(((?:eq|def):[a-z0-9-]+)\)", re.DOTALL)

_TAGGED = re.compile(r"\$\$((?:(?!\$\$).)+?)\\tag\{([\w.]+)\}\s*\$\$", re.DOTALL)


def displays(text: str) -> Iterator[tuple[str, str]]:
    """Yield label and TeX of every labeled formula of a page."""
    for match in _DISPLAY.finditer(_FENCE.sub("", text)):
        # In a list or a quotation the lines begin with the sign of it.
        yield match[2], _unquoted(match[1])


def _unquoted(tex: str) -> str:
    return re.sub(r"^[ \t]*>?[ \t]*", "", tex, flags=re.MULTILINE).strip()


def table_of(book: Path) -> dict[str, str]:
    """Collect the formulas of all pages below a folder."""
    found: dict[str, str] = {}
    for path in sorted(book.rglob("*.md")):
        if not {"_ext", "_build"} & set(path.parts):
            found.update(displays(path.read_text(encoding="utf-8")))
    return found


def _book() -> Path | None:
    """Return the sources of the book, where they stand beside the package."""
    named = os.environ.get("COMPANION_BOOK")
    beside = Path(named) if named else Path(__file__).parents[3] / "book"
    return beside if beside.is_dir() and any(beside.glob("*.md")) else None


@cache
def _page(path: Path, _: int) -> dict[str, str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        notebook = json.loads(text)
        cells = notebook.get("cells", [])
        parts = [cell["source"] for cell in cells if cell.get("cell_type") == "markdown"]
        text = "\n\n".join(part if isinstance(part, str) else "".join(part) for part in parts)
        # A notebook that was made from a chapter shows numbers, and says whose they are.
        labels = notebook.get("metadata", {}).get("companion", {}).get("equations", {})
        tagged = ((labels.get(match[2]), match[1]) for match in _TAGGED.finditer(text))
        found = {label: _unquoted(tex) for label, tex in tagged if label is not None}
        return found | dict(displays(text))
    return dict(displays(text))


def _read(path: Path) -> dict[str, str]:
    return _page(path, path.stat().st_mtime_ns)


@cache
def _table() -> dict[str, str]:
    if not TABLE.is_file():
        return {}
    found: dict[str, str] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


def tex_of(label: str, *, here: Path | None = None) -> str:
    """Return the TeX that stands on the page under a label.

    In a checkout of the repository these are the chapters themselves. Elsewhere it is the table
    that the installed package carries. A notebook that lies in the working folder must agree with
    it.

    Args:
        label: Label of the formula, such as ``eq:infonce``.
        here: Folder in which to look for notebooks; by default the working folder.

    Returns:
        The TeX between the dollar signs.

    Raises:
        LookupError: If no page has the label, or the notebook and the package differ.
    """
    book = _book()
    if book is not None:
        for path in sorted(book.rglob("*.md")):
            if "_ext" not in path.parts and label in (found := _read(path)):
                return found[label]
        raise LookupError(f"no page of the book displays {label}")
    carried = _table().get(label)
    for path in sorted((here or Path.cwd()).glob("*.ipynb")):
        try:
            shown = _read(path).get(label)
        except (ValueError, OSError):
            continue
        if shown is None:
            continue
        if carried is not None and shown.split() != carried.split():
            raise LookupError(
                f"{label} reads differently in {path.name} and in the installed companion. Install "
                "the companion that belongs to this notebook, or take its notebook."
            )
        return shown
    if carried is None:
        raise LookupError(
            f"the installed companion has no formula {label}. Install the version that belongs to "
            "this chapter."
        )
    return carried
