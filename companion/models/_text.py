"""Models together with their tokenizers: text in, vectors or text out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import check_count
from companion.models._generate import generate
from companion.transformer.block import Decoder, Encoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TextDecoder", "TextEncoder"]


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A sentence encoder: a model, its tokenizer, and how its vectors are pooled.

    Attributes:
        model: The encoder.
        tokenizer: Turns text into ids; it neither pads nor truncates.
        pooling: ``"mean"`` averages the last layer over the tokens; ``"first"`` takes the first
            token's vector.

    Book: :doc:`/book/transformer/block`
    """

    model: Encoder
    tokenizer: "Tokenizer"
    pooling: str = "mean"

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
                pooled.append(self._pool(self.model(ids, real=real), real))
        back = torch.empty(len(rows), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(rows))
        vectors = torch.cat(pooled)[back.to(self._device)]
        return torch.nn.functional.normalize(vectors, dim=-1) if normalize else vectors

    def _pool(self, hidden: Tensor, real: Tensor) -> Tensor:
        if self.pooling == "first":
            return hidden[:, 0]
        weight = real[:, :, None].to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)

    def _rows(self, sentences: Sequence[str], *, truncate: bool) -> list[list[int]]:
        if isinstance(sentences, str):
            raise ValueError("sentences must be a list of strings: wrap a single one in a list")
        check_count("sentences", len(sentences))
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(sentences))]
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
        return self.model.tokens.weight.device


@dataclass(frozen=True, eq=False)
class TextDecoder:
    """A language model and its tokenizer: it continues a text, scores one, or answers.

    Attributes:
        model: The decoder.
        tokenizer: Turns text into ids and back.
        start: Token that stands before a text, so that its first token is predicted, too.
        stop: Tokens that end what the model writes.
        chat_template: Jinja template that turns a conversation into a prompt, if there is one.
        special_tokens: Texts such as ``bos_token`` that the template may name.

    Book: :doc:`/book/transformer/block`
    """

    model: Decoder
    tokenizer: "Tokenizer"
    start: int | None = None
    stop: tuple[int, ...] = ()
    chat_template: str | None = None
    special_tokens: Mapping[str, str] | None = None

    def continue_text(self, prompt: str, *, tokens: int = 64) -> str:
        """Write on, with the most likely token at each step.

        Args:
            prompt: The beginning.
            tokens: How many tokens to write at most.

        Returns:
            The continuation, without the prompt and without the token that ended it.

        Raises:
            ValueError: If the prompt is empty, or prompt and continuation exceed the context.
        """
        return self.continue_texts([prompt], tokens=tokens)[0]

    def continue_texts(self, prompts: Sequence[str], *, tokens: int = 64) -> list[str]:
        """Write on after several prompts at once.

        Args:
            prompts: The beginnings.
            tokens: How many tokens to write at most, for each.

        Returns:
            The continuations, in order. Each is the one that the prompt alone would get, up to
            ties within the rounding of the logits.

        Raises:
            ValueError: If a prompt is empty, or prompt and continuation exceed the context.
        """
        if isinstance(prompts, str):
            raise ValueError("prompts must be a list of strings: wrap a single one in a list")
        check_count("prompts", len(prompts))
        return self._continue([self.tokenizer.encode(prompt).ids for prompt in prompts], tokens)

    def _continue(self, rows: list[list[int]], tokens: int) -> list[str]:
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
        padded = any(len(row) < ids.shape[1] for row in rows)
        written = generate(
            self.model, ids, tokens=tokens, real=real if padded else None, stop=self.stop
        )
        new = [_until(row, self.stop) for row in written.tolist()]
        return [self._decode_after(row, more) for row, more in zip(rows, new, strict=True)]

    def _decode_after(self, row: list[int], more: list[int]) -> str:
        """The text that new tokens add: alone, some tokenizers take their first space away."""
        before, both = self.tokenizer.decode(row), self.tokenizer.decode([*row, *more])
        return both.removeprefix(before) if both.startswith(before) else self.tokenizer.decode(more)

    def chat(
        self,
        message: str | Sequence[Mapping[str, str]],
        *,
        system: str | None = None,
        tokens: int = 256,
    ) -> str:
        """Answer a message, or the last one of a conversation.

        Args:
            message: What the user says, or a list of messages
                ``{"role": "user", "content": "..."}``.
            system: An instruction that goes before; by default the template's own.
            tokens: How many tokens to write at most.

        Returns:
            The answer.

        Raises:
            ValueError: If the model has no chat template, or the conversation exceeds the context.
        """
        prompt = self.chat_prompt(message, system=system)
        # The template writes the special tokens, so the tokenizer must not add its own again.
        row = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        return self._continue([row], tokens)[0].strip()

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
            ValueError: If the model has no chat template.
        """
        if self.chat_template is None:
            raise ValueError("this model has no chat template: use continue_text")
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        turns = [{"role": "user", "content": message}] if isinstance(message, str) else message
        if system is not None:
            turns = [{"role": "system", "content": system}, *turns]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        return environment.from_string(self.chat_template).render(
            messages=list(turns), add_generation_prompt=True, **(self.special_tokens or {})
        )

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
        row = self.tokenizer.encode(text).ids
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
        return self.model.tokens.weight.device


def _refuse(message: str) -> None:
    raise ValueError(f"the chat template refuses this conversation: {message}")


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
