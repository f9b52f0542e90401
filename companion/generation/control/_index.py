"""An automaton over bytes, read in tokens: which ones may come next, and where they lead."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from companion.core import check_ids, check_shape
from companion.generation.control._automaton import Automaton
from companion.generation.control._schema import schema_regex
from companion.generation.control._vocabulary import Vocabulary

__all__ = ["Grammar", "TokenIndex"]

FAR = 1 << 30
#: Entries of the table of moves at most, two or four bytes each.
LARGEST = 1 << 29


@runtime_checkable
class Grammar(Protocol):
    """What :class:`Constraint` needs: states, the tokens that each allows, and what follows.

    Attributes:
        vocab: How many tokens there are.
    """

    vocab: int

    def begin(self, batch: int, device: torch.device) -> Tensor:
        """Return the states before the first token, (batch,)."""
        ...

    def advance(self, states: Tensor, ids: Tensor) -> Tensor:
        """Return the states after one token each; ``-1`` where a token was not allowed."""
        ...

    def allowed(self, states: Tensor, *, left: int | None = None) -> Tensor:
        """Tell which tokens may come next, (batch, vocab), with so many tokens left."""
        ...


class TokenIndex:
    r"""A finite automaton over tokens, with the mask of each state computed in advance.

    .. math::
        \delta(s, x) = \delta(\dots\delta(\delta(s, b_1), b_2)\dots, b_m)
        \quad\text{for a token } x = b_1 \dots b_m

    A token is allowed in a state if it leads to a state from which a text of tokens can still be
    accepted. The tokens that end a text are allowed in accepting states: a text may go on there,
    and ends by its own probability.

    Args:
        automaton: Of bytes.
        vocabulary: The tokens.
        stop: The tokens that end a text, none or several. Without one, a text may do anything
            after its first accepting state (a constraint of a prefix).

    Attributes:
        next: ``"states vocab"``: :math:`\delta`, ``-1`` where a token is not allowed. Small
            integers: two bytes each where they suffice. The last state is that of ended texts.
        masks: ``"states vocab"``: whether a token is allowed.
        accepting: ``"states"``: where a text may end.
        distance: ``"states"``: the fewest tokens to an accepting state.
        vocab: How many tokens there are.
        stop: As given.

    Raises:
        ValueError: If no text of these tokens is accepted, a token that ends a text is out of
            range, or the table would have more than 5e8 entries.

    Numerics:
        The tables take three bytes a state and a token: 147 kB a state of SmolLM2's vocabulary.
        A mask is a row of its table, and no copy: do not change it.

    References:
        Willard and Louf 2023, arXiv:2307.09702, here by one walk through the tree of
        tokens for all states.

    Book: :doc:`/book/generation/control`

    Example:
        >>> words = Vocabulary([b"", b"y", b"es", b"yes", b"no", b"n"])
        >>> index = TokenIndex(Automaton.from_regex("yes|no"), words, stop=[0])
        >>> index.mask(0).nonzero()[:, 0]  # "n" cannot be completed by these tokens
        tensor([1, 3, 4])
    """

    def __init__(
        self, automaton: Automaton, vocabulary: Vocabulary, *, stop: Sequence[int] = ()
    ) -> None:
        check_ids("stop", torch.tensor(list(stop), dtype=torch.long), len(vocabulary))
        count, vocab = len(automaton.accepting), len(vocabulary)
        if (count + 1) * vocab > LARGEST:
            raise ValueError(
                f"{count} states of {vocab} tokens need too large a table: shorten repetitions"
            )
        moves = torch.tensor(automaton.moves, dtype=torch.int32).flatten()
        dtype = torch.int16 if count < 2**15 - 1 else torch.int32
        table = torch.full(((count + 1) * vocab,), -1, dtype=dtype)
        linked = torch.zeros((count + 1) ** 2, dtype=torch.bool)

        def step(states: Tensor, bytes_: Tensor) -> Tensor:
            return moves[states * 256 + bytes_].long()

        ending = torch.tensor(list(stop), dtype=torch.long)
        for origin, token, target in vocabulary.walk(torch.arange(count), step):
            # A token that ends a text does not write its bytes, if it has any.
            writes = ~torch.isin(token, ending)
            origin, token, target = origin[writes], token[writes], target[writes]
            table[origin * vocab + token] = target.to(dtype)
            linked[origin * (count + 1) + target] = True
        self.next = table.view(count + 1, vocab)
        self.accepting = torch.tensor([*automaton.accepting, True])
        self.vocab, self.stop = vocab, tuple(stop)
        ends = self.accepting.nonzero()[:, 0]
        if stop:
            self.next[:, list(stop)] = -1
            self.next[ends[:, None], list(stop)] = count
        else:  # after the first accepting state anything goes
            self.next[ends] = ends[:, None].to(dtype)
        self.distance = _distances(linked.view(count + 1, count + 1), self.accepting)
        if int(self.distance[0]) >= FAR:
            raise ValueError(
                "no text of these tokens satisfies the constraint: its bytes have no tokens"
            )
        hopeless = (self.distance >= FAR).nonzero()[:, 0]
        if len(hopeless):
            self.next[torch.isin(self.next, hopeless.to(dtype))] = -1
        self.masks = self.next >= 0

    @classmethod
    def from_regex(
        cls, expression: str, vocabulary: Vocabulary, *, stop: Sequence[int]
    ) -> "TokenIndex":
        """Compile a regular expression: see :meth:`Automaton.from_regex`.

        Args:
            expression: It has to match all of a text.
            vocabulary: The tokens.
            stop: The tokens that end a text.

        Returns:
            The index.

        Raises:
            ValueError: As the automaton and the index.
        """
        return cls(Automaton.from_regex(expression), vocabulary, stop=stop)

    @classmethod
    def from_schema(
        cls,
        schema: object,
        vocabulary: Vocabulary,
        *,
        stop: Sequence[int],
        whitespace: int | None = None,
    ) -> "TokenIndex":
        """Compile a JSON schema: see :func:`schema_regex`.

        Args:
            schema: The schema, as ``json.loads`` gives it.
            vocabulary: The tokens.
            stop: The tokens that end a text.
            whitespace: As in :func:`schema_regex`.

        Returns:
            The index.

        Raises:
            ValueError: If a keyword is not supported, the schema has no instance, or it is
                recursive: then a :class:`Pushdown` will do.
        """
        expression = schema_regex(schema, whitespace=whitespace)
        return cls(Automaton.from_regex(expression), vocabulary, stop=stop)

    def to(self, device: torch.device | str) -> "TokenIndex":
        """Copy the tables to a device.

        Args:
            device: Where masks are needed.

        Returns:
            The same index there.
        """
        moved = object.__new__(TokenIndex)
        for name, value in vars(self).items():
            setattr(moved, name, value.to(device) if isinstance(value, Tensor) else value)
        return moved

    def mask(self, state: int) -> Bool[Tensor, " vocab"]:
        """Look up which tokens may come next.

        Args:
            state: One state.

        Returns:
            ``True`` for what is allowed.
        """
        return self.masks[state]

    def begin(self, batch: int, device: torch.device) -> Integer[Tensor, " batch"]:
        """Return the state before the first token, for each of several texts.

        Args:
            batch: How many texts.
            device: Where their states live: where the tables are.

        Returns:
            Zeros.
        """
        return torch.zeros(batch, dtype=torch.long, device=device)

    def advance(
        self, states: Integer[Tensor, " batch"], ids: Integer[Tensor, " batch"]
    ) -> Integer[Tensor, " batch"]:
        """Follow one token of each text.

        Args:
            states: Before it.
            ids: The tokens.

        Returns:
            The states after it; ``-1`` if it was not allowed, and for good.
        """
        check_shape("ids", ids, (len(states),))
        after = self.next[states.clamp(min=0), ids.long()].long()
        return torch.where(states < 0, states, after)

    def allowed(
        self, states: Integer[Tensor, " batch"], *, left: int | None = None
    ) -> Bool[Tensor, "batch vocab"]:
        """Look up which tokens may come next.

        Args:
            states: The states of the texts. After a token that was not allowed, nothing is.
            left: How many more tokens may be written, the next one included. What cannot be
                completed within them is not allowed. By default there is no limit.

        Returns:
            ``True`` for what is allowed.
        """
        here = states.clamp(min=0)
        fits = self.masks[here]
        if left is not None:
            fits = fits & (self.distance[self.next[here].clamp(min=0).long()] <= left - 1)
        return fits & (states >= 0)[:, None]


def _distances(linked: Tensor, accepting: Tensor) -> Tensor:
    """Fewest tokens from each state to an accepting one."""
    distance = torch.full((len(accepting),), FAR, dtype=torch.int32)
    fresh, known, steps = accepting, accepting.clone(), 0
    while bool(fresh.any()):
        distance[fresh] = steps
        fresh = linked[:, fresh].any(1) & ~known
        known |= fresh
        steps += 1
    return distance
