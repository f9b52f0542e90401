"""Absolute positions, added to the token embeddings: sinusoids and a learned table."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from companion.core import check_count, check_ids, check_in_range, wide_dtype
from companion.transformer.positions._checks import check_even, check_positions

__all__ = [
    "LearnedPositions",
    "SinusoidalPositions",
    "sinusoidal_positions",
    "sinusoidal_shift",
]


def _frequencies(dim: int, base: float, like: Tensor) -> Tensor:
    check_even("dim", dim)
    check_in_range("base", base, low=1.0, open_low=True)
    exponents = torch.arange(0, dim, 2, device=like.device).to(like.dtype) / dim
    return 1.0 / base**exponents


def sinusoidal_positions(
    positions: Integer[Tensor, "*shape"],
    dim: int,
    *,
    base: float = 10000.0,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*shape dim"]:
    r"""Return the sinusoidal encoding of positions.

    .. math:: \mathrm{PE}_{t,2i} = \sin\omega_i t, \quad \mathrm{PE}_{t,2i+1} = \cos\omega_i t,
        \qquad \omega_i = b^{-2i/d}

    Args:
        positions: Positions :math:`t`, from 0. Any integers will do.
        dim: Width :math:`d`, even.
        base: :math:`b > 1`. The slowest pair turns once in about :math:`2\pi b` positions.
        dtype: Dtype of the result; by default PyTorch's default dtype.

    Returns:
        One row a position, entries in [-1, 1], with norm :math:`\sqrt{d/2}`.

    Raises:
        ValueError: If ``dim`` is odd, the base is not above 1, or the positions are not integers.

    Numerics:
        The angles are formed in float32, in float64 where that is the dtype asked for. A float32
        angle near :math:`t` is off by about :math:`t \cdot 2^{-24}` radians at worst: the frequency
        and the product are each rounded.

    References:
        A. Vaswani et al., "Attention is all you need", arXiv:1706.03762, section 3.5.

    Book: :doc:`/book/transformer/positions`

    Example:
        >>> sinusoidal_positions(torch.tensor([0, 1]), 2, dtype=torch.float64)
        tensor([[0.0000, 1.0000],
                [0.8415, 0.5403]], dtype=torch.float64)
    """
    if positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool:
        raise ValueError(f"positions must hold integers, got {positions.dtype}")
    dtype = dtype or torch.get_default_dtype()
    t = positions.to(wide_dtype(dtype))
    angles = t[..., None] * _frequencies(dim, base, t)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2).to(dtype)


def sinusoidal_shift(
    offset: int,
    dim: int,
    *,
    base: float = 10000.0,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Float[Tensor, "dim dim"]:
    r"""Return the matrix that moves every sinusoidal encoding by the same number of positions.

    .. math:: \mathrm{PE}_{t+k} = \mathrm{PE}_t R_k, \qquad
        (\mathrm{PE}_{t+k,2i}, \mathrm{PE}_{t+k,2i+1}) = (\mathrm{PE}_{t,2i}, \mathrm{PE}_{t,2i+1})
        \begin{pmatrix} \cos\omega_i k & -\sin\omega_i k \\
        \sin\omega_i k & \cos\omega_i k \end{pmatrix}

    :math:`R_k` has these small rotations on its diagonal, one for each pair, and zeros elsewhere.

    Args:
        offset: The shift :math:`k`, of any sign.
        dim: Width :math:`d`, even.
        base: :math:`b > 1`, as in :func:`sinusoidal_positions`.
        dtype: Dtype of the result; by default PyTorch's default dtype.
        device: Where to make it.

    Returns:
        An orthogonal matrix, the same for all :math:`t`.

    Raises:
        ValueError: If ``dim`` is odd or the base is not above 1.

    References:
        arXiv:1706.03762, section 3.5, says that such a matrix exists; it does not write it down.

    Book: :doc:`/book/transformer/positions`

    Example:
        >>> here = sinusoidal_positions(torch.tensor(5), 4)
        >>> there = sinusoidal_positions(torch.tensor(8), 4)
        >>> torch.allclose(here @ sinusoidal_shift(3, 4), there, atol=1e-6)
        True
    """
    dtype = dtype or torch.get_default_dtype()
    k = torch.tensor(offset, device=device, dtype=wide_dtype(dtype))
    angles = k * _frequencies(dim, base, k)
    cos, sin = angles.cos(), angles.sin()
    even = torch.arange(0, dim, 2, device=device)
    matrix = torch.zeros(dim, dim, device=device, dtype=angles.dtype)
    matrix[even, even], matrix[even, even + 1] = cos, -sin
    matrix[even + 1, even], matrix[even + 1, even + 1] = sin, cos
    return matrix.to(dtype)


class SinusoidalPositions(nn.Module):
    """The sinusoidal encoding as a module without parameters.

    Args:
        dim: Width, even.
        base: As in :func:`sinusoidal_positions`.

    Book: :doc:`/book/transformer/positions`
    """

    def __init__(self, dim: int, *, base: float = 10000.0) -> None:
        super().__init__()
        check_even("dim", dim)
        check_in_range("base", base, low=1.0, open_low=True)
        self.dim = dim
        self.base = base

    def forward(
        self, positions: Integer[Tensor, "*shape"], *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "*shape dim"]:
        """Return one row a position.

        Args:
            positions: Positions from 0, shape ``(n,)`` or ``(batch, n)``.
            dtype: Dtype of the result; by default PyTorch's default dtype.

        Returns:
            Encodings, entries in [-1, 1].
        """
        return sinusoidal_positions(positions, self.dim, base=self.base, dtype=dtype)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"dim={self.dim}, base={self.base:g}"


class LearnedPositions(nn.Module):
    r"""A table with one learned row for each position.

    .. math:: \mathrm{PE}_t = P_{t + o}

    Nothing ties the rows together, and a position that the table lacks cannot be encoded at all.
    The rows start from :math:`\mathcal N(0, 0.02^2)`, the deviation of BERT.

    Args:
        context: Number of positions that may be used.
        dim: Width of a row.
        offset: :math:`o \ge 0`, the number of rows before that of position 0. It is 2 in RoBERTa
            and OPT, whose tables have two rows more than positions.
        device: Where to make the table.
        dtype: Floating dtype of the table.

    Attributes:
        weight: The table, of shape ``(context + offset, dim)``.

    References:
        J. Gehring et al., "Convolutional sequence to sequence learning", arXiv:1705.03122,
        section 3.1; J. Devlin et al., "BERT", arXiv:1810.04805.

    Book: :doc:`/book/transformer/positions`
    """

    def __init__(
        self,
        context: int,
        dim: int,
        *,
        offset: int = 0,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("context", context)
        check_count("dim", dim)
        check_count("offset", offset, low=0)
        self.context = context
        self.offset = offset
        self.weight = nn.Parameter(
            torch.empty(context + offset, dim, device=device, dtype=dtype).normal_(std=0.02)
        )

    def forward(self, positions: Integer[Tensor, "*shape"]) -> Float[Tensor, "*shape dim"]:
        """Return one row a position.

        Args:
            positions: Positions in [0, context), shape ``(n,)`` or ``(batch, n)``.

        Returns:
            Rows of the table.

        Raises:
            ValueError: If a position is negative or at least ``context``. On an accelerator the
                values are not read, and the lookup itself fails.
        """
        check_positions("positions", positions)
        check_ids("positions", positions, self.context)
        return nn.functional.embedding(positions.long() + self.offset, self.weight)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"context={self.context}, dim={self.weight.shape[1]}, offset={self.offset}"
