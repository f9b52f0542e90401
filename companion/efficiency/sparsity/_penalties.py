r"""Penalties that make weights exactly zero: the lasso, the group lasso, and random gates."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.core import check_count, check_in_range, check_shape, rand, wide, wide_dtype

__all__ = ["HardConcrete", "group_soft_threshold", "lasso", "soft_threshold"]


def soft_threshold(w: Float[Tensor, "*shape"], t: float) -> Float[Tensor, "*shape"]:
    r"""Shrink every entry by ``t``, and set to zero what is smaller.

    .. math:: \operatorname{prox}_{t|\cdot|}(w)
        = \arg\min_v \tfrac12 (v-w)^2 + t|v| = \operatorname{sign}(w)\,(|w|-t)_+

    Args:
        w: Any tensor.
        t: Threshold, 0 or more.

    Returns:
        A tensor of the shape of ``w``.

    Raises:
        ValueError: If the threshold is negative.

    References:
        Parikh and Boyd 2014, "Proximal algorithms", sec. 6.5.2.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> soft_threshold(torch.tensor([3.0, -0.5, -2.0]), 1.0)
        tensor([ 2., -0., -1.])
    """
    check_in_range("t", t, low=0.0, open_high=True)
    return w.sign() * (w.abs() - t).clamp(min=0)


def group_soft_threshold(W: Float[Tensor, "groups size"], t: float) -> Float[Tensor, "groups size"]:
    r"""Shorten every row by ``t``, and set to zero what is shorter.

    .. math:: \operatorname{prox}_{t\lVert\cdot\rVert}(w)
        = \Big(1 - \frac{t}{\lVert w\rVert}\Big)_+ w

    Args:
        W: One group in each row.
        t: Threshold, 0 or more.

    Returns:
        A tensor of the shape of ``W``. A row of zeros stays one, and its gradient is 0.

    Raises:
        ValueError: If the threshold is negative.

    Numerics:
        Squares are summed in float32 at least: in float16 those of 300 are infinite, and those of
        0.0001 zero.

    References:
        Yuan and Lin 2006, "Model selection and estimation in regression with grouped variables".

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> group_soft_threshold(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])
    """
    check_in_range("t", t, low=0.0, open_high=True)
    check_shape("W", W, (None, None))
    high = wide(W)
    squares = high.square().sum(1, keepdim=True)
    # A root has no derivative at 0: such rows take another way, so that no NaN comes back.
    norm = torch.where(squares > 0, squares, torch.ones_like(squares)).sqrt()
    kept = (1 - t / norm).clamp(min=0) * (squares > 0)
    return (kept * high).to(W.dtype)


def lasso(
    X: Float[Tensor, "n d"], y: Float[Tensor, " n"], *, strength: float, steps: int = 1000
) -> Float[Tensor, " d"]:
    r"""Minimize a squared error with an L1 penalty, by accelerated proximal steps (FISTA).

    .. math:: \min_w\ \frac1{2n}\lVert Xw - y\rVert^2 + \lambda\lVert w\rVert_1

    Args:
        X: Inputs.
        y: Targets.
        strength: :math:`\lambda`, 0 or more. From :math:`\max_j |X^\top y|_j/n` on the minimum is
            0.
        steps: How many.

    Returns:
        The weights. Zeros are exact.

    Raises:
        ValueError: If shapes do not fit or a number is out of range.

    Numerics:
        The excess over the minimum falls as :math:`O(1/\text{steps}^2)`. Step size
        :math:`1/\lambda_{\max}(X^\top X/n)`. In float32 at least; the result has the dtype of
        ``X``.

    References:
        Beck and Teboulle 2009, "A fast iterative shrinkage-thresholding algorithm", sec. 4.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> lasso(torch.eye(3), torch.tensor([3.0, -6.0, 0.5]), strength=1.0, steps=100)
        tensor([ 0., -3.,  0.])
    """
    check_shape("X", X, (None, None))
    check_shape("y", y, (X.shape[0],))
    check_count("rows of X", X.shape[0])
    check_in_range("strength", strength, low=0.0, open_high=True)
    check_count("steps", steps)
    inputs, targets = wide(X), wide(y)
    gram, moment = inputs.T @ inputs / len(X), inputs.T @ targets / len(X)
    rate = 1 / torch.linalg.eigvalsh(gram)[-1].clamp(min=torch.finfo(gram.dtype).tiny)
    w = torch.zeros_like(moment)
    ahead, t = w, 1.0
    for _ in range(steps):
        moved = ahead - rate * (gram @ ahead - moment)
        new = moved.sign() * (moved.abs() - rate * strength).clamp(min=0)
        after = (1 + math.sqrt(1 + 4 * t * t)) / 2
        ahead = new + (t - 1) / after * (new - w)
        w, t = new, after
    return w.to(X.dtype)


class HardConcrete(nn.Module):
    r"""Random gates in [0, 1] that are exactly 0 with a probability that has a gradient.

    .. math::

        s = \sigma\Big(\frac{\log u - \log(1-u) + \log\alpha}{\beta}\Big), \qquad
        z = \min\big(1, \max(0,\ s(\zeta-\gamma)+\gamma)\big)

    for :math:`u` uniform. The number of open gates is on average
    :math:`\sum\sigma\big(\log\alpha - \beta\log\frac{-\gamma}{\zeta}\big)`, which can be a penalty.

    Args:
        gates: How many.
        beta: Temperature :math:`\beta > 0`.
        low: :math:`\gamma < 0`.
        high: :math:`\zeta > 1`.
        start: Probability at the beginning that a gate is not 0.
        device: Where the parameters are made.
        dtype: Their dtype.

    Attributes:
        log_alpha: The parameters, (gates).

    Raises:
        ValueError: If a number is out of range.

    References:
        Louizos, Welling and Kingma 2018, arXiv:1712.01312, eqs. 10 to 13.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> gates = HardConcrete(3, start=0.75)
        >>> gates.expected_open()
        tensor(2.2500, grad_fn=<SumBackward0>)
    """

    def __init__(
        self,
        gates: int,
        *,
        beta: float = 2 / 3,
        low: float = -0.1,
        high: float = 1.1,
        start: float = 0.5,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("gates", gates)
        check_in_range("beta", beta, low=0.0, open_low=True, open_high=True)
        check_in_range("low", low, high=0.0, open_low=True, open_high=True)
        check_in_range("high", high, low=1.0, open_low=True, open_high=True)
        check_in_range("start", start, low=0.0, high=1.0, open_low=True, open_high=True)
        self.beta, self.low, self.high = beta, low, high
        at = math.log(start / (1 - start)) + self._shift
        self.log_alpha = nn.Parameter(torch.full((gates,), at, device=device, dtype=dtype))

    @property
    def _shift(self) -> float:
        return self.beta * math.log(-self.low / self.high)

    def forward(self, *, generator: torch.Generator | None = None) -> Float[Tensor, " gates"]:
        """Draw the gates, or, without a generator, return what is used after training.

        Args:
            generator: Draws :math:`u`. With ``None`` the noise is left out.

        Returns:
            The gates.
        """
        logit: Tensor = self.log_alpha
        if generator is not None:
            high = wide_dtype(logit.dtype)
            u = rand(len(logit), generator=generator, device=logit.device, dtype=high)
            u = u.clamp(min=torch.finfo(high).tiny, max=1 - torch.finfo(high).eps)
            logit = (u.log() - (-u).log1p() + logit) / self.beta
        s = torch.sigmoid(logit)
        return (s * (self.high - self.low) + self.low).clamp(0, 1).to(self.log_alpha.dtype)

    def expected_open(self) -> Float[Tensor, ""]:
        """Compute the mean number of gates that are not 0.

        Returns:
            A number with a gradient.
        """
        return torch.sigmoid(self.log_alpha - self._shift).sum()

    def extra_repr(self) -> str:
        """Show the constants in ``repr``."""
        return (
            f"gates={len(self.log_alpha)}, beta={self.beta:.3g}, low={self.low}, high={self.high}"
        )
