r"""LEACE: linear concept erasure in closed form, from one pass over the data."""

from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from companion.core import (
    check_count,
    check_finite,
    check_floating,
    check_in_range,
    check_shape,
    wide,
)
from companion.trust.debiasing._eraser import Eraser, OracleEraser, as_concept

__all__ = ["ErasureFitter", "Method", "leace"]

Method = Literal["leace", "orthogonal"]
# Rows whose products are summed in the precision of the data; between blocks it is float64.
_BLOCK = 8192


class ErasureFitter:
    r"""Means and covariances of vectors and a concept, from one pass: what erasers are made of.

    Batches may come one after another; two fitters that saw different data can be merged.

    Args:
        dim: Size of the vectors.
        concept: Number of classes, or of numbers that the concept has.
        device: Where the sums are kept.

    Attributes:
        n: How many rows were seen.
        mean_x: Their mean.
        mean_z: The mean of the concept.

    Raises:
        ValueError: If a size is below 1.

    Numerics:
        Each block of rows is centered on its own mean and multiplied in the precision of the data,
        float32 at least; blocks are added in float64 by the rule of Chan et al. for two parts. The
        covariance of erased vectors and concept is 0 to rounding even where the inverse of
        :math:`\Sigma_{xx}` is inaccurate: what that decides is only how little is changed.

    References:
        Belrose et al. 2023, arXiv:2306.03819, theorems 4.2 and 4.3. The formula here needs no root
        of :math:`\Sigma_{xx}` and equals theirs: see the chapter.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> z = torch.arange(60) % 2
        >>> x = torch.randn(60, 3, generator=g) + z[:, None]
        >>> fitter = ErasureFitter(3, 2)
        >>> for rows in (slice(0, 20), slice(20, 60)):
        ...     fitter = fitter.update(x[rows], z[rows])
        >>> left = fitter.eraser()(x)
        >>> bool((left[z == 0].mean(0) - left[z == 1].mean(0)).abs().max() < 1e-5)
        True
    """

    def __init__(self, dim: int, concept: int, *, device: str | torch.device | None = None) -> None:
        check_count("dim", dim)
        check_count("concept", concept)

        def zeros(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.float64, device=device)

        self.n = 0
        self.mean_x, self.mean_z = zeros(dim), zeros(concept)
        self._xx, self._xz, self._zz = zeros(dim, dim), zeros(dim, concept), zeros(concept, concept)
        self._eps = torch.finfo(torch.float64).eps

    def update(self, x: Float[Tensor, "*n dim"], z: Shaped[Tensor, "*m"]) -> "ErasureFitter":
        """See more rows.

        Args:
            x: Vectors; all axes but the last are rows.
            z: Their concept: integer classes, or floating numbers with an axis of their own (which
                may be left out if there is one).

        Returns:
            The fitter itself.

        Raises:
            ValueError: If shapes do not fit, a class is unknown, or an entry is not finite.
        """
        check_floating("x", x)
        dim, size = self._xz.shape
        check_shape("x", x, (*x.shape[:-1], dim))
        concept = as_concept(z, size, x.shape[:-1]).reshape(-1, size).detach()
        rows = x.detach().reshape(-1, dim)
        check_finite("x", rows)
        check_finite("z", concept)
        self._eps = max(self._eps, torch.finfo(wide(x[..., :0]).dtype).eps)
        for block, told in zip(
            torch.split(rows, _BLOCK), torch.split(concept, _BLOCK), strict=True
        ):
            self._add(wide(block), told)
        return self

    def _add(self, x: Tensor, z: Tensor) -> None:
        m = len(x)
        if not m:
            return
        mean_x, mean_z = x.mean(0), z.double().mean(0)
        xc, zc = x - mean_x, (z.double() - mean_z).to(x)  # classes in float32 would tilt it
        home = self._xx.device
        parts = (_gram(xc), xc.mT @ zc, zc.mT @ zc, mean_x, mean_z)
        xx, xz, zz, mean_x, mean_z = (part.to(home, torch.float64) for part in parts)
        # Rounded means leave a small sum, which the products must not keep.
        left_x = xc.sum(0).to(home, torch.float64) / m
        left_z = zc.sum(0).to(home, torch.float64) / m
        xx = xx - m * torch.outer(left_x, left_x)
        xz = xz - m * torch.outer(left_x, left_z)
        zz = zz - m * torch.outer(left_z, left_z)
        self._join(m, mean_x + left_x, mean_z, xx, xz, zz)

    def _join(self, m: int, mean_x: Tensor, mean_z: Tensor, *parts: Tensor) -> None:
        total = self.n + m
        dx, dz, share = mean_x - self.mean_x, mean_z - self.mean_z, self.n * m / total
        xx, xz, zz = parts
        self._xx = self._xx + xx + share * torch.outer(dx, dx)
        self._xz = self._xz + xz + share * torch.outer(dx, dz)
        self._zz = self._zz + zz + share * torch.outer(dz, dz)
        self.mean_x = self.mean_x + dx * (m / total)
        self.mean_z = self.mean_z + dz * (m / total)
        self.n = total

    def merge(self, other: "ErasureFitter") -> "ErasureFitter":
        """Return a fitter that has seen what both have.

        Args:
            other: A fitter of the same sizes; neither is changed.

        Returns:
            A new one.

        Raises:
            ValueError: If the sizes differ.
        """
        if self._xz.shape != other._xz.shape:
            raise ValueError(
                f"fitters of sizes {tuple(self._xz.shape)} and {tuple(other._xz.shape)} "
                "do not belong together"
            )
        dim, concept = self._xz.shape
        made = ErasureFitter(dim, concept, device=self._xx.device)
        for part in (self, other):
            if part.n:
                held = (part.mean_x, part.mean_z, part._xx, part._xz, part._zz)
                made._join(part.n, *(t.to(made._xx) for t in held))
        made._eps = max(self._eps, other._eps)
        return made

    @property
    def covariance(self) -> Float[Tensor, "dim dim"]:
        r""":math:`\Sigma_{xx}` of the rows seen, divided by their number."""
        self._check_seen()
        return self._xx / self.n

    @property
    def cross_covariance(self) -> Float[Tensor, "dim concept"]:
        r""":math:`\Sigma_{xz}` of the rows seen, divided by their number."""
        self._check_seen()
        return self._xz / self.n

    def _check_seen(self) -> None:
        if self.n < 2:
            raise ValueError(f"need two rows or more, and have seen {self.n}: call update() first")

    def eraser(self, method: Method = "leace", *, shrinkage: float = 0.0) -> Eraser:
        r"""Make the eraser.

        .. math:: R L^\top = \Sigma_{xx}^+\Sigma_{xz}
            \big(\Sigma_{zx}\Sigma_{xx}^+\Sigma_{xz}\big)^+\Sigma_{zx}

        Args:
            method: ``"leace"`` changes the data least, in the mean square of any norm that an inner
                product gives. ``"orthogonal"`` takes :math:`I` for :math:`\Sigma_{xx}`: the
                projection along the differences of class means.
            shrinkage: How much of each correlation of two coordinates is taken away, 0 to 1. On
                the rows that were seen, every value erases exactly and 0 changes least. On others,
                with few rows for many coordinates, some shrinkage changes less.

        Returns:
            The eraser, float64.

        Raises:
            ValueError: If fewer than two rows were seen, the method is unknown, or the shrinkage
                is out of its range.
        """
        if method not in ("leace", "orthogonal"):
            raise ValueError(f"method must be 'leace' or 'orthogonal', got {method!r}")
        check_in_range("shrinkage", shrinkage, low=0.0, high=1.0)
        cross = self.cross_covariance @ self._whiten_z()
        scale = self.covariance.diagonal().clamp(min=0).sqrt()
        # Zero in every coordinate that never moves. Erasure commutes with a change of units.
        units = torch.where(scale > 0, 1 / scale, 0.0) if method == "leace" else scale.new_ones(())
        held = cross * (units[:, None] if method == "leace" else units)
        if method == "leace":
            correlation = self.covariance * units[:, None] * units
            if shrinkage:
                correlation = (1 - shrinkage) * correlation
                correlation = correlation + shrinkage * torch.eye(len(correlation)).to(correlation)
            solved = _solve(correlation, held, self._eps)
        else:
            solved = held
        # Squared canonical correlations, whatever the units of the concept.
        square, turn = torch.linalg.eigh((solved.mT @ held + held.mT @ solved) / 2)
        size = 1.0
        if method == "orthogonal" and len(square):  # none where the concept does not vary
            size = max(float(square[-1]), 1e-300)
        kept = square > (100 * self._eps) ** 2 * size
        turn, root = turn[:, kept].flip(1), square[kept].flip(0).sqrt()
        right = (solved * (units[:, None] if method == "leace" else units)) @ turn / root
        told = root if method == "leace" else torch.full_like(root, float("nan"))
        return Eraser(right=right, left=cross @ turn / root, mean=self.mean_x, correlations=told)

    def oracle(self) -> OracleEraser:
        """Make the eraser that is told the concept.

        Returns:
            The eraser, float64.

        Raises:
            ValueError: If fewer than two rows were seen.
        """
        whitener = self._whiten_z()
        made = whitener @ (self.cross_covariance @ whitener).mT
        return OracleEraser(coefficients=made, mean=self.mean_z)

    def _whiten_z(self) -> Tensor:
        """A matrix after which the concept has the identity for its covariance."""
        self._check_seen()
        zz = self._zz / self.n
        scale = zz.diagonal().clamp(min=0).sqrt()
        units = torch.where(scale > 0, 1 / scale, 0.0)
        values, vectors = torch.linalg.eigh(zz * units[:, None] * units)
        kept = values > 1e4 * self._eps * len(zz)
        made: Tensor = units[:, None] * vectors[:, kept] / values[kept].sqrt()
        return made


def _gram(x: Tensor) -> Tensor:
    """The product of the transpose with itself; only one half of it is multiplied out."""
    dim = x.shape[1]
    if dim < 256 or x.device.type != "cpu":
        return x.mT @ x
    width = -(-dim // 4)
    made = x.new_empty(dim, dim)
    for start in range(0, dim, width):
        stop = min(start + width, dim)
        made[start:stop, start:] = x[:, start:stop].mT @ x[:, start:]
        made[stop:, start:stop] = made[start:stop, stop:].mT
    return made


def _solve(matrix: Tensor, right: Tensor, eps: float) -> Tensor:
    """The pseudo-inverse of a correlation matrix, times columns."""
    floor = len(matrix) * eps
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) == 0 and float(factor.diagonal().min()) ** 2 > 10 * floor:
        return torch.cholesky_solve(right, factor)
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > floor * float(values[-1:].amax().clamp(min=1e-300))
    vectors = vectors[:, kept]
    made: Tensor = vectors @ ((vectors.mT @ right) / values[kept][:, None])
    return made


def leace(
    x: Float[Tensor, "n dim"],
    z: Shaped[Tensor, "*m"],
    *,
    classes: int | None = None,
    method: Method = "leace",
    shrinkage: float = 0.0,
) -> Eraser:
    """Fit an eraser on vectors and a concept at once.

    Args:
        x: Vectors.
        z: Classes, integers (n,); or numbers, (n,) or (n, concept).
        classes: How many classes there are; by default one more than the largest.
        method: As in :meth:`ErasureFitter.eraser`.
        shrinkage: As there.

    Returns:
        The eraser. Apply it to x, or to other vectors of the same kind, for which the concept is
        then gone up to what differs between the two samples.

    Raises:
        ValueError: If shapes do not fit, there are fewer than two rows, or an entry is not finite.

    References:
        Belrose et al. 2023, arXiv:2306.03819.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, 1.5], [1.0, 2.5]])
        >>> z = torch.tensor([0, 0, 1, 1])
        >>> erased = leace(x, z)(x)
        >>> (erased[:2].mean(0) - erased[2:].mean(0)).abs().max() < 1e-6
        tensor(True)
    """
    check_shape("x", x, (None, None))
    if z.is_floating_point():
        size = 1 if z.ndim == 1 else z.shape[-1]
    else:
        check_count("rows", z.numel())
        size = int(z.max()) + 1 if classes is None else classes
    return (
        ErasureFitter(x.shape[1], size, device=x.device)
        .update(x, z)
        .eraser(method, shrinkage=shrinkage)
    )
