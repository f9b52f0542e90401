"""The stored run of the chapter: what it counts is what it says."""

import itertools
from typing import Any

import pytest
import torch

from companion import data
from companion.data import stored_run
from companion.knowledge import entity_linking as el


def tiny() -> data.WordNet:
    def synset(word: str, *examples: str, instance: bool = False) -> data.Synset:
        return data.Synset((word,), "a thing", examples, "location", (), instance)

    synsets = {
        "1": synset("city", "two cities met", "no such word"),
        "2": synset("city"),
        "3": synset("New York", instance=True),
        "4": synset("lonely", "a lonely example"),
    }
    senses = {
        "city": (data.WordSense("1", 5), data.WordSense("2", 0)),
        "new york": (data.WordSense("3", 0),),
        "lonely": (data.WordSense("4", 0),),
    }
    return data.WordNet(synsets, senses)


def test_items_are_ambiguous_nouns_in_their_examples(scripts: Any) -> None:
    script = scripts.load("entity_linking")
    (item,) = script.items_of(tiny())
    assert item == ("city", "two cities met", "1", 5)


def test_names_are_the_longest_single_things(scripts: Any) -> None:
    script = scripts.load("entity_linking")
    words = ["The", "City", "of", "New", "York", "and", "new", "york"]
    assert script.named(tiny(), words) == [(3, 5)]


def test_orphans_are_counted(scripts: Any) -> None:
    script = scripts.load("entity_linking")
    assert script.invalid(["I-PER", "I-PER", "O", "B-LOC", "I-PER"]) == 2
    assert script.invalid(["B-PER", "I-PER", "O"]) == 0


def test_an_interval_holds_its_weighted_mean(scripts: Any) -> None:
    script = scripts.load("entity_linking")
    values, weight = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([3.0, 1.0, 1.0, 1.0])
    middle, low, high = script.interval(values, ["a", "b", "c", "d"], weight, seed=0)
    assert middle == pytest.approx(4 / 6, abs=1e-4)
    assert low < middle < high
    same = script.interval(values, ["a"] * 4, weight, seed=0)
    assert same == [pytest.approx(4 / 6, abs=1e-4)] * 3


def test_no_two_names_of_one_label_touch_in_the_sample() -> None:
    # The chapter says so where it asks what the tag B is for.
    touching = []
    for sentence in data.conll_sample():
        found = el.spans(sentence.tags, scheme="BIO")
        touching += [pair for pair in itertools.pairwise(found) if pair[0].end == pair[1].start]
    assert touching
    assert all(one.label != other.label for one, other in touching)


def test_the_stored_run_says_what_the_chapter_says() -> None:
    results = stored_run("entity_linking").results
    arms = results["names"]["arms"]
    for name in ("rules", "crf", "gate", "ernie", "shuffled"):
        assert all(row["orphans"] == 0 for row in arms[name])
        # Without orphans the two readings agree.
        assert all(row["strict"] == row["conll"] for row in arms[name])
    linking = results["linking"]
    assert linking["prior"]["text"][0] > linking["context"]["text"][0]
    assert linking["context"]["examples"][0] > linking["prior"]["examples"][0]
    assert linking["recall"] == sorted(linking["recall"])
    for scores in (results["nil"]["with"], results["nil"]["never"]):
        product = scores["recall_at_k"] * scores["accuracy_given_recall"]
        assert scores["accuracy_in_kb"] == pytest.approx(product)
    assert "Princeton" in results["notice"]
