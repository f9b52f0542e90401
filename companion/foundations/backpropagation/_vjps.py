r"""Arithmetic, broadcasting and matrix products run backward.

Layout of the book: vectors are rows and :math:`[\partial y / \partial x]_{ij} = \partial y_j /
\partial x_i`, so a gradient is pulled back by :math:`\bar x = \bar y \, (\partial y / \partial
x)^\top`. Every derivation below uses the one rule that follows: a small change gives
:math:`d\ell = \langle \bar y, dy \rangle`, the sum of all products of entries; write :math:`dy` in
terms of :math:`dx`, move everything else to the other side of the inner product, and read off
:math:`\bar x` from :math:`d\ell = \langle \bar x, dx \rangle`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_floating, check_same_shape, check_shape

__all__ = [
    "add_backward",
    "divide_backward",
    "linear_backward",
    "matmul_backward",
    "multiply_backward",
    "power_backward",
    "unbroadcast",
]


def unbroadcast(grad: Float[Tensor, "..."], *, shape: tuple[int, ...]) -> Float[Tensor, "..."]:
    r"""Sum a gradient over the axes along which an operand was repeated.

    Broadcasting copies: :math:`y_{ij} = b_j` for every :math:`i`. Then :math:`d\ell =
    \sum_{ij} \bar y_{ij} \, db_j`, so

    .. math:: \bar b_j = \sum_i \bar y_{ij}

    Args:
        grad: Gradient :math:`\bar y` in the shape after broadcasting.
        shape: Shape of the operand before it.

    Returns:
        Gradient in the shape of the operand.

    Raises:
        ValueError: If the shape does not broadcast to that of the gradient.

    Numerics:
        One pass over ``grad``. Half precision is summed in float32 by PyTorch.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> unbroadcast(torch.ones(2, 3), shape=(3,))
        tensor([2., 2., 2.])
    """
    extra = grad.ndim - len(shape)
    fits = extra >= 0 and all(
        size in (1, wide)
        for size, wide in zip(shape, tuple(grad.shape)[max(extra, 0) :], strict=True)
    )
    if not fits:
        raise ValueError(f"shape {tuple(shape)} does not broadcast to {tuple(grad.shape)}")
    repeated = tuple(
        axis
        for axis in range(grad.ndim)
        if axis < extra or (shape[axis - extra] == 1 and grad.shape[axis] != 1)
    )
    return (grad.sum(repeated, keepdim=True) if repeated else grad).reshape(shape)


def add_backward(
    grad: Float[Tensor, "..."], *, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    r"""Pull a gradient back through :math:`y = a + b` with broadcasting.

    .. math:: \bar a = \bar y, \qquad \bar b = \bar y

    each summed over the axes along which the operand was repeated (:func:`unbroadcast`).

    Args:
        grad: Gradient :math:`\bar y`.
        shapes: Shapes of :math:`a` and :math:`b`.

    Returns:
        Gradients with respect to :math:`a` and :math:`b`.

    Raises:
        ValueError: If a shape does not broadcast to that of the gradient.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> add_backward(torch.ones(2, 3), shapes=((2, 3), (3,)))[1]
        tensor([2., 2., 2.])
    """
    return unbroadcast(grad, shape=shapes[0]), unbroadcast(grad, shape=shapes[1])


def multiply_backward(
    a: Float[Tensor, "..."], b: Float[Tensor, "..."], grad: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    r"""Pull a gradient back through :math:`y = a \odot b` with broadcasting.

    .. math:: \bar a = \bar y \odot b, \qquad \bar b = \bar y \odot a

    from :math:`dy = da \odot b + a \odot db`. Repeated axes are summed (:func:`unbroadcast`).

    Args:
        a: First factor.
        b: Second factor.
        grad: Gradient :math:`\bar y`.

    Returns:
        Gradients with respect to :math:`a` and :math:`b`.

    Raises:
        ValueError: If a factor does not broadcast to the shape of the gradient.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> multiply_backward(torch.tensor([2.0, 3.0]), torch.tensor(5.0), torch.ones(2))
        (tensor([5., 5.]), tensor(5.))
    """
    return (
        unbroadcast(grad * b, shape=tuple(a.shape)),
        unbroadcast(grad * a, shape=tuple(b.shape)),
    )


def divide_backward(
    a: Float[Tensor, "..."], b: Float[Tensor, "..."], grad: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    r"""Pull a gradient back through :math:`y = a \oslash b` with broadcasting.

    .. math:: \bar a = \bar y \oslash b, \qquad \bar b = -\bar y \odot a \oslash b^2

    from :math:`dy = da / b - a \, db / b^2`. Repeated axes are summed (:func:`unbroadcast`).

    Args:
        a: Numerator.
        b: Denominator, without zeros.
        grad: Gradient :math:`\bar y`.

    Returns:
        Gradients with respect to :math:`a` and :math:`b`.

    Raises:
        ValueError: If an operand does not broadcast to the shape of the gradient.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> divide_backward(torch.tensor(6.0), torch.tensor(2.0), torch.tensor(1.0))
        (tensor(0.5000), tensor(-1.5000))
    """
    quotient = grad / b
    return (
        unbroadcast(quotient, shape=tuple(a.shape)),
        unbroadcast(-quotient * (a / b), shape=tuple(b.shape)),
    )


def power_backward(
    x: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], *, exponent: float | int
) -> Float[Tensor, "*shape"]:
    r"""Pull a gradient back through :math:`y = x^c` for a constant :math:`c`.

    .. math:: \bar x = \bar y \odot c \, x^{c - 1}

    Args:
        x: Base :math:`x`.
        grad: Gradient :math:`\bar y`.
        exponent: The constant :math:`c`.

    Returns:
        Gradient with respect to :math:`x`; 0 for :math:`c = 0`, also at :math:`x = 0`.

    Raises:
        ValueError: If the shapes differ.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> power_backward(torch.tensor([3.0]), torch.tensor([1.0]), exponent=2)
        tensor([6.])
    """
    check_same_shape("x", x, "grad", grad)
    if exponent == 0:
        return torch.zeros_like(grad)
    return grad * exponent * x ** (exponent - 1)


def matmul_backward(
    a: Float[Tensor, "*left n k"], b: Float[Tensor, "*right k m"], grad: Float[Tensor, "*out n m"]
) -> tuple[Float[Tensor, "*left n k"], Float[Tensor, "*right k m"]]:
    r"""Pull a gradient back through a matrix product :math:`Y = A B`.

    .. math:: \bar A = \bar Y B^\top, \qquad \bar B = A^\top \bar Y

    From :math:`dY = dA \, B + A \, dB` and :math:`\langle \bar Y, dA \, B \rangle =
    \langle \bar Y B^\top, dA \rangle`. In entries: :math:`y_{ij} = \sum_k a_{ik} b_{kj}`, so
    :math:`\bar a_{ik} = \sum_j \bar y_{ij} b_{kj}`.

    Args:
        a: Left factor, possibly a batch of matrices.
        b: Right factor, possibly a batch. Batch axes broadcast.
        grad: Gradient :math:`\bar Y`.

    Returns:
        Gradients with respect to :math:`A` and :math:`B`.

    Raises:
        ValueError: If a factor has fewer than two axes, or the shapes do not fit.

    Numerics:
        Two products of the cost of the forward one. Where one matrix :math:`B` serves a whole
        batch, the batch axes are joined to the rows, so that the sum over the batch is done
        inside one product.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> a, b = torch.ones(2, 3), torch.ones(3, 5)
        >>> [tuple(g.shape) for g in matmul_backward(a, b, torch.ones(2, 5))]
        [(2, 3), (3, 5)]
    """
    check_matmul(a, b)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    check_shape("grad", grad, (*batch, a.shape[-2], b.shape[-1]))
    return matmul_left(a, b, grad), matmul_right(a, b, grad)


def matmul_left(a: Tensor, b: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient with respect to the left factor alone."""
    return unbroadcast(grad @ b.mT, shape=tuple(a.shape))


def matmul_right(a: Tensor, b: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient with respect to the right factor alone."""
    if b.ndim == 2:
        return a.reshape(-1, a.shape[-1]).mT @ grad.reshape(-1, grad.shape[-1])
    return unbroadcast(a.mT @ grad, shape=tuple(b.shape))


def check_matmul(a: Tensor, b: Tensor) -> None:
    """Require two matrices, or batches of them, that can be multiplied."""
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError(
            f"a matrix product needs two axes on each side, got {tuple(a.shape)} @ "
            f"{tuple(b.shape)}: write a vector as a matrix of one row"
        )
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"inner sizes differ in {tuple(a.shape)} @ {tuple(b.shape)}")


def linear_backward(
    x: Float[Tensor, "*batch d_in"],
    weight: Float[Tensor, "d_in d_out"],
    grad: Float[Tensor, "*batch d_out"],
) -> tuple[Float[Tensor, "*batch d_in"], Float[Tensor, "d_in d_out"], Float[Tensor, " d_out"]]:
    r"""Pull a gradient back through a linear layer :math:`Y = X W + b`.

    .. math:: \bar X = \bar Y \, W^\top, \qquad \bar W = X^\top \bar Y, \qquad
        \bar b = \mathbf 1 \, \bar Y

    with the batch axes joined into rows and :math:`\mathbf 1` a row of ones. The first two are
    :func:`matmul_backward`, the last is :func:`unbroadcast`, since the bias is repeated for every
    row.

    Args:
        x: Inputs :math:`X`, one row each.
        weight: :math:`W` of shape ``(d_in, d_out)``, the transpose of ``nn.Linear.weight``.
        grad: Gradient :math:`\bar Y` with respect to the outputs.

    Returns:
        :math:`\bar X`, :math:`\bar W` and :math:`\bar b`, each in the shape of its variable.

    Raises:
        ValueError: If an argument is not floating, or the shapes do not fit.

    Numerics:
        :math:`4 n d_{in} d_{out}` operations for :math:`n` rows, twice the forward pass.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> dx, dw, db = linear_backward(torch.ones(2, 3), torch.ones(3, 5), torch.ones(2, 5))
        >>> dx.shape, dw.shape, db
        (torch.Size([2, 3]), torch.Size([3, 5]), tensor([2., 2., 2., 2., 2.]))
    """
    for name, tensor in (("x", x), ("weight", weight), ("grad", grad)):
        check_floating(name, tensor)
    check_shape("weight", weight, (x.shape[-1] if x.ndim else None, None))
    check_shape("grad", grad, (*x.shape[:-1], weight.shape[1]))
    rows = grad.reshape(-1, grad.shape[-1])
    return grad @ weight.mT, x.reshape(-1, x.shape[-1]).mT @ rows, rows.sum(0)
