"""One side of one pair, in a process of its own: ``python -m benchmarks._worker``."""

import argparse
import contextlib
import gc
import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.pairs import PAIRS

FASTEST, MOST = 3, 200


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def missing(needs: Any) -> list[str]:
    """Return the modules that cannot be imported."""
    lost = []
    for name in needs:
        try:
            importlib.import_module(name)
        except ImportError:
            lost.append(name)
    return lost


def resident() -> int:
    """Bytes that the process holds in memory now."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak()


def peak() -> int:
    """Most bytes held since :func:`forget_peak`, or since the start where it cannot forget."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> None:
    """Start a new high-water mark, where the system allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory(side: Any, device: torch.device) -> int:
    """Bytes that one call takes beyond what was held before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        side()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    forget_peak()
    before = resident()
    side()
    return max(0, peak() - before)


def measure(side: Any, device: torch.device, seconds: float) -> dict[str, Any]:
    """Time the calls after a warm-up, for the given seconds and at least three times."""
    # First: later the allocator holds pages from earlier calls, and the peak would not show.
    taken = memory(side, device)
    side()
    synchronize(device)
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < FASTEST or (time.perf_counter() - started < seconds and len(times) < MOST):
        begin = time.perf_counter()
        side()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return {"seconds": times, "bytes": taken}


def main() -> int:
    """Measure or check, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair")
    parser.add_argument("job", choices=["check", "ours", "theirs"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=None)
    given = parser.parse_args()
    pair, device = PAIRS[given.pair], torch.device(given.device)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    answer: dict[str, Any]
    if given.job == "check":
        lost = missing(pair.needs)
        if lost:
            answer = {"missing": lost}
        else:
            try:
                pair.same(pair.ours(device)(), pair.theirs(device)())
                answer = {"same": True}
            except AssertionError as error:
                answer = {"same": False, "why": str(error).strip().splitlines()[0]}
    else:
        side = (pair.ours if given.job == "ours" else pair.theirs)(device)
        answer = measure(side, device, given.seconds or pair.seconds)
    print("\n" + json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
