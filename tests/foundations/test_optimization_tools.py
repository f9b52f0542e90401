"""Clipping, schedules, Newton-Schulz, curvature and quadratic theory, against other sources."""

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.core import generator, randn
from companion.foundations import optimization as opt

SHAPES = ((5, 3), (7,), (2, 11))


def tensors(g, dtype=torch.float64, device="cpu"):
    return [randn(*shape, generator=g, dtype=dtype, device=device) for shape in SHAPES]


# Clipping.


@pytest.mark.parametrize("max_norm", [0.37, 1e6])
def test_clipping_equals_that_of_pytorch_without_its_millionth(max_norm, g, device):
    grads = tensors(g, device=device)
    params = [torch.nn.Parameter(torch.zeros_like(t)) for t in grads]
    for p, t in zip(params, grads, strict=True):
        p.grad = t.clone()
    norm = torch.nn.utils.clip_grad_norm_(params, max_norm)
    clipped, ours = opt.clip_by_global_norm(grads, max_norm=max_norm)
    torch.testing.assert_close(ours, norm, rtol=1e-12, atol=0)
    factor = (float(norm) + 1e-6) / float(norm) if max_norm < 1 else 1.0
    for p, t in zip(params, clipped, strict=True):
        torch.testing.assert_close(t, factor * p.grad, rtol=1e-12, atol=0)


def test_the_pure_and_the_in_place_clipping_agree_and_only_one_writes(g):
    grads = tensors(g)
    params = [torch.nn.Parameter(torch.zeros_like(t)) for t in grads]
    for p, t in zip(params, grads, strict=True):
        p.grad = t.clone()
    kept = [t.clone() for t in grads]
    clipped, norm = opt.clip_by_global_norm(grads, max_norm=0.5)
    assert all(torch.equal(t, k) for t, k in zip(grads, kept, strict=True))
    assert torch.equal(opt.clip_grad_norm_(params, max_norm=0.5), norm)
    for p, t in zip(params, clipped, strict=True):
        assert torch.equal(p.grad, t)
    # The direction stays, and the new norm is the limit.
    cosine = sum((a * b).sum() for a, b in zip(grads, clipped, strict=True)) / (0.5 * norm)
    torch.testing.assert_close(cosine, torch.ones((), dtype=torch.float64))


@given(limit=st.floats(1e-3, 1e3), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_a_clipped_norm_is_the_smaller_of_norm_and_limit(limit, seed):
    grads = tensors(generator(seed))
    clipped, norm = opt.clip_by_global_norm(grads, max_norm=limit)
    flat = torch.cat([t.reshape(-1) for t in grads])
    torch.testing.assert_close(norm, flat.norm())
    assert math.isclose(float(opt.global_norm(clipped)), min(limit, float(norm)), rel_tol=1e-12)


def test_gradients_of_zero_stay_zero_and_none_are_passed_over(g):
    weight, other = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(5))
    assert opt.clip_grad_norm_([weight, other], max_norm=1.0).item() == 0.0
    weight.grad = torch.zeros(3)
    assert opt.clip_grad_norm_(weight, max_norm=1.0).item() == 0.0
    assert torch.equal(weight.grad, torch.zeros(3))
    assert other.grad is None
    assert opt.clip_grad_norm_([], max_norm=1.0).item() == 0.0


def test_the_norm_of_half_precision_is_taken_in_float32(g):
    # 4096 entries of 100: squares and their sum are beyond float16.
    norm = opt.global_norm([torch.full((4096,), 100.0, dtype=torch.float16)])
    assert norm.dtype == torch.float32
    assert norm.item() == 6400.0
    mixed = opt.global_norm([torch.ones(9, dtype=torch.float64), torch.full((4,), 2.0)])
    assert mixed.dtype == torch.float64
    assert mixed.item() == 5.0
    clipped, _ = opt.clip_by_global_norm([torch.ones(4, dtype=torch.bfloat16)], max_norm=1.0)
    assert clipped[0].dtype == torch.bfloat16
    assert clipped[0][0].item() == 0.5


def test_clipping_runs_on_meta_and_refuses_bad_limits(g):
    grads = tensors(g, device="meta")
    clipped, norm = opt.clip_by_global_norm(grads, max_norm=1.0)
    assert norm.is_meta
    assert [t.shape for t in clipped] == [t.shape for t in grads]
    weight = torch.nn.Parameter(torch.empty(3, device="meta"))
    weight.grad = torch.empty(3, device="meta")
    assert opt.clip_grad_norm_([weight], max_norm=1.0).is_meta
    with pytest.raises(ValueError, match=r"max_norm must lie in \(0.0, inf\], got 0.0"):
        opt.clip_by_global_norm(grads, max_norm=0.0)
    with pytest.raises(ValueError, match="max_norm must lie"):
        opt.clip_grad_norm_([weight], max_norm=-1.0)
    with pytest.raises(ValueError, match="norm of no tensors"):
        opt.clip_by_global_norm([], max_norm=1.0)


# Schedules.


def scheduler_factors(make, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def test_cosine_equals_those_of_transformers_and_pytorch():
    warmup, total = 7, 31
    ours = [opt.warmup_cosine(t, warmup=warmup, total=total) for t in range(total)]
    theirs = scheduler_factors(
        lambda o: transformers.get_cosine_schedule_with_warmup(o, warmup, total), total + 1
    )
    # They warm up from 0, we from 1/w: one step apart until the peak, together after it.
    assert ours[:warmup] == pytest.approx(theirs[1 : warmup + 1], abs=1e-12)
    assert ours[warmup:] == pytest.approx(theirs[warmup:total], abs=1e-12)
    annealed = scheduler_factors(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 24, eta_min=0.1), 24
    )
    ours = [opt.warmup_cosine(t, warmup=0, total=24, floor=0.1) for t in range(24)]
    assert ours == pytest.approx(annealed, abs=1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_wsd_equals_that_of_transformers(floor):
    warmup, total, decay = 5, 29, 11
    ours = [opt.wsd(t, warmup=warmup, total=total, decay=decay, floor=floor) for t in range(total)]
    theirs = scheduler_factors(
        lambda o: transformers.get_wsd_schedule(
            o,
            num_warmup_steps=warmup,
            num_stable_steps=total - warmup - decay,
            num_decay_steps=decay,
            decay_type="linear",
            min_lr_ratio=floor,
        ),
        total,
    )
    assert ours[warmup:] == pytest.approx(theirs[warmup:], abs=1e-12)
    if floor == 0:
        # With a floor, theirs also begins there.
        assert ours[: warmup - 1] == pytest.approx(theirs[1:warmup], abs=1e-12)


def test_inv_sqrt_equals_the_formula_of_the_transformer_over_its_peak():
    d, warmup = 512, 23
    paper = [d**-0.5 * min(s**-0.5, s * warmup**-1.5) for s in range(1, 200)]
    ours = [opt.inv_sqrt(t, warmup=warmup) for t in range(199)]
    assert ours == pytest.approx([p / max(paper) for p in paper], rel=1e-12)


@given(
    step=st.integers(0, 400),
    warmup=st.integers(0, 50),
    middle=st.integers(1, 100),
    decay=st.integers(0, 100),
    floor=st.floats(0, 1),
)
@settings(deadline=None)
def test_factors_lie_in_the_unit_interval_and_end_at_the_floor(step, warmup, middle, decay, floor):
    total = warmup + middle + decay
    for make in (
        lambda t: opt.warmup_cosine(t, warmup=warmup, total=total, floor=floor),
        lambda t: opt.wsd(t, warmup=warmup, total=total, decay=decay, floor=floor),
    ):
        assert 0 <= make(step) <= 1 + 1e-12
        assert make(total + step) == pytest.approx(floor, abs=1e-12)
        if warmup:
            assert make(warmup - 1) == 1.0
            assert make(0) == 1 / warmup
    assert 0 < opt.inv_sqrt(step, warmup=warmup + 1) <= 1


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="step counts from 0, got -1"):
        opt.warmup_cosine(-1, warmup=2, total=5)
    with pytest.raises(ValueError, match="total must be above warmup, got 5 and 5"):
        opt.warmup_cosine(0, warmup=5, total=5)
    with pytest.raises(ValueError, match="floor must lie"):
        opt.warmup_cosine(0, warmup=2, total=5, floor=1.5)
    with pytest.raises(ValueError, match="warmup must be 0 or more steps, got -2"):
        opt.wsd(0, warmup=-2, total=5, decay=1)
    with pytest.raises(ValueError, match=r"warmup \+ decay must be at most total, got 3 \+ 4 > 6"):
        opt.wsd(0, warmup=3, total=6, decay=4)
    with pytest.raises(ValueError, match="floor must lie"):
        opt.wsd(0, warmup=3, total=9, decay=4, floor=-0.5)
    with pytest.raises(ValueError, match="warmup must be 1 or more steps, got 0"):
        opt.inv_sqrt(0, warmup=0)


# Newton-Schulz.


@pytest.mark.parametrize("shape", [(5, 3), (3, 7), (2, 5, 3)])
def test_newton_schulz_acts_on_singular_values_alone(shape, g, device):
    matrix = randn(*shape, generator=g, dtype=torch.float64, device=device)
    a, b, c = opt.QUINTIC
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    expected = u @ torch.diag_embed(s) @ vt
    torch.testing.assert_close(opt.newton_schulz(matrix), expected, rtol=1e-10, atol=1e-10)


@given(rows=st.integers(1, 6), cols=st.integers(1, 6), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_the_cubic_iteration_reaches_the_polar_factor(rows, cols, seed):
    matrix = randn(rows, cols, generator=generator(seed), dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    if float(s.min() / s.norm()) < 1e-3:
        return
    made = opt.newton_schulz(matrix, steps=40, coefficients=opt.CUBIC)
    torch.testing.assert_close(made, u @ vt, rtol=1e-8, atol=1e-8)


def test_muons_singular_values_end_between_two_thirds_and_five_fourths(g):
    values = torch.logspace(-2.3, 0, 400, dtype=torch.float64)
    for _ in range(5):
        a, b, c = opt.QUINTIC
        values = a * values + b * values**3 + c * values**5
    assert 0.66 < float(values.min()) < float(values.max()) < 1.25
    spectrum = torch.linalg.svdvals(
        opt.newton_schulz(randn(31, 17, generator=g), dtype=torch.bfloat16)
    )
    # bfloat16 rounds to one part in 256, and five products add up.
    assert 0.6 < float(spectrum.min()) < float(spectrum.max()) < 1.3


def test_newton_schulz_at_the_edges(g, own_checks):
    assert torch.equal(opt.newton_schulz(torch.zeros(5, 3)), torch.zeros(5, 3))
    matrix = randn(5, 3, generator=g)
    kept = matrix.clone()
    assert torch.equal(opt.newton_schulz(matrix, steps=0), matrix / matrix.norm())
    assert torch.equal(matrix, kept)
    assert opt.newton_schulz(matrix, dtype=torch.bfloat16).dtype == torch.float32
    assert opt.newton_schulz(matrix.to("meta")).is_meta
    with pytest.raises(ValueError, match=r"matrix needs two axes or more, got shape \(5,\)"):
        opt.newton_schulz(torch.ones(5))
    with pytest.raises(ValueError, match="steps must be 0 or more, got -1"):
        opt.newton_schulz(matrix, steps=-1)
    with pytest.raises(ValueError, match="matrix must be floating"):
        opt.newton_schulz(torch.ones(5, 3, dtype=torch.int64))


def test_the_scales_of_muon():
    assert opt.muon_scale((12, 3)) == 2.0
    assert opt.muon_scale((3, 12)) == 1.0
    assert opt.muon_scale((3, 16), scale="match_rms") == pytest.approx(0.8)
    assert opt.muon_scale((3, 12), scale="none") == 1.0
    # An orthogonal matrix of shape (m, n) has a root mean square of 1 / sqrt(max(m, n)).
    q = torch.linalg.qr(torch.eye(11, 5, dtype=torch.float64)).Q
    assert float((q**2).mean().sqrt()) * opt.muon_scale((11, 5), scale="match_rms") == (
        pytest.approx(0.2)
    )


# Curvature.


def loss_of(params, inputs):
    def loss_fn():
        hidden = torch.tanh(inputs @ params[0])
        return ((hidden @ params[1]) ** 2).mean() + (params[1] ** 3).sum()

    return loss_fn


def problem(g, device="cpu"):
    shapes = ((3, 5), (5, 2))
    params = [
        randn(*s, generator=g, dtype=torch.float64, device=device).requires_grad_() for s in shapes
    ]
    return params, loss_of(params, randn(7, 3, generator=g, dtype=torch.float64, device=device))


def full_hessian(params, loss_fn):
    grads = torch.autograd.grad(loss_fn(), params, create_graph=True)
    flat = torch.cat([t.reshape(-1) for t in grads])
    rows = [
        torch.cat([t.reshape(-1) for t in torch.autograd.grad(f, params, retain_graph=True)])
        for f in flat
    ]
    return torch.stack(rows)


def test_products_and_eigenvalues_equal_those_of_the_full_hessian(g, device):
    params, loss_fn = problem(g, device)
    hessian = full_hessian(params, loss_fn)
    vectors = [randn(*p.shape, generator=g, dtype=torch.float64, device=device) for p in params]
    product = opt.hessian_vector_product(loss_fn, params, vectors)
    flat = torch.cat([v.reshape(-1) for v in vectors])
    made = torch.cat([p.reshape(-1) for p in product])
    torch.testing.assert_close(made, flat @ hessian, rtol=1e-10, atol=1e-10)
    exact = torch.linalg.eigvalsh(hessian).flip(0)
    top = opt.hessian_topk(loss_fn, params, 4, generator=g)
    torch.testing.assert_close(top.values, exact[:4], rtol=1e-9, atol=1e-9)
    assert bool((top.residuals < 1e-8).all())
    assert all(p.grad is None for p in params)


def test_few_iterations_approach_from_below_within_their_residual(g):
    params, loss_fn = problem(g)
    exact = torch.linalg.eigvalsh(full_hessian(params, loss_fn))
    previous = -math.inf
    for iterations in (2, 4, 6, 9):
        top = opt.hessian_topk(loss_fn, params, 1, iterations=iterations, generator=generator(5))
        value = float(top.values[0])
        assert previous - 1e-9 <= value <= float(exact[-1]) + 1e-9
        nearest = float((exact - value).abs().min())
        assert nearest <= float(top.residuals[0]) + 1e-9
        previous = value


def test_repeated_eigenvalues_and_negative_ones_are_found(g):
    x = randn(7, generator=g, dtype=torch.float64).requires_grad_()
    curvature = torch.tensor([-1.0, -3.0, -3.0, -3.0, -5.0, -2.0, -7.0], dtype=torch.float64)
    top = opt.hessian_topk(lambda: (curvature * x**2).sum() / 2, [x], 5, generator=g)
    expected = torch.tensor([-1.0, -2.0, -3.0, -3.0, -3.0], dtype=torch.float64)
    torch.testing.assert_close(top.values, expected, rtol=1e-9, atol=1e-9)


def test_a_linear_loss_has_no_curvature(g):
    x, y = (randn(n, generator=g, dtype=torch.float64).requires_grad_() for n in (3, 5))
    product = opt.hessian_vector_product(
        lambda: x.sum() + (y**2).sum(), [x, y], [torch.ones_like(x), torch.ones_like(y)]
    )
    torch.testing.assert_close(product, (torch.zeros_like(x), 2 * torch.ones_like(y)))


def test_curvature_is_repeatable_runs_on_meta_and_refuses_bad_arguments(g):
    params, loss_fn = problem(g)
    one = opt.hessian_topk(loss_fn, params, 2, iterations=4, generator=generator(1))
    two = opt.hessian_topk(loss_fn, params, 2, iterations=4, generator=generator(1))
    assert torch.equal(one.values, two.values)
    far = [torch.empty(5, 3, device="meta", requires_grad=True)]
    top = opt.hessian_topk(lambda: (far[0] ** 3).sum(), far, 2, generator=g)
    assert top.values.is_meta
    with pytest.raises(ValueError, match=r"loss_fn must return a scalar, got shape \(3, 5\)"):
        opt.hessian_topk(lambda: params[0] ** 2, params[:1], generator=g)
    with pytest.raises(ValueError, match=r"k must lie in \[1, 4\].* got 5"):
        opt.hessian_topk(loss_fn, params, 5, iterations=4, generator=g)
    with pytest.raises(ValueError, match="k must lie in"):
        opt.hessian_topk(loss_fn, params, 0, generator=g)
    with pytest.raises(ValueError, match="give at least one parameter"):
        opt.hessian_topk(loss_fn, [], generator=g)
    with pytest.raises(ValueError, match=r"vectors must have the shapes \[\(3, 5\), \(5, 2\)\]"):
        opt.hessian_vector_product(loss_fn, params, params[:1])


# Quadratic theory.


def slowest(rate_of, eigenvalues):
    return max(rate_of(value) for value in eigenvalues)


@given(smallest=st.floats(0.1, 2), ratio=st.floats(1.5, 100))
@settings(deadline=None, max_examples=30)
def test_no_other_step_beats_the_optimum_of_gradient_descent(smallest, ratio):
    largest = smallest * ratio
    best, rate = opt.gradient_descent_optimum(smallest, largest)
    ends = (smallest, largest)
    assert slowest(lambda v: abs(1 - best * v), ends) == pytest.approx(rate, rel=1e-9)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert slowest(lambda v, f=factor: abs(1 - f * best * v), ends) > rate


@given(smallest=st.floats(0.1, 2), ratio=st.floats(1.5, 100))
@settings(deadline=None, max_examples=30)
def test_no_other_setting_nearby_beats_the_optimum_of_the_heavy_ball(smallest, ratio):
    largest = smallest * ratio
    curvature = torch.linspace(smallest, largest, 41, dtype=torch.float64)
    best, momentum, rate = opt.heavy_ball_optimum(smallest, largest)

    def radius(lr, mu):
        matrices = opt.heavy_ball_matrix(curvature, lr=lr, momentum=mu)
        return float(torch.linalg.eigvals(matrices).abs().max())

    # A double eigenvalue is computed to the square root of the rounding unit.
    assert radius(best, momentum) == pytest.approx(rate, abs=1e-6)
    for factor in (0.9, 1.1):
        assert radius(factor * best, momentum) > rate
        assert radius(best, min(0.999, factor * momentum)) > rate


def test_the_heavy_ball_matrix_steps_like_momentum(g):
    curvature = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64)
    param = randn(3, generator=g, dtype=torch.float64)
    velocity, states = torch.zeros(3, dtype=torch.float64), [param, param]
    for _ in range(6):
        param, velocity = opt.momentum_update(
            param, curvature * param, velocity, lr=0.3, momentum=0.6
        )
        states.append(param)
    matrix = torch.linalg.matrix_power(opt.heavy_ball_matrix(curvature, lr=0.3, momentum=0.6), 6)
    row = torch.stack([states[1], states[0]], -1).unsqueeze(-2) @ matrix
    torch.testing.assert_close(row.squeeze(-2), torch.stack([states[-1], states[-2]], -1))
    assert opt.heavy_ball_matrix(curvature.to("meta"), lr=0.3, momentum=0.6).is_meta


@given(curvature=st.floats(0.1, 5), fraction=st.floats(0.05, 0.95), noise=st.floats(0, 3))
@settings(deadline=None, max_examples=30)
def test_the_variance_of_sgd_is_the_fixed_point_of_its_recursion(curvature, fraction, noise):
    lr = 2 * fraction / curvature
    variance = opt.sgd_variance(curvature, lr=lr, noise=noise)
    after = (1 - lr * curvature) ** 2 * variance + lr**2 * noise**2
    assert after == pytest.approx(variance, rel=1e-9)


@given(
    values=st.lists(st.floats(0.1, 4), min_size=2, max_size=5),
    lr=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=30)
def test_a_step_ends_below_the_descent_bound(values, lr, seed):
    curvature = torch.tensor(values, dtype=torch.float64)
    param = randn(len(values), generator=generator(seed), dtype=torch.float64)
    (new,) = opt.sgd_update(param, curvature * param, lr=lr)
    loss, after = ((curvature * p**2).sum() / 2 for p in (param, new))
    bound = opt.descent_bound(
        loss, (curvature * param).norm(), lr=lr, smoothness=float(curvature.max())
    )
    assert float(after) <= float(bound) + 1e-12 * float(loss)


def test_bad_theory_arguments_are_refused():
    with pytest.raises(ValueError, match=r"smallest must lie in \(0.0, inf\), got 0.0"):
        opt.gradient_descent_optimum(0.0, 1.0)
    with pytest.raises(ValueError, match=r"largest must lie in \[2.0, inf\), got 1.0"):
        opt.heavy_ball_optimum(2.0, 1.0)
    with pytest.raises(ValueError, match="momentum must lie"):
        opt.heavy_ball_matrix(torch.ones(3), lr=0.1, momentum=1.0)
    with pytest.raises(ValueError, match=r"lr must lie in \[0.0, 1.0\), got 1.0"):
        opt.sgd_variance(2.0, lr=1.0, noise=1.0)
    with pytest.raises(ValueError, match="curvature must lie"):
        opt.sgd_variance(0.0, lr=1.0, noise=1.0)
    with pytest.raises(ValueError, match="noise must lie"):
        opt.sgd_variance(1.0, lr=1.0, noise=-1.0)
    with pytest.raises(ValueError, match="smoothness must lie"):
        opt.descent_bound(1.0, 1.0, lr=0.1, smoothness=-1.0)
    with pytest.raises(ValueError, match="lr must lie"):
        opt.descent_bound(1.0, 1.0, lr=-0.1, smoothness=1.0)
    with pytest.raises(ValueError, match="step counts from 1, got 0"):
        opt.bias_correction(0.9, 0)
    with pytest.raises(ValueError, match="beta must lie"):
        opt.bias_correction(1.0, 3)
