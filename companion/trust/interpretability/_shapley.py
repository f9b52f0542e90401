"""Shapley values: what each player adds, averaged over all orders in which they may come."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import check_count, check_shape

__all__ = ["ShapleyEstimate", "Value", "sampled_shapley", "shapley"]

#: The worth of coalitions: ``True`` marks who is in; one row a coalition, one number a row.
Value = Callable[[Bool[Tensor, "coalitions players"]], Float[Tensor, " coalitions"]]


def worth(value: Value, coalitions: Tensor, batch_size: int) -> Tensor:
    """The worth of each coalition, in float64, some at a time."""
    found = []
    for some in torch.split(coalitions, batch_size):
        told = value(some)
        check_shape("what value returns", told, (len(some),))
        found.append(told.detach().double())
    return torch.cat(found)


def shapley(
    value: Value,
    players: int,
    *,
    batch_size: int = 1024,
    device: str | torch.device | None = None,
) -> Float[Tensor, " players"]:
    r"""Compute Shapley values from the worth of all coalitions.

    .. math:: \phi_i = \sum_{S \not\ni i} \frac{|S|!\,(n - |S| - 1)!}{n!}
        \big(v(S \cup \{i\}) - v(S)\big)

    Args:
        value: :math:`v`. What stands for an absent player is its choice: name it with the result.
        players: :math:`n`, at most 20.
        batch_size: Coalitions that ``value`` gets at once, at most.
        device: Where the coalitions are made.

    Returns:
        :math:`\phi`, float64. They sum to :math:`v` of all minus :math:`v` of nobody.

    Raises:
        ValueError: If there is no player or more than 20, or ``value`` does not return one number
            for each row.

    Numerics:
        :math:`2^n` values, once each.

    References:
        Shapley 1953, doi:10.1515/9781400881970-018.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> shapley(lambda s: (s[:, 0] & s[:, 1]).double(), 3)
        tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64)
    """
    check_count("players", players, high=20)
    check_count("batch_size", batch_size)
    number = torch.arange(2**players, device=device)
    coalitions = (number[:, None] >> torch.arange(players, device=device)) % 2 == 1
    v = worth(value, coalitions, batch_size)
    size = coalitions.sum(1)
    share = [
        math.factorial(s) * math.factorial(players - s - 1) / math.factorial(players)
        for s in range(players)
    ]
    weight = torch.tensor([*share, 0.0], dtype=v.dtype, device=v.device)
    found = []
    for i in range(players):
        without = number[~coalitions[:, i]]
        gain = v[without + 2**i] - v[without]
        found.append((weight[size[without]] * gain).sum())
    return torch.stack(found)


class ShapleyEstimate(NamedTuple):
    """Shapley values from sampled orders.

    Attributes:
        values: The means.
        stderr: Their standard errors, over independent draws; NaN with one draw.
        evaluations: How often a coalition was valued.
    """

    values: Float[Tensor, " players"]
    stderr: Float[Tensor, " players"]
    evaluations: int


def sampled_shapley(
    value: Value,
    players: int,
    *,
    orders: int,
    generator: torch.Generator,
    antithetic: bool = False,
    batch_size: int = 1024,
) -> ShapleyEstimate:
    r"""Estimate Shapley values from orders in which the players come in.

    .. math:: \hat\phi_i = \frac1M \sum_{m=1}^{M}
        \big(v(P_{\pi_m}(i) \cup \{i\}) - v(P_{\pi_m}(i))\big)

    :math:`P_\pi(i)` are those before :math:`i` in the order :math:`\pi`, drawn uniformly. The
    estimate is unbiased, and its sum is exact after each order.

    Args:
        value: As in :func:`shapley`.
        players: :math:`n`.
        orders: :math:`M`.
        generator: The source of randomness.
        antithetic: Take each order backwards as well. Then ``orders`` must be even, and the pairs
            are the independent draws.
        batch_size: Coalitions at once, at most.

    Returns:
        Means, standard errors and the number of valuations.

    Raises:
        ValueError: If a count is out of range, or ``value`` does not return one number a row.

    References:
        Castro, Gómez and Tejada 2009, doi:10.1016/j.cor.2008.04.004.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> sampled_shapley(lambda s: 3.0 * s[:, 1], 2, orders=4, generator=g).values
        tensor([0., 3.], dtype=torch.float64)
    """
    check_count("players", players)
    check_count("orders", orders)
    check_count("batch_size", batch_size)
    if antithetic and orders % 2:
        raise ValueError(f"antithetic orders come in pairs: give an even number, got {orders}")
    home = generator.device
    draws = orders // 2 if antithetic else orders
    pi = torch.rand(draws, players, generator=generator, device=home).argsort(1)
    if antithetic:
        pi = torch.stack([pi, pi.flip(1)], 1).view(orders, players)
    place = pi.argsort(1)
    # In row t of an order, the first t players are in.
    inside = place[:, None, :] < torch.arange(players + 1, device=home)[:, None]
    # Nobody and all are the same in each order.
    coalitions = torch.cat([inside[:1, [0, -1]].flatten(0, 1), inside[:, 1:-1].flatten(0, 1)])
    v = worth(value, coalitions, batch_size)
    ends = v[:2].expand(orders, 2)
    middle = v[2:].view(orders, players - 1)
    steps = torch.cat([ends[:, :1], middle, ends[:, 1:]], 1).diff(dim=1)
    gains = steps.gather(1, place.to(v.device))
    if antithetic:
        gains = gains.view(draws, 2, players).mean(1)
    stderr = gains.std(0) / math.sqrt(draws) if draws > 1 else torch.full_like(gains[0], torch.nan)
    return ShapleyEstimate(gains.mean(0), stderr, len(coalitions))
