r"""Beam search and diverse beams, as a pick of the one loop; exact search for small models.

The rows of the loop are the beams: those of the first text, best first, then those of the second.
"""

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import check_count, check_ids, check_in_range, check_shape, wide
from companion.models import History, NextToken, generate
from companion.pretraining.autoregressive._draw import check_rows
from companion.transformer.block import Decoder, EncoderDecoder

__all__ = ["Beams", "Mode", "beam_search", "exact_search"]

NEVER = float("-inf")
Early = bool | Literal["never"]


class Beams(NamedTuple):
    r"""What a beam search has found, the best first.

    Attributes:
        ids: The new tokens of each text, filled up with its last token.
        lengths: How many of them were written, the one that ended it included.
        scores: :math:`\log P(y \mid c) / \lvert y\rvert^\alpha`. Minus infinity, with length 0,
            where fewer texts were finished than there are beams.
    """

    ids: Integer[Tensor, "batch beams written"]
    lengths: Integer[Tensor, "batch beams"]
    scores: Float[Tensor, "batch beams"]


class _Group:
    """The beams of one group: what runs, and what is finished."""

    def __init__(self, width: int, limit: int, length_penalty: float, early: Early) -> None:
        self.width, self.limit = width, limit
        self.length_penalty, self.early = length_penalty, early
        self.running: Tensor | None = None

    def start(self, batch: int, like: Tensor) -> None:
        """All rows are alike at first: only one of them may go on."""
        shape = (batch, self.width)
        self.running = like.new_full(shape, NEVER)
        self.running[:, 0] = 0.0
        self.scores = like.new_full(shape, NEVER)
        self.finished = torch.zeros(shape, dtype=torch.bool, device=like.device)
        self.lengths = torch.zeros(shape, dtype=torch.long, device=like.device)
        self.texts = torch.zeros(*shape, self.limit, dtype=torch.long, device=like.device)
        self.done = torch.zeros(batch, dtype=torch.bool, device=like.device)

    def advance(
        self, log_probs: Tensor, written: Tensor, stops: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step: the tokens, the beams that they continue, and what the best ones took."""
        _, width, vocab = log_probs.shape
        assert self.running is not None
        step = written.shape[-1] + 1
        total = (self.running[..., None] + log_probs).flatten(1)
        # So many that the beams stay full if all of the best ones end in each of the ways.
        wanted = min(max(2, 1 + len(stops)) * width, total.shape[1])
        best, place = total.topk(wanted, dim=-1)
        rows, tokens = place // vocab, place % vocab
        ends = torch.isin(tokens, stops) if step < self.limit else torch.ones_like(tokens).bool()

        self._collect(best, rows, tokens, written, ends)

        left = best.masked_fill(ends, NEVER)
        self.running, order = left.topk(width, dim=-1)
        highest = self.running[:, 0]
        hoped = self.limit if self.early == "never" and self.length_penalty > 0 else step
        promise = highest / hoped**self.length_penalty
        full = self.finished.all(1)
        self.done = self.done | (full & (promise <= self.scores.amin(1)))
        if self.early is True:
            self.done = self.done | full
        return tokens.gather(1, order), rows.gather(1, order), tokens[:, :width]

    def _collect(
        self, best: Tensor, rows: Tensor, tokens: Tensor, written: Tensor, ends: Tensor
    ) -> None:
        """Keep the best of the texts that were finished before and those that end now."""
        step = written.shape[-1] + 1
        # What ends below the best beams only keeps the beams full.
        may = ends.clone()
        may[:, self.width :] = False
        may &= ~self.done[:, None] & (best > NEVER)
        scores = (best / step**self.length_penalty).masked_fill(~may, NEVER)
        texts = self.texts.new_zeros(*rows.shape, self.limit)
        texts[..., : step - 1] = written.gather(1, rows[..., None].expand(-1, -1, step - 1))
        texts[..., step - 1 :] = tokens[..., None]
        self.scores, order = torch.cat([self.scores, scores], 1).topk(self.width, dim=-1)
        lengths = torch.full_like(rows, step).masked_fill(~may, 0)
        self.lengths = torch.cat([self.lengths, lengths], 1).gather(1, order)
        self.finished = torch.cat([self.finished, may], 1).gather(1, order)
        every = torch.cat([self.texts, texts], 1)
        self.texts = every.gather(1, order[..., None].expand(-1, -1, self.limit))


class _BeamPick:
    """The pick of a beam search over groups."""

    def __init__(
        self,
        groups: Sequence[_Group],
        stop: Sequence[int],
        diversity: float,
        warp: Callable[[Tensor, History], Tensor] | None,
    ) -> None:
        self.groups, self.stop = groups, stop
        self.diversity, self.warp = diversity, warp

    def __call__(self, logits: Tensor, history: History) -> tuple[Tensor, Tensor]:
        """Choose tokens, and the beams that they continue."""
        width = self.groups[0].width
        beams = width * len(self.groups)
        vocab = logits.shape[-1]
        check_rows(logits)
        log_probs = wide(logits).log_softmax(-1)
        if self.warp is not None:
            log_probs = self.warp(log_probs, history)
        log_probs = log_probs.view(-1, len(self.groups), width, vocab)
        batch = len(log_probs)
        written = history.written.reshape(batch, len(self.groups), width, -1)
        stops = torch.tensor(list(self.stop), dtype=torch.long, device=logits.device)
        chosen = log_probs.new_zeros(batch, vocab)  # how often earlier groups took each token
        tokens, rows, done = [], [], []
        for index, group in enumerate(self.groups):
            if group.running is None:
                group.start(batch, log_probs)
            scores = log_probs[:, index] - self.diversity * chosen[:, None]
            new, parents, taken = group.advance(scores, written[:, index], stops)
            chosen = chosen.scatter_add(1, taken, torch.ones_like(taken, dtype=chosen.dtype))
            tokens.append(new)
            rows.append(parents + index * width)
            done.append(group.done)
        every, parents = torch.cat(tokens, 1), torch.cat(rows, 1)
        if len(stops):  # tells the loop that nothing of this text is wanted any more
            over = torch.stack(done, 1).all(1)
            every = torch.where(over[:, None], stops[0], every)
        parents = parents + beams * torch.arange(batch, device=rows[0].device)[:, None]
        return every.flatten(), parents.flatten()


def beam_search(
    model: Decoder | EncoderDecoder | NextToken,
    ids: Integer[Tensor, "batch n"],
    *,
    tokens: int,
    beams: int,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    stop: Sequence[int] = (),
    groups: int = 1,
    diversity: float = 0.0,
    warp: Callable[[Tensor, History], Tensor] | None = None,
    real: Bool[Tensor, "batch n"] | None = None,
    source: Integer[Tensor, "batch m"] | None = None,
    source_real: Bool[Tensor, "batch m"] | None = None,
) -> Beams:
    r"""Search for likely continuations, keeping the best prefixes of each length.

    .. math:: \hat y \approx \arg\max_y \frac{\log P(y \mid c)}{\lvert y\rvert^\alpha}

    The length counts the new tokens only, not those of the prompt.

    Args:
        model: The language model, in evaluation mode.
        ids: Prompts, shorter ones padded on the left.
        tokens: Most new tokens.
        beams: How many prefixes are kept for each prompt.
        length_penalty: :math:`\alpha`; 0 compares log-probabilities, larger values favor long
            texts.
        early_stopping: ``True`` stops when as many texts are finished as there are beams;
            ``False`` when the best running one, at its present length, is no better than the
            worst finished one; ``"never"`` when it could not become better at any length, for
            which a positive penalty takes the greatest.
        stop: Tokens that end a text. A text is also finished at the last step.
        groups: How many groups search side by side; ``beams`` is a multiple of it.
        diversity: What a group loses, in nats, each time that it takes the token of a step that
            an earlier group took. It stays in the scores.
        warp: Changes the log-probabilities of each step, which are not normalized again.
        real: ``True`` for tokens of the prompts, ``False`` for padding.
        source: What an encoder-decoder reads.
        source_real: ``True`` for its tokens.

    Returns:
        The texts and their scores, the best first.

    Raises:
        ValueError: If a number is out of its range, :func:`companion.models.generate` refuses, or
            the model gives no distribution: a logit is NaN, for example.

    Numerics:
        Scores are sums in float32 or better. A step reads one token for each beam, and copies the
        caches of the beams that are continued.

    References:
        Wu et al. 2016, arXiv:1609.08144, sec. 7, with another form of the penalty; Vijayakumar et
        al. 2018, arXiv:1610.02424, for groups.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=1, heads=3, ff_dim=31, context=9)
        >>> found = beam_search(Decoder(config).eval(), torch.tensor([[1, 2]]), tokens=3, beams=2)
        >>> found.ids.shape, found.lengths.tolist()
        (torch.Size([1, 2, 3]), [[3, 3]])
    """
    check_shape("ids", ids, (None, None))
    check_count("tokens", tokens)
    check_count("beams", beams)
    check_count("groups", groups)
    check_in_range("length_penalty", length_penalty, open_low=True, open_high=True)
    check_in_range("diversity", diversity, low=0.0, open_high=True)
    if early_stopping not in (True, False, "never"):
        raise ValueError(f"early_stopping must be True, False or 'never', got {early_stopping!r}")
    if beams % groups:
        raise ValueError(f"beams must be a multiple of groups, got {beams} and {groups}")
    width = beams // groups
    made = [_Group(width, tokens, length_penalty, early_stopping) for _ in range(groups)]

    def many(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.repeat_interleave(beams, 0)

    repeated: Any = many(ids)
    generate(
        model,
        repeated,
        tokens=tokens,
        pick=_BeamPick(made, stop, diversity, warp),
        real=many(real),
        stop=stop,
        source=many(source),
        source_real=many(source_real),
    )
    scores = torch.cat([group.scores for group in made], 1)
    lengths = torch.cat([group.lengths for group in made], 1)
    texts = torch.cat([group.texts for group in made], 1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    lengths = lengths.gather(1, order)
    texts = texts.gather(1, order[..., None].expand(-1, -1, tokens))
    return Beams(texts[..., : int(lengths.max())].to(ids.dtype), lengths, scores)


class Mode(NamedTuple):
    """The most likely text, or the best that was found.

    Attributes:
        ids: Its new tokens, with the one that ends it.
        log_prob: Its log-probability given the prompt, in nats.
        proven: Whether no text of at most so many tokens is likelier.
        reads: How many prefixes the model has scored.
    """

    ids: Integer[Tensor, " written"]
    log_prob: float
    proven: bool
    reads: int


def exact_search(
    model: Decoder | NextToken,
    ids: Integer[Tensor, " n"],
    *,
    stop: int,
    tokens: int,
    reads: int = 10_000,
    batch_size: int = 64,
) -> Mode:
    r"""Find the most likely text that ends, and prove it, by branch and bound.

    A prefix is at least as likely as all of its continuations. So the likeliest prefix is continued
    first, and no prefix that is less likely than a finished text needs to be looked at.

    Args:
        model: The language model, in evaluation mode.
        ids: One prompt.
        stop: The token that ends a text.
        tokens: Most new tokens, the one that ends included.
        reads: After how many scored prefixes to give up the proof.
        batch_size: How many prefixes are scored at once. They share a length, so a step may take
            fewer.

    Returns:
        The text. Minus infinity and no token, if no text ended within the limits.

    Raises:
        ValueError: If a number is out of its range, prompt and text exceed the model's context, or
            the model gives no distribution.

    Numerics:
        The number of prefixes grows like the inverse of the probability of the mode. The prompt is
        read once, and the cache holds ``batch_size`` copies of it.

    References:
        Stahlberg and Byrne 2019, arXiv:1908.10090, whose search goes depth first.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=5, dim=12, layers=1, heads=3, ff_dim=31, context=9)
        >>> model = Decoder(config).eval()
        >>> exact_search(model, torch.tensor([1, 2]), stop=0, tokens=3).proven
        True
    """
    check_shape("ids", ids, (None,))
    check_count("tokens of the prompt", len(ids))
    check_count("tokens", tokens)
    check_count("reads", reads)
    check_count("batch_size", batch_size)
    check_ids("stop", torch.tensor([stop]), model.config.vocab)
    context = model.config.context
    if len(ids) + tokens - 1 > context:  # the last token is not read
        raise ValueError(
            f"a prompt of {len(ids)} tokens and a text of {tokens} exceed the model's context of "
            f"{context}: ask for fewer tokens"
        )
    best: tuple[float, list[int]] = (NEVER, [])
    open_prefixes: list[tuple[float, list[int]]] = [(0.0, [])]  # by the negated log-probability
    cache = model.cache(batch_size, min(len(ids) + tokens, context))
    count = 0
    while open_prefixes and -open_prefixes[0][0] > best[0] and count < reads:
        chosen = [heappop(open_prefixes)]
        aside: list[tuple[float, list[int]]] = []
        while open_prefixes and len(chosen) < batch_size and -open_prefixes[0][0] > best[0]:
            one = heappop(open_prefixes)
            (chosen if len(one[1]) == len(chosen[0][1]) else aside).append(one)
        for one in aside:
            heappush(open_prefixes, one)
        count += len(chosen)
        logs = _continuations(model, ids, [prefix for _, prefix in chosen], cache, batch_size)
        before = torch.tensor([-cost for cost, _ in chosen], dtype=torch.float64)
        scores = before[:, None] + logs
        for row, (_, prefix) in enumerate(chosen):
            if float(scores[row, stop]) > best[0]:
                best = (float(scores[row, stop]), [*prefix, stop])
        scores[:, stop] = NEVER
        if len(chosen[0][1]) + 1 < tokens:
            for row, token in (scores > best[0]).nonzero().tolist():
                heappush(open_prefixes, (-float(scores[row, token]), [*chosen[row][1], token]))
    proven = best[0] > NEVER and not (open_prefixes and -open_prefixes[0][0] > best[0])
    text = torch.tensor(best[1], dtype=ids.dtype, device=ids.device)
    return Mode(text, best[0], proven, count)


def _continuations(
    model: Any, ids: Tensor, prefixes: list[list[int]], cache: Any, rows: int
) -> Tensor:
    """Log-probabilities of what follows the prompt and each of the prefixes, in float64."""
    with torch.inference_mode():
        if cache.length == 0:
            logits = model(ids.expand(rows, -1), cache=cache, last=1)
        else:
            cache.truncate(len(ids))
            # The cache has a fixed number of rows: what is missing repeats the first prefix.
            filled = [*prefixes, *[prefixes[0]] * (rows - len(prefixes))]
            new = torch.tensor(filled, dtype=ids.dtype, device=ids.device)
            logits = model(new, cache=cache, last=1)
        check_rows(logits)
        found: Tensor = wide(logits[: len(prefixes), -1]).log_softmax(-1).double().cpu()
    return found
