r"""Training data of one law, test data of another: what can be bounded, and what can be done.

Importance weights for finite laws are :func:`companion.knowledge.data_quality.importance_weights`;
here they come from a classifier of domains.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import (
    can_read,
    check_count,
    check_floating,
    check_ids,
    check_in_range,
    check_same_shape,
    check_shape,
    wide,
)

__all__ = [
    "GroupDRO",
    "GroupMeans",
    "domain_weights",
    "group_means",
    "group_weights",
    "hypothesis_divergence",
    "proxy_a_distance",
    "reverse_gradient",
    "robust_value",
    "weighted_risk",
]


def hypothesis_divergence(
    answers: Integer[Tensor, "hypotheses points"],
    source: Float[Tensor, " points"],
    target: Float[Tensor, " points"],
) -> Float[Tensor, ""]:
    r"""Compute how far two laws are apart for the eyes of a class of hypotheses.

    .. math:: d_{\mathcal H\Delta\mathcal H}=2\max_{h,h'\in\mathcal H}\bigl\lvert
        P_S(h\ne h')-P_T(h\ne h')\bigr\rvert

    Args:
        answers: What each hypothesis answers at each point of a finite world.
        source: Probabilities of the points in the source domain.
        target: Probabilities of the points in the target domain.

    Returns:
        From 0 to 2.

    Raises:
        ValueError: If shapes do not fit, or there is no hypothesis.

    Complexity:
        All pairs of hypotheses at all points: for finite worlds, and for understanding.

    References:
        Ben-David et al. 2010, doi:10.1007/s10994-009-5152-4, definition 3.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> answers = torch.tensor([[0, 0], [0, 1]])
        >>> hypothesis_divergence(answers, torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]))
        tensor(0.5000)
    """
    check_shape("source", source, (answers.shape[1],))
    check_shape("target", target, (answers.shape[1],))
    if not len(answers):
        raise ValueError("answers must hold one hypothesis or more, got none")
    differ = (answers[:, None] != answers[None]).to(source.dtype)
    return 2 * (differ @ (source - target)).abs().amax()


def proxy_a_distance(error: float) -> float:
    r"""Turn the error of a classifier of domains into a distance: :math:`2(1-2\varepsilon)`.

    It stands in for the divergence of a class, which nobody can maximize. It is that of the
    classifier that was trained, on the features that it saw: neither a bound nor an estimate of one
    without further assumptions.

    Args:
        error: Error on held-out examples of two equally frequent domains, in [0, 1].

    Returns:
        2 for domains that are told apart without error, 0 for guessing; 0 also below chance.

    Raises:
        ValueError: If the error does not lie in [0, 1].

    References:
        Ben-David et al. 2007, "Analysis of Representations for Domain Adaptation", NeurIPS.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> proxy_a_distance(0.1), proxy_a_distance(0.5)
        (1.6, 0.0)
    """
    check_in_range("error", error, low=0.0, high=1.0)
    return max(0.0, 2 * (1 - 2 * error))


def domain_weights(
    logits: Float[Tensor, "*batch"], *, sources: int, targets: int
) -> Float[Tensor, "*batch"]:
    r"""Turn a domain classifier's log-odds into weights :math:`p_T(x)/p_S(x)`.

    .. math:: w(x)=\frac{n_S}{n_T}\cdot\frac{P(T\mid x)}{P(S\mid x)}=\frac{n_S}{n_T}e^{z(x)}

    Args:
        logits: Log-odds :math:`z` of the target domain.
        sources: Number :math:`n_S` of source examples in the classifier's training.
        targets: Number :math:`n_T` of target examples.

    Returns:
        Weights above 0. Their mean over source examples is 1 for a perfect classifier; how far it
        is from 1 tells how imperfect this one is.

    Raises:
        ValueError: If a number is below 1 or the logits are not floating.

    References:
        Bickel, Brückner and Scheffer 2007, doi:10.1145/1273496.1273507.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> domain_weights(torch.tensor([0.0]), sources=300, targets=100)
        tensor([3.])
    """
    check_floating("logits", logits)
    check_count("sources", sources)
    check_count("targets", targets)
    return (logits + math.log(sources / targets)).exp()


def weighted_risk(
    losses: Float[Tensor, " n"], weights: Float[Tensor, " n"], *, normalize: bool = False
) -> Float[Tensor, ""]:
    r"""Estimate the risk under another law: :math:`\frac1n\sum_iw_i\ell_i`.

    Args:
        losses: Losses of examples of the source.
        weights: :math:`p_T/p_S` at the examples, 0 or above.
        normalize: Divide by :math:`\sum_iw_i` in place of :math:`n`: a little biased, of smaller
            variance, and indifferent to a factor of the weights.

    Returns:
        The estimate.

    Raises:
        ValueError: If shapes differ, there is no example, a weight is negative, or all weights
            are 0 where they are normalized.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> weighted_risk(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 1.0]))
        tensor(1.7500)
    """
    check_same_shape("losses", losses, "weights", weights)
    if can_read(weights) and bool((weights < 0).any()):
        raise ValueError(f"weights must be 0 or above, got {float(weights.min())}")
    if not len(losses):
        raise ValueError("losses must hold one example or more, got none")
    total = weights.sum() if normalize else len(losses)
    if isinstance(total, Tensor) and can_read(total) and not bool(total > 0):
        raise ValueError("weights must not all be 0 where they are normalized")
    risk: Tensor = (weights * losses).sum() / total
    return risk


class GroupMeans(NamedTuple):
    """Means by group.

    Attributes:
        means: Mean loss of each group; 0 for a group without examples.
        present: Whether a group has examples.
    """

    means: Float[Tensor, " groups"]
    present: Bool[Tensor, " groups"]


def group_means(
    losses: Float[Tensor, " n"], group: Integer[Tensor, " n"], *, groups: int
) -> GroupMeans:
    """Compute the mean loss of each group of a batch.

    Args:
        losses: One loss an example.
        group: Group of each example, from 0.
        groups: Number of groups.

    Returns:
        Means, in the dtype of the losses, and which groups are there. A group that is not has the
        mean 0 and no gradient, not NaN.

    Raises:
        ValueError: If shapes differ, or a group is out of range.

    Numerics:
        Losses and counts are summed in float32 at least: in bfloat16 a count stops at 256.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> group_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2]), groups=3)
        GroupMeans(means=tensor([2., 0., 5.]), present=tensor([ True, False,  True]))
    """
    check_count("groups", groups)
    check_same_shape("losses", losses, "group", group)
    check_ids("group", group, size=groups)
    held = wide(losses)
    counts = torch.zeros(groups, dtype=held.dtype, device=held.device)
    counts = counts.index_add(0, group, torch.ones_like(held))
    sums = torch.zeros_like(counts).index_add(0, group, held)
    return GroupMeans((sums / counts.clamp_min(1)).to(losses.dtype), counts > 0)


def group_weights(
    weights: Float[Tensor, " groups"],
    means: Float[Tensor, " groups"],
    present: Bool[Tensor, " groups"],
    *,
    step: float,
) -> Float[Tensor, " groups"]:
    r"""Raise the weights of groups with large losses: :math:`q_g\leftarrow q_ge^{\eta L_g}/Z`.

    A group that is absent from the batch keeps its weight: nothing was learned about it. What the
    present ones have together is divided among them. To multiply an absent group by
    :math:`e^{\eta\cdot0}` and normalize all would lower it, unseen.

    Args:
        weights: :math:`q`, of sum 1.
        means: Mean losses :math:`L`.
        present: Which groups the batch has.
        step: :math:`\eta`, 0 or above.

    Returns:
        New weights, of the same sum. A group whose mean is not finite keeps its weight, too.

    Raises:
        ValueError: If shapes differ, or the step is negative.

    Numerics:
        A softmax of :math:`\ln q+\eta L`: large losses do not overflow.

    References:
        Sagawa et al. 2020, arXiv:1911.08731, algorithm 1; the rule for absent groups is ours.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> q, means = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.0, 0.0, 1.0])
        >>> group_weights(q, means, torch.tensor([False, True, True]), step=1.0)
        tensor([0.5000, 0.1345, 0.3655])
    """
    check_same_shape("weights", weights, "means", means)
    check_same_shape("weights", weights, "present", present)
    check_in_range("step", step, low=0.0, open_high=True)
    # A weight that is not a number would stay one: such a group is taken to be absent.
    present = present & means.isfinite()
    held = torch.where(present, weights, 0.0).sum()
    grown = torch.where(present, weights.log() + step * means, -math.inf)
    # Where no group is present all rows are -inf, and nothing is to be shared out.
    top = torch.where(present.any(), grown.amax(), 0.0)
    shares = (grown - torch.where(top.isfinite(), top, 0.0)).exp()
    total = shares.sum()
    new = held * shares / torch.where(total > 0, total, 1.0)
    return torch.where(present & (total > 0), new, weights)


class GroupDRO:
    r"""Minimize the loss of the worst group: :math:`\min_\theta\max_q\sum_gq_gL_g(\theta)`.

    The weights :math:`q` climb while the model descends. Judge it against training on batches in
    which every group is equally frequent: that alone explains much of what it gains.

    Args:
        groups: Number of groups.
        step: How fast the weights climb, :math:`\eta`, above 0.
        device: Where the weights are.
        dtype: Their floating dtype.

    Raises:
        ValueError: If a number is out of its range.

    References:
        Sagawa et al. 2020, arXiv:1911.08731, algorithm 1.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> dro = GroupDRO(2, step=1.0)
        >>> dro.loss(torch.tensor([0.0, 2.0]), torch.tensor([0, 1]))
        tensor(1.7616)
        >>> dro.weights
        tensor([0.1192, 0.8808])
    """

    def __init__(
        self,
        groups: int,
        *,
        step: float,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_count("groups", groups)
        check_in_range("step", step, low=0.0, open_low=True)
        self.groups, self.step = groups, step
        self.weights = torch.full((groups,), 1 / groups, device=device, dtype=dtype)

    def loss(self, losses: Float[Tensor, " n"], group: Integer[Tensor, " n"]) -> Float[Tensor, ""]:
        r"""Move the weights, then give the loss to descend on: :math:`\sum_gq_gL_g`.

        Args:
            losses: One loss an example.
            group: Group of each example.

        Returns:
            The weighted sum over the groups that are there. Gradients flow through the losses, not
            through the weights. It is no weighted mean over examples: a group counts by its
            weight, however many examples it has.

        Raises:
            ValueError: If shapes differ, or a group is out of range.
        """
        means, present = group_means(losses, group, groups=self.groups)
        self.weights = group_weights(
            self.weights, means.detach().to(self.weights.dtype), present, step=self.step
        )
        return (self.weights * means).sum()


def robust_value(losses: Float[Tensor, " groups"], *, step: float) -> Float[Tensor, ""]:
    r"""Compute a soft maximum: :math:`\frac1\eta\ln\frac1G\sum_ge^{\eta L_g}`.

    It lies between the mean (:math:`\eta\to0`) and the maximum (:math:`\eta\to\infty`).

    Args:
        losses: Mean losses of the groups.
        step: :math:`\eta`, above 0.

    Returns:
        The soft maximum.

    Raises:
        ValueError: If the step is not above 0 and finite, or there is no group.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> robust_value(torch.tensor([1.0, 3.0]), step=100.0)
        tensor(2.9931)
    """
    check_in_range("step", step, low=0.0, open_low=True, open_high=True)
    if not len(losses):
        raise ValueError("losses must hold one group or more, got none")
    value: Tensor = ((step * losses).logsumexp(0) - math.log(len(losses))) / step
    return value


def reverse_gradient(x: Float[Tensor, "*shape"], *, strength: float) -> Float[Tensor, "*shape"]:
    r"""Return the input, and send its gradient back as :math:`-\lambda g`.

    Between features and an adversary one backward pass then does two things: a classifier of
    domains learns to tell them apart, and the features learn to prevent it (DANN); or a reader
    learns to find a group, and an encoder to hide it.

    Args:
        x: Finite features.
        strength: :math:`\lambda`, 0 or more. With 0 the adversary watches and nothing comes back.

    Returns:
        The same numbers.

    Raises:
        ValueError: If the strength is below 0: two signs make an ally of the adversary.

    References:
        Ganin and Lempitsky 2015, arXiv:1409.7495; Ganin et al. 2016, arXiv:1505.07818, sec. 4.2.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> (3 * reverse_gradient(x, strength=0.5)).sum().backward()
        >>> x.grad
        tensor([-1.5000, -1.5000])
    """
    check_in_range("strength", strength, low=0.0, open_high=True)
    fixed = x.detach()
    return fixed + strength * (fixed - x)  # adds 0, whose gradient is -strength
