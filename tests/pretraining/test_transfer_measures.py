"""Probes, penalties, representations, linearization: closed forms and independent libraries."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor, nn

from companion import data
from companion.data import Verse
from companion.foundations.cross_entropy import cross_entropy, softmax
from companion.models import minilm
from companion.pretraining.transfer import (
    add_lora,
    ewc_penalty,
    fisher_diagonal,
    fit_whitening,
    linear_probe,
    linearized,
    mean_cosine,
    pool,
    probe_hessian,
    self_similarity,
    senses_by_translation,
    tangent_kernel,
    tell_senses,
    trained_state,
    whiten,
)
from companion.transformer.block import Decoder, TransformerConfig

N, D, K = 41, 5, 3
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def problem(g: torch.Generator, classes: int = K) -> tuple[Tensor, Tensor]:
    h = torch.randn(N, D, generator=g, dtype=torch.float64) * torch.tensor([1, 3, 0.2, 1, 1]) + 1
    y = (h[:, :classes] + torch.randn(N, classes, generator=g)).argmax(1)
    return h, y


# --- the linear probe -----------------------------------------------------------------------------


@pytest.mark.parametrize("l2", [1e-3, 0.03, 2.0])
def test_the_probe_is_the_logistic_regression_of_scikit_learn(
    g: torch.Generator, l2: float
) -> None:
    h, y = problem(g)
    probe = linear_probe(h, y, l2=l2)
    theirs = LogisticRegression(C=1 / (N * l2), tol=1e-12, max_iter=5000).fit(h, y)
    # Theirs stops at a gradient of some 1e-9 of their loss; the minimum is flat, so weights are
    # known to a few digits less.
    bias = theirs.intercept_ - theirs.intercept_.mean()
    np.testing.assert_allclose(probe.weight.T, theirs.coef_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(probe.bias, bias, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(softmax(probe(h)), theirs.predict_proba(h), atol=1e-6)


def test_with_two_classes_scikit_learns_penalty_is_twice_ours(g: torch.Generator) -> None:
    h, y = problem(g, classes=2)
    l2 = 0.05
    probe = linear_probe(h, y, l2=l2)
    theirs = LogisticRegression(C=2 / (N * l2), tol=1e-12, max_iter=5000).fit(h, y)
    np.testing.assert_allclose(
        probe.weight[:, 1] - probe.weight[:, 0], theirs.coef_[0], rtol=1e-5, atol=1e-6
    )


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**20), l2=st.floats(1e-3, 10), classes=st.integers(2, 5))
# Here the last decrease of the loss is below its rounding: the line search must not stop for it.
@example(seed=573, l2=5.3383712146514375, classes=2)
def test_at_the_probe_the_gradient_is_zero_and_the_biases_sum_to_zero(
    seed: int, l2: float, classes: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(29, 7, generator=g, dtype=torch.float64)
    y = torch.cat([torch.arange(classes), torch.randint(0, classes, (29 - classes,), generator=g)])
    probe = linear_probe(h, y, l2=l2)
    W, b = probe.weight.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    loss = cross_entropy(h @ W + b, y) + l2 / 2 * W.square().sum()
    assert loss.item() == pytest.approx(probe.loss, rel=1e-12)
    for gradient in torch.autograd.grad(loss, [W, b]):
        assert gradient.abs().max() < 1e-9
    assert abs(float(probe.bias.sum())) < 1e-9
    # Strictly convex in W: no other point is better.
    other = cross_entropy(h @ (W + 0.1) + b, y) + l2 / 2 * (W + 0.1).square().sum()
    assert other > loss


def test_the_probe_gives_the_shares_of_the_classes_when_features_say_nothing() -> None:
    y = torch.tensor([0, 0, 0, 1, 2, 2])
    probe = linear_probe(torch.zeros(6, 2), y, l2=0.1)
    shares = torch.tensor([3, 1, 2]).double() / 6
    torch.testing.assert_close(softmax(probe(torch.zeros(1, 2)))[0], shares)
    assert not probe.weight.any()


def test_probes_of_wide_features_of_a_real_model_converge() -> None:
    words = ["king", "queen", "dog", "cat", "red", "blue", "wolf", "green", "prince"]
    h = minilm().embed([f"The {word}." for word in words])
    y = torch.tensor([0, 0, 1, 1, 2, 2, 1, 2, 0])
    probe = linear_probe(h, y, l2=1e-3)
    assert torch.equal(probe(h).argmax(1), y)
    assert probe.steps < 20


@pytest.mark.usefixtures("own_checks")
def test_probes_refuse_what_does_not_fit(g: torch.Generator) -> None:
    h, y = problem(g)
    for features, labels, options, message in (
        (h, y[:-1], {}, r"got \(41, 5\) and \(40,\)"),
        (h, y, {"l2": 0.0}, r"l2 must lie in \(0.0, inf\), got 0"),
        (h, y, {"classes": 4}, r"each of 4 classes.*got \[0, 1, 2\]"),
        (h, y + 1, {}, "each of 4 classes"),
        (h, y.clamp(max=0), {}, "each of 1 classes, two or more"),
        (h.long(), y, {}, "features must be floating"),
        (h.masked_fill(h > 2, math.inf), y, {}, "features"),
    ):
        with pytest.raises(ValueError, match=message):
            linear_probe(features, labels, **{"l2": 0.1, **options})
    with pytest.raises(RuntimeError, match="after 1 steps"):
        linear_probe(h, y, l2=1e-3, max_steps=1)


def test_the_hessian_of_the_probe_is_that_of_autograd_and_positive(g: torch.Generator) -> None:
    h, y = problem(g)
    W = torch.randn(D, K, generator=g, dtype=torch.float64)
    expected = torch.autograd.functional.hessian(
        lambda w: cross_entropy(h @ w, y) + 0.15 * w.square().sum(), W
    )
    made = probe_hessian(h, W, l2=0.3)
    torch.testing.assert_close(made, expected, **EXACT)
    assert torch.linalg.eigvalsh(made.reshape(D * K, D * K))[0] >= 0.3 - 1e-12


# --- the Fisher information and its penalty -------------------------------------------------------


def test_the_fisher_of_softmax_regression_is_its_closed_form(g: torch.Generator) -> None:
    h, _ = problem(g)
    W = torch.randn(D, K, generator=g, dtype=torch.float64, requires_grad=True)
    p = softmax(h @ W).detach()
    # All labels, each as often as the model expects it: weights enter by their square root,
    # since the gradient is squared.
    examples = [(n, k) for n in range(N) for k in range(K)]
    made = fisher_diagonal(
        lambda e: cross_entropy(h[e[0]] @ W, torch.tensor(e[1])) * (K * p[e]).sqrt(),
        examples,
        {"W": W},
    )["W"]
    expected = torch.einsum("na,nk->ak", h.square(), p * (1 - p)) / N
    torch.testing.assert_close(made, expected, **EXACT)
    # For a generalized linear model it is the diagonal of the Hessian, whatever the labels.
    diagonal = probe_hessian(h, W.detach()).reshape(D * K, D * K).diagonal().view(D, K)
    torch.testing.assert_close(made, diagonal, **EXACT)


def test_squared_batch_gradients_are_not_the_fisher(g: torch.Generator) -> None:
    mean = torch.zeros((), dtype=torch.float64, requires_grad=True)
    data_ = [torch.tensor(v, dtype=torch.float64) for v in (1.0, -1.0, 3.0)]
    made = fisher_diagonal(lambda y: (y - mean) ** 2 / 2, data_, {"mean": mean})["mean"]
    assert float(made) == pytest.approx((1 + 1 + 9) / 3)
    assert float(made) > (sum(float(v) for v in data_) / 3) ** 2


def test_parameters_that_a_loss_does_not_read_have_no_information(g: torch.Generator) -> None:
    a, b = (torch.ones(3, requires_grad=True) for _ in range(2))
    made = fisher_diagonal(lambda e: (a * e).sum(), [1.0, 2.0], {"a": a, "b": b})
    assert torch.equal(made["b"], torch.zeros(3))
    assert torch.equal(made["a"], torch.full((3,), 2.5))
    with pytest.raises(ValueError, match="no example"):
        fisher_diagonal(lambda e: (a * e).sum(), [], {"a": a})
    with pytest.raises(ValueError, match=r"must return a scalar, got shape \(3,\)"):
        fisher_diagonal(lambda e: a * e, [1.0], {"a": a})


def test_the_penalty_is_a_parabola_around_the_start(g: torch.Generator) -> None:
    start = {n: torch.randn(s, generator=g).double() for n, s in (("a", 5), ("b", 7))}
    fisher = {n: torch.rand(len(t), generator=g).double() for n, t in start.items()}
    now = {n: (t + 0.3).requires_grad_() for n, t in start.items()}
    made = ewc_penalty(now, start, fisher, strength=4.0)
    expected = 2.0 * 0.09 * sum(float(f.sum()) for f in fisher.values())
    assert made.item() == pytest.approx(expected, rel=1e-12)
    for name, gradient in zip(now, torch.autograd.grad(made, list(now.values())), strict=True):
        torch.testing.assert_close(gradient, 4.0 * fisher[name] * 0.3, **EXACT)
    plain = ewc_penalty(now, start, None, strength=4.0)
    ones = ewc_penalty(now, start, {n: torch.ones_like(t) for n, t in start.items()}, strength=4.0)
    torch.testing.assert_close(plain, ones)
    assert float(ewc_penalty(start, start, fisher, strength=1.0)) == 0
    with pytest.raises(ValueError, match="same names"):
        ewc_penalty(now, {"a": start["a"]}, fisher, strength=1.0)
    with pytest.raises(ValueError, match="same names"):
        ewc_penalty({}, {}, {}, strength=1.0)
    with pytest.raises(ValueError, match="strength must lie"):
        ewc_penalty(now, start, fisher, strength=-1.0)


def test_elastic_weight_consolidation_is_exact_for_two_quadratic_tasks(
    g: torch.Generator,
) -> None:
    """For Gaussian likelihoods Laplace's approximation is exact: EWC finds the joint optimum."""
    a = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    b = torch.tensor([0.0, 3.0, 1.0], dtype=torch.float64)
    f, h = (torch.rand(3, generator=g).double() + 0.1 for _ in range(2))
    joint = (f * a + h * b) / (f + h)
    theta = a.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([theta], max_iter=200, tolerance_grad=1e-12, tolerance_change=0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (h * (theta - b) ** 2).sum()
        loss = loss + ewc_penalty({"t": theta}, {"t": a}, {"t": f}, strength=1.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(theta.detach(), joint, rtol=1e-7, atol=1e-8)


# --- representations ------------------------------------------------------------------------------


def test_pooling_reads_tokens_and_no_padding(g: torch.Generator) -> None:
    h = torch.randn(2, 5, 3, generator=g)
    real = torch.tensor([[True, True, True, False, False], [False, True, True, True, False]])
    mean, first, last = (pool(h, real, pooling=kind) for kind in ("mean", "first", "last"))
    torch.testing.assert_close(mean, torch.stack([h[0, :3].mean(0), h[1, 1:4].mean(0)]))
    assert torch.equal(first, torch.stack([h[0, 0], h[1, 1]]))
    assert torch.equal(last, torch.stack([h[0, 2], h[1, 3]]))
    noise = torch.where(real[:, :, None], h, 1e6)
    for kind in ("mean", "first", "last"):
        assert torch.equal(pool(noise, real, pooling=kind), pool(h, real, pooling=kind))
    assert not pool(h, torch.zeros_like(real)).any()


def test_pooling_is_that_of_the_sentence_encoder() -> None:
    text = minilm()
    sentences = ["To be, or not to be.", "A cat sleeps on the mat by the door."]
    ids, real = text.tokenize(sentences)
    alone = [torch.tensor([text.tokenizer.encode(sentence).ids]) for sentence in sentences]
    with torch.no_grad():
        made = pool(text.model(ids, real=real), real)
        naive = torch.cat([text.model(row).mean(1) for row in alone])
        firsts = torch.cat([text.model(row)[:, 0] for row in alone])
    # float32 through six layers, with padding and without.
    torch.testing.assert_close(made, naive, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text.embed(sentences, normalize=False), naive, rtol=1e-4, atol=1e-5)
    first = replace(text, pooling="first").embed(sentences, normalize=False)
    torch.testing.assert_close(first, firsts, rtol=1e-4, atol=1e-5)


def test_mean_cosines_are_those_of_all_pairs(g: torch.Generator) -> None:
    h = torch.randn(N, D, generator=g, dtype=torch.float64) + 0.5
    C = cosine_similarity(h)
    expected = (C.sum() - np.trace(C)) / (N * N - N)
    assert float(mean_cosine(h)) == pytest.approx(expected, rel=1e-12)
    simplex = torch.eye(7).double() - 1 / 7  # directions as far apart as seven can be
    assert float(mean_cosine(simplex)) == pytest.approx(-1 / 6, rel=1e-12)
    with pytest.raises(ValueError, match=r"two rows or more, got shape \(1, 5\)"):
        mean_cosine(h[:1])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**20), count=st.integers(1, 6), n=st.integers(1, 30))
def test_self_similarity_is_the_mean_over_the_pairs_of_each_word(
    seed: int, count: int, n: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(n, D, generator=g, dtype=torch.float64)
    words = torch.randint(0, count, (n,), generator=g)
    made = self_similarity(h, words, count=count, baseline=0.25)
    for w in range(count):
        own = h[words == w]
        if len(own) < 2:
            assert torch.isnan(made[w])
        else:
            assert float(made[w]) == pytest.approx(float(mean_cosine(own)) - 0.25, abs=1e-12)


def test_static_vectors_are_wholly_similar_to_themselves(g: torch.Generator) -> None:
    table = torch.randn(4, D, generator=g, dtype=torch.float64)
    words = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 3])
    torch.testing.assert_close(
        self_similarity(table[words], words, count=4), torch.ones(4).double(), **EXACT
    )


def test_whitened_samples_have_mean_zero_and_covariance_one(g: torch.Generator) -> None:
    h = torch.randn(N, D, generator=g, dtype=torch.float64)
    h = h @ torch.randn(D, D, generator=g, dtype=torch.float64) + 3
    made = whiten(h)
    torch.testing.assert_close(made.mean(0), torch.zeros(D).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(made.T @ made / N, torch.eye(D).double(), rtol=0, atol=1e-10)
    cov = np.cov(h.T.numpy(), bias=True)
    root = np.linalg.inv(scipy.linalg.sqrtm(cov))
    np.testing.assert_allclose(fit_whitening(h).matrix, root, rtol=1e-9, atol=1e-10)
    two = whiten(h, dim=2)
    torch.testing.assert_close(two.T @ two / N, torch.eye(2).double(), rtol=0, atol=1e-10)
    kept = whiten(h, dim=D)
    torch.testing.assert_close(kept @ kept.T, made @ made.T, rtol=1e-9, atol=1e-9)


def test_shrinkage_goes_from_whitening_to_centering(g: torch.Generator) -> None:
    h = torch.randn(N, D, generator=g, dtype=torch.float64)
    scale = (h - h.mean(0)).square().mean().sqrt()
    torch.testing.assert_close(whiten(h, shrinkage=1.0), (h - h.mean(0)) / scale, **EXACT)
    few = h[:3]  # fewer rows than columns
    with pytest.raises(ValueError, match=r"direction 5 has .* of the largest variance"):
        whiten(few)
    assert torch.isfinite(whiten(few, shrinkage=0.1)).all()
    with pytest.raises(ValueError, match="dim must be from 1 to 5, got 6"):
        whiten(h, dim=6)
    with pytest.raises(ValueError, match="shrinkage must lie"):
        whiten(h, shrinkage=2.0)


def test_measures_keep_dtype_run_on_meta_and_leave_their_inputs(g: torch.Generator) -> None:
    h, words = torch.randn(N, D, generator=g), torch.arange(N) % 4
    held = h.clone()
    assert whiten(h).dtype == mean_cosine(h).dtype == torch.float32
    self_similarity(h, words, count=4)
    linear_probe(h, words, l2=0.1)
    assert torch.equal(h, held)
    m = h.to("meta")
    assert mean_cosine(m).device.type == "meta"
    assert self_similarity(m, words.to("meta"), count=4).shape == (4,)
    assert whiten(m, dim=2).shape == (N, 2)
    assert pool(m[None], torch.ones(1, N, dtype=torch.bool, device="meta")).shape == (1, D)
    assert probe_hessian(m, m[:, :3].T @ m[:, :2] if D == 3 else m[:D, :2]).shape == (D, 2, D, 2)


@pytest.mark.usefixtures("own_checks")
def test_representations_refuse_what_does_not_fit(g: torch.Generator) -> None:
    h = torch.randn(2, 5, 3, generator=g)
    with pytest.raises(ValueError, match=r"real must have shape \(2, 5\), got \(2, 4\)"):
        pool(h, torch.ones(2, 4).bool())
    with pytest.raises(ValueError, match="pooling must be mean, first or last, got 'max'"):
        pool(h, torch.ones(2, 5).bool(), pooling="max")
    with pytest.raises(ValueError, match=r"words must have shape \(2,\), got \(3,\)"):
        self_similarity(h[:, 0], torch.zeros(3).long(), count=2)


# --- first order ----------------------------------------------------------------------------------


def small_model(g: torch.Generator) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Decoder(
            TransformerConfig(vocab=23, dim=12, layers=2, heads=6, ff_dim=31, context=29)
        )
    return model.double().eval()


def test_the_linearized_model_is_off_by_the_square_of_the_step(g: torch.Generator) -> None:
    model = small_model(g)
    ids = torch.randint(0, 23, (2, 7), generator=g)
    add_lora(model, targets=["query", "value", "up"], rank=2, alpha=4.0, generator=g)
    start = {name: p.clone() for name, p in trained_state(model).items()}
    with torch.no_grad():
        for p in start.values():
            p += 0.1 * torch.randn(p.shape, generator=g, dtype=torch.float64)
    step = {name: torch.randn(p.shape, generator=g).double() for name, p in start.items()}

    def f(p: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, p, (ids,))

    value, slope = linearized(f, start, step)
    torch.testing.assert_close(value, f(start), **EXACT)
    errors = []
    for size in (1e-2, 5e-3):
        there = f({name: start[name] + size * step[name] for name in start})
        errors.append(float((there - value - size * slope).norm()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    with pytest.raises(ValueError, match="same names"):
        linearized(f, start, {})


def test_tangent_kernels_are_products_of_gradients(g: torch.Generator) -> None:
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double()
    x = torch.randn(4, 5, generator=g, dtype=torch.float64)
    start = {name: p.detach() for name, p in net.named_parameters()}
    K = tangent_kernel(lambda p: torch.func.functional_call(net, p, (x,))[:, 0], start)
    assert torch.linalg.eigvalsh(K)[0] > -1e-12
    J = torch.stack(
        [
            torch.cat([q.flatten() for q in torch.autograd.grad(net(r)[0], list(net.parameters()))])
            for r in x
        ]
    )
    torch.testing.assert_close(K, J @ J.T, **EXACT)
    # One small step of gradient descent moves the outputs by minus the kernel times the slopes.
    rate, y = 1e-6, torch.randn(4, generator=g, dtype=torch.float64)
    slopes = net(x)[:, 0].detach() - y
    before = net(x)[:, 0].detach()
    (0.5 * (net(x)[:, 0] - y).square().sum()).backward()
    with torch.no_grad():
        for p in net.parameters():
            p -= rate * p.grad
    moved = (net(x)[:, 0].detach() - before) / rate
    torch.testing.assert_close(moved, -K @ slopes, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"a row of numbers, got \(4, 1\)"):
        tangent_kernel(lambda p: torch.func.functional_call(net, p, (x,)), start)


# --- senses ---------------------------------------------------------------------------------------


def verses(*texts: str) -> list[Verse]:
    return [Verse("Book", 1, number, text) for number, text in enumerate(texts, 1)]


def test_a_sense_is_told_by_the_other_translation() -> None:
    here = verses(
        "The meat was good.",
        "A meat offering.",
        "Meat and meat.",
        "No such word: meats.",
        "Meat, both food and meal-offering.",
        "Meat of another kind.",
        "Meat without a parallel.",
    )
    there = verses(
        "The FOOD was good.",
        "A meal-offering.",
        "Food and food.",
        "Food.",
        "Both food and meal-offering.",
        "Flesh.",
    )
    made = senses_by_translation(
        here, there, word="meat", senses=[["food", "foods"], ["meal-offering"]]
    )
    assert [(o.text, o.sense, o.book) for o in made] == [
        ("The meat was good.", 0, "Book"),
        ("A meat offering.", 1, "Book"),
    ]
    for wrong in ([["food"]], [["food"], ["food"]]):
        with pytest.raises(ValueError, match="two senses or more, with different renderings"):
            senses_by_translation(here, there, word="meat", senses=wrong)


def test_the_bible_has_senses_by_the_hundred() -> None:
    kjv, asv = data.bible_verses("kjv"), data.bible_verses("asv")
    made = senses_by_translation(kjv, asv, word="hell", senses=[["sheol"], ["hell", "hades"]])
    counts = [sum(o.sense == s for o in made) for s in (0, 1)]
    assert counts == [31, 23]
    assert {o.book for o in made if o.sense == 0} >= {"Psalms", "Job", "Proverbs"}
    assert all("hell" in o.text.lower() for o in made)
    assert not any("sheol" in o.text.lower() for o in made)


def test_senses_are_told_by_a_vote_of_the_nearest_in_other_groups(g: torch.Generator) -> None:
    n = 60
    words = torch.arange(n) % 2
    senses = (torch.rand(n, generator=g) < 0.4).long()
    groups = torch.randint(0, 7, (n,), generator=g)
    h = torch.randn(n, 5, generator=g, dtype=torch.float64) + senses[:, None] * words[:, None]
    made = tell_senses(h, words, senses, groups, neighbors=3)
    for w in (0, 1):
        own = [i for i in range(n) if words[i] == w]
        mean = h[own].mean(0)
        right: dict[int, list[bool]] = {0: [], 1: []}
        for i in own:
            others = [j for j in own if groups[j] != groups[i]]
            cosines = cosine_similarity((h[others] - mean).numpy(), (h[i : i + 1] - mean).numpy())
            near = np.argsort(-cosines[:, 0])[:3]
            votes = [int(senses[others[j]]) for j in near]
            right[int(senses[i])].append((sum(votes) > 1) == bool(senses[i]))
        expected = np.mean([np.mean(r) for r in right.values()])
        assert float(made[w]) == pytest.approx(expected, rel=1e-12)
    assert made[1] > made[0]
    same_group = tell_senses(h, words, senses, torch.zeros(n).long())
    torch.testing.assert_close(same_group, torch.full((2,), 0.5).double())  # nobody may vote


@pytest.mark.usefixtures("own_checks")
def test_votes_refuse_what_does_not_fit(g: torch.Generator) -> None:
    h, zeros = torch.randn(5, 3, generator=g), torch.zeros(5).long()
    with pytest.raises(ValueError, match=r"groups must have shape \(5,\), got \(4,\)"):
        tell_senses(h, zeros, zeros, zeros[:4])
    with pytest.raises(ValueError, match="neighbors must be 1 or more"):
        tell_senses(h, zeros, zeros, zeros, neighbors=0)
