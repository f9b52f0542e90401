"""Compare mask rates, and static with dynamic masks, by training small models alike.

About 10 minutes of one core. Text and blanks are those of ``masked_bert``, and so are the models,
but for their width of 128.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion.core import generator, train
from companion.foundations.optimization import warmup_cosine
from companion.pretraining.masked import (
    Corrupted,
    SentencePairs,
    corrupt,
    next_sentence_pairs,
    sentence_boundaries,
)

sys.path.insert(0, str(Path(__file__).parent))
from _store import store
from masked_bert import (
    BLOCKS,
    HALF,
    HIDE,
    IDS,
    Documents,
    Split,
    batches,
    blanks,
    build,
    corpus,
    optimizer_of,
    predictions,
    score,
    start_from_frequencies,
)

RATES = (0.05, 0.15, 0.3, 0.5, 0.7)
COPIES = {"static": 1, "ten masks": 10, "dynamic": 0}
Batch = tuple[SentencePairs, Corrupted]


def fit(split: Split, source: Iterator[Batch], *, steps: int, seed: int) -> tuple[Any, Tensor]:
    """Train a new model on corrupted pairs, and return it with the loss of each step."""
    model = build(g=generator(seed))
    start_from_frequencies(model, split.training)
    masked: list[Tensor] = []

    def loss(batch: Batch) -> Tensor:
        pairs, read = batch
        losses = model.loss(
            read.ids, read.targets, pairs.labels, real=pairs.real, segments=pairs.segments
        )
        masked.append(losses.masked.detach())
        return losses.total

    train(
        loss,
        source,
        optimizer_of(model, rate=1e-3),
        steps=steps,
        schedule=lambda step: warmup_cosine(
            step, warmup=steps // 40 + 1, total=steps + 1, floor=0.02
        ),
        clip_norm=1.0,
    )
    return model, torch.stack(masked)


def at_rate(split: Split, *, rate: float, size: int, seed: int) -> Iterator[Batch]:
    """Yield batches of the whole training text at one rate."""
    g = generator(seed)
    boundaries = sentence_boundaries(split.training, half=HALF)
    for pairs, _ in batches(boundaries, size=size, g=g):
        yield pairs, corrupt(pairs.ids, **HIDE, ratio=rate, generator=g)


def from_copies(documents: Documents, *, copies: int, size: int, seed: int) -> Iterator[Batch]:
    """Yield batches of a small text: with fixed masks, one set an epoch in turn, or new ones."""
    g = generator(seed)
    boundaries = sentence_boundaries(documents, half=HALF)
    every = torch.arange(len(boundaries))
    pairs = next_sentence_pairs(boundaries, every, **IDS, generator=g)
    kept = [corrupt(pairs.ids, **HIDE, generator=g) for _ in range(copies)]
    epoch = 0
    while True:
        read = kept[epoch % copies] if copies else corrupt(pairs.ids, **HIDE, generator=g)
        for rows in torch.randperm(len(boundaries), generator=g).split(size):
            yield (
                SentencePairs(*(part[rows] for part in pairs)),
                Corrupted(*(part[rows] for part in read)),
            )
        epoch += 1


def judge(model: Any, documents: Documents, *, pairs: int) -> list[tuple[float, float]]:
    """Score a model in blocks of held-out chapters: nats and accuracy at a rate of 0.15."""
    found = []
    for block in range(BLOCKS):
        some = documents[block * len(documents) // BLOCKS :][: max(2, len(documents) // BLOCKS)]
        given, held = blanks(some, pairs=pairs // BLOCKS, seed=2 + block)
        found.append(score(predictions(model, given, held)[0], held.targets[held.chosen]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2500, help="steps for each mask rate")
    parser.add_argument("--mask-steps", type=int, default=2000, help="steps for each way to mask")
    parser.add_argument("--chapters", type=int, default=30, help="chapters of the small text")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=300, help="held-out pairs of the test")
    options = parser.parse_args()
    begin, cpu = time.perf_counter(), time.process_time()
    split = corpus()
    size, seed = options.batch, options.seed
    results: dict[str, Any] = {"steps": options.steps, "batch": size, "rates": {}, "masks": {}}
    for rate in RATES:
        source = at_rate(split, rate=rate, size=size, seed=seed)
        model, _ = fit(split, source, steps=options.steps, seed=seed)
        blocks = judge(model, split.test, pairs=options.pairs)
        results["rates"][str(rate)] = {
            "nats": [block[0] for block in blocks],
            "accuracy": [block[1] for block in blocks],
        }
        mean = sum(block[1] for block in blocks) / BLOCKS
        print(f"rate {rate}: accuracy {mean:.4f}, {time.process_time() - cpu:.0f} s", flush=True)

    few = split.training[: options.chapters]
    results["epochs"] = round(
        options.mask_steps * size / len(sentence_boundaries(few, half=HALF)), 1
    )
    results["chapters"] = options.chapters
    results["mask_steps"] = options.mask_steps
    for name, copies in COPIES.items():
        source = from_copies(few, copies=copies, size=size, seed=seed)
        model, losses = fit(split, source, steps=options.mask_steps, seed=seed)
        blocks = judge(model, split.test, pairs=options.pairs)
        part = max(1, options.mask_steps // 40)
        results["masks"][name] = {
            "training": [round(float(row.mean()), 4) for row in losses.split(part)],
            "nats": [block[0] for block in blocks],
            "accuracy": [block[1] for block in blocks],
        }
        mean = sum(block[0] for block in blocks) / BLOCKS
        print(f"{name}: {mean:.4f} nats, {time.process_time() - cpu:.0f} s", flush=True)
    results["cpu_seconds"] = round(time.process_time() - cpu, 1)
    store("masked_choices", results, seed=seed, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
