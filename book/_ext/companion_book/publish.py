"""What lies beside the pages: a map of the site, cards for links, a 404 page, one file of all.

The address of the published book and of its repository are said in one place, ``companion_site``
and ``repository.url`` in ``_config.yml``. Where they are empty, what needs them is left out.
"""

from __future__ import annotations

import html
import shutil
import zipfile
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from .plan import plan_of

CARD = "page.png"


def address(app: Sphinx, docname: str) -> str:
    """Return the address of a page of the published book, or nothing before it has one."""
    site = str(app.config.companion_site)
    return f"{site.rstrip('/')}/{docname}.html" if site else ""


def summary(app: Sphinx, docname: str) -> str:
    """Say in one sentence what a page is about."""
    plan = plan_of(app.env)
    pages = {page.docname: page for page in (*plan.chapters.values(), *plan.appendices)}
    if docname in pages:
        return pages[docname].question
    return f"{app.config.project}: derived, implemented, verified."


def add_cards(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Say what a link to the page shows elsewhere: a title, a sentence, a picture."""
    if pagename not in app.env.all_docs:
        return
    title = app.env.titles[pagename].astext()
    facts = {
        "og:type": "article",
        "og:site_name": app.config.project,
        "og:title": title,
        "og:description": summary(app, pagename),
    }
    if where := address(app, pagename):
        facts["og:url"] = where
        facts["og:image"] = f"{str(app.config.companion_site).rstrip('/')}/_static/{CARD}"
    tags = [
        f'<meta property="{name}" content="{html.escape(told)}" />' for name, told in facts.items()
    ]
    tags.append(f'<meta name="description" content="{html.escape(facts["og:description"])}" />')
    context["metatags"] = context.get("metatags", "") + "\n".join(tags)


def text_for_programs(app: Sphinx) -> str:
    """Write ``llms.txt``: what the book is, and a line for each of its pages."""
    lines = [f"# {app.config.project}", "", f"> {summary(app, '')}", ""]
    lines += [
        "Every displayed equation is checked when the book is built; ledger.json lists the checks.",
        "Formulas use row vectors: a linear map is X W.",
    ]
    plan = plan_of(app.env)
    groups = [(f"Part {part.caption}", part.pages) for part in plan.parts]
    for caption, pages in [*groups, ("Appendices", plan.appendices)]:
        written = [page for page in pages if page.docname in app.env.all_docs]
        if written:
            lines += ["", f"## {caption}", ""]
            for page in written:
                where = address(app, page.docname) or f"{page.docname}.html"
                lines.append(f"- [{page.title}]({where}): {page.question}")
    return "\n".join(lines) + "\n"


def site_map(app: Sphinx) -> str:
    """Write ``sitemap.xml``."""
    rows = [
        f"<url><loc>{html.escape(address(app, name))}</loc></url>"
        for name in sorted(app.env.all_docs)
    ]
    opening = '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
    return "\n".join(['<?xml version="1.0" encoding="utf-8"?>', opening, *rows, "</urlset>"]) + "\n"


def write_extras(app: Sphinx, exception: Exception | None) -> None:
    """Write what lies beside the pages, and last the whole site in one file."""
    if exception is not None or app.builder.format != "html" or not plan_of(app.env).parts:
        return
    folder = Path(app.outdir)
    (folder / "llms.txt").write_text(text_for_programs(app), encoding="utf-8")
    if app.config.companion_site:
        (folder / "sitemap.xml").write_text(site_map(app), encoding="utf-8")
    target = folder / "site.zip"
    target.unlink(missing_ok=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with zipfile.ZipFile(folder / "site.zip.part", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            name = path.relative_to(folder).as_posix()
            if not name.endswith((".map", ".part")):
                # A fixed date: the same pages give the same file.
                entry = zipfile.ZipInfo(f"llm-math/{name}", (1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
    (folder / "site.zip.part").replace(target)


def offer_notebooks(app: Sphinx, exception: Exception | None) -> None:
    """Let the download of a chapter be the notebook that reads well anywhere.

    Sphinx has put the page's source there, which only the book's own renderer understands.
    """
    if exception is not None or app.builder.format != "html":
        return
    made = Path(app.outdir).parent / "notebooks"
    for docname in app.env.all_docs:
        notebook = made / f"{docname.removeprefix('book/')}.ipynb"
        if Path(app.env.doc2path(docname)).suffix == ".ipynb" and notebook.is_file():
            target = Path(app.outdir) / "_sources" / f"{docname}.ipynb"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(notebook, target)


def not_found(app: Sphinx) -> list[tuple[str, dict[str, Any], str]]:
    """Give the page that a server shows for an address that does not exist."""
    if not plan_of(app.env).parts:
        return []
    body = (
        "<h1>There is no such page</h1>"
        "<p>It may have moved: the library reference has a page for each module now. "
        'The <a href="book/preface.html">first page</a> lists all chapters, and the '
        '<a href="search.html">search</a> finds words.</p>'
    )
    return [("404", {"title": "There is no such page", "body": body}, "page.html")]


def setup(app: Sphinx) -> None:
    """Register the events."""
    app.add_config_value("companion_site", "", "html")
    app.connect("html-collect-pages", not_found)
    app.connect("html-page-context", add_cards)
    app.connect("build-finished", offer_notebooks)
    app.connect("build-finished", write_extras, priority=1000)  # after all else is written
