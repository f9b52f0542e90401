"""Tables that the book keeps as data: source map, errata, glossary, tools, and data cards."""

from __future__ import annotations

import csv
import re
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
    """The anchor of a source topic on the page of its document."""
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
    """The source documents: how many topics each has, and a link to the page that answers them."""

    file = "sources.tsv"
    columns = ("id", "document", "kind", "topic", "home_part", "home_chapter", "errata")

    def answered(self, rows: list[dict[str, str]]) -> int:
        """Count the topics whose chapter is written."""
        homes = [plan_of(self.env).find(row["home_chapter"]) for row in rows]
        return sum(page is not None and page.docname in self.env.found_docs for page in homes)

    def documents(self) -> dict[str, list[dict[str, str]]]:
        """Sort the topics by document."""
        found: dict[str, list[dict[str, str]]] = {}
        for row in self.rows():
            found.setdefault(row["document"], []).append(row)
        return found

    def run(self) -> list[nodes.Node]:
        """Make one row for each document."""
        documents = self.documents()
        every = [row for rows in documents.values() for row in rows]
        text = (
            f"{len(every)} topics, each with one home; {self.answered(every)} of the homes are "
            "written so far."
        )
        body = []
        for name, rows in documents.items():
            there = document_page(self.config.companion_sources, name)
            link: nodes.Node = nodes.inline("", name)
            if there in self.env.found_docs:
                uri = self.env.app.builder.get_relative_uri(self.env.docname, there)
                link = nodes.reference("", name, refuri=uri, internal=True)
            sections = {section_of(row["id"]) for row in rows}
            counts = (len(sections), len(rows), self.answered(rows))
            body.append([[link], *([nodes.Text(str(count))] for count in counts)])
        head = ["Document", "Sections", "Topics", "Answered so far"]
        return [nodes.paragraph(text, text), table(head, body)]


class SourceDocument(SourceTopics):
    """One source document: its sections beside our chapters, and each of its topics."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make an overview of the sections, and a table of topics for each of them."""
        name = self.arguments[0]
        rows = self.documents().get(name)
        if not rows:
            raise ExtensionError(f"{self.file} has no topics of a document {name!r}")
        sections: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            sections.setdefault(section_of(row["id"]), []).append(row)
        text = (
            f"{len(rows)} topics in {len(sections)} sections; "
            f"{self.answered(rows)} are answered by chapters that are written."
        )
        overview = []
        for section, members in sections.items():
            anchor = section_anchor(section)
            link = nodes.reference("", section_name(section), refuri=f"#{anchor}", internal=True)
            homes = dict.fromkeys(row["home_chapter"] for row in members)
            overview.append(
                [
                    [link],
                    [nodes.Text(str(len(members)))],
                    self.home(", ".join(homes)),
                    self.errata(members),
                ]
            )
        head = ["Section", "Topics", "Our chapters", "Corrected"]
        result: list[nodes.Node] = [
            nodes.paragraph(text, text),
            table(head, overview, classes=["source-sections"]),
        ]
        for section, members in sections.items():
            title = section_name(section)
            result.append(nodes.rubric(title, title, ids=[section_anchor(section)]))
            body = [
                [
                    self.anchored(row["id"], topic_anchor(row["id"])),
                    self.inline(row["kind"]),
                    self.inline(row["topic"]),
                    self.home(row["home_chapter"]),
                    self.errata([row]),
                ]
                for row in members
            ]
            head = ["Topic", "Kind", "What it says", "Home", "Corrected"]
            result.append(table(head, body, classes=["wide"]))
        return result

    def errata(self, rows: list[dict[str, str]]) -> list[nodes.Node]:
        """Link to the corrections of topics."""
        numbers = list(dict.fromkeys(number for row in rows for number in row["errata"].split()))
        uri = self.env.app.builder.get_relative_uri(self.env.docname, self.config.companion_sources)
        made: list[nodes.Node] = []
        for number in numbers:
            made += [nodes.Text(", ")] if made else []
            anchor = nodes.make_id(number)
            made.append(nodes.reference("", number, refuri=f"{uri}#{anchor}", internal=True))
        return made


def document_page(sources: str, name: str) -> str:
    """The page of a source document, below the page of sources."""
    return f"{sources}/{name.lower()}"


def section_of(topic: str) -> str:
    """The section of a topic: ``4.1`` of ``S2.4.1-3``, ``C.1`` of ``S0.C1-1``."""
    section = topic.split(".", 1)[1].rsplit("-", 1)[0]
    return f"C.{section[1:]}" if section.startswith("C") else section


def section_name(section: str) -> str:
    """Name a section as the documents do; number 0 is what stands before the first."""
    if section in ("0", "C.0"):
        return "Preface"
    return section if section.startswith("C") else f"§ {section}"


def section_anchor(section: str) -> str:
    """The anchor of a section on the page of its document."""
    return nodes.make_id(f"section-{section.replace('.', '-')}")


class ErrataTable(DataTable):
    """Statements of the sources that are wrong or dated, and what is right."""

    file = "errata.tsv"
    columns = ("number", "where", "says", "correct", "source", "home")

    def run(self) -> list[nodes.Node]:
        """Make the table."""
        path = Path(self.env.srcdir) / self.config.companion_data / SourceTopics.file
        topics = read_rows(path, ("id", "document")) if path.is_file() else []
        known = {(row["document"], section_of(row["id"])) for row in topics}
        body = [
            [
                self.anchored(row["number"], nodes.make_id(row["number"])),
                self.where(row["where"], known),
                self.inline(row["says"]),
                self.inline(row["correct"]),
                self.inline(row["source"]),
                self.home(row["home"]),
            ]
            for row in self.rows()
        ]
        head = ["No.", "Where", "The source says", "Correct is", "Reference", "Home"]
        return [table(head, body, classes=["wide", "errata"])]

    def where(self, text: str, known: set[tuple[str, str]]) -> list[nodes.Node]:
        """Link each place that a correction names to the page of its document."""
        made: list[nodes.Node] = []
        for piece in text.split("; "):
            made += [nodes.Text("; ")] if made else []
            name, _, rest = piece.partition(" ")
            there = document_page(self.config.companion_sources, name)
            if there not in self.env.found_docs:
                made.append(nodes.Text(piece))
                continue
            found = re.match(r"§*(C?[\d.]*\d)", rest)
            section = found[1] if found else ""
            anchor = f"#{section_anchor(section)}" if (name, section) in known else ""
            uri = self.env.app.builder.get_relative_uri(self.env.docname, there)
            made.append(nodes.reference("", piece, refuri=uri + anchor, internal=True))
        return made


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


class ToolsTable(DataTable):
    """The packages of one group: library, book, checks, or bench, at their locked versions."""

    file = "tools.tsv"
    columns = ("name", "group", "license", "purpose")
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make the table, or fail where a group is empty or a package is not locked."""
        group = self.arguments[0]
        rows = [row for row in self.rows() if row["group"] == group]
        if not rows:
            raise ExtensionError(f"{self.file} has no group {group!r}")
        locked = self.locked()
        lacking = [row["name"] for row in rows if row["name"] not in locked]
        if lacking:
            raise ExtensionError(f"{self.file} names what is not locked: {', '.join(lacking)}")
        body = [
            [
                [nodes.inline("", row["name"], classes=["row-name"])],
                [nodes.Text(locked[row["name"]])],
                [nodes.Text(row["license"])],
                self.inline(row["purpose"]),
            ]
            for row in sorted(rows, key=lambda row: row["name"])
        ]
        return [table(["Package", "Version", "License", "What for"], body)]

    def locked(self) -> dict[str, str]:
        """Read which version of each package is locked."""
        found: dict[str, str] = {}
        for name in ("lock.txt", "bench.txt"):
            path = Path(self.env.srcdir) / "requirements" / name
            self.env.note_dependency(str(path))
            pins = re.findall(r"^([\w.-]+)==([^\s;]+)", path.read_text(encoding="utf-8"), re.M)
            for package, version in pins:
                found.setdefault(package.lower().replace("_", "-"), version)
        return found


class DataCards(DataTable):
    """Every data set and model: what it is, who made it, its license, and where it is used."""

    def run(self) -> list[nodes.Node]:
        """Make the table from the registry of the library; a number links to a chapter."""
        from companion.data import data_sets

        note_dependent(self.env)
        pages = [
            page
            for page in plan_of(self.env).chapters.values()
            if page.docname in self.env.found_docs
        ]
        texts = {
            page.docname: Path(self.env.doc2path(page.docname)).read_text("utf-8") for page in pages
        }
        body = []
        for entry in data_sets().values():
            loaders = entry.loader.split(", ")
            called = re.compile(rf"\b(?:{'|'.join(loaders)})\(")
            used: list[nodes.Node] = []
            for page in pages:
                if called.search(texts[page.docname]):
                    used += [nodes.Text(", ")] if used else []
                    used.append(page_link(self.env, page, str(page.number)))
            names: list[nodes.Node] = []
            for loader in loaders:
                names += [nodes.Text(", ")] if names else []
                names += self.inline(f"{{py:func}}`~companion.data.{loader}`")
            body.append(
                [
                    [nodes.Text(entry.title)],
                    names,
                    [nodes.Text(entry.license)],
                    [nodes.Text(f"{entry.size / 1e6:.1f}")],
                    [nodes.Text(f"{entry.wheel.name} {entry.wheel.version}")],
                    used or [nodes.Text("–")],
                ]
            )
        head = ["What", "Loader", "License of the data", "MB", "Comes in", "Chapters"]
        return [table(head, body, classes=["wide"])]


def topic_ids(env: BuildEnvironment) -> set[str]:
    """Return the ids of all source topics, or nothing when there is no such table."""
    path = Path(env.srcdir) / env.config.companion_data / SourceTopics.file
    return {row["id"] for row in read_rows(path, ("id",))} if path.is_file() else set()


def setup(app: Sphinx) -> None:
    """Register the directives."""
    app.add_config_value("companion_data", "book/_data", "env")
    app.add_directive("source-topics", SourceTopics)
    app.add_directive("source-document", SourceDocument)
    app.add_directive("errata-table", ErrataTable)
    app.add_directive("glossary-table", GlossaryTable)
    app.add_directive("tools-table", ToolsTable)
    app.add_directive("data-cards", DataCards)
