"""The benchmark can tell equal from different, and met from missed."""

import json
import os
import time
from typing import Any

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import _process, _profile
from benchmarks import _worker as worker
from benchmarks._growth import slope
from benchmarks._pair import Pair, close
from benchmarks._process import Failed, ask
from benchmarks.pairs import PAIRS
from companion.data import stored_run


def test_pairs_say_what_they_measure() -> None:
    assert len(PAIRS) > 20
    for name, pair in PAIRS.items():
        assert name == pair.name
        assert name.count("/") == 1
        assert pair.task
        assert pair.peer


def test_no_two_rows_of_the_table_read_alike() -> None:
    rows = [(pair.task, pair.peer) for pair in PAIRS.values()]
    assert len(rows) == len(set(rows))
    # The stored run, which the page shows, has the words of the code.
    for run in stored_run("benchmark").results["runs"]:
        for row in run["pairs"]:
            if row["name"].startswith("optimizer/"):
                assert row["task"] == PAIRS[row["name"]].task


def test_results_that_differ_are_refused() -> None:
    same = close(1e-5)
    x = torch.tensor([1.0, -200.0])
    same(x + 1e-4, x)
    with pytest.raises(AssertionError, match="results differ by"):
        same(x + 1.0, x)
    with pytest.raises(AssertionError, match="shapes"):
        same(x[:1], x)
    with pytest.raises(AssertionError, match="1 results against 2"):
        same([x], [x, x])


@pytest.mark.parametrize(
    ("ratio", "memory", "marks", "said"),
    [
        (1.2, 0.5, (1.0, None), "met"),
        (0.9, 0.5, (1.0, None), "missed"),
        (0.99, 0.5, (1.0, None), "close"),
        (0.99, 0.5, (1.0, 0.4), "missed"),
        (0.9, 0.5, (None, None), ""),
        (1.2, 0.5, (1.0, 0.4), "missed"),
        (1.2, 0.3, (None, 0.4), "met"),
    ],
)
def test_a_verdict_follows_the_marks(
    ratio: float, memory: float, marks: tuple[Any, Any], said: str
) -> None:
    row = {
        "ratio": ratio,
        "ratio_high": ratio + 0.05,
        "memory_ratio": memory,
        "speed_mark": marks[0],
        "memory_mark": marks[1],
    }
    assert bench.verdict(row) == said


def test_an_exponent_is_fitted() -> None:
    lengths = (3, 7, 19)
    assert slope(lengths, [5e-6 * n**1.5 for n in lengths]) == pytest.approx(1.5)


def test_what_was_asked_for_is_measured() -> None:
    assert [pair.name for pair in bench.chosen(["loss"], "cpu")] == ["loss/full", "loss/chunked"]
    assert [pair.name for pair in bench.chosen(["bpe/train"], "cpu")] == ["bpe/train"]
    assert "bpe/train" not in {pair.name for pair in bench.chosen([], "cuda")}
    with pytest.raises(SystemExit, match="no pair or group speed; there are embedding/sgns"):
        bench.chosen(["speed"], "cpu")


def pair_of(ours: str, theirs: str, **options: Any) -> Pair:
    return Pair(name="a/b", task="t", peer="p", ours=None, theirs=None, same=close(0.0), **options)  # type: ignore[arg-type]


def answering(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any]) -> list[str]:
    asked: list[str] = []

    def ask(function: Any, name: str, *rest: str, threads: int) -> dict[str, Any]:
        job = "check" if function is worker.check else rest[0]
        asked.append(job)
        answer = answers[job]
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    monkeypatch.setattr(bench, "ask", ask)
    return asked


def test_sides_alternate_after_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, its = {"seconds": [2.0, 1.0, 9.0], "bytes": 1 << 22}, {"seconds": [6.0], "bytes": 1 << 23}
    asked = answering(monkeypatch, {"check": {"same": True}, "ours": mine, "theirs": its})
    row = bench.compare(pair_of("", "", speed=2.9), "cpu", 2)
    assert asked == ["check", "ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert (row["ratio"], row["memory_ratio"], row["verdict"]) == (3.0, 0.5, "met")
    assert "met" in bench.line(row)


@pytest.mark.parametrize(
    ("check", "shown"),
    [
        ({"missing": ["gensim"]}, "peer missing: gensim"),
        ({"same": False, "why": "results differ by 1"}, "FAILED: the results differ"),
        (Failed("out of memory"), "FAILED: out of memory"),
    ],
)
def test_a_missing_peer_and_a_failure_are_reported(
    monkeypatch: pytest.MonkeyPatch, check: Any, shown: str
) -> None:
    asked = answering(monkeypatch, {"check": check})
    row = bench.compare(pair_of("", ""), "cpu", 2)
    assert asked == ["check"]
    assert shown in bench.line(row)


def test_peak_memory_is_seen() -> None:
    device = torch.device("cpu")
    side = lambda: float(torch.ones(1 << 23).sum())  # noqa: E731 (32 MiB)
    taken = worker.memory(side, device)
    assert 0.8 * (1 << 25) < taken < 2 * (1 << 25)


def test_a_pair_runs_in_processes_of_its_own() -> None:
    name = "norm/rms-by-hand"
    assert ask(worker.check, name, "cpu", threads=1) == {"same": True}
    timed = ask(worker.time_side, name, "ours", "cpu", 0.01, threads=1)
    assert len(timed["seconds"]) >= 3
    assert json.dumps(timed)


def test_each_process_is_new_and_has_its_threads() -> None:
    found = {ask(os.getpid, threads=1), ask(os.getpid, threads=1), os.getpid()}
    assert len(found) == 3
    before = dict(os.environ)
    assert [ask(torch.get_num_threads, threads=n) for n in (1, 2)] == [1, 2]
    assert dict(os.environ) == before


def test_a_process_that_fails_or_dies_or_hangs_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failed, match="ValueError: invalid literal"):
        ask(int, "x", threads=1)
    with pytest.raises(Failed, match="the process ended without an answer"):
        ask(os._exit, 3, threads=1)
    monkeypatch.setattr(_process, "LIMIT", 0.2)
    with pytest.raises(Failed, match=r"took more than 0\.2 s"):
        ask(time.sleep, 60, threads=1)


def test_a_slow_call_is_not_repeated_for_its_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    monkeypatch.setattr(worker, "LONG", 0.0)
    found = worker.measure(lambda: calls.append(0.0), torch.device("cpu"), 0.0)
    assert (len(calls), len(found["seconds"])) == (2, 1)  # one for memory and warm-up, one timed
    monkeypatch.setattr(worker, "LONG", 9.0)
    calls.clear()
    found = worker.measure(lambda: calls.append(0.0), torch.device("cpu"), 0.0)
    assert (len(calls), len(found["seconds"])) == (5, 3)


def test_the_profile_of_decoding_adds_up() -> None:
    found = ask(_profile.measure, "cpu", threads=1)
    shares = found["shares"]
    assert set(shares) == {"products", "norms", "attention"}
    assert min(shares.values()) > 0
    assert sum(shares.values()) < 1
    assert found["operations"] > 100
