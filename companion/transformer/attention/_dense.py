r"""Attention as it is defined: all scores, all weights, nothing fused."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import wide_dtype
from companion.foundations.regularization import dropout as dropped
from companion.transformer.attention._inputs import (
    cast,
    check_inputs,
    default_scale,
    drop,
    full_precision,
    lift,
    lift_bias,
    lift_mask,
)
from companion.transformer.attention._masks import Mask

__all__ = ["attention_weights", "dense_attention"]


def attention_weights(
    Q: Float[Tensor, "*batch n key"],
    K: Float[Tensor, "*kv_batch m key"],
    *,
    mask: Mask | Bool[Tensor, "*#mask"] | None = None,
    bias: Float[Tensor, "*#bias"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*batch n m"]:
    r"""Return how much each query reads from each key.

    .. math:: A = \mathrm{softmax}(S), \qquad S = s \, Q K^\top + B + M

    with the softmax along rows, the scale :math:`s = 1/\sqrt{d_k}`, a bias :math:`B`, and
    :math:`M` equal to 0 where the mask is True and :math:`-\infty` where it is False.

    Args:
        Q: Queries, rows of width :math:`d_k`: ``(batch, heads, n, d_k)``, or ``(batch, n, d_k)``
            for one head, or ``(n, d_k)``.
        K: Keys, with as many axes as the queries. With four axes, there may be fewer heads of
            keys than of queries, see :func:`companion.transformer.attention.attention`.
        mask: Which query may read which key, True means it may: a
            :class:`companion.transformer.attention.Mask`, or a Bool tensor that broadcasts to the
            weights. ``None`` allows all.
        bias: Added to the scaled scores; broadcasts to the weights. May be :math:`-\infty`.
        scale: Factor of the products of queries and keys. ``None`` is :math:`1/\sqrt{d_k}`.

    Returns:
        The weights, in the dtype of ``Q``: from 0 to 1, and each row sums to 1. A row in which
        nothing may be read is all zeros, and so is its gradient.

    Raises:
        ValueError: If shapes or dtypes do not fit.

    Numerics:
        Scores and softmax are computed in float32 or better. Takes :math:`2nm d_k` operations and
        holds several matrices of :math:`nm` numbers for each head: for reading and for tests.

    References:
        A. Vaswani et al., "Attention is all you need", arXiv:1706.03762, eq. (1).

    Book: :doc:`/book/transformer/attention`

    Example:
        >>> x = torch.eye(2, dtype=torch.float64)
        >>> attention_weights(x, x, scale=0.0)
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    check_inputs(Q, K, K)
    allowed, B = lift_mask(mask, Q, K), lift_bias(bias, Q, K)
    Q, K = cast(Q, K)
    high = wide_dtype(Q.dtype)
    with full_precision(Q):
        A = dense_weights(lift(Q).to(high), lift(K).to(high), allowed, B, default_scale(Q, scale))
    return drop(A.to(Q.dtype), Q.ndim)


def dense_attention(
    Q: Float[Tensor, "*batch n key"],
    K: Float[Tensor, "*kv_batch m key"],
    V: Float[Tensor, "*kv_batch m value"],
    *,
    mask: Mask | Bool[Tensor, "*#mask"] | None = None,
    bias: Float[Tensor, "*#bias"] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "*batch n value"], Float[Tensor, "*batch n m"]]:
    r"""Return the outputs of attention and its weights: the plain definition.

    .. math:: O = A V

    with the weights :math:`A` of :func:`attention_weights`. This is the oracle of every faster
    path.

    Args:
        Q: Queries, as in :func:`attention_weights`.
        K: Keys.
        V: Values, one for each key, of any width :math:`d_v`.
        mask: Which query may read which key.
        bias: Added to the scaled scores.
        scale: Factor of the scores. ``None`` is :math:`1/\sqrt{d_k}`.
        dropout: Share of the weights that are set to 0 on the way to :math:`O`, as in
            :func:`companion.transformer.attention.attention`.
        generator: Where they are drawn from; by default the default generator of the device.

    Returns:
        The outputs :math:`O`, of width :math:`d_v`, and the weights :math:`A` before any are
        dropped, in the dtype of ``Q``. Where nothing may be read both are 0, and so are their
        gradients.

    Raises:
        ValueError: If shapes or dtypes do not fit.

    Numerics:
        As :func:`attention_weights`, and :math:`2nm d_v` operations more.

    Book: :doc:`/book/transformer/attention`

    Example:
        >>> x = torch.eye(2, dtype=torch.float64)
        >>> dense_attention(x, x, 2 * x, scale=0.0)[0]
        tensor([[1., 1.],
                [1., 1.]], dtype=torch.float64)
    """
    check_inputs(Q, K, V)
    allowed, B = lift_mask(mask, Q, K), lift_bias(bias, Q, K)
    Q, K, V = cast(Q, K, V)
    high = wide_dtype(Q.dtype)
    with full_precision(Q):
        q, k, v = (lift(t).to(high) for t in (Q, K, V))
        A = dense_weights(q, k, allowed, B, default_scale(Q, scale))
        O = drop_weights(A, dropout, generator) @ each_head(v, q.shape[1])  # noqa: E741
    return drop(O.to(Q.dtype), Q.ndim), drop(A.to(Q.dtype), Q.ndim)


def drop_weights(A: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
    """Set a share of the weights to 0 and scale up the others, so that each keeps its mean."""
    if p == 0:
        return A
    return F.dropout(A, p) if generator is None else dropped(A, p=p, generator=generator)


def masked_scores(
    q: Tensor, k: Tensor, allowed: Tensor | None, bias: Tensor | None, scale: float
) -> Tensor:
    """Return the scores of four axes, -inf where the mask forbids."""
    S = scale * q @ each_head(k, q.shape[1]).mT
    if bias is not None:
        S = S + bias
    return S if allowed is None else S.masked_fill(~allowed, -torch.inf)


def dense_weights(
    q: Tensor, k: Tensor, allowed: Tensor | None, bias: Tensor | None, scale: float
) -> Tensor:
    """Return the weights of four axes."""
    S = masked_scores(q, k, allowed, bias, scale)
    if allowed is None and bias is None:
        return torch.softmax(S, -1)
    return softmax_or_zero(S)


def softmax_or_zero(S: Tensor) -> Tensor:
    """Return the softmax of rows of scores, and zeros for rows of which all are -inf."""
    # The softmax of a row of -inf is 0/0. Such a row is replaced before, so that no NaN can enter
    # its gradient either, and set to 0 after.
    nothing = torch.isneginf(S).all(-1, keepdim=True)
    return torch.softmax(S.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0)


def each_head(tensor: Tensor, heads: int) -> Tensor:
    """Give each query head its own copy of the keys or values of its group."""
    shared = tensor.shape[1]
    return tensor if shared == heads else tensor.repeat_interleave(heads // shared, dim=1)
