"""Pooled keys, windows of heads, and hierarchies: against definitions, leaks, padding, errors."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.core import watch
from companion.efficiency.multiscale import (
    HierarchicalAttention,
    PooledAttention,
    block_means,
    distance_mass,
    head_windows,
    headwise_window_mask,
    hierarchical_attention,
    hierarchy_levels,
    multiscale_attention,
    native_sparse_attention,
    nystrom_attention,
    pooled_attention,
    windows_from_mass,
)
from companion.models import generate
from companion.transformer.attention import attention, causal, padding, sliding_window
from companion.transformer.block import Decoder, TransformerConfig, initialize_
from companion.transformer.multi_head import MultiHeadAttention

# Sums of some tens of products of order 1 in float64.
EXACT = {"rtol": 1e-11, "atol": 1e-12}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def qkv(n: int, m: int, *, heads: int = 3, kv_heads: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return (
        numbers(2, heads, n, 5, seed=1),
        numbers(2, kv_heads, m, 5, seed=2),
        numbers(2, kv_heads, m, 7, seed=3),
    )


def leak(read: object, n: int) -> Tensor:
    """Largest gradient of output i by the input at j, (n, n)."""
    x = numbers(1, n, 5, seed=4).requires_grad_()
    y = read(x)  # type: ignore[operator]
    weights = numbers(*y.shape[2:], seed=5)
    rows = [
        torch.autograd.grad((y[0, i] * weights).sum(), x, retain_graph=True)[0][0].abs().amax(-1)
        for i in range(n)
    ]
    return torch.stack(rows)


# --- pooled ---------------------------------------------------------------------------------------


def test_block_means_are_means_and_the_last_block_holds_the_rest() -> None:
    x = numbers(2, 3, 11, 5)
    means, counts = block_means(x, size=4)
    by_hand = torch.stack([part.mean(2) for part in x.split(4, 2)], 2)
    torch.testing.assert_close(means, by_hand, **EXACT)
    assert counts.tolist() == [[4.0, 4.0, 3.0]]


def test_padding_enters_no_mean() -> None:
    x = numbers(2, 3, 7, 5)
    real = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1]]).bool()
    means, counts = block_means(x, size=3, real=real)
    assert counts.tolist() == [[3.0, 2.0, 0.0], [0.0, 3.0, 1.0]]
    torch.testing.assert_close(means[0, :, 1], x[0, :, 3:5].mean(1), **EXACT)
    assert torch.equal(means[1, :, 0], torch.zeros(3, 5, dtype=torch.float64))
    torch.testing.assert_close(means[1, :, 2], x[1, :, 6], **EXACT)


def test_the_adjoint_of_pooling_gives_each_token_its_share_of_the_gradient() -> None:
    x = numbers(1, 1, 11, 5).requires_grad_()
    means, counts = block_means(x, size=4)
    sent = numbers(*means.shape, seed=9)
    (got,) = torch.autograd.grad(means, x, sent)
    want = (sent / counts[0][:, None]).repeat_interleave(4, 2)[:, :, :11]
    torch.testing.assert_close(got, want, **EXACT)


@pytest.mark.parametrize("is_causal", [False, True])
def test_blocks_of_one_token_are_attention(is_causal: bool) -> None:
    Q, K, V = qkv(11, 11, heads=6, kv_heads=3)
    dense = attention(Q, K, V, mask=causal() if is_causal else None)
    pooled = pooled_attention(Q, K, V, size=1, causal=is_causal)
    torch.testing.assert_close(pooled, dense, **EXACT)


def test_pooling_is_exact_where_the_keys_of_a_block_are_equal() -> None:
    Q, K, V = qkv(5, 11)
    K = K[:, :, ::4].repeat_interleave(4, 2)[:, :, :11]
    exact = attention(Q, K, V)
    torch.testing.assert_close(pooled_attention(Q, K, V, size=4), exact, **EXACT)
    # Negative control: without the count the short block weighs as much as the full ones.
    wrong = pooled_attention(Q, K, V, size=4, correct=False)
    assert (wrong - exact).abs().max() > 0.01


def test_the_count_of_a_merged_key_is_worth_its_logarithm() -> None:
    """Logits (0, 0 | 1): the merged key has mass 2/(2 + e), and 1/(1 + e) without the count."""
    Q = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    K = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).view(1, 1, 3, 1)
    V = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64).view(1, 1, 3, 1)
    right = pooled_attention(Q, K, V, size=2).item()
    assert math.isclose(right, 2 / (2 + math.e), rel_tol=1e-12)
    wrong = pooled_attention(Q, K, V, size=2, correct=False).item()
    assert math.isclose(wrong, 1 / (1 + math.e), rel_tol=1e-12)


@given(st.integers(1, 17), st.integers(1, 7), st.integers(1, 17))
@settings(max_examples=25, deadline=None)
def test_pooled_attention_is_the_definition(m: int, size: int, n: int) -> None:
    Q, K, V = qkv(n, m)
    got = pooled_attention(Q, K, V, size=size)
    blocks = [range(b, min(b + size, m)) for b in range(0, m, size)]
    keys = torch.stack([K[:, :, list(b)].mean(2) for b in blocks], 2)
    values = torch.stack([V[:, :, list(b)].mean(2) for b in blocks], 2)
    counts = torch.tensor([len(b) for b in blocks], dtype=torch.float64)
    weights = counts * torch.exp(Q @ keys.mT / 5**0.5)
    want = (weights / weights.sum(-1, keepdim=True)) @ values
    torch.testing.assert_close(got, want, **EXACT)


def test_a_block_is_read_only_when_it_is_complete() -> None:
    """Block 4: query 5 may read the summary of tokens 0 to 3 alone, query 7 that of 4 to 7 too."""
    Q, K, V = qkv(11, 11)
    y = pooled_attention(Q, K, V, size=4, causal=True)
    assert torch.equal(y[:, :, :3], torch.zeros_like(y[:, :, :3]))
    first = V[:, :, :4].mean(2)
    for i in (3, 4, 5, 6):
        torch.testing.assert_close(y[:, :, i], first, **EXACT)
    assert not torch.allclose(y[:, :, 7], first)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_pooled_attention_leaks_nothing_from_the_future(size: int) -> None:
    n = 13
    seen = leak(
        lambda x: pooled_attention(*[x[:, None]] * 3, size=size, causal=True).transpose(1, 2), n
    )
    assert torch.equal(seen.triu(1), torch.zeros(n, n, dtype=torch.float64))
    # Negative control: without causality, the future is read.
    open_ = leak(lambda x: pooled_attention(*[x[:, None]] * 3, size=size).transpose(1, 2), n)
    assert bool((open_.triu(1) > 0).any())
    # Complete blocks of the past are read: token 0 by the last one.
    assert seen[-1, 0] > 0


def test_later_queries_of_a_cache_see_what_they_would_in_the_whole_text() -> None:
    Q, K, V = qkv(13, 13)
    gates = numbers(2, 3, 13, 2, seed=6).softmax(-1)
    whole = multiscale_attention(Q, K, V, gates, sizes=[1, 4], causal=True)
    part = multiscale_attention(Q[:, :, 9:], K, V, gates[:, :, 9:], sizes=[1, 4], causal=True)
    torch.testing.assert_close(part, whole[:, :, 9:], **EXACT)


@pytest.mark.parametrize("is_causal", [False, True])
def test_padding_on_the_right_changes_no_scale(is_causal: bool) -> None:
    Q, K, V = qkv(7, 7)
    gates = numbers(2, 3, 7, 3, seed=6).softmax(-1)
    how = {"sizes": [1, 2, 5], "causal": is_causal}
    alone = multiscale_attention(Q, K, V, gates, **how)
    padded = [torch.cat([t, 9 * numbers(2, t.shape[1], 4, t.shape[3], seed=8)], 2) for t in (K, V)]
    real = torch.arange(11).expand(2, 11) < 7
    longer = torch.cat([Q, numbers(2, 3, 4, 5)], 2)
    wide = torch.cat([gates, gates[:, :, :4]], 2)
    got = multiscale_attention(longer, *padded, wide, real=real, **how)
    torch.testing.assert_close(got[:, :, :7], alone, **EXACT)


def test_equal_values_give_that_value_at_every_query() -> None:
    """Early causal queries have no complete block: the gates of the others take over."""
    Q, K, V = qkv(11, 11)
    gates = numbers(2, 3, 11, 2, seed=6).softmax(-1)
    for is_causal in (False, True):
        y = multiscale_attention(Q, K, torch.ones_like(V), gates, sizes=[1, 4], causal=is_causal)
        torch.testing.assert_close(y, torch.ones_like(y), **EXACT)


def test_a_gate_of_one_at_scale_one_is_attention() -> None:
    Q, K, V = qkv(11, 11)
    gates = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 1, 1, 2)
    y = multiscale_attention(Q, K, V, gates, sizes=[1, 4], causal=True)
    torch.testing.assert_close(y, attention(Q, K, V, mask=causal()), **EXACT)


def test_where_nothing_can_be_read_outputs_and_gradients_are_zero() -> None:
    Q, K, V = (t.requires_grad_() for t in qkv(7, 7))
    real = torch.tensor([[True] * 7, [False] * 7])
    gates = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    for y in (
        multiscale_attention(Q, K, V, gates, sizes=[1, 2], real=real),
        hierarchical_attention(Q, K, V, leaf=2, real=real),
    ):
        assert torch.equal(y[1], torch.zeros_like(y[1]))
        for grad in torch.autograd.grad(y.sum(), (Q, K, V), retain_graph=True):
            assert bool(grad.isfinite().all())
            assert torch.equal(grad[1], torch.zeros_like(grad[1]))


def test_errors_of_pooling_say_what_to_do() -> None:
    Q, K, V = qkv(7, 5)
    with pytest.raises(ValueError, match="got 7 queries and 5 keys"):
        pooled_attention(Q, K, V, size=2, causal=True)
    with pytest.raises(ValueError, match="size must be 1 or more, got 0"):
        pooled_attention(Q, K, V, size=0)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, heads, tokens, width\)"):
        block_means(Q[0], size=2)
    with pytest.raises(ValueError, match=r"one gate a scale, got 2 for sizes \[1, 2, 4\]"):
        multiscale_attention(Q, K, V, torch.ones(1, 1, 1, 2), sizes=[1, 2, 4])
    with pytest.raises(ValueError, match="at least one scale, got none"):
        PooledAttention(12, 3, sizes=[], causal=True)
    with pytest.raises(ValueError, match=r"Q must have shape .* got \(3, 7, 5\)"):
        pooled_attention(Q[0], K, V, size=2)


FORMS: list[Any] = [
    partial(pooled_attention, size=3),
    partial(multiscale_attention, gates=torch.full((1, 1, 1, 2), 0.5), sizes=[1, 3]),
    partial(hierarchical_attention, leaf=2),
    partial(nystrom_attention, landmarks=3),
    partial(
        native_sparse_attention, gates=torch.full((1, 1, 1, 3), 0.3), block=3, count=2, window=2
    ),
]


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize("form", FORMS)
def test_inputs_that_do_not_belong_together_are_refused_by_all(form: Any) -> None:
    Q, K, V = qkv(5, 5)
    with pytest.raises(ValueError, match="a value for each key"):
        form(Q, K, torch.cat([V, V[:, :, :1]], 2))  # 5 and 6 tokens are two blocks of 3 each
    with pytest.raises(ValueError, match="queries and keys must have the same width"):
        form(Q, K[..., :4], V)
    with pytest.raises(ValueError, match=r"the 2 heads of K and V must divide the 3 heads"):
        form(Q, *(torch.cat([t, t], 1)[:, :2] for t in (K, V)))
    with pytest.raises(ValueError, match="must be floating"):  # not rounded to whole numbers
        form(Q.long(), K.long(), V.long())
    with pytest.raises(ValueError, match="must have the same dtype"):
        form(Q, K.float(), V)


def test_gates_that_do_not_fit_are_refused_and_no_token_is_no_work() -> None:
    Q, K, V = qkv(5, 5)
    for shape in ((2, 3, 4, 2), (2, 2, 1, 2), (1, 1, 1, 1, 2)):
        with pytest.raises(ValueError, match=r"gates must broadcast to .* = \(2, 3, 5\)"):
            multiscale_attention(Q, K, V, torch.ones(shape), sizes=[1, 2])
    nothing = [t[:, :, :0] for t in (Q, K, V)]
    assert pooled_attention(*nothing, size=2).shape == (2, 3, 0, 7)
    gates = torch.ones(1, 1, 1, 3)
    found = native_sparse_attention(*nothing, gates, block=3, count=2, window=2)
    assert found.shape == (2, 3, 0, 7)


# --- windows --------------------------------------------------------------------------------------


def test_windows_of_heads_grow_and_are_masks() -> None:
    windows = head_windows(3, smallest=2, base=3)
    assert windows == [2, 6, 18]
    dense = headwise_window_mask(windows).dense(23, 23, heads=3)[0]
    i = torch.arange(23)
    for allowed, window in zip(dense, windows, strict=True):
        assert torch.equal(allowed, (i[:, None] - i).abs() <= window)
    past = (headwise_window_mask(torch.tensor([0, 2])) & causal()).dense(5, 5, heads=2)[0]
    assert past.sum(-1).tolist() == [[1] * 5, [1, 2, 3, 3, 3]]


def test_a_head_with_a_window_reads_what_banded_attention_reads() -> None:
    Q, K, V = qkv(11, 11)
    y = attention(Q, K, V, mask=headwise_window_mask([0, 3, 99]))
    torch.testing.assert_close(y[:, 0], V[:, 0], **EXACT)
    torch.testing.assert_close(y[:, 2], attention(Q, K, V)[:, 2], **EXACT)


def test_mass_by_distance_adds_up_and_finds_where_it_is() -> None:
    A = numbers(2, 3, 11, 11).softmax(-1)
    edges = [0, 1, 2, 5]
    mass = distance_mass(A, edges=edges)
    torch.testing.assert_close(mass.sum(-1), torch.ones(2, 3, dtype=torch.float64), **EXACT)
    i = torch.arange(11)
    far = (i[:, None] - i).abs()
    ranges = [far == 0, far == 1, (far >= 2) & (far < 5), far >= 5]
    want = torch.stack([(A * part).sum((-1, -2)) / 11 for part in ranges], -1)
    torch.testing.assert_close(mass, want, **EXACT)


def test_the_window_of_a_mass_is_the_smallest_one() -> None:
    A = numbers(4, 13, 13).softmax(-1)
    windows = windows_from_mass(A, ratio=0.7)
    i = torch.arange(13)
    far = (i[:, None] - i).abs()
    for head, window in zip(A, windows.tolist(), strict=True):
        assert (head * (far <= window)).sum() / 13 >= 0.7 > (head * (far < window)).sum() / 13
    assert windows_from_mass(A, ratio=1.0).tolist() == [12] * 4
    assert windows_from_mass(torch.eye(5), ratio=0.99).item() == 0


def test_the_window_of_a_mass_does_not_depend_on_the_precision() -> None:
    # Weights that bfloat16 holds exactly; their means, 4/7 and 3/7, it would round to less than 1.
    A = 0.5 * torch.eye(7) + 0.5 * torch.ones(6).diag(-1)
    A[0, 0] = 1.0
    assert windows_from_mass(A, ratio=1.0).item() == 1
    assert windows_from_mass(A.bfloat16(), ratio=1.0).item() == 1


def test_errors_of_windows_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="window must be 0 or more, got -1"):
        headwise_window_mask([3, -1])
    with pytest.raises(ValueError, match="a window for each head"):
        headwise_window_mask([])
    with pytest.raises(ValueError, match="window must be 0 or more, got -1"):
        headwise_window_mask(torch.tensor([3, -1]))
    for none in (torch.zeros(0, dtype=torch.long), torch.tensor([True, False])):
        with pytest.raises(ValueError, match="a window for each head"):
            headwise_window_mask(none)
    with pytest.raises(ValueError, match="must be integers of shape"):
        headwise_window_mask(torch.ones(2))
    with pytest.raises(ValueError, match=r"edges must rise from 0, got \[0, 2, 2\]"):
        distance_mass(torch.eye(3), edges=[0, 2, 2])
    with pytest.raises(ValueError, match=r"A must be square, got \(3, 2\)"):
        distance_mass(torch.ones(3, 2), edges=[0])
    with pytest.raises(ValueError, match="ratio must"):
        windows_from_mass(torch.eye(3), ratio=0.0)
    with pytest.raises(ValueError, match="base must be 1 or more"):
        head_windows(3, base=0)


# --- hierarchies ----------------------------------------------------------------------------------


def by_definition(
    Q: Tensor, K: Tensor, V: Tensor, leaf: int, *, is_causal: bool, real: Tensor | None = None
) -> Tensor:
    """Dense attention in which the key of each pair is replaced by the mean of its level."""
    n = K.shape[2]
    real = torch.ones(K.shape[0], n).bool() if real is None else real
    levels = hierarchy_levels(n, leaf=leaf)
    S = torch.full((*Q.shape[:2], n, n), -torch.inf, dtype=torch.float64)
    for level in range(int(levels.max()) + 1):
        means, _ = block_means(K, size=2**level, real=real)
        spread = means.repeat_interleave(2**level, 2)[:, :, :n]
        S = torch.where(levels == level, Q @ spread.mT / Q.shape[-1] ** 0.5, S)
    allowed = real[:, None, None].expand(-1, -1, n, -1)
    if is_causal:
        allowed = allowed.tril()
    return S.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num(0.0) @ V


def test_levels_are_those_of_the_definition() -> None:
    levels = hierarchy_levels(29, leaf=3)
    for i in range(29):
        for j in range(29):
            level = 0
            while abs(i // (3 * 2**level) - j // (3 * 2**level)) > 1:
                level += 1
            assert levels[i, j] == level


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("n", "leaf"), [(3, 2), (7, 2), (29, 2), (37, 4), (64, 4), (53, 6)])
def test_hierarchical_attention_is_the_definition(n: int, leaf: int, is_causal: bool) -> None:
    Q, K, V = qkv(n, n)
    got = hierarchical_attention(Q, K, V, leaf=leaf, causal=is_causal)
    want = by_definition(Q, K, V, leaf, is_causal=is_causal)
    torch.testing.assert_close(got, want, **EXACT)


@pytest.mark.parametrize("is_causal", [False, True])
def test_hierarchical_attention_skips_padding(is_causal: bool) -> None:
    Q, K, V = qkv(29, 29)
    real = torch.rand(2, 29, generator=torch.Generator().manual_seed(1)) < 0.6
    got = hierarchical_attention(Q, K, V, leaf=2, causal=is_causal, real=real)
    want = by_definition(Q, K, V, 2, is_causal=is_causal, real=real)
    torch.testing.assert_close(got, want, **EXACT)


def test_a_leaf_as_large_as_the_text_is_attention() -> None:
    Q, K, V = qkv(11, 11, heads=6, kv_heads=3)
    for leaf in (6, 12):
        y = hierarchical_attention(Q, K, V, leaf=leaf)
        torch.testing.assert_close(y, attention(Q, K, V), **EXACT)


def test_far_means_are_exact_where_far_keys_are_equal() -> None:
    Q, K, V = qkv(64, 64)
    K = K[:, :, ::16].repeat_interleave(16, 2)
    y = hierarchical_attention(Q, K, V, leaf=2)
    torch.testing.assert_close(y, attention(Q, K, V), **EXACT)
    # Negative control: other keys, another result.
    K = numbers(2, 3, 64, 5, seed=2)
    wrong = hierarchical_attention(Q, K, V, leaf=2) - attention(Q, K, V)
    assert wrong.abs().max() > 0.01


def test_hierarchies_leak_nothing_from_the_future_and_reach_the_whole_past() -> None:
    n = 43
    seen = leak(
        lambda x: hierarchical_attention(*[x[:, None]] * 3, leaf=2, causal=True).transpose(1, 2), n
    )
    assert torch.equal(seen.triu(1), torch.zeros(n, n, dtype=torch.float64))
    assert bool((seen.tril() > 0).sum() == n * (n + 1) // 2)


def test_hierarchical_queries_of_a_cache_are_those_of_the_whole_text() -> None:
    Q, K, V = qkv(29, 29)
    whole = hierarchical_attention(Q, K, V, leaf=4, causal=True)
    for start in (28, 17, 1):
        part = hierarchical_attention(Q[:, :, start:], K, V, leaf=4, causal=True)
        torch.testing.assert_close(part, whole[:, :, start:], **EXACT)


def test_errors_of_hierarchies_say_what_to_do() -> None:
    Q, K, V = qkv(5, 7)
    with pytest.raises(ValueError, match=r"leaf must be even, since levels .* got 3"):
        hierarchical_attention(Q, K, V, leaf=3, causal=True)
    with pytest.raises(ValueError, match="as many queries as keys, got 5 and 7"):
        hierarchical_attention(Q, K, V, leaf=2)
    with pytest.raises(ValueError, match="leaf must be even"):
        HierarchicalAttention(12, 3, leaf=5, causal=True)
    with pytest.raises(ValueError, match="leaf must be 1 or more"):
        hierarchy_levels(7, leaf=0)


def test_half_precision_stays_near_and_keeps_its_dtype() -> None:
    Q, K, V = (t.to(torch.bfloat16) for t in qkv(37, 37))
    for read in (
        lambda *t: hierarchical_attention(*t, leaf=4, causal=True),
        lambda *t: pooled_attention(*t, size=4),
    ):
        y = read(Q, K, V)
        assert y.dtype == torch.bfloat16
        exact = read(*(t.double() for t in (Q, K, V)))
        # Values of bfloat16 have a relative spacing of 2^-8; means of keys round once more, and
        # scores of order 3 turn that into a change of the weights of some of it.
        torch.testing.assert_close(y.double(), exact, rtol=0.02, atol=0.03)


# --- layers ---------------------------------------------------------------------------------------

CONFIG = TransformerConfig(
    vocab=23, dim=12, layers=2, heads=6, kv_heads=3, ff_dim=31, context=64, attention_bias=False
)


def pooled(config: TransformerConfig, layer: int) -> PooledAttention:
    return PooledAttention(
        config.dim, config.heads, kv_heads=config.kv_heads, sizes=[1, 3], causal=True
    )


def hierarchical(config: TransformerConfig, layer: int) -> HierarchicalAttention:
    return HierarchicalAttention(
        config.dim, config.heads, kv_heads=config.kv_heads, leaf=2, causal=True
    )


def some_model(part: object) -> Decoder:
    model = Decoder(CONFIG, attention=part).double().eval()  # type: ignore[arg-type]
    return initialize_(model, generator=torch.Generator().manual_seed(1), std=0.4, branch_gain=1.0)


@pytest.mark.parametrize("part", [pooled, hierarchical])
@torch.no_grad()
def test_layers_decode_with_a_cache_as_without(part: object) -> None:
    model = some_model(part)
    ids = torch.randint(23, (2, 17), generator=torch.Generator().manual_seed(2))
    whole = model(ids)
    cache = model.cache(2, 17)
    parts = [model(piece, cache=cache) for piece in ids.split([6, 1, 1, 9], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-10)
    written = generate(model, ids, tokens=5)
    longer = torch.cat([ids, written], 1)
    assert torch.equal(model(longer)[:, 16:-1].argmax(-1), written)


@pytest.mark.parametrize("part", [pooled, hierarchical])
@torch.no_grad()
def test_layers_see_neither_padding_nor_the_future(part: object) -> None:
    model = some_model(part)
    ids = torch.randint(23, (2, 17), generator=torch.Generator().manual_seed(2))
    whole = model(ids)
    other = ids.clone()
    other[:, 11:] = (other[:, 11:] + 1) % 23
    assert torch.equal(model(other)[:, :11], whole[:, :11])
    real = torch.arange(17).expand(2, 17) < 11
    torch.testing.assert_close(
        model(ids, real=real)[:, :11], model(ids[:, :11]), rtol=1e-9, atol=1e-10
    )


@torch.no_grad()
def test_a_layer_takes_the_weights_of_a_plain_one_and_agrees_where_nothing_is_far() -> None:
    x = numbers(2, 4, 12)
    plain = MultiHeadAttention(12, 3, dtype=torch.float64)
    layer = HierarchicalAttention(12, 3, leaf=4, causal=True, dtype=torch.float64)
    layer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(layer(x, mask=causal()), plain(x, mask=causal()), **EXACT)
    mixed = PooledAttention(12, 3, sizes=[1, 2], causal=False, dtype=torch.float64)
    mixed.load_state_dict(plain.state_dict(), strict=False)
    with watch(mixed, read=["gates"], replace={"gates": one_scale}):
        torch.testing.assert_close(mixed(x), plain(x), **EXACT)
    with watch(mixed, read=["gates"]) as seen:
        mixed(x)
    assert torch.equal(seen["gates"], torch.full((2, 3, 4, 2), 0.5, dtype=torch.float64))


def one_scale(gates: Tensor) -> Tensor:
    return torch.tensor([1.0, 0.0], dtype=gates.dtype).expand_as(gates)


def test_the_gradient_of_a_gate_is_what_its_scale_adds_to_the_mean() -> None:
    """dL/dz_s = g_s <dL/dO, O_s - O> for logits z."""
    Q, K, V = qkv(7, 7)
    z = numbers(3, seed=7).requires_grad_()
    sizes = [1, 2, 4]
    y = multiscale_attention(Q, K, V, z.softmax(0), sizes=sizes)
    sent = numbers(*y.shape, seed=8)
    (got,) = torch.autograd.grad(y, z, sent)
    parts = [pooled_attention(Q, K, V, size=size) for size in sizes]
    inner = torch.stack([(sent * (part - y)).sum() for part in parts])
    torch.testing.assert_close(got, (z.softmax(0) * inner).detach(), **EXACT)


def test_a_mask_that_says_more_than_a_block_can_honor_is_refused() -> None:
    layer = HierarchicalAttention(12, 3, leaf=2, causal=True)
    x = torch.ones(2, 7, 12)
    with pytest.raises(ValueError, match=r"honors causal\(\) and padding\(real\) only"):
        layer(x, mask=sliding_window(3))
    with pytest.raises(ValueError, match=r"needs the mask causal\(\), got none"):
        layer(x)
    with pytest.raises(ValueError, match="differs from head to head"):
        layer(x, mask=headwise_window_mask([1, 2, 3]) & causal())
    with pytest.raises(ValueError, match="HierarchicalAttention cannot take a bias"):
        layer(x, mask=causal(), bias=torch.zeros(1, 1, 7, 7))
    with pytest.raises(ValueError, match="cannot take a context"):
        layer(x, x, mask=causal())
    with pytest.raises(ValueError, match="cannot be taken out"):
        layer.keep_heads([0])
    with pytest.raises(ValueError, match="has no dropout of weights"):
        HierarchicalAttention(12, 3, leaf=2, causal=True, dropout=0.1)
    both = PooledAttention(12, 3, sizes=[1, 2], causal=False)
    with pytest.raises(ValueError, match=r"honors padding\(real\) only"):
        both(x, mask=causal())
    real = torch.ones(2, 7).bool()
    real[1, 5:] = False
    assert both(x, mask=padding(real)).shape == x.shape


def test_all_of_it_runs_on_meta() -> None:
    Q, K, V = (t.to("meta") for t in qkv(29, 29))
    real = torch.ones(2, 29, dtype=torch.bool, device="meta")
    assert hierarchical_attention(Q, K, V, leaf=2, causal=True, real=real).shape == V.shape
    gates = torch.ones(1, 1, 1, 2, device="meta")
    y = multiscale_attention(Q, K, V, gates, sizes=[1, 4], causal=True, real=real)
    assert y.is_meta
    assert y.shape == V.shape
    assert distance_mass(Q @ K.mT, edges=[0, 2]).shape == (2, 3, 2)
    x = torch.ones(2, 7, 12, device="meta")
    for layer in (
        HierarchicalAttention(12, 3, leaf=2, causal=True, device="meta"),
        PooledAttention(12, 3, sizes=[1, 2], causal=True, device="meta"),
    ):
        assert layer(x, mask=causal()).is_meta
