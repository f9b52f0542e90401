"""BART's five noises: each takes rows of tokens and returns rows of tokens."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Integer
from torch import Tensor

from companion.core import check_count, check_in_range
from companion.pretraining.denoising._tokens import Tokens, check_tokens, choose, pack, rounded

__all__ = [
    "compose",
    "document_rotation",
    "expected_infill_spans",
    "fill_in_the_middle",
    "infill_lengths",
    "sentence_permutation",
    "text_infilling",
    "token_deletion",
    "token_masking",
]


def compose(*noises: Callable[..., Tokens]) -> Callable[..., Tokens]:
    """Chain noises: the first one given is applied first.

    Args:
        noises: Functions of (tokens, generator=...), for example made by ``functools.partial``.

    Returns:
        One such function.

    Book: :doc:`/book/pretraining/denoising`

    Example:
        >>> from functools import partial
        >>> from companion.pretraining.denoising import pad_rows, unpad
        >>> noise = compose(partial(token_deletion, ratio=0.5), document_rotation)
        >>> g = torch.Generator().manual_seed(0)
        >>> len(unpad(noise(pad_rows([[3, 4, 5, 6]]), generator=g))[0])
        2
    """

    def noised(tokens: Tokens, *, generator: torch.Generator) -> Tokens:
        for noise in noises:
            tokens = noise(tokens, generator=generator)
        return tokens

    return noised


def token_masking(
    tokens: Tokens, *, mask_id: int, ratio: float = 0.15, generator: torch.Generator
) -> Tokens:
    r"""Replace :math:`\mathrm{round}(rn)` tokens of each row by a mask; all subsets alike.

    Args:
        tokens: The rows.
        mask_id: Id of the mask.
        ratio: The share :math:`r`, in [0, 1].
        generator: The source of randomness.

    Returns:
        Rows of the same lengths.

    Raises:
        ValueError: If the ratio lies outside of [0, 1], or padding is not on the right.

    References:
        M. Lewis et al., "BART", arXiv:1910.13461, section 2.2.

    Book: :doc:`/book/pretraining/denoising`
    """
    chosen = _choose(tokens, ratio, generator)
    return Tokens(tokens.ids.masked_fill(chosen, mask_id), tokens.real)


def token_deletion(
    tokens: Tokens, *, ratio: float = 0.15, pad: int = 0, generator: torch.Generator
) -> Tokens:
    r"""Delete :math:`\mathrm{round}(rn)` tokens of each row: the model must find out where.

    Args:
        tokens: The rows.
        ratio: The share :math:`r`, in [0, 1].
        pad: The id that fills rows.
        generator: The source of randomness.

    Returns:
        Shorter rows.

    Raises:
        ValueError: If the ratio lies outside of [0, 1], or padding is not on the right.

    References:
        M. Lewis et al., "BART", arXiv:1910.13461, section 2.2.

    Book: :doc:`/book/pretraining/denoising`
    """
    chosen = _choose(tokens, ratio, generator)
    return pack(tokens.ids, tokens.real & ~chosen, pad=pad)


def _choose(tokens: Tokens, ratio: float, generator: torch.Generator) -> Tensor:
    check_tokens("tokens", tokens)
    check_in_range("ratio", ratio, low=0.0, high=1.0)
    return choose(rounded(ratio, tokens.real.sum(1)), tokens.real, generator=generator)


def infill_lengths(
    budget: Integer[Tensor, " batch"],
    *,
    largest: int,
    rate: float = 3.0,
    generator: torch.Generator,
) -> Integer[Tensor, "batch spans"]:
    r"""Draw the lengths of spans until they cover a budget of tokens.

    .. math:: \ell_s \sim \mathrm{Poisson}(\lambda), \qquad
        N = \min\{s : \ell_1 + \dots + \ell_s \ge b\}

    The last span is cut so that the sum is :math:`b` exactly.

    Args:
        budget: Tokens :math:`b` that the spans of each row shall cover.
        largest: A bound of the budgets, which decides how many columns are drawn.
        rate: :math:`\lambda > 0`, the mean length before the cut.
        generator: The source of randomness.

    Returns:
        One row of lengths for each budget, and ``-1`` after the last span. Lengths may be 0.

    Raises:
        ValueError: If ``rate`` is not above 0, or ``largest`` is below 0.

    Numerics:
        So many columns are drawn that they cover the budget but for a chance below
        :math:`10^{-12}`; then the last column takes what is left.

    References:
        M. Lewis et al., "BART", arXiv:1910.13461, section 2.2. The cut of the last span is that of
        the published code.

    Book: :doc:`/book/pretraining/denoising`
    """
    check_in_range("rate", rate, low=0.0, open_low=True, open_high=True)
    check_count("largest", largest, low=0)
    # Poisson(c) falls below b = c - 7.5 sqrt(c) - ... with a chance under 1e-12.
    columns = math.ceil((largest + 7.5 * math.sqrt(largest) + 28) / rate)
    rates = torch.full((len(budget), columns), rate, device=generator.device)
    drawn = torch.poisson(rates, generator=generator).long().to(budget.device)
    drawn = torch.cat([drawn[:, :-1], torch.full_like(drawn[:, -1:], largest)], 1)
    before = drawn.cumsum(1) - drawn
    left = budget[:, None] - before
    return torch.where(left > 0, torch.minimum(drawn, left), -1)


def expected_infill_spans(budget: int, *, rate: float = 3.0) -> float:
    r"""Return the mean number of spans that :func:`infill_lengths` draws for a budget.

    .. math:: \mathbb E[N] = \sum_{s \ge 0} P(N > s)
        = \sum_{s \ge 0} P\big(\mathrm{Poisson}(\lambda s) < b\big)

    since the sum of :math:`s` independent lengths is Poisson with the rate :math:`\lambda s`.

    Args:
        budget: Tokens :math:`b`, 0 or more.
        rate: :math:`\lambda > 0`.

    Returns:
        The mean; for large budgets close to :math:`b/\lambda + 1/2`.

    Raises:
        ValueError: If an argument is out of its domain.

    Book: :doc:`/book/pretraining/denoising`

    Example:
        >>> round(expected_infill_spans(30), 3)
        10.5
    """
    check_count("budget", budget, low=0)
    check_in_range("rate", rate, low=0.0, open_low=True, open_high=True)
    if budget == 0:
        return 0.0
    end = math.ceil((budget + 7.5 * math.sqrt(budget) + 40) / rate)
    means = rate * torch.arange(end + 1, dtype=torch.float64)
    counts = torch.arange(budget, dtype=torch.float64)
    logs = torch.special.xlogy(counts, means[:, None]) - means[:, None] - torch.lgamma(counts + 1)
    return float(logs.exp().sum())


def text_infilling(
    tokens: Tokens,
    *,
    mask_id: int,
    ratio: float = 0.3,
    rate: float = 3.0,
    pad: int = 0,
    generator: torch.Generator,
) -> Tokens:
    r"""Replace spans of tokens by one mask each; a span of length 0 inserts a mask.

    Lengths are drawn by :func:`infill_lengths` for :math:`b = \mathrm{round}(rn)` and shuffled. The
    :math:`N` spans and the :math:`n - b` tokens that stay are put in line, and all
    :math:`\binom{n - b + N}{N}` ways to place the spans are equally likely. So

    .. math:: |\tilde x| = n - \sum_{s=1}^N (\ell_s - 1) = n - b + N

    Args:
        tokens: The rows.
        mask_id: Id of the mask.
        ratio: Share :math:`r` of the tokens that is replaced, in [0, 1].
        rate: Mean length of a span, before the last one is cut.
        pad: The id that fills rows.
        generator: The source of randomness.

    Returns:
        The corrupted rows; for long ones about :math:`1 - r + r/\lambda` of the length.

    Raises:
        ValueError: If the ratio or the rate is out of its domain, or padding is not on the right.

    Numerics:
        No loop over rows or tokens. The result has room for more masks than will be drawn: see
        :func:`trim`.

    References:
        M. Lewis et al., "BART", arXiv:1910.13461, section 2.2. The published code rounds the
        budget up and can count whole words. Its spans start at distinct random places and may run
        into each other, so that a little less than the budget is masked; here they never overlap
        and the budget is met.

    Book: :doc:`/book/pretraining/denoising`
    """
    check_tokens("tokens", tokens)
    check_in_range("ratio", ratio, low=0.0, high=1.0)
    ids, real = tokens
    n = ids.shape[1]
    length = real.sum(1)
    budget = rounded(ratio, length)
    largest = int(rounded(ratio, torch.tensor(n)))
    lengths = infill_lengths(budget, largest=largest, rate=rate, generator=generator)
    # The last length is cut. In random order it may stand anywhere, not at the right end only.
    keys = torch.rand(lengths.shape, generator=generator, device=generator.device).to(ids.device)
    lengths = lengths.gather(1, keys.masked_fill(lengths < 0, 2.0).argsort(dim=1, stable=True))
    spans = (lengths >= 0).sum(1)
    width = n - largest + lengths.shape[1]
    line = torch.arange(width, device=ids.device)
    out_real = line < (length - budget + spans)[:, None]
    is_span = choose(spans, out_real, generator=generator)
    passed = is_span.long().cumsum(1)  # spans up to here
    covered = torch.nn.functional.pad(lengths.clamp(min=0).cumsum(1), (1, 0))
    origin = line - passed + covered.gather(1, passed)
    kept = ids.gather(1, origin.clamp(0, n - 1)) if n else ids.new_full((len(ids), width), pad)
    out = kept.masked_fill(is_span, mask_id).masked_fill(~out_real, pad)
    return Tokens(out, out_real)


def sentence_permutation(
    tokens: Tokens, *, stops: Sequence[int], generator: torch.Generator
) -> Tokens:
    r"""Shuffle the sentences of each row; all :math:`m!` orders are equally likely.

    A sentence ends with a stop, or with the row. Several stops in a row belong to one sentence.

    Args:
        tokens: The rows.
        stops: Ids that end a sentence.
        generator: The source of randomness.

    Returns:
        Rows of the same lengths, in which every sentence is whole.

    Raises:
        ValueError: If there is no stop, or padding is not on the right.

    References:
        M. Lewis et al., "BART", arXiv:1910.13461, section 2.2.

    Book: :doc:`/book/pretraining/denoising`
    """
    check_tokens("tokens", tokens)
    if not stops:
        raise ValueError("stops must hold at least one id")
    ids, real = tokens
    stop = torch.isin(ids, torch.tensor(list(stops), dtype=ids.dtype, device=ids.device)) & real
    follows = torch.nn.functional.pad(stop[:, :-1], (1, 0)) & ~stop
    sentence = follows.long().cumsum(1)
    keys = torch.rand(ids.shape, generator=generator, device=generator.device).to(ids.device)
    # Ranks are distinct even where two random keys are equal.
    place = keys.argsort(dim=1, stable=True).argsort(dim=1, stable=True).gather(1, sentence)
    order = place.masked_fill(~real, ids.shape[1]).argsort(dim=1, stable=True)
    return Tokens(ids.gather(1, order), real)


def document_rotation(tokens: Tokens, *, generator: torch.Generator) -> Tokens:
    """Rotate each row so that it begins with a token drawn uniformly.

    Args:
        tokens: The rows.
        generator: The source of randomness.

    Returns:
        Rows of the same lengths.

    Raises:
        ValueError: If padding is not on the right.

    References:
        M. Lewis et al., "BART", arXiv:1910.13461, section 2.2.

    Book: :doc:`/book/pretraining/denoising`
    """
    check_tokens("tokens", tokens)
    ids, real = tokens
    length = real.sum(1, keepdim=True).clamp(min=1)
    drawn = torch.rand((len(ids), 1), generator=generator, device=generator.device)
    first = (drawn.to(ids.device) * length).long().clamp(max=length - 1)
    line = torch.arange(ids.shape[1], device=ids.device)
    order = torch.where(real, (line + first) % length, line)
    return Tokens(ids.gather(1, order), real)


def fill_in_the_middle(
    tokens: Tokens, *, suffix: int, prefix: int, middle: int, generator: torch.Generator
) -> Tokens:
    r"""Move a middle part to the end, so that a causal model learns to fill a gap.

    .. math:: P\,M\,U \;\to\; \text{suffix}\;U\;\text{prefix}\;P\;\text{middle}\;M

    Two cuts are drawn, independently and uniformly among the :math:`n + 1` places between tokens
    and at the ends, and sorted. Parts may be empty.

    Args:
        tokens: The rows.
        suffix: Id that is put before the last part :math:`U`.
        prefix: Id that is put before the first part :math:`P`.
        middle: Id that is put before the part in between, :math:`M`.
        generator: The source of randomness.

    Returns:
        Rows that are longer by three tokens.

    Raises:
        ValueError: If padding is not on the right.

    References:
        M. Bavarian et al., "Efficient training of language models to fill in the middle",
        arXiv:2207.14255, section 3, the mode with the suffix first; here at the level of tokens.

    Book: :doc:`/book/pretraining/denoising`
    """
    check_tokens("tokens", tokens)
    ids, real = tokens
    batch, n = ids.shape
    length = real.sum(1, keepdim=True)
    drawn = torch.rand((batch, 2), generator=generator, device=generator.device).to(ids.device)
    cuts = (drawn * (length + 1)).long().minimum(length).sort(dim=1).values
    first, last = cuts[:, :1], cuts[:, 1:]
    line = torch.arange(n, device=ids.device)
    moved = line - last + 1  # the suffix comes first
    moved = torch.where(line < last, line + length - last + 3, moved)
    moved = torch.where(line < first, line + length - last + 2, moved)
    moved = torch.where(real, moved, line + 3)
    out = ids.new_zeros(batch, n + 3).scatter(1, moved, ids)
    marks = (
        (torch.zeros_like(first), suffix),
        (length - last + 1, prefix),
        (length - last + first + 2, middle),
    )
    for place, mark in marks:
        out = out.scatter(1, place, mark)
    return Tokens(out, torch.arange(n + 3, device=ids.device) < length + 3)
