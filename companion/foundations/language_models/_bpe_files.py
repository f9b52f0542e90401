"""Files of byte-level BPE tokenizers, and how they write bytes as visible text."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from companion.foundations.language_models._added import AddedToken

__all__ = ["BYTES", "Table", "read_document", "read_gpt2", "write_document"]

# Printable bytes stand for themselves; the rest take the characters from U+0100 on, so that every
# token can be written as visible text. Ids follow the order of these characters.
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
#: The bytes in the order of their ids.
BYTES = (*_PRINTABLE, *(byte for byte in range(256) if byte not in _PRINTABLE))
_TO_CHAR = {b: chr(b if b in _PRINTABLE else 256 + i - 188) for i, b in enumerate(BYTES)}
_TO_BYTE = {char: byte for byte, char in _TO_CHAR.items()}


class Table(NamedTuple):
    """What a tokenizer is made of: tokens, merges, special tokens, and added ones with flags."""

    tokens: tuple[bytes, ...]
    merges: tuple[tuple[int, int], ...]
    special: dict[str, int]
    added: dict[str, AddedToken]


def _assemble(
    path: str | Path,
    vocab: Mapping[str, int],
    pairs: Sequence[Sequence[str]],
    added: Mapping[str, AddedToken],
) -> Table:
    for pair in pairs:
        if len(pair) != 2 or pair[0] not in vocab or pair[1] not in vocab:
            raise ValueError(f"{path}: the merge {' '.join(pair)!r} must join two tokens")
    everything = {**vocab, **{name: token.id for name, token in added.items()}}
    shown: dict[int, str] = {}
    for name, number in everything.items():
        if shown.setdefault(number, name) != name:
            raise ValueError(f"{path}: {shown[number]!r} and {name!r} have the one id {number}")
    if sorted(shown) != list(range(len(shown))):
        raise ValueError(f"{path}: the ids must be 0, ..., {len(shown) - 1} without a gap")
    # An added token may be one that merges make: then it stands for bytes, like any other.
    spelled = {left + right for left, right in pairs} | _TO_BYTE.keys()
    texts = set(added) - (spelled & vocab.keys())
    tokens = []
    for number in range(len(shown)):
        name = shown[number]
        strange = name not in texts and set(name) - _TO_BYTE.keys()
        if strange:
            raise ValueError(f"{path}: token {name!r} is not written in the characters of bytes")
        tokens.append(name.encode() if name in texts else bytes(_TO_BYTE[char] for char in name))
    special = {name: token.id for name, token in added.items() if token.special}
    flagged = {name: token for name, token in added.items() if token != AddedToken(token.id)}
    merges = tuple((vocab[left], vocab[right]) for left, right in pairs)
    return Table(tuple(tokens), merges, special, flagged)


def read_document(path: str | Path) -> Table:
    """Read a ``tokenizer.json``."""
    document: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    model, cutter = document.get("model") or {}, document.get("pre_tokenizer") or {}
    kind = (model.get("type"), cutter.get("type"), cutter.get("add_prefix_space"))
    if (
        kind != ("BPE", "ByteLevel", False)
        or not cutter.get("use_regex", True)
        or document.get("normalizer")
        or model.get("ignore_merges")
    ):
        raise ValueError(
            f"{path} must hold a BPE model with ByteLevel pre-tokenization, no prefix space "
            f"and no normalizer, got model, pre-tokenizer and prefix space {kind}"
        )
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ValueError(f"{path}: a model with {name} = {model[name]!r} is not supported")
    added: dict[str, AddedToken] = {}
    for entry in document.get("added_tokens") or []:
        if entry.get("single_word"):
            raise ValueError(
                f"{path}: the added token {entry['content']!r} is matched as a single word only, "
                "which is not supported: set single_word to false"
            )
        flags = {name: bool(entry.get(name)) for name in ("special", "lstrip", "rstrip")}
        added[entry["content"]] = AddedToken(
            int(entry["id"]), **flags, normalized=bool(entry.get("normalized"))
        )
    pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    return _assemble(path, model["vocab"], pairs, added)


def read_gpt2(vocab: str | Path, merges: str | Path) -> Table:
    """Read GPT-2's two files. What no merge makes, and is no byte, is special."""
    table: dict[str, int] = json.loads(Path(vocab).read_text(encoding="utf-8"))
    lines = Path(merges).read_text(encoding="utf-8").split("\n")
    if lines[0].startswith("#version"):
        lines = lines[1:]
    pairs = [line.rstrip("\r").split(" ") for line in lines if line.strip()]
    made = {"".join(pair) for pair in pairs} | _TO_BYTE.keys()
    added = {name: AddedToken(number) for name, number in table.items() if name not in made}
    return _assemble(merges, table, pairs, added)


def write_document(
    path: str | Path,
    tokens: Sequence[bytes],
    merges: Iterable[tuple[int, int]],
    added: Mapping[str, AddedToken],
) -> None:
    """Write a ``tokenizer.json``."""
    names = {token.id: name for name, token in added.items()}
    shown = [names.get(i) or "".join(_TO_CHAR[b] for b in t) for i, t in enumerate(tokens)]
    if len(set(shown)) < len(shown):
        double = next(name for name, many in Counter(shown).items() if many > 1)
        raise ValueError(f"two tokens are written {double!r}, so a JSON table cannot hold them")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    entries = [
        {
            "id": token.id,
            "content": name,
            "single_word": False,
            "lstrip": token.lstrip,
            "rstrip": token.rstrip,
            "normalized": token.normalized,
            "special": token.special,
        }
        for name, token in added.items()
    ]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": entries,
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {name: i for i, name in enumerate(shown)},
            "merges": [[shown[left], shown[right]] for left, right in merges],
        },
    }
    text = json.dumps(document, ensure_ascii=False, indent=1)
    Path(path).write_text(text + "\n", encoding="utf-8")
