"""Train one small model under eleven objectives, with equal compute, on one corpus.

Every run has the same data, the same width and depth, and the same number of floating-point
operations, forward and backward, counted. Each model is then judged by a linear probe on the eight
divisions of the Bible, and by its loss on four tasks, its own and its neighbors'.

    python book/_runs/denoising_objectives.py
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from _store import store
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from companion import data
from companion.core import generator, randint, train
from companion.foundations.language_models import BPE
from companion.foundations.optimization import warmup_cosine
from companion.pretraining.denoising import (
    UL2,
    Batch,
    Pair,
    Tokens,
    TwoStream,
    UnifiedLM,
    causal_batch,
    enclose,
    glm_batch,
    joined_batch,
    masked_batch,
    mixture_of_denoisers,
    prefix_batch,
    random_ranks,
    random_spans,
    rank_masks,
    sentence_permutation,
    span_corruption,
    text_infilling,
    token_deletion,
    trim,
)
from companion.transformer.attention import everything
from companion.transformer.block import NoPositions, Rope, TransformerConfig, initialize_

# Books of the Protestant canon in order, by division.
DIVISIONS = {
    "Law": 5,
    "History": 12,
    "Wisdom": 5,
    "Major prophets": 5,
    "Minor prophets": 12,
    "Gospels and Acts": 5,
    "Letters": 21,
    "Apocalypse": 1,
}
N = 48  # tokens of a text
BPE_SIZE = 512
SENTINELS = 16
START = BPE_SIZE  # start of a text and of a target
MASK, END = BPE_SIZE + 1, BPE_SIZE + 2
MODES = {"R": BPE_SIZE + 3, "S": BPE_SIZE + 4, "X": BPE_SIZE + 5}
VOCAB = BPE_SIZE + 6 + SENTINELS
FIRST_SENTINEL = VOCAB - 1
BATCH = 32
OBJECTIVES = (
    "causal",
    "prefix",
    "mlm",
    "unilm",
    "permuted",
    "infilling",
    "deletion",
    "sentences",
    "spans",
    "glm",
    "ul2",
)


class Corpus(NamedTuple):
    """Texts of N tokens, cut from chapters, with the division each is from."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    stops: list[int]


def load() -> Corpus:
    """Cut the King James Bible into texts; every tenth chapter is held out."""
    verses = data.bible_verses()
    books = list(dict.fromkeys(verse.book for verse in verses))
    assert len(books) == sum(DIVISIONS.values())
    division: dict[str, int] = {}
    for index, count in enumerate(DIVISIONS.values()):
        for book in books[len(division) : len(division) + count]:
            division[book] = index
    chapters: dict[tuple[str, int], list[str]] = {}
    for verse in verses:
        chapters.setdefault((verse.book, verse.chapter), []).append(verse.text)
    held = {key for place, key in enumerate(chapters) if place % 10 == 3}
    seen = [" ".join(texts) for key, texts in chapters.items() if key not in held]
    bpe = BPE.train("\n".join(seen), vocab_size=BPE_SIZE)
    parts: dict[bool, list[tuple[list[int], int]]] = {True: [], False: []}
    for key, texts in chapters.items():
        ids = bpe.encode(" ".join(texts))
        for at in range(0, len(ids) - N + 1, N):
            parts[key in held].append((ids[at : at + N], division[key[0]]))
    stops = [i for i, token in enumerate(bpe.tokens) if token in (b".", b":", b";", b"?", b"!")]
    (a, b), (c, d) = (
        (torch.tensor([row for row, _ in rows]), torch.tensor([label for _, label in rows]))
        for rows in (parts[False], parts[True])
    )
    return Corpus(a, b, c, d, stops)


def whole(ids: Tensor) -> Tokens:
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


def trimmed(pair: Pair) -> Pair:
    return Pair(trim(pair.source), trim(pair.target))


def make_batch(objective: str, ids: Tensor, g: torch.Generator, stops: list[int]) -> Any:
    """Apply an objective's noise to texts."""
    text = whole(ids)
    joined = partial(joined_batch, start=START)
    if objective == "unilm":  # a third each
        objective = ("mlm", "causal", "prefix")[int(randint(0, 3, (), generator=g))]
    if objective == "mlm":
        return masked_batch(text, mask_id=MASK, generator=g)
    if objective == "causal":
        return causal_batch(enclose(text, start=START))
    if objective == "prefix":
        lengths = randint(2, N, (len(ids),), generator=g)
        return prefix_batch(enclose(text, start=START), lengths)
    if objective == "permuted":
        return ids, *random_ranks(text.real, generator=g)
    if objective == "spans":
        pair = span_corruption(text, sentinel=FIRST_SENTINEL, end=END, generator=g)
        return joined(trimmed(pair))
    if objective == "ul2":
        pair, _ = mixture_of_denoisers(
            text, sentinel=FIRST_SENTINEL, denoisers=UL2, modes=MODES, end=END, generator=g
        )
        return joined(trimmed(pair))
    if objective == "glm":
        spans = random_spans(text.real, generator=g)
        return glm_batch(text, spans, mask_id=MASK, start=START, end=END, generator=g)
    if objective == "infilling":
        noisy = text_infilling(text, mask_id=MASK, generator=g)
    elif objective == "deletion":
        noisy = token_deletion(text, ratio=0.3, generator=g)
    elif objective == "sentences":
        noisy = sentence_permutation(text, stops=stops, generator=g)
    else:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
    return joined(Pair(trim(noisy), text))


def make_model(objective: str, seed: int) -> nn.Module:
    common: dict[str, Any] = {"vocab": VOCAB, "dim": 96, "layers": 2, "heads": 4, "ff_dim": 384}
    if objective == "permuted":
        config = TransformerConfig(
            **common, context=N + 1, norm_place="post", positions=NoPositions()
        )
        return initialize_(TwoStream(config), generator=generator(seed), std=0.1)
    config = TransformerConfig(**common, context=2 * N, positions=Rope(), segments=34)
    return initialize_(UnifiedLM(config), generator=generator(seed), std=0.1)


def loss_of(model: Any, batch: Any) -> Tensor:
    if isinstance(batch, Batch):
        loss: Tensor = model.loss(batch)
    else:
        ids, rank, predict = batch
        loss = model.loss(ids, predict, allowed=rank_masks(rank).query)
    return loss


def step_flops(model: nn.Module, make: Callable[[], Any]) -> float:
    """Operations of one step, forward and backward, on average over four batches."""
    total = 0.0
    for _ in range(4):
        batch = make()
        with FlopCounterMode(display=False) as counter:
            loss_of(model, batch).backward()
        total += counter.get_total_flops()
    model.zero_grad(set_to_none=True)
    return total / 4


@torch.no_grad()
def features(model: Any, objective: str, ids: Tensor) -> Tensor:
    """Mean of the last hidden states, read as the objective reads a text."""
    parts = []
    for rows in ids.split(256):
        text = whole(rows)
        if objective == "permuted":
            hidden = model.hidden(rows)
        elif objective == "causal":
            hidden = model.hidden(causal_batch(enclose(text, start=START, end=END)))
        else:
            nothing = torch.zeros_like(rows)
            hidden = model.hidden(
                Batch(ids=rows, real=text.real, labels=nothing, mask=everything())
            )
        parts.append(hidden.mean(1))
    return torch.cat(parts)


def probe(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, *, decay: float = 1e-3) -> float:
    """Accuracy of logistic regression on standardized features."""
    mean, scale = x.mean(0), x.std(0).clamp(min=1e-6)
    x, x_test = (x - mean) / scale, (x_test - mean) / scale
    linear = nn.Linear(x.shape[1], len(DIVISIONS))
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.LBFGS(
        linear.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-7
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(linear(x), y) + decay * linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return float((linear(x_test).argmax(1) == y_test).double().mean())


def bag(ids: Tensor) -> Tensor:
    """Counts of tokens in each text."""
    return torch.zeros(len(ids), VOCAB).scatter_add(1, ids, torch.ones_like(ids).float())


@torch.no_grad()
def neighbors(model: Any, objective: str, corpus: Corpus, texts: int) -> dict[str, float]:
    """Losses in nats a token on four tasks, with the same noise for every model."""
    found = {}
    for task in ("causal", "prefix", "mlm", "infilling"):
        if objective == "permuted" and task in ("prefix", "infilling"):
            continue
        g, total, count = generator(12345), 0.0, 0
        for ids in corpus.test[:texts].split(128):
            batch = make_batch(task, ids, g, corpus.stops)
            if objective == "permuted":
                batch = as_ranks(batch, ids, task)
                labels = batch[2]
                weight = labels.numel()
            else:
                weight = int((batch.labels >= 0).sum())
            total += float(loss_of(model, batch)) * weight
            count += weight
        found[task] = total / count
    return found


def as_ranks(batch: Batch, ids: Tensor, task: str) -> tuple[Tensor, Tensor, Tensor]:
    """The same predictions, asked of the two-stream model by ranks."""
    places = torch.arange(N).expand(len(ids), N)
    if task == "causal":
        return ids, places, places[:, 1:]  # without a start token nothing predicts the first
    assert batch.predict is not None
    return ids, torch.full_like(ids, -1).scatter(1, batch.predict, 0), batch.predict


def run(
    objective: str, seed: int, corpus: Corpus, *, flops: float, steps: int | None, texts: int
) -> dict[str, Any]:
    g = generator(1000 + seed)
    model = make_model(objective, seed)

    def make() -> Any:
        rows = randint(0, len(corpus.train), (BATCH,), generator=g)
        return make_batch(objective, corpus.train[rows], g, corpus.stops)

    each = step_flops(model, make)
    count = steps or max(round(flops / each), 1)

    def batches() -> Iterator[Any]:
        while True:
            yield make()

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    log = train(
        lambda batch: loss_of(model, batch),
        batches(),
        optimizer,
        steps=count,
        schedule=partial(warmup_cosine, warmup=max(count // 10, 1), total=count, floor=0.05),
        clip_norm=1.0,
        progress=f"{objective}, seed {seed}",
    )
    model.eval()
    few = slice(None, texts)
    rows = torch.randperm(len(corpus.train), generator=generator(7))[: 2 * texts]
    accuracy = probe(
        features(model, objective, corpus.train[rows]),
        corpus.train_labels[rows],
        features(model, objective, corpus.test[few]),
        corpus.test_labels[few],
    )
    edges = torch.linspace(0, count, min(count, 25) + 1).long()
    return {
        "steps": count,
        "flops": each * count,
        "seconds": round(log.seconds, 1),
        "probe": accuracy,
        "losses": neighbors(model, objective, corpus, texts),
        "curve": [round(float(log.loss[a:b].mean()), 4) for a, b in pairwise(edges)],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds")
    parser.add_argument("--flops", type=float, default=1.2e12, help="operations of each run")
    parser.add_argument("--steps", type=int, help="steps of each run, in place of --flops")
    parser.add_argument("--texts", type=int, default=1024, help="held-out texts to judge by")
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    options = parser.parse_args(arguments)
    begin = time.perf_counter()
    corpus = load()
    # The held-out texts come in the order of the books: mix them before a part is taken.
    mixed = torch.randperm(len(corpus.test), generator=generator(3))
    corpus = corpus._replace(test=corpus.test[mixed], test_labels=corpus.test_labels[mixed])
    texts = min(options.texts, len(corpus.test))
    print(f"{len(corpus.train)} texts to train on, {len(corpus.test)} held out")
    runs: dict[str, list[dict[str, Any]]] = {}
    seeds = range(options.seed, options.seed + options.seeds)
    for seed in seeds:
        for objective in options.objectives:
            found = run(
                objective, seed, corpus, flops=options.flops, steps=options.steps, texts=texts
            )
            runs.setdefault(objective, []).append(found)
            print(objective, seed, {k: v for k, v in found.items() if k != "curve"}, flush=True)
    rows = torch.randperm(len(corpus.train), generator=generator(7))[: 2 * texts]
    train_rows, train_labels = corpus.train[rows], corpus.train_labels[rows]
    test_rows, test_labels = corpus.test[:texts], corpus.test_labels[:texts]
    counts = torch.bincount(test_labels, minlength=len(DIVISIONS)).double()
    fresh = make_model("mlm", options.seed).eval()
    unigram = torch.bincount(corpus.train.flatten(), minlength=VOCAB).double() + 1
    results = {
        "runs": runs,
        "baselines": {
            "majority": float(counts.max() / counts.sum()),
            "untrained": probe(
                features(fresh, "mlm", train_rows),
                train_labels,
                features(fresh, "mlm", test_rows),
                test_labels,
            ),
            "bag of tokens": probe(bag(train_rows), train_labels, bag(test_rows), test_labels),
            "unigram loss": float(-(unigram / unigram.sum()).log()[test_rows].mean()),
        },
        "sizes": {
            "texts": len(corpus.train),
            "tokens of a text": N,
            "test texts": texts,
            "parameters": sum(p.numel() for p in fresh.parameters()),
        },
        "divisions": list(DIVISIONS),
    }
    print(results["baselines"])
    seconds = time.perf_counter() - begin
    store("denoising_objectives", results, seed=options.seed, seconds=seconds)


if __name__ == "__main__":
    main()
