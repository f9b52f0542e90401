"""Words, sentences, and a vocabulary that is closed by an unknown word."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from companion.core import check_count, check_several

__all__ = ["ClosedVocabulary", "sentences"]

# A word with inner apostrophes, a number, or one sign. Underscores are signs.
_TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+|[^\w\s]|_")
_END = re.compile(r"(?<=[.?!;:])\s+|\n\s*\n")


def sentences(text: str) -> list[list[str]]:
    """Split a text into sentences, and these into lower-case words and signs.

    A sentence ends after a period, a question mark, an exclamation mark, a colon or a semicolon
    that is followed by space, and at a blank line.

    Args:
        text: Any text of a language that writes spaces between words.

    Returns:
        The sentences, none of them empty.

    Book:
        :doc:`/book/foundations/language_models`

    Example:
        >>> sentences("Speak, speak! I'll hear.")
        [['speak', ',', 'speak', '!'], ["i'll", 'hear', '.']]
    """
    split = (_TOKEN.findall(part) for part in _END.split(text.lower()))
    return [sentence for sentence in split if sentence]


@dataclass(frozen=True)
class ClosedVocabulary:
    """Words with ids, and one id for all other words.

    Id 0 is ``<unk>``, the unknown word; id 1 is ``</s>``, the end of a sentence (EOS). The words
    follow, the most frequent first.

    Attributes:
        words: The text of each id.

    Book:
        :doc:`/book/foundations/language_models`

    Example:
        >>> closed = ClosedVocabulary.build([["to", "be"], ["to", "sleep"]], min_count=2)
        >>> closed.words
        ('<unk>', '</s>', 'to')
        >>> closed.encode([["to", "die"]])
        [tensor([2, 0])]
    """

    words: tuple[str, ...]

    unk = 0
    eos = 1

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def index(self) -> dict[str, int]:
        """From word to id."""
        return {word: number for number, word in enumerate(self.words)}

    @classmethod
    def build(cls, texts: Iterable[Sequence[str]], *, min_count: int = 2) -> "ClosedVocabulary":
        """Collect the words that occur often enough.

        Args:
            texts: The sentences of the training text.
            min_count: Words that occur less often become ``<unk>``, 1 or more. With 1 the training
                text holds no unknown word, and a model learns nothing about them.

        Returns:
            The vocabulary; words of equal count are in alphabetical order.

        Raises:
            ValueError: If ``min_count`` is below 1, or a sentence was not cut into words.
        """
        check_count("min_count", min_count, low=1)
        counted = Counter(word for text in _cut(texts) for word in text)
        kept = [word for word, count in counted.items() if count >= min_count]
        kept.sort(key=lambda word: (-counted[word], word))
        return cls(("<unk>", "</s>", *(w for w in kept if w not in ("<unk>", "</s>"))))

    def encode(self, texts: Iterable[Sequence[str]]) -> list[Int[Tensor, " _"]]:
        """Replace words by ids, words outside the vocabulary by that of ``<unk>``.

        Args:
            texts: Sentences.

        Returns:
            The ids of each sentence, without an EOS.

        Raises:
            ValueError: If a sentence was not cut into words.
        """
        index = self.index
        return [
            torch.tensor([index.get(word, self.unk) for word in text]).long()
            for text in _cut(texts)
        ]


def _cut(texts: Iterable[Sequence[str]]) -> Iterator[Sequence[str]]:
    """The sentences, each of which must be a list of words."""
    check_several("texts", texts)
    for number, text in enumerate(texts):
        check_several(f"text {number}", text)
        yield text
