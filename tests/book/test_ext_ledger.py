"""The equation ledger on small projects: what balances builds, what does not fails by name."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

EXTENSION = Path(__file__).resolve().parents[2] / "book" / "_ext"
RECORD = "application/vnd.companion.verification+json"

# The first chapter of the plan is not written, so the first written one must be number 2.
CONTENTS = """
parts:
  - title: One
    folder: one
    chapters:
      - {file: missing, title: Not written, question: Why not}
      - {file: first, title: First, question: What}
      - {file: second, title: Second, question: How}
appendices:
  - {file: ledger, title: Ledger, question: Which}
"""
CONF = f"""
import sys
sys.path.insert(0, {str(EXTENSION)!r})
extensions = ["myst_nb", "sphinx_proof", "sphinx_exercise", "companion_book"]
root_doc = "book/preface"
html_theme = "basic"
numfig = True
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "amsmath"]
suppress_warnings = ["mystnb.unknown_mime_type"]
mathjax_path = "unused.js"
"""
PREFACE = """
# Preface

```{toctree}
:numbered:
one/first
one/second
```

```{toctree}
ledger
```
"""


def record(label: str, **changes: Any) -> dict[str, Any]:
    """Make the output that a verification leaves."""
    data = {
        "label": label,
        "kind": "gradient",
        "routes": [["SymPy", 1e-12], ["autograd", 3e-13]],
        "largest_error": 1e-12,
        "tolerance": 1e-9,
        "mutants": ["negated", "doubled", "transposed"],
        "points": 1,
        "shown": None,
        "line": f"✓ {label}",
    } | changes
    return {
        "output_type": "display_data",
        "metadata": {},
        "data": {RECORD: data, "text/plain": data["line"]},
    }


def glued(key: str, latex: str) -> dict[str, Any]:
    """Make the output of a result that was glued without being shown."""
    prefix = "application/papermill.record/"
    return {
        "output_type": "display_data",
        "metadata": {"scrapbook": {"name": key, "mime_prefix": prefix}},
        "data": {f"{prefix}text/latex": latex, f"{prefix}text/plain": "x"},
    }


def text(source: str) -> dict[str, Any]:
    """Make a cell of text."""
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code(source: str, *outputs: dict[str, Any], tags: tuple[str, ...] = ()) -> dict[str, Any]:
    """Make an executed cell."""
    return {
        "cell_type": "code",
        "execution_count": 1,
        "metadata": {"tags": list(tags)},
        "outputs": list(outputs),
        "source": source,
    }


def equation(label: str, latex: str = "a = b") -> dict[str, Any]:
    """Make a cell with one displayed equation."""
    return text(f"$$\n{latex}\n$$ ({label})")


@dataclass
class Built:
    """The outcome of a build."""

    returncode: int
    output: str
    root: Path

    @property
    def ledger(self) -> dict[str, Any]:
        """The machine-readable ledger."""
        return json.loads((self.root / "out" / "ledger.json").read_text(encoding="utf-8"))

    def page(self, name: str) -> str:
        """The HTML of a page."""
        return (self.root / "out" / "html" / "book" / f"{name}.html").read_text(encoding="utf-8")


Cells = list[dict[str, Any]]
Build = Callable[..., Built]


def build_project(
    root: Path, first: Cells, second: Cells, *, builder: str = "html", strict: bool = True
) -> Built:
    """Write a project of two chapters and build it as the book is built."""
    folder = root / "src" / "book" / "one"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "src" / "conf.py").write_text(CONF, encoding="utf-8")
    (root / "src/book/contents.yml").write_text(CONTENTS, encoding="utf-8")
    (root / "src/book/preface.md").write_text(PREFACE, encoding="utf-8")
    (root / "src/book/ledger.md").write_text(
        "# Ledger\n\n```{equation-ledger}\n```\n", encoding="utf-8"
    )
    for name, cells in (("first", first), ("second", second)):
        notebook = {
            "cells": [text(f"# {name.capitalize()}\n\n```{{chapter-facts}}\n```"), *cells],
            "metadata": {
                "kernelspec": {"name": "python3", "display_name": "Python 3"},
                "language_info": {"name": "python"},
                "companion_build": {
                    "seconds": 4.5,
                    "processor_seconds": 3.6,
                    "processor": "a processor",
                },
            },
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        for index, cell in enumerate(notebook["cells"]):
            cell["id"] = f"{name}-{index}"
        (folder / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-q", "-n", "-b", builder]
    command += ["-W", "--keep-going"] if strict else []
    command += ["-d", str(root / "doctrees"), str(root / "src"), str(root / "out" / "html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Built(done.returncode, done.stdout + done.stderr, root)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Build a project in a fresh folder."""

    def run(first: Cells, second: Cells | None = None, **options: Any) -> Built:
        return build_project(tmp_path, first, second or [], **options)

    return run


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A project in which every claim has its check."""
    first = [
        equation("def:x", "x = 1"),
        equation("eq:grad", r"\bar x = \bar y W^\top"),
        code(
            "verify.gradient('eq:grad')",
            record("eq:grad"),
            record("eq:grad", kind="equal", routes=[["naive", 2e-11]], largest_error=2e-11),
        ),
        code(
            "verify.identity('eq:shown', show='key')",
            glued("key", r"$\displaystyle e^{z} = s$"),
            record("eq:shown", kind="identity", shown="key"),
        ),
        text("```{glue:math} key\n:label: eq:shown\n```"),
        text("```{prf:proof}\nA step:\n\n$$ a + b = b + a $$\n```"),
        text("```{exercise}\n:label: ex-a\nShow\n\n$$ c = d $$\n```"),
        code("print()", record("eq:shown", kind="bound", largest_error=None)),
    ]
    # The formula is typed, so it is not what was tested although a key was given.
    second = [
        equation("eq:typed", "u = v"),
        code(
            "verify.identity('eq:typed', show='other')",
            glued("other", "$u = v$"),
            record("eq:typed", shown="other", largest_error=0.0, read=True),
        ),
        text("See {eq}`eq:grad`."),
    ]
    return build_project(tmp_path_factory.mktemp("good"), first, second)


def test_verified_project_builds_without_a_warning(good: Built) -> None:
    assert good.returncode == 0, good.output
    assert good.output.strip() == ""


def test_ledger_lists_every_claim_with_its_evidence(good: Built) -> None:
    found = {entry["label"]: entry for entry in good.ledger["equations"]}
    assert list(found) == ["eq:grad", "eq:shown", "eq:typed"]
    entry = found["eq:grad"]
    assert entry["chapter"] == "book/one/first"
    assert entry["kinds"] == ["gradient", "equal"]
    assert entry["routes"] == ["SymPy", "autograd", "naive"]
    assert entry["largest_error"] == 2e-11
    assert entry["mutants_rejected"] == 6
    assert good.ledger["definitions"] == 1
    assert good.ledger["unverified"] == []


def test_ledger_reports_run_times_by_chapter(good: Built) -> None:
    chapters = {entry["chapter"]: entry for entry in good.ledger["chapters"]}
    assert chapters["book/one/first"]["seconds"] == 4.5
    assert chapters["book/one/second"]["equations"] == 1


def test_equations_are_numbered_by_the_plan_and_not_by_what_is_written(good: Built) -> None:
    numbers = {entry["label"]: entry["number"] for entry in good.ledger["equations"]}
    assert numbers == {"eq:grad": "2.2", "eq:shown": "2.3", "eq:typed": "3.1"}
    assert '<span class="eqno">(2.2)' in good.page("one/first")
    assert "(2.2)" in good.page("one/second")


def test_shown_is_tested_only_where_the_page_prints_the_tested_object(good: Built) -> None:
    shown = {entry["label"]: entry["shown_is_tested"] for entry in good.ledger["equations"]}
    assert shown == {"eq:grad": False, "eq:shown": True, "eq:typed": False}


def test_mark_is_named_and_leads_to_its_check(good: Built) -> None:
    page = good.page("one/first")
    mark = re.search(r'<a class="check" href="#(check-eq-grad)" title="([^"]+)" aria', page)
    assert mark is not None
    assert f'id="{mark[1]}"' in page
    assert "gradient by SymPy, autograd" in mark[2]
    assert "largest error 2e-11" in mark[2]
    assert "6 mutants rejected" in mark[2]


def test_what_was_read_and_what_was_compared_have_two_looks_and_two_titles(good: Built) -> None:
    read = re.search(
        r'<a class="check check-read" href="#check-eq-typed" title="([^"]+)"',
        good.page("one/second"),
    )
    assert read is not None
    assert read[1].startswith("Verified: read from the page; gradient by SymPy")
    compared = re.search(
        r'<a class="check" href="#check-eq-grad" title="([^"]+)"', good.page("one/first")
    )
    assert compared is not None
    assert compared[1].startswith("Verified: compared; gradient by SymPy")


def test_the_ledger_counts_what_was_read_and_what_was_compared(good: Built) -> None:
    told = {entry["label"]: entry["read_from_the_page"] for entry in good.ledger["equations"]}
    assert told == {"eq:grad": False, "eq:shown": False, "eq:typed": True}
    page = re.sub(r"<[^>]+>", "", good.page("ledger"))
    assert "Read from the page: 1. Compared: 2." in page


def test_check_cell_leads_back_to_its_equation(good: Built) -> None:
    page = good.page("one/first")
    cell = page[page.index('id="check-eq-grad"') :]
    back = cell[cell.index("check-back") :][:300]
    assert 'href="#equation-eq-grad"' in back
    assert "(2.2)" in back


def test_second_check_of_an_equation_has_its_own_anchor(good: Built) -> None:
    page = good.page("one/first")
    assert 'id="check-eq-shown"' in page
    assert 'id="check-eq-shown-2"' in page


def test_ledger_page_counts_and_links(good: Built) -> None:
    page = good.page("ledger")
    assert "3 equations verified" in page
    assert 'href="one/first.html#equation-eq-grad"' in page
    assert 'href="one/first.html#check-eq-grad"' in page


def test_chapter_header_counts_verified_equations_and_time(good: Built) -> None:
    page = good.page("one/first")
    header = page[page.index("chapter-facts") :][:1200]
    assert re.search(r'ledger\.html#ledger-book-one-first"[^>]*>2<', header)
    assert "4 s of one core (a processor)" in header
    assert "about 5 minutes" in header
    assert 'href="../../_sources/book/one/first.ipynb"' in header


BAD = {
    "unverified claim": (
        [equation("eq:alone")],
        r"first\.ipynb.*'eq:alone' has no verification",
    ),
    "check without a claim": (
        [code("verify()", record("eq:ghost"))],
        r"check of 'eq:ghost', but no equation of this page",
    ),
    "check of a definition": (
        [equation("def:x"), code("verify()", record("def:x"))],
        r"check of 'def:x', but no equation of this page",
    ),
    "label used twice on a page": (
        [equation("eq:a"), code("verify()", record("eq:a")), equation("eq:a")],
        r"'eq:a' is used twice",
    ),
    "label of no known sort": ([equation("lemma-a")], r"label 'lemma-a': use eq:name"),
    "label with capital letters": ([equation("eq:A")], r"label 'eq:A': use eq:name"),
    "unlabeled claim in the text": (
        [text("So\n\n$$ a = b. $$")],
        r"displayed equation without a label: 'a = b\.'",
    ),
    "unlabeled claim in a theorem": (
        [text("```{prf:theorem}\n:label: t\nWe have\n\n$$ a = b $$\n```")],
        r"displayed equation without a label",
    ),
    "numbered amsmath environment": (
        [text("\\begin{align}\na &= b\n\\end{align}")],
        r"displayed equation without a label",
    ),
    "hidden check": (
        [equation("eq:a"), code("verify()", record("eq:a"), tags=("hide-cell",))],
        r"the check of 'eq:a' is hidden",
    ),
    "removed check": (
        [equation("eq:a"), code("verify()", record("eq:a"), tags=("remove-cell",))],
        r"the check of 'eq:a' is hidden",
    ),
    "check that rejected nothing": (
        [equation("eq:a"), code("verify()", record("eq:a", mutants=[]))],
        r"a check of 'eq:a' rejected no mutant",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_balance_fails_even_without_strictness(name: str, build: Build) -> None:
    cells, message = BAD[name]
    built = build(cells, builder="html", strict=False)
    assert built.returncode != 0
    assert re.search(message, built.output), built.output
    assert not (built.root / "out" / "ledger.json").exists()


def test_label_used_in_two_chapters_fails(build: Build) -> None:
    cells = [equation("eq:a"), code("verify()", record("eq:a"))]
    built = build(cells, cells, strict=False)
    assert built.returncode != 0
    assert "label 'eq:a' is already used by book/one/first" in built.output


def test_record_of_another_chapter_does_not_verify_a_claim(build: Build) -> None:
    built = build([equation("eq:a")], [code("verify()", record("eq:a"))])
    assert built.returncode != 0
    assert "'eq:a' has no verification on this page" in built.output
    assert "check of 'eq:a', but no equation of this page" in built.output


def test_all_offenders_are_listed_at_once(build: Build) -> None:
    built = build([equation("eq:a"), equation("eq:b")], [equation("eq:c")])
    assert "3 problems" in built.output
    for label in ("eq:a", "eq:b", "eq:c"):
        assert f"'{label}' has no verification" in built.output


def test_failing_again_is_not_forgotten_and_repair_is_noticed(build: Build) -> None:
    claim, check = equation("eq:a"), code("verify()", record("eq:a"))
    assert build([claim]).returncode != 0
    assert build([claim]).returncode != 0
    assert build([claim, check]).returncode == 0
    # A stale ledger must not outlive a build that fails.
    built = build([claim])
    assert built.returncode != 0
    assert not (built.root / "out" / "ledger.json").exists()


def test_warning_in_a_strict_build_leaves_no_ledger(build: Build) -> None:
    cells = [equation("eq:a"), code("verify()", record("eq:a")), text("{doc}`/nowhere`")]
    built = build(cells)
    assert built.returncode != 0
    assert "nowhere" in built.output
    assert not (built.root / "out" / "ledger.json").exists()


def test_planned_chapter_can_be_named_before_it_is_written(build: Build) -> None:
    built = build([text("See {doc}`/book/one/missing`.")])
    assert built.returncode == 0, built.output
    assert "Not written" in built.page("one/first")
