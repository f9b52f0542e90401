"""Race SGD, momentum, Adam, AdamW and Muon on one small Transformer, against counted tables.

Every method predicts the next character and the next word of Shakespeare. Its learning rate is
chosen on a validation text, from steps of a factor 3, until the best one has a worse one on either
side. Then further seeds run at that rate. All of them are judged on a test text, on which n-gram
models that were counted on the training text are judged as well.

    python book/_runs/optimizer_race.py
"""

import argparse
import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from _store import store
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from companion import data
from companion.core import generator, randint
from companion.foundations.language_models import count_ngrams, kneser_ney, windows
from companion.foundations.optimization import (
    SGD,
    Adam,
    AdamW,
    Momentum,
    Muon,
    clip_grad_norm_,
    warmup_cosine,
)

LENGTH, ROWS = 32, 16  # tokens of a sequence, sequences of a batch
FACTOR = 3.0  # between neighboring learning rates
# Where the search for the rate begins, in characters and in words.
START = {
    "SGD": (1.0, 1.0),
    "SGD, not clipped": (0.3, 0.3),
    "momentum": (0.3, 0.3),
    "Adam": (0.01, 0.01),
    "AdamW": (0.01, 0.01),
    "Muon": (0.03, 0.03),
}
TASKS = ("characters", "words")


class Task(NamedTuple):
    """A text as ids: to train on, to choose rates by, to judge by."""

    kinds: int
    train: Tensor
    validation: Tensor
    test: Tensor


def load(name: str, evaluated: int) -> Task:
    """Read Shakespeare as characters or words; the last tenth is held out."""
    text = data.shakespeare()
    if name == "characters":
        symbols: Sequence[str] = text
        kinds = 80
    else:
        symbols = re.findall(r"[a-z']+|[.,;:?!\n]", text.lower())
        kinds = 2000
    held = len(symbols) // 20
    common = Counter(symbols[: -2 * held]).most_common(kinds - 1)
    rank = {symbol: i for i, (symbol, _) in enumerate(common)}
    ids = torch.tensor([rank.get(symbol, kinds - 1) for symbol in symbols])
    validation, test = (
        part.unfold(0, LENGTH + 1, LENGTH)[:evaluated]
        for part in (ids[-2 * held : -held], ids[-held:])
    )
    return Task(kinds, ids[: -2 * held], validation, test)


class TinyTransformer(nn.Module):
    """Two layers of width 64, from PyTorch's parts."""

    def __init__(self, kinds: int, *, generator: torch.Generator, width: int = 64) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(kinds, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                4,
                4 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, kinds)
        self.register_buffer("future", torch.ones(LENGTH, LENGTH).triu(1).bool())
        for name, parameter in self.named_parameters():
            if "norm" not in name:  # biases at zero
                std = width**-0.5 if parameter.ndim == 2 else 0.0
                nn.init.normal_(parameter, std=std, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.token(ids) + self.place.weight
        for block in self.blocks:
            hidden = block(hidden, src_mask=self.future, is_causal=True)
        logits: Tensor = self.head(self.norm(hidden))
        return logits

    def loss(self, rows: Tensor) -> Tensor:
        return cross_entropy(self(rows[:, :-1]).mT, rows[:, 1:])


def optimizers(method: str, model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """All parameters under one rule; under Muon, what is no matrix of a block goes to AdamW."""
    parameters = list(model.parameters())
    if method == "momentum":
        return [Momentum(parameters, rate)]
    if method == "Adam":
        return [Adam(parameters, rate)]
    if method == "AdamW":
        return [AdamW(parameters, rate, weight_decay=0.1)]
    if method == "Muon":
        named = list(model.named_parameters())
        inside = {name for name, p in named if p.ndim == 2 and "blocks" in name}
        return [
            Muon([p for name, p in named if name in inside], rate),
            AdamW([p for name, p in named if name not in inside], rate / 3, weight_decay=0.1),
        ]
    return [SGD(parameters, rate)]


@torch.no_grad()
def judge(model: TinyTransformer, rows: Tensor) -> float:
    parts = [float(model.loss(part)) * len(part) for part in rows.split(128)]
    return sum(parts) / len(rows)


def run(task: Task, method: str, rate: float, *, seed: int, steps: int) -> dict[str, Any]:
    """Train once; a loss that is not finite ends the run, and counts as no result."""
    g = generator(seed)
    model = TinyTransformer(task.kinds, generator=g)
    at = randint(0, len(task.train) - LENGTH, (steps, ROWS), generator=g)
    rules = optimizers(method, model, rate)
    losses: list[float] = []
    bases = [rule.param_groups[0]["lr"] for rule in rules]
    for step in range(steps):
        model.zero_grad()
        loss = model.loss(task.train[at[step, :, None] + torch.arange(LENGTH + 1)])
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            break
        loss.backward()
        if method != "SGD, not clipped":
            clip_grad_norm_(model.parameters(), max_norm=1.0)
        for rule, base in zip(rules, bases, strict=True):
            rule.param_groups[0]["lr"] = base * warmup_cosine(step, warmup=steps // 10, total=steps)
            rule.step()
    found: dict[str, Any] = {"rate": rate, "seed": seed, "validation": None, "test": None}
    ends = judge(model, task.validation), judge(model, task.test)
    if all(map(math.isfinite, [*losses, *ends])):
        each = max(steps // 50, 1)
        curve = [round(float(part.mean()), 4) for part in torch.tensor(losses).split(each)]
        found |= {"validation": ends[0], "test": ends[1], "curve": curve}
    return found


def search(task: Task, method: str, start: float, *, seed: int, steps: int) -> list[dict[str, Any]]:
    """Run rates a factor apart until the best of them lies between two worse ones."""
    runs: dict[int, dict[str, Any]] = {}
    best = 0
    while True:
        for power in (best, best - 1, best + 1):
            if power not in runs:
                rate = start * FACTOR**power
                runs[power] = run(task, method, rate, seed=seed, steps=steps)
                print(method, {k: v for k, v in runs[power].items() if k != "curve"}, flush=True)
        scores = {power: one["validation"] for power, one in runs.items()}
        finite = {power: score for power, score in scores.items() if score is not None}
        if not finite:
            raise RuntimeError(f"{method} failed at every rate: begin lower than {start}")
        last, best = best, min(finite, key=lambda power: finite[power])
        if best == last:
            return [runs[power] for power in sorted(runs)]


def tables(task: Task) -> dict[str, float]:
    """Loss on the test text of n-gram models that were counted on the training text.

    Every symbol of the vocabulary occurs there, so no probability is zero.
    """
    text, end, found = torch.cat([task.test[:, :-1].flatten(), task.test[-1, -1:]]), task.kinds, {}
    for order, name in ((1, "unigram"), (2, "bigram"), (3, "trigram")):
        counted = windows([task.train], order=order, vocab_size=end + 1, eos=end)
        model = kneser_ney(count_ngrams(*counted, vocab_size=end + 1))
        rows = text.unfold(0, order, 1)[max(2 - order, 0) :]
        found[name] = -float(model.log_prob(rows[:, :-1], rows[:, -1]).mean())
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="first seed, by which rates are chosen")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds")
    parser.add_argument("--steps", type=int, default=1000, help="steps of each run")
    parser.add_argument("--evaluated", type=int, default=1024, help="held-out sequences")
    parser.add_argument("--methods", nargs="+", default=list(START), choices=list(START))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    begin = time.perf_counter()
    results: dict[str, Any] = {}
    for name in options.tasks:
        task = load(name, options.evaluated)
        found: dict[str, Any] = {}
        print(name, tables(task), flush=True)
        for method in options.methods:
            start = START[method][TASKS.index(name)]
            tried = search(task, method, start, seed=options.seed, steps=options.steps)
            finite = [one for one in tried if one["validation"] is not None]
            best = min(finite, key=lambda one: one["validation"])
            runs = [best]
            for seed in range(options.seed + 1, options.seed + options.seeds):
                runs.append(run(task, method, best["rate"], seed=seed, steps=options.steps))
                print(method, {k: v for k, v in runs[-1].items() if k != "curve"}, flush=True)
            found[method] = {
                "rate": best["rate"],
                "tried": {f"{one['rate']:.4g}": one["validation"] for one in tried},
                "test": [one["test"] for one in runs],
                "curve": best["curve"],
            }
        results[name] = {
            "methods": found,
            "tables": tables(task),
            "kinds": task.kinds,
            "tokens": len(task.train),
            "judged": task.test[:, 1:].numel(),
        }
    results["steps"] = options.steps
    results["tokens of a batch"] = LENGTH * ROWS
    store("optimizer_race", results, seed=options.seed, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
