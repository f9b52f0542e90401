"""The stored runs of the chapter: their parts do what they say, and keep only free texts."""

from typing import Any

import pytest
import torch

from companion import data


def numbers(text: str) -> list[float]:
    return [float(v) for v in text.split()]


@pytest.mark.parametrize("name", ["outlook", "outlook_reader"])
def test_the_runs_are_whole(name: str) -> None:
    run = data.stored_run(name)
    assert run.results["cpu_seconds"] > 0


def test_no_article_and_no_question_is_stored() -> None:
    run = data.stored_run("outlook").results
    stored = str(run["summaries"]) + str(run["retrieval"]) + str(run["reading"])
    for article in data.xsum()[:200]:
        assert article.summary not in stored
    for question in data.questions("disflqa")[:200]:
        assert question.question not in stored


def test_verses_to_learn_from_are_not_those_of_the_test(scripts: Any) -> None:
    script = scripts.load("outlook")
    made = script.verses(7, 50)
    assert len(set(made["places"])) == 7
    assert not set(made["places"]) & set(made["nearest"])
    stored = data.stored_run("outlook").results["verses"]
    assert set(stored) == set(made)
    assert made["places"] == stored["places"][:7]
    assert len(stored["table"]) == len(stored["places"])


def test_no_single_sentence_beats_the_best_possible_one() -> None:
    told = data.stored_run("outlook").results["summaries"]
    best = numbers(told["best possible"]["rouge_1"])
    for name in ("lead", "random", "TextRank, words", "TextRank, MiniLM", "nearest the mean"):
        found = numbers(told[name]["rouge_1"])
        assert len(found) == told["articles"]
        assert all(a <= b for a, b in zip(found, best, strict=True))


def test_ranks_of_the_search_lie_among_the_passages(scripts: Any) -> None:
    script = scripts.load("outlook")
    texts, asked, gold = script.passages(5)
    assert len(set(texts)) == len(texts)
    questions = data.questions("disflqa")
    assert all(texts[int(i)] == q.passage for i, q in zip(gold, questions, strict=True))
    assert asked == [q.question for q in questions]
    told = data.stored_run("outlook").results["retrieval"]
    for name in ("BM25", "dense", "both"):
        ranks = numbers(told[name])
        assert len(ranks) == told["questions"]
        assert 1 <= min(ranks) <= max(ranks) <= told["passages"]


def test_answers_are_located_with_blanks_around_signs(scripts: Any) -> None:
    script = scripts.load("outlook_reader")
    passage = "It cost 40 , 000 dollars in 1910 - 1940 ."
    first, last = script.locate("40,000", passage)
    assert passage[first : last + 1] == "40 , 000"
    assert script.locate("nothing", passage) is None
    assert script.locate("", passage) is None


def test_the_reader_is_tested_on_other_passages(scripts: Any) -> None:
    script = scripts.load("outlook_reader")
    rows = [
        script.Vectors(
            script.Example([1, 2], [False, True], [(0, 0), (0, 1)], 1, 1, f"p{i % 5}", "p"),
            torch.ones(2, 6),
        )
        for i in range(20)
    ]
    train, test = script.split(rows, 4, 0)
    assert len(test) == 4
    assert not {v.row.passage for v in train} & {v.row.passage for v in test}
    stored = data.stored_run("outlook_reader").results
    for seed in stored["seeds"]:
        f1, exact = numbers(seed["f1"]), seed["exact"]
        assert len(f1) == len(exact) == len(numbers(seed["sure"]))
        assert all(v == 1000 for v, e in zip(f1, exact, strict=True) if e == "1")
