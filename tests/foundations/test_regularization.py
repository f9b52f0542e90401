"""Ridge, early stopping and capacity: closed forms against definitions and other libraries."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_approximation import RBFSampler
from sklearn.linear_model import Ridge

from companion.core import generator, rand, randn
from companion.foundations.regularization import (
    dropout_penalty,
    dropout_ridge_equivalent,
    early_stopping_factors,
    enumerate_masks,
    rademacher_bound,
    rademacher_linear,
    random_features,
    random_frequencies,
    ridge,
    shrinkage_factors,
    spectral_solution,
)

F64 = torch.float64
# Both branches of the solver: more examples than features, and the other way round.
SHAPES = [(13, 5, 3), (5, 13, 3)]


def data(n, d, k, seed=0):
    g = generator(seed)
    return randn(n, d, generator=g, dtype=F64), randn(n, k, generator=g, dtype=F64)


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_ridge_is_that_of_scikit_learn(n, d, k):
    X, y = data(n, d, k)
    theirs = Ridge(alpha=0.7, fit_intercept=False, solver="svd").fit(X.numpy(), y.numpy())
    torch.testing.assert_close(
        ridge(X, y, lam=0.7), torch.from_numpy(theirs.coef_.T.copy()), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_ridge_makes_the_gradient_zero_with_one_strength_per_feature(n, d, k):
    X, y = data(n, d, k)
    lam = rand(d, generator=generator(3), dtype=F64) + 0.1
    w = ridge(X, y, lam=lam)
    grad = X.T @ (X @ w - y) + lam[:, None] * w
    assert grad.abs().max() < 1e-12
    assert (X.T @ (X @ (0.9 * w) - y) + lam[:, None] * 0.9 * w).abs().max() > 1e-2


def test_ridge_of_one_target_is_a_column_of_many():
    X, y = data(13, 5, 3)
    torch.testing.assert_close(ridge(X, y[:, 1], lam=0.7), ridge(X, y, lam=0.7)[:, 1])


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_ridge_is_a_spectral_filter(n, d, k):
    X, y = data(n, d, k)
    torch.testing.assert_close(
        spectral_solution(X, y, factors=lambda s: shrinkage_factors(s, lam=0.7)),
        ridge(X, y, lam=0.7),
        rtol=1e-10,
        atol=1e-12,
    )


def test_the_norm_of_the_solution_falls_and_the_residual_grows_with_the_strength():
    X, y = data(13, 5, 1)
    fits = [ridge(X, y, lam=lam) for lam in (0.01, 0.1, 1.0, 10.0)]
    for small, large in itertools.pairwise(fits):
        assert large.norm() < small.norm()
        assert (y - X @ large).norm() > (y - X @ small).norm()


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_early_stopping_is_gradient_descent_that_stops(n, d, k):
    X, y = data(n, d, k)
    lr, steps = 0.02, 37
    w = torch.zeros(d, k, dtype=F64)
    for _ in range(steps):
        w = w - lr * X.T @ (X @ w - y)
    filtered = spectral_solution(
        X, y, factors=lambda s: early_stopping_factors(s, lr=lr, steps=steps)
    )
    torch.testing.assert_close(filtered, w, rtol=1e-10, atol=1e-12)
    assert (filtered - ridge(X, y, lam=1 / (lr * steps))).norm() > 1e-3  # close, not equal


def test_early_stopping_after_no_step_has_learned_nothing():
    s = torch.tensor([3.0, 1.0])
    assert torch.equal(early_stopping_factors(s, lr=0.1, steps=0), torch.zeros(2))


@given(
    s=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=7),
    lam=st.floats(1e-3, 1e3),
    steps=st.integers(0, 50),
)
@settings(deadline=None, max_examples=50)
def test_filters_lie_in_the_unit_interval_and_keep_large_directions_most(s, lam, steps):
    values = torch.tensor(sorted(s), dtype=F64)
    lr = 1 / float(values[-1]) ** 2
    for f in (
        shrinkage_factors(values, lam=lam),
        early_stopping_factors(values, lr=lr, steps=steps),
    ):
        assert f.min() >= 0
        assert f.max() <= 1
        assert (f.diff() >= -1e-12).all()


def test_without_factors_the_solution_is_the_one_of_smallest_norm():
    X, y = data(5, 13, 3)
    w = spectral_solution(X, y)
    torch.testing.assert_close(w, torch.linalg.pinv(X) @ y, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(X @ w, y, rtol=1e-10, atol=1e-12)


def test_directions_without_data_get_no_weight():
    X, y = data(7, 3, 1)
    wide = torch.cat([X, X[:, :1] + X[:, 1:2]], 1)  # rank 3 with four columns
    w = spectral_solution(wide, y)
    torch.testing.assert_close(w, torch.linalg.pinv(wide, rtol=1e-10) @ y, rtol=1e-9, atol=1e-10)
    assert torch.equal(spectral_solution(torch.zeros(3, 2), torch.ones(3)), torch.zeros(2))


@pytest.mark.parametrize("p", [0.2, 0.7])
def test_dropout_on_the_inputs_of_least_squares_is_the_penalty(p):
    X, y = data(5, 3, 1)
    w = randn(3, generator=generator(5), dtype=F64)
    masks, probability = enumerate_masks(3, p=p)
    # Each example has a mask of its own, but the loss is a sum, so one mask at a time will do.
    noisy = X[:, None] * masks / (1 - p)
    expected = (probability * ((y - noisy @ w) ** 2 / 2)).sum()
    clean = ((y[:, 0] - X @ w) ** 2).sum() / 2
    torch.testing.assert_close(clean + dropout_penalty(X, w, p=p), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_the_equivalent_ridge_minimizes_the_loss_under_dropout(n, d, k):
    X, y = data(n, d, k)
    p = 0.3
    w = dropout_ridge_equivalent(X, y, p=p).requires_grad_()
    loss = ((y - X @ w) ** 2).sum() / 2 + sum(dropout_penalty(X, w[:, i], p=p) for i in range(k))
    (grad,) = torch.autograd.grad(loss, w)
    assert grad.abs().max() < 1e-12


def test_a_feature_that_never_appears_has_weight_zero():
    X, y = data(7, 3, 1)
    X = torch.cat([X, torch.zeros(7, 1, dtype=F64)], 1)
    w = dropout_ridge_equivalent(X, y, p=0.5)
    assert w[3] == 0
    torch.testing.assert_close(w[:3], dropout_ridge_equivalent(X[:, :3], y, p=0.5))


def test_the_logistic_penalty_is_right_to_second_order():
    X, _ = data(5, 3, 1)
    direction = randn(3, generator=generator(5), dtype=F64)
    p = 0.3
    masks, probability = enumerate_masks(3, p=p)
    softplus = torch.nn.functional.softplus

    def error(size):
        w = size * direction
        z = X @ w
        exact = (probability * softplus((X[:, None] * masks / (1 - p)) @ w)).sum()
        exact = exact - softplus(z).sum()
        curvature = z.sigmoid() * (1 - z.sigmoid())
        return float((exact - dropout_penalty(X, w, p=p, curvature=curvature)).abs())

    # A''' is odd, so the third order drops out at 0 and the error falls with the fourth power.
    assert error(0.1) / error(0.05) == pytest.approx(16, rel=0.05)


def signs(n):
    return enumerate_masks(n, p=0.5)[0].double() * 2 - 1


def test_the_rademacher_complexity_is_the_supremum_over_the_ball():
    X, _ = data(5, 3, 1)
    radius = 1.7
    exact = rademacher_linear(X, signs(5), radius=radius)
    directions = randn(20_000, 3, generator=generator(9), dtype=F64)
    directions = radius * directions / directions.norm(dim=1, keepdim=True)
    searched = (signs(5) @ X @ directions.T / 5).amax(1).mean()
    assert searched <= exact
    assert searched > 0.995 * exact


@given(n=st.integers(1, 7), d=st.integers(1, 5), radius=st.floats(0, 10), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_the_rademacher_complexity_obeys_its_bound(n, d, radius, seed):
    X = randn(n, d, generator=generator(seed), dtype=F64)
    exact = rademacher_linear(X, signs(n), radius=radius)
    assert exact <= rademacher_bound(X, radius=radius) * (1 + 1e-12)


def test_the_rademacher_bound_is_reached_by_orthogonal_examples():
    X = torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=F64))
    torch.testing.assert_close(
        rademacher_linear(X, signs(3), radius=2.0), rademacher_bound(X, radius=2.0)
    )


def test_random_features_approximate_a_gaussian_kernel():
    g = generator(0)
    x = randn(5, 3, generator=g, dtype=F64)
    bandwidth, count = 1.5, 200_000
    W, b = random_frequencies(3, count, bandwidth=bandwidth, generator=g, dtype=F64)
    phi = random_features(x, W, b)
    kernel = torch.exp(-(torch.cdist(x, x) ** 2) / (2 * bandwidth**2))
    # One product has a standard deviation of at most sqrt(2); five standard errors of the mean.
    assert (phi @ phi.T - kernel).abs().max() < 5 * (2 / count) ** 0.5


def test_random_features_are_those_of_scikit_learn():
    x = randn(5, 3, generator=generator(0), dtype=F64)
    theirs = RBFSampler(gamma=0.4, n_components=7, random_state=0).fit(x.numpy())
    W, b = (
        torch.from_numpy(np.asarray(v)) for v in (theirs.random_weights_, theirs.random_offset_)
    )
    torch.testing.assert_close(
        random_features(x, W, b), torch.from_numpy(theirs.transform(x.numpy())), rtol=1e-12, atol=0
    )


def test_frequencies_repeat_with_the_seed():
    first, second = (
        random_frequencies(3, 7, bandwidth=2.0, generator=generator(4)) for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


X0, Y0, W0 = torch.ones(5, 3), torch.ones(5), torch.ones(3)
WRONG = [
    (lambda: ridge(X0, Y0, lam=0.0), r"lam must lie in \(0.0, inf\), got 0.0"),
    (lambda: ridge(X0, torch.ones(7), lam=1.0), r"\(5, 3\) and \(7,\)"),
    (lambda: ridge(X0, Y0, lam=torch.ones(2)), r"lam must have shape \(3,\)"),
    (lambda: ridge(X0.long(), Y0, lam=1.0), "X must be floating"),
    (lambda: ridge(X0[:, :0], Y0, lam=1.0), r"\(5, 0\)"),
    (lambda: spectral_solution(X0, Y0, factors=lambda s: s[1:]), "result of factors must have"),
    (lambda: shrinkage_factors(W0, lam=-1.0), "lam must lie"),
    (lambda: early_stopping_factors(W0, lr=0.0, steps=1), "lr must lie"),
    (lambda: early_stopping_factors(W0, lr=1.0, steps=-1), "steps must be 0 or more, got -1"),
    (lambda: dropout_penalty(X0, W0[:2], p=0.5), r"w must have shape \(3,\), got \(2,\)"),
    (lambda: dropout_penalty(X0, W0, p=1.0), r"p must lie in \[0.0, 1.0\)"),
    (lambda: dropout_penalty(X0, W0, p=0.5, curvature=W0), "curvature must have shape"),
    (lambda: dropout_ridge_equivalent(X0, Y0, p=0.0), r"p must lie in \(0.0, 1.0\)"),
    (lambda: rademacher_linear(X0, torch.ones(2, 3), radius=1.0), r"signs must have shape \(\*, 5"),
    (lambda: rademacher_linear(X0, torch.ones(2, 5), radius=-1.0), "radius must lie"),
    (lambda: rademacher_bound(X0, radius=-1.0), "radius must lie"),
    (lambda: random_frequencies(0, 7, bandwidth=1.0, generator=generator(0)), "at least one input"),
    (lambda: random_frequencies(3, 7, bandwidth=0.0, generator=generator(0)), "bandwidth must lie"),
    (lambda: random_features(X0, torch.ones(2, 7), torch.ones(7)), r"W must have shape \(3, \*\)"),
    (lambda: random_features(X0, torch.ones(3, 7), torch.ones(3)), r"b must have shape \(7,\)"),
]


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(("call", "message"), WRONG)
def test_wrong_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


CALLS = {
    "ridge": lambda X, y, w: ridge(X, y, lam=0.5),
    "dual ridge": lambda X, y, w: ridge(X[:2], y[:2], lam=0.5),
    "ridge per feature": lambda X, y, w: ridge(X, y, lam=w**2 + 1),
    "spectral": lambda X, y, w: spectral_solution(
        X, y, factors=lambda s: shrinkage_factors(s, lam=1.0)
    ),
    "early": lambda X, y, w: early_stopping_factors(w, lr=0.1, steps=3),
    "penalty": lambda X, y, w: dropout_penalty(X, w, p=0.5, curvature=y),
    "equivalent": lambda X, y, w: dropout_ridge_equivalent(X, y, p=0.5),
    "rademacher": lambda X, y, w: rademacher_linear(X, X.T, radius=2.0),
    "bound": lambda X, y, w: rademacher_bound(X, radius=2.0),
    "features": lambda X, y, w: random_features(X, X.T, y),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_functions_run_on_meta_keep_the_dtype_and_leave_inputs_alone(call, device):
    g = generator(0)
    inputs = [randn(*shape, generator=g).to(device) for shape in ((5, 3), (5,), (3,))]
    before = [tensor.clone() for tensor in inputs]
    made = call(*inputs)
    assert made.dtype == torch.float32
    assert made.device.type == device.type
    assert all(map(torch.equal, inputs, before))
    on_meta = call(*(tensor.to("meta") for tensor in inputs))
    assert on_meta.is_meta
    assert on_meta.shape == made.shape
