r"""Speculative decoding: something cheap proposes tokens, and the model reads several at once.

:class:`Speculative` stands in for the model in :func:`companion.models.generate`. The loop asks it
for the logits of one token after the other, as always; it answers from what it has read ahead as
long as the text goes as was proposed, and reads again when it does not. So any pick gets the very
logits that the model gives, and :meth:`Speculative.pick` draws tokens that agree with what was
proposed as often as is possible at all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import (
    check_count,
    check_in_range,
    check_same_shape,
    check_shape,
    rand,
    wide,
)
from companion.generation.decoding._draft import Draft, Proposal
from companion.generation.decoding._follow import common, longer
from companion.models import History, NextToken, Pick
from companion.pretraining.autoregressive import draw
from companion.transformer.block import Decoder
from companion.transformer.multi_head import KVCache

__all__ = [
    "Accepted",
    "Speculative",
    "acceptance",
    "residual",
    "speculative_draw",
    "tokens_per_pass",
]

Warp = Callable[[Tensor, History], Tensor]


def acceptance(
    p: Float[Tensor, "*batch vocab"], q: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    r"""Compute how often a token drawn from q is accepted: :math:`\sum_x \min(p(x), q(x))`.

    It is one minus their total variation, and no way of drawing from p agrees more often with a
    draw from q.

    Args:
        p: Probabilities that are wanted.
        q: Probabilities of the draft.

    Returns:
        Probabilities.

    References:
        Leviathan et al. 2023, arXiv:2211.17192, theorem 3.5.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> acceptance(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3]))
        tensor(0.7000)
    """
    check_same_shape("p", p, "q", q)
    return torch.minimum(p, q).sum(-1)


def residual(
    p: Float[Tensor, "*batch vocab"], q: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch vocab"]:
    r"""Compute what a rejected token is drawn from: :math:`(p-q)_+ / \lVert(p-q)_+\rVert_1`.

    Args:
        p: Probabilities that are wanted.
        q: Probabilities of the draft.

    Returns:
        Probabilities. Where p and q are equal nothing is ever rejected, and p is returned.

    References:
        Leviathan et al. 2023, arXiv:2211.17192, sec. 2.3.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> residual(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3]))
        tensor([1., 0., 0.])
    """
    check_same_shape("p", p, "q", q)
    left = (wide(p) - wide(q)).clamp(min=0)
    total = left.sum(-1, keepdim=True)
    differ = total > 0
    return torch.where(differ, left / torch.where(differ, total, 1.0), p).to(p.dtype)


def tokens_per_pass(accept: float, ahead: int) -> float:
    r"""Compute how many tokens one pass of the model yields on average.

    .. math:: \sum_{k=0}^{\gamma} \alpha^k = \frac{1-\alpha^{\gamma+1}}{1-\alpha}

    Args:
        accept: :math:`\alpha`, the probability that a proposed token is accepted, alike and
            independent at each place.
        ahead: :math:`\gamma`, how many tokens are proposed.

    Returns:
        Tokens, between 1 and :math:`\gamma+1`.

    Raises:
        ValueError: If a number is out of its range.

    References:
        Leviathan et al. 2023, arXiv:2211.17192, eq. 1.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> round(tokens_per_pass(0.8, 4), 4)
        3.3616
    """
    check_in_range("accept", accept, low=0.0, high=1.0)
    check_count("ahead", ahead, low=0)
    total = 0.0
    for _ in range(ahead + 1):
        total = 1 + accept * total
    return total


class Accepted(NamedTuple):
    """A token for each row, and whether it is the one that was proposed.

    Attributes:
        ids: The tokens.
        accepted: Whether the proposal was accepted.
    """

    ids: Integer[Tensor, " batch"]
    accepted: Bool[Tensor, " batch"]


def speculative_draw(
    logits: Float[Tensor, "batch vocab"],
    proposed: Integer[Tensor, " batch"],
    proposal: Float[Tensor, "batch vocab"] | None,
    *,
    generator: torch.Generator,
) -> Accepted:
    r"""Draw from p, and agree as often as possible with tokens that were drawn from q.

    A proposed x is accepted with probability :math:`\min(1, p(x)/q(x))`. Else the token comes from
    :func:`residual`. Its distribution is p, whatever q is.

    Args:
        logits: Those of p.
        proposed: A token for each row, drawn from q.
        proposal: Logits of q, **as it was drawn from**, with its temperature and truncation;
            ``None`` if the tokens were not drawn but fixed.
        generator: The source of randomness, not the one that drew the proposals in the same state.

    Returns:
        The tokens, and which were accepted.

    Raises:
        ValueError: As :func:`companion.pretraining.autoregressive.draw`, or if there is not one
            token for each row, or p and q are of two vocabularies.

    Numerics:
        Probabilities are taken in float32 or better, of both sides. A token of probability 0
        under p is never returned.

    References:
        Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> z = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> speculative_draw(z, torch.tensor([1]), z, generator=g)
        Accepted(ids=tensor([1]), accepted=tensor([True]))
    """
    check_shape("proposed", proposed, (logits.shape[0],))
    if proposal is None:
        ids = draw(logits, generator=generator)
        return Accepted(ids, ids == proposed)
    check_same_shape("logits", logits, "proposal", proposal)
    p, q = wide(logits).softmax(-1), wide(proposal).softmax(-1)
    at = proposed[:, None]
    u = rand(len(p), 1, generator=generator, device=p.device, dtype=torch.float64)
    accepted = (u * q.gather(1, at) < p.gather(1, at))[:, 0]
    other = draw(residual(p, q).log(), generator=generator)
    return Accepted(torch.where(accepted, proposed, other), accepted)


class Speculative:
    """A model that is read several tokens at once, along what a draft proposes.

    Give it to :func:`companion.models.generate` in place of the model. With a pick that does not
    draw, such as :func:`companion.models.greedy`, the text is that of the model alone, up to ties
    within rounding. With :meth:`pick` it has the distribution of the model alone.

    Args:
        model: The model, in evaluation mode.
        draft: What proposes.
        ahead: How many tokens are proposed at once.

    Attributes:
        passes: How often the model was read, the prompts included.
        tried: How many proposed tokens were decided on, all rows that had not ended together.
        agreed: How many of them were accepted.

    Raises:
        ValueError: If ``ahead`` is below 1.

    Numerics:
        Rows of a batch share one cache, so all of them go on from the first place at which one of
        them leaves its proposal. A row that has ended is filled up, and read like any other: it
        may slow the rest. It writes one text at a time: :attr:`passes` counts from its making.

    References:
        Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> from companion.generation.decoding import PromptLookup
        >>> from companion.models import generate
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=1, heads=3, ff_dim=31, context=29)
        >>> model = Decoder(config).eval()
        >>> ids = torch.tensor([[1, 2, 1, 2]])
        >>> fast = generate(Speculative(model, PromptLookup()), ids, tokens=8)
        >>> torch.equal(fast, generate(model, ids, tokens=8))
        True
    """

    def __init__(self, model: Decoder | NextToken, draft: Draft, *, ahead: int = 4) -> None:
        check_count("ahead", ahead)
        self.model, self.draft, self.ahead = model, draft, ahead
        self.passes = self.tried = self.agreed = 0
        self._now: _Ahead | None = None

    @property
    def config(self) -> Any:
        """That of the model."""
        return self.model.config

    def cache(self, batch: int, capacity: int) -> KVCache:
        """Reserve the cache of the model, and room for what it reads ahead.

        Args:
            batch: Sequences side by side.
            capacity: Most tokens of each.

        Returns:
            An empty cache.
        """
        return KVCache.of([_Ahead(self.model.cache(batch, capacity))], capacity=capacity)

    def __call__(
        self,
        ids: Integer[Tensor, "batch n"],
        *,
        real: Bool[Tensor, "batch m"] | None = None,
        cache: KVCache | None = None,
        last: int | None = 1,
    ) -> Float[Tensor, "batch 1 vocab"]:
        """Score what follows the new tokens.

        Args:
            ids: The new tokens.
            real: ``True`` for tokens of what was read and what is new, ``False`` for padding.
            cache: From :meth:`cache`.
            last: Only 1: the logits of the next token.

        Returns:
            Its logits.

        Raises:
            ValueError: If there is no cache, or other logits are asked for.
        """
        if cache is None or not isinstance(cache.layers[0], _Ahead) or last != 1:
            raise ValueError("a speculative model reads with its own cache, and last=1")
        state = self._now = cache.layers[0]
        before = state.known[:, : state.length].to(ids)
        text = torch.cat([before, ids], 1) if state.length else ids
        place = text.shape[1]
        if not state.holds(text):
            ahead = min(self.ahead, cache.capacity - place)
            nothing = Proposal(text[:, :0], None)
            proposal = self.draft.propose(text, real, ahead) if ahead > 0 else nothing
            state.read(self.model, text, proposal, real)
            self.passes += 1
        state.length = place
        return state.logits[:, place - state.first, None]

    def pick(self, *, generator: torch.Generator, warp: Warp | None = None) -> Pick:
        """Make the pick that goes with this model: it draws, and keeps proposals where it can.

        Args:
            generator: The source of randomness, another one than that of the draft.
            warp: Changes the logits of the model before, for example a
                :class:`~companion.generation.decoding.Pipeline`.

        Returns:
            The pick. Its tokens have the distribution of ``sample(generator=..., warp=...)``.
        """

        def pick(logits: Tensor, history: Any, /) -> Tensor:
            if warp is not None:
                logits = warp(logits, history)
            proposed = None if self._now is None else self._now.proposed(history.ids)
            if proposed is None:
                return draw(logits, generator=generator)
            token, law = proposed
            made = speculative_draw(logits, token, law, generator=generator)
            going = ~history.ended
            self.tried += int(going.sum())
            self.agreed += int((made.accepted & going).sum())
            return made.ids

        return pick


class _Ahead:
    """What a speculative model has read: the text, what was proposed after it, and the logits."""

    def __init__(self, inner: KVCache) -> None:
        self.inner = inner
        self.length = 0  # columns that the loop has had read
        self.first = 0  # how long the text was at the last pass: its logits begin there
        self.known = torch.zeros(0, 0, dtype=torch.long)  # text and proposals
        self.logits = torch.zeros(0)
        self.laws: Tensor | None = None

    def holds(self, text: Tensor) -> bool:
        """Whether the text goes as was proposed, as far as was read."""
        place = text.shape[1]
        if not self.logits.numel() or not self.first <= place <= self.known.shape[1]:
            return False
        return torch.equal(self.known[:, :place], text)

    def read(self, model: Any, text: Tensor, proposal: Proposal, real: Tensor | None) -> None:
        """Read what is new of the text, and the proposals after it."""
        place = text.shape[1]
        kept = min(common(self.known, text), self.inner.length, place - 1)
        self.inner.truncate(kept)
        ahead = proposal.ids.shape[1]
        known = torch.cat([text, proposal.ids.to(text.dtype)], 1)
        # Should the model fail, what was read before stands, and nothing is read ahead.
        self.known, self.logits = text[:, : self.length], self.logits[:0]
        new = known[:, kept:]
        self.logits = model(new, real=longer(real, ahead), cache=self.inner, last=ahead + 1)
        self.known, self.first, self.laws = known, place, proposal.logits

    def proposed(self, text: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """The token that was proposed after this text, and what it was drawn from."""
        if self.length >= self.known.shape[1]:
            return None
        shared = min(self.length, text.shape[1])  # a cache may hold what stood before the prompt
        if not torch.equal(self.known[:, self.length - shared : self.length], text[:, -shared:]):
            return None  # another model's text, which asks after this one has written
        law = None if self.laws is None else self.laws[:, self.length - self.first]
        return self.known[:, self.length], law

    def truncate(self, length: int) -> None:
        """Forget the positions from ``length`` on, and what was read ahead."""
        self.length = length
        self.known = self.known[:, :length]
        self.logits = self.logits[:0]
        self.inner.truncate(min(length, self.inner.length))

    def select(self, rows: Tensor) -> None:
        """Go on from these rows."""
        self.truncate(self.length)
        self.known = self.known[rows]
        self.inner.select(rows)
