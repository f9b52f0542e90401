"""The two models against published counts, independent loaders, and the order of rotary rows."""

import math
import re
from pathlib import Path

import gguf
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BertModel, LlamaConfig
from transformers import LlamaForCausalLM as Llama
from transformers.initialization import no_init_weights

import companion.data as data
from companion.data._gguf import read_gguf
from companion.data.models import half_split_rows

# Own words, so that no model has seen them.
PARAGRAPH = (
    "The ferry leaves the old harbor at seven in the morning and reaches the island before noon. "
    "In winter there are only a few passengers: two teachers, a doctor who visits the village on "
    "Tuesdays, and sometimes a painter with a folding chair. They drink coffee on the lower deck, "
    "talk about the weather, and watch the gulls follow the boat until the town has disappeared."
)


@pytest.fixture(scope="module")
def smollm2() -> data.SmolLM2:
    return data.smollm2()


@pytest.fixture(scope="module")
def minilm() -> data.MiniLM:
    return data.minilm()


def llama(model: data.SmolLM2) -> Llama:
    """The architecture of transformers around the weights."""
    c = model.config
    config = LlamaConfig(
        vocab_size=c.vocab,
        hidden_size=c.dim,
        intermediate_size=c.ff_dim,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        max_position_embeddings=c.context,
        rms_norm_eps=c.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    with no_init_weights():
        net = Llama(config)
    missing, unexpected = net.load_state_dict(dict(model.weights), strict=False, assign=True)
    assert missing == ["lm_head.weight"]
    assert not unexpected
    net.tie_weights()
    return net.eval()


def loss(net: Llama, ids: list[int]) -> float:
    tokens = torch.tensor([ids])
    with torch.no_grad():
        return float(net(tokens, labels=tokens).loss)


def test_minilm_has_the_published_size(minilm: data.MiniLM) -> None:
    assert len(minilm.weights) == 103
    assert sum(weight.numel() for weight in minilm.weights.values()) == 22_713_216
    assert all(weight.dtype == torch.float32 for weight in minilm.weights.values())
    assert repr(minilm).startswith("MiniLM(22,713,216 parameters")


def test_minilm_config_fits_the_weights(minilm: data.MiniLM) -> None:
    c, weights = minilm.config, minilm.weights
    assert weights["embeddings.word_embeddings.weight"].shape == (c.vocab, c.dim)
    assert weights["embeddings.position_embeddings.weight"].shape == (c.positions, c.dim)
    assert weights["encoder.layer.0.intermediate.dense.weight"].shape == (c.ff_dim, c.dim)
    assert f"encoder.layer.{c.layers - 1}.output.dense.weight" in weights
    assert f"encoder.layer.{c.layers}.output.dense.weight" not in weights
    assert (c.layers, c.dim, c.heads, c.norm_eps) == (6, 384, 12, 1e-12)


def test_minilm_weights_are_those_that_transformers_loads(minilm: data.MiniLM) -> None:
    reference = BertModel.from_pretrained(minilm.path).state_dict()
    for name, weight in minilm.weights.items():
        torch.testing.assert_close(weight, reference[name], rtol=0, atol=0)


def test_minilm_tokenizer_neither_pads_nor_truncates(minilm: data.MiniLM) -> None:
    short = minilm.tokenizer.encode("Hello world")
    assert short.tokens == ["[CLS]", "hello", "world", "[SEP]"]
    assert len(minilm.tokenizer.encode("word " * 301).ids) == 301 + 2
    lengths = [len(e.ids) for e in minilm.tokenizer.encode_batch(["one", "one two three"])]
    assert lengths == [3, 5]


def test_smollm2_has_the_published_size(smollm2: data.SmolLM2) -> None:
    assert len(smollm2.weights) == 272
    assert sum(weight.numel() for weight in smollm2.weights.values()) == 134_515_008
    assert all(weight.dtype == torch.float32 for weight in smollm2.weights.values())
    assert all(bool(weight.isfinite().all()) for weight in smollm2.weights.values())
    assert repr(smollm2).startswith("SmolLM2(134,515,008 parameters")


def test_smollm2_config_is_the_published_one(smollm2: data.SmolLM2) -> None:
    assert smollm2.config == data.SmolLM2Config(
        layers=30,
        dim=576,
        ff_dim=1536,
        heads=9,
        kv_heads=3,
        head_dim=64,
        vocab=49152,
        context=8192,
        rope_base=100_000.0,
        norm_eps=1e-5,
    )
    weights, c = smollm2.weights, smollm2.config
    assert weights["model.embed_tokens.weight"].shape == (c.vocab, c.dim)
    assert weights["model.layers.0.self_attn.q_proj.weight"].shape == (c.heads * c.head_dim, c.dim)
    assert weights["model.layers.29.self_attn.k_proj.weight"].shape == (
        c.kv_heads * c.head_dim,
        c.dim,
    )


def test_the_blocks_of_smollm2_expand_to_its_weights(smollm2: data.SmolLM2) -> None:
    blocks = data.smollm2_blocks()
    matrices = {name for name in smollm2.weights if name.endswith("_proj.weight")}
    assert set(blocks) == matrices
    assert len(matrices) == 7 * 30
    for name in ("q", "k", "v", "o"):  # rows of queries and keys are put in another order
        name = f"model.layers.17.self_attn.{name}_proj.weight"
        rows, columns = smollm2.weights[name].shape
        assert blocks[name].dtype == torch.uint8
        assert blocks[name].shape == (rows, columns // 32 * 20)
        made = gguf.dequantize(blocks[name].numpy(), gguf.GGMLQuantizationType.Q4_1)
        assert torch.equal(torch.from_numpy(made), smollm2.weights[name])
    with pytest.raises(data.MissingDataError, match="nowhere"):
        data.smollm2_blocks(directory="nowhere")


@pytest.mark.slow
def test_gguf_header_is_read_as_the_reference_reader_reads_it(
    smollm2: data.SmolLM2, tmp_path: Path
) -> None:
    reference = gguf.GGUFReader(smollm2.path)
    metadata, stored = read_gguf(smollm2.path)
    for key, value in metadata.items():
        assert value == reference.fields[key].contents()
    assert len(metadata) + 3 == len(reference.fields)  # which counts the header's three numbers
    assert len(stored) == len(reference.tensors) == 272
    for mine, theirs in zip(stored, reference.tensors, strict=True):
        assert mine.name == theirs.name
        assert mine.shape == tuple(reversed(theirs.shape.tolist()))
        assert mine.kind == theirs.tensor_type
        assert mine.data.tobytes() == theirs.data.tobytes()
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGML" + smollm2.path.read_bytes()[4:100])
    with pytest.raises(ValueError, match="begins with b'GGML', version 3: not GGUF version 3"):
        read_gguf(other)


def test_smollm2_tokenizer_inverts_and_splits_digits(smollm2: data.SmolLM2) -> None:
    tokenizer = smollm2.tokenizer
    for text in (PARAGRAPH, "π ≈ 3.14159", "大语言模型", "  two  spaces\n\ttab", "naïve café 🐶"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert [tokenizer.decode([i]) for i in tokenizer.encode("2026").ids] == list("2026")
    assert tokenizer.encode("<|im_start|>user").ids[0] == 1
    assert tokenizer.get_vocab_size() == smollm2.config.vocab
    assert "<|im_start|>" in smollm2.chat_template


def rotate(x: Tensor, angles: Tensor, *, interleaved: bool) -> Tensor:
    """Rotary positions by definition: turn each pair of components by its angle."""
    half = x.shape[-1] // 2
    out = torch.empty_like(x)
    for j in range(half):
        a, b = (2 * j, 2 * j + 1) if interleaved else (j, j + half)
        cos, sin = angles[:, j].cos(), angles[:, j].sin()
        out[:, a] = x[:, a] * cos - x[:, b] * sin
        out[:, b] = x[:, a] * sin + x[:, b] * cos
    return out


def test_reordered_rows_give_the_same_scores_under_the_other_rotation(g: torch.Generator) -> None:
    tokens, columns, head_dim = 5, 7, 6
    x = torch.randn(tokens, columns, generator=g, dtype=torch.float64)
    wq = torch.randn(head_dim, columns, generator=g, dtype=torch.float64)
    wk = torch.randn(head_dim, columns, generator=g, dtype=torch.float64)
    angles = torch.arange(tokens)[:, None] * torch.tensor([1.0, 0.3, 0.09], dtype=torch.float64)

    def scores(wq: Tensor, wk: Tensor, *, interleaved: bool) -> Tensor:
        q = rotate(x @ wq.T, angles, interleaved=interleaved)
        k = rotate(x @ wk.T, angles, interleaved=interleaved)
        return q @ k.T

    expected = scores(wq, wk, interleaved=True)
    pq, pk = half_split_rows(wq, heads=1), half_split_rows(wk, heads=1)
    # Sums of 7 and 6 products of size about 1: far below 1e-12 in float64.
    torch.testing.assert_close(scores(pq, pk, interleaved=False), expected, rtol=0, atol=1e-12)
    wrong = scores(wq, wk, interleaved=False)
    assert (wrong - expected).abs().max() > 0.1


def test_half_split_rows_moves_row_2j_plus_s_to_j_plus_half_s_in_each_head() -> None:
    heads, head_dim, columns = 3, 10, 7
    weight = torch.arange(heads * head_dim * columns, dtype=torch.float64)
    weight = weight.reshape(heads * head_dim, columns)
    before = weight.clone()
    moved = half_split_rows(weight, heads=heads)
    for head in range(heads):
        for j in range(head_dim // 2):
            for s in (0, 1):
                to, source = j + s * head_dim // 2, 2 * j + s
                assert torch.equal(moved[head * head_dim + to], weight[head * head_dim + source])
    assert torch.equal(weight, before)
    assert half_split_rows(weight.to("meta"), heads=heads).shape == weight.shape
    with pytest.raises(ValueError, match="30 rows do not split into 4 heads"):
        half_split_rows(weight, heads=4)


def test_smollm2_predicts_english_and_the_stored_row_order_would_not(
    smollm2: data.SmolLM2,
) -> None:
    ids = [0, *smollm2.tokenizer.encode(PARAGRAPH).ids]
    net = llama(smollm2)
    right = loss(net, ids)
    stored: dict[str, Tensor] = {}
    c = smollm2.config
    for name, weight in smollm2.weights.items():
        match = re.search(r"self_attn\.([qk])_proj", name)
        if match:
            heads = c.heads if match[1] == "q" else c.kv_heads
            # The inverse of half_split_rows: back to the order in which GGUF stores them.
            halves = weight.reshape(heads, 2, c.head_dim // 2, c.dim)
            stored[name] = halves.transpose(1, 2).reshape(weight.shape)
            assert torch.equal(half_split_rows(stored[name], heads=heads), weight)
    assert len(stored) == 2 * c.layers
    net.load_state_dict(stored, strict=False, assign=True)
    wrong = loss(net, ids)
    assert right < 4.2  # perplexity 67; uniform guessing has a loss of ln 49152 = 10.8
    assert wrong > right + math.log(1.5)


@pytest.mark.slow
def test_smollm2_equals_what_transformers_reads_from_the_same_file(
    smollm2: data.SmolLM2,
) -> None:
    folder, file = smollm2.path.parent, smollm2.path.name
    reference = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file).state_dict()
    for name, weight in smollm2.weights.items():
        # Both dequantize scale * code + minimum in float32; allow one rounding.
        torch.testing.assert_close(weight, reference[name].float(), rtol=1e-6, atol=1e-7)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    for text in (PARAGRAPH, "In 2026, π ≈ 3.14159!", "大语言模型 \n\n\t<|im_end|> it's"):
        assert smollm2.tokenizer.encode(text).ids == tokenizer(text)["input_ids"]
    assert smollm2.chat_template == tokenizer.chat_template
