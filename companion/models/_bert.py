"""Trained weights of a BERT with its pre-training heads."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from companion.models._checkpoint import (
    _bert_config,
    _bert_weights,
    _filled,
    _present_name,
    _read_json,
    _read_tensors,
    _Source,
)
from companion.pretraining.masked import BertForPreTraining
from companion.transformer.block import TransformerConfig

__all__ = ["load_bert"]


def load_bert(
    directory: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> BertForPreTraining:
    """Load a BERT that still has its masked-language-model head.

    The folder is one that ``save_pretrained`` of ``transformers`` writes for
    ``BertForPreTraining`` or ``BertForMaskedLM``, or a download of such a model, for example
    ``bert-base-uncased``: ``config.json``, and ``model.safetensors`` or its shards. Its tokenizer,
    if there is a ``tokenizer.json``, is read by
    :func:`companion.models.load_pretrained`.

    Args:
        directory: The folder.
        device: Where the model is put; by default the CPU.
        dtype: Type of its parameters, whatever the files hold.

    Returns:
        The model, in evaluation mode. It has a head for pairs if the folder does.

    Raises:
        FileNotFoundError: If a file is missing; the message names it.
        ValueError: If the architecture is not BERT, or has an option that is not supported; if
            there is no masked-language-model head, or its table is not that of the embeddings; if
            a tensor is missing, left over, of the wrong shape, or not finite.

    References:
        Devlin et al. 2019, arXiv:1810.04805.

    Book: :doc:`/book/pretraining/masked`
    """
    folder = Path(directory).expanduser()
    raw = _read_json(folder / "config.json")
    if raw.get("model_type") != "bert":
        raise ValueError(
            f"{folder}: architecture {raw.get('model_type')!r} is not supported, only 'bert' is"
        )
    tensors = {_present_name(k): v for k, v in _read_tensors(folder).items()}
    pair = "cls.seq_relationship.weight" in tensors
    model: BertForPreTraining = _filled(
        partial(BertForPreTraining, pair=pair),
        _bert_config(raw, folder),
        partial(_weights, pair=pair),
        tensors,
        device,
        dtype,
    )
    return model


def _weights(
    tensors: Mapping[str, Tensor], config: TransformerConfig, *, pair: bool
) -> dict[str, Tensor]:
    """Both heads under our names, and the encoder's weights."""
    made = {f"encoder.{name}": value for name, value in _bert_weights(tensors, config).items()}
    d = config.dim
    source = _Source({k: v for k, v in tensors.items() if "pooler." in k or k[:4] == "cls."}, "")

    def linear(ours: str, theirs: str, rows: int) -> None:
        made[f"{ours}.weight"] = source.take(f"{theirs}.weight", rows, d)
        made[f"{ours}.bias"] = source.take(f"{theirs}.bias", rows)

    head = "cls.predictions"
    if f"{head}.transform.dense.weight" not in tensors:
        raise ValueError(
            "the checkpoint has no masked-language-model head: load an encoder alone with "
            "companion.models.load_pretrained"
        )
    linear("transform", f"{head}.transform.dense", d)
    for part in ("weight", "bias"):
        made[f"transform_norm.{part}"] = source.take(f"{head}.transform.LayerNorm.{part}", d)
    # The bias has two names, and the table may be repeated; files hold one or both.
    biases = [f"{head}.{name}" for name in ("bias", "decoder.bias") if f"{head}.{name}" in tensors]
    for name in biases or [f"{head}.bias"]:
        made["bias"] = source.take(name, config.vocab)
    if f"{head}.decoder.weight" in tensors:
        table = source.take(f"{head}.decoder.weight", config.vocab, d)
        if not torch.equal(table, made["encoder.tokens.weight"]):
            raise ValueError(
                f"{head}.decoder.weight differs from the table of token embeddings: a model with "
                "a separate output table is not supported"
            )
    if pair:
        linear("pooler", "bert.pooler.dense", d)
        linear("pair", "cls.seq_relationship", 2)
    source.drop("pooler.")
    return made
