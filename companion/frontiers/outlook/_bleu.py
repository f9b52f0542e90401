r"""Scores of translations by shared n-grams of words: BLEU, from counts that can be added."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_in_range, check_several
from companion.frontiers.outlook._ngrams import clipped_matches, gram_totals

__all__ = [
    "BLEU",
    "Smoothing",
    "bleu",
    "bleu_counts",
    "bleu_from_counts",
    "sentence_bleu",
    "tokenize_13a",
]

#: What is done where an order has no match: see :func:`bleu`.
Smoothing = Literal["none", "floor", "add-k", "exp"]
_DEFAULTS = {"none": 0.0, "floor": 0.1, "add-k": 1.0, "exp": 0.0}
_SPLITS = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


class BLEU(NamedTuple):
    """A score and what it is made of.

    Attributes:
        score: Between 0 and 1; papers print a hundred times it.
        precisions: Share of the n-grams that are matched, one entry an order, smoothed.
        brevity: The penalty for shortness, between 0 and 1.
        length: Words of the hypotheses.
        reference_length: Words of the references, of each the one nearest in length.
    """

    score: Float[Tensor, "..."]
    precisions: Float[Tensor, "... order"]
    brevity: Float[Tensor, "..."]
    length: Float[Tensor, "..."]
    reference_length: Float[Tensor, "..."]


@lru_cache(maxsize=2**16)
def _split_13a(text: str) -> tuple[str, ...]:
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    if "&" in text:
        for written, meant in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
            text = text.replace(written, meant)
    text = f" {text} "
    for pattern, replacement in _SPLITS:
        text = pattern.sub(replacement, text)
    return tuple(text.split())


def tokenize_13a(text: str) -> list[str]:
    """Split a text into words and signs as WMT's script ``mteval-v13a`` does.

    Periods and commas stay within numbers, a hyphen only after a digit is split off.

    Args:
        text: The text.

    Returns:
        The tokens.

    References:
        Post 2018, arXiv:1804.08771, whose package sacreBLEU has the same rule.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> tokenize_13a("It's 3.5 km, he said.")
        ["It's", '3.5', 'km', ',', 'he', 'said', '.']
    """
    return list(_split_13a(text))


def reference_lists(
    hypotheses: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]
) -> list[tuple[str, ...]]:
    """One or more references for each hypothesis, as tuples."""
    check_several("hypotheses", hypotheses)
    check_several("references", references)
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses and {len(references)} references: give one entry of "
            "references for each hypothesis, a text or several texts"
        )
    check_count("hypotheses", len(hypotheses))
    listed = [(r,) if isinstance(r, str) else tuple(r) for r in references]
    for row, texts in enumerate(listed):
        if not texts:
            raise ValueError(f"references[{row}] is empty: give at least one text")
    return listed


def bleu_counts(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    order: int = 4,
    lowercase: bool = False,
    tokenize: Callable[[str], Sequence[str]] = tokenize_13a,
) -> Float[Tensor, "texts counts"]:
    """Count what BLEU is made of, text by text. Corpora are scored by sums of rows.

    Args:
        hypotheses: The texts to judge.
        references: For each a right text, or several.
        order: Longest n-gram.
        lowercase: Whether case does not matter.
        tokenize: Splits a text into words.

    Returns:
        A row for each text: its length, the reference's, ``order`` numbers of matches, each
        n-gram counted no more often than in the reference that has it most often, and ``order``
        numbers of n-grams. float64.

    Raises:
        ValueError: If the numbers differ, a single text is given, or a text has no reference.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> bleu_counts(["the the the"], ["the cat"], order=2)
        tensor([[3., 2., 1., 0., 3., 2.]], dtype=torch.float64)
    """
    check_count("order", order)
    listed = reference_lists(hypotheses, references)

    def words(text: str) -> Sequence[str]:
        text = text.lower() if lowercase else text
        return _split_13a(text) if tokenize is tokenize_13a else tokenize(text)

    ours = [words(text) for text in hypotheses]
    theirs = [[words(text) for text in texts] for texts in listed]
    nearest = [
        min((abs(len(r) - len(h)), len(r)) for r in refs)[1]
        for h, refs in zip(ours, theirs, strict=True)
    ]
    lengths = torch.tensor([[len(h), r] for h, r in zip(ours, nearest, strict=True)])
    matched = clipped_matches(ours, theirs, order=order)
    return torch.cat([lengths.double(), matched, gram_totals(ours, order)], 1)


def bleu_from_counts(
    counts: Float[Tensor, "*batch counts"],
    *,
    smoothing: Smoothing = "exp",
    value: float | None = None,
    effective_order: bool = False,
) -> BLEU:
    r"""Compute BLEU of counts, or of sums of them.

    Args:
        counts: As :func:`bleu_counts` gives them; for a corpus, summed over its texts.
        smoothing: As in :func:`bleu`.
        value: As in :func:`bleu`.
        effective_order: As in :func:`bleu`.

    Returns:
        Score and parts, of the batch's shape, float64.

    Raises:
        ValueError: If the number of counts is odd or below 4, there is no such smoothing, or its
            value is useless.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> two = bleu_counts(["a b c d e", "a b"], ["a b c d e", "a b"])
        >>> bleu_from_counts(two.sum(0)).score
        tensor(1., dtype=torch.float64)
    """
    if counts.shape[-1] < 4 or counts.shape[-1] % 2:
        raise ValueError(f"counts must have 2 + 2 x order entries, got {counts.shape[-1]}")
    if smoothing not in _DEFAULTS:
        raise ValueError(f"smoothing must be one of {', '.join(_DEFAULTS)}, got {smoothing!r}")
    k = _DEFAULTS[smoothing] if value is None else value
    if smoothing in ("floor", "add-k"):
        check_in_range("value", k, low=0.0, open_low=True, open_high=True)
    elif value is not None:
        raise ValueError(f"smoothing {smoothing!r} has no value: leave it out")
    counts = counts.double()
    length, reference_length = counts[..., 0], counts[..., 1]
    matched, total = counts[..., 2:].chunk(2, -1)
    order = matched.shape[-1]
    any_match = matched.sum(-1) > 0
    if smoothing == "add-k":
        more = torch.full((order,), k, dtype=counts.dtype, device=counts.device)
        more[0] = 0.0
        matched, total = matched + more, total + more
    there = (total > 0).to(counts.dtype).cumprod(-1)  # an order without n-grams ends the list
    empty = (matched == 0).to(counts.dtype) * there
    precisions = matched / total.clamp_min(1e-300)
    if smoothing == "exp":
        filled = 0.5 ** empty.cumsum(-1) / total.clamp_min(1e-300)
        precisions = torch.where(empty > 0, filled, precisions)
    elif smoothing == "floor":
        precisions = torch.where(empty > 0, k / total.clamp_min(1e-300), precisions)
    precisions = precisions * there
    used = there if effective_order else torch.ones_like(there)
    logs = torch.where(used > 0, precisions.log(), torch.zeros_like(precisions))
    mean = logs.sum(-1) / used.sum(-1).clamp_min(1)
    brevity = torch.exp(1 - reference_length / length.clamp_min(1e-300)).clamp_max(1.0)
    brevity = torch.where(length < reference_length, brevity, torch.ones_like(brevity))
    score = torch.where(any_match, brevity * mean.exp(), torch.zeros_like(mean))
    return BLEU(score, precisions, brevity, length, reference_length)


def bleu(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    order: int = 4,
    smoothing: Smoothing = "exp",
    value: float | None = None,
    effective_order: bool = False,
    lowercase: bool = False,
    tokenize: Callable[[str], Sequence[str]] = tokenize_13a,
) -> BLEU:
    r"""Score the translation of a corpus.

    With the precisions :math:`p_n` of n-grams, whose counts are clipped at the reference's,
    :math:`c` words in the hypotheses and :math:`r` in the references,

    .. math:: \mathrm{BLEU} = \min(1, e^{1 - r/c}) \exp \frac1N \sum_{n=1}^N \log p_n

    Counts are summed over the corpus before they are divided: this is no mean of sentences.

    Args:
        hypotheses: The translations.
        references: For each a right one, or several.
        order: :math:`N`.
        smoothing: What an order without a match counts. ``"exp"``: one half, one fourth and so on
            of a match, as each further order has none (the default of sacreBLEU). ``"floor"``:
            ``value`` of a match. ``"add-k"``: ``value`` is added to the matches and the n-grams of
            all orders but the first. ``"none"``: nothing, so the score is 0.
        value: Of ``"floor"``, by default 0.1, or ``"add-k"``, by default 1.
        effective_order: Leave out orders that the hypotheses are too short for. Sentences need it.
        lowercase: Whether case does not matter.
        tokenize: Splits a text into words. Scores under different tokenizers do not compare.

    Returns:
        Score and parts. Without a match the score is 0.

    Raises:
        ValueError: As in :func:`bleu_counts` and :func:`bleu_from_counts`.

    References:
        Papineni et al. 2002, doi:10.3115/1073083.1073135; smoothing: Chen and Cherry 2014,
        doi:10.3115/v1/W14-3346; Post 2018, arXiv:1804.08771.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> made = bleu(["the cat sat on the mat"], ["the cat lay on the mat"])
        >>> round(float(made.score), 4), [round(float(p), 2) for p in made.precisions]
        (0.3799, [0.83, 0.6, 0.25, 0.17])
    """
    counts = bleu_counts(
        hypotheses, references, order=order, lowercase=lowercase, tokenize=tokenize
    )
    return bleu_from_counts(
        counts.sum(0), smoothing=smoothing, value=value, effective_order=effective_order
    )


def sentence_bleu(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    smoothing: Smoothing = "exp",
    value: float | None = None,
) -> Float[Tensor, " texts"]:
    """Score single sentences by BLEU, with orders up to what their lengths allow.

    Args:
        hypotheses: The translations.
        references: For each a right one, or several.
        smoothing: As in :func:`bleu`.
        value: As in :func:`bleu`.

    Returns:
        Scores between 0 and 1. Their mean is not the BLEU of the corpus.

    Raises:
        ValueError: As in :func:`bleu`.

    Book: :doc:`/book/frontiers/outlook`

    Example:
        >>> sentence_bleu(["a b", "c d"], ["a b", "a b"])
        tensor([1., 0.], dtype=torch.float64)
    """
    counts = bleu_counts(hypotheses, references)
    return bleu_from_counts(counts, smoothing=smoothing, value=value, effective_order=True).score
