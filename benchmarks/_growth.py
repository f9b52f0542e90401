"""How the time of each kind of attention grows with the length, as one fitted exponent."""

import time
from collections.abc import Callable
from functools import partial
from math import log
from typing import Any

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


def measure(device: str) -> dict[str, Any]:
    """Measure all kinds."""
    place = torch.device(device)
    rows = []
    with torch.no_grad():
        for name, function, theory in KINDS:
            times = [fastest(partial(function, *inputs(place, n), n), place) for n in LENGTHS]
            rows.append(
                {
                    "name": name,
                    "seconds": times,
                    "exponent": slope(LENGTHS, times),
                    "theory": theory,
                }
            )
    return {"lengths": list(LENGTHS), "heads": HEADS, "width": WIDTH, "rows": rows}
