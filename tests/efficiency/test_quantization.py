"""Grids, their errors, integer products, and the formats of others."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from companion.efficiency.quantization import (
    LSQ,
    FakeQuantize,
    affine_parameters,
    code_range,
    dequantize,
    fake_quantize,
    from_nf4,
    hadamard_transform,
    int8_matmul,
    lsq_quantize,
    mse_range,
    mx_round,
    nf4_table,
    optimal_clip,
    percentile_range,
    q4_1_decode,
    q4_1_encode,
    rounding_noise,
    stochastic_round,
    straight_through_round,
    symmetric_scale,
    to_codes,
    to_e4m3,
    to_nf4,
)


def normal(*shape, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=dtype)


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_the_grid_covers_the_interval_and_holds_zero(bits):
    x = normal(7, 11) + 1.5
    scale, zero = affine_parameters(x.amin(1), x.amax(1), bits=bits)
    made = fake_quantize(x, scale[:, None], zero[:, None], low=0, high=2**bits - 1)
    # Half a step of rounding, and half a step by which rounding the zero point moves the grid.
    assert bool(((made - x).abs() <= scale[:, None] * (1 + 1e-9)).all())
    nothing = fake_quantize(
        torch.zeros(7, 1).double(), scale[:, None], zero[:, None], low=0, high=2**bits - 1
    )
    assert not nothing.any()


def test_an_interval_beside_zero_is_widened_to_it():
    # Reported for others: with the grid on [1, 2] alone, both numbers became 1.
    scale, zero = affine_parameters(torch.tensor(1.0), torch.tensor(2.0), bits=4)
    made = fake_quantize(torch.tensor([1.0, 2.0]), scale, zero, low=0, high=15)
    # 1 is half-way between 14/15 and 16/15.
    assert float(made[0]) == pytest.approx(1.0, abs=1.001 / 15)
    assert float(made[1]) == pytest.approx(2.0)
    assert int(zero) == 0
    below = affine_parameters(torch.tensor(-2.0), torch.tensor(-1.0), bits=4)
    assert int(below[1]) == 15


def test_the_zero_point_of_a_symmetric_interval_goes_to_even():
    scale, zero = affine_parameters(torch.tensor(-1.0), torch.tensor(1.0))
    assert int(zero) == 128
    ends = dequantize(torch.tensor([0, 255]), scale, zero)
    torch.testing.assert_close(ends, torch.tensor([-256 / 255, 254 / 255]))


def test_known_ranges_have_known_parameters():
    # Widely asked: min -34.898, max 53.584 with 255 and with 127 steps.
    low, high = torch.tensor(-34.898).double(), torch.tensor(53.584).double()
    assert affine_parameters(low, high, bits=8)[0].item() == pytest.approx(0.34699, abs=5e-6)
    scale, zero = affine_parameters(low, high, bits=7)
    assert scale.item() == pytest.approx(0.6967, abs=5e-5)
    # The report counts codes from -128 + 127; from 0 the code of zero is 50.
    assert int(zero) == 50


def test_a_constant_has_a_grid():
    scale, zero = affine_parameters(torch.zeros(3), torch.zeros(3))
    assert torch.equal(scale, torch.ones(3))
    assert torch.equal(zero, torch.zeros(3, dtype=torch.int32))


def test_the_largest_magnitude_is_on_the_symmetric_grid():
    x = torch.tensor([1.0, -0.3], dtype=torch.float64)
    for bits in (2, 4, 8):
        low, high = code_range(bits, signed=True)
        made = fake_quantize(x, symmetric_scale(x, bits=bits), low=low, high=high)
        assert float(made[0]) == pytest.approx(1.0, abs=1e-15)


def test_our_fake_quantization_is_that_of_pytorch():
    x = 3 * normal(5, 13, dtype=torch.float32)
    scale, zero = affine_parameters(x.amin(), x.amax())
    ours = fake_quantize(x, scale, zero, low=0, high=255)
    theirs = torch.fake_quantize_per_tensor_affine(x, scale.item(), int(zero), 0, 255)
    # Both multiply by the step; theirs divides by multiplying with its inverse.
    assert float(((ours - theirs).abs() > 1e-6).float().mean()) < 0.02
    torch.testing.assert_close(ours, theirs, rtol=0, atol=float(scale) * 1.001)
    rows = symmetric_scale(x, dim=1)
    codes = to_codes(x, rows, low=-128, high=127)
    per_row = torch.fake_quantize_per_channel_affine(
        x, rows[:, 0], torch.zeros(5, dtype=torch.int32), 0, -128, 127
    )
    torch.testing.assert_close(dequantize(codes, rows), per_row, rtol=0, atol=1e-6)


@given(st.integers(2, 8), st.integers(0, 10**6))
def test_rounding_twice_is_rounding_once(bits, seed):
    x = normal(3, 7, seed=seed)
    low, high = code_range(bits, signed=True)
    scale = symmetric_scale(x, bits=bits, dim=-1)
    once = fake_quantize(x, scale, low=low, high=high)
    assert torch.equal(fake_quantize(once, scale, low=low, high=high), once)


def test_the_integer_product_keeps_both_steps_and_the_zero_point():
    X, W = normal(5, 17), normal(17, 7, seed=1)
    s, z = affine_parameters(X.amin(), X.amax())
    w = symmetric_scale(W, dim=0)
    Xq = to_codes(X, s, z, low=0, high=255)
    Wq = to_codes(W, w, low=-127, high=127)
    exact = dequantize(Xq, s, z) @ dequantize(Wq, w)
    # Unsigned codes fit into int8 after moving them and the zero point by 128.
    product = int8_matmul((Xq - 128).to(torch.int8), Wq.to(torch.int8))
    made = s * w * (product - (z - 128) * Wq.sum(0))
    torch.testing.assert_close(made, exact, rtol=1e-12, atol=1e-12)
    forgotten = s * w * product
    assert float((forgotten - exact).abs().max()) > 0.1


@pytest.mark.parametrize("inputs", [3, 1024, 1025, 3001])
def test_an_integer_product_is_exact_at_the_ends_of_the_range(inputs):
    X = torch.full((2, inputs), 127, dtype=torch.int8)
    W = torch.full((inputs, 3), -127, dtype=torch.int8)
    assert torch.equal(int8_matmul(X, W), torch.full((2, 3), -(127**2) * inputs).int())
    g = torch.Generator().manual_seed(0)
    X = torch.randint(-127, 128, (5, inputs), generator=g, dtype=torch.int8)
    W = torch.randint(-127, 128, (inputs, 7), generator=g, dtype=torch.int8)
    assert torch.equal(int8_matmul(X, W).long(), X.long() @ W.long())
    assert torch.equal(int8_matmul(X, W), torch._int_mm(X, W))


@pytest.mark.usefixtures("own_checks")
def test_an_integer_product_refuses_sums_that_may_not_fit_into_32_bits():
    most = 133_144
    assert 127**2 * most < 2**31 <= 127**2 * (most + 1)
    one = torch.full((1, 1), 127, dtype=torch.int8)
    X, W = one.expand(1, most), one.expand(most, 1)
    assert int8_matmul(X, W).item() == 127**2 * most
    with pytest.raises(ValueError, match="may not fit into 32 bits: give 133144 inputs"):
        int8_matmul(one.expand(1, most + 1), one.expand(most + 1, 1))
    with pytest.raises(ValueError, match="codes must be int8, got"):
        int8_matmul(X.float(), W)


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_noise_is_the_integral_and_the_best_clip_its_minimum(law, bits):
    density = stats.norm.pdf if law == "gaussian" else stats.laplace.pdf

    def noise(alpha):
        tail = integrate.quad(lambda x: (x - alpha) ** 2 * density(x), alpha, 60)[0]
        return alpha**2 / (3 * 4**bits) + 2 * tail

    for alpha in (0.7, 2.3):
        assert rounding_noise(alpha, bits=bits, law=law) == pytest.approx(noise(alpha), rel=1e-7)
    found = optimize.minimize_scalar(noise, bounds=(0.1, 30), options={"xatol": 1e-9})
    assert optimal_clip(bits=bits, law=law) == pytest.approx(found.x, rel=1e-4)


def test_the_rounding_noise_of_a_grid_is_a_twelfth_of_its_step_squared():
    x = normal(200_000)
    step = 0.25
    error = (fake_quantize(x, torch.tensor(step).double(), low=-99, high=99) - x).square()
    # 200,000 squares with mean step^2/12 and variance step^4/180: five standard errors.
    allowed = 5 * step**2 / math.sqrt(180 * 200_000)
    assert float(error.mean()) == pytest.approx(step**2 / 12, abs=allowed)


def test_an_observer_that_shrinks_is_never_worse():
    x = torch.cat([normal(997), torch.tensor([40.0]).double()])

    def error(low, high):
        scale, zero = affine_parameters(low, high, bits=4)
        return float((fake_quantize(x, scale, zero, low=0, high=15) - x).square().sum())

    whole, best = error(x.amin(), x.amax()), error(*mse_range(x, bits=4))
    assert best < 0.99 * whole
    assert percentile_range(x, ratio=1.0) == (x.amin(), x.amax())


@given(st.floats(0.5, 1.0), st.integers(1, 50))
def test_percentiles_are_those_of_torch(share, count):
    x = normal(count)
    low, high = percentile_range(x, ratio=share)
    cut = (1 - share) / 2
    torch.testing.assert_close(low, torch.quantile(x, cut), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(high, torch.quantile(x, 1 - cut), rtol=1e-9, atol=1e-9)


# Formats


def test_the_table_of_nf4_is_that_of_bitsandbytes():
    from bitsandbytes.functional import get_4bit_type

    theirs = get_4bit_type("nf4", device="cpu")
    torch.testing.assert_close(nf4_table(), theirs, rtol=0, atol=2e-7)
    table = nf4_table(dtype=torch.float64)
    assert int((table == 0).sum()) == 1
    assert int((table > 0).sum()) == 8  # one more than below: not a symmetric table
    assert float((table[14] + table[15]) / 2) == pytest.approx(0.861478, abs=1e-6)


def test_nf4_rounds_as_bitsandbytes_does():
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    x = normal(3, 128, dtype=torch.float32)
    packed, state = quantize_4bit(x, blocksize=64, quant_type="nf4")
    codes, most = to_nf4(x)
    torch.testing.assert_close(from_nf4(codes, most), dequantize_4bit(packed, state))


def test_e4m3_saturates_and_keeps_nan():
    x = torch.tensor([448.0, 464.0, 465.0, -1e9, math.inf, math.nan])
    made = to_e4m3(x)
    assert made[:5].tolist() == [448.0, 448.0, 448.0, -448.0, 448.0]
    assert bool(made[5].isnan())
    grid = torch.tensor([2.0**-9, 2.0**-6, 1.125, 240.0])
    assert torch.equal(to_e4m3(grid), grid)


def test_mx_scales_round_down_as_the_standard_says_and_up_without_clipping():
    x = torch.tensor([500.0, 1.0])
    assert float(mx_round(x, group=2)[0]) == 448.0  # 500 is beyond 448, and below 512
    assert float(mx_round(x, group=2, scale="up")[0]) == 512.0
    y = torch.tensor([7.0, 1.0])
    assert mx_round(y, element="e2m1", group=2).tolist() == [6.0, 1.0]
    assert mx_round(y, element="e2m1", scale="up", group=2).tolist() == [8.0, 1.0]


def test_mxfp4_is_that_of_gguf():
    from gguf import GGMLQuantizationType, dequantize, quantize

    x = normal(5, 96, dtype=torch.float32)
    raw = quantize(x.numpy(), GGMLQuantizationType.MXFP4)
    theirs = torch.from_numpy(dequantize(raw, GGMLQuantizationType.MXFP4))
    ours = mx_round(x, element="e2m1")
    # They differ in ties alone, which these numbers do not have.
    torch.testing.assert_close(ours, theirs)


@given(st.integers(-60, 60), st.sampled_from(["e4m3", "e2m1"]), st.sampled_from(["floor", "up"]))
def test_a_power_of_two_passes_through_an_mx_block(power, element, scale):
    x = normal(2, 32)
    moved = mx_round(x * 2.0**power, element=element, scale=scale)
    torch.testing.assert_close(moved, mx_round(x, element=element, scale=scale) * 2.0**power)


def test_blocks_of_q4_1_are_those_of_gguf_both_ways():
    from gguf import GGMLQuantizationType, dequantize, quantize

    x = normal(3, 64, dtype=torch.float32)
    theirs = torch.from_numpy(quantize(x.numpy(), GGMLQuantizationType.Q4_1))
    ours = q4_1_encode(x)
    expanded = torch.from_numpy(dequantize(theirs.numpy(), GGMLQuantizationType.Q4_1))
    torch.testing.assert_close(q4_1_decode(theirs).values(), expanded, rtol=0, atol=0)
    torch.testing.assert_close(q4_1_decode(ours).values(), expanded, rtol=0, atol=1e-3)


def test_a_byte_of_q4_1_holds_numbers_that_are_sixteen_apart():
    block = torch.zeros(1, 20, dtype=torch.uint8)
    block[0, :4] = torch.tensor([0.5, -1.0]).half().view(torch.uint8)
    block[0, 4] = 0x3A
    values = q4_1_decode(block).values()[0]
    assert (float(values[0]), float(values[16]), float(values[1])) == (4.0, 0.5, -1.0)


# Training


def test_the_straight_through_gradient_stops_at_the_ends():
    x = torch.tensor([-2.5, -0.4, 0.4, 2.6], dtype=torch.float64, requires_grad=True)
    lsq_quantize(x, torch.ones((), dtype=torch.float64), low=-2, high=1).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    y = torch.tensor([0.2, 1.7], requires_grad=True)
    straight_through_round(y).sum().backward()
    assert y.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("v", "slope"), [(1.3, -0.3), (2.6, 0.4), (5.0, 3.0), (-9.0, -4.0)])
def test_the_gradient_of_the_step_is_that_of_lsq(v, slope):
    s = torch.ones((), dtype=torch.float64, requires_grad=True)
    lsq_quantize(torch.tensor(v).double(), s, low=-4, high=3).backward()
    assert float(s.grad) == pytest.approx(slope, abs=1e-6)


def test_the_gradient_of_the_step_is_that_of_pytorch():
    x = 2 * normal(7, 5, dtype=torch.float32)
    # Between the last point and half a step beyond it the paper says "outside", PyTorch "inside".
    between = (x / 0.4 > 7) & (x / 0.4 < 7.5) | (x / 0.4 < -8) & (x / 0.4 > -8.5)
    x = torch.where(between, x / 2, x)
    s = torch.tensor([0.4], requires_grad=True)
    g = 1 / math.sqrt(35 * 7)
    theirs = torch._fake_quantize_learnable_per_tensor_affine(
        x, s, torch.zeros(1), -8, 7, grad_factor=g
    )
    theirs.square().sum().backward()
    mine = torch.tensor(0.4, requires_grad=True)
    made = lsq_quantize(x, mine, low=-8, high=7, gradient_scale=g)
    made.square().sum().backward()
    torch.testing.assert_close(made, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.grad, s.grad[0], rtol=1e-4, atol=1e-4)


def test_a_learned_step_stays_above_zero_under_any_update():
    layer = LSQ(normal(5, 3), bits=3)
    assert layer.gradient_scale == pytest.approx(1 / math.sqrt(45))
    with torch.no_grad():
        layer.log_scale -= 50.0
    assert float(layer.scale.detach()) > 0


def test_fake_quantization_for_training_has_the_grid_of_the_largest_magnitude():
    x = normal(3, 5).requires_grad_()
    made = FakeQuantize(4)(x)
    steps = made.detach() / (x.detach().abs().max() / 7)
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-9)
    made.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("value", [0.3, -1.7, 2.5])
def test_stochastic_rounding_has_the_right_mean_and_variance(value):
    g = torch.Generator().manual_seed(0)
    n = 100_000
    made = stochastic_round(torch.full((n,), value, dtype=torch.float64), generator=g)
    f = value - math.floor(value)
    assert set(made.tolist()) == {math.floor(value), math.floor(value) + 1.0}
    # Five standard errors of a mean of n draws with variance f(1 - f).
    allowed = 5 * math.sqrt(f * (1 - f) / n)
    assert float(made.mean()) == pytest.approx(value, abs=allowed)
    assert float(made.var()) == pytest.approx(f * (1 - f), abs=allowed)


def test_numbers_on_the_grid_are_not_moved_by_chance():
    g = torch.Generator().manual_seed(0)
    x = torch.arange(-(2**12), 2**12, dtype=torch.float32)
    assert torch.equal(stochastic_round(x, generator=g), x)


@pytest.mark.parametrize(("width", "block"), [(8, 8), (12, 4), (7, 1)])
def test_a_hadamard_transform_is_orthogonal_and_its_own_inverse(width, block):
    R = hadamard_transform(torch.eye(width, dtype=torch.float64))
    torch.testing.assert_close(R @ R.T, torch.eye(width).double())
    torch.testing.assert_close(R, R.T)
    assert float(R.abs().max()) == pytest.approx(block**-0.5)
    x = normal(3, width)
    torch.testing.assert_close(hadamard_transform(hadamard_transform(x)), x)


def test_a_hadamard_matrix_is_that_of_scipy():
    from scipy.linalg import hadamard

    R = hadamard_transform(torch.eye(16, dtype=torch.float64))
    torch.testing.assert_close(R * 4, torch.from_numpy(hadamard(16)).double())


def test_inputs_stay_and_the_meta_device_will_do():
    x = normal(3, 64, dtype=torch.float32)
    kept = x.clone()
    g = torch.Generator().manual_seed(0)
    for f in (
        to_nf4,
        mx_round,
        q4_1_encode,
        hadamard_transform,
        to_e4m3,
        lambda t: symmetric_scale(t, dim=1),
        lambda t: fake_quantize(t, symmetric_scale(t), low=-8, high=7),
        lambda t: affine_parameters(t.amin(1), t.amax(1)),
        mse_range,
        lambda t: int8_matmul(t.to(torch.int8), t.T.to(torch.int8)),
        FakeQuantize(4),
        lambda t: stochastic_round(t, generator=g),
    ):
        f(x)
        made = f(torch.empty(3, 64, device="meta"))
        first = made[0] if isinstance(made, tuple) else made
        assert first.device.type == "meta"
    assert torch.equal(x, kept)


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: code_range(1, signed=True), "bits"),
        (lambda: affine_parameters(torch.ones(2), torch.zeros(2)), "low <= high"),
        (lambda: symmetric_scale(torch.empty(0)), "empty"),
        (lambda: to_codes(torch.ones(1), torch.ones(1), low=3, high=3), "low < high"),
        (
            lambda: int8_matmul(
                torch.ones(2, 3, dtype=torch.int8), torch.ones(2, 3, dtype=torch.int8)
            ),
            "inner sizes",
        ),
        (lambda: optimal_clip(bits=4, law="cauchy"), "law must be"),
        (lambda: rounding_noise(0.0, bits=4), "alpha"),
        (lambda: percentile_range(torch.ones(3), ratio=0.0), "ratio"),
        (lambda: to_nf4(torch.ones(3, 10), group=4), "group must divide the 10 inputs"),
        (lambda: from_nf4(torch.zeros(3, dtype=torch.uint8), torch.ones(2)), "do not fall into"),
        (lambda: mx_round(torch.ones(32), element="e3m2"), "element must be"),
        (lambda: mx_round(torch.ones(32), scale="down"), "scale must be"),
        (lambda: q4_1_decode(torch.zeros(1, 21, dtype=torch.uint8)), "blocks of 20 bytes"),
        (lambda: hadamard_transform(torch.ones(12), block=8), "at most 4"),
        (lambda: lsq_quantize(torch.ones(1), torch.tensor(-1.0), low=-1, high=1), "above 0"),
        (lambda: LSQ(torch.zeros(3), bits=4), "all weights are 0"),
        (lambda: stochastic_round(torch.ones(1), step=0.0, generator=torch.Generator()), "step"),
    ],
)
def test_what_a_caller_gets_wrong_is_said(call, said):
    with pytest.raises(ValueError, match=said):
        call()
