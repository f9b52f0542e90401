"""Biases that are added to the scores and depend on the distance alone: ALiBi and T5."""

import math

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from companion.core import check_count, wide_dtype
from companion.transformer.positions._checks import relative_distance

__all__ = ["Alibi", "T5Bias", "alibi_slopes", "t5_bucket"]


def alibi_slopes(
    heads: int,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, " heads"]:
    r"""Return the slope of each head.

    .. math:: \mu_h = 2^{-8h/H}, \qquad h = 1, \dots, H

    for :math:`H` a power of two. Otherwise the slopes for the next lower power :math:`P` come
    first, and then the first, third, fifth, ... of the slopes for :math:`2P`.

    Args:
        heads: Number of heads :math:`H`.
        device: Where to make them.
        dtype: Dtype of the result; by default PyTorch's default dtype.

    Returns:
        Slopes in nats a position, all different, in (0, 1).

    Raises:
        ValueError: If ``heads`` is below 1.

    References:
        O. Press et al., "Train short, test long", arXiv:2108.12409, section 3; the rule for other
        numbers of heads is in the published code.

    Book: :doc:`/book/transformer/positions`

    Example:
        >>> alibi_slopes(3)
        tensor([0.0625, 0.0039, 0.2500])
    """
    check_count("heads", heads)
    power = 2 ** (heads.bit_length() - 1)
    dtype = dtype or torch.get_default_dtype()
    # Made on the device, since a list of numbers would have to be copied there at every call.
    first = torch.arange(1, power + 1, device=device) * (-8 / power)
    rest = (2 * torch.arange(heads - power, device=device) + 1) * (-4 / power)
    return torch.exp2(torch.cat((first, rest)).to(wide_dtype(dtype))).to(dtype)


class Alibi(nn.Module):
    r"""Attention with linear biases: each head lowers its scores in proportion to the distance.

    .. math:: S_{ij} \mathrel{-}= \mu_h\,|i - j|

    A key after the query counts by its distance as well. The paper has causal attention only,
    where :math:`|i - j| = i - j`; for encoders the symmetric form is a choice of ours.

    Args:
        heads: Number of heads.

    References:
        O. Press et al., arXiv:2108.12409, section 3.

    Book: :doc:`/book/transformer/positions`

    Example:
        >>> Alibi(2)(torch.tensor([2]), torch.arange(3))
        tensor([[[-0.1250, -0.0625,  0.0000]],
        <BLANKLINE>
                [[-0.0078, -0.0039,  0.0000]]])
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        check_count("heads", heads)
        self.heads = heads

    def forward(
        self,
        query_positions: Integer[Tensor, "*batch n"],
        key_positions: Integer[Tensor, "*batch m"],
        *,
        dtype: torch.dtype | None = None,
    ) -> Float[Tensor, "*batch heads n m"]:
        """Return what is added to the scaled scores.

        Args:
            query_positions: Positions of the queries, shape ``(n,)`` or ``(batch, n)``.
            key_positions: Positions of the keys.
            dtype: Dtype of the result; by default PyTorch's default dtype.

        Returns:
            Biases in nats, at most 0.

        Raises:
            ValueError: If the positions are not integers or have another shape.
        """
        lost = -relative_distance(query_positions, key_positions).abs()
        slopes = alibi_slopes(self.heads, device=lost.device, dtype=dtype)
        return slopes[:, None, None] * lost[..., None, :, :].to(slopes.dtype)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"heads={self.heads}"


def _bucket_starts(buckets: int, max_distance: int, bidirectional: bool) -> list[int]:
    """The smallest distance of every bucket but the first, in exact arithmetic."""
    check_count("buckets", buckets, low=4 if bidirectional else 2)
    if bidirectional and buckets % 2:
        raise ValueError(f"buckets must be even when bidirectional, got {buckets}")
    side = buckets // 2 if bidirectional else buckets
    exact = side // 2
    check_count("max_distance", max_distance, low=exact + 1)
    starts = list(range(1, exact + 1))
    coarse = side - exact
    for k in range(1, coarse):
        # Smallest r with coarse * log(r / exact) / log(max / exact) >= k. Whole numbers decide
        # what rounding would blur: 16, 32, 64 start buckets of their own by default.
        power = max_distance**k * exact ** (coarse - k)
        r = max(int(math.exp(math.log(power) / coarse)) - 1, exact)
        while r**coarse < power:
            r += 1
        starts.append(r)
    return starts


def t5_bucket(
    relative: Integer[Tensor, "*shape"],
    *,
    buckets: int = 32,
    max_distance: int = 128,
    bidirectional: bool = True,
) -> Integer[Tensor, "*shape"]:
    r"""Return the bucket of each offset, key position minus query position.

    With :math:`r` the distance, :math:`B` buckets on a side and :math:`e = \lfloor B/2 \rfloor`:

    .. math:: \mathrm{bucket}(r) = \begin{cases} r & r < e \\
        \min\left(B - 1,\; e + \left\lfloor \frac{\log(r/e)}{\log(r_{\max}/e)} (B - e)
        \right\rfloor\right) & r \ge e \end{cases}

    Args:
        relative: Offsets :math:`j - i`.
        buckets: How many in all; 4 or more and even when bidirectional, 2 or more otherwise.
        max_distance: :math:`r_{\max} > e`; from here on all distances share the last bucket.
        bidirectional: ``True`` gives keys after the query the upper half of the buckets, with
            distance :math:`|j - i|`. ``False`` puts all of them into bucket 0.

    Returns:
        Buckets in [0, buckets), int64.

    Raises:
        ValueError: If the buckets or the largest distance are out of their domain.

    Numerics:
        The boundaries are found in whole numbers. The published code takes logarithms in float32;
        it agrees wherever those do not round across a boundary.

    References:
        C. Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text
        transformer", arXiv:1910.10683, section 2.1, and the published code.

    Book: :doc:`/book/transformer/positions`

    Example:
        >>> t5_bucket(torch.tensor([-200, -16, -3, 0, 3, 16]))
        tensor([15, 10,  3,  0, 19, 26])
    """
    starts = _bucket_starts(buckets, max_distance, bidirectional)
    edges = torch.tensor(starts, device=relative.device)
    return _bucket(relative.long(), edges, buckets, bidirectional)


def _bucket(relative: Tensor, edges: Tensor, buckets: int, bidirectional: bool) -> Tensor:
    distance = relative.abs() if bidirectional else (-relative).clamp(min=0)
    bucket = torch.bucketize(distance, edges, right=True)
    return bucket + (relative > 0) * (buckets // 2) if bidirectional else bucket


class T5Bias(nn.Module):
    r"""One learned number for each head and bucket of distances.

    .. math:: S_{ij} \mathrel{+}= b_{h,\,\mathrm{bucket}(j - i)}

    T5 shares one such table among all its layers. The gradient of an entry is the sum of the
    gradients of the scores over the diagonals in its bucket. All entries start at 0. Note
    that T5 does not divide its scores by :math:`\sqrt{d_k}`; the bias is added after whatever
    scaling the attention does.

    Args:
        heads: Number of heads.
        buckets: How many buckets, as in :func:`t5_bucket`.
        max_distance: From here on, distances share the last bucket.
        bidirectional: Whether keys after the query have buckets of their own; ``False`` for
            causal attention.
        device: Where to make the table.
        dtype: Floating dtype of the table.

    Attributes:
        weight: The table, of shape ``(buckets, heads)``, in nats.

    References:
        C. Raffel et al., arXiv:1910.10683, section 2.1.

    Book: :doc:`/book/transformer/positions`
    """

    edges: Tensor

    def __init__(
        self,
        heads: int,
        *,
        buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("heads", heads)
        starts = _bucket_starts(buckets, max_distance, bidirectional)
        self.register_buffer("edges", torch.tensor(starts, device=device), persistent=False)
        self.buckets = buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.weight = nn.Parameter(torch.zeros(buckets, heads, device=device, dtype=dtype))

    def forward(
        self,
        query_positions: Integer[Tensor, "*batch n"],
        key_positions: Integer[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch heads n m"]:
        """Return what is added to the scaled scores.

        Args:
            query_positions: Positions of the queries, shape ``(n,)`` or ``(batch, n)``.
            key_positions: Positions of the keys.

        Returns:
            Biases in nats.

        Raises:
            ValueError: If the positions are not integers or have another shape.
        """
        relative = relative_distance(query_positions, key_positions).long()
        edges = self.edges
        if edges.device != relative.device:
            # Made under torch.device("meta") and filled by load_state_dict(assign=True).
            starts = _bucket_starts(self.buckets, self.max_distance, self.bidirectional)
            edges = torch.tensor(starts, device=relative.device)
        bucket = _bucket(relative, edges, self.buckets, self.bidirectional)
        return nn.functional.embedding(bucket, self.weight).movedim(-1, -3)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return (
            f"heads={self.weight.shape[1]}, buckets={self.buckets}, "
            f"max_distance={self.max_distance}, bidirectional={self.bidirectional}"
        )
