"""The printed book: its pages are put together without losing a link, an id, or an equation."""

import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

import make_pdf
from make_pdf import Page, PrintError

HEAD = """<html><head><title>Some page — A Tiny Book</title>
<link rel="stylesheet" href="../../_static/book.css?v=1" />
<link rel="stylesheet" href="../../_static/copybutton.css" /></head><body><nav>Sidebar</nav>
<article class="bd-article"><section id="top">"""
TAIL = "</section></article><footer>Next page</footer></body></html>"
PREFACE = """<h1>A Tiny Book<a class="headerlink" href="#top">#</a></h1>
<div class="doors docutils container">
<p><a href="part/one.html">Read</a></p>
</div><p><a href="part/one.html#equation-a">(1.1)</a> <a href="ledger.html#row">ledger</a>
<a href="https://example.org/#top">elsewhere</a> <a href="#top">here</a>
<a href="part/one.html">chapter</a></p>
<svg><marker id="tip"></marker><path marker-end="url(#tip)" /></svg>"""
ONE = """<h1>1. One</h1><p><img src="../../_images/x.png" loading="lazy" /><button>Copy</button></p>
<section id="s"><h2>1.1. A section</h2>
<div class="equation" id="equation-a">\\[a\\]<span class="eqno">(1.1)</span>
<a class="check" href="#check-a">✓</a></div>
<div class="cell tag_hide-input cell-check" id="check-a">
<details class="admonition hide above-input">
<summary>Check: the sum</summary><pre>verify.page("eq:a")</pre></details>
<div class="cell_output"><pre>✓ eq:a · largest error 0</pre></div></div>
<div class="quick-questions"><ol><li><p>Why?</p>
<details class="answer"><summary>Answer</summary><p>So.</p></details></li></ol></div>
<div class="solution dropdown admonition" id="book/part/one-solution-1"><p>The answer.</p></div>
</section><section id="end"><h2>1.2. Summary</h2></section>"""
PAGES = [Page("book/preface", ""), Page("book/part/one", "Part I · The only part")]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The rendered pages of a book of one chapter, in a checkout of their own."""
    files = {
        "_toc.yml": "format: jb-book\nroot: book/preface\nchapters:\n  - file: book/part/one\n"
        "  - file: book/ledger\n  - file: book/notation\n  - file: book/api/core\n",
        "book/contents.yml": "parts: [{title: The only part, folder: part, chapters: []}]\n",
        "pyproject.toml": '[project]\nversion = "7.5.3"\n',
        "_build/html/book/preface.html": HEAD + PREFACE + TAIL,
        "_build/html/book/part/one.html": HEAD + ONE + TAIL,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def assembled(root: Path) -> BeautifulSoup:
    return BeautifulSoup(
        make_pdf.assemble(root, root / "_build/html", PAGES, "../html"), "html.parser"
    )


def test_pages_stand_in_reading_order_under_their_parts(small: Path) -> None:
    found = make_pdf.printed_pages(small)
    assert [*PAGES, Page("book/notation", "Appendices")] == found


def test_links_lead_to_places_in_the_document(small: Path) -> None:
    soup = assembled(small)
    found = {link.get_text(): link.get("href") for link in soup.select("#p-preface a")}
    assert found == {
        "(1.1)": "#p-part-one--equation-a",
        "ledger": None,  # it is not printed
        "elsewhere": "https://example.org/#top",
        "here": "#p-preface--top",
        "chapter": "#p-part-one",
    }
    assert soup.select_one("#p-preface path")["marker-end"] == "url(#p-preface--tip)"
    assert soup.select_one("img")["src"] == "../html/_images/x.png"
    assert "loading" not in soup.select_one("img").attrs


def test_ids_of_two_pages_do_not_meet(small: Path) -> None:
    ids = [tag["id"] for tag in assembled(small).find_all(id=True)]
    assert {"p-preface--top", "p-part-one--top"} <= set(ids)
    assert len(ids) == len(set(ids))


def test_nothing_of_the_screen_is_printed(small: Path) -> None:
    text = assembled(small).body.get_text()
    for word in ("Sidebar", "Next page", "Copy", "Read", "#"):
        assert word not in text
    assert "copybutton" not in str(assembled(small).head)


def test_a_check_keeps_its_line_and_leaves_its_code(small: Path) -> None:
    cell = assembled(small).select_one("#p-part-one--check-a")
    assert cell.get_text().strip() == "✓ eq:a · largest error 0"


def test_solutions_stand_at_the_end_of_the_chapter(small: Path) -> None:
    last = assembled(small).select_one("#p-part-one").find_all(recursive=False)[-1]
    assert last.get_text(" ", strip=True) == "Solutions to the exercises The answer."
    assert not last.select(".dropdown")


def test_the_answer_to_a_quick_question_stands_open_below_it(small: Path) -> None:
    (fold,) = assembled(small).select("#p-part-one .quick-questions li > p + details")
    assert fold.has_attr("open")
    assert fold.get_text(" ", strip=True) == "Answer So."


def test_headings_nest_under_the_parts(small: Path) -> None:
    found = [(h.name, h.get_text()) for h in assembled(small).find_all(re.compile(r"^h\d$"))]
    assert found == [
        ("h1", "Contents"),
        ("h2", "Preface"),
        ("h1", "Part I · The only part"),
        ("h2", "1. One"),
        ("h3", "1.1. A section"),
        ("h3", "1.2. Summary"),
    ]


def test_the_contents_lead_to_chapters_and_sections(small: Path) -> None:
    rows = assembled(small).select(".table-of-contents a")
    assert [row["href"] for row in rows] == [
        "#p-preface",
        "#p-part-one",
        "#p-part-one--s",
        "#p-part-one--end",
    ]


def test_the_title_page_names_title_and_version(small: Path) -> None:
    text = assembled(small).select_one(".title-page").get_text()
    assert "A Tiny Book" in text
    assert "Version 7.5.3" in text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('href="#check-a"', 'href="#check-b"', "a link leads nowhere: #p-part-one--check-b"),
        ('<section id="s">', '<section id="end">', "the id p-part-one--end occurs twice"),
        ("<h1>1. One</h1>", "", "has no heading"),
        ('class="bd-article"', "", "has no article"),
    ],
)
def test_pages_that_do_not_fit_together_are_refused(
    old: str, new: str, said: str, small: Path
) -> None:
    path = small / "_build/html/book/part/one.html"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(PrintError, match=said):
        assembled(small)


def test_a_page_that_is_not_rendered_says_what_to_do(small: Path) -> None:
    (small / "_build/html/book/part/one.html").unlink()
    with pytest.raises(PrintError, match="run `make book` first"):
        assembled(small)


def test_without_a_browser_the_error_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PrintError, match=r"no chromedriver on the PATH.*apt-get install chromium"):
        make_pdf.program("chromedriver")


def test_the_first_page_offers_the_pdf_once(small: Path) -> None:
    site = small / "_build" / "html"
    pdf = site / "llm-math.pdf"
    for megabytes in (2, 5):
        pdf.write_bytes(b"x" * (megabytes * 1_000_000))
        make_pdf.offer(site, pdf)
    text = (site / "book/preface.html").read_text(encoding="utf-8")
    links = BeautifulSoup(text, "html.parser").select(".doors p a.pdf-door")
    assert [link["href"] for link in links] == ["../llm-math.pdf"]
    assert "5 MB" in links[0].get_text()
