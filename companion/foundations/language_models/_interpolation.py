r"""Mixtures of language models, with weights found by expectation maximization (EM)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.core import check_count, check_floating, check_shape
from companion.foundations.language_models._counts import NGramCounts, find
from companion.foundations.language_models._ngram import NGramModel

__all__ = [
    "JelinekMercerFit",
    "MixtureFit",
    "em_step",
    "fit_mixture",
    "jelinek_mercer",
]


@dataclass(frozen=True, eq=False)
class MixtureFit:
    """Weights of a mixture and how they were found.

    Attributes:
        weights: One weight for each model, summing to 1.
        log_likelihood: Mean log-probability of the held-out text in nats before every step and
            after the last one. It never falls.
    """

    weights: Float[Tensor, " models"]
    log_likelihood: Float[Tensor, " steps"]


def em_step(
    probs: Float[Tensor, "token models"], weights: Float[Tensor, " models"]
) -> Float[Tensor, " models"]:
    r"""Improve the weights of a mixture by one step of EM.

    .. math:: \lambda_j \leftarrow \frac1N \sum_{i=1}^N
        \frac{\lambda_j P_j(w_i)}{\sum_l \lambda_l P_l(w_i)}

    Args:
        probs: Probability that each model gives to each token of a held-out text.
        weights: The weights :math:`\lambda`, positive, summing to 1.

    Returns:
        New weights, summing to 1, under which the text is at least as likely.

    Raises:
        ValueError: If the shapes do not fit, or the dtype is not floating.

    References:
        A. P. Dempster, N. M. Laird and D. B. Rubin, doi:10.1111/j.2517-6161.1977.tb01600.x.

    Book: :doc:`/book/foundations/language_models`

    Example:
        >>> em_step(torch.tensor([[0.6, 0.2], [0.1, 0.3]]), torch.tensor([0.5, 0.5]))
        tensor([0.5000, 0.5000])
    """
    check_floating("probs", probs)
    check_shape("weights", weights, (probs.shape[1],))
    joint = probs * weights
    return (joint / joint.sum(1, keepdim=True)).mean(0)


def fit_mixture(probs: Float[Tensor, "token models"], *, steps: int = 50) -> MixtureFit:
    r"""Find the weights under which a mixture of models makes a held-out text most likely.

    The likelihood is concave in the weights, so EM reaches the one maximum from equal weights.

    Args:
        probs: Probability that each model gives to each token. The text must not be one that the
            models were trained on: they would look better than they are.
        steps: Number of EM steps, 1 or more.

    Returns:
        The weights, and the likelihood on the way.

    Raises:
        ValueError: If there is no token, some token is impossible under every model, or the number
            of steps is below 1.

    Book: :doc:`/book/foundations/language_models`

    Example:
        >>> fit = fit_mixture(torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]), steps=100)
        >>> fit.weights
        tensor([0.7083, 0.2917])
    """
    check_floating("probs", probs)
    check_count("steps", steps, low=1)
    _check_possible(probs)
    weights = torch.full_like(probs[0], 1.0 / probs.shape[1])
    history = []
    for _ in range(steps):
        history.append((probs @ weights).log().mean())
        weights = em_step(probs, weights)
    history.append((probs @ weights).log().mean())
    return MixtureFit(weights, torch.stack(history))


def _check_possible(probs: Tensor) -> None:
    if len(probs) == 0:
        raise ValueError("there must be at least one held-out token, got none")
    if bool((probs.sum(1) <= 0).any()):
        count = int((probs.sum(1) <= 0).sum())
        raise ValueError(f"{count} tokens are impossible under every model of the mixture")


@dataclass(frozen=True, eq=False)
class JelinekMercerFit:
    r"""A Jelinek–Mercer model and how its weights were found.

    Attributes:
        model: The model.
        weights: :math:`\lambda` for each order (rows, 1 to n) and each class of contexts by how
            often they occur (columns: never, once, 2–3 times, 4–7 times, ...).
        log_likelihood: Mean log-probability of the held-out text in nats before every step and
            after the last one. It never falls.
    """

    model: NGramModel
    weights: Float[Tensor, "order bucket"]
    log_likelihood: Float[Tensor, " steps"]


def jelinek_mercer(
    counts: NGramCounts,
    contexts: Int[Tensor, "token context"],
    symbols: Int[Tensor, " token"],
    *,
    buckets: int = 12,
    steps: int = 20,
) -> JelinekMercerFit:
    r"""Estimate a model that interpolates the relative frequencies of all orders.

    .. math:: P_k(w \mid c) = \lambda_c\, \frac{N(c, w)}{N(c)}
        + (1 - \lambda_c)\, P_{k-1}(w \mid c')

    down to the uniform distribution at order 0. Contexts that occur about equally often share a
    weight :math:`\lambda_c`; EM finds the weights on held-out text.

    Args:
        counts: The counts of the training text.
        contexts: The symbols before each symbol of the held-out text, at least n - 1.
        symbols: The symbols of the held-out text, not of the training text, on which the best
            weights are 1.
        buckets: Number of classes of contexts by :math:`\lfloor \log_2 N(c) \rfloor`, 1 or more;
            with 1 the weight depends on the order alone.
        steps: Number of EM steps, 1 or more.

    Returns:
        The model, in float64, its weights, and the likelihood on the way.

    Raises:
        ValueError: If a number is out of range, or shapes do not fit.

    Numerics:
        A weight that no held-out context speaks about stays at 1/2, where all of them start.

    References:
        F. Jelinek and R. L. Mercer, 1980, as in S. F. Chen and J. Goodman,
        doi:10.1006/csla.1999.0128, section 2.3. They make the classes by average count; here they
        are made by the count of the context.

    Book: :doc:`/book/foundations/language_models`
    """
    check_count("buckets", buckets, low=1)
    check_count("steps", steps, low=1)
    check_shape("symbols", symbols, (contexts.shape[0],))
    # For each order: the bucket of every context seen, and the relative frequency of every n-gram.
    totals = [counts.context_total(k).double() for k in range(1, counts.order + 1)]
    bucket_of = [1 + total.log2().floor().long().clamp(max=buckets - 1) for total in totals]
    ratios = [
        counts.gram_counts[k] / total[counts.gram_context(k + 1)] for k, total in enumerate(totals)
    ]
    uniform = torch.full_like(symbols, 1.0 / counts.vocab_size, dtype=torch.float64)
    chain = [uniform]
    places = []
    for k, found in enumerate(counts.context_ids(contexts)):
        gram = find(counts.gram_keys[k], found * counts.vocab_size + symbols)
        chain.append(torch.where(gram >= 0, ratios[k][gram], 0.0))
        places.append(torch.where(found >= 0, bucket_of[k][found], 0))
    probs, place = torch.stack(chain, 1), torch.stack(places, 1)
    if len(probs) == 0:
        raise ValueError("there must be at least one held-out token, got none")

    # Column 0 belongs to contexts never seen: there the lower order speaks alone.
    weights = torch.full((counts.order, buckets + 1), 0.5, dtype=torch.float64).to(probs)
    weights[:, 0] = 0.0
    levels = torch.arange(counts.order, device=probs.device)
    flat = (levels * (buckets + 1) + place).reshape(-1)
    history = []
    for step in range(steps + 1):
        joint = _stopping(weights[levels, place]) * probs
        total = joint.sum(1, keepdim=True)
        history.append(total.log().mean())
        if step == steps:
            break
        posterior = joint / total
        # Order k is reached where the symbol comes from order k or below.
        reached = posterior.cumsum(1)[:, 1:]
        empty = torch.zeros(weights.numel(), dtype=torch.float64, device=probs.device)
        stopped = empty.index_add(0, flat, posterior[:, 1:].reshape(-1)).reshape(weights.shape)
        visits = empty.index_add(0, flat, reached.reshape(-1)).reshape(weights.shape)
        weights = torch.where(visits > 0, stopped / visits, weights)
        weights[:, 0] = 0.0

    chosen = [weights[k, bucket_of[k]] for k in range(counts.order)]
    gains = [ratios[k] * chosen[k][counts.gram_context(k + 1)] for k in range(counts.order)]
    model = NGramModel(counts, tuple(gains), tuple(1 - c for c in chosen), 1.0 / counts.vocab_size)
    return JelinekMercerFit(model, weights, torch.stack(history))


def _stopping(weights: Float[Tensor, "token order"]) -> Float[Tensor, "token levels"]:
    """Return for each level 0, ..., n the weight of its relative frequency in the chain."""
    passed = (1 - weights).flip(1).cumprod(1).flip(1)  # passed[k] = everything from order k up
    above = torch.cat([passed[:, 1:], torch.ones_like(passed[:, :1])], 1)
    return torch.cat([passed[:, :1], above * weights], 1)
