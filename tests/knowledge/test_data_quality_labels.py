"""Wrong labels: corrections in expectation, losses that bear noise, and how errors are found."""

import math

import numpy as np
import pytest
import torch
from cleanlab.count import calibrate_confident_joint, compute_confident_joint
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from companion.knowledge import data_quality as dq


def logits(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64) * 1.5


def a_law(classes: int, g: torch.Generator) -> Tensor:
    """A matrix of noise that favors the true class."""
    noise = torch.rand(classes, classes, generator=g, dtype=torch.float64) * 0.4
    noise = noise + torch.eye(classes, dtype=torch.float64)
    return noise / noise.sum(1, keepdim=True)


T = torch.tensor([[0.7, 0.3], [0.1, 0.9]], dtype=torch.float64)
P = torch.tensor([0.9, 0.1], dtype=torch.float64)


def test_the_law_of_a_label_stands_in_the_row_of_its_class() -> None:
    forward = [dq.forward_cross_entropy(P.log(), torch.tensor(y), T) for y in (0, 1)]
    assert [round(math.exp(-float(loss)), 12) for loss in forward] == [0.64, 0.36]
    # On the other side the numbers are no law.
    assert not math.isclose(float((T @ P).sum()), 1.0)
    with pytest.raises(ValueError, match="transpose it"):
        dq.forward_cross_entropy(P.log(), torch.tensor(0), T.T)


def test_backward_losses_may_be_negative_and_are_right_on_average() -> None:
    told = torch.stack([dq.backward_cross_entropy(P.log(), torch.tensor(y), T) for y in (0, 1)])
    assert [round(float(loss), 4) for loss in told] == [-0.9933, 2.6688]
    assert math.isclose(float(T[0] @ told), -math.log(0.9), rel_tol=1e-12)


def test_the_mean_over_the_noise_is_the_clean_loss_and_its_gradient(g: torch.Generator) -> None:
    noise = a_law(5, g)
    z = logits(5, g=g).requires_grad_()
    for y in range(5):
        every = torch.arange(5)
        noisy = dq.backward_cross_entropy(z.expand(5, 5), every, noise, reduction="none")
        clean = torch.nn.functional.cross_entropy(z, torch.tensor(y))
        assert torch.allclose(noise[y] @ noisy, clean, rtol=1e-10)
        (a,) = torch.autograd.grad(noise[y] @ noisy, z)
        (b,) = torch.autograd.grad(clean, z)
        assert torch.allclose(a, b, atol=1e-10)


def test_the_forward_loss_is_least_at_the_clean_law(g: torch.Generator) -> None:
    noise, law = a_law(5, g), logits(5, g=g).softmax(0)
    noisy = law @ noise
    z = torch.zeros(5, dtype=torch.float64, requires_grad=True)

    def loss(z: Tensor) -> Tensor:
        every = torch.arange(5)
        return noisy @ dq.forward_cross_entropy(z.expand(5, 5), every, noise, reduction="none")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(z)
        value.backward()
        return value

    optimizer = torch.optim.LBFGS(
        [z],
        max_iter=300,
        tolerance_grad=1e-13,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )
    for _ in range(5):
        optimizer.step(closure)
    assert torch.allclose(z.softmax(0), law, atol=1e-5)


def test_both_corrections_are_cross_entropy_where_nothing_is_wrong(g: torch.Generator) -> None:
    z, y, eye = logits(7, 5, g=g), torch.randint(0, 5, (7,), generator=g), torch.eye(5)
    plain = torch.nn.functional.cross_entropy(z, y)
    assert torch.allclose(dq.forward_cross_entropy(z, y, eye.double()), plain)
    assert torch.allclose(dq.backward_cross_entropy(z, y, eye.double()), plain)


def test_the_forward_loss_is_finite_for_any_size_of_logits() -> None:
    z = torch.tensor([[1e4, 0.0], [-1e4, 1e4]], requires_grad=True)
    loss = dq.forward_cross_entropy(z, torch.tensor([1, 0]), dq.symmetric_noise(2, 0.2))
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert z.grad is not None
    assert bool(torch.isfinite(z.grad).all())


def test_generalized_cross_entropy_has_its_values_and_gradient() -> None:
    p = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for q, value in ((0.7, 0.54918), (1e-9, 0.69315), (1.0, 0.5)):
        assert round(float(dq.generalized_cross_entropy(p.log(), torch.tensor(0), q=q)), 5) == value
    # dL/dp = -p^(q-1), through the softmax of two logits: times p (1 - p).
    z = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    dq.generalized_cross_entropy(z, torch.tensor(0), q=0.7).backward()
    assert z.grad is not None
    assert round(float(z.grad[0]) / 0.25, 5) == -1.23114


def test_generalized_cross_entropy_pulls_by_a_power_of_the_probability(g: torch.Generator) -> None:
    z = logits(5, g=g).requires_grad_()
    y, q = torch.tensor(3), 0.6
    (ours,) = torch.autograd.grad(dq.generalized_cross_entropy(z, y, q=q), z)
    (plain,) = torch.autograd.grad(torch.nn.functional.cross_entropy(z, y), z)
    assert torch.allclose(ours, z.softmax(0)[3] ** q * plain)


def test_generalized_cross_entropy_is_finite_where_a_label_is_impossible() -> None:
    z = torch.tensor([[-1e5, 0.0]], requires_grad=True)
    loss = dq.generalized_cross_entropy(z, torch.tensor([0]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1 / 0.7)
    assert z.grad is not None
    assert bool(torch.isfinite(z.grad).all())


@given(st.integers(2, 7), st.floats(0.0, 1.0))
def test_symmetric_noise_is_a_law_of_which_a_share_is_wrong(classes: int, flipped: float) -> None:
    noise = dq.symmetric_noise(classes, flipped)
    assert torch.allclose(noise.sum(1), torch.ones(classes, dtype=torch.float64))
    assert torch.allclose(noise.diagonal(), torch.full((classes,), 1 - flipped).double())


def test_flips_have_the_law_that_was_asked_for_in_one_pass(g: torch.Generator) -> None:
    noise = torch.eye(10, dtype=torch.float64)
    noise[3, 3] = noise[3, 5] = noise[5, 5] = noise[5, 3] = 0.5
    true = torch.arange(10).repeat(20_000)
    found = dq.flip_labels(true, noise, generator=g)
    table = torch.zeros(10, 10).index_put_((true, found), torch.ones(()), accumulate=True) / 20_000
    spread = (noise * (1 - noise) / 20_000).sqrt()
    assert bool(((table - noise).abs() <= 5 * spread).all())
    # Flipping one class after the other would leave 12.5 % and 7.5 % instead of 10 and 10.
    assert abs(float((found == 3).double().mean()) - 0.1) < 0.003


def test_a_share_of_wrong_labels_is_not_one_of_labels_drawn_anew(g: torch.Generator) -> None:
    true = torch.arange(10).repeat(5_000)
    flipped = dq.flip_labels(true, dq.symmetric_noise(10, 0.4), generator=g)
    assert abs(float((flipped != true).double().mean()) - 0.4) < 5 * math.sqrt(0.24 / 50_000)
    anew = 0.6 * torch.eye(10, dtype=torch.float64) + 0.04
    redrawn = dq.flip_labels(true, anew, generator=g)
    assert abs(float((redrawn != true).double().mean()) - 0.36) < 5 * math.sqrt(0.24 / 50_000)


def test_symmetric_noise_moves_a_symmetric_loss_by_a_constant(g: torch.Generator) -> None:
    z = logits(11, 5, g=g)
    noise = dq.symmetric_noise(5, 0.3)
    every = torch.arange(5)
    for q, steady in ((1.0, True), (0.3, False)):
        losses = torch.stack(
            [
                dq.generalized_cross_entropy(z, every[k].expand(11), q=q, reduction="none")
                for k in every
            ]
        )  # (labels, examples)
        total = losses.sum(0)
        assert bool(torch.allclose(total, torch.full_like(total, 4.0))) == steady
        for y in every:
            risk = dq.symmetric_risk(losses[y], total, classes=5, flipped=0.3)
            assert torch.allclose(noise[y] @ losses, risk)


# --- confident learning --------------------------------------------------------------------------


def predictions(n: int, classes: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    true = torch.randint(0, classes, (n,), generator=g)
    sharp = torch.nn.functional.one_hot(true, classes) * 2.0
    probs = (sharp + torch.randn(n, classes, generator=g, dtype=torch.float64)).softmax(1)
    return probs, dq.flip_labels(true, dq.symmetric_noise(classes, 0.3), generator=g)


def naive_joint(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    classes = probs.shape[1]
    t = [probs[labels == j, j].mean() if (labels == j).any() else np.inf for j in range(classes)]
    counts = np.zeros((classes, classes), dtype=int)
    for p, y in zip(probs, labels, strict=True):
        passed = [j for j in range(classes) if p[j] >= t[j] - 1e-6]
        if passed:
            counts[y, max(passed, key=lambda j: p[j])] += 1
    return counts


def collisions(probs: Tensor, labels: Tensor) -> Tensor:
    """Where the likeliest class that passes is not the likeliest of all."""
    found = dq.confident_joint(probs, labels)
    passed = (probs >= found.thresholds - 1e-6).sum(1)
    return (passed > 1) & (found.guess != probs.argmax(1))


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_confident_joint_is_that_of_cleanlab(classes: int, g: torch.Generator) -> None:
    probs, labels = predictions(997, classes, g)
    ours = dq.confident_joint(probs, labels).counts
    assert np.array_equal(ours.numpy(), naive_joint(probs.numpy(), labels.numpy()))
    theirs = compute_confident_joint(labels.numpy(), probs.numpy(), calibrate=False)
    assert not bool(collisions(probs, labels).any())
    assert np.array_equal(ours.numpy(), theirs)
    calibrated = dq.calibrate_joint(ours, labels)
    peer = calibrate_confident_joint(theirs, labels.numpy())
    assert np.abs(calibrated.numpy() * 997 - peer).max() <= 1  # its counts are whole
    _, found = compute_confident_joint(
        labels.numpy(), probs.numpy(), calibrate=False, return_indices_of_off_diagonals=True
    )
    assert dq.label_errors(probs, labels).nonzero()[:, 0].tolist() == found.tolist()


def test_of_several_classes_that_pass_the_likeliest_of_them_is_taken() -> None:
    # A row (.1, .2, .3, .4) labeled C, where A and C pass their thresholds and D does not.
    low = [0.01, 0.33, 0.01, 0.65]
    rows, labels = [[0.1, 0.2, 0.3, 0.4]], [2]
    for k in range(4):  # examples whose means are about (.01, .5, .01, .5)
        high = {1: [0.2, 0.5, 0.1, 0.2], 3: [0.2, 0.2, 0.1, 0.5]}.get(k)
        rows += [high or (low if k == 0 else [0.33, 0.01, 0.01, 0.65])] * 60
        labels += [k] * 60
    probs, y = torch.tensor(rows, dtype=torch.float64), torch.tensor(labels)
    found = dq.confident_joint(probs, y)
    assert [round(float(t), 2) for t in found.thresholds] == [0.01, 0.5, 0.01, 0.5]
    assert int(found.guess[0]) == 2
    assert not bool(dq.label_errors(probs, y)[0])
    _, peer = compute_confident_joint(
        y.numpy(), probs.numpy(), calibrate=False, return_indices_of_off_diagonals=True
    )
    assert 0 in peer  # the package takes D, which has not passed: a false alarm
    assert bool(collisions(probs, y)[0])


def test_a_class_without_confident_examples_keeps_its_row_and_column() -> None:
    probs = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.4, 0.5, 0.1]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    ours = dq.confident_joint(probs, labels)
    assert ours.counts.shape == (3, 3)
    assert ours.counts[2].tolist() == [0, 0, 0]
    assert float(ours.thresholds[2]) == math.inf
    # The package floors its diagonal at 1, so an absent class counts an example.
    joint = dq.calibrate_joint(ours.counts, labels)
    assert math.isclose(float(joint.sum()), 1.0)
    assert float(joint[2].sum()) == 0


def test_the_package_floors_its_diagonal_and_we_do_not(g: torch.Generator) -> None:
    probs, _ = predictions(200, 3, g)
    labels = (probs.argmax(1) + 1) % 3  # all of them wrong
    ours = dq.confident_joint(probs, labels).counts
    theirs = compute_confident_joint(labels.numpy(), probs.numpy(), calibrate=False)
    assert ours.diagonal().tolist() == [0, 0, 0]
    assert theirs.diagonal().tolist() == [1, 1, 1]
    off = ~torch.eye(3, dtype=torch.bool)
    assert np.array_equal(ours[off].numpy(), theirs[off.numpy()])


def test_the_joint_of_good_predictions_recovers_the_noise(g: torch.Generator) -> None:
    true = torch.randint(0, 5, (40_000,), generator=g)
    noise = a_law(5, g)
    labels = dq.flip_labels(true, noise, generator=g)
    probs = 0.9 * torch.nn.functional.one_hot(true, 5).double() + 0.02
    joint = dq.calibrate_joint(dq.confident_joint(probs, labels).counts, labels)
    recovered = (joint / joint.sum(0)).T  # rows the true classes
    assert float((recovered - noise).abs().max()) < 0.02


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: dq.symmetric_noise(1, 0.1), "classes must"),
        (lambda: dq.symmetric_noise(3, 1.1), "flipped must"),
        (
            lambda: dq.flip_labels(torch.tensor([3]), torch.eye(3), generator=torch.Generator()),
            "labels",
        ),
        (
            lambda: dq.flip_labels(
                torch.tensor([0]), torch.ones(2, 2), generator=torch.Generator()
            ),
            "must be a law",
        ),
        (
            lambda: dq.forward_cross_entropy(torch.zeros(1, 3), torch.tensor([0]), torch.eye(2)),
            "noise",
        ),
        (
            lambda: dq.backward_cross_entropy(
                torch.zeros(1, 2), torch.tensor([0]), torch.full((2, 2), 0.5)
            ),
            "cannot be inverted",
        ),
        (
            lambda: dq.generalized_cross_entropy(torch.zeros(1, 2), torch.tensor([0]), q=0.0),
            "q must",
        ),
        (
            lambda: dq.generalized_cross_entropy(
                torch.zeros(1, 2), torch.tensor([0]), reduction="all"
            ),
            "unknown reduction 'all'",
        ),
        (lambda: dq.confident_joint(torch.ones(2, 3), torch.tensor([0, 1])), "take the softmax"),
        (lambda: dq.confident_joint(torch.ones(2, 3) / 3, torch.tensor([0])), "probs"),
        (lambda: dq.calibrate_joint(torch.ones(2, 3), torch.tensor([0])), "counts"),
    ],
)
def test_what_is_out_of_its_domain_is_refused(wrong, said) -> None:
    with pytest.raises(ValueError, match=said):
        wrong()


def test_losses_are_shapes_without_values_on_the_meta_device() -> None:
    z = torch.empty(5, 3, device="meta")
    y = torch.empty(5, dtype=torch.long, device="meta")
    noise = torch.empty(3, 3, device="meta")
    assert dq.forward_cross_entropy(z, y, noise, reduction="none").device.type == "meta"
    assert dq.backward_cross_entropy(z, y, noise, reduction="none").shape == (5,)
    assert dq.generalized_cross_entropy(z, y).shape == ()
    assert dq.confident_joint(z, y).counts.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32])
def test_labels_of_any_integers_are_labels(dtype: torch.dtype, g: torch.Generator) -> None:
    logits, labels = torch.randn(4, 3, generator=g), torch.tensor([0, 1, 2, 1])
    noise = dq.symmetric_noise(3, 0.3)
    for loss in (dq.forward_cross_entropy, dq.backward_cross_entropy):
        assert torch.equal(loss(logits, labels.to(dtype), noise), loss(logits, labels, noise))
    kept = dq.flip_labels(labels.to(dtype), torch.eye(3), generator=g)
    assert torch.equal(kept, labels.to(dtype))


def test_probabilities_in_half_precision_are_laws_up_to_their_rounding(g) -> None:
    probs = torch.randn(200, 20, generator=g).softmax(1)
    labels = torch.randint(0, 20, (200,), generator=g)
    assert dq.confident_joint(probs.bfloat16(), labels).guess.shape == (200,)


def test_a_noise_matrix_with_holes_is_refused(own_checks) -> None:
    holes = torch.full((3, 3), torch.nan)
    with pytest.raises(ValueError, match="must be a law"):
        dq.forward_cross_entropy(torch.zeros(1, 3), torch.tensor([0]), holes)


@pytest.mark.parametrize("shape", [(2,), (5, 1), (1,), (3, 5)])
def test_there_is_one_label_for_each_row_of_logits(shape: tuple[int, ...], own_checks) -> None:
    # (2,) once counted two rows of five, and (5, 1) every label with every row.
    z, y = torch.zeros(5, 3), torch.zeros(shape, dtype=torch.long)
    noise, prior = dq.symmetric_noise(3, 0.2), torch.ones(3) / 3
    for loss in (
        lambda: dq.forward_cross_entropy(z, y, noise),
        lambda: dq.backward_cross_entropy(z, y, noise),
        lambda: dq.generalized_cross_entropy(z, y),
        lambda: dq.focal_loss(z, y),
        lambda: dq.logit_adjusted_cross_entropy(z, y, prior),
    ):
        with pytest.raises(ValueError, match=r"labels must have shape \(5,\)"):
            loss()


def test_a_label_that_cannot_come_does_not_come(g: torch.Generator) -> None:
    # The rows sum to 1 within the tolerance; what is missing is no share of the last class.
    noise = torch.tensor([[0.99995, 0.0], [0.0, 1.0]])
    labels = torch.zeros(1_000_000, dtype=torch.long)  # 50 of them on average, if it were
    assert int(dq.flip_labels(labels, noise, generator=g).sum()) == 0


def test_a_threshold_that_is_just_met_is_met() -> None:
    # The only example of a class has the class's mean for its own probability.
    probs = torch.tensor([[0.6, 0.4], [0.3, 0.7]])
    assert dq.confident_joint(probs, torch.tensor([0, 1])).counts.tolist() == [[1, 0], [0, 1]]
