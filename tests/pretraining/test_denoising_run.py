"""The stored run of the chapter: its script runs, and the stored numbers are whole."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from companion import data

RUNS = Path(__file__).parents[2] / "book" / "_runs"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RUNS))
    import denoising_objectives

    yield denoising_objectives
    for name in ("denoising_objectives", "_store"):
        sys.modules.pop(name, None)


def check(results: dict[str, Any], objectives: tuple[str, ...], seeds: int) -> None:
    assert tuple(results["runs"]) == objectives
    for name, found in results["runs"].items():
        assert len(found) == seeds
        for run in found:
            assert 0 <= run["probe"] <= 1
            tasks = {"causal", "mlm"} | (set() if name == "permuted" else {"prefix", "infilling"})
            assert set(run["losses"]) == tasks
            assert run["steps"] > 0
            assert run["curve"]
    assert set(results["baselines"]) == {"majority", "untrained", "bag of tokens", "unigram loss"}
    assert len(results["divisions"]) == 8


def test_the_script_runs_with_few_steps(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {}

    def store(name: str, results: dict[str, Any], *, seed: int, seconds: float) -> None:
        kept.update(name=name, results=results, seed=seed, seconds=seconds)

    monkeypatch.setattr(script, "store", store)
    chosen = ("mlm", "permuted", "infilling", "glm")
    options = ["--steps", "2", "--seeds", "2", "--seed", "5", "--texts", "40"]
    script.main([*options, "--objectives", *chosen])
    assert (kept["name"], kept["seed"]) == ("denoising_objectives", 5)
    check(kept["results"], chosen, 2)
    json.dumps(kept["results"], allow_nan=False)


def test_the_stored_run_is_whole_and_compute_was_equal(script: Any) -> None:
    run = data.stored_run("denoising_objectives")
    check(run.results, script.OBJECTIVES, 3)
    spent = [one["flops"] for found in run.results["runs"].values() for one in found]
    # A whole number of steps: the last one may be half there.
    assert max(spent) / min(spent) < 1.02
    assert run.command == "python book/_runs/denoising_objectives.py"
    assert (
        RUNS.parent.parent / "companion/data/runs/denoising_objectives.json"
    ).stat().st_size < 61440
