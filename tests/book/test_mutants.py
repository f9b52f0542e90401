"""Planted faults: each is a small change that parses, and the tests that hold it are found."""

import ast
import json
from pathlib import Path

import pytest

import mutants

from .conftest import ROOT

SOURCE = '''
"""A module."""
LIMIT = 3


def clipped(x, *, rate: float = 0.5, dim: int = -1, generator=None):
    """Return 1 + 1, says the docstring."""
    if rate < 0:
        raise ValueError(f"rate must be {0 + 1} or more")
    y = wide(x).clamp(min=0) * rate - rand(2, generator=generator)
    y += 1
    return y.sum(dim=-1)


class Shown:
    def __repr__(self):
        return "a" + str(1)
'''


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    module = tmp_path / "companion" / "part" / "lesson.py"
    module.parent.mkdir(parents=True)
    module.write_text(SOURCE, encoding="utf-8")
    return tmp_path


def test_each_kind_of_fault_is_planted_where_code_is(checkout: Path) -> None:
    found = mutants.mutants_of(checkout / "companion" / "part" / "lesson.py", checkout)
    changes = {(m.kind, m.before, m.after) for m in found}
    assert {
        ("default", "0.5", "1.0"),
        ("compare", " < ", " <= "),
        ("condition", "rate < 0", "not (rate < 0)"),
        ("dtype", "wide(x)", "x"),
        ("drop", "wide(x).clamp(min=0)", "wide(x)"),
        ("arithmetic", " * ", " / "),
        ("arithmetic", " - ", " + "),
        ("generator", "generator", "torch.Generator().manual_seed(0)"),
        ("statement", "y += 1", "pass"),
        ("axis", "-1", "0"),
        ("swap", "y.sum", "y.mean"),
        ("return", "y.sum(dim=-1)", "-(y.sum(dim=-1))"),
    } <= changes
    lines = SOURCE.splitlines()
    for mutant in found:
        assert mutant.within == "clipped"  # nothing in docstrings, messages, texts of repr
        assert "ValueError" not in lines[mutant.line - 1]
        assert "says" not in lines[mutant.line - 1]


def test_every_fault_of_the_library_still_parses() -> None:
    # A sample of files: what does not parse is found by everything and shows nothing.
    for path in sorted((ROOT / "companion").rglob("*.py"))[::11]:
        raw = path.read_bytes()
        for mutant in mutants.mutants_of(path, ROOT)[::7]:
            assert raw[mutant.start : mutant.end].decode() == mutant.before
            ast.parse(raw[: mutant.start] + mutant.after.encode() + raw[mutant.end :])


def test_the_tests_of_a_module_are_those_of_its_chapter_and_the_laws() -> None:
    names = {p.name for p in mutants.tests_of("companion/pretraining/masked/_pairs.py", ROOT)}
    assert {"test_masked_pairs.py", "test_masked_model.py", "test_randomness.py"} <= names
    assert "test_denoising.py" not in names
    alone = mutants.tests_of("companion/core/random.py", ROOT)
    assert alone[0].name == "test_random.py"
    wing = {p.name for p in mutants.tests_of("companion/models/_text.py", ROOT)}
    assert {"test_text.py", "test_pretrained.py", "test_save.py"} <= wing
    beside = mutants.tests_of("companion/_console.py", ROOT)
    assert beside[0].name == "test_console.py"
    assert {p.parent.name for p in beside[1:]} == {"laws"}


@pytest.mark.parametrize(
    ("test", "verdict"),
    [
        ("assert lesson.double(2) == 4", "found"),
        ("assert lesson.double(2) > 0", "survived"),
        ("assert lesson.double(2) == 7", "unsound"),  # fails without a fault as well
    ],
)
def test_a_fault_is_found_missed_or_judged_by_a_test_that_always_fails(
    test: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "companion" / "part" / "lesson.py"
    module.parent.mkdir(parents=True)
    module.write_text("def double(x):\n    return x + x\n", encoding="utf-8")
    held = tmp_path / "tests" / "part" / "test_lesson.py"
    held.parent.mkdir(parents=True)
    # Another name than the library's: this process has imported that one already.
    held.write_text(
        "import importlib.util, multiprocessing, pytest\n"
        f"spec = importlib.util.spec_from_file_location('lesson', {str(module)!r})\n"
        "lesson = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(lesson)\n"
        "assert multiprocessing.current_process().name == 'MainProcess'\n"
        # The name of a case may hold spaces.
        "@pytest.mark.parametrize('x', [2], ids=['a case'])\n"
        f"def test_double(x):\n    {test}\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(mutants, "_copy", tmp_path)
    monkeypatch.setattr(mutants, "_sound", {})
    monkeypatch.setattr(mutants, "_seconds", {})
    (fault,) = [m for m in mutants.mutants_of(module, tmp_path) if m.before == " + "]
    fault = mutants.Mutant(**{**fault.__dict__, "after": " + 1 + "})
    assert mutants.judge(fault, limit=60.0)[0] == verdict
    # What was asked once is remembered, and the verdict the same.
    by = "tests/part/test_lesson.py::test_double"
    assert list(mutants._seconds) == [by]
    assert mutants._sound == ({} if verdict == "survived" else {by: verdict == "found"})
    assert mutants.judge(fault, limit=60.0)[0] == verdict
    assert module.read_text(encoding="utf-8").endswith("return x + x\n")


def test_a_run_that_goes_on_keeps_what_was_found_in_the_same_library(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutants, "ROOT", checkout)
    module = checkout / "companion" / "part" / "lesson.py"
    fault, *_ = mutants.mutants_of(module, checkout)
    progress = mutants.progress_file(0)
    assert mutants.noted(progress) == {}
    progress.parent.mkdir(parents=True)
    row = {"mutant": fault.__dict__, "by": "tests/part/test_lesson.py::test_it"}
    progress.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert mutants.noted(mutants.progress_file(0)) == {fault: row["by"]}
    assert mutants.noted(mutants.progress_file(1)) == {}
    module.write_text(SOURCE + "\n", encoding="utf-8")
    assert mutants.noted(mutants.progress_file(0)) == {}
