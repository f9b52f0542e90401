"""How the time of each kind of attention grows with the length, as one fitted exponent.

Run as ``python -m benchmarks._growth``: it prints one line of JSON.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from math import log

import torch
from torch import Tensor

from benchmarks._worker import synchronize
from benchmarks.pairs.attention import HEADS, WIDTH, inputs
from companion.transformer.attention import (
    attention,
    causal,
    dense_attention,
    sliding_window,
    tiled_attention,
)

LENGTHS = (512, 1024, 2048, 4096)
#: Name, function, and the exponent that theory gives for long texts.
KINDS: tuple[tuple[str, Callable[..., Tensor], int], ...] = (
    ("dense", lambda Q, K, V, n: dense_attention(Q, K, V)[0], 2),
    ("fused", lambda Q, K, V, n: attention(Q, K, V), 2),
    ("fused, causal", lambda Q, K, V, n: attention(Q, K, V, mask=causal()), 2),
    ("tiled", lambda Q, K, V, n: tiled_attention(Q, K, V), 2),
    (
        "tiled, window of 256",
        lambda Q, K, V, n: tiled_attention(Q, K, V, mask=sliding_window(256)),
        1,
    ),
)


def fastest(call: Callable[[], Tensor], device: torch.device) -> float:
    """Return the median time of a call in seconds."""
    call()
    synchronize(device)
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - started < 0.6 and len(times) < 100):
        begin = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def slope(lengths: tuple[int, ...], times: list[float]) -> float:
    """Fit time = c * n^k by least squares in the logarithms, and return k."""
    x, y = [log(n) for n in lengths], [log(t) for t in times]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return above / sum((a - mx) ** 2 for a in x)


def main() -> int:
    """Measure all kinds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rows = []
    with torch.no_grad():
        for name, function, theory in KINDS:
            times = []
            for n in LENGTHS:
                times.append(fastest(partial(function, *inputs(device, n), n), device))
            rows.append(
                {
                    "name": name,
                    "seconds": times,
                    "exponent": slope(LENGTHS, times),
                    "theory": theory,
                }
            )
    answer = {"lengths": LENGTHS, "heads": HEADS, "width": WIDTH, "rows": rows}
    print("\n" + json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
