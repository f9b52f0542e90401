r"""Layers compared: operations, steps that must wait for each other, and the length of paths."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from companion.core import check_count

__all__ = ["LayerCost", "layer_cost", "path_length"]


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs, and how far apart it leaves the ends of a sequence.

    Attributes:
        flops: Operations of its products between tokens.
        sequential: Steps that must wait for each other, however many processors there are.
        path: Layers, or steps, that information takes from the first token to the last.
    """

    flops: int
    sequential: int
    path: int


def layer_cost(
    kind: Literal["attention", "recurrent", "convolution"], n: int, dim: int, *, kernel: int = 3
) -> LayerCost:
    r"""Return the costs of one layer that mixes tokens.

    ============  ===============  ==========  ============================
    kind          FLOPs            sequential  longest path
    ============  ===============  ==========  ============================
    attention     :math:`4n^2d`    1           1
    recurrent     :math:`2nd^2`    :math:`n`   :math:`n - 1`
    convolution   :math:`2knd^2`   1           :math:`\lceil\log_kn\rceil`
    ============  ===============  ==========  ============================

    Attention counts :math:`QK^\top` and :math:`AV`, a recurrent layer its product of the state
    with a matrix, a convolution all :math:`k` taps. Projections of the inputs, :math:`O(nd^2)`
    for any of them, are left out, as in the table of the paper. The path of the convolution is
    that of a stack with dilations :math:`1, k, k^2, \dots`; with plain kernels it is
    :math:`\lceil (n-1)/(k-1) \rceil` layers.

    Args:
        kind: Which layer.
        n: Tokens.
        dim: Width :math:`d`.
        kernel: Taps :math:`k \ge 2` of the convolution.

    Returns:
        The costs.

    Raises:
        ValueError: If a size is too small, or the kind is unknown.

    References:
        Vaswani et al. 2017, arXiv:1706.03762, table 1, with constants filled in.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> layer_cost("convolution", 27, 5, kernel=3)
        LayerCost(flops=4050, sequential=1, path=3)
    """
    check_count("n", n)
    check_count("dim", dim)
    check_count("kernel", kernel, low=2)
    if kind == "attention":
        return LayerCost(4 * n * n * dim, 1, min(1, n - 1))
    if kind == "recurrent":
        return LayerCost(2 * n * dim * dim, n, n - 1)
    if kind == "convolution":
        path, reach = 0, 1
        while reach < n:
            path, reach = path + 1, reach * kernel
        return LayerCost(2 * kernel * n * dim * dim, 1, path)
    raise ValueError(f"kind must be attention, recurrent or convolution, got {kind!r}")


def path_length(reads: Callable[[int], Tensor], *, most: int = 10_000) -> int:
    """Count the layers until the last position has heard of the first.

    Args:
        reads: For the number of a layer, from 0, its Bool matrix (n, n): True where a position
            (row) reads another (column). All of these are of one size. What a position keeps by
            a residual connection must be on the diagonal.
        most: Give up after so many layers.

    Returns:
        The number of layers; 0 for a single position.

    Raises:
        ValueError: If a matrix is not square and boolean, or the first position is not reached.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> path_length(lambda layer: torch.ones(5, 5, dtype=torch.bool))
        1
    """
    first = reads(0)
    if first.ndim != 2 or first.shape[0] != first.shape[1] or first.dtype != torch.bool:
        raise ValueError(
            f"reads must return square Bool matrices, got {tuple(first.shape)} of {first.dtype}"
        )
    # Positions that the first one has reached so far.
    reached = torch.zeros(first.shape[0], dtype=torch.bool, device=first.device)
    reached[0] = True
    for layer in range(most):
        if bool(reached[-1]):
            return layer
        reached = (reads(layer) & reached).any(1)
    raise ValueError(f"the last position has not heard of the first after {most} layers")
