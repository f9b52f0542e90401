"""Reliability, expected calibration error and temperature scaling."""

import math

import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.foundations.cross_entropy import (
    calibration_bins,
    expected_calibration_error,
    fit_temperature,
    softmax,
)

N, K = 211, 7


def naive_ece(confidence: list[float], correct: list[bool], bins: int) -> float:
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = [i for i, c in enumerate(confidence) if low < c <= high or (b == 0 and c == 0)]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return total


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 17),
)
def test_ece_is_the_double_loop(pairs: list[tuple[float, bool]], bins: int) -> None:
    confidence, correct = [c for c, _ in pairs], [r for _, r in pairs]
    made = expected_calibration_error(
        torch.tensor(confidence, dtype=torch.float64), torch.tensor(correct), bins=bins
    )
    assert float(made) == pytest.approx(naive_ece(confidence, correct, bins), abs=1e-12)
    assert 0 <= float(made) <= 1


def test_bins_are_open_below_and_closed_above() -> None:
    confidence = torch.tensor([0.0, 0.25, 0.2500001, 0.5, 0.75, 1.0])
    correct = torch.tensor([True, False, True, True, False, True])
    made = calibration_bins(confidence, correct, bins=4)
    assert made.count.tolist() == [2, 2, 1, 1]
    assert made.accuracy.tolist() == [0.5, 1.0, 0.0, 1.0]


def test_empty_bins_are_nan_and_do_not_count() -> None:
    made = calibration_bins(torch.tensor([0.9]), torch.tensor([True]), bins=2)
    assert math.isnan(made.accuracy[0])
    assert math.isnan(made.confidence[0])
    error = expected_calibration_error(torch.tensor([0.9]), torch.tensor([True]), bins=2)
    assert float(error) == pytest.approx(0.1, abs=1e-6)


def test_a_calibrated_model_has_an_ece_that_shrinks_with_the_sample(g: torch.Generator) -> None:
    def ece(n: int) -> float:
        confidence = torch.rand(n, generator=g, dtype=torch.float64)
        correct = torch.rand(n, generator=g, dtype=torch.float64) < confidence
        return float(expected_calibration_error(confidence, correct))

    # In each of 15 bins the gap is Gaussian with deviation at most sqrt(1 / (4 n / 15)).
    for n in (1009, 100_003):
        assert 0 < ece(n) < 3 * math.sqrt(15 / (4 * n))


def overconfident(g: torch.Generator, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose true temperature is ``factor``: labels drawn from softmax(z), z * factor."""
    z = 2 * torch.randn(20_011, K, generator=g, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(z, -1), 1, generator=g).squeeze(1)
    return factor * z, labels


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.7])
def test_the_true_temperature_is_recovered(factor: float, g: torch.Generator) -> None:
    logits, labels = overconfident(g, factor)
    # The Fisher information of log T is the mean variance of z under p, about 2 here.
    assert fit_temperature(logits, labels) == pytest.approx(factor, rel=5 / math.sqrt(20_011))


def test_the_temperature_is_that_of_a_scalar_optimizer(g: torch.Generator) -> None:
    logits = 5 * torch.randn(N, K, generator=g, dtype=torch.float64)
    labels = torch.where(
        torch.rand(N, generator=g) < 0.6, logits.argmax(1), torch.randint(0, K, (N,), generator=g)
    )
    best = scipy.optimize.minimize_scalar(
        lambda log_t: float(F.cross_entropy(logits / math.exp(log_t), labels)),
        bounds=(-3, 5),
        method="bounded",
        options={"xatol": 1e-10},
    )
    # The optimizer sees the loss only, whose flat bottom it resolves to the root of the rounding.
    assert fit_temperature(logits, labels) == pytest.approx(math.exp(best.x), rel=1e-6)


def test_the_slope_vanishes_at_the_fitted_temperature(g: torch.Generator) -> None:
    logits, labels = overconfident(g, 2.3)
    beta = torch.tensor(1 / fit_temperature(logits, labels), dtype=torch.float64)
    beta.requires_grad_()
    F.cross_entropy(beta * logits, labels).backward()
    assert abs(float(beta.grad)) < 1e-9


@pytest.mark.parametrize("factor", [0.04, 1.0, 37.0])
def test_the_temperature_takes_few_passes(
    factor: float, g: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = 0

    def counted(z: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        return softmax(z)

    monkeypatch.setattr("companion.foundations.cross_entropy._calibration.softmax", counted)
    logits, labels = overconfident(g, factor)
    assert fit_temperature(logits, labels) == pytest.approx(factor, rel=0.1)
    # To halve a bracket ten digits down takes 33 passes. Newton's method doubles its digits, once
    # the bracket is found, which grows twofold a pass.
    assert passes <= 12


@given(st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_scaling_the_logits_scales_the_temperature(factor: float) -> None:
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(N, K, generator=g, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(logits, -1), 1, generator=g).squeeze(1)
    base = fit_temperature(logits, labels)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor * base, rel=1e-8)


def test_temperature_repairs_the_calibration_error_of_scaled_logits(g: torch.Generator) -> None:
    logits, labels = overconfident(g, 3.7)
    fitted = logits / fit_temperature(logits[:10_000], labels[:10_000])

    def ece(z: torch.Tensor) -> float:
        confidence, prediction = torch.softmax(z[10_000:], -1).max(-1)
        return float(expected_calibration_error(confidence, prediction == labels[10_000:]))

    assert ece(logits) > 0.1
    assert ece(fitted) < 0.02


def test_the_calibration_error_is_differentiable_in_the_confidence() -> None:
    confidence = torch.tensor([0.5, 0.625], dtype=torch.float64, requires_grad=True)
    correct = torch.tensor([True, False])
    expected_calibration_error(confidence, correct).backward()
    # Two bins of one prediction each, one under- and one over-confident.
    assert confidence.grad.tolist() == [-0.5, 0.5]


def test_meta_and_purity(g: torch.Generator) -> None:
    made = calibration_bins(
        torch.empty(N, device="meta"), torch.empty(N, device="meta", dtype=torch.bool)
    )
    assert made.count.is_meta
    assert made.accuracy.shape == (15,)
    logits, labels = overconfident(g, 2.0)
    copies = logits.clone(), labels.clone()
    fit_temperature(logits, labels)
    assert torch.equal(logits, copies[0])
    assert torch.equal(labels, copies[1])


def test_hopeless_temperatures_are_refused() -> None:
    right = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    with pytest.raises(ValueError, match=r"largest logit in every row.*at least one mistake"):
        fit_temperature(right, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="best temperature is infinite"):
        fit_temperature(right, torch.tensor([1, 0]))


@pytest.mark.usefixtures("own_checks")
def test_mistakes_are_named() -> None:
    good, right = torch.tensor([0.5, 0.7]), torch.tensor([True, False])
    with pytest.raises(ValueError, match=r"same shape, got \(2,\) and \(1,\)"):
        calibration_bins(good, right[:1])
    with pytest.raises(ValueError, match=r"need a row of predictions, got shape \(0,\)"):
        calibration_bins(good[:0], right[:0])
    with pytest.raises(ValueError, match="bins must be 1 or more, got 0"):
        expected_calibration_error(good, right, bins=0)
    with pytest.raises(ValueError, match=r"confidence must lie in \[0, 1\], got values from"):
        calibration_bins(good + 1, right)
    logits = torch.tensor([[1.0, 0.0], [0.5, 0.0]])
    with pytest.raises(ValueError, match=r"logits must be \(n, classes\), got shape \(2,\)"):
        fit_temperature(logits[0], torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"targets must be class ids, got torch.float32"):
        fit_temperature(logits, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 2\), got 2"):
        fit_temperature(logits, torch.tensor([0, 2]))
    for wrong in (-1, -100):  # there is nothing to ignore here
        with pytest.raises(ValueError, match=rf"targets must lie in \[0, 2\), got {wrong}"):
            fit_temperature(logits, torch.tensor([0, wrong]))
    with pytest.raises(ValueError, match=r"targets must hold integers, got torch.bool"):
        fit_temperature(logits, torch.tensor([False, True]))
    with pytest.raises(ValueError, match="logits must be finite, but 1 of 4"):
        fit_temperature(
            logits.clone().index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(math.inf)),
            torch.tensor([0, 1]),
        )
