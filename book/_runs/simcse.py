"""SimCSE on the first two blocks of MiniLM: dropout makes the two views, or nothing does.

The encoder reads verses of the King James Bible. Every so often it is measured on held-out verses
that it shares with the American Standard Version: alignment of the two versions, uniformity, and
how well the first half of a verse in one version finds its second half in the other.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from _store import store
from torch import Tensor, nn

from companion import data
from companion.core import train
from companion.foundations.regularization import Dropout
from companion.models import TextEncoder, minilm
from companion.pretraining.self_supervised import alignment, info_nce, uniformity

Pairs = list[tuple[str, str]]


def verse_pairs(*, held_out: int, generator: torch.Generator) -> tuple[list[str], Pairs]:
    """Verses to learn from, and pairs of versions to measure on; no verse is in both."""
    asv = {(v.book, v.chapter, v.verse): v.text for v in data.bible_verses("asv")}
    pairs = [
        (v.text, other)
        for v in data.bible_verses("kjv")
        if (other := asv.get((v.book, v.chapter, v.verse)))
        and other != v.text
        and 40 < len(v.text) < 160
    ]
    order = torch.randperm(len(pairs), generator=generator).tolist()
    mixed = [pairs[i] for i in order]
    return [kjv for kjv, _ in mixed[held_out:]], mixed[:held_out]


def shallow(layers: int, p: float, generator: torch.Generator) -> TextEncoder:
    """The first blocks of MiniLM, with dropout after the embeddings and each branch."""
    encoder = minilm()
    model = encoder.model
    model.blocks = nn.ModuleList(list(model.blocks)[:layers])
    for part in (model, *model.blocks):
        part.dropout = Dropout(p, generator=generator)
    # Tables of tokens and positions stay as they are: a few thousand verses see little of them.
    model.requires_grad_(False)
    model.blocks.requires_grad_(True)
    return encoder


def pooled(encoder: TextEncoder, sentences: Sequence[str]) -> Tensor:
    """Unit sentence vectors that gradients flow through."""
    ids, real = encoder.tokenize(sentences)
    hidden = encoder.model(ids, real=real)
    weight = real[:, :, None].to(hidden.dtype)
    return nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)


def half(text: str, side: int) -> str:
    """The first or the second half of the words of a text."""
    words = text.split()
    middle = len(words) // 2
    return " ".join(words[middle:] if side else words[:middle])


def measure(encoder: TextEncoder, held: Pairs) -> dict[str, float]:
    """Where the encoder stands on pairs of versions, without dropout."""
    encoder.model.eval()

    def embed(texts: list[str]) -> Tensor:
        return encoder.embed(texts, batch_size=64)

    U, V = (embed([pair[side] for pair in held]) for side in (0, 1))
    scores = embed([half(kjv, 0) for kjv, _ in held]) @ embed([half(asv, 1) for _, asv in held]).T
    rank = 1 + (scores > scores.diagonal()[:, None]).sum(1)
    encoder.model.train()
    return {
        "alignment": float(alignment(U, V)),
        "uniformity": float(uniformity(U)),
        "halves": float((1 / rank).mean()),
    }


def run(p: float, *, options: argparse.Namespace) -> dict[str, Any]:
    """Train with one dropout rate; return what was measured on the way."""
    generator = torch.Generator().manual_seed(options.seed)
    texts, held = verse_pairs(held_out=options.held_out, generator=generator)
    encoder = shallow(options.layers, p, generator)
    weights = [w for w in encoder.model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=options.rate, weight_decay=0.0)
    views: list[float] = []

    def loss(_: int) -> Tensor:
        chosen = torch.randint(len(texts), (options.batch,), generator=generator).tolist()
        batch = [texts[i] for i in chosen]
        U, V = pooled(encoder, batch), pooled(encoder, batch)
        views.append(float(alignment(U, V).detach()))
        return info_nce(U, V, temperature=options.temperature)

    encoder.model.train()
    steps, traced, losses = [0], [measure(encoder, held)], []
    while steps[-1] < options.steps:
        more = min(options.every, options.steps - steps[-1])
        log = train(loss, [0], optimizer, steps=more, clip_norm=1.0)
        losses += log.loss.tolist()
        steps.append(steps[-1] + more)
        traced.append(measure(encoder, held))
        print(f"dropout {p}: step {steps[-1]}, loss {losses[-1]:.4f}, {traced[-1]}", flush=True)
    return {
        "dropout": p,
        "steps": steps,
        **{key: [round(m[key], 5) for m in traced] for key in traced[0]},
        "loss": [round(v, 5) for v in losses],
        "views": [round(v, 5) for v in views],
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train with and without dropout, and store what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.1, 0.0])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    begin = time.perf_counter()
    results = {
        "runs": [run(p, options=options) for p in options.dropout],
        "batch": options.batch,
        "held_out": options.held_out,
        "layers": options.layers,
        "rate": options.rate,
        "temperature": options.temperature,
    }
    store("simcse", results, seed=options.seed, seconds=time.perf_counter() - begin)
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
