"""Layers and graphs, equal to PyTorch Geometric, to dense algebra, and to work by hand."""

import warnings

import networkx
import pytest
import torch
from torch import Tensor

from companion.core import randn
from companion.knowledge.knowledge_graphs import (
    GAT,
    GCN,
    RGCN,
    Relations,
    attend_with_facts,
    dirichlet_energy,
    fact_share,
    gcn_backward,
    gcn_norm,
    neighbor_softmax,
    neighbor_sum,
    retrieval_marginal,
    retrieval_posterior,
    sparse_matrix,
    wl_colors,
    wl_same,
)
from companion.transformer.attention import dense_attention

PATH = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(nodes: int, edges: int, *, loops: bool, seed: int = 0) -> Tensor:
    """Directed edges without repeats, some of them loops if asked for; a node may have none."""
    g = torch.Generator().manual_seed(seed)
    pairs = torch.cartesian_prod(torch.arange(nodes), torch.arange(nodes))
    if not loops:
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return pairs[torch.randperm(len(pairs), generator=g)[:edges]].T.contiguous()


def ring(n: int, first: int = 0) -> Tensor:
    nodes = torch.arange(n)
    there = torch.stack([nodes, (nodes + 1) % n]) + first
    return torch.cat([there, there.flip(0)], 1)


def test_the_path_of_three_has_the_matrix_worked_by_hand() -> None:
    edges, weights = gcn_norm(PATH, nodes=3)
    matrix = sparse_matrix(edges, weights, nodes=3).to_dense()
    s = 6**-0.5
    torch.testing.assert_close(matrix, torch.tensor([[0.5, s, 0], [s, 1 / 3, s], [0, s, 0.5]]))
    values = torch.linalg.eigvalsh(matrix.double())
    want = torch.tensor([-1 / 6, 1 / 2, 1], dtype=torch.float64)
    torch.testing.assert_close(values, want, rtol=0, atol=1e-7)


def test_a_loop_that_is_there_is_not_doubled() -> None:
    looped = torch.cat([PATH, torch.tensor([[0], [0]])], 1)
    edges, weights = gcn_norm(looped, nodes=3)
    matrix = sparse_matrix(edges, weights, nodes=3).to_dense()
    assert matrix[0, 0] == pytest.approx(1 / 2)  # 2/3 if it counted twice


def test_without_self_loops_the_option_does_what_it_says() -> None:
    edges, weights = gcn_norm(PATH, nodes=3, self_loops=False)
    values = torch.linalg.eigvalsh(sparse_matrix(edges, weights, nodes=3).to_dense().double())
    want = torch.tensor([-1.0, 0, 1], dtype=torch.float64)  # a path is bipartite
    torch.testing.assert_close(values, want, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("width", "out"), [(5, 3), (3, 7)])
def test_gcn_is_that_of_pytorch_geometric(width: int, out: int) -> None:
    from torch_geometric.nn import GCNConv

    edges, own = drawn(11, 37, loops=True), numbers(37, seed=1).abs() + 0.1
    layer = GCN(width, out, generator=torch.Generator().manual_seed(0)).double()
    other = GCNConv(width, out).double()
    with torch.no_grad():
        other.lin.weight.copy_(layer.weight.T)
        other.bias.copy_(numbers(out, seed=2))
        layer.bias.copy_(other.bias)  # type: ignore[union-attr]
    h = numbers(11, width, seed=3).requires_grad_()
    sparse = sparse_matrix(*gcn_norm(edges, own, nodes=11), nodes=11)
    have, want = layer(h, sparse), other(h, edges, own)
    torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(layer(h, sparse.to_dense()), want, rtol=1e-12, atol=1e-14)
    g = numbers(11, out, seed=4)
    have_h, have_w = torch.autograd.grad(have, (h, layer.weight), g)
    want_h, want_w = torch.autograd.grad(want, (h, other.lin.weight), g)
    torch.testing.assert_close(have_h, want_h, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(have_w, want_w.T, rtol=1e-12, atol=1e-14)
    hand_h, hand_w = gcn_backward(h.detach(), sparse, layer.weight.detach(), g)
    torch.testing.assert_close(hand_h, want_h, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(hand_w, want_w.T, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bases", [None, 2])
def test_rgcn_is_that_of_pytorch_geometric(bases: int | None) -> None:
    from torch_geometric.nn import RGCNConv

    edges = drawn(11, 43, loops=True)
    kinds = torch.randint(0, 4, (43,), generator=torch.Generator().manual_seed(1))  # 4 is empty
    layer = RGCN(3, 7, relations=5, bases=bases, generator=torch.Generator().manual_seed(0))
    layer = layer.double()
    other = RGCNConv(3, 7, num_relations=5, num_bases=bases).double()
    with torch.no_grad():
        other.weight.copy_(layer.weight)
        other.root.copy_(layer.root)
        if layer.mixture is not None:
            other.comp.copy_(layer.mixture)
    h = numbers(11, 3, seed=3).requires_grad_()
    graph = Relations(edges, kinds, nodes=11, relations=5)
    have, want = layer(h, graph), other(h, edges, kinds)
    torch.testing.assert_close(have, want, rtol=1e-6, atol=1e-7)  # means are kept in float32
    names = ["weight", "root"] + (["mixture"] if bases else [])
    g = numbers(11, 7, seed=4)
    mine = torch.autograd.grad(have, [h] + [getattr(layer, name) for name in names], g)
    its = [h] + [getattr(other, {"mixture": "comp"}.get(name, name)) for name in names]
    for one, two in zip(mine, torch.autograd.grad(want, its, g), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


def test_the_two_norms_of_rgcn_differ_as_in_the_papers_two_tasks() -> None:
    # Two neighbors by one relation, one by another, all states and matrices 1: 2 and 1.
    edges, kinds = torch.tensor([[0, 1, 2], [3, 3, 3]]), torch.tensor([0, 0, 1])
    layer = RGCN(1, 1, relations=2, generator=torch.Generator().manual_seed(0), bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.root.zero_()
    got = {}
    for norm in ("relation", "node", "none"):
        graph = Relations(edges, kinds, nodes=4, relations=2, norm=norm)
        got[norm] = float(layer(torch.ones(4, 1), graph).detach()[3])
    assert got == pytest.approx({"relation": 2.0, "node": 1.0, "none": 3.0})


def test_facts_run_both_ways_and_no_others() -> None:
    facts = torch.tensor([[0, 1, 2], [2, 0, 3]])
    graph = Relations.of_facts(facts, nodes=4, relations=2, norm="none")
    assert graph.relations == 4
    assert graph.lengths == [1, 1, 1, 1]
    assert graph.targets.tolist() == [3, 2, 2, 0]
    dense = graph.matrix.to_dense()
    assert dense.argmax(1).tolist() == [2, 0, 3, 2]


@pytest.mark.parametrize("heads", [1, 3])
def test_gat_is_that_of_pytorch_geometric(heads: int) -> None:
    from torch_geometric.nn import GATConv

    edges = drawn(11, 37, loops=True)
    layer = GAT(5, 2, heads=heads, generator=torch.Generator().manual_seed(0)).double()
    other = GATConv(5, 2, heads=heads).double()
    with torch.no_grad():
        other.lin.weight.copy_(layer.weight.T)
        other.att_src.copy_(layer.source[None])
        other.att_dst.copy_(layer.target[None])
    h = numbers(11, 5, seed=3).requires_grad_()
    have = layer(h, edges)
    want, (its_edges, its_alpha) = other(h, edges, return_attention_weights=True)
    torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-14)
    mine, alpha = layer.weights(h, edges)
    assert torch.equal(mine, its_edges)
    torch.testing.assert_close(alpha, its_alpha, rtol=1e-12, atol=1e-14)
    into = torch.zeros(11, heads, dtype=torch.float64).index_add(0, mine[1], alpha)
    torch.testing.assert_close(into, torch.ones_like(into))
    g = numbers(11, 2 * heads, seed=4)
    one = torch.autograd.grad(have, (h, layer.weight, layer.source, layer.target), g)
    two = torch.autograd.grad(want, (h, other.lin.weight, other.att_src, other.att_dst), g)
    torch.testing.assert_close(one[0], two[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one[1], two[1].T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one[2], two[2][0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one[3], two[3][0], rtol=1e-10, atol=1e-12)


def test_gat_ranks_neighbors_alike_for_every_node() -> None:
    # Its score is a function of a sum of one number for each side, so the order never changes.
    everyone = torch.cartesian_prod(torch.arange(7), torch.arange(7)).T.contiguous()
    layer = GAT(5, 3, generator=torch.Generator().manual_seed(0)).double()
    edges, alpha = layer.weights(numbers(7, 5), everyone)
    table = torch.zeros(7, 7, dtype=torch.float64)
    table[edges[1], edges[0]] = alpha[:, 0].detach()
    orders = table.argsort(1)
    assert bool((orders == orders[0]).all())


def test_sums_and_softmax_over_neighbors_are_dense_ones() -> None:
    edges, weights = drawn(7, 23, loops=True), numbers(23, seed=1)
    h = numbers(7, 3)
    dense = sparse_matrix(edges, weights, nodes=7).to_dense()
    torch.testing.assert_close(neighbor_sum(h, edges, weights), dense @ h)
    scores = 100 * numbers(23, 2, seed=2)
    for head in range(2):
        table = torch.full((7, 7), -torch.inf, dtype=torch.float64)
        table[edges[1], edges[0]] = scores[:, head]
        want = table.softmax(1)[edges[1], edges[0]]
        torch.testing.assert_close(neighbor_softmax(scores, edges, nodes=7)[:, head], want)
    assert torch.isfinite(neighbor_softmax(1e4 + scores, edges, nodes=7)).all()


def test_energy_is_the_quadratic_form_and_smoothing_lowers_it() -> None:
    there = drawn(11, 17, loops=False)
    edges = torch.unique(torch.cat([there, there.flip(0)], 1), dim=1)
    h = numbers(11, 3)
    matrix = sparse_matrix(*gcn_norm(edges, nodes=11), nodes=11).to_dense().double()
    want = (h.T @ (torch.eye(11) - matrix) @ h).trace()
    torch.testing.assert_close(dirichlet_energy(h, edges), want, rtol=1e-6, atol=0)
    values = torch.linalg.eigvalsh(matrix)
    assert values[-1] == pytest.approx(1, abs=1e-6)
    assert values[0] > -1
    energies = [float(dirichlet_energy(torch.matrix_power(matrix, k) @ h, edges)) for k in range(6)]
    assert energies == sorted(energies, reverse=True)


def test_energy_counts_one_loop_a_node_however_many_stand_there() -> None:
    h, edges = numbers(7, 3), drawn(7, 11, loops=False)
    edges = torch.cat([edges, edges.flip(0)], 1).unique(dim=1)
    some = torch.tensor([[0, 5], [0, 5]])
    want = dirichlet_energy(h, edges)
    torch.testing.assert_close(dirichlet_energy(h, torch.cat([edges, some], 1)), want)


def test_colors_tell_apart_what_networkx_hashes_differently() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # networkx says that its hashes changed in a version
        for seed in range(12):
            graphs = [networkx.gnp_random_graph(6, 0.5, seed=2 * seed + k) for k in range(2)]
            edges = []
            for graph in graphs:
                pairs = torch.tensor(list(graph.edges), dtype=torch.long).reshape(-1, 2).T
                edges.append(torch.cat([pairs, pairs.flip(0)], 1))
            hashes = [
                networkx.weisfeiler_lehman_graph_hash(graph, iterations=6) for graph in graphs
            ]
            assert wl_same(*edges, nodes=(6, 6)) == (hashes[0] == hashes[1])
        two = torch.cat([ring(3), ring(3, 3)], 1)
        six, twice = networkx.cycle_graph(6), networkx.Graph(two.T.tolist())
        same = [networkx.weisfeiler_lehman_graph_hash(graph) for graph in (six, twice)]
        assert same[0] == same[1]
    assert wl_same(ring(6), two, nodes=(6, 6))  # and yet they are not isomorphic
    assert not networkx.is_isomorphic(six, twice)
    assert not wl_same(ring(6), ring(7), nodes=(6, 7))


def test_graphs_that_differ_only_far_away_need_many_rounds() -> None:
    def path_with_a_leaf(place: int) -> Tensor:  # at a node of a path of nine; the leaf is node 9
        there = torch.tensor([[k, k + 1] for k in range(8)] + [[place, 9]]).T
        return torch.cat([there, there.flip(0)], 1)

    first, second = path_with_a_leaf(3), path_with_a_leaf(4)
    both = torch.cat([first, second + 10], 1)
    counts = []
    for colors in wl_colors(both, nodes=20, rounds=6):
        counts.append([sorted(half.tolist()) for half in colors.split(10)])
    equal = [one == other for one, other in counts]
    assert equal[:3] == [True] * 3
    assert not any(equal[4:])
    assert not wl_same(first, second, nodes=(10, 10))
    assert wl_same(first, path_with_a_leaf(5), nodes=(10, 10))  # the same, read from the other end


def test_colors_stay_small_and_refine() -> None:
    history = wl_colors(PATH, nodes=3, rounds=40)
    assert history.shape == (41, 3)
    assert int(history.max()) == 1
    start = wl_colors(PATH, nodes=3, rounds=1, colors=torch.tensor([5, 5, 9]))
    assert len(set(start[0].tolist())) == 2
    assert len(set(start[1].tolist())) == 3


def test_a_network_gives_equal_states_to_equal_colors() -> None:
    h = torch.ones(12, 3, dtype=torch.float64)
    one, two = ring(6), torch.cat([ring(3), ring(3, 3)], 1)
    both = torch.cat([one, two + 6], 1)
    matrix = sparse_matrix(*gcn_norm(both, nodes=12), nodes=12).double()
    g = torch.Generator().manual_seed(0)
    for layer in (GCN(3, 5, generator=g), GCN(5, 4, generator=g)):
        h = torch.relu(layer.double()(h, matrix))
    torch.testing.assert_close(h[:6].sum(0), h[6:].sum(0))


def test_facts_beside_the_text_mix_two_attentions() -> None:
    Q, K, V = numbers(3, 2, 5, 4)
    keys, values = numbers(2, 7, 4, seed=1), numbers(2, 7, 4, seed=2)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    share = fact_share(Q, K, keys, mask=mask)[..., None]
    text, _ = dense_attention(Q, K, V, mask=mask)
    facts, _ = dense_attention(Q, keys, values)
    want = (1 - share) * text + share * facts
    torch.testing.assert_close(attend_with_facts(Q, K, V, keys, values, mask=mask), want)
    none = attend_with_facts(Q, K, V, keys[:, :0], values[:, :0], mask=mask)
    torch.testing.assert_close(none, text)
    # A causal mask still holds between tokens: the first token does not see the others.
    changed = attend_with_facts(Q, K, V + torch.arange(5.0)[:, None], keys, values, mask=mask)
    torch.testing.assert_close(changed[:, 0], want[:, 0])


def test_the_marginal_is_a_mixture_and_its_posterior_weighs_gradients() -> None:
    z = numbers(2, 3).log_softmax(-1)
    y = numbers(2, 3, 5, seed=1).log_softmax(-1).requires_grad_()
    got = retrieval_marginal(z, y)
    torch.testing.assert_close(got.exp(), (z.exp()[..., None] * y.exp()).sum(1))
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(2).double())
    (slope,) = torch.autograd.grad(got[:, 4].sum(), y)
    posterior = retrieval_posterior(z, y[..., 4].detach())
    torch.testing.assert_close(slope[..., 4], posterior)


def test_probabilities_of_texts_may_be_rounded_but_not_left_as_scores() -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        z = numbers(300).log_softmax(-1).to(dtype)
        posterior = retrieval_posterior(z, torch.zeros_like(z))
        torch.testing.assert_close(posterior.double(), z.double().softmax(-1), rtol=0.02, atol=0)
        with pytest.raises(ValueError, match="apply log_softmax"):
            retrieval_posterior(z + 0.2, torch.zeros_like(z))
    nothing = fact_share(
        torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(1, 2), mask=torch.zeros(1, 3).bool()
    )
    assert nothing.tolist() == [1.0]


def test_layers_run_without_numbers() -> None:
    h, edges = torch.zeros(7, 3, device="meta"), drawn(7, 11, loops=False).to("meta")
    g = torch.Generator().manual_seed(0)
    matrix = torch.zeros(7, 7, device="meta")
    assert GCN(3, 5, generator=g).to("meta")(h, matrix).shape == (7, 5)
    assert neighbor_sum(h, edges).shape == (7, 3)
    assert neighbor_softmax(torch.zeros(11, 2, device="meta"), edges, nodes=7).shape == (11, 2)
    assert dirichlet_energy(h, edges).shape == ()
    rows = torch.zeros(2, 5, 4, device="meta")
    facts = torch.zeros(2, 3, 4, device="meta")
    assert attend_with_facts(rows, rows, rows, facts, facts).shape == (2, 5, 4)
    assert retrieval_marginal(torch.zeros(2, 3, device="meta"), rows[:, :3]).shape == (2, 4)


@pytest.mark.usefixtures("own_checks")
def test_refusals_say_what_to_do() -> None:
    h = torch.zeros(3, 2)
    g = torch.Generator()
    with pytest.raises(ValueError, match=r"edges must lie in \[0, 3\)"):
        neighbor_sum(h, torch.tensor([[0], [3]]))
    with pytest.raises(ValueError, match="edges must have shape"):
        gcn_norm(PATH.T, nodes=3)
    with pytest.raises(ValueError, match="weights must have shape"):
        gcn_norm(PATH, torch.ones(3), nodes=3)
    with pytest.raises(ValueError, match="states must have shape"):
        GCN(5, 2, generator=g)(h, torch.eye(3))
    with pytest.raises(ValueError, match="norm must be relation, node or none"):
        Relations(PATH, torch.zeros(4, dtype=torch.long), nodes=3, relations=1, norm="all")  # type: ignore[arg-type]
    graph = Relations(PATH, torch.zeros(4, dtype=torch.long), nodes=3, relations=1)
    with pytest.raises(ValueError, match="the layer has 2 relations and the graph 1"):
        RGCN(2, 2, relations=2, generator=g)(h, graph)
    with pytest.raises(ValueError, match="bases must be 1 or more"):
        RGCN(2, 2, relations=2, bases=0, generator=g)
    with pytest.raises(ValueError, match="heads must be 1 or more"):
        GAT(2, 2, heads=0, generator=g)
    with pytest.raises(ValueError, match="scores must have shape"):
        neighbor_softmax(torch.zeros(3, 1), PATH, nodes=3)
    with pytest.raises(ValueError, match="colors must have shape"):
        wl_colors(PATH, nodes=3, rounds=1, colors=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="rounds must be 0 or more"):
        wl_colors(PATH, nodes=3, rounds=-1)
    with pytest.raises(ValueError, match="fact_keys must have shape"):
        attend_with_facts(h, h, h, torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="mask must have shape"):
        fact_share(h, h, h, mask=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="apply log_softmax"):
        retrieval_marginal(torch.zeros(3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="same shape"):
        retrieval_posterior(torch.zeros(3), torch.zeros(2))
