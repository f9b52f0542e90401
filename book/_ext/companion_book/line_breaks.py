"""Keep the punctuation that touches a formula on the formula's line.

A formula within a line is a box to the browser, which may break the line on either side of it. A
comma would then begin a line. Formula and punctuation are put into one span that does not break.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

CLOSING = re.compile(r"^[,.;:!?)\]’”'\"%]+(?:s\b)?")
OPENING = re.compile(r"[(\[“‘]+$")


def keep_together(doctree: nodes.document) -> None:
    """Wrap each inline formula together with the punctuation that touches it.

    Args:
        doctree: A page; it is changed.
    """
    for formula in list(doctree.findall(nodes.math)):
        parent = formula.parent
        place = parent.index(formula)
        before = parent[place - 1] if place else None
        after = parent[place + 1] if place + 1 < len(parent) else None
        opening = OPENING.search(before) if isinstance(before, nodes.Text) else None
        closing = CLOSING.match(after) if isinstance(after, nodes.Text) else None
        if not (opening or closing):
            continue
        span = nodes.inline(classes=["formula-and-punctuation"])
        parent.replace(formula, span)
        if opening:
            span += nodes.Text(opening[0])
            parent.replace(before, nodes.Text(before[: opening.start()]))
        span += formula
        if closing:
            span += nodes.Text(closing[0])
            parent.replace(after, nodes.Text(after[closing.end() :]))


def resolved(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Apply :func:`keep_together` where a browser breaks the lines."""
    if app.builder.format == "html":
        keep_together(doctree)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the rule."""
    app.connect("doctree-resolved", resolved)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
