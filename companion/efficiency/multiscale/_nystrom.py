"""Attention through landmarks, and the iteration that inverts their matrix."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from companion.core import check_count, check_floating, wide, wide_dtype
from companion.efficiency.multiscale._shared import check_qkv
from companion.transformer.attention._dense import each_head
from companion.transformer.attention._inputs import cast, default_scale, full_precision

__all__ = ["newton_pinverse", "nystrom_attention", "pinverse_residual"]


def newton_pinverse(
    A: Float[Tensor, "*batch rows columns"], *, iterations: int = 6
) -> Float[Tensor, "*batch columns rows"]:
    r"""Approximate the pseudo-inverse of square matrices by products alone.

    .. math::
        Z \leftarrow \tfrac14 Z \big(13 I - AZ(15 I - AZ(7 I - AZ))\big), \qquad
        Z_0 = \frac{A^\top}{\lVert A \rVert_1 \lVert A \rVert_\infty}

    with the largest column sum and the largest row sum of absolute values. The error
    :math:`E = I - AZ` becomes :math:`\frac34 E^3 + \frac14 E^4`.

    Args:
        A: Square matrices.
        iterations: Steps. With the condition number :math:`\kappa` about
            :math:`\log \kappa^2 / \log 3.25` of them are needed before the cubic phase starts.

    Returns:
        :math:`Z`, in the dtype of ``A``. Look at :func:`pinverse_residual` before trusting it.

    Raises:
        ValueError: If the matrices are not square and floating.

    Numerics:
        Computed in float32 or better, under autocast too. The start is scaled by the norms of
        *each* matrix. A matrix of zeros gives zeros. For a singular matrix, rounding errors outside
        of its range grow by 13/4 a step: tens of steps beyond convergence do harm.

    References:
        M. Razavi et al. 2014, Acta Mathematica Scientia 34, 1521 to 1539; used by Y. Xiong et al.
        2021, "Nyströmformer", arXiv:2102.03902, eq. (14).

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> A = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
        >>> newton_pinverse(A, iterations=12)
        tensor([[ 1.0000, -1.0000],
                [-1.0000,  2.0000]], dtype=torch.float64)
    """
    check_floating("A", A)
    check_count("iterations", iterations, low=0)
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"A must be square matrices, got {tuple(A.shape)}")
    X = A.to(wide_dtype(A.dtype))
    size = X.abs()
    norms = size.sum(-2).amax(-1) * size.sum(-1).amax(-1)
    Z = X.mT / norms.masked_fill(norms == 0, 1.0)[..., None, None]
    one = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    with full_precision(X):
        for _ in range(iterations):
            Y = X @ Z
            Z = 0.25 * Z @ (13 * one - Y @ (15 * one - Y @ (7 * one - Y)))
    return Z.to(A.dtype)


def pinverse_residual(
    A: Float[Tensor, "*batch rows columns"], Z: Float[Tensor, "*batch k l"]
) -> Float[Tensor, "*batch"]:
    r"""Return how far :math:`Z` is from inverting :math:`A` on its range.

    .. math:: \rho = \frac{\lVert AZA - A \rVert_F}{\lVert A \rVert_F}

    Args:
        A: The matrices.
        Z: Their would-be pseudo-inverses.

    Returns:
        One number a matrix, in float32 or better: 0 for the pseudo-inverse; NaN for a matrix of
        zeros.

    Raises:
        ValueError: If the shapes differ.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> pinverse_residual(torch.eye(2), torch.zeros(2, 2))
        tensor(1.)
    """
    if A.shape != Z.shape:
        raise ValueError(f"A and Z must have one shape, got {tuple(A.shape)} and {tuple(Z.shape)}")
    A, Z = wide(A), wide(Z)
    with full_precision(A):
        missing: Tensor = torch.linalg.matrix_norm(A @ Z @ A - A)
    relative: Tensor = missing / torch.linalg.matrix_norm(A)
    return relative


def nystrom_attention(
    Q: Float[Tensor, "*batch n key"],
    K: Float[Tensor, "*kv_batch m key"],
    V: Float[Tensor, "*kv_batch m value"],
    *,
    landmarks: int,
    iterations: int | None = 6,
    real: Bool[Tensor, "rows m"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*batch n value"]:
    r"""Approximate attention by way of a few landmarks.

    .. math::
        \tilde O = \mathrm{softmax}(Q \tilde K^\top)\;
            \mathrm{softmax}(\tilde Q \tilde K^\top)^+\;
            \mathrm{softmax}(\tilde Q K^\top)\, V

    with scores scaled as usual. Row :math:`i` of :math:`\tilde Q` and :math:`\tilde K` is the mean
    of the :math:`i`-th of ``landmarks`` segments of nearly equal length. Padding does not count for
    the length, so a text gives the same alone and beside a longer one.

    Args:
        Q: Queries.
        K: Keys, of as many heads or fewer.
        V: Values.
        landmarks: Segments, at most as many as there are queries and keys.
        iterations: Steps of :func:`newton_pinverse`; ``None`` takes the exact pseudo-inverse.
        real: Which tokens are not padding. Then there must be as many queries as keys.
        scale: Factor of the scores; :math:`1/\sqrt{d_k}` by default.

    Returns:
        The outputs. Rows of the three factors' product need not be positive. With every token a
        landmark and the exact pseudo-inverse it is attention, since :math:`AA^+A = A`.

    Raises:
        ValueError: If there are more landmarks than tokens, or shapes do not fit.

    Numerics:
        Time grows as :math:`n` times ``landmarks``, and memory too where there is padding; without,
        the tables of weights are not held. Computed in float32 or better. There is no causal form:
        each landmark is a mean over its whole segment, and each weight passes through all
        landmarks.

    References:
        Y. Xiong et al. 2021, "Nyströmformer", arXiv:2102.03902, eq. (13), without the convolution
        of the values that the paper adds. The start of the iteration is that of eq. (14), per
        matrix; the first implementations took one norm for the whole batch.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> x = torch.ones(1, 1, 6, 2)
        >>> nystrom_attention(x, x, x, landmarks=1)[0, 0, 0]
        tensor([1., 1.])
    """
    check_qkv(Q, K, V, causal=False, real=real)
    n, m = Q.shape[2], K.shape[2]
    check_count("landmarks", landmarks, high=min(n, m))
    if real is not None and n != m:
        raise ValueError(f"with padding, queries and keys are the same tokens, got {n} and {m}")
    Q, K, V = cast(Q, K, V)
    with full_precision(Q):
        high = wide_dtype(Q.dtype)
        q = Q.to(high) * default_scale(Q, scale)
        k, v = (each_head(t.to(high), Q.shape[1]) for t in (K, V))
        q_means, _ = _segment_means(q, landmarks, real)
        k_means, some = _segment_means(k, landmarks, real)
        middle = q_means @ k_means.mT
        if real is None:
            A = torch.softmax(middle, -1)
        else:  # landmarks of padding alone, and texts without a token, take no part
            middle = middle.masked_fill(~some[:, None, None], -torch.inf)
            A = torch.softmax(middle, -1).nan_to_num(0.0) * some[:, None, :, None]
        Z = (
            torch.linalg.pinv(A)
            if iterations is None
            else newton_pinverse(A, iterations=iterations)
        )
        # The small products first: no matrix of n times m entries appears.
        gathered = Z @ _read(q_means, k, v, real)
        O = _read(q, k_means, gathered, None if real is None else some)  # noqa: E741
    return O.to(Q.dtype)


def _read(q: Tensor, k: Tensor, v: Tensor, real: Tensor | None) -> Tensor:
    """Attention with scores that are scaled already; without padding, no table of it is held."""
    if real is None:
        return scaled_dot_product_attention(q, k, v, scale=1.0)
    scores = (q @ k.mT).masked_fill(~real[:, None, None], -torch.inf)
    return torch.softmax(scores, -1).nan_to_num(0.0) @ v


def _segment_means(x: Tensor, segments: int, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """Means of segments of nearly equal length, and whether each holds a token."""
    n = x.shape[2]
    if real is None and n % segments == 0:
        some = torch.ones(1, segments, dtype=torch.bool, device=x.device)
        return x.view(*x.shape[:2], segments, n // segments, -1).mean(3), some
    real = torch.ones(1, n, dtype=torch.bool, device=x.device) if real is None else real
    rank = real.cumsum(1) - 1  # the place of each token among the tokens of its text
    which = rank * segments // real.sum(1, keepdim=True).clamp(min=1)
    place = torch.arange(segments, device=x.device)[:, None] == which[:, None]
    share = place & real[:, None]
    counts = share.sum(-1, keepdim=True)
    share = share.to(x.dtype) / counts.clamp(min=1)
    return share[:, None] @ x, counts[..., 0] > 0
