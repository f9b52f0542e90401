"""Association tests: by enumeration, by hand, and on the published words."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion import data
from companion.trust import debiasing as de


def numbers(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def enumerated(first: Tensor, second: Tensor, *, two_sided: bool = False) -> float:
    """The p-value by making every partition."""
    both = torch.cat([first, second]).tolist()
    n = len(first)

    def apart(chosen: tuple[int, ...]) -> float:
        inside = [both[i] for i in chosen]
        outside = [both[i] for i in range(len(both)) if i not in chosen]
        return sum(inside) / len(inside) - sum(outside) / len(outside)

    every = [apart(chosen) for chosen in combinations(range(len(both)), n)]
    reached = apart(tuple(range(n)))
    if two_sided:
        return sum(abs(v) >= abs(reached) - 1e-9 for v in every) / len(every)
    return sum(v >= reached - 1e-9 for v in every) / len(every)


def test_association_is_the_mean_of_cosines(g: torch.Generator) -> None:
    words, first, second = numbers(5, 7, g=g), numbers(3, 7, g=g), numbers(2, 7, g=g)
    held = [t.clone() for t in (words, first, second)]
    cos = torch.nn.functional.cosine_similarity
    want = torch.stack([cos(w[None], first).mean() - cos(w[None], second).mean() for w in words])
    torch.testing.assert_close(de.association(words, first, second), want, rtol=1e-13, atol=1e-14)
    for one, other in zip((words, first, second), held, strict=True):
        assert torch.equal(one, other)
    # Lengths do not count, also where squares of the entries would overflow.
    far = de.association(words.float() * 1e30, first.float(), second.float() * 1e-30)
    torch.testing.assert_close(far.double(), want, rtol=1e-5, atol=1e-6)
    half = de.association((300 * words).half(), first.half(), second.half())
    assert half.dtype == torch.float32
    assert half.isfinite().all()


def test_the_deviation_of_the_effect_is_named() -> None:
    # faults: d is 2 with the population's deviation and 1.7321 with the sample's.
    one, other = torch.ones(2), -torch.ones(2)
    assert float(de.effect_size(one, other, ddof=0)) == 2.0
    assert float(de.effect_size(one, other)) == pytest.approx(math.sqrt(3), abs=1e-6)
    for n in (2, 8, 25):
        d = float(de.effect_size(torch.ones(n).double(), -torch.ones(n).double()))
        assert d == pytest.approx(2 * math.sqrt((2 * n - 1) / (2 * n)), rel=1e-14)
    assert round(2 * math.sqrt(15 / 16), 4) == 1.9365


@given(st.integers(1, 6), st.integers(0, 2**20))
def test_no_effect_passes_its_bound(n: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    one, other = numbers(n, g=g), numbers(n, g=g)
    if torch.cat([one, other]).std() < 1e-6:
        return
    assert abs(float(de.effect_size(one, other, ddof=0))) <= 2 + 1e-12
    assert abs(float(de.effect_size(one, other))) <= 2 * math.sqrt((2 * n - 1) / (2 * n)) + 1e-12


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**20), st.booleans(), st.booleans())
def test_halves_count_what_enumeration_counts(
    n: int, m: int, seed: int, two_sided: bool, ties: bool
) -> None:
    g = torch.Generator().manual_seed(seed)
    both = numbers(n + m, g=g)
    if ties:
        both = (2 * both).round()
    first, second = both[:n], both[n:]
    made = de.permutation_test(first, second, side="two-sided" if two_sided else "greater")
    assert made.exact
    assert made.partitions == math.comb(n + m, n)
    want = enumerated(first, second, two_sided=two_sided)
    assert made.p_value == pytest.approx(want, abs=1e-12)


def test_a_p_value_is_never_zero_and_a_signed_one_is_not_two_sided() -> None:
    # faults: with > in place of >= the first is 0; with a signed statistic the last would be 1.
    high, low = torch.tensor([1.0, 1.1]), torch.tensor([-1.0, -1.2])
    assert de.permutation_test(high, low).p_value == 1 / 6
    assert de.permutation_test(low, high).p_value == 1.0
    assert de.permutation_test(low, high, side="two-sided").p_value == 2 / 6
    eight = torch.arange(16.0).flip(0)
    assert de.permutation_test(eight[:8], eight[8:]).p_value == 1 / math.comb(16, 8)
    equal = torch.ones(3)
    assert de.permutation_test(equal, equal).p_value == 1.0
    assert de.permutation_test(equal, equal, side="two-sided").p_value == 1.0


def test_draws_come_near_the_exact_test(
    g: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = numbers(7, g=g) + 0.5, numbers(6, g=g)
    for side in ("greater", "two-sided"):
        exact = de.permutation_test(first, second, side=side).p_value
        with monkeypatch.context() as patch:
            patch.setattr("companion.trust.debiasing._permutation._MOST_WORDS", 5)
            drawn = de.permutation_test(first, second, side=side, draws=20_011, generator=g)
        assert not drawn.exact
        # Five standard errors of a share among 20,011 draws.
        assert abs(drawn.p_value - exact) < 5 * math.sqrt(exact * (1 - exact) / 20_011)
    far = de.permutation_test(numbers(23, g=g) + 9, numbers(23, g=g), draws=99, generator=g)
    assert far.p_value == 0.01


def test_roles_are_not_exchangeable(g: torch.Generator) -> None:
    X, Y, A, B = (numbers(5, 7, g=g) + shift for shift in (0.5, -0.5, 0.4, 0.1))
    one, other = de.weat(X, Y, A, B), de.weat(A, B, X, Y)
    assert abs(one.effect - other.effect) > 0.02
    assert one.effect == pytest.approx(-de.weat(Y, X, A, B).effect, rel=1e-12)
    assert one.effect == pytest.approx(-de.weat(X, Y, B, A).effect, rel=1e-12)
    assert one.test.p_value == pytest.approx(enumerated(one.first, one.second), abs=1e-12)


def test_published_effects_of_the_same_vectors() -> None:
    # The replication page of WEFE has 0.73 for word2vec trained on Google News in test 5, the one
    # test of the ten whose words this subset has all; it takes the population's deviation.
    vectors, tests = data.word2vec_news(), data.weat()
    made = de.word_weat(vectors, tests[4], ddof=0)
    assert made.coverage == 1.0
    assert made.missing == ()
    assert round(made.result.effect, 2) == 0.73
    assert made.result.test.exact
    sample = de.word_weat(vectors, tests[4])
    assert sample.result.effect == pytest.approx(made.result.effect * math.sqrt(35 / 36), rel=1e-12)


def test_missing_words_are_told() -> None:
    vectors, tests = data.word2vec_news(), data.weat()
    made = de.word_weat(vectors, tests[6])
    assert made.found == (7, 8, 8, 8)
    assert made.asked == (8, 8, 8, 8)
    assert made.coverage == 7 / 8
    assert len(made.missing) == 1
    with pytest.raises(ValueError, match=r"1 of 8 words of 'Female names'.*leave this test out"):
        de.word_weat(vectors, tests[5])
    lower = de.word_weat(data.glove(), tests[5], lower=True)
    assert lower.coverage == 1.0
    with pytest.raises(ValueError, match="0 of 8 words of 'Male names'"):
        de.word_weat(data.glove(), tests[5])  # names are lower-case there


def test_other_measures_of_association(g: torch.Generator) -> None:
    words, first, second = numbers(5, 3, g=g), numbers(2, 3, g=g), numbers(7, 3, g=g)
    by_hand = sum(
        math.dist(w, first.mean(0).tolist()) - math.dist(w, second.mean(0).tolist())
        for w in words.tolist()
    )
    made = float(de.relative_norm_distance(words, first, second))
    assert made == pytest.approx(by_hand, rel=1e-12)
    p = torch.tensor([0.2, 0.7, 0.4], dtype=torch.float64)
    share = (p / p.sum()).tolist()
    kl = sum(s * math.log(3 * s) for s in share)
    assert float(de.negative_sentiment(p)) == pytest.approx(kl, rel=1e-12)
    assert float(de.negative_sentiment(torch.tensor([1.0, 0.0, 0.0]))) == pytest.approx(math.log(3))
    assert float(de.direct_bias(words, 5 * words[0])) <= 1
    assert float(de.direct_bias(words[:1], words[0], power=3.0)) == pytest.approx(1.0)


def test_shapes_without_values() -> None:
    empty = {"device": "meta"}
    X, A = torch.ones(5, 7, **empty), torch.ones(3, 7, **empty)
    assert de.association(X, A, A).shape == (5,)
    assert de.effect_size(X[:, 0], X[:3, 0]).shape == ()
    assert de.relative_norm_distance(X, A, A).shape == ()
    assert de.direct_bias(X, X[0]).device.type == "meta"


def test_what_is_refused(g: torch.Generator, own_checks: None) -> None:
    x = numbers(3, 5, g=g)
    with pytest.raises(ValueError, match=r"second must have shape \(\*, 5\)"):
        de.association(x, x, x[:, :4])
    with pytest.raises(ValueError, match="words in first must be 1 or more"):
        de.association(x, x[:0], x)
    with pytest.raises(ValueError, match="ddof must be 0 or 1, got 2"):
        de.effect_size(x[0], x[1], ddof=2)
    with pytest.raises(ValueError, match="first must be finite"):
        de.permutation_test(torch.tensor([math.nan]), torch.ones(2))
    with pytest.raises(ValueError, match="give a generator to draw some"):
        de.permutation_test(torch.ones(30), torch.ones(30))
    with pytest.raises(ValueError, match="side must be 'greater' or 'two-sided', got 'less'"):
        de.permutation_test(x[0], x[1], side="less")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="numbers in second must be 1 or more"):
        de.permutation_test(x[0], x[1, :0])
    with pytest.raises(ValueError, match="must hold several texts"):
        de.in_sentences("art", ["This is {}."])
    with pytest.raises(ValueError, match=r"must have \{\} once"):
        de.in_sentences(["art"], ["This is it."])
    with pytest.raises(ValueError, match="largest probability"):
        de.negative_sentiment(torch.zeros(3))
    with pytest.raises(ValueError, match="smallest probability"):
        de.negative_sentiment(torch.tensor([-0.1, 0.3]))
    with pytest.raises(ValueError, match="power must be above 0"):
        de.direct_bias(x, x[0], power=0.0)


@pytest.mark.parametrize(("n", "m"), [(8, 8), (7, 5), (11, 2)])
def test_equal_numbers_have_no_effect_size(n: int, m: int) -> None:
    # Their rounded mean differs from each of them, so that a deviation above 0 seems to be there.
    for dtype in (torch.float32, torch.float64):
        same = torch.full((n + m,), 0.1, dtype=dtype)
        for ddof in (0, 1):
            assert de.effect_size(same[:n], same[n:], ddof=ddof).isnan()
