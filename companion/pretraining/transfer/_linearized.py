"""A model to first order around its start: fine-tuning as a linear problem."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["linearized", "tangent_kernel"]

Function = Callable[[dict[str, Tensor]], Tensor]


def linearized(
    function: Function, start: Mapping[str, Tensor], change: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    r"""Return a function at its start, and its first-order change.

    .. math:: f(\theta_0 + \Delta) = f(\theta_0) + \nabla f(\theta_0) \cdot \Delta
        + O(\lVert\Delta\rVert^2)

    Args:
        function: Maps parameters by name to a tensor, for example by
            :func:`torch.func.functional_call`. It must be differentiable in forward mode.
        start: :math:`\theta_0`.
        change: :math:`\Delta`, of the same names and shapes.

    Returns:
        :math:`f(\theta_0)` and :math:`\nabla f(\theta_0) \cdot \Delta`, each of the shape of the
        output. Their sum is the linearized model.

    Raises:
        ValueError: If the names differ.

    Numerics:
        One forward pass in forward-mode differentiation, about two or three times the cost of a
        plain one; no gradient is formed. Attention runs in PyTorch's plain kernel, the only one
        that has a forward mode.

    References:
        Jacot, Gabriel and Hongler 2018, arXiv:1806.07572; Lee et al. 2019, arXiv:1902.06720,
        sec. 2.2.

    Book: :doc:`/book/pretraining/transfer`

    Example:
        >>> f = lambda p: p["w"] ** 2
        >>> linearized(f, {"w": torch.tensor(3.0)}, {"w": torch.tensor(0.5)})
        (tensor(9.), tensor(3.))
    """
    if set(start) != set(change):
        raise ValueError("start and change must have the same names")
    there = {name: tensor.detach() for name, tensor in start.items()}
    along = {name: change[name].detach() for name in start}
    with sdpa_kernel(SDPBackend.MATH):
        out = torch.func.jvp(function, (there,), (along,))
    return out[0], out[1]


def tangent_kernel(function: Function, start: Mapping[str, Tensor]) -> Float[Tensor, "n n"]:
    r"""Return the tangent kernel of a function with one output for each of n examples.

    .. math:: K_{ij} = \nabla f_i(\theta_0) \cdot \nabla f_j(\theta_0)

    A small gradient step with rate :math:`\eta` on a loss with slopes :math:`g_j` in the outputs
    changes output :math:`i` by :math:`-\eta \sum_j K_{ij}\, g_j`.

    Args:
        function: Maps parameters by name to a tensor of shape (n,).
        start: :math:`\theta_0`.

    Returns:
        A symmetric matrix without negative eigenvalues.

    Raises:
        ValueError: If the output is not a row of numbers.

    Numerics:
        n backward passes, and n copies of the parameters in memory: for few parameters, such as
        those of LoRA.

    References:
        Jacot, Gabriel and Hongler 2018, arXiv:1806.07572, sec. 4.

    Book: :doc:`/book/pretraining/transfer`

    Example:
        >>> x = torch.tensor([1.0, 2.0])
        >>> tangent_kernel(lambda p: p["w"] * x, {"w": torch.tensor(3.0)})
        tensor([[1., 2.],
                [2., 4.]])
    """
    there = {name: p.detach().requires_grad_() for name, p in start.items()}
    out = function(there)
    if out.ndim != 1:
        raise ValueError(f"the function must return a row of numbers, got {tuple(out.shape)}")
    tensors = list(there.values())
    rows = [
        torch.cat(
            [
                torch.zeros_like(p).flatten() if g is None else g.flatten()
                for p, g in zip(
                    tensors,
                    torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True),
                    strict=True,
                )
            ]
        )
        for value in out.unbind()
    ]
    J = torch.stack(rows)
    return J @ J.T
