r"""Byte-level byte-pair encoding: training, encoding, decoding, streaming.

Ids are given in the order of the ``tokenizers`` library: special tokens, then the 256 bytes in
GPT-2's order (printable ones first), then one id for each merge.
"""

import codecs
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from companion.core import check_count, check_several
from companion.foundations.language_models._added import AddedToken, cut_out, one_of
from companion.foundations.language_models._bpe_files import (
    BYTES,
    Table,
    read_document,
    read_gpt2,
    write_document,
)
from companion.foundations.language_models._merges import learn, replay
from companion.foundations.language_models._pretokenize import pattern

__all__ = ["BPE"]

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
            unless the caller allows it, or a merge of a loaded tokenizer makes that very id.
        added_tokens: How tokens are matched that are not special, or take the white space around
            them; none by default.

    Raises:
        ValueError: If a byte is missing among the tokens, a merge has no product there, or a
            special or added token has no text or no id.

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
    added_tokens: dict[str, AddedToken] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, token in self._added.items():
            if not (name and 0 <= token.id < len(self.tokens)):
                raise ValueError(
                    f"special token {name!r} needs a text and an id, got id {token.id}"
                )
        missing = [byte for byte in range(256) if bytes([byte]) not in self._ids]
        if missing:
            raise ValueError(f"{len(missing)} bytes have no token, the first is {missing[0]}")
        _ = self._products  # raises where a merge has no product

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"BPE({len(self)} tokens, {len(self.special_tokens)} of them special)"

    @cached_property
    def _added(self) -> dict[str, AddedToken]:
        plain = {name: AddedToken(number) for name, number in self.special_tokens.items()}
        return plain | self.added_tokens

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str] | None, ...]:
        first = [name for name, token in self._added.items() if not token.normalized]
        return one_of(first), one_of(self._added.keys() - set(first))

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        # Of two tokens for one string of bytes a merge makes the one that was not added.
        added = {token.id for token in self._added.values()}
        ordered = sorted(range(len(self)), key=lambda i: i in added, reverse=True)
        return {self.tokens[i]: i for i in ordered}

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
            ValueError: If the vocabulary has no room, a special token is empty or repeated, one
                text stands where several special tokens are meant, or a text holds a lone
                surrogate.

        Numerics:
            A heap holds the pairs by count, and an index the pieces in which each occurs, so a
            merge costs as much as the pieces it changes. Counts of pairs that lost an occurrence
            are corrected when they come to the top.
        """
        check_several("special_tokens", special_tokens)
        first = len(special_tokens) + 256
        if vocab_size < first:
            raise ValueError(
                f"vocab_size must be at least {first}, {len(special_tokens)} special tokens and "
                f"256 bytes, got {vocab_size}"
            )
        if len(set(special_tokens)) < len(special_tokens):
            raise ValueError(f"special tokens must differ, got {list(special_tokens)}")
        pieces: Counter[str] = Counter()
        special = one_of(special_tokens)
        for text in [texts] if isinstance(texts, (str, bytes)) else texts:
            whole = _as_str(text)
            for part in [whole] if special is None else special.split(whole)[::2]:
                pieces.update(pattern().findall(part))
        ids = {byte: len(special_tokens) + i for i, byte in enumerate(BYTES)}
        words = [[ids[byte] for byte in piece.encode("utf-8", _ESCAPE)] for piece in pieces]
        merges = learn(
            words, list(pieces.values()), first=first, end=vocab_size, least=max(1, min_frequency)
        )
        tokens = _first_tokens(special_tokens)
        for left, right in merges:
            tokens.append(tokens[left] + tokens[right])
        return cls(tuple(tokens), tuple(merges), {n: i for i, n in enumerate(special_tokens)})

    @classmethod
    def from_merges(
        cls, merges: Iterable[tuple[bytes, bytes]], *, special_tokens: Sequence[str] = ()
    ) -> "BPE":
        """Make a tokenizer of merges given as pairs of byte strings.

        Args:
            merges: The pairs in the order in which they are replayed. Each side is a single byte
                or made by an earlier pair.
            special_tokens: Texts that get the first ids.

        Returns:
            The tokenizer: special tokens, then the 256 bytes, then one token for each pair that
            makes a new string.

        Raises:
            ValueError: If a side is not made by an earlier pair, a pair comes twice, or special
                tokens repeat or are one text.

        Example:
            >>> bpe = BPE.from_merges([(b"l", b"o"), (b"lo", b"w")])
            >>> [bpe.tokens[i] for i in bpe.encode("low lot")]
            [b'low', b' ', b'lo', b't']
        """
        check_several("special_tokens", special_tokens)
        if len(set(special_tokens)) < len(special_tokens):
            raise ValueError(f"special tokens must differ, got {list(special_tokens)}")
        tokens = _first_tokens(special_tokens)
        ids = {token: i for i, token in enumerate(tokens) if i >= len(special_tokens)}
        made: dict[tuple[int, int], None] = {}
        for left, right in merges:
            if left not in ids or right not in ids:
                raise ValueError(
                    f"the pair {(left, right)} must join bytes or what earlier pairs made"
                )
            pair = (ids[left], ids[right])
            if pair in made:
                raise ValueError(f"the pair {(left, right)} comes twice")
            made[pair] = None
            if left + right not in ids:
                ids[left + right] = len(tokens)
                tokens.append(left + right)
        return cls(tuple(tokens), tuple(made), {n: i for i, n in enumerate(special_tokens)})

    def encode(self, text: str | bytes, *, allow_special: bool = False) -> list[int]:
        """Turn text into ids.

        Args:
            text: Text, or any bytes.
            allow_special: Whether the text of a special token becomes its id (the longest one
                that fits). Leave it off for text from outside, which could otherwise forge an end
                of text. Added tokens that are not special become ids in any case.

        Returns:
            The ids.

        Raises:
            ValueError: If a ``str`` holds a lone surrogate, which no UTF-8 text does.

        Numerics:
            A piece of m bytes costs O(m log m) the first time; the last 65,536 short pieces are
            remembered.
        """
        return [i for part in self._parts(_as_str(text), allow_special) for i in part[1]]

    def encode_file(
        self, path: str | Path, *, allow_special: bool = False, block: int = 1 << 20
    ) -> Iterator[list[int]]:
        """Turn a file into ids, block by block: :meth:`encode_stream` of the opened file.

        Args:
            path: The file, of any bytes.
            allow_special: See :meth:`encode`.
            block: Bytes that are read at a time, 1 or more.

        Yields:
            The ids of one block.

        Raises:
            ValueError: If ``block`` is below 1.
        """
        check_count("block", block, low=1)
        with Path(path).open("rb") as file:
            yield from self.encode_stream(file, allow_special=allow_special, block=block)

    def encode_stream(
        self,
        source: str | bytes | IO[str] | IO[bytes] | Iterable[str | bytes],
        *,
        allow_special: bool = False,
        block: int = 1 << 20,
    ) -> Iterator[list[int]]:
        """Turn an open file, or a text that comes in parts, into ids.

        All ids together are those of the whole text, wherever its parts were cut: ids leave as
        soon as no later text can change them.

        Args:
            source: A file opened for text or for bytes, or any iterable of parts, cut anywhere,
                also inside a character of bytes. Where documents must not touch, call
                :meth:`encode` for each, or put a special token between them.
            allow_special: See :meth:`encode`.
            block: Characters or bytes that are taken at a time, 1 or more.

        Yields:
            The ids of one block.

        Raises:
            ValueError: If ``block`` is below 1, or a part of text holds a lone surrogate.

        Numerics:
            Memory is that of a few blocks, or of the longest piece of the text or the longest part
            of an iterable if that is longer.

        Example:
            >>> bpe = BPE.from_merges([(b"l", b"o"), (b"lo", b"w")])
            >>> [bpe.tokens[i] for ids in bpe.encode_stream(["l", "ow"]) for i in ids]
            [b'low']
        """
        check_count("block", block, low=1)
        # The decision where a piece ends has looked at no more than two further characters, and
        # an added token that starts in the piece would be seen up to its end. White space before
        # an added token is one piece with it, so what strips it needs no more.
        margin = 2 + max(map(len, self._added), default=0)
        decoder = codecs.getincrementaldecoder("utf-8")(_ESCAPE)
        rest, held = "", [0]
        for part in _blocks(source, block, held):
            if isinstance(part, str):
                rest += decoder.decode(b"", final=True) + _as_str(part)
            else:
                rest += decoder.decode(part)
            ids, done = [], 0
            for end, found in self._parts(rest, allow_special, by_piece=True):
                if end > len(rest) - margin:
                    break
                ids.append(found)
                done = end
            rest = rest[done:]
            held[0] = len(rest)
            if ids:
                yield list(chain.from_iterable(ids))
        rest += decoder.decode(b"", final=True)
        if rest:
            yield [i for part in self._parts(rest, allow_special) for i in part[1]]

    def _parts(
        self, text: str, allow_special: bool, *, by_piece: bool = False
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield the end of each part of the text and its ids."""
        start = 0
        cuts = cut_out(text, self._added, self._patterns, allow_special=allow_special)
        for low, high, number in [*cuts, (len(text), len(text), -1)]:
            if by_piece:
                for match in pattern().finditer(text, start, low):
                    yield match.end(), self._cache[match[0]]
            else:
                found = pattern().findall(text, start, low)
                yield low, list(chain.from_iterable(map(self._cache.__getitem__, found)))
            if number >= 0:
                yield high, [number]
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
        write_document(path, self.tokens, self.merges, self._added)

    @classmethod
    def load(cls, path: str | Path) -> "BPE":
        """Read a ``tokenizer.json`` of a byte-level BPE, written by :meth:`save` or elsewhere.

        Added tokens are matched as that library does: those that are not special always, with the
        white space that their flags ``lstrip`` and ``rstrip`` give them. Truncation, padding and
        what a post-processor puts around a text are left to the caller.

        Args:
            path: The file.

        Returns:
            The tokenizer.

        Raises:
            ValueError: If the file describes another kind of tokenizer, one that normalizes or
                cuts its text differently, draws its merges (``dropout``), or matches an added
                token as a single word only; or if ids have gaps.
        """
        return cls._of(read_document(path))

    @classmethod
    def load_gpt2(cls, vocab: str | Path, merges: str | Path) -> "BPE":
        """Read the two files of GPT-2: a table of ids, and the merges, one a line.

        Args:
            vocab: The table, ``vocab.json`` (``encoder.json`` in the first release).
            merges: The merges, ``merges.txt`` (``vocab.bpe``).

        Returns:
            The tokenizer. A token of the table that is neither a byte nor made by a merge is
            special, as is ``<|endoftext|>``.

        Raises:
            ValueError: If a merge joins what is no token, bytes are missing, or ids have gaps.
        """
        return cls._of(read_gpt2(vocab, merges))

    @classmethod
    def _of(cls, table: Table) -> "BPE":
        return cls(table.tokens, table.merges, table.special, table.added)


def _first_tokens(special: Sequence[str]) -> list[bytes]:
    return [name.encode() for name in special] + [bytes([byte]) for byte in BYTES]


def _blocks(
    source: str | bytes | IO[str] | IO[bytes] | Iterable[str | bytes], block: int, held: list[int]
) -> Iterator[str | bytes]:
    """Parts of about a block each, and of as much as is held where that is more.

    Where a piece is longer than a block, twice as much is read each time: the work stays linear.
    """
    read = getattr(source, "read", None)
    if read is not None:
        while data := read(max(block, held[0])):
            yield data
        return
    waiting: list[Any] = []
    size = 0
    for part in [source] if isinstance(source, str | bytes) else source:
        if waiting and (size >= max(block, held[0]) or not isinstance(part, type(waiting[0]))):
            yield waiting[0][:0].join(waiting)
            waiting, size = [], 0
        waiting.append(part)
        size += len(part)
    if waiting:
        yield waiting[0][:0].join(waiting)


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
