"""Tokens that are found in the raw text, before it is cut into pieces."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from companion.foundations.language_models._pretokenize import SPACE

__all__ = ["AddedToken", "cut_out", "one_of"]

_SPACES = re.compile(rf"[{SPACE}]*")


class AddedToken(NamedTuple):
    """A token that is matched as a whole in the text, as the ``tokenizers`` library does.

    Attributes:
        id: Its id.
        special: Whether it is matched only where the caller allows it; otherwise it always is.
        lstrip: Whether it takes the white space before it.
        rstrip: Whether it takes the white space after it.
        normalized: Whether it is looked for only in what those that are not have left.

    Book:
        :doc:`/book/foundations/language_models`
    """

    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


def one_of(names: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern of one group that finds the names, the longest that fits."""
    ordered = sorted(names, key=len, reverse=True)
    if "" in ordered:
        raise ValueError("a special token must not be empty")
    return re.compile("(" + "|".join(map(re.escape, ordered)) + ")") if ordered else None


def cut_out(
    text: str,
    added: Mapping[str, AddedToken],
    patterns: Iterable[re.Pattern[str] | None],
    *,
    allow_special: bool,
) -> list[tuple[int, int, int]]:
    """Start, end and id of each match, in order. The second pattern searches what the first left.

    A special token that is not allowed is text, but hides the shorter names inside it.
    """
    found: list[tuple[int, int, int]] = []
    for pattern in patterns:
        if pattern is None:
            continue
        ends = [*found, (len(text), len(text), -1)]
        fresh, low = [], 0
        for high, after, _ in ends:
            at = low
            for match in pattern.finditer(text, low, high):
                token = added[match[0]]
                if token.special and not allow_special:
                    continue
                start, stop = match.span()
                while token.lstrip and start > at and _SPACES.fullmatch(text[start - 1]):
                    start -= 1
                if token.rstrip and (spaces := _SPACES.match(text, stop, high)):
                    stop = spaces.end()
                fresh.append((start, stop, token.id))
                at = stop
            low = after
        # Stable: where two start at one place, they stay in the order in which they were found.
        found = sorted(found + fresh, key=lambda cut: cut[:2])
    return found
