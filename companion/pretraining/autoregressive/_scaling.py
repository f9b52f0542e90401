r"""Scaling laws: the loss as a function of parameters and tokens, and the best use of a budget.

:math:`N` is the number of parameters, :math:`D` that of training tokens, and the cost of training
is :math:`C = 6ND` floating-point operations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_in_range, check_shape, randint

# Steps of a draw's fit; each shrinks what is left by a good part.
_REFIT_STEPS = 200

__all__ = [
    "BESIROGLU",
    "HOFFMANN",
    "ScalingFit",
    "ScalingLaw",
    "fit_scaling_law",
    "optimal_allocation",
    "scaling_objective",
]

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class ScalingLaw:
    r"""The loss of a model of :math:`N` parameters after :math:`D` tokens.

    .. math:: L(N, D) = E + \frac{A}{N^\alpha} + \frac{B}{D^\beta}

    Attributes:
        E: The loss that neither parameters nor tokens can remove, 0 or more.
        A: Factor of the term of parameters, above 0.
        B: Factor of the term of tokens, above 0.
        alpha: Exponent of parameters, above 0.
        beta: Exponent of tokens, above 0.

    References:
        Hoffmann et al. 2022, arXiv:2203.15556, eq. 2.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> round(BESIROGLU.loss(70e9, 1.4e12), 2)
        1.97
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        check_in_range("E", self.E, low=0.0, open_high=True)
        for name in ("A", "B", "alpha", "beta"):
            check_in_range(name, getattr(self, name), low=0.0, open_low=True, open_high=True)

    def loss(self, N: Number, D: Number) -> Number:
        """Return the loss.

        Args:
            N: Parameters.
            D: Tokens.

        Returns:
            The loss, in the unit of ``E``.
        """
        loss: Number = self.E + self.A / N**self.alpha + self.B / D**self.beta
        return loss


#: Hoffmann et al. 2022, arXiv:2203.15556, eq. 10, as printed, rounded.
HOFFMANN = ScalingLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)

#: Besiroglu et al. 2024, arXiv:2404.10102: the same data, fitted again.
BESIROGLU = ScalingLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)


def optimal_allocation(
    law: ScalingLaw, compute: float, *, cost: float = 6.0
) -> tuple[float, float]:
    r"""Split a budget of operations between parameters and tokens so that the loss is least.

    .. math::

        N^* = G \Big(\frac C6\Big)^{\frac{\beta}{\alpha + \beta}}, \qquad
        D^* = \frac1G \Big(\frac C6\Big)^{\frac{\alpha}{\alpha + \beta}}, \qquad
        G = \Big(\frac{\alpha A}{\beta B}\Big)^{\frac{1}{\alpha + \beta}}

    Args:
        law: The law.
        compute: The budget :math:`C` in operations, above 0.
        cost: Operations for each parameter and token; 6 by default.

    Returns:
        Parameters :math:`N^*` and tokens :math:`D^*`, not rounded.

    Raises:
        ValueError: If the budget or the cost is not above 0.

    References:
        Hoffmann et al. 2022, arXiv:2203.15556, eq. 4.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> N, D = optimal_allocation(BESIROGLU, 5.76e23)
        >>> print(f"{N / 1e9:.0f} B parameters, {D / 1e12:.2f} T tokens")
        72 B parameters, 1.33 T tokens
    """
    check_in_range("compute", compute, low=0.0, open_low=True, open_high=True)
    check_in_range("cost", cost, low=0.0, open_low=True, open_high=True)
    total = law.alpha + law.beta
    G = (law.alpha * law.A / (law.beta * law.B)) ** (1 / total)
    budget = compute / cost
    return G * budget ** (law.beta / total), budget ** (law.alpha / total) / G


@dataclass(frozen=True, eq=False)
class ScalingFit:
    """A fitted law, and how well the runs determine it.

    Attributes:
        law: The law of least loss.
        objective: The sum of Huber losses at it.
        draws: Laws fitted to the runs drawn again with replacement; their spread is the
            uncertainty of the fit.

    Book: :doc:`/book/pretraining/autoregressive`
    """

    law: ScalingLaw
    objective: float
    draws: tuple[ScalingLaw, ...] = ()

    def interval(self, name: str, *, level: float = 0.9) -> tuple[float, float]:
        """Return the middle part of the draws of one parameter.

        Args:
            name: ``"E"``, ``"A"``, ``"B"``, ``"alpha"`` or ``"beta"``.
            level: Share of the draws inside, in (0, 1).

        Returns:
            Its two ends.

        Raises:
            ValueError: If there are no draws, or the level is out of range.
        """
        check_in_range("level", level, low=0.0, high=1.0, open_low=True, open_high=True)
        if not self.draws:
            raise ValueError("there are no draws: fit with bootstrap=100")
        values = torch.tensor([getattr(law, name) for law in self.draws], dtype=torch.float64)
        low, high = values.quantile(
            torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        ).tolist()
        return low, high


def _log_loss(theta: Tensor, log_N: Tensor, log_D: Tensor) -> Tensor:
    """Log of the law, for theta = (e, a, b, alpha, beta) in the last axis."""
    e, a, b, alpha, beta = theta.unsqueeze(-2).unbind(-1)
    by_size, by_tokens = a - alpha * log_N, b - beta * log_D
    terms = torch.stack([e.expand_as(by_size), by_size, by_tokens], dim=-1)
    return terms.logsumexp(-1)


def scaling_objective(
    theta: Float[Tensor, "*batch 5"],
    N: Float[Tensor, " runs"],
    D: Float[Tensor, " runs"],
    loss: Float[Tensor, " runs"],
    *,
    delta: float = 1e-3,
) -> Float[Tensor, "*batch"]:
    r"""Sum the Huber losses of the differences of logarithms.

    .. math::

        \sum_i \mathrm{Huber}_\delta\Big(\mathrm{lse}\big(a - \alpha \log N_i,\;
        b - \beta \log D_i,\; e\big) - \log L_i\Big)

    where :math:`\mathrm{Huber}_\delta(r)` is :math:`\frac12 r^2` up to :math:`\delta` and
    :math:`\delta\,(|r| - \frac12 \delta)` from there on.

    Args:
        theta: :math:`(e, a, b, \alpha, \beta)`, with :math:`E = e^e` and so on.
        N: Parameters of each run.
        D: Tokens of each run.
        loss: Its loss.
        delta: Where the square ends.

    Returns:
        The sum over the runs.

    References:
        Hoffmann et al. 2022, arXiv:2203.15556, eq. 3. Besiroglu et al. (arXiv:2404.10102) found
        that the mean in place of the sum makes the optimizer stop too early.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> theta = torch.tensor([0.0, 1.0, 1.0, 0.5, 0.5], dtype=torch.float64)
        >>> one = torch.ones(3, dtype=torch.float64)
        >>> print(f"{scaling_objective(theta, one, one, (1 + 2 * torch.e) * one):.6f}")
        0.000000
    """
    residual = _log_loss(theta, N.log(), D.log()) - loss.log()
    size = residual.abs()
    return torch.where(size <= delta, residual**2 / 2, delta * (size - delta / 2)).sum(-1)


def fit_scaling_law(
    N: Float[Tensor, " runs"],
    D: Float[Tensor, " runs"],
    loss: Float[Tensor, " runs"],
    *,
    delta: float = 1e-3,
    starts: int = 8,
    bootstrap: int = 0,
    generator: torch.Generator | None = None,
) -> ScalingFit:
    r"""Fit the five numbers of a :class:`ScalingLaw` to runs.

    The objective is :func:`scaling_objective`. It is not convex, so L-BFGS starts from the best
    points of a grid, and the best end counts.

    Args:
        N: Parameters of each run, above 0.
        D: Tokens of each run, above 0.
        loss: Its loss, above 0.
        delta: Where the Huber loss turns from a square into a line. A small one makes outliers
            harmless.
        starts: Points of the grid that are tried.
        bootstrap: How often the runs are drawn again with replacement and fitted again.
        generator: The source of randomness, needed for ``bootstrap``.

    Returns:
        The law, the objective, and the draws.

    Raises:
        ValueError: If there are fewer than 6 runs, they have fewer than 3 sizes or 3 numbers of
            tokens, or a value is not above 0.

    Numerics:
        In float64 on the CPU, with the gradient by autograd. The draws are fitted all at once, by
        damped Gauss-Newton steps from the fit to all runs and from the best points of the grid.
        Where the runs determine a number badly, its
        draws show it; :math:`A` and :math:`\alpha` are strongly correlated, and so are :math:`B`
        and :math:`\beta`.

    References:
        Hoffmann et al. 2022, arXiv:2203.15556, sec. 3.3 and app. D.2, whose grid has 4500 points.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> law = ScalingLaw(E=1.5, A=30.0, B=60.0, alpha=0.4, beta=0.3)
        >>> sizes = torch.tensor([1e4, 1e5, 1e6], dtype=torch.float64)
        >>> N, D = (x.flatten() for x in torch.meshgrid(sizes, 30 * sizes, indexing="ij"))
        >>> fitted = fit_scaling_law(N, D, law.loss(N, D)).law
        >>> print(f"{fitted.E:.3f} {fitted.alpha:.3f} {fitted.beta:.3f}")
        1.500 0.400 0.300
    """
    check_in_range("delta", delta, low=0.0, open_low=True, open_high=True)
    check_count("starts", starts)
    check_count("bootstrap", bootstrap, low=0)
    check_shape("N", N, (None,))
    for name, values in (("N", N), ("D", D), ("loss", loss)):
        check_shape(name, values, (len(N),))
        if not bool((values > 0).all() & values.isfinite().all()):
            raise ValueError(f"{name} must be finite and above 0 for every run")
    check_count("runs", len(N), low=6)
    distinct = len(set(N.tolist())), len(set(D.tolist()))
    if min(distinct) < 3:
        raise ValueError(
            "the runs need at least 3 numbers of parameters and 3 of tokens, "
            f"got {distinct[0]} and {distinct[1]}"
        )
    if bootstrap and generator is None:
        raise ValueError("bootstrap needs a generator")
    N, D, loss = (x.detach().cpu().double() for x in (N, D, loss))
    # With sizes around their means the five numbers are nearly uncorrelated.
    n0, d0 = float(N.log().mean()), float(D.log().mean())
    runs = (N / math.exp(n0), D / math.exp(d0), loss)
    grid = _grid(loss)
    theta, value = _best(grid, runs, delta, starts)
    draws: tuple[ScalingLaw, ...] = ()
    if bootstrap:
        assert generator is not None
        chosen = randint(0, len(N), (bootstrap, len(N)), generator=generator).cpu()
        times = torch.nn.functional.one_hot(chosen, len(N)).sum(1).double()
        draws = tuple(_law(found, n0, d0) for found in _refit(theta, grid, runs, times, delta))
    return ScalingFit(_law(theta, n0, d0), value, draws)


def _grid(loss: Tensor) -> Tensor:
    """Starts in centered coordinates: shares of the loss, and exponents."""
    middle = float(loss.median())
    points = [
        (math.log(share * middle), math.log(a * middle), math.log(b * middle), alpha, beta)
        for share, a, b, alpha, beta in product(
            (0.2, 0.5, 0.8), (0.05, 0.2, 0.5), (0.05, 0.2, 0.5), (0.15, 0.4, 0.8), (0.15, 0.4, 0.8)
        )
    ]
    return torch.tensor(points, dtype=torch.float64)


def _best(grid: Tensor, runs: Sequence[Tensor], delta: float, starts: int) -> tuple[Tensor, float]:
    """The best end of L-BFGS from the best points of the grid."""
    values = scaling_objective(grid, *runs, delta=delta)
    ends = [_descend(grid[i], runs, delta) for i in values.argsort()[:starts].tolist()]
    return min(ends, key=lambda end: end[1])


def _descend(start: Tensor, runs: Sequence[Tensor], delta: float) -> tuple[Tensor, float]:
    theta = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=500,
        max_eval=1000,
        history_size=20,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )
    scale = 1 / delta**2  # so that the tolerances speak of sums of order one

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = scale * scaling_objective(theta, *runs, delta=delta)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        value = float(scaling_objective(theta, *runs, delta=delta))
    return theta.detach(), value if math.isfinite(value) else math.inf


def _refit(
    theta: Tensor, grid: Tensor, runs: Sequence[Tensor], times: Tensor, delta: float
) -> Tensor:
    """Fit all draws at once, each run counted as often as it was drawn.

    Damped Gauss-Newton steps on squares with the weights that make them Huber's loss. A draw
    starts at the fit to all runs and at the two best points of the grid.
    """
    N, D, loss = runs
    log_N, log_D, wanted = N.log(), D.log(), loss.log()

    def value(point: Tensor) -> tuple[Tensor, Tensor]:
        residual = _log_loss(point, log_N, log_D) - wanted
        size = residual.abs()
        huber = torch.where(size <= delta, residual**2 / 2, delta * (size - delta / 2))
        return residual, (times * huber).sum(-1)

    fits, best = theta.expand(len(times), 5), value(theta)[1]
    order = scaling_objective(grid, *runs, delta=delta).argsort()
    for start in (theta, grid[order[0]], grid[order[1]]):
        point = start.repeat(len(times), 1)
        residual, now = value(point)
        damping = torch.full_like(now, 1e-2)
        for _ in range(_REFIT_STEPS):
            e, a, b, alpha, beta = point.unsqueeze(-2).unbind(-1)
            terms = torch.stack(
                [e.expand_as(residual), a - alpha * log_N, b - beta * log_D], dim=-1
            ).softmax(-1)
            rest, by_size, by_tokens = terms.unbind(-1)
            J = torch.stack(
                [rest, by_size, by_tokens, -log_N * by_size, -log_D * by_tokens], dim=-1
            )
            weight = times * (delta / residual.abs().clamp_min(delta))
            H = J.mT @ (weight[..., None] * J)
            slope = J.mT @ (weight * residual)[..., None]
            damp = damping[:, None] * (H.diagonal(dim1=-2, dim2=-1) + 1e-9)
            trial = point - torch.linalg.solve(H + torch.diag_embed(damp), slope)[..., 0]
            tried, then = value(trial)
            better = then < now  # false for NaN, too
            point = torch.where(better[:, None], trial, point)
            residual = torch.where(better[:, None], tried, residual)
            now = torch.where(better, then, now)
            damping = (damping * torch.where(better, 1 / 3, 4.0)).clamp(1e-9, 1e9)
        fits = torch.where((now < best)[:, None], point, fits)
        best = torch.minimum(now, best)
    return fits


def _law(theta: Tensor, n0: float, d0: float) -> ScalingLaw:
    """Undo the centering."""
    e, a, b, alpha, beta = theta.tolist()
    # An exponent at or below 0 would say that size does harm: the runs cannot tell.
    alpha, beta = max(alpha, 1e-6), max(beta, 1e-6)
    A, B = math.exp(min(a + alpha * n0, 700.0)), math.exp(min(b + beta * d0, 700.0))
    return ScalingLaw(E=math.exp(e), A=A, B=B, alpha=alpha, beta=beta)
