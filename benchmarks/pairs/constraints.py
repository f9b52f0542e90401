"""Structured generation: compiling a constraint for a vocabulary, and looking up a mask."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks._pair import Pair, Side
from companion.generation.control import TokenIndex, Vocabulary, schema_regex
from companion.models import smollm2

END = 2
DATE = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
FIELDS: dict[str, Any] = {
    "name": {"type": "string"},
    "age": {"type": "integer"},
    "email": {"type": "string"},
    "score": {"type": "number"},
    "active": {"type": "boolean"},
    "tags": {"type": "array", "items": {"type": "string"}},
    "kind": {"enum": ["a", "b", "c"]},
    "born": {"type": "string", "format": "date"},
    "city": {"type": "string"},
    "note": {"type": ["string", "null"]},
}
SCHEMA = {"type": "object", "properties": FIELDS, "required": list(FIELDS)}
BEGUN = '{"name": "Ada'


@cache
def _tokenizer() -> Any:
    return smollm2().tokenizer


@cache
def _vocabulary() -> Vocabulary:
    return Vocabulary.from_tokenizer(_tokenizer())


def _compile_ours(expression: str) -> Callable[[torch.device], Side]:
    def prepare(device: torch.device) -> Side:
        words = _vocabulary()

        def work() -> list[int]:
            index = TokenIndex.from_regex(expression, words, stop=[END])
            return sorted(index.mask(0).nonzero()[:, 0].tolist())

        return work

    return prepare


def _compile_theirs(expression: str) -> Callable[[torch.device], Side]:
    def prepare(device: torch.device) -> Side:
        import outlines_core

        table = defaultdict(list)
        for number, token in enumerate(_vocabulary().tokens):
            if token:
                table[token].append(number)
        words = outlines_core.Vocabulary(END, dict(table))

        def work() -> list[int]:
            index = outlines_core.Index(expression, words)
            return sorted(index.get_allowed_tokens(index.get_initial_state()))

        return work

    return prepare


def _mask_ours(device: torch.device) -> Side:
    index = TokenIndex.from_schema(SCHEMA, _vocabulary(), stop=[END])
    state = index.begin(1, torch.device("cpu"))
    for token in _tokenizer().encode(BEGUN).ids:
        state = index.advance(state, torch.tensor([token]))
    here = int(state)
    return lambda: index.mask(here)


def _mask_theirs(device: torch.device) -> Side:
    import json

    import xgrammar

    names = sorted(_tokenizer().get_vocab().items(), key=lambda pair: pair[1])
    plain = [name if _vocabulary().tokens[i] else "" for name, i in names]
    info = xgrammar.TokenizerInfo(
        plain, vocab_type=xgrammar.VocabType.BYTE_LEVEL, vocab_size=len(plain), stop_token_ids=[END]
    )
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)
    compiled = compiler.compile_json_schema(
        json.dumps(SCHEMA), any_whitespace=False, separators=(", ", ": ")
    )
    matcher = xgrammar.GrammarMatcher(compiled)
    for token in _tokenizer().encode(BEGUN).ids:
        assert matcher.accept_token(token)
    bits = xgrammar.allocate_token_bitmask(1, len(plain))

    def work() -> Tensor:
        matcher.fill_next_token_bitmask(bits)
        return bits

    return work


def _equal(ours: Any, theirs: Any) -> None:
    assert ours == theirs, "the two allow different tokens"


def _same_mask(ours: Tensor, theirs: Tensor) -> None:
    places = torch.arange(32, dtype=torch.int32)
    unpacked = (theirs[0][:, None] >> places) & 1
    assert torch.equal(ours, unpacked.flatten()[: len(ours)].bool()), "the two masks differ"


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    for name, task, expression in (
        ("date", "a date, for 49,152 tokens", DATE),
        ("schema", "an object of ten fields, for 49,152 tokens", schema_regex(SCHEMA)),
    ):
        yield Pair(
            name=f"constraint/{name}",
            task=f"compile {task}",
            peer="outlines-core (Rust)",
            needs=["outlines_core"],
            ours=_compile_ours(expression),
            theirs=_compile_theirs(expression),
            same=_equal,
            speed=1 / 2,
            devices=("cpu",),
        )
    yield Pair(
        name="constraint/mask",
        task="the mask within a string of an object, for 49,152 tokens",
        peer="xgrammar (C++)",
        needs=["xgrammar"],
        ours=_mask_ours,
        theirs=_mask_theirs,
        same=_same_mask,
        speed=1.0,
        note="Ours is a row of a table made in advance; xgrammar's is packed in bits.",
        devices=("cpu",),
    )
