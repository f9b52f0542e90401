"""The layer with several heads: its definition, its oracles, its masks."""

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import BertConfig, LlamaConfig
from transformers.models.bert.modeling_bert import BertAttention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from companion import verify
from companion.core import watch
from companion.transformer.attention import causal, documents, padding, prefix, sliding_window
from companion.transformer.multi_head import (
    MultiHeadAttention,
    output_value_circuit,
    pool_kv_heads,
    query_key_circuit,
)
from companion.transformer.positions import Rotary, ShawRelative, rotate

B, N, M, D = 2, 5, 7, 12
H, G, K, V = 6, 3, 4, 11  # query heads, key-value heads, widths of keys and of values
# Sums of a few dozen products of order 1 in float64 carry some ten rounding units of 1.1e-16.
EXACT = {"rtol": 1e-12, "atol": 1e-13}
SIZES = [
    {"heads": 1},
    {"heads": H},
    {"heads": H, "kv_heads": G},
    {"heads": H, "kv_heads": 1, "head_dim": K, "value_dim": V},
    {"heads": 5, "head_dim": 3, "value_dim": 7},
]


def draw(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def layer(g: torch.Generator, dim: int = D, *, bias: bool = True, **sizes: Any) -> Any:
    made = MultiHeadAttention(dim, bias=bias, dtype=torch.float64, **sizes)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(draw(*parameter.shape, g=g) / parameter.shape[-1] ** 0.5)
    return made


def attend(mha: MultiHeadAttention, *inputs: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The output of a layer and its attention weights."""
    with watch(mha, read=["weights"]) as seen:
        y = mha(*inputs, **options)
    return y, seen["weights"]


def biases(mha: MultiHeadAttention) -> tuple[Tensor, Tensor, Tensor]:
    """The biases of queries, keys and values, (heads, width) each."""
    split = (mha.heads * mha.head_dim, mha.kv_heads * mha.head_dim, mha.kv_heads * mha.value_dim)
    q, k, v = mha.qkv.bias.split(split)
    return (
        q.view(mha.heads, -1),
        k.view(mha.kv_heads, -1),
        v.view(mha.kv_heads, -1),
    )


def by_loops(mha: MultiHeadAttention, x: Tensor, context: Tensor, allowed: Tensor) -> Tensor:
    """The definition, one number at a time: (eq. 1 of the chapter), with a mask of (n, m)."""
    bq, bk, bv = biases(mha)
    out = mha.out.bias.expand(*x.shape[:2], -1).clone()
    for b in range(x.shape[0]):
        for i in range(mha.heads):
            group = i // (mha.heads // mha.kv_heads)
            for t in range(x.shape[1]):
                q = x[b, t] @ mha.query_matrix[i] + bq[i]
                readable = [s for s in range(context.shape[1]) if allowed[t, s]]
                keys = [context[b, s] @ mha.key_matrix[group] + bk[group] for s in readable]
                values = [context[b, s] @ mha.value_matrix[group] + bv[group] for s in readable]
                if readable:
                    weights = torch.softmax(torch.stack([q @ k for k in keys]) * mha.scale, 0)
                    read = sum(w * v for w, v in zip(weights, values, strict=True))
                    out[b, t] += read @ mha.output_matrix[i]
    return out


# --- the definition -------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("mask", [None, causal()], ids=["all", "causal"])
def test_the_layer_is_the_sum_over_heads_of_the_definition(
    g: torch.Generator, sizes: dict[str, int], mask: Any
) -> None:
    mha, x = layer(g, **sizes), draw(B, N, D, g=g)
    allowed = torch.ones(N, N, dtype=torch.bool) if mask is None else mask.dense(N, N)[0, 0]
    expected = by_loops(mha, x, x, allowed)
    torch.testing.assert_close(mha(x, mask=mask), expected, **EXACT)
    torch.testing.assert_close(attend(mha, x, mask=mask)[0], expected, **EXACT)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_cross_attention_reads_the_context(g: torch.Generator, sizes: dict[str, int]) -> None:
    mha, x, context = layer(g, **sizes), draw(B, N, D, g=g), draw(B, M, D, g=g)
    allowed = draw(N, M, g=g) > -0.5
    allowed[2] = False  # a query that may read nothing
    expected = by_loops(mha, x, context, allowed)
    torch.testing.assert_close(mha(x, context, mask=allowed), expected, **EXACT)
    y, A = attend(mha, x, context, mask=allowed)
    torch.testing.assert_close(y, expected, **EXACT)
    assert tuple(A.shape) == (B, mha.heads, N, M)
    torch.testing.assert_close(mha(x, x), mha(x), **EXACT)


def test_heads_are_sums_of_circuits(g: torch.Generator) -> None:
    mha, x = layer(g, bias=False, heads=H, kv_heads=G, value_dim=V), draw(B, N, D, g=g)
    A = torch.softmax(x[:, None] @ query_key_circuit(mha) @ x[:, None].mT * mha.scale, -1)
    summed = (A @ x[:, None] @ output_value_circuit(mha)).sum(1)
    torch.testing.assert_close(mha(x), summed, **EXACT)
    torch.testing.assert_close(attend(mha, x)[1], A, **EXACT)


def test_circuits_have_at_most_the_rank_of_a_head(g: torch.Generator) -> None:
    mha = layer(g, heads=5, head_dim=3, value_dim=7)
    assert torch.linalg.matrix_rank(query_key_circuit(mha)).tolist() == [3] * 5
    assert torch.linalg.matrix_rank(output_value_circuit(mha)).tolist() == [7] * 5


def test_only_the_circuits_matter(g: torch.Generator) -> None:
    """Any invertible change of basis inside a head, undone on the other side, changes nothing."""
    mha, x = layer(g, bias=False, heads=5, head_dim=3, value_dim=7), draw(B, N, D, g=g)
    other = layer(g, bias=False, heads=5, head_dim=3, value_dim=7)
    R, T = draw(5, 3, 3, g=g), draw(5, 7, 7, g=g)

    def stack(matrices: Tensor) -> Tensor:  # book layout (heads, dim, width) to Linear's rows
        return matrices.mT.reshape(-1, D)

    with torch.no_grad():
        turned = (
            mha.query_matrix @ R,
            mha.key_matrix @ torch.linalg.inv(R).mT,
            mha.value_matrix @ T,
        )
        other.qkv.weight.copy_(torch.cat([stack(m) for m in turned]))
        rows = torch.linalg.inv(T) @ mha.output_matrix
        other.out.weight.copy_(rows.reshape(-1, D).T)
    # The inverses of random 7 x 7 matrices cost a few digits.
    torch.testing.assert_close(other(x), mha(x), rtol=1e-9, atol=1e-10)


def test_a_key_bias_changes_nothing_and_a_value_bias_moves_into_the_output(
    g: torch.Generator,
) -> None:
    mha, x = layer(g, heads=H, kv_heads=G), draw(B, N, D, g=g)
    before = mha(x, mask=causal())
    queries = H * mha.head_dim
    keys = slice(queries, queries + G * mha.head_dim)
    values = slice(keys.stop, None)
    loss = mha(x, mask=causal()).square().sum()
    gradient = torch.autograd.grad(loss, mha.qkv.bias)[0]
    assert gradient[keys].abs().max() < 1e-12 * gradient.abs().max()
    bv = biases(mha)[2].repeat_interleave(H // G, dim=0)
    with torch.no_grad():
        mha.out.bias += (bv[:, None] @ mha.output_matrix).sum((0, 1))
        mha.qkv.bias[keys] = 17.0
        mha.qkv.bias[values] = 0.0
    torch.testing.assert_close(mha(x, mask=causal()), before, **EXACT)


@settings(max_examples=30, deadline=None)
@given(
    group=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    width=st.integers(1, 4),
    value=st.integers(1, 4),
    n=st.integers(1, 6),
)
def test_property_grouped_heads_are_heads_with_repeated_keys_and_values(
    group: int, kv_heads: int, width: int, value: int, n: int
) -> None:
    g = torch.Generator().manual_seed(group + 7 * kv_heads + 31 * width + 101 * value + n)
    heads = group * kv_heads
    grouped = layer(g, heads=heads, kv_heads=kv_heads, head_dim=width, value_dim=value)
    full = layer(g, heads=heads, head_dim=width, value_dim=value)
    q, k, v = (heads * width, kv_heads * width, kv_heads * value)
    index = torch.arange(kv_heads).repeat_interleave(group)
    with torch.no_grad():
        for new, old in ((full.qkv.weight, grouped.qkv.weight), (full.qkv.bias, grouped.qkv.bias)):
            Q, K_, V_ = old.split((q, k, v))
            K_ = K_.view(kv_heads, width, -1)[index].reshape(heads * width, -1)
            V_ = V_.view(kv_heads, value, -1)[index].reshape(heads * value, -1)
            new.copy_(torch.cat([Q, K_.reshape(-1, *Q.shape[1:]), V_.reshape(-1, *Q.shape[1:])]))
        full.out.load_state_dict(grouped.out.state_dict())
    x = draw(B, n, D, g=g)
    torch.testing.assert_close(grouped(x, mask=causal()), full(x, mask=causal()), **EXACT)


def test_parameters_do_not_depend_on_the_number_of_heads() -> None:
    for heads in (1, 2, 3, 4, 6, 12):
        count = sum(p.numel() for p in MultiHeadAttention(D, heads, device="meta").parameters())
        assert count == 4 * D * D
    with_bias = MultiHeadAttention(D, 3, bias=True, device="meta")
    assert sum(p.numel() for p in with_bias.parameters()) == 4 * D * D + 4 * D
    grouped = MultiHeadAttention(D, H, kv_heads=G, device="meta")
    assert sum(p.numel() for p in grouped.parameters()) == 2 * D * D + 2 * D * G * (D // H)


# --- independent implementations ------------------------------------------------------------


def torch_layer(mha: MultiHeadAttention, dim: int = D) -> nn.MultiheadAttention:
    """PyTorch's own layer, with the weights of ours."""
    theirs = nn.MultiheadAttention(dim, mha.heads, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(mha.qkv.weight)
        theirs.in_proj_bias.copy_(mha.qkv.bias)
    theirs.out_proj.load_state_dict(mha.out.state_dict())
    return theirs


def test_the_layer_is_pytorchs_in_outputs_weights_and_gradients(g: torch.Generator) -> None:
    mha = layer(g, heads=H)
    theirs = torch_layer(mha)
    x, x2 = (t.requires_grad_() for t in [draw(B, N, D, g=g)] for _ in range(2))
    allowed = draw(N, N, g=g) > -0.5
    allowed |= torch.eye(N, dtype=torch.bool)  # theirs is NaN where nothing may be read
    real = torch.ones(B, N, dtype=torch.bool)
    real[1, 3:] = False
    mask = padding(real).dense(N, N) & (allowed | ~real[:, None, None])
    mask = mask | (allowed & torch.eye(N, dtype=torch.bool))[None, None]
    ours, A = attend(mha, x, mask=mask)
    # PyTorch's polarity is the opposite: True forbids.
    forbidden = ~mask.expand(B, H, N, N).reshape(B * H, N, N)
    expected, weights = theirs(x2, x2, x2, attn_mask=forbidden, average_attn_weights=False)
    torch.testing.assert_close(ours, expected, **EXACT)
    torch.testing.assert_close(A, weights, **EXACT)
    target = draw(B, N, D, g=g)
    mine = torch.autograd.grad((mha(x, mask=mask) * target).sum(), [x, *mha.parameters()])
    wanted = torch.autograd.grad(
        (expected * target).sum(),
        [
            x2,
            theirs.in_proj_weight,
            theirs.in_proj_bias,
            theirs.out_proj.weight,
            theirs.out_proj.bias,
        ],
    )
    for one, other in zip(mine, wanted, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_cross_attention_is_pytorchs(g: torch.Generator) -> None:
    mha, x, context = layer(g, heads=H), draw(B, N, D, g=g), draw(B, M, D, g=g)
    real = torch.ones(B, M, dtype=torch.bool)
    real[0, 4:] = False
    expected, _ = torch_layer(mha)(x, context, context, key_padding_mask=~real)
    torch.testing.assert_close(mha(x, context, mask=padding(real)), expected, **EXACT)


def test_the_layer_is_bert_s_inside_its_residual_and_norm(g: torch.Generator) -> None:
    config = BertConfig(
        hidden_size=D,
        num_attention_heads=H,
        attn_implementation="eager",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    theirs = BertAttention(config).double().eval()
    mha, x = layer(g, heads=H), draw(B, N, D, g=g)
    with torch.no_grad():
        parts = (theirs.self.query, theirs.self.key, theirs.self.value)
        for part, weight, bias in zip(
            parts, mha.qkv.weight.chunk(3), mha.qkv.bias.chunk(3), strict=True
        ):
            part.weight.copy_(weight)
            part.bias.copy_(bias)
    theirs.output.dense.load_state_dict(mha.out.state_dict())
    real = torch.ones(B, N, dtype=torch.bool)
    real[1, 3:] = False
    added = torch.zeros(B, 1, 1, N, dtype=torch.float64).masked_fill(
        ~real[:, None, None], torch.finfo(torch.float64).min
    )
    expected, weights = theirs(x, attention_mask=added)
    y, A = attend(mha, x, mask=padding(real))
    torch.testing.assert_close(theirs.output.LayerNorm(x + y), expected, **EXACT)
    torch.testing.assert_close(A, weights, **EXACT)


def test_the_layer_is_llama_s_with_grouped_heads_and_rotary_positions(g: torch.Generator) -> None:
    config = LlamaConfig(
        hidden_size=D,
        num_attention_heads=H,
        num_key_value_heads=G,
        head_dim=8,
        attn_implementation="eager",
    )
    theirs = LlamaAttention(config, 0).double()
    mha, x = layer(g, bias=False, heads=H, kv_heads=G, head_dim=8), draw(B, N, D, g=g)
    with torch.no_grad():
        for part, weight in zip(
            (theirs.q_proj, theirs.k_proj, theirs.v_proj),
            mha.qkv.weight.split((H * 8, G * 8, G * 8)),
            strict=True,
        ):
            part.weight.copy_(weight)
    theirs.o_proj.load_state_dict(mha.out.state_dict())
    places = torch.arange(N)
    angles = LlamaRotaryEmbedding(config)(x, places[None])
    added = torch.full((N, N), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    expected, _ = theirs(x, position_embeddings=angles, attention_mask=added)
    rotation = partial(
        rotate, rotation=Rotary(8)(places, dtype=torch.float64), interleaved=False, head_axis=2
    )
    ours = mha(x, mask=causal(), rotation=rotation)
    # Both compute the angles in float32, by operations that may differ in the last bit.
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)


# --- masks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_under_the_causal_mask_no_output_depends_on_a_later_token(
    g: torch.Generator, sizes: dict[str, int]
) -> None:
    mha, x = layer(g, **sizes), draw(1, N, D, g=g)
    jacobian = torch.autograd.functional.jacobian(lambda t: mha(t, mask=causal())[0], x)[:, :, 0]
    size = jacobian.abs().amax((1, 3))  # output position, input position
    assert torch.equal(size.triu(1), torch.zeros(N, N, dtype=size.dtype))  # exactly
    assert (size.tril() > 0).sum() == N * (N + 1) // 2
    free = torch.autograd.functional.jacobian(lambda t: mha(t)[0], x)[:, :, 0]
    assert bool((free.abs().amax((1, 3)) > 0).all())  # the negative control


@pytest.mark.parametrize("width", [1, 2, 3])
def test_under_a_window_no_output_depends_on_a_token_outside(
    g: torch.Generator, width: int
) -> None:
    mha, x = layer(g, heads=H), draw(1, N, D, g=g)
    jacobian = torch.autograd.functional.jacobian(
        lambda t: mha(t, mask=sliding_window(width))[0], x
    )[:, :, 0]
    assert torch.equal(jacobian.abs().amax((1, 3)) > 0, sliding_window(width).dense(N, N)[0, 0])


def test_padding_is_not_read_and_changes_nothing(g: torch.Generator) -> None:
    mha = layer(g, heads=H, kv_heads=G)
    short, long = draw(1, 3, D, g=g), draw(1, N, D, g=g)
    for side in ("right", "left"):
        spot = slice(0, 3) if side == "right" else slice(N - 3, N)
        x = torch.full((2, N, D), 1e3, dtype=torch.float64)
        x[0, spot], x[1] = short[0], long[0]
        real = torch.zeros(2, N, dtype=torch.bool)
        real[0, spot], real[1] = True, True
        for rule in (None, causal()):
            mask = padding(real) if rule is None else padding(real) & rule
            y = mha(x, mask=mask)
            torch.testing.assert_close(y[:1, spot], mha(short, mask=rule), **EXACT)
            torch.testing.assert_close(y[1:], mha(long, mask=rule), **EXACT)


def test_documents_and_prefixes_keep_their_promises(g: torch.Generator) -> None:
    mha, x = layer(g, heads=H), draw(1, N, D, g=g)
    packed = mha(x, mask=documents(torch.tensor([[0, 0, 1, 1, 1]])) & causal())
    parts = [mha(part, mask=causal()) for part in x.split((2, 3), 1)]
    torch.testing.assert_close(packed, torch.cat(parts, 1), **EXACT)
    half = mha(x, mask=prefix(3))
    torch.testing.assert_close(half[:, :3], mha(x[:, :3]), **EXACT)
    torch.testing.assert_close(half[:, 3:], mha(x, mask=causal())[:, 3:], **EXACT)


def test_a_query_that_may_read_nothing_gets_the_output_bias_and_sends_no_gradient(
    g: torch.Generator,
) -> None:
    mha, x = layer(g, heads=H), draw(B, N, D, g=g).requires_grad_()
    mask = torch.ones(N, N, dtype=torch.bool)
    mask[2] = False
    y = mha(x, mask=mask)
    assert torch.equal(y[:, 2], mha.out.bias.expand(B, D))
    gradients = torch.autograd.grad(y[:, 2].square().sum(), [x, mha.qkv.weight, mha.out.weight])
    for gradient in gradients:
        assert torch.equal(gradient, torch.zeros_like(gradient))


# --- additions to the scores ----------------------------------------------------------------


def test_a_bias_is_added_to_the_scaled_scores(g: torch.Generator) -> None:
    mha, x, bias = layer(g, heads=H), draw(B, N, D, g=g), draw(H, N, N, g=g)
    Q, K_, V_ = (t.view(B, N, H, -1).transpose(1, 2) for t in mha.qkv(x).chunk(3, -1))
    A = torch.softmax(Q @ K_.mT * mha.scale + bias, -1)
    expected = mha.out((A @ V_).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mha(x, bias=bias), expected, **EXACT)
    torch.testing.assert_close(attend(mha, x, bias=bias)[1], A, **EXACT)


def test_relative_positions_are_added_before_the_scaling(g: torch.Generator) -> None:
    shaw = ShawRelative(2, 3, dtype=torch.float64)
    mha, x = layer(g, heads=H, relative=shaw), draw(B, N, D, g=g)
    assert any(p is shaw.weight for p in mha.parameters())
    Q = mha.qkv(x)[..., :D].view(B, N, H, -1).transpose(1, 2)
    places = torch.arange(N)
    added = mha.scale * shaw(Q, places, places)
    plain = layer(g, heads=H)
    plain.load_state_dict(mha.state_dict(), strict=False)
    bias = draw(H, N, N, g=g)
    torch.testing.assert_close(mha(x, bias=bias), plain(x, bias=added + bias), **EXACT)


def test_another_scale_is_a_temperature(g: torch.Generator) -> None:
    mha, x = layer(g, heads=H), draw(B, N, D, g=g)
    other = layer(g, heads=H, scale=3 * mha.scale)
    other.load_state_dict(mha.state_dict())
    with torch.no_grad():
        mha.qkv.weight[:D] *= 3
        mha.qkv.bias[:D] *= 3
    torch.testing.assert_close(other(x), mha(x), **EXACT)


# --- kept heads -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "keep"),
    [({"heads": H}, [4, 0, 1]), ({"heads": H, "kv_heads": G, "value_dim": V}, [4, 5, 0, 1])],
    ids=["plain", "grouped"],
)
def test_kept_heads_compute_what_gates_of_zero_compute(
    g: torch.Generator, sizes: dict[str, int], keep: list[int]
) -> None:
    mha, x = layer(g, **sizes), draw(B, N, D, g=g)
    mha.qkv.weight.requires_grad_(False)
    mha.eval()
    smaller = mha.keep_heads(keep)
    gates = torch.zeros(H, dtype=torch.float64)
    gates[keep] = 1
    with watch(mha, replace={"heads": lambda Z: Z * gates[:, None, None]}):
        expected = mha(x, mask=causal())
    torch.testing.assert_close(smaller(x, mask=causal()), expected, **EXACT)
    assert smaller.heads == len(keep)
    assert not smaller.training
    assert not smaller.qkv.weight.requires_grad
    assert smaller.out.weight.requires_grad
    with torch.no_grad():
        smaller.qkv.weight.zero_()
    assert mha.qkv.weight.abs().min() > 0  # copies, not views


def test_making_a_smaller_layer_draws_no_random_numbers(g: torch.Generator) -> None:
    mha = layer(g, heads=H)
    before = torch.get_rng_state()
    mha.keep_heads([4, 0])
    pool_kv_heads(mha, G)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_replaces_the_heads_is_mixed_by_the_output_map(g: torch.Generator) -> None:
    mha, x, gates = layer(g, bias=False, heads=H), draw(B, N, D, g=g), draw(H, g=g)
    each = torch.stack([mha.keep_heads([i])(x) for i in range(H)])
    with watch(mha, replace={"heads": lambda Z: Z * gates[:, None, None]}):
        torch.testing.assert_close(mha(x), torch.einsum("h,hbnd->bnd", gates, each), **EXACT)
        torch.testing.assert_close(attend(mha, x)[0], mha(x), **EXACT)


# --- errors, purity, devices, precision -----------------------------------------------------


def test_sizes_that_do_not_fit_are_refused() -> None:
    for arguments, message in (
        ({"dim": 12, "heads": 5}, "heads must divide dim, got 5 heads and dim 12"),
        ({"dim": 12, "heads": 6, "kv_heads": 4}, "kv_heads must divide heads, got 4 and 6"),
        ({"dim": 12, "heads": 0}, "heads must be 1 or more, got 0"),
        ({"dim": 12, "heads": 6, "kv_heads": 0}, "kv_heads must be 1 or more, got 0"),
        ({"dim": 12, "heads": 6, "value_dim": 0}, "value_dim must be 1 or more, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            MultiHeadAttention(**arguments)


@pytest.mark.usefixtures("own_checks")
def test_inputs_that_do_not_fit_are_refused_by_name(g: torch.Generator) -> None:
    mha, x = layer(g, heads=H), draw(B, N, D, g=g)
    with pytest.raises(ValueError, match=r"x must have shape \(\*, \*, 12\), got \(2, 5, 11\)"):
        mha(x[..., :-1])
    with pytest.raises(ValueError, match=r"context must have shape .2, \*, 12., got .3, 7, 12."):
        mha(x, draw(3, M, D, g=g))
    with pytest.raises(ValueError, match=r"\(5, 7\)|mask"):
        mha(x, mask=torch.ones(N, M, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask"):
        mha(x, mask=torch.ones(N, N))
    with pytest.raises(ValueError, match="a rotation places queries and keys in one sequence"):
        mha(x, x, rotation=lambda t: t)
    shaw = layer(g, heads=H, relative=ShawRelative(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="relative places queries and keys in one sequence"):
        shaw(x, x)


def test_heads_that_cannot_be_kept_are_refused(g: torch.Generator) -> None:
    mha, grouped = layer(g, heads=H), layer(g, heads=H, kv_heads=G)
    shaw = layer(g, heads=H, relative=ShawRelative(2, 3, dtype=torch.float64))
    for made, keep, message in (
        (mha, [], "kept heads must be 1 or more, got 0"),
        (mha, [0, 6], "head must be from 0 to 5, got 6"),
        (mha, [2, 2], r"each head can be kept once, got \[2, 2\]"),
        (grouped, [0, 2], r"groups of 2 heads share .* keep whole groups, got \[0, 2\]"),
        (grouped, [0, 1, 2], "keep whole groups"),
        (grouped, [1, 0], "keep whole groups"),
        (shaw, [0], "relative positions cannot be taken out"),
    ):
        with pytest.raises(ValueError, match=message):
            made.keep_heads(keep)


def test_inputs_are_left_as_they_are(g: torch.Generator) -> None:
    mha, x, context = layer(g, heads=H, kv_heads=G), draw(B, N, D, g=g), draw(B, M, D, g=g)
    bias, mask = draw(H, N, M, g=g), draw(N, M, g=g) > 0
    before = [t.clone() for t in (x, context, bias, mask, *mha.parameters())]
    mha(x, context, mask=mask, bias=bias)
    attend(mha, x, context, mask=mask, bias=bias)
    mha.keep_heads([2, 3])
    for old, new in zip(before, (x, context, bias, mask, *mha.parameters()), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_layer_runs_without_data_on_meta(sizes: dict[str, int]) -> None:
    mha = MultiHeadAttention(D, bias=True, device="meta", **sizes)
    x, context = torch.ones(B, N, D, device="meta"), torch.ones(B, M, D, device="meta")
    real = torch.ones(B, N, dtype=torch.bool, device="meta")
    for y in (
        mha(x),
        mha(x, mask=causal()),
        mha(x, mask=padding(real) & causal()),
        mha(x, context),
        attend(mha, x)[0],
        mha.keep_heads(range(mha.heads))(x),
    ):
        assert y.device.type == "meta"
        assert y.shape == (B, N, D)
    assert query_key_circuit(mha).device.type == "meta"
    assert output_value_circuit(mha).shape == (mha.heads, D, D)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_stay_close(g: torch.Generator, dtype: torch.dtype) -> None:
    mha, x = layer(g, heads=H, kv_heads=G), draw(B, N, D, g=g)
    expected = mha(x, mask=causal())
    single = MultiHeadAttention(D, H, kv_heads=G, bias=True, dtype=torch.float32)
    single.load_state_dict(mha.state_dict())
    with torch.autocast("cpu", dtype=dtype):
        y = single(x.float(), mask=causal())
    # Some ten roundings of relative size eps, on numbers of order 1.
    bound = 10 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected, rtol=bound, atol=bound)
    half = single.to(dtype)
    y = half(x.to(dtype), mask=causal())
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=bound, atol=bound)


def test_the_layer_agrees_with_itself_on_every_device(
    g: torch.Generator, device: torch.device
) -> None:
    mha, x = layer(g, heads=H, kv_heads=G), draw(B, N, D, g=g)
    expected = mha(x, mask=causal())
    moved = mha.float().to(device)
    y = moved(x.float().to(device), mask=causal())
    assert y.device.type == device.type
    torch.testing.assert_close(y.cpu().double(), expected, rtol=1e-4, atol=1e-5)


# --- cost -----------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 3, 6])
def test_operations_do_not_depend_on_the_number_of_heads(heads: int) -> None:
    mha, x = MultiHeadAttention(D, heads), torch.ones(1, N, D)
    assert verify.count_flops(lambda t: attend(mha, t), x) == 8 * N * D * D + 4 * N * N * D


def test_the_fused_path_keeps_no_matrix_of_weights() -> None:
    """Peak memory of the forward pass grows linearly: it has no n x n term."""
    mha = MultiHeadAttention(D, 2)
    with torch.no_grad():
        peaks = [
            verify.peak_bytes(mha, torch.ones(1, n, D), mask=causal()) for n in (100, 200, 300)
        ]
    first, second = (b - a for a, b in pairwise(peaks))
    assert first == second
