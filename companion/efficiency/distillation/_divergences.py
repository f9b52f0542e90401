"""How far the student's distribution is from the teacher's, in nats."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import can_read, check_floating, check_in_range, wide
from companion.foundations.cross_entropy import log_softmax

__all__ = ["forward_kl", "generalized_jsd", "reverse_kl"]


def check_pair(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Require two rows of logits over the same classes."""
    check_floating("student_logits", student_logits)
    check_floating("teacher_logits", teacher_logits)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            "student_logits and teacher_logits must have the same shape, got "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}: where only the last "
            "sizes differ the vocabularies do; map one onto the other first, or cut off rows that "
            "are padding"
        )
    if student_logits.ndim == 0 or student_logits.shape[-1] == 0:
        raise ValueError(
            f"student_logits need an axis of classes, got shape {tuple(student_logits.shape)}"
        )


def mean_over(losses: Tensor, real: Tensor | None) -> Tensor:
    """Average over all positions that count, however many axes they have."""
    if real is None:
        if losses.numel() == 0:
            raise ValueError("there is no position to average over: the batch is empty")
        return losses.mean()
    if real.shape != losses.shape:
        raise ValueError(
            f"real must have one entry a position, {tuple(losses.shape)}, got {tuple(real.shape)}"
        )
    if can_read(real) and not bool(real.any()):
        raise ValueError(
            "real is False everywhere, or no target counts: a batch without tokens teaches nothing"
        )
    kept = torch.where(real, losses, torch.zeros_like(losses))
    return kept.sum() / real.sum().clamp_min(1)


def without(numbers: Tensor, real: Tensor | None) -> Tensor:
    """Put 0 at the positions that do not count: all axes of ``numbers`` but the last.

    What stands there may be infinite or NaN, such as a teacher's answers to padding. A loss that
    is left out of the mean later does not reach the value, but it reaches the gradient: 0 times
    NaN.
    """
    if real is None:
        return numbers
    if real.shape != numbers.shape[:-1]:
        raise ValueError(
            f"real must have one entry a position, {tuple(numbers.shape[:-1])}, got "
            f"{tuple(real.shape)}"
        )
    return numbers.masked_fill(~real[..., None], 0.0)


def relative_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) along the last axis. A class of probability 0 under p adds nothing."""
    p = log_p.exp()
    absent = p == 0  # 0 * (-inf) would be NaN, here and in the gradient
    difference = log_p.masked_fill(absent, 0.0) - log_q.masked_fill(absent, 0.0)
    return (p * difference).sum(-1)


def _mixture(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    # A sum of probabilities, made of logarithms. Averaging log-probabilities would be another,
    # unnormalized thing.
    first, second = log_p + math.log(beta), log_q + math.log1p(-beta)
    absent = torch.isneginf(first) & torch.isneginf(second)
    sums = torch.logaddexp(first.masked_fill(absent, 0.0), second.masked_fill(absent, 0.0))
    return sums.masked_fill(absent, -torch.inf)


def forward_kl(
    student_logits: Float[Tensor, "*batch classes"],
    teacher_logits: Float[Tensor, "*batch classes"],
    *,
    temperature: float = 1.0,
    real: Bool[Tensor, "*batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Return the divergence of the student from the teacher, teacher first: it covers modes.

    .. math:: \mathrm{KL}(p_t \Vert p_s) = \sum_k p_t(k)\,\log\frac{p_t(k)}{p_s(k)},
       \qquad p = \mathrm{softmax}(z / T)

    Args:
        student_logits: Scores :math:`z_s` in nats.
        teacher_logits: Scores :math:`z_t` of the same classes. Detach them, or compute them under
            ``torch.no_grad()``, unless the teacher learns, too.
        temperature: :math:`T > 0`, the same for both. There is no factor :math:`T^2` here.
        real: Which positions count; all by default.

    Returns:
        Nats, 0 or above: a sum over classes, a mean over all positions that count. In float32 or
        better. Infinite where the student excludes (``-inf``) what the teacher does not.

    Raises:
        ValueError: If shapes do not fit, the temperature is not above 0, or no position counts.

    Numerics:
        ``F.kl_div`` takes its arguments the other way around, divides by the number of classes
        as well by its default reduction, and for ``"batchmean"`` by the first axis alone.

    Book: :doc:`/book/efficiency/distillation`

    Example:
        >>> teacher = torch.tensor([[2.0, 0.0, 0.0]])
        >>> forward_kl(torch.zeros(1, 3), teacher)
        tensor(0.4330)
    """
    check_pair(student_logits, teacher_logits)
    log_s = log_softmax(wide(without(student_logits, real)), temperature=temperature)
    log_t = log_softmax(wide(without(teacher_logits, real)), temperature=temperature)
    return mean_over(relative_entropy(log_t, log_s), real)


def reverse_kl(
    student_logits: Float[Tensor, "*batch classes"],
    teacher_logits: Float[Tensor, "*batch classes"],
    *,
    temperature: float = 1.0,
    real: Bool[Tensor, "*batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Return the divergence with the student first: it seeks a mode and avoids what is not there.

    .. math:: \mathrm{KL}(p_s \Vert p_t) = \sum_k p_s(k)\,\log\frac{p_s(k)}{p_t(k)}

    Args:
        student_logits: Scores :math:`z_s` in nats.
        teacher_logits: Scores :math:`z_t` of the same classes.
        temperature: :math:`T > 0`, the same for both.
        real: Which positions count; all by default.

    Returns:
        Nats, 0 or above, as :func:`forward_kl`. Infinite where the teacher excludes what the
        student does not.

    Raises:
        ValueError: As :func:`forward_kl`.

    References:
        Gu et al. 2024, "MiniLLM", arXiv:2306.08543, minimizes it over whole texts; this is its
        value at one position.

    Book: :doc:`/book/efficiency/distillation`

    Example:
        >>> teacher = torch.tensor([[2.0, 0.0, 0.0]])
        >>> reverse_kl(torch.zeros(1, 3), teacher)
        tensor(0.4743)
    """
    check_pair(student_logits, teacher_logits)
    log_s = log_softmax(wide(without(student_logits, real)), temperature=temperature)
    log_t = log_softmax(wide(without(teacher_logits, real)), temperature=temperature)
    return mean_over(relative_entropy(log_s, log_t), real)


def generalized_jsd(
    student_logits: Float[Tensor, "*batch classes"],
    teacher_logits: Float[Tensor, "*batch classes"],
    *,
    beta: float = 0.5,
    scaled: bool = False,
    temperature: float = 1.0,
    real: Bool[Tensor, "*batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Return the generalized Jensen-Shannon divergence between teacher and student.

    .. math:: J_\beta = \beta\,\mathrm{KL}(p_t \Vert m) + (1 - \beta)\,\mathrm{KL}(p_s \Vert m),
       \qquad m = \beta p_t + (1 - \beta) p_s

    It is bounded by :math:`\log 2`, even where supports differ, and goes to 0 at both ends of
    :math:`\beta`. Divided by :math:`\beta(1 - \beta)` it goes from the forward divergence at
    :math:`\beta \to 0` to the reverse one at :math:`\beta \to 1`.

    Args:
        student_logits: Scores :math:`z_s` in nats.
        teacher_logits: Scores :math:`z_t` of the same classes.
        beta: :math:`\beta`, the teacher's weight in the mixture, in (0, 1); with ``scaled`` the
            ends are allowed.
        scaled: Whether to return :math:`J_\beta / (\beta(1 - \beta))`, whose gradient does not
            vanish at the ends.
        temperature: :math:`T > 0`, the same for both.
        real: Which positions count; all by default.

    Returns:
        Nats, 0 or above, a mean over the positions that count.

    Raises:
        ValueError: As :func:`forward_kl`, or if :math:`\beta` is an end and not ``scaled``: the
            loss would be 0 for every student.

    Numerics:
        The mixture is one of probabilities, made of log-probabilities by ``logaddexp``. Very near
        the ends the scaled form divides rounding errors by :math:`\beta`.

    References:
        Agarwal et al. 2024, "On-Policy Distillation of Language Models", arXiv:2306.13649, sec. 2.
        ``trl`` takes the plain form inside and jumps to the two divergences at the ends.

    Book: :doc:`/book/efficiency/distillation`

    Example:
        >>> teacher = torch.tensor([[2.0, 0.0, 0.0]])
        >>> generalized_jsd(torch.zeros(1, 3), teacher)
        tensor(0.1087)
    """
    check_in_range("beta", beta, low=0.0, high=1.0, open_low=not scaled, open_high=not scaled)
    if beta in (0.0, 1.0):
        end = reverse_kl if beta else forward_kl
        return end(student_logits, teacher_logits, temperature=temperature, real=real)
    check_pair(student_logits, teacher_logits)
    log_s = log_softmax(wide(without(student_logits, real)), temperature=temperature)
    log_t = log_softmax(wide(without(teacher_logits, real)), temperature=temperature)
    log_m = _mixture(log_t, log_s, beta)
    from_teacher = relative_entropy(log_t, log_m)
    from_student = relative_entropy(log_s, log_m)
    losses = beta * from_teacher + (1 - beta) * from_student
    return mean_over(losses / (beta * (1 - beta)) if scaled else losses, real)
