"""Make ids unique: sphinx-exercise gives the content of every exercise of a page the same one."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

REPEATED = frozenset(["exercise-content", "solution-content"])


def drop_repeated_ids(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Keep the content sections, without the id that nothing links to."""
    for section in doctree.findall(nodes.section):
        section["ids"] = [name for name in section["ids"] if name not in REPEATED]


def setup(app: Sphinx) -> dict[str, Any]:
    """Run after sphinx-exercise has moved the solutions into place."""
    app.connect("doctree-resolved", drop_repeated_ids, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
