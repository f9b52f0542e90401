"""Grammars that call themselves: JSON of any depth, by a pushdown automaton with cached masks."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from companion.core import check_ids
from companion.generation.control._automaton import DEAD, determinize, minimal
from companion.generation.control._schema import schema_rules
from companion.generation.control._syntax import Node
from companion.generation.control._vocabulary import Vocabulary

__all__ = ["Pushdown"]

FAR = 1 << 30
#: A configuration: the state that each open rule goes on from, the running one last.
Frames = tuple[int, ...]


class Pushdown:
    r"""A deterministic pushdown automaton over bytes, read in tokens.

    Each rule is an automaton whose moves are bytes or calls of rules. A call puts the state to
    return to on a stack. One byte decides: it goes on in the running rule, or begins a called
    one, or, where the rule may end, belongs to what called it.

    Masks are cached by the upper end of the stack that a token can look at, so JSON of any depth
    needs finitely many.

    Args:
        rules: Trees by their names; the text is what ``#`` matches.
        vocabulary: The tokens.
        stop: The tokens that end a text.

    Attributes:
        vocab: How many tokens there are.
        stop: As given.
        masks: How many masks are cached so far.

    Raises:
        ValueError: If one byte does not decide what a text goes on with, a rule matches the empty
            text or nothing finite, or no text of these tokens is accepted.

    Numerics:
        A new mask costs one walk through the tree of tokens, a cached one a look-up. States are
        numbers of stacks that live in Python: each step waits for the device.

    References:
        Dong et al. 2024, arXiv:2411.15100, whose masks are cached for a node and checked against
        the stack at run time.

    Book: :doc:`/book/generation/control`

    Example:
        >>> words = Vocabulary([b"", b"[", b"]", b"[]", b"[[", b"]]", b"}"])
        >>> nested = {"type": "array", "items": {"$ref": "#"}}
        >>> pushdown = Pushdown.from_schema(nested, words, stop=[0])
        >>> state = pushdown.begin(1, torch.device("cpu"))
        >>> state = pushdown.advance(state, torch.tensor([4]))
        >>> pushdown.allowed(state)[0].nonzero()[:, 0]
        tensor([1, 2, 3, 4, 5])
    """

    def __init__(
        self, rules: Mapping[str, Node], vocabulary: Vocabulary, *, stop: Sequence[int]
    ) -> None:
        check_ids("stop", torch.tensor(list(stop), dtype=torch.long), len(vocabulary))
        if "#" not in rules:
            raise ValueError(f"the text is what the rule '#' matches: got {', '.join(rules)}")
        self.vocabulary, self.vocab, self.stop = vocabulary, len(vocabulary), tuple(stop)
        names = {name: k for k, name in enumerate(rules)}
        self._bytes: list[list[int]] = []  # moves of each state
        self._calls: list[dict[int, int]] = []  # rule: state to return to
        self._accepting: list[bool] = []
        self._starts: list[int] = []
        for node in rules.values():
            self._add(*minimal(*determinize(node, names)), len(names))
        self._first = self._firsts(list(rules))
        self._check_ends(list(rules))
        self._cost = self._costs(
            {t[0] for i, t in enumerate(vocabulary.tokens) if len(t) == 1 and i not in self.stop}
        )
        root = self._starts[names["#"]]
        if self._cost[root] >= FAR:
            raise ValueError("no text of these tokens satisfies the constraint")
        self._frames: list[Frames] = []
        self._numbers: dict[Frames, int] = {}
        self._rows = torch.full((64, 256), -2, dtype=torch.long)
        self._ready: set[int] = set()
        self._begin = self._number((root,))
        self._cache: dict[tuple[Frames, bool], Tensor] = {}
        self._sizes: list[int] = []
        most = max(cost for cost in self._cost if cost < FAR)
        self._slack = (most + 1) * vocabulary.longest

    @classmethod
    def from_schema(
        cls,
        schema: object,
        vocabulary: Vocabulary,
        *,
        stop: Sequence[int],
        whitespace: int | None = None,
    ) -> "Pushdown":
        """Compile a JSON schema, which may contain itself. ``True`` is any JSON value.

        Args:
            schema: As for :func:`schema_regex`.
            vocabulary: The tokens.
            stop: The tokens that end a text.
            whitespace: As for :func:`schema_regex`.

        Returns:
            The automaton.

        Raises:
            ValueError: If a keyword is not supported, or as the class.
        """
        return cls(schema_rules(schema, whitespace=whitespace), vocabulary, stop=stop)

    @property
    def masks(self) -> int:
        """Count the cached masks."""
        return len(self._cache)

    def begin(self, batch: int, device: torch.device) -> Integer[Tensor, " batch"]:
        """Return the state before the first token, for each of several texts.

        Args:
            batch: How many texts.
            device: Where the numbers of their states live.

        Returns:
            The numbers of their stacks.
        """
        return torch.full((batch,), self._begin, dtype=torch.long, device=device)

    def advance(
        self, states: Integer[Tensor, " batch"], ids: Integer[Tensor, " batch"]
    ) -> Integer[Tensor, " batch"]:
        """Follow one token of each text.

        Args:
            states: Before it.
            ids: The tokens.

        Returns:
            The states after it; ``-1`` if it was not allowed. An ended text stays as it is.
        """
        after = []
        for state, token in zip(states.tolist(), ids.tolist(), strict=True):
            if state < 0 or (token in self.stop and self._may_end(self._frames[state])):
                after.append(state)
                continue
            frames: Frames | None = self._frames[state]
            text = b"" if token in self.stop else self.vocabulary.tokens[token]
            for byte in text:
                frames = None if frames is None else self._move(frames, byte)
            allowed = bool(text) and frames is not None and self._price(frames) < FAR
            after.append(self._number(frames) if allowed and frames is not None else -1)
        return torch.tensor(after, dtype=torch.long, device=states.device)

    def allowed(
        self, states: Integer[Tensor, " batch"], *, left: int | None = None
    ) -> Bool[Tensor, "batch vocab"]:
        """Tell which tokens may come next.

        Args:
            states: The states of the texts.
            left: How many more tokens may be written, the next one included. What cannot be
                completed by so many tokens of one byte each is not allowed. By default there is
                no limit.

        Returns:
            ``True`` for what is allowed.
        """
        rows = []
        for state in states.tolist():
            if state < 0:
                rows.append(torch.zeros(self.vocab, dtype=torch.bool))
                continue
            near = left is not None and left - 1 < self._price(self._frames[state]) + self._slack
            rows.append(self._walk(state, left)[0] if near else self._cached(state))
        return torch.stack(rows).to(states.device)

    def _add(
        self, cuts: list[int], moves: list[list[int]], accepting: list[bool], rules: int
    ) -> None:
        """Append the states of a rule to those of all rules."""
        offset = len(self._bytes)
        self._starts.append(offset)
        for row in moves:
            full: list[int] = []
            for k, to in enumerate(row):
                full += [to if to == DEAD else to + offset] * (cuts[k + 1] - cuts[k])
            self._bytes.append(full[:256])
            self._calls.append({r: full[256 + r] for r in range(rules) if full[256 + r] != DEAD})
        self._accepting += accepting

    def _firsts(self, names: list[str]) -> list[set[int]]:
        """The bytes with which each rule may begin; one of them must decide which rule it is."""
        first: list[set[int]] = [set() for _ in names]
        for name, start in zip(names, self._starts, strict=True):
            if self._accepting[start]:
                raise ValueError(f"the rule {name!r} matches the empty text: write it where it is")
        size = -1
        while size != sum(map(len, first)):
            size = sum(map(len, first))
            for begun, start in zip(first, self._starts, strict=True):
                begun.update(b for b in range(256) if self._bytes[start][b] != DEAD)
                for rule in self._calls[start]:
                    begun |= first[rule]
        self._route: list[list[int]] = []  # for each state and byte the rule to call, -1 for none
        for moves, calls in zip(self._bytes, self._calls, strict=True):
            route = [-1] * 256
            for rule in calls:
                for b in first[rule]:
                    if route[b] >= 0 or moves[b] != DEAD:
                        raise ValueError(
                            f"one byte does not decide whether {names[rule]!r} begins: the grammar "
                            f"is ambiguous at {bytes([b])!r}"
                        )
                    route[b] = rule
            self._route.append(route)
        return first

    def _check_ends(self, names: list[str]) -> None:
        """Where a rule may end, one byte must decide whether it does."""
        owner = [0] * len(self._bytes)
        for rule, start in enumerate(self._starts):
            for state in range(start, len(owner)):
                owner[state] = rule
        follow: list[set[int]] = [set() for _ in names]
        size = -1
        while size != sum(map(len, follow)):
            size = sum(map(len, follow))
            for state, calls in enumerate(self._calls):
                for rule, back in calls.items():
                    follow[rule] |= self._next_bytes(back)
                    if self._accepting[back]:
                        follow[rule] |= follow[owner[state]]
        for state, ends in enumerate(self._accepting):
            both = self._next_bytes(state) & follow[owner[state]] if ends else set()
            if both:
                raise ValueError(
                    f"one byte does not decide whether {names[owner[state]]!r} ends: the grammar "
                    f"is ambiguous at {bytes([min(both)])!r}"
                )

    def _next_bytes(self, state: int) -> set[int]:
        found = {b for b in range(256) if self._bytes[state][b] != DEAD}
        return found.union(*(self._first[rule] for rule in self._calls[state]))

    def _costs(self, there: set[int]) -> list[int]:
        """Fewest bytes, each a token, from each state to an end of its rule."""
        cost = [0 if ends else FAR for ends in self._accepting]
        changed = True
        while changed:
            changed = False
            for state, moves in enumerate(self._bytes):
                found = [cost[to] + 1 for b in there if (to := moves[b]) != DEAD]
                calls = self._calls[state].items()
                found += [cost[to] + cost[self._starts[rule]] for rule, to in calls]
                best = min([cost[state], *found])
                if best < cost[state]:
                    cost[state], changed = best, True
        return [min(c, FAR) for c in cost]

    def _price(self, frames: Frames) -> int:
        return min(sum(self._cost[frame] for frame in frames), FAR)

    def _move(self, frames: Frames, byte: int) -> Frames | None:
        """What one byte makes of a stack."""
        while frames:
            top = frames[-1]
            to = self._bytes[top][byte]
            if to != DEAD:
                return (*frames[:-1], to)
            rule = self._route[top][byte]
            if rule >= 0:
                frames = (*frames[:-1], self._calls[top][rule], self._starts[rule])
            elif self._accepting[top]:
                frames = frames[:-1]
            else:
                return None
        return None

    def _may_end(self, frames: Frames) -> bool:
        return all(self._accepting[frame] for frame in frames)

    def _depth(self, frames: Frames) -> int:
        """How many frames are left where the next byte surely stops to look: 0 for all read."""
        n = len(frames)
        while n and self._accepting[frames[n - 1]]:
            n -= 1
        return n

    def _number(self, frames: Frames) -> int:
        if frames not in self._numbers:
            self._numbers[frames] = len(self._frames)
            self._frames.append(frames)
        return self._numbers[frames]

    def _cached(self, state: int) -> Tensor:
        """The mask of a stack, by as much of it as a token can look at."""
        frames = self._frames[state]
        for size in self._sizes:
            if size <= len(frames):
                found = self._cache.get((frames[-size:], False))
                if found is not None:
                    return found
        found = self._cache.get((frames, True))
        if found is not None:
            return found
        mask, lowest = self._walk(state, None)
        if lowest:
            key = (frames[lowest - 1 :], False)
            if len(key[0]) not in self._sizes:
                self._sizes.append(len(key[0]))
        else:
            key = (frames, True)
        self._cache[key] = mask
        return mask

    def _walk(self, state: int, left: int | None) -> tuple[Tensor, int]:
        """The mask of a stack, and the lowest frame that was looked at: 0 for below the last."""
        visited: set[int] = {state}

        def step(states: Tensor, bytes_: Tensor) -> Tensor:
            for s in set(states.tolist()):
                visited.add(s)
                if s not in self._ready:
                    self._prepare(s)
            return self._rows[states, bytes_]

        mask = torch.zeros(self.vocab, dtype=torch.bool)
        for _, token, target in self.vocabulary.walk(torch.tensor([state]), step):
            known, place = torch.unique(target, return_inverse=True)
            price = torch.tensor([self._price(self._frames[s]) for s in known.tolist()])
            limit = FAR - 1 if left is None else left - 1
            mask[token[(price <= limit)[place]]] = True
        for stop in self.stop:
            mask[stop] = self._may_end(self._frames[state])
        return mask, min(self._depth(self._frames[s]) for s in visited)

    def _prepare(self, state: int) -> None:
        """Fill in what each byte makes of a stack."""
        frames, row = self._frames[state], []
        for byte in range(256):
            after = self._move(frames, byte)
            row.append(-1 if after is None else self._number(after))
        if state >= len(self._rows):
            size = max(2 * len(self._rows), state + 1)
            more = torch.full((size - len(self._rows), 256), -2, dtype=torch.long)
            self._rows = torch.cat([self._rows, more])
        self._rows[state] = torch.tensor(row)
        self._ready.add(state)
