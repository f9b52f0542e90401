"""Run ``make bench`` twice on the whole, and store both tables.

About 30 minutes of two cores on which nothing else should run. The second run shows which ratios
repeat.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _store import store

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench.py"
TIMES = 2


def report(path: Path) -> dict[str, Any]:
    """Measure everything, and read what was written."""
    done = subprocess.run([sys.executable, str(BENCH), "--out", str(path)], check=False)
    if done.returncode:
        raise SystemExit(f"benchmark: `make bench` failed ({done.returncode}); nothing is stored")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def rounded(value: Any) -> Any:
    """Keep four digits of each number: more is noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, list) else value


def main() -> None:
    """Run, and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        runs = [rounded(report(Path(folder, f"{number}.json"))) for number in range(TIMES)]
    store("benchmark", {"runs": runs}, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
