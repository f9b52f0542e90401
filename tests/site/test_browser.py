"""The pages in a real browser: nothing fails, nothing overflows, nothing is left unset."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from .conftest import PAGES

WIDTHS = (360, 1440)
THEMES = ("light", "dark")

# Resolve when the page is loaded, MathJax has set every formula, and our script has run.
SETTLED = """
const done = arguments[arguments.length - 1];
function settle() {
  const math = window.MathJax && window.MathJax.startup && window.MathJax.startup.promise;
  Promise.resolve(math)
    .then(() => document.fonts.ready)
    .then(() => setTimeout(() => done(true), 60));
}
if (document.readyState === "complete") {
  settle();
} else {
  window.addEventListener("load", settle);
}
"""

# What is wrong with the page as it stands, as a list of sentences.
INSPECT = r"""
const wrong = [];
const root = document.documentElement, width = root.clientWidth;
if (root.scrollWidth > width) {
  const wide = [...document.querySelectorAll(".bd-article *")]
    .filter((e) => e.getBoundingClientRect().right > width + 1 && !scrolls(e)).slice(0, 5)
    .map((e) => e.tagName + "." + e.className + " " + e.textContent.slice(0, 40));
  wrong.push(`the page scrolls sideways: ${root.scrollWidth} > ${width}: ${wide.join(" | ")}`);
}
function scrolls(element) {
  for (let e = element.parentElement; e && e !== document.body; e = e.parentElement) {
    if (getComputedStyle(e).overflowX !== "visible") { return true; }
  }
  return false;
}
const words = "begin|end|frac|sum|prod|log|exp|math[a-z]+|partial|left|right|text|top|ell";
const tex = new RegExp(
  String.raw`\$\$|\\[()[\]]|\\(${words}|in|le|ge)\b|\$[^$]*[\\^_{}][^$]*\$`
);
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const parent = node.parentElement;
  if (!parent.closest("pre, code, script, style, noscript, template, mjx-container, textarea")
      && tex.test(node.textContent)) {
    wrong.push(`TeX is left unset: ${node.textContent.trim().slice(0, 80)}`);
  }
}
for (const box of document.querySelectorAll(".math")) {
  if (!box.querySelector("mjx-container")) {
    wrong.push(`a formula is not set: ${box.textContent.slice(0, 60)}`);
  }
}
for (const error of document.querySelectorAll("mjx-merror, [data-mjx-error]")) {
  wrong.push(`MathJax reports: ${error.getAttribute("data-mjx-error") || error.textContent}`);
}
for (const formula of document.querySelectorAll(".bd-article mjx-container")) {
  const box = formula.closest(".equation-body, .wide-math") || formula;
  const place = box.getBoundingClientRect();
  if (place.width && place.right > width + 1 && !scrolls(box)) {
    wrong.push(`a formula leaves the page: ${formula.textContent.slice(0, 40)}`);
  }
}
for (const number of document.querySelectorAll(".equation-number")) {
  const place = number.getBoundingClientRect();
  if (place.width && (place.left < 0 || place.right > width + 1)) {
    wrong.push(`an equation number leaves the page: ${number.textContent}`);
  }
}
for (const picture of document.querySelectorAll(".bd-article img")) {
  if (!picture.complete || picture.naturalWidth === 0) {
    wrong.push(`a picture is not shown: ${picture.src}`);
  }
}
function light(color) {
  const [r, g, b] = color.match(/[\d.]+/g).map(Number);
  return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
}
const ground = light(getComputedStyle(document.body).backgroundColor);
const writing = document.querySelector("main p, main h1") || document.body;
const ink = light(getComputedStyle(writing).color);
if (Math.abs(ground - ink) < 0.5) {
  wrong.push(`text and ground are too close: ${ink}, ${ground}`);
}
if ((root.dataset.theme === "dark") !== (ground < 0.5)) {
  wrong.push(`theme ${root.dataset.theme} has a ground of lightness ${ground}`);
}
return wrong;
"""


def resize(browser: webdriver.Chrome, width: int) -> None:
    """Give the page the width of a phone or a desk."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def choose_theme(browser: webdriver.Chrome, theme: str) -> None:
    """Set the theme before any script of the page runs, as a returning reader has it."""
    store = f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}');"
    source = {"source": f"try {{ {store} }} catch (error) {{}}"}
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", source)
    chosen.append(script["identifier"])


chosen: list[str] = []


def forget_theme(browser: webdriver.Chrome) -> None:
    """Take the chosen themes back, so that a page can be switched by hand."""
    while chosen:
        script = {"identifier": chosen.pop()}
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def visit(browser: webdriver.Chrome, address: str, width: int, theme: str = "light") -> None:
    """Open a page and wait until it stands still."""
    forget_theme(browser)
    choose_theme(browser, theme)
    resize(browser, width)
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(address)
    browser.execute_async_script(SETTLED)


def complaints(browser: webdriver.Chrome, server: str) -> list[str]:
    """List console errors, failed requests, and requests to other hosts since the visit began."""
    found = [
        f"console: {entry['message']}"
        for entry in browser.get_log("browser")
        if entry["level"] == "SEVERE"
    ]
    host, addresses = urlsplit(server).netloc, {}
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        method, details = message["method"], message["params"]
        if method == "Network.requestWillBeSent":
            address = details["request"]["url"]
            addresses[details["requestId"]] = address
            parts = urlsplit(address)
            if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != host:
                found.append(f"request to another host: {address}")
        elif method == "Network.responseReceived" and details["response"]["status"] >= 400:
            found.append(f"{details['response']['status']}: {details['response']['url']}")
        elif method == "Network.loadingFailed" and not details.get("canceled"):
            address = addresses.get(details["requestId"], "?")
            found.append(f"failed ({details['errorText']}): {address}")
    return found


def switch(browser: webdriver.Chrome, theme: str) -> None:
    """Change the theme of the open page as its button does."""
    browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)


def test_chapters_with_equations_are_those_of_the_ledger(ledger: dict[str, Any]) -> None:
    marked = [c["chapter"] for c in ledger["chapters"] if c["equations"]]
    assert marked
    assert {f"{name}.html" for name in marked} == set(LESSONS)


# Chapters lie in the folder of their part, and each verifies something.
LESSONS = [
    name
    for name in PAGES
    if name.count("/") == 2 and not name.startswith(("_", "book/api/", "book/sources/"))
] or PAGES


@pytest.mark.parametrize("query", ["cross-entropy", "companion.core"])
def test_search_finds(query: str, site: Path, browser: webdriver.Chrome, server: str) -> None:
    visit(browser, f"{server}search.html?q={query}", 1440)
    found = WebDriverWait(browser, 20).until(
        lambda driver: driver.find_elements(By.CSS_SELECTOR, "#search-results ul.search li a")
    )
    addresses = [link.get_attribute("href") for link in found]
    assert any("/book/" in address for address in addresses)
    assert complaints(browser, server) == []


def test_search_opens_from_a_page(site: Path, browser: webdriver.Chrome, server: str) -> None:
    visit(browser, f"{server}book/preface.html", 360)
    buttons = browser.find_elements(By.CSS_SELECTOR, "button.search-button, .search-button__button")
    visible = [button for button in buttons if button.is_displayed()]
    assert visible, "a phone shows no search button"
    visible[0].click()
    field = WebDriverWait(browser, 10).until(
        lambda driver: next(
            (f for f in driver.find_elements(By.CSS_SELECTOR, "input[name=q]") if f.is_displayed()),
            None,
        )
    )
    field.send_keys("entropy\n")
    WebDriverWait(browser, 20).until(lambda driver: "search.html" in driver.current_url)


def test_theme_switch_reaches_light_and_dark(
    site: Path, browser: webdriver.Chrome, server: str
) -> None:
    visit(browser, f"{server}book/preface.html", 1440)
    button = next(
        b
        for b in browser.find_elements(By.CSS_SELECTOR, ".theme-switch-button")
        if b.is_displayed()
    )
    seen = set()
    for _ in range(3):
        button.click()
        seen.add(browser.execute_script("return document.documentElement.dataset.mode"))
    assert {"light", "dark"} <= seen


def test_contents_open_on_a_phone(site: Path, browser: webdriver.Chrome, server: str) -> None:
    visit(browser, f"{server}book/preface.html", 360)
    toggle = next(
        b for b in browser.find_elements(By.CSS_SELECTOR, ".primary-toggle") if b.is_displayed()
    )
    toggle.click()
    chapters = WebDriverWait(browser, 10).until(
        lambda driver: [
            item.text
            for item in driver.find_elements(By.CSS_SELECTOR, "nav.bd-docs-nav li.toctree-l1 a")
            if item.is_displayed()
        ]
    )
    assert [name for name in chapters if name.startswith("34.")]


def test_front_page_opens_the_preface(site: Path, browser: webdriver.Chrome, server: str) -> None:
    browser.get(server)
    WebDriverWait(browser, 10).until(lambda d: d.current_url.endswith("book/preface.html"))


def test_pages_open_from_the_disk(
    ledger: dict[str, Any], site: Path, browser: webdriver.Chrome
) -> None:
    chapter = ledger["equations"][0]["chapter"]
    visit(browser, (site / f"{chapter}.html").resolve().as_uri(), 1440)
    assert browser.execute_script(INSPECT) == []
