r"""PanGu-alpha: a decoder whose last layer asks from the position of the next token."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from companion.core import check_count, check_shape
from companion.transformer.attention import Mask, causal
from companion.transformer.block import (
    Block,
    Decoder,
    Learned,
    TransformerConfig,
    parameter_count,
)
from companion.transformer.multi_head import KVCache

__all__ = ["PanguAlpha", "QueryLayer", "pangu_config", "pangu_parameters"]

#: Layers (the query layer is the last), width and heads of the models of the paper, table 1.
PANGU_SIZES = {
    "2.6B": (32, 2560, 32),
    "13B": (40, 5120, 40),
    "200B": (64, 16384, 128),
}


class QueryLayer(nn.Module):
    r"""A block whose queries come from embeddings of positions, not from the tokens.

    .. math::

        a = H + \mathrm{MHA}\big(Q = P W^Q,\; K = \mathrm{norm}(H) W^K,\;
        V = \mathrm{norm}(H) W^V\big), \qquad o = a + \mathrm{FFN}(\mathrm{norm}(a))

    Row :math:`p_t` of the table :math:`P` stands for the position that is to be predicted from
    the tokens :math:`1, \dots, t`. The mask is causal.

    Args:
        config: The description of the blocks below, pre-norm.

    Raises:
        ValueError: If the description is post-norm.

    References:
        Zeng et al. 2021, arXiv:2104.12369, sec. 2.2.2 and eq. 3. The residual connection adds
        the tokens' stream, not the query, and the query is not normalized: the paper leaves both
        open, and the released code does so.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> QueryLayer(config)(torch.ones(2, 5, 12)).shape
        torch.Size([2, 5, 12])
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if config.norm_place != "pre":
            raise ValueError("a query layer needs norm_place='pre', got 'post'")
        self.queries = nn.Embedding(config.context, config.dim)
        block = Block(config)
        self.attention = block.attention
        self.attention_norm = block.attention_norm
        self.feed_forward = block.feed_forward
        self.feed_forward_norm = block.feed_forward_norm
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch n dim"],
        *,
        mask: Mask | Bool[Tensor, "..."] | None = None,
        positions: Integer[Tensor, " n"] | Integer[Tensor, "batch n"] | None = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Ask, at each position, what comes next.

        Args:
            x: The residual stream.
            mask: A further rule; it and causality must both allow a key.
            positions: Where the tokens stand; by default 0, 1, 2, ...

        Returns:
            The new stream, which in PanGu-alpha the output layer reads as it is.
        """
        check_shape("x", x, (None, None, self.queries.embedding_dim))
        n = x.shape[1]
        if positions is None:
            positions = torch.arange(n, device=x.device)
        query = self.queries(positions).to(x.dtype).expand(x.shape)
        rule: Mask | Tensor = causal()
        if isinstance(mask, Mask):
            rule = mask & causal()
        elif mask is not None:
            rule = mask & causal().dense(n, n, device=x.device)
        read = self.attention(query, self.attention_norm(x), mask=rule)
        x = x + self.dropout(read)
        mixed: Tensor = self.feed_forward(self.feed_forward_norm(x))
        asked: Tensor = x + self.dropout(mixed)
        return asked


class PanguAlpha(Decoder):
    r"""A decoder with a query layer as the last of its layers.

    Of the ``config.layers`` layers all but the last are ordinary blocks. A norm follows, and the
    query layer is on top. The output layer reads what it returns, without another norm.

    Args:
        config: The description, with at least 2 layers.

    Raises:
        ValueError: If there is only one layer, or the description is post-norm.

    Numerics:
        There is no cache for the query layer, so the model scores texts and is trained, but
        :func:`companion.models.generate` does not run on it.

    References:
        Zeng et al. 2021, arXiv:2104.12369, fig. 2. Where the norms are is taken from the released
        code.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> PanguAlpha(config)(torch.tensor([[1, 2, 3, 4, 5]])).shape
        torch.Size([1, 5, 7])
    """

    def __init__(self, config: TransformerConfig) -> None:
        check_count("layers", config.layers, low=2)
        super().__init__(replace(config, layers=config.layers - 1))
        self.config = config
        self.query = QueryLayer(config)

    def run(self, ids: Tensor | None, **told: Any) -> Tensor:
        """Embed, and pass through the blocks, the norm, and the query layer."""
        if told.get("cache") is not None:
            raise ValueError("PanguAlpha keeps no cache: read the whole text in one pass")
        x = super().run(ids, **told)
        real, positions, mask = told.get("real"), told.get("positions"), told.get("mask")
        if real is not None:
            if positions is None:
                positions = (real.long().cumsum(1) - 1).clamp(min=0)
            read = real[:, None, None, :]
            n = x.shape[1]
            mask = (
                read
                if mask is None
                else read & (mask.dense(n, n, device=x.device) if isinstance(mask, Mask) else mask)
            )
        asked: Tensor = self.query(x, mask=mask, positions=positions)
        return asked

    def cache(self, batch: int, capacity: int) -> KVCache:
        """Refuse: the query layer has no cache.

        Args:
            batch: Sequences.
            capacity: Tokens.

        Returns:
            Nothing.

        Raises:
            ValueError: Always.
        """
        raise ValueError("PanguAlpha keeps no cache: read the whole text in one pass")


def pangu_config(
    name: str = "200B", *, vocab: int = 40000, context: int = 1024
) -> TransformerConfig:
    """Describe a model of the PanGu-alpha paper, for :class:`PanguAlpha`.

    Args:
        name: ``"2.6B"``, ``"13B"`` or ``"200B"``.
        vocab: Number of token ids.
        context: Longest sequence.

    Returns:
        The description. Its number of layers counts the query layer.

    Raises:
        ValueError: If there is no such model.

    References:
        Zeng et al. 2021, arXiv:2104.12369, table 1.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> print(f"{pangu_parameters(pangu_config('200B')):,}")
        206,861,008,896
    """
    if name not in PANGU_SIZES:
        raise ValueError(f"name must be one of {', '.join(PANGU_SIZES)}, got {name!r}")
    layers, dim, heads = PANGU_SIZES[name]
    return TransformerConfig(
        vocab=vocab,
        dim=dim,
        layers=layers,
        heads=heads,
        ff_dim=4 * dim,
        context=context,
        activation="gelu_tanh",
        positions=Learned(),
    )


def pangu_parameters(config: TransformerConfig) -> int:
    """Count the parameters of :class:`PanguAlpha` without building it.

    Args:
        config: The description.

    Returns:
        The number of parameters: those of a decoder with as many layers, and the table of queries.

    Book: :doc:`/book/pretraining/autoregressive`
    """
    return parameter_count(config, kind="decoder") + config.context * config.dim
