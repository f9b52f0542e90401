r"""Cosine similarity, neighbors, analogies, and how they compare with human judgment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_same_shape, check_several

__all__ = [
    "AnalogyScore",
    "Lexicon",
    "PairScore",
    "analogy",
    "cosine_gradient",
    "cosine_similarity",
    "evaluate_analogies",
    "evaluate_word_pairs",
    "nearest",
    "spearman",
]


@runtime_checkable
class Lexicon(Protocol):
    """Anything with words and their vectors: what training returns, or what ``data`` loads."""

    @property
    def words(self) -> Sequence[str]:
        """The words; position is row."""

    @property
    def vectors(self) -> Tensor:
        """One row for each word."""

    @property
    def index(self) -> Mapping[str, int]:
        """From word to row."""


def cosine_similarity(
    first: Float[Tensor, "*first dim"], second: Float[Tensor, "*second dim"]
) -> Float[Tensor, "..."]:
    r"""Cosine of the angle between every row of one set and every row of another.

    .. math::

        \cos(u, v) = \frac{u \cdot v}{\lVert u \rVert \lVert v \rVert}

    Args:
        first: Vectors ``u``, any number of leading axes, or a single one.
        second: Vectors ``v``, likewise.

    Returns:
        Cosines in [-1, 1], shape ``(*first, *second)``.

    Raises:
        ValueError: If the vectors have different lengths.

    Numerics:
        A zero vector has no direction; its cosines are 0 here. Rounding may exceed 1 by a few
        units in the last place.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> cosine_similarity(torch.tensor([3.0, 4.0]), torch.tensor([[4.0, 3.0], [0.0, -1.0]]))
        tensor([ 0.9600, -0.8000])
    """
    if first.shape[-1] != second.shape[-1]:
        raise ValueError(
            f"vectors must be equally long, got {first.shape[-1]} and {second.shape[-1]}"
        )
    u, v = (F.normalize(side.reshape(-1, side.shape[-1]), dim=1) for side in (first, second))
    return (u @ v.mT).reshape((*first.shape[:-1], *second.shape[:-1]))


def cosine_gradient(
    first: Float[Tensor, "*batch dim"], second: Float[Tensor, "*batch dim"]
) -> Float[Tensor, "*batch dim"]:
    r"""Gradient of the cosine by its first vector.

    .. math::

        \nabla_u \cos(u, v) = \frac{1}{\lVert u \rVert}
            \left(\hat v - \cos(u, v)\, \hat u\right)

    Args:
        first: Vectors ``u``, nonzero.
        second: Vectors ``v``, nonzero.

    Returns:
        The gradient, orthogonal to ``u``: only the direction of ``u`` matters to the cosine.

    Raises:
        ValueError: If the shapes differ.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    check_same_shape("first", first, "second", second)
    u, v = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
    cosine = (u * v).sum(-1, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(first, dim=-1, keepdim=True)
    return (v - cosine * u) / length


def nearest(
    lexicon: Lexicon, query: str | Float[Tensor, " dim"], *, count: int = 10
) -> list[tuple[str, float]]:
    """Find the words whose vectors point most nearly in the direction of a query.

    Args:
        lexicon: The words to choose from.
        query: A word, which is then left out of the answer, or a vector.
        count: How many, 1 or above.

    Returns:
        Words with their cosines, the nearest first.

    Raises:
        ValueError: If a queried word has no vector.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    check_count("count", count)
    row = _row(lexicon, query) if isinstance(query, str) else None
    vector = lexicon.vectors[row] if row is not None else query
    assert isinstance(vector, Tensor)
    scores = cosine_similarity(vector.to(lexicon.vectors), lexicon.vectors)
    if row is not None:
        scores[row] = -2.0
    best = scores.topk(min(count, len(scores) - (row is not None)))
    return [
        (lexicon.words[place], score)
        for place, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def analogy(
    lexicon: Lexicon, a: str, b: str, c: str, *, count: int = 1, exclude: bool = True
) -> list[tuple[str, float]]:
    r"""Complete "a is to b as c is to ?" by vector arithmetic (3CosAdd).

    .. math::

        \arg\max_x \cos(v_x,\ \hat v_b - \hat v_a + \hat v_c)

    with vectors scaled to length 1 first.

    Args:
        lexicon: The words to choose from.
        a: First word, such as "man".
        b: Its partner, such as "king".
        c: The word to complete, such as "woman".
        count: How many answers, 1 or above.
        exclude: Whether the three given words are ruled out, as is customary. Without this the
            answer is often ``b`` or ``c`` itself.

    Returns:
        Words with their cosines, the best first.

    Raises:
        ValueError: If a word has no vector.

    References:
        Mikolov, Yih & Zweig 2013 (N13-1090); Levy & Goldberg 2014, DOI 10.3115/v1/W14-1618; on
        the exclusion, Linzen 2016, DOI 10.18653/v1/W16-2503.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    check_count("count", count)
    rows = [_row(lexicon, word) for word in (a, b, c)]
    first, second, third = F.normalize(lexicon.vectors[rows], dim=1)
    scores = cosine_similarity(second - first + third, lexicon.vectors)
    if exclude:
        scores[rows] = -2.0
    best = scores.topk(min(count, len(scores) - (len(set(rows)) if exclude else 0)))
    return [
        (lexicon.words[place], score)
        for place, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _row(lexicon: Lexicon, word: str) -> int:
    if word not in lexicon.index:
        raise ValueError(f"{word!r} has no vector among these {len(lexicon.words)} words")
    return lexicon.index[word]


def spearman(first: Float[Tensor, " item"], second: Float[Tensor, " item"]) -> Float[Tensor, ""]:
    r"""Rank correlation: Pearson's correlation of the ranks, ties given their mean rank.

    Args:
        first: Some numbers.
        second: As many others.

    Returns:
        A number in [-1, 1]; NaN where all numbers of a side are equal.

    Raises:
        ValueError: If the sides differ in length.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> spearman(torch.tensor([1.0, 5.0, 9.0]), torch.tensor([2.0, 3.0, 70.0]))
        tensor(1.0000, dtype=torch.float64)
    """
    check_same_shape("first", first, "second", second)
    ranks: list[Tensor] = []
    for side in (first, second):
        _, where, sizes = torch.unique(side, return_inverse=True, return_counts=True)
        last = sizes.cumsum(0).double()
        rank = (last - (sizes - 1) / 2)[where]
        ranks.append(rank - rank.mean())
    lengths: Tensor = torch.linalg.vector_norm(ranks[0]) * torch.linalg.vector_norm(ranks[1])
    return (ranks[0] * ranks[1]).sum() / lengths


@dataclass(frozen=True)
class PairScore:
    """How well cosines agree with human ratings.

    Args:
        correlation: Spearman's rank correlation over the covered pairs.
        covered: Pairs of which both words have a vector.
        pairs: All pairs of the benchmark.
    """

    correlation: float
    covered: int
    pairs: int


def evaluate_word_pairs(
    lexicon: Lexicon, first: Sequence[str], second: Sequence[str], score: Float[Tensor, " pair"]
) -> PairScore:
    """Compare cosines with human ratings of pairs of words.

    Args:
        lexicon: The vectors.
        first: First words of the pairs. Capitals are lowered where the word has no vector.
        second: Second words.
        score: Ratings.

    Returns:
        The rank correlation over the pairs that are covered, and how many those are. Pairs with a
        missing word are left out, so compare correlations only at equal coverage.

    Raises:
        ValueError: If fewer than three pairs are covered, or a list is one text.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    check_several("first", first)
    check_several("second", second)
    rows: list[tuple[int, int]] = []
    kept: list[int] = []
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        a, b = _find(lexicon, one), _find(lexicon, other)
        if a is not None and b is not None:
            rows.append((a, b))
            kept.append(number)
    if len(kept) < 3:
        raise ValueError(f"only {len(kept)} of {len(first)} pairs have vectors: nothing to rank")
    place = torch.tensor(rows, device=lexicon.vectors.device)
    cosines = F.cosine_similarity(lexicon.vectors[place[:, 0]], lexicon.vectors[place[:, 1]])
    ratings = score[torch.tensor(kept, device=score.device)]
    correlation = spearman(cosines.double().cpu(), ratings.double().cpu())
    return PairScore(correlation=float(correlation), covered=len(kept), pairs=len(first))


def _find(lexicon: Lexicon, word: str) -> int | None:
    row = lexicon.index.get(word)
    return lexicon.index.get(word.lower()) if row is None else row


@dataclass(frozen=True)
class AnalogyScore:
    """How many analogies are completed as expected.

    Args:
        correct: Questions answered with the expected word.
        covered: Questions of which all four words have a vector.
        questions: All questions.
    """

    correct: int
    covered: int
    questions: int

    @property
    def accuracy(self) -> float:
        """Share of the covered questions that are answered correctly; NaN if none is covered."""
        return self.correct / self.covered if self.covered else float("nan")


def evaluate_analogies(
    lexicon: Lexicon,
    questions: Sequence[tuple[str, str, str, str]],
    *,
    exclude: bool = True,
    batch_size: int = 512,
) -> AnalogyScore:
    """Answer analogy questions by 3CosAdd, as :func:`analogy` does, many at a time.

    Args:
        lexicon: The vectors, and the words to choose from.
        questions: Four words each; the last is the expected answer. Capitals are lowered where a
            word has no vector.
        exclude: Whether the three given words are ruled out.
        batch_size: Questions in a matrix product.

    Returns:
        The number of correct answers, and the coverage.

    Raises:
        ValueError: If a question is a text and not four words.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    check_several("questions", questions)
    for number, question in enumerate(questions):
        check_several(f"question {number}", question)
    found = [[_find(lexicon, word) for word in question] for question in questions]
    rows = [row for row in found if None not in row]
    unit = F.normalize(lexicon.vectors, dim=1)
    correct = 0
    asked = torch.tensor(rows, dtype=torch.int64, device=unit.device).view(-1, 4)
    for part in torch.split(asked, batch_size):
        a, b, c, d = part.T
        target = F.normalize(unit[b] - unit[a] + unit[c], dim=1)
        scores = target @ unit.mT
        if exclude:
            scores.scatter_(1, part[:, :3], -2.0)
        correct += int((scores.argmax(1) == d).sum())
    return AnalogyScore(correct=correct, covered=len(rows), questions=len(questions))
