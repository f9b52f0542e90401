"""Teach MiniLM to mark the span of a passage that answers a question, with three seeds.

About 8 minutes of one core. Disfl-QA's questions with a span, 400 to learn from and 150 to be
tested on, about other passages. Two linear scores a token, the upper half of the encoder trained.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from companion import data
from companion.core import generator
from companion.frontiers import outlook as ou
from companion.models import TextEncoder, minilm

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

SEEDS = (0, 1, 2)
LONGEST = 12  # tokens of an answer


class Example(NamedTuple):
    """A question with its passage, as tokens."""

    ids: list[int]
    inside: list[bool]
    offsets: list[tuple[int, int]]
    first: int
    last: int
    passage: str
    answer: str


def locate(answer: str, passage: str) -> tuple[int, int] | None:
    """Where an answer stands, whatever blanks are around its signs: first and last character."""
    places = [i for i, c in enumerate(passage) if not c.isspace()]
    start = "".join(passage.split()).find("".join(answer.split()))
    size = len("".join(answer.split()))
    return (places[start], places[start + size - 1]) if start >= 0 and size else None


def examples(encoder: TextEncoder, most: int) -> list[Example]:
    """Questions whose answer is a span, and short enough."""
    made = []
    for q in data.questions("disflqa"):
        found = locate(q.answers[0], q.passage)
        if q.answers == ("unknown",) or found is None:
            continue
        assert encoder.tokenizer is not None
        both = encoder.tokenizer.encode(q.question, q.passage)
        inside = [s == 1 for s in both.sequence_ids]
        tokens = [
            k
            for k, ((a, z), here) in enumerate(zip(both.offsets, inside, strict=True))
            if here and a <= found[1] and z > found[0]
        ]
        if len(both.ids) <= most and tokens and len(tokens) <= LONGEST:
            row = (both.ids, inside, both.offsets, tokens[0], tokens[-1], q.passage, q.answers[0])
            made.append(Example(*row))
    return made


def split(rows: list[Example], learned: int, tested: int) -> tuple[list[Example], list[Example]]:
    """Two parts that share no passage."""
    order = torch.randperm(len(rows), generator=generator(0)).tolist()
    test = [rows[i] for i in order[:tested]]
    seen = {row.passage for row in test}
    train = [rows[i] for i in order[tested:] if rows[i].passage not in seen]
    return train[:learned], test


def padded(rows: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, what is real, and what belongs to the passage."""
    n = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (n - len(row.ids)) for row in rows])
    real = torch.tensor([[True] * len(row.ids) + [False] * (n - len(row.ids)) for row in rows])
    inside = torch.tensor([row.inside + [False] * (n - len(row.inside)) for row in rows])
    return ids, real, inside


class Reader(nn.Module):
    """An encoder with two scores a token."""

    def __init__(self, encoder: TextEncoder, g: torch.Generator) -> None:
        super().__init__()
        self.encoder = encoder.model
        self.scores = nn.Linear(encoder.model.config.dim, 2)
        nn.init.normal_(self.scores.weight, std=0.02, generator=g)
        nn.init.zeros_(self.scores.bias)
        self.encoder.requires_grad_(False)
        for block in self.encoder.blocks[len(self.encoder.blocks) // 2 :]:
            block.requires_grad_(True)

    def forward(self, ids: Tensor, real: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        both = self.scores(self.encoder(ids, real=real)).masked_fill(~inside[..., None], -1e4)
        return both[..., 0], both[..., 1]


def trained(rows: list[Example], seed: int, epochs: int) -> Reader:
    """A reader after some passes."""
    g = generator(seed)
    reader = Reader(minilm(), g)
    free = [p for p in reader.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(free, lr=3e-4, weight_decay=0.01)
    size = 8
    steps = epochs * (len(rows) // size)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, total_steps=steps, pct_start=0.1)
    for _ in range(epochs):
        order = torch.randperm(len(rows), generator=g).tolist()
        for at in range(0, len(rows) - size + 1, size):
            batch = [rows[i] for i in order[at : at + size]]
            start, end = reader(*padded(batch))
            loss = nn.functional.cross_entropy(start, torch.tensor([r.first for r in batch]))
            loss = loss + nn.functional.cross_entropy(end, torch.tensor([r.last for r in batch]))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(free, 1.0)
            optimizer.step()
            rate.step()
    return reader


def read(reader: Reader, rows: list[Example]) -> tuple[list[str], list[float]]:
    """The best span of each passage, and its probability among spans."""
    said, sure = [], []
    with torch.no_grad():
        for at in range(0, len(rows), 16):
            batch = rows[at : at + 16]
            ids, real, inside = padded(batch)
            start, end = reader(ids, real, inside)
            best = ou.span_answer(start, end, longest=LONGEST, real=inside)
            probability = best.score - start.logsumexp(-1) - end.logsumexp(-1)
            sure += probability.exp().tolist()
            for row, i, j in zip(batch, best.start.tolist(), best.end.tolist(), strict=True):
                said.append(row.passage[row.offsets[i][0] : row.offsets[j][1]])
    return said, sure


def main(argv: list[str] | None = None) -> None:
    """Train, read, and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--learned", type=int, default=400)
    parser.add_argument("--tested", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--most", type=int, default=200, help="tokens")
    asked = parser.parse_args(argv)
    begin, cpu = time.perf_counter(), time.process_time()
    torch.set_num_threads(1)
    rows = examples(minilm(), asked.most)
    train, test = split(rows, asked.learned, asked.tested)
    answers = [(row.answer,) for row in test]
    longest = [max(ou.split_sentences(row.passage), key=len) for row in test]
    results: dict[str, Any] = {
        "learned": len(train),
        "tested": len(test),
        "epochs": asked.epochs,
        "whole passage": ou.token_f1([row.passage for row in test], answers).mean().item(),
        "a sentence": ou.token_f1(longest, answers).mean().item(),
        "seeds": [],
    }
    for seed in SEEDS:
        reader = trained(train, seed, asked.epochs)
        said, sure = read(reader, test)
        f1, exact = ou.token_f1(said, answers), ou.exact_match(said, answers)
        results["seeds"].append(
            {
                "f1": " ".join(f"{1000 * v:.0f}" for v in f1.tolist()),
                "exact": "".join(f"{v:.0f}" for v in exact.tolist()),
                "sure": " ".join(f"{1000 * v:.0f}" for v in sure),
            }
        )
        told = f"F1 {f1.mean():.3f}, exact {exact.mean():.3f}"
        print(seed, told, f"{time.process_time() - cpu:.0f} s", flush=True)
    results["cpu_seconds"] = round(time.process_time() - cpu, 1)
    store("outlook_reader", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
