"""Train models of three small knowledge graphs, beside rules that count, and with a graph network.

About 15 minutes of one core. TransE, DistMult, ComplEx and RotatE learn Nations, Kinships and UMLS
by a softmax over all entities on both sides. Each has two settings to choose from, and a length of
training, by validation facts that are filtered without the test. Ranks of the test are split by
whether the relation is symmetric, and by whether the turned pair was in training. All four are
trained once more on Nations at four times the width. Then an R-GCN makes the entities of a DistMult
on UMLS, with three ways to treat the edges that are asked about.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion import data
from companion.core import generator
from companion.knowledge.knowledge_graphs import (
    RGCN,
    ComplEx,
    DistMult,
    InverseRules,
    KnownFacts,
    LinkModel,
    Popularity,
    Ranks,
    Relations,
    RotatE,
    Scorer,
    TransE,
    filtered_ranks,
    link_metrics,
)

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

BATCH, LR, EVERY = 512, 0.02, 10
SETTINGS: dict[str, tuple[type, list[dict[str, Any]]]] = {
    "TransE": (TransE, [{"norm": 1}, {"norm": 2}]),
    "DistMult": (DistMult, [{"cubes": 0.0}, {"cubes": 0.01}]),
    "ComplEx": (ComplEx, [{"cubes": 0.0}, {"cubes": 0.01}]),
    "RotatE": (RotatE, [{"cubes": 0.0}, {"cubes": 0.01}]),
}
ENCODERS = ("none", "kept", "dropped")


class Graph:
    """A knowledge graph, and its filters for choosing and for reporting."""

    def __init__(self, name: str) -> None:
        self.facts = data.knowledge_graph(name)
        parts = [self.facts.train, self.facts.valid, self.facts.test]
        self.sizes = {
            "entities": len(self.facts.entities),
            "relations": len(self.facts.relations),
        }
        self.choosing = KnownFacts(torch.cat(parts[:2]), **self.sizes)
        self.reporting = KnownFacts(torch.cat(parts), **self.sizes)
        self.symmetry = symmetry(torch.cat(parts), **self.sizes)
        seen = {(t, h) for h, _, t in self.facts.train.tolist()}
        self.turned = torch.tensor([(h, t) in seen for h, _, t in self.facts.test.tolist()])

    def valid(self, model: Scorer) -> float:
        """MRR on the validation facts, filtered by training and validation facts."""
        ranks = filtered_ranks(model, self.facts.valid, known=self.choosing)
        return link_metrics(ranks).mrr

    def report(self, model: Scorer) -> dict[str, Any]:
        """What is stored of a model: all, and the parts of the test."""
        ranks = filtered_ranks(model, self.facts.test, known=self.reporting)
        own = self.symmetry[self.facts.test[:, 1]]
        groups = {
            "symmetric": own >= 0.8,
            "one_way": own <= 0.2,
            "turned": self.turned,
            "new_pair": ~self.turned,
        }
        told: dict[str, Any] = {"all": [round(v, 4) for v in link_metrics(ranks)]}
        for group, rows in groups.items():
            if bool(rows.any()):
                some = Ranks(*(part[rows] for part in ranks))
                told[group] = round(link_metrics(some).mrr, 4)
        told["optimistic"] = round(link_metrics(ranks, ties="optimistic").mrr, 4)
        told["pessimistic"] = round(link_metrics(ranks, ties="pessimistic").mrr, 4)
        return told

    def groups(self) -> dict[str, int]:
        """How many test facts each part has."""
        own = self.symmetry[self.facts.test[:, 1]]
        return {
            "symmetric": int((own >= 0.8).sum()),
            "one_way": int((own <= 0.2).sum()),
            "turned": int(self.turned.sum()),
            "new_pair": int((~self.turned).sum()),
        }


def symmetry(facts: Tensor, *, entities: int, relations: int) -> Tensor:
    """For each relation the share of its facts whose turned fact is one, too; loops left out."""
    there = torch.zeros(relations, entities, entities, dtype=torch.bool)
    there[facts[:, 1], facts[:, 0], facts[:, 2]] = True
    there &= ~torch.eye(entities, dtype=torch.bool)
    both = (there & there.transpose(1, 2)).sum((1, 2))
    return both / there.sum((1, 2)).clamp_min(1)


def batches(count: int, g: torch.Generator) -> Iterator[Tensor]:
    """Numbers of facts, each once, in random order."""
    yield from torch.randperm(count, generator=g).split(BATCH)


def both_sides(model: Scorer, facts: Tensor) -> Tensor:
    """Surprise at head and tail among all entities, in nats."""
    head, relation, tail = facts.T
    tails = F.cross_entropy(model.tails(head, relation), tail)
    return (tails + F.cross_entropy(model.heads(relation, tail), head)) / 2


def cubed(model: LinkModel, facts: Tensor) -> Tensor:
    """Cubes of the entries that some facts use, added up; angles have no size to be penalized."""
    total = model.entity[facts[:, ::2]].abs().pow(3).sum()
    if isinstance(model, RotatE):
        return total
    return total + model.relation[facts[:, 1]].abs().pow(3).sum()


def fit(
    graph: Graph, kind: type, *, dim: int, epochs: int, seed: int, **how: Any
) -> dict[str, Any]:
    """Train one model; report the epoch that was best on the validation facts."""
    g = generator(seed)
    cubes = how.pop("cubes", 0.0)
    model = kind(**graph.sizes, dim=dim, generator=g, **how)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    best: dict[str, Any] = {"valid": 0.0}
    start = time.process_time()
    for epoch in range(1, epochs + 1):
        for rows in batches(len(graph.facts.train), g):
            facts = graph.facts.train[rows]
            loss = both_sides(model, facts)
            if cubes:
                loss = loss + cubes * cubed(model, facts) / len(facts)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch % EVERY == 0 or epoch == epochs:
            valid = graph.valid(model)
            if valid > best["valid"]:
                best = {"valid": round(valid, 4), "epoch": epoch, **graph.report(model)}
    return {**best, "setting": [cubes, *how.values()], "seconds": time.process_time() - start}


def choose(
    graph: Graph, kind: str, *, dim: int, epochs: int, seed: int
) -> tuple[dict[str, Any], float]:
    """The better of a model's settings on the validation facts, and the seconds of all."""
    make, settings = SETTINGS[kind]
    tried = [fit(graph, make, dim=dim, epochs=epochs, seed=seed, **how) for how in settings]
    seconds = sum(run.pop("seconds") for run in tried)
    return {"model": kind, "seed": seed, **max(tried, key=lambda run: run["valid"])}, seconds


def fit_complex(graph: Graph, *, epochs: int, seed: int) -> ComplEx:
    """ComplEx with the better of its two settings, after all epochs."""
    g = generator(seed)
    model = ComplEx(**graph.sizes, dim=64, generator=g)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for _ in range(epochs):
        for rows in batches(len(graph.facts.train), g):
            facts = graph.facts.train[rows]
            optimizer.zero_grad()
            (both_sides(model, facts) + 0.01 * cubed(model, facts) / len(facts)).backward()
            optimizer.step()
    return model


class Encoded(nn.Module):
    """DistMult whose entities come out of an R-GCN, or of a table."""

    def __init__(self, graph: Graph, *, dim: int, layers: int, g: torch.Generator) -> None:
        super().__init__()
        self.table = DistMult(**graph.sizes, dim=dim, generator=g)
        relations = 2 * graph.sizes["relations"]
        self.layers = nn.ModuleList(
            RGCN(dim, dim, relations=relations, bases=8, generator=g) for _ in range(layers)
        )
        self.states: Tensor = self.table.entity.detach()

    def read(self, edges: Relations) -> None:
        """Pass messages along the edges; a residual keeps what the table says."""
        states: Tensor = self.table.entity
        for layer in self.layers:
            states = states + torch.tanh(layer(states, edges))
        self.states = states

    def tails(self, head: Tensor, relation: Tensor) -> Tensor:
        """Scores of all tails."""
        query = F.embedding(head, self.states) * F.embedding(relation, self.table.relation)
        return query @ self.states.T

    def heads(self, relation: Tensor, tail: Tensor) -> Tensor:
        """Scores of all heads."""
        return self.tails(tail, relation)


def fit_encoder(graph: Graph, arm: str, *, dim: int, epochs: int, seed: int) -> dict[str, Any]:
    """Train with messages over all training edges, or all but those that are asked about."""
    g = generator(seed)
    model = Encoded(graph, dim=dim, layers=0 if arm == "none" else 1, g=g)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR / 2)
    train = graph.facts.train
    nodes, relations = graph.sizes.values()

    def edges(facts: Tensor) -> Relations:
        return Relations.of_facts(facts, nodes=nodes, relations=relations)

    whole = edges(train)
    leak = edges(torch.cat([train, graph.facts.test]))
    best: dict[str, Any] = {"valid": 0.0}
    for epoch in range(1, epochs + 1):
        for rows in batches(len(train), g):
            if arm == "dropped":
                rest = torch.ones(len(train), dtype=torch.bool)
                rest[rows] = False
                model.read(edges(train[rest]))
            else:
                model.read(whole)
            loss = both_sides(model, train[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch % EVERY == 0 or epoch == epochs:
            with torch.no_grad():
                model.read(whole)
                valid, seen = graph.valid(model), graph.report(model)
                ranks = filtered_ranks(model, train[:1000], known=graph.reporting)
                model.read(leak)
                leaky = graph.report(model)["all"][0]
            if valid > best["valid"]:
                best = {
                    "valid": round(valid, 4),
                    "epoch": epoch,
                    **seen,
                    "train": round(link_metrics(ranks).mrr, 4),
                    "leaky": leaky,
                }
    return best


def main(argv: list[str] | None = None) -> None:
    """Count, train, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--graphs", nargs="+", default=["nations", "kinships", "umls"])
    parser.add_argument("--wide-on", default="nations")
    parser.add_argument("--encoders-on", default="umls")
    asked = parser.parse_args(argv)
    begin = time.perf_counter()
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "dim": asked.dim,
        "epochs": asked.epochs,
        "batch": BATCH,
        "lr": LR,
        "graphs": {},
        "wide": [],
        "encoders": [],
    }
    for name in asked.graphs:
        graph = Graph(name)
        train = graph.facts.train
        counted = {
            "popularity": Popularity(train, **graph.sizes),
            "one inverse": InverseRules(train, single=True, **graph.sizes),
            "inverse rules": InverseRules(train, **graph.sizes),
        }
        told: dict[str, Any] = {
            "groups": graph.groups(),
            "counted": {kind: graph.report(model) for kind, model in counted.items()},
            "trained": [],
        }
        results["graphs"][name] = told
        for seed in range(asked.seeds):
            for kind in SETTINGS:
                best, seconds = choose(graph, kind, dim=asked.dim, epochs=asked.epochs, seed=seed)
                told["trained"].append(best)
                print(
                    name,
                    best["setting"],
                    kind,
                    seed,
                    best["all"][0],
                    f"{seconds:.0f} s",
                    flush=True,
                )
    graph = Graph(asked.wide_on)
    for seed in range(asked.seeds):
        for kind in SETTINGS:
            best, _ = choose(graph, kind, dim=4 * asked.dim, epochs=asked.epochs, seed=seed)
            results["wide"].append(best)
            print("wide", best["setting"], kind, seed, best["all"][0], flush=True)
    graph = Graph(asked.encoders_on)
    for seed in range(asked.seeds):
        for arm in ENCODERS:
            got = fit_encoder(graph, arm, dim=asked.dim, epochs=asked.epochs, seed=seed)
            results["encoders"].append({"arm": arm, "seed": seed, **got})
            print(arm, seed, got["valid"], got["all"][0], got["train"], got["leaky"], flush=True)
    store("knowledge_graphs", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
