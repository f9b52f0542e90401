"""Train a small Llama on Shakespeare's plays and compare it with Kneser-Ney on the same bytes.

20 to 50 minutes of one core for each seed, with 2700 steps, by how busy it is.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import data
from companion.core import generator, train
from companion.foundations import language_models as lm
from companion.foundations.optimization import AdamW, Muon, warmup_cosine
from companion.models import generate, sample
from companion.pretraining.autoregressive import (
    PackedTokens,
    initialize,
    llama_config,
    next_token_loss,
    text_log_probs,
)
from companion.transformer.block import Decoder, parameter_count

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

END = "<|endoftext|>"


class Pair(torch.optim.Optimizer):
    """Two optimizers that step together: one for the matrices, one for all else."""

    def __init__(self, *members: torch.optim.Optimizer) -> None:
        groups = [group for member in members for group in member.param_groups]
        super().__init__([p for group in groups for p in group["params"]], {})
        self.members, self.param_groups = members, groups  # shared, so that schedules reach them

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step both."""
        for member in self.members:
            member.step()


def optimizer_of(model: Decoder) -> Pair:
    """Muon for the matrices of the blocks, AdamW for the table of tokens and the norms."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in known]
    return Pair(
        Muon(matrices, lr=0.02, weight_decay=0.01),
        AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    )


def split(plays: int | None) -> tuple[list[str], list[str], list[str]]:
    """The split of the chapter on language models: to fit, to choose, to test."""
    parts: tuple[list[str], list[str], list[str]] = [], [], []
    for i, play in enumerate(list(data.shakespeare_plays().values())[:plays]):
        parts[{3: 1, 7: 2}.get(i % 13, 0)].append(play)
    return parts


def size(texts: list[str]) -> int:
    """Bytes."""
    return sum(len(text.encode()) for text in texts)


def kneser_ney_table(parts: tuple[list[str], list[str], list[str]], quick: bool) -> list[Any]:
    """Bits per byte of Kneser-Ney models over bytes and over BPE tokens of several sizes."""
    rows = []
    for vocab in (256, 512) if quick else (256, 384, 512, 1024, 2048):
        if vocab == 256:
            ids = [[torch.tensor(list(t.encode())) for t in part] for part in parts]
        else:
            bpe = lm.BPE.train(parts[0], vocab_size=vocab)
            ids = [[torch.tensor(bpe.encode(t)) for t in part] for part in parts]
        longest = 4 if quick else 9
        windows = [lm.windows(x, order=longest, vocab_size=vocab + 1, eos=vocab) for x in ids]
        counts = lm.count_ngrams(*windows[0], vocab_size=vocab + 1)
        for order in range(3, longest + 1):
            for modified in (False, True):
                try:
                    model = lm.kneser_ney(
                        counts.truncated(order), modified=modified, interpolate_unigrams=True
                    )
                except ValueError:  # too few rare bytes to estimate three discounts
                    continue
                bits = [
                    float(lm.bits_per_byte(model.log_prob(*windows[k]), size=size(parts[k])))
                    for k in (1, 2)
                ]
                rows.append(
                    {
                        "tokens": "bytes" if vocab == 256 else f"BPE {vocab}",
                        "order": order,
                        "modified": modified,
                        "held_out": bits[0],
                        "test": bits[1],
                    }
                )
                print(rows[-1], flush=True)
    return rows


def bits(model: Decoder, tokens: list[Tensor], n_bytes: int) -> float:
    """Bits per byte of texts, every token of each scored once."""
    return float(
        lm.bits_per_byte(
            torch.cat([text_log_probs(model, t, start=0) for t in tokens]), size=n_bytes
        )
    )


def main(argv: list[str] | None = None) -> None:
    """Train, score, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from --seed on")
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dim", type=int, default=160)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--plays", type=int, help="use the first plays only")
    asked = parser.parse_args(argv)
    start = time.perf_counter()
    parts = split(asked.plays)
    bpe = lm.BPE.train(parts[0], vocab_size=asked.vocab, special_tokens=[END])
    tokens = [[torch.tensor(bpe.encode(text)) for text in part] for part in parts]
    end = bpe.encode(END, allow_special=True)
    row = torch.cat([torch.tensor([*end, *text.tolist()]) for text in tokens[0]])
    config = llama_config(
        (asked.layers, asked.dim, asked.heads),
        vocab=asked.vocab,
        context=asked.context,
        multiple=32,
        tied=True,
    )
    results: dict[str, Any] = {
        "plays": [len(part) for part in parts],
        "bytes": [size(part) for part in parts],
        "tokens": [sum(map(len, part)) for part in tokens],
        "vocab": asked.vocab,
        "size": [asked.layers, asked.dim, asked.heads],
        "ff_dim": config.ff_dim,
        "context": asked.context,
        "batch": asked.batch,
        "steps": asked.steps,
        "parameters": parameter_count(config, kind="decoder"),
        "epochs": asked.steps * asked.batch * asked.context / len(row),
        "kneser_ney": kneser_ney_table(parts, quick=asked.plays is not None),
        "runs": [],
    }
    for seed in range(asked.seed, asked.seed + asked.seeds):
        model = initialize(config, generator=generator(seed))
        packed = PackedTokens(row, context=asked.context, batch=asked.batch, seed=seed)
        curve: list[tuple[int, float]] = []

        def watch(step: int, loss: Tensor, model: Decoder = model, curve: Any = curve) -> None:
            if step % max(1, asked.steps // 9) == 0 and step < asked.steps:
                curve.append((step, bits(model, tokens[1], size(parts[1]))))
                print(f"step {step}: {curve[-1][1]:.4f} bits a byte held out", flush=True)

        log = train(
            lambda ids, model=model: next_token_loss(model, ids),
            packed,
            optimizer_of(model),
            steps=asked.steps,
            schedule=lambda step: warmup_cosine(
                step, warmup=min(100, asked.steps // 10), total=asked.steps, floor=0.02
            ),
            clip_norm=1.0,
            on_step=watch,
            progress=f"seed {seed}",
        )
        model.eval()
        curve.append((asked.steps, bits(model, tokens[1], size(parts[1]))))
        stretch = max(1, asked.steps // 100)
        smooth = log.loss[: asked.steps // stretch * stretch].view(-1, stretch).mean(1)
        prompt = torch.tensor([[*end, *bpe.encode("HAMLET.\nTo be, or not to")]])
        written = generate(
            model, prompt, tokens=120, pick=sample(generator=generator(seed), temperature=0.8)
        )
        results["runs"].append(
            {
                "seed": seed,
                "test": bits(model, tokens[2], size(parts[2])),
                "held_out": [[step, round(value, 4)] for step, value in curve],
                "loss": [round(float(value), 4) for value in smooth],
                "loss_stretch": stretch,
                "sample": bpe.decode(written[0]),
                "seconds": round(log.seconds, 1),
            }
        )
        print(results["runs"][-1]["sample"], results["runs"][-1]["test"], flush=True)
        store("autoregressive_gpt", results, seed=asked.seed, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
