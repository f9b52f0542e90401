"""Keys and values squeezed by a convolution, and a memory whose old part is squeezed."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.core import check_count, check_floating, check_shape
from companion.efficiency.multiscale._layer import CoarseAttention
from companion.transformer.attention import Mask, attention
from companion.transformer.multi_head import MultiHeadAttention

__all__ = [
    "CompressiveMemory",
    "ConvCompressor",
    "MemoryCompressedAttention",
    "compressive_range",
    "reconstruction_loss",
]


class ConvCompressor(nn.Module):
    r"""A convolution that makes one token of each ``stride`` neighboring ones.

    .. math:: y_b = \sum_{t=1}^{c} x_{(b-1)c + t} W_t, \qquad b = 1, \dots, \lfloor m/c \rfloor

    It starts as the mean: :math:`W_t = I/c`.

    Args:
        dim: Width of the tokens.
        stride: Tokens that become one, :math:`c`; kernel and stride of the convolution.

    Attributes:
        taps: The matrices :math:`W_t`, shape (stride, dim, dim).

    Raises:
        ValueError: If a number is below 1. In a call: if the number of tokens is not a multiple
            of the stride.

    References:
        P. Liu et al. 2018, arXiv:1801.10198, sec. 4.2.3 (of keys and values, kernel 3, stride 3);
        J. Rae et al. 2020, arXiv:1911.05507, sec. 3.2 (of memories).

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> squeeze = ConvCompressor(1, stride=2)
        >>> squeeze(torch.tensor([1.0, 3.0, 5.0, 9.0]).view(1, 4, 1)).flatten().tolist()
        [2.0, 7.0]
    """

    def __init__(self, dim: int, *, stride: int) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("stride", stride)
        self.dim, self.stride = dim, stride
        self.taps = nn.Parameter(torch.eye(dim).expand(stride, dim, dim) / stride)

    def forward(self, x: Float[Tensor, "batch m dim"]) -> Float[Tensor, "batch blocks dim"]:
        """Squeeze tokens.

        Args:
            x: Tokens, a multiple of the stride.

        Returns:
            One for each ``stride``.

        Raises:
            ValueError: If their number is not a multiple, or the width another.
        """
        check_shape("x", x, (None, None, self.dim))
        if x.shape[1] % self.stride:
            raise ValueError(
                f"the number of tokens must be a multiple of {self.stride}, got {x.shape[1]}"
            )
        side_by_side = x.reshape(x.shape[0], -1, self.stride * self.dim)
        squeezed: Tensor = side_by_side @ self.taps.flatten(0, 1)
        return squeezed


class MemoryCompressedAttention(CoarseAttention):
    r"""Heads whose keys and values are squeezed by a strided convolution.

    .. math:: O = \mathrm{Attn}(Q, f_K(K), f_V(V))

    with one :class:`ConvCompressor` for the keys and one for the values, shared by the heads, of
    stride :math:`c`. Tokens left over at the end, fewer than :math:`c`, are not read. With means
    for convolutions, as it starts, this is :func:`pooled_attention` over whole blocks.

    Args:
        dim: Width of the tokens.
        heads: Query heads.
        stride: The stride :math:`c`.
        causal: Whether a token reads a block only when no token of it comes later. The first
            :math:`c - 1` tokens then read nothing and get zero.
        **rest: As of :class:`~companion.transformer.multi_head.MultiHeadAttention`.

    Attributes:
        squeeze_keys, squeeze_values: The convolutions.
        sites: As of the parent, without scores and weights.

    Raises:
        ValueError: If the stride is below 1. In a call: if the mask says more than causality,
            padding included.

    References:
        P. Liu et al. 2018, arXiv:1801.10198, sec. 4.2.3.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> layer = MemoryCompressedAttention(12, 3, stride=2, causal=True)
        >>> from companion.transformer.attention import causal
        >>> layer(torch.ones(2, 7, 12), mask=causal()).shape
        torch.Size([2, 7, 12])
    """

    def __init__(self, dim: int, heads: int, *, stride: int, causal: bool, **rest: Any) -> None:
        super().__init__(dim, heads, causal=causal, **rest)
        self.stride = stride
        self.squeeze_keys = ConvCompressor(self.head_dim, stride=stride)
        self.squeeze_values = ConvCompressor(self.value_dim, stride=stride)
        self.to(self.out.weight)

    def _read(self, x: Tensor, Q: Tensor, K: Tensor, V: Tensor, real: Tensor | None) -> Tensor:
        if real is not None and not real.is_meta and not bool(real.all()):
            raise ValueError("a convolution mixes padding into the keys: give texts without any")
        n, m = Q.shape[2], K.shape[2]
        whole = m // self.stride * self.stride
        keys, values = (
            squeeze(t[:, :, :whole].flatten(0, 1)).unflatten(0, t.shape[:2])
            for squeeze, t in ((self.squeeze_keys, K), (self.squeeze_values, V))
        )
        stride, before = self.stride, m - n
        rule = Mask(lambda b, h, i, j: (j + 1) * stride - 1 <= i + before) if self.causal else None
        return attention(Q, keys, values, mask=rule, scale=self.scale)


class CompressiveMemory:
    r"""The last tokens as they are, and older ones squeezed, for one layer.

    What leaves the memory of :math:`n_m` tokens is squeezed by :math:`f_c` to one for each
    :math:`c`, and enters a second memory of :math:`n_{cm}`, which forgets its oldest.

    Args:
        memory: Tokens kept as they are, :math:`n_m`.
        compressed: Squeezed tokens kept, :math:`n_{cm}`.
        stride: Tokens that become one, :math:`c`.
        squeeze: The function :math:`f_c`, from (batch, tokens, dim) to (batch, tokens / stride,
            dim); the mean by default, or a :class:`ConvCompressor`.

    Attributes:
        recent: The memory, (batch, up to ``memory``, dim), or ``None`` before the first segment.
        old: The squeezed memory, likewise.

    Raises:
        ValueError: If a size is below 1.

    Numerics:
        What is stored is detached: no gradient flows into old memories, and the squeezing function
        is trained by :func:`reconstruction_loss`, not through the model's loss.

    References:
        J. Rae et al. 2020, "Compressive Transformers", arXiv:1911.05507, sec. 3.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> kept = CompressiveMemory(memory=2, compressed=3, stride=2)
        >>> for segment in torch.arange(6.0).view(3, 1, 2, 1):
        ...     left = kept.update(segment)
        >>> kept.read().flatten().tolist()
        [0.5, 2.5, 4.0, 5.0]
    """

    def __init__(
        self,
        *,
        memory: int,
        compressed: int,
        stride: int,
        squeeze: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        for name, size in (("memory", memory), ("compressed", compressed), ("stride", stride)):
            check_count(name, size)
        self.memory, self.compressed, self.stride = memory, compressed, stride
        self.squeeze = squeeze
        self.recent: Tensor | None = None
        self.old: Tensor | None = None

    def read(self) -> Float[Tensor, "batch kept dim"] | None:
        """Return what is to be read before a segment: the squeezed tokens, then the others.

        Returns:
            All that is kept, oldest first; ``None`` while there is nothing.
        """
        parts = [part for part in (self.old, self.recent) if part is not None]
        return torch.cat(parts, 1) if parts else None

    def update(self, segment: Float[Tensor, "batch n dim"]) -> Float[Tensor, "batch left dim"]:
        """Store a segment, after it has read the memory.

        Args:
            segment: Its hidden states.

        Returns:
            The tokens that left the memory and were squeezed, for :func:`reconstruction_loss`;
            none of them at first.

        Raises:
            ValueError: If the batch or the width is another one than before, or the squeezing
                function returns another number of tokens than it should.

        Numerics:
            Only a multiple of ``stride`` tokens is squeezed at a time; up to ``stride - 1`` more
            stay in the memory until others follow.
        """
        check_floating("segment", segment)
        segment = segment.detach().clone()  # the caller may write into it afterwards
        if self.recent is not None:
            check_shape("segment", segment, (self.recent.shape[0], None, self.recent.shape[2]))
            segment = torch.cat([self.recent, segment], 1)
        over = max(segment.shape[1] - self.memory, 0) // self.stride * self.stride
        left, self.recent = segment[:, :over], segment[:, over:]
        if over:
            with torch.no_grad():
                new = _means(left, self.stride) if self.squeeze is None else self.squeeze(left)
            check_shape("what squeeze returns", new, (left.shape[0], over // self.stride, None))
            held = new if self.old is None else torch.cat([self.old, new], 1)
            self.old = held[:, -self.compressed :]
        return left

    def reset(self) -> None:
        """Forget everything."""
        self.recent = self.old = None


def _means(x: Tensor, stride: int) -> Tensor:
    return x.reshape(x.shape[0], -1, stride, x.shape[2]).mean(2)


def compressive_range(*, layers: int, memory: int, compressed: int, stride: int) -> int:
    r"""Return how many positions back a stack with compressive memories can be influenced from.

    .. math:: L\,(n_m + c\, n_{cm})

    Args:
        layers: Number :math:`L` of layers.
        memory: Tokens kept as they are in each.
        compressed: Squeezed tokens kept.
        stride: Tokens that each of those stands for.

    Returns:
        Positions before the segment.

    Raises:
        ValueError: If a number is below 1.

    References:
        J. Rae et al. 2020, arXiv:1911.05507, sec. 3.1.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> compressive_range(layers=2, memory=4, compressed=4, stride=3)
        32
    """
    sizes = {"layers": layers, "memory": memory, "compressed": compressed, "stride": stride}
    for name, size in sizes.items():
        check_count(name, size)
    return layers * (memory + stride * compressed)


def reconstruction_loss(
    layer: MultiHeadAttention,
    h: Float[Tensor, "batch n dim"],
    old: Float[Tensor, "batch m dim"],
    squeezed: Float[Tensor, "batch k its_dim"],
) -> Float[Tensor, ""]:
    r"""Return by how much squeezing a memory changes what a layer reads from it.

    .. math::
        \frac{1}{n h d_v} \big\lVert \mathrm{Attn}(h, m) - \mathrm{Attn}(h, f_c(m)) \big\rVert_F^2

    Attention is by content alone, without positions and without the output map.

    Args:
        layer: Whose maps are used. They get no gradient.
        h: The tokens that ask; they get no gradient.
        old: The memory :math:`m` before it was squeezed; no gradient.
        squeezed: The memory after, :math:`f_c(m)`, which carries the gradient of :math:`f_c`.

    Returns:
        The mean of the squares, over tokens, heads and components.

    Raises:
        ValueError: If shapes do not fit.

    Numerics:
        Only the squeezing function is trained. Else the layer could lower the loss by reading
        less.

    References:
        J. Rae et al. 2020, arXiv:1911.05507, alg. 1, with the mean of squares for their sum.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> layer = MultiHeadAttention(4, 2)
        >>> h = torch.ones(1, 3, 4)
        >>> float(reconstruction_loss(layer, h, h, h[:, :1]).round(decimals=5))
        0.0
    """
    for name, tensor in (("h", h), ("old", old), ("squeezed", squeezed)):
        check_shape(name, tensor, (h.shape[0], None, layer.dim))
    W_Q, W_K, W_V = (W.detach() for W in (layer.query_matrix, layer.key_matrix, layer.value_matrix))
    Q = h.detach()[:, None] @ W_Q

    def read(memory: Tensor) -> Tensor:
        return attention(Q, memory[:, None] @ W_K, memory[:, None] @ W_V, scale=layer.scale)

    return (read(old.detach()) - read(squeezed)).square().mean()
