"""A plain deep network on the tape, and the size of its signals, layer by layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_same_shape, randn, wide_dtype
from companion.foundations.backpropagation._reverse import backward
from companion.foundations.backpropagation._tape import Node

__all__ = ["Activation", "SignalStats", "feed_forward", "signal_stats"]

Activation = Literal["gelu", "linear", "relu", "sigmoid", "silu", "tanh"]

_ACTIVATIONS: dict[str, Callable[[Node], Node]] = {
    "gelu": Node.gelu,
    "linear": lambda node: node,
    "relu": Node.relu,
    "sigmoid": Node.sigmoid,
    "silu": Node.silu,
    "tanh": Node.tanh,
}


def _layers(
    x: Node,
    weights: Sequence[Node | Tensor],
    biases: Sequence[Node | Tensor] | None,
    activation: Activation,
) -> tuple[list[Node], list[Node]]:
    """Return the pre-activations of all layers, and the input of each layer."""
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
    if not weights:
        raise ValueError("a network needs at least one weight matrix")
    if biases is not None and len(biases) != len(weights):
        raise ValueError(f"{len(weights)} weights need as many biases, got {len(biases)}")
    inputs, outputs, h = [], [], x
    for layer, weight in enumerate(weights):
        inputs.append(h)
        y = h @ weight
        if biases is not None:
            y = y + biases[layer]
        outputs.append(y)
        h = _ACTIVATIONS[activation](y)
    return outputs, inputs


def feed_forward(
    x: Node,
    weights: Sequence[Node | Tensor],
    biases: Sequence[Node | Tensor] | None = None,
    *,
    activation: Activation = "relu",
) -> Node:
    r"""Apply a feed-forward network.

    .. math:: y_l = h_{l-1} W_l + b_l, \qquad h_l = \phi(y_l), \qquad h_0 = x

    Args:
        x: Inputs, one row each.
        weights: :math:`W_1, \ldots, W_L`, of shape ``(d_in, d_out)``.
        biases: :math:`b_1, \ldots, b_L`, or ``None`` for none.
        activation: :math:`\phi`, applied between the layers.

    Returns:
        :math:`y_L`, without an activation: logits.

    Raises:
        ValueError: If the activation is unknown, or numbers or shapes do not fit.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> feed_forward(Node(torch.ones(2, 3)), [torch.ones(3, 5), torch.ones(5, 7)]).shape
        (2, 7)
    """
    return _layers(x, weights, biases, activation)[0][-1]


@dataclass(frozen=True, eq=False, kw_only=True)
class SignalStats:
    r"""Mean squares of the signals in a network, by layer.

    Each is a mean over rows and units. Where weights have mean 0 it estimates the variance.

    Attributes:
        forward: Of the pre-activations :math:`y_1, \ldots, y_L`.
        inputs: Of the inputs of the layers, :math:`h_0, \ldots, h_{L-1}`.
        backward: Of the gradients :math:`\bar y_1, \ldots, \bar y_L`.
        weights: Of the gradients of :math:`W_1, \ldots, W_L`.
    """

    forward: Float[Tensor, " layers"]
    inputs: Float[Tensor, " layers"]
    backward: Float[Tensor, " layers"]
    weights: Float[Tensor, " layers"]


def signal_stats(
    weights: Sequence[Tensor],
    x: Float[Tensor, "rows d_in"],
    *,
    activation: Activation = "relu",
    biases: Sequence[Tensor] | None = None,
    out_grad: Float[Tensor, "rows d_out"] | None = None,
    generator: torch.Generator | None = None,
) -> SignalStats:
    r"""Measure how large signals are on their way forward and gradients on their way back.

    Args:
        weights: :math:`W_1, \ldots, W_L`.
        x: Inputs, one row each.
        activation: As in :func:`feed_forward`.
        biases: As in :func:`feed_forward`.
        out_grad: The gradient :math:`\bar y_L` that starts the way back.
        generator: Draws a standard normal :math:`\bar y_L` instead. Give one of the two.

    Returns:
        Mean squares by layer, in float32 or better, on the device of the inputs.

    Raises:
        ValueError: As in :func:`feed_forward`, or if not exactly one of ``out_grad`` and
            ``generator`` is given.

    Numerics:
        One forward and one backward pass.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> stats = signal_stats([torch.eye(2), torch.eye(2)], torch.ones(3, 2), activation="tanh",
        ...                      out_grad=torch.ones(3, 2))
        >>> stats.forward
        tensor([1.0000, 0.5800])
    """
    if (out_grad is None) == (generator is None):
        raise ValueError("give either out_grad or a generator that draws it")
    leaves = [Node(weight) for weight in weights]
    outputs, inputs = _layers(Node(x, needs_grad=False), leaves, biases, activation)
    last = outputs[-1].value
    if generator is not None:
        out_grad = randn(*last.shape, generator=generator, device=last.device, dtype=last.dtype)
    assert out_grad is not None
    check_same_shape("out_grad", out_grad, "the output", last)
    grads = backward(outputs[-1], out_grad)
    return SignalStats(
        forward=_mean_squares([node.value for node in outputs]),
        inputs=_mean_squares([node.value for node in inputs]),
        backward=_mean_squares([grads[node] for node in outputs]),
        weights=_mean_squares([grads[leaf] for leaf in leaves]),
    )


def _mean_squares(tensors: list[Tensor]) -> Tensor:
    working = wide_dtype(tensors[0].dtype)
    return torch.stack([tensor.to(working).square().mean() for tensor in tensors])
