"""One layer of a Transformer."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion.core import HasSites
from companion.transformer.attention import Mask
from companion.transformer.block._config import Shaw, TransformerConfig
from companion.transformer.block._feed_forward import FeedForward, GatedFeedForward
from companion.transformer.block._norms import LayerNorm, RMSNorm
from companion.transformer.multi_head import MultiHeadAttention
from companion.transformer.multi_head._attention import Rotation
from companion.transformer.positions import ShawRelative

__all__ = ["AttentionMask", "Block", "PartFactory", "dropout_of", "norm_of"]

AttentionMask = Mask | Bool[Tensor, "..."] | None

#: Makes a part of the block of a layer, from the description and the number of the layer. It may
#: return the same module for several layers, which then share its parameters.
PartFactory = Callable[[TransformerConfig, int], nn.Module]


def norm_of(config: TransformerConfig) -> nn.Module:
    """Make a normalization of the kind that the description asks for."""
    kind = LayerNorm if config.norm == "layer" else RMSNorm
    return kind(config.dim, eps=config.norm_eps)


def _attention(config: TransformerConfig, *, self_attention: bool) -> MultiHeadAttention:
    relative = None
    if self_attention and isinstance(config.positions, Shaw):
        relative = ShawRelative(config.head_width, config.positions.max_distance)
    return MultiHeadAttention(
        config.dim,
        config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_width,
        bias=config.attention_bias,
        scale=config.attention_scale,
        dropout=config.attention_dropout,
        relative=relative,
    )


def _feed_forward(config: TransformerConfig) -> nn.Module:
    kind = GatedFeedForward if config.gated else FeedForward
    return kind(config.dim, config.ff_dim, activation=config.ff_activation, bias=config.ff_bias)


def dropout_of(config: TransformerConfig) -> nn.Module | None:
    """Make a layer that drops components in training, or none."""
    return nn.Dropout(config.dropout) if config.dropout else None


class Block(HasSites):
    r"""One layer of a Transformer: attention, then a feed-forward layer, each with a residual.

    .. math::

        \text{pre:}\quad x \leftarrow x + F(\mathrm{norm}(x)) \qquad\qquad
        \text{post:}\quad x \leftarrow \mathrm{norm}(x + F(x))

    for :math:`F` self-attention, then cross-attention where the block has it, then the
    feed-forward layer.

    Either part can be another module than those that the description names. **Attention** is
    called as ``attention(x, mask=..., bias=..., rotation=..., cache=...)`` and returns one vector
    for each token of ``x``. ``mask`` says which positions may be read: a
    :class:`~companion.transformer.attention.Mask`, a Bool tensor, or ``None`` for all; ``bias`` is
    added to the scores, and ``rotation`` turns tensors (batch, n, heads, ``config.head_width``)
    by the positions of the tokens, each ``None`` unless the description asks for such positions.
    ``cache`` is what the module's own ``make_cache(batch, capacity, device=..., dtype=...)`` has
    returned: an object with ``length``, the positions that it stands for, with ``truncate(length)``
    and, for searches, ``select(rows)``, as
    :class:`~companion.transformer.multi_head.LayerCache` has them. A module without ``make_cache``
    cannot decode with a cache. **A feed-forward layer** is called as ``feed_forward(x)``. What else
    a part computes, such as the routing that a mixture of experts is to balance, it hands out
    through a site of its own, see
    :func:`companion.core.watch`. A part that names its linear maps as
    :class:`companion.core.HasLinears` does is initialized by them: those that are called ``out``
    or ``down`` write into the stream, see :func:`companion.transformer.block.branch_outputs`.

    Args:
        config: The description.
        cross: Whether the block also reads another sequence, by attention of the usual kind.
        attention: Makes the self-attention, given the description and ``layer``; by default the
            :class:`~companion.transformer.multi_head.MultiHeadAttention` that is described.
        feed_forward: Makes the feed-forward layer; by default the one that is described.
        layer: Which layer of a stack the block is, from 0.

    Attributes:
        sites: What :func:`companion.core.watch` can read and replace, (batch, n, dim) each: what
            attention reads (``attention_in``) and returns (``attention_out``), the same of
            cross-attention (``cross_in``, ``cross_out``), the residual stream ``middle`` between
            attention and feed-forward layer, what the latter reads and returns
            (``feed_forward_in``, ``feed_forward_out``), and the residual ``stream`` at the end.
            What is returned is taken before dropout.

    References:
        Vaswani et al. 2017, arXiv:1706.03762, sec. 3.1 (post-norm). Pre-norm: Xiong et al. 2020,
        arXiv:2002.04745.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> import torch
        >>> config = TransformerConfig(vocab=7, dim=12, layers=1, heads=3, ff_dim=31, context=9)
        >>> Block(config)(torch.ones(2, 5, 12)).shape
        torch.Size([2, 5, 12])
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        cross: bool = False,
        attention: PartFactory | None = None,
        feed_forward: PartFactory | None = None,
        layer: int = 0,
    ) -> None:
        super().__init__()
        self.sites = (
            *("attention_in", "attention_out"),
            *(("cross_in", "cross_out") if cross else ()),
            *("middle", "feed_forward_in", "feed_forward_out", "stream"),
        )
        self.pre = config.norm_place == "pre"
        self.attention: Any = (
            _attention(config, self_attention=True)
            if attention is None
            else attention(config, layer)
        )
        self.attention_norm = norm_of(config)
        self.cross = _attention(config, self_attention=False) if cross else None
        self.cross_norm = norm_of(config) if cross else None
        self.feed_forward: nn.Module = (
            _feed_forward(config) if feed_forward is None else feed_forward(config, layer)
        )
        self.feed_forward_norm = norm_of(config)
        self.dropout = dropout_of(config)

    def forward(
        self,
        x: Float[Tensor, "batch n dim"],
        context: Float[Tensor, "batch m dim"] | None = None,
        *,
        mask: AttentionMask = None,
        bias: Float[Tensor, "..."] | None = None,
        rotation: Rotation | None = None,
        cache: Any = None,
        context_mask: AttentionMask = None,
        context_cache: Any = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Apply the layer.

        Args:
            x: The residual stream.
            context: What cross-attention reads, for a block that has it.
            mask: Which positions self-attention may read.
            bias: Added to the scores of self-attention.
            rotation: Turns queries and keys of self-attention.
            cache: Keys and values of self-attention, or what else its ``make_cache`` makes.
            context_mask: Which positions of the context may be read.
            context_cache: Keys and values of the context.

        Returns:
            The residual stream after the layer.

        Raises:
            ValueError: If the block reads a context and none is given, or the other way round.
        """
        if (context is None) != (self.cross is None):
            raise ValueError(
                "this block reads a context: give one"
                if context is None
                else "this block has no cross-attention, so it cannot read a context"
            )

        read = self.site("attention_in", self.attention_norm(x) if self.pre else x)
        y = self.attention(read, mask=mask, bias=bias, rotation=rotation, cache=cache)
        y = self._dropped(self.site("attention_out", y))
        x = x + y if self.pre else self.attention_norm(x + y)

        if self.cross is not None and self.cross_norm is not None:
            read = self.site("cross_in", self.cross_norm(x) if self.pre else x)
            y = self.cross(read, context, mask=context_mask, cache=context_cache)
            y = self._dropped(self.site("cross_out", y))
            x = x + y if self.pre else self.cross_norm(x + y)

        x = self.site("middle", x)
        read = self.site("feed_forward_in", self.feed_forward_norm(x) if self.pre else x)
        y = self._dropped(self.site("feed_forward_out", self.feed_forward(read)))
        return self.site("stream", x + y if self.pre else self.feed_forward_norm(x + y))

    def _dropped(self, y: Tensor) -> Tensor:
        return y if self.dropout is None else self.dropout(y)
