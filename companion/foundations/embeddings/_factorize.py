r"""What the methods factorize: pointwise mutual information and its low-rank approximations."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_shape
from companion.foundations.embeddings._corpus import Vocabulary
from companion.foundations.embeddings._model import Embeddings

__all__ = [
    "expected_sgns_loss",
    "pmi",
    "ppmi",
    "ppmi_svd",
    "sgns_optimum",
    "truncated_svd",
]


def pmi(counts: Float[Tensor, "word context"]) -> Float[Tensor, "word context"]:
    r"""Pointwise mutual information of words and contexts.

    .. math::

        \mathrm{PMI}(w, c) = \log \frac{P(w, c)}{P(w) P(c)}
            = \log \frac{X_{wc} \sum X}{X_{w\cdot}\, X_{\cdot c}}

    Args:
        counts: Co-occurrence counts :math:`X`, 0 or above, dense.

    Returns:
        PMI in nats; minus infinity where a pair never occurs.

    Numerics:
        Exact to rounding. The estimate for rare pairs is noisy: one chance meeting of two rare
        words has a large PMI.

    References:
        Church & Hanks 1990 (Computational Linguistics 16:1).

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> pmi(torch.tensor([[2.0, 1.0], [2.0, 1.0]]))  # independent
        tensor([[0., 0.],
                [0., 0.]])
    """
    return sgns_optimum(counts, counts.sum(0) / counts.sum(), negatives=1)


def sgns_optimum(
    counts: Float[Tensor, "word context"],
    noise: Float[Tensor, " context"],
    *,
    negatives: int,
) -> Float[Tensor, "word context"]:
    r"""Score of every pair at which the expected skip-gram loss is smallest.

    .. math::

        u_c \cdot v_w = \log \frac{P(w, c)}{P(w)\, P_n(c)} - \log k

    Args:
        counts: Co-occurrence counts, 0 or above, dense.
        noise: Noise distribution :math:`P_n`, positive, sums to 1.
        negatives: Negatives :math:`k` a pair, 1 or above.

    Returns:
        The scores, nats; minus infinity where a pair never occurs. With the unigram distribution
        of the contexts as noise they are :math:`\mathrm{PMI} - \log k`.

    Raises:
        ValueError: If the noise does not fit, or there are no negatives.

    References:
        Levy & Goldberg 2014, "Neural Word Embedding as Implicit Matrix Factorization", NeurIPS,
        eq. 7 (for the unigram noise).

    Book:
        :doc:`/book/foundations/embeddings`
    """
    check_count("negatives", negatives)
    check_shape("noise", noise, (counts.shape[1],))
    conditional = counts / counts.sum(1, keepdim=True)
    return (conditional / (negatives * noise)).log()


def expected_sgns_loss(
    scores: Float[Tensor, "word context"],
    counts: Float[Tensor, "word context"],
    noise: Float[Tensor, " context"],
    *,
    negatives: int,
) -> Float[Tensor, ""]:
    r"""Skip-gram loss with the expectation over negatives taken exactly.

    .. math::

        \ell = -\frac{1}{\sum X} \sum_{w,c} \Big[X_{wc} \log\sigma(s_{wc})
            + k\, X_{w\cdot} P_n(c) \log\sigma(-s_{wc})\Big]

    Args:
        scores: Scores :math:`s_{wc} = u_c \cdot v_w`.
        counts: Co-occurrence counts :math:`X`, dense.
        noise: Noise distribution :math:`P_n`.
        negatives: Negatives :math:`k` a pair.

    Returns:
        Mean loss, nats a positive pair.

    Raises:
        ValueError: If the shapes do not fit.

    References:
        Levy & Goldberg 2014, eqs. 4-5.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    check_count("negatives", negatives)
    check_shape("noise", noise, (counts.shape[1],))
    check_shape("scores", scores, tuple(counts.shape))
    expected = negatives * counts.sum(1, keepdim=True) * noise
    total = counts * F.logsigmoid(scores) + expected * F.logsigmoid(-scores)
    return -total.sum() / counts.sum()


def ppmi(
    counts: Float[Tensor, "word context"], *, shift: float = 0.0, smoothing: float = 1.0
) -> Float[Tensor, "word context"]:
    r"""Positive pointwise mutual information of a sparse matrix, optionally shifted and smoothed.

    .. math::

        \max\left(0,\ \log \frac{P(w, c)}{P(w) P_{\alpha}(c)} - s\right), \qquad
        P_\alpha(c) \propto X_{\cdot c}^{\alpha}

    Args:
        counts: Sparse co-occurrence counts, 0 or above.
        shift: The shift :math:`s`, nats; :math:`\log k` makes it the positive part of what
            skip-gram with :math:`k` negatives factorizes.
        smoothing: Exponent :math:`\alpha` of the context distribution; 3/4 tempers the large PMI
            of rare contexts.

    Returns:
        A coalesced sparse matrix without explicit zeros.

    Raises:
        ValueError: If the matrix is dense.

    References:
        Levy & Goldberg 2014, section 5; Levy et al. 2015, DOI 10.1162/tacl_a_00134, eq. 3.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    if not counts.is_sparse:
        raise ValueError("counts must be a sparse matrix, got a dense one: use counts.to_sparse()")
    cells = counts.coalesce()
    (rows, columns), values = cells.indices(), cells.values()
    zero = values.new_zeros
    by_row = zero(counts.shape[0]).index_add(0, rows, values)
    by_column = zero(counts.shape[1]).index_add(0, columns, values) ** smoothing
    noise = by_column / by_column.sum()
    scores = (values / (by_row[rows] * noise[columns])).log() - shift
    kept = scores > 0
    return torch.sparse_coo_tensor(
        cells.indices()[:, kept], scores[kept], counts.shape, check_invariants=False
    ).coalesce()


def truncated_svd(
    matrix: Float[Tensor, "row column"],
    rank: int,
    *,
    oversampling: int = 10,
    rounds: int = 4,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "row rank"], Float[Tensor, " rank"], Float[Tensor, "column rank"]]:
    r"""Best low-rank approximation, by randomized subspace iteration.

    Among matrices of rank :math:`r`, :math:`U \operatorname{diag}(s) V^\top` with the :math:`r`
    largest singular values is closest to :math:`M` (Eckart & Young 1936), with squared distance
    :math:`\sum_{i > r} s_i^2`.

    Args:
        matrix: The matrix, sparse or dense.
        rank: The rank :math:`r`.
        oversampling: Further directions that are carried along.
        rounds: Passes of subspace iteration; more for slowly falling singular values.
        generator: The source of randomness.

    Returns:
        Left vectors, singular values in falling order, right vectors.

    Raises:
        ValueError: If the rank is not between 1 and the smaller side.

    Numerics:
        ``O(nnz (rank + oversampling) rounds)`` for a sparse matrix. Exact to rounding when
        ``rank + oversampling`` reaches the smaller side. The sign of each pair of vectors is
        arbitrary; the largest entry of each left vector is made positive.

    References:
        Halko, Martinsson & Tropp 2011, arXiv:0909.4061, algorithm 4.4.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    check_count("rank", rank, low=1, high=min(matrix.shape))
    width = min(rank + oversampling, *matrix.shape)
    drawn = torch.randn(
        matrix.shape[1], width, generator=generator, device=generator.device, dtype=matrix.dtype
    )
    forward = matrix.coalesce() if matrix.is_sparse else matrix
    adjoint = matrix.t().coalesce() if matrix.is_sparse else matrix.mT
    basis = torch.linalg.qr(forward @ drawn.to(matrix.device)).Q
    for _ in range(rounds):
        basis = torch.linalg.qr(forward @ torch.linalg.qr(adjoint @ basis).Q).Q
    right, values, left = torch.linalg.svd(adjoint @ basis, full_matrices=False)
    left = basis @ left.mT
    sign = left.gather(0, left.abs().argmax(0, keepdim=True)).sign()
    return (left * sign)[:, :rank], values[:rank], (right * sign)[:, :rank]


def ppmi_svd(
    vocabulary: Vocabulary,
    counts: Float[Tensor, "vocab vocab"],
    *,
    dim: int = 100,
    shift: float = 0.0,
    smoothing: float = 0.75,
    power: float = 0.5,
    generator: torch.Generator,
) -> Embeddings:
    r"""Word vectors from a matrix factorization, without any training.

    .. math::

        M \approx U \operatorname{diag}(s) V^\top, \qquad
        v_w = U_w \operatorname{diag}(s^{p}), \qquad u_c = V_c \operatorname{diag}(s^{1 - p})

    Args:
        vocabulary: The words of the rows and columns.
        counts: Sparse co-occurrence counts.
        dim: Length of the vectors.
        shift: Shift of the PMI, nats, see :func:`ppmi`.
        smoothing: Exponent of the context distribution, see :func:`ppmi`.
        power: Exponent :math:`p` of the singular values in the word vectors. With 1/2 words and
            contexts share them; smaller values often compare better with human judgment.
        generator: The source of randomness.

    Returns:
        Word and context vectors with :math:`v_w \cdot u_c \approx M_{wc}`, float32.

    Raises:
        ValueError: If the matrix does not fit the vocabulary.

    References:
        Levy & Goldberg 2014, section 3.3; Levy et al. 2015, DOI 10.1162/tacl_a_00134.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    check_shape("counts", counts, (len(vocabulary), len(vocabulary)))
    matrix = ppmi(counts, shift=shift, smoothing=smoothing).float()
    left, values, right = truncated_svd(matrix, dim, generator=generator)
    return Embeddings(
        words=vocabulary.words,
        vectors=left * values**power,
        contexts=right * values ** (1.0 - power),
    )
