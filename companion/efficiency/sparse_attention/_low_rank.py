r"""Linformer: keys and values of n tokens are mixed into k before anyone reads them."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.transformer.attention import attention
from companion.transformer.attention._inputs import check_inputs

__all__ = ["jl_failure_bound", "linformer_attention"]


def linformer_attention(
    Q: Float[Tensor, "batch heads m key"],
    K: Float[Tensor, "batch heads n key"],
    V: Float[Tensor, "batch heads n value"],
    *,
    E: Float[Tensor, "rank n"] | Float[Tensor, "heads rank n"],
    F: Float[Tensor, "rank n"] | Float[Tensor, "heads rank n"],
    real: Bool[Tensor, "batch n"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "batch heads m value"]:
    r"""Return the outputs of attention to :math:`k` mixtures of the keys and values.

    .. math:: O = \mathrm{softmax}\big(s \, Q (EK)^\top\big) \, FV

    Args:
        Q: Queries.
        K: Keys.
        V: Values.
        E: Mixes the keys, :math:`k \times n`; one matrix for all heads, or one for each.
        F: Mixes the values.
        real: False where a token is padding: its key and value are zero before they are mixed.
        scale: Factor :math:`s` of the scores. ``None`` is :math:`1/\sqrt{d_k}`.

    Returns:
        The outputs. There is no causal form: each mixture holds all tokens, later ones too.

    Raises:
        ValueError: If shapes do not fit.

    Numerics:
        :math:`2nkd_k + 2nkd_v` operations a head to mix and :math:`2mk(d_k + d_v)` to read.

    References:
        Wang et al. 2020, arXiv:2006.04768, eq. (7).

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> x = torch.eye(2, dtype=torch.float64)[None, None]
        >>> mean = torch.full((1, 2), 0.5, dtype=torch.float64)
        >>> linformer_attention(x, x, x, E=mean, F=mean)[0, 0]
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    check_inputs(Q, K, V)
    n, heads = K.shape[2], K.shape[1]
    for name, mix in (("E", E), ("F", F)):
        fits = mix.ndim == 2 or (mix.ndim == 3 and mix.shape[0] == heads)
        if not fits or mix.shape[-1] != n:
            raise ValueError(
                f"{name} must have shape (rank, {n}) or ({heads}, rank, {n}), "
                f"got {tuple(mix.shape)}"
            )
    if E.shape[-2] != F.shape[-2]:
        raise ValueError(f"E and F must have one rank, got {E.shape[-2]} and {F.shape[-2]}")
    if real is not None:
        if real.shape != (K.shape[0], n):
            raise ValueError(
                f"real must have shape {(K.shape[0], n)}, one entry a token, "
                f"got {tuple(real.shape)}"
            )
        K, V = (t * real[:, None, :, None] for t in (K, V))
    return attention(Q, _mix(E, K), _mix(F, V), scale=scale)


def _mix(E: Tensor, x: Tensor) -> Tensor:
    """The mixtures of all heads: by one product, where one matrix serves all of them."""
    if E.ndim == 3:
        return E @ x
    return torch.einsum("kn,bhnd->bhkd", E, x)


def jl_failure_bound(rank: int, epsilon: float) -> float:
    r"""Bound the probability that a random projection changes a squared length by more than a part.

    .. math::

        \Pr\big[ \big| \lVert Rx \rVert^2 - \lVert x \rVert^2 \big| > \varepsilon \lVert x \rVert^2
        \big] \le 2 e^{-k(\varepsilon^2 - \varepsilon^3)/4}, \qquad R_{ij} \sim N(0, 1/k)

    Args:
        rank: Rows :math:`k` of :math:`R`.
        epsilon: The part :math:`\varepsilon`, in (0, 1).

    Returns:
        The bound; above 1 it says nothing.

    Raises:
        ValueError: If ``epsilon`` is not in (0, 1).

    References:
        Arriaga and Vempala 2006, doi:10.1007/s10994-006-6265-7, lemma 2.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> round(jl_failure_bound(200, 0.5), 6)
        0.003861
    """
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon must lie in (0, 1), got {epsilon}")
    exponent = torch.tensor(-rank * (epsilon**2 - epsilon**3) / 4, dtype=torch.float64)
    return 2 * float(exponent.exp())
