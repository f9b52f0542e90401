"""The stored run of the chapter: its parts do what they say, and it holds no sentence."""

from typing import Any

import torch

from companion import data
from companion.trust import debiasing as de
from companion.trust import fairness as fa


def test_the_census_is_whole_and_the_last_feature_is_sex(scripts: Any) -> None:
    script = scripts.load("debiasing")
    x, rich, male = script.census(None)
    assert len(x) == 48_842
    assert torch.equal(x[:, -1], male.double())
    assert x.isfinite().all()
    assert 0.23 < float(rich.double().mean()) < 0.25


def test_stored_counts_are_those_of_a_third_of_the_people() -> None:
    for seed in data.stored_run("debiasing").results["census"]:
        for name, counts in seed.items():
            if name != "fit":
                assert torch.tensor(counts).sum() == 48_842 - 2 * 48_842 // 3
    # Nobody is in two places: outcomes by group are the same for all methods.
    first = fa.rates(fa.Cells(*torch.tensor(seed["logistic"])))
    other = fa.rates(fa.Cells(*torch.tensor(seed["LEACE"])))
    assert torch.equal(first.base_rate, other.base_rate)


def test_a_small_run_finds_what_the_stored_one_has(scripts: Any) -> None:
    script = scripts.load("debiasing")
    made = script.frontier(0, 3000, 2, 5)
    stored = data.stored_run("debiasing").results["census"]
    assert made.keys() == stored[0].keys()
    corpus = script.swapped_corpus(1, 200, 1)
    assert corpus.keys() == data.stored_run("debiasing").results["corpus"][1].keys()
    assert corpus["men"] > corpus["women"]


def test_neighbors_of_pronouns_are_counted(scripts: Any) -> None:
    script = scripts.load("debiasing")
    near = script.around([["a", "he", "b", "c", "d"], ["he", "a"]], ("he",), 2)
    assert near == {"a": 2, "b": 1, "c": 1}


def test_erasers_are_fitted_on_other_words_than_are_tested(scripts: Any) -> None:
    script = scripts.load("debiasing")
    tested = {"sister", "man"}
    pairs = script.gender_pairs(tested)
    assert not tested & {word for pair in pairs for word in pair}
    assert ("king", "queen") in pairs
    assert ("husbands", "wives") in pairs  # male words first, also where the lists turn them
    assert not set(script.OTHERS) & set(script.TEMPLATES)
    assert not set(script.FITTED) & set(script.SEAT)


def test_the_stored_gaps_are_those_of_the_fairness_run() -> None:
    # The same model, templates and occupations, scored by other code.
    gaps = data.stored_run("debiasing").results["pronouns"][0]["plain"]["gaps"].split()
    other = data.stored_run("fairness").results["occupations"]["gaps"]
    means = [sum(map(float, row.split())) / len(row.split()) for row in other]
    for one, two in zip(gaps, means, strict=True):
        assert abs(float(one) - two) < 5e-3
    assert len(data.stored_run("debiasing").results["pronouns"]) == 3


def test_the_stored_run_holds_numbers_alone() -> None:
    def words(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [word for inner in value.values() for word in words(inner)]
        if isinstance(value, list):
            return [word for inner in value for word in words(inner)]
        return value.split() if isinstance(value, str) else []

    for word in words(data.stored_run("debiasing").results):
        float(word)
    assert de.SwapLexicon().counts("he and she") == (1, 1)
