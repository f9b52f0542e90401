r"""Which pairs to compare at all: signatures in bands, and one text kept of those that agree."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.core import can_read, check_count, check_in_range, check_several
from companion.knowledge.data_quality._minhash import (
    Unit,
    is_empty,
    jaccard,
    minhash,
    shingles,
    signature_jaccard,
)

__all__ = [
    "Bands",
    "Duplicates",
    "choose_bands",
    "clusters",
    "keep_first",
    "lsh_candidates",
    "lsh_probability",
    "lsh_threshold",
    "near_duplicates",
]

#: A function like the built-in ``map``: of an executor, or of a cluster's client.
Map = Callable[..., Iterable[Any]]


def lsh_probability(
    similarity: Float[Tensor, "*batch"], *, bands: int, rows: int
) -> Float[Tensor, "*batch"]:
    r"""How likely two sets become candidates: :math:`1-(1-J^r)^b`.

    A signature is cut into :math:`b` bands of :math:`r` rows. Two sets are candidates if they
    agree in all rows of at least one band.

    Args:
        similarity: Jaccard similarities :math:`J` in [0, 1].
        bands: How many bands, :math:`b`.
        rows: Entries of a band, :math:`r`.

    Returns:
        Probabilities over the draw of the hash functions. For pairs below the threshold these are
        the false positives, and what is missing to 1 above it are the false negatives.

    Raises:
        ValueError: If bands or rows are below 1, or a similarity is not in [0, 1].

    Numerics:
        By ``log1p`` and ``expm1``, so that small probabilities keep their digits.

    References:
        Leskovec, Rajaraman and Ullman 2020, doi:10.1017/9781108684163, sec. 3.4.2.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> lsh_probability(torch.tensor([0.5, 0.8]), bands=20, rows=5)
        tensor([0.4701, 0.9996])
    """
    check_count("bands", bands)
    check_count("rows", rows)
    if can_read(similarity) and not bool(((similarity >= 0) & (similarity <= 1)).all()):
        raise ValueError("similarity must lie in [0, 1]: it is a share of common members")
    return -torch.expm1(bands * torch.log1p(-(similarity**rows)))


def lsh_threshold(*, bands: int, rows: int) -> float:
    r"""Where the S-curve is about steepest: :math:`(1/b)^{1/r}`.

    At this similarity a pair is caught with the probability :math:`1-(1-1/b)^b`, about 0.63. It is
    a landmark of the curve and no guarantee.

    Args:
        bands: How many bands.
        rows: Entries of a band.

    Returns:
        A similarity.

    Raises:
        ValueError: If bands or rows are below 1.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> round(lsh_threshold(bands=20, rows=5), 3)
        0.549
    """
    check_count("bands", bands)
    check_count("rows", rows)
    return float((1 / bands) ** (1 / rows))


class Bands(NamedTuple):
    """How a signature is cut.

    Attributes:
        bands: How many bands.
        rows: Entries of a band.
    """

    bands: int
    rows: int


def choose_bands(threshold: float, *, k: int = 128, recall: float = 0.95) -> Bands:
    r"""Choose bands that catch a pair at the threshold with a given probability.

    Among all :math:`(b,r)` with :math:`br\le k` and :math:`1-(1-t^r)^b` at least the recall, this
    is the one with the most rows, and then as few bands as needed: the steepest curve, with the
    fewest candidates far below the threshold. Just below it another cut may have a few less, if
    its recall is nearer to the one that is asked for.

    Args:
        threshold: Similarity :math:`t` in (0, 1] from which on pairs are to be found.
        k: Length of the signatures.
        recall: Least probability of catching a pair *at* the threshold, in (0, 1). Pairs above it
            are caught more often.

    Returns:
        Bands and rows.

    Raises:
        ValueError: If an argument is out of its domain, or k is too small for the recall.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> choose_bands(0.8, k=128)
        Bands(bands=13, rows=7)
    """
    check_in_range("threshold", threshold, low=0.0, high=1.0, open_low=True)
    check_in_range("recall", recall, low=0.0, high=1.0, open_low=True, open_high=True)
    check_count("k", k)
    at = torch.tensor(threshold, dtype=torch.float64)
    for rows in range(k, 0, -1):
        for bands in range(1, k // rows + 1):
            if float(lsh_probability(at, bands=bands, rows=rows)) >= recall:
                return Bands(bands, rows)
    best = float(lsh_probability(at, bands=k, rows=1))
    raise ValueError(
        f"with k={k} a pair at {threshold} is caught with probability {best:.3f} at most: "
        "take longer signatures or a lower recall"
    )


def band_keys(signatures: Tensor, *, bands: int, rows: int) -> Tensor:
    """One 64-bit number for each band of each signature: equal bands have equal numbers."""
    check_count("bands", bands)
    check_count("rows", rows)
    if signatures.ndim != 2:
        raise ValueError(
            f"signatures has shape {tuple(signatures.shape)}: give one row for each set"
        )
    if bands * rows > signatures.shape[1]:
        raise ValueError(
            f"{bands} bands of {rows} rows need {bands * rows} entries, a signature has "
            f"{signatures.shape[1]}"
        )
    parts = signatures[:, : bands * rows].long().reshape(-1, bands, rows)
    keys = torch.zeros(parts.shape[:2], dtype=torch.long, device=signatures.device)
    for row in range(rows):
        keys = (keys + parts[..., row]) * 0x27BB2EE687B0B0FD  # modulo 2**64
        keys = keys ^ ((keys >> 29) & 0x7FFFFFFFF)
    return keys


def equal_pairs(keys: Tensor, ids: Tensor) -> Tensor:
    """All pairs of ids whose keys are equal, the smaller id first."""
    keys, order = keys.sort(stable=True)
    ids = ids[order]
    found = []
    ahead = 1
    same = keys[1:] == keys[:-1]
    at = same.nonzero()[:, 0]
    while at.shape[0]:
        found.append(torch.stack([ids[at], ids[at + ahead]], 1))
        ahead += 1
        at = at[at + ahead < keys.shape[0]]
        at = at[keys[at] == keys[at + ahead]]
    if not found:
        return torch.empty(0, 2, dtype=torch.long, device=keys.device)
    pairs = torch.cat(found)
    return torch.stack([pairs.amin(1), pairs.amax(1)], 1)


def lsh_candidates(
    signatures: Int[Tensor, "sets k"], *, bands: int, rows: int
) -> Int[Tensor, "pairs 2"]:
    r"""Pairs of sets whose signatures agree in all rows of at least one band.

    Args:
        signatures: One in a row, as :func:`minhash` makes them.
        bands: How many bands.
        rows: Entries of a band; ``bands * rows`` may be smaller than k.

    Returns:
        Each pair once, the smaller number first, in order. Empty sets are in no pair.

    Raises:
        ValueError: If the signatures are too short for the bands.

    Numerics:
        A band is hashed to 64 bits and sorted; work is that of a sort for each band, plus the
        pairs. Sets that all agree give all their pairs: take exact copies out first.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> signatures = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 9, 9]])
        >>> lsh_candidates(signatures, bands=2, rows=2)
        tensor([[0, 2]])
    """
    keys = band_keys(signatures, bands=bands, rows=rows)
    ids = (~is_empty(signatures)).nonzero()[:, 0]
    found = [equal_pairs(keys[ids, band], ids) for band in range(bands)]
    return different_pairs(torch.cat(found))


def different_pairs(pairs: Tensor) -> Tensor:
    """Each pair once, in order."""
    size = pairs.max() + 1 if pairs.shape[0] else 1
    keys = (pairs[:, 0] * size + pairs[:, 1]).sort().values
    new = torch.ones_like(keys, dtype=torch.bool)
    new[1:] = keys[1:] != keys[:-1]
    return torch.stack([keys[new] // size, keys[new] % size], 1)


def clusters(pairs: Int[Tensor, "pairs 2"], count: int) -> Int[Tensor, " sets"]:
    r"""Connected components: what pairs join, directly or through others.

    Similarity is not transitive: two ends of a chain may share nothing. So a cluster is a list of
    what to look at, and :func:`keep_first` decides what to drop.

    Args:
        pairs: Numbers of sets that belong together.
        count: How many sets there are.

    Returns:
        For each set the smallest number in its cluster. Its own, if nothing joins it.

    Raises:
        ValueError: If a number is out of range.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> clusters(torch.tensor([[1, 3], [2, 4]]), 5)
        tensor([0, 1, 2, 1, 2])
    """
    _check_pairs(pairs, count)
    label = torch.arange(count, device=pairs.device)
    while True:
        low = torch.minimum(label[pairs[:, 0]], label[pairs[:, 1]])
        new = label.clone()
        for side in (0, 1):
            # The root of what is joined learns of the smaller number, and the set itself too.
            new.scatter_reduce_(0, label[pairs[:, side]], low, "amin")
            new.scatter_reduce_(0, pairs[:, side], low, "amin")
        new = new[new]
        if torch.equal(new, label):
            return label
        label = new


def keep_first(
    pairs: Int[Tensor, "pairs 2"], count: int, *, order: Int[Tensor, " sets"] | None = None
) -> Int[Tensor, " sets"]:
    r"""Drop each set that is paired with one which is kept and comes before it.

    The sets are visited in their order. So whatever is dropped has a kept duplicate, no two kept
    sets are paired, and no chain of duplicates drops a set that resembles nothing that is left.

    Args:
        pairs: Duplicates, verified if they are to be trusted.
        count: How many sets there are.
        order: The numbers of the sets, best first; by default 0, 1, 2, ...

    Returns:
        For each set -1 if it is kept, and else the first kept set that it is paired with.

    Raises:
        ValueError: If a number is out of range, or the order does not hold each set once.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> keep_first(torch.tensor([[0, 1], [1, 2]]), 3)
        tensor([-1,  0, -1])
    """
    _check_pairs(pairs, count)
    if order is not None and not torch.equal(order.sort().values, torch.arange(count).to(order)):
        raise ValueError(f"order must hold each number from 0 to {count - 1} once")
    visited = list(range(count)) if order is None else order.tolist()
    rank = [0] * count
    for place, item in enumerate(visited):
        rank[item] = place
    partners: dict[int, list[int]] = {}
    for a, b in pairs.tolist():
        first, second = (a, b) if rank[a] < rank[b] else (b, a)
        partners.setdefault(second, []).append(first)
    of = [-1] * count
    for item in visited:
        kept = [other for other in partners.get(item, ()) if of[other] < 0 and other != item]
        if kept:
            of[item] = min(kept, key=rank.__getitem__)
    return torch.tensor(of, dtype=torch.long, device=pairs.device)


class Duplicates(NamedTuple):
    """What :func:`near_duplicates` has found among n texts.

    Attributes:
        of: For each text -1 if it is kept, and else the kept text that it resembles.
        pairs: The pairs that were found, the smaller number first.
        similarity: Jaccard similarity of each pair, exact or estimated.
    """

    of: Int[Tensor, "..."]
    pairs: Int[Tensor, "... 2"]
    similarity: Float[Tensor, "..."]


def near_duplicates(
    texts: Sequence[str],
    *,
    threshold: float = 0.8,
    k: int = 128,
    bands: int | None = None,
    rows: int | None = None,
    n: int = 5,
    unit: Unit = "words",
    verify: bool = True,
    seed: int = 1,
    map: Map = map,
) -> Duplicates:
    r"""Find texts that are nearly the same, and keep the first of each kind.

    Args:
        texts: The texts.
        threshold: Jaccard similarity of shingles from which on two texts are duplicates.
        k: Length of a signature.
        bands: How many bands; by default those of :func:`choose_bands` for the threshold.
        rows: Entries of a band, likewise.
        n: Words or characters of a shingle.
        unit: What a shingle is made of.
        verify: Whether candidates are compared exactly. Otherwise their signatures decide.
        seed: Of the hash functions.
        map: A function like the built-in ``map`` that hashes the texts: that of a
            ``concurrent.futures`` executor, or of a cluster, as ``client.get_executor().map`` of
            a Dask client. It must keep the order, and everything passed to it can be pickled.

    Returns:
        What is kept, and the pairs at or above the threshold among the candidates. A pair at
        :math:`J` is missed with the probability :math:`(1-J^r)^b`.

    Raises:
        ValueError: If an argument is out of its domain, or only one of bands and rows is given.

    Numerics:
        The shingles of all texts are held at once, 8 bytes each. A folder that is larger than
        memory is cleaned by ``companion clean``.

    References:
        Lee et al. 2022, arXiv:2107.06499, sec. 4.2.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> texts = ["the cat sat on the mat today", "a dog", "The cat sat on the mat, today!"]
        >>> near_duplicates(texts).of
        tensor([-1, -1,  0])
    """
    check_several("texts", texts)
    check_in_range("threshold", threshold, low=0.0, high=1.0, open_low=True)
    if (bands is None) != (rows is None):
        raise ValueError("give both bands and rows, or neither")
    cut = choose_bands(threshold, k=k) if bands is None or rows is None else Bands(bands, rows)
    sets = list(map(_Hashed(n, unit), texts))
    signatures = minhash(sets, k=k, seed=seed)
    pairs = lsh_candidates(signatures, bands=cut.bands, rows=cut.rows)
    if verify:
        exact = [jaccard(sets[a], sets[b]) for a, b in pairs.tolist()]
        similarity = torch.stack(exact) if exact else torch.empty(0, dtype=torch.float64)
    else:
        similarity = signature_jaccard(signatures[pairs[:, 0]], signatures[pairs[:, 1]])
    alike = similarity >= threshold
    of = keep_first(pairs[alike], len(texts))
    return Duplicates(of, pairs[alike], similarity[alike])


class _Hashed(NamedTuple):
    """The shingles of a text, as a function that another process can be given."""

    n: int
    unit: Unit

    def __call__(self, text: str) -> Tensor:
        return shingles(text, n=self.n, unit=self.unit)


def _check_pairs(pairs: Tensor, count: int) -> None:
    check_count("count", count, low=0)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs must have the shape (pairs, 2), got {tuple(pairs.shape)}")
    if pairs.numel() and not 0 <= int(pairs.min()) <= int(pairs.max()) < count:
        raise ValueError(f"pairs must hold numbers from 0 to {count - 1}")
