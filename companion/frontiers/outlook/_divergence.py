r"""How far two laws are apart, in both directions at once."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import can_read, check_count, check_floating, check_in_range, check_same_shape

__all__ = ["Frontier", "divergence_frontier"]


class Frontier(NamedTuple):
    r"""Divergences of two laws from their mixtures.

    Attributes:
        quality: :math:`e^{-c\,\mathrm{KL}(Q \Vert R)}`: near 1 if :math:`Q` has no text that the
            mixture lacks.
        diversity: :math:`e^{-c\,\mathrm{KL}(P \Vert R)}`: the same of :math:`P`.
        area: Area under the curve: MAUVE, 1 for equal laws.
    """

    quality: Float[Tensor, " points"]
    diversity: Float[Tensor, " points"]
    area: Float[Tensor, ""]


def divergence_frontier(
    p: Float[Tensor, " outcomes"],
    q: Float[Tensor, " outcomes"],
    *,
    scale: float = 5.0,
    points: int = 99,
) -> Frontier:
    r"""Compute the divergence frontier of two laws, exactly.

    For mixtures :math:`R_\lambda = \lambda P + (1 - \lambda) Q` the points
    :math:`(e^{-c\,\mathrm{KL}(Q \Vert R_\lambda)}, e^{-c\,\mathrm{KL}(P \Vert R_\lambda)})`, and
    the area under their curve from (0, 1) to (1, 0).

    Args:
        p: Probabilities :math:`P`, of people's texts, say.
        q: Probabilities :math:`Q`, of a model's texts.
        scale: :math:`c`. The area depends on it: name it.
        points: How many :math:`\lambda`, evenly between 0 and 1, ends left out.

    Returns:
        The curve and its area, float64.

    Raises:
        ValueError: If the shapes differ, or p or q is no distribution.

    Numerics:
        Exact sums over outcomes, and trapezoids under the curve. For texts the published measure
        first sorts vectors of texts into clusters, which adds an error of its own.

    References:
        Pillutla et al. 2021, arXiv:2102.01454.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> p = torch.tensor([0.5, 0.5, 0.0])
        >>> round(float(divergence_frontier(p, p).area), 3)
        1.0
        >>> round(float(divergence_frontier(p, p.flip(0)).area), 3)
        0.092
    """
    check_floating("p", p)
    check_same_shape("p", p, "q", q)
    check_in_range("scale", scale, low=0.0, open_low=True, open_high=True)
    check_count("points", points)
    a, b = p.double(), q.double()
    for name, law in (("p", a), ("q", b)):
        if can_read(law) and not (bool((law >= 0).all()) and abs(float(law.sum()) - 1) < 1e-5):
            raise ValueError(f"{name} must be probabilities of sum 1: divide by the sum")
    lam = torch.arange(1, points + 1, dtype=torch.float64, device=a.device) / (points + 1)
    mixed = lam[:, None] * a + (1 - lam)[:, None] * b
    log_mixed = mixed.clamp_min(torch.finfo(torch.float64).tiny).log()

    def against(law: Tensor) -> Tensor:
        return torch.exp(-scale * (torch.special.xlogy(law, law) - law * log_mixed).sum(-1))

    x, y = against(b), against(a)  # as lambda grows, x falls and y rises
    zero, one = (torch.full((1,), v, dtype=torch.float64, device=a.device) for v in (0.0, 1.0))
    xs, ys = torch.cat([one, x, zero]), torch.cat([zero, y, one])
    return Frontier(x, y, torch.trapezoid(ys.flip(0), xs.flip(0)))
