"""Trained weights into the models of this chapter: BERT, and GPT-2 and Llama decoders."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from companion import data
from companion.core import check_finite
from companion.models._text import TextDecoder, TextEncoder
from companion.transformer.block import (
    Decoder,
    Encoder,
    Learned,
    Rope,
    TransformerConfig,
)
from companion.transformer.positions import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
)

__all__ = ["load_pretrained", "minilm", "smollm2"]


def minilm(
    *,
    directory: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> TextEncoder:
    """The sentence encoder all-MiniLM-L6-v2, ready to embed.

    Six post-norm blocks of width 384 with 12 heads: a BERT. Its pooling layer, which was trained
    for another purpose and is not used for sentences, is left out.

    Args:
        directory: Where the files are (see :func:`companion.data.minilm`); by default the
            installed data.
        device: Where the model is put; by default the CPU.
        dtype: Type of its parameters.

    Returns:
        Model and tokenizer.

    Raises:
        companion.data.MissingDataError: If the data are not installed.
        companion.data.CorruptDataError: If a file differs from the pinned one.

    References:
        Wang et al. 2020, arXiv:2002.10957; Reimers and Gurevych 2019, arXiv:1908.10084.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> vectors = minilm().embed(["A cat sleeps.", "A kitten naps.", "Rates rose."])
        >>> bool(vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2])
        True
    """
    loaded = data.minilm(directory=directory)
    sizes = loaded.config
    config = TransformerConfig(
        vocab=sizes.vocab,
        dim=sizes.dim,
        layers=sizes.layers,
        heads=sizes.heads,
        ff_dim=sizes.ff_dim,
        context=sizes.positions,
        norm="layer",
        norm_place="post",
        norm_eps=sizes.norm_eps,
        activation="gelu",
        positions=Learned(),
        embedding_norm=True,
        segments=2,
    )
    model = _filled(Encoder, config, _bert_weights, loaded.weights, device, dtype)
    return TextEncoder(model, loaded.tokenizer)


def smollm2(
    *,
    directory: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> TextDecoder:
    """The language model SmolLM2-135M-Instruct, ready to continue a text or to chat.

    Thirty pre-norm blocks of width 576, with RMSNorm, rotary positions, gated feed-forward layers,
    and 9 query heads that share 3 key-value heads: a Llama.

    Args:
        directory: Where the file is (see :func:`companion.data.smollm2`); by default the
            installed data.
        device: Where the model is put; by default the CPU.
        dtype: Type of its parameters.

    Returns:
        Model, tokenizer and chat template.

    Raises:
        companion.data.MissingDataError: If the data are not installed.
        companion.data.CorruptDataError: If the file differs from the pinned one.

    References:
        Ben Allal et al. 2025, arXiv:2502.02737.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> smollm2().chat("What is the capital of France?", tokens=8)
        'The capital of France is Paris.'
    """
    loaded = data.smollm2(directory=directory)
    sizes = loaded.config
    config = TransformerConfig(
        vocab=sizes.vocab,
        dim=sizes.dim,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        ff_dim=sizes.ff_dim,
        context=sizes.context,
        norm="rms",
        norm_place="pre",
        norm_eps=sizes.norm_eps,
        activation="swiglu",
        positions=Rope(base=sizes.rope_base),
        attention_bias=False,
        ff_bias=False,
        tied=True,
    )
    model = _filled(Decoder, config, _llama_weights, loaded.weights, device, dtype)
    vocabulary = loaded.tokenizer.get_vocab()
    start, end = vocabulary["<|endoftext|>"], vocabulary["<|im_end|>"]
    return TextDecoder(
        model,
        loaded.tokenizer,
        start=start,
        stop=(start, end),
        chat_template=loaded.chat_template,
    )


def load_pretrained(
    directory: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> TextEncoder | TextDecoder:
    """Load a checkpoint directory of BERT, GPT-2 or Llama architecture.

    The layout is the usual one of Hugging Face: ``config.json``, ``tokenizer.json``, and the
    weights in ``model.safetensors`` or in shards that ``model.safetensors.index.json`` lists.
    Biases, a tied or separate output layer, grouped keys and values, and scaled rotary positions
    are read from the configuration. With dynamic scaling the context is that of training times
    the factor. Task heads and BERT's pooling layer are left out.

    Args:
        directory: The folder.
        device: Where the model is put; by default the CPU.
        dtype: Type of its parameters, whatever the files hold.

    Returns:
        A :class:`TextEncoder` for BERT, a :class:`TextDecoder` for GPT-2 and Llama.

    Raises:
        FileNotFoundError: If a file of the layout is missing; the message names it.
        ValueError: If the architecture, or an option of it, is not supported (it is named); if a
            file is truncated, a tensor missing, left over, of the wrong shape or not finite.

    Numerics:
        Weights are read by memory mapping. Only the query, key and value matrices, and gate with
        up, are joined into one each, so the peak is about the size of the model.

    Book: :doc:`/book/transformer/block`
    """
    folder = Path(directory).expanduser()
    raw = _read_json(folder / "config.json")
    kind = raw.get("model_type")
    if kind not in ("bert", "gpt2", "llama"):
        raise ValueError(
            f"{folder}: architecture {kind!r} is not supported; supported are 'bert', 'gpt2' "
            "and 'llama'"
        )
    if raw.get("quantization_config"):
        how = raw["quantization_config"]
        how = how.get("quant_method", how) if isinstance(how, dict) else how
        raise ValueError(f"{folder}: quantized weights ({how!r}) are not supported")
    tensors = _read_tensors(folder)
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: save the tokenizer beside the model")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is not a tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if kind == "bert":
        config = _bert_config(raw, folder)
        encoder = _filled(Encoder, config, _bert_weights, tensors, device, dtype)
        return TextEncoder(encoder, tokenizer, pooling=_pooling(folder))

    if kind == "gpt2":
        config = _gpt2_config(raw, folder)
        decoder = _filled(Decoder, config, _gpt2_weights, tensors, device, dtype)
    else:
        config = _llama_config(raw, folder)
        decoder = _filled(Decoder, config, _llama_weights, tensors, device, dtype)
    told = _read_json(folder / "tokenizer_config.json", needed=False)
    written = _read_json(folder / "generation_config.json", needed=False)
    stop = written.get("eos_token_id", raw.get("eos_token_id"))
    stop = [] if stop is None else [stop] if isinstance(stop, int) else stop
    template = told.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return TextDecoder(
        decoder,
        tokenizer,
        start=raw.get("bos_token_id"),
        stop=tuple(stop),
        chat_template=template if isinstance(template, str) else None,
        special_tokens=_special_tokens(told),
    )


# --- reading -----------------------------------------------------------------------------------


def _read_json(path: Path, *, needed: bool = True) -> dict[str, Any]:
    if not path.is_file():
        if needed:
            raise FileNotFoundError(f"{path} is missing: give a folder with a saved checkpoint")
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path} must hold an object, got {type(read).__name__}")
    return read


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of one file, or of the shards that an index lists."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        places = _read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ValueError(f"{index} must map tensors to files under 'weight_map'")
        names = sorted(set(places.values()))
    else:
        places, names = {}, ["model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: weights are read from safetensors only")
        try:
            tensors.update(load_file(path))
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is truncated or damaged: {error}") from error
    lost = sorted(set(places) - set(tensors))
    if lost:
        raise ValueError(f"{index} lists tensors that no shard holds, the first is {lost[0]!r}")
    return tensors


def _special_tokens(told: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = told.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[key] = value
    return found


def _pooling(folder: Path) -> str:
    raw = _read_json(folder / "1_Pooling" / "config.json", needed=False)
    modes = {key.removeprefix("pooling_mode_") for key, on in raw.items() if on is True}
    modes &= {"cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"}
    if modes <= {"mean_tokens"}:
        return "mean"
    if modes == {"cls_token"}:
        return "first"
    raise ValueError(f"{folder}: pooling by {', '.join(sorted(modes))} is not supported")


# --- configurations ------------------------------------------------------------------------------

_ACTIVATIONS = {
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_GATES = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh", "relu": "reglu"}


def _activation(raw: Mapping[str, Any], folder: Path, key: str = "hidden_act") -> str:
    name = raw[key]
    if name not in _ACTIVATIONS:
        raise ValueError(f"{folder}: activation {name!r} is not supported")
    return _ACTIVATIONS[name]


def _with_names(read: Callable[[Mapping[str, Any], Path], TransformerConfig]) -> Any:
    def checked(raw: Mapping[str, Any], folder: Path) -> TransformerConfig:
        try:
            return read(raw, folder)
        except KeyError as error:
            raise ValueError(f"{folder / 'config.json'} does not give {error}") from error
        except TypeError as error:
            raise ValueError(
                f"{folder / 'config.json'} holds a value of a wrong type: {error}"
            ) from error

    return checked


@_with_names
def _bert_config(raw: Mapping[str, Any], folder: Path) -> TransformerConfig:
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
        activation=_activation(raw, folder),
        positions=Learned(),
        embedding_norm=True,
        segments=raw["type_vocab_size"],
    )


@_with_names
def _gpt2_config(raw: Mapping[str, Any], folder: Path) -> TransformerConfig:
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
        activation=_activation(raw, folder, "activation_function"),
        positions=Learned(),
        tied=raw.get("tie_word_embeddings", True),
    )


@_with_names
def _llama_config(raw: Mapping[str, Any], folder: Path) -> TransformerConfig:
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
        activation=_GATES[_activation(raw, folder)],
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
        if told.get("mscale") is not None or told.get("mscale_all_dim") is not None:
            raise ValueError(f"{folder}: mscale of yarn is not supported")
        options = ("beta_fast", "beta_slow", "attention_factor", "truncate")
        scaling = YarnScaling(
            told["factor"],
            told.get("original_max_position_embeddings") or context,
            **{name: told[name] for name in options if told.get(name) is not None},
        )
    else:
        raise ValueError(f"{folder}: rotary scaling {kind!r} is not supported")
    return Rope(base=base, scaling=scaling)


# --- weights -------------------------------------------------------------------------------------


class _Source:
    """Tensors of a checkpoint, each to be taken once, under an optional common prefix."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        found = any(name.startswith(prefix) for name in tensors)
        self.prefix = prefix if found else ""
        self.left = dict(tensors)

    def take(self, name: str, *shape: int) -> Tensor:
        """Hand over one tensor of the given shape."""
        full = self.prefix + name
        if full not in self.left:
            raise ValueError(f"the checkpoint has no tensor {full!r}")
        tensor = self.left.pop(full)
        if tensor.shape != shape:
            raise ValueError(
                f"tensor {full!r} must have shape {shape} to fit the configuration, "
                f"got {tuple(tensor.shape)}"
            )
        check_finite(f"tensor {full!r}", tensor)
        return tensor

    def drop(self, *beginnings: str) -> None:
        """Refuse what is left over, except for names with these beginnings or endings."""
        odd = sorted(name for name in self.left if not any(part in name for part in beginnings))
        if odd:
            raise ValueError(
                f"{len(odd)} tensors of the checkpoint have no place in this model, "
                f"the first is {odd[0]!r}"
            )


def _present_name(name: str) -> str:
    """The name of a norm's parameter today: files converted from TensorFlow have the older one."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _bert_weights(tensors: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    source = _Source({_present_name(name): tensor for name, tensor in tensors.items()}, "bert.")
    d, ff = config.dim, config.ff_dim
    made = {
        "tokens.weight": source.take("embeddings.word_embeddings.weight", config.vocab, d),
        "positions.weight": source.take("embeddings.position_embeddings.weight", config.context, d),
        "segments.weight": source.take(
            "embeddings.token_type_embeddings.weight", config.segments, d
        ),
    }

    def norm(ours: str, theirs: str) -> None:
        for part in ("weight", "bias"):
            made[f"{ours}.{part}"] = source.take(f"{theirs}.{part}", d)

    def linear(ours: str, theirs: str, rows: int, columns: int) -> None:
        made[f"{ours}.weight"] = source.take(f"{theirs}.weight", rows, columns)
        made[f"{ours}.bias"] = source.take(f"{theirs}.bias", rows)

    norm("embedding_norm", "embeddings.LayerNorm")
    for index in range(config.layers):
        ours, theirs = f"blocks.{index}", f"encoder.layer.{index}"
        for part, shape in (("weight", (d, d)), ("bias", (d,))):
            made[f"{ours}.attention.qkv.{part}"] = torch.cat(
                [
                    source.take(f"{theirs}.attention.self.{name}.{part}", *shape)
                    for name in ("query", "key", "value")
                ]
            )
        linear(f"{ours}.attention.out", f"{theirs}.attention.output.dense", d, d)
        norm(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm")
        linear(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense", ff, d)
        linear(f"{ours}.feed_forward.down", f"{theirs}.output.dense", d, ff)
        norm(f"{ours}.feed_forward_norm", f"{theirs}.output.LayerNorm")
    source.drop("pooler.", "cls.", "classifier.", "qa_outputs.", "position_ids")
    return made


def _gpt2_weights(tensors: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    source = _Source(tensors, "transformer.")
    d, ff = config.dim, config.ff_dim
    made = {
        "tokens.weight": source.take("wte.weight", config.vocab, d),
        "positions.weight": source.take("wpe.weight", config.context, d),
    }

    def norm(ours: str, theirs: str) -> None:
        for part in ("weight", "bias"):
            made[f"{ours}.{part}"] = source.take(f"{theirs}.{part}", d)

    def linear(ours: str, theirs: str, inputs: int, outputs: int) -> None:
        # These files hold the matrix of Y = X W + b itself, and nn.Linear its transpose.
        weight = source.take(f"{theirs}.weight", inputs, outputs)
        made[f"{ours}.weight"] = weight.T.contiguous()
        made[f"{ours}.bias"] = source.take(f"{theirs}.bias", outputs)

    for index in range(config.layers):
        ours, theirs = f"blocks.{index}", f"h.{index}"
        norm(f"{ours}.attention_norm", f"{theirs}.ln_1")
        linear(f"{ours}.attention.qkv", f"{theirs}.attn.c_attn", d, 3 * d)
        linear(f"{ours}.attention.out", f"{theirs}.attn.c_proj", d, d)
        norm(f"{ours}.feed_forward_norm", f"{theirs}.ln_2")
        linear(f"{ours}.feed_forward.up", f"{theirs}.mlp.c_fc", d, ff)
        linear(f"{ours}.feed_forward.down", f"{theirs}.mlp.c_proj", ff, d)
    norm("final_norm", "ln_f")
    _output_layer(made, source, config)
    source.drop(".attn.bias", ".attn.masked_bias")  # the causal mask, in older files
    return made


def _output_layer(made: dict[str, Tensor], source: _Source, config: TransformerConfig) -> None:
    """Tie the output layer, or read it."""
    if config.tied:
        made["head.weight"] = made["tokens.weight"]
        # Some files repeat the tied table; any other head would be lost silently.
        repeated = source.left.pop("lm_head.weight", None)
        if repeated is not None and not torch.equal(repeated, made["tokens.weight"]):
            raise ValueError("the configuration ties the output layer, but lm_head.weight differs")
    else:
        source.prefix = ""
        made["head.weight"] = source.take("lm_head.weight", config.vocab, config.dim)


def _llama_weights(tensors: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    source = _Source(tensors, "model.")
    d, ff, width = config.dim, config.ff_dim, config.head_width
    queries, keys = config.heads * width, config.key_value_heads * width
    made = {"tokens.weight": source.take("embed_tokens.weight", config.vocab, d)}
    for index in range(config.layers):
        ours, theirs = f"blocks.{index}", f"layers.{index}"
        made[f"{ours}.attention_norm.weight"] = source.take(f"{theirs}.input_layernorm.weight", d)
        made[f"{ours}.feed_forward_norm.weight"] = source.take(
            f"{theirs}.post_attention_layernorm.weight", d
        )
        qkv = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        gate_up = {"gate_proj": ff, "up_proj": ff}
        groups = (
            ("attention.qkv", "self_attn", qkv, d, config.attention_bias),
            ("attention.out", "self_attn", {"o_proj": d}, queries, config.attention_bias),
            ("feed_forward.gate_up", "mlp", gate_up, d, config.ff_bias),
            ("feed_forward.down", "mlp", {"down_proj": d}, ff, config.ff_bias),
        )
        for part, module, names, columns, biased in groups:
            for kind in ("weight", "bias") if biased else ("weight",):
                pieces = [
                    source.take(
                        f"{theirs}.{module}.{name}.{kind}",
                        *((rows, columns) if kind == "weight" else (rows,)),
                    )
                    for name, rows in names.items()
                ]
                # A single matrix is kept as it is, without a copy.
                made[f"{ours}.{part}.{kind}"] = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    made["final_norm.weight"] = source.take("norm.weight", d)
    _output_layer(made, source, config)
    source.drop("rotary_emb.inv_freq")
    return made


def _filled(
    kind: Callable[[TransformerConfig], Any],
    config: TransformerConfig,
    convert: Callable[[Mapping[str, Tensor], TransformerConfig], dict[str, Tensor]],
    tensors: Mapping[str, Tensor],
    device: str | torch.device | None,
    dtype: torch.dtype,
) -> Any:
    """Build the model without memory, and put the weights in."""
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating, got {dtype}")
    weights = convert(tensors, config)
    moved: dict[int, Tensor] = {}
    for name, tensor in weights.items():
        # Tied weights are one tensor under two names, and stay one.
        if id(tensor) not in moved:
            moved[id(tensor)] = tensor.to(device=device or "cpu", dtype=dtype)
        weights[name] = moved[id(tensor)]
    with torch.device("meta"):
        model: nn.Module = kind(config)
    model.load_state_dict(weights, assign=True)
    if config.tied and isinstance(model, Decoder):
        # Assignment made two parameters of one tensor; a step of training must see one.
        model.head.weight = model.tokens.weight
    return model.eval()
