"""Absolute positions and biases: definitions by loops, theorems, and transformers as oracle."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from companion.core import generator, randn
from companion.transformer.positions import (
    Alibi,
    LearnedPositions,
    SinusoidalPositions,
    T5Bias,
    alibi_slopes,
    sinusoidal_positions,
    sinusoidal_shift,
    t5_bucket,
)

F64 = torch.float64


# --- sinusoids -----------------------------------------------------------------------------------


def test_sinusoids_are_the_definition_entry_by_entry():
    made = sinusoidal_positions(torch.tensor([0, 3, 11]), 10, base=77.0, dtype=F64)
    for row, t in enumerate((0, 3, 11)):
        for i in range(5):
            omega = 77.0 ** (-2 * i / 10)
            assert made[row, 2 * i].item() == pytest.approx(math.sin(omega * t), abs=1e-14)
            assert made[row, 2 * i + 1].item() == pytest.approx(math.cos(omega * t), abs=1e-14)


@settings(max_examples=50, deadline=None)
@given(t=st.integers(-500, 500), k=st.integers(-500, 500), pairs=st.integers(1, 11))
def test_one_matrix_shifts_every_encoding(t, k, pairs):
    here, there = sinusoidal_positions(torch.tensor([t, t + k]), 2 * pairs, dtype=F64)
    # Angles up to 1000 radians are rounded by 1000 * 2^-53, about 1e-13.
    torch.testing.assert_close(
        here @ sinusoidal_shift(k, 2 * pairs, dtype=F64), there, atol=1e-11, rtol=0
    )


@settings(max_examples=50, deadline=None)
@given(t=st.integers(-500, 500), k=st.integers(-500, 500), pairs=st.integers(1, 11))
def test_dot_products_of_sinusoids_know_the_distance_alone(t, k, pairs):
    here, there = sinusoidal_positions(torch.tensor([t, t + k]), 2 * pairs, dtype=F64)
    expected = sum(math.cos(k * 10000 ** (-i / pairs)) for i in range(pairs))
    assert float(here @ there) == pytest.approx(expected, abs=1e-11)


def test_shifts_form_a_group_of_rotations():
    R = {k: sinusoidal_shift(k, 6, dtype=F64) for k in (3, -3, 5, 8)}
    eye = torch.eye(6, dtype=F64)
    torch.testing.assert_close(R[3] @ R[3].T, eye, atol=1e-14, rtol=0)
    torch.testing.assert_close(R[3] @ R[5], R[8], atol=1e-14, rtol=0)
    torch.testing.assert_close(R[3].T, R[-3], atol=1e-14, rtol=0)
    assert (R[3] - R[-3]).abs().max() > 0.1  # the transpose is another matrix


def test_the_module_is_the_function_for_batches_of_positions():
    positions = torch.tensor([[0, 1, 2], [0, 0, 1]])
    made = SinusoidalPositions(8, base=50.0)(positions, dtype=F64)
    assert made.shape == (2, 3, 8)
    torch.testing.assert_close(made, sinusoidal_positions(positions, 8, base=50.0, dtype=F64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_low_precision_sinusoids_are_the_rounded_exact_ones(dtype):
    positions = torch.tensor([0, 1, 4093])  # past 2048 the integers of float16 have gaps
    exact = sinusoidal_positions(positions, 8, dtype=F64)
    made = sinusoidal_positions(positions, 8, dtype=dtype)
    assert made.dtype == dtype
    # A float32 angle near 4093 is off by 4093 * 2^-24 = 2.4e-4; then comes one rounding.
    atol = (0 if dtype == F64 else 4093 * 2**-24) + torch.finfo(dtype).eps
    torch.testing.assert_close(made.double(), exact, atol=atol, rtol=0)


def test_sinusoids_refuse_odd_widths_bases_and_floats():
    ids = torch.arange(3)
    with pytest.raises(ValueError, match="dim must be even and 2 or more, got 7"):
        sinusoidal_positions(ids, 7)
    with pytest.raises(ValueError, match="dim must be even and 2 or more, got 0"):
        SinusoidalPositions(0)
    with pytest.raises(ValueError, match=r"base must lie in \(1.0, inf\], got 1.0"):
        sinusoidal_positions(ids, 8, base=1.0)
    with pytest.raises(ValueError, match=r"base must lie in \(1.0, inf\], got -2"):
        SinusoidalPositions(8, base=-2.0)


# --- a learned table -----------------------------------------------------------------------------


def test_learned_positions_are_rows_of_the_table():
    table = LearnedPositions(7, 5, offset=2)
    assert table.weight.shape == (9, 5)
    positions = torch.tensor([[0, 6, 3], [1, 1, 2]])
    assert torch.equal(table(positions), table.weight[positions + 2])
    assert torch.equal(table(positions[0]), table.weight[positions[0] + 2])


def test_learned_positions_start_with_the_deviation_of_bert():
    table = LearnedPositions(401, 101).weight
    # 40501 draws: the deviation is known to 0.02 / sqrt(2 * 40501) = 7e-5, five times that here.
    assert abs(table.std().item() - 0.02) < 4e-4
    assert abs(table.mean().item()) < 5 * 0.02 / math.sqrt(40501)


@pytest.mark.usefixtures("own_checks")
def test_learned_positions_refuse_what_they_lack():
    table = LearnedPositions(7, 5, offset=2)
    with pytest.raises(ValueError, match=r"positions must lie in \[0, 7\), got 7"):
        table(torch.tensor([0, 7]))
    with pytest.raises(ValueError, match=r"positions must lie in \[0, 7\), got -1"):
        table(torch.tensor([-1]))
    with pytest.raises(ValueError, match="context must be 1 or more, got 0"):
        LearnedPositions(0, 5)
    with pytest.raises(ValueError, match="offset must be 0 or more, got -1"):
        LearnedPositions(3, 5, offset=-1)
    with pytest.raises(ValueError, match=r"positions must have shape \(n,\) or \(batch, n\)"):
        table(torch.zeros(1, 2, 3, dtype=torch.long))


# --- T5 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets", [8, 12, 16, 20, 32, 64])
@pytest.mark.parametrize("max_distance", [64, 100, 128, 256, 1000])
def test_buckets_are_those_of_transformers(bidirectional, buckets, max_distance):
    relative = torch.arange(-2003, 2004)
    theirs = T5Attention._relative_position_bucket(
        relative, bidirectional=bidirectional, num_buckets=buckets, max_distance=max_distance
    )
    ours = t5_bucket(
        relative, bidirectional=bidirectional, buckets=buckets, max_distance=max_distance
    )
    assert torch.equal(ours, theirs)


@settings(max_examples=100, deadline=None)
@given(
    buckets=st.integers(2, 40).map(lambda half: 2 * half),
    extra=st.integers(1, 500),
    bidirectional=st.booleans(),
)
def test_buckets_grow_with_distance_and_stay_in_range(buckets, extra, bidirectional):
    max_distance = buckets + extra
    distance = torch.arange(2 * max_distance)
    past = t5_bucket(
        -distance, buckets=buckets, max_distance=max_distance, bidirectional=bidirectional
    )
    side = buckets // 2 if bidirectional else buckets
    assert past[0] == 0
    assert (past.diff() >= 0).all()
    assert past.max() == side - 1
    assert (past[max_distance:] == side - 1).all()
    assert torch.equal(past[: side // 2], distance[: side // 2])  # near ones are exact
    future = t5_bucket(
        distance, buckets=buckets, max_distance=max_distance, bidirectional=bidirectional
    )
    if bidirectional:
        assert torch.equal(future[1:], past[1:] + side)
    else:
        assert (future == 0).all()


def test_buckets_refuse_sizes_out_of_domain():
    r = torch.arange(3)
    with pytest.raises(ValueError, match="buckets must be 4 or more, got 2"):
        t5_bucket(r, buckets=2)
    with pytest.raises(ValueError, match="buckets must be even when bidirectional, got 7"):
        t5_bucket(r, buckets=7)
    with pytest.raises(ValueError, match="max_distance must be 9 or more, got 8"):
        t5_bucket(r, buckets=32, max_distance=8)
    assert t5_bucket(r, buckets=7, bidirectional=False, max_distance=8).max() == 0


def bias_with_values(heads=3, **settings):
    bias = T5Bias(heads, buckets=8, max_distance=20, dtype=F64, **settings)
    bias.weight.data = randn(8, heads, generator=generator(0), dtype=F64)
    return bias


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_bias_is_that_of_transformers(bidirectional):
    ours = bias_with_values(bidirectional=bidirectional)
    queries, keys = torch.arange(5, 16), torch.arange(17)
    relative = keys[None] - queries[:, None]
    bucket = T5Attention._relative_position_bucket(
        relative, bidirectional=bidirectional, num_buckets=8, max_distance=20
    )
    expected = nn.functional.embedding(bucket, ours.weight).permute(2, 0, 1)
    assert torch.equal(ours(queries, keys), expected)


def test_the_gradient_of_a_bucket_is_the_sum_over_its_diagonals():
    bias = bias_with_values()
    n, m = 5, 7
    dS = randn(3, n, m, generator=generator(1), dtype=F64)
    bias(torch.arange(n), torch.arange(m)).backward(dS)
    expected = torch.zeros_like(bias.weight)
    for i in range(n):
        for j in range(m):
            bucket = int(t5_bucket(torch.tensor(j - i), buckets=8, max_distance=20))
            expected[bucket] += dS[:, i, j]
    torch.testing.assert_close(bias.weight.grad, expected, rtol=1e-13, atol=1e-14)


# --- ALiBi ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 7, 8, 11, 12, 16, 20, 32, 40])
def test_slopes_and_biases_are_those_of_bloom(heads):
    n = 13
    theirs = build_alibi_tensor(torch.ones(1, n, dtype=torch.long), heads, torch.float32)
    ours = Alibi(heads)(torch.arange(n), torch.arange(n))
    # Bloom adds slope * j, which differs by slope * i, one number for a row: softmax removes it.
    row = torch.arange(n)[:, None] * alibi_slopes(heads)[:, None, None]
    allowed = torch.ones(n, n).tril().bool()
    torch.testing.assert_close(
        (ours + row)[:, allowed], theirs.expand(heads, n, n)[:, allowed], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("heads", [1, 2, 4, 8, 16])
def test_slopes_are_a_geometric_row_for_powers_of_two(heads):
    expected = [2 ** (-8 * h / heads) for h in range(1, heads + 1)]
    torch.testing.assert_close(alibi_slopes(heads, dtype=F64), torch.tensor(expected, dtype=F64))


@given(heads=st.integers(1, 200))
def test_slopes_are_distinct_and_between_zero_and_one(heads):
    slopes = alibi_slopes(heads, dtype=F64)
    assert len(slopes) == heads
    assert len(slopes.unique()) == heads
    assert ((slopes > 0) & (slopes < 1)).all()


def test_the_bias_is_an_exponential_prior_on_the_weights():
    S = randn(2, 5, 7, generator=generator(0), dtype=F64)
    queries, keys = torch.arange(2, 7), torch.arange(7)
    A = torch.softmax(S + Alibi(2)(queries, keys, dtype=F64), -1)
    distance = (queries[:, None] - keys).abs()
    prior = torch.exp(-alibi_slopes(2, dtype=F64)[:, None, None] * distance)
    weighed = S.exp() * prior
    torch.testing.assert_close(A, weighed / weighed.sum(-1, keepdim=True))


def test_biases_take_a_batch_of_positions():
    queries = torch.tensor([[3, 4, 5], [0, 1, 2]])
    keys = torch.arange(5).expand(2, 5)
    for module in (Alibi(7), bias_with_values(7)):
        both = module(queries, keys)
        assert both.shape == (2, 7, 3, 5)
        for b in range(2):
            assert torch.equal(both[b], module(queries[b], keys[b]))


@pytest.mark.parametrize("module", [Alibi(3), bias_with_values()], ids=["alibi", "t5"])
def test_biases_do_not_change_when_all_positions_shift(module):
    queries, keys = torch.arange(5), torch.arange(7)
    assert torch.equal(module(queries, keys), module(queries + 137, keys + 137))
    assert not torch.equal(module(queries, keys), module(queries + 1, keys))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_narrow_integers_do_not_wrap_around(dtype):
    t = torch.arange(120, 127)  # offsets are negative, which uint8 cannot hold
    narrow = t.to(dtype)
    for module in (Alibi(3), bias_with_values()):
        assert torch.equal(module(narrow, narrow), module(t, t))
    table = LearnedPositions(127, 3, offset=2)  # 126 + 2 is too much for int8
    assert torch.equal(table(narrow), table(t))


@pytest.mark.usefixtures("own_checks")
def test_biases_refuse_positions_that_are_not_integers():
    with pytest.raises(ValueError, match="heads must be 1 or more, got 0"):
        Alibi(0)
    with pytest.raises(ValueError, match="heads must be 1 or more, got 0"):
        T5Bias(0)
    with pytest.raises(ValueError, match="query_positions must hold integers"):
        Alibi(2)(torch.ones(3).bool(), torch.arange(3))


# --- everywhere ----------------------------------------------------------------------------------

PLACES = [
    lambda: SinusoidalPositions(6),
    lambda: LearnedPositions(11, 6),
    lambda: (lambda m: lambda t: m(t, t))(Alibi(3)),
    lambda: (lambda m: lambda t: m(t, t))(T5Bias(3)),
]
NAMES = ["sinusoidal", "learned", "alibi", "t5"]


@pytest.mark.parametrize("make", PLACES, ids=NAMES)
def test_modules_run_on_meta(make):
    with torch.device("meta"):
        module = make()
        assert module(torch.arange(5)).device.type == "meta"


@pytest.mark.parametrize("make", PLACES, ids=NAMES)
def test_modules_leave_their_inputs_alone_and_have_no_state(make):
    positions = torch.arange(5)
    module = make()
    first, second = module(positions), module(positions)
    assert torch.equal(positions, torch.arange(5))
    assert torch.equal(first, second)


def test_a_bias_made_on_meta_and_filled_by_assignment_works():
    full = bias_with_values()
    with torch.device("meta"):
        empty = T5Bias(3, buckets=8, max_distance=20)
    empty.load_state_dict(full.state_dict(), assign=True)
    t = torch.arange(23)
    assert torch.equal(empty(t, t), full(t, t))


def test_modules_follow_the_device(device):
    t = torch.arange(5, device=device)
    assert SinusoidalPositions(6)(t).device == t.device
    assert Alibi(3)(t, t).device == t.device
    assert T5Bias(3).to(device)(t, t).device == t.device
    assert LearnedPositions(7, 3, device=device)(t).device == t.device
