"""Train four models of three knowledge graphs by our classes and by PyKEEN's, at equal settings.

About 20 minutes of one core. TransE, DistMult, ComplEx and RotatE learn Nations, Kinships and UMLS
by the self-adversarial loss, with one width, number of wrong facts, optimizer, rate, batch size and
number of epochs. There are three arms: our classes; PyKEEN's as they come; and PyKEEN's from the
starting values of ours, without the penalties of its DistMult and ComplEx and without the unit
entities of its DistMult. The margin is chosen on the validation facts, which are filtered without
the test, by the mean of the first two arms. Both evaluators then rank the test facts by the scores
of each model.
"""

import argparse
import gc
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pykeen import models as peer
from pykeen.evaluation import RankBasedEvaluator
from pykeen.losses import NSSALoss
from pykeen.training import SLCWATrainingLoop
from pykeen.triples import CoreTriplesFactory
from torch import Tensor

from companion import data
from companion.core import generator
from companion.knowledge.knowledge_graphs import (
    ComplEx,
    DistMult,
    KnownFacts,
    LinkModel,
    RotatE,
    Scorer,
    TransE,
    corrupt_facts,
    filtered_ranks,
    link_metrics,
    self_adversarial_loss,
)

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

BATCH, LR, WRONG, TEMPERATURE = 512, 0.01, 8, 1.0
MARGINS = (1.0, 3.0, 9.0)
CHOOSING = 1000  # seed of the runs that choose a margin
MODELS: dict[str, type[LinkModel]] = {
    "TransE": TransE,
    "DistMult": DistMult,
    "ComplEx": ComplEx,
    "RotatE": RotatE,
}
ARMS = ("ours", "pykeen", "from our start")


class Graph:
    """A knowledge graph as both libraries want it."""

    def __init__(self, name: str) -> None:
        self.name = name
        facts = data.knowledge_graph(name)
        self.train, self.valid, self.test = facts.train, facts.valid, facts.test
        self.sizes = {"entities": len(facts.entities), "relations": len(facts.relations)}
        self.factory = CoreTriplesFactory(
            facts.train, num_entities=len(facts.entities), num_relations=len(facts.relations)
        )


class AsOurs:
    """A model of PyKEEN, asked as ours are."""

    def __init__(self, model: peer.ERModel) -> None:
        self.model = model.eval()

    @torch.no_grad()
    def tails(self, head: Tensor, relation: Tensor) -> Tensor:
        """Scores of all tails."""
        scores: Tensor = self.model.score_t(torch.stack([head, relation], -1))
        return scores

    @torch.no_grad()
    def heads(self, relation: Tensor, tail: Tensor) -> Tensor:
        """Scores of all heads."""
        scores: Tensor = self.model.score_h(torch.stack([relation, tail], -1))
        return scores


class AsTheirs(peer.DistMult):
    """A model of ours, asked as PyKEEN's are; of the class that it is made from it uses nothing."""

    def __init__(self, graph: Graph, model: LinkModel) -> None:
        super().__init__(triples_factory=graph.factory, embedding_dim=1, random_seed=0)
        self.asked = model

    def score_t(self, hr_batch: Tensor, **_: Any) -> Tensor:
        """Scores of all tails."""
        return self.asked.tails(*hr_batch.T)

    def score_h(self, rt_batch: Tensor, **_: Any) -> Tensor:
        """Scores of all heads."""
        return self.asked.heads(*rt_batch.T)


def our_model(graph: Graph, kind: str, *, dim: int, g: torch.Generator) -> LinkModel:
    """Our model; TransE as PyKEEN has it: absolute values, and unit entities from the start."""
    if kind == "TransE":
        model = TransE(**graph.sizes, dim=dim, generator=g, norm=1)
        model.constrain()
        return model
    return MODELS[kind](**graph.sizes, dim=dim, generator=g)


def pairs_of(model: LinkModel) -> tuple[Tensor, Tensor]:
    """The tables of our model; complex numbers as PyKEEN keeps them, in pairs."""
    entity, relation = model.entity.detach().clone(), model.relation.detach().clone()
    if isinstance(model, (ComplEx, RotatE)):
        entity = torch.stack(entity.chunk(2, -1), -1)
    if isinstance(model, ComplEx):
        relation = torch.stack(relation.chunk(2, -1), -1)
    if isinstance(model, RotatE):
        relation = torch.stack([relation.cos(), relation.sin()], -1)
    return entity, relation


class Start:
    """A start of PyKEEN's tables: a copy each time.

    Its ``PretrainedInitializer`` gives the tensor itself, into which the next reset of the model
    draws other numbers before it asks for it again; and training begins with a reset.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, x: Tensor) -> Tensor:
        """The start, in the type that is asked for."""
        return self.table.to(x, copy=True)


def their_model(
    graph: Graph,
    kind: str,
    *,
    dim: int,
    margin: float,
    seed: int,
    penalty: bool = True,
    start: LinkModel | None = None,
) -> peer.ERModel:
    """PyKEEN's model, with its penalty or not; or from a start of ours and with nothing else."""
    settings: dict[str, Any] = {"embedding_dim": dim // 2 if kind in ("ComplEx", "RotatE") else dim}
    if not penalty:
        settings["regularizer"] = None
    if start is not None:
        entity, relation = pairs_of(start)
        settings["entity_initializer"] = Start(entity)
        settings["relation_initializer"] = Start(relation)
        settings["regularizer"] = None
        if kind == "DistMult":
            settings["entity_constrainer"] = None
    loss = NSSALoss(margin=margin, adversarial_temperature=TEMPERATURE)
    # The seed is that of all that PyKEEN draws from here on.
    make = getattr(peer, kind)
    model: peer.ERModel = make(
        triples_factory=graph.factory, loss=loss, random_seed=seed, **settings
    )
    return model


def corrupt_halves(
    facts: Tensor, *, entities: int, count: int, generator: torch.Generator
) -> Tensor:
    """Wrong facts as PyKEEN makes them: heads for one half of the batch, tails for the other."""
    wrong = facts[:, None].repeat(1, count, 1)
    shift = torch.randint(1, entities, wrong.shape[:2], generator=generator)
    half = (len(facts) + 1) // 2
    wrong[:half, :, 0] = (wrong[:half, :, 0] + shift[:half]) % entities
    wrong[half:, :, 2] = (wrong[half:, :, 2] + shift[half:]) % entities
    return wrong


def fit_ours(
    graph: Graph,
    model: LinkModel,
    *,
    margin: float,
    epochs: int,
    g: torch.Generator,
    corrupt: Callable[..., Tensor] = corrupt_facts,
) -> None:
    """Train our model."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for _ in range(epochs):
        for rows in torch.randperm(len(graph.train), generator=g).split(BATCH):
            facts = graph.train[rows]
            entities = graph.sizes["entities"]
            wrong = corrupt(facts, entities=entities, count=WRONG, generator=g)
            loss = self_adversarial_loss(
                model(facts), model(wrong), margin=margin, temperature=TEMPERATURE
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if isinstance(model, TransE):
                model.constrain()


def fit_theirs(graph: Graph, model: peer.ERModel, *, epochs: int) -> None:
    """Train PyKEEN's model, by its own loop and its own sampler of wrong facts."""
    loop = SLCWATrainingLoop(
        model=model,
        triples_factory=graph.factory,
        optimizer=torch.optim.Adam,
        optimizer_kwargs={"lr": LR},
        negative_sampler_kwargs={"num_negs_per_pos": WRONG},
        automatic_memory_optimization=False,
    )
    gc.freeze()  # PyKEEN collects garbage after each epoch: not among all that is imported
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Training instances are always", DeprecationWarning)
        loop.train(
            graph.factory, num_epochs=epochs, batch_size=BATCH, use_tqdm=False, pin_memory=False
        )
    gc.unfreeze()


def mrr_by_ours(graph: Graph, model: Scorer, facts: Tensor, *others: Tensor) -> float:
    """Filtered, realistic mean reciprocal rank by our evaluator."""
    known = KnownFacts(torch.cat([facts, *others]), **graph.sizes)
    return link_metrics(filtered_ranks(model, facts, known=known)).mrr


def mrr_by_theirs(model: peer.ERModel, facts: Tensor, *others: Tensor) -> float:
    """Filtered, realistic mean reciprocal rank by PyKEEN's evaluator."""
    report = RankBasedEvaluator().evaluate(
        model,
        facts,
        additional_filter_triples=list(others),
        batch_size=BATCH,
        use_tqdm=False,
    )
    return float(report.get_metric("both.realistic.mrr"))


def fit(
    graph: Graph, kind: str, arm: str, *, dim: int, margin: float, epochs: int, seed: int
) -> tuple[Scorer, peer.ERModel]:
    """Train one model; return it as each evaluator asks it."""
    g = generator(seed)
    model = our_model(graph, kind, dim=dim, g=g)
    if arm in ("ours", "in halves"):
        corrupt = corrupt_facts if arm == "ours" else corrupt_halves
        fit_ours(graph, model, margin=margin, epochs=epochs, g=g, corrupt=corrupt)
        return model, AsTheirs(graph, model)
    settings = {
        "pykeen": {},
        "no penalty": {"penalty": False},
        "from our start": {"start": model},
    }[arm]
    other = their_model(graph, kind, dim=dim, margin=margin, seed=seed, **settings)
    fit_theirs(graph, other, epochs=epochs)
    return AsOurs(other), other


def judged(graph: Graph, kind: str, arm: str, *, seed: int, **how: Any) -> dict[str, Any]:
    """Train one model, and let both evaluators rank the test facts by it."""
    model, other = fit(graph, kind, arm, seed=seed, **how)
    others = (graph.train, graph.valid)
    row = {
        "graph": graph.name,
        "model": kind,
        "arm": arm,
        "seed": seed,
        "mrr": mrr_by_ours(graph, model, graph.test, *others),
        "by_pykeen": mrr_by_theirs(other, graph.test, *others),
    }
    print(*row.values(), flush=True)
    return row


def choose(graph: Graph, kind: str, *, dim: int, epochs: int) -> dict[str, Any]:
    """The margin that is best on the validation facts, on average over the two libraries."""
    tried = []
    for margin in MARGINS:
        row: dict[str, Any] = {"margin": margin}
        for arm in ("ours", "pykeen"):
            how = {"dim": dim, "margin": margin, "epochs": epochs, "seed": CHOOSING}
            model, _ = fit(graph, kind, arm, **how)
            row[arm] = round(mrr_by_ours(graph, model, graph.valid, graph.train), 4)
        tried.append(row)
    best = max(tried, key=lambda row: row["ours"] + row["pykeen"])
    return {"margin": best["margin"], "tried": tried}


def main(argv: list[str] | None = None) -> None:
    """Choose, train, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--graphs", nargs="+", default=["nations", "kinships", "umls"])
    asked = parser.parse_args(argv)
    begin = time.perf_counter()
    torch.set_num_threads(1)
    how = {"dim": asked.dim, "epochs": asked.epochs}
    results: dict[str, Any] = {
        **how,
        "batch": BATCH,
        "lr": LR,
        "wrong": WRONG,
        "temperature": TEMPERATURE,
        "chosen": {},
        "trained": [],
    }
    for name in asked.graphs:
        graph = Graph(name)
        for kind in MODELS:
            chosen = choose(graph, kind, **how)
            results["chosen"].setdefault(name, {})[kind] = chosen
            print(name, kind, chosen, f"{time.perf_counter() - begin:.0f} s", flush=True)
            for seed in range(asked.seeds):
                for arm in ARMS:
                    settings = {**how, "margin": chosen["margin"]}
                    results["trained"].append(judged(graph, kind, arm, seed=seed, **settings))
    store("knowledge_graphs_pykeen", results, seed=0, seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
