"""The two real models against transformers with the same weights."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks._pair import Pair, Side, close
from benchmarks.pairs._peers import NEEDS, prompt, quiet, their_smollm2, their_writing
from companion import data
from companion.models import generate, minilm, smollm2

WRITTEN = 48


def _sentences() -> list[str]:
    return [line for line in data.shakespeare().split("\n") if len(line) > 20][:64]


def _encode_ours(device: torch.device) -> Side:
    encoder = minilm(device=device)
    ids, real = encoder.tokenize(_sentences())

    def run() -> Tensor:
        with torch.inference_mode():
            return encoder.model(ids, real=real)[real]

    return run


def _encode_theirs(device: torch.device) -> Side:
    transformers = quiet()
    ids, real = minilm(device=device).tokenize(_sentences())
    model = transformers.BertModel.from_pretrained(
        data.minilm().path, dtype=torch.float32, attn_implementation="sdpa"
    )
    model = model.eval().to(device)
    mask = real.long()

    def run() -> Tensor:
        with torch.inference_mode():
            hidden: Tensor = model(ids, attention_mask=mask).last_hidden_state
            return hidden[real]

    return run


def _embed_ours(device: torch.device) -> Side:
    encoder, sentences = minilm(device=device), _sentences()
    return lambda: encoder.embed(sentences)


def _embed_theirs(device: torch.device) -> Side:
    run = _encode_theirs(device)
    encoder = minilm(device=device)
    sentences = _sentences()
    _, real = encoder.tokenize(sentences)
    row = torch.arange(len(sentences), device=device)[:, None].expand_as(real)[real]

    def embed() -> Tensor:
        encoder.tokenize(sentences)
        hidden = run()
        total = torch.zeros(len(sentences), hidden.shape[1], device=device)
        return torch.nn.functional.normalize(total.index_add(0, row, hidden), dim=-1)

    return embed


def _long(device: torch.device) -> Tensor:
    ids = smollm2().tokenizer.encode(data.shakespeare()[20000:24000]).ids[:512]
    return torch.tensor([ids], device=device)


def _prefill_ours(device: torch.device) -> Side:
    model, ids = smollm2(device=device).model, _long(device)

    def run() -> Tensor:
        with torch.inference_mode():
            return model(ids)

    return run


def _prefill_theirs(device: torch.device) -> Side:
    model, ids = their_smollm2(device), _long(device)

    def run() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(ids, use_cache=False).logits
            return logits

    return run


def decode_ours(device: torch.device) -> Side:
    """Write some tokens with the companion's model."""
    model, ids = smollm2(device=device).model, prompt(device)
    return lambda: generate(model, ids, tokens=WRITTEN)


def _decode_theirs(device: torch.device) -> Side:
    return their_writing(device, WRITTEN)


def _products(device: torch.device) -> Side:
    """The matrix-vector products of decoding, and nothing else."""
    model = smollm2(device=device).model
    weights = [p.detach() for p in model.parameters() if p.ndim == 2]
    g = torch.Generator().manual_seed(0)
    rows = {w.shape[1]: torch.randn(1, 1, w.shape[1], generator=g).to(device) for w in weights}

    def run() -> None:
        with torch.inference_mode():
            for _ in range(WRITTEN):
                for weight in weights:
                    torch.nn.functional.linear(rows[weight.shape[1]], weight)

    return run


def _any(ours: Any, theirs: Any) -> None:
    """The two sides of a bound do not have the same result."""


def _equal(ours: Tensor, theirs: Tensor) -> None:
    assert torch.equal(ours.cpu(), theirs.cpu()), "the two write different tokens"


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    peer = "transformers, SDPA, same weights"
    yield Pair(
        name="model/encode",
        task="MiniLM, 64 sentences, one padded batch",
        peer=peer,
        needs=NEEDS,
        ours=_encode_ours,
        theirs=_encode_theirs,
        same=close(1e-4),
        speed=1.0,
        note="Both spend their time in the same products.",
    )
    yield Pair(
        name="model/embed",
        task="MiniLM, 64 sentences from text to vectors",
        peer=peer,
        needs=NEEDS,
        ours=_embed_ours,
        theirs=_embed_theirs,
        same=close(1e-4),
        speed=1.0,
        note="Ours batches sentences of like length, so that less is padded.",
    )
    yield Pair(
        name="model/prefill",
        task="SmolLM2, logits of 512 tokens",
        peer=peer,
        needs=NEEDS,
        ours=_prefill_ours,
        theirs=_prefill_theirs,
        same=close(1e-4),
        speed=1.0,
    )
    yield Pair(
        name="model/decode",
        task=f"SmolLM2, {WRITTEN} greedy tokens, float32, one sequence",
        peer="transformers' generate, same weights",
        needs=NEEDS,
        ours=decode_ours,
        theirs=_decode_theirs,
        same=_equal,
        speed=1.25,
        note="Most of our time goes into reading the weights, which both must do: see below.",
    )
    yield Pair(
        name="model/decode-bound",
        task=f"SmolLM2, {WRITTEN} greedy tokens, float32, one sequence",
        peer="the matrix-vector products of these tokens alone",
        ours=decode_ours,
        theirs=_products,
        same=_any,
        speed=0.75,
        note="A bound, not a rival: what reading the weights costs.",
    )
