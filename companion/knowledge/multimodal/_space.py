"""What the common space of two modalities is used for: zero-shot classes, retrieval, its gap."""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn import functional as F

from companion.core import (
    can_read,
    check_count,
    check_floating,
    check_ids,
    check_in_range,
    check_shape,
    wide,
)
from companion.knowledge.multimodal._contrastive import unit

__all__ = [
    "ensemble",
    "itm_loss",
    "itm_negatives",
    "modality_gap",
    "recall_at",
    "shift_gap",
    "zero_shot",
]


def ensemble(vectors: Float[Tensor, "prompts *classes dim"]) -> Float[Tensor, "*classes dim"]:
    r"""Average the vectors of several descriptions of a class: prompt ensembling.

    .. math:: w = \frac{\bar v}{\lVert \bar v \rVert}, \qquad
        \bar v = \frac1K \sum_k \frac{v_k}{\lVert v_k \rVert}

    Each description is normalized before the mean, so that none counts more for being long, and the
    mean is normalized again.

    Args:
        vectors: One description of each class in a row.

    Returns:
        One vector of length 1 for each class.

    Raises:
        ValueError: If there is no description.

    References:
        Radford et al. 2021, arXiv:2103.00020, sec. 3.1.4.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> ensemble(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        tensor([0.7071, 0.7071])
    """
    if vectors.ndim < 2 or not len(vectors):
        raise ValueError(f"give one description at least, got shape {tuple(vectors.shape)}")
    return unit(unit(vectors).mean(0))


def zero_shot(
    U: Float[Tensor, "n dim"], classes: Float[Tensor, "classes dim"]
) -> Integer[Tensor, " n"]:
    """Classify by the nearest description, by cosine, without training on the classes.

    Args:
        U: What is classified.
        classes: A vector of each class, for example of :func:`ensemble`.

    Returns:
        The number of the class of each row.

    Raises:
        ValueError: If the widths differ, or there is no class.

    References:
        Radford et al. 2021, arXiv:2103.00020, sec. 3.1.2.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> zero_shot(torch.tensor([[1.0, 0.1], [0.0, 2.0]]), torch.eye(2))
        tensor([0, 1])
    """
    check_shape("U", U, (None, None))
    check_shape("classes", classes, (None, U.shape[1]))
    check_count("classes", len(classes))
    # The length of a row of U changes no order.
    return (U @ unit(classes).T).argmax(-1)


def recall_at(
    scores: Float[Tensor, "n candidates"], targets: Integer[Tensor, " n"], k: int
) -> Float[Tensor, " n"]:
    r"""Return for each row whether its target is among the :math:`k` best candidates.

    With ties it is a probability: if :math:`a` candidates are better and :math:`t` others equal,
    the target is among the first :math:`k` of a random order of the equal ones with probability
    :math:`\min(1, \max(0, (k - a)/(t + 1)))`. A score that is NaN counts as better than the target,
    and a target whose score is NaN is not found.

    Args:
        scores: Higher is better.
        targets: The right candidate of each row.
        k: How many count.

    Returns:
        Numbers from 0 to 1, whose mean is the recall at k.

    Raises:
        ValueError: If shapes do not fit, a target is no candidate, or ``k`` is not from 1 to the
            number of candidates.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> recall_at(torch.tensor([[0.1, 0.5, 0.3]]), torch.tensor([2]), 1)
        tensor([0.])
    """
    check_shape("scores", scores, (None, None))
    check_floating("scores", scores)
    check_shape("targets", targets, (len(scores),))
    check_count("k", k, high=scores.shape[1])
    check_ids("targets", targets, scores.shape[1])
    own = scores.gather(1, targets[:, None].long())
    ahead = (~(scores <= own)).sum(1)
    equal = (scores == own).sum(1).clamp(min=1)
    return ((k - ahead) / equal).clamp(0, 1).to(scores.dtype)


def modality_gap(U: Float[Tensor, "n dim"], V: Float[Tensor, "m dim"]) -> Float[Tensor, " dim"]:
    r"""Return the vector from the center of one modality to that of the other.

    .. math:: \Delta = \frac1n \sum_i \hat u_i - \frac1m \sum_j \hat v_j

    for normalized rows; its length, from 0 to 2, is the modality gap.

    Args:
        U: Vectors of one modality.
        V: Those of the other.

    Returns:
        The vector.

    Raises:
        ValueError: If the widths differ, or a modality has no vector.

    References:
        Liang et al. 2022, arXiv:2203.02053.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> modality_gap(torch.eye(2), torch.eye(2))
        tensor([0., 0.])
    """
    check_shape("U", U, (None, None))
    check_shape("V", V, (None, U.shape[1]))
    check_count("rows of U", len(U))
    check_count("rows of V", len(V))
    return unit(U).mean(0) - unit(V).mean(0)


def shift_gap(
    U: Float[Tensor, "n dim"], V: Float[Tensor, "m dim"], ratio: float
) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "m dim"]]:
    r"""Move both modalities towards each other along the gap, and normalize again.

    .. math:: u \leftarrow \frac{\hat u - \frac r2 \Delta}{\lVert \cdot \rVert}, \qquad
        v \leftarrow \frac{\hat v + \frac r2 \Delta}{\lVert \cdot \rVert}

    Args:
        U: Vectors of one modality.
        V: Those of the other.
        ratio: :math:`r`: 0 changes nothing but lengths, 1 brings the centers together before the
            last normalization; negative values widen the gap.

    Returns:
        Both, moved.

    Raises:
        ValueError: If the widths differ, a modality has no vector, or the ratio is not finite.

    References:
        Liang et al. 2022, arXiv:2203.02053.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> U, V = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> shift_gap(U, V, 1.0)[0]
        tensor([[0.7071, 0.7071]])
    """
    check_in_range("ratio", ratio, low=-float("inf"), open_low=True, open_high=True)
    half = ratio / 2 * modality_gap(U, V)
    return unit(unit(U) - half), unit(unit(V) + half)


def itm_negatives(
    scores: Float[Tensor, "n n"],
    *,
    generator: torch.Generator,
    same: Bool[Tensor, "n n"] | None = None,
    hard: bool = True,
) -> Integer[Tensor, " n"]:
    r"""Draw for each row a partner that it does not belong to, for image-text matching.

    .. math:: P(j \mid i) \propto e^{S_{ij}} \text{ (hard)} \quad\text{or}\quad 1,
        \qquad j \ne i, \ j \text{ not the same as } i

    Args:
        scores: Similarities of a batch; the true partner of row i is column i.
        generator: Source of the draws.
        same: Which columns say the same as the own partner, such as an equal caption. They are no
            negatives.
        hard: Draw those that look right more often; otherwise all alike.

    Returns:
        The column that is drawn for each row.

    Raises:
        ValueError: If the matrix is not square, shapes differ, a score is not finite, or a row has
            no negative.

    References:
        Li et al. 2021, "Align before fuse", arXiv:2107.07651, "Image-text matching".

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> itm_negatives(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), generator=g)
        tensor([1, 0])
    """
    n = len(scores)
    check_shape("scores", scores, (n, n))
    if n < 2:
        raise ValueError("one pair has no negative: give at least two")
    out = torch.eye(n, dtype=torch.bool, device=scores.device)
    if same is not None:
        check_shape("same", same, (n, n))
        out = out | same
    if scores.device.type != "meta" and bool(out.all(1).any()):
        raise ValueError("a row has no negative: all others say the same as its own partner")
    logits = scores.detach().double() if hard else torch.zeros_like(scores, dtype=torch.float64)
    logits = logits.masked_fill(out, -float("inf"))
    if can_read(scores) and not bool((logits.isfinite() | out).all()):
        raise ValueError("scores must be finite: look for the NaN or infinity where they are made")
    weights = logits.softmax(-1).to(generator.device)
    drawn = torch.multinomial(weights, 1, generator=generator)[:, 0]
    return drawn.to(scores.device)


def itm_loss(true: Float[Tensor, " n"], false: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    r"""Return the loss of image-text matching: is this the text of this picture?

    .. math:: L = -\frac1{n + m} \Bigl(\sum_i \ln \sigma(z_i) + \sum_j \ln \sigma(-\tilde z_j)\Bigr)

    Args:
        true: Logits of pairs that belong together.
        false: Logits of pairs that do not.

    Returns:
        The mean binary cross-entropy, in nats, in float32 or better.

    Raises:
        ValueError: If there are no pairs.

    References:
        Lu et al. 2019, "ViLBERT", arXiv:1908.02265; Li et al. 2021, arXiv:2107.07651.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> itm_loss(torch.zeros(2), torch.zeros(2))
        tensor(0.6931)
    """
    check_shape("true", true, (None,))
    check_shape("false", false, (None,))
    count = len(true) + len(false)
    if not count:
        raise ValueError("give at least one pair")
    true, false = wide(true), wide(false)  # half precision cannot hold the sum of a large batch
    return -(F.logsigmoid(true).sum() + F.logsigmoid(-false).sum()) / count
