r"""Removal that is real: hidden units that go take their rows and columns with them."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import check_shape, wide
from companion.efficiency.sparsity._masks import check_bool
from companion.transformer.block import FeedForward, GatedFeedForward

__all__ = ["remove_units", "unit_norms"]


def unit_norms(layer: FeedForward | GatedFeedForward) -> Float[Tensor, " ff_dim"]:
    r"""Compute the Euclidean norm of all weights of each hidden unit: its group.

    Args:
        layer: The feed-forward network.

    Returns:
        One number for each hidden unit, in float32 at least.

    Book: :doc:`/book/efficiency/sparsity`
    """
    hidden = layer.down.weight.shape[1]
    up = layer.gate_up if isinstance(layer, GatedFeedForward) else layer.up
    reads = wide(up.weight.detach()).square().sum(1)
    writes = wide(layer.down.weight.detach()).square().sum(0)
    squares: Tensor = torch.unflatten(reads, 0, (-1, hidden)).sum(0) + writes
    return squares.sqrt()


def remove_units(
    layer: FeedForward | GatedFeedForward, keep: Bool[Tensor, " ff_dim"]
) -> FeedForward | GatedFeedForward:
    """Make a smaller feed-forward network of some hidden units.

    Args:
        layer: The network. It is not changed.
        keep: ``True`` for the units that stay, one at least.

    Returns:
        A network whose parameters are copies. It computes what the whole one computes with the
        other units set to 0.

    Raises:
        ValueError: If the mask does not fit, is not Bool, or keeps nothing.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> small = remove_units(FeedForward(3, 5), torch.tensor([True, False, True, True, False]))
        >>> small.up.weight.shape
        torch.Size([3, 3])
    """
    dim, hidden = layer.down.weight.shape
    check_shape("keep", keep, (hidden,))
    check_bool("keep", keep)
    count = int(keep.sum())
    if not count:
        raise ValueError("keep must keep one unit or more, got none")
    gated = isinstance(layer, GatedFeedForward)
    old = layer.gate_up if isinstance(layer, GatedFeedForward) else layer.up
    kind = GatedFeedForward if gated else FeedForward
    weight = layer.down.weight
    new = kind(
        dim,
        count,
        activation=layer.activation,
        bias=layer.down.bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    first = new.gate_up if isinstance(new, GatedFeedForward) else new.up
    rows = keep.repeat(2) if gated else keep
    with torch.no_grad():
        first.weight.copy_(old.weight[rows])
        new.down.weight.copy_(weight[:, keep])
        if old.bias is not None and first.bias is not None:
            first.bias.copy_(old.bias[rows])
        if layer.down.bias is not None and new.down.bias is not None:
            new.down.bias.copy_(layer.down.bias)
    new.train(layer.training)
    for old_p, new_p in zip(layer.parameters(), new.parameters(), strict=True):
        new_p.requires_grad_(old_p.requires_grad)
    return new
