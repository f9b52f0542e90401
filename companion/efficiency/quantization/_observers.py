"""Where a grid should end: observers of numbers that come in batches."""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_floating, check_in_range, wide
from companion.efficiency.quantization._affine import affine_parameters, fake_quantize

__all__ = ["mse_range", "percentile_range"]


def percentile_range(
    x: Float[Tensor, "..."], *, ratio: float = 0.999
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    r"""Return the interval that leaves the same number of values out at either end.

    Args:
        x: What was observed.
        ratio: How much of it the interval holds, in (0, 1]; 1 is the range from the least to the
            largest.

    Returns:
        Its two ends, quantiles of the values.

    Raises:
        ValueError: If the ratio is out of range.

    References:
        H. Wu et al. 2020, arXiv:2004.09602, sec. 5.2.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> percentile_range(torch.arange(101.0), ratio=0.9)
        (tensor(5.), tensor(95.))
    """
    check_floating("x", x)
    check_in_range("ratio", ratio, low=0.0, high=1.0, open_low=True)
    values = wide(x).flatten().sort().values
    # torch.quantile takes no more than 16 million numbers.
    last = len(values) - 1
    cut = (1 - ratio) / 2 * last
    first = int(cut)
    part = cut - first
    low = torch.lerp(values[first], values[min(first + 1, last)], part)
    high = torch.lerp(values[last - first], values[max(last - first - 1, 0)], part)
    return low.to(x.dtype), high.to(x.dtype)


def mse_range(
    x: Float[Tensor, "..."], *, bits: int = 8, steps: int = 50
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    r"""Shrink the interval of all values to where the squared error of rounding is least.

    .. math:: \min_{t \in (0, 1]}\ \sum_i \big(x_i - \hat x_i(t\,l,\ t\,h)\big)^2

    Args:
        x: What was observed.
        bits: Bits of a code.
        steps: How many values of :math:`t` are tried, evenly.

    Returns:
        The two ends. The error is no larger than without shrinking, since :math:`t = 1` is tried.

    Raises:
        ValueError: If a number is out of range.

    References:
        Nagel et al. 2021, arXiv:2106.08295, eq. 8.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> x = torch.cat([torch.linspace(-1, 1, 999), torch.tensor([9.0])])
        >>> low, high = mse_range(x, bits=3)
        >>> bool(high < 9)
        True
    """
    check_floating("x", x)
    check_count("steps", steps)
    values = wide(x)
    low, high = values.amin().clamp(max=0), values.amax().clamp(min=0)
    best_error = torch.full_like(low, torch.inf)
    best = torch.ones_like(low)
    for step in range(1, steps + 1):
        t = step / steps
        scale, zero = affine_parameters(t * low, t * high, bits=bits)
        made = fake_quantize(values, scale, zero, low=0, high=2**bits - 1)
        error = (values - made).square().sum()
        better = error <= best_error
        best_error = torch.where(better, error, best_error)
        best = torch.where(better, torch.full_like(best, t), best)
    return (best * low).to(x.dtype), (best * high).to(x.dtype)
