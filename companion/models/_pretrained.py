"""Checkpoint folders in, checkpoint folders out, and the two models that come with the book."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from companion import data
from companion.core import check_count
from companion.core._storage import write_atomically
from companion.models._bart import BART
from companion.models._bert import BERT, bert_with_heads, present_name
from companion.models._chat import default_template
from companion.models._codec import Codec
from companion.models._folder import (
    read_json,
    read_tensors,
    read_tokenizer,
    write_json,
    write_tensors,
)
from companion.models._gpt2 import GPT2
from companion.models._llama import LLAMA
from companion.models._t5 import T5
from companion.models._text import TextDecoder, TextEncoder, TextEncoderDecoder, TextTwoStream
from companion.models._xlnet import XLNET
from companion.pretraining.denoising import TwoStream
from companion.pretraining.masked import BertForPreTraining
from companion.pretraining.transfer import Pooling
from companion.transformer.block import (
    Decoder,
    Encoder,
    EncoderDecoder,
    Learned,
    Rope,
    TransformerConfig,
)

__all__ = ["TextModel", "load_pretrained", "minilm", "save_pretrained", "smollm2"]

TextModel = TextEncoder | TextDecoder | TextEncoderDecoder | TextTwoStream

FAMILIES = {kind: codec for codec in (BERT, GPT2, LLAMA, BART, T5, XLNET) for kind in codec.types}


def load_pretrained(
    directory: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    heads: bool = False,
) -> TextModel:
    """Load a checkpoint folder of BERT, GPT-2, Llama, BART, T5, mT5 or XLNet architecture.

    The layout is the usual one of Hugging Face: ``config.json``, ``tokenizer.json``, and the
    weights in ``model.safetensors`` or in shards that ``model.safetensors.index.json`` lists.
    Which architecture it is, biases, a tied or separate output layer, grouped keys and values, and
    scaled rotary positions are read from the configuration. Of weights that are tied a file may
    hold any one, by any of its names. With dynamic scaling the context is that of training times
    the factor; published files of T5 and XLNet know no limit, and give a context of 2**20, those of
    :func:`save_pretrained` that of the model. Heads for other tasks are left out.

    Args:
        directory: The folder.
        device: Where the model is put; by default the CPU.
        dtype: Type of its parameters, whatever the files hold.
        heads: Load BERT's heads of pre-training, too: they are ``heads`` of what is returned,
            with a head for pairs if the folder has one.

    Returns:
        A :class:`TextEncoder` for BERT, a :class:`TextDecoder` for GPT-2 and Llama, a
        :class:`TextEncoderDecoder` for BART and T5, a :class:`TextTwoStream` for XLNet. Its
        attribute ``model`` is the model, in evaluation mode. Where there is no ``tokenizer.json``
        its ``tokenizer`` is ``None``, and what needs one says so.

    Raises:
        FileNotFoundError: If a file of the layout is missing; the message names it.
        ValueError: If the architecture, or an option of it, is not supported (it is named); if a
            file is truncated, a tensor missing, left over, of the wrong shape or not finite; if
            weights that are tied differ; if there are no heads.

    Numerics:
        Weights are read by memory mapping. Only matrices that are one here and several in the
        file are joined, and those of GPT-2 and XLNet turned, so the peak is about the size of the
        model. Memory of earlier segments, in XLNet, is not supported and not used.

    References:
        Devlin et al. 2019, arXiv:1810.04805; Radford et al. 2019; Touvron et al. 2023,
        arXiv:2302.13971; Lewis et al. 2020, arXiv:1910.13461; Raffel et al. 2020,
        arXiv:1910.10683; Xue et al. 2021, arXiv:2010.11934; Yang et al. 2019, arXiv:1906.08237.

    Book: :doc:`/book/transformer/block`
    """
    folder = Path(directory).expanduser()
    raw = read_json(folder / "config.json")
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        known = ", ".join(map(repr, FAMILIES))
        raise ValueError(f"{folder}: architecture {kind!r} is not supported; supported are {known}")
    if raw.get("quantization_config"):
        how = raw["quantization_config"]
        how = how.get("quant_method", how) if isinstance(how, dict) else how
        if how == "companion":
            raise ValueError(
                f"{folder} holds integers: read it with "
                "companion.efficiency.quantization.load_quantized"
            )
        raise ValueError(f"{folder}: quantized weights ({how!r}) are not supported")
    if heads and kind != "bert":
        raise ValueError(f"{folder}: heads are those of BERT, this is architecture {kind!r}")
    tensors = read_tensors(folder)
    codec = FAMILIES[kind]
    if kind == "bert":
        tensors = {present_name(name): tensor for name, tensor in tensors.items()}
    if heads:
        if "cls.predictions.transform.dense.weight" not in tensors:
            raise ValueError(
                f"{folder}: the checkpoint has no masked-language-model head: leave heads out"
            )
        codec = bert_with_heads(pair="cls.seq_relationship.weight" in tensors)
    model = codec.load(raw, tensors, folder, device=device, dtype=dtype)
    return text_of(folder, raw, model)


def text_of(folder: Path, raw: dict[str, Any], model: Any) -> TextModel:
    """Wrap a model with the words of its folder: tokenizer, start and stop tokens, template."""
    kind = raw["model_type"]
    tokenizer = read_tokenizer(folder)
    written = read_json(folder / "generation_config.json", needed=False)
    said = {**raw, **written}
    stop = _ids(said.get("eos_token_id"))
    if isinstance(model, BertForPreTraining):
        return TextEncoder(model.encoder, tokenizer, pooling=_pooling(folder), heads=model)
    if isinstance(model, Encoder):
        return TextEncoder(model, tokenizer, pooling=_pooling(folder))
    if isinstance(model, TwoStream):
        return TextTwoStream(model, tokenizer)
    if isinstance(model, EncoderDecoder):
        # Without a word about it, BART starts with its end token and T5 with padding.
        usual = said.get("eos_token_id" if kind == "bart" else "pad_token_id")
        start = _ids(said.get("decoder_start_token_id", usual))[:1]
        start += _ids(said.get("forced_bos_token_id"))[:1]
        return TextEncoderDecoder(model, tokenizer, start=start, stop=stop)
    told = read_json(folder / "tokenizer_config.json", needed=False)
    template = default_template(told.get("chat_template"))
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return TextDecoder(
        model,
        tokenizer,
        start=raw.get("bos_token_id"),
        stop=stop,
        chat_template=template,
        special_tokens=_special_tokens(told),
    )


def save_pretrained(
    model: TextModel | nn.Module,
    directory: str | Path,
    *,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a folder that :func:`load_pretrained` and Hugging Face's ``from_pretrained`` read.

    The architecture is that of the model: an encoder is a BERT, a decoder with rotary positions a
    Llama and one with learned positions a GPT-2, an encoder-decoder with T5's buckets a T5 and
    another one a BART, and :class:`~companion.pretraining.denoising.TwoStream` an XLNet.

    Args:
        model: The model, or a text model, whose tokenizer, start and stop tokens and chat template
            are written as well.
        directory: The folder; it is made if it is not there. Files of the same names in it are
            replaced.
        shard_bytes: Weights beyond this size are split over several files.

    Raises:
        ValueError: If the model has a form that the architecture does not have (the setting is
            named), or parts that it does not know, such as adapters; if it has no values, on the
            meta device; if ``shard_bytes`` is below 1.

    Numerics:
        Weights keep their type. Each file is there whole or not at all, and ``config.json``,
        without which a folder is no model, comes last. Where saving fails, no folder and no
        unfinished file is left that was not there before. A process that reads while another one
        saves over the same folder may see files of both.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> import tempfile
        >>> from companion.transformer.block import Decoder, TransformerConfig
        >>> llama = TransformerConfig(
        ...     vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9, norm="rms",
        ...     activation="swiglu", attention_bias=False, ff_bias=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(Decoder(llama), folder)
        ...     load_pretrained(folder).model.config.activation
        'swiglu'
    """
    inner = _inner(model)
    codec = _family(inner)
    config: TransformerConfig = inner.config
    described = describe_pretrained(model)
    check_count("shard_bytes", shard_bytes)
    for name, parameter in inner.named_parameters():
        if parameter.is_meta:
            raise ValueError(f"{name!r} is on the meta device, and so has no values to save")
    tensors = codec.tensors(config, inner)
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    described["dtype"] = described["torch_dtype"] = dtype

    folder = Path(directory).expanduser()
    with new_folder(folder):
        write_words(folder, model, config.context)
        write_tensors(folder, tensors, shard_bytes=shard_bytes)
        # Last: a folder without it is no model.
        write_json(folder / "config.json", described)


def _inner(model: Any) -> Any:
    """What of a text model is written."""
    if isinstance(model, TextEncoder) and model.heads is not None:
        return model.heads
    return model.model if isinstance(model, TextModel) else model


def describe_pretrained(model: TextModel | nn.Module) -> dict[str, Any]:
    """Describe a model, or a text model with its special tokens, in the words of its family."""
    inner = _inner(model)
    return _family(inner).describe(inner.config) | _tokens(model)


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make a folder; if what follows fails, whatever was not there before goes again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        if folder in missing:
            shutil.rmtree(folder, ignore_errors=True)
        for path in missing:  # of the folders above it, only what is empty
            with suppress(OSError):
                path.rmdir()
        raise


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
    model = BERT.fill(config, loaded.weights, device=device, dtype=dtype)
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
    model = LLAMA.fill(config, loaded.weights, device=device, dtype=dtype)
    vocabulary = loaded.tokenizer.get_vocab()
    start, end = vocabulary["<|endoftext|>"], vocabulary["<|im_end|>"]
    return TextDecoder(
        model,
        loaded.tokenizer,
        start=start,
        stop=(start, end),
        chat_template=loaded.chat_template,
    )


def _family(model: object) -> Codec:
    """The family in which a model is written."""
    if isinstance(model, BertForPreTraining):
        return bert_with_heads(pair=model.pair is not None)
    if isinstance(model, Encoder):
        return BERT
    if isinstance(model, TwoStream):
        return XLNET
    if isinstance(model, EncoderDecoder):
        return T5 if model.config.norm == "rms" else BART
    if isinstance(model, Decoder):
        return LLAMA if isinstance(model.config.positions, Rope) else GPT2
    raise ValueError(
        f"a {type(model).__name__} belongs to no family of checkpoints: give an Encoder, a "
        "Decoder, an EncoderDecoder, a BertForPreTraining, a TwoStream, or a text model with "
        "one of them"
    )


def _ids(value: Any) -> tuple[int, ...]:
    """Ids of a configuration, which holds none, one, or a list."""
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)


def _one_or_more(ids: tuple[int, ...]) -> int | list[int] | None:
    return None if not ids else ids[0] if len(ids) == 1 else list(ids)


def _tokens(text: object) -> dict[str, Any]:
    """The special tokens of a text model in the words of a configuration."""
    if isinstance(text, TextDecoder):
        return {"bos_token_id": text.start, "eos_token_id": _one_or_more(text.stop)}
    if isinstance(text, TextEncoderDecoder):
        first, *forced = (*text.start, None)[:2] if text.start else (None,)
        return {
            "decoder_start_token_id": first,
            "forced_bos_token_id": forced[0] if forced else None,
            "eos_token_id": _one_or_more(text.stop),
        }
    return {}


def write_words(folder: Path, text: object, context: int) -> None:
    """The files of a tokenizer, and of what a text model knows beyond its weights."""
    tokens = _tokens(text)
    if tokens:
        # The words of a folder that was there before must not outlive it.
        write_json(folder / "generation_config.json", tokens)
    if isinstance(text, TextEncoder):
        (folder / "1_Pooling").mkdir(exist_ok=True)
        pooling = {
            "word_embedding_dimension": text.model.config.dim,
            "pooling_mode_cls_token": text.pooling == "first",
            "pooling_mode_mean_tokens": text.pooling == "mean",
        }
        write_json(folder / "1_Pooling" / "config.json", pooling)
    if not isinstance(text, TextModel) or text.tokenizer is None:
        return
    told: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    template = None
    if isinstance(text, TextDecoder):
        named = {"bos_token": _ids(text.start), "eos_token": text.stop}
        told |= {name: text.tokenizer.id_to_token(ids[0]) for name, ids in named.items() if ids}
        told |= text.special_tokens or {}
        template = text.chat_template
    write_atomically(folder / "tokenizer.json", text.tokenizer.to_str(pretty=True))
    write_json(folder / "tokenizer_config.json", told)
    if template is None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    else:
        write_atomically(folder / "chat_template.jinja", template)


def _special_tokens(told: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in ("bos", "eos", "pad", "unk", "sep", "cls", "mask"):
        value = told.get(f"{key}_token")
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[f"{key}_token"] = value
    return found


def _pooling(folder: Path) -> Pooling:
    raw = read_json(folder / "1_Pooling" / "config.json", needed=False)
    prefix = "pooling_mode_"
    on = {key for key, value in raw.items() if value is True and key.startswith(prefix)}
    modes = {key.removeprefix(prefix) for key in on}
    if modes <= {"mean_tokens"}:
        return "mean"
    if modes == {"cls_token"}:
        return "first"
    if modes == {"lasttoken"}:
        return "last"
    raise ValueError(f"{folder}: pooling by {', '.join(sorted(modes))} is not supported")
