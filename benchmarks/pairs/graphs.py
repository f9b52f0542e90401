"""Knowledge graphs: filtered ranks, and layers of message passing with their gradients."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks._pair import Pair, Side, close
from companion import data
from companion.knowledge.knowledge_graphs import (
    GCN,
    RGCN,
    ComplEx,
    KnownFacts,
    Relations,
    filtered_ranks,
    gcn_norm,
    link_metrics,
    sparse_matrix,
)

NODES, EDGES, DIM, BASES = 2708, 10_556, 64, 8


def _complex(graph: Any) -> ComplEx:
    sizes = (len(graph.entities), len(graph.relations))
    return ComplEx(*sizes, dim=DIM, generator=torch.Generator().manual_seed(0))


def _our_ranks(device: torch.device) -> Side:
    graph = data.knowledge_graph("umls")
    model = _complex(graph).to(device)
    facts = [part.to(device) for part in (graph.train, graph.valid, graph.test)]

    def run() -> Tensor:
        # The filter is made anew each time, as PyKEEN makes it.
        known = KnownFacts(torch.cat(facts), entities=len(graph.entities), relations=46)
        told = link_metrics(filtered_ranks(model, facts[2], known=known))
        return torch.tensor([told.mrr, told.hits_10])

    return run


def _their_ranks(device: torch.device) -> Side:
    from pykeen.evaluation import RankBasedEvaluator
    from pykeen.models import ComplEx as Theirs
    from pykeen.triples import TriplesFactory

    graph = data.knowledge_graph("umls")
    entity = {name: number for number, name in enumerate(graph.entities)}
    relation = {name: number for number, name in enumerate(graph.relations)}
    factory = TriplesFactory(graph.train, entity_to_id=entity, relation_to_id=relation)
    ours = _complex(graph)
    theirs = Theirs(triples_factory=factory, embedding_dim=DIM // 2, random_seed=0)
    with torch.no_grad():
        for table, values in (
            (theirs.entity_representations[0], ours.entity),
            (theirs.relation_representations[0], ours.relation),
        ):
            weight = table._embeddings.weight
            numbers = torch.view_as_real(torch.complex(*values.chunk(2, -1)))
            weight.copy_(numbers.reshape(weight.shape))
    theirs = theirs.to(device).eval()
    evaluator = RankBasedEvaluator()

    def run() -> Tensor:
        report = evaluator.evaluate(
            theirs,
            graph.test,
            additional_filter_triples=[graph.train, graph.valid],
            batch_size=len(graph.test),
            use_tqdm=False,
        )
        names = ("both.realistic.mrr", "both.realistic.hits_at_10")
        return torch.tensor([report.get_metric(name) for name in names])

    return run


def _random_graph() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    pairs = torch.randint(0, NODES, (EDGES, 2), generator=g)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]].unique(dim=0)
    return pairs.T.contiguous(), torch.randn(NODES, DIM, generator=g)


def _gcn(device: torch.device, *, ours: bool) -> Side:
    edges, states = (part.to(device) for part in _random_graph())
    layer = GCN(DIM, DIM, generator=torch.Generator().manual_seed(0), bias=False).to(device)
    weight = layer.weight
    matrix = sparse_matrix(*gcn_norm(edges, nodes=NODES), nodes=NODES)
    forward = layer
    if not ours:
        from torch_geometric.nn import GCNConv

        other = GCNConv(DIM, DIM, bias=False, cached=True).to(device)
        with torch.no_grad():
            other.lin.weight.copy_(weight.T)
        weight, matrix, forward = other.lin.weight, edges, other

    def run() -> list[Tensor]:
        out = forward(states, matrix)
        (slope,) = torch.autograd.grad(out.square().sum(), weight)
        return [out.detach(), slope if ours else slope.T]

    return run


def _rgcn(device: torch.device, *, ours: bool) -> Side:
    graph = data.knowledge_graph("umls")
    nodes, relations = len(graph.entities), len(graph.relations)
    facts = graph.train.to(device)
    states = torch.randn(nodes, DIM, generator=torch.Generator().manual_seed(1)).to(device)
    g = torch.Generator().manual_seed(0)
    layer = RGCN(DIM, DIM, relations=2 * relations, bases=BASES, generator=g).to(device)
    parameters = [layer.weight, layer.root]
    if ours:
        sorted_edges = Relations.of_facts(facts, nodes=nodes, relations=relations)

        def forward() -> Tensor:
            out: Tensor = layer(states, sorted_edges)
            return out
    else:
        from torch_geometric.nn import RGCNConv

        other = RGCNConv(DIM, DIM, 2 * relations, num_bases=BASES).to(device)
        with torch.no_grad():
            other.weight.copy_(layer.weight)
            other.root.copy_(layer.root)
            other.comp.copy_(layer.mixture)
        parameters = [other.weight, other.root]
        there = facts[:, [0, 2]].T
        edges = torch.cat([there, there.flip(0)], 1)
        kinds = torch.cat([facts[:, 1], facts[:, 1] + relations])

        def forward() -> Tensor:
            out: Tensor = other(states, edges, kinds)
            return out

    def run() -> list[Tensor]:
        out = forward()
        return [out.detach(), *torch.autograd.grad(out.square().sum(), parameters)]

    return run


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    yield Pair(
        name="graphs/ranks",
        task="filtered ranks of the 661 test facts of UMLS, both sides, ComplEx of width 64",
        peer="pykeen.evaluation.RankBasedEvaluator",
        ours=_our_ranks,
        theirs=_their_ranks,
        same=close(1e-4),
        needs=("pykeen",),
        speed=3.0,
        note="PyKEEN also computes many more statistics of the ranks.",
    )
    yield Pair(
        name="graphs/gcn",
        task=f"GCN and its gradient, {NODES:,} nodes, {EDGES:,} edges, {DIM} to {DIM}",
        peer="torch_geometric.nn.GCNConv, cached",
        ours=lambda device: _gcn(device, ours=True),
        theirs=lambda device: _gcn(device, ours=False),
        same=close(1e-4),
        needs=("torch_geometric",),
        speed=1.0,
        note="Both keep the normalized edges; ours are a sparse matrix.",
    )
    yield Pair(
        name="graphs/rgcn",
        task=f"R-GCN and its gradient on UMLS, 92 relations, {BASES} bases, {DIM} to {DIM}",
        peer="torch_geometric.nn.RGCNConv",
        ours=lambda device: _rgcn(device, ours=True),
        theirs=lambda device: _rgcn(device, ours=False),
        same=close(1e-4),
        needs=("torch_geometric",),
        speed=1.0,
        note="Ours sorts the edges by relation once, before it is timed.",
    )
