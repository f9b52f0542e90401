"""Every page on a phone and on a desk, in both themes; each is opened once at each width.

What is looked for is said in the files of its subject, with tests that it is found where it is.
"""

from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from .conftest import PAGES
from .test_accessible import barriers
from .test_browser import INSPECT, LESSONS, THEMES, complaints, switch, visit
from .test_figures import glaring, unreadable


def standing(browser: webdriver.Chrome, theme: str) -> list[str]:
    """List what does not stand as it should in the theme of the open page."""
    assert browser.execute_script("return document.documentElement.dataset.theme") == theme
    return [f"{theme}: {what}" for what in browser.execute_script(INSPECT)]


def follow_a_mark(browser: webdriver.Chrome) -> list[str]:
    """Click the first mark of a verified equation, and say where it does not lead to its check."""
    mark = browser.find_element(By.CSS_SELECTOR, "a.check")
    assert mark.accessible_name.startswith("Verified: ")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    mark.click()
    hash_, top, bottom, height = browser.execute_script(
        "const cell = document.querySelector('.cell-check:target')"
        " || document.querySelector(':target').closest('.cell-check');"
        "const box = cell.getBoundingClientRect();"
        "return [location.hash, box.top, box.bottom, innerHeight];"
    )
    arrived = hash_.startswith("#check-eq-") and top < height and bottom > 0
    return [] if arrived else [f"the mark leads to {hash_}, from {top} to {bottom} of {height}"]


@pytest.mark.parametrize("name", PAGES)
def test_page_stands_on_a_phone(
    name: str, site: Path, browser: webdriver.Chrome, server: str
) -> None:
    # A phone loads the page in the dark and a desk in the light; the theme is then switched as its
    # button does, because setting all formulas again would show nothing new.
    light, dark = THEMES
    visit(browser, server + name, 360, dark)
    wrong = standing(browser, dark)
    switch(browser, light)
    wrong += standing(browser, light) + complaints(browser, server)
    if name in LESSONS:
        wrong += unreadable(browser) + follow_a_mark(browser)
    assert wrong == []


@pytest.mark.parametrize("name", PAGES)
def test_page_stands_on_a_desk(
    name: str, site: Path, browser: webdriver.Chrome, server: str
) -> None:
    light, dark = THEMES
    visit(browser, server + name, 1440, light)
    wrong = standing(browser, light) + complaints(browser, server)
    switch(browser, dark)
    wrong += standing(browser, dark)
    if name in LESSONS:
        wrong += glaring(browser) + follow_a_mark(browser)
    wrong += [f"{dark}: {what}" for what in barriers(browser, colors=True)]
    switch(browser, light)
    # Nothing of what axe looks for but colors depends on the theme.
    for colors in (True, False):
        wrong += [f"{light}: {what}" for what in barriers(browser, colors=colors)]
    assert wrong == []
