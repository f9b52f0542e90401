"""Attributions against captum, brute force, and what their axioms promise."""

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from companion.trust.interpretability import (
    gauss_legendre,
    gradient_times_input,
    integrated_gradients,
    layer_relevance,
    saliency,
    sampled_shapley,
    shapley,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import captum.attr as ca


def draw(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


MIX = draw(5, 7, seed=3)


def smooth(x: Tensor) -> Tensor:
    return (x @ MIX).tanh().square().sum(-1) + x[..., 0] * x[..., 1]


def rows(x: Tensor) -> Tensor:
    """One number a row of vectors: (batch, 3, 5)."""
    return smooth(x).prod(-1)


def test_gradients_are_captums() -> None:
    x = draw(3, 5)
    for ours, theirs in (
        (saliency(smooth, x), ca.Saliency(smooth).attribute(x.clone().requires_grad_())),
        (
            gradient_times_input(smooth, x),
            ca.InputXGradient(smooth).attribute(x.clone().requires_grad_()),
        ),
    ):
        torch.testing.assert_close(ours, theirs.detach())
    assert not x.requires_grad


def test_gradient_times_input_counts_from_the_baseline() -> None:
    x, base = draw(3, 5), draw(5, seed=1)
    free = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(smooth(free).sum(), free)
    made = gradient_times_input(smooth, x, baseline=base)
    torch.testing.assert_close(made, (x - base) * slope)
    # For a linear function it is exact.
    line = gradient_times_input(lambda p: p @ MIX[:, 0], x, baseline=base)
    torch.testing.assert_close(line.sum(1), (x - base) @ MIX[:, 0])


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_integrated_gradients_are_captums(steps: int) -> None:
    x, base = draw(3, 5, seed=1), draw(3, 5, seed=2)
    ours = integrated_gradients(rows, x, base, steps=steps)
    theirs, delta = ca.IntegratedGradients(rows).attribute(
        x[None], base[None], n_steps=steps, method="gausslegendre", return_convergence_delta=True
    )
    torch.testing.assert_close(ours.values, theirs[0])
    # Captum's delta is in float32, of scores of about 10.
    assert abs(ours.error - float(delta)) < 1e-5
    assert ours.gradients == steps


def test_weights_of_the_rule_sum_to_one() -> None:
    # Captum's trapezoid gives 1.5 with two steps.
    for steps in (1, 2, 5, 50):
        made = integrated_gradients(lambda x: 3 * x[:, 0], torch.ones(1).double(), steps=steps)
        torch.testing.assert_close(made.values, torch.tensor([3.0]).double())
        places, w = gauss_legendre(steps)
        assert abs(float(w.sum()) - 1) < 1e-14
        assert bool((places.diff() > 0).all())
        assert float(places[0]) > 0


def test_exactness_ends_at_twice_the_nodes() -> None:
    for m in (1, 2, 5):
        places, w = gauss_legendre(m)
        for p in range(2 * m):
            assert abs(float((w * places**p).sum()) - 1 / (p + 1)) < 1e-14
        assert abs(float((w * places ** (2 * m)).sum()) - 1 / (2 * m + 1)) > 1e-9


def test_a_kink_is_found_where_fixed_steps_miss_it() -> None:
    def saturated(x: Tensor) -> Tensor:
        return 1 - torch.relu(1 - x[:, 0])

    x = torch.tensor([2.0]).double()
    assert float(saliency(saturated, x[None])) == 0
    fixed = integrated_gradients(saturated, x, steps=5)
    assert abs(float(fixed.values) - 0.716) < 1e-3  # the error tells: -0.284
    assert abs(fixed.error + 0.284) < 1e-3
    found = integrated_gradients(saturated, x, tolerance=1e-9)
    assert abs(float(found.values) - 1) < 1e-9
    # A kink at a third is never at the end of a piece.
    third = integrated_gradients(lambda x: torch.relu(3 * x[:, 0] - 1), x / 2, tolerance=1e-4)
    assert abs(float(third.values) - 2) < 1e-4
    assert abs(third.error) <= 1e-4


@given(seed=st.integers(0, 9999), tolerance=st.sampled_from([1e-2, 1e-5, 1e-9]))
def test_completeness_is_kept_to_the_tolerance(seed: int, tolerance: float) -> None:
    x, base = 3 * draw(5, seed=seed), draw(5, seed=seed + 1)
    found = integrated_gradients(smooth, x, base, tolerance=tolerance, most=10_000)
    change = float(smooth(x) - smooth(base))
    assert abs(float(found.values.sum()) - change - found.error) < 1e-10
    assert abs(found.error) <= tolerance


def test_exchanged_ends_change_the_sign_and_nothing_is_changed() -> None:
    x, base = draw(5), draw(5, seed=1)
    before = x.clone(), base.clone()
    there = integrated_gradients(smooth, x, base, steps=16)
    back = integrated_gradients(smooth, base, x, steps=16)
    torch.testing.assert_close(there.values, -back.values)
    assert torch.equal(x, before[0])
    assert torch.equal(base, before[1])
    some = integrated_gradients(smooth, x, base, steps=16, batch_size=3)
    torch.testing.assert_close(some.values, there.values)


@pytest.mark.parametrize("options", [{"steps": 7}, {"tolerance": 1e-6, "nodes": 3}])
def test_the_gradients_that_are_said_are_the_gradients_that_are_taken(options: dict) -> None:
    taken, largest = 0, 0

    def counted(points: Tensor) -> Tensor:
        nonlocal taken, largest
        taken += len(points) if points.requires_grad else 0
        largest = max(largest, len(points))
        return smooth(points)

    found = integrated_gradients(counted, 3 * draw(5), draw(5, seed=1), batch_size=4, **options)
    assert found.gradients == taken
    assert largest <= 4


def test_the_limit_of_gradients_is_kept() -> None:
    def wild(x: Tensor) -> Tensor:
        return (30 * x[:, 0]).sin()

    x = torch.ones(1).double()
    used = integrated_gradients(wild, x, tolerance=1e-6).gradients
    assert integrated_gradients(wild, x, tolerance=1e-6, most=used).gradients == used
    with pytest.raises(RuntimeError, match=f"allow more gradients than {used - 1}"):
        integrated_gradients(wild, x, tolerance=1e-6, most=used - 1)


def test_small_floats_are_added_up_in_large_ones() -> None:
    x = torch.full((3,), 1.0, dtype=torch.bfloat16)
    made = integrated_gradients(lambda p: 3.0 * p.float().square().sum(1), x, steps=9)
    assert made.values.dtype == torch.bfloat16
    torch.testing.assert_close(made.values, torch.full_like(x, 3.0))
    # Places and slopes are rounded by up to 2^-9 of themselves each; they add up to 9.
    assert abs(made.error) < 9 * 2.0**-8


def test_parameters_get_no_gradient() -> None:
    net = nn.Linear(5, 1).double()
    integrated_gradients(lambda x: net(x)[:, 0], draw(5), steps=3)
    saliency(lambda x: net(x)[:, 0], draw(2, 5))
    assert all(p.grad is None for p in net.parameters())
    with torch.no_grad():
        made = integrated_gradients(smooth, draw(5), steps=3)
    assert float(made.values.abs().sum()) > 0


def test_a_constant_gets_nothing() -> None:
    made = integrated_gradients(lambda x: torch.ones(len(x)), torch.ones(3), steps=2)
    assert torch.equal(made.values, torch.zeros(3))
    assert made.error == 0


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({}, ValueError, "steps or tolerance"),
        ({"steps": 3, "tolerance": 0.1}, ValueError, "steps or tolerance"),
        ({"steps": 0}, ValueError, "steps must be 1 or more"),
        ({"tolerance": 0.0}, ValueError, "tolerance must lie"),
        ({"tolerance": 1e-12, "most": 30}, RuntimeError, "allow more gradients than 30"),
        ({"steps": 2, "batch_size": 0}, ValueError, "batch_size"),
        ({"tolerance": 0.1, "most": 4}, ValueError, "most must be 5 or more"),
    ],
)
def test_wrong_settings_are_refused(options: dict, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        integrated_gradients(lambda x: (30 * x[:, 0]).sin(), torch.ones(1).double(), **options)


@pytest.mark.usefixtures("own_checks")
def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="does not broadcast"):
        integrated_gradients(smooth, draw(5), draw(4), steps=2)
    with pytest.raises(ValueError, match="what f returns must have shape"):
        integrated_gradients(lambda x: x, draw(5), steps=2)
    with pytest.raises(ValueError, match="x"):
        saliency(smooth, torch.ones(2, 5).long())
    with pytest.raises(ValueError, match="x"):
        integrated_gradients(smooth, torch.full((5,), torch.nan), steps=2)
    with pytest.raises(ValueError, match="baseline"):
        integrated_gradients(smooth, draw(5), torch.tensor(torch.inf), steps=2)
    with pytest.raises(RuntimeError, match="not finite"):
        integrated_gradients(lambda p: p.sum(1).log(), draw(5), -draw(5), tolerance=0.1)


def brute(worth: Tensor, n: int) -> Tensor:
    total = torch.zeros(n, dtype=torch.float64)
    for order in itertools.permutations(range(n)):
        before = 0
        for i in order:
            total[i] += worth[before + 2**i] - worth[before]
            before += 2**i
    return total / math.factorial(n)


def game_of(worth: Tensor, n: int):
    powers = 2 ** torch.arange(n)
    return lambda keep: worth[(keep.long() * powers).sum(-1)]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_shapley_values_are_means_over_orders(n: int) -> None:
    worth = draw(2**n)
    phi = shapley(game_of(worth, n), n)
    torch.testing.assert_close(phi, brute(worth, n))
    torch.testing.assert_close(phi.sum(), worth[-1] - worth[0])
    torch.testing.assert_close(shapley(game_of(worth, n), n, batch_size=3), phi)


def test_shapley_values_are_captums() -> None:
    x, base = draw(1, 5, seed=4), draw(1, 5, seed=5)

    def value(keep: Tensor) -> Tensor:
        return smooth(torch.where(keep, x, base))

    theirs = ca.ShapleyValues(smooth).attribute(x, base)
    # Captum adds up in float32.
    torch.testing.assert_close(shapley(value, 5).float(), theirs[0].float(), rtol=1e-5, atol=1e-6)


def test_the_axioms_of_shapley() -> None:
    worth = draw(8)
    worth[[2, 3, 6, 7]] = worth[[0, 1, 4, 5]]  # player 1 changes nothing
    phi = shapley(game_of(worth, 3), 3)
    assert abs(float(phi[1])) < 1e-15
    even = torch.tensor([0.0, 3.0, 3.0, 7.0])
    assert torch.equal(shapley(game_of(even, 2), 2), torch.tensor([3.5, 3.5]).double())


@given(seed=st.integers(0, 9999), n=st.integers(2, 6))
def test_sampled_orders_are_complete(seed: int, n: int) -> None:
    worth = draw(2**n, seed=seed)
    g = torch.Generator().manual_seed(seed)
    made = sampled_shapley(game_of(worth, n), n, orders=6, generator=g)
    torch.testing.assert_close(made.values.sum(), worth[-1] - worth[0])
    assert made.evaluations == 6 * (n - 1) + 2


@pytest.mark.parametrize("antithetic", [False, True])
def test_the_error_of_sampling_is_the_one_that_is_said(antithetic: bool) -> None:
    worth = draw(32, seed=9)
    g = torch.Generator().manual_seed(0)
    right = shapley(game_of(worth, 5), 5)
    z = []
    for _ in range(200):
        made = sampled_shapley(game_of(worth, 5), 5, orders=60, generator=g, antithetic=antithetic)
        z.append((made.values - right) / made.stderr)
    spread = torch.stack(z)
    # Means of 200: 4 standard errors of a mean, and a spread of 1 within 4 of its own, 20 %.
    assert float(spread.mean(0).abs().max()) < 4 / math.sqrt(200)
    assert 0.8 < float(spread.std()) < 1.25


def test_multilinear_functions_have_one_answer_and_others_two() -> None:
    coefficients = draw(8)
    x = draw(3, seed=2)

    def multilinear(p: Tensor) -> Tensor:
        total = torch.zeros(len(p), dtype=p.dtype)
        for subset in range(8):
            chosen = [i for i in range(3) if subset >> i & 1]
            total = total + coefficients[subset] * p[:, chosen].prod(-1)
        return total

    path = integrated_gradients(multilinear, x, steps=3)
    game = shapley(lambda keep: multilinear(torch.where(keep, x, 0.0)), 3)
    torch.testing.assert_close(path.values, game)
    ones = torch.ones(2).double()
    line = integrated_gradients(lambda p: p[:, 0] ** 2 * p[:, 1], ones, steps=3).values
    torch.testing.assert_close(line, torch.tensor([2 / 3, 1 / 3]).double())


def test_shapley_refuses_what_does_not_fit() -> None:
    g = torch.Generator()
    with pytest.raises(ValueError, match="players"):
        shapley(lambda keep: keep.sum(1), 21)
    with pytest.raises(ValueError, match="what value returns must have shape"):
        shapley(lambda keep: keep.double(), 2)
    with pytest.raises(ValueError, match="give an even number, got 3"):
        sampled_shapley(lambda keep: keep.sum(1), 2, orders=3, generator=g, antithetic=True)
    one = sampled_shapley(lambda keep: keep.sum(1), 2, orders=1, generator=g)
    assert bool(one.stderr.isnan().all())


def network(bias: bool) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(5, 7, bias=bias), nn.ReLU(), nn.Linear(7, 3, bias=bias)
        ).double()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bias", [False, True])
def test_relevance_is_captums(bias: bool) -> None:
    net, x = network(bias), draw(2, 5)
    out = net(x).detach()
    asked = torch.zeros_like(out)
    asked[:, 1] = out[:, 1]
    ours = layer_relevance(net, x, asked)
    # Captum writes its hooks into the layers, so it gets a copy of them.
    theirs = ca.LRP(network(bias)).attribute(x.clone().requires_grad_(), target=1)
    torch.testing.assert_close(ours[0], theirs.detach(), rtol=1e-6, atol=1e-7)
    assert len(ours) == 3
    torch.testing.assert_close(ours[2], layer_relevance(net[2:], net[:2](x).detach(), asked)[0])
    assert torch.equal(ours[1], ours[2])  # a ReLU hands on what it gets
    if not bias:
        times = gradient_times_input(lambda p: net(p)[:, 1], x)
        torch.testing.assert_close(ours[0], times, rtol=1e-6, atol=1e-7)
        for R in ours:
            torch.testing.assert_close(R.sum(1), out[:, 1], rtol=1e-6, atol=1e-7)


def test_relevance_by_hand() -> None:
    layer = nn.Linear(2, 3).double()
    x, R, eps = draw(1, 2), draw(1, 3, seed=1), 0.25
    W, b = layer.weight.detach(), layer.bias.detach()
    want = torch.zeros(2).double()
    for j, k in itertools.product(range(2), range(3)):
        z = float(x[0] @ W[k] + b[k])
        want[j] += x[0, j] * W[k, j] / (z + math.copysign(eps, z)) * R[0, k]
    torch.testing.assert_close(layer_relevance([layer], x, R, eps=eps)[0][0], want)
    with torch.no_grad():  # an output of zero counts as positive
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[0] = torch.tensor([1.0, -1.0])
    zero = layer_relevance([layer], torch.ones(1, 2).double(), torch.ones(1, 3).double(), eps=eps)
    torch.testing.assert_close(zero[0], torch.tensor([[4.0, -4.0]]).double())
    # In half precision epsilon is not lost: nothing is divided by 0.
    half = layer_relevance([layer.half()], torch.ones(1, 2).half(), torch.ones(1, 3).half())[0]
    assert half.dtype == torch.float16
    assert not half.isnan().any()


def test_epsilon_takes_relevance_away() -> None:
    net, x = network(False), draw(2, 5)
    out = net(x).detach()
    loose = layer_relevance(net, x, out, eps=0.5)[0]
    tight = layer_relevance(net, x, out)[0]
    assert float((loose - tight).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="got Tanh"):
        layer_relevance([nn.Tanh()], x, x)
    with pytest.raises(ValueError, match="eps must lie"):
        layer_relevance(net, x, out, eps=0.0)
    with pytest.raises(ValueError, match="relevance"):
        layer_relevance(net, x, out[:, :2])
    with pytest.raises(ValueError, match="the input of layer 1"):
        layer_relevance(net, x[:, :4], out)
