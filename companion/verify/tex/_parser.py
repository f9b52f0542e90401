"""From the TeX of a displayed formula to its tree.

The grammar is that of the notation appendix. From loose to tight: relations, sums, products and
quotients with a sign, factors side by side, functions without parentheses, scripts. A sum sign or
an expectation takes the rest of its term. What a name followed by parentheses means, a product or
an application, is decided by the reading.
"""

from dataclasses import replace

from companion.verify.tex._lexer import TexError, Token, lex, plain
from companion.verify.tex._lexicon import ACCENTS, FONTS, Keys, Lexicon, text_of
from companion.verify.tex._nodes import (
    Add,
    Apply,
    At,
    Bars,
    BigOp,
    Binary,
    Binomial,
    Cases,
    Derivative,
    Display,
    Expect,
    Factorial,
    Fraction,
    Index,
    Limit,
    Matrix,
    Name,
    Negative,
    Node,
    Number,
    Postfix,
    Power,
    Product,
    Relation,
    Root,
    Slice,
    Statement,
    Transpose,
    Tuple,
)

__all__ = ["parse"]

RELATIONS = frozenset(
    [
        "=",
        r"\le",
        r"\ge",
        "<",
        ">",
        r"\ne",
        r"\approx",
        r"\propto",
        r"\leftarrow",
        r"\in",
        r"\equiv",
        r"\notin",
        r"\not",
        r"\to",
        r"\sim",
    ]
)
ARROWS = frozenset([r"\Rightarrow", r"\iff"])
#: Environments that only set lines below each other.
LINES = frozenset(["aligned", "split", "gathered"])
SIGNS = frozenset([r"\cdot", r"\times", r"\odot", "/", r"\vee", r"\wedge"])
FUNCTIONS = frozenset(
    [
        rf"\{name}"
        for name in [
            "log",
            "ln",
            "exp",
            "cos",
            "sin",
            "tan",
            "cosh",
            "sinh",
            "tanh",
            "det",
            "max",
            "min",
        ]
    ]
    + [
        rf"\mathrm{{{name}}}"
        for name in ["rank", "tr", "diag", "softmax", "sign", "Re", "relu", "clip", "rowsum"]
    ]
)
BIG = frozenset([r"\sum", r"\prod"])
EXTREMES = frozenset([r"\max", r"\min", r"\sup", r"\inf", r"\arg\max", r"\arg\min"])
IMAGINARY = r"\mathrm{i}"
DIAGONAL = r"\mathrm{diag}"
MOMENTS = {
    r"\mathbb E": r"\mathbb E",
    r"\mathrm{Var}": r"\mathrm{Var}",
    r"\mathrm{Cov}": r"\mathrm{Cov}",
}
CLOSE = {"(": ")", "[": "]", r"\{": r"\}", r"\lVert": r"\rVert", r"\langle": r"\rangle"}
CLOSE |= {r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
STOPS = frozenset(
    [
        "+",
        "-",
        ",",
        ";",
        ":",
        ")",
        "]",
        "}",
        "&",
        r"\\",
        r"\}",
        r"\rVert",
        r"\rangle",
        r"\rfloor",
        r"\rceil",
        r"\mid",
        r"\Vert",
        r"\end",
        r"\colon",
        "..",
    ]
)
SEPARATORS = frozenset([",", ";", r"\mid", r"\Vert", ":"])
WORDS_OF_CONDITION = frozenset(["for", "if", "when", "for all", "for each", "for every", "as"])
WORDS_BETWEEN = frozenset(["where", "with", "and", "or", "so", "hence", "otherwise", "so that"])
_MARKS = frozenset([("+",), ("-",), ("*",), (r"\max",), (r"\min",)])
_BOTH = frozenset([r"\pm", r"\mp"])


def parse(tex: str, lexicon: Lexicon | None = None) -> Display:
    r"""Read a formula.

    Args:
        tex: Display mathematics, without the dollar signs and the label.
        lexicon: The names of the reading.

    Returns:
        The tree.

    Raises:
        TexError: If something cannot be read. The message has a caret under it.

    Example:
        >>> parse(r"y=\frac{x}{2}").statements[0].relation.sides[1]
        Fraction(top=Name(text='x'), bottom=Number(text='2'))
    """
    words = (lexicon or Lexicon()).copy()
    tokens = _unbraced(_one_line(tex, lex(tex)))
    for name in _defined_functions(tokens, words):
        words.add(name, function=True)
    if not any(token.text in _BOTH for token in tokens):
        return _Parser(tex, tokens, words).display()
    # A double sign makes two formulas, one with the upper and one with the lower signs.
    statements: list[Statement] = []
    for signs in ({r"\pm": "+", r"\mp": "-"}, {r"\pm": "-", r"\mp": "+"}):
        one = [replace(token, text=signs.get(token.text, token.text)) for token in tokens]
        statements += _Parser(tex, one, words).display().statements
    return Display(tuple(statements))


def _one_line(tex: str, tokens: list[Token]) -> list[Token]:
    r"""Write what stands in aligned lines on one: a line goes on, or is a statement of its own."""
    done: list[Token] = []
    inner = 0  # how deep in other environments, whose & and \\ mean something else
    aligned = 0
    i = 0
    while i < len(tokens):
        token = tokens[i]
        if token.text in (r"\begin", r"\end") and i + 1 < len(tokens):
            end = next((j for j in range(i, len(tokens)) if tokens[j].text == "}"), i)
            opens = token.text == r"\begin"
            if "".join(t.text for t in tokens[i + 2 : end]) in LINES:
                aligned += 1 if opens else -1
                i = end + 1
                continue
            inner += 1 if opens else -1
        elif aligned and not inner and token.text == "&":
            i += 1
            continue
        elif aligned and not inner and token.text == r"\\":
            i += 1
            while i < len(tokens) and (tokens[i].text == "&" or tokens[i].sort == "gap"):
                i += 1
            if i < len(tokens) and tokens[i].text not in RELATIONS | SIGNS | {"+", "-"}:
                done.append(replace(token, text=r"\qquad", sort="gap"))
            continue
        done.append(token)
        i += 1
    if aligned:
        raise TexError(r"\begin and \end do not match", tex, 0)
    return done


def _unbraced(tokens: list[Token]) -> list[Token]:
    done: list[Token] = []
    i = 0
    while i < len(tokens):
        trio = tokens[i : i + 3]
        keep = done and done[-1].text in (r"\begin", r"\end")
        if len(trio) == 3 and trio[0].text == "{" and trio[2].text == "}" and not keep:
            done.append(trio[1])
            i += 3
        else:
            done.append(tokens[i])
            i += 1
    return done


def _defined_functions(tokens: list[Token], words: Lexicon) -> list[str]:
    """Find the functions that the formula itself defines, as in f(x, y) = ..."""
    found: list[str] = []
    start = True
    for i, token in enumerate(tokens):
        own = token.key not in FUNCTIONS and token.key not in MOMENTS
        if (
            start
            and own
            and token.sort in ("letter", "command", "word")
            and (not words.base_at(tokens, i))
        ):
            end = _matching(tokens, i + 1)
            alone = end and all(
                (t.sort in ("letter", "command", "word") and t.text not in SIGNS)
                or t.text in (",", r"\mid", ";")
                for t in tokens[i + 2 : end]
            )
            if alone and end + 1 < len(tokens) and tokens[end + 1].text == "=":
                found.append(text_of(((token.key,), (), (), 0)))
        start = token.text == "," or token.sort in ("gap", "text")
    return found


def _matching(tokens: list[Token], i: int) -> int:
    if i >= len(tokens) or tokens[i].text != "(":
        return 0
    depth = 0
    for j in range(i, len(tokens)):
        depth += (tokens[j].text == "(") - (tokens[j].text == ")")
        if depth == 0:
            return j
    return 0


class _Parser:
    def __init__(self, tex: str, tokens: list[Token], words: Lexicon) -> None:
        self.tex, self.tokens, self.words = tex, tokens, words
        self.i = 0
        self.bars: list[str] = []

    # ------------------------------------------------------------------ tokens

    def peek(self, ahead: int = 0) -> str:
        place = self.i + ahead
        return self.tokens[place].key if place < len(self.tokens) else ""

    @property
    def token(self) -> Token | None:
        return self.tokens[self.i] if self.i < len(self.tokens) else None

    def fail(self, message: str, place: int | None = None) -> TexError:
        i = self.i if place is None else place
        if i < len(self.tokens):
            return TexError(message, self.tex, self.tokens[i].at)
        at = self.tokens[-1].at + 1 if self.tokens else len(self.tex)
        return TexError(f"{message} (at the end)", self.tex, at)

    def next(self) -> Token:
        token = self.token
        if token is None:
            raise self.fail("something is missing")
        self.i += 1
        return token

    def accept(self, *keys: str) -> bool:
        if self.token is not None and (self.peek() in keys or self.token.text in keys):
            self.i += 1
            return True
        return False

    def expect(self, key: str) -> None:
        if not self.accept(key):
            raise self.fail(f"{key} is expected here")

    def group(self) -> list[Token]:
        """Take a braced group or one argument, as tokens."""
        if not self.accept("{"):
            first = self.next()
            taken = [first]
            if first.text in ACCENTS | FONTS | {r"\sqrt"}:
                taken += self._braced()
            elif first.text == r"\frac":
                taken += self._braced() + self._braced()
            return taken
        self.i -= 1
        return self._braced()[1:-1]

    def _braced(self) -> list[Token]:
        if self.peek() != "{":
            return [self.next()]
        start, depth = self.i, 0
        while True:
            token = self.next()
            depth += (token.text == "{") - (token.text == "}")
            if depth == 0:
                return self.tokens[start : self.i]

    def inside(self, tokens: list[Token]) -> "_Parser":
        return _Parser(self.tex, tokens, self.words)

    def whole(self, tokens: list[Token]) -> Node:
        """Read tokens as one expression."""
        if not tokens:
            raise self.fail("something is missing")
        inner = self.inside(tokens)
        node = inner.relation()
        if inner.token is not None:
            raise inner.fail("cannot be read here")
        return node

    # ------------------------------------------------------------------ statements

    def display(self) -> Display:
        statements: list[Statement] = []
        aside = False
        while True:
            while self.token is not None and (
                self.token.sort in ("gap", "text") or self.peek() == ","
            ):
                if self.token.sort == "text":
                    if not self._connects(self.token):
                        break
                    aside |= self.token.text.lower() in WORDS_OF_CONDITION
                self.i += 1
            if self.token is None:
                break
            statements.append(self.statement(aside=aside))
            aside = False
            if self.token is not None and not (
                self.token.sort in ("gap", "text") or self.peek() == ","
            ):
                raise self.fail("cannot be read here")
        if not statements:
            raise self.fail("the formula is empty")
        return Display(tuple(statements))

    def _connects(self, token: Token) -> bool:
        """Whether words stand between statements, and are no name of the reading."""
        return not self._name_here() and token.text.lower() in WORDS_OF_CONDITION | WORDS_BETWEEN

    def _name_here(self) -> int | None:
        return self.words.base_at(self.tokens, self.i) or None

    def statement(self, *, aside: bool) -> Statement:
        left = self.aside_or_relation()
        node, parenthesized = left
        arrow, then = "", None
        while self.token is not None and self.token.sort == "gap" and self.peek(1) in ARROWS:
            self.i += 1
        if self.peek() in ARROWS:
            arrow = self.next().text
            while self.token is not None and self.token.sort == "gap":
                self.i += 1
            then = self.relation()
        return Statement(node, arrow, then, aside or parenthesized)

    def aside_or_relation(self) -> tuple[Node, bool]:
        """Read a statement; a relation in parentheses alone is a condition."""
        end = _matching(self.tokens, self.i)
        if end and (end + 1 == len(self.tokens) or self.tokens[end + 1].sort == "gap"):
            inner = self.inside(self.tokens[self.i + 1 : end])
            node = inner.relation()
            if isinstance(node, Relation) and inner.token is None:
                self.i = end + 1
                return node, True
        return self.relation(), False

    def relation(self) -> Node:
        sides, signs = [self.sum()], []
        while self.peek() in RELATIONS:
            sign = self.next().text
            if sign == r"\not":
                follows = self.next()
                if follows.text != r"\ni":
                    raise self.fail("cannot be read", self.i - 1)
                sign = r"\not\ni"
            signs.append(sign)
            if sign == r"\in" and self.peek() == r"\mathbb":
                sides.append(self.number_set())
            else:
                sides.append(self.sum())
        return Relation(tuple(signs), tuple(sides)) if signs else sides[0]

    def number_set(self) -> Node:
        """Read a set of numbers such as the real matrices of a shape."""
        self.next()
        text = rf"\mathbb {self.next().text}"
        if self.accept("^"):
            text += "^{" + "".join(token.text for token in self.group()) + "}"
        return Name(text)

    # ------------------------------------------------------------------ sums and products

    def sum(self) -> Node:
        negative = self.peek() == "-"
        if self.peek() in ("-", "+"):
            self.i += 1
        first = self.term()
        terms = [Negative(first) if negative else first]
        while self.peek() in ("+", "-"):
            negative = self.next().text == "-"
            term = self.term()
            terms.append(Negative(term) if negative else term)
        return terms[0] if len(terms) == 1 else Add(tuple(terms))

    def term(self) -> Node:
        left = self.chain()
        while True:
            if self.peek() in SIGNS:
                sign = self.next().text
                left = Binary(sign, left, self.chain())
            elif self.peek() == "|" and self.peek(1) == "_":
                self.i += 2
                where = self.whole(self.group())
                if not (
                    isinstance(where, Relation)
                    and where.signs == ("=",)
                    and isinstance(where.sides[0], Name)
                ):
                    raise self.fail("here a name is set to a value, as in |_{t=0}", self.i - 1)
                left = At(left, where.sides[0], where.sides[1])
            else:
                return left

    def stops(self) -> bool:
        token, key = self.token, self.peek()
        if token is None or token.sort == "gap":
            return True
        if token.sort == "text" and self._connects(token):
            return True
        if token.text in (r"\lvert", r"\rvert"):
            return token.text == r"\rvert"
        if key == "|":
            # A name may begin with a bar, such as the size of a set.
            return bool(self.bars and self.bars[-1] == "|") or self.peek(1) == "_"
        return key in STOPS or key in SIGNS or key in RELATIONS or key in ARROWS

    def chain(self) -> Node:
        if self.stops():
            raise self.fail("a factor is missing here")
        factors = [self.factor()]
        while not self.stops():
            factors.append(self.factor())
        return factors[0] if len(factors) == 1 else Product(tuple(factors))

    # ------------------------------------------------------------------ factors

    def factor(self) -> Node:
        token = self.token
        if token is None:
            raise self.fail("something is missing")
        start, key = self.i, token.key
        if self._name_here():
            return self.name()
        if token.sort == "number":
            self.i += 1
            return self.scripts(Number(token.text))
        if key == r"\frac":
            return self.fraction()
        if key == r"\binom":
            self.i += 1
            top = self.whole(self.group())
            return self.scripts(Binomial(top, self.whole(self.group())))
        if key == r"\sqrt":
            return self.root()
        if key == r"\nabla":
            return self.nabla()
        if key in BIG:
            return self.big(self.next().text)
        if key == r"\arg":
            self.i += 1
            return self.big(rf"\arg{self.next().text}")
        if key in EXTREMES and self.peek(1) == "_":
            return self.big(self.next().text)
        if key == DIAGONAL and self.peek(1) == "_":
            return self.scripts(self.big(self.next().key))
        if key == r"\lim":
            return self.limit()
        if self.moment():
            return self.expectation()
        if key == r"\mathbb" and self.peek(1) == "1" and self.peek(2) == "[":
            self.i += 3
            body = self.relation()
            self.expect("]")
            return self.scripts(Bars("indicator", (body,)))
        if key in FUNCTIONS:
            return self.function(Name(self.next().key))
        if key == r"\begin":
            return self.scripts(self.environment())
        if key in CLOSE or key == "|":
            return self.scripts(self.brackets())
        if key == "{":
            return self.scripts(self.whole(self.group()))
        if key in (r"\overline", r"\bar") and self._is_mean():
            self.i += 1
            return self.scripts(Bars("mean", (self.whole(self.group()),)))
        if key in (r"\dots", r"\cdots", r"\vdots", r"\ddots", ".."):
            raise self.fail("dots cannot be read")
        if token.sort == "text" and " " in token.text:
            raise self.fail("words cannot be read")
        if token.sort in ("letter", "word", "command", "text"):
            if token.sort == "command" and not token.text[1:].isalpha():
                raise self.fail("cannot be read", start)
            return self.name()
        raise self.fail("cannot be read", start)

    def _is_mean(self) -> bool:
        inner = self.inside(self.tokens[self.i + 1 :])
        tokens = inner.group()
        return len(tokens) > 1

    def name(self) -> Node:
        count = self.words.base_at(self.tokens, self.i)
        if not count:
            ahead = self.inside(self.tokens[self.i :])
            while ahead.peek() in ACCENTS | FONTS:
                ahead.i += 1
            ahead._braced()
            count = ahead.i
        base = tuple(token.key for token in self.tokens[self.i : self.i + count])
        self.i += count
        sub, sup, primes = self.raw_scripts()
        all_primes = primes
        node, sub, sup, primes = self.known(base, sub, sup, primes)
        if primes and isinstance(node, Name) and node.text not in self.words.functions | FUNCTIONS:
            # A prime at what is no function makes another name.
            node, primes = Name(text_of((base, (), (), all_primes))), 0
        if sub:
            node = Index(node, self.indices(sub))
        function = self.is_function(node)
        for _ in range(primes):
            node = Derivative("prime", node, ())
        if function and self.peek() in ("(", "["):
            node = self.power(self.application(node), sup)
        elif function and primes == 0 and node.__class__ is Name and self.takes_argument(node):
            node = self.function(node) if not sup else self.power(node, sup)
        else:
            node = self.power(node, sup)
        return self.scripts(node)

    def takes_argument(self, node: Node) -> bool:
        """Whether a function in roman type stands before its argument without parentheses."""
        assert isinstance(node, Name)
        return node.text.startswith(r"\mathrm{") and not self.stops() and self.peek() != "("

    def is_function(self, node: Node) -> bool:
        base = node.base if isinstance(node, Index) else node
        if not isinstance(base, Name):
            return False
        if base.text in self.words.key:
            if base.text in self.words.quantities and (
                isinstance(node, Index) or self._is_factor_before(base.text)
            ):
                return False
            return base.text in self.words.functions
        # Without a reading: a word, or more than one argument.
        if self.peek() != "(":
            return False
        end = _matching(self.tokens, self.i)
        depth, several = 0, False
        for token in self.tokens[self.i + 1 : end]:
            depth += (token.text in "([") - (token.text in ")]")
            several |= depth == 0 and token.text in SEPARATORS
        word = base.text.startswith(r"\mathrm{") and base.text != IMAGINARY
        return word or several

    def _is_factor_before(self, text: str) -> bool:
        """Whether a quantity is a factor, as in p(1-p): a sum with a number or itself follows."""
        end = _matching(self.tokens, self.i)
        if not end:
            return False
        inner = self.inside(self.tokens[self.i + 1 : end])
        node = inner.relation()
        if inner.token is not None or not isinstance(node, Add):
            return False
        bare = [term.body if isinstance(term, Negative) else term for term in node.terms]
        return any(isinstance(one, Number) or one == Name(text) for one in bare)

    def raw_scripts(self) -> tuple[list[Token], list[Token], int]:
        sub: list[Token] = []
        sup: list[Token] = []
        primes = 0
        while True:
            if self.peek() == "_" and not sub:
                self.i += 1
                sub = self.group()
            elif self.peek() == "^" and not sup:
                self.i += 1
                sup = self.group()
                while sup and sup[0].text in ("'", r"\prime"):
                    sup, primes = sup[1:], primes + 1
            elif self.peek() == "'":
                self.i += 1
                primes += 1
            else:
                return sub, sup, primes

    def known(
        self, base: Keys, sub: list[Token], sup: list[Token], primes: int
    ) -> tuple[Node, list[Token], list[Token], int]:
        """Take as much of a decorated name as the reading knows; return what is left over."""
        tail: list[Token] = []
        if len(sup) > 1 and sup[-1].text in (r"\top", "*"):
            sup, tail = sup[:-1], sup[-1:]
            if sup[-1].text == "-":  # an inverse transpose
                sup, tail = [], [*sup, *tail]
        low, high = plain(sub), plain(sup)
        for count in dict.fromkeys((primes, 0)):
            for use_low, use_high in ((True, True), (True, False), (False, True), (False, False)):
                if (use_low and not sub) or (use_high and not sup):
                    continue
                text = self.words.find(
                    base, low if use_low else (), high if use_high else (), count
                )
                if text is not None:
                    left = tail if use_high else [*sup, *tail]
                    return Name(text), [] if use_low else sub, left, primes - count
        # A sign or a word below, or an upper index that is no operation, belongs to the name.
        if low in _MARKS or (len(low) == 1 and low[0].startswith(r"\mathrm{")):
            return Name(text_of((base, low, (), primes))), [], [*sup, *tail], 0
        word = bool(high) and high[0].startswith(r"\mathrm{") and high[0] != IMAGINARY
        if word or (high and high[0] in ("*", "(")):
            return Name(text_of((base, (), high, primes))), sub, tail, 0
        return Name(text_of((base, (), (), primes))), sub, [*sup, *tail], 0

    def indices(self, tokens: list[Token]) -> tuple[Node, ...]:
        """Read lower indices: names side by side are several indices, as in s_{ij}."""
        inner = self.inside(tokens)
        found: list[Node] = []
        while inner.token is not None:
            if inner.accept(","):
                continue
            if inner.accept(":"):
                found.append(Slice(":"))
            elif inner.peek() == r"\cdot":
                inner.i += 1
                found.append(Slice(r"\cdot"))
            elif inner.peek() in ("<", r"\le", ">", r"\ge"):
                sign = inner.next().text
                found.append(Slice(sign, inner.sum()))
            else:
                node = inner.sum()
                if inner.accept("..") or inner.accept(":"):
                    found.append(Slice("..", inner.sum(), node))
                elif isinstance(node, Product) and all(
                    isinstance(f, Name | Index) for f in node.factors
                ):
                    found += node.factors
                else:
                    found.append(node)
        return tuple(found)

    def power(self, node: Node, sup: list[Token]) -> Node:
        if not sup:
            return node
        keys = plain(sup)
        if keys == (r"\top",):
            return Transpose(node)
        if keys == ("-", r"\top"):
            return Transpose(Power(node, Negative(Number("1"))))
        if keys in (("+",), ("*",)):
            return Postfix(node, keys[0])
        if keys == ("+", r"\top"):
            return Transpose(Postfix(node, "+"))
        return Power(node, self.whole(sup))

    def scripts(self, node: Node) -> Node:
        """Read what follows a factor: indices, powers, factorials."""
        while True:
            if self.peek() == "_":
                self.i += 1
                node = Index(node, self.indices(self.group()))
            elif self.peek() == "^":
                self.i += 1
                node = self.power(node, self.group())
            elif self.accept("!"):
                node = Factorial(node)
            else:
                return node

    # ------------------------------------------------------------------ functions

    def arguments(self) -> tuple[tuple[Node, ...], tuple[str, ...]]:
        close = CLOSE[self.next().text]
        self.bars.append(close)
        arguments: list[Node] = []
        separators: list[str] = []
        while self.peek() != close:
            if self.peek() == r"\cdot" and self.peek(1) in SEPARATORS | {close}:
                self.i += 1
                arguments.append(Name(r"\cdot"))
            else:
                arguments.append(self.sum())
                if self.peek() in RELATIONS:
                    raise self.fail(
                        "a relation is no argument; let a key of the reading be the whole name, "
                        'as in "P(X>x)"'
                    )
            if self.peek() in SEPARATORS:
                separators.append(self.next().text)
            elif self.peek() != close:
                raise self.fail(f"{close} or a comma is expected here")
        self.expect(close)
        self.bars.pop()
        return tuple(arguments), tuple(separators)

    def application(self, function: Node) -> Node:
        arguments, separators = self.arguments()
        plain_commas = all(sign == "," for sign in separators)
        return Apply(function, arguments, () if plain_commas else separators)

    def function(self, function: Node) -> Node:
        """Read the argument of a function, with parentheses or without."""
        sub, sup, primes = self.raw_scripts()
        if sub:
            function = Index(function, self.indices(sub))
        for _ in range(primes):
            function = Derivative("prime", function, ())
        if self.peek() in ("(", "["):
            return self.scripts(self.power(self.application(function), sup))
        factors = [self.factor()]
        while not self.stops() and self.peek() != "(" and not self._is_operator():
            factors.append(self.factor())
        body = factors[0] if len(factors) == 1 else Product(tuple(factors))
        return self.power(Apply(function, (body,)), sup)

    def _is_operator(self) -> bool:
        key = self.peek()
        return key in FUNCTIONS or key in BIG or key in EXTREMES or self.moment() is not None

    def fraction(self) -> Node:
        self.next()
        top, bottom = self.group(), self.group()
        if bottom and top and bottom[0].text == top[0].text:
            sign = bottom[0].text
            # The letter d is also a width, and then d_k or d may stand below.
            d_is_read = bool(self.words.find(("d",), (), (), 0)) or (
                len(bottom) > 1 and bottom[1].text in ("_", "^")
            )
            if len(bottom) > 1 and (sign == r"\partial" or (sign == "d" and not d_is_read)):
                return self.scripts(self.derivative(sign, top, bottom))
        return self.scripts(Fraction(self.whole(top), self.whole(bottom)))

    def derivative(self, sign: str, top: list[Token], bottom: list[Token]) -> Node:
        upper, lower = self.inside(top[1:]), self.inside(bottom)
        if upper.accept("^"):
            upper.group()
        by: list[Node] = []
        while lower.accept(sign):
            target = lower.factor()
            times = 1
            if isinstance(target, Power) and isinstance(target.exponent, Number):
                times, target = int(target.exponent.text), target.base
            by += [target] * times
        if lower.token is not None or not by:
            raise lower.fail("a derivative is expected here")
        if upper.token is not None:
            body = upper.sum()
            if upper.token is not None:
                raise upper.fail("cannot be read here")
        else:
            body = self.chain()
        return Derivative("partial" if sign == r"\partial" else "d", body, tuple(by))

    def nabla(self) -> Node:
        self.next()
        by: tuple[Node, ...] = ()
        times = 1
        while self.peek() in ("_", "^"):
            if self.next().text == "_":
                by = (self.whole(self.group()),)
            else:
                times = int("".join(token.text for token in self.group()))
        body = self.factor()
        return Derivative("nabla", body, by * times if by else ())

    def root(self) -> Node:
        self.next()
        degree = None
        if self.accept("["):
            degree = self.sum()
            self.expect("]")
        return self.scripts(Root(self.whole(self.group()), degree))

    def moment(self) -> str | None:
        if self.peek() == r"\mathbb" and self.peek(1) == "E":
            return r"\mathbb E"
        return MOMENTS.get(self.peek())

    def expectation(self) -> Node:
        sign = self.moment()
        assert sign is not None
        self.i += 2 if sign == r"\mathbb E" else 1
        law = text_of(((sign,), plain(self.group()), (), 0)) if self.accept("_") else sign
        if self.peek() in ("[", "("):
            close = CLOSE[self.next().text]
            self.bars.append(close)
            body = self.relation()
            self.expect(close)
            self.bars.pop()
            return self.scripts(Expect(sign, law, body))
        return Expect(sign, law, self.term())

    def limit(self) -> Node:
        self.next()
        self.expect("_")
        where = self.whole(self.group())
        if not (isinstance(where, Relation) and where.signs == (r"\to",)):
            raise self.fail("a limit needs a name and where it goes", self.i - 1)
        name, to = where.sides
        if not isinstance(name, Name):
            raise self.fail("a limit needs a name and where it goes", self.i - 1)
        return Limit(name, to, self.term())

    def big(self, sign: str) -> Node:
        low: list[Token] = []
        high: list[Token] = []
        while self.peek() in ("_", "^"):
            if self.next().text == "_":
                low = self.group()
            else:
                high = self.group()
        if not low:
            raise self.fail("say over which index it runs")
        op = self.domain(sign, low)
        if high:
            op = replace(op, high=self.whole(high))
        if sign == DIAGONAL:
            if self.peek() not in ("(", "["):
                raise self.fail("what stands on the diagonal is expected here, in parentheses")
            return replace(op, body=self.brackets())
        if self.accept("-"):
            return replace(op, body=Negative(self.term()))
        return replace(op, body=self.term())

    def domain(self, sign: str, tokens: list[Token]) -> BigOp:
        """Read what stands below a sum sign: names, a start, a condition."""
        hole = Number("0")
        inner = self.inside(tokens)
        colon = [i for i, t in enumerate(tokens) if t.text in (":", r"\colon", r"\mid")]
        names: list[Name] = []
        rest = tokens
        if colon:
            head = self.inside(tokens[: colon[0]])
            rest = tokens[colon[0] + 1 :]
            while head.token is not None:
                if not head.accept(","):
                    names.append(self._index_name(head))
            return BigOp(sign, tuple(names), hole, condition=self.whole(rest))
        items: list[Node] = [inner.relation()]
        while inner.accept(","):
            items.append(inner.relation())
        if inner.token is not None:
            raise inner.fail("cannot be read here")
        *others, last = items
        for item in others:
            if not isinstance(item, Name):
                raise self.fail("cannot be read below a sum sign", self.i - 1)
            names.append(item)
        if isinstance(last, Product) and all(isinstance(f, Name) for f in last.factors):
            names += [f for f in last.factors if isinstance(f, Name)]
            return BigOp(sign, tuple(names), hole)
        if isinstance(last, Name):
            return BigOp(sign, (*names, last), hole)
        if isinstance(last, Relation):
            left = last.sides[0]
            if isinstance(left, Name) and last.signs == ("=",):
                return BigOp(sign, (*names, left), hole, low=last.sides[1])
            if isinstance(left, Name):
                return BigOp(sign, (*names, left), hole, condition=last)
        raise self.fail("cannot be read below a sum sign", self.i - 1)

    @staticmethod
    def _index_name(parser: "_Parser") -> Name:
        node = parser.name()
        if not isinstance(node, Name):
            raise parser.fail("an index is expected here", parser.i - 1)
        return node

    # ------------------------------------------------------------------ brackets

    def brackets(self) -> Node:
        token = self.next()
        opening = token.text
        close = r"\rvert" if opening == r"\lvert" else CLOSE.get(opening, "|")
        self.bars.append(close)
        if opening == r"\lfloor":
            body = self.sum()
            sort = "floor" if self.peek() == r"\rfloor" else "round"
            if not self.accept(r"\rfloor", r"\rceil"):
                raise self.fail(r"\rfloor is expected here")
            self.bars.pop()
            return Bars(sort, (body,))
        items = [self.relation()]
        signs = set()
        while self.peek() in (",", ";"):
            signs.add(self.next().text)
            items.append(self.relation())
        self.expect(close)
        self.bars.pop()
        if opening == r"\lVert":
            kind = ""
            if self.accept("_"):
                kind = "".join(t.text for t in self.group())
            return Bars("norm", (items[0],), kind)
        if opening in ("|", r"\lvert", r"\lceil"):
            return Bars("ceil" if opening == r"\lceil" else "abs", (items[0],))
        if opening == r"\langle":
            return Bars("inner" if len(items) > 1 else "mean", tuple(items), "angle")
        if len(items) > 1:
            return Tuple(tuple(items), "[" if ";" in signs else "(")
        return items[0]

    def environment(self) -> Node:
        self.next()
        start = self.i + 1
        style = "".join(token.text for token in self.group())
        if style not in ("pmatrix", "bmatrix", "cases", "matrix"):
            raise self.fail(f"the environment {style} cannot be read", start)
        rows: list[list[Node]] = [[]]
        conditions: list[Node | None] = []
        while self.peek() != r"\end":
            if self.accept("&"):
                if style == "cases":
                    conditions.append(self.condition())
            elif self.accept(r"\\"):
                rows.append([])
            else:
                rows[-1].append(self.relation())
        self.next()
        self.group()
        rows = [row for row in rows if row]
        if style == "cases":
            if len(conditions) != len(rows):
                raise self.fail("each case needs a condition", self.i - 1)
            return Cases(tuple(row[0] for row in rows), tuple(conditions))
        if len({len(row) for row in rows}) != 1:
            raise self.fail("the rows of the matrix differ in length", self.i - 1)
        return Matrix(tuple(map(tuple, rows)), style)

    def condition(self) -> Node | None:
        if self.token is not None and self.token.sort == "text":
            word = self.token.text.strip().lower()
            if word in ("otherwise", "else"):
                self.i += 1
                return None
            if word in WORDS_OF_CONDITION:
                self.i += 1
        found = [self.relation()]
        while self.accept(","):
            found.append(self.relation())
        return found[0] if len(found) == 1 else Tuple(tuple(found), ",")
