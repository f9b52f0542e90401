"""Figures that move: the ``interactive`` directive and the scripts that its pages load.

    ```{interactive} temperature
    :data: try_temperature

    What to try, and what to see.
    ```

The argument names ``_static/interactive/NAME.js``, which draws the figure with ``common.js``. The
option names what the run glued, a string of JSON, and the page carries it along: nothing is fetched
by the figure, so that it works from a folder too. Without JavaScript, on paper, and in notebooks, a
sentence stands in its place.
"""

from __future__ import annotations

import ast
import html
import json
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from .assets import STATIC
from .ledger import read_notebook
from .publish import address

FOLDER = "interactive"
FALLBACK = "This figure moves. It needs a page on a screen, and JavaScript."


class interactive(nodes.General, nodes.Element):
    """A figure that a script draws; its children are the caption."""


def glued_json(notebook: dict[str, Any], key: str) -> Any:
    """Return the value whose JSON a cell glued under ``key``; raise KeyError where none did."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            glue = output.get("metadata", {}).get("scrapbook")
            if glue and glue["name"] == key:
                text = output["data"][glue.get("mime_prefix", "") + "text/plain"]
                # What is glued is shown as Python shows it: a string in quotes.
                return json.loads(
                    ast.literal_eval(text if isinstance(text, str) else "".join(text))
                )
    raise KeyError(key)


class Interactive(SphinxDirective):
    """Place an interactive figure; the body is its caption."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {"data": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Make the figure, with the data that the run left for it."""
        name = self.arguments[0]
        if not (STATIC / FOLDER / f"{name}.js").is_file():
            raise self.error(f"there is no _static/{FOLDER}/{name}.js to draw the figure {name}")
        if not self.content:
            raise self.error(f"the figure {name} has no caption: say what to try and what to see")
        data = None
        if key := self.options.get("data"):
            try:
                data = glued_json(read_notebook(Path(self.env.doc2path(self.env.docname))), key)
            except KeyError:
                raise self.error(
                    f"the run glued nothing under {key!r}: glue({key!r}, json.dumps(...), "
                    "display=False) in a cell of this chapter"
                ) from None
        figure = interactive(name=name, data=json.dumps(data, ensure_ascii=False))
        figure["ids"].append(f"try-{name}")
        self.state.nested_parse(self.content, self.content_offset, figure)
        return [figure]


def visit(self: Any, node: interactive) -> None:
    """Write the place of the figure with its fallback, its data, and the caption after them."""
    where = address(self.builder.app, self.builder.current_docname)
    online = f"{where}#{node['ids'][0]}"
    link = f' <a class="reference external" href="{html.escape(online)}">See it online.</a>'
    # In a script only the end of a script is special.
    data = node["data"].replace("</", "<\\/")
    self.body.append(
        f'<figure class="interactive align-default" id="{node["ids"][0]}"'
        f' data-figure="{node["name"]}"><div class="interactive-stage">'
        f'<p class="interactive-fallback">{FALLBACK}{link if where else ""}</p></div>'
        f'<script type="application/json">{data}</script>\n<figcaption>\n'
    )


def depart(self: Any, node: interactive) -> None:
    """Close the caption and the figure."""
    self.body.append("</figcaption></figure>\n")


def add_scripts(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Load on a page what its figures need, and nothing on the others."""
    found = [] if doctree is None else [node["name"] for node in doctree.findall(interactive)]
    if found:
        app.add_css_file(f"{FOLDER}/common.css")
        for name in ("common", *dict.fromkeys(found)):
            app.add_js_file(f"{FOLDER}/{name}.js", loading_method="defer", priority=800)


def setup(app: Sphinx) -> None:
    """Register the directive and its events."""
    app.add_node(interactive, html=(visit, depart))
    app.add_directive("interactive", Interactive)
    app.connect("html-page-context", add_scripts)
