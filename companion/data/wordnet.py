"""The nouns of WordNet: what a word can mean, and how often it was found to mean it.

Book: ``knowledge/entity_linking``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from companion.data._files import read_text
from companion.data.errors import CorruptDataError

__all__ = ["Synset", "WordNet", "WordSense", "wordnet"]

#: Names of the lexicographers' files of nouns, by number.
FIELDS = dict(
    enumerate(
        (
            *("Tops", "act", "animal", "artifact", "attribute", "body", "cognition"),
            *("communication", "event", "feeling", "food", "group", "location", "motive"),
            *("object", "person", "phenomenon", "plant", "possession", "process", "quantity"),
            *("relation", "shape", "state", "substance", "time"),
        ),
        start=3,
    )
)


@dataclass(frozen=True)
class Synset:
    """A meaning: the words that express it, and what it is.

    Attributes:
        words: Words and phrases with this meaning, spaces between the words of a phrase.
        definition: What it is.
        examples: Phrases and sentences in which one of the words has this meaning; often none.
        field: Its field of 26, such as ``person`` or ``location``.
        parents: Keys of what it is a kind or an instance of.
        instance: Whether it is a single thing, such as a city, and no kind.
    """

    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    field: str
    parents: tuple[str, ...]
    instance: bool


@dataclass(frozen=True)
class WordSense:
    """One of the meanings of a word.

    Attributes:
        synset: Its key.
        count: How often the word was found with this meaning in tagged text; 0 for most.
    """

    synset: str
    count: int


@dataclass(frozen=True, eq=False)
class WordNet:
    """The nouns.

    Attributes:
        synsets: Meanings by key, which is their place in the file, eight digits.
        senses: Meanings of each word or phrase, in lower case and with spaces, in WordNet's order:
            the most frequent first.
    """

    synsets: Mapping[str, Synset]
    senses: Mapping[str, tuple[WordSense, ...]]

    def __repr__(self) -> str:
        return f"WordNet({len(self.senses)} nouns, {len(self.synsets)} meanings)"


def wordnet(*, directory: str | Path | None = None) -> WordNet:
    """The 117,798 nouns of WordNet 3.0 with 82,115 meanings, and how often each was meant.

    It does not come as a wheel. Debian and Ubuntu have it as ``wordnet-base``, which need not be
    installed: ``apt-get download wordnet-base``, ``dpkg-deb -x wordnet-base*.deb FOLDER``, and
    ``directory="FOLDER/usr/share"``.

    Args:
        directory: Folder in which a folder ``wordnet`` holds ``data.noun``, ``index.noun`` and
            ``cntlist.rev``. Otherwise they are looked for where ``COMPANION_DATA`` says, and in
            ``/usr/share``.

    Returns:
        Meanings and words. Counts are those of the tagged texts that came with WordNet, mostly
        fiction and news of 1961 (SemCor).

    Raises:
        MissingDataError: The files are not there.
        CorruptDataError: A file differs from the pinned one.

    References:
        Miller 1995, doi:10.1145/219717.219748; Miller et al. 1993, "A Semantic Concordance",
        H93-1061. WordNet 3.0 Copyright 2006 by Princeton University; its license permits use,
        copies and changes with that notice.

    Book: ``knowledge/entity_linking``.
    """
    data, index, counts = (
        read_text("wordnet", name, directory=directory)
        for name in ("data.noun", "index.noun", "cntlist.rev")
    )
    return read_wordnet(data, index, counts)


def read_wordnet(data: str, index: str, counts: str) -> WordNet:
    """Read the texts of the three files, whose format is that of the manual page wndb(5WN).

    Raises:
        CorruptDataError: If a line does not have that format.
    """
    synsets: dict[str, Synset] = {}
    found: dict[tuple[str, int], int] = {}
    senses: dict[str, tuple[WordSense, ...]] = {}
    line = ""
    try:
        for line in _lines(data):
            key, synset = _synset(line)
            synsets[key] = synset
        for line in _lines(counts):
            sense_key, number, count = line.split()
            lemma, _, rest = sense_key.partition("%")
            if rest.startswith("1:"):  # nouns
                found[lemma, int(number)] = int(count)
        for line in _lines(index):
            fields = line.split()
            keys = fields[-int(fields[2]) :]
            for key in keys:
                synsets[key]
            senses[fields[0].replace("_", " ")] = tuple(
                WordSense(key, found.get((fields[0], number), 0))
                for number, key in enumerate(keys, start=1)
            )
    except (KeyError, ValueError, IndexError) as error:
        raise CorruptDataError(f"not a line of WordNet's files: {line[:60]!r}") from error
    return WordNet(synsets, senses)


def _lines(text: str) -> list[str]:
    # The license stands in front, in lines that start with spaces.
    return [line for line in text.split("\n") if line.strip() and not line.startswith(" ")]


def _synset(line: str) -> tuple[str, Synset]:
    head, bar, gloss = line.partition(" | ")
    if not bar:
        raise ValueError("no gloss")
    fields = head.split()
    key, field, _, count = fields[:4]
    number = int(count, 16)
    words = tuple(word.replace("_", " ") for word in fields[4 : 4 + 2 * number : 2])
    rest = fields[4 + 2 * number :]
    pointers = [tuple(rest[i : i + 4]) for i in range(1, 1 + 4 * int(rest[0]), 4)]
    parents = tuple(target for symbol, target, _, _ in pointers if symbol in ("@", "@i"))
    instance = any(symbol == "@i" for symbol, *_ in pointers)
    definition, quote, _ = gloss.partition('"')
    examples = tuple(part.strip() for part in gloss.split('"')[1::2]) if quote else ()
    name = FIELDS[int(field)]
    text = definition.strip().rstrip(";").strip()
    return key, Synset(words, text, tuple(e for e in examples if e), name, parents, instance)
