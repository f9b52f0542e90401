"""Text models write what transformers writes, score what it scores, and stream the same text."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from companion.core import generator
from companion.models import (
    TextDecoder,
    TextEncoder,
    TextEncoderDecoder,
    TextTwoStream,
    load_pretrained,
    sample,
    smollm2,
)
from companion.transformer.block import Decoder, Encoder, TransformerConfig

V = 53


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def words(*ends: int) -> Tokenizer:
    made = Tokenizer(models.WordLevel({f"w{k}": k for k in range(V)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        tokens = [(f"w{k}", k) for k in ends]
        made.post_processor = processors.TemplateProcessing(
            single=" ".join(["$A", *(name for name, _ in tokens)]), special_tokens=tokens
        )
    return made


def saved(kind: str, folder: Path) -> Any:
    torch.manual_seed(5)
    if kind == "bart":
        config = transformers.BartConfig(
            vocab_size=V,
            max_position_embeddings=41,
            d_model=24,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=3,
            decoder_attention_heads=3,
            encoder_ffn_dim=37,
            decoder_ffn_dim=37,
            init_std=0.5,
        )
        model = transformers.BartForConditionalGeneration(config).eval()
        model.generation_config.forced_bos_token_id = 0
        model.generation_config.forced_eos_token_id = None
    elif kind == "t5":
        config = transformers.T5Config(
            vocab_size=V,
            d_model=24,
            d_kv=5,
            d_ff=37,
            num_layers=2,
            num_heads=3,
            decoder_start_token_id=0,
        )
        model = transformers.T5ForConditionalGeneration(config).eval()
    else:
        config = transformers.XLNetConfig(
            vocab_size=V, d_model=24, n_layer=2, n_head=3, d_inner=37, initializer_range=0.3
        )
        model = transformers.XLNetLMHeadModel(config).eval()
    model.save_pretrained(folder)
    words(2 if kind == "bart" else 1).save(str(folder / "tokenizer.json"))
    return model


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_an_encoder_decoder_writes_what_transformers_writes(kind: str, tmp_path: Path) -> None:
    theirs = saved(kind, tmp_path)
    ours = load_pretrained(tmp_path)
    assert isinstance(ours, TextEncoderDecoder)
    assert ours.start == ((2, 0) if kind == "bart" else (0,))
    sources = ["w3 w4 w5 w6 w7", "w11 w12 w13"]
    longest = 6
    end, pad = (2, 1) if kind == "bart" else (1, 0)
    rows = [[*(int(w[1:]) for w in text.split()), end] for text in sources]
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    written = theirs.generate(ids, attention_mask=real, max_new_tokens=13, do_sample=False)
    skip = len(ours.start)
    for text, source, row in zip(
        ours.write_texts(sources, tokens=13 + 1 - skip), sources, written.tolist(), strict=True
    ):
        new = row[skip:]
        new = new[: new.index(end)] if end in new else new
        assert text == " ".join(f"w{token}" for token in new)
        pieces: list[str] = []
        alone = ours.write_text(source, tokens=13 + 1 - skip, stream=pieces.append)
        assert alone == text == "".join(pieces)
    scores = ours.nats(sources[0], "w8 w9")
    labels = torch.tensor([[8, 9, end]])
    loss = theirs(input_ids=torch.tensor([rows[0]]), labels=labels).loss
    torch.testing.assert_close(scores.mean(), loss.detach(), rtol=1e-5, atol=1e-5)


def test_xlnet_scores_from_left_to_right_as_transformers_does(tmp_path: Path) -> None:
    theirs = saved("xlnet", tmp_path)
    ours = load_pretrained(tmp_path)
    assert isinstance(ours, TextTwoStream)
    ids, real = ours.tokenize(["w3 w4 w5 w6", "w7"])
    assert ids.tolist() == [[3, 4, 5, 6, 1], [7, 1, 0, 0, 0]]
    assert real.sum(1).tolist() == [5, 2]
    scores = ours.nats("w3 w4 w5 w6")
    n = 5
    perm = torch.ones(n, n).triu()[None]  # 1 where a token may not be read
    logits = theirs(ids[:1], perm_mask=perm, target_mapping=torch.eye(n)[None]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits, ids[0], reduction="none").detach()
    # Where nothing may be read, the published code reads everything: the first token differs.
    torch.testing.assert_close(scores[1:], expected[1:], rtol=1e-5, atol=1e-5)


def test_a_stream_gives_whole_characters_and_the_same_text() -> None:
    torch.manual_seed(3)
    config = TransformerConfig(vocab=256, dim=12, layers=1, heads=3, ff_dim=13, context=99)
    letters = pre_tokenizers.ByteLevel.alphabet()
    made = Tokenizer(models.BPE({letter: k for k, letter in enumerate(sorted(letters))}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    target = made.encode(" na\u00efve \u4f60\u597d!").ids

    def dictate(logits: torch.Tensor, history: Any) -> torch.Tensor:
        return torch.tensor([target[history.written.shape[1]]])

    text = TextDecoder(Decoder(config), made)
    pieces: list[str] = []
    said = text.continue_text("a", tokens=len(target), pick=dictate, stream=pieces.append)
    assert said == " na\u00efve \u4f60\u597d!"
    assert "".join(pieces) == said
    assert len(pieces) == len(said)  # each character as soon as its last byte is there


def test_a_pick_reaches_the_text() -> None:
    text = smollm2()
    pick = sample(generator=generator(0), temperature=5.0)
    wild = text.continue_text("Once upon a time", tokens=5, pick=pick)
    assert wild != text.continue_text("Once upon a time", tokens=5)
    pieces: list[str] = []
    answer = text.chat("What is the capital of France?", tokens=12, stream=pieces.append)
    assert "".join(pieces).strip() == answer == "The capital of France is Paris."


def test_two_loads_share_no_parameter() -> None:
    one, other = smollm2().model, smollm2().model
    with torch.no_grad():
        before = other.tokens.weight[0, 0].clone()
        one.tokens.weight.zero_()
    assert torch.equal(other.tokens.weight[0, 0], before)
    assert one.head.weight is one.tokens.weight


def test_without_a_tokenizer_the_text_models_say_so() -> None:
    config = TransformerConfig(vocab=7, dim=12, layers=1, heads=3, ff_dim=13, context=9)
    with pytest.raises(ValueError, match=r"without a tokenizer\.json"):
        TextDecoder(Decoder(config)).nats("a")
    with pytest.raises(ValueError, match=r"without a tokenizer\.json"):
        TextEncoder(Encoder(config)).embed(["a"])
