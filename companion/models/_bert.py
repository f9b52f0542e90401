"""BERT: encoders, sentence encoders such as MiniLM, and both heads of pre-training."""

from collections.abc import Mapping
from functools import partial
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
from companion.pretraining.masked import BertForPreTraining
from companion.transformer.block import Encoder, Learned, TransformerConfig

__all__ = ["BERT", "bert_with_heads", "present_name"]

TABLE = "bert.embeddings.word_embeddings.weight"
HEAD = "cls.predictions"


def present_name(name: str) -> str:
    """The name of a norm's parameter today: files converted from TensorFlow have the older one."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _configure(
    raw: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    folder: Path,
) -> TransformerConfig:
    places = raw.get("position_embedding_type") or "absolute"
    if places != "absolute":
        raise ValueError(f"{folder}: position_embedding_type {places!r} is not supported")
    if raw.get("is_decoder") or raw.get("add_cross_attention"):
        raise ValueError(f"{folder}: a BERT that is used as a decoder is not supported")
    return TransformerConfig(
        vocab=raw["vocab_size"],
        dim=raw["hidden_size"],
        layers=raw["num_hidden_layers"],
        heads=raw["num_attention_heads"],
        ff_dim=raw["intermediate_size"],
        context=raw["max_position_embeddings"],
        norm_place="post",
        norm_eps=raw["layer_norm_eps"],
        activation=activation(raw["hidden_act"], folder),
        positions=Learned(),
        embedding_norm=True,
        segments=raw["type_vocab_size"],
    )


def _describe(config: TransformerConfig) -> dict[str, Any]:
    require(
        "BERT",
        config,
        {
            "norm": ["layer"],
            "norm_place": ["post"],
            "activation": ["gelu", "gelu_tanh", "relu", "silu"],
            "positions": [Learned()],
            "embedding_norm": [True],
            "attention_bias": [True],
            "ff_bias": [True],
            "key_value_heads": [config.heads],
            "head_width": [config.dim // config.heads],
            "attention_scale": [None],
        },
    )
    if not config.segments:
        raise ValueError("this model is no BERT: segments must be 1 or more there, and is 0")
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": config.vocab,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ff_dim,
        "max_position_embeddings": config.context,
        "type_vocab_size": config.segments,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": their_name(config.activation),
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
    }


def _entries(config: TransformerConfig, *, ours: str = "") -> list[Entry]:
    d = config.dim
    theirs = "bert.embeddings"
    tables = (
        ("tokens", "word_embeddings", config.vocab, (f"{HEAD}.decoder.weight",)),
        ("positions", "position_embeddings", config.context, ()),
        ("segments", "token_type_embeddings", config.segments, ()),
    )
    entries = [
        Entry((f"{ours}{mine}.weight",), (Piece(f"{theirs}.{its}.weight", (rows, d), also),))
        for mine, its, rows, also in tables
    ]
    entries += norm(f"{ours}embedding_norm", f"{theirs}.LayerNorm", d)
    for index in range(config.layers):
        mine, its = f"{ours}blocks.{index}", f"bert.encoder.layer.{index}"
        qkv = {f"{its}.attention.self.{name}": d for name in ("query", "key", "value")}
        entries += linear(f"{mine}.attention.qkv", qkv, 3 * d, d)
        entries += linear(f"{mine}.attention.out", f"{its}.attention.output.dense", d, d)
        entries += norm(f"{mine}.attention_norm", f"{its}.attention.output.LayerNorm", d)
        entries += linear(f"{mine}.feed_forward.up", f"{its}.intermediate.dense", config.ff_dim, d)
        entries += linear(f"{mine}.feed_forward.down", f"{its}.output.dense", d, config.ff_dim)
        entries += norm(f"{mine}.feed_forward_norm", f"{its}.output.LayerNorm", d)
    return entries


def _entries_with_heads(config: TransformerConfig, *, pair: bool) -> list[Entry]:
    d = config.dim
    entries = _entries(config, ours="encoder.")
    entries += linear("transform", f"{HEAD}.transform.dense", d, d)
    entries += norm("transform_norm", f"{HEAD}.transform.LayerNorm", d)
    # The bias has two names, and files hold one or both.
    bias = Piece(f"{HEAD}.bias", (config.vocab,), (f"{HEAD}.decoder.bias",))
    entries.append(Entry(("bias",), (bias,)))
    if pair:
        entries += linear("pooler", "bert.pooler.dense", d, d)
        entries += linear("pair", "cls.seq_relationship", 2, d)
    return entries


BERT = Codec(
    name="BERT",
    types=("bert",),
    build=Encoder,
    configure=_configure,
    entries=_entries,
    describe=_describe,
    prefix="bert.",
    ignored=("pooler.", "cls.", "classifier.", "qa_outputs.", "position_ids"),
)


def bert_with_heads(*, pair: bool) -> Codec:
    """The same family with the heads of pre-training: the second one only with ``pair``."""

    def describe(config: TransformerConfig) -> dict[str, Any]:
        kind = "BertForPreTraining" if pair else "BertForMaskedLM"
        return {**_describe(config), "architectures": [kind]}

    return Codec(
        name="BERT",
        types=("bert",),
        build=partial(BertForPreTraining, pair=pair),
        configure=_configure,
        entries=partial(_entries_with_heads, pair=pair),
        describe=describe,
        prefix="bert.",
        ignored=("position_ids",) if pair else ("pooler.", "position_ids"),
    )
