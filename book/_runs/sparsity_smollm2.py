"""SmolLM2 with a third to three fifths of its weights removed, by three methods.

About 25 minutes of one core. All linear maps of the thirty blocks are pruned, from the first
block to the last, by magnitude, by Wanda, and by SparseGPT; embeddings and head stay. The last two
are shown news, and at one half also plays. Every model then reads other news and other plays.
"""

import argparse
import copy
import time
from typing import Any

import torch
from _store import store
from torch import Tensor

from companion import data
from companion.efficiency.sparsity import Method, prune_
from companion.models import TextDecoder, smollm2
from companion.pretraining.autoregressive import next_token_log_probs
from companion.transformer.block import Decoder

SETTINGS: tuple[tuple[float, tuple[int, int] | None], ...] = (
    (0.3, None),
    (0.5, None),
    (0.6, None),
    (0.5, (2, 4)),
)


def articles(lm: TextDecoder, *, calibrate: int, test: int, width: int) -> tuple[Tensor, Tensor]:
    """Beginnings of news articles; those of the test come after those of the calibration."""
    assert lm.tokenizer is not None
    rows = []
    for article in data.xsum():
        ids = lm.tokenizer.encode(article.document, add_special_tokens=False).ids
        if len(ids) >= width - 1 and len(rows) < calibrate + test:
            rows.append([lm.start, *ids[: width - 1]])
    return torch.tensor(rows[:calibrate]), torch.tensor(rows[calibrate:])


def passages(lm: TextDecoder, plays: list[str], *, each: int, width: int) -> Tensor:
    """Passages of each play, evenly apart, from the beginning of a line on."""
    assert lm.tokenizer is not None
    rows = []
    for play in plays:
        for part in range(1, each + 1):
            first = play.index("\n", len(play) * part // (each + 1)) + 1
            text = play[first : first + 10 * width]
            ids = lm.tokenizer.encode(text, add_special_tokens=False).ids
            rows.append([lm.start, *ids[: width - 1]])
    return torch.tensor(rows)


@torch.no_grad()
def surprise(model: Decoder, rows: Tensor) -> Tensor:
    """Nats a token of each row."""
    parts = [-next_token_log_probs(model, some).mean(1) for some in rows.split(4)]
    return torch.cat(parts)


def judge(model: Decoder, news: Tensor, plays: Tensor, *, each: int) -> dict[str, list[float]]:
    """Nats a token of each article, and of each play as the mean of its passages."""
    read = {
        "news": surprise(model, news),
        "plays": surprise(model, plays).view(-1, each).mean(1),
    }
    return {name: [round(value, 4) for value in nats.tolist()] for name, nats in read.items()}


def main() -> None:
    """Prune, read, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibrate", type=int, default=32, help="rows that the methods see")
    parser.add_argument("--test", type=int, default=32, help="articles of the test")
    parser.add_argument("--each", type=int, default=1, help="passages of each play of the test")
    parser.add_argument("--width", type=int, default=256, help="tokens of a row")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    begin, cpu = time.perf_counter(), time.process_time()
    lm = smollm2()
    dense: Decoder = lm.model
    width = asked.width
    shown, news = articles(lm, calibrate=asked.calibrate, test=asked.test, width=width)
    works = list(data.shakespeare_plays().values())  # by genre: every other one is for the test
    plays = passages(lm, works[1::2], each=asked.each, width=width)
    learn = passages(lm, works[::2], each=-(-asked.calibrate // len(works[::2])), width=width)
    calibration = {"news": shown, "plays": learn[: asked.calibrate]}
    matrices = [p for p in dense.blocks.parameters() if p.dim() == 2]
    results: dict[str, Any] = {
        "calibrate": asked.calibrate,
        "width": width,
        "articles": len(news),
        "plays": len(works[1::2]),
        "each": asked.each,
        "parameters": sum(p.numel() for p in dense.parameters()),
        "pruned": sum(W.numel() for W in matrices),
        "zeros": sum(int((W == 0).sum()) for W in matrices),  # before anything is pruned
        "dense": judge(dense, news, plays, each=asked.each),
        "runs": [],
    }

    def one(
        method: Method, share: float, pattern: tuple[int, int] | None, source: str | None
    ) -> None:
        model, start = copy.deepcopy(dense), time.process_time()
        batches = calibration[source].split(8) if source else ()
        masks = prune_(model, batches, method=method, sparsity=share, pattern=pattern)
        seconds = time.process_time() - start
        weights = [model.get_parameter(f"{path}.weight") for path in masks]
        told = {
            "method": method,
            "share": share,
            "pattern": pattern,
            "calibration": source,
            "zeros": sum(int((W == 0).sum()) for W in weights),
            "seconds": round(seconds, 1),
            **judge(model, news, plays, each=asked.each),
        }
        results["runs"].append(told)
        means = [sum(told[kind]) / len(told[kind]) for kind in ("news", "plays")]
        print(method, share, pattern, source, means, f"{seconds:.0f} s", flush=True)

    for share, pattern in SETTINGS:
        one("magnitude", share, pattern, None)
        one("wanda", share, pattern, "news")
        one("sparsegpt", share, pattern, "news")
    one("wanda", 0.5, None, "plays")
    one("sparsegpt", 0.5, None, "plays")
    results["cpu_seconds"] = round(time.process_time() - cpu, 1)
    store("sparsity_smollm2", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
