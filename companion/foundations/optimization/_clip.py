"""Clipping by the global norm: one factor for all gradients, so the direction stays."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_in_range, wide_dtype

__all__ = ["clip_by_global_norm", "clip_grad_norm_", "global_norm"]


def global_norm(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    r"""Return the Euclidean norm of all entries of all tensors together.

    .. math:: \lVert g \rVert = \Big( \sum_i \lVert g_i \rVert_2^2 \Big)^{1/2}

    Args:
        tensors: Gradients :math:`g_i` of any shapes, at least one.

    Returns:
        A scalar of 0 or more, in float32 or better, on the device of the first tensor.

    Raises:
        ValueError: If there is no tensor.

    Numerics:
        One pass over the data and one launch for the whole list. No value is read back, so an
        accelerator does not wait.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> global_norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])])
        tensor(5.)
    """
    if not tensors:
        raise ValueError("the norm of no tensors is not defined: give at least one")
    first = tensors[0].device
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor.detach())
    norms: list[Tensor] = []
    for (_, dtype), members in groups.items():
        norms += [
            norm.to(first) for norm in torch._foreach_norm(members, 2.0, dtype=wide_dtype(dtype))
        ]
    total: Tensor = torch.linalg.vector_norm(torch.stack(_promoted(norms)))
    return total


def _promoted(norms: list[Tensor]) -> list[Tensor]:
    wide = any(norm.dtype == torch.float64 for norm in norms)
    return [norm.double() for norm in norms] if wide else norms


def clip_by_global_norm(
    grads: Sequence[Tensor], *, max_norm: float
) -> tuple[list[Tensor], Float[Tensor, ""]]:
    r"""Scale gradients down together where their global norm is above a limit.

    .. math:: g \leftarrow g \, \min\Big(1, \frac{c}{\lVert g \rVert}\Big)

    Args:
        grads: Gradients of any shapes, at least one.
        max_norm: The limit :math:`c > 0`, in the unit of the gradient.

    Returns:
        New gradients, and the norm before clipping.

    Raises:
        ValueError: If the limit is not above 0 or there is no gradient.

    Numerics:
        Zero gradients stay zero. Where the norm is NaN, so are all new gradients, which makes
        the next loss show it; where it is infinite, entries become 0 or NaN.

    References:
        R. Pascanu, T. Mikolov and Y. Bengio, 2013, arXiv:1211.5063, algorithm 1.
        ``torch.nn.utils.clip_grad_norm_`` divides by :math:`\lVert g \rVert + 10^{-6}`, so it
        clips by a relative :math:`10^{-6} / \lVert g \rVert` more. Here the equation is exact.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> clipped, norm = clip_by_global_norm([torch.tensor([6.0, 8.0])], max_norm=5.0)
        >>> clipped, norm
        ([tensor([3., 4.])], tensor(10.))
    """
    check_in_range("max_norm", max_norm, low=0.0, open_low=True)
    norm = global_norm(grads)
    factor = _factor(norm, max_norm)
    return [grad * factor.to(grad.device, grad.dtype) for grad in grads], norm


def clip_grad_norm_(params: Iterable[Tensor] | Tensor, *, max_norm: float) -> Float[Tensor, ""]:
    r"""Clip the gradients of parameters in place, as :func:`clip_by_global_norm` defines it.

    Args:
        params: Parameters. Those without a gradient are passed over.
        max_norm: The limit :math:`c > 0`.

    Returns:
        The global norm before clipping; 0 where there is no gradient at all.

    Raises:
        ValueError: If the limit is not above 0.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([6.0, 8.0])
        >>> clip_grad_norm_([weight], max_norm=5.0), weight.grad
        (tensor(10.), tensor([3., 4.]))
    """
    check_in_range("max_norm", max_norm, low=0.0, open_low=True)
    listed = [params] if isinstance(params, Tensor) else list(params)
    grads = [param.grad for param in listed if param.grad is not None]
    if not grads:
        return torch.zeros((), device=listed[0].device if listed else None)
    norm = global_norm(grads)
    factor = _factor(norm, max_norm)
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for grad in grads:
        groups.setdefault((grad.device, grad.dtype), []).append(grad.detach())
    for (device, dtype), members in groups.items():
        torch._foreach_mul_(members, factor.to(device, dtype))
    return norm


def _factor(norm: Tensor, max_norm: float) -> Tensor:
    # For a zero norm the quotient is infinite and the minimum 1.
    return (max_norm / norm).clamp(max=1.0)
