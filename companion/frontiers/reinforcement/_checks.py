"""What several functions of this chapter ask of their inputs, and one way to average."""

from typing import Literal

import torch
from torch import Tensor

from companion.core import check_finite, check_floating, check_in_range, check_shape

__all__ = ["Normalize", "average", "check_mask", "check_normalize", "check_scores", "per_token"]

Normalize = Literal["sequence", "token", "length", "sum"]
_NORMALIZE = ("sequence", "token", "length", "sum")


def check_scores(name: str, scores: Tensor, like: Tensor) -> None:
    """Require floating numbers of the shape of others."""
    check_floating(name, scores)
    check_shape(name, scores, tuple(like.shape))


def check_mask(real: Tensor, like: Tensor) -> None:
    """Require a boolean mask of the shape of the tokens."""
    check_shape("real", real, tuple(like.shape))
    if real.dtype != torch.bool:
        raise ValueError(f"real must be boolean, True for tokens that count, got {real.dtype}")


def check_normalize(normalize: str, length: int | None) -> None:
    """Require a known way to average, with a length exactly where one is used."""
    if normalize not in _NORMALIZE:
        raise ValueError(f"normalize must be one of {', '.join(_NORMALIZE)}, got {normalize!r}")
    if (normalize == "length") != (length is not None):
        raise ValueError(
            'normalize="length" divides by a length that is the same for all texts: pass length= '
            f"with it, and with no other; got normalize={normalize!r} and length={length}"
        )


def per_token(advantages: Tensor, like: Tensor) -> Tensor:
    """One advantage for each token, given one for each text or for each token."""
    check_floating("advantages", advantages)
    if advantages.ndim == 1:
        check_shape("advantages", advantages, (like.shape[0],))
        check_finite("advantages", advantages)
        return advantages[:, None]
    check_shape("advantages", advantages, tuple(like.shape))
    return advantages


def average(
    losses: Tensor,
    real: Tensor,
    normalize: str,
    *,
    length: int | None = None,
    total: float | Tensor | None = None,
) -> Tensor:
    """Average what tokens contribute; what does not count may hold anything."""
    if isinstance(total, float | int):
        check_in_range("total", total, low=0.0, open_low=True)
    losses = losses.masked_fill(~real, 0.0)
    if normalize == "token":
        count = real.sum() if total is None else torch.as_tensor(total, device=losses.device)
        return losses.sum() / count.clamp_min(1)
    rows = losses.sum(-1)
    if normalize == "sequence":
        rows = rows / real.sum(-1).clamp_min(1)
    elif normalize == "length":
        assert length is not None
        rows = rows / length
    return rows.sum() / (max(len(rows), 1) if total is None else total)
