"""Regular expressions: what they look like, and the sets of characters and sequences they mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = [
    "Call",
    "Chars",
    "Choice",
    "Node",
    "Repeat",
    "Row",
    "literal",
    "parse",
    "parse_pattern",
    "written",
]

LAST = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Chars:
    """One character out of some ranges of code points, both ends included, in order."""

    ranges: Ranges


@dataclass(frozen=True)
class Row:
    """One part after the other. Without parts, the empty text."""

    parts: tuple["Node", ...]


@dataclass(frozen=True)
class Choice:
    """One of several. Without any, nothing at all matches."""

    options: tuple["Node", ...]


@dataclass(frozen=True)
class Repeat:
    """A part, from ``low`` to ``high`` times; ``None`` is without end."""

    part: "Node"
    low: int
    high: int | None


@dataclass(frozen=True)
class Call:
    """What a rule of a grammar matches."""

    rule: str


Node = Chars | Row | Choice | Repeat | Call


def tidy(ranges: Sequence[tuple[int, int]]) -> Ranges:
    """Sort ranges, join what touches, and leave surrogates out: they are no characters."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    kept = []
    for low, high in joined:
        for a, b in ((low, min(high, SURROGATES[0] - 1)), (max(low, SURROGATES[1] + 1), high)):
            if a <= b:
                kept.append((a, b))
    return tuple(kept)


def others(ranges: Ranges) -> Ranges:
    """All characters but these."""
    found, begin = [], 0
    for low, high in ranges:
        if begin < low:
            found.append((begin, low - 1))
        begin = high + 1
    if begin <= LAST:
        found.append((begin, LAST))
    return tidy(found)


def literal(text: str) -> Row:
    """This text and no other."""
    for c in text:
        if SURROGATES[0] <= ord(c) <= SURROGATES[1]:
            raise ValueError(f"{text!r} holds half of a surrogate pair, which is no character")
    return Row(tuple(Chars(((ord(c), ord(c)),)) for c in text))


DIGITS: Ranges = ((48, 57),)
WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
SPACE: Ranges = ((9, 13), (32, 32))
CLASSES = {
    "d": DIGITS,
    "w": WORD,
    "s": SPACE,
    "D": others(DIGITS),
    "W": others(WORD),
    "S": others(SPACE),
}
#: What JSON Schema means by ``\\s`` and the dot, after ECMA-262: all white space of Unicode, and no
#: end of a line.
WHITE: Ranges = tidy(
    [
        *SPACE,
        (0xA0, 0xA0),
        (0x1680, 0x1680),
        (0x2000, 0x200A),
        (0x2028, 0x2029),
        (0x202F, 0x202F),
        (0x205F, 0x205F),
        (0x3000, 0x3000),
        (0xFEFF, 0xFEFF),
    ]
)
LINE_ENDS: Ranges = ((10, 10), (13, 13), (0x2028, 0x2029))
HEX = frozenset("0123456789abcdefABCDEF")
#: Groups within groups at most: each is a call within a call.
DEEPEST = 100
ESCAPES = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}
MARKS = frozenset(".^$*+?{}[]\\|()/-\"'#&~@%,:;<>=!_` ")


class _Parser:
    """A regular expression, read from left to right."""

    def __init__(self, text: str, encode: Callable[[Ranges], Node], *, ecma: bool = False) -> None:
        self.text, self.at, self.encode, self.depth = text, 0, encode, 0
        # Whether it begins with ^ or ends with $, and whether a bar stands outside of all groups.
        self.begins = self.ends = self.barred = False
        self.classes = {**CLASSES, "s": WHITE, "S": others(WHITE)} if ecma else CLASSES
        self.dot = others(LINE_ENDS if ecma else ((10, 10),))
        self.ecma = ecma

    def fail(self, what: str) -> ValueError:
        return ValueError(f"in the expression {self.text!r}, at character {self.at + 1}: {what}")

    def peek(self, ahead: int = 0) -> str:
        at = self.at + ahead
        return self.text[at] if at < len(self.text) else ""

    def take(self) -> str:
        c = self.peek()
        self.at += 1
        return c

    def whole(self) -> Node:
        if self.peek() == "^":
            self.at += 1
            self.begins = True
        node = self.choice()
        if self.at < len(self.text):
            raise self.fail("a parenthesis closes that was not opened")
        return node

    def choice(self) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.fail(f"more than {DEEPEST} groups within groups")
        options = [self.row()]
        while self.peek() == "|":
            self.at += 1
            self.barred |= self.depth == 1
            options.append(self.row())
        self.depth -= 1
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def row(self) -> Node:
        parts: list[Node] = []
        while self.peek() not in ("", "|", ")"):
            if self.peek() == "$" and self.at == len(self.text) - 1:
                self.at += 1
                self.ends = True
                break
            parts.append(self.repeated(self.atom()))
        return parts[0] if len(parts) == 1 else Row(tuple(parts))

    def atom(self) -> Node:
        c = self.take()
        if c == "(":
            if self.peek() == "?":
                if self.peek(1) != ":":
                    raise self.fail("of groups with (? only (?: is supported")
                self.at += 2
            node = self.choice()
            if self.take() != ")":
                raise self.fail("a parenthesis is not closed")
            return node
        if c == "[":
            return self.encode(self.set())
        if c == ".":
            return self.encode(self.dot)
        if c == "\\":
            return self.encode(self.escape())
        if c in "*+?{":
            raise self.fail(f"nothing to repeat before {c!r}")
        if c in "^$":
            raise self.fail("^ and $ are supported at the ends of the whole expression only")
        return self.encode(tidy([(ord(c), ord(c))]))

    def repeated(self, node: Node) -> Node:
        c = self.peek()
        if c == "{":
            low, high = self.counts()
        elif c and c in "*+?":
            self.at += 1
            low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[c]
        else:
            return node
        if self.peek() in ("?", "+", "*", "{"):
            raise self.fail("lazy, possessive and doubled repetitions are not supported")
        return Repeat(node, low, high)

    def counts(self) -> tuple[int, int | None]:
        end = self.text.find("}", self.at)
        first, comma, second = self.text[self.at + 1 : end].partition(",")
        plain = first.isascii() and second.isascii()  # other digits mean themselves
        fits = end > 0 and plain and first.isdecimal() and (not second or second.isdecimal())
        if not fits:
            raise self.fail("a { begins no count such as {2}, {2,} or {2,5}: write \\{ for a brace")
        low = int(first)
        high = low if not comma else int(second) if second else None
        if high is not None and high < low:
            raise self.fail(f"{{{low},{high}}} asks for at least {low} and at most {high}")
        self.at = end + 1
        return low, high

    def escape(self) -> Ranges:
        c = self.take()
        if c in self.classes:
            return self.classes[c]
        if c and c in "xu":
            size = 2 if c == "x" else 4
            digits = self.text[self.at : self.at + size]
            code = int(digits, 16) if len(digits) == size and HEX.issuperset(digits) else -1
            if code < 0 or SURROGATES[0] <= code <= SURROGATES[1]:
                raise self.fail(f"\\{c} needs {size} hexadecimal digits of a character")
            self.at += size
            return ((code, code),)
        if c == "0" and self.peek().isdecimal():
            raise self.fail("octal escapes are not supported: write \\x")
        if c in ESCAPES:
            return ((ESCAPES[c], ESCAPES[c]),)
        if c and c in MARKS:
            return ((ord(c), ord(c)),)
        raise self.fail(f"the escape \\{c} is not supported")

    def set(self) -> Ranges:
        negated = self.peek() == "^"
        self.at += negated
        if self.ecma and self.peek() == "]":  # there it closes the set, elsewhere it is a member
            raise self.fail("a set holds a character, or write \\] for the bracket")
        found: list[tuple[int, int]] = []
        first = True
        while first or self.peek() != "]":
            if not self.peek():
                raise self.fail("a bracket is not closed")
            first = False
            low = self.one()
            if self.peek() == "-" and self.peek(1) not in ("]", ""):
                self.at += 1
                high = self.one()
                ends = (low, high)
                if any(len(e) != 1 or e[0][0] != e[0][1] for e in ends) or high[0][0] < low[0][0]:
                    raise self.fail("a range needs two characters in their order")
                found.append((low[0][0], high[0][0]))
            else:
                found.extend(low)
        self.at += 1
        ranges = tidy(found)
        return others(ranges) if negated else ranges

    def one(self) -> Ranges:
        c = self.take()
        if c == "[" and self.peek() in (":", "=", "."):
            raise self.fail("named classes such as [:alpha:] are not supported")
        return self.escape() if c == "\\" else ((ord(c), ord(c)),)


def parse_pattern(pattern: str, encode: Callable[[Ranges], Node], anything: Node) -> Node:
    """Read a pattern of JSON Schema, which may match anywhere if no anchor holds it.

    Args:
        pattern: The expression, of ECMA-262.
        encode: As in :func:`parse`.
        anything: What may stand before and after it.

    Returns:
        The tree of whole values.

    Raises:
        ValueError: As :func:`parse`; and for options of which an anchor holds only one: ``^a|b$``
            means something else than it seems to.
    """
    parser = _Parser(pattern, encode, ecma=True)
    node = parser.whole()
    if parser.barred and (parser.begins or parser.ends):
        raise ValueError(f"put the options of {pattern!r} in parentheses")
    before = () if parser.begins else (anything,)
    after = () if parser.ends else (anything,)
    return Row((*before, node, *after))


def void(node: Node) -> bool:
    """Whether no text at all matches a tree without calls."""
    if isinstance(node, Chars):
        return not node.ranges
    if isinstance(node, Row):
        return any(map(void, node.parts))
    if isinstance(node, Choice):
        return all(map(void, node.options))
    return isinstance(node, Repeat) and node.low > 0 and void(node.part)


def parse(expression: str, encode: Callable[[Ranges], Node] = Chars) -> Node:
    """Read a regular expression.

    Args:
        expression: The expression; it has to match all of a text.
        encode: What stands for a set of characters: in a JSON string some are written as escapes.

    Returns:
        Its tree.

    Raises:
        ValueError: If it is malformed, or uses what no automaton has (references, lookaround) or
            what is not supported here; the message says where.
    """
    return _Parser(expression, encode).whole()


def written(node: Node) -> str:
    """Write a tree as a regular expression that Python and Rust read alike."""
    if void(node):  # an option without texts may be left out, but no expression says "nothing"
        raise ValueError("no text satisfies the constraint: it asks for what excludes itself")
    if isinstance(node, Chars):
        if len(node.ranges) == 1 and node.ranges[0][0] == node.ranges[0][1]:
            return _char(node.ranges[0][0])
        spans = [_char(a) if a == b else f"{_char(a)}-{_char(b)}" for a, b in node.ranges]
        return f"[{''.join(spans)}]"
    if isinstance(node, Row):
        return "".join(written(part) for part in node.parts)
    if isinstance(node, Choice):
        return f"(?:{'|'.join(written(option) for option in node.options if not void(option))})"
    if isinstance(node, Call):
        raise ValueError(f"the rule {node.rule!r} calls itself: no regular expression says that")
    if void(node.part) or node.high == 0:
        return ""
    inner = written(node.part)
    if not isinstance(node.part, Chars | Choice):
        inner = f"(?:{inner})"
    for (low, high), mark in {(0, None): "*", (1, None): "+", (0, 1): "?"}.items():
        if (node.low, node.high) == (low, high):
            return inner + mark
    return f"{inner}{{{node.low},{'' if node.high is None else node.high}}}"


def _char(code: int) -> str:
    c = chr(code)
    if c.isascii() and (c.isalnum() or c in " _\"',:;<>=!@%&~`#/"):
        return c if c not in "&~#" else "\\" + c
    if code < 0x80 and c.isprintable():
        return "\\" + c
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return c
