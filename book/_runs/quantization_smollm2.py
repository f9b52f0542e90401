"""Round all of SmolLM2 in each way that the library offers, and let it read news and Shakespeare.

About 25 minutes of one core. Each way is one call of the public ``quantize``. What it loses is the
surprise of texts that were not used to find the codes, beside that of the model with floats on the
same texts. The weights come from a file of 4-bit codes; the model that has those very codes is one
of the ways. What is found is kept until all of it is there, so a run that was interrupted goes on.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _store import store
from torch import Tensor

from companion import data
from companion.core import generator, linear_places
from companion.efficiency.quantization import quantize, save_quantized, smollm2_q4_1
from companion.foundations.cross_entropy import cross_entropy
from companion.models import TextDecoder, save_pretrained, smollm2

CONTEXT, BATCH = 128, 8
PARTS = Path("_build/runs/quantization_smollm2")


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the codes are found: what ``quantize`` takes, and which text it is shown."""

    bits: int
    method: str
    group: int | None = None  # inputs that share a grid; none: a row of the matrix
    shown: str | None = None
    round_activations: bool = False


def ways() -> list[Way]:
    """All ways, from many bits to few."""
    looking = {"gptq", "awq"}  # at inputs, not at weights alone
    methods = ("nearest", "mse", "gptq", "awq")
    made = []
    for bits, group in ((8, None), (4, 32), (4, 64), (3, 32), (2, 32)):
        for method in methods if bits > 2 else ("nearest", "gptq"):
            shown = "news" if method in looking else None
            made.append(Way(bits=bits, method=method, group=group, shown=shown))
        if bits == 8:
            made.append(Way(bits=8, method="nearest", round_activations=True))
            made.append(Way(bits=8, method="smooth", shown="news", round_activations=True))
        if bits == 3:  # is it the kind of text that counts?
            for method in ("gptq", "awq"):
                made.append(Way(bits=3, method=method, group=group, shown="plays"))
    return made


@dataclass(frozen=True, eq=False)
class Texts:
    """Rows of a first token and ``CONTEXT`` tokens of text. No source is in both."""

    test: Tensor
    shown: Tensor


def news(lm: TextDecoder, *, test: int, shown: int) -> Texts:
    """The beginnings of news articles, one row each."""
    assert lm.tokenizer is not None
    articles = data.xsum()
    order = torch.randperm(len(articles), generator=generator(0)).tolist()
    rows: list[list[int]] = []
    for i in order:
        ids = lm.tokenizer.encode(articles[i].document, add_special_tokens=False).ids
        if len(ids) >= CONTEXT and len(rows) < test + shown:
            rows.append([lm.start, *ids[:CONTEXT]])
    made = torch.tensor(rows)
    return Texts(made[:test], made[test:])


def plays(lm: TextDecoder, *, test: int, shown: int) -> Texts:
    """Passages of Shakespeare. Half of the plays are for the test, the others are shown."""
    assert lm.tokenizer is not None
    texts = [text for _, text in sorted(data.shakespeare_plays().items())]
    order = torch.randperm(len(texts), generator=generator(0)).tolist()
    half = len(texts) // 2

    def passages(some: list[int], count: int) -> Tensor:
        rows = []
        for place in range(count):
            text = texts[some[place % len(some)]]
            # Evenly over the play, and not its list of persons.
            share = (place // len(some) + 1) / (count // len(some) + 2)
            start = text.index("\n", int(share * len(text))) + 1
            ids = lm.tokenizer.encode(text[start : start + 10 * CONTEXT], add_special_tokens=False)
            rows.append([lm.start, *ids.ids[:CONTEXT]])
        return torch.tensor(rows)

    return Texts(passages(order[:half], test), passages(order[half:], shown))


@torch.no_grad()
def surprise(model: Any, rows: Tensor) -> list[float]:
    """Nats a token, for each row."""
    found: list[float] = []
    for some in rows.split(BATCH):
        nats = cross_entropy(model(some[:, :-1]), some[:, 1:], reduction="none")
        found += nats.mean(1).tolist()
    return [round(value, 5) for value in found]


def stored_bytes(save: Callable[[str], None]) -> int:
    """Bytes of the tensors that a model is stored in."""
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


@torch.no_grad()
def weight_error(small: Any, whole: Any) -> float:
    """Squared error of the weights of all blocks, as a share of their squares."""
    lost = total = 0.0
    for place in linear_places(whole):
        if place.path.startswith("blocks."):
            W = whole.get_submodule(place.path).weight
            made = small.get_submodule(place.path).weight
            lost += float((made - W).square().sum())
            total += float(W.square().sum())
    return lost / total


def kept(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One part of the results, made unless an earlier run has; with its seconds."""
    path = PARTS / f"{name}.json"
    if not path.is_file():
        start, work = time.perf_counter(), time.process_time()
        made = make()
        made["all_seconds"] = round(time.perf_counter() - start, 1)
        made["all_cpu_seconds"] = round(time.process_time() - work, 1)
        PARTS.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(made))
        partial.replace(path)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def main() -> None:
    """Quantize, read, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=30, help="of each kind, for the test")
    parser.add_argument("--shown", type=int, default=32, help="rows that methods are shown")
    parser.add_argument("--ways", type=int, help="only so many")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lm = smollm2()
    lm.model.requires_grad_(False)
    kinds = {
        "news": news(lm, test=asked.texts, shown=asked.shown),
        "plays": plays(lm, test=asked.texts, shown=asked.shown),
    }

    def read(model: Any) -> dict[str, list[float]]:
        return {kind: surprise(model, rows.test) for kind, rows in kinds.items()}

    def told(small: TextDecoder) -> dict[str, Any]:
        return {
            "bytes": stored_bytes(lambda folder: save_quantized(small, folder)),
            "weight_error": weight_error(small.model, lm.model),
            **read(small.model),
        }

    def whole() -> dict[str, Any]:
        return {"bytes": stored_bytes(lambda folder: save_pretrained(lm, folder)), **read(lm.model)}

    def rounded(way: Way) -> dict[str, Any]:
        start, work = time.perf_counter(), time.process_time()
        calibration = None if way.shown is None else kinds[way.shown].shown[:, :-1].split(BATCH)
        small = quantize(
            lm,
            bits=way.bits,
            method=way.method,
            group=way.group or 32,
            calibration=calibration,
            round_activations=way.round_activations,
        )
        seconds = round(time.perf_counter() - start, 1)
        cpu_seconds = round(time.process_time() - work, 1)
        return {**vars(way), "seconds": seconds, "cpu_seconds": cpu_seconds, **told(small)}

    size = f"{asked.texts}-{asked.shown}"
    results: dict[str, Any] = {
        "context": CONTEXT,
        "texts": asked.texts,
        "shown": asked.shown,
        "weights": sum(
            lm.model.get_submodule(place.path).weight.numel()
            for place in linear_places(lm.model)
            if place.path.startswith("blocks.")
        ),
        "table": lm.model.tokens.weight.numel(),
        "float": kept(f"{size}-float", whole),
        "file": kept(f"{size}-file", lambda: told(smollm2_q4_1())),
        "ways": [],
    }
    for number, way in enumerate(ways()[: asked.ways]):
        found = kept(f"{size}-{number}", lambda way=way: rounded(way))
        results["ways"].append(found)
        means = {kind: round(sum(found[kind]) / asked.texts, 4) for kind in kinds}
        print(way, f"{found['all_cpu_seconds']:.0f} s", found["bytes"], means, flush=True)
    parts = [results["float"], results["file"], *results["ways"]]
    results["cpu_seconds"] = round(sum(part["all_cpu_seconds"] for part in parts), 1)
    seconds = sum(part["all_seconds"] for part in parts)
    store("quantization_smollm2", results, seed=0, seconds=seconds)
    shutil.rmtree(PARTS)


if __name__ == "__main__":
    main()
