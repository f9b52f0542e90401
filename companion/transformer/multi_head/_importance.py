"""Which heads matter to a loss, and the model without the others."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion.core import check_shape, watch, wide_dtype
from companion.transformer.multi_head._attention import MultiHeadAttention

__all__ = ["attention_layers", "head_importance", "prune_heads"]

Model = TypeVar("Model", bound=nn.Module)
Batch = TypeVar("Batch")


def attention_layers(model: nn.Module) -> list[MultiHeadAttention]:
    """List the attention layers of a model, in the order in which it registers them.

    Args:
        model: Any module, itself an attention layer or holding some.

    Returns:
        The layers, each once. For an encoder or a decoder of this library that is their order
        from the input to the output.

    Raises:
        ValueError: If there is none.

    Book: :doc:`/book/transformer/multi_head`

    Example:
        >>> len(attention_layers(nn.Sequential(MultiHeadAttention(6, 3), MultiHeadAttention(6, 2))))
        2
    """
    layers = [m for m in model.modules() if isinstance(m, MultiHeadAttention)]
    if not layers:
        raise ValueError(f"{type(model).__name__} holds no MultiHeadAttention, so it has no heads")
    return layers


def head_importance(
    model: nn.Module,
    loss: Callable[[Batch], Float[Tensor, "*examples"]],
    batches: Iterable[Batch],
    *,
    signed: bool = False,
    normalize: bool = False,
) -> Float[Tensor, "layers heads"]:
    r"""Measure how much a loss feels each head.

    .. math:: I_i = \mathbb E_x \left| \frac{\partial L(x)}{\partial \xi_i} \right|_{\xi = 1}

    :math:`\xi_i` is a gate, a factor of the output of head :math:`i`: 1 leaves the head alone, 0
    takes it out. To first order, taking it out changes the loss by
    :math:`-\partial L / \partial \xi_i`.

    Args:
        model: A module with :class:`MultiHeadAttention` layers of one number of heads.
        loss: Computes, with the model, the loss of one batch. Either a scalar: then the absolute
            value is taken batch by batch, as it must where the examples of a batch belong
            together. Or one loss for each example, shape ``(examples,)``: then it is taken
            example by example. In that form every call of the model must have the examples of the
            batch as its rows, in their order; there may be several calls.
        batches: What the expectation :math:`\mathbb E_x` is taken over.
        signed: Average the gradients themselves, without the absolute value. The result then
            estimates how much the mean loss rises, or falls, if a head is taken out, with the
            sign turned.
        normalize: Divide the importances of a layer by their Euclidean norm, as the reference
            does. A layer of zeros stays zero.

    Returns:
        The importances in the unit of the loss, never negative unless ``signed``, in float32 or
        better, on the device of the model.

    Raises:
        ValueError: If there is no batch, the layers differ in their number of heads, the loss
            does not depend on the model, or its shape fits neither form.

    Numerics:
        One forward and one backward pass for each batch, for all heads together. No parameter's
        ``grad`` is touched, and replacements at the site ``heads`` that are in force stay so. The
        two signs of the gradient count alike, so a head whose removal would lower the loss is
        important, too.

    References:
        P. Michel, O. Levy, G. Neubig 2019, arXiv:1905.10650, eq. (2) and sec. 4.1, with the gate
        of eq. (1).

    Book: :doc:`/book/transformer/multi_head`

    Example:
        >>> layer = MultiHeadAttention(6, 3, dtype=torch.float64)
        >>> x = torch.ones(2, 5, 6, dtype=torch.float64)
        >>> head_importance(layer, lambda x: layer(x).square().mean((1, 2)), [x]).shape
        torch.Size([1, 3])
    """
    layers = attention_layers(model)
    counts = [layer.heads for layer in layers]
    if len(set(counts)) > 1:
        raise ValueError(f"the layers must have one number of heads, got {counts}")
    sums: list[Tensor] = []
    seen = 0
    for batch in batches:
        with _gated(layers) as gates, torch.enable_grad():
            value = loss(batch)
            if value.ndim > 1:
                raise ValueError(f"loss must return () or (examples,), got {tuple(value.shape)}")
            made = _gate_gradients(value, gates)
        if not signed:
            made = made.abs()
        sums.append(made.sum(1))
        seen += made.shape[1]
    if not seen:
        raise ValueError("give at least one batch with at least one example")
    importance = torch.stack(sums).sum(0) / seen
    return nn.functional.normalize(importance, dim=1) if normalize else importance


@contextmanager
def _gated(layers: list[MultiHeadAttention]) -> Iterator[list[list[Tensor]]]:
    """Multiply each head's output, row by row of the batch, by a gate of 1 that is a variable."""
    gates: list[list[Tensor]] = [[] for _ in layers]

    def multiply(Z: Tensor, made: list[Tensor]) -> Tensor:
        gate = torch.ones(Z.shape[:2], device=Z.device, dtype=Z.dtype).requires_grad_()
        made.append(gate)
        return Z * gate[:, :, None, None]

    with ExitStack() as watched:
        for layer, made in zip(layers, gates, strict=True):
            change = partial(multiply, made=made)
            watched.enter_context(watch(layer, replace={"heads": change}))
        yield gates


def _gate_gradients(value: Tensor, gates: list[list[Tensor]]) -> Float[Tensor, "layers some heads"]:
    """Return the gradients of the losses by the gates, one row for each loss."""
    flat = [gate for calls in gates for gate in calls]
    if not flat or not value.requires_grad:
        raise ValueError(
            "the loss does not depend on the model: call it in the loss, without no_grad and not "
            "on results of before"
        )
    if value.ndim == 1:
        for gate in flat:
            if gate.shape[0] != value.shape[0]:
                raise ValueError(
                    f"{value.shape[0]} losses need calls of the model with as many rows, got one "
                    f"with {gate.shape[0]}: return a scalar, or one loss for each row"
                )
    found = iter(torch.autograd.grad(value.sum(), flat, materialize_grads=True))
    high = wide_dtype(flat[0].dtype)
    layers = []
    for calls in gates:
        rows = [next(found).to(high) for _ in calls]
        if value.ndim == 0:
            rows = [gradient.sum(0, keepdim=True) for gradient in rows]
        shape = (value.numel(), flat[0].shape[1])
        layers.append(sum(rows, torch.zeros(shape, device=value.device, dtype=high)))
    return torch.stack(layers)


def prune_heads(model: Model, keep: Bool[Tensor, "layers heads"]) -> Model:
    """Return a smaller copy of a model, without some of its heads.

    It computes what the model computes with those heads' gates at zero, and no longer computes the
    heads: see :meth:`MultiHeadAttention.keep_heads`.

    Args:
        model: A module with :class:`MultiHeadAttention` layers, in the order of
            :func:`attention_layers`.
        keep: ``True`` for the heads that stay, at least one in each layer. Where heads share keys
            and values, whole groups.

    Returns:
        A copy, whose parameters are its own; the model itself is left as it is. Layers then
        differ in their number of heads, so what counts on one number (a cache made for all layers
        at once, biases that belong to heads such as ALiBi's) fits no more.

    Raises:
        ValueError: If the shape is not that of the model's heads, a layer would lose all of its
            heads, or a group would be split.

    References:
        P. Michel, O. Levy, G. Neubig 2019, arXiv:1905.10650, sec. 4.

    Book: :doc:`/book/transformer/multi_head`

    Example:
        >>> layer = MultiHeadAttention(6, 3)
        >>> prune_heads(layer, torch.tensor([[True, False, True]])).heads
        2
    """
    layers = attention_layers(model)
    if keep.dtype != torch.bool:
        raise ValueError(f"keep must be Bool, True for the heads that stay, got {keep.dtype}")
    check_shape("keep", keep, (len(layers), None))
    smaller: dict[int, MultiHeadAttention] = {}
    for index, (layer, row) in enumerate(zip(layers, keep.tolist(), strict=True)):
        if len(row) != layer.heads:
            raise ValueError(f"layer {index} has {layer.heads} heads, but keep has {len(row)}")
        if not any(row):
            raise ValueError(f"layer {index} would lose all of its heads: keep at least one")
        smaller[id(layer)] = layer.keep_heads([head for head, stays in enumerate(row) if stays])
    if isinstance(model, MultiHeadAttention):
        return cast(Model, smaller[id(model)])
    # The copy takes the small layers in the places of the large ones, which it never copies.
    return copy.deepcopy(model, memo=cast("dict[int, Any]", smaller))
