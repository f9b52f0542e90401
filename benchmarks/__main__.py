"""Measure the companion against its peers, and print one table: ``python -m benchmarks``.

Every pair is measured in alternation, each time in a fresh process, after a check that both sides
give the same result. A ratio above 1 means that ours is faster. Times are medians of the calls of
a process; the ratio is the median over the rounds, with its smallest and largest value.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import _growth, _profile, _worker
from benchmarks._pair import Pair
from benchmarks._process import Failed, ask
from benchmarks.pairs import PAIRS
from companion import core

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = ("companion", "companion.transformer.block", "torch", "transformers")
PACKAGES = ("torch", "transformers", "tokenizers", "gensim", "mittens", "x-transformers")


def compare(pair: Pair, device: str, threads: int) -> dict[str, Any]:
    """Check one pair, then time its sides in alternation."""
    row: dict[str, Any] = {
        "name": pair.name,
        "task": pair.task,
        "peer": pair.peer,
        "note": pair.note,
        "speed_mark": pair.speed,
        "memory_mark": pair.memory,
    }
    try:
        checked = ask(_worker.check, pair.name, device, threads=threads)
        if "missing" in checked:
            return {**row, "missing": checked["missing"]}
        if not checked["same"]:
            return {**row, "error": f"the results differ: {checked['why']}"}
        rounds: list[dict[str, Any]] = []
        for number in range(pair.rounds):
            order = ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours")
            rounds.append(
                {s: ask(_worker.time_side, pair.name, s, device, threads=threads) for s in order}
            )
    except Failed as error:
        return {**row, "error": str(error)}
    ours, theirs = ([median(r[side]["seconds"]) for r in rounds] for side in ("ours", "theirs"))
    ratios = [its / mine for mine, its in zip(ours, theirs, strict=True)]
    row |= {"ours": median(ours), "theirs": median(theirs), "ratio": median(ratios)}
    row |= {"ratio_low": min(ratios), "ratio_high": max(ratios)}
    ours_bytes, theirs_bytes = (
        int(median(r[side]["bytes"] for r in rounds)) for side in ("ours", "theirs")
    )
    row |= {"ours_bytes": ours_bytes, "theirs_bytes": theirs_bytes}
    # Below a megabyte, pages of the interpreter hide what a call takes.
    if min(ours_bytes, theirs_bytes) >= 1 << 20:
        row["memory_ratio"] = ours_bytes / theirs_bytes
    row["verdict"] = verdict(row)
    return row


def verdict(row: dict[str, Any]) -> str:
    """Whether the marks are met.

    Returns:
        ``"met"``; ``"missed"`` where the memory or every round misses a mark; ``"close"`` where
        the median misses it and some round does not, so that noise decides; and ``""`` where
        there is no mark.
    """
    speed, memory = row["speed_mark"], row["memory_mark"]
    if speed is None and memory is None:
        return ""
    if memory is not None and row.get("memory_ratio", 0.0) > memory:
        return "missed"
    if speed is None or row["ratio"] >= speed:
        return "met"
    return "close" if row["ratio_high"] >= speed else "missed"


def import_times(rounds: int = 5) -> dict[str, float]:
    """Median seconds to import each package, less those that an empty interpreter takes."""
    codes = {"": "pass", **{name: f"import {name}" for name in IMPORTS}}
    times: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(rounds):
        for name, code in codes.items():
            begin = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
            if done.returncode == 0:
                times[name].append(time.perf_counter() - begin)
    empty = median(times[""])
    return {name: median(times[name]) - empty for name in IMPORTS if times[name]}


def machine(device: str, threads: int) -> dict[str, Any]:
    """Describe what the run was made on."""
    described = {
        "processor": core.processor_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.system(),
        "python": platform.python_version(),
        "device": device,
    }
    if device == "cuda":
        described["gpu"] = torch.cuda.get_device_name()
    if hasattr(os, "getloadavg"):
        described["load before"] = round(os.getloadavg()[0], 2)
    packages = {}
    for package in PACKAGES:
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            packages[package] = "missing"
    return {**described, "packages": packages}


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    if "missing" in row:
        return f"{row['name']:<26} peer missing: {', '.join(row['missing'])}"
    if "error" in row:
        return f"{row['name']:<26} FAILED: {row['error'][:90]}"
    memory = f"{row['memory_ratio']:6.2f}" if "memory_ratio" in row else "     -"
    mark = "" if row["speed_mark"] is None else f">= {row['speed_mark']:.2f}"
    if row["memory_mark"] is not None:
        mark += f", mem <= {row['memory_mark']:.2f}"
    return (
        f"{row['name']:<26} {1e3 * row['ours']:9.2f} {1e3 * row['theirs']:9.2f} "
        f"{row['ratio']:6.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f}) {memory}  "
        f"{mark:<18} {row['verdict']}"
    )


HEAD = f"{'pair':<26} {'ours/ms':>9} {'peer/ms':>9} {'ratio':>6} (low-high)  memory  mark"


def chosen(only: list[str], device: str) -> list[Pair]:
    """The pairs that are asked for, by name or group."""
    if not only:
        return [pair for pair in PAIRS.values() if device in pair.devices]
    found = [
        pair for pair in PAIRS.values() if pair.name in only or pair.name.split("/")[0] in only
    ]
    known = {pair.name for pair in found} | {pair.name.split("/")[0] for pair in found}
    lost = [name for name in only if name not in known | {"growth", "import", "profile"}]
    if lost:
        raise SystemExit(
            f"bench: no pair or group {', '.join(lost)}; "
            f"there are {', '.join(PAIRS)}, growth, import, profile"
        )
    return [pair for pair in found if device in pair.devices]


def main() -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="pairs or groups, separated by commas")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 2))
    parser.add_argument("--out", type=Path, default=ROOT / "_build" / "benchmarks.json")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench: this machine has no CUDA device; leave --device out")
    only = [name for name in given.only.split(",") if name]
    pairs = chosen(only, given.device)
    started = time.monotonic()
    report: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(given.device, given.threads),
        "pairs": [],
    }
    print(f"{HEAD}\n{'-' * len(HEAD)}", flush=True)
    for number, pair in enumerate(pairs, start=1):
        print(f"[{number}/{len(pairs)}] {pair.name} ...", end="\r", file=sys.stderr, flush=True)
        row = compare(pair, given.device, given.threads)
        report["pairs"].append(row)
        print(line(row), flush=True)
    if not only or "import" in only:
        report["imports"] = import_times()
        for name, seconds in report["imports"].items():
            print(f"import {name:<28} {1e3 * seconds:9.0f} ms", flush=True)
    if not only or "growth" in only:
        report["growth"] = ask(_growth.measure, given.device, threads=given.threads)
        for row in report["growth"]["rows"]:
            print(
                f"growth, {row['name']:<20} "
                f"time ~ n^{row['exponent']:.2f} (theory: {row['theory']})",
                flush=True,
            )
    if not only or "profile" in only:
        report["profile"] = ask(_profile.measure, given.device, threads=given.threads)
        for kind, share in report["profile"]["shares"].items():
            print(f"decoding, share of {kind:<17} {100 * share:8.0f} %", flush=True)
    report["minutes"] = round((time.monotonic() - started) / 60, 1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    partial = given.out.with_suffix(".tmp")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    partial.replace(given.out)
    print(f"\n{report['minutes']} minutes; written to {given.out}")
    failed = [row["name"] for row in report["pairs"] if "error" in row]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
