r"""Choosing texts by a model of good ones: perplexity, and importance weights of hashed n-grams."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from companion.core import check_count, check_floating, check_in_range, check_several
from companion.generation.decoding import gumbel_top_k
from companion.knowledge.data_quality._minhash import word_hashes, word_runs

__all__ = [
    "dsir_log_weights",
    "dsir_resample",
    "hashed_ngrams",
    "ngram_log_probs",
    "perplexity_filter",
]


def perplexity_filter(
    nats: Float[Tensor, " texts"],
    tokens: Int[Tensor, " texts"],
    *,
    high: float,
    low: float = 1.0,
) -> Bool[Tensor, " texts"]:
    r"""Keep the texts whose perplexity under a model of good text lies in a range.

    .. math:: \mathrm{PPL}(x)=\exp\Big(-\frac1n\sum_{t=1}^n\log p(x_t\mid x_{<t})\Big)

    Args:
        nats: Surprise of each text, summed over its tokens.
        tokens: How many tokens each has.
        high: Largest perplexity :math:`\tau`.
        low: Smallest; repetition has a very low one.

    Returns:
        Which texts stay. A text without tokens does not.

    Raises:
        ValueError: If the shapes differ or the range is empty.

    References:
        Wenzek et al. 2020, arXiv:1911.00359, who split the web in thirds.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> perplexity_filter(torch.tensor([30.0, 90.0]), torch.tensor([10, 10]), high=100.0)
        tensor([ True, False])
    """
    check_floating("nats", nats)
    if nats.shape != tokens.shape:
        raise ValueError(
            f"nats and tokens must have the same shape, got {tuple(nats.shape)} and "
            f"{tuple(tokens.shape)}"
        )
    check_in_range("high", high, low=1.0)
    check_in_range("low", low, low=0.0, high=high)
    perplexity = (nats / tokens.clamp(min=1)).exp()
    return (tokens > 0) & (perplexity <= high) & (perplexity >= low)


def hashed_ngrams(
    texts: Sequence[str], *, buckets: int = 10_000, n: int = 2
) -> Float[Tensor, "texts buckets"]:
    """Count the words and runs of up to n words of each text, hashed into buckets.

    Args:
        texts: The texts.
        buckets: How many buckets; n-grams that fall into one are counted together.
        n: Longest run.

    Returns:
        Counts in float32.

    Raises:
        ValueError: If buckets or n are below 1, or a single text is given.

    References:
        Xie et al. 2023, arXiv:2302.03169: unigrams and bigrams, 10,000 buckets.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> hashed_ngrams(["to be or not to be"], buckets=64).sum()
        tensor(11.)
    """
    check_several("texts", texts)
    check_count("buckets", buckets)
    check_count("n", n)
    counts = torch.zeros(len(texts), buckets)
    for row, text in enumerate(texts):
        words = word_hashes(text)
        for length in range(1, min(n, len(words)) + 1):
            bucket = (word_runs(words, length) % np.uint64(buckets)).astype(np.int64)
            counts[row] += torch.from_numpy(np.bincount(bucket, minlength=buckets))
    return counts


def ngram_log_probs(
    counts: Float[Tensor, "texts buckets"], *, add: float = 1.0
) -> Float[Tensor, " buckets"]:
    r"""The log-probabilities :math:`\log\gamma` of buckets in a corpus.

    Args:
        counts: Of its texts, as :func:`hashed_ngrams` gives them.
        add: Added to each bucket, above 0, so that none is impossible.

    Returns:
        Log-probabilities in float64, in nats.

    Raises:
        ValueError: If nothing is added.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> ngram_log_probs(torch.tensor([[1.0, 0.0, 2.0]])).exp()
        tensor([0.3333, 0.1667, 0.5000], dtype=torch.float64)
    """
    check_in_range("add", add, low=0.0, open_low=True)
    total = counts.double().sum(0) + add
    return (total / total.sum()).log()


def dsir_log_weights(
    counts: Float[Tensor, "texts buckets"],
    target: Float[Tensor, " buckets"],
    raw: Float[Tensor, " buckets"],
) -> Float[Tensor, " texts"]:
    r"""Log importance weights of texts between two bags of hashed n-grams.

    .. math:: \log w(x)=\sum_jz_j(x)\big(\log\gamma^{\text{target}}_j-\log\gamma^{\text{raw}}_j\big)

    Args:
        counts: Counts :math:`z` of the texts to choose from.
        target: Log-probabilities of the buckets where texts are wanted from.
        raw: Log-probabilities of the buckets in the whole corpus.

    Returns:
        Log weights in float64. They grow with the length of a text: long texts are chosen or
        refused with more certainty.

    Raises:
        ValueError: If the numbers of buckets differ.

    References:
        Xie et al. 2023, arXiv:2302.03169.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> half, other = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.8, 0.2]).log()
        >>> dsir_log_weights(torch.tensor([[2.0, 1.0]]), other, half).exp()
        tensor([1.0240], dtype=torch.float64)
    """
    if not counts.shape[-1] == target.shape[0] == raw.shape[0]:
        raise ValueError(
            f"counts, target and raw must agree in their buckets, got {counts.shape[-1]}, "
            f"{target.shape[0]} and {raw.shape[0]}"
        )
    return counts.double() @ (target.double() - raw.double())


def dsir_resample(
    log_weights: Float[Tensor, " texts"], k: int, *, generator: torch.Generator
) -> Int[Tensor, " k"]:
    r"""Draw texts without replacement, each time in proportion to the weights of what is left.

    The k largest of :math:`\log w_i+g_i` with independent Gumbel noise :math:`g_i` are such a draw.
    Taking the k largest weights themselves is none: it leaves out the variety of the target.

    Args:
        log_weights: Of :func:`dsir_log_weights`.
        k: How many texts, at most as many as there are.
        generator: Draws the noise.

    Returns:
        Numbers of the texts, in the order in which they are drawn.

    Raises:
        ValueError: If k is out of range.

    References:
        Xie et al. 2023, arXiv:2302.03169; Kool et al. 2019, arXiv:1903.06059.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> dsir_resample(torch.zeros(5), 3, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([3])
    """
    check_floating("log_weights", log_weights)
    check_count("k", k, high=log_weights.shape[-1])
    return gumbel_top_k(log_weights, k, generator=generator)
