"""What the pages load: the style sheet and MathJax, both from the book itself."""

from __future__ import annotations

import re
import shutil
from importlib.metadata import files
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

STATIC = Path(__file__).resolve().parents[2] / "_static"
TEMPLATES = Path(__file__).resolve().parents[2] / "_templates"

# The components of MathJax that a page loads: two thirds of the combined file, which also holds a
# menu that can draw formulas in three other ways. The last writes MathML for screen readers.
MATHJAX = ("core", "input/tex", "output/chtml", "a11y/assistive-mml")
# These, the fonts, and the packages of TeX that are loaded where a formula asks for one.
MATHJAX_PARTS = (
    "startup.js",
    *(f"{component}.js" for component in MATHJAX),
    "output/chtml/fonts",
    "input/tex/extensions",
)


def mathjax_folder() -> Path:
    """Find MathJax in the installed package that carries it, without importing that package."""
    try:
        members = files("django-static-mathjax") or []
    except ModuleNotFoundError:
        members = []
    for member in members:
        if member.parts[-2:] == ("es5", "tex-chtml.js"):
            return Path(str(member.locate())).parent
    raise ExtensionError(
        "MathJax is not installed, and the book serves its own copy: install the locked "
        "dependencies (they contain django-static-mathjax, which carries MathJax 3)"
    )


def add_static(app: Sphinx, config: Config) -> None:
    """Set what the book brings along: static files, templates, and how strictly links are read."""
    if STATIC.is_dir() and str(STATIC) not in config.html_static_path:
        config.html_static_path = [*config.html_static_path, str(STATIC)]
    if config.html_theme == "sphinx_book_theme" and str(TEMPLATES) not in config.templates_path:
        config.templates_path = [str(TEMPLATES), *config.templates_path]
    # References into the companion are checked; types of other libraries have no page here.
    config.nitpick_ignore_regex = [
        *config.nitpick_ignore_regex,
        (r"py:.*", r"(?!companion\b).*"),
    ]
    # Equations keep the size of the text, and wide ones scroll in their box.
    config.mathjax3_config = {
        **(config.mathjax3_config or {}),
        "loader": {"load": list(MATHJAX)},
        "options": {"enableAssistiveMml": True},
        "chtml": {"matchFontHeight": False, "displayAlign": "center"},
    }


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Copy MathJax and its license beside the pages."""
    if exception is not None or app.builder.format != "html":
        return
    if not str(app.config.mathjax_path).startswith("mathjax/"):
        return
    source, target = mathjax_folder(), Path(app.outdir) / "_static" / "mathjax"
    for part in MATHJAX_PARTS:
        origin, copy = source / part, target / part
        copy.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            shutil.copytree(origin, copy, dirs_exist_ok=True)
        elif origin.exists():
            shutil.copyfile(origin, copy)
    shutil.copyfile(source.parent / "LICENSE", target / "LICENSE")


def without_icon_script(head: str) -> str:
    """Take out the script that draws the theme's icons, more than all else on a page together."""
    return re.sub(r"<script[^>]*fontawesome\.js[^>]*></script>", "", head)


def offer(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Give the templates the function that they call."""
    context["without_icon_script"] = without_icon_script


def used_rules(sheet: str, names: set[str]) -> str:
    """Keep of a style sheet the selectors whose classes all occur in ``names``."""

    def kept(rule: re.Match[str]) -> str:
        selectors = [
            selector
            for selector in rule[1].split(",")
            if set(re.findall(r"\.(-?[A-Za-z_][\w-]*)", selector)) <= names
        ]
        # A comma inside of :is(...) would be cut: such a rule is kept as it is.
        if "(" in rule[1]:
            return rule[0]
        return f"{','.join(selectors)}{{{rule[2]}}}" if selectors else ""

    return re.sub(r"([^{}@;]+)\{([^{}]*)\}", kept, sheet)


def lighten_theme(app: Sphinx, exception: Exception | None) -> None:
    """Cut the theme's style sheet, 400 KB for everything that Bootstrap can do, to what is used."""
    sheet = Path(app.outdir) / "_static" / "styles" / "pydata-sphinx-theme.css"
    if exception is not None or not sheet.is_file():
        return
    names: set[str] = set()
    for page in Path(app.outdir).rglob("*.html"):
        for classes in re.findall(r'class="([^"]*)"', page.read_text(encoding="utf-8")):
            names.update(classes.split())
    for script in Path(app.outdir, "_static").rglob("*.js"):
        if "mathjax" not in script.parts and script.name != "fontawesome.js":
            names.update(re.findall(r"[\w-]+", script.read_text(encoding="utf-8")))
    sheet.write_text(used_rules(sheet.read_text(encoding="utf-8"), names), encoding="utf-8")
    for useless in ("scripts/fontawesome.js", "scripts/fontawesome.js.map"):
        Path(app.outdir, "_static", useless).unlink(missing_ok=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the events."""
    app.add_css_file("book.css")
    app.add_js_file("book.js", loading_method="defer")
    if "comments_config" not in app.config.values:
        # Jupyter Book sets it even when the extension that reads it is left out.
        app.add_config_value("comments_config", {}, "env")
    app.connect("config-inited", add_static)
    app.connect("html-page-context", offer)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", lighten_theme)
    return {}
