"""Adversaries of embeddings, exchanged words, mixtures, edits, slips, and the stored runs."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from companion import data, models
from companion.core import generator
from companion.knowledge.robustness import (
    eda,
    fgm,
    flip_gains,
    flip_text,
    freelb,
    freelb_start,
    hotflip,
    mixup,
    mixup_cross_entropy,
    pgd,
    typos,
    vat_direction,
    vat_loss,
    whole_words,
)

D = torch.float64


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=D)


# Embeddings


def test_fgm_is_one_step_of_pgd_over_all_tokens() -> None:
    weight, x, y = drawn(15, 2), drawn(4, 5, 3, seed=1), torch.tensor([0, 1, 1, 0])

    def model(a: Tensor) -> Tensor:
        return torch.tanh(a.flatten(1) @ weight)

    def loss_of(offset: Tensor) -> Tensor:
        return F.cross_entropy(model(x + offset), y, reduction="none")

    offset = fgm(loss_of, torch.zeros_like(x), eps=0.7)
    torch.testing.assert_close(offset.flatten(1).norm(dim=1), torch.full((4,), 0.7, dtype=D))
    other = pgd(model, x, y, eps=0.7, step=0.7, steps=1, norm=2, bounds=None)
    torch.testing.assert_close(x + offset, other)


def test_freelb_is_the_published_loop(g: torch.Generator) -> None:
    w = drawn(3, 2).requires_grad_()
    x, y = drawn(5, 7, 3, seed=1), torch.arange(5) % 2

    def loss_of(offset: Tensor) -> Tensor:
        return F.cross_entropy(torch.tanh((x + offset).mean(1) @ w), y, reduction="none")

    real = torch.ones(5, 7, dtype=torch.bool)
    start = freelb_start(real, dim=3, eps=0.5, generator=g, dtype=D)
    kept = start.clone()
    found = freelb(loss_of, start, [w], eps=0.5, step=0.3, steps=4)
    delta, total, losses = start.clone(), torch.zeros_like(w), []
    for _ in range(4):
        delta.requires_grad_()
        loss = loss_of(delta).mean()
        a, b = torch.autograd.grad(loss, [w, delta])
        total, losses = total + a / 4, [*losses, float(loss.detach())]
        b = b / b.flatten(1).norm(dim=1)[:, None, None]
        delta = delta.detach() + 0.3 * b
        size = delta.flatten(1).norm(dim=1)[:, None, None]
        delta = torch.where(size > 0.5, 0.5 * delta / size, delta)
    torch.testing.assert_close(found.gradients[0], total)
    torch.testing.assert_close(found.offset, delta)
    assert float(found.loss) == pytest.approx(sum(losses) / 4)
    assert w.grad is None
    assert torch.equal(start, kept)


def test_freelb_starts_at_a_length_that_does_not_depend_on_the_text(g: torch.Generator) -> None:
    real = torch.arange(40) < torch.tensor([[40], [10]])
    start = freelb_start(real, dim=301, eps=2.0, generator=g, dtype=D)
    lengths = start.flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((2,), 2 / 3**0.5, dtype=D), rtol=0.02, atol=0)
    assert bool((start[1, 10:] == 0).all())
    with pytest.raises(ValueError, match="start must lie in the ball"):
        freelb(lambda r: r.sum((1, 2)), 2 * start, [], eps=1.0, step=1.0, steps=1)


def test_virtual_directions_are_top_eigenvectors(g: torch.Generator) -> None:
    W, x = drawn(5, 3), drawn(1, 5, seed=3)

    def log_probs(r: Tensor) -> Tensor:
        return ((x + r) @ W).log_softmax(-1)

    p = log_probs(torch.zeros(1, 5, dtype=D)).exp()[0]
    F_x = W @ (torch.diag(p) - torch.outer(p, p)) @ W.T
    top = torch.linalg.eigh(F_x).eigenvectors[:, -1]
    found = vat_direction(log_probs, torch.zeros(1, 5, dtype=D), iterations=30, generator=g)[0]
    # Forward differences at xi = 1e-3 have an error of that order.
    assert abs(float(found @ top)) == pytest.approx(1, abs=1e-4)


def test_the_divergence_is_from_clean_to_changed_with_the_clean_one_held(
    g: torch.Generator,
) -> None:
    scale = torch.ones((), dtype=D, requires_grad=True)
    clean, changed = torch.tensor([[0.5, 0.5]], dtype=D).log(), torch.tensor([[0.9, 0.1]]).log()

    def log_probs(r: Tensor) -> Tensor:
        near = r.flatten(1).norm(dim=1, keepdim=True) < 0.5
        moved = (clean + r + scale - 1).log_softmax(-1)
        return torch.where(near, moved, changed.to(D) * scale)

    loss = vat_loss(log_probs, torch.zeros(1, 2, dtype=D), eps=1.0, generator=g)
    assert loss.item() == pytest.approx(0.5108, abs=5e-5)  # the reverse would be 0.3681
    (slope,) = torch.autograd.grad(loss, scale)
    want = -(clean.exp() * changed.to(D)).sum()  # of the changed distribution alone
    assert float(slope) == pytest.approx(float(want), rel=1e-6)
    zero = vat_loss(
        lambda r: (clean + r).log_softmax(-1), torch.zeros(1, 2, dtype=D), eps=0.0, generator=g
    )
    assert float(zero) == 0


def test_dropout_between_the_passes_is_refused(g: torch.Generator) -> None:
    drop = nn.Dropout(0.5)
    x = torch.ones(7, 31)
    with pytest.raises(ValueError, match="other values at a second call"):
        vat_direction(lambda r: drop(x + r).log_softmax(-1), torch.zeros(7, 31), generator=g)


# Exchanged words


def test_gains_are_exact_where_the_loss_is_linear() -> None:
    table, slope, ids = drawn(11, 3), drawn(5, 3, seed=1), torch.tensor([3, 1, 4, 1, 9])

    def loss(tokens: Tensor) -> float:
        return float((table[tokens] * slope).sum())

    gains = flip_gains(slope, ids, table)
    for place in range(5):
        for word in range(11):
            other = ids.clone()
            other[place] = word
            want = loss(other) - loss(ids)
            assert float(gains[place, word]) == pytest.approx(want, abs=1e-12)


def test_the_best_flips_are_those_of_brute_force_and_heed_what_is_allowed() -> None:
    table, slope, ids = drawn(11, 3), drawn(5, 3, seed=1), torch.tensor([3, 1, 4, 1, 9])
    gains = flip_gains(slope, ids, table)
    found = hotflip(slope, ids, table, k=3)
    every = sorted(
        ((float(gains[i, w]), i, w) for i in range(5) for w in range(11) if w != int(ids[i])),
        reverse=True,
    )
    chosen = list(zip(found.places.tolist(), found.tokens.tolist(), strict=True))
    assert chosen == [(i, w) for _, i, w in every[:3]]
    assert bool((found.gains.diff() <= 0).all())
    places, words = torch.arange(5) == 2, torch.arange(11) < 2
    few = hotflip(slope, ids, table, k=9, places=places, words=words)
    assert set(few.places.tolist()) == {2}
    assert sorted(few.tokens.tolist()) == [0, 1]
    near = hotflip(slope, ids, table, k=99, cosine=0.9)
    unit = F.normalize(table, dim=1)
    cosines = (unit[ids[near.places]] * unit[near.tokens]).sum(1)
    assert bool((cosines >= 0.9).all())


@pytest.fixture(scope="module")
def encoder() -> models.TextEncoder:
    return models.minilm()


@pytest.fixture(scope="module")
def head(encoder: models.TextEncoder) -> Any:
    """Two sentences apart: one pole for each label."""
    poles = encoder.embed(["terrible, boring and bad", "wonderful, moving and great"])

    def judge(pooled: Tensor) -> Tensor:
        return 9 * F.normalize(pooled, dim=-1) @ poles.T

    return judge


def test_success_is_that_of_the_string(encoder: models.TextEncoder, head: Any) -> None:
    reviews = data.reviews()
    words = whole_words(encoder)
    fooled = 0
    for k in (2, 4, 104, 107):
        text, label = reviews.texts[k], int(reviews.labels[k])
        made = flip_text(encoder, head, text, label, tries=8, words=words)
        again = head(encoder.embed([made.text], normalize=False)).argmax(-1)
        assert made.fools_text == (int(again) != label)
        if made.flips:
            ids = encoder.tokenize([text])[0][0]
            new = encoder.tokenize([made.text])[0][0]
            assert made.survives
            assert int((ids != new).sum()) == made.flips <= 3
        fooled += made.fools_text
    assert fooled


def test_a_text_that_is_wrong_already_comes_back(encoder: models.TextEncoder, head: Any) -> None:
    made = flip_text(encoder, head, "A great film!", 0)
    assert (made.text, made.flips, made.fools_text) == ("A great film!", 0, True)


def test_what_may_come_in_does_not_say_what_may_go(encoder: models.TextEncoder, head: Any) -> None:
    tokenizer = encoder.tokenizer
    assert tokenizer is not None
    text, only = "a wonderful and moving film", "terrible"
    words = torch.zeros(encoder.model.config.vocab, dtype=torch.bool)
    words[tokenizer.token_to_id(only)] = True
    made = flip_text(encoder, head, text, 1, flips=1, cosine=-1.0, words=words)
    assert made.flips == 1
    changed = [new for old, new in zip(text.split(), made.text.split(), strict=True) if new != old]
    assert changed == [only]


def test_words_are_no_pieces_signs_or_special_tokens(encoder: models.TextEncoder) -> None:
    words = whole_words(encoder)
    tokenizer = encoder.tokenizer
    assert tokenizer is not None
    for name, want in (
        ("film", True),
        ("##ing", False),
        ("[SEP]", False),
        (",", False),
        ("[unused5]", False),
        ("1990", False),
    ):
        assert bool(words[tokenizer.token_to_id(name)]) == want


# Mixtures, edits, slips


@given(st.integers(0, 999), st.sampled_from([0.05, 0.4, 1.0, 3.0]))
def test_examples_and_labels_are_mixed_by_one_permutation(seed: int, alpha: float) -> None:
    y = torch.arange(7)
    mixed = mixup(torch.eye(7, dtype=D), y, alpha=alpha, generator=generator(seed))
    soft = mixed.weight * F.one_hot(mixed.first, 7) + (1 - mixed.weight) * F.one_hot(
        mixed.second, 7
    )
    torch.testing.assert_close(mixed.x, soft)  # one-hot examples carry their labels
    logits = drawn(7, 7, seed=seed)
    torch.testing.assert_close(mixup_cross_entropy(logits, mixed), F.cross_entropy(logits, soft))


def test_without_alpha_nothing_is_mixed_and_the_weights_have_the_law_of_beta(
    g: torch.Generator,
) -> None:
    x, y = drawn(5, 3), torch.arange(5)
    mixed = mixup(x, y, alpha=0.0, generator=g)
    assert torch.equal(mixed.x, x)
    assert float(mixed.weight) == 1
    for alpha in (0.2, 1.0, 4.0):
        found = torch.stack([mixup(x, y, alpha=alpha, generator=g).weight for _ in range(3000)])
        # Moments of Beta(a, a): mean 1/2, variance 1/(4 (2a + 1)); five standard errors.
        variance = 1 / (4 * (2 * alpha + 1))
        assert float(found.mean()) == pytest.approx(0.5, abs=5 * (variance / 3000) ** 0.5)
        assert float(found.var()) == pytest.approx(variance, abs=5 * 0.1 / 3000**0.5)
        assert bool(((found > 0) & (found < 1)).any())


NEAR = {"good": ["fine"], "film": ["movie", "picture"]}


@given(st.integers(0, 999), st.floats(0, 1))
def test_edits_do_what_their_names_say(seed: int, ratio: float) -> None:
    words = ["a", "good", "film", "with", "a", "good", "end"]
    made = eda(words, NEAR, ratio=ratio, copies=4, generator=generator(seed))
    replaced, inserted, swapped, deleted = made
    n = max(1, round(ratio * 7))
    assert len(replaced) == 7
    changed = [(a, b) for a, b in zip(words, replaced, strict=True) if a != b]
    assert len(changed) == min(n, 3)
    assert all(b in NEAR[a] for a, b in changed)
    assert len(inserted) == 7 + n
    assert not Counter(words) - Counter(inserted)
    assert Counter(swapped) == Counter(words)
    assert deleted
    assert not Counter(deleted) - Counter(words)
    assert words == ["a", "good", "film", "with", "a", "good", "end"]


@given(st.integers(0, 999))
def test_slips_leave_ends_short_words_and_signs(seed: int) -> None:
    text = "The Weather, in 1999: wonderfully fine and odd!"
    made = typos(text, ratio=1.0, generator=generator(seed))
    assert typos(text, ratio=0.0, generator=generator(seed)) == text
    before, after = text.split(" "), made.split(" ")
    assert len(before) == len(after)
    for a, b in zip(before, after, strict=True):
        assert (a[0], a[-1]) == (b[0], b[-1])
        assert abs(len(a) - len(b)) <= 1
        if len(a.strip(",:!")) < 4 or a == "1999:":
            assert a == b
        else:
            assert a != b


@pytest.mark.usefixtures("own_checks")
def test_what_makes_no_sense_is_refused(g: torch.Generator) -> None:
    with pytest.raises(ValueError, match="several texts"):
        eda("one text", {}, generator=g)
    with pytest.raises(ValueError, match="one word or more"):
        eda([], {}, generator=g)
    with pytest.raises(ValueError, match=r"ratio must lie in \[0.0, 1.0\]"):
        typos("text", ratio=1.5, generator=g)
    for alpha in (-1.0, math.inf, math.nan):  # an endless rejection, once, for infinity
        with pytest.raises(ValueError, match="alpha must lie in"):
            mixup(drawn(3, 2), torch.arange(3), alpha=alpha, generator=g)
    with pytest.raises(ValueError, match="one label for each of 3 examples"):
        mixup(drawn(3, 2), torch.arange(2), alpha=1.0, generator=g)
    with pytest.raises(ValueError, match=r"ids .*\[0, 3\), got 3"):
        flip_gains(drawn(1, 2), torch.tensor([3]), drawn(3, 2))
    with pytest.raises(ValueError, match="words must have shape"):
        hotflip(drawn(1, 2), torch.tensor([0]), drawn(3, 2), k=1, words=torch.ones(2).bool())
    with pytest.raises(ValueError, match="no tokenizer"):
        whole_words(models.TextEncoder(models.minilm().model))


# Stored runs


def test_the_run_of_digits_trains_attacks_certifies_and_adapts(scripts: Any) -> None:
    asked = ("--seeds", "1", "--epochs", "1", "--samples", "50", "--certify", "3")
    more = ("--group-steps", "3", "--meta-steps", "2", "--meta-tests", "5")
    results = scripts.run("robustness", *asked, *more).results
    assert [row["arm"] for row in results["opponents"]] == ["standard", "fgsm", "pgd"]
    assert all(len(row["pgd"]) == len(results["grid"]) for row in results["opponents"])
    assert [row["arm"] for row in results["groups"]] == ["mean", "balanced", "worst group"]
    assert {len(row["errors"]) for row in results["meta"]} == {11}


def test_side_by_side_waves_are_networks_of_their_own(scripts: Any) -> None:
    script = scripts.load("robustness")
    start = script.start_of_waves(generator(0))
    x = torch.rand(3, 5, generator=generator(1))
    many = script.waves(script.spread(start, 3), x)
    h = x[1, :, None]
    for layer in range(3):
        h = h @ start[f"w{layer}"] + start[f"b{layer}"]
        h = h.relu() if layer < 2 else h
    torch.testing.assert_close(many[1], h[:, 0])


def test_the_corner_gives_the_label_away_in_training_only(scripts: Any) -> None:
    script = scripts.load("robustness")
    x = data.digits().images[:5]
    marked = script.with_corner(x, torch.tensor([True, False, True, False, True]))
    changed = (marked != x).view(-1, 8, 8)
    assert not bool(changed[:, 2:].any())
    assert not bool(changed[:, :, 2:].any())
    assert marked.view(-1, 8, 8)[0, :2, :2].tolist() == [[1, 1], [1, 1]]


def test_regressions_of_the_run_are_those_of_scikit_learn(scripts: Any) -> None:
    from sklearn.linear_model import LogisticRegression

    script = scripts.load("robustness_text")
    x = torch.randn(61, 3, generator=generator(0))
    y = (x[:, 0] + torch.randn(61, generator=generator(1)) > 0).long()
    weights = torch.rand(61, generator=generator(2))
    found = script.logistic(x, y, weights=weights, decay=0.02)
    peer = LogisticRegression(C=1 / (0.02 * 61), tol=1e-8)
    peer.fit(x.numpy(), y.numpy(), sample_weight=(weights / weights.mean()).numpy())
    want = torch.tensor([*peer.coef_[0], *peer.intercept_], dtype=torch.float64)
    torch.testing.assert_close(found.double(), want, rtol=1e-3, atol=1e-3)


def test_the_stored_attacks_count_strings() -> None:
    rows = data.stored_run("robustness_text").results["attacks"]
    assert {row["arm"] for row in rows} == {"standard", "fgm", "freelb"}
    for row in rows:
        assert row["fools_text"] <= row["right"] <= row["texts"]
        assert abs(row["fools_ids"] - row["fools_text"]) <= row["changed_ids"]


def test_the_stored_curves_fall_and_one_step_flatters() -> None:
    results = data.stored_run("robustness").results
    for row in results["opponents"]:
        assert all(a >= b - 0.02 for a, b in zip(row["pgd"], row["pgd"][1:], strict=False))
        assert all(a <= b + 0.01 for a, b in zip(row["pgd"], row["fgsm"], strict=True))
    for row in results["certificates"]:
        assert all(a >= b for a, b in zip(row["certified"], row["certified"][1:], strict=False))
        assert row["certified"][0] <= row["voted"] + 0.02
    assert math.isclose(results["eps"], 0.15)


def test_a_broken_gradient_hides_no_other_place() -> None:
    slope = torch.tensor([[math.nan, 1.0], [0.0, 2.0]])
    found = hotflip(slope, torch.tensor([0, 0]), torch.eye(2), k=1)
    assert (found.places.tolist(), found.tokens.tolist()) == ([1], [1])


@pytest.mark.usefixtures("own_checks")
def test_mixtures_of_integers_are_refused(g: torch.Generator) -> None:
    with pytest.raises(ValueError, match="x must be floating"):
        mixup(torch.arange(6).view(3, 2), torch.arange(3), alpha=1.0, generator=g)
