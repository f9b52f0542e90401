"""Balance: weights of classes and domains, adjusted logits, and mixtures."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion.knowledge import data_quality as dq


def logits(*shape: int, g: torch.Generator) -> torch.Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def test_weighted_means_are_those_of_the_target(g: torch.Generator) -> None:
    p, q = logits(7, g=g).softmax(0), logits(7, g=g).softmax(0)
    f = logits(7, g=g)
    w = dq.importance_weights(q, p)
    assert torch.allclose((p * w * f).sum(), (q * f).sum())
    assert float(dq.importance_weights(torch.zeros(2), torch.tensor([0.0, 1.0]))[0]) == 0
    assert math.isclose(float(dq.effective_sample_size(torch.full((13,), 0.3))), 13, rel_tol=1e-6)
    assert float(dq.effective_sample_size(torch.tensor([1.0, 0.0, 0.0]))) == 1


def test_training_with_the_prior_and_taking_it_out_afterwards_agree(g: torch.Generator) -> None:
    z, prior = logits(11, 5, g=g), logits(5, g=g).softmax(0)
    y = torch.randint(0, 5, (11,), generator=g)
    trained = dq.logit_adjusted_cross_entropy(z, y, prior, tau=0.7)
    plain = torch.nn.functional.cross_entropy(z + 0.7 * prior.log(), y)
    assert torch.allclose(trained, plain)
    # What plain training would have as its logits is z + log prior: adjusting gives z back.
    assert torch.allclose(dq.adjust_logits(z + prior.log(), prior), z)


def test_the_logit_adjusted_loss_has_its_value_and_its_sign() -> None:
    z, prior = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.9, 0.1]).double()
    loss = dq.logit_adjusted_cross_entropy(z, torch.tensor(1), prior)
    assert round(float(loss), 5) == 3.23729
    wrong = torch.nn.functional.cross_entropy(z - prior.log(), torch.tensor(1))
    assert abs(float(loss - wrong)) > 1


def test_adjusted_logits_are_bayes_under_equal_priors(g: torch.Generator) -> None:
    likelihood, prior = logits(5, g=g).softmax(0), logits(5, g=g).softmax(0)
    posterior = (likelihood * prior / (likelihood * prior).sum()).log()
    balanced = likelihood / likelihood.sum()
    assert torch.allclose(dq.adjust_logits(posterior, prior).softmax(0), balanced)


def test_a_small_prior_is_taken_out_of_logits_in_half_precision() -> None:
    prior = torch.tensor([1 - 1e-8, 1e-8], dtype=torch.float64)  # 1e-8 is 0 in float16
    told = dq.adjust_logits(torch.zeros(2).half(), prior)
    assert told.dtype == torch.float16
    assert float(told[1]) == pytest.approx(-math.log(1e-8), rel=2e-3)
    # And a prior in float32 costs logits in float64 nothing.
    single = torch.tensor([0.7, 0.3])
    exact = -single.double().log()
    assert torch.equal(dq.adjust_logits(torch.zeros(2).double(), single), exact)


def test_focal_loss_is_weighted_cross_entropy(g: torch.Generator) -> None:
    z, y = logits(11, 5, g=g), torch.randint(0, 5, (11,), generator=g)
    each = torch.nn.functional.cross_entropy(z, y, reduction="none")
    p = (-each).exp()
    told = dq.focal_loss(z, y, gamma=1.7, reduction="none")
    assert torch.allclose(told, (1 - p) ** 1.7 * each)
    assert torch.allclose(dq.focal_loss(z, y, gamma=0.0), each.mean())
    assert torch.allclose(dq.focal_loss(z, y, reduction="sum"), dq.focal_loss(z, y) * 11)


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=7), st.floats(0.0, 1.0))
def test_sampling_is_a_power_of_the_sizes(counts: list[int], alpha: float) -> None:
    if not sum(counts):
        return
    told = dq.sampling_probs(torch.tensor(counts), alpha=alpha)
    powers = [n**alpha if n else 0.0 for n in counts]
    assert torch.allclose(told, torch.tensor(powers).double() / sum(powers), rtol=1e-6)


def test_alpha_is_the_exponent_and_not_the_temperature() -> None:
    counts = torch.tensor([10**6, 10**3])
    assert [round(float(p), 3) for p in dq.sampling_probs(counts, alpha=0.3)] == [0.888, 0.112]
    # The same number read as a temperature: all weight on the large source.
    wrong = (counts.double() ** (1 / 0.3)).div((counts.double() ** (1 / 0.3)).sum())
    assert float(wrong[1]) < 2e-10


@given(st.integers(1, 60), st.floats(0.0, 0.9999))
def test_the_effective_number_follows_its_recursion(n: int, beta: float) -> None:
    told = dq.effective_number(torch.tensor([n, n + 1]), beta=beta)
    assert math.isclose(float(told[1]), 1 + beta * float(told[0]), rel_tol=1e-9)
    assert math.isclose(float(dq.effective_number(torch.tensor(1), beta=beta)), 1, rel_tol=1e-9)


def test_the_effective_number_counts_different_things(g: torch.Generator) -> None:
    kinds, n, trials = 11, 17, 4000
    drawn = torch.randint(0, kinds, (trials, n), generator=g)
    different = torch.nn.functional.one_hot(drawn, kinds).amax(1).sum(1).double()
    told = float(dq.effective_number(torch.tensor(n), beta=(kinds - 1) / kinds))
    assert abs(float(different.mean()) - told) < 5 * float(different.std()) / math.sqrt(trials)


def test_class_balanced_weights_lie_between_equal_and_inverse() -> None:
    counts = torch.tensor([500, 50, 5])
    equal = dq.class_balanced_weights(counts, beta=0.0)
    assert torch.allclose(equal, torch.ones(3, dtype=torch.float64))
    inverse = dq.class_balanced_weights(counts, beta=1 - 1e-9)
    assert torch.allclose(
        inverse / inverse[0], torch.tensor([1.0, 10.0, 100.0]).double(), rtol=1e-4
    )


# --- domains -------------------------------------------------------------------------------------


def test_the_excess_is_a_mean_over_the_tokens_of_each_domain() -> None:
    nats = torch.full((110,), 1 / 3, dtype=torch.float64)
    domains = torch.tensor([0] * 100 + [1] * 10)
    told = dq.domain_excess(nats, torch.zeros_like(nats), domains, 2)
    assert torch.allclose(told, torch.full((2,), 1 / 3, dtype=torch.float64))
    # Divided by all tokens, the small domain would all but vanish.
    pooled = torch.zeros(2).double().index_add(0, domains, nats) / 110
    assert float(pooled[1]) < 0.04


def test_the_excess_is_clipped_token_by_token_and_0_for_an_absent_domain() -> None:
    nats = torch.tensor([1.0, 3.0, 0.0])
    reference = torch.tensor([2.0, 1.0, 1.0])
    told = dq.domain_excess(nats, reference, torch.tensor([0, 0, 2]), 4)
    assert told.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_a_step_is_the_best_answer_at_a_price_in_kl(g: torch.Generator) -> None:
    weights, excess = logits(5, g=g).softmax(0), logits(5, g=g)
    new = dq.doremi_step(weights, excess, step=0.6, smoothing=0.0)

    def gain(a: torch.Tensor) -> float:
        return float((a * excess).sum() - (a * (a / weights).log()).sum() / 0.6)

    best = gain(new)
    for _ in range(50):
        other = (new.log() + 0.1 * logits(5, g=g)).softmax(0)
        assert gain(other) < best
    assert math.isclose(best, float(torch.logsumexp(weights.log() + 0.6 * excess, 0)) / 0.6)


def test_smoothing_keeps_every_domain_alive() -> None:
    weights = torch.tensor([0.5, 0.3, 0.2])
    new = dq.doremi_step(weights, torch.tensor([1000.0, 0.0, 0.0]), smoothing=0.03)
    assert torch.allclose(new, torch.tensor([0.98, 0.01, 0.01]), atol=1e-6)
    assert math.isclose(float(new.sum()), 1.0, rel_tol=1e-6)


def test_doremi_finds_the_mixture_of_a_game_with_a_known_value() -> None:
    """Two domains, one number to learn: losses (x-1)^2 and 3(x+1)^2, references 0 and 0."""

    def losses(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([(x - 1) ** 2, 3 * (x + 1) ** 2])

    x = torch.zeros((), dtype=torch.float64)
    state = dq.DoReMi.start(torch.ones(2))
    points = []
    for t in range(4000):
        state = state.step(losses(x), step=0.05 / math.sqrt(1 + t / 50), smoothing=0.0)
        a = state.weights
        x = (a[0] - 3 * a[1]) / (a[0] + 3 * a[1])  # the best answer of the model
        points.append(x)
    # At the saddle both losses are equal: x - 1 = -sqrt(3) (x + 1).
    saddle = (1 - math.sqrt(3)) / (1 + math.sqrt(3))
    assert abs(float(x) - saddle) < 1e-3
    weight = 3 * (saddle + 1) / (3 * (saddle + 1) + (1 - saddle))
    assert abs(float(state.weights[0]) - weight) < 1e-3
    assert abs(float(state.mean[0]) - weight) < 0.02
    assert state.steps == 4000


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: dq.importance_weights(torch.ones(2), torch.ones(3)), "the same shape"),
        (
            lambda: dq.importance_weights(torch.ones(2), torch.tensor([0.0, 1.0])),
            "positive wherever target is",
        ),
        (lambda: dq.importance_weights(torch.tensor([-1.0, 2.0]), torch.ones(2)), "they are laws"),
        (lambda: dq.effective_sample_size(torch.tensor([2.0, -1.0])), "one of them positive"),
        (lambda: dq.effective_sample_size(torch.zeros(2, 3)), "one of them positive"),
        (lambda: dq.effective_number(torch.tensor([2, -1]), beta=0.5), "the least is -1"),
        (lambda: dq.doremi_step(torch.ones(2) / 2, torch.tensor([0.0, torch.nan])), "excess"),
        (lambda: dq.adjust_logits(torch.zeros(3), torch.ones(2)), "prior"),
        (lambda: dq.adjust_logits(torch.zeros(2), torch.tensor([0.0, 1.0])), "prior must be"),
        (lambda: dq.focal_loss(torch.zeros(1, 2), torch.tensor([0]), gamma=-1.0), "gamma must"),
        (
            lambda: dq.focal_loss(torch.zeros(1, 2), torch.tensor([0]), reduction="all"),
            "unknown reduction 'all'",
        ),
        (lambda: dq.sampling_probs(torch.tensor([0, 0])), "one of them positive"),
        (lambda: dq.sampling_probs(torch.tensor([1, 2]), alpha=3.3), "alpha must"),
        (lambda: dq.effective_number(torch.tensor(3), beta=1.0), "beta must"),
        (lambda: dq.class_balanced_weights(torch.tensor([3, 0])), "counts must be 1 or more"),
        (
            lambda: dq.domain_excess(torch.ones(2), torch.ones(3), torch.zeros(2).long(), 2),
            "reference",
        ),
        (
            lambda: dq.domain_excess(torch.ones(2), torch.ones(2), torch.tensor([0, 2]), 2),
            "domains",
        ),
        (lambda: dq.doremi_step(torch.ones(2) / 2, torch.ones(3)), "excess"),
        (lambda: dq.doremi_step(torch.tensor([1.0, 0.0]), torch.ones(2)), "never comes back"),
        (lambda: dq.doremi_step(torch.ones(2) / 2, torch.ones(2), smoothing=1.0), "smoothing must"),
    ],
)
def test_what_is_out_of_its_domain_is_refused(wrong, said) -> None:
    with pytest.raises(ValueError, match=said):
        wrong()


def test_losses_and_weights_are_shapes_on_the_meta_device() -> None:
    z = torch.empty(5, 3, device="meta")
    y = torch.empty(5, dtype=torch.long, device="meta")
    prior = torch.empty(3, device="meta")
    assert dq.logit_adjusted_cross_entropy(z, y, prior).device.type == "meta"
    assert dq.focal_loss(z, y, reduction="none").shape == (5,)
    assert dq.adjust_logits(z, prior).shape == (5, 3)
    assert dq.sampling_probs(prior).device.type == "meta"
    assert dq.class_balanced_weights(y).device.type == "meta"
    assert dq.domain_excess(z[:, 0], z[:, 1], y, 4).shape == (4,)
    assert dq.doremi_step(prior, prior).device.type == "meta"
    assert dq.importance_weights(prior, prior).device.type == "meta"


def test_small_shares_keep_their_weight_in_half_precision() -> None:
    target, source = torch.tensor([0.5, 0.5]).half(), torch.tensor([1e-5, 1.0]).half()
    expected = target.double() / source.double()
    assert torch.allclose(dq.importance_weights(target, source).double(), expected, rtol=2e-3)
    assert dq.importance_weights(target, torch.tensor([torch.nan, 1.0]).half())[0].isnan()


def test_a_run_of_no_steps_has_the_mixture_it_began_with(own_checks) -> None:
    state = dq.DoReMi.start(torch.tensor([1.0, 3.0]))
    assert state.mean.tolist() == [0.25, 0.75]
    after = state.step(torch.zeros(2), smoothing=0.0)
    assert torch.equal(after.mean, after.weights)
    with pytest.raises(ValueError, match="never comes back"):
        dq.DoReMi.start(torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("bad", [-1.0, torch.nan, torch.inf])
def test_sizes_that_are_no_sizes_are_refused(bad: float, own_checks) -> None:
    with pytest.raises(ValueError, match="counts must be finite"):
        dq.sampling_probs(torch.tensor([bad, 2.0]))
