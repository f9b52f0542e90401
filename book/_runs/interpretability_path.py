"""Estimate what patching heads of SmolLM2 does, by one gradient and by several along a way.

About 4 minutes of one core. For each of three seeds a text of random tokens that repeats, and one
with another answer: the effect of patching each head, its first-order estimate, and the estimates
with the mean gradient over 5 points between the embeddings of both. A column of numbers is one
string.
"""

import argparse
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion.core import generator
from companion.models import smollm2
from companion.trust import interpretability as it

sys.path.insert(0, str(Path(__file__).parent))
from _store import store
from interpretability_circuits import SEEDS, column, repeated

STEPS = 5


def estimates(model: Any, g: torch.Generator, batch: int) -> dict[str, Any]:
    """The effects of all heads, both estimates, and what each of the three took."""
    period = 9
    clean = repeated(batch, period, 2, g)[:, : 2 * period - 2]
    right = clean[:, period - 2].clone()  # it followed the last token the first time
    corrupt = clean.clone()
    wrong = torch.randint(1000, 40_000, (batch,), generator=g)
    corrupt[:, period - 2] = wrong
    rows = torch.arange(batch)

    def metric(ids: Tensor) -> Tensor:
        logits: Tensor = model(ids, last=1)[:, 0]
        return (logits[rows, right] - logits[rows, wrong]).mean()

    sites = [f"blocks.{layer}.attention.heads" for layer in range(len(model.blocks))]
    clock = [time.process_time()]
    made = {}
    for name, along in (("slope", None), ("path", "embedded")):
        made[name] = it.attribution_patching(
            model, metric, clean, corrupt, sites=sites, along=along, steps=STEPS
        )
        clock.append(time.process_time())
    made["exact"] = it.activation_patching(model, metric, clean, corrupt, sites=sites)
    clock.append(time.process_time())
    own = it.attribution_patching(
        model, metric, clean, corrupt, sites=["embedded"], along="embedded", steps=STEPS
    )
    return {
        **{name: column(found.effect, 5) for name, found in made.items()},
        "clean": round(float(own.clean), 4),
        "corrupt": round(float(own.corrupt), 4),
        "sum": round(float(own.effect.sum()), 4),
        "seconds": [round(b - a, 2) for a, b in pairwise(clock)],
    }


def main(argv: list[str] | None = None) -> None:
    """Estimate, patch, and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=3, help="for each seed")
    asked = parser.parse_args(argv)
    begin, cpu = time.perf_counter(), time.process_time()
    torch.set_num_threads(1)
    model = smollm2().model
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    results: dict[str, Any] = {"steps": STEPS, "seeds": []}
    for seed in SEEDS:
        results["seeds"].append(estimates(model, generator(seed), asked.texts))
        print(seed, results["seeds"][-1]["seconds"], results["seeds"][-1]["sum"], flush=True)
    results["cpu_seconds"] = round(time.process_time() - cpu, 1)
    store("interpretability_path", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
