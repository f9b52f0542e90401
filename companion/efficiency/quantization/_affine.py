r"""Numbers on an even grid: where its points lie, who gets which, what a product of codes is."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int, Int8, Shaped
from torch import Tensor

from companion.core import (
    check_count,
    check_floating,
    check_in_range,
    check_shape,
    wide,
)

__all__ = [
    "affine_parameters",
    "code_range",
    "dequantize",
    "fake_quantize",
    "int8_matmul",
    "optimal_clip",
    "rounding_noise",
    "symmetric_scale",
    "to_codes",
]


def code_range(bits: int, *, signed: bool) -> tuple[int, int]:
    r"""Return the smallest and the largest code.

    Args:
        bits: From 2 to 16.
        signed: Whether codes run from :math:`-2^{b-1}` to :math:`2^{b-1}-1`, and not from 0 to
            :math:`2^b-1`.

    Returns:
        Both ends.

    Raises:
        ValueError: If the number of bits is out of range.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> code_range(4, signed=True), code_range(4, signed=False)
        ((-8, 7), (0, 15))
    """
    check_count("bits", bits, low=2, high=16)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def affine_parameters(
    low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], *, bits: int = 8
) -> tuple[Float[Tensor, "*shape"], Int[Tensor, "*shape"]]:
    r"""Compute step and zero point of the grid that covers an interval and the number 0.

    .. math::

        s = \frac{\max(h, 0) - \min(l, 0)}{2^b - 1}, \qquad
        z = \mathrm{clip}\big(\lfloor -\min(l, 0) / s \rceil,\ 0,\ 2^b - 1\big)

    Args:
        low: Smallest number to cover.
        high: Largest, not below it.
        bits: Bits of a code; codes run from 0 to :math:`2^b - 1`.

    Returns:
        The step :math:`s > 0` and the code :math:`z` of the number 0, int32. Zero is always a point
        of the grid, so padding and ReLU stay exact; an interval that lies beside it is widened.

    Raises:
        ValueError: If an interval is turned around or not finite, or the bits are out of range.

    Numerics:
        An interval of length 0 has the step 1. Ties are rounded to even, as
        :func:`torch.round` does: the interval :math:`[-1, 1]` with 8 bits has :math:`z = 128`.

    References:
        Jacob et al. 2018, arXiv:1712.05877, sec. 2.1 and 3.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> affine_parameters(torch.tensor(1.0), torch.tensor(2.0), bits=4)
        (tensor(0.1333), tensor(0, dtype=torch.int32))
    """
    _, top = code_range(bits, signed=False)
    check_floating("low", low)
    check_shape("high", high, tuple(low.shape))
    if low.device.type != "meta" and not bool(((low <= high) & (high - low).isfinite()).all()):
        raise ValueError("each interval needs low <= high, both finite")
    low, high = low.clamp(max=0), high.clamp(min=0)
    width = high - low
    scale = torch.where(width > 0, width / top, torch.ones_like(width))
    # One division: the quotient by the rounded step would miss ties.
    zero = torch.where(width > 0, -low * top / width, torch.zeros_like(width))
    return scale, zero.round().clamp(0, top).to(torch.int32)


def symmetric_scale(
    x: Float[Tensor, "..."], *, bits: int = 8, dim: int | None = None
) -> Float[Tensor, "..."]:
    r"""Compute the step of a symmetric grid, whose zero point is 0, from the largest magnitude.

    .. math:: s = \max |x| \,/\, (2^{b-1} - 1)

    Args:
        x: The numbers.
        bits: Bits of a code. The code :math:`-2^{b-1}` is not used, so that the grid is symmetric.
        dim: The axis over which a maximum is taken, kept with size 1: for a weight (outputs,
            inputs) ``dim=1`` gives a step to each output, for activations ``dim=-1`` one to each
            token. By default one step for all.

    Returns:
        The step, above 0; 1 where all numbers are 0.

    Raises:
        ValueError: If the tensor is empty, or the bits are out of range.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> symmetric_scale(torch.tensor([[1.0, -2.0], [0.0, 0.5]]), bits=2, dim=1)
        tensor([[2.0000],
                [0.5000]])
    """
    _, top = code_range(bits, signed=True)
    check_floating("x", x)
    if x.numel() == 0:
        raise ValueError(f"x is empty, its shape is {tuple(x.shape)}: no number, no scale")
    most = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    scale = most / top
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def to_codes(
    x: Float[Tensor, "..."],
    scale: Float[Tensor, "..."],
    zero_point: Shaped[Tensor, "..."] | int = 0,
    *,
    low: int,
    high: int,
) -> Int[Tensor, "..."]:
    r"""Round to the nearest point of a grid.

    .. math:: q = \mathrm{clip}\big(\lfloor x / s \rceil + z,\ q_{\min},\ q_{\max}\big)

    Args:
        x: The numbers.
        scale: The step :math:`s > 0`; must broadcast with ``x``.
        zero_point: The code :math:`z` of 0.
        low: :math:`q_{\min}`.
        high: :math:`q_{\max}`.

    Returns:
        Codes, int32. Ties go to even.

    Raises:
        ValueError: If ``low`` is not below ``high``.

    References:
        Jacob et al. 2018, arXiv:1712.05877, eq. 1.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> to_codes(torch.tensor([0.9, 5.0]), torch.tensor(0.5), low=-8, high=7)
        tensor([2, 7], dtype=torch.int32)
    """
    if not low < high:
        raise ValueError(f"codes need low < high, got {low} and {high}")
    check_floating("x", x)
    return ((x / scale).round() + zero_point).clamp(low, high).to(torch.int32)


def dequantize(
    codes: Int[Tensor, "..."],
    scale: Float[Tensor, "..."],
    zero_point: Shaped[Tensor, "..."] | int = 0,
) -> Float[Tensor, "..."]:
    r"""Turn codes back into numbers.

    .. math:: \hat x = s\,(q - z)

    Args:
        codes: Integers.
        scale: The step.
        zero_point: The code of 0.

    Returns:
        Numbers in the dtype of the scale.

    References:
        Jacob et al. 2018, arXiv:1712.05877, eq. 1.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> dequantize(torch.tensor([2, 7]), torch.tensor(0.5), 1)
        tensor([0.5000, 3.0000])
    """
    return (codes - zero_point) * scale


def fake_quantize(
    x: Float[Tensor, "..."],
    scale: Float[Tensor, "..."],
    zero_point: Shaped[Tensor, "..."] | int = 0,
    *,
    low: int,
    high: int,
) -> Float[Tensor, "..."]:
    """Round to a grid and turn back: what a quantized number stands for, in floating point.

    Args:
        x: As in :func:`to_codes`.
        scale: As there.
        zero_point: As there.
        low: As there.
        high: As there.

    Returns:
        Points of the grid, in the dtype of ``x``. Its gradient is 0 almost everywhere; see
        :func:`straight_through_round` for one that trains.

    Raises:
        ValueError: If ``low`` is not below ``high``.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> fake_quantize(torch.tensor([0.9, 5.0]), torch.tensor(0.5), low=-8, high=7)
        tensor([1.0000, 3.5000])
    """
    codes = to_codes(x, scale, zero_point, low=low, high=high)
    return dequantize(codes, scale, zero_point).to(x.dtype)


#: So many products of two int8 codes sum up exactly in float32: 1040 * 127**2 < 2**24.
_EXACT = 1024


def int8_matmul(
    X: Int8[Tensor, "*batch d_in"], W: Int8[Tensor, "d_in d_out"]
) -> Int[Tensor, "*batch d_out"]:
    r"""Multiply matrices of 8-bit codes exactly.

    With :math:`\hat X = s_x (X_q - z_x)` and :math:`\hat W = s_w W_q` the product of what they
    stand for is :math:`\hat X \hat W = s_x s_w (X_q W_q - z_x \mathbf 1^\top \mathbf 1 W_q)`: one
    product of integers, and the sums of the columns of :math:`W_q`, which are known beforehand.

    Args:
        X: Codes of the activations.
        W: Codes of the weights, in the book's layout; from -127 to 127, as those of ``X``.

    Returns:
        :math:`X_q W_q`, int32.

    Raises:
        ValueError: If the inner sizes differ, codes are not int8, or there are so many inputs that
            a sum could pass :math:`2^{31}`: more than 133,144.

    Numerics:
        Exact. On a CPU
        ``torch._int_mm`` of PyTorch 2.13 is up to a hundred times as slow as the product in
        float32 (measured with AVX2), so the codes are multiplied in float32, in pieces of 1,024
        inputs, whose sums are whole numbers below :math:`2^{24}` and so exact.

    References:
        Jacob et al. 2018, arXiv:1712.05877, eq. 7.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> X = torch.tensor([[3, 5]], dtype=torch.int8)
        >>> W = torch.tensor([[1], [-2]], dtype=torch.int8)
        >>> int8_matmul(X, W)
        tensor([[-7]], dtype=torch.int32)
    """
    if X.shape[-1] != W.shape[0]:
        raise ValueError(
            f"the inner sizes must agree, got X {tuple(X.shape)} and W {tuple(W.shape)}"
        )
    if X.dtype != torch.int8 or W.dtype != torch.int8:
        raise ValueError(f"codes must be int8, got {X.dtype} and {W.dtype}")
    most = (2**31 - 1) // 127**2
    if W.shape[0] > most:
        raise ValueError(
            f"sums of {W.shape[0]} products of codes may not fit into 32 bits: give {most} inputs "
            "at most, and add up the parts in floating point"
        )
    total = torch.zeros(*X.shape[:-1], W.shape[1], dtype=torch.int32, device=X.device)
    for first in range(0, W.shape[0], _EXACT):
        some = slice(first, first + _EXACT)
        total = total + (X[..., some].float() @ W[some].float()).to(torch.int32)
    return total


def rounding_noise(
    alpha: float, *, bits: int, law: Literal["gaussian", "laplace"] = "gaussian"
) -> float:
    r"""Compute the mean squared error of a grid that ends at :math:`\pm\alpha`.

    .. math:: D(\alpha) = \frac{(2\alpha)^2}{12 \cdot 4^b}
        + 2\int_\alpha^\infty (x-\alpha)^2 p(x)\,dx

    The first term takes the rounding error as uniform; the second is what is cut off.

    Args:
        alpha: Where the grid ends, above 0, in standard deviations of a Gaussian, or in scales
            :math:`b_L` of a Laplace law (whose standard deviation is :math:`\sqrt2\,b_L`).
        bits: Bits of a code.
        law: The density :math:`p`.

    Returns:
        The error, in the unit of :math:`\alpha` squared.

    Raises:
        ValueError: If the law is unknown or a number out of range.

    References:
        Banner, Nahshan and Soudry 2019, arXiv:1810.05723, eq. 5 and 8.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> f"{rounding_noise(2.559, bits=4):.5f}"
        '0.01049'
    """
    check_count("bits", bits, high=16)
    check_in_range("alpha", alpha, low=0.0, open_low=True, open_high=True)
    inside = (2 * alpha) ** 2 / (12 * 2.0 ** (2 * bits))
    if law == "gaussian":
        tail = math.erfc(alpha / math.sqrt(2)) / 2
        density = math.exp(-(alpha**2) / 2) / math.sqrt(2 * math.pi)
        return inside + 2 * ((1 + alpha**2) * tail - alpha * density)
    if law == "laplace":
        return inside + 2 * math.exp(-alpha)
    raise ValueError(f"law must be 'gaussian' or 'laplace', got {law!r}")


def optimal_clip(*, bits: int, law: Literal["gaussian", "laplace"] = "gaussian") -> float:
    r"""Find the end of the grid with the smallest :func:`rounding_noise`.

    Args:
        bits: Bits of a code.
        law: The density.

    Returns:
        :math:`\alpha`, in the unit of :func:`rounding_noise`.

    Raises:
        ValueError: As there.

    Numerics:
        The error is convex in :math:`\alpha`, since both terms are: bisection of its slope.

    References:
        Banner, Nahshan and Soudry 2019, arXiv:1810.05723, sec. 3.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> f"{optimal_clip(bits=4):.3f} {optimal_clip(bits=4, law='laplace'):.3f}"
        '2.559 5.029'
    """
    rounding_noise(1.0, bits=bits, law=law)  # refuses what is out of its domain

    rising = 2 / (3 * 2.0 ** (2 * bits))

    def slope(alpha: float) -> float:
        if law == "gaussian":
            tail = math.erfc(alpha / math.sqrt(2)) / 2
            density = math.exp(-(alpha**2) / 2) / math.sqrt(2 * math.pi)
            return rising * alpha - 4 * (density - alpha * tail)
        return rising * alpha - 2 * math.exp(-alpha)

    low, high = 0.0, 64.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low + high) / 2


def _by_group(x: Tensor, group: int) -> Tensor:
    """View the last axis in groups."""
    if x.shape[-1] % group:
        raise ValueError(
            f"group must divide the {x.shape[-1]} inputs of each row, got {group}: "
            "choose a divisor, such as "
            f"{max(size for size in range(1, group + 1) if x.shape[-1] % size == 0)}"
        )
    return wide(x).reshape(*x.shape[:-1], x.shape[-1] // group, group)
