"""Quick questions: a numbered list becomes questions with folded answers, or the build fails."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from bs4 import BeautifulSoup, Tag
from sphinx.application import Sphinx

EXTENSION = Path(__file__).resolve().parents[2] / "book" / "_ext"
CONF = f"""
import sys
sys.path.insert(0, {str(EXTENSION)!r})
extensions = ["myst_parser", "companion_book.questions"]
html_theme = "basic"
myst_enable_extensions = ["dollarmath"]
"""
GOOD = """
1. Which sign has
   $-x$?

   A minus, if $x>0$.

2. And *zero*?

   None.

   It is neither.
"""

Build = Callable[[str], tuple[Tag, str]]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Render a page with this content of the directive, and return it with what was warned."""

    def render(content: str) -> tuple[Tag, str]:
        (tmp_path / "conf.py").write_text(CONF, encoding="utf-8")
        page = f"# Title\n\n## Section\n\n```{{quick-questions}}\n{content}\n```\n"
        (tmp_path / "index.md").write_text(page, encoding="utf-8")
        warned = io.StringIO()
        out = tmp_path / "out"
        Sphinx(tmp_path, tmp_path, out, out / "trees", "html", status=None, warning=warned).build()
        html = (out / "index.html").read_text(encoding="utf-8")
        return BeautifulSoup(html, "html.parser").select_one("div.body"), warned.getvalue()

    return render


def test_each_answer_is_folded_below_its_question(build: Build) -> None:
    page, warned = build(GOOD)
    assert warned == ""
    box = page.select_one("div.quick-questions")
    assert box.select_one(".quick-questions-title").get_text() == "Quick questions"
    asked = [item.select_one("p") for item in box.select("ol > li")]
    assert [" ".join(one.get_text().split()) for one in asked] == [
        r"Which sign has \(-x\)?",
        "And zero?",
    ]
    folds = box.select("ol > li > details.answer")
    assert not any(fold.has_attr("open") for fold in folds)
    assert [fold.summary.get_text() for fold in folds] == [
        "Answer to question 1",
        "Answer to question 2",
    ]
    assert [len(fold.select("p")) for fold in folds] == [1, 2]
    assert "A minus" not in asked[0].get_text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("1. Why?\n\nBecause.", "one numbered list, and nothing else"),
        ("- Why?\n\n  Because.", "one numbered list, and nothing else"),
        ("1. Why?\n\n   Because.\n\n2. How?", "question 2 has no answer"),
        ("", "Content block expected"),
    ],
)
def test_what_is_no_question_with_an_answer_is_refused(
    content: str, said: str, build: Build
) -> None:
    _, warned = build(content)
    assert said in warned
