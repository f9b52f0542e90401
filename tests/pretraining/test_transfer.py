"""LoRA, adapters, prefixes and prompts: closed forms, laws, errors. `peft` is in another file."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from companion.core import watch
from companion.models import generate
from companion.pretraining.transfer import (
    Adapter,
    Classifier,
    LoRALinear,
    PrefixTuning,
    PromptTuning,
    add_adapters,
    add_lora,
    add_prefix,
    freeze,
    load_trained,
    merge_lora,
    pool,
    remove_lora,
    remove_prefix,
    save_trained,
    trainable_parameters,
    trained_state,
    unmerge_lora,
)
from companion.transformer.attention import causal, sliding_window
from companion.transformer.block import (
    Decoder,
    Encoder,
    EncoderDecoder,
    Learned,
    TransformerConfig,
)
from companion.transformer.multi_head import MultiHeadAttention

IN, OUT, RANK = 7, 11, 3
# Sums of some ten products of order 1 in float64.
EXACT = {"rtol": 1e-12, "atol": 1e-12}
SMALL = {"vocab": 23, "dim": 12, "layers": 2, "heads": 6, "ff_dim": 31, "context": 29}


def decoder(**options: object) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Decoder(TransformerConfig(**{**SMALL, **options})).double().eval()


def llama() -> Decoder:
    return decoder(
        kv_heads=2, norm="rms", activation="swiglu", attention_bias=False, ff_bias=False, tied=False
    )


def encoder() -> Encoder:
    options = {"positions": Learned(), "norm_place": "post", "embedding_norm": True, "segments": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder(TransformerConfig(**SMALL, **options)).double().eval()


def some_ids(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(0, SMALL["vocab"], shape, generator=g)


def lora(g: torch.Generator, **options: object) -> LoRALinear:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        base = nn.Linear(IN, OUT, dtype=torch.float64)
    layer = LoRALinear(base, **{"rank": RANK, "alpha": 5.0, "generator": g, **options})
    return thawed(layer, g)


def thawed(module: nn.Module, g: torch.Generator, std: float = 0.5) -> nn.Module:
    """Move every trained parameter away from where it starts."""
    with torch.no_grad():
        for p in trained_state(module).values():
            p += std * torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.device, p.dtype)
    return module


# --- one layer of LoRA ----------------------------------------------------------------------------


def test_lora_starts_as_its_base(g: torch.Generator) -> None:
    base = nn.Linear(IN, OUT)
    layer = LoRALinear(base, rank=RANK, alpha=5.0, generator=g)
    x = torch.randn(2, 5, IN, generator=g)
    assert torch.equal(layer(x), base(x))
    assert torch.equal(layer.weight, base.weight)
    bound = IN**-0.5
    assert layer.A.abs().max() <= bound
    assert layer.A.std() > 0.4 * bound  # a uniform distribution has 0.58
    assert not any(p.requires_grad for p in base.parameters())


@pytest.mark.parametrize("rows", [None, [(0, 4), (6, 11)], [(2, 5)]], ids=str)
@pytest.mark.parametrize("stabilized", [False, True])
def test_lora_is_the_definition(
    g: torch.Generator, rows: list[tuple[int, int]] | None, stabilized: bool
) -> None:
    layer = lora(g, rows=rows, rank_stabilized=stabilized)
    x = torch.randn(2, 5, IN, generator=g, dtype=torch.float64)
    scale = 5.0 / (RANK**0.5 if stabilized else RANK)
    W = layer.base.weight.T.clone()
    for block, (first, end) in enumerate(rows or [(0, OUT)]):
        A = layer.A[:, block * RANK : (block + 1) * RANK]
        W[:, first:end] += scale * A @ layer.B[block]
    torch.testing.assert_close(layer(x), x @ W + layer.base.bias, **EXACT)
    torch.testing.assert_close(layer.weight.T, W, **EXACT)
    torch.testing.assert_close(layer.change(), W - layer.base.weight.T, **EXACT)
    for block, (first, end) in enumerate(rows or [(0, OUT)]):
        assert torch.linalg.matrix_rank(layer.change()[:, first:end]) == min(RANK, end - first)
        assert layer.B[block].shape == (RANK, end - first)


def test_gradients_are_the_formulas_and_that_of_the_first_factor_is_zero_at_the_start(
    g: torch.Generator,
) -> None:
    for layer in (lora(g), LoRALinear(nn.Linear(IN, OUT).double(), rank=2, alpha=3.0, generator=g)):
        X = torch.randn(5, IN, generator=g, dtype=torch.float64)
        dY = torch.randn(5, OUT, generator=g, dtype=torch.float64)
        dA, dB = torch.autograd.grad((layer(X) * dY).sum(), [layer.A, layer.B[0]])
        G = X.T @ dY
        torch.testing.assert_close(dB, layer.scale * layer.A.T @ G, **EXACT)
        torch.testing.assert_close(dA, layer.scale * G @ layer.B[0].T, **EXACT)
    assert torch.equal(dA, torch.zeros_like(dA))
    assert dB.abs().min() > 0


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5)),
    alpha=st.floats(0.1, 50),
    stabilized=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_merged_and_unmerged_layers_agree_for_all_sizes(
    sizes: tuple[int, int, int], alpha: float, stabilized: bool, seed: int
) -> None:
    inputs, outputs, rank = sizes
    g = torch.Generator().manual_seed(seed)
    base = nn.Linear(inputs, outputs, device="meta", dtype=torch.float64).to_empty(device="cpu")
    with torch.no_grad():
        for p in base.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype))
    layer = LoRALinear(base, rank=rank, alpha=alpha, generator=g, rank_stabilized=stabilized)
    thawed(layer, g)
    x = torch.randn(3, inputs, generator=g, dtype=torch.float64)
    before, weight = layer(x), base.weight.clone()
    layer.merge()
    # A few roundings of numbers of the size of the change.
    size = 1 + layer.scale * float(layer.change().detach().abs().max())
    torch.testing.assert_close(layer(x), before, rtol=1e-12, atol=1e-14 * size)
    layer.unmerge()
    torch.testing.assert_close(layer.base.weight, weight, rtol=1e-12, atol=1e-14 * size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merging_rounds_a_weight_once(g: torch.Generator, dtype: torch.dtype) -> None:
    layer = lora(g, dtype=torch.float64)
    layer.base.to(dtype)
    exact = layer.base.weight.double() + layer.change().T
    layer.merge()
    assert layer.base.weight.dtype == dtype
    assert layer.A.dtype == torch.float64
    # Half a unit in the last place, once.
    bound = 0.5 * torch.finfo(dtype).eps * exact.abs()
    assert ((layer.base.weight.double() - exact).abs() <= bound).all()
    assert not torch.equal(layer.base.weight.double(), exact)


def test_a_small_change_is_lost_when_it_is_merged_into_bfloat16(g: torch.Generator) -> None:
    base = nn.Linear(IN, OUT)
    with torch.no_grad():
        base.weight.fill_(1.0)
    layer = LoRALinear(base.bfloat16(), rank=RANK, alpha=1.0, generator=g, dtype=torch.float32)
    with torch.no_grad():
        layer.A.fill_(0.01)
        layer.B[0].fill_(0.1)  # a change of 0.001, where bfloat16 knows 1 and 1.0078
    x = torch.ones(1, IN, dtype=torch.bfloat16)
    assert layer.change().abs().min() > 0
    layer.merge()
    assert torch.equal(layer.base.weight, torch.ones_like(layer.base.weight))
    assert layer(x).dtype == torch.bfloat16


def test_merging_twice_and_unmerging_what_is_not_merged_are_refused(g: torch.Generator) -> None:
    layer = lora(g)
    with pytest.raises(ValueError, match="not merged: there is nothing to take out"):
        layer.unmerge()
    layer.merge()
    with pytest.raises(ValueError, match="merged already: unmerge it first"):
        layer.merge()


@pytest.mark.usefixtures("own_checks")
def test_lora_refuses_what_does_not_fit(g: torch.Generator) -> None:
    base = nn.Linear(IN, OUT)
    good = {"rank": 2, "alpha": 1.0, "generator": g}
    for change, message in (
        ({"rank": 0}, "rank must be 1 or more, got 0"),
        ({"alpha": 0.0}, r"alpha must lie in \(0.0, inf\), got 0"),
        ({"rows": [(0, 4), (3, 7)]}, r"blocks .* within 11 outputs.*got \[\(0, 4\), \(3, 7\)\]"),
        ({"rows": [(0, 12)]}, "within 11 outputs"),
        ({"rows": [(3, 3)]}, "within 11 outputs"),
        ({"rows": []}, "within 11 outputs"),
    ):
        with pytest.raises(ValueError, match=message):
            LoRALinear(base, **{**good, **change})
    with pytest.raises(ValueError, match="LoRA changes a linear layer, got Embedding"):
        LoRALinear(nn.Embedding(3, 2), **good)


# --- LoRA in a model ------------------------------------------------------------------------------

ALL = ["query", "key", "value", "out", "gate", "up", "down", "head"]


@pytest.mark.parametrize("targets", [["query", "value"], ["key"], ["gate"], ["up", "down"], ALL])
def test_a_merged_model_computes_what_the_model_with_lora_computes(
    g: torch.Generator, targets: list[str]
) -> None:
    model, ids = llama(), some_ids(g, 2, 13)
    plain = model(ids)
    names = add_lora(model, targets=targets, rank=2, alpha=3.0, generator=g)
    assert torch.equal(model(ids), plain)
    thawed(model, g)
    changed = model(ids)
    assert (changed - plain).abs().max() > 1e-2
    merge_lora(model)
    torch.testing.assert_close(model(ids), changed, **EXACT)
    unmerge_lora(model)
    torch.testing.assert_close(model(ids), changed, **EXACT)
    merge_lora(model)
    remove_lora(model)
    torch.testing.assert_close(model(ids), changed, **EXACT)
    assert not any(isinstance(m, LoRALinear) for m in model.modules())
    assert all(name.split(".")[-1] in ("qkv", "out", "gate_up", "down", "head") for name in names)


def test_blocks_of_the_fused_map_are_the_named_projections(g: torch.Generator) -> None:
    model = llama()
    before = {name: getattr(model.blocks[0].attention, name).clone() for name in VIEWS}
    add_lora(model, targets=["query", "value"], rank=2, alpha=3.0, generator=g)
    thawed(model, g)
    layer = model.blocks[0].attention
    assert torch.equal(layer.key_matrix, before["key_matrix"])
    for name in ("query_matrix", "value_matrix"):
        assert (getattr(layer, name) - before[name]).abs().min() > 0
    assert layer.qkv.rows == ((0, 12), (16, 20))  # six query heads of 2, two of keys and values


VIEWS = ("query_matrix", "key_matrix", "value_matrix")


def test_lora_counts_what_it_trains(g: torch.Generator) -> None:
    model = llama()
    d, ff, r = 12, 31, 2
    add_lora(model, targets=["query", "value", "down"], rank=r, alpha=3.0, generator=g)
    each = r * (d + 12) + r * (d + 4) + r * (ff + d)
    assert trainable_parameters(model) == SMALL["layers"] * each


def test_removing_lora_without_merging_gives_the_model_back(g: torch.Generator) -> None:
    model, ids = llama(), some_ids(g, 2, 13)
    plain, names = model(ids), set(model.state_dict())
    add_lora(model, targets=ALL, rank=2, alpha=3.0, generator=g)
    thawed(model, g)
    remove_lora(model)
    assert torch.equal(model(ids), plain)
    assert set(model.state_dict()) == names


def test_merging_into_a_tied_head_leaves_the_embeddings(g: torch.Generator) -> None:
    model = decoder(tied=True)
    table, ids = model.tokens.weight.clone(), some_ids(g, 2, 7)
    add_lora(model, targets=["head"], rank=2, alpha=3.0, generator=g)
    thawed(model, g)
    merge_lora(model)
    assert torch.equal(model.tokens.weight, table)
    assert (model.head.base.weight - table).abs().max() > 1e-3
    remove_lora(model)
    assert not model.config.tied
    again = Decoder(model.config).double()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(ids), model(ids))


@pytest.mark.parametrize("there", [True, False], ids=["merged", "unmerged"])
@pytest.mark.parametrize("here", [True, False], ids=["from-merged", "from-unmerged"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_state_with_lora_computes_the_same_wherever_it_is_loaded(
    g: torch.Generator, tied: bool, here: bool, there: bool
) -> None:
    def made() -> Decoder:
        model = decoder(tied=tied)
        add_lora(model, targets=["query", "down", "head"], rank=2, alpha=3.0, generator=g)
        return thawed(model, g)

    a, fresh, ids = made(), made(), some_ids(g, 2, 7)
    for model, merged in ((a, here), (fresh, there)):
        if merged:
            merge_lora(model)
    expected = a(ids)
    assert (fresh(ids) - expected).abs().max() > 1e-2
    state = {name: tensor.clone() for name, tensor in a.state_dict().items()}
    fresh.load_state_dict(state)
    assert torch.equal(fresh(ids), expected)
    (unmerge_lora if here else merge_lora)(fresh)  # the layers know how they are
    torch.testing.assert_close(fresh(ids), expected, **EXACT)
    flags = {name: t.dtype for name, t in state.items() if name.endswith("merged")}
    assert len(flags) == 5
    assert set(flags.values()) == {torch.bool}
    del state["head.merged"]
    with pytest.raises(RuntimeError, match=r'Missing key.* "head.merged"'):
        fresh.load_state_dict(state)


def test_lora_with_a_merged_state_is_written_and_read_as_safetensors(
    g: torch.Generator, tmp_path: Path
) -> None:
    a, fresh, ids = decoder(tied=True), decoder(tied=True), some_ids(g, 2, 7)
    for model in (a, fresh):
        add_lora(model, targets=["value", "head"], rank=2, alpha=3.0, generator=g)
    merge_lora(thawed(a, g))
    save_file({k: t.contiguous() for k, t in a.state_dict().items()}, tmp_path / "a.safetensors")
    fresh.load_state_dict(load_file(tmp_path / "a.safetensors"))
    assert torch.equal(fresh(ids), a(ids))


def test_trained_factors_are_not_read_into_merged_layers(
    g: torch.Generator, tmp_path: Path
) -> None:
    model, path = decoder(), tmp_path / "lora.safetensors"
    add_lora(model, targets=["query"], rank=2, alpha=3.0, generator=g)
    save_trained(model, path)
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    merge_lora(model)
    with pytest.raises(ValueError, match="hold a merged change already: unmerge it first"):
        load_trained(model, path)
    unmerge_lora(model)
    load_trained(model, path)


def test_lora_reaches_the_layers_that_a_path_names(g: torch.Generator) -> None:
    model = llama()
    names = add_lora(model, targets=["blocks.1.*.query", "*.up"], rank=2, alpha=3.0, generator=g)
    assert names == (
        "blocks.0.feed_forward.gate_up",
        "blocks.1.attention.qkv",
        "blocks.1.feed_forward.gate_up",
    )
    assert model.blocks[1].attention.qkv.rows == ((0, 12),)


def test_lora_in_cross_attention_acts_on_queries_and_context(g: torch.Generator) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EncoderDecoder(TransformerConfig(**SMALL)).double().eval()
    source, target = some_ids(g, 2, 7), some_ids(g, 2, 5)
    add_lora(model, targets=["query", "key", "value"], rank=2, alpha=3.0, generator=g)
    thawed(model, g)
    changed = model(source, target)
    merge_lora(model)
    torch.testing.assert_close(model(source, target), changed, **EXACT)


@pytest.mark.usefixtures("own_checks")
def test_models_that_lora_does_not_fit_are_refused_and_left_alone(g: torch.Generator) -> None:
    model = decoder()
    good = {"targets": ["query"], "rank": 2, "alpha": 3.0, "generator": g}
    for change, message in (
        ({"targets": ["q_proj"]}, "the model has no q_proj; it has down, head, key"),
        ({"targets": "query"}, "targets must be a list"),
        ({"targets": []}, "targets must be a list"),
        ({"targets": ["key", "key"]}, "named once"),
        ({"targets": ["query", "gate"]}, "the model has no gate; it has down, head, key"),
        ({"rank": 0}, "rank must be 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            add_lora(model, **{**good, **change})
    assert all(p.requires_grad for p in model.parameters())
    for function in (merge_lora, unmerge_lora, remove_lora):
        with pytest.raises(ValueError, match="no LoRA: add it with add_lora"):
            function(model)
    add_lora(model, **good)
    with pytest.raises(ValueError, match="has LoRA already"):
        add_lora(model, **good)


# --- prefixes -------------------------------------------------------------------------------------


def with_prefix(g: torch.Generator, **options: object) -> MultiHeadAttention:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layer = MultiHeadAttention(12, 6, bias=True, dtype=torch.float64, **options)
    layer.prefix = PrefixTuning(layer, length=3, generator=g, std=1.0)
    return layer


def attend(layer: MultiHeadAttention, *inputs: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    """The output of a layer and its attention weights."""
    with watch(layer, read=["weights"]) as seen:
        y = layer(*inputs, **options)
    return y, seen["weights"]


@pytest.mark.parametrize("kv_heads", [6, 2])
@pytest.mark.parametrize("mask", ["none", "causal", "rule", "padding", "column", "bias"])
def test_a_prefix_is_keys_and_values_that_no_mask_hides(
    g: torch.Generator, kv_heads: int, mask: str
) -> None:
    layer = with_prefix(g, kv_heads=kv_heads)
    n, heads, width = 5, 6, 2
    x = torch.randn(2, n, 12, generator=g, dtype=torch.float64)
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])[:, None, None, :]
    own = {
        "causal": torch.ones(n, n).tril().bool(),
        "rule": sliding_window(2).dense(n, n),
        "padding": real,
        "column": torch.tensor([True, True, False, True, True])[:, None],
    }.get(mask, torch.ones(n, n).bool())
    given = {"causal": causal(), "rule": sliding_window(2), "none": None, "bias": None}
    bias = torch.randn(heads, n, n, generator=g, dtype=torch.float64) if mask == "bias" else None
    y = layer(x, mask=given.get(mask, own), bias=bias)

    q, k, v = layer.qkv(x).split([heads * width, kv_heads * width, kv_heads * width], -1)
    Q = q.view(2, n, heads, width).transpose(1, 2)
    K, V = (
        torch.cat(
            [p.expand(2, -1, -1, -1), t.view(2, n, kv_heads, width).transpose(1, 2)], 2
        ).repeat_interleave(heads // kv_heads, 1)
        for p, t in ((layer.prefix.keys, k), (layer.prefix.values, v))
    )
    S = Q @ K.mT * layer.scale
    if bias is not None:
        S = S + torch.cat([torch.zeros(heads, n, 3), bias], -1)
    allowed = own.expand(2, 6, n, n) if own.ndim == 4 else own.expand(n, n).expand(2, 6, n, n)
    allowed = torch.cat([torch.ones(2, 6, n, 3).bool(), allowed], -1)
    A = torch.softmax(S.masked_fill(~allowed, -torch.inf), -1)
    torch.testing.assert_close(y, layer.out((A @ V).transpose(1, 2).flatten(2)), **EXACT)
    z, weights = attend(layer, x, mask=given.get(mask, own), bias=bias)
    torch.testing.assert_close(z, y, **EXACT)
    torch.testing.assert_close(weights, A, **EXACT)


def test_a_prefix_mixes_what_is_read_with_a_share_of_its_own(g: torch.Generator) -> None:
    """He et al. 2022, eq. 5: o = (1 - s) o_text + s o_prefix, with s the weight on the prefix."""
    layer = with_prefix(g)
    x = torch.randn(1, 5, 12, generator=g, dtype=torch.float64)
    y, A = attend(layer, x)
    s = A[..., :3].sum(-1).transpose(1, 2)[..., None]  # (batch, n, heads, 1)
    prefix_values = torch.einsum("bhnp,hpd->bnhd", A[..., :3], layer.prefix.values)
    held, layer.prefix = layer.prefix, None
    alone = nn.Linear(12, 12, bias=False, dtype=torch.float64)
    with torch.no_grad():
        alone.weight.copy_(torch.eye(12))
    out, layer.out = layer.out, alone
    text = layer(x).view(1, 5, 6, 2)
    mixed = (1 - s) * text + prefix_values
    torch.testing.assert_close(y, out(mixed.flatten(2)), **EXACT)
    assert held is not None


def test_a_model_with_a_prefix_decodes_with_its_cache_as_without(g: torch.Generator) -> None:
    model, ids = llama(), some_ids(g, 2, 7)
    plain = model(ids)
    names = add_prefix(model, length=3, generator=g, std=1.0)
    assert names == ("blocks.0.attention", "blocks.1.attention")
    whole = model(ids)
    assert (whole - plain).abs().max() > 1e-2
    cache = model.cache(2, 7)
    parts = [model(part, cache=cache) for part in ids.split([4, 1, 2], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **EXACT)
    assert cache.length == 7
    written = generate(model, ids, tokens=4)
    assert written.shape == (2, 4)
    assert trainable_parameters(model) == 2 * 2 * (2 * 3 * 2)
    remove_prefix(model)
    assert torch.equal(model(ids), plain)
    assert trainable_parameters(model) == 0


def test_a_prefix_stays_out_of_cross_attention(g: torch.Generator) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EncoderDecoder(TransformerConfig(**SMALL)).double().eval()
    names = add_prefix(model, length=3, generator=g)
    assert len(names) == 4
    assert all(block.cross.prefix is None for block in model.decoder.blocks)
    assert model(some_ids(g, 2, 7), some_ids(g, 2, 5)).shape == (2, 5, SMALL["vocab"])


def test_prefixes_that_cannot_be_are_refused(g: torch.Generator) -> None:
    model = decoder()
    with pytest.raises(ValueError, match="length must be 1 or more, got 0"):
        add_prefix(model, length=0, generator=g)
    with pytest.raises(ValueError, match=r"std must lie in \[0.0, inf\), got -1"):
        add_prefix(model, length=2, generator=g, std=-1.0)
    with pytest.raises(ValueError, match="no attention layer"):
        add_prefix(nn.Linear(3, 2), length=2, generator=g)
    with pytest.raises(ValueError, match="no prefix: add one"):
        remove_prefix(model)
    assert all(p.requires_grad for p in model.parameters())
    add_prefix(model, length=2, generator=g)
    with pytest.raises(ValueError, match="has a prefix already"):
        add_prefix(model, length=2, generator=g)
    with pytest.raises(ValueError, match="with a prefix cannot be taken out"):
        model.blocks[0].attention.keep_heads([0])


# --- prompts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [encoder, llama], ids=["encoder", "decoder"])
def test_a_prompt_of_embeddings_is_a_prompt_of_tokens(g: torch.Generator, make: object) -> None:
    model = make()
    first, ids = some_ids(g, 3), some_ids(g, 2, 7)
    tuned = PromptTuning(model, length=3, generator=g, ids=first)
    whole = torch.cat([first.expand(2, 3), ids], 1)
    torch.testing.assert_close(tuned(ids), model(whole)[:, 3:], **EXACT)
    read = getattr(model, "hidden", model)
    torch.testing.assert_close(tuned.hidden(ids), read(whole)[:, 3:], **EXACT)
    real = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    longer = torch.cat([torch.ones(2, 3).bool(), real], 1)
    torch.testing.assert_close(
        tuned(ids, real=real)[real], model(whole, real=longer)[:, 3:][real], **EXACT
    )
    assert trainable_parameters(tuned) == 3 * 12


def test_a_prompt_starts_from_rows_of_the_table(g: torch.Generator) -> None:
    model = decoder()
    tuned = PromptTuning(model, length=5, generator=g)
    same = (tuned.prompt[:, None] == model.tokens.weight).all(-1)
    assert same.any(1).all()
    table = model.tokens.weight.clone()
    thawed(tuned, g)
    assert torch.equal(model.tokens.weight, table)


@pytest.mark.usefixtures("own_checks")
def test_prompts_that_do_not_fit_are_refused(g: torch.Generator) -> None:
    with pytest.raises(ValueError, match="length must be 1 or more"):
        PromptTuning(decoder(), length=0, generator=g)
    with pytest.raises(ValueError, match=r"ids must have shape \(2,\), got \(3,\)"):
        PromptTuning(decoder(), length=2, generator=g, ids=torch.arange(3))
    tuned = PromptTuning(decoder(), length=2, generator=g)
    with pytest.raises(ValueError, match=r"real must have shape \(2, 7\), got \(2, 9\)"):
        tuned(some_ids(g, 2, 7), real=torch.ones(2, 9).bool())
    with pytest.raises(ValueError, match="30 tokens are more than the model's context of 29"):
        tuned(some_ids(g, 2, 28))


# --- adapters and classifiers ---------------------------------------------------------------------


@pytest.mark.usefixtures("own_checks")
def test_an_adapter_is_the_definition_and_starts_as_the_identity(g: torch.Generator) -> None:
    adapter = Adapter(5, 3, generator=g, dtype=torch.float64)
    x = torch.randn(2, 7, 5, generator=g, dtype=torch.float64)
    assert torch.equal(adapter(x), x)
    thawed(adapter, g)
    inner = torch.nn.functional.gelu(x @ adapter.down.weight.T + adapter.down.bias)
    expected = x + inner @ adapter.up.weight.T + adapter.up.bias
    torch.testing.assert_close(adapter(x), expected, **EXACT)
    with pytest.raises(ValueError, match="width must be 1 or more"):
        Adapter(5, 0, generator=g)
    with pytest.raises(ValueError, match=r"activation must be one of .*, got 'tanh'"):
        Adapter(5, 3, generator=g, activation="tanh")


def test_the_first_map_of_an_adapter_keeps_the_size_of_a_token(g: torch.Generator) -> None:
    weight = Adapter(97, 31, generator=g, dtype=torch.float64).down.weight
    # 3,007 draws of variance 1/97: their mean square is known to 2.6 % (one standard error).
    assert 97 * float(weight.detach().square().mean()) == pytest.approx(1, rel=0.13)


@pytest.mark.parametrize("make", [encoder, llama], ids=["encoder", "decoder"])
def test_adapters_start_as_the_model_and_correct_each_branch(
    g: torch.Generator, make: object
) -> None:
    model, ids = make(), some_ids(g, 2, 7)
    plain, state = model(ids), torch.get_rng_state()
    names = add_adapters(model, width=3, generator=g)
    assert torch.equal(torch.get_rng_state(), state)
    assert names[:2] == ("blocks.0.attention.out", "blocks.0.feed_forward.down")
    torch.testing.assert_close(model(ids), plain, **EXACT)
    assert trainable_parameters(model) == 4 * (2 * 12 * 3 + 12 + 3)
    thawed(model, g)
    block, x = model.blocks[0], torch.randn(2, 7, 12, generator=g, dtype=torch.float64)
    with watch(block.feed_forward, read=["hidden"]) as seen:
        made = block.feed_forward(x)
    last = block.feed_forward.down
    torch.testing.assert_close(made, last.adapter(last.base(seen["hidden"])), **EXACT)
    with pytest.raises(ValueError, match="adapters already"):
        add_adapters(model, width=3, generator=g)
    with pytest.raises(ValueError, match=r"has no \*attention\*.out"):
        add_adapters(nn.Linear(3, 2), width=3, generator=g)


def test_a_classifier_is_a_head_on_pooled_states(g: torch.Generator) -> None:
    ids = some_ids(g, 2, 7)
    real = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    model = encoder()
    classifier = Classifier(model, classes=3)
    assert torch.equal(classifier(ids, real=real), torch.zeros(2, 3).double())
    thawed(classifier.head, g)
    expected = classifier.head(pool(model(ids, real=real), real))
    torch.testing.assert_close(classifier(ids, real=real), expected, **EXACT)
    causal_model = llama()
    last = Classifier(causal_model, classes=3, pooling="last")
    hidden = causal_model.hidden(ids, real=real)
    torch.testing.assert_close(
        last.features(ids, real=real), torch.stack([hidden[0, 6], hidden[1, 3]]), **EXACT
    )
    prompted = Classifier(PromptTuning(model, length=2, generator=g), classes=5)
    assert trainable_parameters(prompted) == 2 * 12 + 5 * 12 + 5
    assert prompted(ids, real=real).shape == (2, 5)
    with pytest.raises(ValueError, match="classes must be 2 or more, got 1"):
        Classifier(model, classes=1)


@pytest.mark.parametrize("kind", ["lora", "prefix", "adapter", "prompt"])
def test_only_the_added_part_learns(g: torch.Generator, kind: str) -> None:
    model = encoder()
    frozen = {name: p.clone() for name, p in model.named_parameters()}
    body = model
    if kind == "lora":
        add_lora(model, targets=["query", "value"], rank=2, alpha=4.0, generator=g)
    elif kind == "prefix":
        add_prefix(model, length=2, generator=g)
    elif kind == "adapter":
        add_adapters(model, width=3, generator=g)
    else:
        body = PromptTuning(model, length=2, generator=g)
    classifier = Classifier(body, classes=3)
    ids, real = some_ids(g, 6, 7), torch.ones(6, 7).bool()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    trained = [p for p in classifier.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.02)
    first = None
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(classifier(ids, real=real), labels)
        loss.backward()
        optimizer.step()
        first = loss.item() if first is None else first
    assert loss.item() < 0.5 * first
    now = dict(model.named_parameters())
    for name, old in frozen.items():
        name = name.replace("qkv.", "qkv.base.") if kind == "lora" else name
        if kind == "adapter":
            name = name.replace("attention.out.", "attention.out.base.")
            name = name.replace("feed_forward.down.", "feed_forward.down.base.")
        assert torch.equal(now[name], old)


# --- what is trained, and its files ---------------------------------------------------------------


def test_counting_counts_tied_parameters_once() -> None:
    model = decoder(tied=True)
    total = sum(p.numel() for p in model.parameters())
    assert trainable_parameters(model) == total
    freeze(model)
    assert trainable_parameters(model) == 0
    assert trained_state(model) == {}


@pytest.mark.parametrize("kind", ["lora", "prefix", "adapter", "prompt"])
def test_the_trained_part_survives_its_file(g: torch.Generator, tmp_path: Path, kind: str) -> None:
    def build(seed: int) -> nn.Module:
        other, model = torch.Generator().manual_seed(seed), encoder()
        if kind == "lora":
            add_lora(model, targets=["query", "out"], rank=2, alpha=4.0, generator=other)
        elif kind == "prefix":
            add_prefix(model, length=2, generator=other)
        elif kind == "adapter":
            add_adapters(model, width=3, generator=other)
        else:
            return PromptTuning(model, length=2, generator=other)
        return model

    saved, loaded, ids = thawed(build(1), g), build(2), some_ids(g, 2, 7)
    path = tmp_path / "adapter.safetensors"
    save_trained(saved, path, metadata={"kind": kind})
    assert path.stat().st_size < 8 * trainable_parameters(saved) + 4000
    assert not torch.equal(loaded(ids), saved(ids))
    assert load_trained(loaded, path) == {"kind": kind}
    assert torch.equal(loaded(ids), saved(ids))


def test_files_that_do_not_fit_change_nothing(g: torch.Generator, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    model = decoder()
    add_prefix(model, length=2, generator=g)
    save_trained(model, path)
    other = decoder()
    add_prefix(other, length=3, generator=g)
    before = {name: p.clone() for name, p in trained_state(other).items()}
    with pytest.raises(ValueError, match=r"prefix.keys has shape \(6, 2, 2\) in the file and"):
        load_trained(other, path)
    for name, p in trained_state(other).items():
        assert torch.equal(p, before[name])
    remove_prefix(other)
    with pytest.raises(ValueError, match=r"the file does not fit the model: it has .* too much"):
        load_trained(other, path)
    with pytest.raises(ValueError, match="there is nothing to save"):
        save_trained(other, path)


# --- devices and purity ---------------------------------------------------------------------------


def test_everything_runs_without_data_on_meta(g: torch.Generator) -> None:
    with torch.device("meta"):
        model = Encoder(TransformerConfig(**SMALL, positions=Learned()))
        ids, real = torch.zeros(2, 7, dtype=torch.long), torch.ones(2, 7, dtype=torch.bool)
        add_prefix(model, length=2, generator=g)
        prompted = PromptTuning(model, length=2, generator=g)
        assert Classifier(prompted, classes=3)(ids, real=real).shape == (2, 3)
        other = Encoder(TransformerConfig(**SMALL, positions=Learned()))
        add_lora(other, targets=["query", "up"], rank=2, alpha=1.0, generator=g)
        assert other(ids).device.type == "meta"
        merge_lora(other)
        remove_lora(other)
        add_adapters(other, width=3, generator=g)
        assert other(ids).shape == (2, 7, 12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_stay_close(g: torch.Generator, dtype: torch.dtype) -> None:
    model, ids = encoder().float(), some_ids(g, 2, 7)
    add_lora(model, targets=["query", "value", "up"], rank=2, alpha=4.0, generator=g)
    expected = thawed(model, g, std=0.2)(ids)
    with torch.autocast("cpu", dtype=dtype):
        made = model(ids)
    # Some twenty roundings of relative size eps, on numbers of order 1.
    bound = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(made.float(), expected, rtol=bound, atol=bound)
    with torch.autocast("cpu", dtype=dtype):
        add_prefix(model, length=3, generator=g)
        assert torch.isfinite(model(ids)).all()


@pytest.mark.parametrize("kind", ["lora", "prefix", "adapter", "prompt"])
def test_all_agree_with_themselves_on_every_device(
    g: torch.Generator, device: torch.device, kind: str
) -> None:
    model, ids = encoder().float(), some_ids(g, 2, 7)
    body: nn.Module = model
    if kind == "lora":
        add_lora(model, targets=["query", "value"], rank=2, alpha=4.0, generator=g)
    elif kind == "prefix":
        add_prefix(model, length=2, generator=g)
    elif kind == "adapter":
        add_adapters(model, width=3, generator=g)
    else:
        body = PromptTuning(model, length=2, generator=g)
    thawed(body, g, std=0.2)
    expected = body(ids)
    made = body.to(device)(ids.to(device))
    assert made.device.type == device.type
    torch.testing.assert_close(made.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_inputs_are_left_as_they_are(g: torch.Generator) -> None:
    layer, prompted = lora(g), PromptTuning(encoder(), length=2, generator=g)
    x, ids = torch.randn(2, IN, generator=g, dtype=torch.float64), some_ids(g, 2, 5)
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    held = [x.clone(), ids.clone(), real.clone(), layer.base.weight.clone()]
    weight = layer.base.weight
    layer(x)
    prompted(ids, real=real)
    layer.merge()  # makes a new weight, so that a tied one elsewhere stays
    for old, now in zip(held, (x, ids, real, weight), strict=True):
        assert torch.equal(old, now)


def test_heads_of_a_layer_with_lora_stay() -> None:
    model = Decoder(TransformerConfig(vocab=7, dim=12, layers=1, heads=3, ff_dim=31, context=9))
    add_lora(
        model, targets=["query"], rank=2, alpha=4.0, generator=torch.Generator().manual_seed(0)
    )
    with pytest.raises(ValueError, match="as LoRA does"):
        model.blocks[0].attention.keep_heads([0, 1])
    remove_lora(model)
    assert model.blocks[0].attention.keep_heads([0, 1]).heads == 2
