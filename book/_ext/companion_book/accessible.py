"""Repairs of the pages' markup for those who hear it read: what axe finds in docutils' HTML."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

# A list by its role has only list items; the references inside have another role, now deprecated.
ROLES = re.compile(r' role="(?:list" class="citation-list|doc-biblioentry)"')
# A signature in several lines is a list of definitions without terms, inside of a term.
SIGNATURE = re.compile(r'(<dt class="sig sig-object.*?</dt>)', re.DOTALL)

# Text in another language than the page's says so, for fonts and for voices.
LANGUAGES = {"zh": "zh", "zh-hans": "zh-Hans", "zh-hant": "zh-Hant"}
CHINESE = re.compile(r'(?<=[\w"]) class="(?:[^"]* )?(zh(?:-hans|-hant)?)(?: [^"]*)?"')


def repair(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Rewrite the body of a page."""

    def roles(match: re.Match[str]) -> str:
        return ' class="citation-list"' if "citation-list" in match[0] else ""

    def signature(match: re.Match[str]) -> str:
        inside = match[1].replace("<dl>", '<span class="parameters">').replace("</dl>", "</span>")
        return inside.replace("<dd>", '<span class="parameter">').replace("</dd>", "</span>")

    def language(match: re.Match[str]) -> str:
        return f'{match[0]} lang="{LANGUAGES[match[1]]}"'

    if "body" in context:
        body = ROLES.sub(roles, context["body"])
        context["body"] = CHINESE.sub(language, SIGNATURE.sub(signature, body))


def setup(app: Sphinx) -> None:
    """Register the event."""
    app.connect("html-page-context", repair)
