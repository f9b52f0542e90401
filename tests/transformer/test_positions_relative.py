"""Relative terms that meet the query: naive loops as oracle, and no attention without positions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.core import generator, randn
from companion.transformer.positions import (
    ShawRelative,
    TransformerXLBias,
    relative_shift,
    sinusoidal_positions,
)

F64 = torch.float64
B, H, D = 2, 6, 4


def queries(n, seed=0, heads=H):
    return randn(B, heads, n, D, generator=generator(seed), dtype=F64)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 9), m=st.integers(1, 9))
def test_the_skew_moves_offsets_to_keys(n, m):
    x = randn(2, n, n + m - 1, generator=generator(0), dtype=F64)
    before = x.clone()
    made = relative_shift(x)
    expected = torch.stack([x[:, i, n - 1 - i : n - 1 - i + m] for i in range(n)], 1)
    assert torch.equal(made, expected)
    assert torch.equal(x, before)


def test_the_skew_refuses_too_few_offsets():
    with pytest.raises(ValueError, match=r"n rows and n \+ m - 1 columns, m >= 1, got \(5, 4\)"):
        relative_shift(torch.ones(5, 4))


def shaw(c=3):
    module = ShawRelative(D, c, dtype=F64)
    module.weight.data = randn(2 * c + 1, D, generator=generator(5), dtype=F64)
    return module


@pytest.mark.parametrize(("n", "m", "first"), [(5, 7, 2), (7, 7, 0), (1, 11, 10), (3, 5, 0)])
def test_shaw_is_the_definition_by_loops(n, m, first):
    module, q = shaw(), queries(n)
    places, keys = torch.arange(first, first + n), torch.arange(m)
    made = module(q, places, keys)
    for i in range(n):
        for j in range(m):
            offset = max(-3, min(3, j - int(places[i])))
            expected = q[:, :, i] @ module.weight[offset + 3]
            torch.testing.assert_close(made[:, :, i, j], expected, rtol=1e-13, atol=1e-13)


def test_shaw_by_the_skew_is_shaw_by_lookup():
    n, m = 5, 7
    module, q = shaw(), queries(n)
    offsets = torch.arange(-(n - 1), m).clamp(-3, 3) + 3
    skewed = relative_shift(q @ module.weight[offsets].T)
    torch.testing.assert_close(
        module(q, torch.arange(n), torch.arange(m)), skewed, rtol=1e-13, atol=1e-13
    )


def test_shaw_takes_positions_in_any_order():
    module, q = shaw(), queries(5)
    places = torch.tensor([3, 0, 9, 1, 1])
    made = module(q, places, places)
    for row in range(5):
        alone = module(q[:, :, row : row + 1], places[row : row + 1], places)
        torch.testing.assert_close(made[:, :, row : row + 1], alone)


def test_shaw_starts_with_unit_products():
    module = ShawRelative(97, 200)
    # 38897 draws of deviation 97^-0.5: known to a factor of 1 / sqrt(2 * 38897) = 0.36%.
    assert module.weight.std().item() == pytest.approx(97**-0.5, rel=5 * 0.0036)


def xl(dim=None, base=100.0):
    module = TransformerXLBias(H, D, dim=dim, base=base, dtype=F64)
    g = generator(7)
    for parameter in module.parameters():
        parameter.data = randn(*parameter.shape, generator=g, dtype=F64)
    return module


@pytest.mark.parametrize(("n", "m", "first"), [(5, 7, 2), (7, 7, 0), (1, 11, 10), (3, 5, 0)])
@pytest.mark.parametrize("kv_heads", [6, 2])
@pytest.mark.parametrize("dim", [None, 10])
def test_transformer_xl_is_the_four_terms_by_loops(n, m, first, kv_heads, dim):
    module, q = xl(dim), queries(n)
    k = queries(m, seed=1, heads=kv_heads)
    places, keys = torch.arange(first, first + n), torch.arange(m)
    made = module(q, places, keys, k)
    without = module(q, places, keys)
    W = module.map.weight.T.reshape(module.dim, H, D)
    for i in range(n):
        for j in range(m):
            angles = sinusoidal_positions(places[i] - j, module.dim, base=100.0, dtype=F64)
            r = torch.cat((angles[0::2], angles[1::2]))  # the published order: sines, then cosines
            for h in range(H):
                R = r @ W[:, h]
                key = k[:, h // (H // kv_heads), j]
                b = q[:, h, i] @ R
                c = key @ module.u[h]
                d = module.v[h] @ R
                torch.testing.assert_close(without[:, h, i, j], b + d, rtol=1e-11, atol=1e-11)
                torch.testing.assert_close(made[:, h, i, j], b + c + d, rtol=1e-11, atol=1e-11)


def test_a_bias_of_the_queries_is_the_content_term():
    n = 7
    module, q, k = xl(), queries(n), queries(n, seed=1)
    t = torch.arange(n)
    scores = q @ k.mT + module(q, t, t, k)
    moved = xl()
    moved.v.data = moved.v - moved.u
    biased = q + module.u[:, None]
    torch.testing.assert_close(scores, biased @ k.mT + moved(biased, t, t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [shaw, xl], ids=["shaw", "xl"])
def test_only_differences_of_positions_matter(make):
    module, q = make(), queries(5)
    t = torch.arange(5)
    made = module(q, t, t)
    # The angles of Transformer-XL are those of differences, so this is exact but for rounding.
    torch.testing.assert_close(made, module(q, t + 137, t + 137), rtol=1e-13, atol=1e-13)
    assert (made - module(q, t + 1, t)).abs().max() > 0.1


@pytest.mark.parametrize("make", [shaw, xl], ids=["shaw", "xl"])
def test_gradients_reach_queries_and_parameters(make):
    module, q = make(), queries(3).requires_grad_()
    places, keys = torch.arange(2, 5), torch.arange(5)

    def run(q, *parameters):
        names = [name for name, _ in module.named_parameters()]
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module, state, (q, places, keys))

    if make is xl:
        module.u.requires_grad_(False)  # without keys there is no content term
    assert torch.autograd.gradcheck(run, (q, *module.parameters()))


@pytest.mark.parametrize("make", [shaw, xl], ids=["shaw", "xl"])
def test_modules_run_on_meta_and_leave_inputs_alone(make):
    t = torch.arange(5)
    module, q = make(), queries(5)
    kept = q.clone()
    module(q, t, t)
    assert torch.equal(q, kept)
    assert torch.equal(t, torch.arange(5))
    far = module.to("meta")
    assert far(q.to("meta"), t.to("meta"), t.to("meta")).shape == (B, H, 5, 5)


def test_modules_follow_the_device(device):
    t = torch.arange(5, device=device)
    q = torch.ones(B, H, 5, D, device=device)
    assert ShawRelative(D, 3, device=device)(q, t, t).device == t.device
    assert TransformerXLBias(H, D, device=device)(q, t, t, q).device == t.device


@pytest.mark.usefixtures("own_checks")
def test_misfits_are_named():
    t = torch.arange(5)
    with pytest.raises(
        ValueError, match=r"q must have shape \(\*, \*, \*, 4\), got \(2, 6, 5, 7\)"
    ):
        shaw()(torch.ones(2, 6, 5, 7, dtype=F64), t, t)
    with pytest.raises(
        ValueError, match=r"offsets of q and the positions must have shape \(3, \*\)"
    ):
        shaw()(queries(3), t, t)
    with pytest.raises(ValueError, match="max_distance must be 0 or more, got -1"):
        ShawRelative(4, -1)
    with pytest.raises(ValueError, match=r"q must have shape \(\*, 6, \*, 4\), got \(2, 5, 5, 4\)"):
        xl()(queries(5, heads=5), t, t)
    with pytest.raises(ValueError, match=r"query_positions must have shape \(3,\), got \(5,\)"):
        xl()(queries(3), t, t)
    with pytest.raises(ValueError, match=r"key_positions must rise by 1.*got \[0, 2, 4, 6, 8\]"):
        xl()(queries(5), t, 2 * t)
    for place, both in enumerate([(t.double(), t), (t, t.double())]):
        name = ("query_positions", "key_positions")[place]
        with pytest.raises(ValueError, match=f"{name} must hold integers"):
            xl()(queries(5), *both)
    with pytest.raises(
        ValueError, match=r"keys must have shape \(2, \*, 5, 4\), got \(2, 6, 7, 4\)"
    ):
        xl()(queries(5), t, t, queries(7))
    with pytest.raises(ValueError, match="6 heads cannot share the keys of 4 heads"):
        xl()(queries(5), t, t, queries(5, heads=4))
    with pytest.raises(ValueError, match="dim must be even and 2 or more, got 9"):
        TransformerXLBias(3, 3)
    with pytest.raises(ValueError, match=r"base must lie in \(1.0, inf\], got 1.0"):
        TransformerXLBias(3, 4, base=1.0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_narrow_integers_do_not_wrap_around(dtype):
    t = torch.arange(120, 127)  # offsets are negative, which uint8 cannot hold
    for module in (shaw(), xl()):
        q = queries(7)
        assert torch.equal(module(q, t.to(dtype), t.to(dtype)), module(q, t, t))
    first = torch.arange(3)
    far = torch.arange(200, 203)
    if dtype == torch.uint8:
        q = queries(3)
        for module in (shaw(), xl()):
            made = module(q, first.to(dtype), far.to(dtype))
            assert torch.equal(made, module(q, first, far))
