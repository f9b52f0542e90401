"""The header of a chapter: reading and run time, what it builds on, its module, its notebook."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from .launch import launches
from .ledger import formula, internal_link, ledgers, load_mathjax, mark, number_of, read_notebook
from .nodes_util import inline_error, table
from .plan import page_link, plan_of, reading_minutes
from .tables import GlossaryTable, document_page, read_rows, topic_anchor, topic_ids
from .uses import chapter_uses

logger = logging.getLogger(__name__)


class fact_count(nodes.General, nodes.Element):
    """Stands for the number of verified equations until the page has been read."""


class formula_list(nodes.General, nodes.Element):
    """Stands for the chapter's equations until they are numbered."""


class ChapterFacts(SphinxDirective):
    """What a reader wants to know before starting, from the notebook's own metadata."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Make a slim list of facts, and leave the topics of the sources for the end."""
        path = Path(self.env.doc2path(self.env.docname))
        notebook = read_notebook(path)
        metadata = notebook["metadata"]
        facts: list[tuple[str, list[nodes.Node]]] = []
        if path.suffix == ".ipynb":
            facts.append(("Reading", [nodes.Text(f"about {reading_minutes(notebook)} minutes")]))
        facts.append(("Verified equations", [fact_count()]))
        page = plan_of(self.env).chapters.get(self.env.docname)
        needs = [plan_of(self.env).find(name) for name in page.needs] if page else []
        links = [page_link(self.env, need, need.title) for need in needs if need is not None]
        if links:
            facts.append(("Builds on", self.joined(links)))
        modules = metadata.get("companion") or []
        modules = [modules] if isinstance(modules, str) else list(modules)
        if modules:
            facts.append(("Library", self.joined([self.module(name) for name in modules])))
        built = metadata.get("companion_build", {})
        if "processor_seconds" in built:
            seconds, processor = built["processor_seconds"], built["processor"]
            told = f"{max(1, round(seconds))} s of one core ({processor})"
            facts.append(("Runs in", [nodes.Text(told)]))
        if path.suffix == ".ipynb":
            # Where the theme's own download button points; `publish` puts the plain notebook there.
            up = "../" * self.env.docname.count("/")
            link = nodes.reference(
                "", "notebook", refuri=f"{up}_sources/{self.env.docname}.ipynb", internal=True
            )
            facts.append(("Download", [link]))
            places = [
                nodes.reference("", where, refuri=address)
                for where, address in launches(self.env.app, self.env.docname)
            ]
            if places:
                facts.append(("Run it on", self.joined(places)))
        items = nodes.bullet_list(bullet="-", classes=["chapter-facts"])
        for name, value in facts:
            paragraph = nodes.paragraph()
            paragraph += nodes.inline(name, name, classes=["fact-name"])
            paragraph += nodes.Text(" ")
            paragraph.extend(value)
            items += nodes.list_item("", paragraph)
        topics = metadata.get("sources") or []
        answers = self.answers([topics] if isinstance(topics, str) else [str(t) for t in topics])
        used = chapter_uses() if page else []
        return [items, formula_list(classes=["at-the-end"]), *used, *self.terms(), *answers]

    def terms(self) -> list[nodes.Node]:
        """Name the terms that the chapter defines, in English and Chinese."""
        path = Path(self.env.srcdir) / self.config.companion_data / GlossaryTable.file
        here, there = self.env.docname, self.config.companion_glossary
        if not path.is_file() or there not in self.env.found_docs:
            return []
        self.env.note_dependency(str(path))
        rows = [
            row
            for row in read_rows(path, GlossaryTable.columns)
            if (page := plan_of(self.env).find(row["home"])) and page.docname == here
        ]
        if not rows:
            return []
        uri = self.env.app.builder.get_relative_uri(here, there)
        title = nodes.rubric("", "Terms of this chapter", classes=["at-the-end"])
        paragraph = nodes.paragraph(classes=["chapter-terms", "at-the-end"])
        for row in rows:
            anchor = nodes.make_id(f"term-{row['en']}")
            link = nodes.reference("", row["en"], refuri=f"{uri}#{anchor}", internal=True)
            simplified = nodes.inline("", row["zh_hans"], classes=["zh-hans"])
            traditional = nodes.inline("", row["zh_hant"], classes=["zh-hant"])
            both = [nodes.Text(" "), simplified]
            if row["zh_hans"] != row["zh_hant"]:
                both += [nodes.Text(" / "), traditional]
            paragraph += nodes.inline("", "", link, *both, classes=["chapter-term"])
            paragraph += nodes.Text(" ")
        return [title, paragraph]

    def answers(self, topics: list[str]) -> list[nodes.Node]:
        """Name the topics of the sources that the chapter answers; they are moved to its end."""
        known = topic_ids(self.env)
        for topic in topics:
            if known and topic not in known:
                logger.warning(
                    "front matter names the source topic %s, which sources.tsv does not list",
                    topic,
                    location=self.get_location(),
                    type="companion",
                    subtype="sources",
                )
        if not topics:
            return []
        paragraph = nodes.paragraph(classes=["chapter-sources", "at-the-end"])
        paragraph += nodes.Text("This chapter answers these topics of the sources: ")
        paragraph.extend(self.joined([self.topic(topic) for topic in topics]))
        paragraph += nodes.Text(".")
        return [paragraph]

    @staticmethod
    def joined(values: list[nodes.Node]) -> list[nodes.Node]:
        """Put commas between values."""
        result: list[nodes.Node] = []
        for value in values:
            if result:
                result.append(nodes.Text(", "))
            result.append(value)
        return result

    def module(self, name: str) -> nodes.Node:
        """Link to a module in the library reference."""
        return addnodes.pending_xref(
            "",
            nodes.literal(name, name),
            refdomain="py",
            reftype="mod",
            reftarget=name,
            refexplicit=True,
            refwarn=True,
            refdoc=self.env.docname,
        )

    def topic(self, name: str) -> nodes.Node:
        """Link to a topic on the page of its document, where that page exists."""
        here = self.env.docname
        there = document_page(self.config.companion_sources, name.split(".")[0])
        if there not in self.env.found_docs:
            return nodes.inline(name, name)
        uri = self.env.app.builder.get_relative_uri(here, there)
        return nodes.reference(
            "", name, refuri=f"{uri}#{topic_anchor(name)}", internal=True, classes=["topic"]
        )


def move_to_the_end(app: Sphinx, doctree: nodes.document) -> None:
    """Move what the header says last: the chapter's formulas, and the topics of the sources."""
    late = [n for n in doctree.findall(nodes.Element) if "at-the-end" in n.get("classes", ())]
    for node in late:
        node.parent.remove(node)
        next(doctree.findall(nodes.section)).append(node)


def fill_formulas(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """List the chapter's equations once more on one page, each with its number and its mark."""
    for placeholder in list(doctree.findall(formula_list)):
        page = ledgers(app.env).get(docname)
        rows = [
            [
                [internal_link(app, docname, docname, equation.node_id, nodes.Text(f"({number})"))],
                [formula(equation)],
                [mark(app, docname, docname, equation)],
            ]
            for equation in (page.equations if page else [])
            if (number := number_of(app.env, docname, equation))
        ]
        if not rows:
            placeholder.parent.remove(placeholder)
            continue
        title = nodes.rubric("", "", ids=["formulas"])
        title += nodes.Text("The formulas of this chapter")
        head = ["No.", "Formula", "Verified"]
        where = placeholder.parent.index(placeholder)
        placeholder.parent[where : where + 1] = [title, table(head, rows, classes=["formulas"])]
        load_mathjax(app, docname)


def fill_facts(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the number of verified equations in, with a link to the chapter's ledger."""
    for placeholder in list(doctree.findall(fact_count)):
        page = ledgers(app.env).get(docname)
        count = len(page.equations) if page else 0
        there = app.config.companion_ledger
        if count and there in app.env.all_docs:
            anchor = nodes.make_id(f"ledger-{docname}")
            link = internal_link(app, docname, there, anchor, nodes.Text(str(count)))
            placeholder.replace_self([link])
        else:
            placeholder.replace_self([nodes.Text(str(count))])


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_config_value("companion_sources", "book/sources", "env")
    app.add_config_value("companion_glossary", "book/glossary", "env")
    app.add_config_value("companion_ledger", "book/ledger", "env")
    app.add_node(fact_count, html=(inline_error, None))
    app.add_directive("chapter-facts", ChapterFacts)
    app.add_node(formula_list, html=(inline_error, None))
    app.connect("doctree-read", move_to_the_end)
    app.connect("doctree-resolved", fill_formulas)
    app.connect("doctree-resolved", fill_facts)
