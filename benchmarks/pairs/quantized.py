"""SmolLM2 in integers against itself in floats: what packed kernels bring to decoding."""

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks._pair import Pair, Side
from benchmarks.pairs._peers import NEEDS, prompt, their_writing
from companion.efficiency.quantization import quantize, smollm2_q4_1
from companion.models import generate, smollm2

WRITTEN = 24


def _writing(model: Any, device: torch.device) -> Side:
    ids = prompt(device)
    return lambda: generate(model, ids, tokens=WRITTEN)


def _floats(device: torch.device) -> Side:
    return _writing(smollm2(device=device).model, device)


def _eight(device: torch.device) -> Side:
    return _writing(quantize(smollm2(device=device).model, bits=8), device)


def _four(device: torch.device) -> Side:
    return _writing(smollm2_q4_1().model, device)


def _theirs(device: torch.device) -> Side:
    return their_writing(device, WRITTEN)


def _first_word(ours: Any, theirs: Any) -> None:
    """Rounded weights may write another text; the first token is the same here."""
    assert torch.equal(ours[:, 0].cpu(), theirs[:, 0].cpu()), "the first tokens differ"


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    task = f"SmolLM2, {WRITTEN} greedy tokens, one sequence"
    yield Pair(
        name="quantized/decode-8",
        task=f"{task}, 8 bits",
        peer="the companion's float32 model",
        ours=_eight,
        theirs=_floats,
        same=_first_word,
        speed=1.7,
        devices=("cpu",),
        note="Weights rounded to nearest, one step a row; activations in bfloat16.",
    )
    yield Pair(
        name="quantized/decode-4",
        task=f"{task}, the 4-bit codes of its file",
        peer="the companion's float32 model",
        ours=_four,
        theirs=_floats,
        same=_first_word,
        speed=2.5,
        devices=("cpu",),
        note="The same weights in both, up to the rounding of steps to bfloat16.",
    )
    yield Pair(
        name="quantized/decode-4-peer",
        task=f"{task}, the 4-bit codes of its file",
        peer="transformers' generate, float32",
        needs=NEEDS,
        ours=_four,
        theirs=_theirs,
        same=_first_word,
        speed=3.0,
        devices=("cpu",),
    )
