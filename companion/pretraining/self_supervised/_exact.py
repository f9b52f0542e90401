"""Expectations over batches of a finite model, exactly: nothing is sampled."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_floating, wide
from companion.foundations.embeddings import pmi
from companion.pretraining.self_supervised._checks import check_joint

__all__ = ["batch_expectation", "chi_squared", "expected_info_nce"]

# Above this many batches or counts the enumeration would fill the memory of a laptop.
_MOST = 4_000_000


def chi_squared(joint: Float[Tensor, "x y"]) -> Float[Tensor, ""]:
    r"""Return the chi-squared divergence of a joint distribution from the product of its margins.

    .. math:: \chi^2 = \sum_{x,y} \frac{p(x, y)^2}{p(x)\, p(y)} - 1

    It is the variance of :math:`r = p(y \mid x) / p(y)` over independent pairs. The bias of
    :func:`mi_info_nce` with the best critic is :math:`\chi^2 / 2N` to first order, and the variance
    of the second term of :func:`mi_nwj` is :math:`\chi^2` over the number of independent pairs.

    Args:
        joint: Probabilities :math:`p(x, y)`.

    Returns:
        0, for independent variables, or more; at least :math:`e^I - 1`.

    Raises:
        ValueError: If the table is no joint distribution, or a row or column is empty.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> chi_squared(torch.tensor([[0.5, 0.0], [0.0, 0.5]], dtype=torch.float64))
        tensor(1., dtype=torch.float64)
    """
    check_joint(joint)
    p = wide(joint)
    return (p * pmi(p).exp()).sum() - 1


def batch_expectation(
    estimator: Callable[[Tensor], Tensor],
    scores: Float[Tensor, "x y"],
    *,
    joint: Float[Tensor, "x y"],
    size: int,
) -> Float[Tensor, ""]:
    """Return the expectation of an estimator over batches, by going through every batch.

    Args:
        estimator: Maps score matrices of shape ``(batches, size, size)``, pairs on the diagonal,
            to one number each, such as :func:`mi_info_nce`.
        scores: The critic, a table of :math:`f(x, y)`.
        joint: Probabilities :math:`p(x, y)` of the same shape.
        size: Pairs in a batch. The number of batches is the number of cells of the table to this
            power.

    Returns:
        The expectation. Gradients flow into the scores.

    Raises:
        ValueError: If the table does not fit, or there are more than four million batches.

    Book: :doc:`/book/pretraining/self_supervised`
    """
    _check_table(scores, joint)
    check_count("size", size)
    cells = joint.numel()
    if size * math.log(cells) > math.log(_MOST):
        raise ValueError(f"{cells} cells and batches of {size} are more than {_MOST:,} batches")
    batch = torch.cartesian_prod(*[torch.arange(cells, device=joint.device)] * size)
    batch = batch.view(-1, size)
    x, y = batch // joint.shape[1], batch % joint.shape[1]
    weight = joint.flatten()[batch].prod(1)
    return (weight * estimator(scores[x[:, :, None], y[:, None, :]])).sum()


def expected_info_nce(
    scores: Float[Tensor, "x y"], *, joint: Float[Tensor, "x y"], size: int
) -> Float[Tensor, ""]:
    r"""Return the expectation of :func:`mi_info_nce` over batches, for batches of any size.

    The negatives of a pair matter only through how many of them take each value of :math:`Y`, and
    these counts are multinomial. So a sum over counts replaces that over batches.

    Args:
        scores: The critic, a table of :math:`f(x, y)` in nats.
        joint: Probabilities :math:`p(x, y)` of the same shape.
        size: Pairs in a batch, :math:`N`.

    Returns:
        The expectation in nats.

    Raises:
        ValueError: If the table does not fit, or there are more than four million counts, which
            number :math:`\binom{N + K - 2}{K - 1}` for :math:`K` values of :math:`Y`.

    Numerics:
        In float64 whatever the inputs are, since the small difference from a limit is what such a
        number is good for.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> joint = torch.tensor([[0.5, 0.0], [0.0, 0.5]], dtype=torch.float64)
        >>> expected_info_nce(joint.log(), joint=joint, size=1)
        tensor(0., dtype=torch.float64)
    """
    _check_table(scores, joint)
    check_count("size", size)
    p, f = joint.double(), scores.double()
    values = p.shape[1]
    if math.comb(size + values - 2, values - 1) > _MOST:
        raise ValueError(f"batches of {size} with {values} values of Y have too many counts")
    counts = _counts(size - 1, values, p.device)  # (counts, y)
    log_choices = math.lgamma(size) - torch.lgamma(counts + 1).sum(1)
    weight = torch.exp(log_choices + torch.xlogy(counts, p.sum(0)).sum(1))
    shift = f.amax(1, keepdim=True)
    e = torch.exp(f - shift)
    negatives = e @ counts.T  # (x, counts)
    mean_log = ((e[:, :, None] + negatives[:, None, :]) / size).log() @ weight
    gain = f - shift - mean_log
    return (p * gain.masked_fill(p == 0, 0.0)).sum()


def _counts(total: int, values: int, device: torch.device) -> Tensor:
    """All ways to write a total as an ordered sum of that many counts, as rows."""
    rows = torch.full((1, 1), float(total), dtype=torch.float64, device=device)
    for _ in range(values - 1):  # split what is left, the last column, into a count and a rest
        left = rows[:, -1].long()
        repeats = left + 1
        kept = rows[:, :-1].repeat_interleave(repeats, 0)
        starts = (repeats.cumsum(0) - repeats).repeat_interleave(repeats)
        taken = torch.arange(int(repeats.sum()), device=device) - starts
        rest = left.repeat_interleave(repeats) - taken
        rows = torch.cat([kept, taken[:, None].double(), rest[:, None].double()], 1)
    return rows


def _check_table(scores: Tensor, joint: Tensor) -> None:
    check_floating("scores", scores)
    check_joint(joint)
    if scores.shape != joint.shape:
        raise ValueError(
            f"scores must be a table like joint, got {tuple(scores.shape)} and {tuple(joint.shape)}"
        )
