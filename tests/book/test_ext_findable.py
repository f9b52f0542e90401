"""What leads from page to page on a small book: terms, previews, uses, index, and sources."""

import json
import re
import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from . import test_ext_ledger as small

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from companion_book import alphabet, previews, tables, terms, uses  # noqa: E402

GLOSSARY = (
    ("entropy", "熵", "熵", "one/first", r"$H(p)$, in nats"),
    ("cross-entropy", "交叉熵", "交叉熵", "one/first", "$H(p,q)$; CE"),
    ("value", "值", "值", "one/second", "what attention averages"),
    ("matrix", "矩阵", "矩陣", "one/first", "numbers in a rectangle"),
    ("Bayes' rule", "贝叶斯定理", "貝氏定理", "one/second", "turns conditionals around"),
    ("precision (of numbers)", "精度", "精度", "one/second", "how many digits"),
)


TOPIC_HEAD = ("id", "document", "kind", "topic", "home_part", "home_chapter", "errata")
TOPICS = (
    ("S1.2-1", "S1", "claim", "Words are vectors", "one", "one/first", ""),
    ("S1.2-2", "S1", "formula", "$a=b$", "one", "one/second", "ERR-01"),
    ("S1.3.1-1", "S1", "method", "Not answered yet", "one", "one/missing", ""),
)
ERRATUM_HEAD = ("number", "where", "says", "correct", "source", "home")
ERRATUM = ("ERR-01", "S1 §2 (1); S1 §9", "a is b", "It is not", "A paper", "one/second")
PAGES = {
    "alphabetical": "# Index\n\n```{alphabetical-index}\n```\n",
    "sources": "# Sources\n\n```{source-topics}\n```\n\n```{errata-table}\n```\n",
    "sources/s1": "# S1: A document\n\n```{source-document} S1\n```\n",
    "resources": "# Tools\n\n```{tools-table} library\n```\n",
}
TOOLS = """name\tgroup\tlicense\tpurpose
zeta\tlibrary\tMIT\tFits $z$
alpha\tlibrary\tApache-2.0\tFirst of all
other\tbench\tMIT\tA peer
"""


def term(name: str, home: str = "book/one/first") -> tuple[terms.Term, list[str]]:
    """Make a term of one of the rows above."""
    row = dict(zip(("en", "zh_hans", "zh_hant", "home", "note"), row_of(name), strict=True))
    plain = terms.names_of(row)[0] in terms.EVERYDAY or "(" in name
    return terms.Term(name, row["zh_hans"], row["zh_hant"], (home,), plain), terms.names_of(row)


def row_of(name: str) -> tuple[str, ...]:
    """Return a row of the glossary above."""
    return next(row for row in GLOSSARY if row[0] == name)


WORDS = terms.Vocabulary(
    [
        term("entropy"),
        term("cross-entropy"),
        term("value", "book/one/second"),
        term("matrix"),
        term("Bayes' rule", "book/one/second"),
        term("precision (of numbers)", "book/one/second"),
    ]
)


def found(text: str, page: str = "book/one/first") -> list[tuple[str, str]]:
    """List what a text says and the term that it means."""
    return [(text[start:end], known.name) for start, end, known in WORDS.uses(text, page)]


# --- terms --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the cross-entropy", [("cross-entropy", "cross-entropy")]),  # the longest name wins
        ("Cross entropies are", [("Cross entropies", "cross-entropy")]),
        ("the cross-\nentropy", [("cross-\nentropy", "cross-entropy")]),
        ("CE, not ce", [("CE", "cross-entropy")]),
        ("an entropy", [("entropy", "entropy")]),
        ("Bayes\u2019 rule", [("Bayes\u2019 rule", "Bayes' rule")]),
        ("bayes' rule", []),  # a name keeps its capital
        ("two matrices", [("matrices", "matrix")]),
        ("entropy-like, entropyless", []),
        ("of great value", []),  # an everyday word, away from its home
    ],
)
def test_a_text_uses_the_terms_that_it_means(text: str, expected: list[tuple[str, str]]) -> None:
    assert found(text) == expected


def test_everyday_words_and_double_meanings_count_at_home_alone() -> None:
    for word, name in (("value", "value"), ("precision", "precision (of numbers)")):
        assert found(f"the {word} of it", "book/one/second") == [(word, name)]
        assert found(f"the {word} of it", "book/one/first") == []


def test_every_name_of_the_glossary_finds_itself() -> None:
    path = ROOT / "book/_data/glossary.tsv"
    rows = terms.read_rows(path, ("en", "zh_hans", "zh_hant", "home", "note"))
    entries = [(terms.Term(r["en"], "", "", ("here",)), terms.names_of(r)) for r in rows]
    known = terms.Vocabulary(entries)
    for entry, names in entries:
        for name in names:
            ((start, end, _),) = known.uses(name, "here")
            assert (start, end) == (0, len(name)), entry.name


# --- a small book -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> small.Built:
    """Two chapters that refer to each other, with a glossary."""
    root = tmp_path_factory.mktemp("findable")
    data = root / "src/book/_data"
    data.mkdir(parents=True)
    rows = ["\t".join(row) for row in [("en", "zh_hans", "zh_hant", "home", "note"), *GLOSSARY]]
    (data / "glossary.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    topics = "\n".join("\t".join(row) for row in (TOPIC_HEAD, *TOPICS)) + "\n"
    (data / "sources.tsv").write_text(topics, encoding="utf-8")
    errata = "\n".join("\t".join(row) for row in (ERRATUM_HEAD, ERRATUM)) + "\n"
    (data / "errata.tsv").write_text(errata, encoding="utf-8")
    (data / "tools.tsv").write_text(TOOLS, encoding="utf-8")
    (root / "src/requirements").mkdir()
    pins = "# exact\nalpha==1.2\nzeta==0.3 ; python_version >= '3.11'\n"
    pins += "zeta==0.4 ; python_version < '3'\n"
    (root / "src/requirements/lock.txt").write_text(pins, encoding="utf-8")
    (root / "src/requirements/bench.txt").write_text("other==3\n", encoding="utf-8")
    (root / "src/book/sources").mkdir()
    for name, text in PAGES.items():
        (root / f"src/book/{name}.md").write_text(text, encoding="utf-8")
    (root / "src/book/glossary.md").write_text("# Words\n\n```{glossary-table}\n```\n", "utf-8")
    first = [
        small.text(
            "*Cross-entropy*, and CE again. See {eq}`eq:b`.\n\n```{note}\n:class: dropdown\n"
            "Folded: a matrix.\n```\n\n## A part\n\nIn view: a matrix of `entropy`."
        ),
        small.text("```{prf:theorem} A titled theorem\n:label: thm-titled\nIt holds.\n```"),
        small.equation("def:x", "x = 1"),
        small.equation("eq:a"),
        small.code("verify.equal('eq:a', [1])", small.record("eq:a")),
    ]
    second = [
        small.text("## Another part\n\nThe value by {eq}`eq:a`, entropy of {eq}`eq:a`."),
        small.code("from companion.core import near\nfrom companion.one.first import f, g as h"),
        small.code("def by_f(x):\n    return f(x)\n\n\nprint(h(2))"),
        small.equation("eq:b"),
        small.code("pair = by_f\nverify.equal('eq:b', pair, near(1))", small.record("eq:b")),
        small.text("## Exercises\n\n```{exercise}\n:label: ex-b\nShow {eq}`eq:a`.\n```"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        more = "appendices:\n" + "\n".join(
            f"  - {{file: {name}, title: Words, question: What}}"
            for name in ("glossary", "alphabetical", "sources", "resources")
        )
        patch.setattr(small, "CONTENTS", small.CONTENTS.replace("appendices:", more))
        patch.setattr(
            small,
            "PREFACE",
            small.PREFACE.replace(
                "ledger\n", "ledger\nglossary\nalphabetical\nsources\nsources/s1\nresources\n"
            ),
        )
        built = small.build_project(root, first, second)
    assert built.returncode == 0, built.output
    return built


def soup(built: small.Built, name: str) -> BeautifulSoup:
    """A page of the small book."""
    return BeautifulSoup(built.page(name), "html.parser")


def test_the_first_use_of_a_term_in_view_is_linked_once(book: small.Built) -> None:
    page = soup(book, "one/first")
    links = {link["id"]: link for link in page.select("a.term")}
    assert set(links) == {"use-cross-entropy", "use-matrix"}
    assert links["use-cross-entropy"]["href"] == "../glossary.html#term-cross-entropy"
    assert links["use-cross-entropy"].find_parent("em")
    assert links["use-matrix"].find_parent("section")["id"] == "a-part"
    assert {link["id"] for link in soup(book, "one/second").select("a.term")} == {
        "use-value",
        "use-entropy",
    }


def previews_of(built: small.Built, name: str) -> dict[str, str]:
    """Read the script that holds the previews of a page."""
    path = built.root / f"out/html/_static/previews/book/{name}.js"
    call = re.fullmatch(r'bookPreviews\.add\("book/(\S+)", (.*)\);\n', path.read_text("utf-8"))
    assert call is not None
    assert call[1] == name
    return json.loads(call[2])


def test_a_term_shows_both_chinese_forms_and_its_definition(book: small.Built) -> None:
    shown = BeautifulSoup(previews_of(book, "glossary")["term-matrix"], "html.parser")
    assert [tag.get_text() for tag in shown.select("[lang=zh-Hans]")] == ["简体", "矩阵"]
    assert [tag.get_text() for tag in shown.select("[lang=zh-Hant]")] == ["繁體", "矩陣"]
    assert "numbers in a rectangle" in shown.get_text()
    assert "2. First" in shown.get_text()


def test_an_equation_shows_its_formula_and_number_without_ids_and_links(book: small.Built) -> None:
    shown = previews_of(book, "one/first")["equation-eq-a"]
    assert r"\[" in shown
    assert "(2.1)" in shown or "(2.2)" in shown
    for part in (" id=", "<a", "✓", "used-in", "headerlink"):
        assert part not in shown


def test_an_equation_says_where_it_is_used(book: small.Built) -> None:
    used = soup(book, "one/first").find(id="equation-eq-a").select_one("details.used-in")
    assert [(a["href"], a.get_text()) for a in used.select("a")] == [
        ("second.html#another-part", "Chapter 3, Another part"),
        ("second.html#exercises", "Chapter 3, Exercises"),  # the section, not the box in it
    ]
    # A definition that nothing refers to has no such list.
    assert soup(book, "one/first").find(id="equation-def-x").select("details") == []


def test_a_chapter_ends_with_where_it_is_used(book: small.Built) -> None:
    (line,) = soup(book, "one/first").select("ul.used-in-list li")
    assert re.fullmatch(r"Second refers to \(2\.\d\)", line.get_text().strip())


# --- the index ----------------------------------------------------------------------------------


def test_the_index_names_terms_by_both_forms_and_leads_to_their_uses(book: small.Built) -> None:
    page = soup(book, "alphabetical")
    lines = {li.get_text().strip(): li for li in page.select("ul.index-entries li")}
    assert list(lines) == [
        "A titled theorem, theorem, 2",
        "Bayes' rule 贝叶斯定理 / 貝氏定理, 3",
        "cross-entropy 交叉熵, 2",
        "entropy 熵, 2, 3",
        "matrix 矩阵 / 矩陣, 2",
        "precision (of numbers) 精度, 3",
        "value 值, 3",
        "x, definition (2.1)",
    ]
    entropy = lines["entropy 熵, 2, 3"]
    assert [a["href"] for a in entropy.select("a")] == [
        "glossary.html#term-entropy",
        "one/first.html",  # its home, which does not use it in view
        "one/second.html#use-entropy",
    ]
    assert [tag.get_text() for tag in entropy.select("strong")] == ["2"]
    theorem = next(li for text, li in lines.items() if "titled theorem" in text)
    assert theorem.select_one("a")["href"] == "one/first.html#thm-titled"
    letters = [heading.get_text()[0] for heading in page.select("h2")]
    assert letters == sorted(letters)


def test_an_entry_is_sorted_by_its_letters_alone() -> None:
    texts = ["k-means", "K mean", "Édouard", "2-gram", "_private"]
    entries = [alphabet.Entry(text) for text in texts]
    assert [entry.letter for entry in entries] == ["K", "K", "E", "0–9", "P"]
    assert [e.text for e in sorted(entries[:2], key=lambda e: e.key)] == ["K mean", "k-means"]


# --- the tools ----------------------------------------------------------------------------------


def test_the_tools_of_one_group_are_listed_with_their_locked_versions(book: small.Built) -> None:
    cells = [
        [td.get_text().strip() for td in tr.select("td")]
        for tr in soup(book, "resources").select("tbody tr")
    ]
    assert [row[:3] for row in cells] == [["alpha", "1.2", "Apache-2.0"], ["zeta", "0.3", "MIT"]]
    assert cells[1][3].startswith("Fits")


# --- the sources --------------------------------------------------------------------------------


def test_a_document_shows_its_sections_beside_our_chapters(book: small.Built) -> None:
    page = soup(book, "sources/s1")
    rows = [
        [cell.get_text().strip() for cell in row.select("td")]
        for row in page.select("table.source-sections tbody tr")
    ]
    assert rows == [
        ["§ 2", "2", "2. First, 3. Second", "ERR-01"],
        ["§ 3.1", "1", "1. Not written planned", ""],
    ]
    assert "3 topics in 2 sections; 2 are answered" in page.get_text()
    assert {a["href"] for a in page.select("td a[href*='err-']")} == {"../sources.html#err-01"}
    assert page.find(id="source-s1-2-2").find_parent("tr").find("span", class_="math")


def test_a_correction_leads_to_the_section_that_it_is_about(book: small.Built) -> None:
    links = soup(book, "sources").select("table.errata a[href^='sources/s1']")
    assert [(a["href"], a.get_text()) for a in links] == [
        ("sources/s1.html#section-2", "S1 §2 (1)"),
        ("sources/s1.html", "S1 §9"),  # no topic of ours is in that section
    ]


@pytest.mark.parametrize(
    ("topic", "section", "name"),
    [
        ("S0.C1-3", "C.1", "C.1"),
        ("S0.C0-1", "C.0", "Preface"),
        ("S1.0-1", "0", "Preface"),
        ("S3.3.2.1-4", "3.2.1", "§ 3.2.1"),
    ],
)
def test_the_section_of_a_topic(topic: str, section: str, name: str) -> None:
    assert tables.section_of(topic) == section
    assert tables.section_name(section) == name


# --- pieces -------------------------------------------------------------------------------------


def notebook(*sources: str) -> list[dict]:
    """Make the cells of a notebook."""
    return [{"cell_type": "code", "source": [source]} for source in sources]


def test_the_functions_of_a_check_are_followed_through_what_the_page_defines() -> None:
    cells = notebook(
        "from companion import verify\nfrom companion.a.b import f, g as h, k",
        "import companion.a.c as c",
        "def by_f(x):\n    return f(x)",
        "other = k\nreading = {'L': by_f, 'M': c.m}\nverify.page('eq:one', reading)",
        "verify.equal('eq:two', h, lambda x: x)",
        "%time k(1)",  # no plain Python: it says nothing, and breaks nothing
    )
    assert uses.checks_of(cells) == {
        "eq:one": ["companion.a.c.m", "companion.a.b.f"],
        "eq:two": ["companion.a.b.g"],
    }


def test_names_of_the_machinery_are_left_out() -> None:
    cells = notebook(
        "from companion.verify import near\nfrom companion.core import rand",
        "verify.equal('eq:one', near(1), rand(2))",
    )
    assert uses.checks_of(cells) == {"eq:one": []}


PIECES = {
    "a figure": (
        '<figure id="p"><img src="../_images/a.png" alt="A"/><p>Why</p></figure>',
        '<figure><img alt="A" src="{root}book/_images/a.png"/><p>Why</p></figure>',
    ),
    "a work": (
        '<div class="citation" id="p"><span class="label">k</span><a href="x">2020</a></div>',
        '<div class="citation"><span>2020</span></div>',
    ),
    "a function": (
        '<dl><dt id="p">f( x )</dt><dd><p>Says.</p><p>More.</p></dd></dl>',
        "<pre>f(x)</pre><p>Says.</p>",
    ),
    "a section": (
        '<section id="p"><h2>T</h2><p>First.</p><p>Next.</p></section>',
        '<div class="preview-title">T</div><p>First.</p>',
    ),
    "nothing to see": ('<p id="p">only a place</p>', ""),
}


@pytest.mark.parametrize(("html", "expected"), PIECES.values(), ids=PIECES)
def test_a_link_shows_what_it_means(html: str, expected: str) -> None:
    place = BeautifulSoup(html, "html.parser").find(id="p")
    assert previews.piece(place, "book/one/first") == expected


def test_a_long_box_is_cut_between_its_blocks() -> None:
    blocks = "".join(f"<p>{'word ' * 100}{number}</p>" for number in range(7))
    box = BeautifulSoup(f'<div class="proof admonition" id="p">{blocks}</div>', "html.parser")
    shown = BeautifulSoup(previews.piece(box.find(id="p"), "book/x"), "html.parser")
    assert [p.get_text()[-1] for p in shown.select("p")] == ["0", "1", "…"]
