"""BART, T5 and XLNet compute what `transformers` computes: logits, losses and gradients."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from companion.models import load_pretrained
from companion.pretraining.denoising import (
    Pair,
    Tokens,
    TwoStream,
    pad_rows,
    rank_masks,
    seq2seq_loss,
    shift_right,
    target_labels,
)

# Errors grow over some ten layers of sums; float32 has 24 bits, float64 has 53.
CLOSE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
}
DTYPES = [torch.float32, torch.float64]
V = 53


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def load(folder: Path, **options: Any) -> Any:
    return load_pretrained(folder, **options).model


def fill(model: nn.Module, seed: int) -> nn.Module:
    """Weights of a size at which every part matters, biases and gains included."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.3 if p.ndim > 1 else 0.2
            p.copy_(scale * torch.randn(p.shape, generator=g))
            if "norm" in name and name.endswith("weight"):
                p.add_(1.0)
    return model


def save(model: Any, folder: Path) -> Path:
    """A checkpoint directory as the hub has them."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()), encoding="utf-8")
    return folder


def pair() -> Pair:
    """Rows of different lengths on either side."""
    g = torch.Generator().manual_seed(5)

    def rows(*lengths: int) -> Tokens:
        return pad_rows([torch.randint(3, V, (n,), generator=g).tolist() for n in lengths], pad=1)

    return Pair(rows(11, 7, 5), rows(5, 13, 3))


def bart() -> Any:
    config = transformers.BartConfig(
        vocab_size=V,
        max_position_embeddings=19,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=37,
        decoder_ffn_dim=37,
        pad_token_id=1,
        dropout=0.0,
        attn_implementation="eager",
    )
    return fill(transformers.BartForConditionalGeneration(config), 0).eval()


def t5(kind: str) -> Any:
    v11 = kind != "v1.0"
    config_kind = transformers.MT5Config if kind == "mt5" else transformers.T5Config
    config = config_kind(
        vocab_size=V,
        d_model=24,
        d_kv=5,
        d_ff=37,
        num_layers=2,
        num_heads=3,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=11,
        feed_forward_proj="gated-gelu" if v11 else "relu",
        tie_word_embeddings=not v11,
        pad_token_id=0,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    kinds = {"mt5": transformers.MT5ForConditionalGeneration}
    model = kinds.get(kind, transformers.T5ForConditionalGeneration)(config)
    if v11:  # the published files of 1.1 hold a table of their own for the output
        model.lm_head.weight = nn.Parameter(torch.zeros(V, 24))
    return fill(model, 1).eval()


class ExactRMSNorm(nn.Module):
    """The norm of T5 without the detour through float32 that the published class takes."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.weight, self.eps = other.weight, other.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def as_dtype(model: Any, dtype: torch.dtype) -> Any:
    model = model.to(dtype)
    if dtype == torch.float64:
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if type(child).__name__.endswith("T5LayerNorm"):
                    setattr(module, name, ExactRMSNorm(child))
    return model


def compare_gradients(ours: nn.Module, theirs: Any, tmp: Path) -> None:
    """Read the other model's gradients as if they were a checkpoint, and compare all of them."""
    shell = type(theirs)(theirs.config)
    shell.load_state_dict(theirs.state_dict(), strict=False)
    dtype = next(theirs.parameters()).dtype
    shell = shell.to(dtype)
    theirs_named, shell_named = dict(theirs.named_parameters()), dict(shell.named_parameters())
    if "lm_head.weight" in theirs_named and "lm_head.weight" not in shell_named:
        shell.lm_head.weight = nn.Parameter(torch.zeros_like(theirs_named["lm_head.weight"]))
        shell_named = dict(shell.named_parameters())
    assert set(shell_named) == set(theirs_named)
    with torch.no_grad():
        for name, p in shell_named.items():
            grad = theirs_named[name].grad
            p.copy_(torch.zeros_like(p) if grad is None else grad)
    (tmp / "gradients").mkdir()
    wanted = load(save(shell, tmp / "gradients"), dtype=dtype)
    mine = dict(ours.named_parameters())
    its = dict(wanted.named_parameters())
    assert set(mine) == set(its)
    for name, p in mine.items():
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        size = max(float(its[name].detach().abs().max()), 1.0)
        torch.testing.assert_close(
            grad / size,
            its[name].detach() / size,
            **CLOSE[dtype],
            msg=lambda m, n=name: f"{n}: {m}",
        )
        # Something must be there to compare; rows of positions before the first are never read.
        assert bool((grad != 0).any()), name


def check_seq2seq(theirs: Any, *, start: int, dtype: torch.dtype, tmp: Path) -> None:
    ours = load(save(theirs, tmp), dtype=dtype)
    theirs = as_dtype(theirs, dtype)
    read, write = pair()
    labels = target_labels(write)
    out = theirs(
        input_ids=read.ids,
        attention_mask=read.real.long(),
        decoder_input_ids=shift_right(write, start=start),
        decoder_attention_mask=write.real.long(),
        labels=labels,
    )
    logits = ours(
        read.ids,
        shift_right(write, start=start),
        source_real=read.real,
        target_real=write.real,
    )
    torch.testing.assert_close(logits[write.real], out.logits[write.real], **CLOSE[dtype])
    loss = seq2seq_loss(ours, Pair(read, write), start=start)
    torch.testing.assert_close(loss, out.loss, **CLOSE[dtype])
    loss.backward()
    out.loss.backward()
    compare_gradients(ours, theirs, tmp)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bart_equals_transformers(dtype: torch.dtype, tmp_path: Path) -> None:
    check_seq2seq(bart(), start=2, dtype=dtype, tmp=tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["v1.0", "v1.1", "mt5"])
def test_t5_equals_transformers(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = t5(kind)
    check_seq2seq(model, start=0, dtype=dtype, tmp=tmp_path)


def test_the_labels_of_transformers_are_shifted_as_ours(tmp_path: Path) -> None:
    # Their classes make the decoder's input from the labels when none is given.
    theirs = bart()
    ours = load(save(theirs, tmp_path))
    read, write = pair()
    out = theirs(input_ids=read.ids, attention_mask=read.real.long(), labels=target_labels(write))
    loss = seq2seq_loss(ours, Pair(read, write), start=2)
    torch.testing.assert_close(loss, out.loss, **CLOSE[torch.float32])


def xlnet() -> Any:
    config = transformers.XLNetConfig(
        vocab_size=V,
        d_model=24,
        n_layer=2,
        n_head=3,
        d_inner=37,
        ff_activation="gelu",
        dropout=0.0,
        mem_len=0,
        use_mems_eval=False,
    )
    return fill(transformers.XLNetLMHeadModel(config), 2).eval()


def exact_encodings(model: Any) -> None:
    """The published class forms its sinusoids in float32 whatever its weights are."""

    def encoding(qlen: int, klen: int, bsz: int | None = None, device: Any = None) -> Tensor:
        inverse = 10000.0 ** -(torch.arange(0, model.config.d_model, 2.0).double() / 24)
        angles = torch.arange(klen, -qlen, -1.0).double()[:, None] * inverse
        both = torch.cat([angles.sin(), angles.cos()], -1)[:, None]
        return both if bsz is None else both.expand(-1, bsz, -1)

    model.transformer.relative_positional_encoding = encoding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("stream", ["query", "content"])
def test_xlnet_equals_transformers(
    stream: str, segmented: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    theirs = xlnet()
    ours = load(save(theirs, tmp_path), dtype=dtype)
    theirs = theirs.to(dtype)
    if dtype == torch.float64:
        exact_encodings(theirs)
    g = torch.Generator().manual_seed(7)
    n = 11
    ids = torch.randint(0, V, (2, n), generator=g)
    real = torch.arange(n) < torch.tensor([[11], [9]])
    rank = torch.tensor(
        [[-1, 2, -1, 0, -1, -1, 3, 1, -1, -1, -1], [0, -1, -1, -1, 2, -1, 1, -1, -1, -1, -1]]
    )
    allowed = rank_masks(rank).query
    segments = (torch.arange(n) > 5).long().expand(2, n) if segmented else None
    where = {
        "attention_mask": real.to(dtype),
        "perm_mask": (~allowed.dense(n, n)[:, 0]).to(dtype),
        "token_type_ids": segments,
    }
    if stream == "content":
        logits = ours(ids, allowed=allowed, real=real, segments=segments)
        other = theirs(ids, **where).logits
        torch.testing.assert_close(logits[real], other[real], **CLOSE[dtype])
        return
    predict = torch.tensor([[3, 7, 1], [0, 6, 4]])
    mapping = torch.nn.functional.one_hot(predict, n).to(dtype)
    labels = ids.gather(1, predict)
    out = theirs(ids, target_mapping=mapping, labels=labels, **where)
    logits = ours(ids, predict, allowed=allowed, real=real, segments=segments)
    torch.testing.assert_close(logits, out.logits, **CLOSE[dtype])
    loss = ours.loss(ids, predict, allowed=allowed, real=real, segments=segments)
    torch.testing.assert_close(loss, out.loss, **CLOSE[dtype])
    loss.backward()
    out.loss.backward()
    if segmented:
        compare_gradients(ours, theirs, tmp_path)


def test_where_nothing_may_be_read_the_published_xlnet_reads_everything(tmp_path: Path) -> None:
    # All scores get the same large negative number, so the weights are uniform: the prediction
    # depends on tokens that it must not see. Ours does not.
    theirs = xlnet()
    ours = load(save(theirs, tmp_path))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    other = torch.tensor([[5, 6, 30, 8, 9]])
    rank = torch.arange(5)[None]
    allowed = rank_masks(rank).query
    perm = (~allowed.dense(5, 5)[:, 0]).float()
    first = torch.nn.functional.one_hot(torch.tensor([[0]]), 5).float()
    leak = (
        theirs(ids, perm_mask=perm, target_mapping=first).logits
        - theirs(other, perm_mask=perm, target_mapping=first).logits
    )
    assert float(leak.detach().abs().max()) > 0.01
    mine = ours(ids, torch.tensor([[0]]), allowed=allowed)
    torch.testing.assert_close(mine, ours(other, torch.tensor([[0]]), allowed=allowed))
    assert isinstance(ours, TwoStream)


# --- what is refused ---------------------------------------------------------------------------


def changed(folder: Path, **settings: Any) -> Path:
    """The same checkpoint under another configuration."""
    path = folder / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(raw | settings), encoding="utf-8")
    return folder


MODELS: dict[str, Callable[[], Any]] = {"bart": bart, "t5": lambda: t5("v1.0"), "xlnet": xlnet}


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("bart", {"model_type": "mbart"}, "architecture 'mbart' is not supported"),
        ("bart", {"decoder_layers": 3}, "encoder_layers 2 and decoder_layers 3 differ"),
        ("bart", {"scale_embedding": True}, "scale_embedding is not supported"),
        ("bart", {"add_final_layer_norm": True}, "add_final_layer_norm is not supported"),
        ("bart", {"activation_function": "tanh"}, "activation 'tanh' is not supported"),
        ("bart", {"quantization_config": {"a": 1}}, "quantized weights"),
        ("bart", {"vocab_size": 54}, r"'model.shared.weight' must have shape \(54, 24\)"),
        ("t5", {"model_type": "umt5"}, "architecture 'umt5' is not supported"),
        ("t5", {"num_decoder_layers": 3}, "num_decoder_layers 3 differ"),
        ("t5", {"feed_forward_proj": "gated-tanh"}, "activation 'tanh' is not supported"),
        ("t5", {"feed_forward_proj": "gated-gelu"}, "has no tensor .*wi_0"),
        ("t5", {"relative_attention_num_buckets": 10}, r"must have shape \(10, 3\)"),
        ("xlnet", {"attn_type": "uni"}, "attn_type 'uni' is not supported"),
        ("xlnet", {"bi_data": True}, "bi_data True is not supported"),
        ("xlnet", {"clamp_len": 5}, "clamp_len 5 is not supported"),
        ("xlnet", {"n_layer": 1}, "tensors .* have no place"),
    ],
)
def test_options_that_are_not_supported_are_named(
    kind: str, settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    build = MODELS[kind]
    folder = changed(save(build(), tmp_path), **settings)
    with pytest.raises(ValueError, match=said):
        load(folder)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bart", "d_model"),
        ("t5", "d_kv"),
        ("xlnet", "d_inner"),
    ],
)
def test_a_missing_setting_is_named(kind: str, name: str, tmp_path: Path) -> None:
    build = MODELS[kind]
    folder = save(build(), tmp_path)
    path = folder / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    del raw[name]
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ValueError, match=f"does not give '{name}'"):
        load(folder)


def rewrite(folder: Path, **tensors: Tensor | None) -> Path:
    """Put tensors in (with ``__`` for dots) or take them out."""
    held = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        full = name.replace("__", ".")
        held.pop(full, None)
        if tensor is not None:
            held[full] = tensor
    save_file(held, folder / "model.safetensors")
    return folder


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    def fresh(kind: str) -> Path:
        folder = tmp_path / f"{kind}{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return save(MODELS[kind](), folder)

    with pytest.raises(ValueError, match="final_logits_bias is not zero"):
        load(rewrite(fresh("bart"), final_logits_bias=torch.ones(1, V)))
    with pytest.raises(ValueError, match=r"ties 'lm_head.weight' to .*, but the two differ"):
        load(rewrite(fresh("bart"), lm_head__weight=torch.ones(V, 24)))
    with pytest.raises(ValueError, match=r"no tensor 'model.encoder.layers.1.fc1.bias'"):
        load(rewrite(fresh("bart"), model__encoder__layers__1__fc1__bias=None))
    with pytest.raises(ValueError, match="'odd'"):
        load(rewrite(fresh("bart"), odd=torch.ones(1)))
    with pytest.raises(ValueError, match=r"ties the output layer, but lm_head.weight differs"):
        load(rewrite(fresh("t5"), lm_head__weight=torch.ones(V, 24)))
    with pytest.raises(ValueError, match=r"no tensor 'lm_loss.bias'"):
        load(rewrite(fresh("xlnet"), lm_loss__bias=None))
    with pytest.raises(ValueError, match="must be finite"):
        load(rewrite(fresh("xlnet"), lm_loss__bias=torch.full((V,), torch.nan)))
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="dtype must be floating"):
        load(fresh("bart"), dtype=torch.int64)


def test_tables_are_one_parameter_again_and_models_can_move(tmp_path: Path) -> None:
    for kind in ("bart", "t5"):
        folder = tmp_path / kind
        folder.mkdir()
        model = load(save(MODELS[kind](), folder))
        assert model.decoder.head.weight is model.encoder.tokens.weight
        assert model.decoder.tokens is model.encoder.tokens
        assert not model.training
        model.to("cpu", torch.float64)
        assert all(t.device.type == "cpu" for t in [*model.parameters(), *model.buffers()])


def test_an_old_t5_file_with_an_unused_table_is_read(tmp_path: Path) -> None:
    theirs = t5("v1.0")
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    folder = rewrite(save(theirs, tmp_path), **{name: torch.ones(8, 3)})
    read, write = pair()
    decoder = shift_right(write, start=0)
    mine = load(folder)(read.ids, decoder)
    torch.testing.assert_close(
        mine, theirs(read.ids, decoder_input_ids=decoder).logits, **CLOSE[torch.float32]
    )
