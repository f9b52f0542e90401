r"""Block-sparse attention: a small matrix says which block of queries reads which block of keys."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import check_count, randint
from companion.efficiency.sparse_attention._window import pairs_allowed
from companion.transformer.attention import Mask, attention
from companion.transformer.attention._inputs import cast, check_inputs, drop, lift

__all__ = [
    "bigbird_layout",
    "block_sparse",
    "fixed_layout",
    "layout_mask",
    "longformer_layout",
    "strided_layout",
    "window_layout",
]

Layout = Bool[Tensor, "blocks blocks"]


def window_layout(blocks: int, window: int) -> Layout:
    r"""Return the layout of a window, :math:`|r - c| \le w` for rows and columns of blocks.

    Args:
        blocks: Blocks of the sequence.
        window: Blocks :math:`w` on each side.

    Returns:
        True where a block of queries (row) reads a block of keys (column).

    Raises:
        ValueError: If a number is out of range.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> window_layout(3, 1).int()
        tensor([[1, 1, 0],
                [1, 1, 1],
                [0, 1, 1]], dtype=torch.int32)
    """
    check_count("blocks", blocks)
    check_count("window", window, low=0)
    place = torch.arange(blocks)
    return (place[:, None] - place).abs() <= window


def longformer_layout(blocks: int, window: int, global_blocks: int) -> Layout:
    r"""Return a window with the first blocks global: they read everything and are read by all.

    .. math:: |r - c| \le w \quad\text{or}\quad r < g \quad\text{or}\quad c < g

    Args:
        blocks: Blocks of the sequence.
        window: Blocks :math:`w` on each side.
        global_blocks: First blocks :math:`g`.

    Returns:
        The layout, with :math:`O(\text{blocks})` True entries.

    Raises:
        ValueError: If a number is out of range.

    References:
        Beltagy et al. 2020, arXiv:2004.05150, sec. 3.1. There global tokens have projections of
        their own; here they share those of the others, as in BigBird.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> longformer_layout(4, 0, 1).int()
        tensor([[1, 1, 1, 1],
                [1, 1, 0, 0],
                [1, 0, 1, 0],
                [1, 0, 0, 1]], dtype=torch.int32)
    """
    check_count("global_blocks", global_blocks, low=0, high=blocks)
    layout = window_layout(blocks, window)
    layout[:global_blocks] = True
    layout[:, :global_blocks] = True
    return layout


def bigbird_layout(
    blocks: int,
    window: int,
    global_blocks: int,
    random_blocks: int,
    *,
    generator: torch.Generator,
) -> Layout:
    r"""Return window, global blocks, and for each row some blocks that are drawn at random.

    Args:
        blocks: Blocks of the sequence.
        window: Blocks on each side.
        global_blocks: First blocks, which read everything and are read by all.
        random_blocks: Blocks that each row reads besides; fewer where fewer are left.
        generator: Where they are drawn from.

    Returns:
        The layout. Draw it once and keep it: a layer that draws anew at evaluation computes
        another function than the one that was trained.

    Raises:
        ValueError: If a number is out of range.

    References:
        Zaheer et al. 2020, arXiv:2007.14062, sec. 2 and appendix D.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> bigbird_layout(7, 1, 1, 2, generator=torch.Generator().manual_seed(0)).sum(1).tolist()
        [7, 5, 6, 6, 6, 6, 5]
    """
    check_count("random_blocks", random_blocks, low=0, high=blocks)
    layout = longformer_layout(blocks, window, global_blocks)
    # Distinct integers in random order, the free places of a row before the taken ones.
    scores = randint(0, 2**40, (blocks, blocks), generator=generator) * blocks
    scores = scores + torch.arange(blocks)
    drawn = scores.masked_fill(layout, 2**62).argsort(1)[:, :random_blocks]
    return layout.scatter(1, drawn, True)  # a row without free places draws taken ones


def strided_layout(blocks: int, stride: int) -> Layout:
    r"""Return the strided pattern of the Sparse Transformer, causal in blocks.

    .. math:: 0 \le r - c < l \quad\text{or}\quad c \le r \text{ and } (r - c) \bmod l = 0

    With :math:`l \approx \sqrt{\text{blocks}}` every block reaches every earlier one in two
    layers, and each row has :math:`O(\sqrt{\text{blocks}})` entries.

    Args:
        blocks: Blocks of the sequence.
        stride: The stride :math:`l`.

    Returns:
        The layout. Within the blocks of the diagonal the order of tokens is up to the mask.

    Raises:
        ValueError: If a number is out of range.

    References:
        Child et al. 2019, arXiv:1904.10509, sec. 4.3: there for tokens, with the two parts in
        different heads.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> strided_layout(5, 2)[4].int()
        tensor([1, 0, 1, 1, 1], dtype=torch.int32)
    """
    check_count("blocks", blocks)
    check_count("stride", stride)
    back = torch.arange(blocks)[:, None] - torch.arange(blocks)
    return (back >= 0) & ((back < stride) | (back % stride == 0))


def fixed_layout(blocks: int, stride: int) -> Layout:
    r"""Return the fixed pattern of the Sparse Transformer, causal in blocks.

    .. math::

        c \le r \ \text{ and } \ \big( \lfloor r/l \rfloor = \lfloor c/l \rfloor
        \ \text{ or } \ c \bmod l = l - 1 \big)

    Args:
        blocks: Blocks of the sequence.
        stride: Blocks :math:`l` of a segment, whose last one is a summary that all later ones read.

    Returns:
        The layout.

    Raises:
        ValueError: If a number is out of range.

    References:
        Child et al. 2019, arXiv:1904.10509, sec. 4.3, with one summary (:math:`c = 1` there).

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> fixed_layout(5, 2)[4].int()
        tensor([0, 1, 0, 1, 1], dtype=torch.int32)
    """
    check_count("blocks", blocks)
    check_count("stride", stride)
    place = torch.arange(blocks)
    row, column = place[:, None], place
    near = row // stride == column // stride
    return (column <= row) & (near | (column % stride == stride - 1))


def layout_mask(layout: Layout, *, block: int) -> Mask:
    """Return the mask of tokens that a layout of blocks stands for: its definition.

    Args:
        layout: Which block of queries reads which block of keys.
        block: Tokens of a block.

    Returns:
        The mask. On an accelerator, ``attention(Q, K, V, mask=layout_mask(...).block_mask(...))``
        computes it by FlexAttention, which skips the empty blocks.

    Raises:
        ValueError: If the layout is not a square Bool matrix.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> layout_mask(torch.eye(2, dtype=torch.bool), block=1).dense(2, 2)[0, 0].int()
        tensor([[1, 0],
                [0, 1]], dtype=torch.int32)
    """
    check_layout(layout)
    check_count("block", block)
    return Mask(lambda b, h, i, j: layout[i // block, j // block], device=layout.device)


def block_sparse(
    Q: Float[Tensor, "*batch n key"],
    K: Float[Tensor, "*kv_batch n key"],
    V: Float[Tensor, "*kv_batch n value"],
    layout: Layout,
    *,
    block: int,
    mask: Mask | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*batch n value"]:
    r"""Return the outputs of attention whose blocks of scores are zero where a layout says so.

    The blocks of keys that a block of queries reads are gathered, and rows of blocks that read
    equally many are computed in one call of a fused kernel.

    Args:
        Q: Queries, as in :func:`local_attention`.
        K: Keys of the same tokens; with four axes there may be fewer heads.
        V: Values.
        layout: Which block of queries (row) reads which block of keys (column).
        block: Tokens of a block. The last block may be shorter.
        mask: What else must hold, such as ``causal() & padding(real)``; its rule is evaluated at
            the pairs of the layout only.
        scale: Factor of the scores. ``None`` is :math:`1/\sqrt{d_k}`.

    Returns:
        The outputs. A query that may read nothing has output 0 and sends no gradient.

    Raises:
        ValueError: If shapes do not fit.

    Numerics:
        :math:`4 d c^2` operations a head for each of the layout's True entries, with blocks of
        :math:`c` tokens and :math:`d_k = d_v = d`.

    References:
        Child et al. 2019, arXiv:1904.10509; Zaheer et al. 2020, arXiv:2007.14062, appendix D.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> x = torch.eye(4, dtype=torch.float64)
        >>> block_sparse(x, x, x, torch.eye(2, dtype=torch.bool), block=2, scale=0.0)[0]
        tensor([0.5000, 0.5000, 0.0000, 0.0000], dtype=torch.float64)
    """
    check_inputs(Q, K, V)
    check_layout(layout)
    check_count("block", block)
    n = Q.shape[-2]
    blocks = -(-n // block)
    if K.shape[-2] != n:
        raise ValueError(f"there must be as many keys as queries, got {K.shape[-2]} and {n}")
    if layout.shape[0] != blocks:
        raise ValueError(
            f"{n} tokens are {blocks} blocks of {block}, but the layout has {layout.shape[0]}"
        )
    q, k, v = (lift(t) for t in cast(Q, K, V))
    if n == 0:
        return drop(q[..., :1] * v.new_zeros(v.shape[-1]), Q.ndim)
    batch, heads = q.shape[:2]
    kv_heads, group = k.shape[1], heads // k.shape[1]
    if mask is not None:
        mask.check(n, n, batch=batch, device=Q.device)
    device = Q.device

    def cut(t: Tensor) -> Tensor:
        t = F.pad(t, (0, 0, 0, blocks * block - n))
        return t.reshape(batch, -1, blocks, block, t.shape[-1])

    q = cut(q).reshape(batch * kv_heads, group, blocks, block, q.shape[-1]).transpose(1, 2)
    q = q.reshape(len(q), blocks, group * block, q.shape[-1])
    k, v = cut(k).flatten(0, 1), cut(v).flatten(0, 1)
    inside = torch.arange(block, device=device)
    counts = layout.sum(1)
    rows_of: list[Tensor] = []
    outputs: list[Tensor] = []
    for count in sorted(set(counts.tolist())):
        rows = (counts == count).nonzero().squeeze(1)
        rows_of.append(rows)
        columns = layout[rows].nonzero()[:, 1].view(len(rows), count)
        if count == 0:
            outputs.append(q[:, rows, :, :1] * v.new_zeros(v.shape[-1]))
            continue
        allowed = None
        if mask is not None or n < blocks * block:
            i = (rows.to(device)[:, None] * block + inside)[:, :, None]
            j = (columns.to(device)[:, :, None] * block + inside).flatten(1)[:, None]
            real = (j < n).expand(-1, block, -1)
            allowed = pairs_allowed(mask, real, i, j, batch, heads, group, n)
        read, seen = (t[:, columns].flatten(2, 3) for t in (k, v))
        outputs.append(attention(q[:, rows], read, seen, mask=allowed, scale=scale))
    order = torch.cat(rows_of).argsort()
    O = torch.cat(outputs, 1)[:, order]  # noqa: E741
    O = O.view(batch, kv_heads, blocks, group, block, -1).transpose(2, 3)  # noqa: E741
    return drop(O.reshape(batch, heads, blocks * block, -1)[:, :, :n], Q.ndim)


def check_layout(layout: Tensor) -> None:
    """Require a square Bool matrix."""
    if layout.dtype != torch.bool or layout.ndim != 2 or layout.shape[0] != layout.shape[1]:
        raise ValueError(
            "a layout is a square Bool matrix, True where a block of queries reads a block of "
            f"keys, got {layout.dtype} of shape {tuple(layout.shape)}"
        )
