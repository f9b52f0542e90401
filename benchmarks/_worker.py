"""What is done in a process of its own: compare both sides of a pair, or time one."""

import contextlib
import gc
import importlib
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.pairs import PAIRS

#: Calls that are timed: at least, at most, and at least where one takes longer than LONG seconds.
LEAST, MOST, LEAST_LONG, LONG = 3, 200, 1, 3.0


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
    """Time the calls after a warm-up, for the given seconds and a least number of times."""
    begin = time.perf_counter()
    # First: later the allocator holds pages from earlier calls, and the peak would not show.
    taken = memory(side, device)
    if time.perf_counter() - begin < LONG:
        least = LEAST
        side()
        synchronize(device)
    else:  # One call of some seconds is warm-up enough, and the rounds repeat it.
        least = LEAST_LONG
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < least or (time.perf_counter() - started < seconds and len(times) < MOST):
        begin = time.perf_counter()
        side()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return {"seconds": times, "bytes": taken}


def check(name: str, device: str) -> dict[str, Any]:
    """Do a pair's task once on both sides, and say whether the results agree."""
    pair, place = PAIRS[name], torch.device(device)
    lost = missing(pair.needs)
    if lost:
        return {"missing": lost}
    try:
        pair.same(pair.ours(place)(), pair.theirs(place)())
    except AssertionError as error:
        return {"same": False, "why": str(error).strip().splitlines()[0]}
    return {"same": True}


def time_side(name: str, side: str, device: str, seconds: float | None = None) -> dict[str, Any]:
    """Measure one side of a pair, ``"ours"`` or ``"theirs"``."""
    pair, place = PAIRS[name], torch.device(device)
    made = (pair.ours if side == "ours" else pair.theirs)(place)
    return measure(made, place, pair.seconds if seconds is None else seconds)
