"""What vectors of words and texts look like: pooling, similarity to themselves, whitening."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import check_count, check_floating, check_in_range, check_shape, wide_dtype

__all__ = [
    "Pooling",
    "Whitening",
    "fit_whitening",
    "mean_cosine",
    "pool",
    "self_similarity",
    "whiten",
]

#: How one vector is made of many: by :func:`pool`.
Pooling = Literal["mean", "first", "last"]


def pool(
    hidden: Float[Tensor, "batch n dim"],
    real: Bool[Tensor, "batch n"],
    *,
    pooling: Pooling = "mean",
) -> Float[Tensor, "batch dim"]:
    r"""Make one vector of the vectors of a text's tokens.

    .. math:: \text{mean:}\quad \bar h = \frac{\sum_i m_i h_i}{\sum_i m_i}

    Args:
        hidden: Hidden states :math:`h_i`.
        real: :math:`m_i`: ``True`` for tokens, ``False`` for padding, at either end.
        pooling: ``"mean"``; ``"first"`` for the first real token (BERT's [CLS]);
            ``"last"`` for the last, the only one that has read the whole text in a causal model.

    Returns:
        One row for each text; zeros for a text without tokens if the pooling is ``"mean"``.

    Raises:
        ValueError: If shapes do not fit or the pooling is unknown.

    References:
        Reimers and Gurevych 2019, arXiv:1908.10084, sec. 3.

    Book: :doc:`/book/pretraining/transfer`

    Example:
        >>> hidden = torch.tensor([[[1.0], [3.0], [9.0]]])
        >>> pool(hidden, torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    check_shape("hidden", hidden, (None, None, None))
    check_shape("real", real, tuple(hidden.shape[:2]))
    if pooling == "mean":
        # In float32: a sum of float16 may pass 65,504, and bfloat16 cannot count beyond 256.
        weight = real[:, :, None].to(wide_dtype(hidden.dtype))
        return ((hidden * weight).sum(1) / weight.sum(1).clamp(min=1)).to(hidden.dtype)
    if pooling not in ("first", "last"):
        raise ValueError(f"pooling must be mean, first or last, got {pooling!r}")
    places = torch.arange(real.shape[1], device=real.device)
    if pooling == "first":
        row = torch.where(real, places, real.shape[1] - 1).amin(1)
    else:
        row = torch.where(real, places, 0).amax(1)
    return torch.take_along_dim(hidden, row[:, None, None], 1).squeeze(1)


def mean_cosine(vectors: Float[Tensor, "n dim"]) -> Float[Tensor, ""]:
    r"""Average the cosine over all pairs of different rows.

    .. math:: \frac{1}{n^2 - n} \sum_{i \ne j} \cos(h_i, h_j)
        = \frac{\lVert \sum_i u_i \rVert^2 - n}{n^2 - n}, \qquad u_i = \frac{h_i}{\lVert h_i\rVert}

    For vectors of unrelated words this is the *anisotropy*: near 0 if directions are spread
    evenly, near 1 if all vectors lie in a narrow cone.

    Args:
        vectors: Two rows or more, none of them zero.

    Returns:
        A number in :math:`[-1/(n-1), 1]`.

    Raises:
        ValueError: If there are fewer than two rows.

    Numerics:
        :math:`O(nd)` by the right side: no matrix of pairs is formed.

    References:
        Ethayarajh 2019, arXiv:1909.00512, sec. 3.3 and 3.4.

    Book: :doc:`/book/pretraining/transfer`

    Example:
        >>> mean_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor(0.)
    """
    check_floating("vectors", vectors)
    if vectors.ndim != 2 or len(vectors) < 2:
        raise ValueError(f"vectors must be two rows or more, got shape {tuple(vectors.shape)}")
    n = len(vectors)
    return (torch.nn.functional.normalize(vectors, dim=1).sum(0).square().sum() - n) / (n * n - n)


def self_similarity(
    vectors: Float[Tensor, "n dim"],
    words: Integer[Tensor, " n"],
    *,
    count: int,
    baseline: Float[Tensor, ""] | float = 0.0,
) -> Float[Tensor, " count"]:
    r"""Average the cosine between the occurrences of each word.

    .. math:: \mathrm{SelfSim}(w) = \frac{1}{n_w^2 - n_w} \sum_{i \ne j} \cos(h_i, h_j)
        - \text{baseline}

    with both sums over the :math:`n_w` occurrences of :math:`w`. A static embedding has 1; the
    more contextual a layer, the smaller.

    Args:
        vectors: :math:`h_i`, one row for each occurrence, none of them zero.
        words: Which word, from 0 to ``count`` - 1.
        count: Number of words.
        baseline: The :func:`mean_cosine` of occurrences of different words, to be subtracted.

    Returns:
        One value for each word; NaN for a word with fewer than two occurrences.

    Raises:
        ValueError: If shapes do not fit.

    References:
        Ethayarajh 2019, arXiv:1909.00512, definition 1 and sec. 3.4.

    Book: :doc:`/book/pretraining/transfer`

    Example:
        >>> h = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
        >>> self_similarity(h, torch.tensor([0, 0, 1]), count=2)
        tensor([1., nan])
    """
    check_floating("vectors", vectors)
    check_count("count", count)
    check_shape("vectors", vectors, (None, None))
    check_shape("words", words, (len(vectors),))
    units = torch.nn.functional.normalize(vectors, dim=1)
    words = words.long()
    sums = units.new_zeros(count, units.shape[1]).index_add(0, words, units)
    n = units.new_zeros(count).index_add(0, words, torch.ones_like(units[:, 0]))
    pairs = n * n - n
    return torch.where(pairs > 0, (sums.square().sum(1) - n) / pairs, torch.nan) - baseline


@dataclass(frozen=True, eq=False)
class Whitening:
    r"""A map :math:`\tilde h = (h - \mu)\, M` that gives a sample mean 0 and covariance 1.

    Attributes:
        mean: :math:`\mu`, shape (dim,).
        matrix: :math:`M`, shape (dim, kept).
    """

    mean: Tensor
    matrix: Tensor

    def __call__(self, features: Float[Tensor, "n dim"]) -> Float[Tensor, "n kept"]:
        """Apply the map to each row.

        Args:
            features: Rows of the width that it was fitted to.

        Returns:
            The whitened rows.
        """
        return (features - self.mean) @ self.matrix


def fit_whitening(
    features: Float[Tensor, "n dim"], *, dim: int | None = None, shrinkage: float = 0.0
) -> Whitening:
    r"""Fit the map that makes a sample white.

    .. math:: \tilde h = (h - \mu)\,\Sigma^{-1/2}, \qquad
        \Sigma = \tfrac1n \sum_i (h_i - \mu)^\top (h_i - \mu) = U \Lambda U^\top

    The symmetric root :math:`U \Lambda^{-1/2} U^\top` is used when all directions are kept: of
    all whitening maps it moves the vectors least. With ``dim`` given it is
    :math:`U_k \Lambda_k^{-1/2}`, the ``dim`` directions of largest variance; cosines differ in
    nothing but the dropped directions.

    Args:
        features: The sample, more rows than columns if all directions are kept.
        dim: How many directions to keep; by default all.
        shrinkage: Replace :math:`\Sigma` by :math:`(1 - s)\Sigma + s\,\bar\lambda I` with the mean
            variance :math:`\bar\lambda`; 0 to 1. It tames directions that few samples decide.

    Returns:
        The map.

    Raises:
        ValueError: If there are fewer than two rows, ``dim`` is out of range, or a direction to
            be kept has no variance.

    Numerics:
        Computed in float64 and returned in the type of the features. :math:`O(n d^2 + d^3)`.

    References:
        Su et al. 2021, arXiv:2103.15316, algorithm 1; the symmetric root and its property: Kessy,
        Lewin and Strimmer 2018, doi:10.1080/00031305.2016.1277159.

    Book: :doc:`/book/pretraining/transfer`
    """
    check_floating("features", features)
    check_in_range("shrinkage", shrinkage, low=0.0, high=1.0)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must be two rows or more, got shape {tuple(features.shape)}")
    width = features.shape[1]
    kept = width if dim is None else dim
    check_count("dim", kept, high=width)
    h = features.double()
    mean = h.mean(0)
    centered = h - mean
    covariance = centered.T @ centered / len(h)
    eye = torch.eye(width, dtype=h.dtype, device=h.device)
    spread = covariance.diagonal().mean()
    covariance = (1 - shrinkage) * covariance + shrinkage * spread * eye
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0)[:kept], vectors.flip(1)[:, :kept]
    if features.device.type != "meta":
        small = float(values[-1] / values[0])
        if not small > 1e-12:
            raise ValueError(
                f"direction {kept} has {small:.0e} of the largest variance: give more rows than "
                "columns, a smaller dim, or some shrinkage"
            )
    matrix = vectors * values.rsqrt()
    if dim is None:
        matrix = matrix @ vectors.T
    return Whitening(mean.to(features.dtype), matrix.to(features.dtype))


def whiten(
    features: Float[Tensor, "n dim"], *, dim: int | None = None, shrinkage: float = 0.0
) -> Float[Tensor, "n kept"]:
    """Whiten a sample by its own mean and covariance: :func:`fit_whitening`, applied to it.

    Args:
        features: As there.
        dim: As there.
        shrinkage: As there.

    Returns:
        Rows of mean 0 and, without shrinkage, covariance 1.

    Raises:
        ValueError: As there.

    Book: :doc:`/book/pretraining/transfer`

    Example:
        >>> whiten(torch.tensor([[0.0], [2.0]]))
        tensor([[-1.],
                [ 1.]])
    """
    return fit_whitening(features, dim=dim, shrinkage=shrinkage)(features)
