"""The stored run of the chapter: its script runs, and the stored numbers are whole."""

from pathlib import Path
from typing import Any

from companion import data


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


def test_the_script_runs_with_few_steps(scripts: Any) -> None:
    chosen = ("mlm", "permuted", "infilling", "glm")
    options = ["--steps", "2", "--seeds", "2", "--seed", "5", "--texts", "40"]
    made = scripts.run("denoising_objectives", *options, "--objectives", *chosen)
    assert made.seed == 5
    check(made.results, chosen, 2)


def test_the_stored_run_is_whole_and_compute_was_equal(scripts: Any) -> None:
    run = data.stored_run("denoising_objectives")
    check(run.results, scripts.load("denoising_objectives").OBJECTIVES, 3)
    spent = [one["flops"] for found in run.results["runs"].values() for one in found]
    # A whole number of steps: the last one may be half there.
    assert max(spent) / min(spent) < 1.02
    assert run.command == "python book/_runs/denoising_objectives.py"
    file = Path(data.__file__).parent / "runs/denoising_objectives.json"
    assert file.stat().st_size < 61440
