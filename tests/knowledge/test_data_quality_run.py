"""The stored run of the chapter: its corpus is what it says, and so are its counts."""

from types import SimpleNamespace
from typing import Any

import torch

from companion.core import generator
from companion.data import stored_run
from companion.models import generate
from companion.pretraining.autoregressive import initialize, llama_config


def small(script: Any, seed: int) -> Any:
    asked = SimpleNamespace(passages=150, test=7, each=2)
    pool = [f"passage {i} " + " ".join(f"w{i}x{j}" for j in range(90)) for i in range(200)]
    return script.plant(pool, asked, seed=seed)


def test_passages_stand_in_the_corpus_as_often_as_planted(scripts: Any) -> None:
    script = scripts.load("data_quality")
    corpus = small(script, 0)
    for copies, which in corpus.counts.items():
        for passage in which:
            assert corpus.origin.count(passage) == copies
            texts = [t for t, o in zip(corpus.texts, corpus.origin, strict=True) if o == passage]
            changed = [
                sum(a != b for a, b in zip(t.split(), texts[0].split(), strict=True)) for t in texts
            ]
            # Of the further copies every other one is changed, in two words at most.
            assert sum(change > 0 for change in changed) == (copies - 1) // 2
            assert max(changed) <= 2
    assert not set(corpus.unseen) & set(corpus.texts)
    assert small(script, 1).texts != corpus.texts


def test_what_is_dropped_is_counted_against_what_was_planted(scripts: Any) -> None:
    script = scripts.load("data_quality")
    corpus = small(script, 0)
    planted = len(corpus.texts) - len(corpus.passages)
    assert script.kept_by("raw", corpus) == (list(range(len(corpus.texts))), {})
    for arm, share in (("exact", 0.5), ("near", 1.0)):
        kept, told = script.kept_by(arm, corpus)
        assert told["planted"] == planted
        assert told["dropped"] == len(corpus.texts) - len(kept)
        assert told["right"] == told["dropped"]  # these passages have nothing in common
        assert abs(told["right"] / planted - share) < 0.06


def test_repeats_count_the_tokens_that_are_said_as_they_stand(scripts: Any) -> None:
    script = scripts.load("data_quality")
    config = llama_config((1, 12, 3), vocab=23, context=script.TOKENS + 1, ff_dim=31)
    model = initialize(config, generator=generator(1), dtype=torch.float64).eval()
    rows = torch.randint(0, 23, (5, script.TOKENS + 1), generator=generator(2))
    first = script.PROMPT + 1
    said = generate(model, rows[:, :first], tokens=script.SPOKEN)
    rows[0, first : first + script.SPOKEN] = said[0]
    rows[1, first : first + 4] = said[1, :4]
    rows[1, first + 4] = (said[1, 4] + 1) % 23
    found = script.repeats(model, rows)
    assert found[:2] == [script.SPOKEN, 4]


def test_copied_text_is_found_in_its_windows(scripts: Any) -> None:
    script = scripts.load("data_quality")
    config = llama_config((1, 12, 3), vocab=23, context=script.TOKENS + 1, ff_dim=31)
    model = initialize(config, generator=generator(1), dtype=torch.float64).eval()
    rows = torch.randint(0, 23, (9, script.TOKENS + 1), generator=generator(3))
    ask = {"texts": 11, "end": 0, "seed": 0}
    assert script.verbatim(model, rows, run=20, **ask) == 0
    # Runs of one token that occurs are all copied.
    assert script.verbatim(model, rows, run=1, **ask) > 0.99


def test_the_stored_run_has_three_seeds_of_each_arm() -> None:
    results = stored_run("data_quality").results
    assert {(run["seed"], run["arm"]) for run in results["runs"]} == {
        (seed, arm) for seed in range(3) for arm in ("raw", "exact", "near")
    }
    for run in results["runs"]:
        assert set(run["repeats"]) == {str(copies) for copies in results["copies"]}
        assert all(
            0 <= said <= results["spoken"] for row in run["repeats"].values() for said in row
        )
