"""What helps to learn: quick questions with folded answers, and exercises with their levels."""

import json
import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from .test_browser import LESSONS, visit

Soups = dict[str, BeautifulSoup]


@pytest.mark.parametrize("name", LESSONS)
def test_a_chapter_asks_and_folds_its_answers(name: str, soups: Soups) -> None:
    questions = soups[name].select("div.quick-questions > ol > li")
    assert len(questions) >= 6
    for question in questions:
        asked, fold = question.find_all(recursive=False)
        assert asked.get_text().rstrip().endswith("?")
        assert (fold.name, fold["class"]) == ("details", ["answer"])
        assert not fold.has_attr("open")
        assert fold.select("p")
    # They end a section: what follows a box is a heading, or the end.
    for box in soups[name].select("div.quick-questions"):
        assert {tag.name for tag in box.find_next_siblings()} <= {"section", "span"}


@pytest.mark.parametrize("name", LESSONS)
def test_each_exercise_has_a_level_and_a_solution(name: str, soups: Soups) -> None:
    heads = soups[name].select("div.exercise > p.admonition-title")
    titles = [" ".join(tag.get_text().split()) for tag in heads]
    assert 3 <= len(titles) <= 5
    for title in titles:
        assert re.fullmatch(r"Exercise \d+\.\d+ \((.+ · )?level [123] of 3\)", title)
    assert len(soups[name].select("div.solution")) == len(titles)


def test_the_preface_says_what_the_levels_mean(soups: Soups) -> None:
    text = " ".join(soups["book/preface.html"].find("article").get_text().split())
    for level in (1, 2, 3):
        assert f"Level {level}" in text


@pytest.mark.parametrize("name", LESSONS[:1])
def test_an_answer_opens_by_keyboard(
    name: str, site: Path, browser: webdriver.Chrome, server: str
) -> None:
    visit(browser, server + name, 360)
    fold = browser.find_element(By.CSS_SELECTOR, "details.answer")
    assert not fold.find_element(By.TAG_NAME, "p").is_displayed()
    fold.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    assert fold.find_element(By.TAG_NAME, "p").is_displayed()


@pytest.mark.parametrize("name", LESSONS)
def test_the_notebook_has_every_question_with_a_folded_answer(
    name: str, site: Path, soups: Soups
) -> None:
    path = site / "_sources" / name.replace(".html", ".ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    asked = len(soups[name].select("div.quick-questions > ol > li"))
    assert text.count("**Quick question.**") == asked
    assert text.count("<summary>Answer</summary>") == asked
