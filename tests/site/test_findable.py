"""From one place to the next: previews of links, uses, the index, the sources, and the footer."""

import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from bs4 import BeautifulSoup
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from .test_browser import LESSONS, complaints, visit

Soups = dict[str, BeautifulSoup]
CHAPTER = "book/transformer/attention.html"
LIMIT = 2_000_000  # bytes of a chapter's first visit, uncompressed; the home page has 1.5 million


# --- previews -----------------------------------------------------------------------------------


def shown(browser: webdriver.Chrome) -> list[WebElement]:
    """Return the previews in view, of which there should be at most one."""
    return [p for p in browser.find_elements(By.CSS_SELECTOR, ".book-preview") if p.is_displayed()]


def preview(browser: webdriver.Chrome) -> WebElement:
    """Wait for the preview."""
    WebDriverWait(browser, 20).until(lambda driver: len(shown(driver)) == 1)
    return shown(browser)[0]


def link(browser: webdriver.Chrome, selector: str) -> WebElement:
    """Find a link of the article, and bring it to the middle of the window."""
    found = browser.find_element(By.CSS_SELECTOR, f".bd-article {selector}")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    return found


def point_at(browser: webdriver.Chrome, element: WebElement) -> None:
    """Move the mouse to the middle of an element."""
    box = browser.execute_script(
        "const box = arguments[0].getClientRects()[0];"
        "return [box.x + box.width / 2, box.y + box.height / 2];",
        element,
    )
    # From elsewhere, so that the mouse enters the element.
    for x, y in ((1, 1), box):
        event = {"type": "mouseMoved", "x": x, "y": y, "pointerType": "mouse"}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)


def tap(browser: webdriver.Chrome, element: WebElement) -> None:
    """Touch the middle of an element."""
    box = browser.execute_script(
        "const box = arguments[0].getClientRects()[0];"
        "return [box.x + box.width / 2, box.y + box.height / 2];",
        element,
    )
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        points = [{"x": box[0], "y": box[1]}]
        start = {"type": "touchStart", "touchPoints": points}
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", start)
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    finally:
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_a_term_shows_its_definition_and_both_chinese_forms(
    site: Path, browser: webdriver.Chrome, server: str
) -> None:
    visit(browser, server + CHAPTER, 1440)
    term = link(browser, "a.term[href$='#term-softmax'], a.term")
    point_at(browser, term)
    box = preview(browser)
    assert box.get_attribute("role") == "tooltip"
    assert term.get_attribute("aria-describedby") == box.get_attribute("id")
    for language in ("zh-Hans", "zh-Hant"):
        assert re.search(
            r"[\u3400-\u9fff]", box.find_elements(By.CSS_SELECTOR, f"[lang={language}]")[1].text
        )
    assert term.text.lower()[:4] in box.text.lower()
    # It stays while the mouse is on it, and goes when the mouse leaves.
    point_at(browser, box)
    time.sleep(0.6)
    assert len(shown(browser)) == 1
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": 2, "y": 2})
    WebDriverWait(browser, 10).until(lambda driver: not shown(driver))
    assert term.get_attribute("aria-describedby") is None
    assert complaints(browser, server) == []


@pytest.mark.parametrize(
    ("selector", "inside"),
    [
        ("p a.reference[href^='#equation-']", ".equation mjx-container"),
        ("p a.reference[href*='.html#equation-']", ".equation mjx-container"),
        ("p a.reference[href^='#fig-']", "figure .drawing svg.panel"),
        ("p a[href*='api/'][href*='#companion.']", "pre"),
    ],
    ids=["equation", "equation of another chapter", "figure", "function"],
)
def test_a_link_shows_what_it_means(
    selector: str, inside: str, soups: Soups, browser: webdriver.Chrome, server: str
) -> None:
    # The first chapter that has such a link in its own text.
    name = next(n for n in LESSONS if in_text(soups[n], selector))
    visit(browser, server + name, 1440)
    href = str(in_text(soups[name], selector)[0]["href"])
    point_at(browser, link(browser, f"{selector}[href='{href}']"))
    assert preview(browser).find_elements(By.CSS_SELECTOR, inside)
    assert complaints(browser, server) == []


def in_text(soup: BeautifulSoup, selector: str) -> list[Any]:
    """Return the links of a page's own text, which are not folded."""
    article = soup.find("article")
    return [tag for tag in article.select(selector) if not tag.find_parent("details")]


def test_a_citation_shows_the_work(
    soups: Soups, site: Path, browser: webdriver.Chrome, server: str
) -> None:
    visit(browser, server + CHAPTER, 1440)
    works = {str(tag["id"]) for tag in soups[CHAPTER].select("div.citation[id]")}
    cited = next(
        str(a["href"])
        for a in soups[CHAPTER].select("article p a.reference")
        if str(a["href"]).removeprefix("#") in works
    )
    point_at(browser, link(browser, f"p a[href='{cited}']"))
    assert re.search(r"\b(19|20)\d\d\b", preview(browser).text)


def test_the_keyboard_opens_a_preview_and_escape_closes_it(
    site: Path, browser: webdriver.Chrome, server: str
) -> None:
    visit(browser, server + CHAPTER, 1440)
    term = link(browser, "a.term")
    # Focus that comes by the keyboard: from the element before, by Tab.
    browser.execute_script(
        "const stop = document.createElement('button'); stop.textContent = 'before';"
        "arguments[0].before(stop); stop.focus();",
        term,
    )
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element == term
    assert term.get_attribute("href").rpartition("#term-")[1]
    preview(browser)
    term.send_keys(Keys.ESCAPE)
    WebDriverWait(browser, 10).until(lambda driver: not shown(driver))
    assert browser.switch_to.active_element == term, "the focus stays where it was"


def test_a_finger_taps_once_to_see_and_again_to_go(
    site: Path, browser: webdriver.Chrome, server: str
) -> None:
    visit(browser, server + CHAPTER, 360)
    term = link(browser, "a.term")
    tap(browser, term)
    box = preview(browser)
    assert browser.current_url.endswith(CHAPTER)
    place = box.rect
    assert place["x"] >= 0
    assert place["x"] + place["width"] <= 360
    tap(browser, term)
    WebDriverWait(browser, 10).until(lambda driver: "glossary.html#term-" in driver.current_url)


def test_previews_open_from_the_disk(site: Path, browser: webdriver.Chrome) -> None:
    visit(browser, (site / CHAPTER).resolve().as_uri(), 1440)
    point_at(browser, link(browser, "a.term"))
    assert re.search(r"[\u3400-\u9fff]", preview(browser).text)


@pytest.mark.parametrize("name", LESSONS)
def test_the_links_of_a_chapter_have_previews(name: str, site: Path, soups: Soups) -> None:
    """What a page offers is there: each term, equation, work and figure that its text links to."""
    known: dict[str, dict[str, str]] = {}
    missing = []
    for tag in soups[name].select("article p a.internal[href*='#']"):
        path, _, anchor = str(tag["href"]).partition("#")
        page = (Path(name).parent / path).as_posix() if path else name
        page = re.sub(r"[^/]+/\.\./", "", page).removesuffix(".html")
        if not anchor.startswith(("term-", "equation-", "fig-", "companion.")):
            continue
        if page not in known:
            script = (site / "_static/previews" / f"{page}.js").read_text(encoding="utf-8")
            pieces = re.fullmatch(r"bookPreviews\.add\(\"[^\"]+\", (.*)\);\n", script)
            assert pieces is not None
            known[page] = json.loads(pieces[1])
        if not known[page].get(unquote(anchor)):
            missing.append(str(tag["href"]))
    assert known
    assert missing == []


def test_the_previews_of_a_page_are_light(site: Path) -> None:
    sizes = {
        path.relative_to(site / "_static/previews").as_posix(): path.stat().st_size
        for path in (site / "_static/previews").rglob("*.js")
    }
    assert sizes
    assert {name: size for name, size in sizes.items() if size > 400_000} == {}


# --- terms and uses -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LESSONS)
def test_a_chapter_links_each_of_its_terms_once(name: str, soups: Soups) -> None:
    terms = [str(tag["href"]).partition("#")[2] for tag in soups[name].select("article a.term")]
    assert len(terms) >= 15
    assert len(set(terms)) == len(terms)


def test_an_equation_leads_to_where_it_is_used(
    soups: Soups, browser: webdriver.Chrome, server: str
) -> None:
    used = soups[CHAPTER].select("details.used-in")
    assert used
    assert any("Its check runs" in tag.get_text() for tag in used)
    assert any("Referred to in" in tag.get_text() for tag in used)
    for width in (360, 1440):
        visit(browser, server + CHAPTER, width)
        for number, summary in enumerate(
            browser.find_elements(By.CSS_SELECTOR, ".bd-article .used-in > summary")[:7]
        ):
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", summary)
            summary.send_keys(Keys.ENTER)
            box = browser.find_elements(By.CSS_SELECTOR, ".bd-article .used-in > div")[number]
            assert box.is_displayed()
            place = browser.execute_script("return arguments[0].getBoundingClientRect()", box)
            assert place["left"] >= 0
            assert place["right"] <= width
            summary.send_keys(Keys.ENTER)


def test_chapters_and_the_reference_lead_to_each_other(soups: Soups) -> None:
    line = soups["book/foundations/cross_entropy.html"].select("ul.used-in-list a")
    assert any("optimization" in str(a["href"]) or "language" in str(a["href"]) for a in line)
    reference = soups["book/api/foundations/cross_entropy.html"]
    told = " ".join(tag.get_text() for tag in reference.select(".used-in-reference"))
    assert "Used in: Chapter 3" in told
    assert re.search(r"Checked with: \(3\.\d+\)", told)


# --- index and sources --------------------------------------------------------------------------


def test_the_index_has_terms_theorems_definitions_and_functions(soups: Soups, site: Path) -> None:
    page = soups["book/alphabetical.html"].find("article")
    entries = [item.get_text() for item in page.select("ul.index-entries li")]
    glossary = (site.parents[1] / "book/_data/glossary.tsv").read_text(encoding="utf-8")
    for row in glossary.splitlines()[1:]:
        english, simplified, *_ = row.split("\t")
        assert any(e.startswith(english) and simplified in e for e in entries), english
    assert any("Descent lemma, theorem, 5" in entry for entry in entries)
    assert any(re.match(r"softmax, definition \(3\.\d+\)", entry) for entry in entries)
    assert any(entry == "cross_entropy, foundations.cross_entropy" for entry in entries)
    # In the order of the alphabet, under its letters.
    letters = [heading.get_text()[0] for heading in page.select("h2")]
    assert letters == sorted(letters)
    assert len(letters) >= 20
    # The number of a chapter leads to the place where it uses the term.
    uses = page.select("a[href*='#use-']")
    assert len(uses) > 300


def test_each_source_document_has_its_sections_beside_our_chapters(soups: Soups) -> None:
    for number, sections in enumerate((7, 9, 14, 13, 9)):
        page = soups[f"book/sources/s{number}.html"].find("article")
        rows = page.select("table.source-sections tbody tr")
        assert len(rows) == sections
        for row in rows:
            assert row.select_one("td a[href^='#section-']")
            assert row.select("td")[2].get_text(strip=True)
        assert len(page.select("table.wide")) == sections
    errata = soups["book/sources.html"].select("table.errata td a[href*='sources/s']")
    assert len(errata) >= 50


# --- the foot of a page -------------------------------------------------------------------------


def test_every_page_names_its_license_and_the_day_of_its_build(soups: Soups) -> None:
    for name, soup in soups.items():
        licenses = {str(a["href"]) for a in soup.select("footer a[rel=license]")}
        assert len(licenses) == 2, name
        day = soup.select_one("footer time")["datetime"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", str(day))


# --- weight -------------------------------------------------------------------------------------


def test_a_chapter_is_light_and_soon_there(
    site: Path, browser: webdriver.Chrome, server: str
) -> None:
    browser.execute_cdp_cmd("Network.clearBrowserCache", {})
    visit(browser, server + CHAPTER, 1440)
    total = 0
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.loadingFinished":
            total += message["params"]["encodedDataLength"]
    # The server of these tests does not compress.
    assert 200_000 < total <= LIMIT
    # The text can be read before its formulas are set.
    painted = browser.execute_script(
        "return performance.getEntriesByName('first-contentful-paint')[0].startTime"
    )
    assert painted <= 2000
