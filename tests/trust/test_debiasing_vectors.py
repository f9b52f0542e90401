"""Hard debiasing: what it promises holds, and what it hides is found again."""

import math
import re

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from companion import data
from companion.trust import debiasing as de


def numbers(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


def test_differences_are_not_centered_across_pairs() -> None:
    # faults: (2, .1) and (2, -.1) share the direction (1, 0); centered they would give (0, 1).
    pairs = torch.tensor([[[2.0, 0.1], [0.0, 0.0]], [[2.0, -0.1], [0.0, 0.0]]]).double()
    torch.testing.assert_close(de.bias_directions(pairs), torch.tensor([[1.0, 0.0]]).double())


def test_directions_are_principal_components_of_centered_pairs(g: torch.Generator) -> None:
    pairs = numbers(7, 2, 5, g=g)
    pairs[:, 0] += torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0])
    made = de.bias_directions(pairs, count=2)
    centered = (pairs - pairs.mean(1, keepdim=True)).flatten(0, 1)
    values, vectors = torch.linalg.eigh(centered.mT @ centered)
    want = vectors.flip(1)[:, :2].mT
    torch.testing.assert_close((made @ want.mT).abs(), torch.eye(2).double(), rtol=0, atol=1e-12)
    assert values[-1] > values[-2]
    # First words lie on the positive side; turned pairs turn it.
    assert ((pairs[:, 0] - pairs[:, 1]) @ made.mT).sum(0).min() > 0
    torch.testing.assert_close(de.bias_directions(pairs.flip(1), count=2), -made)


def test_hard_debiasing_keeps_its_promises(g: torch.Generator) -> None:
    vectors, directions = numbers(23, 7, g=g), torch.linalg.qr(numbers(7, 2, g=g)).Q.mT
    keep = torch.zeros(23, dtype=torch.bool)
    keep[:5] = True
    pairs = torch.tensor([[0, 1], [2, 7]])
    held = vectors.clone()
    made = de.hard_debias(vectors, directions, keep=keep, pairs=pairs)
    assert torch.equal(vectors, held)
    torch.testing.assert_close(made.norm(dim=1), torch.ones(23).double(), rtol=1e-13, atol=0)
    neutral = ~keep
    neutral[pairs.flatten()] = False
    assert (made[neutral] @ directions.mT).abs().max() < 1e-14
    torch.testing.assert_close(made[[3, 4]], unit(vectors)[[3, 4]])  # not touched
    # Each member of a pair is as far from each neutral word as the other.
    for one, other in pairs.tolist():
        apart = made[neutral] @ (made[one] - made[other])
        assert apart.abs().max() < 1e-14
        assert (made[one] - made[other]).norm() > 0.1
    none = de.hard_debias(vectors, directions, keep=keep, pairs=torch.zeros(0, 2).long())
    torch.testing.assert_close(none[5:], de.neutralize(unit(vectors[5:]), directions))


def test_equalized_vectors_have_length_one_at_the_edge() -> None:
    # 1 - |nu|^2 is a rounding below 0 where both words are equal but along the direction.
    g = torch.tensor([[1.0, 0.0, 0.0]])
    pair = torch.tensor([[[1e-4, 0.6, 0.8], [-1e-4, 0.6, 0.8]]])
    made = de.equalize(pair, g)
    assert made.isfinite().all()
    torch.testing.assert_close(made.norm(dim=-1), torch.ones(1, 2))
    three = unit(torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0)))
    assert (de.equalize(three, g)[..., 1:].std(1)).max() < 1e-6  # equal but along the direction


def test_two_means_are_those_of_scikit_learn(g: torch.Generator) -> None:
    x = numbers(101, 5, g=g)
    x[:40] += 2.0
    ours = de.two_means(x, generator=g, restarts=20)
    theirs = KMeans(2, n_init=20, random_state=0).fit(x.numpy())
    cost = sum(float((x[ours == k] - x[ours == k].mean(0)).square().sum()) for k in (0, 1))
    assert cost == pytest.approx(theirs.inertia_, rel=1e-6)
    found = torch.from_numpy(theirs.labels_).long()
    assert float(de.cluster_accuracy(ours, found)) > 0.98
    assert float(de.cluster_accuracy(1 - ours, found)) == float(de.cluster_accuracy(ours, found))


def test_chance_alone_matches_more_than_half(g: torch.Generator) -> None:
    n, tries = 1000, 400
    drawn = [
        float(de.cluster_accuracy(*torch.randint(0, 2, (2, n), generator=g))) for _ in range(tries)
    ]
    want = 0.5 + 1 / math.sqrt(2 * math.pi * n)
    # The half-normal's deviation is 0.6 of the normal's, 0.0158.
    assert abs(sum(drawn) / tries - want) < 5 * 0.0158 * 0.61 / math.sqrt(tries)


def test_clusters_recover_gender_after_hard_debiasing(g: torch.Generator) -> None:
    # Gonen and Goldberg's finding. The labels are those before, the vectors those after: a
    # comparison that looked at the old vectors twice would recover everything.
    vectors, lists = data.word2vec_news(), data.gender_words()
    V, row = unit(vectors.vectors), vectors.index
    pairs = torch.tensor([[row[b], row[a]] for a, b in lists.definitional_pairs])
    direction = de.bias_directions(V[pairs])
    own = {w for p in (*lists.definitional_pairs, *lists.equalize_pairs) for w in p}
    own |= set(lists.specific)
    keep = torch.tensor([word in own or word.lower() in own for word in vectors.words])
    equal = [(a.lower(), b.lower()) for a, b in lists.equalize_pairs]
    both = torch.tensor([[row[a], row[b]] for a, b in equal if a in row and b in row])
    after = de.hard_debias(V, direction, keep=keep, pairs=both)
    plain = torch.tensor([bool(re.fullmatch("[a-z]+", word)) for word in vectors.words])
    free = (plain & ~keep).nonzero()[:, 0]
    order = free[(V[free] @ direction[0]).argsort()]
    chosen = torch.cat([order[:500], order[-500:]])
    labels = torch.cat([torch.zeros(500), torch.ones(500)]).long()
    assert (after[chosen] @ direction[0]).abs().max() < 1e-6
    before = de.cluster_accuracy(de.two_means(V[chosen], generator=g), labels)
    later = de.cluster_accuracy(de.two_means(after[chosen], generator=g), labels)
    assert float(before) > 0.98
    assert 0.7 < float(later) < 0.9  # chance gives 0.51


def test_what_is_refused(own_checks: None) -> None:
    x = torch.ones(3, 5)
    with pytest.raises(ValueError, match=r"pairs must have shape \(\*, 2, \*\)"):
        de.bias_directions(torch.ones(3, 3, 5))
    with pytest.raises(ValueError, match="do not span 4 directions"):
        de.bias_directions(torch.ones(3, 2, 5), count=4)
    with pytest.raises(ValueError, match=r"directions must have shape \(\*, 5\)"):
        de.neutralize(x, torch.ones(1, 4))
    with pytest.raises(ValueError, match="two members or more"):
        de.equalize(torch.ones(2, 1, 5), torch.ones(1, 5))
    with pytest.raises(ValueError, match=r"pairs must lie in \[0, 3\), got 3"):
        de.hard_debias(x, x[:1], keep=torch.ones(3, dtype=torch.bool), pairs=torch.tensor([[0, 3]]))
    with pytest.raises(ValueError, match="two vectors at least, got 1"):
        de.two_means(x[:1], generator=torch.Generator())
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 2"):
        de.cluster_accuracy(torch.tensor([0, 1]), torch.tensor([0, 2]))


def test_shapes_without_values() -> None:
    x = torch.ones(3, 2, 5, device="meta")
    assert de.neutralize(x, x[0, :1]).shape == x.shape
    assert de.equalize(x, x[0, :1]).shape == x.shape
    assert de.bias_directions(x).shape == (1, 5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_word_along_the_direction_is_nan_and_not_rounding_errors(
    dtype: torch.dtype, g: torch.Generator
) -> None:
    direction = unit(numbers(1, 307, g=g))
    words = torch.cat([2.7 * direction, -0.3 * direction, direction + unit(numbers(1, 307, g=g))])
    made = de.neutralize(words.to(dtype), direction.to(dtype))
    assert made[:2].isnan().all()
    assert abs(float(made[2].double().norm()) - 1) < 0.01
    # So it is with pairs that do not differ along the direction.
    side = unit(numbers(2, 307, g=g))
    side = unit(side - side @ direction.mT @ direction)
    pair = unit(side + 0.4 * direction)
    assert de.equalize(pair[None].to(dtype), direction.to(dtype)).isnan().all()
    pair = unit(side + torch.tensor([[0.4], [-0.3]]) * direction)
    assert de.equalize(pair[None].to(dtype), direction.to(dtype)).isfinite().all()


def test_directions_may_have_another_dtype(g: torch.Generator) -> None:
    words, direction = numbers(5, 7, g=g), unit(numbers(1, 7, g=g)).float()
    keep, pairs = torch.zeros(5, dtype=torch.bool), torch.tensor([[0, 3]])
    made = de.hard_debias(words, direction, keep=keep, pairs=pairs)
    assert made.dtype == torch.float64
    assert (made[[1, 2, 4]] @ direction.double().mT).abs().max() < 1e-6


@pytest.mark.usefixtures("own_checks")
def test_hard_debiasing_refuses_what_it_cannot_do(g: torch.Generator) -> None:
    words, direction = numbers(5, 7, g=g), unit(numbers(1, 7, g=g))
    keep = torch.zeros(5, dtype=torch.bool)
    for wrong in ([[0, 1], [1, 2]], [[3, 3]]):
        with pytest.raises(ValueError, match=r"row [13] stands in two pairs"):
            de.hard_debias(words, direction, keep=keep, pairs=torch.tensor(wrong))
    # The same pair named again, or the other way around, is one pair.
    once, again = (
        de.hard_debias(words, direction, keep=keep, pairs=torch.tensor(pairs))
        for pairs in ([[0, 1]], [[0, 1], [1, 0]])
    )
    torch.testing.assert_close(once, again, rtol=0, atol=1e-15)
    with pytest.raises(ValueError, match="keep must be Boolean"):
        de.hard_debias(words, direction, keep=keep.long(), pairs=torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="words must be floating"):
        de.direct_bias(torch.ones(2, 3, dtype=torch.long), torch.ones(3))


def test_clusters_of_what_is_no_number_are_refused(g: torch.Generator) -> None:
    with pytest.raises(ValueError, match="vectors must be finite"):
        de.two_means(torch.tensor([[math.nan], [1.0], [2.0]]), generator=g)


def test_direct_bias_does_not_depend_on_lengths(g: torch.Generator) -> None:
    words, direction = numbers(5, 7, g=g), numbers(7, g=g)
    want = (unit(words) @ unit(direction)).abs().square().mean()
    for scale in (0.3, 1.0, 7.0):
        made = de.direct_bias(scale * words, direction / scale, power=2.0)
        torch.testing.assert_close(made, want, rtol=1e-13, atol=0)


@pytest.mark.usefixtures("own_checks")
def test_directions_that_are_not_orthonormal_are_refused(g: torch.Generator) -> None:
    # With he - she as it is, or with two that are not orthogonal, a part along them would stay.
    words, one = unit(numbers(5, 7, g=g)), unit(numbers(1, 7, g=g))
    slanted = torch.cat([one, unit(one + unit(numbers(1, 7, g=g)))])
    keep, pairs = torch.zeros(5, dtype=torch.bool), torch.tensor([[0, 1]])
    for wrong in (2 * one, slanted, torch.full((1, 7), math.nan).double()):
        with pytest.raises(ValueError, match="directions must be orthonormal rows"):
            de.neutralize(words, wrong)
        with pytest.raises(ValueError, match="directions must be orthonormal rows"):
            de.equalize(words[None, :2], wrong)
        with pytest.raises(ValueError, match="directions must be orthonormal rows"):
            de.hard_debias(words, wrong, keep=keep, pairs=pairs)
    left = words - (words @ (2 * one).mT) @ (2 * one)
    assert (left @ one.mT).abs().max() > 0.1  # what would have come of it
    for dtype in (torch.float32, torch.float16, torch.bfloat16):  # rounded ones are good enough
        de.neutralize(words.to(dtype), one.to(dtype))
