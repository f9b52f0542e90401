"""What training returns: frozen tables of vectors with their words, saved as safetensors."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from companion.core import check_several
from companion.core._storage import write_tensors

__all__ = ["Embeddings"]

Table = TypeVar("Table", bound="Embeddings")


@dataclass(frozen=True, eq=False, kw_only=True)
class Embeddings:
    """Word vectors, and the context vectors that were trained with them.

    Args:
        words: The words; position is row.
        vectors: The word vectors :math:`v_w` of the book.
        contexts: The context vectors :math:`u_c`, where the method has them.
        losses: Mean loss over the course of training, in nats for each positive pair (for each
            cell of the matrix with GloVe).
    """

    words: tuple[str, ...]
    vectors: Float[Tensor, "vocab dim"]
    contexts: Float[Tensor, "vocab dim"] | None = None
    losses: Float[Tensor, " report"] | None = None

    def __post_init__(self) -> None:
        if len(self.words) != len(self.vectors):
            raise ValueError(
                f"words and vectors must be as many, got {len(self.words)} and {len(self.vectors)}"
            )

    @cached_property
    def index(self) -> dict[str, int]:
        """From word to row."""
        return {word: row for row, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self.index

    def vector(self, word: str) -> Float[Tensor, " dim"]:
        """Return the vector of a word.

        Args:
            word: A word of the vocabulary.

        Returns:
            The vector.

        Raises:
            ValueError: If the word has none.
        """
        if word not in self.index:
            raise ValueError(
                f"{word!r} is not among the {len(self)} words of this vocabulary: use fastText for "
                "words that training did not see"
            )
        return self.vectors[self.index[word]]

    def restrict(self, words: Iterable[str]) -> "Embeddings":
        """Keep the rows of some words, in the given order; words without a row are left out.

        Args:
            words: The words to keep.

        Returns:
            Smaller tables.

        Raises:
            ValueError: If ``words`` is one text.
        """
        check_several("words", words)
        kept = tuple(word for word in words if word in self.index)
        rows = torch.tensor([self.index[word] for word in kept], device=self.vectors.device)
        return Embeddings(
            words=kept,
            vectors=self.vectors[rows],
            contexts=None if self.contexts is None else self.contexts[rows],
            losses=self.losses,
        )

    def to(self: Table, device: str | torch.device) -> Table:
        """Copy the tables to a device.

        Args:
            device: Where to.

        Returns:
            The same vectors there.
        """
        moved = {name: value.to(device) for name, value in self._tensors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def save(self, path: str | Path) -> None:
        """Write everything to a safetensors file, which holds no code.

        Args:
            path: The file to write.
        """
        tensors = self._tensors()
        plain = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in tensors
        }
        write_tensors(
            Path(path),
            {name: value.contiguous() for name, value in tensors.items()},
            metadata={"embeddings": json.dumps(plain, ensure_ascii=False)},
        )

    @classmethod
    def load(cls: type[Table], path: str | Path) -> Table:
        """Read what :meth:`save` of the same class wrote.

        Args:
            path: The file to read.

        Returns:
            The tables, on the CPU.

        Raises:
            ValueError: If the file was not written by :meth:`save`.
        """
        with safe_open(str(path), framework="pt") as opened:
            metadata = opened.metadata() or {}
            if "embeddings" not in metadata:
                raise ValueError(f"{path} holds no word vectors written by {cls.__name__}.save")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        plain = json.loads(metadata["embeddings"])
        plain["words"] = tuple(plain["words"])
        return cls(**plain | tensors)
