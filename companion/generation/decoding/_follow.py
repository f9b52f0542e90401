"""A second model that reads the text which the first one writes."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["Follower", "common", "longer"]


class Follower:
    """A model that is asked about one growing text, and reads each of its tokens once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache: Any = None
        self.known = torch.zeros(0, 0, dtype=torch.long)  # what the cache holds, padding as -1

    def __call__(self, text: Tensor, real: Tensor | None) -> Tensor:
        """The logits of what follows the text."""
        context = self.model.config.context
        if text.shape[1] > context:  # the later half, moved on seldom
            half = max(context // 2, 1)
            begin = -(-(text.shape[1] - context) // half) * half
            begin = min(begin, text.shape[1] - 1)
            text, real = text[:, begin:], None if real is None else real[:, begin:]
        batch, n = text.shape
        marked = text if real is None else text.masked_fill(~real, -1)
        kept = min(common(self.known, marked), n - 1)
        if self.cache is None or len(self.known) != batch or n > self.cache.capacity:
            self.cache = self.model.cache(batch, min(context, max(64, 2 * n)))
            kept = 0
        self.cache.truncate(min(kept, self.cache.length))
        kept = self.cache.length
        self.known = marked[:, :kept]  # should the model fail, the rest is read again
        with torch.inference_mode():
            logits = self.model(text[:, kept:], real=real, cache=self.cache, last=1)
        self.known = marked
        scored: Tensor = logits[:, -1]
        return scored


def common(known: Tensor, text: Tensor) -> int:
    """How many first columns two tables of tokens share."""
    if len(known) != len(text):
        return 0
    n = min(known.shape[1], text.shape[1])
    differ = (known[:, :n] != text[:, :n]).any(0)
    return int(differ.int().argmax()) if bool(differ.any()) else n


def longer(real: Tensor | None, more: int) -> Tensor | None:
    """The same mask, for more tokens."""
    return None if real is None else torch.cat([real, real.new_ones(len(real), more)], 1)
