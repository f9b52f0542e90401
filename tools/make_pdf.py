"""Print the rendered book as one PDF: ``make pdf``, after the pages are in ``_build/html``.

The pages are put together into one document, which headless Chromium prints with the rules of
``tools/print.css``. Of the tools that need no TeX distribution, only a browser runs the MathJax
that the formulas are checked with: WeasyPrint runs no scripts, Typst would need every formula and
page in another language, and Paged.js does in scripts what Chromium does by itself by now: margin
boxes with page numbers, named pages, an outline, and tags. The site tests need Chromium anyway.

There is no EPUB. Sphinx's builder, tried, leaves each formula as TeX: few e-readers run scripts.
As MathML it would look as the reader's device decides, from good to unreadable, and no e-reader is
among the tools of the tests that could show which; a form that nobody looks at is not offered.

What is folded on a page: solutions stand at the end of their chapter; the code of folded cells
(checks, figures, set-up) is left out, what it printed or drew stays. The index, the source map,
the ledger, and the library reference are for looking things up on a screen and are left out.
"""

import argparse
import base64
import html
import io
import json
import posixpath
import re
import shutil
import sys
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup, Tag
from pypdf import PdfReader
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

import chapters as book

LEFT_OUT = ("book/alphabetical", "book/sources", "book/ledger", "book/api")
ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII")
# What only serves a screen.
CHROME = (
    "script, style, noscript, button, input, iframe, .headerlink, .check-back, .doors, .only-dark, "
    ".home-picture.narrow, .backrefs, details.hide.above-input, details.used-in, "
    ".jupyter-widgets, template"
)
NAMES_IDS = ("aria-labelledby", "aria-describedby", "for", "headers")
SHEETS = ("pydata-sphinx-theme.css", "pygments.css", "sphinx-book-theme.css", "mystnb.")
SHEETS += ("proof.css", "exercise.css", "sphinx-design.min.css", "book.css")
SECONDS = 1200


class PrintError(Exception):
    """Raised where the book cannot be printed; the message says what to do."""


@dataclass(frozen=True)
class Page:
    """A page of the book and the part that it belongs to."""

    name: str
    part: str

    @property
    def slug(self) -> str:
        return "p-" + re.sub(r"[^a-z0-9]+", "-", self.name.removeprefix("book/").lower())


def printed_pages(root: Path) -> list[Page]:
    """List the pages to print in reading order, each with the title of its part."""
    plan = yaml.safe_load((root / "book" / "contents.yml").read_text(encoding="utf-8"))
    parts = {
        part["folder"]: f"Part {ROMAN[number]} · {part['title']}"
        for number, part in enumerate(plan["parts"])
    }
    parts_of = tuple(f"{name}/" for name in LEFT_OUT)
    names = [n for n in book.pages(root) if n not in LEFT_OUT and not n.startswith(parts_of)]
    folders = [name.split("/")[1] for name in names]
    # The first page, the preface, stands before all parts.
    said = ["", *(parts.get(folder, "Appendices") for folder in folders[1:])]
    return [Page(name, part) for name, part in zip(names, said, strict=True)]


def anchor(page: Page, identifier: str) -> str:
    """Make an id of a page unique in the whole book."""
    return f"{page.slug}--{identifier}"


def rewritten(address: str, page: Page, pages: dict[str, Page]) -> str | None:
    """Turn an address on a page into one of the printed book, or nothing where it has no target."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return address
    fragment, target = unquote(parts.fragment), page
    if parts.path:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.name), unquote(parts.path)))
        if path.removesuffix(".html") not in pages:
            return None
        target = pages[path.removesuffix(".html")]
    return f"#{anchor(target, fragment)}" if fragment else f"#{target.slug}"


def relink(article: Tag, page: Page, pages: dict[str, Page], assets: str) -> None:
    """Make ids unique, and let links and pictures lead from the one document."""
    for tag in article.find_all(id=True):
        tag["id"] = anchor(page, str(tag["id"]))
    for attribute in NAMES_IDS:
        for tag in article.find_all(attrs={attribute: True}):
            tag[attribute] = " ".join(anchor(page, one) for one in str(tag[attribute]).split())
    for tag in article.find_all(True):
        for name, value in tag.attrs.items():
            if isinstance(value, str) and "url(#" in value:  # markers and gradients of a drawing
                tag[name] = value.replace("url(#", f"url(#{page.slug}--")
    for tag in article.find_all(href=True):
        address = rewritten(str(tag["href"]), page, pages)
        if address is not None:
            tag["href"] = address
        elif tag.name == "a":
            del tag["href"]
    folder = posixpath.dirname(page.name)
    for tag in article.find_all(src=True):
        if not urlsplit(str(tag["src"])).scheme:
            tag["src"] = f"{assets}/{posixpath.normpath(posixpath.join(folder, str(tag['src'])))}"
            tag.attrs.pop("loading", None)  # a lazy picture below the screen is never printed


def unfold(soup: BeautifulSoup, article: Tag) -> None:
    """Move the solutions of a chapter to its end, and open what else is folded."""
    for cell in article.select("div.cell.tag_hide-input"):
        if not cell.select_one(".cell_output"):
            # It shows nothing without its code, but a mark may lead to it.
            cell["class"] = [*cell["class"], "silent"]
    solutions = article.select("div.solution")
    if solutions:
        box = soup.new_tag("section", attrs={"class": "solutions"})
        title = soup.new_tag("p", attrs={"class": "rubric"})
        title.string = "Solutions to the exercises"
        box.append(title)
        for solution in solutions:
            solution["class"] = [c for c in solution["class"] if c != "dropdown"]
            box.append(solution.extract())
        article.append(box)
    for details in article.find_all("details"):
        details["open"] = ""
    for fact in article.select(".chapter-facts li"):
        if not fact.select_one("a[href]") and "notebook" in fact.get_text():
            fact.decompose()  # there is nothing to download from paper


def demote(article: Tag) -> None:
    """Lower the headings by one level: the parts of the book stand above its chapters."""
    for level in (5, 4, 3, 2, 1):
        for heading in article.find_all(f"h{level}"):
            heading.name = f"h{level + 1}"


def heading_text(heading: Tag) -> str:
    """Return a heading as one line of text."""
    return re.sub(r"\s+", " ", heading.get_text()).strip()


def read_article(site: Path, page: Page, pages: dict[str, Page], assets: str) -> Tag:
    """Read the article of a page and make it fit for the one document."""
    path = site / f"{page.name}.html"
    if not path.is_file():
        raise PrintError(f"{path.name} has not been rendered: run `make book` first")
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    article = soup.select_one("article.bd-article")
    if article is None:
        raise PrintError(f"{page.name}.html has no article")
    for tag in article.select(CHROME):
        tag.decompose()
    relink(article, page, pages, assets)
    unfold(soup, article)
    heading = article.find("h1")
    if not isinstance(heading, Tag):
        raise PrintError(f"{page.name}.html has no heading")
    if not page.part:
        heading.string = "Preface"  # the first page is named like the book, which has a title page
    demote(article)
    article["id"] = page.slug
    article["class"] = ["bd-article", "printed"]
    return article


def contents(articles: list[tuple[Page, Tag]]) -> str:
    """Write the table of contents; page numbers are filled in when they are known."""

    def row(level: str, target: str, text: str) -> str:
        return (
            f'<p class="toc {level}"><a href="#{target}">{html.escape(text)}</a>'
            f'<span class="toc-dots"></span><span class="toc-page" data-for="{target}"></span></p>'
        )

    rows, part = [], ""
    for page, article in articles:
        if page.part != part:
            part = page.part
            rows.append(f'<p class="toc toc-part">{html.escape(part)}</p>')
        title = article.find("h2")
        assert isinstance(title, Tag)
        rows.append(row("toc-chapter", page.slug, heading_text(title)))
        if page.part.startswith("Part"):
            for section in article.select("section > section[id] > h3"):
                assert section.parent is not None
                rows.append(row("toc-section", str(section.parent["id"]), heading_text(section)))
    # In the outline, too, the contents are an entry.
    return '<nav class="printed table-of-contents"><h1>Contents</h1>' + "\n".join(rows) + "</nav>"


def title_page(root: Path, title: str) -> str:
    """Write the title page: what this is, of what version, and what is not in it."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return f"""<section class="title-page">
<p class="book-title">{html.escape(title)}</p>
<p class="book-subtitle">Derived, implemented, verified</p>
<p>Version {html.escape(project["version"])}, printed on {date}</p>
<div class="imprint">
<p>A ✓ beside an equation number means that the equation was checked by code when the book was
built; it leads to what the check said. Solutions stand at the end of each chapter.</p>
<p>Left out, and found in the web pages or the notebooks: the code of checks, of figures, and of
set-up; the equation ledger, the source map with its errata, and the library reference.</p>
<p>Text and figures: CC BY 4.0. Code: MIT License.</p>
</div></section>"""


def running_heads(articles: Iterable[tuple[Page, Tag]]) -> str:
    """Write a style for the pages of each chapter: its title stands at their top."""
    rules = []
    for page, article in articles:
        heading = article.find("h2")
        assert isinstance(heading, Tag)
        text = json.dumps(heading_text(heading), ensure_ascii=False)
        rules.append(f"#{page.slug} {{ page: {page.slug}; }}")
        rules.append(f"@page {page.slug} {{ @top-center {{ content: {text}; }} }}")
    return "\n".join(rules)


def assemble(root: Path, site: Path, pages: list[Page], assets: str) -> str:
    """Put the pages together into one document and check that its links have targets."""
    by_name = {page.name: page for page in pages}
    articles = [(page, read_article(site, page, by_name, assets)) for page in pages]
    first = BeautifulSoup((site / f"{pages[0].name}.html").read_text("utf-8"), "html.parser")
    sheets = [
        f'<link rel="stylesheet" href="{assets}/_static/{match[1]}" />'
        for link in first.select("link[rel=stylesheet]")
        if (match := re.search(r"_static/([^?]*)", str(link["href"])))
        and any(name in match[1] for name in SHEETS)
    ]
    title = (first.title.get_text() if first.title else "").split(" — ")[-1]
    body, part = [title_page(root, title), contents(articles)], ""
    for page, article in articles:
        if page.part != part:
            part = page.part
            body.append(f'<section class="part-page"><h1>{html.escape(part)}</h1></section>')
        body.append(str(article))
    math = {
        "loader": {"load": ["core", "input/tex", "output/chtml"]},
        "options": {
            "enableAssistiveMml": False,
            "processHtmlClass": "tex2jax_process|mathjax_process|math|output_area",
            "ignoreHtmlClass": "tex2jax_ignore|mathjax_ignore|document",
        },
        "chtml": {"matchFontHeight": False, "displayAlign": "center"},
    }
    css = (Path(__file__).parent / "print.css").read_text(encoding="utf-8")
    document = f"""<!DOCTYPE html>
<html lang="en" data-theme="light" data-mode="light"><head><meta charset="utf-8" />
<title>{html.escape(title)}</title>
{chr(10).join(sheets)}
<style>{css}
{running_heads(articles)}</style>
<script>window.MathJax = {json.dumps(math)}</script>
<script defer src="{assets}/_static/mathjax/startup.js"></script>
</head><body><main id="print">
{chr(10).join(body)}
</main></body></html>"""
    if wrong := faults(document):
        raise PrintError("the pages do not fit together:\n  " + "\n  ".join(wrong[:20]))
    return document


def faults(document: str) -> list[str]:
    """List ids that occur twice and links inside the document that lead nowhere."""
    soup = BeautifulSoup(document, "html.parser")
    seen: set[str] = set()
    wrong = []
    for tag in soup.find_all(id=True):
        if tag["id"] in seen:
            wrong.append(f"the id {tag['id']} occurs twice")
        seen.add(str(tag["id"]))
    for tag in soup.find_all("a", href=re.compile("^#")):
        if str(tag["href"])[1:] not in seen:
            wrong.append(f"a link leads nowhere: {tag['href']} ({tag.get_text()[:40]})")
    return wrong


# Shrink what is wider than the column, after all formulas are set, and list what still is.
FIT = r"""
const done = arguments[arguments.length - 1];
function fit() {
  const wide = [], smallest = 0.5;
  function shrink(element, property, ratio) {
    if (ratio < smallest) {
      wide.push(`${element.tagName} only fits at ${Math.floor(100 * ratio)} %`);
    }
    element.style[property] = `${Math.floor(99 * ratio)}%`;
  }
  for (const box of document.querySelectorAll(".equation-body, .printed div.math")) {
    for (const math of box.querySelectorAll("mjx-container")) {
      const glyphs = math.querySelector("mjx-math");
      const room = box.clientWidth, need = glyphs.getBoundingClientRect().width;
      if (need > room) {
        shrink(math, "fontSize", room / need);
      }
    }
  }
  for (const table of document.querySelectorAll(".printed table")) {
    const room = table.parentElement.clientWidth, need = table.scrollWidth;
    if (need > room + 1) {
      shrink(table, "zoom", room / need);
    }
  }
  for (const math of document.querySelectorAll(".printed mjx-container:not([display])")) {
    const block = math.closest("p, li, td, th, dd, dt, figcaption, div");
    const need = math.getBoundingClientRect().width;
    if (block && need > block.clientWidth && block.clientWidth) {
      shrink(math, "fontSize", block.clientWidth / need);
    }
  }
  const edge = document.getElementById("print").getBoundingClientRect().right + 1.5;
  const inside = ".printed p, .printed pre, .printed td, .printed img, .printed svg, mjx-math";
  for (const element of document.querySelectorAll(inside)) {
    const box = element.getBoundingClientRect();
    if (box.width && (box.right > edge || element.scrollWidth > element.clientWidth + 2
        && element.tagName === "PRE")) {
      wide.push(`${element.tagName} ${element.textContent.trim().slice(0, 60)}`);
    }
  }
  const unset = [...document.querySelectorAll(".math")]
    .filter((box) => !box.querySelector("mjx-container") || box.querySelector("mjx-merror"))
    .map((box) => `a formula is not set: ${box.textContent.slice(0, 60)}`);
  const broken = [...document.images].filter((image) => !image.naturalWidth)
    .map((image) => `a picture is missing: ${image.src}`);
  done([...wide.map((what) => `wider than the page: ${what}`), ...unset, ...broken]);
}
function settle() {
  MathJax.startup.promise.then(() => document.fonts.ready).then(() => setTimeout(fit, 100));
}
if (document.readyState === "complete") {
  settle();
} else {
  window.addEventListener("load", settle);
}
"""

FILL = """
for (const place of document.querySelectorAll(".toc-page")) {
  place.textContent = arguments[0][place.dataset.for] || "";
}
"""


def program(*names: str) -> str:
    """Find a program on the PATH, or say how to get it."""
    for name in names:
        if path := shutil.which(name):
            return path
    raise PrintError(
        f"there is no {' or '.join(names)} on the PATH: the PDF is printed by Chromium, driven by "
        "chromedriver (Debian and Ubuntu: apt-get install chromium chromium-driver fonts-noto-cjk)"
    )


def start_browser() -> webdriver.Chrome:
    """Start a headless Chromium that may take its time."""
    options = Options()
    options.binary_location = program("chromium", "chromium-browser", "google-chrome", "chrome")
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.add_argument("--disable-background-networking")
    driver = webdriver.Chrome(options=options, service=Service(program("chromedriver")))
    driver.command_executor.client_config.timeout = SECONDS
    driver.set_script_timeout(SECONDS)
    driver.set_page_load_timeout(SECONDS)
    return driver


def to_pdf(driver: webdriver.Chrome) -> bytes:
    """Print the document as it stands."""
    options: dict[str, Any] = {
        "preferCSSPageSize": True,
        "printBackground": True,
        "generateTaggedPDF": True,
        "generateDocumentOutline": True,
    }
    return base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", options)["data"])


def page_numbers(pdf: bytes) -> dict[str, int]:
    """Return the page of every place that a link of the document leads to."""
    reader = PdfReader(io.BytesIO(pdf))
    numbers = {}
    for name, place in reader.named_destinations.items():
        number = reader.get_destination_page_number(place)
        if number is not None and number >= 0:
            numbers[unquote(name).removeprefix("/")] = number + 1
    return numbers


def print_document(document: Path) -> bytes:
    """Load the document, wait for its formulas, fit it to the paper, and print it.

    It is printed twice: the first printing tells the page numbers for the table of contents.
    """
    driver = start_browser()
    try:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        driver.get(document.resolve().as_uri())
        if wrong := driver.execute_async_script(FIT):
            raise PrintError("the printed book would be cut off:\n  " + "\n  ".join(wrong[:20]))
        driver.execute_script(FILL, page_numbers(to_pdf(driver)))
        return to_pdf(driver)
    finally:
        driver.quit()


def offer(site: Path, pdf: Path) -> None:
    """Link the PDF from the first page; a page that is rendered anew offers no old PDF."""
    home = site / "book" / "preface.html"
    text = home.read_text(encoding="utf-8")
    text = re.sub(r' ?<a class="pdf-door".*?</a>', "", text)
    size = f"{pdf.stat().st_size / 1e6:.0f} MB"
    link = f' <a class="pdf-door" href="../{pdf.name}">Print the book (PDF, {size})</a>'
    doors = re.search(r'<div class="[^"]*\bdoors\b[^"]*">.*?(?=</p>)', text, re.DOTALL)
    if not doors:
        raise PrintError("the first page has no doors to put the link to the PDF beside")
    book.write_atomically(home, text[: doors.end()] + link + text[doors.end() :])


def main() -> int:
    """Assemble, print, and link."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=book.ROOT, help="the checkout")
    root, started = parser.parse_args().root.resolve(), time.monotonic()
    site, folder = root / "_build" / "html", root / "_build" / "pdf"
    try:
        program("chromedriver")
        document = folder / "book.html"
        text = assemble(root, site, printed_pages(root), "../html")
        book.write_atomically(document, text)
        print(f"assembled in {time.monotonic() - started:.0f} s; printing", flush=True)
        data = print_document(document)
        target = site / "llm-math.pdf"
        target.write_bytes(data)
        offer(site, target)
    except PrintError as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    count = len(PdfReader(io.BytesIO(data)).pages)
    print(
        f"_build/html/{target.name}: {count} pages, {len(data) / 1e6:.1f} MB, "
        f"in {time.monotonic() - started:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
