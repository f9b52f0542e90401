"""The plan of the book: chapter numbers, the sidebar, and the ``book-contents`` directive."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from bs4 import BeautifulSoup
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors.toctree import TocTreeCollector
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII")


@dataclass(frozen=True)
class Page:
    """A chapter or an appendix of the plan; an appendix has no number and needs nothing."""

    docname: str
    title: str
    question: str
    number: int | None = None
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A part of the book with its pages in reading order."""

    caption: str
    title: str
    pages: tuple[Page, ...]


@dataclass(frozen=True)
class Plan:
    """The whole book as planned, whether written or not."""

    parts: tuple[Part, ...] = ()
    appendices: tuple[Page, ...] = ()
    chapters: dict[str, Page] = field(default_factory=dict)

    def find(self, name: str) -> Page | None:
        """Look a chapter up by docname, by ``part/file``, or by file name alone."""
        name = name.strip().strip("/")
        for candidate in (name, f"book/{name}"):
            if candidate in self.chapters:
                return self.chapters[candidate]
        matches = [page for doc, page in self.chapters.items() if doc.rsplit("/", 1)[-1] == name]
        return matches[0] if len(matches) == 1 else None


def load_plan(path: Path, prefix: str = "book") -> Plan:
    """Read ``contents.yml``; a project without one has an empty plan."""
    if not path.is_file():
        return Plan()
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    parts, chapters, number = [], {}, 0
    for index, entry in enumerate(raw.get("parts", [])):
        pages = []
        for chapter in entry["chapters"]:
            number += 1
            docname = f"{prefix}/{entry['folder']}/{chapter['file']}"
            if docname in chapters:
                raise ExtensionError(f"{path.name} lists {docname} twice")
            needs = tuple(chapter.get("needs", ()))
            page = Page(docname, chapter["title"], chapter["question"], number, needs)
            chapters[docname] = page
            pages.append(page)
        parts.append(Part(f"{ROMAN[index]} · {entry['title']}", entry["title"], tuple(pages)))
    plan = Plan(tuple(parts), (), chapters)
    for page in chapters.values():
        for need in page.needs:
            earlier = plan.find(need)
            if earlier is None or (earlier.number or 0) >= (page.number or 0):
                raise ExtensionError(
                    f"{path.name}: {page.docname} needs {need}, which is no earlier chapter"
                )
    appendices = tuple(
        Page(f"{prefix}/{entry['file']}", entry["title"], entry["question"])
        for entry in raw.get("appendices", [])
    )
    return Plan(tuple(parts), appendices, chapters)


def plan_of(env: BuildEnvironment) -> Plan:
    """Return the plan of the project that is being built."""
    plan: Plan = env.app.companion_plan  # type: ignore[attr-defined]
    return plan


def read_plan(app: Sphinx) -> None:
    """Load the plan before anything is read."""
    path = Path(app.srcdir) / app.config.companion_contents
    app.companion_plan = load_plan(path, path.parent.name)  # type: ignore[attr-defined]


original_figures = TocTreeCollector.assign_figure_numbers


def number_by_plan(collector: TocTreeCollector, env: BuildEnvironment) -> list[str]:
    """Number a chapter by its place in the plan instead of its place in its toctree.

    This runs between the numbering of sections, which the toctree extensions share, and that of
    figures and equations, which takes the chapter's number over.
    """
    before = getattr(env, "companion_secnumbers", {})
    for docname, page in plan_of(env).chapters.items():
        numbers = env.toc_secnumbers.get(docname)
        if not numbers or page.number is None:
            continue
        fixed = {
            anchor: (page.number, *value[1:]) if value else value
            for anchor, value in numbers.items()
        }
        env.toc_secnumbers[docname] = fixed
        for reference in env.tocs[docname].findall(nodes.reference):
            if reference.get("secnumber"):
                reference["secnumber"] = fixed[reference["anchorname"]]
        if env.titles[docname].get("secnumber"):
            env.titles[docname]["secnumber"] = fixed[""]
    env.companion_secnumbers = {  # type: ignore[attr-defined]
        docname: dict(numbers) for docname, numbers in env.toc_secnumbers.items()
    }
    moved = [doc for doc, numbers in env.toc_secnumbers.items() if numbers != before.get(doc)]
    return moved + original_figures(collector, env)


def sidebar(app: Sphinx, pagename: str, context: dict[str, Any]) -> BeautifulSoup:
    """Draw the whole table of contents: links to what is written, gray names for what is not."""
    env, plan = app.env, plan_of(app.env)
    soup = BeautifulSoup("", "html.parser")

    def entry(page: Page) -> Any:
        written = page.docname in env.all_docs
        item = soup.new_tag("li", attrs={"class": "toctree-l1"})
        label = f"{page.number}. " if page.number else ""
        if written:
            if page.docname == pagename or pagename.startswith(f"{page.docname}/"):
                item["class"] = "toctree-l1 current active"
            link = soup.new_tag("a", attrs={"class": "reference internal"})
            link["href"] = "#" if page.docname == pagename else context["pathto"](page.docname)
            if page.docname == pagename:
                link["aria-current"] = "page"
            link.string = label + env.titles[page.docname].astext()
            item.append(link)
        else:
            item["class"] = "toctree-l1 planned"
            name = soup.new_tag("span", attrs={"class": "planned-title"})
            name.string = label + page.title
            note = soup.new_tag("span", attrs={"class": "planned-note"})
            note.string = "planned"
            item.extend([name, " ", note])
        return item

    groups = [(part.caption, part.pages) for part in plan.parts]
    for caption, pages in [*groups, ("Appendices", plan.appendices)]:
        heading = soup.new_tag("p", attrs={"class": "caption", "role": "heading"})
        heading["aria-level"] = "2"
        text = soup.new_tag("span", attrs={"class": "caption-text"})
        text.string = caption
        heading.append(text)
        items = soup.new_tag("ul", attrs={"class": "nav bd-sidenav"})
        items.extend([entry(page) for page in pages])
        soup.extend([heading, items])
    return soup


def wrap_sidebar(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Replace the theme's sidebar, which knows only the pages that exist, by the whole plan."""
    original = context.get("generate_toctree_html")
    if original is None or not plan_of(app.env).parts:
        return

    def generate(kind: str, *args: Any, **kwargs: Any) -> Any:
        if kind == "sidebar":
            return sidebar(app, pagename, context)
        return original(kind, *args, **kwargs)

    context["generate_toctree_html"] = generate


def check_pages(app: Sphinx, env: BuildEnvironment) -> None:
    """Refuse a chapter that the plan does not know: it would have no number and no place."""
    plan = plan_of(env)
    if not plan.parts:
        return
    known = {*plan.chapters, *(page.docname for page in plan.appendices), app.config.root_doc}
    # An appendix may have pages of its own: those of the reference lie in a folder of its name.
    folders = tuple(f"{page.docname}/" for page in plan.appendices)
    strangers = sorted(name for name in set(env.all_docs) - known if not name.startswith(folders))
    if strangers:
        raise ExtensionError(
            f"pages that {app.config.companion_contents} does not list: {', '.join(strangers)}"
        )


def reread_dependents(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Read a page again when pages that it reports about have come, gone, or changed."""
    if added or removed:
        return sorted(env.found_docs)  # every sidebar changes
    dependents: set[str] = getattr(env, "companion_dependents", set())
    return sorted(dependents & set(env.found_docs)) if changed else []


def note_dependent(env: BuildEnvironment) -> None:
    """Remember that the page being read reports about other pages."""
    if not hasattr(env, "companion_dependents"):
        env.companion_dependents = set()  # type: ignore[attr-defined]
    env.companion_dependents.add(env.docname)  # type: ignore[attr-defined]


def merge_dependents(
    app: Sphinx, env: BuildEnvironment, docnames: list[str], other: BuildEnvironment
) -> None:
    """Join what parallel readers noted."""
    mine: set[str] = getattr(env, "companion_dependents", set())
    env.companion_dependents = mine | getattr(other, "companion_dependents", set())  # type: ignore[attr-defined]


def page_link(env: BuildEnvironment, page: Page, text: str | None = None) -> nodes.Node:
    """Link to a page that exists; name a planned one as such."""
    text = text or page.title
    if page.docname not in env.found_docs:
        return nodes.inline(
            "",
            "",
            nodes.inline(text, text, classes=["planned-title"]),
            nodes.Text(" "),
            nodes.inline("planned", "planned", classes=["planned-note"]),
        )
    inner = nodes.inline(text, text)
    return addnodes.pending_xref(
        "",
        inner,
        refdomain="std",
        reftype="doc",
        reftarget=f"/{page.docname}",
        refexplicit=True,
        refwarn=True,
        refdoc=env.docname,
    )


def resolve_planned(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Node
) -> nodes.Node | None:
    """Let text name a chapter before it is written: its title stands there, without a link."""
    if node.get("refdomain") != "std" or node.get("reftype") != "doc":
        return None
    plan, target = plan_of(env), node["reftarget"].lstrip("/")
    pages = {page.docname: page for page in (*plan.chapters.values(), *plan.appendices)}
    if target not in pages or target in env.all_docs:
        return None
    text = content.astext() if node.get("refexplicit") else pages[target].title
    return nodes.inline(text, text, classes=["planned-title"])


def reading_minutes(notebook: dict[str, Any]) -> int:
    """Estimate how long a chapter takes to read, to the next five minutes.

    A minute for 200 words of prose, and a third of one for each displayed equation and for each
    three lines of code in view. Solutions of exercises are not counted.
    """
    words = displays = lines = 0
    solving = False
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if solving := (solving or "{solution-start}" in text) and "{solution-end}" not in text:
            continue
        if cell["cell_type"] == "markdown":
            text = re.sub(r"^(`{3,}|:{3,})\{solution\}.*?^\1\s*$", "", text, flags=re.M | re.S)
            displays += text.count("$$") // 2
            words += len(re.sub(r"\$\$.*?\$\$|\$[^$]*\$", " x ", text, flags=re.S).split())
        elif "hide-input" not in cell.get("metadata", {}).get("tags", []):
            lines += sum(bool(line.strip()) for line in text.splitlines())
    minutes = words / 200 + displays / 3 + lines / 9
    return 5 * math.ceil(minutes / 5)


def told_times(env: BuildEnvironment, docname: str) -> str:
    """Say how long a chapter takes to read and to run; nothing of a page without code."""
    path = Path(env.doc2path(docname))
    if docname not in env.found_docs or path.suffix != ".ipynb":
        return ""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    told = f"{reading_minutes(notebook)} min"
    seconds = notebook["metadata"].get("companion_build", {}).get("processor_seconds")
    return told + (f", runs in {max(1, round(seconds))} s" if seconds is not None else "")


class BookContents(SphinxDirective):
    """The whole plan of the book, with one question for each chapter."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Make one block for each part."""
        note_dependent(self.env)
        plan = plan_of(self.env)
        written = sum(doc in self.env.found_docs for doc in plan.chapters)
        summary = f"{len(plan.chapters)} chapters in {len(plan.parts)} parts; {written} written."
        box = nodes.container(classes=["book-contents"])
        box += nodes.paragraph(summary, summary, classes=["book-contents-count"])
        for part in plan.parts:
            box += self.group(f"Part {part.caption}", part.pages)
        box += self.group("Appendices", plan.appendices)
        return [box]

    def group(self, caption: str, pages: tuple[Page, ...]) -> nodes.container:
        """Make the list of one part."""
        group = nodes.container(classes=["book-part"])
        title = nodes.paragraph(classes=["book-part-title"])
        title += nodes.strong(caption, caption)
        group += title
        items = nodes.bullet_list(bullet="-", classes=["book-part-pages"])
        for page in pages:
            head = nodes.paragraph(classes=["book-page-title"])
            if page.number:
                head += nodes.inline("", f"{page.number}. ", classes=["book-page-number"])
            head += page_link(self.env, page)
            question = nodes.paragraph("", "", classes=["book-page-question"])
            question.extend(self.state.inline_text(page.question, self.lineno)[0])
            if times := told_times(self.env, page.docname):
                question += nodes.Text(" ")
                question += nodes.inline("", times, classes=["book-page-times"])
            items += nodes.list_item("", head, question)
        group += items
        return group


def written_pages(env: BuildEnvironment) -> Iterator[Page]:
    """Yield the chapters that exist, in reading order."""
    for docname, page in plan_of(env).chapters.items():
        if docname in env.all_docs:
            yield page


def setup(app: Sphinx) -> None:
    """Register the directive and the events."""
    app.add_config_value("companion_contents", "book/contents.yml", "env")
    app.connect("builder-inited", read_plan)
    # After the theme (500) has put its function into the context.
    app.connect("html-page-context", wrap_sidebar, priority=900)
    app.connect("env-updated", check_pages)
    app.connect("env-get-outdated", reread_dependents)
    app.connect("env-merge-info", merge_dependents)
    app.connect("missing-reference", resolve_planned)
    app.add_directive("book-contents", BookContents)
    TocTreeCollector.assign_figure_numbers = number_by_plan  # type: ignore[method-assign]
