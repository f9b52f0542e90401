"""The scripts of the stored runs run, and what is stored has what the chapter says."""

from typing import Any

from companion import data


def test_the_comparison_of_methods_runs(scripts: Any) -> None:
    arguments = ["--seeds", "1", "--steps", "2", "--batch", "3", "--each", "4", "--methods"]
    made = scripts.run("transfer_finetune", *arguments, "lp-ft", "lora-1", "prompt").results
    assert [r["method"] for r in made["runs"]] == ["static", "probe", "lp-ft", "lora-1", "prompt"]
    assert made["sizes"] == {"train": 12, "valid": 6, "same": 12, "other": 12}
    counts = {r["method"]: r["trained"] for r in made["runs"]}
    head = 3 * 384 + 3
    assert counts["probe"] == head
    assert counts["lora-1"] == head + 6 * 2 * (384 + 384)
    assert counts["prompt"] == head + 8 * 384


def test_the_comparison_of_forgetting_runs(scripts: Any) -> None:
    arguments = ["--seeds", "1", "--steps", "1", "--every", "1", "--width", "16", "--tests", "1"]
    made = scripts.run("transfer_forgetting", *arguments, "--methods", "ewc", "lora-8").results
    ewc, lora = made["runs"]
    assert ewc["moved"] > 0
    assert lora["moved"] is None
    assert len(ewc["curve"]) == len(lora["curve"]) == 2
    assert ewc["curve"][0] == lora["curve"][0]
    assert ewc["curve"][1] != lora["curve"][1]
    assert lora["trained"] < ewc["trained"] / 20


def test_the_stored_comparison_of_methods_has_what_the_chapter_says() -> None:
    stored = data.stored_run("transfer_finetune")
    runs = stored.results["runs"]
    methods = {r["method"] for r in runs}
    assert methods >= {"static", "probe", "full", "lp-ft", "lora-1", "lora-4", "lora-16"}
    assert methods >= {"prefix", "prompt", "adapter"}
    for method in methods:
        assert len({r["seed"] for r in runs if r["method"] == method}) >= 3
    assert all(0 <= r["accuracy_other"] <= 1 and r["temperature"] > 0 for r in runs)
    assert "transfer_finetune.py" in stored.command

    def against_the_probe(method: str, test: str) -> list[float]:
        found = {(r["method"], r["seed"]): r[f"accuracy_{test}"] for r in runs}
        seeds = sorted(seed for name, seed in found if name == method)
        return [found[method, seed] - found["probe", seed] for seed in seeds]

    for method in ("full", "lp-ft", "adapter", "lora-1", "lora-4"):
        assert min(against_the_probe(method, "other")) > 0
    for method in ("prompt", "prefix"):
        assert min(against_the_probe(method, "other")) < 0 < max(against_the_probe(method, "other"))
    seen = {m for m in methods - {"probe"} if min(against_the_probe(m, "same")) > 0}
    assert seen == {"full", "lp-ft"}


def test_the_stored_comparison_of_forgetting_has_what_the_chapter_says() -> None:
    stored = data.stored_run("transfer_forgetting")
    runs = stored.results["runs"]
    assert {r["method"] for r in runs} == {"full", "l2", "ewc", "lora-8", "prefix"}
    steps = [[point[0] for point in r["curve"]] for r in runs]
    assert all(row == steps[0] for row in steps)
    # Full fine-tuning lowers the loss on the new text and raises it on the old.
    for r in runs:
        if r["method"] == "full":
            assert r["curve"][-1][1] < r["curve"][0][1]
            assert r["curve"][-1][2] > r["curve"][0][2]
    assert "transfer_forgetting.py" in stored.command
