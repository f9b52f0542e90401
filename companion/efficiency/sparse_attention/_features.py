r"""Feature maps whose inner products stand for the exponential of attention."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import check_count, check_shape, randn, wide
from companion.efficiency.sparse_attention._linear import linear_attention
from companion.transformer.attention._inputs import full_precision

__all__ = ["elu_features", "favor_attention", "favor_features", "gaussian_frequencies"]


def gaussian_frequencies(
    m: int,
    d: int,
    *,
    orthogonal: bool = True,
    generator: torch.Generator,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "m d"]:
    r"""Draw frequencies for :func:`favor_features`, each row distributed as :math:`N(0, I)`.

    Args:
        m: Their number.
        d: Their width.
        orthogonal: Whether the rows of each block of :math:`d` are orthogonal. The direction of
            each row is uniform and its length that of a normal vector, as without; what changes
            is that the rows of a block no longer point alike.
        generator: Where they are drawn from.
        device: Where they are made.
        dtype: Their type.

    Returns:
        The frequencies.

    Raises:
        ValueError: If a number is out of range.

    References:
        Choromanski et al. 2021, arXiv:2009.14794, sec. 2.4.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> w = gaussian_frequencies(3, 3, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(w @ w.T, (w @ w.T).diag().diag(), atol=1e-5)
        True
    """
    check_count("m", m)
    check_count("d", d)
    if not orthogonal:
        return randn(m, d, generator=generator, device=device, dtype=dtype)
    blocks = -(-m // d)
    normal = randn(blocks, d, d, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    # Signs that make the factorization unique: then q is uniform over the orthogonal matrices.
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    lengths = randn(m, d, generator=generator, dtype=torch.float64).norm(dim=1)
    rows = q.mT.flatten(0, 1)[:m] * lengths[:, None]
    made: Tensor = rows.to(device=device, dtype=dtype or torch.get_default_dtype())
    return made


def favor_features(
    x: Float[Tensor, "*batch n d"],
    omega: Float[Tensor, "m d"],
    *,
    shift: Float[Tensor, "..."] | float = 0.0,
) -> Float[Tensor, "*batch n m"]:
    r"""Return positive random features of the exponential kernel.

    .. math::

        \varphi(x)_r = \tfrac{1}{\sqrt m} \, e^{\omega_r \cdot x - \lVert x \rVert^2/2 - c}, \qquad
        \mathbb E\big[\varphi(q) \cdot \varphi(k)\big] = e^{q \cdot k}
        \ \text{ for } c = 0 \text{ and } \omega_r \sim N(0, I)

    Args:
        x: Vectors.
        omega: Frequencies :math:`\omega`, see :func:`gaussian_frequencies`.
        shift: The number :math:`c`, which scales features so that none overflows. Attention does
            not depend on it if it is the same for *all keys*; for queries it may differ.

    Returns:
        Features, all positive unless they underflow, in float32 or better.

    Raises:
        ValueError: If the widths differ.

    References:
        Choromanski et al. 2021, arXiv:2009.14794, lemma 1.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> favor_features(torch.zeros(1, 2), torch.ones(4, 2))
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    if x.shape[-1] != omega.shape[-1]:
        raise ValueError(
            f"x of width {x.shape[-1]} does not meet frequencies of width {omega.shape[-1]}"
        )
    x = wide(x)
    with full_precision(x):
        z = x @ omega.to(x.dtype).mT
    exponent = z - x.square().sum(-1, keepdim=True) / 2 - shift
    scaled: Tensor = exponent.exp() * omega.shape[0] ** -0.5
    return scaled


def favor_attention(
    Q: Float[Tensor, "batch heads n key"],
    K: Float[Tensor, "batch heads m key"],
    V: Float[Tensor, "batch heads m value"],
    *,
    omega: Float[Tensor, "features key"],
    causal: bool = False,
    real: Bool[Tensor, "batch m"] | None = None,
    scale: float | None = None,
    chunk: int = 128,
) -> Float[Tensor, "batch heads n value"]:
    r"""Return an estimate of softmax attention by positive random features: FAVOR+.

    .. math::

        O_i = \frac{\varphi(\sqrt s q_i) \sum_j \varphi(\sqrt s k_j)^\top v_j}
        {\varphi(\sqrt s q_i) \cdot \sum_j \varphi(\sqrt s k_j)}

    Args:
        Q: Queries.
        K: Keys.
        V: Values.
        omega: Frequencies, see :func:`gaussian_frequencies`.
        causal: Whether the sums run over earlier tokens only.
        real: False where a token is padding, shape (batch, m).
        scale: Factor :math:`s` of the scores, not negative. ``None`` is :math:`1/\sqrt{d_k}`.
        chunk: Tokens of a chunk in the causal form.

    Returns:
        The outputs: averages of the values with positive weights. The estimate of each weight is
        unbiased before it is divided by their sum.

    Raises:
        ValueError: If shapes do not fit, or the scale is negative.

    Numerics:
        Features are those of :func:`favor_features`, up to a factor for each query and one for all
        keys together, which cancel and make the largest 1; padding takes no part in it. A causal
        query whose keys all underflow beside a later key has output 0. In float32 or better, under
        autocast too.

    References:
        Choromanski et al. 2021, arXiv:2009.14794, sec. 2.3.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> x = torch.zeros(1, 1, 3, 2)
        >>> favor_attention(x, x, x + 1, omega=torch.ones(4, 2))[0, 0, 0]
        tensor([1., 1.])
    """
    if Q.shape[-1] != omega.shape[-1]:
        raise ValueError(
            f"queries of width {Q.shape[-1]} do not meet frequencies of width {omega.shape[-1]}"
        )
    if scale is not None and scale < 0:
        raise ValueError(
            f"the kernel exp(s q k) has features for a scale of 0 or more, got {scale}"
        )
    if real is not None:
        check_shape("real", real, (K.shape[0], K.shape[2]))
    root = (Q.shape[-1] ** -0.5 if scale is None else scale) ** 0.5
    q, k = root * wide(Q), root * wide(K)
    # What scales all features of a query cancels, and what scales those of all keys alike.
    with full_precision(q):
        z_q, z_k = q @ omega.to(q.dtype).mT, k @ omega.to(k.dtype).mT
    half = k.square().sum(-1, keepdim=True) / 2
    # In place, as the tables of features are the largest tensors here.
    if z_q.numel():
        z_q.sub_(z_q.detach().amax(-1, keepdim=True))
    if z_k.numel():
        largest = z_k.detach().amax(-1, keepdim=True) - half.detach()
        half = half + _largest_of_all(largest, real)
    phi_q, phi_k = z_q.exp_(), z_k.sub_(half).exp_()
    O = linear_attention(phi_q, phi_k, wide(V), causal=causal, chunk=chunk)  # noqa: E741
    return O.to(V.dtype)


def _largest_of_all(exponents: Tensor, real: Tensor | None) -> Tensor:
    """The largest exponent of the tokens of a text, and infinity for its padding.

    Padding must not take part: beside a key of zeros, all long keys would underflow.
    """
    if real is None:
        return exponents.amax(-2, keepdim=True)
    padded = ~real[:, None, :, None]
    largest = exponents.masked_fill(padded, -torch.inf).amax(-2, keepdim=True)
    return torch.where(padded, torch.inf, largest)


def elu_features(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""Return the positive features :math:`\mathrm{elu}(x) + 1` of linear attention.

    .. math:: \varphi(x) = 1 + x \ \text{ for } x \ge 0, \qquad e^x \ \text{ for } x < 0

    Args:
        x: Numbers.

    Returns:
        Positive numbers in the dtype of ``x``, with derivative 1 at 0.

    Numerics:
        ``elu(x) + 1`` as it is written cancels: in bfloat16 it is 0 from about -6 on. Here the
        exponential is returned itself.

    References:
        Katharopoulos et al. 2020, arXiv:2006.16236, eq. (7).

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> elu_features(torch.tensor([-8.0, 0.0, 2.0], dtype=torch.bfloat16))
        tensor([3.3569e-04, 1.0000e+00, 3.0000e+00], dtype=torch.bfloat16)
    """
    return torch.where(x >= 0, x + 1, x.clamp(max=0).exp())
