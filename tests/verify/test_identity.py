"""identity: right claims pass, every kind of wrong claim and every blunt check is caught."""

import pytest
import sympy as sp

from companion.verify import VerificationError, _symbolic, identity

x, y, t = sp.symbols("x y t", real=True)
p = sp.Symbol("p", positive=True)
n, k = sp.symbols("n k", integer=True, positive=True)


def softmax(logits):
    total = sum(sp.exp(z) for z in logits)
    return sp.Matrix([[sp.exp(z) / total for z in logits]])


LOGITS = sp.symbols("z0:3", real=True)
LSE = sp.log(sum(sp.exp(z) for z in LOGITS))


def test_right_claims_pass_by_two_routes():
    record = identity("eq:lse-grad", sp.Matrix([[LSE.diff(z) for z in LOGITS]]), softmax(LOGITS))
    assert [name for name, _ in record.routes] == ["SymPy", "40 digits"]
    assert record.largest_error < 1e-30
    assert len(record.mutants) >= 3


def test_wrong_versions_of_a_tree_are_those_that_a_reader_would_slip_into():
    def names(expression):
        return {name for name, _ in _symbolic._tree_mutants(expression)}

    assert names(3 * x) == {"factor of 3*x"}
    assert names(-x) == set()  # its sign is turned for every claim
    assert names(x**2) == {"exponent of x**2"}
    assert names(x + sp.exp(y)) == {
        "dropped x",
        "sign of x",
        "dropped exp(y)",
        "sign of exp(y)",
        "argument sign of exp(y)",
        "swapped x, y",
    }


def test_unevaluated_derivatives_sums_and_integrals_are_evaluated():
    identity("eq:a", sp.Derivative(sp.sin(x) * x, x), sp.sin(x) + x * sp.cos(x))
    identity("eq:b", sp.Sum(k, (k, 1, n)), n * (n + 1) / 2, where={n: (3, 9)})
    u = sp.Symbol("u", real=True)
    identity("eq:c", sp.Integral(u**2, (u, 0, p)), p**3 / 3)


@pytest.mark.parametrize(
    "wrong",
    [
        -(sp.sin(x) + x * sp.cos(x)),  # sign of the whole
        sp.sin(x) - x * sp.cos(x),  # sign of a term
        sp.sin(x),  # dropped term
        2 * (sp.sin(x) + x * sp.cos(x)),  # factor of two
        sp.sin(x) + x**2 * sp.cos(x),  # exponent
        sp.sin(x) + y * sp.cos(x),  # wrong symbol
        sp.Integer(0),  # a derivative that silently vanished
    ],
)
def test_wrong_claims_are_caught(wrong):
    with pytest.raises(VerificationError, match="does not reduce the difference to zero"):
        identity("eq:product", sp.diff(sp.sin(x) * x, x), wrong)


def test_a_shifted_sum_limit_is_caught():
    with pytest.raises(VerificationError, match="does not reduce"):
        identity("eq:sum", sp.Sum(k, (k, 1, n - 1)), n * (n + 1) / 2, where={n: (3, 9)})


def test_a_transposed_matrix_is_caught():
    a = sp.Matrix(2, 3, sp.symbols("a0:6", real=True))
    w = sp.Matrix(3, 3, sp.symbols("w0:9", real=True))
    right = sp.Matrix(2, 3, lambda i, j: sum(a[i, m] * w[m, j] for m in range(3)))
    record = identity("eq:product", a * w, right)
    assert any("index off by one" in name for name in record.mutants)
    with pytest.raises(VerificationError, match="does not reduce"):
        identity("eq:product", a * w.T, right)
    with pytest.raises(VerificationError, match="shapes"):
        identity("eq:product", w * a.T, right)


def test_the_transpose_of_a_square_result_is_among_the_mutants():
    w = sp.Matrix(2, 2, sp.symbols("w0:4", real=True))
    assert "transposed" in identity("eq:double", w + w, 2 * w).mutants


def test_matrix_symbol_traps_are_refused():
    # SymPy 1.14 gives 0 for this derivative, which is not zero.
    a = sp.MatrixSymbol("A", 2, 3)
    silent = (sp.Trace(a.T * a) - 3).diff(a)
    with pytest.raises(VerificationError):
        identity("eq:trace", silent, 2 * a)
    with pytest.raises(VerificationError, match="MatrixSymbol"):
        identity("eq:trace", a[0, 0] * x, a[0, 0] * x)


def test_a_claim_that_says_nothing_is_refused():
    with pytest.raises(VerificationError, match="too little"):
        identity("eq:nothing", x - x, sp.Integer(0))


def test_zero_can_be_claimed_of_something_with_structure():
    hessian = sp.Matrix(3, 3, lambda i, j: LSE.diff(LOGITS[i], LOGITS[j]))
    record = identity("eq:null", sp.ones(1, 3) * hessian, sp.zeros(1, 3))
    assert "negated" not in record.mutants
    assert len(record.mutants) >= 3
    with pytest.raises(VerificationError, match="does not reduce"):
        identity("eq:null", sp.ones(1, 3) * hessian + sp.ones(1, 3), sp.zeros(1, 3))


def test_points_outside_the_domain_are_refused():
    with pytest.raises(VerificationError, match="where"):
        identity("eq:log", (x + 1) * sp.log(x), x * sp.log(x) + sp.log(x))
    identity("eq:log", (x + 1) * sp.log(x), x * sp.log(x) + sp.log(x), where={x: (0.3, 2)})


def test_integer_symbols_need_a_range():
    with pytest.raises(VerificationError, match="range of the integer n"):
        identity("eq:power", x**n * x, x ** (n + 1))


def test_extra_mutants_are_held_to_the_same():
    identity("eq:square", (x + y) ** 2, x**2 + 2 * x * y + y**2, mutants={"no cross": x**2 + y**2})
    with pytest.raises(VerificationError, match="accepts the wrong claim 'same'"):
        identity("eq:square", (x + y) ** 2, x**2 + 2 * x * y + y**2, mutants={"same": (x + y) ** 2})


def test_a_mutant_in_a_symbol_that_the_claim_does_not_know_is_none():
    with pytest.raises(VerificationError, match=r"mutant 'free' holds \['t'\]"):
        identity("eq:square", (x + y) ** 2, x**2 + 2 * x * y + y**2, mutants={"free": t * x})


@pytest.mark.parametrize("wrong", [sp.nan, sp.oo, sp.log(-1 - x**2), x / (y - y)])
def test_a_mutant_that_is_no_number_is_none(wrong):
    with pytest.raises(VerificationError, match="mutant 'bad' is no finite real number"):
        identity("eq:square", (x + y) ** 2, x**2 + 2 * x * y + y**2, mutants={"bad": wrong})


def test_a_wrong_version_that_is_not_real_does_not_count():
    record = identity("eq:log", sp.log(p**2 * (1 + p)), 2 * sp.log(p) + sp.log(1 + p))
    assert not any(name.startswith("argument sign of log(p)") for name in record.mutants)


def test_an_open_expression_is_no_oracle_of_itself():
    total = sp.Sum(k, (k, 1, n))
    with pytest.raises(VerificationError, match="one and the same expression"):
        identity("eq:sum", total, sp.Sum(k, (k, 1, n)), where={n: (3, 9)})
    a = sp.Matrix([[x, y * t], [t, 3 * x]])
    with pytest.raises(VerificationError, match="one and the same expression"):
        identity("eq:matrix", a, a)


def test_an_even_function_is_no_reason_to_fail():
    identity("eq:even", sp.cos(x + y), sp.cos(x) * sp.cos(y) - sp.sin(x) * sp.sin(y))


@pytest.mark.parametrize("label", ["softmax", "eq:Softmax", "eq:a_b", "def:x", "eq:"])
def test_labels_have_one_form(label):
    with pytest.raises(ValueError, match="label must look like"):
        identity(label, x + x, 2 * x)
