r"""Hard debiasing of word vectors, and the test whether what it hid can be found again."""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import (
    can_read,
    check_count,
    check_finite,
    check_floating,
    check_ids,
    check_same_shape,
    check_shape,
    randint,
    wide,
)

__all__ = [
    "bias_directions",
    "cluster_accuracy",
    "direct_bias",
    "equalize",
    "hard_debias",
    "neutralize",
    "two_means",
]


def bias_directions(
    pairs: Float[Tensor, "pairs two dim"], *, count: int = 1
) -> Float[Tensor, "count dim"]:
    r"""Find the directions in which the words of defining pairs differ.

    Principal components of the words, each centered on its own pair: of
    :math:`\pm(e_1-e_2)/2`. Nothing is centered across pairs, since their common difference is what
    is looked for.

    Args:
        pairs: Pairs of vectors such as (*he*, *she*), in this order everywhere.
        count: How many directions.

    Returns:
        Orthonormal rows. Each is turned so that first words lie on its positive side on average.

    Raises:
        ValueError: If the shape is not (pairs, 2, dim), a vector is not finite, or there are fewer
            pairs or dimensions than directions.

    References:
        Bolukbasi et al. 2016, arXiv:1607.06520, section 6.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> pairs = torch.tensor([[[2.0, 0.1], [0.0, 0.0]], [[2.0, -0.1], [0.0, 0.0]]])
        >>> bias_directions(pairs)
        tensor([[1., 0.]])
    """
    check_floating("pairs", pairs)
    check_shape("pairs", pairs, (None, 2, None))
    check_count("pairs", len(pairs))
    check_count("count", count)
    check_finite("pairs", pairs)
    if count > min(len(pairs), pairs.shape[2]):
        raise ValueError(
            f"{len(pairs)} pairs in {pairs.shape[2]} dimensions do not span {count} directions"
        )
    half = (wide(pairs[:, 0]) - wide(pairs[:, 1])) / 2
    found = torch.linalg.svd(half, full_matrices=False).Vh[:count]
    sides = (half @ found.T).sum(0)
    made: Tensor = found * torch.where(sides < 0, -1.0, 1.0)[:, None].to(found.dtype)
    return made


def direct_bias(
    words: Float[Tensor, "n dim"],
    direction: Float[Tensor, " dim"],
    *,
    power: float = 1.0,
) -> Float[Tensor, ""]:
    r"""Average how far neutral words lie along a direction.

    .. math:: \frac1n\sum_w \lvert\cos(w, g)\rvert^c

    Args:
        words: Words that ought to be neutral.
        direction: :math:`g`, of any length but 0.
        power: :math:`c > 0`: how strictly small values are judged.

    Returns:
        A number in [0, 1]; NaN if a vector has length 0.

    Raises:
        ValueError: If the dimensions differ, there is no word, or the power is not above 0.

    References:
        Bolukbasi et al. 2016, arXiv:1607.06520, section 5.2.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> direct_bias(torch.tensor([[3.0, 4.0]]), torch.tensor([2.0, 0.0]))
        tensor(0.6000)
    """
    check_floating("words", words)
    check_floating("direction", direction)
    check_shape("words", words, (None, None))
    check_shape("direction", direction, (words.shape[1],))
    check_count("words", len(words))
    if not power > 0:
        raise ValueError(f"power must be above 0, got {power}")
    held, g = wide(words), wide(direction)
    made: Tensor = ((held @ g).abs() / (held.norm(dim=1) * g.norm())).pow(power).mean()
    return made


def _check_orthonormal(directions: Tensor) -> None:
    """Require rows of length 1 that are orthogonal, up to the rounding of their dtype."""
    if not can_read(directions):
        return
    held = wide(directions.detach())
    off = held @ held.mT - torch.eye(len(held), dtype=held.dtype)
    far = float(off.abs().amax())
    if not far <= max(1e-3, 16 * torch.finfo(directions.dtype).eps):
        raise ValueError(
            "directions must be orthonormal rows, and their inner products are off by "
            f"{far:.2g}: take those of bias_directions, or divide a single one by its length"
        )


def neutralize(
    words: Float[Tensor, "*words dim"],
    directions: Float[Tensor, "count dim"],
    *,
    normalize: bool = True,
) -> Float[Tensor, "*words dim"]:
    r"""Take the part along some directions away.

    .. math:: w' = \frac{w - \sum_j (w\cdot g_j)\,g_j}{\lVert w - \sum_j (w\cdot g_j)\,g_j\rVert}

    Args:
        words: Any vectors.
        directions: Orthonormal rows :math:`g_j`.
        normalize: Whether the result has length 1.

    Returns:
        Vectors in the dtype of the words. A word in the span of the directions has nothing left:
        about 0, or NaN if it shall have length 1.

    Numerics:
        What is left counts as nothing if it is below four units of rounding of the word's length,
        in the coarser dtype of the two: rounding errors have a direction too.

    Raises:
        ValueError: If the dimensions differ, or the directions are not orthonormal (looked at on
            the CPU).

    References:
        Bolukbasi et al. 2016, arXiv:1607.06520, eq. 1.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> neutralize(torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 0.0]]))
        tensor([0., 1.])
    """
    check_floating("words", words)
    check_floating("directions", directions)
    check_shape("directions", directions, (None, words.shape[-1]))
    _check_orthonormal(directions)
    held = wide(words)
    g = directions.to(held)
    left = held - (held @ g.mT) @ g
    if normalize:
        size, whole = left.norm(dim=-1, keepdim=True), held.norm(dim=-1, keepdim=True)
        left = left / torch.where(size > _rounding(words, directions) * whole, size, torch.nan)
    return left.to(words.dtype)


def _rounding(words: Tensor, directions: Tensor) -> float:
    """How much of a length may be rounding errors."""
    return 4 * max(torch.finfo(words.dtype).eps, torch.finfo(directions.dtype).eps)


def equalize(
    pairs: Float[Tensor, "pairs members dim"], directions: Float[Tensor, "count dim"]
) -> Float[Tensor, "pairs members dim"]:
    r"""Make the members of each set differ in some directions alone.

    .. math:: e = \nu + \sqrt{1-\lVert\nu\rVert^2}\,
        \frac{e_B-\mu_B}{\lVert e_B-\mu_B\rVert},\qquad \nu = \mu-\mu_B

    with :math:`\mu` the mean of the set and :math:`\cdot_B` the part along the directions. Then all
    members have length 1, and one inner product with each vector that was neutralized.

    Args:
        pairs: Unit vectors; sets of two members or more.
        directions: Orthonormal rows.

    Returns:
        The equalized sets, in the dtype of the pairs. If all members agree along the directions
        there is nothing to tell them apart by, and the set is NaN.

    Raises:
        ValueError: If the dimensions differ, sets have fewer than two members, or the directions
            are not orthonormal (looked at on the CPU).

    Numerics:
        :math:`1-\lVert\nu\rVert^2` is clipped at 0, where roundings would make it negative. A
        difference below four units of rounding counts as none.

    References:
        Bolukbasi et al. 2016, arXiv:1607.06520, section 6; the denominator there is the norm of
        :math:`\mu_{e,B}-\mu_B`, as here.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> pair = torch.tensor([[[0.6, 0.8], [-0.8, 0.6]]])
        >>> made = equalize(pair, torch.tensor([[1.0, 0.0]]))
        >>> made[0, :, 1]  # equal but along the direction
        tensor([0.7000, 0.7000])
    """
    check_floating("pairs", pairs)
    check_floating("directions", directions)
    check_shape("pairs", pairs, (None, None, None))
    check_shape("directions", directions, (None, pairs.shape[2]))
    if pairs.shape[1] < 2:
        raise ValueError("a set to equalize needs two members or more")
    _check_orthonormal(directions)
    held = wide(pairs)
    g = directions.to(held)
    along = (held @ g.mT) @ g
    middle = along.mean(1, keepdim=True)
    rest = held.mean(1, keepdim=True) - middle
    side = along - middle
    height = (1 - rest.square().sum(-1, keepdim=True)).clamp(min=0).sqrt()
    size = side.norm(dim=-1, keepdim=True)
    whole = held.norm(dim=-1, keepdim=True).amax(1, keepdim=True)
    size = torch.where(size > _rounding(pairs, directions) * whole, size, torch.nan)
    made: Tensor = (rest + height * side / size).to(pairs.dtype)
    return made


def hard_debias(
    vectors: Float[Tensor, "words dim"],
    directions: Float[Tensor, "count dim"],
    *,
    keep: Bool[Tensor, " words"],
    pairs: Integer[Tensor, "pairs two"],
) -> Float[Tensor, "words dim"]:
    """Neutralize all words but those that have a gender by definition, and equalize pairs.

    All vectors are given length 1 first.

    Args:
        vectors: Word vectors.
        directions: Orthonormal rows, as of :func:`bias_directions`.
        keep: Which words are left as they are.
        pairs: Rows of the words that shall differ along the directions alone. They are equalized
            whether they are kept or not.

    Returns:
        New vectors of length 1.

    Raises:
        ValueError: If shapes do not fit, ``keep`` is not Boolean, a pair names a row that is not
            there, a word stands in two different pairs (it could be equalized in one alone), or
            the directions are not orthonormal.

    References:
        Bolukbasi et al. 2016, arXiv:1607.06520.

    Book: :doc:`/book/trust/debiasing`
    """
    check_floating("vectors", vectors)
    check_shape("vectors", vectors, (None, None))
    check_shape("keep", keep, (len(vectors),))
    if keep.dtype != torch.bool:
        raise ValueError(
            f"keep must be Boolean, got {keep.dtype}: say which words with == or .bool()"
        )
    check_shape("pairs", pairs, (None, 2))
    check_ids("pairs", pairs, len(vectors))
    if can_read(pairs):
        different = torch.unique(pairs.long().sort(1).values, dim=0)
        rows, counts = different.unique(return_counts=True)
        if bool((counts > 1).any()):
            raise ValueError(
                f"row {int(rows[counts > 1][0])} stands in two pairs, or twice in one: it can be "
                "equalized with one other word; leave a pair out"
            )
    unit = wide(vectors)
    unit = unit / unit.norm(dim=1, keepdim=True)
    made = torch.where(keep[:, None], unit, neutralize(unit, directions))
    if len(pairs):
        equal = equalize(unit[pairs.long()], directions)
        made = made.index_copy(0, pairs.long().flatten(), equal.flatten(0, 1))
    return made.to(vectors.dtype)


def two_means(
    vectors: Float[Tensor, "n dim"],
    *,
    generator: torch.Generator,
    restarts: int = 10,
    steps: int = 100,
) -> Integer[Tensor, " n"]:
    r"""Split vectors into two clusters so that squared distances to their means are small.

    Lloyd's algorithm from pairs of vectors drawn at random; the best of some restarts.

    Args:
        vectors: At least two.
        generator: The source of randomness.
        restarts: How many beginnings are tried.
        steps: The most steps of each.

    Returns:
        0 or 1 for each vector. Which cluster is called 0 means nothing.

    Raises:
        ValueError: If there are fewer than two vectors, or one is not finite.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> found = two_means(torch.tensor([[0.0], [5.0], [0.1], [5.2]]), generator=g)
        >>> bool(found[0] == found[2]), bool(found[0] == found[1])
        (True, False)
    """
    check_floating("vectors", vectors)
    check_shape("vectors", vectors, (None, None))
    check_count("restarts", restarts)
    check_count("steps", steps)
    check_finite("vectors", vectors)
    n = len(vectors)
    if n < 2:
        raise ValueError(f"two clusters need two vectors at least, got {n}")
    held = wide(vectors)
    best, least = torch.zeros(n, dtype=torch.long, device=vectors.device), float("inf")
    for _ in range(restarts):
        one = int(randint(0, n, (), generator=generator))
        other = (one + 1 + int(randint(0, n - 1, (), generator=generator))) % n
        means = held[[one, other]]
        side = torch.full((n,), -1, device=vectors.device)
        for _ in range(steps):
            new = torch.cdist(held, means).argmin(1)
            if bool((new == side).all()):
                break
            side = new
            for k in (0, 1):
                if bool((side == k).any()):
                    means[k] = held[side == k].mean(0)
        cost = float((held - means[side]).square().sum())
        if cost < least:
            best, least = side, cost
    return best


def cluster_accuracy(
    clusters: Integer[Tensor, " n"], labels: Integer[Tensor, " n"]
) -> Float[Tensor, ""]:
    r"""Compute how well two clusters match two classes, whatever the clusters are called.

    Args:
        clusters: 0 or 1.
        labels: 0 or 1.

    Returns:
        A share in [1/2, 1]. Chance alone gives more than one half: about
        :math:`\frac12+\sqrt{1/(2\pi n)}` for n vectors.

    Raises:
        ValueError: If the shapes differ, or a value is neither 0 nor 1.

    References:
        Gonen and Goldberg 2019, arXiv:1903.03862.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> cluster_accuracy(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 0]))
        tensor(0.6667)
    """
    check_same_shape("clusters", clusters, "labels", labels)
    check_shape("clusters", clusters, (None,))
    check_count("vectors", len(clusters))
    check_ids("clusters", clusters, 2)
    check_ids("labels", labels, 2)
    same = (clusters == labels).float().mean()
    return torch.maximum(same, 1 - same)
