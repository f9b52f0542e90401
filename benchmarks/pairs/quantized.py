"""SmolLM2 in integers against itself in floats: what packed kernels bring to decoding."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks._pair import Pair, Side
from benchmarks.pairs._peers import NEEDS, llama_weights, quiet, their_llama
from companion import data
from companion.efficiency.quantization import quantize, smollm2_q4_1
from companion.models import generate, smollm2

WRITTEN = 24


def _prompt(device: torch.device) -> Tensor:
    ids = data.smollm2().tokenizer.encode("The history of Paris begins").ids
    return torch.tensor([ids], device=device)


def _writing(model: Any, device: torch.device) -> Side:
    ids = _prompt(device)
    return lambda: generate(model, ids, tokens=WRITTEN)


def _floats(device: torch.device) -> Side:
    return _writing(smollm2(device=device).model, device)


def _eight(device: torch.device) -> Side:
    return _writing(quantize(smollm2(device=device).model, bits=8), device)


def _four(device: torch.device) -> Side:
    return _writing(smollm2_q4_1().model, device)


def _theirs(device: torch.device) -> Side:
    quiet()
    ours = smollm2().model
    model = their_llama(ours.config)
    model.load_state_dict(llama_weights(ours))
    model = model.eval().to(device)
    ids = _prompt(device)
    mask = torch.ones_like(ids)

    def run() -> Tensor:
        written: Tensor = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=WRITTEN,
            min_new_tokens=WRITTEN,
            do_sample=False,
        )
        return written[:, ids.shape[1] :]

    return run


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
