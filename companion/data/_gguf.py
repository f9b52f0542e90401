"""Read the header of a GGUF file.

The reader in the package ``gguf`` keeps each of the hundred thousand strings of a vocabulary as
two NumPy arrays, which takes longer than expanding the weights; this one walks the header once.
The layout is that of GGUF version 3: magic, version, number of tensors, number of key-value pairs,
the pairs, one record for each tensor, padding, data; all little-endian.

Reference: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["StoredTensor", "read_gguf"]

# Value types: number -> struct format. 8 is a string, 9 an array.
_SCALARS = {
    **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"},
    **{10: "Q", 11: "q", 12: "d"},
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as it lies in the file.

    Attributes:
        name: Its name.
        shape: Its shape, rows first (the file lists the dimensions in the other order).
        kind: Number of its storage type, as ``gguf.GGMLQuantizationType`` counts them.
        data: Its bytes, mapped from the file; the last axis is one row's.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    data: np.ndarray[Any, np.dtype[np.uint8]]


class _Cursor:
    """Read values one after the other from a buffer."""

    def __init__(self, buffer: memoryview) -> None:
        self.buffer = buffer
        self.position = 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.buffer, self.position)
        self.position += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        length: int = self.scalar("Q")
        start, self.position = self.position, self.position + length
        return str(self.buffer[start : self.position], "utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            kind, count = self.scalar("I"), self.scalar("Q")
            if kind in _SCALARS:
                values = struct.unpack_from(f"<{count}{_SCALARS[kind]}", self.buffer, self.position)
                self.position += struct.calcsize(f"<{count}{_SCALARS[kind]}")
                return list(values)
            return [self.value(kind) for _ in range(count)]
        return self.scalar(_SCALARS[kind])


def read_gguf(path: Path) -> tuple[dict[str, Any], list[StoredTensor]]:
    """Metadata and stored tensors of a GGUF file of version 3.

    Args:
        path: The file.

    Returns:
        The key-value pairs, and the tensors in the order of the file, not yet dequantized.

    Raises:
        ValueError: It is no GGUF file of version 3.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    # A plain view of the map: slicing np.memmap itself is slow.
    mapped = np.asarray(np.memmap(path, mode="r", dtype=np.uint8))
    cursor = _Cursor(mapped.data)
    magic, version = bytes(mapped[:4]), int.from_bytes(bytes(mapped[4:8]), "little")
    if magic != b"GGUF" or version != 3:
        raise ValueError(f"{path} begins with {magic!r}, version {version}: not GGUF version 3")
    cursor.position = 8
    tensors, pairs = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("I"))
    records = []
    for _ in range(tensors):
        name, axes = cursor.string(), cursor.scalar("I")
        shape = tuple(cursor.scalar("Q") for _ in range(axes))[::-1]
        records.append((name, shape, cursor.scalar("I"), cursor.scalar("Q")))
    alignment = metadata.get("general.alignment", 32)
    begin = math.ceil(cursor.position / alignment) * alignment
    stored = []
    for name, shape, kind, offset in records:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        row = shape[-1] // block * size
        length = math.prod(shape[:-1]) * row
        data = mapped[begin + offset : begin + offset + length].reshape(*shape[:-1], row)
        stored.append(StoredTensor(name, shape, kind, data))
    return metadata, stored
