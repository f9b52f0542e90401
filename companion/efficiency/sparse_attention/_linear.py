r"""Linear attention: one matrix that is written and read, in three forms that are equal."""

from math import log
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_floating, wide
from companion.transformer.attention._inputs import full_precision

__all__ = ["delta_rule", "linear_attention"]

Form = Literal["chunked", "recurrent", "quadratic"]


def linear_attention(
    phi_q: Float[Tensor, "batch heads n features"],
    phi_k: Float[Tensor, "batch heads m features"],
    V: Float[Tensor, "batch heads m value"],
    *,
    causal: bool = True,
    log_decay: Float[Tensor, "batch heads n"] | Float[Tensor, "heads 1"] | None = None,
    normalize: bool = True,
    form: Form = "chunked",
    chunk: int = 64,
) -> Float[Tensor, "batch heads n value"]:
    r"""Return the outputs of attention whose weights are inner products of features.

    .. math::

        S_t = \alpha_t S_{t-1} + \varphi(k_t)^\top v_t, \qquad
        z_t = \alpha_t z_{t-1} + \varphi(k_t), \qquad
        o_t = \frac{\varphi(q_t) S_t}{\varphi(q_t) \cdot z_t}

    Args:
        phi_q: Features of the queries.
        phi_k: Features of the keys; rows of zeros for padding.
        V: Values.
        causal: Whether the sums run up to the query's own token, or over all tokens.
        log_decay: :math:`\log \alpha_t \le 0` of each token, or one number for each head
            (RetNet); ``None`` is no decay, and :math:`-\infty` forgets all that came before. For
            the causal form.
        normalize: Whether to divide by :math:`\varphi(q_t) \cdot z_t`.
        form: How the causal form is computed: ``"recurrent"`` steps from token to token,
            ``"quadratic"`` makes all pairs, and ``"chunked"`` makes the pairs of a chunk and steps
            from chunk to chunk.
        chunk: Tokens of a chunk.

    Returns:
        The outputs, in the dtype of ``V``. A query without any weight has output 0.

    Raises:
        ValueError: If shapes do not fit, or a decay meets ``causal=False``.

    Numerics:
        Sums are held in float32 or better, whatever comes in, under autocast too. Chunked: for
        :math:`m` features and chunks of :math:`c` tokens, :math:`2n(cm + cd_v + 2md_v)` operations
        a head.

    References:
        Katharopoulos et al. 2020, arXiv:2006.16236, eqs. (5), (16)-(20). Decay and chunks:
        Sun et al. 2023, arXiv:2307.08621, eqs. (5)-(7), there without the division.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> one = torch.ones(1, 1, 3, 1)
        >>> linear_attention(one, one, torch.tensor([2.0, 4.0, 9.0]).view(1, 1, 3, 1)).flatten()
        tensor([2., 3., 5.])
    """
    if phi_k.shape[:3] != V.shape[:3] or phi_q.shape[-1] != phi_k.shape[-1]:
        raise ValueError(
            "features of queries and keys must have one width, and each key a value, got "
            f"{tuple(phi_q.shape)}, {tuple(phi_k.shape)} and {tuple(V.shape)}"
        )
    same = slice(0, 3 if causal else 2)
    if phi_q.shape[same] != phi_k.shape[same]:
        what = "batch, heads and tokens" if causal else "batch and heads"
        raise ValueError(
            f"queries and keys must have the same {what}, got {tuple(phi_q.shape)} and "
            f"{tuple(phi_k.shape)}: repeat the keys and values that heads share"
        )
    check_floating("V", V)
    q, k, v = wide(phi_q), wide(phi_k), wide(V)
    if normalize:
        v = torch.cat([v, v.new_ones(*v.shape[:-1], 1)], -1)  # its sum is the denominator
    if causal:
        state = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1])
        O, _ = linear_run(q, k, v, _gates(log_decay, k), state, form, chunk)  # noqa: E741
    elif log_decay is not None:
        raise ValueError("a decay counts from the past: it needs causal=True")
    else:
        with full_precision(v):
            O = q @ (k.mT @ v)  # noqa: E741
    if normalize:
        O = divided(O)  # noqa: E741
    return O.to(V.dtype)


def delta_rule(
    Q: Float[Tensor, "batch heads n key"],
    K: Float[Tensor, "batch heads n key"],
    V: Float[Tensor, "batch heads n value"],
    *,
    beta: Float[Tensor, "batch heads n"],
    log_decay: Float[Tensor, "batch heads n"] | None = None,
    form: Form = "chunked",
    chunk: int = 64,
) -> Float[Tensor, "batch heads n value"]:
    r"""Return what a memory answers that corrects itself: the gated delta rule.

    .. math::

        S_t = \alpha_t S_{t-1} + \beta_t \, k_t^\top \big( v_t - k_t \, \alpha_t S_{t-1} \big),
        \qquad o_t = q_t S_t

    First the memory decays, then the error of what it would answer to :math:`k_t` is written.

    Args:
        Q: Queries, scaled as they are to be.
        K: Keys; of length 1 for a memory that does not blow up.
        V: Values.
        beta: How much of the error is corrected, from 0 to 1 (up to 2).
        log_decay: :math:`\log \alpha_t \le 0`; ``None`` is no decay, DeltaNet, and
            :math:`-\infty` forgets all that came before.
        form: As in :func:`linear_attention`.
        chunk: Tokens of a chunk.

    Returns:
        The outputs, in the dtype of ``V``.

    Raises:
        ValueError: If shapes do not fit.

    Numerics:
        Within a chunk the corrections solve a triangular system. In float32 or better, under
        autocast too.

    References:
        Schlag et al. 2021, arXiv:2102.11174; in chunks: Yang et al. 2024, arXiv:2406.06484,
        sec. 3; with gates: Yang et al. 2025, arXiv:2412.06464, eq. (10).

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> one = torch.ones(1, 1, 2, 1)
        >>> v = torch.tensor([2.0, 3.0]).view(1, 1, 2, 1)
        >>> half = torch.full((1, 1, 2), 0.5)
        >>> beta = torch.tensor([[[1.0, 0.5]]])
        >>> delta_rule(one, one, v, beta=beta, log_decay=half.log()).flatten()
        tensor([2., 2.])
    """
    if Q.shape != K.shape or K.shape[:3] != V.shape[:3] or beta.shape != K.shape[:3]:
        raise ValueError(
            "Q and K must have one shape, with a value and a beta for each key, got "
            f"{tuple(Q.shape)}, {tuple(K.shape)}, {tuple(V.shape)} and {tuple(beta.shape)}"
        )
    check_floating("V", V)
    q, k, v, b = wide(Q), wide(K), wide(V), wide(beta)
    state = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1])
    O, _ = delta_run(q, k, v, b, _gates(log_decay, k), state, form, chunk)  # noqa: E741
    return O.to(V.dtype)


def linear_run(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, S: Tensor, form: str, chunk: int
) -> tuple[Tensor, Tensor]:
    """Return the sums and the last state, in the precision of the inputs."""
    with full_precision(v):
        return _linear_run(q, k, v, g, S, form, chunk)


def _linear_run(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, S: Tensor, form: str, chunk: int
) -> tuple[Tensor, Tensor]:
    n = k.shape[2]
    if form == "recurrent":
        outputs = []
        for t in range(n):
            S = S if g is None else g[..., t, None, None].exp() * S
            S = S + k[:, :, t, :, None] * v[:, :, t, None, :]
            outputs.append(q[:, :, t, None, :] @ S)
        return (torch.cat(outputs, 2) if n else q @ S), S
    outputs = []
    size = _size(form, chunk, n)
    for a in range(0, n, size):
        qc, kc, vc = (t[:, :, a : a + size] for t in (q, k, v))
        pairs = (qc @ kc.mT).tril()
        if g is None:
            outputs.append(pairs @ vc + qc @ S)
            S = S + kc.mT @ vc
            continue
        G = g[:, :, a : a + size].cumsum(-1)
        left = G[..., -1:]
        outputs.append((pairs * between(G)) @ vc + G.exp()[..., None] * (qc @ S))
        S = left.exp()[..., None] * S + (kc * (left - G).exp()[..., None]).mT @ vc
    return (torch.cat(outputs, 2) if n else q @ S), S


def delta_run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None,
    S: Tensor,
    form: str,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Return the answers and the last state, in the precision of the inputs."""
    with full_precision(v):
        return _delta_run(q, k, v, beta, g, S, form, chunk)


def _delta_run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None,
    S: Tensor,
    form: str,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    n = k.shape[2]
    g = torch.zeros_like(beta) if g is None else g.expand_as(beta)
    outputs = []
    if form == "recurrent":
        for t in range(n):
            S = g[..., t, None, None].exp() * S
            key = k[:, :, t, None, :]
            error = v[:, :, t, None, :] - key @ S
            S = S + beta[..., t, None, None] * key.mT @ error
            outputs.append(q[:, :, t, None, :] @ S)
        return (torch.cat(outputs, 2) if n else q @ S), S
    size = _size(form, chunk, n)
    for a in range(0, n, size):
        qc, kc, vc, bc, gc = (t[:, :, a : a + size] for t in (q, k, v, beta, g))
        G = gc.cumsum(-1)
        ratio, grown = between(G), G.exp()[..., None]
        # What each token writes is its error, which the earlier ones of the chunk have changed.
        L = (bc[..., None] * ratio * (kc @ kc.mT)).tril(-1)
        wanted = bc[..., None] * (vc - grown * (kc @ S))
        U = torch.linalg.solve_triangular(L, wanted, upper=False, unitriangular=True)
        outputs.append((ratio * (qc @ kc.mT)) @ U + grown * (qc @ S))
        left = G[..., -1:]
        S = left.exp()[..., None] * S + (kc * (left - G).exp()[..., None]).mT @ U
    return (torch.cat(outputs, 2) if n else q @ S), S


def between(G: Tensor) -> Tensor:
    """Return what is left after tokens j+1 to i, exp(G_i - G_j), and 0 for j > i."""
    gap = G[..., :, None] - G[..., None, :]
    future = torch.ones(gap.shape[-2:], dtype=torch.bool, device=G.device).triu(1)
    return gap.masked_fill(future, -torch.inf).exp()


def divided(O: Tensor) -> Tensor:  # noqa: E741
    """Divide by the last component; what has no weight is 0."""
    total = O[..., -1:]
    nothing = total == 0
    return (O[..., :-1] / total.masked_fill(nothing, 1.0)).masked_fill(nothing, 0.0)


def _gates(log_decay: Tensor | None, k: Tensor) -> Tensor | None:
    if log_decay is None:
        return None
    shape = tuple(k.shape[:3])
    # The logarithm of 0 would be -inf - -inf within a chunk. The smallest normal number is as good
    # as 0, and its logarithm is finite.
    lowest = log(torch.finfo(k.dtype).tiny)
    try:
        return wide(log_decay).to(k.dtype).clamp(min=lowest).expand(shape)
    except RuntimeError:
        raise ValueError(
            f"log_decay of shape {tuple(log_decay.shape)} does not broadcast to {shape}, "
            "batch, heads and tokens"
        ) from None


def _size(form: str, chunk: int, n: int) -> int:
    if form not in ("chunked", "quadratic"):
        raise ValueError(f"form must be chunked, recurrent or quadratic, got {form!r}")
    check_count("chunk", chunk)
    return max(n, 1) if form == "quadratic" else chunk
