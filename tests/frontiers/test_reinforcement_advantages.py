"""Advantages that look ahead, policies that are known exactly, and what a baseline may do."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.frontiers.reinforcement import (
    all_texts,
    bandit_gradient,
    fit_overoptimization,
    gae,
    grpo_advantages,
    kl_optimum,
    optimal_baseline,
    overoptimization,
    rloo_advantages,
)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(r, v, real, gamma, lam, last):
    """One text after another, and one token after another from the end."""
    out = torch.zeros_like(r)
    for i in range(len(r)):
        ahead, after = 0.0, float(last[i])
        for t in reversed(range(r.shape[1])):
            if real[i, t]:
                ahead = float(r[i, t] + gamma * after - v[i, t]) + gamma * lam * ahead
                out[i, t] = ahead
                after = float(v[i, t])
    return out


@pytest.mark.parametrize("length", [1, 2, 3, 7, 11, 13])
def test_doubling_is_the_loop_over_tokens(length: int) -> None:
    r, v = numbers(5, length), numbers(5, length, seed=1)
    real = torch.rand(5, length, generator=torch.Generator().manual_seed(2)) < 0.7
    last = numbers(5, seed=3)
    made = gae(r, v, gamma=0.97, lam=0.9, real=real, last_value=last)
    want = by_hand(r, v, real, 0.97, 0.9, last)
    torch.testing.assert_close(made.advantages, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.returns, (want + v) * real, rtol=1e-12, atol=1e-12)


def test_what_is_masked_lends_no_value() -> None:
    r, v = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.0, 100.0]])
    real = torch.tensor([[True, True, False]])
    assert gae(r, v, lam=0.95, real=real).advantages[0].tolist() == pytest.approx([0.95, 1.0, 0.0])


def test_what_a_tool_writes_costs_no_time() -> None:
    r = torch.tensor([[0.0, 5.0, 5.0, 1.0]])
    real = torch.tensor([[True, False, False, True]])
    found = gae(r, 0 * r, gamma=0.9, lam=0.8, real=real).advantages[0].tolist()
    assert found == pytest.approx([0.72, 0.0, 0.0, 1.0])


def test_a_text_that_was_cut_off_goes_on_and_one_that_ended_does_not() -> None:
    r, v = torch.tensor([[1.0]]), torch.tensor([[0.5]])
    cut = gae(r, v, gamma=0.99, last_value=torch.tensor([10.0]))
    assert float(cut.advantages) == pytest.approx(10.4)
    assert float(gae(r, v, gamma=0.99).advantages) == pytest.approx(0.5)


def test_both_ends_of_lambda() -> None:
    r, v = numbers(3, 7), numbers(3, 7, seed=1)
    after = torch.cat([v[:, 1:], torch.zeros(3, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(gae(r, v, gamma=0.9, lam=0.0).advantages, r + 0.9 * after - v)
    powers = 0.9 ** torch.arange(7, dtype=torch.float64)
    returns = torch.stack([(r[:, t:] * powers[: 7 - t]).sum(1) for t in range(7)], 1)
    torch.testing.assert_close(gae(r, v, gamma=0.9, lam=1.0).advantages, returns - v)
    torch.testing.assert_close(gae(r, v, gamma=0.9, lam=1.0).returns, returns)


@given(st.integers(1, 9), st.integers(1, 13), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_padding_on_the_right_changes_nothing(batch, length, gamma, lam, seed) -> None:
    r, v = numbers(batch, length, seed=seed), numbers(batch, length, seed=seed + 1)
    short = gae(r, v, gamma=gamma, lam=lam)
    pad = torch.full((batch, 3), 7.0, dtype=torch.float64)
    real = torch.arange(length + 3) < length
    wide = gae(
        torch.cat([r, pad], 1),
        torch.cat([v, pad], 1),
        gamma=gamma,
        lam=lam,
        real=real.expand(batch, -1),
    )
    torch.testing.assert_close(wide.advantages[:, :length], short.advantages)
    assert float(wide.advantages[:, length:].abs().max()) == 0.0


# --- gradients of small policies -----------------------------------------------------------------


def test_the_exact_gradient_of_three_actions() -> None:
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    r = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    assert bandit_gradient(p.log(), r).tolist() == pytest.approx([-0.35, 0.09, 0.26])
    z = numbers(4, 5).requires_grad_()
    other = numbers(4, 5, seed=1)
    (auto,) = torch.autograd.grad((z.softmax(1) * other).sum(), z)
    torch.testing.assert_close(bandit_gradient(z.detach(), other), auto)


def variance(p: Tensor, r: Tensor, baseline: Tensor) -> float:
    """Of the estimate (r - b) grad log p of one draw, summed over its entries, exactly."""
    score = torch.eye(len(p), dtype=p.dtype) - p
    draws = score * (r - baseline)[:, None]
    mean = (p[:, None] * draws).sum(0)
    return float((p[:, None] * (draws - mean).square()).sum())


def test_the_best_baseline_is_best_and_the_mean_reward_is_not() -> None:
    p, r = numbers(5).softmax(0), numbers(5, seed=1)
    score = torch.eye(5, dtype=torch.float64) - p
    # Rows weighed by their probability: expectations in place of means.
    square = p * score.square().sum(1)
    best = (square * r).sum() / square.sum()
    rows = torch.repeat_interleave(torch.arange(5), torch.tensor([2, 3, 5, 7, 11]))
    counts = torch.bincount(rows).double()
    share = counts / counts.sum()
    drawn = optimal_baseline(score[rows], r[rows])
    want = (share * score.square().sum(1) * r).sum() / (share * score.square().sum(1)).sum()
    torch.testing.assert_close(drawn, want)
    least = variance(p, r, best)
    assert least < variance(p, r, (p * r).sum()) < variance(p, r, torch.tensor(3.0))
    for off in (-0.1, 0.1):
        assert variance(p, r, best + off) > least


def test_leaving_one_out_is_unbiased_and_dividing_by_the_spread_is_not() -> None:
    p, r = numbers(3).softmax(0), torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    score = torch.eye(3, dtype=torch.float64) - p
    groups = all_texts(3, 4)  # every group of four draws
    chance = p[groups].prod(1)
    true = bandit_gradient(p.log(), r)

    def mean(advantages: Tensor) -> Tensor:
        return (chance[:, None, None] * advantages[..., None] * score[groups]).mean(1).sum(0)

    torch.testing.assert_close(mean(rloo_advantages(r[groups])), true)
    # A baseline with the answer itself in it shrinks the gradient by (G - 1) / G.
    centered = r[groups] - r[groups].mean(1, keepdim=True)
    torch.testing.assert_close(mean(centered), 0.75 * true)
    scaled = mean(grpo_advantages(r[groups]))
    cosine = float(torch.nn.functional.cosine_similarity(scaled, true, dim=0))
    assert cosine < 0.9999  # not even the direction is kept


# --- the optimum ---------------------------------------------------------------------------------


def test_the_optimum_of_three_outcomes() -> None:
    ref = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    r = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    best = kl_optimum(ref.log(), r, beta=1.0)
    assert [round(x, 4) for x in best.log_probs.exp().tolist()] == [0.1790, 0.2919, 0.5291]
    assert float(best.value) == pytest.approx(1.02722, abs=5e-6)
    assert float(best.reward - best.kl) == pytest.approx(float(best.value))
    p = best.log_probs.exp()
    assert float(best.kl) == pytest.approx(float((p * (p / ref).log()).sum()))


@given(st.integers(0, 999), st.floats(0.05, 5.0))
@settings(max_examples=40, deadline=None)
def test_no_policy_is_better_than_the_optimum(seed: int, beta: float) -> None:
    ref, r, other = (numbers(7, seed=seed + k) for k in range(3))
    best = kl_optimum(ref, r, beta=beta)
    q, base = other.softmax(0), ref.log_softmax(0)
    worth = (q * r).sum() - beta * (q * (q.log() - base)).sum()
    gap = beta * (q * (q.log() - best.log_probs)).sum()  # what is lost is a divergence
    away = (best.log_probs.exp() * (best.log_probs - base)).sum()
    assert float(best.kl) == pytest.approx(float(away), abs=1e-9)
    assert float(best.value - worth) == pytest.approx(float(gap), abs=1e-9)
    assert float(gap) >= 0


def test_what_is_impossible_stays_so() -> None:
    ref = torch.tensor([0.0, -math.inf, 1.0], dtype=torch.float64)
    best = kl_optimum(ref, torch.tensor([0.0, 100.0, 1.0], dtype=torch.float64), beta=0.1)
    assert float(best.log_probs[1]) == -math.inf
    assert bool(torch.isfinite(best.value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_divergence_keeps_its_digits_at_every_price(dtype) -> None:
    ref = torch.tensor([0.5, 0.3, 0.2], dtype=dtype)
    r = torch.tensor([0.0, 1.0, 1.0], dtype=dtype)
    # Almost for nothing: all on the two best, in the proportions of the reference.
    best = kl_optimum(ref.log(), r, beta=1e-30)
    assert best.log_probs.exp().tolist() == pytest.approx([0.0, 0.6, 0.4])
    assert float(best.kl) == pytest.approx(math.log(2))
    assert float(best.value) == pytest.approx(1.0)
    # At a high price the divergence is the variance of the rewards over 2 beta^2.
    best = kl_optimum(ref.log(), r, beta=1e4)
    assert float(best.kl) == pytest.approx(0.25 / 2e8, rel=1e-2 if dtype == torch.float32 else 1e-4)
    # And in between: also where the best outcome is impossible, and pays most.
    ref = torch.tensor([0.5, 0.5, 0.0], dtype=dtype)
    best = kl_optimum(ref.log(), torch.tensor([0.0, 2.0, 9.0], dtype=dtype), beta=0.5)
    p = 1 / (1 + math.exp(-4))
    want = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert float(best.kl) == pytest.approx(want, rel=1e-5)
    assert float(best.reward) == pytest.approx(2 * p)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_say_exactly_nothing(scale) -> None:
    # The mean of seven times 0.1 is not 0.1 in float64.
    rewards = torch.tensor([[0.1] * 7, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0]], dtype=torch.float64)
    for made in (grpo_advantages(rewards, scale=scale), rloo_advantages(rewards)):
        assert made[0].tolist() == [0.0] * 7
        assert bool((made[1] != 0).all())
    assert rloo_advantages(torch.tensor([[3.0]])).tolist() == [[0.0]]


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_the_unit_of_rewards_does_not_matter(unit) -> None:
    rewards = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0]])
    for scale in ("group", "batch"):
        made = grpo_advantages(rewards * unit, scale=scale)
        torch.testing.assert_close(made, grpo_advantages(rewards, scale=scale))


def test_all_texts_are_all_and_in_order() -> None:
    made = all_texts(3, 4)
    assert made.shape == (81, 4)
    assert len({tuple(row) for row in made.tolist()}) == 81
    assert made.tolist() == sorted(made.tolist())
    with pytest.raises(ValueError, match="too many to list"):
        all_texts(11, 7)


# --- over-optimization ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bon", "rl"])
def test_a_law_is_found_again(kind) -> None:
    kl = numbers(7).abs() + 0.1
    fit = fit_overoptimization(kl, overoptimization(kl, 1.3, 0.4, kind=kind), kind=kind)
    assert (float(fit.alpha), float(fit.beta)) == pytest.approx((1.3, 0.4))
    assert float(fit.r2) == pytest.approx(1.0)
    bent = overoptimization(kl, 1.3, 0.4, kind=kind) + 0.3 * (kl - 1).square()
    worse = fit_overoptimization(kl, bent, kind=kind)
    left = bent - overoptimization(kl, worse.alpha, worse.beta, kind=kind)
    share = left.square().sum() / (bent - bent.mean()).square().sum()
    assert 0.01 < float(share) < 0.99
    assert float(worse.r2) == pytest.approx(1 - float(share))
    around = fit.peak + torch.tensor([-0.01, 0.0, 0.01], dtype=torch.float64)
    heights = overoptimization(around.square(), 1.3, 0.4, kind=kind)
    assert float(heights[1]) > max(float(heights[0]), float(heights[2]))


def test_a_law_without_a_hump_has_no_peak() -> None:
    kl = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    assert float(fit_overoptimization(kl, kl.sqrt() + kl, kind="bon").peak) == math.inf
    zero = torch.zeros(1, dtype=torch.float64)
    assert float(overoptimization(zero, 1.0, 1.0, kind="rl")) == 0.0  # 0 log 0


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("rewards must be", lambda: gae(torch.zeros(3, 5).long(), torch.zeros(3, 5))),
        ("rewards .* values", lambda: gae(torch.zeros(3, 5), torch.zeros(3, 7))),
        ("gamma must lie", lambda: gae(torch.zeros(3, 5), torch.zeros(3, 5), gamma=1.1)),
        ("lam must lie", lambda: gae(torch.zeros(3, 5), torch.zeros(3, 5), lam=-0.1)),
        (
            "last_value must have shape",
            lambda: gae(torch.zeros(3, 5), torch.zeros(3, 5), last_value=torch.zeros(5)),
        ),
        (
            "rewards must be finite",
            lambda: bandit_gradient(torch.zeros(2), torch.tensor([0.0, math.inf])),
        ),
        ("an entry that is not 0", lambda: optimal_baseline(torch.zeros(3, 5), torch.zeros(3))),
        (
            "an outcome possible",
            lambda: kl_optimum(torch.full((2,), -math.inf), torch.zeros(2), beta=1.0),
        ),
        ("outcomes must be 1", lambda: kl_optimum(torch.zeros(0), torch.zeros(0), beta=1.0)),
        ("kl must be divergences", lambda: overoptimization(-torch.ones(1), 1.0, 1.0, kind="rl")),
        (
            "kl must be divergences",
            lambda: fit_overoptimization(torch.tensor([-1.0, 1, 2]), torch.zeros(3), kind="rl"),
        ),
        (
            "two different divergences",
            lambda: fit_overoptimization(torch.tensor([0.0, 2, 2]), torch.zeros(3), kind="bon"),
        ),
        (
            "gain must be finite",
            lambda: fit_overoptimization(torch.tensor([1.0, 2]), torch.ones(2) / 0, kind="bon"),
        ),
        ("beta must lie", lambda: kl_optimum(torch.zeros(3), torch.zeros(3), beta=0.0)),
        ("rewards must be finite", lambda: kl_optimum(torch.zeros(1), torch.ones(1) / 0, beta=1.0)),
        ("rewards must have shape", lambda: optimal_baseline(torch.zeros(3, 5), torch.zeros(5))),
        ('kind must be "bon"', lambda: overoptimization(torch.zeros(3), 1.0, 1.0, kind="dpo")),
        (
            "points must be 2 or more",
            lambda: fit_overoptimization(torch.ones(1), torch.ones(1), kind="rl"),
        ),
    ],
)
def test_what_cannot_work_is_refused(own_checks, message, call) -> None:
    with pytest.raises(ValueError, match=message):
        call()
