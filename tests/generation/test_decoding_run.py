"""The stored run of the chapter: what it counts is what it says."""

from typing import Any

import torch

from companion.core import generator
from companion.data import stored_run
from companion.models import generate
from companion.pretraining.autoregressive import initialize, llama_config, next_token_log_probs


def test_texts_are_described_by_their_own_numbers(scripts: Any) -> None:
    script = scripts.load("decoding_strategies")
    config = llama_config((1, 12, 3), vocab=23, context=61, ff_dim=31)
    model = initialize(config, generator=generator(1), dtype=torch.float64).eval()
    model.requires_grad_(False)
    prompts = torch.randint(0, 23, (19, 5), generator=generator(2))
    new = generate(model, prompts, tokens=9)
    new[0] = 7  # a text that loops
    new[1] = torch.arange(9)
    told = script.describe(model, prompts, new)
    logs = next_token_log_probs(model, torch.cat([prompts, new], 1))[:, 4:]
    assert abs(told["nats"] + float(logs.mean())) < 1e-4
    assert told["texts"] == 19
    assert told["different"] == len(set(new.flatten().tolist()))
    loops = [len({tuple(row[k : k + 4]) for k in range(6)}) < 4.5 for row in new.tolist()]
    assert told["looping"] == round(sum(loops) / 19, 4)
    assert loops[0]
    assert not loops[1]


def test_the_stored_run_wrote_the_same_texts_twice() -> None:
    results = stored_run("decoding_strategies").results
    assert all(row["same"] for row in results["speed"])
    assert {row["kind"] for row in results["speed"]} == {"copy", "free"}
    for row in results["modes"]:
        # The mode is at least as likely as the empty answer, and as the greedy one if it ended.
        assert row["mode_log_prob"] >= row["empty"] - 1e-3
        if row["greedy_ended"] and row["proven"]:
            assert row["mode_log_prob"] >= row["greedy_log_prob"] - 1e-3
