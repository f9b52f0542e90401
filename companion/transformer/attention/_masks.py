r"""Masks as rules that compose: which query may read which key.

A mask is a predicate on four indices: batch, head, query and key. From the predicate follow the
dense tensor that the definition and PyTorch's kernels take, the block mask that FlexAttention
takes, and the blocks that tiled attention never visits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Bool, Integer
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from companion.core import check_count

__all__ = [
    "Mask",
    "causal",
    "documents",
    "everything",
    "padding",
    "prefix",
    "sliding_window",
    "streaming_mask",
]

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# Diagonals j - i from the first to the second, both included. Infinite ends mean no limit.
Band = tuple[float, float]
ALL: Band = (-inf, inf)
NONE: Band = (inf, -inf)
CAUSAL: Band = (-inf, 0.0)


@dataclass(frozen=True, eq=False)
class Mask:
    r"""A rule that says which query may read which key; True means that it may.

    Masks compose: ``causal() & padding(real)`` allows what both allow, ``a | b`` what one of them
    allows, and ``~a`` what ``a`` forbids.

    Args:
        rule: ``rule(b, h, i, j)`` takes integer tensors, the indices of batch, head, query and
            key, that broadcast against each other, and returns a Bool tensor: whether query
            :math:`i` may read key :math:`j`. This is the signature of FlexAttention's
            ``mask_mod``. The rule may index tensors, and must not branch on values.
        outer: A band of diagonals :math:`j - i`, first and last, outside of which the rule is
            False. It lets blocks be skipped. By default there is no limit.
        inner: A band inside of which the rule is True everywhere. By default it is empty.
        batch: The batch size that the rule's tensors are made for, or ``None`` for any.
        queries: The number of queries that they are made for, or ``None`` for any.
        keys: The number of keys that they are made for, or ``None`` for any.
        device: Where these tensors live, or ``None`` if there are none.

    References:
        The idea of predicates and the signature: J. Dong et al., "FlexAttention",
        arXiv:2412.05496, section 3.

    Book: :doc:`/book/transformer/attention`

    Example:
        >>> import torch
        >>> window = Mask(lambda b, h, i, j: (i - j).abs() < 2)
        >>> (causal() & window).dense(3, 3)[0, 0].int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [0, 1, 1]], dtype=torch.int32)
    """

    rule: Rule
    outer: Band = ALL
    inner: Band = NONE
    batch: int | None = None
    queries: int | None = None
    keys: int | None = None
    device: torch.device | None = None

    def __and__(self, other: "Mask") -> "Mask":
        """Allow what both masks allow."""
        first, second = self.rule, other.rule
        return Mask(
            lambda b, h, i, j: first(b, h, i, j) & second(b, h, i, j),
            _meet(self.outer, other.outer),
            _meet(self.inner, other.inner),
            *_common(self, other),
        )

    def __or__(self, other: "Mask") -> "Mask":
        """Allow what at least one of the masks allows."""
        first, second = self.rule, other.rule
        return Mask(
            lambda b, h, i, j: first(b, h, i, j) | second(b, h, i, j),
            _hull(self.outer, other.outer),
            _wider(self.inner, other.inner),
            *_common(self, other),
        )

    def __invert__(self) -> "Mask":
        """Allow what the mask forbids. ``torch.compile`` does not trace ``~``: use it outside."""
        rule = self.rule
        return Mask(
            lambda b, h, i, j: ~rule(b, h, i, j),
            _complement(self.inner, otherwise=ALL),
            _complement(self.outer, otherwise=NONE),
            self.batch,
            self.queries,
            self.keys,
            self.device,
        )

    def shifted(self, offset: int) -> "Mask":
        """Return the mask of later queries: what was said of query ``i + offset`` holds for ``i``.

        Args:
            offset: How many queries come before, for example those that a cache has seen.

        Returns:
            The mask; ``causal().shifted(2)`` is ``causal(offset=2)``.

        Example:
            >>> causal().shifted(1).dense(2, 3)[0, 0].int()
            tensor([[1, 1, 0],
                    [1, 1, 1]], dtype=torch.int32)
        """
        rule = self.rule
        outer, inner = ((first + offset, last + offset) for first, last in (self.outer, self.inner))
        return Mask(
            lambda b, h, i, j: rule(b, h, i + offset, j),
            outer,
            inner,
            self.batch,
            None,  # there are fewer queries now
            self.keys,
            self.device,
        )

    @property
    def is_causal(self) -> bool:
        """Whether the mask is plain causal with offset 0, for which PyTorch has a fast path."""
        return self.inner == self.outer == CAUSAL

    def allows_all(self, queries: int, keys: int) -> bool:
        """Tell, from the bands alone, whether every query may read every key.

        Args:
            queries: Number of queries.
            keys: Number of keys.

        Returns:
            True if it is certain. A mask that happens to allow everything may answer False.
        """
        return self.inner[0] <= 1 - queries and keys - 1 <= self.inner[1]

    def check(self, queries: int, keys: int, *, batch: int | None, device: torch.device) -> None:
        """Require that the mask fits a problem. Shapes are compared, values are not read.

        Args:
            queries: Number of queries.
            keys: Number of keys.
            batch: Batch size, or ``None`` if it is not known.
            device: Where the problem lives.

        Raises:
            ValueError: If a size or the device differs from what the mask was made for.
        """
        if self.device is None and self.batch is self.queries is self.keys is None:
            return
        for name, made, have in (
            ("batch size", self.batch, batch),
            ("number of queries", self.queries, queries),
            ("number of keys", self.keys, keys),
        ):
            if made is not None and have is not None and made != have:
                raise ValueError(f"the mask was made for a {name} of {made}, got {have}")
        if self.device is not None and not _same_device(self.device, device):
            raise ValueError(
                f"the mask's tensors are on {self.device}, but the inputs are on {device}: "
                "make the mask there"
            )

    def dense(
        self,
        queries: int,
        keys: int,
        *,
        device: str | torch.device | None = None,
        batch: int | None = None,
        heads: int | None = None,
    ) -> Bool[Tensor, "#batch #heads #queries #keys"]:
        """Return the mask as a tensor.

        Args:
            queries: Number of queries, 0 or more.
            keys: Number of keys, 0 or more.
            device: Where to make it. By default where the mask's tensors are, else the CPU.
            batch: Batch size. By default the one that the mask was made for, else 1.
            heads: Number of heads; by default 1.

        Returns:
            A Bool tensor of four axes that broadcasts to ``(batch, heads, queries, keys)``. An
            axis on which the rule does not depend has size 1.

        Raises:
            ValueError: If the sizes or the device are not those that the mask was made for.

        Example:
            >>> tuple(causal().dense(3, 5, batch=2).shape)
            (1, 1, 3, 5)
        """
        check_count("queries", queries, low=0)
        check_count("keys", keys, low=0)
        device = torch.device(device) if device is not None else self.device or torch.device("cpu")
        self.check(queries, keys, batch=batch, device=device)
        b = torch.arange(batch or self.batch or 1, device=device).view(-1, 1, 1, 1)
        h = torch.arange(heads or 1, device=device).view(-1, 1, 1)
        i = torch.arange(queries, device=device).view(-1, 1)
        allowed = self.rule(b, h, i, torch.arange(keys, device=device))
        if allowed.dtype != torch.bool:
            raise ValueError(f"the rule of a mask must return Bool, got {allowed.dtype}")
        return allowed.reshape((1,) * (4 - allowed.ndim) + tuple(allowed.shape))

    def block_mask(
        self,
        queries: int,
        keys: int,
        *,
        device: str | torch.device,
        batch: int | None = None,
        heads: int | None = None,
        block: int = 128,
    ) -> BlockMask:
        """Return the mask in the form of PyTorch's FlexAttention, with its empty blocks marked.

        Blocks that lie outside of the mask's outer band are empty and those inside of the inner
        band are full. The rule is evaluated on the other blocks only, and not at all where the
        two bands are the same, as for :func:`causal` and :func:`sliding_window`. A rule without
        bands is evaluated everywhere, which costs time and memory like a dense mask: make it
        once and use it in every layer.

        Args:
            queries: Number of queries.
            keys: Number of keys.
            device: Where to make it.
            batch: Batch size; by default the one that the mask was made for. ``None`` without
                such a size means that the rule is the same for every element of the batch.
            heads: Number of heads; ``None`` means that the rule is the same for every head.
            block: Side of a block, in tokens.

        Returns:
            A ``torch.nn.attention.flex_attention.BlockMask``.

        Raises:
            ValueError: If the sizes or the device are not those that the mask was made for.
        """
        check_count("block", block)
        self.check(queries, keys, batch=batch, device=torch.device(device))
        size = batch if batch is not None else self.batch
        first = torch.arange(0, queries, block, device=device).view(-1, 1)
        start = torch.arange(0, keys, block, device=device)
        last = (first + block).clamp(max=queries) - 1
        stop = (start + block).clamp(max=keys) - 1
        low, high = start - last, stop - first  # the diagonals of each block
        some = (high >= self.outer[0]) & (low <= self.outer[1])
        every = (low >= self.inner[0]) & (high <= self.inner[1])
        # Where the two bands agree they say everything: what is neither empty nor full is mixed.
        # So is an open block that nobody has looked into, which torch.compile cannot do.
        looked = not torch.compiler.is_compiling() and self.inner != self.outer
        if looked and bool((open_ := some & ~every).any()):
            some, every = self._settle(some, every, open_, block, queries, keys, size, heads)
        # A block that the edge cuts is never full: the rule keeps what lies beyond it out.
        every = every & (last - first == block - 1) & (stop - start == block - 1)
        some = (some & ~every).expand(size or 1, heads or 1, -1, -1)
        every = every.expand(size or 1, heads or 1, -1, -1)
        return BlockMask.from_kv_blocks(
            *_listed(some),
            *_listed(every),
            BLOCK_SIZE=block,
            mask_mod=self.rule,
            seq_lengths=(queries, keys),
        )

    def _settle(
        self,
        some: Tensor,
        every: Tensor,
        open_: Tensor,
        block: int,
        queries: int,
        keys: int,
        batch: int | None,
        heads: int | None,
    ) -> tuple[Tensor, Tensor]:
        # Evaluate the rule on the open blocks: which allow something, which everything.
        device = some.device
        row, column = open_.nonzero(as_tuple=True)
        inside = torch.arange(block, device=device)
        i = (row[:, None] * block + inside)[:, :, None]
        j = (column[:, None] * block + inside)[:, None, :]
        real = (i < queries) & (j < keys)
        b = torch.arange(batch or 1, device=device).view(-1, 1, 1, 1, 1)
        h = torch.arange(heads or 1, device=device).view(-1, 1, 1, 1)
        # What lies beyond an edge repeats the last entry, so that rules may index tensors.
        allowed = self.rule(b, h, i.clamp(max=queries - 1), j.clamp(max=keys - 1))
        allowed = allowed.expand(batch or 1, heads or 1, *real.shape)
        some, every = (
            part.expand(batch or 1, heads or 1, -1, -1).clone() for part in (some, every)
        )
        some[..., row, column] = (allowed & real).flatten(-2).any(-1)
        every[..., row, column] = (allowed | ~real).flatten(-2).all(-1)
        return some, every


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    # For each row of blocks the number of True entries, and all indices, those of True first.
    order = blocks.to(torch.int32).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.to(torch.int32).contiguous()


def everything() -> Mask:
    """Return the mask under which every query may read every key.

    Returns:
        The mask.

    Book: :doc:`/book/transformer/attention`
    """
    return Mask(lambda b, h, i, j: j >= 0, ALL, ALL)


def causal(*, offset: int = 0) -> Mask:
    r"""Return the causal mask: a query reads the keys at its own position and before.

    .. math:: j \le i + \text{offset}

    Args:
        offset: Position of the first query. With a cache of ``offset`` earlier keys, query
            :math:`i` of the new ones stands at position :math:`i + \text{offset}`.

    Returns:
        The mask.

    Book: :doc:`/book/transformer/attention`

    Example:
        >>> causal(offset=1).dense(2, 3)[0, 0].int()
        tensor([[1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
    """
    return Mask(lambda b, h, i, j: j <= i + offset, (-inf, offset), (-inf, offset))


def sliding_window(width: int, *, offset: int = 0) -> Mask:
    r"""Return the causal mask of the last ``width`` keys, a query's own among them.

    .. math:: 0 \le i + \text{offset} - j < \text{width}

    Args:
        width: Number of keys that a query reads, 1 or more.
        offset: Position of the first query, as in :func:`causal`.

    Returns:
        The mask.

    Raises:
        ValueError: If ``width`` is below 1.

    References:
        I. Beltagy et al., "Longformer", arXiv:2004.05150, section 3.1, one-sided as in
        A. Q. Jiang et al., "Mistral 7B", arXiv:2310.06825, section 2.

    Book: :doc:`/book/transformer/attention`
    """
    check_count("width", width)
    band = (offset - width + 1, offset)
    return Mask(lambda b, h, i, j: (j <= i + offset) & (i + offset - j < width), band, band)


def streaming_mask(*, sinks: int, window: int) -> Mask:
    r"""Return the mask of a streaming cache: the first tokens, and the latest ones.

    .. math:: j \le i \quad\text{and}\quad (j < s \;\text{ or }\; i - j < w)

    Args:
        sinks: First tokens :math:`s` that every later one reads, 0 or more.
        window: Latest tokens :math:`w` that a token reads, itself among them.

    Returns:
        The mask.

    Raises:
        ValueError: If a number is out of range.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> streaming_mask(sinks=1, window=2).dense(4, 4)[0, 0].int()
        tensor([[1, 0, 0, 0],
                [1, 1, 0, 0],
                [1, 1, 1, 0],
                [1, 0, 1, 1]], dtype=torch.int32)
    """
    check_count("sinks", sinks, low=0)
    recent = sliding_window(window)
    return recent | (causal() & Mask(lambda b, h, i, j: j < sinks)) if sinks else recent


def prefix(lengths: int | Integer[Tensor, " batch"], *, offset: int = 0) -> Mask:
    r"""Return the prefix mask: every query reads the first keys, and is causal after them.

    .. math:: j < \text{length} \quad\text{or}\quad j \le i + \text{offset}

    Args:
        lengths: Length of the prefix: one number, or one for each element of the batch.
        offset: Position of the first query, as in :func:`causal`.

    Returns:
        The mask.

    Raises:
        ValueError: If a tensor of lengths does not have one axis of integers.

    References:
        C. Raffel et al., "T5", arXiv:1910.10683, section 3.2.1 and figure 4.

    Book: :doc:`/book/transformer/attention`
    """
    if not isinstance(lengths, Tensor):
        check_count("lengths", lengths, low=0)
        first = Mask(lambda b, h, i, j: j < lengths)
    else:
        if lengths.ndim != 1 or lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise ValueError(
                "lengths must be an integer or integers of shape (batch,), "
                f"got {lengths.dtype} of shape {tuple(lengths.shape)}"
            )
        first = Mask(
            lambda b, h, i, j: j < lengths[b], batch=lengths.shape[0], device=lengths.device
        )
    return first | causal(offset=offset)


def padding(real: Bool[Tensor, "batch keys"]) -> Mask:
    """Return the mask that hides the keys of padding.

    Args:
        real: True where a key is a real token, False where it is padding. This is the
            ``attention_mask`` of transformers as Bool.

    Returns:
        The mask. A query may be padding itself: it reads the real keys, and what it computes is
        to be ignored.

    Raises:
        ValueError: If ``real`` is not a Bool tensor of two axes.

    Book: :doc:`/book/transformer/attention`
    """
    if real.ndim != 2 or real.dtype != torch.bool:
        raise ValueError(
            "real must be Bool of shape (batch, keys), True for a token, got "
            f"{real.dtype} of shape {tuple(real.shape)}"
        )
    batch, keys = real.shape
    return Mask(lambda b, h, i, j: real[b, j], batch=batch, keys=keys, device=real.device)


def documents(ids: Integer[Tensor, "batch n"]) -> Mask:
    """Return the mask that keeps documents, packed into one row, apart.

    Args:
        ids: For each token the number of its document.

    Returns:
        The mask under which a query reads the keys of its own document.

    Raises:
        ValueError: If ``ids`` does not have two axes of integers.

    Book: :doc:`/book/transformer/attention`
    """
    if ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(
            f"ids must be integers of shape (batch, n), got {ids.dtype} of shape {tuple(ids.shape)}"
        )
    batch, n = ids.shape
    return Mask(
        lambda b, h, i, j: ids[b, i] == ids[b, j],
        batch=batch,
        queries=n,
        keys=n,
        device=ids.device,
    )


def _same_device(a: torch.device, b: torch.device) -> bool:
    """Compare devices; one without an index, such as ``"cuda"``, stands for any of its kind."""
    return a.type == b.type and (a.index is None or b.index is None or a.index == b.index)


def _meet(a: Band, b: Band) -> Band:
    return max(a[0], b[0]), min(a[1], b[1])


def _hull(a: Band, b: Band) -> Band:
    return min(a[0], b[0]), max(a[1], b[1])


def _wider(a: Band, b: Band) -> Band:
    """Return the wider of two bands: their union need not be a band."""
    if b[0] <= a[0] and a[1] <= b[1]:
        return b
    return a if a[1] - a[0] >= b[1] - b[0] else b


def _complement(band: Band, *, otherwise: Band) -> Band:
    """Return the diagonals outside of a band, or ``otherwise`` where they are not a band."""
    first, last = band
    if first > last:
        return ALL
    if first == -inf:
        return NONE if last == inf else (last + 1, inf)
    return (-inf, first - 1) if last == inf else otherwise


def _common(a: Mask, b: Mask) -> tuple[int | None, int | None, int | None, torch.device | None]:
    """Return the sizes and the device that two masks share."""
    for name, one, two in (
        ("batch size", a.batch, b.batch),
        ("number of queries", a.queries, b.queries),
        ("number of keys", a.keys, b.keys),
        ("device", a.device, b.device),
    ):
        if one is not None and two is not None and one != two:
            raise ValueError(f"masks made for a {name} of {one} and of {two} do not compose")
    return (
        b.batch if a.batch is None else a.batch,
        b.queries if a.queries is None else a.queries,
        b.keys if a.keys is None else a.keys,
        b.device if a.device is None else a.device,
    )
