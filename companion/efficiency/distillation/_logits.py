"""Losses on the teacher's answers: all of its logits, the likeliest few, or scores of facts."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import (
    can_read,
    check_count,
    check_finite,
    check_floating,
    check_ids,
    check_in_range,
    check_same_shape,
    check_shape,
    wide,
)
from companion.efficiency.distillation._divergences import (
    check_pair,
    forward_kl,
    mean_over,
    relative_entropy,
    without,
)
from companion.foundations.cross_entropy import IGNORE, cross_entropy, log_softmax

__all__ = ["TopK", "kd_loss", "knowledge_loss", "top_k_kd_loss", "top_k_log_probs"]


def kd_loss(
    student_logits: Float[Tensor, "*batch classes"],
    teacher_logits: Float[Tensor, "*batch classes"],
    targets: Integer[Tensor, "*batch"] | None = None,
    *,
    temperature: float,
    alpha: float,
    real: Bool[Tensor, "*batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Return the loss of knowledge distillation: labels and the teacher's softened answers.

    .. math:: L = (1 - \alpha)\,\mathrm{CE}(y, p_s)
       + \alpha\,T^2\,\mathrm{KL}\big(p_t^{(T)} \Vert p_s^{(T)}\big),
       \qquad p^{(T)} = \mathrm{softmax}(z / T)

    Args:
        student_logits: Scores :math:`z_s` in nats.
        teacher_logits: Scores :math:`z_t` of the same classes, detached unless the teacher learns.
        targets: True classes :math:`y`; needed where :math:`\alpha < 1`. A position with the target
            ``IGNORE`` (-100) does not count, for the teacher either.
        temperature: :math:`T > 0` of the second term. The first has temperature 1.
        alpha: Weight :math:`\alpha` of the teacher, from 0 (no teacher) to 1 (no labels).
        real: Which positions count; all by default. Both terms have the same positions.

    Returns:
        The loss, 0 or above: a mean over the positions that count, in float32 or better.

    Raises:
        ValueError: If shapes do not fit, a number is out of its domain, targets are missing, or
            no position counts.

    Numerics:
        The factor :math:`T^2` keeps the gradient of the second term of order one as :math:`T`
        grows. In the limit it is :math:`(z_s - z_t) / K` for centered logits. The value itself is a
        small difference times :math:`T^2`: in float32 it is right to a percent at
        :math:`T = 300` and to nothing at 10,000, where the gradient still has three digits.

    References:
        Hinton, Vinyals and Dean 2015, arXiv:1503.02531, sec. 2. Some write the weights the other
        way around.

    Book: :doc:`/book/efficiency/distillation`

    Example:
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]])
        >>> kd_loss(student, teacher, temperature=4.0, alpha=1.0)
        tensor(0.4827)
    """
    check_in_range("alpha", alpha, low=0.0, high=1.0)
    check_in_range("temperature", temperature, low=0.0, open_low=True, open_high=True)
    if alpha < 1 and targets is None:
        raise ValueError(f"alpha is {alpha}, so the labels count: pass targets, or set alpha=1")
    check_pair(student_logits, teacher_logits)
    if targets is not None:
        check_shape("targets", targets, tuple(student_logits.shape[:-1]))
        # The loss of an ignored target is 0. As 0 it would still count in the mean.
        labeled = targets != IGNORE
        real = labeled if real is None else real & labeled
    loss = wide(student_logits).new_zeros(())
    # A term of weight 0 is left out: it may be infinite, and 0 times that is NaN.
    if alpha > 0:
        soft = forward_kl(student_logits, teacher_logits, temperature=temperature, real=real)
        loss = loss + alpha * temperature**2 * soft
    if targets is not None and alpha < 1:
        hard = cross_entropy(without(student_logits, real), targets, reduction="none")
        hard = mean_over(hard, real)
        loss = loss + (1 - alpha) * hard
    return loss


class TopK(NamedTuple):
    """The likeliest classes of a teacher, which is what of its answers is kept.

    Attributes:
        log_probs: Their log-probabilities under the teacher, in nats, not renormalized.
        ids: The classes.
    """

    log_probs: Float[Tensor, "... k"]
    ids: Integer[Tensor, "... k"]


def top_k_log_probs(
    logits: Float[Tensor, "*batch classes"], *, k: int, temperature: float = 1.0
) -> TopK:
    r"""Keep the :math:`k` largest log-probabilities of each row, and whose they are.

    Args:
        logits: Scores of the teacher in nats.
        k: How many to keep, from 1 to the number of classes less one.
        temperature: :math:`T > 0` at which they will be used.

    Returns:
        Log-probabilities, largest first, and ids.

    Raises:
        ValueError: If :math:`k` or the temperature is out of its domain.

    Book: :doc:`/book/efficiency/distillation`

    Example:
        >>> top_k_log_probs(torch.tensor([[0.0, 2.0, 1.0]]), k=2).ids
        tensor([[1, 2]])
    """
    check_floating("logits", logits)
    if logits.ndim == 0:
        raise ValueError("logits need an axis of classes, got a single number")
    check_count("k", k, high=logits.shape[-1] - 1)
    return TopK(*log_softmax(wide(logits), temperature=temperature).topk(k, dim=-1))


def top_k_kd_loss(
    student_logits: Float[Tensor, "*batch classes"],
    top: TopK,
    *,
    temperature: float = 1.0,
    tail: bool = True,
    real: Bool[Tensor, "*batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Return the distillation loss from the likeliest classes of the teacher alone.

    All other classes are one bucket, the tail, whose probability is what is left:

    .. math:: L = T^2 \Big( \sum_{k \in S} p_t(k) \log\frac{p_t(k)}{p_s(k)}
       + r_t \log\frac{r_t}{r_s} \Big), \qquad r = 1 - \sum_{k \in S} p(k)

    Merging classes can only lower a divergence, so :math:`L` is at most that of all classes, and
    0 where the two agree. Without the tail it is neither a divergence nor 0 or above.

    Args:
        student_logits: Scores of all classes in nats.
        top: From :func:`top_k_log_probs`, at the same temperature. The ids of a row differ.
        temperature: :math:`T > 0`.
        tail: Whether the tail counts. Without it the sum is cut off: kept to show what goes wrong.
        real: Which positions count; all by default.

    Returns:
        The loss, a mean over the positions that count.

    Raises:
        ValueError: If shapes do not fit, an id is out of range, or no position counts.

    Numerics:
        The student's tail is summed from its own logits, not as 1 minus the rest, which would
        have no correct digit where the tail is small. The teacher's is ``1 - sum``, of which
        rounding leaves about ``1e-7``.

    Book: :doc:`/book/efficiency/distillation`

    Example:
        >>> teacher, student = torch.tensor([[0.6, 0.3, 0.1]]), torch.tensor([[0.5, 0.2, 0.3]])
        >>> top_k_kd_loss(student.log(), top_k_log_probs(teacher.log(), k=1))
        tensor(0.0201)
    """
    check_floating("student_logits", student_logits)
    check_in_range("temperature", temperature, low=0.0, open_low=True, open_high=True)
    check_same_shape("top.log_probs", top.log_probs, "top.ids", top.ids)
    if top.ids.shape[:-1] != student_logits.shape[:-1]:
        raise ValueError(
            f"top has positions {tuple(top.ids.shape[:-1])}, the student "
            f"{tuple(student_logits.shape[:-1])}: they must be the same"
        )
    check_ids("top.ids", top.ids, student_logits.shape[-1])
    z = wide(without(student_logits, real))
    z = z if temperature == 1 else z / temperature
    ids = top.ids.long()
    kept = z.gather(-1, ids)
    others = z.scatter(-1, ids, -torch.inf)
    # Where the student excludes all others, the gradient of their logsumexp would be NaN.
    empty = torch.isneginf(others).all(-1, keepdim=True)
    rest = torch.logsumexp(others.masked_fill(empty, 0.0), -1, keepdim=True)
    rest = rest.masked_fill(empty, -torch.inf)
    log_s = log_softmax(torch.cat([kept, rest], -1))
    log_t = without(top.log_probs, real).to(log_s.dtype)
    left = (1 - log_t.exp().sum(-1, keepdim=True)).clamp_min(0.0)
    log_t = torch.cat([log_t, left.log()], -1)
    if not tail:
        log_t, log_s = log_t[..., :-1], log_s[..., :-1]
    return temperature**2 * mean_over(relative_entropy(log_t, log_s), real)


def knowledge_loss(
    student_logits: Float[Tensor, "*batch entities"],
    scores: Float[Tensor, "*batch entities"],
    *,
    temperature: float,
    candidates: Bool[Tensor, "*batch entities"] | None = None,
) -> Float[Tensor, ""]:
    r"""Return the distillation loss from a teacher that scores facts.

    A model of a knowledge graph gives each entity :math:`e` a score :math:`s_e` for the question
    (head, relation, ?). Over the candidates :math:`C` the scores become a distribution, and the
    student, asked the same in words, learns it:

    .. math:: L = T^2\,\mathrm{KL}\big(\mathrm{softmax}_C(s / T) \Vert
       \mathrm{softmax}_C(z / T)\big)

    Args:
        student_logits: The student's scores :math:`z` of the entities, for example sums of
            log-probabilities of their names.
        scores: The teacher's scores, not normalized; large is likely. Distances must be negated.
        temperature: :math:`T > 0`. Scores of such models have no natural scale: choose it so that
            the softened scores are calibrated.
        candidates: Which entities may answer, for example those of the right type; all by default.

    Returns:
        The loss, 0 or above, a mean over questions.

    Raises:
        ValueError: If shapes do not fit, a score is not finite, the temperature is not above 0,
            or a question has no candidate.

    Book: :doc:`/book/efficiency/distillation`

    Example:
        >>> scores = torch.tensor([[4.0, 0.0, 1.0]])
        >>> only = torch.tensor([[True, False, True]])
        >>> knowledge_loss(scores + 7, scores, temperature=1.0, candidates=only)
        tensor(0.)
    """
    check_same_shape("student_logits", student_logits, "scores", scores)
    check_finite("scores", scores)
    if candidates is not None:
        check_same_shape("candidates", candidates, "scores", scores)
        if can_read(candidates) and not bool(candidates.any(-1).all()):
            raise ValueError("a question has no candidate: mark one entity a row at least")
        student_logits = student_logits.masked_fill(~candidates, -torch.inf)
        scores = scores.masked_fill(~candidates, -torch.inf)
    return kd_loss(student_logits, scores, temperature=temperature, alpha=1.0)
