r"""Layers of message passing: GCN, R-GCN and GAT, with rows as nodes and :math:`H W` as the map."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.core import check_count, check_ids, check_in_range, check_shape, rand
from companion.knowledge.knowledge_graphs._graphs import (
    check_edges,
    neighbor_softmax,
    with_loops,
)

__all__ = ["GAT", "GCN", "RGCN", "Relations", "gcn_backward"]


class GCN(nn.Module):
    r"""A graph convolution: :math:`H' = \hat A H W + b`. The nonlinearity is left to the caller.

    Args:
        width: Width of what comes in.
        out: Width of what goes out.
        generator: Source of the starting values, uniform with variance
            ``2 / (width + out)`` (Glorot).
        bias: Whether :math:`b` is there.

    Attributes:
        weight: :math:`W`.
        bias: :math:`b`, or ``None``.

    References:
        Kipf and Welling 2017, arXiv:1609.02907.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> layer = GCN(3, 2, generator=torch.Generator().manual_seed(0))
        >>> layer(torch.ones(4, 3), torch.eye(4)).shape
        torch.Size([4, 2])
    """

    def __init__(
        self, width: int, out: int, *, generator: torch.Generator, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(glorot(width, out, generator=generator))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None

    def forward(
        self, states: Float[Tensor, "nodes width"], matrix: Float[Tensor, "nodes nodes"]
    ) -> Float[Tensor, "nodes out"]:
        r"""Mix neighbors and map.

        Args:
            states: A row for each node.
            matrix: :math:`\hat A`, sparse (:func:`sparse_matrix` of :func:`gcn_norm`) or dense,
                with targets as rows.

        Returns:
            A row for each node.

        Raises:
            ValueError: If shapes do not fit.

        Numerics:
            The narrower side is mixed: first :math:`H W`, unless that would widen the rows.
        """
        check_shape("states", states, (None, len(self.weight)))
        check_shape("matrix", matrix, (len(states), len(states)))
        if self.weight.shape[1] <= self.weight.shape[0]:
            mixed = matrix @ (states @ self.weight)
        else:
            mixed = (matrix @ states) @ self.weight
        return mixed if self.bias is None else mixed + self.bias


def gcn_backward(
    states: Float[Tensor, "nodes width"],
    matrix: Float[Tensor, "targets nodes"],
    weight: Float[Tensor, "width out"],
    gradient: Float[Tensor, "targets out"],
) -> tuple[Float[Tensor, "nodes width"], Float[Tensor, "width out"]]:
    r"""The gradients of :math:`\hat A H W` by hand.

    .. math:: dH = \hat A^\top G W^\top, \qquad dW = (\hat A H)^\top G

    Args:
        states: :math:`H`.
        matrix: :math:`\hat A`, sparse or dense. It need not be symmetric, nor square.
        weight: :math:`W`.
        gradient: :math:`G`, of the loss by the output.

    Returns:
        :math:`dH` and :math:`dW`, each in the shape of its variable.

    Raises:
        ValueError: If shapes do not fit.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> dH, dW = gcn_backward(
        ...     torch.ones(2, 1), torch.eye(2), torch.tensor([[3.0]]), torch.ones(2, 1))
        >>> dH.T, dW
        (tensor([[3., 3.]]), tensor([[2.]]))
    """
    check_shape("states", states, (None, len(weight)))
    check_shape("matrix", matrix, (None, len(states)))
    check_shape("gradient", gradient, (len(matrix), weight.shape[1]))
    spread = matrix.T @ gradient
    return spread @ weight.T, states.T @ spread


class Relations:
    r"""The edges of a graph with several relations, sorted once for :class:`RGCN`.

    For each relation :math:`r` and node :math:`i` the neighbors :math:`N_r(i)` are averaged, or
    weighted by all neighbors of :math:`i` together. What is averaged is a sparse matrix times the
    states, and rows of one relation lie side by side.

    Args:
        edges: Sources in the first row, targets in the second.
        kinds: Relation of each edge.
        nodes: Number of nodes.
        relations: Number of relations.
        norm: ``"relation"`` divides by :math:`|N_r(i)|` (classification of entities in the paper),
            ``"node"`` by :math:`\sum_r |N_r(i)|` (its link prediction), ``"none"`` sums.

    Attributes:
        nodes: Number of nodes.
        relations: Number of relations.
        matrix: Sparse, from nodes to pairs of a relation and a target.
        targets: The target of each such pair.
        lengths: How many pairs each relation has.

    Raises:
        ValueError: If shapes do not fit, a number is out of its range, or there is no such norm.

    References:
        Schlichtkrull et al. 2018, arXiv:1703.06103, sec. 2.1 and 4.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> two = torch.tensor([[0, 1, 2], [2, 2, 0]])
        >>> graph = Relations(two, torch.tensor([0, 0, 1]), nodes=3, relations=2)
        >>> graph.targets, graph.lengths
        (tensor([2, 0]), [1, 1])
    """

    def __init__(
        self,
        edges: Int[Tensor, "2 edges"],
        kinds: Int[Tensor, " edges"],
        *,
        nodes: int,
        relations: int,
        norm: Literal["relation", "node", "none"] = "relation",
    ) -> None:
        check_edges(edges, nodes)
        check_shape("kinds", kinds, (edges.shape[1],))
        check_count("relations", relations)
        check_ids("kinds", kinds, relations)
        if norm not in ("relation", "node", "none"):
            raise ValueError(f"norm must be relation, node or none, got {norm!r}")
        self.nodes, self.relations = nodes, relations
        pairs, place = torch.unique(kinds * nodes + edges[1], return_inverse=True)
        ones = torch.ones(edges.shape[1], device=edges.device)
        if norm == "relation":
            ones = ones / torch.bincount(place, minlength=len(pairs))[place]
        elif norm == "node":
            ones = ones / torch.bincount(edges[1], minlength=nodes)[edges[1]]
        self.matrix = torch.sparse_coo_tensor(
            torch.stack([place, edges[0]]), ones, (len(pairs), nodes), check_invariants=False
        ).coalesce()
        self.targets = pairs % nodes
        self.lengths: list[int] = torch.bincount(pairs // nodes, minlength=relations).tolist()

    @staticmethod
    def of_facts(
        facts: Int[Tensor, "facts 3"],
        *,
        nodes: int,
        relations: int,
        norm: Literal["relation", "node", "none"] = "relation",
    ) -> "Relations":
        """Facts in both directions: relation ``r`` from head to tail, ``r + relations`` back.

        Args:
            facts: *Training* facts alone, one (head, relation, tail) a row. An edge that is to be
                predicted must not be there, in either direction.
            nodes: Number of entities.
            relations: Number of relations, before doubling.
            norm: As above.

        Returns:
            The graph, with twice as many relations.
        """
        check_shape("facts", facts, (None, 3))
        check_ids("relations", facts[:, 1], relations)
        there = facts[:, [0, 2]].T
        edges = torch.cat([there, there.flip(0)], 1)
        kinds = torch.cat([facts[:, 1], facts[:, 1] + relations])
        return Relations(edges, kinds, nodes=nodes, relations=2 * relations, norm=norm)


class RGCN(nn.Module):
    r"""A layer with a matrix for each relation, made of a few common ones.

    .. math:: h'_i = \sum_r \sum_{j \in N_r(i)} \frac{1}{c_{ir}} h_j W_r + h_i W_0 + b,
       \qquad W_r = \sum_{b=1}^B a_{rb} V_b

    Args:
        width: Width of what comes in.
        out: Width of what goes out.
        relations: Number of relations.
        generator: Source of the starting values (Glorot).
        bases: :math:`B`; ``None`` gives each relation a matrix of its own.
        bias: Whether :math:`b` is there.

    Attributes:
        weight: The matrices :math:`V_b`, or :math:`W_r`.
        mixture: The numbers :math:`a_{rb}`, or ``None``.
        root: :math:`W_0`.
        bias: :math:`b`, or ``None``.

    Raises:
        ValueError: If a number is below 1.

    References:
        Schlichtkrull et al. 2018, arXiv:1703.06103, eq. 2 and 3.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> graph = Relations(
        ...     torch.tensor([[0, 1], [2, 2]]), torch.tensor([0, 1]), nodes=3, relations=2)
        >>> layer = RGCN(5, 4, relations=2, bases=1, generator=torch.Generator().manual_seed(0))
        >>> layer(torch.ones(3, 5), graph).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        width: int,
        out: int,
        *,
        relations: int,
        generator: torch.Generator,
        bases: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_count("relations", relations)
        count = relations
        self.mixture: nn.Parameter | None = None
        if bases is not None:
            check_count("bases", bases)
            count = bases
            self.mixture = nn.Parameter(glorot(relations, bases, generator=generator))
        matrices = [glorot(width, out, generator=generator) for _ in range(count)]
        self.weight = nn.Parameter(torch.stack(matrices))
        self.root = nn.Parameter(glorot(width, out, generator=generator))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None

    def matrices(self) -> Float[Tensor, "relations width out"]:
        r"""The matrices :math:`W_r` of all relations."""
        if self.mixture is None:
            return self.weight
        return torch.einsum("rb,bio->rio", self.mixture, self.weight)

    def forward(
        self, states: Float[Tensor, "nodes width"], graph: Relations
    ) -> Float[Tensor, "nodes out"]:
        """Mix the neighbors of each relation, map, and add.

        Args:
            states: A row for each node.
            graph: The sorted edges.

        Returns:
            A row for each node.

        Raises:
            ValueError: If states, relations and graph do not fit.
        """
        check_shape("states", states, (graph.nodes, len(self.root)))
        matrices = self.matrices()
        if len(matrices) != graph.relations:
            raise ValueError(
                f"the layer has {len(matrices)} relations and the graph {graph.relations}"
            )
        mixed = torch.split(graph.matrix.to(states.dtype) @ states, graph.lengths)
        mapped = [part @ matrices[r] for r, part in enumerate(mixed) if len(part)]
        own = states @ self.root
        if mapped:
            own = own.index_add(0, graph.targets, torch.cat(mapped))
        return own if self.bias is None else own + self.bias


class GAT(nn.Module):
    r"""Attention over neighbors: weights from source and target, a softmax for each target.

    .. math:: \alpha_{ij} = \mathrm{softmax}_j\big(\mathrm{LeakyReLU}(a_s \cdot h_j W +
       a_t \cdot h_i W)\big), \qquad h'_i = \sum_j \alpha_{ij}\, h_j W + b

    over the neighbors :math:`j` of :math:`i` and :math:`i` itself. Heads are put side by side.

    Args:
        width: Width of what comes in.
        out: Width of each head.
        heads: Number of heads.
        generator: Source of the starting values (Glorot).
        slope: Slope of the LeakyReLU below 0.
        bias: Whether :math:`b` is there.

    Attributes:
        weight: :math:`W` of all heads side by side.
        source: :math:`a_s` of each head.
        target: :math:`a_t` of each head.
        bias: :math:`b`, or ``None``.

    Raises:
        ValueError: If a number is out of its domain.

    References:
        Velickovic et al. 2018, arXiv:1710.10903, eq. 3.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> layer = GAT(3, 2, heads=2, generator=torch.Generator().manual_seed(0))
        >>> layer(torch.ones(4, 3), torch.tensor([[0, 1], [1, 2]])).shape
        torch.Size([4, 4])
    """

    def __init__(
        self,
        width: int,
        out: int,
        *,
        generator: torch.Generator,
        heads: int = 1,
        slope: float = 0.2,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_count("heads", heads)
        check_in_range("slope", slope, low=0.0, high=1.0)
        self.slope = slope
        self.weight = nn.Parameter(glorot(width, heads * out, generator=generator))
        self.source = nn.Parameter(glorot(heads, out, generator=generator))
        self.target = nn.Parameter(glorot(heads, out, generator=generator))
        self.bias = nn.Parameter(torch.zeros(heads * out)) if bias else None

    def weights(
        self, states: Float[Tensor, "nodes width"], edges: Int[Tensor, "2 edges"]
    ) -> tuple[Int[Tensor, "2 all_edges"], Float[Tensor, "all_edges heads"]]:
        r"""The weights :math:`\alpha` of all edges.

        Args:
            states: A row for each node.
            edges: Sources in the first row, targets in the second. Loops are replaced.

        Returns:
            Edges, those that are no loops first in their order, then a loop for each node; and the
            weights of each head, which sum to 1 over the edges *into* a node.
        """
        return self._attend(states, edges)[:2]

    def forward(
        self, states: Float[Tensor, "nodes width"], edges: Int[Tensor, "2 edges"]
    ) -> Float[Tensor, "nodes heads_and_out"]:
        """Average neighbors by attention.

        Args:
            states: A row for each node.
            edges: Sources in the first row, targets in the second. Loops are replaced: each node
                has one.

        Returns:
            A row for each node, heads side by side.

        Raises:
            ValueError: If shapes do not fit, or an edge leaves the graph.
        """
        edges, alpha, mapped = self._attend(states, edges)
        messages = alpha[..., None] * mapped.index_select(0, edges[0])
        out = torch.zeros_like(mapped).index_add(0, edges[1], messages).flatten(1)
        return out if self.bias is None else out + self.bias

    def _attend(self, states: Tensor, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        check_shape("states", states, (None, len(self.weight)))
        check_edges(edges, len(states))
        ones = torch.ones(edges.shape[1], device=edges.device)
        edges, _ = with_loops(edges, ones, nodes=len(states))
        mapped = (states @ self.weight).view(len(states), *self.source.shape)
        sent, asked = (mapped * self.source).sum(-1), (mapped * self.target).sum(-1)
        scores = F.leaky_relu(sent[edges[0]] + asked[edges[1]], self.slope)
        return edges, neighbor_softmax(scores, edges, nodes=len(states)), mapped


def glorot(width: int, out: int, *, generator: torch.Generator) -> Tensor:
    """Uniform numbers of variance ``2 / (width + out)``."""
    check_count("width", width)
    check_count("out", out)
    return math.sqrt(6 / (width + out)) * (2 * rand(width, out, generator=generator) - 1)
