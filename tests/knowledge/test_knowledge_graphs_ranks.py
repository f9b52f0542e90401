"""Ranks: ties, filters, and baselines without vectors, equal to slow counting by hand."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from companion.data import knowledge_graph
from companion.knowledge.knowledge_graphs import (
    DistMult,
    InverseRules,
    KnownFacts,
    Popularity,
    Ranks,
    filtered_ranks,
    link_metrics,
    rank,
    reversed_share,
)


class Table:
    """Scores of every triple, given."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def tails(self, head: Tensor, relation: Tensor) -> Tensor:
        return self.scores[head, relation]

    def heads(self, relation: Tensor, tail: Tensor) -> Tensor:
        return self.scores[:, relation, tail].T


def some_facts(seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    all_triples = torch.cartesian_prod(torch.arange(7), torch.arange(3), torch.arange(7))
    return all_triples[torch.randperm(len(all_triples), generator=g)[:41]]


def test_equal_infinite_scores_are_ties_within_any_tolerance() -> None:
    for tolerance in (0.0, 0.1):
        none = rank(torch.full((3,), -torch.inf), torch.tensor(0), tolerance=tolerance)
        assert [int(part) for part in none] == [0, 2, 3]
        best = rank(torch.tensor([torch.inf, torch.inf, 1.0]), torch.tensor(2), tolerance=tolerance)
        assert [int(part) for part in best] == [2, 0, 3]
        table = Table(torch.full((3, 1, 3), -torch.inf))
        known = KnownFacts(torch.tensor([[0, 0, 1], [0, 0, 2]]), entities=3, relations=1)
        ranks = filtered_ranks(table, known_facts(known), known=known, tolerance=tolerance)
        assert ranks.by("realistic").tolist() == [[2.0, 1.5]]


def test_scores_within_a_tolerance_are_ties() -> None:
    scores = torch.tensor([1.0, 1.25, 0.75, 1.5, 0.5])
    for tolerance, want in ((0.0, [2, 0, 5]), (0.25, [1, 2, 5]), (0.5, [0, 4, 5])):
        assert [int(part) for part in rank(scores, torch.tensor(0), tolerance=tolerance)] == want
        table = Table(scores.expand(5, 1, 5))
        known = KnownFacts(torch.tensor([[3, 0, 0], [3, 0, 3]]), entities=5, relations=1)
        tails = filtered_ranks(table, known_facts(known), known=known, tolerance=tolerance)
        want = [want[0] - (tolerance < 0.5), want[1] - (tolerance == 0.5), 4]  # 1.5 is left out
        assert [int(part[0, 1]) for part in tails] == want


def known_facts(known: KnownFacts) -> Tensor:
    """The first fact of a filter."""
    head = torch.arange(known.entities)
    row, tail = known.tails(head, torch.zeros_like(head))
    return torch.stack([row[0], torch.tensor(0), tail[0]])[None]


def test_short_integers_do_not_overflow_in_large_graphs() -> None:
    facts = torch.tensor([[99_998, 49_999, 99_997], [7, 49_998, 99_999]])
    size = {"entities": 100_000, "relations": 50_000}
    for whole in (facts, facts.int()):
        known = KnownFacts(whole, **size)
        assert known.tails(whole[:, 0], whole[:, 1])[1].tolist() == [99_997, 99_999]
        assert known.heads(whole[:, 1], whole[:, 2])[1].tolist() == [99_998, 7]
    turned = torch.tensor([[99_999, 0, 99_998], [99_998, 1, 99_999]], dtype=torch.int32)
    rules = InverseRules(turned, entities=100_000, relations=2)
    torch.testing.assert_close(rules.confidence, torch.tensor([[0.0, 1.0], [1.0, 0.0]]) / 6)


def test_one_candidate_has_no_adjusted_index() -> None:
    alone = link_metrics(rank(torch.zeros(1), torch.tensor(0)))
    assert alone.mrr == 1.0
    assert alone.adjusted != alone.adjusted


@given(st.integers(0, 50), st.integers(1, 4))
def test_filtered_ranks_are_those_of_counting(seed: int, levels: int) -> None:
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (7, 3, 7), generator=g).double()  # few levels: many ties
    facts = some_facts(seed)
    known = KnownFacts(facts, entities=7, relations=3)
    have = filtered_ranks(Table(scores), facts[:13], known=known, batch_size=5)
    true = {tuple(fact) for fact in facts.tolist()}
    for row, (h, r, t) in enumerate(facts[:13].tolist()):
        for side in (0, 1):
            asked = [(e, r, t) if side == 0 else (h, r, e) for e in range(7)]
            others = [f for f in asked if f not in true]
            better = sum(bool(scores[f] > scores[h, r, t]) for f in others)
            equal = sum(bool(scores[f] == scores[h, r, t]) for f in others)
            got = tuple(int(part[row, side]) for part in have)
            assert got == (better, equal, len(others) + 1)


def test_one_question_is_ranked_like_many() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 1.0, 5.0]])
    exclude = torch.tensor([[False, True, False, False, True]])
    got = rank(scores, torch.tensor([1]), exclude=exclude)  # the truth counts though excluded
    assert [int(part) for part in got] == [2, 1, 3 + 1]
    near = rank(scores, torch.tensor([1]), tolerance=1.0)
    assert [int(part) for part in near] == [2, 2, 5]


def test_a_constant_score_has_the_ranks_of_its_rule() -> None:
    ranks = rank(torch.zeros(1, 11), torch.tensor([4]))
    assert [float(ranks.by(t)) for t in ("optimistic", "realistic", "pessimistic")] == [1, 6, 11]
    mean = sum(Fraction(1, k) for k in range(1, 12)) / 11
    assert abs(float(ranks.expected_reciprocal()) - float(mean)) < 1e-14
    assert abs(1 / 6 - float(mean)) > 0.1  # the inverse of the mean rank is another number


def test_a_constant_score_looks_perfect_under_one_rule_only() -> None:
    # Numbers measured with another evaluator, to three digits.
    for name, want in (("nations", (1, 0.273, 0.167)), ("umls", (1, 0.029, 0.018))):
        graph = knowledge_graph(name)
        sizes = {"entities": len(graph.entities), "relations": len(graph.relations)}
        known = KnownFacts(torch.cat([graph.train, graph.valid, graph.test]), **sizes)
        flat = Table(torch.zeros(sizes["entities"], sizes["relations"], sizes["entities"]))
        ranks = filtered_ranks(flat, graph.test, known=known)
        rules = ("optimistic", "realistic", "pessimistic")
        got = [link_metrics(ranks, ties=rule).mrr for rule in rules]
        assert [round(value, 3) for value in got] == list(want)
        assert abs(link_metrics(ranks).adjusted) < 1e-12  # chance is 0


@given(st.integers(0, 9), st.integers(0, 9))
def test_chance_among_equals_is_a_mean_over_orders(better: int, equal: int) -> None:
    ranks = Ranks(torch.tensor(better), torch.tensor(equal), torch.tensor(30))
    places = range(better + 1, better + equal + 2)
    mean = sum(1 / place for place in places) / len(places)
    assert abs(float(ranks.expected_reciprocal()) - mean) < 1e-12
    assert mean >= 1 / float(ranks.by("realistic")) - 1e-12


def test_a_filter_without_validation_facts_gives_other_ranks() -> None:
    graph = knowledge_graph("nations")
    sizes = {"entities": 14, "relations": 55}
    model = Popularity(graph.train, **sizes)
    splits = [graph.train, graph.valid, graph.test]
    full = filtered_ranks(model, graph.test, known=KnownFacts(torch.cat(splits), **sizes))
    part = filtered_ranks(
        model, graph.test, known=KnownFacts(torch.cat([graph.train, graph.test]), **sizes)
    )
    assert link_metrics(full).mrr > link_metrics(part).mrr + 0.01


def test_known_facts_find_each_answer_once() -> None:
    facts = torch.tensor([[0, 1, 2], [0, 1, 4], [0, 1, 2], [3, 0, 2], [6, 2, 6]])
    known = KnownFacts(facts, entities=7, relations=3)
    row, tail = known.tails(torch.tensor([3, 0, 5]), torch.tensor([0, 1, 1]))
    assert list(zip(row.tolist(), tail.tolist(), strict=True)) == [(0, 2), (1, 2), (1, 4)]
    row, head = known.heads(torch.tensor([1, 0]), torch.tensor([2, 2]))
    assert list(zip(row.tolist(), head.tolist(), strict=True)) == [(0, 0), (1, 3)]


@pytest.mark.parametrize(
    ("name", "popular"), [("nations", 0.550), ("kinships", 0.110), ("umls", 0.661)]
)
def test_popularity_is_a_strong_answer(name: str, popular: float) -> None:
    graph = knowledge_graph(name)
    sizes = {"entities": len(graph.entities), "relations": len(graph.relations)}
    known = KnownFacts(torch.cat([graph.train, graph.valid, graph.test]), **sizes)
    model = Popularity(graph.train, **sizes)
    assert round(link_metrics(filtered_ranks(model, graph.test, known=known)).mrr, 3) == popular


@pytest.mark.parametrize("single", [False, True])
def test_inverse_rules_are_those_of_a_dense_table(single: bool) -> None:
    graph = knowledge_graph("nations")
    sizes = {"entities": 14, "relations": 55}
    there = torch.zeros(14, 55, 14)
    there[graph.train[:, 0], graph.train[:, 1], graph.train[:, 2]] = 1
    both = torch.einsum("trh,hst->rs", there, there)
    confidence = both / (there.sum((0, 2))[:, None] + 5)
    if single:
        best = both.argmax(0)
        confidence = confidence * (torch.arange(55)[:, None] == best)
    model = InverseRules(graph.train, single=single, **sizes)
    torch.testing.assert_close(model.confidence, confidence)
    popular = Popularity(graph.train, **sizes)
    for h, r, t in graph.test[:17].tolist():
        asked = torch.tensor([h]), torch.tensor([r]), torch.tensor([t])
        share = popular.tail_counts[r] / popular.tail_counts[r].sum().clamp_min(1)
        want = (there[:, :, h] * confidence[:, r]).amax(1) + 1e-3 * share
        torch.testing.assert_close(model.tails(asked[0], asked[1])[0], want)
        share = popular.head_counts[r] / popular.head_counts[r].sum().clamp_min(1)
        want = (there[t] * confidence[:, r][:, None]).amax(0) + 1e-3 * share
        torch.testing.assert_close(model.heads(asked[1], asked[2])[0], want)


def test_turned_pairs_leak_as_often_as_counted_elsewhere() -> None:
    for name, any_relation, same in (
        ("nations", 1.0, 0.527),
        ("kinships", 0.815, 0.236),
        ("umls", 0.408, 0.147),
    ):
        graph = knowledge_graph(name)
        assert round(reversed_share(graph.train, graph.test), 3) == any_relation
        assert round(reversed_share(graph.train, graph.test, same_relation=True), 3) == same


def test_hits_and_means_by_hand() -> None:
    ranks = Ranks(torch.tensor([0, 1, 9]), torch.tensor([0, 2, 1]), torch.tensor([5, 5, 21]))
    got = link_metrics(ranks, ties="pessimistic")
    assert got.mrr == pytest.approx((1 + 1 / 4 + 1 / 11) / 3)
    assert (got.hits_1, got.hits_3, got.hits_10) == pytest.approx((1 / 3, 1 / 3, 2 / 3))
    assert got.mean_rank == pytest.approx(16 / 3)
    assert got.adjusted == pytest.approx(1 - 13 / 14)
    each = torch.arange(13)  # ranks from 1 to 13, so that each bound is met
    hits = link_metrics(Ranks(each, torch.zeros_like(each), torch.full_like(each, 17)))
    assert (hits.hits_1, hits.hits_3, hits.hits_10) == pytest.approx((1 / 13, 3 / 13, 10 / 13))


def test_inputs_stay_and_gradients_are_not_kept() -> None:
    model = DistMult(7, 3, dim=5, generator=torch.Generator().manual_seed(0))
    facts = some_facts(0)
    before = facts.clone()
    ranks = filtered_ranks(model, facts, known=KnownFacts(facts, entities=7, relations=3))
    assert torch.equal(facts, before)
    assert not ranks.better.requires_grad


def test_ranks_run_without_numbers() -> None:
    truth = torch.zeros(5, dtype=torch.long, device="meta")
    ranks = rank(torch.zeros(5, 7, device="meta"), truth)
    assert ranks.by("realistic").shape == (5,)
    assert ranks.expected_reciprocal().shape == (5,)
    model = Popularity(some_facts(0), entities=7, relations=3)
    assert model.tails(torch.tensor([0]), torch.tensor([2])).device.type == "cpu"


@pytest.mark.usefixtures("own_checks")
def test_refusals_say_what_to_do() -> None:
    facts = some_facts(0)
    known = KnownFacts(facts, entities=7, relations=3)
    broken = Table(torch.full((7, 3, 7), torch.nan))
    with pytest.raises(ValueError, match="NaN, which has no rank"):
        filtered_ranks(broken, facts, known=known)
    with pytest.raises(ValueError, match="NaN, which has no rank"):
        rank(torch.tensor([0.0, torch.nan]), torch.tensor(0))
    with pytest.raises(ValueError, match=r"scores must have shape \(41, 8\)"):
        filtered_ranks(broken, facts, known=KnownFacts(facts, entities=8, relations=3))
    with pytest.raises(ValueError, match="no facts to ask"):
        filtered_ranks(broken, facts[:0], known=known)
    with pytest.raises(ValueError, match="ties must be one of"):
        rank(torch.zeros(3), torch.tensor(0)).by("lucky")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"truth must lie in \[0, 3\)"):
        rank(torch.zeros(3), torch.tensor(3))
    with pytest.raises(ValueError, match="tolerance must lie"):
        rank(torch.zeros(3), torch.tensor(0), tolerance=-1.0)
    with pytest.raises(ValueError, match="same shape"):
        rank(torch.zeros(3), torch.tensor(0), exclude=torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="no ranks"):
        link_metrics(Ranks(*(torch.zeros(0, dtype=torch.long),) * 3))
    with pytest.raises(ValueError, match=r"relations must lie in \[0, 2\)"):
        KnownFacts(facts, entities=7, relations=2)
    with pytest.raises(ValueError, match=r"heads and tails must lie in \[0, 6\)"):
        Popularity(facts, entities=6, relations=3)
    with pytest.raises(ValueError, match="smoothing must lie"):
        InverseRules(facts, entities=7, relations=3, smoothing=-1.0)
    with pytest.raises(ValueError, match="no facts to ask"):
        reversed_share(facts, facts[:0])
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        filtered_ranks(broken, facts, known=known, batch_size=0)
