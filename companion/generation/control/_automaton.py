"""Finite automata over bytes: from a tree of a regular expression to the smallest one."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from companion.generation.control._syntax import (
    Call,
    Choice,
    Node,
    Ranges,
    Repeat,
    Row,
    parse,
)

__all__ = ["Automaton", "compile_node"]

LIMIT = 100_000
DEAD = -1


@dataclass(frozen=True, eq=False)
class Automaton:
    r"""A deterministic finite automaton over bytes.

    Its language :math:`L` is the set of byte strings that lead from state 0 to an accepting state.
    Every state can still reach one: what has no hope has no state.

    Attributes:
        moves: For each state a list of 256 states, ``-1`` where a byte leads nowhere.
        accepting: For each state, whether a text may end there.

    Book: :doc:`/book/generation/control`

    Example:
        >>> year = Automaton.from_regex("20[0-9]{2}")
        >>> year.matches("2026"), year.matches("1999"), len(year.accepting)
        (True, False, 5)
    """

    moves: Sequence[Sequence[int]]
    accepting: Sequence[bool]

    @classmethod
    def from_regex(cls, expression: str) -> "Automaton":
        r"""Compile a regular expression that has to match all of a text.

        Literals, ``.``, sets, ``\d \w \s`` (ASCII), groups, ``|``, ``* + ? {m,n}``, escapes, and
        ``^ $`` at the ends. References and lookaround are not regular; lazy repetitions match the
        same texts as others. All these are refused.

        Args:
            expression: The expression. Characters mean their bytes in UTF-8.

        Returns:
            The smallest automaton.

        Raises:
            ValueError: If the expression is malformed or uses something unsupported, if no text
                matches, or if the automaton would have more than 100,000 states.
        """
        return compile_node(parse(expression))

    @classmethod
    def from_prefix(cls, prefix: bytes) -> "Automaton":
        """Accept all byte strings that begin with a prefix: what token healing asks for.

        Args:
            prefix: The bytes.

        Returns:
            A chain with a state of freedom at its end.
        """
        rows = []
        for place, byte in enumerate(prefix):
            row = [DEAD] * 256
            row[byte] = place + 1
            rows.append(row)
        free = [len(prefix)] * 256
        return cls([*rows, free], [*[False] * len(prefix), True])

    def run(self, text: bytes, state: int = 0) -> int:
        """Follow a byte string.

        Args:
            text: The bytes.
            state: Where to begin.

        Returns:
            The state at its end, ``-1`` if it leads nowhere.
        """
        for byte in text:
            if state == DEAD:
                break
            state = self.moves[state][byte]
        return state

    def matches(self, text: str | bytes) -> bool:
        """Tell whether a whole text belongs to the language.

        Args:
            text: The text, or its bytes.

        Returns:
            Whether it does.
        """
        state = self.run(text.encode() if isinstance(text, str) else text)
        return state != DEAD and self.accepting[state]


def compile_node(node: Node) -> Automaton:
    """Make the smallest automaton of a tree without calls."""
    cuts, moves, accepting = minimal(*determinize(node, {}))
    wide = []
    for row in moves:
        full: list[int] = []
        for k, target in enumerate(row):
            full += [target] * (cuts[k + 1] - cuts[k])
        wide.append(full)
    return Automaton(wide, accepting)


class _Net:
    """A nondeterministic automaton with empty moves, after Thompson."""

    def __init__(self, calls: Mapping[str, int]) -> None:
        self.empty: list[list[int]] = []
        self.edges: list[list[tuple[int, int, int]]] = []  # first and last symbol, target
        self.calls = calls

    def new(self) -> int:
        if len(self.empty) > 20 * LIMIT:
            raise ValueError("the expression is too large: shorten its repetitions")
        self.empty.append([])
        self.edges.append([])
        return len(self.empty) - 1

    def add(self, node: Node, begin: int) -> int:
        """Hang a tree onto a state, and return the state at its end."""
        if isinstance(node, Row):
            for part in node.parts:
                begin = self.add(part, begin)
            return begin
        if isinstance(node, Choice):
            end = self.new()
            for option in node.options:
                first = self.new()
                self.empty[begin].append(first)
                self.empty[self.add(option, first)].append(end)
            return end
        if isinstance(node, Repeat):
            return self.repeat(node, begin)
        end = self.new()
        if isinstance(node, Call):
            symbol = 256 + self.calls[node.rule]
            self.edges[begin].append((symbol, symbol, end))
        else:
            self.characters(node.ranges, begin, end)
        return end

    def repeat(self, node: Repeat, begin: int) -> int:
        for _ in range(node.low):
            begin = self.add(node.part, begin)
        end = self.new()
        if node.high is None:
            loop = self.new()
            self.empty[begin].append(loop)
            self.empty[self.add(node.part, loop)].append(loop)
            self.empty[loop].append(end)
            return end
        for _ in range(node.high - node.low):
            self.empty[begin].append(end)
            # A state of its own: an edge back into the first part must not lead out again.
            first = self.new()
            self.empty[begin].append(first)
            begin = self.add(node.part, first)
        self.empty[begin].append(end)
        return end

    def characters(self, ranges: Ranges, begin: int, end: int) -> None:
        shared: dict[tuple[tuple[int, int], ...], int] = {(): end}
        for low, high in ranges:
            for spans in encoded(low, high):
                state = begin
                for k, (a, b) in enumerate(spans):
                    rest = spans[k + 1 :]
                    if rest not in shared:
                        shared[rest] = self.new()
                    edge = (a, b, shared[rest])
                    if edge not in self.edges[state]:
                        self.edges[state].append(edge)
                    state = shared[rest]


def encoded(low: int, high: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Cut a range of characters into ranges of bytes of their UTF-8."""
    for last in (0x7F, 0x7FF, 0xFFFF):
        if low <= last < high:
            yield from encoded(low, last)
            yield from encoded(last + 1, high)
            return
    if high <= 0x7F:
        yield ((low, high),)
        return
    for size in (1, 2, 3):
        block = (1 << (6 * size)) - 1
        if low & ~block != high & ~block:
            if low & block:
                yield from encoded(low, low | block)
                yield from encoded((low | block) + 1, high)
                return
            if high & block != block:
                yield from encoded(low, (high & ~block) - 1)
                yield from encoded(high & ~block, high)
                return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))


def determinize(
    node: Node, calls: Mapping[str, int]
) -> tuple[list[int], list[list[int]], list[bool]]:
    """Follow sets of states: cuts of the symbols, moves by class of symbols, accepting states."""
    net = _Net(calls)
    start = net.new()
    final = net.add(node, start)
    closures: dict[int, frozenset[int]] = {}

    def closure(state: int) -> frozenset[int]:
        if state not in closures:
            found, queue = {state}, [state]
            while queue:
                for other in net.empty[queue.pop()]:
                    if other not in found:
                        found.add(other)
                        queue.append(other)
            # What has only empty moves need not be remembered.
            closures[state] = frozenset(s for s in found if net.edges[s] or s == final)
        return closures[state]

    marks = {0, 256, 256 + len(calls)}
    for edges in net.edges:
        for low, high, _ in edges:
            marks.update((low, high + 1))
    cuts = sorted(marks)
    spans = [
        [(bisect_left(cuts, a), bisect_left(cuts, b + 1), to) for a, b, to in edges]
        for edges in net.edges
    ]
    numbers = {closure(start): 0}
    queue, moves = [closure(start)], []
    for here in queue:
        reached: dict[int, set[int]] = {}
        for state in here:
            for first, past, to in spans[state]:
                for k in range(first, past):
                    reached.setdefault(k, set()).add(to)
        row = [DEAD] * (len(cuts) - 1)
        merged: dict[frozenset[int], int] = {}
        for k, targets in reached.items():
            key = frozenset(targets)
            if key not in merged:
                there = frozenset().union(*map(closure, key))
                if there not in numbers:
                    if len(numbers) == LIMIT:
                        raise ValueError(
                            f"the automaton has more than {LIMIT:,} states: shorten repetitions"
                        )
                    numbers[there] = len(numbers)
                    queue.append(there)
                merged[key] = numbers[there]
            row[k] = merged[key]
        moves.append(row)
    return cuts, moves, [final in here for here in queue]


def minimal(
    cuts: list[int], moves: list[list[int]], accepting: list[bool]
) -> tuple[list[int], list[list[int]], list[bool]]:
    """Drop states without hope, and merge states that no continuation tells apart (Hopcroft)."""
    before: list[dict[int, list[int]]] = [{} for _ in moves]  # target: symbol: sources
    for state, row in enumerate(moves):
        for k, to in enumerate(row):
            if to != DEAD:
                before[to].setdefault(k, []).append(state)
    hopeful = {state for state, ends in enumerate(accepting) if ends}
    queue = list(hopeful)
    while queue:
        for sources in before[queue.pop()].values():
            fresh = [s for s in sources if s not in hopeful]
            hopeful.update(fresh)
            queue.extend(fresh)
    if 0 not in hopeful:
        raise ValueError("no text satisfies the constraint: it asks for what excludes itself")
    blocks = [{s for s in hopeful if accepting[s]}, {s for s in hopeful if not accepting[s]}]
    blocks = [block for block in blocks if block]
    block_of = {state: b for b, block in enumerate(blocks) for state in block}
    # A missing move is a move too: so each first block splits the others.
    work = set(range(len(blocks)))
    while work:
        splitter = list(blocks[work.pop()])
        arriving: dict[int, set[int]] = {}
        for state in splitter:
            for k, sources in before[state].items():
                arriving.setdefault(k, set()).update(s for s in sources if s in hopeful)
        for sources_of_k in arriving.values():
            hit: dict[int, set[int]] = {}
            for state in sources_of_k:
                hit.setdefault(block_of[state], set()).add(state)
            for b, part in hit.items():
                if len(part) == len(blocks[b]):
                    continue
                rest = blocks[b] - part
                small, large = (part, rest) if len(part) <= len(rest) else (rest, part)
                blocks[b] = large
                blocks.append(small)
                for state in small:
                    block_of[state] = len(blocks) - 1
                work.add(len(blocks) - 1)
                # A block that waits keeps its place; its other half has one now as well.
    order: dict[int, int] = {block_of[0]: 0}
    queue = [0]
    sample = {b: next(iter(block)) for b, block in enumerate(blocks)}
    small_moves: list[list[int]] = []
    chosen = [sample[block_of[0]]]
    for state in chosen:
        row = []
        for to in moves[state]:
            if to == DEAD or to not in hopeful:
                row.append(DEAD)
                continue
            b = block_of[to]
            if b not in order:
                order[b] = len(order)
                chosen.append(sample[b])
            row.append(order[b])
        small_moves.append(row)
    return cuts, small_moves, [accepting[state] for state in chosen]
