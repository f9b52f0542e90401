r"""Rules of published corpora that tell a page of prose from menus, lists and machine output."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from companion.core import check_several
from companion.knowledge.data_quality._minhash import _mix, word_runs

__all__ = [
    "RULES",
    "Measure",
    "c4_lines",
    "c4_quality",
    "fineweb_quality",
    "gopher_quality",
    "gopher_repetition",
    "quality_filters",
]

_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_BULLETS = ("•", "‣", "▪", "●", "◦", "-", "*")
# Periods, exclamation and question marks, closing quotation marks, and their Chinese forms.
_TERMINAL = (".", "!", "?", '"', "”", "’", "'", "。", "！", "？", "」", "』")
_C4_TERMINAL = (".", "!", "?", '"')
_POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_SENTENCE = re.compile(r"[.!?]+[\"'”’)]*(?=\s|$)|[。！？]")


class Measure(NamedTuple):
    """One number about a text, and whether a rule lets it pass.

    Attributes:
        value: The number.
        wanted: What the rule asks of it, for example ``"<= 0.3"``.
        passed: Whether the text keeps to it.
    """

    value: float
    wanted: str
    passed: bool


def _at_most(value: float, limit: float) -> Measure:
    return Measure(value, f"<= {limit:g}", value <= limit)


def _at_least(value: float, limit: float) -> Measure:
    return Measure(value, f">= {limit:g}", value >= limit)


def _between(value: float, low: float, high: float) -> Measure:
    return Measure(value, f"{low:g} to {high:g}", low <= value <= high)


def _lines(text: str) -> list[str]:
    """The lines that hold something: blank ones are no lines, and so no copies of each other."""
    return [line for raw in text.splitlines() if (line := raw.strip())]


def _share(hits: int, all_: int) -> float:
    return hits / all_ if all_ else 0.0


def gopher_quality(text: str) -> dict[str, Measure]:
    """The rules on words, symbols and lines by which MassiveText keeps a page.

    Words are what white space separates. A page needs 50 to 100,000 of them, of 3 to 10
    characters on average; at most one hash sign or ellipsis for 10 words; at most 90 % of the lines
    with a bullet before and at most 30 % with an ellipsis behind; a letter in 80 % of the words;
    and two of eight frequent English words.

    Args:
        text: A page.

    Returns:
        The measures by name.

    References:
        Rae et al. 2021, arXiv:2112.11446, appendix A.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> gopher_quality("All is well that ends well.")["words"]
        Measure(value=6.0, wanted='50 to 100000', passed=False)
    """
    words, lines = text.split(), _lines(text)
    count = len(words)
    ellipses = text.count("...") + text.count("…")
    letters = sum(any(c.isalpha() for c in word) for word in words)
    bare = {word.strip(".,;:!?\"'()").lower() for word in words}
    ends = sum(line.endswith(("...", "…")) for line in lines)
    return {
        "words": _between(float(count), 50.0, 100_000.0),
        "mean_word_length": _between(_share(sum(map(len, words)), count), 3.0, 10.0),
        "hashes_per_word": _at_most(_share(text.count("#"), count), 0.1),
        "ellipses_per_word": _at_most(_share(ellipses, count), 0.1),
        "bullet_lines": _at_most(
            _share(sum(line.startswith(_BULLETS) for line in lines), len(lines)), 0.9
        ),
        "ellipsis_lines": _at_most(_share(ends, len(lines)), 0.3),
        "words_with_letters": _at_least(_share(letters, count), 0.8),
        "stop_words": _at_least(float(len(_STOP_WORDS & bare)), 2.0),
    }


#: Largest share of the characters in the most frequent n-gram, and in repeated ones.
_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
_REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def gopher_repetition(text: str) -> dict[str, Measure]:
    r"""How much of a page repeats itself, in lines, paragraphs and runs of words.

    A line or paragraph counts as repeated from its second occurrence on. Of n-grams, each
    character counts once however many of them it lies in, so no share exceeds 1.

    Args:
        text: A page.

    Returns:
        The measures by name. Shares of n-grams are of the characters of all words.

    References:
        Rae et al. 2021, arXiv:2112.11446, table A1. The paper leaves open whether the first
        occurrence counts; here it does not, and an n-gram that occurs once is no repetition.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> gopher_repetition("a\n\n\n\nb")["repeated_lines"].value
        0.0
    """
    lines = _lines(text)
    paragraphs = [part for raw in re.split(r"\n\s*\n", text) if (part := raw.strip())]
    words = text.split()
    vocabulary: dict[str, int] = {}
    numbers = [vocabulary.setdefault(word, len(vocabulary)) for word in words]
    ids = _mix(np.array(numbers, dtype=np.uint64) + np.uint64(1))
    sizes = np.array([len(word) for word in words], dtype=np.int64)
    found = {
        "repeated_lines": _at_most(_repeated_share(lines, by_characters=False), 0.30),
        "repeated_paragraphs": _at_most(_repeated_share(paragraphs, by_characters=False), 0.30),
        "repeated_line_characters": _at_most(_repeated_share(lines), 0.20),
        "repeated_paragraph_characters": _at_most(_repeated_share(paragraphs), 0.20),
    }
    for n, limit in _TOP.items():
        found[f"top_{n}gram_characters"] = _at_most(_ngram_share(ids, sizes, n, top=True), limit)
    for n, limit in _REPEATED.items():
        found[f"repeated_{n}gram_characters"] = _at_most(
            _ngram_share(ids, sizes, n, top=False), limit
        )
    return found


def _repeated_share(parts: list[str], *, by_characters: bool = True) -> float:
    seen: set[str] = set()
    again = total = 0
    for part in parts:
        size = len(part) if by_characters else 1
        again += size if part in seen else 0
        total += size
        seen.add(part)
    return _share(again, total)


def _ngram_share(
    ids: np.ndarray[tuple[int], np.dtype[np.uint64]],
    sizes: np.ndarray[tuple[int], np.dtype[np.int64]],
    n: int,
    *,
    top: bool,
) -> float:
    """Share of the characters in occurrences of the top n-gram, or in second and later ones."""
    if len(ids) <= n:
        return 0.0
    _, first, kind, counts = np.unique(
        word_runs(ids, n), return_index=True, return_inverse=True, return_counts=True
    )
    if counts.max() < 2:
        return 0.0
    places = np.arange(len(kind))
    if top:
        # Of equally frequent ones the longest in characters.
        ends = np.concatenate([[0], np.cumsum(sizes)])
        length = (ends[n:] - ends[:-n])[first]
        marked = kind == np.lexsort((length, counts))[-1]
    else:
        marked = places != first[kind]
    edge = np.zeros(len(ids) + 1, dtype=np.int64)
    np.add.at(edge, places[marked], 1)
    np.add.at(edge, places[marked] + n, -1)
    covered = np.cumsum(edge)[:-1] > 0
    return float(sizes[covered].sum() / sizes.sum())


def c4_lines(text: str) -> str:
    r"""The lines of a page that C4 keeps.

    A line stays if it ends in a period, exclamation mark, question mark or quotation mark and
    not in an ellipsis, holds five words, none of them longer than 1,000 characters, does not name
    JavaScript, and is no notice about cookies, privacy or terms of use. Marks of citations such
    as ``[3]`` are taken out of it.

    Args:
        text: A page.

    Returns:
        The lines that stay.

    References:
        Raffel et al. 2020, arXiv:1910.10683, sec. 2.2, and their code for the details. Earlier
        versions of the preprint, and programs that follow them, exchange two numbers: lines of
        3 words and pages of 5 sentences in place of 5 words and 3 sentences.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> c4_lines("Home | About\nThe cat sat on the mat.[1]")
        'The cat sat on the mat.'
    """
    kept = []
    for line in _lines(text):
        line = _CITATION.sub("", line).strip()
        words, small = line.split(), line.lower()
        if (
            line.endswith(_C4_TERMINAL)
            and not line.endswith("...")
            and len(words) >= 5
            and max(map(len, words)) <= 1000
            and "javascript" not in small
            and not any(phrase in small for phrase in _POLICIES)
        ):
            kept.append(line)
    return "\n".join(kept)


def c4_quality(text: str, *, blocked: Collection[str] = ()) -> dict[str, Measure]:
    """The rules by which C4 drops a whole page, after the lines of :func:`c4_lines` are chosen.

    Args:
        text: A page.
        blocked: Words that a page may not hold, in small letters. C4 took a public list of about
            400, which is not part of this library; such lists remove more than they are meant to.

    Returns:
        The measures by name.

    Raises:
        ValueError: If the blocked words are one text.

    References:
        Raffel et al. 2020, arXiv:1910.10683, sec. 2.2; what the list removed: Dodge et al. 2021,
        arXiv:2104.08758.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> c4_quality("One sentence of five words.")["sentences"]
        Measure(value=1.0, wanted='>= 3', passed=False)
    """
    check_several("blocked", blocked)
    small = text.lower()
    words = set(re.findall(r"\w+", small)) if blocked else set()
    return {
        "sentences": _at_least(float(len(_SENTENCE.findall(c4_lines(text)))), 3.0),
        "lorem_ipsum": _at_most(float(small.count("lorem ipsum")), 0.0),
        "curly_brackets": _at_most(float(text.count("{")), 0.0),
        "blocked_words": _at_most(float(len(words & set(blocked))), 0.0),
    }


def fineweb_quality(text: str) -> dict[str, Measure]:
    r"""The three rules that FineWeb adds: ends of lines, repeated lines, short lines.

    Args:
        text: A page.

    Returns:
        The measures by name.

    References:
        Penedo et al. 2024, arXiv:2406.17557. The code that was released with it has a
        stricter limit for repeated lines, 0.01 in place of 0.1, counts lines of just 30 characters
        and blank ones as short, and has a fourth rule: at most 0.3 line feeds a word.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> fineweb_quality("Home\nAbout\nContact")["lines_with_an_end"].passed
        False
    """
    lines = _lines(text)
    ends = _share(sum(line.endswith(_TERMINAL) for line in lines), len(lines))
    short = _share(sum(len(line) < 30 for line in lines), len(lines))
    again = _repeated_share(lines)
    return {
        "lines_with_an_end": Measure(ends, "> 0.12", ends > 0.12),
        "repeated_line_characters": Measure(again, "< 0.1", again < 0.1),
        "short_lines": Measure(short, "< 0.67", short < 0.67),
    }


#: The sets of rules by name. All but ``gopher_repetition`` are made for English pages of the web.
RULES: Mapping[str, Callable[[str], dict[str, Measure]]] = {
    "gopher_quality": gopher_quality,
    "gopher_repetition": gopher_repetition,
    "c4_quality": c4_quality,
    "fineweb_quality": fineweb_quality,
}


def quality_filters(
    text: str, *, rules: Collection[str] = ("gopher_quality", "gopher_repetition")
) -> dict[str, Measure]:
    """Measure a text by several sets of rules.

    Args:
        text: The text.
        rules: Names of :data:`RULES`.

    Returns:
        The measures, each named ``set.measure``.

    Raises:
        ValueError: If a set is unknown.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> found = quality_filters("Buy now! Buy now! Buy now!")
        >>> sorted(name for name, measure in found.items() if not measure.passed)[:2]
        ['gopher_quality.stop_words', 'gopher_quality.words']
    """
    check_several("rules", rules)
    unknown = [name for name in rules if name not in RULES]
    if unknown:
        raise ValueError(f"unknown rules {', '.join(unknown)}; known: {', '.join(RULES)}")
    return {f"{name}.{key}": found for name in rules for key, found in RULES[name](text).items()}
