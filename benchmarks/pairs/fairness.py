"""Rates of decisions by group, and their bootstrap, beside the frame of fairlearn."""

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks._pair import Pair, Side, close
from companion.trust.fairness import bootstrap, cells, rates

ROWS, GROUPS, RESAMPLES = 1_000_000, 20, 1000


def _people(rows: int) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    y, decided = torch.randint(0, 2, (2, rows), generator=g)
    return y, decided, torch.randint(0, GROUPS, (rows,), generator=g)


def _rates(device: torch.device) -> Side:
    people = [column.to(device) for column in _people(ROWS)]

    def run() -> list[torch.Tensor]:
        found = rates(cells(*people, size=GROUPS))
        return [found.selection, found.tpr, found.fpr, found.accuracy]

    return run


def _frame(device: torch.device) -> Side:
    import fairlearn.metrics as fm
    import sklearn.metrics as skm

    y, decided, group = (column.numpy() for column in _people(ROWS))
    measures = {
        "selection": fm.selection_rate,
        "tpr": fm.true_positive_rate,
        "fpr": fm.false_positive_rate,
        "accuracy": skm.accuracy_score,
    }

    def run() -> list[torch.Tensor]:
        frame = fm.MetricFrame(
            metrics=measures, y_true=y, y_pred=decided, sensitive_features=group
        ).by_group
        return [torch.tensor(frame[name].to_numpy(), device=device).double() for name in measures]

    return run


def _by_counts(device: torch.device) -> Side:
    counts = cells(*(column.to(device) for column in _people(ROWS)), size=GROUPS)
    g = torch.Generator().manual_seed(0)

    def run() -> Any:
        made = bootstrap(counts, lambda c: rates(c).tpr, resamples=RESAMPLES, generator=g)
        return [made.low, made.high]

    return run


def _by_rows(device: torch.device) -> Side:
    y, decided, group = (column.to(device) for column in _people(ROWS))
    g = torch.Generator().manual_seed(1)

    def run() -> Any:
        found = []
        for _ in range(RESAMPLES // 50):
            pick = torch.randint(0, ROWS, (ROWS,), generator=g).to(device)
            found.append(rates(cells(y[pick], decided[pick], group[pick], size=GROUPS)).tpr)
        ends = torch.tensor([0.025, 0.975], device=device).double()
        return list(torch.stack(found).quantile(ends, dim=0))

    return run


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    yield Pair(
        name="fairness/rates",
        task=f"four rates of {ROWS:,} decisions in {GROUPS} groups",
        peer="fairlearn.metrics.MetricFrame",
        ours=_rates,
        theirs=_frame,
        same=close(1e-12),
        needs=["fairlearn"],
        speed=5.0,
        rounds=1,
        devices=("cpu",),
    )
    yield Pair(
        name="fairness/bootstrap",
        task=f"bootstrap of {GROUPS} rates of {ROWS:,} people, {RESAMPLES:,} resamples",
        peer="the same by rows, a fiftieth of the resamples",
        ours=_by_counts,
        theirs=_by_rows,
        same=close(0.02),
        speed=5.0,
        rounds=1,
        note="Counts of a resample are multinomial: the number of rows does not matter.",
        devices=("cpu",),
    )
