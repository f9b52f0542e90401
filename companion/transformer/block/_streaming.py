r"""Decoding without end: a cache of the first tokens and the latest ones.

The definition of what it computes, all tokens of a text at once, is in
:func:`companion.transformer.block.streaming_logits`.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import check_count, wide_dtype
from companion.transformer.block._model import Decoder
from companion.transformer.block._streams import check_positions
from companion.transformer.multi_head import KVCache, LayerCache
from companion.transformer.positions import DynamicNTKScaling, Rotary, rotate

__all__ = ["StreamingCache", "StreamingLayer"]


class StreamingLayer(LayerCache):
    r"""Sinks and latest tokens of one layer.

    The memory is a strip of slots, and a key in slot :math:`p` is rotated to position :math:`p`.
    New tokens go to the next free slot. Once more than sinks and window are held, the sinks move
    along: they are written, rotated anew, into the slots right before the window, over the tokens
    that have left it. So what is held is always one contiguous piece of the strip, and positions
    count within it, as if the tokens in between had never been. At the end of the strip the window
    moves back to its beginning.

    Args:
        keys: The strip, shape (batch, kv_heads, slots, head_dim).
        values: The same for values.
        sinks: First tokens that stay.
        window: Latest tokens that stay.
        angles: Cosines and sines for every slot, shape (slots, head_dim) each, or ``None`` for a
            model without rotary positions.
        interleaved: Which components of a key form a pair.

    Attributes:
        length: Position of the next token.

    Book: :doc:`/book/transformer/cost`
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        *,
        sinks: int,
        window: int,
        angles: tuple[Tensor, Tensor] | None = None,
        interleaved: bool = False,
    ) -> None:
        super().__init__(keys, values)
        self.sinks = sinks
        self.window = window
        self.angles = angles
        self.interleaved = interleaved
        # What is held lies in the slots from start to end.
        self._start = 0
        self._end = 0
        # Whether a token was let go of.
        self._lost = False
        # The sinks as they came, rotated to their first positions: copies to rotate from.
        self._sink_keys = keys.new_zeros(*keys.shape[:2], sinks, keys.shape[3])
        self._sink_values = values.new_zeros(*values.shape[:2], sinks, values.shape[3])

    def append(
        self,
        keys: Float[Tensor, "batch kv_heads new head_dim"],
        values: Float[Tensor, "batch kv_heads new value_dim"],
    ) -> tuple[
        Float[Tensor, "batch kv_heads held head_dim"],
        Float[Tensor, "batch kv_heads held value_dim"],
    ]:
        """Store new tokens, and let go of the oldest that are neither sinks nor in the window.

        Args:
            keys: Keys of the new tokens, rotated to the positions from ``length`` on.
            values: Their values.

        Returns:
            Keys and values of the sinks and of the window, the new tokens among them, as views:
            they change with the next call.

        Raises:
            ValueError: If several tokens come at once and do not fit without letting go of
                others, or if batch, heads or widths are not the cache's. Nothing is stored then.
        """
        new, room = keys.shape[2], self.sinks + self.window
        for name, given, kept in (("keys", keys, self.keys), ("values", values, self.values)):
            wanted = (kept.shape[0], kept.shape[1], new, kept.shape[3])
            if given.shape != wanted:
                raise ValueError(
                    f"{name} for this cache must have shape {wanted}, got {tuple(given.shape)}"
                )
        if new > 1 and (self._lost or self._end + new > room):
            raise ValueError(
                f"{new} tokens at once do not fit: the cache holds {self._end - self._start} of "
                f"{room}. From here on give one token at a time"
            )
        if self._end == self.keys.shape[2]:
            self._rewind()
        begin = self._end
        self.keys.narrow(2, begin, new).copy_(keys)
        self.values.narrow(2, begin, new).copy_(values)
        self._end = begin + new
        if self._end - self._start > room:
            self._let_go()
        # At the end of the strip the next token finds the window moved back.
        full = self._end == self.keys.shape[2]
        self.length = room - 1 if full else self._end
        return self.held()

    def held(
        self,
    ) -> tuple[
        Float[Tensor, "batch kv_heads held head_dim"],
        Float[Tensor, "batch kv_heads held value_dim"],
    ]:
        """Return views of what is held: the sinks first, then the window.

        Returns:
            Keys and values.
        """
        count = self._end - self._start
        return self.keys.narrow(2, self._start, count), self.values.narrow(2, self._start, count)

    def truncate(self, length: int) -> None:
        """Keep the first tokens only.

        Args:
            length: How many.

        Raises:
            ValueError: If tokens were let go of already, and some of them would be needed.
        """
        if length and self._lost:
            raise ValueError(
                "a streaming cache that has let go of tokens cannot go back: reset it instead"
            )
        check_count("length", length, low=0, high=self._end - self._start)
        self._start, self._end, self.length, self._lost = 0, length, length, False

    def select(self, rows: Integer[Tensor, " batch"]) -> None:
        """Let sequence ``i`` go on from what sequence ``rows[i]`` held.

        Args:
            rows: One number for each sequence.
        """
        for kept in (*self.held(), self._sink_keys, self._sink_values):
            kept.copy_(kept[rows])

    def _keep_sinks(self) -> None:
        """Copy the sinks before their slots are needed for other tokens."""
        if not self._lost:
            self._sink_keys.copy_(self.keys[:, :, : self.sinks])
            self._sink_values.copy_(self.values[:, :, : self.sinks])
            self._lost = True

    def _let_go(self) -> None:
        """Move the sinks up to the window, over the token that has left it."""
        sinks = self.sinks
        self._keep_sinks()
        self._start = self._end - sinks - self.window
        self.keys.narrow(2, self._start, sinks).copy_(self._turn(self._sink_keys, self._start))
        self.values.narrow(2, self._start, sinks).copy_(self._sink_values)

    def _rewind(self) -> None:
        """Move the window, less its oldest token, from the end of the strip to its beginning."""
        keep, to = self.window - 1, self.sinks
        self._keep_sinks()
        begin = self._end - keep
        # The sources are copied first, since the two pieces may overlap.
        keys = self._turn(self.keys.narrow(2, begin, keep), to - begin).clone()
        values = self.values.narrow(2, begin, keep).clone()
        self.keys.narrow(2, to, keep).copy_(keys)
        self.values.narrow(2, to, keep).copy_(values)
        self.keys.narrow(2, 0, to).copy_(self._sink_keys)
        self.values.narrow(2, 0, to).copy_(self._sink_values)
        self._start, self._end = 0, to + keep

    def _turn(self, keys: Tensor, shift: int) -> Tensor:
        """Rotate keys from their positions to positions that differ by the shift."""
        if self.angles is None or shift == 0 or keys.shape[2] == 0:
            return keys
        cos, sin = (table[abs(shift)].expand(keys.shape[2], -1) for table in self.angles)
        turned = (cos, sin if shift > 0 else -sin)
        return rotate(keys, turned, interleaved=self.interleaved)


class StreamingCache(KVCache):
    r"""A cache that holds the first tokens of a stream and the latest ones, and never overflows.

    Pass it as ``cache`` to a :class:`~companion.transformer.block.Decoder`, one token at a time
    (at the beginning, up to sinks and window at once). Positions are counted within the cache: a
    token of the window is as far away as it was, and sink :math:`k` is
    :math:`\min(t, s + w - 1) - k` before the :math:`t`-th token, for :math:`s` sinks and a window
    of :math:`w`. So positions stay below the model's context however long the stream is.

    Args:
        layers: Number of layers.
        batch: Sequences side by side.
        kv_heads: Key and value heads of a layer.
        sinks: First tokens that stay, 0 or more.
        window: Latest tokens that stay, the newest among them, 1 or more.
        head_dim: Components of a key.
        rotary: The model's rotary positions, by which keys are turned when they move; ``None``
            for a model without positions.
        spare: Free slots, beyond sinks and window, before the window is moved back; by default
            as many as the window. The price of few is more copying.
        value_dim: Components of a value; by default as many as of a key.
        device: Where the memory is reserved.
        dtype: Its type.

    Raises:
        ValueError: If a size is out of range, or the angles of the rotary positions depend on the
            length (dynamic NTK scaling), so that rotations do not compose.

    Numerics:
        A step writes one token and the sinks. The sinks are rotated from the copies that came,
        so rounding does not pile up in them, and a token of the window is rotated again
        at most :math:`1 + w/\text{spare}` times.

    References:
        Xiao et al. 2024, "Efficient streaming language models with attention sinks",
        arXiv:2309.17453, sec. 3.2. There keys are cached before the rotation and all of them are
        rotated at every step; rotations compose, so moving the sinks alone is the same.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> cache = StreamingCache(1, 1, 1, 1, 2, 4)
        >>> for token in range(5):
        ...     keys, values = cache.layers[0].append(*torch.full((2, 1, 1, 1, 4), float(token)))
        >>> values[0, 0, :, 0], cache.capacity
        (tensor([0., 3., 4.]), 3)
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        sinks: int,
        window: int,
        head_dim: int,
        *,
        rotary: Rotary | None = None,
        spare: int | None = None,
        value_dim: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_count("sinks", sinks, low=0)
        check_count("window", window)
        spare = window if spare is None else spare
        check_count("spare", spare, low=0)
        if rotary is not None and isinstance(rotary.scaling, DynamicNTKScaling):
            raise ValueError("rotations of dynamic NTK scaling do not compose: use another scaling")
        slots = sinks + window + spare
        super().__init__(
            layers,
            batch,
            kv_heads,
            slots,
            head_dim,
            value_dim=value_dim,
            device=device,
            dtype=dtype,
        )
        angles = None
        if rotary is not None:
            memory = self.layers[0].keys
            wide = wide_dtype(memory.dtype)
            cos, sin = rotary(torch.arange(slots, device=memory.device), dtype=wide)
            # A scaling may lengthen what it turns. That was done when the key came.
            angles = (cos / cos[0], sin / cos[0])
        self.layers = [
            StreamingLayer(
                layer.keys,
                layer.values,
                sinks=sinks,
                window=window,
                angles=angles,
                interleaved=rotary is not None and rotary.interleaved,
            )
            for layer in self.layers
        ]
        self.capacity = sinks + window

    @classmethod
    def for_model(
        cls, model: Decoder, batch: int = 1, *, sinks: int = 4, window: int
    ) -> "StreamingCache":
        """Reserve a cache that fits a model.

        Args:
            model: A decoder with rotary positions, or without any.
            batch: Sequences side by side.
            sinks: First tokens that stay.
            window: Latest tokens that stay.

        Returns:
            An empty cache on the model's device, in its dtype.

        Raises:
            ValueError: If sinks and window exceed the model's context, or its positions are of
                another kind: those are counted from the beginning of the text.
        """
        config, weight = model.config, next(model.parameters())
        check_positions(model)
        check_count("sinks + window", sinks + window, high=config.context)
        return cls(
            config.layers,
            batch,
            config.key_value_heads,
            sinks,
            window,
            config.head_width,
            rotary=model.rotary,
            spare=min(window, config.context - sinks - window),
            device=weight.device,
            dtype=weight.dtype,
        )

    def truncate(self, length: int) -> None:
        """Forget the tokens from ``length`` on, in every layer.

        Args:
            length: Tokens to keep.

        Raises:
            ValueError: If more would be kept than are held, or some were let go of already.
        """
        for layer in self.layers:
            layer.truncate(length)

    def reset(self) -> None:
        """Forget all tokens and keep the memory."""
        self.truncate(0)
