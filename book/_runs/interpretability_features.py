"""Sparse autoencoders on the stream of SmolLM2, and probes of MiniLM with control tasks.

About 10 minutes of one core. For each of three seeds, autoencoders with a penalty, with a fixed
number of features, and with directions that stay random, on one layer's activations of Shakespeare;
then linear probes for names in news, against labels by lot and against a model with random weights.
A column of numbers is one string.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import data
from companion.core import generator, watch
from companion.models import TextEncoder, minilm, smollm2
from companion.trust import interpretability as it

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

SEEDS = (0, 1, 2)
SITE = "blocks.14.stream"  # after half of the blocks
FEATURES = 1152  # twice the width
PENALTIES = (1.0, 3.0, 9.0)
ACTIVE = (8, 32)
L2 = (1e-3, 1e-1)
NAMES = ("O", "PER", "LOC", "ORG", "MISC")


def column(values: Tensor | Sequence[float], digits: int = 4) -> str:
    """Numbers in one string."""
    listed = values.flatten().tolist() if isinstance(values, Tensor) else values
    return " ".join(f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0" for value in listed)


def pieces(tokenizer: Any, text: str, number: int, length: int = 128) -> Tensor:
    """Tokens of the beginning of a text, in pieces."""
    return torch.tensor(tokenizer.encode(text[: 8 * number * length]).ids[: number * length]).view(
        number, length
    )


def activations(model: Any, rows: Tensor) -> Tensor:
    """The stream at the site, without first tokens, whose activations are of another size."""
    kept = []
    for some in rows.split(4):

        def stop(x: Tensor) -> None:
            kept.append(x[:, 1:].flatten(0, 1))
            raise _EnoughError

        try:
            with torch.no_grad(), watch(model, replace={SITE: stop}):
                model.hidden(some)
        except _EnoughError:
            pass
    return torch.cat(kept)


class _EnoughError(Exception):
    """The rest of the model is not needed."""


class Replaced:
    """The model's loss when the activations of the site go through something."""

    def __init__(self, model: Any, rows: Tensor, scale: float) -> None:
        self.model, self.rows, self.scale = model, rows, scale

    def loss(self, change: Any) -> float:
        def through(x: Tensor) -> Tensor:
            made = x.clone()
            made[:, 1:] = change(x[:, 1:] / self.scale) * self.scale
            return made

        with torch.no_grad(), watch(self.model, replace={SITE: through}):
            logits = self.model(self.rows)[:, 1:-1]
        told = torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.rows[:, 2:].flatten())
        return float(told)


def autoencoders(number: int, steps: int) -> dict[str, Any]:
    """Frontiers of sparsity and reconstruction, with random directions beside them."""
    text = smollm2()
    for parameter in text.model.parameters():
        parameter.requires_grad_(False)
    plays = list(data.shakespeare_plays().values())
    train = activations(text.model, pieces(text.tokenizer, plays[0] + plays[1], number))
    rows = pieces(text.tokenizer, plays[30], 48)
    test = activations(text.model, rows)
    scale = float(train.square().sum(1).mean().sqrt()) / math.sqrt(train.shape[1])
    mean = train.mean(0) / scale
    spread = (train / scale - mean).square().sum(1).mean().sqrt()
    squared = (test - test.mean(0)).square().sum(1).sort(descending=True).values
    judge = Replaced(text.model, rows[:6], scale)
    whole = judge.loss(lambda x: x)
    gone = judge.loss(lambda x: mean.expand_as(x))
    found: dict[str, Any] = {
        "tokens": len(train),
        "tested": len(test),
        "loss": round(whole, 4),
        "loss_mean": round(gone, 4),
        "offset": round(float(mean.norm() / spread), 4),
        "top_ten": round(float(squared[:10].sum() / squared.sum()), 3),
        "rows": [],
    }
    kinds: list[tuple[str, float, int | None]] = [("penalty", p, None) for p in PENALTIES]
    kinds += [("k", 0.0, k) for k in ACTIVE] + [("random", 0.0, k) for k in ACTIVE]
    for seed in SEEDS:
        for kind, penalty, k in kinds:
            g = generator(seed)
            sae = it.SparseAutoencoder(train.shape[1], FEATURES, k=k, generator=g)
            it.train_autoencoder(
                sae,
                train / scale,
                steps=steps,
                generator=g,
                penalty=penalty,
                batch_size=256,
                lr=2e-3,
                directions=kind != "random",
            )
            told = it.autoencoder_report(sae, test / scale)
            recovered = (gone - judge.loss(sae)) / (gone - whole)
            row = {
                "kind": kind,
                "setting": penalty if k is None else k,
                "seed": seed,
                "active": round(told.active, 3),
                "explained": round(told.explained, 4),
                "dead": round(float(told.dead.double().mean()), 4),
                "recovered": round(recovered, 4),
            }
            print(row, flush=True)
            found["rows"].append(row)
    return found


def redrawn(encoder: TextEncoder, g: torch.Generator) -> TextEncoder:
    """The same architecture with random numbers of the size of its weights."""
    made = copy.deepcopy(encoder.model)
    with torch.no_grad():
        for parameter in made.parameters():
            drawn = torch.randn(parameter.shape, generator=g)
            parameter.copy_(parameter.mean() + parameter.std() * drawn)
    return TextEncoder(made, encoder.tokenizer)


def words_of_news(encoder: TextEncoder, layers: Sequence[int]) -> dict[str, Any]:
    """States of the first piece of each word after some blocks, types, labels, documents."""
    states: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    types: dict[str, int] = {}
    ids, labels, documents = [], [], []
    names = {d: "embedded" if d == 0 else f"blocks.{d - 1}.stream" for d in layers}
    for sentence in data.conll_sample():
        encoded = encoder.tokenizer.encode(list(sentence.words), is_pretokenized=True)
        first: dict[int, int] = {}
        for place, word in enumerate(encoded.word_ids):
            if word is not None:
                first.setdefault(word, place)
        with torch.no_grad(), watch(encoder.model, read=list(names.values())) as seen:
            encoder.model(torch.tensor([encoded.ids]))
        picked = torch.tensor(list(first.values()))
        for d, name in names.items():
            states[d].append(seen[name][0, picked])
        for word in first:
            spelled = sentence.words[word].lower()
            ids.append(types.setdefault(spelled, len(types)))
            labels.append(NAMES.index(sentence.tags[word].split("-")[-1]))
            documents.append(sentence.document)
    return {
        "states": {d: torch.cat(some) for d, some in states.items()},
        "types": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "documents": torch.tensor(documents),
    }


def probes(layers: Sequence[int]) -> dict[str, Any]:
    """Accuracy, control accuracy, and code lengths, for real and random weights."""
    encoder = minilm()
    found: dict[str, Any] = {"layers": list(layers), "l2": list(L2), "rows": []}
    for seed in SEEDS:
        g = generator(seed)
        for model, text in (("trained", encoder), ("random", redrawn(encoder, g))):
            made = words_of_news(text, layers)
            labels, documents = made["labels"], made["documents"]
            order = torch.randperm(int(documents.max()) + 1, generator=generator(seed))
            held_out = torch.isin(documents, order[:4])
            control = it.control_labels(made["types"], labels, generator=generator(seed))
            sent = torch.argsort(order.argsort()[documents], stable=True)
            n = len(labels)
            cuts = tuple(int(n * share) for share in (0.05, 0.1, 0.2, 0.4, 0.7))
            found["tokens"], found["types"] = n, int(made["types"].max()) + 1
            found["most"] = round(float((labels == 0).double().mean()), 4)
            for layer in layers:
                h = made["states"][layer]
                h = (h - h.mean(0)) / h.std()
                row: dict[str, Any] = {"model": model, "layer": layer, "seed": seed}
                for l2 in L2 if model == "trained" else L2[:1]:
                    told = it.probe_selectivity(h, labels, control, held_out=held_out, l2=l2)
                    row[f"{l2:g}"] = column([told.accuracy, told.control])
                lengths = [
                    it.online_code_length(h[sent], task[sent], cuts=cuts, l2=L2[0], classes=5)
                    / (n * math.log(5))
                    for task in (labels, control)
                ]
                row["code"] = column(lengths)
                print(row, flush=True)
                found["rows"].append(row)
    return found


def main(argv: list[str] | None = None) -> None:
    """Train, probe, and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pieces", type=int, default=224, help="of 128 tokens")
    parser.add_argument("--steps", type=int, default=300, help="of each autoencoder")
    asked = parser.parse_args(argv)
    begin, cpu = time.perf_counter(), time.process_time()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"probes": probes((0, 3, 6))}
    print(f"probes, {time.process_time() - cpu:.0f} s", flush=True)
    results["autoencoders"] = autoencoders(asked.pieces, asked.steps)
    results["cpu_seconds"] = round(time.process_time() - cpu, 1)
    store("interpretability_features", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
