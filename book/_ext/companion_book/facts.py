"""The header of a chapter: module, sources, verified equations, run time, download."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from .ledger import internal_link, ledgers, read_notebook
from .nodes_util import inline_error
from .tables import topic_anchor, topic_ids

logger = logging.getLogger(__name__)


class fact_count(nodes.General, nodes.Element):
    """Stands for the number of verified equations until the page has been read."""


class ChapterFacts(SphinxDirective):
    """What a reader wants to know before starting, from the notebook's own metadata."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Make a slim list of facts."""
        path = Path(self.env.doc2path(self.env.docname))
        metadata = read_notebook(path)["metadata"]
        facts: list[tuple[str, list[nodes.Node]]] = [("Verified equations", [fact_count()])]
        modules = metadata.get("companion") or []
        modules = [modules] if isinstance(modules, str) else list(modules)
        if modules:
            facts.append(("Library", self.joined([self.module(name) for name in modules])))
        topics = metadata.get("sources") or []
        topics = [topics] if isinstance(topics, str) else [str(topic) for topic in topics]
        if topics:
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
            facts.append(("Answers", self.joined([self.topic(topic) for topic in topics])))
        seconds = metadata.get("companion_build", {}).get("seconds")
        if seconds is not None:
            facts.append(
                ("Run time", [nodes.Text(f"{max(1, round(float(seconds)))} s in this build")])
            )
        if path.suffix == ".ipynb":
            # Where the theme's own download button points: the source that the page was made from.
            up = "../" * self.env.docname.count("/")
            link = nodes.reference(
                "", "notebook", refuri=f"{up}_sources/{self.env.docname}.ipynb", internal=True
            )
            facts.append(("Download", [link]))
        items = nodes.bullet_list(bullet="-", classes=["chapter-facts"])
        for name, value in facts:
            paragraph = nodes.paragraph()
            paragraph += nodes.inline(name, name, classes=["fact-name"])
            paragraph += nodes.Text(" ")
            paragraph.extend(value)
            items += nodes.list_item("", paragraph)
        return [items]

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
        """Link to a topic on the page of sources, where that page exists."""
        here, there = self.env.docname, self.config.companion_sources
        if there not in self.env.found_docs:
            return nodes.inline(name, name)
        uri = self.env.app.builder.get_relative_uri(here, there)
        return nodes.reference(
            "", name, refuri=f"{uri}#{topic_anchor(name)}", internal=True, classes=["topic"]
        )


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
    app.add_config_value("companion_ledger", "book/ledger", "env")
    app.add_node(fact_count, html=(inline_error, None))
    app.add_directive("chapter-facts", ChapterFacts)
    app.connect("doctree-resolved", fill_facts)
