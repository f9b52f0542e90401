r"""Two models of links without a single vector: they count the training facts."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.core import check_count, check_ids, check_in_range, check_shape
from companion.knowledge.knowledge_graphs._index import SortedIndex

__all__ = ["InverseRules", "Popularity", "reversed_share"]


class Popularity:
    r"""Answer with what the relation is most often answered with, whoever is asked about.

    The score of a tail is how many training facts with that relation end in it, and that of a head
    how many begin with it.

    Args:
        train: Training facts, one (head, relation, tail) a row.
        entities: Number of entities.
        relations: Number of relations.

    Attributes:
        tail_counts: Facts with each relation (row) and tail (column).
        head_counts: The same for heads.

    Raises:
        ValueError: If the facts are not triples, or a number is out of its range.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> model = Popularity(torch.tensor([[0, 0, 1], [2, 0, 1]]), entities=3, relations=1)
        >>> model.tails(torch.tensor([1]), torch.tensor([0]))
        tensor([[0., 2., 0.]])
    """

    def __init__(self, train: Int[Tensor, "facts 3"], *, entities: int, relations: int) -> None:
        _check(train, entities, relations)
        head, relation, tail = train.long().T
        self.tail_counts = _table(relation, tail, relations, entities)
        self.head_counts = _table(relation, head, relations, entities)

    def tails(
        self, head: Int[Tensor, " batch"], relation: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch entities"]:
        """Counts of all tails.

        Args:
            head: Not looked at.
            relation: Relations of the questions.

        Returns:
            A row of counts for each question.
        """
        return self.tail_counts[relation]

    def heads(
        self, relation: Int[Tensor, " batch"], tail: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch entities"]:
        """Counts of all heads.

        Args:
            relation: Relations of the questions.
            tail: Not looked at.

        Returns:
            A row of counts for each question.
        """
        return self.head_counts[relation]


class InverseRules:
    r"""Answer with what stands the other way round in the training facts, then by popularity.

    The rule :math:`r'(t, h) \Rightarrow r(h, t)` has the confidence :math:`c_{r' r} = |\{(h, t) :
    r'(t, h), r(h, t)\}| \,/\, (|r'| + \lambda)` on the training facts. The score of a candidate is
    the largest confidence of a rule that proposes it. Equal ones are ordered by how often the
    relation is answered with them.

    Args:
        train: Training facts, one (head, relation, tail) a row, without duplicates.
        entities: Number of entities.
        relations: Number of relations.
        single: Whether each relation has one rule only, the one that explains most of its facts.
        smoothing: :math:`\lambda \ge 0`, facts that are added to each rule's uses.

    Attributes:
        confidence: :math:`c_{r' r}`, rows :math:`r'`.

    Raises:
        ValueError: If the facts are not triples, or a number is out of its range.

    References:
        Dettmers et al. 2018, arXiv:1707.01476 (the inverse model); Akrami et al. 2020,
        arXiv:2003.08001.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> train = torch.tensor([[0, 0, 1], [1, 1, 0], [2, 1, 3]])
        >>> model = InverseRules(train, entities=4, relations=2, smoothing=0.0)
        >>> model.tails(torch.tensor([3]), torch.tensor([0])).argmax(1)  # from (2, 1, 3)
        tensor([2])
    """

    def __init__(
        self,
        train: Int[Tensor, "facts 3"],
        *,
        entities: int,
        relations: int,
        single: bool = False,
        smoothing: float = 5.0,
    ) -> None:
        check_in_range("smoothing", smoothing, low=0.0, open_high=True)
        self.popularity = Popularity(train, entities=entities, relations=relations)
        head, relation, tail = train.long().T  # a product of two numbers may need 64 bits
        of_pair = SortedIndex(head * entities + tail, relation, size=relations)
        # Each fact, read backward, proposes the relations that its turned pair has.
        row, implied = of_pair.find(tail * entities + head)
        rules = torch.bincount(relation[row] * relations + implied, minlength=relations**2)
        both = rules.view(relations, relations).to(torch.get_default_dtype())
        uses = torch.bincount(relation, minlength=relations)
        confidence = both / (uses[:, None] + smoothing).clamp_min(1e-9)
        if single:
            best = torch.zeros_like(confidence).scatter(0, both.argmax(0, keepdim=True), 1.0)
            confidence = best * confidence
        self.confidence = confidence
        # What ends in an entity, and what begins with it: a relation and the other entity.
        size = relations * entities
        self._into = SortedIndex(tail, relation * entities + head, size=size)
        self._from = SortedIndex(head, relation * entities + tail, size=size)

    def tails(
        self, head: Int[Tensor, " batch"], relation: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch entities"]:
        """Score all tails.

        Args:
            head: Heads of the questions.
            relation: Relations of the questions.

        Returns:
            A row of scores for each question.
        """
        return self._score(self._into, head, relation, self.popularity.tail_counts)

    def heads(
        self, relation: Int[Tensor, " batch"], tail: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch entities"]:
        """Score all heads.

        Args:
            relation: Relations of the questions.
            tail: Tails of the questions.

        Returns:
            A row of scores for each question.
        """
        return self._score(self._from, tail, relation, self.popularity.head_counts)

    def _score(self, facts: SortedIndex, given: Tensor, relation: Tensor, counts: Tensor) -> Tensor:
        """The best rule for each candidate; equal ones by popularity."""
        row, packed = facts.find(given)
        entities = counts.shape[1]
        other = packed % entities
        trust = self.confidence[packed // entities, relation[row]]
        best = torch.zeros(len(given) * entities, device=counts.device, dtype=counts.dtype)
        best = best.scatter_reduce(0, row * entities + other, trust, "amax")
        # At most 1e-3: it orders candidates of one confidence, and hardly others.
        share = counts[relation] / counts[relation].sum(1, keepdim=True).clamp_min(1)
        return best.view(len(given), entities) + 1e-3 * share


def reversed_share(
    train: Int[Tensor, "facts 3"],
    test: Int[Tensor, "asked 3"],
    *,
    same_relation: bool = False,
) -> float:
    """Share of test facts whose pair stands the other way round in the training facts.

    Args:
        train: Training facts.
        test: Facts that are asked about.
        same_relation: Whether the turned pair must have the relation of the question.

    Returns:
        The share, from 0 to 1.

    Raises:
        ValueError: If facts are not triples, or none is asked about.

    References:
        Toutanova and Chen 2015, doi:10.18653/v1/W15-4007; Akrami et al. 2020, arXiv:2003.08001.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> reversed_share(torch.tensor([[1, 0, 0]]), torch.tensor([[0, 1, 1], [0, 1, 2]]))
        0.5
    """
    check_shape("train", train, (None, 3))
    check_shape("test", test, (None, 3))
    if len(test) == 0:
        raise ValueError("there are no facts to ask about")
    turned = train.flip(1)
    if not same_relation:
        turned, test = turned[:, ::2], test[:, ::2]
    seen = {tuple(fact) for fact in turned.tolist()}
    return sum(tuple(fact) in seen for fact in test.tolist()) / len(test)


def _table(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    counts = torch.bincount(rows * width + columns, minlength=height * width)
    return counts.view(height, width).to(torch.get_default_dtype())


def _check(train: Tensor, entities: int, relations: int) -> None:
    check_shape("train", train, (None, 3))
    check_count("entities", entities)
    check_count("relations", relations)
    check_ids("heads and tails", train[:, ::2], entities)
    check_ids("relations", train[:, 1], relations)
