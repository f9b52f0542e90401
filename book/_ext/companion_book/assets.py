"""What the pages load: the style sheet and MathJax, both from the book itself."""

from __future__ import annotations

import shutil
from importlib.metadata import files
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

STATIC = Path(__file__).resolve().parents[2] / "_static"
TEMPLATES = Path(__file__).resolve().parents[2] / "_templates"

# The parts of MathJax that a page can ask for: the combined component, its fonts, the TeX packages
# that it loads on demand, and what its context menu (another renderer, speech) needs.
MATHJAX_PARTS = (
    "tex-chtml.js",
    "output",
    "input/tex/extensions",
    "input/mml.js",
    "input/mml",
    "a11y",
    "sre/mathmaps/base.json",
    "sre/mathmaps/en.json",
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


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the events."""
    app.add_css_file("book.css")
    app.add_js_file("book.js", loading_method="defer")
    if "comments_config" not in app.config.values:
        # Jupyter Book sets it even when the extension that reads it is left out.
        app.add_config_value("comments_config", {}, "env")
    app.connect("config-inited", add_static)
    app.connect("build-finished", copy_mathjax)
    return {}
