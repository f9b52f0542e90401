r"""Texts as sets of hashed shingles, and signatures whose agreement estimates their overlap."""

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from companion.core import check_count, generator

__all__ = ["jaccard", "minhash", "shingles", "signature_jaccard"]

Unit = Literal["words", "characters"]

#: Entry of the signature of an empty set; no other set has it throughout.
EMPTY = torch.iinfo(torch.int32).max

# Odd multipliers of polynomials modulo 2**64: of letters in a word, and of words in a shingle.
_LETTER = 0x9E3779B97F4A7C15
_WORD = 0xD1342543DE82EF95
# Words of these scripts are not written apart: each character counts as a word.
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF))
_HAN = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_LAST = np.uint32(0x3FFFF)
# Shingles whose hashes are computed at once: 128 of each then stay in the cache.
_BLOCK = 256


def shingles(text: str, *, n: int = 5, unit: Unit = "words") -> Int[Tensor, " shingles"]:
    r"""Hash the runs of n words or characters of a text; each different run counts once.

    Letters are made small, and whatever is neither a letter nor a digit separates words. Scripts
    that write no spaces, such as Chinese, give one word a character. Of characters, each stretch of
    white space counts as one blank.

    Args:
        text: The text.
        n: Words or characters of a run, 1 or more.
        unit: What a run is made of.

    Returns:
        The hashes, 64 bits each, in rising order. A text shorter than a run gives one hash, of
        everything that it has; one without words gives none.

    Raises:
        ValueError: If n is below 1 or the unit is unknown.

    Numerics:
        A word's hash is a polynomial of its code points modulo :math:`2^{64}`, mixed by the last
        rounds of SplitMix64, and a shingle's one of its words. Two different shingles of a corpus
        of :math:`m` agree with a probability of about :math:`2^{-64}` a pair. The hash
        is fixed and public: someone who wants a collision can make one.

    References:
        Broder 1997, doi:10.1109/SEQUEN.1997.666900.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> len(shingles("A rose is a rose is a rose.", n=4))
        3
    """
    check_count("n", n)
    if unit == "words":
        return _as_set(word_runs(word_hashes(text), n))
    if unit != "characters":
        raise ValueError(f"unknown unit {unit!r}: choose 'words' or 'characters'")
    codes = _codes(" ".join(text.lower().split()))
    return _as_set(word_runs(_mix(codes.astype(np.uint64) + np.uint64(1)), n))


def word_hashes(text: str) -> NDArray[np.uint64]:
    """The hash of each word, in the order of the text."""
    codes = _codes(text.lower())
    kind = _kinds()[np.minimum(codes, _LAST)]
    edge = np.zeros(len(kind) + 1, dtype=np.int8)
    # Two neighbors belong to one word where both are of the first kind.
    edge[1:-1] = kind[1:] & kind[:-1] & 1
    first = np.flatnonzero((kind > 0) & (edge[:-1] == 0))
    stop = np.flatnonzero((kind > 0) & (edge[1:] == 0)) + 1
    power, inverse = _powers(_LETTER, len(codes))
    total = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum((codes + np.uint32(1)) * inverse, out=total[1:])
    return _mix((total[stop] - total[first]) * power[first])


def word_runs(words: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """The hash of each run of n words; of all words where there are fewer."""
    if not len(words):
        return words
    n = min(n, len(words))
    count = len(words) - n + 1
    total = words[:count].copy()
    for j in range(1, n):
        total *= np.uint64(_WORD)
        total += words[j : j + count]
    return _mix(total + np.uint64(n))


def _codes(text: str) -> NDArray[np.uint32]:
    encoded = text.encode("utf-32-le", "surrogatepass")
    return np.frombuffer(encoded, dtype="<u4")


@functools.cache
def _kinds() -> NDArray[np.int8]:
    """0 for what separates words, 1 for what words are made of, 2 for what is a word by itself."""
    kinds = np.fromiter((chr(code).isalnum() for code in range(0x40000)), np.int8, 0x40000)
    for low, high in (*_UNSPACED, *_HAN):
        kinds[low : high + 1] *= 2
    kinds[-1] = 0  # what lies above stands for nothing that is written
    return kinds


@functools.lru_cache(maxsize=2)
def _power_table(base: int, size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    inverse = pow(base, -1, 1 << 64)
    tables = []
    for factor in (base, inverse):
        steps = np.full(size, factor, dtype=np.uint64)
        steps[0] = 1
        tables.append(np.multiply.accumulate(steps))
    return tables[0], tables[1]


def _powers(base: int, size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first powers of a number modulo 2**64, and those of its inverse."""
    room = max(1 << 16, 1 << max(size - 1, 0).bit_length())
    power, inverse = _power_table(base, room)
    return power[:size], inverse[:size]


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The last rounds of SplitMix64, a bijection that spreads each bit over all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _as_set(hashes: NDArray[np.uint64]) -> Tensor:
    """Each hash once, in the order of signed numbers."""
    rising = np.sort(hashes.view(np.int64))
    new = np.ones(len(rising), dtype=bool)
    np.not_equal(rising[1:], rising[:-1], out=new[1:])
    return torch.from_numpy(rising[new])


def jaccard(a: Int[Tensor, " a"], b: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    r"""The Jaccard similarity of two sets, :math:`J=\lvert A\cap B\rvert/\lvert A\cup B\rvert`.

    Args:
        a: Members of the first set, each once, in any order.
        b: Members of the second set, each once.

    Returns:
        A number in [0, 1] in float64; 0 where a set is empty, so that empty texts never match.

    Raises:
        ValueError: If the members are no integers.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> jaccard(torch.tensor([1, 2, 3]), torch.tensor([2, 3, 4, 5]))
        tensor(0.4000, dtype=torch.float64)
    """
    _check_integers("a", a)
    _check_integers("b", b)
    both = torch.isin(a, b).sum()
    union = a.shape[0] + b.shape[0] - both
    return both.double() / union.clamp(min=1)


def minhash(
    sets: Int[Tensor, " _members"] | Sequence[Int[Tensor, " _members"]],
    *,
    k: int = 128,
    seed: int = 1,
) -> Int[Tensor, "... k"]:
    r"""Signatures of sets: for each of k hash functions, the smallest hash of a member.

    .. math:: m_j(A)=\min_{x\in A}h_j(x),\qquad h_j(x)=(a_jx+b_j)\bmod2^{32}

    Two signatures agree in an entry with the probability :math:`J(A,B)`, so the share of entries
    that agree estimates :math:`J` with the variance :math:`J(1-J)/k`.

    Args:
        sets: Members of a set, hashed to 64 bits as :func:`shingles` does, or several sets.
        k: Length of a signature.
        seed: Of the hash functions; signatures of different seeds or k cannot be compared.

    Returns:
        A signature of 32-bit integers, or one in a row for each set. That of an empty set holds
        the largest integer throughout.

    Raises:
        ValueError: If k is below 1, or the members are no integers.

    Numerics:
        The 64 bits are folded to 32 before the linear functions, whose multipliers are odd. Exact
        min-wise independence needs a random permutation; members that are well mixed come near
        to it, members such as 1, 2, 3, ... do not. Work is :math:`O(k\lvert A\rvert)`, memory
        that of a few hundred members.

    References:
        Broder 1997, doi:10.1109/SEQUEN.1997.666900; Broder et al. 2000, doi:10.1006/jcss.1999.0690.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> minhash(shingles("to be or not to be"), k=3).shape
        torch.Size([3])
    """
    check_count("k", k)
    if isinstance(sets, Tensor):
        return _signature(sets, *_family(k, seed, sets.device))
    if not sets:
        return torch.empty(0, k, dtype=torch.int32)
    factor, offset = _family(k, seed, sets[0].device)
    return torch.stack([_signature(some, factor, offset) for some in sets])


@functools.lru_cache(maxsize=16)
def _family(k: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(-(1 << 31), 1 << 31, (2, k), generator=generator(seed))
    factor, offset = drawn.to(torch.int32)
    return (factor | 1).to(device), offset.to(device)


def _signature(members: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    _check_integers("sets", members)
    if members.ndim != 1:
        raise ValueError(f"a set is one row of members, got the shape {tuple(members.shape)}")
    least = torch.full_like(factor, EMPTY)
    if not members.shape[0]:
        return least
    folded = members.long()
    folded = (folded ^ (folded >> 32)).to(torch.int32)[:, None]
    for start in range(0, folded.shape[0], _BLOCK):
        hashes = torch.addcmul(offset, folded[start : start + _BLOCK], factor)
        least = torch.minimum(least, hashes.amin(0))
    return least


def signature_jaccard(
    first: Int[Tensor, "*batch k"], second: Int[Tensor, "*batch k"]
) -> Float[Tensor, "*batch"]:
    r"""Estimate the Jaccard similarity by the share of entries in which signatures agree.

    Args:
        first: Signatures of :func:`minhash`, in the last axis.
        second: As many signatures of the same hash functions.

    Returns:
        Estimates in float64, of variance :math:`J(1-J)/k`; 0 where a set was empty.

    Raises:
        ValueError: If the signatures differ in length.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> signature_jaccard(torch.tensor([1, 5, 7, 2]), torch.tensor([1, 4, 7, 2]))
        tensor(0.7500, dtype=torch.float64)
    """
    if first.shape[-1] != second.shape[-1]:
        raise ValueError(
            f"signatures of one length are compared, got {first.shape[-1]} and {second.shape[-1]}"
        )
    agree = (first == second).double().mean(-1)
    return torch.where(is_empty(first) | is_empty(second), 0.0, agree)


def is_empty(signatures: Tensor) -> Tensor:
    """Which signatures are those of empty sets."""
    return (signatures == EMPTY).all(-1)


def _check_integers(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name} must hold integers, got {tensor.dtype}: hash the members first")
