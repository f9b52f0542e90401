"""What ``train`` tells on its way, what it takes where nothing is said, and the bytes it counts."""

import argparse
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models

from companion.command import _run
from companion.command._corpus import _Told
from companion.command._train import add_arguments
from companion.core import Checkpoints, Processes


class Kept(Checkpoints):
    """Checkpoints of an earlier run, of which only the steps are asked for."""

    def __init__(self, steps):
        self.kept = steps

    def steps(self):
        return self.kept


class HeldOut(_run._HeldOut):
    """Measures 2 bits at every question, and keeps the curve."""

    def __init__(self):
        self.curve = []

    def measure(self, module, autocast):
        return 2.0


@pytest.mark.parametrize("first", [0, 4])
def test_progress_is_told_at_its_steps_with_rate_and_time_left(first, monkeypatch, capsys):
    clock = SimpleNamespace(now=100.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(_run, "time", clock)
    held_out = HeldOut()
    report = _run._Report(
        argparse.Namespace(report_every=3),
        {"steps": 11, "evaluate_every": 5, "batch": 7, "context": 13},
        Processes(rank=0, world=1, device=torch.device("cpu")),
        torch.nn.Identity(),
        held_out,
        None,
        Kept([1, first] if first else []),
    )
    told = {}
    for step in range(first + 1, 12):
        clock.now += 65.0  # seconds a step
        report(step, torch.tensor(1.25))
        told[step] = capsys.readouterr().out
    # Every third step, every fifth with what was held out, and the last.
    assert {step for step, line in told.items() if line} == {3, 5, 6, 9, 10, 11} - {
        *range(first + 1)
    }
    assert held_out.curve == [(step, 2.0) for step in (5, 10, 11)]
    # From step 6 to step 9: three steps of 7 * 13 tokens in 195 s. Two are left, of 65 s each.
    assert told[9] == "step 9/11  loss 1.2500  1 tokens/s  0:02:10 left\n"
    assert (
        told[10] == "step 10/11  loss 1.2500  1 tokens/s  held out 2.0000 bits/byte  0:01:05 left\n"
    )
    assert told[11] == "step 11/11  loss 1.2500  1 tokens/s  held out 2.0000 bits/byte\n"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(59.6, "0:01:00"), (3599.0, "0:59:59"), (36_061.0, "10:01:01")]
)
def test_a_duration_is_hours_minutes_and_seconds(seconds, shown):
    assert _run._duration(seconds) == shown


def test_what_is_not_said_is_as_the_help_says():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    chosen = vars(parser.parse_args(["play.txt", "--out", "model"]))
    expected = {
        "dropout": 0.0, "tokenizer": None, "steps": 1000, "warmup": None, "weight_decay": 0.1,
        "clip": 1.0, "accumulate": 1, "held_out": 0.05, "seed": 0, "bf16": False, "compile": False,
        "ff_dim": None,
    }  # fmt: skip
    assert {name: chosen[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "size"), [("xa", 1), ("x\u00e9", 2), ("x\u6c34", 3), ("x\U0001f600", 4)]
)
def test_a_lost_character_counts_as_its_bytes(text, size):
    tokenizer = Tokenizer(models.WordLevel({"x": 0, "?": 1}, unk_token="?"))
    told = _Told(tokenizer, {"unk_token": "?"})
    told.read(text[1:], tokenizer.encode(text[1:]))
    assert told.lost == size == len(text[1:].encode())
    assert told.example == text[1:]
    told.read("x", tokenizer.encode("x"))
    assert told.lost == size
