"""From text files to a tokenizer and two rows of token ids on disk, for the training command."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

from companion.command._options import LARGEST, path_of
from companion.core._storage import write_atomically

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = [
    "END",
    "FILES",
    "WORK",
    "Corpus",
    "prepare",
    "read_documents",
    "read_json",
    "read_tokenizer",
    "split",
    "text_hash",
]

#: Folder of what only the training itself needs, inside that of the model.
WORK = "run"

#: What :func:`prepare` writes.
FILES = ("tokenizer.json", "train.bin", "held_out.bin", "corpus.json")

#: Stands before every document, and so after the one before it.
END = "<|endoftext|>"

# Ends of documents under the names that common tokenizers give them.
_KNOWN_ENDS = (END, "<|end_of_text|>", "</s>", "<|im_end|>", "<eos>", "[SEP]")

# Characters that are tokenized at once; several such pieces are in work on as many cores.
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What :func:`prepare` has put on disk.

    Attributes:
        vocab: One more than the largest token id.
        end: Id of the token between documents.
        train_tokens: Tokens to learn from.
        train_bytes: Bytes of their text as UTF-8 that the tokens tell.
        train_lost: Bytes of their text that the tokens do not tell.
        held_out_tokens: Tokens to be tested on.
        held_out_bytes: Bytes of their text as UTF-8 that the tokens tell.
        held_out_lost: Bytes of their text that the tokens do not tell.
    """

    vocab: int
    end: int
    train_tokens: int
    train_bytes: int
    train_lost: int = 0
    held_out_tokens: int
    held_out_bytes: int
    held_out_lost: int = 0

    def ids(self, folder: Path, name: str) -> Integer[Tensor, " n"]:
        """Map one of the two rows into memory.

        Args:
            folder: Where it lies.
            name: ``"train"`` or ``"held_out"``.

        Returns:
            The ids, read from disk as they are used.

        Raises:
            ValueError: If the file is missing, or is not as long as it was.
        """
        size: int = getattr(self, f"{name}_tokens")
        dtype = torch.uint16 if _narrow(self.vocab) else torch.int32
        path = folder / f"{name}.bin"
        have, want = path.stat().st_size if path.is_file() else -1, size * dtype.itemsize
        if have != want:
            what = "is missing" if have < 0 else f"has {have} bytes in place of {want}"
            raise ValueError(f"{path} {what}: {_ANEW}")
        return torch.from_file(str(path), shared=False, size=size, dtype=dtype)

    @classmethod
    def read(cls, folder: Path) -> "Corpus":
        """Read the description of what is on disk.

        Args:
            folder: Where it lies.

        Returns:
            The description.

        Raises:
            ValueError: If it is missing or damaged.
        """
        told = read_json(folder / "corpus.json")
        known = {field.name for field in fields(cls)}
        whole = all(type(value) is int and value >= 0 for value in told.values())
        try:
            if not whole or not set(told) <= known:
                raise TypeError
            return cls(**told)
        except TypeError:
            raise ValueError(f"{folder / 'corpus.json'} is damaged: {_ANEW}") from None


def read_tokenizer(folder: Path) -> str:
    """Read the tokenizer of a run.

    Args:
        folder: Where it lies.

    Returns:
        The content of its file.

    Raises:
        ValueError: If it is missing or damaged.
    """
    path = folder / "tokenizer.json"
    read_json(path)
    content = path.read_text(encoding="utf-8")
    try:
        _load(str(path), content)
    except ValueError:
        raise ValueError(f"{path} is damaged: {_ANEW}") from None
    return content


_ANEW = "the run cannot go on; delete its folder to begin anew, or choose another one"


def read_json(path: Path) -> dict[str, Any]:
    """Read what a run has noted about itself.

    Args:
        path: The file.

    Returns:
        What it holds.

    Raises:
        ValueError: If it is missing or damaged.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {_ANEW}") from None
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise ValueError(f"{path} is damaged: {_ANEW}")
    return told


def _narrow(vocab: int) -> bool:
    return vocab <= 1 << 16


def _no_note(text: str) -> None:
    pass


def read_documents(
    paths: Sequence[str | Path],
    *,
    out: Path | None = None,
    note: Callable[[str], object] = _no_note,
) -> list[str]:
    """Read text files, and all ``.txt`` files of folders in the order of their names.

    Of a folder is left out what is hidden, what is no file, what links lead to that end nowhere,
    folders that links lead to, and folders in which a run has written: a model is not to learn
    from its own samples. A file that is named twice is read once, lest a model be tested on what
    it has learned. Files that are named may be pipes.

    Args:
        paths: Files and folders; ``"-"`` is the standard input.
        out: Folder of this run, which is left out of the others.
        note: Is told what was left out and may be missed.

    Returns:
        Their texts, line ends as they are, without the mark of Unicode before the first byte.

    Raises:
        ValueError: If a file is missing, is not UTF-8, or there is no text at all.
    """
    files: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for given in paths:
        path = path_of(given, name="a text")
        if path.is_dir():
            inside = sorted(_inside(path, out, note))
            if not inside:
                raise ValueError(f"{path} holds no .txt file")
        elif path.exists() or path == Path("-"):
            inside = [path]
        else:
            broken = ": it is a link that leads nowhere" if path.is_symlink() else ""
            raise ValueError(f"{path} does not exist{broken}")
        for file in inside:
            if file.is_file():
                found = file.stat()
                if (found.st_dev, found.st_ino) in seen:
                    note(f"{file} is read once, though it was named more than once")
                    continue
                seen.add((found.st_dev, found.st_ino))
            files.append(file)
    texts = [text for text in map(_read, files) if text.strip()]
    if not texts:
        raise ValueError("the text is empty")
    return texts


def _inside(folder: Path, out: Path | None, note: Callable[[str], object]) -> Iterator[Path]:
    """The text files of a folder and of those in it."""

    def refuse(error: OSError) -> None:
        raise error

    own = None if out is None else out.resolve()
    for root, folders, names in os.walk(folder, onerror=refuse):
        here = Path(root)
        kept = []
        for name in folders:
            path = here / name
            if name.startswith(".") or path.resolve() == own:
                continue
            if path.is_symlink():
                note(f"{path} is left out: it is a link to a folder")
            elif (path / WORK / "settings.json").is_file():
                note(f"{path} is left out: it is the folder of a run")
            else:
                kept.append(name)
        folders[:] = kept
        for name in names:
            path = here / name
            if name.startswith(".") or not name.endswith(".txt"):
                continue
            if path.is_file():
                yield path
            else:
                note(f"{path} is left out: it is no file")


def _read(path: Path) -> str:
    with ExitStack() as opened:
        file = sys.stdin.buffer if path == Path("-") else opened.enter_context(path.open("rb"))
        if (path.is_block_device() or path.is_char_device()) and not file.isatty():
            raise ValueError(f"{path} is a device and no text")  # some never end
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        what = "it is UTF-16, so convert it first" if wide else str(error)
        raise ValueError(f"{path} is not UTF-8 text: {what}") from None
    if "\0" in text:
        raise ValueError(f"{path} is not text: it holds zero bytes")
    return text


def text_hash(documents: Sequence[str]) -> str:
    """Return a number that another text will not have.

    Args:
        documents: The texts.

    Returns:
        SHA-256 of the texts, in hexadecimal.
    """
    made = hashlib.sha256()
    for text in documents:
        encoded = text.encode("utf-8")
        made.update(len(encoded).to_bytes(8, "little") + encoded)
    return made.hexdigest()


def split(documents: Sequence[str], *, share: float) -> tuple[list[str], list[str]]:
    r"""Hold out the end of the texts, from the beginning of a line on where lines are short.

    Args:
        documents: The texts.
        share: Of their characters, in [0, 1).

    Returns:
        What to learn from, and what to be tested on.

    Raises:
        ValueError: If the share is out of its domain, or nothing is left to learn from.

    Example:
        >>> split(["one\ntwo\n", "three\nfour\n"], share=0.4)
        (['one\ntwo\n', 'three\n'], ['four\n'])
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share that is held out must lie in [0, 1), got {share}")
    kept, left = list(documents), round(share * sum(len(text) for text in documents))
    held: list[str] = []
    while left > 0 and kept:
        text = kept.pop()
        cut = max(0, len(text) - left)
        # Where a line begins soon after, the cut is moved there.
        newline = text.find("\n", max(cut - 1, 0), cut + max(left // 2, 1))
        cut = newline + 1 if cut > 0 and 0 <= newline < len(text) - 1 else cut
        held.insert(0, text[cut:])
        if cut:
            kept.append(text[:cut])
        left -= len(text)
    if not kept:
        raise ValueError("all text is held out: nothing is left to learn from")
    return kept, held


def prepare(
    folder: Path,
    train: Sequence[str],
    held_out: Sequence[str],
    *,
    vocab: int,
    tokenizer: tuple[str, str] | None,
    note: Callable[[str], object] = _no_note,
) -> Corpus:
    """Learn a tokenizer, or take one, and write both rows of ids.

    A tokenizer of others may lose text: it knows no token for a character, leaves out white space,
    or reads capitals as small letters. What is lost is not counted among the bytes, so that bits
    per byte are those of the text that the tokens tell. One that loses half or more is refused.

    Args:
        folder: Where the files go.
        train: Texts to learn from; the tokenizer sees no others.
        held_out: Texts to be tested on.
        vocab: Most token ids of the tokenizer.
        tokenizer: Name and content of a ``tokenizer.json`` to use in place of a new one.
        note: Is told what is lost.

    Returns:
        The description, which is also on disk, and is written last.

    Raises:
        ValueError: If the tokenizer cannot be read, marks no end of a document, or loses too much.
    """
    made = _learn(train, vocab) if tokenizer is None else _load(*tokenizer)
    name = "" if tokenizer is None else tokenizer[0]
    end = next((i for t in _KNOWN_ENDS if (i := made.token_to_id(t)) is not None), None)
    if end is None:
        raise ValueError(
            f"{name} has no token for the end of a document: "
            f"it needs one of {', '.join(_KNOWN_ENDS)}"
        )
    # By the largest id: some vocabularies have holes.
    size = max(made.get_vocab(with_added_tokens=True).values()) + 1
    if size > LARGEST:
        raise ValueError(f"{name} has a token of id {size - 1}: ids must be below {LARGEST}")
    if tokenizer is None:
        content, told = made.to_str(pretty=True), None  # it has a token for every byte
    else:
        # As it was given: the library writes every hole of a vocabulary on the console.
        described = json.loads(tokenizer[1]) | {"padding": None, "truncation": None}
        content = json.dumps(described, indent=2, ensure_ascii=False)
        told = _Told(made, described["model"])
    write_atomically(folder / "tokenizer.json", content)
    counts: dict[str, int] = {}
    for part, texts in (("train", train), ("held_out", held_out)):
        dtype = np.dtype("uint16" if _narrow(size) else "int32")
        lost_before = told.lost if told else 0
        with (folder / f"{part}.bin").open("wb") as file:
            for ids in _encode(made, texts, end, told):
                file.write(np.asarray(ids, dtype=dtype).tobytes())
            counts[f"{part}_tokens"] = file.tell() // dtype.itemsize
        whole = sum(len(text.encode("utf-8")) for text in texts)
        lost = told.lost - lost_before if told else 0
        if told and lost:
            what = f"{name} loses {lost} of {whole} bytes of the text, such as {told.example!r}"
            if 2 * lost >= whole:
                raise ValueError(
                    f"{what}: take a tokenizer made for such text, or leave out --tokenizer"
                )
            note(f"{what}: bits per byte are those of the others")
        counts |= {f"{part}_bytes": whole - lost, f"{part}_lost": lost}
    corpus = Corpus(vocab=size, end=end, **counts)
    write_atomically(folder / "corpus.json", json.dumps(asdict(corpus), indent=1))
    return corpus


class _Told:
    """Counts the bytes of texts that their tokens do not tell."""

    def __init__(self, tokenizer: "Tokenizer", model: dict[str, Any]) -> None:
        self.lost = 0
        self.example = ""
        self._tokenizer = tokenizer
        unknown = model.get("unk_token")
        self._unknown = (
            model.get("unk_id") if unknown is None else tokenizer.token_to_id(str(unknown))
        )
        self._changed: dict[str, bool] = {}

    def read(self, piece: str, encoding: "Encoding") -> None:
        """Count a piece of text, given its tokens."""
        known = [
            span
            for span, token in zip(encoding.offsets, encoding.ids, strict=True)
            if token != self._unknown
        ]
        if (
            len(known) == len(encoding.ids)
            and self._tokenizer.decode(encoding.ids, skip_special_tokens=False) == piece
        ):
            return
        marks = np.zeros(len(piece) + 1, dtype=np.int64)
        for first, stop in known:
            marks[first] += 1
            marks[stop] -= 1
        codes = np.frombuffer(piece.encode("utf-32-le"), dtype="<u4")
        changed = [ord(character) for character in set(piece) if self._changes(character)]
        lost = (marks.cumsum()[:-1] == 0) | np.isin(codes, changed)
        width = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
        self.lost += int(width[lost].sum())
        if not self.example and lost.any():
            place = int(lost.argmax())
            self.example = piece[place : place + 8]

    def _changes(self, character: str) -> bool:
        """Whether the tokenizer reads another character in place of this one."""
        if character not in self._changed:
            normalizer = self._tokenizer.normalizer
            read = character if normalizer is None else normalizer.normalize_str(character)
            # Some write a mark for a space, or put one before the text.
            self._changed[character] = read.replace("▁", " ").strip() != character.strip()
        return self._changed[character]


def _learn(texts: Sequence[str], vocab: int) -> "Tokenizer":
    """A byte-level BPE, in the form that Hugging Face's libraries read."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab < 257:
        raise ValueError(f"a vocabulary needs 256 bytes and the end token, got {vocab}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    return tokenizer


def _load(name: str, content: str) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{name} is not a tokenizer.json: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _encode(
    tokenizer: "Tokenizer", texts: Sequence[str], end: int, told: _Told | None
) -> Iterator[list[int]]:
    # The name of a special token may occur in a text, where it is text.
    tokenizer.encode_special_tokens = True
    for text in texts:
        yield [end]
        pieces = _pieces(text)
        while batch := [piece for piece, _ in zip(pieces, range(16), strict=False)]:
            encodings = tokenizer.encode_batch(batch, add_special_tokens=False)
            for piece, encoding in zip(batch, encodings, strict=True):
                if told is not None:
                    told.read(piece, encoding)
                yield encoding.ids


def _pieces(text: str) -> Iterator[str]:
    """The text in parts that end with a line, so that they are tokenized side by side."""
    start = 0
    while start < len(text):
        stop = start + _PIECE
        line = text.rfind("\n", start, stop)
        stop = line + 1 if stop < len(text) and line >= 0 else min(stop, len(text))
        yield text[start:stop]
        start = stop
