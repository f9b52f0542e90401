"""A trained decoder as a checkpoint folder that this library and Hugging Face's read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion.core._storage import write_atomically
from companion.transformer.block import Rope, TransformerConfig

__all__ = ["describe_llama", "llama_weights", "save_llama"]


def describe_llama(config: TransformerConfig, *, end: int) -> dict[str, Any]:
    """Describe a decoder of Llama's form in the words of Hugging Face's ``config.json``.

    Args:
        config: The description: RMSNorm before the layers, SwiGLU, rotary positions.
        end: Id of the token between documents.

    Returns:
        What the file holds.

    Raises:
        ValueError: If the form is another one.
    """
    places = config.positions
    fits = (
        isinstance(places, Rope)
        and places.scaling is None
        and not places.interleaved
        and (config.norm, config.norm_place, config.activation) == ("rms", "pre", "swiglu")
        and config.attention_scale is None
        and config.logit_scale == 1.0
        and not (config.embedding_norm or config.segments)
    )
    if not fits or not isinstance(places, Rope):
        raise ValueError(
            "a Llama has rotary positions, RMSNorm before each layer and SwiGLU: "
            f"this is another model, {config}"
        )
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
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": places.base,
        "rope_parameters": {"rope_type": "default", "rope_theta": places.base},
        "attention_bias": config.attention_bias,
        "mlp_bias": config.ff_bias,
        "tie_word_embeddings": config.tied,
        "bos_token_id": end,
        "eos_token_id": end,
        "dtype": "float32",
    }


def llama_weights(weights: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """Rename the parameters of a decoder of Llama's form, and take joined matrices apart.

    Args:
        weights: Its ``state_dict``, whole and on one device.
        config: Its description.

    Returns:
        Tensors of their own, by Hugging Face's names.
    """
    width, ff = config.head_width, config.ff_dim
    rows = [config.heads * width, config.key_value_heads * width, config.key_value_heads * width]
    made = {
        "model.embed_tokens.weight": weights["tokens.weight"],
        "model.norm.weight": weights["final_norm.weight"],
    }
    if not config.tied:
        made["lm_head.weight"] = weights["head.weight"]
    for index in range(config.layers):
        ours, theirs = f"blocks.{index}", f"model.layers.{index}"
        made[f"{theirs}.input_layernorm.weight"] = weights[f"{ours}.attention_norm.weight"]
        made[f"{theirs}.post_attention_layernorm.weight"] = weights[
            f"{ours}.feed_forward_norm.weight"
        ]
        for part, names, sizes, biased in (
            ("attention.qkv", ("q_proj", "k_proj", "v_proj"), rows, config.attention_bias),
            ("attention.out", ("o_proj",), [config.dim], config.attention_bias),
            ("feed_forward.gate_up", ("gate_proj", "up_proj"), [ff, ff], config.ff_bias),
            ("feed_forward.down", ("down_proj",), [config.dim], config.ff_bias),
        ):
            module = "self_attn" if part.startswith("attention") else "mlp"
            for kind in ("weight", "bias") if biased else ("weight",):
                joined = weights[f"{ours}.{part}.{kind}"]
                for name, piece in zip(names, torch.split(joined, sizes), strict=True):
                    made[f"{theirs}.{module}.{name}.{kind}"] = piece
    return {name: tensor.detach().float().cpu().clone() for name, tensor in made.items()}


def save_llama(
    directory: Path,
    weights: Mapping[str, Tensor],
    config: TransformerConfig,
    *,
    tokenizer: str,
    end: tuple[int, str],
) -> None:
    """Write ``config.json``, ``model.safetensors`` and the tokenizer's two files.

    Args:
        directory: The folder, which exists.
        weights: The decoder's ``state_dict``.
        config: Its description.
        tokenizer: Content of ``tokenizer.json``.
        end: Id and name of the token between documents.
    """
    from safetensors.torch import save_file

    tensors = llama_weights(weights, config)
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end[1],
        "eos_token": end[1],
        "model_max_length": config.context,
        "clean_up_tokenization_spaces": False,
    }
    write_atomically(directory / "tokenizer.json", tokenizer)
    write_atomically(directory / "tokenizer_config.json", json.dumps(told, indent=1))
    write_atomically(
        directory / "model.safetensors",
        lambda path: save_file(tensors, path, metadata={"format": "pt"}),
    )
    # Last: a folder without it is no model.
    described = json.dumps(describe_llama(config, end=end[0]), indent=1)
    write_atomically(directory / "config.json", described)
