"""Models, evaluator and losses beside PyKEEN, which takes seconds to import: all in one file."""

from typing import Any

import pytest
import torch

from companion.data import knowledge_graph, stored_run
from companion.knowledge.knowledge_graphs import (
    ComplEx,
    DistMult,
    KnownFacts,
    LinkModel,
    RotatE,
    TransE,
    corrupt_facts,
    filtered_ranks,
    link_metrics,
    self_adversarial_loss,
)


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Import PyKEEN, which lists every optimizer there is and refuses two of one name.

    The optimizers of bitsandbytes are there once another test has imported it, and have the
    names of PyTorch's.
    """
    import class_resolver.api as resolver

    every = resolver.get_subclasses

    def without_others(cls: type, **settings: Any) -> Any:
        return (c for c in every(cls, **settings) if not c.__module__.startswith("bitsandbytes"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolver, "get_subclasses", without_others)
        import pykeen.models  # noqa: F401


@pytest.fixture(scope="module")
def peer() -> Any:
    """PyKEEN's Nations with our numbers for entities and relations."""
    from pykeen.triples import TriplesFactory

    graph = knowledge_graph("nations")
    entity = {name: number for number, name in enumerate(graph.entities)}
    relation = {name: number for number, name in enumerate(graph.relations)}
    made = [
        TriplesFactory(
            facts, entity_to_id=entity, relation_to_id=relation, create_inverse_triples=False
        )
        for facts in (graph.train, graph.valid, graph.test)
    ]
    return graph, made


KINDS = [
    ("TransE", TransE, {"embedding_dim": 10, "scoring_fct_norm": 1}, {"norm": 1}),
    ("TransE", TransE, {"embedding_dim": 10, "scoring_fct_norm": 2}, {"norm": 2}),
    ("DistMult", DistMult, {"embedding_dim": 10}, {}),
    ("ComplEx", ComplEx, {"embedding_dim": 5}, {}),
    ("RotatE", RotatE, {"embedding_dim": 5}, {"norm": 2}),
]


def copied(name: str, ours: LinkModel, factory: Any, settings: dict[str, Any]) -> Any:
    """Their model with our numbers."""
    import pykeen.models

    theirs = getattr(pykeen.models, name)(triples_factory=factory, random_seed=0, **settings)
    entity, relation = ours.entity.detach(), ours.relation.detach()
    if name in ("ComplEx", "RotatE"):
        entity = torch.complex(*entity.chunk(2, -1))
    if name == "ComplEx":
        relation = torch.complex(*relation.chunk(2, -1))
    if name == "RotatE":
        relation = torch.polar(torch.ones_like(relation), relation)
    for table, values in (
        (theirs.entity_representations[0], entity),
        (theirs.relation_representations[0], relation),
    ):
        weight = table._embeddings.weight
        with torch.no_grad():
            flat = torch.view_as_real(values) if values.is_complex() else values
            weight.copy_(flat.reshape(weight.shape))
    return theirs.eval()


@pytest.mark.parametrize(("name", "kind", "settings", "how"), KINDS)
def test_scores_and_ranks_are_those_of_pykeen(
    peer: Any, name: str, kind: Any, settings: dict[str, Any], how: dict[str, Any]
) -> None:
    from pykeen.evaluation import RankBasedEvaluator

    graph, (train, valid, _) = peer
    ours = kind(14, 55, dim=10, generator=torch.Generator().manual_seed(0), **how)
    theirs = copied(name, ours, train, settings)
    with torch.no_grad():
        want = theirs.score_hrt(graph.test)[:, 0]
        torch.testing.assert_close(ours(graph.test), want, rtol=1e-5, atol=1e-6)
        tails = theirs.score_t(graph.test[:, :2])
        have = ours.tails(graph.test[:, 0], graph.test[:, 1])
        torch.testing.assert_close(have, tails, rtol=1e-5, atol=1e-6)
        heads = theirs.score_h(graph.test[:, 1:])
        have = ours.heads(graph.test[:, 1], graph.test[:, 2])
        torch.testing.assert_close(have, heads, rtol=1e-5, atol=1e-6)
    report = RankBasedEvaluator().evaluate(
        theirs,
        graph.test,
        additional_filter_triples=[train.mapped_triples, valid.mapped_triples],
        batch_size=32,
        use_tqdm=False,
    )
    known = KnownFacts(torch.cat([graph.train, graph.valid, graph.test]), entities=14, relations=55)
    ranks = filtered_ranks(ours, graph.test, known=known)
    for rule in ("optimistic", "realistic", "pessimistic"):
        got = link_metrics(ranks, ties=rule)
        assert got.mrr == pytest.approx(report.get_metric(f"both.{rule}.mrr"), abs=1e-5)
        assert got.hits_3 == pytest.approx(report.get_metric(f"both.{rule}.hits_at_3"), abs=1e-5)
    index = report.get_metric("both.realistic.adjusted_arithmetic_mean_rank_index")
    assert link_metrics(ranks).adjusted == pytest.approx(index, abs=1e-4)


def test_the_adversarial_loss_is_that_of_pykeen() -> None:
    from pykeen.losses import NSSALoss

    g = torch.Generator().manual_seed(0)
    true, wrong = -torch.rand(5, generator=g), -torch.rand(5, 3, generator=g)
    theirs = NSSALoss(margin=0.7, adversarial_temperature=0.9, reduction="mean")
    want = theirs.process_slcwa_scores(true[:, None], wrong)
    have = self_adversarial_loss(true, wrong, margin=0.7, temperature=0.9)
    torch.testing.assert_close(have, want)


def train_both(scripts: Any, kind: str, optimizer: type, *, steps: int, lr: float) -> Any:
    """Our model and PyKEEN's after the same batches and the same wrong facts from one start."""
    script = scripts.load("knowledge_graphs_pykeen")
    graph = script.Graph("nations")
    g = torch.Generator().manual_seed(0)
    ours = script.our_model(graph, kind, dim=10, g=g).double()
    theirs = script.their_model(graph, kind, dim=10, margin=3.0, seed=0, start=ours).double()
    one, other = optimizer(ours.parameters(), lr=lr), optimizer(theirs.parameters(), lr=lr)
    for _ in range(steps):
        facts = graph.train[torch.randint(len(graph.train), (31,), generator=g)]
        wrong = corrupt_facts(facts, entities=14, count=5, generator=g)
        mine = self_adversarial_loss(ours(facts), ours(wrong), margin=3.0, temperature=1.0)
        low = theirs.score_hrt(wrong.flatten(0, 1)).view(31, 5)
        peers = theirs.loss.process_slcwa_scores(theirs.score_hrt(facts), low)
        for updated, loss in ((one, mine), (other, peers + theirs.collect_regularization_term())):
            updated.zero_grad()
            loss.backward()
            updated.step()
        if isinstance(ours, TransE):
            ours.constrain()
        theirs.post_parameter_update()
    head, relation, tail = graph.test.T
    peers = script.AsOurs(theirs)
    with torch.no_grad():
        mine = torch.stack([ours.tails(head, relation), ours.heads(relation, tail)])
        return mine, torch.stack([peers.tails(head, relation), peers.heads(relation, tail)])


@pytest.mark.parametrize("kind", ["TransE", "DistMult", "ComplEx"])
def test_from_one_start_the_same_draws_lead_both_to_the_same_scores(
    scripts: Any, kind: str
) -> None:
    before, _ = train_both(scripts, kind, torch.optim.Adam, steps=0, lr=0.01)
    ours, theirs = train_both(scripts, kind, torch.optim.Adam, steps=40, lr=0.01)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)
    assert float((ours - before).abs().max()) > 0.1


def test_rotations_take_other_steps_where_a_step_is_scaled_by_entry(scripts: Any) -> None:
    """Ours moves an angle; PyKEEN moves a point and puts it back onto the circle.

    To first order a plain step is the same for both. Adam scales the two entries of a point each
    by itself, so its step has another length.
    """
    for optimizer, lr in ((torch.optim.SGD, 1e-3), (torch.optim.Adam, 1e-3)):
        before, _ = train_both(scripts, "RotatE", optimizer, steps=0, lr=lr)
        ours, theirs = train_both(scripts, "RotatE", optimizer, steps=1, lr=lr)
        apart = float((ours - theirs).abs().max() / (ours - before).abs().max())
        if optimizer is torch.optim.SGD:
            assert apart < 1e-3
        else:
            assert apart > 0.05


def test_the_run_trains_in_both_libraries_and_both_evaluators_agree(scripts: Any) -> None:
    asked = ("--graphs", "nations", "--seeds", "1", "--epochs", "2", "--dim", "8")
    results = scripts.run("knowledge_graphs_pykeen", *asked).results
    assert set(results["chosen"]["nations"]) == {"TransE", "DistMult", "ComplEx", "RotatE"}
    assert [(row["model"], row["arm"]) for row in results["trained"][:3]] == [
        ("TransE", "ours"),
        ("TransE", "pykeen"),
        ("TransE", "from our start"),
    ]
    assert len(results["trained"]) == 12
    for row in results["trained"]:
        assert row["mrr"] == pytest.approx(row["by_pykeen"], abs=1e-6)


def test_the_further_arms_take_the_settings_of_the_other_run(scripts: Any) -> None:
    asked = ("--graphs", "nations", "--seeds", "1", "--epochs", "2")
    results = scripts.run("knowledge_graphs_arms", *asked).results
    assert results["dim"] == stored_run("knowledge_graphs_pykeen").results["dim"]
    assert [(row["model"], row["arm"]) for row in results["trained"]] == [
        ("DistMult", "no penalty"),
        ("ComplEx", "no penalty"),
        ("TransE", "in halves"),
        ("DistMult", "in halves"),
        ("ComplEx", "in halves"),
    ]
    for row in results["trained"]:
        assert row["mrr"] == pytest.approx(row["by_pykeen"], abs=1e-6)


def test_the_start_of_ours_is_where_pykeen_starts(scripts: Any) -> None:
    script = scripts.load("knowledge_graphs_pykeen")
    graph = script.Graph("nations")
    for kind in script.MODELS:
        ours = script.our_model(graph, kind, dim=10, g=torch.Generator().manual_seed(1))
        theirs = script.their_model(graph, kind, dim=10, margin=1.0, seed=0, start=ours)
        theirs.reset_parameters_()  # as its training does first
        with torch.no_grad():
            want = ours(graph.test)
            torch.testing.assert_close(theirs.score_hrt(graph.test)[:, 0], want)
        before = ours.entity.detach().clone()
        script.fit_theirs(graph, theirs, epochs=1)
        assert torch.equal(ours.entity, before)  # which is not what PyKEEN then trains
        terms = []
        for how in ({}, {"penalty": False}, {"start": ours}):
            model = script.their_model(graph, kind, dim=10, margin=1.0, seed=0, **how)
            model.score_hrt(graph.test)
            terms.append(float(torch.as_tensor(model.collect_regularization_term()).detach()))
        assert (terms[0] > 0) == (kind in ("DistMult", "ComplEx"))
        assert terms[1] == terms[2] == 0
        other = script.their_model(graph, kind, dim=10, margin=1.0, seed=0)
        assert not torch.allclose(other.score_hrt(graph.test)[:, 0], want, atol=1e-2)


def test_what_pykeen_is_given_as_a_start_is_lost_at_the_next_reset_unless_copied(
    scripts: Any,
) -> None:
    from pykeen.models import DistMult as Theirs
    from pykeen.nn.init import PretrainedInitializer

    script = scripts.load("knowledge_graphs_pykeen")
    graph = script.Graph("nations")
    want = torch.arange(14.0 * 8).reshape(14, 8)
    settings = {"triples_factory": graph.factory, "embedding_dim": 8, "random_seed": 0}
    for initializer, kept in ((PretrainedInitializer, False), (script.Start, True)):
        start = initializer(want.clone())
        model = Theirs(entity_initializer=start, entity_constrainer=None, **settings)
        table = model.entity_representations[0]._embeddings
        assert torch.equal(table.weight.detach(), want)
        model.reset_parameters_()
        assert torch.equal(table.weight.detach(), want) == kept


def test_pykeen_corrupts_heads_in_one_half_and_tails_in_the_other(scripts: Any) -> None:
    from pykeen.sampling import BasicNegativeSampler

    script = scripts.load("knowledge_graphs_pykeen")
    facts = script.Graph("nations").train[:31]
    sampler = BasicNegativeSampler(mapped_triples=facts, num_entities=14, num_negs_per_pos=8)
    g = torch.Generator().manual_seed(0)
    ours = script.corrupt_halves(facts, entities=14, count=8, generator=g)
    for wrong in (sampler.corrupt_batch(facts), ours):
        changed = (wrong != facts[:, None]).long()
        assert bool((changed.sum(-1) == 1).all())
        assert bool((changed[:15, :, 0] == 1).all())
        assert bool((changed[16:, :, 2] == 1).all())
    coin = corrupt_facts(facts, entities=14, count=8, generator=g)
    assert bool((coin[:15, :, 0] == facts[:15, None, 0]).any())
