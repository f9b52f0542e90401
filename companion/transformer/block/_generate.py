"""Writing on: the most likely next token, again and again."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from companion.core import check_count, check_ids, check_shape
from companion.transformer.block._model import Decoder

__all__ = ["greedy"]


def greedy(
    model: Decoder,
    ids: Integer[Tensor, "batch n"],
    *,
    tokens: int,
    real: Bool[Tensor, "batch n"] | None = None,
    stop: Sequence[int] = (),
) -> Integer[Tensor, "batch written"]:
    r"""Continue each sequence with its most likely next token, step by step.

    .. math:: x_{t+1} = \arg\max_v \; p(v \mid x_1, \dots, x_t)

    The prompt is read once, and every new token once, with a
    :class:`~companion.transformer.multi_head.KVCache`.

    Args:
        model: The language model.
        ids: Prompts. Pad shorter ones on the left.
        tokens: How many tokens to write at most.
        real: ``True`` for tokens of a prompt, ``False`` for padding; all are tokens by default.
        stop: Tokens that end a sequence. Writing ends when every sequence has ended.

    Returns:
        The new tokens only. A sequence that ended is filled up with the token that ended it.

    Raises:
        ValueError: If the prompt is empty, or prompt and continuation exceed the context; if a
            row is padding only, or is not padded on the left.

    Numerics:
        One pass over the weights a token: at batch size 1 the time is that of reading them from
        memory. With ``stop``, each step waits for the device, to see whether all have ended.
        Ties go to the smallest id on the CPU.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> from companion.transformer.block import Decoder, TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> greedy(Decoder(config), torch.tensor([[1, 2, 3]]), tokens=4).shape
        torch.Size([1, 4])
    """
    check_shape("ids", ids, (None, None))
    check_count("tokens", tokens)
    batch, n = ids.shape
    check_count("tokens of the prompt", n)
    check_ids("stop", torch.tensor(list(stop), dtype=torch.long), model.config.vocab)
    if n + tokens > model.config.context:
        raise ValueError(
            f"{n} tokens of the prompt and {tokens} new ones exceed the model's context "
            f"of {model.config.context}"
        )
    seen = None
    if real is not None:
        check_shape("real", real, (batch, n))
        _check_left_padding(real)
        ahead = torch.ones(batch, tokens, dtype=torch.bool, device=real.device)
        seen = torch.cat([real, ahead], dim=1)

    # Inference mode spares autograd's bookkeeping of views, a tenth of the time of a small model.
    # What leaves it is joined outside, so that the caller gets an ordinary tensor.
    with torch.inference_mode():
        written = _write(model, ids, seen, tokens, stop)
    return torch.cat(written, dim=1)


def _write(
    model: Decoder, ids: Tensor, seen: Tensor | None, tokens: int, stop: Sequence[int]
) -> list[Tensor]:
    """The chosen tokens, one column a step."""
    batch, n = ids.shape
    cache = model.cache(batch, n + tokens)
    ends = torch.tensor(list(stop), dtype=ids.dtype, device=ids.device)
    ended = torch.zeros(batch, 1, dtype=torch.bool, device=ids.device)
    written: list[Tensor] = []
    read = ids
    for step in range(tokens):
        kept = None if seen is None else seen[:, : n + step]
        logits = model(read, real=kept, cache=cache, last=1)
        chosen = logits[:, -1].argmax(dim=-1, keepdim=True).to(ids.dtype)
        if stop:
            if written:
                chosen = torch.where(ended, written[-1], chosen)
            ended = torch.isin(chosen, ends)
        written.append(chosen)
        if stop and bool(ended.all()):
            break
        read = chosen
    return written


def _check_left_padding(real: Tensor) -> None:
    if real.device.type == "meta":
        return
    if not bool(real[:, -1].all()) or bool((real[:, :-1] & ~real[:, 1:]).any()):
        raise ValueError(
            "prompts must be padded on the left, and hold a token each: "
            "False first, then True to the end of the row"
        )
