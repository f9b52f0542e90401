r"""Weights of few bits: rounded to nearest, clipped with care, or column after column (GPTQ).

A weight is that of :class:`torch.nn.Linear`, (outputs, inputs). Each row is cut into groups of
neighbors, and each group has a grid of its own,

.. math:: \hat w = s\,q + c, \qquad q \in \{-2^{b-1}, \dots, 2^{b-1}-1\}

with a step :math:`s` and a center :math:`c`, both stored in bfloat16, the type in which PyTorch's
kernels for packed weights take them. A symmetric grid has :math:`c = 0`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from companion.core import (
    check_count,
    check_finite,
    check_floating,
    check_in_range,
    check_shape,
    wide,
)
from companion.efficiency.quantization._affine import _by_group, code_range
from companion.efficiency.sparsity import inverse_factor

__all__ = ["WeightCodes", "awq_scales", "gptq", "round_weights", "smooth_scales"]


@dataclass(frozen=True, eq=False)
class WeightCodes:
    r"""A weight on the grids of its groups.

    Attributes:
        codes: :math:`q`, int8, (outputs, inputs).
        scale: :math:`s`, bfloat16, (outputs, groups).
        center: :math:`c`, likewise; ``None`` where the grids are symmetric.
        bits: Bits of a code.
    """

    codes: Int8[Tensor, "d_out d_in"]
    scale: Float[Tensor, "d_out groups"]
    center: Float[Tensor, "d_out groups"] | None
    bits: int

    @property
    def group(self) -> int:
        """How many inputs share a step."""
        return self.codes.shape[1] // self.scale.shape[1]

    def values(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "d_out d_in"]:
        """Return the weight that the codes stand for.

        Args:
            dtype: Its type; the products are formed in it.
        """
        made = self.codes.reshape(len(self.codes), -1, self.group).to(dtype)
        made = made * self.scale[..., None].to(dtype)
        if self.center is not None:
            made = made + self.center[..., None].to(dtype)
        return made.flatten(-2)


def _grid(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Step and center for groups that reach from low to high, as bfloat16 holds them."""
    bottom, top = code_range(bits, signed=True)
    if symmetric:
        scale = torch.maximum(-low, high) / top
        center = torch.zeros_like(scale)
    else:
        scale = (high - low) / (top - bottom)
        center = low - bottom * scale
    # A group of equal numbers: its center says all.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    kept = scale.bfloat16().to(scale.dtype)
    tiny = torch.finfo(torch.bfloat16).tiny
    return kept.clamp(min=tiny), center.bfloat16().to(scale.dtype)


def _nearest(x: Tensor, scale: Tensor, center: Tensor, bits: int, symmetric: bool) -> Tensor:
    """Codes of the nearest points; a symmetric grid has as many above zero as below."""
    bottom, top = code_range(bits, signed=True)
    if symmetric:
        bottom = -top
    return ((x - center) / scale).round().clamp(bottom, top)


def _grids(
    groups: Tensor, bits: int, symmetric: bool, search: bool, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Grids of groups (..., group): of the whole range, or shrunk to the least squared error."""
    low, high = groups.amin(-1), groups.amax(-1)
    scale, center = _grid(low, high, bits, symmetric)
    if not search:
        return scale, center
    least = torch.full_like(scale, torch.inf)
    best = scale, center
    for step in range(20):
        t = 1 - 0.03 * step
        # Towards the middle of the range, or towards 0.
        middle = torch.zeros_like(low) if symmetric else (low + high) / 2
        s, c = _grid(middle + t * (low - middle), middle + t * (high - middle), bits, symmetric)
        codes = _nearest(groups, s[..., None], c[..., None], bits, symmetric)
        made = codes * s[..., None] + c[..., None]
        error = (made - groups).square()
        error = (error if weights is None else error * weights).sum(-1)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, s, best[0]), torch.where(better, c, best[1])
    return best


def _checked(W: Tensor, bits: int, group: int | None) -> int:
    check_shape("W", W, (None, None))
    check_floating("W", W)
    check_finite("W", W)
    check_count("bits", bits, low=2, high=8)
    if group is None:
        return W.shape[1]
    check_count("group", group)
    _by_group(W[:0], group)
    return group


def round_weights(
    W: Float[Tensor, "d_out d_in"],
    *,
    bits: int = 4,
    group: int | None = 32,
    symmetric: bool = False,
    search: bool = False,
    importance: Float[Tensor, " d_in"] | None = None,
) -> WeightCodes:
    r"""Round each weight to the nearest point of the grid of its group.

    Args:
        W: The weight.
        bits: From 2 to 8.
        group: Inputs of a row that share a grid; ``None`` for one grid a row.
        symmetric: Whether the grid has 0 in its middle. If not, it runs from the least to the
            largest weight of the group.
        search: Shrink each grid by up to 57 %, to where the squared error is least.
        importance: With ``search``, what the squared error of each input counts, for instance
            its mean square.

    Returns:
        The codes and their grids.

    Raises:
        ValueError: If the group does not divide the inputs, or a weight is not finite.

    Numerics:
        Step and center are rounded to bfloat16 first and the codes are chosen for those, so the
        rounding of the step costs next to nothing. The code :math:`-2^{b-1}` is used by asymmetric
        grids only.

    References:
        Groups: Dettmers and Zettlemoyer 2023, arXiv:2212.09720, sec. 3.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> W = torch.linspace(-1, 1, 16).view(1, 16)
        >>> made = round_weights(W, bits=4, group=16)
        >>> bool((made.values() - W).abs().max() < 0.01)
        True
    """
    group = _checked(W, bits, group)
    groups = _by_group(W, group)
    weights = None if importance is None else _by_group(importance, group)
    scale, center = _grids(groups, bits, symmetric, search, weights)
    codes = _nearest(groups, scale[..., None], center[..., None], bits, symmetric)
    return WeightCodes(
        codes.flatten(-2).to(torch.int8),
        scale.bfloat16(),
        None if symmetric else center.bfloat16(),
        bits,
    )


def gptq(
    W: Float[Tensor, "d_out d_in"],
    H: Float[Tensor, "d_in d_in"],
    *,
    bits: int = 4,
    group: int | None = 32,
    symmetric: bool = False,
    search: bool = False,
    damping: float = 0.01,
    block: int = 128,
) -> WeightCodes:
    r"""Round the columns one after the other, and let the later ones make up for each error.

    With :math:`H = 2X^\top X` of the inputs and :math:`H^{-1} = U^\top U`, :math:`U` upper
    triangular, column :math:`q` is rounded, and its error moves the columns after it by

    .. math:: \delta W_{:,q+1:} = -\frac{W_{:,q} - \hat W_{:,q}}{U_{qq}}\,U_{q,q+1:}

    which is the best that they can do (Optimal Brain Surgeon). The grid of a group is laid when its
    first column is reached, on the weights as they have become.

    Args:
        W: The weight.
        H: Of its inputs, from :func:`companion.efficiency.sparsity.input_hessian`; any multiple
            will do.
        bits: From 2 to 8.
        group: As in :func:`round_weights`.
        symmetric: As there.
        search: As there.
        damping: Added to the diagonal, as a share of its mean; raised where the factorization
            fails.
        block: Columns whose errors reach the rest of the matrix together, in one product. It
            changes the time and not the result, up to rounding.

    Returns:
        The codes and their grids.

    Raises:
        ValueError: As :func:`round_weights`, or if ``H`` does not fit.

    Numerics:
        One Cholesky factorization in float64 for all rows, then :math:`d_{out} d_{in}^2`
        multiplications and additions. An input that was always 0 gets the point of its grid that is
        nearest to 0. Columns go in their order: the paper's code offers the order of decreasing
        :math:`H_{qq}`, which needs a permutation of the inputs or of the groups at each call.

    References:
        Frantar et al. 2023, arXiv:2210.17323, algorithm 1. That it is Babai's nearest plane
        algorithm, run from the last axis to the first: Chen et al. 2025, arXiv:2507.18553.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> W = torch.tensor([[0.4, 0.4]])
        >>> H = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
        >>> made = gptq(W, H, bits=8, group=2, damping=0.0)
        >>> made.codes.dtype
        torch.int8
    """
    group = _checked(W, bits, group)
    check_count("block", block)
    check_shape("H", H, (W.shape[1], W.shape[1]))
    d_in = W.shape[1]
    W = wide(W).clone()
    U = inverse_factor(H, damping=damping).to(W.dtype)
    W[:, H.diagonal() == 0] = 0
    codes = torch.empty_like(W)
    scales, centers = [], []
    scale = center = W[:, :1]
    for first in range(0, d_in, block):
        last = min(first + block, d_in)
        errors = torch.empty_like(W[:, first:last])
        part, local = W[:, first:last], U[first:last, first:last]
        for j in range(last - first):
            q = first + j
            if q % group == 0:
                # Columns of the group beyond this block have not met its errors yet: they do now.
                ahead = W[:, q : q + group]
                if q + group > last:
                    rest = errors[:, :j] @ U[first:q, last : q + group]
                    ahead = torch.cat([ahead[:, : last - q], ahead[:, last - q :] - rest], 1)
                scale, center = _grids(ahead[:, None, :], bits, symmetric, search)
                scales.append(scale)
                centers.append(center)
            w = part[:, j : j + 1]
            code = _nearest(w, scale, center, bits, symmetric)
            codes[:, q : q + 1] = code
            error = (w - (code * scale + center)) / local[j, j]
            errors[:, j : j + 1] = error
            part[:, j + 1 :].addmm_(error, local[j : j + 1, j + 1 :], alpha=-1)
        W[:, last:].addmm_(errors, U[first:last, last:], alpha=-1)
    return WeightCodes(
        codes.to(torch.int8),
        torch.cat(scales, 1).bfloat16(),
        None if symmetric else torch.cat(centers, 1).bfloat16(),
        bits,
    )


def smooth_scales(
    activations: Float[Tensor, " d_in"], W: Float[Tensor, "d_out d_in"], *, strength: float = 0.5
) -> Float[Tensor, " d_in"]:
    r"""Compute what to divide each input by, and its weights to multiply by (SmoothQuant).

    .. math:: s_j = \frac{\max |X_j|^a}{\max |W_j|^{1-a}}, \qquad
        XW = \big(X \operatorname{diag}(s)^{-1}\big)\big(\operatorname{diag}(s)\,W\big)

    Args:
        activations: The largest magnitude of each input, on some texts.
        W: The weight of a linear layer; column :math:`j` here is the book's row :math:`W_j`.
        strength: :math:`a` in [0, 1]: how much of the outliers moves into the weights.

    Returns:
        :math:`s > 0`. An input or a column of zeros has the scale 1.

    Raises:
        ValueError: If shapes do not fit or the strength is out of range.

    References:
        Xiao et al. 2023, arXiv:2211.10438, eq. 4.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> smooth_scales(torch.tensor([16.0, 1.0]), torch.tensor([[0.25, 1.0]]))
        tensor([8., 1.])
    """
    check_shape("W", W, (None, None))
    check_shape("activations", activations, (W.shape[1],))
    check_in_range("strength", strength, low=0.0, high=1.0)
    columns = wide(W).abs().amax(0)
    scales = wide(activations) ** strength / columns ** (1 - strength)
    fine = (activations > 0) & (columns > 0)
    return torch.where(fine, scales, torch.ones_like(scales))


def awq_scales(
    W: Float[Tensor, "d_out d_in"],
    H: Float[Tensor, "d_in d_in"],
    *,
    bits: int = 4,
    group: int | None = 32,
    symmetric: bool = False,
    steps: int = 20,
) -> Float[Tensor, " d_in"]:
    r"""Find scales that protect the weights of large inputs (AWQ).

    The weight is rounded as :math:`\operatorname{diag}(s)\,W`, and the input divided by :math:`s`.
    Of :math:`s_j = (\mathbb E X_j^2)^{a/2}`, normalized, the :math:`a` in [0, 1) with the least
    squared error of the outputs is taken.

    Args:
        W: The weight.
        H: :math:`2X^\top X`, or any multiple.
        bits: As in :func:`round_weights`.
        group: As there.
        symmetric: As there.
        steps: How many values of :math:`a` are tried, from 0, which is no scaling.

    Returns:
        :math:`s > 0`, in float32 or better.

    Raises:
        ValueError: If shapes do not fit, or a number is out of range.

    Numerics:
        The error is the quadratic form of all of ``H``. The authors take the mean of
        :math:`|X_j|` for the root of the mean square, and the error of a whole block.

    References:
        Lin et al. 2024, arXiv:2306.00978, eq. 4 and 5.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> awq_scales(torch.tensor([[1.0, 2.0]]), torch.eye(2), group=2)
        tensor([1., 1.])
    """
    _checked(W, bits, group)
    check_shape("H", H, (W.shape[1], W.shape[1]))
    check_count("steps", steps)
    W, H = wide(W), wide(H).to(wide(W).dtype)
    size = H.diagonal().sqrt()
    size = torch.where(size > 0, size, size.amax().clamp(min=torch.finfo(size.dtype).tiny))
    size = size / (size.amax() * size.amin()).sqrt()
    least = torch.full((), torch.inf, device=W.device, dtype=W.dtype)
    best = torch.ones_like(size)
    for step in range(steps):
        scales = size ** (step / steps)
        scales = scales / (scales.amax() * scales.amin()).sqrt()
        made = round_weights(W * scales, bits=bits, group=group, symmetric=symmetric)
        change = made.values(W.dtype) / scales - W
        error = (change @ H * change).sum()
        best = torch.where(error < least, scales, best)
        least = torch.minimum(error, least)
    return best
