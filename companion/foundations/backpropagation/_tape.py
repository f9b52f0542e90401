"""Nodes: tensors that remember how they were computed."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.core import check_ids
from companion.foundations.backpropagation import _activations as act
from companion.foundations.backpropagation import _places as places
from companion.foundations.backpropagation import _vjps as vjps
from companion.foundations.cross_entropy import (
    cross_entropy,
    cross_entropy_backward,
    log_softmax,
    softmax,
    softmax_vjp,
)

__all__ = ["Node"]

Pullback = Callable[[Tensor], Sequence[Tensor | None]]
F = torch.nn.functional


class Node:
    r"""A tensor that remembers how it was computed.

    A forward operation makes a node from nodes. It computes the value, and notes which nodes it
    came from and how a gradient :math:`\bar y` is pulled back to them. Arithmetic
    (``+ - * / @ **``), indexing and the methods below make new nodes and change none. A tensor or
    a number on the other side becomes a constant.

    Args:
        value: The tensor. It is kept, not copied, and must not be changed in place while the
            graph is in use.
        needs_grad: Whether gradients are pulled back to this node. Constants need none.

    Attributes:
        value: The tensor.
        needs_grad: Whether :func:`backward` gives this node a gradient.
        operation: Name of the operation that made it, ``"input"`` for inputs and constants.
        parents: The nodes it was made from. Empty where no gradient is needed, so that the past
            of such a node can be freed.

    Raises:
        ValueError: If a value that needs a gradient is not floating, or operands do not fit.

    Numerics:
        Operations run on the device and in the dtype of their operands, with autograd switched
        off, so nothing is recorded twice. Forward-mode tools of PyTorch (``torch.func.jvp``) pass
        through, and give second derivatives. A graph is made of Python objects, which cost some
        microseconds each: compile the rules by themselves where that matters.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> from companion.foundations.backpropagation import backward
        >>> x = Node(torch.tensor([2.0, 3.0]))
        >>> y = (x * x).sum()
        >>> y.value, backward(y)[x]
        (tensor(13.), tensor([4., 6.]))
    """

    __slots__ = ("_pullback", "_version", "needs_grad", "operation", "parents", "value")

    def __init__(self, value: Tensor, *, needs_grad: bool = True) -> None:
        if needs_grad and not value.is_floating_point():
            raise ValueError(
                f"only floating tensors have gradients, got {value.dtype}: pass needs_grad=False "
                "for a constant"
            )
        self.value = value
        self.needs_grad = needs_grad
        self.operation = "input"
        self.parents: tuple[Node, ...] = ()
        self._pullback: Pullback | None = None
        self._version = version(value)

    def __repr__(self) -> str:
        return f"Node({self.operation}, shape {self.shape})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return tuple(self.value.shape)

    # --- arithmetic -------------------------------------------------------------------------

    @torch.no_grad()
    def __add__(self, other: Any) -> "Node":
        b = operand(other, self)
        shapes = (self.shape, b.shape)
        return record(
            "add", self.value + b.value, (self, b), lambda g: vjps.add_backward(g, shapes=shapes)
        )

    @torch.no_grad()
    def __mul__(self, other: Any) -> "Node":
        b = operand(other, self)
        x, y = self.value, b.value
        return record("multiply", x * y, (self, b), lambda g: vjps.multiply_backward(x, y, g))

    @torch.no_grad()
    def __truediv__(self, other: Any) -> "Node":
        b = operand(other, self)
        x, y = self.value, b.value
        return record("divide", x / y, (self, b), lambda g: vjps.divide_backward(x, y, g))

    @torch.no_grad()
    def __matmul__(self, other: Any) -> "Node":
        b = operand(other, self)
        x, y = self.value, b.value
        vjps.check_matmul(x, y)
        left, right = self.needs_grad, b.needs_grad

        def pull(g: Tensor) -> Sequence[Tensor | None]:
            # Half of the work is saved where one factor is data.
            return (
                vjps.matmul_left(x, y, g) if left else None,
                vjps.matmul_right(x, y, g) if right else None,
            )

        return record("matmul", x @ y, (self, b), pull)

    @torch.no_grad()
    def __pow__(self, exponent: float | int) -> "Node":
        x = self.value
        return record(
            "power",
            x**exponent,
            (self,),
            lambda g: (vjps.power_backward(x, g, exponent=exponent),),
        )

    def __neg__(self) -> "Node":
        return self * -1.0

    def __sub__(self, other: Any) -> "Node":
        return self + -operand(other, self)

    def __radd__(self, other: Any) -> "Node":
        return operand(other, self) + self

    def __rmul__(self, other: Any) -> "Node":
        return operand(other, self) * self

    def __rsub__(self, other: Any) -> "Node":
        return operand(other, self) - self

    def __rtruediv__(self, other: Any) -> "Node":
        return operand(other, self) / self

    def __rmatmul__(self, other: Any) -> "Node":
        return operand(other, self) @ self

    # --- entry by entry ---------------------------------------------------------------------

    @torch.no_grad()
    def relu(self) -> "Node":
        """Return the positive part."""
        out = torch.relu(self.value)
        return record("relu", out, (self,), lambda g: (act.relu_backward(out, g),))

    @torch.no_grad()
    def sigmoid(self) -> "Node":
        """Return the logistic function."""
        out = torch.sigmoid(self.value)
        return record("sigmoid", out, (self,), lambda g: (act.sigmoid_backward(out, g),))

    @torch.no_grad()
    def tanh(self) -> "Node":
        """Return the hyperbolic tangent."""
        out = torch.tanh(self.value)
        return record("tanh", out, (self,), lambda g: (act.tanh_backward(out, g),))

    @torch.no_grad()
    def exp(self) -> "Node":
        """Return the exponential."""
        out = torch.exp(self.value)
        return record("exp", out, (self,), lambda g: (act.exp_backward(out, g),))

    @torch.no_grad()
    def log(self) -> "Node":
        """Return the natural logarithm."""
        x = self.value
        return record("log", torch.log(x), (self,), lambda g: (act.log_backward(x, g),))

    @torch.no_grad()
    def gelu(self) -> "Node":
        """Return the exact GELU."""
        x = self.value
        return record("gelu", F.gelu(x), (self,), lambda g: (act.gelu_backward(x, g),))

    @torch.no_grad()
    def silu(self) -> "Node":
        """Return SiLU."""
        x = self.value
        return record("silu", F.silu(x), (self,), lambda g: (act.silu_backward(x, g),))

    # --- along axes -------------------------------------------------------------------------

    @torch.no_grad()
    def sum(self, dim: places.Dims = None, *, keepdim: bool = False) -> "Node":
        """Return the sum over some axes, or over all of them."""
        shape, axes = self.shape, places.summed_axes(dim, self.value.ndim)
        # PyTorch reads an empty tuple of axes as all of them.
        out = self.value.sum(axes, keepdim=keepdim) if axes else self.value.clone()
        return record(
            "sum",
            out,
            (self,),
            lambda g: (places.sum_backward(g, shape=shape, dim=axes, keepdim=keepdim),),
        )

    @torch.no_grad()
    def mean(self, dim: places.Dims = None, *, keepdim: bool = False) -> "Node":
        """Return the mean over some axes, or over all of them."""
        shape, axes = self.shape, places.summed_axes(dim, self.value.ndim)
        out = self.value.mean(axes, keepdim=keepdim) if axes else self.value.clone()
        return record(
            "mean",
            out,
            (self,),
            lambda g: (places.mean_backward(g, shape=shape, dim=axes, keepdim=keepdim),),
        )

    @torch.no_grad()
    def softmax(self) -> "Node":
        """Return the softmax over the last axis."""
        out = softmax(self.value)
        return record("softmax", out, (self,), lambda g: (softmax_vjp(out, g),))

    @torch.no_grad()
    def log_softmax(self) -> "Node":
        """Return the log-softmax over the last axis, in nats."""
        out = log_softmax(self.value)
        return record("log_softmax", out, (self,), lambda g: (act.log_softmax_backward(out, g),))

    @torch.no_grad()
    def cross_entropy(self, targets: Tensor) -> "Node":
        """Return the mean cross-entropy in nats of target ids or distributions, from logits."""
        logits = self.value
        return record(
            "cross_entropy",
            cross_entropy(logits, targets),
            (self,),
            lambda g: ((g * cross_entropy_backward(logits, targets)).to(logits.dtype),),
        )

    # --- places -----------------------------------------------------------------------------

    @torch.no_grad()
    def reshape(self, *shape: int) -> "Node":
        """Return the same entries in another shape."""
        old = self.shape
        return record(
            "reshape",
            self.value.reshape(shape),
            (self,),
            lambda g: (places.reshape_backward(g, shape=old),),
        )

    @torch.no_grad()
    def transpose(self, dim0: int, dim1: int) -> "Node":
        """Return the tensor with two axes exchanged."""
        return record(
            "transpose",
            self.value.transpose(dim0, dim1),
            (self,),
            lambda g: (places.transpose_backward(g, dim0=dim0, dim1=dim1),),
        )

    @torch.no_grad()
    def __getitem__(self, index: Any) -> "Node":
        shape = self.shape
        return record(
            "index",
            self.value[index],
            (self,),
            lambda g: (places.index_backward(g, index, shape=shape),),
        )

    @torch.no_grad()
    def embedding(self, ids: Tensor) -> "Node":
        """Return the rows with the given ids, this node being the table."""
        if self.value.ndim != 2:
            raise ValueError(f"a table of embeddings has two axes, got shape {self.shape}")
        rows = self.shape[0]
        if ids.device.type == "cpu":
            check_ids("ids", ids, rows)
        return record(
            "embedding",
            self.value[ids],
            (self,),
            lambda g: (places.embedding_backward(g, ids, rows=rows),),
        )


def version(value: Tensor) -> int:
    """Return how often a tensor has been written to, -1 where PyTorch does not count."""
    # A compiled graph sees every write by itself.
    if torch.compiler.is_compiling() or value.is_inference():
        return -1
    return int(value._version)


def operand(other: Any, partner: Node) -> Node:
    """Return the other side of an operation as a node."""
    if isinstance(other, Node):
        node = other
    elif isinstance(other, Tensor):
        node = Node(other, needs_grad=False)
    elif isinstance(other, int | float):
        number = torch.full((), other, dtype=partner.value.dtype, device=partner.value.device)
        node = Node(number, needs_grad=False)
    else:
        raise TypeError(f"a Node does not combine with {type(other).__name__}")
    if node.value.dtype != partner.value.dtype:
        raise ValueError(
            f"operands have dtypes {partner.value.dtype} and {node.value.dtype}: convert one of "
            "them first"
        )
    return node


def record(operation: str, value: Tensor, parents: tuple[Node, ...], pullback: Pullback) -> Node:
    """Return a new node with its past, or without one where no gradient is needed."""
    needs_grad = any(parent.needs_grad for parent in parents)
    node = Node(value, needs_grad=needs_grad)
    node.operation = operation
    if needs_grad:
        node.parents = parents
        node._pullback = pullback
    return node
