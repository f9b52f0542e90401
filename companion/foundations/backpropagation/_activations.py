r"""Activation functions run backward.

Each function here takes what its formula is cheapest in, the input or the output of the
activation, and the gradient of a scalar with respect to the output. It returns the gradient with
respect to the input. The Jacobian of an entry-wise map is diagonal, so the vector-Jacobian product
is an entry-wise product.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from companion.core import check_floating, check_same_shape, wide

__all__ = [
    "ACTIVATIONS",
    "exp_backward",
    "gelu_backward",
    "log_backward",
    "log_softmax_backward",
    "relu_backward",
    "sigmoid_backward",
    "silu_backward",
    "tanh_backward",
]


#: Activation functions by name, each of any shape, as PyTorch has them.
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "relu": F.relu,
        "sigmoid": torch.sigmoid,
        "silu": F.silu,
        "tanh": torch.tanh,
    }
)


def _checked(name: str, saved: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    check_floating(name, saved)
    check_floating("grad", grad)
    check_same_shape(name, saved, "grad", grad)
    return wide(saved), wide(grad)


def relu_backward(
    out: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Pull a gradient back through :math:`y = \max(x, 0)`.

    .. math:: \bar x = \bar y \odot \mathbb 1[x > 0]

    The derivative is 1 where :math:`x > 0` and 0 where :math:`x < 0`. At 0 there is none; the
    value 0 is taken, an element of the subdifferential [0, 1], as in PyTorch.

    Args:
        out: Output :math:`y`. It is positive exactly where the input is.
        grad: Gradient :math:`\bar y` with respect to the output.

    Returns:
        Gradient :math:`\bar x` with respect to the input, in the dtype of ``grad``.

    Raises:
        ValueError: If an argument is not floating, or the shapes differ.

    Numerics:
        Exact. A zero output stops even an infinite gradient.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> relu_backward(torch.tensor([0.0, 3.0]), torch.tensor([5.0, 5.0]))
        tensor([0., 5.])
    """
    _checked("out", out, grad)
    return torch.where(out > 0, grad, torch.zeros_like(grad))


def sigmoid_backward(
    out: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Pull a gradient back through :math:`y = \sigma(x) = 1 / (1 + e^{-x})`.

    .. math:: \bar x = \bar y \odot y \odot (1 - y)

    Since :math:`\sigma' = e^{-x} / (1 + e^{-x})^2` and :math:`1 - \sigma = e^{-x} / (1 + e^{-x})`,
    their quotient is :math:`\sigma`. The slope is at most 1/4, at :math:`x = 0`.

    Args:
        out: Output :math:`y`, in [0, 1].
        grad: Gradient :math:`\bar y` with respect to the output.

    Returns:
        Gradient :math:`\bar x` with respect to the input, in the dtype of ``grad``.

    Raises:
        ValueError: If an argument is not floating, or the shapes differ.

    Numerics:
        Where the output has rounded to 1 the slope is 0, although the true one is
        :math:`e^{-x}`: in float32 from :math:`x = 17` on, in bfloat16
        from :math:`x = 6.25` on.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> sigmoid_backward(torch.tensor([0.5]), torch.tensor([8.0]))
        tensor([2.])
    """
    y, g = _checked("out", out, grad)
    return (g * y * (1 - y)).to(grad.dtype)


def tanh_backward(
    out: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Pull a gradient back through :math:`y = \tanh x`.

    .. math:: \bar x = \bar y \odot (1 - y^2)

    With :math:`\tanh = \sinh / \cosh` the quotient rule gives
    :math:`(\cosh^2 - \sinh^2) / \cosh^2 = 1 - \tanh^2`.

    Args:
        out: Output :math:`y`, in [-1, 1].
        grad: Gradient :math:`\bar y` with respect to the output.

    Returns:
        Gradient :math:`\bar x` with respect to the input, in the dtype of ``grad``.

    Raises:
        ValueError: If an argument is not floating, or the shapes differ.

    Numerics:
        Computed as :math:`(1 - y)(1 + y)`, which does not lose digits where :math:`y` is near 1.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> tanh_backward(torch.tensor([0.5]), torch.tensor([4.0]))
        tensor([3.])
    """
    y, g = _checked("out", out, grad)
    return (g * (1 - y) * (1 + y)).to(grad.dtype)


def gelu_backward(
    x: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Pull a gradient back through :math:`\mathrm{GELU}(x) = x \, \Phi(x)`.

    .. math:: \bar x = \bar y \odot \left(\Phi(x) + x \varphi(x)\right)

    :math:`\Phi` is the distribution function of the standard normal and :math:`\varphi = \Phi'`
    its density; the rest is the product rule. The exact function is meant, not the approximation
    by tanh.

    Args:
        x: Input :math:`x`. The output does not determine it, since GELU is not monotone.
        grad: Gradient :math:`\bar y` with respect to the output.

    Returns:
        Gradient :math:`\bar x` with respect to the input, in the dtype of ``grad``.

    Raises:
        ValueError: If an argument is not floating, or the shapes differ.

    Numerics:
        :math:`\Phi` comes from ``erfc``, which keeps its digits far to the left. The slope lies
        in [-0.129, 1.129].

    References:
        D. Hendrycks and K. Gimpel, arXiv:1606.08415, section 2.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> gelu_backward(torch.tensor([0.0]), torch.tensor([3.0]))
        tensor([1.5000])
    """
    z, g = _checked("x", x, grad)
    cdf: Tensor = torch.special.erfc(-z / math.sqrt(2)) / 2
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return (g * (cdf + z * density)).to(grad.dtype)


def silu_backward(
    x: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Pull a gradient back through :math:`\mathrm{SiLU}(x) = x \, \sigma(x)`.

    .. math:: \bar x = \bar y \odot \left(\sigma(x) + x \sigma(x) (1 - \sigma(x))\right)

    The product rule, with :math:`\sigma' = \sigma (1 - \sigma)`.

    Args:
        x: Input :math:`x`. The output does not determine it, since SiLU is not monotone.
        grad: Gradient :math:`\bar y` with respect to the output.

    Returns:
        Gradient :math:`\bar x` with respect to the input, in the dtype of ``grad``.

    Raises:
        ValueError: If an argument is not floating, or the shapes differ.

    Numerics:
        The slope lies in [-0.0999, 1.0999].

    References:
        S. Elfwing et al., arXiv:1702.03118, section 2.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> silu_backward(torch.tensor([0.0]), torch.tensor([3.0]))
        tensor([1.5000])
    """
    z, g = _checked("x", x, grad)
    s = torch.sigmoid(z)
    return (g * (s + z * s * torch.sigmoid(-z))).to(grad.dtype)


def exp_backward(
    out: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Pull a gradient back through :math:`y = e^x`.

    .. math:: \bar x = \bar y \odot y

    Args:
        out: Output :math:`y`, the derivative itself.
        grad: Gradient :math:`\bar y` with respect to the output.

    Returns:
        Gradient :math:`\bar x` with respect to the input, in the dtype of ``grad``.

    Raises:
        ValueError: If an argument is not floating, or the shapes differ.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> exp_backward(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0]))
        tensor([3., 6.])
    """
    y, g = _checked("out", out, grad)
    return (g * y).to(grad.dtype)


def log_backward(
    x: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Pull a gradient back through :math:`y = \ln x`.

    .. math:: \bar x = \bar y \oslash x

    Differentiate :math:`e^{y} = x`: :math:`e^{y} \, dy = dx`, so :math:`dy = dx / x`.

    Args:
        x: Input :math:`x > 0`.
        grad: Gradient :math:`\bar y` with respect to the output.

    Returns:
        Gradient :math:`\bar x` with respect to the input, in the dtype of ``grad``. Infinite at
        :math:`x = 0`.

    Raises:
        ValueError: If an argument is not floating, or the shapes differ.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> log_backward(torch.tensor([2.0]), torch.tensor([3.0]))
        tensor([1.5000])
    """
    z, g = _checked("x", x, grad)
    return (g / z).to(grad.dtype)


def log_softmax_backward(
    out: Float[Tensor, "*batch classes"], grad: Float[Tensor, "*batch classes"]
) -> Float[Tensor, "*batch classes"]:
    r"""Pull a gradient back through :math:`y = z - \mathrm{lse}(z)`, the log-softmax of rows.

    .. math:: \bar z = \bar y - \Big(\sum_k \bar y_k\Big) e^{y}

    since :math:`d\,\mathrm{lse} = \langle p, dz \rangle` with :math:`p = e^{y}`. Not entry-wise:
    every logit moves the normalizer.

    Args:
        out: Output :math:`y`, log-probabilities in nats.
        grad: Gradient :math:`\bar y` with respect to the output.

    Returns:
        Gradient :math:`\bar z` with respect to the logits, in the dtype of ``grad``. Its rows sum
        to 0.

    Raises:
        ValueError: If an argument is not floating, the shapes differ, or there is no axis.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> out = torch.tensor([0.25, 0.75]).log()
        >>> log_softmax_backward(out, torch.tensor([1.0, 0.0]))
        tensor([ 0.7500, -0.7500])
    """
    y, g = _checked("out", out, grad)
    if y.ndim == 0:
        raise ValueError("out needs an axis of classes, got a scalar")
    return (g - y.exp() * g.sum(-1, keepdim=True)).to(grad.dtype)
