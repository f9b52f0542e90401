r"""Names: how the keys of a reading are tied to the names on the page.

A key is the name as the page writes it, and braces around one sign, spaces and ``\mathrm`` do not
count: ``"W^Q"``, ``r"\hat p"``, ``"d_k"``, ``"dX"``, ``"KL"``, ``r"|\mathcal V|"``. A key that is a
Python identifier may also leave out what Python cannot write: the backslash of ``tau``, and whether
``W_Q`` stands for a lower or an upper index; ``hat_p`` is ``\hat p``.
"""

import re
from collections.abc import Iterable
from itertools import product

from companion.verify.tex._lexer import Token, lex, plain

__all__ = ["ACCENTS", "Lexicon", "forms_of", "spell"]

GREEK = frozenset(
    [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "varepsilon",
        "zeta",
        "eta",
        "theta",
        "vartheta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "pi",
        "rho",
        "varrho",
        "sigma",
        "varsigma",
        "tau",
        "upsilon",
        "phi",
        "varphi",
        "chi",
        "psi",
        "omega",
        "Gamma",
        "Delta",
        "Theta",
        "Lambda",
        "Xi",
        "Pi",
        "Sigma",
        "Upsilon",
        "Phi",
        "Psi",
        "Omega",
        "ell",
    ]
)
ACCENTS = frozenset(
    rf"\{name}"
    for name in [
        "bar",
        "hat",
        "tilde",
        "dot",
        "ddot",
        "vec",
        "overline",
        "widehat",
        "widetilde",
        "check",
    ]
)
FONTS = frozenset(rf"\{name}" for name in ["mathcal", "mathbb", "mathbf", "mathfrak", "boldsymbol"])

_WORD = re.compile(r"\\[A-Za-z]+\s*\{[A-Za-z-]*\}|\\[A-Za-z]+|[A-Za-z]{2,}")

Keys = tuple[str, ...]
Form = tuple[Keys, Keys, Keys, int]  # base, lower index, upper index, primes


def spell(keys: Iterable[str]) -> str:
    """Write token keys as TeX, with a space where a command would swallow a letter."""
    out = ""
    for key in keys:
        if re.search(r"\\[A-Za-z]+\Z", out) and key[:1].isalnum():
            out += " "
        out += key
    return out


def text_of(form: Form) -> str:
    """Write a name in its canonical form."""
    base, sub, sup, primes = form

    def script(sign: str, keys: Keys) -> str:
        inner = spell(keys)
        return f"{sign}{inner}" if len(keys) == 1 else f"{sign}{{{inner}}}" if keys else ""

    return spell(base) + "'" * primes + script("_", sub) + script("^", sup)


def split(keys: Keys) -> Form:
    """Take the scripts at the end of a name apart."""
    base: Keys = keys
    sub: Keys = ()
    sup: Keys = ()
    primes = 0
    while len(base) > 1:
        if base[-1] == "'":
            base, primes = base[:-1], primes + 1
            continue
        start, inner = _last_script(base)
        if start <= 0 or base[start - 1] in ("_", "^"):
            break
        if base[start] == "_" and not sub:
            base, sub = base[:start], inner
        elif base[start] == "^" and not sup:
            base, sup = base[:start], inner
        else:
            break
    return base, sub, sup, primes


def _last_script(keys: Keys) -> tuple[int, Keys]:
    if keys[-1] != "}":
        return (len(keys) - 2, keys[-1:]) if keys[-2] in ("_", "^") else (0, ())
    depth = 0
    for i in range(len(keys) - 1, -1, -1):
        depth += (keys[i] == "}") - (keys[i] == "{")
        if depth == 0:
            return (i - 1, keys[i + 1 : -1]) if i and keys[i - 1] in ("_", "^") else (0, ())
    return 0, ()


def _spellings(word: str) -> list[Keys]:
    """All ways in which a page may write a part of an identifier."""
    if word in GREEK:
        return [(rf"\{word}",)]
    if word.isdigit() or len(word) == 1:
        return [(word,)]
    return [(rf"\mathrm{{{word}}}",), tuple(word), (rf"\{word}",)]


def forms_of(key: str) -> list[Form]:
    """All names on a page that a key stands for, the canonical one first."""
    primes = len(key) - len(key.rstrip("'"))
    if primes:
        return [(base, low, high, n + primes) for base, low, high, n in forms_of(key[:-primes])]
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*", key):
        # Words may be in roman type: P(len>L).
        roman = _WORD.sub(lambda m: m[0] if m[0][0] == "\\" else rf"\mathrm{{{m[0]}}}", key)
        return [split(plain(lex(text))) for text in dict.fromkeys((key, roman))]
    head, *rest = key.split("_")
    accent: Keys = ()
    if rest and rf"\{head}" in ACCENTS | FONTS:
        accent, head, rest = (rf"\{head}",), rest[0], rest[1:]
    digits = re.fullmatch(r"([A-Za-z]+?)([0-9]+)", head)
    found: list[Form] = []
    if digits and not rest:  # W1 is W_1 as well
        head, rest = digits[1], [digits[2]]
    if not rest:
        found += [(accent + base, (), (), 0) for base in _spellings(head)]
    elif len(rest) == 1:
        for base, low in product(_spellings(head), _spellings(rest[0])):
            found.append((accent + base, low, (), 0))
        for base, high in product(_spellings(head), _spellings(rest[0])):
            found.append((accent + base, (), high, 0))
    else:
        for base, low, high in product(_spellings(head), *map(_spellings, rest[:2])):
            found += [(accent + base, low, high, 0), (accent + base, high, low, 0)]
    return found


class Lexicon:
    """The names that a reading gives, and which of them are functions."""

    def __init__(self, keys: Iterable[str] = (), functions: Iterable[str] = ()) -> None:
        """Collect the names of a reading."""
        functions = set(functions)
        self.bases: dict[Keys, dict[tuple[Keys, Keys, int], str]] = {}
        self.key: dict[str, str] = {}
        self.functions: set[str] = set()
        self.quantities: set[str] = set()  # functions of other names on the page
        for key in keys:
            self.add(key, function=key in functions)
        self.longest = max(map(len, self.bases), default=1)

    def add(self, key: str, *, function: bool) -> None:
        """Add a name. What is spelled out wins over what an identifier may stand for."""
        for form in forms_of(key):
            base, low, high, primes = form
            text = text_of(form)
            spelled = text == key or key not in self.key.values()
            if text in self.key and self.key[text] != key and not spelled:
                continue
            self.bases.setdefault(base, {})[(low, high, primes)] = text
            self.key[text] = key
            if function:
                self.functions.add(text)
        self.longest = max(map(len, self.bases), default=1)

    def copy(self) -> "Lexicon":
        """Return a lexicon to which more may be added."""
        other = Lexicon()
        other.bases = {base: dict(forms) for base, forms in self.bases.items()}
        other.key, other.functions = dict(self.key), set(self.functions)
        other.quantities = set(self.quantities)
        other.longest = self.longest
        return other

    def base_at(self, tokens: list[Token], i: int) -> int:
        """Return how many tokens from a place on are the base of a name, the most possible."""
        for count in range(min(self.longest, len(tokens) - i), 0, -1):
            part = tokens[i : i + count]
            if tuple(token.key for token in part) in self.bases:
                return count
        return 0

    def find(self, base: Keys, sub: Keys, sup: Keys, primes: int) -> str | None:
        """Return the canonical text of a name, if the reading has it."""
        return self.bases.get(base, {}).get((sub, sup, primes))
