"""Where a page can be run, mended, and reported, and the footer: license and date of the build.

The address of the repository is said once, as ``repository.url`` in ``_config.yml``. Until then
there are no buttons. Colab opens notebooks from a branch named ``notebooks`` that holds nothing
else (CI writes it), Binder and a codespace the repository itself.
"""

from __future__ import annotations

import html
import os
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

LICENSES = (
    ("Text and figures", "CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/"),
    ("code", "MIT", "https://opensource.org/license/mit"),
)


def repository(app: Sphinx) -> tuple[str, str] | None:
    """Return the ``owner/name`` of the repository and its branch, once it has an address."""
    options = app.config.html_theme_options
    url = str(options.get("repository_url") or "").rstrip("/")
    if not url:
        return None
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?", url)
    if found is None:
        raise ExtensionError(
            f"repository.url in _config.yml is {url!r}: write https://github.com/owner/name, from "
            "where Colab, Binder and codespaces open a notebook, or leave it empty"
        )
    return found[1], str(options.get("repository_branch") or "main")


def launches(app: Sphinx, docname: str) -> list[tuple[str, str]]:
    """Return where a chapter can be run: the name of each place and its address."""
    known = repository(app)
    if known is None:
        return []
    name, branch = known
    notebook = quote(f"{docname.removeprefix('book/')}.ipynb")
    lab = quote(f"lab/tree/_build/notebooks/{notebook}", safe="")
    return [
        ("Colab", f"https://colab.research.google.com/github/{name}/blob/notebooks/{notebook}"),
        ("Binder", f"https://mybinder.org/v2/gh/{name}/{branch}?urlpath={lab}"),
        ("codespace", f"https://codespaces.new/{name}?quickstart=1"),
    ]


def repairs(app: Sphinx, docname: str, title: str) -> list[tuple[str, str]]:
    """Return how a page can be mended: the words of each link and its address."""
    known = repository(app)
    if known is None or docname not in app.env.all_docs:
        return []
    url, branch = f"https://github.com/{known[0]}", known[1]
    about = f"title={quote(f'{title}: ')}&body={quote(f'On the page {docname}: ')}"
    return [
        ("Edit this page", f"{url}/edit/{branch}/{quote(docname)}.md"),
        ("Report an error", f"{url}/issues/new?{about}"),
    ]


def build_date() -> datetime:
    """Return the date of the build: that of ``SOURCE_DATE_EPOCH``, where it is set, or today's."""
    told = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(told), UTC) if told else datetime.now(UTC)


def footer(app: Sphinx, docname: str, title: str) -> str:
    """Write the footer of a page."""
    licenses = "; ".join(
        f'{what}: <a rel="license" href="{address}">{name}</a>' for what, name, address in LICENSES
    )
    day = build_date()
    date = f"{day:%B} {day.day}, {day.year}"
    said = [f'{licenses}. Built on <time datetime="{day:%Y-%m-%d}">{date}</time>.']
    links = [
        f'<a href="{html.escape(address)}">{words}</a>'
        for words, address in repairs(app, docname, title)
    ]
    return "\n".join(f"<p>{line}</p>" for line in [*said, " · ".join(links)] if line)


def add_footer(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Give the theme's footer its words."""
    context["theme_extra_footer"] = footer(app, pagename, str(context.get("title", "")))


def setup(app: Sphinx) -> None:
    """Register the event."""
    app.connect("html-page-context", add_footer)
