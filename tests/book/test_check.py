"""``make test``: it goes on after a failure, counts, sums up, and fails if anything did."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, chapter_text


def check(root: Path, *stages: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/check.py"), "--root", str(root)]
    return subprocess.run(
        [*command, "--only", ",".join(stages)], check=False, capture_output=True, text=True
    )


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def summary(output: str) -> dict[str, str]:
    lines = output.split("\nSummary\n")[1].splitlines()
    # After the result of a stage stand its times.
    rows = (re.split(r"\s{2,}", line.strip()) for line in lines if line.startswith("  "))
    return {row[0]: row[1] for row in rows}


def test_stages_go_on_after_a_failure_and_are_summed_up(tiny: Path) -> None:
    write(tiny / "tests/test_two.py", "def test_a(): pass\n\ndef test_b(): pass\n")
    write(tiny / "tests/compile/test_bad.py", "def test_c(): assert False\n\ndef test_d(): pass\n")
    done = check(tiny, "compile", "tests", "site")
    assert done.returncode == 1
    said = summary(done.stdout)
    assert (said["compile"], said["tests"], said["site"]) == ("FAILED", "passed", "FAILED")
    assert said["tests passed"] == "3"
    assert re.search(
        r"^  tests +passed +\d+ s +\d+ s of processor time$", done.stdout, re.MULTILINE
    )
    assert done.stdout.rstrip().endswith("FAILED: compile, site")
    assert "1 failed, 1 passed in" in done.stdout, "pytest's own closing lines stay visible"


def test_a_stage_without_any_test_fails(tiny: Path) -> None:
    write(tiny / "tests/compile/test_none.py", "")
    done = check(tiny, "compile")
    assert done.returncode == 1
    assert "a stage that checks nothing fails" in done.stdout


def test_the_site_is_not_tested_where_the_book_did_not_build(tiny: Path) -> None:
    write(tiny / "book/part/two.md", chapter_text("Two", "1 / 0"))
    done = check(tiny, "book", "nbval", "site")
    assert done.returncode == 1
    said = summary(done.stdout)
    assert (said["book"], said["nbval"], said["site"]) == ("FAILED", "not run", "not run")
    assert said["equations verified"] == "the book did not build"
    assert "ZeroDivisionError" in done.stdout


def test_nbval_asks_for_the_book_first(tiny: Path) -> None:
    done = check(tiny, "nbval")
    assert done.returncode == 1
    assert "not executed yet (the book stage does it): book/part/one book/part/two" in done.stdout


def test_a_chapter_that_does_not_repeat_itself_fails_where_it_stands(tiny: Path) -> None:
    write(tiny / "book/part/two.md", chapter_text("Two", "import time\nprint(time.time_ns())"))
    done = check(tiny, "book", "nbval")
    assert done.returncode == 1
    said = summary(done.stdout)
    assert (said["book"], said["nbval"]) == ("passed", "FAILED")
    assert said["notebooks reproduced"] == "not all"
    assert said["tests passed"] == "2", "the two cells of the other chapter"
    assert "two.ipynb::Cell 0" in done.stdout
    assert re.search(r"^part/one +2 passed in", done.stdout, re.MULTILINE)
    assert "not reproduced: book/part/two" in done.stdout


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_every_chapter_that_does_not_repeat_itself_is_named(
    tiny: Path, jobs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBS", jobs)
    for name in ("one", "two"):
        cells = ("import time", "print(time.time_ns())")
        write(tiny / f"book/part/{name}.md", chapter_text(name.title(), *cells))
    done = check(tiny, "book", "nbval")
    assert done.returncode == 1
    for name in ("one", "two"):
        assert f"not reproduced: book/part/{name}" in done.stdout
        # What is said of one chapter stands together.
        block = done.stdout.split(f"\nbook/part/{name}\n")[1].split("\nbook/part/")[0]
        assert f"{name}.ipynb::Cell 1" in block
        assert "1 failed, 1 passed" in block


def test_chapters_are_linted_with_the_line_numbers_of_the_page(tiny: Path) -> None:
    text = chapter_text("One", "import os\nprint(undefined_name);", "%matplotlib inline")
    write(tiny / "book/part/one.md", text)
    done = check(tiny, "lint")
    line = text.split("print(undefined")[0].count("\n") + 1
    assert f"_build/lint/book/part/one.md.py:{line}:7" in done.stdout
    assert "F401" in done.stdout
    assert "E703" not in done.stdout


def test_an_unknown_stage_lists_those_there_are(tiny: Path) -> None:
    done = check(tiny, "lint", "typo")
    assert done.returncode == 2
    assert "no such stage: typo; there are lint, types" in done.stderr
