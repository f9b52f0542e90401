"""equal, bound, expectation: right claims pass, wrong claims and blunt checks are caught."""

import pytest
import torch

from companion.verify import VerificationError, bound, equal, expectation, generic


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
            equal("eq:product", writes, {"same": product}, pair, mutants=DROPPED, tol=1e-3)


def samples(g, count=40):
    points = [generic(5, generator=g) for _ in range(count)]
    # Equality in Cauchy-Schwarz is at parallel vectors.
    return [(a, b) for a, b in zip(points[::2], points[1::2], strict=True)] + [
        (points[0], 3 * points[0])
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
