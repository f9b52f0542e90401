"""What a link shows before it is followed: the equation, figure, work, term, or function it means.

Each page leaves a small script beside the pages, with a piece of HTML for every place on it that a
link can mean. ``previews.js`` loads the script of a page when a link to it is first pointed at, so
that a visit costs nothing. A script, because a page that is opened from the disk may not fetch.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, Tag
from sphinx.application import Sphinx

FOLDER = "_static/previews"
LONGEST = 1200  # characters of text; what is longer is cut between two blocks
# What means nothing in a preview.
USELESS = (
    ".headerlink, .check, .check-back, .used-in, .backrefs, script, style, button, .tags, "
    ".only-print, .label, .interactive-stage"
    # The script takes a drawing from the page itself: it is far heavier than all the words.
    ", .drawing"
)
# Attributes that a preview keeps; an id would be on the page twice.
KEPT = ("class", "src", "alt", "lang", "aria-hidden", "viewbox", "d")


def own_piece(place: Tag) -> Tag | None:
    """Return the element that a link to ``place`` means, or nothing if it is only a place."""
    for rule in (".equation", "figure", "div.citation", "div.proof", "div.admonition", "tr", "dt"):
        name, _, kind = rule.partition(".")
        for element in (place, *place.parents):
            if element.name in ("section", "article", "body", "[document]"):
                break
            if (not name or element.name == name) and (
                not kind or kind in element.get_attribute_list("class")
            ):
                return element
    return place if place.name == "section" else None


def inside(cell: Tag) -> str:
    """Return what stands in a cell of a table, without the paragraph around it."""
    for paragraph in cell.find_all("p", recursive=False):
        paragraph.unwrap()
    return cell.decode_contents().strip()


def row(cells: list[Tag], head: list[str]) -> str:
    """Show a row of one of the book's tables: each cell under the name of its column."""
    first, *others = map(inside, cells)
    said = [
        f"<p><b>{name}</b> {told}</p>"
        for name, told in zip(head[1:], others, strict=False)
        if BeautifulSoup(told, "html.parser").get_text(strip=True)
    ]
    return f'<div class="preview-title">{first}</div>{"".join(said)}'


def term(cells: list[Tag]) -> str:
    """Show a row of the glossary: the term, its two Chinese forms, its definition, its home."""
    name, simplified, traditional, home, note = map(inside, cells)
    # The language is said by `lang`; the class adds nothing here, eight hundred times.
    simplified = simplified.replace(' class="zh-hans"', "")
    traditional = traditional.replace(' class="zh-hant"', "")
    return (
        f'<div class="preview-title">{name}</div>'
        f'<p class="preview-chinese"><span lang="zh-Hans">简体</span> {simplified}'
        f' · <span lang="zh-Hant">繁體</span> {traditional}</p><p>{note}</p>'
        f'<p class="preview-home">Home: {home}</p>'
    )


def shortened(element: Tag) -> str:
    """Keep the first blocks of an element, as many as can be read at a glance."""
    kept, length = [], 0
    for block in element.find_all(recursive=False):
        length += len(block.get_text())
        if kept and length > LONGEST:
            kept.append("<p>…</p>")
            break
        kept.append(str(block))
    return "".join(kept)


def signature(element: Tag) -> str:
    """Write the signature of a function in one line, as in the source."""
    link = element.select_one(".headerlink")
    told = " ".join(element.get_text().removesuffix(link.get_text() if link else "").split())
    told = re.sub(r",(?=\S)", ", ", told).replace(", )", ")")
    return re.sub(r"\( ", "(", re.sub(r" \)", ")", told))


def written(element: Tag) -> str:
    """Write the preview of an element as HTML."""
    if element.name == "tr":
        cells = element.find_all("td", recursive=False)
        table = element.find_parent("table")
        head = [each.get_text(strip=True) for each in table.select("thead th")] if table else []
        if not cells:
            return ""
        return term(cells) if table and "glossary" in table["class"] else row(cells, head)
    if element.name == "dt":
        about = element.find_next_sibling("dd")
        first = about.find("p") if about else None
        return f"<pre>{html.escape(signature(element))}</pre>{first or ''}"
    if element.name == "section":
        title = element.find(re.compile(r"^h[1-6]$"))
        first = element.find("p", recursive=False)
        return (
            f'<div class="preview-title">{title.decode_contents()}</div>{first or ""}'
            if title
            else ""
        )
    if element.name == "figure" or "equation" in element["class"]:
        return str(element)
    kinds = " ".join(element.get_attribute_list("class"))
    return f'<div class="{kinds}">{shortened(element)}</div>'


def piece(place: Tag, docname: str) -> str:
    """Return the preview of a place on a page, or nothing where there is nothing to see."""
    element = own_piece(place)
    if element is None:
        return ""
    soup = BeautifulSoup(written(element), "html.parser")
    for useless in soup.select(USELESS):
        useless.decompose()
    for tag in soup.find_all(True):
        if tag.name == "span" and not tag.contents:
            tag.unwrap()
            continue
        if tag.name == "a":  # a preview is to be read; its link is the one that is pointed at
            tag.name = "span"
        if tag.name == "img":
            where = posixpath.join(posixpath.dirname(docname), str(tag.get("src", "")))
            tag["src"] = "{root}" + posixpath.normpath(where)
        tag.attrs = {name: value for name, value in tag.attrs.items() if name in KEPT}
    return re.sub(r"\s*\n\s*", "\n", str(soup)).strip()


def collect(body: str, docname: str) -> dict[str, str]:
    """Return the previews of a page, by the anchor that a link names."""
    soup = BeautifulSoup(body, "html.parser")
    found = {}
    for place in soup.find_all(id=True):
        # Links to these lead into the page and mean no piece of it.
        if str(place["id"]).startswith(("use-", "check-")):
            continue
        if told := piece(place, docname):
            found[str(place["id"])] = told
    return found


def write(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Write the previews of a page beside the pages."""
    if app.builder.format != "html" or pagename not in app.env.all_docs:
        return
    path = Path(app.outdir) / FOLDER / f"{pagename}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = json.dumps(collect(context.get("body", ""), pagename), ensure_ascii=False)
    name = json.dumps(pagename)
    path.write_text(f"bookPreviews.add({name}, {found});\n", encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Register the script and the event."""
    app.add_js_file("previews.js", loading_method="defer")
    # After everything that mends the body of a page.
    app.connect("html-page-context", write, priority=950)
