"""Tables that the book keeps as data: the source map, the errata, and the glossary."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from .nodes_util import table
from .plan import note_dependent, page_link, plan_of


def read_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Read a tab-separated file with a header; every named column must be there."""
    if not path.is_file():
        raise ExtensionError(f"the book's table {path.name} is missing from {path.parent.name}")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = list(reader)
    lacking = [name for name in columns if name not in (reader.fieldnames or [])]
    if lacking:
        raise ExtensionError(f"{path.name} lacks the column {', '.join(lacking)}")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ExtensionError(f"{path.name}:{number}: not as many fields as the header names")
    return rows


def topic_anchor(topic: str) -> str:
    """The anchor of a source topic on the page of sources."""
    return nodes.make_id(f"source-{topic.replace('.', '-')}")


class DataTable(SphinxDirective):
    """Common ground: read the file, parse cells as inline text, link home chapters."""

    has_content = False
    file: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]

    def rows(self) -> list[dict[str, str]]:
        """Read the table and make the page depend on it."""
        note_dependent(self.env)
        path = Path(self.env.srcdir) / self.config.companion_data / self.file
        self.env.note_dependency(str(path))
        return read_rows(path, self.columns)

    def inline(self, text: str) -> list[nodes.Node]:
        """Parse a cell: inline markup and math as on the page."""
        return list(self.state.inline_text(text, self.lineno)[0]) if text.strip() else []

    def anchored(self, name: str, anchor: str) -> list[nodes.Node]:
        """Name a row: an anchor to link to, and its visible name."""
        target = nodes.target("", "", ids=[anchor], names=[nodes.fully_normalize_name(anchor)])
        self.state.document.note_explicit_target(target)
        return [target, nodes.inline(name, name, classes=["row-name"])]

    def home(self, name: str) -> list[nodes.Node]:
        """Link to the chapters in which a row is at home."""
        cells: list[nodes.Node] = []
        for piece in filter(None, (part.strip() for part in name.replace(";", ",").split(","))):
            if cells:
                cells.append(nodes.Text(", "))
            page = plan_of(self.env).find(piece)
            if page is None:
                page = next(
                    (
                        extra
                        for extra in plan_of(self.env).appendices
                        if extra.docname.rsplit("/", 1)[-1] == piece.rsplit("/", 1)[-1]
                    ),
                    None,
                )
            if page is None:
                raise ExtensionError(
                    f"{self.file} names the chapter {piece!r}, which is not planned"
                )
            label = f"{page.number}. {page.title}" if page.number else page.title
            cells.append(page_link(self.env, page, label.split(":")[0]))
        return cells


class SourceTopics(DataTable):
    """Every topic of the source documents and the chapter that answers it, by document."""

    file = "sources.tsv"
    columns = ("id", "document", "kind", "topic", "home_part", "home_chapter")

    def run(self) -> list[nodes.Node]:
        """Make one table for each document."""
        documents: dict[str, list[dict[str, str]]] = {}
        rows = self.rows()
        for row in rows:
            documents.setdefault(row["document"], []).append(row)
        answered = sum(
            page is not None and page.docname in self.env.found_docs
            for page in (plan_of(self.env).find(row["home_chapter"]) for row in rows)
        )
        text = (
            f"{len(rows)} topics, each with one home; {answered} of the homes are written so far."
        )
        result: list[nodes.Node] = [nodes.paragraph(text, text)]
        for document, members in documents.items():
            name = f"{document} ({len(members)} topics)"
            result.append(nodes.rubric(name, name, ids=[nodes.make_id(f"document-{document}")]))
            body = [
                [
                    self.anchored(row["id"], topic_anchor(row["id"])),
                    self.inline(row["kind"]),
                    self.inline(row["topic"]),
                    self.home(row["home_chapter"]),
                ]
                for row in members
            ]
            result.append(table(["Topic", "Kind", "What it says", "Home"], body, classes=["wide"]))
        return result


class ErrataTable(DataTable):
    """Statements of the sources that are wrong or dated, and what is right."""

    file = "errata.tsv"
    columns = ("number", "where", "says", "correct", "source", "home")

    def run(self) -> list[nodes.Node]:
        """Make the table."""
        body = [
            [
                self.anchored(row["number"], nodes.make_id(row["number"])),
                self.inline(row["where"]),
                self.inline(row["says"]),
                self.inline(row["correct"]),
                self.inline(row["source"]),
                self.home(row["home"]),
            ]
            for row in self.rows()
        ]
        head = ["No.", "Where", "The source says", "Correct is", "Reference", "Home"]
        return [table(head, body, classes=["wide", "errata"])]


class GlossaryTable(DataTable):
    """Terms in English, simplified, and traditional Chinese."""

    file = "glossary.tsv"
    columns = ("en", "zh_hans", "zh_hant", "home", "note")

    def run(self) -> list[nodes.Node]:
        """Make the table; the Chinese cells say which Chinese they are, for fonts and readers."""
        body = [
            [
                self.anchored(row["en"], nodes.make_id(f"term-{row['en']}")),
                [nodes.inline("", "", *self.inline(row["zh_hans"]), classes=["zh-hans"])],
                [nodes.inline("", "", *self.inline(row["zh_hant"]), classes=["zh-hant"])],
                self.home(row["home"]),
                self.inline(row["note"]),
            ]
            for row in self.rows()
        ]
        head = ["English", "简体", "繁體", "Home", "Note"]
        return [table(head, body, classes=["wide", "glossary"])]


def topic_ids(env: BuildEnvironment) -> set[str]:
    """Return the ids of all source topics, or nothing when there is no such table."""
    path = Path(env.srcdir) / env.config.companion_data / SourceTopics.file
    return {row["id"] for row in read_rows(path, ("id",))} if path.is_file() else set()


def setup(app: Sphinx) -> None:
    """Register the directives."""
    app.add_config_value("companion_data", "book/_data", "env")
    app.add_directive("source-topics", SourceTopics)
    app.add_directive("errata-table", ErrataTable)
    app.add_directive("glossary-table", GlossaryTable)
