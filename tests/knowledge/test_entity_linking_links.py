"""Candidates, links, negatives of the batch, entities that fit together, and fusion."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from companion.core import generator, randn
from companion.knowledge import entity_linking as el

NEVER = -math.inf


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, generator=generator(seed), dtype=torch.float64)


COUNTS = {
    "Paris": {"city": 90.0, "hero": 9.0, "Texas": 1.0},
    "Jordan": {"river": 1.0, "country": 3.0},
    "Rome": {"city of Rome": 5.0},
}


def test_priors_are_shares_of_counts() -> None:
    index = el.CandidateIndex(COUNTS, smoothing=0.0)
    told = index.lookup(["PARIS", "jordan", "Oslo"], 2)
    names = [[index.entities[i] if i >= 0 else None for i in row] for row in told.ids.tolist()]
    assert names == [["city", "hero"], ["country", "river"], [None, None]]
    # Cut off, the shares are still those of all candidates.
    torch.testing.assert_close(told.log_prior[0].exp(), torch.tensor([0.9, 0.09]))
    assert (told.log_prior[2] == NEVER).all()
    assert "paris" in index
    assert "Oslo" not in index
    assert index.entities[index.number("river")] == "river"


def test_smoothing_keeps_what_was_never_counted() -> None:
    index = el.CandidateIndex({"x": {"a": 3.0, "b": 0.0}}, smoothing=0.5)
    torch.testing.assert_close(
        index.lookup(["x"], 5).log_prior[0, :2].exp(), torch.tensor([3.5 / 4, 0.5 / 4])
    )
    with pytest.raises(ValueError, match="count 0, whose logarithm is minus infinity"):
        el.CandidateIndex({"x": {"a": 3.0, "b": 0.0}}, smoothing=0.0)


@pytest.mark.usefixtures("own_checks")
def test_an_index_refuses_what_it_cannot_rank() -> None:
    with pytest.raises(ValueError, match="two names have the key 'us'"):
        el.CandidateIndex({"US": {"a": 1}, "us": {"b": 1}})
    with pytest.raises(ValueError, match="needs candidates with finite counts of 0 or more"):
        el.CandidateIndex({"x": {}})
    for count in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="needs candidates with finite counts"):
            el.CandidateIndex({"x": {"a": 1.0, "b": count}})
    with pytest.raises(ValueError, match="is not among the 5 entities"):
        el.CandidateIndex({k: COUNTS[k] for k in ("Paris", "Jordan")}).number("nobody")
    with pytest.raises(ValueError, match="mentions must hold several texts"):
        el.CandidateIndex(COUNTS).lookup("Paris", 2)
    with pytest.raises(ValueError, match="k must be 1 or more"):
        el.CandidateIndex(COUNTS).lookup(["Paris"], 0)


def test_an_index_keeps_its_counts_when_the_callers_change() -> None:
    counts = {"x": {"a": 3.0, "b": 1.0}}
    index = el.CandidateIndex(counts, smoothing=0.0)
    counts["x"]["b"], counts["y"] = 99.0, {"c": 1.0}
    assert index.counts == {"x": {"a": 3.0, "b": 1.0}}
    assert "y" not in index
    torch.testing.assert_close(index.lookup(["x"], 2).log_prior.exp(), torch.tensor([[0.75, 0.25]]))


def test_what_stands_where_no_candidate_is_does_not_matter() -> None:
    h, e = numbers(2, 5).requires_grad_(), numbers(2, 3, 5, seed=1)
    prior = torch.tensor([[-0.4, NEVER, -1.2], [-0.3, -0.2, NEVER]], dtype=torch.float64)
    want = el.link_log_probs(h, e, log_prior=prior)
    (slope,) = torch.autograd.grad(want[:, 0].sum(), h)
    e[prior == NEVER] = math.nan
    for known in ({"log_prior": prior}, {"log_prior": prior, "real": prior > NEVER}):
        have = el.link_log_probs(h, e, **known)
        torch.testing.assert_close(have, want)
        torch.testing.assert_close(torch.autograd.grad(have[:, 0].sum(), h)[0], slope)
    alone = el.link_log_probs(h, e, real=prior > NEVER)
    assert torch.isfinite(alone[prior > NEVER]).all()
    scores, vectors = torch.tensor([[0.5, NEVER], [0.0, 0.1]]), torch.ones(2, 2, 1)
    vectors[0, 1] = math.nan
    for exact in (True, False):
        assert el.coherent_links(scores, vectors, exact=exact).tolist() == [0, 1]


def test_a_nan_is_a_fault_and_no_missing_candidate() -> None:
    # Once a mention that was NaN looked like one without candidates.
    h, e = numbers(2, 5), numbers(2, 3, 5, seed=1)
    prior = torch.tensor([[-0.4, NEVER, -1.2], [-0.3, -0.2, NEVER]], dtype=torch.float64)
    bad = {"mentions": h.clone(), "entities": e.clone(), "log_prior": prior.clone()}
    bad["mentions"][0] = math.nan
    bad["entities"][0, 2, 1] = math.nan
    bad["log_prior"][0, 0] = math.nan
    good = {"mentions": h, "entities": e, "log_prior": prior}
    for name in bad:
        told = el.link_log_probs(**{**good, name: bad[name]})
        assert told[0].isnan().any()
        assert not (told[0] == 0.0).any()
        torch.testing.assert_close(told[1], el.link_log_probs(**good)[1])
    layer = el.KnowBertLayer(5, 3)
    words, spans = torch.ones(1, 4, 5), torch.ones(1, 1, 4, dtype=torch.bool)
    priors = torch.tensor([[[math.nan, -0.5]]])
    assert layer.link_probs(words, spans, torch.ones(1, 1, 2, 3), priors).isnan().all()
    scores, vectors = torch.tensor([[0.5, math.nan], [0.0, 0.1]]), torch.ones(2, 2, 1)
    for exact in (True, False):
        with pytest.raises(ValueError, match="scores of candidates must be finite"):
            el.coherent_links(scores, vectors, exact=exact)
        with pytest.raises(ValueError, match="entities of candidates must be finite"):
            el.coherent_links(torch.zeros(2, 2), math.nan * vectors, exact=exact)


def test_a_text_without_mentions_has_no_links() -> None:
    chosen = el.coherent_links(torch.zeros(0, 3), torch.zeros(0, 3, 2))
    assert chosen.shape == (0,)
    assert el.link_log_probs(torch.zeros(0, 3), torch.zeros(0, 2, 3)).shape == (0, 2)
    nil = el.link_log_probs(torch.zeros(2, 3), torch.zeros(2, 0, 3), nil=0.3)
    assert nil.tolist() == [[0.0], [0.0]]


def test_links_are_a_softmax_over_the_candidates() -> None:
    h, e = numbers(3, 5), numbers(3, 4, 5, seed=1)
    prior = numbers(3, 4, seed=2).log_softmax(1)
    have = el.link_log_probs(h, e, log_prior=prior, scale=1.3, prior_weight=0.7)
    for row in range(3):
        z = torch.stack([0.7 * prior[row, k] + 1.3 * (h[row] @ e[row, k]) for k in range(4)])
        torch.testing.assert_close(have[row], z - z.logsumexp(0))


def test_absent_candidates_take_nothing_and_none_may_be_left() -> None:
    h, e = numbers(2, 5), numbers(2, 3, 5, seed=1)
    prior = torch.tensor([[-0.1, -2.3, NEVER], [NEVER] * 3], dtype=torch.float64)
    told = el.link_log_probs(h, e, log_prior=prior)
    torch.testing.assert_close(
        told[0, :2], el.link_log_probs(h[:1], e[:1, :2], log_prior=prior[:1, :2])[0]
    )
    assert (told[1] == NEVER).all()
    nil = el.link_log_probs(h, e, log_prior=prior, nil=0.3).exp()
    assert nil.shape == (2, 4)
    torch.testing.assert_close(nil[1], torch.tensor([0, 0, 0, 1], dtype=torch.float64))
    torch.testing.assert_close(nil.sum(1), torch.ones(2, dtype=torch.float64))


def test_a_head_learns_how_much_the_prior_counts() -> None:
    # Links drawn with weight 2 of the prior and scale 1.5: the head finds both.
    g = generator(4)
    h, e = torch.randn(4000, 3, generator=g), torch.randn(4000, 4, 3, generator=g)
    prior = torch.randn(4000, 4, generator=g).log_softmax(1)
    law = el.link_log_probs(h, e, log_prior=prior, scale=1.5, prior_weight=2.0).exp()
    chosen = torch.multinomial(law, 1, generator=g)[:, 0]
    head = el.Disambiguator(3)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=50)

    def closure() -> Tensor:
        optimizer.zero_grad()
        told = head(h, e, log_prior=prior)
        loss = torch.nn.functional.nll_loss(told, chosen)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    # Four standard errors, from 4,000 draws with an information of about 0.5 each.
    assert abs(float(head.prior_weight.detach()) - 2.0) < 4 / math.sqrt(2000)
    assert abs(float(head.log_scale.detach().exp()) - 1.5) < 4 / math.sqrt(2000)


def test_negatives_of_the_batch_with_and_without_correction() -> None:
    h, e, log_q = numbers(4, 5), numbers(4, 5, seed=1), numbers(4, seed=2)
    ids = torch.tensor([7, 3, 7, 1])
    have = el.in_batch_loss(h, e, ids=ids, log_q=log_q, scale=0.8)
    losses = []
    for i in range(4):
        kept = [j for j in range(4) if j == i or ids[j] != ids[i]]
        z = torch.stack([0.8 * h[i] @ e[j] - log_q[j] for j in kept])
        losses.append(z.logsumexp(0) - z[kept.index(i)])
    torch.testing.assert_close(have, torch.stack(losses).mean())
    # A constant frequency corrects nothing.
    torch.testing.assert_close(
        el.in_batch_loss(h, e, log_q=torch.full((4,), -3.0, dtype=torch.float64)),
        el.in_batch_loss(h, e),
    )


def test_the_uncorrected_loss_learns_the_law_divided_by_the_frequency() -> None:
    # Two contexts, three entities, one free score each: gradient descent on the loss of a law.
    joint = torch.tensor([[0.45, 0.10, 0.05], [0.15, 0.05, 0.20]], dtype=torch.float64)
    q, given = joint.sum(0), joint / joint.sum(1, keepdim=True)
    for corrected in (False, True):
        s = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([s], max_iter=200, tolerance_grad=1e-12)

        def closure(
            s: Tensor = s, corrected: bool = corrected, optimizer: Any = optimizer
        ) -> Tensor:
            optimizer.zero_grad()
            # A large batch: entity j stands in it with frequency q_j.
            z = s - q.log() if corrected else s
            loss = -(joint * (z - (z + q.log()).logsumexp(1, keepdim=True))).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        found = (s if corrected else s + q.log()).softmax(1).detach()
        torch.testing.assert_close(found, given, rtol=0, atol=1e-5)


@pytest.mark.parametrize("exact", [True, False])
def test_links_that_fit_together_maximize_the_sum(exact: bool) -> None:
    hits = 0
    for seed in range(40):
        s, e = numbers(4, 3, seed=seed), 0.4 * numbers(4, 3, 5, seed=seed + 100)
        s[1, 2] = NEVER
        chosen = el.coherent_links(s, e, weight=0.7, exact=exact).tolist()

        def objective(c: Any, s: Tensor = s, e: Tensor = e) -> float:
            total = sum(float(s[i, c[i]]) for i in range(4))
            for i, j in itertools.combinations(range(4), 2):
                total += 0.7 * float(e[i, c[i]] @ e[j, c[j]])
            return total

        best = max(itertools.product(range(3), repeat=4), key=objective)
        alone = s.argmax(1).tolist()
        assert objective(chosen) >= objective(alone)
        for i, a in itertools.product(range(4), range(3)):  # no single change is better
            assert objective([*chosen[:i], a, *chosen[i + 1 :]]) <= objective(chosen) + 1e-12
        hits += tuple(chosen) == best
    assert hits == 40 if exact else hits >= 30


def test_links_refuse_what_cannot_be_tried() -> None:
    s, e = torch.zeros(9, 9), torch.zeros(9, 9, 2)
    with pytest.raises(ValueError, match=r"9\^9 choices are more than limit"):
        el.coherent_links(s, e, exact=True)
    assert el.coherent_links(s, e).shape == (9,)
    with pytest.raises(ValueError, match="candidate with a finite score"):
        el.coherent_links(torch.full((2, 3), NEVER), torch.zeros(2, 3, 2))


def test_the_losses_of_each_step_are_apart() -> None:
    true = torch.tensor([4, 5, 6, -1, -1])
    told = torch.tensor([4, 7, -1, -1, 9])
    offered = torch.tensor([[4, 1], [7, 5], [8, 9], [2, -1], [9, -1]])
    scores = el.link_scores(true, told, offered)
    assert scores.recall_at_k == pytest.approx(2 / 3)
    assert scores.accuracy_given_recall == pytest.approx(1 / 2)
    assert scores.accuracy_in_kb == pytest.approx(1 / 3)
    assert scores.accuracy_in_kb == pytest.approx(scores.recall_at_k * scores.accuracy_given_recall)
    assert scores.nil_recall == pytest.approx(1 / 2)
    assert scores.nil_precision == pytest.approx(1 / 2)
    assert scores.accuracy == pytest.approx(2 / 5)
    # Linked to the truth although it was not offered: no credit in the knowledge base.
    lucky = el.link_scores(torch.tensor([3]), torch.tensor([3]), torch.tensor([[1]]))
    assert lucky.accuracy_in_kb == 0


# Fusion


def seeded(module: torch.nn.Module, seed: int = 5) -> Any:
    g = generator(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.5)
    return module.double()


def test_ernie_without_an_entity_is_a_feed_forward_layer() -> None:
    layer = seeded(el.ERNIEFusion(5, 3, 7))
    words, entities = numbers(2, 4, 5), numbers(2, 4, 3, seed=1)
    present = torch.tensor([[True, False, False, True], [False] * 4])
    entities[~present] = math.nan  # what stands there is not looked at
    new, known = layer(words, entities, present)
    gelu = torch.nn.functional.gelu
    plain = gelu(layer.words_out(gelu(layer.words_in(words))))
    assert torch.equal(new[~present], plain[~present])
    assert not torch.isclose(new[present], plain[present]).any()
    assert (known[~present] == 0).all()
    h = gelu(
        words[0, 0] @ layer.words_in.weight.t()
        + entities[0, 0] @ layer.entities_in.weight.t()
        + layer.words_in.bias
    )
    torch.testing.assert_close(known[0, 0], gelu(layer.entities_out(h)))
    new.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


def test_a_gate_leaves_words_without_an_entity_alone() -> None:
    layer = seeded(el.GatedFusion(5, 3))
    words, entities = numbers(2, 4, 5), numbers(2, 4, 3, seed=1)
    present = torch.zeros(2, 4, dtype=torch.bool)
    assert torch.equal(layer(words, entities, present), words)
    present[0, 2] = True
    new = layer(words, entities, present)
    brought = entities[0, 2] @ layer.project.weight.t()
    g = torch.sigmoid(layer.from_words(words[0, 2]) + layer.from_entities(brought))
    torch.testing.assert_close(new[0, 2], g * words[0, 2] + (1 - g) * brought)
    # The gradient of the entity's vector is that of differences.
    assert torch.autograd.gradcheck(lambda e: layer(words, e, present), entities.requires_grad_())
    start = el.GatedFusion(5, 3)
    assert torch.equal(start.from_words.bias, torch.full((5,), 2.0))


def test_knowbert_leaves_a_sentence_without_spans_alone() -> None:
    layer = seeded(el.KnowBertLayer(5, 3, hidden=4))
    words = numbers(2, 4, 5)
    spans = torch.zeros(2, 2, 4, dtype=torch.bool)
    spans[0, 0, 1:3] = True
    candidates, prior = numbers(2, 2, 3, 3, seed=1), numbers(2, 2, 3, seed=2).log_softmax(-1)
    candidates[1] = math.nan
    prior[1] = NEVER
    prior[0, 0, 2] = NEVER
    new = layer(words, spans, candidates, prior)
    assert torch.equal(new[1], words[1])
    assert not torch.isclose(new[0], words[0]).any()
    probs = layer.link_probs(words, spans, candidates, prior)
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, 2, dtype=torch.float64))
    assert probs[0, 0, 2] == 0
    assert probs[1, 0].tolist() == [0, 0, 0, 1]
    # By hand, for the first word: one span, so that all attention goes to it.
    low = words[0] @ layer.down.weight.t() + layer.down.bias
    weights = (low[1:3] @ layer.query).softmax(0)
    pooled = weights @ low[1:3]
    meant = probs[0, 0, :3] @ candidates[0, 0]
    want = words[0, 0] + (pooled + meant) @ layer.up.weight.t()
    torch.testing.assert_close(new[0, 0], want)
    new.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


def test_words_attend_to_all_spans_with_the_scale_of_the_entities() -> None:
    layer = seeded(el.KnowBertLayer(5, 3, hidden=4))
    words, spans = numbers(1, 4, 5), torch.zeros(1, 3, 4, dtype=torch.bool)
    spans[0, 0, :2], spans[0, 1, 3:] = True, True  # the third one is padding
    candidates, prior = numbers(1, 3, 2, 3, seed=1), numbers(1, 3, 2, seed=2).log_softmax(-1)
    probs = layer.link_probs(words, spans, candidates, prior)
    low = words[0] @ layer.down.weight.t() + layer.down.bias
    rows = []
    for m in range(2):
        inside = low[spans[0, m]]
        pooled = (inside @ layer.query).softmax(0) @ inside
        rows.append(pooled + probs[0, m, :2] @ candidates[0, m])
    knowledge = torch.stack(rows)
    weights = (low @ knowledge.t() / math.sqrt(3)).softmax(1)
    want = words[0] + weights @ knowledge @ layer.up.weight.t()
    torch.testing.assert_close(layer(words, spans, candidates, prior)[0], want)


def test_knowbert_starts_with_a_pseudo_inverse() -> None:
    layer = el.KnowBertLayer(7, 3)
    torch.testing.assert_close(layer.down.weight @ layer.up.weight, torch.eye(3), rtol=0, atol=1e-5)


def test_vectors_go_to_the_first_tokens() -> None:
    starts = torch.tensor([[False, True, False], [True, False, True]])
    vectors = numbers(3, 5)
    places = el.first_tokens(starts, vectors)
    assert torch.equal(places[starts], vectors)
    assert (places[~starts] == 0).all()
    with pytest.raises(ValueError, match="3 mentions start, but there are 2 vectors"):
        el.first_tokens(starts, vectors[:2])


def test_fusion_runs_on_the_meta_device() -> None:
    words = torch.zeros(2, 4, 5, device="meta")
    entities = torch.zeros(2, 4, 3, device="meta")
    present = torch.zeros(2, 4, dtype=torch.bool, device="meta")
    with torch.device("meta"):
        ernie, gate, know = el.ERNIEFusion(5, 3, 7), el.GatedFusion(5, 3), el.KnowBertLayer(5, 3)
        head = el.Disambiguator(5, project=True, nil=True)
    assert ernie(words, entities, present)[0].shape == (2, 4, 5)
    assert gate(words, entities, present).shape == (2, 4, 5)
    spans = torch.zeros(2, 6, 4, dtype=torch.bool, device="meta")
    some = torch.zeros(2, 6, 7, 3, device="meta")
    assert know(words, spans, some, some[..., 0]).shape == (2, 4, 5)
    rows = torch.zeros(2, 3, 5, device="meta")
    assert head(words[:, 0], rows, log_prior=rows[..., 0]).shape == (2, 4)
    assert el.in_batch_loss(words[:, 0], words[:, 1]).device.type == "meta"
    assert el.first_tokens(present, torch.zeros(0, 5, device="meta")).shape == (2, 4, 5)


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.long, torch.float32])
def test_masks_are_boolean(dtype: torch.dtype) -> None:
    words, mask = torch.ones(1, 2, 5), torch.ones(1, 2, dtype=dtype)
    for layer in (el.ERNIEFusion(5, 3, 7), el.GatedFusion(5, 3)):
        with pytest.raises(ValueError, match="present must be boolean"):
            layer(words, torch.ones(1, 2, 3), mask)
    with pytest.raises(ValueError, match="starts must be boolean"):
        el.first_tokens(mask, torch.ones(2, 5))
    with pytest.raises(ValueError, match="spans must be boolean"):
        el.span_vectors(words, mask[None], torch.ones(5))


@pytest.mark.usefixtures("own_checks")
def test_shapes_that_do_not_fit_are_refused() -> None:
    h, e = torch.zeros(2, 5), torch.zeros(2, 3, 5)
    with pytest.raises(ValueError, match=r"mentions must have shape \(2, 5\)"):
        el.link_log_probs(h[:1], e)
    with pytest.raises(ValueError, match=r"log_prior must have shape \(2, 3\)"):
        el.link_log_probs(h, e, log_prior=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"entities must have shape \(2, 5\)"):
        el.in_batch_loss(h, h[:1])
    with pytest.raises(ValueError, match="the batch is empty"):
        el.in_batch_loss(h[:0], h[:0])
    with pytest.raises(ValueError, match="log_q must be finite"):
        el.in_batch_loss(h, h, log_q=torch.tensor([0.0, NEVER]))
    with pytest.raises(ValueError, match="real must be boolean"):
        el.link_log_probs(h, e, real=torch.ones(2, 3).long())
    with pytest.raises(ValueError, match=r"entities must have shape \(3, 2, \*\)"):
        el.coherent_links(torch.zeros(3, 2), torch.zeros(3, 4, 5))
    with pytest.raises(ValueError, match=r"predicted must have shape \(2,\)"):
        el.link_scores(torch.zeros(2).long(), torch.zeros(3).long(), torch.zeros(2, 2).long())
    words, present = torch.zeros(2, 4, 5), torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"present must have shape \(2, 4\)"):
        el.ERNIEFusion(5, 3, 7)(words, torch.zeros(2, 4, 3), present)
    with pytest.raises(ValueError, match=r"present must have shape \(2, 4\)"):
        el.GatedFusion(5, 3)(words, torch.zeros(2, 4, 3), present)
    there = torch.zeros(2, 4, dtype=torch.bool)
    for layer in (el.ERNIEFusion(5, 3, 7), el.GatedFusion(5, 3)):
        with pytest.raises(ValueError, match=r"entities must have shape \(2, 4, 3\)"):
            layer(words, torch.zeros(2, 4, 6), there)
        with pytest.raises(ValueError, match=r"words must have shape \(\*, \*, 5\)"):
            layer(words[..., :4], torch.zeros(2, 4, 3), there)
    with pytest.raises(ValueError, match=r"query must have shape \(5,\)"):
        el.span_vectors(words, torch.zeros(2, 1, 4).bool(), torch.zeros(4))
    with pytest.raises(ValueError, match=r"candidates must have shape \(2, 6"):
        el.KnowBertLayer(5, 3)(
            words, torch.zeros(2, 6, 4).bool(), torch.zeros(2, 5, 1, 3), torch.zeros(2, 5, 1)
        )
