"""The power of a check: every slip is refused, for the right reason, and survivors are named."""

# ruff: noqa: E501 - a formula stands on one line

import re

import pytest
import torch

from companion.foundations.cross_entropy import entropy, logsumexp, softmax
from companion.verify import VerificationError, generic
from companion.verify.tex import TexError, over, samples, table
from companion.verify.tex._mutants import mutants_of
from companion.verify.tex._nodes import Number
from companion.verify.tex._page import check
from companion.verify.tex._parser import parse
from companion.verify.tex._printer import to_tex


def draw(*shape, seed=0):
    return generic(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def info_nce(u, v, tau):
    return torch.nn.functional.cross_entropy(u @ v.T / tau, torch.arange(len(u)))


def attention(Q, K, V, d_k):
    return torch.softmax(Q @ K.T / d_k**0.5, -1) @ V


PAIR = {"L": info_nce, "u": draw(3, 5), "v": draw(3, 5, seed=1), "N": 3, "tau": 0.7}
LORA = {
    "Y": lambda X, W_0, A, B, alpha, r: torch.nn.functional.linear(X, (W_0 + alpha / r * A @ B).T),
    "X": draw(5, 7),
    "W_0": draw(7, 3),
    "A": draw(7, 2),
    "B": draw(2, 3),
    "alpha": 1.7,
    "r": 2,
}
BACKWARD = {
    "O": lambda A, V: A @ V,
    "A": lambda S: torch.softmax(S, -1),
    "S": lambda Q, K, d_k: Q @ K.T / d_k**0.5,
    "Q": draw(2, 5),
    "K": draw(3, 5),
    "V": draw(3, 4),
    "dO": draw(2, 4),
    "d_k": 5,
}
FORMULAS = {
    "infonce": (
        r"L=-\frac1N\sum_{i=1}^N\log\frac{e^{u_i\cdot v_i/\tau}}{\sum_{j=1}^Ne^{u_i\cdot v_j/\tau}}",
        PAIR,
        {},
        # u_1 in the numerator of each: no, that is refused. What stays true:
        set(),
    ),
    "lora": (r"Y=XW_0+\frac\alpha r\,(XA)\,B=X\Big(W_0+\frac\alpha rAB\Big)", LORA, {}, set()),
    "backward": (
        r"dS=A\odot\big(dA-\mathrm{rowsum}(dA\odot A)\big),\qquad dQ=\frac{dS\,K}{\sqrt{d_k}}",
        BACKWARD,
        {"loss": lambda O, dO: (O * dO).sum()},  # noqa: E741
        set(),
    ),
}
SWAPS = {"+": "-", "-": "+", "i": "j", "j": "i", "1": "2", "2": "3", "u": "v", "v": "u"}
SWAPS |= {"A": "B", "B": "A", "K": "Q", "Q": "K", "N": "i"}


def slips(tex):
    """Change the text itself, one token at a time: exchanged, or dropped."""
    for match in re.finditer(r"\\[A-Za-z]+|[A-Za-z0-9]|[+\-/]", tex):
        token, start, end = match[0], *match.span()
        if tex[:start].endswith(("\\mathrm{", "rm{", "row", "rows", "ro")):
            continue
        if token in SWAPS:
            yield tex[:start] + SWAPS[token] + tex[end:]
        if token in (r"\log", r"\sqrt"):
            yield tex[:start] + tex[end:]
        if re.fullmatch(r"[A-Zuv]|\\alpha|\\tau", token) and tex[:start][-1:] not in "_^{=d":
            yield tex[:start] + " " + tex[end:]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_change_of_one_token_on_the_page_goes_unnoticed(name):
    tex, reading, options, still_true = FORMULAS[name]
    check("eq:test", tex, reading, **options)
    changed = [text for text in slips(tex) if text != tex and text not in still_true]
    assert len(changed) >= 10
    for text in changed:
        with pytest.raises((VerificationError, TexError)):
            check("eq:test", text, reading, **options)


@pytest.mark.parametrize(
    ("tex", "kinds"),
    [
        ("a+b-c", ["sign of a", "without b", "sign of c"]),
        (r"\frac{a}{b}", [r"\frac{a}{b} upside down", r"\frac{a}{b} with numerator 1"]),
        (r"X^\top Y", [r"X^{\top} not transposed", "without Y"]),
        (r"x^2", ["without its exponent", "3 for 2"]),
        (r"\sqrt{x}", ["without its root"]),
        (
            r"\sum_{i=1}^nx_i",
            [r"\sum from one later", r"\sum to one earlier", "index i moved by one"],
        ),
        (r"\sum_{j\le i}x_j", [r"\sum with <", r"\sum without its last term"]),
        (r"\sum_{j\ne i}x_j", [r"\sum over all"]),
        (
            r"s_{ij}",
            ["indices of s_{i,j} exchanged", "index i moved by one", "index j turned by one"],
        ),
        (r"\mathbb 1[i=j]", ["turned around"]),
        (r"\max_jx_j", [r"\min for \max"]),
        (r"\cos(x)", [r"without \cos", r"\sin for \cos", "sign of the argument"]),
        (r"\lVert x\rVert", ["as a sum of magnitudes"]),
        (r"\mathrm{KL}(p\Vert q)", ["arguments of"]),
        (r"a\cdot b", ["without a", "without b"]),
        (r"e^{-x}", ["exponent of e^{-x} with the other sign"]),
        (r"\begin{cases}a&i<j\\b&i\ge j\end{cases}", ["first two cases exchanged", "case 1 with"]),
        (r"\mathbb E[x^2]", ["power of the mean"]),
        (r"x_{<t}", ["for another in an index"]),
    ],
)
def test_each_slip_of_the_pen_is_among_the_mutants(tex, kinds):
    side = parse(f"q={tex}").statements[0].relation.sides[1]
    names = [name for name, _ in mutants_of(side)]
    for kind in kinds:
        assert any(kind in name for name in names), (kind, names)


def test_mutants_differ_from_the_formula_and_from_each_other():
    side = parse(FORMULAS["infonce"][0]).statements[0].relation.sides[1]
    made = list(mutants_of(side, alike={"u": "v", "v": "u", "i": "j", "j": "i"}))
    assert len(made) >= 30
    assert len({name for name, _ in made}) == len(made)
    trees = {tree for _, tree in made}
    assert len(trees) == len(made)
    assert side not in trees


def test_what_is_differentiated_is_not_changed():
    side = parse(r"q=\frac{\partial L}{\partial x_i}").statements[0].relation.sides[1]
    assert [name for name, _ in mutants_of(side, whole=False)] == []


def test_a_mutant_that_cannot_be_evaluated_is_no_evidence():
    # Of A B no factor can be dropped and no other name fits: only sign and factor are left.
    reading = {"Y": lambda A, B: torch.einsum("ij,jk->ik", A, B), "A": draw(2, 3), "B": draw(3, 5)}
    record = check("eq:test", "Y=AB", reading)
    assert record.mutants == (r"sign of A\,B", r"A\,B doubled")


# ------------------------------------------------------------------------------------- survivors


def test_a_part_that_does_not_matter_survives_and_is_named():
    reading = {"y": 2.0, "x": 2.0, "c": 0.0}
    with pytest.raises(VerificationError, match=r"accepts wrong versions.*sign of c; without c"):
        check("eq:test", "y=x+c", reading)


def test_an_equivalent_mutant_needs_its_name_and_a_reason():
    z = draw(5)
    reading = {
        "softmax": lambda t: torch.softmax(t, -1),
        "z": z,
        r"\mathbf 1": torch.ones(5).double(),
    }
    tex = r"\mathrm{softmax}(z+c\mathbf 1)=\mathrm{softmax}(z)"
    shift = "a shift of all logits changes nothing"
    names = [
        r"sign of c\,\mathbf 1",
        r"without c\,\mathbf 1",
        "without c",
        r"without \mathbf 1",
    ]
    with pytest.raises(VerificationError, match="accepts wrong versions"):
        check("eq:test", tex, reading | {"c": 0.4})
    record = check("eq:test", tex, reading | {"c": 0.4}, equivalent=dict.fromkeys(names, shift))
    assert not set(names) & set(record.mutants)
    with pytest.raises(VerificationError, match="say why"):
        check("eq:test", tex, reading | {"c": 0.4}, equivalent=dict.fromkeys(names, " "))


def test_a_mutant_called_equivalent_that_is_rejected_is_an_error():
    reading = {"y": 5.1, "x": 2.4, "c": 2.7}
    with pytest.raises(VerificationError, match="'sign of c' is called equivalent, but it is rej"):
        check("eq:test", "y=x+c", reading, equivalent={"sign of c": "no"})
    with pytest.raises(VerificationError, match=r"'sign of d' is called .* no such mutant"):
        check("eq:test", "y=x+c", reading, equivalent={"sign of d": "no"})


def test_a_statement_that_says_nothing_is_refused():
    with pytest.raises(VerificationError, match="states nothing"):
        check("eq:test", "x+y", {"x": 2.0, "y": 3.0})
    with pytest.raises(VerificationError, match="says too little"):
        check("eq:test", "0=0", {})


# --------------------------------------------------------------------------- errors of a reading


def test_names_without_a_reading_are_all_listed():
    with pytest.raises(VerificationError, match=r"lack a reading: \\alpha, X$"):
        check("eq:test", r"Y=\alpha X", {})
    with pytest.raises(VerificationError, match=r"lack a reading: \\mathbb E_\{p\(x\)\}"):
        check("eq:test", r"y=\mathbb E_{p(x)}[x^2]", {"y": 2.0, "x": 3.0})


def test_a_definition_has_no_index_but_its_own():
    x, b = draw(3, 5), draw(5)
    reading = {"X": x, "b": b, "y": x @ b.exp()}
    check("eq:test", r"y_i=\sum_jw_jX_{ij},\qquad w_j=e^{b_j}", reading)
    with pytest.raises(VerificationError, match="lack a reading: j"):
        check("eq:test", r"y_i=\sum_jw_jX_{ij},\qquad w_k=e^{b_j}", reading)


def test_a_wrong_formula_says_where_it_is_off():
    x = draw(4)
    with pytest.raises(VerificationError, match=r"differ by .* at i = 1"):
        check("eq:test", "y_i=x_i+1", {"x": x, "y": x + 2})


def test_shapes_that_do_not_fit_are_said():
    with pytest.raises(VerificationError, match=r"have the shapes \(5, 3\), \(3, 5\)"):
        check("eq:test", "X=Y", {"X": draw(5, 3), "Y": draw(3, 5)})
    with pytest.raises(VerificationError, match=r"product of shapes \(5, 3\) and \(5, 2\)"):
        check("eq:test", "Z=XY", {"X": draw(5, 3), "Y": draw(5, 2), "Z": draw(3, 2)})


def test_what_is_not_a_number_equals_nothing():
    with pytest.raises(VerificationError, match="not a number"):
        check("eq:test", r"y=\sqrt{1-x}", {"y": 2.0, "x": 3.0})
    with pytest.raises(VerificationError, match="not a number"):
        check("eq:test", r"y=x+0.5", {"y": float("nan"), "x": 3.0})
    # One entry is enough, and it may come up on either side.
    x = draw(4)
    root = torch.sqrt(x)
    assert 0 < int(root.isnan().sum()) < 4
    for tex in (r"y_i=\sqrt{x_i}", r"\sqrt{x_i}=y_i", r"y=\sqrt{x}"):
        with pytest.raises(VerificationError, match="not a number"):
            check("eq:test", tex, {"y": root.nan_to_num(0.7), "x": x})


def test_a_mean_may_be_off_by_five_standard_errors():
    n = 50_000
    x = torch.randn(n, generator=torch.Generator().manual_seed(0)).double()
    x = (x - x.mean()) / x.std()  # mean 0 and error 1/sqrt(n) are exact
    # The jackknife over 50 parts knows the error to a tenth.
    for off, holds in ((3.0, True), (-3.0, True), (7.0, False), (-7.0, False)):
        reading = {"E": samples(x=1.3 + x), "m": 1.3 + off / n**0.5}
        if holds:
            check("eq:test", r"\mathbb E[x]=m", reading)
        else:
            with pytest.raises(VerificationError, match="standard errors off, more than 5"):
                check("eq:test", r"\mathbb E[x]=m", reading)


def test_infinities_may_agree_where_the_claim_is_about_them():
    s, hidden = draw(3, 5), torch.arange(3)[:, None] < torch.arange(5)
    reading = {"S": s, "T": s.masked_fill(hidden, -torch.inf)}
    tex = r"T_{ij}=\begin{cases}S_{ij}&j\le i\\-\infty&\text{otherwise}\end{cases}"
    waived = {"special": {"T": "a mask"}}
    with pytest.raises(VerificationError, match="holds NaN or infinity"):
        check("eq:test", tex, reading)
    assert len(check("eq:test", tex, reading, **waived).mutants) > 5
    with pytest.raises(VerificationError, match="differ by inf"):
        check("eq:test", tex.replace(r"\le", "<"), reading, **waived)


def test_indices_stay_inside_of_their_arrays():
    x = draw(4)
    with pytest.raises(VerificationError, match="index 5 is outside of 1 to 4"):
        check("eq:test", "y_i=x_{i+1}", {"x": x, "y": x})
    with pytest.raises(VerificationError, match="arrays of different lengths; give its range"):
        check("eq:test", r"y=\sum_ix_iz_i", {"x": x, "z": draw(3), "y": 1.0})


def test_special_tensors_are_refused_unless_they_are_called_so():
    square = draw(3, 5) @ draw(3, 5).T
    reading = {"Y": lambda H, c: c * H, "H": square, "c": 0.7}
    with pytest.raises(VerificationError, match="two axes of one size"):
        check("eq:test", "Y=cH", reading)
    check("eq:test", "Y=cH", reading, special={"H": "a Hessian is symmetric"})
    with pytest.raises(VerificationError, match="is called special, but has no reading"):
        check("eq:test", "Y=cH", reading, special={"K": "no"})


def test_a_function_may_not_change_the_reading():
    def spoil(x):
        return x.mul_(2)

    with pytest.raises(VerificationError, match="changed its input 'x'"):
        check("eq:test", "y=2x", {"y": spoil, "x": draw(3)})


def test_a_wrong_derivative_of_the_reading_is_found_by_finite_differences():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x**2

        @staticmethod
        def backward(ctx, grad):
            return grad * 3.0

    x = torch.tensor(1.7, dtype=torch.float64)
    with pytest.raises(VerificationError, match=r"by finite differences .* off by"):
        check("eq:test", "f'(x)=x+1.3", {"f": Wrong.apply, "x": x})


def test_several_readings_are_all_tested_and_a_drawn_one_thrice():
    drawn = []

    def reading():
        drawn.append(draw(4, seed=len(drawn)))
        return {"y": 2 * drawn[-1], "x": drawn[-1]}

    record = check("eq:test", "y=2x", reading)
    assert record.points == len(drawn) == 3
    good, bad = {"y": 2 * drawn[0], "x": drawn[0]}, {"y": 3 * drawn[0], "x": drawn[0]}
    with pytest.raises(VerificationError, match="differ by"):
        check("eq:test", "y=2x", [good, bad])


def test_the_right_side_is_held_against_the_library():
    x = draw(4)
    reading = {"x": x, "y": (x**2).sum()}
    check("eq:test", r"y=\sum_ix_i^2", reading | {"right side": x @ x})
    with pytest.raises(VerificationError, match="differ by"):
        check("eq:test", r"y=\sum_ix_i^2", reading | {"right side": 2 * x @ x})


def test_settings_are_checked():
    for option in ({"slack": 0.9}, {"z": 1.0}, {"tol": 0.5}, {"approx": 0.5}):
        with pytest.raises(ValueError, match="got"):
            check("eq:test", "y=x", {"y": 2.0, "x": 2.0}, **option)
    with pytest.raises(ValueError, match="label must look like"):
        check("ridge", "y=x", {})
    with pytest.raises(ValueError, match="at least one reading"):
        check("eq:test", "y=x", [])


def test_laws_are_checked():
    with pytest.raises(ValueError, match="1 axes of weights"):
        over(torch.tensor([0.5, 0.5]), "x", "y")
    with pytest.raises(ValueError, match=r"sum to 0\.9"):
        over(torch.tensor([0.5, 0.4]), "x")
    with pytest.raises(ValueError, match="as many values"):
        over(torch.tensor([0.5, 0.5]), u=torch.zeros(3))
    with pytest.raises(ValueError, match="equally many"):
        samples(x=torch.zeros(1000), y=torch.zeros(2000))
    with pytest.raises(ValueError, match="multiple of 50"):
        samples(x=torch.zeros(1001))
    with pytest.raises(TypeError, match="indices of the page"):
        table(torch.zeros(3))(1)


def test_a_mean_of_samples_is_told_from_a_wrong_one_only_with_enough_of_them():
    def law(n):
        x = torch.randn(n, generator=torch.Generator().manual_seed(0)).double()
        return {"E": samples(x=1.3 + x), "m": 1.3, "c": 1.0}

    tex = r"\mathbb E[x^2]=c+m^2"
    assert check("eq:test", tex, law(50_000)).kind == "expectation"
    with pytest.raises(VerificationError, match="accepts wrong versions"):
        check("eq:test", tex, law(1000) | {"b": 1.001})  # b for c
    with pytest.raises(VerificationError, match="standard errors off"):
        check("eq:test", r"\mathbb E[x^2]=m^2", law(50_000))


def test_zero_on_one_side_is_compared_with_one():
    u = draw(5)
    w = draw(5, seed=1)
    v = w - (w @ u) / (u @ u) * u
    check("eq:test", r"u\cdot v=0", {"u": u, "v": v})
    with pytest.raises(VerificationError, match="differ by"):
        check("eq:test", r"u\cdot w=0", {"u": u, "w": w})


def test_the_printed_mutants_can_be_read_again():
    for tex in (FORMULAS["infonce"][0], FORMULAS["lora"][0], r"q=\frac{S\,K}{\sqrt{d_k}}"):
        for statement in parse(tex).statements:
            for side in statement.relation.sides:
                for _, mutant in mutants_of(side):
                    parse(f"q={to_tex(mutant)}")
    assert parse("q=1").statements[0].relation.sides[1] == Number("1")


# ---------------------------------------------------------------- wrong versions without a value


def test_a_mutant_that_compares_a_word_with_a_number_has_no_value():
    share = {"a": 0.3, "ab": 0.11, "abc": 0.2}
    reading = {"m": 0.41, "L": 2, "w": list(share), "len": len, "p": lambda w: share[w]}
    record = check("eq:test", r"m=\sum_{w:\mathrm{len}(w)\le L}p(w)", reading)
    assert r"\sum with <" in record.mutants
    assert r"without \mathrm{len}" not in record.mutants
    with pytest.raises(VerificationError, match="differ by"):
        check("eq:test", r"m=\sum_{w:\mathrm{len}(w)<L}p(w)", reading)
    with pytest.raises(VerificationError, match="a number with what is none"):
        check("eq:test", r"m=\sum_{w:w\le L}p(w)", reading)


def test_a_mutant_without_a_value_where_it_matters_is_idle_and_no_evidence():
    q, k = draw(3, 2), draw(5, 2)
    seen = torch.arange(3)[:, None] >= torch.arange(5)
    reading = {"q": q, "k": k, "T": (q @ k.T).masked_fill(~seen, -torch.inf)}
    tex = r"T_{ij}=\begin{cases}q_ik_j^\top&j\le i\\-\infty&\text{otherwise}\end{cases}"
    record = check("eq:test", tex, reading, special={"T": "a mask"})
    # It is minus infinity where the formula is, and a row times a row everywhere else.
    assert not [name for name in record.mutants if "not transposed" in name]
    # One that has numbers everywhere survives as before.
    with pytest.raises(VerificationError, match=r"accepts .*: sign of c; without c"):
        check(
            "eq:test",
            tex.replace(r"k_j^\top&", r"k_j^\top+c&"),
            reading | {"c": 0.0},
            special={"T": "a mask", "c": "to see that it survives"},
        )


def test_an_index_out_of_range_but_for_one_point_is_idle():
    # x_{i+1} is there for i = 1 alone, where it agrees.
    x, z = torch.tensor([0.7, 0.7]).double(), torch.tensor([1.3, 0.4]).double()
    reading = {"x": x, "z": z, "y": x * z}
    names = check("eq:test", "y_i=x_i\\,z_i", reading, special={"x": "two alike"}).mutants
    assert "index i moved by one" in names  # of y
    assert "index i moved by one [2]" not in names  # of x
    assert "index i moved by one (2)" in names  # of z


def test_a_bound_is_not_called_flat_for_readings_at_which_a_mutant_has_no_value():
    # s_{k+1} lacks the reading at which the bound is near; where it is, all bounds are far.
    near = {"x": 1.3, "y": 0.9, "s": torch.tensor([3.1, 1.5], dtype=torch.float64), "k": 2}
    far = {"x": 1.3, "y": 0.9, "s": torch.tensor([1.7, 4.1, 5.3], dtype=torch.float64), "k": 2}
    record = check("eq:test", r"x\le y\,s_k", [near, far])
    assert "without y" in record.mutants
    assert "index k moved by one" not in record.mutants


def test_a_part_of_the_formula_of_which_no_wrong_version_fails_is_refused():
    # Of v_2 = 0 there are v_3, which is not there, and v_1, which is zero as well.
    reading = {"y": 4.1, "x": 2.4, "c": 1.7, "v": torch.zeros(2, dtype=torch.float64)}
    with pytest.raises(VerificationError, match=r"no wrong version of v_\{2\}= 0 comes out wrong"):
        check("eq:test", r"y=x+c,\qquad v_2=0", reading, special={"v": "zeros"})
    reading["v"][0] = 1.3
    check("eq:test", r"y=x+c,\qquad v_2=0", reading, special={"v": "a zero"})


def test_a_function_of_whole_numbers_is_called_once_for_each():
    calls = []

    def size(n):
        calls.append(n)
        return 3 * n * n + n

    check("eq:test", "B(2n)-B(n)=9n^2+n", {"B": size, "n": 5})
    assert calls.count(10) == 1  # in the formula, and in every wrong version
    assert len(set(calls)) > 4


def test_idle_mutants_alone_are_too_little():
    x = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(VerificationError, match="only 0 wrong versions"):
        check("eq:test", "x_2=0", {"x": x}, special={"x": "zeros"})


# --------------------------------------------------------------------- names, sets and functions


def test_a_relation_is_no_argument():
    reading = {"p": 0.3, "P": lambda x: x, "len": 3.1, "L": 2}
    with pytest.raises(TexError, match="a relation is no argument") as found:
        check("eq:test", r"p=1-P(\mathrm{len}>L)", reading)
    shown, caret = str(found.value).splitlines()[1:]
    assert shown[caret.index("^")] == ">"
    check("eq:test", r"p=1-P(\mathrm{len}>L)", {"p": 0.3, "P(len>L)": 0.7})
    with pytest.raises(VerificationError, match=r"a relation, .* where a value is needed"):
        check("eq:test", r"p=2(a=b)", {"p": 0.3, "a": 0.7, "b": 0.7})


def test_lines_that_do_not_end_are_refused():
    with pytest.raises(TexError, match="do not match"):
        check("eq:test", r"\begin{aligned}y&=x", {"y": 1.3, "x": 1.3})
    with pytest.raises(TexError, match="in parentheses"):
        check("eq:test", r"y=\mathrm{diag}_i x_i", {"y": 1.3, "x": draw(3)})


def test_a_quantity_is_no_function_of_an_index():
    # Its parameter is a tensor of the page: p_i is an entry of what it returns.
    z = draw(4)
    reading = {"p": lambda z: torch.softmax(z, -1), "z": z, "q": torch.softmax(z, -1)}
    check("eq:test", "q_i=p_i", reading)


def test_an_error_in_the_reading_says_which_name():
    with pytest.raises(VerificationError, match=r"y: IndexError: index 9 is out of bounds"):
        check("eq:test", "y=2x", {"y": lambda x: x[9], "x": draw(3)})


# ----------------------------------------------------------------------------------- independence


def partition(z):
    """Go through a function of the library, as several readings may."""
    return logsumexp(z).exp()


def test_two_sides_that_go_through_one_function_are_refused():
    z = draw(5)
    free = {"F": lambda z: -partition(z).log(), "z": z}
    shared = free | {"Z": lambda z: partition(z)}
    with pytest.raises(VerificationError, match=r"both go through .*logsumexp, so a mistake"):
        check("eq:test", r"F=-\log Z", shared)
    with pytest.raises(VerificationError, match="both go through"):
        check("eq:test", r"F(z)=-\log Z(z)", {"F": free["F"], "Z": lambda z: partition(z), "z": z})
    check("eq:test", r"F=-\log Z", free | {"Z": lambda z: z.exp().sum()})
    check("eq:test", r"F=-\log\sum_ie^{z_i}", free)


def test_a_library_function_may_not_stand_on_both_sides():
    reading = {"z": draw(5), "H": lambda z: entropy(softmax(z)), "p": lambda z: softmax(z)}
    tex = r"H=-\sum_ip_i\log p_i"
    with pytest.raises(VerificationError, match=r"both go through companion.*softmax"):
        check("eq:test", tex, reading)
    check("eq:test", tex, reading | {"p": lambda z: torch.softmax(z, -1)})


def test_a_third_side_makes_two_of_a_chain_independent():
    z = draw(5)
    alike = {"F": lambda z: -partition(z).log(), "Z": lambda z: partition(z), "z": z}
    for side in ("left side", "right side"):
        check("eq:test", r"F=-\log Z", alike | {side: -torch.logsumexp(z, -1)})
    again = {"right side": lambda z: -partition(z).log()}
    with pytest.raises(VerificationError, match="both go through"):
        check("eq:test", r"F=-\log Z", alike | again)
    # A bound is one of two sides alone.
    sizes = [{**alike, "z": e * z, "m": (e * z).max()} for e in (1.0, 40.0)]
    with pytest.raises(VerificationError, match="both go through"):
        check("eq:test", r"F\le-\log\frac{Z}{5}", sizes)


def test_a_model_is_what_the_formula_leaves_open():
    model = torch.nn.Linear(3, 1, dtype=torch.float64)
    x = draw(5, 3)
    readings = {"s": lambda X: model(X).sum(), "f": lambda row: model(row).squeeze(), "X": x}
    check("eq:test", r"s=\sum_if(X_i)", readings)

    class Model(torch.nn.Module):
        def score(self, row):
            return partition(row)

    open_too = Model()
    readings |= {"s": lambda X: sum(map(open_too.score, X)), "f": open_too.score}
    check("eq:test", r"s=\sum_if(X_i)", readings)
    alike = {"s": lambda X: sum(map(partition, X)), "f": lambda row: partition(row)}
    with pytest.raises(VerificationError, match="both go through"):
        check("eq:test", r"s=\sum_if(X_i)", readings | alike)


def test_a_name_on_both_sides_is_what_the_formula_leaves_open():
    z = draw(5)
    names = {"f": lambda x: partition(x), "z": z, "c": 0.3, "g": lambda z: partition(z)}
    check("eq:test", r"\log f(z)+c=-\big(-c-\log f(z)\big)", names)
    check("eq:test", r"\log g+c=-\big(-c-\log g\big)", names)
