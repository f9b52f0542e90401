"""The pages for those who do not see them, or use no mouse: what axe finds in both themes."""

from importlib.resources import files
from pathlib import Path

import pytest
from selenium import webdriver

from .conftest import PAGES
from .test_browser import THEMES, visit

AXE = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
FOUND = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ["violations"], ...arguments[0]}).then(
  (results) => done(results.violations
    .filter((v) => ["serious", "critical"].includes(v.impact))
    .flatMap((v) => v.nodes.slice(0, 5).map(
      (n) => `${v.id}, ${v.nodes.length} times: ${n.html.slice(0, 160)} ${n.target.join(" ")}`))),
  (error) => done([String(error)]));
"""


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(
    name: str, site: Path, browser: webdriver.Chrome, server: str
) -> None:
    visit(browser, server + name, 1440, THEMES[0])
    browser.execute_script(AXE)
    # Colors are judged as they stand, not on their way from one theme to the other.
    browser.execute_script(
        "const style = document.createElement('style');"
        "style.textContent = '* { transition: none !important; }'; document.head.append(style);"
    )
    wrong = [f"{THEMES[0]}: {what}" for what in browser.execute_async_script(FOUND, {})]
    # Nothing but colors depends on the theme.
    browser.execute_script("document.documentElement.dataset.theme = arguments[0]", THEMES[1])
    colors = {"runOnly": ["color-contrast"]}
    wrong += [f"{THEMES[1]}: {what}" for what in browser.execute_async_script(FOUND, colors)]
    assert wrong == []
