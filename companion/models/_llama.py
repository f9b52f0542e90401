"""Llama, with rotary positions of every scaling that this library has."""

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
from companion.transformer.block import Decoder, Rope, TransformerConfig
from companion.transformer.positions import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
)

__all__ = ["LLAMA"]

_GATES = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh", "relu": "reglu"}
_YARN = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")


def _configure(
    raw: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    folder: Path,
) -> TransformerConfig:
    positions = _rope(raw, folder)
    context = raw["max_position_embeddings"]
    if isinstance(positions.scaling, DynamicNTKScaling):
        # Here the configuration gives the length of training, which the scaling then stretches.
        context = int(context * positions.scaling.factor)
    return TransformerConfig(
        vocab=raw["vocab_size"],
        dim=raw["hidden_size"],
        layers=raw["num_hidden_layers"],
        heads=raw["num_attention_heads"],
        kv_heads=raw.get("num_key_value_heads"),
        head_dim=raw.get("head_dim"),
        ff_dim=raw["intermediate_size"],
        context=context,
        norm="rms",
        norm_eps=raw["rms_norm_eps"],
        activation=_GATES[activation(raw["hidden_act"], folder)],
        positions=positions,
        attention_bias=raw.get("attention_bias", False),
        ff_bias=raw.get("mlp_bias", False),
        tied=raw.get("tie_word_embeddings", False),
    )


def _rope(raw: Mapping[str, Any], folder: Path) -> Rope:
    """Read rotary positions, in the present or the older spelling of the configuration."""
    told = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    base = float(told.get("rope_theta", raw.get("rope_theta", 10000.0)))
    kind = told.get("rope_type", told.get("type", "default"))
    if told.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ValueError(f"{folder}: rotating a part of each head is not supported")
    context = raw["max_position_embeddings"]
    scaling: RopeScaling | None
    if kind == "default":
        scaling = None
    elif kind == "linear":
        scaling = LinearScaling(told["factor"])
    elif kind == "dynamic":
        scaling = DynamicNTKScaling(told["factor"], context)
    elif kind == "llama3":
        scaling = Llama3Scaling(
            told["factor"],
            told["low_freq_factor"],
            told["high_freq_factor"],
            told["original_max_position_embeddings"],
        )
    elif kind == "yarn":
        scaling = YarnScaling(
            told["factor"],
            told.get("original_max_position_embeddings") or context,
            **{name: told[name] for name in _YARN if told.get(name) is not None},
        )
    else:
        raise ValueError(f"{folder}: rotary scaling {kind!r} is not supported")
    return Rope(base=base, scaling=scaling)


def _told(places: Rope, context: int) -> tuple[dict[str, Any], int]:
    """Rotary positions in the words of the configuration, and its longest text."""
    told: dict[str, Any] = {"rope_type": "default", "rope_theta": places.base}
    scaling = places.scaling
    if scaling is None:
        return told, context
    told["factor"] = scaling.factor
    if isinstance(scaling, LinearScaling):
        return told | {"rope_type": "linear"}, context
    if isinstance(scaling, DynamicNTKScaling):
        if int(scaling.context * scaling.factor) != context:
            raise ValueError(
                "this model is no Llama: with dynamic scaling its context must be that of training "
                f"times the factor, {int(scaling.context * scaling.factor)}, and is {context}"
            )
        return told | {"rope_type": "dynamic"}, scaling.context
    if isinstance(scaling, Llama3Scaling):
        return told | {
            "rope_type": "llama3",
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.context,
        }, context
    if isinstance(scaling, YarnScaling):
        options = {name: getattr(scaling, name) for name in _YARN}
        return told | {
            "rope_type": "yarn",
            "original_max_position_embeddings": scaling.context,
            **{name: value for name, value in options.items() if value is not None},
        }, context
    raise ValueError(f"a Llama's configuration has no word for {type(scaling).__name__}")


def _describe(config: TransformerConfig) -> dict[str, Any]:
    places = config.positions
    if not isinstance(places, Rope) or places.interleaved:
        raise ValueError(
            f"this model is no Llama: positions must be a half-split Rope there, and is {places!r}"
        )
    require(
        "Llama",
        config,
        {
            "norm": ["rms"],
            "norm_place": ["pre"],
            "activation": _GATES.values(),
            "embedding_norm": [False],
            "attention_scale": [None],
            "logit_scale": [1.0],
            "segments": [0],
        },
    )
    told, context = _told(places, config.context)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab,
        "hidden_size": config.dim,
        "intermediate_size": config.ff_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_width,
        "hidden_act": their_name(config.ff_activation),
        "max_position_embeddings": context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": places.base,
        "rope_parameters": told,
        "attention_bias": config.attention_bias,
        "attention_dropout": config.attention_dropout,
        "mlp_bias": config.ff_bias,
        "tie_word_embeddings": config.tied,
    }


def _entries(config: TransformerConfig) -> list[Entry]:
    d, ff, width = config.dim, config.ff_dim, config.head_width
    queries, keys = config.heads * width, config.key_value_heads * width
    table, head = "model.embed_tokens.weight", "lm_head.weight"
    if config.tied:
        tokens = Piece(table, (config.vocab, d), (head,))
        entries = [Entry(("tokens.weight", "head.weight"), (tokens,))]
    else:
        entries = [
            Entry(("tokens.weight",), (Piece(table, (config.vocab, d)),)),
            Entry(("head.weight",), (Piece(head, (config.vocab, d)),)),
        ]
    for index in range(config.layers):
        mine, its = f"blocks.{index}", f"model.layers.{index}"
        rows = {"q": queries, "k": keys, "v": keys}
        qkv = {f"{its}.self_attn.{name}_proj": count for name, count in rows.items()}
        gates = {f"{its}.mlp.gate_proj": ff, f"{its}.mlp.up_proj": ff}
        attention, feed = config.attention_bias, config.ff_bias
        entries += norm(f"{mine}.attention_norm", f"{its}.input_layernorm", d, bias=False)
        entries += linear(f"{mine}.attention.qkv", qkv, queries + 2 * keys, d, bias=attention)
        out = f"{its}.self_attn.o_proj"
        entries += linear(f"{mine}.attention.out", out, d, queries, bias=attention)
        after = f"{its}.post_attention_layernorm"
        entries += norm(f"{mine}.feed_forward_norm", after, d, bias=False)
        entries += linear(f"{mine}.feed_forward.gate_up", gates, 2 * ff, d, bias=feed)
        entries += linear(f"{mine}.feed_forward.down", f"{its}.mlp.down_proj", d, ff, bias=feed)
    return entries + norm("final_norm", "model.norm", d, bias=False)


LLAMA = Codec(
    name="Llama",
    types=("llama",),
    build=Decoder,
    configure=_configure,
    entries=_entries,
    describe=_describe,
    prefix="model.",
    ignored=("rotary_emb.inv_freq",),
)
