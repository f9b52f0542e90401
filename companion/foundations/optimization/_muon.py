"""Muon: momentum whose matrix is replaced by the nearest one with equal singular values."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.optimizer import ParamsT

from companion.core import check_floating
from companion.foundations.optimization._base import (
    UpdateRule,
    check_decay_rate,
    check_nonnegative,
)

__all__ = ["CUBIC", "QUINTIC", "Muon", "muon_scale", "muon_update", "newton_schulz"]

#: Coefficients of the classical Newton-Schulz iteration. Singular values converge to 1.
CUBIC = (1.5, -0.5, 0.0)

#: Coefficients of Muon. Steep at zero, so that small singular values grow fast; they end up
#: between about 0.68 and 1.21 instead of at 1.
QUINTIC = (3.4445, -4.7750, 2.0315)

_SCALES = ("original", "match_rms", "none")


def newton_schulz(
    matrix: Float[Tensor, "*batch rows cols"],
    *,
    steps: int = 5,
    coefficients: tuple[float, float, float] = QUINTIC,
    eps: float = 1e-7,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*batch rows cols"]:
    r"""Push every singular value of a matrix toward one, by matrix products alone.

    .. math:: X_0 = \frac{G}{\max(\lVert G \rVert_F, \epsilon)}, \qquad
        X_{k+1} = a X_k + b \, X_k X_k^\top X_k + c \, (X_k X_k^\top)^2 X_k

    An odd polynomial of a matrix acts on its singular values and leaves its singular vectors
    alone: for :math:`G = U S V^\top` the result is :math:`U p(S) V^\top` with
    :math:`p(s) = a s + b s^3 + c s^5` applied ``steps`` times.

    Args:
        matrix: :math:`G`, or a batch of them.
        steps: Number of iterations, 0 or more.
        coefficients: :math:`(a, b, c)`, such as :data:`QUINTIC` or :data:`CUBIC`.
        eps: Smallest norm that is divided by, so that a zero matrix stays zero.
        dtype: Floating dtype of the products. By default that of the matrix. Muon on an
            accelerator takes bfloat16, which is accurate to about two digits here.

    Returns:
        A matrix of the shape and dtype of :math:`G`, near :math:`U V^\top`.

    Raises:
        ValueError: If there are fewer than two axes, or the steps are negative.

    Numerics:
        The Frobenius norm is at least the largest singular value, so all of them start in
        [0, 1], where both sets of coefficients are safe. With :math:`m \le n` after transposing,
        a step costs :math:`4 m^2 n + 2 m^3` floating-point operations.

    References:
        K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024,
        https://kellerjordan.github.io/posts/muon/ (coefficients); N. J. Higham, *Functions of
        Matrices*, 2008, section 8.3, doi:10.1137/1.9780898717778 (the cubic iteration).

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> g = torch.tensor([[3.0, 0.0], [0.0, -4.0]], dtype=torch.float64)
        >>> newton_schulz(g, steps=12, coefficients=CUBIC).round(decimals=6)
        tensor([[ 1.,  0.],
                [ 0., -1.]], dtype=torch.float64)
    """
    check_floating("matrix", matrix)
    if matrix.ndim < 2:
        raise ValueError(f"matrix needs two axes or more, got shape {tuple(matrix.shape)}")
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, got {steps}")
    a, b, c = coefficients
    x: Tensor = matrix.to(dtype or matrix.dtype)
    # The Gram matrix of the shorter side is the cheaper one.
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        # a X + (b G + c G^2) X, each sum inside its product: one rounding and one pass less.
        x = _multiply_add(x, a, _multiply_add(gram, b, gram, gram, c), x, 1.0)
    result: Tensor = x.mT if tall else x
    return result.to(matrix.dtype)


def _multiply_add(base: Tensor, beta: float, left: Tensor, right: Tensor, alpha: float) -> Tensor:
    if base.ndim == 2:
        return torch.addmm(base, left, right, beta=beta, alpha=alpha)
    flat = [t.flatten(0, -3) for t in (base, left, right)]
    return torch.baddbmm(*flat, beta=beta, alpha=alpha).reshape(base.shape)


def muon_scale(shape: tuple[int, ...], *, scale: str = "original") -> float:
    r"""Return the factor that makes one learning rate fit matrices of every shape.

    Args:
        shape: Shape of ``nn.Linear.weight``, that is (outputs, inputs). It is the transpose of
            the book's :math:`W`.
        scale: ``"original"`` is :math:`\sqrt{\max(1, d_{out} / d_{in})}`. ``"match_rms"`` is
            :math:`0.2 \sqrt{\max(d_{out}, d_{in})}`, which gives the update the root mean square
            of AdamW's, about 0.2, so that AdamW's learning rate can be used. ``"none"`` is 1.

    Returns:
        The factor, above 0.

    Raises:
        ValueError: If the shape is not one of a matrix or the scale is unknown.

    References:
        J. Liu et al., "Muon is scalable for LLM training", 2025, arXiv:2502.16982, section 2.2.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> muon_scale((12, 3))
        2.0
    """
    if len(shape) != 2:
        raise ValueError(
            f"Muon updates matrices, got a parameter of shape {tuple(shape)}: give embeddings, "
            "gains and biases to AdamW"
        )
    outputs, inputs = shape
    if scale == "original":
        return float(max(1.0, outputs / inputs) ** 0.5)
    if scale == "match_rms":
        return float(0.2 * max(outputs, inputs) ** 0.5)
    if scale == "none":
        return 1.0
    raise ValueError(f"scale must be one of {', '.join(_SCALES)}, got {scale!r}")


def muon_update(
    param: Float[Tensor, "outputs inputs"],
    grad: Float[Tensor, "outputs inputs"],
    average: Float[Tensor, "outputs inputs"],
    *,
    lr: float,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.1,
    steps: int = 5,
    coefficients: tuple[float, float, float] = QUINTIC,
    eps: float = 1e-7,
    scale: str = "original",
    dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "outputs inputs"], Float[Tensor, "outputs inputs"]]:
    r"""Take one step of Muon.

    .. math:: B_t = \mu B_{t-1} + (1 - \mu) G_t, \qquad
        \theta_t = (1 - \eta \lambda) \, \theta_{t-1}
        - \eta \, \gamma \, \mathrm{NS}\big(\mu B_t + (1 - \mu) G_t\big)

    with :func:`newton_schulz` for NS and :func:`muon_scale` for :math:`\gamma`.

    Args:
        param: Weight matrix :math:`\theta_{t-1}`, (outputs, inputs).
        grad: Gradient :math:`G_t`.
        average: :math:`B_{t-1}`, zero at the start.
        lr: Learning rate :math:`\eta \ge 0`.
        momentum: :math:`\mu` in [0, 1).
        nesterov: Whether the last gradient counts twice, as above; otherwise NS sees
            :math:`B_t`.
        weight_decay: :math:`\lambda \ge 0`, decoupled.
        steps: Newton-Schulz iterations.
        coefficients: Of the polynomial.
        eps: Smallest norm that is divided by.
        scale: See :func:`muon_scale`.
        dtype: Floating dtype of the matrix products; by default that of the gradient.

    Returns:
        The next weight and the next average.

    References:
        K. Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/. The post writes
        :math:`B_t = \mu B_{t-1} + G_t`; the code of the authors, PyTorch and this function
        average instead. NS divides by the norm, so the step is the same.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> weight, grad = torch.zeros(2, 3), torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.1, 0.0]])
        >>> new, _ = muon_update(weight, grad, torch.zeros(2, 3), lr=1.0, steps=20,
        ...                      coefficients=CUBIC, weight_decay=0.0)
        >>> new.diagonal()  # a large and a small gradient move the weight by the same length
        tensor([-1., -1.])
    """
    average = momentum * average + (1 - momentum) * grad
    direction = momentum * average + (1 - momentum) * grad if nesterov else average
    orthogonal = newton_schulz(
        direction, steps=steps, coefficients=coefficients, eps=eps, dtype=dtype
    )
    size = lr * muon_scale(tuple(param.shape), scale=scale)
    return (1 - lr * weight_decay) * param - size * orthogonal, average


class Muon(UpdateRule):
    r"""Muon for the weight matrices of hidden layers, by :func:`muon_update`.

    Embeddings, the unembedding, gains and biases belong to a second optimizer, such as
    :class:`~companion.foundations.optimization.AdamW`. The trajectory is that of
    ``torch.optim.Muon`` where ``dtype=torch.bfloat16``, in which PyTorch always multiplies.

    The fast path stacks matrices of one shape and multiplies them in one batch.

    Args:
        params: Matrices or groups of them.
        lr: Learning rate :math:`\eta \ge 0`.
        momentum: :math:`\mu` in [0, 1).
        nesterov: Whether to look ahead.
        weight_decay: :math:`\lambda \ge 0`, decoupled.
        steps: Newton-Schulz iterations.
        coefficients: Of the polynomial.
        eps: Smallest norm that is divided by.
        scale: See :func:`muon_scale`.
        dtype: Floating dtype of the matrix products. ``None`` is that of the state.
        maximize: Whether to ascend.
        foreach: Whether to take the fast path.

    Raises:
        ValueError: If a parameter is not a matrix, or a hyper-parameter is out of its domain.

    Book: :doc:`/book/foundations/optimization`
    """

    slots = ("momentum_buffer",)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        steps: int = 5,
        coefficients: tuple[float, float, float] = QUINTIC,
        eps: float = 1e-7,
        scale: str = "original",
        dtype: torch.dtype | None = None,
        maximize: bool = False,
        foreach: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            steps=steps,
            coefficients=coefficients,
            eps=eps,
            scale=scale,
            dtype=dtype,
            maximize=maximize,
            foreach=foreach,
        )

    def check_group(self, group: dict[str, Any]) -> None:
        r"""Require matrices, :math:`\mu` in [0, 1) and a sound iteration besides the rest."""
        super().check_group(group)
        check_decay_rate("momentum", group["momentum"])
        check_nonnegative("eps", group["eps"])
        if group["steps"] < 0:
            raise ValueError(f"steps must be 0 or more, got {group['steps']}")
        if len(group["coefficients"]) != 3:
            raise ValueError(f"coefficients must be three numbers, got {group['coefficients']}")
        for param in group["params"]:
            muon_scale(tuple(param.shape), scale=group["scale"])

    def update(
        self, param: Tensor, grad: Tensor, *slots: Tensor, step: int, group: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Apply :func:`muon_update`."""
        names = ("lr", "momentum", "nesterov", "weight_decay", "scale")
        settings = {name: group[name] for name in names} | _iteration(group)
        return muon_update(param, grad, slots[0], **settings)

    def update_foreach(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        *slots: list[Tensor],
        step: int,
        group: dict[str, Any],
    ) -> None:
        """Apply the same rule to lists, in place."""
        (averages,) = slots
        torch._foreach_lerp_(averages, grads, 1 - group["momentum"])
        directions = averages
        if group["nesterov"]:
            directions = list(torch._foreach_lerp(grads, averages, group["momentum"]))
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        shapes: dict[tuple[int, ...], list[int]] = {}
        for index, param in enumerate(params):
            shapes.setdefault(tuple(param.shape), []).append(index)
        for shape, members in shapes.items():
            size = group["lr"] * muon_scale(shape, scale=group["scale"])
            if len(members) == 1:
                orthogonal = [newton_schulz(directions[members[0]], **_iteration(group))]
            else:
                stacked = torch.stack([directions[i] for i in members])
                orthogonal = list(newton_schulz(stacked, **_iteration(group)).unbind())
            torch._foreach_add_([params[i] for i in members], orthogonal, alpha=-size)


def _iteration(group: dict[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in ("steps", "coefficients", "eps", "dtype")}
