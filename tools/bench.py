"""Make ``.venv-bench`` with the peers, then measure: run as ``make bench``.

Standard library only, as nothing is installed yet. A peer that cannot be installed does not stop
the run: the table reports it as missing.
"""

import os
import subprocess
import sys
from pathlib import Path

import environment

ROOT = Path(__file__).resolve().parent.parent
NAME = ".venv-bench"


def install_peers(root: Path) -> None:
    """Install what the extra bench adds, one package at a time, so that one may fail alone."""
    pins = root / "requirements" / "bench.txt"
    stamp = root / NAME / "bench.txt"
    if stamp.is_file() and stamp.read_bytes() == pins.read_bytes():
        return
    failed = []
    for line in pins.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            try:
                environment.pip(root, "install", "--no-deps", line, name=NAME)
            except environment.SetupError as error:
                failed.append(line)
                print(f"set-up: {line} could not be installed: {error}", file=sys.stderr)
    if not failed:
        stamp.write_bytes(pins.read_bytes())


def main() -> int:
    """Set up, then hand over to ``python -m benchmarks``."""
    try:
        environment.make(ROOT, NAME)
    except environment.SetupError as error:
        print(f"\nset-up failed: {error}", file=sys.stderr)
        return 1
    install_peers(ROOT)
    command = [str(ROOT / NAME / "bin" / "python"), "-m", "benchmarks", *sys.argv[1:]]
    try:
        return subprocess.run(command, check=False, cwd=ROOT, env=os.environ).returncode
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
