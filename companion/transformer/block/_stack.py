"""Embeddings, a stack of blocks, and the masks that hold for all of them."""

from functools import partial

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from companion.core import HasSites, can_read, check_count, check_ids, check_shape
from companion.transformer.attention import Mask, causal
from companion.transformer.block._block import (
    AttentionMask,
    Block,
    PartFactory,
    dropout_of,
    norm_of,
)
from companion.transformer.block._config import (
    AlibiBias,
    Learned,
    Rope,
    Shaw,
    Sinusoidal,
    T5Buckets,
    TransformerConfig,
)
from companion.transformer.multi_head import KVCache
from companion.transformer.positions import (
    Alibi,
    LearnedPositions,
    Rotary,
    SinusoidalPositions,
    T5Bias,
    rotate,
)

__all__ = ["Stack"]


class Stack(HasSites):
    """Embeddings, blocks, and the final norm of a pre-norm model.

    Its sites are ``embedded``, the residual stream before the first block, and ``final``, what the
    last norm returns.
    """

    sites: tuple[str, ...] = ("embedded", "final")

    def __init__(
        self,
        config: TransformerConfig,
        *,
        causal: bool,
        tokens: nn.Embedding | None = None,
        cross: bool = False,
        attention: PartFactory | None = None,
        feed_forward: PartFactory | None = None,
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
        self.embedding_norm = norm_of(config) if config.embedding_norm else None
        self.dropout = dropout_of(config)
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
        self.blocks = nn.ModuleList(
            Block(config, cross=cross, attention=attention, feed_forward=feed_forward, layer=layer)
            for layer in range(config.layers)
        )
        self.final_norm = norm_of(config) if config.norm_place == "pre" else None

    def embed(
        self,
        ids: Integer[Tensor, "batch n"] | None,
        positions: Integer[Tensor, " n"] | Integer[Tensor, "batch n"],
        segments: Integer[Tensor, "batch n"] | None = None,
        *,
        embeddings: Float[Tensor, "batch n dim"] | None = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Sum the embeddings of tokens, positions and segments, and normalize where BERT does.

        Args:
            ids: Token ids, unless embeddings are given.
            positions: Where the tokens stand.
            segments: Which segment each belongs to; 0 by default.
            embeddings: Vectors in place of the tokens' own.

        Returns:
            The residual stream before the first block.
        """
        if embeddings is not None:
            x: Tensor = embeddings
        else:
            assert ids is not None  # run() has checked that one of the two is given
            # The table takes no narrower integers than these.
            x = self.tokens(ids if ids.dtype in (torch.int32, torch.int64) else ids.long())
        if self.segments is not None:
            # Row 0 serves every token when no segments are given.
            x = x + (self.segments.weight[0] if segments is None else self.segments(segments))
        if isinstance(self.positions, SinusoidalPositions):
            x = x + self.positions(positions, dtype=x.dtype)
        elif self.positions is not None:
            x = x + self.positions(positions)
        x = x if self.embedding_norm is None else self.embedding_norm(x)
        return x if self.dropout is None else self.dropout(x)

    def _check(
        self,
        ids: Tensor | None,
        embeddings: Tensor | None,
        held: int,
        segments: Tensor | None,
        positions: Tensor | None,
    ) -> Tensor:
        """Refuse inputs that do not fit; return the one that stands for the tokens."""
        if (ids is None) == (embeddings is None):
            raise ValueError("give ids, or embeddings and None for ids: one of the two")
        if ids is not None:
            given = ids
            check_shape("ids", ids, (None, None))
            check_ids("ids", ids, self.config.vocab)
        else:
            assert embeddings is not None
            given = embeddings
            check_shape("embeddings", embeddings, (None, None, self.config.dim))
        batch, n = given.shape[:2]
        check_count("tokens of each sequence", n)
        if held + n > self.config.context:
            before = f" after {held} in the cache" if held else ""
            raise ValueError(
                f"{n} tokens{before} are more than the model's context "
                f"of {self.config.context}: shorten the input"
            )
        if segments is not None:
            if self.segments is None:
                raise ValueError("this model has no segments: leave them out")
            check_shape("segments", segments, (batch, n))
            check_ids("segments", segments, self.config.segments)
        if positions is not None:
            if isinstance(self.config.positions, AlibiBias | T5Buckets | Shaw):
                raise ValueError(
                    f"{type(self.config.positions).__name__} counts distances in the sequence "
                    "itself: leave positions out"
                )
            check_shape("positions", positions, (n,) if positions.ndim == 1 else (batch, n))
            check_ids("positions", positions, self.config.context)
        return given

    def run(
        self,
        ids: Tensor | None,
        *,
        real: Tensor | None = None,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        embeddings: Tensor | None = None,
        cache: KVCache | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        context_cache: KVCache | None = None,
        mask: AttentionMask = None,
    ) -> Tensor:
        """Embed, and pass through all blocks and the final norm."""
        for given in (cache, context_cache):
            if given is not None and len(given.layers) != len(self.blocks):
                raise ValueError(
                    f"the cache has {len(given.layers)} layers, and the model {len(self.blocks)}: "
                    "make it with the model's cache method"
                )
        held = 0 if cache is None else cache.length
        tokens = self._check(ids, embeddings, held, segments, positions)
        batch, n = tokens.shape[:2]
        device = tokens.device
        m = held + n
        places = torch.arange(held, m, device=device)
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
        if positions is not None:
            rows = positions
        x = self.site("embedded", self.embed(ids, rows, segments, embeddings=embeddings))
        if isinstance(mask, Tensor):
            _check_mask(mask, (batch, self.config.heads, n, m))
        elif mask is not None and held:
            mask = mask.shifted(held)  # its rule speaks of whole texts, and n queries are new
        mask = _combine(mask, self._mask(real, n, held, device), n, m, device)

        rotation, bias = None, None
        if self.rotary is not None:
            angles = self.rotary(rows, dtype=x.dtype)
            rotation = partial(
                rotate, rotation=angles, interleaved=self.rotary.interleaved, head_axis=2
            )
        if self.bias is not None:
            bias = self.bias(places, torch.arange(m, device=device)).to(x.dtype)

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
            )
        return self._finish(x)

    def _finish(self, x: Tensor) -> Tensor:
        return self.site("final", x if self.final_norm is None else self.final_norm(x))

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
