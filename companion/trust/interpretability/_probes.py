"""Probes that are compared with what they could learn by heart."""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import check_count, check_in_range, check_same_shape, check_shape
from companion.pretraining.transfer import linear_probe

__all__ = ["ProbeReport", "control_labels", "online_code_length", "probe_selectivity"]


def control_labels(
    types: Integer[Tensor, " n"], labels: Integer[Tensor, " n"], *, generator: torch.Generator
) -> Integer[Tensor, " n"]:
    r"""Give each type of word a label by lot, for all its occurrences.

    .. math:: c_i = C(w_i), \qquad C(w) \sim \hat p(y) \text{ independently for each } w

    Nothing about the words decides it, so a probe that learns it has learned it by heart.

    Args:
        types: The type :math:`w_i` of each token.
        labels: The labels of the true task, whose frequencies :math:`\hat p` the lot follows.
        generator: The source of randomness.

    Returns:
        The labels of the control task.

    Raises:
        ValueError: If the shapes differ, or there is no token.

    References:
        Hewitt and Liang 2019, arXiv:1909.03368, sec. 2.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> made = control_labels(torch.tensor([4, 9, 4]), torch.tensor([0, 1, 2]), generator=g)
        >>> bool(made[0] == made[2])
        True
    """
    check_shape("types", types, (None,))
    check_same_shape("types", types, "labels", labels)
    check_count("tokens", len(types))
    known, place = torch.unique(types, return_inverse=True)
    drawn = torch.randint(len(labels), (len(known),), generator=generator, device=generator.device)
    return labels[drawn.to(labels.device)][place]


class ProbeReport(NamedTuple):
    """A probe beside its control.

    Attributes:
        accuracy: Share of held-out tokens whose label the probe says.
        control: The same for the control task.
        selectivity: The difference.
    """

    accuracy: float
    control: float
    selectivity: float


def probe_selectivity(
    features: Float[Tensor, "n dim"],
    labels: Integer[Tensor, " n"],
    control: Integer[Tensor, " n"],
    *,
    held_out: Bool[Tensor, " n"],
    l2: float,
) -> ProbeReport:
    r"""Fit a linear probe to a task and to its control, and compare them on held-out tokens.

    .. math:: \text{selectivity} = \text{accuracy} - \text{accuracy of the control}

    Args:
        features: One row for each token.
        labels: The labels of the task.
        control: Those of :func:`control_labels`.
        held_out: ``True`` for tokens that are not trained on. Split by document or sentence;
            tokens of one sentence on both sides leak.
        l2: As in :func:`companion.pretraining.transfer.linear_probe`, for both.

    Returns:
        The accuracies and their difference.

    Raises:
        ValueError: If shapes do not fit, or one side of the split is empty.

    References:
        Hewitt and Liang 2019, arXiv:1909.03368, sec. 2.

    Book: :doc:`/book/trust/interpretability`
    """
    check_shape("features", features, (len(labels), None))
    check_same_shape("labels", labels, "control", control)
    check_same_shape("labels", labels, "held_out", held_out)
    if not bool(held_out.any()) or bool(held_out.all()):
        raise ValueError("held_out must hold both True and False")
    scores = []
    for task in (labels, control):
        # Held-out classes that training lacks cannot be said: they count as mistakes.
        names, known = torch.unique(task[~held_out], return_inverse=True)
        if len(names) < 2:
            said = names[0].expand(int(held_out.sum()))
        else:
            probe = linear_probe(features[~held_out], known, l2=l2)
            said = names[probe(features[held_out]).argmax(1)]
        scores.append(float((said == task[held_out]).double().mean()))
    return ProbeReport(scores[0], scores[1], scores[0] - scores[1])


def online_code_length(
    features: Float[Tensor, "n dim"],
    labels: Integer[Tensor, " n"],
    *,
    cuts: tuple[int, ...],
    l2: float,
    classes: int | None = None,
) -> float:
    r"""Count the nats in which labels can be sent to someone who has the features.

    .. math:: L = t_1 \ln K - \sum_{s=1}^{S-1} \sum_{i=t_s+1}^{t_{s+1}}
        \ln p_{\theta_s}(y_i \mid h_i)

    The first :math:`t_1` labels are sent as they are. Then a probe :math:`\theta_s` is fitted to
    all that were sent, and codes the next block.

    Args:
        features: :math:`h_i`, in the order of sending. Shuffle whole sentences before.
        labels: :math:`y_i`.
        cuts: :math:`t_1 < t_2 < \dots`, each below the number of tokens, which is the last.
        l2: As in :func:`companion.pretraining.transfer.linear_probe`.
        classes: :math:`K`; by default the largest label plus one.

    Returns:
        The length in nats. Divided by that of a uniform code, :math:`n \ln K`, it compares tasks.

    Raises:
        ValueError: If the cuts do not ascend within the tokens, a label is none of the classes, or
            shapes do not fit.

    Numerics:
        After :math:`t` labels the probe's probabilities have the weight :math:`t / (t + K)`, and
        the rest goes to all classes evenly, so that a class that was not seen yet can be sent, and
        no label costs more than :math:`\ln(t + K)`.

    References:
        Voita and Titov 2020, arXiv:2003.12298; the even part is ours.

    Book: :doc:`/book/trust/interpretability`
    """
    check_shape("features", features, (None, None))
    check_shape("labels", labels, (len(features),))
    check_in_range("l2", l2, low=0.0, open_low=True, open_high=True)
    n = len(labels)
    check_count("tokens", n)
    known = int(labels.max()) + 1 if classes is None else classes
    check_count("classes", known, low=2)
    if int(labels.min()) < 0 or int(labels.max()) >= known:
        raise ValueError(f"labels must be from 0 to {known - 1}, as there are {known} classes")
    ends = [*cuts, n]
    if not cuts or cuts[0] < 1 or any(a >= b for a, b in pairwise(ends)):
        raise ValueError(f"cuts must ascend from 1 or more to below {n}, got {cuts}")
    length = cuts[0] * float(torch.tensor(float(known)).double().log())
    for start, end in pairwise(ends):
        names, seen = torch.unique(labels[:start], return_inverse=True)
        even = known / (start + known)
        told = torch.full((end - start, known), even / known, dtype=torch.float64)
        told = told.to(features.device)
        if len(names) > 1:
            p = linear_probe(features[:start], seen, l2=l2)(features[start:end]).softmax(-1)
        else:
            p = torch.ones_like(told[:, :1])
        told[:, names.long()] += (1 - even) * p
        length -= float(told.log().gather(1, labels[start:end, None].long()).sum())
    return length
