"""Let SmolLM2 read long texts within windows, with and without sinks, by the seam of its blocks.

The same weights read the beginnings of plays by full attention, within a window of 128 tokens, and
within the window and the first tokens of the text. Stored is the mean loss of each stretch of 128
tokens. About ten minutes of one core.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from _store import store
from torch import Tensor

from companion import data
from companion.core import watch
from companion.efficiency.sparse_attention import WindowAttention
from companion.models import smollm2
from companion.transformer.block import Decoder


def losses(model: Decoder, tokens: Tensor) -> Tensor:
    """The loss of each token but the first; logits are made in pieces."""
    with watch(model, read=["final"]) as seen:
        model(tokens[:, :-1], last=1)
    pieces = zip(seen["final"][0].split(256), tokens[0, 1:].split(256), strict=True)
    return torch.cat([F.cross_entropy(model.head(x), y, reduction="none") for x, y in pieces])


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Read the texts in each way, and store the losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--stretch", type=int, default=128)
    parser.add_argument("--sinks", type=int, nargs="+", default=[0, 1, 4])
    parser.add_argument("--plays", nargs="+", default=["Hamlet", "The Tempest"])
    options = parser.parse_args(arguments)
    begin = time.perf_counter()
    lm = smollm2()
    plays = data.shakespeare_plays()
    texts = []
    for name in options.plays:
        ids = lm.tokenizer.encode(plays[name][: 8 * options.tokens]).ids[: options.tokens]
        texts.append(torch.tensor([[0, *ids]]))
    runs = []
    for sinks in (None, *options.sinks):
        factory = None
        if sinks is not None:
            factory = WindowAttention.factory(before=options.window - 1, sinks=sinks)
        model = Decoder(lm.model.config, attention=factory)
        model.load_state_dict(lm.model.state_dict())
        model.requires_grad_(False).eval()
        started = time.perf_counter()
        found = [losses(model, tokens) for tokens in texts]
        seconds = time.perf_counter() - started
        by_stretch = [
            [float(part.mean()) for part in loss.split(options.stretch)] for loss in found
        ]
        runs.append(
            {
                "sinks": sinks,
                "loss": [[round(value, 4) for value in row] for row in by_stretch],
                "seconds": round(seconds, 1),
            }
        )
        print(sinks, [float(loss.mean()) for loss in found], f"{seconds:.0f} s", flush=True)
    results = {
        "runs": runs,
        "plays": options.plays,
        "tokens": options.tokens,
        "window": options.window,
        "stretch": options.stretch,
    }
    store("sparse_windows", results, seed=0, seconds=time.perf_counter() - begin)
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
