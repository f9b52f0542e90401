"""Votes, estimates from samples, and verifiers, against enumeration."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.frontiers import reasoning as re


def credit(answers: tuple[int, ...], gold: int, none: int | None = None) -> float:
    """The rule, naively."""
    votes = Counter(a for a in answers if a != none)
    if not votes:
        return 0.0
    top = [a for a, v in votes.items() if v == max(votes.values())]
    return (gold in top) / len(top)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 3), min_size=5, max_size=5), min_size=1, max_size=4))
def test_credit_is_shared_by_those_that_tie(rows: list[list[int]]) -> None:
    answers = torch.tensor(rows)
    gold = torch.arange(len(rows)) % 4
    found = re.plurality_credit(answers, gold, none=-1)
    want = [credit(tuple(row), int(y), -1) for row, y in zip(rows, gold, strict=True)]
    torch.testing.assert_close(found, torch.tensor(want, dtype=torch.float64))


def test_no_answer_cannot_win() -> None:
    answers = torch.tensor([[-1, -1, -1, 4], [-1, -1, -1, -1]])
    found = re.plurality_credit(answers, torch.tensor([4, 4]), none=-1)
    assert found.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("n", "want"), [(1, 0.6), (2, 0.6), (3, 0.648), (5, 0.68256), (11, 0.75350)]
)
def test_condorcet(n: int, want: float) -> None:
    found = float(re.majority_accuracy(torch.tensor(0.6, dtype=torch.float64), n=n))
    assert round(found, 5) == pytest.approx(want, abs=1e-9)
    law = torch.tensor([0.6, 0.4], dtype=torch.float64)
    assert re.plurality_accuracy(law, n=n) == pytest.approx(found, rel=1e-12)


def test_a_majority_of_many_is_sure_and_of_bad_ones_surely_wrong() -> None:
    p = torch.tensor([0.0, 0.45, 0.5, 0.55, 1.0], dtype=torch.float64)
    found = re.majority_accuracy(p, n=2001)
    assert found[[0, 4]].tolist() == [0, 1]
    assert found[1] < 1e-5
    assert found[2] == pytest.approx(0.5)
    assert found[3] > 1 - 1e-5
    bound = 1 - math.exp(-2 * 2001 * 0.05**2)
    assert found[3] >= bound


@pytest.mark.parametrize(("n", "want"), [(1, 0.4), (3, 0.424), (5, 0.447), (7, 0.4712)])
def test_plurality_of_three(n: int, want: float) -> None:
    law = torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64)
    assert re.plurality_accuracy(law, n=n) == pytest.approx(want, abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_plurality_is_the_sum_over_all_draws(n: int) -> None:
    law = [0.35, 0.05, 0.25, 0.35]
    for right in range(4):
        want = sum(
            math.prod(law[a] for a in draw) * credit(draw, right)
            for draw in itertools.product(range(4), repeat=n)
        )
        found = re.plurality_accuracy(torch.tensor(law, dtype=torch.float64), n=n, right=right)
        assert found == pytest.approx(want, rel=1e-12)


def test_plurality_tends_to_the_modal_answer() -> None:
    law = torch.tensor([0.35, 0.4, 0.25], dtype=torch.float64)
    wrong = [re.plurality_accuracy(law, n=n) for n in (1, 25, 101)]
    assert wrong[0] > wrong[1] > wrong[2]
    assert re.plurality_accuracy(law, n=101, right=1) > 0.7


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.integers(0, 2),
    st.integers(1, 9),
    st.integers(0, 2),
)
def test_consensus_is_the_mean_over_all_subsets(
    counts: list[int], none: int, k: int, right: int
) -> None:
    right %= len(counts)
    answers = [j for j, count in enumerate(counts) for _ in range(count)] + [-1] * none
    if k > len(answers):
        with pytest.raises(ValueError, match="cannot be drawn"):
            re.consensus_at_k(counts, k=k, right=right, none=none)
        return
    subsets = list(itertools.combinations(answers, k))
    want = sum(credit(subset, right, -1) for subset in subsets) / len(subsets)
    found = re.consensus_at_k(counts, k=k, right=right, none=none)
    assert found == pytest.approx(want, abs=1e-12)


def test_consensus_is_exact_where_floats_end() -> None:
    assert re.consensus_at_k([1200, 1200], k=1200) == 0.5
    assert re.consensus_at_k([2, 2, 2], k=4) == 1 / 3


def test_pass_at_k_has_the_values_of_its_formula() -> None:
    def one(n: int, c: int, k: int) -> float:
        return float(re.pass_at_k(torch.tensor(n), torch.tensor(c), k=k))

    assert one(10, 3, 5) == pytest.approx(0.9166667, abs=1e-7)  # plug-in: 0.8319
    assert one(4, 1, 4) == 1  # a bootstrap with replacement gives 0.684
    assert one(7, 0, 7) == 0  # faults: 1 in reference code for c = 0 and large k
    assert one(200, 1, 1) == pytest.approx(0.005)  # not rounded to 1
    for n, c, k in itertools.product(range(1, 9), range(9), range(1, 9)):
        if c <= n and k <= n:
            want = 1 - math.comb(n - c, k) / math.comb(n, k)
            assert one(n, c, k) == pytest.approx(want, abs=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    p, n = 0.3, 7
    for k in (1, 3, 7):
        c = torch.arange(n + 1)
        law = torch.tensor([math.comb(n, int(i)) * p**i * (1 - p) ** (n - i) for i in c.tolist()])
        mean = float((re.pass_at_k(torch.full_like(c, n), c, k=k) * law).sum())
        assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-6)


def test_it_is_averaged_over_problems() -> None:
    n, c = torch.tensor([4, 4]), torch.tensor([4, 0])
    assert float(re.pass_at_k(n, c, k=2).mean()) == 0.5
    pooled = float(re.pass_at_k(n.sum(), c.sum(), k=2))
    assert pooled == pytest.approx(1 - 6 / 28)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_best_of_n_is_the_sum_over_all_outcomes(n: int) -> None:
    p, t, f = 0.3, 0.9, 0.2
    want = 0.0
    outcomes = list(itertools.product([True, False], repeat=2))
    for draw in itertools.product(outcomes, repeat=n):
        weight = 1.0
        for right, passed in draw:
            rate = t if right else f
            weight *= (p if right else 1 - p) * (rate if passed else 1 - rate)
        pool = [right for right, passed in draw if passed] or [right for right, _ in draw]
        want += weight * sum(pool) / len(pool)
    found = re.best_of_n_success(torch.tensor(p, dtype=torch.float64), n=n, t=t, f=f)
    assert float(found) == pytest.approx(want, rel=1e-12)


def test_the_ceiling_is_the_precision_and_not_one() -> None:
    p = torch.tensor(0.3, dtype=torch.float64)
    ceiling = float(re.verifier_ceiling(p, t=0.9, f=0.2))
    assert round(ceiling, 4) == 0.6585
    assert float(re.best_of_n_success(p, n=10_000, t=0.9, f=0.2)) == pytest.approx(ceiling)
    assert float(re.verifier_ceiling(p, t=0.1, f=0.0)) == 1
    # A verifier that cannot tell leaves everything as it is, however many are drawn.
    assert float(re.best_of_n_success(p, n=64, t=0.4, f=0.4)) == pytest.approx(0.3)
    # With a perfect one it is pass@n.
    assert float(re.best_of_n_success(p, n=5, t=1.0, f=0.0)) == pytest.approx(1 - 0.7**5)


def test_rare_successes_are_not_rounded_away() -> None:
    for p in (1e-12, 1e-18):
        right = torch.tensor(p, dtype=torch.float64)
        assert float(re.best_of_n_success(right, n=10, t=1.0, f=0.0)) == pytest.approx(10 * p)
    single = torch.tensor(0.3)
    assert re.best_of_n_success(single, n=3, t=0.9, f=0.2).dtype == torch.float64
    # Where nothing passes yet, the slope is that of n tries.
    never = torch.zeros((), dtype=torch.float64, requires_grad=True)
    re.best_of_n_success(never, n=3, t=1.0, f=0.0).backward()
    assert never.grad is not None
    assert float(never.grad) == pytest.approx(3)


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize(("t", "f"), [(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_edges_stay_finite(p: float, t: float, f: float) -> None:
    found = re.best_of_n_success(torch.tensor(p, dtype=torch.float64), n=3, t=t, f=f)
    assert float(found) == pytest.approx(p)


def test_rates_of_a_verifier() -> None:
    right = torch.tensor([True] * 4 + [False] * 5)
    accepted = torch.tensor([True, True, True, False, True, False, False, False, False])
    t, f = re.verifier_rates(right, accepted)
    assert (float(t), float(f)) == (0.75, 0.2)


def test_wrong_input_is_told(own_checks: None) -> None:
    p = torch.tensor(0.5)
    n = torch.tensor([4, 3])
    with pytest.raises(ValueError, match="k = 4 exceeds the 3 answers"):
        re.pass_at_k(n, n, k=4)
    with pytest.raises(ValueError, match="c must lie"):
        re.pass_at_k(n, n + 1, k=2)
    with pytest.raises(ValueError, match="c must lie"):
        re.pass_at_k(n, n - 5, k=2)
    with pytest.raises(ValueError, match="sum to 1"):
        re.plurality_accuracy(torch.tensor([0.5, 0.4]), n=2)
    with pytest.raises(ValueError, match="n must be from 1 to 150"):
        re.plurality_accuracy(torch.tensor([0.5, 0.5]), n=151)
    with pytest.raises(ValueError, match="right must be from 0 to 1"):
        re.plurality_accuracy(torch.tensor([0.5, 0.5]), n=3, right=2)
    with pytest.raises(ValueError, match="right must be from 0 to 1"):
        re.consensus_at_k([1, 3], k=1, right=2)
    with pytest.raises(ValueError, match="t and f"):
        re.best_of_n_success(p, n=2, t=1.1, f=0.0)
    with pytest.raises(ValueError, match="t and f"):
        re.best_of_n_success(p, n=2, t=0.9, f=-0.1)
    with pytest.raises(ValueError, match="answers to a question"):
        re.plurality_credit(torch.ones(2, 0, dtype=torch.long), torch.ones(2, dtype=torch.long))
    with pytest.raises(ValueError, match="no answer ever passes"):
        re.verifier_ceiling(p, t=0.0, f=0.0)
    with pytest.raises(ValueError, match="p must hold probabilities"):
        re.majority_accuracy(p + 1, n=3)
    with pytest.raises(ValueError, match="gold is -1"):
        re.plurality_credit(torch.tensor([[1]]), torch.tensor([-1]), none=-1)
    with pytest.raises(ValueError, match="both right and wrong"):
        re.verifier_rates(torch.tensor([True]), torch.tensor([True]))
    with pytest.raises(ValueError, match="both right and wrong"):
        re.verifier_rates(torch.tensor([False]), torch.tensor([True]))
    with pytest.raises(ValueError, match="a count"):
        re.consensus_at_k([-1, 3], k=1)
