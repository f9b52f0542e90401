"""The files of a checkpoint folder: JSON, tensors in one file or in shards, the tokenizer."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from companion.core import _storage
from companion.core._storage import write_atomically

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["read_json", "read_tensors", "read_tokenizer", "write_json", "write_tensors"]

INDEX = "model.safetensors.index.json"


def read_json(path: Path, *, needed: bool = True) -> dict[str, Any]:
    """Read an object; a file that is not needed and not there is an empty one."""
    if not path.is_file():
        if needed:
            raise FileNotFoundError(f"{path} is missing: give a folder with a saved checkpoint")
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path} must hold an object, got {type(read).__name__}")
    return read


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of one file, or of the shards that an index lists."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / INDEX
    if index.is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ValueError(f"{index} must map tensors to files under 'weight_map'")
        names = sorted(set(places.values()))
    else:
        places, names = {}, ["model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: weights are read from safetensors only")
        try:
            tensors.update(load_file(path))
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is truncated or damaged: {error}") from error
    lost = sorted(set(places) - set(tensors))
    if lost:
        raise ValueError(f"{index} lists tensors that no shard holds, the first is {lost[0]!r}")
    return tensors


def read_tokenizer(folder: Path) -> "Tokenizer | None":
    """Read ``tokenizer.json``, if there is one, to neither pad nor truncate."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is not a tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object, whole or not at all."""
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], *, shard_bytes: int) -> None:
    """Write ``model.safetensors``, or shards and their index if it would be larger than that.

    What an earlier save of another size has left is removed last, so that at every moment the
    folder holds one whole set of weights.
    """
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    count = len(shards)
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    if count == 1:
        names = ["model.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        write_atomically(folder / name, partial(_save, shard))
    if count > 1:
        places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(folder / INDEX, index)
    else:
        (folder / INDEX).unlink(missing_ok=True)
    for old in (folder / "model.safetensors", *folder.glob("model-*-of-*.safetensors")):
        if old.name not in names:
            old.unlink(missing_ok=True)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    # One tensor at a time is copied: views of a joined matrix are not contiguous or share memory.
    own = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    _storage.write_tensors(path, own, metadata={"format": "pt"})
