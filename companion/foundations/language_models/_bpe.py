r"""Byte-level byte-pair encoding: training, encoding, decoding, streaming.

Ids are given in the order of the ``tokenizers`` library: special tokens, then the 256 bytes in
GPT-2's order (printable ones first), then one id for each merge.
"""

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion.core import check_count
from companion.foundations.language_models._merges import learn, replay
from companion.foundations.language_models._pretokenize import pattern

__all__ = ["BPE"]

# Printable bytes stand for themselves; the rest take the characters from U+0100 on, so that every
# token can be written as visible text. Ids follow the order of these characters.
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_BYTES = (*_PRINTABLE, *(byte for byte in range(256) if byte not in _PRINTABLE))
_TO_CHAR = {b: chr(b if b in _PRINTABLE else 256 + i - 188) for i, b in enumerate(_BYTES)}
_TO_BYTE = {char: byte for byte, char in _TO_CHAR.items()}

# Bytes that are not valid UTF-8 pass through as lone surrogates, one each (PEP 383).
_ESCAPE = "surrogateescape"
_CACHED_PIECES = 1 << 16
_CACHED_LENGTH = 64


class _Cache(dict[str, list[int]]):
    """Ids of the pieces seen, for each piece until there are too many."""

    def __init__(self, ranks: dict[tuple[int, int], int], tokens: "BPE") -> None:
        super().__init__()
        self._ranks = ranks
        self._products = tokens._products
        self._byte_ids = tokens._byte_ids

    def __missing__(self, piece: str) -> list[int]:
        data = piece.encode("utf-8", _ESCAPE)
        ids = replay([self._byte_ids[byte] for byte in data], self._ranks, self._products)
        if len(piece) <= _CACHED_LENGTH:
            if len(self) >= _CACHED_PIECES:
                self.clear()
            self[piece] = ids
        return ids


@dataclass(frozen=True)
class BPE:
    r"""A byte-level BPE tokenizer.

    Training starts from single bytes. It repeats: count the pairs of neighbors inside the pieces
    of :func:`pretokenize`, and join the most frequent pair everywhere into one new token. Encoding
    replays the merges in the order in which they were learned. Every token stands for a fixed
    string of bytes, so decoding only joins strings, and any bytes survive the round trip.

    Attributes:
        tokens: For each id its bytes; for a special token its text in UTF-8.
        merges: The pairs of ids in the order in which they were learned.
        special_tokens: The text of each special token and its id. Text never turns into them
            unless the caller allows it.

    Raises:
        ValueError: If a byte is missing among the tokens, or a merge has no product there.

    References:
        R. Sennrich et al., arXiv:1508.07909, algorithm 1; on bytes: Radford et al. 2019, section
        2.2. Merges and ids equal those of the ``tokenizers`` library on the same text: ties go to
        the smaller pair of ids. One deviation: a merge may spell the text of a special token and
        still gets an id of its own.

    Book:
        :doc:`/book/foundations/language_models`

    Example:
        >>> bpe = BPE.train("low low low lower", vocab_size=259, special_tokens=["<end>"])
        >>> [bpe.tokens[i] for i in bpe.encode("slow")]
        [b's', b'low']
        >>> bpe.decode(bpe.encode("十 slow"))
        '十 slow'
    """

    tokens: tuple[bytes, ...]
    merges: tuple[tuple[int, int], ...]
    special_tokens: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, number in self.special_tokens.items():
            if not (name and 0 <= number < len(self.tokens)):
                raise ValueError(f"special token {name!r} needs a text and an id, got id {number}")
        missing = [byte for byte in range(256) if bytes([byte]) not in self._ids]
        if missing:
            raise ValueError(f"{len(missing)} bytes have no token, the first is {missing[0]}")
        _ = self._products  # raises where a merge has no product

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"BPE({len(self)} tokens, {len(self.special_tokens)} of them special)"

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        special = set(self.special_tokens.values())
        return {token: i for i, token in enumerate(self.tokens) if i not in special}

    @cached_property
    def _byte_ids(self) -> list[int]:
        return [self._ids[bytes([byte])] for byte in range(256)]

    @cached_property
    def _products(self) -> list[int]:
        made = []
        for left, right in self.merges:
            token = self.tokens[left] + self.tokens[right]
            if token not in self._ids:
                raise ValueError(f"the merge of {left} and {right} gives {token!r}, not a token")
            made.append(self._ids[token])
        return made

    @cached_property
    def _cache(self) -> _Cache:
        return _Cache({pair: rank for rank, pair in enumerate(self.merges)}, self)

    @cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        return _special_pattern(self.special_tokens)

    @classmethod
    def train(
        cls,
        texts: str | bytes | Iterable[str | bytes],
        *,
        vocab_size: int,
        special_tokens: Sequence[str] = (),
        min_frequency: int = 1,
    ) -> "BPE":
        """Learn the merges from text.

        Args:
            texts: One text, or several. No pair crosses from one into the next. Where a special
                token occurs in a text it is cut out first.
            vocab_size: Number of tokens to reach, special tokens and 256 bytes included. Training
                ends below it when no pair is left.
            special_tokens: Texts that get the first ids and are never learned from, such as
                ``"<|endoftext|>"``.
            min_frequency: A pair must occur at least this often to be merged.

        Returns:
            The tokenizer.

        Raises:
            ValueError: If the vocabulary has no room, a special token is empty or repeated, or a
                text holds a lone surrogate.

        Numerics:
            A heap holds the pairs by count, and an index the pieces in which each occurs, so a
            merge costs as much as the pieces it changes. Counts of pairs that lost an occurrence
            are corrected when they come to the top.
        """
        first = len(special_tokens) + 256
        if vocab_size < first:
            raise ValueError(
                f"vocab_size must be at least {first}, {len(special_tokens)} special tokens and "
                f"256 bytes, got {vocab_size}"
            )
        if len(set(special_tokens)) < len(special_tokens):
            raise ValueError(f"special tokens must differ, got {list(special_tokens)}")
        pieces: Counter[str] = Counter()
        special = _special_pattern(special_tokens)
        for text in [texts] if isinstance(texts, (str, bytes)) else texts:
            whole = _as_str(text)
            for part in [whole] if special is None else special.split(whole)[::2]:
                pieces.update(pattern().findall(part))
        ids = {byte: len(special_tokens) + i for i, byte in enumerate(_BYTES)}
        words = [[ids[byte] for byte in piece.encode("utf-8", _ESCAPE)] for piece in pieces]
        merges = learn(
            words, list(pieces.values()), first=first, end=vocab_size, least=max(1, min_frequency)
        )
        tokens = [name.encode() for name in special_tokens] + [bytes([byte]) for byte in _BYTES]
        for left, right in merges:
            tokens.append(tokens[left] + tokens[right])
        return cls(tuple(tokens), tuple(merges), {n: i for i, n in enumerate(special_tokens)})

    def encode(self, text: str | bytes, *, allow_special: bool = False) -> list[int]:
        """Turn text into ids.

        Args:
            text: Text, or any bytes.
            allow_special: Whether the text of a special token becomes its id (the longest one
                that fits). Leave it off for text from outside, which could otherwise forge an end
                of text.

        Returns:
            The ids.

        Raises:
            ValueError: If a ``str`` holds a lone surrogate, which no UTF-8 text does.

        Numerics:
            A piece of m bytes costs O(m log m) the first time; the last 65,536 short pieces are
            remembered.
        """
        special = self._special_pattern if allow_special else None
        return [i for part in self._parts(_as_str(text), special) for i in part[1]]

    def encode_file(
        self, path: str | Path, *, allow_special: bool = False, block: int = 1 << 20
    ) -> Iterator[list[int]]:
        """Turn a file into ids, block by block.

        The ids of all blocks together are those of the whole file: a block ends where no later
        text can change the cut.

        Args:
            path: The file, of any bytes.
            allow_special: See :meth:`encode`.
            block: Bytes that are read at a time, 1 or more.

        Yields:
            The ids of one block.

        Raises:
            ValueError: If ``block`` is below 1.

        Numerics:
            Memory is that of a few blocks, or of the longest piece of the text if that is longer.
        """
        check_count("block", block, low=1)
        special = self._special_pattern if allow_special else None
        # The decision where a piece ends has looked at no more than two further characters, and
        # a special token that starts in the piece would be seen up to its end.
        margin = 2 + (max(map(len, self.special_tokens)) if special else 0)
        decoder = codecs.getincrementaldecoder("utf-8")(_ESCAPE)
        rest = ""
        with Path(path).open("rb") as file:
            while True:
                # A piece longer than a block: read twice as much, so the work stays linear.
                data = file.read(max(block, len(rest)))
                rest += decoder.decode(data, final=not data)
                if not data:
                    break
                ids, done = [], 0
                for end, part in self._parts(rest, special, by_piece=True):
                    if end > len(rest) - margin:
                        break
                    ids.append(part)
                    done = end
                rest = rest[done:]
                if ids:
                    yield list(chain.from_iterable(ids))
        if rest:
            yield [i for part in self._parts(rest, special) for i in part[1]]

    def _parts(
        self, text: str, special: re.Pattern[str] | None, *, by_piece: bool = False
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield the end of each part of the text and its ids."""
        start = 0
        cuts = [] if special is None else [match.span() for match in special.finditer(text)]
        for low, high in [*cuts, (len(text), len(text))]:
            if by_piece:
                for match in pattern().finditer(text, start, low):
                    yield match.end(), self._cache[match[0]]
            else:
                found = pattern().findall(text, start, low)
                yield low, list(chain.from_iterable(map(self._cache.__getitem__, found)))
            if high > low:
                yield high, [self.special_tokens[text[low:high]]]
            start = high

    def decode_bytes(self, ids: Sequence[int] | Tensor) -> bytes:
        """Turn ids into the bytes that they stand for.

        Args:
            ids: The ids.

        Returns:
            The bytes; of :meth:`encode` they are exactly the ones that were encoded.

        Raises:
            ValueError: If an id is outside the vocabulary.
        """
        listed = ids.tolist() if isinstance(ids, torch.Tensor) else list(ids)
        wrong = [i for i in listed if not 0 <= i < len(self.tokens)]
        if wrong:
            raise ValueError(f"ids must lie in [0, {len(self.tokens)}), got {wrong[0]}")
        return b"".join([self.tokens[i] for i in listed])

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Turn ids into text.

        Args:
            ids: The ids.

        Returns:
            The text. Bytes that are not valid UTF-8, such as half a Chinese character, show as
            U+FFFD; use :meth:`decode_bytes` where nothing may be lost.

        Raises:
            ValueError: If an id is outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as a ``tokenizer.json`` that the ``tokenizers`` library reads.

        Args:
            path: The file.

        Raises:
            ValueError: If a merge spells a special token, for which that format has no place.
        """
        names = {i: name for name, i in self.special_tokens.items()}
        shown = [names.get(i) or "".join(_TO_CHAR[b] for b in t) for i, t in enumerate(self.tokens)]
        if len(set(shown)) < len(shown):
            double = next(name for name, many in Counter(shown).items() if many > 1)
            raise ValueError(f"two tokens are written {double!r}, so a JSON table cannot hold them")
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        document = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": i, "content": name, **flags, "special": True}
                for name, i in self.special_tokens.items()
            ],
            "normalizer": None,
            "pre_tokenizer": {**byte_level, "use_regex": True},
            "post_processor": None,
            "decoder": {**byte_level, "use_regex": True},
            "model": {
                "type": "BPE",
                "vocab": {name: i for i, name in enumerate(shown)},
                "merges": [[shown[left], shown[right]] for left, right in self.merges],
            },
        }
        text = json.dumps(document, ensure_ascii=False, indent=1)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "BPE":
        """Read a ``tokenizer.json`` of a byte-level BPE, written by :meth:`save` or elsewhere.

        Args:
            path: The file.

        Returns:
            The tokenizer.

        Raises:
            ValueError: If the file describes another kind of tokenizer, or one that normalizes or
                cuts its text differently.
        """
        document: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        model, cutter = document["model"], document["pre_tokenizer"] or {}
        kind = (model.get("type"), cutter.get("type"), cutter.get("add_prefix_space"))
        if (
            kind != ("BPE", "ByteLevel", False)
            or not cutter.get("use_regex", True)
            or document["normalizer"]
            or model.get("ignore_merges")
        ):
            raise ValueError(
                f"{path} must hold a BPE model with ByteLevel pre-tokenization, no prefix space "
                f"and no normalizer, got model, pre-tokenizer and prefix space {kind}"
            )
        special = {token["content"]: int(token["id"]) for token in document["added_tokens"]}
        vocab: dict[str, int] = {**model["vocab"], **special}
        shown = sorted(vocab, key=vocab.__getitem__)
        if [vocab[name] for name in shown] != list(range(len(shown))):
            raise ValueError(f"{path}: the ids must be 0, ..., {len(shown) - 1} without a gap")
        tokens = [
            name.encode() if name in special else bytes([_TO_BYTE[char] for char in name])
            for name in shown
        ]
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        merges = tuple((vocab[left], vocab[right]) for left, right in pairs)
        return cls(tuple(tokens), merges, special)


def _as_str(text: str | bytes) -> str:
    if isinstance(text, bytes):
        return text.decode("utf-8", _ESCAPE)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text holds the lone surrogate U+{ord(text[error.start]):04X} at {error.start}, which "
            "is no character: pass the original bytes instead"
        ) from error
    return text


def _special_pattern(names: Iterable[str]) -> re.Pattern[str] | None:
    ordered = sorted(names, key=len, reverse=True)
    if "" in ordered:
        raise ValueError("a special token must not be empty")
    return re.compile("(" + "|".join(map(re.escape, ordered)) + ")") if ordered else None
