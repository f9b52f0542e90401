"""Contrastive losses and bounds on information, against loops, enumeration and closed forms."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score
from torch import Tensor

from companion.foundations.embeddings import pmi
from companion.pretraining.self_supervised import (
    alignment,
    batch_expectation,
    chi_squared,
    effective_rank,
    expected_info_nce,
    gaussian_log_ratio,
    gaussian_mutual_information,
    info_nce,
    mi_ba,
    mi_dv,
    mi_info_nce,
    mi_nwj,
    mutual_information,
    normalized_adjacency,
    nt_xent,
    spectral_contrastive,
    spectral_optimum,
    uniformity,
    uniformity_floor,
)
from companion.verify import peak_bytes

N, D, M = 7, 5, 3
# Sums of a few dozen products of order 1 in float64.
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def rows(g: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)


def table(g: torch.Generator, *shape: int) -> Tensor:
    made = 0.05 + torch.rand(*shape, generator=g, dtype=torch.float64)
    return made / made.sum()


def value_and_gradients(loss: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [loss, *torch.autograd.grad(loss, inputs)]


# --- InfoNCE ------------------------------------------------------------------------------------


def loops(
    U: Tensor, V: Tensor, tau: float, *, positive: bool = True, extra: Tensor | None = None
) -> float:
    keys = V.tolist() + ([] if extra is None else extra.tolist())
    total = 0.0
    for i, u in enumerate(U.tolist()):
        scores = [sum(a * b for a, b in zip(u, v, strict=True)) / tau for v in keys]
        below = sum(math.exp(s) for j, s in enumerate(scores) if positive or j != i)
        total -= scores[i] - math.log(below)
    return total / len(U)


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("extra", [True, False])
def test_info_nce_is_three_loops(extra: bool, positive: bool, g: torch.Generator) -> None:
    U, V, more = rows(g, N, D), rows(g, N, D), rows(g, M, D) if extra else None
    made = info_nce(U, V, temperature=0.7, positive_in_denominator=positive, negatives=more)
    assert math.isclose(float(made), loops(U, V, 0.7, positive=positive, extra=more), rel_tol=1e-12)


@pytest.mark.parametrize("positive", [True, False])
def test_symmetric_averages_rows_and_columns(positive: bool, g: torch.Generator) -> None:
    U, V = rows(g, N, D), rows(g, N, D)
    made = info_nce(U, V, temperature=0.7, symmetric=True, positive_in_denominator=positive)
    both = (loops(U, V, 0.7, positive=positive) + loops(V, U, 0.7, positive=positive)) / 2
    assert math.isclose(float(made), both, rel_tol=1e-12)
    assert not math.isclose(float(made), loops(U, V, 0.7, positive=positive), rel_tol=1e-3)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, N, 97])
def test_chunks_change_no_value_and_no_gradient(
    chunk: int, symmetric: bool, g: torch.Generator
) -> None:
    U, V = (rows(g, N, D).requires_grad_() for _ in range(2))
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    made, plain = (
        value_and_gradients(
            3 * info_nce(U, V, temperature=tau, symmetric=symmetric, chunk_size=size), (U, V, tau)
        )
        for size in (chunk, None)
    )
    for a, b in zip(made, plain, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_chunks_take_extra_negatives(g: torch.Generator) -> None:
    U, V, more = rows(g, N, D), rows(g, N, D), rows(g, M, D)
    made = info_nce(U, V, temperature=0.5, negatives=more, chunk_size=2)
    assert math.isclose(float(made), loops(U, V, 0.5, extra=more), rel_tol=1e-12)


def test_chunks_hold_a_share_of_the_scores(g: torch.Generator) -> None:
    U, V = (rows(g, 512, 8, dtype=torch.float32).requires_grad_() for _ in range(2))

    def peak(chunk: int | None) -> int:
        return peak_bytes(lambda: info_nce(U, V, temperature=0.1, chunk_size=chunk).backward())

    matrix = 4 * 512**2
    assert peak(None) > 2 * matrix  # scores and their gradient
    assert peak(16) < matrix / 4


def test_the_gradient_of_the_scores_is_probability_minus_target(g: torch.Generator) -> None:
    U, V = rows(g, N, D).requires_grad_(), rows(g, N, D)
    (made,) = torch.autograd.grad(info_nce(U, V, temperature=0.4), U)
    p = torch.softmax(U.detach() @ V.T / 0.4, 1)
    torch.testing.assert_close(made, (p - torch.eye(N)) @ V / (N * 0.4), **EXACT)


def test_the_decoupled_loss_differs_by_the_log_of_what_the_negatives_get(
    g: torch.Generator,
) -> None:
    U, V = rows(g, N, D), rows(g, N, D)
    positive = torch.softmax(U @ V.T / 0.6, 1).diagonal()
    made = info_nce(U, V, temperature=0.6, positive_in_denominator=False)
    expected = info_nce(U, V, temperature=0.6) + (1 - positive).log().mean()
    torch.testing.assert_close(made, expected, **EXACT)


def test_equal_scores_cost_the_logarithm_of_the_candidates() -> None:
    ones = torch.ones(N, D, dtype=torch.float64)
    assert math.isclose(float(info_nce(ones, ones, temperature=0.1)), math.log(N), rel_tol=1e-12)


def test_nt_xent_is_simclr_by_loops(g: torch.Generator) -> None:
    U, V = rows(g, N, D), rows(g, N, D)
    Z = [[c / math.sqrt(sum(x * x for x in r)) for c in r] for r in torch.cat([U, V]).tolist()]
    total = 0.0
    for i in range(2 * N):
        scores = [sum(a * b for a, b in zip(Z[i], z, strict=True)) / 0.5 for z in Z]
        below = sum(math.exp(s) for j, s in enumerate(scores) if j != i)
        total -= scores[(i + N) % (2 * N)] - math.log(below)
    assert math.isclose(float(nt_xent(U, V, temperature=0.5)), total / (2 * N), rel_tol=1e-12)


def test_nt_xent_does_not_see_lengths(g: torch.Generator) -> None:
    U, V = rows(g, N, D), rows(g, N, D)
    scale = 0.1 + torch.rand(N, 1, generator=g, dtype=torch.float64)
    made = nt_xent(scale * U, 3 * V, temperature=0.5)
    torch.testing.assert_close(made, nt_xent(U, V, temperature=0.5), **EXACT)


# --- information --------------------------------------------------------------------------------


def test_mutual_information_agrees_with_scikit_learn(g: torch.Generator) -> None:
    counts = torch.randint(0, 20, (M, D), generator=g).double()
    counts[0, 1] = 0  # a pair that never occurs
    theirs = mutual_info_score(None, None, contingency=counts.numpy())
    ours = mutual_information(counts / counts.sum())
    assert math.isclose(float(ours), theirs, rel_tol=1e-12)


def test_independent_variables_share_nothing_and_copies_share_their_entropy() -> None:
    x = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    y = torch.tensor([0.6, 0.4], dtype=torch.float64)
    assert abs(float(mutual_information(x[:, None] * y))) < 1e-15
    entropy = float(-(x * x.log()).sum())
    assert math.isclose(float(mutual_information(torch.diag(x))), entropy, rel_tol=1e-12)
    assert math.isclose(float(chi_squared(torch.diag(x))), 2.0, rel_tol=1e-12)  # classes - 1


def test_gaussian_information_by_quadrature() -> None:
    # Gauss-Hermite nodes integrate the quadratic log ratio exactly.
    rho = 0.7
    node, weight = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(40))
    weight = weight / weight.sum()
    x = node[:, None].expand(40, 40).reshape(-1, 1)
    y = (rho * node[:, None] + math.sqrt(1 - rho**2) * node).reshape(-1, 1)
    ratio = gaussian_log_ratio(x[:, None], y[:, None], rho=rho)[:, 0, 0]
    mean = (weight[:, None] * weight).flatten() @ ratio
    assert math.isclose(float(mean), gaussian_mutual_information(rho), rel_tol=1e-12)


def test_the_gaussian_critic_is_a_ratio_of_densities(g: torch.Generator) -> None:
    X, Y, rho = rows(g, M, D), rows(g, N, D), -0.6
    made = gaussian_log_ratio(X, Y, rho=rho)
    for i, j in product(range(M), range(N)):
        given_x = torch.distributions.Normal(rho * X[i], math.sqrt(1 - rho**2)).log_prob(Y[j])
        alone = torch.distributions.Normal(0.0, 1.0).log_prob(Y[j])
        assert math.isclose(float(made[i, j]), float((given_x - alone).sum()), rel_tol=1e-11)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_counts_replace_the_enumeration_of_batches(size: int, g: torch.Generator) -> None:
    joint, f = table(g, 2, 3), rows(g, 2, 3)
    made = expected_info_nce(f, joint=joint, size=size)
    slow = batch_expectation(mi_info_nce, f, joint=joint, size=size)
    # At size 1 both are zero up to rounding.
    torch.testing.assert_close(made, slow, rtol=1e-12, atol=1e-15)


def test_enumeration_of_batches_by_loops(g: torch.Generator) -> None:
    joint, f = table(g, 2, 3), rows(g, 2, 3)
    pairs = list(product(range(2), range(3)))
    total = 0.0
    for batch in product(pairs, repeat=2):
        weight = math.prod(float(joint[x, y]) for x, y in batch)
        gain = 0.0
        for x, y in batch:
            below = sum(math.exp(float(f[x, other])) for _, other in batch)
            gain += (float(f[x, y]) - math.log(below)) / 2
        total += weight * (gain + math.log(2))
    made = batch_expectation(mi_info_nce, f, joint=joint, size=2)
    assert math.isclose(float(made), total, rel_tol=1e-12)


@given(seed=st.integers(0, 2**31), scale=st.floats(0, 4), size=st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_every_critic_stays_below_the_information(seed: int, scale: float, size: int) -> None:
    g = torch.Generator().manual_seed(seed)
    joint = table(g, 2, 3)
    f = pmi(joint) + scale * rows(g, 2, 3)
    truth = float(mutual_information(joint)) + 1e-12
    assert float(expected_info_nce(f, joint=joint, size=size)) <= truth
    assert float(mi_dv(f, joint=joint)) <= truth
    assert float(mi_nwj(f + 1, joint=joint)) <= truth
    assert float(mi_nwj(f, joint=joint)) <= float(mi_dv(f, joint=joint)) + 1e-12


def test_the_best_critics_reach_the_information(g: torch.Generator) -> None:
    joint = table(g, M, D)
    truth = mutual_information(joint)
    torch.testing.assert_close(mi_dv(pmi(joint) + 0.3, joint=joint), truth, **EXACT)
    torch.testing.assert_close(mi_nwj(pmi(joint) + 1, joint=joint), truth, **EXACT)
    assert float(mi_nwj(pmi(joint), joint=joint)) < float(truth) - 0.01  # the one matters


def test_nwj_has_no_bias_and_dv_is_too_high(g: torch.Generator) -> None:
    joint, f = table(g, 2, 3), rows(g, 2, 3)
    exact = mi_nwj(f, joint=joint)
    torch.testing.assert_close(batch_expectation(mi_nwj, f, joint=joint, size=3), exact, **EXACT)
    bound = float(mi_dv(pmi(joint), joint=joint))
    assert float(batch_expectation(mi_dv, pmi(joint), joint=joint, size=3)) > bound + 1e-3


def test_the_bias_of_info_nce_is_half_of_chi_squared_over_n(g: torch.Generator) -> None:
    joint = table(g, M, 2)
    truth = mutual_information(joint)

    def scaled(n: int) -> float:
        return n * float(truth - expected_info_nce(pmi(joint), joint=joint, size=n))

    # What is left after extrapolation is of order 1/n^2, and the difference loses 4 digits.
    extrapolated = 2 * scaled(2000) - scaled(1000)
    assert math.isclose(extrapolated, float(chi_squared(joint)) / 2, rel_tol=1e-5)


def test_the_variance_of_the_ratio_is_chi_squared(g: torch.Generator) -> None:
    joint = table(g, M, D)
    independent = joint.sum(1, keepdim=True) * joint.sum(0)
    ratio = joint / independent
    variance = (independent * (ratio - 1) ** 2).sum()
    torch.testing.assert_close(chi_squared(joint), variance, **EXACT)
    assert float(variance) >= math.expm1(float(mutual_information(joint)))


def test_estimates_by_loops(g: torch.Generator) -> None:
    f = rows(g, N, N)
    diagonal = float(f.diagonal().mean())
    others = [math.exp(float(f[i, j])) for i in range(N) for j in range(N) if i != j]
    mean = sum(others) / len(others)
    assert math.isclose(float(mi_dv(f)), diagonal - math.log(mean), rel_tol=1e-12)
    assert math.isclose(float(mi_nwj(f)), diagonal - mean / math.e, rel_tol=1e-12)
    gains = [float(f[i, i]) - math.log(sum(math.exp(float(v)) for v in f[i])) for i in range(N)]
    assert math.isclose(float(mi_info_nce(f)), math.log(N) + sum(gains) / N, rel_tol=1e-12)


@pytest.mark.parametrize("estimate", [mi_info_nce, mi_dv, mi_nwj])
def test_estimates_of_many_batches_are_those_of_each(
    estimate: Callable[..., Tensor], g: torch.Generator
) -> None:
    f = rows(g, 2, M, N, N)
    made = estimate(f)
    assert made.shape == (2, M)
    torch.testing.assert_close(made[1, 2], estimate(f[1, 2]), **EXACT)


def test_no_batch_exceeds_log_n_and_a_constant_of_a_row_does_not_count(g: torch.Generator) -> None:
    f = 50 * torch.eye(N, dtype=torch.float64) + rows(g, N, N)
    assert float(mi_info_nce(f)) <= math.log(N)
    torch.testing.assert_close(mi_info_nce(f + rows(g, N, 1)), mi_info_nce(f), **EXACT)
    U, V = rows(g, N, D), rows(g, N, D)
    torch.testing.assert_close(
        mi_info_nce(U @ V.T / 0.5), math.log(N) - info_nce(U, V, temperature=0.5), **EXACT
    )


def test_barber_and_agakov_is_tight_for_the_true_conditional(g: torch.Generator) -> None:
    joint = table(g, M, D)
    p_x = joint.sum(1)
    entropy = -(p_x * p_x.log()).sum()
    conditional = (joint / joint.sum(0)).log()
    # Samples in the proportions of the joint distribution: one weighted mean.
    truth = mi_ba((joint * conditional).sum()[None], entropy=entropy)
    torch.testing.assert_close(truth, mutual_information(joint), **EXACT)
    assert math.isclose(float(mi_ba(torch.tensor([-1.0, -2.0]), entropy=2.5)), 1.0)


# --- geometry -----------------------------------------------------------------------------------


def test_alignment_and_uniformity_by_loops(g: torch.Generator) -> None:
    U, V = rows(g, N, D), rows(g, N, D)
    apart = [float(((U[i] - V[i]) ** 2).sum()) for i in range(N)]
    assert math.isclose(float(alignment(U, V)), sum(apart) / N, rel_tol=1e-12)
    potentials = [
        math.exp(-0.3 * float(((U[i] - U[j]) ** 2).sum())) for i in range(N) for j in range(i)
    ]
    expected = math.log(sum(potentials) / len(potentials))
    assert math.isclose(float(uniformity(U, t=0.3)), expected, rel_tol=1e-12)


def test_uniformity_agrees_with_pdist_and_its_gradient(g: torch.Generator) -> None:
    U = F.normalize(rows(g, N, D), dim=1).requires_grad_()
    theirs = torch.pdist(U).pow(2).mul(-2).exp().mean().log()  # the code of Wang and Isola
    made, expected = (value_and_gradients(v, (U,)) for v in (uniformity(U), theirs))
    for a, b in zip(made, expected, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_equal_rows_have_uniformity_zero_and_a_finite_gradient() -> None:
    U = torch.ones(N, D, requires_grad=True)
    value = uniformity(U)
    (gradient,) = torch.autograd.grad(value, U)
    assert float(value.detach()) == 0.0
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 384])
def test_the_floor_is_a_bessel_function(dim: int) -> None:
    # 0F1(; d/2; t^2) is the moment generating function of a coordinate on the sphere.
    expected = math.log(float(scipy.special.hyp0f1(dim / 2, 1.7**2))) - 2 * 1.7
    assert math.isclose(uniformity_floor(dim, t=1.7), expected, rel_tol=1e-12)
    if dim == 1:  # the sphere is two points, as often equal as not
        assert math.isclose(expected, math.log((1 + math.exp(-4 * 1.7)) / 2), rel_tol=1e-12)
    if dim == 3:  # a coordinate is uniform on [-1, 1]
        assert math.isclose(expected, math.log(-math.expm1(-4 * 1.7) / (4 * 1.7)), rel_tol=1e-12)


def test_uniform_points_come_near_the_floor_and_others_stay_above(g: torch.Generator) -> None:
    U = F.normalize(rows(g, 2000, D), dim=1)
    spread, floor = float(uniformity(U)), uniformity_floor(D)
    assert abs(spread - floor) < 0.02  # about 2000^2 pairs, deviation of the potential below 0.2
    cone = F.normalize(U + 0.7, dim=1)
    assert float(uniformity(cone)) > floor + 0.3


def test_the_effective_rank_counts_equal_directions(g: torch.Generator) -> None:
    Q = torch.linalg.qr(rows(g, N, M))[0]
    assert math.isclose(float(effective_rank(Q)), M, rel_tol=1e-9)
    assert math.isclose(float(effective_rank(Q[:, :1] @ rows(g, 1, D))), 1, rel_tol=1e-6)
    s = torch.linalg.svdvals(rows(g, N, D))
    share = s / s.sum()
    made = effective_rank(torch.diag(s))
    torch.testing.assert_close(made, (-(share * share.log()).sum()).exp(), **EXACT)
    assert float(effective_rank(torch.zeros(N, D))) == 0.0
    assert math.isclose(float(effective_rank(rows(g, 1, D))), 1, rel_tol=1e-9)
    assert math.isclose(float(effective_rank(rows(g, N, 1))), 1, rel_tol=1e-9)
    for empty in (rows(g, 0, D), rows(g, N, 0)):
        with pytest.raises(ValueError, match=r"Z must hold rows, got shape"):
            effective_rank(empty)


def test_centering_hides_a_collapse(g: torch.Generator) -> None:
    collapsed = torch.ones(97, D, dtype=torch.float64) + 1e-3 * rows(g, 97, D)
    assert float(effective_rank(collapsed)) < 1.05
    assert float(effective_rank(collapsed, center=True)) > 4
    both = torch.stack([collapsed, rows(g, 97, D)])
    torch.testing.assert_close(effective_rank(both)[0], effective_rank(collapsed), **EXACT)


# --- the spectral loss --------------------------------------------------------------------------


def test_the_spectral_loss_by_loops(g: torch.Generator) -> None:
    U, V = rows(g, N, D), rows(g, N, D)
    near = sum(float(U[i] @ V[i]) for i in range(N)) / N
    far = sum(float(U[i] @ V[j]) ** 2 for i in range(N) for j in range(N) if i != j)
    expected = -2 * near + far / (N * (N - 1))
    assert math.isclose(float(spectral_contrastive(U, V)), expected, rel_tol=1e-12)


def test_its_batch_estimate_has_no_bias(g: torch.Generator) -> None:
    joint, U, V = table(g, 2, 3), rows(g, 2, D), rows(g, 3, D)
    total = torch.zeros((), dtype=torch.float64)
    for batch in product(product(range(2), range(3)), repeat=2):
        x, y = (list(side) for side in zip(*batch, strict=True))
        total += joint[x, y].prod() * spectral_contrastive(U[x], V[y])
    torch.testing.assert_close(total, spectral_contrastive(U, V, joint=joint), **EXACT)


def test_it_is_a_low_rank_approximation(g: torch.Generator) -> None:
    joint, U, V = table(g, M, D), rows(g, M, 2), rows(g, D, 2)
    A = normalized_adjacency(joint)
    left, right = joint.sum(1).sqrt()[:, None] * U, joint.sum(0).sqrt()[:, None] * V
    expected = torch.linalg.matrix_norm(A - left @ right.T) ** 2 - torch.linalg.matrix_norm(A) ** 2
    torch.testing.assert_close(spectral_contrastive(U, V, joint=joint), expected, **EXACT)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_eckart_and_young_minimize_it(dim: int, g: torch.Generator) -> None:
    joint = table(g, M, D)
    s = np.linalg.svd(normalized_adjacency(joint).numpy(), compute_uv=False)
    assert math.isclose(s[0], 1.0, rel_tol=1e-12)
    U, V = (z.requires_grad_() for z in spectral_optimum(joint, dim=dim))
    loss = spectral_contrastive(U, V, joint=joint)
    assert math.isclose(float(loss.detach()), -float((s[:dim] ** 2).sum()), rel_tol=1e-12)
    for gradient in torch.autograd.grad(loss, (U, V)):
        assert float(gradient.abs().max()) < 1e-13
    for _ in range(5):
        worse = spectral_contrastive(U + 0.1 * rows(g, M, dim), V, joint=joint)
        assert float(worse.detach()) > float(loss.detach())


def test_gradient_descent_finds_the_same_minimum(g: torch.Generator) -> None:
    joint = table(g, M, D)
    U, V = (0.5 * rows(g, n, 2) for n in (M, D))
    U.requires_grad_(), V.requires_grad_()
    descent = torch.optim.LBFGS([U, V], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        descent.zero_grad()
        loss = spectral_contrastive(U, V, joint=joint)
        loss.backward()
        return loss

    descent.step(closure)
    best = spectral_contrastive(*spectral_optimum(joint, dim=2), joint=joint)
    torch.testing.assert_close(closure().detach(), best, rtol=1e-6, atol=0)


def test_groups_that_views_never_leave_are_found(g: torch.Generator) -> None:
    joint = torch.block_diag(table(g, 2, 3) / 3, 2 * table(g, 3, 4) / 3)
    U, _ = spectral_optimum(joint, dim=2)
    group = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    weights = torch.linalg.lstsq(U, group[:, None]).solution
    torch.testing.assert_close((U @ weights)[:, 0], group, rtol=0, atol=1e-10)


# --- theorems -----------------------------------------------------------------------------------


def saunshi(rho: Tensor, D: Tensor, f: Tensor, *, same: bool = False) -> tuple[float, float]:
    """Both sides of the bound of Saunshi et al., by loops over classes and points."""

    def loss(margin: Tensor) -> float:
        return math.log2(1 + math.exp(-float(margin)))

    classes, points = range(len(rho)), range(len(f))
    mu, unlabeled, labeled = D @ f, 0.0, 0.0
    tau = float((rho**2).sum())
    for c, other in product(classes, classes):
        chance = float(rho[c] * rho[other])
        for x in points:
            for y in [x] if same else points:
                pair = float(D[c, x]) * (1.0 if same else float(D[c, y]))
                for z in points:
                    weight = chance * pair * float(D[other, z])
                    unlabeled += weight * loss(f[x] @ (f[y] - f[z]))
            if c != other:
                labeled += chance * float(D[c, x]) * loss(f[x] @ (mu[c] - mu[other]))
    return labeled / (1 - tau), (unlabeled - tau) / (1 - tau)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_the_contrastive_loss_bounds_that_of_the_mean_classifier(
    scale: float, g: torch.Generator
) -> None:
    for _ in range(5):
        rho, D = torch.softmax(rows(g, 3), 0), torch.softmax(2 * rows(g, 3, 4), 1)
        labeled, bound = saunshi(rho, D, scale * rows(g, 4, 2))
        assert labeled <= bound + 1e-12


def test_the_bound_breaks_when_both_views_are_one(g: torch.Generator) -> None:
    rho, D = torch.softmax(rows(g, 3), 0), torch.softmax(rows(g, 3, 4), 1)
    labeled, bound = saunshi(rho, D, 9 * rows(g, 4, 2), same=True)
    assert labeled > bound


def test_reconstruction_gives_the_label_linearly_only_under_independence(
    g: torch.Generator,
) -> None:
    prior, one, two = (torch.softmax(rows(g, *s), -1) for s in ((3,), (3, 7), (3, 5)))
    values = rows(g, 5, 4)
    joint = torch.einsum("y,yi,yj->yij", prior, one, two)

    def error(p: Tensor) -> float:
        """How far p(y | x1) is from any linear function of E[X2 | x1]."""
        both = p.sum(0)
        psi = both / both.sum(1, keepdim=True) @ values
        label = (p.sum(2) / p.sum((0, 2))).T
        fit = torch.linalg.lstsq(psi, label).solution
        return float((psi @ fit - label).abs().max())

    assert error(joint) < 1e-10
    dependent = joint * (1 + 0.5 * torch.rand(3, 7, 5, generator=g, dtype=torch.float64))
    assert error(dependent / dependent.sum()) > 1e-3
    values = values[:, :2]  # E[X2 | y] then has rank 2 for three labels
    assert error(joint) > 1e-3


# --- contracts ----------------------------------------------------------------------------------


def test_inputs_are_left_alone(g: torch.Generator) -> None:
    U, V, f, joint = rows(g, N, D), rows(g, N, D), rows(g, N, N), table(g, M, D)
    held = [t.clone() for t in (U, V, f, joint)]
    info_nce(U, V, temperature=0.5, symmetric=True)
    info_nce(U, V, temperature=0.5, positive_in_denominator=False, chunk_size=None)
    nt_xent(U, V, temperature=0.5)
    for estimate in (mi_info_nce, mi_dv, mi_nwj):
        estimate(f)
    alignment(U, V), uniformity(U), effective_rank(U, center=True)
    spectral_contrastive(U, V), spectral_optimum(joint, dim=2)
    mutual_information(joint), chi_squared(joint), expected_info_nce(joint, joint=joint, size=3)
    for tensor, copy in zip((U, V, f, joint), held, strict=True):
        assert torch.equal(tensor, copy)


def test_everything_runs_on_meta() -> None:
    U, f, joint = (torch.empty(*s, device="meta") for s in ((N, D), (N, N), (M, D)))
    for made in (
        info_nce(U, U, temperature=0.5, symmetric=True),
        info_nce(U, U, temperature=0.5, positive_in_denominator=False),
        info_nce(U, U, temperature=0.5, chunk_size=2),
        nt_xent(U, U, temperature=0.5),
        mi_info_nce(f),
        mi_dv(f),
        mi_nwj(joint, joint=joint),
        mutual_information(joint),
        chi_squared(joint),
        batch_expectation(mi_nwj, joint, joint=joint, size=2),
        expected_info_nce(joint[:, :1], joint=joint[:, :1], size=1),
        mi_ba(U[:, 0], entropy=1.0),
        alignment(U, U),
        uniformity(U),
        effective_rank(U),
        spectral_contrastive(U, U),
        *spectral_optimum(joint, dim=2),
        gaussian_log_ratio(U, U, rho=0.5),
    ):
        assert made.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(
    dtype: torch.dtype, g: torch.Generator, device: torch.device
) -> None:
    U, V = (F.normalize(rows(g, N, D), dim=1).to(device, dtype) for _ in range(2))
    for made in (
        info_nce(U, V, temperature=0.01),
        nt_xent(U, V, temperature=0.01),
        alignment(U, V),
        uniformity(U),
        spectral_contrastive(U, V),
        mi_info_nce(U @ V.T / 0.001),
        effective_rank(U),
    ):
        assert made.dtype == torch.float32
        assert bool(torch.isfinite(made))


Pair = dict[str, Any]


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda U: info_nce(U, U[:3], temperature=1.0), r"one shape, got \(7, 5\) and \(3, 5\)"),
        (lambda U: info_nce(U, U.float(), temperature=1.0), "U is torch.float64 but V is"),
        (lambda U: info_nce(U.long(), U, temperature=1.0), "U must be floating"),
        (lambda U: info_nce(U[0], U[0], temperature=1.0), r"U must have shape \(\*, \*\)"),
        (lambda U: info_nce(U, U, temperature=0.0), "temperature must lie in"),
        (lambda U: info_nce(U, U, temperature=U[0]), r"temperature must have shape \(\)"),
        (lambda U: info_nce(U[:1], U[:1], temperature=1.0), "one pair has no negative"),
        (lambda U: info_nce(U, U, temperature=1.0, negatives=U[:, :2]), "negatives must have"),
        (
            lambda U: info_nce(U, U, temperature=1.0, negatives=U, symmetric=True),
            "extra negatives serve one side",
        ),
        (
            lambda U: info_nce(U, U, temperature=1.0, negatives=U.float()),
            "negatives are torch.float32",
        ),
        (
            lambda U: info_nce(U, U, temperature=1.0, positive_in_denominator=False, chunk_size=2),
            "chunks need the positive",
        ),
        (lambda U: nt_xent(U[:1], U[:1], temperature=1.0), "U needs at least 2 rows, got 1"),
        (mi_info_nce, r"square matrix of at least 1 rows.*got \(7, 5\)"),
        (lambda U: mi_dv(U[:1, :1]), "square matrix of at least 2 rows"),
        (lambda U: mi_nwj(U, joint=U[:3] ** 2 / (U[:3] ** 2).sum()), "scores must be a table"),
        (lambda U: mi_ba(U[0, :0], entropy=1.0), "at least one sample"),
        (lambda U: mutual_information(-U.abs()), "the least entry is"),
        (lambda U: mutual_information(U**2 + 1), "joint must sum to 1"),
        (lambda U: chi_squared(torch.tensor([[1.0, 0.0]])), "every row and column"),
        (lambda U: gaussian_mutual_information(1.0), "rho must lie in"),
        (lambda U: gaussian_log_ratio(U, U[:, :2], rho=0.5), "agree in width and batch"),
        (lambda U: uniformity(U, t=0.0), "t must lie in"),
        (lambda U: uniformity_floor(0), "dim must be"),
        (lambda U: effective_rank(U[:0]), "Z must hold rows"),
        (lambda U: spectral_contrastive(U[:1], U[:1]), "at least 2 rows"),
        (lambda U: spectral_contrastive(U, U, joint=torch.full((2, 2), 0.25)), "one row for each"),
        (lambda U: spectral_optimum(torch.full((2, 3), 1 / 6), dim=3), "dim must be at most 2"),
        (
            lambda U: batch_expectation(
                mi_nwj, torch.ones(5, 5), joint=torch.full((5, 5), 0.04), size=9
            ),
            "more than 4,000,000 batches",
        ),
        (
            lambda U: expected_info_nce(torch.ones(5, 5), joint=torch.full((5, 5), 0.04), size=200),
            "too many counts",
        ),
        (
            lambda U: expected_info_nce(torch.ones(5, 2), joint=torch.full((5, 5), 0.04), size=2),
            "scores must be a table",
        ),
    ],
)
def test_errors_name_what_is_wrong(
    call: Callable[[Tensor], Any], message: str, g: torch.Generator
) -> None:
    with pytest.raises(ValueError, match=message):
        call(rows(g, N, D))


def test_the_table_of_a_spectral_loss_needs_rows_of_numbers(own_checks: None) -> None:
    joint = torch.full((2, 3), 1 / 6, dtype=torch.float64)
    U, V = torch.ones(2, 5, dtype=torch.float64), torch.ones(3, 5, dtype=torch.float64)
    for name, wrong in (("U", (U.long(), V)), ("V", (U, V.long()))):
        with pytest.raises(ValueError, match=f"{name} must be floating, got torch.int64"):
            spectral_contrastive(*wrong, joint=joint)
    with pytest.raises(ValueError, match="U needs at least one column"):
        spectral_contrastive(U[:, :0], V[:, :0], joint=joint)


@pytest.mark.parametrize("temperature", [1e-37, 1e-45, 1e-300])
@pytest.mark.parametrize("learned", [False, True])
def test_contrastive_losses_at_a_tiny_temperature_go_to_their_limits(
    temperature: float, learned: bool
) -> None:
    t = torch.tensor(temperature, dtype=torch.float64) if learned else temperature
    # Every positive is the only largest score, or one of k equal ones.
    eye = torch.eye(3)
    assert info_nce(eye, eye, temperature=t, symmetric=True) == 0
    twice = torch.ones(2, 3)
    torch.testing.assert_close(info_nce(twice, twice, temperature=t), torch.tensor(math.log(2)))
    assert nt_xent(eye, eye, temperature=t) == 0
    torch.testing.assert_close(nt_xent(twice, twice, temperature=t), torch.tensor(math.log(3)))
    # A positive that lies behind by 1: the loss is 1 / T, or inf where float32 has no such number.
    # float32 has no reciprocal of numbers below its smallest normal one, which stands in for them.
    gap = 1 / max(temperature, torch.finfo(torch.float32).tiny)
    behind = info_nce(eye, eye.roll(1, 0), temperature=t)
    torch.testing.assert_close(behind, torch.tensor(gap, dtype=torch.float32))
    # Without the positive in the denominator the loss is -1 / T + log of the other two.
    apart = info_nce(eye, eye, temperature=t, positive_in_denominator=False)
    torch.testing.assert_close(apart, torch.tensor(-gap, dtype=torch.float32))
    # Chunks divide first: where that overflows they say so.
    if temperature == 1e-37:
        torch.testing.assert_close(
            info_nce(eye, eye.roll(1, 0), temperature=t, chunk_size=2), behind
        )
    else:
        with pytest.raises(ValueError, match=r"are beyond torch.float32: leave out chunk_size"):
            info_nce(eye, eye.roll(1, 0), temperature=t, chunk_size=2)
