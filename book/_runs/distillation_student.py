"""Distill SmolLM2 into a small student on news, beside the same student without a teacher.

About 25 minutes of one core. The teacher reads some rows of text once, and what is kept of its
answers are the 64 likeliest tokens of each place. It also writes texts of its own, after the
beginnings of other articles. For each seed four students start from the same weights: one learns
from the answers, one from the texts, one from the true tokens of the same rows, and one from the
true tokens of further articles as well, until it has taken as many operations as the first one and
its teacher together.
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
from companion.efficiency.distillation import (
    TopK,
    WrittenTexts,
    sequence_kd_loss,
    top_k_kd_loss,
    top_k_log_probs,
    written_texts,
)
from companion.foundations.cross_entropy import cross_entropy
from companion.foundations.optimization import AdamW, warmup_cosine
from companion.models import TextDecoder, sample, smollm2
from companion.pretraining.autoregressive import initialize, llama_config, next_token_loss
from companion.transformer.block import Decoder
from companion.verify import count_flops

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

CONTEXT, PROMPT, HELD_OUT = 128, 32, 80
ARMS = ("answers", "texts", "alone", "equal")


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of ``CONTEXT + 1`` tokens, of which the last ``CONTEXT`` are predicted."""

    read: Tensor  # by the teacher
    further: Tensor
    test: Tensor
    starts: Tensor  # beginnings of further articles, after which the teacher writes


def corpus(teacher: TextDecoder, *, rows: int, test: int) -> Rows:
    """Cut a thousand news articles into rows. No article lies on both sides of the split."""
    encode = teacher.tokenizer.encode
    articles = [encode(pair.document, add_special_tokens=False).ids for pair in data.xsum()]
    order = torch.randperm(len(articles), generator=generator(0)).tolist()
    end = teacher.start

    def cut(some: list[int]) -> Tensor:
        stream = [token for i in some for token in (end, *articles[i])]
        whole = len(stream) // (CONTEXT + 1) * (CONTEXT + 1)
        return torch.tensor(stream[:whole]).view(-1, CONTEXT + 1)

    training = cut(order[HELD_OUT:])
    long = [articles[i] for i in order[HELD_OUT:] if len(articles[i]) >= PROMPT]
    starts = torch.tensor([[end, *article[: PROMPT - 1]] for article in long[-rows:]])
    return Rows(training[:rows], training[rows:], cut(order[:HELD_OUT])[:test], starts)


@torch.no_grad()
def answers(teacher: Decoder, rows: Tensor, *, k: int) -> TopK:
    """What is kept of the teacher's answers: k log-probabilities a place, and their ids."""
    kept = [top_k_log_probs(teacher(some[:, :-1]), k=k) for some in rows.split(8)]
    return TopK(*(torch.cat(parts) for parts in zip(*kept, strict=True)))


def texts(teacher: Decoder, starts: Tensor, *, seed: int) -> WrittenTexts:
    """Rows that the teacher wrote after the beginnings, drawn from its own distribution."""
    made = []
    for part, some in enumerate(starts.split(64)):
        pick = sample(generator=generator(seed + part))
        made.append(written_texts(teacher, some, tokens=CONTEXT + 1 - PROMPT, pick=pick))
    return WrittenTexts(*(torch.cat(parts) for parts in zip(*made, strict=True)))


@torch.no_grad()
def judge(model: Decoder, rows: Tensor, top: TopK) -> dict[str, list[float]]:
    """For each row: surprise a token, and how far the model is from the teacher's answers."""
    found: dict[str, list[float]] = {"nats": [], "kl": [], "same": []}
    for i in range(0, len(rows), 4):
        logits = model(rows[i : i + 4, :-1])
        nats = cross_entropy(logits, rows[i : i + 4, 1:], reduction="none")
        found["nats"] += nats.mean(1).tolist()
        for j, row in enumerate(logits, start=i):
            kept = TopK(top.log_probs[j], top.ids[j])
            found["kl"].append(float(top_k_kd_loss(row, kept)))
            found["same"].append(float((row.argmax(1) == kept.ids[:, 0]).double().mean()))
    return {name: [round(value, 4) for value in values] for name, values in found.items()}


@torch.no_grad()
def surprise(model: Decoder, rows: Tensor) -> float:
    """Nats a token."""
    return float(torch.stack([next_token_loss(model, some) for some in rows.split(4)]).mean())


def unigram(training: Tensor, test: Tensor, *, vocab: int) -> float:
    """Nats a token of a table of frequencies, with half a count more for each token."""
    counts = torch.bincount(training.flatten(), minlength=vocab).double() + 0.5
    return -float((counts / counts.sum()).log()[test[:, 1:]].mean())


def shuffled(rows: int, *, batch: int, seed: int) -> Iterator[Tensor]:
    """Numbers of rows, each once in a pass, in a new order in each."""
    g = generator(seed)
    left = torch.empty(0, dtype=torch.long)
    while True:
        if len(left) < batch:
            left = torch.cat([left, torch.randperm(rows, generator=g)])
        yield left[:batch]
        left = left[batch:]


def student(teacher: Decoder, asked: argparse.Namespace, *, seed: int) -> Decoder:
    """A small Llama over the teacher's tokens, from random weights."""
    size = (asked.layers, asked.dim, asked.heads)
    vocab = teacher.config.vocab
    config = llama_config(size, vocab=vocab, context=CONTEXT, multiple=32, tied=True)
    return initialize(config, generator=generator(seed))


def main(argv: list[str] | None = None) -> None:
    """Ask the teacher, train the students, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rows", type=int, default=128, help="rows that the teacher reads")
    parser.add_argument("--test", type=int, default=48, help="rows of the test")
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    asked = parser.parse_args(argv)
    begin, cpu = time.perf_counter(), time.process_time()
    torch.set_num_threads(1)
    text = smollm2()
    teacher = text.model
    rows = corpus(text, rows=asked.rows, test=asked.test)
    everything = torch.cat([rows.read, rows.further])
    kept = answers(teacher, rows.read, k=asked.k)
    written = texts(teacher, rows.starts, seed=0)
    told = answers(teacher, rows.test, k=asked.k)
    teacher_nats = judge(teacher, rows.test, told)["nats"]
    teacher_seconds = time.process_time() - cpu
    print(
        f"teacher: {teacher_seconds:.0f} s, {sum(teacher_nats) / asked.test:.3f} nats", flush=True
    )

    few = rows.read[: asked.batch]
    probe = student(teacher, asked, seed=0)
    step_flops = count_flops(lambda: next_token_loss(probe, few, chunked=False).backward())
    with torch.no_grad():
        row_flops = count_flops(lambda: teacher(few[:, :-1])) / asked.batch
    steps = asked.passes * asked.rows // asked.batch
    more = round(row_flops * asked.rows / step_flops)
    results: dict[str, Any] = {
        "size": [asked.layers, asked.dim, asked.heads],
        "parameters": sum(p.numel() for p in probe.parameters()),
        "teacher_parameters": sum(p.numel() for p in teacher.parameters()),
        "rows": asked.rows,
        "context": CONTEXT,
        "passes": asked.passes,
        "batch": asked.batch,
        "k": asked.k,
        "lr": asked.lr,
        "kept_mass": float(kept.log_probs.exp().sum(-1).mean()),
        "step_flops": step_flops,
        "row_flops": row_flops,
        "teacher_nats": teacher_nats,
        "teacher_seconds": round(teacher_seconds, 1),
        "unigram_nats": unigram(everything, rows.test, vocab=teacher.config.vocab),
        "sample": text.tokenizer.decode(written.ids[0, PROMPT:].tolist()),
        "runs": [],
    }
    for seed in range(asked.seeds):
        for arm in ARMS:
            model = student(teacher, asked, seed=seed)
            length = steps + more if arm == "equal" else steps
            source = everything if arm == "equal" else rows.read

            def loss(
                index: Tensor, model: Decoder = model, arm: str = arm, source: Tensor = source
            ) -> Tensor:
                if arm == "answers":
                    some = TopK(kept.log_probs[index], kept.ids[index])
                    return top_k_kd_loss(model(source[index, :-1]), some)
                if arm == "texts":
                    return sequence_kd_loss(
                        model, WrittenTexts(written.ids[index], written.counts[index])
                    )
                return next_token_loss(model, source[index])

            curve: list[list[float]] = [[0, round(surprise(model, rows.test[::4]), 4)]]

            def watch(
                step: int,
                _: Tensor,
                model: Decoder = model,
                length: int = length,
                curve: Any = curve,
            ) -> None:
                if step % (length // 6) == 0:
                    curve.append([step, round(surprise(model, rows.test[::4]), 4)])

            start = time.process_time()
            log = train(
                loss,
                shuffled(len(source), batch=asked.batch, seed=seed),
                AdamW(model.parameters(), lr=asked.lr, betas=(0.9, 0.95), weight_decay=0.1),
                steps=length,
                schedule=lambda step, length=length: warmup_cosine(
                    step, warmup=length // 20, total=length, floor=0.02
                ),
                clip_norm=1.0,
                on_step=watch,
            )
            seconds = time.process_time() - start
            results["runs"].append(
                {
                    "seed": seed,
                    "arm": arm,
                    "steps": length,
                    "curve": curve,
                    "loss": [round(float(part.mean()), 4) for part in log.loss.chunk(24)],
                    "seconds": round(seconds, 1),
                    **judge(model, rows.test, told),
                }
            )
            nats = results["runs"][-1]["nats"]
            print(seed, arm, curve, sum(nats) / len(nats), f"{seconds:.0f} s", flush=True)
    results["cpu_seconds"] = round(time.process_time() - cpu, 1)
    store("distillation_student", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
