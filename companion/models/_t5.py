"""T5 of 2019, version 1.1, and mT5."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
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
from companion.transformer.block import EncoderDecoder, T5Buckets, TransformerConfig

__all__ = ["T5"]

_GATES = {"relu": "reglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh", "silu": "swiglu"}
_TOKENS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_HEAD = "lm_head.weight"


def _configure(
    raw: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path
) -> TransformerConfig:
    depth = raw.get("num_decoder_layers")
    if depth not in (None, raw["num_layers"]):
        raise ValueError(
            f"{folder}: num_layers {raw['num_layers']} and num_decoder_layers {depth} differ, "
            "which is not supported"
        )
    ties = raw.get("tie_word_embeddings", True) and raw["model_type"] == "t5"
    scaled = raw.get("scale_decoder_outputs", ties) and raw["model_type"] == "t5"
    # Newer files say that the tables are tied and hold two all the same.
    head = tensors.get(_HEAD)
    table = next((tensors[name] for name in _TOKENS if name in tensors), head)
    tied = head is None or (
        table is not None and table.shape == head.shape and torch.equal(head, table)
    )
    if not tied and scaled:
        raise ValueError(f"{folder}: the configuration ties the output layer, but {_HEAD} differs")
    kind = raw.get("feed_forward_proj", "relu")
    # In T5's configurations "gated-gelu" means the tanh approximation.
    plain = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
    name = activation(plain, folder)
    return TransformerConfig(
        vocab=raw["vocab_size"],
        dim=raw["d_model"],
        layers=raw["num_layers"],
        heads=raw["num_heads"],
        head_dim=raw["d_kv"],
        ff_dim=raw["d_ff"],
        context=raw.get(CONTEXT, 2**20),  # published files know no limit to a text
        norm="rms",
        norm_eps=raw.get("layer_norm_epsilon", 1e-6),
        activation=_GATES[name] if kind.startswith("gated-") else name,
        positions=T5Buckets(
            raw.get("relative_attention_num_buckets", 32),
            raw.get("relative_attention_max_distance", 128),
        ),
        attention_bias=False,
        ff_bias=False,
        attention_scale=1.0,
        logit_scale=raw["d_model"] ** -0.5 if scaled else 1.0,
        tied=tied,
    )


def _describe(config: TransformerConfig) -> dict[str, Any]:
    places = config.positions
    if not isinstance(places, T5Buckets):
        raise ValueError(f"this model is no T5: positions must be T5Buckets, and is {places!r}")
    scaled = config.dim**-0.5
    require(
        "T5",
        config,
        {
            "norm": ["rms"],
            "norm_place": ["pre"],
            # T5 has no word for a gate of the exact GELU.
            "activation": ["relu", "gelu", "gelu_tanh", "silu", "reglu", "geglu_tanh", "swiglu"],
            "embedding_norm": [False],
            "attention_bias": [False],
            "ff_bias": [False],
            "key_value_heads": [config.heads],
            "attention_scale": [1.0],
            "logit_scale": [scaled, 1.0] if config.tied else [1.0],
            "segments": [0],
        },
    )
    kind = their_name(config.ff_activation)
    if config.gated:
        kind = "gated-gelu" if kind == "gelu_new" else f"gated-{kind}"
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab,
        CONTEXT: config.context,
        "d_model": config.dim,
        "num_layers": config.layers,
        "num_decoder_layers": config.layers,
        "num_heads": config.heads,
        "d_kv": config.head_width,
        "d_ff": config.ff_dim,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": kind,
        "relative_attention_num_buckets": places.buckets,
        "relative_attention_max_distance": places.max_distance,
        # In these files the word means that the logits are scaled.
        "tie_word_embeddings": config.logit_scale != 1.0,
        "scale_decoder_outputs": config.logit_scale != 1.0,
        "dropout_rate": config.dropout,
    }


def _entries(config: TransformerConfig) -> list[Entry]:
    d, ff, inner = config.dim, config.ff_dim, config.heads * config.head_width
    places = config.positions
    assert isinstance(places, T5Buckets)
    names = ("encoder.tokens.weight", "decoder.tokens.weight")
    table, also = (config.vocab, d), _TOKENS[1:]
    if config.tied:
        tokens = Piece(_TOKENS[0], table, (*also, _HEAD))
        entries = [Entry((*names, "decoder.head.weight"), (tokens,))]
    else:
        entries = [
            Entry(names, (Piece(_TOKENS[0], table, also),)),
            Entry(("decoder.head.weight",), (Piece(_HEAD, table),)),
        ]
    for side in ("encoder", "decoder"):
        first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        buckets = Piece(first, (places.buckets, config.heads))
        entries.append(Entry((f"{side}.bias.weight",), (buckets,)))
        entries += norm(f"{side}.final_norm", f"{side}.final_layer_norm", d, bias=False)
        kinds = {"attention": "SelfAttention"}
        if side == "decoder":
            kinds["cross"] = "EncDecAttention"
        for index in range(config.layers):
            ours = f"{side}.blocks.{index}"
            for layer, (mine, its) in enumerate(kinds.items()):
                theirs = f"{side}.block.{index}.layer.{layer}"
                qkv = {f"{theirs}.{its}.{name}": inner for name in "qkv"}
                entries += linear(f"{ours}.{mine}.qkv", qkv, 3 * inner, d, bias=False)
                entries += linear(f"{ours}.{mine}.out", f"{theirs}.{its}.o", d, inner, bias=False)
                entries += norm(f"{ours}.{mine}_norm", f"{theirs}.layer_norm", d, bias=False)
            theirs = f"{side}.block.{index}.layer.{len(kinds)}"
            dense = f"{theirs}.DenseReluDense"
            up, ups = "up", {f"{dense}.wi": ff}
            if config.gated:
                up, ups = "gate_up", {f"{dense}.wi_0": ff, f"{dense}.wi_1": ff}
            entries += linear(f"{ours}.feed_forward.{up}", ups, ff * len(ups), d, bias=False)
            entries += linear(f"{ours}.feed_forward.down", f"{dense}.wo", d, ff, bias=False)
            entries += norm(f"{ours}.feed_forward_norm", f"{theirs}.layer_norm", d, bias=False)
    return entries


T5 = Codec(
    name="T5",
    types=("t5", "mt5"),
    build=EncoderDecoder,
    configure=_configure,
    entries=_entries,
    describe=_describe,
    # Files of 2019 hold a table of positions for cross-attention that was never used.
    ignored=("EncDecAttention.relative_attention_bias",),
)
