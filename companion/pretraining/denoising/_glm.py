"""GLM's form of a text: what is left of it, then its spans, written one after another."""

import torch
from jaxtyping import Bool
from torch import Tensor

from companion.core import can_read, check_shape
from companion.foundations.cross_entropy import IGNORE
from companion.pretraining.denoising._tokens import Tokens, check_tokens, pack, trim
from companion.pretraining.denoising._unified import Batch
from companion.transformer.attention import prefix

__all__ = ["glm_batch"]


def glm_batch(
    tokens: Tokens,
    spans: Bool[Tensor, "batch n"],
    *,
    mask_id: int,
    start: int,
    end: int,
    room: int | None = None,
    generator: torch.Generator,
) -> Batch:
    r"""Lay out a text for autoregressive blank filling.

    Part A is the text with one mask for each span. Part B has the spans in random order, each
    behind a start token; a span is written token by token, and then the end token. Part A reads
    itself; part B reads A and what was written before. Each token has two positions:

    .. math:: p = \begin{cases} \text{place in A} & \\ \text{place of the span's mask} & \end{cases}
        \qquad
        q = \begin{cases} 0 & \text{in A} \\ 1, 2, \dots, \ell + 1 & \text{in a span of B}
        \end{cases}

    so that the length of a span cannot be read off. ``positions`` holds :math:`p` and ``segments``
    :math:`q`: the model needs as many segments as the longest span has tokens, and 2 more.

    Args:
        tokens: The rows.
        spans: ``True`` for what is to be written, for example from :func:`random_spans`.
            Neighboring marks form one span.
        mask_id: Id of the mask in A.
        start: Id of the start token of a span.
        end: Id of the end token of a span, a label only.
        room: Columns of part B: at least the marked tokens and one more a span. With it shapes
            follow from the arguments alone; without it both parts are as wide as needed, for which
            the longest row is read.
        generator: Shuffles the spans.

    Returns:
        The batch for :class:`UnifiedLM`.

    Raises:
        ValueError: If shapes do not fit, padding is not on the right, a span covers padding, or
            there is not enough room.

    References:
        Z. Du et al., "GLM", arXiv:2103.10360, sections 2.1 and 2.2, figure 2. There the lengths of
        the spans are drawn from a Poisson distribution; here they are the caller's.

    Book: :doc:`/book/pretraining/denoising`

    Example:
        >>> from companion.pretraining.denoising import pad_rows
        >>> g = torch.Generator().manual_seed(0)
        >>> spans = torch.tensor([[0, 0, 1, 0, 1, 1]]).bool()
        >>> batch = glm_batch(
        ...     pad_rows([[1, 2, 3, 4, 5, 6]]), spans, mask_id=7, start=8, end=9, generator=g)
        >>> batch.ids
        tensor([[1, 2, 7, 4, 7, 8, 3, 8, 5, 6]])
        >>> batch.positions
        tensor([[0, 1, 2, 3, 4, 2, 2, 4, 4, 4]])
        >>> batch.segments
        tensor([[0, 0, 0, 0, 0, 1, 2, 1, 2, 3]])
    """
    check_tokens("tokens", tokens)
    ids, real = tokens
    batch, n = ids.shape
    check_shape("spans", spans, (batch, n))
    if can_read(spans) and bool((spans & ~real).any()):
        raise ValueError("spans must cover real tokens only")
    first = spans & ~torch.nn.functional.pad(spans[:, :-1], (1, 0))
    stays = real & (first | ~spans)
    left = pack(ids.masked_fill(first, mask_id), stays)

    # Two slots a token: a start token before the first of a span, and the token itself.
    line = torch.arange(n, device=ids.device).expand(batch, n)
    offset = line - torch.where(first, line, -1).cummax(1).values
    place = (stays.long().cumsum(1) - 1).clamp(min=0)
    shuffled = torch.rand(ids.shape, generator=generator, device=generator.device).to(ids.device)
    shuffled = shuffled.argsort(dim=1, stable=True)
    turn = shuffled.gather(1, (first.long().cumsum(1) - 1).clamp(min=0))

    def slots(at_start: Tensor, at_token: Tensor) -> Tensor:
        return torch.stack([at_start.expand(batch, n), at_token], -1).flatten(1)

    used = slots(first, spans)
    order = slots(turn, turn).masked_fill(~used, n).argsort(dim=1, stable=True)
    fill = ids.new_full((1, 1), start)
    written = slots(fill, ids).gather(1, order)
    block = slots(torch.ones_like(line), offset + 2).gather(1, order)
    home = slots(place, place).gather(1, order)
    counts = used.sum(1, keepdim=True)
    if room is None:
        left = trim(left)
        room = max(int(counts.max()), 1)
    elif can_read(counts) and int(counts.max()) > room:
        raise ValueError(f"the spans need {int(counts.max())} columns, and room is {room}")
    missing = max(room - 2 * n, 0)
    written, block, home = (
        torch.nn.functional.pad(part, (0, missing))[:, :room] for part in (written, block, home)
    )
    there = torch.arange(room, device=ids.device) < counts
    # The label of a slot is the token in the next one, or the end where a new span begins.
    goes_on = torch.nn.functional.pad((block > 1)[:, 1:] & there[:, 1:], (0, 1))
    labels = torch.nn.functional.pad(written[:, 1:], (0, 1)).masked_fill(~goes_on, end)

    width = left.ids.shape[1]
    places = torch.arange(width, device=ids.device).expand(batch, width)
    return Batch(
        ids=torch.cat([left.ids, written], 1),
        real=torch.cat([left.real, there], 1),
        labels=labels.masked_fill(~there, IGNORE),
        predict=torch.arange(width, width + room, device=ids.device).expand(batch, room),
        mask=prefix(width),
        positions=torch.cat([places, home.masked_fill(~there, 0)], 1),
        segments=torch.cat([torch.zeros_like(places), block.masked_fill(~there, 0)], 1),
    )
