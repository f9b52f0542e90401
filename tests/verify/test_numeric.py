"""equal, bound, expectation: right claims pass, wrong claims and blunt checks are caught."""

from functools import partial

import numpy as np
import pytest
import sympy as sp
import torch

from companion.foundations.cross_entropy import cross_entropy, logsumexp, softmax
from companion.verify import VerificationError, bound, equal, expectation, generic
from companion.verify._compare import relative_error
from companion.verify._independence import same_program


@pytest.fixture
def pair(g):
    return {"x": generic(3, 5, generator=g), "w": generic(5, 7, generator=g)}


def product(x, w):
    return torch.einsum("nd,dm->nm", x, w)


ORACLE = {"matmul": lambda x, w: x @ w}
DROPPED = {"last feature dropped": lambda x, w: x[:, :-1] @ w[:-1]}


class TestEqual:
    def test_right_claims_pass(self, pair):
        record = equal("eq:product", product, ORACLE, pair, mutants=DROPPED)
        assert "index off by one on axis 1" in record.mutants
        assert record.largest_error < 1e-14

    @pytest.mark.parametrize(
        ("name", "wrong"),
        [
            ("sign", lambda x, w: -(x @ w)),
            ("factor", lambda x, w: 2 * (x @ w)),
            ("transpose", lambda x, w: (x @ w).T),
            ("dropped", DROPPED["last feature dropped"]),
            ("off by one", lambda x, w: (x @ w).roll(1, 0)),
            ("mean for sum", lambda x, w: (x @ w) / 5),
            ("one entry", lambda x, w: (x @ w) + 1e-8 * torch.eye(3, 7)),
            ("nan", lambda x, w: (x @ w) / 0 * 0),
        ],
    )
    def test_wrong_claims_are_caught(self, pair, name, wrong):
        with pytest.raises(VerificationError, match="differs from matmul"):
            equal("eq:product", wrong, ORACLE, pair, mutants=DROPPED)

    def test_plain_numbers_are_not_rounded(self, pair):
        rows = pair["x"].sum(-1)
        equal(
            "eq:sums",
            lambda x, w: x.sum(-1),
            {"plain list": lambda x, w: [float(v) for v in rows]},
            pair,
            mutants={"mean": lambda x, w: x.mean(-1)},
            tol=1e-14,
        )

    def test_every_oracle_counts(self, pair):
        oracles = ORACLE | {"wrong library": lambda x, w: x @ w + 1}
        with pytest.raises(VerificationError, match="differs from wrong library"):
            equal("eq:product", product, oracles, pair, mutants=DROPPED)

    def test_a_symmetric_result_hides_a_transpose(self, pair):
        gram = {"x": pair["x"]}
        args = (lambda x: x @ x.T, {"einsum": lambda x: torch.einsum("id,jd->ij", x, x)}, gram)
        mutants = {"one feature less": lambda x: x[:, 1:] @ x[:, 1:].T}
        with pytest.raises(VerificationError, match="'transposed'"):
            equal("eq:gram", *args, mutants=mutants)
        equal("eq:gram", *args, mutants=mutants, symmetric=True)

    def test_a_constant_result_hides_an_index(self, pair):
        with pytest.raises(VerificationError, match="index off by one"):
            equal(
                "eq:sums",
                lambda x, w: torch.softmax(x, -1).sum(-1),
                {"ones": lambda x, w: torch.ones(3, dtype=torch.float64)},
                pair,
                mutants={"other axis": lambda x, w: torch.softmax(x, 0).sum(-1)},
            )

    def test_surviving_and_missing_mutants_are_caught(self, pair):
        with pytest.raises(VerificationError, match="accepts the wrong claim 'the same'"):
            equal("eq:product", product, ORACLE, pair, mutants={"the same": lambda x, w: x @ w})
        with pytest.raises(VerificationError, match="at least one mutant"):
            equal("eq:product", product, ORACLE, pair, mutants={})
        with pytest.raises(VerificationError, match="at least one oracle"):
            equal("eq:product", product, {}, pair, mutants=DROPPED)

    def test_loose_tolerances_are_refused(self, pair):
        with pytest.raises(ValueError, match="tol must lie in"):
            equal("eq:product", product, ORACLE, pair, mutants=DROPPED, tol=0.1)

    def test_inputs_that_hide_mistakes_are_refused(self):
        ones = {"x": torch.ones(3, 5), "w": torch.ones(5, 7)}
        with pytest.raises(VerificationError, match="equal entries"):
            equal("eq:product", product, ORACLE, ones, mutants=DROPPED)
        with pytest.raises(VerificationError, match="is 1 in magnitude"):
            equal(
                "eq:square",
                lambda t: t * t,
                {"power": lambda t: t**2},
                {"t": torch.tensor(1.0)},
                mutants={"cube": lambda t: t**3},
            )

    def test_writing_into_an_input_is_caught(self, pair):
        def writes(x, w):
            return x.add_(1.0).sub_(1.0 + 1e-6) @ w

        with pytest.raises(VerificationError, match=r"changed its input 'x'|differs"):
            equal("eq:product", writes, {"same": product}, pair, mutants=DROPPED, tol=5e-4)


class TestEqualRefusesWhatShowsNothing:
    """Each check here passed once, although it could not fail or its claim was wrong."""

    def check(self, pair, claim=product, oracles=ORACLE, mutants=DROPPED, **more):
        return equal("eq:product", claim, oracles, pair, mutants=mutants, **more)

    def test_a_claim_is_no_oracle_of_itself(self, pair):
        with pytest.raises(VerificationError, match="same program"):
            self.check(pair, oracles={"itself": product})

    def test_the_same_program_written_twice_is_one_program(self, pair):
        with pytest.raises(VerificationError, match="same program"):
            self.check(pair, lambda x, w: x @ w, {"again": lambda x, w: x @ w})

    def test_a_partial_of_the_claim_is_the_claim(self):
        one = partial(torch.einsum, "nd,dm->nm")
        assert same_program(one, one)
        assert not same_program(one, partial(torch.einsum, "nd,dm->mn"))
        assert not same_program(product, lambda x, w: x @ w)

    def test_a_library_function_on_both_sides_is_refused(self, pair):
        with pytest.raises(VerificationError, match=r"both go through companion.*softmax"):
            equal(
                "eq:shift",
                lambda x: softmax(x + 3),
                {"unshifted": lambda x: softmax(x)},
                {"x": pair["x"]},
                mutants={"scaled": lambda x: softmax(3 * x)},
            )
        equal(
            "eq:shift",
            lambda x: softmax(x + 3),
            {"PyTorch": lambda x: torch.softmax(x, -1)},
            {"x": pair["x"]},
            mutants={"scaled": lambda x: softmax(3 * x)},
        )

    def test_a_library_function_deep_inside_of_both_sides_is_refused(self, pair):
        targets = torch.tensor([1, 4, 0])
        with pytest.raises(VerificationError, match="both go through companion"):
            equal(
                "eq:ce",
                lambda x: cross_entropy(x, targets),
                {"by hand": lambda x: (logsumexp(x) - x[torch.arange(3), targets]).mean()},
                {"x": pair["x"]},
                mutants={"sum": lambda x: cross_entropy(x, targets) * 3},
            )

    def test_a_function_of_the_page_on_both_sides_is_refused_unless_it_is_an_input(self, pair):
        def f(x):
            return x**2

        def by_hand(x, f=f):
            return torch.stack([f(row).sum() for row in x])

        mutants = {"mean": lambda x, **_: f(x).mean(-1)}
        with pytest.raises(VerificationError, match=r"both go through .*\.f"):
            equal("eq:sum", lambda x: f(x).sum(-1), {"rows": by_hand}, {"x": pair["x"]},
                  mutants=mutants)  # fmt: skip
        equal("eq:sum", lambda x, f: f(x).sum(-1), {"rows": by_hand}, {"x": pair["x"], "f": f},
              mutants=mutants)  # fmt: skip

    def test_a_library_function_is_no_input(self, pair):
        with pytest.raises(VerificationError, match=r"input 'f' is softmax of the library"):
            equal(
                "eq:shift",
                lambda x, f: f(x + 3),
                {"unshifted": lambda x, f: f(x)},
                {"x": pair["x"], "f": softmax},
                mutants={"scaled": lambda x, f: f(3 * x)},
            )

    def test_one_tensor_returned_by_both_sides_is_refused(self, pair):
        made = pair["x"] @ pair["w"]
        with pytest.raises(VerificationError, match="one and the same tensor"):
            self.check(pair, lambda x, w: made.detach(), {"same": lambda x, w: made[:]})

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (1.0, "1 in magnitude"),
            (-1.0, "1 in magnitude"),
            (0.0, "a zero"),
            (2.0, "the double is the square"),
            (0.5, "x is 1 - x"),
            ([0.3, 0.0], "a zero"),
            ([0.3, 0.3], "equal entries"),
            ([[0.3, 0.7], [0.7, 0.1]], "two axes|equal entries"),
            ({"s": 1.0}, "1 in magnitude"),
            (np.array([0.0, 0.3]), "a zero"),
            (torch.tensor([[0.3, 0.7]]), "axis of size 1"),
            (torch.tensor([True, True]), "mask of one value"),
            (torch.tensor([3, 3]), "equal entries"),
        ],
    )
    def test_every_kind_of_input_is_tested_for_what_it_hides(self, pair, value, message):
        with pytest.raises(VerificationError, match=message):
            equal(
                "eq:scale",
                lambda x, s: x.sum(),
                {"PyTorch": lambda x, s: torch.sum(x)},
                {"x": pair["x"], "s": value},
                mutants={"mean": lambda x, s: x.mean()},
            )

    @pytest.mark.parametrize("value", [3, 0.7, [0.7, 0.3], [2, 0, 2], torch.tensor([True, False])])
    def test_inputs_that_hide_nothing_pass(self, pair, value):
        equal(
            "eq:scale",
            lambda x, s: x.sum(),
            {"PyTorch": lambda x, s: torch.sum(x.flatten(), 0)},
            {"x": pair["x"], "s": value},
            mutants={"mean": lambda x, s: x.mean()},
        )

    def test_a_factor_that_is_one_hides_nothing_any_more(self, pair):
        # s = 1.0 let x W pass for s x W.
        with pytest.raises(VerificationError, match="missing factor"):
            equal(
                "eq:scaled",
                lambda x, w, s: x @ w,
                {"scaled": lambda x, w, s: s * torch.einsum("nd,dm->nm", x, w)},
                pair | {"s": 1.0},
                mutants={"negative": lambda x, w, s: -s * (x @ w)},
            )

    def test_a_tolerance_that_lets_one_less_pass_is_refused(self, pair):
        # A mean over 4,999 for one over 5,000 is off by 2e-4.
        mean = {"x": torch.randn(5000, generator=torch.Generator().manual_seed(0)).double() + 3}
        mutants = {"sum": lambda x: x.sum()}
        with pytest.raises(VerificationError, match="off by one in 5000"):
            equal(
                "eq:mean",
                lambda x: x.sum() / 4999,
                {"PyTorch": lambda x: x.mean()},
                mean,
                mutants=mutants,
                tol=4e-4,
            )

    def test_a_tolerance_wider_than_its_error_is_refused(self, pair):
        with pytest.raises(VerificationError, match="wider than it has to be"):
            self.check(pair, tol=1e-6)
        rounded = {"float32": lambda x, w: (x.float() @ w.float()).double()}
        self.check(pair, oracles=rounded, tol=1e-6)

    @pytest.mark.parametrize(
        ("mutant", "message"),
        [
            (lambda x, w: (x @ w).T, r"has shape \(7, 3\)"),
            (lambda x, w: (x @ w).sum(), r"has shape \(\)"),
            (lambda x, w: (x @ w) * float("nan"), "NaN or infinite"),
            (lambda x, w: (x @ w) / 0, "NaN or infinite"),
            (lambda x, w: None, "'None', which is no number"),
            (lambda x, w: "wrong", "which is no number"),
            (lambda x, w: sp.Symbol("s"), "which is no number"),
            (lambda x, w: x @ x, "raised RuntimeError"),
        ],
    )
    def test_a_mutant_rejected_for_another_reason_than_its_value_is_none(
        self, pair, mutant, message
    ):
        with pytest.raises(VerificationError, match=f"mutant 'bad'.*{message}"):
            self.check(pair, mutants={"bad": mutant})


def samples(g, count=40):
    points = [generic(5, generator=g) for _ in range(count)]
    # Equality in Cauchy-Schwarz is at parallel vectors.
    return [(a, b) for a, b in zip(points[::2], points[1::2], strict=True)] + [
        (points[0], 3 * points[0]),
        (points[1], -points[1]),
    ]


def dot(a, b):
    return (a @ b).abs()


def norms(a, b):
    return a.norm() * b.norm()


class TestBound:
    def test_right_bounds_pass(self, g):
        record = bound("eq:cauchy", dot, norms, samples(g))
        assert {"flipped"} <= set(record.mutants)
        assert record.largest_error < 1e-12

    def test_a_wrong_direction_is_caught(self, g):
        with pytest.raises(VerificationError, match="violated at"):
            bound("eq:cauchy", norms, dot, samples(g))

    def test_a_wrong_constant_is_caught(self, g):
        with pytest.raises(VerificationError, match="violated at"):
            bound("eq:cauchy", dot, lambda a, b: 0.99 * norms(a, b), samples(g))

    def test_a_flat_bound_is_caught(self, g):
        with pytest.raises(VerificationError, match="flat"):
            bound("eq:cauchy", dot, lambda a, b: 2 * norms(a, b), samples(g))

    def test_a_common_zero_makes_no_bound_tight(self):
        # |sin x| <= 100 |x| holds with equality at 0, as it does with any constant.
        at = [(torch.tensor(x),) for x in (0.0, 1e-9, 0.3, 1.0, 2.0)]
        with pytest.raises(VerificationError, match="right side tightened"):
            bound("eq:sine", lambda x: x.sin().abs(), lambda x: 100 * x.abs(), at)
        with pytest.raises(VerificationError, match="left side tightened"):
            bound("eq:sine", lambda x: -100 * x.abs(), lambda x: -x.sin().abs(), at)
        near = [(torch.tensor(x, dtype=torch.float64),) for x in (0.0, 0.01, 0.1, 2.0)]
        bound("eq:sine", lambda x: x.sin().abs(), lambda x: x.abs(), near)

    @pytest.mark.parametrize("points", [(0.3, 1.0, 2.0), (0.0, 0.3, 1.0, 2.0), (1e-9, 1.0, 2.0)])
    @pytest.mark.parametrize("offset", [1000.0, -1000.0, 1e6])
    def test_a_common_offset_hides_no_slack(self, points, offset):
        at = [(torch.tensor(x, dtype=torch.float64),) for x in points]
        with pytest.raises(VerificationError, match="flat"):
            bound("eq:sine", lambda x: offset + x.sin().abs(), lambda x: offset + 100 * x, at)

    @pytest.mark.parametrize("loose", [1.09, 1.05, 1.02])
    def test_a_constant_a_little_too_loose_is_caught(self, g, loose):
        with pytest.raises(VerificationError, match="flat"):
            bound("eq:cauchy", dot, lambda a, b: loose * norms(a, b), samples(g))

    def test_shapes_that_broadcast_are_refused(self):
        at = [(torch.tensor([x, 2 * x]),) for x in (0.3, 1.0, 2.0)]
        with pytest.raises(VerificationError, match=r"left side has shape \(2,\), the right \(\)"):
            bound("eq:sine", torch.sin, lambda x: 1.0, at)
        with pytest.raises(VerificationError, match=r"shape \(2,\), the right \(2, 1\)"):
            bound("eq:sine", torch.sin, lambda x: x[:, None], at)

    def test_one_tight_entry_excuses_no_other(self):
        at = [(torch.tensor(x, dtype=torch.float64),) for x in (0.01, 0.02, 0.3, 1.0, 2.0)]
        tight = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 100.0])
        bound("eq:sine", lambda x: x.sin() * tight[0], lambda x: x * tight[0], at)
        with pytest.raises(VerificationError, match="in some entry"):
            bound("eq:sine", lambda x: x.sin() * tight[0], lambda x: x * tight[1], at)

    def test_points_of_one_claim_are_samples_and_not_entries(self):
        many = [(torch.rand(n, generator=torch.Generator().manual_seed(n)),) for n in (3, 5, 7)]
        with pytest.raises(VerificationError, match="make a sample of each"):
            bound("eq:sine", torch.sin, lambda x: x, many)

    def test_attainment_is_a_claim_of_its_own(self, g):
        a = generic(5, generator=g)
        attained = [(a, 3 * a), (a, -0.2 * a)]
        record = bound("eq:cauchy", dot, norms, samples(g), attained=attained)
        assert record.tolerance == 1e-6
        with pytest.raises(VerificationError, match="claimed to be attained"):
            bound("eq:cauchy", dot, norms, samples(g), attained=[(a, generic(5, generator=g))])
        with pytest.raises(VerificationError, match="claimed to be attained"):
            bound("eq:cauchy", dot, lambda a, b: 1.001 * norms(a, b), samples(g), attained=attained)
        with pytest.raises(ValueError, match="strict bound is not attained"):
            bound("eq:cauchy", dot, norms, samples(g), attained=attained, strict=True)

    def test_a_zero_may_be_the_constant_itself(self):
        # 0 <= -x log x: the left side is the constant, and the bound is attained at 1.
        def entropy(x):
            return -x * x.log()

        at = [(torch.tensor(x, dtype=torch.float64),) for x in (0.2, 0.5, 0.9999)]
        bound("eq:entropy", lambda x: 0.0, entropy, at)
        with pytest.raises(VerificationError, match="left side tightened"):
            bound("eq:entropy", lambda x: -0.1, entropy, at)

    @pytest.mark.parametrize(
        ("mutant", "message"),
        [
            (lambda a, b: torch.stack([a.norm(), b.norm()]), "has shape"),
            (lambda a, b: a.norm() / 0, "NaN or infinite"),
            (lambda a, b: None, "no number"),
            (lambda a, b: a @ b[1:], "raised RuntimeError"),
        ],
    )
    def test_a_mutant_must_be_wrong_by_its_value(self, g, mutant, message):
        with pytest.raises(VerificationError, match=f"'bad'.*{message}"):
            bound("eq:cauchy", dot, norms, samples(g), mutants={"bad": mutant})

    def test_a_disguised_equality_is_caught(self, g):
        with pytest.raises(VerificationError, match="both sides are equal"):
            bound("eq:same", norms, norms, samples(g))

    def test_a_strict_bound_excludes_equality(self, g):
        with pytest.raises(VerificationError, match="violated at"):
            bound("eq:strict", dot, lambda a, b: dot(a, b), samples(g), strict=True)

    def test_mutants_must_be_violated(self, g):
        tighter = {"one component less": lambda a, b: a[1:].norm() * b[1:].norm()}
        record = bound("eq:cauchy", dot, norms, samples(g), mutants=tighter)
        assert "one component less" in record.mutants
        positive = {"half": lambda x: (1 + x * x) / 2}
        draws = [(torch.tensor(x, dtype=torch.float64),) for x in (0.5, 0.99, 1.01, 1.7)]
        record = bound("eq:mean", lambda x: 2 * x, lambda x: 1 + x * x, draws, mutants=positive)
        assert "half" in record.mutants
        with pytest.raises(VerificationError, match="no sample violates the wrong bound 'looser'"):
            bound(
                "eq:cauchy",
                dot,
                norms,
                samples(g),
                mutants={"looser": lambda a, b: 9.0 + norms(a, b)},
            )

    def test_nan_is_not_below_anything(self):
        values = [(torch.tensor(v),) for v in (0.5, 2.0, -1.0)]
        with pytest.raises(VerificationError, match="NaN"):
            bound("eq:nan", torch.log, lambda x: x - 1, values)

    def test_few_samples_are_refused(self, g):
        with pytest.raises(VerificationError, match="at least three"):
            bound("eq:cauchy", dot, norms, samples(g)[:2])
        with pytest.raises(ValueError, match="slack"):
            bound("eq:cauchy", dot, norms, samples(g), slack=0.9)


def uniform(n, generator):
    return torch.rand(n, generator=generator, dtype=torch.float64)


class TestExpectation:
    def check(self, value, n=20_000, draw=uniform, mutants=None, **more):
        mutants = {"one": 1.0} if mutants is None else mutants
        generator = torch.Generator().manual_seed(0)
        return expectation(
            "eq:mean", draw, value, n=n, generator=generator, mutants=mutants, **more
        )

    def test_right_claims_pass(self):
        record = self.check(0.5)
        assert record.unit == "standard errors"
        assert record.largest_error < 5
        assert {"+5%", "-5%", "negated", "doubled", "one"} == set(record.mutants)

    @pytest.mark.parametrize("wrong", [-0.5, 1.0, 0.52, 0.48, 0.0, float("nan")])
    def test_wrong_claims_are_caught(self, wrong):
        with pytest.raises(VerificationError, match="standard errors from the claim"):
            self.check(wrong)

    def test_a_flat_monte_carlo_bound_is_caught(self):
        # With 30 samples every claim between 0.2 and 0.8 would pass.
        with pytest.raises(VerificationError, match="cannot tell the claim"):
            self.check(0.5, n=30)

    def test_a_heavy_noise_that_hides_the_mean_is_caught(self):
        def noisy(n, generator):
            return 0.5 + 1000 * torch.randn(n, generator=generator, dtype=torch.float64)

        with pytest.raises(VerificationError, match=r"cannot tell|from the claim"):
            self.check(0.5, draw=noisy)

    def test_components_are_checked_one_by_one(self):
        def two(n, generator):
            return uniform(2 * n, generator).reshape(n, 2) * torch.tensor([1.0, 3.0])

        self.check(torch.tensor([0.5, 1.5]), draw=two, mutants={"swap": torch.tensor([1.5, 0.5])})
        with pytest.raises(VerificationError, match="from the claim"):
            self.check(torch.tensor([1.5, 0.5]), draw=two, mutants={"x": torch.tensor([1.0, 1.0])})
        with pytest.raises(VerificationError, match="1 components"):
            self.check(0.5, draw=two)

    def test_the_noise_of_no_component_hides_its_mean(self):
        # Power was once that of the best component: 30 passed for the mean 0 of the second.
        def two(n, generator):
            noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
            return torch.tensor([1.0, 0.0]) + noise * torch.tensor([0.01, 1000.0])

        with pytest.raises(VerificationError, match=r"'\+5% in each component'.* component 1"):
            self.check(
                torch.tensor([1.0, 30.0]), n=1000, draw=two, mutants={"x": torch.tensor([2.0, 0])}
            )

    def test_a_component_that_does_not_vary_is_refused(self):
        def half(n, generator):
            constant = torch.full((n,), 1 / 3, dtype=torch.float64)
            return torch.stack([uniform(n, generator), constant], 1)

        with pytest.raises(VerificationError, match="component 1 of the samples is constant"):
            self.check(torch.tensor([0.5, 1 / 3]), draw=half, mutants={"x": torch.tensor([1, 1.0])})

    @pytest.mark.parametrize(
        ("mutant", "message"),
        [
            (float("nan"), "NaN or infinite"),
            (None, "no number"),
            (lambda: 1 / 0, "raised ZeroDivisionError"),
            (torch.tensor([1.0, 2.0]), "2 components"),
        ],
    )
    def test_a_mutant_must_be_wrong_by_its_value(self, mutant, message):
        with pytest.raises(VerificationError, match=f"'bad'.*{message}"):
            self.check(0.5, mutants={"bad": mutant})

    def test_a_zero_mean_is_resolved_in_standard_deviations(self):
        def centered(n, generator):
            return uniform(n, generator) - 0.5

        self.check(0.0, draw=centered)
        with pytest.raises(VerificationError, match="cannot tell"):
            self.check(0.0, n=500, draw=centered)

    def test_constant_samples_are_refused(self):
        with pytest.raises(VerificationError, match="constant"):
            self.check(0.5, draw=lambda n, generator: torch.full((n,), 0.5))

    def test_mutants_are_required_and_must_differ(self):
        with pytest.raises(VerificationError, match="at least one mutant"):
            self.check(0.5, mutants={})
        with pytest.raises(VerificationError, match="'nearly'"):
            self.check(0.5, mutants={"nearly": 0.5001})

    def test_blunt_settings_are_refused(self):
        with pytest.raises(ValueError, match="need z >= 3"):
            self.check(0.5, resolution=0.9)
        with pytest.raises(ValueError, match="need z >= 3"):
            self.check(0.5, z=1.0)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_one_entry_that_is_no_number_is_an_infinite_error(wrong: float) -> None:
    right = torch.tensor([1.0, 2.0])
    assert relative_error(torch.tensor([1.0, wrong]), right) == float("inf")
    assert relative_error(right, torch.tensor([1.0, wrong])) == float("inf")
