r"""Where attention goes: its entropy, the mass at a sink, and a softmax that may say nothing."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import check_floating, wide
from companion.foundations.cross_entropy import entropy
from companion.transformer.attention._dispatch import attention
from companion.transformer.attention._masks import Mask

__all__ = ["attention_entropy", "attention_with_sink", "sink_mass", "softmax_one"]


def attention_entropy(
    A: Float[Tensor, "*batch queries keys"],
) -> Float[Tensor, "*batch queries"]:
    r"""Return the entropy of each row of attention weights.

    .. math:: H(a_i) = -\sum_j a_{ij} \log a_{ij}

    Args:
        A: Weights; rows are not negative and sum to one. Zeros count nothing.

    Returns:
        Nats, from 0 (one key is read) to :math:`\log m` (all :math:`m` keys are read alike).
        :math:`e^H` is the number of keys that would be read alike at this entropy.

    Raises:
        ValueError: If the weights are not floating.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> attention_entropy(torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)).exp()
        tensor([2.], dtype=torch.float64)
    """
    check_floating("A", A)
    return entropy(A)


def sink_mass(
    A: Float[Tensor, "*batch queries keys"], *, position: int = 0
) -> Float[Tensor, " *batch"]:
    r"""Return the mean weight that the other tokens give to one position.

    .. math:: \mathrm{sink}_p = \frac1{n-1} \sum_{i \ne p} A_{ip}

    Args:
        A: Weights of self-attention. Average over heads afterwards for a layer's mass.
        position: The position :math:`p`; negative ones count from the end.

    Returns:
        One number for each matrix, from 0 to 1. Without a mask, :math:`1/n` where attention is
        uniform; with a causal mask the first token then has :math:`\frac1{n-1} \sum_{i=2}^n 1/i`.

    Raises:
        ValueError: If the matrices are not square, of at least 2 tokens, or the position is not
            in them, or the weights are not floating.

    Numerics:
        Summed in float32 or better, and returned in the dtype of the weights.

    References:
        Gu et al. 2025, arXiv:2410.10781, sec. 3, from the second query on.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> sink_mass(torch.tensor([[1.0, 0.0], [0.75, 0.25]], dtype=torch.float64))
        tensor(0.7500, dtype=torch.float64)
    """
    check_floating("A", A)
    n, m = A.shape[-2:]
    if n != m or n < 2:
        raise ValueError(f"A must be square, of 2 tokens or more, got {tuple(A.shape)}")
    if not -n <= position < n:
        raise ValueError(f"position must lie in [{-n}, {n}), got {position}")
    column = wide(A[..., position])
    return ((column.sum(-1) - column[..., position]) / (n - 1)).to(A.dtype)


def softmax_one(
    scores: Float[Tensor, "..."],
    *,
    sink: Float[Tensor, "..."] | float = 0.0,
    dim: int = -1,
) -> Float[Tensor, "..."]:
    r"""Return softmax with one more term in the denominator, so that a row may sum to less than 1.

    .. math:: \mathrm{softmax}_1(s)_j = \frac{e^{s_j}}{e^b + \sum_k e^{s_k}}

    It is a softmax over one more score, the sink :math:`b`, whose weight is thrown away.

    Args:
        scores: Scores :math:`s`; :math:`-\infty` where nothing may be read.
        sink: The score :math:`b`, 0 for the plain :math:`\mathrm{softmax}_1`. A tensor, such as
            one learned number for each head, broadcasts to the scores with size 1 along ``dim``.
        dim: The axis that is normalized.

    Returns:
        Weights in the dtype of the scores, 0 or more, with sums below 1. A row in which
        nothing may be read is zero, and its gradient too.

    Raises:
        ValueError: If the scores are not floating.

    Numerics:
        Computed in float32 or better, shifted by the larger of the greatest score and the sink,
        so nothing overflows.

    References:
        Miller 2023, "Attention is off by one". A learned sink for each head: OpenAI 2025,
        "gpt-oss-120b & gpt-oss-20b model card", arXiv:2508.10925, sec. 2.2.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> softmax_one(torch.zeros(3, dtype=torch.float64))
        tensor([0.2500, 0.2500, 0.2500], dtype=torch.float64)
    """
    check_floating("scores", scores)
    s = wide(scores)
    b = torch.as_tensor(sink, dtype=s.dtype, device=s.device)
    b = b.expand_as(s.narrow(dim, 0, 1)) if s.shape[dim] else b
    weights = torch.softmax(torch.cat([s, b], dim), dim)
    return weights.narrow(dim, 0, s.shape[dim]).to(scores.dtype)


def attention_with_sink(
    Q: Float[Tensor, "batch heads n key"],
    K: Float[Tensor, "batch kv_heads m key"],
    V: Float[Tensor, "batch kv_heads m value"],
    *,
    sink: Float[Tensor, " heads"] | float = 0.0,
    mask: Mask | Bool[Tensor, "..."] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "batch heads n value"]:
    r"""Return attention whose weights are :func:`softmax_one` of the scores.

    Computed by the fused kernels as plain attention to one more key: its score is the sink for
    every query, and its value is zero.

    Args:
        Q: Queries.
        K: Keys; there may be fewer heads of them.
        V: Values.
        sink: The sink's score, in the units of scaled scores: one number, or one for each head.
        mask: Which query may read which key, True means it may. The sink is always readable.
        scale: Factor of the products of queries and keys; :math:`1/\sqrt{d_k}` by default.

    Returns:
        The outputs. Where nothing may be read they are zero.

    Raises:
        ValueError: If shapes do not fit.

    Numerics:
        The sink's score is a bias, so a mask and the bias are tensors of n times m numbers.

    References:
        As :func:`softmax_one`.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> x = torch.zeros(1, 1, 3, 2, dtype=torch.float64)
        >>> attention_with_sink(x, x, x + 1)[0, 0, 0]
        tensor([0.7500, 0.7500], dtype=torch.float64)
    """
    heads, n, m = Q.shape[1], Q.shape[2], K.shape[2]
    score = torch.as_tensor(sink, dtype=Q.dtype, device=Q.device)
    if score.ndim == 1 and score.shape[0] != heads:
        raise ValueError(f"sink must have one entry for each of {heads} heads, got {len(score)}")
    allowed = mask.dense(n, m, device=Q.device) if isinstance(mask, Mask) else mask
    bias = Q.new_zeros(1, heads, n, m)
    if allowed is not None:
        bias = bias.expand(allowed.shape[0] if allowed.ndim == 4 else 1, -1, -1, -1)
        bias = bias.masked_fill(~allowed, -torch.inf)
    column = score.expand(heads).view(1, heads, 1, 1).expand(bias.shape[0], -1, n, -1)
    nothing = K.new_zeros(*K.shape[:2], 1, K.shape[3])
    no_value = V.new_zeros(*V.shape[:2], 1, V.shape[3])
    return attention(
        Q,
        torch.cat([K, nothing], 2),
        torch.cat([V, no_value], 2),
        bias=torch.cat([bias, column], 3),
        scale=scale,
    )
