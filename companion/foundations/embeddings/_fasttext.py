r"""FastText: a word is the sum of its parts, so that unseen words have vectors too."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from companion.core import check_count, check_several, resolve_device
from companion.foundations.embeddings._blocks import (
    block_coefficients,
    block_gradients,
    block_loss,
)
from companion.foundations.embeddings._corpus import Corpus
from companion.foundations.embeddings._engine import Chunk, Sampler, Schedule, initial_tables, run
from companion.foundations.embeddings._model import Embeddings

__all__ = [
    "FastTextEmbeddings",
    "Subwords",
    "character_ngrams",
    "fnv1a",
    "subword_vectors",
    "subwords",
    "train_fasttext",
]


def fnv1a(text: str) -> int:
    r"""Hash a string to 32 bits as the released fastText does.

    Starting from :math:`h = 2166136261`, for each byte :math:`b` of the UTF-8 form

    .. math::

        h \leftarrow \big((h \oplus b) \cdot 16777619\big) \bmod 2^{32}.

    The released code takes the byte as a *signed* char and widens it to 32 bits, so that a byte of
    128 or above flips the upper 24 bits as well. Chinese and accented letters therefore hash
    differently from the published FNV-1a; ASCII text does not.

    Args:
        text: Any string.

    Returns:
        An integer in 0, ..., 2**32 - 1.

    References:
        Bojanowski et al. 2017, arXiv:1607.04606, section 3.2; Fowler, Noll and Vo's FNV-1a,
        RFC 9923.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> fnv1a("a") == ((2166136261 ^ 97) * 16777619) % 2**32
        True
    """
    value = 2166136261
    for byte in text.encode("utf-8"):
        signed = byte if byte < 128 else byte | 0xFFFFFF00
        value = ((value ^ signed) * 16777619) & 0xFFFFFFFF
    return value


def character_ngrams(word: str, *, min_n: int = 3, max_n: int = 6) -> list[str]:
    """List the character n-grams of a word between angle brackets.

    Args:
        word: The word.
        min_n: Shortest n-gram, in characters, 1 or above.
        max_n: Longest n-gram.

    Returns:
        The n-grams in order of their start, shorter ones first; a bracket alone is left out, as in
        the released code. The whole word in brackets is among them if it is short enough.

    Raises:
        ValueError: If the lengths are out of order.

    References:
        Bojanowski et al. 2017, arXiv:1607.04606, section 3.2.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> character_ngrams("where", min_n=3, max_n=3)
        ['<wh', 'whe', 'her', 'ere', 're>']
    """
    check_count("min_n", min_n)
    check_count("max_n", max_n, low=min_n)
    framed = f"<{word}>"
    return [
        framed[start : start + length]
        for start in range(len(framed))
        for length in range(min_n, max_n + 1)
        if start + length <= len(framed)
        and not (length == 1 and (start == 0 or start + 1 == len(framed)))
    ]


@dataclass(frozen=True, eq=False)
class Subwords:
    """The parts of words, as rows of a table.

    Args:
        ids: The rows of all words, one word after the other.
        offsets: Where each word starts in ``ids``.
    """

    ids: Int[Tensor, " part"]
    offsets: Int[Tensor, " word"]

    @property
    def lengths(self) -> Int[Tensor, " word"]:
        """Number of parts of each word."""
        ends = F.pad(self.offsets[1:], (0, 1), value=len(self.ids))
        return ends - self.offsets


def subwords(
    words: Sequence[str],
    *,
    buckets: int,
    known: int = 0,
    min_n: int = 3,
    max_n: int = 6,
) -> Subwords:
    r"""Find the rows of each word's parts: its own row if it is known, then its hashed n-grams.

    Args:
        words: The words. The first ``known`` of them have a row of their own.
        buckets: Number of rows that n-grams are hashed to. Different n-grams can share one.
        known: Number of words of the vocabulary; n-gram rows come after theirs.
        min_n: Shortest n-gram.
        max_n: Longest n-gram.

    Returns:
        The rows.

    Raises:
        ValueError: If ``buckets`` is below 1, or ``words`` is one text.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> subwords(["ab"], buckets=10, known=1, min_n=3, max_n=4).lengths  # ab, <ab, <ab>, ab>
        tensor([4])
    """
    check_several("words", words)
    check_count("buckets", buckets)
    flat: list[int] = []
    offsets: list[int] = []
    for number, word in enumerate(words):
        offsets.append(len(flat))
        if number < known:
            flat.append(number)
        flat += [
            known + fnv1a(gram) % buckets
            for gram in character_ngrams(word, min_n=min_n, max_n=max_n)
        ]
    return Subwords(
        ids=torch.tensor(flat, dtype=torch.int64), offsets=torch.tensor(offsets, dtype=torch.int64)
    )


def subword_vectors(
    table: Float[Tensor, "row dim"],
    ids: Int[Tensor, " part"],
    offsets: Int[Tensor, " word"],
    *,
    mode: Literal["sum", "mean"] = "sum",
) -> Float[Tensor, "word dim"]:
    r"""Compose the vectors of words from the vectors of their parts.

    .. math::

        v_w = \sum_{g \in \mathcal G_w} z_g
        \qquad\text{so that}\qquad
        s(w, c) = \sum_{g \in \mathcal G_w} z_g \cdot u_c

    Args:
        table: The vectors :math:`z_g`.
        ids: Rows of the parts of all words, one word after the other.
        offsets: Where each word starts in ``ids``.
        mode: ``"sum"`` as in the paper, or ``"mean"`` as in the released code.

    Returns:
        One vector for each word; zero for a word without parts.

    Raises:
        ValueError: If the mode is unknown.

    References:
        Bojanowski et al. 2017, arXiv:1607.04606, section 3.2.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> z = torch.tensor([[1.0], [2.0], [4.0]])
        >>> subword_vectors(z, torch.tensor([0, 1, 2]), torch.tensor([0, 1])).T
        tensor([[1., 6.]])
    """
    if mode not in ("sum", "mean"):
        raise ValueError(f'mode must be "sum" or "mean", got {mode!r}')
    ends = F.pad(offsets[1:], (0, 1), value=ids.shape[0])
    lengths = ends - offsets
    word = torch.repeat_interleave(lengths, output_size=ids.shape[0])
    total = table.new_zeros(offsets.shape[0], table.shape[1])
    total = total.index_add(0, word, table.index_select(0, ids))
    if mode == "mean":
        total = total / lengths.clamp(min=1).unsqueeze(1)
    return total


@dataclass(frozen=True, eq=False, kw_only=True)
class FastTextEmbeddings(Embeddings):
    """Word vectors together with the vectors of the parts, from which unseen words are composed.

    Args:
        table: One row for each word, then one for each bucket of n-grams.
        min_n: Shortest n-gram.
        max_n: Longest n-gram.
    """

    table: Float[Tensor, "row dim"]
    min_n: int = 3
    max_n: int = 6

    def compose(self, words: Iterable[str]) -> Embeddings:
        """Compose vectors for any words, seen in training or not, from their n-grams.

        Args:
            words: The words.

        Returns:
            Their vectors. A word of the vocabulary has the same vector as in ``vectors``.

        Raises:
            ValueError: If a word has no n-gram, such as the empty string, or ``words`` is one
                text: for one word see :meth:`vector`.
        """
        check_several("words", words)
        listed = tuple(words)
        rows: list[int] = []
        offsets: list[int] = []
        known = len(self)
        for word in listed:
            offsets.append(len(rows))
            own = [self.index[word]] if word in self.index else []
            grams = character_ngrams(word, min_n=self.min_n, max_n=self.max_n)
            own += [known + fnv1a(gram) % (len(self.table) - known) for gram in grams]
            if not own:
                raise ValueError(f"{word!r} has no n-grams of {self.min_n} or more characters")
            rows += own
        place = self.table.device
        vectors = subword_vectors(
            self.table,
            torch.tensor(rows, device=place),
            torch.tensor(offsets, device=place),
            mode="mean",
        )
        return Embeddings(words=listed, vectors=vectors)

    def restrict(self, words: Iterable[str]) -> Embeddings:
        """Keep the word vectors of some words, without the parts.

        Args:
            words: The words to keep; unseen ones are left out.

        Returns:
            Smaller tables.

        Raises:
            ValueError: If ``words`` is one text.
        """
        return Embeddings(
            words=self.words, vectors=self.vectors, contexts=self.contexts, losses=self.losses
        ).restrict(words)

    def vector(self, word: str) -> Float[Tensor, " dim"]:
        """Return the vector of any word.

        Args:
            word: A word, seen in training or not.

        Returns:
            The vector.
        """
        return self.compose([word]).vectors[0]


def train_fasttext(
    corpus: Corpus,
    *,
    dim: int = 100,
    buckets: int = 200_000,
    min_n: int = 3,
    max_n: int = 6,
    schedule: Schedule | None = None,
    generator: torch.Generator,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> FastTextEmbeddings:
    r"""Train fastText: skip-gram with negative sampling on vectors composed from n-grams.

    As in the released code a word's vector is the *mean* of its parts, and each part receives the
    gradient by the word's vector without the factor :math:`1/|\mathcal G_w|` of the mean, which
    makes a step move the word as far as it does in skip-gram.

    Args:
        corpus: The text.
        dim: Length of the vectors.
        buckets: Rows for n-grams; the released code has two million.
        min_n: Shortest n-gram.
        max_n: Longest n-gram.
        schedule: Window, negatives, learning rate and the rest; the defaults by default.
        generator: The source of randomness. With one worker, it alone decides the result.
        device: Where the tables live; by default where the corpus is.
        dtype: Floating dtype of the tables.

    Returns:
        Word, context and n-gram vectors.

    Raises:
        ValueError: If the device is not there, or a setting is out of range.

    References:
        Bojanowski et al. 2017, arXiv:1607.04606.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    plan = schedule or Schedule()
    place = corpus.ids.device if device is None else resolve_device(device)
    words = corpus.vocabulary.words
    parts = subwords(words, buckets=buckets, known=len(words), min_n=min_n, max_n=max_n)
    ids, offsets, lengths = (part.to(place) for part in (parts.ids, parts.offsets, parts.lengths))
    table, contexts = initial_tables(
        corpus, len(words) + buckets, dim, generator=generator, device=place, dtype=dtype
    )
    sampler = Sampler(corpus, plan, device=place, predict="context")
    coefficient_table, signs = block_coefficients(
        block=plan.block,
        window=plan.window,
        negatives=plan.negatives,
        shared=plan.shared,
        dtype=dtype,
    )
    coefficient_table, signs = coefficient_table.to(place), signs.to(place)
    blocks = sampler.blocks
    # The parts of all centers of a chunk, found once a chunk: rows, owners, where a step starts.
    found: dict[int, tuple[Tensor, Tensor, list[int]]] = {}

    def prepare(chunk: Chunk) -> None:
        centers = chunk.centers.flatten()
        size = lengths[centers]
        ends = size.cumsum(0)
        total = int(ends[-1])
        owner = torch.repeat_interleave(size, output_size=total)
        first = offsets[centers] - (ends - size)
        rows = ids[torch.arange(total, device=place) + first[owner]]
        per_step = chunk.centers.shape[1]
        starts = [0, *ends[per_step - 1 :: per_step].tolist()]
        found[threading.get_ident()] = rows, owner % per_step, starts

    def step(chunk: Chunk, number: int, rate: float, report: bool) -> Tensor | None:
        rows, owner, starts = found[threading.get_ident()]
        stretch = slice(starts[number], starts[number + 1])
        rows, owner = rows[stretch], owner[stretch]
        centers, others = chunk.centers[number], chunk.others[number]
        total = table.new_zeros(len(centers), dim)
        total.index_add_(0, owner, table.index_select(0, rows))
        v = total.div_(lengths[centers].unsqueeze(1)).view(blocks, -1, dim)
        u = contexts.index_select(0, others).view(blocks, -1, dim)
        coefficients = coefficient_table.index_select(0, chunk.rows[number])
        coefficients = coefficients.view(blocks, plan.block, -1)
        loss = None
        if report:
            pairs = -coefficients.clamp(max=0).sum()
            loss = block_loss(v, u, coefficients, signs) / pairs.clamp(min=1)
        by_v, by_u = block_gradients(v, u, coefficients, signs)
        table.index_add_(0, rows, by_v.view(-1, dim).index_select(0, owner), alpha=-rate)
        contexts.index_add_(0, others, by_u.view(-1, dim), alpha=-rate)
        return loss

    losses = run(sampler, step, generator=generator, prepare=prepare)
    return FastTextEmbeddings(
        words=words,
        vectors=subword_vectors(table, ids, offsets, mode="mean"),
        contexts=contexts,
        losses=losses,
        table=table,
        min_n=min_n,
        max_n=max_n,
    )
