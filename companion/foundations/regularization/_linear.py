r"""Least squares with less freedom: ridge, early stopping, and dropout in closed form.

Everything here is a *spectral filter*. With :math:`X = U \operatorname{diag}(s) V^\top` the
solution is :math:`V \operatorname{diag}(f_i / s_i)\, U^\top y`, and a method is its factors
:math:`f_i` in [0, 1]: 1 for least squares, :math:`s_i^2/(s_i^2 + \lambda)` for ridge,
:math:`1 - (1 - \eta s_i^2)^t` for gradient descent that stops.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_floating, check_in_range, check_shape, wide_dtype

__all__ = [
    "dropout_penalty",
    "dropout_ridge_equivalent",
    "early_stopping_factors",
    "ridge",
    "shrinkage_factors",
    "spectral_solution",
]


def _check_data(X: Tensor, y: Tensor) -> None:
    check_floating("X", X)
    check_floating("y", y)
    if X.ndim != 2 or y.ndim not in (1, 2) or len(X) != len(y) or 0 in X.shape:
        raise ValueError(
            f"need X of shape (n, d) and y of shape (n,) or (n, k), got {tuple(X.shape)} and "
            f"{tuple(y.shape)}"
        )


def ridge(
    X: Float[Tensor, "n d"],
    y: Float[Tensor, "n ..."],
    *,
    lam: float | Float[Tensor, " d"],
) -> Float[Tensor, "d ..."]:
    r"""Solve least squares with a quadratic penalty.

    .. math:: \hat w = \arg\min_w \tfrac12 \lVert y - Xw \rVert^2
        + \tfrac12 \sum_j \lambda_j w_j^2 = (X^\top X + \operatorname{diag}\lambda)^{-1} X^\top y

    Args:
        X: Inputs, one row an example. No constant column is added, and none is spared.
        y: Targets, one column each where there are several.
        lam: Strength :math:`\lambda > 0`, in squared units of ``X``: one number, or one for each
            feature.

    Returns:
        The weights.

    Raises:
        ValueError: If shapes or dtypes do not fit, or ``lam`` is not above 0 (a tensor is not
            looked at).

    Numerics:
        Solves the smaller of two equal systems by Cholesky, :math:`d \times d`, or for
        :math:`d > n` the dual of size :math:`n \times n`. Relative error about the rounding unit
        times :math:`(s_1^2 + \lambda)/\lambda`. For a :math:`\lambda` near 0 use
        :func:`spectral_solution`, which does not square the condition number.

    References:
        A. E. Hoerl and R. W. Kennard, doi:10.1080/00401706.1970.10488634.

    Book: :doc:`/book/foundations/regularization`

    Example:
        >>> ridge(torch.tensor([[2.0], [0.0]]), torch.tensor([1.0, 5.0]), lam=1.0)
        tensor([0.4000])
    """
    _check_data(X, y)
    n, d = X.shape
    if isinstance(lam, Tensor):
        check_shape("lam", lam, (d,))
        strengths = lam.to(X)
    else:
        check_in_range("lam", lam, low=0.0, open_low=True, open_high=True)
        strengths = torch.full((d,), lam, dtype=X.dtype, device=X.device)
    column = y if y.ndim == 2 else y.unsqueeze(1)
    if d <= n:
        gram = X.T @ X + torch.diag(strengths)
        w = torch.cholesky_solve(X.T @ column, torch.linalg.cholesky(gram))
    else:
        lifted = X / strengths  # X diag(lam)^-1
        dual = lifted @ X.T + torch.eye(n, dtype=X.dtype, device=X.device)
        w = lifted.T @ torch.cholesky_solve(column, torch.linalg.cholesky(dual))
    return w if y.ndim == 2 else w.squeeze(1)


def shrinkage_factors(s: Float[Tensor, " r"], *, lam: float) -> Float[Tensor, " r"]:
    r"""Return what ridge leaves of each singular direction.

    .. math:: f_i = \frac{s_i^2}{s_i^2 + \lambda}

    Args:
        s: Singular values of the inputs, 0 or above.
        lam: Strength :math:`\lambda > 0`.

    Returns:
        Factors in [0, 1). Their sum is the effective number of degrees of freedom.

    Raises:
        ValueError: If ``lam`` is not above 0.

    Book: :doc:`/book/foundations/regularization`

    Example:
        >>> shrinkage_factors(torch.tensor([3.0, 1.0]), lam=1.0)
        tensor([0.9000, 0.5000])
    """
    check_floating("s", s)
    check_in_range("lam", lam, low=0.0, open_low=True, open_high=True)
    return s**2 / (s**2 + lam)


def early_stopping_factors(s: Float[Tensor, " r"], *, lr: float, steps: int) -> Float[Tensor, " r"]:
    r"""Return what gradient descent from zero has learned of each singular direction.

    .. math:: f_i = 1 - (1 - \eta s_i^2)^t

    Args:
        s: Singular values of the inputs, 0 or above.
        lr: Learning rate :math:`\eta > 0` on :math:`\tfrac12 \lVert y - Xw \rVert^2`, a sum over
            examples. Stable below :math:`2/s_1^2`.
        steps: Number :math:`t` of steps, 0 or more.

    Returns:
        Factors, in [0, 1] while :math:`\eta s_i^2 \le 1`.

    Raises:
        ValueError: If a setting is out of its domain.

    References:
        Early stopping as a filter: Y. Yao, L. Rosasco and A. Caponnetto,
        doi:10.1007/s00365-006-0663-2.

    Book: :doc:`/book/foundations/regularization`

    Example:
        >>> early_stopping_factors(torch.tensor([1.0, 0.0]), lr=0.5, steps=2)
        tensor([0.7500, 0.0000])
    """
    check_floating("s", s)
    check_in_range("lr", lr, low=0.0, open_low=True, open_high=True)
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, got {steps}")
    return 1 - (1 - lr * s**2) ** steps


def spectral_solution(
    X: Float[Tensor, "n d"],
    y: Float[Tensor, "n ..."],
    *,
    factors: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "d ..."]:
    r"""Solve least squares, direction by direction, through a filter.

    .. math:: w = \sum_{i:\, s_i > 0} \frac{f_i}{s_i}\, v_i\, (u_i^\top y)

    Args:
        X: Inputs, one row an example.
        y: Targets, one column each where there are several.
        factors: Maps the singular values, from large to small, to the factors :math:`f_i`.
            ``None`` takes 1 for all: the least-squares solution of smallest norm.

    Returns:
        The weights.

    Raises:
        ValueError: If shapes or dtypes do not fit.

    Numerics:
        A singular value decomposition. Directions below :math:`\max(n, d)` rounding units of the
        largest are left out, as in ``torch.linalg.pinv``. The gradient needs distinct singular
        values.

    Book: :doc:`/book/foundations/regularization`

    Example:
        >>> spectral_solution(torch.tensor([[1.0, 1.0]]), torch.tensor([4.0])).round(decimals=4)
        tensor([2., 2.])
    """
    _check_data(X, y)
    U, s, Vh = torch.linalg.svd(X, full_matrices=False)
    f = torch.ones_like(s) if factors is None else factors(s)
    check_shape("the result of factors", f, tuple(s.shape))
    kept = s > s[0] * max(X.shape) * torch.finfo(s.dtype).eps
    gain = torch.where(kept, f / torch.where(kept, s, torch.ones_like(s)), torch.zeros_like(s))
    column = y if y.ndim == 2 else y.unsqueeze(1)
    w: Tensor = Vh.T @ (gain.unsqueeze(1) * (U.T @ column))
    return w if y.ndim == 2 else w.squeeze(1)


def dropout_penalty(
    X: Float[Tensor, "n d"],
    w: Float[Tensor, " d"],
    *,
    p: float,
    curvature: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    r"""Return the penalty that dropout on the inputs adds to a linear model.

    .. math:: R(w) = \frac12 \frac{p}{1 - p} \sum_{i,j} A''(x_i w)\, x_{ij}^2\, w_j^2

    For least squares, :math:`A(z) = z^2/2`, this is exact:
    :math:`\mathbb E \tfrac12 \lVert y - \tilde X w \rVert^2 = \tfrac12 \lVert y - Xw \rVert^2 +
    R(w)`. For another generalized linear model with loss :math:`A(z) - yz` it is the second-order
    term of the expansion in the noise.

    Args:
        X: Inputs, one row an example.
        w: Weights.
        p: Probability to drop, in [0, 1).
        curvature: :math:`A''(x_i w)` of each example, such as :math:`\sigma(z)(1 - \sigma(z))` for
            logistic regression. ``None`` takes 1, which is least squares.

    Returns:
        The penalty, in the unit of the loss summed over examples, in float32 or better; 0 or
        above for a convex :math:`A`.

    Raises:
        ValueError: If shapes or dtypes do not fit, or ``p`` lies outside [0, 1).

    References:
        S. Wager, S. Wang and P. Liang, arXiv:1307.1493, section 2, where :math:`\delta` is
        our :math:`p`.

    Book: :doc:`/book/foundations/regularization`

    Example:
        >>> dropout_penalty(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0, 1.0]), p=0.5)
        tensor(6.5000)
    """
    check_floating("X", X)
    check_shape("X", X, (None, None))
    check_shape("w", w, (X.shape[1],))
    check_in_range("p", p, low=0.0, high=1.0, open_high=True)
    wide = wide_dtype(X.dtype)
    spread = X.to(wide) ** 2 @ w.to(wide) ** 2
    if curvature is not None:
        check_shape("curvature", curvature, (len(X),))
        spread = curvature * spread
    return 0.5 * p / (1 - p) * spread.sum()


def dropout_ridge_equivalent(
    X: Float[Tensor, "n d"], y: Float[Tensor, "n ..."], *, p: float
) -> Float[Tensor, "d ..."]:
    r"""Return the weights that least squares with dropout on its inputs has in the end.

    .. math:: \hat w = \arg\min_w \mathbb E \lVert y - \tilde X w \rVert^2
        = (X^\top X + \operatorname{diag}\lambda)^{-1} X^\top y, \qquad
        \lambda_j = \frac{p}{1 - p} \lVert X_{:j} \rVert^2

    Args:
        X: Inputs, one row an example.
        y: Targets, one column each where there are several.
        p: Probability to drop, in (0, 1).

    Returns:
        The weights; 0 for a feature that is 0 in every example.

    Raises:
        ValueError: If shapes or dtypes do not fit, or ``p`` lies outside (0, 1).

    Numerics:
        One call of :func:`ridge`; no sampling.

    References:
        N. Srivastava et al., JMLR 15, 2014, section 9.1.

    Book: :doc:`/book/foundations/regularization`

    Example:
        >>> X, y = torch.tensor([[2.0], [0.0]]), torch.tensor([1.0, 5.0])
        >>> dropout_ridge_equivalent(X, y, p=0.5)
        tensor([0.2500])
    """
    _check_data(X, y)
    check_in_range("p", p, low=0.0, high=1.0, open_low=True, open_high=True)
    energy = (X**2).sum(0)
    # Any strength will do for a feature that never appears: its weight is 0.
    strengths = torch.where(energy > 0, p / (1 - p) * energy, torch.ones_like(energy))
    return ridge(X, y, lam=strengths)
