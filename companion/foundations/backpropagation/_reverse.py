"""The backward pass over a graph of nodes, and recomputation in place of memory."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from companion.core import check_same_shape
from companion.foundations.backpropagation._tape import Node, record, version

__all__ = ["backward", "checkpoint", "topological_order", "value_and_gradients"]


def topological_order(output: Node) -> list[Node]:
    """Return the nodes that an output was made from, each after all of its parents.

    Args:
        output: The last node.

    Returns:
        Inputs first, the output last, each node once.

    Numerics:
        Time and memory in proportion to the number of nodes and edges. No recursion, so graphs
        may be as deep as memory allows.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> x = Node(torch.tensor(2.0))
        >>> [node.operation for node in topological_order((x * x).exp())]
        ['input', 'multiply', 'exp']
    """
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(output, False)]
    while stack:
        node, parents_done = stack.pop()
        if parents_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((parent, False) for parent in node.parents)
    return order


@torch.no_grad()
def backward(
    output: Node, grad: Tensor | None = None, *, keep: Literal["all", "inputs"] = "all"
) -> dict[Node, Tensor]:
    r"""Return the gradient of an output with respect to every node that it was made from.

    Visits the nodes from the output to the inputs. Each hands its gradient to its parents by its
    own vector-Jacobian product, and a node that was used several times adds up what it is handed:

    .. math:: \bar x = \sum_{y \text{ made from } x} \bar y
        \left(\frac{\partial y}{\partial x}\right)^\top

    Args:
        output: The node :math:`\ell` to differentiate.
        grad: Its own gradient :math:`\bar \ell`, in its shape. By default 1, which needs a scalar.
        keep: ``"inputs"`` drops the gradients of the nodes between as soon as they are used.

    Returns:
        The gradient of each node that needs one, in the shape of its value. They are not written
        into the nodes, so two backward passes never mix. Gradients may share memory: do not
        change them in place.

    Raises:
        ValueError: If the output needs no gradient, is not a scalar while ``grad`` is left out,
            or ``grad`` does not fit.
        RuntimeError: If a value was changed in place after it was used.

    Numerics:
        For chains of matrix products at most twice the operations of the forward pass.

    References:
        S. Linnainmaa, doi:10.1007/BF01931367; D. Rumelhart, G. Hinton and R. Williams,
        doi:10.1038/323533a0.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> x = Node(torch.tensor(3.0))
        >>> backward(x * x + 5 * x)[x]
        tensor(11.)
    """
    if keep not in ("all", "inputs"):
        raise ValueError(f"keep must be 'all' or 'inputs', got {keep!r}")
    if not output.needs_grad:
        raise ValueError(
            f"{output} was made from constants only, so there is nothing to differentiate"
        )
    if grad is None:
        if output.value.numel() != 1:
            raise ValueError(
                f"the output has shape {output.shape}, not that of a scalar: pass its gradient, "
                "or reduce it to a loss first"
            )
        grad = torch.ones_like(output.value)
    check_same_shape("grad", grad, "the output", output.value)
    grads = {output: grad}
    for node in reversed(topological_order(output)):
        # Constants too, since the rules of other nodes read them.
        if version(node.value) != node._version:
            raise RuntimeError(
                f"the value of {node} was changed in place after it was used: compute the graph "
                "again, or write the new value into a new tensor"
            )
        if not node.needs_grad or node._pullback is None:
            continue
        own = grads[node] if keep == "all" else grads.pop(node)
        for parent, part in zip(node.parents, node._pullback(own), strict=True):
            if parent.needs_grad and part is not None:
                grads[parent] = grads[parent] + part if parent in grads else part
    return grads


def value_and_gradients(
    function: Callable[..., Node], *inputs: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the value of a scalar function and its gradient with respect to each input.

    Args:
        function: Maps one node for each input to a scalar node.
        inputs: The tensors at which to differentiate.

    Returns:
        The value, and one gradient for each input, zero where the input does not matter.

    Raises:
        ValueError: As in :func:`backward`.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> value_and_gradients(lambda a, b: a * b, torch.tensor(2.0), torch.tensor(5.0))
        (tensor(10.), (tensor(5.), tensor(2.)))
    """
    nodes = [Node(tensor) for tensor in inputs]
    output = function(*nodes)
    grads = backward(output, keep="inputs")
    return output.value, tuple(
        grads[node] if node in grads else torch.zeros_like(node.value) for node in nodes
    )


def checkpoint(function: Callable[..., Node], *inputs: Node) -> Node:
    r"""Apply a function, and forget all values between its inputs and its output.

    The backward pass computes them again from the inputs. For a chain of :math:`L` equal stages,
    one checkpoint every :math:`k` stages keeps about :math:`L / k + k` values in place of
    :math:`L`, which is least at :math:`k = \sqrt L`, for one more forward pass.

    Args:
        function: Maps nodes to a node. It must give the same value when it is called again, so
            randomness inside needs a generator that is made anew in each call.
        inputs: Every node that the function uses and that needs a gradient, weights included.

    Returns:
        The output, equal to ``function(*inputs)`` in value and gradients.

    Raises:
        ValueError: If the function uses a node that needs a gradient and is not among the inputs.
            Its gradient would be lost.

    References:
        T. Chen et al., arXiv:1604.06174, section 4.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> x = Node(torch.tensor([0.5]))
        >>> y = checkpoint(lambda h: h.tanh().tanh(), x)
        >>> backward(y)[x]
        tensor([0.6398])
    """
    value = function(*(Node(node.value, needs_grad=False) for node in inputs))
    if value.needs_grad:
        raise ValueError(
            "the function uses a node that needs a gradient and is not among the inputs: pass it "
            "to checkpoint as well"
        )

    def pull(grad: Tensor) -> list[Tensor | None]:
        again = [Node(node.value, needs_grad=node.needs_grad) for node in inputs]
        grads = backward(function(*again), grad, keep="inputs")
        return [grads.get(node) for node in again]

    return record("checkpoint", value.value, inputs, pull)
