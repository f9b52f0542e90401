"""Byte-level BPE: learning the merges, and encoding with them."""

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks._pair import Pair, Side
from companion import data
from companion.foundations.language_models import BPE

MERGES = 1000
CHARACTERS = 1_000_000


def _text() -> str:
    return data.shakespeare()[:CHARACTERS]


def _peer(text: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + MERGES,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def _train_ours(device: torch.device) -> Side:
    text = _text()
    return lambda: len(BPE.train(text, vocab_size=256 + MERGES))


def _train_theirs(device: torch.device) -> Side:
    text = _text()
    return lambda: _peer(text).get_vocab_size()


def _encode_ours(device: torch.device) -> Side:
    text = _text()
    bpe = BPE.train(text, vocab_size=256 + MERGES)
    return lambda: bpe.encode(text)


def _encode_theirs(device: torch.device) -> Side:
    text = _text()
    tokenizer = _peer(text)
    return lambda: tokenizer.encode(text).ids


def _equal(ours: Any, theirs: Any) -> None:
    assert ours == theirs, "the two give different results"


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    yield Pair(
        name="bpe/train",
        task=f"{MERGES:,} merges from {CHARACTERS:,} characters",
        peer="tokenizers (Rust)",
        needs=["tokenizers"],
        ours=_train_ours,
        theirs=_train_theirs,
        same=_equal,
        speed=1 / 3,
        note="Ours is Python.",
        devices=("cpu",),
    )
    yield Pair(
        name="bpe/encode",
        task=f"{CHARACTERS:,} characters to ids",
        peer="tokenizers (Rust)",
        needs=["tokenizers"],
        ours=_encode_ours,
        theirs=_encode_theirs,
        same=_equal,
        speed=1 / 3,
        note="Ours is Python, and remembers pieces that it has cut before.",
        devices=("cpu",),
    )
