"""The equation ledger: no displayed claim without a check, no check without a claim.

A verification leaves a record in the outputs of its notebook cell. Here the records of a page
are joined with the labels of its displayed equations. What does not match fails the build; what
does is shown as a mark beside the equation number, in the ledger, and in ``ledger.json``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

from .nodes_util import inline_error, table
from .plan import note_dependent, plan_of

logger = logging.getLogger(__name__)

RECORD = "application/vnd.companion.verification+json"
LABEL = re.compile(r"(eq|def):[a-z0-9]+(-[a-z0-9]+)*\Z")
STATEMENTS = frozenset(
    [
        "axiom",
        "theorem",
        "lemma",
        "definition",
        "conjecture",
        "corollary",
        "criterion",
        "property",
        "proposition",
        "assumption",
    ]
)
REQUIRED = ("label", "kind", "routes", "largest_error", "tolerance", "mutants")


@dataclass
class Record:
    """One verification as its cell reported it."""

    label: str
    kind: str
    routes: list[tuple[str, float | None]]
    largest_error: float | None
    mutants: list[str]
    shown: str | None
    anchor: str
    unit: str = "relative"
    read: bool = False

    @property
    def measure(self) -> str:
        """What the error of this check is: its size, a gap, or a number of standard errors."""
        if self.kind == "bound":
            return "gap"
        return "deviation" if self.unit == "standard errors" else "error"


@dataclass
class Equation:
    """One displayed equation of a page."""

    label: str
    line: int | None
    latex: str
    pasted: bool
    tex: str = ""
    records: list[Record] = field(default_factory=list)
    shown_is_tested: bool = False

    @property
    def node_id(self) -> str:
        """The anchor that Sphinx gives the equation."""
        return nodes.make_id(f"equation-{self.label}")

    @property
    def kinds(self) -> list[str]:
        """The kinds of check, each once, in order."""
        return list(dict.fromkeys(record.kind for record in self.records))

    @property
    def routes(self) -> list[str]:
        """The independent routes, each once, in order."""
        return list(dict.fromkeys(name for record in self.records for name, _ in record.routes))

    def errors(self, measure: str) -> list[float]:
        """List the errors of one sort, where a check measures one."""
        found = [r.largest_error for r in self.records if r.measure == measure]
        return [error for error in found if error is not None]

    @property
    def largest_error(self) -> float | None:
        """The largest error over all checks; gaps and deviations count where there is no error."""
        every = [e for measure in ("deviation", "gap") for e in self.errors(measure)]
        return max(self.errors("error") or every, default=None)

    @property
    def evidence(self) -> list[str]:
        """Say how closely the checks agreed, each sort of error in its own words."""
        said = []
        if errors := self.errors("error"):
            said.append(f"largest error {max(errors):.0e}" if max(errors) else "no error")
        if deviations := self.errors("deviation"):
            said.append(f"{max(deviations):.1f} standard errors off")
        if gaps := self.errors("gap"):
            said.append(f"smallest gap {min(gaps):.0e}")
        return said

    @property
    def read(self) -> bool:
        """Whether a check read the formula from the page; otherwise code was compared with it."""
        return any(record.read for record in self.records)

    @property
    def mutants(self) -> int:
        """How many wrong versions the checks rejected."""
        return sum(len(record.mutants) for record in self.records)


@dataclass
class PageLedger:
    """What one page contributes: its claims, its definitions, and what is wrong with them."""

    docname: str
    equations: list[Equation] = field(default_factory=list)
    definitions: list[str] = field(default_factory=list)
    problems: list[tuple[int | None, str]] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)
    steps: int = 0
    seconds: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def ledgers(env: BuildEnvironment) -> dict[str, PageLedger]:
    """Return the ledgers of all pages, kept in the build environment."""
    if not hasattr(env, "companion_ledgers"):
        env.companion_ledgers = {}  # type: ignore[attr-defined]
    result: dict[str, PageLedger] = env.companion_ledgers  # type: ignore[attr-defined]
    return result


def ordered(env: BuildEnvironment) -> list[PageLedger]:
    """Return the ledgers in reading order; pages outside the plan come last."""
    order = {docname: index for index, docname in enumerate(plan_of(env).chapters)}
    pages = [page for page in ledgers(env).values() if page.docname in env.all_docs]
    return sorted(pages, key=lambda page: (order.get(page.docname, len(order)), page.docname))


# ---------------------------------------------------------------------------------- reading


def read_notebook(path: Path) -> dict[str, Any]:
    """Read an executed notebook; a text page has none."""
    if path.suffix != ".ipynb":
        return {"cells": [], "metadata": {}}
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def raw_records(cell: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the records that a cell's outputs hold."""
    for output in cell.get("outputs", []):
        data = output.get("data", {}).get(RECORD)
        if data is None:
            continue
        if isinstance(data, str | list):  # a notebook may keep JSON as text
            data = json.loads(data if isinstance(data, str) else "".join(data))
        yield data


def glued_latex(notebook: dict[str, Any]) -> dict[str, str]:
    """Collect the LaTeX of glued results by key."""
    found = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            glue = output.get("metadata", {}).get("scrapbook")
            if not glue:
                continue
            text = output.get("data", {}).get(glue.get("mime_prefix", "") + "text/latex")
            if text is not None:
                found[glue["name"]] = plain_latex(text if isinstance(text, str) else "".join(text))
    return found


def plain_latex(text: str) -> str:
    """Reduce LaTeX to what is compared: no delimiters, no white space."""
    text = text.strip().removeprefix("$$").removesuffix("$$").strip("$")
    text = re.sub(r"^\s*\\displaystyle", "", text)
    return re.sub(r"\s+", "", text)


def is_step(node: nodes.math_block) -> bool:
    """Tell whether unlabeled display math is a step: in a proof, an exercise, a note, an output.

    What a theorem or a definition states is no step, although it stands in a box as well.
    """
    parent = node.parent
    while parent is not None:
        if type(parent).__name__.removesuffix("_node") in STATEMENTS:
            return False
        if isinstance(parent, nodes.Admonition | nodes.footnote | nodes.table):
            return True
        if isinstance(parent, nodes.container) and (
            parent.get("nb_element") or "dropdown" in parent.get("classes", [])
        ):
            return True
        parent = parent.parent
    return False


def collect(app: Sphinx, doctree: nodes.document) -> None:
    """Join the displayed equations of the page just read with its verification records."""
    env = app.env
    docname = env.docname
    page = PageLedger(docname)
    ledgers(env)[docname] = page
    notebook = read_notebook(Path(env.doc2path(docname)))
    page.metadata = notebook["metadata"]
    page.seconds = page.metadata.get("companion_build", {}).get("seconds")

    by_label: dict[str, Equation] = {}
    for node in doctree.findall(nodes.math_block):
        label = node.get("label")
        if not label or "amsmath" in node["classes"]:
            if is_step(node):
                page.steps += 1
            elif docname in plan_of(env).chapters:
                excerpt = " ".join(node.astext().split())[:60]
                advice = (
                    "label it (eq:...) and verify it, or (def:...), or make a step part of a proof"
                )
                page.problems.append(
                    (node.line, f"displayed equation without a label: {excerpt!r}; {advice}")
                )
            continue
        if not LABEL.match(label):
            page.problems.append(
                (
                    node.line,
                    f"label {label!r}: use eq:name for a claim or def:name for a definition",
                )
            )
        elif label.startswith("def:"):
            page.definitions.append(label)
        elif label in by_label:
            page.problems.append((node.line, f"label {label!r} is used twice on this page"))
        else:
            pasted = "pasted-math" in node["classes"]
            tex = node.astext()
            equation = Equation(label, node.line, plain_latex(tex), pasted, tex)
            by_label[label] = equation
            page.equations.append(equation)

    cells = {
        node["cell_index"]: node
        for node in doctree.findall(nodes.container)
        if node.get("nb_element") == "cell_code"
    }
    glued = glued_latex(notebook)
    for index, cell in enumerate(notebook["cells"]):
        labels = []
        for raw in raw_records(cell):
            missing = [key for key in REQUIRED if key not in raw]
            if missing:
                page.problems.append(
                    (None, f"cell {index}: verification record lacks {', '.join(missing)}")
                )
                continue
            label = raw["label"]
            container = cells.get(index)
            equation_of = by_label.get(label)
            if equation_of is None:
                page.problems.append(
                    (
                        container.line if container is not None else None,
                        f"check of {label!r}, but no equation of this page carries that label",
                    )
                )
                continue
            # Code may be folded under its summary. What it printed, the check itself, may not.
            if container is None or container.get("hide_mode") not in (None, "", "input"):
                page.problems.append(
                    (equation_of.line, f"the check of {label!r} is hidden; readers must see it")
                )
                continue
            if label not in labels:
                labels.append(label)
            count = len({r.anchor for r in equation_of.records})
            base = nodes.make_id(f"check-{label}")
            anchor = base if count == 0 else f"{base}-{count + 1}"
            if (
                anchor != base
                and container["ids"]
                and equation_of.records[-1].anchor in container["ids"]
            ):
                anchor = equation_of.records[-1].anchor
            if anchor not in container["ids"]:
                container["ids"].append(anchor)
            equation_of.records.append(
                Record(
                    label=label,
                    kind=raw["kind"],
                    routes=[(str(name), error) for name, error in raw["routes"]],
                    largest_error=raw["largest_error"],
                    mutants=[str(name) for name in raw["mutants"]],
                    shown=raw.get("shown"),
                    anchor=anchor,
                    unit=str(raw.get("unit", "relative")),
                    read=bool(raw.get("read", False)),
                )
            )
        if labels:
            mark_cell(cells[index], labels, docname)

    for equation in page.equations:
        if not equation.records:
            page.unverified.append(equation.label)
            page.problems.append(
                (equation.line, f"equation {equation.label!r} has no verification on this page")
            )
        if any(not record.mutants for record in equation.records):
            page.problems.append(
                (
                    equation.line,
                    f"a check of {equation.label!r} rejected no mutant, so it proves nothing",
                )
            )
        equation.shown_is_tested = equation.pasted and any(
            record.shown is not None and glued.get(record.shown) == equation.latex
            for record in equation.records
        )


def mark_cell(container: nodes.container, labels: Iterable[str], docname: str) -> None:
    """Say under a check which equation it checks, with a link back."""
    container["classes"].append("cell-check")
    line = nodes.paragraph(classes=["check-back"])
    line += nodes.Text("Checks ")
    for position, label in enumerate(labels):
        if position:
            line += nodes.Text(", ")
        line += addnodes.pending_xref(
            "",
            nodes.inline(label, label),
            refdomain="math",
            reftype="eq",
            reftarget=label,
            refexplicit=False,
            refwarn=True,
            refdoc=docname,
        )
    container += line


def purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget a page that is about to be read again."""
    ledgers(env).pop(docname, None)


def merge(app: Sphinx, env: BuildEnvironment, docnames: list[str], other: BuildEnvironment) -> None:
    """Join what parallel readers collected."""
    for docname in docnames:
        if docname in ledgers(other):
            ledgers(env)[docname] = ledgers(other)[docname]


# ---------------------------------------------------------------------------------- judging


def offences(env: BuildEnvironment) -> list[tuple[str, int | None, str]]:
    """List everything that keeps the book from being a verified one, in reading order."""
    found: list[tuple[str, int | None, str]] = []
    owner: dict[str, str] = {}
    for page in ordered(env):
        found += [(page.docname, line, message) for line, message in page.problems]
        for name in [*(equation.label for equation in page.equations), *page.definitions]:
            first = owner.setdefault(name, page.docname)
            if first != page.docname:
                found.append((page.docname, None, f"label {name!r} is already used by {first}"))
        twice = {name for name in page.definitions if page.definitions.count(name) > 1}
        found += [
            (page.docname, None, f"label {name!r} is used twice on this page")
            for name in sorted(twice)
        ]
    return found


def judge(app: Sphinx, env: BuildEnvironment) -> None:
    """Stop the build with the complete list of offenders, if there are any."""
    found = offences(env)
    for docname, line, message in found:
        logger.error(message, location=(docname, line), type="companion", subtype="ledger")
    if found:
        raise ExtensionError(
            f"the equation ledger does not balance: {counted(len(found), 'problem')}, listed above"
        )


# ---------------------------------------------------------------------------------- showing


def number_of(env: BuildEnvironment, docname: str, equation: Equation) -> str:
    """Return an equation's number as the page shows it, without parentheses."""
    figures = env.toc_fignumbers.get(docname, {}).get("displaymath", {})
    if equation.node_id in figures:
        return ".".join(map(str, figures[equation.node_id]))
    entry = env.get_domain("math").equations.get(equation.label)  # type: ignore[attr-defined]
    return str(entry[1]) if entry else ""


def sentence(equation: Equation) -> str:
    """Describe an equation's verification in one line for a title and a screen reader."""
    checks = []
    for kind in equation.kinds:
        routes = list(
            dict.fromkeys(n for r in equation.records if r.kind == kind for n, _ in r.routes)
        )
        checks.append(f"{kind} by {', '.join(routes)}" if routes else kind)
    parts = ["; ".join(checks)]
    parts.extend(equation.evidence)
    parts.append(f"{counted(equation.mutants, 'mutant')} rejected")
    if equation.shown_is_tested:
        parts.append("shown as computed")
    source = "read from the page" if equation.read else "compared"
    return f"Verified: {source}; " + "; ".join(parts)


def in_one(tex: str) -> str:
    """Write a display as one formula: several lines are aligned, several formulas stacked."""
    parts = [part for part in tex.split("\n\n") if part.strip()]
    rows = [
        rf"\begin{{split}}{part}\end{{split}}" if r"\\" in part and r"\begin{" not in part else part
        for part in parts
    ]
    return rows[0] if len(rows) == 1 else r"\begin{gathered}" + r"\\".join(rows) + r"\end{gathered}"


def formula(equation: Equation) -> nodes.math:
    """Set an equation once more, without its number, inside of a line."""
    # `split` is for displays only; in a line the same is called `aligned`.
    tex = re.sub(r"\\(begin|end)\{split\}", r"\\\1{aligned}", in_one(equation.tex.strip("$")))
    tex = re.sub(r"\\tag\{[^}]*\}", "", tex)
    return nodes.math("", rf"\displaystyle {tex.strip()}")


def load_mathjax(app: Sphinx, docname: str) -> None:
    """Let a page load MathJax that had no formula when it was read."""
    app.env.get_domain("math").data["has_equations"][docname] = True


def mark(app: Sphinx, here: str, there: str, equation: Equation) -> nodes.Node:
    """Show the mark of a verified equation, with a link to its check."""
    link = internal_link(app, here, there, equation.records[0].anchor, nodes.Text("✓"))
    link["classes"] += ["check", "check-read"] if equation.read else ["check"]
    link["reftitle"] = sentence(equation)
    return link


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a display equation: its math scrolls in its own box, number and mark stay beside it."""
    label = node.get("label")
    number = node.get("number")
    classes = "equation numbered" if number else "equation"
    self.body.append(self.starttag(node, "div", CLASS=classes))
    self.body.append('<div class="equation-body math notranslate nohighlight">')
    if node.get("nowrap"):
        self.body.append(self.encode(node.astext()))
    else:
        opening, closing = self.config.mathjax_display
        text = self.encode(in_one(node.astext()))
        self.body.append(f"{opening}{text}{closing}")
    self.body.append("</div>")
    if number:
        shown = get_node_equation_number(self, node)
        self.body.append('<div class="equation-number">')
        self.body.append(f'<span class="eqno">({shown})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
        page = ledgers(self.builder.env).get(node.get("docname") or self.docnames[0])
        for equation in page.equations if page else []:
            if equation.label == label and equation.records:
                told = self.attval(sentence(equation))
                anchor = equation.records[0].anchor
                look = "check check-read" if equation.read else "check"
                self.body.append(
                    f'<a class="{look}" href="#{anchor}" title="{told}" aria-label="{told}">✓</a>'
                )
        self.body.append(used_in(self, node, shown))
        self.body.append("</div>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def used_in(self: HTML5Translator, node: nodes.math_block, shown: str) -> str:
    """Write, folded, where an equation is referred to and what its check runs (see `uses`)."""
    links = node.get("companion_links", [])
    if not links:
        return ""
    texts, code = (
        ", ".join(
            f'<a class="reference internal" href="{self.attval(uri)}">'
            + (f"<code>{self.encode(told)}</code>" if is_code else self.encode(told))
            + "</a>"
            for uri, told, is_code in links
            if is_code == wanted
        )
        for wanted in (False, True)
    )
    said = [f"<p>Referred to in: {texts}</p>"] if texts else []
    said += [f"<p>Its check runs: {code}</p>"] if code else []
    return (
        f'<details class="used-in"><summary aria-label="{counted(len(links), "link")} '
        f'about ({shown})">{len(links)}</summary><div>{"".join(said)}</div></details>'
    )


class ledger_table(nodes.General, nodes.Element):
    """Stands for the ledger until all pages have been read and numbered."""


class EquationLedger(SphinxDirective):
    """Every claim of the book with its verification."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Leave a placeholder; the numbers are not known yet."""
        note_dependent(self.env)
        return [ledger_table()]


class live_equation(nodes.General, nodes.Element):
    """Stands for an equation of a chapter until all pages have been read and numbered."""


class LiveEquation(SphinxDirective):
    """An equation of a chapter with what its verification found when the book was built."""

    has_content = False
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Leave a placeholder; the number and the record are not known yet."""
        note_dependent(self.env)
        return [live_equation(label=self.arguments[0], line=self.lineno)]


def fill_live_equation(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Show the equation, its number, its mark, and the words of its verification."""
    for placeholder in list(doctree.findall(live_equation)):
        label = placeholder["label"]
        found = [(p, e) for p in ordered(app.env) for e in p.equations if e.label == label]
        if not found:
            logger.error(
                "no chapter has the equation %r", label, location=(docname, placeholder["line"])
            )
            placeholder.replace_self(nodes.paragraph("", label))
            continue
        (page, equation), *_ = found
        there = page.docname
        number = number_of(app.env, there, equation)
        box = nodes.paragraph(classes=["live-equation"])
        box += formula(equation)
        box += nodes.Text(" ")
        box += internal_link(app, docname, there, equation.node_id, nodes.inline("", f"({number})"))
        box += mark(app, docname, there, equation)
        told = nodes.paragraph(classes=["live-told"])
        told += nodes.Text(f"{sentence(equation)}.")
        placeholder.replace_self([box, told])
        load_mathjax(app, docname)


def totals(env: BuildEnvironment) -> dict[str, int]:
    """Count what the ledger holds."""
    pages = ordered(env)
    equations = [equation for page in pages for equation in page.equations]
    return {
        "equations": len(equations),
        "chapters": sum(bool(page.equations) for page in pages),
        "checks": sum(len(equation.records) for equation in equations),
        "mutants": sum(equation.mutants for equation in equations),
        "read": sum(equation.read for equation in equations),
        "shown": sum(equation.shown_is_tested for equation in equations),
        "definitions": sum(len(page.definitions) for page in pages),
        "unverified": sum(len(page.unverified) for page in pages),
    }


def counted(number: int, noun: str) -> str:
    """Write a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def fill_ledger(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replace the placeholder by totals and one table for each chapter."""
    env = app.env
    for placeholder in list(doctree.findall(ledger_table)):
        count = totals(env)
        summary = nodes.paragraph(classes=["ledger-summary"])
        summary += nodes.strong("", f"{counted(count['equations'], 'equation')} verified")
        text = (
            f" in {counted(count['chapters'], 'chapter')} by {counted(count['checks'], 'check')}, "
            f"which rejected {counted(count['mutants'], 'wrong version')}. "
            f"Read from the page: {count['read']}. "
            f"Compared: {count['equations'] - count['read'] - count['unverified']}. "
            f"Shown exactly as computed: {count['shown']}. "
            f"Definitions, which need no check: {count['definitions']}. "
            f"Claims without verification: {count['unverified']}."
        )
        summary += nodes.Text(text)
        content: list[nodes.Node] = [summary, offer_json()]
        for page in ordered(env):
            if page.equations:
                content.extend(page_table(app, docname, page))
        placeholder.replace_self(content)
        load_mathjax(app, docname)


def offer_json() -> nodes.paragraph:
    """Link to the ledger for programs."""
    up = nodes.paragraph(classes=["ledger-json"])
    up += nodes.Text("For programs: ")
    up += nodes.reference("", "ledger.json", refuri="../ledger.json", internal=True)
    return up


def internal_link(
    app: Sphinx, here: str, there: str, anchor: str, *text: nodes.Node
) -> nodes.reference:
    """Link to an anchor of another page."""
    uri = app.builder.get_relative_uri(here, there) if here != there else ""
    return nodes.reference(
        "", "", *text, internal=True, refuri=f"{uri}#{anchor}" if anchor else uri
    )


def page_table(app: Sphinx, here: str, page: PageLedger) -> list[nodes.Node]:
    """Make the ledger of one chapter."""
    env = app.env
    planned = plan_of(env).chapters.get(page.docname)
    title = env.titles[page.docname].astext()
    name = f"{planned.number}. {title}" if planned else title
    heading = nodes.rubric("", "", ids=[nodes.make_id(f"ledger-{page.docname}")])
    heading += internal_link(app, here, page.docname, "", nodes.Text(name))
    rows = []
    for equation in page.equations:
        number = number_of(env, page.docname, equation)
        link = internal_link(app, here, page.docname, equation.node_id, nodes.Text(f"({number})"))
        check = internal_link(
            app,
            here,
            page.docname,
            equation.records[0].anchor,
            nodes.Text(", ".join(equation.kinds)),
        )
        rows.append(
            [
                [link],
                [formula(equation)],
                [nodes.literal("", equation.label)],
                [check],
                [nodes.Text("read" if equation.read else "compared")],
                [nodes.Text(", ".join(equation.routes))],
                [nodes.Text(", ".join(equation.evidence).replace("largest error ", "") or "—")],
                [nodes.Text(str(equation.mutants))],
                [nodes.Text("yes" if equation.shown_is_tested else "—")],
            ]
        )
    head = [
        "No.",
        "Formula",
        "Label",
        "Check",
        "Source",
        "Routes",
        "Largest error",
        "Mutants rejected",
        "Shown as computed",
    ]
    return [heading, table(head, rows, classes=["ledger"])]


def report(app: Sphinx) -> dict[str, Any]:
    """Make the machine-readable ledger."""
    env = app.env
    equations, chapters = [], []
    for page in ordered(env):
        planned = plan_of(env).chapters.get(page.docname)
        if planned or page.equations:
            chapters.append(
                {
                    "chapter": page.docname,
                    "number": planned.number if planned else None,
                    "title": env.titles[page.docname].astext(),
                    "equations": len(page.equations),
                    "definitions": len(page.definitions),
                    "steps": page.steps,
                    "seconds": page.seconds,
                }
            )
        for equation in page.equations:
            equations.append(
                {
                    "label": equation.label,
                    "chapter": page.docname,
                    "tex": equation.tex.strip(),
                    "number": number_of(env, page.docname, equation),
                    "kinds": equation.kinds,
                    "routes": equation.routes,
                    "largest_error": equation.largest_error,
                    "mutants_rejected": equation.mutants,
                    "read_from_the_page": equation.read,
                    "shown_is_tested": equation.shown_is_tested,
                    "checks": [
                        {key: value for key, value in asdict(record).items() if key != "label"}
                        for record in equation.records
                    ],
                }
            )
    return {
        "equations": equations,
        "definitions": sum(len(page.definitions) for page in ordered(env)),
        "unverified": [name for page in ordered(env) for name in page.unverified],
        "chapters": chapters,
    }


def ledger_path(app: Sphinx) -> Path:
    """Where the machine-readable ledger goes: beside the folder of pages."""
    return Path(app.outdir).parent / "ledger.json"


def remove_stale(app: Sphinx) -> None:
    """Take the last ledger away first, so that a failed build leaves none."""
    if app.builder.format == "html":
        ledger_path(app).unlink(missing_ok=True)


def write_ledger(app: Sphinx, exception: Exception | None) -> None:
    """Write ``ledger.json`` in one step, and only after a build without failure."""
    if exception is not None or app.builder.format != "html":
        return
    if (app.warningiserror or app.keep_going) and app._warncount:
        return
    path = ledger_path(app)
    draft = path.with_suffix(".json.part")
    draft.write_text(json.dumps(report(app), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(draft, path)
    shutil.copyfile(path, Path(app.outdir) / path.name)  # for the readers


def add_filter(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Load the filter on the page of the ledger alone."""
    if pagename == app.config.companion_ledger:
        app.add_js_file("ledger.js", loading_method="defer")


def setup(app: Sphinx) -> None:
    """Register the node, the directive, and the events."""
    app.add_node(nodes.math_block, override=True, html=(visit_math_block, None))
    app.add_node(ledger_table, html=(inline_error, None))
    app.add_node(live_equation, html=(inline_error, None))
    app.add_directive("equation-ledger", EquationLedger)
    app.add_directive("live-equation", LiveEquation)
    app.connect("builder-inited", remove_stale)
    app.connect("doctree-read", collect)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("env-updated", judge)
    app.connect("doctree-resolved", fill_ledger)
    app.connect("doctree-resolved", fill_live_equation)
    app.connect("html-page-context", add_filter)
    app.connect("build-finished", write_ledger, priority=999)  # after all else has gone well
