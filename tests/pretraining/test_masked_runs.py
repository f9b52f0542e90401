"""The long runs of the chapter on masked models: they work, and left what the chapter says."""

import math
from typing import Any

import torch

from companion import data
from companion.core import generator


def test_bert_is_trained_and_compared(scripts: Any) -> None:
    found = scripts.run(
        "masked_bert",
        *("--steps", "4", "--every", "2", "--pairs", "20", "--tuning-pairs", "6", "--order", "2"),
    ).results
    assert found["curve"]["step"] == [0, 2, 4]
    assert len(found["training"]["masked"]) == 2
    for setting in ("together", "alone"):
        table = found[setting]["accuracy"]
        assert set(table) == {"bert", "unigram", "left", "both"}
        assert all(len(rows) == 10 for rows in table.values())
        # Counting both sides beats counting one, even after so little text for tuning.
        assert sum(table["both"]) > sum(table["left"]) > sum(table["unigram"])
    assert found["together"]["blanks"] == found["alone"]["blanks"]
    # Alone or together the same blanks: without context nothing changes.
    assert found["together"]["accuracy"]["unigram"] == found["alone"]["accuracy"]["unigram"]


def test_choices_are_compared(scripts: Any) -> None:
    found = scripts.run(
        "masked_choices",
        *("--steps", "2", "--mask-steps", "3", "--pairs", "20", "--chapters", "4"),
    ).results
    assert list(found["rates"]) == ["0.05", "0.15", "0.3", "0.5", "0.7"]
    assert list(found["masks"]) == ["static", "ten masks", "dynamic"]


def test_pairs_are_learned(scripts: Any) -> None:
    small = ("--steps", "2", "--batch", "2", "--pairs", "12", "--every", "2")
    found = scripts.run("masked_pairs", *small).results
    assert list(found["tasks"]) == ["NSP, other chapter", "NSP, same chapter", "SOP"]
    assert all(task["curve"]["step"] == [0, 2] for task in found["tasks"].values())


def test_static_masks_repeat_and_dynamic_ones_do_not(scripts: Any) -> None:
    choices = scripts.load("masked_choices")
    documents = [[[10 + i, 11 + i, 12 + i] for i in range(9)] for _ in range(2)]
    targets = {}
    for name, copies in choices.COPIES.items():
        source = choices.from_copies(documents, copies=copies, size=16, seed=0)
        epochs = []
        for _ in range(12):
            pairs, read = next(source)
            order = torch.argsort(pairs.ids[:, 1:4].sum(1) * 1000 + pairs.ids.sum(1), stable=True)
            epochs.append(read.chosen[order].sum(0).tolist())
        targets[name] = epochs
    assert all(epoch == targets["static"][0] for epoch in targets["static"])
    assert targets["ten masks"][0] == targets["ten masks"][10] != targets["ten masks"][1]
    assert targets["dynamic"][0] != targets["dynamic"][10]


def test_odds_ratios_of_both_blanks_agree_for_a_joint_distribution(scripts: Any) -> None:
    bert = scripts.load("masked_bert")
    split = bert.corpus(held_out=30)
    model = bert.build(g=generator(0))
    with torch.no_grad():  # with no way through the blocks, tokens are independent: ratios are 1
        for block in model.encoder.blocks:
            block.attention.out.weight.zero_()
    found = bert.log_odds_ratios(model, split.test, pairs=11)
    assert found.shape == (11, 2)
    assert float(found.abs().max()) < 1e-4


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_the_stored_bert_beats_every_way_of_counting() -> None:
    run = data.stored_run("masked_bert")
    assert run.command == "python book/_runs/masked_bert.py"
    table = run.results["together"]["accuracy"]
    for name in ("unigram", "left", "both"):
        gains = torch.tensor(table["bert"]) - torch.tensor(table[name])
        # The margin is at least three standard errors over the ten groups of chapters.
        assert float(gains.mean()) > 3 * float(gains.std()) / math.sqrt(10)
    nats = {name: mean(values) for name, values in run.results["together"]["nats"].items()}
    assert nats["bert"] < nats["both"] < nats["left"] < nats["unigram"]
    assert sum(run.results["together"]["blanks"]) > 2000


def test_counting_beats_the_stored_bert_early_and_gains_when_blanks_come_alone() -> None:
    results = data.stored_run("masked_bert").results
    both = {
        setting: mean(results[setting]["accuracy"]["both"]) for setting in ("together", "alone")
    }
    assert results["curve"]["accuracy"][0] < results["curve"]["accuracy"][1] < both["together"]
    assert both["together"] < both["alone"]


def test_static_masks_are_learned_by_heart_in_the_stored_run() -> None:
    run = data.stored_run("masked_choices")
    masks = run.results["masks"]
    seen = {name: found["training"][-1] for name, found in masks.items()}
    held = {name: mean(found["nats"]) for name, found in masks.items()}
    assert seen["static"] < seen["dynamic"]
    assert held["dynamic"] < held["static"]
    assert run.results["rates"].keys() == {"0.05", "0.15", "0.3", "0.5", "0.7"}


def test_the_stored_encoder_finds_topic_easier_than_order() -> None:
    tasks = data.stored_run("masked_pairs").results["tasks"]
    scores = {name: mean(found["accuracy"]) for name, found in tasks.items()}
    assert scores["NSP, other chapter"] > scores["NSP, same chapter"]
    assert scores["NSP, other chapter"] > scores["SOP"]
