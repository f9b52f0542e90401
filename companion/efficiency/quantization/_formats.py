r"""Formats of few bits: normal quantiles, floating point of 8 and 4 bits, blocks with a scale."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from companion.core import check_count, check_floating, check_shape
from companion.efficiency.quantization._affine import _by_group

__all__ = [
    "Q41",
    "from_nf4",
    "mx_round",
    "nf4_table",
    "q4_1_decode",
    "q4_1_encode",
    "to_e4m3",
    "to_nf4",
]

#: The largest number of each element, and the exponent of its largest power of two.
_ELEMENTS = {"e4m3": (448.0, 8), "e2m1": (6.0, 2)}
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def nf4_table(
    *, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "16"]:
    r"""Compute the sixteen values of NF4: quantiles of the normal law, scaled to :math:`[-1, 1]`.

    With :math:`\delta = 0.9677083` the eight values above zero are
    :math:`\Phi^{-1}(p)/\Phi^{-1}(\delta)` for eight :math:`p` spaced evenly from :math:`\delta`
    down to, and without, :math:`\tfrac12`; the seven below are those of seven such :math:`p`,
    negative; and zero itself is a value.

    Args:
        device: Where it is made.
        dtype: Its type.

    Returns:
        The values, increasing.

    Numerics:
        :math:`\Phi^{-1}(0) = -\infty` is why the ends are not at probabilities 0 and 1. The
        published formula averages neighboring quantiles and cannot give this table; the table and
        :math:`\delta` are those of the library bitsandbytes.

    References:
        Dettmers et al. 2023, arXiv:2305.14314, eq. 4 and appendix E.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> nf4_table()[[0, 7, 8, 15]]
        tensor([-1.0000,  0.0000,  0.0796,  1.0000])
    """
    offset = 0.9677083
    above = torch.special.ndtri(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    zero = torch.zeros(1, dtype=torch.float64)
    table: Tensor = torch.cat([below, zero, above.flip(0)]) / above[0]
    return table.to(device=device, dtype=dtype)


def to_nf4(
    x: Float[Tensor, "*shape d"], *, group: int = 64
) -> tuple[UInt8[Tensor, "*shape d"], Float[Tensor, "*shape groups"]]:
    r"""Round to NF4: in each group to one of sixteen quantiles times the largest magnitude.

    Args:
        x: The numbers.
        group: How many neighbors of a row share a scale.

    Returns:
        Codes from 0 to 15 (not packed two to a byte), and the largest magnitude of each group.

    Raises:
        ValueError: If the group does not divide the rows.

    Numerics:
        A number in the middle between two values goes to the lower code, as in bitsandbytes.

    References:
        Dettmers et al. 2023, arXiv:2305.14314, sec. 3.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> to_nf4(torch.tensor([0.0, -3.0, 1.5, 3.0]), group=4)
        (tensor([ 7,  0, 12, 15], dtype=torch.uint8), tensor([3.]))
    """
    check_floating("x", x)
    check_count("group", group)
    groups = _by_group(x, group)
    most = groups.abs().amax(-1, keepdim=True)
    table = nf4_table(device=x.device, dtype=groups.dtype)
    edges = (table[1:] + table[:-1]) / 2
    share = groups / torch.where(most > 0, most, torch.ones_like(most))
    codes = torch.bucketize(share, edges).to(torch.uint8)
    return codes.flatten(-2), most[..., 0].to(x.dtype)


def from_nf4(
    codes: UInt8[Tensor, "*shape d"], most: Float[Tensor, "*shape groups"]
) -> Float[Tensor, "*shape d"]:
    """Turn NF4 codes back into numbers.

    Args:
        codes: From :func:`to_nf4`.
        most: The largest magnitude of each group.

    Returns:
        Numbers in the dtype of ``most``.

    Raises:
        ValueError: If the groups do not fit.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> from_nf4(torch.tensor([7, 0], dtype=torch.uint8), torch.tensor([3.0]))
        tensor([ 0., -3.])
    """
    if codes.shape[-1] % most.shape[-1]:
        raise ValueError(
            f"{codes.shape[-1]} codes do not fall into the {most.shape[-1]} groups of most"
        )
    values = nf4_table(device=most.device, dtype=most.dtype)[codes.long()]
    return (_split(values, codes.shape[-1] // most.shape[-1]) * most[..., None]).flatten(-2)


def to_e4m3(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Round to FP8 E4M3, saturating: four bits of exponent, three of fraction, largest 448.

    Args:
        x: The numbers.

    Returns:
        Numbers of the format, in the dtype of ``x``. Beyond 448 they are :math:`\pm448`; NaN stays.

    Numerics:
        What lies beyond is clamped before the cast, whose own answer to it is NaN in some
        libraries and 448 in others. The relative error of normal numbers is at most
        :math:`2^{-4}`; below :math:`2^{-6}` the grid is even with step :math:`2^{-9}`.

    References:
        Micikevicius et al. 2022, arXiv:2209.05433, table 1.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> to_e4m3(torch.tensor([0.3, 464.0, 1000.0])).tolist()
        [0.3125, 448.0, 448.0]
    """
    check_floating("x", x)
    return x.clamp(-448.0, 448.0).to(torch.float8_e4m3fn).to(x.dtype)


def mx_round(
    x: Float[Tensor, "*shape d"],
    *,
    element: Literal["e4m3", "e2m1"] = "e4m3",
    scale: Literal["floor", "up"] = "floor",
    group: int = 32,
) -> Float[Tensor, "*shape d"]:
    r"""Round to an MX block format: groups with a power of two as scale, elements of few bits.

    With :math:`m` the largest magnitude of a group and :math:`e_{\max}` the exponent of the
    largest power of two of the element (8 for E4M3, 2 for E2M1), the scale is

    .. math:: X = 2^{\lfloor \log_2 m \rfloor - e_{\max}} \quad\text{or}\quad
        X = 2^{\lceil \log_2 (m / v_{\max}) \rceil}

    The first is that of the standard; it may clip, since :math:`m / X` may pass the largest
    element :math:`v_{\max}`. The second rounds up, and never clips.

    Args:
        x: The numbers.
        element: ``"e4m3"`` (MXFP8) or ``"e2m1"`` (MXFP4, magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6).
        scale: ``"floor"`` or ``"up"``.
        group: Numbers that share a scale; 32 in the standard.

    Returns:
        Numbers of the format, in the dtype of ``x``.

    Raises:
        ValueError: If a choice is unknown, or the group does not divide the rows.

    Numerics:
        Elements of E2M1 are rounded to nearest, ties to even codes.

    References:
        OCP Microscaling Formats (MX) Specification v1.0, 2023, sec. 6.3; rounding up: Mishra et
        al. 2025, arXiv:2506.08027.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> x = torch.tensor([7.0, 1.0])
        >>> mx_round(x, element="e2m1", group=2), mx_round(x, element="e2m1", scale="up", group=2)
        (tensor([6., 1.]), tensor([8., 1.]))
    """
    check_floating("x", x)
    check_count("group", group)
    if element not in _ELEMENTS:
        raise ValueError(f"element must be 'e4m3' or 'e2m1', got {element!r}")
    if scale not in ("floor", "up"):
        raise ValueError(f"scale must be 'floor' or 'up', got {scale!r}")
    largest, exponent = _ELEMENTS[element]
    groups = _by_group(x, group)
    most = groups.abs().amax(-1, keepdim=True)
    # frexp is exact where log2 may round: most = fraction * 2**power, fraction in [1/2, 1).
    fraction, power = torch.frexp(most)
    shift = power - 1 - exponent
    if scale == "up":
        # The fraction of the largest element tells whether a power of two suffices.
        shift = shift + (2 * fraction > largest / 2**exponent).to(shift.dtype)
    shift = shift.clamp(-127, 127)
    scaled = torch.ldexp(groups, -shift).clamp(-largest, largest)
    made = to_e4m3(scaled) if element == "e4m3" else _to_e2m1(scaled)
    return torch.ldexp(made, shift).flatten(-2).to(x.dtype)


def _to_e2m1(x: Tensor) -> Tensor:
    table = torch.tensor(_E2M1, device=x.device, dtype=x.dtype)
    edges = (table[1:] + table[:-1]) / 2
    size = x.abs()
    down = torch.bucketize(size, edges)  # a tie goes down
    up = torch.bucketize(size, edges, right=True)  # a tie goes up
    return table[torch.where(down % 2 == 0, down, up)].copysign(x)


class Q41(NamedTuple):
    r"""Blocks of llama.cpp's format Q4_1: :math:`w = d\,q + m` for 32 neighbors of a row.

    Attributes:
        codes: :math:`q` from 0 to 15, (rows, inputs).
        step: :math:`d`, (rows, inputs / 32), float16.
        least: :math:`m`, likewise.
    """

    codes: Tensor
    step: Tensor
    least: Tensor

    def values(self) -> Float[Tensor, "rows inputs"]:
        """Return what the blocks stand for, in float32."""
        step, least = self.step.float()[..., None], self.least.float()[..., None]
        return (_split(self.codes, 32).float() * step + least).flatten(-2)


def q4_1_decode(data: UInt8[Tensor, "rows bytes"]) -> Q41:
    r"""Read rows of Q4_1 blocks.

    A block has 20 bytes: :math:`d` and :math:`m` in float16, then 16 bytes of codes. The *low*
    half of byte :math:`j` belongs to number :math:`j`, and its *high* half to number
    :math:`j + 16`; they are not neighbors.

    Args:
        data: The bytes of each row.

    Returns:
        Codes, steps and least values.

    Raises:
        ValueError: If a row is no whole number of blocks.

    References:
        https://github.com/ggml-org/ggml, ``dequantize_row_q4_1``.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> block = torch.zeros(1, 20, dtype=torch.uint8)
        >>> block[0, :4] = torch.tensor([0.5, -1.0]).half().view(torch.uint8)
        >>> block[0, 4] = 0x3A
        >>> q4_1_decode(block).values()[0, [0, 16]]
        tensor([4.0000, 0.5000])
    """
    check_shape("data", data, (None, None))
    if data.shape[1] % 20 or data.dtype != torch.uint8:
        raise ValueError(
            f"a row must be blocks of 20 bytes, uint8, got {tuple(data.shape)} of {data.dtype}"
        )
    blocks = _split(data, 20)
    pair = blocks[..., :4].contiguous().view(torch.float16)
    codes = torch.cat([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], -1)
    return Q41(codes.flatten(-2), pair[..., 0], pair[..., 1])


def q4_1_encode(x: Float[Tensor, "rows inputs"]) -> UInt8[Tensor, "rows bytes"]:
    r"""Write rows as Q4_1 blocks, rounding to nearest between the least and the largest number.

    Args:
        x: The numbers.

    Returns:
        20 bytes for each 32 numbers.

    Raises:
        ValueError: If 32 does not divide the rows.

    Numerics:
        Codes are chosen before the step and the least value are rounded to float16, as in ggml.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> x = torch.linspace(-1, 1, 64).view(2, 32)
        >>> bool((q4_1_decode(q4_1_encode(x)).values() - x).abs().max() < 1 / 15 / 2 + 1e-3)
        True
    """
    check_shape("x", x, (None, None))
    groups = _by_group(x, 32)
    least, most = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (most - least) / 15
    inverse = torch.where(step > 0, 1 / step, torch.zeros_like(step))
    codes = ((groups - least) * inverse + 0.5).clamp(0, 15).to(torch.uint8)
    pair = torch.cat([step, least], -1).half().contiguous().view(torch.uint8)
    halves = codes[..., :16] | (codes[..., 16:] << 4)
    return torch.cat([pair, halves], -1).flatten(-2)


def _split(x: Tensor, size: int) -> Tensor:
    """View the last axis in pieces."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)
