"""The reader at its edges: what no ordinary display shows, and a wrong one could hide behind."""

import pytest
import torch

from companion.verify import VerificationError, generic
from companion.verify.tex import samples
from companion.verify.tex._page import check


def draw(*shape, seed=0):
    return generic(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


# ------------------------------------------------------------------------------------- series


def test_a_series_of_negative_terms_is_summed_to_its_end():
    check("eq:test", r"\frac{-1}{1-x}=\sum_{k=0}^\infty(-x^k)", {"x": 0.3})


def test_a_series_of_arrays_ends_when_its_largest_entry_is_small():
    v = torch.tensor([0.0, 0.7, -1.3], dtype=torch.float64)
    check(
        "eq:test",
        r"\frac{v}{1-x}=\sum_{k=0}^\infty x^kv",
        {"x": 0.3, "v": v},
        special={"v": "an entry is zero, so that the least entry of each term is"},
    )


@pytest.mark.parametrize("zeros", [1, 2])
def test_a_series_may_begin_with_terms_that_vanish(zeros):
    def c(k):
        return 0.0 if k < zeros else 0.3 ** (k - zeros)

    first = "the first term is zero"
    check(
        "eq:test",
        r"\frac{1}{1-x}=\sum_{k=0}^\infty c(k)",
        {"x": 0.3, "c": c},
        equivalent={r"\sum from one later": first, "1 for 0": first},
    )


# --------------------------------------------------------------------------------- derivatives


def test_a_derivative_is_taken_at_zero_too():
    check(
        "eq:test",
        r"\sigma'(0)\,c=\frac{c}{4}",
        {"sigma": torch.sigmoid, "c": 0.7},
        equivalent={r"sign of the argument of \sigma'(0)": "zero has no sign"},
    )


# -------------------------------------------------------------------------------------- bounds


def test_a_chain_that_ends_in_a_sign_still_has_to_come_near_to_equality_before_it():
    def loose(x):
        return {"x": x, "f": -5 * x, "g": -x}

    claim = r"f\le g\le0"
    with pytest.raises(VerificationError, match="the bound is flat"):
        check("eq:test", claim, [loose(0.3), loose(1.1)])
    near = [{"f": -1.001 * x, "g": -x} for x in (0.3, 1.1)]
    check("eq:test", claim, near)


def coins(mean):
    """Twenty thousand numbers of this mean."""
    drawn = torch.rand(20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn - 0.5 + mean


def test_a_bound_on_a_mean_over_samples_has_a_direction():
    above = [{"E": samples(x=coins(0.7)), "b": b} for b in (0.7 + 1e-4, 2.0)]
    doubled = {"b doubled": "a bound twice as high holds as well"}
    check("eq:test", r"\mathbb E[x]\le b", above, equivalent=doubled)
    for wrong in (r"\mathbb E[x]\ge b", r"\mathbb E[x]\le b-1.5"):
        with pytest.raises(VerificationError, match="standard errors off"):
            check("eq:test", wrong, above)


# -------------------------------------------------------------------------------- equivalences


def derivative_of(order):
    return {
        "g": lambda x: torch.stack([x[1] ** 2, 0 * x[0], x[0] * x[1]]),
        "x": draw(3),
        "r": torch.tensor(order),
    }


CLAIM = r"\frac{\partial g_i}{\partial x_j}\ne0\iff r_j<r_i"


def test_an_equivalence_that_fails_names_the_first_place_where_it_does():
    with pytest.raises(VerificationError, match=r"at \{'i': 1, 'j': 2\}"):
        check("eq:test", CLAIM, derivative_of([1, 2, 3]))


def test_wrong_versions_of_either_side_of_an_equivalence_are_held_against_the_other():
    # Held against itself, a wrong version would always agree, and be called a survivor.
    record = check("eq:test", CLAIM, derivative_of([2, 1, 3]))
    assert len(record.mutants) >= 4


# ----------------------------------------------------------------------------------------- sums


def test_indices_stand_side_by_side_below_a_sum():
    S, a = draw(3, 5), draw(3)
    for below in ("ij", "i,j", "i, j"):
        claim = rf"s=\sum_{{{below}}}S_{{ij}}^2\,a_i"
        check("eq:test", claim, {"s": (S**2 * a[:, None]).sum(), "S": S, "a": a})
        with pytest.raises(VerificationError):
            check("eq:test", claim, {"s": (S[0] ** 2 * a[0]).sum(), "S": S, "a": a})


def test_the_first_case_that_holds_counts():
    y = r"y=\begin{cases}a&x>0\\b&x>-c\end{cases}"

    def case(y, x):
        return {"y": y, "x": x, "a": 1.3, "b": 0.7, "c": 0.9}

    always = {"c for x (2)": "these readings have a case each"}
    check("eq:test", y, [case(1.3, 0.4), case(0.7, -0.4), case(0.7, -0.8)], equivalent=always)
    with pytest.raises(VerificationError, match="no case holds"):
        check("eq:test", y, case(0.7, -2.0))
