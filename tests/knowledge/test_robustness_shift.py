"""Shift: brute force over small worlds, absent groups, and the sign of a reversed gradient."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from companion.core import generator
from companion.knowledge.robustness import (
    GroupDRO,
    domain_weights,
    group_means,
    group_weights,
    hypothesis_divergence,
    proxy_a_distance,
    reverse_gradient,
    robust_value,
    weighted_risk,
)

D = torch.float64


def law(n: int, seed: int) -> Tensor:
    p = torch.rand(n, generator=generator(seed), dtype=D) + 0.05
    return p / p.sum()


@given(st.integers(0, 999))
def test_the_bound_holds_for_each_hypothesis_of_a_random_world(seed: int) -> None:
    g = generator(seed)
    answers = torch.randint(0, 2, (5, 7), generator=g)
    truth = torch.randint(0, 2, (7,), generator=g)
    source, target = law(7, seed), law(7, seed + 1)
    d = float(hypothesis_divergence(answers, source, target))
    pairs = [
        abs(float(((answers[i] != answers[j]) * (source - target)).sum()))
        for i, j in itertools.product(range(5), repeat=2)
    ]
    assert d == pytest.approx(2 * max(pairs))
    wrong = (answers != truth).to(D)
    here, there = wrong @ source, wrong @ target
    best = float((here + there).amin())
    assert bool((there <= here + d / 2 + best + 1e-12).all())


def test_weights_from_odds_are_the_ratio_and_make_the_risk_unbiased() -> None:
    source, target = law(5, 0), law(5, 1)
    odds = (200 * target / (300 * source)).log()
    weights = domain_weights(odds, sources=300, targets=200)
    torch.testing.assert_close(weights, target / source)
    losses = torch.rand(5, generator=generator(2), dtype=D)
    # Exactly in expectation: sum over what may be drawn.
    mean = sum(source[k] * weighted_risk(losses[k, None], weights[k, None]) for k in range(5))
    torch.testing.assert_close(mean, (target * losses).sum())
    twice = weighted_risk(losses, 2 * weights, normalize=True)
    torch.testing.assert_close(twice, weighted_risk(losses, weights, normalize=True))


def test_an_absent_group_keeps_its_weight() -> None:
    q = torch.tensor([0.2, 0.3, 0.5], dtype=D)
    means, present = group_means(torch.tensor([1.0, 3.0], dtype=D), torch.tensor([1, 1]), groups=3)
    assert means.tolist() == [0, 2, 0]
    assert present.tolist() == [False, True, False]
    torch.testing.assert_close(group_weights(q, means, present, step=5.0), q)
    both = torch.tensor([True, False, True])
    new = group_weights(q, torch.tensor([0.0, 9.0, 1.0], dtype=D), both, step=1.0)
    assert float(new[1]) == 0.3
    assert float(new.sum()) == pytest.approx(1)
    assert float(new[2] / new[0]) == pytest.approx(0.5 / 0.2 * math.e)
    none = torch.zeros(3, dtype=torch.bool)
    assert torch.equal(group_weights(q, means, none, step=1.0), q)


def test_large_losses_do_not_overflow() -> None:
    q = torch.full((2,), 0.5)
    new = group_weights(q, torch.tensor([1e4, 0.0]), torch.ones(2, dtype=torch.bool), step=1.0)
    assert new.tolist() == [1, 0]


def test_the_loss_is_a_sum_over_groups_and_no_mean_over_examples() -> None:
    dro = GroupDRO(2, step=1e-9, dtype=D)
    losses = torch.tensor([1.0, 1.0, 1.0, 5.0], dtype=D, requires_grad=True)
    group = torch.tensor([0, 0, 0, 1])
    loss = dro.loss(losses, group)
    assert loss.item() == pytest.approx(0.5 * 1 + 0.5 * 5)
    (slope,) = torch.autograd.grad(loss, losses)
    assert slope.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 0.5])
    assert not dro.weights.requires_grad


def test_weights_climb_to_the_worst_group_and_the_value_to_the_maximum() -> None:
    dro = GroupDRO(3, step=0.5, dtype=D)
    losses, group = torch.tensor([1.0, 2.0, 3.0], dtype=D), torch.arange(3)
    for _ in range(100):
        last = dro.loss(losses, group)
    assert float(last) == pytest.approx(3)
    assert float(robust_value(losses, step=1e4)) == pytest.approx(3, abs=1e-3)
    assert float(robust_value(losses, step=1e-6)) == pytest.approx(2, abs=1e-5)


def test_a_reversed_gradient_has_the_other_sign_and_nothing_else() -> None:
    x = torch.randn(3, 5, generator=generator(0), dtype=D, requires_grad=True)
    assert torch.equal(reverse_gradient(x, strength=0.7), x)
    (plain,) = torch.autograd.grad((x**3).sum(), x)
    (turned,) = torch.autograd.grad((reverse_gradient(x, strength=0.7) ** 3).sum(), x)
    torch.testing.assert_close(turned, -0.7 * plain)


def test_the_proxy_distance_has_its_ends() -> None:
    assert [proxy_a_distance(e) for e in (0.0, 0.25, 0.5, 0.8)] == [2.0, 1.0, 0.0, 0.0]


@pytest.mark.usefixtures("own_checks")
def test_what_makes_no_sense_is_refused() -> None:
    two = torch.ones(2)
    with pytest.raises(ValueError, match=r"error must lie in \[0.0, 1.0\]"):
        proxy_a_distance(1.2)
    with pytest.raises(ValueError, match=r"weights must be 0 or above, got -1\.0"):
        weighted_risk(two, -two)
    with pytest.raises(ValueError, match="losses and weights must have the same shape"):
        weighted_risk(two, torch.ones(3))
    with pytest.raises(ValueError, match=r"group .*\[0, 2\), got 2"):
        group_means(two, torch.tensor([0, 2]), groups=2)
    with pytest.raises(ValueError, match="targets must be 1 or more"):
        domain_weights(two, sources=3, targets=0)
    with pytest.raises(ValueError, match="source must have shape"):
        hypothesis_divergence(torch.ones(2, 3).long(), two, two)
    with pytest.raises(ValueError, match="strength must lie in"):
        reverse_gradient(two, strength=-1.0)
    with pytest.raises(ValueError, match="step must lie in"):
        GroupDRO(2, step=0.0)


def test_everything_runs_on_the_meta_device() -> None:
    losses = torch.empty(5, device="meta")
    group = torch.empty(5, dtype=torch.long, device="meta")
    assert GroupDRO(3, step=0.1, device="meta").loss(losses, group).is_meta
    assert robust_value(losses, step=1.0).is_meta
    assert reverse_gradient(losses, strength=1.0).is_meta
    assert domain_weights(losses, sources=2, targets=3).is_meta


def test_a_broken_loss_moves_no_weight() -> None:
    q, there = torch.tensor([0.25, 0.25, 0.5], dtype=D), torch.ones(3, dtype=torch.bool)
    for broken in (math.inf, math.nan):
        means = torch.tensor([broken, 1.0, 2.0], dtype=D)
        new = group_weights(q, means, there, step=1.0)
        assert float(new[0]) == 0.25
        assert float(new[2] / new[1]) == pytest.approx(2 * math.e)
        assert float(new.sum()) == pytest.approx(1)


@pytest.mark.usefixtures("own_checks")
def test_nothing_at_all_is_refused() -> None:
    none = torch.empty(0)
    with pytest.raises(ValueError, match="one hypothesis or more"):
        hypothesis_divergence(torch.empty(0, 2).long(), torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="one example or more"):
        weighted_risk(none, none)
    with pytest.raises(ValueError, match="must not all be 0"):
        weighted_risk(torch.ones(2), torch.zeros(2), normalize=True)
    with pytest.raises(ValueError, match="one group or more"):
        robust_value(none, step=1.0)
    with pytest.raises(ValueError, match="step must lie in"):
        robust_value(torch.ones(2), step=math.inf)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_large_groups_do_not_stop_growing(dtype: torch.dtype) -> None:
    # A sum of ones stops at 256 in bfloat16 and at 2,048 in float16.
    losses = torch.tensor([1.0] * 4000 + [2.0] * 4000, dtype=dtype)
    group = torch.zeros(8000, dtype=torch.long)
    means, present = group_means(losses, group, groups=2)
    assert means.dtype == dtype
    assert means.tolist() == [1.5, 0]
    assert present.tolist() == [True, False]
