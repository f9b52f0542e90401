"""A window for each head, and how far the heads of a model look."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import check_count, check_floating, check_in_range, check_several, wide
from companion.transformer.attention import Mask

__all__ = ["distance_mass", "head_windows", "headwise_window_mask", "windows_from_mass"]


def head_windows(heads: int, *, smallest: int = 1, base: int = 2) -> list[int]:
    r"""Return windows that grow geometrically from head to head.

    .. math:: w_h = w_1 \, \beta^{h-1}, \qquad h = 1, \dots, H

    Args:
        heads: Number of heads :math:`H`.
        smallest: The window :math:`w_1` of the first head.
        base: The factor :math:`\beta`.

    Returns:
        One window a head, in tokens to each side.

    Raises:
        ValueError: If a number is below 1.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> head_windows(4)
        [1, 2, 4, 8]
    """
    check_count("heads", heads)
    check_count("smallest", smallest)
    check_count("base", base)
    return [smallest * base**head for head in range(heads)]


def headwise_window_mask(windows: Sequence[int] | Tensor) -> Mask:
    r"""Return the mask under which head :math:`h` reads keys at distance :math:`w_h` or less.

    .. math:: M_{hij} = 1 \iff |i - j| \le w_h

    The window counts the tokens to *each side* beside the token itself, so a head reads up to
    :math:`2 w_h + 1` keys, or :math:`w_h + 1` together with ``causal()``.

    Args:
        windows: One for each head, 0 or more: numbers, or an integer tensor.

    Returns:
        The mask. It is a rule: what it saves depends on the kernel that takes it.

    Raises:
        ValueError: If there is no window, or one is negative.

    References:
        One window a head: Q. Guo et al. 2020, "Multi-scale self-attention for text
        classification", arXiv:1912.00544, sec. 3.1.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> headwise_window_mask([0, 1]).dense(2, 3, heads=2)[0].int()
        tensor([[[1, 0, 0],
                 [0, 1, 0]],
        <BLANKLINE>
                [[1, 1, 0],
                 [1, 1, 1]]], dtype=torch.int32)
    """
    if isinstance(windows, Tensor):
        if windows.ndim != 1 or windows.is_floating_point():
            raise ValueError(
                f"windows must be integers of shape (heads,), got {windows.dtype} "
                f"of shape {tuple(windows.shape)}"
            )
        if windows.dtype == torch.bool or not len(windows):
            raise ValueError(f"give a window for each head, got {windows}")
        if not windows.is_meta and bool((windows < 0).any()):
            raise ValueError(f"a window must be 0 or more, got {int(windows.min())}")
        table = windows
        widest = float("inf")
    else:
        check_several("windows", windows)
        for window in windows:
            check_count("window", window, low=0)
        if not windows:
            raise ValueError("give a window for each head, got none")
        table = torch.tensor(list(windows))
        widest = float(max(windows))
    return Mask(
        lambda b, h, i, j: (i - j).abs() <= table.to(i.device)[h],
        outer=(-widest, widest),
    )


def distance_mass(
    A: Float[Tensor, "*batch n m"], *, edges: Sequence[int]
) -> Float[Tensor, "*batch bins"]:
    r"""Return how much weight goes to keys at each range of distances, averaged over queries.

    .. math:: \mu_b = \frac1n \sum_i \sum_{j :\, e_b \le |i - j| < e_{b+1}} A_{ij}

    Args:
        A: Weights of self-attention.
        edges: Distances at which ranges begin, rising from 0; the last range has no end.

    Returns:
        One number for each range, summing to 1 where rows of ``A`` do.

    Raises:
        ValueError: If the matrices are not square, or the edges do not rise from 0.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> A = torch.full((2, 2), 0.5, dtype=torch.float64)
        >>> distance_mass(A, edges=[0, 1])
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    check_floating("A", A)
    n, m = A.shape[-2:]
    if n != m:
        raise ValueError(f"A must be square, got {tuple(A.shape)}")
    if not edges or edges[0] != 0 or any(b <= a for a, b in itertools.pairwise(edges)):
        raise ValueError(f"edges must rise from 0, got {list(edges)}")
    i = torch.arange(n, device=A.device)
    distance = (i[:, None] - i).abs()
    starts = torch.tensor(list(edges), device=A.device)
    which = torch.bucketize(distance, starts, right=True) - 1
    total = wide(A).new_zeros(*A.shape[:-2], len(edges))
    flat = wide(A).flatten(-2)
    return (total.index_add(-1, which.flatten(), flat) / n).to(A.dtype)


def windows_from_mass(
    A: Float[Tensor, "*batch n m"], *, ratio: float
) -> Integer[Tensor, " *batch"]:
    r"""Return for each head the smallest window that holds a share of its weight.

    .. math:: w = \min\Big\{w : \frac1n \sum_i \sum_{|i-j| \le w} A_{ij} \ge p \Big\}

    Args:
        A: Weights of self-attention, rows summing to 1.
        ratio: The share :math:`p`, in (0, 1].

    Returns:
        Tokens to each side, at most :math:`n - 1`, for :func:`headwise_window_mask`.

    Raises:
        ValueError: If the matrices are not square, or the ratio is outside.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> windows_from_mass(torch.eye(3), ratio=0.9)
        tensor(0)
    """
    check_in_range("ratio", ratio, low=0.0, high=1.0, open_low=True)
    n = A.shape[-1]
    within = distance_mass(wide(A), edges=list(range(n))).cumsum(-1)
    # Sums that should reach 1 may stay a rounding error below.
    short = within < ratio - 1e-6
    return short.sum(-1).clamp(max=n - 1)
