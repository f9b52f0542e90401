"""The stored run of the chapter: what it scores is what it says, and it holds no sentence."""

from typing import Any

import torch

from companion import data
from companion.models import smollm2
from companion.trust.fairness import part_log_probs


def column(part: dict[str, Any], name: str) -> list[float]:
    return [float(value) for value in part[name].split()]


def test_columns_are_numbers_in_one_string(scripts: Any) -> None:
    script = scripts.load("fairness")
    assert script.column(torch.tensor([1.5, -0.25, 3.0])) == "1.5 -0.25 3"
    assert script.some_of(list(range(7)), 9) == list(range(7))
    assert script.some_of(list(range(99)), 9) == sorted(script.some_of(list(range(99)), 9))
    assert script.singular("counselors") == "counselor"


def test_every_question_has_one_answer_that_says_unknown(scripts: Any) -> None:
    script = scripts.load("fairness")
    for question in data.bbq():
        assert sum(bool(script.UNKNOWN.search(option)) for option in question.options) == 1


def test_the_stored_run_scored_what_it_says() -> None:
    results = data.stored_run("fairness").results
    decoder = smollm2()
    pairs = data.crows_pairs()
    assert results["crows"]["type"].split() == [pair.bias_type for pair in pairs]
    pair = pairs[-1]
    before, after = pair.sentence.split("[MASK]")
    made = part_log_probs(decoder, [(before, word, after) for word in (pair.more, pair.less)])
    for place, name in ((1, "word"), (2, "rest")):
        difference = float(made.log_probs[0, place] - made.log_probs[1, place])
        # Kept to a thousandth; float32 sums in another order.
        assert abs(column(results["crows"], name)[-1] - difference) < 2e-3


def test_the_stored_run_holds_no_sentence() -> None:
    results = data.stored_run("fairness").results
    shown = set(results["occupations"]["names"]) | set(results["occupations"]["templates"])
    words: list[str] = []
    for name, part in results.items():
        if isinstance(part, dict):
            for value in part.values():
                listed = value if isinstance(value, list) else [value]
                texts = [v for v in listed if isinstance(v, str) and v not in shown]
                words += " ".join(texts).split()
        else:
            assert name == "cpu_seconds"
    kinds = {pair.bias_type for pair in data.crows_pairs()}
    kinds |= {item.bias_type for item in data.stereoset()}
    kinds |= {sentence.stereotyped for sentence in data.winobias()}
    for word in set(words) - kinds:
        float(word)  # nothing but numbers
