r"""Randomized smoothing: a classifier that votes over Gaussian noise, and what its votes prove.

What is certified is the *smoothed* classifier :math:`g(x)=\arg\max_c P(f(x+\sigma z)=c)`, not
:math:`f`, and by Euclidean length only. A certificate holds with confidence :math:`1-\alpha` over
the draws.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import can_read, check_count, check_in_range, check_same_shape, randn
from companion.knowledge.robustness._attacks import Model, evaluating
from companion.knowledge.robustness._norms import check_examples

__all__ = [
    "ABSTAIN",
    "Certificate",
    "binomial_lower",
    "certified_accuracy",
    "certified_radius",
    "certify",
    "smooth_predict",
    "smooth_votes",
]

#: The label of an answer that is withheld.
ABSTAIN = -1


def binomial_lower(
    successes: Integer[Tensor, "*batch"], trials: Integer[Tensor, "*batch"], *, alpha: float
) -> Float[Tensor, "*batch"]:
    r"""Bound a probability from below by Clopper and Pearson: one-sided, exact.

    The bound is the :math:`p` at which :math:`k` successes or more have the probability
    :math:`\alpha`. With :math:`k=n` it is :math:`\alpha^{1/n}`: never 1, however many there are.

    Args:
        successes: :math:`k`.
        trials: :math:`n`.
        alpha: Probability that the bound is too high, at most, in (0, 1).

    Returns:
        Bounds, float64; 0 without a success.

    Raises:
        ValueError: If shapes differ, a count is out of range, or alpha is not in (0, 1).

    Numerics:
        Quantiles of the beta distribution by SciPy, on the host: an accelerator is waited for. The
        two-sided interval of :func:`companion.trust.fairness.clopper_pearson` spends half of alpha
        on an upper end that nobody needs here; both its ends are such bounds.

    References:
        Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> round(float(binomial_lower(torch.tensor(100), torch.tensor(100), alpha=0.001)), 5)
        0.93325
    """
    from scipy.special import betaincinv

    check_same_shape("successes", successes, "trials", trials)
    check_in_range("alpha", alpha, low=0.0, high=1.0, open_low=True, open_high=True)
    wrong = (successes < 0) | (successes > trials)
    if can_read(wrong) and bool(wrong.any()):
        found, of = int(successes[wrong][0]), int(trials[wrong][0])
        raise ValueError(f"successes must lie between 0 and trials, got {found} of {of}")
    k, n = successes.detach().cpu().double(), trials.detach().cpu().double()
    low = torch.as_tensor(betaincinv(k.clamp_min(1).numpy(), (n - k + 1).numpy(), alpha))
    return torch.where(k > 0, low, 0.0).to(successes.device)


def certified_radius(
    p_a: Float[Tensor, "*batch"], p_b: Float[Tensor, "*batch"] | None = None, *, sigma: float
) -> Float[Tensor, "*batch"]:
    r"""Compute the radius that two probabilities certify.

    .. math:: R=\frac\sigma2\bigl(\Phi^{-1}(p_A)-\Phi^{-1}(p_B)\bigr)

    Args:
        p_a: A lower bound of the probability of the class that is answered.
        p_b: An upper bound of that of any other. By default :math:`1-p_A`, which is always safe;
            two bounds from one sample need a smaller alpha each, since both must hold.
        sigma: Standard deviation of the noise, above 0.

    Returns:
        Euclidean radii, 0 where nothing is certified; float32 for half precision.

    Raises:
        ValueError: If the deviation is not above 0, or a probability does not lie in [0, 1].

    References:
        Cohen, Rosenfeld and Kolter 2019, arXiv:1902.02918, theorem 1.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> round(float(certified_radius(torch.tensor(0.93325).double(), sigma=1.0)), 3)
        1.5
    """
    check_in_range("sigma", sigma, low=0.0, open_low=True, open_high=True)
    other = 1 - p_a if p_b is None else p_b
    for name, p in (("p_a", p_a), ("p_b", other)):
        if can_read(p) and not bool(((p >= 0) & (p <= 1)).all()):
            raise ValueError(f"{name} must lie in [0, 1], got {float(p.min())} to {float(p.max())}")
    if p_a.dtype in (torch.float16, torch.bfloat16):  # no quantiles there
        p_a, other = p_a.float(), other.float()
    radius: Tensor = sigma / 2 * (torch.special.ndtri(p_a) - torch.special.ndtri(other))
    return torch.where(p_a > other, radius, 0.0)  # both 0, or both 1: a difference of infinities


def smooth_votes(
    model: Model,
    x: Float[Tensor, " batch *shape"],
    *,
    sigma: float,
    samples: int,
    batch_size: int = 4096,
    generator: torch.Generator,
) -> Integer[Tensor, "batch classes"]:
    r"""Count the answers of a model under Gaussian noise :math:`x+\sigma z`.

    Args:
        model: Maps examples to logits.
        x: Examples.
        sigma: Standard deviation, above 0.
        samples: Draws for each example, all new at each call.
        batch_size: How many noisy examples go through the model at once.
        generator: The source of randomness.

    Returns:
        Votes, int64; each row sums to ``samples``. A draw with a logit that is not a number votes
        for no class, and its row sums to less.

    Raises:
        ValueError: If a number is out of its range, or there is no example.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
        >>> smooth_votes(torch.nn.Identity(), x, sigma=0.5, samples=100, generator=g)
        tensor([[100,   0],
                [  0, 100]])
    """
    check_examples("x", x)
    check_in_range("sigma", sigma, low=0.0, open_low=True, open_high=True)
    check_count("samples", samples)
    check_count("batch_size", batch_size)
    if not len(x):
        raise ValueError("x must hold one example or more, got none")
    votes: list[Tensor] = []
    with evaluating(model), torch.no_grad():
        for example in x:
            counts: Tensor | None = None
            for start in range(0, samples, batch_size):
                count = min(batch_size, samples - start)
                noise = randn(
                    count, *example.shape, generator=generator, device=x.device, dtype=x.dtype
                )
                logits = model(example + sigma * noise)
                picked = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1])
                picked = (picked * ~logits.isnan().any(-1, keepdim=True)).sum(0)
                counts = picked if counts is None else counts + picked
            assert counts is not None
            votes.append(counts)
    return torch.stack(votes)


class Certificate(NamedTuple):
    """What is certified of each example.

    Attributes:
        labels: The answer, or :data:`ABSTAIN`.
        radius: Within this Euclidean distance the smoothed answer stays; 0 where it abstains.
        lower: Lower bound of the probability of the answer.
    """

    labels: Integer[Tensor, " batch"]
    radius: Float[Tensor, " batch"]
    lower: Float[Tensor, " batch"]


def certify(
    model: Model,
    x: Float[Tensor, " batch *shape"],
    *,
    sigma: float,
    choose: int = 100,
    samples: int = 1000,
    alpha: float = 0.001,
    batch_size: int = 4096,
    generator: torch.Generator,
) -> Certificate:
    r"""Answer, and certify a radius around each example, with confidence :math:`1-\alpha` each.

    The class is chosen by some draws, and its probability bounded by others: the largest of
    several counts, bounded as if it had been named before, would be bounded too high.

    Args:
        model: Maps examples to logits.
        x: Examples.
        sigma: Standard deviation of the noise.
        choose: Draws that choose the class.
        samples: Draws that bound its probability, :math:`n`.
        alpha: Probability of a wrong certificate, at most, for each example.
        batch_size: How many noisy examples go through the model at once.
        generator: The source of randomness.

    Returns:
        Labels and radii.

    Raises:
        ValueError: If a number is out of its range, or so few samples are drawn that not even
            equal votes could certify anything: :math:`\alpha^{1/n}\le\frac12`.

    References:
        Cohen, Rosenfeld and Kolter 2019, arXiv:1902.02918, sec. 3.2.2.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> made = certify(torch.nn.Identity(), torch.tensor([[9.0, 0.0]]), sigma=0.5, generator=g)
        >>> int(made.labels), round(float(made.radius), 3)  # all votes agree: 2.4633 sigma
        (0, 1.232)
    """
    check_count("choose", choose)
    check_count("samples", samples)
    check_in_range("alpha", alpha, low=0.0, high=1.0, open_low=True, open_high=True)
    if alpha ** (1 / samples) <= 0.5:
        raise ValueError(
            f"{samples} samples certify nothing at alpha {alpha}: take more than "
            f"{math.log(alpha) / math.log(0.5):.1f}"
        )
    ask: dict[str, Any] = {"sigma": sigma, "batch_size": batch_size, "generator": generator}
    labels = smooth_votes(model, x, samples=choose, **ask).argmax(1)
    votes = smooth_votes(model, x, samples=samples, **ask)
    agree = votes.gather(1, labels[:, None])[:, 0]
    lower = binomial_lower(agree, torch.full_like(agree, samples), alpha=alpha)
    sure = lower > 0.5
    radius = certified_radius(torch.where(sure, lower, 0.5), sigma=sigma)
    return Certificate(torch.where(sure, labels, ABSTAIN), radius, lower)


def smooth_predict(
    votes: Integer[Tensor, "batch classes"], *, alpha: float = 0.001
) -> Integer[Tensor, " batch"]:
    r"""Answer by votes, or abstain where the first two classes could be equally likely.

    Of the votes for the first two, half or more of both must be for the first by more than chance:
    a two-sided sign test at level :math:`\alpha`.

    Args:
        votes: Votes under noise, of :func:`smooth_votes`.
        alpha: Probability of a wrong answer, at most.

    Returns:
        Labels, or :data:`ABSTAIN`.

    Raises:
        ValueError: If there are so few votes that the test could never answer: the smallest
            p-value is :math:`2\cdot2^{-n}`.

    References:
        Cohen, Rosenfeld and Kolter 2019, arXiv:1902.02918, sec. 3.2.1.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> smooth_predict(torch.tensor([[60, 40, 0], [90, 10, 0]]))
        tensor([-1,  0])
    """
    from scipy.special import betainc

    check_in_range("alpha", alpha, low=0.0, high=1.0, open_low=True, open_high=True)
    if votes.shape[-1] < 2:
        raise ValueError(f"votes must be for 2 classes or more, got {votes.shape[-1]}")
    fewest = int(votes.sum(1).min()) if can_read(votes) and len(votes) else 10**9
    if 2.0 ** (1 - min(fewest, 1000)) > alpha:
        raise ValueError(
            f"{fewest} votes never suffice at alpha {alpha}, since the smallest p-value is "
            f"{2.0 ** (1 - fewest):.2g}: draw more"
        )
    top = votes.topk(2, dim=1)
    first, second = top.values.cpu().double().unbind(1)
    # P(X >= k) for a fair coin: an incomplete beta function at one half.
    tail = torch.as_tensor(betainc(first.clamp_min(1).numpy(), (second + 1).numpy(), 0.5))
    unsure = (2 * tail > alpha) | (first == second)
    return torch.where(unsure.to(votes.device), ABSTAIN, top.indices[:, 0])


def certified_accuracy(
    certificate: Certificate, y: Integer[Tensor, " batch"], radii: Float[Tensor, " radii"]
) -> Float[Tensor, " radii"]:
    """Compute the share of examples whose answer is right, and certified at each radius.

    Args:
        certificate: What :func:`certify` has found.
        y: Labels.
        radii: Radii, 0 or above. At 0 an answer must be right and not withheld.

    Returns:
        Shares, falling as the radius grows.

    Raises:
        ValueError: If labels do not fit, or there are none.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> made = Certificate(torch.tensor([1, 0]), torch.tensor([0.5, 0.2]), torch.ones(2))
        >>> certified_accuracy(made, torch.tensor([1, 0]), torch.tensor([0.1, 0.3]))
        tensor([1.0000, 0.5000])
    """
    check_same_shape("labels", certificate.labels, "y", y)
    if not len(y):
        raise ValueError("y must hold one label or more, got none")
    right = (certificate.labels == y) & (certificate.labels != ABSTAIN)
    held = right[:, None] & (certificate.radius[:, None] >= radii)
    return held.to(radii.dtype).mean(0)
