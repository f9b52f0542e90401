"""Teach small Transformers the parity of bits: at once, with a scratchpad, and beside each bit.

About four minutes of one core. Bits come first and their parity is asked for. *Direct* answers at
once. *Scratchpad* writes the parity of every beginning, and the last is the answer; blanks keep a
bit and its parity at one distance for strings of up to 16 bits. *Beside* has the sign first, and
then each bit with the parity so far right after it, so that the operands of a step are neighbors.
Strings of 1 to 16 bits are trained on, with three seeds; what is measured is strings of 4 to 32
bits: whether all written parities are right, and how often a step is right that follows right
ones. A run that was interrupted goes on when the same command is given again.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from companion.core import generator
from companion.foundations.optimization import AdamW
from companion.frontiers.reasoning import parity_text
from companion.transformer.block import Decoder, TransformerConfig, initialize_

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

SEEDS = (0, 1, 2)
LONGEST = 16
LENGTHS = (4, 8, 12, 16, 18, 20, 24, 32)
ARMS = (("direct", 2), ("direct", 4), ("scratchpad", 2), ("beside", 2))
TESTED = 200
LR = 2e-3


def model_of(layers: int, seed: int) -> Decoder:
    """A decoder of four tokens: 0, 1, the sign that asks, and a blank."""
    config = TransformerConfig(
        vocab=4, dim=48, layers=layers, heads=4, ff_dim=192, context=2 * max(LENGTHS) + 2
    )
    return initialize_(Decoder(config), generator=generator(seed))


def train(model: Decoder, way: str, steps: int, batch: int, seed: int) -> list[float]:
    """Train on strings of random lengths, one length a batch."""
    g = generator(1000 + seed)
    optimizer = AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / 100) * (1 - step / steps)
        length = int(torch.randint(1, LONGEST + 1, (), generator=g))
        bits = torch.randint(0, 2, (batch, length), generator=g)
        ids, scored = parity_text(bits, way=way, width=LONGEST)
        logits = model(ids[:, :-1])
        keep = scored[1:]
        loss = torch.nn.functional.cross_entropy(
            logits[:, keep].flatten(0, 1), ids[:, 1:][:, keep].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def measured(model: Decoder, way: str, length: int, seed: int) -> dict[str, float]:
    """The model writes each parity on what it wrote itself; then again on what is right."""
    g = generator(2000 + seed)
    bits = torch.randint(0, 2, (TESTED, length), generator=g)
    ids, scored = parity_text(bits, way=way, width=LONGEST)
    places = scored.nonzero().flatten().tolist()
    written = ids.clone()
    for place in places:
        written[:, place] = model(written[:, :place])[:, -1, :2].argmax(-1)
    right = written[:, places] == ids[:, places]
    given = model(ids[:, :-1])[:, [p - 1 for p in places], :2].argmax(-1) == ids[:, places]
    return {
        "chain": float(right.all(1).double().mean()),
        "answer": float(right[:, -1].double().mean()),
        "step": float(given.double().mean()),
        "steps": len(places),
    }


def one(way: str, layers: int, seed: int, steps: int, batch: int) -> dict[str, Any]:
    """Train one model and measure it at each length."""
    model = model_of(layers, seed)
    losses = train(model, way, steps, batch, seed)
    model.eval()
    found = [measured(model, way, length, seed) for length in LENGTHS]
    return {
        "loss": sum(losses[-50:]) / 50,
        **{
            name: [round(row[name], 6) for row in found]
            for name in ("chain", "answer", "step", "steps")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--work", type=Path, default=Path("_build/reasoning"))
    parser.add_argument("--most", type=int, default=12, help="models to train in this call")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    left, parts = args.most, {}
    for way, layers in ARMS:
        for seed in SEEDS:
            kept = args.work / f"{way}-{layers}-{seed}-{args.steps}-{args.batch}.json"
            if not kept.exists() and left:
                started = time.time()
                made = one(way, layers, seed, args.steps, args.batch)
                made["seconds"] = round(time.time() - started, 1)
                kept.write_text(json.dumps(made), encoding="utf-8")
                print(way, layers, seed, made, flush=True)
                left -= 1
            if kept.exists():
                parts[way, layers, seed] = json.loads(kept.read_text(encoding="utf-8"))
    if len(parts) < len(ARMS) * len(SEEDS):
        return
    results: dict[str, Any] = {
        "steps": args.steps,
        "batch": args.batch,
        "trained_to": LONGEST,
        "tested": TESTED,
        "lengths": list(LENGTHS),
        "parameters": sum(p.numel() for p in model_of(2, 0).parameters()),
    }
    for way, layers in ARMS:
        results[f"{way} {layers}"] = [parts[way, layers, seed] for seed in SEEDS]
    store("reasoning", results, seed=0, seconds=sum(part["seconds"] for part in parts.values()))


if __name__ == "__main__":
    main()
