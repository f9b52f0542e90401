"""LoRA, prefixes and prompts compute what the library `peft` computes, gradients included."""

from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

from companion.models import load_pretrained
from companion.pretraining.transfer import (
    LoRALinear,
    PromptTuning,
    add_lora,
    add_prefix,
    merge_lora,
)
from companion.transformer.block import Decoder, Encoder

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
VOCAB, DIM, LAYERS, HEADS, KV, RANK = 29, 24, 3, 6, 2, 2
# peft 0.21 asks a property that transformers 5 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def llama(folder: Path) -> tuple[Any, Decoder]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=DIM,
                intermediate_size=37,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                num_key_value_heads=KV,
                max_position_embeddings=64,
                initializer_range=0.3,
                bos_token_id=1,
                eos_token_id=2,
            )
        )
    ours = loaded(theirs, folder)
    theirs.model.rotary_emb = Angles()
    for name, module in list(theirs.named_modules()):
        if name.endswith("norm"):
            module.forward = partial(rms_norm, module)
    return theirs.eval().double(), ours


def rms_norm(module: Any, x: Tensor) -> Tensor:
    return module.weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


class Angles(torch.nn.Module):
    """Llama's angles in float64.

    In transformers the angles, and the norms, are computed in float32 whatever the model's dtype.
    They are replaced here, so that what `peft` adds can be compared to the last digits.
    """

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        width = DIM // HEADS
        rates = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles = position_ids[..., None].double() * rates
        both = torch.cat([angles, angles], -1)
        return both.cos(), both.sin()


def bert(folder: Path) -> tuple[Any, Encoder]:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        theirs = transformers.BertModel(
            transformers.BertConfig(
                vocab_size=VOCAB,
                hidden_size=DIM,
                intermediate_size=37,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                max_position_embeddings=41,
                initializer_range=0.3,
            ),
            add_pooling_layer=False,
        )
    return theirs.eval().double(), loaded(theirs, folder)


def loaded(theirs: Any, folder: Path) -> Any:
    from tokenizers import Tokenizer, models

    theirs.save_pretrained(folder)
    Tokenizer(models.WordLevel({"w": 0}, unk_token="w")).save(str(folder / "tokenizer.json"))
    return load_pretrained(folder, dtype=torch.float64).model


def some_ids(n: int = 11) -> Tensor:
    return torch.randint(0, VOCAB, (2, n), generator=torch.Generator().manual_seed(1))


def with_lora(theirs: Any, targets: list[str], **options: Any) -> Any:
    config = peft.LoraConfig(r=RANK, lora_alpha=5, target_modules=targets, **options)
    model = peft.get_peft_model(theirs, config, autocast_adapter_dtype=False)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for name, p in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(p, 0, 0.3)
    return model


def copy_factors(layer: LoRALinear, modules: list[Any]) -> None:
    """Ours: one pair of factors a block, in the order of the rows; theirs: one a module."""
    with torch.no_grad():
        for block, module in enumerate(modules):
            columns = slice(block * RANK, (block + 1) * RANK)
            layer.A[:, columns] = module.lora_A["default"].weight.T
            layer.B[block].copy_(module.lora_B["default"].weight.T)


def compare(ours: Any, theirs: Any, pairs: list[tuple[LoRALinear, list[Any]]]) -> None:
    """Outputs, gradients of both factors, and merged weights."""
    ids, g = some_ids(), torch.Generator().manual_seed(6)
    for layer, modules in pairs:
        copy_factors(layer, modules)
    made = ours(ids)
    out = theirs(input_ids=ids)
    its = out.logits if hasattr(out, "logits") else out.last_hidden_state
    torch.testing.assert_close(made, its, **CLOSE)
    weight = torch.randn(made.shape, generator=g, dtype=torch.float64)
    (made * weight).sum().backward()
    (its * weight).sum().backward()
    for layer, modules in pairs:
        for block, module in enumerate(modules):
            columns = slice(block * RANK, (block + 1) * RANK)
            for mine, other in (
                (layer.A.grad[:, columns], module.lora_A["default"].weight.grad.T),
                (layer.B[block].grad, module.lora_B["default"].weight.grad.T),
            ):
                assert other.abs().max() > 0.1
                torch.testing.assert_close(mine, other, **CLOSE)
    merge_lora(ours)
    theirs.merge_adapter()
    for layer, modules in pairs:
        for (first, end), module in zip(layer.rows, modules, strict=True):
            # The same products, added in another order.
            torch.testing.assert_close(
                layer.base.weight[first:end], module.base_layer.weight, rtol=1e-12, atol=1e-13
            )
    torch.testing.assert_close(ours(ids), made, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("stabilized", [False, True])
def test_lora_on_llama_equals_peft(tmp_path: Path, stabilized: bool) -> None:
    theirs, ours = llama(tmp_path)
    names = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    theirs = with_lora(theirs, names, use_rslora=stabilized)
    g = torch.Generator().manual_seed(0)
    targets = ["query", "value", "out", "gate", "up", "down"]
    add_lora(ours, targets=targets, rank=RANK, alpha=5.0, generator=g, rank_stabilized=stabilized)
    pairs = []
    layers = theirs.base_model.model.model.layers
    for mine, other in zip(ours.blocks, layers, strict=True):
        a, m = other.self_attn, other.mlp
        pairs += [
            (mine.attention.qkv, [a.q_proj, a.v_proj]),
            (mine.attention.out, [a.o_proj]),
            (mine.feed_forward.gate_up, [m.gate_proj, m.up_proj]),
            (mine.feed_forward.down, [m.down_proj]),
        ]
    assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) == sum(
        p.numel() for p in ours.parameters() if p.requires_grad
    )
    compare(ours, theirs, pairs)


def test_lora_on_bert_equals_peft(tmp_path: Path) -> None:
    theirs, ours = bert(tmp_path)
    theirs = with_lora(theirs, ["query", "key", "value", "attention.output.dense"])
    g = torch.Generator().manual_seed(0)
    add_lora(ours, targets=["query", "key", "value", "out"], rank=RANK, alpha=5.0, generator=g)
    pairs = []
    for mine, other in zip(ours.blocks, theirs.base_model.model.encoder.layer, strict=True):
        a = other.attention
        pairs += [
            (mine.attention.qkv, [a.self.query, a.self.key, a.self.value]),
            (mine.attention.out, [a.output.dense]),
        ]
    compare(ours, theirs, pairs)


def test_lora_draws_its_first_factor_as_peft_does(tmp_path: Path) -> None:
    theirs, ours = bert(tmp_path)
    config = peft.LoraConfig(r=16, target_modules=["query"])
    made = peft.get_peft_model(theirs, config, autocast_adapter_dtype=False)
    a = torch.cat([p.flatten() for n, p in made.named_parameters() if "lora_A" in n]).detach()
    g = torch.Generator().manual_seed(0)
    add_lora(ours, targets=["query"], rank=16, alpha=8.0, generator=g)
    b = torch.cat([block.attention.qkv.A.flatten() for block in ours.blocks]).detach()
    # 1,152 draws: their standard deviation is known to some 1.5 %.
    torch.testing.assert_close(b.std(), a.std(), rtol=0.08, atol=0)
    torch.testing.assert_close(b.abs().max(), a.abs().max(), rtol=0.02, atol=0)


def prefix_of(theirs: Any, kv_heads: int, length: int) -> Tensor:
    """Their table (length, layers * 2 * width) as (layers, 2, kv_heads, length, head_dim)."""
    table = theirs.prompt_encoder["default"].embedding.weight
    with torch.random.fork_rng():
        torch.manual_seed(7)
        torch.nn.init.normal_(table)
    shape = (length, LAYERS, 2, kv_heads, DIM // HEADS)
    return table.detach().view(shape).permute(1, 2, 3, 0, 4)


def copy_prefix(ours: Any, rows: Tensor) -> None:
    with torch.no_grad():
        for block, (keys, values) in zip(ours.blocks, rows, strict=True):
            block.attention.prefix.keys.copy_(keys)
            block.attention.prefix.values.copy_(values)


def gradient_of_prefix(ours: Any) -> Tensor:
    return torch.stack(
        [
            torch.stack([block.attention.prefix.keys.grad, block.attention.prefix.values.grad])
            for block in ours.blocks
        ]
    )


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_prefix_tuning_equals_peft(tmp_path: Path, kind: str) -> None:
    length = 5
    theirs, ours = llama(tmp_path) if kind == "llama" else bert(tmp_path)
    kv_heads = KV if kind == "llama" else HEADS
    task = "CAUSAL_LM" if kind == "llama" else "FEATURE_EXTRACTION"
    theirs = peft.get_peft_model(
        theirs, peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=length)
    )
    theirs = theirs.double().eval()
    add_prefix(ours, length=length, generator=torch.Generator().manual_seed(0))
    copy_prefix(ours, prefix_of(theirs, kv_heads, length))
    ids = some_ids()
    out = theirs(input_ids=ids, attention_mask=torch.ones_like(ids))
    its = out.logits if kind == "llama" else out.last_hidden_state
    # In their models a prefix takes the first positions, as a cache does; in ours it takes none.
    places = torch.arange(ids.shape[1]) + length
    made = ours(ids, positions=places)
    torch.testing.assert_close(made, its, **CLOSE)
    weight = torch.randn(its.shape, generator=torch.Generator().manual_seed(8)).double()
    (made * weight).sum().backward()
    (its * weight).sum().backward()
    table = theirs.prompt_encoder["default"].embedding.weight.grad
    shape = (length, LAYERS, 2, kv_heads, DIM // HEADS)
    expected = table.view(shape).permute(1, 2, 3, 0, 4)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(gradient_of_prefix(ours), expected, **CLOSE)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_prompt_tuning_equals_peft(tmp_path: Path, kind: str) -> None:
    length = 5
    theirs, ours = llama(tmp_path) if kind == "llama" else bert(tmp_path)
    task = "CAUSAL_LM" if kind == "llama" else "FEATURE_EXTRACTION"
    theirs = peft.get_peft_model(
        theirs, peft.PromptTuningConfig(task_type=task, num_virtual_tokens=length)
    )
    theirs = theirs.double().eval()
    table = theirs.prompt_encoder["default"].embedding.weight
    tuned = PromptTuning(ours, length=length, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tuned.prompt.copy_(table)
    ids = some_ids()
    out = theirs(input_ids=ids, attention_mask=torch.ones_like(ids))
    its = (out.logits if kind == "llama" else out.last_hidden_state)[:, length:]
    made = tuned(ids)
    torch.testing.assert_close(made, its, **CLOSE)
    weight = torch.randn(its.shape, generator=torch.Generator().manual_seed(8)).double()
    (made * weight).sum().backward()
    (its * weight).sum().backward()
    assert table.grad.abs().max() > 0.1
    torch.testing.assert_close(tuned.prompt.grad, table.grad, **CLOSE)
