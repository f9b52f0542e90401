"""Comparisons and judges: values by hand, what shifts leave alone, and what never wins."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.frontiers.reinforcement import (
    bradley_terry_loss,
    corrected_accuracy,
    correction,
    dpo_loss,
    fit_bradley_terry,
    kto_loss,
    majority_rewards,
    p_true,
    simpo_loss,
)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def four(*values: float) -> list[Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def test_dpo_by_hand() -> None:
    pair = four(-10.0, -12.0, -11.0, -11.0)
    pair[0].requires_grad_()
    pair[1].requires_grad_()
    made = dpo_loss(*pair, beta=0.1)
    assert float(made.loss.detach()) == pytest.approx(0.59814, abs=5e-6)
    up, down = torch.autograd.grad(made.loss, pair[:2])
    assert float(up) == pytest.approx(-0.04502, abs=5e-6)
    assert float(down) == pytest.approx(0.04502, abs=5e-6)
    assert float(made.chosen - made.rejected) == pytest.approx(0.2)
    same = four(-10.0, -12.0, -10.0, -12.0)
    assert float(dpo_loss(*same).loss) == pytest.approx(math.log(2))


def test_ipo_stops_where_dpo_goes_on() -> None:
    def slope(margin: float, variant) -> float:
        pair = four(margin, 0.0, 0.0, 0.0)
        pair[0].requires_grad_()
        (grad,) = torch.autograd.grad(dpo_loss(*pair, beta=0.25, variant=variant).loss, pair[0])
        return float(grad)

    assert slope(2.0, "ipo") == pytest.approx(0.0)  # at 1 / (2 beta)
    assert slope(3.0, "ipo") > 0 > slope(1.0, "ipo")
    assert slope(2.0, "sigmoid") < 0 > slope(30.0, "sigmoid")
    assert slope(3.9, "hinge") == pytest.approx(-0.25)
    assert slope(4.1, "hinge") == 0.0


def test_far_wrong_pairs_keep_their_gradient() -> None:
    pair = four(-1e4, 0.0, 0.0, -1e4)
    pair[0].requires_grad_()
    made = dpo_loss(*pair, beta=0.5)
    assert float(made.loss.detach()) == pytest.approx(1e4)
    assert float(torch.autograd.grad(made.loss, pair[0])[0]) == pytest.approx(-0.5)


def test_smoothing_mixes_both_labels() -> None:
    rows = [numbers(7, seed=s) for s in range(4)]
    plain, flipped = dpo_loss(*rows), dpo_loss(rows[1], rows[0], rows[3], rows[2])
    made = dpo_loss(*rows, smoothing=0.1).loss
    torch.testing.assert_close(made, 0.9 * plain.loss + 0.1 * flipped.loss)


def test_lengths_divide_log_ratios() -> None:
    rows = [numbers(5, seed=s) for s in range(4)]
    tokens = (torch.tensor([2, 3, 5, 7, 11]), torch.tensor([1, 1, 2, 3, 13]))
    for variant in ("sigmoid", "ipo", "hinge"):
        made = dpo_loss(*rows, beta=0.7, variant=variant, tokens=tokens).loss
        won, lost = ((rows[k] - rows[k + 2]) / tokens[k] for k in (0, 1))
        zero = torch.zeros_like(won)
        want = dpo_loss(won, lost, zero, zero, beta=0.7, variant=variant).loss
        torch.testing.assert_close(made, want)


@given(st.integers(0, 999), st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_a_reward_of_the_prompt_alone_changes_nothing(seed: int, shift: float) -> None:
    a, b, c, d = (numbers(5, seed=seed + k) for k in range(4))
    made = dpo_loss(a + shift, b + shift, c, d).loss
    torch.testing.assert_close(made, dpo_loss(a, b, c, d).loss, rtol=1e-9, atol=1e-9)
    made = bradley_terry_loss(a + shift, b + shift)
    torch.testing.assert_close(made, bradley_terry_loss(a, b), rtol=1e-9, atol=1e-9)


def test_simpo_looks_at_means_without_a_reference() -> None:
    long = four(-20.0, -5.0)
    tokens = (torch.tensor([10]), torch.tensor([2]))
    made = simpo_loss(*long, tokens, beta=2.0, margin=0.5)
    assert float(made) == pytest.approx(math.log1p(math.exp(-(2 * (-2.0) - 2 * (-2.5) - 0.5))))


def test_a_mean_divides_by_the_tokens_that_were_summed() -> None:
    # The end of a text is not scored here: it counts neither in the sum nor in the length.
    rows = torch.tensor([[-1.0, -2.0, -9.0, 0.0], [-3.0, -4.0, -5.0, -9.0]], dtype=torch.float64)
    scored = torch.tensor([[True, True, False, False], [True, True, True, False]])
    sums, lengths = (rows * scored).sum(1), scored.sum(1)
    assert (sums / lengths).tolist() == [-1.5, -4.0]
    tokens = (lengths[:1], lengths[1:])
    made = simpo_loss(sums[:1], sums[1:], tokens, beta=1.0, margin=0.0)
    assert float(made) == pytest.approx(math.log1p(math.exp(-2.5)))
    zero = torch.zeros(1, dtype=torch.float64)
    made = dpo_loss(sums[:1], sums[1:], zero, zero, beta=1.0, tokens=tokens).loss
    assert float(made) == pytest.approx(math.log1p(math.exp(-2.5)))  # not of -1 and -3


def test_kto_by_hand() -> None:
    logp, ref = four(-1.0, -3.0), four(-2.0, -2.0)
    good = torch.tensor([True, False])
    rows, base = torch.cat(logp).requires_grad_(), torch.cat(ref)

    def sigma(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    made = kto_loss(rows, base, good, kl=0.5, beta=0.2, weights=(1.0, 1.5))
    want = (1 - sigma(0.2 * 0.5) + 1.5 * (1 - sigma(0.2 * 1.5))) / 2
    assert float(made.detach()) == pytest.approx(want)
    (grad,) = torch.autograd.grad(made, rows)
    assert float(grad[0]) < 0 < float(grad[1])
    # A negative estimate of a divergence is an error of sampling.
    torch.testing.assert_close(
        kto_loss(rows, base, good, kl=-3.0), kto_loss(rows, base, good, kl=0.0)
    )


def test_the_gradient_of_the_likelihood_of_results() -> None:
    wins = torch.tensor([[0.0, 3, 1], [2, 0, 4], [2, 1, 0]], dtype=torch.float64)
    r = fit_bradley_terry(wins)
    games = wins + wins.T
    expected = (games * torch.sigmoid(r[:, None] - r)).sum(1)
    torch.testing.assert_close(expected, wins.sum(1), rtol=1e-10, atol=1e-10)
    assert abs(float(r.sum())) < 1e-12
    two = torch.tensor([[0.0, 7.0], [3.0, 0.0]], dtype=torch.float64)
    assert float(fit_bradley_terry(two)[0] * 2) == pytest.approx(math.log(7 / 3))


def test_results_without_a_finite_answer_are_refused_or_held_by_a_prior() -> None:
    sweep = torch.tensor([[0.0, 5.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="the best rewards are infinite"):
        fit_bradley_terry(sweep)
    apart = torch.block_diag(*[torch.tensor([[0.0, 1.0], [1.0, 0.0]])] * 2)
    with pytest.raises(ValueError, match="never met them"):
        fit_bradley_terry(apart)
    held = fit_bradley_terry(sweep.double(), prior=0.1)
    slope = 5 * torch.sigmoid(held[1] - held[0]) - 0.1 * held[0]
    assert abs(float(slope)) < 1e-9
    with pytest.raises(ValueError, match="wins must be 0 or more"):
        fit_bradley_terry(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
    with pytest.raises(ValueError, match="and finite"):
        fit_bradley_terry(torch.tensor([[0.0, math.nan], [1.0, 0.0]]))


# --- judging oneself -----------------------------------------------------------------------------


def test_belief_is_a_share_of_two_words() -> None:
    logits = numbers(5, 7)
    p = logits.softmax(1)
    want = (p[:, 1] + p[:, 3]) / (p[:, 1] + p[:, 3] + p[:, 6])
    torch.testing.assert_close(p_true(logits, [1, 3], [6]), want)
    far = torch.tensor([1e4, 0.0, -1.0], dtype=torch.float64)  # both words are all but impossible
    assert float(p_true(far, [1], [2])) == pytest.approx(1 / (1 + math.exp(-1)))
    with pytest.raises(ValueError, match="none shared"):
        p_true(logits, [1], [1, 2])
    with pytest.raises(ValueError, match=r"true must lie in \[0, 7\), got 7"):
        p_true(logits, [7], [1])


def test_no_answer_never_wins_a_vote() -> None:
    votes = torch.tensor([[-1, -1, -1, 5, 5], [-1] * 5, [1, 2, 3, 4, 5], [2, 2, 3, 3, 7]])
    made = majority_rewards(votes, none=-1)
    assert made[0].tolist() == [0, 0, 0, 1, 1]
    assert made[1].tolist() == [0] * 5
    assert made[2].tolist() == pytest.approx([0.2] * 5)
    assert made[3].tolist() == [0.5, 0.5, 0.5, 0.5, 0.0]
    assert majority_rewards(votes)[0].tolist() == [1, 1, 1, 0, 0]


def test_what_correcting_brings_is_gained_minus_lost(own_checks) -> None:
    g = torch.Generator().manual_seed(0)
    first, second, accept = (torch.rand(101, generator=g) < p for p in (0.6, 0.5, 0.3))
    made = correction(first, second, accept)
    assert float(made.after) == pytest.approx(float(made.before + made.gained - made.lost))
    assert float(made.changed) == pytest.approx(float(accept.double().mean()))
    some = torch.tensor([True, True, False, False, False, False, False])
    made = correction(some, ~some, torch.tensor([True, False, True, True, True, False, False]))
    assert (float(made.gained), float(made.lost)) == pytest.approx((3 / 7, 1 / 7))
    never = correction(first, second, torch.zeros_like(accept))
    assert float(never.before) == float(never.after)
    with pytest.raises(ValueError, match="second must be boolean"):
        correction(first, second.long(), accept)
    empty = torch.zeros(0, dtype=torch.bool)
    with pytest.raises(ValueError, match="there is no question"):
        correction(empty, empty, empty)


def test_a_judge_that_cannot_tell_leaves_the_accuracy_as_it_is() -> None:
    p = torch.tensor([0.1, 0.5, 0.83], dtype=torch.float64)
    torch.testing.assert_close(corrected_accuracy(p, t=0.37, f=0.37), p)
    torch.testing.assert_close(corrected_accuracy(p, t=1.0, f=0.0), 1 - (1 - p).square())
    assert bool((corrected_accuracy(p, t=0.2, f=0.9) < p).all())
    # Drawn: first tries, what is kept, and second tries.
    g = torch.Generator().manual_seed(0)
    n = 200_000
    one, two, u = torch.rand(3, n, generator=g, dtype=torch.float64)
    first, second = one < 0.3, two < 0.3
    keep = torch.where(first, u < 0.8, u < 0.4)
    found = float(correction(first, second, ~keep).after)
    want = float(corrected_accuracy(torch.tensor(0.3, dtype=torch.float64), t=0.8, f=0.4))
    assert abs(found - want) < 5 * math.sqrt(0.25 / n)
    with pytest.raises(ValueError, match=r"t must lie in \[0"):
        corrected_accuracy(p, t=1.2, f=0.1)
    for wrong in (-0.1, 1.2, math.nan):
        with pytest.raises(ValueError, match=r"f must lie in \[0"):
            corrected_accuracy(p, t=0.5, f=torch.tensor(wrong))
        with pytest.raises(ValueError, match=r"p must lie in \[0"):
            corrected_accuracy(torch.tensor([0.5, wrong]), t=0.5, f=0.5)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("there is no pair", lambda: bradley_terry_loss(torch.empty(0), torch.empty(0))),
        ("chosen .* rejected", lambda: bradley_terry_loss(torch.zeros(3), torch.zeros(5))),
        ("beta must lie", lambda: dpo_loss(*four(0, 0, 0, 0), beta=0.0)),
        ("smoothing must lie", lambda: dpo_loss(*four(0, 0, 0, 0), smoothing=0.5)),
        ("is for variant", lambda: dpo_loss(*four(0, 0, 0, 0), variant="ipo", smoothing=0.1)),
        ("variant must be", lambda: dpo_loss(*four(0, 0, 0, 0), variant="kto")),
        (
            "desirable must be boolean",
            lambda: kto_loss(torch.zeros(3), torch.zeros(3), torch.zeros(3)),
        ),
    ],
)
def test_what_cannot_work_is_refused(own_checks, message, call) -> None:
    with pytest.raises(ValueError, match=message):
        call()
