"""Run ``make bench`` on the whole, twice if asked, and store the tables.

Half an hour a run, of two cores on which nothing else should run. A second run shows which ratios
repeat. ``--tables`` stores what runs of ``make bench`` have written, and measures nothing; a
table of some pairs only, after a table of all, replaces those pairs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _store import store

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench.py"


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


def joined(tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whole tables, each with its pairs as a later, partial table has them."""
    whole = max(len(table["pairs"]) for table in tables)
    runs: list[dict[str, Any]] = []
    for table in tables:
        if not runs or len(table["pairs"]) == whole:
            runs.append(table)
            continue
        rows = {row["name"]: row for row in [*runs[-1]["pairs"], *table["pairs"]]}
        minutes = runs[-1]["minutes"] + table["minutes"]
        later = sorted({*runs[-1].get("later", ()), *(row["name"] for row in table["pairs"])})
        runs[-1] = runs[-1] | {"pairs": list(rows.values()), "minutes": minutes, "later": later}
    return runs


def main() -> None:
    """Run, and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, choices=(1, 2), default=2)
    parser.add_argument("--tables", type=Path, nargs="+", help="written by `make bench --out`")
    asked = parser.parse_args()
    if asked.tables:
        del sys.argv[1:]  # what is stored is the command that measures
        tables = [json.loads(path.read_text(encoding="utf-8")) for path in asked.tables]
        runs = joined(tables)
    else:
        with tempfile.TemporaryDirectory() as folder:
            runs = [report(Path(folder, f"{number}.json")) for number in range(asked.times)]
    names = [{row["name"] for row in run["pairs"]} for run in runs]
    if any(name != names[0] for name in names):
        raise SystemExit("benchmark: the tables do not have the same pairs; nothing is stored")
    seconds = 60 * sum(run["minutes"] for run in runs)
    store("benchmark", {"runs": rounded(runs)}, seed=0, seconds=seconds)


if __name__ == "__main__":
    main()
