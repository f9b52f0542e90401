r"""Random weights that keep signals at their size.

For :math:`y = x W` with independent entries of mean 0, :math:`\mathrm{Var}[y] = n_{in}
\mathrm{Var}[w] \, E[x^2]` on the way forward and :math:`\mathrm{Var}[\bar x] = n_{out}
\mathrm{Var}[w] \, E[\bar y^2]` on the way back. Each rule below answers the question
which variance keeps one of them, or both.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_in_range, randn, wide_dtype

__all__ = ["RULES", "Rule", "init_weights", "orthogonal", "weight_variance"]

Rule = Literal["he", "lecun", "orthogonal", "xavier"]

#: Names of the rules.
RULES: tuple[Rule, ...] = ("he", "lecun", "orthogonal", "xavier")


def weight_variance(rule: Rule, d_in: int, d_out: int, *, gain: float = 1.0) -> float:
    r"""Return the variance of an entry of a weight matrix.

    .. math:: \text{lecun: } \frac{1}{n_{in}}, \qquad \text{xavier: } \frac{2}{n_{in} + n_{out}},
        \qquad \text{he: } \frac{2}{n_{in}}, \qquad
        \text{orthogonal: } \frac{1}{\max(n_{in}, n_{out})}

    each times the square of the gain.

    Args:
        rule: ``"lecun"`` keeps the variance forward in a linear layer, ``"xavier"`` is the
            compromise with the way back, ``"he"`` makes up for the half that ReLU discards,
            ``"orthogonal"`` keeps the length of every vector as far as the shape allows.
        d_in: Number of inputs :math:`n_{in}`, the rows of :math:`W`.
        d_out: Number of outputs :math:`n_{out}`, the columns.
        gain: Factor of the weights, above 0.

    Returns:
        The variance.

    Raises:
        ValueError: If the rule is unknown, a size is not positive, or the gain is not above 0.

    References:
        X. Glorot and Y. Bengio, AISTATS 2010, eq. 12; K. He et al., arXiv:1502.01852, eq. 10;
        A. Saxe et al., arXiv:1312.6120. The variance of an orthogonal matrix is the average over
        its entries, whose squares sum to the number of its unit singular values.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> weight_variance("he", 50, 30), weight_variance("xavier", 50, 30)
        (0.04, 0.025)
    """
    if d_in < 1 or d_out < 1:
        raise ValueError(f"sizes must be 1 or more, got d_in = {d_in} and d_out = {d_out}")
    check_in_range("gain", gain, low=0.0, open_low=True, open_high=True)
    if rule == "lecun":
        variance = 1 / d_in
    elif rule == "xavier":
        variance = 2 / (d_in + d_out)
    elif rule == "he":
        variance = 2 / d_in
    elif rule == "orthogonal":
        variance = 1 / max(d_in, d_out)
    else:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    return gain**2 * variance


def orthogonal(
    d_in: int,
    d_out: int,
    *,
    generator: torch.Generator,
    gain: float = 1.0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "{d_in} {d_out}"]:
    r"""Draw a matrix with all singular values equal, uniformly among those.

    .. math:: W W^\top = g^2 I \text{ if } n_{in} \le n_{out}, \qquad
        W^\top W = g^2 I \text{ if } n_{in} \ge n_{out}

    Args:
        d_in: Rows.
        d_out: Columns.
        generator: The source of randomness.
        gain: The singular values :math:`g`, above 0.
        device: Where the matrix is moved; by default it stays with the generator.
        dtype: Floating dtype; by default PyTorch's default dtype.

    Returns:
        The matrix.

    Raises:
        ValueError: If a size is not positive, or the gain is not above 0.

    Numerics:
        The Q of a Gaussian matrix, its columns multiplied by the signs of the diagonal of R.
        Without these signs the result would follow the conventions of the QR routine and not be
        uniform. Computed in float32 or better.

    References:
        F. Mezzadri, arXiv:math-ph/0609050.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> w = orthogonal(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> bool(torch.allclose(w @ w.T, torch.eye(3, dtype=torch.float64)))
        True
    """
    weight_variance("orthogonal", d_in, d_out, gain=gain)
    dtype = dtype or torch.get_default_dtype()
    tall, narrow = max(d_in, d_out), min(d_in, d_out)
    working = wide_dtype(dtype)
    q, r = torch.linalg.qr(randn(tall, narrow, generator=generator, dtype=working))
    diagonal = r.diagonal()
    q = q * torch.where(diagonal < 0, -torch.ones_like(diagonal), torch.ones_like(diagonal))
    made: Tensor = gain * (q.mT if d_in < d_out else q)
    return made.contiguous().to(device=device or made.device, dtype=dtype)


def init_weights(
    widths: Sequence[int],
    *,
    rule: Rule,
    generator: torch.Generator,
    gain: float = 1.0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    r"""Draw the weight matrices of a feed-forward network.

    Args:
        widths: Sizes of the layers, inputs first: :math:`n_0, n_1, \ldots, n_L`.
        rule: As in :func:`weight_variance`. Entries are normal, except for ``"orthogonal"``.
        generator: The source of randomness.
        gain: As in :func:`weight_variance`.
        device: Where the matrices are moved; by default they stay with the generator.
        dtype: Floating dtype; by default PyTorch's default dtype.

    Returns:
        :math:`L` matrices :math:`W_l` of shape ``(widths[l - 1], widths[l])``, for :math:`x W`.

    Raises:
        ValueError: As in :func:`weight_variance`, or if there are fewer than two sizes.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> made = init_weights([64, 32, 10], rule="he", generator=torch.Generator().manual_seed(0))
        >>> [tuple(w.shape) for w in made]
        [(64, 32), (32, 10)]
    """
    if len(widths) < 2:
        raise ValueError(f"a network needs at least two sizes, got {list(widths)}")
    made = []
    for d_in, d_out in pairwise(widths):
        deviation = weight_variance(rule, d_in, d_out, gain=gain) ** 0.5
        if rule == "orthogonal":
            weight = orthogonal(
                d_in, d_out, generator=generator, gain=gain, device=device, dtype=dtype
            )
        else:
            weight = deviation * randn(d_in, d_out, generator=generator, device=device, dtype=dtype)
        made.append(weight)
    return made
