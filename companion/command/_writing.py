"""A prompt and what a model writes after it."""

from pathlib import Path

import torch

from companion.command._options import count
from companion.core import generator
from companion.efficiency.quantization import is_quantized, load_quantized
from companion.models import TextDecoder, generate, load_pretrained, sample

__all__ = ["continue_prompt"]


def continue_prompt(
    directory: str | Path,
    prompt: str,
    *,
    tokens: int,
    temperature: float = 0.8,
    seed: int = 0,
    device: str | torch.device | None = "cpu",
) -> str:
    """Continue a prompt with a model of Llama's form.

    Args:
        directory: Its folder.
        prompt: The beginning; an empty one starts a new text.
        tokens: How many tokens to write at most.
        temperature: 0 or more; 0 takes the most likely token.
        seed: Of the draws.
        device: Where to compute.

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
    new = generate(
        loaded.model,
        ids,
        tokens=tokens,
        pick=sample(generator=generator(seed), temperature=temperature),
        stop=stop,
    )[0].tolist()
    ended = next((place for place, token in enumerate(new) if token in stop), len(new))
    # Both together: some tokenizers take the first space of a text away.
    before, both = (loaded.tokenizer.decode(made) for made in (row, [*row, *new[:ended]]))
    return prompt + both.removeprefix(before)
