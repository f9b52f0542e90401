r"""ROUGE: how much of a summary is in the reference, by n-grams and by subsequences."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_several

__all__ = [
    "Overlap",
    "common_subsequence",
    "rouge_l",
    "rouge_lsum",
    "rouge_n",
    "rouge_tokens",
]

_OTHER = re.compile(r"[^a-z0-9]+")


class Overlap(NamedTuple):
    """Shares of what two texts have in common.

    Attributes:
        precision: Of the first text.
        recall: Of the reference.
        f1: Their harmonic mean, 0 if nothing is common.
    """

    precision: Float[Tensor, "..."]
    recall: Float[Tensor, "..."]
    f1: Float[Tensor, "..."]


def rouge_tokens(text: str) -> list[str]:
    """Split a text as ROUGE does: lower case, runs of letters from a to z and of digits.

    Args:
        text: The text. Letters beyond ASCII are separators, so for other languages give
            ``tokenize``.

    Returns:
        The tokens, not stemmed.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> rouge_tokens("Don't: 3.5 km")
        ['don', 't', '3', '5', 'km']
    """
    return _OTHER.sub(" ", text.lower()).split()


def overlap(rows: Sequence[tuple[float, float, float]]) -> Overlap:
    """Precision, recall and F1 of rows with what is common, what one has and what the other has."""
    m, a, b = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3).unbind(1)
    return Overlap(m / a.clamp_min(1), m / b.clamp_min(1), 2 * m / (a + b).clamp_min(1))


def _check(predictions: Sequence[str], references: Sequence[str]) -> None:
    check_several("predictions", predictions)
    check_several("references", references)
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} references: give one each"
        )


def rouge_n(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    n: int = 1,
    tokenize: Callable[[str], Sequence[str]] = rouge_tokens,
) -> Overlap:
    """Compare the n-grams of summaries and references.

    Args:
        predictions: The summaries.
        references: One for each.
        n: Length of the n-grams.
        tokenize: Splits a text into words.

    Returns:
        Precision, recall and F1 of each pair. An n-gram counts as often as both have it. Without
        n-grams all are 0.

    Raises:
        ValueError: If the numbers differ, or a single text is given.

    References:
        Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> rouge_n(["the cat the cat"], ["the cat sat"])
        Overlap(precision=tensor([0.5000], dtype=torch.float64), recall=tensor([0.6667], \
dtype=torch.float64), f1=tensor([0.5714], dtype=torch.float64))
    """
    check_count("n", n)
    _check(predictions, references)
    rows = []
    for prediction, reference in zip(predictions, references, strict=True):
        a, b = (_grams(tokenize(text), n) for text in (prediction, reference))
        rows.append(((a & b).total(), a.total(), b.total()))
    return overlap(rows)


def _grams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    r"""Compute the length of the longest common subsequence.

    .. math:: L_{ij} = L_{i-1,j-1} + 1 \text{ if } x_i = y_j, \text{ else } \max(L_{i-1,j},
        L_{i,j-1})

    Args:
        first: Tokens; a string is a sequence of characters.
        second: Tokens.

    Returns:
        The length.

    Numerics:
        A row of differences of the table is kept as the bits of one integer, and a token of the
        other text updates it by an addition (Hyyrö 2004). So a row costs a few machine words.

    References:
        Hyyrö 2004, "Bit-Parallel LCS-length Computation Revisited", AWOCA.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> common_subsequence("a b c d".split(), "b x d".split())
        2
    """
    places: dict[str, int] = {}
    for i, token in enumerate(first):
        places[token] = places.get(token, 0) | (1 << i)
    full = (1 << len(first)) - 1
    row = full
    for token in second:
        here = row & places.get(token, 0)
        row = ((row + here) | (row - here)) & full
    return len(first) - row.bit_count()


def rouge_l(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    tokenize: Callable[[str], Sequence[str]] = rouge_tokens,
) -> Overlap:
    r"""Compare by the longest common subsequence of whole texts.

    With its length :math:`L`, precision is :math:`L/m`, recall :math:`L/n`, and
    :math:`F_1 = 2L/(m + n)`.

    Args:
        predictions: The summaries.
        references: One for each.
        tokenize: Splits a text into words; on strings it would compare letters.

    Returns:
        Precision, recall and F1 of each pair.

    Raises:
        ValueError: As in :func:`rouge_n`.

    References:
        Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> rouge_l(["a b c d e f"], ["d e f a b c"]).f1
        tensor([0.5000], dtype=torch.float64)
    """
    _check(predictions, references)
    rows = []
    for prediction, reference in zip(predictions, references, strict=True):
        a, b = tokenize(prediction), tokenize(reference)
        rows.append((common_subsequence(a, b), len(a), len(b)))
    return overlap(rows)


def rouge_lsum(
    predictions: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    *,
    tokenize: Callable[[str], Sequence[str]] = rouge_tokens,
) -> Overlap:
    """Compare by subsequences sentence by sentence: their order does not matter.

    Of each sentence of the reference the tokens count that are in its longest common subsequence
    with any sentence of the summary, each no more often than the summary has it.

    Args:
        predictions: For each summary its sentences.
        references: For each reference its sentences.
        tokenize: Splits a sentence into words.

    Returns:
        Precision, recall and F1 of each pair.

    Raises:
        ValueError: If the numbers differ, or a summary is a single text in place of sentences.

    References:
        Lin 2004, section 3.2; the clipping is that of the script ROUGE-1.5.5 and of the package
        rouge-score.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> rouge_lsum([["a b c", "d e f"]], [["d e f", "a b c"]]).f1
        tensor([1.], dtype=torch.float64)
    """
    check_several("predictions", predictions)
    check_several("references", references)
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} references: give one each"
        )
    rows = []
    for prediction, reference in zip(predictions, references, strict=True):
        check_several("each prediction", prediction)
        check_several("each reference", reference)
        ours = [list(tokenize(s)) for s in prediction]
        theirs = [list(tokenize(s)) for s in reference]
        left = Counter(t for s in ours for t in s)
        hits = 0
        for sentence in theirs:
            union = sorted({i for s in ours for i in _subsequence(sentence, s)})
            for token in (sentence[i] for i in union):
                if left[token] > 0:
                    left[token] -= 1
                    hits += 1
        rows.append((hits, sum(map(len, ours)), sum(map(len, theirs))))
    return overlap(rows)


def _subsequence(first: list[str], second: list[str]) -> list[int]:
    """Places in the first text of one longest common subsequence."""
    rows = [[0] * (len(second) + 1)]
    for a in first:
        above, row = rows[-1], [0]
        for j, b in enumerate(second):
            row.append(above[j] + 1 if a == b else max(above[j + 1], row[j]))
        rows.append(row)
    i, j, found = len(first), len(second), []
    while i and j:
        if first[i - 1] == second[j - 1]:
            i, j = i - 1, j - 1
            found.append(i)
        elif rows[i][j - 1] > rows[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return found
