r"""Problems made by a program, each with a checker that is exact."""

import ast
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from companion.core import check_count, check_ids, check_shape, randint
from companion.frontiers.reasoning._exact import calculate, read_number

__all__ = [
    "Problem",
    "addition",
    "countdown",
    "countdown_moves",
    "graph_path",
    "parity",
    "parity_text",
    "syllogism",
]


@dataclass(frozen=True)
class Problem:
    """A problem, an answer, and what decides whether another answer is right as well.

    Attributes:
        question: What is asked.
        answer: A right answer, perhaps one of several.
        rationale: Steps that lead to it.
        check: Says whether a text answers it.
        givens: The numbers or words that the problem was made of.
    """

    question: str
    answer: str
    rationale: str
    check: Callable[[str], bool]
    givens: tuple[int, ...] = ()


def addition(*, digits: int, generator: torch.Generator) -> Problem:
    """Make a sum of two numbers, with the carries as its steps.

    Args:
        digits: Of each number; the first is not 0, unless there is only one.
        generator: The source of randomness.

    Returns:
        The problem. The last number of a text is its answer.

    Raises:
        ValueError: If digits are below 1.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> problem = addition(digits=3, generator=torch.Generator().manual_seed(0))
        >>> problem.check(f"That makes {problem.answer}.")
        True
    """
    check_count("digits", digits, high=18)
    low = 0 if digits == 1 else 10 ** (digits - 1)
    a, b = (low + _below(10**digits - low, generator) for _ in range(2))
    steps, carry = [], 0
    for place in range(digits):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        steps.append(f"{x}+{y}+{carry}={total}")
        carry = total // 10
    gold = Fraction(a + b)

    def check(text: str) -> bool:
        return read_number(text) == gold

    return Problem(f"{a}+{b}=", str(a + b), ", ".join(steps), check, (a, b))


def parity(*, bits: int, generator: torch.Generator) -> Problem:
    """Make a string of bits, and ask whether it has an odd number of ones.

    Args:
        bits: Its length.
        generator: The source of randomness.

    Returns:
        The problem, with the parities of all beginnings as its steps.

    Raises:
        ValueError: If bits are below 1.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> parity(bits=5, generator=torch.Generator().manual_seed(0)).answer in "01"
        True
    """
    check_count("bits", bits)
    drawn = [_below(2, generator) for _ in range(bits)]
    running = [sum(drawn[: i + 1]) % 2 for i in range(bits)]
    gold = Fraction(running[-1])

    def check(text: str) -> bool:
        return read_number(text) == gold

    asked = "".join(map(str, drawn)) + "="
    return Problem(asked, str(running[-1]), " ".join(map(str, running)), check, tuple(drawn))


def parity_text(
    bits: Integer[Tensor, "batch n"],
    *,
    way: Literal["direct", "scratchpad", "beside"],
    width: int = 1,
) -> tuple[Integer[Tensor, "batch length"], Bool[Tensor, " length"]]:
    r"""Write strings of bits with their parity as a model is to learn it.

    Args:
        bits: 0 and 1.
        way: ``"direct"`` has bits, a sign (token 2), and the parity. ``"scratchpad"`` has bits, the
            sign, and the parities of all beginnings. ``"beside"`` has the sign first, and then each
            bit followed by the parity so far.
        width: A shorter string is filled up by blanks (token 3) before the sign, so that a bit and
            its parity are always as far from one another. Without a meaning for ``"beside"``.

    Returns:
        Token ids, and which of them the model is to write. The last one is the answer.

    Raises:
        ValueError: If there is another number than 0 and 1, or the way is unknown.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> parity_text(torch.tensor([[1, 0, 1]]), way="scratchpad")[0]
        tensor([[1, 0, 1, 2, 1, 1, 0]])
    """
    check_shape("bits", bits, (None, None))
    check_count("bits", bits.shape[1])
    check_count("width", width)
    check_ids("bits", bits, 2)
    if way not in ("direct", "scratchpad", "beside"):
        raise ValueError(f"way must be 'direct', 'scratchpad' or 'beside', got {way!r}")
    running = bits.cumsum(1) % 2
    n = bits.shape[1]
    if way == "beside":
        pairs = torch.stack([bits, running], 2).flatten(1)
        ids = torch.cat([torch.full_like(bits[:, :1], 2), pairs], 1)
        places = torch.arange(2 * n + 1, device=bits.device)
        return ids, (places > 0) & (places % 2 == 0)
    kept = running[:, -1:] if way == "direct" else running
    blank = torch.full_like(bits[:, :1], 3).expand(-1, max(width - n, 0))
    ids = torch.cat([bits, blank, torch.full_like(bits[:, :1], 2), kept], 1)
    return ids, torch.arange(ids.shape[1], device=bits.device) > max(n, width)


def graph_path(*, nodes: int, edges: int, generator: torch.Generator) -> Problem:
    """Make a directed graph, and ask for a shortest path between two of its nodes.

    Args:
        nodes: How many nodes.
        edges: How many edges, drawn without repetition; a path is put in where none exists.
        generator: The source of randomness.

    Returns:
        The problem. Every shortest path is right, written as ``0 3 5``.

    Raises:
        ValueError: If there are fewer than 3 nodes, or more edges than pairs.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> problem = graph_path(nodes=7, edges=9, generator=torch.Generator().manual_seed(0))
        >>> problem.check(problem.answer)
        True
    """
    check_count("nodes", nodes, low=3)
    check_count("edges", edges, high=nodes * (nodes - 1))
    pairs = [(a, b) for a in range(nodes) for b in range(nodes) if a != b]
    drawn = sorted(pairs[i] for i in _choice(len(pairs), edges, generator))
    start, end = _choice(nodes, 2, generator)
    path = _shortest(drawn, start, end)
    if path is None:
        middle = _choice(nodes, nodes, generator)
        middle = [node for node in middle if node not in (start, end)][:1]
        route = [start, *middle, end]
        drawn = sorted({*drawn, *pairwise(route)})
        path = _shortest(drawn, start, end)
    assert path is not None
    shortest, known = len(path), set(drawn)

    def check(text: str) -> bool:
        given = [int(word) for word in re.findall(r"\d+", text)]
        steps = pairwise(given)
        ends = given[:1] == [start] and given[-1:] == [end]
        return ends and len(given) == shortest and all(step in known for step in steps)

    listed = ", ".join(f"{a}>{b}" for a, b in drawn)
    asked = f"Edges: {listed}. Shortest path from {start} to {end}:"
    steps = ", ".join(f"{a}>{b}" for a, b in pairwise(path))
    return Problem(asked, " ".join(map(str, path)), steps, check, (start, end))


def syllogism(*, generator: torch.Generator) -> Problem:
    """Make two premises about three classes, and ask whether a conclusion follows.

    Args:
        generator: The source of randomness.

    Returns:
        The problem, in made-up words, so that what is known of the world is no help. Its answer
        is *yes* where the conclusion is true in every world in which the premises are, by
        enumeration of which kinds of things exist; classes may be empty.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> problem = syllogism(generator=torch.Generator().manual_seed(0))
        >>> problem.answer in ("yes", "no")
        True
    """
    words = ["bops", "daxes", "feps", "gazzers", "lorps", "mips", "wugs", "zifs"]
    a, b, c = (words[i] for i in _choice(len(words), 3, generator))
    names = {"a": a, "b": b, "c": c}
    said = []
    for subject, predicate in (("a", "b"), ("b", "c"), ("a", "c")):
        form = ("all", "no", "some", "some not")[_below(4, generator)]
        if _below(2, generator):
            subject, predicate = predicate, subject
        said.append((form, subject, predicate))
    follows = all(
        _true(said[2], world)
        for world in range(1 << 8)
        if _true(said[0], world) and _true(said[1], world)
    )
    texts = []
    for form, s, p in said:
        quantifier = {"some not": "Some"}.get(form, form.capitalize())
        verb = "are not" if form == "some not" else "are"
        texts.append(f"{quantifier} {names[s]} {verb} {names[p]}.")
    answer = "yes" if follows else "no"

    def check(text: str) -> bool:
        found = re.findall(r"\b(yes|no)\b", text.lower())
        return bool(found) and found[-1] == answer

    asked = f"{texts[0]} {texts[1]} Does it follow that {texts[2][0].lower()}{texts[2][1:-1]}?"
    return Problem(asked, answer, f"{texts[0]} {texts[1]}", check)


def _true(said: tuple[str, str, str], world: int) -> bool:
    """Whether a sentence is true where things of these of the eight kinds exist."""
    form, subject, predicate = said
    s, p = "abc".index(subject), "abc".index(predicate)
    kinds = [kind for kind in range(8) if world >> kind & 1 and kind >> s & 1]
    inside = [bool(kind >> p & 1) for kind in kinds]
    return {
        "all": all(inside),
        "no": not any(inside),
        "some": any(inside),
        "some not": not all(inside),
    }[form]


def countdown(
    *, numbers: int, generator: torch.Generator, largest: int = 20, target: int = 100
) -> Problem:
    """Make a game of Countdown: reach a number with some others, each used once at the most.

    Args:
        numbers: How many there are.
        generator: The source of randomness.
        largest: Numbers are drawn from 1 up to this.
        target: What is to be reached lies between 1 and this; it can be reached with all numbers.

    Returns:
        The problem. Its answer is an expression; its checker evaluates exactly, by a parser that
        knows numbers and ``+ - * /`` only, and counts which numbers were used.

    Raises:
        ValueError: If there are fewer than 2 numbers or more than 6.

    References:
        The task: Yao et al. 2023, arXiv:2305.10601, section 4.1, for 24.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> problem = countdown(numbers=4, generator=torch.Generator().manual_seed(0))
        >>> problem.check(problem.answer)
        True
    """
    check_count("numbers", numbers, low=2, high=6)
    check_count("largest", largest)
    check_count("target", target)
    while True:
        drawn = [1 + _below(largest, generator) for _ in range(numbers)]
        state: tuple[tuple[Fraction, str], ...] = tuple((Fraction(x), str(x)) for x in drawn)
        while len(state) > 1:
            moves = countdown_moves(state)
            state = moves[_below(len(moves), generator)]
        value, expression = state[0]
        if value.denominator == 1 and 1 <= value <= target:
            break

    def check(text: str) -> bool:
        try:
            used = _used(text)
            if "^" in text or "*" * 2 in text or "!" in text or calculate(text) != value:
                return False
        except ValueError:
            return False
        return all(used.count(x) <= drawn.count(x) for x in used)

    asked = f"Make {value} from {', '.join(map(str, drawn))}, each used once at the most."
    return Problem(asked, expression, "", check, (*drawn, int(value)))


def countdown_moves(
    state: tuple[tuple[Fraction, str], ...],
) -> list[tuple[tuple[Fraction, str], ...]]:
    """List what follows a state of Countdown: two of its numbers are joined to one.

    Args:
        state: Values, each with the expression that made it.

    Returns:
        The states with one number less, sorted within, each set of values once. None after one
        number. Negative numbers and division by 0 are left out: a difference is taken the other
        way around.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> pair = ((Fraction(6), "6"), (Fraction(2), "2"))
        >>> [expression for ((_, expression),) in countdown_moves(pair)]
        ['(6+2)', '(6*2)', '(6-2)', '(6/2)', '(2/6)']
    """
    found: dict[tuple[Fraction, ...], tuple[tuple[Fraction, str], ...]] = {}
    for i in range(len(state)):
        for j in range(i + 1, len(state)):
            rest = [state[k] for k in range(len(state)) if k not in (i, j)]
            for made in _joined(state[i], state[j]):
                following = tuple(sorted([*rest, made]))
                found.setdefault(tuple(value for value, _ in following), following)
    return list(found.values())


def _joined(a: tuple[Fraction, str], b: tuple[Fraction, str]) -> list[tuple[Fraction, str]]:
    (x, left), (y, right) = (a, b) if a[0] >= b[0] else (b, a)
    made = [
        (x + y, f"({left}+{right})"),
        (x * y, f"({left}*{right})"),
        (x - y, f"({left}-{right})"),
    ]
    if y:
        made.append((x / y, f"({left}/{right})"))
    if x and x != y:
        made.append((y / x, f"({right}/{left})"))
    return made


def _used(text: str) -> list[int]:
    """The numbers of an expression; a unary sign is refused, since it joins nothing."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("no expression") from error
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.UnaryOp):
            raise ValueError("no sign in front of a number")
        if isinstance(node, ast.Constant):
            if type(node.value) is not int:
                raise ValueError("whole numbers only")
            found.append(node.value)
    return found


def _shortest(edges: list[tuple[int, int]], start: int, end: int) -> list[int] | None:
    before: dict[int, int] = {start: start}
    todo = deque([start])
    while todo:
        node = todo.popleft()
        if node == end:
            path = [end]
            while path[-1] != start:
                path.append(before[path[-1]])
            return path[::-1]
        for a, b in edges:
            if a == node and b not in before:
                before[b] = node
                todo.append(b)
    return None


def _below(n: int, generator: torch.Generator) -> int:
    return int(randint(0, n, (), generator=generator))


def _choice(n: int, k: int, generator: torch.Generator) -> list[int]:
    """Some of n, in an order of chance."""
    drawn: list[int] = torch.randperm(n, generator=generator, device=generator.device).tolist()
    return drawn[:k]
