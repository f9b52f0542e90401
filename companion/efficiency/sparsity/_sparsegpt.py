"""Pruning trained models in one shot: SparseGPT, and one loop for all methods."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion.core import (
    check_count,
    check_in_range,
    check_same_shape,
    check_shape,
    linear_places,
    wide,
)
from companion.efficiency.sparsity._masks import (
    _grouped,
    nm_mask,
    top_mask,
    wanda_scores,
)
from companion.efficiency.sparsity._obs import input_hessian, inverse_factor, linear_layers

__all__ = ["Method", "prune_", "sparsegpt"]

Method = Literal["magnitude", "wanda", "sparsegpt"]


def sparsegpt(
    W: Float[Tensor, "d_out d_in"],
    H: Float[Tensor, "d_in d_in"],
    *,
    sparsity: float = 0.5,
    pattern: tuple[int, int] | None = None,
    keep: Bool[Tensor, "d_out d_in"] | None = None,
    block: int = 128,
    damping: float = 0.01,
) -> tuple[Float[Tensor, "d_out d_in"], Bool[Tensor, "d_out d_in"]]:
    r"""Prune a linear map, and let the weights that stay make up for those that go.

    Inputs are gone through from first to last. A weight that goes is spread over the *later*
    inputs of its row as the optimal brain surgeon would, whose inverse Hessian of what is left
    is read off one factor for all rows, see :func:`inverse_factor`:

    .. math::

        w_{q:} \leftarrow w_{q:} - \frac{w_q}{U_{qq}}\,U_{q,q:}, \qquad
        \text{cost of } w_q:\ \frac{w_q^2}{2\,U_{qq}^2}

    Args:
        W: Weights, one row for each output.
        H: Hessian of the inputs.
        sparsity: Share of weights that go, in every block of inputs, all rows together.
        pattern: ``(keep, group)``, such as (2, 4), in place of a share.
        keep: A mask that is given, in place of one that is chosen by the costs.
        block: Inputs for which the mask is chosen at once, and updates of later blocks are
            gathered into one product.
        damping: As for :func:`inverse_factor`.

    Returns:
        The new weights, exactly 0 where the mask is ``False``, and the mask.

    Raises:
        ValueError: If shapes do not fit or a number is out of range.

    Numerics:
        In float32 at least, after a factorization in float64; the result has the dtype of ``W``.
        :math:`d_{out} d_{in}^2` FLOPs besides the factorization, where separate inverses for
        each row would take :math:`O(d_{out} d_{in}^3)`. With a given mask the result does not
        depend on ``block``.

    References:
        Frantar and Alistarh 2023, arXiv:2301.00774, algorithm 1. The cost has the square of
        :math:`U_{qq}`, as in their code.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> H = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
        >>> sparsegpt(torch.ones(1, 2), H, sparsity=0.5, damping=0.0)
        (tensor([[0., 2.]]), tensor([[False,  True]]))
    """
    check_shape("W", W, (None, None))
    check_shape("H", H, (W.shape[1], W.shape[1]))
    check_in_range("sparsity", sparsity, low=0.0, high=1.0)
    check_count("block", block)
    if keep is not None:
        check_same_shape("W", W, "keep", keep)
    if pattern is not None:
        _grouped(W, *pattern)
        if block % pattern[1]:
            raise ValueError(f"block must be a multiple of the group of {pattern[1]}, got {block}")
    U = inverse_factor(wide(H), damping=damping)
    # An input that was always 0 says nothing: its weights go, at no cost.
    new = W.to(U.dtype).masked_fill(H.diagonal() == 0, 0)
    mask = torch.ones_like(W, dtype=torch.bool)
    for first in range(0, W.shape[1], block):
        here = slice(first, min(first + block, W.shape[1]))
        tile, factor = new[:, here].clone(), U[here, here]
        cost = (tile / factor.diagonal()) ** 2
        if keep is not None:
            stay = keep[:, here].clone()
        elif pattern is None:
            stay = top_mask(cost, sparsity=sparsity)
        else:
            stay = torch.ones_like(tile, dtype=torch.bool)
        spread = torch.zeros_like(tile)
        for q in range(tile.shape[1]):
            if keep is None and pattern is not None and q % pattern[1] == 0:
                group = slice(q, q + pattern[1])
                cost = (tile[:, group] / factor.diagonal()[group]) ** 2
                stay[:, group] = nm_mask(cost, keep=pattern[0], group=pattern[1])
            spread[:, q] = tile[:, q].masked_fill(stay[:, q], 0) / factor[q, q]
            tile[:, q:] -= spread[:, q : q + 1] * factor[q, q:]
        new[:, here] = tile.masked_fill(~stay, 0)
        new[:, here.stop :] -= spread @ U[here, here.stop :]
        mask[:, here] = stay
    return new.to(W.dtype), mask


@torch.no_grad()
def prune_(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    method: Method = "sparsegpt",
    sparsity: float = 0.5,
    pattern: tuple[int, int] | None = None,
    targets: Sequence[str] = ("blocks.*",),
    block: int = 128,
    damping: float = 0.01,
) -> dict[str, Tensor]:
    r"""Prune the linear maps in the blocks of a model, in place, from the first block to the last.

    The inputs of a block are those that the pruned blocks before it produce.

    Args:
        model: A model whose layers are ``model.blocks``, such as a
            :class:`~companion.transformer.block.Decoder`.
        batches: What the model is called with, such as rows of token ids without padding.
            Magnitudes need none.
        method: ``"magnitude"`` compares within a matrix, ``"wanda"`` within a row, and
            ``"sparsegpt"`` within a block of inputs; the last also changes the weights that stay.
        sparsity: Share of weights that go, of each matrix.
        pattern: ``(keep, group)`` in place of a share.
        targets: Names of maps, as in :func:`companion.core.replace_linears`; by default all within
            the blocks. A matrix that holds several maps is pruned as a whole.
        block: As for :func:`sparsegpt`.
        damping: As for :func:`sparsegpt`.

    Returns:
        The masks by the paths of the layers.

    Raises:
        ValueError: If the model has no blocks, a layer is shared between blocks, no batch is
            given, or an argument is out of range.

    Numerics:
        The blocks run twice on each batch, once to sum up the Hessians and once, pruned, for what
        the next block reads. Of the Hessians, those of one block are held.

    References:
        Frantar and Alistarh 2023, arXiv:2301.00774, sec. 4; Sun et al. 2024, arXiv:2306.11695.

    Book: :doc:`/book/efficiency/sparsity`
    """
    if method not in ("magnitude", "wanda", "sparsegpt"):
        raise ValueError(f"method must be 'magnitude', 'wanda' or 'sparsegpt', got {method!r}")
    blocks: Any = getattr(model, "blocks", None)
    if blocks is None or not len(blocks):
        raise ValueError(f"{type(model).__name__} has no blocks to prune one after the other")
    layers = {
        path: layer
        for path, layer in linear_layers(model, targets).items()
        if path.startswith("blocks.")
    }
    if not layers:
        raise ValueError(f"none of {', '.join(targets)} is inside of the blocks")
    if len({id(part) for part in blocks}) < len(blocks):
        raise ValueError("the model's blocks share their parameters: pruning one prunes all")
    streams = (
        [] if method == "magnitude" else [_entry(model, blocks[0], batch) for batch in batches]
    )
    if not streams and method != "magnitude":
        raise ValueError("batches must hold one batch or more, got none")
    masks: dict[str, Tensor] = {}
    for number, part in enumerate(blocks):
        prefix = f"blocks.{number}."
        found = {
            path[len(prefix) :]: layer for path, layer in layers.items() if path.startswith(prefix)
        }
        hessians: Mapping[str, Tensor] = {}
        if found and method != "magnitude":
            with input_hessian(part, list(_targets(part, found))) as hessians:
                for x, args, named in streams:
                    part(x, *args, **named)
        for path, layer in found.items():
            W = layer.weight
            if method == "sparsegpt":
                new, mask = sparsegpt(
                    W,
                    hessians[path],
                    sparsity=sparsity,
                    pattern=pattern,
                    block=block,
                    damping=damping,
                )
            else:
                scores = W.abs() if method == "magnitude" else wanda_scores(W, hessians[path])
                mask = _mask(scores, method, sparsity, pattern)
                new = W * mask
            W.copy_(new)
            masks[prefix + path] = mask
        if method != "magnitude":  # nothing reads the streams there
            streams = [(part(x, *args, **named), args, named) for x, args, named in streams]
    return masks


def _targets(part: nn.Module, found: dict[str, Any]) -> list[str]:
    """Names of all maps of the chosen layers, with their paths."""
    return [
        f"{place.path.rpartition('.')[0]}.{name}".lstrip(".")
        for place in linear_places(part)
        if place.path in found
        for name in place.maps
    ]


def _mask(scores: Tensor, method: str, sparsity: float, pattern: tuple[int, int] | None) -> Tensor:
    if pattern is not None:
        return nm_mask(scores, keep=pattern[0], group=pattern[1])
    return top_mask(scores, sparsity=sparsity, scope="tensor" if method == "magnitude" else "row")


class _Stop(Exception):
    """What the first block reads is known: the rest of the pass is not needed."""


def _entry(
    model: nn.Module, first: nn.Module, batch: Any
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """What the first block is called with. All blocks get the same besides the stream."""
    held: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = []

    def catch(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        held.append((inputs[0], inputs[1:], dict(named)))
        raise _Stop

    hook = first.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model(batch)
    except _Stop:
        pass
    finally:
        hook.remove()
    return held[0]
