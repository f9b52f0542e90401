r"""Changes of one row of logits: temperature, and truncations that leave the rest as it is.

Each takes logits and returns new ones. What is removed becomes :math:`-\infty`, what stays keeps
its logit, so the softmax renormalizes it. At least one token stays.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_floating, check_in_range, wide

__all__ = [
    "Distortion",
    "distortion",
    "epsilon",
    "eta",
    "min_p",
    "temperature",
    "top_k",
    "top_n_sigma",
    "top_p",
    "typical",
]

NEVER = float("-inf")


def temperature(logits: Float[Tensor, "*batch vocab"], T: float) -> Float[Tensor, "*batch vocab"]:
    r"""Flatten or sharpen a distribution: :math:`p^{(T)} \propto p^{1/T}`.

    Args:
        logits: Logits of the next token.
        T: Temperature, 0 or more; 0 leaves the most likely token alone.

    Returns:
        The logits divided by the temperature; less their largest, if the quotient would overflow.

    Raises:
        ValueError: If the temperature is negative or not finite.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> temperature(torch.tensor([1.0, 2.0]), 0.5)
        tensor([2., 4.])
    """
    check_floating("logits", logits)
    check_in_range("temperature", T, low=0.0, open_high=True)
    if T == 0:
        best = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).bool()
        return _keep(logits, best)
    T = max(T, torch.finfo(torch.float32).tiny)
    cooled, highest = logits / T, logits.amax(-1, keepdim=True)
    # With a T so small that the quotient overflows, all but the largest go to minus infinity.
    overflows = highest.isfinite() & ~cooled.amax(-1, keepdim=True).isfinite()
    return torch.where(overflows, (logits - highest) / T, cooled)


def top_k(logits: Float[Tensor, "*batch vocab"], k: int) -> Float[Tensor, "*batch vocab"]:
    """Keep the k most likely tokens.

    Args:
        logits: Logits of the next token.
        k: How many stay, 1 or more. Tokens as likely as the last of them stay as well.

    Returns:
        Logits of what stays, minus infinity for the others.

    Raises:
        ValueError: If k is below 1.

    References:
        Fan et al. 2018, arXiv:1805.04833, sec. 5.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> top_k(torch.tensor([1.0, 3.0, 2.0]), 2)
        tensor([-inf, 3., 2.])
    """
    check_floating("logits", logits)
    check_count("k", k)
    least = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return _keep(logits, logits >= least)


def top_p(logits: Float[Tensor, "*batch vocab"], mass: float) -> Float[Tensor, "*batch vocab"]:
    """Keep the nucleus: the fewest likely tokens that hold a given mass.

    Args:
        logits: Logits of the next token.
        mass: Probability that must be held, in (0, 1]. The token that crosses it stays.

    Returns:
        Logits of what stays, minus infinity for the others.

    Raises:
        ValueError: If the mass is out of its range.

    Numerics:
        A token goes if it and all less likely ones together hold at most ``1 - mass``; that sum
        runs from the small to the large, in float32 or better. Which of
        equally likely tokens at the border stay is up to the sort.

    References:
        Holtzman et al. 2020, arXiv:1904.09751, sec. 3.1.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> top_p(torch.tensor([0.5, 0.3, 0.15, 0.05]).log(), 0.7).exp()
        tensor([0.5000, 0.3000, 0.0000, 0.0000])
    """
    check_floating("logits", logits)
    check_in_range("mass", mass, low=0.0, high=1.0, open_low=True)
    rising, order = wide(logits).sort(dim=-1)
    tail = rising.softmax(-1).cumsum(-1)
    stays = tail > 1 - mass
    stays[..., -1] = True
    return _keep(logits, torch.zeros_like(stays).scatter(-1, order, stays))


def min_p(logits: Float[Tensor, "*batch vocab"], floor: float) -> Float[Tensor, "*batch vocab"]:
    r"""Keep what is at least a given part as likely as the likeliest: :math:`p_i \ge \kappa\max p`.

    Args:
        logits: Logits of the next token.
        floor: The part :math:`\kappa`, in [0, 1].

    Returns:
        Logits of what stays, minus infinity for the others.

    Raises:
        ValueError: If the part is out of its range.

    References:
        Nguyen et al. 2024, arXiv:2407.01082; Schaeffer et al. 2025, arXiv:2506.13681, who find no
        gain over other truncations that were tuned as long.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> min_p(torch.tensor([0.5, 0.3, 0.2]).log(), 0.5).exp()
        tensor([0.5000, 0.3000, 0.0000])
    """
    check_floating("logits", logits)
    check_in_range("floor", floor, low=0.0, high=1.0)
    probs = wide(logits).softmax(-1)
    top = probs.amax(-1, keepdim=True)
    return _keep(logits, (probs >= floor * top) | (probs == top))


def typical(logits: Float[Tensor, "*batch vocab"], mass: float) -> Float[Tensor, "*batch vocab"]:
    r"""Keep the tokens whose surprise is nearest to the entropy, until they hold a given mass.

    Args:
        logits: Logits of the next token.
        mass: Probability that must be held, in (0, 1]. The token that crosses it stays, and so do
            those as far from the entropy as it is.

    Returns:
        Logits of what stays, minus infinity for the others. The likeliest token may go.

    Raises:
        ValueError: If the mass is out of its range.

    References:
        Meister et al. 2023, arXiv:2202.00666, eq. 10.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> typical(torch.tensor([0.5, 0.3, 0.15, 0.05]).log(), 0.7).exp()
        tensor([0.5000, 0.3000, 0.0000, 0.0000])
    """
    check_floating("logits", logits)
    check_in_range("mass", mass, low=0.0, high=1.0, open_low=True)
    logs = wide(logits).log_softmax(-1)
    probs = logs.exp()
    entropy = -torch.where(probs > 0, probs * logs, 0.0).sum(-1, keepdim=True)
    far = (-logs - entropy).abs()
    nearest, order = far.sort(dim=-1, stable=True)
    held = probs.gather(-1, order).cumsum(-1)
    last = (held < mass).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return _keep(logits, far <= nearest.gather(-1, last))


def epsilon(logits: Float[Tensor, "*batch vocab"], cut: float) -> Float[Tensor, "*batch vocab"]:
    """Keep what has a given probability at least.

    Args:
        logits: Logits of the next token.
        cut: Least probability, in [0, 1). The likeliest token stays in any case.

    Returns:
        Logits of what stays, minus infinity for the others.

    Raises:
        ValueError: If the probability is out of its range.

    References:
        Hewitt et al. 2022, arXiv:2210.15191.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> epsilon(torch.tensor([0.6, 0.3, 0.1]).log(), 0.2).exp()
        tensor([0.6000, 0.3000, 0.0000])
    """
    check_floating("logits", logits)
    check_in_range("cut", cut, low=0.0, high=1.0, open_high=True)
    probs = wide(logits).softmax(-1)
    return _keep(logits, (probs >= cut) | (probs == probs.amax(-1, keepdim=True)))


def eta(logits: Float[Tensor, "*batch vocab"], cut: float) -> Float[Tensor, "*batch vocab"]:
    r"""Keep what exceeds a threshold that falls with the entropy :math:`H`.

    .. math:: p_i \ge \min\big(\epsilon, \sqrt\epsilon\, e^{-H}\big)

    Args:
        logits: Logits of the next token.
        cut: :math:`\epsilon`, in (0, 1). The likeliest token stays in any case.

    Returns:
        Logits of what stays, minus infinity for the others.

    Raises:
        ValueError: If the threshold is out of its range.

    References:
        Hewitt et al. 2022, arXiv:2210.15191, sec. 4.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> eta(torch.tensor([0.9, 0.0999, 0.0001]).log(), 3e-4).exp()
        tensor([0.9000, 0.0999, 0.0000])
    """
    check_floating("logits", logits)
    check_in_range("cut", cut, low=0.0, high=1.0, open_low=True, open_high=True)
    logs = wide(logits).log_softmax(-1)
    probs = logs.exp()
    entropy = -torch.where(probs > 0, probs * logs, 0.0).sum(-1, keepdim=True)
    least = (cut**0.5 * torch.exp(-entropy)).clamp(max=cut)
    return _keep(logits, (probs >= least) | (probs == probs.amax(-1, keepdim=True)))


def top_n_sigma(logits: Float[Tensor, "*batch vocab"], n: float) -> Float[Tensor, "*batch vocab"]:
    r"""Keep the logits within n of their standard deviations of the largest.

    The same tokens stay at every temperature, since :math:`z/T` has the deviation
    :math:`\sigma/T`.

    Args:
        logits: Logits of the next token.
        n: How many standard deviations, 0 or more.

    Returns:
        Logits of what stays, minus infinity for the others.

    Raises:
        ValueError: If n is negative or not finite.

    Numerics:
        The deviation is that of the finite logits, with one degree of freedom less than there are.

    References:
        Tang et al. 2024, arXiv:2411.07641.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> top_n_sigma(torch.tensor([0.0, 1.0, 5.0]), 1.0)
        tensor([-inf, -inf, 5.])
    """
    check_floating("logits", logits)
    check_in_range("n", n, low=0.0, open_high=True)
    z = wide(logits)
    here = z > NEVER
    count = here.sum(-1, keepdim=True)
    mean = torch.where(here, z, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
    squares = torch.where(here, z - mean, 0.0).square().sum(-1, keepdim=True)
    sigma = (squares / (count - 1).clamp(min=1)).sqrt()
    return _keep(logits, here & (z >= z.amax(-1, keepdim=True) - n * sigma))


class Distortion(NamedTuple):
    r"""How far a decoder's distribution :math:`q` is from the model's :math:`p`, a row each.

    Attributes:
        mass: Probability under :math:`p` of what :math:`q` can draw.
        tv: Total variation, :math:`\frac12\sum_i\lvert p_i-q_i\rvert`.
        kl: :math:`\mathrm{KL}(q\Vert p)` in nats.
    """

    mass: Float[Tensor, "..."]
    tv: Float[Tensor, "..."]
    kl: Float[Tensor, "..."]


def distortion(
    logits: Float[Tensor, "*batch vocab"], warped: Float[Tensor, "*batch vocab"]
) -> Distortion:
    r"""Measure what a change of the logits does to the distribution.

    For a truncation to a set :math:`S`, :math:`\mathrm{TV}=1-p(S)` and
    :math:`\mathrm{KL}(q\Vert p)=-\log p(S)`; for anything else they are computed all the same.

    Args:
        logits: The model's.
        warped: What the decoder draws from.

    Returns:
        The mass kept, the total variation, and the divergence in nats.

    Raises:
        ValueError: If the shapes differ.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> z = torch.tensor([0.5, 0.3, 0.2]).log()
        >>> distortion(z, top_k(z, 2)).tv
        tensor(0.2000)
    """
    if logits.shape != warped.shape:
        raise ValueError(
            f"logits and warped must have the same shape, got {tuple(logits.shape)} and "
            f"{tuple(warped.shape)}"
        )
    log_p, log_q = wide(logits).log_softmax(-1), wide(warped).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    drawn = q > 0
    mass = torch.where(drawn, p, 0.0).sum(-1)
    kl = torch.where(drawn, q * (log_q - log_p), 0.0).sum(-1)
    return Distortion(mass, (p - q).abs().sum(-1) / 2, kl)


def _keep(logits: Tensor, stays: Tensor) -> Tensor:
    """The logits of what stays, and what is no number: a draw refuses it, and must see it."""
    return logits.masked_fill(~(stays | logits.isnan()), NEVER)
