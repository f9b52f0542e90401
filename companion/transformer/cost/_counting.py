"""A counter of the bytes that are read from given tensors."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["bytes_read"]

#: Operators that read a few rows of a table; what they return has the size of what they read.
LOOKUPS = {"aten::embedding", "aten::index", "aten::index_select", "aten::gather"}


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what operators read from some storages."""

    def __init__(self, watched: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watched = {tensor.untyped_storage()._cdata for tensor in watched}
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        # A view reads nothing: it shares the storage of its argument.
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        stores = {t.untyped_storage()._cdata for t in made}
        written = self._written(func, args)
        for leaf in tree_leaves((args, kwargs)):
            if not isinstance(leaf, Tensor) or id(leaf) in written:
                continue
            store = leaf.untyped_storage()._cdata
            if store in self._watched and store not in stores:
                read = made[0] if func._schema.name in LOOKUPS else leaf
                self.total += _entries(read) * leaf.element_size()
        return out

    @staticmethod
    def _written(func: Any, args: tuple[Any, ...]) -> set[int]:
        """Arguments that the operator overwrites, such as the target of a copy."""
        return {
            id(value)
            for value, argument in zip(args, func._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        }


def _entries(tensor: Tensor) -> int:
    """Entries in memory: an expanded axis has stride 0 and is there once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count


def bytes_read(fn: Callable[..., Any], *args: Any, of: Iterable[Tensor], **kwargs: Any) -> int:
    """Count the bytes that the operators of a call read from given tensors.

    Pass the weights of a model, or the memory of its cache: then this is what a step must bring
    from memory before it can compute, if nothing of it is in a processor's own caches already.
    Each operator that reads a tensor counts once, with the part of it that it reads. Views and
    writes count nothing, a table lookup counts the rows that it fetches.

    Args:
        fn: The function.
        args: Its positional arguments.
        of: The tensors that are watched.
        kwargs: Its keyword arguments.

    Returns:
        Bytes.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> import torch
        >>> W = torch.ones(5, 7)
        >>> bytes_read(lambda x: x @ W, torch.ones(3, 5), of=[W])
        140
    """
    with _Reads(of) as counter:
        fn(*args, **kwargs)
    return int(counter.total)
