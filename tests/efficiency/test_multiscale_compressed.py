"""Landmarks, memories, latent vectors and selection: against definitions and other packages."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.core import watch
from companion.efficiency.multiscale import (
    CompressiveMemory,
    ConvCompressor,
    LatentArray,
    LatentCache,
    MemoryCompressedAttention,
    MultiHeadLatentAttention,
    NativeSparseAttention,
    compressive_range,
    latent_cache_numbers,
    native_sparse_attention,
    newton_pinverse,
    nystrom_attention,
    pinverse_residual,
    pooled_attention,
    reconstruction_loss,
    selected_blocks,
)
from companion.models import generate
from companion.transformer.attention import attention, causal, padding
from companion.transformer.block import (
    Decoder,
    NoPositions,
    Rope,
    TransformerConfig,
    initialize_,
)
from companion.transformer.multi_head import MultiHeadAttention
from companion.transformer.positions import Rotary, rotate

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


# --- the iteration --------------------------------------------------------------------------------


def test_the_iteration_inverts_and_finds_the_pseudo_inverse_of_a_singular_matrix() -> None:
    A = numbers(3, 5, 5).softmax(-1)
    torch.testing.assert_close(
        newton_pinverse(A, iterations=25), torch.linalg.pinv(A), rtol=1e-8, atol=1e-8
    )
    left, right = (torch.linalg.qr(numbers(7, 3, seed=seed))[0] for seed in (1, 2))
    A = left @ torch.diag(torch.tensor([1.0, 0.8, 0.6], dtype=torch.float64)) @ right.T
    want = torch.linalg.pinv(A, rtol=1e-9)
    torch.testing.assert_close(newton_pinverse(A, iterations=10), want, rtol=1e-8, atol=1e-9)
    # Beyond, what rounding puts outside of the range grows by 13/4 a step: 1e-16 * 3.25^40 > 1e4.
    assert (newton_pinverse(A, iterations=50) - want).abs().max() > 1


def test_the_error_of_a_step_is_three_quarters_of_its_cube_and_a_quarter_of_its_fourth() -> None:
    A = numbers(5, 5).softmax(-1)
    one = torch.eye(5, dtype=torch.float64)
    for steps in (0, 3, 7):
        E = one - A @ newton_pinverse(A, iterations=steps)
        after = one - A @ newton_pinverse(A, iterations=steps + 1)
        torch.testing.assert_close(after, 0.75 * E @ E @ E + 0.25 * E @ E @ E @ E, **EXACT)


def test_six_steps_are_not_enough_near_a_singular_matrix() -> None:
    A = torch.tensor([[0.51, 0.49], [0.49, 0.51]], dtype=torch.float64)
    one = torch.eye(2, dtype=torch.float64)
    missing = [(A @ newton_pinverse(A, iterations=steps) - one).abs().max() for steps in (6, 10)]
    assert abs(missing[0] - 0.313) < 0.001
    assert missing[1] < 1e-14
    assert pinverse_residual(A, newton_pinverse(A, iterations=10)) < 1e-14
    assert pinverse_residual(A, newton_pinverse(A)) > 0.001


def test_the_iteration_keeps_its_precision_under_autocast_and_in_half() -> None:
    A = numbers(2, 7, 7).softmax(-1).float()
    exact = newton_pinverse(A, iterations=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Z = newton_pinverse(A, iterations=8)
        residual = pinverse_residual(A, Z)
    assert torch.equal(Z, exact)
    assert torch.equal(residual, pinverse_residual(A, exact))
    low = A.bfloat16()
    found = pinverse_residual(low, low.mT)
    torch.testing.assert_close(found, pinverse_residual(low.float(), low.float().mT))


def test_each_matrix_has_a_start_of_its_own() -> None:
    """A matrix with a column of sum 8 beside it must not slow the other one down."""
    A = torch.tensor([[0.51, 0.49], [0.49, 0.51]], dtype=torch.float64)
    other = torch.tensor([[1.0, 7.0], [0.5, 1.0]], dtype=torch.float64)
    both = newton_pinverse(torch.stack([A, other]))
    torch.testing.assert_close(both[0], newton_pinverse(A), **EXACT)
    torch.testing.assert_close(both[1], newton_pinverse(other), **EXACT)


def test_the_iteration_is_that_of_nystromformer() -> None:
    from transformers import NystromformerConfig
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    config = NystromformerConfig(
        hidden_size=6, num_attention_heads=3, num_landmarks=5, segment_means_seq_len=20,
        conv_kernel_size=3,
    )  # fmt: skip
    theirs = NystromformerSelfAttention(config).eval()
    A = numbers(1, 1, 5, 5).softmax(-1)
    # One matrix, and rows that sum to 1: then their common start is ours.
    ours = newton_pinverse(A.float(), iterations=6)
    torch.testing.assert_close(ours, theirs.iterative_inv(A.float()), rtol=1e-4, atol=1e-4)


def test_errors_of_the_iteration_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"square matrices, got \(3, 2\)"):
        newton_pinverse(torch.ones(3, 2))
    with pytest.raises(ValueError, match="iterations must be 0 or more"):
        newton_pinverse(torch.eye(2), iterations=-1)
    with pytest.raises(ValueError, match="must have one shape"):
        pinverse_residual(torch.eye(2), torch.eye(3))
    assert torch.equal(newton_pinverse(torch.zeros(2, 2)), torch.zeros(2, 2))


# --- landmarks ------------------------------------------------------------------------------------


def by_definition(Q: Tensor, K: Tensor, V: Tensor, segments: int) -> Tensor:
    n, m = Q.shape[2], K.shape[2]
    own = [[i for i in range(n) if i * segments // n == s] for s in range(segments)]
    its = [[j for j in range(m) if j * segments // m == s] for s in range(segments)]
    q = torch.stack([Q[:, :, part].mean(2) for part in own], 2)
    k = torch.stack([K[:, :, part].mean(2) for part in its], 2)
    first, middle, last = (
        (a @ b.mT / Q.shape[-1] ** 0.5).softmax(-1) for a, b in ((Q, k), (q, k), (q, K))
    )
    return first @ torch.linalg.pinv(middle) @ last @ V


@pytest.mark.parametrize(("n", "m", "segments"), [(12, 12, 4), (13, 13, 5), (7, 11, 3)])
def test_nystrom_attention_is_the_definition(n: int, m: int, segments: int) -> None:
    Q, K, V = qkv(n, m)
    got = nystrom_attention(Q, K, V, landmarks=segments, iterations=None)
    # The matrices are inverted: their condition numbers, below 1e4 here, enter the error.
    torch.testing.assert_close(got, by_definition(Q, K, V, segments), rtol=1e-8, atol=1e-9)


def test_with_every_token_a_landmark_it_is_attention() -> None:
    Q, K, V = qkv(7, 7, heads=6, kv_heads=3)
    exact = attention(Q, K, V)
    got = nystrom_attention(Q, K, V, landmarks=7, iterations=None)
    torch.testing.assert_close(got, exact, rtol=1e-6, atol=1e-6)
    # Negative control: three landmarks are not.
    assert (nystrom_attention(Q, K, V, landmarks=3) - exact).abs().max() > 0.05


@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_padded_text_has_the_landmarks_that_it_has_alone(start: int) -> None:
    Q, K, V = qkv(12, 12)
    place = torch.arange(12)
    real = torch.stack([place >= 0, (place >= start) & (place < start + 9)])
    got = nystrom_attention(Q, K, V, landmarks=4, iterations=None, real=real)
    whole = nystrom_attention(Q, K, V, landmarks=4, iterations=None)
    torch.testing.assert_close(got[0], whole[0], rtol=1e-8, atol=1e-9)
    short = [t[1:, :, start : start + 9] for t in (Q, K, V)]
    alone = nystrom_attention(*short, landmarks=4, iterations=None)
    torch.testing.assert_close(got[1:, :, start : start + 9], alone, rtol=1e-8, atol=1e-9)
    # And the iteration converges to the same.
    near = nystrom_attention(Q, K, V, landmarks=4, iterations=30, real=real)
    torch.testing.assert_close(near, got, rtol=1e-6, atol=1e-6)


def test_a_text_shorter_than_its_landmarks_has_one_a_token() -> None:
    Q, K, V = qkv(7, 7)
    real = torch.arange(7).expand(2, 7) < torch.tensor([[7], [3]])
    got = nystrom_attention(Q, K, V, landmarks=5, iterations=None, real=real)
    few = attention(*(t[1:, :, :3] for t in (Q, K, V)))
    torch.testing.assert_close(got[1:, :, :3], few, rtol=1e-6, atol=1e-6)


def test_a_text_of_padding_gives_zero_and_finite_gradients() -> None:
    Q, K, V = (t.requires_grad_() for t in qkv(7, 7))
    real = torch.tensor([[True] * 7, [False] * 7])
    y = nystrom_attention(Q, K, V, landmarks=3, real=real)
    assert torch.equal(y[1], torch.zeros_like(y[1]))
    for gradient in torch.autograd.grad(y.sum(), (Q, K, V)):
        assert bool(gradient.isfinite().all())


def test_nystrom_attention_is_that_of_nystromformer() -> None:
    from transformers import NystromformerConfig
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    config = NystromformerConfig(
        hidden_size=15, num_attention_heads=3, num_landmarks=4, segment_means_seq_len=20,
        conv_kernel_size=3,
    )  # fmt: skip
    torch.manual_seed(4)
    theirs = NystromformerSelfAttention(config).eval()
    torch.nn.init.zeros_(theirs.conv.weight)
    g = torch.Generator().manual_seed(3)
    x = torch.randn(1, 20, 15, generator=g)
    with torch.no_grad():
        Q, K, V = (
            part(x).view(1, 20, 3, 5).transpose(1, 2)
            for part in (theirs.query, theirs.key, theirs.value)
        )
        # Their start divides by the largest column sum of all heads: so take one head at a time.
        for head in range(3):
            one = [t[:, head : head + 1] for t in (Q, K, V)]
            theirs.num_attention_heads = 1
            q, k, v = one
            mine = nystrom_attention(q, k, v, landmarks=4)
            k1, k2, k3 = _kernels(q, k)
            want = k1 @ theirs.iterative_inv(k2) @ (k3 @ v)
            torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-5)


def _kernels(q: Tensor, k: Tensor) -> list[Tensor]:
    landmarks = [t.unflatten(2, (4, 5)).mean(3) for t in (q, k)]
    pairs = ((q, landmarks[1]), (landmarks[0], landmarks[1]), (landmarks[0], k))
    return [(a @ b.mT / a.shape[-1] ** 0.5).softmax(-1) for a, b in pairs]


def test_nystrom_attention_is_that_of_another_package() -> None:
    from nystrom_attention import NystromAttention

    torch.manual_seed(5)
    theirs = NystromAttention(dim=10, dim_head=5, heads=1, num_landmarks=4, residual=False)
    theirs = theirs.double().eval()
    x = numbers(1, 12, 10, seed=6)
    with torch.no_grad():
        # float64 meets their float32 identity, which promotes.
        q, k, v = (t[:, None] for t in theirs.to_qkv(x).chunk(3, -1))
        want = theirs(x)
        got = theirs.to_out(nystrom_attention(q, k, v, landmarks=4)[:, 0])
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


def test_errors_of_landmarks_say_what_to_do() -> None:
    Q, K, V = qkv(7, 5)
    with pytest.raises(ValueError, match="landmarks must be from 1 to 5, got 6"):
        nystrom_attention(Q, K, V, landmarks=6)
    with pytest.raises(ValueError, match="the same tokens, got 7 and 5"):
        nystrom_attention(Q, K, V, landmarks=3, real=torch.ones(2, 5).bool())


# --- memories -------------------------------------------------------------------------------------


def test_a_convolution_starts_as_the_mean_and_is_one() -> None:
    squeeze = ConvCompressor(5, stride=3).double()
    x = numbers(2, 12, 5)
    # A third was rounded to float32 when the layer was made.
    torch.testing.assert_close(squeeze(x), x.unflatten(1, (4, 3)).mean(2), rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        squeeze.taps.copy_(numbers(3, 5, 5, seed=2))
    weight = squeeze.taps.permute(2, 1, 0)  # (out, in, taps)
    want = torch.nn.functional.conv1d(x.mT, weight, stride=3).mT
    torch.testing.assert_close(squeeze(x), want, **EXACT)


def test_compressed_keys_start_as_pooled_ones() -> None:
    layer = MemoryCompressedAttention(12, 3, stride=4, causal=True, dtype=torch.float64)
    x = numbers(2, 12, 12)
    with watch(layer, read=["queries", "keys", "values", "heads"]) as seen:
        layer(x, mask=causal())
    want = pooled_attention(seen["queries"], seen["keys"], seen["values"], size=4, causal=True)
    torch.testing.assert_close(seen["heads"], want, **EXACT)


def test_compressed_attention_leaks_nothing_and_decodes_with_a_cache() -> None:
    layer = MemoryCompressedAttention(12, 3, stride=3, causal=True, dtype=torch.float64)
    with torch.no_grad():
        for squeeze in (layer.squeeze_keys, layer.squeeze_values):
            squeeze.taps.copy_(numbers(3, 4, 4, seed=7))
    x = numbers(2, 11, 12)
    whole = layer(x, mask=causal())
    other = x.clone()
    other[:, 7:] += 1
    assert torch.equal(layer(other, mask=causal())[:, :7], whole[:, :7])
    cache = layer.make_cache(2, 11, dtype=torch.float64)
    parts = [layer(x[:, :8], mask=causal(), cache=cache)]
    parts += [layer(x[:, i : i + 1], cache=cache) for i in range(8, 11)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **EXACT)


def test_a_memory_keeps_the_last_tokens_and_the_means_of_older_ones() -> None:
    kept = CompressiveMemory(memory=4, compressed=3, stride=2)
    assert kept.read() is None
    x = numbers(2, 25, 5)
    for segment in x.split(5, 1):
        kept.update(segment)
    assert kept.recent is not None
    assert kept.old is not None
    # 25 tokens: 20 in pairs have left, the memory holds one more than 4 until its pair is full.
    torch.testing.assert_close(kept.recent, x[:, 20:], **EXACT)
    pairs = x[:, :20].unflatten(1, (10, 2)).mean(2)
    torch.testing.assert_close(kept.old, pairs[:, -3:], **EXACT)
    read = kept.read()
    assert read is not None
    torch.testing.assert_close(read, torch.cat([pairs[:, -3:], x[:, 20:]], 1), **EXACT)
    kept.reset()
    assert kept.read() is None


@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 4), st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_no_token_is_lost_between_the_memories(
    memory: int, compressed: int, rate: int, segment: int
) -> None:
    kept = CompressiveMemory(memory=memory, compressed=compressed, stride=rate)
    x = numbers(1, 30, 2)
    gone = [kept.update(part) for part in x.split(segment, 1)]
    assert kept.recent is not None
    torch.testing.assert_close(torch.cat([*gone, kept.recent], 1), x, **EXACT)
    assert min(memory, 30) <= kept.recent.shape[1] < memory + rate
    assert kept.old is None or kept.old.shape[1] <= compressed


def test_a_memory_keeps_what_it_was_given_also_if_that_changes() -> None:
    kept = CompressiveMemory(memory=4, compressed=3, stride=2)
    segment = numbers(1, 6, 2)
    left = kept.update(segment)
    held = kept.read()
    assert held is not None
    before, gone = held.clone(), left.clone()
    segment.zero_()
    again = kept.read()
    assert again is not None
    assert torch.equal(again, before)
    assert torch.equal(left, gone)


def test_no_gradient_flows_into_a_memory() -> None:
    kept = CompressiveMemory(memory=2, compressed=3, stride=2, squeeze=ConvCompressor(5, stride=2))
    kept.update(torch.ones(1, 6, 5, requires_grad=True))
    read = kept.read()
    assert read is not None
    assert not read.requires_grad


def test_the_range_of_a_stack() -> None:
    assert compressive_range(layers=2, memory=4, compressed=4, stride=3) == 32


def test_the_reconstruction_loss_trains_the_squeezing_and_nothing_else() -> None:
    layer = MultiHeadAttention(12, 3, dtype=torch.float64)
    squeeze = ConvCompressor(12, stride=2).double()
    h, old = numbers(2, 5, 12).requires_grad_(), numbers(2, 8, 12, seed=1).requires_grad_()
    loss = reconstruction_loss(layer, h, old, squeeze(old.detach()))
    loss.backward()
    assert squeeze.taps.grad is not None
    assert bool((squeeze.taps.grad != 0).any())
    assert h.grad is None
    assert old.grad is None
    assert all(parameter.grad is None for parameter in layer.parameters())
    # By the definition, and zero where nothing was squeezed.
    Q, K, V = layer._project(h, old, None, None)
    whole = attention(Q, K, V)
    Q, K, V = layer._project(h, squeeze(old), None, None)
    want = (whole - attention(Q, K, V)).square().mean()
    torch.testing.assert_close(loss, want, **EXACT)
    assert reconstruction_loss(layer, h, old, old).item() == 0
    optimizer = torch.optim.Adam(squeeze.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        now = reconstruction_loss(layer, h, old, squeeze(old.detach()))
        now.backward()
        optimizer.step()
    assert now < 0.7 * loss


def test_errors_of_memories_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="a multiple of 3, got 7"):
        ConvCompressor(5, stride=3)(torch.ones(1, 7, 5))
    layer = MemoryCompressedAttention(12, 3, stride=2, causal=False)
    real = torch.tensor([[True] * 5 + [False]])
    with pytest.raises(ValueError, match="mixes padding into the keys"):
        layer(torch.ones(1, 6, 12), mask=padding(real))
    with pytest.raises(ValueError, match="stride must be 1 or more"):
        CompressiveMemory(memory=2, compressed=2, stride=0)
    kept = CompressiveMemory(memory=1, compressed=2, stride=2, squeeze=lambda x: x)
    with pytest.raises(ValueError, match="what squeeze returns"):
        kept.update(torch.ones(1, 7, 2))
    with pytest.raises(ValueError, match="layers must be 1 or more"):
        compressive_range(layers=0, memory=1, compressed=1, stride=1)
    with pytest.raises(ValueError, match="squeezed"):
        reconstruction_loss(layer, torch.ones(1, 3, 12), torch.ones(1, 3, 12), torch.ones(1, 3, 5))


# --- latent vectors -------------------------------------------------------------------------------


def latent_layer(**how: Any) -> MultiHeadLatentAttention:
    """All widths differ: dim 14, 3 heads, rank 11, 5 without positions, 4 with, values of 7."""
    torch.manual_seed(3)
    sizes = {"rank": 11, "head_dim": 5, "rope_dim": 4, "value_dim": 7} | how
    layer = MultiHeadLatentAttention(14, 3, dtype=torch.float64, **sizes)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2.5)  # scores far from equal
    return layer


def turn(n: int, *, start: int = 0, width: int = 4) -> Any:
    angles = Rotary(width)(torch.arange(start, start + n), dtype=torch.float64)
    return lambda t: rotate(t, angles, head_axis=2)


def test_absorbed_and_naive_forms_agree() -> None:
    x = numbers(2, 13, 14)
    made = []
    for form in ("naive", "absorbed"):
        layer = latent_layer(form=form)
        y = layer(x, mask=causal(), rotation=turn(13))
        made.append((y, torch.autograd.grad(y.square().sum(), list(layer.parameters()))))
    torch.testing.assert_close(made[0][0], made[1][0], **EXACT)
    torch.testing.assert_close(made[0][1], made[1][1], rtol=1e-9, atol=1e-9)


def test_latent_attention_is_the_definition() -> None:
    layer = latent_layer(form="absorbed")
    x, angles = numbers(2, 13, 14), turn(13)
    both = layer.squeeze(x)
    c = torch.nn.functional.rms_norm(both[..., :11], (11,), layer.norm.weight, eps=1e-6)
    shared = angles(both[..., None, 11:])[:, :, 0]
    heads = []
    for h in range(3):
        rows = layer.expand.weight[h * 12 : (h + 1) * 12]
        k, v = c @ rows[:5].T, c @ rows[5:].T
        q = (x @ layer.query.weight[h * 9 : (h + 1) * 9].T)[:, :, None]
        q = torch.cat([q[..., :5], angles(q[..., 5:])], -1)[:, :, 0]
        S = q @ torch.cat([k, shared], -1).mT / math.sqrt(5 + 4)
        future = torch.ones(13, 13).triu(1).bool()
        heads.append(S.masked_fill(future, -torch.inf).softmax(-1) @ v)
    want = torch.cat(heads, -1) @ layer.out.weight.T
    torch.testing.assert_close(layer(x, mask=causal(), rotation=angles), want, **EXACT)


@pytest.mark.parametrize("query_rank", [None, 6])
@pytest.mark.parametrize("form", ["naive", "absorbed"])
def test_latent_attention_is_that_of_deepseek(form: str, query_rank: int | None) -> None:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
        DeepseekV3Attention,
        DeepseekV3RotaryEmbedding,
    )

    config = DeepseekV3Config(
        hidden_size=14, num_attention_heads=3, num_key_value_heads=3, q_lora_rank=query_rank,
        kv_lora_rank=11, qk_nope_head_dim=5, qk_rope_head_dim=4, v_head_dim=7,
        rope_interleave=False, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(2)
    theirs = DeepseekV3Attention(config, 0).double()
    ours = latent_layer(form=form, query_rank=query_rank)
    with torch.no_grad():
        for norm in (theirs.kv_a_layernorm, getattr(theirs, "q_a_layernorm", None)):
            if norm is not None:
                norm.weight.copy_(1 + 0.3 * numbers(norm.weight.numel(), seed=8))
        pairs = {
            "squeeze.weight": theirs.kv_a_proj_with_mqa.weight,
            "norm.weight": theirs.kv_a_layernorm.weight,
            "expand.weight": theirs.kv_b_proj.weight,
            "out.weight": theirs.o_proj.weight,
        }
        if query_rank is None:
            pairs["query.weight"] = theirs.q_proj.weight
        else:
            pairs["query.0.weight"] = theirs.q_a_proj.weight
            pairs["query.1.weight"] = theirs.q_a_layernorm.weight
            pairs["query.2.weight"] = theirs.q_b_proj.weight
        ours.load_state_dict(pairs)
        x = numbers(2, 13, 14)
        angles = DeepseekV3RotaryEmbedding(config)(x, torch.arange(13)[None])
        future = torch.full((13, 13), -torch.inf, dtype=torch.float64).triu(1)
        want, _ = theirs(x, angles, future[None, None])
        got = ours(x, mask=causal(), rotation=turn(13))
    # Their angles are made in float32: relative errors of 1e-7 at angles up to 13.
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def latent(config: TransformerConfig, layer: int) -> MultiHeadLatentAttention:
    rotary = isinstance(config.positions, Rope)
    rope_dim = config.head_width if rotary else 0
    return MultiHeadLatentAttention(config.dim, 3, rank=5, head_dim=4, rope_dim=rope_dim)


@pytest.mark.parametrize("positions", [Rope(), NoPositions()])
@torch.no_grad()
def test_models_of_latent_attention_decode_with_their_small_cache(positions: Any) -> None:
    config = TransformerConfig(
        vocab=23, dim=12, layers=2, heads=3, head_dim=6, ff_dim=31, context=32, positions=positions
    )
    model = Decoder(config, attention=latent).double().eval()
    initialize_(model, generator=torch.Generator().manual_seed(1), std=0.4, branch_gain=1.0)
    ids = torch.randint(23, (2, 11), generator=torch.Generator().manual_seed(2))
    whole = model(ids)
    cache = model.cache(2, 11)
    width = 5 + (6 if isinstance(positions, Rope) else 0)
    assert [layer.memory.shape for layer in cache.layers] == [(2, 11, width)] * 2
    parts = [model(part, cache=cache) for part in ids.split([4, 1, 1, 5], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-10)
    real = torch.ones(2, 11).bool()
    real[0, :4] = False  # on the left
    alone = model(ids[:1, 4:])
    torch.testing.assert_close(model(ids, real=real)[:1, 4:], alone, rtol=1e-9, atol=1e-10)
    if isinstance(positions, Rope):
        written = generate(model, ids, tokens=5)
        longer = torch.cat([ids, written], 1)
        assert torch.equal(model(longer)[:, 10:-1].argmax(-1), written)


def test_a_latent_cache_is_kept_selected_and_cut() -> None:
    cache = LatentCache(torch.zeros(2, 5, 3))
    x = torch.arange(12.0).view(2, 2, 3)
    assert torch.equal(cache.append(x), x)
    cache.select(torch.tensor([1, 1]))
    assert torch.equal(cache.append(x[:, :1])[0, :2], x[1])
    cache.truncate(1)
    assert cache.length == 1
    with pytest.raises(ValueError, match="holds 1 of at most 5 positions, and 5 more do not fit"):
        cache.append(torch.ones(2, 5, 3))
    with pytest.raises(ValueError, match="length must be"):
        cache.truncate(2)
    with pytest.raises(ValueError, match="new must have shape"):
        cache.append(torch.ones(2, 1, 4))


def test_what_the_caches_of_deepseek_v2_hold() -> None:
    """r + d_R = 576 numbers a token and layer; 128 heads of 128 hold 32,768: 1.76 percent."""
    assert latent_cache_numbers(rank=512, rope_dim=64) == 576
    assert round(100 * 576 / (2 * 128 * 128), 2) == 1.76


def test_errors_of_latent_attention_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="rope_dim must be even, got 3"):
        MultiHeadLatentAttention(12, 3, rank=5, head_dim=4, rope_dim=3)
    with pytest.raises(ValueError, match=r"form must be .* got 'fast'"):
        MultiHeadLatentAttention(12, 3, rank=5, head_dim=4, form="fast")
    x = torch.ones(1, 3, 12)
    with pytest.raises(ValueError, match="needs a rotation by positions"):
        MultiHeadLatentAttention(12, 3, rank=5, head_dim=4, rope_dim=2)(x)
    with pytest.raises(ValueError, match="there is nothing to turn"):
        MultiHeadLatentAttention(12, 3, rank=5, head_dim=4)(x, rotation=turn(3))


def test_latents_read_a_text_of_any_length_in_any_order() -> None:
    array = LatentArray(12, 3, latents=5, layers=2)
    array = array.double()
    x = numbers(2, 31, 12)
    y = array(x)
    assert y.shape == (2, 5, 12)
    order = torch.randperm(31, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(array(x[:, order]), y, **EXACT)
    real = torch.arange(31).expand(2, 31) < 13
    torch.testing.assert_close(array(x, real=real), array(x[:, :13]), **EXACT)
    # By hand, from the layer's matrices.
    z = array.latents.expand(2, 5, 12)
    for layer, read in ((array.cross, x), *((layer, None) for layer in array.layers)):
        told = z if read is None else read
        Q = z[:, None] @ layer.query_matrix
        K, V = (told[:, None] @ W for W in (layer.key_matrix, layer.value_matrix))
        Z = (Q @ K.mT / 2).softmax(-1) @ V
        z = z + (Z @ layer.output_matrix).sum(1)
    torch.testing.assert_close(y, z, **EXACT)
    with pytest.raises(ValueError, match="latents must be 1 or more"):
        LatentArray(12, 3, latents=0, layers=1)


# --- selection ------------------------------------------------------------------------------------


def test_selected_blocks_are_the_own_one_and_the_best_that_have_ended() -> None:
    """Means of the keys, in blocks of 2: 3, 1, 2 and then the own block."""
    K = torch.tensor([3.0, 3.0, 1.0, 1.0, 2.0, 2.0, 9.0], dtype=torch.float64).view(1, 1, 7, 1)
    Q = torch.ones(1, 1, 7, 1, dtype=torch.float64)
    got = selected_blocks(Q, K, block=2, count=2)[0, 0].int().tolist()
    assert got == [
        [1, 0, 0, 0],  # the own block alone
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [1, 0, 1, 0],  # of the ended ones with means 3 and 1, the first
        [1, 0, 1, 0],
        [1, 0, 0, 1],
    ]
    # With a query of the other sign the smallest mean is the best.
    assert selected_blocks(-Q, K, block=2, count=2)[0, 0, 6].int().tolist() == [0, 1, 0, 1]


def test_heads_that_share_keys_share_their_blocks() -> None:
    """Added weights decide: each head alone would choose another block."""
    Q = numbers(2, 6, 16, 5)
    K = numbers(2, 3, 16, 5, seed=1)
    got = selected_blocks(Q, K, block=4, count=2)
    means = K.unflatten(2, (4, 4)).mean(3).repeat_interleave(2, 1)
    i = torch.arange(16)[:, None]
    ended = (torch.arange(4) + 1) * 4 - 1 <= i
    S = (Q @ means.mT / 5**0.5).masked_fill(~ended, -torch.inf)
    A = S.softmax(-1).nan_to_num(0.0).unflatten(1, (3, 2)).sum(2)
    own = i // 4 == torch.arange(4)
    A = A.masked_fill(~ended | own, -1)
    for b, h, t in ((0, 0, 15), (1, 2, 9), (0, 1, 7)):
        want = own[t].clone()
        if A[b, h, t].max() >= 0:
            want[A[b, h, t].argmax()] = True
        assert torch.equal(got[b, h, t], want)


def by_masks(
    Q: Tensor, K: Tensor, V: Tensor, gates: Tensor, *, block: int, count: int, window: int
) -> Tensor:
    n = Q.shape[2]
    chosen = selected_blocks(Q, K, block=block, count=count)
    tokens = chosen.repeat_interleave(block, -1)[..., :n].tril()
    tokens = tokens.repeat_interleave(Q.shape[1] // K.shape[1], 1)
    i = torch.arange(n)
    near = (i[:, None] >= i) & (i > i[:, None] - window)
    three = [
        pooled_attention(Q, K, V, size=block, causal=True),
        attention(Q, K, V, mask=tokens),
        attention(Q, K, V, mask=near),
    ]
    shares = gates.expand(2, Q.shape[1], n, 3).clone()
    shares[:, :, : block - 1, 0] = 0
    shares = shares / shares.sum(-1, keepdim=True)
    return sum(share[..., None] * y for share, y in zip(shares.unbind(-1), three, strict=True))


@pytest.mark.parametrize(
    ("n", "block", "count", "window"), [(29, 4, 3, 5), (11, 3, 9, 2), (7, 9, 1, 7)]
)
def test_native_sparse_attention_is_the_mix_of_three_masked_ones(
    n: int, block: int, count: int, window: int
) -> None:
    Q, K, V = qkv(n, n, heads=6, kv_heads=3)
    gates = numbers(2, 6, n, 3, seed=4).softmax(-1)
    how = {"block": block, "count": count, "window": window}
    got = native_sparse_attention(Q, K, V, gates, **how)
    torch.testing.assert_close(got, by_masks(Q, K, V, gates, **how), **EXACT)


def test_blocks_of_one_token_and_all_of_them_are_attention() -> None:
    Q, K, V = qkv(11, 11)
    gates = numbers(2, 3, 11, 3, seed=4).softmax(-1)
    y = native_sparse_attention(Q, K, V, gates, block=1, count=11, window=11)
    torch.testing.assert_close(y, attention(Q, K, V, mask=causal()), **EXACT)


def test_native_sparse_attention_leaks_nothing_from_the_future() -> None:
    n = 19
    x = numbers(1, 1, n, 5).requires_grad_()
    gates = numbers(1, 1, n, 3, seed=4).softmax(-1)
    y = native_sparse_attention(x, x, x, gates, block=3, count=2, window=4)
    for i in range(n):
        (grad,) = torch.autograd.grad(y[0, 0, i].sum(), x, retain_graph=True)
        assert torch.equal(grad[0, 0, i + 1 :], torch.zeros_like(grad[0, 0, i + 1 :]))
        assert bool((grad[0, 0, i] != 0).any())
    # The choice of blocks is blind to the future, too: bits do not change.
    z = x.detach().clone()
    z[:, :, 11:] += 3
    other = native_sparse_attention(z, z, z, gates, block=3, count=2, window=4)
    assert torch.equal(other[:, :, :11], y[:, :, :11].detach())


def test_padding_is_read_by_no_branch() -> None:
    Q, K, V = qkv(17, 17)
    gates = numbers(2, 3, 17, 3, seed=4).softmax(-1)
    how = {"block": 3, "count": 2, "window": 4}
    alone = native_sparse_attention(Q, K, V, gates, **how)
    front = [torch.cat([numbers(2, 3, 6, t.shape[3], seed=8), t], 2) for t in (Q, K, V)]
    real = torch.arange(23).expand(2, 23) >= 6  # two whole blocks on the left
    wide = torch.cat([gates[:, :, :6], gates], 2)
    got = native_sparse_attention(*front, wide, real=real, **how)
    torch.testing.assert_close(got[:, :, 6:], alone, **EXACT)
    assert bool(got.isfinite().all())


def sparse(config: TransformerConfig, layer: int) -> NativeSparseAttention:
    return NativeSparseAttention(
        config.dim, config.heads, kv_heads=config.kv_heads, block=2, count=2, window=3
    )


@torch.no_grad()
def test_a_model_of_sparse_layers_decodes_with_a_cache_as_without() -> None:
    config = TransformerConfig(
        vocab=23, dim=12, layers=2, heads=6, kv_heads=3, ff_dim=31, context=32
    )
    model = Decoder(config, attention=sparse).double().eval()
    initialize_(model, generator=torch.Generator().manual_seed(1), std=0.4, branch_gain=1.0)
    ids = torch.randint(23, (2, 17), generator=torch.Generator().manual_seed(2))
    whole = model(ids)
    cache = model.cache(2, 17)
    parts = [model(part, cache=cache) for part in ids.split([6, 1, 1, 9], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-10)


def test_errors_of_selection_say_what_to_do() -> None:
    Q, K, V = qkv(7, 7)
    gates = torch.ones(1, 1, 1, 3)
    with pytest.raises(ValueError, match="three branches, got 2 gates"):
        native_sparse_attention(Q, K, V, gates[..., :2], block=2, count=2, window=2)
    with pytest.raises(ValueError, match="window must be 1 or more"):
        native_sparse_attention(Q, K, V, gates, block=2, count=2, window=0)
    with pytest.raises(ValueError, match="count must be 1 or more"):
        selected_blocks(Q, K, block=2, count=0)


def test_all_of_it_runs_on_meta() -> None:
    Q, K, V = (t.to("meta") for t in qkv(13, 13))
    real = torch.ones(2, 13, dtype=torch.bool, device="meta")
    gates = torch.ones(1, 1, 1, 3, device="meta")
    y = native_sparse_attention(Q, K, V, gates, block=2, count=2, window=3, real=real)
    assert y.is_meta
    assert y.shape == V.shape
    assert nystrom_attention(Q, K, V, landmarks=4, real=real).shape == V.shape
    x = torch.ones(2, 7, 12, device="meta")
    layer = MultiHeadLatentAttention(12, 3, rank=5, head_dim=4, query_rank=3, device="meta")
    assert layer(x, mask=causal()).is_meta
    with torch.device("meta"):
        array = LatentArray(12, 3, latents=5, layers=1)
        squeezed = MemoryCompressedAttention(12, 3, stride=2, causal=True)
    assert array(x).shape == (2, 5, 12)
    assert squeezed(x, mask=causal()).shape == x.shape


def test_half_precision_keeps_its_dtype_and_stays_near() -> None:
    Q, K, V = (t.to(torch.bfloat16) for t in qkv(12, 12))
    gates = torch.full((1, 1, 1, 3), 1 / 3, dtype=torch.bfloat16)
    for read in (
        lambda q, k, v: nystrom_attention(q, k, v, landmarks=2),
        lambda q, k, v: native_sparse_attention(q, k, v, gates.to(q), block=3, count=9, window=4),
    ):
        y, exact = read(Q, K, V), read(Q.double(), K.double(), V.double())
        assert y.dtype == torch.bfloat16
        # Rounded inputs are the same; three branches or factors round to 8 bits again.
        torch.testing.assert_close(y.double(), exact, rtol=0.03, atol=0.03)
