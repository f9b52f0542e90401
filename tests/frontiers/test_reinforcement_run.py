"""The stored runs of the chapter: the task is what it says, and the numbers fit together."""

import random
from typing import Any

import pytest
import torch

from companion import data
from companion.core import generator
from companion.transformer.block import Decoder, TransformerConfig, initialize_

NAMES = [f"reinforcement_{seed}" for seed in range(3)]


@pytest.fixture
def script(scripts: Any) -> Any:
    return scripts.load("reinforcement")


def policy() -> Decoder:
    config = TransformerConfig(vocab=14, dim=12, layers=1, heads=3, ff_dim=29, context=17)
    return initialize_(Decoder(config), generator=generator(0)).double().eval()


def test_the_text_makes_the_mistakes_that_the_chapter_names(script: Any) -> None:
    order = random.Random(0)
    assert script.hard(17, 26)
    assert not script.hard(17, 25)
    n = 4000
    made = [script.copied(17, 26, order) for _ in range(n)]
    assert set(made) == {43, 33}
    assert abs(made.count(33) / n - 0.7) < 5 * (0.21 / n) ** 0.5
    made = [script.copied(41, 52, order) for _ in range(n)]
    assert set(made) == {93, 83, 92, 94, 103}
    assert abs(made.count(93) / n - 0.6) < 5 * (0.24 / n) ** 0.5


def test_no_sum_is_both_read_and_tested(script: Any, tmp_path: Any) -> None:
    task = script.Task(3, tmp_path)
    assert not set(task.tested) & set(task.known)
    assert set(task.prompted) <= set(task.known)
    lines = (tmp_path / "sums.txt").read_text(encoding="utf-8").splitlines()
    read = {tuple(map(int, line.split("=")[0].split("+"))) for line in lines}
    assert read == set(task.known)
    assert len(task.tested) == 1000


def test_ids_are_those_of_the_tokenizer(script: Any) -> None:
    from tokenizers import Tokenizer

    words = Tokenizer.from_str(script.characters())
    text = "\n37+48=85\n"
    assert words.encode(text).ids == script.encode(text).tolist()
    assert script.decode(script.encode(text).tolist()) == text


def test_the_probability_of_a_right_answer_is_exact(script: Any) -> None:
    model = policy()
    pairs = [(37, 48), (99, 99), (10, 11)]
    found = script.right_probability(model, pairs)
    for (a, b), p in zip(pairs, found, strict=True):
        text, prompt = script.encode(f"\n{a}+{b}={a + b}\n"), len(f"\n{a}+{b}=")
        log_p = model(text[None])[0].log_softmax(-1)
        want = sum(log_p[i - 1, text[i]] for i in range(prompt, len(text))).exp()
        assert float(p) == pytest.approx(float(want.detach()))


def test_the_rewards_are_what_they_are_called(script: Any) -> None:
    reward = script.right([(37, 48), (10, 11)])
    answers = [script.encode(text).tolist() for text in ("85", "85", "21", "085")]
    assert reward([0, 1, 1, 0], answers) == [1.0, 0.0, 1.0, 0.0]
    votes = script.vote([0] * 16, [[1, 2]] * 9 + [[1, 3]] * 7)
    assert votes.tolist() == [1.0] * 9 + [0.0] * 7


def test_pairs_are_of_one_prompt_and_one_is_right(script: Any, tmp_path: Any) -> None:
    task = script.Task(3, tmp_path)
    task.prompted = task.prompted[:40]
    model = policy()
    with torch.no_grad():  # a policy that is right now and then: it writes few digits
        model.head.weight[0] = 0
    pairs = script.own_pairs(model, task, 0)
    chosen, rejected = pairs["ids"].chunk(2)
    prompt = int(pairs["prompt"])
    assert torch.equal(chosen[:, :prompt], rejected[:, :prompt])


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_run_is_what_the_chapter_says(name: str) -> None:
    run = data.stored_run(name)
    seed = int(name[-1])
    assert run.seed == seed
    assert run.command.startswith(f"python book/_runs/reinforcement.py --seed {seed}")
    assert "1 thread" in run.machine
    results = run.results
    start, last = results["start"], results["verifier"]["points"][-1]
    assert last["step"] == 120
    assert last["exact"] - start["exact"] >= 0.2
    chances = [float(p) for p in results["probabilities"].split()]
    assert len(chances) == 1000
    assert sum(chances) / 1000 == pytest.approx(start["exact"], abs=1e-4)
    pairs = {(made["variant"], made["beta"]): made["exact"] for made in results["preferences"]}
    assert pairs["sigmoid", 0.2] < start["exact"] < pairs["sigmoid", 3.0]
    for way, steps in (("price 0.2", 30), ("majority", 30), ("judge", 60)):
        assert results[way]["points"][-1]["step"] == steps
    for way in ("majority", "judge"):
        assert results[way]["points"][-1]["exact"] < start["exact"]
    judge = results["judge"]
    assert 0.5 < judge["agrees"] < judge["agrees_seen"] - 0.2  # it learned its pairs by heart
    paid = judge["watched"]["reward"]
    assert paid[-1] > paid[0]
    assert 0 < results["votes"]["hard"] < 0.5 < results["votes"]["easy"] < 1
    for rule, row in results["retry"].items():
        before, after, gained, lost, _ = row
        assert after == pytest.approx(before + gained - lost, abs=2e-4), rule
    assert results["retry"]["if verified"][3] == 0.0


def test_beliefs_are_of_right_and_wrong_sums_alike() -> None:
    results = data.stored_run("reinforcement_belief").results
    right = results["right"].split()
    assert right.count("1") == right.count("0") == 81
    for row in results["beliefs"]:
        assert all(0 <= float(p) <= 1 for p in row.split())
