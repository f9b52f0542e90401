"""Make ids unique: sphinx-exercise and sphinx-proof give the same ones to every block of a page."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

REPEATED = frozenset(["exercise-content", "solution-content", "proof-content", "proof"])


def drop_repeated_ids(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Keep the blocks, without the ids that nothing links to."""
    for kind in (nodes.section, nodes.admonition):
        for node in doctree.findall(kind):
            node["ids"] = [name for name in node["ids"] if name not in REPEATED]


def setup(app: Sphinx) -> dict[str, Any]:
    """Run after sphinx-exercise has moved the solutions into place."""
    app.connect("doctree-resolved", drop_repeated_ids, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
