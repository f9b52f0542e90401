r"""Balls of allowed changes: the steepest step in each, the way back into it, and a random point.

An example is one entry of the first axis; its norm is taken over all other axes together.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_floating, check_in_range, rand, randn, wide

__all__ = ["NORMS", "dual_norm", "project", "random_in_ball", "steepest"]

#: Norms that bound a change: the sum of sizes, the length, the largest size.
NORMS: tuple[float, ...] = (1.0, 2.0, math.inf)


def check_norm(norm: float) -> None:
    """Require a norm that is known."""
    if norm not in NORMS:
        raise ValueError(f"norm must be 1, 2 or math.inf, got {norm}")


def check_examples(name: str, values: Tensor) -> None:
    """Require floating numbers with an axis of examples and one more."""
    check_floating(name, values)
    if values.dim() < 2:
        raise ValueError(
            f"{name} must have an axis of examples and one or more others, got the shape "
            f"{tuple(values.shape)}: give a single example as {name}[None]"
        )


def _column(values: Tensor, like: Tensor) -> Tensor:
    """One number an example, shaped so that it multiplies the examples."""
    return values.view(-1, *[1] * (like.dim() - 1))


def sizes(values: Tensor, norm: float) -> Tensor:
    """Norm of each example, of a size that neither underflows nor overflows on the way."""
    flat = values.flatten(1)
    largest = flat.abs().amax(1)
    if norm == math.inf:
        return largest
    scale = torch.where(largest > 0, largest, 1.0)
    length: Tensor = torch.linalg.vector_norm(flat / scale[:, None], ord=norm, dim=1)
    return length * scale


def dual_norm(norm: float) -> float:
    r"""Return the norm :math:`q` dual to :math:`p`, with :math:`1/p+1/q=1`.

    Args:
        norm: 1, 2 or infinity.

    Returns:
        Infinity, 2 or 1.

    Raises:
        ValueError: If the norm is another.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> dual_norm(math.inf)
        1.0
    """
    check_norm(norm)
    return {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[float(norm)]


def steepest(
    gradient: Float[Tensor, " batch *shape"], *, norm: float = math.inf
) -> Float[Tensor, " batch *shape"]:
    r"""Return the step of size 1 along which a linear function rises most.

    It attains :math:`\max_{\lVert\delta\rVert_p\le1}g\cdot\delta=\lVert g\rVert_q`, with
    :math:`1/p+1/q=1`: the signs for the largest size, :math:`g/\lVert g\rVert_2` for the length,
    and one coordinate for the sum of sizes, the one where :math:`\lvert g_i\rvert` is largest.

    Args:
        gradient: One gradient an example.
        norm: :math:`p`, which bounds the step: 1, 2 or infinity.

    Returns:
        Steps, each of norm 1, and 0 where a gradient is 0. Where one is not finite its example
        does not move (for the largest size: what is not a number has the step 0), so that a
        broken example changes no other.

    Raises:
        ValueError: If the norm is another, or there is no axis of examples.

    Numerics:
        A gradient is divided by its largest entry first. So its direction is found whatever its
        size; a safety constant in the denominator would shorten the steps of small gradients, and
        make a model look robust.

    References:
        Goodfellow, Shlens and Szegedy 2015, arXiv:1412.6572, sec. 4, for the signs.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> steepest(torch.tensor([[3.0, -4.0]]), norm=2)
        tensor([[ 0.6000, -0.8000]])
        >>> steepest(1e-30 * torch.tensor([[3.0, -4.0]]), norm=2)
        tensor([[ 0.6000, -0.8000]])
    """
    check_norm(norm)
    check_examples("gradient", gradient)
    if norm == math.inf:
        return gradient.sign().nan_to_num_(0.0)
    largest = gradient.flatten(1).abs().amax(1)
    usable = largest.isfinite() & (largest > 0)
    safe = torch.where(_column(usable, gradient), gradient, torch.zeros_like(gradient))
    unit = safe / _column(torch.where(usable, largest, 1.0), gradient)
    flat = unit.flatten(1)
    if norm == 2:
        length = torch.linalg.vector_norm(flat, dim=1)
        return unit / _column(torch.where(usable, length, 1.0), gradient)
    place = flat.abs().argmax(1, keepdim=True)
    step = torch.zeros_like(flat).scatter(1, place, flat.gather(1, place).sign())
    return step.view(gradient.shape)


def project(
    delta: Float[Tensor, " batch *shape"], *, eps: float, norm: float = math.inf
) -> Float[Tensor, " batch *shape"]:
    r"""Return the nearest point of the ball :math:`\lVert\delta\rVert_p\le\varepsilon`.

    Nearest by Euclidean distance: entries are cut for the largest size, the whole is shortened for
    the length, and for the sum of sizes all entries move toward 0 by one amount, those that arrive
    staying there.

    Args:
        delta: One change an example.
        eps: Radius :math:`\varepsilon`, 0 or above.
        norm: :math:`p`: 1, 2 or infinity.

    Returns:
        Changes inside of the ball, up to rounding; what is inside already stays as it is, bit for
        bit.

    Raises:
        ValueError: If the radius is negative, the norm another, or there is no axis of examples.

    Numerics:
        Sums are taken in float32 at least: in bfloat16 a running sum of ones stops at 256, and a
        change of many entries would be left far outside of the ball.

    References:
        Duchi et al. 2008, doi:10.1145/1390156.1390191, fig. 1, for the sum of sizes.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> project(torch.tensor([[3.0, -4.0]]), eps=1.0, norm=1)
        tensor([[ 0., -1.]])
    """
    check_norm(norm)
    check_in_range("eps", eps, low=0.0)
    check_examples("delta", delta)
    if norm == math.inf:
        return delta.clamp(-eps, eps)
    held = wide(delta)
    size = sizes(held, norm)
    outside = _column(size > eps, delta)
    if norm == 2:
        shorter = held * _column(eps / torch.where(size > 0, size, 1.0), delta)
        return torch.where(outside, shorter.to(delta.dtype), delta)
    flat = held.flatten(1)
    ordered = flat.abs().sort(dim=1, descending=True).values
    count = torch.arange(1, flat.shape[1] + 1, device=delta.device, dtype=held.dtype)
    excess = (ordered.cumsum(1) - eps) / count
    kept = (ordered > excess).sum(1, keepdim=True).clamp_min(1)
    cut = excess.gather(1, kept - 1)
    nearer = flat.sign() * (flat.abs() - cut).clamp_min(0)
    return torch.where(outside, nearer.view(delta.shape).to(delta.dtype), delta)


def random_in_ball(
    like: Float[Tensor, " batch *shape"],
    *,
    eps: float,
    norm: float = math.inf,
    generator: torch.Generator,
) -> Float[Tensor, " batch *shape"]:
    r"""Draw a point of the ball for each example, uniformly by volume.

    In :math:`d` dimensions a uniform point of a ball lies near its surface: the mean of
    :math:`\lVert\delta\rVert/\varepsilon` is :math:`d/(d+1)`. So the length is
    :math:`\varepsilon u^{1/d}` with a uniform :math:`u`, and not :math:`\varepsilon u`.

    Args:
        like: Examples, whose shape, device and dtype the draw takes.
        eps: Radius, 0 or above.
        norm: 1, 2 or infinity.
        generator: The source of randomness.

    Returns:
        Points inside of the ball.

    Raises:
        ValueError: If the radius is negative, the norm another, or there is no axis of examples.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> inside = random_in_ball(torch.zeros(1000, 9), eps=2.0, norm=2, generator=g)
        >>> round(float(inside.norm(dim=1).mean() / 2), 2)
        0.9
    """
    check_norm(norm)
    check_in_range("eps", eps, low=0.0)
    check_examples("like", like)
    count, width = like.flatten(1).shape
    there: dict[str, Any] = {"generator": generator, "device": like.device, "dtype": like.dtype}
    if norm == math.inf:
        return (eps * (2 * rand(count, width, **there) - 1)).view(like.shape)
    if norm == 2:
        normal = randn(count, width, **there)
        radius = rand(count, 1, **there) ** (1 / width)
        length = torch.linalg.vector_norm(normal, dim=1, keepdim=True)
        inside: Tensor = eps * radius * normal / length
        return inside.view(like.shape)
    # Shares of width + 1 exponential numbers are uniform on a simplex; signs fill the octants.
    shares = -torch.log1p(-rand(count, width + 1, **there))
    signs = torch.where(rand(count, width, **there) < 0.5, -1.0, 1.0).to(like.dtype)
    points = eps * signs * shares[:, :width] / shares.sum(1, keepdim=True)
    return points.view(like.shape)
