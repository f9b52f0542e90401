"""The linear probe: a softmax regression on frozen features, solved to its minimum."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import check_finite, check_floating, check_in_range
from companion.foundations.cross_entropy import cross_entropy, softmax

__all__ = ["Probe", "linear_probe", "probe_hessian"]


@dataclass(frozen=True, eq=False)
class Probe:
    r"""A linear classifier, :math:`z = h W + b`.

    Attributes:
        weight: :math:`W`, shape (dim, classes), float64.
        bias: :math:`b`, shape (classes,); its entries sum to zero.
        loss: What was minimized, at the minimum.
        steps: Newton steps taken.
    """

    weight: Tensor
    bias: Tensor
    loss: float
    steps: int

    def __call__(self, features: Float[Tensor, "n dim"]) -> Float[Tensor, "n classes"]:
        """Return the logits of features, in float64.

        Args:
            features: One row for each example.

        Returns:
            Logits, not normalized.
        """
        return features.to(self.weight.dtype) @ self.weight + self.bias


def linear_probe(
    features: Float[Tensor, "n dim"],
    labels: Integer[Tensor, " n"],
    *,
    l2: float,
    classes: int | None = None,
    tol: float = 1e-10,
    max_steps: int = 100,
) -> Probe:
    r"""Fit a softmax regression to frozen features.

    .. math:: \min_{W, b}\; \frac1n \sum_{i=1}^n \big(\mathrm{lse}(z_i) - z_{i,y_i}\big)
        + \frac{\lambda}{2} \lVert W \rVert_F^2, \qquad z_i = h_i W + b

    The objective is convex, and strictly so in :math:`W` for :math:`\lambda > 0`: the minimum
    does not depend on a learning rate, an initialization or a seed.

    Args:
        features: :math:`h_i`, one row for each example. They are used as they are: scale or
            center them before if their components differ much in size.
        labels: Class ids.
        l2: :math:`\lambda > 0`, for the mean loss; in scikit-learn's terms :math:`C = 1/(n
            \lambda)`. The bias is not penalized.
        classes: Number of classes; by default the largest label plus one.
        tol: The largest entry of the gradient at which to stop.
        max_steps: Most Newton steps.

    Returns:
        The classifier.

    Raises:
        ValueError: If shapes or ids do not fit, a feature is not finite, a class below
            ``classes`` has no example, or ``l2`` is not above 0.
        RuntimeError: If the gradient is still larger than ``tol`` after ``max_steps``.

    Numerics:
        Newton's method with conjugate gradients for its linear system and a backtracking line
        search, in float64. The Hessian is used through its products with matrices, :math:`O(n d
        K)` each, and never formed. Results are numbers on the features' device; values are read
        on the way, so ``meta`` tensors and ``torch.compile`` are not supported.

    References:
        Newton's method with conjugate gradients for this loss: Lin, Weng and Keerthi 2008,
        "Trust Region Newton Method for Logistic Regression", JMLR 9. With two classes
        scikit-learn has one column of weights instead of two: its penalty is then twice ours.

    Book: :doc:`/book/pretraining/transfer`

    Example:
        >>> h = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> probe = linear_probe(h, torch.tensor([0, 1, 0, 1]), l2=0.1)
        >>> probe(h).argmax(1)
        tensor([0, 0, 1, 1])
    """
    check_floating("features", features)
    check_in_range("l2", l2, low=0.0, open_low=True, open_high=True)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(
            "features must be (n, dim) and labels (n,), got "
            f"{tuple(features.shape)} and {tuple(labels.shape)}"
        )
    check_finite("features", features)
    h = features.detach().double()
    y = labels.to(h.device).long()
    count = int(y.max()) + 1 if classes is None else classes
    if count < 2 or int(y.min()) < 0 or len(set(y.tolist())) != count or int(y.max()) >= count:
        raise ValueError(
            f"labels must name each of {count} classes, two or more, from 0 on: "
            f"got {sorted(set(y.tolist()))}"
        )
    n = len(h)
    # A column of ones carries the bias.
    h = torch.cat([h, h.new_ones(n, 1)], 1)
    penalty = torch.full((h.shape[1], 1), l2, dtype=h.dtype, device=h.device)
    penalty[-1] = 0
    V = h.new_zeros(h.shape[1], count)
    target = torch.nn.functional.one_hot(y, count).to(h.dtype)

    def value(V: Tensor) -> float:
        return float(cross_entropy(h @ V, y) + 0.5 * (penalty * V**2).sum())

    held = value(V)
    for step in range(max_steps + 1):
        p = softmax(h @ V)
        gradient = h.T @ (p - target) / n + penalty * V
        size = float(gradient.abs().max())
        if size <= tol:
            return Probe(V[:-1], V[-1], held, step)
        if step == max_steps:
            break
        direction = _solve(h, p, penalty, -gradient)
        slope = float((gradient * direction).sum())
        length = 1.0
        # Near the minimum the loss changes by less than its rounding: whole steps are taken there.
        noise = 1e-14 * (1 + abs(held))
        while (made := value(V + length * direction)) > held + 1e-4 * length * slope + noise:
            length /= 2
        V, held = V + length * direction, made
    raise RuntimeError(
        f"the gradient is still {size:.1e} after {max_steps} steps: allow more of them, a larger "
        "tol, or scale the features"
    )


def _solve(h: Tensor, p: Tensor, penalty: Tensor, right: Tensor) -> Tensor:
    """Solve the Newton system by conjugate gradients, the more exactly the closer the minimum."""
    x = torch.zeros_like(right)
    residual = right.clone()
    direction = residual.clone()
    squared = float((residual**2).sum())
    goal = min(0.1, squared**0.25) ** 2 * squared
    for _ in range(20 * right.numel()):
        made = _curve(h, p, penalty, direction)
        length = squared / float((direction * made).sum())
        x = x + length * direction
        residual = residual - length * made
        before, squared = squared, float((residual**2).sum())
        if squared <= goal:
            break
        direction = residual + squared / before * direction
    return x


def _curve(h: Tensor, p: Tensor, penalty: Tensor, U: Tensor) -> Tensor:
    """Apply the Hessian: each row of logits is curved by diag(p) - p^T p."""
    moved = h @ U
    turned = p * (moved - (p * moved).sum(1, keepdim=True))
    return h.T @ turned / len(h) + penalty * U


def probe_hessian(
    features: Float[Tensor, "n dim"],
    weight: Float[Tensor, "dim classes"],
    *,
    l2: float = 0.0,
) -> Float[Tensor, "dim classes dim classes"]:
    r"""Return the Hessian of the probe's objective in :math:`W`, without a bias.

    .. math:: \frac{\partial^2 L}{\partial W_{ak}\, \partial W_{bl}}
        = \frac1n \sum_i h_{ia}\, h_{ib}\, p_{ik} (\delta_{kl} - p_{il})
        + \lambda\, \delta_{ab}\, \delta_{kl}

    It does not depend on the labels, and :math:`\sum_{ak,bl} U_{ak} U_{bl}` of it is a mean of
    variances: the objective is convex.

    Args:
        features: :math:`h_i`.
        weight: :math:`W`, the point.
        l2: :math:`\lambda`, 0 or more.

    Returns:
        The second derivatives; :math:`(d K)^2` numbers, so for small problems.

    Book: :doc:`/book/pretraining/transfer`

    Example:
        >>> probe_hessian(torch.ones(1, 1), torch.zeros(1, 2)).reshape(2, 2)
        tensor([[ 0.2500, -0.2500],
                [-0.2500,  0.2500]])
    """
    p = softmax(features @ weight)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    out = torch.einsum("na,nb,nkl->akbl", features, features, inner) / len(features)
    d, k = weight.shape
    eye = torch.eye(d * k, dtype=out.dtype, device=out.device).view(d, k, d, k)
    return out + l2 * eye
