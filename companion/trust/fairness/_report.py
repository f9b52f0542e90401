r"""A report on decisions that a person can hand in: a table, its intervals, and a figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Integer, Shaped
from torch import Tensor

from companion.core import check_in_range
from companion.trust.fairness._cells import Cells, Rates, cells, group_ids, rates
from companion.trust.fairness._gaps import Disparities, disparities
from companion.trust.fairness._intervals import (
    Interval,
    clopper_pearson,
    expected_gap,
    newcombe,
)

__all__ = ["FairnessReport", "report"]

#: Name in the table, what is counted, of whom.
_MEASURES = {
    "base_rate": ("base rate", ("tp", "fn"), ("tp", "fp", "fn", "tn")),
    "selection": ("selected", ("tp", "fp"), ("tp", "fp", "fn", "tn")),
    "tpr": ("true positives", ("tp",), ("tp", "fn")),
    "fpr": ("false positives", ("fp",), ("fp", "tn")),
    "ppv": ("precision", ("tp",), ("tp", "fp")),
    "npv": ("negative precision", ("tn",), ("fn", "tn")),
    "accuracy": ("accuracy", ("tp", "tn"), ("tp", "fp", "fn", "tn")),
}

_LIMITS = (
    "The table describes these decisions on these people.",
    "It cannot show whether outcomes were recorded alike in all groups, nor why groups differ.",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class FairnessReport:
    """What :func:`report` found. ``print`` shows it, and a notebook shows it as a table.

    Attributes:
        names: Groups, in order.
        counts: Counts of each group.
        rates: Rates of each group; NaN where a group has nobody to take the rate of.
        intervals: For each rate, the exact interval of each group.
        disparities: Gaps and ratios over all groups; NaN where a group is not estimable.
        chance: For each rate, the gap to be expected if no two groups differed; NaN where a group
            is not estimable.
        reference: Number of the group with which the others are compared.
        differences: For each rate, the interval of each group's difference from the reference, all
            intervals of a rate together at the level; from 0 to 0 for the reference itself.
        level: Level of the intervals.
        warnings: What a reader must know, in sentences.

    Book: :doc:`/book/trust/fairness`
    """

    names: tuple[str, ...]
    counts: Cells
    rates: Rates
    intervals: dict[str, Interval]
    disparities: Disparities
    chance: dict[str, float]
    reference: int
    differences: dict[str, Interval]
    level: float
    warnings: tuple[str, ...]

    @property
    def people(self) -> int:
        """How many people the report is about."""
        return int(torch.stack(list(self.counts)).sum())

    def rows(self) -> list[list[str]]:
        """The table as words: names of the measures, a row for each group, and the gaps."""
        header = ["group", "people", *(name for name, _, _ in _MEASURES.values())]
        people = torch.stack(list(self.counts)).sum(0)
        table = [header]
        for a, name in enumerate(self.names):
            row = [name, str(int(people[a]))]
            for key in _MEASURES:
                low, high = (float(end[a]) for end in self.intervals[key])
                row.append(_share(float(getattr(self.rates, key)[a]), low, high))
            table.append(row)
        gaps = ["largest gap (by chance)", ""]
        for key in _MEASURES:
            found = getattr(self.rates, key)
            gaps.append(_pair(float(found.amax() - found.amin()), self.chance[key]))
        return [*table, gaps]

    def markdown(self) -> str:
        """The table and its warnings in Markdown."""
        header, *body = [
            "| " + " | ".join(cell.replace("|", r"\|") for cell in column) + " |"
            for column in zip(*self.rows(), strict=True)
        ]
        rule = "|" + " --- |" * (len(self.names) + 2)
        return "\n".join([header, rule, *body, "", *(f"- {line}" for line in self.notes())])

    def text(self) -> str:
        """The table and its warnings as plain text, one line for each measure."""
        columns = list(zip(*self.rows(), strict=True))
        widths = [max(map(len, row)) for row in self.rows()]
        lines = []
        for column in columns:
            padded = [cell.ljust(width) for cell, width in zip(column, widths, strict=True)]
            lines.append("  ".join(padded).rstrip())
        return "\n".join([*lines, "", *self.notes()])

    def notes(self) -> tuple[str, ...]:
        """How to read the table, and what it cannot show."""
        ratio = float(self.disparities.dp_ratio)
        told = "not estimable" if ratio != ratio else f"{ratio:.3f}"
        return (
            f"Intervals: exact (Clopper-Pearson), {100 * self.level:g} % for each rate by itself.",
            "By chance: the gap to be expected if no two groups differed.",
            f"Smallest over largest share selected: {told} (the four-fifths rule asks for 0.8).",
            *self.warnings,
            *_LIMITS,
        )

    def figure(self) -> Any:
        """Draw each rate with its interval, a panel for each of four.

        Returns:
            A Matplotlib figure.
        """
        import matplotlib.pyplot as plt

        from companion.core import figures

        shown = ("selection", "tpr", "fpr", "ppv")
        height = 0.3 + 0.08 * len(self.names)
        made, axes = plt.subplots(2, 2, figsize=figures.size(1.0, height), sharey=True)
        place = range(len(self.names))
        for ax, key in zip(axes.flat, shown, strict=True):
            value = getattr(self.rates, key)
            low, high = self.intervals[key]
            known = value.isfinite()
            where = [i for i in place if bool(known[i])]
            errors = torch.stack([(value - low)[known], (high - value)[known]]).clamp(min=0)
            ax.errorbar(
                value[known].tolist(), where, xerr=errors.tolist(), fmt="o", color=figures.COLORS[0]
            )
            for i in set(place) - set(where):
                ax.text(0.5, i, "none", ha="center", va="center", color="0.4")
            ax.set(xlabel=_MEASURES[key][0], xlim=(0, 1), ylim=(len(self.names) - 0.5, -0.5))
            ax.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        axes[0, 0].set_yticks(list(place), self.names)
        return made

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"FairnessReport({len(self.names)} groups, {self.people} people)"

    def _repr_markdown_(self) -> str:
        return self.markdown()


def _share(value: float, low: float, high: float) -> str:
    return "none" if value != value else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _pair(gap: float, chance: float) -> str:
    return "not estimable" if gap != gap else f"{gap:.3f} ({chance:.3f})"


def report(
    y: Shaped[Tensor, " rows"],
    predictions: Shaped[Tensor, " rows"],
    groups: Integer[Tensor, " rows"] | Sequence[str],
    *,
    reference: str | None = None,
    level: float = 0.95,
    smallest: int = 30,
) -> FairnessReport:
    """Report the rates of decisions by group, with intervals, gaps, and what they are by chance.

    Nothing in it is random: two runs give the same report.

    Args:
        y: Outcomes, 0 or 1, of any dtype.
        predictions: Decisions, 0 or 1, of any dtype.
        groups: Each row's group, as a name or a number. For intersections, give the names that
            :func:`companion.trust.fairness.group_ids` makes.
        reference: Group with which the others are compared. By default the largest one.
        level: Level of the intervals.
        smallest: Groups of fewer people get a warning.

    Returns:
        The report. A rate that a group has nobody for is *none*, and a gap over such a group is
        *not estimable*; neither is 0.

    Raises:
        ValueError: If the lengths differ, a value is neither 0 nor 1, there are less than two
            groups, or the reference is not among them.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> y = torch.tensor([1, 0, 1, 0, 1, 0, 1, 0])
        >>> decided = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0])
        >>> made = report(y, decided, ["a", "a", "a", "a", "b", "b", "b", "b"])
        >>> [round(float(rate), 2) for rate in made.rates.fpr]
        [0.5, 0.0]
    """
    check_in_range("level", level, low=0.0, high=1.0, open_low=True, open_high=True)
    if len(groups) != len(y):
        raise ValueError(f"there are {len(y)} outcomes and {len(groups)} groups: give one for each")
    if isinstance(groups, Tensor):
        numbers, ids = torch.unique(groups, return_inverse=True)
        names = tuple(str(number) for number in numbers.tolist())
    else:
        ids, names = group_ids(groups)
    if len(names) < 2:
        raise ValueError(f"need two groups or more, found only {names[0]!r}")
    home = y.device
    counts = cells(y, predictions, ids.to(home), size=len(names))
    counts = Cells(*(count.cpu() for count in counts))
    found = rates(counts)
    people = torch.stack(list(counts)).sum(0)
    if reference is None:
        base = int(people.argmax())
    elif reference in names:
        base = names.index(reference)
    else:
        raise ValueError(f"no group is called {reference!r}; there are {', '.join(names)}")
    intervals, differences, chance = {}, {}, {}
    others = len(names) - 1
    for key, (_, won, of) in _MEASURES.items():
        successes = torch.stack([getattr(counts, name) for name in won]).sum(0)
        trials = torch.stack([getattr(counts, name) for name in of]).sum(0)
        intervals[key] = clopper_pearson(successes, trials, level=level)
        ends = newcombe(
            successes,
            trials,
            successes[base].expand_as(successes),
            trials[base].expand_as(trials),
            level=1 - (1 - level) / others,
        )
        itself = torch.arange(len(names)) == base  # not two groups, so no interval of two
        differences[key] = Interval(*(end.masked_fill(itself, 0.0) for end in ends))
        empty = bool((trials == 0).any())
        pooled = float(successes.sum()) / max(float(trials.sum()), 1.0)
        chance[key] = float("nan") if empty else expected_gap(trials, pooled)
    return FairnessReport(
        names=names,
        counts=counts,
        rates=found,
        intervals=intervals,
        disparities=disparities(found),
        chance=chance,
        reference=base,
        differences=differences,
        level=level,
        warnings=tuple(_warnings(names, counts, smallest)),
    )


def _warnings(names: tuple[str, ...], counts: Cells, smallest: int) -> list[str]:
    told = []
    for a, name in enumerate(names):
        tp, fp, fn, tn = (int(count[a]) for count in counts)
        lacking = {
            "a positive outcome: no true-positive rate": tp + fn,
            "a negative outcome: no false-positive rate": fp + tn,
            "a positive decision: no precision": tp + fp,
            "a negative decision: no negative precision": fn + tn,
        }
        told += [f"{name} has nobody with {what}." for what, n in lacking.items() if n == 0]
        size = tp + fp + fn + tn
        if size < smallest:
            told.append(f"{name} has {size} people only: its rates say little.")
    return told
