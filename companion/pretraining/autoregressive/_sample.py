"""Writing on at random: the next token is drawn from the model's own distribution."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import check_count, check_ids, check_in_range, check_shape, rand
from companion.foundations.cross_entropy import softmax
from companion.transformer.block import Decoder

__all__ = ["draw", "sample"]


def draw(
    logits: Float[Tensor, "*batch vocab"],
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
) -> Integer[Tensor, "*batch"]:
    r"""Draw one class from the softmax of each row.

    .. math:: P(i) = \mathrm{softmax}(z / T)_i

    Args:
        logits: Logits :math:`z`, finite or :math:`-\infty`.
        generator: The source of randomness.
        temperature: :math:`T \ge 0`; 0 takes the largest logit, the limit from above.

    Returns:
        Class ids, int64.

    Raises:
        ValueError: If there is no class, or the temperature is below 0.

    Numerics:
        One uniform number a row, by inversion of the cumulated probabilities in float32 or
        better. A class of probability 0 is never drawn.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> rows = torch.tensor([0.25, 0.75]).log().expand(10_000, 2)
        >>> round(float(draw(rows, generator=g).double().mean()), 1)
        0.8
    """
    check_in_range("temperature", temperature, low=0.0, open_high=True)
    check_count("classes", logits.shape[-1] if logits.ndim else 0)
    if temperature == 0:
        return logits.argmax(dim=-1)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    below = softmax(wide, temperature=temperature).cumsum(-1)
    total = below[..., -1:]
    u = rand(*total.shape, generator=generator, device=logits.device, dtype=torch.float32)
    # Strictly below the total, so that the interval found has a positive width.
    point = torch.minimum(u.to(total.dtype) * total, torch.nextafter(total, total.new_zeros(())))
    return torch.searchsorted(below, point, right=True).squeeze(-1)


def sample(
    model: Decoder,
    ids: Integer[Tensor, "batch n"],
    *,
    tokens: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    stop: Sequence[int] = (),
) -> Integer[Tensor, "batch written"]:
    r"""Continue each sequence with tokens drawn from the model: ancestral sampling.

    .. math:: x_{t+1} \sim \mathrm{softmax}(z_t / T)

    At temperature 1 a continuation is a sample from the model's own distribution over texts.

    Args:
        model: The language model. It is left in its mode: call ``eval()`` first where it has
            dropout.
        ids: Prompts of one length, at least one token.
        tokens: How many tokens to write at most.
        generator: The source of randomness.
        temperature: :math:`T \ge 0`; below 1 the likely becomes more likely, and 0 is
            :func:`companion.transformer.block.greedy`.
        stop: Tokens that end a sequence. Writing ends when every sequence has ended.

    Returns:
        The new tokens only. A sequence that ended is filled up with the token that ended it.

    Raises:
        ValueError: If the prompt is empty, or the temperature is below 0.

    Numerics:
        One pass over the weights a token, with a cache. Where a text outgrows the model's
        context, its last half context is read again and writing goes on from there: the model
        then sees between half and all of its context.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> g = torch.Generator().manual_seed(0)
        >>> sample(Decoder(config), torch.tensor([[1, 2, 3]]), tokens=15, generator=g).shape
        torch.Size([1, 15])
    """
    check_shape("ids", ids, (None, None))
    check_count("tokens", tokens)
    check_count("tokens of the prompt", ids.shape[1])
    check_ids("stop", torch.tensor(list(stop), dtype=torch.long), model.config.vocab)
    ends = torch.tensor(list(stop), dtype=ids.dtype, device=ids.device)
    ended = torch.zeros(ids.shape[0], 1, dtype=torch.bool, device=ids.device)
    context = model.config.context
    written = ids[:, :0]
    # Inference mode spares autograd's bookkeeping; what leaves it is joined outside.
    while written.shape[1] < tokens and not (stop and bool(ended.all())):
        text = torch.cat([ids, written], dim=1)
        if text.shape[1] >= context:
            text = text[:, -max(context // 2, 1) :]
        room = min(tokens - written.shape[1], max(context - text.shape[1], 1))
        with torch.inference_mode():
            new, ended = _write(model, text, room, generator, temperature, ends, ended, written)
        written = torch.cat([written, *new], dim=1)
        ended = ended.clone()
    return written


def _write(
    model: Decoder,
    text: Tensor,
    tokens: int,
    generator: torch.Generator,
    temperature: float,
    ends: Tensor,
    ended: Tensor,
    before: Tensor,
) -> tuple[list[Tensor], Tensor]:
    """The drawn tokens, one column a step, and which sequences have ended."""
    cache = model.cache(text.shape[0], min(text.shape[1] + tokens, model.config.context))
    last = before[:, -1:]
    columns: list[Tensor] = []
    read = text
    for _ in range(tokens):
        logits = model(read, cache=cache, last=1)[:, -1]
        read = draw(logits, generator=generator, temperature=temperature)[:, None].to(text.dtype)
        if len(ends):
            if last.shape[1]:
                read = torch.where(ended, last, read)
            ended = torch.isin(read, ends)
            last = read
        columns.append(read)
        if len(ends) and bool(ended.all()):
            break
    return columns, ended
