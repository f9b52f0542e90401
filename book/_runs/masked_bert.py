"""Train a small BERT on the King James Bible until it beats counting at filling blanks.

About an hour of one core. The model has two layers of width 192, its own tokens and, in place
of learned absolute positions, the relative ones of T5.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import data
from companion.core import generator, train
from companion.foundations.cross_entropy import IGNORE
from companion.foundations.language_models import BPE
from companion.foundations.optimization import warmup_cosine
from companion.pretraining.masked import (
    BertForPreTraining,
    Boundaries,
    Corrupted,
    FillIn,
    SentencePairs,
    corrupt,
    kneser_ney_chain,
    next_sentence_pairs,
    sentence_boundaries,
)
from companion.transformer.block import T5Buckets, TransformerConfig, initialize_
from companion.transformer.positions import t5_bucket

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

VOCAB, HALF = 2048, 62
PAD, CLS, SEP, MASK = range(4)
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
IDS = {"cls_id": CLS, "sep_id": SEP, "pad_id": PAD}
HIDE = {"vocab": VOCAB, "mask_id": MASK, "special": (PAD, CLS, SEP)}
BLOCKS = 10  # groups of held-out chapters, whose spread is the error of the margin
Documents = list[list[list[int]]]


@dataclass(frozen=True)
class Split:
    """The chapters of the Bible in tokens: for training, for tuning, and for the test."""

    training: Documents
    tuning: Documents
    test: Documents


def corpus(*, seed: int = 0, held_out: int = 60) -> Split:
    """Cut the Bible into chapters (documents) and verses (sentences), and learn the tokens."""
    chapters: dict[tuple[str, int], list[str]] = {}
    for verse in data.bible_verses():
        chapters.setdefault((verse.book, verse.chapter), []).append(" " + verse.text)
    texts = list(chapters.values())
    order = torch.randperm(len(texts), generator=generator(seed)).tolist()
    parts = order[2 * held_out :], order[held_out : 2 * held_out], order[:held_out]
    chosen = [[texts[index] for index in sorted(part)] for part in parts]
    verses = [verse for chapter in chosen[0] for verse in chapter]
    bpe = BPE.train(verses, vocab_size=VOCAB, special_tokens=SPECIAL)
    rows = [[[bpe.encode(verse) for verse in chapter] for chapter in part] for part in chosen]
    return Split(*rows)


def build(
    *, g: torch.Generator, layers: int = 2, dim: int = 128, window: float = 5.0
) -> BertForPreTraining:
    """Make the model. Its heads start out looking at the neighbors, one offset each.

    A blank model finds its neighbors only after thousands of steps, which a large run does not
    notice. A bias of 5 nats toward one offset gives it about half of a head's weight at first.
    """
    config = TransformerConfig(
        vocab=VOCAB,
        dim=dim,
        layers=layers,
        heads=dim // 32,
        ff_dim=4 * dim,
        context=2 * HALF + 3,
        positions=T5Buckets(),
        embedding_norm=True,
        segments=2,
        norm_eps=1e-12,
    )
    model = initialize_(BertForPreTraining(config), generator=g, branch_gain=1.0)
    offsets = torch.tensor([-1, 1, -2, 2, -3, 3, -4, 4])[: config.heads]
    buckets = t5_bucket(offsets)
    with torch.no_grad():
        model.encoder.bias.weight[buckets, torch.arange(config.heads)] = window
    return model


def start_from_frequencies(model: BertForPreTraining, documents: Documents) -> None:
    """Set the output bias to log-frequencies, which the model would learn first."""
    tokens = torch.tensor([i for chapter in documents for verse in chapter for i in verse])
    counts = torch.bincount(tokens, minlength=VOCAB) + 1.0
    with torch.no_grad():
        model.bias.copy_((counts / counts.sum()).log())


def batches(
    boundaries: Boundaries, *, size: int, g: torch.Generator
) -> Iterator[tuple[SentencePairs, int]]:
    """Yield pairs and the step, forever; pairs of like length share a batch and are cut to it."""
    step = 0
    while True:
        index = torch.randint(0, len(boundaries), (8 * size,), generator=g)
        pairs = next_sentence_pairs(boundaries, index, **IDS, generator=g)
        length = pairs.real.sum(1)
        groups = length.argsort().split(size)
        for place in torch.randperm(len(groups), generator=g).tolist():
            rows = groups[place]
            width = int(length[rows].max())
            cut = [part[rows, :width] for part in pairs[:3]]
            yield SentencePairs(*cut, pairs.labels[rows]), step
            step += 1


def optimizer_of(model: BertForPreTraining, *, rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )


# --- scoring -------------------------------------------------------------------------------------


def blanks(
    documents: Documents, *, pairs: int, seed: int, alone: bool = False
) -> tuple[SentencePairs, Corrupted]:
    """Make held-out pairs with 15% of the tokens blanked; every chosen token becomes [MASK].

    With ``alone`` the same blanks come one at a time, and all other tokens are shown.
    """
    g = generator(seed)
    boundaries = sentence_boundaries(documents, half=HALF)
    index = torch.randperm(len(boundaries), generator=g)[:pairs]
    made = next_sentence_pairs(boundaries, index, **IDS, generator=g)
    hidden = corrupt(made.ids, **HIDE, split=(1.0, 0.0, 0.0), generator=g)
    return one_blank_each(made, hidden) if alone else (made, hidden)


def one_blank_each(pairs: SentencePairs, hidden: Corrupted) -> tuple[SentencePairs, Corrupted]:
    """Take the same blanks one at a time: a row for each, with all other tokens shown."""
    rows, columns = hidden.chosen.nonzero().T
    only = torch.zeros(len(rows), pairs.ids.shape[1], dtype=torch.bool)
    only[torch.arange(len(rows)), columns] = True
    ids = pairs.ids[rows]
    many = SentencePairs(ids, pairs.segments[rows], pairs.real[rows], pairs.labels[rows])
    return many, Corrupted(ids.masked_fill(only, MASK), ids.masked_fill(~only, IGNORE), only)


@torch.no_grad()
def predictions(
    model: BertForPreTraining, pairs: SentencePairs, hidden: Corrupted, *, size: int = 64
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities at the blanks, and logits of the pairs."""
    found, judged = [], []
    for rows in torch.arange(len(pairs.ids)).split(size):
        states = model.encoder(
            hidden.ids[rows], real=pairs.real[rows], segments=pairs.segments[rows]
        )
        found.append(model.token_logits(states[hidden.chosen[rows]]).log_softmax(-1))
        judged.append(model.pair_logits(states))
    return torch.cat(found), torch.cat(judged)


def score(log_probs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return mean surprise in nats, and accuracy."""
    nats = -log_probs.gather(1, targets[:, None]).mean()
    return round(float(nats), 4), round(float((log_probs.argmax(1) == targets).double().mean()), 4)


@torch.no_grad()
def log_odds_ratios(model: BertForPreTraining, documents: Documents, *, pairs: int) -> Tensor:
    """Measure whether the model's conditionals fit one joint distribution.

    For two neighbors (u, v) and other tokens (s, t) in their places, a joint distribution has one
    odds ratio P(u, v) P(s, t) / (P(u, t) P(s, v)). Blanking the first place gives it from
    P(. | second), blanking the second place from P(. | first): two numbers that should agree.
    """
    given, _ = blanks(documents, pairs=pairs, seed=99)
    columns = given.real.sum(1) // 3
    rows = torch.arange(len(columns))
    both = given.ids.clone()
    both[rows, columns], both[rows, columns + 1] = MASK, MASK
    best = model(both, real=given.real, segments=given.segments).tokens
    other = []
    for place in (columns, columns + 1):
        logits = best[rows, place].scatter(1, given.ids[rows, place][:, None], -torch.inf)
        other.append(logits.argmax(1))  # the likeliest token that does not stand there
    found = []
    for place, mine, theirs in ((columns, *other), (columns + 1, *other[::-1])):
        beside = columns + 1 if place is columns else columns
        difference: Tensor = torch.zeros(len(rows))
        for sign, neighbor in ((1, given.ids[rows, beside]), (-1, theirs)):
            ids = given.ids.clone()
            ids[rows, beside], ids[rows, place] = neighbor, MASK
            logits = model(ids, real=given.real, segments=given.segments).tokens[rows, place]
            odds = logits[rows, given.ids[rows, place]] - logits[rows, mine]
            difference = difference + sign * odds
        found.append(difference)
    return torch.stack(found, 1)


def compare(
    model: BertForPreTraining, split: Split, *, order: int, pairs: int, tuning_pairs: int
) -> dict[str, Any]:
    """Fill the same blanks by the model and by counting, in blocks of held-out chapters."""
    texts = [torch.tensor([i for verse in chapter for i in verse]) for chapter in split.training]
    chain = {
        side: kneser_ney_chain(texts, order=order, vocab=VOCAB, eos=SEP, reverse=side == "right")
        for side in ("left", "right")
    }
    common = torch.bincount(torch.cat(texts), minlength=VOCAB)
    unigram = (common / common.sum()).clamp(min=1e-9).log()
    # One model of order 1 is enough for both sides.
    sides = {"left": (chain["left"], ()), "both": (chain["left"], chain["right"][1:])}
    results: dict[str, Any] = {}
    for setting in ("together", "alone"):
        alone = setting == "alone"
        _, held = blanks(split.tuning, pairs=tuning_pairs, seed=1, alone=alone)
        counted = {
            name: FillIn.fit(
                held.ids,
                held.chosen.nonzero(),
                held.targets[held.chosen],
                forward=forward,
                backward=backward,
                unknown=MASK,
            )
            for name, (forward, backward) in sides.items()
        }
        table: dict[str, list[Any]] = {name: [] for name in ("bert", "unigram", *counted)}
        judged, sizes = [], []
        for block in range(BLOCKS):
            some = split.test[block * len(split.test) // BLOCKS :]
            some = some[: max(2, len(split.test) // BLOCKS)]
            given, held = blanks(some, pairs=pairs // BLOCKS, seed=2 + block, alone=alone)
            targets, places = held.targets[held.chosen], held.chosen.nonzero()
            found, pair = predictions(model, given, held)
            table["bert"].append(score(found, targets))
            table["unigram"].append(score(unigram.expand(len(targets), -1), targets))
            for name, fill in counted.items():
                table[name].append(score(fill.log_probs(held.ids, places), targets))
            judged.append((pair.argmax(1) == given.labels).double().mean().item())
            sizes.append(len(targets))
        results[setting] = {
            "blanks": sizes,
            "nats": {name: [pair[0] for pair in rows] for name, rows in table.items()},
            "accuracy": {name: [pair[1] for pair in rows] for name, rows in table.items()},
            "exponents": {
                name: [round(e, 3) for e in fill.exponents.tolist()]
                for name, fill in counted.items()
            },
        }
        if setting == "together":
            results["pair_accuracy"] = [round(value, 4) for value in judged]
        means = {name: sum(rows) / BLOCKS for name, rows in results[setting]["accuracy"].items()}
        print(setting, {name: round(mean, 4) for name, mean in means.items()}, flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=45000)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=500, help="steps between two evaluations")
    parser.add_argument("--order", type=int, default=5, help="longest n-gram of the baselines")
    parser.add_argument("--pairs", type=int, default=300, help="held-out pairs of the test")
    parser.add_argument("--tuning-pairs", type=int, default=100)
    parser.add_argument("--rates", type=float, nargs=2, default=(0.4, 0.15))
    parser.add_argument("--weights", default="", help="file to keep the trained weights in")
    options = parser.parse_args()
    begin, cpu = time.perf_counter(), time.process_time()

    split = corpus()
    g = generator(options.seed)
    model = build(g=g, dim=options.dim)
    start_from_frequencies(model, split.training)
    boundaries = sentence_boundaries(split.training, half=HALF)
    first, last = options.rates
    given, held = blanks(split.tuning, pairs=options.tuning_pairs, seed=1)
    targets = held.targets[held.chosen]
    curve: dict[str, list[float]] = {name: [] for name in ("step", "nats", "accuracy", "pairs")}
    parts: list[Tensor] = []

    def evaluate(step: int) -> None:
        found, pair = predictions(model, given, held)
        nats, accuracy = score(found, targets)
        right = float((pair.argmax(1) == given.labels).double().mean())
        for name, value in zip(curve, (step, nats, accuracy, round(right, 4)), strict=True):
            curve[name].append(value)
        seconds = time.process_time() - cpu
        print(f"step {step}, {seconds:.0f} s: {nats} nats, {accuracy}, {right:.3f}", flush=True)

    def loss(batch: tuple[SentencePairs, int]) -> Tensor:
        pairs, step = batch
        if step % options.every == 0:
            evaluate(step)
        rate = first + (last - first) * step / options.steps
        read = corrupt(pairs.ids, **HIDE, ratio=rate, generator=g)
        losses = model.loss(
            read.ids, read.targets, pairs.labels, real=pairs.real, segments=pairs.segments
        )
        parts.append(torch.stack(losses[1:]).detach())
        return losses.total

    train(
        loss,
        batches(boundaries, size=options.batch, g=g),
        optimizer_of(model, rate=1e-3),
        steps=options.steps,
        schedule=lambda step: warmup_cosine(
            step, warmup=options.steps // 40 + 1, total=options.steps + 1, floor=0.02
        ),
        clip_norm=1.0,
    )
    evaluate(options.steps)
    if options.weights:
        torch.save(model.state_dict(), options.weights)
    odds = log_odds_ratios(model, split.test, pairs=200)
    size = options.every
    trained = torch.stack(parts)
    means = [row.mean(0).tolist() for row in trained.split(size)]
    results = {
        "dim": options.dim,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": sum(len(verse) for chapter in split.training for verse in chapter),
        "steps": options.steps,
        "batch": options.batch,
        "rates": [first, last],
        "curve": curve,
        "training": {
            "masked": [round(mean[0], 4) for mean in means],
            "pair": [round(mean[1], 4) for mean in means],
        },
        "log_odds_ratios": [[round(x, 3) for x in row] for row in odds.tolist()],
        **compare(
            model,
            split,
            order=options.order,
            pairs=options.pairs,
            tuning_pairs=options.tuning_pairs,
        ),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    store("masked_bert", results, seed=options.seed, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
