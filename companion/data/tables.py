"""A small table: named columns of equal length, numbers as tensors and categories as strings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Table"]


@dataclass(frozen=True, eq=False)
class Table:
    """Named columns of equal length.

    Attributes:
        numbers: Numeric columns, float64; a missing number is NaN.
        categories: Columns of strings; a missing value is the empty string or what the data use.

    Raises:
        ValueError: The columns differ in length, or a name stands in both mappings.

    Example:
        >>> import torch
        >>> t = Table({"age": torch.tensor([31.0, 47.0])}, {"sex": ["F", "M"]})
        >>> t.where(t.equals("sex", "M")).number("age")
        tensor([47.])
    """

    numbers: Mapping[str, Float[Tensor, " rows"]]
    categories: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.numbers.items()}
        for name, values in self.categories.items():
            if name in lengths:
                raise ValueError(f"column {name!r} is both a number and a category")
            lengths[name] = len(values)
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns differ in length: {lengths}")

    def __len__(self) -> int:
        for column in self.numbers.values():
            return len(column)
        for values in self.categories.values():
            return len(values)
        return 0

    def __repr__(self) -> str:
        return f"Table({len(self)} rows; {', '.join(self.names)})"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns, numbers first."""
        return (*self.numbers, *self.categories)

    def number(self, name: str) -> Float[Tensor, " rows"]:
        """A numeric column.

        Raises:
            KeyError: There is no numeric column of that name; the message lists them.
        """
        if name not in self.numbers:
            raise KeyError(f"no numeric column {name!r}; there are {', '.join(self.numbers)}")
        return self.numbers[name]

    def category(self, name: str) -> Sequence[str]:
        """A column of strings.

        Raises:
            KeyError: There is no such column of strings; the message lists them.
        """
        if name not in self.categories:
            raise KeyError(f"no category {name!r}; there are {', '.join(self.categories)}")
        return self.categories[name]

    def equals(self, name: str, value: str) -> Bool[Tensor, " rows"]:
        """Where a column of strings has a value.

        Raises:
            KeyError: There is no such column of strings.
            ValueError: The column never has that value; the message lists its values.
        """
        column = self.category(name)
        mask = torch.tensor([entry == value for entry in column], dtype=torch.bool)
        if not mask.any():
            raise ValueError(f"{name!r} is never {value!r}; it is {', '.join(sorted(set(column)))}")
        return mask

    def where(self, mask: Bool[Tensor, " rows"]) -> "Table":
        """The rows where ``mask`` is true, as a new table.

        Raises:
            ValueError: The mask's length is not the table's.
        """
        if mask.shape != (len(self),):
            raise ValueError(f"mask of shape {tuple(mask.shape)} for {len(self)} rows")
        keep = mask.tolist()
        return Table(
            {name: column[mask] for name, column in self.numbers.items()},
            {
                name: [entry for entry, kept in zip(values, keep, strict=True) if kept]
                for name, values in self.categories.items()
            },
        )
