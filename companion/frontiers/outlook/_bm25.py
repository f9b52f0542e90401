r"""BM25: an index of words, and scores that saturate."""

from collections.abc import Sequence
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer
from scipy import sparse
from torch import Tensor

from companion.core import can_read, check_count, check_in_range, check_several

__all__ = ["BM25", "Found", "IdfVariant", "bm25_idf", "bm25_saturation"]

#: Names of the formulas of :func:`bm25_idf`.
IdfVariant = Literal["lucene", "robertson", "floored", "okapi", "atire"]


class Found(NamedTuple):
    """Documents, the best first.

    Attributes:
        documents: Their numbers.
        scores: Their scores.
    """

    documents: Integer[Tensor, "queries k"]
    scores: Float[Tensor, "queries k"]


def bm25_idf(
    frequencies: Integer[Tensor, " terms"], documents: int, *, variant: IdfVariant = "lucene"
) -> Float[Tensor, " terms"]:
    r"""Weigh terms by the number of documents that have them.

    ============= ============================================================================
    variant       weight of a term in :math:`n` of :math:`N` documents
    ============= ============================================================================
    ``lucene``    :math:`\ln(1 + \frac{N - n + 1/2}{n + 1/2})`, always positive
    ``robertson`` :math:`\ln \frac{N - n + 1/2}{n + 1/2}`, negative for :math:`n > N/2`
    ``floored``   the same, at least 0 (``method="robertson"`` of bm25s)
    ``okapi``     the same; negative ones become a quarter of the mean (rank-bm25)
    ``atire``     :math:`\ln(N/n)`
    ============= ============================================================================

    Args:
        frequencies: :math:`n` of each term, at least 1: documents, not occurrences.
        documents: :math:`N`.
        variant: The formula. The mean of ``okapi`` is over the terms that are given, so give all.

    Returns:
        Weights, float64.

    Raises:
        ValueError: If there is no such variant, or a frequency is not from 1 to the number.

    References:
        Robertson and Zaragoza 2009, doi:10.1561/1500000019; the variants in Kamphuis et al. 2020,
        doi:10.1007/978-3-030-45442-5_4.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> bm25_idf(torch.tensor([6]), 10), bm25_idf(torch.tensor([6]), 10, variant="robertson")
        (tensor([0.5261], dtype=torch.float64), tensor([-0.3677], dtype=torch.float64))
    """
    check_count("documents", documents)
    n = frequencies.double()
    if can_read(n) and bool(((n < 1) | (n > documents)).any()):
        raise ValueError(f"frequencies must lie between 1 and {documents}: count documents")
    ratio = (documents - n + 0.5) / (n + 0.5)
    if variant == "lucene":
        return ratio.log1p()
    if variant == "robertson":
        return ratio.log()
    if variant == "floored":
        return ratio.log().clamp_min(0.0)
    if variant == "atire":
        return (documents / n).log()
    if variant == "okapi":
        weights = ratio.log()
        return torch.where(weights < 0, 0.25 * weights.mean(), weights)
    raise ValueError(f"variant must be one of the names of bm25_idf's table, got {variant!r}")


def bm25_saturation(
    counts: Float[Tensor, "..."],
    lengths: Float[Tensor, "..."],
    *,
    k1: float = 1.5,
    b: float = 0.75,
) -> Float[Tensor, "..."]:
    r"""Compute what the occurrences of a term count.

    .. math:: \frac{(k_1 + 1) f}{f + k_1 (1 - b + b \ell)}

    Args:
        counts: Occurrences :math:`f`.
        lengths: Length :math:`\ell` of the document over the mean length.
        k1: How late it saturates: 0 counts presence, large values count occurrences.
        b: How much long documents are held back, from 0 to 1.

    Returns:
        Values from 0 to :math:`k_1 + 1`; 1 for one occurrence in a document of mean length.

    Raises:
        ValueError: If ``k1`` or ``b`` is out of range.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> bm25_saturation(torch.tensor([1.0, 2.0, 100.0]), torch.ones(3))
        tensor([1.0000, 1.4286, 2.4631])
    """
    check_in_range("k1", k1, low=0.0, open_high=True)
    check_in_range("b", b, low=0.0, high=1.0)
    below = counts + k1 * (1 - b + b * lengths)
    # With k1 = 0 an absent term would be 0 / 0.
    return (k1 + 1) * counts / below.masked_fill(below == 0, 1.0)


class BM25:
    r"""An index of documents, searched by words.

    The score of a document for a query is

    .. math:: \sum_{t \in q} \mathrm{idf}_t \frac{(k_1 + 1) f_t}{f_t + k_1 (1 - b + b\,\ell)}

    with the occurrences :math:`f_t` in the document and its length :math:`\ell` over the mean. A
    word that stands twice in a query counts twice.

    Args:
        documents: Each as its words. Stop words, stems and case are the caller's choice.
        k1: As in :func:`bm25_saturation`.
        b: As in :func:`bm25_saturation`.
        variant: As in :func:`bm25_idf`. On a few documents the negative ones of ``robertson`` put
            documents with a word of the query below those without.
        scale: Multiply by :math:`k_1 + 1`. It changes no order; Lucene and bm25s leave it out.

    Attributes:
        vocabulary: Number of each word.
        weights: Scores of all pairs of a document and a word, sparse, (documents, words).

    Raises:
        ValueError: If there is no document, none has a word, one is a plain text in place of
            words, or a setting is out of range.

    References:
        Robertson and Zaragoza 2009, doi:10.1561/1500000019; scores at indexing time as in
        bm25s, Lù 2024, arXiv:2407.03618.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> index = BM25([["the", "cat"], ["the", "dog", "barks"], ["a", "bird"]])
        >>> index.search([["dog"]], k=1).documents
        tensor([[1]])
    """

    def __init__(
        self,
        documents: Sequence[Sequence[str]],
        *,
        k1: float = 1.5,
        b: float = 0.75,
        variant: IdfVariant = "lucene",
        scale: bool = True,
    ) -> None:
        check_several("documents", documents)
        check_count("documents", len(documents))
        if any(isinstance(words, str) for words in documents):
            raise ValueError("each document must be a list of words, got a text: split it first")
        lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
        if not lengths.any():
            raise ValueError("no document has a word")
        words = list(chain.from_iterable(documents))
        self.vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
        numbers = np.fromiter(map(self.vocabulary.__getitem__, words), np.int64, len(words))
        of = np.repeat(np.arange(len(documents)), lengths)
        # One sort of (word, document) gives counts, document frequencies and the index by word.
        keys = numbers * len(documents) + of
        keys.sort()
        first = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
        counts = torch.from_numpy(np.diff(first, append=len(keys)))
        term, document = np.divmod(keys[first], len(documents))
        frequencies = np.bincount(term, minlength=len(self.vocabulary))
        idf = bm25_idf(torch.from_numpy(frequencies), len(documents), variant=variant)
        relative = torch.from_numpy(lengths / lengths.mean())[torch.from_numpy(document)]
        values = bm25_saturation(counts.double(), relative, k1=k1, b=b)
        values = values * idf[torch.from_numpy(term)] / (1.0 if scale else k1 + 1)
        starts = np.concatenate([[0], np.cumsum(frequencies)])
        self._by_word = sparse.csr_array(
            (values.numpy(), document, starts), shape=(len(self.vocabulary), len(documents))
        )

    def __len__(self) -> int:
        return int(self._by_word.shape[1])

    @property
    def weights(self) -> Tensor:
        """Scores of all pairs of a document and a word, as a sparse tensor."""
        made = self._by_word.tocoo()
        places = torch.from_numpy(np.stack([made.col, made.row]).astype(np.int64))
        values = torch.from_numpy(made.data)
        shape = (len(self), len(self.vocabulary))
        return torch.sparse_coo_tensor(places, values, shape, check_invariants=False).coalesce()

    def scores(self, queries: Sequence[Sequence[str]]) -> Float[Tensor, "queries documents"]:
        """Score all documents for each query.

        Args:
            queries: Each as its words; words that no document has count nothing.

        Returns:
            The scores, float64.

        Raises:
            ValueError: If a query is a plain text in place of words.

        Example:
            >>> BM25([["a"], ["b"]], variant="atire").scores([["a", "c"]])
            tensor([[0.6931, 0.0000]], dtype=torch.float64)
        """
        check_several("queries", queries)
        if any(isinstance(words, str) for words in queries):
            raise ValueError("each query must be a list of words, got a text: split it first")
        get = self.vocabulary.get
        rows = [[n for n in map(get, words) if n is not None] for words in queries]
        made = torch.zeros(len(queries), len(self), dtype=torch.float64)
        out = made.numpy()
        starts, where, values = self._by_word.indptr, self._by_word.indices, self._by_word.data
        for line, terms in zip(out, rows, strict=True):
            for term in terms:
                a, z = starts[term], starts[term + 1]
                line[where[a:z]] += values[a:z]  # a document stands once in a word's list
        return made

    def search(
        self, queries: Sequence[Sequence[str]], *, k: int = 10, batch_size: int = 64
    ) -> Found:
        """Find the best documents for each query.

        Args:
            queries: Each as its words.
            k: How many documents.
            batch_size: How many queries are scored at once.

        Returns:
            Numbers and scores. Equal scores stand in no order that one may rely on.

        Raises:
            ValueError: As in :meth:`scores`, or if ``k`` exceeds the number of documents.
        """
        check_count("k", k, high=len(self))
        check_count("batch_size", batch_size)
        parts = []
        for start in range(0, len(queries), batch_size):
            parts.append(self.scores(queries[start : start + batch_size]).topk(k, dim=1))
        values = [part.values for part in parts]
        if not parts:
            return Found(torch.zeros(0, k, dtype=torch.long), torch.zeros(0, k).double())
        return Found(torch.cat([part.indices for part in parts]), torch.cat(values))
