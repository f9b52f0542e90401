"""The printed book: all of it fits together, and a small part of it is really printed."""

import io
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from pypdf import PdfReader

import make_pdf

from .conftest import ROOT

# A page with Chinese, and a chapter with equations, code, figures, and exercises.
PART = ("book/preface", "book/foundations/cross_entropy")


def test_every_equation_is_in_the_printed_book(site: Path, ledger: dict[str, Any]) -> None:
    pages = make_pdf.printed_pages(ROOT)
    # It also refuses ids that occur twice and links that lead nowhere.
    soup = BeautifulSoup(make_pdf.assemble(ROOT, site, pages, "../html"), "html.parser")
    printed = {n.get_text().strip() for n in soup.select(".equation-number .eqno")}
    rendered = {
        n.get_text().replace("#", "").strip()
        for page in pages
        for n in BeautifulSoup(
            (site / f"{page.name}.html").read_text(encoding="utf-8"), "html.parser"
        ).select(".equation-number .eqno")
    }
    assert printed == rendered
    assert len(printed) >= len(ledger["equations"])
    checks = {str(mark["href"]) for mark in soup.select("a.check")}
    assert len(checks) == len(ledger["equations"])
    assert not soup.select(
        "button, .headerlink, .bd-sidebar, .copybtn, input, .search-button, details.hide"
    )


@pytest.fixture(scope="module")
def printed(site: Path, tmp_path_factory: pytest.TempPathFactory) -> PdfReader:
    """A page and a chapter, printed."""
    pages = [page for page in make_pdf.printed_pages(ROOT) if page.name in PART]
    document = tmp_path_factory.mktemp("print") / "book.html"
    text = make_pdf.assemble(ROOT, site, pages, site.resolve().as_uri())
    document.write_text(text, encoding="utf-8")
    return PdfReader(io.BytesIO(make_pdf.print_document(document)))


def outline(reader: PdfReader, entries: Any, level: int = 0) -> list[tuple[int, str, int]]:
    found = []
    for entry in entries:
        if isinstance(entry, list):
            found += outline(reader, entry, level + 1)
        else:
            found.append((level, entry.title, reader.get_destination_page_number(entry) + 1))
    return found


def test_the_outline_names_parts_chapters_and_sections(printed: PdfReader) -> None:
    found = outline(printed, printed.outline)
    titles = [(level, title) for level, title, _ in found]
    assert titles[:2] == [(0, "Contents"), (1, "Preface")]
    assert (0, "Part I · Words, probability, and learning") in titles
    assert (1, "3. Softmax and cross-entropy") in titles
    assert (2, "3.5. Cross-entropy") in titles
    places = [page for _, _, page in found]
    assert places == sorted(places)
    assert places[-1] > places[0]


def test_the_contents_give_the_pages_of_the_outline(printed: PdfReader) -> None:
    text = "\n".join(page.extract_text() for page in printed.pages[1:4])
    for level, title, page in outline(printed, printed.outline):
        if level == 2 and title.startswith("3."):
            assert re.search(rf"{re.escape(title)}\s*{page}\b", text), title


def test_pages_are_numbered_and_headed(printed: PdfReader) -> None:
    for number, page in enumerate(printed.pages, 1):
        text = page.extract_text().split("\n")
        assert (str(number) in text) == (number > 1)
    assert printed.pages[-1].extract_text().startswith("3. Softmax and cross-entropy")


def test_links_lead_to_pages(printed: PdfReader) -> None:
    named, inside = printed.named_destinations, 0
    for page in printed.pages:
        for reference in page.get("/Annots", ()):
            note = reference.get_object()
            if note.get("/Subtype") == "/Link" and "/Dest" in note:
                assert str(note["/Dest"]) in named
                inside += 1
            elif note.get("/Subtype") == "/Link":
                assert str(note["/A"]["/URI"]).startswith("http")
    assert inside > 100


def test_every_equation_number_is_set_beside_its_formula(
    printed: PdfReader, ledger: dict[str, Any]
) -> None:
    text = "\n".join(page.extract_text() for page in printed.pages)
    numbers = [
        e["number"] for e in ledger["equations"] if e["chapter"] == "book/foundations/cross_entropy"
    ]
    assert numbers
    assert [n for n in numbers if f"({str(n).strip('()')})" not in text] == []
    assert "\\frac" not in text


def test_chinese_has_glyphs(printed: PdfReader) -> None:
    # A PDF may name a glyph by its radical; readers fold these two when they search.
    text = unicodedata.normalize(
        "NFKC", "".join(page.extract_text() for page in printed.pages)
    ).replace("\n", "")
    assert "写给中文读者" in text
    assert "寫給中文讀者" in text


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('<p style="width: 300mm">wide</p>', "wider than the page: P wide"),
        ('<table><tr><td style="min-width: 400mm">x</td></tr></table>', "TABLE only fits at"),
        ('<img src="missing.png">', "a picture is missing"),
        ('<div class="math">\\[\\frac\\]</div>', "a formula is not set"),
    ],
)
def test_what_would_be_cut_off_is_refused(body: str, said: str, site: Path, tmp_path: Path) -> None:
    document = tmp_path / "book.html"
    scripts = f"{site.resolve().as_uri()}/_static/mathjax/startup.js"
    css = (ROOT / "tools" / "print.css").read_text(encoding="utf-8")
    math = '{"loader": {"load": ["core", "input/tex", "output/chtml"]}}'
    document.write_text(
        f"<!DOCTYPE html><style>{css}</style><script>MathJax = {math}</script>"
        f'<script defer src="{scripts}"></script>'
        f'<main id="print"><article class="printed">{body}</article></main>',
        encoding="utf-8",
    )
    with pytest.raises(make_pdf.PrintError, match=said):
        make_pdf.print_document(document)
