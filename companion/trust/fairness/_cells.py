r"""Who is in which cell: counts of decisions and outcomes by group, and the rates they give.

Everything that is computed from decisions depends on the data through four counts a group. They
are made in one pass over the rows; what follows is arithmetic on a few numbers, also for many
resamples at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor

from companion.core import can_read, check_count, check_ids, check_same_shape, check_several

__all__ = ["Cells", "GroupIds", "Rates", "cells", "group_ids", "rates"]


class GroupIds(NamedTuple):
    """Groups as numbers.

    Attributes:
        ids: Number of each row's group.
        names: Name of each group, in order.
    """

    ids: Integer[Tensor, " rows"]
    names: tuple[str, ...]


def group_ids(*columns: Sequence[str], join: str = ", ") -> GroupIds:
    """Number the groups of one column, or the intersections of several.

    Args:
        columns: For each attribute, its value in each row.
        join: What stands between the values in the name of an intersection.

    Returns:
        Ids and names, sorted. Intersections that no row belongs to are not there.

    Raises:
        ValueError: If there is no column, no row, or the columns differ in length.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> group_ids(["b", "a", "b"], ["x", "x", "y"]).names
        ('a, x', 'b, x', 'b, y')
    """
    if not columns:
        raise ValueError("give at least one column of values")
    for column in columns:
        check_several("a column", column)
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1 or lengths[0] == 0:
        raise ValueError(f"columns must have equal lengths of 1 or more, got {lengths}")
    rows = list(zip(*columns, strict=True))
    known = {row: i for i, row in enumerate(sorted(set(rows)))}
    names = tuple(join.join(str(value) for value in row) for row in known)
    return GroupIds(torch.tensor([known[row] for row in rows]), names)


class Cells(NamedTuple):
    """Counts of each group.

    Attributes:
        tp: Positive outcome, decided positive; shape ``(..., groups)``, as of all fields.
        fp: Negative outcome, decided positive.
        fn: Positive outcome, decided negative.
        tn: Negative outcome, decided negative.
    """

    tp: Integer[Tensor, "... groups"]
    fp: Integer[Tensor, "... groups"]
    fn: Integer[Tensor, "... groups"]
    tn: Integer[Tensor, "... groups"]


def cells(
    y: Shaped[Tensor, " rows"],
    predictions: Shaped[Tensor, " rows"],
    groups: Integer[Tensor, " rows"],
    *,
    size: int | None = None,
) -> Cells:
    r"""Count outcomes and decisions by group.

    Args:
        y: Outcomes, 0 or 1, of any dtype.
        predictions: Decisions, 0 or 1, of any dtype. Scores must be cut by a threshold before.
        groups: Number of each row's group, from 0; see :func:`group_ids`.
        size: How many groups there are. By default one more than the largest number, which waits
            for an accelerator.

    Returns:
        Four int64 counts a group, which add up to the number of rows.

    Raises:
        ValueError: If there is no row, the shapes differ, or (checked on the CPU) a value is
            neither 0 nor 1, or a group's number lies out of range.

    Numerics:
        One pass, no loop over groups or rows.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> y, decided = torch.tensor([1, 0, 1, 0]), torch.tensor([1, 1, 0, 0])
        >>> cells(y, decided, torch.tensor([0, 0, 1, 1])).tp
        tensor([1, 0])
    """
    check_same_shape("y", y, "predictions", predictions)
    check_same_shape("y", y, "groups", groups)
    if y.ndim != 1 or not len(y):
        raise ValueError(f"need a row of outcomes, got shape {tuple(y.shape)}")
    if size is None:
        size = int(groups.max()) + 1
    check_count("size", size)
    check_ids("groups", groups, size)
    check_binary("y", y)
    check_binary("predictions", predictions)
    # In the order tp, fp, fn, tn of the fields.
    cell = (predictions == 0).long() * 2 + (y == 0).long()
    index = cell * size + groups.long()
    counts = torch.zeros(4 * size, dtype=torch.long, device=y.device)
    counts = counts.scatter_add(0, index, torch.ones_like(index)).view(4, size)
    return Cells(counts[0], counts[1], counts[2], counts[3])


def check_binary(name: str, values: Tensor) -> None:
    """Require zeros and ones."""
    if not can_read(values):
        return
    wrong = (values != 0) & (values != 1)
    if bool(wrong.any()):
        found = values[wrong][0].item()
        raise ValueError(
            f"{name} must be 0 or 1, got {found}: cut scores by a threshold, drop what is missing"
        )


class Rates(NamedTuple):
    """Rates of each group; NaN where a group has nobody to take the rate of.

    Attributes:
        base_rate: Share of positive outcomes; shape ``(..., groups)``, as of all fields.
        selection: Share of positive decisions.
        tpr: Share decided positive, of those with a positive outcome.
        fpr: Share decided positive, of those with a negative outcome.
        fnr: Share decided negative, of those with a positive outcome.
        tnr: Share decided negative, of those with a negative outcome.
        ppv: Share of positive outcomes, of those decided positive: precision.
        npv: Share of negative outcomes, of those decided negative.
        accuracy: Share decided as it came out.
    """

    base_rate: Float[Tensor, "... groups"]
    selection: Float[Tensor, "... groups"]
    tpr: Float[Tensor, "... groups"]
    fpr: Float[Tensor, "... groups"]
    fnr: Float[Tensor, "... groups"]
    tnr: Float[Tensor, "... groups"]
    ppv: Float[Tensor, "... groups"]
    npv: Float[Tensor, "... groups"]
    accuracy: Float[Tensor, "... groups"]


def rates(counts: Cells) -> Rates:
    r"""Compute each group's rates from its counts.

    A rate without a denominator is NaN, which says *not estimable*. scikit-learn, and fairlearn
    with it, return 0 there.

    Args:
        counts: As :func:`cells` gives them, or many resamples of them, of shape (..., groups).

    Returns:
        Nine rates, float64, each from 0 to 1.

    Raises:
        ValueError: If the four counts differ in shape.

    Book: :doc:`/book/trust/fairness`

    Example:
        >>> counts = Cells(*torch.tensor([[505], [349], [461], [1139]]))
        >>> [round(float(rate), 3) for rate in (rates(counts).fpr, rates(counts).ppv)]
        [0.235, 0.591]
    """
    for name, count in zip(counts._fields[1:], counts[1:], strict=True):
        check_same_shape("tp", counts.tp, name, count)
    tp, fp, fn, tn = (count.double() for count in counts)
    positive, negative, selected, rejected = tp + fn, fp + tn, tp + fp, fn + tn
    everyone = positive + negative
    return Rates(
        base_rate=positive / everyone,
        selection=selected / everyone,
        tpr=tp / positive,
        fpr=fp / negative,
        fnr=fn / positive,
        tnr=tn / negative,
        ppv=tp / selected,
        npv=tn / rejected,
        accuracy=(tp + tn) / everyone,
    )
