"""XLNet: attention in two streams, so that a token can be predicted in any order."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from companion.core import HasSites, check_ids, check_shape, wide_dtype
from companion.foundations.cross_entropy import IGNORE, linear_cross_entropy
from companion.transformer.attention import Mask
from companion.transformer.block import FeedForward, LayerNorm, NoPositions, TransformerConfig
from companion.transformer.multi_head import MultiHeadAttention, attention_at_sites
from companion.transformer.positions import (
    TransformerXLBias,
    relative_shift,
    sinusoidal_positions,
)

__all__ = ["TwoStream", "TwoStreamAttention", "TwoStreamBlock"]

Allowed = Mask | Bool[Tensor, "batch n n"]


class TwoStreamAttention(HasSites):
    r"""Attention of Transformer-XL with two kinds of queries and one kind of keys.

    With :math:`q` the query of either stream, :math:`k_j, v_j` from the content :math:`h_j`, and
    :math:`e_{ij}` one of two vectors, for the same segment and for another,

    .. math:: S_{ij} = \frac{(q_i + u) k_j^\top + (q_i + v)(r_{i-j} W^R)^\top
        + (q_i + w) e_{ij}^\top}{\sqrt{d_k}}

    Args:
        config: The description.

    Attributes:
        projections: The maps :math:`W^Q, W^K, W^V, W^O`.
        relative: The map :math:`W^R` and the biases :math:`u, v`.
        segment_bias: :math:`w`, (heads, head_dim); ``None`` in a model without segments.
        segment_keys: The two vectors :math:`e`, (2, heads, head_dim).
        sites: ``scores``, ``weights`` and ``heads`` of the content stream, as in
            :class:`companion.transformer.multi_head.MultiHeadAttention`, and ``query_scores``,
            ``query_weights`` and ``query_heads`` of the query stream. Queries, keys and values of
            the content are sites of ``projections``.

    References:
        Z. Yang et al., "XLNet", arXiv:1906.08237, sections 2.3, 2.4 and 2.5, appendix A.2.

    Book: :doc:`/book/pretraining/denoising`
    """

    sites = ("scores", "weights", "heads", "query_scores", "query_weights", "query_heads")

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.dropout = config.attention_dropout
        heads, width = config.heads, config.head_width
        self.projections = MultiHeadAttention(
            config.dim, heads, head_dim=width, bias=config.attention_bias
        )
        self.projections.sites = ("queries", "keys", "values")  # the rest is computed here
        self.relative = TransformerXLBias(heads, width, dim=config.dim)
        self.segment_bias: nn.Parameter | None = None
        self.segment_keys: nn.Parameter | None = None
        if config.segments:
            self.segment_bias = nn.Parameter(torch.zeros(heads, width))
            self.segment_keys = nn.Parameter(torch.zeros(2, heads, width))

    def forward(
        self,
        content: Float[Tensor, "batch n dim"],
        query: Float[Tensor, "batch k dim"] | None,
        *,
        encodings: Float[Tensor, "offsets dim"],
        content_mask: Bool[Tensor, "batch 1 n n"],
        query_mask: Bool[Tensor, "batch 1 k n"] | None = None,
        predict: Integer[Tensor, "batch k"] | None = None,
        segments: Integer[Tensor, "batch n"] | None = None,
    ) -> tuple[Float[Tensor, "batch n dim"], Float[Tensor, "batch k dim"] | None]:
        """Let both streams read the content.

        Args:
            content: The stream of contents.
            query: The stream of queries, or ``None``.
            encodings: Of the distances n - 1, ..., 0, ..., -(n - 1).
            content_mask: Who reads whom.
            query_mask: What is read to predict a token.
            predict: Where the queries stand.
            segments: Segment ids of the content.

        Returns:
            What each stream has read.
        """
        own = self.projections
        batch, n, _ = content.shape
        Q, K, V = own._project(content, None, None, None)
        R = self.relative.map(encodings).view(-1, own.heads, own.head_dim).permute(1, 2, 0)
        # u meets every key alike: one row of scores, made once for both streams.
        shared = self.relative.u[:, None] @ K.mT

        def bias(q: Tensor, where: Tensor | None) -> Tensor:
            # Columns run over rising offsets j - i.
            table = (q + self.relative.v[:, None]) @ R
            if where is None:
                added = relative_shift(table)
            else:
                keys = torch.arange(n, device=q.device)
                columns = keys - where[..., None] + n - 1
                added = table.gather(-1, columns[:, None].expand(-1, own.heads, -1, -1))
            added = added + shared
            if segments is not None and self.segment_keys is not None:
                same, other = ((q + self._w) @ e[:, :, None] for e in self.segment_keys)
                mine = segments if where is None else segments.gather(1, where)
                apart = mine[:, None, :, None] != segments[:, None, None, :]
                added = added + torch.where(apart, other, same)
            return added * own.scale

        dropout = self.dropout if self.training else 0.0
        read = attention_at_sites(
            self,
            Q,
            K,
            V,
            mask=content_mask,
            bias=bias(Q, None),
            scale=own.scale,
            dropout=dropout,
        )
        read = own._mix(self.site("heads", read))
        if query is None or predict is None:
            return read, None
        rows = own.heads * own.head_dim
        added = None if own.qkv.bias is None else own.qkv.bias[:rows]
        G = nn.functional.linear(query, own.qkv.weight[:rows], added)
        G = G.view(batch, -1, own.heads, own.head_dim).transpose(1, 2)
        asked = attention_at_sites(
            self,
            G,
            K,
            V,
            mask=query_mask,
            bias=bias(G, predict),
            scale=own.scale,
            dropout=dropout,
            scores="query_scores",
            weights="query_weights",
        )
        return read, own._mix(self.site("query_heads", asked))

    @property
    def _w(self) -> Tensor:
        assert self.segment_bias is not None
        return self.segment_bias[:, None]


class TwoStreamBlock(HasSites):
    r"""One layer of XLNet: both streams pass through the same weights.

    .. math:: h \leftarrow \mathrm{FF}(\mathrm{norm}(h + \mathrm{Attn}(h, h))), \qquad
        g \leftarrow \mathrm{FF}(\mathrm{norm}(g + \mathrm{Attn}(g, h)))

    where FF is the feed-forward layer with its residual and norm.

    Args:
        config: The description.

    Attributes:
        sites: The ``stream`` of contents and the ``query_stream``, after the block.

    References:
        Z. Yang et al., "XLNet", arXiv:1906.08237, appendix A.2.

    Book: :doc:`/book/pretraining/denoising`
    """

    sites = ("stream", "query_stream")

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = TwoStreamAttention(config)
        self.attention_norm = LayerNorm(config.dim, eps=config.norm_eps)
        self.feed_forward = FeedForward(
            config.dim, config.ff_dim, activation=config.ff_activation, bias=config.ff_bias
        )
        self.feed_forward_norm = LayerNorm(config.dim, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        content: Float[Tensor, "batch n dim"],
        query: Float[Tensor, "batch k dim"] | None,
        *,
        encodings: Float[Tensor, "offsets dim"],
        content_mask: Bool[Tensor, "batch 1 n n"],
        query_mask: Bool[Tensor, "batch 1 k n"] | None = None,
        predict: Integer[Tensor, "batch k"] | None = None,
        segments: Integer[Tensor, "batch n"] | None = None,
    ) -> tuple[Float[Tensor, "batch n dim"], Float[Tensor, "batch k dim"] | None]:
        """Apply the layer to both streams; arguments as in :class:`TwoStreamAttention`."""
        read, asked = self.attention(
            content,
            query,
            encodings=encodings,
            content_mask=content_mask,
            query_mask=query_mask,
            predict=predict,
            segments=segments,
        )

        def rest(stream: Tensor, y: Tensor) -> Tensor:
            x: Tensor = self.attention_norm(stream + self.dropout(y))
            y = self.dropout(self.feed_forward(x))
            out: Tensor = self.feed_forward_norm(x + y)
            return out

        stream = self.site("stream", rest(content, read))
        if query is None or asked is None:
            return stream, None
        return stream, self.site("query_stream", rest(query, asked))


class TwoStream(HasSites):
    r"""XLNet: a language model for every factorization order at once.

    .. math:: \max_\theta \; \mathbb E_{z} \sum_t \log P_\theta(x_{z_t} \mid x_{z_{<t}})

    The content stream :math:`h_i` encodes token :math:`i` and what it may read. The query stream
    :math:`g_i` starts from one learned vector, the same at every place, and knows the place but
    not the token: its last layer predicts it.

    Args:
        config: The description, with ``norm_place="post"``, LayerNorm, and no positions, since
            attention has its own. ``segments`` of 2 gives it vectors for the same and for
            another segment; segment ids may be any integers.

    Attributes:
        mask: The vector with which every query starts.
        head: The output layer, whose weight is the table of tokens unless the description says
            that it is not tied, with a bias.
        sites: ``embedded``, what the first block reads, and ``logits``; with those of the blocks.

    Raises:
        ValueError: If the description has positions, pre-norm, RMSNorm, or a gate.

    Numerics:
        The query stream is computed at the predicted places only: k rows beside n. A token that
        may read nothing gets zero from attention; the published code adds a large negative number
        to all its scores, and so reads the mean of *all* values, its own among them.

    References:
        Z. Yang et al., "XLNet: Generalized Autoregressive Pretraining for Language
        Understanding", arXiv:1906.08237. Recurrence over segments of a text (memory) is left out.

    Book: :doc:`/book/pretraining/denoising`

    Example:
        >>> from companion.pretraining.denoising import rank_masks
        >>> config = TransformerConfig(
        ...     vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9, norm_place="post",
        ...     positions=NoPositions())
        >>> rank = torch.tensor([[2, -1, 0, -1, 1]])
        >>> model = TwoStream(config)
        >>> ids, predict = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[2, 4, 0]])
        >>> model(ids, predict, allowed=rank_masks(rank).query).shape
        torch.Size([1, 3, 7])
    """

    sites = ("embedded", "logits")

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if not isinstance(config.positions, NoPositions):
            raise ValueError("positions must be NoPositions(): attention has its own")
        if config.norm_place != "post" or config.norm != "layer" or config.gated:
            raise ValueError(
                "XLNet has norm_place='post', norm='layer' and no gate, got "
                f"{config.norm_place!r}, {config.norm!r} and {config.activation!r}"
            )
        if config.key_value_heads != config.heads:
            raise ValueError("each head of XLNet has its own keys: leave kv_heads out")
        self.config = config
        self.tokens = nn.Embedding(config.vocab, config.dim)
        self.mask = nn.Parameter(torch.zeros(config.dim))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(TwoStreamBlock(config) for _ in range(config.layers))
        self.head = nn.Linear(config.dim, config.vocab)
        if config.tied:
            self.head.weight = self.tokens.weight

    def untie(self) -> None:
        """Give the output layer a copy of the table of tokens; ``config.tied`` becomes False."""
        if self.config.tied:
            weight = self.head.weight
            self.head.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
            self.config = replace(self.config, tied=False)

    def hidden(
        self,
        ids: Integer[Tensor, "batch n"] | None,
        predict: Integer[Tensor, "batch k"] | None = None,
        *,
        allowed: Allowed | None = None,
        real: Bool[Tensor, "batch n"] | None = None,
        segments: Integer[Tensor, "batch n"] | None = None,
        embeddings: Float[Tensor, "batch n dim"] | None = None,
    ) -> Float[Tensor, "batch k dim"]:
        """Compute what the output layer reads.

        Args:
            ids: Token ids; ``None`` where embeddings are given.
            predict: Which places are predicted, by the query stream. Without it the content stream
                is returned, at all places: an encoder, for use after pre-training.
            allowed: What may be read to predict a token: the query mask of :func:`rank_masks`, or
                a Bool tensor (batch, n, n), ``True`` where token i may read token j. A content
                also reads itself. By default everything may be read.
            real: ``True`` for tokens, ``False`` for padding.
            segments: Segment ids; without them the terms of segments are left out.
            embeddings: Vectors in place of the tokens' own, for the content stream.

        Returns:
            Hidden states of the last layer.

        Raises:
            ValueError: If shapes do not fit or an id is out of range.
        """
        x = self.site("embedded", self._start(ids, embeddings))
        device, (batch, n) = x.device, x.shape[:2]
        if n > self.config.context:
            raise ValueError(f"{n} tokens are more than the context of {self.config.context}")
        if segments is not None:
            check_shape("segments", segments, (batch, n))
            if not self.config.segments:
                raise ValueError("this model has no segments: leave them out")
        rule = self._rule(allowed, real, batch, n, device)
        own = torch.eye(n, dtype=torch.bool, device=device)
        query, asked = None, None
        if predict is not None:
            check_shape("predict", predict, (batch, None))
            check_ids("predict", predict, n)
            predict = predict.long()
            asked = rule.gather(1, predict[..., None].expand(-1, -1, n))[:, None]
            query = self.dropout(self.mask.expand(batch, predict.shape[1], -1))
        encodings = self.dropout(self._encodings(n, x))
        for block in self.blocks:
            x, query = block(
                x,
                query,
                encodings=encodings,
                content_mask=(rule | own)[:, None],
                query_mask=asked,
                predict=predict,
                segments=segments,
            )
        out: Tensor = self.dropout(x if query is None else query)
        return out

    def forward(
        self,
        ids: Integer[Tensor, "batch n"],
        predict: Integer[Tensor, "batch k"] | None = None,
        *,
        allowed: Allowed | None = None,
        real: Bool[Tensor, "batch n"] | None = None,
        segments: Integer[Tensor, "batch n"] | None = None,
    ) -> Float[Tensor, "batch k vocab"]:
        """Compute logits, not normalized; arguments as in :meth:`hidden`."""
        hidden = self.hidden(ids, predict, allowed=allowed, real=real, segments=segments)
        return self.site("logits", self.head(hidden))

    def loss(
        self,
        ids: Integer[Tensor, "batch n"],
        predict: Integer[Tensor, "batch k"],
        *,
        allowed: Allowed | None = None,
        real: Bool[Tensor, "batch n"] | None = None,
        segments: Integer[Tensor, "batch n"] | None = None,
        counts: Bool[Tensor, "batch k"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the predicted tokens, in nats.

        Args:
            ids: As in :meth:`hidden`.
            predict: As in :meth:`hidden`.
            allowed: As in :meth:`hidden`.
            real: As in :meth:`hidden`.
            segments: As in :meth:`hidden`.
            counts: Which of the predictions count; all by default.

        Returns:
            The loss.
        """
        hidden = self.hidden(ids, predict, allowed=allowed, real=real, segments=segments)
        labels = ids.gather(1, predict.long())
        if counts is not None:
            labels = labels.masked_fill(~counts, IGNORE)
        # The bias of the output layer is one more input, which is always 1.
        one = hidden.new_ones(*hidden.shape[:2], 1)
        weight = torch.cat([self.head.weight, self.head.bias[:, None]], 1)
        return linear_cross_entropy(torch.cat([hidden, one], -1), weight.T, labels)

    def _start(self, ids: Tensor | None, embeddings: Tensor | None) -> Tensor:
        """Look up the tokens, or take the vectors that are given in their place."""
        if (ids is None) == (embeddings is None):
            raise ValueError("give ids, or embeddings and None for ids: one of the two")
        if ids is not None:
            check_shape("ids", ids, (None, None))
            check_ids("ids", ids, self.config.vocab)
            # The table takes no narrower integers than these.
            embeddings = self.tokens(ids if ids.dtype in (torch.int32, torch.int64) else ids.long())
        assert embeddings is not None
        check_shape("embeddings", embeddings, (None, None, self.config.dim))
        x: Tensor = self.dropout(embeddings)
        return x

    def _encodings(self, n: int, like: Tensor) -> Tensor:
        """Encode the distances i - j from n - 1 down to -(n - 1), sines first."""
        distance = n - 1 - torch.arange(2 * n - 1, device=like.device)
        dtype = wide_dtype(like.dtype)
        waves = sinusoidal_positions(distance, self.config.dim, dtype=dtype).to(like.dtype)
        return torch.cat((waves[:, 0::2], waves[:, 1::2]), -1)

    def _rule(
        self,
        allowed: Allowed | None,
        real: Tensor | None,
        batch: int,
        n: int,
        device: torch.device,
    ) -> Tensor:
        """What may be read to predict each token, (batch, n, n)."""
        if allowed is None:
            rule = torch.ones(batch, n, n, dtype=torch.bool, device=device)
        elif isinstance(allowed, Mask):
            rule = allowed.dense(n, n, device=device, batch=batch)[:, 0].expand(batch, n, n)
        else:
            check_shape("allowed", allowed, (batch, n, n))
            if allowed.dtype != torch.bool:
                raise ValueError(f"allowed must be Bool, got {allowed.dtype}")
            rule = allowed
        if real is None:
            return rule
        check_shape("real", real, (batch, n))
        if real.dtype != torch.bool:
            raise ValueError(f"real must be Bool, True for tokens, got {real.dtype}")
        return rule & real[:, None, :]
