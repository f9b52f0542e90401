"""Products with a Hessian that is never formed, and its largest eigenvalues."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import randn, wide_dtype

__all__ = ["TopEigenvalues", "hessian_topk", "hessian_vector_product"]


@dataclass(frozen=True, eq=False, kw_only=True)
class TopEigenvalues:
    """The largest eigenvalues of a Hessian, and how well they are known.

    Attributes:
        values: The eigenvalues, largest first, shape ``(k,)``.
        residuals: For each a bound on its distance from a true eigenvalue, same shape.
    """

    values: Float[Tensor, " k"]
    residuals: Float[Tensor, " k"]


def _gradients(loss_fn: Callable[[], Tensor], params: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if not params:
        raise ValueError("give at least one parameter")
    loss = loss_fn()
    if loss.ndim != 0:
        raise ValueError(f"loss_fn must return a scalar, got shape {tuple(loss.shape)}")
    return torch.autograd.grad(loss, params, create_graph=True)


def _product(
    grads: Sequence[Tensor], params: Sequence[Tensor], vectors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    # The gradient of <gradient, v>: a linear loss has no second graph, hence the zeros.
    return torch.autograd.grad(
        [g for g in grads if g.requires_grad],
        params,
        grad_outputs=[v for g, v in zip(grads, vectors, strict=True) if g.requires_grad],
        retain_graph=True,
        materialize_grads=True,
    )


def hessian_vector_product(
    loss_fn: Callable[[], Tensor], params: Sequence[Tensor], vectors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    r"""Multiply the Hessian of a loss by a vector.

    .. math:: v H = \frac{\partial}{\partial \theta} \langle \nabla L(\theta), v \rangle,
        \qquad H = \nabla^2 L(\theta) = H^\top

    Args:
        loss_fn: Returns the scalar loss at the present parameters.
        params: Parameters that require gradients.
        vectors: :math:`v`, one tensor of the shape of each parameter.

    Returns:
        One tensor for each parameter.

    Raises:
        ValueError: If the loss is not a scalar, or a shape differs.

    Numerics:
        About twice the cost of a gradient. The loss must be twice differentiable by autograd,
        which fused attention kernels are not: use the math backend there.

    References:
        B. A. Pearlmutter, "Fast exact multiplication by the Hessian", 1994,
        doi:10.1162/neco.1994.6.1.147.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> hessian_vector_product(lambda: (x**3).sum(), [x], [torch.tensor([1.0, 1.0])])
        (tensor([ 6., 12.]),)
    """
    shapes = [tuple(p.shape) for p in params]
    if shapes != [tuple(v.shape) for v in vectors]:
        raise ValueError(
            f"vectors must have the shapes {shapes} of the parameters, "
            f"got {[tuple(v.shape) for v in vectors]}"
        )
    return tuple(h.detach() for h in _product(_gradients(loss_fn, params), params, vectors))


def hessian_topk(
    loss_fn: Callable[[], Tensor],
    params: Sequence[Tensor],
    k: int = 1,
    *,
    iterations: int | None = None,
    generator: torch.Generator,
) -> TopEigenvalues:
    r"""Find the largest eigenvalues of the Hessian of a loss by Lanczos' method.

    With an orthonormal basis :math:`Q` (rows) of the Krylov space of a random vector,
    :math:`Q H Q^\top` is tridiagonal, and its largest eigenvalues approach those of :math:`H`
    from below.

    Args:
        loss_fn: Returns the scalar loss at the present parameters.
        params: Parameters that require gradients.
        k: How many eigenvalues, 1 or more. Largest by value, not by magnitude.
        iterations: Products with the Hessian; by default ``max(30, 5 * k)``, at most the number
            of parameters. Give more where the residuals are too large.
        generator: Source of the starting vector.

    Returns:
        Eigenvalues and residuals, in the widest dtype of the parameters, at least float32.

    Raises:
        ValueError: If the loss is not a scalar, or k is below 1 or above the iterations.

    Numerics:
        The basis is orthogonalized twice at each step, at ``iterations`` times the memory of the
        parameters, so that rounding makes no false copies of an eigenvalue. Where the Krylov
        space is exhausted, a new random direction continues it.

    References:
        C. Lanczos, 1950, doi:10.6028/jres.045.026; B. N. Parlett, *The Symmetric Eigenvalue
        Problem*, 1998, section 13.2, doi:10.1137/1.9781611971163, for the bound.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
        >>> top = hessian_topk(lambda: (x**3).sum(), [x], 2,
        ...                    generator=torch.Generator().manual_seed(0))
        >>> top.values.round(decimals=6)
        tensor([18., 12.], dtype=torch.float64)
    """
    grads = _gradients(loss_fn, params)
    size = sum(p.numel() for p in params)
    rounds = min(size, max(30, 5 * k) if iterations is None else iterations)
    if not 1 <= k <= rounds:
        raise ValueError(
            f"k must lie in [1, {rounds}], the number of iterations (or of parameters), got {k}"
        )
    dtype = wide_dtype(params[0].dtype)
    for p in params[1:]:
        dtype = torch.promote_types(dtype, p.dtype)
    device = params[0].device
    basis = torch.zeros(rounds, size, dtype=dtype, device=device)
    diagonal = torch.zeros(rounds, dtype=dtype, device=device)
    below = torch.zeros(rounds, dtype=dtype, device=device)
    tiny = 100 * torch.finfo(dtype).eps
    vector = randn(size, generator=generator, device=device, dtype=dtype)
    vector = vector / vector.norm()
    largest = torch.zeros((), dtype=dtype, device=device)
    for index in range(rounds):
        basis[index] = vector
        image = _flat(_product(grads, params, _split(vector, params)), dtype)
        largest = torch.maximum(largest, image.norm())
        diagonal[index] = image @ vector
        image = _orthogonal(image, basis[: index + 1])
        fresh = randn(size, generator=generator, device=device, dtype=dtype)
        fresh = _orthogonal(fresh, basis[: index + 1])
        # No branch on a value: an accelerator would have to wait for it.
        spent = image.norm() <= tiny * largest
        below[index] = torch.where(spent, torch.zeros_like(largest), image.norm())
        vector = torch.where(spent, fresh, image)
        vector = vector / vector.norm().clamp(min=torch.finfo(dtype).tiny)
    tridiagonal = torch.diag(diagonal) + torch.diag(below[:-1], 1) + torch.diag(below[:-1], -1)
    values, vectors = torch.linalg.eigh(tridiagonal)
    return TopEigenvalues(
        values=values.flip(0)[:k], residuals=(below[-1] * vectors[-1].abs()).flip(0)[:k]
    )


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    for _ in range(2):
        vector = vector - (vector @ basis.T) @ basis
    return vector


def _flat(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([t.detach().reshape(-1).to(dtype) for t in tensors])


def _split(vector: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    pieces = torch.split(vector, [p.numel() for p in params])
    return [v.reshape(p.shape).to(p.dtype) for v, p in zip(pieces, params, strict=True)]
