"""Whether an explanation tells what the model does: erasure, ranks, and rationales."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import check_count, check_finite, check_in_range, check_same_shape, check_shape
from companion.trust.interpretability._shapley import Value, worth

__all__ = [
    "Erasure",
    "erasure",
    "kendall_tau",
    "random_erasure",
    "rationale_objective",
    "rationale_surrogate",
]


class Erasure(NamedTuple):
    r"""What is lost without the top inputs, and with them alone, each at several sizes.

    Attributes:
        ratios: Shares of inputs that were taken.
        comprehensiveness: :math:`v(N) - v(N \setminus r)`: higher is better.
        sufficiency: :math:`v(N) - v(r)`: lower is better.
    """

    ratios: Float[Tensor, " sizes"]
    comprehensiveness: Float[Tensor, "... sizes"]
    sufficiency: Float[Tensor, "... sizes"]


def _sizes(n: int, ratios: tuple[float, ...]) -> list[int]:
    for ratio in ratios:
        check_in_range("ratio", ratio, low=0.0, high=1.0)
    check_count("ratios", len(ratios))
    return [min(n, max(1, round(ratio * n))) if ratio else 0 for ratio in ratios]


def _erased(value: Value, order: Tensor, ratios: tuple[float, ...], batch_size: int) -> Erasure:
    """Curves for orders of inputs, (draws, n), the most important first."""
    draws, n = order.shape
    sizes = torch.tensor(_sizes(n, ratios), device=order.device)
    place = order.argsort(1)
    top = place[:, None, :] < sizes[:, None]
    everything = torch.ones(1, n, dtype=torch.bool, device=order.device)
    v = worth(value, torch.cat([everything, top.flatten(0, 1), ~top.flatten(0, 1)]), batch_size)
    only, without = v[1:].view(2, draws, len(ratios))
    at = torch.tensor(ratios, dtype=torch.float64, device=v.device)
    return Erasure(at, v[0] - without, v[0] - only)


def erasure(
    value: Value,
    scores: Float[Tensor, " n"],
    *,
    ratios: tuple[float, ...] = (0.1, 0.2, 0.5),
    batch_size: int = 64,
) -> Erasure:
    r"""Take the inputs with the largest scores away, and keep them alone.

    .. math:: \mathrm{comp}(r) = v(N) - v(N \setminus r), \qquad \mathrm{suff}(r) = v(N) - v(r)

    Args:
        value: Gives the score of the class that is explained when only the marked inputs are
            there, as in :func:`companion.trust.interpretability.shapley`. Whether the others are
            deleted, masked or padded is its choice: name it with the result.
        scores: Attributions; the largest are taken first. Take absolute values before if signs
            do not count.
        ratios: Sizes of :math:`r` as shares of the inputs; at least one input unless 0.
        batch_size: Inputs at once, at most.

    Returns:
        Both curves. Their means over the ratios are the area numbers (AOPC) of ERASER.

    Raises:
        ValueError: If the scores are not finite, a share is out of range, or ``value`` does not
            return one number a row.

    Numerics:
        Equal scores are taken in the order of the inputs. Compare with :func:`random_erasure` at
        the same ratios: erasing anything changes most models.

    References:
        DeYoung et al. 2020, arXiv:1911.03429, eq. (1) and (2).

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> linear = lambda keep: keep.double() @ torch.tensor([1.0, 3.0]).double()
        >>> erasure(linear, torch.tensor([0.1, 0.9]), ratios=(0.5,)).comprehensiveness
        tensor([3.], dtype=torch.float64)
    """
    check_shape("scores", scores, (None,))
    check_count("inputs", len(scores))
    check_finite("scores", scores)
    check_count("batch_size", batch_size)
    order = scores.detach().argsort(descending=True, stable=True)[None]
    found = _erased(value, order, tuple(ratios), batch_size)
    return Erasure(found.ratios, found.comprehensiveness[0], found.sufficiency[0])


def random_erasure(
    value: Value,
    inputs: int,
    *,
    draws: int,
    generator: torch.Generator,
    ratios: tuple[float, ...] = (0.1, 0.2, 0.5),
    batch_size: int = 64,
) -> Erasure:
    """Do the same in random orders: what erasure does without any explanation.

    Args:
        value: As in :func:`erasure`.
        inputs: How many inputs there are.
        draws: How many orders.
        generator: The source of randomness.
        ratios: As in :func:`erasure`.
        batch_size: As there.

    Returns:
        Both curves for each order, (draws, sizes).

    Raises:
        ValueError: If a count or share is out of range.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> alike = lambda keep: keep.double().sum(1)
        >>> random_erasure(alike, 4, draws=2, ratios=(0.5,), generator=g).comprehensiveness
        tensor([[2.],
                [2.]], dtype=torch.float64)
    """
    check_count("inputs", inputs)
    check_count("draws", draws)
    check_count("batch_size", batch_size)
    order = torch.rand(draws, inputs, generator=generator, device=generator.device).argsort(1)
    return _erased(value, order, tuple(ratios), batch_size)


def kendall_tau(
    x: Float[Tensor, "*batch n"], y: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch"]:
    r"""Compare two rankings of the same inputs.

    .. math:: \tau_b = \frac{\sum_{i<j} \mathrm{sign}(x_i - x_j)\,\mathrm{sign}(y_i - y_j)}
        {\sqrt{|\{i<j: x_i \ne x_j\}| \cdot |\{i<j: y_i \ne y_j\}|}}

    Args:
        x: Scores.
        y: Other scores.

    Returns:
        From -1 to 1, float64; NaN where all entries of one side are equal, or one is NaN.

    Raises:
        ValueError: If the shapes differ.

    Numerics:
        :math:`n^2` comparisons, held at once.

    References:
        Kendall 1945, doi:10.1093/biomet/33.3.239.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> kendall_tau(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0]))
        tensor(0.3333, dtype=torch.float64)
    """
    check_same_shape("x", x, "y", y)
    a, b = _order(x), _order(y)
    pairs = (a.square().sum((-2, -1)) * b.square().sum((-2, -1))).sqrt()
    tau = (a * b).sum((-2, -1)) / pairs
    return tau.masked_fill((x.isnan() | y.isnan()).any(-1), torch.nan)


def _order(x: Tensor) -> Tensor:
    """Which of two entries is larger: 1, -1 or 0; a difference would fail for infinities."""
    first, second = x[..., :, None], x[..., None, :]
    return (first > second).double() - (first < second).double()


def rationale_objective(
    log_prob: Float[Tensor, "*batch"], kept: Bool[Tensor, "*batch n"], *, price: float
) -> Float[Tensor, "*batch"]:
    r"""Weigh what a rationale predicts against how long it is.

    .. math:: J(z) = \ln p(y \mid x \odot z) - \lambda \lVert z \rVert_0

    Args:
        log_prob: :math:`\ln p(y \mid x \odot z)`, of a classifier that sees the kept inputs alone.
        kept: :math:`z`.
        price: :math:`\lambda`, 0 or more, in nats for each input.

    Returns:
        :math:`J`, in nats.

    Raises:
        ValueError: If the shapes do not fit, or the price is below 0.

    References:
        Lei, Barzilay and Jaakkola 2016, arXiv:1606.04155, without the term for
        neighboring words.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> rationale_objective(torch.tensor([-0.5]), torch.tensor([[True, False]]), price=0.1)
        tensor([-0.6000])
    """
    check_in_range("price", price, low=0.0, open_high=True)
    check_shape("log_prob", log_prob, tuple(kept.shape[:-1]))
    return log_prob - price * kept.sum(-1)


def rationale_surrogate(
    logits: Float[Tensor, "*batch n"],
    kept: Bool[Tensor, "*batch n"],
    objective: Float[Tensor, "*batch"],
    *,
    baseline: float = 0.0,
) -> Float[Tensor, "*batch"]:
    r"""Return what has, on average, the gradient of the expected objective (REINFORCE).

    .. math:: \big(J(z) - c\big) \sum_i \ln g_i(z_i), \qquad z_i \sim g_i

    Args:
        logits: Log-odds of each :math:`g_i`, the probability that input :math:`i` is kept.
        kept: Drawn from them.
        objective: :math:`J(z)`; no gradient goes into it here, so add :math:`J` itself for the
            classifier's own.
        baseline: :math:`c`, any number that does not depend on the draw; it lowers the variance.

    Returns:
        One number for each draw, to be maximized.

    Raises:
        ValueError: If the shapes do not fit.

    References:
        Williams 1992, doi:10.1007/BF00992696; Lei, Barzilay and Jaakkola 2016, arXiv:1606.04155.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> rationale_surrogate(torch.zeros(1, 2), torch.tensor([[True, False]]), torch.ones(1))
        tensor([-1.3863])
    """
    check_same_shape("logits", logits, "kept", kept)
    check_shape("objective", objective, tuple(kept.shape[:-1]))
    signed = torch.where(kept, logits, -logits)
    log_g = torch.nn.functional.logsigmoid(signed).sum(-1)
    return (objective.detach() - baseline) * log_g
