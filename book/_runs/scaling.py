"""Train small models of several sizes at several budgets of operations, for a scaling law.

About 17 minutes of one core. The text is bytes of Shakespeare's plays, never read twice.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from companion.core import generator, train
from companion.foundations.optimization import warmup_cosine
from companion.pretraining.autoregressive import (
    PackedTokens,
    initialize,
    llama_config,
    next_token_loss,
    text_log_probs,
)
from companion.transformer.block import parameter_count
from companion.transformer.cost import training_flops

sys.path.insert(0, str(Path(__file__).parent))
from _store import store
from autoregressive_gpt import optimizer_of, split

SIZES = (
    (1, 24, 2),
    (2, 32, 2),
    (2, 48, 3),
    (3, 64, 4),
    (3, 96, 4),
    (4, 128, 4),
    (5, 160, 5),
)
BUDGETS = (5e10, 1.5e11, 5e11, 1.5e12, 4e12)
CONTEXT = 128


def run(
    size: tuple[int, int, int], D: float, row: torch.Tensor, held_out: torch.Tensor, seed: int
) -> dict[str, Any]:
    """Train one model on the first D bytes and score it."""
    config = llama_config(size, vocab=256, context=CONTEXT, multiple=16, tied=True)
    batch = min(16, max(2, round(D / (CONTEXT * 500))))
    steps = max(1, round(D / (CONTEXT * batch)))
    packed = PackedTokens(
        row[: steps * batch * CONTEXT + 1], context=CONTEXT, batch=batch, seed=seed
    )
    model = initialize(config, generator=generator(seed))
    begin = time.process_time()
    train(
        lambda ids: next_token_loss(model, ids),
        packed,
        optimizer_of(model),
        steps=steps,
        schedule=lambda step: warmup_cosine(
            step, warmup=max(1, steps // 10), total=steps, floor=0.02
        ),
        clip_norm=1.0,
    )
    loss = -text_log_probs(model.eval(), held_out, start=10, batch_size=32).mean()
    return {
        "size": list(size),
        "N": parameter_count(config, kind="decoder"),
        "D": steps * batch * CONTEXT,
        "loss": round(float(loss), 5),
        "flops": training_flops(config, CONTEXT, batch=batch).total * steps,
        "steps": steps,
        "seed": seed,
        "cpu": round(time.process_time() - begin, 1),
    }


def main(argv: list[str] | None = None) -> None:
    """Train all, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3, help="seeds of one middling run")
    parser.add_argument("--steps", type=int, help="at most so many steps a run, for a trial")
    parser.add_argument("--scored", type=int, default=100_000, help="held-out bytes")
    asked = parser.parse_args(argv)
    start = time.perf_counter()
    parts = split(None)
    row = torch.tensor(list("\n".join(parts[0]).encode()), dtype=torch.uint8)
    held_out = torch.tensor(list(parts[1][0].encode()))[: asked.scored]
    runs: list[dict[str, Any]] = []
    repeats: list[dict[str, Any]] = []
    for C in BUDGETS:
        for size in SIZES:
            config = llama_config(size, vocab=256, context=CONTEXT, multiple=16, tied=True)
            D = C / 6 / parameter_count(config, kind="decoder")
            if not 4e4 <= D <= len(row) - 1:
                continue  # too few steps to learn anything, or more text than there is
            if asked.steps is not None:
                D = min(D, asked.steps * CONTEXT * 2)
            runs.append({"C": C, **run(size, D, row, held_out, asked.seed)})
            print(runs[-1], flush=True)
    for seed in range(asked.seed + 1, asked.seed + asked.repeats):
        middle = next(r for r in runs if r["C"] == BUDGETS[2] and r["size"] == [2, 48, 3])
        repeats.append(run(SIZES[2], middle["D"], row, held_out, seed))
        print(repeats[-1], flush=True)
    results = {"context": CONTEXT, "bytes": len(row), "runs": runs, "repeats": repeats}
    store("scaling", results, seed=asked.seed, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
