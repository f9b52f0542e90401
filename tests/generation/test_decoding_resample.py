"""Choice among samples: exact laws on small worlds, and simulations that agree with them."""

import math
from collections import Counter
from fractions import Fraction
from itertools import permutations
from typing import Any

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.core import generator
from companion.generation import decoding as de


def world(seed: int, size: int = 7) -> tuple[Tensor, Tensor]:
    """Log-probabilities and rewards, of which some are equal."""
    g = generator(seed)
    log_p = torch.randn(size, generator=g, dtype=torch.float64).log_softmax(0)
    return log_p, torch.randint(0, 5, (size,), generator=g).double()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_law_of_the_best_of_n_is_that_of_drawing_and_choosing(n: int) -> None:
    log_p, rewards = world(1)
    law = de.best_of_n_law(log_p, rewards, n)
    assert abs(float(law.sum()) - 1) < 1e-12
    # By enumeration of all n-tuples of samples.
    every = torch.cartesian_prod(*[torch.arange(7)] * n).view(-1, n)
    weight = log_p[every].sum(1).exp()
    chosen = every.gather(1, de.best_of_n(rewards[every])[:, None])[:, 0]
    expected = torch.zeros(7, dtype=torch.float64).scatter_add(0, chosen, weight)
    torch.testing.assert_close(law, expected)


@given(st.integers(0, 10**6), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_the_divergence_of_best_of_n_is_below_its_bound(seed: int, n: int) -> None:
    log_p, rewards = world(seed)
    kl = de.best_of_n_kl(log_p, rewards, n)
    assert -1e-12 <= kl <= math.log(n) - (n - 1) / n + 1e-12


def test_the_bound_is_far_for_few_outcomes_and_near_for_many() -> None:
    coin, reward = torch.tensor([0.5, 0.5]).double().log(), torch.tensor([0.0, 1.0])
    by_hand = math.log(1 / 8) / 16 + 15 / 16 * math.log(15 / 8)
    assert abs(by_hand - 0.459) < 1e-3
    assert abs(de.best_of_n_kl(coin, reward, 4) - by_hand) < 1e-12
    assert abs(de.best_of_n_kl(coin, reward, 16) - math.log(2)) < 1e-3
    assert math.log(16) - 15 / 16 > 1.83
    many = torch.zeros(20_000, dtype=torch.float64).log_softmax(0)
    exact = de.best_of_n_kl(many[:3000], torch.arange(3000.0), 16)
    assert abs(exact - (math.log(16) - 15 / 16)) < 0.01
    assert de.best_of_n_kl(coin, reward, 1) == 0.0


@pytest.mark.parametrize("n", [1, 3, 1000])
def test_unlikely_outcomes_keep_their_digits_in_the_law_of_the_best(n: int) -> None:
    # Exact fractions: where p is small, F**n - (F - p)**n in floating point would have no digit.
    p = [Fraction(1, 2**60), Fraction(3, 2**55), Fraction(1, 2), Fraction(1, 2**58)]
    p.append(1 - sum(p, Fraction(0)))
    rewards = [4, 3, 0, 3, 2]  # the second and the fourth are equal
    law = de.best_of_n_law(
        torch.tensor([float(x) for x in p]).double().log(), torch.tensor(rewards).double(), n
    )
    for x, reward, found in zip(p, rewards, law.tolist(), strict=True):
        up_to = sum(q for q, r in zip(p, rewards, strict=True) if r <= reward)
        below = sum(q for q, r in zip(p, rewards, strict=True) if r < reward)
        exact = (up_to**n - below**n) * x / (up_to - below)
        assert found == pytest.approx(float(exact), rel=1e-9, abs=1e-300)


def test_a_whole_vocabulary_has_a_law_of_the_best() -> None:
    g = generator(7)
    log_p = torch.randn(60_000, generator=g)
    rewards = torch.randint(0, 1000, (60_000,), generator=g).float()
    law = de.best_of_n_law(log_p, rewards, 16)
    assert abs(float(law.sum()) - 1) < 1e-9
    assert de.best_of_n_kl(log_p, rewards, 16) < math.log(16) - 15 / 16


def test_the_best_of_n_wins_against_one_sample_with_n_of_n_plus_one() -> None:
    g = generator(0)
    rewards = torch.rand(40_000, 5, generator=g)
    best = rewards[:, :4].amax(1)
    wins = (best > rewards[:, 4]).double().mean()
    assert abs(float(wins) - 4 / 5) < 5 * 0.4 / 200
    assert torch.equal(rewards[:, :4].gather(1, de.best_of_n(rewards[:, :4])[:, None])[:, 0], best)


def test_what_rejection_keeps_has_the_target_law_and_m_says_how_much() -> None:
    g = generator(3)
    p, q = (
        torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64),
        torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64),
    )
    bound = float((p / q).max().log())
    n = 60_000
    x = torch.multinomial(q.expand(n, 3), 1, generator=g)[:, 0]
    kept = de.rejection_accept((p / q).log()[x], bound, generator=g)
    counts = torch.bincount(x[kept], minlength=3)
    assert scipy.stats.chisquare(counts, int(kept.sum()) * p, sum_check=False).pvalue > 1e-4
    assert abs(float(kept.double().mean()) - math.exp(-bound)) < 5 * 0.5 / n**0.5
    with pytest.raises(ValueError, match="exceeds the bound"):
        de.rejection_accept((p / q).log()[x], bound - 0.1, generator=g)
    with pytest.raises(ValueError, match="exceeds the bound"):
        de.rejection_accept(torch.tensor([math.nan]), 0.0, generator=g)


def test_snis_is_the_weighted_mean_and_its_bias_falls_with_n(own_checks: None) -> None:
    g = generator(4)
    p, q = (
        torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64),
        torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64),
    )
    f = torch.tensor([1.0, 4.0, -2.0], dtype=torch.float64)
    true = float((p * f).sum())
    bias = {}
    for n in (2, 4, 16):
        x = torch.multinomial(q.expand(40_000, 3), n, replacement=True, generator=g)
        w = (p / q)[x]
        means = (w * f[x]).sum(1) / w.sum(1)
        bias[n] = float(means.mean()) - true
        one = de.snis(w[0].log() + 3.0, f[x[0]])
        assert abs(float(one.value) - float(means[0])) < 1e-12
        assert 1 - 1e-12 <= float(one.size) <= n + 1e-12
    assert abs(bias[16]) < abs(bias[4]) < abs(bias[2])
    x = torch.multinomial(q.expand(2000, 3), 400, replacement=True, generator=g)
    found = [de.snis((p / q).log()[row], f[row]) for row in x[:300]]
    z = torch.stack([(one.value - true) / one.stderr for one in found])
    assert 0.8 < float(z.std()) < 1.2  # the standard error is one
    several = de.snis((p / q).log()[x[0]], torch.stack([f, 2 * f], 1)[x[0]])
    torch.testing.assert_close(several.value[1], 2 * several.value[0])
    with pytest.raises(ValueError, match="give one each"):
        de.snis(torch.zeros(3), torch.zeros(4))


def test_gumbel_top_k_is_a_draw_without_replacement() -> None:
    g = generator(5)
    p = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
    n = 40_000
    drawn = de.gumbel_top_k(p.log().expand(n, 4), 2, generator=g)
    counts = Counter(map(tuple, drawn.tolist()))
    expected = {(a, b): n * float(p[a] * p[b] / (1 - p[a])) for a, b in permutations(range(4), 2)}
    observed = [counts[pair] for pair in expected]
    assert scipy.stats.chisquare(observed, list(expected.values()), sum_check=False).pvalue > 1e-4
    # Noise of float32 ends at 16.6, so what is unlikelier than exp(-17) would never be drawn.
    noise = -(-torch.tensor(1 - 2**-24).log()).log()
    assert float(noise) < 16.7
    with pytest.raises(ValueError, match="k must be"):
        de.gumbel_top_k(torch.tensor([0.0, -math.inf]), 2, generator=g)


def test_expected_utility_of_equality_is_the_relative_frequency() -> None:
    samples = ["a", "b", "b", "c", "b", "a"]
    made = de.expected_utilities(["a", "b", "c", "d"], samples, lambda h, y: float(h == y))
    torch.testing.assert_close(made, torch.tensor([2, 3, 1, 0]) / 6)


def test_the_first_argument_of_a_utility_is_the_candidate() -> None:
    # The share of the candidate's letters that the sample has: not symmetric.
    def precision(h: str, y: str) -> float:
        return sum(letter in y for letter in h) / len(h)

    made = de.expected_utilities(["ab", "a"], ["abc", "ax"], precision)
    torch.testing.assert_close(made, torch.tensor([0.75, 1.0]))
    turned = de.expected_utilities(["ab", "a"], ["abc", "ax"], lambda h, y: precision(y, h))
    assert int(made.argmax()) != int(turned.argmax())
    weighted = de.expected_utilities(
        ["ab", "a"], ["abc", "ax"], precision, weights=torch.tensor([3.0, 1.0])
    )
    torch.testing.assert_close(weighted, torch.tensor([0.875, 1.0]))
    # A sample that was drawn twice is a sample with twice the weight.
    twice = de.expected_utilities(["ab", "a"], ["abc", "abc", "abc", "ax"], precision)
    torch.testing.assert_close(twice, weighted)


def test_the_noisy_channel_is_bayes_rule() -> None:
    # With exact models of one joint law, channel and prior alone rank as the direct model does.
    joint = torch.rand(3, 5, generator=generator(6), dtype=torch.float64)
    joint /= joint.sum()
    c = 2
    direct = (joint[:, c] / joint[:, c].sum()).log()
    channel, prior = (joint[:, c] / joint.sum(1)).log(), joint.sum(1).log()
    alone = de.noisy_channel(torch.zeros(3).double(), channel, prior)
    torch.testing.assert_close(alone.log_softmax(0), direct)
    both = de.noisy_channel(direct, channel, prior, weight=0.5)
    torch.testing.assert_close(both.log_softmax(0), (1.5 * direct).log_softmax(0))
    never = torch.full((3,), -math.inf, dtype=torch.float64)  # explains nothing, and does not count
    assert torch.equal(de.noisy_channel(direct, never, prior, weight=0.0), direct)


def test_what_is_out_of_range_is_refused(own_checks: None) -> None:
    z, r = world(2)
    cases: list[tuple[Any, str]] = [
        (lambda: de.best_of_n(torch.zeros(3, 0)), "samples must be 1 or more"),
        (lambda: de.best_of_n(torch.tensor([math.nan, 1.0])), "NaN"),
        (lambda: de.best_of_n_law(z, r, 0), "n must be 1 or more"),
        (lambda: de.best_of_n_law(z, r[:3], 2), "rewards"),
        (lambda: de.expected_utilities([], ["a"], lambda h, y: 1.0), "candidates"),
        (lambda: de.expected_utilities(["a"], [], lambda h, y: 1.0), "samples"),
        (
            lambda: de.expected_utilities(["a"], ["a"], lambda h, y: 1.0, weights=torch.ones(2)),
            "weights",
        ),
        (
            lambda: de.expected_utilities(["a"], ["a"], lambda h, y: 1.0, weights=-torch.ones(1)),
            "weights must be 0 or more",
        ),
        (lambda: de.expected_utilities(["a"], ["a"], lambda h, y: math.nan), "utility is NaN"),
        (lambda: de.noisy_channel(z, z, z, weight=-1.0), "weight"),
        (lambda: de.noisy_channel(z, z[:3], z), "direct and channel must have the same shape"),
        (lambda: de.best_of_n_law(z, r * math.nan, 2), "reward is NaN"),
        (lambda: de.best_of_n_law(z - math.inf, r, 2), "largest logit"),
        (lambda: de.snis(z - math.inf, r), "largest logit"),
        (lambda: de.gumbel_top_k(z * math.nan, 2, generator=generator(0)), "largest logit"),
        (lambda: de.rejection_accept(z, math.inf, generator=generator(0)), "log_bound"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
