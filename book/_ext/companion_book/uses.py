"""Who refers to whom: chapters, equations and the library's reference lead to each other.

While a page is read, its references and the calls of its code are noted with the section that they
stand in. When pages are written, each equation says where it is referred to and which functions its
check runs, each chapter where it is used, and each function of the reference in which chapters.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from .ledger import internal_link, raw_records, read_notebook
from .nodes_util import inline_error
from .plan import plan_of
from .reference import FOLDER

# Machinery of every chapter, of which a list of uses says nothing.
EVERYWHERE = ("companion.verify", "companion.core", "companion.data")


@dataclass(frozen=True)
class Use:
    """One reference: what it names, and the section of a page that it stands in."""

    kind: str  # "eq": a label; "py": a dotted name in the text; "code": in a cell; "page"
    target: str
    docname: str
    section: str  # its anchor
    title: str


def uses(env: BuildEnvironment) -> dict[str, list[Use]]:
    """Return what each page refers to."""
    if not hasattr(env, "companion_uses"):
        env.companion_uses = {}  # type: ignore[attr-defined]
    result: dict[str, list[Use]] = env.companion_uses  # type: ignore[attr-defined]
    return result


def checked_names(env: BuildEnvironment) -> dict[str, dict[str, list[str]]]:
    """Return for each page the functions that the checks of its equations run, by label."""
    if not hasattr(env, "companion_checked_names"):
        env.companion_checked_names = {}  # type: ignore[attr-defined]
    result: dict[str, dict[str, list[str]]] = env.companion_checked_names  # type: ignore[attr-defined]
    return result


# ------------------------------------------------------------------------------------ reading


def parsed(source: str) -> list[ast.stmt]:
    """Parse a cell; one that is no plain Python says nothing here."""
    try:
        return ast.parse(source).body
    except SyntaxError:
        return []


def imports(statements: list[ast.stmt]) -> dict[str, str]:
    """Return the names that a notebook takes from the companion, with their full names."""
    known = {}
    for statement in statements:
        if isinstance(statement, ast.ImportFrom) and str(statement.module).startswith("companion"):
            for name in statement.names:
                known[name.asname or name.name] = f"{statement.module}.{name.name}"
        elif isinstance(statement, ast.Import):
            for name in statement.names:
                if name.name.startswith("companion") and name.asname:
                    known[name.asname] = name.name
    return known


def called(node: ast.AST, known: dict[str, str]) -> Iterator[str]:
    """Yield the full names of the companion that a piece of code uses."""
    inner = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            if part.value.id in known:
                inner.add(part.value)
                yield f"{known[part.value.id]}.{part.attr}"
        elif isinstance(part, ast.Name) and part.id in known and part not in inner:
            yield known[part.id]


def defined(statements: list[ast.stmt]) -> dict[str, list[ast.AST]]:
    """Return what a cell defines: functions, and names that stand for an expression."""
    found: dict[str, list[ast.AST]] = {}
    for statement in statements:
        if isinstance(statement, ast.FunctionDef):
            found.setdefault(statement.name, []).append(statement)
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        found.setdefault(name.id, []).append(statement.value)
    return found


def checks_of(cells: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the functions of the companion that the check of each equation runs.

    From the call of ``verify`` its names are followed through what the same cell defines and the
    functions of the whole notebook.
    """
    code = [parsed("".join(c["source"])) for c in cells if c["cell_type"] == "code"]
    known = imports([statement for body in code for statement in body])
    functions = {
        name: [node for node in found if isinstance(node, ast.FunctionDef)]
        for body in code
        for name, found in defined(body).items()
    }
    result: dict[str, list[str]] = {}
    for body in code:
        local = defined(body)
        for call in (n for statement in body for n in ast.walk(statement)):
            if not (isinstance(call, ast.Call) and ast.unparse(call.func).startswith("verify.")):
                continue
            label = call.args[0] if call.args else None
            if not (isinstance(label, ast.Constant) and str(label.value).startswith("eq:")):
                continue
            names, seen = result.setdefault(str(label.value), []), set()
            queue: list[ast.AST] = [*call.args, *call.keywords]
            while queue:
                node = queue.pop(0)
                names += [name for name in called(node, known) if name not in names]
                for part in ast.walk(node):
                    if isinstance(part, ast.Name) and part.id not in seen:
                        seen.add(part.id)
                        queue += local.get(part.id) or functions.get(part.id) or []
    return {
        label: [name for name in names if not name.startswith(EVERYWHERE)]
        for label, names in result.items()
    }


def place_of(node: nodes.Node) -> tuple[str, str]:
    """Return the anchor and the title of the section that a node stands in."""
    while node is not None:
        # Boxes such as exercises have sections without a title, whose ids are not kept.
        if isinstance(node, nodes.section) and node["ids"] and isinstance(node[0], nodes.title):
            return node["ids"][0], node[0].astext()
        node = node.parent
    return "", ""


def is_machinery(node: nodes.Node) -> bool:
    """Tell whether a link was put there by the book itself and not by its text."""
    while node is not None:
        if {"check-back", "chapter-facts", "at-the-end"} & set(node.get("classes", ())):
            return True
        node = node.parent
    return False


def collect(app: Sphinx, doctree: nodes.document) -> None:
    """Note what the page just read refers to."""
    env, docname = app.env, app.env.docname
    if docname not in plan_of(env).chapters:
        return
    found: list[Use] = []
    for link in doctree.findall(addnodes.pending_xref):
        if is_machinery(link):
            continue
        kind = {"math": "eq", "py": "py"}.get(link["refdomain"])
        if kind:
            found.append(Use(kind, link["reftarget"], docname, *place_of(link)))
        elif link["refdomain"] == "std" and link["reftype"] == "doc":
            name = link["reftarget"].lstrip("/")
            found.append(Use("page", name, docname, *place_of(link)))
    cells = read_notebook(Path(env.doc2path(docname)))["cells"]
    code = {
        i: parsed("".join(c["source"])) for i, c in enumerate(cells) if c["cell_type"] == "code"
    }
    known = imports([statement for body in code.values() for statement in body])
    for container in doctree.findall(nodes.container):
        index = container.get("cell_index")
        if container.get("nb_element") != "cell_code" or any(raw_records(cells[index])):
            continue  # what a check runs is told at its equation
        for statement in code[index]:
            for name in called(statement, known):
                found.append(Use("code", name, docname, *place_of(container)))
    uses(env)[docname] = list(dict.fromkeys(found))
    checked_names(env)[docname] = checks_of(cells)


def purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget a page that is about to be read again."""
    uses(env).pop(docname, None)
    checked_names(env).pop(docname, None)


def merge(app: Sphinx, env: BuildEnvironment, docnames: list[str], other: BuildEnvironment) -> None:
    """Join what parallel readers collected."""
    for mine, theirs in ((uses(env), uses(other)), (checked_names(env), checked_names(other))):
        mine.update({name: theirs[name] for name in docnames if name in theirs})  # type: ignore[call-overload,attr-defined]


def incoming(env: BuildEnvironment) -> dict[str, list[tuple[str, str]]]:
    """Return for each page what is shown on it of others: places and what refers to them."""
    result: dict[str, list[tuple[str, str]]] = {}
    for use in in_order(env):
        if home := home_of(env, use):
            result.setdefault(home, []).append((use.target, f"{use.docname}#{use.section}"))
    for docname, checks in checked_names(env).items():
        for label, names in checks.items():
            for name in names:
                if entry := documented(env, name):
                    result.setdefault(entry[0], []).append((label, docname))
    return result


def rewrite(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Name the pages that are to be written again since others refer to them differently now."""
    before = getattr(env, "companion_incoming", {})
    now = incoming(env)
    env.companion_incoming = now  # type: ignore[attr-defined]
    return [n for n in {*before, *now} if n in env.all_docs and before.get(n) != now.get(n)]


# ------------------------------------------------------------------------------------ showing


def in_order(env: BuildEnvironment) -> Iterator[Use]:
    """Yield all uses in reading order."""
    for docname in plan_of(env).chapters:
        if docname in env.all_docs:
            yield from uses(env).get(docname, [])


def documented(env: BuildEnvironment, name: str) -> tuple[str, str] | None:
    """Return the page and the anchor of a name of the library."""
    entry = env.get_domain("py").objects.get(name)  # type: ignore[attr-defined]
    return (entry.docname, entry.node_id) if entry and entry.objtype != "module" else None


def home_of(env: BuildEnvironment, use: Use) -> str | None:
    """Return the page that holds what a use names."""
    if use.kind == "page":
        return use.target if use.target != use.docname else None
    if use.kind == "eq":
        entry = env.get_domain("math").equations.get(use.target)  # type: ignore[attr-defined]
        return entry[0] if entry else None
    entry = documented(env, use.target)
    return entry[0] if entry else None


def named(env: BuildEnvironment, docname: str, title: str, here: str) -> str:
    """Name a section: by its title alone on its own page."""
    page = plan_of(env).chapters.get(docname)
    chapter = f"Chapter {page.number}" if page else env.titles[docname].astext()
    if docname == here:
        return title
    return chapter if title == env.titles[docname].astext() else f"{chapter}, {title}"


def label_number(env: BuildEnvironment, label: str) -> str:
    """Return the number of an equation as its page shows it."""
    docname = env.get_domain("math").equations[label][0]  # type: ignore[attr-defined]
    figures = env.toc_fignumbers.get(docname, {}).get("displaymath", {})
    return ".".join(map(str, figures.get(nodes.make_id(f"equation-{label}"), ("?",))))


def fill_equations(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Give each equation the list of where it is referred to and what its check runs."""
    env = app.env
    if docname not in plan_of(env).chapters:
        return
    of_label: dict[str, list[Use]] = {}
    for use in in_order(env):
        if use.kind == "eq":
            of_label.setdefault(use.target, []).append(use)
    for block in doctree.findall(nodes.math_block):
        label = block.get("label")
        here, _ = place_of(block)
        links = []
        for use in of_label.get(label, ()):
            if (use.docname, use.section) != (docname, here):
                uri = (
                    ""
                    if use.docname == docname
                    else app.builder.get_relative_uri(docname, use.docname)
                )
                told = named(env, use.docname, use.title, docname)
                links.append((f"{uri}#{use.section}", told, False))
        for name in checked_names(env).get(docname, {}).get(label, ()):
            if entry := documented(env, name):
                uri = app.builder.get_relative_uri(docname, entry[0])
                links.append((f"{uri}#{entry[1]}", name.rsplit(".", 1)[-1], True))
        if links:
            block["companion_links"] = list(dict.fromkeys(links))


class used_in(nodes.General, nodes.Element):
    """Stands for the list of a chapter's uses until all pages have been read."""


def chapter_uses() -> list[nodes.Node]:
    """Leave at a chapter's end a place for the chapters that use it."""
    return [used_in(classes=["at-the-end"])]


def links_between(
    app: Sphinx, here: str, links: list[tuple[str, str, str, bool]]
) -> list[nodes.Node]:
    """Make links with commas between them; each is a page, an anchor, a text, and if it is code."""
    made: list[nodes.Node] = []
    for docname, anchor, text, code in links:
        if made:
            made.append(nodes.Text(", "))
        shown = nodes.literal("", text) if code else nodes.Text(text)
        made.append(internal_link(app, here, docname, anchor, shown))
    return made


def fill_chapter(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Say at the end of a chapter which chapters build on it and which refer to its equations."""
    env = app.env
    for place in list(doctree.findall(used_in)):
        items = nodes.bullet_list(bullet="-", classes=["used-in-list"])
        plan = plan_of(env)
        page = plan.chapters[docname]
        later = [p for p in plan.chapters.values() if page in map(plan.find, p.needs)]
        if later:
            line = nodes.paragraph("", "Builds on it: ")
            for number, each in enumerate(later):
                line += nodes.Text(", " if number else "")
                if each.docname in env.all_docs:
                    line += links_between(app, docname, [(each.docname, "", each.title, False)])
                else:
                    line += nodes.inline("", each.title, classes=["planned-title"])
            items += nodes.list_item("", line)
        of_page: dict[str, list[str]] = {}
        for use in in_order(env):
            if use.docname != docname and home_of(env, use) == docname:
                labels = of_page.setdefault(use.docname, [])
                if use.kind == "eq" and use.target not in labels:
                    labels.append(use.target)
        for other, labels in of_page.items():
            line = nodes.paragraph()
            line += links_between(app, docname, [(other, "", env.titles[other].astext(), False)])
            line += nodes.Text(" refers to ")
            marks = [
                (
                    docname,
                    nodes.make_id(f"equation-{label}"),
                    f"({label_number(env, label)})",
                    False,
                )
                for label in labels
            ]
            line += links_between(app, docname, marks) or [nodes.Text("this chapter")]
            items += nodes.list_item("", line)
        where = place.parent.index(place)
        title = nodes.rubric("", "Where this chapter is used")
        place.parent[where : where + 1] = [title, items] if len(items) else []


def fill_reference(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Say below each function which chapters use it and which equations it is checked with."""
    env = app.env
    if not docname.startswith(FOLDER):
        return
    chapters: dict[str, dict[str, Use]] = {}
    for use in in_order(env):
        if use.kind in ("py", "code") and (entry := documented(env, use.target)):
            first = chapters.setdefault(entry[1], {}).setdefault(use.docname, use)
            if first.kind == "code" and use.kind == "py":  # the text explains, code only calls
                chapters[entry[1]][use.docname] = use
    equations: dict[str, list[tuple[str, str]]] = {}
    for page in plan_of(env).chapters:
        for label, names in checked_names(env).get(page, {}).items():
            for name in names:
                if entry := documented(env, name):
                    known = equations.setdefault(entry[1], [])
                    if (page, label) not in known:
                        known.append((page, label))
    for description in doctree.findall(addnodes.desc):
        signature = description.next_node(addnodes.desc_signature)
        content = description.next_node(addnodes.desc_content)
        anchor = next(iter(signature["ids"]), "") if signature else ""
        line = nodes.paragraph(classes=["used-in-reference"])
        if told := chapters.get(anchor):
            line += nodes.Text("Used in: ")
            line += links_between(
                app,
                docname,
                [
                    (u.docname, u.section, named(env, u.docname, u.title, docname), False)
                    for u in told.values()
                ],
            )
            line += nodes.Text(". ")
        if told_equations := equations.get(anchor):
            line += nodes.Text("Checked with: ")
            line += links_between(
                app,
                docname,
                [
                    (
                        page,
                        nodes.make_id(f"equation-{label}"),
                        f"({label_number(env, label)})",
                        False,
                    )
                    for page, label in told_equations
                ],
            )
            line += nodes.Text(".")
        if len(line) and content is not None:
            content += line


def setup(app: Sphinx) -> None:
    """Register the node and the events."""
    app.add_node(used_in, html=(inline_error, None))
    app.connect("doctree-read", collect)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("env-updated", rewrite)
    app.connect("doctree-resolved", fill_equations)
    app.connect("doctree-resolved", fill_chapter)
    app.connect("doctree-resolved", fill_reference)
