"""Prune SmolLM2 in one shot, by three methods and at several shares, and read unseen news with it.

Hessians are summed over the beginnings of 12 news articles. The loss is that on the beginnings of
ten others.

python book/_runs/sparsity_smollm2.py      # about 3 minutes of CPU time
"""

import argparse
import copy
import time
from typing import Any

import torch
from _store import store
from torch import Tensor, nn

from companion import data
from companion.efficiency.sparsity import prune_
from companion.foundations.cross_entropy import cross_entropy
from companion.models import smollm2


def rows_of(texts: list[str], tokenizer: Any, width: int, count: int) -> Tensor:
    """Take one row of ids from each text that is long enough, the start token first."""
    rows: list[list[int]] = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        if len(ids) >= width:
            rows.append([0, *ids[: width - 1]])
        if len(rows) == count:
            return torch.tensor(rows)
    raise ValueError(f"only {len(rows)} of {count} texts have {width} tokens")


@torch.no_grad()
def losses(model: nn.Module, rows: Tensor) -> list[float]:
    """Nats a token, for each row."""
    found = []
    for row in rows:
        logits = model(row[None, :-1])[0]
        found.append(float(cross_entropy(logits, row[1:])))
    return found


def compare(
    *, shares: list[float], calibration: int, width: int, tests: int, targets: list[str]
) -> dict[str, Any]:
    text = smollm2()
    text.model.requires_grad_(False)
    news = [row.document for row in data.xsum()]
    held = rows_of(news, text.tokenizer, width, tests)
    learn = rows_of(news[300:], text.tokenizer, width, calibration)
    runs: list[dict[str, Any]] = []
    dense = losses(text.model, held)
    kinds: list[tuple[str, dict[str, Any]]] = [("2:4", {"pattern": (2, 4)})]
    kinds += [(f"{share:.0%}", {"sparsity": share}) for share in shares]
    for name, options in kinds:
        for method in ("magnitude", "wanda", "sparsegpt"):
            began = time.perf_counter()
            model = copy.deepcopy(text.model)
            masks = prune_(
                model,
                torch.split(learn, 4),
                method=method,
                targets=targets,
                **options,
            )
            seconds = time.perf_counter() - began
            gone = sum(int((~mask).sum()) for mask in masks.values())
            total = sum(mask.numel() for mask in masks.values())
            found = losses(model, held)
            runs.append(
                {
                    "method": method,
                    "pattern": name,
                    "sparsity": gone / total,
                    "losses": found,
                    "seconds": round(seconds, 1),
                }
            )
            mean = torch.tensor(found).mean()
            print(f"{name:4} {method:9} {mean.exp():9.2f}, {seconds:.0f} s", flush=True)
    return {
        "dense": dense,
        "runs": runs,
        "pruned_weights": total,
        "all_weights": sum(p.numel() for p in text.model.parameters()),
        "calibration_tokens": learn.numel(),
        "test_tokens": tests * (width - 1),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5])
    parser.add_argument("--calibration", type=int, default=12, help="rows for the Hessians")
    parser.add_argument("--width", type=int, default=128, help="tokens of a row")
    parser.add_argument("--tests", type=int, default=10, help="rows to be read")
    parser.add_argument("--targets", nargs="+", default=["blocks.*"], help="which maps")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    results = compare(
        shares=options.shares,
        calibration=options.calibration,
        width=options.width,
        tests=options.tests,
        targets=options.targets,
    )
    store("sparsity_smollm2", results, seed=0, seconds=time.perf_counter() - began)


if __name__ == "__main__":
    main()
