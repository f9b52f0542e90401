"""Find all values of a key: they lie side by side once keys are sorted."""

import torch
from torch import Tensor


class SortedIndex:
    """Pairs of a key and a value, sorted; equal pairs count once.

    Args:
        keys: Keys, 0 or above.
        values: Values from 0 to ``size - 1``.
        size: Number of values.
    """

    def __init__(self, keys: Tensor, values: Tensor, *, size: int) -> None:
        both = torch.unique(keys * size + values)
        self.keys, self.values = both // size, both % size

    def find(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """All values of each key: places in ``keys``, and beside them the values."""
        keys = keys.contiguous()
        low = torch.searchsorted(self.keys, keys)
        lengths = torch.searchsorted(self.keys, keys, right=True) - low
        row = torch.repeat_interleave(lengths)
        first = lengths.cumsum(0) - lengths
        place = torch.arange(len(row), device=row.device) - first[row] + low[row]
        return row, self.values[place]
