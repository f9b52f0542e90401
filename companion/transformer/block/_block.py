"""One layer of a Transformer."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion.transformer.attention import Mask
from companion.transformer.block._config import Shaw, TransformerConfig
from companion.transformer.block._feed_forward import FeedForward, GatedFeedForward
from companion.transformer.block._norms import LayerNorm, RMSNorm
from companion.transformer.multi_head import LayerCache, MultiHeadAttention
from companion.transformer.multi_head._attention import Rotation
from companion.transformer.positions import ShawRelative

__all__ = ["AttentionMask", "Block", "dropout_of", "norm_of"]

AttentionMask = Mask | Bool[Tensor, "..."] | None


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
        relative=relative,
    )


def dropout_of(config: TransformerConfig) -> nn.Module | None:
    """Make a layer that drops components in training, or none."""
    return nn.Dropout(config.dropout) if config.dropout else None


class Block(nn.Module):
    r"""One layer of a Transformer: attention, then a feed-forward layer, each with a residual.

    .. math::

        \text{pre:}\quad x \leftarrow x + F(\mathrm{norm}(x)) \qquad\qquad
        \text{post:}\quad x \leftarrow \mathrm{norm}(x + F(x))

    for :math:`F` self-attention, then cross-attention where the block has it, then the
    feed-forward layer.

    Args:
        config: The description.
        cross: Whether the block also reads another sequence.

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

    def __init__(self, config: TransformerConfig, *, cross: bool = False) -> None:
        super().__init__()
        self.pre = config.norm_place == "pre"
        self.attention = _attention(config, self_attention=True)
        self.attention_norm = norm_of(config)
        self.cross = _attention(config, self_attention=False) if cross else None
        self.cross_norm = norm_of(config) if cross else None
        kind = GatedFeedForward if config.gated else FeedForward
        self.feed_forward: nn.Module = kind(
            config.dim, config.ff_dim, activation=config.ff_activation, bias=config.ff_bias
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
        cache: LayerCache | None = None,
        context_mask: AttentionMask = None,
        context_cache: LayerCache | None = None,
        weights: list[Tensor] | None = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Apply the layer.

        Args:
            x: The residual stream.
            context: What cross-attention reads, for a block that has it.
            mask: Which positions self-attention may read.
            bias: Added to the scores of self-attention.
            rotation: Turns queries and keys of self-attention.
            cache: Keys and values of self-attention.
            context_mask: Which positions of the context may be read.
            context_cache: Keys and values of the context.
            weights: A list that receives the weights of self-attention. Asking for them takes
                memory in proportion to n times m.

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

        read = self.attention_norm(x) if self.pre else x
        if weights is None:
            y = self.attention(read, mask=mask, bias=bias, rotation=rotation, cache=cache)
        else:
            y, A = self.attention.attend(read, mask=mask, bias=bias, rotation=rotation, cache=cache)
            weights.append(A)
        y = y if self.dropout is None else self.dropout(y)
        x = x + y if self.pre else self.attention_norm(x + y)

        if self.cross is not None and self.cross_norm is not None:
            read = self.cross_norm(x) if self.pre else x
            y = self.cross(read, context, mask=context_mask, cache=context_cache)
            y = y if self.dropout is None else self.dropout(y)
            x = x + y if self.pre else self.cross_norm(x + y)

        y = self.feed_forward(self.feed_forward_norm(x) if self.pre else x)
        y = y if self.dropout is None else self.dropout(y)
        out: Tensor = x + y if self.pre else self.feed_forward_norm(x + y)
        return out
