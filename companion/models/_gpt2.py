"""GPT-2."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from companion.models._codec import (
    Codec,
    Entry,
    Piece,
    activation,
    linear,
    norm,
    require,
    their_name,
)
from companion.transformer.block import Decoder, Learned, TransformerConfig

__all__ = ["GPT2"]


def _configure(
    raw: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    folder: Path,
) -> TransformerConfig:
    for name, usual in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if raw.get(name, usual) is not usual:
            raise ValueError(f"{folder}: {name} = {raw[name]!r} is not supported")
    return TransformerConfig(
        vocab=raw["vocab_size"],
        dim=raw["n_embd"],
        layers=raw["n_layer"],
        heads=raw["n_head"],
        ff_dim=4 * raw["n_embd"] if raw.get("n_inner") is None else raw["n_inner"],
        context=raw["n_positions"],
        norm_eps=raw["layer_norm_epsilon"],
        activation=activation(raw["activation_function"], folder),
        positions=Learned(),
        tied=raw.get("tie_word_embeddings", True),
    )


def _describe(config: TransformerConfig) -> dict[str, Any]:
    require(
        "GPT-2",
        config,
        {
            "norm": ["layer"],
            "norm_place": ["pre"],
            "activation": ["gelu", "gelu_tanh", "relu", "silu"],
            "positions": [Learned()],
            "embedding_norm": [False],
            "attention_bias": [True],
            "ff_bias": [True],
            "key_value_heads": [config.heads],
            "head_width": [config.dim // config.heads],
            "attention_scale": [None],
            "logit_scale": [1.0],
            "segments": [0],
        },
    )
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab,
        "n_embd": config.dim,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.ff_dim,
        "n_positions": config.context,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": their_name(config.activation),
        "tie_word_embeddings": config.tied,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
    }


def _entries(config: TransformerConfig) -> list[Entry]:
    d, ff = config.dim, config.ff_dim
    table, head = "transformer.wte.weight", "lm_head.weight"
    if config.tied:
        tokens = Piece(table, (config.vocab, d), (head,))
        entries = [Entry(("tokens.weight", "head.weight"), (tokens,))]
    else:
        entries = [
            Entry(("tokens.weight",), (Piece(table, (config.vocab, d)),)),
            Entry(("head.weight",), (Piece(head, (config.vocab, d)),)),
        ]
    places = Piece("transformer.wpe.weight", (config.context, d))
    entries.append(Entry(("positions.weight",), (places,)))
    for index in range(config.layers):
        mine, its = f"blocks.{index}", f"transformer.h.{index}"
        entries += norm(f"{mine}.attention_norm", f"{its}.ln_1", d)
        # These files hold the matrix of Y = X W + b itself, and nn.Linear its transpose.
        entries += linear(f"{mine}.attention.qkv", f"{its}.attn.c_attn", 3 * d, d, turned=True)
        entries += linear(f"{mine}.attention.out", f"{its}.attn.c_proj", d, d, turned=True)
        entries += norm(f"{mine}.feed_forward_norm", f"{its}.ln_2", d)
        entries += linear(f"{mine}.feed_forward.up", f"{its}.mlp.c_fc", ff, d, turned=True)
        entries += linear(f"{mine}.feed_forward.down", f"{its}.mlp.c_proj", d, ff, turned=True)
    return entries + norm("final_norm", "transformer.ln_f", d)


GPT2 = Codec(
    name="GPT-2",
    types=("gpt2",),
    build=Decoder,
    configure=_configure,
    entries=_entries,
    describe=_describe,
    prefix="transformer.",
    ignored=(".attn.bias", ".attn.masked_bias"),  # the causal mask, in older files
)
