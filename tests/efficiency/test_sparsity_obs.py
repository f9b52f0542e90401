"""Second order: removing weights of a linear map at the least cost to its outputs."""

import copy

import pytest
import torch
from torch import Tensor, nn

from companion.core import randn
from companion.efficiency.sparsity import (
    input_hessian,
    inverse_factor,
    magnitude_mask,
    obd_saliency,
    obs_prune,
    obs_remove,
    obs_saliency,
    output_error,
    prune_,
    refit,
    share_blocks_,
    sparsegpt,
)
from companion.transformer.block import Decoder, TransformerConfig

# Sums of at most 41 products of numbers of order 10, in float64.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(d_out: int = 5, d_in: int = 11, n: int = 41) -> tuple[Tensor, Tensor, Tensor]:
    source = g()
    X = randn(n, d_in, generator=source, dtype=torch.float64)
    X = X @ randn(d_in, d_in, generator=source, dtype=torch.float64)
    W = randn(d_out, d_in, generator=source, dtype=torch.float64)
    return X, W, 2 * X.T @ X


def small(layers: int = 2) -> Decoder:
    config = TransformerConfig(vocab=13, dim=12, layers=layers, heads=3, ff_dim=20, context=17)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder(config).double()


def test_the_hessian_is_that_of_the_squared_error_and_sums_over_calls() -> None:
    X, W, H = problem()
    layer = nn.Linear(11, 5, bias=False).double()
    with input_hessian(nn.Sequential(layer), ["0"]) as sums:
        for part in X.split(7):
            layer(part[None])
    torch.testing.assert_close(sums["0"], H, **CLOSE)

    def loss(w: Tensor) -> Tensor:
        return ((X @ w - X @ W[0]) ** 2).sum()

    torch.testing.assert_close(torch.func.hessian(loss)(W[1]), H, **CLOSE)


def test_the_hessian_is_seen_through_a_model_and_leaves_no_hook() -> None:
    model = small()
    ids = torch.arange(7)[None]
    with input_hessian(model, ["blocks.1.*"]) as H:
        model(ids)
    assert set(H) == {
        f"blocks.1.{name}"
        for name in ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down")
    }
    assert H["blocks.1.feed_forward.down"].shape == (20, 20)
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_shared_layers_are_seen_once_and_names_are_checked() -> None:
    shared = share_blocks_(small())
    with input_hessian(shared, ["down"]) as sums:
        shared(torch.arange(7)[None])
    assert list(sums) == ["blocks.0.feed_forward.down"]
    with pytest.raises(ValueError, match="the model has no sideways; it has"):
        input_hessian(small(), ["sideways"]).__enter__()
    with pytest.raises(ValueError, match="targets must be a list"):
        input_hessian(small(), "down").__enter__()


def test_the_factor_holds_the_inverse_of_every_trailing_block() -> None:
    _, _, H = problem()
    U = inverse_factor(H, damping=0.0)
    assert torch.equal(U, U.triu())
    for q in (0, 3, 10):
        torch.testing.assert_close(U[q:, q:].T @ U[q:, q:], torch.linalg.inv(H[q:, q:]), **CLOSE)
    # Negative control: a trailing block of the whole inverse is another matrix.
    assert not torch.allclose(torch.linalg.inv(H)[3:, 3:], torch.linalg.inv(H[3:, 3:]))


def test_the_factor_of_a_singular_hessian_needs_damping_that_is_raised_until_it_works() -> None:
    X, _, _ = problem(n=3)
    H = 2 * X.T @ X
    with pytest.raises(ValueError, match="not positive definite with damping 0"):
        inverse_factor(H - 1e-6 * torch.eye(11).double(), damping=0.0)
    assert inverse_factor(H, damping=0.01).isfinite().all()
    tilted = H - 0.2 * H.diagonal().mean() * torch.eye(11).double()  # 0.01 and 0.1 do not help
    assert inverse_factor(tilted, damping=0.01).isfinite().all()
    with pytest.raises(ValueError, match="damping must lie in"):
        inverse_factor(H, damping=-1.0)
    with pytest.raises(ValueError, match="H must be finite"):
        inverse_factor(H * torch.nan)


def test_an_input_that_is_always_zero_stands_alone_and_loses_its_weights() -> None:
    X, W, _ = problem()
    X[:, 4] = 0
    H = 2 * X.T @ X
    U = inverse_factor(H, damping=0.0)
    off = [q for q in range(11) if q != 4]
    assert not U[4, off].any()
    assert not U[off, 4].any()
    assert U[4, 4] > 0
    new, mask = sparsegpt(W, H, sparsity=3 / 11, damping=0.0)
    assert not new[:, 4].any()
    assert not mask[:, 4].any()  # the cheapest of all


def test_removing_one_weight_costs_its_saliency_and_is_the_least_squares_answer() -> None:
    _, W, H = problem()
    inverse = torch.linalg.inv(H)
    for q in (0, 6):
        new, rest = obs_remove(W[0], inverse, q)
        change = new - W[0]
        cost = change @ H @ change / 2
        torch.testing.assert_close(cost, obs_saliency(W[:1], inverse)[0, q], **CLOSE)
        keep = torch.arange(11) != q
        torch.testing.assert_close(new[None], refit(W[:1], H, keep[None]), **CLOSE)
        left = torch.linalg.inv(H[keep][:, keep])
        torch.testing.assert_close(rest[keep][:, keep], left, **CLOSE)
        assert new[q] == 0
        assert not rest[q].any()
    assert (obd_saliency(W, H) >= obs_saliency(W, inverse)).all()
    change = torch.zeros_like(W[0])
    change[2] = -W[0, 2]
    torch.testing.assert_close(obd_saliency(W, H)[0, 2], change @ H @ change / 2, **CLOSE)


def test_the_small_example_by_hand() -> None:
    H, w = torch.tensor([[2.0, 1.0], [1.0, 1.0]]).double(), torch.ones(2).double()
    inverse = torch.tensor([[1.0, -1.0], [-1.0, 2.0]]).double()
    assert obs_saliency(w[None], inverse).tolist() == [[0.5, 0.25]]
    assert obs_remove(w, inverse, 1)[0].tolist() == [1.5, 0.0]
    assert obs_prune(w, H, count=1).tolist() == [1.5, 0.0]
    # Once input 0 is done, removing input 1 costs w^2/U_qq^2 = 1 (square!), not 2.
    assert inverse_factor(H, damping=0.0).diagonal().tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="weight 1 cannot be removed"):
        obs_remove(w, obs_remove(w, inverse, 1)[1], 1)


def test_greedy_pruning_recomputes_and_beats_all_at_once() -> None:
    _, W, H = problem()
    inverse = torch.linalg.inv(H)
    for w in W:
        greedy = obs_prune(w, H, count=6)
        assert int((greedy == 0).sum()) == 6
        torch.testing.assert_close(greedy[None], refit(w[None], H, greedy[None] != 0), **CLOSE)
    once = obs_saliency(W, inverse).argsort(1)[:, :6]
    at_once = W.scatter(1, once, 0.0)
    greedy = torch.stack([obs_prune(w, H, count=6) for w in W])
    assert output_error(W, greedy, H) < output_error(W, at_once, H)


def naive_sparsegpt(W: Tensor, H: Tensor, keep: Tensor) -> Tensor:
    """Inputs from first to last, each time with a new inverse of what is left."""
    W = W.clone()
    for row, stay in zip(W, keep, strict=True):
        for q in range(len(row)):
            if not stay[q]:
                inverse = torch.linalg.inv(H[q:, q:])
                row[q:] -= row[q] / inverse[0, 0] * inverse[0]
                row[q] = 0
    return W


@pytest.mark.parametrize("block", [1, 3, 128])
def test_sparsegpt_with_a_given_mask_is_the_sequence_of_surgeons_whatever_the_block(
    block: int,
) -> None:
    _, W, H = problem()
    keep = magnitude_mask(W, sparsity=0.5)
    before = W.clone()
    new, mask = sparsegpt(W, H, keep=keep, block=block, damping=0.0)
    torch.testing.assert_close(new, naive_sparsegpt(W, H, keep), **CLOSE)
    assert torch.equal(mask, keep)
    assert not new[~keep].any()
    assert torch.equal(W, before)
    # Between doing nothing for it and the best on this mask.
    best = output_error(W, refit(W, H, keep), H)
    assert best <= output_error(W, new, H) < output_error(W, W * keep, H)


def test_sparsegpt_does_not_change_when_the_hessian_is_scaled() -> None:
    _, W, H = problem()
    new, mask = sparsegpt(W, H, sparsity=0.4, block=4)
    for scale in (1e-6, 1e5):
        scaled, same = sparsegpt(W, scale * H, sparsity=0.4, block=4)
        assert torch.equal(same, mask)
        torch.testing.assert_close(scaled, new, **CLOSE)


@pytest.mark.usefixtures("own_checks")
def test_sparsegpt_keeps_shares_and_patterns_exactly() -> None:
    _, W, H = problem(7, 12)
    _, mask = sparsegpt(W, H, sparsity=0.5, block=4)
    assert mask.unflatten(1, (3, 4)).sum((0, 2)).tolist() == [14, 14, 14]
    new, mask = sparsegpt(W, H, pattern=(2, 4), block=8)
    assert (mask.unflatten(1, (3, 4)).sum(-1) == 2).all()
    assert torch.equal(new != 0, mask)
    with pytest.raises(ValueError, match="multiple of the group of 4, got 6"):
        sparsegpt(W, H, pattern=(2, 4), block=6)
    with pytest.raises(ValueError, match="multiple of 5, got 12"):
        sparsegpt(W, H, pattern=(2, 5))
    with pytest.raises(ValueError, match=r"H must have shape \(12, 12\)"):
        sparsegpt(W, H[:5, :5])


def test_half_precision_weights_are_pruned_in_single_precision() -> None:
    _, W, H = problem()
    half = W.bfloat16()
    new, mask = sparsegpt(half, H.float(), sparsity=0.5)
    assert new.dtype == torch.bfloat16
    wide, same = sparsegpt(half.float(), H.float(), sparsity=0.5)
    assert torch.equal(mask, same)
    assert torch.equal(new, wide.bfloat16())
    error = output_error(half, new, H.float())
    assert error.dtype == torch.float32
    assert torch.equal(error, output_error(half.float(), new.float(), H.float()))
    single, _ = sparsegpt(half.float(), H.bfloat16(), keep=mask)  # H may be short, work is not
    assert torch.equal(single, sparsegpt(half.float(), H.bfloat16().float(), keep=mask)[0])


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_model_is_pruned_block_after_block(method: str) -> None:
    model = small()
    whole = copy.deepcopy(model)
    ids = torch.randint(0, 13, (6, 11), generator=g())
    masks = prune_(model, ids.split(2), method=method, sparsity=0.5)  # type: ignore[arg-type]
    assert len(masks) == 8
    for path, mask in masks.items():
        weight = model.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        assert not weight[~mask].any()
        assert int((~mask).sum()) == mask.numel() // 2
    assert torch.equal(model.head.weight, whole.head.weight)
    if method == "sparsegpt":
        # The first block sees what the whole model has seen, the second what the first makes now.
        for number, source in ((0, whole), (1, model)):
            name = f"blocks.{number}.feed_forward.up"
            if number:
                part = copy.deepcopy(model)
                part.blocks[1] = copy.deepcopy(whole.blocks[1])
            else:
                part = copy.deepcopy(source)
            with input_hessian(part, ["blocks.*.up"]) as H:
                part(ids)
            layer = whole.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            new, _ = sparsegpt(layer.weight.detach(), H[name], sparsity=0.5)
            made = model.get_submodule(name).weight
            assert isinstance(made, Tensor)
            torch.testing.assert_close(made, new, **CLOSE)


@pytest.mark.usefixtures("own_checks")
def test_pruning_a_model_is_refused_where_it_would_be_wrong() -> None:
    ids = torch.arange(5)[None]
    with pytest.raises(ValueError, match="has no blocks"):
        prune_(nn.Linear(2, 3), [ids])
    with pytest.raises(ValueError, match="method must be"):
        prune_(small(), [ids], method="loud")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="share their parameters"):
        prune_(share_blocks_(small()), [ids])
    with pytest.raises(ValueError, match="one batch or more"):
        prune_(small(), [])
    with pytest.raises(ValueError, match="inside of the blocks"):
        prune_(small(), [ids], targets=["head"])


def test_the_factor_of_a_shape_needs_no_values() -> None:
    assert inverse_factor(torch.empty(5, 5, device="meta")).shape == (5, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_costs_and_fits_of_half_precision_weights_are_those_of_the_same_numbers(
    dtype: torch.dtype,
) -> None:
    """In float16 the square of 1e-4 is zero, and a weight of no cost would go first."""
    _, W, H = problem()
    H = H.float()
    small = (1e-4 * W).to(dtype)
    same = small.float()
    for cost in (obd_saliency, obs_saliency):
        torch.testing.assert_close(cost(small, H), cost(same, H))
        assert (cost(small, H) > 0).all()
    low = W.to(dtype)
    keep = magnitude_mask(low, sparsity=0.5)
    fitted = refit(low, H, keep)
    assert fitted.dtype == dtype
    torch.testing.assert_close(
        fitted.float(), refit(low.float(), H, keep), rtol=torch.finfo(dtype).eps, atol=1e-6
    )
