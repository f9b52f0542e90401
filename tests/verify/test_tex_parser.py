"""The reader's grammar: what a formula says, what cannot be read, and printing as the inverse."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lark.exceptions import UnexpectedInput
from sympy.parsing.latex import parse_latex

from companion.verify.tex import TexError
from companion.verify.tex._evaluate import evaluate
from companion.verify.tex._lexicon import Lexicon, forms_of, text_of
from companion.verify.tex._nodes import (
    Add,
    Apply,
    Bars,
    BigOp,
    Binary,
    Binomial,
    Factorial,
    Fraction,
    Index,
    Name,
    Negative,
    Number,
    Power,
    Product,
    Relation,
    Root,
    Transpose,
    nodes_of,
    put,
)
from companion.verify.tex._parser import parse
from companion.verify.tex._printer import to_tex
from companion.verify.tex._reading import Scope

VALUES = {"x": 0.7, "y": 1.3, "z": 2.1, "tau": 0.4, "W_0": 1.9}
NAMES = {"x": "x", "y": "y", "z": "z", r"\tau": "tau", "W_0": "W_0"}
ROW = [0.3, 1.1, 0.8]


def side(tex, **names):
    """The tree of an expression."""
    return (
        parse(f"q={tex}", Lexicon(names, [k for k, f in names.items() if f]))
        .statements[0]
        .relation.sides[1]
    )


def value(tex, **reading):
    """The value of an expression."""
    scope = Scope(reading)
    return float(evaluate(parse(f"q={tex}", scope.lexicon).statements[0].relation.sides[1], scope))


# -------------------------------------------------------------------- random trees, with values
# A strategy yields a recipe for a tree, and the tree's value as plain Python computes it, which is
# the oracle. The tree itself is made in the test: type checks use randomness of their own, which a
# strategy may not.


class Recipe(NamedTuple):
    """A node that is to be made: its class and what it is made of."""

    node: type
    parts: tuple
    named: dict


def make(node, *parts, **named):
    return Recipe(node, parts, named)


def made(part):
    """Make the tree of a recipe."""
    if isinstance(part, Recipe):
        named = {name: made(value) for name, value in part.named.items()}
        return part.node(*map(made, part.parts), **named)
    return tuple(map(made, part)) if isinstance(part, tuple) else part


def leaf():
    numbers = st.integers(1, 9).map(lambda n: (make(Number, str(n)), float(n)))
    decimals = st.sampled_from(["0.5", "1.25"]).map(lambda t: (make(Number, t), float(t)))
    names = st.sampled_from(list(NAMES)).map(lambda t: (make(Name, t), VALUES[NAMES[t]]))
    entries = st.integers(1, 3).map(
        lambda i: (make(Index, make(Name, "v"), (make(Number, str(i)),)), ROW[i - 1])
    )
    return st.one_of(numbers, decimals, names, entries)


def grow(inner):
    def add(parts):
        terms = tuple(make(Negative, t) if minus else t for (t, _), minus in parts)
        return make(Add, terms), sum(-v if minus else v for (_, v), minus in parts)

    def product(parts):
        return make(Product, tuple(t for t, _ in parts)), math.prod(v for _, v in parts)

    def no_add(part):
        return part[0].node not in (Add, Negative)

    factors = inner.filter(lambda p: p[0].node is not Product)
    signed = st.tuples(inner.filter(no_add), st.booleans())
    positive = inner.filter(lambda p: p[1] > 0.01)
    nonzero = inner.filter(lambda p: abs(p[1]) > 0.01)
    return st.one_of(
        st.lists(signed, min_size=2, max_size=3).map(add),
        st.lists(factors, min_size=2, max_size=3).map(product),
        st.tuples(inner, nonzero).map(
            lambda p: (make(Fraction, p[0][0], p[1][0]), p[0][1] / p[1][1])
        ),
        st.tuples(inner, nonzero).map(
            lambda p: (make(Binary, "/", p[0][0], p[1][0]), p[0][1] / p[1][1])
        ),
        st.tuples(inner, inner).map(
            lambda p: (make(Binary, r"\cdot", p[0][0], p[1][0]), p[0][1] * p[1][1])
        ),
        inner.map(lambda p: (make(Power, p[0], make(Number, "2")), p[1] ** 2)),
        inner.filter(no_add).map(lambda p: (make(Negative, p[0]), -p[1])),
        positive.map(lambda p: (make(Root, p[0]), math.sqrt(p[1]))),
        positive.map(lambda p: (make(Apply, make(Name, r"\log"), (p[0],)), math.log(p[1]))),
        inner.map(lambda p: (make(Apply, make(Name, r"\tanh"), (p[0],)), math.tanh(p[1]))),
        inner.map(lambda p: (make(Bars, "abs", (p[0],)), abs(p[1]))),
        st.tuples(inner, inner).map(
            lambda p: (
                make(Apply, make(Name, r"\max"), (p[0][0], p[1][0])),
                max(p[0][1], p[1][1]),
            )
        ),
        inner.map(
            lambda p: (
                make(
                    BigOp,
                    r"\sum",
                    (make(Name, "i"),),
                    make(Product, (make(Index, make(Name, "v"), (make(Name, "i"),)), p[0]))
                    if p[0].node is not Product
                    else make(Index, make(Name, "v"), (make(Name, "i"),)),
                    low=make(Number, "1"),
                    high=make(Number, "3"),
                ),
                sum(ROW) * (1.0 if p[0].node is Product else p[1]),
            )
        ),
        st.integers(0, 5).map(
            lambda n: (make(Factorial, make(Number, str(n))), float(math.factorial(n)))
        ),
        st.integers(2, 6).map(
            lambda n: (
                make(Binomial, make(Number, str(n)), make(Number, "2")),
                float(math.comb(n, 2)),
            )
        ),
    )


TREES = st.recursive(leaf(), grow, max_leaves=12).filter(
    lambda p: math.isfinite(p[1]) and abs(p[1]) < 1e12
)


@given(TREES)
@settings(max_examples=400, deadline=None)
def test_a_printed_tree_reads_as_the_same_tree_with_the_same_value(pair):
    tree, expected = made(pair[0]), pair[1]
    lexicon = Lexicon([*VALUES, "v"])
    again = parse(f"q={to_tex(tree)}", lexicon).statements[0].relation.sides[1]
    assert again == tree
    found = float(evaluate(again, Scope({**VALUES, "v": torch.tensor(ROW).double()})))
    # ROW has 24 bits here; sums of a dozen terms lose few of them.
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5 * max(1.0, abs(expected)))


def sympy_reads(node):
    """What SymPy's grammar shares with ours: no accents, decorations or functions of its own."""
    kinds = (Number, Name, Add, Negative, Product, Fraction, Power, Root, Factorial, Binomial)
    return all(
        isinstance(part, kinds) or (isinstance(part, Apply) and part.function == Name(r"\log"))
        for _, part in nodes_of(node)
    ) and not any(isinstance(part, Name) and part.text == "W_0" for _, part in nodes_of(node))


@given(TREES)
@settings(max_examples=200, deadline=None)
def test_sympys_parser_reads_the_same_value_where_it_reads_the_input(pair):
    tree = made(pair[0])
    if not sympy_reads(tree):
        return
    try:
        expression = parse_latex(to_tex(tree), backend="lark")
    except UnexpectedInput:  # such as 0!\,1: Hypothesis complains if these are many
        assume(False)
    if not hasattr(expression, "free_symbols"):
        return  # it found several meanings
    ours = float(evaluate(tree, Scope(VALUES)))
    theirs = complex(expression.subs({str(s): VALUES[str(s)] for s in expression.free_symbols}))
    assert theirs == pytest.approx(ours, rel=1e-9, abs=1e-9)


def test_every_place_of_a_tree_can_be_exchanged():
    tree = side(r"\sum_{i=1}^3v_i^2\,\frac{x}{y+1}")
    for path, node in nodes_of(tree):
        assert put(tree, path, node) == tree
        changed = put(tree, path, Name("zzz"))
        assert any(part == Name("zzz") for _, part in nodes_of(changed))


# ------------------------------------------------------------------------------ names and scripts


@pytest.mark.parametrize(
    ("key", "page"),
    [
        ("tau", r"\tau"),
        ("W_Q", "W^Q"),
        ("W_Q", "W_Q"),
        ("W^Q", "W^{Q}"),
        ("d_k", "d_k"),
        ("dX", "dX"),
        ("KL", r"\mathrm{KL}"),
        ("hat_p", r"\hat p"),
        (r"\hat p", r"\hat{p}"),
        ("theta_0", r"\theta_0"),
        (r"\ell'", r"\ell'"),
        (r"|\mathcal V|", r"|\mathcal V|"),
        ("I(X;Y)", "I(X;Y)"),
        (r"f^*", "f^*"),
        (r"N_{1+}(c\,\cdot)", r"N_{1+}(c\,\cdot)"),
        ("s0", "s_0"),
        (r"\hat{\mathcal L}", r"\hat{\mathcal L}"),
        ("Delta'", r"\Delta'"),
        ("W_Q'", r"W_Q'"),
        ("P(len>L)", r"P(\mathrm{len}>L)"),
        (r"x_{\mathrm A}", r"x_{\mathrm{A}}"),
    ],
)
def test_a_key_of_the_reading_names_what_the_page_writes(key, page):
    assert value(f"{page}+1", **{key: 2.5}) == 3.5


def test_one_identifier_has_several_spellings_and_a_string_has_one():
    texts = {text_of(form) for form in forms_of("W_Q")}
    assert {"W_Q", "W^Q"} <= texts
    assert [text_of(form) for form in forms_of(r"W^{Q}_i")] == ["W_i^Q"]


def test_letters_are_a_product_until_the_reading_joins_them():
    assert value("dX", d=2.0, X=5.0) == 10.0
    assert value("dX", d=2.0, X=5.0, dX=0.5) == 0.5


def test_a_name_with_a_lower_index_is_the_reading_s_before_it_is_an_entry():
    d = torch.tensor([3.0, 4.0]).double()
    assert value("d_2", d=d) == 4.0
    assert value("d_2", d=d, d_2=7.0) == 7.0


def test_an_upper_index_is_a_power_unless_the_reading_has_the_name():
    assert value("x^2", x=3.0) == 9.0
    assert value("x^k", x=3.0, k=2) == 9.0
    assert value("x^k", **{"x": 3.0, "k": 2, "x^k": 7.0}) == 7.0


# ----------------------------------------------------------------------------- the ambiguities


def test_parentheses_after_a_function_apply_it_and_after_a_number_multiply():
    assert value("f(x+1)", f=lambda t: t**2, x=2.0) == 9.0
    assert value("f(x+1)", f=10.0, x=2.0) == 30.0


def test_an_indexed_quantity_before_parentheses_is_a_factor():
    # a is a function of s, another name on the page; a_j(...) is a product.
    assert value("a_1(x+1)", a=lambda s: 2 * s, s=torch.tensor([3.0, 4.0]), x=1.0) == 12.0


def test_e_d_pi_and_i_mean_what_the_reading_says_or_their_constants():
    assert value("e^x", x=1.0) == pytest.approx(math.e)
    assert value("e^x", x=2.0, e=3.0) == 9.0
    assert value(r"2\pi") == pytest.approx(2 * math.pi)
    assert value(r"2\pi", pi=5.0) == 10.0
    assert value(r"\frac dh", d=6.0, h=3.0) == 2.0
    assert value(r"\sum_{i=1}^3i") == 6.0
    assert value("i", i=4.0) == 4.0


def test_an_i_in_roman_type_is_the_imaginary_unit_and_no_function():
    i = value(r"\mathrm{Re}(\mathrm i(x+\mathrm{i}y))", x=3.0, y=2.0)
    assert i == -2.0
    assert value(r"\mathrm i", **{r"\mathrm i": 7.0}) == 7.0
    assert value(r"\mathrm{Re}(e^{\mathrm i\pi/3})") == pytest.approx(0.5)
    rows = {"u": torch.tensor([2.0, 3.0]).double()}
    assert value(r"\mathrm{Re}\big(u\,(\mathrm iu)^\top\,\mathrm i\big)", **rows) == -13.0


def test_a_function_of_as_many_arguments_as_indices_is_a_factor_before_parentheses():
    assert value("R_3(x+1)", R=lambda k: 10 * k, x=2.0) == 90.0
    assert value("R_3(x+1)", R=lambda k, t: k + t, x=2.0) == 6.0


def test_a_whole_number_is_its_own_floor_and_ceiling_however_it_was_computed():
    for base, power in ((3, 5), (5, 3), (10, 3), (7, 9)):
        names = {"k": base, "n": base**power}
        assert value(r"\lceil\log_kn\rceil", **names) == power
        assert value(r"\lfloor\log_kn\rfloor", **names) == power
        assert value(r"\lceil\log_k(n+1)\rceil", **names) == power + 1
        assert value(r"\lfloor\log_k(n-1)\rfloor", **names) == power - 1
        assert value(r"\Big\lfloor\frac{\log n}{\log k}\Big\rfloor", **names) == power
    assert value(r"\lfloor x\rceil", x=2.5) == 2.0  # halves to the even one
    assert value(r"\lfloor n\rfloor", n=-7) == -7.0


def test_what_is_printed_of_new_notations_reads_as_the_same():
    for tex in (
        r"\mathrm{diag}_i(a_i)B",
        r"\mathrm{diag}_{i}(a_i+1)^2",
        r"X^{+\top}",
        r"\tanh''(x)",
        r"\sum_{k}\sum_{M:|M|=k}\prod_{i\in M}p_i",
        r"e^{\mathrm i(x+y)}",
    ):
        tree = side(tex)
        assert side(to_tex(tree)) == tree


def test_aligned_lines_go_on_or_begin_a_statement():
    lines = (
        r"\begin{aligned}a&=b\\&=c,\\d&=e+\begin{pmatrix}1&2\\3&4\end{pmatrix}\\&-f\end{aligned}"
    )
    one = r"a=b=c,\qquad d=e+\begin{pmatrix}1&2\\3&4\end{pmatrix}-f"
    assert parse(lines) == parse(one)
    assert parse(lines.replace("aligned", "split")) == parse(one)


def test_t_is_a_name_and_top_a_transpose():
    x = torch.tensor([[1.0, 2.0, 3.0]]).double()
    assert value("x^T", x=2.0, T=3) == 8.0
    assert isinstance(side(r"X^\top"), Transpose)
    assert value(r"u\,u^\top", u=x[0]) == 14.0


def test_bars_are_magnitudes_sizes_norms_or_separators():
    assert value("|x|+1", x=-2.0) == 3.0
    assert value(r"|\mathcal M|", **{r"\mathcal M": {2, 5, 7}}) == 3.0
    assert value(r"\lVert u\rVert_1", u=torch.tensor([3.0, -4.0])) == 7.0
    assert value(r"P(x\mid y)", P=lambda a, b: a - b, x=5.0, y=3.0) == 2.0
    assert value(r"\mathrm{KL}(p\Vert q)", KL=lambda a, b: a - b, p=5.0, q=3.0) == 2.0


def test_limits_at_a_point_and_at_infinity():
    # Five points at steps of 1/16 to 1/256 take four orders off the error: (1/16)^5 is 1e-6, and
    # the product of the steps 2^-30 is 1e-9.
    for tex, expected in (
        (r"\lim_{h\to0}\frac{e^{xh}-1}{h}", 0.7),
        (r"\lim_{h\to x}\frac{h^3-x^3}{h-x}", 3 * 0.49),
        (r"\lim_{h\to0}\frac{\log(1+h)}{h}", 1.0),
        (r"\lim_{n\to\infty}\big(1+\frac xn\big)^n", math.exp(0.7)),
    ):
        assert value(tex, x=0.7) == pytest.approx(expected, abs=1e-8)


MATRIX = [[2.0, -3.0, 5.0], [7.0, 11.0, -1.0], [0.5, 4.0, 3.0]]


@pytest.mark.parametrize(
    ("tex", "expected"),
    [
        (r"\mathrm{tr}(A)", 16.0),
        (r"\det(A)", float(np.linalg.det(MATRIX))),
        (r"\mathrm{rank}(A)", 3.0),
        (r"\mathrm{rank}(u^\top v)", 1.0),
        (r"\mathrm{diag}(u)", np.diag([3.0, -4.0, 0.5])),
        (r"\mathrm{softmax}(u)", scipy.special.softmax([3.0, -4.0, 0.5])),
        (r"\mathrm{softmax}(A)", scipy.special.softmax(MATRIX, axis=1)),
        (r"\mathrm{rowsum}(A)", [[4.0], [17.0], [7.5]]),
        (r"\mathrm{sign}(u)", [1.0, -1.0, 1.0]),
        (r"\mathrm{relu}(u)", [3.0, 0.0, 0.5]),
        (r"\mathrm{clip}(u,-1,2)", [2.0, -1.0, 0.5]),
        (r"\max(u)", 3.0),
        (r"\min(u)", -4.0),
        (r"\max(u,1,v)", [3.0, 2.0, 1.0]),
        (r"\min(u,1,v)", [-5.0, -4.0, 0.5]),
        (r"\exp(u)", np.exp([3.0, -4.0, 0.5])),
        (r"\sin(u)", np.sin([3.0, -4.0, 0.5])),
        (r"\tan(u)", np.tan([3.0, -4.0, 0.5])),
        (r"\sinh(u)", np.sinh([3.0, -4.0, 0.5])),
        (r"\cosh(u)", np.cosh([3.0, -4.0, 0.5])),
        (r"\ln(7)", math.log(7)),
        (r"\lVert u\rVert", math.sqrt(25.25)),
        (r"\lVert u\rVert_2", math.sqrt(25.25)),
        (r"\lVert u\rVert_\infty", 4.0),
        (r"\lVert A\rVert_F", np.linalg.norm(MATRIX)),
        (r"\lVert A\rVert_2", np.linalg.norm(MATRIX, 2)),
        (r"2\pi", 2 * math.pi),
    ],
)
def test_a_function_of_the_page_means_what_numpy_means_by_it(tex, expected):
    rows = {"A": MATRIX, "u": [3.0, -4.0, 0.5], "v": [-5.0, 2.0, 1.0]}
    scope = Scope({k: torch.tensor(v, dtype=torch.float64) for k, v in rows.items()})
    made = evaluate(parse(f"q={tex}", scope.lexicon).statements[0].relation.sides[1], scope)
    np.testing.assert_allclose(np.asarray(made), expected, rtol=1e-13)


def test_scripts_bind_tighter_than_functions_and_functions_tighter_than_signs():
    assert value(r"\log x^2", x=3.0) == pytest.approx(math.log(9))
    assert value(r"x\log x+1", x=3.0) == pytest.approx(3 * math.log(3) + 1)
    assert value(r"\log x\,(y+1)", x=3.0, y=1.0) == pytest.approx(2 * math.log(3))
    assert value(r"\cos xy", x=0.3, y=0.5) == pytest.approx(math.cos(0.15))
    assert value(r"\tanh^2x", x=0.4) == pytest.approx(math.tanh(0.4) ** 2)
    assert value(r"\log_2x", x=8.0) == pytest.approx(3.0)


def test_factors_side_by_side_bind_tighter_than_a_slash():
    assert value("a/bc", a=6.0, b=3.0, c=2.0) == 1.0
    assert value(r"x\cdot y/z", x=6.0, y=2.0, z=4.0) == 3.0


def test_a_sum_takes_the_rest_of_its_term():
    v = torch.tensor([1.0, 2.0, 4.0]).double()
    assert value(r"2\sum_iv_i\cdot x+1", v=v, x=3.0) == 43.0
    assert value(r"\sum_iv_i\sum_jv_j", v=v) == 49.0


def test_tex_takes_one_digit_where_it_has_no_braces():
    assert value(r"\frac12x", x=3.0) == 1.5
    assert value(r"\frac12") == 0.5
    assert value("x^23", x=2.0) == 12.0


def test_conditions_words_and_several_statements_are_told_apart():
    display = parse(r"a=b,\qquad c=d\qquad\text{for }j\le i")
    assert [s.aside for s in display.statements] == [False, False, True]
    both = parse(r"x_\pm=1\pm y").statements
    assert [to_tex(s.relation) for s in both] == ["x_+= 1+y", "x_-= 1-y"]
    assert isinstance(parse(r"a<b\le c").statements[0].relation, Relation)


# ------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("tex", "reason", "place"),
    [
        (r"a=b+", "factor is missing", None),
        (r"a=(b", r"\) is expected", None),
        (r"a=b)", "cannot be read here", ")"),
        (r"a=x_1+\dots+x_n", "dots cannot be read", r"\dots"),
        (r"\text{peak bytes}=n", "words cannot be read", r"\text"),
        (r"a=\begin{align}b\end{align}", "environment align", "align}"),
        (r"a=\sum x", "over which index", "x"),
        (r"a=\begin{pmatrix}1&2\\3\end{pmatrix}", "rows of the matrix", None),
        (r"a=\begin{cases}1\\2&x>1\end{cases}", "each case needs", None),
        (r"a=\lim_{N}x", "a limit needs", None),
        (r"a=f(x,y>z)", "no argument", ">z"),
        (r"a=\mathrm{diag}_i a_i", "in parentheses", "a_i"),
        (r"\begin{aligned}a&=b", "do not match", r"\begin"),
    ],
)
def test_an_unreadable_formula_is_refused_with_a_caret_under_the_token(tex, reason, place):
    with pytest.raises(TexError, match=reason) as caught:
        parse(tex)
    _, shown, caret = str(caught.value).split("\n")
    if place is not None:
        assert shown[caret.index("^") :].startswith(place)


def test_the_caret_stands_under_the_token_in_a_long_line():
    tex = "a=" + "+".join(["x"] * 60) + r"+\dots+" + "+".join(["y"] * 60)
    with pytest.raises(TexError) as caught:
        parse(tex)
    _, shown, caret = str(caught.value).split("\n")
    assert shown[caret.index("^") :].startswith(r"\dots")
    assert caught.value.position == tex.index(r"\dots")
