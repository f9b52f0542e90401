"""The pages for those who do not see them, or use no mouse: what axe finds in both themes."""

from importlib.resources import files
from pathlib import Path

from selenium import webdriver

from .conftest import PAGES
from .test_browser import THEMES, switch, visit

AXE = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
FOUND = """
const done = arguments[arguments.length - 1];
const [colors] = arguments;
const options = colors
  ? {runOnly: ["color-contrast"]} : {rules: {"color-contrast": {enabled: false}}};
axe.run(colors ? {include: kindsOfText()} : document, {resultTypes: ["violations"], ...options})
  .then(
    (results) => done(results.violations
      .filter((v) => ["serious", "critical"].includes(v.impact))
      .flatMap((v) => v.nodes.slice(0, 5).map(
        (n) => `${v.id}, ${v.nodes.length} times: ${n.html.slice(0, 160)} ${n.target.join(" ")}`
      ))),
    (error) => done([String(error)]));

// One element for each kind of text: a color, a size, a weight, and all that lies behind. Thousands
// of elements are of a few kinds, and axe takes a millisecond for each.
function kindsOfText() {
  const kinds = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility()) { continue; }
    const own = getComputedStyle(element);
    const kind = [own.color, own.fontSize, own.fontWeight, own.textShadow];
    for (let e = element; e; e = e.parentElement) {
      const style = getComputedStyle(e);
      const behind = [style.backgroundColor, style.backgroundImage, style.opacity].join();
      if (behind !== "rgba(0, 0, 0, 0),none,1") { kind.push(behind); }
      if (["absolute", "fixed", "sticky"].includes(style.position)) { kind.push(e.className); }
    }
    const key = kind.join("; ");
    if (!kinds.has(key)) { kinds.set(key, element); }
  }
  return [...kinds.values()];
}
"""


def barriers(browser: webdriver.Chrome, *, colors: bool) -> list[str]:
    """List what axe finds serious or critical on the open page: in its colors, or in all else.

    It takes away half of the page's elements, the glyphs of formulas, which are hidden from whoever
    listens, beside MathML that says the same. They have no text, and axe would look at each.
    """
    if not browser.execute_script("return 'axe' in window"):
        browser.execute_script(AXE)
        browser.execute_script(
            "document.querySelectorAll('mjx-math[aria-hidden=true]').forEach((e) => e.remove());"
        )
        # Colors are judged as they stand, not on their way from one theme to the other.
        browser.execute_script(
            "const style = document.createElement('style');"
            "style.textContent = '* { transition: none !important; }'; document.head.append(style);"
        )
    return list(browser.execute_async_script(FOUND, colors))


def test_what_axe_minds_is_found(site: Path, browser: webdriver.Chrome, server: str) -> None:
    visit(browser, server + PAGES[0], 1440)
    browser.execute_script(
        "document.querySelector('article h1').insertAdjacentHTML('afterend',"
        " '<p style=\"color: #999; background: #888\">pale</p><button></button>');"
    )
    assert any(said.startswith("button-name") for said in barriers(browser, colors=False))
    for theme in THEMES:
        switch(browser, theme)
        assert any("pale" in said for said in barriers(browser, colors=True))
