"""Write requirements/lock.txt: exact versions of all that the library, the book and the tests need.

Run as ``make lock``. With KEEP=1 what is locked keeps its version, and only what is new in
pyproject.toml is added. pip's own resolver decides, once for each supported Python; what differs
between Pythons gets an environment marker. Requirements that pip skipped only because they belong
to another platform (macOS, 64-bit ARM Linux) are pinned under that platform's marker.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from pip._vendor.packaging.markers import default_environment
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
# torch brings the CUDA libraries that match it on Linux; pinning them would force them on everyone.
TORCH_OWN = re.compile(r"^(nvidia-|cuda-|triton$)")
# Only these differ between the platforms that pip's skipped requirements are checked for.
PLATFORMS = {
    'sys_platform == "darwin"': {
        "sys_platform": "darwin",
        "platform_system": "Darwin",
        "platform_machine": "arm64",
    },
    'platform_machine == "aarch64"': {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "aarch64",
    },
}
BENCH_HEADER = """\
# What `make bench` installs beside requirements/lock.txt: the extra bench, at exact versions.
# Written by `make lock` (tools/lock.py): change pyproject.toml, not this file.
"""
HEADER = """\
# Exact versions of everything that .[book,test] and the build of the package need,
# for Python {first} to {last} on Linux and macOS.
# Written by `make lock` (tools/lock.py) with pip's resolver: change pyproject.toml, not this file.
# The CUDA libraries are left to torch, which asks for the ones that fit it.
"""


def roots(root: Path) -> list[str]:
    """Return the requirements of pyproject.toml, the build backend and all extras but bench."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    extras = dict(project["project"].get("optional-dependencies", {}))
    extras.pop("bench", None)
    build = project.get("build-system", {}).get("requires", [])
    listed = [*project["project"]["dependencies"], *(r for e in extras.values() for r in e), *build]
    return [*listed, "editables", "pip"]  # editables: what hatchling needs for `pip install -e`


def peers(root: Path) -> list[str]:
    """Return what the extra bench asks for."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return list(project["project"]["optional-dependencies"]["bench"])


def resolve(python: str, requirements: list[str], constraints: dict[str, str]) -> list[dict]:
    """Let pip resolve ``requirements`` for one interpreter and return its report's packages."""
    with tempfile.TemporaryDirectory() as folder:
        bound, report = Path(folder, "constraints.txt"), Path(folder, "report.json")
        bound.write_text("".join(f"{n}=={v}\n" for n, v in constraints.items()), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
        command += ["--dry-run", "--ignore-installed", "--report", str(report), "-c", str(bound)]
        done = subprocess.run(
            [*command, *requirements], check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"lock: pip found no solution for {python}:\n{done.stderr.strip()}")
        return json.loads(report.read_text(encoding="utf-8"))["install"]


def skipped(packages: list[dict], version: str, platform: dict[str, str]) -> set[str]:
    """Return the requirements that hold on ``platform`` but not here."""
    here = {**default_environment(), "python_version": version, "python_full_version": version}
    found = set()
    for package in packages:
        for text in package["metadata"].get("requires_dist", []):
            requirement = Requirement(text)
            if not requirement.marker or TORCH_OWN.match(canonicalize_name(requirement.name)):
                continue
            for extra in ["", *package.get("requested_extras", [])]:
                there = requirement.marker.evaluate({**here, **platform, "extra": extra})
                if there and not requirement.marker.evaluate({**here, "extra": extra}):
                    requirement.marker = None
                    found.add(str(requirement))
                    break
    return found


def pins(packages: list[dict]) -> dict[str, str]:
    """Map each package's name to its version, less torch's suffix and its CUDA libraries."""
    named = {p["metadata"]["name"]: p["metadata"]["version"].split("+")[0] for p in packages}
    names = {canonicalize_name(name): version for name, version in named.items()}
    return {n: v for n, v in names.items() if not TORCH_OWN.match(n)}


def locked(lock: Path) -> dict[str, str]:
    """Return the pins of a lock that hold for every Python and platform."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not re.search("[#;]", line))


def merge(by_python: dict[str, dict[str, str]]) -> list[str]:
    """Merge one set of pins per Python into lines, with markers where the Pythons differ."""
    lines = []
    for name in sorted({name for found in by_python.values() for name in found}):
        versions = {python: found.get(name) for python, found in by_python.items()}
        for version in sorted({v for v in versions.values() if v}):
            where = [python for python, v in versions.items() if v == version]
            marker = " or ".join(f'python_version == "{p}"' for p in where)
            lines.append(
                f"{name}=={version}" + ("" if len(where) == len(by_python) else f" ; {marker}")
            )
    return lines


def main() -> None:
    """Resolve for every supported Python and write the lock."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pythons", nargs="*", help="interpreters, one for each of 3.11, 3.12, 3.13")
    parser.add_argument("--keep", action="store_true", help="keep the versions that are locked")
    options = parser.parse_args()
    given = options.pythons or [f"python{version}" for version in PYTHONS]
    interpreters = {}
    for python in given:
        if not shutil.which(python):
            raise SystemExit(f"lock: {python} is not installed; name one as make lock PYTHONS=...")
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([python, "-c", code], check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"lock: {python} does not run: {done.stderr.strip()}")
        interpreters[done.stdout.strip()] = python
    if missing := set(PYTHONS) - set(interpreters):
        raise SystemExit(f"lock: no interpreter for Python {', '.join(sorted(missing))}")

    lock = ROOT / "requirements" / "lock.txt"
    wanted, by_python, foreign = roots(ROOT), {}, {}
    # One version for all Pythons where it can be: the one that is locked, or the oldest Python's.
    first = locked(lock) if options.keep else {}
    for version in PYTHONS:
        print(f"lock: resolving for Python {version}", flush=True)
        packages = resolve(interpreters[version], wanted, first)
        by_python[version] = pins(packages)
        first = {**by_python[version], **first}
        for marker, platform in PLATFORMS.items():
            for requirement in sorted(skipped(packages, version, platform)):
                extra = resolve(interpreters[version], [requirement], by_python[version])
                for name, pin in pins(extra).items():
                    if name not in by_python[version]:
                        foreign[f"{name}=={pin} ; {marker}"] = None
    lines = sorted([*merge(by_python), *foreign])
    header = HEADER.format(first=PYTHONS[0], last=PYTHONS[-1])
    lock.write_text(header + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"lock: {len(lines)} pins in {lock.relative_to(ROOT)}")
    lock_bench(interpreters, by_python)


def lock_bench(interpreters: dict[str, str], locked: dict[str, dict[str, str]]) -> None:
    """Write requirements/bench.txt: what the extra bench adds to the lock."""
    added = {}
    for version, python in interpreters.items():
        found = pins(resolve(python, peers(ROOT), locked[version]))
        added[version] = {n: v for n, v in found.items() if n not in locked[version]}
    lines = merge(added)
    path = ROOT / "requirements" / "bench.txt"
    path.write_text(BENCH_HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"lock: {len(lines)} pins in {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
