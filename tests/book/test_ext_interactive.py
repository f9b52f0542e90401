"""The place of a figure that moves: its data from the run, its sentence, its link."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bs4 import BeautifulSoup
from docutils import nodes

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from companion_book.interactive import glued_json, interactive, visit  # noqa: E402


def notebook(**values: Any) -> dict[str, Any]:
    """A notebook whose run glued these values as JSON."""
    prefix = "application/papermill.record/"
    outputs = [
        {
            "data": {f"{prefix}text/plain": repr(json.dumps(value))},
            "metadata": {"scrapbook": {"name": name, "mime_prefix": prefix}},
        }
        for name, value in values.items()
    ]
    return {"cells": [{"outputs": [{"data": {}, "metadata": {}}]}, {"outputs": outputs}]}


def test_data_are_what_the_run_glued_under_the_name() -> None:
    told = {"words": ["it's", 'a "word"', "\\", "文"], "numbers": [1.5, -2e-7]}
    assert glued_json(notebook(try_a=told, try_b=[2]), "try_a") == told
    with pytest.raises(KeyError, match="try_c"):
        glued_json(notebook(try_a=told), "try_c")


def written(data: Any, site: str = "") -> BeautifulSoup:
    """The place of a figure as the page has it."""
    node = interactive(name="some", data=json.dumps(data), ids=["try-some"])
    node += nodes.paragraph("", "caption")
    app = SimpleNamespace(config=SimpleNamespace(companion_site=site))
    builder = SimpleNamespace(app=app, current_docname="book/part/one")
    translator = SimpleNamespace(builder=builder, body=[])
    visit(translator, node)
    return BeautifulSoup("".join(translator.body), "html.parser")


def test_data_cannot_end_the_script_that_holds_them() -> None:
    told = ["</script><b>", "<!--"]
    page = written(told)
    assert page.find("b") is None
    assert json.loads(page.find("script", type="application/json").string) == told


def test_the_sentence_links_to_the_published_page_once_there_is_one() -> None:
    assert written(None).find("a") is None
    assert "JavaScript" in written(None).select_one(".interactive-stage").get_text()
    link = written(None, "https://example.org/book/").select_one(".interactive-fallback a")
    assert link["href"] == "https://example.org/book/book/part/one.html#try-some"
