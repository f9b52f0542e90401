"""The alphabetical index: terms with their Chinese forms, theorems, definitions, and functions."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

from .ledger import STATEMENTS, internal_link, ledgers
from .nodes_util import inline_error
from .plan import note_dependent, plan_of
from .reference import FOLDER
from .terms import Term, first_uses, vocabulary
from .uses import label_number


@dataclass
class Entry:
    """A line of the index."""

    text: str
    body: list[nodes.Node] = field(default_factory=list)

    @property
    def key(self) -> str:
        """What it is sorted by: letters and digits alone, without accents."""
        plain = unicodedata.normalize("NFKD", self.text)
        return re.sub(r"[^a-z0-9 ]", "", re.sub("[-–_]", " ", plain.lower())).strip()

    @property
    def letter(self) -> str:
        """The heading that it stands under."""
        first = self.key[:1]
        return first.upper() if first.isalpha() else "0–9"


def titles(env: BuildEnvironment) -> dict[str, list[tuple[str, str, str]]]:
    """Return for each page its titled theorems: title, kind, and anchor."""
    if not hasattr(env, "companion_titles"):
        env.companion_titles = {}  # type: ignore[attr-defined]
    result: dict[str, list[tuple[str, str, str]]] = env.companion_titles  # type: ignore[attr-defined]
    return result


def collect(app: Sphinx, doctree: nodes.document) -> None:
    """Note the titles of a page's theorems."""
    found = []
    for node in doctree.findall(nodes.Element):
        kind = type(node).__name__.removesuffix("_node")
        title = str(node.get("title", "")).strip().removeprefix("(").removesuffix(")")
        if kind in {*STATEMENTS, "algorithm", "example"} and title and node.get("ids"):
            found.append((title, kind, node["ids"][0]))
    titles(app.env)[app.env.docname] = found


def purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget a page that is about to be read again."""
    titles(env).pop(docname, None)


def merge(app: Sphinx, env: BuildEnvironment, docnames: list[str], other: BuildEnvironment) -> None:
    """Join what parallel readers collected."""
    titles(env).update({name: titles(other)[name] for name in docnames if name in titles(other)})


class index_list(nodes.General, nodes.Element):
    """Stands for the index until all pages have been read."""


class AlphabeticalIndex(SphinxDirective):
    """Everything that has a name, in the order of the alphabet."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Leave a placeholder; other pages say where their terms are used."""
        note_dependent(self.env)
        return [index_list()]


def muted(text: str) -> nodes.inline:
    """Write what is not to be looked up in gray."""
    return nodes.inline("", text, classes=["index-note"])


def term_entries(app: Sphinx, here: str) -> Iterator[Entry]:
    """Yield the terms: a link to the glossary, the Chinese forms, the chapters that use them."""
    env, plan = app.env, plan_of(app.env)
    using: dict[str, list[str]] = {}
    for docname in plan.chapters:
        for name in first_uses(env).get(docname, ()):
            using.setdefault(name, []).append(docname)
    for term in vocabulary(app).terms.values():
        text = nodes.Text(term.name)
        entry = Entry(term.name, [internal_link(app, here, glossary(app), term.anchor, text)])
        entry.body += [nodes.Text(" "), nodes.inline("", term.simplified, classes=["zh-hans"])]
        if term.traditional != term.simplified:
            traditional = nodes.inline("", term.traditional, classes=["zh-hant"])
            entry.body += [nodes.Text(" / "), traditional]
        entry.body += chapters_of(app, here, term, using.get(term.name, []))
        yield entry


def chapters_of(app: Sphinx, here: str, term: Term, using: list[str]) -> Iterator[nodes.Node]:
    """Number the chapters that use a term, each a link to the place; its home is in bold."""
    plan = plan_of(app.env)
    for docname, page in plan.chapters.items():
        if docname not in using and docname not in term.homes:
            continue
        yield nodes.Text(", ")
        number = nodes.Text(str(page.number))
        shown = nodes.strong("", "", number) if docname in term.homes else number
        if docname not in app.env.all_docs:
            yield nodes.inline("", "", shown, nodes.Text(" (planned)"), classes=["index-note"])
        else:
            place = term.first_use if docname in using else ""
            yield internal_link(app, here, docname, place, shown)


def glossary(app: Sphinx) -> str:
    """Return the page of the glossary."""
    return str(app.config.companion_glossary)


def other_entries(app: Sphinx, here: str) -> Iterator[Entry]:
    """Yield titled theorems, definitions by their labels, and the names of the library."""
    env = app.env
    for docname, page in plan_of(env).chapters.items():
        if docname not in env.all_docs:
            continue
        for title, kind, anchor in titles(env).get(docname, ()):
            link = internal_link(app, here, docname, anchor, nodes.Text(title))
            yield Entry(title, [link, muted(f", {kind}, {page.number}")])
        for label in ledgers(env)[docname].definitions if docname in ledgers(env) else ():
            name = label.removeprefix("def:").replace("-", " ")
            anchor = nodes.make_id(f"equation-{label}")
            number = nodes.Text(f"({label_number(env, label)})")
            link = internal_link(app, here, docname, anchor, number)
            yield Entry(name, [nodes.Text(name), muted(", definition "), link])
    for name, known in env.get_domain("py").objects.items():  # type: ignore[attr-defined]
        useful = known.objtype in ("function", "class", "exception", "data")
        if useful and known.docname.startswith(FOLDER) and known.node_id == name:
            module, _, last = name.rpartition(".")
            link = internal_link(app, here, known.docname, name, nodes.literal("", last))
            yield Entry(last, [link, muted(f", {module.removeprefix('companion.')}")])


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replace the placeholder by a heading and a list for each letter."""
    for place in list(doctree.findall(index_list)):
        letters: dict[str, list[Entry]] = {}
        entries = [*term_entries(app, docname), *other_entries(app, docname)]
        for entry in sorted(entries, key=lambda each: (each.letter, each.key, each.text)):
            letters.setdefault(entry.letter, []).append(entry)
        row = nodes.paragraph(classes=["index-letters"])
        content: list[nodes.Node] = [row]
        for letter, members in letters.items():
            anchor = f"letter-{letter[0].lower()}"
            row += internal_link(app, docname, docname, anchor, nodes.Text(letter))
            row += nodes.Text(" ")
            section = nodes.section("", nodes.title("", letter), ids=[anchor])
            items = nodes.bullet_list(bullet="-", classes=["index-entries"])
            for entry in members:
                items += nodes.list_item("", nodes.paragraph("", "", *entry.body))
            section += items
            content.append(section)
        place.replace_self(content)


def setup(app: Sphinx) -> None:
    """Register the node, the directive, and the events."""
    app.add_node(index_list, html=(inline_error, None))
    app.add_directive("alphabetical-index", AlphabeticalIndex)
    app.connect("doctree-read", collect)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("doctree-resolved", fill)
