"""Nested state as JSON and tensors, and files that are on disk for certain."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion.core.parallel import is_main

__all__ = [
    "file_hash",
    "pack",
    "sync",
    "unpack",
    "unshared",
    "whole",
    "write_atomically",
    "write_tensors",
]


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, on the CPU; a sharded one is gathered, which all processes must do."""
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    # Other processes have no use for what they gathered.
    return tensor.detach().cpu().contiguous() if is_main() else torch.empty(0)


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, of which no two share memory: the files hold each by itself."""
    made, seen = {}, set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        made[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return made


def sync(path: Path) -> None:
    """Wait until a file, or the list of files of a folder, is on disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows keeps folders up to date by itself, and cannot open them
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pack(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """Turn nested values into JSON; tensors go to a dictionary of their own."""
    if isinstance(value, Tensor):
        tensors[path] = whole(value)
        return {"tensor": path}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {"dict": [[k, pack(v, tensors, f"{path}/{k}")] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [pack(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"the state at {path[1:]!r} is a {type(value).__name__}: only tensors, numbers, strings, "
        "lists, tuples and dictionaries can be saved"
    )


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Turn what :func:`pack` has made back into nested values."""
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "tensor":
        # A copy: what was loaded is the mapped file, which may be deleted.
        return tensors[held].clone()
    if kind == "dtype":
        return getattr(torch, held)
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in held}
    items: Iterator[Any] = (unpack(item, tensors) for item in held)
    return tuple(items) if kind == "tuple" else list(items)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file that others may read as they may any file made here.

    The library's own files belong to their owner alone, whatever the umask says.

    Args:
        path: The file.
        tensors: On the CPU and contiguous, of which no two share memory.
        metadata: Words for its header.
    """
    from safetensors.torch import save_file

    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(dict(tensors), path, metadata=metadata)
    path.chmod(mode)


def write_atomically(path: Path, content: str | Callable[[Path], object]) -> None:
    """Write a file so that it is there whole or not at all.

    Args:
        path: The file.
        content: Its text, or a function that writes the file it is given.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        if isinstance(content, str):
            unfinished.write_text(content, encoding="utf-8")
        else:
            content(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
