r"""Attention over parts of the keys, and how the parts are put together.

A softmax needs its normalizer, a sum over all keys. What makes attention computable in pieces is
that a piece can be summarized by three things: the largest score, the sum of exponentials
relative to it, and the mean value.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import wide_dtype
from companion.transformer.attention._dense import each_head, masked_scores
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

__all__ = ["AttentionState", "attention_state", "merge_states"]


class AttentionState(NamedTuple):
    r"""What attention has learned from a set of keys, for each query.

    Attributes:
        maximum: The largest score :math:`m`, :math:`-\infty` where no key was read.
        normalizer: :math:`\ell = \sum_j e^{s_j - m}`, 0 where no key was read.
        output: The mean value :math:`o = \sum_j e^{s_j - m} v_j / \ell`, 0 where no key was read.

    Book: :doc:`/book/transformer/attention`
    """

    maximum: Float[Tensor, "... n"]
    normalizer: Float[Tensor, "... n"]
    output: Float[Tensor, "... n value"]


def attention_state(
    Q: Float[Tensor, "*batch n key"],
    K: Float[Tensor, "*kv_batch m key"],
    V: Float[Tensor, "*kv_batch m value"],
    *,
    mask: Mask | Bool[Tensor, "*#mask"] | None = None,
    bias: Float[Tensor, "*#bias"] | None = None,
    scale: float | None = None,
) -> AttentionState:
    r"""Return the state of attention after a set of keys.

    Args:
        Q: Queries, as in :func:`companion.transformer.attention.attention`.
        K: Keys.
        V: Values.
        mask: Which query may read which key.
        bias: Added to the scaled scores.
        scale: Factor of the scores. ``None`` is :math:`1/\sqrt{d_k}`.

    Returns:
        The state, in float32 or better. Its ``output`` is the output of attention over these
        keys alone.

    Raises:
        ValueError: If shapes or dtypes do not fit.

    Book: :doc:`/book/transformer/attention`

    Example:
        >>> x = torch.eye(2, dtype=torch.float64)
        >>> attention_state(x, x, x, scale=0.0).normalizer
        tensor([2., 2.], dtype=torch.float64)
    """
    check_inputs(Q, K, V)
    allowed, B = lift_mask(mask, Q, K), lift_bias(bias, Q, K)
    Q, K, V = cast(Q, K, V)
    high = wide_dtype(Q.dtype)
    with full_precision(Q):
        q, k, v = (lift(t).to(high) for t in (Q, K, V))
        S = masked_scores(q, k, allowed, B, default_scale(Q, scale))
        m = S.amax(-1, keepdim=True) if S.shape[-1] else S.new_full((*S.shape[:-1], 1), -torch.inf)
        weights = torch.exp(S - _finite(m))
        norm = weights.sum(-1, keepdim=True)
        o = weights @ each_head(v, q.shape[1]) / _positive(norm)
    axes = Q.ndim
    return AttentionState(drop(m, axes).squeeze(-1), drop(norm, axes).squeeze(-1), drop(o, axes))


def merge_states(
    first: tuple[Tensor, Tensor, Tensor], second: tuple[Tensor, Tensor, Tensor]
) -> AttentionState:
    r"""Return the state of attention after two disjoint sets of keys.

    .. math::
        m = \max(m_1, m_2), \qquad \ell = e^{m_1 - m} \ell_1 + e^{m_2 - m} \ell_2, \qquad
        o = \frac{e^{m_1 - m} \ell_1 o_1 + e^{m_2 - m} \ell_2 o_2}{\ell}

    Args:
        first: State :math:`(m_1, \ell_1, o_1)`: shapes ``(*batch, n)``, ``(*batch, n)`` and
            ``(*batch, n, value)``.
        second: State :math:`(m_2, \ell_2, o_2)` of the same queries.

    Returns:
        The merged state. Merging is associative and commutative up to rounding, and
        :math:`(-\infty, 0, 0)`, the state after no keys, is its neutral element.

    Raises:
        ValueError: If the shapes do not fit.

    Numerics:
        No exponent is above zero, so nothing overflows.

    References:
        M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax",
        arXiv:1805.02867, eq. (4); with outputs: T. Dao et al., "FlashAttention",
        arXiv:2205.14135, section 3.1.

    Book: :doc:`/book/transformer/attention`

    Example:
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> merge_states((zero, one, one[None]), (zero, 3 * one, 5 * one[None])).output
        tensor([[4.]])
    """
    shapes = [tuple(t.shape) for t in (*first, *second)]
    if len({*shapes[:2], *shapes[3:5], shapes[2][:-1]}) > 1 or shapes[2] != shapes[5]:
        raise ValueError(
            "two states must have shapes (*batch, n), (*batch, n), (*batch, n, value), "
            f"got {shapes[:3]} and {shapes[3:]}"
        )
    m = torch.maximum(first[0], second[0])
    top = _finite(m)
    one, two = torch.exp(first[0] - top) * first[1], torch.exp(second[0] - top) * second[1]
    norm = one + two
    o = (one[..., None] * first[2] + two[..., None] * second[2]) / _positive(norm)[..., None]
    return AttentionState(m, norm, o)


def _finite(maximum: Tensor) -> Tensor:
    """Replace -inf, the maximum of nothing, by 0: the difference of two infinities is NaN."""
    return maximum.masked_fill(torch.isneginf(maximum), 0.0)


def _positive(norm: Tensor) -> Tensor:
    """Replace 0, the normalizer of nothing, by 1: the output is then 0/1."""
    return norm.masked_fill(norm == 0, 1.0)
