"""XLNet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from companion.models._codec import (
    CONTEXT,
    Codec,
    Entry,
    Piece,
    activation,
    linear,
    norm,
    require,
    their_name,
)
from companion.pretraining.denoising import TwoStream
from companion.transformer.block import NoPositions, TransformerConfig

__all__ = ["XLNET"]


def _configure(
    raw: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    folder: Path,
) -> TransformerConfig:
    for name, usual in (("attn_type", "bi"), ("bi_data", False), ("same_length", False)):
        if raw.get(name, usual) != usual:
            raise ValueError(f"{folder}: {name} {raw[name]!r} is not supported")
    if raw.get("clamp_len", -1) > 0:
        raise ValueError(f"{folder}: clamp_len {raw['clamp_len']} is not supported")
    return TransformerConfig(
        vocab=raw["vocab_size"],
        dim=raw["d_model"],
        layers=raw["n_layer"],
        heads=raw["n_head"],
        head_dim=raw.get("d_head") or raw["d_model"] // raw["n_head"],
        ff_dim=raw["d_inner"],
        context=raw.get(CONTEXT, 2**20),  # published files know no limit to a text
        norm_place="post",
        norm_eps=raw.get("layer_norm_eps", 1e-12),
        activation=activation(raw.get("ff_activation", "gelu"), folder),
        positions=NoPositions(),
        attention_bias=False,
        segments=2,
    )


def _describe(config: TransformerConfig) -> dict[str, Any]:
    require(
        "XLNet",
        config,
        {
            "norm": ["layer"],
            "norm_place": ["post"],
            "activation": ["gelu", "gelu_tanh", "relu", "silu"],
            "positions": [NoPositions()],
            "attention_bias": [False],
            "ff_bias": [True],
            "key_value_heads": [config.heads],
            "head_width": [config.dim // config.heads],
            "attention_scale": [None],
            "segments": [2],
            "tied": [True],
        },
    )
    return {
        "architectures": ["XLNetLMHeadModel"],
        "model_type": "xlnet",
        "vocab_size": config.vocab,
        CONTEXT: config.context,
        "d_model": config.dim,
        "n_layer": config.layers,
        "n_head": config.heads,
        "d_head": config.head_width,
        "d_inner": config.ff_dim,
        "layer_norm_eps": config.norm_eps,
        "ff_activation": their_name(config.activation),
        "attn_type": "bi",
        "tie_word_embeddings": True,
        "mem_len": None,
        "dropout": config.dropout,
    }


def _entries(config: TransformerConfig) -> list[Entry]:
    d, ff, heads, width = config.dim, config.ff_dim, config.heads, config.head_width
    tokens = Piece("transformer.word_embedding.weight", (config.vocab, d), ("lm_loss.weight",))
    entries = [
        Entry(("tokens.weight", "head.weight"), (tokens,)),
        Entry(("head.bias",), (Piece("lm_loss.bias", (config.vocab,)),)),
        Entry(("mask",), (Piece("transformer.mask_emb", (1, 1, d)),)),
    ]
    for index in range(config.layers):
        mine, its = f"blocks.{index}", f"transformer.layer.{index}"
        read = f"{its}.rel_attn"
        maps = {name: Piece(f"{read}.{name}", (d, heads, width)) for name in "qkvor"}
        qkv = tuple(maps[name] for name in "qkv")
        vectors = {
            "relative.u": ("r_w_bias", (heads, width)),
            "relative.v": ("r_r_bias", (heads, width)),
            "segment_bias": ("r_s_bias", (heads, width)),
            "segment_keys": ("seg_embed", (2, heads, width)),
        }
        entries += [
            Entry((f"{mine}.attention.projections.qkv.weight",), qkv, turned=True),
            Entry((f"{mine}.attention.projections.out.weight",), (maps["o"],)),
            Entry((f"{mine}.attention.relative.map.weight",), (maps["r"],), turned=True),
            *(
                Entry((f"{mine}.attention.{ours}",), (Piece(f"{read}.{theirs}", shape),))
                for ours, (theirs, shape) in vectors.items()
            ),
        ]
        entries += norm(f"{mine}.attention_norm", f"{read}.layer_norm", d)
        entries += linear(f"{mine}.feed_forward.up", f"{its}.ff.layer_1", ff, d)
        entries += linear(f"{mine}.feed_forward.down", f"{its}.ff.layer_2", d, ff)
        entries += norm(f"{mine}.feed_forward_norm", f"{its}.ff.layer_norm", d)
    return entries


XLNET = Codec(
    name="XLNet",
    types=("xlnet",),
    build=TwoStream,
    configure=_configure,
    entries=_entries,
    describe=_describe,
    prefix="transformer.",
    ignored=("sequence_summary.", "logits_proj.", "qa_outputs."),
)
