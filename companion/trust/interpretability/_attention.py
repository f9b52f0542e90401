"""What maps of attention say across layers: rollout, flow, norms, weights that do the same."""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_finite, check_floating, check_in_range, check_shape

__all__ = [
    "alternative_attention",
    "attention_flow",
    "mixed_with_residual",
    "null_attention",
    "rollout",
    "value_norms",
]


def mixed_with_residual(
    weights: Float[Tensor, "*batch heads n n"], *, residual: float = 0.5
) -> Float[Tensor, "*batch n n"]:
    r"""Average the heads of a layer, and mix in the residual stream.

    .. math:: \hat A = \rho I + (1 - \rho)\,\frac1h\sum_i A_i

    Args:
        weights: Attention weights :math:`A_i`, rows sum to one; row :math:`q` is what token
            :math:`q` reads.
        residual: The share :math:`\rho` of the token itself, in [0, 1].

    Returns:
        :math:`\hat A`, whose rows sum to one. Rows that did not (of padding, or with entries
        taken away) are divided by their sum.

    Raises:
        ValueError: If the weights are not square, not floating, or the share is out of range.

    Numerics:
        A row of zeros becomes a row of the identity, unless :math:`\rho = 0`: then it stays zero.

    References:
        Abnar and Zuidema 2020, arXiv:2005.00928, sec. 3.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> mixed_with_residual(torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]))
        tensor([[0.5000, 0.5000],
                [0.2500, 0.7500]])
    """
    check_floating("weights", weights)
    check_in_range("residual", residual, low=0.0, high=1.0)
    if weights.ndim < 3 or weights.shape[-1] != weights.shape[-2]:
        raise ValueError(f"weights must be (..., heads, n, n), got {tuple(weights.shape)}")
    check_count("heads", weights.shape[-3])
    n = weights.shape[-1]
    eye = torch.eye(n, device=weights.device, dtype=weights.dtype)
    mixed = residual * eye + (1 - residual) * weights.mean(-3)
    total = mixed.sum(-1, keepdim=True)
    return torch.where(total > 0, mixed / total, mixed)


def rollout(
    weights: Float[Tensor, "layers *batch heads n n"], *, residual: float = 0.5
) -> Float[Tensor, "*batch n n"]:
    r"""Multiply the maps of all layers: how much of each input token is in each output token.

    .. math:: R = \hat A_L \hat A_{L-1} \cdots \hat A_1

    Args:
        weights: Attention weights, the layer next to the input first.
        residual: Share of the residual stream, as in :func:`mixed_with_residual`.

    Returns:
        :math:`R`; row :math:`i` says how output :math:`i` is made up, and sums to one. With causal
        weights it is lower triangular.

    Raises:
        ValueError: As :func:`mixed_with_residual`, or if there is no layer.

    References:
        Abnar and Zuidema 2020, arXiv:2005.00928, eq. (1). What values, output maps and
        feed-forward layers do is left out.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> one = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]])
        >>> rollout(torch.stack([one, one]))
        tensor([[0.3750, 0.6250],
                [0.3125, 0.6875]])
    """
    if weights.ndim < 4:
        raise ValueError(f"weights must be (layers, ..., heads, n, n), got {tuple(weights.shape)}")
    check_count("layers", weights.shape[0])
    first, *later = mixed_with_residual(weights, residual=residual).unbind(0)
    R = first
    for mixed in later:
        R = mixed @ R
    return R


def attention_flow(
    weights: Float[Tensor, "layers heads n n"], *, residual: float = 0.5
) -> Float[Tensor, "n n"]:
    r"""Compute the largest flow from each output token to each input token.

    The nodes are the tokens of each layer, and the edge from token :math:`q` of layer :math:`\ell`
    to token :math:`k` below holds at most :math:`[\hat A_\ell]_{qk}`. Entry :math:`(i, j)` is the
    largest flow from output :math:`i` to input :math:`j` alone.

    Args:
        weights: Attention weights of one text, the layer next to the input first.
        residual: As in :func:`mixed_with_residual`.

    Returns:
        Flows in [0, 1], float64, on the device of the weights. None is below the entry of
        :func:`rollout`. A row need not sum to one: each entry is a flow of its own.

    Raises:
        ValueError: As :func:`rollout`, or if a weight is not finite or below 0.

    Numerics:
        SciPy's maximum flow on the host, :math:`n^2` of them on a graph of :math:`(L + 1) n`
        nodes. Capacities are rounded down to multiples of :math:`2^{-30}`, so a flow is too small
        by at most :math:`n L\, 2^{-30}`.

    References:
        Abnar and Zuidema 2020, arXiv:2005.00928, sec. 3.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> one = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]])
        >>> attention_flow(torch.stack([one, one])).round(decimals=4)
        tensor([[0.7500, 1.0000],
                [0.5000, 1.0000]], dtype=torch.float64)
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    if weights.ndim != 4:
        raise ValueError(f"weights must be (layers, heads, n, n), got {tuple(weights.shape)}")
    check_count("layers", weights.shape[0])
    check_finite("weights", weights)
    if bool((weights < 0).any()):
        raise ValueError("weights must be 0 or more: no pipe holds less than nothing")
    mixed = mixed_with_residual(weights.detach().cpu().double(), residual=residual)
    layers, n = mixed.shape[0], mixed.shape[1]
    one = 2**30
    capacity = torch.zeros((layers + 1) * n, (layers + 1) * n, dtype=torch.int32)
    for layer in range(layers):
        rows = slice((layer + 1) * n, (layer + 2) * n)
        capacity[rows, layer * n : (layer + 1) * n] = (one * mixed[layer]).floor().int()
    graph = csr_array(capacity.numpy())
    flow = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            flow[i, j] = maximum_flow(graph, layers * n + i, j).flow_value / one
    return flow.to(weights.device)


def value_norms(
    weights: Float[Tensor, "*batch heads n m"],
    values: Float[Tensor, "*batch kv_heads m value"],
    output: Float[Tensor, "heads value dim"],
    *,
    join: bool = False,
) -> Float[Tensor, "..."]:
    r"""Measure what a token adds to another through a layer, and not only how much it is read.

    .. math:: \lVert a_{ij}\, v_j W^O \rVert

    Args:
        weights: :math:`a_{ij}`, site ``weights``.
        values: :math:`v_j`, site ``values``. Where heads share them, a group for several heads.
        output: :math:`W^O` of each head, for example
            :attr:`companion.transformer.multi_head.MultiHeadAttention.output_matrix`.
        join: Add the vectors of all heads before the norm is taken.

    Returns:
        Norms, (..., heads, n, m), or (..., n, m) if joined.

    Raises:
        ValueError: If the shapes do not fit.

    Numerics:
        Joined, :math:`n m d` numbers are held for each text. Biases of the values count as part of
        them; that of the output belongs to no token and is left out.

    References:
        Kobayashi et al. 2020, arXiv:2004.10102.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> a = torch.tensor([[[0.9, 0.1]]])
        >>> v = torch.tensor([[[0.1, 0.0], [3.0, 4.0]]])
        >>> value_norms(a, v, torch.eye(2)[None])
        tensor([[[0.0900, 0.5000]]])
    """
    heads, _, m = weights.shape[-3:]
    check_shape("output", output, (heads, None, None))
    batch, value = weights.shape[:-3], output.shape[1]
    if values.shape[:-3] != batch or values.ndim < 3 or values.shape[-2:] != (m, value):
        raise ValueError(
            f"values must be ({', '.join(map(str, [*batch, 'kv_heads', m, value]))}), "
            f"got {tuple(values.shape)}"
        )
    if heads % values.shape[-3]:
        raise ValueError(f"{values.shape[-3]} groups of values do not divide {heads} heads")
    shared = values.repeat_interleave(heads // values.shape[-3], dim=-3)
    moved = shared @ output
    if not join:
        size: Tensor = torch.linalg.vector_norm(moved, dim=-1)
        return weights.abs() * size[..., None, :]
    together = torch.einsum("...hnm,...hmd->...nmd", weights, moved)
    joined: Tensor = torch.linalg.vector_norm(together, dim=-1)
    return joined


def null_attention(values: Float[Tensor, "m value"]) -> Float[Tensor, "free m"]:
    r"""Find the changes of attention that no output shows.

    .. math:: N\,[V \;\; \mathbf 1] = 0, \qquad N N^\top = I

    Args:
        values: :math:`V`, the values that a head reads, a row a token.

    Returns:
        An orthonormal basis, a row each; :math:`m - \mathrm{rank}[V\;\mathbf 1]` of them, so at
        least :math:`m - d_v - 1`.

    Raises:
        ValueError: If the values are no matrix, or not finite.

    Numerics:
        A singular value decomposition in the wider of float64 and the values' type; singular
        values below :math:`\max(m, d_v + 1)\,\epsilon` times the largest, with :math:`\epsilon` of
        the values' own type, count as zero.

    References:
        Brunner et al. 2020, arXiv:1908.04211.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> null_attention(torch.tensor([[1.0], [2.0], [3.0]])).shape
        torch.Size([1, 3])
    """
    check_floating("values", values)
    check_shape("values", values, (None, None))
    check_count("tokens", values.shape[0])
    check_finite("values", values)
    wide = values.detach().double()
    bound = torch.cat([wide, wide.new_ones(len(wide), 1)], 1)
    U, size, _ = torch.linalg.svd(bound, full_matrices=True)
    limit = max(bound.shape) * torch.finfo(values.dtype).eps * size.max()
    rank = int((size > limit).sum())
    free: Tensor = U[:, rank:].mT
    return free


def alternative_attention(
    weights: Float[Tensor, "n m"], values: Float[Tensor, "m value"]
) -> Float[Tensor, "n m"]:
    r"""Find other weights of attention with the same output, far from the given ones.

    For each row, of all distributions :math:`a'` with :math:`a' V = a V`, one that gives the token
    with the largest weight as little as can be: a linear program.

    Args:
        weights: Rows of attention weights, each a distribution.
        values: The values that are read, a row a token.

    Returns:
        Rows of other distributions, float64. Where there is nothing to choose, because
        :math:`m \le d_v + 1` and the values are in general position, they are the given ones.

    Raises:
        ValueError: If the shapes do not fit, a weight is below 0, or a row does not sum to one.
        RuntimeError: If the program finds no solution.

    Numerics:
        The change lies in :func:`null_attention`, so outputs agree to rounding. The program, by
        SciPy's HiGHS on the host, is solved to about :math:`10^{-7}`; the step toward its solution
        is cut where a weight would fall below 0.

    References:
        Brunner et al. 2020, arXiv:1908.04211, who show that there are others.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> a = torch.tensor([[0.2, 0.6, 0.2]])
        >>> v = torch.tensor([[1.0], [2.0], [3.0]])
        >>> alternative_attention(a, v)
        tensor([[0.5000, 0.0000, 0.5000]], dtype=torch.float64)
    """
    from scipy.optimize import linprog

    check_shape("weights", weights, (None, None))
    check_shape("values", values, (weights.shape[1], None))
    check_finite("weights", weights)
    A = weights.detach().cpu().double()
    loose = max(1e-5, torch.finfo(weights.dtype).eps)  # each weight is rounded by half of it
    if bool((A < 0).any()) or bool(((A.sum(1) - 1).abs() > loose).any()):
        raise ValueError("each row of weights must be a distribution: 0 or more, summing to one")
    N = null_attention(values.detach().cpu())
    if not len(N) or not len(A):
        return A.to(weights.device)
    rows = []
    for row in A:
        most = int(row.argmax())
        solved = linprog(
            N[:, most].numpy(),
            A_ub=-N.mT.numpy(),
            b_ub=row.numpy(),
            bounds=(None, None),
            method="highs",
        )
        if solved.x is None:
            raise RuntimeError(f"the linear program was not solved: {solved.message}")
        change = torch.as_tensor(solved.x, dtype=torch.float64) @ N
        falls = change < 0
        reach = torch.where(falls, row / -change.clamp(max=-1e-300), torch.inf)
        rows.append((row + min(1.0, float(reach.min())) * change).clamp(min=0.0))
    return torch.stack(rows).to(weights.device)
