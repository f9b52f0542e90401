"""Attack, augment, misspell and move what small models of text judge.

About ten minutes of one core, three seeds. Edited copies come first, at several sizes of the
training set: for a bag of words that tells books of the Bible by their verses, and for MiniLM under
a linear head, with the sentences of critics. The same head is tried on misspelled sentences, and
from one kind of film review to the other: by itself, with importance weights, and with a classifier
of domains against it. Last, MiniLM is trained with its head, as usual, by FGM and by FreeLB, and
words are exchanged until it errs; an attack counts if the string succeeds.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion import data
from companion.core import generator
from companion.knowledge.data_quality import effective_sample_size
from companion.knowledge.robustness import (
    domain_weights,
    eda,
    fgm,
    flip_text,
    freelb,
    freelb_start,
    proxy_a_distance,
    reverse_gradient,
    typos,
    whole_words,
)
from companion.models import TextEncoder, minilm
from companion.pretraining.transfer import pool

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

COUNTS = [3, 5, 10, 20, 40, 80]
BOOKS = ["Genesis", "Psalms", "Proverbs", "Matthew"]
SLIPS = [0.0, 0.1, 0.25, 0.5, 1.0]
ARMS = ("standard", "fgm", "freelb")
EPS = {"fgm": 0.25, "freelb": 0.25}


def logistic(x: Tensor, y: Tensor, *, weights: Tensor | None = None, decay: float = 0.02) -> Tensor:
    """Weights and bias of a logistic regression, by L-BFGS."""
    w = torch.zeros(x.shape[1] + 1, requires_grad=True)
    each = torch.ones(len(x)) if weights is None else weights / weights.mean()
    solver = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        z = x @ w[:-1] + w[-1]
        losses = F.binary_cross_entropy_with_logits(z, y.to(z.dtype), reduction="none")
        loss = (each * losses).mean() + decay / 2 * w[:-1].square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return w.detach()


def scores(w: Tensor, x: Tensor) -> Tensor:
    """Log-odds."""
    return x @ w[:-1] + w[-1]


def right(w: Tensor, x: Tensor, y: Tensor) -> float:
    """Accuracy."""
    return float(((scores(w, x) > 0) == y.bool()).double().mean())


def folds(count: int, k: int, g: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Training and test rows of each fold."""
    order = torch.randperm(count, generator=g)
    parts = order.chunk(k)
    return [
        (torch.cat([p for j, p in enumerate(parts) if j != i]), parts[i]) for i in range(len(parts))
    ]


def neighbors(words: Sequence[str]) -> dict[str, list[str]]:
    """Up to five words of GloVe's 20,000 most frequent whose cosine is 0.7 or more."""
    wv = data.glove()
    unit = F.normalize(wv.vectors[:20_000], dim=1)
    found = {}
    for word in set(words):
        place = wv.index.get(word)
        if place is None or not word.isalpha() or len(word) < 4:
            continue
        near = (unit @ F.normalize(wv.vectors[place], dim=0)).topk(6)
        pairs = zip(near.values.tolist(), near.indices.tolist(), strict=True)
        names = [wv.words[k] for cosine, k in pairs if cosine >= 0.7 and k != place]
        if names:
            found[word] = names
    return found


def bag(texts: Sequence[str], vocabulary: dict[str, int]) -> Tensor:
    """Which words a text has, scaled to length 1."""
    rows = torch.zeros(len(texts), len(vocabulary))
    for row, text in zip(rows, texts, strict=True):
        for word in text.split():
            if word in vocabulary:
                row[vocabulary[word]] = 1.0
    return F.normalize(rows, dim=1)


def verses_of(g: torch.Generator) -> tuple[list[str], Tensor]:
    """Verses of four books in plain small letters, and which book each is from."""
    found = [
        (re.sub(r"[^a-z ]", " ", verse.text.lower()), BOOKS.index(verse.book))
        for verse in data.bible_verses()
        if verse.book in BOOKS
    ]
    order = torch.randperm(len(found), generator=g).tolist()
    return [" ".join(found[k][0].split()) for k in order], torch.tensor(
        [found[k][1] for k in order]
    )


def verse_gain(seed: int, splits: int, copies: int) -> list[dict[str, Any]]:
    """What edited copies add to a bag of words, by the number of training verses of each book."""
    g = generator(seed)
    texts, labels = verses_of(g)
    pool_size = 600
    flat_words = [word for text in texts[:pool_size] for word in text.split()]
    near = neighbors(flat_words)
    vocabulary = {w: k for k, w in enumerate(sorted({w for t in texts for w in t.split()}))}
    bags = bag(texts, vocabulary)
    rows = []
    for count in COUNTS:
        told: dict[str, list[float]] = {"plain": [], "edited": [], "repeated": []}
        for _ in range(splits):
            order = torch.randperm(pool_size, generator=g)
            train = torch.cat([order[labels[order] == c][:count] for c in range(len(BOOKS))])
            made = [
                " ".join(words)
                for k in train.tolist()
                for words in eda(texts[k].split(), near, ratio=0.1, copies=copies, generator=g)
            ]
            more, again = bag(made, vocabulary), bags[train].repeat_interleave(copies, 0)
            y = labels[train]
            both = torch.cat([y, y.repeat_interleave(copies)])
            far, truth = bags[pool_size:], labels[pool_size:]
            for name, x, t in (
                ("plain", bags[train], y),
                ("edited", torch.cat([bags[train], more]), both),
                ("repeated", torch.cat([bags[train], again]), both),
            ):
                w = softmax_regression(x, t, classes=len(BOOKS))
                picked = (far @ w[:-1] + w[-1]).argmax(1)
                told[name].append(float((picked == truth).double().mean()))
        means = {name: round(sum(v) / len(v), 4) for name, v in told.items()}
        gains = torch.tensor(told["edited"]) - torch.tensor(told["plain"])
        rows.append({"seed": seed, "count": count, **means, "gain": round(float(gains.mean()), 4)})
        print("verses", rows[-1], flush=True)
    return rows


def softmax_regression(x: Tensor, y: Tensor, *, classes: int, decay: float = 1e-3) -> Tensor:
    """Weights of a softmax regression, biases in the last row, by L-BFGS."""
    w = torch.zeros(x.shape[1] + 1, classes, requires_grad=True)
    solver = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ w[:-1] + w[-1], y) + decay / 2 * w[:-1].square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return w.detach()


def sentence_gain(
    encoder: TextEncoder, clean: Tensor, seed: int, splits: int, copies: int
) -> list[dict[str, Any]]:
    """What edited copies add to a linear head on MiniLM, by the number of sentences."""
    g = generator(900 + seed)
    snippets = data.reviews()
    labels = snippets.labels
    near = neighbors([word for text in snippets.texts for word in text.split()])
    flat = [
        " ".join(made)
        for text in snippets.texts
        for made in eda(text.split(), near, ratio=0.1, copies=copies, generator=g)
    ]
    vectors = encoder.embed(flat).view(len(labels), copies, -1)
    rows = []
    for count in COUNTS[:-1]:
        plain, edited = [], []
        for _ in range(splits):
            order = torch.randperm(len(labels), generator=g)
            train = torch.cat([order[labels[order] == c][:count] for c in (0, 1)])
            test = order[~torch.isin(order, train)]
            both = torch.cat([clean[train], vectors[train].flatten(0, 1)])
            twice = torch.cat([labels[train], labels[train].repeat_interleave(copies)])
            plain.append(right(logistic(clean[train], labels[train]), clean[test], labels[test]))
            edited.append(right(logistic(both, twice), clean[test], labels[test]))
        row = {"seed": seed, "count": count, "plain": sum(plain), "edited": sum(edited)}
        rows.append({n: v if isinstance(v, int) else round(v / splits, 4) for n, v in row.items()})
        print("sentences", rows[-1], flush=True)
    return rows


def misspelled(encoder: TextEncoder, clean: Tensor, seed: int) -> list[dict[str, Any]]:
    """Accuracy by the share of misspelled words, trained on clean or on misspelled sentences."""
    g = generator(500 + seed)
    snippets = data.reviews()
    labels = snippets.labels
    noisy = {
        ratio: encoder.embed([typos(t, ratio=ratio, generator=g) for t in snippets.texts])
        for ratio in SLIPS
    }
    hard = encoder.embed(
        [typos(t, ratio=0.5, generator=g) for t in snippets.texts for _ in range(2)]
    )
    hard = hard.view(len(labels), 2, -1)
    sums = {"clean": [0.0] * len(SLIPS), "slips": [0.0] * len(SLIPS)}
    for train, test in folds(len(labels), 5, g):
        more = torch.cat([clean[train], hard[train].flatten(0, 1)])
        labels_of_more = torch.cat([labels[train], labels[train].repeat_interleave(2)])
        for name, w in (
            ("clean", logistic(clean[train], labels[train])),
            ("slips", logistic(more, labels_of_more)),
        ):
            for k, ratio in enumerate(SLIPS):
                sums[name][k] += right(w, noisy[ratio][test], labels[test]) / 5
    rows = [{"seed": seed, "arm": n, "accuracy": [round(v, 4) for v in s]} for n, s in sums.items()]
    print("typos", seed, rows, flush=True)
    return rows


def against_domains(
    source: Tensor, labels: Tensor, target: Tensor, *, scale: float, g: torch.Generator
) -> nn.Sequential:
    """Features, and a label on top; with a classifier of domains behind a reversed gradient."""
    width = source.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(0, 2**31, (1,), generator=g)))
        features = nn.Sequential(nn.Linear(width, 32), nn.ReLU())
        label, domain = (
            nn.Linear(32, 1),
            nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)),
        )
    model = nn.Sequential(features, label)
    parameters = [*model.parameters(), *domain.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.1)
    steps = 300
    for step in range(steps):
        here = torch.randint(0, len(source), (32,), generator=g)
        there = torch.randint(0, len(target), (32,), generator=g)
        h, far = features(source[here]), features(target[there])
        loss = F.binary_cross_entropy_with_logits(label(h)[:, 0], labels[here].float())
        if scale:
            grown = scale * (2 / (1 + torch.exp(torch.tensor(-10 * step / steps))) - 1)
            both = reverse_gradient(torch.cat([h, far]), strength=float(grown))
            truth = torch.cat([torch.zeros(32), torch.ones(32)])
            loss = loss + F.binary_cross_entropy_with_logits(domain(both)[:, 0], truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def shifted(vectors: dict[str, Tensor], seed: int) -> list[dict[str, Any]]:
    """From one kind of review to the other, and within each."""
    g = generator(600 + seed)
    labels = {name: data.reviews(name).labels for name in vectors}
    names = list(vectors)
    both = torch.cat([vectors[name] for name in names])
    side = torch.cat([torch.full((len(vectors[n]),), k) for k, n in enumerate(names)])
    wrong, odds = 0.0, torch.zeros(len(both))
    for train, test in folds(len(both), 5, g):
        w = logistic(both[train], side[train], decay=0.001)
        wrong += (1 - right(w, both[test], side[test])) / 5
        odds[test] = scores(w, both[test])  # of examples that the classifier has not seen
    rows = []
    for k, source in enumerate(names):
        target = names[1 - k]
        x, y, far, truth = vectors[source], labels[source], vectors[target], labels[target]
        within = 0.0
        for train, test in folds(len(y), 5, g):
            within += right(logistic(x[train], y[train]), x[test], y[test]) / 5
        own = 0.0  # the target, trained on the target
        for train, test in folds(len(truth), 5, g):
            own += right(logistic(far[train], truth[train]), far[test], truth[test]) / 5
        sign = 1 if k == 0 else -1
        ratio = domain_weights(sign * odds[side == k], sources=len(y), targets=len(truth))
        told = {
            "seed": seed,
            "source": source,
            "target": target,
            "within": within,
            "own": own,
            "moved": right(logistic(x, y), far, truth),
            "weighted": right(logistic(x, y, weights=ratio), far, truth),
            "mean_weight": float(ratio.mean()),
            "effective": float(effective_sample_size(ratio)),
            "domain_error": wrong,
            "distance": proxy_a_distance(wrong),
        }
        for name, scale in (("features", 0.0), ("dann", 0.3)):
            model = against_domains(x, y, far, scale=scale, g=g)
            with torch.no_grad():
                told[name] = float(((model(far)[:, 0] > 0) == truth.bool()).double().mean())
                h, other = model[0](x), model[0](far)
            seen = torch.cat([h, other])
            missed = 0.0
            for train, test in folds(len(seen), 5, g):
                w = logistic(seen[train], (train >= len(h)).long(), decay=0.001)
                missed += (1 - right(w, seen[test], (test >= len(h)).long())) / 5
            told[name + "_error"] = missed
        rows.append({n: v if isinstance(v, str | int) else round(v, 4) for n, v in told.items()})
        print("shift", rows[-1], flush=True)
    return rows


def judge_of(encoder: TextEncoder, head: nn.Linear) -> Any:
    """From ids, or an offset of their embeddings, to logits."""

    def logits(ids: Tensor, real: Tensor, offset: Tensor | None = None) -> Tensor:
        embeddings = encoder.model.tokens(ids)
        if offset is not None:
            embeddings = embeddings + offset
        hidden = encoder.model(None, real=real, embeddings=embeddings)
        made: Tensor = head(pool(hidden, real))
        return made

    return logits


def tuned(arm: str, train: Tensor, seed: int, epochs: int) -> tuple[TextEncoder, nn.Linear]:
    """The encoder and a head, trained together in one of three ways."""
    g = generator(700 + seed)
    snippets = data.reviews()
    encoder = minilm()  # in evaluation mode: no dropout between the passes of a step
    head = nn.Linear(encoder.model.config.dim, 2)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    logits = judge_of(encoder, head)
    parameters = [*encoder.model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": list(encoder.model.parameters()), "lr": 5e-5},
            {"params": list(head.parameters()), "lr": 5e-3},
        ],
        weight_decay=0.01,
    )
    dim = encoder.model.config.dim
    for _ in range(epochs):
        for rows in train[torch.randperm(len(train), generator=g)].split(16):
            ids, real = encoder.tokenize([snippets.texts[k] for k in rows.tolist()])
            y = snippets.labels[rows]

            def loss_of(
                offset: Tensor | None, ids: Any = ids, real: Any = real, y: Any = y
            ) -> Tensor:
                return F.cross_entropy(logits(ids, real, offset), y, reduction="none")

            optimizer.zero_grad()
            if arm == "freelb":
                start = freelb_start(real, dim=dim, eps=EPS[arm], generator=g)
                used = [p for p in parameters if p.requires_grad]
                made = freelb(loss_of, start, used, eps=EPS[arm], step=EPS[arm] / 2, steps=3)
                for p, slope in zip(used, made.gradients, strict=True):
                    p.grad = slope
            else:
                loss = loss_of(None).mean()
                if arm == "fgm":
                    like = torch.zeros(*ids.shape, dim)
                    loss = loss + loss_of(fgm(loss_of, like, eps=EPS[arm])).mean()
                loss.backward()
            optimizer.step()
    return encoder, head


def attacked(arm: str, seed: int, epochs: int, count: int, words: Tensor) -> dict[str, Any]:
    """Train on most sentences, and exchange words in some of the others."""
    g = generator(800 + seed)
    snippets = data.reviews()
    order = torch.randperm(len(snippets), generator=g)
    train, test = order[count:], order[:count]
    encoder, head = tuned(arm, train, seed, epochs)
    told = {"right": 0, "fools_ids": 0, "fools_text": 0, "changed_ids": 0, "flips": 0, "queries": 0}
    for k in test.tolist():
        made = flip_text(
            encoder, head, snippets.texts[k], int(snippets.labels[k]), words=words, tries=16
        )
        if made.flips == 0 and made.fools_ids:
            continue  # wrong from the start
        told["right"] += 1
        told["fools_ids"] += made.fools_ids
        told["fools_text"] += made.fools_text
        told["changed_ids"] += not made.survives
        told["flips"] += made.flips if made.fools_text else 0
        told["queries"] += made.queries
    row = {"arm": arm, "seed": seed, "texts": count, **{n: int(v) for n, v in told.items()}}
    print("attack", row, flush=True)
    return row


def main(argv: list[str] | None = None) -> None:
    """Embed, edit, misspell, move, attack, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--attacked", type=int, default=40)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--domains", nargs="*", default=list(data.REVIEWS))
    asked = parser.parse_args(argv)
    begin = time.perf_counter()
    torch.set_num_threads(1)
    encoder = minilm()
    words = whole_words(encoder)
    vectors = {
        name: encoder.embed(data.reviews(name).texts, truncate=True)
        for name in {"snippets": None, **dict.fromkeys(asked.domains)}
    }
    results: dict[str, Any] = {
        "copies": asked.copies,
        "splits": asked.splits,
        "epochs": asked.epochs,
        "slips": SLIPS,
        "eps": EPS,
        "verses": [],
        "sentences": [],
        "typos": [],
        "shift": [],
        "attacks": [],
    }
    for seed in range(asked.seeds):
        clean = vectors["snippets"]
        results["verses"] += verse_gain(seed, asked.splits, 2 * asked.copies)
        results["sentences"] += sentence_gain(encoder, clean, seed, asked.splits, asked.copies)
        results["typos"] += misspelled(encoder, clean, seed)
        if len(vectors) == 2:
            results["shift"] += shifted(vectors, seed)
        for arm in asked.arms:
            results["attacks"].append(attacked(arm, seed, asked.epochs, asked.attacked, words))
    store("robustness_text", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
