"""BART."""

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
from companion.transformer.block import EncoderDecoder, Learned, TransformerConfig

__all__ = ["BART"]


def _configure(
    raw: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path
) -> TransformerConfig:
    for part in ("layers", "attention_heads", "ffn_dim"):
        ours, theirs = raw[f"encoder_{part}"], raw[f"decoder_{part}"]
        if ours != theirs:
            raise ValueError(
                f"{folder}: encoder_{part} {ours} and decoder_{part} {theirs} differ, "
                "which is not supported"
            )
    if raw.get("scale_embedding"):
        raise ValueError(f"{folder}: scale_embedding is not supported")
    for name in ("add_final_layer_norm", "normalize_before", "add_bias_logits"):
        if raw.get(name):
            raise ValueError(f"{folder}: {name} is not supported")
    bias = tensors.get("final_logits_bias")
    if bias is not None and bool((bias != 0).any()):
        raise ValueError(f"{folder}: final_logits_bias is not zero, which is not supported")
    return TransformerConfig(
        vocab=raw["vocab_size"],
        dim=raw["d_model"],
        layers=raw["encoder_layers"],
        heads=raw["encoder_attention_heads"],
        ff_dim=raw["encoder_ffn_dim"],
        context=raw["max_position_embeddings"],
        norm_place="post",
        norm_eps=1e-5,
        activation=activation(raw["activation_function"], folder),
        # The table has two rows ahead, which are never read.
        positions=Learned(offset=2),
        embedding_norm=True,
    )


def _describe(config: TransformerConfig) -> dict[str, Any]:
    require(
        "BART",
        config,
        {
            "norm": ["layer"],
            "norm_place": ["post"],
            "norm_eps": [1e-5],
            "activation": ["gelu", "gelu_tanh", "relu", "silu"],
            "positions": [Learned(offset=2)],
            "embedding_norm": [True],
            "attention_bias": [True],
            "ff_bias": [True],
            "key_value_heads": [config.heads],
            "head_width": [config.dim // config.heads],
            "attention_scale": [None],
            "logit_scale": [1.0],
            "segments": [0],
            "tied": [True],
        },
    )
    sizes = {
        f"{side}_{part}": value
        for side in ("encoder", "decoder")
        for part, value in (
            ("layers", config.layers),
            ("attention_heads", config.heads),
            ("ffn_dim", config.ff_dim),
        )
    }
    return {
        "architectures": ["BartForConditionalGeneration"],
        "model_type": "bart",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab,
        "d_model": config.dim,
        **sizes,
        "max_position_embeddings": config.context,
        "activation_function": their_name(config.activation),
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": 0.0,
    }


def _entries(config: TransformerConfig) -> list[Entry]:
    d, ff = config.dim, config.ff_dim
    sides = ("encoder", "decoder")
    also = ("lm_head.weight", *(f"model.{side}.embed_tokens.weight" for side in sides))
    tokens = Piece("model.shared.weight", (config.vocab, d), also)
    names = ("encoder.tokens.weight", "decoder.tokens.weight", "decoder.head.weight")
    entries = [Entry(names, (tokens,))]
    for side in sides:
        places = Piece(f"model.{side}.embed_positions.weight", (config.context + 2, d))
        entries.append(Entry((f"{side}.positions.weight",), (places,)))
        entries += norm(f"{side}.embedding_norm", f"model.{side}.layernorm_embedding", d)
        kinds = {"attention": "self_attn"}
        if side == "decoder":
            kinds["cross"] = "encoder_attn"
        for index in range(config.layers):
            ours, theirs = f"{side}.blocks.{index}", f"model.{side}.layers.{index}"
            for mine, its in kinds.items():
                qkv = {f"{theirs}.{its}.{name}_proj": d for name in "qkv"}
                entries += linear(f"{ours}.{mine}.qkv", qkv, 3 * d, d)
                entries += linear(f"{ours}.{mine}.out", f"{theirs}.{its}.out_proj", d, d)
                entries += norm(f"{ours}.{mine}_norm", f"{theirs}.{its}_layer_norm", d)
            entries += linear(f"{ours}.feed_forward.up", f"{theirs}.fc1", ff, d)
            entries += linear(f"{ours}.feed_forward.down", f"{theirs}.fc2", d, ff)
            entries += norm(f"{ours}.feed_forward_norm", f"{theirs}.final_layer_norm", d)
    return entries


BART = Codec(
    name="BART",
    types=("bart",),
    build=EncoderDecoder,
    configure=_configure,
    entries=_entries,
    describe=_describe,
    prefix="model.",
    ignored=("final_logits_bias", "classification_head.", "qa_outputs."),
)
