"""Losses on what the teacher computes on the way: hidden states, attention, value relations."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import check_count, check_floating, check_shape, wide
from companion.efficiency.distillation._divergences import mean_over, relative_entropy, without
from companion.foundations.cross_entropy import log_softmax

__all__ = ["feature_loss", "minilm_loss", "relation"]


def feature_loss(
    student: Float[Tensor, "*batch d_student"],
    teacher: Float[Tensor, "*batch d_teacher"],
    projection: Float[Tensor, "d_student d_teacher"] | None = None,
    *,
    real: Bool[Tensor, "*batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Return the squared distance of hidden states, the student's mapped to the teacher's width.

    .. math:: L = \frac1N \sum_n \lVert h_s^{(n)} W - h_t^{(n)} \rVert^2

    Args:
        student: Hidden states :math:`h_s`, a row a token.
        teacher: Hidden states :math:`h_t` of the same tokens, detached unless the teacher learns.
        projection: :math:`W`, which learns together with the student and is then thrown away. May
            be left out where the widths are equal.
        real: Which tokens count; all by default.

    Returns:
        The mean over tokens of the *sum* over components, in float32 or better.

    Raises:
        ValueError: If shapes do not fit, or no token counts.

    Numerics:
        The sum over components grows with the teacher's width; ``F.mse_loss`` divides by it.

    References:
        Romero et al. 2015, "FitNets", arXiv:1412.6550, eq. 3, with a factor of one half there.

    Book: :doc:`/book/efficiency/distillation`

    Example:
        >>> feature_loss(torch.ones(1, 2), torch.zeros(1, 3), torch.ones(2, 3))
        tensor(12.)
    """
    check_floating("student", student)
    if projection is None and student.shape != teacher.shape:
        raise ValueError(
            f"student has shape {tuple(student.shape)} and teacher {tuple(teacher.shape)}: pass "
            "a projection from one width to the other"
        )
    mapped, told = wide(without(student, real)), without(teacher, real)
    if projection is not None:
        check_shape("projection", projection, (student.shape[-1], teacher.shape[-1]))
        mapped = mapped @ projection.to(mapped.dtype)
    if mapped.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must hold the same tokens, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )
    return mean_over((mapped - told.to(mapped.dtype)).square().sum(-1), real)


def relation(
    first: Float[Tensor, "*batch n d"],
    second: Float[Tensor, "*batch n d"] | None = None,
    *,
    real: Bool[Tensor, "*rows n"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "*batch n n"]:
    r"""Return the log-probabilities by which each token relates to each.

    .. math:: \log \mathrm{softmax}\Big(\frac{A B^\top}{\sqrt{d}}\Big)

    Of queries and keys it is the attention; of values and themselves, MiniLM's value relation.

    Args:
        first: :math:`A`, a row a token; any axes before, such as batch and heads.
        second: :math:`B`; by default :math:`A`.
        real: Which tokens are not padding, with the axes of the batch; where there are heads after
            them, each sees the same. Padding is related to with probability 0.
        causal: Whether only tokens up to the own one are related to, as in a decoder.

    Returns:
        Log-probabilities in nats, ``-inf`` at excluded pairs. Rows of padding hold numbers
        without a meaning.

    Raises:
        ValueError: If shapes do not fit.

    Book: :doc:`/book/efficiency/distillation`

    Example:
        >>> relation(torch.tensor([[[1.0], [0.0]]])).exp()
        tensor([[[0.7311, 0.2689],
                 [0.5000, 0.5000]]])
    """
    second = first if second is None else second
    check_floating("first", first)
    if first.ndim < 2 or first.shape != second.shape:
        raise ValueError(
            "first and second must have the same shape (..., tokens, width), got "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )
    check_count("width", first.shape[-1])
    a, b = wide(first), wide(second)
    scores = a @ b.mT / a.shape[-1] ** 0.5
    n = scores.shape[-1]
    if real is not None and real.shape != (*first.shape[: real.ndim - 1], n):
        raise ValueError(
            f"real must have the batch's axes and {n} tokens, got {tuple(real.shape)} for first "
            f"of shape {tuple(first.shape)}"
        )
    if causal:
        after = torch.ones(n, n, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(after, -torch.inf)
    if real is not None:
        key = real[(...,) + (None,) * (scores.ndim - real.ndim) + (slice(None),)]
        # A token of padding relates to itself, so that no row is empty.
        own = torch.eye(n, dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(~(key | own), -torch.inf)
    return log_softmax(scores)


def minilm_loss(
    student: tuple[Tensor, Tensor, Tensor],
    teacher: tuple[Tensor, Tensor, Tensor],
    *,
    real: Bool[Tensor, "batch n"] | None = None,
    causal: bool = False,
) -> Float[Tensor, ""]:
    r"""Return MiniLM's loss: the student's last attention and value relation follow the teacher's.

    .. math:: L = \mathrm{KL}(A_t \Vert A_s) + \mathrm{KL}(R_t \Vert R_s),
       \qquad R = \mathrm{softmax}\Big(\frac{V V^\top}{\sqrt{d_k}}\Big)

    with :math:`A` the attention. Relations are n by n, so the widths of student and teacher may
    differ and nothing is projected. The number of heads must be the same.

    Args:
        student: Queries, keys and values of one layer, (batch, heads, n, width) each.
        teacher: The same of the teacher, detached unless it learns, too.
        real: ``True`` for tokens, ``False`` for padding.
        causal: Whether the models are decoders.

    Returns:
        Nats, 0 or above: a mean over heads and real query tokens.

    Raises:
        ValueError: If shapes do not fit.

    References:
        Wang et al. 2020, arXiv:2002.10957, eqs. 6 to 9.

    Book: :doc:`/book/efficiency/distillation`

    Example:
        >>> q = k = v = torch.eye(3)[None, None]
        >>> minilm_loss((q, k, v), (q, k, v))
        tensor(0.)
    """
    for name, states in (("student", student), ("teacher", teacher)):
        for part, states_of in zip(("queries", "keys", "values"), states, strict=True):
            check_shape(f"{part} of the {name}", states_of, (None, None, None, None))
    if student[0].shape[:3] != teacher[0].shape[:3]:
        raise ValueError(
            "student and teacher must have the same batch, heads and tokens, got "
            f"{tuple(student[0].shape[:3])} and {tuple(teacher[0].shape[:3])}: give one of them "
            "the heads of the other by regrouping its width"
        )
    query = None
    if real is not None:
        check_shape("real", real, (student[0].shape[0], student[0].shape[2]))
        query = real[:, None].expand(student[0].shape[:3])
    loss = student[0].new_zeros(())
    for pair in ((0, 1), (2, 2)):
        told = [without(states, query) for states in (teacher[pair[0]], teacher[pair[1]])]
        own = [without(states, query) for states in (student[pair[0]], student[pair[1]])]
        log_s = relation(own[0], own[1], real=real, causal=causal)
        log_t = relation(told[0], told[1], real=real, causal=causal)
        loss = loss + mean_over(relative_entropy(log_t, log_s), query)
    return loss
