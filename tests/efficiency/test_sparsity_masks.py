"""Masks, packed patterns, penalties, gates, and connections that move."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Lasso
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from companion.core import randn
from companion.efficiency.sparsity import (
    HardConcrete,
    RigL,
    block_mask,
    cosine_ratio,
    global_masks,
    group_soft_threshold,
    lasso,
    magnitude_mask,
    nm_mask,
    obd_saliency,
    pack_nm,
    remove_units,
    rigl_update,
    soft_threshold,
    straight_through,
    top_mask,
    unit_norms,
    unpack_nm,
    wanda_scores,
)
from companion.transformer.block import FeedForward, GatedFeedForward


def g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, generator=g(seed), dtype=torch.float64)


def test_magnitude_masks_are_those_of_torch() -> None:
    W = numbers(7, 11)
    layer = nn.Linear(11, 7, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(W)
    torch_prune.l1_unstructured(layer, "weight", amount=0.3)
    assert torch.equal(magnitude_mask(W, sparsity=0.3), layer.weight_mask.bool())


@given(st.floats(0, 1), st.sampled_from(["tensor", "row"]))
def test_a_mask_removes_exactly_the_share_also_of_equal_scores(share: float, scope: str) -> None:
    for scores in (numbers(3, 7), torch.ones(3, 7)):
        keep = top_mask(scores, sparsity=share, scope=scope)  # type: ignore[arg-type]
        if scope == "row":
            assert ((~keep).sum(1) == round(share * 7)).all()
        else:
            assert int((~keep).sum()) == round(share * 21)


def test_masks_over_several_tensors_compare_them_together_and_never_return_a_weight() -> None:
    scores = {"a": numbers(3, 5).abs(), "b": 10 * numbers(7, seed=1).abs()}
    half = global_masks(scores, sparsity=0.5)
    assert sum(int((~m).sum()) for m in half.values()) == 11
    assert float(half["b"].float().mean()) > float(half["a"].float().mean())
    grown = {"a": scores["a"] + 100 * ~half["a"], "b": scores["b"]}  # what went looks large now
    more = global_masks(grown, sparsity=0.7, among=half)
    assert all(not (more[n] & ~half[n]).any() for n in more)
    assert sum(int((~m).sum()) for m in more.values()) == round(0.7 * 22)
    with pytest.raises(ValueError, match=r"sparsity must be 0\.5000 or more"):
        global_masks(scores, sparsity=0.3, among=half)
    with pytest.raises(ValueError, match="one tensor or more"):
        global_masks({}, sparsity=0.5)


@pytest.mark.usefixtures("own_checks")
def test_wanda_compares_within_a_row_what_magnitude_compares_in_the_matrix() -> None:
    W = torch.tensor([[1.0, 2.0], [3.0, 0.5]])
    H = 2 * torch.diag(torch.tensor([100.0, 1.0]))  # inputs of length 10 and 1
    scores = wanda_scores(W, H)
    assert scores.tolist() == [[10.0, 2.0], [30.0, 0.5]]
    assert top_mask(scores, sparsity=0.5, scope="row").tolist() == [[True, False]] * 2
    assert magnitude_mask(W, sparsity=0.5).tolist() == [[False, True], [True, False]]
    torch.testing.assert_close(scores**2, obd_saliency(W, H))
    with pytest.raises(ValueError, match="scope must be"):
        top_mask(W, sparsity=0.5, scope="column")  # type: ignore[arg-type]


def test_groups_of_four_run_along_the_inputs_and_packing_is_undone() -> None:
    W = numbers(3, 20)
    mask = nm_mask(W.abs())
    assert (mask.unflatten(1, (5, 4)).sum(-1) == 2).all()
    kept = (W * mask).unflatten(1, (5, 4)).abs()
    assert (kept.sort(-1).values[..., 2:].sum() - kept.sum()).abs() < 1e-12
    values, places = pack_nm(W * mask)
    assert values.shape == places.shape == (3, 10)
    assert places.dtype == torch.uint8
    assert torch.equal(unpack_nm(values, places), W * mask)
    sparse = W * mask * (numbers(3, 20, seed=2) > 0)  # groups with one or no nonzero
    assert torch.equal(unpack_nm(*pack_nm(sparse)), sparse)
    with pytest.raises(ValueError, match="nonzeros, and 2 can be stored"):
        pack_nm(W)
    with pytest.raises(ValueError, match="multiple of 4, got 3"):
        nm_mask(W.T)  # the other axis
    with pytest.raises(ValueError, match="multiple of 2, got 9"):
        unpack_nm(values[:, 1:], places[:, 1:])
    with pytest.raises(ValueError, match="keep must be"):
        unpack_nm(values, places, keep=5)


def test_blocks_go_as_a_whole_by_their_norms() -> None:
    W = numbers(6, 8)
    keep = block_mask(W, sparsity=0.5, block=2)
    tiles = keep.unflatten(0, (3, 2)).unflatten(2, (4, 2)).transpose(1, 2).flatten(2)
    assert (tiles.all(-1) | (~tiles).all(-1)).all()
    assert int(tiles.all(-1).sum()) == 6
    norms = W.unflatten(0, (3, 2)).unflatten(2, (4, 2)).square().sum((1, 3))
    assert norms[tiles.all(-1)].min() > norms[(~tiles).all(-1)].max()
    with pytest.raises(ValueError, match="multiples of the block 3"):
        block_mask(W, sparsity=0.5, block=3)


def test_the_gradient_passes_straight_through_a_mask() -> None:
    W = numbers(3, 5).requires_grad_()
    mask = magnitude_mask(W.detach(), sparsity=0.4)
    arriving = numbers(3, 5, seed=1)
    out = straight_through(W, mask, decay=0.3)
    assert torch.equal(out, W * mask)
    (grad,) = torch.autograd.grad(out, W, arriving)
    torch.testing.assert_close(grad, arriving + 0.3 * W * ~mask)
    (plain,) = torch.autograd.grad(W * mask, W, arriving)
    assert not plain[~mask].any()
    assert grad[~mask].all()


@given(st.floats(-5, 5), st.floats(0, 3))
def test_the_soft_threshold_minimizes_its_objective(w: float, t: float) -> None:
    v = torch.linspace(-6, 6, 2401, dtype=torch.float64)
    value = (v - w) ** 2 / 2 + t * v.abs()
    best = soft_threshold(torch.tensor(w, dtype=torch.float64), t)
    assert float((best - w) ** 2 / 2 + t * best.abs()) <= float(value.min()) + 1e-12


def test_the_group_threshold_minimizes_its_objective_and_has_no_nan_at_zero() -> None:
    W = torch.cat([numbers(4, 3), torch.zeros(1, 3).double()]).requires_grad_()
    new = group_soft_threshold(W, 1.3)
    for w, v in zip(W.detach(), new.detach(), strict=True):
        here = ((v - w) ** 2).sum() / 2 + 1.3 * v.norm()
        for step in 0.01 * numbers(50, 3, seed=3):
            there = ((v + step - w) ** 2).sum() / 2 + 1.3 * (v + step).norm()
            assert there >= here
    assert (new.detach().norm(dim=1) == 0).any()
    assert new.detach().norm(dim=1).max() > 0
    (grad,) = torch.autograd.grad(new.sum(), W)
    assert grad.isfinite().all()


def test_the_lasso_is_that_of_sklearn_with_exact_zeros_and_ridge_has_none() -> None:
    X, source = numbers(53, 13), numbers(13, seed=1)
    y = X @ (source * (torch.arange(13) < 4)) + 0.1 * numbers(53, seed=2)
    ours = lasso(X, y, strength=0.2, steps=3000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = Lasso(alpha=0.2, fit_intercept=False, tol=1e-12, max_iter=100_000)
        theirs.fit(X.numpy(), y.numpy())
    np.testing.assert_allclose(ours.numpy(), theirs.coef_, atol=1e-7)
    assert int((ours == 0).sum()) == int((theirs.coef_ == 0).sum()) > 5
    ridge = torch.linalg.solve(X.T @ X / 53 + 0.2 * torch.eye(13).double(), X.T @ y / 53)
    assert (ridge != 0).all()
    largest = float((X.T @ y).abs().max() / 53)
    assert not lasso(X, y, strength=1.0001 * largest, steps=50).any()
    assert lasso(X, y, strength=0.99 * largest, steps=50).any()


def test_gates_are_closed_as_often_as_the_formula_says() -> None:
    gates = HardConcrete(3, dtype=torch.float64)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.tensor([-1.5, 0.2, 2.0]))
    source = g()
    drawn = torch.stack([gates(generator=source).detach() for _ in range(4000)])
    assert drawn.min() == 0
    assert drawn.max() == 1
    p = torch.sigmoid(gates.log_alpha.detach() - gates.beta * torch.log(torch.tensor(0.1 / 1.1)))
    # Four standard errors of a share of 4,000.
    assert ((drawn != 0).double().mean(0) - p).abs().max() < 4 * 0.5 / 4000**0.5
    torch.testing.assert_close(gates.expected_open(), p.sum(), check_dtype=False)
    assert gates().shape == (3,)  # no noise
    (grad,) = torch.autograd.grad(gates.expected_open(), gates.log_alpha)
    assert (grad > 0).all()
    with pytest.raises(ValueError, match="high must lie in"):
        HardConcrete(3, high=0.9)


def test_rigl_keeps_the_number_of_connections_and_what_grows_is_zero() -> None:
    W, mask = numbers(7, 11), magnitude_mask(numbers(7, 11, seed=1), sparsity=0.7)
    W = W * mask
    gradient = numbers(7, 11, seed=2)
    new, after = rigl_update(W, mask, gradient, ratio=0.4)
    assert int(after.sum()) == int(mask.sum())
    grown = after & ~mask
    assert not new[grown].any()
    assert not new[~after].any()
    stayed = after & mask & (new != 0)
    assert torch.equal(new[stayed], W[stayed])
    count = round(0.4 * int(mask.sum()))
    assert int((mask & (new == 0)).sum()) == count
    reached = (~mask | (new == 0)) & ~after
    assert gradient[after & (new == 0)].abs().min() >= gradient[reached].abs().max()
    same, still = rigl_update(W, mask, gradient, ratio=0.0)
    assert torch.equal(same, W)
    assert torch.equal(still, mask)


def test_momentum_does_not_revive_what_is_masked() -> None:
    w = nn.Parameter(torch.ones(6))
    moving = RigL({"w": w}, sparsity=0.5, generator=g(), every=1000)
    mask = moving.masks["w"]
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    optimizer.state[w]["momentum_buffer"] = torch.ones(6)
    w.grad = torch.ones(6)
    assert not moving.after_backward()
    optimizer.step()
    assert w[~mask].detach().allclose(torch.tensor(-0.09))  # revived, by what is remembered
    moving.after_step(optimizer)
    assert not w[~mask].any()
    assert not optimizer.state[w]["momentum_buffer"][~mask].any()
    assert w[mask].all()


def test_connections_move_on_time_and_stop() -> None:
    w = nn.Parameter(numbers(5, 7))
    moving = RigL({"w": w}, sparsity=0.6, generator=g(), every=2, end=6, start=0.5)
    moved = []
    for step in range(8):
        w.grad = numbers(5, 7, seed=step)
        before = moving.masks["w"].clone()
        moved.append(moving.after_backward())
        assert torch.equal(before, moving.masks["w"]) != moved[-1]
        assert int(moving.masks["w"].sum()) == 14
        moving.after_step()
    assert moved == [False, True, False, True, False, False, False, False]
    assert cosine_ratio(3, end=6, start=0.5) == pytest.approx(0.25)
    w.grad = None
    with pytest.raises(ValueError, match="w has no gradient"):
        moving.after_backward()
    assert moving.step == 8  # a call that was refused does not count
    with pytest.raises(ValueError, match="one parameter or more"):
        RigL({}, sparsity=0.5, generator=g())


@pytest.mark.parametrize("kind", [FeedForward, GatedFeedForward])
def test_removing_units_is_setting_them_to_zero(kind: type) -> None:
    layer = kind(5, 11, bias=True).double()
    keep = numbers(11) > 0
    small = remove_units(layer, keep)
    x = numbers(3, 5, seed=1)
    whole = kind(5, 11, bias=True).double()
    whole.load_state_dict(layer.state_dict())
    with torch.no_grad():
        whole.down.weight[:, ~keep] = 0
    torch.testing.assert_close(small(x), whole(x))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in layer.parameters())
    first = layer.gate_up if kind is GatedFeedForward else layer.up
    rows = first.weight[3] ** 2
    squares = rows.sum() + (layer.down.weight[:, 3] ** 2).sum()
    if kind is GatedFeedForward:
        squares = squares + (first.weight[11 + 3] ** 2).sum()
    torch.testing.assert_close(unit_norms(layer)[3], squares.sqrt().detach())
    with pytest.raises(ValueError, match="one unit or more"):
        remove_units(layer, torch.zeros(11).bool())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_no_squares(dtype: torch.dtype) -> None:
    """In float16 the square of 300 is infinite, and that of 1e-4 is zero."""
    eps = torch.finfo(dtype).eps
    large, small = torch.full((1, 4), 300.0, dtype=dtype), torch.full((1, 4), 1e-4, dtype=dtype)
    shorter = group_soft_threshold(large, 60.0)  # of length 600: a tenth goes
    assert shorter.dtype == dtype
    torch.testing.assert_close(shorter.float(), 0.9 * large.float(), rtol=eps, atol=0.0)
    assert torch.equal(group_soft_threshold(small, 0.0), small)
    layer = FeedForward(2, 3).to(dtype)
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(300.0)
    assert unit_norms(layer).tolist() == [600.0] * 3  # two weights read, two write
    X, w = numbers(41, 5).to(dtype), torch.tensor([2.0, -1.0, 0.0, 0.0, 0.0]).to(dtype)
    found = lasso(X, X @ w, strength=0.1)
    want = lasso(X.double(), (X @ w).double(), strength=0.1)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), want, rtol=eps, atol=1e-4)


def test_masks_that_do_not_fit_are_refused() -> None:
    scores = {"a": numbers(3, 5), "b": numbers(7)}
    there = {name: torch.ones_like(value).bool() for name, value in scores.items()}
    with pytest.raises(ValueError, match="among has no mask for b: give one for each"):
        global_masks(scores, sparsity=0.5, among={"a": there["a"]})
    with pytest.raises(
        ValueError, match=r"scores of b and its mask among must .* \(7,\) and \(6,\)"
    ):
        global_masks(scores, sparsity=0.5, among=there | {"b": there["b"][1:]})
    with pytest.raises(ValueError, match="scores of a must be floating, got"):
        global_masks({"a": torch.arange(4)}, sparsity=0.5)
    with pytest.raises(ValueError, match="rows of X must be 1 or more, got 0"):
        lasso(torch.zeros(0, 3), torch.zeros(0), strength=0.1)


@pytest.mark.usefixtures("own_checks")
def test_a_mask_of_numbers_is_refused() -> None:
    W, ones = numbers(3, 5), torch.ones(3, 5)
    with pytest.raises(ValueError, match="mask must be Bool, True for what stays"):
        straight_through(W, ones)
    with pytest.raises(ValueError, match="keep must be Bool, True for what stays"):
        remove_units(FeedForward(2, 5), ones[0])
