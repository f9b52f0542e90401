r"""Counting n-grams with sorted arrays: no dictionary, no loop over tokens.

A context of length :math:`j` has an id, its place among the contexts of that length. It is found
from the id of its last :math:`j - 1` symbols and the symbol to their left, so that dropping the
oldest symbol (backing off) is one division. An n-gram is the pair of a context id and a symbol.
Both are kept as sorted 64-bit keys and found by binary search, for all tokens of a text at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from companion.core import check_count, check_ids, check_shape

__all__ = ["NGramCounts", "count_ngrams", "find", "windows"]


def windows(
    texts: Sequence[Int[Tensor, " _"]], *, order: int, vocab_size: int, eos: int
) -> tuple[Int[Tensor, "token context"], Int[Tensor, " token"]]:
    r"""Put each symbol of each text beside the symbols before it.

    Each text is closed by EOS, which is predicted as any other symbol. In front it is padded with
    BOS, which has the id ``vocab_size``, so that the first symbol has a context too. No context
    reaches into another text.

    Args:
        texts: Ids of each text, without EOS.
        order: n, the length of context and symbol together, 1 or more.
        vocab_size: Number of outcomes, EOS included.
        eos: The id of EOS.

    Returns:
        Contexts of length ``order - 1``, the oldest symbol first, and the symbols.

    Raises:
        ValueError: If an id is out of range, the order is below 1, or there is no text.

    Book: :doc:`/book/foundations/language_models`

    Example:
        >>> contexts, symbols = windows([torch.tensor([4, 5])], order=3, vocab_size=7, eos=0)
        >>> contexts.tolist(), symbols.tolist()
        ([[7, 7], [7, 4], [4, 5]], [4, 5, 0])
    """
    check_count("order", order, low=1)
    check_count("eos", eos, low=0, high=vocab_size - 1)
    if not texts:
        raise ValueError("texts must hold at least one text, got none")
    pad = texts[0].new_full((order - 1,), vocab_size)
    end = texts[0].new_full((1,), eos)
    flat = torch.cat([part for text in texts for part in (pad, text, end)]).long()
    check_ids("texts", flat, vocab_size, ignore=vocab_size)
    grams = flat.unfold(0, order, 1)
    grams = grams[grams[:, -1] != vocab_size]
    return grams[:, :-1].contiguous(), grams[:, -1].contiguous()


def find(keys: Int[Tensor, " keys"], wanted: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Return the place of each wanted key among sorted keys, -1 where it is not there."""
    at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return torch.where(keys[at] == wanted, at, -1)


@dataclass(frozen=True, eq=False)
class NGramCounts:
    r"""How often each n-gram occurs, for every order up to n.

    Attributes:
        vocab_size: Number of outcomes.
        context_keys: For each context length 0, ..., n - 1 the sorted keys of the contexts seen.
        gram_keys: For each order 1, ..., n the sorted keys of the n-grams seen.
        gram_counts: For each of them :math:`N(c, w)`, at least 1.
    """

    vocab_size: int
    context_keys: tuple[Int[Tensor, " _"], ...]
    gram_keys: tuple[Int[Tensor, " _"], ...]
    gram_counts: tuple[Int[Tensor, " _"], ...]

    @property
    def order(self) -> int:
        """The largest n."""
        return len(self.gram_keys)

    def __repr__(self) -> str:
        sizes = ", ".join(str(len(keys)) for keys in self.gram_keys)
        return f"NGramCounts(order {self.order}: {sizes} different n-grams)"

    def truncated(self, order: int) -> "NGramCounts":
        """Return the counts up to a lower order, without copying.

        Args:
            order: The new n, from 1 to the present one.

        Returns:
            The counts.

        Raises:
            ValueError: If the order is out of range.
        """
        check_count("order", order, low=1, high=self.order)
        return NGramCounts(
            self.vocab_size,
            self.context_keys[:order],
            self.gram_keys[:order],
            self.gram_counts[:order],
        )

    def to(self, device: str | torch.device) -> "NGramCounts":
        """Return the counts on another device.

        Args:
            device: Where to.

        Returns:
            The counts.
        """
        return NGramCounts(
            self.vocab_size,
            tuple(keys.to(device) for keys in self.context_keys),
            tuple(keys.to(device) for keys in self.gram_keys),
            tuple(counts.to(device) for counts in self.gram_counts),
        )

    def context_ids(self, contexts: Int[Tensor, "*batch context"]) -> list[Int[Tensor, "*batch"]]:
        """Find the contexts of every length.

        Args:
            contexts: Symbols before, the oldest first; only the last n - 1 are looked at.

        Returns:
            For each length 0, ..., n - 1 the ids of the contexts, -1 where one was never seen.

        Raises:
            ValueError: If the contexts are shorter than n - 1, or an id is out of range.
        """
        if contexts.shape[-1] < self.order - 1:
            raise ValueError(
                f"contexts must hold {self.order - 1} symbols for order {self.order}, got shape "
                f"{tuple(contexts.shape)}"
            )
        check_ids("contexts", contexts, self.vocab_size + 1)
        ids = [torch.zeros_like(contexts[..., :1]).sum(-1)]
        for length in range(1, self.order):
            key = contexts[..., -length] * len(self.context_keys[length - 1]) + ids[-1]
            found = find(self.context_keys[length], key)
            ids.append(torch.where(ids[-1] >= 0, found, -1))
        return ids

    def gram_context(self, order: int) -> Int[Tensor, " grams"]:
        """Return the id of the context of each n-gram of one order."""
        return self.gram_keys[order - 1] // self.vocab_size

    def context_total(
        self, order: int, values: Int[Tensor, " grams"] | None = None
    ) -> Int[Tensor, " contexts"]:
        r"""Add up a number of each n-gram over the n-grams of each context.

        Args:
            order: The order of the n-grams.
            values: One number for each; by default its count, which gives :math:`N(c)`.

        Returns:
            One sum for each context.
        """
        counts = self.gram_counts[order - 1] if values is None else values
        zeros = counts.new_zeros(len(self.context_keys[order - 1]))
        return zeros.index_add(0, self.gram_context(order), counts)

    def continuation_counts(self, order: int) -> Int[Tensor, " grams"]:
        r"""Return for each n-gram how many different symbols precede it.

        .. math:: N_{1+}(\cdot, c, w) = |\{v : N(v\, c\, w) > 0\}|

        Args:
            order: The order of the n-grams, below n.

        Returns:
            One count for each, 1 or more.

        Raises:
            ValueError: If the order is n or more: what precedes was not counted.
        """
        check_count("order", order, low=1, high=self.order - 1)
        longer = self.gram_keys[order]
        # The key of a context is (oldest symbol, id of the rest): the rest is a remainder.
        rest = self.context_keys[order][longer // self.vocab_size]
        rest = rest % len(self.context_keys[order - 1])
        suffix = find(self.gram_keys[order - 1], rest * self.vocab_size + longer % self.vocab_size)
        return torch.bincount(suffix, minlength=len(self.gram_keys[order - 1]))


def count_ngrams(
    contexts: Int[Tensor, "token context"], symbols: Int[Tensor, " token"], *, vocab_size: int
) -> NGramCounts:
    r"""Count n-grams of every order up to n.

    Args:
        contexts: The symbols before each symbol, from :func:`windows`; n - 1 of them.
        symbols: The symbols.
        vocab_size: Number of outcomes. Contexts may also hold BOS, the id ``vocab_size``.

    Returns:
        The counts.

    Raises:
        ValueError: If shapes do not fit, an id is out of range, or there is no symbol.

    Numerics:
        Sorting: :math:`O(n T \log T)` time for T symbols, and memory for n integers a symbol.

    Book: :doc:`/book/foundations/language_models`

    Example:
        >>> contexts, symbols = windows([torch.tensor([2, 2, 2])], order=2, vocab_size=3, eos=0)
        >>> count_ngrams(contexts, symbols, vocab_size=3).gram_counts[0]
        tensor([1, 3])
    """
    check_shape("symbols", symbols, (contexts.shape[0],))
    if len(symbols) == 0:
        raise ValueError("there must be at least one symbol to count, got none")
    check_ids("symbols", symbols, vocab_size)
    check_ids("contexts", contexts, vocab_size + 1)
    symbols, contexts = symbols.long(), contexts.long()
    here = torch.zeros_like(symbols)
    context_keys, gram_keys, gram_counts = [here[:1]], [], []
    for length in range(contexts.shape[1] + 1):
        if length:
            keys = contexts[:, -length] * len(context_keys[-1]) + here
            unique, here = torch.unique(keys, return_inverse=True)
            context_keys.append(unique)
        keys, counts = torch.unique(here * vocab_size + symbols, return_counts=True)
        gram_keys.append(keys)
        gram_counts.append(counts)
    return NGramCounts(vocab_size, tuple(context_keys), tuple(gram_keys), tuple(gram_counts))
