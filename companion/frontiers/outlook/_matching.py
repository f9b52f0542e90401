r"""BERTScore: tokens of two texts matched by their vectors."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import check_count, check_floating, check_several, check_shape
from companion.frontiers.outlook._rouge import Overlap
from companion.models import TextEncoder

__all__ = ["bertscore", "text_bertscore"]


def bertscore(
    candidates: Float[Tensor, "*batch m dim"],
    references: Float[Tensor, "*batch n dim"],
    *,
    candidate_real: Bool[Tensor, "*batch m"] | None = None,
    reference_real: Bool[Tensor, "*batch n"] | None = None,
) -> Overlap:
    r"""Match each token with the most similar one of the other text.

    .. math:: R = \frac1n \sum_j \max_i \cos(x_i, y_j), \qquad
        P = \frac1m \sum_i \max_j \cos(x_i, y_j), \qquad F = \frac{2PR}{P + R}

    Args:
        candidates: Vectors :math:`x_i` of the tokens of the text to judge.
        references: Vectors :math:`y_j` of the tokens of the reference.
        candidate_real: Which tokens count. Leave out padding and special tokens: they would be
            matched with one another.
        reference_real: The same for the reference.

    Returns:
        Precision, recall and F. They are cosines, so unrelated texts do not have 0, and a negative
        value is legal. A text without tokens has 0 in all three.

    Raises:
        ValueError: If shapes do not fit.

    References:
        Zhang et al. 2020, arXiv:1904.09675, without weights by inverse frequency.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> x, y = torch.eye(3)[:2], torch.eye(3)
        >>> [round(float(v), 3) for v in bertscore(x, y)]
        [1.0, 0.667, 0.8]
    """
    check_floating("candidates", candidates)
    *batch, m, dim = candidates.shape
    n = references.shape[-2]
    check_shape("references", references, (*batch, n, dim))
    everywhere = torch.ones((), dtype=torch.bool, device=candidates.device)
    ours = everywhere.expand(*batch, m) if candidate_real is None else candidate_real
    theirs = everywhere.expand(*batch, n) if reference_real is None else reference_real
    check_shape("candidate_real", ours, (*batch, m))
    check_shape("reference_real", theirs, (*batch, n))
    if m == 0 or n == 0:
        return Overlap(*candidates.new_zeros(3, *batch))
    x = torch.nn.functional.normalize(candidates, dim=-1)
    y = torch.nn.functional.normalize(references, dim=-1)
    cosines = x @ y.mT
    pairs = ours[..., :, None] & theirs[..., None, :]
    cosines = cosines.masked_fill(~pairs, float("-inf"))
    some = pairs.any(-1).any(-1)
    precision = _mean(cosines.amax(-1), ours, some)
    recall = _mean(cosines.amax(-2), theirs, some)
    both = precision + recall
    f = torch.where(both == 0, torch.zeros_like(both), 2 * precision * recall / both)
    return Overlap(precision, recall, f)


def _mean(best: Tensor, real: Tensor, some: Tensor) -> Tensor:
    kept = best.masked_fill(~real | ~some[..., None], 0.0)
    return kept.sum(-1) / real.sum(-1).clamp_min(1)


def text_bertscore(
    encoder: TextEncoder,
    candidates: Sequence[str],
    references: Sequence[str],
    *,
    batch_size: int = 32,
    truncate: bool = False,
) -> Overlap:
    """Compute BERTScore of texts by an encoder's last layer.

    The first and last token, which open and close a text, are left out.

    Args:
        encoder: Such as :func:`companion.models.minilm` gives. Scores of different encoders or
            layers do not compare: name them beside the number.
        candidates: The texts to judge.
        references: One for each.
        batch_size: How many pairs are encoded at once.
        truncate: Cut what exceeds the context; by default that is an error.

    Returns:
        Precision, recall and F of each pair.

    Raises:
        ValueError: If the numbers differ, or a text exceeds the context.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> from companion.models import minilm
        >>> made = text_bertscore(minilm(), ["A cat sleeps.", ""], ["A cat sleeps.", "A dog."])
        >>> [round(float(v), 3) for v in made.f1]
        [1.0, 0.0]
    """
    check_several("candidates", candidates)
    check_several("references", references)
    check_count("batch_size", batch_size)
    if len(candidates) != len(references):
        raise ValueError(
            f"{len(candidates)} candidates and {len(references)} references: give one each"
        )
    rows = []
    with torch.no_grad():
        for start in range(0, len(candidates), batch_size):
            sides = []
            for texts in (candidates, references):
                part = texts[start : start + batch_size]
                ids, real = encoder.tokenize(part, truncate=truncate)
                inner = real.clone()
                inner[:, 0] = False
                last = real.sum(1) - 1
                inner[torch.arange(len(part)), last] = False
                sides.append((encoder.model(ids, real=real), inner))
            (x, x_real), (y, y_real) = sides
            rows.append(bertscore(x, y, candidate_real=x_real, reference_real=y_real))
    return Overlap(*(torch.cat(column) for column in zip(*rows, strict=True)))
