r"""Choosing from many: central sentences, diverse ones, and rankings joined."""

import math
import re
from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import (
    can_read,
    check_count,
    check_floating,
    check_in_range,
    check_same_shape,
    check_shape,
)

__all__ = [
    "mmr",
    "pagerank",
    "reciprocal_rank_fusion",
    "split_sentences",
    "word_overlap",
]

_END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+(?=[\"'“‘(]?[A-Z0-9])|\n+")


def split_sentences(text: str) -> list[str]:
    """Cut a text after periods, question and exclamation marks that a capital follows.

    Args:
        text: English prose. Line breaks end a sentence, too.

    Returns:
        The sentences. "Dr. Smith" is cut: the rule knows no abbreviations.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> split_sentences("It rose to 3.5 m. Why? Nobody knows.")
        ['It rose to 3.5 m.', 'Why?', 'Nobody knows.']
    """
    return [part.strip() for part in _END.split(text) if part.strip()]


def pagerank(
    weights: Float[Tensor, "*batch n n"],
    *,
    damping: float = 0.85,
    personal: Float[Tensor, "*batch n"] | None = None,
) -> Float[Tensor, "*batch n"]:
    r"""Compute the stationary distribution of a walk with jumps.

    .. math:: r_j = (1 - d)\,v_j + d \sum_i r_i P_{ij}, \qquad
        P_{ij} = \frac{w_{ij}}{\sum_k w_{ik}}

    Args:
        weights: :math:`w_{ij} \ge 0`, of the step from i to j.
        damping: :math:`d`, the probability of a step in place of a jump.
        personal: :math:`v`, where a jump leads, in any units; by default everywhere alike.

    Returns:
        Probabilities, of sum 1. A node without a way out, all of whose weights are 0, sends the
        walk to where jumps lead.

    Raises:
        ValueError: If the weights are not square, negative or not finite, if ``personal`` is
            negative or all 0, or if the damping is not in [0, 1).

    Numerics:
        The linear system is solved; no iteration, no tolerance. The cost is cubic: for a few
        thousand nodes.

    References:
        Page et al. 1999, "The PageRank Citation Ranking"; for sentences (TextRank) Mihalcea and
        Tarau 2004, "TextRank: Bringing Order into Texts", EMNLP.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> pagerank(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))  # the second has no way out
        tensor([0.3509, 0.6491])
    """
    check_floating("weights", weights)
    n = weights.shape[-1]
    check_shape("weights", weights, (*weights.shape[:-2], n, n))
    check_count("nodes", n)
    check_in_range("damping", damping, low=0.0, high=1.0, open_high=True)
    if can_read(weights) and not bool((weights >= 0).all() & weights.isfinite().all()):
        raise ValueError("weights must be finite and 0 or more: clamp cosines with .clamp(min=0)")
    dtype = weights.dtype
    weights = weights.to(torch.promote_types(dtype, torch.float32))  # half has no solver
    v = torch.full_like(weights[..., 0], 1.0 / n)
    if personal is not None:
        check_same_shape("personal", personal, "a row of weights", v)
        if can_read(personal) and not bool(
            (personal >= 0).all() & (personal.sum(-1) > 0).all() & personal.isfinite().all()
        ):
            raise ValueError("personal must be 0 or more, and above 0 somewhere")
        v = personal.to(v.dtype)
        v = v / v.sum(-1, keepdim=True)
    total = weights.sum(-1, keepdim=True)
    steps = weights / total.masked_fill(total == 0, 1.0)
    steps = torch.where(total > 0, steps, v[..., None, :])
    eye = torch.eye(n, dtype=weights.dtype, device=weights.device)
    r: Tensor = torch.linalg.solve(eye - damping * steps.mT, (1 - damping) * v)
    return (r / r.sum(-1, keepdim=True)).to(dtype)


def word_overlap(sentences: Sequence[Sequence[str]]) -> Float[Tensor, "n n"]:
    r"""Compute TextRank's similarity of sentences, by their words.

    .. math:: w_{ij} = \frac{\lvert S_i \cap S_j \rvert}{\ln \lvert S_i \rvert + \ln \lvert S_j
        \rvert}, \qquad w_{ii} = 0

    Args:
        sentences: Each as its words; equal words count once, lengths count all.

    Returns:
        The weights, float64. Two sentences of one word each have 0, since the formula has no value.

    Raises:
        ValueError: If there is no sentence, or one is a plain text in place of words.

    References:
        Mihalcea and Tarau 2004, "TextRank: Bringing Order into Texts", EMNLP, section 4.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> word_overlap([["a", "cat", "sat"], ["the", "cat", "sat"]])[0, 1].item() * math.log(9)
        2.0
    """
    check_count("sentences", len(sentences))
    if any(isinstance(words, str) for words in sentences):
        raise ValueError("each sentence must be a list of words, got a text: split it first")
    sets = [set(words) for words in sentences]
    made = torch.zeros(len(sets), len(sets), dtype=torch.float64)
    for i, one in enumerate(sets):
        for j in range(i):
            below = math.log(max(len(sentences[i]), 1)) + math.log(max(len(sentences[j]), 1))
            if below > 0:
                made[i, j] = made[j, i] = len(one & sets[j]) / below
    return made


def mmr(
    relevance: Float[Tensor, " n"],
    similarity: Float[Tensor, "n n"],
    *,
    k: int,
    trade: float = 0.7,
) -> Integer[Tensor, " k"]:
    r"""Choose items that are relevant and unlike one another.

    One after the other, the item that is best by :math:`\lambda\,a_i - (1 - \lambda) \max_{j \in
    S} s_{ij}`, where :math:`S` are those that were chosen: maximal marginal relevance.

    Args:
        relevance: :math:`a_i`.
        similarity: :math:`s_{ij}`, in the same units.
        k: How many.
        trade: :math:`\lambda`; 1 takes the most relevant.

    Returns:
        Numbers of the items in the order of their choice; of equal ones the first.

    Raises:
        ValueError: If shapes do not fit, a number is not finite, or ``k`` or ``trade`` is out of
            range.

    References:
        Carbonell and Goldstein 1998, doi:10.1145/290941.291025.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> twins = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> mmr(torch.tensor([0.9, 0.8, 0.5]), twins, k=2)
        tensor([0, 2])
    """
    check_floating("relevance", relevance)
    n = len(relevance)
    check_shape("similarity", similarity, (n, n))
    check_count("k", k, high=n)
    check_in_range("trade", trade, low=0.0, high=1.0)
    for name, values in (("relevance", relevance), ("similarity", similarity)):
        if can_read(values) and not bool(values.isfinite().all()):
            raise ValueError(f"{name} must be finite: leave out items that must not be chosen")
    nearest = torch.zeros_like(relevance)  # of nothing: the first choice is by relevance alone
    taken = torch.zeros(n, dtype=torch.bool, device=relevance.device)
    chosen = []
    for step in range(k):
        value = trade * relevance - (1 - trade) * nearest
        best = value.masked_fill(taken, float("-inf")).argmax()
        chosen.append(best)
        taken = taken.scatter(0, best[None], True)
        row = similarity.index_select(0, best[None])[0]
        nearest = row if step == 0 else torch.maximum(nearest, row)
    return torch.stack(chosen)


def reciprocal_rank_fusion(
    scores: Sequence[Float[Tensor, "*batch n"]], *, k: float = 60.0
) -> Float[Tensor, "*batch n"]:
    r"""Join rankings by the ranks alone, so that scores of any units may meet.

    .. math:: \sum_m \frac{1}{k + \mathrm{rank}_m}

    Args:
        scores: Of each system, higher is better. Equal scores share their mean rank.
        k: How little the first places stand out.

    Returns:
        The sums, float64.

    Raises:
        ValueError: If there is no system, shapes differ, a score is NaN, or k is negative.

    References:
        Cormack, Clarke, and Büttcher 2009, doi:10.1145/1571941.1572114.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> fused = reciprocal_rank_fusion([torch.tensor([3.0, 2.0, 1.0])] * 2)
        >>> torch.allclose(fused, 2 / torch.tensor([61.0, 62.0, 63.0]).double())
        True
    """
    check_count("scores", len(scores))
    check_in_range("k", k, low=0.0, open_high=True)
    total = torch.zeros(scores[0].shape, dtype=torch.float64, device=scores[0].device)
    for number, one in enumerate(scores):
        check_same_shape(f"scores[{number}]", one, "scores[0]", scores[0])
        if can_read(one) and bool(one.isnan().any()):
            raise ValueError(f"scores[{number}] holds NaN, which has no rank")
        ordered = one.contiguous().sort(-1).values
        # From the left: how many are smaller. From the right: how many are not larger.
        above = one.shape[-1] - torch.searchsorted(ordered, one.contiguous(), right=True)
        below = torch.searchsorted(ordered, one.contiguous())
        last = one.shape[-1] - below
        total = total + 1 / (k + (above + 1 + last).double() / 2)
    return total
