"""Certificates: exact values by hand, coverage, and the theorem on half-spaces."""

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from companion.core import generator
from companion.knowledge.robustness import (
    ABSTAIN,
    Certificate,
    binomial_lower,
    certified_accuracy,
    certified_radius,
    certify,
    smooth_predict,
    smooth_votes,
)

D = torch.float64


def lower(k: int, n: int, alpha: float = 0.001) -> float:
    return float(binomial_lower(torch.tensor(k), torch.tensor(n), alpha=alpha))


def test_equal_votes_certify_what_was_worked_out_by_hand() -> None:
    for n, p, radius in (
        (10, 0.5012, 0.00298),
        (100, 0.93325, 1.5005),
        (1000, None, 2.4633),
        (100_000, None, 3.8115),
    ):
        bound = lower(n, n)
        assert bound == pytest.approx(0.001 ** (1 / n), rel=1e-12)
        assert p is None or bound == pytest.approx(p, abs=5e-5)
        found = certified_radius(torch.tensor(bound, dtype=D), sigma=1.0)
        assert float(found) == pytest.approx(radius, rel=2e-3 if n == 10 else 5e-5)
    # The two-sided slip: half of alpha.
    wrong = certified_radius(torch.tensor(lower(100, 100, 0.0005), dtype=D), sigma=1.0)
    assert float(wrong) == pytest.approx(1.4524, abs=5e-5)


@pytest.mark.parametrize(("k", "n"), [(0, 7), (1, 7), (5, 7), (7, 7), (53, 97)])
def test_the_bound_is_that_of_scipy(k: int, n: int) -> None:
    test = scipy.stats.binomtest(k, n, alternative="greater")
    want = test.proportion_ci(confidence_level=0.98, method="exact").low
    assert lower(k, n, 0.02) == pytest.approx(want, abs=1e-12)
    tail = scipy.stats.binom.sf(k - 1, n, lower(k, n, 0.02))  # k successes or more
    assert k == 0 or tail == pytest.approx(0.02, rel=1e-9)


def test_the_bound_covers_for_each_probability() -> None:
    n, alpha = 23, 0.05
    counts = torch.arange(n + 1)
    bounds = binomial_lower(counts, torch.full_like(counts, n), alpha=alpha)
    for p in (0.1, 0.5, 0.73, 0.9, 0.99):
        chances = torch.as_tensor(scipy.stats.binom.pmf(counts.numpy(), n, p))
        assert float(chances[bounds > p].sum()) <= alpha


def test_a_half_space_has_exactly_its_certified_radius() -> None:
    # f is class 0 where x < b: the smoothed answer changes at distance b, whatever sigma is.
    for b, sigma in ((0.7, 0.4), (1.3, 2.0)):
        p = torch.special.ndtr(torch.tensor(b / sigma, dtype=D))
        assert float(certified_radius(p, sigma=sigma)) == pytest.approx(b)
        assert float(certified_radius(p, 1 - p, sigma=sigma)) == pytest.approx(b)
    assert float(certified_radius(torch.tensor(0.3, dtype=D), sigma=1.0)) == 0
    some = certified_radius(torch.tensor(0.6, dtype=D), torch.tensor(0.1, dtype=D), sigma=2.0)
    want = scipy.stats.norm.ppf(0.6) - scipy.stats.norm.ppf(0.1)
    assert float(some) == pytest.approx(want)


def half(x: Tensor) -> Tensor:
    return torch.stack([-x[:, 0], x[:, 0]], 1)


def test_certificates_of_a_half_space_are_valid_and_near(g: torch.Generator) -> None:
    x = torch.linspace(-1, 1, 41, dtype=D)[:, None].repeat(1, 3)
    made = certify(half, x, sigma=0.5, samples=4000, generator=g)
    answered = made.labels != ABSTAIN
    assert bool((made.radius[~answered] == 0).all())
    assert torch.equal(made.labels[answered], (x[answered, 0] > 0).long())
    # Each holds with 0.999; for these draws all do. The bound is tight where votes are many.
    assert bool((made.radius[answered] <= x[answered, 0].abs() + 1e-9).all())
    near = answered & (x[:, 0].abs() < 0.6)
    assert bool((made.radius[near] > x[near, 0].abs() - 0.12).all())


def test_votes_are_drawn_anew_and_in_any_batch(g: torch.Generator) -> None:
    x = torch.full((1, 3), 0.05, dtype=D)
    first, second = (smooth_votes(half, x, sigma=0.5, samples=1000, generator=g) for _ in "ab")
    assert not torch.equal(first, second)
    whole, parts = (
        smooth_votes(half, x, sigma=0.5, samples=1000, batch_size=b, generator=generator(3))
        for b in (4096, 1000)
    )
    assert torch.equal(whole, parts)
    odd = smooth_votes(half, x, sigma=0.5, samples=1000, batch_size=7, generator=g)
    assert int(odd.sum()) == 1000


def test_a_prediction_abstains_as_the_sign_test_does() -> None:
    rows = [(k, 40 - k) for k in range(41)]
    found = smooth_predict(torch.tensor(rows), alpha=0.01)
    for (a, b), label in zip(rows, found.tolist(), strict=True):
        p = scipy.stats.binomtest(max(a, b), 40, 0.5).pvalue
        assert label == (ABSTAIN if p > 0.01 else int(b > a))


def test_requests_that_can_never_be_answered_are_refused(g: torch.Generator) -> None:
    # Ten votes: the smallest two-sided p-value is 2 / 1024 > 0.001.
    with pytest.raises(ValueError, match="10 votes never suffice"):
        smooth_predict(torch.tensor([[10, 0]]))
    assert smooth_predict(torch.tensor([[11, 0]])).tolist() == [0]
    x = torch.ones(1, 3, dtype=D)
    with pytest.raises(ValueError, match="9 samples certify nothing"):
        certify(half, x, sigma=0.5, samples=9, generator=g)
    assert math.log(0.001) / math.log(0.5) < 10
    with pytest.raises(ValueError, match="got 5 of 4"):
        binomial_lower(torch.tensor(5), torch.tensor(4), alpha=0.1)
    with pytest.raises(ValueError, match=r"p_a must lie in \[0, 1\]"):
        certified_radius(torch.tensor(1.5), sigma=1.0)
    with pytest.raises(ValueError, match="sigma must lie in"):
        certified_radius(torch.tensor(0.5), sigma=0.0)
    with pytest.raises(ValueError, match="2 classes or more"):
        smooth_predict(torch.tensor([[10]]))


def test_certified_accuracy_counts_right_answers_only() -> None:
    made = Certificate(
        torch.tensor([1, 0, ABSTAIN, 2]), torch.tensor([0.5, 0.9, 0.0, 0.2]), torch.ones(4)
    )
    curve = certified_accuracy(made, torch.tensor([1, 1, 1, 2]), torch.tensor([0.0, 0.3, 0.6]))
    assert curve.tolist() == [0.5, 0.25, 0.0]


def test_probabilities_at_the_ends_and_in_half_precision() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=D)
    assert certified_radius(ends, ends, sigma=1.0).tolist() == [0, 0]  # not inf - inf
    for dtype in (torch.float16, torch.bfloat16):
        half_precise = torch.tensor(0.75, dtype=dtype)
        found = certified_radius(half_precise, sigma=1.0)
        assert float(found) == pytest.approx(scipy.stats.norm.ppf(0.75), abs=1e-6)
    with pytest.raises(ValueError, match=r"p_a must lie in \[0, 1\]"):
        certified_radius(torch.tensor(math.nan), sigma=1.0)
    with pytest.raises(ValueError, match="sigma must lie in"):
        certified_radius(torch.tensor(0.7), sigma=math.inf)


def test_no_example_is_refused_and_an_abstention_is_never_right(g: torch.Generator) -> None:
    none = torch.empty(0, dtype=torch.long)
    with pytest.raises(ValueError, match="x must hold one example or more"):
        smooth_votes(half, torch.empty(0, 3), sigma=0.5, samples=20, generator=g)
    with pytest.raises(ValueError, match="y must hold one label or more"):
        certified_accuracy(Certificate(none, torch.empty(0), torch.empty(0)), none, torch.zeros(1))
    withheld = Certificate(torch.tensor([ABSTAIN]), torch.zeros(1), torch.zeros(1))
    assert float(certified_accuracy(withheld, torch.tensor([-1]), torch.zeros(1))) == 0


def test_logits_that_are_no_numbers_vote_for_nobody(g: torch.Generator) -> None:
    def broken(x: Tensor) -> Tensor:
        return torch.stack([x[:, 0], (0.5 - x[:, 0]).sqrt()], 1)  # NaN beyond one half

    x = torch.tensor([[9.0], [-9.0], [0.5]], dtype=D)
    votes = smooth_votes(broken, x, sigma=0.1, samples=200, generator=g)
    assert votes[0].tolist() == [0, 0]
    assert votes[1].tolist() == [0, 200]
    assert 50 < int(votes[2].sum()) < 150  # about half of the draws
    made = certify(broken, x, sigma=0.1, samples=200, generator=g)
    assert made.labels.tolist() == [ABSTAIN, 1, ABSTAIN]
    assert made.radius.tolist()[::2] == [0, 0]
