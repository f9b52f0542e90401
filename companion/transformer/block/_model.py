"""Blocks and the three models that are stacks of them: encoder, decoder, encoder-decoder."""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from companion.core import can_read, check_count, check_ids, check_shape
from companion.transformer.attention import Mask, causal
from companion.transformer.block._config import (
    AlibiBias,
    Learned,
    Rope,
    Shaw,
    Sinusoidal,
    T5Buckets,
    TransformerConfig,
)
from companion.transformer.block._feed_forward import FeedForward, GatedFeedForward
from companion.transformer.block._norms import LayerNorm, RMSNorm
from companion.transformer.multi_head import KVCache, LayerCache, MultiHeadAttention
from companion.transformer.multi_head._attention import Rotation
from companion.transformer.positions import (
    Alibi,
    LearnedPositions,
    Rotary,
    ShawRelative,
    SinusoidalPositions,
    T5Bias,
    rotate,
)

__all__ = ["Block", "Decoder", "Encoder", "EncoderDecoder", "Trace"]

AttentionMask = Mask | Bool[Tensor, "..."] | None


@dataclass(frozen=True, eq=False)
class Trace:
    """What a model computed on the way.

    Attributes:
        output: What its ``forward`` returns.
        hidden: The residual stream before the first block and after each: ``layers + 1`` tensors
            (batch, n, dim), none of them past the final norm.
        attention: The attention weights of each block, ``layers`` tensors (batch, heads, n, m).
    """

    output: Tensor
    hidden: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]


def _norm(config: TransformerConfig) -> nn.Module:
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
        relative=relative,
    )


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
        >>> config = TransformerConfig(vocab=7, dim=12, layers=1, heads=3, ff_dim=31, context=9)
        >>> Block(config)(torch.ones(2, 5, 12)).shape
        torch.Size([2, 5, 12])
    """

    def __init__(self, config: TransformerConfig, *, cross: bool = False) -> None:
        super().__init__()
        self.pre = config.norm_place == "pre"
        self.attention = _attention(config, self_attention=True)
        self.attention_norm = _norm(config)
        self.cross = _attention(config, self_attention=False) if cross else None
        self.cross_norm = _norm(config) if cross else None
        kind = GatedFeedForward if config.gated else FeedForward
        self.feed_forward: nn.Module = kind(
            config.dim, config.ff_dim, activation=config.ff_activation, bias=config.ff_bias
        )
        self.feed_forward_norm = _norm(config)

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
        x = x + y if self.pre else self.attention_norm(x + y)

        if self.cross is not None and self.cross_norm is not None:
            read = self.cross_norm(x) if self.pre else x
            y = self.cross(read, context, mask=context_mask, cache=context_cache)
            x = x + y if self.pre else self.cross_norm(x + y)

        if self.pre:
            out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        else:
            out = self.feed_forward_norm(x + self.feed_forward(x))
        return out


class _Stack(nn.Module):
    """Embeddings, blocks, and the final norm of a pre-norm model."""

    def __init__(
        self, config: TransformerConfig, *, causal: bool, tokens: nn.Embedding | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.causal = causal
        self.tokens = nn.Embedding(config.vocab, config.dim) if tokens is None else tokens
        places = config.positions
        self.positions: nn.Module | None = None
        if isinstance(places, Learned):
            self.positions = LearnedPositions(config.context, config.dim, offset=places.offset)
        elif isinstance(places, Sinusoidal):
            self.positions = SinusoidalPositions(config.dim, base=places.base)
        self.segments = nn.Embedding(config.segments, config.dim) if config.segments else None
        self.embedding_norm = _norm(config) if config.embedding_norm else None
        self.rotary = (
            Rotary(
                config.head_width,
                base=places.base,
                scaling=places.scaling,
                interleaved=places.interleaved,
            )
            if isinstance(places, Rope)
            else None
        )
        self.bias: nn.Module | None = None
        if isinstance(places, AlibiBias):
            self.bias = Alibi(config.heads)
        elif isinstance(places, T5Buckets):
            self.bias = T5Bias(
                config.heads,
                buckets=places.buckets,
                max_distance=places.max_distance,
                bidirectional=not causal,
            )
        self.blocks = nn.ModuleList(self._block() for _ in range(config.layers))
        self.final_norm = _norm(config) if config.norm_place == "pre" else None

    def _block(self) -> Block:
        return Block(self.config)

    def embed(
        self,
        ids: Integer[Tensor, "batch n"],
        positions: Integer[Tensor, " n"] | Integer[Tensor, "batch n"],
        segments: Integer[Tensor, "batch n"] | None = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Sum the embeddings of tokens, positions and segments, and normalize where BERT does.

        Args:
            ids: Token ids.
            positions: Where the tokens stand.
            segments: Which segment each belongs to; 0 by default.

        Returns:
            The residual stream before the first block.
        """
        # The table takes no narrower integers than these.
        x: Tensor = self.tokens(ids if ids.dtype in (torch.int32, torch.int64) else ids.long())
        if self.segments is not None:
            # Row 0 serves every token when no segments are given.
            x = x + (self.segments.weight[0] if segments is None else self.segments(segments))
        if isinstance(self.positions, SinusoidalPositions):
            x = x + self.positions(positions, dtype=x.dtype)
        elif self.positions is not None:
            x = x + self.positions(positions)
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def _check(self, ids: Tensor, held: int, segments: Tensor | None) -> None:
        check_shape("ids", ids, (None, None))
        check_count("tokens of each sequence", ids.shape[1])
        check_ids("ids", ids, self.config.vocab)
        end = held + ids.shape[1]
        if end > self.config.context:
            before = f" after {held} in the cache" if held else ""
            raise ValueError(
                f"{ids.shape[1]} tokens{before} are more than the model's context "
                f"of {self.config.context}: shorten the input"
            )
        if segments is not None:
            if self.segments is None:
                raise ValueError("this model has no segments: leave them out")
            check_shape("segments", segments, tuple(ids.shape))
            check_ids("segments", segments, self.config.segments)

    def run(
        self,
        ids: Tensor,
        *,
        real: Tensor | None = None,
        segments: Tensor | None = None,
        cache: KVCache | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        context_cache: KVCache | None = None,
        mask: AttentionMask = None,
        hidden: list[Tensor] | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """Embed, and pass through all blocks and the final norm."""
        for given in (cache, context_cache):
            if given is not None and len(given.layers) != len(self.blocks):
                raise ValueError(
                    f"the cache has {len(given.layers)} layers, and the model {len(self.blocks)}: "
                    "make it with the model's cache method"
                )
        held = 0 if cache is None else cache.length
        self._check(ids, held, segments)
        batch, n = ids.shape
        m = held + n
        places = torch.arange(held, m, device=ids.device)
        rows: Tensor = places
        if real is not None:
            check_shape("real", real, (batch, m))
            if real.dtype != torch.bool:
                raise ValueError(
                    f"real must be boolean, True for tokens, False for padding, got {real.dtype}"
                )
            if self.causal:
                # Padding on the left takes no position; tokens count from their first.
                rows = (real.long().cumsum(1) - 1).clamp(min=0)[:, held:]
        x = self.embed(ids, rows, segments)
        if isinstance(mask, Tensor):
            _check_mask(mask, (batch, self.config.heads, n, m))
        elif mask is not None and held:
            mask = mask.shifted(held)  # its rule speaks of whole texts, and n queries are new
        mask = _combine(mask, self._mask(real, n, held, ids.device), n, m, ids.device)

        rotation, bias = None, None
        if self.rotary is not None:
            angles = self.rotary(rows, dtype=x.dtype)
            rotation = partial(
                rotate, rotation=angles, interleaved=self.rotary.interleaved, head_axis=2
            )
        if self.bias is not None:
            bias = self.bias(places, torch.arange(m, device=ids.device)).to(x.dtype)

        if hidden is not None:
            hidden.append(x)
        for index, block in enumerate(self.blocks):
            x = block(
                x,
                context,
                mask=mask,
                bias=bias,
                rotation=rotation,
                cache=None if cache is None else cache.layers[index],
                context_mask=context_mask,
                context_cache=None if context_cache is None else context_cache.layers[index],
                weights=weights,
            )
            if hidden is not None:
                hidden.append(x)
        return x if self.final_norm is None else self.final_norm(x)

    def _mask(
        self, real: Tensor | None, n: int, held: int, device: torch.device
    ) -> Mask | Tensor | None:
        """Join causality and padding, once for all layers."""
        if real is not None and can_read(real) and bool(real.all()):
            real = None
        padded = None if real is None else real[:, None, None, :]
        if not self.causal:
            return padded
        if padded is None and n == 1:
            return None  # one new token reads all that came before
        rule = causal(offset=held)
        if padded is None and held == 0:
            return rule
        past = rule.dense(n, held + n, device=device)
        return past if padded is None else past & padded


def _check_mask(mask: Tensor, scores: tuple[int, ...]) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be Bool, True where a key may be read, got {mask.dtype}")
    shape = tuple(mask.shape)
    fits = len(shape) <= 4 and all(
        have in (1, want) for have, want in zip(reversed(shape), reversed(scores), strict=False)
    )
    if not fits:
        raise ValueError(f"mask of shape {shape} does not broadcast to the scores' {scores}")


def _combine(
    mask: AttentionMask, own: Mask | Tensor | None, n: int, m: int, device: torch.device
) -> Mask | Tensor | None:
    """Join a caller's mask and the model's own."""
    if mask is None or own is None:
        return own if mask is None else mask
    if isinstance(mask, Mask) and isinstance(own, Mask):
        return mask & own
    first = mask.dense(n, m, device=device) if isinstance(mask, Mask) else mask
    second = own.dense(n, m, device=device) if isinstance(own, Mask) else own
    return first & second


class Encoder(_Stack):
    r"""A stack in which every token reads every other: BERT's form.

    Args:
        config: The description. Parameters are drawn as PyTorch's modules draw them, from the
            global generator; load weights, or initialize them.

    References:
        Devlin et al. 2019, arXiv:1810.04805, sec. 3.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> config = TransformerConfig(
        ...     vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9, positions=Learned())
        >>> Encoder(config)(torch.tensor([[1, 2, 3, 4, 5]])).shape
        torch.Size([1, 5, 12])
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config, causal=False)

    def forward(
        self,
        ids: Integer[Tensor, "batch n"],
        *,
        real: Bool[Tensor, "batch n"] | None = None,
        segments: Integer[Tensor, "batch n"] | None = None,
        mask: AttentionMask = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Compute a vector for each token, in its context.

        Args:
            ids: Token ids.
            real: ``True`` for tokens, ``False`` for padding, which nobody reads.
            segments: Segment ids, for a model with segments.
            mask: A further rule, for example of
                :mod:`companion.transformer.attention`; both must allow a key.

        Returns:
            Hidden states. Those at padding mean nothing.

        Raises:
            ValueError: If an id is out of range, the sequence is longer than the context, or a
                shape or dtype does not fit.
        """
        return self.run(ids, real=real, segments=segments, mask=mask)

    def trace(
        self,
        ids: Integer[Tensor, "batch n"],
        *,
        real: Bool[Tensor, "batch n"] | None = None,
        segments: Integer[Tensor, "batch n"] | None = None,
        mask: AttentionMask = None,
    ) -> Trace:
        """Compute the same, and keep every layer's residual stream and attention weights.

        Args:
            ids: As in :meth:`forward`.
            real: As in :meth:`forward`.
            segments: As in :meth:`forward`.
            mask: As in :meth:`forward`.

        Returns:
            Output, residual streams and weights.
        """
        hidden: list[Tensor] = []
        weights: list[Tensor] = []
        output = self.run(
            ids, real=real, segments=segments, mask=mask, hidden=hidden, weights=weights
        )
        return Trace(output, tuple(hidden), tuple(weights))


class _Head(_Stack):
    """A stack that ends in logits over the vocabulary."""

    def __init__(self, config: TransformerConfig, *, tokens: nn.Embedding | None = None) -> None:
        super().__init__(config, causal=True, tokens=tokens)
        self.head = nn.Linear(config.dim, config.vocab, bias=False)
        if config.tied:
            self.head.weight = self.tokens.weight

    def cache(self, batch: int, capacity: int) -> KVCache:
        """Reserve the cache for decoding.

        Args:
            batch: Sequences side by side.
            capacity: Most tokens of each, prompt included; at most the context.

        Returns:
            An empty cache on the model's device, in its dtype.
        """
        check_count("capacity", capacity, high=self.config.context)
        weight = self.tokens.weight
        return KVCache(
            self.config.layers,
            batch,
            self.config.key_value_heads,
            capacity,
            self.config.head_width,
            device=weight.device,
            dtype=weight.dtype,
        )

    def _logits(self, hidden: Tensor, last: int | None) -> Tensor:
        if last is not None:
            check_count("last", last, high=hidden.shape[1])
            hidden = hidden[:, -last:]
        logits: Tensor = self.head(hidden)
        return logits


class Decoder(_Head):
    r"""A stack in which a token reads itself and the past, and predicts the next: a language model.

    Logits at position :math:`t` score the token at :math:`t + 1`.

    Args:
        config: The description. Parameters are drawn as PyTorch's modules draw them, from the
            global generator; load weights, or initialize them.

    References:
        Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; Touvron et al.
        2023, arXiv:2302.13971.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> Decoder(config)(torch.tensor([[1, 2, 3, 4, 5]])).shape
        torch.Size([1, 5, 7])
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)

    def forward(
        self,
        ids: Integer[Tensor, "batch n"],
        *,
        real: Bool[Tensor, "batch m"] | None = None,
        cache: KVCache | None = None,
        mask: AttentionMask = None,
        last: int | None = None,
    ) -> Float[Tensor, "batch kept vocab"]:
        """Compute the logits of the next token at each position.

        Args:
            ids: Token ids; with a cache, only those that are new.
            real: ``True`` for tokens, ``False`` for padding on the left. With a cache it covers
                what is held as well.
            cache: From :meth:`cache`; it is filled.
            mask: A further rule; it and causality must both allow a key. A Mask speaks of the
                whole text, with a cache as without; a Bool tensor has a row for each new token.
            last: Compute logits for the last positions only; for all by default.

        Returns:
            Logits, not normalized.

        Raises:
            ValueError: If an id is out of range, the sequence is longer than the context, the
                cache overflows, or a shape or dtype does not fit.
        """
        return self._logits(self.run(ids, real=real, cache=cache, mask=mask), last)

    def hidden(
        self,
        ids: Integer[Tensor, "batch n"],
        *,
        real: Bool[Tensor, "batch m"] | None = None,
        cache: KVCache | None = None,
        mask: AttentionMask = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Compute what the output layer reads.

        Args:
            ids: As in :meth:`forward`.
            real: As in :meth:`forward`.
            cache: As in :meth:`forward`.
            mask: As in :meth:`forward`.

        Returns:
            Hidden states after the final norm: ``forward`` is ``head`` of these.
        """
        return self.run(ids, real=real, cache=cache, mask=mask)

    def trace(
        self,
        ids: Integer[Tensor, "batch n"],
        *,
        real: Bool[Tensor, "batch n"] | None = None,
        mask: AttentionMask = None,
    ) -> Trace:
        """Compute the logits, and keep every layer's residual stream and attention weights.

        Args:
            ids: As in :meth:`forward`.
            real: As in :meth:`forward`.
            mask: As in :meth:`forward`.

        Returns:
            Logits, residual streams and weights.
        """
        hidden: list[Tensor] = []
        weights: list[Tensor] = []
        output = self.run(ids, real=real, mask=mask, hidden=hidden, weights=weights)
        return Trace(self._logits(output, None), tuple(hidden), tuple(weights))


class _CrossStack(_Head):
    """A decoder whose blocks also read the encoder's output."""

    def _block(self) -> Block:
        return Block(self.config, cross=True)


class EncoderDecoder(nn.Module):
    r"""An encoder reads the source; a decoder reads it and its own past, and writes the target.

    Both sides share the table of token embeddings.

    Args:
        config: The description of either side; ``layers`` counts the blocks of each.

    References:
        Vaswani et al. 2017, arXiv:1706.03762, sec. 3.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> model = EncoderDecoder(config)
        >>> model(torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5]])).shape
        torch.Size([1, 2, 7])
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = _CrossStack(config, tokens=self.encoder.tokens)

    def forward(
        self,
        source: Integer[Tensor, "batch m"],
        target: Integer[Tensor, "batch n"],
        *,
        source_real: Bool[Tensor, "batch m"] | None = None,
        target_real: Bool[Tensor, "batch n"] | None = None,
    ) -> Float[Tensor, "batch n vocab"]:
        """Compute the logits of the next target token at each target position.

        Args:
            source: Token ids to read.
            target: Token ids written so far, the start token first.
            source_real: ``True`` for source tokens, ``False`` for padding.
            target_real: The same for the target.

        Returns:
            Logits, not normalized.

        Raises:
            ValueError: If an id is out of range, a sequence is longer than the context, or a shape
                or dtype does not fit.
        """
        memory = self.encode(source, real=source_real)
        return self.decode(target, memory, memory_real=source_real, real=target_real)

    def encode(
        self, source: Integer[Tensor, "batch m"], *, real: Bool[Tensor, "batch m"] | None = None
    ) -> Float[Tensor, "batch m dim"]:
        """Read the source.

        Args:
            source: Token ids.
            real: ``True`` for tokens, ``False`` for padding.

        Returns:
            The encoder's hidden states.
        """
        memory: Tensor = self.encoder(source, real=real)
        return memory

    def decode(
        self,
        target: Integer[Tensor, "batch n"],
        memory: Float[Tensor, "batch m dim"],
        *,
        memory_real: Bool[Tensor, "batch m"] | None = None,
        real: Bool[Tensor, "batch held"] | None = None,
        cache: tuple[KVCache, KVCache] | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "batch kept vocab"]:
        """Score the next target token, given the encoded source.

        Args:
            target: Token ids; with a cache, only those that are new.
            memory: What :meth:`encode` returned.
            memory_real: ``True`` for source tokens, ``False`` for padding.
            real: ``True`` for target tokens; with a cache for all of them.
            cache: From :meth:`cache`: for the target, and for the source.
            last: Compute logits for the last positions only.

        Returns:
            Logits, not normalized.
        """
        own, other = (None, None) if cache is None else cache
        if memory_real is not None:
            check_shape("memory_real", memory_real, tuple(memory.shape[:2]))
            memory_real = memory_real[:, None, None, :]
        output = self.decoder.run(
            target,
            real=real,
            cache=own,
            context=memory,
            context_mask=memory_real,
            context_cache=other,
        )
        return self.decoder._logits(output, last)

    def cache(self, batch: int, capacity: int, *, source: int) -> tuple[KVCache, KVCache]:
        """Reserve the caches for decoding.

        Args:
            batch: Sequences side by side.
            capacity: Most target tokens.
            source: Source tokens.

        Returns:
            The cache of the target's own past, and that of the source.
        """
        return self.decoder.cache(batch, capacity), self.decoder.cache(batch, source)
