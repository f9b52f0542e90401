"""What a reader finds: an inviting home, a search that ranks, light pages, Chinese as such."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from .conftest import PAGES
from .test_browser import LESSONS, complaints, resize, visit

Soups = dict[str, BeautifulSoup]


# --- home ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [360, 1440])
def test_home_begins_with_a_picture_and_one_live_equation(
    width: int, site: Path, browser: webdriver.Chrome, server: str
) -> None:
    visit(browser, f"{server}book/preface.html", width)
    pictures = browser.find_elements(By.CSS_SELECTOR, "svg.home-picture")
    (picture,) = [each for each in pictures if each.is_displayed()]
    assert picture.get_attribute("aria-label")
    # On a phone as well the picture's letters are at least nine pixels high.
    sizes = browser.execute_script(
        "const box = arguments[0].getBoundingClientRect(), scale = box.width /"
        " arguments[0].viewBox.baseVal.width;"
        "return [...arguments[0].querySelectorAll('text')]"
        ".map((t) => parseFloat(getComputedStyle(t).fontSize) * scale);",
        picture,
    )
    assert min(sizes) >= 9
    mark = browser.find_element(By.CSS_SELECTOR, ".live-equation a.check")
    assert "#check-eq-ce-grad" in str(mark.get_attribute("href"))
    assert "Verified" in browser.find_element(By.CSS_SELECTOR, ".live-told").text
    doors = browser.find_elements(By.CSS_SELECTOR, ".doors a")
    assert len(doors) == 3
    commands = browser.find_element(By.CSS_SELECTOR, "div.highlight-shell, div.highlight-sh")
    assert doors[0].location["y"] < commands.location["y"]


def test_the_map_tells_how_long_each_chapter_takes(soups: Soups) -> None:
    times = [tag.get_text() for tag in soups["book/preface.html"].select(".book-page-times")]
    assert len(times) == len(LESSONS) + 1, "the chapters, and the page of benchmarks"
    for told in times:
        minutes, seconds = re.fullmatch(r"(\d+) min, runs in (\d+) s", told).groups()
        assert 5 <= int(minutes) <= 150
        # The home page promises less than a minute.
        assert int(seconds) < 60


def test_courses_link_their_chapters_and_tell_the_time(soups: Soups) -> None:
    semester, week = soups["book/preface.html"].select("table.reading-course")
    assert len(semester.select("tbody tr")) == 14
    assert len(week.select("tbody tr")) == 7
    for row in week.select("tbody tr"):
        assert row.select("td:nth-of-type(2) a[href]")
        assert re.fullmatch(r"(\d+ h)?( ?\d+ min)?", row.select("td")[2].get_text(strip=True))


@pytest.mark.parametrize("name", LESSONS)
def test_a_chapter_says_what_it_takes_and_ends_with_its_formulas(
    name: str, soups: Soups, ledger: dict[str, Any]
) -> None:
    article = soups[name].find("article")
    facts = article.select_one(".chapter-facts").get_text(" ")
    assert re.search(r"Reading about \d+ minutes", " ".join(facts.split()))
    assert re.search(r"Runs in \d+ s of one core \(.+\)", " ".join(facts.split()))
    assert not article.select(".chapter-facts a.topic"), "codes of the sources stand at the end"
    assert article.select(".chapter-sources a.topic")
    mine = [e for e in ledger["equations"] if f"{e['chapter']}.html" == name]
    rows = article.select("table.formulas tbody tr")
    assert len(rows) == len(mine)
    for row, equation in zip(rows, mine, strict=True):
        assert row.select_one("a").get_text() == f"({equation['number']})"
        assert row.select_one(".math").get_text(strip=True)
        assert row.select_one("a.check")
    # The list stands after the text: no section begins below it.
    last = article.select("section")[-1]
    assert last.sourceline <= article.select_one("table.formulas").sourceline


# --- weight ---------------------------------------------------------------------------------------


def test_the_first_visit_is_light(site: Path, browser: webdriver.Chrome, server: str) -> None:
    browser.execute_cdp_cmd("Network.clearBrowserCache", {})
    visit(browser, f"{server}book/preface.html", 1440)
    total = 0
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.loadingFinished":
            total += message["params"]["encodedDataLength"]
    # The server of these tests does not compress.
    assert 200_000 < total <= 1_500_000


def test_no_page_loads_the_search_index_but_the_search(soups: Soups) -> None:
    for name, soup in soups.items():
        scripts = " ".join(str(tag.get("src")) for tag in soup.find_all("script"))
        assert ("searchindex" in scripts) == (name == "search.html"), name
        assert "fontawesome" not in scripts


# --- search ---------------------------------------------------------------------------------------


def found(browser: webdriver.Chrome, server: str, query: str) -> list[Any]:
    """Ask the search and return the results."""
    visit(browser, f"{server}search.html?q={query}", 1440)
    WebDriverWait(browser, 30).until(
        lambda driver: "finished" in driver.find_element(By.CSS_SELECTOR, ".search-summary").text
    )
    assert complaints(browser, server) == []
    return browser.find_elements(By.CSS_SELECTOR, "#search-results ul.search > li")


@pytest.mark.parametrize(
    ("query", "home"),
    [
        ("perplexity", "foundations/language_models"),
        ("cross-entropy", "foundations/cross_entropy"),
        ("attention", "transformer/attention"),
        ("注意力", "transformer/attention"),
        ("KV cache", "transformer/multi_head"),
    ],
)
def test_the_chapter_that_defines_a_term_comes_first(
    query: str, home: str, site: Path, browser: webdriver.Chrome, server: str
) -> None:
    results = found(browser, server, query)
    first = results[0].find_element(By.TAG_NAME, "a").get_attribute("href")
    assert f"/book/{home}.html" in str(first)


def test_chinese_is_found_outside_of_the_glossary(
    site: Path, browser: webdriver.Chrome, server: str
) -> None:
    pages = {
        str(each.find_element(By.TAG_NAME, "a").get_attribute("href")).split("?")[0]
        for each in found(browser, server, "注意力")
    }
    assert len([page for page in pages if "glossary" not in page]) >= 3


def test_a_snippet_shows_the_article_alone(
    site: Path, browser: webdriver.Chrome, server: str
) -> None:
    found(browser, server, "perplexity")
    WebDriverWait(browser, 30).until(
        lambda driver: driver.find_elements(By.CSS_SELECTOR, "#search-results p.context")
    )
    text = browser.find_element(By.CSS_SELECTOR, "#search-results").text
    for chrome in ("Contents", "Print to PDF", "Verified equations", "Show code"):
        assert chrome not in text


def test_a_snippet_has_no_letters_of_drawings(
    site: Path, browser: webdriver.Chrome, server: str
) -> None:
    found(browser, server, "perplexity")
    letters, snippet = browser.execute_async_script(
        """const done = arguments[1];
        fetch(arguments[0]).then((answer) => answer.text()).then((html) => {
          const page = new DOMParser().parseFromString(html, "text/html");
          const drawing = page.querySelector(".drawing").textContent.replace(/\\s+/g, " ").trim();
          done([drawing, Search.htmlToText(html)]);
        });""",
        f"{server}book/foundations/language_models.html",
    )
    assert len(letters) > 20
    assert letters not in snippet
    assert "perplexity" in snippet


# --- ledger -------------------------------------------------------------------------------------


def test_the_ledger_shows_formulas_and_can_be_filtered(
    site: Path, ledger: dict[str, Any], browser: webdriver.Chrome, server: str
) -> None:
    visit(browser, f"{server}book/ledger.html", 1440)

    def shown() -> int:
        return sum(
            1
            for row in browser.find_elements(By.CSS_SELECTOR, "table.ledger tbody tr")
            if row.is_displayed()
        )

    every = ledger["equations"]
    assert shown() == len(every)
    assert len(browser.find_elements(By.CSS_SELECTOR, "table.ledger mjx-container")) >= len(every)
    controls = browser.find_elements(By.CSS_SELECTOR, ".ledger-filter select")
    chapter, kind, source = (Select(control) for control in controls)
    source.select_by_value("read")
    assert shown() == sum(e["read_from_the_page"] for e in every)
    kind.select_by_value("gradient")
    both = [e for e in every if e["read_from_the_page"] and "gradient" in e["kinds"]]
    assert shown() == len(both)
    chapter.select_by_index(3)
    third = ledger["chapters"][2]["chapter"]
    assert shown() == sum(e["chapter"] == third for e in both)
    for control in (chapter, kind, source):
        control.select_by_index(0)
    browser.find_element(By.CSS_SELECTOR, ".ledger-filter input").send_keys("eq:ce-grad")
    assert shown() == sum("eq:ce-grad" in e["label"] for e in every)
    told = browser.find_element(By.CSS_SELECTOR, ".ledger-filter output").text
    assert told == f"{shown()} of {len(every)} shown"


def test_the_ledger_is_offered_to_programs(site: Path, ledger: dict[str, Any]) -> None:
    assert json.loads((site / "ledger.json").read_text(encoding="utf-8")) == ledger
    assert all(entry["tex"] for entry in ledger["equations"])


# --- Chinese ------------------------------------------------------------------------------------

HAN = r"[\u3400-\u9fff]"


@pytest.mark.parametrize("name", PAGES)
def test_chinese_text_says_so_and_has_no_gaps(name: str, soups: Soups) -> None:
    article = soups[name].find("article")
    for text in article.find_all(string=re.compile(HAN)) if article else []:
        if text.find_parent(["pre", "code", "script"]) or text.find_parent(class_="math"):
            continue
        spoken = next(tag["lang"] for tag in text.parents if tag.get("lang"))
        assert str(spoken).startswith("zh"), text[:60]
        assert not re.search(rf"{HAN}[ \t]*\n\s*{HAN}", text), text[:60]


# --- beside the pages -----------------------------------------------------------------------------


def test_beside_the_pages_lie_a_text_for_programs_a_404_page_and_the_whole(site: Path) -> None:
    text = (site / "llms.txt").read_text(encoding="utf-8")
    for name in LESSONS:
        assert name in text
    lost = BeautifulSoup((site / "404.html").read_text(encoding="utf-8"), "html.parser")
    assert "no such page" in lost.find("article").get_text()
    with zipfile.ZipFile(site / "site.zip") as archive:
        inside = {entry.removeprefix("llm-math/") for entry in archive.namelist()}
    assert set(PAGES) <= inside
    assert {"index.html", "ledger.json", "searchindex.js"} <= inside


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("book/")] or PAGES)
def test_a_link_to_a_page_shows_a_title_and_a_sentence(name: str, soups: Soups) -> None:
    said = {
        str(tag["property"]): str(tag["content"]) for tag in soups[name].select("meta[property]")
    }
    assert said["og:title"]
    assert len(said["og:description"]) > 20


def test_a_phone_sees_the_filter_within_its_width(
    site: Path, browser: webdriver.Chrome, server: str
) -> None:
    visit(browser, f"{server}book/ledger.html", 360)
    resize(browser, 360)
    for control in browser.find_elements(By.CSS_SELECTOR, ".ledger-filter select"):
        assert control.location["x"] + control.size["width"] <= 360
