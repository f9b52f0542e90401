"""The two real models, and models to train, against transformers with the same weights."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks._pair import Pair, Side, close
from companion import data
from companion.transformer.block import (
    Decoder,
    Rope,
    TransformerConfig,
    greedy,
    minilm,
    smollm2,
)

WRITTEN = 48
NEEDS = ["transformers"]
SMALL: dict[str, int] = {
    "vocab": 8192,
    "dim": 256,
    "layers": 4,
    "heads": 8,
    "ff_dim": 688,
    "context": 256,
}


def _quiet() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _sentences() -> list[str]:
    return [line for line in data.shakespeare().split("\n") if len(line) > 20][:64]


def _encode_ours(device: torch.device) -> Side:
    encoder = minilm(device=device)
    ids, real = encoder.tokenize(_sentences())

    def run() -> Tensor:
        with torch.inference_mode():
            return encoder.model(ids, real=real)[real]

    return run


def _encode_theirs(device: torch.device) -> Side:
    transformers = _quiet()
    ids, real = minilm(device=device).tokenize(_sentences())
    model = transformers.BertModel.from_pretrained(
        data.minilm().path, dtype=torch.float32, attn_implementation="sdpa"
    )
    model = model.eval().to(device)
    mask = real.long()

    def run() -> Tensor:
        with torch.inference_mode():
            hidden: Tensor = model(ids, attention_mask=mask).last_hidden_state
            return hidden[real]

    return run


def _embed_ours(device: torch.device) -> Side:
    encoder, sentences = minilm(device=device), _sentences()
    return lambda: encoder.embed(sentences)


def _embed_theirs(device: torch.device) -> Side:
    run = _encode_theirs(device)
    encoder = minilm(device=device)
    sentences = _sentences()
    _, real = encoder.tokenize(sentences)
    row = torch.arange(len(sentences), device=device)[:, None].expand_as(real)[real]

    def embed() -> Tensor:
        encoder.tokenize(sentences)
        hidden = run()
        total = torch.zeros(len(sentences), hidden.shape[1], device=device)
        return torch.nn.functional.normalize(total.index_add(0, row, hidden), dim=-1)

    return embed


def _their_llama(config: TransformerConfig, **options: Any) -> Any:
    transformers = _quiet()
    base = config.positions.base if isinstance(config.positions, Rope) else 10000.0
    made = transformers.LlamaConfig(
        vocab_size=config.vocab,
        hidden_size=config.dim,
        intermediate_size=config.ff_dim,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.key_value_heads,
        max_position_embeddings=config.context,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": base},
        tie_word_embeddings=config.tied,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=2,
        attn_implementation="sdpa",
    )
    return transformers.LlamaForCausalLM(made)


def _their_weights(model: Decoder) -> dict[str, Tensor]:
    """Our decoder's weights under their names."""
    config = model.config
    width = config.head_width
    queries, keys = config.heads * width, config.key_value_heads * width
    named = {"model.embed_tokens.weight": model.tokens.weight, "lm_head.weight": model.head.weight}
    for index, block in enumerate(model.blocks):
        there = f"model.layers.{index}"
        parts = block.attention.qkv.weight.split([queries, keys, keys])
        for name, part in zip("qkv", parts, strict=True):
            named[f"{there}.self_attn.{name}_proj.weight"] = part
        gate, up = block.feed_forward.gate_up.weight.chunk(2)
        named |= {
            f"{there}.self_attn.o_proj.weight": block.attention.out.weight,
            f"{there}.mlp.gate_proj.weight": gate,
            f"{there}.mlp.up_proj.weight": up,
            f"{there}.mlp.down_proj.weight": block.feed_forward.down.weight,
            f"{there}.input_layernorm.weight": block.attention_norm.weight,
            f"{there}.post_attention_layernorm.weight": block.feed_forward_norm.weight,
        }
    named["model.norm.weight"] = model.final_norm.weight
    return {name: tensor.detach() for name, tensor in named.items()}


def _their_smollm2(device: torch.device) -> Any:
    ours = smollm2().model
    theirs = _their_llama(ours.config)
    theirs.load_state_dict(_their_weights(ours))
    return theirs.eval().to(device)


def _long(device: torch.device) -> Tensor:
    ids = smollm2().tokenizer.encode(data.shakespeare()[20000:24000]).ids[:512]
    return torch.tensor([ids], device=device)


def _prompt(device: torch.device) -> Tensor:
    ids = data.smollm2().tokenizer.encode("The history of Paris begins").ids
    return torch.tensor([ids], device=device)


def _prefill_ours(device: torch.device) -> Side:
    model, ids = smollm2(device=device).model, _long(device)

    def run() -> Tensor:
        with torch.inference_mode():
            return model(ids)

    return run


def _prefill_theirs(device: torch.device) -> Side:
    model, ids = _their_smollm2(device), _long(device)

    def run() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(ids, use_cache=False).logits
            return logits

    return run


def _decode_ours(device: torch.device) -> Side:
    model, ids = smollm2(device=device).model, _prompt(device)
    return lambda: greedy(model, ids, tokens=WRITTEN)


def _decode_theirs(device: torch.device) -> Side:
    model, ids = _their_smollm2(device), _prompt(device)
    mask = torch.ones_like(ids)

    def run() -> Tensor:
        written: Tensor = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=WRITTEN,
            min_new_tokens=WRITTEN,
            do_sample=False,
        )
        return written[:, ids.shape[1] :]

    return run


def _products(device: torch.device) -> Side:
    """The matrix-vector products of decoding, and nothing else."""
    model = smollm2(device=device).model
    weights = [p.detach() for p in model.parameters() if p.ndim == 2]
    g = torch.Generator().manual_seed(0)
    rows = {w.shape[1]: torch.randn(1, 1, w.shape[1], generator=g).to(device) for w in weights}

    def run() -> None:
        with torch.inference_mode():
            for _ in range(WRITTEN):
                for weight in weights:
                    torch.nn.functional.linear(rows[weight.shape[1]], weight)

    return run


def _batch(device: torch.device) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, SMALL["vocab"], (4, SMALL["context"]), generator=g).to(device)


def _small() -> Decoder:
    torch.manual_seed(0)
    return Decoder(
        TransformerConfig(
            **SMALL, norm="rms", activation="swiglu", attention_bias=False, ff_bias=False
        )
    )


def _training_ours(device: torch.device) -> Side:
    model, ids = _small().to(device), _batch(device)

    def run() -> list[Tensor]:
        model.zero_grad()
        logits = model(ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        assert model.tokens.weight.grad is not None
        return [loss.detach(), model.tokens.weight.grad]

    return run


def _training_theirs(device: torch.device) -> Side:
    ours, ids = _small(), _batch(device)
    model = _their_llama(ours.config)
    model.load_state_dict(_their_weights(ours))
    model = model.train().to(device)

    def run() -> list[Tensor]:
        model.zero_grad()
        logits = model(ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        return [loss.detach(), model.model.embed_tokens.weight.grad]

    return run


def _any(ours: Any, theirs: Any) -> None:
    """The two sides of a bound do not have the same result."""


def _equal(ours: Tensor, theirs: Tensor) -> None:
    assert torch.equal(ours.cpu(), theirs.cpu()), "the two write different tokens"


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    peer = "transformers, SDPA, same weights"
    yield Pair(
        name="model/encode",
        task="MiniLM, 64 sentences, one padded batch",
        peer=peer,
        needs=NEEDS,
        ours=_encode_ours,
        theirs=_encode_theirs,
        same=close(1e-4),
        speed=1.0,
        rounds=5,
    )
    yield Pair(
        name="model/embed",
        task="MiniLM, 64 sentences from text to vectors",
        peer=peer,
        needs=NEEDS,
        ours=_embed_ours,
        theirs=_embed_theirs,
        same=close(1e-4),
        speed=1.0,
        note="Ours batches sentences of like length, so that less is padded.",
    )
    yield Pair(
        name="model/prefill",
        task="SmolLM2, logits of 512 tokens",
        peer=peer,
        needs=NEEDS,
        ours=_prefill_ours,
        theirs=_prefill_theirs,
        same=close(1e-4),
        speed=1.0,
    )
    yield Pair(
        name="model/decode",
        task=f"SmolLM2, {WRITTEN} greedy tokens, float32, one sequence",
        peer="transformers' generate, same weights",
        needs=NEEDS,
        ours=_decode_ours,
        theirs=_decode_theirs,
        same=_equal,
        speed=1.5,
    )
    yield Pair(
        name="model/decode-bound",
        task=f"SmolLM2, {WRITTEN} greedy tokens, float32, one sequence",
        peer="the matrix-vector products of these tokens alone",
        ours=_decode_ours,
        theirs=_products,
        same=_any,
        speed=0.75,
        note="A bound, not a rival: what reading the weights costs.",
    )
    yield Pair(
        name="model/train",
        task="a Llama of 5 million parameters, one step of 4 x 256 tokens",
        peer=peer,
        needs=NEEDS,
        ours=_training_ours,
        theirs=_training_theirs,
        same=close(1e-4),
        speed=1.0,
    )
