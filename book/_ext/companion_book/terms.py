"""Terms of the glossary in the chapters: linked where a chapter uses each of them first.

The link leads to the glossary; `previews` shows what stands there without leaving the page. Where
each term is used first is kept for the index.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from .chinese import join_texts
from .plan import plan_of
from .tables import GlossaryTable, read_rows

# Words of everyday English, which mean the term for certain only in the chapter of its home.
EVERYDAY = frozenset(
    re.findall(
        r"\w+",
        """
    algorithm architecture array attribution baseline benchmark bias bit byte cache checkpoint
    column critic data derivative domain ensemble epoch faithfulness fidelity frequency function
    image independence inequality information integer intervention key label margin mask matrix
    memory mention mode model momentum network noise norm optimization parameter patch policy
    prefix prompt proof query rank reasoning recall representation reward robustness rounding
    router row safety sample sampling scalar score sequence set software string theorem threshold
    trace training triple trust uniformity utility value variable vector verification video view
    weight
    """,
    )
)
WORD = re.compile(r"(?<![\w-])[A-Za-z][\w’']*")
ABBREVIATION = re.compile(r"(?:^|; )(?:abbreviated )?([A-Z][A-Za-z]*[A-Z][A-Za-z]*)(?=;|$)")
# What is no running text of the chapter, or is folded: a first use has to be seen.
ELSEWHERE = (nodes.table, nodes.citation, nodes.footnote, nodes.topic, nodes.rubric)
LINKS = (nodes.reference, addnodes.pending_xref, nodes.literal, nodes.math, nodes.raw)


@dataclass(frozen=True)
class Term:
    """A row of the glossary."""

    name: str
    simplified: str
    traditional: str
    homes: tuple[str, ...]
    everyday: bool = False  # means the term for certain only in the chapter of its home

    @property
    def anchor(self) -> str:
        """Where it stands in the glossary."""
        return nodes.make_id(f"term-{self.name}")

    @property
    def first_use(self) -> str:
        """Where a chapter uses it first."""
        return nodes.make_id(f"use-{self.name}")


def plurals(word: str) -> list[str]:
    """Spell a word in the singular and in the plural: ``entropy`` and ``entropies``."""
    forms = [word, f"{word}s"]
    if word.endswith(("s", "x", "sh", "ch")):
        forms.append(f"{word}es")
    if re.search(r"[^aeiou]y$", word):
        forms.append(f"{word[:-1]}ies")
    if word.endswith("ix"):
        forms.append(f"{word[:-2]}ices")
    return forms


def names_of(row: dict[str, str]) -> list[str]:
    """Return the names of a row: the term without what stands in parentheses, and its letters."""
    return [re.sub(r"\s*\(.*?\)", "", row["en"]), *ABBREVIATION.findall(row["note"])]


def pattern_of(name: str) -> re.Pattern[str]:
    """Match a name at a place: in the plural too, after a line break, at a sentence's beginning."""
    *front, last = re.split(r"[ –-]", name)
    ends = "|".join(re.escape(form) for form in sorted(plurals(last), key=len, reverse=True))
    tex = r"(?:[–-]\s*|\s+)".join([*map(re.escape, front), f"(?:{ends})"]).replace("'", "['’]")
    if name[0].islower():
        tex = f"[{name[0]}{name[0].upper()}]{tex[1:]}" if front else f"(?i:{ends})"
    return re.compile(rf"{tex}(?![\w-])")


class Vocabulary:
    """All terms, looked up by the first word of their names."""

    def __init__(self, terms: Iterable[tuple[Term, list[str]]]) -> None:
        self.terms: dict[str, Term] = {}
        self.begins: dict[str, list[tuple[int, re.Pattern[str], Term]]] = {}
        for term, names in terms:
            self.terms[term.name] = term
            for name in names:
                first = re.split(r"[ –-]", name)[0].lower()
                for form in [first] if first != name.lower() else plurals(first):
                    entry = (len(name), pattern_of(name), term)
                    self.begins.setdefault(form.replace("'", "’"), []).append(entry)
        for entries in self.begins.values():
            entries.sort(key=lambda entry: -entry[0])  # the longest name first

    def uses(self, text: str, docname: str) -> Iterator[tuple[int, int, Term]]:
        """Yield where a text of a page uses terms: start, end, which; the longest name wins."""
        free = 0
        for word in WORD.finditer(text):
            if word.start() < free:
                continue
            for _, pattern, term in self.begins.get(word[0].lower().replace("'", "’"), ()):
                if term.everyday and docname not in term.homes:
                    continue
                if found := pattern.match(text, word.start()):
                    free = found.end()
                    yield word.start(), free, term
                    break


def vocabulary(app: Sphinx) -> Vocabulary:
    """Read the glossary once a build; a project without one has no terms."""
    known: Vocabulary | None = getattr(app, "companion_vocabulary", None)
    if known is None:
        known = Vocabulary(read_terms(app))
        app.companion_vocabulary = known  # type: ignore[attr-defined]
    return known


def glossary_path(app: Sphinx) -> Path:
    """Where the glossary is kept."""
    return Path(app.srcdir) / app.config.companion_data / GlossaryTable.file


def read_terms(app: Sphinx) -> Iterator[tuple[Term, list[str]]]:
    """Yield each term with its names."""
    if not glossary_path(app).is_file():
        return
    plan = plan_of(app.env)
    for row in read_rows(glossary_path(app), GlossaryTable.columns):
        homes = [plan.find(name) for name in re.split(r"[,;]\s*", row["home"])]
        term = Term(
            row["en"],
            row["zh_hans"],
            row["zh_hant"],
            tuple(page.docname for page in homes if page is not None),
            names_of(row)[0] in EVERYDAY or "(" in row["en"],
        )
        yield term, names_of(row)


def first_uses(env: BuildEnvironment) -> dict[str, list[str]]:
    """Return for each chapter the terms that it uses, in order."""
    if not hasattr(env, "companion_terms"):
        env.companion_terms = {}  # type: ignore[attr-defined]
    result: dict[str, list[str]] = env.companion_terms  # type: ignore[attr-defined]
    return result


def in_running_text(paragraph: nodes.Node) -> bool:
    """Tell whether a paragraph is part of the chapter's own text and in view."""
    node = paragraph.parent
    while node is not None:
        classes = set(node.get("classes", ()))
        if isinstance(node, ELSEWHERE) or node.get("nb_element") == "cell_code":
            return False
        if classes & {"dropdown", "chapter-facts", "at-the-end"}:
            return False
        node = node.parent
    return not set(paragraph.get("classes", ())) & {"chapter-terms", "at-the-end"}


def link_terms(app: Sphinx, doctree: nodes.document) -> None:
    """Link the first use of each term in a chapter."""
    docname, glossary = app.env.docname, app.config.companion_glossary
    if docname not in plan_of(app.env).chapters or glossary not in app.env.found_docs:
        return
    known, seen = vocabulary(app), []
    if not known.terms:
        return
    app.env.note_dependency(str(glossary_path(app)))
    uri = app.builder.get_relative_uri(docname, glossary)
    for paragraph in list(doctree.findall(nodes.paragraph)):
        if not in_running_text(paragraph):
            continue
        for holder in [paragraph, *paragraph.findall(nodes.TextElement)]:
            join_texts(holder)
        for text in list(paragraph.findall(nodes.Text)):
            inside, node = [], text.parent
            while node is not paragraph:
                inside.append(node)
                node = node.parent
            if any(isinstance(each, LINKS) for each in inside):
                continue
            pieces: list[nodes.Node] = []
            at = 0
            for start, end, term in known.uses(str(text), docname):
                if term.name in seen:
                    continue
                seen.append(term.name)
                if start > at:
                    pieces.append(nodes.Text(str(text)[at:start]))
                link = nodes.reference(
                    "",
                    str(text)[start:end],
                    refuri=f"{uri}#{term.anchor}",
                    internal=True,
                    classes=["term"],
                    ids=[term.first_use],
                )
                pieces.append(link)
                at = end
            if pieces:
                if at < len(text):
                    pieces.append(nodes.Text(str(text)[at:]))
                place = text.parent.index(text)
                text.parent[place : place + 1] = pieces
    first_uses(app.env)[docname] = seen


def purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget a page that is about to be read again."""
    first_uses(env).pop(docname, None)


def merge(app: Sphinx, env: BuildEnvironment, docnames: list[str], other: BuildEnvironment) -> None:
    """Join what parallel readers collected."""
    for docname in docnames:
        if docname in first_uses(other):
            first_uses(env)[docname] = first_uses(other)[docname]


def setup(app: Sphinx) -> None:
    """Register the events."""
    # After all that reads or moves what the chapter says.
    app.connect("doctree-read", link_terms, priority=900)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
