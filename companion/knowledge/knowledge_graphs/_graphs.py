r"""Edges, the matrices made of them, smoothing, and what neighborhoods can tell apart."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.core import check_count, check_floating, check_ids, check_shape

__all__ = [
    "dirichlet_energy",
    "gcn_norm",
    "neighbor_softmax",
    "neighbor_sum",
    "sparse_matrix",
    "wl_colors",
    "wl_same",
]


def neighbor_sum(
    states: Float[Tensor, "sources dim"],
    edges: Int[Tensor, "2 edges"],
    weights: Float[Tensor, " edges"] | None = None,
    *,
    nodes: int | None = None,
) -> Float[Tensor, "nodes dim"]:
    r"""Sum what comes in along edges: :math:`m_i = \sum_{(j, i) \in E} w_{ji}\, h_j`.

    The matrix :math:`\hat A H` without the matrix. :func:`sparse_matrix` is faster where the same
    edges are used many times.

    Args:
        states: A row :math:`h_j` for each node.
        edges: Sources in the first row, targets in the second.
        weights: A number for each edge; all 1 by default.
        nodes: Number of targets; by default as many as sources.

    Returns:
        A row for each target; 0 where no edge ends.

    Raises:
        ValueError: If shapes do not fit, or an edge leaves the graph.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> h = torch.tensor([[1.0], [10.0], [100.0]])
        >>> neighbor_sum(h, torch.tensor([[0, 1, 2], [2, 2, 1]])).T
        tensor([[  0., 100.,  11.]])
    """
    check_floating("states", states)
    nodes = len(states) if nodes is None else nodes
    check_edges(edges, max(len(states), nodes))
    messages = states.index_select(0, edges[0])
    if weights is not None:
        check_shape("weights", weights, (edges.shape[1],))
        messages = messages * weights[:, None]
    return messages.new_zeros(nodes, states.shape[1]).index_add(0, edges[1], messages)


def sparse_matrix(
    edges: Int[Tensor, "2 edges"], weights: Float[Tensor, " edges"], *, nodes: int
) -> Float[Tensor, "nodes nodes"]:
    r"""The matrix of a graph with targets as rows: :math:`A_{ij} = w_{ji}`, so :math:`A H` sums.

    Args:
        edges: Sources in the first row, targets in the second.
        weights: A number for each edge. Numbers of equal edges are added.
        nodes: Number of nodes.

    Returns:
        A sparse tensor (COO, coalesced): half of what a layer of
        :class:`~companion.knowledge.knowledge_graphs.GCN` needs.

    Raises:
        ValueError: If shapes do not fit, or an edge leaves the graph.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> sparse_matrix(torch.tensor([[0], [1]]), torch.tensor([2.0]), nodes=2).to_dense()
        tensor([[0., 0.],
                [2., 0.]])
    """
    check_edges(edges, nodes)
    check_shape("weights", weights, (edges.shape[1],))
    size = (nodes, nodes)
    made = torch.sparse_coo_tensor(edges.flip(0), weights, size, check_invariants=False)
    return made.coalesce()


def gcn_norm(
    edges: Int[Tensor, "2 edges"],
    weights: Float[Tensor, " edges"] | None = None,
    *,
    nodes: int,
    self_loops: bool = True,
) -> tuple[Int[Tensor, "2 all_edges"], Float[Tensor, " all_edges"]]:
    r"""The edges and weights of :math:`\hat A = \tilde D^{-1/2} \tilde A \tilde D^{-1/2}`.

    With self-loops :math:`\tilde A` is :math:`A` with a loop at every node: a node that has one
    keeps it, and its weight, and does not get a second one. The degree :math:`\tilde D_{ii}` is
    the sum of the weights that come in.

    Args:
        edges: Sources in the first row, targets in the second. An undirected edge stands there
            twice.
        weights: Positive numbers, all 1 by default.
        nodes: Number of nodes.
        self_loops: Whether loops are added.

    Returns:
        Edges, those that are no loops first in their order, then a loop for each node in order; and
        their weights. Without ``self_loops`` the edges as they are.

    Raises:
        ValueError: If shapes do not fit, or an edge leaves the graph.

    Numerics:
        A node without edges has the weight 0 everywhere, not an infinite one.

    References:
        Kipf and Welling 2017, arXiv:1609.02907, eq. 2 with sec. 2.2 (the renormalization trick).

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> with_loops, weights = gcn_norm(path, nodes=3)
        >>> weights[-3:]
        tensor([0.5000, 0.3333, 0.5000])
    """
    check_edges(edges, nodes)
    if weights is None:
        weights = torch.ones(edges.shape[1], device=edges.device)
    check_floating("weights", weights)
    check_shape("weights", weights, (edges.shape[1],))
    if self_loops:
        edges, weights = with_loops(edges, weights, nodes=nodes)
    degree = weights.new_zeros(nodes).index_add(0, edges[1], weights)
    root = torch.where(degree > 0, degree, 1).rsqrt() * (degree > 0)
    return edges, root[edges[0]] * weights * root[edges[1]]


def with_loops(edges: Tensor, weights: Tensor, *, nodes: int) -> tuple[Tensor, Tensor]:
    """One loop a node, behind the other edges; loops that are there keep their weights."""
    loop = edges[0] == edges[1]
    every = torch.arange(nodes, device=edges.device)
    own = torch.ones(nodes, device=weights.device, dtype=weights.dtype)
    own = own.index_put((edges[0][loop],), weights[loop])
    return (
        torch.cat([edges[:, ~loop], every.expand(2, nodes)], 1),
        torch.cat([weights[~loop], own]),
    )


def neighbor_softmax(
    scores: Float[Tensor, "edges heads"], edges: Int[Tensor, "2 edges"], *, nodes: int
) -> Float[Tensor, "edges heads"]:
    r"""Softmax over the edges that end in the same node.

    .. math:: \alpha_e = \frac{e^{s_e}}{\sum_{e' : \, t(e') = t(e)} e^{s_{e'}}}

    Args:
        scores: Numbers for each edge, a column for each head.
        edges: Sources in the first row, targets in the second.
        nodes: Number of nodes.

    Returns:
        Weights that sum to 1 over the edges into each node.

    Raises:
        ValueError: If shapes do not fit, or an edge leaves the graph.

    Numerics:
        The largest score into each node is subtracted first, so nothing overflows.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> edges = torch.tensor([[0, 1, 2], [2, 2, 0]])
        >>> neighbor_softmax(torch.zeros(3, 1), edges, nodes=3).T
        tensor([[0.5000, 0.5000, 1.0000]])
    """
    check_floating("scores", scores)
    check_edges(edges, nodes)
    check_shape("scores", scores, (edges.shape[1], None))
    target = edges[1]
    place = target[:, None].expand_as(scores)
    empty = torch.full((nodes, scores.shape[1]), -torch.inf, device=scores.device)
    top = empty.to(scores.dtype).scatter_reduce(0, place, scores.detach(), "amax")
    raised = (scores - top.index_select(0, target)).exp()
    total = torch.zeros_like(top).index_add(0, target, raised)
    return raised / total.index_select(0, target)


def dirichlet_energy(
    states: Float[Tensor, "nodes dim"],
    edges: Int[Tensor, "2 edges"],
) -> Float[Tensor, ""]:
    r"""How much neighbors differ, in the measure that :func:`gcn_norm` smooths.

    .. math:: \mathcal E(H) = \frac12 \sum_{(j, i)} \Big\lVert \frac{h_i}{\sqrt{\tilde d_i}}
       - \frac{h_j}{\sqrt{\tilde d_j}} \Big\rVert^2 = \mathrm{tr}\big(H^\top (I - \hat A) H\big)

    It is 0 exactly where states are :math:`\sqrt{\tilde d_i}` times one vector in each component.
    Divided by :math:`\lVert H \rVert^2` it is the Rayleigh quotient, which does not fall when all
    states shrink alike.

    Args:
        states: A row for each node.
        edges: Undirected edges, each in both directions. Each node has one loop, whether or not it
            stands there.

    Returns:
        The energy, 0 or above.

    Raises:
        ValueError: If an edge leaves the graph.

    References:
        Cai and Wang 2020, arXiv:2006.13318.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> edge = torch.tensor([[0, 1], [1, 0]])
        >>> dirichlet_energy(torch.tensor([[1.0], [3.0]]), edge).round(decimals=4)
        tensor(2.)
    """
    check_floating("states", states)
    check_edges(edges, len(states))
    degree = states.new_ones(len(states)).index_add(
        0, edges[1], (edges[0] != edges[1]).to(states.dtype)
    )
    scaled = states * degree.rsqrt()[:, None]
    return (scaled[edges[0]] - scaled[edges[1]]).square().sum() / 2


def wl_colors(
    edges: Int[Tensor, "2 edges"],
    *,
    nodes: int,
    rounds: int,
    colors: Int[Tensor, " nodes"] | None = None,
) -> Int[Tensor, "rounds_and_start nodes"]:
    r"""Colors of nodes by the Weisfeiler-Leman test of dimension 1.

    .. math:: c^{(k+1)}_i = \mathrm{new}\big(c^{(k)}_i,
       \{\!\{ c^{(k)}_j : (j, i) \in E \}\!\}\big)

    where *new* gives each pair that occurs a number of its own, smaller pairs first. Numbers are
    exact, no hashes, and stay as small as the number of nodes. They compare only within one call:
    put two graphs side by side as one to compare them.

    Args:
        edges: Sources in the first row, targets in the second.
        nodes: Number of nodes.
        rounds: How many times colors are refined; the start is no round.
        colors: Colors at the start; all equal by default.

    Returns:
        Colors after 0, 1, ..., ``rounds`` rounds.

    Raises:
        ValueError: If shapes do not fit, an edge leaves the graph, or rounds are negative.

    References:
        Weisfeiler and Leman 1968; Morris et al. 2019, arXiv:1810.02244; Xu et al. 2019,
        arXiv:1810.00826.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> wl_colors(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), nodes=3, rounds=1)
        tensor([[0, 0, 0],
                [0, 1, 0]])
    """
    check_edges(edges, nodes)
    check_count("rounds", rounds, low=0)
    if colors is not None:
        check_shape("colors", colors, (nodes,))
    incoming: list[list[int]] = [[] for _ in range(nodes)]
    for source, target in edges.T.tolist():
        incoming[target].append(source)
    signs: list[object] = [0] * nodes if colors is None else colors.tolist()
    history = []
    for _ in range(rounds + 1):
        numbers = {sign: number for number, sign in enumerate(sorted(set(signs)))}  # type: ignore[type-var]
        current = [numbers[sign] for sign in signs]
        history.append(current)
        signs = [(current[i], tuple(sorted(current[j] for j in incoming[i]))) for i in range(nodes)]
    return torch.tensor(history, device=edges.device)


def wl_same(
    first: Int[Tensor, "2 first_edges"],
    second: Int[Tensor, "2 second_edges"],
    *,
    nodes: tuple[int, int],
) -> bool:
    """Whether the Weisfeiler-Leman test of dimension 1 cannot tell two graphs apart.

    If it can, they are not isomorphic. If it cannot, they may still differ.

    Args:
        first: Edges of the first graph.
        second: Edges of the second graph.
        nodes: Their numbers of nodes.

    Returns:
        Whether both have the same colors equally often, after as many rounds as change anything.

    Raises:
        ValueError: If an edge leaves its graph.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> def ring(n, first=0):
        ...     nodes = torch.arange(n)
        ...     there = torch.stack([nodes, (nodes + 1) % n]) + first
        ...     return torch.cat([there, there.flip(0)], 1)
        >>> wl_same(ring(6), torch.cat([ring(3), ring(3, 3)], 1), nodes=(6, 6))
        True
    """
    check_edges(first, nodes[0])
    check_edges(second, nodes[1])
    if nodes[0] != nodes[1]:
        return False
    both = torch.cat([first, second + nodes[0]], 1)
    colors = wl_colors(both, nodes=sum(nodes), rounds=nodes[0])[-1]
    one, other = (half.sort().values for half in torch.split(colors, list(nodes)))
    return bool(torch.equal(one, other))


def check_edges(edges: Tensor, nodes: int) -> None:
    """Refuse edges that are not pairs, or leave the graph."""
    check_shape("edges", edges, (2, None))
    check_count("nodes", nodes)
    check_ids("edges", edges, nodes)
