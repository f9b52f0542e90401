"""Softmax, its logarithm, its normalizer, its Jacobian and its entropy."""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_floating, check_in_range, check_same_shape, wide

__all__ = [
    "entropy",
    "log_softmax",
    "logsumexp",
    "softmax",
    "softmax_jacobian",
    "softmax_vjp",
]


def _shift(logits: Tensor, dim: int) -> Tensor:
    # The largest logit. The result of every function here does not depend on the shift, so no
    # gradient flows through it. Where the whole row is -inf or the maximum is +inf, the shift
    # stays finite, and the formulas give -inf or +inf by themselves instead of inf - inf.
    largest = logits.detach().amax(dim, keepdim=True)
    return torch.where(torch.isfinite(largest), largest, torch.zeros_like(largest))


def _check_logits(logits: Tensor, dim: int) -> None:
    check_floating("logits", logits)
    if not -logits.ndim <= dim < logits.ndim or logits.shape[dim] == 0:
        raise ValueError(
            f"logits need at least one entry along dim {dim}, got shape {tuple(logits.shape)}"
        )


def logsumexp(logits: Float[Tensor, "..."], *, dim: int = -1) -> Float[Tensor, "..."]:
    r"""Return the logarithm of a sum of exponentials, the normalizer of softmax.

    .. math:: \mathrm{lse}(z) = m + \log \sum_j e^{z_j - m}, \qquad m = \max_j z_j

    Args:
        logits: Scores :math:`z` in nats. Entries of ``-inf`` are left out of the sum.
        dim: The axis that is summed over.

    Returns:
        One number a row, without the axis ``dim``: between :math:`m` and :math:`m + \log K` for
        :math:`K` entries. ``-inf`` where every entry is.

    Raises:
        ValueError: If the logits are not floating, or the axis is missing or empty.

    Numerics:
        No exponent is above zero, so nothing overflows, and one term is exactly 1, so the
        logarithm never sees 0. Computed in float32 or better. The gradient is softmax.

    Book: :doc:`/book/foundations/cross_entropy`

    Example:
        >>> logsumexp(torch.tensor([1000.0, 1000.0], dtype=torch.float64))
        tensor(1000.6931, dtype=torch.float64)
    """
    _check_logits(logits, dim)
    z = wide(logits)
    shift = _shift(z, dim)
    total = (z - shift).exp().sum(dim, keepdim=True).log() + shift
    return total.squeeze(dim).to(logits.dtype)


def log_softmax(
    logits: Float[Tensor, "*shape"], *, temperature: float | Tensor = 1.0, dim: int = -1
) -> Float[Tensor, "*shape"]:
    r"""Return log-probabilities.

    .. math:: \log p_i = z_i / T - \mathrm{lse}(z / T)

    Args:
        logits: Scores :math:`z` in nats. ``-inf`` masks an entry.
        temperature: :math:`T > 0`, dimensionless. A scalar tensor is not checked, since reading
            its value would make an accelerator wait.
        dim: The axis over which the probabilities sum to one.

    Returns:
        Log-probabilities in nats, at most 0, ``-inf`` at masked entries. NaN in rows where every
        entry is masked or one is ``+inf`` or NaN: these give no distribution.

    Raises:
        ValueError: If the temperature is not above 0, the logits are not floating, or the axis
            is missing or empty.

    Numerics:
        The logarithm is taken of the normalizer, never of a probability, so a probability too
        small for the dtype still has its logarithm. The temperature divides distances from the
        largest logit, as in :func:`softmax`.

    Book: :doc:`/book/foundations/cross_entropy`

    Example:
        >>> log_softmax(torch.tensor([0.0, -1000.0]))
        tensor([    0., -1000.])
    """
    _check_logits(logits, dim)
    shifted = shifted_logits(wide(logits), temperature, dim=dim)
    return (shifted - shifted.exp().sum(dim, keepdim=True).log()).to(logits.dtype)


def softmax(
    logits: Float[Tensor, "*shape"], *, temperature: float | Tensor = 1.0, dim: int = -1
) -> Float[Tensor, "*shape"]:
    r"""Return probabilities.

    .. math:: p_i = \frac{e^{z_i / T}}{\sum_j e^{z_j / T}}

    Args:
        logits: Scores :math:`z` in nats. ``-inf`` masks an entry.
        temperature: :math:`T > 0`, dimensionless. Above 1 flattens, below 1 sharpens. A scalar
            tensor is not checked, since reading its value would make an accelerator wait.
        dim: The axis over which the probabilities sum to one.

    Returns:
        Probabilities in [0, 1], exactly 0 at masked entries. NaN in rows where every entry is
        masked or one is ``+inf`` or NaN: these give no distribution, and the caller must say what
        is meant.

    Raises:
        ValueError: If the temperature is not above 0, the logits are not floating, or the axis
            is missing or empty.

    Numerics:
        Shifted by the largest logit, which changes nothing in exact arithmetic and prevents
        overflow. Computed in float32 or better. The shift comes before the division: as the
        temperature falls to 0 the result goes to its limit, equal shares for the largest logits.
        A temperature below the smallest normal number (1.2e-38 in float32) counts as that number.

    References:
        J. S. Bridle, "Probabilistic interpretation of feedforward classification network outputs",
        1990, doi:10.1007/978-3-642-76153-9_28.

    Book: :doc:`/book/foundations/cross_entropy`

    Example:
        >>> softmax(torch.tensor([0.0, 0.0, -torch.inf]))
        tensor([0.5000, 0.5000, 0.0000])
    """
    _check_logits(logits, dim)
    weights = shifted_logits(wide(logits), temperature, dim=dim).exp()
    return (weights / weights.sum(dim, keepdim=True)).to(logits.dtype)


def shifted_logits(logits: Tensor, temperature: float | Tensor, *, dim: int = -1) -> Tensor:
    """Distances of wide logits from the largest one over the temperature: 0 or below.

    Softmax and the losses made of it are the same for these as for ``logits / temperature``,
    which overflows where the temperature is tiny: inf - inf.
    """
    held = held_temperature(temperature, logits)
    # Not _shift: where the largest is infinite every entry should be NaN, and inf - inf is.
    apart = logits - logits.detach().amax(dim, keepdim=True)
    if not isinstance(held, Tensor):
        return apart / held
    # A learned temperature must not meet a masked entry, whose -inf would make its gradient NaN.
    masked = torch.isneginf(apart)
    return (apart.masked_fill(masked, 0.0) / held).masked_fill(masked, float("-inf"))


def held_temperature(temperature: float | Tensor, like: Tensor) -> float | Tensor:
    """The temperature, checked, and no smaller than what has a reciprocal in the dtype."""
    # Below it 0 / T would be NaN where T rounds to 0, or where a device multiplies by 1 / T.
    tiny = torch.finfo(like.dtype).tiny
    if not isinstance(temperature, Tensor):
        check_in_range("temperature", temperature, low=0.0, open_low=True)
        return max(temperature, tiny)
    if temperature.ndim != 0:
        raise ValueError(
            f"temperature must be a scalar, got shape {tuple(temperature.shape)}: to give each "
            "row its own, divide the logits before the call"
        )
    return temperature.to(like.dtype).clamp_min(tiny)


def entropy(probs: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch"]:
    r"""Return the Shannon entropy in nats.

    .. math:: H(p) = -\sum_i p_i \log p_i, \qquad 0 \log 0 = 0

    Args:
        probs: Probabilities :math:`p` that sum to one over the last axis.

    Returns:
        Entropy in nats, in :math:`[0, \log K]`.

    Raises:
        ValueError: If the probabilities are not floating, or have no axis.

    Numerics:
        An entry of 0 adds nothing to the value and nothing to the gradient. That is the limit
        that matters behind a softmax, where :math:`\partial H / \partial z_i =
        -p_i (\log p_i + H)` vanishes with :math:`p_i`.

    Book: :doc:`/book/foundations/cross_entropy`

    Example:
        >>> entropy(torch.tensor([0.5, 0.5, 0.0]))
        tensor(0.6931)
    """
    check_floating("probs", probs)
    if probs.ndim == 0:
        raise ValueError("probs need an axis of classes, got a scalar")
    p = wide(probs)
    # log 1 = 0 stands in for log 0, so that neither value nor gradient meets an infinity.
    log_p = torch.where(p > 0, p, torch.ones_like(p)).log()
    return -(p * log_p).sum(-1).to(probs.dtype)


def softmax_jacobian(
    probs: Float[Tensor, "*batch classes"],
) -> Float[Tensor, "*batch classes classes"]:
    r"""Return the Jacobian of softmax, from its output.

    .. math:: \frac{\partial p}{\partial z} = \operatorname{diag}(p) - p^\top p

    It is symmetric, so the layout :math:`[\partial p / \partial z]_{ij} = \partial p_j / \partial
    z_i` of the book and its transpose are the same matrix. It is also the Hessian of
    :math:`\mathrm{lse}` and of the cross-entropy, and the covariance of a one-hot draw from
    :math:`p`.

    Args:
        probs: Output :math:`p` of softmax at temperature 1, a row vector in the last axis. At
            temperature :math:`T` divide the result by :math:`T`.

    Returns:
        A positive semidefinite matrix for each row, of rank :math:`K - 1` where all
        :math:`p_i > 0`. Its rows sum to zero.

    Raises:
        ValueError: If the probabilities are not floating, or have no axis.

    Numerics:
        :math:`K^2` numbers a row. To multiply by it, use :func:`softmax_vjp`, which needs
        :math:`K`.

    Book: :doc:`/book/foundations/cross_entropy`

    Example:
        >>> softmax_jacobian(torch.tensor([0.25, 0.75]))
        tensor([[ 0.1875, -0.1875],
                [-0.1875,  0.1875]])
    """
    check_floating("probs", probs)
    if probs.ndim == 0:
        raise ValueError("probs need an axis of classes, got a scalar")
    p = wide(probs)
    outer = p.unsqueeze(-1) * p.unsqueeze(-2)
    return (torch.diag_embed(p) - outer).to(probs.dtype)


def softmax_vjp(
    probs: Float[Tensor, "*batch classes"], grad: Float[Tensor, "*batch classes"]
) -> Float[Tensor, "*batch classes"]:
    r"""Pull a gradient back through softmax without forming its Jacobian.

    .. math:: \bar z = \bar p \, (\operatorname{diag}(p) - p^\top p)
        = p \odot (\bar p - \langle \bar p, p \rangle)

    Args:
        probs: Output :math:`p` of softmax at temperature 1.
        grad: Gradient :math:`\bar p` of a scalar with respect to :math:`p`.

    Returns:
        Gradient :math:`\bar z` with respect to the logits. Its rows sum to zero.

    Raises:
        ValueError: If an argument is not floating, or the shapes differ.

    Numerics:
        :math:`O(K)` time and memory a row.

    Book: :doc:`/book/foundations/cross_entropy`

    Example:
        >>> softmax_vjp(torch.tensor([0.25, 0.75]), torch.tensor([1.0, 0.0]))
        tensor([ 0.1875, -0.1875])
    """
    check_floating("probs", probs)
    check_floating("grad", grad)
    check_same_shape("probs", probs, "grad", grad)
    p, g = wide(probs), wide(grad)
    return (p * (g - (g * p).sum(-1, keepdim=True))).to(probs.dtype)
