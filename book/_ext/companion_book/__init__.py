"""The book's own Sphinx extension: equation ledger, plan of the book, tables, and assets.

It reads what the chapters' run left behind and never runs anything itself:

- ``ledger`` joins displayed equations with the records of their verification;
- ``plan`` numbers chapters by ``contents.yml`` and shows planned ones in the sidebar;
- ``courses`` lists ways through the book, sitting by sitting;
- ``facts`` and ``tables`` make the chapter header, the source map, the errata, the glossary, and
  the lists of tools and data;
- ``reference`` documents the companion library from its docstrings;
- ``bibliography`` lists references by author and year;
- ``unique_ids`` keeps the ids of a page unique;
- ``line_breaks`` keeps punctuation beside its formula;
- ``questions`` folds the answers of quick questions;
- ``terms`` links the glossary's terms where a chapter uses them first;
- ``uses`` leads from equations, chapters and the reference to where each is used;
- ``alphabet`` makes the index;
- ``previews`` shows what a link means before it is followed;
- ``search`` ranks results and finds Chinese; ``chinese`` says what language a text is in;
- ``pictures`` puts figures into the page, in the colors of its theme;
- ``interactive`` places figures that move;
- ``accessible`` mends markup that screen readers stumble over;
- ``launch`` says where a page can be run and mended, and how it is licensed;
- ``publish`` writes what lies beside the pages: a map of the site, cards, one file of it all;
- ``assets`` serves MathJax and the style sheet from the book itself.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

from . import (
    accessible,
    alphabet,
    assets,
    bibliography,
    chinese,
    courses,
    facts,
    interactive,
    launch,
    ledger,
    line_breaks,
    pictures,
    plan,
    previews,
    publish,
    questions,
    reference,
    search,
    tables,
    terms,
    unique_ids,
    uses,
)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register every part of the extension."""
    for part in (
        accessible,
        assets,
        bibliography,
        plan,
        courses,
        ledger,
        facts,
        questions,
        tables,
        interactive,
        reference,
        uses,
        terms,
        alphabet,
        search,
        chinese,
        unique_ids,
        line_breaks,
        previews,
        launch,
        pictures,
        publish,
    ):
        part.setup(app)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
