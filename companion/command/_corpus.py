"""From text files to a tokenizer and two rows of token ids on disk, for the training command."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

from companion.core._storage import write_atomically

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["END", "Corpus", "prepare", "read_documents", "split", "text_hash"]

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
        vocab: Number of token ids.
        end: Id of the token between documents.
        train_tokens: Tokens to learn from.
        train_bytes: Length of their text as UTF-8.
        held_out_tokens: Tokens to be tested on.
        held_out_bytes: Length of their text as UTF-8.
    """

    vocab: int
    end: int
    train_tokens: int
    train_bytes: int
    held_out_tokens: int
    held_out_bytes: int

    def ids(self, folder: Path, name: str) -> Integer[Tensor, " n"]:
        """Map one of the two rows into memory.

        Args:
            folder: Where it lies.
            name: ``"train"`` or ``"held_out"``.

        Returns:
            The ids, read from disk as they are used.
        """
        size: int = getattr(self, f"{name}_tokens")
        dtype = torch.uint16 if _narrow(self.vocab) else torch.int32
        return torch.from_file(str(folder / f"{name}.bin"), shared=False, size=size, dtype=dtype)

    @classmethod
    def read(cls, folder: Path) -> "Corpus | None":
        """Read the description of what is on disk.

        Args:
            folder: Where it lies.

        Returns:
            The description; ``None`` if the work was not finished.
        """
        path = folder / "corpus.json"
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _narrow(vocab: int) -> bool:
    return vocab <= 1 << 16


def read_documents(paths: Sequence[str | Path]) -> list[str]:
    """Read text files, and all ``.txt`` files of folders in the order of their names.

    Args:
        paths: Files and folders.

    Returns:
        Their texts, line ends as they are.

    Raises:
        ValueError: If a file is missing, is not UTF-8, or there is no text at all.
    """
    files: list[Path] = []
    for path in (Path(given).expanduser() for given in paths):
        if path.is_dir():
            inside = sorted(path.rglob("*.txt"))
            if not inside:
                raise ValueError(f"{path} holds no .txt file")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise ValueError(f"{path} does not exist")
    texts = []
    for path in files:
        try:
            texts.append(path.read_bytes().decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError("the text is empty")
    return texts


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
    tokenizer_file: str | None,
) -> Corpus:
    """Learn a tokenizer, or take one, and write both rows of ids.

    Args:
        folder: Where ``tokenizer.json``, ``train.bin`` and ``held_out.bin`` go.
        train: Texts to learn from; the tokenizer sees no others.
        held_out: Texts to be tested on.
        vocab: Most token ids of the tokenizer.
        tokenizer_file: A ``tokenizer.json`` to use in place of a new one.

    Returns:
        The description, which is also on disk, and is written last.

    Raises:
        ValueError: If the tokenizer cannot be read, or marks no end of a document.
    """
    tokenizer = _learn(train, vocab) if tokenizer_file is None else _load(tokenizer_file)
    end = next((i for t in _KNOWN_ENDS if (i := tokenizer.token_to_id(t)) is not None), None)
    if end is None:
        raise ValueError(
            f"{tokenizer_file} has no token for the end of a document: "
            f"it needs one of {', '.join(_KNOWN_ENDS)}"
        )
    size = tokenizer.get_vocab_size()
    write_atomically(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    counts = []
    for name, texts in (("train", train), ("held_out", held_out)):
        dtype = np.dtype("uint16" if _narrow(size) else "int32")
        with (folder / f"{name}.bin").open("wb") as file:
            for ids in _encode(tokenizer, texts, end):
                file.write(np.asarray(ids, dtype=dtype).tobytes())
            counts.append(file.tell() // dtype.itemsize)
    made = Corpus(
        vocab=size,
        end=end,
        train_tokens=counts[0],
        train_bytes=sum(len(text.encode("utf-8")) for text in train),
        held_out_tokens=counts[1],
        held_out_bytes=sum(len(text.encode("utf-8")) for text in held_out),
    )
    write_atomically(folder / "corpus.json", json.dumps(asdict(made), indent=1))
    return made


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


def _load(path: str) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is not a tokenizer.json: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _encode(tokenizer: "Tokenizer", texts: Sequence[str], end: int) -> Iterator[list[int]]:
    # The name of a special token may occur in a text, where it is text.
    tokenizer.encode_special_tokens = True
    for text in texts:
        yield [end]
        pieces = _pieces(text)
        while batch := [piece for piece, _ in zip(pieces, range(16), strict=False)]:
            for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
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
