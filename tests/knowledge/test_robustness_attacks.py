"""Balls, attacks and the audit: closed forms, corners, and what must be left as it was."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from companion.core import generator
from companion.knowledge.robustness import (
    NORMS,
    Normalized,
    accuracy,
    dual_norm,
    evaluating,
    fgsm,
    masking_audit,
    pgd,
    project,
    random_in_ball,
    random_search,
    steepest,
)

D = torch.float64


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=D)


def network(seed: int = 0, width: int = 7) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(width, 11), nn.ReLU(), nn.Linear(11, 3)).double()
    for k, p in enumerate(model.parameters()):
        p.data = drawn(*p.shape, seed=seed + k)
    return model


@given(st.integers(0, 999), st.sampled_from(NORMS))
def test_the_steepest_step_has_size_one_and_gains_the_dual_norm(seed: int, norm: float) -> None:
    slope = drawn(5, 3, 2, seed=seed)
    step = steepest(slope, norm=norm)
    size = torch.linalg.vector_norm(step.flatten(1), ord=norm, dim=1)
    torch.testing.assert_close(size, torch.ones(5, dtype=D))
    gain = (slope * step).flatten(1).sum(1)
    want = torch.linalg.vector_norm(slope.flatten(1), ord=dual_norm(norm), dim=1)
    torch.testing.assert_close(gain, want)


def test_the_direction_of_a_tiny_gradient_is_found() -> None:
    # A constant of 1e-6 in the denominator made robust accuracy look 26 % instead of 2 %.
    want = torch.tensor([[0.6, 0.8]], dtype=D)
    for scale in (1.0, 1e-9, 1e-300):
        step = steepest(scale * torch.tensor([[3.0, 4.0]], dtype=D), norm=2)
        torch.testing.assert_close(step, want)


@pytest.mark.parametrize("norm", NORMS)
def test_zero_and_broken_gradients_do_not_move_and_harm_nobody(norm: float) -> None:
    slope = drawn(4, 3)
    slope[1], slope[2, 0], slope[3, 1] = 0, math.nan, math.inf
    step = steepest(slope, norm=norm)
    assert torch.equal(step[1], torch.zeros(3, dtype=D))
    assert bool(step.isfinite().all())
    assert float(step[2, 0]) == 0  # what is not a number
    if norm < math.inf:  # without a direction of the whole, no step
        assert torch.equal(step[2:], torch.zeros(2, 3, dtype=D))
    assert torch.equal(step[0], steepest(slope[:1], norm=norm)[0])


@given(st.integers(0, 999), st.sampled_from(NORMS), st.floats(0.01, 3.0))
def test_a_projection_is_the_nearest_allowed_point(seed: int, norm: float, eps: float) -> None:
    delta = 2 * drawn(3, 5, seed=seed)
    near = project(delta, eps=eps, norm=norm)
    size = torch.linalg.vector_norm(near, ord=norm, dim=1)
    assert bool((size <= eps * (1 + 1e-12)).all())
    # Nearest in a convex set: no other point of it lies on the far side.
    other = random_in_ball(delta, eps=eps, norm=norm, generator=generator(seed + 1))
    assert bool((((delta - near) * (other - near)).sum(1) <= 1e-9).all())
    inside = random_in_ball(delta, eps=0.99 * eps, norm=norm, generator=generator(seed))
    assert torch.equal(project(inside, eps=eps, norm=norm), inside)


@pytest.mark.parametrize("norm", NORMS)
def test_random_points_fill_the_ball_by_volume(norm: float) -> None:
    d, n = 5, 100_000
    points = random_in_ball(torch.zeros(n, d, dtype=D), eps=1.5, norm=norm, generator=generator(0))
    size = torch.linalg.vector_norm(points, ord=norm, dim=1) / 1.5
    assert float(size.max()) <= 1 + 1e-12
    # u^(1/d) has the mean d/(d+1) and a deviation below 0.15: five standard errors.
    assert float(size.mean()) == pytest.approx(d / (d + 1), abs=5 * 0.15 / n**0.5)
    assert points.mean(0).abs().max() < 5 * 1.5 / n**0.5


def test_for_784_pixels_the_mean_length_is_nearly_the_radius() -> None:
    points = random_in_ball(torch.zeros(2000, 784), eps=1.0, norm=2, generator=generator(0))
    assert float(points.norm(dim=1).mean()) == pytest.approx(784 / 785, abs=2e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_without_a_radius_the_examples_come_back_bit_for_bit(norm: float) -> None:
    x = torch.rand(5, 7, generator=generator(0))
    x[0, 0], x[1, 1] = -2.98e-8, 1 + 1e-7  # errors of a round trip through a normalizer
    model, y = network().float(), torch.arange(5) % 3
    assert torch.equal(fgsm(model, x, y, eps=0.0, norm=norm), x)
    found = pgd(model, x, y, eps=0.0, step=0.1, steps=3, norm=norm, generator=generator(1))
    assert torch.equal(found, x)


def test_a_linear_model_is_attacked_as_all_corners_say() -> None:
    w, x = drawn(4), drawn(3, 4, seed=1)
    y = torch.tensor([0, 1, 1])

    def model(a: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(a), dtype=D), a @ w], 1)

    corners = 0.3 * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=D)
    want = torch.stack(
        [
            F.cross_entropy(model(row + corners), label.expand(16), reduction="none").amax()
            for row, label in zip(x, y, strict=True)
        ]
    )
    ask = {"eps": 0.3, "bounds": None}
    for made in (
        fgsm(model, x, y, **ask),
        pgd(model, x, y, step=0.1, steps=7, **ask),
        random_search(model, x, y, queries=200, generator=generator(0), **ask),
    ):
        torch.testing.assert_close(F.cross_entropy(model(made), y, reduction="none"), want)


@given(st.integers(0, 99), st.sampled_from(NORMS))
def test_attacks_stay_in_the_ball_and_in_the_bounds(seed: int, norm: float) -> None:
    x = torch.rand(5, 7, generator=generator(seed), dtype=D)
    y = torch.arange(5) % 3
    made = pgd(
        network(seed), x, y, eps=0.4, step=0.2, steps=4, norm=norm, generator=generator(seed)
    )
    size = torch.linalg.vector_norm(made - x, ord=norm, dim=1)
    assert bool((size <= 0.4 + 1e-12).all())
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1


def test_restarts_and_the_worst_point_never_help_the_model() -> None:
    model, x, y = (
        network(),
        torch.rand(29, 7, generator=generator(0), dtype=D),
        torch.arange(29) % 3,
    )

    def worst(**how: Any) -> Tensor:
        made = pgd(model, x, y, eps=0.3, step=0.2, steps=5, generator=generator(0), **how)
        return F.cross_entropy(model(made), y, reduction="none")

    assert bool((worst(restarts=3) >= worst()).all())
    assert bool((worst(keep="worst") >= worst()).all())


def test_modes_gradients_and_inputs_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    model[1].eval()
    model[0].weight.grad = torch.ones(5, 7)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    x, y = torch.rand(11, 7, generator=generator(0)), torch.arange(11) % 3
    kept, state = x.clone(), torch.random.get_rng_state()
    with torch.no_grad():
        first = pgd(model, x, y, eps=0.1, step=0.05, steps=2)
        second = pgd(model, x, y, eps=0.1, step=0.05, steps=2)
        random_search(model, x, y, eps=0.1, queries=3, generator=generator(0))
    assert torch.equal(first, second)  # no dropout
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(x, kept)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(model[0].weight.grad, torch.ones(5, 7))
    assert model[3].weight.grad is None
    assert all(p.requires_grad for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_modes_come_back_after_an_error() -> None:
    model = nn.Dropout(0.5)
    with pytest.raises(RuntimeError, match="broken"), evaluating(model):
        raise RuntimeError("broken")
    assert model.training


def test_a_normalizer_makes_the_radius_one_of_pixels() -> None:
    inner, std = network(), torch.tensor(0.2023, dtype=D)
    model = Normalized(inner, torch.tensor(0.5, dtype=D), std)
    x, y = torch.rand(5, 7, generator=generator(0), dtype=D), torch.arange(5) % 3
    made = fgsm(model, x, y, eps=8 / 255)
    assert float((made - x).abs().max()) == pytest.approx(8 / 255)
    inside = fgsm(inner, (x - 0.5) / std, y, eps=8 / 255 / float(std), bounds=None)
    torch.testing.assert_close((inside * std + 0.5).clamp(0, 1), made)
    assert pytest.approx(0.155, abs=5e-4) == 8 / 255 / 0.2023


def test_the_order_of_attacks_holds_for_an_honest_model(g: torch.Generator) -> None:
    model = network()
    x = torch.rand(200, 7, generator=g, dtype=D)
    y = model(x).argmax(1)
    surrogate = network(50)
    audit = masking_audit(model, x, y, eps=0.1, surrogate=surrogate, generator=g)
    found = audit.accuracies
    assert audit.findings == ()
    assert found["pgd-100"] <= found["pgd-20"] + 0.005 <= found["fgsm"] + 0.01
    # Few coordinates: a search by corners comes near to the climb, within the slack.
    assert found["pgd-100"] <= min(found["noise"], found["search"], found["transfer"]) + 0.02
    assert found["clean"] == 1.0


def test_a_layer_that_kills_gradients_is_found(g: torch.Generator) -> None:
    honest = network()
    x = torch.rand(100, 7, generator=g, dtype=D)
    y = honest(x).argmax(1)
    audit = masking_audit(
        lambda a: honest((20 * a).round() / 20),
        x,
        y,
        eps=0.2,
        steps=(5, 10),
        surrogate=honest,
        generator=g,
    )
    assert audit.zero_gradients == 1.0
    said = " ".join(audit.findings)
    for part in ("search beats", "transfer beats", "as large as the bounds", "exactly 0"):
        assert part in said


def test_accuracy_does_not_depend_on_the_batch() -> None:
    x, y = drawn(29, 7), torch.arange(29) % 3
    assert accuracy(network(), x, y, batch_size=4) == accuracy(network(), x, y)


@pytest.mark.usefixtures("own_checks")
def test_what_makes_no_sense_is_refused(g: torch.Generator) -> None:
    model, x, y = network(), torch.rand(5, 7, generator=g, dtype=D), torch.arange(5) % 3
    with pytest.raises(ValueError, match="owns its normalizer"):
        fgsm(model, 4 * x - 2, y, eps=0.1)
    with pytest.raises(ValueError, match="one label for each of 5 examples"):
        fgsm(model, x, y[:4], eps=0.1)
    with pytest.raises(ValueError, match=r"eps must lie in \[0.0, inf\], got -0.1"):
        fgsm(model, x, y, eps=-0.1)
    with pytest.raises(ValueError, match=r"norm must be 1, 2 or math\.inf, got 3"):
        fgsm(model, x, y, eps=0.1, norm=3)
    with pytest.raises(ValueError, match="restarts without a generator"):
        pgd(model, x, y, eps=0.1, step=0.1, steps=1, restarts=2)
    with pytest.raises(ValueError, match="keep must be"):
        pgd(model, x, y, eps=0.1, step=0.1, steps=1, keep="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bounds must be a low end"):
        fgsm(model, x, y, eps=0.1, bounds=(1.0, 0.0))
    with pytest.raises(ValueError, match=r"give a single example as gradient\[None\]"):
        steepest(x[0])
    with pytest.raises(ValueError, match="std must be above 0"):
        Normalized(model, torch.tensor(0.0), torch.tensor(0.0))
    with pytest.raises(ValueError, match="steps must grow"):
        masking_audit(model, x, y, eps=0.1, steps=(5, 5), generator=g)
    with pytest.raises(ValueError, match="an audit needs bounds"):
        masking_audit(model, x, y, eps=0.1, bounds=None, generator=g)
    with pytest.raises(ValueError, match="got none"):
        accuracy(model, x[:0], y[:0])


def test_everything_runs_on_the_meta_device(g: torch.Generator) -> None:
    model, x = network().to("meta"), torch.empty(5, 7, dtype=D, device="meta")
    y = torch.empty(5, dtype=torch.long, device="meta")
    for norm in NORMS:
        made = pgd(model, x, y, eps=0.1, step=0.1, steps=2, norm=norm, generator=g)
        assert made.shape == x.shape
        assert made.is_meta
    assert random_search(model, x, y, eps=0.1, queries=2, generator=g).is_meta


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_random_point_has_the_dtype_of_its_example(
    dtype: torch.dtype, g: torch.Generator
) -> None:
    for norm in NORMS:
        made = random_in_ball(torch.zeros(3, 5, dtype=dtype), eps=1.0, norm=norm, generator=g)
        assert made.dtype == dtype


def test_no_example_gives_none(g: torch.Generator) -> None:
    none, labels = torch.empty(0, 7, dtype=D), torch.empty(0, dtype=torch.long)
    made = random_search(network(), none, labels, eps=0.1, queries=3, generator=g)
    assert made.shape == (0, 7)


def test_logits_that_are_no_numbers_are_no_answers() -> None:
    logits = torch.tensor([[math.nan, 0.0], [2.0, 1.0], [0.0, math.nan]])
    assert accuracy(nn.Identity(), logits, torch.tensor([0, 0, 1])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_projection_in_half_precision_reaches_the_ball(dtype: torch.dtype) -> None:
    # A thousand equal entries: each becomes 1/1000. A running sum in bfloat16 stops at 256.
    delta = torch.ones(1, 1000, dtype=dtype)
    near = project(delta, eps=1.0, norm=1)
    assert near.dtype == dtype
    want = torch.full((1, 1000), 1e-3, dtype=D)
    rounding = 2 * torch.finfo(dtype).eps
    # Near 200, float32 holds what remains to 1e-5 of 3e-3.
    torch.testing.assert_close(near.to(D), want, rtol=rounding, atol=0)
    # In float16 the sum of these sizes overflows.
    far = project(200 * delta, eps=3.0, norm=1).to(D)
    torch.testing.assert_close(far, 3 * want, rtol=rounding, atol=1e-5)
    by_length = project(200 * delta, eps=3.0, norm=2).to(D)
    assert float(by_length.norm()) == pytest.approx(3, rel=rounding)


def test_labels_of_any_integer_dtype_are_labels() -> None:
    model, x = network(), torch.rand(5, 7, generator=generator(0), dtype=D)
    y = torch.arange(5) % 3
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(fgsm(model, x, y.to(dtype), eps=0.1), fgsm(model, x, y, eps=0.1))
