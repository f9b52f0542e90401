r"""Hiding tokens: which positions are chosen, and what is put in their place.

The two questions are independent. :func:`corrupt` chooses positions one by one,
:func:`whole_word_corrupt` word by word, :func:`span_corrupt` in runs; all three then replace what
they chose by the same rule. All of them choose *each* position with the same probability, the
ratio, so that the expected share of chosen tokens is the ratio exactly.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from companion.core import (
    can_read,
    check_count,
    check_ids,
    check_in_range,
    check_shape,
    rand,
    randint,
)
from companion.foundations.cross_entropy import IGNORE

__all__ = [
    "Corrupted",
    "corrupt",
    "span_corrupt",
    "span_lengths",
    "whole_word_corrupt",
    "word_numbers",
]


class Corrupted(NamedTuple):
    r"""A corrupted batch.

    Attributes:
        ids: What the model reads, :math:`\tilde x`.
        targets: The original token where a position was chosen, -100 elsewhere.
        chosen: The set :math:`\mathcal M`: ``True`` at each chosen position, also where the token
            was kept.
    """

    ids: Integer[Tensor, "batch n"]
    targets: Int[Tensor, "batch n"]
    chosen: Bool[Tensor, "batch n"]


def corrupt(
    ids: Integer[Tensor, "batch n"],
    *,
    vocab: int,
    mask_id: int,
    special: Sequence[int] = (),
    ratio: float | Float[Tensor, " batch"] = 0.15,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
    generator: torch.Generator,
) -> Corrupted:
    r"""Choose positions independently, and replace their tokens as BERT does.

    Each position that holds no special token belongs to :math:`\mathcal M` with probability
    :math:`p`, and then

    .. math:: \tilde x_i = \begin{cases} \texttt{[MASK]} & \text{with probability } 0.8 \\
        \text{a random token} & \text{with probability } 0.1 \\
        x_i & \text{with probability } 0.1 \end{cases}

    Args:
        ids: The text :math:`x`.
        vocab: Number of token ids; random tokens are uniform on all of them.
        mask_id: The id of ``[MASK]``.
        special: Ids that are never chosen, such as ``[CLS]``, ``[SEP]`` and padding.
        ratio: The probability :math:`p` in [0, 1], one for all texts or one for each.
        split: Probabilities of ``[MASK]``, of a random token, and of the token itself; they sum
            to 1.
        generator: The source of randomness. Call again with it for new masks (dynamic masking);
            a generator with the same seed gives the same masks (static masking).

    Returns:
        What the model reads, the targets, and the positions chosen.

    Raises:
        ValueError: If an id or a probability is out of range, or ``split`` does not sum to 1.

    Numerics:
        No loop and no synchronization. A random token equals the original one with probability
        1 / vocab, as in the original code.

    References:
        Devlin et al. 2019, arXiv:1810.04805, section 3.1 and appendix A.1. They choose exactly
        15% of a text's tokens, here their number is binomial, as in later implementations.

    Book: :doc:`/book/pretraining/masked`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> text = torch.tensor([[1, 11, 12, 13, 14, 15, 2]])
        >>> corrupt(text, vocab=20, mask_id=3, special=(1, 2), ratio=0.5, generator=g).targets
        tensor([[-100, -100,   12,   13,   14, -100, -100]])
    """
    _check(ids, vocab, mask_id, special)
    p = _ratio(ratio, ids)
    chosen = rand(*ids.shape, generator=generator, device=ids.device) < p
    kind = rand(*ids.shape, generator=generator, device=ids.device)
    return _replace(ids, chosen, kind, vocab, mask_id, special, split, generator)


def whole_word_corrupt(
    ids: Integer[Tensor, "batch n"],
    words: Integer[Tensor, "batch n"],
    *,
    vocab: int,
    mask_id: int,
    special: Sequence[int] = (),
    ratio: float | Float[Tensor, " batch"] = 0.15,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
    generator: torch.Generator,
) -> Corrupted:
    r"""Choose whole words: all tokens of a word, or none.

    Args:
        ids: The text.
        words: The number of the word that each token belongs to, from :func:`word_numbers`.
        vocab: As in :func:`corrupt`.
        mask_id: As in :func:`corrupt`.
        special: As in :func:`corrupt`.
        ratio: The probability that a word is chosen, and so that a token is.
        split: As in :func:`corrupt`; drawn for each token, not for each word.
        generator: As in :func:`corrupt`.

    Returns:
        As :func:`corrupt`.

    Raises:
        ValueError: As :func:`corrupt`, or if a word number is not in [0, n).

    References:
        Whole-word masking came with an update of BERT's code in 2019 (Devlin et al.); its effect
        for Chinese: Cui et al., arXiv:1906.08101.

    Book: :doc:`/book/pretraining/masked`

    Example:
        >>> g = torch.Generator().manual_seed(1)
        >>> text, words = torch.tensor([[7, 8, 9, 10]]), torch.tensor([[0, 0, 1, 1]])
        >>> whole_word_corrupt(text, words, vocab=20, mask_id=3, ratio=0.5, generator=g).chosen
        tensor([[False, False,  True,  True]])
    """
    _check(ids, vocab, mask_id, special)
    check_shape("words", words, tuple(ids.shape))
    check_ids("words", words, ids.shape[1])
    p = _ratio(ratio, ids)
    by_word = rand(*ids.shape, generator=generator, device=ids.device)
    chosen = by_word.gather(1, words.long()) < p
    kind = rand(*ids.shape, generator=generator, device=ids.device)
    return _replace(ids, chosen, kind, vocab, mask_id, special, split, generator)


def word_numbers(
    ids: Integer[Tensor, "batch n"], starts: Bool[Tensor, " vocab"]
) -> Int[Tensor, "batch n"]:
    """Number the words of each text.

    Args:
        ids: The text.
        starts: For each id of the vocabulary whether it begins a word. Special tokens should.

    Returns:
        For each token the number of its word, from 0. What precedes the first beginning belongs
        to word 0, together with the word that begins there.

    Raises:
        ValueError: If an id is out of range.

    Book: :doc:`/book/pretraining/masked`

    Example:
        >>> starts = torch.tensor([True, False, True])
        >>> word_numbers(torch.tensor([[0, 1, 1, 2, 0]]), starts)
        tensor([[0, 0, 0, 1, 2]])
    """
    check_shape("ids", ids, (None, None))
    check_ids("ids", ids, starts.shape[0])
    return (starts[ids.long()].long().cumsum(1) - 1).clamp(min=0)


def span_corrupt(
    ids: Integer[Tensor, "batch n"],
    *,
    vocab: int,
    mask_id: int,
    special: Sequence[int] = (),
    ratio: float = 0.15,
    stop: float = 0.2,
    longest: int = 10,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
    generator: torch.Generator,
) -> Corrupted:
    r"""Choose runs of tokens, of geometric length.

    At every place a span begins with the same small probability :math:`q`, and its length is
    drawn from :func:`span_lengths`; :math:`\mathcal M` is the union. A position stays free if no
    span that began :math:`k` places before it is longer than :math:`k`, so

    .. math:: 1 - p = \prod_{k=0}^{K-1} \big(1 - q\,P(\ell > k)\big)

    which is solved for :math:`q`.

    Args:
        ids: The text.
        vocab: As in :func:`corrupt`.
        mask_id: As in :func:`corrupt`.
        special: As in :func:`corrupt`. A span that reaches one goes on behind it.
        ratio: The probability :math:`p` in [0, 1) that a position is chosen.
        stop: Probability in (0, 1] that a span ends after each of its tokens.
        longest: Largest length :math:`K` of a span, 1 or more.
        split: As in :func:`corrupt`; drawn once for each run, all tokens of which share it.
        generator: As in :func:`corrupt`.

    Returns:
        As :func:`corrupt`.

    Raises:
        ValueError: If an id or a number is out of range.

    Numerics:
        ``longest`` passes over the batch.

    References:
        Joshi et al. 2020, arXiv:1907.10529, section 3.1. They sample spans one after the other
        until 15% of the tokens are covered, and begin them at words. Here spans begin anywhere,
        may touch, and cover the ratio on average.

    Book: :doc:`/book/pretraining/masked`

    Example:
        >>> g = torch.Generator().manual_seed(3)
        >>> text = torch.arange(4, 20)[None]
        >>> span_corrupt(text, vocab=20, mask_id=3, ratio=0.3, generator=g).chosen.int()
        tensor([[0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]], dtype=torch.int32)
    """
    _check(ids, vocab, mask_id, special)
    check_in_range("ratio", ratio, low=0.0, high=1.0, open_high=True)
    lengths = span_lengths(stop=stop, longest=longest)
    longer = 1 - lengths.cumsum(0) + lengths  # P(length > k) for k = 0, ..., longest - 1
    begin = _span_start(ratio, longer)
    batch, n = ids.shape
    # Spans may begin before the text, or its first tokens would be chosen less often.
    wide = (batch, n + longest - 1)
    starts = rand(*wide, generator=generator, device=ids.device) < begin
    drawn = rand(*wide, generator=generator, device=ids.device)
    ends = lengths.cumsum(0)[:-1].to(drawn)
    length = torch.bucketize(drawn, ends, right=True) + 1
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    for k in range(longest):
        place = slice(longest - 1 - k, longest - 1 - k + n)
        chosen = chosen | (starts[:, place] & (length[:, place] > k))
    first = chosen & ~torch.nn.functional.pad(chosen[:, :-1], (1, 0))
    run = (first.long().cumsum(1) - 1).clamp(min=0)
    kind = rand(batch, n, generator=generator, device=ids.device).gather(1, run)
    return _replace(ids, chosen, kind, vocab, mask_id, special, split, generator)


def span_lengths(*, stop: float = 0.2, longest: int = 10) -> Float[Tensor, " longest"]:
    r"""Return the probabilities of span lengths: geometric, cut off, normalized.

    .. math:: P(\ell) \propto s\,(1 - s)^{\ell - 1}, \qquad \ell = 1, \dots, K

    Args:
        stop: The probability :math:`s` in (0, 1].
        longest: The largest length :math:`K`, 1 or more.

    Returns:
        Probabilities of the lengths 1, ..., K, float64.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Joshi et al. 2020, arXiv:1907.10529, section 3.1: with 0.2 and 10 the mean is 3.8.

    Book: :doc:`/book/pretraining/masked`

    Example:
        >>> lengths = span_lengths()
        >>> round(float(lengths @ torch.arange(1.0, 11.0).double()), 1)
        3.8
    """
    check_in_range("stop", stop, low=0.0, high=1.0, open_low=True)
    check_count("longest", longest)
    weights = (1 - stop) ** torch.arange(longest, dtype=torch.float64)
    return weights / weights.sum()


def _span_start(ratio: float, longer: Tensor) -> float:
    """Solve for the probability that a span begins: bisection, the product falls in it."""
    low, high = 0.0, 1.0
    tails: list[float] = longer.tolist()
    for _ in range(60):
        middle = (low + high) / 2
        free = 1.0
        for tail in tails:
            free *= 1 - middle * tail
        low, high = (middle, high) if 1 - free < ratio else (low, middle)
    return low if ratio > 0 else 0.0


def _check(ids: Tensor, vocab: int, mask_id: int, special: Sequence[int]) -> None:
    check_shape("ids", ids, (None, None))
    check_count("vocab", vocab)
    check_ids("ids", ids, vocab)
    for name, value in (("mask_id", mask_id), *(("special", one) for one in special)):
        check_count(name, value, low=0, high=vocab - 1)


def _ratio(ratio: float | Tensor, ids: Tensor) -> Tensor | float:
    if isinstance(ratio, Tensor):
        check_shape("ratio", ratio, (ids.shape[0],))
        if can_read(ratio) and not bool(((ratio >= 0) & (ratio <= 1)).all()):
            raise ValueError(f"ratio must lie in [0.0, 1.0] for each text, got {ratio.tolist()}")
        return ratio[:, None]
    check_in_range("ratio", ratio, low=0.0, high=1.0)
    return ratio


def _replace(
    ids: Tensor,
    chosen: Tensor,
    kind: Tensor,
    vocab: int,
    mask_id: int,
    special: Sequence[int],
    split: tuple[float, float, float],
    generator: torch.Generator,
) -> Corrupted:
    """Put [MASK], random tokens, or the tokens themselves at the chosen places."""
    if len(split) != 3 or not min(split) >= 0 or not abs(sum(split) - 1) <= 1e-6:
        raise ValueError(
            f"split must be three probabilities that sum to 1 ([MASK], random, kept), got {split}"
        )
    for one in special:
        chosen = chosen & (ids != one)
    random = randint(0, vocab, ids.shape, generator=generator, device=ids.device).to(ids.dtype)
    put = torch.where(
        kind < split[0], mask_id, torch.where(kind < split[0] + split[1], random, ids)
    )
    read = torch.where(chosen, put, ids).to(ids.dtype)
    return Corrupted(read, torch.where(chosen, ids.long(), IGNORE), chosen)
