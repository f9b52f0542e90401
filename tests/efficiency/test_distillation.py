"""Losses on a teacher's answers: divergences, temperatures, top classes with a tail, facts."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from companion.core import randn
from companion.efficiency.distillation import (
    TopK,
    forward_kl,
    generalized_jsd,
    kd_loss,
    knowledge_loss,
    reverse_kl,
    top_k_kd_loss,
    top_k_log_probs,
)

INF = torch.inf
# A teacher softmax(2, 0, 0) and a uniform student.
TEACHER = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64)
UNIFORM = torch.zeros(1, 3, dtype=torch.float64)
DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jsd": generalized_jsd,
}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return randn(*shape, generator=generator, dtype=torch.float64)


def log_of(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def naive_kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def trl_jsd(student_logits: Tensor, teacher_logits: Tensor, beta: float) -> Tensor:
    """The formula of trl's GKDTrainer, written anew: weights, mixture, jumps at the ends."""
    log_s = F.log_softmax(student_logits, -1)
    log_t = F.log_softmax(teacher_logits, -1)
    if beta == 0:
        each = F.kl_div(log_s, log_t, reduction="none", log_target=True)
    elif beta == 1:
        each = F.kl_div(log_t, log_s, reduction="none", log_target=True)
    else:
        weights = torch.tensor([1 - beta, beta], dtype=log_s.dtype).log()
        mixture = torch.logsumexp(torch.stack([log_s + weights[0], log_t + weights[1]]), 0)
        each = beta * F.kl_div(mixture, log_t, reduction="none", log_target=True)
        each = each + (1 - beta) * F.kl_div(mixture, log_s, reduction="none", log_target=True)
    return each.sum() / each[..., 0].numel()


def test_both_directions_are_those_of_kl_div_with_its_arguments_in_the_right_order() -> None:
    s, t = numbers(2, 3, 7), numbers(2, 3, 7, seed=1)
    log_s, log_t = s.log_softmax(-1), t.log_softmax(-1)
    for temperature in (0.7, 1.0, 3.0):
        a, b = (s / temperature).log_softmax(-1), (t / temperature).log_softmax(-1)
        # 6 positions: 'batchmean' would divide by 2, 'mean' by 42.
        there = F.kl_div(a, b, reduction="sum", log_target=True) / 6
        back = F.kl_div(b, a, reduction="sum", log_target=True) / 6
        torch.testing.assert_close(forward_kl(s, t, temperature=temperature), there)
        torch.testing.assert_close(reverse_kl(s, t, temperature=temperature), back)
    batchmean = F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
    assert abs(float(batchmean - forward_kl(s, t))) > 0.1
    assert abs(float(forward_kl(s, t) - reverse_kl(s, t))) > 1e-3


def test_values_by_hand() -> None:
    e2 = math.exp(2)
    p, q = [e2 / (e2 + 2), 1 / (e2 + 2), 1 / (e2 + 2)], [1 / 3] * 3
    assert float(forward_kl(UNIFORM, TEACHER)) == pytest.approx(naive_kl(p, q), abs=1e-12)
    assert float(reverse_kl(UNIFORM, TEACHER)) == pytest.approx(naive_kl(q, p), abs=1e-12)
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    half = (naive_kl(p, m) + naive_kl(q, m)) / 2
    assert float(generalized_jsd(UNIFORM, TEACHER)) == pytest.approx(half, abs=1e-12)
    assert half == pytest.approx(0.10867, abs=5e-6)
    # The mean over the three classes as well, F.kl_div's default, would be 0.1443.
    assert float(forward_kl(UNIFORM, TEACHER)) == pytest.approx(0.43304, abs=5e-6)
    assert float(reverse_kl(UNIFORM, TEACHER)) == pytest.approx(0.47427, abs=5e-6)
    hot = kd_loss(UNIFORM, TEACHER, temperature=4.0, alpha=1.0)
    assert float(hot) == pytest.approx(0.48267, abs=5e-6)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.83, 1.0])
def test_the_plain_divergence_is_trl_s(beta: float) -> None:
    s, t = numbers(5, 7), numbers(5, 7, seed=1)
    if 0 < beta < 1:
        torch.testing.assert_close(generalized_jsd(s, t, beta=beta), trl_jsd(s, t, beta))
        swapped = generalized_jsd(t, s, beta=beta)  # teacher and student change places
        if beta != 0.5:
            assert abs(float(swapped - trl_jsd(s, t, beta))) > 1e-3
    else:
        torch.testing.assert_close(
            generalized_jsd(s, t, beta=beta, scaled=True), trl_jsd(s, t, beta)
        )


def test_the_plain_divergence_vanishes_at_the_ends_and_the_scaled_one_does_not() -> None:
    small = 1e-3
    plain = generalized_jsd(UNIFORM, TEACHER, beta=small)
    assert float(plain) == pytest.approx(4.33e-4, abs=5e-7)
    scaled = generalized_jsd(UNIFORM, TEACHER, beta=small, scaled=True)
    assert float(scaled) == pytest.approx(0.4330, abs=5e-5)
    for end, divergence in ((0.0, forward_kl), (1.0, reverse_kl)):
        near = abs(end - 1e-6)
        exact = divergence(UNIFORM, TEACHER)
        # Linear in the distance from the end, plus rounding over beta: 1e-6 + 1e-16 / 1e-6.
        torch.testing.assert_close(
            generalized_jsd(UNIFORM, TEACHER, beta=near, scaled=True), exact, rtol=1e-5, atol=0
        )
        torch.testing.assert_close(generalized_jsd(UNIFORM, TEACHER, beta=end, scaled=True), exact)
        with pytest.raises(ValueError, match=r"beta must lie in \(0.0, 1.0\)"):
            generalized_jsd(UNIFORM, TEACHER, beta=end)


def test_the_mixture_is_one_of_probabilities() -> None:
    # Averaged log-probabilities would be (0.0316, 0.0316), which sum to 0.063.
    s, t = log_of(0.001, 0.999), log_of(0.999, 0.001)
    each = naive_kl([0.999, 0.001], [0.5, 0.5])
    assert float(generalized_jsd(s, t)) == pytest.approx(each, abs=1e-12)
    assert each < math.log(2)


@given(st.floats(0.01, 0.99), st.integers(0, 50))
def test_divergences_are_not_negative_and_the_jsd_has_a_bound(beta: float, seed: int) -> None:
    s, t = 4 * numbers(3, 7, seed=seed), 4 * numbers(3, 7, seed=seed + 100)
    found = float(generalized_jsd(s, t, beta=beta))
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)  # entropy of the coin
    assert 0 < found < bound
    for divergence in (forward_kl, reverse_kl):
        assert float(divergence(s, t)) > 0
    for divergence in DIVERGENCES.values():
        assert abs(float(divergence(s + 3.0, s))) < 1e-13  # logits may shift


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    s = numbers(3, 5).requires_grad_()
    t = numbers(3, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(DIVERGENCES[name], (s, t))


def test_the_gradient_of_the_softened_loss_is_the_difference_times_the_temperature() -> None:
    s, t = numbers(1, 7).requires_grad_(), numbers(1, 7, seed=1)
    for temperature in (0.5, 1.0, 4.0):
        loss = kd_loss(s, t, temperature=temperature, alpha=1.0)
        (slope,) = torch.autograd.grad(loss, s)
        p_s, p_t = (s / temperature).softmax(-1), (t / temperature).softmax(-1)
        torch.testing.assert_close(slope, temperature * (p_s - p_t))


def test_a_hot_loss_matches_centered_logits() -> None:
    z_s = UNIFORM.clone().requires_grad_()
    warm = torch.autograd.grad(kd_loss(z_s, TEACHER, temperature=4.0, alpha=1.0), z_s)[0]
    want = torch.tensor([[-0.4741, 0.2371, 0.2371]], dtype=torch.float64)
    torch.testing.assert_close(warm, want, rtol=0, atol=5e-5)
    s, t = numbers(1, 7).requires_grad_(), numbers(1, 7, seed=1)
    centered = (s - s.mean()) - (t - t.mean())
    errors = []
    for temperature in (1e2, 1e3):
        loss = kd_loss(s, t, temperature=temperature, alpha=1.0)
        (slope,) = torch.autograd.grad(loss, s)
        errors.append(float((slope - centered.detach() / 7).abs().max()))
    assert errors[0] < 0.01
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.05)  # the next term is of order 1 / T


def test_a_cold_teacher_answers_with_its_likeliest_class() -> None:
    s, t = numbers(5, 7), numbers(5, 7, seed=1)
    cold = forward_kl(s * 1e-3, t, temperature=1e-3)  # the student's logits over T stay as s
    torch.testing.assert_close(cold, F.cross_entropy(s, t.argmax(1)))


def test_a_tie_of_a_cold_teacher_is_shared() -> None:
    s = numbers(1, 3)
    tie = torch.tensor([[1.0, 1.0, -5.0]], dtype=torch.float64)
    found = forward_kl(s * 1e-3, tie, temperature=1e-3)
    shared = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    want = F.cross_entropy(s, shared) - math.log(2)
    torch.testing.assert_close(found, want)


def test_without_labels_the_loss_is_a_cross_entropy_less_the_teacher_s_entropy() -> None:
    s, t = numbers(5, 7), numbers(5, 7, seed=1)
    p = t.softmax(-1)
    entropy = -(p * p.log()).sum(-1).mean()
    loss = kd_loss(s, t, temperature=1.0, alpha=1.0)
    torch.testing.assert_close(loss, F.cross_entropy(s, p) - entropy)


def test_the_weight_mixes_labels_and_teacher() -> None:
    s, t, y = numbers(5, 7), numbers(5, 7, seed=1), torch.tensor([0, 3, 6, 2, 2])
    none = kd_loss(s, t, y, temperature=3.0, alpha=0.0)
    all_of_it = kd_loss(s, t, y, temperature=3.0, alpha=1.0)
    torch.testing.assert_close(none, F.cross_entropy(s, y))  # labels at temperature 1
    torch.testing.assert_close(all_of_it, 9 * forward_kl(s, t, temperature=3.0))
    some = kd_loss(s, t, y, temperature=3.0, alpha=0.2)
    torch.testing.assert_close(some, 0.8 * none + 0.2 * all_of_it)


def test_distillation_from_a_flat_teacher_is_label_smoothing() -> None:
    s, y = numbers(5, 7), torch.tensor([0, 3, 6, 2, 2])
    flat = torch.zeros_like(s)
    loss = kd_loss(s, flat, y, temperature=1.0, alpha=0.1)
    smoothed = F.cross_entropy(s, y, label_smoothing=0.1)
    torch.testing.assert_close(loss, smoothed - 0.1 * math.log(7))


def test_the_teacher_is_used() -> None:
    s, y = numbers(5, 7).requires_grad_(), torch.tensor([0, 3, 6, 2, 2])
    slopes = []
    for seed in (1, 2):
        loss = kd_loss(s, numbers(5, 7, seed=seed), y, temperature=2.0, alpha=0.5)
        slopes.append(torch.autograd.grad(loss, s)[0])
    assert float((slopes[0] - slopes[1]).abs().min()) > 0


def test_a_position_with_an_ignored_target_counts_for_nobody() -> None:
    s, t = numbers(5, 7).requires_grad_(), numbers(5, 7, seed=1)
    y = torch.tensor([0, 3, -100, 2, 2])
    kept = y != -100
    for alpha in (0.0, 0.3, 1.0):
        found = kd_loss(s, t, y, temperature=2.0, alpha=alpha)
        want = kd_loss(s[kept], t[kept], y[kept], temperature=2.0, alpha=alpha)
        torch.testing.assert_close(found, want)
        (slope,) = torch.autograd.grad(found, s)
        assert not slope[2].any()
    torch.testing.assert_close(kd_loss(s, t, y, temperature=2.0, alpha=0.0), F.cross_entropy(s, y))
    real = torch.tensor([True, True, True, False, True])
    both = kept & real
    torch.testing.assert_close(
        kd_loss(s, t, y, temperature=2.0, alpha=0.3, real=real),
        kd_loss(s[both], t[both], y[both], temperature=2.0, alpha=0.3),
    )
    with pytest.raises(ValueError, match="no target counts"):
        kd_loss(s, t, torch.full((5,), -100), temperature=2.0, alpha=0.5)


def test_a_term_of_weight_zero_is_left_out_even_where_it_is_infinite() -> None:
    s, t, y = numbers(2, 3), numbers(2, 3, seed=1), torch.tensor([1, 2])
    less = torch.tensor([[-INF, 0.3, 0.7], [-INF, 1.0, 0.2]], dtype=torch.float64)
    found = kd_loss(less, t, y, temperature=1.0, alpha=0.0)
    torch.testing.assert_close(found, F.cross_entropy(less, y))
    excluded = torch.tensor([0, 0])  # labels that the student excludes, and only the teacher counts
    assert float(kd_loss(less, less, excluded, temperature=1.0, alpha=1.0)) == 0.0
    assert bool(kd_loss(s, t, y, temperature=1.0, alpha=0.5).isfinite())


def test_in_single_precision_a_hot_gradient_keeps_digits_that_the_loss_has_lost() -> None:
    s, t = numbers(3, 47), numbers(3, 47, seed=1)

    def loss_and_slope(dtype: torch.dtype, temperature: float) -> tuple[Tensor, Tensor]:
        z = s.to(dtype).requires_grad_()
        loss = kd_loss(z, t.to(dtype), temperature=temperature, alpha=1.0)
        return loss.detach().double(), torch.autograd.grad(loss, z)[0].double()

    for temperature, digits in ((20.0, 1e-5), (300.0, 2e-4), (1e4, 5e-3)):
        (near, slope), (exact, want) = (
            loss_and_slope(dtype, temperature) for dtype in (torch.float32, torch.float64)
        )
        # Log-probabilities near -log 47 round by 2.3e-7; their differences are of order 1 / T, and
        # the loss is of the square of that.
        assert float((slope - want).norm() / want.norm()) < digits
        if temperature < 500:
            torch.testing.assert_close(near, exact, rtol=2.3e-7 * temperature**2, atol=0)


# ------------------------------------------------------------------ edges of the support


def test_a_class_that_both_exclude_adds_nothing() -> None:
    s, t = numbers(3, 5), numbers(3, 5, seed=1)
    wide_s, wide_t = F.pad(s, (1, 1), value=-INF), F.pad(t, (1, 1), value=-INF)
    for divergence in DIVERGENCES.values():
        want_s = s.clone().requires_grad_()
        have_s = wide_s.clone().requires_grad_()
        have, want = divergence(have_s, wide_t), divergence(want_s, t)
        torch.testing.assert_close(have, want)
        have.backward()
        want.backward()
        assert have_s.grad is not None
        torch.testing.assert_close(have_s.grad[:, 1:-1], want_s.grad)
        assert not have_s.grad[:, [0, -1]].any()


def test_a_class_that_one_excludes_is_free_or_infinite() -> None:
    full = UNIFORM
    less = torch.tensor([[0.0, 0.0, -INF]], dtype=torch.float64)
    assert float(forward_kl(full, less)) == pytest.approx(math.log(3 / 2))
    assert float(reverse_kl(less, full)) == pytest.approx(math.log(3 / 2))
    assert float(forward_kl(less, full)) == INF
    assert float(reverse_kl(full, less)) == INF
    p, q = [1 / 3] * 3, [1 / 2, 1 / 2, 0]
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    bounded = (naive_kl(p, m) + naive_kl(q, m)) / 2
    for one, other in ((full, less), (less, full)):
        z = one.clone().requires_grad_()
        found = generalized_jsd(z, other)
        assert float(found.detach()) == pytest.approx(bounded)
        found.backward()
        assert z.grad is not None
        assert bool(z.grad.isfinite().all())


def test_a_probability_too_small_for_the_dtype_does_not_make_nan() -> None:
    far = torch.tensor([[0.0, -2000.0, -INF]], requires_grad=True)
    for divergence in DIVERGENCES.values():
        for pair in ((far, far.detach()), (far, torch.tensor([[0.0, -INF, -2000.0]]))):
            (slope,) = torch.autograd.grad(divergence(*pair), far)
            assert bool(slope.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    s, t = (30 * numbers(3, 997)).to(dtype), (30 * numbers(3, 997, seed=1)).to(dtype)
    for divergence in DIVERGENCES.values():
        found = divergence(s, t)
        assert found.dtype == torch.float32
        # Sums of 1,000 float32 terms of up to 100: an error of 1e-5 relative at most.
        torch.testing.assert_close(
            found.double(), divergence(s.double(), t.double()), rtol=1e-5, atol=0
        )


# ------------------------------------------------------------------ positions that count


def test_only_positions_that_count_count() -> None:
    s, t = numbers(2, 3, 7), numbers(2, 3, 7, seed=1)
    real = torch.tensor([[True, False, True], [True, True, False]])
    y = torch.tensor([[0, 1, 2], [3, 4, 5]])
    dirty = torch.where(real[..., None], s, torch.nan)
    for divergence in DIVERGENCES.values():
        torch.testing.assert_close(divergence(s, t, real=real), divergence(s[real], t[real]))
    mixed = kd_loss(s, t, y, temperature=2.0, alpha=0.3, real=real)
    torch.testing.assert_close(
        mixed, kd_loss(s[real], t[real], y[real], temperature=2.0, alpha=0.3)
    )
    assert bool(forward_kl(dirty, t, real=real).isfinite())
    with pytest.raises(ValueError, match="real is False everywhere"):
        forward_kl(s, t, real=torch.zeros_like(real))
    with pytest.raises(ValueError, match="the batch is empty"):
        forward_kl(s[:0], t[:0])


@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
def test_what_does_not_count_does_not_reach_the_gradient(bad: float) -> None:
    # A teacher may say anything after padding. 0 times NaN would be NaN.
    s, t = numbers(2, 3, 7), numbers(2, 3, 7, seed=1)
    real = torch.tensor([[True, False, True], [True, True, False]])
    y = torch.tensor([[0, 1, 2], [3, 4, 5]])
    dirty = torch.where(real[..., None], t, bad)
    top = top_k_log_probs(t, k=3)
    dirty_top = TopK(torch.where(real[..., None], top.log_probs, bad), top.ids)
    losses: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
        *[
            (
                lambda z, f=f: f(z, dirty, real=real),
                lambda z, f=f: f(z[real], t[real]),
            )
            for f in DIVERGENCES.values()
        ],
        (
            lambda z: kd_loss(z, dirty, y, temperature=2.0, alpha=0.3, real=real),
            lambda z: kd_loss(z[real], t[real], y[real], temperature=2.0, alpha=0.3),
        ),
        (
            lambda z: kd_loss(z, dirty, y.where(real, -100), temperature=2.0, alpha=0.3),
            lambda z: kd_loss(z[real], t[real], y[real], temperature=2.0, alpha=0.3),
        ),
        (
            lambda z: top_k_kd_loss(z, dirty_top, real=real),
            lambda z: top_k_kd_loss(z[real], TopK(top.log_probs[real], top.ids[real])),
        ),
    ]
    for with_padding, without in losses:
        z = s.clone().requires_grad_()
        have, want = with_padding(z), without(z)
        torch.testing.assert_close(have, want)
        slope = torch.autograd.grad(have, z)[0]
        torch.testing.assert_close(slope, torch.autograd.grad(want, z)[0])
        assert not slope[~real].any()
        # The student's own padding may be no number either.
        mess = torch.where(real[..., None], s, bad).requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(with_padding(mess), mess)[0], slope)


def test_the_mean_is_over_positions_not_over_rows() -> None:
    s, t = numbers(2, 3, 7), numbers(2, 3, 7, seed=1)
    flat = forward_kl(s.flatten(0, 1), t.flatten(0, 1))
    torch.testing.assert_close(forward_kl(s, t), flat)


# ------------------------------------------------------------------ the likeliest classes


def test_a_tail_gives_the_divergence_of_merged_classes() -> None:
    t, s = log_of(0.6, 0.3, 0.1), log_of(0.5, 0.2, 0.3)
    assert float(forward_kl(s, t)) == pytest.approx(0.1212, abs=5e-5)
    top = top_k_log_probs(t, k=1)
    merged = naive_kl([0.6, 0.4], [0.5, 0.5])
    assert float(top_k_kd_loss(s, top)) == pytest.approx(merged, abs=1e-12)
    assert merged == pytest.approx(0.0201, abs=5e-5)
    cut = top_k_kd_loss(s, top, tail=False)
    assert float(cut) == pytest.approx(0.6 * math.log(0.6 / 0.5), abs=1e-12)


def test_without_a_tail_the_loss_can_be_negative_and_is_not_least_at_the_teacher() -> None:
    t = log_of(0.4, 0.6)
    top = top_k_log_probs(t, k=1)
    sure = log_of(0.1, 0.9)
    assert float(top_k_kd_loss(sure, top, tail=False)) == pytest.approx(0.6 * math.log(0.6 / 0.9))
    assert float(top_k_kd_loss(sure, top, tail=False)) < float(top_k_kd_loss(t, top, tail=False))
    assert float(top_k_kd_loss(sure, top)) > float(top_k_kd_loss(t, top))


@given(st.integers(1, 10), st.floats(0.3, 5.0), st.integers(0, 30))
def test_merging_can_only_lower_the_divergence(k: int, temperature: float, seed: int) -> None:
    s, t = 2 * numbers(3, 11, seed=seed), 2 * numbers(3, 11, seed=seed + 100)
    top = top_k_log_probs(t, k=k, temperature=temperature)
    found = top_k_kd_loss(s, top, temperature=temperature)
    full = kd_loss(s, t, temperature=temperature, alpha=1.0)
    assert -1e-12 < float(found) <= float(full) + 1e-12
    if k == 10:  # one class is left, so nothing is merged
        torch.testing.assert_close(found, full)


def test_the_order_of_the_kept_classes_does_not_matter() -> None:
    s, t = numbers(3, 11), numbers(3, 11, seed=1)
    top = top_k_log_probs(t, k=5)
    turned = TopK(top.log_probs.flip(-1), top.ids.flip(-1))
    torch.testing.assert_close(top_k_kd_loss(s, top), top_k_kd_loss(s, turned))


def test_the_gradient_of_the_merged_loss() -> None:
    s = numbers(3, 11).requires_grad_()
    top = top_k_log_probs(numbers(3, 11, seed=1), k=4)
    assert torch.autograd.gradcheck(lambda z: top_k_kd_loss(z, top, temperature=2.0), s)


def test_a_tail_far_below_rounding_keeps_its_gradient() -> None:
    # 1 - sum of the kept probabilities would be exactly 0 here, and its logarithm -inf.
    s = torch.tensor([[40.0, 0.0, -3.0]], requires_grad=True)
    top = top_k_log_probs(torch.tensor([[1.0, 0.5, 0.0]]), k=1)
    (slope,) = torch.autograd.grad(top_k_kd_loss(s, top), s)
    p = math.e / (math.e + math.exp(0.5) + 1)
    # The tail's gradient goes to its classes in their shares within the tail.
    share = 1 / (1 + math.exp(-3))
    want = torch.tensor([[1 - p, -(1 - p) * share, -(1 - p) * (1 - share)]])
    torch.testing.assert_close(slope, want, rtol=1e-5, atol=1e-7)


def test_a_teacher_without_a_tail_adds_nothing_for_it() -> None:
    t = torch.tensor([[0.0, 1.0, -INF]], dtype=torch.float64)
    s = numbers(1, 3).requires_grad_()
    found = top_k_kd_loss(s, top_k_log_probs(t, k=2))
    torch.testing.assert_close(found, forward_kl(s, t))
    found.backward()
    assert s.grad is not None
    assert bool(s.grad.isfinite().all())


def test_classes_that_both_exclude_leave_the_gradient_of_the_merged_loss_clean() -> None:
    # All that is left for the tail is padding of the vocabulary.
    t = torch.tensor([[0.0, 1.0, -INF, -INF]], dtype=torch.float64)
    s = torch.tensor([[0.4, -0.3, -INF, -INF]], dtype=torch.float64).requires_grad_()
    found = top_k_kd_loss(s, top_k_log_probs(t, k=2))
    torch.testing.assert_close(found, forward_kl(s, t))
    (slope,) = torch.autograd.grad(found, s)
    difference = s.detach().softmax(-1) - t.softmax(-1)
    torch.testing.assert_close(slope, difference)
    # A tail that only the student excludes is infinitely far, as in the whole divergence.
    more = top_k_log_probs(torch.tensor([[0.0, 1.0, 0.5, -INF]], dtype=torch.float64), k=2)
    assert float(top_k_kd_loss(s, more).detach()) == INF


def test_of_equal_classes_any_may_be_kept() -> None:
    t = torch.tensor([[1.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    s = numbers(1, 4)
    top = top_k_log_probs(t, k=2)
    assert top.ids.unique().numel() == 2
    assert int(top.ids.max()) < 3
    assert 0 < float(top_k_kd_loss(s, top)) <= float(forward_kl(s, t))
    torch.testing.assert_close(top_k_kd_loss(t, top), torch.zeros((), dtype=torch.float64))


# ------------------------------------------------------------------ a teacher that scores facts


def test_facts_are_distilled_over_the_candidates_alone() -> None:
    z, scores = numbers(3, 7).requires_grad_(), numbers(3, 7, seed=1)
    candidates = torch.tensor(
        [[1, 1, 0, 1, 0, 0, 1], [0, 1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 1, 1, 1]], dtype=torch.bool
    )
    found = knowledge_loss(z, scores, temperature=2.0, candidates=candidates)
    rows = []
    for i in range(3):
        kept = candidates[i]
        rows.append(kd_loss(z[i, kept], scores[i, kept], temperature=2.0, alpha=1.0))
    torch.testing.assert_close(found, torch.stack(rows).mean())
    (slope,) = torch.autograd.grad(found, z)
    assert not slope[~candidates].any()
    assert bool(slope[candidates].ne(0).all())


def test_scores_have_an_open_zero_but_not_an_open_scale() -> None:
    z, scores = numbers(3, 7), numbers(3, 7, seed=1)
    shifted = knowledge_loss(z, scores + 5.0, temperature=1.5)
    torch.testing.assert_close(shifted, knowledge_loss(z, scores, temperature=1.5))
    longer = knowledge_loss(z, 3 * scores, temperature=1.5)
    assert abs(float(longer - shifted)) > 0.1


# ------------------------------------------------------------------ refusals and manners


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: forward_kl(numbers(2, 5), numbers(2, 7)), "the vocabularies do"),
        (lambda: reverse_kl(numbers(2, 5), numbers(5)), "must have the same shape"),
        (lambda: forward_kl(torch.ones(2, 3).long(), numbers(2, 3)), "must be floating"),
        (lambda: forward_kl(numbers(2, 0), numbers(2, 0)), "axis of classes"),
        (lambda: forward_kl(numbers(2, 3), numbers(2, 3), temperature=0.0), "temperature"),
        (lambda: kd_loss(numbers(2, 3), numbers(2, 3), temperature=2.0, alpha=0.5), "pass targets"),
        (lambda: kd_loss(numbers(2, 3), numbers(2, 3), temperature=2.0, alpha=1.5), "alpha"),
        (lambda: kd_loss(numbers(2, 3), numbers(2, 3), temperature=INF, alpha=1.0), "temperature"),
        (lambda: generalized_jsd(numbers(2, 3), numbers(2, 3), beta=1.2, scaled=True), "beta"),
        (lambda: top_k_log_probs(numbers(2, 3), k=3), "k must be from 1 to 2"),
        (lambda: top_k_log_probs(torch.tensor(1.0), k=1), "an axis of classes"),
        (
            lambda: kd_loss(
                numbers(2, 3), numbers(2, 3), torch.zeros(3).long(), temperature=2.0, alpha=0.5
            ),
            "targets must have",
        ),
        (
            lambda: top_k_kd_loss(numbers(3, 5), top_k_log_probs(numbers(2, 5), k=2)),
            "must be the same",
        ),
        (
            lambda: top_k_kd_loss(numbers(2, 3), top_k_log_probs(numbers(2, 50), k=20)),
            "top.ids must lie in",
        ),
        (
            lambda: forward_kl(numbers(2, 3, 7), numbers(2, 3, 7), real=torch.ones(3).bool()),
            "one entry a position",
        ),
        (
            lambda: knowledge_loss(numbers(2, 3), numbers(2, 3) / 0, temperature=1.0),
            "scores must be finite",
        ),
        (
            lambda: knowledge_loss(
                numbers(2, 3),
                numbers(2, 3),
                temperature=1.0,
                candidates=torch.tensor([[True, False, True], [False] * 3]),
            ),
            "no candidate",
        ),
    ],
)
@pytest.mark.usefixtures("own_checks")
def test_what_cannot_be_meant_is_refused(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_inputs_stay_as_they_were_and_meta_tensors_will_do() -> None:
    s, t, y = numbers(2, 3, 7), numbers(2, 3, 7, seed=1), torch.zeros(2, 3, dtype=torch.long)
    real = torch.tensor([[True, False, True], [True, True, False]])
    before = s.clone(), t.clone()
    for where in ("cpu", "meta"):
        a, b, labels, mask = (x.to(where) for x in (s, t, y, real))
        top = top_k_log_probs(b, k=3)
        for loss in (
            forward_kl(a, b, real=mask),
            reverse_kl(a, b, real=mask),
            generalized_jsd(a, b, beta=0.3, real=mask),
            kd_loss(a, b, labels, temperature=2.0, alpha=0.5, real=mask),
            top_k_kd_loss(a, top, real=mask),
            knowledge_loss(a, b, temperature=2.0),
        ):
            assert loss.device.type == where
            assert loss.shape == ()
    assert torch.equal(s, before[0])
    assert torch.equal(t, before[1])
