"""Losses without negatives, their dynamics, views of pictures, and the stored run."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion import data
from companion.pretraining.self_supervised import (
    alignment,
    barlow_twins,
    byol_target_update_,
    cross_correlation,
    effective_rank,
    projector,
    random_affine,
    siamese_flow,
    simsiam_loss,
    vicreg,
    vicreg_terms,
)

N, D = 7, 3
# Sums of a few dozen products of order 1 in float64.
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def rows(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


# --- Barlow Twins and VICReg --------------------------------------------------------------------


def test_cross_correlation_is_that_of_numpy_and_of_batch_norm(g: torch.Generator) -> None:
    U, V = rows(g, N, D), 3 + 2 * rows(g, N, D)
    theirs = np.corrcoef(U.numpy(), V.numpy(), rowvar=False)[:D, D:]
    torch.testing.assert_close(cross_correlation(U, V, eps=0.0), torch.from_numpy(theirs), **EXACT)
    norm = nn.BatchNorm1d(D, affine=False, dtype=torch.float64)
    expected = norm(U).T @ norm(V) / N
    torch.testing.assert_close(cross_correlation(U, V), expected, **EXACT)


def test_barlow_twins_by_loops(g: torch.Generator) -> None:
    U, V = rows(g, N, D), rows(g, N, D)
    C = np.corrcoef(U.numpy(), V.numpy(), rowvar=False)[:D, D:]
    total = 0.0
    for c in range(D):
        for e in range(D):
            total += (1 - C[c, e]) ** 2 if c == e else 0.2 * C[c, e] ** 2
    made = barlow_twins(U, V, weight=0.2, eps=0.0)
    assert math.isclose(float(made), total, rel_tol=1e-12)


def test_the_gradient_of_barlow_twins_is_that_of_the_chapter(g: torch.Generator) -> None:
    U, V = rows(g, N, D).requires_grad_(), rows(g, N, D)
    (made,) = torch.autograd.grad(barlow_twins(U, V, weight=0.2, eps=0.0), U)
    sigma = U.detach().std(0, correction=0)
    u = (U.detach() - U.detach().mean(0)) / sigma
    v = (V - V.mean(0)) / V.std(0, correction=0)
    C, eye = u.T @ v / N, torch.eye(D, dtype=torch.float64)
    G = -2 * (1 - C) * eye + 2 * 0.2 * C * (1 - eye)
    back = v @ G.T / N
    expected = (back - back.mean(0) - u * (back * u).mean(0)) / sigma
    torch.testing.assert_close(made, expected, **EXACT)
    assert float(made.sum(0).abs().max()) < 1e-13  # no shift
    assert float((made * u).sum(0).abs().max()) < 1e-13  # no scaling


def test_barlow_twins_does_not_see_shifts_and_scales(g: torch.Generator) -> None:
    U, V = rows(g, N, D), rows(g, N, D)
    moved = U * torch.tensor([0.5, 3.0, 7.0]) + rows(g, 1, D)
    torch.testing.assert_close(
        barlow_twins(moved, V, eps=0.0), barlow_twins(U, V, eps=0.0), **EXACT
    )


def test_vicreg_by_loops(g: torch.Generator) -> None:
    U, V = rows(g, N, D), 0.3 * rows(g, N, D)
    near = float(((U - V) ** 2).sum()) / (N * D)
    hinge = covariance = 0.0
    for z in (U.numpy(), V.numpy()):
        cov = np.cov(z, rowvar=False)
        for c in range(D):
            hinge += max(0.0, 1 - math.sqrt(cov[c, c] + 1e-4)) / D / 2
            covariance += sum(cov[c, e] ** 2 for e in range(D) if e != c) / D
    terms = vicreg_terms(U, V)
    for made, expected in zip(terms, (near, hinge, covariance), strict=True):
        assert math.isclose(float(made), expected, rel_tol=1e-11)
    total = vicreg(U, V, invariance=3.0, variance=5.0, covariance=7.0)
    assert math.isclose(float(total), 3 * near + 5 * hinge + 7 * covariance, rel_tol=1e-11)


def test_decorrelated_views_of_variance_one_cost_nothing(g: torch.Generator) -> None:
    Q = torch.linalg.qr(rows(g, N, D + 1) * 1.0 + torch.eye(N, D + 1, dtype=torch.float64))[0]
    centered = torch.linalg.qr(torch.cat([torch.ones(N, 1, dtype=torch.float64), Q], 1))[0]
    z = centered[:, 1 : D + 1] * math.sqrt(N - 1)
    assert float(vicreg(z, z)) < 1e-12
    assert float(barlow_twins(z, z, eps=0.0)) < 1e-12


def test_a_constant_costs_both_losses_what_the_chapter_says() -> None:
    z = torch.ones(N, D, dtype=torch.float64)
    assert math.isclose(float(barlow_twins(z, z)), D)
    assert math.isclose(float(vicreg_terms(z, z).variance), 0.99)  # 1 - root of eps
    assert float(alignment(z, z)) == 0.0


# --- SimSiam and BYOL ---------------------------------------------------------------------------


def test_simsiam_is_minus_the_mean_cosine(g: torch.Generator) -> None:
    P_u, P_v, Z_u, Z_v = (rows(g, N, D) for _ in range(4))
    expected = -(F.cosine_similarity(P_u, Z_v) + F.cosine_similarity(P_v, Z_u)).mean() / 2
    torch.testing.assert_close(simsiam_loss(P_u, P_v, Z_u, Z_v), expected, **EXACT)
    units = [F.normalize(t, dim=1) for t in (P_u, P_v, Z_u, Z_v)]
    byol = ((units[0] - units[3]) ** 2).sum(1).mean() + ((units[1] - units[2]) ** 2).sum(1).mean()
    torch.testing.assert_close(4 * simsiam_loss(P_u, P_v, Z_u, Z_v) + 4, byol, **EXACT)


def test_targets_get_no_gradient_unless_asked(g: torch.Generator) -> None:
    P, Z = rows(g, N, D).requires_grad_(), rows(g, N, D).requires_grad_()
    stopped = torch.autograd.grad(simsiam_loss(P, P, Z, Z), (P, Z), allow_unused=True)
    free = torch.autograd.grad(simsiam_loss(P, P, Z, Z, stop_gradient=False), (P, Z))
    assert stopped[1] is None
    assert float(free[1].abs().max()) > 0.01
    torch.testing.assert_close(stopped[0], free[0], **EXACT)


def test_without_a_predictor_stop_gradient_only_halves_the_gradient(g: torch.Generator) -> None:
    U, V = rows(g, N, D).requires_grad_(), rows(g, N, D).requires_grad_()
    halved = torch.autograd.grad(simsiam_loss(U, V, U, V), (U, V))
    unit = (F.normalize(z, dim=1) for z in (U, V))
    whole = torch.autograd.grad(alignment(*unit) / 2, (U, V))
    for a, b in zip(halved, whole, strict=True):
        torch.testing.assert_close(2 * a, b, **EXACT)


def test_the_target_is_a_moving_average(g: torch.Generator) -> None:
    slow, fast = [rows(g, N, D), rows(g, D)], [rows(g, N, D), rows(g, D)]
    expected = [0.9 * a + 0.1 * b for a, b in zip(slow, fast, strict=True)]
    held = [t.clone() for t in fast]
    byol_target_update_(slow, fast, decay=0.9)
    for a, b in zip(slow, expected, strict=True):
        torch.testing.assert_close(a, b, **EXACT)
    assert all(torch.equal(a, b) for a, b in zip(fast, held, strict=True))


def test_parameters_that_require_a_gradient_can_be_updated() -> None:
    online, target = nn.Linear(3, 2), nn.Linear(3, 2)
    byol_target_update_(target.parameters(), online.parameters(), decay=0.0)
    assert torch.equal(target.weight, online.weight)
    assert target.weight.requires_grad
    with pytest.raises(ValueError, match="same number of tensors, got 1 and 2"):
        byol_target_update_([target.weight], online.parameters(), decay=0.5)
    before = target.weight.clone()
    with pytest.raises(ValueError, match="must have the same shape"):
        byol_target_update_(
            [target.weight, target.bias], [online.weight + 1, online.weight], decay=0
        )
    assert torch.equal(target.weight, before)  # refused whole
    with pytest.raises(ValueError, match="decay must lie in"):
        byol_target_update_([target.weight], [online.weight], decay=1.5)


# --- the flow of linear SimSiam -----------------------------------------------------------------


@pytest.mark.parametrize("stop", [True, False])
def test_modes_move_as_the_matrices_do(stop: bool, g: torch.Generator) -> None:
    noise, decay = 0.4, 0.07
    p, s = rows(g, D), rows(g, D) ** 2 + 0.1
    Q = torch.linalg.qr(rows(g, 5, D))[0]
    R = torch.linalg.qr(rows(g, D, D))[0]
    W, P = (Q * s.sqrt() @ R.T).requires_grad_(), (R * p @ R.T).requires_grad_()
    target = W.detach() if stop else W
    # E|x W P - x' target|^2 / 2 with E x^T x = (1 + noise) I and E x^T x' = I
    loss = ((1 + noise) * ((W @ P) ** 2 + target**2) / 2 - (W @ P) * target).sum()
    dW, dP = (
        -d - decay * M.detach()
        for d, M in zip(torch.autograd.grad(loss, (W, P)), (W, P), strict=True)
    )
    dF = dW.T @ W.detach() + W.detach().T @ dW
    made = siamese_flow(p, s, noise=noise, decay=decay, stop_gradient=stop)
    for vector, matrix in zip(made, (dP, dF), strict=True):
        rotated = R.T @ matrix @ R
        torch.testing.assert_close(vector, rotated.diagonal(), **EXACT)
        # Eigenvectors stay: nothing moves off the diagonal.
        assert float((rotated - rotated.diagonal().diag()).abs().max()) < 1e-12


def test_without_a_predictor_or_a_stop_representations_shrink(g: torch.Generator) -> None:
    p, s = 2 * rows(g, 97), rows(g, 97) ** 2 + 0.1
    d_p, d_s = siamese_flow(torch.ones_like(p), s, noise=0.4, decay=0.07, predictor=False)
    assert not d_p.any()
    torch.testing.assert_close(d_s, -2 * (0.4 + 0.07) * s, **EXACT)
    _, d_s = siamese_flow(p, s, noise=0.4, decay=0.07, stop_gradient=False)
    rate = -2 * ((1 - p) ** 2 + 0.4 * (1 + p**2) + 0.07)
    torch.testing.assert_close(d_s / s, rate, **EXACT)


def test_points_of_rest_and_their_eigenvalues() -> None:
    noise, decay = 0.3, 0.1
    a = 1 + noise
    root = math.sqrt(1 - 4 * a * decay)

    def flow(z: Tensor) -> Tensor:
        return torch.stack(siamese_flow(z[0], z[1], noise=noise, decay=decay))

    for sign in (1, -1):
        p = (1 + sign * root) / (2 * a)
        z = torch.tensor([p, p**2], dtype=torch.float64)
        assert float(flow(z).abs().max()) < 1e-15
        J = torch.autograd.functional.jacobian(flow, z)  # type: ignore[no-untyped-call]
        found = sorted(torch.linalg.eigvals(J).real.tolist())
        assert np.allclose(found, sorted([-2 * decay, -sign * p * root]), rtol=1e-10)
    origin = torch.autograd.functional.jacobian(flow, torch.zeros(2, dtype=torch.float64))  # type: ignore[no-untyped-call]
    assert np.allclose(sorted(torch.linalg.eigvals(origin).real.tolist()), [-0.2, -0.1])


@pytest.mark.parametrize(("start", "ends"), [(0.3, 0.678), (0.06, 0.0)])
def test_the_saddle_divides_learning_from_collapse(start: float, ends: float) -> None:
    # noise 0.3, decay 0.08: p_- = 0.0908, p_+ = 0.6784
    p, s = torch.tensor(start).double(), torch.tensor(start**2).double()
    for _ in range(20_000):
        d_p, d_s = siamese_flow(p, s, noise=0.3, decay=0.08)
        p, s = p + 0.02 * d_p, s + 0.02 * d_s
    assert abs(float(p) - ends) < 1e-3
    assert abs(float(s) - ends**2) < 1e-3


# --- views and networks -------------------------------------------------------------------------


def test_nothing_at_random_is_the_picture_itself(g: torch.Generator) -> None:
    images = torch.rand(N, 49, generator=g)
    still = random_affine(images, generator=g, turn=0, stretch=0, shift=0, noise=0)
    torch.testing.assert_close(still, images, rtol=0, atol=1e-6)


def test_views_repeat_with_their_generator_and_differ_otherwise(g: torch.Generator) -> None:
    images = torch.rand(N, 49, generator=g)
    first, again, other = (
        random_affine(images, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert float((first - other).abs().mean()) > 0.05
    assert random_affine(images.bfloat16(), generator=g).dtype == torch.bfloat16
    assert random_affine(images.to("meta"), generator=g).device.type == "meta"


def test_a_turn_is_that_of_scipy() -> None:
    images = torch.rand(1, 49, generator=torch.Generator().manual_seed(5))
    made = random_affine(
        images, generator=torch.Generator().manual_seed(0), stretch=0, shift=0, noise=0, turn=2.0
    )
    # The angle is the first number that is drawn.
    draw = float(torch.rand(1, generator=torch.Generator().manual_seed(0)))
    c, s = math.cos(2.0 * (2 * draw - 1)), math.sin(2.0 * (2 * draw - 1))
    matrix = np.array([[c, s], [-s, c]])  # rows, then columns, of the pixel that is read
    middle = np.array([3.0, 3.0])
    theirs = scipy.ndimage.affine_transform(
        images.view(7, 7).numpy(), matrix, middle - matrix @ middle, order=1, mode="grid-constant"
    )
    torch.testing.assert_close(made.view(7, 7), torch.from_numpy(theirs), rtol=0, atol=1e-5)


def test_the_projector_has_its_widths_and_its_variance(g: torch.Generator) -> None:
    net = projector((64, 257, 31), generator=g)
    assert [type(m).__name__ for m in net] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert net(torch.randn(N, 64, generator=g)).shape == (N, 31)
    # 64 * 257 weights: the standard deviation is known to half a percent
    assert math.isclose(float(net[0].weight.detach().std()), math.sqrt(2 / 64), rel_tol=0.03)
    same = projector((64, 257, 31), generator=torch.Generator().manual_seed(0))
    other = projector((64, 257, 31), generator=torch.Generator().manual_seed(0))
    assert torch.equal(same[0].weight, other[0].weight)


def test_digits_collapse_without_what_prevents_it(g: torch.Generator) -> None:
    images = data.digits().images[:512]
    ranks = {}
    for name, loss in {
        "alignment": lambda u, v: alignment(F.normalize(u), F.normalize(v)),
        "barlow": lambda u, v: barlow_twins(u, v, weight=0.02),
    }.items():
        source = torch.Generator().manual_seed(0)
        net = projector((64, 64, 32), generator=source)
        descent = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(120):
            x = images[torch.randint(512, (64,), generator=source)]
            u, v = (net(random_affine(x, generator=source)) for _ in range(2))
            descent.zero_grad()
            loss(u, v).backward()
            descent.step()
        ranks[name] = float(effective_rank(F.normalize(net.eval()(images).detach())))
    assert ranks["alignment"] < 8 < 12 < ranks["barlow"]


# --- contracts ----------------------------------------------------------------------------------


def test_inputs_are_left_alone(g: torch.Generator) -> None:
    U, V = rows(g, N, D), rows(g, N, D)
    held = U.clone(), V.clone()
    barlow_twins(U, V), vicreg(U, V), simsiam_loss(U, V, U, V), siamese_flow(U, V, noise=0.1)
    random_affine(U[:, :1], generator=g)
    assert torch.equal(U, held[0])
    assert torch.equal(V, held[1])


def test_everything_runs_on_meta() -> None:
    U = torch.empty(N, D, device="meta")
    made = [barlow_twins(U, U), vicreg(U, U), simsiam_loss(U, U, U, U)]
    made += [*siamese_flow(U, U, noise=0.1), cross_correlation(U, U), *vicreg_terms(U, U)]
    assert all(t.device.type == "meta" for t in made)
    byol_target_update_([U], [U], decay=0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(
    dtype: torch.dtype, g: torch.Generator, device: torch.device
) -> None:
    U, V = (rows(g, N, D).to(device, dtype) for _ in range(2))
    for made in (barlow_twins(U, V), vicreg(U, V), simsiam_loss(U, V, U, V)):
        assert made.dtype == torch.float32
        assert bool(torch.isfinite(made))


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda U: barlow_twins(U, U, weight=-1.0), "weight must lie in"),
        (lambda U: barlow_twins(U[:1], U[:1]), "U needs at least 2 rows, got 1"),
        (lambda U: vicreg(U, U, variance=-1.0), "variance must lie in"),
        (lambda U: vicreg(U, U[:, :1]), "one shape"),
        (lambda U: simsiam_loss(U, U, U[:2], U), r"P_v and Z_u are two views"),
        (lambda U: siamese_flow(U, U[0], noise=0.1), "p and s must have the same shape"),
        (lambda U: siamese_flow(U, U, noise=-0.1), "noise must lie in"),
        (lambda U: siamese_flow(U, U, noise=0.1, decay=-1.0), "decay must lie in"),
        (lambda U: random_affine(U, generator=torch.Generator()), "3 pixels make no square"),
        (lambda U: random_affine(U, generator=torch.Generator(), turn=-1), "turn must lie in"),
        (lambda U: projector((3,), generator=torch.Generator()), "inputs and outputs, got"),
        (lambda U: projector((3, 0), generator=torch.Generator()), "a width must be"),
    ],
)
def test_errors_name_what_is_wrong(
    call: Callable[[Tensor], Any], message: str, g: torch.Generator
) -> None:
    with pytest.raises(ValueError, match=message):
        call(rows(g, N, D))


# --- the stored run -----------------------------------------------------------------------------


def test_the_script_of_the_run_runs(scripts: Any) -> None:
    small = {"steps": 2, "every": 1, "batch": 3, "held-out": 5, "layers": 1, "seed": 3}
    arguments = [part for key, value in small.items() for part in (f"--{key}", str(value))]
    run = scripts.run("simcse", *arguments)
    made = run.results
    assert run.seed == 3
    assert [run["steps"] for run in made["runs"]] == [[0, 1, 2], [0, 1, 2]]
    dropped, equal = made["runs"]
    assert min(dropped["views"]) > 0.01
    assert max(equal["views"]) < 1e-6  # without dropout both views are one
    assert all(math.isfinite(v) for run in made["runs"] for v in run["loss"])


def test_halves_make_the_whole(scripts: Any) -> None:
    script = scripts.load("simcse")
    assert [script.half("In the beginning God created", side) for side in (0, 1)] == [
        "In the",
        "beginning God created",
    ]
    texts, held = script.verse_pairs(held_out=11, generator=torch.Generator().manual_seed(0))
    assert len(held) == 11
    # Places differ; a few verses are repeated word for word elsewhere.
    everything = [verse.text for verse in data.bible_verses("kjv")]
    repeated = {text for text, count in Counter(everything).items() if count > 1}
    assert {kjv for kjv, _ in held} & set(texts) <= repeated


def test_the_stored_run_says_what_the_chapter_says() -> None:
    run = data.stored_run("simcse")
    assert run.command == "python book/_runs/simcse.py"
    dropped, equal = run.results["runs"]
    assert [dropped["dropout"], equal["dropout"]] == [0.1, 0.0]
    for one in (dropped, equal):
        assert one["uniformity"][-1] < one["uniformity"][0] - 1.5
        assert one["alignment"][-1] > one["alignment"][0]
        assert one["halves"][-1] < one["halves"][0]
    # One curve: the run without dropout passes near the points of the other.
    order = np.argsort(equal["alignment"])
    on = np.interp(
        dropped["alignment"],
        np.array(equal["alignment"])[order],
        np.array(equal["uniformity"])[order],
    )
    inside = np.array(dropped["alignment"]) <= max(equal["alignment"])
    assert np.abs(on - np.array(dropped["uniformity"]))[inside].max() < 0.15
