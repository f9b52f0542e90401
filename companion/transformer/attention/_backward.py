r"""The backward pass of attention, written by hand.

Read from the last equation to the first: :math:`O = AV` sends the gradient to the weights and the
values, the softmax sends it on to the scores, and :math:`S = s\,QK^\top + B` to the queries, the
keys and the bias.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import wide_dtype
from companion.foundations.cross_entropy import softmax_vjp
from companion.transformer.attention._dense import dense_weights, each_head
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

__all__ = ["AttentionFunction", "attention_backward", "attention_by_hand"]


def attention_backward(
    Q: Float[Tensor, "*batch n key"],
    K: Float[Tensor, "*kv_batch m key"],
    V: Float[Tensor, "*kv_batch m value"],
    A: Float[Tensor, "*batch n m"],
    dO: Float[Tensor, "*batch n value"],
    *,
    scale: float | None = None,
) -> tuple[
    Float[Tensor, "*batch n key"],
    Float[Tensor, "*kv_batch m key"],
    Float[Tensor, "*kv_batch m value"],
]:
    r"""Return the gradients with respect to queries, keys and values.

    .. math::
        dV = A^\top dO, \qquad dA = dO\, V^\top, \qquad
        dS = A \odot \big(dA - \mathrm{rowsum}(dA \odot A)\big)

    .. math:: dQ = s\, dS\, K, \qquad dK = s\, dS^\top Q

    Args:
        Q: Queries.
        K: Keys.
        V: Values.
        A: The weights of the forward pass, as
            :func:`companion.transformer.attention.dense_attention` returns them. They know the
            mask and the bias.
        dO: Gradient that arrives at the outputs.
        scale: Factor :math:`s` of the scores in the forward pass. ``None`` is
            :math:`1/\sqrt{d_k}`.

    Returns:
        ``(dQ, dK, dV)``, each in the shape and dtype of its variable. With fewer heads of keys
        than of queries, a group's contributions are summed. A row of zeros in ``A`` contributes
        nothing.

    Raises:
        ValueError: If shapes or dtypes do not fit.

    Numerics:
        Computed in float32 or better, with four products of matrices: :math:`4nm d_v + 4nm d_k`
        operations, twice those of the forward pass, and some elementwise ones.

    References:
        T. Dao et al., "FlashAttention", arXiv:2205.14135, appendix B.2; here with the weights
        given instead of computed again.

    Book: :doc:`/book/transformer/attention`

    Example:
        >>> x = torch.eye(2, dtype=torch.float64)
        >>> attention_backward(x, x, x, torch.full_like(x, 0.5), x)[2]
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    check_inputs(Q, K, V)
    for name, tensor, want in (
        ("A", A, (*Q.shape[:-1], K.shape[-2])),
        ("dO", dO, (*Q.shape[:-1], V.shape[-1])),
    ):
        if tuple(tensor.shape) != want:
            raise ValueError(f"{name} must have shape {want}, got {tuple(tensor.shape)}")
    high = wide_dtype(Q.dtype)
    with full_precision(Q):
        q, k, v, a, do = (lift(t).to(high) for t in (Q, K, V, A, dO))
        dQ, dK, dV, _ = _gradients(q, k, v, a, do, default_scale(Q, scale), None)
    axes = Q.ndim
    return drop(dQ.to(Q.dtype), axes), drop(dK.to(K.dtype), axes), drop(dV.to(V.dtype), axes)


class AttentionFunction(torch.autograd.Function):
    r"""Attention with the hand-written backward pass, as a node of PyTorch's autograd.

    ``AttentionFunction.apply(Q, K, V, allowed, bias, scale)`` takes tensors of four axes in
    float32 or better, with ``allowed`` (Bool) and ``bias`` ready to broadcast to the scores or
    ``None``, and returns ``(O, A)``. The weights are a second output so that what the backward
    pass saves is part of the graph: that makes its derivative right as well. Use it through
    :func:`companion.transformer.attention.attention_by_hand`.

    Book: :doc:`/book/transformer/attention`
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        Q: Tensor,
        K: Tensor,
        V: Tensor,
        allowed: Tensor | None,
        bias: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs and the weights."""
        A = dense_weights(Q, K, allowed, bias, scale)
        return A @ each_head(V, Q.shape[1]), A

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep what the backward pass needs: inputs and weights, no scores."""
        Q, K, V, _, bias, scale = inputs
        ctx.set_materialize_grads(False)  # no zeros where the weights were not used
        ctx.save_for_backward(Q, K, V, output[1])
        ctx.scale = scale
        ctx.bias_shape = None if bias is None else bias.shape

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of everything that has one."""
        dO, dA = grads
        Q, K, V, A = ctx.saved_tensors
        if dO is None:
            if dA is None:
                return (None,) * 6
            dO = Q.new_zeros(*Q.shape[:-1], V.shape[-1])
        dQ, dK, dV, dS = _gradients(Q, K, V, A, dO, ctx.scale, dA)
        d_bias = None
        if ctx.needs_input_grad[4]:
            d_bias = dS.sum_to_size(ctx.bias_shape)
        return dQ, dK, dV, None, d_bias, None


def attention_by_hand(
    Q: Float[Tensor, "*batch n key"],
    K: Float[Tensor, "*kv_batch m key"],
    V: Float[Tensor, "*kv_batch m value"],
    *,
    mask: Mask | Bool[Tensor, "*#mask"] | None = None,
    bias: Float[Tensor, "*#bias"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*batch n value"]:
    r"""Return the outputs of attention, with a backward pass written by hand.

    Args:
        Q: Queries, as in :func:`companion.transformer.attention.attention`.
        K: Keys.
        V: Values.
        mask: Which query may read which key.
        bias: Added to the scaled scores. It receives its gradient too.
        scale: Factor of the scores. ``None`` is :math:`1/\sqrt{d_k}`.

    Returns:
        The outputs, equal to those of
        :func:`companion.transformer.attention.dense_attention`.

    Raises:
        ValueError: If shapes or dtypes do not fit.

    Numerics:
        Saves the inputs and the weights. Can be differentiated any number of times.

    Book: :doc:`/book/transformer/attention`

    Example:
        >>> x = torch.eye(2, dtype=torch.float64)
        >>> attention_by_hand(x, x, 2 * x, scale=0.0)
        tensor([[1., 1.],
                [1., 1.]], dtype=torch.float64)
    """
    check_inputs(Q, K, V)
    allowed, B = lift_mask(mask, Q, K), lift_bias(bias, Q, K)
    Q, K, V = cast(Q, K, V)
    high = wide_dtype(Q.dtype)
    with full_precision(Q):
        O, _ = AttentionFunction.apply(  # type: ignore[no-untyped-call]  # noqa: E741
            lift(Q).to(high),
            lift(K).to(high),
            lift(V).to(high),
            allowed,
            None if B is None else B.to(high),
            default_scale(Q, scale),
        )
    return drop(O.to(Q.dtype), Q.ndim)


def _gradients(
    Q: Tensor, K: Tensor, V: Tensor, A: Tensor, dO: Tensor, scale: float, dA: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dQ, dK, dV and dS; ``dA`` is what arrives at the weights from elsewhere."""
    heads, kv_heads = Q.shape[1], K.shape[1]
    dV = A.mT @ dO
    through = dO @ each_head(V, heads).mT
    dS = softmax_vjp(A, through if dA is None else through + dA)
    dQ = scale * dS @ each_head(K, heads)
    dK = scale * dS.mT @ Q
    return dQ, _sum_groups(dK, kv_heads), _sum_groups(dV, kv_heads), dS


def _sum_groups(gradient: Tensor, kv_heads: int) -> Tensor:
    """Sum the gradients of the copies that the query heads of a group had."""
    heads = gradient.shape[1]
    if heads == kv_heads:
        return gradient
    batch, _, m, width = gradient.shape
    return gradient.reshape(batch, kv_heads, heads // kv_heads, m, width).sum(2)
