"""Find the induction heads of SmolLM2, cut them out, patch them, and read its stream by lenses.

About 15 minutes of one core. For each of three seeds: texts of random tokens that repeat; the score
of each head for induction; the loss on the repetition without the heads of the highest scores, and
without as many others; activation and attribution patching of all heads; the logit lens, least
squares, and the tuned lens at three depths. A column of numbers is one string.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import data
from companion.core import generator, watch
from companion.models import TextDecoder, smollm2
from companion.trust import interpretability as it

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

SEEDS = (0, 1, 2)
CUTS = (1, 2, 4, 8, 16, 32)
DEPTHS = (8, 16, 24)


def column(values: Tensor | Sequence[float], digits: int = 4) -> str:
    """Numbers in one string."""
    listed = values.flatten().tolist() if isinstance(values, Tensor) else values
    return " ".join(f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0" for value in listed)


def repeated(batch: int, period: int, times: int, g: torch.Generator) -> Tensor:
    """Random tokens, again and again."""
    once = torch.randint(1000, 40_000, (batch, period), generator=g)
    return once.repeat(1, times)


def second_loss(model: Any, ids: Tensor, period: int) -> float:
    """Mean surprise of the second copy but its first token, in nats."""
    with torch.no_grad():
        logits = model(ids)[:, period:-1]
    target = ids[:, period + 1 :]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten()))


def without(model: Any, heads: Sequence[int], per_layer: int) -> Any:
    """Set what some heads have read to its mean over texts and positions."""
    replace: dict[str, Any] = {}
    for layer in {head // per_layer for head in heads}:
        cut = [head % per_layer for head in heads if head // per_layer == layer]

        def change(Z: Tensor, cut: list[int] = cut) -> Tensor:
            made = Z.clone()
            made[:, cut] = Z[:, cut].mean((0, 2), keepdim=True)
            return made

        replace[f"blocks.{layer}.attention.heads"] = change
    return watch(model, replace=replace)


def cut_out(decoder: TextDecoder, g: torch.Generator) -> dict[str, Any]:
    """Scores of induction, and what is lost without the best heads and without others."""
    model, period = decoder.model, 25
    score = it.induction_scores(model, repeated(4, period, 2, g), period=period)
    layers, heads = score.shape
    order = score.flatten().argsort(descending=True)
    ids = repeated(4, period, 2, g)
    lost: dict[str, list[float]] = {"best": [], "random": []}
    for k in CUTS:
        others = order[64:][torch.randperm(len(order) - 64, generator=g)[:k]]
        for name, chosen in (("best", order[:k]), ("random", others)):
            with without(model, chosen.tolist(), heads):
                lost[name].append(second_loss(model, ids, period))
    first = torch.nn.functional.cross_entropy(
        model(ids[:, : period - 1]).flatten(0, 1), ids[:, 1:period].flatten()
    )
    return {
        "layers": layers,
        "score": column(score),
        "whole": round(second_loss(model, ids, period), 4),
        "first": round(float(first.detach()), 4),
        **{name: column(values) for name, values in lost.items()},
    }


def patched(decoder: TextDecoder, g: torch.Generator) -> dict[str, Any]:
    """Both ways of patching all heads: the corrupt text has another token to repeat."""
    model, period, batch = decoder.model, 9, 3
    clean = repeated(batch, period, 2, g)[:, : 2 * period - 2]
    right = clean[:, period - 2].clone()  # it followed the last token the first time
    corrupt = clean.clone()
    wrong = torch.randint(1000, 40_000, (batch,), generator=g)
    corrupt[:, period - 2] = wrong
    rows = torch.arange(batch)

    def metric(ids: Tensor) -> Tensor:
        logits = model(ids, last=1)[:, 0]
        return (logits[rows, right] - logits[rows, wrong]).mean()

    sites = [f"blocks.{layer}.attention.heads" for layer in range(len(model.blocks))]
    begin = time.process_time()
    guess = it.attribution_patching(model, metric, clean, corrupt, sites=sites)
    middle = time.process_time()
    exact = it.activation_patching(model, metric, clean, corrupt, sites=sites)
    end = time.process_time()
    return {
        "clean": round(float(exact.clean), 4),
        "corrupt": round(float(exact.corrupt), 4),
        "exact": column(exact.effect),
        "estimate": column(guess.effect),
        "seconds": [round(end - middle, 1), round(middle - begin, 1)],
    }


def stream(
    decoder: TextDecoder, texts: Sequence[str], number: int, length: int = 128
) -> dict[int, Tensor]:
    """The stream at some depths, and the last, over pieces of text; without first tokens."""
    ids = decoder.tokenizer.encode(" ".join(texts)).ids[: number * length]
    rows = torch.tensor(ids).view(-1, length)
    last = len(decoder.model.blocks)
    names = {d: f"blocks.{d - 1}.stream" for d in (*DEPTHS, last)}
    kept: dict[int, list[Tensor]] = {d: [] for d in names}
    for row in rows.split(2):
        with torch.no_grad(), watch(decoder.model, read=list(names.values())) as seen:
            decoder.model.hidden(row)
        for d, name in names.items():
            kept[d].append(seen[name][:, 1:].flatten(0, 1))
    return {d: torch.cat(parts) for d, parts in kept.items()}


def judged(decoder: TextDecoder, states: Tensor, final: Tensor) -> list[float]:
    """Divergence from the model's prediction in nats, and how often both say one token."""
    divergence, same = 0.0, 0.0
    for some, last in zip(states.split(128), final.split(128), strict=True):
        with torch.no_grad():
            p = it.lens_logits(decoder.model, last).log_softmax(-1)
            q = it.lens_logits(decoder.model, some).log_softmax(-1)
        divergence += float((p.exp() * (p - q)).sum())
        same += float((p.argmax(-1) == q.argmax(-1)).sum())
    return [divergence / len(states), same / len(states)]


def lenses(decoder: TextDecoder, pieces: int, steps: int) -> dict[str, Any]:
    """Three lenses at three depths, trained on one part of the Bible and tested on another."""
    books = data.bible_verses("kjv")
    train = stream(decoder, [verse.text for verse in books[:8000]], pieces)
    test = stream(decoder, [verse.text for verse in books[-2000:]], 8)
    last = len(decoder.model.blocks)
    found: dict[str, Any] = {"tokens": len(train[last]), "tested": len(test[last])}
    for depth in DEPTHS:
        h, final = train[depth], train[last]
        l2 = 1e-3 * float(h.square().mean())
        rows: dict[str, list[list[float]]] = {"logit": [judged(decoder, test[depth], test[last])]}
        squares = it.fit_translator(h, final, l2=l2)
        rows["squares"] = [judged(decoder, squares(test[depth]).detach(), test[last])]
        rows["tuned"] = []
        for seed in SEEDS:
            tuned = it.fit_translator(h, final, l2=l2)
            it.tune_translator(
                tuned,
                decoder.model,
                h,
                final,
                steps=steps,
                batch_size=64,
                lr=3e-4,
                generator=generator(seed),
            )
            rows["tuned"].append(judged(decoder, tuned(test[depth]).detach(), test[last]))
        found[str(depth)] = {name: [column(row) for row in value] for name, value in rows.items()}
        print(depth, found[str(depth)], flush=True)
    return found


def main(argv: list[str] | None = None) -> None:
    """Measure, and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pieces", type=int, default=64, help="of 128 tokens, for the lenses")
    parser.add_argument("--steps", type=int, default=60, help="of the tuned lens")
    asked = parser.parse_args(argv)
    begin, cpu = time.perf_counter(), time.process_time()
    torch.set_num_threads(1)
    decoder = smollm2()
    for parameter in decoder.model.parameters():
        parameter.requires_grad_(False)
    results: dict[str, Any] = {"cuts": list(CUTS), "depths": list(DEPTHS), "seeds": []}
    for seed in SEEDS:
        g = generator(seed)
        kept = {"cut": cut_out(decoder, g)}
        print(f"seed {seed}: cut, {time.process_time() - cpu:.0f} s", flush=True)
        for parameter in decoder.model.parameters():
            parameter.requires_grad_(True)
        kept["patched"] = patched(decoder, g)
        for parameter in decoder.model.parameters():
            parameter.requires_grad_(False)
        print(f"seed {seed}: patched, {time.process_time() - cpu:.0f} s", flush=True)
        results["seeds"].append(kept)
    results["lenses"] = lenses(decoder, asked.pieces, asked.steps)
    results["cpu_seconds"] = round(time.process_time() - cpu, 1)
    store("interpretability_circuits", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
