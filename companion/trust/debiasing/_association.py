r"""Association tests: how near two groups of words lie to two others, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import (
    check_count,
    check_floating,
    check_in_range,
    check_several,
    check_shape,
    wide,
)
from companion.data import WeatTest, WordVectors
from companion.trust.debiasing._permutation import PermutationTest, Side, permutation_test

__all__ = [
    "Association",
    "WordAssociation",
    "association",
    "effect_size",
    "in_sentences",
    "negative_sentiment",
    "relative_norm_distance",
    "weat",
    "word_weat",
]


def association(
    words: Float[Tensor, "*words dim"],
    first: Float[Tensor, "a dim"],
    second: Float[Tensor, "b dim"],
) -> Float[Tensor, "*words"]:
    r"""Compute how much nearer each word is to one group of attributes than to another.

    .. math:: s(w) = \frac1{|A|}\sum_{a\in A}\cos(w,a) - \frac1{|B|}\sum_{b\in B}\cos(w,b)

    Args:
        words: :math:`w`, vectors of any length but 0.
        first: :math:`A`, at least one.
        second: :math:`B`, at least one.

    Returns:
        Numbers in [-2, 2], in float32 at least.

    Raises:
        ValueError: If the dimensions differ, or a group of attributes is empty.

    References:
        Caliskan, Bryson and Narayanan 2017, doi:10.1126/science.aal4230.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> association(torch.tensor([3.0, 4.0]), torch.eye(2)[:1], torch.eye(2)[1:])
        tensor(-0.2000)
    """
    dim = words.shape[-1]
    check_floating("words", words)
    for name, group in (("first", first), ("second", second)):
        check_floating(name, group)
        check_shape(name, group, (None, dim))
        check_count(f"words in {name}", len(group))
    # A mean of cosines is the product with the mean of unit vectors.
    apart = _unit(first).mean(0) - _unit(second).mean(0)
    return _unit(words) @ apart.to(_unit(words).dtype)


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros has no direction, and gives NaN."""
    held = wide(x)
    held = held / held.abs().amax(-1, keepdim=True)  # no square overflows
    made: Tensor = held / held.norm(dim=-1, keepdim=True)
    return made


def effect_size(
    first: Float[Tensor, " n"], second: Float[Tensor, " m"], *, ddof: int = 1
) -> Float[Tensor, ""]:
    r"""Divide the difference of two means by the deviation of all numbers together.

    .. math:: d = \frac{\bar s_X - \bar s_Y}{\mathrm{sd}_{X\cup Y}(s)}

    It is not Cohen's d, whose deviation is that within the groups and which has no bound.

    Args:
        first: :math:`s` of the words of X.
        second: :math:`s` of the words of Y.
        ddof: What is taken from the number of words under the root of the deviation: 1 gives the
            sample's, as Caliskan et al. use, and 0 the population's.

    Returns:
        :math:`d`. For groups of one size n it lies within :math:`\pm2` with ddof 0, and within
        :math:`\pm2\sqrt{(2n-1)/(2n)}` with ddof 1. NaN if all numbers are equal.

    Raises:
        ValueError: If a group is empty, or ddof is neither 0 nor 1.

    References:
        Caliskan, Bryson and Narayanan 2017, doi:10.1126/science.aal4230.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> one, other = torch.tensor([1.0, 1.0]), torch.tensor([-1.0, -1.0])
        >>> effect_size(one, other, ddof=0), effect_size(one, other)
        (tensor(2.), tensor(1.7321))
    """
    for name, group in (("first", first), ("second", second)):
        check_shape(name, group, (None,))
        check_floating(name, group)
        check_count(f"words in {name}", len(group))
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, got {ddof}")
    both = wide(torch.cat([first, second]))
    spread = both.std(correction=ddof)
    # The mean of equal numbers is rounded, and then none of them seems to equal it.
    spread = torch.where(both.amax() > both.amin(), spread, torch.nan)
    return (wide(first).mean() - wide(second).mean()) / spread


@dataclass(frozen=True, eq=False, kw_only=True)
class Association:
    """An association test.

    Attributes:
        effect: :math:`d` of :func:`effect_size`.
        test: The permutation test.
        first: :math:`s` of the first targets.
        second: :math:`s` of the second targets.
    """

    effect: float
    test: PermutationTest
    first: Float[Tensor, " n"]
    second: Float[Tensor, " m"]


def weat(
    first_target: Float[Tensor, "n dim"],
    second_target: Float[Tensor, "m dim"],
    first_attribute: Float[Tensor, "a dim"],
    second_attribute: Float[Tensor, "b dim"],
    *,
    ddof: int = 1,
    side: Side = "greater",
    draws: int = 100_000,
    generator: torch.Generator | None = None,
) -> Association:
    r"""Run a word-embedding association test: are targets tied to attributes?

    Targets and attributes are not exchangeable: the deviation is over the targets, and so are the
    partitions. Vectors of sentences make it a sentence-embedding association test (SEAT).

    Args:
        first_target: :math:`X`, for example flowers.
        second_target: :math:`Y`, insects.
        first_attribute: :math:`A`, pleasant words.
        second_attribute: :math:`B`, unpleasant words.
        ddof: As in :func:`effect_size`.
        side: As in :func:`permutation_test`.
        draws: As there.
        generator: As there.

    Returns:
        Effect and test. They are one for the lists given: other words of the same kind may say
        something else.

    Raises:
        ValueError: As in :func:`association`, :func:`effect_size` and :func:`permutation_test`.

    References:
        Caliskan, Bryson and Narayanan 2017, doi:10.1126/science.aal4230; for sentences, May et al.
        2019, arXiv:1903.10561.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> x = torch.tensor([[1.0, 0.1], [1.0, 0.2]])
        >>> weat(x, x.flip(1), torch.eye(2)[:1], torch.eye(2)[1:]).test.p_value
        0.16666666666666666
    """
    first = association(first_target, first_attribute, second_attribute)
    second = association(second_target, first_attribute, second_attribute)
    return Association(
        effect=float(effect_size(first, second, ddof=ddof)),
        test=permutation_test(first, second, side=side, draws=draws, generator=generator),
        first=first,
        second=second,
    )


@dataclass(frozen=True, kw_only=True)
class WordAssociation:
    """An association test on words, with what the vocabulary lacked.

    Attributes:
        result: Effect and test, on the words that were found.
        found: How many words of first and second target, first and second attribute were found.
        asked: How many were asked for.
        missing: The words that were not found.
    """

    result: Association
    found: tuple[int, int, int, int]
    asked: tuple[int, int, int, int]
    missing: tuple[str, ...]

    @property
    def coverage(self) -> float:
        """The smallest share of a list that was found, 0 to 1."""
        return min(f / a for f, a in zip(self.found, self.asked, strict=True))


def word_weat(
    vectors: WordVectors,
    words: WeatTest,
    *,
    lower: bool = False,
    least: int = 2,
    ddof: int = 1,
    side: Side = "greater",
    draws: int = 100_000,
    generator: torch.Generator | None = None,
) -> WordAssociation:
    """Run an association test on the words that a vocabulary has, and say which it lacks.

    Args:
        vectors: Words and their vectors.
        words: The four lists, such as one of :func:`companion.data.weat`.
        lower: Look words up in lower case, as GloVe has them. Case tells names from nouns, so
            leave it off for vectors that keep it.
        least: How many words of each list must be there.
        ddof: As in :func:`weat`.
        side: As in :func:`weat`.
        draws: As in :func:`weat`.
        generator: As in :func:`weat`.

    Returns:
        The test, and its coverage.

    Raises:
        ValueError: If fewer than ``least`` words of a list are there, and as :func:`weat` does.

    Book: :doc:`/book/trust/debiasing`
    """
    check_count("least", least)
    lists = (
        words.first_target,
        words.second_target,
        words.first_attribute,
        words.second_attribute,
    )
    missing: list[str] = []
    groups: list[Tensor] = []
    for group in lists:
        looked = [word.lower() if lower else word for word in group.words]
        there = [word for word in dict.fromkeys(looked) if word in vectors.index]
        missing += [word for word in looked if word not in vectors.index]
        if len(there) < least:
            raise ValueError(
                f"{len(there)} of {len(looked)} words of {group.name!r} are in the vocabulary, "
                f"fewer than {least}: take other vectors, or leave this test out"
            )
        groups.append(vectors.vectors[[vectors.index[word] for word in there]].double())
    made = weat(*groups, ddof=ddof, side=side, draws=draws, generator=generator)
    found = [len(group) for group in groups]
    return WordAssociation(
        result=made,
        found=(found[0], found[1], found[2], found[3]),
        asked=(len(lists[0].words), len(lists[1].words), len(lists[2].words), len(lists[3].words)),
        missing=tuple(missing),
    )


def in_sentences(words: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Put words into sentences that say little else.

    Args:
        words: The words.
        templates: Sentences with ``{}`` where the word goes.

    Returns:
        For each word, one sentence a template; those of one word side by side.

    Raises:
        ValueError: If a single string is given, or a template has no place for the word.

    References:
        May et al. 2019, arXiv:1903.10561.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> in_sentences(["art", "math"], ["This is {}.", "{} is here."])
        ['This is art.', 'art is here.', 'This is math.', 'math is here.']
    """
    check_several("words", words)
    check_several("templates", templates)
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"the template {template!r} must have {{}} once, for the word")
    return [template.replace("{}", word) for word in words for template in templates]


def relative_norm_distance(
    words: Float[Tensor, "n dim"],
    first: Float[Tensor, "a dim"],
    second: Float[Tensor, "b dim"],
) -> Float[Tensor, ""]:
    r"""Sum how much nearer neutral words are to one group's mean than to another's.

    .. math:: \sum_w \lVert w-\mu_A\rVert - \lVert w-\mu_B\rVert

    Args:
        words: Neutral words.
        first: Words of group A.
        second: Words of group B.

    Returns:
        Positive if the words are nearer to B. It grows with the number of words and their length:
        give unit vectors to compare.

    Raises:
        ValueError: If the dimensions differ, or there is nothing to average.

    References:
        Garg et al. 2018, arXiv:1711.08412.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> eye = torch.eye(2)
        >>> relative_norm_distance(eye[:1], eye[:1], eye[1:])
        tensor(-1.4142)
    """
    check_shape("words", words, (None, None))
    for name, group in (("first", first), ("second", second)):
        check_shape(name, group, (None, words.shape[1]))
        check_count(f"words in {name}", len(group))
    held = wide(words)
    near, far = (wide(group).mean(0) for group in (first, second))
    made: Tensor = ((held - near).norm(dim=1) - (held - far).norm(dim=1)).sum()
    return made


def negative_sentiment(probabilities: Float[Tensor, " groups"]) -> Float[Tensor, ""]:
    r"""Compute the relative negative sentiment bias: how unevenly negativity is spread.

    .. math:: \mathrm{KL}(P\,\|\,U) = \sum_g P_g\log(P_g\,G),\qquad P_g = \frac{p_g}{\sum_h p_h}

    Args:
        probabilities: :math:`p_g`, that a classifier of sentiment calls the word of group g
            negative. The classifier is the caller's: the number depends on it.

    Returns:
        Nats, 0 if all are equal, :math:`\log G` at most.

    Raises:
        ValueError: If a probability is outside of [0, 1], or all are 0.

    References:
        Sweeney and Najafian 2019, doi:10.18653/v1/P19-1162.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> negative_sentiment(torch.tensor([0.2, 0.2, 0.2]))
        tensor(0.)
    """
    check_shape("probabilities", probabilities, (None,))
    check_count("groups", len(probabilities))
    p = wide(probabilities)
    check_in_range("the smallest probability", float(p.min()), low=0.0)
    check_in_range("the largest probability", float(p.max()), low=0.0, high=1.0, open_low=True)
    share = p / p.sum()
    made: Tensor = torch.special.xlogy(share, share * len(p)).sum().clamp(min=0)
    return made
