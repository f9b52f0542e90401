r"""Erasers: maps after which a concept is not linearly there."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from companion.core import check_count, check_floating, check_ids, check_shape, wide

__all__ = ["Eraser", "OracleEraser", "cross_covariance", "one_hot"]


def one_hot(labels: Shaped[Tensor, "*n"], classes: int) -> Float[Tensor, "*n classes"]:
    """Write classes as vectors of zeros and one 1.

    A class is a name: taken as one number, three classes would have one covariance with each
    coordinate, and what is not linear in the number would stay.

    Args:
        labels: Integers from 0.
        classes: How many classes there are.

    Returns:
        Vectors, float32.

    Raises:
        ValueError: If a label is out of range or no integer.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> one_hot(torch.tensor([1, 0]), 3)
        tensor([[0., 1., 0.],
                [1., 0., 0.]])
    """
    check_count("classes", classes)
    check_ids("labels", labels, classes)
    return (labels.long()[..., None] == torch.arange(classes, device=labels.device)).float()


def cross_covariance(
    x: Float[Tensor, "n dim"], z: Float[Tensor, "n concept"]
) -> Float[Tensor, "dim concept"]:
    r"""Compute the covariance of each coordinate with each part of a concept.

    .. math:: \Sigma_{xz} = \frac1n\sum_i (x_i-\bar x)^\top(z_i-\bar z)

    If it is 0, no linear predictor of z from x has a smaller squared or logistic loss than the
    best constant one, and conversely.

    Args:
        x: Vectors.
        z: What must not be told from them: numbers, or classes by :func:`one_hot`.

    Returns:
        :math:`\Sigma_{xz}`, in float32 at least.

    Raises:
        ValueError: If the numbers of rows differ or are 0.

    References:
        Belrose et al. 2023, arXiv:2306.03819, theorem 3.1.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> cross_covariance(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]]))
        tensor([[0.5000]])
    """
    check_floating("x", x)
    check_shape("x", x, (None, None))
    check_shape("z", z, (len(x), None))
    check_count("rows", len(x))
    held, concept = wide(x), wide(z).to(wide(x).dtype)
    return (held - held.mean(0)).mT @ (concept - concept.mean(0)) / len(x)


@dataclass(frozen=True, eq=False, kw_only=True)
class Eraser:
    r"""An affine map after which a concept is not linearly there.

    .. math:: r(x) = x - (x-\mu)\,R\,L^\top

    Attributes:
        right: :math:`R`, how the concept is read from a vector.
        left: :math:`L`, what is taken away for it; :math:`L^\top R` is the identity.
        mean: :math:`\mu`.
        correlations: Canonical correlations of vectors and concept, decreasing, one a column.

    Book: :doc:`/book/trust/debiasing`
    """

    right: Float[Tensor, "dim rank"]
    left: Float[Tensor, "dim rank"]
    mean: Float[Tensor, " dim"]
    correlations: Float[Tensor, " rank"]

    def __call__(self, x: Float[Tensor, "*n dim"]) -> Float[Tensor, "*n dim"]:
        """Erase.

        Args:
            x: Vectors.

        Returns:
            Vectors in the dtype of x, computed in float32 at least.

        Raises:
            ValueError: If the dimension differs.
        """
        check_shape("the last axis of x", x[..., 0, :] if x.ndim > 1 else x, (
            *x.shape[:-2], len(self.mean)
        ))  # fmt: skip
        held = wide(x)
        right, left, mean = (t.to(held) for t in (self.right, self.left, self.mean))
        return (held - ((held - mean) @ right) @ left.mT).to(x.dtype)

    @property
    def matrix(self) -> Float[Tensor, "dim dim"]:
        r"""The map of centered rows, :math:`I - RL^\top`: idempotent."""
        return torch.eye(len(self.mean), dtype=self.left.dtype, device=self.left.device) - (
            self.right @ self.left.mT
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class OracleEraser:
    r"""What is left of vectors after a regression on the concept itself.

    .. math:: r(x, z) = x - (z-\mu_z)\,\Sigma_{zz}^+\,\Sigma_{zx}

    It moves vectors least of all maps that leave no covariance, but it must be told the concept,
    and what it adds depends on it: a nonlinear probe may then read more than before.

    Attributes:
        coefficients: :math:`\Sigma_{zz}^+\Sigma_{zx}`.
        mean: :math:`\mu_z`.

    References:
        Belrose, "Least-squares concept erasure with oracle concept labels", EleutherAI 2023,
        https://blog.eleuther.ai/oracle-leace/.

    Book: :doc:`/book/trust/debiasing`
    """

    coefficients: Float[Tensor, "concept dim"]
    mean: Float[Tensor, " concept"]

    def __call__(
        self, x: Float[Tensor, "*n dim"], z: Shaped[Tensor, "*m"]
    ) -> Float[Tensor, "*n dim"]:
        """Erase.

        Args:
            x: Vectors.
            z: The concept of each: classes, (*n), or numbers, (*n, concept).

        Returns:
            Vectors in the dtype of x.

        Raises:
            ValueError: If shapes do not fit.
        """
        concept = as_concept(z, len(self.mean), x.shape[:-1])
        held = wide(x)
        told = (concept.to(held) - self.mean.to(held)) @ self.coefficients.to(held)
        return (held - told).to(x.dtype)


def as_concept(z: Tensor, size: int, rows: torch.Size) -> Tensor:
    """Numbers as they are; classes as vectors."""
    if not z.is_floating_point():
        check_shape("classes z", z, tuple(rows))
        return one_hot(z.long(), size)
    if z.shape == rows and size == 1:
        return z[..., None]
    check_shape("z", z, (*rows, size))
    return z
