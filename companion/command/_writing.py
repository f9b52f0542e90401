"""A prompt and what a model writes after it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from companion.command._options import Schema, count
from companion.core import generator
from companion.efficiency.quantization import is_quantized, load_quantized
from companion.generation.control import (
    Constraint,
    Grammar,
    Pushdown,
    TokenIndex,
    Vocabulary,
    is_recursive,
)
from companion.generation.decoding import Pipeline
from companion.models import History, Pick, TextDecoder, generate, load_pretrained, sample
from companion.models._text import Pieces

__all__ = ["continue_prompt"]


def continue_prompt(
    directory: str | Path,
    prompt: str,
    *,
    tokens: int,
    temperature: float = 0.8,
    seed: int = 0,
    device: str | torch.device | None = "cpu",
    steps: Mapping[str, float] | None = None,
    demand: str | Schema | None = None,
    stream: Callable[[str], object] | None = None,
) -> str:
    """Continue a prompt with a model of Llama's form.

    Args:
        directory: Its folder.
        prompt: The beginning; an empty one starts a new text.
        tokens: How many tokens to write at most.
        temperature: 0 or more; 0 takes the most likely token.
        seed: Of the draws.
        device: Where to compute.
        steps: Further steps of a :class:`~companion.generation.decoding.Pipeline`, by their names.
            Those that look at the text come before the temperature, and truncations after it.
        demand: What the new text has to obey: a regular expression, or a JSON schema. Then it is
            complete within ``tokens`` tokens.
        stream: Called with the prompt, and then with each piece as soon as it is there.

    Returns:
        The prompt and what follows, up to the end of the text if the model ends it.

    Raises:
        FileNotFoundError: If the folder holds no model.
        ValueError: If an argument is out of its domain, or the model is of another form.
    """
    count("tokens", tokens)
    read = load_quantized if is_quantized(directory) else load_pretrained
    loaded = read(directory, device=device)
    if not isinstance(loaded, TextDecoder):
        raise ValueError(f"{directory} holds no decoder: only a decoder continues a text")
    if loaded.tokenizer is None:
        raise FileNotFoundError(f"{directory} holds no tokenizer.json")
    row = loaded.tokenizer.encode(prompt).ids
    stop = loaded.stop
    if not row:
        row = list(stop[:1])
    if not row:
        raise ValueError("the model has no token to begin with: give a prompt")
    ids = torch.tensor([row], device=next(loaded.model.parameters()).device)
    constraint = None
    if demand is not None:
        constraint = Constraint(_grammar(loaded, demand, ids.device), tokens=tokens)
    pieces = None
    if stream is not None:
        stream(prompt)
        pieces = Pieces(loaded._after, row, stop, stream)
    new = generate(
        loaded.model,
        ids,
        tokens=tokens,
        pick=_pick(temperature, steps or {}, seed, constraint),
        stop=stop,
        stream=pieces,
    )[0].tolist()
    if pieces is not None:
        pieces.finish()
    ended = next((place for place, token in enumerate(new) if token in stop), len(new))
    return prompt + loaded._after(row, new[:ended])


def _grammar(loaded: TextDecoder, demand: str | Schema, device: torch.device) -> Grammar:
    """Read an expression or a schema in the tokens of the model."""
    if not loaded.stop:
        raise ValueError("the model has no token that ends a text: it cannot obey a constraint")
    words = Vocabulary.from_tokenizer(loaded.tokenizer)
    missing = loaded.model.config.vocab - len(words)
    if missing:  # rows of the model beyond the tokenizer write nothing
        words = Vocabulary([*words.tokens, *[b""] * missing])
    if isinstance(demand, str):
        return TokenIndex.from_regex(demand, words, stop=loaded.stop).to(device)
    if is_recursive(demand.value):
        return Pushdown.from_schema(demand.value, words, stop=loaded.stop)
    return TokenIndex.from_schema(demand.value, words, stop=loaded.stop).to(device)


def _pick(
    temperature: float, steps: Mapping[str, float], seed: int, constraint: Constraint | None = None
) -> Pick:
    """Draw with these settings, of what a constraint allows."""
    order = ("repetition_penalty", "no_repeat_ngram", "top_k", "top_p", "min_p", "typical")
    before = {name: steps[name] for name in order[:2] if name in steps}
    after = {name: steps[name] for name in order[2:] if name in steps}
    # A temperature near 0 would overflow the logits that a truncation reads: its limit is 0.
    cooled = {"temperature": temperature if temperature > 1e-6 else 0.0} if after else {}
    warp = Pipeline(**before, **cooled, **after)
    last = 1.0 if after else temperature

    def obeying(logits: torch.Tensor, history: History) -> torch.Tensor:
        # First what is allowed: a truncation before it might leave nothing of that.
        return warp(logits if constraint is None else constraint(logits, history), history)

    change = obeying if warp.steps or constraint is not None else None
    return sample(generator=generator(seed), temperature=last, warp=change)
