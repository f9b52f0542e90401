"""Mark the span of a passage that answers a question, by two linear scores on MiniLM's vectors.

About a minute of one core. Disfl-QA's questions with a span, half to learn from and half to be
tested on, about other passages, for each of three seeds. The encoder stays as it is.
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


def padded(rows: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, what is real, and what belongs to the passage."""
    n = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (n - len(row.ids)) for row in rows])
    real = torch.tensor([[True] * len(row.ids) + [False] * (n - len(row.ids)) for row in rows])
    inside = torch.tensor([row.inside + [False] * (n - len(row.inside)) for row in rows])
    return ids, real, inside


class Vectors(NamedTuple):
    """A question with its passage, as vectors of its tokens."""

    row: Example
    x: Tensor


def encode(encoder: TextEncoder, rows: list[Example]) -> list[Vectors]:
    """Vectors of the passage's tokens beside their products with the question's mean."""
    made: list[Vectors] = []
    with torch.no_grad():
        for at in range(0, len(rows), 16):
            batch = rows[at : at + 16]
            ids, real, inside = padded(batch)
            hidden = encoder.model(ids, real=real)
            asked = (real & ~inside).unsqueeze(-1)
            mean = (hidden * asked).sum(1, keepdim=True) / asked.sum(1, keepdim=True)
            both = torch.cat([hidden, hidden * mean], -1)
            for row, x, here in zip(batch, both, inside, strict=True):
                made.append(Vectors(row, x.masked_fill(~here[:, None], 0.0)[: len(row.ids)]))
    return made


def split(rows: list[Vectors], tested: int, seed: int) -> tuple[list[Vectors], list[Vectors]]:
    """Two parts that share no passage."""
    order = torch.randperm(len(rows), generator=generator(100 + seed)).tolist()
    test = [rows[i] for i in order[:tested]]
    seen = {v.row.passage for v in test}
    return [rows[i] for i in order[tested:] if rows[i].row.passage not in seen], test


def stacked(part: list[Vectors]) -> tuple[Tensor, Tensor]:
    """Vectors and what belongs to the passage, padded."""
    x = nn.utils.rnn.pad_sequence([v.x for v in part], batch_first=True)
    _, _, inside = padded([v.row for v in part])
    return x, inside


def scores(head: nn.Linear, x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the tokens as the first and as the last of the answer."""
    both = head(x).masked_fill(~inside[..., None], -1e4)
    return both[..., 0], both[..., 1]


def trained(part: list[Vectors], seed: int, epochs: int) -> nn.Linear:
    """Two linear scores a token, learned from some questions."""
    g = generator(seed)
    head = nn.Linear(part[0].x.shape[-1], 2)
    nn.init.normal_(head.weight, std=0.02, generator=g)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=0.3)
    for _ in range(epochs):
        order = torch.randperm(len(part), generator=g).tolist()
        for at in range(0, len(part), 32):
            batch = [part[i] for i in order[at : at + 32]]
            start, end = scores(head, *stacked(batch))
            first = torch.tensor([v.row.first for v in batch])
            last = torch.tensor([v.row.last for v in batch])
            loss = nn.functional.cross_entropy(start, first)
            loss = loss + nn.functional.cross_entropy(end, last)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head


def read(head: nn.Linear, part: list[Vectors]) -> tuple[list[str], list[float]]:
    """The best span of each passage, and its probability among spans."""
    with torch.no_grad():
        x, inside = stacked(part)
        start, end = scores(head, x, inside)
        best = ou.span_answer(start, end, longest=LONGEST, real=inside)
        sure = (best.score - start.logsumexp(-1) - end.logsumexp(-1)).exp().tolist()
    said = []
    for v, i, j in zip(part, best.start.tolist(), best.end.tolist(), strict=True):
        said.append(v.row.passage[v.row.offsets[i][0] : v.row.offsets[j][1]])
    return said, sure


def main(argv: list[str] | None = None) -> None:
    """Train, read, and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=500, help="questions")
    parser.add_argument("--tested", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=200, help="longest question and passage")
    asked = parser.parse_args(argv)
    begin, cpu = time.perf_counter(), time.process_time()
    torch.set_num_threads(1)
    encoder = minilm()
    rows = encode(encoder, examples(encoder, asked.tokens)[: asked.most])
    results: dict[str, Any] = {"questions": len(rows), "epochs": asked.epochs, "seeds": []}
    for seed in SEEDS:
        train, test = split(rows, asked.tested, seed)
        answers = [(v.row.answer,) for v in test]
        longest = [max(ou.split_sentences(v.row.passage), key=len) for v in test]
        said, sure = read(trained(train, seed, asked.epochs), test)
        f1, exact = ou.token_f1(said, answers), ou.exact_match(said, answers)
        results["seeds"].append(
            {
                "learned": len(train),
                "f1": " ".join(f"{1000 * v:.0f}" for v in f1.tolist()),
                "exact": "".join(f"{v:.0f}" for v in exact.tolist()),
                "sure": " ".join(f"{1e6 * v:.0f}" for v in sure),
                "whole passage": ou.token_f1([v.row.passage for v in test], answers).mean().item(),
                "a sentence": ou.token_f1(longest, answers).mean().item(),
            }
        )
        told = f"F1 {f1.mean():.3f}, exact {exact.mean():.3f}"
        print(seed, told, f"{time.process_time() - cpu:.0f} s", flush=True)
    results["cpu_seconds"] = round(time.process_time() - cpu, 1)
    store("outlook_reader", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
