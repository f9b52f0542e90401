"""The stored runs of the chapter: what they count is what they say."""

from types import SimpleNamespace
from typing import Any

import torch

from companion.core import generator
from companion.data import knowledge_graph, stored_run
from companion.knowledge.knowledge_graphs import (
    KnownFacts,
    Popularity,
    filtered_ranks,
    link_metrics,
)
from companion.pretraining.autoregressive import initialize, llama_config, next_token_log_probs


def test_the_run_trains_chooses_and_reports(scripts: Any) -> None:
    asked = (
        "--graphs",
        "nations",
        "--seeds",
        "1",
        "--epochs",
        "2",
        "--encoders-on",
        "nations",
        "--dim",
        "8",
    )
    results = scripts.run("knowledge_graphs", *asked).results
    told = results["graphs"]["nations"]
    assert [row["model"] for row in told["trained"]] == ["TransE", "DistMult", "ComplEx", "RotatE"]
    assert [row["model"] for row in results["wide"]] == ["TransE", "DistMult", "ComplEx", "RotatE"]
    assert [row["arm"] for row in results["encoders"]] == ["none", "kept", "dropped"]
    assert told["groups"]["turned"] + told["groups"]["new_pair"] == 201
    none = results["encoders"][0]
    assert none["leaky"] == none["all"][0]  # without messages there is nothing to leak


def test_the_stored_baselines_are_those_of_the_library() -> None:
    for name, told in stored_run("knowledge_graphs").results["graphs"].items():
        graph = knowledge_graph(name)
        sizes = {"entities": len(graph.entities), "relations": len(graph.relations)}
        known = KnownFacts(torch.cat([graph.train, graph.valid, graph.test]), **sizes)
        ranks = filtered_ranks(Popularity(graph.train, **sizes), graph.test, known=known)
        assert round(link_metrics(ranks).mrr, 4) == told["counted"]["popularity"]["all"][0]


def test_a_penalty_on_large_entries_leaves_angles_alone(scripts: Any) -> None:
    script = scripts.load("knowledge_graphs")
    facts = torch.tensor([[0, 1, 2], [2, 0, 2]])
    for kind in (script.DistMult, script.RotatE):
        model = kind(3, 2, dim=4, generator=generator(0))
        entity, relation = (table.detach() for table in model.parameters())
        want = (entity.abs() ** 3).T @ torch.tensor([1.0, 0.0, 3.0])
        total = want.sum() + (0 if kind is script.RotatE else (relation.abs() ** 3).sum())
        torch.testing.assert_close(script.cubed(model, facts), total)


def test_the_settings_were_chosen_without_the_test(scripts: Any) -> None:
    script = scripts.load("knowledge_graphs")
    graph = script.Graph("nations")
    head, relation, tail = graph.facts.test[0]
    assert int(tail) not in graph.choosing.tails(head[None], relation[None])[1].tolist()
    assert int(tail) in graph.reporting.tails(head[None], relation[None])[1].tolist()


def test_ends_are_scored_as_whole_texts(scripts: Any) -> None:
    script = scripts.load("knowledge_graphs_cloze")
    config = llama_config((1, 12, 3), vocab=61, context=40, ff_dim=31)
    model = initialize(config, generator=generator(1), dtype=torch.float64).eval()

    def encode(text: str, **_: Any) -> Any:
        return SimpleNamespace(ids=[1 + ord(letter) % 60 for letter in text])

    text = SimpleNamespace(model=model, start=0, tokenizer=SimpleNamespace(encode=encode))
    have = script.log_probs(text, "one fact", ["b", "longer"])
    for end, got in zip(["b", "longer"], have, strict=True):
        tail = encode(f" {end}.").ids
        whole = torch.tensor([[0, *encode("one fact").ids, *tail]])
        want = next_token_log_probs(model, whole)[0, -len(tail) :].sum()
        torch.testing.assert_close(got, want)


def test_what_is_retrieved_is_training_facts_of_the_relation(scripts: Any) -> None:
    script = scripts.load("knowledge_graphs_cloze")
    graph = knowledge_graph("umls")
    sizes = {"entities": len(graph.entities), "relations": len(graph.relations)}
    similar = script.similar_heads(graph.train, **sizes)
    train = {tuple(fact) for fact in graph.train.tolist()}
    for fact in graph.test[:7]:
        shown = script.retrieve(graph.train, similar, fact, count=8)
        assert {tuple(row) for row in shown.tolist()} <= train - {tuple(fact.tolist())}
        assert bool((shown[:, 1] == fact[1]).all())


def test_the_stored_questions_have_sixteen_candidates() -> None:
    results = stored_run("knowledge_graphs_cloze").results
    assert len(results["rows"]) == results["questions"]
    for row in results["rows"]:
        places = [value for value in row.values() if not isinstance(value, bool)]
        assert all(1 <= place <= 16 for place in places)
