"""Rows of tokens of different lengths, and what turns them into a decoder's inputs and labels."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from companion.core import can_read, check_shape
from companion.foundations.cross_entropy import IGNORE

__all__ = [
    "Pair",
    "Tokens",
    "check_tokens",
    "choose",
    "enclose",
    "pack",
    "pad_rows",
    "rounded",
    "shift_right",
    "target_labels",
    "trim",
    "unpad",
]


class Tokens(NamedTuple):
    """Texts of different lengths as one rectangle, padded on the right.

    Attributes:
        ids: Token ids; what stands at padding means nothing.
        real: ``True`` for tokens, ``False`` for padding.
    """

    ids: Integer[Tensor, "batch n"]
    real: Bool[Tensor, "batch n"]


class Pair(NamedTuple):
    """What a model reads and what it shall write.

    Attributes:
        source: The corrupted text.
        target: The text to be produced, without a start token.
    """

    source: Tokens
    target: Tokens


def pad_rows(
    rows: Sequence[Sequence[int]], *, pad: int = 0, device: str | torch.device | None = None
) -> Tokens:
    """Put lists of ids side by side, as long as the longest.

    Args:
        rows: One list a text; at least one.
        pad: The id that fills shorter rows.
        device: Where to make the tensors.

    Returns:
        Ids, and which of them are real.

    Raises:
        ValueError: If there is no row.

    Book: :doc:`/book/pretraining/denoising`

    Example:
        >>> pad_rows([[5, 6, 7], [8]]).ids
        tensor([[5, 6, 7],
                [8, 0, 0]])
    """
    if not rows:
        raise ValueError("rows must hold at least one text")
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return Tokens(
        ids.reshape(len(rows), width).long(),
        torch.arange(width, device=device) < lengths[:, None],
    )


def unpad(tokens: Tokens) -> list[list[int]]:
    """Return the rows as lists, without padding. It reads values, so it is not for hot paths.

    Args:
        tokens: The rows.

    Returns:
        One list of ids a row.

    Example:
        >>> unpad(pad_rows([[5, 6, 7], [8]]))
        [[5, 6, 7], [8]]
    """
    return [[int(i) for i in row[keep]] for row, keep in zip(tokens.ids, tokens.real, strict=True)]


def trim(tokens: Tokens) -> Tokens:
    """Drop the last columns that are padding in every row.

    Args:
        tokens: The rows.

    Returns:
        The same rows, as wide as the longest, and one column at least.

    Numerics:
        The functions of this chapter give rows of a width that follows from shapes alone, so that
        nothing waits for an accelerator. This function reads the longest length, once.
    """
    width = max(int(tokens.real.sum(1).max()), 1)
    return Tokens(tokens.ids[:, :width], tokens.real[:, :width])


def check_tokens(name: str, tokens: Tokens) -> None:
    """Require integers, a mask of the same shape, and padding on the right."""
    ids, real = tokens
    check_shape(f"{name}.ids", ids, (None, None))
    check_shape(f"{name}.real", real, tuple(ids.shape))
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"{name}.ids must hold integers, got {ids.dtype}")
    if real.dtype != torch.bool:
        raise ValueError(f"{name}.real must be Bool, True for tokens, got {real.dtype}")
    if can_read(real) and bool((real[:, 1:] & ~real[:, :-1]).any()):
        raise ValueError(f"{name} must be padded on the right: a token follows padding")


def rounded(share: float | Tensor, of: Tensor) -> Tensor:
    """Whole number nearest to a share of each length; halves go to the even one."""
    return (of.float() * share).round().long()


def choose(
    counts: Integer[Tensor, " batch"],
    among: Bool[Tensor, "batch n"],
    *,
    generator: torch.Generator,
) -> Bool[Tensor, "batch n"]:
    """Mark ``counts`` of the positions in ``among``, each subset being equally likely."""
    scores = torch.rand(among.shape, generator=generator, device=generator.device)
    scores = scores.to(among.device).masked_fill(~among, 2.0)
    rank = scores.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return (rank < counts[:, None]) & among


def pack(
    ids: Integer[Tensor, "batch n"],
    keep: Bool[Tensor, "batch n"],
    *,
    pad: int = 0,
    width: int | None = None,
) -> Tokens:
    """Move the kept tokens of each row to its left end, in their order.

    Args:
        ids: Token ids.
        keep: Which of them stay.
        pad: The id that fills the rest.
        width: Columns of the result, enough for every row; by default as many as before.

    Returns:
        The shorter rows.
    """
    width = ids.shape[1] if width is None else width
    place = torch.where(keep, keep.long().cumsum(1) - 1, width)
    out = ids.new_full((ids.shape[0], width + 1), pad).scatter(1, place, ids)[:, :width]
    real = torch.arange(width, device=ids.device) < keep.sum(1, keepdim=True)
    return Tokens(out.masked_fill(~real, pad), real)


def enclose(
    tokens: Tokens,
    *,
    start: int | Integer[Tensor, " batch"] | None = None,
    end: int | Integer[Tensor, " batch"] | None = None,
) -> Tokens:
    """Put a token before and a token after every row.

    Args:
        tokens: The rows, padded on the right.
        start: Id that is put first; one for all rows, or one for each.
        end: Id that follows the last token of a row.

    Returns:
        Rows that are longer by one token for each of the two that is given.

    Book: :doc:`/book/pretraining/denoising`

    Example:
        >>> unpad(enclose(pad_rows([[5, 6, 7], [8]]), start=1, end=2))
        [[1, 5, 6, 7, 2], [1, 8, 2]]
    """
    check_tokens("tokens", tokens)
    ids, real = tokens
    if start is not None:
        ids = torch.cat([_column(start, ids), ids], 1)
        real = torch.cat([real.new_ones(len(real), 1), real], 1)
    if end is not None:
        lengths = real.sum(1, keepdim=True)
        ids = torch.cat([ids, ids.new_zeros(len(ids), 1)], 1)
        ids = ids.scatter(1, lengths, _column(end, ids))
        real = torch.arange(ids.shape[1], device=ids.device) <= lengths
    return Tokens(ids, real)


def _column(value: int | Tensor, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        check_shape("one id for each row", value, (len(like),))
        return value[:, None].to(like)
    return like.new_full((len(like), 1), value)


def shift_right(target: Tokens, *, start: int) -> Integer[Tensor, "batch n"]:
    r"""Return what a decoder reads while it is taught to write a target.

    .. math:: d_1 = \text{start}, \qquad d_t = y_{t-1}

    so that the logits at position :math:`t` score :math:`y_t`. BART starts with its end token, T5
    with padding.

    Args:
        target: The target :math:`y`.
        start: Id of the start token.

    Returns:
        Ids of the same shape. Where the target is padding they mean nothing; every real position
        has only real ones before it.

    Book: :doc:`/book/pretraining/denoising`

    Example:
        >>> shift_right(pad_rows([[5, 6, 7], [8]]), start=2)
        tensor([[2, 5, 6],
                [2, 8, 0]])
    """
    ids = target.ids
    return torch.cat([_column(start, ids), ids[:, :-1]], 1)[:, : ids.shape[1]]


def target_labels(target: Tokens) -> Integer[Tensor, "batch n"]:
    """Return the ids of a target, and ``-100`` at padding, which a loss then leaves out.

    Args:
        target: The target.

    Returns:
        Labels of the same shape.

    Example:
        >>> target_labels(pad_rows([[5, 6, 7], [8]]))
        tensor([[   5,    6,    7],
                [   8, -100, -100]])
    """
    return target.ids.masked_fill(~target.real, IGNORE)
