"""The one loop that writes: read, pick the next token, read it, and so on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import check_count, check_ids, check_in_range, check_shape
from companion.pretraining.autoregressive import draw
from companion.pretraining.autoregressive._draw import check_rows
from companion.transformer.block import Decoder, EncoderDecoder
from companion.transformer.multi_head import KVCache

__all__ = ["History", "NextToken", "Pick", "generate", "greedy", "sample"]


@dataclass(frozen=True, eq=False)
class History:
    """What stands before the token that is picked.

    Attributes:
        ids: The prompt and what was written after it, a row a sequence. It is a view of the text
            that the loop writes: clone what must last.
        prompt: How many of its columns are the prompt.
        real: ``True`` for tokens, ``False`` for padding of the prompts; ``None`` if all are tokens.
        ended: Which sequences have ended. What is picked for them does not count.
    """

    ids: Integer[Tensor, "batch n"]
    prompt: int
    real: Bool[Tensor, "batch n"] | None
    ended: Bool[Tensor, " batch"]

    @property
    def written(self) -> Integer[Tensor, "batch written"]:
        """The new tokens alone."""
        return self.ids[:, self.prompt :]


@runtime_checkable
class Pick(Protocol):
    r"""A rule that chooses the next token of each sequence.

    It is called once a step. Whatever it must remember (a generator, the state of a grammar, the
    scores of beams, a second model for guidance and its cache) it holds itself.

    A search that goes on from some sequences twice and drops others returns a pair: the tokens, and
    for each row the number of the row that it continues. The loop then moves the texts, and the
    cache by its ``select`` method.
    """

    def __call__(
        self, logits: Float[Tensor, "batch vocab"], history: History, /
    ) -> Integer[Tensor, " batch"] | tuple[Integer[Tensor, " batch"], Integer[Tensor, " batch"]]:
        """Choose.

        Args:
            logits: Of the next token, not normalized, in the model's dtype. They may be changed.
            history: What stands before it.

        Returns:
            One id for each sequence; or the ids, and which rows they continue.
        """
        ...


@runtime_checkable
class NextToken(Protocol):
    """What :func:`generate` needs of a decoder: any class that has it can write.

    Attributes:
        config: It has the sizes ``vocab`` and ``context``.
    """

    @property
    def config(self) -> Any:
        """The description of the model."""
        ...

    def cache(self, batch: int, capacity: int) -> KVCache:
        """Reserve a cache for so many sequences of so many tokens."""
        ...

    def __call__(
        self,
        ids: Integer[Tensor, "batch n"],
        *,
        real: Bool[Tensor, "batch m"] | None = None,
        cache: KVCache | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "batch kept vocab"]:
        """Read new tokens, and score what follows the last of them."""
        ...


def greedy(
    logits: Float[Tensor, "batch vocab"],
    history: History | None = None,
    /,
) -> Integer[Tensor, " batch"]:
    r"""Pick the most likely token.

    .. math:: x_{t+1} = \arg\max_v \; p(v \mid x_1, \dots, x_t)

    Args:
        logits: Of the next token.
        history: Not looked at.

    Returns:
        One id for each sequence. Ties go to the smallest id on the CPU.

    Raises:
        ValueError: As :func:`~companion.pretraining.autoregressive.draw`, if the largest logit of
            a row is not finite: one is NaN or :math:`+\infty`, or all are :math:`-\infty`. On an
            accelerator such a row ends in an assertion of the device.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> greedy(torch.tensor([[0.1, 2.0, 1.0]]))
        tensor([1])
    """
    check_rows(logits)
    return logits.argmax(dim=-1)


def sample(
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
    warp: Callable[[Tensor, History], Tensor] | None = None,
) -> Pick:
    r"""Make a pick that draws from the model's own distribution: ancestral sampling.

    .. math:: x_{t+1} \sim \mathrm{softmax}(z_t / T)

    At temperature 1 a continuation is a sample from the model's distribution over texts.

    Args:
        generator: The source of randomness.
        temperature: :math:`T \ge 0`; below 1 the likely becomes more likely, and 0 is
            :func:`greedy`.
        warp: Changes the logits before, with a look at the text: for example a
            :class:`~companion.generation.decoding.Pipeline`. By default nothing does.

    Returns:
        The pick.

    Raises:
        ValueError: If the temperature is below 0.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> pick = sample(generator=g, temperature=0.1)
        >>> pick(torch.tensor([[0.0, 5.0, 1.0]]), None)
        tensor([1])
    """
    check_in_range("temperature", temperature, low=0.0, open_high=True)

    def pick(logits: Tensor, history: Any, /) -> Tensor:
        if warp is not None:
            logits = warp(logits, history)
        return draw(logits, generator=generator, temperature=temperature)

    return pick


def generate(
    model: Decoder | EncoderDecoder | NextToken,
    ids: Integer[Tensor, "batch n"],
    *,
    tokens: int,
    pick: Pick = greedy,
    cache: KVCache | tuple[KVCache, KVCache] | None = None,
    real: Bool[Tensor, "batch n"] | None = None,
    stop: Sequence[int] = (),
    stream: Callable[[Tensor], object] | None = None,
    source: Integer[Tensor, "batch m"] | Float[Tensor, "batch ..."] | None = None,
    source_real: Bool[Tensor, "batch m"] | None = None,
) -> Integer[Tensor, "batch written"]:
    r"""Continue each sequence, one token a step.

    The prompt is read once, and then every new token once, with a cache of keys and values.

    Args:
        model: The language model. It is left in its mode: call ``eval()`` first where it has
            dropout. Of a decoder the loop needs only what :class:`NextToken` names: a model of
            another class with that, for example one that reads ahead by a smaller one, will do.
        ids: Prompts. Pad shorter ones on the left. For an encoder-decoder this is the beginning
            of the target, its start token at least.
        tokens: How many tokens to write at most.
        pick: How the next token is chosen from its logits and the text before it: see
            :class:`Pick`. By default the most likely one.
        cache: Where keys and values go: a :class:`~companion.transformer.multi_head.KVCache`,
            or a :class:`~companion.transformer.block.StreamingCache` for texts without end. By
            default one that is large enough is made. What it holds already is read as the text
            before the prompt. An encoder-decoder takes a pair.
        real: ``True`` for tokens of a prompt, ``False`` for padding; all are tokens by default.
        stop: Tokens that end a sequence. Writing ends when every sequence has ended.
        stream: Called with each column of new tokens, (batch,), as soon as it is there.
        source: What an encoder-decoder reads: ids, or what else its ``encode`` takes.
        source_real: ``True`` for tokens of the source, ``False`` for padding.

    Returns:
        The new tokens only. A sequence that ended is filled up with the token that ended it.

    Raises:
        ValueError: If the prompt is empty; if a row is padding only, or is not padded on the left;
            if the pick returns something else than one id for each sequence; if the target of an
            encoder-decoder outgrows its context, or a source is missing or not wanted; if there is
            padding, and the cache holds tokens before it or lets go of some.

    Numerics:
        One pass over the weights a token: at batch size 1 the time is that of reading them from
        memory. Where a text outgrows the model's context, its last half context is read again and
        writing goes on from there: the model then sees between half and all of its context. With
        ``stop``, each step waits for the device, to see whether all have ended.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> generate(Decoder(config), torch.tensor([[1, 2, 3]]), tokens=4).shape
        torch.Size([1, 4])
    """
    check_shape("ids", ids, (None, None))
    check_count("tokens", tokens)
    batch, n = ids.shape
    check_count("tokens of the prompt", n)
    check_ids("stop", torch.tensor(list(stop), dtype=torch.long), model.config.vocab)
    if real is not None:
        check_shape("real", real, (batch, n))
        _check_left_padding(real)
    # Inference mode spares autograd's bookkeeping of views, a tenth of the time of a small model.
    # The text is made outside of it, so that the caller gets an ordinary tensor.
    text = torch.cat([ids, ids.new_zeros(batch, tokens)], dim=1)
    with torch.inference_mode():
        read = _reader(model, ids, n + tokens, cache, source, source_real)
        written = _write(read, text, n, real, pick, stop, stream)
    return text[:, n : n + written]


def _write(
    read: "_Reader",
    text: Tensor,
    n: int,
    real: Tensor | None,
    pick: Pick,
    stop: Sequence[int],
    stream: Callable[[Tensor], object] | None,
) -> int:
    """Fill the columns of the text from n on, and return how many were written."""
    batch, end = text.shape
    seen = None
    if real is not None:
        ahead = torch.ones(batch, end - n, dtype=torch.bool, device=real.device)
        seen = torch.cat([real, ahead], dim=1)
    ends = torch.tensor(list(stop), dtype=text.dtype, device=text.device)
    ended = torch.zeros(batch, dtype=torch.bool, device=text.device)
    begin = 0  # the first column that the model has not read
    for place in range(n, end):
        logits = read(text, seen, begin, place)
        begin = place
        known = None if seen is None else seen[:, :place]
        chosen = pick(logits, History(text[:, :place], n, known, ended))
        if isinstance(chosen, tuple):
            chosen, rows = chosen
            check_shape("the rows that a pick continues", rows, (batch,))
            text[:, :place] = text[rows, :place]
            ended = ended[rows]
            seen = None if seen is None else seen[rows]
            read.select(rows)
        _check_choice(chosen, batch)
        chosen = chosen.to(text.dtype)
        if stop:
            if place > n:
                chosen = torch.where(ended, text[:, place - 1], chosen)
            ended = torch.isin(chosen, ends)
        text[:, place] = chosen
        if stream is not None:
            stream(chosen.clone())
        if stop and bool(ended.all()):
            return place + 1 - n
    return end - n


class _Reader:
    """A decoder and its cache: reads the new columns of a text, and scores the next one."""

    def __init__(self, model: Any, cache: KVCache) -> None:
        self.model = model
        self.cache = cache
        self.context = model.config.context
        self.first = 0  # the first column of the text that the cache holds
        self.before = cache.length  # what it held before the prompt

    def __call__(self, text: Tensor, seen: Tensor | None, begin: int, place: int) -> Tensor:
        """Read the columns from begin to place, and return the logits of the one at place."""
        if self.cache.length + place - begin > self.context:
            self.cache.reset()
            self.first = begin = place - max(self.context // 2, 1)
            self.before = 0
        while begin < place:
            # A streaming cache takes several tokens at once only as long as none has to go.
            size = min(max(self.cache.capacity - self.cache.length, 1), place - begin)
            kept = None
            if seen is not None:
                kept = seen[:, self.first : begin + size]
                lost = kept.shape[1] > self.cache.capacity
                if self.before or lost or kept.shape[1] != self.cache.length + size:
                    raise ValueError(
                        "prompts with padding need a cache of their own that holds all of them: "
                        "leave cache out, or give prompts of one length"
                    )
            logits = self.logits(text[:, begin : begin + size], kept)
            begin += size
        return logits[:, -1]

    def logits(self, ids: Tensor, real: Tensor | None) -> Tensor:
        """Score what follows the last of the new tokens."""
        scored: Tensor = self.model(ids, real=real, cache=self.cache, last=1)
        return scored

    def select(self, rows: Tensor) -> None:
        """Go on from these rows."""
        self.cache.select(rows)


class _TargetReader(_Reader):
    """The decoder of an encoder-decoder, which reads an encoded source as well."""

    def __init__(
        self,
        model: EncoderDecoder,
        caches: tuple[KVCache, KVCache],
        source: Tensor,
        source_real: Tensor | None,
    ) -> None:
        super().__init__(model.decoder, caches[0])
        self.whole = model
        self.caches = caches
        self.memory = model.encode(source, real=source_real)
        self.memory_real = source_real

    def logits(self, ids: Tensor, real: Tensor | None) -> Tensor:
        """Score what follows the last of the new tokens."""
        return self.whole.decode(
            ids,
            self.memory,
            memory_real=self.memory_real,
            real=real,
            cache=self.caches,
            last=1,
        )

    def select(self, rows: Tensor) -> None:
        """Go on from these rows."""
        for cache in self.caches:
            cache.select(rows)
        self.memory = self.memory[rows]
        if self.memory_real is not None:
            self.memory_real = self.memory_real[rows]


def _reader(
    model: Decoder | EncoderDecoder | NextToken,
    ids: Tensor,
    length: int,
    cache: KVCache | tuple[KVCache, KVCache] | None,
    source: Tensor | None,
    source_real: Tensor | None,
) -> _Reader:
    """What reads a text of this length with this model."""
    batch, context = ids.shape[0], model.config.context
    if isinstance(model, EncoderDecoder):
        if source is None:
            raise ValueError("an encoder-decoder needs a source to read")
        positions = model.source_length(source)
        check_shape("source", source, (batch, *source.shape[1:]))
        if length > context:
            raise ValueError(
                f"a target of {ids.shape[1]} tokens and {length - ids.shape[1]} new ones exceeds "
                f"the model's context of {context}"
            )
        if cache is None:
            cache = model.cache(batch, length, source=positions)
        if not isinstance(cache, tuple):
            raise ValueError("an encoder-decoder takes a pair of caches, from its cache method")
        return _TargetReader(model, cache, source, source_real)
    if source is not None or source_real is not None:
        raise ValueError("a decoder reads no source: give all of the text as ids")
    if isinstance(cache, tuple):
        raise ValueError("a decoder takes one cache, from its cache method")
    return _Reader(model, model.cache(batch, min(length, context)) if cache is None else cache)


def _check_choice(chosen: Tensor, batch: int) -> None:
    check_shape("what a pick returns", chosen, (batch,))
    if chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise ValueError(f"a pick must return ids, which are integers, got {chosen.dtype}")


def _check_left_padding(real: Tensor) -> None:
    if real.device.type == "meta":
        return
    if not bool(real[:, -1].all()) or bool((real[:, :-1] & ~real[:, 1:]).any()):
        raise ValueError(
            "prompts must be padded on the left, and hold a token each: "
            "False first, then True to the end of the row"
        )
