"""Memorization before and after deduplication: a small model on a corpus with planted copies.

About 15 minutes of one core. The corpus is passages of the King James Bible, one row of tokens
each. Most stand in it once; some stand in it 2, 4, ..., 64 times, half of the further copies with
two words changed. For each seed the same model is trained for the same number of steps on the
corpus as it is, on the corpus without exact copies, and on the corpus without near-duplicates.
Then it is asked to go on after the first half of each passage.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import data
from companion.core import generator, train
from companion.foundations.language_models import BPE
from companion.foundations.optimization import AdamW, warmup_cosine
from companion.knowledge.data_quality import near_duplicates
from companion.models import generate, sample
from companion.pretraining.autoregressive import initialize, llama_config, next_token_loss
from companion.transformer.block import Decoder

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

TOKENS, PROMPT, SPOKEN = 96, 32, 32
COPIES = (1, 2, 4, 8, 16, 32, 64)
ARMS = ("raw", "exact", "near")


@dataclass(frozen=True)
class Corpus:
    """Texts of one seed: which passage each came from, and passages of the test."""

    texts: list[str]
    origin: list[int]
    passages: list[str]
    counts: dict[int, list[int]]  # passages by how many copies there are
    unseen: list[str]


def passages(words: int) -> list[str]:
    """The Bible in pieces of whole verses, of a given number of words or a few more."""
    made: list[str] = []
    piece: list[str] = []
    for verse in data.bible_verses():
        piece += verse.text.split()
        if len(piece) >= words:
            made.append(" ".join(piece))
            piece = []
    return made


def plant(pool: list[str], asked: argparse.Namespace, *, seed: int) -> Corpus:
    """Draw passages, and plant copies of some of them."""
    g = generator(seed)
    order = torch.randperm(len(pool), generator=g).tolist()
    chosen = [pool[i] for i in order[: asked.passages]]
    unseen = [pool[i] for i in order[asked.passages : asked.passages + asked.test]]
    words = sorted({word for text in chosen for word in text.split()})
    texts, origin = list(chosen), list(range(len(chosen)))
    counts: dict[int, list[int]] = {}
    at = 0
    for copies in COPIES:
        each = asked.test if copies == 1 else asked.each
        counts[copies] = list(range(at, at + each))
        at += each
        for passage in counts[copies]:
            for copy in range(1, copies):
                text = chosen[passage].split()
                if copy % 2 == 0:  # half of the copies are changed in two words
                    where = torch.randperm(len(text), generator=g)[:2].tolist()
                    for place in where:
                        drawn = torch.randint(len(words), (), generator=g)
                        text[place] = words[int(drawn)]
                texts.append(" ".join(text))
                origin.append(passage)
    return Corpus(texts, origin, chosen, counts, unseen)


def kept_by(arm: str, corpus: Corpus) -> tuple[list[int], dict[str, Any]]:
    """The texts that are left, and how well copies were told from others."""
    count = len(corpus.texts)
    if arm == "raw":
        return list(range(count)), {}
    if arm == "exact":
        first: dict[str, int] = {}
        kept = [i for i, text in enumerate(corpus.texts) if first.setdefault(text, i) == i]
    else:
        of = near_duplicates(corpus.texts, threshold=0.6).of
        kept = (of < 0).nonzero()[:, 0].tolist()
    left = set(kept)
    planted = [i >= len(corpus.passages) for i in range(count)]
    dropped = [i for i in range(count) if i not in left]
    right = sum(planted[i] for i in dropped)
    return kept, {"dropped": len(dropped), "right": right, "planted": sum(planted)}


def rows_of(bpe: BPE, texts: list[str], end: int) -> Tensor:
    """The beginning of each text as a row of tokens, after the mark of a text's end."""
    return torch.tensor([[end, *bpe.encode(text)[:TOKENS]] for text in texts])


@torch.no_grad()
def repeats(model: Decoder, rows: Tensor) -> list[int]:
    """For each passage, how many of the next tokens the model says as they stand."""
    asked = rows[:, : PROMPT + 1]
    said = torch.cat([generate(model, some, tokens=SPOKEN) for some in asked.split(64)])
    right = said == rows[:, PROMPT + 1 : PROMPT + 1 + SPOKEN]
    return right.long().cumprod(1).sum(1).tolist()


@torch.no_grad()
def verbatim(model: Decoder, rows: Tensor, *, texts: int, run: int, end: int, seed: int) -> float:
    """Share of the tokens of free texts that lie in a stretch that stands in the corpus."""
    known = {tuple(window) for row in rows.tolist() for window in _windows(row[1:], run)}
    start = torch.full((texts, 1), end)
    pick = sample(generator=generator(1000 + seed))
    written = generate(model, start, tokens=TOKENS, pick=pick)
    covered = torch.zeros(written.shape, dtype=torch.bool)
    for i, row in enumerate(written.tolist()):
        for j, window in enumerate(_windows(row, run)):
            if tuple(window) in known:
                covered[i, j : j + run] = True
    return float(covered.double().mean())


def _windows(row: list[int], run: int) -> Iterator[list[int]]:
    return (row[j : j + run] for j in range(len(row) - run + 1))


@torch.no_grad()
def surprise(model: Decoder, rows: Tensor) -> float:
    """Nats a token."""
    return float(torch.stack([next_token_loss(model, some) for some in rows.split(16)]).mean())


def shuffled(rows: Tensor, *, batch: int, seed: int) -> Iterator[Tensor]:
    """Rows, each once in a pass, in a new order in each."""
    g = generator(seed)
    left = torch.empty(0, dtype=torch.long)
    while True:
        if len(left) < batch:
            left = torch.cat([left, torch.randperm(len(rows), generator=g)])
        yield rows[left[:batch]]
        left = left[batch:]


def main(argv: list[str] | None = None) -> None:
    """Plant, clean, train, ask, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--passages", type=int, default=1600)
    parser.add_argument("--words", type=int, default=90, help="of a passage, at least")
    parser.add_argument("--each", type=int, default=10, help="passages with so many copies")
    parser.add_argument("--test", type=int, default=64, help="passages that are read once, or not")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    asked = parser.parse_args(argv)
    begin, cpu = time.perf_counter(), time.process_time()
    torch.set_num_threads(1)
    pool = passages(asked.words)
    bpe = BPE.train("\n".join(pool[::8]), vocab_size=asked.vocab, special_tokens=["<end>"])
    end = bpe.encode("<end>", allow_special=True)[0]
    pool = [text for text in pool if len(bpe.encode(text)) >= TOKENS + 2]
    results: dict[str, Any] = {
        "size": [asked.layers, asked.dim, asked.heads],
        "vocab": asked.vocab,
        "tokens": TOKENS,
        "prompt": PROMPT,
        "spoken": SPOKEN,
        "passages": asked.passages,
        "each": asked.each,
        "steps": asked.steps,
        "batch": asked.batch,
        "lr": asked.lr,
        "copies": list(COPIES),
        "runs": [],
    }
    for seed in range(asked.seeds):
        corpus = plant(pool, asked, seed=seed)
        rows = rows_of(bpe, corpus.texts, end)
        originals = rows[: len(corpus.passages)]
        unseen = rows_of(bpe, corpus.unseen, end)
        for arm in ARMS:
            kept, told = kept_by(arm, corpus)
            model = initialize(
                llama_config(
                    (asked.layers, asked.dim, asked.heads),
                    vocab=asked.vocab,
                    context=TOKENS + 1,
                    multiple=32,
                    tied=True,
                ),
                generator=generator(seed),
            )
            log = train(
                partial(next_token_loss, model),
                shuffled(rows[kept], batch=asked.batch, seed=seed),
                AdamW(model.parameters(), lr=asked.lr, betas=(0.9, 0.95), weight_decay=0.1),
                steps=asked.steps,
                schedule=partial(
                    warmup_cosine, warmup=asked.steps // 20, total=asked.steps, floor=0.05
                ),
                clip_norm=1.0,
            )
            model.eval()
            found = {
                "seed": seed,
                "arm": arm,
                "texts": len(kept),
                "epochs": round(asked.steps * asked.batch / len(kept), 3),
                **told,
                "loss": [round(float(part.mean()), 4) for part in log.loss.chunk(24)],
                "unseen_nats": round(surprise(model, unseen), 4),
                "once_nats": round(surprise(model, originals[corpus.counts[1]]), 4),
                "verbatim": {
                    str(run): round(
                        verbatim(model, rows, texts=200, run=run, end=end, seed=seed), 5
                    )
                    for run in (12, 20)
                },
                "unseen": repeats(model, unseen),
                "repeats": {
                    str(copies): repeats(model, originals[which])
                    for copies, which in corpus.counts.items()
                },
            }
            results["runs"].append(found)
            shares = {
                copies: round(sum(r == SPOKEN for r in said) / len(said), 2)
                for copies, said in found["repeats"].items()
            }
            print(
                seed, arm, told, found["texts"], found["loss"][-1], found["unseen_nats"],
                found["verbatim"], shares, f"{time.process_time() - cpu:.0f} s", flush=True,
            )  # fmt: skip
    results["cpu_seconds"] = round(time.process_time() - cpu, 1)
    store("data_quality", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
