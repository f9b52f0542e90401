"""Numbers that describe written texts: how much they repeat, and how their words are spread."""

from collections import Counter
from collections.abc import Sequence

import torch

from companion.core import check_count

__all__ = ["distinct_ngrams", "zipf_exponent"]


def distinct_ngrams(texts: Sequence[Sequence[int]], n: int) -> float:
    """Compute the share of different n-grams among those of each text, on average.

    Args:
        texts: Ids of their tokens. Those shorter than n are left out.
        n: Length of the n-grams.

    Returns:
        A number in (0, 1]: 1 if nothing is repeated within a text.

    Raises:
        ValueError: If n is below 1, or no text has n tokens.

    References:
        Li et al. 2016, arXiv:1510.03055, sec. 5.3, over all texts; within each, Welleck et al.
        2020, arXiv:1908.04319, as one minus it.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> distinct_ngrams([[1, 2, 1, 2]], 2)
        0.6666666666666666
    """
    check_count("n", n)
    shares = []
    for text in texts:
        grams = list(zip(*[text[k:] for k in range(n)], strict=False))
        if grams:
            shares.append(len(set(grams)) / len(grams))
    if not shares:
        raise ValueError(f"no text has {n} tokens: give longer ones")
    return sum(shares) / len(shares)


def zipf_exponent(texts: Sequence[Sequence[int]], *, ranks: int = 1000) -> float:
    r"""Fit :math:`f_r \propto r^{-s}` to the counts of tokens by rank, on logarithmic scales.

    Args:
        texts: Ids of their tokens.
        ranks: How many of the most frequent tokens are used at most.

    Returns:
        The exponent :math:`s`, by least squares; about 1 for English words.

    Raises:
        ValueError: If there are less than two different tokens.

    References:
        Zipf 1949; Holtzman et al. 2020, arXiv:1904.09751, sec. 5.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> round(zipf_exponent([[1] * 12 + [2] * 6 + [3] * 4 + [4] * 3]), 6)
        1.0
    """
    counts = Counter(token for text in texts for token in text)
    check_count("different tokens", len(counts), low=2)
    frequent = sorted(counts.values(), reverse=True)[:ranks]
    y = torch.tensor(frequent, dtype=torch.float64).log()
    x = torch.arange(1, len(frequent) + 1, dtype=torch.float64).log()
    x = x - x.mean()
    return float(-(x * (y - y.mean())).sum() / x.square().sum())
