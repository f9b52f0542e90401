"""Teach SmolLM2 to read Shakespeare in several ways, and watch what becomes of its modern English.

It learns from 32 plays, two rows of 64 tokens at a time. Its loss is measured on six other plays,
and on BBC news.

python book/_runs/transfer_forgetting.py      # about 15 minutes of CPU time
"""

import argparse
import copy
import time
from typing import Any

import torch
from _store import store
from torch import Tensor, nn

from companion import data
from companion.core import train
from companion.foundations.cross_entropy import cross_entropy, softmax
from companion.models import smollm2
from companion.pretraining.transfer import add_lora, add_prefix, ewc_penalty, fisher_diagonal

# Set by hand after short pilot runs with another seed, not tuned.
RATES = {"full": 1e-4, "l2": 1e-4, "ewc": 1e-4, "lora-8": 2e-4, "prefix": 1e-2}
# On average over the parameters both hold as fast: the Fisher diagonal has a mean of 8e-5.
STRENGTHS = {"l2": 0.08, "ewc": 1e3}
HELD_OUT = (
    "Twelfth Night",
    "The Comedy of Errors",
    "King John",
    "Henry VIII",
    "Macbeth",
    "Coriolanus",
)


def rows_of(texts: list[str], tokenizer: Any, width: int, count: int) -> Tensor:
    """Take one row of ids from each text that is long enough, the start token first."""
    rows: list[list[int]] = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        if len(ids) >= width:
            rows.append([0, *ids[: width - 1]])
        if len(rows) == count:
            return torch.tensor(rows)
    raise ValueError(f"only {len(rows)} of {count} texts have {width} tokens")


def language_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def pieces(titles: list[str], characters: int = 600) -> list[str]:
    """Cut plays into pieces; the list of persons at the beginning is left out."""
    plays = data.shakespeare_plays()
    made = []
    for title in titles:
        text = plays[title][1500:]
        made += [text[at : at + characters] for at in range(0, len(text), characters)]
    return made


def compare(
    *, seeds: list[int], steps: int, width: int, tests: int, every: int, methods: list[str]
) -> dict[str, Any]:
    text = smollm2()
    titles = [title for title in data.shakespeare_plays() if title not in HELD_OUT]
    news = [row.document for row in data.xsum()]
    shuffle = torch.Generator().manual_seed(1000)

    def shuffled(texts: list[str]) -> list[str]:
        return [texts[at] for at in torch.randperm(len(texts), generator=shuffle).tolist()]

    learn = rows_of(shuffled(pieces(titles)), text.tokenizer, width, max(2 * steps, 2))
    held = {
        "new": rows_of(shuffled(pieces(list(HELD_OUT))), text.tokenizer, width, tests),
        "old": rows_of(news, text.tokenizer, width, tests),
    }
    remember = rows_of(news[400:], text.tokenizer, width, tests)
    original = {name: p.detach().clone() for name, p in text.model.named_parameters()}
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        for method in methods:
            began = time.process_time()
            g = torch.Generator().manual_seed(seed)
            model = copy.deepcopy(text.model).requires_grad_(True)
            kind, _, rank = method.partition("-")
            if kind == "lora":
                targets = ["query", "key", "value", "out", "gate", "up", "down"]
                add_lora(model, targets=targets, rank=int(rank), alpha=16.0, generator=g)
            elif kind == "prefix":
                add_prefix(model, length=8, generator=g)
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            fisher = importance(model, remember, trained, g) if kind == "ewc" else None
            strength = STRENGTHS.get(kind)

            def loss(
                ids: Tensor,
                model: nn.Module = model,
                trained: dict[str, Tensor] = trained,
                fisher: dict[str, Tensor] | None = fisher,
                strength: float | None = strength,
            ) -> Tensor:
                fitted = language_loss(model, ids)
                if strength is None:
                    return fitted
                return fitted + ewc_penalty(trained, original, fisher, strength=strength)

            order = torch.randperm(len(learn), generator=g)
            source = iter([learn[rows] for rows in order.repeat(4).split(2)])
            curve = [[0, *losses(model, held)]]
            rate = RATES[method]
            optimizer = torch.optim.AdamW(trained.values(), lr=rate, weight_decay=0.0)
            for done in range(every, steps + 1, every):
                train(loss, source, optimizer, steps=every, clip_norm=1.0)
                curve.append([done, *losses(model, held)])
            moved = None
            if kind in ("full", "l2", "ewc"):
                squares = [
                    (p.detach() - original[name]).square().sum() for name, p in trained.items()
                ]
                moved = float(torch.stack(squares).sum().sqrt())
            count = sum(p.numel() for p in trained.values())
            runs.append(
                {"method": method, "seed": seed, "trained": count, "curve": curve, "moved": moved}
            )
            spent = time.process_time() - began
            print(
                f"seed {seed} {method:7} new {curve[0][1]:.3f} -> {curve[-1][1]:.3f}, "
                f"old {curve[0][2]:.3f} -> {curve[-1][2]:.3f}, {spent:.0f} s",
                flush=True,
            )
            del model, trained, fisher, optimizer
    return {
        "runs": runs,
        "steps": steps,
        "tokens": 2 * width,
        "tests": tests,
        "rates": RATES,
        "strengths": STRENGTHS,
    }


@torch.no_grad()
def losses(model: nn.Module, held: dict[str, Tensor]) -> list[float]:
    """Nats a token on the new and on the old text."""
    return [
        float(torch.stack([language_loss(model, part) for part in rows.split(4)]).mean())
        for rows in held.values()
    ]


def importance(
    model: nn.Module, rows: Tensor, trained: dict[str, Tensor], g: torch.Generator
) -> dict[str, Tensor]:
    """The Fisher diagonal of a token's loss on old text, next tokens drawn from the model."""

    def surprise(ids: Tensor) -> Tensor:
        z = model(ids[None, :-1])[0]
        y = torch.multinomial(softmax(z.detach()), 1, generator=g)[:, 0]
        return cross_entropy(z, y, reduction="none").sum() / len(y) ** 0.5

    return fisher_diagonal(surprise, rows.unbind(), trained)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=2, help="how many seeds")
    parser.add_argument("--steps", type=int, default=24, help="updates")
    parser.add_argument("--every", type=int, default=8, help="updates between two evaluations")
    parser.add_argument("--width", type=int, default=64, help="tokens of a row; two rows a batch")
    parser.add_argument("--tests", type=int, default=8, help="rows of old and of new text")
    parser.add_argument("--methods", nargs="+", default=list(RATES), choices=list(RATES))
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    results = compare(
        seeds=list(range(options.seed, options.seed + options.seeds)),
        steps=options.steps,
        width=options.width,
        tests=options.tests,
        every=options.every,
        methods=options.methods,
    )
    seconds = time.perf_counter() - began
    store("transfer_forgetting", results, seed=options.seed, seconds=seconds)


if __name__ == "__main__":
    main()
