"""Round SmolLM2 to fewer and fewer bits, to nearest and by GPTQ, and score news with it.

Matrices of the blocks alone are rounded; the table of tokens stays as it is, so that bits are
compared and nothing else. Each Hessian is from one run of the unrounded model on four articles that
are not scored.

python book/_runs/quantization_smollm2.py      # about 4 minutes of CPU time
"""

import time
from typing import Any

import torch
from _store import store
from torch import Tensor, nn

from companion import data
from companion.efficiency.quantization import gptq, round_weights
from companion.efficiency.sparsity import input_hessian
from companion.models import smollm2

WIDTH = 128
#: Method, bits, inputs that share a grid.
SETTINGS = (
    ("nearest", 8, None),
    ("nearest", 4, None),
    ("nearest", 4, 32),
    ("nearest", 3, 32),
    ("nearest", 2, 32),
    ("gptq", 4, 32),
    ("gptq", 3, 32),
)


def rows_of(tokenizer: Any, articles: list[str]) -> Tensor:
    """One row of ids from each article that is long enough, the start token first."""
    rows = []
    for article in articles:
        ids = tokenizer.encode(article).ids
        if len(ids) >= WIDTH:
            rows.append([0, *ids[:WIDTH]])
    return torch.tensor(rows)


@torch.inference_mode()
def nats(model: nn.Module, ids: Tensor) -> list[float]:
    """Loss of each row, in nats a token."""
    logits = model(ids[:, :-1])
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return [float(loss) for loss in losses.mean(1)]


def main() -> None:
    """Run all settings and store what they lose."""
    start = time.time()
    text = smollm2()
    model = text.model
    articles = [row.document for row in data.xsum()]
    ids = rows_of(text.tokenizer, articles)
    scored, calibration = ids[:6], ids[6:10]
    results: dict[str, Any] = {
        "tokens": scored[:, 1:].numel(),
        "calibration": calibration[:, 1:].numel(),
        "baseline": nats(model, scored),
        "runs": [],
    }
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("blocks.")
    }
    whole = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    with torch.no_grad(), input_hessian(model, ["blocks.*"]) as seen:
        model(calibration[:, :-1], last=1)
    for method, bits, group in SETTINGS:
        began = time.process_time()
        error = size = 0.0
        for name, layer in layers.items():
            W, H = whole[name], seen[name]
            if method == "gptq":
                made = gptq(W, H, bits=bits, group=group).values()
            else:
                made = round_weights(W, bits=bits, group=group, symmetric=bits == 8).values()
            change = made - W
            error += float((change @ H * change).sum())
            size += float((W @ H * W).sum())
            layer.weight.data.copy_(made)
        seconds = time.process_time() - began
        losses = nats(model, scored)
        results["runs"].append(
            {
                "method": method,
                "bits": bits,
                "group": group,
                "nats": losses,
                "output_error": error / size,
                "seconds": round(seconds, 1),
            }
        )
        print(method, bits, group, sum(losses) / len(losses), error / size, seconds, flush=True)
    store("quantization_smollm2", results, seed=0, seconds=time.time() - start)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
