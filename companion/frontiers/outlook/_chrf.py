r"""Scores of translations by shared n-grams of characters: chrF, from counts that can be added."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_in_range
from companion.frontiers.outlook._bleu import reference_lists
from companion.frontiers.outlook._ngrams import count_overlaps

__all__ = ["chrf", "chrf_counts", "chrf_from_counts"]

_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def _chrf_words(text: str) -> list[str]:
    """Words with a sign at an end split off, one at most."""
    tokens: list[str] = []
    for word in text.split():
        if len(word) > 1 and word[-1] in _PUNCTUATION:
            tokens += [word[:-1], word[-1]]
        elif len(word) > 1 and word[0] in _PUNCTUATION:
            tokens += [word[0], word[1:]]
        else:
            tokens.append(word)
    return tokens


def chrf_counts(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    order: int = 6,
    words: int = 0,
    beta: float = 2.0,
    lowercase: bool = False,
    whitespace: bool = False,
    epsilon: bool = False,
) -> Float[Tensor, "texts orders 3"]:
    """Count what chrF is made of, text by text. Corpora are scored by sums of rows.

    Args:
        hypotheses: The texts to judge.
        references: For each a right text, or several: the one with the best score is taken.
        order: Longest n-gram of characters.
        words: Longest n-gram of words; 2 makes it chrF++.
        beta: As in :func:`chrf`; matters only for which reference is taken.
        lowercase: Whether case does not matter.
        whitespace: Whether blanks are characters.
        epsilon: As in :func:`chrf`; matters only for which reference is taken.

    Returns:
        For each text and order the n-grams of the hypothesis (0 where the reference has none), of
        the reference, and matched. float64.

    Raises:
        ValueError: As in :func:`bleu_counts`.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> chrf_counts(["ab"], ["abc"], order=2)[0]
        tensor([[2., 3., 2.],
                [1., 2., 1.]], dtype=torch.float64)
    """
    check_count("order", order)
    check_count("words", words, low=0)
    check_in_range("beta", beta, low=0.0, open_low=True, open_high=True)
    listed = reference_lists(hypotheses, references)

    def characters(text: str) -> str:
        text = text.lower() if lowercase else text
        return text if whitespace else "".join(text.split())

    def tokens(text: str) -> list[str]:
        return _chrf_words(text.lower() if lowercase else text)

    found = count_overlaps(
        [characters(h) for h in hypotheses],
        [[characters(r) for r in texts] for texts in listed],
        order=order,
    )
    parts = [found]
    if words:
        spoken = [[tokens(r) for r in texts] for texts in listed]
        parts.append(count_overlaps([tokens(h) for h in hypotheses], spoken, order=words))
    matched = torch.cat([part[0] for part in parts], -1)
    theirs = torch.cat([part[1] for part in parts], -1)
    ours = torch.cat([part[2] for part in parts], -1).expand_as(theirs)
    counts = torch.stack([ours * (theirs > 0), theirs, matched], -1)
    scores = _percent(counts, beta, epsilon)
    there = torch.zeros(scores.shape, dtype=torch.bool)
    for row, texts in enumerate(listed):
        there[: len(texts), row] = True
    best = scores.masked_fill(~there, -1.0).argmax(0)
    return counts[best, torch.arange(len(listed))]


def chrf_from_counts(
    counts: Float[Tensor, "*batch orders 3"], *, beta: float = 2.0, epsilon: bool = False
) -> Float[Tensor, "*batch"]:
    """Compute chrF of counts, or of sums of them.

    Args:
        counts: As :func:`chrf_counts` gives them; for a corpus, summed over its texts.
        beta: As in :func:`chrf`.
        epsilon: As in :func:`chrf`.

    Returns:
        Scores between 0 and 1, float64.

    Raises:
        ValueError: If the last axis has not 3 entries, or beta is not positive.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> counts = chrf_counts(["ab", "cd"], ["ab", "ce"], order=2)
        >>> round(float(chrf_from_counts(counts.sum(0))), 3)
        0.625
    """
    if counts.shape[-1] != 3:
        raise ValueError(f"counts must end in 3 entries, got shape {tuple(counts.shape)}")
    check_in_range("beta", beta, low=0.0, open_low=True, open_high=True)
    return _percent(counts, beta, epsilon) / 100


def _percent(counts: Tensor, beta: float, epsilon: bool) -> Tensor:
    """Scores up to 100, in the order of operations of sacreBLEU: references tie up to rounding."""
    ours, theirs, matched = counts.double().unbind(-1)
    tiny = torch.full_like(matched, 1e-16)
    precision = torch.where(ours > 0, matched / ours.clamp_min(1), tiny)
    recall = torch.where(theirs > 0, matched / theirs.clamp_min(1), tiny)
    factor = beta**2
    if epsilon:
        below = factor * precision + recall
        each = (1 + factor) * precision * recall / below.clamp_min(1e-300)
        return 100 * _in_turn(torch.where(below > 0, each, tiny)) / counts.shape[-2]
    there = ((ours > 0) & (theirs > 0)).double()
    orders = there.sum(-1).clamp_min(1)
    p, r = _in_turn(precision * there) / orders, _in_turn(recall * there) / orders
    return 100 * ((1 + factor) * p * r / (factor * p + r).clamp_min(1e-300))


def _in_turn(values: Tensor) -> Tensor:
    """Sum over the last axis from the left, so that rounding breaks ties as elsewhere."""
    total = torch.zeros_like(values[..., 0])
    for one in values.unbind(-1):
        total = total + one
    return total


def chrf(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    order: int = 6,
    words: int = 0,
    beta: float = 2.0,
    lowercase: bool = False,
    whitespace: bool = False,
    epsilon: bool = False,
) -> float:
    r"""Score the translation of a corpus by n-grams of characters.

    With the means :math:`P` and :math:`R` over orders of precision and recall,

    .. math:: \mathrm{chrF}_\beta = \frac{(1 + \beta^2) P R}{\beta^2 P + R}

    Args:
        hypotheses: The translations.
        references: For each a right one, or several.
        order: Longest n-gram of characters.
        words: Longest n-gram of words; 2 makes it chrF++.
        beta: Recall weighs :math:`\beta^2` times as much as precision.
        lowercase: Whether case does not matter.
        whitespace: Whether blanks are characters.
        epsilon: What becomes of orders that the texts are too short for. By default they are left
            out of the means; with ``epsilon`` they count as (nearly) 0 and the mean is over the
            scores of the orders, as in the original script and in NLTK. ``"a"`` for ``"a"`` is 1
            by the first rule and one sixth by the second.

    Returns:
        A score between 0 and 1; papers print a hundred times it.

    Raises:
        ValueError: As in :func:`bleu_counts`, or if beta is not positive.

    References:
        Popović 2015, doi:10.18653/v1/W15-3049.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> round(chrf(["the cat sat"], ["the cats sat"]), 4)
        0.6866
    """
    counts = chrf_counts(
        hypotheses,
        references,
        order=order,
        words=words,
        beta=beta,
        lowercase=lowercase,
        whitespace=whitespace,
        epsilon=epsilon,
    )
    return float(chrf_from_counts(counts.sum(0), beta=beta, epsilon=epsilon))
