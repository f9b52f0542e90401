"""The byte strings of a tokenizer's tokens, and the tree of their beginnings."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.core import check_count, check_several
from companion.foundations.language_models import BPE
from companion.foundations.language_models._bpe_files import _TO_BYTE

__all__ = ["Vocabulary"]


class Vocabulary:
    """What each token writes, prepared for automata.

    Args:
        tokens: The bytes of each token. An empty one stands for a token that writes nothing, such
            as a mark of a conversation: no constraint ever allows it.

    Attributes:
        tokens: As given.

    Raises:
        ValueError: If there are none.

    Book: :doc:`/book/generation/control`

    Example:
        >>> Vocabulary([b"a", b"ab", b""]).longest
        2
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        check_several("tokens", tokens)
        check_count("tokens", len(tokens))
        self.tokens = tuple(tokens)
        self.longest = max(map(len, tokens))
        self._levels = _levels(self.tokens)
        self._moved: dict[torch.device, list[_Level]] = {}

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> "Vocabulary":
        """Take the tokens of a byte-level tokenizer.

        Args:
            tokenizer: A :class:`~companion.foundations.language_models.BPE`, or one of the
                ``tokenizers`` library, such as that of SmolLM2. Its added tokens write nothing.

        Returns:
            The vocabulary.

        Raises:
            ValueError: If its tokens are not written in bytes.
        """
        if isinstance(tokenizer, BPE):
            special = set(tokenizer.special_tokens.values())
            return cls([b"" if i in special else t for i, t in enumerate(tokenizer.tokens)])
        document = json.loads(tokenizer.to_str())
        if "ByteLevel" not in json.dumps(document.get("decoder")):
            raise ValueError("the tokenizer is not byte-level: give the bytes of its tokens")
        added = {token["id"] for token in document["added_tokens"]}
        found = {number: name for name, number in tokenizer.get_vocab().items()}
        tokens = []
        for number in range(max(found) + 1):
            name = found.get(number, "")
            plain = number not in added and all(c in _TO_BYTE for c in name)
            tokens.append(bytes(_TO_BYTE[c] for c in name) if plain else b"")
        return cls(tokens)

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.tokens)

    def decode(self, ids: Sequence[int] | Tensor) -> bytes:
        """Join the bytes of tokens.

        Args:
            ids: Their numbers.

        Returns:
            The bytes.
        """
        listed = ids.tolist() if isinstance(ids, Tensor) else ids
        return b"".join(self.tokens[i] for i in listed)

    def walk(
        self,
        starts: Tensor,
        step: Callable[[Tensor, Tensor], Tensor],
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Follow all tokens from several states at once, byte after byte through their tree.

        What leads nowhere is dropped with all that begins with it: the cost is that of the
        beginnings that survive, not of states times tokens.

        Args:
            starts: The states, (n,).
            step: Gives the states after one byte, ``-1`` for nowhere: of states and bytes, (m,).

        Yields:
            Of the tokens that end at each depth: the place of their start, their number, and where
            they lead.
        """
        device = starts.device
        if device not in self._moved:
            self._moved[device] = [level.to(device) for level in self._levels]
        origin = torch.arange(len(starts), device=device)
        node = torch.zeros_like(origin)
        state = starts
        for level in self._moved[device]:
            count = level.count[node]
            source = torch.arange(len(node), device=device).repeat_interleave(count)
            first = count.cumsum(0) - count
            place = torch.arange(len(source), device=device) - first[source]
            node = level.first[node[source]] + place
            state = step(state[source], level.byte[node])
            alive = state >= 0
            node, state, origin = node[alive], state[alive], origin[source[alive]]
            if not len(node):
                return
            ends = level.ends[node]
            source = torch.arange(len(node), device=device).repeat_interleave(ends)
            if len(source):
                first = ends.cumsum(0) - ends
                place = torch.arange(len(source), device=device) - first[source]
                yield origin[source], level.token[level.at[node[source]] + place], state[source]


class _Level:
    """The nodes of one depth of the tree.

    Of each node of the depth before: its first child and how many there are. Of each child: its
    byte, and which tokens end there.
    """

    def __init__(self, *tables: Tensor) -> None:
        self.tables = tables
        self.first, self.count, self.byte, self.at, self.ends, self.token = tables

    def to(self, device: torch.device) -> "_Level":
        return _Level(*(table.to(device) for table in self.tables))


def _levels(tokens: Sequence[bytes]) -> list[_Level]:
    order = sorted((t, i) for i, t in enumerate(tokens) if t)
    levels, parents = [], [(0, len(order))]  # nodes as ranges of the sorted tokens
    depth = 0
    while parents:
        first: list[int] = []
        count: list[int] = []
        byte: list[int] = []
        at: list[int] = []
        ends: list[int] = []
        token: list[int] = []
        nodes: list[tuple[int, int]] = []
        for low, high in parents:
            first.append(len(byte))
            while low < high and len(order[low][0]) <= depth:
                low += 1
            while low < high:
                b = order[low][0][depth]
                past = low + 1
                while past < high and order[past][0][depth] == b:
                    past += 1
                nodes.append((low, past))
                byte.append(b)
                at.append(len(token))
                k = low
                while k < past and len(order[k][0]) == depth + 1:
                    token.append(order[k][1])
                    k += 1
                ends.append(k - low)
                low = past
            count.append(len(byte) - first[-1])
        if byte:
            tables = (first, count, byte, at, ends, token)
            levels.append(_Level(*(torch.tensor(t, dtype=torch.long) for t in tables)))
        parents = nodes
        depth += 1
    return levels
