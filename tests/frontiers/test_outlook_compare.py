"""Comparisons, ratings, and selective answers: exact where they can be, and never p = 0."""

import itertools
import math

import numpy as np
import pytest
import torch
from sacrebleu.metrics.bleu import BLEU as TheirBLEU
from scipy import stats

from companion.frontiers import outlook as ou
from companion.frontiers.outlook import _compare
from companion.frontiers.reinforcement import fit_bradley_terry


def g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_bootstrap_of_bleu_is_sacrebleus_on_the_same_resamples() -> None:
    r = np.random.default_rng(0)
    texts = [" ".join(r.choice(list("abcde"), 9)) for _ in range(31)]
    references = [" ".join(r.choice(list("abcde"), 9)) for _ in range(31)]
    other = [" ".join(r.choice(list("abcde"), 9)) for _ in range(31)]
    drawn = r.integers(0, 31, (200, 31))
    metric = TheirBLEU(references=[references])
    scores = []
    for system in (texts, other):
        seen = np.array(metric._extract_corpus_statistics(system, None))
        scores.append([metric._aggregate_and_compute(list(seen[row])).score for row in drawn])
    differences = np.array(scores[0]) - np.array(scores[1])
    real = metric.corpus_score(texts, None).score - metric.corpus_score(other, None).score
    far = np.abs(differences - differences.mean()) >= abs(real)
    made = _compare.compare_resamples(
        ou.bleu_counts(texts, references),
        ou.bleu_counts(other, references),
        torch.from_numpy(drawn),
        statistic=lambda c: ou.bleu_from_counts(c).score,
        level=0.95,
    )
    assert 100 * float(made.difference) == pytest.approx(real, abs=1e-6)
    assert made.p_value == (1 + far.sum()) / 201
    want = np.quantile(differences, [0.025, 0.975])
    assert [100 * float(made.low), 100 * float(made.high)] == pytest.approx(list(want), abs=1e-6)


def test_a_p_value_is_never_zero() -> None:
    better = torch.rand(40, generator=g()) + 5
    made = ou.paired_bootstrap(better, better - 3, resamples=99, generator=g())
    assert made.p_value == 1 / 100
    assert ou.paired_permutation(better, better - 3, draws=99, generator=g()).p_value == 1 / 100


def test_pairs_narrow_the_interval() -> None:
    hard = torch.randn(200, generator=g())
    a = hard + 0.1 * torch.randn(200, generator=g(1))
    b = hard + 0.1 * torch.randn(200, generator=g(2))
    paired = ou.paired_bootstrap(a, b, generator=g())
    apart = ou.paired_bootstrap(a, b[torch.randperm(200, generator=g(3))], generator=g())
    assert float(paired.high - paired.low) < 0.3 * float(apart.high - apart.low)


def test_swaps_are_exact_on_few_items() -> None:
    a, b = torch.randn(2, 7, generator=g())
    d = (a - b).double()
    all_signs = itertools.product((1, -1), repeat=7)
    sums = [abs(sum(s * float(v) for s, v in zip(signs, d, strict=True))) for signs in all_signs]
    want = sum(v >= abs(float(d.sum())) - 1e-9 for v in sums) / 128
    assert ou.paired_permutation(a, b, generator=g()).p_value == want
    drawn = ou.paired_permutation(a, b, draws=127, generator=g()).p_value
    assert abs(drawn - want) < 5 * math.sqrt(want * (1 - want) / 127) + 1 / 128


@pytest.mark.parametrize(("one", "two"), [(0, 0), (3, 3), (2, 7), (9, 1), (0, 6)])
def test_mcnemar_is_a_binomial_test(one: int, two: int) -> None:
    first = torch.tensor([True] * one + [False] * two + [True, False])
    second = torch.tensor([False] * one + [True] * two + [True, False])
    made = ou.mcnemar(first, second)
    assert made[:4] == (1, one, two, 1)
    want = stats.binomtest(one, one + two).pvalue if one + two else 1.0
    assert made.p_value == pytest.approx(want)
    chi = (one - two) ** 2 / max(one + two, 1)
    assert made.approximate == pytest.approx(stats.chi2.sf(chi, 1))


def test_elo_depends_on_the_order_of_games() -> None:
    twice = torch.tensor([[0, 1], [0, 1]])
    won_first = ou.elo_ratings(twice, torch.tensor([1.0, 0.0]), players=2)
    lost_first = ou.elo_ratings(twice, torch.tensor([0.0, 1.0]), players=2)
    assert won_first.tolist() == pytest.approx([998.53, 1001.47], abs=0.005)
    torch.testing.assert_close(lost_first, won_first.flip(0))


def test_elo_points_and_nats() -> None:
    assert float(ou.elo_expected(torch.tensor(400.0), torch.tensor(0.0))) == pytest.approx(10 / 11)
    assert pytest.approx(173.72, abs=0.005) == ou.ELO_UNIT
    theta = torch.randn(2, generator=g()).double()
    r = ou.elo_scale(theta)
    torch.testing.assert_close(ou.elo_expected(r[0], r[1]), torch.sigmoid(theta[0] - theta[1]))


def test_updates_in_sequence_are_the_ratings() -> None:
    games = torch.randint(5, (40, 2), generator=g())
    games = games[games[:, 0] != games[:, 1]]
    results = torch.randint(3, (len(games),), generator=g()) / 2
    ratings = torch.full((5,), 1000.0, dtype=torch.float64)
    for (i, j), s in zip(games.tolist(), results.double(), strict=True):
        ratings[i], ratings[j] = ou.elo_update(ratings[i].clone(), ratings[j].clone(), s, step=20.0)
    made = ou.elo_ratings(games, results, players=5, step=20.0)
    torch.testing.assert_close(made, ratings)


def test_the_fit_has_no_order_and_reproduces_victories() -> None:
    games = torch.tensor([[0, 1]] * 8 + [[1, 2]] * 6 + [[2, 0]] * 5)
    results = torch.tensor([1.0, 0, 1, 1, 0.5, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 0, 0])
    table = ou.win_matrix(games, results, players=3)
    assert float(table.sum()) == len(games)
    assert float(table[0, 1]) == 5.5
    order = torch.randperm(len(games), generator=g())
    torch.testing.assert_close(table, ou.win_matrix(games[order], results[order], players=3))
    made = ou.rank_intervals(games, results, players=3, prior=1e-9, resamples=20, generator=g())
    r = made.ratings
    expected = ou.elo_expected(r[games[:, 0]], r[games[:, 1]])
    # At the optimum each player's expected score is its score.
    for player in range(3):
        first, second = games[:, 0] == player, games[:, 1] == player
        score = results[first].sum() + (1 - results[second]).sum()
        assert float(expected[first].sum() + (1 - expected[second]).sum()) == pytest.approx(
            float(score), abs=1e-5
        )
    torch.testing.assert_close(r, ou.elo_scale(fit_bradley_terry(table)), rtol=1e-5, atol=1e-3)


def test_two_identical_players_share_their_ranks() -> None:
    games = torch.tensor([[0, 1], [1, 0]] * 50 + [[0, 2], [1, 2]] * 50)
    results = (torch.arange(200) % 4 < 2).double()
    results[100:] = 1.0
    made = ou.rank_intervals(games, results, players=3, generator=g())
    assert made.low.tolist() == [1, 1, 3]
    assert made.high.tolist() == [2, 2, 3]
    assert bool(made.ratings.isfinite().all())  # the third never won


def test_equal_ratings_share_their_ranks() -> None:
    games = torch.tensor([[0, 1], [1, 2], [2, 0]] * 4)
    made = ou.rank_intervals(games, torch.full((12,), 0.5), players=3, resamples=9, generator=g())
    assert made.ranks.tolist() == made.low.tolist() == [1, 1, 1]
    assert made.high.tolist() == [3, 3, 3]


def test_ratings_far_apart_do_not_overflow() -> None:
    twice = torch.tensor([[0, 1]] * 2)
    made = ou.elo_ratings(twice, torch.tensor([1.0, 0.0]), players=2, step=1e6, start=0.0)
    assert made.tolist() == [-5e5, 5e5]  # a sure winner lost


def test_intervals_of_ratings_are_quantiles_of_the_resamples() -> None:
    games = torch.tensor([[0, 1], [1, 2], [2, 0]] * 9)
    results = (torch.rand(27, generator=g()) < 0.5).double()
    made = ou.rank_intervals(games, results, players=3, level=0.8, resamples=33, generator=g())
    ends = made.resamples.quantile(torch.tensor([0.1, 0.9]).double(), dim=0)
    torch.testing.assert_close(torch.stack(list(made.interval)), ends)
    places = (-made.resamples).argsort(1).argsort(1).double() + 1
    low = places.quantile(0.1, dim=0, interpolation="lower")
    high = places.quantile(0.9, dim=0, interpolation="higher")
    assert made.low.tolist() == low.tolist()
    assert made.high.tolist() == high.tolist()


def test_each_system_has_its_own_interval_and_sign() -> None:
    a = torch.rand(300, generator=g())
    made = ou.paired_bootstrap(a + 5, a, generator=g())
    assert made.first_interval[0] > 5 > made.second_interval[1]
    assert float(ou.paired_permutation(a + 5, a, draws=99, generator=g()).difference) > 4.9
    noise = torch.randn(300, generator=g(1))
    for sign in (1, -1):  # two-sided: which of the two is ahead does not matter
        shifted = ou.paired_permutation(sign * (noise - 0.05), 0 * noise, draws=999, generator=g())
        z = float((noise - 0.05).sum() / (noise - 0.05).square().sum().sqrt())
        assert shifted.p_value == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.08)


def test_coverage_and_the_scale_of_the_frontier() -> None:
    assert ou.risk_coverage(torch.tensor([2.0, 1.0]), torch.ones(2)).coverage.tolist() == [0.5, 1.0]
    p, q = torch.tensor([0.7, 0.3, 0.0]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    made = ou.divergence_frontier(p, q, scale=2.0, points=3)
    for k, lam in enumerate((0.25, 0.5, 0.75)):
        r = lam * p + (1 - lam) * q
        kl_q = float((q * (q / r).log()).sum())
        kl_p = float(torch.special.xlogy(p, p / r).sum())
        assert float(made.quality[k]) == pytest.approx(math.exp(-2 * kl_q))
        assert float(made.diversity[k]) == pytest.approx(math.exp(-2 * kl_p))


def test_risk_is_the_mean_loss_of_the_surest() -> None:
    sure, loss = torch.rand(2, 17, generator=g())
    made = ou.risk_coverage(sure, loss)
    order = sure.argsort(descending=True)
    want = [float(loss[order[: k + 1]].double().mean()) for k in range(17)]
    assert made.risk.tolist() == pytest.approx(want)
    assert float(made.area) == pytest.approx(sum(want) / 17)
    assert float(made.best) <= float(made.area)
    assert float(ou.risk_coverage(-loss, loss).area) == pytest.approx(float(made.best))


def test_equal_confidences_share_their_losses() -> None:
    loss = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    flat = ou.risk_coverage(torch.ones(5), loss)
    assert flat.risk.tolist() == pytest.approx([0.4] * 5)
    sure = torch.tensor([2.0, 2.0, 1.0, 1.0, 1.0])
    order = torch.tensor([1, 0, 4, 3, 2])
    one, other = ou.risk_coverage(sure, loss), ou.risk_coverage(sure[order], loss[order])
    torch.testing.assert_close(one.risk, other.risk)


def test_a_team_can_be_better_than_both() -> None:
    sure = torch.tensor([0.9, 0.8, 0.3, 0.2])
    ours, theirs = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert ou.deferral_curve(sure, ours, theirs).tolist() == [0.25, 0.0, 0.0, 0.25, 0.5]


def test_the_frontier_of_equal_and_of_disjoint_laws() -> None:
    p = torch.tensor([0.2, 0.3, 0.5, 0.0])
    assert float(ou.divergence_frontier(p, p).area) == pytest.approx(1.0)
    q = torch.tensor([0.0, 0.0, 0.0, 1.0])
    # The points are ((1 - l)^c, l^c); for c = 1 their area is one half.
    assert float(ou.divergence_frontier(p, q, scale=1.0).area) == pytest.approx(0.5, abs=1e-3)
    r = torch.tensor([0.5, 0.1, 0.1, 0.3])
    one, other = ou.divergence_frontier(p, r, points=999), ou.divergence_frontier(r, p, points=999)
    assert float(one.area) == pytest.approx(float(other.area), abs=1e-6)
    torch.testing.assert_close(one.quality, other.diversity.flip(0))


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: ou.paired_bootstrap(torch.ones(3), torch.ones(4), generator=g()), "same items"),
        (lambda: ou.paired_bootstrap(torch.ones(1), torch.ones(1), generator=g()), "items"),
        (
            lambda: ou.paired_bootstrap(torch.ones(3, 2), torch.ones(3, 2), generator=g()),
            "statistic",
        ),
        (
            lambda: ou.paired_bootstrap(
                torch.ones(3), torch.ones(3), statistic=ou.mean_statistic, generator=g()
            ),
            "leave it out",
        ),
        (lambda: ou.paired_permutation(torch.ones(3), torch.ones(2), generator=g()), "one score"),
        (lambda: ou.mcnemar(torch.ones(3), torch.ones(3)), "bool"),
        (lambda: ou.elo_ratings(torch.tensor([[1, 1]]), torch.ones(1), players=2), "different"),
        (lambda: ou.win_matrix(torch.tensor([[0, 1]]), torch.tensor([2.0]), players=2), "results"),
        (lambda: ou.win_matrix(torch.tensor([[1, 1]]), torch.ones(1), players=2), "different"),
        (lambda: ou.elo_ratings(torch.tensor([[0, 1]]), torch.tensor([2.0]), players=2), "results"),
        (
            lambda: ou.win_matrix(torch.tensor([[0, 1]]), torch.tensor([torch.nan]), players=2),
            "results",
        ),
        (
            lambda: ou.rank_intervals(
                torch.tensor([[0, 1]]), torch.ones(1), players=3, generator=g()
            ),
            "player 2 has no game",
        ),
        (
            lambda: ou.paired_bootstrap(
                torch.tensor([1.0, torch.nan]), torch.ones(2), generator=g()
            ),
            "first must be finite",
        ),
        (
            lambda: ou.paired_permutation(
                torch.ones(2), torch.tensor([1.0, torch.nan]), generator=g()
            ),
            "second must be finite",
        ),
        (lambda: ou.elo_update(torch.ones(2), torch.ones(3), torch.ones(2)), "second|first"),
        (lambda: ou.risk_coverage(torch.tensor([torch.nan]), torch.ones(1)), "NaN"),
        (lambda: ou.risk_coverage(torch.ones(2), torch.ones(3)), "loss"),
        (lambda: ou.divergence_frontier(torch.ones(2), torch.ones(2)), "sum 1"),
    ],
)
def test_what_makes_no_sense_is_refused(call: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()  # type: ignore[operator]
