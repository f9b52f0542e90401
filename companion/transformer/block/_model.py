"""The three models that are stacks of blocks: encoder, decoder, encoder-decoder."""

from dataclasses import replace
from typing import Any

from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from companion.core import check_count, check_shape
from companion.transformer.block._block import AttentionMask, PartFactory
from companion.transformer.block._config import TransformerConfig
from companion.transformer.block._stack import Stack
from companion.transformer.multi_head import KVCache

__all__ = ["Decoder", "Encoder", "EncoderDecoder"]


class Encoder(Stack):
    r"""A stack in which every token reads every other: BERT's form.

    Args:
        config: The description. Parameters are drawn as PyTorch's modules draw them, from the
            global generator; load weights, or initialize them.
        attention: Makes the self-attention of each layer, as for
            :class:`~companion.transformer.block.Block`.
        feed_forward: Makes the feed-forward layer of each, likewise.

    Attributes:
        sites: ``embedded``, the residual stream before the first block, and ``final``, what is
            returned; with those of the blocks, such as ``blocks.0.stream``, for
            :func:`companion.core.watch`.

    References:
        Devlin et al. 2019, arXiv:1810.04805, sec. 3.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> import torch
        >>> from companion.transformer.block import Learned
        >>> config = TransformerConfig(
        ...     vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9, positions=Learned())
        >>> Encoder(config)(torch.tensor([[1, 2, 3, 4, 5]])).shape
        torch.Size([1, 5, 12])
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        attention: PartFactory | None = None,
        feed_forward: PartFactory | None = None,
    ) -> None:
        super().__init__(config, causal=False, attention=attention, feed_forward=feed_forward)

    def forward(
        self,
        ids: Integer[Tensor, "batch n"] | None,
        *,
        real: Bool[Tensor, "batch n"] | None = None,
        segments: Integer[Tensor, "batch n"] | None = None,
        mask: AttentionMask = None,
        positions: Integer[Tensor, " n"] | Integer[Tensor, "batch n"] | None = None,
        embeddings: Float[Tensor, "batch n dim"] | None = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Compute a vector for each token, in its context.

        Args:
            ids: Token ids; ``None`` where embeddings are given.
            real: ``True`` for tokens, ``False`` for padding, which nobody reads.
            segments: Segment ids, for a model with segments.
            mask: A further rule, for example of
                :mod:`companion.transformer.attention`; both must allow a key.
            positions: Where the tokens stand; by default 0, 1, 2, ...
            embeddings: Vectors in place of the tokens' own; those of positions and segments are
                added to them.

        Returns:
            Hidden states. Those at padding mean nothing.

        Raises:
            ValueError: If an id is out of range, the sequence is longer than the context, or a
                shape or dtype does not fit.
        """
        return self.run(
            ids,
            real=real,
            segments=segments,
            mask=mask,
            positions=positions,
            embeddings=embeddings,
        )


class _Head(Stack):
    """A stack that ends in logits over the vocabulary."""

    sites = ("embedded", "final", "logits")

    def __init__(
        self,
        config: TransformerConfig,
        *,
        tokens: nn.Embedding | None = None,
        cross: bool = False,
        attention: PartFactory | None = None,
        feed_forward: PartFactory | None = None,
    ) -> None:
        super().__init__(
            config,
            causal=True,
            tokens=tokens,
            cross=cross,
            attention=attention,
            feed_forward=feed_forward,
        )
        self.head = nn.Linear(config.dim, config.vocab, bias=False)
        if config.tied:
            self.head.weight = self.tokens.weight

    def untie(self) -> None:
        """Give the output layer a copy of the table of tokens, in place.

        ``config.tied`` is False afterwards, so a model built from the configuration has room for
        both. Nothing happens to a model that is not tied.
        """
        if self.config.tied:
            weight = self.head.weight
            self.head.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
            self.config = replace(self.config, tied=False)

    def _finish(self, x: Tensor) -> Tensor:
        # Scaling what the output layer reads scales the logits, and costs less.
        scale = self.config.logit_scale
        return super()._finish(x) if scale == 1 else scale * super()._finish(x)

    def cache(self, batch: int, capacity: int) -> KVCache:
        """Reserve the cache for decoding.

        Args:
            batch: Sequences side by side.
            capacity: Most tokens of each, prompt included; at most the context.

        Returns:
            An empty cache on the model's device, in its dtype.
        """
        check_count("batch", batch)
        check_count("capacity", capacity, high=self.config.context)
        return self._join("attention", batch, capacity)

    def _join(self, part: str, batch: int, capacity: int) -> KVCache:
        """The caches of one part of all blocks."""
        # Not the table of tokens, which need not be held in floating point.
        weight, made = next(self.parameters()), []
        for block in self.blocks:
            layer: Any = getattr(block, part)
            if not hasattr(layer, "make_cache"):
                raise ValueError(
                    f"{type(layer).__name__} has no method make_cache, so this model cannot decode "
                    "with a cache"
                )
            made.append(layer.make_cache(batch, capacity, device=weight.device, dtype=weight.dtype))
        return KVCache.of(made, capacity=capacity)

    def _logits(self, hidden: Tensor, last: int | None) -> Tensor:
        if last is not None:
            check_count("last", last, high=hidden.shape[1])
            hidden = hidden[:, -last:]
        return self.site("logits", self.head(hidden))


class Decoder(_Head):
    r"""A stack in which a token reads itself and the past, and predicts the next: a language model.

    Logits at position :math:`t` score the token at :math:`t + 1`.

    Args:
        config: The description. Parameters are drawn as PyTorch's modules draw them, from the
            global generator; load weights, or initialize them.
        attention: Makes the self-attention of each layer, as for
            :class:`~companion.transformer.block.Block`.
        feed_forward: Makes the feed-forward layer of each, likewise.

    Attributes:
        sites: ``embedded``, the residual stream before the first block, ``final``, what the last
            norm returns, and ``logits``; with those of the blocks, such as ``blocks.0.stream``,
            for :func:`companion.core.watch`.

    References:
        Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; Touvron et al.
        2023, arXiv:2302.13971.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> import torch
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> Decoder(config)(torch.tensor([[1, 2, 3, 4, 5]])).shape
        torch.Size([1, 5, 7])
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        attention: PartFactory | None = None,
        feed_forward: PartFactory | None = None,
    ) -> None:
        super().__init__(config, attention=attention, feed_forward=feed_forward)

    def forward(
        self,
        ids: Integer[Tensor, "batch n"] | None,
        *,
        real: Bool[Tensor, "batch m"] | None = None,
        cache: KVCache | None = None,
        mask: AttentionMask = None,
        positions: Integer[Tensor, " n"] | Integer[Tensor, "batch n"] | None = None,
        embeddings: Float[Tensor, "batch n dim"] | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "batch kept vocab"]:
        """Compute the logits of the next token at each position.

        Args:
            ids: Token ids; with a cache, only those that are new. ``None`` where embeddings are
                given.
            real: ``True`` for tokens, ``False`` for padding on the left. With a cache it covers
                what is held as well.
            cache: From :meth:`cache`; it is filled.
            mask: A further rule; it and causality must both allow a key. A Mask speaks of the
                whole text, with a cache as without; a Bool tensor has a row for each new token.
            positions: Where the tokens stand; by default 0, 1, 2, ... from the first real one.
                Packed documents count from 0 each.
            embeddings: Vectors in place of the tokens' own.
            last: Compute logits for the last positions only; for all by default.

        Returns:
            Logits, not normalized.

        Raises:
            ValueError: If an id is out of range, the sequence is longer than the context, the
                cache overflows, or a shape or dtype does not fit.
        """
        hidden = self.hidden(
            ids, real=real, cache=cache, mask=mask, positions=positions, embeddings=embeddings
        )
        return self._logits(hidden, last)

    def hidden(
        self,
        ids: Integer[Tensor, "batch n"] | None,
        *,
        real: Bool[Tensor, "batch m"] | None = None,
        cache: KVCache | None = None,
        mask: AttentionMask = None,
        positions: Integer[Tensor, " n"] | Integer[Tensor, "batch n"] | None = None,
        embeddings: Float[Tensor, "batch n dim"] | None = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Compute what the output layer reads.

        Args:
            ids: As in :meth:`forward`.
            real: As in :meth:`forward`.
            cache: As in :meth:`forward`.
            mask: As in :meth:`forward`.
            positions: As in :meth:`forward`.
            embeddings: As in :meth:`forward`.

        Returns:
            Hidden states after the final norm: ``forward`` is ``head`` of these.
        """
        return self.run(
            ids, real=real, cache=cache, mask=mask, positions=positions, embeddings=embeddings
        )


class _CrossStack(_Head):
    """A decoder whose blocks also read the encoder's output."""

    def context_cache(self, batch: int, capacity: int) -> KVCache:
        """Reserve the cache for keys and values of the encoder's output."""
        check_count("batch", batch)
        check_count("source", capacity, high=self.config.context)
        return self._join("cross", batch, capacity)


class EncoderDecoder(nn.Module):
    r"""An encoder reads the source; a decoder reads it and its own past, and writes the target.

    Both sides share the table of token embeddings.

    Args:
        config: The description of either side; ``layers`` counts the blocks of each.
        attention: Makes the self-attention of each layer of the encoder, as for
            :class:`~companion.transformer.block.Block`.
        feed_forward: Makes the feed-forward layer of each, likewise.
        decoder_attention: The same for the decoder, whose attention must not look ahead.
        decoder_feed_forward: The same for the decoder.

    References:
        Vaswani et al. 2017, arXiv:1706.03762, sec. 3.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> import torch
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> model = EncoderDecoder(config)
        >>> model(torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5]])).shape
        torch.Size([1, 2, 7])
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        attention: PartFactory | None = None,
        feed_forward: PartFactory | None = None,
        decoder_attention: PartFactory | None = None,
        decoder_feed_forward: PartFactory | None = None,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(config, attention=attention, feed_forward=feed_forward)
        self.decoder = _CrossStack(
            config,
            tokens=self.encoder.tokens,
            cross=True,
            attention=decoder_attention,
            feed_forward=decoder_feed_forward,
        )

    @property
    def config(self) -> TransformerConfig:
        """The description: that of the decoder, which also says whether the head is tied."""
        return self.decoder.config

    def forward(
        self,
        source: Integer[Tensor, "batch m"] | Float[Tensor, "batch ..."],
        target: Integer[Tensor, "batch n"],
        *,
        source_real: Bool[Tensor, "batch m"] | None = None,
        target_real: Bool[Tensor, "batch n"] | None = None,
    ) -> Float[Tensor, "batch n vocab"]:
        """Compute the logits of the next target token at each target position.

        Args:
            source: Token ids to read, or what else :meth:`encode` takes.
            target: Token ids written so far, the start token first.
            source_real: ``True`` for source tokens, ``False`` for padding.
            target_real: The same for the target.

        Returns:
            Logits, not normalized.

        Raises:
            ValueError: If an id is out of range, a sequence is longer than the context, or a shape
                or dtype does not fit.
        """
        hidden = self.hidden(source, target, source_real=source_real, target_real=target_real)
        return self.decoder._logits(hidden, None)

    def hidden(
        self,
        source: Integer[Tensor, "batch m"] | Float[Tensor, "batch ..."],
        target: Integer[Tensor, "batch n"],
        *,
        source_real: Bool[Tensor, "batch m"] | None = None,
        target_real: Bool[Tensor, "batch n"] | None = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Compute what the output layer reads.

        Args:
            source: As in :meth:`forward`.
            target: As in :meth:`forward`.
            source_real: As in :meth:`forward`.
            target_real: As in :meth:`forward`.

        Returns:
            Hidden states at the target positions: ``forward`` is ``decoder.head`` of these.
        """
        memory = self.encode(source, real=source_real)
        return self._read(target, memory, memory_real=source_real, real=target_real, cache=None)

    def source_length(self, source: Tensor) -> int:
        """How many positions of :meth:`encode` a source takes; models of other sources say more.

        Args:
            source: What :meth:`encode` reads.

        Returns:
            The number of tokens.

        Raises:
            ValueError: If it is no batch of sequences.
        """
        check_shape("source", source, (None, None))
        return source.shape[1]

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
        output = self._read(target, memory, memory_real=memory_real, real=real, cache=cache)
        return self.decoder._logits(output, last)

    def _read(
        self,
        target: Tensor,
        memory: Tensor,
        *,
        memory_real: Tensor | None,
        real: Tensor | None,
        cache: tuple[KVCache, KVCache] | None,
    ) -> Tensor:
        """Pass the target through the decoder, which reads the memory."""
        own, other = (None, None) if cache is None else cache
        if memory_real is not None:
            check_shape("memory_real", memory_real, tuple(memory.shape[:2]))
            memory_real = memory_real[:, None, None, :]
        return self.decoder.run(
            target,
            real=real,
            cache=own,
            context=memory,
            context_mask=memory_real,
            context_cache=other,
        )

    def cache(self, batch: int, capacity: int, *, source: int) -> tuple[KVCache, KVCache]:
        """Reserve the caches for decoding.

        Args:
            batch: Sequences side by side.
            capacity: Most target tokens.
            source: Source tokens.

        Returns:
            The cache of the target's own past, and that of the source.
        """
        return self.decoder.cache(batch, capacity), self.decoder.context_cache(batch, source)
