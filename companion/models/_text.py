"""Models together with their tokenizers: text in, vectors or text out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import check_count
from companion.models._chat import render_chat
from companion.models._generate import Pick, generate, greedy
from companion.pretraining.denoising import TwoStream, rank_masks
from companion.pretraining.masked import BertForPreTraining
from companion.pretraining.transfer import Pooling, pool
from companion.transformer.block import Decoder, Encoder, EncoderDecoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TextDecoder", "TextEncoder", "TextEncoderDecoder", "TextTwoStream"]


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A sentence encoder: a model, its tokenizer, and how its vectors are pooled.

    Attributes:
        model: The encoder.
        tokenizer: Turns text into ids; it neither pads nor truncates. ``None`` if the checkpoint
            has none: then the model is all there is.
        pooling: As in :func:`companion.pretraining.transfer.pool`.
        heads: The same encoder with the heads of BERT's pre-training, if they were loaded.

    Book: :doc:`/book/transformer/block`
    """

    model: Encoder
    tokenizer: "Tokenizer | None" = None
    pooling: Pooling = "mean"
    heads: BertForPreTraining | None = None

    def tokenize(
        self, sentences: Sequence[str], *, truncate: bool = False
    ) -> tuple[Integer[Tensor, "batch n"], Bool[Tensor, "batch n"]]:
        """Turn sentences into a batch, padded on the right.

        Args:
            sentences: One or more texts.
            truncate: Cut what exceeds the context; by default that is an error.

        Returns:
            Ids, and ``True`` where a token is real.

        Raises:
            ValueError: If there is no sentence, or one has no tokens or more than the model's
                context.
        """
        rows = self._rows(sentences, truncate=truncate)
        return _pad(rows, left=False, device=self._device)

    def embed(
        self,
        sentences: Sequence[str],
        *,
        batch_size: int = 32,
        normalize: bool = True,
        truncate: bool = False,
    ) -> Float[Tensor, "sentences dim"]:
        """Compute one vector for each sentence.

        Args:
            sentences: One or more texts; a single string is an error, wrap it in a list.
            batch_size: How many are encoded at once. Sentences of like length share a batch, so
                that little is padded.
            normalize: Divide each vector by its length, so that inner products are cosines.
            truncate: Cut what exceeds the context; by default that is an error.

        Returns:
            The vectors, in the order of the sentences, on the model's device.

        Raises:
            ValueError: If there is no sentence, or one has no tokens or more than the model's
                context.
        """
        check_count("batch_size", batch_size)
        rows = self._rows(sentences, truncate=truncate)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        pooled: list[Tensor] = []
        with torch.no_grad():
            for start in range(0, len(rows), batch_size):
                chosen = [rows[index] for index in order[start : start + batch_size]]
                ids, real = _pad(chosen, left=False, device=self._device)
                pooled.append(pool(self.model(ids, real=real), real, pooling=self.pooling))
        back = torch.empty(len(rows), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(rows))
        vectors = torch.cat(pooled)[back.to(self._device)]
        return torch.nn.functional.normalize(vectors, dim=-1) if normalize else vectors

    def _rows(self, sentences: Sequence[str], *, truncate: bool) -> list[list[int]]:
        _check_list("sentences", sentences)
        encodings = _known(self.tokenizer).encode_batch(list(sentences))
        rows = [encoding.ids for encoding in encodings]
        longest = self.model.config.context
        for index, row in enumerate(rows):
            if not row:
                raise ValueError(f"sentence {index} has no tokens: give at least one character")
            if len(row) > longest:
                if not truncate:
                    raise ValueError(
                        f"sentence {index} has {len(row)} tokens, more than the model's context "
                        f"of {longest}: shorten it, or pass truncate=True"
                    )
                # The last token closes the sentence ([SEP]) and stays.
                rows[index] = [*row[: longest - 1], row[-1]]
        return rows

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


@dataclass(frozen=True, eq=False)
class TextDecoder:
    """A language model and its tokenizer: it continues a text, scores one, or answers.

    Attributes:
        model: The decoder.
        tokenizer: Turns text into ids and back. ``None`` if the checkpoint has none: then the
            model is all there is.
        start: Token that stands before a text, so that its first token is predicted, too.
        stop: Tokens that end what the model writes.
        chat_template: Jinja template that turns a conversation into a prompt, if there is one.
        special_tokens: Texts such as ``bos_token`` that the template may name.

    Book: :doc:`/book/transformer/block`
    """

    model: Decoder
    tokenizer: "Tokenizer | None" = None
    start: int | None = None
    stop: tuple[int, ...] = ()
    chat_template: str | None = None
    special_tokens: Mapping[str, str] | None = None

    def continue_text(
        self,
        prompt: str,
        *,
        tokens: int = 64,
        pick: Pick = greedy,
        stream: Callable[[str], object] | None = None,
    ) -> str:
        """Write on.

        Args:
            prompt: The beginning.
            tokens: How many tokens to write at most.
            pick: How each token is chosen: see :class:`companion.models.Pick`. By default the
                most likely one.
            stream: Called with each piece of the continuation as soon as it is there.

        Returns:
            The continuation, without the prompt and without the token that ended it.

        Raises:
            ValueError: If the prompt is empty, or prompt and continuation exceed the context.
        """
        row = _known(self.tokenizer).encode(prompt).ids
        return self._continue([row], tokens, pick, stream)[0]

    def continue_texts(
        self, prompts: Sequence[str], *, tokens: int = 64, pick: Pick = greedy
    ) -> list[str]:
        """Write on after several prompts at once.

        Args:
            prompts: The beginnings.
            tokens: How many tokens to write at most, for each.
            pick: How each token is chosen.

        Returns:
            The continuations, in order. Each is the one that the prompt alone would get, up to
            ties within the rounding of the logits, unless the pick draws at random.

        Raises:
            ValueError: If a prompt is empty, or prompt and continuation exceed the context.
        """
        _check_list("prompts", prompts)
        rows = [encoding.ids for encoding in _known(self.tokenizer).encode_batch(list(prompts))]
        return self._continue(rows, tokens, pick)

    def _continue(
        self,
        rows: list[list[int]],
        tokens: int,
        pick: Pick,
        stream: Callable[[str], object] | None = None,
    ) -> list[str]:
        for index, row in enumerate(rows):
            if not row:
                raise ValueError(f"prompt {index} has no tokens: give at least one character")
        longest, context = max(len(row) for row in rows), self.model.config.context
        if longest + tokens > context:
            raise ValueError(
                f"{longest} tokens of the prompt and {tokens} new ones exceed the model's context "
                f"of {context}"
            )
        ids, real = _pad(rows, left=True, device=self._device)
        padded = any(len(row) < longest for row in rows)
        pieces = None if stream is None else Pieces(self._after, rows[0], self.stop, stream)
        written = generate(
            self.model,
            ids,
            tokens=tokens,
            pick=pick,
            real=real if padded else None,
            stop=self.stop,
            stream=pieces,
        )
        if pieces is not None:
            pieces.finish()
        new = [_until(row, self.stop) for row in written.tolist()]
        return [self._after(row, more) for row, more in zip(rows, new, strict=True)]

    def _after(self, row: list[int], more: list[int]) -> str:
        """The text that new tokens add: alone, some tokenizers take their first space away."""
        words = _known(self.tokenizer)
        before, both = words.decode(row), words.decode([*row, *more])
        return both.removeprefix(before) if both.startswith(before) else words.decode(more)

    def chat(
        self,
        message: str | Sequence[Mapping[str, str]],
        *,
        system: str | None = None,
        tokens: int = 256,
        pick: Pick = greedy,
        stream: Callable[[str], object] | None = None,
    ) -> str:
        """Answer a message, or the last one of a conversation.

        Args:
            message: What the user says, or a list of messages
                ``{"role": "user", "content": "..."}``.
            system: An instruction that goes before; by default the template's own.
            tokens: How many tokens to write at most.
            pick: How each token is chosen.
            stream: Called with each piece of the answer as soon as it is there.

        Returns:
            The answer.

        Raises:
            ValueError: If the model has no chat template, or it fails; if the conversation
                exceeds the context.
        """
        prompt = self.chat_prompt(message, system=system)
        # The template writes the special tokens, so the tokenizer must not add its own again.
        row = _known(self.tokenizer).encode(prompt, add_special_tokens=False).ids
        return self._continue([row], tokens, pick, stream)[0].strip()

    def chat_prompt(
        self, message: str | Sequence[Mapping[str, str]], *, system: str | None = None
    ) -> str:
        """Return the text that the model reads when it is asked for an answer.

        Args:
            message: As in :meth:`chat`.
            system: As in :meth:`chat`.

        Returns:
            The conversation as the template writes it, with the opening of the answer.

        Raises:
            ValueError: If the model has no chat template, or the template refuses the
                conversation or fails.
        """
        if self.chat_template is None:
            raise ValueError("this model has no chat template: use continue_text")
        turns = [{"role": "user", "content": message}] if isinstance(message, str) else message
        if system is not None:
            turns = [{"role": "system", "content": system}, *turns]
        return render_chat(self.chat_template, turns, self.special_tokens or {})

    def nats(self, text: str) -> Float[Tensor, " tokens"]:
        """Score a text: the surprise of each token given those before it.

        Args:
            text: What to score.

        Returns:
            One non-negative number a token, in nats; their mean's exponential is the perplexity.
            Without a :attr:`start` token the first token has no score.

        Raises:
            ValueError: If the text has no token to score, or exceeds the context.
        """
        row = _known(self.tokenizer).encode(text).ids
        if self.start is not None and row[:1] != [self.start]:  # some tokenizers add it
            row = [self.start, *row]
        if len(row) < 2:
            raise ValueError("the text has no token to score: give a longer one")
        ids = torch.tensor([row], device=self._device)
        with torch.no_grad():
            logits = self.model(ids[:, :-1])[0]
            return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


@dataclass(frozen=True, eq=False)
class TextEncoderDecoder:
    """A model that reads one text and writes another: BART, T5.

    Attributes:
        model: The encoder-decoder.
        tokenizer: Turns text into ids and back. ``None`` if the checkpoint has none: then the
            model is all there is.
        start: Tokens with which every target begins: what the decoder reads first, and what the
            model was taught to write first, if there is such a token (BART's ``<s>``).
        stop: Tokens that end what the model writes.

    Book: :doc:`/book/pretraining/denoising`
    """

    model: EncoderDecoder
    tokenizer: "Tokenizer | None" = None
    start: tuple[int, ...] = ()
    stop: tuple[int, ...] = ()

    def write_text(
        self,
        source: str,
        *,
        tokens: int = 64,
        pick: Pick = greedy,
        stream: Callable[[str], object] | None = None,
    ) -> str:
        """Read a text and write what belongs to it: a summary, a translation, what was hidden.

        Args:
            source: What is read, with the words that name the task where a model wants them.
            tokens: How many tokens to write at most.
            pick: How each token is chosen: see :class:`companion.models.Pick`. By default the
                most likely one; published summaries come from beam search.
            stream: Called with each piece as soon as it is there.

        Returns:
            What was written, without special tokens.

        Raises:
            ValueError: If the source has no tokens or exceeds the context, or the target does.
        """
        return self._write([source], tokens, pick, stream)[0]

    def write_texts(
        self, sources: Sequence[str], *, tokens: int = 64, pick: Pick = greedy
    ) -> list[str]:
        """Do the same for several texts at once.

        Args:
            sources: What is read.
            tokens: How many tokens to write at most, for each.
            pick: How each token is chosen.

        Returns:
            What was written, in order.

        Raises:
            ValueError: As :meth:`write_text` does.
        """
        _check_list("sources", sources)
        return self._write(sources, tokens, pick)

    def nats(self, source: str, target: str) -> Float[Tensor, " tokens"]:
        """Score a target: the surprise of each of its tokens, given the source and those before.

        Args:
            source: What is read.
            target: What is scored, with the special tokens that the tokenizer adds.

        Returns:
            One non-negative number a token, in nats.

        Raises:
            ValueError: If either has no tokens or exceeds the context.
        """
        ids, real = self._read([source])
        row = _known(self.tokenizer).encode(target).ids
        if not row:
            raise ValueError("the target has no tokens: give at least one character")
        read = torch.tensor([[*self._start[:1], *row[:-1]]], device=self._device)
        with torch.no_grad():
            logits = self.model(ids, read, source_real=real)[0]
            labels = torch.tensor(row, device=self._device)
            return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    def _write(
        self,
        sources: Sequence[str],
        tokens: int,
        pick: Pick,
        stream: Callable[[str], object] | None = None,
    ) -> list[str]:
        ids, real = self._read(sources)
        begin = torch.tensor([self._start] * len(ids), device=self._device)
        pieces = None if stream is None else Pieces(self._after, [], self.stop, stream)
        written = generate(
            self.model,
            begin,
            tokens=tokens,
            pick=pick,
            stop=self.stop,
            stream=pieces,
            source=ids,
            source_real=None if bool(real.all()) else real,
        )
        if pieces is not None:
            pieces.finish()
        return [self._after([], _until(row, self.stop)) for row in written.tolist()]

    def _read(self, sources: Sequence[str]) -> tuple[Tensor, Tensor]:
        encodings = _known(self.tokenizer).encode_batch(list(sources))
        rows = [encoding.ids for encoding in encodings]
        context = self.model.config.context
        for index, row in enumerate(rows):
            if not row:
                raise ValueError(f"source {index} has no tokens: give at least one character")
            if len(row) > context:
                raise ValueError(
                    f"source {index} has {len(row)} tokens, more than the model's context "
                    f"of {context}: shorten it"
                )
        return _pad(rows, left=False, device=self._device)

    def _after(self, row: list[int], more: list[int]) -> str:
        return _known(self.tokenizer).decode(more)

    @property
    def _start(self) -> tuple[int, ...]:
        if not self.start:
            raise ValueError("no token is known with which a target begins: give start")
        return self.start

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


@dataclass(frozen=True, eq=False)
class TextTwoStream:
    """XLNet and its tokenizer.

    Attributes:
        model: The model.
        tokenizer: Turns text into ids and back; it appends its special tokens at the end. ``None``
            if the checkpoint has none: then the model is all there is.

    Book: :doc:`/book/pretraining/denoising`
    """

    model: TwoStream
    tokenizer: "Tokenizer | None" = None

    def tokenize(
        self, texts: Sequence[str]
    ) -> tuple[Integer[Tensor, "batch n"], Bool[Tensor, "batch n"]]:
        """Turn texts into a batch, padded on the right.

        Args:
            texts: One or more texts.

        Returns:
            Ids, and ``True`` where a token is real.

        Raises:
            ValueError: If there is no text, or one has no tokens.
        """
        _check_list("texts", texts)
        rows = [encoding.ids for encoding in _known(self.tokenizer).encode_batch(list(texts))]
        for index, row in enumerate(rows):
            if not row:
                raise ValueError(f"text {index} has no tokens: give at least one character")
        return _pad(rows, left=False, device=next(self.model.parameters()).device)

    def nats(self, text: str) -> Float[Tensor, " tokens"]:
        """Score a text from left to right: the surprise of each token given those before it.

        Args:
            text: What to score, with the special tokens that the tokenizer adds.

        Returns:
            One non-negative number a token, in nats. The first is predicted from nothing.

        Raises:
            ValueError: If the text has no tokens.
        """
        ids, _ = self.tokenize([text])
        places = torch.arange(ids.shape[1], device=ids.device)[None]
        with torch.no_grad():
            logits = self.model(ids, places, allowed=rank_masks(places).query)[0]
            return torch.nn.functional.cross_entropy(logits, ids[0], reduction="none")


class Pieces:
    """Turns the columns of one sequence into pieces of text, each as soon as it is certain."""

    def __init__(
        self,
        after: Callable[[list[int], list[int]], str],
        row: list[int],
        stop: tuple[int, ...],
        stream: Callable[[str], object],
    ) -> None:
        self.after, self.row, self.stop, self.stream = after, row, stop, stream
        self.new: list[int] = []
        self.said = ""

    def __call__(self, column: Tensor) -> None:
        """Take the next token."""
        self.new.append(int(column[0]))
        text = self.after(self.row, _until(self.new, self.stop))
        # A character may be cut in the middle of its bytes: its rest comes with the next token.
        if not text.endswith("\ufffd"):
            self._say(text)

    def finish(self) -> None:
        """Say what was held back."""
        self._say(self.after(self.row, _until(self.new, self.stop)))

    def _say(self, text: str) -> None:
        if len(text) > len(self.said) and text.startswith(self.said):
            self.stream(text[len(self.said) :])
            self.said = text


def _known(tokenizer: "Tokenizer | None") -> "Tokenizer":
    if tokenizer is None:
        raise ValueError(
            "this model came without a tokenizer.json: save the tokenizer beside the model, "
            "or give ids to the attribute model"
        )
    return tokenizer


def _check_list(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise ValueError(f"{name} must be a list of strings: wrap a single one in a list")
    check_count(name, len(texts))


def _until(row: list[int], stop: tuple[int, ...]) -> list[int]:
    """The tokens before the first that ends the text."""
    for place, token in enumerate(row):
        if token in stop:
            return row[:place]
    return row


def _pad(rows: list[list[int]], *, left: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of one length, with 0 for padding, and where the tokens are."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    real = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[index, place] = torch.tensor(row)
        real[index, place] = True
    return ids.to(device), real.to(device)
