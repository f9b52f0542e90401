"""The long runs of the chapter: their scripts work, and what is stored is what the chapter says."""

from typing import Any

from companion import data
from companion.pretraining.autoregressive import llama_config
from companion.transformer.block import parameter_count


def test_the_script_of_the_language_model_runs(scripts: Any) -> None:
    sizes = ("--layers", "1", "--dim", "24", "--heads", "3", "--context", "32", "--vocab", "300")
    steps = ("--steps", "4", "--seed", "3", "--plays", "8", "--batch", "2")
    run = scripts.run("autoregressive_gpt", *steps, *sizes)
    made = run.results
    assert run.seed == 3
    assert made["plays"] == [6, 1, 1]
    assert {row["tokens"] for row in made["kneser_ney"]} == {"bytes", "BPE 512"}
    (only,) = made["runs"]
    assert only["seed"] == 3
    assert only["held_out"][-1][0] == 4
    # After 4 steps the model is about uniform over 300 tokens of some two bytes.
    assert 3 < only["test"] < 9


def test_the_script_of_the_scaling_runs_runs(scripts: Any) -> None:
    made = scripts.run("scaling", "--steps", "2", "--scored", "1000", "--repeats", "2").results
    assert len(made["runs"]) > 15
    assert all(row["D"] == 512 for row in made["runs"])
    (again,) = made["repeats"]
    assert again["seed"] == 1


def test_the_stored_language_model_beats_every_counting_model() -> None:
    kept = data.stored_run("autoregressive_gpt")
    made = kept.results
    assert kept.command.startswith("python book/_runs/autoregressive_gpt.py")
    assert made["plays"] == [32, 3, 3]
    texts = list(data.shakespeare_plays().values())
    tests = [text for i, text in enumerate(texts) if i % 13 == 7]
    assert made["bytes"][2] == sum(len(text.encode()) for text in tests)
    layers, dim, heads = made["size"]
    config = llama_config(
        (layers, dim, heads),
        vocab=made["vocab"],
        context=made["context"],
        multiple=32,
        tied=True,
    )
    assert made["parameters"] == parameter_count(config, kind="decoder")
    rows = made["kneser_ney"]
    assert {row["tokens"] for row in rows} >= {"bytes", "BPE 512", "BPE 1024", "BPE 2048"}
    assert {row["order"] for row in rows} == set(range(3, 10))
    for own in made["runs"]:
        assert own["test"] < min(row["test"] for row in rows) - 0.02
        assert own["held_out"][-1][1] < min(row["held_out"] for row in rows) - 0.02
        assert own["held_out"][-1][0] == made["steps"]


def test_the_stored_scaling_runs_are_what_the_chapter_says() -> None:
    made = data.stored_run("scaling").results
    runs = made["runs"]
    assert len({row["N"] for row in runs}) == 7
    assert len({row["C"] for row in runs}) == 5
    for row in runs:
        config = llama_config(
            tuple(row["size"]), vocab=256, context=made["context"], multiple=16, tied=True
        )
        assert row["N"] == parameter_count(config, kind="decoder")
        assert abs(6 * row["N"] * row["D"] / row["C"] - 1) < 0.02
        assert row["D"] < made["bytes"]
    assert len(made["repeats"]) == 2
    # The valleys are cut off: at most budgets the smallest model that the text allows is the best.
    valleys = [[row for row in runs if row["C"] == C] for C in {row["C"] for row in runs}]
    best, smallest = (
        [min(valley, key=lambda row, key=key: row[key])["N"] for valley in valleys]
        for key in ("loss", "N")
    )
    assert sum(a == b for a, b in zip(best, smallest, strict=True)) >= 3
