"""gradient: three routes agree on right claims, and every wrong one is caught."""

import pytest
import sympy as sp
import torch

from companion.verify import VerificationError, generic, gradient

B, D, V = 3, 5, 7
TARGETS = [2, 0, 6]


@pytest.fixture
def inputs(g):
    return {
        "h": generic(B, D, generator=g),
        "w": generic(D, V, generator=g),
        "y": torch.tensor(TARGETS),
    }


def loss(h, w, y):
    return torch.nn.functional.cross_entropy(h @ w, y)


def loss_in_sympy(h, w, y):
    total = 0
    for i in range(B):
        z = [sum(h[i, a] * w[a, j] for a in range(D)) for j in range(V)]
        total += sp.log(sum(sp.exp(v) for v in z)) - z[y[i]]
    return total / B


def residual(h, w, y):
    return torch.softmax(h @ w, -1) - torch.nn.functional.one_hot(y, V)


def right(h, w, y):
    return h.T @ residual(h, w, y) / B


SUM = {"sum for mean": lambda h, w, y: h.T @ residual(h, w, y)}


def check(inputs, claim=right, f=loss, sympy=loss_in_sympy, wrt="w", mutants=SUM, **more):
    return gradient("eq:head", f, claim, inputs, wrt=wrt, sympy=sympy, mutants=mutants, **more)


def test_a_right_claim_passes_by_four_routes(inputs):
    record = check(inputs, handwritten=lambda **v: right(**v))
    names = [name for name, _ in record.routes]
    assert names == ["SymPy", "autograd", "finite differences", "hand-written code"]
    assert {"negated", "doubled", "sum for mean"} <= set(record.mutants)
    assert record.largest_error < 1e-8


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("sign", lambda h, w, y: -right(h, w, y)),
        ("factor of two", lambda h, w, y: 2 * right(h, w, y)),
        ("sum for mean", SUM["sum for mean"]),
        ("dropped term", lambda h, w, y: h.T @ torch.softmax(h @ w, -1) / B),
        ("off by one", lambda h, w, y: h.T @ residual(h, w, (y + 1) % V) / B),
        ("rows off by one", lambda h, w, y: h.roll(1, 0).T @ residual(h, w, y) / B),
        ("wrong axis", lambda h, w, y: h.T @ (torch.softmax(h @ w, 0)) / B),
        ("silent zero", lambda h, w, y: torch.zeros(D, V, dtype=torch.float64)),
        ("nan", lambda h, w, y: right(h, w, y) * float("nan")),
    ],
)
def test_wrong_claims_are_caught(inputs, name, wrong):
    with pytest.raises(VerificationError, match="differs from SymPy"):
        check(inputs, claim=wrong)


def test_a_transposed_claim_is_caught_by_its_shape(inputs):
    with pytest.raises(VerificationError, match=r"shape \(7, 5\).*has shape \(5, 7\)"):
        check(inputs, claim=lambda h, w, y: right(h, w, y).T)


def test_the_transpose_of_a_jacobian_is_caught(g):
    # y = x A with a square A: only the layout tells A from its transpose.
    a = generic(3 * 3, generator=g).reshape(3, 3)
    flat = {"x": generic(3, generator=g), "a": a.reshape(9)}
    args = {
        "f": lambda x, a: x @ a.reshape(3, 3),
        "inputs": flat,
        "wrt": "x",
        "sympy": lambda x, a: [sum(x[i] * a[3 * i + j] for i in range(3)) for j in range(3)],
        "mutants": {"minus": lambda x, a: -a.reshape(3, 3)},
    }
    assert "transposed" in gradient("eq:linear", claim=lambda x, a: a.reshape(3, 3), **args).mutants
    with pytest.raises(VerificationError, match="differs from SymPy"):
        gradient("eq:linear", claim=lambda x, a: a.reshape(3, 3).T, **args)


def test_the_layout_puts_the_variable_first(g):
    record = gradient(
        "eq:linear-jacobian",
        lambda x, w: x @ w,
        lambda x, w: w,
        {"x": generic(2, generator=g), "w": generic(2, 3, generator=g)},
        wrt="x",
        sympy=lambda x, w: [sum(x[i] * w[i, j] for i in range(2)) for j in range(3)],
        mutants={"minus": lambda x, w: -w},
    )
    assert record.kind == "gradient"


def test_hessians_are_symmetric_and_must_say_so(g):
    z = generic(4, generator=g)

    def p(z):
        return torch.softmax(z, -1)

    args = {
        "f": lambda z: torch.func.grad(lambda x: torch.logsumexp(x, -1))(z),
        "claim": lambda z: torch.diag(p(z)) - torch.outer(p(z), p(z)),
        "inputs": {"z": z},
        "wrt": "z",
        "sympy": lambda z: [sp.exp(a) / sum(sp.exp(b) for b in z) for a in z],
        "mutants": {"plus": lambda z: torch.diag(p(z)) + torch.outer(p(z), p(z))},
    }
    gradient("eq:hessian", symmetric=True, **args)
    with pytest.raises(VerificationError, match="accepts the wrong claim 'transposed'"):
        gradient("eq:hessian", **args)


def test_a_false_declaration_of_symmetry_is_caught(g):
    a = generic(9, generator=g)
    with pytest.raises(VerificationError, match="differs from its transpose"):
        gradient(
            "eq:linear",
            lambda x, a: x @ a.reshape(3, 3),
            lambda x, a: a.reshape(3, 3),
            {"x": generic(3, generator=g), "a": a},
            wrt="x",
            sympy=lambda x, a: [sum(x[i] * a[3 * i + j] for i in range(3)) for j in range(3)],
            mutants={"minus": lambda x, a: -a.reshape(3, 3)},
            symmetric=True,
        )


def test_another_function_in_sympy_is_caught(inputs):
    with pytest.raises(VerificationError, match="different functions"):
        check(inputs, sympy=lambda h, w, y: 2 * loss_in_sympy(h, w, y))


def test_a_sympy_derivative_that_is_silently_zero_is_caught(g):
    x = {"x": generic(3, generator=g)}
    square, double = lambda x: (x**2).sum(), lambda x: 2 * x
    mutants = {"half": lambda x: x}
    # The value is right, but the symbols that it depends on are not the given ones.
    frozen = float(square(x["x"]))
    with pytest.raises(VerificationError, match="differs from SymPy"):
        gradient(
            "eq:s", square, double, x, wrt="x", sympy=lambda x: sp.Float(frozen), mutants=mutants
        )
    a = sp.MatrixSymbol("A", 1, 3)
    with pytest.raises(VerificationError, match=r"must return scalars|unevaluated"):
        gradient(
            "eq:s", square, double, x, wrt="x", sympy=lambda x: sp.Trace(a * a.T), mutants=mutants
        )


def test_a_gradient_hidden_from_autograd_is_caught(inputs):
    with pytest.raises(VerificationError, match="differs from autograd"):
        check(inputs, f=lambda h, w, y: loss(h, w, y) + 0 * w.sum() + (w.detach() - w).sum())


def test_a_wrong_hand_written_backward_is_caught(inputs):
    with pytest.raises(VerificationError, match="differs from hand-written code"):
        check(inputs, handwritten=lambda h, w, y: right(h, w, y) * (1 + 1e-6))


def test_a_surviving_mutant_is_caught(inputs):
    with pytest.raises(VerificationError, match="accepts the wrong claim 'right after all'"):
        check(inputs, mutants={"right after all": right})


def test_a_mutant_must_run(inputs):
    with pytest.raises(VerificationError, match="'broken' raised RuntimeError"):
        check(inputs, mutants={"broken": lambda h, w, y: h @ w.T})


def test_mutants_are_required(inputs):
    with pytest.raises(VerificationError, match="at least one mutant"):
        check(inputs, mutants={})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w * (torch.arange(V) > 0), "holds a zero"),
        (lambda w: w[:, :1].expand(D, V), "equal entries"),
        (lambda w: w * float("inf"), "NaN or infinity"),
    ],
)
def test_inputs_that_hide_mistakes_are_refused(inputs, spoil, message):
    with pytest.raises(VerificationError, match=message):
        check(inputs | {"w": spoil(inputs["w"])})


def test_square_inputs_are_refused(g):
    a = generic(25, generator=g).reshape(5, 5)
    with pytest.raises(VerificationError, match="hides a transpose"):
        gradient(
            "eq:trace",
            lambda a: (a * a.T).sum(),
            lambda a: 2 * a.T,
            {"a": a},
            wrt="a",
            sympy=lambda a: sum(a[i, j] * a[j, i] for i in range(5) for j in range(5)),
            mutants={"no transpose": lambda a: 2 * a},
        )


def test_a_function_that_writes_into_its_input_is_caught(inputs):
    def writes(h, w, y):
        value = loss(h, w, y)
        h.mul_(1.0 + 1e-9)
        return value

    with pytest.raises(VerificationError, match="changed its input 'h'"):
        check(inputs, f=writes)


def test_a_zero_gradient_is_no_evidence(g):
    with pytest.raises(VerificationError, match="zero everywhere"):
        gradient(
            "eq:constant",
            lambda x: (x - x).sum(),
            lambda x: torch.zeros_like(x),
            {"x": generic(3, generator=g)},
            wrt="x",
            sympy=lambda x: x[0] - x[0],
            mutants={"one": lambda x: torch.ones_like(x)},
        )


def test_bad_calls_say_what_is_wrong(inputs):
    with pytest.raises(ValueError, match="the inputs are"):
        check(inputs, wrt="v")
    with pytest.raises(ValueError, match="must be a floating tensor"):
        check(inputs, wrt="y")


def test_one_side_of_a_kink_is_not_enough(g):
    # At positive x alone, 1 passes for the derivative of |x|, and sign(x) W for relu's.
    def absolute(claim):
        return gradient(
            "eq:abs",
            lambda x: x.abs(),
            claim,
            {"x": torch.tensor(0.7)},
            wrt="x",
            sympy=lambda x: sp.Abs(x),
            mutants={"minus": lambda x: -torch.ones_like(x)},
        )

    with pytest.raises(VerificationError, match=r"differs from SymPy.*drawn again"):
        absolute(torch.ones_like)
    assert absolute(torch.sign).points == 4


def test_both_sides_of_a_hidden_kink_are_reached(g):
    inputs = {"x": generic(3, generator=g, low=0.2), "w": generic(3, 5, generator=g, low=0.2)}
    call = {
        "f": lambda x, w: torch.relu(x @ w).sum(),
        "inputs": inputs,
        "wrt": "x",
        "sympy": lambda x, w: sum(
            sp.Max(0, sum(x[i] * w[i, j] for i in range(3))) for j in range(5)
        ),
        "mutants": {"one column less": lambda x, w: w[:, 1:].sum(1)},
    }
    with pytest.raises(VerificationError, match="drawn again"):
        gradient("eq:relu", claim=lambda x, w: w.sum(1), **call)
    gradient("eq:relu", claim=lambda x, w: w @ (x @ w > 0).double(), **call)


def test_a_domain_is_respected_and_can_be_named(g):
    call = {
        "sympy": lambda s: sp.log(s),
        "inputs": {"s": torch.tensor(0.7)},
        "wrt": "s",
        "mutants": {"square": lambda s: 1 / s**2},
    }
    # The logarithm of a negative number is NaN: the signs are kept.
    gradient("eq:log", lambda s: s.log(), lambda s: 1 / s, **call)
    seen = []

    def watched(s):
        seen.append(float(s.detach()))
        return torch.log(s)

    gradient("eq:log", watched, lambda s: 1 / s, domain={"s": (3.0, 4.0)}, **call)
    assert sum(3.0 < s < 4.0 for s in seen) > len(seen) / 2
    assert min(seen) > 0.69
    drawn = {"s": lambda g: generic(generator=g, low=3, high=5)}
    gradient("eq:log", watched, lambda s: 1 / s, domain=drawn, **call)
    with pytest.raises(ValueError, match="domain names 't'"):
        gradient("eq:log", watched, lambda s: 1 / s, domain={"t": (1.0, 2.0)}, **call)
    with pytest.raises(VerificationError, match="not finite at points drawn"):
        gradient("eq:log", watched, lambda s: 1 / s, domain={"s": (-2.0, -1.0)}, **call)


def test_hand_written_code_is_another_program_than_the_claim(inputs):
    with pytest.raises(VerificationError, match="one program"):
        check(inputs, handwritten=right)


@pytest.mark.parametrize(
    ("mutant", "message"),
    [
        (lambda h, w, y: right(h, w, y).T, "has shape"),
        (lambda h, w, y: right(h, w, y) / 0, "NaN or infinite"),
        (lambda h, w, y: None, "no number"),
    ],
)
def test_a_mutant_must_be_wrong_by_its_value(inputs, mutant, message):
    with pytest.raises(VerificationError, match=f"'bad'.*{message}"):
        check(inputs, mutants={"bad": mutant})


def test_points_of_one_sign_are_found_where_a_function_has_no_others():
    # Sixteen positive numbers by chance: one draw in 65,536 would do, if signs were always drawn.
    def entropy(p):
        return -(p * p.log()).sum()

    p = generic(16, generator=torch.Generator().manual_seed(3), low=0.3, high=2.0)
    record = gradient(
        "eq:entropy-grad",
        entropy,
        lambda p: -(p.log() + 1),
        {"p": p},
        wrt="p",
        sympy=lambda p: -sum(v * sp.log(v) for v in p),
        mutants={"without one": lambda p: -p.log()},
    )
    assert record.points > 1
