"""Teach a pretrained encoder three questions about pairs of segments, and see which are hard.

About half an hour of one core. The encoder is MiniLM, the text the King James Bible: does B follow
A, with false B from other chapters or from the same one (NSP), and which came first (SOP)?
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import data
from companion.core import generator, train
from companion.foundations.optimization import warmup_cosine
from companion.models import minilm
from companion.pretraining.masked import (
    BertForPreTraining,
    Boundaries,
    SentencePairs,
    next_sentence_pairs,
    sentence_boundaries,
    sentence_order_pairs,
)
from companion.transformer.block import initialize_

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

HALF, HELD_OUT, BLOCKS = 30, 120, 10
TASKS = ("NSP, other chapter", "NSP, same chapter", "SOP")


def documents(encoder: Any, *, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Chapters of the Bible in MiniLM's tokens: for training, and held out."""
    chapters: dict[tuple[str, int], list[str]] = {}
    for verse in data.bible_verses():
        chapters.setdefault((verse.book, verse.chapter), []).append(verse.text)
    texts = list(chapters.values())
    order = torch.randperm(len(texts), generator=generator(seed)).tolist()
    parts = []
    for part in (order[HELD_OUT:], order[:HELD_OUT]):
        rows = [
            [found.ids[1:-1] for found in encoder.tokenizer.encode_batch(texts[index])]
            for index in sorted(part)
        ]
        parts.append(rows)
    return parts[0], parts[1]


def partners(found: Boundaries) -> Tensor:
    """List the boundaries that are not alone in their document."""
    sizes = torch.bincount(found.document)
    return (sizes[found.document] > 1).nonzero().squeeze(1)


def make(
    task: str, found: Boundaries, index: Tensor, special: dict[str, int], g: torch.Generator
) -> SentencePairs:
    if task == "SOP":
        return sentence_order_pairs(found, index, **special, generator=g)
    return next_sentence_pairs(
        found, index, **special, negatives="same" if "same" in task else "other", generator=g
    )


def learn(
    task: str,
    encoder: Any,
    training: Boundaries,
    test: Boundaries,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Fine-tune the encoder and a new head on one question."""
    ids = {name: encoder.tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[PAD]")}
    special = {"cls_id": ids["[CLS]"], "sep_id": ids["[SEP]"], "pad_id": ids["[PAD]"]}
    g = generator(options.seed)
    model = initialize_(BertForPreTraining(encoder.model.config), generator=g)
    model.encoder.load_state_dict(encoder.model.state_dict())
    usable, rows = partners(test), partners(training)
    index = usable[torch.randperm(len(usable), generator=g)[: options.pairs]]
    # In the order of the text, so that a block is a part of it.
    held = make(task, test, index.sort().values, special, g)
    curve: dict[str, list[float]] = {"step": [], "accuracy": []}

    @torch.no_grad()
    def evaluate(step: int) -> Tensor:
        logits = [
            model.pair_logits(
                model.encoder(held.ids[part], real=held.real[part], segments=held.segments[part])
            )
            for part in torch.arange(len(held.ids)).split(50)
        ]
        found: Tensor = (torch.cat(logits).argmax(1) == held.labels).double()
        curve["step"].append(step)
        curve["accuracy"].append(round(float(found.mean()), 4))
        print(f"{task}, step {step}: {float(found.mean()):.4f}", flush=True)
        return found

    def loss(step: int) -> Tensor:
        if step % options.every == 0:
            evaluate(step)
        chosen = rows[torch.randint(0, len(rows), (options.batch,), generator=g)]
        pairs = make(task, training, chosen, special, g)
        hidden = model.encoder(pairs.ids, real=pairs.real, segments=pairs.segments)
        return torch.nn.functional.cross_entropy(model.pair_logits(hidden), pairs.labels)

    train(
        loss,
        range(options.steps),
        torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True),
        steps=options.steps,
        schedule=lambda step: warmup_cosine(
            step, warmup=options.steps // 10 + 1, total=options.steps + 1
        ),
        clip_norm=1.0,
    )
    blocks = evaluate(options.steps).tensor_split(BLOCKS)
    return {"curve": curve, "accuracy": [round(float(part.mean()), 4) for part in blocks]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=400, help="held-out pairs of the test")
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begin, cpu = time.perf_counter(), time.process_time()
    encoder = minilm()
    training, test = (sentence_boundaries(part, half=HALF) for part in documents(encoder))
    results: dict[str, Any] = {"steps": options.steps, "batch": options.batch}
    results["tasks"] = {task: learn(task, encoder, training, test, options) for task in TASKS}
    results["cpu_seconds"] = round(time.process_time() - cpu, 1)
    store("masked_pairs", results, seed=options.seed, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
