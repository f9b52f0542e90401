"""Rotary positions: theorems of rotations, and Llama of transformers as oracle."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from companion.core import generator, randn
from companion.transformer.positions import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    NTKScaling,
    RopeScaling,
    Rotary,
    YarnScaling,
    interleave_pairs,
    rope_frequencies,
    rotate,
    rotation_matrix,
)

F64 = torch.float64
# float32 powers and quotients: a few roundings of 6e-8 each.
FREQUENCIES = {"rtol": 3e-7, "atol": 0}


def config(context=64, head_dim=16, **parameters):
    return LlamaConfig(
        hidden_size=3 * head_dim,
        num_attention_heads=3,
        head_dim=head_dim,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0} | parameters,
    )


# Their settings, and ours.
SCALINGS = {
    "linear": ({"factor": 4.0}, LinearScaling(4.0)),
    "dynamic": ({"factor": 4.0}, DynamicNTKScaling(4.0, 64)),
    "llama3": (
        {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 48,
        },
        Llama3Scaling(8.0, 1.0, 4.0, 48),
    ),
    "yarn": (
        {"factor": 4.0, "original_max_position_embeddings": 64},
        YarnScaling(4.0, 64),
    ),
    "yarn-settings": (
        {
            "factor": 2.5,
            "original_max_position_embeddings": 64,
            "beta_fast": 7.0,
            "beta_slow": 0.5,
            "truncate": False,
            "attention_factor": 1.3,
        },
        YarnScaling(2.5, 64, beta_fast=7.0, beta_slow=0.5, truncate=False, attention_factor=1.3),
    ),
    # Trained on enough positions for the ends of the ramp to lie inside, and beyond the last pair.
    "yarn-long": (
        {"factor": 4.0, "original_max_position_embeddings": 4096},
        YarnScaling(4.0, 4096),
    ),
    "yarn-longest": (
        {"factor": 4.0, "original_max_position_embeddings": 400_000},
        YarnScaling(4.0, 400_000),
    ),
    "yarn-mscale": (
        {
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "mscale": 0.7,
            "mscale_all_dim": 1.9,
        },
        YarnScaling(4.0, 64, mscale=0.7, mscale_all_dim=1.9),
    ),
}


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("head_dim", [16, 64])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_scaled_frequencies_are_those_of_transformers(name, head_dim, base):
    theirs, ours = SCALINGS[name]
    kind = name.partition("-")[0]
    made = config(head_dim=head_dim, rope_type=kind, rope_theta=base, **theirs)
    for length in (None, 17, 64, 65, 257):
        expected, factor = ROPE_INIT_FUNCTIONS[kind](made, seq_len=length)
        frequencies = rope_frequencies(head_dim, base=base, scaling=ours, length=length)
        torch.testing.assert_close(frequencies, expected, **FREQUENCIES)
        assert ours.cos_sin_factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("name", [None, *SCALINGS])
def test_turned_queries_and_keys_are_those_of_llama(name):
    theirs, ours = ({}, None) if name is None else SCALINGS[name]
    kind = "default" if name is None else name.partition("-")[0]
    module = LlamaRotaryEmbedding(config(rope_type=kind, **theirs))
    g = generator(0)
    q, k = randn(2, 5, 71, 16, generator=g), randn(2, 3, 71, 16, generator=g)
    positions = torch.arange(3, 74)[None]
    cos, sin = module(q, positions)
    expected = apply_rotary_pos_emb(q, k, cos, sin)
    rotary = Rotary(16, scaling=ours)
    for places in (positions[0], positions, positions.expand(2, -1)):
        rotation = rotary(places)
        # Angles up to 73 radians differ by roundings of 73 * 2^-24 = 4e-6, times |x| < 5.
        torch.testing.assert_close(rotate(q, rotation), expected[0], atol=3e-5, rtol=0)
        torch.testing.assert_close(rotate(k, rotation), expected[1], atol=3e-5, rtol=0)
    # The plain and the linear case are not merely close.
    if kind in ("default", "linear"):
        assert torch.equal(rotary(positions[0])[0], cos[0])


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_fast_rotation_is_the_dense_matrix(interleaved):
    x = randn(2, 3, 5, 14, generator=generator(0), dtype=F64)
    before = x.clone()
    positions = torch.tensor([0, 1, 7, 7, 300])
    rotary = Rotary(14, interleaved=interleaved)
    made = rotate(x, rotary(positions, dtype=F64), interleaved=interleaved)
    for i, m in enumerate(positions.tolist()):
        R = rotation_matrix(m, 14, interleaved=interleaved, dtype=F64)
        torch.testing.assert_close(made[:, :, i], x[:, :, i] @ R, atol=1e-11, rtol=0)
    assert torch.equal(x, before)


def test_heads_may_come_after_the_tokens():
    x = randn(2, 3, 5, 14, generator=generator(0), dtype=F64)
    for positions in (torch.arange(5), torch.tensor([[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]])):
        for interleaved in (False, True):
            rotation = Rotary(14, interleaved=interleaved)(positions, dtype=F64)
            first = rotate(x, rotation, interleaved=interleaved)
            second = rotate(x.transpose(1, 2), rotation, interleaved=interleaved, head_axis=2)
            assert torch.equal(first, second.transpose(1, 2))


@settings(max_examples=50, deadline=None)
@given(
    m=st.integers(0, 2000),
    n=st.integers(0, 2000),
    shift=st.integers(0, 2000),
    pairs=st.integers(1, 9),
    interleaved=st.booleans(),
)
def test_scores_know_the_distance_alone(m, n, shift, pairs, interleaved):
    g = generator(0)
    q, k = randn(2, 1, 1, 1, 2 * pairs, generator=g, dtype=F64)
    rotary = Rotary(2 * pairs, interleaved=interleaved)

    def score(m, n):
        turned = [
            rotate(x, rotary(torch.tensor([place]), dtype=F64), interleaved=interleaved)
            for x, place in ((q, m), (k, n))
        ]
        return (turned[0] * turned[1]).sum()

    # Angles up to 4000 radians in float64: 4000 * 2^-53 = 4e-13 each, |q| |k| below 50.
    torch.testing.assert_close(score(m, n), score(m + shift, n + shift), atol=1e-10, rtol=0)
    R = rotation_matrix(m - n, 2 * pairs, interleaved=interleaved, dtype=F64)
    torch.testing.assert_close(score(m, n), q.flatten() @ R @ k.flatten(), atol=1e-10, rtol=0)


def test_rotations_multiply_as_their_angles_add_and_keep_lengths():
    R = {m: rotation_matrix(m, 10, dtype=F64) for m in (11, 4, 7, -7)}
    torch.testing.assert_close(R[11] @ R[4].T, R[7], atol=1e-13, rtol=0)
    assert (R[11] @ R[4].T - R[-7]).abs().max() > 0.1
    x = randn(2, 3, 5, 10, generator=generator(0), dtype=F64)
    turned = rotate(x, Rotary(10)(torch.arange(5), dtype=F64))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-13, atol=0)


def test_a_pair_is_a_complex_number_times_a_phase():
    x = randn(1, 1, 7, 10, generator=generator(0), dtype=F64)
    z = torch.view_as_complex(x.unflatten(-1, (5, 2)))
    angles = torch.arange(7)[:, None] * rope_frequencies(10, dtype=F64)
    expected = torch.view_as_real(z * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    made = rotate(x, Rotary(10, interleaved=True)(torch.arange(7), dtype=F64), interleaved=True)
    torch.testing.assert_close(made, expected, rtol=1e-13, atol=1e-14)


def test_the_two_layouts_differ_by_a_permutation():
    x = randn(2, 3, 5, 14, generator=generator(0), dtype=F64)
    t = torch.arange(5)
    half = rotate(x, Rotary(14)(t, dtype=F64))
    woven = rotate(
        interleave_pairs(x), Rotary(14, interleaved=True)(t, dtype=F64), interleaved=True
    )
    torch.testing.assert_close(woven, interleave_pairs(half), rtol=1e-14, atol=1e-14)
    assert torch.equal(interleave_pairs(interleave_pairs(x), inverse=True), x)
    assert (woven - half).abs().max() > 0.1


def test_the_gradient_turns_back():
    x = randn(2, 3, 5, 14, generator=generator(0), dtype=F64).requires_grad_()
    dy = randn(2, 3, 5, 14, generator=generator(1), dtype=F64)
    for interleaved in (False, True):
        cos, sin = Rotary(14, interleaved=interleaved)(torch.arange(5), dtype=F64)
        (made,) = torch.autograd.grad(rotate(x, (cos, sin), interleaved=interleaved), x, dy)
        torch.testing.assert_close(made, rotate(dy, (cos, -sin), interleaved=interleaved))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_rounded_once(dtype):
    x = randn(1, 2, 5, 16, generator=generator(0)).to(dtype)
    made = rotate(x, Rotary(16)(torch.arange(5)))
    assert made.dtype == dtype
    exact = rotate(x.double(), Rotary(16)(torch.arange(5), dtype=F64))
    torch.testing.assert_close(made, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
    rounded = Rotary(16)(torch.arange(5), dtype=dtype)
    assert {t.dtype for t in rounded} == {dtype}
    assert rotate(x, rounded).dtype == dtype


# --- scalings ------------------------------------------------------------------------------------


def test_position_interpolation_divides_positions():
    plain = Rotary(10)(torch.arange(0, 13), dtype=F64)
    scaled = Rotary(10, scaling=LinearScaling(3.0))(torch.arange(0, 39, 3), dtype=F64)
    for a, b in zip(plain, scaled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@given(factor=st.floats(1.0, 64.0), pairs=st.integers(2, 64))
def test_ntk_keeps_the_fastest_pair_and_slows_the_slowest_by_the_factor(factor, pairs):
    plain = rope_frequencies(2 * pairs, dtype=F64)
    scaled = rope_frequencies(2 * pairs, scaling=NTKScaling(factor), dtype=F64)
    ratio = plain / scaled
    assert ratio[0] == pytest.approx(1.0, rel=1e-12)
    assert ratio[-1] == pytest.approx(factor, rel=1e-9)
    expected = factor ** (torch.arange(pairs, dtype=F64) / (pairs - 1))
    torch.testing.assert_close(ratio, expected, rtol=1e-9, atol=0)


def test_dynamic_scaling_starts_at_the_trained_context():
    rotary = Rotary(10, scaling=DynamicNTKScaling(2.0, 13))
    plain = Rotary(10)(torch.arange(13), dtype=F64)
    for n in (5, 13):
        assert torch.equal(rotary(torch.arange(n), dtype=F64)[0], plain[0][:n])
    # At n = 26, the stretch is 2 * 2 - 1 = 3.
    longer = rotary(torch.arange(26), dtype=F64)
    expected = Rotary(10, scaling=NTKScaling(3.0))(torch.arange(26), dtype=F64)
    torch.testing.assert_close(longer[0], expected[0], rtol=1e-12, atol=1e-12)


def test_dynamic_scaling_reads_the_length_of_narrow_integers():
    rotary, last = Rotary(10, scaling=DynamicNTKScaling(2.0, 13)), torch.tensor([255])
    for dtype in (torch.uint8, torch.int16):
        assert torch.equal(rotary(last.to(dtype))[0], rotary(last)[0])


@pytest.mark.parametrize("name", SCALINGS)
def test_a_factor_of_one_changes_no_frequency(name):
    scaling = SCALINGS[name][1]
    settings = {**scaling.__dict__, "factor": 1.0}
    same = type(scaling)(**settings)
    # The dynamic one slows by how much longer the text is, whatever its factor.
    for length in (None, 64 if name == "dynamic" else 500):
        torch.testing.assert_close(
            rope_frequencies(16, scaling=same, length=length), rope_frequencies(16), **FREQUENCIES
        )


def test_the_attention_factor_multiplies_cosine_and_sine():
    scaling = YarnScaling(4.0, 64)
    assert scaling.cos_sin_factor == pytest.approx(0.1 * math.log(4) + 1)
    x = randn(1, 1, 5, 16, generator=generator(0), dtype=F64)
    longer = rotate(x, Rotary(16, scaling=scaling)(torch.arange(5), dtype=F64)).norm(dim=-1)
    torch.testing.assert_close(longer, scaling.cos_sin_factor * x.norm(dim=-1))


def test_scalings_refuse_what_is_out_of_domain():
    with pytest.raises(ValueError, match=r"factor must lie in \[1.0, inf\), got 0.5"):
        LinearScaling(0.5)
    with pytest.raises(ValueError, match="head_dim of 4 or more, got 2"):
        rope_frequencies(2, scaling=NTKScaling(2.0))
    with pytest.raises(ValueError, match=r"0 < low < high, got 4.0 and 1.0"):
        Llama3Scaling(8.0, 4.0, 1.0, 64)
    with pytest.raises(ValueError, match=r"beta_slow < beta_fast, got 32.0 and 1.0"):
        YarnScaling(4.0, 64, beta_fast=1.0, beta_slow=32.0)
    with pytest.raises(ValueError, match="attention_factor must lie in"):
        YarnScaling(4.0, 64, attention_factor=0.0)
    with pytest.raises(ValueError, match="context must be 1 or more, got 0"):
        DynamicNTKScaling(4.0, 0)
    with pytest.raises(TypeError, match="abstract"):
        RopeScaling(2.0)  # type: ignore[abstract]


# --- the module ----------------------------------------------------------------------------------


def test_frequencies_survive_a_change_of_dtype_and_of_device():
    rotary = Rotary(16)
    expected = rotary(torch.arange(1000))
    for moved in (
        copy.deepcopy(rotary).to(torch.bfloat16),
        copy.deepcopy(rotary).half(),
        copy.deepcopy(rotary).to("meta").to_empty(device="cpu"),
    ):
        assert moved.frequencies.dtype == torch.float32
        for a, b in zip(moved(torch.arange(1000)), expected, strict=True):
            assert torch.equal(a, b)
    assert not rotary.state_dict()


def test_a_module_made_on_meta_works_on_real_positions():
    with torch.device("meta"):
        rotary = Rotary(16)
        assert rotary(torch.arange(5))[0].device.type == "meta"
    made = rotary(torch.arange(5))
    assert torch.equal(made[0], Rotary(16)(torch.arange(5))[0])
    assert rotary.frequencies.device.type == "cpu"


def test_functions_run_on_meta():
    with torch.device("meta"):
        for scaling in (None, *(ours for _, ours in SCALINGS.values())):
            rotation = Rotary(16, scaling=scaling)(torch.arange(5))
            assert rotate(torch.ones(2, 3, 5, 16), rotation).shape == (2, 3, 5, 16)
        assert interleave_pairs(torch.ones(3, 4)).shape == (3, 4)
    assert rotation_matrix(3, 4, device="meta").shape == (4, 4)


def test_the_module_follows_the_device(device):
    rotary = Rotary(16).to(device)
    t = torch.arange(5, device=device)
    x = torch.ones(1, 2, 5, 16, device=device)
    assert rotate(x, rotary(t)).device == t.device


def test_inputs_stay_as_they_are():
    x = randn(1, 2, 5, 16, generator=generator(0))
    positions = torch.arange(5)
    rotation = Rotary(16)(positions)
    kept = [t.clone() for t in (x, positions, *rotation)]
    for interleaved in (False, True):
        rotate(x, rotation, interleaved=interleaved)
    for now, then in zip((x, positions, *rotation), kept, strict=True):
        assert torch.equal(now, then)


@pytest.mark.usefixtures("own_checks")
def test_misfits_are_named():
    x = torch.ones(2, 3, 5, 16)
    rotary = Rotary(16)
    with pytest.raises(
        ValueError, match=r"x of shape \(2, 3, 5, 16\).*needs.*\(5, 16\).*got \(7, 16\)"
    ):
        rotate(x, rotary(torch.arange(7)))
    with pytest.raises(ValueError, match=r"heads on axis 2 needs .*\(3, 16\)"):
        rotate(x, rotary(torch.arange(5)), head_axis=2)
    with pytest.raises(ValueError, match=r"or \(2, 5, 16\), got \(3, 5, 16\)"):
        rotate(x, rotary(torch.arange(5).expand(3, 5)))
    with pytest.raises(ValueError, match=r"got \(5, 14\)"):
        rotate(x, Rotary(14)(torch.arange(5)))
    with pytest.raises(ValueError, match=r"heads on axis 1 or 2, or three .* head_axis 3"):
        rotate(x, rotary(torch.arange(5)), head_axis=3)
    with pytest.raises(ValueError, match="head_dim must be even and 2 or more, got 15"):
        Rotary(15)
    with pytest.raises(ValueError, match="head_dim must be even"):
        interleave_pairs(torch.ones(3))
    with pytest.raises(ValueError, match=r"base must lie in \(1.0, inf\], got 0.5"):
        Rotary(16, base=0.5)
    with pytest.raises(ValueError, match=r"positions must lie in \[0, 7\), got 7"):
        Rotary(16, context=7)(torch.arange(8))
    with pytest.raises(ValueError, match="context must be 1 or more, got 0"):
        Rotary(16, context=0)


def test_the_representation_shows_what_was_chosen():
    shown = repr(Rotary(16, scaling=LinearScaling(2.0), interleaved=True))
    assert "head_dim=16" in shown
    assert "LinearScaling(factor=2.0)" in shown
    assert "interleaved=True" in shown


@pytest.mark.parametrize("interleaved", [False, True])
def test_axes_that_are_left_out_or_counted_from_the_end_change_nothing(interleaved: bool) -> None:
    g = generator(0)
    n, heads, d = 5, 3, 14
    angles = Rotary(d, interleaved=interleaved)(torch.arange(n), dtype=F64)
    by_head = randn(2, heads, n, d, generator=g, dtype=F64)
    want = rotate(by_head, angles, interleaved=interleaved)

    def turn(x: torch.Tensor, head_axis: int | None) -> torch.Tensor:
        return rotate(x, angles, interleaved=interleaved, head_axis=head_axis)

    assert torch.equal(turn(by_head, -3), want)
    by_place, want_by_place = by_head.transpose(1, 2), want.transpose(1, 2)
    for axis in (2, -2):
        assert torch.equal(turn(by_place, axis), want_by_place)
    for axis in (0, -3):  # (heads, n, d)
        assert torch.equal(turn(by_head[1], axis), want[1])
    for axis in (1, -2):  # (n, heads, d), the default
        assert torch.equal(turn(by_place[1], axis), want_by_place[1])
    assert torch.equal(rotate(by_place[1], angles, interleaved=interleaved), want_by_place[1])
    # One head without an axis, and positions of each row.
    assert torch.equal(turn(by_head[:, 2], None), want[:, 2])
    rows = Rotary(d)(torch.arange(2 * n).view(2, n), dtype=F64)
    assert torch.equal(rotate(by_head[:, 2], rows, head_axis=None), rotate(by_head, rows)[:, 2])
    for x, axis in ((by_head[0], 2), (by_head, 0), (by_head, None)):
        with pytest.raises(ValueError, match=r"x must have (four axes .* or three|three or four)"):
            rotate(x, angles, head_axis=axis)
    with pytest.raises(ValueError, match=r"needs cos and sin of shape \(3, 14\)"):
        rotate(by_head[0], angles)  # heads first, and not said so


def test_an_attention_factor_below_one_is_taken_as_it_is() -> None:
    assert YarnScaling(factor=4.0, context=31, attention_factor=0.5).cos_sin_factor == 0.5
