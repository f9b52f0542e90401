r"""Training with rounded numbers: gradients that pass a step function, and rounding by chance."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.core import check_floating, check_in_range, rand
from companion.efficiency.quantization._affine import code_range

__all__ = [
    "LSQ",
    "FakeQuantize",
    "lsq_quantize",
    "stochastic_round",
    "straight_through_round",
]


def straight_through_round(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Round to whole numbers, and let the gradient through as if nothing had happened.

    Args:
        x: The numbers.

    Returns:
        :math:`\lfloor x \rceil`, with the derivative 1 in place of 0.

    References:
        Bengio, Léonard and Courville 2013, arXiv:1308.3432, sec. 4.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> x = torch.tensor(0.7, requires_grad=True)
        >>> straight_through_round(x).backward()
        >>> x.grad
        tensor(1.)
    """
    check_floating("x", x)
    return x + (x.round() - x).detach()


class FakeQuantize(nn.Module):
    r"""A symmetric grid in the forward pass, the straight-through estimate in the backward pass.

    .. math::

        \hat x = s\,\mathrm{clip}\big(\lfloor x/s \rceil, -Q_N, Q_P\big), \qquad
        \frac{\partial \hat x}{\partial x} := \mathbb 1[-Q_N \le x/s \le Q_P]

    The step is that of the largest magnitude, at each call: for weights in training.

    Args:
        bits: Bits of a code.

    Raises:
        ValueError: If the bits are out of range.

    References:
        Jacob et al. 2018, arXiv:1712.05877, sec. 3.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> FakeQuantize(2)(torch.tensor([-1.0, 0.2, 0.6]))
        tensor([-1.,  0.,  1.])
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        code_range(bits, signed=True)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Round, with the step of the largest magnitude, which is held fixed in the gradient."""
        _, top = code_range(self.bits, signed=True)
        scale = x.detach().abs().amax() / top
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return straight_through_round((x / scale).clamp(-top, top)) * scale


def lsq_quantize(
    x: Float[Tensor, "*shape"],
    scale: Float[Tensor, ""],
    *,
    low: int,
    high: int,
    gradient_scale: float = 1.0,
) -> Float[Tensor, "*shape"]:
    r"""Round to a grid whose step is learned.

    .. math::

        \hat x = s\,\mathrm{clip}\big(\lfloor x/s \rceil, -Q_N, Q_P\big), \qquad
        \frac{\partial \hat x}{\partial s} = g \cdot
        \begin{cases} \lfloor x/s \rceil - x/s & \text{inside} \\ -Q_N & x/s \le -Q_N \\
        Q_P & x/s \ge Q_P \end{cases}

    The gradient of :math:`x` is 1 inside and 0 outside.

    Args:
        x: The numbers.
        scale: The step :math:`s > 0`.
        low: :math:`-Q_N`.
        high: :math:`Q_P`.
        gradient_scale: :math:`g`; the authors take :math:`1/\sqrt{N Q_P}` for N weights.

    Returns:
        Points of the grid.

    Raises:
        ValueError: If the range is empty, or the step is not above 0.

    Numerics:
        No gradient is written by hand: autograd differentiates the clip and the quotient, and the
        rounding is :func:`straight_through_round`.

    References:
        Esser et al. 2020, arXiv:1902.08153, eq. 3 and 5.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> s = torch.tensor(1.0, requires_grad=True)
        >>> lsq_quantize(torch.tensor(2.6), s, low=-4, high=3).backward()
        >>> f"{s.grad:.1f}"
        '0.4'
    """
    if not low < high:
        raise ValueError(f"codes need low < high, got {low} and {high}")
    check_floating("x", x)
    if scale.device.type != "meta" and not bool(scale.detach() > 0):
        raise ValueError(f"the step must be above 0, got {float(scale):.3g}: train its logarithm")
    # Its value is the step, its gradient g times that of the step.
    step = (scale - scale * gradient_scale).detach() + scale * gradient_scale
    return straight_through_round((x / step).clamp(low, high)) * step


class LSQ(nn.Module):
    r"""Learned step size quantization of one tensor of weights.

    The parameter is :math:`\log s`, so the step stays above 0 whatever the optimizer does.

    Args:
        x: The weights that it begins with: :math:`s = 2\,\mathrm{mean}|x| / \sqrt{Q_P}`.
        bits: Bits of a code.

    Attributes:
        log_scale: :math:`\log s`.

    Raises:
        ValueError: If the bits are out of range, or all weights are 0.

    References:
        Esser et al. 2020, arXiv:1902.08153, sec. 2; they train :math:`s` itself.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> layer = LSQ(torch.tensor([1.0, -2.0, 0.5]), bits=3)
        >>> f"{layer.scale:.3f}"
        '1.347'
    """

    def __init__(self, x: Float[Tensor, "..."], *, bits: int) -> None:
        super().__init__()
        self.low, self.high = code_range(bits, signed=True)
        start = 2 * x.detach().abs().mean() / math.sqrt(self.high)
        if x.device.type != "meta" and not bool(start > 0):
            raise ValueError("all weights are 0, so there is no step to begin with")
        self.gradient_scale = 1 / math.sqrt(x.numel() * self.high)
        self.log_scale = nn.Parameter(start.log())

    @property
    def scale(self) -> Tensor:
        """The step."""
        return self.log_scale.exp()

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Round to the grid."""
        return lsq_quantize(
            x, self.scale, low=self.low, high=self.high, gradient_scale=self.gradient_scale
        )


def stochastic_round(
    x: Float[Tensor, "*shape"], *, step: float = 1.0, generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    r"""Round up or down at random, so that the mean is right.

    .. math:: P(\text{up}) = f = x/s - \lfloor x/s \rfloor, \qquad \mathbb E[\hat x] = x, \qquad
        \mathrm{Var}[\hat x] = s^2 f (1 - f)

    Args:
        x: The numbers.
        step: :math:`s > 0`, the distance between points of the grid.
        generator: The source of randomness: one draw for each number.

    Returns:
        Multiples of the step.

    Raises:
        ValueError: If the step is out of range.

    Numerics:
        The draw is uniform on [0, 1) with the 24 bits of a float32, and points of the grid stay
        where they are. Half precision is rounded in float32.

    References:
        Gupta et al. 2015, arXiv:1502.02551, sec. 3.2.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> f"{stochastic_round(torch.full((10000,), 0.3), generator=g).mean():.2f}"
        '0.30'
    """
    check_floating("x", x)
    check_in_range("step", step, low=0.0, open_low=True, open_high=True)
    drawn = rand(*x.shape, generator=generator, device=x.device)
    steps = x.to(torch.promote_types(x.dtype, torch.float32)) / step
    below = steps.floor()
    # Not floor(steps + drawn): that sum may be rounded up to the next whole number.
    return ((below + (drawn < steps - below)) * step).to(x.dtype)
