"""Exponential tilting: the nearest distribution whose features have wished means."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_finite, check_in_range, check_shape, wide

__all__ = ["Tilt", "fit_tilt", "log_partition", "tilt"]


class Tilt(NamedTuple):
    r"""A fitted tilt.

    Attributes:
        weights: ``"features"``: :math:`\lambda`, one number a feature.
        means: ``"features"``: the means of the features under the tilted distribution.
        kl: Its divergence from the base, in nats: what the wish costs.
        steps: How many steps of Newton's method were taken.
    """

    weights: Tensor
    means: Tensor
    kl: Tensor
    steps: int


def tilt(
    log_p: Float[Tensor, "*batch outcomes"],
    features: Float[Tensor, "outcomes features"],
    weights: Float[Tensor, " features"],
) -> Float[Tensor, "*batch outcomes"]:
    r"""Multiply probabilities by the exponential of weighted features, and normalize.

    .. math:: \log q(x) = \log p(x) + \lambda\cdot\phi(x) - \log Z(\lambda)

    Args:
        log_p: Log-probabilities or logits of the outcomes; minus infinity for impossible ones.
        features: :math:`\phi`, a row an outcome.
        weights: :math:`\lambda`.

    Returns:
        Log-probabilities :math:`\log q`, in nats.

    Raises:
        ValueError: If the shapes do not fit.

    References:
        Csiszár 1975, Annals of Probability 3(1); for language models, Khalifa et al. 2021,
        arXiv:2012.11635.

    Book: :doc:`/book/generation/control`

    Example:
        >>> fair = torch.zeros(2)
        >>> tilt(fair, torch.tensor([[0.0], [1.0]]), torch.tensor([1.0])).softmax(-1)
        tensor([0.2689, 0.7311])
    """
    return (wide(log_p) + _energy(log_p, features, weights)).log_softmax(-1)


def log_partition(
    log_p: Float[Tensor, "*batch outcomes"],
    features: Float[Tensor, "outcomes features"],
    weights: Float[Tensor, " features"],
) -> Float[Tensor, "*batch"]:
    r"""Compute the cumulant function of the features.

    .. math:: \log Z(\lambda) = \log \sum_x p(x)\, e^{\lambda\cdot\phi(x)}

    Its gradient is the mean of the features under the tilted distribution, and its Hessian their
    covariance: so it is convex.

    Args:
        log_p: Log-probabilities or logits; they are normalized first.
        features: :math:`\phi`, a row an outcome.
        weights: :math:`\lambda`.

    Returns:
        :math:`\log Z`, in nats.

    Raises:
        ValueError: If the shapes do not fit.

    Book: :doc:`/book/generation/control`

    Example:
        >>> log_partition(torch.zeros(2), torch.tensor([[0.0], [1.0]]), torch.tensor([0.0]))
        tensor(0.)
    """
    base = wide(log_p).log_softmax(-1)
    return (base + _energy(log_p, features, weights)).logsumexp(-1)


def fit_tilt(
    log_p: Float[Tensor, " outcomes"],
    features: Float[Tensor, "outcomes features"],
    target: Float[Tensor, " features"],
    *,
    tolerance: float = 1e-9,
    limit: int = 200,
) -> Tilt:
    r"""Find the distribution nearest to p whose features have the wished means.

    .. math::
        \min_q \mathrm{KL}(q \,\|\, p) \;\text{ with }\; \mathrm{E}_q\,\phi = \mu
        \quad\Rightarrow\quad q \propto p\, e^{\lambda\cdot\phi},\;
        \lambda = \arg\min_\lambda\; \log Z(\lambda) - \lambda\cdot\mu

    Newton's method with halved steps on the convex dual, in float64.

    Args:
        log_p: Log-probabilities or logits of the outcomes. With weights of samples in their place
            (zeros for plain samples) it is the estimate of Khalifa et al.
        features: :math:`\phi`, a row an outcome.
        target: :math:`\mu`, the wished means.
        tolerance: Largest difference of a mean from its wish, relative to the spread of its
            feature.
        limit: Steps at most.

    Returns:
        A :class:`Tilt`.

    Raises:
        ValueError: If no distribution over the possible outcomes has these means, or one has them
            only in the limit of infinite weights (a mean of 1 for a feature in {0, 1}: that is a
            constraint, not a tilt).

    References:
        Khalifa et al. 2021, arXiv:2012.11635

    Book: :doc:`/book/generation/control`

    Example:
        >>> done = fit_tilt(torch.zeros(2), torch.tensor([[0.0], [1.0]]), torch.tensor([0.8]))
        >>> done.weights  # log(0.8 / 0.2)
        tensor([1.3863], dtype=torch.float64)
    """
    check_shape("log_p", log_p, (None,))
    check_shape("features", features, (len(log_p), None))
    check_shape("target", target, (features.shape[1],))
    check_finite("features", features)
    check_finite("target", target)
    check_in_range("tolerance", tolerance, low=0.0, open_low=True)
    check_count("limit", limit)
    base = log_p.double().log_softmax(-1)
    phi, mu = features.double(), target.double()
    possible = phi[base > -torch.inf]
    if bool(base.isnan().any()):
        raise ValueError("log_p must hold no NaN, no +inf, and a possible outcome, one above -inf")
    low, high = possible.amin(0), possible.amax(0)
    scale = (high - low).clamp(min=torch.finfo(torch.float64).tiny)
    outside = (mu <= low) | (mu >= high)
    if bool((outside & ((mu != low) | (low < high))).any()):
        raise ValueError(
            f"the means {target.tolist()} must lie between {low.tolist()} and {high.tolist()}, the "
            "border excluded: on it a wish is a constraint, and no weight is large enough"
        )
    # Counted from its least value, a feature loses nothing to a large offset, and one that is
    # constant is 0. Weights and divergence stay as they are.
    phi, mu = phi - low, mu - low
    weights = torch.zeros_like(mu)

    def dual(w: Tensor) -> Tensor:
        return (base + phi @ w).logsumexp(0) - w @ mu

    step = 0
    while True:
        q = (base + phi @ weights).softmax(0)
        means = q @ phi
        if bool(((means - mu).abs() <= tolerance * scale).all()):
            break
        if step == limit:
            raise ValueError(
                f"the means {target.tolist()} are not reached by {limit} steps: they lie on the "
                "border of what is possible (a hard constraint), outside of it, or on outcomes so "
                "improbable that they count as impossible in float64"
            )
        centered = phi - means
        covariance = (q[:, None] * centered).T @ centered
        # Features that say the same have no unique weights: the shortest step is taken.
        move = torch.linalg.pinv(covariance, hermitian=True) @ (means - mu)
        # Near the end the dual is flat: differences within its rounding count as none.
        now, size = dual(weights), 1.0
        while bool(dual(weights - size * move) > now + 1e-12 * (1 + now.abs())) and size > 1e-300:
            size /= 2
        weights = weights - size * move
        step += 1
    kl = weights @ means - (base + phi @ weights).logsumexp(0)
    return Tilt(weights, means + low, kl, step)


def _energy(log_p: Tensor, features: Tensor, weights: Tensor) -> Tensor:
    check_shape("features", features, (log_p.shape[-1], None))
    check_shape("weights", weights, (features.shape[1],))
    return wide(features) @ wide(weights)
