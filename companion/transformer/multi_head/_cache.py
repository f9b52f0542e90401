"""Keys and values of tokens that were read before, so that decoding reads each token once."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import check_count

__all__ = ["KVCache", "LayerCache"]


class LayerCache:
    """Keys and values of one layer, in memory that is reserved once.

    Attributes:
        keys: The reserved memory, shape (batch, kv_heads, capacity, head_dim).
        values: The same for values, shape (batch, kv_heads, capacity, value_dim).
        length: How many positions are filled.

    Book: :doc:`/book/transformer/multi_head`
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values
        self.length = 0

    def append(
        self,
        keys: Float[Tensor, "batch kv_heads new head_dim"],
        values: Float[Tensor, "batch kv_heads new value_dim"],
    ) -> tuple[
        Float[Tensor, "batch kv_heads held head_dim"],
        Float[Tensor, "batch kv_heads held value_dim"],
    ]:
        """Store new positions behind the ones that are held.

        Args:
            keys: Keys of the new tokens, already rotated where positions are rotary.
            values: Their values.

        Returns:
            All keys and all values held now, as views into the cache: they change when the cache
            does.

        Raises:
            ValueError: The capacity is exceeded, or batch, heads or widths are not the cache's.
                Nothing is stored then.
        """
        new = keys.shape[2]
        end = self.length + new
        if end > self.keys.shape[2]:
            raise ValueError(
                f"the cache holds {self.length} of at most {self.keys.shape[2]} positions, "
                f"and {new} more do not fit: make it with a larger capacity"
            )
        for name, given, kept in (("keys", keys, self.keys), ("values", values, self.values)):
            wanted = (kept.shape[0], kept.shape[1], new, kept.shape[3])
            if given.shape != wanted:
                raise ValueError(
                    f"{name} for this cache must have shape {wanted}, got {tuple(given.shape)}"
                )
        # Detached: else the cache would hold on to the graphs of all earlier steps.
        self.keys.narrow(2, self.length, new).copy_(keys.detach())
        self.values.narrow(2, self.length, new).copy_(values.detach())
        self.length = end
        return self.held()

    def held(
        self,
    ) -> tuple[
        Float[Tensor, "batch kv_heads held head_dim"],
        Float[Tensor, "batch kv_heads held value_dim"],
    ]:
        """Return views of the keys and values held now.

        Returns:
            Keys and values of the filled positions.
        """
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)

    def select(self, rows: Integer[Tensor, " batch"]) -> None:
        """Let sequence ``i`` go on from what sequence ``rows[i]`` held.

        Args:
            rows: One number for each sequence.
        """
        for kept in self.held():
            kept.copy_(kept[rows])

    def truncate(self, length: int) -> None:
        """Forget the positions from ``length`` on.

        Args:
            length: Positions to keep, between 0 and :attr:`length`.

        Raises:
            ValueError: If more would be kept than are held.
        """
        check_count("length", length, low=0, high=self.length)
        self.length = length


class KVCache:
    r"""The cache of a whole model: one :class:`LayerCache` a layer, reserved at once.

    A model whose attention keeps something else, such as a latent vector or a recurrent state,
    has other objects in :attr:`layers`: see :meth:`of`.

    It needs :math:`L \, n \, h_{kv} (d_k + d_v)` numbers for each sequence of a batch, with
    :math:`L` layers and a capacity of :math:`n` positions.

    All sequences of a batch fill the same positions. Pad shorter prompts on the left, and mark
    the padding for the model: it is stored, and never read.

    Args:
        layers: Number of layers.
        batch: Sequences that are decoded side by side.
        kv_heads: Key and value heads of a layer.
        capacity: Most positions that are ever held.
        head_dim: Components of a key.
        value_dim: Components of a value; by default as many.
        device: Where the memory is reserved.
        dtype: Its type: that of the model's activations.

    Attributes:
        layers: The caches of the layers, from the input to the output.
        capacity: Most positions that are ever held.

    Raises:
        ValueError: If a size is smaller than 1.

    Numerics:
        Appending copies the new positions only; what is held is never moved. Gradients do not
        flow through a cache: it is for inference.

    References:
        Pope et al. 2022, "Efficiently Scaling Transformer Inference", arXiv:2211.05102.

    Book: :doc:`/book/transformer/multi_head`

    Example:
        >>> cache = KVCache(2, 1, 3, 8, 4)
        >>> keys, values = cache.layers[0].append(torch.ones(1, 3, 5, 4), torch.ones(1, 3, 5, 4))
        >>> keys.shape, cache.capacity
        (torch.Size([1, 3, 5, 4]), 8)
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        value_dim = head_dim if value_dim is None else value_dim
        sizes = {
            "layers": layers,
            "batch": batch,
            "kv_heads": kv_heads,
            "capacity": capacity,
            "head_dim": head_dim,
            "value_dim": value_dim,
        }
        for name, size in sizes.items():
            check_count(name, size)
        shape = (batch, kv_heads, capacity)
        self.layers: list[Any] = [
            LayerCache(
                torch.zeros(*shape, head_dim, device=device, dtype=dtype),
                torch.zeros(*shape, value_dim, device=device, dtype=dtype),
            )
            for _ in range(layers)
        ]
        self.capacity = capacity

    @classmethod
    def of(cls, layers: Sequence[Any], *, capacity: int) -> "KVCache":
        """Join the caches of layers, of any kind, to one of a model.

        Args:
            layers: What the attention of each layer fills and reads. It has ``length``, the
                number of positions that it stands for, and ``truncate(length)``.
            capacity: Most positions that are ever held.

        Returns:
            The cache.
        """
        made = cls.__new__(cls)
        made.layers, made.capacity = list(layers), capacity
        return made

    @property
    def length(self) -> int:
        """Positions that the last layer holds: those that every layer has read."""
        length: int = self.layers[-1].length
        return length

    def truncate(self, length: int) -> None:
        """Forget the positions from ``length`` on, in every layer.

        Args:
            length: Positions to keep, between 0 and :attr:`length`.

        Raises:
            ValueError: If more would be kept than are held.
        """
        check_count("length", length, low=0, high=self.length)
        for layer in self.layers:
            layer.truncate(length)

    def reset(self) -> None:
        """Forget all positions and keep the memory."""
        self.truncate(0)

    def select(self, rows: Integer[Tensor, " batch"]) -> None:
        """Let sequence ``i`` go on from what sequence ``rows[i]`` held, in every layer.

        A search needs it that follows some sequences twice and drops others.

        Args:
            rows: One number for each sequence.
        """
        for layer in self.layers:
            layer.select(rows)
