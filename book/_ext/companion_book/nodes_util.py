"""Small helpers that make docutils nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from docutils import nodes

Cell = Sequence[nodes.Node]


def table(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], *, classes: Sequence[str] = ()
) -> nodes.Node:
    """Make a table of inline content in a box that scrolls sideways on a narrow screen."""
    body = nodes.tbody()
    for cells in rows:
        row = nodes.row()
        for cell in cells:
            paragraph = nodes.paragraph()
            paragraph.extend(cell)
            row += nodes.entry("", paragraph)
        body += row
    top = nodes.row()
    for name in head:
        top += nodes.entry("", nodes.paragraph(name, name))
    group = nodes.tgroup(cols=len(head))
    group.extend([nodes.colspec(colwidth=1) for _ in head])
    group += nodes.thead("", top)
    group += body
    return nodes.table("", group, classes=["book-table", *classes])


def inline_error(translator: Any, node: nodes.Node) -> None:
    """Fail loudly when a placeholder reaches the writer."""
    raise RuntimeError(f"{type(node).__name__} was not filled in before writing")
