"""Windows, layouts, low rank and hashing, each against its dense definition."""

import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.efficiency.sparse_attention import (
    amplified,
    band_mask,
    bigbird_layout,
    block_sparse,
    fixed_layout,
    jl_failure_bound,
    layout_mask,
    linformer_attention,
    local_attention,
    longformer_layout,
    lsh_attention,
    lsh_hash,
    lsh_rotations,
    simhash_collision,
    strided_layout,
    window_layout,
)
from companion.transformer.attention import (
    Mask,
    causal,
    dense_attention,
    documents,
    padding,
    sliding_window,
    streaming_mask,
)
from companion.verify import count_flops, peak_bytes

# Sums of some tens of products of order 1 in float64.
EXACT = {"rtol": 1e-11, "atol": 1e-12}
B, H, KV, N, D, DV = 2, 6, 3, 37, 5, 7


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)


def grouped() -> tuple[Tensor, Tensor, Tensor]:
    return normal(B, H, N, D, seed=1), normal(B, KV, N, D, seed=2), normal(B, KV, N, DV, seed=3)


def real_tokens(n: int = N) -> Tensor:
    """Padding on the left of one text and on the right of the other."""
    real = torch.ones(2, n, dtype=torch.bool)
    real[0, :7] = False
    real[1, -11:] = False
    return real


WINDOWS: list[dict[str, int]] = [
    {"before": 0},
    {"before": 4},
    {"before": 3, "after": 5},
    {"before": 4, "sinks": 3},
    {"before": 2, "after": 1, "sinks": 5},
    {"before": 2, "after": 1, "dilation": 3},
    {"before": 100, "after": 100},
]
MASKS: dict[str, Mask | None] = {
    "none": None,
    "causal": causal(),
    "padding": padding(real_tokens()),
    "both": causal() & padding(real_tokens()),
    "documents": documents((torch.arange(N) // 11).expand(2, -1)),
    "heads": Mask(lambda b, h, i, j: (i - j).abs() <= h),
}
LAYOUTS = {
    "window": window_layout(8, 1),
    "longformer": longformer_layout(8, 1, 2),
    "bigbird": bigbird_layout(8, 1, 1, 2, generator=torch.Generator().manual_seed(0)),
    "strided": strided_layout(8, 3),
    "fixed": fixed_layout(8, 3),
    "nothing": torch.zeros(8, 8, dtype=torch.bool),
    "everything": torch.ones(8, 8, dtype=torch.bool),
}


# --- windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_window_is_attention_under_its_mask(window: dict[str, int], mask: str) -> None:
    Q, K, V = grouped()
    rule = band_mask(**window)
    rule = rule if MASKS[mask] is None else rule & MASKS[mask]  # type: ignore[operator]
    expected = dense_attention(Q, K, V, mask=rule)[0]
    for block in (None, 2, 8):
        found = local_attention(Q, K, V, mask=MASKS[mask], block=block, **window)
        torch.testing.assert_close(found, expected, **EXACT)


@given(
    st.integers(1, 30), st.integers(0, 12), st.integers(0, 5), st.integers(1, 9), st.integers(1, 4)
)
@settings(max_examples=40, deadline=None)
def test_a_window_is_its_mask_at_every_length(
    n: int, before: int, after: int, block: int, dilation: int
) -> None:
    Q, K, V = (normal(n, 3, seed=s) for s in range(3))
    rule = band_mask(before=before, after=after, dilation=dilation)
    expected = dense_attention(Q, K, V, mask=rule)[0]
    found = local_attention(Q, K, V, before=before, after=after, dilation=dilation, block=block)
    torch.testing.assert_close(found, expected, **EXACT)


def test_both_ends_of_a_window_are_included() -> None:
    # A window of 3 with the query's own key at position 5 holds 3, 4, 5; not 2.
    assert band_mask(before=2).dense(7, 7)[0, 0, 5].nonzero().flatten().tolist() == [3, 4, 5]
    assert int(band_mask(before=4, after=4).dense(11, 11)[0, 0, 5].sum()) == 2 * 4 + 1
    same = sliding_window(3).dense(7, 7), streaming_mask(sinks=2, window=3).dense(7, 7)
    assert torch.equal(band_mask(before=2).dense(7, 7), same[0])
    assert torch.equal(band_mask(before=2, sinks=2).dense(7, 7), same[1])


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_the_bands_of_a_mask_say_what_its_rule_says(window: dict[str, int]) -> None:
    mask = band_mask(**window)
    blocks = mask.block_mask(37, 37, device="cpu", block=4).to_dense()[0, 0]
    dense = F.pad(mask.dense(37, 37)[0, 0], (0, 3, 0, 3)).view(10, 4, 10, 4).any(3).any(1)
    assert torch.equal(blocks.bool(), dense)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_the_gradients_of_a_window_are_those_of_its_mask(window: dict[str, int]) -> None:
    inputs = [t.requires_grad_() for t in grouped()]
    upstream = normal(B, H, N, DV, seed=9)
    rule = band_mask(**window) & MASKS["both"]  # type: ignore[operator]
    expected = torch.autograd.grad(dense_attention(*inputs, mask=rule)[0], inputs, upstream)
    found = torch.autograd.grad(
        local_attention(*inputs, mask=MASKS["both"], **window), inputs, upstream
    )
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


def test_a_query_whose_window_is_padding_reads_nothing() -> None:
    Q, K, V = (t.requires_grad_() for t in grouped())
    real = torch.ones(2, N, dtype=torch.bool)
    real[0, :20] = False
    for out in (
        local_attention(Q, K, V, before=3, mask=padding(real)),
        block_sparse(Q, K, V, window_layout(8, 0), block=5, mask=padding(real)),
    ):
        assert (out[0, :, :20] == 0).all()
        gradients = torch.autograd.grad(out.sum(), (Q, K, V))
        assert all(bool(g.isfinite().all()) for g in gradients)
        assert (gradients[0][0, :, :20] == 0).all()


def test_ones_stay_ones_and_inputs_stay_as_they_were() -> None:
    Q, K, V = grouped()
    before = [t.clone() for t in (Q, K, V)]
    ones = torch.ones_like(V)
    rotations = normal(3, D, 2)
    outputs = (
        local_attention(Q, K, ones, before=4, sinks=2),
        block_sparse(Q, K, ones, LAYOUTS["bigbird"], block=5),
        lsh_attention(Q, torch.ones(B, H, N, DV).double(), rotations=rotations, chunk=4),
    )
    for out in outputs:
        torch.testing.assert_close(out, torch.ones_like(out), **EXACT)
    local_attention(Q, K, V, before=4)
    assert all(torch.equal(a, b) for a, b in zip((Q, K, V), before, strict=True))


@pytest.mark.parametrize(
    ("n", "d", "size", "before", "after"), [(40, 3, 8, 5, 2), (77, 5, 7, 2, 0)]
)
def test_the_operations_of_a_window(n: int, d: int, size: int, before: int, after: int) -> None:
    Q = torch.empty(2, 3, n, d, device="meta")

    def run() -> Tensor:
        return local_attention(Q, Q, Q, before=before, after=after, block=size)

    assert run().shape == Q.shape
    assert count_flops(run) == 2 * 3 * 4 * n * d * (size + before + after)


def test_a_window_beyond_the_text_costs_no_more_than_one_that_reaches_its_ends() -> None:
    Q = torch.empty(1, 2, N, D, device="meta")
    reaching, beyond = (
        count_flops(lambda w=w: local_attention(Q, Q, Q, before=w, after=w, block=8))
        for w in (N - 1, 10**12)
    )
    assert beyond == reaching
    Q, K, V = grouped()
    expected = dense_attention(Q, K, V, mask=causal())[0]
    torch.testing.assert_close(local_attention(Q, K, V, before=10**12), expected, **EXACT)


def test_no_token_is_no_work() -> None:
    Q, K, V = (t[:, :, :0] for t in grouped())
    nothing = torch.ones(0, 0, dtype=torch.bool)
    assert local_attention(Q, K, V, before=3).shape == (B, H, 0, DV)
    assert block_sparse(Q, K, V, nothing, block=5).shape == (B, H, 0, DV)


def test_the_memory_of_a_window_grows_with_the_tokens() -> None:
    def peak(n: int) -> int:
        Q, K, V = (normal(1, 2, n, 16, seed=s, dtype=torch.float32) for s in range(3))
        return peak_bytes(lambda: local_attention(Q, K, V, before=31))

    # The definition holds at least one matrix of 2 n^2 scores.
    assert peak(4096) < 2.2 * peak(2048) < 4 * 2 * 4096**2 / 8


def test_bfloat16_is_near_float32() -> None:
    Q, K, V = (t.float() for t in grouped())
    exact = local_attention(Q, K, V, before=4, sinks=2)
    low = local_attention(*(t.bfloat16() for t in (Q, K, V)), before=4, sinks=2)
    assert low.dtype == torch.bfloat16
    # Inputs and outputs are rounded to 8 bits; scores of order 1 move weights by as much.
    assert (low.float() - exact).abs().max() < 0.06


def test_a_window_of_longformer_has_half_of_it_on_each_side() -> None:
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = LongformerConfig(
        hidden_size=12,
        num_attention_heads=3,
        attention_window=[8],
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(2)
    theirs = LongformerSelfAttention(config, 0).double().eval()
    x, no = normal(2, 24, 12), torch.zeros(2, 24, dtype=torch.bool)
    expected = theirs(
        x,
        attention_mask=no.double(),
        is_index_masked=no,
        is_index_global_attn=no,
        is_global_attn=False,
    )[0]
    Q, K, V = (
        part(x).unflatten(-1, (3, 4)).transpose(1, 2)
        for part in (theirs.query, theirs.key, theirs.value)
    )
    found = local_attention(Q, K, V, before=4, after=4).transpose(1, 2).flatten(2)
    # Their softmax is in float32.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    other = local_attention(Q, K, V, before=8, after=8).transpose(1, 2).flatten(2)
    assert (other - expected).abs().max() > 0.01


def test_local_attention_agrees_with_the_package() -> None:
    from local_attention import LocalAttention

    Q, K, V = (normal(1, 3, 48, 8, seed=s, dtype=torch.float32) for s in range(3))
    package = LocalAttention(
        8, causal=True, look_backward=1, exact_windowsize=True, use_rotary_pos_emb=False
    )
    # Its exact window keeps the keys with 0 <= i - j <= w.
    found = local_attention(Q, K, V, before=8)
    torch.testing.assert_close(package(Q, K, V), found, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("own_checks")
def test_what_is_wrong_with_a_window_is_said() -> None:
    Q, K, V = grouped()
    with pytest.raises(ValueError, match="37 queries and 30 keys"):
        local_attention(Q, K[:, :, :30], V[:, :, :30], before=3)
    with pytest.raises(ValueError, match="sinks=2 and dilation=3"):
        local_attention(Q, K, V, before=3, sinks=2, dilation=3)
    with pytest.raises(ValueError, match="before must be"):
        band_mask(before=-1)
    with pytest.raises(ValueError, match="batch size of 2, got 1"):
        local_attention(Q[:1], K[:1], V[:1], before=3, mask=MASKS["padding"])


# --- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_block_sparse_attention_is_attention_under_its_mask(layout: str, mask: str) -> None:
    Q, K, V = grouped()
    rule = layout_mask(LAYOUTS[layout], block=5)
    rule = rule if MASKS[mask] is None else rule & MASKS[mask]  # type: ignore[operator]
    expected = dense_attention(Q, K, V, mask=rule)[0]
    found = block_sparse(Q, K, V, LAYOUTS[layout], block=5, mask=MASKS[mask])
    torch.testing.assert_close(found, expected, **EXACT)


def test_the_operations_of_a_layout_are_those_of_its_blocks() -> None:
    for name, layout in LAYOUTS.items():
        Q = torch.empty(2, 3, 56, 5, device="meta")
        counted = count_flops(lambda Q=Q, layout=layout: block_sparse(Q, Q, Q, layout, block=7))
        assert counted == 2 * 3 * 4 * 5 * 7**2 * int(layout.sum()), name


def test_layouts_have_as_many_blocks_as_they_should() -> None:
    g = torch.Generator().manual_seed(3)
    n, w, many, r = 29, 2, 3, 4
    rows = bigbird_layout(n, w, many, r, generator=g).sum(1)
    inner = longformer_layout(n, w, many).sum(1) + r
    assert torch.equal(rows[many:], inner[many:])
    assert (rows[:many] == n).all()
    again = bigbird_layout(n, w, many, r, generator=torch.Generator().manual_seed(3))
    assert torch.equal(again.sum(1), rows)
    assert not bigbird_layout(3, 1, 1, 3, generator=g).logical_not().any()
    # With l = sqrt(n), two layers of the strided pattern reach every earlier block.
    strided = strided_layout(25, 5).long()
    assert torch.equal((strided @ strided) > 0, torch.ones(25, 25).tril() > 0)
    assert int(strided[-1].sum()) == 5 + 5 - 1
    fixed = fixed_layout(25, 5).long()
    assert torch.equal((fixed @ fixed) > 0, torch.ones(25, 25).tril() > 0)


@pytest.mark.usefixtures("own_checks")
def test_what_is_wrong_with_a_layout_is_said() -> None:
    Q, K, V = grouped()
    with pytest.raises(ValueError, match="8 blocks of 5, but the layout has 7"):
        block_sparse(Q, K, V, window_layout(7, 1), block=5)
    with pytest.raises(ValueError, match=r"square Bool matrix.*int64"):
        block_sparse(Q, K, V, window_layout(8, 1).long(), block=5)
    with pytest.raises(ValueError, match="as many keys as queries, got 30 and 37"):
        block_sparse(Q, K[:, :, :30], V[:, :, :30], window_layout(8, 1), block=5)


# --- low rank -------------------------------------------------------------------------------------


def test_linformer_with_the_identity_is_attention() -> None:
    Q, K, V = (normal(B, H, N, D, seed=s) for s in range(3))
    one = torch.eye(N, dtype=torch.float64)
    expected = dense_attention(Q, K, V)[0]
    torch.testing.assert_close(linformer_attention(Q, K, V, E=one, F=one), expected, **EXACT)


def test_linformer_is_the_package() -> None:
    from linformer import LinformerSelfAttention

    package = LinformerSelfAttention(12, 11, k=5, heads=3).double()
    x = normal(2, 11, 12)
    q, k, v = (
        part(x).view(2, 11, 3, 4).transpose(1, 2)
        for part in (package.to_q, package.to_k, package.to_v)
    )
    found = linformer_attention(q, k, v, E=package.proj_k.mT, F=package.proj_v.mT)
    found = package.to_out(found.transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, package(x), **EXACT)


def test_padding_does_not_change_linformer() -> None:
    Q, K, V = (normal(2, 3, 13, D, seed=s) for s in range(3))
    E, G = normal(3, 5, 13, seed=4), normal(3, 5, 13, seed=5)
    real = torch.arange(13).expand(2, -1) < 9
    padded = linformer_attention(Q, K, V, E=E, F=G, real=real)[:, :, :9]
    short = linformer_attention(*(t[:, :, :9] for t in (Q, K, V)), E=E[..., :9], F=G[..., :9])
    torch.testing.assert_close(padded, short, **EXACT)


def test_linformer_mixes_the_future_into_every_key() -> None:
    # n = 2, k = 1: the first output sees the second token, whatever is masked afterwards.
    Q, K, V = (normal(1, 1, 2, 1, seed=s) for s in range(3))
    one = torch.ones(1, 2, dtype=torch.float64)
    V.requires_grad_()
    first = linformer_attention(Q, K, V, E=one, F=one)[0, 0, 0, 0]
    (gradient,) = torch.autograd.grad(first, V)
    assert gradient[0, 0, 1, 0] == 1


@pytest.mark.usefixtures("own_checks")
def test_what_is_wrong_with_the_mixtures_is_said() -> None:
    Q, K, V = (normal(B, H, N, D, seed=s) for s in range(3))
    with pytest.raises(ValueError, match=r"E must have shape \(rank, 37\) or \(6, rank, 37\)"):
        linformer_attention(Q, K, V, E=normal(3, 36), F=normal(3, 37))
    with pytest.raises(ValueError, match="one rank, got 3 and 5"):
        linformer_attention(Q, K, V, E=normal(3, 37), F=normal(5, 37))
    with pytest.raises(ValueError, match=r"real must have shape \(2, 37\)"):
        linformer_attention(
            Q, K, V, E=normal(3, 37), F=normal(3, 37), real=torch.ones(2, 36, dtype=torch.bool)
        )


def test_a_random_projection_fails_less_often_than_the_bound() -> None:
    k, draws, epsilon = 50, 20_000, 0.5
    x = F.normalize(normal(7), dim=0)
    g = torch.Generator().manual_seed(1)
    lengths = (torch.randn(draws, k, 7, generator=g).double() @ x).square().sum(1) / k
    share = float(((lengths - 1).abs() > epsilon).double().mean())
    # The exact chance, by the chi-square distribution with k degrees of freedom.
    from scipy.stats import chi2

    exact = chi2.cdf(k * (1 - epsilon), k) + chi2.sf(k * (1 + epsilon), k)
    assert abs(share - exact) < 5 * math.sqrt(exact / draws)
    assert exact < jl_failure_bound(k, epsilon)
    with pytest.raises(ValueError, match=r"epsilon must lie in \(0, 1\), got 1"):
        jl_failure_bound(k, 1.0)


# --- hashing --------------------------------------------------------------------------------------


def pairs_of(
    x: Tensor, rotations: Tensor, chunk: int, *, is_causal: bool, real: Tensor | None
) -> Tensor:
    """Which token reads which, by the sentence of the docstring, one pair after the other."""
    batch, heads, n, _ = x.shape
    allowed = torch.zeros(batch, heads, n, n, dtype=torch.bool)
    hashed = lsh_hash(x, rotations)
    for b, h, r in product(range(batch), range(heads), range(rotations.shape[0])):
        tokens = [t for t in range(n) if real is None or bool(real[b, t])]
        bucket = hashed[b, h, r].tolist()
        place = {t: p for p, t in enumerate(sorted(tokens, key=lambda t: (bucket[t], t)))}
        for i, j in product(tokens, tokens):
            if is_causal:
                near = 0 <= place[i] - place[j] <= chunk
            else:
                near = place[i] // chunk - place[j] // chunk in (0, 1)
            if near and bucket[i] == bucket[j]:
                allowed[b, h, i, j] = True
    itself = torch.eye(n, dtype=torch.bool)
    return allowed & ~(itself & (allowed & ~itself).any(-1, keepdim=True))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("chunk", [4, 5, 23, 29])
def test_rounds_of_hashing_are_attention_to_the_union(
    is_causal: bool, padded: bool, chunk: int
) -> None:
    x, v = normal(2, 3, 23, 5, seed=1), normal(2, 3, 23, 7, seed=2)
    rotations = normal(3, 5, 2, seed=3)
    real = real_tokens(23) if padded else None
    allowed = pairs_of(x, rotations, chunk, is_causal=is_causal, real=real)
    expected = dense_attention(x, F.normalize(x, dim=-1), v, mask=allowed)[0]
    found = lsh_attention(x, v, rotations=rotations, chunk=chunk, causal=is_causal, real=real)
    torch.testing.assert_close(found, expected, **EXACT)


def test_a_key_that_is_met_twice_counts_once() -> None:
    # Token 2 meets token 0 in both rounds and token 1 in one; all scores are equal.
    x = torch.tensor([[1.0, 2.0], [1.0, -2.0], [1.0, 1.0]], dtype=torch.float64)[None, None]
    rotations = torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]], dtype=torch.float64)
    assert lsh_hash(x, rotations)[0, 0].tolist() == [[0, 0, 0], [0, 1, 0]]
    v = torch.eye(3, dtype=torch.float64)[None, None]
    found = lsh_attention(x, v, rotations=rotations, chunk=3, causal=True, scale=0.0)
    expected = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(found[0, 0, 2], expected, **EXACT)


def test_one_chunk_and_one_bucket_is_attention_to_the_others() -> None:
    x, v = normal(2, 3, 11, 5).abs(), normal(2, 3, 11, 7, seed=2)
    rotations = torch.ones(1, 5, 1, dtype=torch.float64)
    others = ~torch.eye(11, dtype=torch.bool)
    expected = dense_attention(x, F.normalize(x, dim=-1), v, mask=others)[0]
    found = lsh_attention(x, v, rotations=rotations, chunk=11)
    torch.testing.assert_close(found, expected, **EXACT)


def test_causal_hashing_does_not_know_the_future() -> None:
    x, v = normal(1, 2, 31, 5, seed=1), normal(1, 2, 31, 7, seed=2)
    rotations = normal(2, 5, 3, seed=3)
    options: dict[str, Any] = {"rotations": rotations, "chunk": 4, "causal": True}
    whole = lsh_attention(x, v, **options)
    for t in range(1, 31):
        changed = x.clone()
        changed[:, :, t:] = normal(1, 2, 31 - t, 5, seed=100 + t)
        found = lsh_attention(changed, v, **options)[:, :, :t]
        torch.testing.assert_close(found, whole[:, :, :t], **EXACT)


def test_hashing_keeps_its_precision_under_autocast() -> None:
    x, v = (normal(1, 2, 31, 5, seed=s, dtype=torch.float32) for s in (1, 2))
    rotations = normal(2, 5, 3, seed=3, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = lsh_attention(x, v, rotations=rotations, chunk=4)
    assert torch.equal(found, lsh_attention(x, v, rotations=rotations, chunk=4))


def test_two_vectors_share_a_side_as_often_as_their_angle_says() -> None:
    draws = 40_000
    x = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5]], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    hashed = lsh_hash(x, lsh_rotations(2, 2, draws, generator=g, dtype=torch.float64))
    share = float((hashed[:, 0] == hashed[:, 1]).double().mean())
    assert abs(share - 2 / 3) < 5 * math.sqrt(2 / 9 / draws)
    assert simhash_collision(0.5) == pytest.approx(2 / 3, abs=1e-15)
    assert simhash_collision(-1.0) == 0
    assert amplified(0.3, 8) == pytest.approx(0.94235199, abs=1e-12)


def test_hashes_of_the_package_are_ours() -> None:
    from reformer_pytorch.reformer_pytorch import LSHAttention as Package

    x = normal(1, 13, 6, dtype=torch.float32)
    package = Package(bucket_size=4, n_hashes=3, dropout=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = package.hash_vectors(8, x).view(3, 13)
        torch.manual_seed(5)
        drawn = torch.randn(1, 6, 3, 4).expand(1, -1, -1, -1)[0]
    # It draws (width, rounds, half), and numbers the buckets of all rounds through.
    ours = lsh_hash(x[0], drawn.permute(1, 0, 2))
    assert torch.equal(ours + 8 * torch.arange(3)[:, None], theirs)


@pytest.mark.usefixtures("own_checks")
def test_what_is_wrong_with_hashing_is_said() -> None:
    x = normal(1, 2, 11, 5)
    g = torch.Generator()
    with pytest.raises(ValueError, match=r"n_buckets must be even.*got 3"):
        lsh_rotations(5, 3, 1, generator=g)
    with pytest.raises(ValueError, match="width 5 does not meet rotations of width 4"):
        lsh_hash(x, normal(2, 4, 3))
    with pytest.raises(ValueError, match="a value for each token"):
        lsh_attention(x, normal(1, 2, 10, 5), rotations=normal(2, 5, 3), chunk=4)
    real = torch.ones(1, 10, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"real must have shape \(1, 11\)"):
        lsh_attention(x, x, rotations=normal(2, 5, 3), chunk=4, real=real)


@pytest.mark.usefixtures("own_checks")
def test_mixing_and_hashing_refuse_what_does_not_belong_together() -> None:
    Q, K, V = (normal(B, H, 7, width, seed=width) for width in (3, 3, 5))
    E = normal(2, 7)
    with pytest.raises(ValueError, match="a value for each key"):
        linformer_attention(Q, K, V[:, :, :6], E=E, F=E)
    with pytest.raises(ValueError, match="must have the same dtype"):
        linformer_attention(Q, K.float(), V, E=E, F=E)
    rotations = lsh_rotations(3, 4, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="V must be floating"):  # not cut to whole numbers
        lsh_attention(Q, V.long(), rotations=rotations.double(), chunk=2)
    with pytest.raises(ValueError, match="QK must be floating"):
        lsh_attention(Q.long(), V, rotations=rotations.double(), chunk=2)
