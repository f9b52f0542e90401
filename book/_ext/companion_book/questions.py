"""Quick questions at the end of a section, each with its answer folded below it.

The directive holds a numbered list. The first paragraph of an item is the question, and what comes
after it is the answer::

    ```{quick-questions}
    1. Which sign has the second term?

       A plus, since ...
    ```

A folded answer is a ``details`` element of HTML: it needs no script and opens by keyboard. On paper
it is open (``tools/make_pdf.py``), and in the exported notebooks it is the same element
(``tools/export_notebooks.py``).

The level of an exercise stands in its title, and only there.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator

TITLE = "Quick questions"


class answer(nodes.General, nodes.Element):
    """The answer to the question above it."""


class QuickQuestions(SphinxDirective):
    """A numbered list of questions with their answers."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Fold the answers of the list, and put a title above it."""
        self.assert_has_content()
        read = nodes.container(classes=["quick-questions"])
        self.state.nested_parse(self.content, self.content_offset, read)
        questions = read.children[0] if len(read) == 1 else None
        if not isinstance(questions, nodes.enumerated_list):
            raise self.error("quick-questions holds one numbered list, and nothing else")
        for number, item in enumerate(questions.children, 1):
            assert isinstance(item, nodes.list_item)
            if len(item) < 2 or not isinstance(item[0], nodes.paragraph):
                raise self.error(
                    f"question {number} has no answer: give a paragraph that asks, an empty line, "
                    "and then the answer, indented by three spaces"
                )
            folded = answer(number=number)
            for part in item.children[1:]:
                item.remove(part)
                folded += part
            item += folded
        read.insert(0, nodes.paragraph(TITLE, TITLE, classes=["quick-questions-title"]))
        return [read]


def visit_answer(self: HTML5Translator, node: answer) -> None:
    """Open the fold; for those who hear a list of folds, each says whose answer it is."""
    which = f'<span class="visually-hidden"> to question {node["number"]}</span>'
    self.body.append(f'<details class="answer"><summary>Answer{which}</summary>\n')


def depart_answer(self: HTML5Translator, node: answer) -> None:
    """Close the fold."""
    self.body.append("</details>\n")


def name_by_number(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Let the title of a solution give the number of its exercise, and not its level once more."""
    for title in doctree.findall(nodes.title):
        if title.parent is not None and "solution" in title.parent.get("classes", []):
            for reference in title.findall(nodes.reference):
                if re.search(r"level \d of 3\)$", reference.astext()):
                    del reference[1:]  # the number comes first, then the title in parentheses


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_node(answer, html=(visit_answer, depart_answer))
    app.add_directive("quick-questions", QuickQuestions)
    app.connect("doctree-resolved", name_by_number)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
