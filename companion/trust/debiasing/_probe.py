r"""Linear probes, and the projection onto what they leave: INLP."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import (
    check_count,
    check_finite,
    check_floating,
    check_ids,
    check_in_range,
    check_shape,
    wide,
)

__all__ = ["LinearProbe", "NullProjection", "balanced_accuracy", "inlp", "logistic_probe"]


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearProbe:
    """A linear classifier.

    Attributes:
        weight: One column for two classes, or one a class.
        bias: One number a column.

    Book: :doc:`/book/trust/debiasing`
    """

    weight: Float[Tensor, "dim columns"]
    bias: Float[Tensor, " columns"]

    def scores(self, x: Float[Tensor, "*n dim"]) -> Float[Tensor, "*n columns"]:
        """Compute the linear scores.

        Args:
            x: Vectors.

        Returns:
            One score a column, in the dtype of the weights.

        Raises:
            ValueError: If the dimension differs.
        """
        if x.shape[-1] != len(self.weight):
            raise ValueError(
                f"the probe reads vectors of {len(self.weight)} numbers, got {x.shape[-1]}"
            )
        return x.to(self.weight) @ self.weight + self.bias

    def predict(self, x: Float[Tensor, "*n dim"]) -> Integer[Tensor, "*n"]:
        """Choose a class.

        Args:
            x: Vectors.

        Returns:
            Classes.

        Raises:
            ValueError: If the dimension differs.
        """
        made = self.scores(x)
        return (made[..., 0] > 0).long() if made.shape[-1] == 1 else made.argmax(-1)


def balanced_accuracy(
    predicted: Integer[Tensor, " n"], labels: Integer[Tensor, " n"]
) -> Float[Tensor, ""]:
    r"""Average the share that is right over the classes.

    Args:
        predicted: Classes.
        labels: Classes; only those that occur count.

    Returns:
        A share. A constant prediction gives one over the number of classes.

    Raises:
        ValueError: If the shapes differ or there is no row.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> balanced_accuracy(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]))
        tensor(0.5000)
    """
    check_shape("labels", labels, (None,))
    check_shape("predicted", predicted, (len(labels),))
    check_count("rows", len(labels))
    right = (predicted == labels).float()
    of_each = [right[labels == k].mean() for k in torch.unique(labels)]
    return torch.stack(of_each).mean()


def logistic_probe(
    x: Float[Tensor, "n dim"],
    labels: Integer[Tensor, " n"],
    *,
    classes: int | None = None,
    penalty: float = 1e-3,
    balanced: bool = True,
) -> LinearProbe:
    r"""Fit a logistic classifier, or one for each of several classes against the others.

    .. math:: \min_{w,b}\ \frac1{\sum_i\omega_i}\sum_i\omega_i\log\big(1+e^{-y_i(x_iw+b)}\big)
        + \frac\lambda2\lVert w\rVert^2,\qquad y_i=\pm1

    Args:
        x: Vectors.
        labels: Classes from 0; at least two must occur.
        classes: How many there are; by default one more than the largest label.
        penalty: :math:`\lambda > 0`, for vectors as they are: it is not scaled with them.
        balanced: Whether :math:`\omega` gives all classes one weight in sum. Otherwise all are 1.

    Returns:
        The probe, in float32 at least. Nothing in it is random.

    Raises:
        ValueError: If shapes do not fit, an entry is not finite, or one class has all rows.

    Numerics:
        Newton's method, :math:`O(nd^2)` a step, in float64. For one softmax over all classes, and
        classes as they come, see :func:`companion.pretraining.transfer.linear_probe`.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> logistic_probe(x, torch.tensor([0, 0, 1, 1])).predict(x)
        tensor([0, 0, 1, 1])
    """
    check_floating("x", x)
    check_shape("x", x, (None, None))
    check_shape("labels", labels, (len(x),))
    check_count("rows", len(x))
    check_finite("x", x)
    size = int(labels.max()) + 1 if classes is None else classes
    check_ids("labels", labels, size)
    check_in_range("penalty", penalty, low=0.0, open_low=True, open_high=True)
    counts = torch.bincount(labels.long(), minlength=size)
    if int((counts > 0).sum()) < 2:
        raise ValueError("a probe needs rows of two classes at least")
    weights = torch.ones(len(x), dtype=torch.float64, device=x.device)
    held = x.detach().double()
    columns = []
    for k in [1] if size == 2 else range(size):
        here = labels == k
        if size > 2 and not bool(here.any()):
            columns.append(torch.cat([held.new_zeros(x.shape[1]), held.new_tensor([-1e9])]))
            continue
        each = weights
        if balanced:
            number = here.double().sum()
            each = torch.where(here, len(x) / (2 * number), len(x) / (2 * (len(x) - number)))
        columns.append(newton(held, here.double(), weights=each, penalty=penalty))
    made = torch.stack(columns, 1).to(wide(x[:0]).dtype)
    return LinearProbe(weight=made[:-1], bias=made[-1])


def newton(
    x: Tensor,
    y: Tensor,
    *,
    weights: Tensor,
    penalty: float,
    along: Tensor | None = None,
    reach: float = 0.0,
    steps: int = 50,
) -> Tensor:
    """Weights and bias of the best logistic classifier; with ``along``, of those that reach it."""
    n, dim = x.shape
    ones = torch.ones(n, 1, dtype=x.dtype, device=x.device)
    rows = torch.cat([x, ones], 1)
    ridge = torch.full((dim + 1,), penalty, dtype=x.dtype, device=x.device)
    ridge[-1] = 0.0
    start = torch.zeros(dim + 1, dtype=x.dtype, device=x.device)
    free = torch.eye(dim + 1, dtype=x.dtype, device=x.device)
    if along is not None:
        start = along * (reach / (along @ along))
        free = torch.linalg.svd(along[None], full_matrices=True).Vh[1:].mT
    share = weights / weights.sum()
    signs = 2 * y - 1
    jitter = 1e-10 * free.new_ones(free.shape[1]).diag()

    def loss(theta: Tensor) -> Tensor:
        fit = torch.nn.functional.softplus(-signs * (rows @ theta))
        return (share * fit).sum() + (ridge * theta.square()).sum() / 2

    theta, reached = start, loss(start)
    for _ in range(steps):
        p = torch.sigmoid(rows @ theta)
        slope = rows.mT @ (share * (p - y)) + ridge * theta
        curve = (rows * (share * p * (1 - p))[:, None]).mT @ rows + ridge.diag()
        down = free.mT @ slope
        move = free @ torch.linalg.solve(free.mT @ curve @ free + jitter, down)
        size, gained = 1.0, -1.0
        for _ in range(30):
            new = loss(theta - size * move)
            gained = float(reached - new)
            if gained >= 0:
                break
            size /= 2
        if gained < 0:
            break
        theta, reached = theta - size * move, new
        if float(down.abs().max()) < 1e-10 or gained < 1e-14:
            break
    return theta


@dataclass(frozen=True, eq=False, kw_only=True)
class NullProjection:
    r"""A projection onto what several probes do not see.

    .. math:: x' = x\,(I - Q^\top Q)

    Attributes:
        directions: :math:`Q`, orthonormal rows.
        accuracy: Balanced accuracy, on the vectors it was fitted to, of the probe of each round,
            before its direction was removed. If a probe near chance ended it, the last one is
            that of this probe, which removed nothing.

    Book: :doc:`/book/trust/debiasing`
    """

    directions: Float[Tensor, "rank dim"]
    accuracy: tuple[float, ...]

    def __call__(self, x: Float[Tensor, "*n dim"]) -> Float[Tensor, "*n dim"]:
        """Project.

        Args:
            x: Vectors.

        Returns:
            Vectors in the dtype of x.

        Raises:
            ValueError: If the dimension differs.
        """
        if x.shape[-1] != self.directions.shape[1]:
            raise ValueError(
                f"vectors must have {self.directions.shape[1]} numbers, got {x.shape[-1]}"
            )
        held = wide(x)
        q = self.directions.to(held)
        return (held - (held @ q.mT) @ q).to(x.dtype)

    @property
    def matrix(self) -> Float[Tensor, "dim dim"]:
        r""":math:`I - Q^\top Q`: symmetric and idempotent."""
        q = self.directions
        return torch.eye(q.shape[1], dtype=q.dtype, device=q.device) - q.mT @ q


def inlp(
    x: Float[Tensor, "n dim"],
    labels: Integer[Tensor, " n"],
    *,
    rounds: int,
    classes: int | None = None,
    penalty: float = 1e-3,
    tolerance: float = 0.01,
) -> NullProjection:
    r"""Remove what a linear probe reads, fit another, remove that, and so on.

    .. math:: P_N = I - W W^+

    with all probes' weights in the columns of W. The projection is onto the null space of all of
    them together: a running product of single projections is neither symmetric nor idempotent.

    Args:
        x: Vectors.
        labels: Classes from 0.
        rounds: The most probes.
        classes: As in :func:`logistic_probe`.
        penalty: As there.
        tolerance: It ends where a probe's balanced accuracy, on these vectors, is within this of
            chance. Accuracy would not do: with unequal classes a constant is accurate.

    Returns:
        The projection.

    Raises:
        ValueError: As in :func:`logistic_probe`.

    References:
        Ravfogel et al. 2020, arXiv:2004.07667, algorithm 1.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> x = torch.tensor([[-2.0, 0.1], [-1.0, -0.2], [1.0, 0.2], [2.0, -0.1]])
        >>> inlp(x, torch.tensor([0, 0, 1, 1]), rounds=1).directions.shape
        torch.Size([1, 2])
    """
    check_count("rounds", rounds)
    check_in_range("tolerance", tolerance, low=0.0, high=1.0)
    check_shape("x", x, (None, None))
    weights = x.new_zeros(x.shape[1], 0, dtype=wide(x[:0]).dtype)
    basis = weights
    accuracy: list[float] = []
    for _ in range(rounds):
        left = x.to(basis) - (x.to(basis) @ basis) @ basis.mT
        probe = logistic_probe(left, labels, classes=classes, penalty=penalty)
        reached = float(balanced_accuracy(probe.predict(left), labels))
        accuracy.append(reached)
        if reached <= 1 / len(torch.unique(labels)) + tolerance:
            break
        weights = torch.cat([weights, probe.weight / probe.weight.norm(dim=0).clamp(min=1e-30)], 1)
        basis = _span(weights)
        if basis.shape[1] == x.shape[1]:
            break
    return NullProjection(directions=basis.mT, accuracy=tuple(accuracy))


def _span(columns: Tensor) -> Tensor:
    """An orthonormal basis of what columns span."""
    u, s, _ = torch.linalg.svd(columns, full_matrices=False)
    kept: Tensor = u[:, s > s[:1] * max(columns.shape) * torch.finfo(s.dtype).eps]
    return kept
