"""The pages as files: every link and anchor resolves, every mark leads to a check."""

import importlib
import inspect
import posixpath
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup, Tag

from .conftest import PAGES

Soups = dict[str, BeautifulSoup]


@pytest.fixture(scope="module")
def anchors(soups: Soups) -> dict[str, set[str]]:
    """Collect for each page what a fragment can point to."""
    return {name: {str(t["id"]) for t in soup.find_all(id=True)} for name, soup in soups.items()}


def references(soup: BeautifulSoup) -> list[tuple[Tag, str]]:
    """Collect every address that a page names, with its element."""
    found = []
    for tag in soup.find_all(["a", "link", "script", "img", "source", "iframe", "use"]):
        for attribute in ("href", "src"):
            if tag.get(attribute):
                found.append((tag, str(tag[attribute])))
    return found


@pytest.mark.parametrize("name", PAGES)
def test_internal_links_and_anchors_resolve(
    name: str, site: Path, soups: Soups, anchors: dict[str, set[str]]
) -> None:
    broken = []
    for _, address in references(soups[name]):
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            continue
        path = unquote(parts.path)
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
        if not (site / target).is_file():
            broken.append(f"{address}: no such file")
            continue
        fragment = unquote(parts.fragment)
        if fragment and target in anchors and fragment not in anchors[target]:
            broken.append(f"{address}: no such anchor")
    assert broken == []


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_loaded_from_elsewhere(name: str, soups: Soups) -> None:
    loading = {"link", "script", "img", "source", "iframe", "use"}
    foreign = [
        address
        for tag, address in references(soups[name])
        if tag.name in loading
        and urlsplit(address).netloc
        and tag.get("rel") not in (["canonical"], ["license"])
    ]
    assert foreign == []


def test_style_sheets_load_nothing_from_elsewhere(site: Path) -> None:
    foreign = [
        f"{path.relative_to(site)}: {address}"
        for path in site.rglob("*.css")
        for address in re.findall(
            r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')]+)",
            path.read_text(encoding="utf-8", errors="replace"),
        )
    ]
    assert foreign == []


@pytest.mark.parametrize("name", PAGES)
def test_ids_are_unique(name: str, soups: Soups) -> None:
    article = soups[name].find("article")
    ids = [tag["id"] for tag in article.find_all(id=True)] if article else []
    assert sorted({value for value in ids if ids.count(value) > 1}) == []


@pytest.mark.parametrize("name", PAGES)
def test_pictures_say_what_they_show(name: str, soups: Soups) -> None:
    article = soups[name].find("article")
    for picture in article.find_all("img") if article else []:
        alt = str(picture.get("alt", "")).strip()
        assert len(alt) >= 10, f"{picture.get('src')} has no description"
        assert not re.search(r"\.(png|svg|jpe?g)$", alt), f"{alt} is a file name"


@pytest.mark.parametrize("name", PAGES)
def test_no_role_is_left_as_text(name: str, soups: Soups) -> None:
    article = soups[name].find("article")
    shown = (
        "".join(
            text
            for text in article.find_all(string=True)
            if not (text.find_parent("pre") or text.find_parent(class_="math"))
        )
        if article
        else ""
    )
    assert (
        re.findall(r"\{(?:glue|cite|py|prf)?:?(?:text|func|class|eq|ref|doc|numref)\}", shown) == []
    )


@pytest.mark.parametrize("name", PAGES)
def test_page_has_a_title_and_a_language(name: str, soups: Soups) -> None:
    assert soups[name].html["lang"] == "en"
    assert soups[name].title.get_text(strip=True)
    assert len(soups[name].select("article h1, #search-results, h1")) >= 1


def test_front_page_leads_to_the_preface(site: Path) -> None:
    assert "book/preface.html" in (site / "index.html").read_text(encoding="utf-8")


REFERENCE = [name for name in PAGES if name.startswith(("book/api.", "book/api/"))]


@pytest.mark.parametrize("name", REFERENCE or PAGES)
def test_a_page_of_the_reference_is_light(name: str, site: Path) -> None:
    assert len((site / name).read_bytes()) <= 300_000


def test_every_public_name_has_an_entry_and_the_index_leads_to_it(
    soups: Soups, anchors: dict[str, set[str]]
) -> None:
    shown = set().union(*(anchors[name] for name in REFERENCE if name != "book/api.html"))
    links = {
        unquote(urlsplit(str(link["href"])).fragment)
        for link in soups["book/api.html"].select("article a[href]")
    }
    for module in ("core", "models", "foundations.optimization", "transformer.positions"):
        name = f"companion.{module}"
        for each in importlib.import_module(name).__all__:
            if not inspect.ismodule(getattr(importlib.import_module(name), each)):
                # An object that is public in two places has its entry in one of them.
                assert any(entry.endswith(f".{each}") for entry in shown & links), each


def test_pages_follow_each_other(soups: Soups) -> None:
    start, seen = "book/preface.html", []
    current: str | None = start
    while current is not None:
        assert current not in seen
        seen.append(current)
        following = soups[current].select_one("a.right-next")
        if following is None:
            break
        nxt = posixpath.normpath(posixpath.join(posixpath.dirname(current), str(following["href"])))
        back = soups[nxt].select_one("a.left-prev")
        assert back is not None
        assert posixpath.normpath(posixpath.join(posixpath.dirname(nxt), str(back["href"]))) == (
            current
        )
        current = nxt
    assert set(seen) == {name for name in PAGES if name.startswith("book/")}


def test_every_equation_of_the_ledger_is_marked_on_its_page(
    ledger: dict[str, Any], soups: Soups
) -> None:
    marks = {
        name: {
            str(tag["href"]).removeprefix("#"): tag
            for tag in soup.select(".equation-number a.check")
        }
        for name, soup in soups.items()
    }
    for entry in ledger["equations"]:
        page = f"{entry['chapter']}.html"
        anchor = entry["checks"][0]["anchor"]
        mark = marks[page].pop(anchor)
        assert str(mark["aria-label"]).startswith("Verified: ")
        assert f"({entry['number']})" in mark.parent.get_text()
        # The anchor lies on the cell that ran the check, which leads back to the equation.
        target = soups[page].find(id=anchor)
        cell = target if "cell" in target.get("class", []) else target.find_parent(class_="cell")
        assert cell is not None
        assert "cell-check" in cell["class"]
        assert f"({entry['number']})" in cell.select_one(".check-back").get_text()
    assert not any(marks.values()), "a mark without an entry in the ledger"


def test_no_claim_is_unverified(ledger: dict[str, Any]) -> None:
    assert ledger["unverified"] == []
    assert ledger["equations"]


def test_ledger_page_lists_every_equation(ledger: dict[str, Any], soups: Soups) -> None:
    text = soups["book/ledger.html"].get_text()
    assert f"{len(ledger['equations'])} equation" in text
    assert [e["label"] for e in ledger["equations"] if e["label"] not in text] == []


def test_chapters_download_as_notebooks_that_run(
    ledger: dict[str, Any], site: Path, soups: Soups
) -> None:
    for chapter in ledger["chapters"]:
        name = f"{chapter['chapter']}.html"
        links = {str(a["href"]) for a in soups[name].select("a[href$='.ipynb']")}
        assert links, f"{name} offers no notebook"
        for link in links:
            path = site / posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
            notebook = nbformat.read(path, as_version=4)
            nbformat.validate(notebook)
            code = [cell for cell in notebook.cells if cell.cell_type == "code"]
            assert code
            assert any(cell.outputs for cell in code)
            assert notebook.metadata["kernelspec"]["name"] == "python3"


def test_sidebar_shows_the_whole_plan(soups: Soups) -> None:
    for name, soup in soups.items():
        items = soup.select("nav.bd-docs-nav li")
        texts = [" ".join(item.get_text(" ").split()) for item in items]
        numbers = [int(t.split(".")[0]) for t in texts if re.match(r"\d+\. ", t)]
        assert numbers == list(range(1, 35)), name
        for item in soup.select("nav.bd-docs-nav li.planned"):
            assert item.find("a") is None
            assert "planned" in item.get_text()
