"""Models of transformers with the weights of ours."""

import os
from typing import Any

import torch
from torch import Tensor

from benchmarks._pair import Side
from companion import data
from companion.models import smollm2
from companion.transformer.block import Decoder, Rope, TransformerConfig

NEEDS = ["transformers"]


def quiet() -> Any:
    """Import transformers, offline and without its progress bars."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def their_llama(config: TransformerConfig) -> Any:
    """Make a Llama of this description."""
    transformers = quiet()
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


def llama_weights(model: Decoder) -> dict[str, Tensor]:
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


def prompt(device: torch.device) -> Tensor:
    """What SmolLM2 is given to go on from, (1, n)."""
    ids = data.smollm2().tokenizer.encode("The history of Paris begins").ids
    return torch.tensor([ids], device=device)


def their_smollm2(device: torch.device) -> Any:
    """SmolLM2 in their class."""
    ours = smollm2().model
    theirs = their_llama(ours.config)
    theirs.load_state_dict(llama_weights(ours))
    return theirs.eval().to(device)


def their_writing(device: torch.device, tokens: int, **options: Any) -> Side:
    """Write so many tokens after the prompt by their ``generate``; greedily, unless told else."""
    model, ids = their_smollm2(device), prompt(device)
    options = {"do_sample": False, **options}

    def run() -> Tensor:
        torch.manual_seed(0)  # in a process of its own
        written: Tensor = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            **options,
        )
        return written[:, ids.shape[1] :]

    return run
