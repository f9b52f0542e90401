r"""A model that judges itself: what it believes of an answer, and what correcting it brings."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import (
    can_read,
    check_floating,
    check_ids,
    check_in_range,
    check_same_shape,
    check_shape,
    wide,
)
from companion.frontiers.reasoning import vote_shares

__all__ = ["Correction", "corrected_accuracy", "correction", "majority_rewards", "p_true"]


def p_true(
    logits: Float[Tensor, "*batch vocab"], true: Sequence[int], false: Sequence[int]
) -> Float[Tensor, "*batch"]:
    r"""Read from the next token how likely a model holds an answer to be right.

    .. math:: P(\mathrm{True}) = \frac{\sum_{v \in T} p_v}{\sum_{v \in T} p_v + \sum_{v \in F} p_v}

    Args:
        logits: Of the token after a question such as *Is this answer right?*
        true: Tokens :math:`T` that say yes.
        false: Tokens :math:`F` that say no.

    Returns:
        The probability, float32 or better.

    Raises:
        ValueError: If a list is empty, both share a token, or an id is out of range.

    Numerics:
        As a difference of logarithms, so it is also right where both are unlikely. NaN where
        neither can be said at all.

    References:
        Kadavath et al. 2022, arXiv:2207.05221, section 4.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> p_true(torch.tensor([0.0, 0.0, 0.0]), [0, 1], [2])
        tensor(0.6667)
    """
    check_floating("logits", logits)
    if not true or not false or set(true) & set(false):
        raise ValueError("true and false must be lists of tokens, none empty, and none shared")
    scores = wide(logits)
    sums = []
    for name, tokens in (("true", true), ("false", false)):
        ids = torch.tensor(list(tokens), device=logits.device)
        check_ids(name, ids, logits.shape[-1])
        sums.append(scores[..., ids].logsumexp(-1))
    return torch.sigmoid(sums[0] - sums[1])


def majority_rewards(
    answers: Integer[Tensor, "prompts group"], *, none: int | None = None
) -> Float[Tensor, "prompts group"]:
    r"""Pay each answer that most of its group gives: a reward without a verifier.

    Args:
        answers: A number for each answer; equal ones are the same answer.
        none: The number that stands for *no answer*; it is never paid.

    Returns:
        1 for answers of the largest class, and 0 for the others; k classes of one size share, and
        are paid 1/k each.

    Raises:
        ValueError: If there is no answer.

    References:
        Zuo et al. 2025, arXiv:2504.16084.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> majority_rewards(torch.tensor([[7, 7, 8, -1], [3, 4, 3, 4]]), none=-1)
        tensor([[1.0000, 1.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.5000, 0.5000]])
    """
    return vote_shares(answers, none=none).float()


class Correction(NamedTuple):
    r"""What a second answer to each question has changed.

    Attributes:
        before: Share of right first answers.
        after: Share of right final answers.
        gained: Share of questions that became right.
        lost: Share of questions that became wrong.
        changed: Share of questions whose second answer was taken.
    """

    before: Tensor
    after: Tensor
    gained: Tensor
    lost: Tensor
    changed: Tensor


def correction(
    first: Bool[Tensor, " questions"],
    second: Bool[Tensor, " questions"],
    accept: Bool[Tensor, " questions"],
) -> Correction:
    r"""Count what correcting has brought: the gain is what became right minus what became wrong.

    Args:
        first: Whether the first answer to each question is right.
        second: Whether the second is.
        accept: Whether the second takes the place of the first.

    Returns:
        Shares of all questions, float64. ``after`` is ``before + gained - lost``.

    Raises:
        ValueError: If the shapes differ, there is no question, or an input is not boolean.

    References:
        Huang et al. 2024, arXiv:2310.01798.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> yes = torch.tensor([True, True, False, False])
        >>> correction(yes, yes.flip(0), torch.tensor([True, False, True, False])).after
        tensor(0.5000, dtype=torch.float64)
    """
    check_shape("first", first, (None,))
    for name, flag in (("first", first), ("second", second), ("accept", accept)):
        check_same_shape("first", first, name, flag)
        if flag.dtype != torch.bool:
            raise ValueError(f"{name} must be boolean, got {flag.dtype}")
    if len(first) == 0:
        raise ValueError("there is no question")
    final = torch.where(accept, second, first)
    shares = (first, final, ~first & final, first & ~final, accept)
    return Correction(*(share.double().mean() for share in shares))


def corrected_accuracy(
    p: Float[Tensor, "*batch"], *, t: float | Tensor, f: float | Tensor
) -> Float[Tensor, "*batch"]:
    r"""Compute the accuracy after one independent second try, where a judge throws answers out.

    .. math:: p' = p\,t + \big(p\,(1 - t) + (1 - p)(1 - f)\big)\,p

    A judge keeps right answers with probability t and wrong ones with probability f; where it
    throws one out, a new draw takes its place unseen.

    Args:
        p: Probability :math:`p` that an answer is right.
        t: :math:`t`, how often a right answer is kept.
        f: :math:`f`, how often a wrong one is.

    Returns:
        The accuracy: :math:`p + p (1 - p)(t - f)`. So a judge who cannot tell, :math:`t = f`,
        leaves it as it is.

    Raises:
        ValueError: If a probability lies outside 0 to 1.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> corrected_accuracy(torch.tensor(0.5), t=0.9, f=0.1)
        tensor(0.7000)
    """
    check_floating("p", p)
    for name, value in (("p", p), ("t", t), ("f", f)):
        if not isinstance(value, Tensor):
            check_in_range(name, value, low=0.0, high=1.0)
        elif can_read(value) and not bool(((value >= 0) & (value <= 1)).all()):
            raise ValueError(f"{name} must lie in [0, 1]")
    p = wide(p)
    return p * t + (p * (1 - t) + (1 - p) * (1 - f)) * p
