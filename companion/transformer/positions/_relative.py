"""Relative positions that meet the query: Shaw's key vectors and Transformer-XL's four terms."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from companion.core import check_count, check_in_range, check_shape
from companion.transformer.positions._absolute import sinusoidal_positions
from companion.transformer.positions._checks import (
    check_even,
    check_positions,
    check_step,
    relative_distance,
)

__all__ = ["ShawRelative", "TransformerXLBias", "relative_shift"]


def relative_shift(
    x: Float[Tensor, "*batch n offsets"],
) -> Float[Tensor, "*batch n keys"]:
    r"""Slide row :math:`i` of a table of offsets left, so that columns become keys.

    .. math:: y_{ij} = x_{i,\,j - i + n - 1}, \qquad j = 0, \dots, m - 1

    The table has one column for each offset :math:`j - i` from :math:`-(n - 1)` to
    :math:`m - 1`, which are :math:`n + m - 1`. The result has :math:`m` columns.

    Args:
        x: One row a query, one column an offset in rising order.

    Returns:
        One row a query, one column a key.

    Raises:
        ValueError: If there are fewer offsets than queries.

    Numerics:
        One padding and a change of shape, no index tensor. This is the skewing procedure of the
        Music Transformer: relative scores in O(n d + n m) memory, where a vector for each pair of
        positions would take O(n m d).

    References:
        C.-Z. A. Huang et al., "Music Transformer", arXiv:1809.04281, section 3.4; Z. Dai et
        al., "Transformer-XL", arXiv:1901.02860, appendix B.

    Book: :doc:`/book/transformer/positions`

    Example:
        >>> offsets = torch.arange(-1, 3).double().expand(2, 4)  # n = 2 queries, m = 3 keys
        >>> relative_shift(offsets)
        tensor([[ 0.,  1.,  2.],
                [-1.,  0.,  1.]], dtype=torch.float64)
    """
    if x.ndim < 2 or x.shape[-1] < x.shape[-2]:
        raise ValueError(f"x must have n rows and n + m - 1 columns, m >= 1, got {tuple(x.shape)}")
    n, width = x.shape[-2:]
    # A further column makes the flat index of (i, j - i + n - 1) equal to
    # i * width + j + n - 1: rows of length `width`, after n - 1 numbers that are left out.
    flat = nn.functional.pad(x, (0, 1)).flatten(-2)[..., n - 1 : n - 1 + n * width]
    return flat.reshape(*x.shape[:-2], n, width)[..., : width - n + 1]


class ShawRelative(nn.Module):
    r"""A learned vector for each clipped offset, added to the keys.

    .. math:: S_{ij} = \frac{q_i\,(k_j + a_{\mathrm{clip}(j - i)})^\top}{\sqrt{d_k}}, \qquad
        \mathrm{clip}(r) = \max(-c, \min(c, r))

    The module gives the part :math:`q_i a^\top`, before the division. Shaw and others also add
    vectors to the values; in their ablation those changed little, and they are left out here.
    All heads share the vectors, which start from :math:`\mathcal N(0, 1/d_k)`.

    Args:
        head_dim: Width :math:`d_k` of a query.
        max_distance: :math:`c`; offsets beyond are clipped to it.
        device: Where to make the vectors.
        dtype: Their floating dtype.

    Attributes:
        weight: The vectors, of shape ``(2 * max_distance + 1, head_dim)``, from offset
            ``-max_distance`` to ``max_distance``.

    References:
        P. Shaw, J. Uszkoreit, A. Vaswani, "Self-attention with relative position
        representations", arXiv:1803.02155, eq. 4 and section 3.2.

    Book: :doc:`/book/transformer/positions`
    """

    def __init__(
        self,
        head_dim: int,
        max_distance: int,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("head_dim", head_dim)
        check_count("max_distance", max_distance, low=0)
        self.max_distance = max_distance
        rows = torch.empty(2 * max_distance + 1, head_dim, device=device, dtype=dtype)
        self.weight = nn.Parameter(rows.normal_(std=head_dim**-0.5))

    def forward(
        self,
        q: Float[Tensor, "batch heads n head_dim"],
        query_positions: Integer[Tensor, " n"],
        key_positions: Integer[Tensor, " m"],
    ) -> Float[Tensor, "batch heads n m"]:
        r"""Return what is added to the scores before they are scaled.

        Args:
            q: Queries, not scaled.
            query_positions: Positions of the queries, in any order.
            key_positions: Positions of the keys, in any order.

        Returns:
            :math:`q_i a_{\mathrm{clip}(j - i)}^\top`.

        Raises:
            ValueError: If the shapes do not fit.

        Numerics:
            Each query meets each of the :math:`2c + 1` vectors once, and the products are
            looked up for all keys: no vector is made for a pair of positions.
        """
        check_shape("q", q, (None, None, None, self.weight.shape[1]))
        offsets = relative_distance(query_positions, key_positions)
        check_shape("offsets of q and the positions", offsets, (q.shape[2], None))
        c = self.max_distance
        products = q @ self.weight.T
        index = offsets.clamp(-c, c) + c
        return products.gather(-1, index.expand(*q.shape[:2], *index.shape))

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"head_dim={self.weight.shape[1]}, max_distance={self.max_distance}"


class TransformerXLBias(nn.Module):
    r"""The position terms of Transformer-XL's scores.

    Of the four terms

    .. math:: q_i k_j^\top + q_i (r_{i-j} W^R)^\top + u\,k_j^\top + v\,(r_{i-j} W^R)^\top

    plain attention computes the first. This module adds the second and the fourth, which are
    :math:`(q_i + v)(r_{i-j} W^R)^\top`, and the third where it is given the keys. Here
    :math:`r_{i-j}` is the sinusoidal encoding of the distance, sines first, then cosines, as in
    the published code, and :math:`W^R, u, v` are learned for each head.

    A layer whose query map has a bias needs no third term: a bias of the queries *is*
    :math:`u`, and what is left to learn for the fourth is :math:`v - u`.

    Args:
        heads: Number of heads.
        head_dim: Width of a query.
        dim: Width of the encoding :math:`r`, even.
        base: Base of the encoding.
        device: Where to make the parameters.
        dtype: Their floating dtype.

    Attributes:
        map: :math:`W^R`, an ``nn.Linear`` from ``dim`` to ``heads * head_dim`` without bias; its
            ``weight`` is the transpose of the formula's matrix.
        u: Content bias, ``(heads, head_dim)``, 0 at the start.
        v: Position bias, ``(heads, head_dim)``, 0 at the start.

    References:
        Z. Dai et al., "Transformer-XL: attentive language models beyond a fixed-length context",
        arXiv:1901.02860, section 3.3.

    Book: :doc:`/book/transformer/positions`
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        dim: int | None = None,
        base: float = 10000.0,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("heads", heads)
        check_count("head_dim", head_dim)
        self.dim = heads * head_dim if dim is None else dim
        check_even("dim", self.dim)
        check_in_range("base", base, low=1.0, open_low=True)
        self.base = base
        self.map = nn.Linear(self.dim, heads * head_dim, bias=False, device=device, dtype=dtype)
        self.u = nn.Parameter(torch.zeros(heads, head_dim, device=device, dtype=dtype))
        self.v = nn.Parameter(torch.zeros(heads, head_dim, device=device, dtype=dtype))

    def forward(
        self,
        q: Float[Tensor, "batch heads n head_dim"],
        query_positions: Integer[Tensor, " n"],
        key_positions: Integer[Tensor, " m"],
        keys: Float[Tensor, "batch kv_heads m head_dim"] | None = None,
    ) -> Float[Tensor, "batch heads n m"]:
        r"""Return what is added to the scores before they are scaled.

        Args:
            q: Queries, not scaled.
            query_positions: Positions of the queries; each is one more than the one before.
            key_positions: Positions of the keys; each is one more than the one before.
            keys: Keys, for the third term; without them it is left out.

        Returns:
            The sum of the position terms.

        Raises:
            ValueError: If the shapes do not fit, the heads of the keys do not divide those of the
                queries, or positions that can be read at no cost do not rise by one.

        Numerics:
            :math:`n + m - 1` encodings, then :func:`relative_shift`.
        """
        heads, head_dim = self.v.shape
        check_shape("q", q, (None, heads, None, head_dim))
        n, m = q.shape[2], len(key_positions)
        for name, positions in (
            ("query_positions", query_positions),
            ("key_positions", key_positions),
        ):
            check_positions(name, positions, axes=(1,))
            check_step(name, positions)
        check_shape("query_positions", query_positions, (n,))
        if keys is not None:
            check_shape("keys", keys, (q.shape[0], None, m, head_dim))
            if heads % keys.shape[1]:
                raise ValueError(f"{heads} heads cannot share the keys of {keys.shape[1]} heads")
        # Columns run over rising j - i, so the distances i - j fall.
        steps = torch.arange(n + m - 1, device=q.device)
        distance = query_positions[-1].long() - key_positions[0] - steps
        sinusoids = sinusoidal_positions(distance, self.dim, base=self.base, dtype=q.dtype)
        r = torch.cat((sinusoids[:, 0::2], sinusoids[:, 1::2]), -1)
        R = self.map(r).view(n + m - 1, heads, head_dim).movedim(0, -1)
        added = relative_shift((q + self.v[:, None]) @ R)
        if keys is None:
            return added
        # Query heads of a group share its keys.
        u = self.u.reshape(keys.shape[1], -1, head_dim)
        content: Tensor = (u @ keys.transpose(-1, -2)).flatten(1, 2)
        return added + content[:, :, None]

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"heads={self.v.shape[0]}, head_dim={self.v.shape[1]}, base={self.base:g}"
