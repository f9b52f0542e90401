r"""Matches of n-grams of all orders, for all texts of a corpus, by one sort."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_Array = np.ndarray[Any, np.dtype[np.int64]]


def count_overlaps(
    texts: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]], *, order: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Count n-grams that are shared, of the references, and of the texts.

    A text is a sequence of symbols: a string of characters or a list of words.

    Returns:
        Matches and counts of the references, of shape (most references, texts, order), and counts
        of the texts, (texts, order). Missing references have zeros. float64.
    """
    most = max(len(r) for r in references)
    matched = np.zeros((most, len(texts), order))
    theirs = np.zeros((most, len(texts), order))
    for k in range(most):
        rows = [i for i, r in enumerate(references) if len(r) > k]
        chosen = [references[i][k] for i in rows]
        sizes = np.array([len(r) for r in chosen])
        theirs[k, rows] = np.maximum(sizes[:, None] - np.arange(order), 0)
        matched[k, rows] = _matches([texts[i] for i in rows], [[r] for r in chosen], order)
    return torch.from_numpy(matched), torch.from_numpy(theirs), gram_totals(texts, order)


def clipped_matches(
    texts: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]], *, order: int
) -> Tensor:
    """Count n-grams, each no more often than the reference has it that has it most often."""
    return torch.from_numpy(_matches(list(texts), [list(r) for r in references], order))


def gram_totals(texts: Sequence[Sequence[str]], order: int) -> Tensor:
    """How many n-grams each text has, order by order."""
    lengths = torch.tensor([len(text) for text in texts])
    return (lengths[:, None] - torch.arange(order)).clamp_min(0).double()


def _matches(texts: list[Sequence[str]], others: list[list[Sequence[str]]], order: int) -> Any:
    """Clipped matches, one row a text. Halves the corpus until its n-grams fit into 63 bits."""
    flat = [r for refs in others for r in refs]
    codes, size = _codes(texts + flat)
    if (len(flat) + 1) * float(size) ** order >= 2.0**62:
        if len(texts) == 1:
            return np.array([naive_matches(texts[0], others[0], order)], dtype=np.float64)
        half = len(texts) // 2
        parts = [(texts[:half], others[:half]), (texts[half:], others[half:])]
        return np.concatenate([_matches(a, b, order) for a, b in parts])
    n = len(texts)
    owner = np.repeat(np.arange(n), [len(refs) for refs in others])
    ours, theirs = _grams(codes[:n], size, order), _grams(codes[n:], size, order)
    found = np.zeros((n, order))
    for k in range(order, 0, -1):
        base = size**k
        mine, its = _runs(ours, size), _runs(theirs, size)
        if len(flat) > n:
            its = _most(owner[its[0] // base] * base + its[0] % base, its[1])
        place = np.searchsorted(its[0], mine[0])
        place[place == len(its[0])] = 0
        if len(its[0]) and len(mine[0]):
            same = its[0][place] == mine[0]
            both = np.minimum(mine[1][same], its[1][place[same]])
            found[:, k - 1] = np.bincount(mine[0][same] // base, weights=both, minlength=n)
        ours, theirs = ours // size, theirs // size
    return found


def _most(keys: _Array, counts: _Array) -> tuple[_Array, _Array]:
    """The largest count of each key, keys sorted."""
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    first = np.ones(len(keys), dtype=bool)
    first[1:] = keys[1:] != keys[:-1]
    starts = np.flatnonzero(first)
    return keys[starts], np.maximum.reduceat(counts, starts) if len(starts) else counts


def _codes(texts: list[Sequence[str]]) -> tuple[list[_Array], int]:
    """Numbers from 1 for the symbols of each text, and one more than their largest."""
    lengths = np.array([len(text) for text in texts])
    if all(isinstance(text, str) for text in texts):
        joined = "".join(texts)  # type: ignore[arg-type]
        points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        table = np.zeros(int(points.max(initial=0)) + 1, dtype=np.int64)
        table[points] = 1
        size = int(table.sum())
        table = np.cumsum(table)
        numbers = table[points]
    else:
        index: dict[str, int] = {}
        words = [index.setdefault(word, len(index) + 1) for text in texts for word in text]
        numbers, size = np.array(words, dtype=np.int64), len(index)
    return np.split(numbers, np.cumsum(lengths)[:-1]), size + 1


def _grams(codes: list[_Array], size: int, order: int) -> _Array:
    """Sorted numbers of (text, n-gram) at each place; what lies past the end is the symbol 0."""
    lengths = np.array([len(c) for c in codes]) + order - 1
    starts = np.cumsum(lengths) - lengths
    line = np.zeros(int(lengths.sum()) + order, dtype=np.int64)
    real = np.zeros(len(line), dtype=bool)
    joined = np.concatenate(codes) if codes else np.zeros(0, dtype=np.int64)
    sizes = lengths - order + 1
    places = np.arange(len(joined)) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
    line[places] = joined
    real[places] = True
    keys = np.zeros(len(line), dtype=np.int64)
    keys[places] = np.repeat(np.arange(len(codes)), sizes)
    for k in range(order):
        keys[: len(line) - k] = keys[: len(line) - k] * size + line[k:]
    chosen: _Array = keys[places]
    chosen.sort()
    return chosen


def _runs(keys: _Array, size: int) -> tuple[_Array, _Array]:
    """Different ones among sorted numbers, and how often each is there; none that ends in 0."""
    keys = keys[keys % size > 0]
    first = np.ones(len(keys), dtype=bool)
    first[1:] = keys[1:] != keys[:-1]
    starts = np.flatnonzero(first)
    return keys[starts], np.diff(starts, append=len(keys))


def naive_matches(text: Sequence[str], others: Sequence[Sequence[str]], order: int) -> list[int]:
    """The definition: the smaller of the two counts of each n-gram, summed, for each order."""
    found = []
    for n in range(1, order + 1):
        ours, theirs = _counted(text, n), Counter[tuple[str, ...]]()
        for other in others:
            theirs |= _counted(other, n)
        found.append((ours & theirs).total())
    return found


def _counted(text: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
