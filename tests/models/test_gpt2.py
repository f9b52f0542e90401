"""Checkpoints of GPT-2 architecture: the same numbers, losses and gradients as `transformers`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from companion.models import TextDecoder, generate, load_pretrained
from companion.transformer.block import Decoder

VOCAB = 29
# Double precision has 53 bits; a few layers with sums of some dozen terms lose a handful of them.
EXACT = {"rtol": 1e-10, "atol": 1e-10}
SINGLE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def saved(folder: Path, **options: Any) -> Any:
    torch.manual_seed(7)
    config = transformers.GPT2Config(
        **{
            "vocab_size": VOCAB,
            "n_embd": 24,
            "n_layer": 3,
            "n_head": 6,
            "n_positions": 41,
            "initializer_range": 0.3,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **options,
        }
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        if ".ln_" in name or name.endswith("bias"):  # away from one and zero, so that they count
            torch.nn.init.normal_(parameter, 0.7, 0.3)
    model.save_pretrained(folder)
    words = {f"w{index}": index for index in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


def some_ids(n: int = 31) -> Tensor:
    return torch.randint(0, VOCAB, (2, n), generator=torch.Generator().manual_seed(1))


def loaded(folder: Path, dtype: torch.dtype = torch.float64) -> Decoder:
    text = load_pretrained(folder, dtype=dtype)
    assert isinstance(text, TextDecoder)
    return text.model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_inner": 37},
        {"tie_word_embeddings": False},
        {"activation_function": "gelu"},
        {"activation_function": "relu", "layer_norm_epsilon": 1e-3},
        {"n_head": 4, "n_layer": 2},
    ],
)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, EXACT), (torch.float32, SINGLE)])
def test_logits_loss_and_gradients_equal_those_of_transformers(
    tmp_path: Path, options: dict[str, Any], dtype: torch.dtype, close: dict[str, float]
) -> None:
    theirs = saved(tmp_path, **options).to(dtype)
    ours = loaded(tmp_path, dtype)
    ids = some_ids()
    its = theirs(ids, labels=ids)
    logits = ours(ids)
    torch.testing.assert_close(logits, its.logits, **close)
    loss, its_loss = (
        torch.nn.functional.cross_entropy(z[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        for z in (logits, its.logits)
    )
    torch.testing.assert_close(loss, its_loss, **close)
    torch.testing.assert_close(loss.float(), its.loss, **SINGLE)  # theirs is always float32
    loss.backward()
    its_loss.backward()
    own = dict(ours.named_parameters())
    block, its_block = own, theirs.transformer.h[1]
    for name, other in (
        ("attention.qkv", its_block.attn.c_attn),
        ("attention.out", its_block.attn.c_proj),
        ("feed_forward.up", its_block.mlp.c_fc),
        ("feed_forward.down", its_block.mlp.c_proj),
    ):
        torch.testing.assert_close(
            block[f"blocks.1.{name}.weight"].grad.T, other.weight.grad, **close
        )
        torch.testing.assert_close(block[f"blocks.1.{name}.bias"].grad, other.bias.grad, **close)
    for name, other in (
        ("tokens.weight", theirs.transformer.wte),
        ("positions.weight", theirs.transformer.wpe),
        ("final_norm.weight", theirs.transformer.ln_f),
    ):
        torch.testing.assert_close(own[name].grad, other.weight.grad, **close)


def test_left_padded_prompts_are_continued_as_by_transformers(tmp_path: Path) -> None:
    theirs = saved(tmp_path).double()
    ours = loaded(tmp_path)
    ids = some_ids(11)
    real = torch.ones_like(ids, dtype=torch.bool)
    real[0, :4] = False
    its = theirs.generate(
        ids,
        attention_mask=real.long(),
        max_new_tokens=13,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert torch.equal(generate(ours, ids, tokens=13, real=real), its[:, 11:])


def test_a_tied_table_is_one_parameter_and_a_start_token_is_known(tmp_path: Path) -> None:
    saved(tmp_path)
    text = load_pretrained(tmp_path)
    assert isinstance(text, TextDecoder)
    assert text.model.head.weight is text.model.tokens.weight
    assert text.start == 1
    assert text.stop == (2,)
    assert text.nats("w3 w4").shape == (2,)


def test_older_files_with_masks_and_without_the_prefix_load(tmp_path: Path) -> None:
    theirs = saved(tmp_path).double()
    path = tmp_path / "model.safetensors"
    tensors = {
        name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()
    }
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 41, 41)
    tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, path)
    torch.testing.assert_close(
        loaded(tmp_path)(some_ids()), theirs(some_ids()).logits, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ({"scale_attn_weights": False}, "scale_attn_weights = False"),
        ({"add_cross_attention": True}, "add_cross_attention = True"),
        ({"activation_function": "mish"}, "activation 'mish'"),
        ({"n_layer": None}, "n_layer"),
    ],
)
def test_unsupported_options_are_refused_by_name(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    saved(tmp_path)
    path = tmp_path / "config.json"
    raw = {**json.loads(path.read_text()), **options}
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path)


def test_altered_tensors_are_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    name = "transformer.h.1.mlp.c_fc.weight"
    tensors = load_file(path)
    save_file({**tensors, name: tensors[name].T.contiguous()}, path)
    with pytest.raises(ValueError, match=rf"'{name}' must have shape \(24, 96\).* got \(96, 24\)"):
        load_pretrained(tmp_path)
    save_file({**tensors, "lm_head.weight": torch.ones(VOCAB, 24)}, path)
    with pytest.raises(ValueError, match=r"ties 'lm_head.weight' to .*wte.weight', but"):
        load_pretrained(tmp_path)
    save_file({**tensors, "transformer.h.1.ln_3.weight": torch.ones(24)}, path)
    with pytest.raises(ValueError, match=r"no place in this model.*ln_3"):
        load_pretrained(tmp_path)
