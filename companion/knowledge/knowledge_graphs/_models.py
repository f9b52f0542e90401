r"""Tables of vectors for entities and relations, and what they score.

Each model compares a *query* with the vectors of entities. For the question (head, relation, ?) the
query is made of head and relation, for (?, relation, tail) of the other two, so that the comparison
is the score of the fact on either side. All candidates are then one matrix product, or one matrix
of distances.
"""

import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.core import check_count, check_ids, rand, randn
from companion.knowledge.knowledge_graphs._scores import (
    check_norm,
    complex_product,
    conjugate,
    moduli_norm,
    turn,
)

__all__ = ["ComplEx", "DistMult", "LinkModel", "RotatE", "Scorer", "TransE"]


@runtime_checkable
class Scorer(Protocol):
    """What scores all entities as the answer to a question."""

    def tails(
        self, head: Int[Tensor, " batch"], relation: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch entities"]:
        """Scores of all tails."""
        ...

    def heads(
        self, relation: Int[Tensor, " batch"], tail: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch entities"]:
        """Scores of all heads."""
        ...


class LinkModel(nn.Module):
    """A table of entities, a table of relations, and a score of facts.

    Subclasses say how a query is made for each side, and how it is compared.

    Args:
        entities: Number of entities.
        relations: Number of relations.
        dim: Width of the vectors of entities.
        generator: Source of the starting values.

    Attributes:
        entity: Vectors of entities.
        relation: Vectors of relations, or angles.

    Book: :doc:`/book/knowledge/knowledge_graphs`
    """

    entity: nn.Parameter
    relation: nn.Parameter

    def __init__(
        self, entities: int, relations: int, *, dim: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        check_count("entities", entities, low=2)
        check_count("relations", relations)
        check_count("dim", dim)
        self.dim = dim
        self._start(entities, relations, generator)

    def _start(self, entities: int, relations: int, generator: torch.Generator) -> None:
        """Draw the starting values: normal, of variance one over the width."""
        scale = self.dim**-0.5
        self.entity = nn.Parameter(scale * randn(entities, self.dim, generator=generator))
        self.relation = nn.Parameter(scale * randn(relations, self.dim, generator=generator))

    def tail_query(
        self, head: Float[Tensor, "*batch dim"], relation: Float[Tensor, "*batch width"]
    ) -> Float[Tensor, "*batch dim"]:
        """What the vectors of tails are compared with."""
        raise NotImplementedError

    def head_query(
        self, relation: Float[Tensor, "*batch width"], tail: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        """What the vectors of heads are compared with."""
        raise NotImplementedError

    def compare(
        self, query: Float[Tensor, "*batch dim"], vectors: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch"]:
        """Score of each query with the vector at its place."""
        raise NotImplementedError

    def compare_all(
        self, query: Float[Tensor, "batch dim"], table: Float[Tensor, "entities dim"]
    ) -> Float[Tensor, "batch entities"]:
        """Score of each query with each row of a table."""
        raise NotImplementedError

    def forward(self, facts: Int[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
        """Score facts, one (head, relation, tail) a row.

        Args:
            facts: Numbers of entities and relations.

        Returns:
            A score for each fact.

        Raises:
            ValueError: If a number is out of its table.
        """
        head, relation, tail = facts.unbind(-1)
        check_ids("heads and tails", facts[..., ::2], len(self.entity))
        check_ids("relations", relation, len(self.relation))
        query = self.tail_query(
            F.embedding(head, self.entity), F.embedding(relation, self.relation)
        )
        return self.compare(query, F.embedding(tail, self.entity))

    def tails(
        self, head: Int[Tensor, " batch"], relation: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch entities"]:
        """Score all entities as tails.

        Args:
            head: Heads of the questions.
            relation: Relations of the questions.

        Returns:
            A row of scores for each question.
        """
        check_ids("heads", head, len(self.entity))
        check_ids("relations", relation, len(self.relation))
        query = self.tail_query(
            F.embedding(head, self.entity), F.embedding(relation, self.relation)
        )
        return self.compare_all(query, self.entity)

    def heads(
        self, relation: Int[Tensor, " batch"], tail: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch entities"]:
        """Score all entities as heads.

        Args:
            relation: Relations of the questions.
            tail: Tails of the questions.

        Returns:
            A row of scores for each question.
        """
        check_ids("relations", relation, len(self.relation))
        check_ids("tails", tail, len(self.entity))
        query = self.head_query(
            F.embedding(relation, self.relation), F.embedding(tail, self.entity)
        )
        return self.compare_all(query, self.entity)


class _Distance(LinkModel):
    """Compares by a negative distance."""

    def __init__(
        self,
        entities: int,
        relations: int,
        *,
        dim: int,
        generator: torch.Generator,
        norm: int = 2,
    ) -> None:
        check_norm(norm)
        super().__init__(entities, relations, dim=dim, generator=generator)
        self.norm = norm

    def compare(self, query: Tensor, vectors: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(query - vectors, ord=self.norm, dim=-1)
        return -length

    def compare_all(self, query: Tensor, table: Tensor) -> Tensor:
        # Never through products of lengths, which lose the digits of small distances.
        exact = "donot_use_mm_for_euclid_dist"
        return -torch.cdist(query, table, p=float(self.norm), compute_mode=exact)


class _Product(LinkModel):
    """Compares by an inner product."""

    def compare(self, query: Tensor, vectors: Tensor) -> Tensor:
        return (query * vectors).sum(-1)

    def compare_all(self, query: Tensor, table: Tensor) -> Tensor:
        return query @ table.T


class TransE(_Distance):
    r"""Relations are translations: :math:`f = -\lVert h + r - t \rVert_p`.

    Starting values are uniform in :math:`\pm 6/\sqrt d`, relations have length 1 at the start, and
    entities after each :meth:`constrain`, which belongs after a step of the optimizer.

    Args:
        entities: Number of entities.
        relations: Number of relations.
        dim: Width.
        generator: Source of the starting values.
        norm: :math:`p`, 1 or 2.

    Raises:
        ValueError: If a size is too small, or the norm is neither 1 nor 2.

    References:
        Bordes et al. 2013, "Translating Embeddings for Modeling Multi-relational Data", NeurIPS.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> model = TransE(5, 2, dim=3, generator=torch.Generator().manual_seed(0))
        >>> model(torch.tensor([[0, 1, 4]])).shape
        torch.Size([1])
    """

    def _start(self, entities: int, relations: int, generator: torch.Generator) -> None:
        bound = 6 * self.dim**-0.5
        tables = [
            bound * (2 * rand(count, self.dim, generator=generator) - 1)
            for count in (entities, relations)
        ]
        self.entity = nn.Parameter(tables[0])
        self.relation = nn.Parameter(F.normalize(tables[1], dim=-1))

    @torch.no_grad()
    def constrain(self) -> None:
        """Give all entities length 1, in place; relations stay as they are."""
        self.entity.copy_(F.normalize(self.entity, dim=-1))

    def tail_query(self, head: Tensor, relation: Tensor) -> Tensor:
        """The head, moved."""
        return head + relation

    def head_query(self, relation: Tensor, tail: Tensor) -> Tensor:
        """The tail, moved back."""
        return tail - relation


class DistMult(_Product):
    r"""Relations are diagonal matrices: :math:`f = \sum_i h_i r_i t_i`.

    Args:
        entities: Number of entities.
        relations: Number of relations.
        dim: Width.
        generator: Source of the starting values.

    Raises:
        ValueError: If a size is too small.

    References:
        Yang et al. 2015, arXiv:1412.6575.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> model = DistMult(5, 2, dim=3, generator=torch.Generator().manual_seed(0))
        >>> model.tails(torch.tensor([0]), torch.tensor([1])).shape
        torch.Size([1, 5])
    """

    def tail_query(self, head: Tensor, relation: Tensor) -> Tensor:
        """The product of the given parts."""
        return head * relation

    def head_query(self, relation: Tensor, tail: Tensor) -> Tensor:
        """The product of the given parts."""
        return relation * tail


class ComplEx(_Product):
    r"""Relations are complex diagonal matrices: :math:`f = \Re \sum_i h_i r_i \bar t_i`.

    Args:
        entities: Number of entities.
        relations: Number of relations.
        dim: Width in real numbers, even: twice the number of complex components.
        generator: Source of the starting values.

    Raises:
        ValueError: If a size is too small, or the width is odd.

    References:
        Trouillon et al. 2016, arXiv:1606.06357.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> model = ComplEx(5, 2, dim=4, generator=torch.Generator().manual_seed(0))
        >>> model.heads(torch.tensor([0]), torch.tensor([1])).shape
        torch.Size([1, 5])
    """

    def _start(self, entities: int, relations: int, generator: torch.Generator) -> None:
        _check_even(self.dim)
        super()._start(entities, relations, generator)

    def tail_query(self, head: Tensor, relation: Tensor) -> Tensor:
        """The complex product of the given parts."""
        return complex_product(head, relation)

    def head_query(self, relation: Tensor, tail: Tensor) -> Tensor:
        """The tail times the conjugate of the relation."""
        return complex_product(conjugate(relation), tail)


class RotatE(_Distance):
    r"""Relations are rotations: :math:`f = -\lVert h \circ e^{i\theta} - t \rVert`.

    The table of relations holds the angles :math:`\theta` themselves, in radians, half as many as
    the width.

    Args:
        entities: Number of entities.
        relations: Number of relations.
        dim: Width in real numbers, even.
        generator: Source of the starting values.
        norm: 2 for the Euclidean distance, 1 for the sum of moduli.

    Raises:
        ValueError: If a size is too small, the width is odd, or the norm is neither 1 nor 2.

    References:
        Sun et al. 2019, arXiv:1902.10197.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> model = RotatE(5, 2, dim=4, generator=torch.Generator().manual_seed(0))
        >>> model.relation.shape
        torch.Size([2, 2])
    """

    def _start(self, entities: int, relations: int, generator: torch.Generator) -> None:
        _check_even(self.dim)
        scale = self.dim**-0.5
        angles = math.pi * (2 * rand(relations, self.dim // 2, generator=generator) - 1)
        self.entity = nn.Parameter(scale * randn(entities, self.dim, generator=generator))
        self.relation = nn.Parameter(angles)

    def tail_query(self, head: Tensor, relation: Tensor) -> Tensor:
        """The head, turned."""
        return turn(head, relation)

    def head_query(self, relation: Tensor, tail: Tensor) -> Tensor:
        """The tail, turned back."""
        return turn(tail, -relation)

    def compare(self, query: Tensor, vectors: Tensor) -> Tensor:
        """Negative distance of complex vectors."""
        return -moduli_norm(query - vectors, norm=self.norm)

    def compare_all(self, query: Tensor, table: Tensor) -> Tensor:
        """Negative distances of complex vectors."""
        if self.norm == 2:  # the moduli's root of squares is the Euclidean distance
            return super().compare_all(query, table)
        return -moduli_norm(query[:, None] - table, norm=1)


def _check_even(dim: int) -> None:
    if dim % 2:
        raise ValueError(f"dim must be even, two real numbers for a complex one, got {dim}")
