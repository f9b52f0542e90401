r"""Where the truth stands among all candidates: ties and other true answers, counted right.

A rank is kept as two counts: how many candidates score *better*, and how many *equal*. The three
rules for ties are three ways to read them.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from companion.core import (
    can_read,
    check_count,
    check_floating,
    check_ids,
    check_in_range,
    check_same_shape,
    check_shape,
)
from companion.knowledge.knowledge_graphs._index import SortedIndex
from companion.knowledge.knowledge_graphs._models import Scorer

__all__ = [
    "KnownFacts",
    "LinkMetrics",
    "Ranks",
    "Ties",
    "filtered_ranks",
    "link_metrics",
    "rank",
]

#: How candidates that score as much as the truth are counted.
Ties = Literal["optimistic", "realistic", "pessimistic"]


class Ranks(NamedTuple):
    """Counts of the candidates that stand before the truth, or beside it.

    Attributes:
        better: Other candidates with a higher score.
        equal: Other candidates with the same score.
        candidates: All candidates, the truth included.
    """

    better: Int[Tensor, "..."]
    equal: Int[Tensor, "..."]
    candidates: Int[Tensor, "..."]

    def by(self, ties: Ties) -> Float[Tensor, "..."]:
        r"""Ranks from 1, by a rule for ties.

        With :math:`b` better and :math:`e` equal candidates they are :math:`1 + b` (optimistic),
        :math:`1 + b + e/2` (realistic) or :math:`1 + b + e` (pessimistic).

        Args:
            ties: The rule.

        Returns:
            Ranks, as float64.

        Raises:
            ValueError: If there is no such rule.

        Example:
            >>> ranks = Ranks(torch.tensor([0]), torch.tensor([10]), torch.tensor([11]))
            >>> ranks.by("optimistic").item(), ranks.by("realistic").item()
            (1.0, 6.0)
        """
        weight = {"optimistic": 0.0, "realistic": 0.5, "pessimistic": 1.0}
        if ties not in weight:
            raise ValueError(f"ties must be one of {', '.join(weight)}, got {ties!r}")
        return 1 + self.better.double() + weight[ties] * self.equal

    def expected_reciprocal(self) -> Float[Tensor, "..."]:
        r"""Mean of one over the rank, if chance puts equal candidates into an order.

        With :math:`b` better and :math:`e` equal ones it is
        :math:`\frac{1}{e+1} \sum_{k=b+1}^{b+e+1} \frac1k`, at least the inverse of the realistic
        rank, by Jensen's inequality.

        Returns:
            Means in (0, 1], as float64.

        Example:
            >>> constant = Ranks(torch.tensor(0), torch.tensor(10), torch.tensor(11))
            >>> round(constant.expected_reciprocal().item(), 5)
            0.27453
        """
        low, high = self.better.double() + 1, (self.better + self.equal).double() + 2
        # Differences of the digamma function are partial sums of the harmonic series.
        return (torch.digamma(high) - torch.digamma(low)) / (self.equal + 1)


class LinkMetrics(NamedTuple):
    """What is reported of ranks.

    Attributes:
        mrr: Mean of one over the rank, in (0, 1].
        hits_1: Share of ranks that are 1.
        hits_3: Share of ranks up to 3.
        hits_10: Share of ranks up to 10.
        mean_rank: Mean of the ranks.
        adjusted: Adjusted index of the mean rank: 1 for the best, 0 for chance, whatever the
            number of candidates. NaN if no question has a second candidate.
    """

    mrr: float
    hits_1: float
    hits_3: float
    hits_10: float
    mean_rank: float
    adjusted: float


def rank(
    scores: Float[Tensor, "*batch candidates"],
    truth: Int[Tensor, "*batch"],
    *,
    exclude: Bool[Tensor, "*batch candidates"] | None = None,
    tolerance: float = 0.0,
) -> Ranks:
    r"""Count the candidates that score better than the truth, and those that score the same.

    The score of the truth is taken from the same tensor as the others. Computed apart, by another
    kernel, it would differ in its last digits, and ties would become victories.

    Args:
        scores: Scores of all candidates.
        truth: Number of the true one.
        exclude: Candidates that are not to be counted: other true answers. The truth itself always
            counts.
        tolerance: Scores that differ by no more are equal.

    Returns:
        Counts, with one entry for each question.

    Raises:
        ValueError: If shapes do not fit, a number is out of range, the tolerance is negative, or a
            score is NaN, which would be no rank at all.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> rank(torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor(1))
        Ranks(better=tensor(2), equal=tensor(1), candidates=tensor(4))
    """
    check_floating("scores", scores)
    check_shape("truth", truth, tuple(scores.shape[:-1]))
    check_ids("truth", truth, scores.shape[-1])
    check_in_range("tolerance", tolerance, low=0.0, open_high=True)
    if can_read(scores) and bool(scores.isnan().any()):
        raise ValueError("scores hold NaN, which has no rank: mend the model first")
    mine = scores.gather(-1, truth[..., None])
    counts = torch.ones_like(scores, dtype=torch.bool)
    if exclude is not None:
        check_same_shape("exclude", exclude, "scores", scores)
        counts = ~exclude
    counts = counts.scatter(-1, truth[..., None], False)
    better, equal = _compare(scores, mine, tolerance)
    return Ranks((better & counts).sum(-1), (equal & counts).sum(-1), counts.sum(-1) + 1)


def _compare(scores: Tensor, mine: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Which scores are better than the truth's, and which equal."""
    same = scores == mine
    if not tolerance:
        return scores > mine, same
    # Infinite scores differ by NaN, so they are compared as they are.
    equal = same | ((scores - mine).abs() <= tolerance)
    return (scores > mine) & ~equal, equal


class KnownFacts:
    """All facts that are known to be true, found by question.

    A question is a pair (head, relation) or (relation, tail). Facts lie sorted by question, so the
    answers of one are a slice, and memory grows with the facts, not with all possible triples.

    Args:
        facts: Facts, one (head, relation, tail) a row: of training, validation *and* test.
            Duplicates count once.
        entities: Number of entities.
        relations: Number of relations.

    Raises:
        ValueError: If the facts are not triples, or a number is out of its range.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> known = KnownFacts(torch.tensor([[0, 0, 1], [0, 0, 2]]), entities=3, relations=1)
        >>> known.tails(torch.tensor([0, 1]), torch.tensor([0, 0]))
        (tensor([0, 0]), tensor([1, 2]))
    """

    def __init__(self, facts: Int[Tensor, "facts 3"], *, entities: int, relations: int) -> None:
        check_shape("facts", facts, (None, 3))
        check_count("entities", entities)
        check_count("relations", relations)
        check_ids("heads and tails", facts[:, ::2], entities)
        check_ids("relations", facts[:, 1], relations)
        self.entities, self.relations = entities, relations
        head, relation, tail = facts.long().T  # a product of two numbers may need 64 bits
        self._tails = SortedIndex(head * relations + relation, tail, size=entities)
        self._heads = SortedIndex(tail * relations + relation, head, size=entities)

    def tails(
        self, head: Int[Tensor, " batch"], relation: Int[Tensor, " batch"]
    ) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"]]:
        """All known tails of each question.

        Args:
            head: Heads.
            relation: Relations.

        Returns:
            Places of the questions, and beside them the tails.
        """
        return self._tails.find(head.long() * self.relations + relation)

    def heads(
        self, relation: Int[Tensor, " batch"], tail: Int[Tensor, " batch"]
    ) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"]]:
        """All known heads of each question.

        Args:
            relation: Relations.
            tail: Tails.

        Returns:
            Places of the questions, and beside them the heads.
        """
        return self._heads.find(tail.long() * self.relations + relation)


@torch.no_grad()
def filtered_ranks(
    model: Scorer,
    facts: Int[Tensor, "facts 3"],
    *,
    known: KnownFacts,
    batch_size: int = 1024,
    tolerance: float = 0.0,
) -> Ranks:
    """Ask for the head and for the tail of each fact, and rank the truth among all entities.

    Other entities that are known to answer the question are left out (the *filtered* setting). All
    entities of a batch of questions are scored at once, and the known answers are taken away from
    the counts rather than from the scores.

    Args:
        model: What scores all entities for a question.
        facts: Facts to ask about.
        known: What is true: training, validation and test facts.
        batch_size: Questions that are scored at once.
        tolerance: Scores that differ by no more are equal.

    Returns:
        Counts with a row for each fact: first for its head, then for its tail.

    Raises:
        ValueError: If the facts are not triples, a size is below 1, a score is NaN, or the model
            does not score as many entities as are known.

    References:
        Bordes et al. 2013 (filtered ranks); Berrendorf et al. 2020, arXiv:2002.06914, and Sun et
        al. 2020, arXiv:1911.03903 (ties).

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> from companion.knowledge.knowledge_graphs import Popularity
        >>> train = torch.tensor([[0, 0, 1], [2, 0, 1], [0, 0, 2]])
        >>> model = Popularity(train, entities=3, relations=1)
        >>> known = KnownFacts(train, entities=3, relations=1)
        >>> filtered_ranks(model, train[:1], known=known).by("realistic")
        tensor([[1., 1.]], dtype=torch.float64)
    """
    check_shape("facts", facts, (None, 3))
    check_count("batch_size", batch_size)
    check_in_range("tolerance", tolerance, low=0.0, open_high=True)
    if len(facts) == 0:
        raise ValueError("there are no facts to ask about")
    sides = []
    for head, relation, tail in (part.T for part in torch.split(facts, batch_size)):
        asked = (
            (model.heads(relation, tail), head, known.heads(relation, tail)),
            (model.tails(head, relation), tail, known.tails(head, relation)),
        )
        for scores, _, _ in asked:
            check_shape("scores", scores, (len(head), known.entities))
        counts = [_without(*question, tolerance) for question in asked]
        sides.append([torch.stack(pair, -1) for pair in zip(*counts, strict=True)])
    return Ranks(*(torch.cat(parts) for parts in zip(*sides, strict=True)))


def _without(
    scores: Tensor, truth: Tensor, known: tuple[Tensor, Tensor], tolerance: float
) -> Ranks:
    """Counts over all candidates, less those among the known answers."""
    if can_read(scores) and bool(scores.isnan().any()):
        raise ValueError("scores hold NaN, which has no rank: mend the model first")
    row, answer = known
    other = answer != truth[row]
    row, answer = row[other], answer[other]
    mine = scores.gather(1, truth[:, None])
    left_out = scores[row, answer][:, None]
    its = mine[row]
    zero = torch.zeros_like(truth)

    def count(all_of: Tensor, of_known: Tensor) -> Tensor:
        # A count of bytes is several times as fast as a sum of truth values.
        return all_of.sum(1) - zero.index_add(0, row, of_known[:, 0].long())

    everywhere, among_known = _compare(scores, mine, tolerance), _compare(left_out, its, tolerance)
    better, equal = (count(*pair) for pair in zip(everywhere, among_known, strict=True))
    removed = zero.index_add(0, row, torch.ones_like(row))
    return Ranks(better, equal - 1, scores.shape[1] - removed)


def link_metrics(ranks: Ranks, *, ties: Ties = "realistic") -> LinkMetrics:
    r"""Summarize ranks: mean reciprocal rank, hits, mean rank, and its adjusted index.

    .. math:: \mathrm{MRR} = \frac1n \sum_{i=1}^n \frac1{\rho_i}, \qquad
       \mathrm{AMRI} = 1 - \frac{\sum_i (\rho_i - 1)}{\sum_i (N_i - 1)/2}

    for :math:`N_i` candidates, so that a random order has the index 0 in expectation.

    Args:
        ranks: Counts of :func:`filtered_ranks` or :func:`rank`, heads and tails together or one
            side alone.
        ties: How equal candidates count.

    Returns:
        The numbers.

    Raises:
        ValueError: If there are no ranks, or no such rule.

    References:
        Berrendorf et al. 2020, arXiv:2002.06914 (AMRI).

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> constant = Ranks(torch.tensor([0]), torch.tensor([10]), torch.tensor([11]))
        >>> [round(link_metrics(constant, ties=t).mrr, 3) for t in ("optimistic", "pessimistic")]
        [1.0, 0.091]
    """
    if ranks.better.numel() == 0:
        raise ValueError("there are no ranks to summarize")
    found = ranks.by(ties).flatten()
    chance = (ranks.candidates.double().flatten() - 1) / 2
    adjusted = 1 - (found - 1).sum() / chance.sum()
    hits = [(found <= k).double().mean() for k in (1, 3, 10)]
    values = [(1 / found).mean(), *hits, found.mean(), adjusted]
    return LinkMetrics(*torch.stack(values).tolist())
