r"""Cutting text into pieces before any pair is merged, as GPT-2 does."""

import re
import unicodedata
from functools import cache

__all__ = ["SPACE", "pattern", "pretokenize"]

# Unicode's White_Space. Python's \s also holds the separators U+001C to U+001F.
SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# No number beyond the decimal digits lies above this plane.
_LAST_NUMBER = 0x1FFFF


def _other_numbers() -> str:
    """Ranges of the numbers that are no decimal digits: Roman numerals, fractions, circled ones."""
    ranges: list[list[int]] = []
    for code in range(_LAST_NUMBER + 1):
        if unicodedata.category(chr(code)) in ("Nl", "No"):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{chr(low)}-{chr(high)}" for low, high in ranges)


@cache
def pattern() -> re.Pattern[str]:
    r"""GPT-2's pattern in the syntax of Python's own ``re``, which has no ``\p{L}``."""
    numbers = _other_numbers()
    letter = rf"[^\W\d_{numbers}]"
    number = rf"[\d{numbers}]"
    other = r"(?:[^\w\s]|[_\x1c-\x1f])"
    space = rf"[{SPACE}]"
    return re.compile(
        rf"'s|'t|'re|'ve|'m|'ll|'d| ?{letter}+| ?{number}+| ?{other}+"
        rf"|{space}+(?![^{SPACE}])|{space}+"
    )


def pretokenize(text: str) -> list[str]:
    r"""Cut a text into words, numbers, runs of signs and runs of space.

    A space that precedes a word, a number or a sign belongs to it. The English endings 's, 't,
    're, 've, 'm, 'll and 'd are pieces of their own. No character is lost: the pieces joined are
    the text.

    The pattern is GPT-2's,
    ``'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+``,
    written for Python's standard library.

    Args:
        text: Any text.

    Returns:
        The pieces in order.

    Numerics:
        Linear in the length. What is a letter follows the Unicode tables of the running Python,
        so a script added to Unicode later is cut as signs.

    References:
        A. Radford et al., "Language models are unsupervised multitask learners", 2019, section
        2.2, and the pattern in their released code.

    Book:
        :doc:`/book/foundations/language_models`

    Example:
        >>> pretokenize("I'll give thee 3  kings.")
        ['I', "'ll", ' give', ' thee', ' 3', ' ', ' kings', '.']
    """
    return pattern().findall(text)
