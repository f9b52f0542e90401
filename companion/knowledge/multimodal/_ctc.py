r"""Labels without times: connectionist temporal classification, and errors by words."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import (
    can_read,
    check_count,
    check_floating,
    check_ids,
    check_in_range,
    check_several,
    check_shape,
    wide,
)

__all__ = ["collapse", "ctc_greedy", "ctc_loss", "word_errors"]

# Stands for log 0: its exponential is 0, and differences of two such stay finite.
_NEVER = -1e30


def collapse(path: Sequence[int], *, blank: int = 0) -> list[int]:
    r"""Return what a path of frames says, :math:`\mathcal B`: merge repeats, **then** drop blanks.

    Args:
        path: A label, or the blank, for each frame.
        blank: The label that says nothing.

    Returns:
        The labels. The other order would lose every double letter.

    References:
        Graves et al. 2006, doi:10.1145/1143844.1143891, sec. 3.1.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> collapse([1, 1, 0, 1])
        [1, 1]
    """
    kept = [label for t, label in enumerate(path) if t == 0 or label != path[t - 1]]
    return [label for label in kept if label != blank]


def ctc_greedy(log_p: Float[Tensor, "frames vocab"], *, blank: int = 0) -> list[int]:
    """Read the most likely path. It need not be that of the most likely labels.

    Args:
        log_p: Log-probabilities, or scores, of each frame.
        blank: The label that says nothing.

    Returns:
        The labels of the best path.

    Raises:
        ValueError: If the shape does not fit, the blank is no label, or a score is NaN.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> ctc_greedy(torch.tensor([[0.1, 0.9], [0.9, 0.1], [0.2, 0.8]]).log())
        [1, 1]
    """
    check_shape("log_p", log_p, (None, None))
    check_in_range("blank", blank, low=0, high=log_p.shape[1] - 1)
    if can_read(log_p) and bool(log_p.isnan().any()):
        raise ValueError("log_p must be numbers: look for the NaN where it is made")
    path: list[int] = log_p.argmax(-1).tolist()
    return collapse(path, blank=blank)


def ctc_loss(
    log_p: Float[Tensor, "frames batch vocab"],
    targets: Integer[Tensor, "batch length"],
    frames: Integer[Tensor, " batch"],
    lengths: Integer[Tensor, " batch"],
    *,
    blank: int = 0,
    reduction: Literal["none", "sum", "mean"] = "mean",
) -> Float[Tensor, "*batch"]:
    r"""Return minus the log-probability that a path says the labels, whatever their times.

    .. math:: P(y \mid x) = \sum_{\pi : \mathcal B(\pi) = y} \prod_t p_t(\pi_t)

    With :math:`z`, the labels with blanks around each, the sum over all paths is a recursion:

    .. math:: \alpha_t(s) = p_t(z_s) \bigl(\alpha_{t-1}(s) + \alpha_{t-1}(s - 1)
        + [z_s \ne \text{blank}, z_s \ne z_{s-2}] \, \alpha_{t-1}(s - 2)\bigr)

    Args:
        log_p: Log-probabilities of each frame, time first, as ``log_softmax`` gives them.
        targets: Labels; what stands behind ``lengths`` is not read.
        frames: Frames of each sequence; what follows is not read.
        lengths: Labels of each sequence; 0 is allowed.
        blank: The label that says nothing; it may not stand in ``targets``.
        reduction: ``"none"``: one loss a sequence, ``"sum"``: theirs, ``"mean"``: each divided by
            its number of labels (or 1), then the mean over sequences, as PyTorch does it.

    Returns:
        Nats. Infinite where no path fits: a sequence needs as many frames as labels, and one more
        for each repeated label. Its gradient is then zero.

    Raises:
        ValueError: If shapes do not fit, a label is out of range or the blank, or a length exceeds
            what there is.

    Numerics:
        In the log domain, float32 or better, one step a frame; ``torch.nn.functional.ctc_loss`` is
        the faster one. Its gradient is not that of the log-probabilities it is given but that of
        logits behind them; ours is the derivative of the formula, and both are the same behind
        ``log_softmax``.

    References:
        Graves et al. 2006, doi:10.1145/1143844.1143891, eqs. 3, 6-8.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> log_p = torch.full((3, 1, 2), 0.5, dtype=torch.float64).log()
        >>> ctc_loss(log_p, torch.tensor([[1, 1]]), torch.tensor([3]), torch.tensor([2]),
        ...          reduction="sum")
        tensor(2.0794, dtype=torch.float64)
    """
    check_floating("log_p", log_p)
    check_shape("log_p", log_p, (None, None, None))
    T, batch, vocab = log_p.shape
    check_shape("targets", targets, (batch, None))
    check_shape("frames", frames, (batch,))
    check_shape("lengths", lengths, (batch,))
    check_count("blank + 1", blank + 1, high=vocab)
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"reduction must be none, sum or mean, got {reduction!r}")
    longest = targets.shape[1]
    ids = torch.arange(longest, device=targets.device)
    inside = ids < lengths[:, None]
    targets = torch.where(inside, targets, blank)
    check_ids("targets", targets, vocab)
    check_ids("frames", frames, T + 1)
    check_ids("lengths", lengths, longest + 1)
    if can_read(targets) and bool(((targets == blank) & inside).any()):
        raise ValueError(f"the blank {blank} stands in the targets: it says nothing, leave it out")
    log_p = wide(log_p)
    z = torch.full((batch, 2 * longest + 1), blank, device=targets.device, dtype=torch.long)
    z[:, 1::2] = targets
    skips = torch.zeros_like(z, dtype=torch.bool)
    skips[:, 3::2] = targets[:, 1:] != targets[:, :-1]
    emitted = log_p.gather(2, z.expand(T, -1, -1)).clamp(min=_NEVER)  # (frames, batch, states)
    # Before the first frame: the next may be the blank in front, or the first label.
    alpha = torch.full_like(emitted[0], _NEVER) if T else log_p.new_full(z.shape, _NEVER)
    alpha = torch.cat([torch.zeros_like(alpha[:, :1]), alpha[:, 1:]], 1)
    for t in range(T):
        two = torch.where(skips, _moved(alpha, 2), _NEVER)
        new = torch.stack([alpha, _moved(alpha, 1), two]).logsumexp(0) + emitted[t]
        alpha = torch.where((t < frames)[:, None], new, alpha)
    last = 2 * lengths[:, None].long()
    ends = alpha.gather(1, torch.cat([last, (last - 1).clamp(min=0)], 1))
    second = torch.where(lengths > 0, ends[:, 1], _NEVER)
    total = torch.stack([ends[:, 0], second]).logsumexp(0)
    loss = torch.where(total < _NEVER / 2, math.inf, -total)  # NaN stays NaN
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else (loss / lengths.clamp(min=1)).mean()


def _moved(alpha: Tensor, by: int) -> Tensor:
    """What each state sees of the one that is so many before it."""
    return torch.nn.functional.pad(alpha, (by, 0), value=_NEVER)[:, : alpha.shape[1]]


def word_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[int, int, int]:
    r"""Count substitutions, deletions and insertions from one sequence of words to another.

    The fewest in all, by dynamic programming; of several ways one with most substitutions. The word
    error rate of several texts is the sum of their errors over the sum of the words of the
    references, and not the mean of their rates.

    Args:
        reference: What should stand there.
        hypothesis: What stands there.

    Returns:
        Substitutions, deletions (words that are missing), insertions (words too many).

    Raises:
        ValueError: If one text is given in place of its words.

    References:
        Levenshtein 1966; the usual measure of speech recognition.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> word_errors("not an ill disposed man".split(), "not an old-sposed man".split())
        (1, 1, 0)
    """
    check_several("reference", reference)
    check_several("hypothesis", hypothesis)
    # (errors, -substitutions, deletions, insertions) of the best way to each prefix
    row = [(j, 0, 0, j) for j in range(len(hypothesis) + 1)]
    for i, word in enumerate(reference, start=1):
        before, row = row, [(i, 0, i, 0)]
        for j, other in enumerate(hypothesis, start=1):
            cost, subs, gone, added = before[j - 1]
            differs = int(word != other)
            ways = [(cost + differs, subs - differs, gone, added)]
            cost, subs, gone, added = before[j]
            ways.append((cost + 1, subs, gone + 1, added))
            cost, subs, gone, added = row[j - 1]
            ways.append((cost + 1, subs, gone, added + 1))
            row.append(min(ways))
    _, subs, gone, added = row[-1]
    return -subs, gone, added
