"""The stored race of the chapter: its script runs, and the stored numbers are whole."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from companion import data

RUNS = Path(__file__).parents[2] / "book" / "_runs"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RUNS))
    threads = torch.get_num_threads()
    import optimizer_race

    yield optimizer_race
    torch.set_num_threads(threads)
    for name in ("optimizer_race", "_store"):
        sys.modules.pop(name, None)


def check(results: dict[str, Any], tasks: tuple[str, ...], methods: tuple[str, ...]) -> None:
    for name in tasks:
        race = results[name]
        assert tuple(race["methods"]) == methods
        # More context cannot hurt a table by much on a million symbols, and here it helps.
        assert race["tables"]["unigram"] > race["tables"]["bigram"] > race["tables"]["trigram"]
        for found in race["methods"].values():
            tried = [score for score in found["tried"].values() if score is not None]
            assert found["tried"][f"{found['rate']:.4g}"] == min(tried)
            assert len(found["test"]) == 3
            assert all(math.isfinite(loss) for loss in found["curve"])


def test_the_script_runs_with_few_steps(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {}

    def store(name: str, results: dict[str, Any], *, seed: int, seconds: float) -> None:
        kept.update(name=name, results=results, seed=seed, seconds=seconds)

    monkeypatch.setattr(script, "store", store)
    options = ["--steps", "2", "--seed", "5", "--evaluated", "40", "--tasks", "characters"]
    script.main([*options, "--methods", "momentum", "Muon"])
    assert (kept["name"], kept["seed"]) == ("optimizer_race", 5)
    check(kept["results"], ("characters",), ("momentum", "Muon"))
    json.dumps(kept["results"], allow_nan=False)


def test_the_search_ends_at_a_rate_between_two_worse_ones(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def run(task: Any, method: str, rate: float, *, seed: int, steps: int) -> dict[str, Any]:
        asked.append(rate)
        score = None if rate > 100 else (math.log(rate) - math.log(50)) ** 2
        return {"rate": rate, "validation": score}

    monkeypatch.setattr(script, "run", run)
    found = script.search(None, "SGD", 1.0, seed=0, steps=1)
    rates = [one["rate"] for one in found]
    assert rates == sorted(set(asked))
    scores = [one["validation"] for one in found]
    best = scores.index(min(score for score in scores if score is not None))
    assert rates[best] == pytest.approx(81)
    assert 0 < best < len(rates) - 1


def test_the_stored_race_is_whole_and_every_best_rate_has_neighbors(script: Any) -> None:
    run = data.stored_run("optimizer_race")
    check(run.results, script.TASKS, tuple(script.START))
    for name in script.TASKS:
        for found in run.results[name]["methods"].values():
            rates = [float(rate) for rate in found["tried"]]
            assert min(rates) < found["rate"] * 0.99 < found["rate"] * 1.01 < max(rates)
    assert run.command == "python book/_runs/optimizer_race.py"
