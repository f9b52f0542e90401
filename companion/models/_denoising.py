"""Trained weights into this chapter's models: BART, T5 and XLNet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from companion.models._checkpoint import (
    _ACTIVATIONS,
    _read_json,
    _read_tensors,
    _Source,
)
from companion.pretraining.denoising import TwoStream
from companion.transformer.block import (
    EncoderDecoder,
    Learned,
    NoPositions,
    T5Buckets,
    TransformerConfig,
)
from companion.transformer.positions import T5Bias

__all__ = ["load_bart", "load_t5", "load_xlnet"]


def load_bart(
    directory: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> EncoderDecoder:
    """Load a checkpoint directory of BART: ``config.json`` and safetensors.

    Post-norm blocks with biases, learned positions in a table with two rows ahead, a norm of the
    embeddings, and an output layer tied to them. The decoder starts with BART's end token: see
    :func:`shift_right`. The rows of the table of positions that come first are never read.

    Args:
        directory: The folder.
        device: Where the model is put; by default the CPU.
        dtype: Type of its parameters, whatever the files hold.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: If a file of the layout is missing; the message names it.
        ValueError: If it is no BART, or has an option that is not supported (sides of different
            sizes, scaled embeddings, a bias of the logits, a separate output layer); if a tensor
            is missing, left over, of the wrong shape or not finite.

    References:
        M. Lewis et al., arXiv:1910.13461.

    Book: :doc:`/book/pretraining/denoising`
    """
    folder, raw = _open(directory, ("bart",))
    try:
        for part in ("layers", "attention_heads", "ffn_dim"):
            ours, theirs = raw[f"encoder_{part}"], raw[f"decoder_{part}"]
            if ours != theirs:
                raise ValueError(
                    f"{folder}: encoder_{part} {ours} and decoder_{part} {theirs} differ, "
                    "which is not supported"
                )
        config = TransformerConfig(
            vocab=raw["vocab_size"],
            dim=raw["d_model"],
            layers=raw["encoder_layers"],
            heads=raw["encoder_attention_heads"],
            ff_dim=raw["encoder_ffn_dim"],
            context=raw["max_position_embeddings"],
            norm_place="post",
            norm_eps=1e-5,
            activation=_activation(raw["activation_function"], folder),
            positions=Learned(offset=2),
            embedding_norm=True,
        )
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'} does not give {error}") from error
    if raw.get("scale_embedding"):
        raise ValueError(f"{folder}: scale_embedding is not supported")
    for name in ("add_final_layer_norm", "normalize_before", "add_bias_logits"):
        if raw.get(name):
            raise ValueError(f"{folder}: {name} is not supported")

    tensors = _read_tensors(folder)
    bias = tensors.pop("final_logits_bias", None)
    if bias is not None and bool((bias != 0).any()):
        raise ValueError(f"{folder}: final_logits_bias is not zero, which is not supported")
    head = tensors.pop("lm_head.weight", None)
    source = _Source(tensors, "model.")
    d, ff = config.dim, config.ff_dim
    tokens = source.take("shared.weight", config.vocab, d)
    _same(folder, tokens, head, "lm_head.weight")
    made = {"decoder.head.weight": tokens}

    def norm(ours: str, theirs: str) -> None:
        for part in ("weight", "bias"):
            made[f"{ours}.{part}"] = source.take(f"{theirs}.{part}", d)

    def linear(ours: str, theirs: Sequence[str], rows: int, columns: int) -> None:
        for part, shape in (("weight", (rows, columns)), ("bias", (rows,))):
            made[f"{ours}.{part}"] = _cat([source.take(f"{one}.{part}", *shape) for one in theirs])

    for side in ("encoder", "decoder"):
        made[f"{side}.tokens.weight"] = tokens
        repeated = source.left.pop(f"{source.prefix}{side}.embed_tokens.weight", None)
        _same(folder, tokens, repeated, f"{side}.embed_tokens.weight")
        made[f"{side}.positions.weight"] = source.take(
            f"{side}.embed_positions.weight", config.context + 2, d
        )
        norm(f"{side}.embedding_norm", f"{side}.layernorm_embedding")
        kinds = {"attention": "self_attn"}
        if side == "decoder":
            kinds["cross"] = "encoder_attn"
        for index in range(config.layers):
            ours, theirs = f"{side}.blocks.{index}", f"{side}.layers.{index}"
            for mine, its in kinds.items():
                names = [f"{theirs}.{its}.{name}_proj" for name in "qkv"]
                linear(f"{ours}.{mine}.qkv", names, d, d)
                linear(f"{ours}.{mine}.out", [f"{theirs}.{its}.out_proj"], d, d)
                norm(f"{ours}.{mine}_norm", f"{theirs}.{its}_layer_norm")
            linear(f"{ours}.feed_forward.up", [f"{theirs}.fc1"], ff, d)
            linear(f"{ours}.feed_forward.down", [f"{theirs}.fc2"], d, ff)
            norm(f"{ours}.feed_forward_norm", f"{theirs}.final_layer_norm")
    source.drop("classification_head.", "qa_outputs.")
    return _tied(_filled(EncoderDecoder, config, made, device, dtype), config)


def load_t5(
    directory: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> EncoderDecoder:
    r"""Load a checkpoint directory of T5 or mT5: ``config.json`` and safetensors.

    Pre-norm blocks with RMSNorm and without biases, scores that are not scaled, and one table of
    relative positions a side, shared by its layers. T5 of 2019 has ReLU, and an output layer tied
    to the embeddings whose logits are scaled by :math:`1/\sqrt d`; version 1.1 and mT5 have a
    gated GELU and a separate output layer. The decoder starts with padding: see
    :func:`shift_right`.

    Args:
        directory: The folder.
        device: Where the model is put; by default the CPU.
        dtype: Type of its parameters, whatever the files hold.

    Returns:
        The model, in evaluation mode. There is no limit to the length of a text in T5; ``context``
        is 2**20.

    Raises:
        FileNotFoundError: If a file of the layout is missing; the message names it.
        ValueError: If it is no T5, or has an option that is not supported (a decoder of another
            depth, an unknown activation); if a tensor is missing, left over, of the wrong shape or
            not finite.

    References:
        C. Raffel et al., arXiv:1910.10683; L. Xue et al., "mT5", arXiv:2010.11934.

    Book: :doc:`/book/pretraining/denoising`
    """
    folder, raw = _open(directory, ("t5", "mt5"))
    tensors = _read_tensors(folder)
    try:
        depth = raw.get("num_decoder_layers")
        if depth not in (None, raw["num_layers"]):
            raise ValueError(
                f"{folder}: num_layers {raw['num_layers']} and num_decoder_layers {depth} differ, "
                "which is not supported"
            )
        ties = raw.get("tie_word_embeddings", True) and raw["model_type"] == "t5"
        scaled = raw.get("scale_decoder_outputs", ties) and raw["model_type"] == "t5"
        # Newer files say that the tables are tied and hold two all the same.
        head = tensors.pop("lm_head.weight", None)
        tied = head is None or (
            "shared.weight" in tensors and _equal(head, tensors["shared.weight"])
        )
        if not tied and scaled:
            raise ValueError(
                f"{folder}: the configuration ties the output layer, but lm_head.weight differs"
            )
        kind = raw.get("feed_forward_proj", "relu")
        gated = kind.startswith("gated-")
        plain = kind.removeprefix("gated-")
        # In T5's configurations "gated-gelu" means the tanh approximation.
        name = _activation("gelu_new" if kind == "gated-gelu" else plain, folder)
        if gated:
            gates = {"relu": "reglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh", "silu": "swiglu"}
            name = gates[name]
        config = TransformerConfig(
            vocab=raw["vocab_size"],
            dim=raw["d_model"],
            layers=raw["num_layers"],
            heads=raw["num_heads"],
            head_dim=raw["d_kv"],
            ff_dim=raw["d_ff"],
            context=2**20,
            norm="rms",
            norm_eps=raw.get("layer_norm_epsilon", 1e-6),
            activation=name,
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
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'} does not give {error}") from error

    source = _Source(tensors, "")
    d, ff, inner = config.dim, config.ff_dim, config.heads * config.head_width
    tokens = source.take("shared.weight", config.vocab, d)
    if head is not None and not tied:
        source.left["lm_head.weight"] = head
    made = {
        "decoder.head.weight": tokens if tied else source.take("lm_head.weight", config.vocab, d)
    }
    for side in ("encoder", "decoder"):
        made[f"{side}.tokens.weight"] = tokens
        repeated = source.left.pop(f"{side}.embed_tokens.weight", None)
        _same(folder, tokens, repeated, f"{side}.embed_tokens.weight")
        made[f"{side}.bias.weight"] = source.take(
            f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            raw.get("relative_attention_num_buckets", 32),
            config.heads,
        )
        made[f"{side}.final_norm.weight"] = source.take(f"{side}.final_layer_norm.weight", d)
        kinds = {"attention": "SelfAttention"}
        if side == "decoder":
            kinds["cross"] = "EncDecAttention"
        for index in range(config.layers):
            ours = f"{side}.blocks.{index}"
            for layer, (mine, its) in enumerate(kinds.items()):
                theirs = f"{side}.block.{index}.layer.{layer}"
                parts = [source.take(f"{theirs}.{its}.{name}.weight", inner, d) for name in "qkv"]
                made[f"{ours}.{mine}.qkv.weight"] = _cat(parts)
                made[f"{ours}.{mine}.out.weight"] = source.take(
                    f"{theirs}.{its}.o.weight", d, inner
                )
                made[f"{ours}.{mine}_norm.weight"] = source.take(f"{theirs}.layer_norm.weight", d)
            theirs = f"{side}.block.{index}.layer.{len(kinds)}"
            names = ("wi_0", "wi_1") if gated else ("wi",)
            ups = [source.take(f"{theirs}.DenseReluDense.{name}.weight", ff, d) for name in names]
            made[f"{ours}.feed_forward.{'gate_up' if gated else 'up'}.weight"] = _cat(ups)
            made[f"{ours}.feed_forward.down.weight"] = source.take(
                f"{theirs}.DenseReluDense.wo.weight", d, ff
            )
            made[f"{ours}.feed_forward_norm.weight"] = source.take(f"{theirs}.layer_norm.weight", d)
    # Files of 2019 hold a table of positions for cross-attention that was never used.
    source.drop("EncDecAttention.relative_attention_bias")
    return _tied(_filled(EncoderDecoder, config, made, device, dtype), config)


def load_xlnet(
    directory: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> TwoStream:
    """Load a checkpoint directory of XLNet: ``config.json`` and safetensors.

    Args:
        directory: The folder.
        device: Where the model is put; by default the CPU.
        dtype: Type of its parameters, whatever the files hold.

    Returns:
        The model, in evaluation mode. There is no limit to the length of a text in XLNet;
        ``context`` is 2**20. Memory of earlier segments is not supported and not used.

    Raises:
        FileNotFoundError: If a file of the layout is missing; the message names it.
        ValueError: If it is no XLNet, or has an option that is not supported (one-directional
            attention, two-directional data, clamped distances, an untied output layer); if a
            tensor is missing, left over, of the wrong shape or not finite.

    References:
        Z. Yang et al., arXiv:1906.08237.

    Book: :doc:`/book/pretraining/denoising`
    """
    folder, raw = _open(directory, ("xlnet",))
    for name, usual in (("attn_type", "bi"), ("bi_data", False), ("same_length", False)):
        if raw.get(name, usual) != usual:
            raise ValueError(f"{folder}: {name} {raw[name]!r} is not supported")
    if raw.get("clamp_len", -1) > 0:
        raise ValueError(f"{folder}: clamp_len {raw['clamp_len']} is not supported")
    try:
        config = TransformerConfig(
            vocab=raw["vocab_size"],
            dim=raw["d_model"],
            layers=raw["n_layer"],
            heads=raw["n_head"],
            head_dim=raw.get("d_head") or raw["d_model"] // raw["n_head"],
            ff_dim=raw["d_inner"],
            context=2**20,
            norm_place="post",
            norm_eps=raw.get("layer_norm_eps", 1e-12),
            activation=_activation(raw.get("ff_activation", "gelu"), folder),
            positions=NoPositions(),
            attention_bias=False,
            segments=2,
        )
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'} does not give {error}") from error
    tensors = _read_tensors(folder)
    head, bias = tensors.pop("lm_loss.weight", None), tensors.pop("lm_loss.bias", None)
    source = _Source(tensors, "transformer.")
    d, heads, width = config.dim, config.heads, config.head_width
    tokens = source.take("word_embedding.weight", config.vocab, d)
    _same(folder, tokens, head, "lm_loss.weight")
    if bias is None:
        raise ValueError("the checkpoint has no tensor 'lm_loss.bias'")
    source.left[f"{source.prefix}lm_loss.bias"] = bias
    made = {
        "tokens.weight": tokens,
        "head.weight": tokens,
        "head.bias": source.take("lm_loss.bias", config.vocab),
        "mask": source.take("mask_emb", 1, 1, d).reshape(d),
    }
    for index in range(config.layers):
        ours, theirs = f"blocks.{index}", f"layer.{index}.rel_attn"
        maps = {
            name: source.take(f"{theirs}.{name}", d, heads, width).reshape(d, heads * width)
            for name in "qkvor"
        }
        made |= {
            f"{ours}.attention.projections.qkv.weight": _cat([maps[name].T for name in "qkv"]),
            f"{ours}.attention.projections.out.weight": maps["o"],
            f"{ours}.attention.relative.map.weight": maps["r"].T.contiguous(),
            f"{ours}.attention.relative.u": source.take(f"{theirs}.r_w_bias", heads, width),
            f"{ours}.attention.relative.v": source.take(f"{theirs}.r_r_bias", heads, width),
            f"{ours}.attention.segment_bias": source.take(f"{theirs}.r_s_bias", heads, width),
            f"{ours}.attention.segment_keys": source.take(f"{theirs}.seg_embed", 2, heads, width),
        }
        feed = f"layer.{index}.ff"
        for part, shape in (("weight", config.ff_dim), ("bias", config.ff_dim)):
            up = (shape, d) if part == "weight" else (shape,)
            down = (d, shape) if part == "weight" else (d,)
            made[f"{ours}.feed_forward.up.{part}"] = source.take(f"{feed}.layer_1.{part}", *up)
            made[f"{ours}.feed_forward.down.{part}"] = source.take(f"{feed}.layer_2.{part}", *down)
            for mine, its in (("attention_norm", theirs), ("feed_forward_norm", feed)):
                made[f"{ours}.{mine}.{part}"] = source.take(f"{its}.layer_norm.{part}", d)
    source.drop("sequence_summary.", "logits_proj.", "qa_outputs.")
    model: TwoStream = _filled(TwoStream, config, made, device, dtype)
    model.head.weight = model.tokens.weight
    return model


def _open(directory: str | Path, kinds: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    folder = Path(directory).expanduser()
    raw = _read_json(folder / "config.json")
    if raw.get("model_type") not in kinds:
        raise ValueError(
            f"{folder}: architecture {raw.get('model_type')!r} is not {' or '.join(kinds)}"
        )
    if raw.get("quantization_config"):
        raise ValueError(f"{folder}: quantized weights are not supported")
    return folder, raw


def _activation(name: str, folder: Path) -> str:
    if name not in _ACTIVATIONS:
        raise ValueError(f"{folder}: activation {name!r} is not supported")
    return _ACTIVATIONS[name]


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _equal(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and torch.equal(one, two)


def _same(folder: Path, tokens: Tensor, repeated: Tensor | None, name: str) -> None:
    """Refuse a second table that is not the first: it would be lost silently."""
    if repeated is not None and not _equal(tokens, repeated):
        raise ValueError(f"{folder}: {name} differs from the table of tokens, to which it is tied")


def _filled(
    kind: Any,
    config: TransformerConfig,
    made: Mapping[str, Tensor],
    device: str | torch.device | None,
    dtype: torch.dtype,
) -> Any:
    """Build the model without memory, and put the weights in."""
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating, got {dtype}")
    with torch.device("meta"):
        model: nn.Module = kind(config)
    place = device or "cpu"
    model.load_state_dict({k: t.to(place, dtype) for k, t in made.items()}, assign=True)
    for module in model.modules():
        if isinstance(module, T5Bias):  # its boundaries are no weights, so they are made anew
            fresh = T5Bias(
                module.weight.shape[1],
                buckets=module.buckets,
                max_distance=module.max_distance,
                bidirectional=module.bidirectional,
                device=place,
            )
            module.edges = fresh.edges
    return model.eval()


def _tied(model: Any, config: TransformerConfig) -> EncoderDecoder:
    """Make one parameter again of the tables that assignment made several of."""
    built: EncoderDecoder = model
    built.decoder.tokens = built.encoder.tokens
    if config.tied:
        built.decoder.head.weight = built.encoder.tokens.weight
    return built
