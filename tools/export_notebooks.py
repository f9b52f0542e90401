"""Turn executed chapters into notebooks that read well without the book and its extensions.

JupyterLab, Colab and VS Code show plain Markdown with TeX, and nothing of MyST. So everything that
the book's renderer makes of a page is made here once: numbers of equations, theorems, exercises and
figures, references to them, citations with a list at the end, numbers from the run. Outputs stay in
place. ``make notebooks`` writes them all; the site offers them for download.

What this module does not know it refuses, so that no markup is left for the reader.

``python tools/export_notebooks.py`` runs all exported notebooks, or those that are named, in a
folder outside of the repository, with the library as its package holds it and without MyST.
"""

import argparse
import ast
import html
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat
import yaml
from myst_nb.core.variables import format_plain_text
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from pybtex.backends.markdown import Backend
from pybtex.database import BibliographyData, Entry, parse_file
from pybtex.richtext import Text
from pybtex.style.formatting.unsrt import Style

import chapters as book
from chapters import Chapter, ChapterError

RECORD = "application/vnd.companion.verification+json"
LABEL = r"(?:eq|def):[a-z0-9-]+"
DISPLAY = re.compile(rf"\$\$((?:(?!\$\$).)+?)\$\$[ \t]*\(({LABEL})\)", re.DOTALL)
FENCE = re.compile(r"^(?P<fence>`{3,}|:{3,})\{(?P<name>[\w:-]+)\}[ \t]*(?P<title>.*)$")
OPTION = re.compile(r"^:([\w-]+):[ \t]*(.*)$")
TARGET = re.compile(r"^\(([\w-]+)\)=[ \t]*$", re.MULTILINE)
ROLE = re.compile(r"\{([a-z]+(?::[a-z]+)?)\}(`+)(.+?)\2", re.DOTALL)
IN_CODE = re.compile(rf"\(({LABEL})\)")
# What may stand between dollar signs on several lines; code, and an escaped sign, begin none.
MATH = re.compile(r"(`+)(?:.+?)\1|\\\$|\$\$.+?\$\$|\$[^$]+?(?<!\\)\$", re.DOTALL)
#: Signs that only the book's renderer understands.
LEFT = re.compile(rf"\{{[\w:]+\}}`|^[`:]{{3,}}\{{|\({LABEL}\)", re.MULTILINE)
NUMBERED = re.compile(
    rf"(?P<display>\$\$[ \t]*\((?P<label>{LABEL})\))"
    r"|^(?:`{3,}|:{3,})\{(?P<name>[\w:-]+)\}(?P<options>.*(?:\n:[\w-]+:.*)*)"
    r"|^\((?P<target>[\w-]+)\)=[ \t]*\n+#+ (?P<heading>.+)$",
    re.MULTILINE,
)
GLUE = '''\
def glue(name, value, display=False):
    """On the page of the book this puts a number into the text. Here the text has it already."""
'''
IMPORT = r"^from myst_nb import glue\n?"
CLOSED = {"jupyter": {"source_hidden": True}, "cellView": "form"}


@dataclass(frozen=True)
class Target:
    """What a reference points to: a page, a place on it, and the words for it."""

    page: str
    anchor: str
    text: str


class ReferenceStyle(Style):  # type: ignore[misc]
    """Plain entries, sorted by author, year, and title, as in the book."""

    default_sorting_style = "author_year_title"


def short_citation(entry: Entry) -> tuple[str, str]:
    """Return the authors of a work in short, and its year."""
    persons = entry.persons.get("author") or entry.persons.get("editor") or []
    names = [
        " ".join(str(Text.from_latex(part)) for part in [*p.prelast_names, *p.last_names])
        for p in persons
    ]
    if len(names) > 2 or names[1:] == ["others"]:
        told = f"{names[0]} et al."
    else:
        told = " and ".join(names) or str(Text.from_latex(entry.fields.get("title", entry.key)))
    return told, str(entry.fields.get("year", ""))


@dataclass
class Book:
    """What all notebooks share: numbers, titles, works, and the addresses of the published book."""

    root: Path
    found: list[Chapter]

    @cached_property
    def settings(self) -> dict[str, Any]:
        text = (self.root / "_config.yml").read_text(encoding="utf-8")
        return yaml.safe_load(text) or {}

    @property
    def site(self) -> str:
        """The address of the published book; empty before it has one."""
        told = (self.settings.get("sphinx") or {}).get("config") or {}
        return str(told.get("companion_site") or "").rstrip("/")

    @property
    def repository(self) -> str:
        """The address of the repository; empty before it has one."""
        return str((self.settings.get("repository") or {}).get("url") or "").rstrip("/")

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each chapter: its place in the plan."""
        plan = self.root / "book" / "contents.yml"
        if not plan.is_file():
            return {}
        parts = yaml.safe_load(plan.read_text(encoding="utf-8"))["parts"]
        names = [
            f"book/{part['folder']}/{page['file']}" for part in parts for page in part["chapters"]
        ]
        return {name: number for number, name in enumerate(names, 1)}

    @cached_property
    def works(self) -> BibliographyData:
        path = self.root / "references.bib"
        return parse_file(str(path)) if path.is_file() else BibliographyData()

    @cached_property
    def targets(self) -> dict[str, Target]:
        """Where every label of the chapters stands, and what a reference to it says."""
        return {
            label: target
            for chapter in self.found
            for label, target in numbered(chapter, self.numbers.get(chapter.name))
        }

    def title(self, page: str) -> str:
        """Return the first heading of a page; of a planned one, what the plan calls it."""
        path = self.root / f"{page}.md"
        heading = path.is_file() and re.search(
            r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE
        )
        if heading:
            return heading[1].strip()
        plan = self.root / "book" / "contents.yml"
        parts = yaml.safe_load(plan.read_text(encoding="utf-8"))["parts"] if plan.is_file() else []
        for part in parts:
            for planned in part["chapters"]:
                if page == f"book/{part['folder']}/{planned['file']}":
                    return str(planned["title"])
        raise ChapterError(f"a reference to the page {page}, which is neither there nor planned")

    def link(self, text: str, page: str, anchor: str = "") -> str:
        """Link to a page of the published book, where it has an address and the page exists."""
        if not self.site or not (self.root / f"{page}.md").is_file():
            return text
        where = f"{self.site}/{page}.html" + (f"#{anchor}" if anchor else "")
        return f"[{text}]({where})"


def kind_of(directive: str) -> str | None:
    """Return what numbers a directive: ``Theorem`` for ``prf:theorem``."""
    name = directive.removesuffix("-start")
    if name == "exercise" or (name.startswith("prf:") and name != "prf:proof"):
        return name.removeprefix("prf:").capitalize()
    return None


def numbered(chapter: Chapter, number: int | None) -> Iterator[tuple[str, Target]]:
    """Number what a chapter numbers, in its order, as the pages of the book do."""
    counts: dict[str, int] = {}

    def following(kind: str) -> str:
        counts[kind] = counts.get(kind, 0) + 1
        return f"{number}.{counts[kind]}" if number else str(counts[kind])

    for cell in book.read_chapter(chapter).cells:
        figure = cell.metadata.get("mystnb", {}).get("figure")
        if figure and figure.get("caption"):
            name = str(figure.get("name", f"unnamed-figure-{cell.id}"))
            yield name, Target(chapter.name, name, f"Fig. {following('figure')}")
        if cell.cell_type != "markdown":
            continue
        for match in NUMBERED.finditer(cell.source):
            label = re.search(r":label:[ \t]*(\S+)", match["options"] or "")
            if match["target"]:
                title = plain(match["heading"])
                yield match["target"], Target(chapter.name, match["target"], title)
            elif match["display"] or match["name"] == "glue:math":
                key = match["label"] or (label[1] if label else "")
                anchor = "equation-" + key.replace(":", "-")
                yield key, Target(chapter.name, anchor, following("equation"))
            elif kind := kind_of(match["name"]):
                key = label[1] if label else f"unlabeled-{kind}-{cell.id}-{match.start()}"
                yield key, Target(chapter.name, key, f"{kind} {following(kind)}")


def plain(text: str) -> str:
    """Take the marks of emphasis out of a heading."""
    return re.sub(r"[*`]", "", text).strip()


def glued(notebook: NotebookNode) -> dict[str, dict[str, str]]:
    """Collect what the run handed to the text, by key."""
    found: dict[str, dict[str, str]] = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if glue := output.get("metadata", {}).get("scrapbook"):
                prefix = glue.get("mime_prefix", "")
                data = {mime.removeprefix(prefix): text for mime, text in output.data.items()}
                found[glue["name"]] = data
    return found


def on_one_line(text: str) -> str:
    """Put each formula on one line.

    In a quotation every line begins with a sign, which a browser would show inside the formula.
    """

    def join(match: re.Match[str]) -> str:
        if match[1] or match[0] == r"\$":
            return match[0]
        return re.sub(r"\s*\n\s*", " ", match[0])

    return MATH.sub(join, text)


def quote(heading: str, text: str) -> str:
    """Write a text as a quotation under a bold heading."""
    body = f"**{heading}**\n\n{on_one_line(text.strip())}".strip()
    return "\n".join(f"> {line}".rstrip() for line in body.splitlines())


def fold(summary: str, text: str) -> str:
    """Fold a text under its summary."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text.strip()}\n\n</details>"


def outdented(text: str) -> str:
    """Take away the indentation of what belongs to an item of a numbered list."""
    return re.sub(r"^ {3}", "", text, flags=re.MULTILINE)


def questions(text: str) -> Iterator[tuple[str, str]]:
    """Take a numbered list apart into questions, its first paragraphs, and answers."""
    for item in re.split(r"^\d+\.[ \t]+", text, flags=re.MULTILINE)[1:]:
        asked, _, answered = item.strip().partition("\n\n")
        yield outdented(asked), outdented(answered)


@dataclass
class Page:
    """One chapter on its way into a plain notebook."""

    book: Book
    chapter: Chapter
    values: dict[str, dict[str, str]]
    cited: set[str] = field(default_factory=set)
    # The solution that is open: it may go on over several cells.
    solving: str | None = None
    unlabeled: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, shared: Book, chapter: Chapter, notebook: NotebookNode) -> "Page":
        """Prepare a page, with the numbers of what has no label in order."""
        unlabeled: dict[str, list[str]] = {}
        for key, target in shared.targets.items():
            if target.page == chapter.name and key.startswith("unlabeled-"):
                unlabeled.setdefault(target.text.split()[0], []).append(target.text)
        return cls(shared, chapter, glued(notebook), unlabeled=unlabeled)

    def fault(self, what: str) -> ChapterError:
        return ChapterError(f"{self.chapter.name}.md cannot be written as a notebook: {what}")

    def target(self, label: str) -> Target:
        if label not in self.book.targets:
            raise self.fault(f"a reference to {label!r}, which no chapter has")
        return self.book.targets[label]

    # ------------------------------------------------------------------------------ roles

    def roles(self, text: str) -> str:
        """Replace every role by what a reader of the page sees."""
        return ROLE.sub(lambda match: self.role(match[1], match[3]), text)

    def role(self, name: str, content: str) -> str:
        content = " ".join(content.split())
        titled = re.fullmatch(r"(.+?)\s*<([^<>]+)>", content)
        words, aim = (titled[1], titled[2]) if titled else (None, content)
        if name == "eq":
            target = self.target(aim)
            return self.book.link(f"({target.text})", target.page, target.anchor)
        if name in ("ref", "numref", "prf:ref"):
            return self.reference(words, aim)
        if name == "doc":
            page = aim.lstrip("/") if aim.startswith("/") else self.beside(aim)
            return self.book.link(words or self.book.title(page), page)
        if name in ("cite", "cite:p", "cite:t"):
            return self.cite([key.strip() for key in content.split(",")], textual=name == "cite:t")
        if name == "glue:text":
            key, _, form = content.partition(":")
            return format_plain_text(self.value(key, "text/plain"), form or "s")
        if name.startswith("py:"):
            call = "()" if name in ("py:func", "py:meth") and not words else ""
            shown = words or (aim.rpartition(".")[2] if aim.startswith("~") else aim)
            return f"`{shown.lstrip('~')}{call}`"
        raise self.fault(f"the role {{{name}}} is not known here")

    def reference(self, words: str | None, label: str) -> str:
        """Refer to something numbered, or to a heading of any page."""
        if label in self.book.targets:
            target = self.book.targets[label]
            return self.book.link(words or target.text, target.page, target.anchor)
        for name in book.pages(self.book.root):
            text = (self.book.root / f"{name}.md").read_text(encoding="utf-8")
            heading = re.search(rf"^\({re.escape(label)}\)=\n+(?:#+ (.+))?", text, re.MULTILINE)
            if heading and (words or heading[1]):
                return self.book.link(words or plain(heading[1]), name, label)
        raise self.fault(f"a reference to {label!r}, which no page has")

    def beside(self, name: str) -> str:
        """Return the page that a relative name means."""
        return (Path(self.chapter.name).parent / name).as_posix()

    def value(self, key: str, mime: str) -> str:
        if key not in self.values or mime not in self.values[key]:
            raise self.fault(f"the run left no {mime} under {key!r}; execute the chapter again")
        return self.values[key][mime]

    def cite(self, keys: list[str], *, textual: bool) -> str:
        """Name works by author and year, and remember them for the list."""
        told = []
        for key in keys:
            if key not in self.book.works.entries:
                raise self.fault(f"references.bib has no {key!r}")
            self.cited.add(key)
            told.append(short_citation(self.book.works.entries[key]))
        if textual:
            return "; ".join(f"{authors} [{year}]" for authors, year in told)
        return "[" + "; ".join(", ".join(filter(None, pair)) for pair in sorted(told)) + "]"

    # ------------------------------------------------------------------------------ blocks

    def display(self, tex: str, label: str) -> str:
        """Write a displayed equation with its number."""
        return f"$$\n{tex.strip()}\n\\tag{{{self.target(label).text}}}\n$$"

    def inline(self, text: str) -> str:
        """Convert what stands outside of fences: equations, roles, targets."""

        def display(match: re.Match[str]) -> str:
            tex = re.sub(r"^[ \t]*>[ \t]?", "", match[1], flags=re.MULTILINE)
            return self.display(tex, match[2])

        done = self.roles(DISPLAY.sub(display, TARGET.sub("", text)))
        # The text says "exercise", and the reference says it again.
        return re.sub(r"\b([Ee]xercise\s+\[?)Exercise ", r"\1", done)

    def markdown(self, text: str) -> str:
        """Convert the text of a cell, or of a block inside it."""
        written: list[str] = []
        loose: list[str] = []

        def flush() -> None:
            block = self.inline("\n".join(loose)).strip("\n")
            loose.clear()
            if block.strip():
                written.append(block if self.solving is None else self.solution(block))

        lines = iter(text.splitlines())
        for line in lines:
            opening = FENCE.match(line)
            if opening is None:
                loose.append(line)
                if code := re.match(r"^(`{3,}|~{3,})", line):  # a listing stays as it is
                    closing = re.compile(rf"^{code[1]}{code[1][0]}*\s*$")
                    for inner in lines:
                        loose.append(inner)
                        if closing.match(inner):
                            break
                continue
            closing = re.compile(rf"^{opening['fence']}{opening['fence'][0]}*\s*$")
            body = []
            for inner in lines:
                if closing.match(inner):
                    break
                body.append(inner)
            else:
                raise self.fault(f"{line!r} is not closed")
            flush()
            solving = self.solving
            if block := self.directive(opening["name"], opening["title"].strip(), body):
                written.append(block if solving is None else self.solution(block))
        flush()
        return "\n\n".join(written)

    def solution(self, block: str) -> str:
        """Fold a part of the solution that is open."""
        return fold(f"Solution of {self.solving}", block)

    def inside(self, text: str) -> str:
        """Convert the body of a directive, which is folded as a whole if at all."""
        solving, self.solving = self.solving, None
        try:
            return self.markdown(text)
        finally:
            self.solving = solving

    def directive(self, name: str, title: str, body: list[str]) -> str:
        options: dict[str, str] = {}
        while body and (option := OPTION.match(body[0])):
            options[option[1]] = option[2].strip()
            body = body[1:]
        text = "\n".join(body)
        if name in ("chapter-facts", "exercise-end"):
            return ""
        if name == "solution-start":
            self.solving = self.target(title).text
            return ""
        if name == "solution-end":
            self.solving = None
            return ""
        if name == "solution":
            return fold(f"Solution of {self.target(title).text}", self.inside(text))
        if name == "quick-questions":
            return "\n\n".join(self.question(*pair) for pair in questions(text))
        if name == "glue:math":
            latex = self.value(title, "text/latex").strip()
            latex = latex.removeprefix("$$").removesuffix("$$").strip("$").strip()
            return self.display(latex.removeprefix(r"\displaystyle").strip(), options["label"])
        if name == "bibliography":
            return self.bibliography()
        if name == "prf:proof":
            return quote("Proof.", self.inside(text) + " $\\square$")
        if kind := kind_of(name):
            label = options.get("label")
            heading = self.target(label).text if label else self.unlabeled[kind].pop(0)
            heading += f" ({self.inline(title)})" if title else ""
            return quote(f"{heading}.", self.inside(text))
        if name == "interactive":
            where = self.book.link("page of the book", self.chapter.name, f"try-{title}")
            told = f"On the {where} a figure stands here that moves. What it is for:"
            return quote("Interactive figure.", f"{told}\n\n{self.inside(text)}")
        if name in ("admonition", "note", "tip", "warning", "important", "seealso"):
            heading = self.inline(title) if name == "admonition" else name.capitalize()
            if "dropdown" in options.get("class", ""):
                return fold(html.escape(plain(heading)), self.inside(text))
            return quote(heading, self.inside(text))
        raise self.fault(f"the directive {{{name}}} is not known here")

    def question(self, asked: str, answered: str) -> str:
        """Ask a quick question, and fold its answer."""
        return f"**Quick question.** {self.inline(asked)}\n\n" + fold(
            "Answer", self.inside(answered)
        )

    def bibliography(self) -> str:
        """List the works that the chapter cites."""
        if not self.cited:
            return ""
        entries = [self.book.works.entries[key] for key in sorted(self.cited)]
        lines = [
            "- " + plain_addresses(" ".join(entry.text.render(Backend()).split()))
            for entry in ReferenceStyle().format_entries(entries)
        ]
        return "\n".join(["## References", "", *lines])

    # ------------------------------------------------------------------------------ code

    def before(self, cell: NotebookNode) -> str:
        """Say in a line what a folded cell does, and which equations a cell checks."""
        labels = dict.fromkeys(
            record["label"]
            for output in cell.outputs
            if (record := output.get("data", {}).get(RECORD)) is not None
        )
        checks = ", ".join(self.role("eq", label) for label in labels)
        folded = "hide-input" in cell.metadata.get("tags", [])
        told = cell.metadata.get("mystnb", {}).get("code_prompt_show", "The code")
        if folded:
            return f"*{told}*" + (f" · checks {checks}" if checks else "")
        return f"Checks {checks}:" if checks else ""

    def code(self, cell: NotebookNode) -> NotebookNode:
        """Make the code run without the book, and drop what only the page needs."""
        source = cell.source
        if re.search(IMPORT, source, re.MULTILINE):
            source = with_own_glue(source)
        # The formula as SymPy prints it is pasted into the page; here it stands there already.
        source = re.sub(r'(,)\s*show="\w+"(?=\s*[,)])', "", source)
        source = IN_CODE.sub(lambda match: f"({self.target(match[1]).text})", source)
        outputs = []
        for output in cell.outputs:
            if "scrapbook" in output.get("metadata", {}):
                continue
            output = nbformat.from_dict(json.loads(json.dumps(output)))
            if RECORD in output.get("data", {}):
                del output.data[RECORD]
            if "image/png" in output.get("data", {}):  # the drawing is for the pages
                output.data.pop("image/svg+xml", None)
            outputs.append(output)
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
        for output in outputs:
            for mime in output.get("data", {}):
                if alt and mime.startswith("image/"):
                    output.metadata[mime] = {**output.metadata.get(mime, {}), "alt": alt}
        metadata: dict[str, Any] = {}
        if "hide-input" in cell.metadata.get("tags", []) or self.solving is not None:
            metadata = json.loads(json.dumps(CLOSED))
        if self.solving is not None:
            metadata["jupyter"]["outputs_hidden"] = True
        made = nbformat.v4.new_code_cell(source.rstrip("\n"), metadata=metadata, outputs=outputs)
        made["id"], made["execution_count"] = cell.id, cell.execution_count
        return made

    def caption(self, cell: NotebookNode) -> str:
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        if not figure.get("caption"):
            return ""
        name = str(figure.get("name", f"unnamed-figure-{cell.id}"))
        said = " ".join(figure["caption"].split())
        return f"**{self.target(name).text}.** {self.inline(said)}"


def plain_addresses(text: str) -> str:
    """Take back the escapes that pybtex writes into addresses, where they are not signs of text."""
    return re.sub(r"https?:[^\s\])]+", lambda match: match[0].replace("\\", ""), text)


def with_own_glue(source: str) -> str:
    """Take the `glue` of the renderer out, and define one that does nothing after the imports."""
    source = re.sub(IMPORT, "", source, flags=re.MULTILINE)
    imports = [n for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom)]
    at = max((node.end_lineno or 0 for node in imports), default=0)
    lines = source.splitlines()
    return "\n".join([*lines[:at], *([""] * 2 if at else []), GLUE, *lines[at:]])


def first_cell(shared: Book) -> NotebookNode:
    """Install the library where it is missing; do nothing where it is there."""
    lines = ["# Installs what this notebook needs. Where it is there, this does nothing."]
    lines += ["import importlib.util", "import subprocess", "import sys", ""]
    lines += ['if importlib.util.find_spec("companion") is None:']
    if shared.repository:
        address = f"llm-math-companion[book] @ git+{shared.repository}"
        lines += [f'    library = "{address}"']
        lines += ['    subprocess.check_call([sys.executable, "-m", "pip", "install", library])']
        lines += ['    subprocess.check_call([sys.executable, "-m", "companion.data", "install"])']
    else:
        lines += ["    raise ModuleNotFoundError("]
        lines += ['        "Install the companion library of the book first. In its repository: "']
        lines += ["        \"pip install '.[book]' && python -m companion.data install\""]
        lines += ["    )"]
    made = nbformat.v4.new_code_cell("\n".join(lines))
    made["id"] = "install-what-is-missing"
    return made


def with_title(text: str, page: Page) -> str:
    """Number the title, and say under it where the text comes from."""
    number = page.book.numbers.get(page.chapter.name)
    name = page.book.settings.get("title", "")
    where = f"Chapter {number} of *{name}*" if number else f"From *{name}*"
    if page.book.site:
        where += f", {page.book.link('read it online', page.chapter.name)}"
    numbered_title = rf"# {number}. \1" if number else r"# \1"
    return re.sub(
        r"^# (.+)$", lambda m: m.expand(numbered_title) + f"\n\n{where}.", text, count=1, flags=re.M
    )


def export(shared: Book, chapter: Chapter) -> NotebookNode:
    """Make one executed chapter a plain notebook."""
    if not chapter.executed.is_file():
        raise ChapterError(f"{chapter.name} is not executed yet")
    executed = nbformat.read(chapter.executed, as_version=4)
    page = Page.of(shared, chapter, executed)
    cells: list[NotebookNode] = []

    def say(text: str, identity: str) -> None:
        if text.strip():
            made = nbformat.v4.new_markdown_cell(text)
            made["id"] = identity
            cells.append(made)

    for cell in executed.cells:
        if cell.cell_type == "markdown":
            say(page.markdown(cell.source), cell.id)
            continue
        say(page.before(cell), f"{cell.id}-what")
        cells.append(page.code(cell))
        say(page.caption(cell), f"{cell.id}-caption")
    if cells and cells[0].cell_type == "markdown":
        cells[0]["source"] = with_title(cells[0].source, page)
    at = next((n for n, cell in enumerate(cells) if cell.cell_type == "code"), len(cells))
    if at and str(cells[at - 1].id).endswith("-what"):
        at -= 1
    cells.insert(at, first_cell(shared))
    for cell in cells:
        if left := LEFT.search(cell.source):
            raise page.fault(f"{left[0]!r} is left in: {cell.source[:80]!r}")
    notebook = nbformat.v4.new_notebook(cells=cells)
    for key in ("kernelspec", "language_info"):
        if key in executed.metadata:
            notebook.metadata[key] = executed.metadata[key]
    notebook.metadata["title"] = shared.title(chapter.name)
    # So that `verify.page` can tell which formula it is whose number the notebook shows.
    notebook.metadata["companion"] = {
        "equations": {
            target.text: label
            for label, target in shared.targets.items()
            if target.page == chapter.name and re.fullmatch(LABEL, label)
        }
    }
    nbformat.validate(notebook)
    return notebook


def path_of(chapter: Chapter) -> Path:
    """Return where the notebook of a chapter is written."""
    return chapter.root / "_build" / "notebooks" / f"{chapter.short}.ipynb"


def export_all(root: Path, found: list[Chapter]) -> list[Path]:
    """Write the notebooks of all chapters, and return their paths."""
    shared = Book(root, found)
    for chapter in found:
        text = nbformat.writes(export(shared, chapter)) + "\n"
        book.write_atomically(path_of(chapter), text)
    return [path_of(chapter) for chapter in found]


# ------------------------------------------------------------------------------ running them


def install_elsewhere(root: Path, folder: Path) -> Path:
    """Put the library into a folder as its package holds it: no book beside, formulas in a table.

    What renders the book cannot be imported there, since a notebook must not need it.
    """
    from companion.verify.tex._source import TABLE, table_of  # brings PyTorch

    package = folder / "companion"
    shutil.copytree(root / "companion", package, ignore=shutil.ignore_patterns("__pycache__"))
    table = json.dumps(table_of(root / "book"), ensure_ascii=False)
    (package / "verify" / "tex" / TABLE.name).write_text(table, encoding="utf-8")
    shutil.copyfile(root / "requirements" / "data.txt", package / "data" / "requirements.txt")
    for name in ("myst_nb", "jupyter_book"):
        refusal = f"raise ImportError('a notebook must not need {name}')\n"
        (folder / f"{name}.py").write_text(refusal, encoding="utf-8")
    return folder


def run_elsewhere(notebook: Path, library: Path, folder: Path) -> NotebookNode:
    """Run an exported notebook in a folder of its own, with the library from elsewhere."""
    copy = folder / notebook.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(notebook, copy)
    read = nbformat.read(copy, as_version=4)
    # The proof that it ran there, and with that library.
    proof = f"import companion\nassert companion.__file__.startswith({str(library)!r})"
    proof += f"\nimport os\nassert os.getcwd() == {str(folder.resolve())!r}"
    read.cells.append(nbformat.v4.new_code_cell(proof))
    book.prepare_kernels(folder)
    environment = {**book.kernel_environment(folder), "PYTHONPATH": str(library)}
    environment.pop("COMPANION_BOOK", None)
    client = NotebookClient(
        read,
        timeout=int(book.CELL_SECONDS * book.patience()),
        startup_timeout=int(60 * book.patience()),
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)
    return read


def main() -> int:
    """Run exported notebooks outside of the repository."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="PART/NAME", help="only these (else all)")
    names = parser.parse_args().names
    found = [c for c in book.chapters(book.ROOT) if not names or c.short in names]
    failed = sorted(set(names) - {chapter.short for chapter in found})
    with tempfile.TemporaryDirectory() as name:
        outside = Path(name).resolve()
        library = install_elsewhere(book.ROOT, outside / "library")
        for chapter in found:
            begun = time.monotonic()
            try:
                run_elsewhere(path_of(chapter), library, outside / chapter.short)
            except (CellExecutionError, FileNotFoundError) as error:
                failed.append(chapter.short)
                print(f"{chapter.short:<32} FAILED\n{book.ANSI.sub('', str(error))}", flush=True)
            else:
                print(f"{chapter.short:<32} ran in {time.monotonic() - begun:.0f} s", flush=True)
    print(f"failed or not there: {', '.join(failed)}" if failed else f"{len(found)} notebooks ran")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
