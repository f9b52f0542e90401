"""Sums, means, and the moving of entries to other places, run backward."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.core import check_ids, check_same_shape, check_shape, wide

__all__ = [
    "Dims",
    "embedding_backward",
    "index_backward",
    "mean_backward",
    "reshape_backward",
    "sum_backward",
    "summed_axes",
    "transpose_backward",
]

Dims = int | tuple[int, ...] | None


def sum_backward(
    grad: Float[Tensor, "..."], *, shape: tuple[int, ...], dim: Dims = None, keepdim: bool = False
) -> Float[Tensor, "..."]:
    r"""Pull a gradient back through a sum: repeat it.

    .. math:: y = \sum_i x_i \quad\Rightarrow\quad \bar x_i = \bar y

    Args:
        grad: Gradient :math:`\bar y`.
        shape: Shape of :math:`x`.
        dim: The axes summed over; ``None`` for all.
        keepdim: Whether they were kept with size 1.

    Returns:
        Gradient in the given shape, a view that repeats ``grad`` without copying it.

    Raises:
        ValueError: If the gradient has not the shape of such a sum.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> sum_backward(torch.tensor([5.0, 7.0]), shape=(2, 3), dim=1)
        tensor([[5., 5., 5.],
                [7., 7., 7.]])
    """
    axes = summed_axes(dim, len(shape))
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    left = tuple(size for axis, size in enumerate(shape) if axis not in axes)
    check_shape("grad", grad, kept if keepdim else left)
    return grad.reshape(kept).expand(shape)


def summed_axes(dim: Dims, ndim: int) -> tuple[int, ...]:
    """Return the axes that a reduction runs over as non-negative numbers."""
    if dim is None:
        return tuple(range(ndim))
    axes = (dim,) if isinstance(dim, int) else tuple(dim)
    if any(not -ndim <= axis < ndim for axis in axes):
        raise ValueError(f"dim {dim} is out of range for {ndim} axes")
    found = tuple(axis % ndim for axis in axes)
    if len(set(found)) < len(found):
        raise ValueError(f"dim {dim} names an axis twice")
    return found


def mean_backward(
    grad: Float[Tensor, "..."], *, shape: tuple[int, ...], dim: Dims = None, keepdim: bool = False
) -> Float[Tensor, "..."]:
    r"""Pull a gradient back through a mean.

    .. math:: y = \frac1N \sum_i x_i \quad\Rightarrow\quad \bar x_i = \bar y / N

    Args:
        grad: Gradient :math:`\bar y`.
        shape: Shape of :math:`x`.
        dim: The axes averaged over; ``None`` for all.
        keepdim: Whether they were kept with size 1.

    Returns:
        Gradient in the given shape.

    Raises:
        ValueError: If the gradient has not the shape of such a mean.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> mean_backward(torch.tensor(6.0), shape=(3,))
        tensor([2., 2., 2.])
    """
    count = 1
    for axis in summed_axes(dim, len(shape)):
        count *= shape[axis]
    return sum_backward(grad / count, shape=shape, dim=dim, keepdim=keepdim)


def reshape_backward(grad: Float[Tensor, "..."], *, shape: tuple[int, ...]) -> Tensor:
    r"""Pull a gradient back through a reshape: give it the old shape.

    A reshape renames the places of the entries and changes none of them. Its Jacobian is a
    permutation matrix :math:`P`, and :math:`\bar y P^\top` renames them back.

    Args:
        grad: Gradient in the new shape.
        shape: The old shape.

    Returns:
        Gradient in the old shape.

    Raises:
        ValueError: If the shapes hold different numbers of entries.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> reshape_backward(torch.ones(6), shape=(2, 3)).shape
        torch.Size([2, 3])
    """
    size = 1
    for length in shape:
        size *= length
    if size != grad.numel():
        raise ValueError(f"{tuple(grad.shape)} does not reshape to {tuple(shape)}")
    return grad.reshape(shape)


def transpose_backward(grad: Float[Tensor, "..."], *, dim0: int, dim1: int) -> Tensor:
    r"""Pull a gradient back through an exchange of two axes: exchange them again.

    .. math:: Y = X^\top \quad\Rightarrow\quad \bar X = \bar Y^\top

    since :math:`\langle \bar Y, dX^\top \rangle = \langle \bar Y^\top, dX \rangle`.

    Args:
        grad: Gradient with the axes exchanged.
        dim0: One axis.
        dim1: The other one.

    Returns:
        Gradient in the old order, a view.

    Raises:
        ValueError: If an axis does not exist.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> transpose_backward(torch.ones(2, 3, 5), dim0=0, dim1=-1).shape
        torch.Size([5, 3, 2])
    """
    if any(not -grad.ndim <= axis < grad.ndim for axis in (dim0, dim1)):
        raise ValueError(f"axes {dim0} and {dim1} are out of range for {grad.ndim} axes")
    return grad.transpose(dim0, dim1)


def index_backward(grad: Float[Tensor, "..."], index: Any, *, shape: tuple[int, ...]) -> Tensor:
    r"""Pull a gradient back through :math:`y = x[\text{index}]`.

    .. math:: y_r = x_{i_r} \quad\Rightarrow\quad \bar x_i = \sum_{r \,:\, i_r = i} \bar y_r

    Selecting is multiplication by a matrix of zeros and ones. Its transpose puts each entry back
    where it came from, and adds up those that were taken more than once.

    Args:
        grad: Gradient :math:`\bar y`.
        index: What stood between the brackets: integers, slices, tensors of integers or of
            booleans, or a tuple of these.
        shape: Shape of :math:`x`.

    Returns:
        Gradient in the given shape, 0 where nothing was taken.

    Raises:
        ValueError: If the gradient has not the shape that the index selects.

    Numerics:
        Added up in float32 or better: in bfloat16 a sum of ones would stall at 256. Entries taken
        twice are added in no fixed order on CUDA, so the last digits may vary.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> index_backward(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2]), shape=(3,))
        tensor([1., 0., 6.])
    """
    size = 1
    for length in shape:
        size *= length
    # Number the places of x and select the numbers, so that one rule serves every kind of index.
    places = torch.arange(size, device=grad.device).reshape(shape)[index]
    check_same_shape("grad", grad, "the selection", places)
    flat = torch.zeros(size, dtype=wide(grad).dtype, device=grad.device)
    flat = flat.index_add(0, places.reshape(-1), wide(grad).reshape(-1))
    return flat.to(grad.dtype).reshape(shape)


def embedding_backward(
    grad: Float[Tensor, "*batch d"], ids: Int[Tensor, "*batch"], *, rows: int
) -> Float[Tensor, "rows d"]:
    r"""Pull a gradient back through a look-up of rows, :math:`x_t = E_{i_t}`.

    .. math:: \bar E_v = \sum_{t \,:\, i_t = v} \bar x_t

    As a matrix product :math:`X = S E` with one-hot rows :math:`S` this is :math:`S^\top \bar X`,
    without the zeros: words that do not occur get no gradient, words that occur twice get two.

    Args:
        grad: Gradient :math:`\bar x_t`, one row for each id.
        ids: The rows that were looked up, 0, ..., ``rows`` - 1.
        rows: Number of rows of the table, the size of the vocabulary.

    Returns:
        Gradient with respect to the table.

    Raises:
        ValueError: If the shapes do not fit, or an id is out of range (read on the CPU only).

    Numerics:
        The result is dense. Rows are added up in float32 or better, and in no fixed order on CUDA.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> embedding_backward(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 1]), rows=3)
        tensor([[0.],
                [3.],
                [0.]])
    """
    check_shape("grad", grad, (*ids.shape, None))
    if ids.device.type == "cpu":
        check_ids("ids", ids, rows)
    width = grad.shape[-1]
    table = torch.zeros(rows, width, dtype=wide(grad).dtype, device=grad.device)
    return table.index_add(0, ids.reshape(-1), wide(grad).reshape(-1, width)).to(grad.dtype)
