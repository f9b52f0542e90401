"""Attributions by gradients: saliency, gradient times input, integrated gradients, relevance."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.core import (
    check_count,
    check_finite,
    check_floating,
    check_in_range,
    check_same_shape,
    check_shape,
    wide_dtype,
)

__all__ = [
    "PathAttribution",
    "gauss_legendre",
    "gradient_times_input",
    "integrated_gradients",
    "layer_relevance",
    "saliency",
]

#: What is explained: a number for each of several inputs, which do not see each other.
Score = Callable[[Tensor], Tensor]


def _gradient(f: Score, points: Tensor) -> Tensor:
    """The gradient at each of several points, and nothing else touched."""
    with torch.enable_grad():
        free = points.detach().requires_grad_()
        told = f(free)
        check_shape("what f returns", told, (len(points),))
        if not told.requires_grad:
            return torch.zeros_like(points)
        (slope,) = torch.autograd.grad(told.sum(), free, materialize_grads=True)
    return slope


def saliency(f: Score, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
    r"""Return how strongly the score answers to a small change of each input.

    .. math:: \left| \frac{\partial f(x)}{\partial x_i} \right|

    Args:
        f: Gives one number for each row, from that row alone.
        x: Inputs.

    Returns:
        Absolute gradients, of the shape of the inputs.

    Raises:
        ValueError: If the input is not floating, or ``f`` does not return one number a row.

    References:
        Simonyan, Vedaldi and Zisserman 2014, arXiv:1312.6034.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> saliency(lambda x: -3 * x[:, 0], torch.ones(1, 2))
        tensor([[3., 0.]])
    """
    check_floating("x", x)
    return _gradient(f, x).abs()


def gradient_times_input(
    f: Score, x: Float[Tensor, "batch ..."], *, baseline: Float[Tensor, "..."] | None = None
) -> Float[Tensor, "batch ..."]:
    r"""Return the first-order guess of what each input adds to the score.

    .. math:: (x_i - x_i')\,\frac{\partial f(x)}{\partial x_i}

    Args:
        f: As in :func:`saliency`.
        x: Inputs.
        baseline: :math:`x'`, broadcast to the inputs; zero by default.

    Returns:
        Attributions, with signs.

    Raises:
        ValueError: As :func:`saliency`, or if the baseline does not broadcast.

    References:
        Shrikumar et al. 2016, arXiv:1605.01713, with a baseline of zero.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> gradient_times_input(lambda x: x[:, 0] * x[:, 1], torch.tensor([[2.0, 5.0]]))
        tensor([[10., 10.]])
    """
    check_floating("x", x)
    moved = x.detach() if baseline is None else x.detach() - _like(baseline, x)
    return moved * _gradient(f, x)


def _like(baseline: Tensor, x: Tensor) -> Tensor:
    try:
        return baseline.detach().to(x).expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"the baseline's shape {tuple(baseline.shape)} does not broadcast to {tuple(x.shape)}"
        ) from None


def gauss_legendre(
    nodes: int, *, device: str | torch.device | None = None
) -> tuple[Float[Tensor, " nodes"], Float[Tensor, " nodes"]]:
    r"""Return nodes and weights of Gauss and Legendre on the interval from 0 to 1.

    .. math:: \int_0^1 g(\alpha)\,d\alpha \approx \sum_k w_k\, g(\alpha_k)

    exact for polynomials :math:`g` of degree :math:`2m - 1` with :math:`m` nodes.

    Args:
        nodes: Number :math:`m` of nodes.
        device: Where they are put.

    Returns:
        Nodes in (0, 1), ascending, and weights that sum to one, float64.

    Raises:
        ValueError: If there is no node.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> places, w = gauss_legendre(2)
        >>> round(float((w * places**3).sum()), 12)
        0.25
    """
    import numpy as np

    check_count("nodes", nodes)
    places, w = np.polynomial.legendre.leggauss(nodes)
    made = torch.from_numpy(np.stack([(places + 1) / 2, w / 2])).to(device)
    return made[0], made[1]


class PathAttribution(NamedTuple):
    """Integrated gradients with their own error.

    Attributes:
        values: Attributions, of the shape of the input.
        error: The sum of the attributions minus the change of the score from the baseline to the
            input: what completeness leaves over, in the unit of the score.
        gradients: At how many points the gradient was taken.
    """

    values: Float[Tensor, "..."]
    error: float
    gradients: int


def integrated_gradients(
    f: Score,
    x: Float[Tensor, "..."],
    baseline: Float[Tensor, "..."] | None = None,
    *,
    steps: int | None = None,
    tolerance: float | None = None,
    nodes: int = 5,
    most: int = 2000,
    batch_size: int = 64,
) -> PathAttribution:
    r"""Attribute a score to its inputs along the straight line from a baseline.

    .. math:: \mathrm{IG}_i = (x_i - x_i') \int_0^1
        \frac{\partial f}{\partial x_i}\big(x' + \alpha (x - x')\big)\, d\alpha

    With ``steps`` the integral is taken by Gauss and Legendre at that many points. With
    ``tolerance`` the line is halved where it has to be: on each piece the gradients must add up to
    the difference of the scores at its ends, which is known exactly, so that completeness is the
    rule for stopping.

    Args:
        f: Gives one number for each of several inputs stacked along the first axis, from that row
            alone. What it explains must stay the same along the line: fix the class first.
        x: One input, without a batch axis.
        baseline: :math:`x'`, what stands for nothing; zero by default. Name it with the result.
        steps: Number of points. Give either this or a tolerance.
        tolerance: Largest sum of the absolute errors of all pieces, in the unit of the score.
        nodes: Points on each piece, with a tolerance.
        most: Most gradients, with a tolerance.
        batch_size: Points that ``f`` gets at once, at most.

    Returns:
        Attributions, their completeness error, and the number of gradients.

    Raises:
        ValueError: If neither or both of ``steps`` and ``tolerance`` are given, shapes do not fit,
            or the input is not finite.
        RuntimeError: If the tolerance is not reached with ``most`` gradients; the error is named.
            With a tolerance also if the score or a gradient on the way is not finite.

    Numerics:
        Sums in float64. That errors of single inputs cancel in the sum is possible: the tolerance
        bounds the error of completeness, not of each entry. In float32, errors below about
        :math:`10^{-6}` of the score are rounding.

    References:
        Sundararajan, Taly and Yan 2017, arXiv:1703.01365, eq. (1) and proposition 1.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> square = lambda x: (x**2).sum(-1)
        >>> integrated_gradients(square, torch.tensor([3.0, 4.0]), steps=1).values
        tensor([ 9., 16.])
    """
    check_floating("x", x)
    check_finite("x", x)
    if (steps is None) == (tolerance is None):
        raise ValueError("give steps or tolerance: one of the two")
    check_count("batch_size", batch_size)
    x = x.detach()
    start = torch.zeros_like(x) if baseline is None else _like(baseline, x).clone()
    check_finite("baseline", start)
    line = _Line(f, start, x - start, batch_size)
    if steps is not None:
        check_count("steps", steps)
        one = torch.tensor([0.0, 1.0], dtype=torch.float64, device=x.device)
        ends = line.scores(one)
        total = line.pieces(one[:1], one[1:], steps)[0]
        error = float(line.along(total) - (ends[1] - ends[0]))
        return PathAttribution((total * line.step).to(x.dtype), error, steps)
    assert tolerance is not None
    check_in_range("tolerance", tolerance, low=0.0, open_low=True, open_high=True)
    check_count("nodes", nodes)
    check_count("most", most, low=nodes)
    return _adaptive(line, tolerance, nodes, most)


class _Line:
    """The way from the baseline to the input."""

    def __init__(self, f: Score, start: Tensor, step: Tensor, batch_size: int) -> None:
        self.f, self.start, self.step, self.batch_size = f, start, step.double(), batch_size

    def points(self, alpha: Tensor) -> Tensor:
        shaped = alpha.view(-1, *[1] * self.start.ndim)
        return (self.start.double() + shaped * self.step).to(self.start.dtype)

    def scores(self, alpha: Tensor) -> Tensor:
        """The score at some places, in float64."""
        found = []
        with torch.no_grad():
            for some in torch.split(alpha, self.batch_size):
                told = self.f(self.points(some))
                check_shape("what f returns", told, (len(some),))
                found.append(told.double())
        return torch.cat(found)

    def pieces(self, low: Tensor, high: Tensor, nodes: int) -> Tensor:
        """The integral of the gradient over each piece, (pieces, ...)."""
        places, w = gauss_legendre(nodes, device=low.device)
        width = high - low
        alpha = (low[:, None] + width[:, None] * places).flatten()
        slopes = [_gradient(self.f, self.points(s)) for s in torch.split(alpha, self.batch_size)]
        shape = (len(low), nodes, *self.start.shape)
        weight = (width[:, None] * w).view(len(low), nodes, *[1] * self.start.ndim)
        return (weight * torch.cat(slopes).double().view(shape)).sum(1)

    def along(self, integral: Tensor) -> Tensor:
        """What integrated gradients add up to."""
        return (integral * self.step).flatten(integral.ndim - self.step.ndim).sum(-1)


def _adaptive(line: _Line, tolerance: float, nodes: int, most: int) -> PathAttribution:
    """Halve the worst pieces until the errors of all add up to no more than the tolerance."""
    edges = torch.tensor([0.0, 1.0], dtype=torch.float64, device=line.start.device)
    low, high = edges[:1], edges[1:]
    score_low, score_high = line.scores(edges).tensor_split(2)
    integral = line.pieces(low, high, nodes)
    used = nodes
    while True:
        error = line.along(integral) - (score_high - score_low)
        worst = float(error.abs().sum())
        if worst <= tolerance:
            values = (integral.sum(0) * line.step).to(line.start.dtype)
            return PathAttribution(values, float(error.sum()), used)
        # Those that could stay leave half of what is allowed to the others.
        ranked = error.abs().sort()
        keep = ranked.indices[ranked.values.cumsum(0) <= tolerance / 2]
        halve = torch.ones(len(low), dtype=torch.bool, device=low.device)
        halve[keep] = False
        used += 2 * nodes * int(halve.sum())
        if not worst < float("inf"):
            raise RuntimeError("the score or its gradient is not finite somewhere on the way")
        if used > most:
            raise RuntimeError(
                f"the completeness error is still {worst:.2e}: allow more gradients than {most}, "
                "or a larger tolerance"
            )
        middle = (low[halve] + high[halve]) / 2
        score_middle = line.scores(middle)
        new_low, new_high = torch.cat([low[halve], middle]), torch.cat([middle, high[halve]])
        made = line.pieces(new_low, new_high, nodes)
        integral = torch.cat([integral[~halve], made])
        score_low, score_high = (
            torch.cat([score_low[~halve], score_low[halve], score_middle]),
            torch.cat([score_high[~halve], score_middle, score_high[halve]]),
        )
        low = torch.cat([low[~halve], new_low])
        high = torch.cat([high[~halve], new_high])


def layer_relevance(
    layers: nn.Sequential | Sequence[nn.Module],
    x: Float[Tensor, "batch inputs"],
    relevance: Float[Tensor, "batch outputs"],
    *,
    eps: float = 1e-9,
) -> list[Float[Tensor, "batch width"]]:
    r"""Pass the relevance of outputs back to the inputs, layer by layer (LRP, rule epsilon).

    .. math:: R_j = \sum_k \frac{h_j W_{jk}}{z_k + \epsilon\,\mathrm{sign}(z_k)}\, R_k,
        \qquad z_k = \sum_j h_j W_{jk} + b_k

    Args:
        layers: Linear layers and ReLUs, in order; a ReLU hands relevance on as it is.
        x: Inputs :math:`h` of the first layer.
        relevance: What is to be explained: for one class, its logit at its place and 0 elsewhere.
        eps: :math:`\epsilon`, above 0; larger values give less to weak inputs.

    Returns:
        The relevance at the input of each layer, the first layer's first. Their sums differ by
        what biases and :math:`\epsilon` take.

    Raises:
        ValueError: If a layer is of another kind, shapes do not fit, or ``eps`` is not above 0.

    Numerics:
        :math:`\mathrm{sign}(0) = 1`. For layers without biases, and :math:`\epsilon\to0`, this is
        :func:`gradient_times_input`.

    References:
        Bach et al. 2015, doi:10.1371/journal.pone.0130140.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, -2.0]]))
        >>> layer_relevance([layer], torch.tensor([[3.0, 1.0]]), torch.ones(1, 1))[0].round()
        tensor([[ 3., -2.]])
    """
    check_in_range("eps", eps, low=0.0, open_low=True, open_high=True)
    parts = list(layers)
    check_count("layers", len(parts))
    inputs: list[Tensor] = []
    h = x.detach()
    with torch.no_grad():
        for part in parts:
            if not isinstance(part, nn.Linear | nn.ReLU):
                raise ValueError(
                    f"layers must be nn.Linear or nn.ReLU, got {type(part).__name__}: other layers "
                    "need rules of their own"
                )
            if isinstance(part, nn.Linear):
                check_shape(f"the input of layer {len(inputs) + 1}", h, (len(x), part.in_features))
            inputs.append(h)
            h = part(h)
        check_same_shape("the outputs", h, "relevance", relevance)
        high = wide_dtype(h.dtype)  # in half precision epsilon would be 0
        R = relevance.detach().to(h.device, high)
        found = []
        for part, h in zip(reversed(parts), reversed(inputs), strict=True):
            if isinstance(part, nn.Linear):
                z = part(h).to(high)
                z = z + eps * torch.where(z < 0, -1.0, 1.0).to(z)
                R = h.to(high) * ((R / z) @ part.weight.to(high))
            found.append(R.to(h.dtype))
    return found[::-1]
