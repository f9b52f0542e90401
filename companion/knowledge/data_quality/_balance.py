r"""Classes and domains of unequal size: weights, adjusted logits, and mixtures."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.core import (
    can_read,
    check_count,
    check_finite,
    check_floating,
    check_ids,
    check_in_range,
    check_shape,
    wide,
)
from companion.knowledge.data_quality._noise import check_labels

__all__ = [
    "DoReMi",
    "adjust_logits",
    "class_balanced_weights",
    "domain_excess",
    "doremi_step",
    "effective_number",
    "effective_sample_size",
    "focal_loss",
    "importance_weights",
    "logit_adjusted_cross_entropy",
    "sampling_probs",
]

Reduction = Literal["mean", "sum", "none"]


def importance_weights(
    target: Float[Tensor, "*batch kinds"], source: Float[Tensor, "*batch kinds"]
) -> Float[Tensor, "*batch kinds"]:
    r"""The ratio of two laws, :math:`w_k=q_k/p_k`, with :math:`\mathbb E_p[wf]=\mathbb E_q[f]`.

    Args:
        target: The law :math:`q` that is wanted.
        source: The law :math:`p` of the data, positive wherever :math:`q` is.

    Returns:
        The weights; 0 where both are 0.

    Raises:
        ValueError: If shapes differ, a number is negative, or the data never show what is wanted.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> importance_weights(torch.tensor([0.5, 0.5]), torch.tensor([0.8, 0.2]))
        tensor([0.6250, 2.5000])
    """
    if target.shape != source.shape:
        raise ValueError(
            f"target and source must have the same shape, got {tuple(target.shape)} and "
            f"{tuple(source.shape)}"
        )
    if can_read(source) and bool(((source < 0) | (target < 0)).any()):
        raise ValueError("target and source must be 0 or above: they are laws")
    if can_read(source) and bool(((source <= 0) & (target > 0)).any()):
        raise ValueError("source must be positive wherever target is: no weight makes up for none")
    none = source == 0
    return torch.where(none, 0.0, target / torch.where(none, 1.0, source))


def effective_sample_size(weights: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    r"""How many equally weighted examples are worth as much: :math:`(\sum w)^2/\sum w^2`.

    Args:
        weights: 0 or above.

    Returns:
        Between 1 and n.

    Raises:
        ValueError: If a weight is negative, or all of a row are 0.

    References:
        Kish 1965, *Survey Sampling*.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> effective_sample_size(torch.tensor([1.0, 1.0, 2.0]))
        tensor(2.6667)
    """
    check_floating("weights", weights)
    w = wide(weights)
    if can_read(w) and (bool((w < 0).any()) or bool((w == 0).all(-1).any())):
        raise ValueError("weights must be 0 or above, and one of them positive")
    return w.sum(-1).square() / w.square().sum(-1)


def adjust_logits(
    logits: Float[Tensor, "*batch classes"], prior: Float[Tensor, " classes"], *, tau: float = 1.0
) -> Float[Tensor, "*batch classes"]:
    r"""Take the prior out of the logits of a trained model: :math:`z_k-\tau\log\pi_k`.

    If the softmax of :math:`z` is the law of classes where :math:`\pi` is their prior, that of the
    result with :math:`\tau=1` is the law where all classes are equally frequent.

    Args:
        logits: Of a model trained by plain cross-entropy. One trained by
            :func:`logit_adjusted_cross_entropy` needs no adjustment any more.
        prior: Shares :math:`\pi` of the classes in training, positive.
        tau: Strength.

    Returns:
        Adjusted logits.

    Raises:
        ValueError: If shapes do not fit or a share is not positive.

    References:
        Menon et al. 2021, arXiv:2007.07314.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> adjust_logits(torch.tensor([1.0, 0.0]), torch.tensor([0.9, 0.1])).argmax()
        tensor(1)
    """
    return logits - tau * _log_prior(logits, prior)


def logit_adjusted_cross_entropy(
    logits: Float[Tensor, "*batch classes"],
    labels: Int[Tensor, "*batch"],
    prior: Float[Tensor, " classes"],
    *,
    tau: float = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""Cross-entropy of logits to which the prior is added: of :math:`z_k+\tau\log\pi_k`.

    The model then learns what is left when the prior is explained, and predicts with its plain
    logits. Do not adjust them once more.

    Args:
        logits: Scores :math:`z`.
        labels: Labels.
        prior: Shares :math:`\pi` of the classes in training, positive.
        tau: Strength.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``.

    Returns:
        Nats; a scalar, or one number a row.

    Raises:
        ValueError: If shapes do not fit or a share is not positive.

    References:
        Menon et al. 2021, arXiv:2007.07314.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> prior = torch.tensor([0.9, 0.1])
        >>> logit_adjusted_cross_entropy(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), prior)
        tensor(3.2373)
    """
    check_labels(logits, labels)
    moved = wide(logits) + tau * _log_prior(wide(logits), prior)
    logs = moved.log_softmax(-1).gather(-1, labels.long()[..., None])[..., 0]
    return _reduced(-logs, reduction)


def focal_loss(
    logits: Float[Tensor, "*batch classes"],
    labels: Int[Tensor, "*batch"],
    *,
    gamma: float = 2.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""Cross-entropy in which easy examples count less: :math:`-(1-p_y)^\gamma\log p_y`.

    Args:
        logits: Scores, whose softmax is :math:`p`.
        labels: Labels.
        gamma: 0 or above; 0 is cross-entropy.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``.

    Returns:
        The loss; a scalar, or one number a row.

    Raises:
        ValueError: If gamma is negative or shapes do not fit.

    Numerics:
        :math:`1-p_y` by ``expm1`` of the log-probability, exact where :math:`p_y` is near 1.
        With gamma below 1 the gradient is not finite at :math:`p_y=1`.

    References:
        Lin et al. 2017, arXiv:1708.02002, eq. 4.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> focal_loss(torch.zeros(1, 2), torch.tensor([0]), gamma=2.0)
        tensor(0.1733)
    """
    check_in_range("gamma", gamma, low=0.0, open_high=True)
    check_labels(logits, labels)
    logs = wide(logits).log_softmax(-1).gather(-1, labels.long()[..., None])[..., 0]
    return _reduced(-((-torch.expm1(logs)) ** gamma) * logs, reduction)


def sampling_probs(
    counts: Float[Tensor, " kinds"] | Int[Tensor, " kinds"], *, alpha: float = 0.3
) -> Float[Tensor, " kinds"]:
    r"""How often to draw from sources of different sizes: :math:`p_l\propto n_l^\alpha`.

    With :math:`\alpha=1` each example is drawn equally often, with 0 each source. Some write the
    exponent as :math:`1/T` with a temperature :math:`T`; 0.3 is :math:`T\approx3.3`.

    Args:
        counts: Sizes :math:`n_l`, 0 or above.
        alpha: In [0, 1].

    Returns:
        Probabilities in float64; 0 for empty sources.

    Raises:
        ValueError: If alpha is out of its domain, or no source has anything.

    References:
        Conneau et al. 2020, arXiv:1911.02116, sec. 3; Xue et al. 2021, arXiv:2010.11934, sec. 3.2:
        0.3 for mT5.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> sampling_probs(torch.tensor([1_000_000, 1_000]), alpha=0.3)
        tensor([0.8882, 0.1118], dtype=torch.float64)
    """
    check_in_range("alpha", alpha, low=0.0, high=1.0)
    n = counts.double()
    if can_read(n) and not (bool((n >= 0).all()) and 0 < float(n.sum()) < torch.inf):
        raise ValueError("counts must be finite, 0 or above, and one of them positive")
    logs = torch.where(n > 0, alpha * n.clamp(min=1e-300).log(), -torch.inf)
    return logs.softmax(-1)


def effective_number(
    counts: Float[Tensor, "*batch"] | Int[Tensor, "*batch"], *, beta: float
) -> Float[Tensor, "*batch"]:
    r"""What n examples are worth if each new one may repeat an old: :math:`(1-\beta^n)/(1-\beta)`.

    Args:
        counts: Numbers of examples :math:`n`.
        beta: :math:`(N-1)/N` where the class has :math:`N` different things to show; in [0, 1).

    Returns:
        Between 1 and :math:`N`, in float64; 0 for no example.

    Raises:
        ValueError: If beta is out of its domain, or a number is negative.

    Numerics:
        By ``expm1`` of :math:`n\log\beta`, so that it is exact for beta near 1.

    References:
        Cui et al. 2019, arXiv:1901.05555, proposition 1.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> effective_number(torch.tensor([1, 2, 1000]), beta=0.9)
        tensor([ 1.0000,  1.9000, 10.0000], dtype=torch.float64)
    """
    check_in_range("beta", beta, low=0.0, high=1.0, open_high=True)
    n = counts.double()
    if can_read(n) and bool((n < 0).any()):
        raise ValueError(f"counts must be 0 or above, the least is {float(n.min()):g}")
    if beta == 0:
        return (n > 0).double()
    log = torch.log(torch.tensor(beta, dtype=torch.float64)).to(n.device)
    return -torch.expm1(n * log) / (1 - beta)


def class_balanced_weights(
    counts: Int[Tensor, " classes"], *, beta: float = 0.999
) -> Float[Tensor, " classes"]:
    """Weights of classes in inverse proportion to their effective numbers, of mean 1.

    Args:
        counts: Examples of each class, 1 or more.
        beta: As in :func:`effective_number`; 0 weighs all classes alike, near 1 by inverse counts.

    Returns:
        Weights in float64.

    Raises:
        ValueError: If beta is out of its domain, or a class is empty.

    References:
        Cui et al. 2019, arXiv:1901.05555, sec. 4.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> class_balanced_weights(torch.tensor([100, 10]), beta=0.9)
        tensor([0.7889, 1.2111], dtype=torch.float64)
    """
    if can_read(counts) and bool((counts < 1).any()):
        raise ValueError(
            "counts must be 1 or more: no weight makes up for a class without examples"
        )
    inverse = 1 / effective_number(counts, beta=beta)
    return inverse / inverse.mean()


def domain_excess(
    nats: Float[Tensor, " tokens"],
    reference: Float[Tensor, " tokens"],
    domains: Int[Tensor, " tokens"],
    count: int,
) -> Float[Tensor, " count"]:
    r"""How much worse a model is than a reference on each domain: the mean excess of a token.

    .. math:: \lambda_i=\frac1{\lvert x_i\rvert}\sum_{t\in x_i}
        \max\big(\ell_t-\ell_t^{\mathrm{ref}},0\big)

    Args:
        nats: Surprise of each token to the model.
        reference: Its surprise to the reference.
        domains: The domain of each token, in 0, ..., count - 1.
        count: How many domains there are.

    Returns:
        A mean for each domain over its *own* tokens; 0 for one that is not in the batch.

    Raises:
        ValueError: If shapes differ or a domain is out of range.

    References:
        Xie et al. 2023, arXiv:2305.10429, algorithm 1.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> l, r = torch.tensor([2.0, 3.0, 1.0]), torch.tensor([1.0, 1.0, 2.0])
        >>> domain_excess(l, r, torch.tensor([0, 0, 1]), 3)
        tensor([1.5000, 0.0000, 0.0000])
    """
    check_count("count", count)
    check_floating("nats", nats)
    check_shape("reference", reference, tuple(nats.shape))
    check_shape("domains", domains, tuple(nats.shape))
    check_ids("domains", domains, count)
    over = wide((nats - reference).clamp(min=0))
    zero = torch.zeros(count, dtype=over.dtype, device=over.device)
    sums = zero.index_add(0, domains.long(), over)
    tokens = zero.index_add(0, domains.long(), torch.ones_like(over))
    return sums / tokens.clamp(min=1)


def doremi_step(
    weights: Float[Tensor, " domains"],
    excess: Float[Tensor, " domains"],
    *,
    step: float = 1.0,
    smoothing: float = 1e-3,
) -> Float[Tensor, " domains"]:
    r"""One step of exponentiated gradient ascent on the weights of domains.

    .. math::
        \alpha_i\leftarrow(1-c)\,\frac{\alpha_ie^{\eta\lambda_i}}
        {\sum_j\alpha_je^{\eta\lambda_j}}+\frac c m

    Args:
        weights: Weights :math:`\alpha` of the :math:`m` domains, positive, of sum 1.
        excess: Their excess losses :math:`\lambda`.
        step: :math:`\eta`, 0 or above.
        smoothing: :math:`c` in [0, 1): the share that goes to all domains alike.

    Returns:
        New weights, of sum 1.

    Raises:
        ValueError: If shapes differ, an excess is not finite, or an argument is out of its domain.

    References:
        Xie et al. 2023, arXiv:2305.10429, algorithm 1, with their step 1 and smoothing 0.001.

    Book: :doc:`/book/knowledge/data_quality`

    Example:
        >>> doremi_step(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]), smoothing=0.0)
        tensor([0.7311, 0.2689])
    """
    check_shape("excess", excess, tuple(weights.shape))
    check_finite("excess", excess)
    check_in_range("step", step, low=0.0, open_high=True)
    check_in_range("smoothing", smoothing, low=0.0, high=1.0, open_high=True)
    if can_read(weights) and not bool((weights > 0).all()):
        raise ValueError("weights must be positive: a weight of 0 never comes back")
    moved = (weights.log() + step * excess).softmax(-1)
    return (1 - smoothing) * moved + smoothing / weights.shape[0]


class DoReMi(NamedTuple):
    """Weights of domains over a run, with the mean that is used in the end.

    Attributes:
        weights: The weights now, of sum 1.
        total: Their sum over all steps so far.
        steps: How many steps there were.
    """

    weights: Float[Tensor, " m"]
    total: Float[Tensor, " m"]
    steps: int

    @classmethod
    def start(cls, prior: Float[Tensor, " m"]) -> "DoReMi":
        """Begin with the given weights.

        Args:
            prior: Positive numbers, which are scaled to the sum 1.

        Returns:
            The state before the first step.

        Raises:
            ValueError: If a number is not positive.
        """
        if can_read(prior) and not bool((prior > 0).all()):
            raise ValueError("prior must be positive: a weight of 0 never comes back")
        weights = prior.double() / prior.double().sum()
        return cls(weights, torch.zeros_like(weights), 0)

    def step(
        self, excess: Float[Tensor, " m"], *, step: float = 1.0, smoothing: float = 1e-3
    ) -> "DoReMi":
        """Take one step of :func:`doremi_step`.

        Args:
            excess: Excess losses of the domains.
            step: Its size.
            smoothing: The share that goes to all domains alike.

        Returns:
            The state after it.
        """
        weights = doremi_step(self.weights, excess.double(), step=step, smoothing=smoothing)
        return DoReMi(weights, self.total + weights, self.steps + 1)

    @property
    def mean(self) -> Float[Tensor, " m"]:
        """The mean of the weights over all steps, with which the large model is trained.

        Before the first step these are the weights that the run begins with.
        """
        return self.total / self.steps if self.steps else self.weights


def _log_prior(logits: Tensor, prior: Tensor) -> Tensor:
    check_floating("logits", logits)
    check_shape("prior", prior, (logits.shape[-1],))
    if can_read(prior) and not bool((prior > 0).all()):
        raise ValueError("prior must be positive: leave out classes that training never shows")
    # The logarithm first: in half precision a share below 3e-8 is 0.
    exact = prior.to(torch.promote_types(wide(prior).dtype, logits.dtype))
    return exact.log().to(logits)


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return losses.mean()
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses
    raise ValueError(f"unknown reduction {reduction!r}: choose 'mean', 'sum' or 'none'")
