"""Where a page can be run and mended once the repository has an address, and the foot of a page."""

import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from companion_book import launch  # noqa: E402


def project(url: str, branch: str = "") -> Sphinx:
    """A project whose repository has this address."""
    options = {"repository_url": url, "repository_branch": branch}
    config = SimpleNamespace(html_theme_options=options)
    page = "book/one/first"
    return cast("Sphinx", SimpleNamespace(config=config, env=SimpleNamespace(all_docs={page: 1})))


def test_without_an_address_there_are_no_buttons() -> None:
    assert launch.launches(project(""), "book/one/first") == []
    assert launch.repairs(project(""), "book/one/first", "First") == []


def test_one_address_gives_all_buttons() -> None:
    app = project("https://github.com/ann/llm-math/")
    assert dict(launch.launches(app, "book/one/first")) == {
        "Colab": "https://colab.research.google.com/github/ann/llm-math/blob/notebooks/"
        "one/first.ipynb",
        "Binder": "https://mybinder.org/v2/gh/ann/llm-math/main?urlpath="
        "lab%2Ftree%2F_build%2Fnotebooks%2Fone%2Ffirst.ipynb",
        "codespace": "https://codespaces.new/ann/llm-math?quickstart=1",
    }
    edit, report = launch.repairs(app, "book/one/first", "First & last")
    assert edit[1] == "https://github.com/ann/llm-math/edit/main/book/one/first.md"
    assert "issues/new?title=First%20%26%20last%3A%20&body=" in report[1]
    assert launch.repairs(app, "search", "Search") == []  # a page that nobody wrote


def test_an_address_elsewhere_is_refused() -> None:
    with pytest.raises(ExtensionError, match=r"'https://example\.org/x': write https://github"):
        launch.launches(project("https://example.org/x"), "book/one/first")


def test_the_date_of_the_build_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    said = launch.footer(project(""), "book/one/first", "First")
    assert '<time datetime="1970-01-02">January 2, 1970</time>' in said
    assert said == launch.footer(project(""), "book/one/first", "First")
    assert said.count('rel="license"') == 2
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert abs((datetime.now(UTC) - launch.build_date()).total_seconds()) < 60


def test_a_codespace_is_set_up_by_commands_that_exist() -> None:
    setup = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    steps = setup["postCreateCommand"].split(" && ")
    assert steps[0] == "make setup"
    assert re.search(r"^setup:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert steps[1].split() == [".venv/bin/python", "tools/build_book.py", "--notebooks"]
