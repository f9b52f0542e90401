"""Chinese text on English pages: what language it is, and no spaces where a line was broken."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx

HAN = "\u3400-\u9fff"
WIDE = HAN + "\u3000-\u303f\uff00-\uffef"  # with the punctuation that belongs to them
RUN = re.compile(rf"[{HAN}](?:[{WIDE}\s·—…✓]*[{WIDE}])?")
BREAK = re.compile(rf"(?<=[{WIDE}])\n\s*(?=[{WIDE}])")
LITERAL = (nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw)


def join_texts(element: nodes.TextElement) -> None:
    """Make one text of neighboring ones: a line break is a text of its own when it is read."""
    children: list[nodes.Node] = []
    for child in element.children:
        if isinstance(child, nodes.Text) and children and isinstance(children[-1], nodes.Text):
            children[-1] = nodes.Text(str(children[-1]) + str(child))
        else:
            children.append(child)
    if len(children) < len(element.children):
        element.children = []
        element.extend(children)


def mark(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Join lines inside of Chinese, and mark each run of it that nothing has marked yet."""
    for paragraph in list(doctree.findall(nodes.TextElement)):
        join_texts(paragraph)
    for text in list(doctree.findall(nodes.Text)):
        written = str(text)
        if not re.search(f"[{HAN}]", written):
            continue
        parents, node = [], text.parent
        while node is not None:
            parents.append(node)
            node = node.parent
        if any(isinstance(parent, LITERAL) for parent in parents):
            continue
        joined = BREAK.sub("", written)
        marked = any({"zh-hans", "zh-hant"} & set(p.get("classes", ())) for p in parents)
        pieces: list[nodes.Node] = []
        at = 0
        for run in () if marked else RUN.finditer(joined):
            if run.start() > at:
                pieces.append(nodes.Text(joined[at : run.start()]))
            pieces.append(nodes.inline(run[0], run[0], classes=["zh"]))
            at = run.end()
        if at < len(joined):
            pieces.append(nodes.Text(joined[at:]))
        where = text.parent.index(text)
        text.parent[where : where + 1] = pieces


def setup(app: Sphinx) -> None:
    """Register the event."""
    # After links have their texts.
    app.connect("doctree-resolved", mark, priority=900)
