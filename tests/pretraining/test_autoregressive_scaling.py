"""Scaling laws: the fit finds what made the data, and the split of a budget is the best one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor

from companion.pretraining.autoregressive import (
    BESIROGLU,
    HOFFMANN,
    ScalingLaw,
    fit_scaling_law,
    optimal_allocation,
    scaling_objective,
)

LAW = ScalingLaw(E=1.3, A=25.0, B=70.0, alpha=0.37, beta=0.31)


def runs(noise: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    sizes = torch.tensor([1e4, 4e4, 2e5, 9e5, 3e6], dtype=torch.float64)
    tokens = torch.tensor([3e5, 1e6, 7e6, 2e7], dtype=torch.float64)
    N, D = (x.flatten() for x in torch.meshgrid(sizes, tokens, indexing="ij"))
    g = torch.Generator().manual_seed(seed)
    factor = 1 + noise * torch.randn(len(N), generator=g, dtype=torch.float64)
    return N, D, LAW.loss(N, D) * factor


def test_the_fit_recovers_the_law_that_made_the_runs() -> None:
    fitted = fit_scaling_law(*runs())
    for name in ("E", "A", "B", "alpha", "beta"):
        assert math.isclose(getattr(fitted.law, name), getattr(LAW, name), rel_tol=1e-4)
    assert fitted.objective < 1e-12
    assert fitted.draws == ()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("delta", [1e-3, 1e-2])
def test_the_fit_is_as_good_as_that_of_scipy(seed: int, delta: float) -> None:
    N, D, loss = runs(noise=0.01, seed=seed)

    def objective(theta: np.ndarray) -> float:
        e, a, b, alpha, beta = theta
        n, d = N.log().numpy(), D.log().numpy()
        made = np.logaddexp.reduce([np.full_like(n, e), a - alpha * n, b - beta * d])
        r = np.abs(made - loss.log().numpy())
        return float(np.where(r <= delta, r**2 / 2, delta * (r - delta / 2)).sum())

    start = np.array([math.log(1.3), math.log(25), math.log(70), 0.37, 0.31])
    best = min(
        (
            optimize.minimize(
                objective,
                start * scale,
                method="Nelder-Mead",
                options={"maxiter": 40_000, "maxfev": 40_000, "xatol": 1e-10, "fatol": 1e-16},
            )
            for scale in (1.0, 1.05)
        ),
        key=lambda found: found.fun,
    )
    fitted = fit_scaling_law(N, D, loss, delta=delta)
    assert fitted.objective <= best.fun * (1 + 1e-6)
    # And it is what the objective says at the law.
    law = fitted.law
    theta = [math.log(law.E), math.log(law.A), math.log(law.B), law.alpha, law.beta]
    assert math.isclose(objective(np.array(theta)), fitted.objective, rel_tol=1e-6)


def test_the_objective_equals_huber_loss_of_pytorch() -> None:
    N, D, loss = runs(noise=0.02)
    theta = torch.tensor([0.3, 3.0, 4.1, 0.36, 0.3], dtype=torch.float64)
    e, a, b, alpha, beta = theta
    made = (e.exp() + a.exp() / N**alpha + b.exp() / D**beta).log()
    expected = torch.nn.functional.huber_loss(made, loss.log(), delta=0.005, reduction="sum")
    torch.testing.assert_close(scaling_objective(theta, N, D, loss, delta=0.005), expected)
    both = scaling_objective(torch.stack([theta, theta + 0.1]), N, D, loss)
    assert both.shape == (2,)
    torch.testing.assert_close(both[0], scaling_objective(theta, N, D, loss))


def test_an_outlier_does_little_harm() -> None:
    N, D, loss = runs()
    spoiled = loss.clone()
    spoiled[7] *= 1.2
    fitted = fit_scaling_law(N, D, spoiled).law
    assert math.isclose(fitted.alpha, LAW.alpha, rel_tol=1e-2)
    wide = fit_scaling_law(N, D, spoiled, delta=10.0).law  # least squares
    assert abs(wide.alpha - LAW.alpha) > 10 * abs(fitted.alpha - LAW.alpha)


def test_the_bootstrap_covers_the_truth_and_narrows_with_the_noise() -> None:
    widths = []
    for noise in (0.002, 0.02):
        g = torch.Generator().manual_seed(0)
        fitted = fit_scaling_law(*runs(noise, seed=5), bootstrap=25, generator=g)
        assert len(fitted.draws) == 25
        low, high = fitted.interval("beta", level=0.9)
        assert low < LAW.beta * 1.1
        assert high > LAW.beta * 0.9
        widths.append(high - low)
    assert widths[0] < widths[1] / 3


def test_the_bootstrap_repeats_with_its_generator() -> None:
    def draws(seed: int) -> tuple[ScalingLaw, ...]:
        g = torch.Generator().manual_seed(seed)
        return fit_scaling_law(*runs(0.01), bootstrap=2, generator=g).draws

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


laws = st.builds(
    ScalingLaw,
    E=st.floats(0.0, 3.0),
    A=st.floats(1.0, 1e3),
    B=st.floats(1.0, 1e3),
    alpha=st.floats(0.1, 0.9),
    beta=st.floats(0.1, 0.9),
)


@given(laws, st.floats(12, 26), st.sampled_from([6.0, 2.0]))
@settings(deadline=None)
def test_no_other_split_of_the_budget_is_better(law: ScalingLaw, power: float, cost: float) -> None:
    compute = 10.0**power
    N, D = optimal_allocation(law, compute, cost=cost)
    assert math.isclose(cost * N * D, compute, rel_tol=1e-9)
    others = N * torch.logspace(-2, 2, 401, dtype=torch.float64)
    losses = law.loss(others, compute / cost / others)
    best = law.loss(N, D)
    assert bool((losses >= best * (1 - 1e-12)).all())
    # Twice or half as many parameters are worse, by more than rounding.
    assert float(losses[0]) > best
    assert float(losses[-1]) > best


def test_the_closed_form_equals_the_minimum_that_scipy_finds() -> None:
    for law in (HOFFMANN, BESIROGLU, LAW):
        for compute in (1e18, 5.76e23):
            found = optimize.minimize_scalar(
                lambda log_N, law=law, compute=compute: law.loss(
                    math.exp(log_N), compute / 6 / math.exp(log_N)
                ),
                bounds=(5, 40),
                method="bounded",
                options={"xatol": 1e-9},
            )
            assert math.isclose(
                math.log(optimal_allocation(law, compute)[0]), found.x, rel_tol=1e-6
            )


def test_the_trap_of_the_rounded_constants() -> None:
    N, D = optimal_allocation(HOFFMANN, 5.76e23)
    assert round(N / 1e9) == 32
    assert round(D / N) in (92, 93, 94)
    N, D = optimal_allocation(BESIROGLU, 5.76e23)
    assert round(N / 1e9) == 72
    assert round(D / N) == 18


@pytest.mark.usefixtures("own_checks")
def test_misuse_says_what_to_do() -> None:
    N, D, loss = runs()
    with pytest.raises(ValueError, match="runs must be 6 or more, got 5"):
        fit_scaling_law(N[:5], D[:5], loss[:5])
    with pytest.raises(ValueError, match="at least 3 numbers of parameters and 3 of tokens, got 2"):
        fit_scaling_law(N[:8], D[:8], loss[:8])
    with pytest.raises(ValueError, match="loss must be finite and above 0"):
        fit_scaling_law(N, D, -loss)
    with pytest.raises(ValueError, match="D must have shape"):
        fit_scaling_law(N, D[:-1], loss)
    with pytest.raises(ValueError, match="bootstrap needs a generator"):
        fit_scaling_law(N, D, loss, bootstrap=2)
    with pytest.raises(ValueError, match="there are no draws"):
        fit_scaling_law(N, D, loss).interval("E")
    with pytest.raises(ValueError, match="alpha must"):
        ScalingLaw(E=1.0, A=1.0, B=1.0, alpha=0.0, beta=0.3)
    with pytest.raises(ValueError, match="compute must"):
        optimal_allocation(LAW, 0.0)


def test_inputs_are_not_changed() -> None:
    before = runs(0.01)
    now = tuple(x.clone() for x in before)
    fit_scaling_law(*now, bootstrap=1, generator=torch.Generator().manual_seed(0))
    for a, b in zip(now, before, strict=True):
        assert torch.equal(a, b)
