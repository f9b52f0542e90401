"""Senses of words, told apart by how other translators rendered them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import check_count, check_floating, check_several, check_shape
from companion.data import Verse

__all__ = ["Occurrence", "senses_by_translation", "tell_senses"]

_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")


@dataclass(frozen=True)
class Occurrence:
    """A word in a verse, in one of its senses.

    Attributes:
        text: The verse.
        sense: Which of the senses, from 0.
        book: The book that the verse stands in.
    """

    text: str
    sense: int
    book: str


def senses_by_translation(
    verses: Sequence[Verse],
    others: Sequence[Verse],
    *,
    word: str,
    senses: Sequence[Sequence[str]],
) -> list[Occurrence]:
    """Collect the verses in which a word has a sense that another translation tells.

    Where two translations of one original use different words, the second tells senses of the
    first apart: the *hell* of the King James Version is in the American Standard Version now
    *Sheol*, now *hell*. A verse is taken if the word occurs in it once, and if the other
    translation of the verse has a rendering of exactly one of the senses. The text that is
    returned does not contain what decided its label.

    Args:
        verses: The translation whose word it is.
        others: The other one, of the same books.
        word: The word, in lower case. Upper and lower case are not told apart.
        senses: For each sense its renderings in ``others``, in lower case.

    Returns:
        Occurrences in the order of ``verses``.

    Raises:
        ValueError: If there are fewer than two senses, a sense is one text, or a rendering
            belongs to two of them.

    References:
        Translations as sense tags: Gale, Church and Yarowsky 1992, "Using bilingual materials to
        develop word sense disambiguation methods", TMI; Resnik and Yarowsky 1999,
        doi:10.1017/S1351324999002211.

    Book: :doc:`/book/pretraining/transfer`

    Example:
        >>> here = [Verse("Jonah", 2, 2, "Out of the belly of hell cried I.")]
        >>> there = [Verse("Jonah", 2, 2, "Out of the belly of Sheol cried I.")]
        >>> senses_by_translation(here, there, word="hell", senses=[["sheol"], ["hell"]])[0].sense
        0
    """
    check_several("senses", senses)
    for number, renderings in enumerate(senses):
        check_several(f"sense {number}", renderings)
    flat = [rendering for sense in senses for rendering in sense]
    if len(senses) < 2 or len(set(flat)) < len(flat):
        raise ValueError(f"give two senses or more, with different renderings, got {senses}")
    parallel = {(v.book, v.chapter, v.verse): v.text for v in others}
    found: list[Occurrence] = []
    for verse in verses:
        other = parallel.get((verse.book, verse.chapter, verse.verse))
        if other is None or _words(verse.text).count(word) != 1:
            continue
        there = set(_words(other))
        told = [index for index, sense in enumerate(senses) if there & set(sense)]
        if len(told) == 1:
            found.append(Occurrence(verse.text, told[0], verse.book))
    return found


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def tell_senses(
    vectors: Float[Tensor, "n dim"],
    words: Integer[Tensor, " n"],
    senses: Integer[Tensor, " n"],
    groups: Integer[Tensor, " n"],
    *,
    neighbors: int = 5,
) -> Float[Tensor, " words"]:
    r"""Guess the sense of each occurrence of a word from its nearest others.

    Vectors of a word are centered, and the nearest by cosine, out of other groups only, vote. For
    each word the shares of right guesses are averaged over its senses, so guessing one sense
    always is right in :math:`1/K` of :math:`K` senses.

    Args:
        vectors: One row for each occurrence.
        words: Which word, from 0 on, each of them present.
        senses: Which of its senses, from 0 on.
        groups: Where it stands, for example its book: occurrences of one group never vote for
            each other.
        neighbors: How many vote; of senses with equally many votes the first is the guess.

    Returns:
        A share in [0, 1] for each word.

    Raises:
        ValueError: If shapes do not fit, or ``neighbors`` is below 1.

    Numerics:
        :math:`O(n^2 d)` for each word's n. Values are read on the way, so ``meta`` tensors and
        ``torch.compile`` are not supported.

    Book: :doc:`/book/pretraining/transfer`

    Example:
        >>> h = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1]])
        >>> zeros, senses = torch.zeros(4).long(), torch.tensor([0, 0, 1, 1])
        >>> tell_senses(h, zeros, senses, torch.arange(4), neighbors=1)
        tensor([1.], dtype=torch.float64)
    """
    check_floating("vectors", vectors)
    check_count("neighbors", neighbors)
    check_shape("vectors", vectors, (None, None))
    for name, ids in (("words", words), ("senses", senses), ("groups", groups)):
        check_shape(name, ids, (len(vectors),))
    shares = []
    for word in range(int(words.max()) + 1):
        own = (words == word).nonzero()[:, 0]
        units = vectors[own] - vectors[own].mean(0)
        units = torch.nn.functional.normalize(units, dim=1)
        group, sense = groups[own], senses[own].long()
        cosines = (units @ units.T).masked_fill(group[:, None] == group, -torch.inf)
        near = cosines.topk(min(neighbors, len(own)), dim=1)
        votes = torch.nn.functional.one_hot(sense[near.indices]).double()
        guess = (votes * near.values.isfinite()[:, :, None]).sum(1).argmax(1)
        right = (guess == sense).double()
        shares.append(torch.stack([right[sense == k].mean() for k in torch.unique(sense)]).mean())
    return torch.stack(shares)
