"""Stored training runs: written whole, read back, refused when they are not what they should be."""

import json
import sys
from pathlib import Path

import pytest

from companion import data
from companion.data import stored_runs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stored_runs, "FOLDER", tmp_path)
    return tmp_path


def test_what_a_run_stores_is_read_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_runs"))
    import _store

    monkeypatch.setattr(_store, "FOLDER", folder)
    monkeypatch.setattr(sys, "argv", ["/somewhere/else/short.py", "--steps", "3"])
    path = _store.store("short", {"loss": [2.5, 1.25]}, seed=5, seconds=1.26)
    run = data.stored_run("short")
    assert run.results == {"loss": [2.5, 1.25]}
    assert (run.seed, run.seconds) == (5, 1.3)
    assert run.command == "python book/_runs/short.py --steps 3"
    assert "thread" in run.machine
    assert repr(run.date) == run.date  # no quotation marks in a page
    assert repr(run) == f"StoredRun('short', {run.date}, 1 s on {run.machine})"
    assert set(run.versions) == {"python", "torch", "companion"}
    assert list(folder.iterdir()) == [path]  # nothing half written is left

    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        _store.store("short", {"loss": float("nan")}, seed=5, seconds=1.0)
    assert path.read_bytes() == before


def test_what_is_not_a_run_is_refused(folder: Path) -> None:
    with pytest.raises(data.MissingDataError, match="no stored run is called 'absent'"):
        data.stored_run("absent")
    (folder / "half.json").write_text('{"name": "half"', encoding="utf-8")
    with pytest.raises(data.CorruptDataError, match=r"half\.json is not JSON"):
        data.stored_run("half")
    fields = dict.fromkeys(stored_runs.FIELDS, 0) | {"name": "other"}
    (folder / "renamed.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(data.CorruptDataError, match="its own name"):
        data.stored_run("renamed")


def test_every_stored_run_can_be_repeated_by_its_command() -> None:
    for file in (ROOT / "companion" / "data" / "runs").glob("*.json"):
        run = data.stored_run(file.stem)
        script = run.command.split()[1]
        assert (ROOT / script).is_file(), f"{file.name} names {script}, which is not there"
