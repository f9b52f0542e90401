r"""Answers to questions: normalized texts, exact match, token F1, and the best span."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import check_count, check_floating, check_same_shape, check_several

__all__ = [
    "Spans",
    "exact_match",
    "normalize_answer",
    "span_answer",
    "token_f1",
]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_SIGNS = str.maketrans("", "", string.punctuation)
_NOT_DECIMAL = re.compile(r"(?<!\d)[.,]|[.,](?!\d)")
_OTHER_SIGNS = str.maketrans("", "", string.punctuation.replace(".", "").replace(",", ""))


def normalize_answer(text: str, *, decimals: bool = False) -> str:
    """Make answers comparable: lower case, no punctuation, no articles, single blanks.

    Args:
        text: The answer.
        decimals: Keep a point or comma between digits. SQuAD's rule takes it away, so that 3.14
            equals 314.

    Returns:
        The answer as it is compared. If nothing would be left, as of the answer "A" to a question
        with letters, it is the text in lower case.

    References:
        Rajpurkar et al. 2016, arXiv:1606.05250, their script for evaluation; the rule for what
        would be empty is ours.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> normalize_answer("The U.S. (1776)"), normalize_answer("A")
        ('us 1776', 'a')
    """
    lowered = text.lower()
    if decimals:
        bare = _NOT_DECIMAL.sub("", lowered.translate(_OTHER_SIGNS))
    else:
        bare = lowered.translate(_SIGNS)
    made = " ".join(_ARTICLES.sub(" ", bare).split())
    return made or " ".join(lowered.split())


def _answer_lists(
    predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> list[tuple[str, Sequence[str]]]:
    check_several("predictions", predictions)
    check_several("answers", answers)
    if len(predictions) != len(answers):
        raise ValueError(f"{len(predictions)} predictions and {len(answers)} lists of answers")
    for row, accepted in enumerate(answers):
        check_several(f"answers[{row}]", accepted)
        if not accepted:
            raise ValueError(f"answers[{row}] is empty: give at least one accepted answer")
    return list(zip(predictions, answers, strict=True))


def exact_match(
    predictions: Sequence[str], answers: Sequence[Sequence[str]], *, decimals: bool = False
) -> Float[Tensor, " questions"]:
    """Tell which predictions equal an accepted answer, once both are normalized.

    Args:
        predictions: One answer for each question.
        answers: The accepted answers of each.
        decimals: As in :func:`normalize_answer`.

    Returns:
        1 or 0 for each question, float64.

    Raises:
        ValueError: If the numbers differ, a question has no answer, or a single text is given.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> exact_match(["the Nile.", "42"], [["Nile"], ["forty-two"]])
        tensor([1., 0.], dtype=torch.float64)
    """
    rows = [
        float(any(normalize_answer(p, decimals=decimals) == normalize_answer(a, decimals=decimals)
                  for a in accepted))
        for p, accepted in _answer_lists(predictions, answers)
    ]  # fmt: skip
    return torch.tensor(rows, dtype=torch.float64)


def token_f1(
    predictions: Sequence[str], answers: Sequence[Sequence[str]], *, decimals: bool = False
) -> Float[Tensor, " questions"]:
    r"""Compare answers word by word, each word as often as both have it.

    With :math:`o` common words, counted with multiplicity, :math:`F_1 = 2o/(m + n)`.

    Args:
        predictions: One answer for each question.
        answers: The accepted answers of each; the best counts.
        decimals: As in :func:`normalize_answer`.

    Returns:
        Values between 0 and 1, float64.

    Raises:
        ValueError: As in :func:`exact_match`.

    References:
        Rajpurkar et al. 2016, arXiv:1606.05250.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> token_f1(["Paris Paris Paris Paris Paris"], [["Paris"]])
        tensor([0.3333], dtype=torch.float64)
    """
    found = []
    for prediction, accepted in _answer_lists(predictions, answers):
        ours = Counter(normalize_answer(prediction, decimals=decimals).split())
        best = 0.0
        for answer in accepted:
            theirs = Counter(normalize_answer(answer, decimals=decimals).split())
            below = ours.total() + theirs.total()
            best = max(best, 2 * (ours & theirs).total() / below if below else 1.0)
        found.append(best)
    return torch.tensor(found, dtype=torch.float64)


class Spans(NamedTuple):
    """The best span of each text.

    Attributes:
        start: Its first token.
        end: Its last token, included.
        score: The sum of the two scores.
    """

    start: Integer[Tensor, "..."]
    end: Integer[Tensor, "..."]
    score: Float[Tensor, "..."]


def span_answer(
    start: Float[Tensor, "*batch n"],
    end: Float[Tensor, "*batch n"],
    *,
    longest: int | None = None,
    real: Bool[Tensor, "*batch n"] | None = None,
) -> Spans:
    r"""Choose the span with the best ends: :math:`\arg\max_{i \le j} s_i + e_j`.

    Args:
        start: Scores :math:`s_i` of tokens as the first one.
        end: Scores :math:`e_j` of tokens as the last one.
        longest: Most tokens of a span; by default any number.
        real: Where an answer may lie; elsewhere no span starts or ends. By default everywhere.

    Returns:
        The spans; of equal ones the first. Without a real token the score is minus infinity.

    Raises:
        ValueError: If the shapes differ, there is no token, or ``longest`` is below 1.

    Numerics:
        A running maximum from the right, or of a window, in place of all pairs: the cost is linear
        in the length.

    References:
        Devlin et al. 2019, arXiv:1810.04805, section 4.2.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> span_answer(torch.tensor([0.0, 3.0, 0.0]), torch.tensor([9.0, 0.0, 1.0]))[:2]
        (tensor(0), tensor(0))
        >>> span_answer(torch.tensor([0.0, 3.0, 0.0]), torch.tensor([2.0, 0.0, 1.0]))[:2]
        (tensor(1), tensor(2))
    """
    check_floating("start", start)
    check_same_shape("start", start, "end", end)
    check_count("tokens", start.shape[-1])
    lowest = float("-inf")
    if real is not None:
        check_same_shape("real", real, "start", start)
        start, end = start.masked_fill(~real, lowest), end.masked_fill(~real, lowest)
    n = start.shape[-1]
    if longest is None or longest >= n:
        best, where = end.flip(-1).cummax(-1)
        # Of equal ends cummax from the right keeps the leftmost, which is the first in the text.
        best, where = best.flip(-1), n - 1 - where.flip(-1)
    else:
        check_count("longest", longest)
        padded = torch.nn.functional.pad(end, (0, longest - 1), value=lowest)
        best, where = padded.unfold(-1, longest, 1).max(-1)
        where = where + torch.arange(n, device=end.device)
    score, first = (start + best).max(-1)
    return Spans(first, where.gather(-1, first[..., None])[..., 0], score)
