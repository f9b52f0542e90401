"""Losses of policies: what each must give by hand, what may not matter, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.frontiers.reinforcement import (
    clipped_share,
    grpo_advantages,
    grpo_loss,
    importance_weights,
    kl_estimate,
    penalized_rewards,
    ppo_loss,
    reinforce_loss,
    rloo_advantages,
    value_loss,
)

B, T = 5, 7


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value(tensor: Tensor) -> float:
    return float(tensor.detach())


def texts(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities new and old, advantages, and a mask of five lengths."""
    new = (-numbers(B, T, seed=seed).abs()).requires_grad_()
    old = new.detach() + 0.3 * numbers(B, T, seed=seed + 1)
    real = torch.arange(T) < torch.tensor([7, 1, 3, 5, 2])[:, None]
    return new, old, numbers(B, seed=seed + 2), real


def test_the_minimum_of_ppo_comes_after_multiplying() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    for rho, advantage, loss, slope in (
        (1.5, -1.0, 1.5, 1.5),  # not 1.2: a bad choice that became likelier is pushed back
        (0.5, -1.0, 0.8, 0.0),
        (1.5, 1.0, -1.2, 0.0),
        (0.5, 1.0, -0.5, -0.5),
        (1.1, 1.0, -1.1, -1.1),
    ):
        new = (rho * one).log().requires_grad_()
        made = ppo_loss(new, 0 * one, advantage * one, one.bool())
        (grad,) = torch.autograd.grad(made, new)
        assert value(made) == pytest.approx(loss, abs=1e-12)
        assert float(grad) == pytest.approx(slope, abs=1e-12)  # d rho / d log rho = rho


def test_ppo_has_no_bound_for_a_bad_choice_and_the_dual_clip_gives_one() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    far = (50.0 * one).log().requires_grad_()
    assert value(ppo_loss(far, 0 * one, -one, one.bool())) == pytest.approx(50.0)
    made = ppo_loss(far, 0 * one, -one, one.bool(), dual_clip=3.0)
    assert value(made) == pytest.approx(3.0)
    assert float(torch.autograd.grad(made, far)[0]) == 0.0
    # For a good choice it changes nothing, however unlikely that has become.
    near = (0.01 * one).log()
    assert float(ppo_loss(near, 0 * one, one, one.bool(), dual_clip=3.0)) == pytest.approx(-0.01)
    for c in (1.0, 0.5):
        with pytest.raises(ValueError, match=r"dual_clip must lie in \(1\.0"):
            ppo_loss(far, 0 * one, -one, one.bool(), dual_clip=c)


def test_the_share_of_clipped_tokens_counts_the_side_that_acts() -> None:
    # Of eight that count, 1 moved up with a good sign, 2 down with a bad one, 5 otherwise.
    rho = torch.tensor([[1.5, 0.5, 0.6, 1.5, 1.6, 1.7, 0.5, 1.0, 7.0]], dtype=torch.float64)
    sign = torch.tensor([[1.0, -1, -1, -1, -1, -1, 1, 1, 1]], dtype=torch.float64)
    real = torch.tensor([[True] * 8 + [False]])
    assert float(clipped_share(rho.log(), 0 * rho, sign, real)) == pytest.approx(3 / 8)


def test_three_right_of_eight() -> None:
    rewards = torch.tensor([[1.0, 1, 1, 0, 0, 0, 0, 0]], dtype=torch.float64)

    def two(made: Tensor) -> list[float]:
        return [round(float(made[0, 0]), 4), round(float(made[0, -1]), 4)]

    assert two(grpo_advantages(rewards)) == [1.2076, -0.7246]
    assert two(grpo_advantages(rewards, ddof=0)) == [1.2910, -0.7746]
    assert two(grpo_advantages(rewards, scale="none")) == [0.625, -0.375]
    assert two(rloo_advantages(rewards)) == [0.7143, -0.4286]
    # One reward of four is no reason for an advantage of a million.
    assert float(grpo_advantages(torch.tensor([[1.0, 0, 0, 0]])).abs().max()) < 2


@pytest.mark.parametrize("advantages", [grpo_advantages, rloo_advantages])
def test_groups_that_say_nothing_get_zero(advantages) -> None:
    tenth = torch.tensor([[0.1] * 7, [0.3] * 7], dtype=torch.float64)
    assert float(advantages(tenth).abs().max()) < 1e-15
    assert advantages(torch.tensor([[5.0], [3.0]])).tolist() == [[0.0], [0.0]]
    with pytest.raises(ValueError, match="rewards must be finite"):
        advantages(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(ValueError, match="an axis of a group"):
        advantages(torch.empty(3, 0))


def test_equal_rewards_of_a_sum_that_rounds_are_exactly_zero() -> None:
    third = torch.full((1, 3), 0.1, dtype=torch.float32)  # their mean is not 0.1
    assert grpo_advantages(third).tolist() == [[0.0, 0.0, 0.0]]


def test_the_scale_of_a_batch_is_one_for_all_groups() -> None:
    rewards = numbers(3, 5)
    centered = rewards - rewards.mean(1, keepdim=True)
    torch.testing.assert_close(grpo_advantages(rewards, scale="batch"), centered / rewards.std())
    more = grpo_advantages(rewards, eps=1e-4)
    by_hand = centered / (rewards.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(more, by_hand)


def test_long_wrong_answers_are_punished_less_unless_tokens_count_alike() -> None:
    real = torch.arange(100) < torch.tensor([10, 100])[:, None]
    bad = -torch.ones(2, dtype=torch.float64)

    def weights(**how) -> list[float]:
        new = torch.zeros(2, 100, dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(grpo_loss(new, bad, real, **how), new)
        return [float(grad[0, 0]), float(grad[1, 0])]

    assert weights() == pytest.approx([0.1 / 2, 0.01 / 2])
    assert weights(normalize="token") == pytest.approx([1 / 110, 1 / 110])
    assert weights(normalize="length", length=200) == pytest.approx([1 / 400, 1 / 400])
    assert weights(normalize="sum") == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("normalize", ["sequence", "token", "length", "sum"])
def test_a_step_in_parts_is_a_step_at_once(normalize) -> None:
    new, old, advantages, real = texts()
    length = 11 if normalize == "length" else None
    how = {"normalize": normalize, "length": length}
    whole = grpo_loss(new, advantages, real, old_log_probs=old, **how)
    total = int(real.sum()) if normalize == "token" else B
    parts = sum(
        grpo_loss(new[p], advantages[p], real[p], old_log_probs=old[p], total=total, **how)
        for p in (slice(0, 2), slice(2, 5))
    )
    torch.testing.assert_close(parts, whole)
    # Without the total the mean of means is another number: lengths differ.
    wrong = [
        grpo_loss(new[p], advantages[p], real[p], old_log_probs=old[p], **how)
        for p in (slice(0, 2), slice(2, 5))
    ]
    assert abs(value(sum(wrong) / 2 - whole)) > 1e-3


def losses(new: Tensor, old: Tensor, advantages: Tensor, real: Tensor) -> dict[str, Tensor]:
    ref = old - 0.1
    rows = {"old_log_probs": old}
    return {
        "reinforce": reinforce_loss(new, advantages, real),
        "ppo": ppo_loss(new, old, advantages, real),
        "grpo": grpo_loss(new, advantages, real, **rows),
        "grpo and k3": grpo_loss(new, advantages, real, reference=ref, beta=0.1, **rows),
        "gspo": grpo_loss(new, advantages, real, level="sequence", **rows),
        "cispo": grpo_loss(new, advantages, real, surrogate="cispo", **rows),
        "weights": grpo_loss(new, advantages, real, weights=old.exp(), **rows),
        "value": value_loss(new, old, real),
        "clipped": clipped_share(new, old, advantages, real),
    }


@pytest.mark.parametrize("junk", [math.inf, -math.inf, math.nan, 1e30])
def test_places_that_do_not_count_may_hold_anything(junk) -> None:
    new, old, advantages, real = texts()
    clean = losses(new, old, advantages, real)
    filled = new.detach().masked_fill(~real, junk).requires_grad_()
    for name, made in losses(filled, old.masked_fill(~real, -junk), advantages, real).items():
        torch.testing.assert_close(made.detach(), clean[name].detach())
        if made.requires_grad:
            (grad,) = torch.autograd.grad(made, filled, retain_graph=True)
            (want,) = torch.autograd.grad(clean[name], new, retain_graph=True)
            torch.testing.assert_close(grad, want)


def test_a_text_of_no_token_counts_as_nothing() -> None:
    new, old, advantages, real = texts()
    real = real.clone()
    real[2] = False
    for name, made in losses(new, old, advantages, real).items():
        assert bool(torch.isfinite(made)), name
    empty = torch.zeros_like(real)
    for name, made in losses(new, old, advantages, empty).items():
        assert value(made) == 0.0, name


def test_inputs_stay_as_they_were_and_only_the_policy_gets_a_gradient() -> None:
    new, old, advantages, real = texts()
    old.requires_grad_()
    advantages.requires_grad_()
    before = [t.detach().clone() for t in (new, old, advantages, real)]
    for name, made in losses(new, old, advantages, real).items():
        if name not in ("clipped", "value"):
            grads = torch.autograd.grad(
                made, (new, old, advantages), allow_unused=True, retain_graph=True
            )
            assert grads[0] is not None
            assert grads[1] is grads[2] is None, name
    for now, then in zip((new, old, advantages, real), before, strict=True):
        assert torch.equal(now.detach(), then)


def test_on_its_own_texts_grpo_is_reinforce() -> None:
    new, _, advantages, real = texts()
    (ours,) = torch.autograd.grad(grpo_loss(new, advantages, real, normalize="sum"), new)
    (plain,) = torch.autograd.grad(reinforce_loss(new, advantages, real), new)
    torch.testing.assert_close(ours, plain)


def test_the_ratio_of_a_text_is_the_geometric_mean_of_its_tokens() -> None:
    new, old, advantages, real = texts()
    count = real.sum(1)
    ratio = (((new - old) * real).sum(1) / count).exp()
    clipped = ratio.clamp(0.8, 1.2)
    by_hand = -torch.minimum(ratio * advantages, clipped * advantages).mean()
    made = grpo_loss(new, advantages, real, old_log_probs=old, level="sequence")
    torch.testing.assert_close(made, by_hand)


def test_with_sums_each_text_counts_by_its_length() -> None:
    # LUSPO: the loss of GSPO for a text, times its length.
    new, old, advantages, real = texts()
    how = {"old_log_probs": old, "level": "sequence"}
    alone = [
        grpo_loss(new[[i]], advantages[[i]], real[[i]], old_log_probs=old[[i]], level="sequence")
        for i in range(B)
    ]
    by_hand = (torch.stack(alone) * real.sum(1)).mean()
    torch.testing.assert_close(grpo_loss(new, advantages, real, normalize="sum", **how), by_hand)
    assert abs(value(grpo_loss(new, advantages, real, **how) - by_hand)) > 1e-2


def test_cispo_leaves_each_token_its_gradient() -> None:
    one = torch.ones(1, 2, dtype=torch.float64)
    new = torch.tensor([[3.0, 0.5]], dtype=torch.float64).log().requires_grad_()
    made = grpo_loss(new, one[:, 0], one.bool(), old_log_probs=0 * one, surrogate="cispo")
    (grad,) = torch.autograd.grad(made, new)
    assert grad[0].tolist() == pytest.approx([-1.2 / 2, -0.5 / 2])


def test_the_correction_of_the_divergence_is_unbiased_on_old_texts() -> None:
    # All outcomes of one token, weighed as the old policy drew them.
    pi, old, ref = (numbers(11, seed=s).softmax(0) for s in (1, 2, 3))
    kl = (pi * (pi / ref).log()).sum()
    zero = torch.zeros(1, dtype=torch.float64)
    yes = torch.ones(1, 1, dtype=torch.bool)

    def mean(**how) -> Tensor:
        return sum(
            old[i]
            * grpo_loss(
                pi[i].log().view(1, 1),
                zero,
                yes,
                old_log_probs=old[i].log().view(1, 1),
                reference=ref[i].log().view(1, 1),
                beta=1.0,
                **how,
            )
            for i in range(11)
        )

    torch.testing.assert_close(mean(corrected=True), kl)
    assert abs(value(mean() - kl)) > 1e-2


# --- divergence ----------------------------------------------------------------------------------


def test_values_of_the_estimators_in_a_small_world() -> None:
    pi = torch.tensor([0.8, 0.2], dtype=torch.float64)
    ref = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for name, mean, variance in (
        ("k1", 0.19274, 0.3075),
        ("k2", 0.17232, None),
        ("k3", 0.19274, 0.0382),
    ):
        k = kl_estimate(pi.log(), ref.log(), estimator=name)
        found = float((pi * k).sum())
        assert found == pytest.approx(mean, abs=5e-6)
        if variance is not None:
            assert float((pi * (k - found).square()).sum()) == pytest.approx(variance, abs=5e-5)


def test_a_right_value_may_have_a_wrong_gradient() -> None:
    ref = torch.tensor([0.5, 0.5], dtype=torch.float64)

    def gradient(of) -> float:
        logits = torch.tensor([math.log(4.0), 0.0], dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(of(logits.log_softmax(0)), logits)
        return float(grad[0])

    def as_loss(name):
        # The draw is fixed: only the estimate is differentiated.
        return lambda logp: (
            logp.detach().exp() * kl_estimate(logp, ref.log(), estimator=name)
        ).sum()

    def true(logp):
        return (logp.exp() * (logp - ref.log())).sum()

    def in_reward(logp):
        fixed = kl_estimate(logp.detach(), ref.log(), estimator="k1")
        return (logp.detach().exp() * logp * fixed).sum()

    assert gradient(true) == pytest.approx(0.2218, abs=5e-5)
    assert gradient(in_reward) == pytest.approx(0.2218, abs=5e-5)
    assert gradient(as_loss("k1")) == pytest.approx(0.0, abs=1e-12)
    assert gradient(as_loss("k2")) == pytest.approx(0.2218, abs=5e-5)
    assert gradient(as_loss("k3")) == pytest.approx(0.3, abs=1e-12)  # of KL(ref, pi)


def test_k3_keeps_its_digits_where_policies_nearly_agree() -> None:
    a = torch.tensor([-1.0], dtype=torch.float32)
    b = torch.tensor([-1.0 + 1e-4], dtype=torch.float32)
    exact = float(kl_estimate(a.double(), b.double()))
    assert float(kl_estimate(a, b)) == pytest.approx(exact, rel=0.3)  # exp(x) - 1 - x gives 0 here
    naive = torch.exp(b - a) - 1 - (b - a)
    assert abs(float(naive) - exact) > 0.3 * exact


@given(st.floats(-20, 20), st.floats(-20, 20))
@settings(max_examples=50, deadline=None)
def test_k2_and_k3_are_never_negative(a: float, b: float) -> None:
    for name in ("k2", "k3"):
        made = kl_estimate(torch.tensor([a]).double(), torch.tensor([b]).double(), estimator=name)
        assert value(made) >= 0.0


def test_the_price_is_paid_by_each_token_and_the_reward_at_the_last() -> None:
    new, ref, rewards, real = texts()
    made = penalized_rewards(rewards, new, ref, real, beta=0.3)
    by_hand = torch.zeros(B, T, dtype=torch.float64)
    for i in range(B):
        for t in range(int(real[i].sum())):
            by_hand[i, t] = -0.3 * (new[i, t].detach() - ref[i, t])
        by_hand[i, int(real[i].sum()) - 1] += rewards[i]
    torch.testing.assert_close(made, by_hand)
    assert not made.requires_grad
    # A gap in the middle, where a tool wrote, is charged nothing.
    gap = torch.tensor([[True, False, True, False]])
    row = penalized_rewards(torch.ones(1), torch.zeros(1, 4), -torch.ones(1, 4), gap, beta=0.1)
    torch.testing.assert_close(row, torch.tensor([[-0.1, 0.0, 0.9, 0.0]]))


# --- other samplers ------------------------------------------------------------------------------


def test_a_sampler_that_renormalizes_makes_the_ratio_the_mass_it_kept() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    kept = torch.tensor([[0.5, 0.3]], dtype=torch.float64) / 0.8
    yes = torch.ones(1, 2, dtype=torch.bool)
    weights = importance_weights(p[:, :2].log(), kept.log(), yes)
    assert weights[0].tolist() == pytest.approx([0.8, 0.8])


def test_levels_caps_and_masks_of_the_correction() -> None:
    ratio = torch.tensor([[4.0, 0.5, 3.0], [0.9, 1.0, 9.0]], dtype=torch.float64)
    real = torch.tensor([[True, True, True], [True, True, False]])

    def found(**how) -> list[list[float]]:
        made = importance_weights(ratio.log(), 0 * ratio, real, **how)
        return [[round(x, 6) for x in row] for row in made.tolist()]

    assert found() == [[2.0, 0.5, 2.0], [0.9, 1.0, 0.0]]
    assert found(beyond="mask") == [[0.0, 0.5, 0.0], [0.9, 1.0, 0.0]]
    assert found(level="sequence", cap=100.0) == [[6.0] * 3, [0.9, 0.9, 0.0]]
    mean = [round(6 ** (1 / 3), 6)] * 3
    assert found(level="geometric") == [mean, [round(0.9**0.5, 6)] * 2 + [0.0]]


# --- refusals ------------------------------------------------------------------------------------

NEW, OLD, A, REAL = texts()


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("real must be boolean", lambda: reinforce_loss(NEW, A, REAL.double())),
        ("normalize must be one of", lambda: reinforce_loss(NEW, A, REAL, normalize="mean")),
        ("pass length= with it", lambda: grpo_loss(NEW, A, REAL, normalize="length")),
        ("and with no other", lambda: grpo_loss(NEW, A, REAL, length=3)),
        ("beta > 0 needs reference=", lambda: grpo_loss(NEW, A, REAL, beta=0.1)),
        ("reference= needs beta > 0", lambda: grpo_loss(NEW, A, REAL, reference=OLD)),
        ("put it into the rewards", lambda: grpo_loss(NEW, A, REAL, estimator="k1")),
        ("needs beta > 0", lambda: grpo_loss(NEW, A, REAL, corrected=True)),
        (
            "does nothing",
            lambda: grpo_loss(NEW, A, REAL, surrogate="cispo", dual_clip=3.0),
        ),
        ('surrogate must be "clip"', lambda: grpo_loss(NEW, A, REAL, surrogate="ppo")),
        ('level must be "token"', lambda: grpo_loss(NEW, A, REAL, level="text")),
        ("advantages must be finite", lambda: grpo_loss(NEW, A / 0, REAL)),
        ("advantages must have shape", lambda: grpo_loss(NEW, A[:3], REAL)),
        ("old_log_probs must have shape", lambda: ppo_loss(NEW, OLD[:, :3], A, REAL)),
        (r"clip below must lie in \[0", lambda: ppo_loss(NEW, OLD, A, REAL, clip=1.5)),
        ("total must lie in", lambda: grpo_loss(NEW, A, REAL, total=0)),
        ("pass both, or neither", lambda: value_loss(NEW, OLD, REAL, clip=0.2)),
        ("cap must lie in", lambda: importance_weights(NEW, OLD, REAL, cap=0.5)),
        ('beyond must be "truncate"', lambda: importance_weights(NEW, OLD, REAL, beyond="drop")),
        ('level must be "token", "seq', lambda: importance_weights(NEW, OLD, REAL, level="a")),
        ('estimator must be "k1"', lambda: kl_estimate(NEW, OLD, estimator="k4")),
        ("scale must be", lambda: grpo_advantages(A[None], scale="sd")),
        ("ddof must be 0 or 1", lambda: grpo_advantages(A[None], ddof=2)),
    ],
)
def test_what_cannot_work_is_refused(own_checks, message, call) -> None:
    with pytest.raises(ValueError, match=message):
        call()
