r"""Which weights stay: masks by magnitude, by magnitude times input, in groups of four.

A mask is a Bool tensor of the shape of the weights, ``True`` where a weight stays. Weights are
laid out as in :class:`torch.nn.Linear`, one row for each output.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from companion.core import (
    check_count,
    check_floating,
    check_in_range,
    check_same_shape,
    check_shape,
    wide,
)

__all__ = [
    "block_mask",
    "global_masks",
    "magnitude_mask",
    "nm_mask",
    "pack_nm",
    "straight_through",
    "top_mask",
    "unpack_nm",
    "wanda_scores",
]


def top_mask(
    scores: Float[Tensor, "*shape"],
    *,
    sparsity: float,
    scope: Literal["tensor", "row"] = "tensor",
) -> Bool[Tensor, "*shape"]:
    """Keep the highest scores.

    Args:
        scores: One for each weight.
        sparsity: Share of weights that go, in [0, 1]: exactly ``round(sparsity * count)`` of them.
        scope: What is compared, and where the share holds: all weights of the ``"tensor"``, or
            those of each ``"row"``, along the last axis.

    Returns:
        The mask. Of equal scores the first ones go.

    Raises:
        ValueError: If the share is out of range or the scope unknown.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> top_mask(torch.tensor([[1.0, 2.0], [3.0, 0.5]]), sparsity=0.5)
        tensor([[False,  True],
                [ True, False]])
    """
    check_in_range("sparsity", sparsity, low=0.0, high=1.0)
    if scope not in ("tensor", "row"):
        raise ValueError(f"scope must be 'tensor' or 'row', got {scope!r}")
    flat = scores.reshape(1, -1) if scope == "tensor" else scores.reshape(-1, scores.shape[-1])
    go = round(sparsity * flat.shape[1])
    # A sort that keeps the order of equal entries: a threshold would take all of them or none.
    order = flat.argsort(dim=1, stable=True)[:, :go]
    keep = torch.ones_like(flat, dtype=torch.bool).scatter(1, order, False)
    return keep.reshape(scores.shape)


def check_bool(name: str, mask: Tensor) -> None:
    """Require a mask that says where weights stay. Not public."""
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} must be Bool, True for what stays, got {mask.dtype}")


def magnitude_mask(
    W: Float[Tensor, "*shape"],
    *,
    sparsity: float,
    scope: Literal["tensor", "row"] = "tensor",
) -> Bool[Tensor, "*shape"]:
    """Keep the weights of largest magnitude.

    Args:
        W: Weights.
        sparsity: Share that goes.
        scope: As for :func:`top_mask`.

    Returns:
        The mask.

    Raises:
        ValueError: As for :func:`top_mask`.

    References:
        Han et al. 2015, arXiv:1506.02626, sec. 3.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> magnitude_mask(torch.tensor([0.5, -3.0, 1.0, -0.1]), sparsity=0.5)
        tensor([False,  True,  True, False])
    """
    return top_mask(W.abs(), sparsity=sparsity, scope=scope)


def global_masks(
    scores: Mapping[str, Tensor], *, sparsity: float, among: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Keep the highest scores of several tensors together.

    Args:
        scores: Scores by name.
        sparsity: Share of **all** weights that go, those outside of ``among`` included.
        among: Masks of the weights that may stay, for pruning in rounds; all by default.

    Returns:
        Masks by name.

    Raises:
        ValueError: If the share is out of range, or less than what ``among`` has removed; or if
            ``among`` lacks a name or has another shape.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> global_masks({"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([2.0])}, sparsity=1 / 3)
        {'a': tensor([False,  True]), 'b': tensor([True])}
    """
    check_in_range("sparsity", sparsity, low=0.0, high=1.0)
    if not scores:
        raise ValueError("scores must hold one tensor or more, got none")
    for name, value in scores.items():
        check_floating(f"scores of {name}", value)
    flat = torch.cat([value.flatten() for value in scores.values()])
    if among is not None:
        for name, value in scores.items():
            if name not in among:
                raise ValueError(f"among has no mask for {name}: give one for each of the scores")
            check_same_shape(f"scores of {name}", value, "its mask among", among[name])
        there = torch.cat([among[name].flatten() for name in scores])
        gone = int((~there).sum())
        if gone > round(sparsity * len(flat)):
            raise ValueError(
                f"sparsity must be {gone / len(flat):.4f} or more, the share that is gone already, "
                f"got {sparsity}"
            )
        flat = flat.masked_fill(~there, -torch.inf)
    keep = top_mask(flat, sparsity=sparsity)
    parts = torch.split(keep, [value.numel() for value in scores.values()])
    return {
        name: part.reshape(value.shape)
        for (name, value), part in zip(scores.items(), parts, strict=True)
    }


def wanda_scores(
    W: Float[Tensor, "d_out d_in"], H: Float[Tensor, "d_in d_in"]
) -> Float[Tensor, "d_out d_in"]:
    r"""Compute the magnitude of each weight times the length of its input.

    .. math:: S_{ij} = |W_{ij}|\;\lVert x_j\rVert = |W_{ij}| \sqrt{H_{jj}/2}

    Meant to be compared within a row, ``top_mask(..., scope="row")``.

    Args:
        W: Weights.
        H: :math:`2X^\top X`, from :func:`input_hessian`; its diagonal is used.

    Returns:
        The scores; their squares are :func:`obd_saliency`.

    Raises:
        ValueError: If shapes do not fit.

    References:
        Sun et al. 2024, arXiv:2306.11695, eq. 1.

    Book: :doc:`/book/efficiency/sparsity`
    """
    check_shape("H", H, (W.shape[-1], W.shape[-1]))
    return wide(W).abs() * (H.diagonal() / 2).sqrt()


def nm_mask(
    scores: Float[Tensor, "*rows d_in"], *, keep: int = 2, group: int = 4
) -> Bool[Tensor, "*rows d_in"]:
    """Keep the best few of every group of neighbors along the axis of the inputs.

    Args:
        scores: One for each weight. The last axis is the one that a product sums over.
        keep: How many of a group stay.
        group: Size of a group, a divisor of the number of inputs.

    Returns:
        The mask, with ``keep`` times ``True`` in each group.

    Raises:
        ValueError: If the groups do not fit.

    References:
        Mishra et al. 2021, arXiv:2104.08378: 2 of 4 is what tensor cores multiply twice as fast.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> nm_mask(torch.tensor([4.0, 1.0, 3.0, 2.0]))
        tensor([ True, False,  True, False])
    """
    groups = _grouped(scores, keep, group)
    best = groups.argsort(dim=-1, descending=True, stable=True)[..., :keep]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, best, True)
    return mask.reshape(scores.shape)


def _grouped(scores: Tensor, keep: int, group: int) -> Tensor:
    check_count("group", group)
    check_count("keep", keep, low=0, high=group)
    if scores.shape[-1] % group:
        raise ValueError(
            f"the number of inputs must be a multiple of {group}, got {scores.shape[-1]}"
        )
    return scores.reshape(*scores.shape[:-1], -1, group)


def pack_nm(
    W: Float[Tensor, "*rows d_in"], *, keep: int = 2, group: int = 4
) -> tuple[Float[Tensor, "*rows kept"], UInt8[Tensor, "*rows kept"]]:
    """Store only what is left of each group: values, and where in the group they stood.

    Args:
        W: Weights with at most ``keep`` nonzeros in each group.
        keep: How many are stored of a group.
        group: Size of a group.

    Returns:
        Values and places, in order; of a group with fewer nonzeros some are stored zeros.

    Raises:
        ValueError: If the groups do not fit, or one has more nonzeros.

    Numerics:
        Hardware packs a place into 2 bits. Here each is a byte.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> pack_nm(torch.tensor([0.0, 5.0, 0.0, -1.0]))
        (tensor([ 5., -1.]), tensor([1, 3], dtype=torch.uint8))
    """
    groups = _grouped(W, keep, group)
    most = int((groups != 0).sum(-1).max())
    if most > keep:
        raise ValueError(f"a group of {group} has {most} nonzeros, and {keep} can be stored")
    mask = nm_mask((W != 0).to(W.dtype), keep=keep, group=group).reshape(groups.shape)
    places = torch.arange(group, device=W.device).expand_as(groups)[mask]
    shape = (*W.shape[:-1], groups.shape[-2] * keep)
    return groups[mask].reshape(shape), places.to(torch.uint8).reshape(shape)


def unpack_nm(
    values: Float[Tensor, "*rows kept"],
    places: UInt8[Tensor, "*rows kept"],
    *,
    keep: int = 2,
    group: int = 4,
) -> Float[Tensor, "*rows d_in"]:
    """Put packed weights back into their places: the inverse of :func:`pack_nm`.

    Args:
        values: What is left.
        places: Where each stood in its group.
        keep: How many are stored of a group.
        group: Size of a group.

    Returns:
        The weights.

    Raises:
        ValueError: If shapes do not fit, or ``keep`` is not from 1 to ``group``.

    Book: :doc:`/book/efficiency/sparsity`
    """
    check_same_shape("values", values, "places", places)
    check_count("group", group)
    check_count("keep", keep, high=group)
    if values.shape[-1] % keep:
        raise ValueError(
            f"the number of values in a row must be a multiple of {keep}, got {values.shape[-1]}"
        )
    grouped = torch.unflatten(values, -1, (-1, keep))
    empty = values.new_zeros(*grouped.shape[:-1], group)
    where = places.reshape(grouped.shape).long()
    return empty.scatter(-1, where, grouped).flatten(-2)


def block_mask(
    W: Float[Tensor, "d_out d_in"], *, sparsity: float, block: int
) -> Bool[Tensor, "d_out d_in"]:
    """Keep the square blocks of largest Frobenius norm.

    Args:
        W: Weights; both sizes are multiples of the block.
        sparsity: Share of blocks that go.
        block: Side of a block.

    Returns:
        The mask.

    Raises:
        ValueError: If the blocks do not fit or the share is out of range.

    References:
        Gray, Radford and Kingma 2017, "GPU kernels for block-sparse weights".

    Book: :doc:`/book/efficiency/sparsity`
    """
    check_shape("W", W, (None, None))
    check_count("block", block)
    rows, columns = W.shape
    if rows % block or columns % block:
        raise ValueError(f"sizes must be multiples of the block {block}, got {tuple(W.shape)}")
    tiles = wide(W).reshape(rows // block, block, columns // block, block)
    keep = top_mask(tiles.square().sum((1, 3)), sparsity=sparsity)
    return keep.repeat_interleave(block, 0).repeat_interleave(block, 1)


class _StraightThrough(torch.autograd.Function):
    """A masked weight whose gradient reaches all weights."""

    @staticmethod
    def forward(W: Tensor, mask: Tensor, decay: float) -> Tensor:
        return W * mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        W, mask, ctx.decay = inputs
        ctx.save_for_backward(W, mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        W, mask = ctx.saved_tensors
        return grads[0] + ctx.decay * W * ~mask, None, None


def straight_through(
    W: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], *, decay: float = 0.0
) -> Float[Tensor, "*shape"]:
    r"""Mask weights on the way forward, and pass the gradient to all of them.

    .. math:: \hat W = W\odot m, \qquad dW := d\hat W + \lambda\,(1-m)\odot W

    A weight that is masked now may grow and come back when the mask is chosen again. The second
    term pulls masked weights to zero, so that the choice settles.

    Args:
        W: Weights.
        mask: ``True`` where a weight is used.
        decay: :math:`\lambda`.

    Returns:
        The masked weights.

    Raises:
        ValueError: If shapes differ, the mask is not Bool, or the decay is negative.

    References:
        Zhou et al. 2021, arXiv:2102.04010, eqs. 6 and 9 (SR-STE).

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> W = torch.tensor([2.0, 3.0], requires_grad=True)
        >>> straight_through(W, torch.tensor([True, False]), decay=0.1).sum().backward()
        >>> W.grad
        tensor([1.0000, 1.3000])
    """
    check_same_shape("W", W, "mask", mask)
    check_bool("mask", mask)
    check_in_range("decay", decay, low=0.0, open_high=True)
    masked: Tensor = _StraightThrough.apply(W, mask, decay)  # type: ignore[no-untyped-call]
    return masked
