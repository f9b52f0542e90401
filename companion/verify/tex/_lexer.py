"""Tokens of display mathematics: what is layout is dropped, what has a meaning keeps its place."""

import re
from dataclasses import dataclass

__all__ = ["TexError", "Token", "lex", "plain"]

_TOKEN = re.compile(
    r"(?P<word>\\(?:mathrm|operatorname|mathsf|mathit|texttt)\s*\{[A-Za-z][A-Za-z0-9-]*\})"
    r"|(?P<roman>\\(?:mathrm|operatorname)\s+[A-Za-z])"
    r"|(?P<text>\\(?:text|textrm|texttt|mathrm|mbox)\s*\{[^{}]*\})"
    r"|(?P<dots>\.\.)"
    r"|(?P<command>\\[A-Za-z]+|\\.)"
    r"|(?P<number>[0-9]+(?:\.[0-9]+)?)"
    r"|(?P<letter>[A-Za-z])"
    r"|(?P<space>[\s~]+)"
    r"|(?P<sign>.)",
    re.DOTALL,
)
_LAYOUT = frozenset(
    [r"\,", r"\;", r"\ ", r"\!", r"\:", r"\>"]
    + [r"\displaystyle", r"\textstyle", r"\scriptstyle", r"\limits", r"\nolimits"]
    + [rf"\{size}{side}" for size in ("big", "Big", "bigg", "Bigg") for side in ("", "l", "r", "m")]
    + [r"\left", r"\right", r"\middle", "\\\n"]
)
_GAPS = frozenset([r"\quad", r"\qquad"])
_SAME = {
    r"\tfrac": r"\frac",
    r"\dfrac": r"\frac",
    r"\leq": r"\le",
    r"\geq": r"\ge",
    r"\neq": r"\ne",
    r"\|": r"\Vert",
    r"\ldots": r"\dots",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\Longleftrightarrow": r"\iff",
    r"\Leftrightarrow": r"\iff",
    r"\Longrightarrow": r"\Rightarrow",
    r"\implies": r"\Rightarrow",
    r"\longrightarrow": r"\to",
    r"\rightarrow": r"\to",
    r"\gets": r"\leftarrow",
    r"\intercal": r"\top",
    r"\ast": "*",
    r"\lor": r"\vee",
    r"\land": r"\wedge",
}


class TexError(ValueError):
    """Display mathematics that cannot be read; the message has a caret under the token."""

    def __init__(self, message: str, tex: str, position: int) -> None:
        """Point at a position of the formula."""
        line_start = tex.rfind("\n", 0, position) + 1
        line_end = tex.find("\n", position)
        line = tex[line_start : line_end if line_end >= 0 else len(tex)]
        # A long line is cut to what stands around the place.
        column = position - line_start
        cut = max(0, column - 40)
        shown = line[cut : column + 40]
        self.reason = message
        self.position = position
        super().__init__(f"{message}\n    {shown}\n    {' ' * (column - cut)}^")


@dataclass(frozen=True)
class Token:
    """A token: its text, its place in the formula, and its sort.

    Sorts are ``word`` (a name in roman type), ``text`` (words), ``gap`` (a wide space), ``number``,
    ``letter``, ``command`` and ``sign``.
    """

    text: str
    at: int
    sort: str

    @property
    def key(self) -> str:
        """What is compared: a word is told from the letters it is made of."""
        if self.text in (r"\lvert", r"\rvert"):
            return "|"
        return rf"\mathrm{{{self.text}}}" if self.sort in ("word", "text") else self.text


def lex(tex: str) -> list[Token]:
    """Split a formula into tokens, without layout."""
    tokens: list[Token] = []
    for match in _TOKEN.finditer(tex):
        sort = match.lastgroup or ""
        text = match.group()
        if sort == "space" or text in _LAYOUT:
            continue
        if sort == "sign" and text == "." and tokens and _was_delimiter(tex, match.start()):
            continue  # \left. and \right.
        if sort == "roman":
            tokens.append(Token(text[-1], match.start(), "word"))
        elif sort in ("word", "text"):
            inner = text[text.index("{") + 1 : -1]
            tokens.append(Token(inner.strip() if sort == "text" else inner, match.start(), sort))
        elif text in _GAPS:
            tokens.append(Token(text, match.start(), "gap"))
        elif sort == "number" and tokens and _takes_one(tokens[-1]) and len(text) > 1:
            # TeX gives one digit to a bare script or fraction: x_10 is x_1 and a 0.
            for offset, digit in enumerate(text):
                if digit == ".":
                    raise TexError("a decimal number needs braces here", tex, match.start())
                tokens.append(Token(digit, match.start() + offset, "number"))
        else:
            tokens.append(Token(_SAME.get(text, text), match.start(), sort))
    return tokens


def _was_delimiter(tex: str, position: int) -> bool:
    return bool(re.search(r"\\(left|right|middle)\s*\Z", tex[:position]))


def _takes_one(token: Token) -> bool:
    return token.text in ("_", "^", r"\frac")


def plain(tokens: list[Token]) -> tuple[str, ...]:
    """Reduce tokens to what is compared: braces around one token do not count."""
    keys = [token.key for token in tokens if token.sort != "gap"]
    done: list[str] = []
    i = 0
    while i < len(keys):
        if keys[i] == "{" and i + 2 < len(keys) and keys[i + 2] == "}":
            done.append(keys[i + 1])
            i += 3
        else:
            done.append(keys[i])
            i += 1
    return tuple(done)
