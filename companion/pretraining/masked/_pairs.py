r"""Pairs of segments: does B follow A (NSP), and which of the two came first (SOP)?

A pair is made at a boundary between two sentences of a document: A is what stands before it, B
what stands behind it. Both are runs of whole sentences, cut off at the same number of tokens, each
on its own side. So neither the length of a segment nor the way it ends can tell a true pair from
a false one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor

from companion.core import check_count, check_ids, check_shape, rand

__all__ = [
    "Boundaries",
    "SentencePairs",
    "next_sentence_pairs",
    "sentence_boundaries",
    "sentence_order_pairs",
]


class SentencePairs(NamedTuple):
    """A batch of pairs, ``[CLS] A [SEP] B [SEP]`` and padding.

    Attributes:
        ids: Token ids.
        segments: 0 up to the first ``[SEP]``, 1 behind it and on padding.
        real: ``True`` for tokens, ``False`` for padding.
        labels: 0 for a true pair: B follows A. 1 otherwise.
    """

    ids: Int[Tensor, "batch n"]
    segments: Int[Tensor, "batch n"]
    real: Bool[Tensor, "batch n"]
    labels: Int[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class Boundaries:
    """Places between two sentences, with what stands before and behind each.

    Attributes:
        before: Tokens before the boundary, padded with 0 on the right.
        after: Tokens behind it, likewise.
        before_length: Number of tokens before.
        after_length: Number of tokens behind.
        document: The number of the document; it never falls from one row to the next.
    """

    before: Int[Tensor, "boundary half"]
    after: Int[Tensor, "boundary half"]
    before_length: Int[Tensor, " boundary"]
    after_length: Int[Tensor, " boundary"]
    document: Int[Tensor, " boundary"]

    def __len__(self) -> int:
        return self.before.shape[0]

    def to(self, device: str | torch.device) -> "Boundaries":
        """Return the boundaries on another device.

        Args:
            device: Where to.

        Returns:
            The boundaries.
        """
        parts = (self.before, self.after, self.before_length, self.after_length, self.document)
        return Boundaries(*(part.to(device) for part in parts))


def sentence_boundaries(documents: Sequence[Sequence[Sequence[int]]], *, half: int) -> Boundaries:
    """Find all places between two sentences, and the segments on both sides.

    Args:
        documents: For each document its sentences, for each sentence its token ids.
        half: Most tokens on one side, 1 or more. A segment is the longest run of whole sentences
            that fits. A boundary beside a sentence that does not fit is left out.

    Returns:
        The boundaries, in the order of the text.

    Raises:
        ValueError: If there is no boundary at all.

    Book: :doc:`/book/pretraining/masked`

    Example:
        >>> found = sentence_boundaries([[[5, 6], [7], [8, 9]], [[4], [3]]], half=3)
        >>> found.before.tolist(), found.after.tolist(), found.document.tolist()
        ([[5, 6, 0], [5, 6, 7], [4, 0, 0]], [[7, 8, 9], [8, 9, 0], [3, 0, 0]], [0, 0, 1])
    """
    check_count("half", half)
    before: list[list[int]] = []
    after: list[list[int]] = []
    document: list[int] = []
    for number, text in enumerate(documents):
        for place in range(1, len(text)):
            left: list[int] = []
            for sentence in reversed(text[:place]):
                if len(sentence) + len(left) > half:
                    break
                left = [*sentence, *left]
            right: list[int] = []
            for sentence in text[place:]:
                if len(sentence) + len(right) > half:
                    break
                right += sentence
            if left and right:
                before.append(left)
                after.append(right)
                document.append(number)
    if not before:
        raise ValueError(
            f"no document has two neighboring sentences of at most {half} tokens: raise half"
        )
    lengths = [torch.tensor([len(row) for row in rows]) for rows in (before, after)]
    padded = [
        torch.tensor([row + [0] * (half - len(row)) for row in rows]) for rows in (before, after)
    ]
    return Boundaries(padded[0], padded[1], lengths[0], lengths[1], torch.tensor(document))


def next_sentence_pairs(
    boundaries: Boundaries,
    index: Integer[Tensor, " batch"],
    *,
    cls_id: int,
    sep_id: int,
    pad_id: int,
    negatives: Literal["other", "same"] = "other",
    generator: torch.Generator,
) -> SentencePairs:
    """Make pairs of which half are true, for next-sentence prediction.

    A is what stands before a boundary. B is, with probability one half each, what stands behind
    it, or what stands behind another boundary.

    Args:
        boundaries: From :func:`sentence_boundaries`.
        index: Which boundaries to use.
        cls_id: The id of ``[CLS]``.
        sep_id: The id of ``[SEP]``.
        pad_id: The id of padding.
        negatives: ``"other"`` takes a false B from another document, as BERT does; ``"same"``
            from another place of the same one, where the topic gives nothing away.
        generator: The source of randomness.

    Returns:
        The pairs, label 1 for a false one.

    Raises:
        ValueError: If an index is out of range, or a false B cannot be drawn: there is one
            document only, or one of the chosen boundaries is the only one of its document.

    Numerics:
        The false B is uniform on all that qualify, without rejection.

    References:
        Devlin et al. 2019, arXiv:1810.04805, section 3.1, task 2 and appendix A.2; false pairs from
        the same document: Lan et al. 2020, arXiv:1909.11942, section 3.1 discuss why topic is the
        easier cue.

    Book: :doc:`/book/pretraining/masked`
    """
    check_ids("index", index, len(boundaries))
    if negatives not in ("other", "same"):
        raise ValueError(f"negatives must be 'other' or 'same', got {negatives!r}")
    index = index.long()
    here = boundaries.document[index]
    first = torch.searchsorted(boundaries.document, here)
    size = torch.searchsorted(boundaries.document, here, right=True) - first
    room = len(boundaries) - size if negatives == "other" else size - 1
    if not index.is_meta and bool((room < 1).any()):
        raise ValueError(
            f"{int((room < 1).sum())} boundaries have no partner for a false pair with "
            f"negatives={negatives!r}: leave them out, or give more documents"
        )
    drawn = rand(len(index), generator=generator, device=index.device, dtype=torch.float64)
    drawn = torch.minimum((drawn * room).long(), room - 1)
    if negatives == "other":
        partner = torch.where(drawn >= first, drawn + size, drawn)  # jump over the document
    else:
        partner = first + drawn
        partner = torch.where(partner >= index, partner + 1, partner)  # ... over itself
    false = rand(len(index), generator=generator, device=index.device) < 0.5
    source = torch.where(false, partner, index)
    b = boundaries
    a_side = (b.before[index], b.before_length[index])
    b_side = (b.after[source], b.after_length[source])
    return _join(a_side, b_side, false, cls_id, sep_id, pad_id)


def sentence_order_pairs(
    boundaries: Boundaries,
    index: Integer[Tensor, " batch"],
    *,
    cls_id: int,
    sep_id: int,
    pad_id: int,
    generator: torch.Generator,
) -> SentencePairs:
    """Make pairs of neighboring segments of which half are in the wrong order.

    Args:
        boundaries: From :func:`sentence_boundaries`.
        index: Which boundaries to use.
        cls_id: The id of ``[CLS]``.
        sep_id: The id of ``[SEP]``.
        pad_id: The id of padding.
        generator: The source of randomness.

    Returns:
        The pairs, label 1 where the segments are exchanged.

    Raises:
        ValueError: If an index is out of range.

    References:
        Lan et al. 2020, arXiv:1909.11942, section 3.1.

    Book: :doc:`/book/pretraining/masked`
    """
    check_ids("index", index, len(boundaries))
    index = index.long()
    b = boundaries
    false = rand(len(index), generator=generator, device=index.device) < 0.5
    rows = false[:, None]
    before, after = b.before[index], b.after[index]
    short, long = b.before_length[index], b.after_length[index]
    a_side = (torch.where(rows, after, before), torch.where(false, long, short))
    b_side = (torch.where(rows, before, after), torch.where(false, short, long))
    return _join(a_side, b_side, false, cls_id, sep_id, pad_id)


def _join(
    a_side: tuple[Tensor, Tensor],
    b_side: tuple[Tensor, Tensor],
    false: Tensor,
    cls_id: int,
    sep_id: int,
    pad_id: int,
) -> SentencePairs:
    """Lay out [CLS] A [SEP] B [SEP] and padding, all rows at once."""
    (a, a_length), (b, b_length) = a_side, b_side
    half = a.shape[1]
    check_shape("b", b, tuple(a.shape))
    place = torch.arange(2 * half + 3, device=a.device)[None]
    middle = a_length[:, None] + 1  # where the first [SEP] stands
    last = middle + b_length[:, None] + 1  # ... and the second
    from_a = a.gather(1, (place - 1).clamp(0, half - 1).expand(a.shape[0], -1))
    from_b = b.gather(1, (place - middle - 1).clamp(0, half - 1))
    ids = torch.where(place < middle, from_a, from_b)
    ids = torch.where((place == middle) | (place == last), sep_id, ids)
    ids = torch.where(place == 0, cls_id, ids)
    ids = torch.where(place > last, pad_id, ids)
    return SentencePairs(ids, (place > middle).long(), place <= last, false.long())
