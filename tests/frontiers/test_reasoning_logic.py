"""Degrees of truth, formulas, and weighted model counting against enumeration and pysdd."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pysdd.sdd import SddManager, SddNode
from torch import Tensor

from companion.frontiers import reasoning as re

KINDS = ("product", "godel", "lukasiewicz")
# Thousandths: products of two are no subnormal numbers.
DEGREES = st.lists(st.integers(0, 1000).map(lambda k: k / 1000), min_size=3, max_size=3)
NAMES = "abcdef"


def d(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@given(DEGREES)
def test_t_norms_obey_their_axioms(kind: re.TNorm, degrees: list[float]) -> None:
    a, b, c = (d(x) for x in degrees)

    def both(x: Tensor, y: Tensor) -> Tensor:
        return re.t_norm(x, y, kind=kind)

    torch.testing.assert_close(both(a, b), both(b, a), rtol=0, atol=1e-12)
    torch.testing.assert_close(both(both(a, b), c), both(a, both(b, c)), rtol=0, atol=1e-12)
    torch.testing.assert_close(both(a, d(1.0)), a, rtol=0, atol=1e-12)
    assert both(a, torch.minimum(b, c)) <= both(a, torch.maximum(b, c)) + 1e-12
    either = re.t_conorm(a, b, kind=kind)
    torch.testing.assert_close(either, 1 - both(1 - a, 1 - b), rtol=0, atol=1e-12)
    # The residuum is the largest degree that brings a no further than b.
    most = re.residuum(a, b, kind=kind)
    assert both(a, most) <= b + 1e-9
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    fits = both(a.expand(101), grid) <= b
    assert (grid[fits] <= most + 1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_at_0_and_1_all_are_boolean(kind: re.TNorm) -> None:
    a, b = torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.0, 1, 0, 1])
    assert re.t_norm(a, b, kind=kind).tolist() == [0, 0, 0, 1]
    assert re.t_conorm(a, b, kind=kind).tolist() == [0, 1, 1, 1]
    assert re.residuum(a, b, kind=kind).tolist() == [1, 1, 0, 1]


def test_gradients_vanish_where_they_are_said_to() -> None:
    def slopes(a: float, b: float, kind: re.TNorm) -> list[float]:
        x = torch.tensor([a, b], dtype=torch.float64, requires_grad=True)
        re.t_norm(x[0], x[1], kind=kind).backward()
        assert x.grad is not None
        return [round(v, 6) for v in x.grad.tolist()]

    assert slopes(0.3, 0.6, "product") == [0.6, 0.3]
    assert slopes(0.3, 0.6, "godel") == [1, 0]
    assert slopes(0.3, 0.6, "lukasiewicz") == [0, 0]
    assert slopes(0.7, 0.6, "lukasiewicz") == [1, 1]
    x = torch.tensor([0.0, 0.5], requires_grad=True)
    re.residuum(x[0], x[1], kind="product").backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ("a", 1),
        ("x1 | x2", 3),  # faults: unsmoothed counting finds 2
        ("a & b -> c", 7),
        ("a -> b -> c", 7),
        ("(a -> b) -> c", 5),
        ("a <-> b", 2),
        ("~(a | b) & c", 1),
        ("a & ~a", 0),
        ("a | true", 2),
        ("a | b & c", 5),
        ("(a | b) & ~(a & b)", 2),  # the same two parts, joined in both ways
    ],
)
def test_formulas_are_read_and_counted(text: str, models: int) -> None:
    formula = re.parse(text)
    names = formula.variables
    assert list(names) == sorted(names)  # as they come first in the text
    worlds = itertools.product([False, True], repeat=len(names))
    true = sum(formula.holds(dict(zip(names, w, strict=True))) for w in worlds)
    diagram = re.compile_formula(formula)
    assert true == models == diagram.count()
    ones = torch.zeros(len(names))
    found = re.log_wmc(diagram, ones, ones).exp()
    torch.testing.assert_close(found, torch.tensor(float(models)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("text", ["", "a b", "a &", "(a", "a)", "1a", "a & ?", "-> a"])
def test_what_is_no_formula_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no formula"):
        re.parse(text)


def test_deep_formulas_are_evaluated_or_refused() -> None:
    names = [f"x{i}" for i in range(1500)]
    one = re.exactly_one([re.variable(name) for name in names])
    assert one.holds({name: name == "x7" for name in names})
    assert not one.holds({name: name in ("x7", "x9") for name in names})
    with pytest.raises(ValueError, match="nested too deeply"):
        re.parse("~" * 5000 + "a")


FORMULAS = st.recursive(
    st.sampled_from(NAMES).map(re.variable),
    lambda inner: st.one_of(
        inner.map(lambda f: ~f),
        st.tuples(inner, inner).map(lambda p: p[0] & p[1]),
        st.tuples(inner, inner).map(lambda p: p[0] | p[1]),
        st.tuples(inner, inner).map(lambda p: p[0] >> p[1]),
    ),
    max_leaves=14,
)


def sdd(formula: re.Formula, manager: SddManager, literal: dict[str, SddNode]) -> SddNode:
    parts = [sdd(part, manager, literal) for part in formula.parts]
    if formula.operator == "var":
        return literal[formula.name]
    if formula.operator == "not":
        return manager.negate(parts[0])
    join = manager.conjoin if formula.operator == "and" else manager.disjoin
    return join(parts[0], parts[1])


@settings(max_examples=60, deadline=None)
@given(FORMULAS, st.integers(0, 10**6))
def test_weighted_counts_are_those_of_enumeration_and_of_pysdd(
    formula: re.Formula, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    order = [NAMES[i] for i in torch.randperm(6, generator=g).tolist()]
    high, low = (3 * torch.rand(6, generator=g, dtype=torch.float64) + 0.01 for _ in range(2))
    diagram = re.compile_formula(formula, variables=order)
    found = float(re.log_wmc(diagram, high.log(), low.log()).exp())
    want = 0.0
    for world in itertools.product([False, True], repeat=6):
        if formula.holds(dict(zip(order, world, strict=True))):
            weights = zip(world, high.tolist(), low.tolist(), strict=True)
            want += math.prod(h if x else lo for x, h, lo in weights)
    assert found == pytest.approx(want, rel=1e-10, abs=1e-12)
    manager = SddManager(var_count=6)
    literal = {name: manager.vars[i + 1] for i, name in enumerate(order)}
    counter = sdd(formula, manager, literal).wmc(log_mode=False)
    for i in range(6):
        counter.set_literal_weight(manager.vars[i + 1], float(high[i]))
        counter.set_literal_weight(-manager.vars[i + 1], float(low[i]))
    assert found == pytest.approx(counter.propagate(), rel=1e-10, abs=1e-12)
    p = high / (high + low)
    total = float((high + low).prod())
    assert float(re.wmc(diagram, p)) == pytest.approx(want / total, rel=1e-9, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(FORMULAS)
def test_one_meaning_has_one_diagram(formula: re.Formula) -> None:
    names = list(NAMES)
    first = re.compile_formula(formula, variables=names)
    again = re.compile_formula(~~formula & (formula | formula), variables=names)
    assert first.count() == again.count()
    assert len(first.nodes) == len(again.nodes)
    negated = re.compile_formula(~formula, variables=names)
    assert first.count() + negated.count() == 64


def test_what_looks_the_same_is_one_node() -> None:
    # The parity of n variables needs two nodes a variable, but one for the first.
    parity = re.compile_formula(re.parse(" <-> ".join(NAMES)))
    assert len(parity.nodes) == 2 + 2 * len(NAMES) - 1
    assert parity.count() == 32
    # Written twice, and about b alone.
    about_b = re.compile_formula(re.parse("(a & b) | (~a & b)"))
    assert about_b.nodes[2:] == ((1, 0, 1),)
    assert about_b.count() == 2


def test_free_variables_count_twice() -> None:
    diagram = re.compile_formula(re.parse("x1 | x2"), variables=["z", "x1", "y", "x2"])
    assert diagram.count() == 12
    zero = torch.zeros(4)
    torch.testing.assert_close(re.log_wmc(diagram, zero, zero).exp(), torch.tensor(12.0))


def test_exactly_one_of_three() -> None:
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    diagram = re.compile_formula(re.exactly_one([re.variable(n) for n in "abc"]))
    torch.testing.assert_close(re.wmc(diagram, p), d(0.47))
    loss = re.semantic_loss(p.logit(), diagram)
    torch.testing.assert_close(loss, d(-math.log(0.47)))
    assert round(float(loss), 4) == 0.7550


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_one_of_many_stays_small(n: int) -> None:
    parts = [re.variable(f"x{i}") for i in range(n)]
    one = re.compile_formula(re.exactly_one(parts))
    most = re.compile_formula(re.at_most_one(parts))
    assert one.count() == n
    assert most.count() == n + 1
    assert len(one.nodes) <= 2 * n + 2


def test_the_gradient_is_the_probability_minus_the_posterior() -> None:
    g = torch.Generator().manual_seed(0)
    formula = re.parse("(a | ~b) & (c -> d) & (b | d)")
    diagram = re.compile_formula(formula)
    names = formula.variables
    z = torch.randn(7, 4, generator=g, dtype=torch.float64, requires_grad=True)
    re.semantic_loss(z, diagram).sum().backward()
    p = z.detach().sigmoid()
    for i, name in enumerate(names):
        both = re.compile_formula(formula & re.variable(name), variables=names)
        posterior = re.wmc(both, p) / re.wmc(diagram, p)
        assert z.grad is not None
        torch.testing.assert_close(z.grad[:, i], p[:, i] - posterior)


def test_a_hundred_variables_do_not_underflow() -> None:
    parts = [re.variable(f"x{i}") for i in range(200)]
    diagram = re.compile_formula(re.exactly_one(parts))
    z = torch.full((200,), 30.0, requires_grad=True)
    loss = re.semantic_loss(z, diagram)
    # All but one must be false, each with the logarithm -30; 200 ways.
    torch.testing.assert_close(loss, torch.tensor(199 * 30.0 - math.log(200)))
    loss.backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_contradictions_have_an_infinite_loss() -> None:
    diagram = re.compile_formula(re.parse("a & ~a"))
    assert float(re.semantic_loss(torch.zeros(3, 1), diagram)[0]) == math.inf
    assert diagram.count() == 0
    always = re.compile_formula(re.parse("a | ~a"))
    assert float(re.semantic_loss(torch.tensor([2.0]), always)) == pytest.approx(0, abs=1e-6)


def test_wrong_input_is_told(own_checks: None) -> None:
    half = torch.tensor(0.5)
    with pytest.raises(ValueError, match="unknown kind 'fuzzy'"):
        re.t_norm(half, half, kind="fuzzy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a must hold degrees"):
        re.t_norm(half + 1, half, kind="product")
    with pytest.raises(ValueError, match="b must hold degrees"):
        re.t_conorm(half, half * torch.nan, kind="product")
    with pytest.raises(ValueError, match="missing \\['b'\\]"):
        re.compile_formula(re.parse("a & b"), variables=["a"])
    with pytest.raises(ValueError, match="once"):
        re.compile_formula(re.parse("a & b"), variables=["a", "b", "a"])
    with pytest.raises(ValueError, match="no name"):
        re.variable("true")
    with pytest.raises(ValueError, match="parts"):
        re.exactly_one([])
    diagram = re.compile_formula(re.parse("a & b"))
    with pytest.raises(ValueError, match="probabilities"):
        re.wmc(diagram, torch.tensor([0.5, 1.5]))
    with pytest.raises(ValueError, match="probabilities"):
        re.wmc(diagram, torch.tensor([-0.5, 0.5]))
    with pytest.raises(ValueError, match="probabilities"):
        re.wmc(diagram, torch.tensor([0.5]))
    with pytest.raises(ValueError, match="positive"):
        re.semantic_loss(torch.zeros(3), diagram)
