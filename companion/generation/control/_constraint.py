"""Constraints on what is written: by masks, exactly by looking ahead, and exactly by rejection."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import (
    can_read,
    check_count,
    check_floating,
    check_in_range,
    check_shape,
    wide,
)
from companion.generation.control._index import Grammar, TokenIndex
from companion.models import History, NextToken, generate, sample
from companion.transformer.block import Decoder

__all__ = [
    "Constraint",
    "Exact",
    "Lookahead",
    "Paths",
    "completion_probability",
    "constrained_paths",
    "exact_sample",
]


class Constraint:
    r"""Forbid, at each step, what the grammar does not allow: a ``warp`` of the sampler.

    .. math:: q(x_t\mid x_{<t}) = \frac{p(x_t\mid x_{<t})\,\mathbf 1[\delta(s,x_t)\text{ viable}]}
        {Z_t}, \qquad Z_t = \sum_{x\text{ allowed}} p(x\mid x_{<t})

    Every text that ends is in the language. But it is not drawn from :math:`p(\cdot\mid C)`: the
    chance of a text is :math:`p/\prod_t Z_t` and not :math:`p/p(C)`. :attr:`log_mass` is
    :math:`\sum_t\log Z_t`, so a sampled text has the weight :math:`\prod_t Z_t`.

    Put it before truncations, which would otherwise remove all that is allowed.

    Args:
        grammar: A :class:`TokenIndex` or a :class:`Pushdown`.
        tokens: How many tokens may be written at most, as told to
            :func:`companion.models.generate`: then what could not be completed within them is
            forbidden too, and no text is cut off. By default texts are as long as they like.

    Attributes:
        log_mass: ``"batch"``: :math:`\sum_t\log Z_t` of the last texts, in nats; ``None`` before.
            It adds up row by row, so it belongs to texts that keep their rows: those of a
            sampler, and not of a beam search.

    Raises:
        ValueError: If no text is short enough; and, when it is used, if a text was written that
            the grammar does not allow, for example by another pick, or if more than the announced
            tokens are written.

    References:
        Park et al. 2024, arXiv:2405.21047, on how masks distort.

    Book: :doc:`/book/generation/control`
    """

    def __init__(self, grammar: Grammar, *, tokens: int | None = None) -> None:
        if tokens is not None:
            check_count("tokens", tokens)
            first = grammar.allowed(grammar.begin(1, _device(grammar)), left=tokens)
            if not bool(first.any()):
                raise ValueError(
                    f"no text of at most {tokens} tokens satisfies the constraint: allow more"
                )
        self.grammar, self.tokens = grammar, tokens
        self.log_mass: Tensor | None = None
        self._states = torch.zeros(0, dtype=torch.long)
        self._known = torch.zeros(0, 0, dtype=torch.long)

    def states(self, written: Integer[Tensor, "batch written"]) -> Integer[Tensor, " batch"]:
        """Tell where texts stand in the grammar.

        Args:
            written: The new tokens of each.

        Returns:
            Their states; what was seen at the last call is not followed again.
        """
        n = self._known.shape[1]
        known = len(self._known) == len(written) and n <= written.shape[1]
        if (
            not known
            or self._known.device != written.device
            or (n and not torch.equal(written[:, :n], self._known))
        ):
            n = 0
        states = self._states if n else self.grammar.begin(len(written), written.device)
        for place in range(n, written.shape[1]):
            states = self.grammar.advance(states, written[:, place])
        self._states, self._known = states, written.clone()
        return states

    def __call__(
        self, logits: Float[Tensor, "batch vocab"], history: History
    ) -> Float[Tensor, "batch vocab"]:
        """Mask one step.

        Args:
            logits: Of the next token.
            history: The text.

        Returns:
            The logits, minus infinity for what is not allowed.
        """
        written = history.written
        check_shape("logits", logits, (len(written), self.grammar.vocab))
        left = None if self.tokens is None else self.tokens - written.shape[1]
        if left is not None and left < 1:
            raise ValueError(f"the constraint was made for {self.tokens} tokens: announce more")
        allowed = self.grammar.allowed(self.states(written), left=left)
        if can_read(logits) and not bool(allowed.any(-1).all()):
            raise ValueError("a text was written that the constraint does not allow")
        masked = logits.masked_fill(~allowed, -math.inf)
        mass = wide(masked).logsumexp(-1) - wide(logits).logsumexp(-1)
        mass = mass.masked_fill(history.ended, 0.0)
        before = self.log_mass
        fresh = before is None or not written.shape[1] or len(mass) != len(before)
        self.log_mass = mass if fresh or before is None else before + mass
        return masked


def completion_probability(
    transitions: Float[Tensor, "vocab vocab"], index: TokenIndex, *, tokens: int
) -> Float[Tensor, "left states vocab"]:
    r"""Compute how probable it is that a text of a Markov model will satisfy the constraint.

    .. math:: \beta_{k}(s, y) = \sum_x p(x\mid y)\,\beta_{k-1}(\delta(s,x), x), \qquad
        \beta_k(\text{ended}, y) = 1,\quad \beta_0(s,y) = 0 \text{ else}

    with :math:`y` the last token, :math:`s` the state and :math:`k` the tokens that are left. A
    text counts if it ends within them.

    Args:
        transitions: :math:`p(x\mid y)`, a row for each last token :math:`y`.
        index: The automaton, with tokens that end a text.
        tokens: How many tokens a text may have, the one that ends it included.

    Returns:
        :math:`\beta`, for 0 to ``tokens`` tokens left.

    Raises:
        ValueError: If the shapes do not fit, a row is no law, or the index has no tokens that end
            a text.

    Numerics:
        :math:`O(\text{tokens}\cdot\text{states}\cdot\text{vocab}^2)` by matrix products; each is a
        sum of positive numbers.

    References:
        The backward recursion of Baum and others; as a constraint of a language model, Zhang et
        al. 2024, arXiv:2406.13892.

    Book: :doc:`/book/generation/control`
    """
    check_floating("transitions", transitions)
    check_shape("transitions", transitions, (index.vocab, index.vocab))
    check_count("tokens", tokens)
    slack = max(1e-3, 4 * torch.finfo(transitions.dtype).eps)
    if can_read(transitions):
        sums = wide(transitions).sum(1)
        if not bool((transitions >= 0).all() & ((sums - 1).abs() <= slack).all()):
            raise ValueError(
                f"each row of transitions must be a law of the next token, its sums lie between "
                f"{float(sums.min()):.4g} and {float(sums.max()):.4g}: transpose it if its columns "
                "are laws"
            )
    if not index.stop:
        raise ValueError("texts must end: give the index the tokens that end one, as stop")
    states = len(index.accepting)
    beta = transitions.new_zeros(tokens + 1, states, index.vocab)
    beta[:, states - 1] = 1.0
    target = index.next.long()
    token = torch.arange(index.vocab, device=target.device)
    for left in range(1, tokens + 1):
        reached = beta[left - 1][target.clamp(min=0), token]
        reached = reached.masked_fill(target < 0, 0.0)
        beta[left, :-1] = (reached @ transitions.T)[:-1]
    return beta


class Lookahead:
    r"""Condition a Markov model on a constraint, exactly: a ``warp`` of the sampler.

    .. math:: p(x_t\mid x_{<t}, C) = p(x_t\mid x_{<t})\,
        \frac{\beta_{k-1}(\delta(s,x_t), x_t)}{\beta_k(s, x_{t-1})}

    With the transitions of a Markov model that only resembles the model, it steers towards what
    can be completed, and is no longer exact.

    Args:
        transitions: :math:`p(x\mid y)` of the Markov model.
        index: The automaton.
        tokens: How many tokens may be written, as told to :func:`companion.models.generate`.

    Attributes:
        beta: See :func:`completion_probability`.

    Raises:
        ValueError: As there; and, when it is used, if the constraint cannot be satisfied any more.

    References:
        Zhang et al. 2024, arXiv:2406.13892, with a hidden Markov model.

    Book: :doc:`/book/generation/control`
    """

    def __init__(
        self, transitions: Float[Tensor, "vocab vocab"], index: TokenIndex, *, tokens: int
    ) -> None:
        self.beta = completion_probability(transitions, index, tokens=tokens)
        self.tokens, self._follow = tokens, Constraint(index)
        self.index = index

    def __call__(
        self, logits: Float[Tensor, "batch vocab"], history: History
    ) -> Float[Tensor, "batch vocab"]:
        """Weigh one step by what may still come.

        Args:
            logits: Of the next token.
            history: The text.

        Returns:
            New logits.
        """
        left = self.tokens - history.written.shape[1]
        if left < 1:
            raise ValueError(f"this looks ahead for {self.tokens} tokens: announce more")
        states = self._follow.states(history.written)
        target = self.index.next[states.clamp(min=0)].long()
        token = torch.arange(self.index.vocab, device=target.device)
        reached = self.beta[left - 1][target.clamp(min=0), token]
        reached = reached.masked_fill(target < 0, 0.0).masked_fill((states < 0)[:, None], 0.0)
        if can_read(reached) and not bool((reached > 0).any(-1).all()):
            raise ValueError(f"no text of {left} more tokens satisfies the constraint")
        return wide(logits) + reached.log().to(wide(logits))


class Exact(NamedTuple):
    """Texts drawn from a model given a constraint.

    Attributes:
        ids: ``"n written"``: the new tokens, filled up with the token that ended them.
        tried: How many texts were drawn to get them.
    """

    ids: Tensor
    tried: int


def exact_sample(
    model: Decoder | NextToken,
    ids: Integer[Tensor, "one n"],
    grammar: Grammar,
    *,
    tokens: int,
    count: int,
    stop: Any,
    generator: torch.Generator,
    batch_size: int = 64,
    limit: int = 100_000,
) -> Exact:
    r"""Draw texts from a model given a constraint, exactly, by rejection.

    A text drawn under masks has the chance :math:`p/\prod_tZ_t`, where :math:`\prod_tZ_t\le1`. So
    it is kept with the probability :math:`\prod_tZ_t`, and what is kept has the law
    :math:`p(\cdot\mid C)`. On average :math:`p(C)` of the texts are.

    Args:
        model: Any model.
        ids: One prompt.
        grammar: The constraint. Texts that do not end within ``tokens`` do not count.
        tokens: Most new tokens.
        count: How many texts are wanted.
        stop: The tokens that end a text.
        generator: The source of randomness.
        batch_size: How many are drawn at once.
        limit: How many are drawn at most.

    Returns:
        The texts, and how many were drawn.

    Raises:
        ValueError: If fewer are kept than are wanted.

    Book: :doc:`/book/generation/control`
    """
    check_shape("ids", ids, (1, None))
    check_count("count", count)
    check_count("limit", limit)
    check_count("batch_size", batch_size)
    ends = torch.tensor(list(stop), dtype=torch.long, device=ids.device)
    check_count("tokens that end a text", len(ends))
    kept: list[Tensor] = []
    tried = 0
    while sum(map(len, kept)) < count:
        if tried >= limit:
            raise ValueError(
                f"{sum(map(len, kept))} of {tried} texts were kept: the constraint is improbable, "
                "raise limit"
            )
        # No limit of tokens in the mask: it would change the law.
        constraint = Constraint(grammar)
        many = ids.expand(batch_size, -1)
        pick = sample(generator=generator, warp=constraint)
        written = generate(model, many, tokens=tokens, pick=pick, stop=stop)
        assert constraint.log_mass is not None
        chance = constraint.log_mass.exp()
        coin = torch.rand(batch_size, generator=generator, device=generator.device)
        done = torch.isin(written[:, -1], ends)
        good = written[(coin.to(chance) < chance) & done]
        filled = written.new_full((len(good), tokens - written.shape[1]), int(ends[0]))
        kept.append(torch.cat([good, filled], 1))
        tried += batch_size
    found = torch.cat(kept)
    return Exact(found[:count], tried)


class Paths(NamedTuple):
    r"""All texts of tokens that a constraint allows.

    Attributes:
        ids: The tokens of each, without the one that ends it.
        log_p: ``"paths"``: its log-probability under the model, its end included, in nats.
        log_q: ``"paths"``: the same under masks.
        missing: How much probability under masks was cut off by ``floor``.
    """

    ids: list[list[int]]
    log_p: Tensor
    log_q: Tensor
    missing: float


def constrained_paths(
    model: Decoder | NextToken,
    ids: Integer[Tensor, " n"],
    index: TokenIndex,
    *,
    floor: float = 0.0,
    limit: int = 10_000,
    batch_size: int = 64,
) -> Paths:
    r"""List all ways in which tokens can satisfy a constraint, with what model and masks give them.

    One text may be written in several ways: add those that decode to the same bytes. Of an index
    without tokens that end a text, a path ends in its first accepting state: then these are all
    ways to cover a prefix.

    Args:
        model: The model, in evaluation mode.
        ids: One prompt.
        index: The constraint.
        floor: Paths that the masks give less probability are dropped, with what they lead to.
        limit: Paths at most.
        batch_size: How many are read at once.

    Returns:
        The paths.

    Raises:
        ValueError: If there are more than ``limit`` beginnings of one length: the language is
            infinite, or large; give a floor.

    Numerics:
        The prompt is read once, and the cache holds ``batch_size`` copies of it. Sums are in
        float64.

    Book: :doc:`/book/generation/control`
    """
    check_shape("ids", ids, (None,))
    check_count("tokens of the prompt", len(ids))
    check_in_range("floor", floor, low=0.0, high=1.0, open_high=True)
    check_count("batch_size", batch_size)
    least = math.log(floor) if floor else -math.inf
    found: list[tuple[list[int], float, float]] = []
    missing = 0.0
    open_: list[tuple[list[int], int, float, float]] = [([], 0, 0.0, 0.0)]
    cache = model.cache(batch_size, min(model.config.context, len(ids) + 512))
    while open_:
        if len(open_) + len(found) > limit:
            raise ValueError(f"more than {limit} texts satisfy the constraint: give a floor")
        further: list[tuple[list[int], int, float, float]] = []
        for begin in range(0, len(open_), batch_size):
            some = open_[begin : begin + batch_size]
            logs = _next(model, ids, [path for path, *_ in some], cache, batch_size)
            for (path, state, log_p, log_q), row in zip(some, logs, strict=True):
                tokens = index.mask(state).nonzero()[:, 0].cpu()
                kept = row[tokens]
                masked = kept.log_softmax(0)
                after = index.next[state][tokens].tolist()
                for token, to, a, b in zip(
                    tokens.tolist(), after, kept.tolist(), masked.tolist(), strict=True
                ):
                    p, q = log_p + a, log_q + b
                    if q < least or q == -math.inf:
                        missing += math.exp(q)
                    elif token in index.stop:
                        # Several tokens may end a text: it is one path.
                        found.append((path, p, q))
                    elif not index.stop and bool(index.accepting[to]):
                        found.append(([*path, token], p, q))
                    else:
                        further.append(([*path, token], to, p, q))
        open_ = further
    texts, log_ps, log_qs = zip(*found, strict=True) if found else ((), (), ())
    return Paths(
        list(texts),
        torch.tensor(log_ps, dtype=torch.float64),
        torch.tensor(log_qs, dtype=torch.float64),
        missing,
    )


def _next(model: Any, ids: Tensor, paths: list[list[int]], cache: Any, rows: int) -> Tensor:
    """Log-probabilities after the prompt and each path, in float64."""
    with torch.inference_mode():
        if cache.length == 0:
            logits = model(ids.expand(rows, -1), cache=cache, last=1)
        else:
            cache.truncate(len(ids))
            # The cache has a fixed number of rows: what is missing repeats the first path.
            filled = [*paths, *[paths[0]] * (rows - len(paths))]
            new = torch.tensor(filled, dtype=ids.dtype, device=ids.device)
            logits = model(new, cache=cache, last=1)
        found: Tensor = wide(logits[: len(paths), -1]).log_softmax(-1).double().cpu()
    return found


def _device(grammar: Any) -> torch.device:
    table = getattr(grammar, "next", None)
    return table.device if isinstance(table, Tensor) else torch.device("cpu")
