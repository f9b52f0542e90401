"""Random features and linear memories: unbiased, equal in three forms, and never of the future."""

import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.efficiency.sparse_attention import (
    delta_rule,
    elu_features,
    favor_attention,
    favor_features,
    gaussian_frequencies,
    linear_attention,
    linformer_attention,
    local_attention,
    lsh_attention,
)
from companion.transformer.attention import attention, causal, dense_attention
from companion.verify import count_flops

# Sums of some tens of products of order 1 in float64.
EXACT = {"rtol": 1e-10, "atol": 1e-11}


def normal(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def gates(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=g, dtype=torch.float64)


def memory(n: int = 29) -> tuple[Tensor, Tensor, Tensor]:
    q, k = (elu_features(normal(2, 3, n, 5, seed=s)) for s in (1, 2))
    return q, k, normal(2, 3, n, 7, seed=3)


# --- features -------------------------------------------------------------------------------------


@pytest.mark.parametrize("orthogonal", [False, True])
def test_features_estimate_the_exponential_without_bias(orthogonal: bool) -> None:
    q, k = 0.4 * normal(1, 5, seed=1), 0.4 * normal(1, 5, seed=2)
    g = torch.Generator().manual_seed(0)
    draws = [
        gaussian_frequencies(5, 5, orthogonal=orthogonal, generator=g, dtype=torch.float64)
        for _ in range(4000)
    ]
    found = torch.stack([favor_features(q, w) @ favor_features(k, w).mT for w in draws]).flatten()
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean()) - math.exp(float(q @ k.mT))) < 5 * error


def test_orthogonal_frequencies_are_orthogonal_and_as_long_as_normal_ones() -> None:
    g = torch.Generator().manual_seed(0)
    w = gaussian_frequencies(26, 13, generator=g, dtype=torch.float64)
    for block in w.split(13):
        gram = block @ block.T
        torch.testing.assert_close(gram, gram.diag().diag(), **EXACT)
    many = gaussian_frequencies(13_000, 13, generator=g, dtype=torch.float64).square().sum(1)
    # The square of the length has mean 13 and variance 26.
    assert abs(float(many.mean()) - 13) < 5 * math.sqrt(26 / 13_000)


def test_orthogonal_frequencies_spread_less() -> None:
    q = torch.full((1, 3), 0.4, dtype=torch.float64)
    k = torch.tensor([[0.3, 0.2, 0.4]], dtype=torch.float64)
    # Of three independent frequencies, in closed form. Short vectors: with long ones a few draws
    # carry most of the variance, and an estimate of it says little.
    independent = math.exp(float((q + k).square().sum())) - 1
    independent *= math.exp(2 * float(q @ k.mT)) / 3
    g = torch.Generator().manual_seed(0)
    n = 300_000  # blocks of three
    w = gaussian_frequencies(3 * n, 3, generator=g, dtype=torch.float64)
    estimates = (favor_features(q, w) * favor_features(k, w) * n).view(n, 3).sum(1)
    # It is 0.90 of the other, and four seeds differ by less than 0.005.
    assert float(estimates.var()) < 0.95 * independent


def test_the_shift_of_the_keys_is_common_to_them() -> None:
    # q = 1, keys 0 and 3, frequencies 1 and -1: the weights are .8357 and .1643. A shift of each
    # key by its own largest exponent would give .5316 and .4684.
    q, k = torch.ones(1, 1, 1, 1).double(), torch.tensor([0.0, 3.0]).double().view(1, 1, 2, 1)
    omega = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    V = torch.eye(2, dtype=torch.float64)[None, None]
    found = favor_attention(q, k, V, omega=omega, scale=1.0).flatten()
    raw = favor_features(q, omega) @ favor_features(k, omega).mT
    torch.testing.assert_close(found, (raw / raw.sum()).flatten(), **EXACT)
    torch.testing.assert_close(found, torch.tensor([0.8357, 0.1643]).double(), atol=5e-5, rtol=0)


def test_favor_tends_to_attention_and_is_a_mean_of_the_values() -> None:
    Q, K, V = (0.4 * normal(1, 2, 11, 4, seed=s) for s in range(3))
    g = torch.Generator().manual_seed(0)
    errors = []
    for m in (200, 20_000):
        omega = gaussian_frequencies(m, 4, generator=g, dtype=torch.float64)
        wholes = (favor_attention(Q, K, V, omega=omega), dense_attention(Q, K, V)[0])
        pasts = (
            favor_attention(Q, K, V, omega=omega, causal=True),
            dense_attention(Q, K, V, mask=causal())[0],
        )
        errors.append(sum(float((a - b).square().mean()) for a, b in (wholes, pasts)) ** 0.5)
        one = favor_attention(Q, K, torch.ones_like(V), omega=omega, causal=True)
        torch.testing.assert_close(one, torch.ones_like(V), **EXACT)
    # A hundred times as many features: a tenth of the error, by a factor of 3 at worst.
    assert errors[1] < 0.3 * errors[0]


def test_large_inputs_do_not_overflow() -> None:
    Q, K, V = (40 * normal(1, 2, 11, 4, seed=s).float() for s in range(3))
    omega = gaussian_frequencies(16, 4, generator=torch.Generator().manual_seed(0))
    assert favor_attention(Q, K, V, omega=omega).isfinite().all()


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("filler", [0.0, 30.0])
def test_padding_changes_no_features(is_causal: bool, filler: float) -> None:
    # Long keys have small features. Beside the one of a key of zeros they would all underflow in
    # float32, if padding took part in the shift.
    Q, K, V = (9 * normal(2, 3, 11, 13, seed=s).float() for s in range(3))
    omega = gaussian_frequencies(11, 13, generator=torch.Generator().manual_seed(0))
    expected = favor_attention(*(t[:, :, :7] for t in (Q, K, V)), omega=omega, causal=is_causal)
    assert (expected.abs().amax(-1) > 0.1).all()
    K[:, :, 7:] = filler
    real = torch.arange(11).expand(2, -1) < 7
    found = favor_attention(Q, K, V, omega=omega, causal=is_causal, real=real)[:, :, :7]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_features_of_padding_alone_give_zero_and_finite_gradients() -> None:
    inputs = [normal(2, 3, 7, 5, seed=s).requires_grad_() for s in range(3)]
    omega = normal(11, 5)
    real = torch.tensor([[True] * 7, [False] * 7])
    out = favor_attention(*inputs, omega=omega, real=real)
    assert (out[1] == 0).all()
    assert all(bool(d.isfinite().all()) for d in torch.autograd.grad(out.sum(), inputs))


@pytest.mark.usefixtures("own_checks")
def test_what_is_wrong_with_features_is_said() -> None:
    Q, K, V = (normal(2, 3, 7, 5, seed=s) for s in range(3))
    with pytest.raises(ValueError, match="queries of width 5 do not meet frequencies of width 4"):
        favor_attention(Q, K, V, omega=normal(11, 4))
    with pytest.raises(ValueError, match=r"a scale of 0 or more, got -0\.5"):
        favor_attention(Q, K, V, omega=normal(11, 5), scale=-0.5)
    with pytest.raises(ValueError, match=r"real must have shape \(2, 7\), got \(2, 6\)"):
        favor_attention(Q, K, V, omega=normal(11, 5), real=torch.ones(2, 6, dtype=torch.bool))


def test_features_are_those_of_the_package() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports what Python has given up
        from performer_pytorch.performer_pytorch import softmax_kernel

    x = normal(1, 2, 7, 5)
    omega = gaussian_frequencies(11, 5, generator=torch.Generator().manual_seed(0)).double()
    theirs = softmax_kernel(x, projection_matrix=omega, is_query=False, eps=0.0)
    exponent = (5**-0.25 * x) @ omega.T
    # It divides by the largest exponent, of the product alone.
    ours = favor_features(5**-0.25 * x, omega, shift=exponent.amax((-1, -2), keepdim=True))
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_the_features_of_elu_are_not_zero_in_bfloat16() -> None:
    x = torch.tensor([-8.0], dtype=torch.bfloat16)
    # One unit in the last place of 8 bits.
    assert float(elu_features(x)) == pytest.approx(math.exp(-8), rel=2**-8)
    assert float(F.elu(x) + 1) == 0
    x = torch.tensor([-1.5, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    y = elu_features(x)
    torch.testing.assert_close(y, F.elu(x) + 1, **EXACT)
    (slope,) = torch.autograd.grad(y.sum(), x)
    expected = torch.tensor([math.exp(-1.5), 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(slope, expected, **EXACT)


# --- linear attention -----------------------------------------------------------------------------


@given(st.integers(1, 23), st.integers(1, 9), st.sampled_from(["none", "token", "head"]))
@settings(max_examples=40, deadline=None)
def test_three_forms_of_linear_attention_are_equal(n: int, chunk: int, decay: str) -> None:
    q, k, v = memory(n)
    decays = {"none": None, "token": -gates(2, 3, n), "head": -gates(3, 1)}
    for normalize in (True, False):
        one, two, three = (
            linear_attention(
                q, k, v, log_decay=decays[decay], form=form, chunk=chunk, normalize=normalize
            )
            for form in ("quadratic", "recurrent", "chunked")
        )
        torch.testing.assert_close(two, one, **EXACT)
        torch.testing.assert_close(three, one, **EXACT)


def test_linear_attention_is_weights_of_inner_products() -> None:
    q, k, v = memory()
    g = -gates(2, 3, 29)
    G = g.cumsum(-1)
    A = ((q @ k.mT) * (G[..., :, None] - G[..., None, :]).exp()).tril()
    expected = A / A.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(linear_attention(q, k, v, log_decay=g), expected, **EXACT)
    A = q @ k.mT
    expected = A / A.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(linear_attention(q, k, v, causal=False), expected, **EXACT)


def test_a_strong_decay_leaves_the_own_token_and_no_nan() -> None:
    q, k, v = (t.requires_grad_() for t in memory())
    g = torch.full((2, 3, 29), -2000.0, dtype=torch.float64)
    found = linear_attention(q, k, v, log_decay=g, chunk=8)
    torch.testing.assert_close(found, v, **EXACT)
    assert all(bool(d.isfinite().all()) for d in torch.autograd.grad(found.sum(), (q, k, v)))


@pytest.mark.parametrize("form", ["quadratic", "recurrent", "chunked"])
def test_a_decay_to_zero_forgets_all_that_came_before(form: Any) -> None:
    q, k, v = memory()
    k, beta = F.normalize(k, dim=-1), gates(2, 3, 29)
    g = -gates(2, 3, 29, seed=4)
    g[:, :, 11] = -torch.inf
    later = g[:, :, 11:].clone()
    later[:, :, 0] = 0.0
    late = [t[:, :, 11:] for t in (q, k, v)]
    found = linear_attention(q, k, v, log_decay=g, form=form, chunk=8)[:, :, 11:]
    torch.testing.assert_close(found, linear_attention(*late, log_decay=later), **EXACT)
    found = delta_rule(q, k, v, beta=beta, log_decay=g, form=form, chunk=8)[:, :, 11:]
    expected = delta_rule(*late, beta=beta[:, :, 11:], log_decay=later)
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_memories_keep_their_precision_under_autocast(dtype: torch.dtype) -> None:
    q, k, v = (50 * t.float() for t in memory())
    beta, g = gates(2, 3, 29).float(), -gates(2, 3, 29, seed=4).float()
    omega = normal(11, 5).float()

    def answers() -> list[Tensor]:
        unit = F.normalize(k, dim=-1)
        return [
            linear_attention(q, k, v, log_decay=g, chunk=8),
            linear_attention(q, k, v, form="recurrent"),
            linear_attention(q, k, v, causal=False),
            delta_rule(q, unit, v, beta=beta, log_decay=g, chunk=8),
            delta_rule(q, unit, v, beta=beta, form="recurrent"),
            favor_attention(q / 50, k / 50, v, omega=omega),
        ]

    expected = answers()
    with torch.autocast("cpu", dtype=dtype):
        found = answers()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_nothing_read_is_zero_and_ones_stay_ones() -> None:
    q, k, v = memory()
    k = k.clone()
    k[:, :, :4] = 0  # padding on the left
    found = linear_attention(q, k, torch.ones_like(v))
    assert (found[:, :, :4] == 0).all()
    torch.testing.assert_close(found[:, :, 4:], torch.ones_like(v)[:, :, 4:], **EXACT)


def test_sums_of_half_precision_are_held_wide() -> None:
    n = 3000
    one = torch.ones(1, 1, n, 1, dtype=torch.float16)
    # The plain sum of products would pass the largest half number, 65,504.
    v = torch.full_like(one, 50.0)
    for form in ("chunked", "recurrent"):
        found = linear_attention(one, one, v, form=form)
        assert found.dtype == torch.float16
        assert (found == 50).all()


def test_the_operations_of_chunks() -> None:
    n, c, m, d = 56, 7, 5, 3
    q, v = torch.empty(1, 2, n, m, device="meta"), torch.empty(1, 2, n, d, device="meta")
    counted = count_flops(lambda: linear_attention(q, q, v, normalize=False, chunk=c))
    assert counted == 2 * 2 * n * (c * m + c * d + 2 * m * d)


OMEGA = torch.empty(13, 16, device="meta")
TURNS = torch.empty(2, 16, 8, device="meta")
MIXTURES = torch.empty(13, 16_384, device="meta")
GROWTH: dict[str, tuple[Any, int]] = {
    "full": (lambda q, k, v: attention(q, k, v), 2),  # the control
    "window": (lambda q, k, v: local_attention(q, k, v, before=127), 1),
    "linformer": (
        lambda q, k, v: linformer_attention(
            q, k, v, E=MIXTURES[:, : q.shape[2]], F=MIXTURES[:, : q.shape[2]]
        ),
        1,
    ),
    "hashing": (lambda q, k, v: lsh_attention(q, v, rotations=TURNS, chunk=64, causal=True), 1),
    "features": (lambda q, k, v: favor_attention(q, k, v, omega=OMEGA, causal=True), 1),
    "memory": (lambda q, k, v: linear_attention(q, k, v), 1),
    "delta": (lambda q, k, v: delta_rule(q, k, v, beta=q[..., 0]), 1),
}


@pytest.mark.parametrize("kind", GROWTH)
def test_operations_forward_and_backward_grow_as_they_should(kind: str) -> None:
    run, exponent = GROWTH[kind]

    def counted(n: int) -> int:
        q, k, v = (torch.empty(1, 2, n, 16, device="meta", requires_grad=True) for _ in range(3))
        return count_flops(lambda: run(q, k, v).sum().backward())

    # To a thousandth, since the first chunk of a memory has no state whose gradient is to be taken.
    assert math.log2(counted(16_384) / counted(8192)) == pytest.approx(exponent, abs=1e-3)


@pytest.mark.usefixtures("own_checks")
def test_what_is_wrong_with_linear_attention_is_said() -> None:
    q, k, v = memory()
    with pytest.raises(ValueError, match="a decay counts from the past"):
        linear_attention(q, k, v, causal=False, log_decay=-gates(2, 3, 29))
    with pytest.raises(ValueError, match="form must be chunked, recurrent or quadratic"):
        linear_attention(q, k, v, form="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"log_decay of shape \(2, 29\) does not broadcast"):
        linear_attention(q, k, v, log_decay=-gates(2, 29))
    with pytest.raises(ValueError, match="each key a value"):
        linear_attention(q, k, v[:, :, :28])


# --- the delta rule -------------------------------------------------------------------------------


@given(st.integers(1, 23), st.integers(1, 9), st.booleans())
@settings(max_examples=30, deadline=None)
def test_three_forms_of_the_delta_rule_are_equal(n: int, chunk: int, decay: bool) -> None:
    q, k, v = memory(n)
    k = F.normalize(k, dim=-1)
    g = -gates(2, 3, n, seed=4) if decay else None
    one, two, three = (
        delta_rule(q, k, v, beta=gates(2, 3, n), log_decay=g, form=form, chunk=chunk)
        for form in ("quadratic", "recurrent", "chunked")
    )
    torch.testing.assert_close(two, one, **EXACT)
    torch.testing.assert_close(three, one, **EXACT)


def test_decay_comes_before_the_error() -> None:
    # S = 2, k = 1, v = 3, alpha = beta = 1/2: S' = 2. The error of the old state would give 1.5.
    one = torch.ones(1, 1, 2, 1, dtype=torch.float64)
    v = torch.tensor([2.0, 3.0], dtype=torch.float64).view(1, 1, 2, 1)
    beta = torch.tensor([[[1.0, 0.5]]], dtype=torch.float64)
    g = torch.full((1, 1, 2), 0.5, dtype=torch.float64).log()
    for form in ("quadratic", "recurrent", "chunked"):
        assert float(delta_rule(one, one, v, beta=beta, log_decay=g, form=form)[0, 0, 1]) == 2.0


def test_a_gate_of_one_is_no_gate() -> None:
    q, k, v = memory()
    k, beta = F.normalize(k, dim=-1), gates(2, 3, 29)
    free = delta_rule(q, k, v, beta=beta)
    gated = delta_rule(q, k, v, beta=beta, log_decay=torch.zeros_like(beta))
    torch.testing.assert_close(gated, free, **EXACT)


def test_a_full_correction_answers_what_was_written_last() -> None:
    keys = torch.eye(3, dtype=torch.float64)[[0, 1, 0, 2, 1]][None, None]
    v = normal(1, 1, 5, 7)
    answers = delta_rule(keys, keys, v, beta=torch.ones(1, 1, 5, dtype=torch.float64))
    torch.testing.assert_close(answers, v, **EXACT)
    # A sum would answer with both values of a key that was written twice.
    summed = linear_attention(keys, keys, v, normalize=False)
    torch.testing.assert_close(summed[:, :, 2], v[:, :, 0] + v[:, :, 2], **EXACT)


def test_the_gated_delta_rule_is_that_of_qwen() -> None:
    from transformers.models.qwen3_next.modeling_qwen3_next import (
        torch_chunk_gated_delta_rule,
        torch_recurrent_gated_delta_rule,
    )

    q, k, v = memory(70)
    k = F.normalize(k, dim=-1)
    beta, g = gates(2, 3, 70), -gates(2, 3, 70, seed=4)
    ours = delta_rule(q * 5**-0.5, k, v, beta=beta, log_decay=g, chunk=32)
    # It takes (batch, tokens, heads, ...), scales queries, and computes in float32.
    inputs = [t.transpose(1, 2).float() for t in (q, k, v, g, beta)]
    for theirs in (torch_chunk_gated_delta_rule, torch_recurrent_gated_delta_rule):
        out = theirs(*inputs, initial_state=None, output_final_state=False)[0]
        torch.testing.assert_close(out.transpose(1, 2).double(), ours, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("own_checks")
def test_what_is_wrong_with_the_delta_rule_is_said() -> None:
    q, k, v = memory()
    with pytest.raises(ValueError, match="a beta for each key"):
        delta_rule(q, k, v, beta=gates(2, 3, 28))


@pytest.mark.usefixtures("own_checks")
def test_memories_refuse_what_does_not_belong_together() -> None:
    q, k, v = memory(11)
    with pytest.raises(ValueError, match="V must be floating"):  # not cut to whole numbers
        linear_attention(q, k, v.long())
    with pytest.raises(ValueError, match="V must be floating"):
        delta_rule(q, q, v.long(), beta=gates(2, 3, 11))
    for is_causal in (False, True):
        with pytest.raises(ValueError, match=r"the same batch.* heads.*: repeat the keys"):
            linear_attention(torch.cat([q, q], 1), k, v, causal=is_causal)
    with pytest.raises(ValueError, match="the same batch, heads and tokens"):
        linear_attention(q[:, :, :5], k, v, causal=True)
    assert linear_attention(q[:, :, :5], k, v, causal=False).shape == (2, 3, 5, 7)
