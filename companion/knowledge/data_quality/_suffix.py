r"""Suffix arrays, and the stretches of text that stand in a corpus more than once."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from companion.core import check_count, check_several

__all__ = ["Span", "SuffixArray", "cut_spans", "duplicate_spans", "suffix_array"]


class SuffixArray(NamedTuple):
    """The suffixes of a row of n symbols in the order of a dictionary.

    Attributes:
        starts: Where each suffix begins.
        common: How many symbols each suffix shares with the one before it; 0 for the first.
    """

    starts: Int[Tensor, "... n"]
    common: Int[Tensor, "... n"]


def suffix_array(symbols: Int[Tensor, " n"]) -> SuffixArray:
    r"""Sort all suffixes of a row of symbols, by doubling the length that is compared.

    After round :math:`j` the suffixes are ranked by their first :math:`2^j` symbols; a pair of such
    ranks ranks them by :math:`2^{j+1}`. A repeated stretch of length :math:`\ell` lies side by side
    in the array, with a common prefix of at least :math:`\ell`.

    Args:
        symbols: Token ids, code points or bytes, all 0 or more.

    Returns:
        The starts of the suffixes in order, and the common prefixes of neighbors.

    Raises:
        ValueError: If the symbols are no row of integers.

    Numerics:
        :math:`O(n\log n)` for each of the :math:`\lceil\log_2\ell_{\max}\rceil` rounds, where
        :math:`\ell_{\max}` is the longest repeated stretch. The ranks of all rounds are kept for
        the common prefixes: 8 bytes a symbol and round.

    References:
        Manber and Myers 1993, doi:10.1137/0222058.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> found = suffix_array(torch.tensor(list(b"banana")))
        >>> found.starts.tolist(), found.common.tolist()
        ([5, 3, 1, 0, 4, 2], [0, 1, 3, 0, 0, 2])
    """
    _check_row("symbols", symbols)
    n = symbols.shape[0]
    levels = [_ranks(symbols)] if n else []
    while n and int(levels[-1].max()) + 1 < n:
        width = 1 << (len(levels) - 1)
        levels.append(_paired(levels[-1], _shifted(levels[-1], width)))
    starts = levels[-1].argsort() if n else symbols.long()
    common = torch.zeros_like(starts)
    here, before = starts[1:], starts[:-1]
    for level in range(len(levels) - 1, -1, -1):
        width = 1 << level
        a, b = here + common[1:], before + common[1:]
        inside = (a + width <= n) & (b + width <= n)
        rank = levels[level]
        same = inside & (rank[a.clamp(max=n - 1)] == rank[b.clamp(max=n - 1)])
        common[1:] += torch.where(same, width, 0)
    return SuffixArray(starts, common)


def _shifted(rank: Tensor, width: int) -> Tensor:
    """The rank of what follows after some symbols; -1 beyond the end, which comes first."""
    end = torch.full((min(width, rank.shape[0]),), -1, dtype=rank.dtype, device=rank.device)
    return torch.cat([rank[width:], end])


def _paired(first: Tensor, second: Tensor) -> Tensor:
    """The rank of a pair of ranks, with equal ranks for equal pairs."""
    key = first * (first.shape[0] + 1) + second + 1
    return _ranks(key)


def _ranks(values: Tensor) -> Tensor:
    """The place of each value among the different ones, from 0."""
    rising, order = values.sort()
    steps = torch.zeros_like(order)
    steps[1:] = (rising[1:] != rising[:-1]).long()
    return torch.empty_like(order).scatter_(0, order, steps.cumsum(0))


class Span(NamedTuple):
    """A stretch of a document.

    Attributes:
        start: Its first symbol.
        stop: One more than its last symbol.
    """

    start: int
    stop: int


def duplicate_spans(
    documents: Sequence[str] | Sequence[Int[Tensor, " _n"]],
    *,
    length: int,
    keep: Literal["first", "none"] = "first",
) -> list[list[Span]]:
    r"""Find every stretch of a given length that stands in the corpus more than once.

    A stretch lies within one document; none crosses the border of two. Strings are compared by
    characters, never by bytes, so what is cut is always whole characters.

    Args:
        documents: Strings, or rows of token ids.
        length: Least number of characters or tokens of a stretch.
        keep: ``"first"`` leaves the first occurrence in the corpus and marks the later ones;
            ``"none"`` marks them all. An occurrence that overlaps the first one, as in a run of
            one letter, is not marked with ``"first"``.

    Returns:
        For each document the marked stretches in order, those that touch or overlap joined.

    Raises:
        ValueError: If the length is below 1, ``keep`` is unknown, or a document is no row of
            integers.

    Numerics:
        Exact, without hashing: prefix doubling up to the length and not to the longest repeat, so
        :math:`\lceil\log_2\text{length}\rceil` sorts of all symbols, at 8 bytes each.
        With ``"first"`` every marked window stands in the corpus before; a part of that earlier
        copy may be marked itself, as a copy of something earlier still.

    References:
        Lee et al. 2022, arXiv:2107.06499, sec. 4.1: 50 tokens, found by a suffix array.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> duplicate_spans(["one two three", "a two three b"], length=8)
        [[], [Span(start=1, stop=11)]]
    """
    check_several("documents", documents)
    check_count("length", length)
    if keep not in ("first", "none"):
        raise ValueError(f"unknown keep {keep!r}: choose 'first' or 'none'")
    rows = [_symbols(document) for document in documents]
    sizes = torch.tensor([row.shape[0] for row in rows], dtype=torch.long)
    if not rows or int(sizes.max()) < length:
        return [[] for _ in rows]
    ends = sizes.cumsum(0)
    every = torch.cat(rows)
    home = torch.arange(len(rows)).repeat_interleave(sizes)
    starts = torch.arange(every.shape[0])
    starts = starts[starts + length <= ends[home]]
    rank = _window_ranks(every, length)[starts]
    # Windows of one rank side by side, in the order of the corpus.
    rank, order = rank.sort(stable=True)
    place = starts[order]
    fresh = torch.ones_like(rank, dtype=torch.bool)
    fresh[1:] = rank[1:] != rank[:-1]
    group = fresh.cumsum(0) - 1
    first = place[fresh][group]
    again = ~fresh & ((place - first >= length) | (home[place] != home[first]))
    if keep == "none":
        repeated = torch.zeros(int(group[-1]) + 1, dtype=torch.bool)
        repeated[group[~fresh]] = True
        again = repeated[group]
    edge = torch.zeros(every.shape[0] + 1, dtype=torch.long)
    edge.index_add_(0, place[again], torch.ones_like(place[again]))
    edge.index_add_(0, place[again] + length, -torch.ones_like(place[again]))
    covered = edge.cumsum(0)[:-1] > 0
    return [_runs(covered[a:b]) for a, b in pairwise([0, *ends.tolist()])]


def _window_ranks(symbols: Tensor, length: int) -> Tensor:
    """The rank of the window that begins at each symbol; those beyond the end mean nothing."""
    rank = _ranks(symbols)
    width = 1
    while 2 * width <= length:
        rank = _paired(rank, _shifted(rank, width))
        width *= 2
    # Two windows of a power of two that overlap make one of any length.
    return rank if width == length else _paired(rank, _shifted(rank, length - width))


def _runs(covered: Tensor) -> list[Span]:
    padded = torch.nn.functional.pad(covered.to(torch.int8), (1, 1))
    change = padded.diff().nonzero()[:, 0].tolist()
    return [Span(a, b) for a, b in zip(change[::2], change[1::2], strict=True)]


def cut_spans(document: str, spans: Sequence[Span]) -> str:
    """Take stretches out of a text.

    Args:
        document: The text.
        spans: Stretches in order, as :func:`duplicate_spans` gives them.

    Returns:
        What is left.

    Raises:
        ValueError: If the stretches are out of order or reach beyond the text.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> cut_spans("éa", [Span(0, 1)])
        'a'
    """
    kept, at = [], 0
    for start, stop in spans:
        if not at <= start <= stop <= len(document):
            raise ValueError(
                f"the stretch {start} to {stop} is out of order, or beyond {len(document)} "
                "characters"
            )
        kept.append(document[at:start])
        at = stop
    return "".join([*kept, document[at:]])


def _symbols(document: str | Tensor) -> Tensor:
    if isinstance(document, str):
        encoded = document.encode("utf-32-le", "surrogatepass")
        return torch.from_numpy(np.frombuffer(encoded, dtype="<u4").astype(np.int64))
    _check_row("documents", document)
    return document.long().cpu()


def _check_row(name: str, symbols: Tensor) -> None:
    if symbols.ndim != 1 or symbols.is_floating_point() or symbols.dtype == torch.bool:
        raise ValueError(
            f"{name} must be one row of integers, got {symbols.dtype} of shape "
            f"{tuple(symbols.shape)}"
        )
