"""What save_pretrained writes, transformers reads, and so do we, with equal logits."""

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file, save_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

import companion
from companion.core import _storage, generator
from companion.models import (
    TextDecoder,
    TextEncoder,
    TextEncoderDecoder,
    TextTwoStream,
    load_pretrained,
    save_pretrained,
)
from companion.models._codec import require
from companion.pretraining.denoising import TwoStream
from companion.pretraining.masked import BertForPreTraining
from companion.transformer.block import (
    AlibiBias,
    Decoder,
    Encoder,
    EncoderDecoder,
    Learned,
    NoPositions,
    Rope,
    T5Buckets,
    TransformerConfig,
)
from companion.transformer.multi_head import MultiHeadAttention
from companion.transformer.positions import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    NTKScaling,
    Rotary,
    YarnScaling,
    rope_frequencies,
)

V = 53
# Sums of some dozen terms over a few layers, in double precision with its 53 bits.
EXACT = {"rtol": 1e-10, "atol": 1e-10}

BERT = TransformerConfig(
    vocab=V,
    dim=24,
    layers=2,
    heads=3,
    ff_dim=37,
    context=19,
    norm_place="post",
    norm_eps=1e-3,
    activation="gelu_tanh",
    positions=Learned(),
    embedding_norm=True,
    segments=2,
)
GPT2 = TransformerConfig(
    vocab=V,
    dim=24,
    layers=2,
    heads=3,
    ff_dim=37,
    context=19,
    norm_eps=1e-3,
    activation="relu",
    positions=Learned(),
)
LLAMA = TransformerConfig(
    vocab=V,
    dim=24,
    layers=2,
    heads=6,
    kv_heads=2,
    head_dim=10,
    ff_dim=37,
    context=31,
    norm="rms",
    norm_eps=1e-3,
    activation="geglu",
    positions=Rope(base=77.0),
    attention_bias=False,
    ff_bias=False,
)
BART = replace(BERT, norm_eps=1e-5, positions=Learned(offset=2), segments=0)
T5 = TransformerConfig(
    vocab=V,
    dim=24,
    layers=2,
    heads=3,
    head_dim=5,
    ff_dim=37,
    context=2**20,
    norm="rms",
    norm_eps=1e-3,
    activation="relu",
    positions=T5Buckets(8, 11),
    attention_bias=False,
    ff_bias=False,
    attention_scale=1.0,
    logit_scale=24**-0.5,
)
MT5 = replace(T5, activation="geglu_tanh", logit_scale=1.0, tied=False)
XLNET = TransformerConfig(
    vocab=V,
    dim=24,
    layers=2,
    heads=3,
    head_dim=8,
    ff_dim=37,
    context=2**20,
    norm_place="post",
    norm_eps=1e-3,
    positions=NoPositions(),
    attention_bias=False,
    segments=2,
)
CASES: dict[str, tuple[Callable[[TransformerConfig], Any], TransformerConfig, str]] = {
    "bert": (Encoder, BERT, "BertModel"),
    "bert-heads": (BertForPreTraining, BERT, "BertForPreTraining"),
    "gpt2": (Decoder, GPT2, "GPT2LMHeadModel"),
    "gpt2-untied": (Decoder, replace(GPT2, tied=False), "GPT2LMHeadModel"),
    "llama": (Decoder, LLAMA, "LlamaForCausalLM"),
    "llama-untied": (
        Decoder,
        replace(LLAMA, tied=False, attention_bias=True, ff_bias=True, activation="swiglu"),
        "LlamaForCausalLM",
    ),
    "bart": (EncoderDecoder, BART, "BartForConditionalGeneration"),
    "t5": (EncoderDecoder, T5, "T5ForConditionalGeneration"),
    "t5-1.1": (EncoderDecoder, MT5, "T5ForConditionalGeneration"),
    "t5-1.1-tied": (EncoderDecoder, replace(MT5, tied=True), "T5ForConditionalGeneration"),
    "xlnet": (TwoStream, XLNET, "XLNetLMHeadModel"),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def fill(model: nn.Module) -> Any:
    """Weights of a size at which every part matters, biases and gains included."""
    g = generator(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_((0.3 if p.ndim > 1 else 0.2) * torch.randn(p.shape, generator=g))
            if "norm" in name and name.endswith("weight"):
                p.add_(1.0)
    return model.double().eval()


def built(case: str) -> Any:
    kind, config, _ = CASES[case]
    return fill(kind(config))


def ids_of(n: int = 11) -> Tensor:
    return torch.randint(0, V, (2, n), generator=generator(1))


@torch.no_grad()
def ours(model: Any) -> Tensor:
    """One tensor that depends on all weights."""
    ids = ids_of()
    if isinstance(model, EncoderDecoder):
        return model(ids, ids[:, :7])
    if isinstance(model, BertForPreTraining):
        logits = model(ids, segments=ids % 2)
        return torch.cat([logits.tokens[:, 0], logits.pair], 1)
    if isinstance(model, Encoder):
        return model(ids, segments=ids % 2)
    out: Tensor = model(ids)
    return out


def identical(one: nn.Module, other: nn.Module) -> None:
    """The same weights to the last bit. (What is computed may differ in it, by their alignment.)"""
    a, b = one.state_dict(), other.state_dict()
    assert set(a) == set(b)
    assert all(torch.equal(a[name], b[name]) for name in a)
    torch.testing.assert_close(ours(one), ours(other), **EXACT)


class _RMSNorm(nn.Module):
    """Their norms in double precision: the published classes compute in float32."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.weight, self.eps = other.weight, other.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def exact(model: Any) -> Any:
    """What their classes compute in float32 whatever the weights are, in double precision."""
    model = model.double().eval()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith(("T5LayerNorm", "LlamaRMSNorm")):
                setattr(module, name, _RMSNorm(child))
    if hasattr(model, "transformer") and hasattr(model.transformer, "mask_emb"):
        d = model.config.d_model

        def encoding(qlen: int, klen: int, bsz: int | None = None, device: Any = None) -> Tensor:
            inverse = 10000.0 ** -(torch.arange(0, d, 2.0).double() / d)
            angles = torch.arange(klen, -qlen, -1.0).double()[:, None] * inverse
            both = torch.cat([angles.sin(), angles.cos()], -1)[:, None]
            return both if bsz is None else both.expand(-1, bsz, -1)

        model.transformer.relative_positional_encoding = encoding
    return model


@torch.no_grad()
def theirs(model: Any) -> Tensor:
    ids = ids_of()
    name = type(model).__name__
    if name.startswith(("Bart", "T5")):
        return model(input_ids=ids, decoder_input_ids=ids[:, :7]).logits
    if name == "BertForPreTraining":
        out = model(ids, token_type_ids=ids % 2)
        return torch.cat([out.prediction_logits[:, 0], out.seq_relationship_logits], 1)
    if name == "BertModel":
        return model(ids, token_type_ids=ids % 2).last_hidden_state
    return model(ids).logits


def read_by_transformers(case: str, folder: Path) -> Any:
    kind = getattr(transformers, CASES[case][2])
    more = {"add_pooling_layer": False} if case == "bert" else {}
    model, told = kind.from_pretrained(
        folder, dtype=torch.float64, output_loading_info=True, **more
    )
    assert not told["unexpected_keys"]
    assert not set(told["missing_keys"]) - {"final_logits_bias"}
    assert not told["mismatched_keys"]
    return exact(model)


def same(a: Tensor, b: Tensor, case: str) -> None:
    # The angles of their rotary positions are float32, whatever the weights are.
    close = {"rtol": 1e-5, "atol": 1e-5} if case.startswith("llama") else EXACT
    torch.testing.assert_close(a, b, **close)


@pytest.mark.parametrize("case", CASES)
def test_a_saved_model_is_the_same_here_and_in_transformers(case: str, tmp_path: Path) -> None:
    model = built(case)
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path, dtype=torch.float64, heads=case == "bert-heads")
    again = loaded.heads if case == "bert-heads" else loaded.model
    assert again.config == model.config
    identical(again, model)
    same(theirs(read_by_transformers(case, tmp_path)), ours(model), case)


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_model_has_no_part_without_memory_and_can_be_moved(
    case: str, tmp_path: Path
) -> None:
    save_pretrained(built(case), tmp_path)
    model = load_pretrained(tmp_path).model
    parts = dict(model.named_parameters()) | dict(model.named_buffers())
    assert not [name for name, part in parts.items() if part.is_meta]
    model.to("cpu").to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, Rotary):
            plain = rope_frequencies(module.head_dim, base=module.base, scaling=module.scaling)
            assert torch.equal(module.frequencies, torch.cat([-plain, plain]))


@pytest.mark.parametrize("case", CASES)
def test_tied_weights_are_found_under_any_of_their_names(case: str, tmp_path: Path) -> None:
    save_pretrained(built(case), tmp_path)
    model = read_by_transformers(case, tmp_path)
    expected = theirs(model)
    # Which of the names a file keeps is up to who wrote it: try each of them alone.
    (tmp_path / "theirs").mkdir()
    model.config.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "model.safetensors"
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    groups: dict[int, list[str]] = {}
    for name, tensor in state.items():
        groups.setdefault(tensor.data_ptr(), []).append(name)
    tied = [names for names in groups.values() if len(names) > 1]
    assert bool(tied) == (case not in {"bert", "gpt2-untied", "llama-untied"}), case
    for kept in range(max(map(len, groups.values()))):
        left = {names[min(kept, len(names) - 1)] for names in groups.values()}
        save_file({name: state[name].clone() for name in left}, file)
        loaded = load_pretrained(tmp_path / "theirs", dtype=torch.float64, heads="heads" in case)
        got = loaded.heads if "heads" in case else loaded.model
        same(ours(got), expected, case)
    save_model(model, str(file))
    loaded = load_pretrained(tmp_path / "theirs", dtype=torch.float64, heads="heads" in case)
    same(ours(loaded.heads if "heads" in case else loaded.model), expected, case)


def test_the_bart_of_the_report_has_the_logits_of_transformers(tmp_path: Path) -> None:
    config = transformers.BartConfig(
        vocab_size=50,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
    )
    model = transformers.BartForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    save_model(model, str(tmp_path / "model.safetensors"))
    assert "model.shared.weight" not in load_file(tmp_path / "model.safetensors")
    ids = torch.tensor([[3, 7, 11, 13, 2]])
    mine = load_pretrained(tmp_path).model(ids, ids[:, :3])
    its = model(input_ids=ids, decoder_input_ids=ids[:, :3]).logits
    torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "scaling",
    [
        LinearScaling(3.0),
        DynamicNTKScaling(2.0, 31),
        Llama3Scaling(4.0, 1.0, 3.0, 16),
        YarnScaling(4.0, 16),
        YarnScaling(4.0, 16, beta_fast=20.0, beta_slow=2.0, attention_factor=1.3, truncate=False),
        YarnScaling(4.0, 16, mscale=0.8, mscale_all_dim=1.7),
    ],
    ids=str,
)
def test_every_rotary_scaling_is_written_and_read(scaling: Any, tmp_path: Path) -> None:
    context = 62 if isinstance(scaling, DynamicNTKScaling) else 64
    config = replace(LLAMA, positions=Rope(100.0, scaling), context=context)
    model = fill(Decoder(config))
    save_pretrained(model, tmp_path)
    assert load_pretrained(tmp_path).model.config == config
    its = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    ids = ids_of(41)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), its(ids).logits, rtol=1e-5, atol=1e-5)


def test_mscale_of_yarn_changes_the_logits_as_in_transformers(tmp_path: Path) -> None:
    told = {
        "rope_type": "yarn",
        "rope_theta": 100.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "mscale": 0.707,
        "mscale_all_dim": 1.3,
    }
    save_pretrained(fill(Decoder(replace(LLAMA, context=64))), tmp_path)
    path = tmp_path / "config.json"
    outputs = []
    for scales in ({}, {"mscale": None}):
        raw = json.loads(path.read_text()) | {"rope_parameters": told | scales}
        path.write_text(json.dumps(raw))
        mine = load_pretrained(tmp_path, dtype=torch.float64).model
        its = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
        with torch.no_grad():
            outputs.append(mine(ids_of(31)))
            torch.testing.assert_close(outputs[-1], its(ids_of(31)).logits, rtol=1e-5, atol=1e-5)
    assert float((outputs[0] - outputs[1]).abs().max()) > 1e-2


def words() -> Tokenizer:
    made = Tokenizer(models.WordLevel({f"w{k}": k for k in range(V)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def test_a_text_model_keeps_its_tokens_and_its_template(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    text = TextDecoder(built("llama"), words(), start=1, stop=(2, 5), chat_template=template)
    save_pretrained(text, tmp_path)
    again = load_pretrained(tmp_path, dtype=torch.float64)
    assert isinstance(again, TextDecoder)
    assert (again.start, again.stop, again.chat_template) == (1, (2, 5), template)
    assert again.special_tokens == {"bos_token": "w1", "eos_token": "w2"}
    assert again.continue_text("w3 w4", tokens=7) == text.continue_text("w3 w4", tokens=7)
    its = transformers.AutoTokenizer.from_pretrained(tmp_path)
    talk = [{"role": "user", "content": "w7 w8"}]
    assert its.apply_chat_template(talk, tokenize=False) == again.chat_prompt(talk) == "w1w7 w8"
    assert its("w3 w4")["input_ids"] == [3, 4]
    written = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (written.bos_token_id, written.eos_token_id) == (1, [2, 5])


def test_other_text_models_come_back_whole(tmp_path: Path) -> None:
    pooled = TextEncoder(built("bert"), words(), pooling="first")
    save_pretrained(pooled, tmp_path / "bert")
    again = load_pretrained(tmp_path / "bert", dtype=torch.float64)
    torch.testing.assert_close(again.embed(["w3 w4"]), pooled.embed(["w3 w4"]), **EXACT)
    assert again.pooling == "first"
    whole = built("bert-heads")
    save_pretrained(TextEncoder(whole.encoder, words(), heads=whole), tmp_path / "heads")
    again = load_pretrained(tmp_path / "heads", dtype=torch.float64, heads=True)
    assert again.model is again.heads.encoder
    identical(again.heads, whole)
    for case, start in (("bart", (2, 0)), ("t5", (0,))):
        text = TextEncoderDecoder(built(case), words(), start=start, stop=(1,))
        save_pretrained(text, tmp_path / case)
        other = load_pretrained(tmp_path / case, dtype=torch.float64)
        assert isinstance(other, TextEncoderDecoder)
        assert (other.start, other.stop) == (start, (1,))
        assert other.write_text("w3 w4", tokens=5) == text.write_text("w3 w4", tokens=5)
    save_pretrained(TextTwoStream(built("xlnet"), words()), tmp_path / "xlnet")
    assert isinstance(load_pretrained(tmp_path / "xlnet"), TextTwoStream)


def test_a_saved_bert_without_the_second_head_is_read(tmp_path: Path) -> None:
    model = fill(BertForPreTraining(BERT, pair=False))
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path, dtype=torch.float64, heads=True).heads
    assert again.pair is None
    its = transformers.BertForMaskedLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids_of()).tokens, its(ids_of()).logits, **EXACT)


# --- files ---------------------------------------------------------------------------------------


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_weights_have_the_permissions_of_other_files(mask: int, mode: int, tmp_path: Path) -> None:
    with umask(mask):
        save_pretrained(TextDecoder(built("llama"), words()), tmp_path)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == mode, path.name


def test_shards_replace_one_file_and_one_file_shards(tmp_path: Path) -> None:
    model, other = built("llama"), fill(Decoder(replace(LLAMA, layers=3)))
    save_pretrained(model, tmp_path)
    save_pretrained(other, tmp_path, shard_bytes=20_000)
    assert not (tmp_path / "model.safetensors").exists()
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert max(path.stat().st_size for path in shards[:-1]) < 30_000
    identical(load_pretrained(tmp_path, dtype=torch.float64).model, other)
    same(theirs(read_by_transformers("llama", tmp_path)), ours(other), "llama")
    save_pretrained(model, tmp_path)
    assert not list(tmp_path.glob("model-*"))
    assert not (tmp_path / "model.safetensors.index.json").exists()
    identical(load_pretrained(tmp_path, dtype=torch.float64).model, model)
    assert not list(tmp_path.glob(".*"))


def test_weights_keep_their_type_and_the_model_is_left_alone(tmp_path: Path) -> None:
    model = built("gpt2").bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_pretrained(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert "lm_head.weight" not in stored


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "config", "said"),
    [
        (Encoder, replace(BERT, norm="rms"), "no BERT: norm must be 'layer' there, and is 'rms'"),
        (Encoder, replace(BERT, segments=0), "no BERT: segments"),
        (Decoder, replace(LLAMA, activation="relu"), "no Llama: activation must be"),
        (Decoder, replace(LLAMA, positions=Rope(interleaved=True)), "no Llama: .* half-split"),
        (Decoder, replace(LLAMA, positions=Rope(scaling=NTKScaling(2.0))), "no word for NTK"),
        (Decoder, replace(LLAMA, positions=AlibiBias()), "no GPT-2: "),
        (Decoder, replace(GPT2, norm_place="post"), "no GPT-2: norm_place"),
        (EncoderDecoder, replace(BART, norm_eps=1e-3), "no BART: norm_eps must be 1e-05"),
        (EncoderDecoder, replace(BART, tied=False), "no BART: tied"),
        (EncoderDecoder, replace(MT5, activation="geglu"), "no T5: activation"),
        (EncoderDecoder, replace(T5, tied=False), "no T5: logit_scale"),
        (TwoStream, replace(XLNET, segments=0), "no XLNet: segments must be 2"),
        (TwoStream, replace(XLNET, head_dim=5), "no XLNet: head_dim must be 8 there, and is 5"),
        (Encoder, replace(BERT, kv_heads=1), "no BERT: kv_heads must be 3 there, and is 1"),
    ],
)
def test_a_form_that_the_family_does_not_have_is_named(
    kind: Any, config: TransformerConfig, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        save_pretrained(kind(config), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("setting", ["context", "head_width", "key_value_heads", "norm"])
def test_a_refusal_names_an_option_that_exists(setting: str) -> None:
    with pytest.raises(ValueError, match=r"no X: (\w+) must be") as refused:
        require("X", BERT, {setting: [None]})
    found = re.search(r"no X: (\w+) must be", str(refused.value))
    assert found is not None
    assert found.group(1) in {field.name for field in fields(TransformerConfig)}


@pytest.mark.parametrize("case", ["t5", "xlnet"])
def test_the_context_is_kept_where_the_family_has_no_word_for_it(case: str, tmp_path: Path) -> None:
    kind, config, name = CASES[case]
    model = fill(kind(replace(config, context=17)))
    save_pretrained(model, tmp_path)
    assert load_pretrained(tmp_path).model.config.context == 17
    # Theirs takes the configuration as it is, and a file without the word has no limit.
    assert getattr(transformers, name).from_pretrained(tmp_path).config is not None
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw.pop("companion_context") == 17
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert load_pretrained(tmp_path).model.config.context == 2**20


class Unwritable:
    """A tokenizer that cannot be written."""

    def to_str(self, *, pretty: bool) -> str:
        raise ValueError("no words")

    def id_to_token(self, number: int) -> str:
        return str(number)


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "new"
    with torch.device("meta"):
        empty = Decoder(LLAMA)
    bad: Any = Unwritable()
    for model, more, said in (
        (empty, {}, "is on the meta device"),
        (built("llama"), {"shard_bytes": 0}, "shard_bytes must be 1 or more, got 0"),
        (TextDecoder(built("llama"), bad, start=1), {}, "no words"),
    ):
        with pytest.raises(ValueError, match=said):
            save_pretrained(model, target, **more)
        assert not any(tmp_path.iterdir()), said


def test_a_failed_save_keeps_what_was_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(built("llama"), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(_storage, "write_tensors", full)
    with pytest.raises(OSError, match="No space"):
        save_pretrained(fill(Decoder(replace(LLAMA, layers=3))), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_parts_that_the_family_does_not_have_are_named(tmp_path: Path) -> None:
    model = built("llama")
    model.blocks[0].attention.extra = nn.Linear(3, 5)
    with pytest.raises(ValueError, match=r"a Llama has nothing at .*extra', this model a Linear"):
        save_pretrained(model, tmp_path)
    model = built("llama")
    model.blocks[0].extra = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"1 tensors .* have no place in a Llama.*extra"):
        save_pretrained(model, tmp_path)

    class Reversed(MultiHeadAttention):
        """The same parameters, another computation."""

    def factory(config: TransformerConfig, layer: int) -> nn.Module:
        return Reversed(24, 6, kv_heads=2, head_dim=10, bias=False)

    other = Decoder(LLAMA, attention=factory)
    with pytest.raises(ValueError, match=r"MultiHeadAttention at .*, this model a Reversed"):
        save_pretrained(other, tmp_path)
    model = built("llama")
    model.head.weight = nn.Parameter(model.head.weight + 1)
    with pytest.raises(ValueError, match=r"a Llama ties 'head.weight' to 'tokens.weight'"):
        save_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match="a Linear belongs to no family"):
        save_pretrained(nn.Linear(2, 3), tmp_path)


def test_the_top_of_the_library_offers_the_models() -> None:
    for name in ("generate", "load_pretrained", "minilm", "save_pretrained", "smollm2"):
        assert getattr(companion, name) is getattr(companion.models, name)
        assert name in dir(companion)
        assert name in companion.__all__
