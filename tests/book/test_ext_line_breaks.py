"""Punctuation that touches a formula stays on its line."""

import sys
from pathlib import Path

import pytest
from docutils import nodes
from docutils.utils import new_document

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from companion_book.line_breaks import keep_together  # noqa: E402


def page(*parts: str) -> nodes.paragraph:
    """A paragraph on a page: what stands between dollars is a formula."""
    document = new_document("page")
    paragraph = nodes.paragraph()
    for part in parts:
        if part.startswith("$"):
            paragraph += nodes.math("", part.strip("$"))
        else:
            paragraph += nodes.Text(part)
    document += paragraph
    keep_together(document)
    return paragraph


@pytest.mark.parametrize(
    ("parts", "spans"),
    [
        (("for ", "$n$", ", and more"), ["n,"]),
        (("for (", "$n$", ") more"), ["(n)"]),
        (("the ", "$x$", "\u2019s value"), ["x\u2019s"]),
        (("the ", "$x$", " value"), []),
        (("$x$",), []),
        (("both ", "$x$", ", ", "$y$", "."), ["x,", "y."]),
        (("see (", "$x$", ") and (", "$y$", ")"), ["(x)", "(y)"]),
    ],
)
def test_a_formula_takes_what_touches_it(parts: tuple[str, ...], spans: list[str]) -> None:
    paragraph = page(*parts)
    assert [span.astext() for span in paragraph.findall(nodes.inline)] == spans
    assert paragraph.astext() == "".join(part.strip("$") for part in parts)  # nothing is lost
    assert len(list(paragraph.findall(nodes.math))) == sum(p.startswith("$") for p in parts)
