"""Quick questions: a numbered list becomes questions with folded answers, or the build fails."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bs4 import BeautifulSoup, Tag

EXTENSION = Path(__file__).resolve().parents[2] / "book" / "_ext"
CONF = f"""
import sys
sys.path.insert(0, {str(EXTENSION)!r})
extensions = ["myst_parser", "sphinx_exercise", "companion_book.questions"]
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

EXERCISE = """
```{exercise} Why (and how)? · level 2 of 3
:label: ex-a
Show it.
```

```{solution} ex-a
:class: dropdown
Done.
```
"""

Build = Callable[..., tuple[Tag, str]]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Render a page with this content of the directive, and return it with what was warned."""

    def render(content: str, after: str = "") -> tuple[Tag, str]:
        (tmp_path / "conf.py").write_text(CONF, encoding="utf-8")
        page = f"# Title\n\n## Section\n\n```{{quick-questions}}\n{content}\n```\n{after}"
        (tmp_path / "index.md").write_text(page, encoding="utf-8")
        out = tmp_path / "out"
        command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(tmp_path), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        html = (out / "index.html").read_text(encoding="utf-8")
        return BeautifulSoup(html, "html.parser").select_one("div.body"), done.stderr

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


def test_a_solution_is_named_by_the_number_of_its_exercise(build: Build) -> None:
    page, warned = build(GOOD, EXERCISE)
    assert warned == ""
    titles = [" ".join(tag.get_text().split()) for tag in page.select("p.admonition-title")]
    assert titles == ["Exercise 1 (Why (and how)? · level 2 of 3)", "Solution to Exercise 1"]


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
