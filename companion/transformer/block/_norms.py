r"""Layer normalization and root-mean-square normalization, with their gradients by hand.

Both act on every row by itself: statistics are means over the features of one token, never over
tokens or the batch. The variance divides by :math:`d`, not by :math:`d - 1`, and the small
:math:`\epsilon` stands under the root, as in PyTorch and in the checkpoints that this book loads.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion.core import (
    check_floating,
    check_in_range,
    check_same_shape,
    check_shape,
    wide,
    wide_dtype,
)

__all__ = [
    "LayerNorm",
    "LayerNormFunction",
    "RMSNorm",
    "RMSNormFunction",
    "layer_norm_backward",
    "layer_norm_by_hand",
    "rms_norm_backward",
    "rms_norm_by_hand",
]


class LayerNorm(nn.Module):
    r"""Center a row, divide it by its standard deviation, then scale and shift each feature.

    .. math:: \mu = \frac1d \sum_j x_j, \qquad \sigma^2 = \frac1d \sum_j (x_j - \mu)^2, \qquad
        \hat x = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}, \qquad
        y = \gamma \odot \hat x + \beta

    Args:
        dim: Number of features :math:`d`, the size of the last axis.
        eps: The number :math:`\epsilon \ge 0` under the root. With 0 a constant row gives NaN.
        bias: Whether there is a shift :math:`\beta`.
        device: Where the parameters are made.
        dtype: Their dtype.

    Raises:
        ValueError: If ``dim`` is below 1 or ``eps`` below 0; in a call, if the last axis
            is not ``dim`` long.

    Numerics:
        Calls PyTorch's fused kernel, which keeps its statistics in float32 where the input is
        narrower. :func:`layer_norm_by_hand` is the same map in the open.

    References:
        J. L. Ba, J. R. Kiros and G. E. Hinton, arXiv:1607.06450, eq. 4, where the gain is
        :math:`g` and there is no :math:`\epsilon`.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> LayerNorm(4, bias=False)(torch.tensor([[1.0, 1.0, 3.0, 3.0]])).round(decimals=3)
        tensor([[-1., -1.,  1.,  1.]], grad_fn=<RoundBackward1>)
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: float = 1e-5,
        bias: bool = True,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_norm(dim, eps)
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype)) if bias else None

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Normalize the rows of ``x``."""
        if x.shape[-1] != self.dim:
            raise ValueError(f"rows of {self.dim} features are expected, got {tuple(x.shape)}")
        return F.layer_norm(x, (self.dim,), self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Show the sizes in ``repr``."""
        return f"{self.dim}, eps={self.eps}, bias={self.bias is not None}"


class RMSNorm(nn.Module):
    r"""Divide a row by its root mean square, then scale each feature.

    .. math:: r = \sqrt{\frac1d \sum_j x_j^2 + \epsilon}, \qquad y = \gamma \odot \frac{x}{r}

    Layer normalization without centering and shift. One statistic in place of two.

    Args:
        dim: Number of features :math:`d`, the size of the last axis.
        eps: The number :math:`\epsilon \ge 0` under the root. With 0 a row of zeros gives NaN.
        device: Where the parameter is made.
        dtype: Its dtype.

    Raises:
        ValueError: If ``dim`` is below 1 or ``eps`` below 0; in a call, if the last axis
            is not ``dim`` long.

    Numerics:
        Calls ``torch.nn.functional.rms_norm``: one kernel on CUDA and under ``torch.compile``, and
        a short chain of PyTorch's own operations on the CPU. The mean square is formed in float32
        where the input is narrower.

    References:
        B. Zhang and R. Sennrich, arXiv:1910.07467, eq. 4; the :math:`\epsilon` is that of the
        implementations.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> RMSNorm(2)(torch.tensor([[3.0, 4.0]])) * 12.5**0.5
        tensor([[3.0000, 4.0000]], grad_fn=<MulBackward0>)
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: float = 1e-5,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_norm(dim, eps)
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Normalize the rows of ``x``."""
        if x.shape[-1] != self.dim:
            raise ValueError(f"rows of {self.dim} features are expected, got {tuple(x.shape)}")
        return F.rms_norm(x, (self.dim,), self.weight, self.eps)

    def extra_repr(self) -> str:
        """Show the sizes in ``repr``."""
        return f"{self.dim}, eps={self.eps}"


def layer_norm_backward(
    x: Float[Tensor, "*batch dim"],
    weight: Float[Tensor, " dim"],
    grad: Float[Tensor, "*batch dim"],
    *,
    eps: float = 1e-5,
) -> tuple[Float[Tensor, "*batch dim"], Float[Tensor, " dim"], Float[Tensor, " dim"]]:
    r"""Pull a gradient back through :math:`y = \gamma \odot \hat x + \beta`.

    With :math:`g = \gamma \odot \bar y`, :math:`s = \sqrt{\sigma^2 + \epsilon}` and
    :math:`\langle u \rangle` for the mean of a row over its features,

    .. math:: \bar x = \frac1s \left( g - \langle g \rangle
        - \hat x \, \langle g \odot \hat x \rangle \right), \qquad
        \bar \gamma = \sum_{rows} \bar y \odot \hat x, \qquad \bar \beta = \sum_{rows} \bar y

    The Jacobian :math:`[\partial \hat x / \partial x]_{ij} = \partial \hat x_j / \partial x_i` is
    symmetric, so it does not matter from which side it is applied.

    Args:
        x: Input rows.
        weight: Gain :math:`\gamma`.
        grad: Gradient :math:`\bar y` with respect to the output.
        eps: The number :math:`\epsilon` of the forward pass.

    Returns:
        :math:`\bar x` in the dtype of ``x``, and :math:`\bar\gamma` and :math:`\bar\beta`, summed
        over all rows, in the dtype of ``weight``.

    Raises:
        ValueError: If an argument is not floating, or shapes or ``eps`` do not fit.

    Numerics:
        The statistics are computed again from ``x``, in float32 or better. The formula is exact
        for every :math:`\epsilon`, not only for 0. The rows of :math:`\bar x` sum to 0.

    References:
        The formula behind PyTorch's ``native_layer_norm_backward``; derived in the chapter.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> x = torch.tensor([[1.0, 1.0, 3.0, 3.0]])
        >>> dx, _, _ = layer_norm_backward(x, torch.ones(4), torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
        >>> bool(dx.sum().abs() < 1e-6)
        True
    """
    rows, gain, out_grad = _checked(x, weight, grad, eps)
    normalized, scale = _standardize(rows, eps)
    g = gain * out_grad
    dx = scale * (
        g - g.mean(-1, keepdim=True) - normalized * (g * normalized).mean(-1, keepdim=True)
    )
    d_weight = _over_rows(out_grad * normalized)
    d_bias = _over_rows(out_grad)
    return dx.to(x.dtype), d_weight.to(weight.dtype), d_bias.to(weight.dtype)


def rms_norm_backward(
    x: Float[Tensor, "*batch dim"],
    weight: Float[Tensor, " dim"],
    grad: Float[Tensor, "*batch dim"],
    *,
    eps: float = 1e-5,
) -> tuple[Float[Tensor, "*batch dim"], Float[Tensor, " dim"]]:
    r"""Pull a gradient back through :math:`y = \gamma \odot \hat x`, :math:`\hat x = x / r`.

    With :math:`g = \gamma \odot \bar y` and :math:`\langle u \rangle` for the mean of a row over
    its features,

    .. math:: \bar x = \frac1r \left( g - \hat x \, \langle g \odot \hat x \rangle \right), \qquad
        \bar \gamma = \sum_{rows} \bar y \odot \hat x

    Args:
        x: Input rows.
        weight: Gain :math:`\gamma`.
        grad: Gradient :math:`\bar y` with respect to the output.
        eps: The number :math:`\epsilon` of the forward pass.

    Returns:
        :math:`\bar x` in the dtype of ``x``, and :math:`\bar\gamma`, summed over all rows, in the
        dtype of ``weight``.

    Raises:
        ValueError: If an argument is not floating, or shapes or ``eps`` do not fit.

    Numerics:
        The root mean square is computed again from ``x``, in float32 or better. Exact for every
        :math:`\epsilon`. Up to :math:`\epsilon`, :math:`\bar x` is orthogonal to ``x``: a longer
        row gives the same output.

    References:
        B. Zhang and R. Sennrich, arXiv:1910.07467, section 4.2, where it is written for the
        weights before the norm.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> dx, _ = rms_norm_backward(x, torch.ones(2), torch.tensor([[1.0, 0.0]]), eps=1e-12)
        >>> bool((x * dx).sum().abs() < 1e-6)
        True
    """
    rows, gain, out_grad = _checked(x, weight, grad, eps)
    normalized, scale = _divide_by_rms(rows, eps)
    g = gain * out_grad
    dx = scale * (g - normalized * (g * normalized).mean(-1, keepdim=True))
    return dx.to(x.dtype), _over_rows(out_grad * normalized).to(weight.dtype)


class LayerNormFunction(torch.autograd.Function):
    """Layer normalization whose backward pass is :func:`layer_norm_backward`.

    It saves its inputs and nothing else, and its backward pass is made of PyTorch operations, so
    second derivatives are right as well.

    Book: :doc:`/book/transformer/block`
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """Normalize rows."""
        normalized, _ = _standardize(wide(x), eps)
        y = normalized * wide(weight)
        return (y if bias is None else y + wide(bias)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the inputs."""
        x, weight, bias, eps = inputs
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        ctx.eps = eps

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        dx, d_weight, d_bias = layer_norm_backward(x, weight, grad, eps=ctx.eps)
        return dx, d_weight, d_bias if ctx.has_bias else None, None


class RMSNormFunction(torch.autograd.Function):
    """Root-mean-square normalization whose backward pass is :func:`rms_norm_backward`.

    It saves its inputs and nothing else, and its backward pass is made of PyTorch operations, so
    second derivatives are right as well.

    Book: :doc:`/book/transformer/block`
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalize rows."""
        return (_divide_by_rms(wide(x), eps)[0] * wide(weight)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the inputs."""
        x, weight, eps = inputs
        ctx.save_for_backward(x, weight)
        ctx.eps = eps

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and weight."""
        x, weight = ctx.saved_tensors
        dx, d_weight = rms_norm_backward(x, weight, grad, eps=ctx.eps)
        return dx, d_weight, None


def layer_norm_by_hand(
    x: Float[Tensor, "*batch dim"],
    weight: Float[Tensor, " dim"],
    bias: Float[Tensor, " dim"] | None = None,
    *,
    eps: float = 1e-5,
) -> Float[Tensor, "*batch dim"]:
    r"""Apply layer normalization from its definition, with the backward pass written by hand.

    .. math:: y = \gamma \odot \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    Args:
        x: Input rows.
        weight: Gain :math:`\gamma`.
        bias: Shift :math:`\beta`, or ``None`` for none.
        eps: The number :math:`\epsilon \ge 0` under the root. With 0 a constant row gives NaN.

    Returns:
        The normalized rows, in the dtype of ``x``.

    Raises:
        ValueError: If an argument is not floating, or shapes or ``eps`` do not fit.

    Numerics:
        The mean first, then the mean square of what is left: two passes, without the cancellation
        of :math:`\langle x^2 \rangle - \langle x \rangle^2`. In float32 or better. It is for
        reading; :class:`LayerNorm` is the fast one.

    References:
        J. L. Ba, J. R. Kiros and G. E. Hinton, arXiv:1607.06450, eq. 4.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> layer_norm_by_hand(torch.tensor([[1.0, 3.0]]), torch.ones(2)).round(decimals=3)
        tensor([[-1.,  1.]])
    """
    _checked(x, weight, x, eps)
    if bias is not None:
        check_floating("bias", bias)
        check_shape("bias", bias, tuple(weight.shape))
    out: Tensor = LayerNormFunction.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]
    return out


def rms_norm_by_hand(
    x: Float[Tensor, "*batch dim"],
    weight: Float[Tensor, " dim"],
    *,
    eps: float = 1e-5,
) -> Float[Tensor, "*batch dim"]:
    r"""Apply RMS normalization from its definition, with the backward pass written by hand.

    .. math:: y = \gamma \odot \frac{x}{\sqrt{\frac1d \sum_j x_j^2 + \epsilon}}

    Args:
        x: Input rows.
        weight: Gain :math:`\gamma`.
        eps: The number :math:`\epsilon \ge 0` under the root. With 0 a row of zeros gives NaN.

    Returns:
        The normalized rows, in the dtype of ``x``.

    Raises:
        ValueError: If an argument is not floating, or shapes or ``eps`` do not fit.

    Numerics:
        In float32 or better. It is for reading; :class:`RMSNorm` is the fast one.

    References:
        B. Zhang and R. Sennrich, arXiv:1910.07467, eq. 4.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> rms_norm_by_hand(torch.tensor([[7.0, 7.0]]), torch.ones(2)).round(decimals=3)
        tensor([[1., 1.]])
    """
    _checked(x, weight, x, eps)
    out: Tensor = RMSNormFunction.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


def _standardize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the centered rows over their deviation, and one over that deviation."""
    centered = x - x.mean(-1, keepdim=True)
    scale = torch.rsqrt(centered.square().mean(-1, keepdim=True) + eps)
    return centered * scale, scale


def _divide_by_rms(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the rows over their root mean square, and one over that."""
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x * scale, scale


def _over_rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1]).sum(0)


def _check_norm(dim: int, eps: float) -> None:
    if dim < 1:
        raise ValueError(f"dim must be 1 or more, got {dim}")
    check_in_range("eps", eps, low=0.0, open_high=True)


def _checked(x: Tensor, weight: Tensor, grad: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    check_floating("x", x)
    check_floating("weight", weight)
    check_floating("grad", grad)
    check_same_shape("grad", grad, "x", x)
    if weight.ndim != 1 or x.ndim == 0 or x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"weight must have one entry for each of the features on the last axis of x, got "
            f"weight {tuple(weight.shape)} and x {tuple(x.shape)}"
        )
    check_in_range("eps", eps, low=0.0, open_high=True)
    # One precision for all, or means of a narrow gradient would be rounded before they meet x.
    dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), grad.dtype)
    dtype = wide_dtype(dtype)
    return x.to(dtype), weight.to(dtype), grad.to(dtype)
