"""What proposes how a text may go on: the text itself, a smaller model, a part of the model."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from companion.core import check_count, check_in_range
from companion.generation.decoding._follow import Follower, longer
from companion.models import History, NextToken
from companion.pretraining.autoregressive import draw
from companion.transformer.block import Decoder

__all__ = ["Draft", "DraftModel", "PromptLookup", "Proposal", "early_exit"]

Warp = Callable[[Tensor, History], Tensor]


class Proposal(NamedTuple):
    """Tokens that may come next.

    Attributes:
        ids: Some for each row; there may be none.
        logits: What each was drawn from; ``None`` if they were not drawn.
    """

    ids: Integer[Tensor, "batch ahead"]
    logits: Float[Tensor, "batch ahead vocab"] | None


@runtime_checkable
class Draft(Protocol):
    """Proposes how a text may go on."""

    def propose(
        self, ids: Integer[Tensor, "batch n"], real: Bool[Tensor, "batch n"] | None, ahead: int
    ) -> Proposal:
        """Propose tokens.

        Args:
            ids: The texts so far.
            real: ``True`` for tokens, ``False`` for padding on the left; all if ``None``.
            ahead: How many tokens at most.

        Returns:
            As many for each row.
        """
        ...


class PromptLookup:
    """Propose what followed the last few tokens when they stood in the text before.

    It costs no model. It helps where texts repeat: answers that quote, edits of code, summaries.

    Args:
        longest: How many last tokens are looked for; if they stand nowhere else, fewer.
        shortest: How many at least.

    Raises:
        ValueError: If a number is below 1, or the shortest is longer than the longest.

    References:
        Saxena 2023, "Prompt Lookup Decoding"; Yang et al. 2023, arXiv:2304.04487.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> text = torch.tensor([[5, 1, 2, 3, 9, 1, 2]])
        >>> PromptLookup().propose(text, None, 3).ids
        tensor([[3, 9, 1]])
    """

    def __init__(self, *, longest: int = 3, shortest: int = 1) -> None:
        check_count("shortest", shortest)
        check_count("longest", longest, low=shortest)
        self.longest, self.shortest = longest, shortest

    def propose(
        self, ids: Integer[Tensor, "batch n"], real: Bool[Tensor, "batch n"] | None, ahead: int
    ) -> Proposal:
        """Look back.

        Args:
            ids: The texts so far.
            real: ``True`` for tokens.
            ahead: How many tokens.

        Returns:
            What followed the latest earlier occurrence, and from its end on the same again. A row
            without one proposes its last token; if no row has one, nothing is proposed.
        """
        batch, n = ids.shape
        begin = ids.new_full((batch,), -1, dtype=torch.long)  # where the continuation begins
        for size in range(min(self.longest, n - 1), self.shortest - 1, -1):
            windows = ids[:, :-1].unfold(1, size, 1)
            same = (windows == ids[:, None, -size:]).all(-1)
            if real is not None:
                same = same & real[:, :-1].unfold(1, size, 1).all(-1)
            places = torch.arange(size, size + same.shape[1], device=ids.device)
            latest = torch.where(same, places, -1).amax(1)
            begin = torch.where(begin >= 0, begin, latest)
        if n < 2 or not bool((begin >= 0).any()):
            return Proposal(ids[:, :0], None)
        begin = torch.where(begin >= 0, begin, n - 1)
        steps = torch.arange(ahead, device=ids.device)
        return Proposal(ids.gather(1, begin[:, None] + steps % (n - begin)[:, None]), None)


class DraftModel:
    """Propose what a smaller model writes.

    Args:
        model: The smaller model, in evaluation mode, with the same tokens.
        generator: The source of randomness of its draws.
        temperature: Of its draws; 0 proposes its most likely tokens, as fixed ones.
        warp: Changes its logits before, for example a
            :class:`~companion.generation.decoding.Pipeline`.

    Raises:
        ValueError: If the temperature is negative.

    Book: :doc:`/book/generation/decoding`
    """

    def __init__(
        self,
        model: Decoder | NextToken,
        *,
        generator: torch.Generator,
        temperature: float = 1.0,
        warp: Warp | None = None,
    ) -> None:
        check_in_range("temperature", temperature, low=0.0, open_high=True)
        self.reader = Follower(model)
        self.generator, self.temperature, self.warp = generator, temperature, warp

    def propose(
        self, ids: Integer[Tensor, "batch n"], real: Bool[Tensor, "batch n"] | None, ahead: int
    ) -> Proposal:
        """Write ahead.

        Args:
            ids: The texts so far.
            real: ``True`` for tokens.
            ahead: How many tokens.

        Returns:
            The tokens, and the logits that they were drawn from.
        """
        prompt = ids.shape[1]
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        rows = []
        for _ in range(ahead):
            logits = self.reader(ids, real)
            if self.warp is not None:
                logits = self.warp(logits, History(ids, prompt, real, ended))
            if self.temperature > 0:
                logits = logits / self.temperature
            chosen = draw(logits, generator=self.generator, temperature=float(self.temperature > 0))
            rows.append(logits)
            ids = torch.cat([ids, chosen[:, None].to(ids.dtype)], 1)
            real = longer(real, 1)
        fixed = self.temperature == 0 or not rows
        return Proposal(ids[:, prompt:], None if fixed else torch.stack(rows, 1))


def early_exit(model: Decoder, layers: int) -> Decoder:
    """Make a draft of a model's own first layers: the output layer reads what they say.

    Args:
        model: The model. The draft shares its weights.
        layers: How many layers the draft has.

    Returns:
        A model that is a part of the first one.

    Raises:
        ValueError: If there are not so many layers.

    References:
        Zhang et al. 2024, arXiv:2309.08168, who skip layers in between and train nothing; Elhoushi
        et al. 2024, arXiv:2404.16710, who train a model to exit early.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=3, heads=3, ff_dim=31, context=9)
        >>> len(early_exit(Decoder(config), 1).blocks)
        1
    """
    check_count("layers", layers, high=len(model.blocks))
    part = copy.copy(model)
    part._modules = dict(model._modules)
    part.blocks = nn.ModuleList(list(model.blocks)[:layers])
    part.config = replace(model.config, layers=layers)
    return part
