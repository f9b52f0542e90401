"""SmolLM2 writing with a sampler, by beams, and ahead of itself."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks._pair import Pair, Side
from benchmarks.pairs._peers import NEEDS, prompt, their_writing
from companion import data
from companion.core import generator
from companion.generation.decoding import Pipeline, PromptLookup, Speculative, beam_search
from companion.models import generate, sample, smollm2

WRITTEN, BEAMS = 48, 4
TEMPERATURE, MASS = 0.8, 0.95


def _sample_ours(device: torch.device) -> Side:
    model, ids = smollm2(device=device).model, prompt(device)
    warp = Pipeline(temperature=TEMPERATURE, top_p=MASS)

    def run() -> Tensor:
        pick = sample(generator=generator(0, device), warp=warp)
        return generate(model, ids, tokens=WRITTEN, pick=pick)

    return run


def _sample_theirs(device: torch.device) -> Side:
    options = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "top_p": MASS}
    return their_writing(device, WRITTEN, **options)


def _beam_ours(device: torch.device) -> Side:
    model, ids = smollm2(device=device).model, prompt(device)
    return lambda: beam_search(model, ids, tokens=WRITTEN, beams=BEAMS).ids[:, 0]


def _beam_theirs(device: torch.device) -> Side:
    return their_writing(device, WRITTEN, num_beams=BEAMS)


def _article(device: torch.device) -> Tensor:
    """Part of a news article, and the beginning of its repetition."""
    lm = data.smollm2()
    part = " ".join(data.xsum()[100].document.split()[:60])
    ids = lm.tokenizer.encode(f"{part}\n\nAgain, word for word:\n\n{part[:60]}").ids
    return torch.tensor([ids], device=device)


def _ahead(device: torch.device) -> Side:
    model, ids = smollm2(device=device).model, _article(device)
    return lambda: generate(
        Speculative(model, PromptLookup(), ahead=8),  # fresh: it counts its passes
        ids,
        tokens=WRITTEN,
    )


def _plain(device: torch.device) -> Side:
    model, ids = smollm2(device=device).model, _article(device)
    return lambda: generate(model, ids, tokens=WRITTEN)


def _as_long(ours: Tensor, theirs: Tensor) -> None:
    """Two generators of random numbers write two texts; the unit tests compare the laws."""
    assert ours.shape == theirs.shape == (1, WRITTEN), "the two write texts of different lengths"


def _equal(ours: Tensor, theirs: Tensor) -> None:
    assert torch.equal(ours.cpu(), theirs.cpu()), "the two write different tokens"


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    peer = "transformers' generate, same weights"
    yield Pair(
        name="generation/sample",
        task=f"SmolLM2, {WRITTEN} tokens, temperature {TEMPERATURE}, top-p {MASS}",
        peer=peer,
        needs=NEEDS,
        ours=_sample_ours,
        theirs=_sample_theirs,
        same=_as_long,
        speed=1.15,
        note="As with greedy decoding, most of the time goes into reading the weights.",
    )
    yield Pair(
        name="generation/beam",
        task=f"SmolLM2, {WRITTEN} tokens, {BEAMS} beams",
        peer=peer,
        needs=NEEDS,
        ours=_beam_ours,
        theirs=_beam_theirs,
        same=_equal,
        speed=1.15,
        note="As with greedy decoding, most of the time goes into reading the weights.",
    )
    yield Pair(
        name="generation/lookup",
        task=f"SmolLM2 repeats an article, {WRITTEN} greedy tokens, prompt lookup of 8",
        peer="the companion's plain decoding",
        ours=_ahead,
        theirs=_plain,
        same=_equal,
        speed=1.8,
        note="What is gained depends on how much of the text is copied.",
    )
