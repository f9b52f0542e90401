"""Rotations that spread an outlier over all its neighbors."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_floating

__all__ = ["hadamard_transform"]


def hadamard_transform(
    x: Float[Tensor, "*shape d"],
    *,
    signs: Float[Tensor, " d"] | None = None,
    block: int | None = None,
) -> Float[Tensor, "*shape d"]:
    r"""Turn rows by an orthogonal matrix of entries :math:`\pm 1/\sqrt m`.

    .. math:: x \mapsto x\, \operatorname{diag}(\epsilon)\, (I \otimes H_m), \qquad
        H_{2m} = \tfrac{1}{\sqrt 2} \begin{pmatrix} H_m & H_m \\ H_m & -H_m \end{pmatrix}

    Since the matrix :math:`R` is orthogonal, :math:`(XR)(R^\top W) = XW`; one large entry of a row
    becomes :math:`m` entries that are smaller by :math:`\sqrt m`.

    Args:
        x: Rows.
        signs: :math:`\epsilon`, signs that are drawn once; all are 1 by default.
        block: :math:`m`, a power of two that divides the width; by default the largest.

    Returns:
        The turned rows. Without signs the transform is its own inverse.

    Raises:
        ValueError: If the block is no power of two, or does not divide the width.

    Numerics:
        :math:`\log_2 m` passes of additions and subtractions, :math:`O(d \log m)` for a row.

    References:
        Ashkboos et al. 2024, arXiv:2404.00456, sec. 3.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> hadamard_transform(torch.tensor([8.0, 0.0, 0.0, 0.0]))
        tensor([4., 4., 4., 4.])
    """
    check_floating("x", x)
    width = x.shape[-1]
    block = width & -width if block is None else block
    check_count("block", block)
    if block & (block - 1) or width % block:
        raise ValueError(
            f"block must be a power of two that divides the width {width}, got {block}: "
            f"at most {width & -width}"
        )
    if signs is not None:
        x = x * signs
    made = x.reshape(*x.shape[:-1], width // block, block)
    half = 1
    while half < block:
        pairs = made.reshape(*made.shape[:-1], block // (2 * half), 2, half)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        made = torch.stack([first + second, first - second], -2).flatten(-3)
        half *= 2
    turned: Tensor = (made / math.sqrt(block)).flatten(-2)
    return turned
