"""Gradients by finite differences, and their comparison with the engine's."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_in_range, check_same_shape, randn
from companion.foundations.backpropagation._reverse import backward
from companion.foundations.backpropagation._tape import Node

__all__ = ["gradcheck", "numerical_vjp"]


def numerical_vjp(
    function: Callable[[Tensor], Tensor],
    x: Float[Tensor, "*shape"],
    grad: Float[Tensor, "..."],
    *,
    step: float = 6e-6,
) -> Float[Tensor, "*shape"]:
    r"""Pull a gradient back through a function by central differences.

    .. math:: \bar x_i \approx \left\langle \bar y,
        \frac{f(x + h_i e_i) - f(x - h_i e_i)}{2 h_i} \right\rangle,
        \qquad h_i = h \max(1, |x_i|)

    Args:
        function: Maps a tensor to a tensor.
        x: The point, in float64.
        grad: Gradient :math:`\bar y`, in the shape of the function's value.
        step: :math:`h > 0`. The default is the cube root of the rounding unit of float64, which
            balances the truncation, of order :math:`h^2`, against the cancellation, of order
            :math:`10^{-16} / h`.

    Returns:
        Approximate gradient :math:`\bar x`, good to about ten digits for functions of order 1.

    Raises:
        ValueError: If ``x`` is not float64, the step is not positive, or the shapes do not fit.

    Numerics:
        Two calls of the function for each entry of ``x``: this is the price that reverse mode
        saves.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> x = torch.tensor([2.0, 3.0], dtype=torch.float64)
        >>> numerical_vjp(lambda x: x**2, x, torch.ones_like(x))
        tensor([4.0000, 6.0000], dtype=torch.float64)
    """
    check_in_range("step", step, low=0.0, open_low=True)
    if x.dtype != torch.float64:
        raise ValueError(f"finite differences need float64, got {x.dtype}: use x.double()")
    flat = x.detach().reshape(-1)
    parts = []
    for i in range(len(flat)):
        up, down = flat.clone(), flat.clone()
        # What was really added, after rounding.
        up[i] += step * flat[i].abs().clamp(min=1)
        down[i] -= step * flat[i].abs().clamp(min=1)
        change = function(up.reshape(x.shape)) - function(down.reshape(x.shape))
        check_same_shape("grad", grad, "the value", change)
        parts.append((grad * change).sum() / (up[i] - down[i]))
    return torch.stack(parts).reshape(x.shape) if parts else torch.zeros_like(x)


def gradcheck(
    function: Callable[..., Node],
    *inputs: Float[Tensor, "..."],
    generator: torch.Generator,
    step: float = 6e-6,
    tolerance: float = 1e-6,
) -> float:
    r"""Compare the engine's gradients with finite differences.

    The output may have any shape: a random :math:`\bar y` is pulled back, in which every entry of
    the Jacobian takes part.

    Args:
        function: Maps one node for each input to a node.
        inputs: The point, float64 tensors away from kinks.
        generator: Draws :math:`\bar y`.
        step: As in :func:`numerical_vjp`.
        tolerance: Largest accepted error, relative to the largest entry of the gradient.

    Returns:
        The largest relative error over all inputs.

    Raises:
        ValueError: As in :func:`numerical_vjp` and :func:`backward`.
        ArithmeticError: If a gradient is off. The message names the input, the entry and both
            values.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> x = torch.tensor([0.3, -1.2], dtype=torch.float64)
        >>> error = gradcheck(lambda x: x.tanh(), x, generator=torch.Generator().manual_seed(0))
        >>> error < 1e-9
        True
    """
    nodes = [Node(tensor) for tensor in inputs]
    output = function(*nodes)
    value = output.value
    drawn = randn(value.numel(), generator=generator, device=value.device, dtype=value.dtype)
    y_bar = drawn.reshape(value.shape)
    made = backward(output, y_bar)
    worst = 0.0
    for position, node in enumerate(nodes):

        def of_one(tensor: Tensor, position: int = position) -> Tensor:
            moved = list(inputs)
            moved[position] = tensor
            return function(*(Node(t, needs_grad=False) for t in moved)).value

        expected = numerical_vjp(of_one, node.value, y_bar, step=step)
        claimed = made.get(node, torch.zeros_like(node.value))
        difference = (claimed - expected).abs()
        scale = float(expected.abs().max().clamp(min=1e-12))
        error = float(difference.max()) / scale
        if not error <= tolerance:
            entry = torch.unravel_index(difference.argmax(), difference.shape)
            index = tuple(int(i) for i in entry)
            raise ArithmeticError(
                f"gradient of input {position} at {index}: the engine gives "
                f"{float(claimed[index]):.6g}, finite differences give {float(expected[index]):.6g}"
            )
        worst = max(worst, error)
    return worst
