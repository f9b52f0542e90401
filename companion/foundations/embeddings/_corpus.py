"""From text to integers: vocabularies, subsampling, noise and co-occurrence counts."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.core import check_count, check_ids, check_in_range, check_several

__all__ = [
    "Corpus",
    "Vocabulary",
    "cooccurrence",
    "corpus",
    "encode",
    "keep_probability",
    "noise_distribution",
    "subsample",
    "tokenize",
    "vocabulary",
]

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def tokenize(text: str) -> list[str]:
    """Split a text into lower-case words.

    A word is a run of letters of any script, with inner apostrophes (``'tis`` gives ``tis``,
    ``lov'd`` stays whole). Digits and punctuation are dropped. Chinese text needs a word
    segmenter first: without spaces, a whole clause is one run of letters.

    Args:
        text: Any text.

    Returns:
        The words in order.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> tokenize("O Romeo, Romeo! wherefore art thou Romeo?")
        ['o', 'romeo', 'romeo', 'wherefore', 'art', 'thou', 'romeo']
    """
    return _WORD.findall(text.lower().replace("’", "'"))


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The words that get a vector, the most frequent first.

    Args:
        words: The words; position is id.
        counts: How often each occurs in the text it was made from.
    """

    words: tuple[str, ...]
    counts: Int[Tensor, " vocab"]

    @cached_property
    def index(self) -> dict[str, int]:
        """From word to id."""
        return {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self.index


def vocabulary(tokens: Iterable[str], *, min_count: int = 5) -> Vocabulary:
    """Collect the words that occur often enough, the most frequent first.

    Args:
        tokens: The words of the text, in any order.
        min_count: Rarer words are left out, 1 or above. A vector learned from fewer than about
            five occurrences says little.

    Returns:
        The vocabulary; words of equal count are in alphabetical order, so it does not depend on
        the order of the text.

    Raises:
        ValueError: If ``min_count`` is below 1, no word reaches it, or ``tokens`` is one text.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> vocabulary("to be or not to be".split(), min_count=2).words
        ('be', 'to')
    """
    check_several("tokens", tokens)
    check_count("min_count", min_count)
    counted = Counter(tokens)
    kept = sorted(
        ((word, count) for word, count in counted.items() if count >= min_count),
        key=lambda item: (-item[1], item[0]),
    )
    if not kept:
        raise ValueError(f"no word occurs min_count = {min_count} times: lower it, or add text")
    return Vocabulary(
        words=tuple(word for word, _ in kept),
        counts=torch.tensor([count for _, count in kept], dtype=torch.int64),
    )


def encode(tokens: Iterable[str], vocabulary: Vocabulary) -> Int[Tensor, " token"]:
    """Replace words by their ids. Words outside the vocabulary are dropped, as word2vec does.

    Dropping a rare word brings its neighbors closer together, so windows reach a little further
    than in the raw text.

    Args:
        tokens: The words.
        vocabulary: The vocabulary.

    Returns:
        The ids, at most as many as tokens.

    Raises:
        ValueError: If ``tokens`` is one text: cut it into words first.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> encode(["to", "die", "to"], vocabulary(["to", "be"], min_count=1))
        tensor([1, 1])
    """
    check_several("tokens", tokens)
    index = vocabulary.index
    return torch.tensor([index[token] for token in tokens if token in index], dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as ids. Windows never cross from one document into the next.

    Args:
        vocabulary: The words behind the ids.
        ids: The running text.
        documents: For each position the number of its document, non-decreasing.
    """

    vocabulary: Vocabulary
    ids: Int[Tensor, " token"]
    documents: Int[Tensor, " token"]

    def __len__(self) -> int:
        return len(self.ids)


def corpus(
    documents: Iterable[Sequence[str]],
    *,
    min_count: int = 5,
    vocabulary: Vocabulary | None = None,
) -> Corpus:
    """Encode documents, with a vocabulary made from them or given.

    Args:
        documents: Each a sequence of words: a play, a book, a sentence.
        min_count: Words rarer than this are left out; not used where a vocabulary is given.
        vocabulary: Where given, words outside it are dropped; for held-out text, for example.

    Returns:
        The corpus.

    Raises:
        ValueError: If no word is left, or a document is a text that was not cut into words.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> corpus([["to", "be"], ["or", "to"]], min_count=1).documents
        tensor([0, 0, 1, 1])
    """
    check_several("documents", documents)
    listed: list[list[str]] = []
    for number, document in enumerate(documents):
        check_several(f"document {number}", document)
        listed.append(list(document))
    if vocabulary is None:
        made = _vocabulary((token for document in listed for token in document), min_count)
    else:
        made = vocabulary
    encoded = [encode(document, made) for document in listed]
    if sum(len(ids) for ids in encoded) == 0:
        raise ValueError(f"none of the {len(listed)} documents holds a word of the vocabulary")
    numbers = [torch.full_like(ids, number) for number, ids in enumerate(encoded)]
    return Corpus(vocabulary=made, ids=torch.cat(encoded), documents=torch.cat(numbers))


def _vocabulary(tokens: Iterable[str], min_count: int) -> Vocabulary:
    # The parameter of corpus() hides the function's name there.
    return vocabulary(tokens, min_count=min_count)


def keep_probability(
    counts: Int[Tensor, " vocab"],
    *,
    threshold: float,
    formula: Literal["paper", "code"] = "paper",
) -> Float[Tensor, " vocab"]:
    r"""Probability that an occurrence of each word survives subsampling.

    With :math:`f(w)` the relative frequency and :math:`t` the threshold,

    .. math::

        P_{keep}(w) = \min\left(1, \sqrt{t / f(w)}\right)
        \qquad\text{or, in the released code,}\qquad
        \min\left(1, \sqrt{t / f(w)} + t / f(w)\right).

    Args:
        counts: How often each word occurs, all positive.
        threshold: Words rarer than this relative frequency are always kept, > 0.
        formula: ``"paper"``, or ``"code"`` as in the released word2vec and in gensim, which keeps
            a little more of every frequent word and starts to drop at
            :math:`f \approx 2.62\,t`, not at :math:`t`.

    Returns:
        Probabilities in (0, 1], float64.

    Raises:
        ValueError: If the threshold is not positive or the formula is unknown.

    References:
        Mikolov et al. 2013, arXiv:1310.4546, eq. 5 (there as the probability to discard).

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> keep_probability(torch.tensor([96, 4]), threshold=0.06)
        tensor([0.2500, 1.0000], dtype=torch.float64)
    """
    check_in_range("threshold", threshold, low=0.0, open_low=True)
    ratio = threshold * counts.sum() / counts.double()
    if formula == "paper":
        kept = ratio.sqrt()
    elif formula == "code":
        kept = ratio.sqrt() + ratio
    else:
        raise ValueError(f'formula must be "paper" or "code", got {formula!r}')
    return kept.clamp(max=1.0)


def subsample(
    ids: Int[Tensor, " token"],
    keep: Float[Tensor, " vocab"],
    *,
    generator: torch.Generator,
) -> Int[Tensor, " kept"]:
    """Drop each token independently, keeping it with the probability of its word.

    Args:
        ids: The running text.
        keep: Probability to keep each word, from :func:`keep_probability`.
        generator: The source of randomness.

    Returns:
        Positions that are kept, increasing: ``ids[positions]`` is the shorter text.

    Raises:
        ValueError: If an id is outside the vocabulary.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> subsample(torch.tensor([0, 1, 0]), torch.tensor([1.0, 0.0]), generator=g)
        tensor([0, 2])
    """
    check_ids("ids", ids, len(keep))
    drawn = torch.rand(len(ids), generator=generator, device=generator.device).to(ids.device)
    return (drawn < keep.to(ids.device)[ids]).nonzero().squeeze(1)


def noise_distribution(
    counts: Int[Tensor, " vocab"], *, power: float = 0.75
) -> Float[Tensor, " vocab"]:
    r"""Distribution from which negative samples are drawn.

    .. math::

        P_n(c) = \frac{\#(c)^{\alpha}}{\sum_{c'} \#(c')^{\alpha}}

    Args:
        counts: How often each word occurs.
        power: The exponent :math:`\alpha`: 1 is the unigram distribution, 0 the uniform one, and
            3/4 the choice of word2vec, which draws rare words more often than they occur.

    Returns:
        Probabilities, float64.

    Raises:
        ValueError: If the power is not finite.

    References:
        Mikolov et al. 2013, arXiv:1310.4546, section 2.2.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> noise_distribution(torch.tensor([81, 16]))
        tensor([0.7714, 0.2286], dtype=torch.float64)
    """
    check_in_range("power", power, low=float("-inf"), open_low=True, open_high=True)
    weights = counts.double() ** power
    return weights / weights.sum()


def cooccurrence(
    ids: Int[Tensor, " token"],
    *,
    size: int,
    window: int,
    weighting: Literal["uniform", "dynamic", "harmonic"] = "uniform",
    documents: Int[Tensor, " token"] | None = None,
) -> Float[Tensor, "vocab vocab"]:
    r"""Count how often each pair of words occurs within a window of each other.

    .. math::

        X_{wc} = \sum_{1 \le o \le m} \omega_o
        \left(\#\{t : x_t = w,\ x_{t+o} = c\} + \#\{t : x_t = c,\ x_{t+o} = w\}\right)

    Args:
        ids: The running text.
        size: Number of words in the vocabulary.
        window: Largest distance :math:`m` that counts, 1 or above.
        weighting: What a pair at distance :math:`o` counts: ``"uniform"`` 1; ``"dynamic"``
            :math:`(m - o + 1)/m`, the expected count when word2vec draws each window's reach
            uniformly from 1 to :math:`m`; ``"harmonic"`` :math:`1/o`, as GloVe does.
        documents: For each position the number of its document; pairs never cross documents.

    Returns:
        A symmetric, coalesced sparse matrix, float64, on the device of ``ids``.

    Raises:
        ValueError: If the window, an id or the weighting is out of range.

    Numerics:
        Time and memory grow as the number of tokens times the window (a sort per distance), not
        as the square of the vocabulary. Counts are exact up to 2**53.

    References:
        Pennington et al. 2014, DOI 10.3115/v1/D14-1162, section 4.2 (harmonic weights); Levy et al.
        2015, DOI 10.1162/tacl_a_00134, section 3.1 (dynamic windows).

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> cooccurrence(torch.tensor([0, 1, 1]), size=2, window=1).to_dense()
        tensor([[0., 1.],
                [1., 2.]], dtype=torch.float64)
    """
    check_count("window", window)
    check_ids("ids", ids, size)
    weights: dict[str, Callable[[int], float]] = {
        "uniform": lambda offset: 1.0,
        "dynamic": lambda offset: (window - offset + 1) / window,
        "harmonic": lambda offset: 1.0 / offset,
    }
    if weighting not in weights:
        raise ValueError(f"weighting must be one of {sorted(weights)}, got {weighting!r}")
    ids = ids.long()
    keys, counts = [], []
    for offset in range(1, min(window, len(ids) - 1) + 1):
        first, second = ids[:-offset], ids[offset:]
        if documents is not None:
            same = documents[:-offset] == documents[offset:]
            first, second = first[same], second[same]
        # Both orders of a pair share one key (smaller id first), which halves the sort.
        pair = torch.minimum(first, second) * size + torch.maximum(first, second)
        key, count = torch.unique(pair, return_counts=True)
        keys.append(key)
        counts.append(count.double() * weights[weighting](offset))
    if not keys:
        empty = ids.new_zeros(2, 0)
        return torch.sparse_coo_tensor(
            empty, empty[0].double(), (size, size), check_invariants=False
        ).coalesce()
    merged, where = torch.unique(torch.cat(keys), return_inverse=True)
    total = torch.zeros(len(merged), dtype=torch.float64, device=ids.device)
    total = total.index_add(0, where, torch.cat(counts))
    low, high = merged // size, merged % size
    # A pair of equal words is seen from both of its ends, so the diagonal counts twice.
    upper = torch.stack([torch.cat([low, high]), torch.cat([high, low])])
    return torch.sparse_coo_tensor(
        upper, torch.cat([total, total]), (size, size), check_invariants=False
    ).coalesce()
