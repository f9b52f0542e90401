r"""Tags and spans: which tag may follow which, how tags become spans, and how spans are scored.

A tag is ``O`` or a prefix and a label, as in ``B-PER``. Three readings exist, and they give
different spans for sequences that no annotator would write:

``"conll"``
    Lenient, as the script of the CoNLL tasks and seqeval's default: a span starts at B or S, at an
    I or E that follows O, E or S, and where the label changes.
``"BIO"``
    Strict (seqeval's ``IOB2``): a span starts at B and goes on through I of the same label. An
    orphan I is no span.
``"BIOES"``
    Strict: S, or B, then any I, then E, all of one label. What is not closed is no span.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from companion.core import check_several

__all__ = [
    "OverlapScores",
    "Scheme",
    "Span",
    "SpanScores",
    "TagConstraints",
    "overlap_scores",
    "span_f1",
    "spans",
    "tag_constraints",
    "tag_names",
    "tags_from_spans",
]

#: How tags are read as spans.
Scheme = Literal["conll", "BIO", "BIOES"]

PREFIXES = {"BIO": "BI", "BIOES": "BIES"}
ALLOWED = {"conll": "BIES", "BIO": "BI", "BIOES": "BIES"}


class Span(NamedTuple):
    """A mention in a sentence.

    Attributes:
        start: Its first token.
        end: The token after its last one.
        label: What it is.
    """

    start: int
    end: int
    label: str


class TagConstraints(NamedTuple):
    """What a scheme allows.

    Attributes:
        allowed: Whether tag j may follow tag i, shape ``"tags tags"``.
        starts: Whether a sentence may start with a tag, shape ``"tags"``.
        ends: Whether it may end with it, shape ``"tags"``.
    """

    allowed: Tensor
    starts: Tensor
    ends: Tensor


class SpanScores(NamedTuple):
    """Agreement of spans, over all sentences and labels.

    Attributes:
        precision: Share of the predicted spans that are right; 0 if there are none.
        recall: Share of the true spans that were found; 0 if there are none.
        f1: Their harmonic mean, ``2 * right / (true + predicted)``; 0 if there is nothing.
        right: How many spans are in both.
        predicted: How many were predicted.
        true: How many there are.
        scheme: How the tags were read.
    """

    precision: float
    recall: float
    f1: float
    right: int
    predicted: int
    true: int
    scheme: str


class OverlapScores(NamedTuple):
    """F1 under four notions of a match, each from its own count of credit.

    Attributes:
        strict: Same borders and same label.
        exact: Same borders, whatever the label.
        partial: Same borders count 1, an overlap 1/2, whatever the label.
        label: An overlap with the same label.
    """

    strict: float
    exact: float
    partial: float
    label: float


def _check_scheme(scheme: str, known: dict[str, str]) -> None:
    if scheme not in known:
        raise ValueError(f"scheme must be one of {', '.join(known)}, got {scheme!r}")


def tag_names(labels: Sequence[str], *, scheme: Literal["BIO", "BIOES"] = "BIO") -> tuple[str, ...]:
    """The tags of a scheme: O first, then those of each label.

    Args:
        labels: Names of the kinds of spans.
        scheme: ``"BIO"`` or ``"BIOES"``.

    Returns:
        1 + 2 or 4 tags a label.

    Raises:
        ValueError: If labels are one text, repeat, or are empty; or the scheme is unknown.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> tag_names(["PER", "LOC"])
        ('O', 'B-PER', 'I-PER', 'B-LOC', 'I-LOC')
    """
    check_several("labels", labels)
    _check_scheme(scheme, PREFIXES)
    if len(set(labels)) != len(labels) or not all(labels):
        raise ValueError(f"labels must be different and not empty, got {list(labels)}")
    return ("O", *(f"{prefix}-{label}" for label in labels for prefix in PREFIXES[scheme]))


def _parts(tag: str, scheme: str) -> tuple[str, str]:
    if tag == "O":
        return "O", ""
    prefix, _, label = tag.partition("-")
    if len(prefix) != 1 or prefix not in ALLOWED[scheme] or not label:
        wanted = ", ".join(f"{p}-LABEL" for p in ALLOWED[scheme])
        raise ValueError(f"the scheme {scheme} has the tags O, {wanted}; got {tag!r}")
    return prefix, label


def tag_constraints(
    tags: Sequence[str], *, scheme: Literal["BIO", "BIOES"] = "BIO"
) -> TagConstraints:
    """Which tag may follow which, so that every path is a set of spans.

    Args:
        tags: The tags, in the order of their numbers.
        scheme: In ``"BIO"`` an I follows a B or an I of its label. In ``"BIOES"`` a B or an I is
            also followed by an I or an E of its label.

    Returns:
        Masks for :class:`LinearChainCRF`.

    Raises:
        ValueError: If there is no tag, tags repeat, a tag does not belong to the scheme, or the
            scheme is unknown.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> tag_constraints(["O", "B-PER", "I-PER"]).allowed
        tensor([[ True,  True, False],
                [ True,  True,  True],
                [ True,  True,  True]])
    """
    check_several("tags", tags)
    _check_scheme(scheme, PREFIXES)
    if not tags or len(set(tags)) != len(tags):
        raise ValueError(f"tags must be different, and one at least, got {list(tags)}")
    parts = [_parts(tag, scheme) for tag in tags]

    def follows(before: tuple[str, str], after: tuple[str, str]) -> bool:
        opens = after[0] in "OBS"
        if scheme == "BIO":
            return opens or (before[0] in "BI" and before[1] == after[1])
        open_before = before[0] in "BI"
        return open_before != opens and (opens or before[1] == after[1])

    allowed = [[follows(before, after) for after in parts] for before in parts]
    starts = [follows(("O", ""), part) for part in parts]
    ends = [follows(part, ("O", "")) for part in parts]
    return TagConstraints(torch.tensor(allowed), torch.tensor(starts), torch.tensor(ends))


def spans(tags: Sequence[str], *, scheme: Scheme = "conll") -> list[Span]:
    """Read the tags of one sentence as spans.

    Args:
        tags: One tag a token.
        scheme: How to read them; see the module's table.

    Returns:
        Spans from left to right.

    Raises:
        ValueError: If a tag does not belong to the scheme, or the scheme is unknown.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> spans(["I-PER", "O", "B-LOC", "I-LOC"])
        [Span(start=0, end=1, label='PER'), Span(start=2, end=4, label='LOC')]
        >>> spans(["I-PER", "O", "B-LOC", "I-LOC"], scheme="BIO")
        [Span(start=2, end=4, label='LOC')]
    """
    check_several("tags", tags)
    _check_scheme(scheme, ALLOWED)
    found: list[Span] = []
    start, open_label, closed = -1, "", True
    before = "O"
    for place, tag in enumerate([*tags, "O"]):
        prefix, label = _parts(tag, scheme)
        goes_on = start >= 0 and prefix in "IE" and label == open_label and before in "BI"
        if start >= 0 and not goes_on:
            if closed or scheme != "BIOES":
                found.append(Span(start, place, open_label))
            start = -1
        if start < 0:
            lenient = scheme == "conll" and prefix in "IE"
            if prefix in "BS" or lenient:
                start, open_label = place, label
        closed = prefix in "ES"
        before = prefix
    return found


def tags_from_spans(
    found: Sequence[Span], length: int, *, scheme: Literal["BIO", "BIOES"] = "BIO"
) -> list[str]:
    """Write spans as tags.

    Args:
        found: Spans that do not overlap.
        length: Number of tokens.
        scheme: ``"BIO"`` or ``"BIOES"``.

    Returns:
        One tag a token.

    Raises:
        ValueError: If spans overlap, are empty, lie outside or have no label, or the scheme is
            unknown.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> tags_from_spans([Span(1, 3, "LOC")], 4, scheme="BIOES")
        ['O', 'B-LOC', 'E-LOC', 'O']
    """
    _check_scheme(scheme, PREFIXES)
    tags = ["O"] * length
    for start, end, label in found:
        if not 0 <= start < end <= length or any(tag != "O" for tag in tags[start:end]):
            raise ValueError(
                f"span [{start}, {end}) is empty, outside of {length} tokens, or overlaps another"
            )
        if not label:
            raise ValueError(f"span [{start}, {end}) has no label")
        tags[start:end] = [f"B-{label}", *[f"I-{label}"] * (end - start - 1)]
        if scheme == "BIOES":
            tags[end - 1] = f"{'S' if end - start == 1 else 'E'}-{label}"
    return tags


def _check_pairs(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> None:
    check_several("true", true)
    check_several("predicted", predicted)
    if len(true) != len(predicted):
        raise ValueError(f"{len(true)} true sentences, but {len(predicted)} predicted ones")
    for number, (one, other) in enumerate(zip(true, predicted, strict=True)):
        if len(one) != len(other):
            raise ValueError(
                f"sentence {number} has {len(one)} true tags, but {len(other)} predicted ones"
            )


def span_f1(
    true: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    *,
    scheme: Scheme = "conll",
) -> SpanScores:
    r"""Precision, recall and F1 of whole spans: both borders and the label must agree.

    Args:
        true: Tags of each sentence.
        predicted: Predicted tags of each sentence.
        scheme: How tags are read as spans; it stands in the result, for it changes the numbers.

    Returns:
        Scores over all sentences; a span is known by its sentence, borders and label, so that two
        equal mentions in one sentence count twice.

    Raises:
        ValueError: If numbers of sentences or tags differ, or a tag does not belong to the scheme.

    References:
        Tjong Kim Sang and De Meulder 2003, arXiv:cs/0306050.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> gold, guess = [["B-PER", "I-PER"]], [["I-PER", "I-PER"]]
        >>> span_f1(gold, guess).f1, span_f1(gold, guess, scheme="BIO").f1
        (1.0, 0.0)
    """
    _check_pairs(true, predicted)
    gold = {(i, span) for i, tags in enumerate(true) for span in spans(tags, scheme=scheme)}
    told = {(i, span) for i, tags in enumerate(predicted) for span in spans(tags, scheme=scheme)}
    right = len(gold & told)
    return SpanScores(
        right / max(len(told), 1),
        right / max(len(gold), 1),
        2 * right / max(len(gold) + len(told), 1),
        right,
        len(told),
        len(gold),
        scheme,
    )


def _overlaps(gold: Sequence[Span], told: Sequence[Span], *, same_label: bool) -> int:
    """Largest number of pairs that overlap, each span in one pair: neither side overlaps itself."""
    i = j = pairs = 0
    while i < len(gold) and j < len(told):
        one, other = gold[i], told[j]
        meet = one.start < other.end and other.start < one.end
        if meet and (not same_label or one.label == other.label):
            pairs, i, j = pairs + 1, i + 1, j + 1
        elif one.end < other.end:
            i += 1
        else:
            j += 1
    return pairs


def overlap_scores(
    true: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    *,
    scheme: Scheme = "conll",
) -> OverlapScores:
    """F1 of spans where touching counts: the four notions of SemEval 2013.

    Each true span is paired with at most one predicted span that it overlaps, and as many pairs
    are made as there can be.

    Args:
        true: Tags of each sentence.
        predicted: Predicted tags of each sentence.
        scheme: How tags are read as spans.

    Returns:
        ``2 * credit / (true + predicted)`` for each notion; 0 if there is nothing.

    Raises:
        ValueError: As in :func:`span_f1`.

    References:
        Segura-Bedmar, Martínez and Herrero-Zazo 2013, "SemEval-2013 Task 9", S13-2056.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> scores = overlap_scores([["B-PER", "I-PER"]], [["B-PER", "O"]])
        >>> scores.strict, scores.partial, scores.label
        (0.0, 0.5, 1.0)
    """
    _check_pairs(true, predicted)
    strict = exact = overlapping = labeled = total = 0
    for tags, guessed in zip(true, predicted, strict=True):
        gold, told = spans(tags, scheme=scheme), spans(guessed, scheme=scheme)
        total += len(gold) + len(told)
        strict += len(set(gold) & set(told))
        exact += len({s[:2] for s in gold} & {s[:2] for s in told})
        overlapping += _overlaps(gold, told, same_label=False)
        labeled += _overlaps(gold, told, same_label=True)
    credits = (strict, exact, (exact + overlapping) / 2, labeled)
    return OverlapScores(*(2 * credit / max(total, 1) for credit in credits))
