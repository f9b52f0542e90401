"""The library reference: every public name of the companion, from its docstring."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from docutils import nodes
from docutils.utils import new_document
from myst_parser.mocking import MockRSTParser
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import stringify_annotation

from .plan import note_dependent, plan_of

FOLDER = "book/api/"
ORDER = [
    "foundations",
    "transformer",
    "pretraining",
    "models",
    "efficiency",
    "generation",
    "knowledge",
    "trust",
    "frontiers",
    "core",
    "data",
    "verify",
    "command",
]


def public_modules(package: ModuleType) -> Iterator[ModuleType]:
    """Yield a package and its public modules that say what they export, parents first."""
    if hasattr(package, "__all__"):
        yield package
    for info in pkgutil.iter_modules(getattr(package, "__path__", ())):
        if not info.name.startswith("_"):
            yield from public_modules(importlib.import_module(f"{package.__name__}.{info.name}"))


def exported(module: ModuleType) -> dict[str, Any]:
    """Return what a module exports, without the modules among it."""
    return {
        name: getattr(module, name)
        for name in module.__all__
        if not inspect.ismodule(getattr(module, name)) and not name.startswith("__")
    }


def is_own(module: ModuleType, value: Any) -> bool:
    """Tell whether a name belongs to the library and not to one that it builds on."""
    origin = getattr(value, "__module__", None)
    root = module.__name__.split(".")[0]
    return origin is None or origin.split(".")[0] == root or not callable(value)


def inventory(package: ModuleType) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Decide where each object is documented, and list its other public names.

    The home of an object is the shortest public path to it, so that the reference shows what
    a reader imports.
    """
    homes: dict[str, list[str]] = {}
    seen: dict[int, str] = {}
    aliases: dict[str, list[str]] = {}
    modules = sorted(public_modules(package), key=lambda module: module.__name__.count("."))
    for module in modules:
        if module is package:  # the package itself only points to its parts
            continue
        homes[module.__name__] = []
        for name, value in exported(module).items():
            path = f"{module.__name__}.{name}"
            known = seen.get(id(value))
            if known is not None and known.rsplit(".", 1)[1] == name:
                aliases.setdefault(known, []).append(path)
                continue
            seen[id(value)] = path
            homes[module.__name__].append(name)
    return homes, aliases


def pages(homes: dict[str, list[str]]) -> dict[str, list[str]]:
    """Say which modules share a page: a chapter's module has one, and a wing with all in it."""
    lessons = {
        module.rpartition(".")[0]
        for module in homes
        if module.count(".") == 2 and module.rpartition(".")[0] not in homes
    }
    shown: dict[str, list[str]] = {}
    for module in homes:
        wing = ".".join(module.split(".")[:2])
        page = ".".join(module.split(".")[:3]) if wing in lessons else wing
        if homes[module] or module == page:
            shown.setdefault(page, []).append(module)
    return shown


def docname_of(module: str) -> str:
    """Return the page of a module: ``book/api/core`` for ``companion.core``."""
    return FOLDER + "/".join(module.split(".")[1:])


def comment(module: str, name: str) -> list[str]:
    """Return what the source says about a constant, in the ``#:`` comment above it."""
    for part in sorted(sys.modules):
        if part == module or part.startswith(f"{module}."):
            analyzer = ModuleAnalyzer.for_module(part)
            analyzer.analyze()
            if ("", name) in analyzer.attr_docs:
                return analyzer.attr_docs["", name]
    return []


def first_sentence(value: Any) -> str:
    """Return the first line of a docstring."""
    doc = inspect.getdoc(value) if callable(value) or inspect.isclass(value) else None
    return doc.strip().splitlines()[0] if doc else ""


def annotation(value: Any) -> str:
    """Write an annotation as the source does: ``Float[Tensor, "batch vocab"]``."""
    text = str(stringify_annotation(value, mode="smart")).replace("~", "")
    text = re.sub(r"'([^']*)'", r'"\1"', text)
    # Only the last part of a dotted name, outside of shape strings.
    pieces = re.split(r'("[^"]*")', text)
    short = [
        piece if piece.startswith('"') else re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", piece)
        for piece in pieces
    ]
    return "".join(short)


def write_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Write signatures with shapes that read as they are written in the source."""
    if what not in ("function", "method", "class") or not name.startswith("companion"):
        return None
    target = obj.__init__ if what == "class" else obj
    try:
        called = inspect.signature(obj if what == "class" else target)
    except (TypeError, ValueError):
        return None
    parameters = list(called.parameters.values())
    if what == "method" and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    written = []
    previous = None
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and previous not in (
            parameter.KEYWORD_ONLY,
            parameter.VAR_POSITIONAL,
        ):
            written.append("*")
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        text = star + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            default = repr(parameter.default)
            if re.search(r"[<>]| at 0x", default):
                default = "..."
            text += f" = {default}" if ":" in text else f"={default}"
        written.append(text)
        previous = parameter.kind
    result = ""
    if what != "class" and called.return_annotation is not called.empty:
        result = annotation(called.return_annotation)
    return f"({', '.join(written)})", result


class Reference(SphinxDirective):
    """What the index and the pages of the reference share."""

    has_content = False
    required_arguments = 1

    def chapter_lines(self, module: str) -> list[str]:
        """Name the chapter of a module, with a link where it is written."""
        docname = "book/" + "/".join(module.split(".")[1:3])
        page = plan_of(self.env).chapters.get(docname)
        if page is None:
            return []
        if docname in self.env.found_docs:
            return [f"Chapter {page.number}: :doc:`/{docname}`.", ""]
        return [f"Chapter {page.number}, {page.title} (planned).", ""]

    def parse(self, lines: list[str]) -> list[nodes.Node]:
        """Parse reStructuredText, whatever this page itself is written in."""
        document = new_document(self.env.doc2path(self.env.docname), self.state.document.settings)
        document.reporter = self.state.document.reporter
        MockRSTParser().parse("\n".join(lines), document)
        for node in document.findall(nodes.Element):
            for name in node.get("names", []):
                self.state.document.nameids.setdefault(name, (node["ids"] or [None])[0])
        return list(document.children)


class ApiIndex(Reference):
    """All public names of a package by module, in the order of the book, each a link."""

    def run(self) -> list[nodes.Node]:
        """Write the index as reStructuredText, and parse that."""
        note_dependent(self.env)
        package = importlib.import_module(self.arguments[0])
        homes, _ = inventory(package)
        shown = pages(homes)
        written = {name for name in self.env.found_docs if name.startswith(FOLDER)}
        wanted = {docname_of(module) for module in shown}
        if written != wanted:
            raise ExtensionError(
                f"one page a module in {FOLDER}: write {sorted(wanted - written)}, "
                f"remove {sorted(written - wanted)}"
            )
        groups: dict[str, list[str]] = {}
        for module in shown:
            groups.setdefault(module.split(".")[1], []).append(module)
        rank = {name: index for index, name in enumerate(ORDER)}
        lines: list[str] = []
        for group in sorted(groups, key=lambda name: (rank[name], name)):
            title = group_title(plan_of(self.env), group)
            lines += ["", title, "=" * 2 * len(title), ""]
            for module in sorted(groups[group], key=self.reading_order):
                lines += self.module_lines(module, shown[module], homes)
        return self.parse(lines)

    def reading_order(self, module: str) -> tuple[int, str]:
        """Sort modules as their chapters."""
        page = plan_of(self.env).chapters.get("book/" + "/".join(module.split(".")[1:3]))
        return (page.number or 0 if page else 0, module)

    def module_lines(self, name: str, modules: list[str], homes: dict[str, list[str]]) -> list[str]:
        """Write the entry of one page: its module, what it is about, and its names."""
        summary = first_line(importlib.import_module(name).__doc__)
        lines = [f":doc:`{name} </{docname_of(name)}>`", "   " + summary, ""]
        # As plain as can be: the markup of Sphinx would make most of this page.
        page = docname_of(name).removeprefix("book/")
        names = [
            f'<a href="{page}.html#{module}.{each}"><code>{each}</code></a>'
            for module in modules
            for each in homes[module]
        ]
        html = "<p>" + ", ".join(names) + "</p>"
        return [*lines, "   .. raw:: html", "", "      " + html, ""]


class ApiModule(Reference):
    """The names of one module, and of its public modules, each from its docstring."""

    def run(self) -> list[nodes.Node]:
        """Write the page as reStructuredText for autodoc, and parse that."""
        note_dependent(self.env)
        name = self.arguments[0]
        homes, aliases = inventory(importlib.import_module(name.split(".")[0]))
        lines: list[str] = []
        for module in pages(homes)[name]:
            lines += self.module_lines(module, homes[module], title=module != name)
        content = self.parse(lines)
        self.note_aliases(content, aliases)
        return content

    def module_lines(self, name: str, names: list[str], *, title: bool) -> list[str]:
        """Write the entry of one module."""
        module = importlib.import_module(name)
        lines = ["", name, "-" * len(name), ""] if title else []
        lines += [f".. py:module:: {name}", ""]
        summary = first_line(module.__doc__)
        if summary:
            lines += [summary, ""]
        lines += self.chapter_lines(name)
        for each in names:
            value = getattr(module, each)
            told = first_sentence(value)
            lines.append(f"- :py:obj:`{each} <{name}.{each}>`" + (f" — {told}" if told else ""))
        lines.append("")
        for each in names:
            value = getattr(module, each)
            path = f"{name}.{each}"
            if inspect.isclass(value):
                kind = "exception" if issubclass(value, BaseException) else "class"
                lines += [f".. auto{kind}:: {path}", "   :members:", ""]
            elif (
                inspect.isfunction(value)
                or inspect.isbuiltin(value)
                or (callable(value) and hasattr(value, "__wrapped__"))
            ):
                lines += [f".. autofunction:: {path}", ""]
            else:
                lines += [f".. py:data:: {each}", f"   :module: {name}"]
                written = repr(value)
                if len(written) <= 60 and "<" not in written:
                    lines += [f"   :value: {written}"]
                lines += ["", *(f"   {line}" for line in comment(name, each)), ""]
        return lines

    def note_aliases(self, content: list[nodes.Node], aliases: dict[str, list[str]]) -> None:
        """Let links use any public path of an object, not only the one shown."""
        domain = self.env.get_domain("py")
        for top in content:
            for signature in top.findall(addnodes.desc_signature):
                path = f"{signature.get('module')}.{signature.get('fullname')}"
                for alias in aliases.get(path, ()):
                    if alias in domain.objects:  # type: ignore[attr-defined]
                        continue  # autodoc has noted where the object is defined
                    kind = signature.parent["objtype"]
                    domain.note_object(alias, kind, path, aliased=True, location=signature)  # type: ignore[attr-defined]


def first_line(text: str | None) -> str:
    """Return the first paragraph of a docstring in one line."""
    return " ".join(inspect.cleandoc(text).split("\n\n")[0].split()) if text else ""


def group_title(plan: Any, group: str) -> str:
    """Name a group after its part of the book."""
    extra = {
        "core": "Core: devices, randomness, training, figures",
        "data": "Data: real texts, vectors, and models",
        "verify": "Verify: checks of equations",
        "models": "Models: pretrained models, their files, and generation",
        "command": "Command: what stands behind the command line",
    }
    for part in plan.parts:
        if part.pages and part.pages[0].docname.split("/")[-2] == group:
            return f"Part {part.caption}"
    return extra.get(group, group.replace("_", " ").capitalize())


def lighten(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Take from the signatures the marks around every word, a third of such a page."""
    if pagename.startswith(FOLDER):
        body = re.sub(r'<span class="pre">([^<]*)</span>', r"\1", context.get("body", ""))
        context["body"] = body.replace('<span class="w"> </span>', " ")


def setup(app: Sphinx) -> None:
    """Register the directive and the signature writer."""
    app.add_directive("api-index", ApiIndex)
    app.add_directive("api-module", ApiModule)
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-signature", write_signature)
    app.connect("html-page-context", lighten)
