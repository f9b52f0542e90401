"""Duplicates: shingles, signatures, bands, and which text of a pair is kept."""

import itertools
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import datasketch
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion import data
from companion.knowledge import data_quality as dq


def members(count: int, g: torch.Generator) -> torch.Tensor:
    return torch.randint(-(2**62), 2**62, (count,), generator=g)


def a_pair(similarity: float, size: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of one size with about the similarity asked for."""
    common = round(2 * size * similarity / (1 + similarity))
    every = members(2 * size - common, g)
    return every[:size], every[size - common :]


# --- shingles ------------------------------------------------------------------------------------


def plain_words(text: str) -> list[str]:
    """Runs of letters and digits, and each Chinese character by itself, one at a time."""
    words, run = [], ""
    for character in text.lower():
        han = "\u4e00" <= character <= "\u9fff"
        if character.isalnum() and not han:
            run += character
            continue
        if run:
            words.append(run)
        run = ""
        if han:
            words.append(character)
    return [*words, run] if run else words


@given(st.text(alphabet="aB3 .é好山\n", max_size=40), st.integers(1, 6))
def test_shingles_are_as_many_as_the_different_runs_of_words(text: str, n: int) -> None:
    words = plain_words(text)
    width = min(n, len(words))
    runs = {tuple(words[i : i + width]) for i in range(len(words) - width + 1)} if words else set()
    assert len(dq.shingles(text, n=n)) == len(runs)


def test_equal_runs_have_equal_hashes_wherever_they_stand() -> None:
    a = dq.shingles("xx yy the cat sat on the mat", n=5)
    b = dq.shingles("The cat, sat: on THE mat! zz", n=5)
    assert int(torch.isin(a, b).sum()) == 2  # the cat sat on the, cat sat on the mat
    assert not torch.isin(dq.shingles("ab c", n=2), dq.shingles("a bc", n=2)).any()
    assert not torch.isin(dq.shingles("a b", n=2), dq.shingles("b a", n=2)).any()


def test_no_two_words_of_shakespeare_share_a_hash() -> None:
    words = set(plain_words(data.shakespeare()))
    assert len(words) > 20_000
    assert len(torch.cat([dq.shingles(word, n=1) for word in words]).unique()) == len(words)


def test_a_short_text_is_one_shingle_and_an_empty_one_none() -> None:
    assert len(dq.shingles("two words", n=5)) == 1
    assert len(dq.shingles(" .,!\n", n=5)) == 0
    assert len(dq.shingles("", n=5, unit="characters")) == 0
    assert len(dq.shingles("床前明月光", n=5)) == 1
    assert len(dq.shingles("床前明月光疑", n=5)) == 2


def test_characters_are_counted_with_one_blank_for_white_space() -> None:
    a = dq.shingles("to  be\n or", n=4, unit="characters")
    assert torch.equal(a, dq.shingles("to be or", n=4, unit="characters"))
    assert len(a) == 5


# --- signatures ----------------------------------------------------------------------------------


def test_jaccard_is_that_of_pythons_sets() -> None:
    a, b = {1, 2, 3, 4, 11}, {2, 3, 9, 11, 13, 17, 19}
    found = dq.jaccard(torch.tensor(sorted(a)), torch.tensor(sorted(b)))
    assert float(found) == len(a & b) / len(a | b)
    assert float(dq.jaccard(torch.tensor([5]), torch.empty(0, dtype=torch.long))) == 0


def test_a_signature_is_the_smallest_hash_of_each_function(g: torch.Generator) -> None:
    a, b = members(401, g), members(307, g)
    both = dq.minhash(torch.cat([a, b]), k=13)
    assert torch.equal(both, torch.minimum(dq.minhash(a, k=13), dq.minhash(b, k=13)))
    order = torch.randperm(401, generator=g)
    assert torch.equal(dq.minhash(a[order].repeat(2), k=13), dq.minhash(a, k=13))
    assert torch.equal(dq.minhash([a, b], k=13)[1], dq.minhash(b, k=13))
    assert not torch.equal(dq.minhash(a, k=13, seed=2), dq.minhash(a, k=13, seed=3))


@pytest.mark.parametrize("similarity", [0.2, 0.5, 0.8])
def test_the_estimate_has_the_mean_and_variance_of_independent_draws(
    similarity: float, g: torch.Generator
) -> None:
    errors = []
    k, pairs = 128, 500
    for seed in range(pairs):
        a, b = a_pair(similarity, 211, g)
        true = float(dq.jaccard(a, b))
        told = dq.signature_jaccard(dq.minhash(a, k=k, seed=seed), dq.minhash(b, k=k, seed=seed))
        errors.append((float(told) - true) / math.sqrt(true * (1 - true) / k))
    z = torch.tensor(errors)
    # Five standard errors of a mean and of a variance over so many pairs.
    assert abs(float(z.mean())) < 5 / math.sqrt(pairs)
    assert abs(float(z.var()) - 1) < 5 * math.sqrt(2 / pairs)


def test_a_bad_family_would_be_seen() -> None:
    # All hash functions equal: the variance is that of one, 128 times too large.
    z = torch.bernoulli(torch.full((500,), 0.5), generator=torch.Generator().manual_seed(0))
    assert float(z.var() * 128 / 0.25) > 100


def test_estimates_are_as_good_as_those_of_datasketch(g: torch.Generator) -> None:
    ours, theirs = [], []
    for seed in range(60):
        a, b = a_pair(0.5, 150, g)
        true = float(dq.jaccard(a, b))
        told = dq.signature_jaccard(dq.minhash(a, k=64, seed=seed), dq.minhash(b, k=64, seed=seed))
        ours.append(float(told) - true)
        made = []
        for some in (a, b):
            peer = datasketch.MinHash(64, seed=seed + 1)
            peer.update_batch([str(x).encode() for x in some.tolist()])
            made.append(peer)
        theirs.append(made[0].jaccard(made[1]) - true)
    # The law of both is the same; a ratio of variances over 60 pairs lies in [0.4, 2.5].
    ratio = torch.tensor(ours).square().mean() / torch.tensor(theirs).square().mean()
    assert 0.4 < float(ratio) < 2.5


def test_empty_sets_match_nothing_not_even_each_other() -> None:
    empty = torch.empty(0, dtype=torch.long)
    signatures = dq.minhash([empty, torch.tensor([3, 5]), empty], k=8)
    assert float(dq.signature_jaccard(signatures[0], signatures[2])) == 0
    assert len(dq.lsh_candidates(signatures, bands=4, rows=2)) == 0
    assert dq.near_duplicates(["", "...", ""]).of.tolist() == [-1, -1, -1]
    assert dq.minhash([], k=5).shape == (0, 5)


# --- bands ---------------------------------------------------------------------------------------


def test_bands_and_rows_are_not_exchanged() -> None:
    at = torch.tensor([0.8], dtype=torch.float64)
    assert round(float(dq.lsh_probability(at, bands=60, rows=13)[0]), 4) == 0.9664
    assert float(dq.lsh_probability(at, bands=13, rows=60)[0]) < 2.1e-5
    assert round(dq.lsh_threshold(bands=60, rows=13), 3) == 0.730
    assert round(dq.lsh_threshold(bands=13, rows=60), 3) == 0.958


def test_the_threshold_of_datasketch_is_no_guarantee_and_ours_is_chosen_to_be() -> None:
    index = datasketch.MinHashLSH(threshold=0.8, num_perm=128)
    assert (index.b, index.r) == (9, 13)
    at = torch.tensor([0.8, 0.9], dtype=torch.float64)
    caught = dq.lsh_probability(at, bands=9, rows=13)
    assert [round(float(p), 3) for p in caught] == [0.399, 0.929]
    for threshold, recall in itertools.product((0.5, 0.8, 0.95, 1.0), (0.9, 0.99)):
        cut = dq.choose_bands(threshold, k=256, recall=recall)
        at = torch.tensor(threshold, dtype=torch.float64)
        assert cut.bands * cut.rows <= 256
        assert float(dq.lsh_probability(at, bands=cut.bands, rows=cut.rows)) >= recall
        if cut.bands > 1:
            less = dq.lsh_probability(at, bands=cut.bands - 1, rows=cut.rows)
            assert float(less) < recall


def naive_candidates(signatures: torch.Tensor, bands: int, rows: int) -> set[tuple[int, int]]:
    cut = signatures[:, : bands * rows].view(-1, bands, rows)
    return {
        (i, j)
        for i, j in itertools.combinations(range(len(cut)), 2)
        if bool((cut[i] == cut[j]).all(1).any())
    }


def test_candidates_are_the_pairs_that_agree_in_a_band(g: torch.Generator) -> None:
    signatures = torch.randint(0, 3, (67, 12), generator=g, dtype=torch.int32)
    for bands, rows in ((4, 3), (2, 5), (12, 1), (1, 12)):
        found = dq.lsh_candidates(signatures, bands=bands, rows=rows)
        assert set(map(tuple, found.tolist())) == naive_candidates(signatures, bands, rows)
        assert found.tolist() == sorted(map(list, {tuple(pair) for pair in found.tolist()}))


def test_pairs_are_caught_as_often_as_the_curve_says(g: torch.Generator) -> None:
    a, b = a_pair(0.6, 97, g)
    true = dq.jaccard(a, b)
    trials = 2000
    caught = 0
    for seed in range(trials):
        signatures = dq.minhash([a, b], k=20, seed=seed)
        caught += len(dq.lsh_candidates(signatures, bands=5, rows=4))
    p = float(dq.lsh_probability(true, bands=5, rows=4))
    assert abs(caught / trials - p) < 5 * math.sqrt(p * (1 - p) / trials)


# --- clusters ------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 22), st.integers(0, 22)), max_size=40))
def test_clusters_are_connected_components(pairs: list[tuple[int, int]]) -> None:
    label = list(range(23))
    for _ in label:
        for a, b in pairs:
            label[a] = label[b] = min(label[a], label[b])
    table = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    found = dq.clusters(table, 23)
    assert found.tolist() == label
    # Every cluster has one smallest member: as many survive as there are clusters.
    assert int((found == torch.arange(23)).sum()) == len(set(label))


@given(st.lists(st.tuples(st.integers(0, 16), st.integers(0, 16)), max_size=40), st.randoms())
def test_what_is_dropped_has_a_kept_duplicate_and_nothing_kept_has_one(
    pairs: list[tuple[int, int]], rng: object
) -> None:
    pairs = [(a, b) for a, b in pairs if a != b]
    order = list(range(17))
    rng.shuffle(order)  # type: ignore[attr-defined]
    table = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    of = dq.keep_first(table, 17, order=torch.tensor(order)).tolist()
    joined = {frozenset(pair) for pair in pairs}
    for item, kept in enumerate(of):
        if kept >= 0:
            assert of[kept] == -1
            assert frozenset((item, kept)) in joined
            assert order.index(kept) < order.index(item)
    survivors = [item for item, kept in enumerate(of) if kept < 0]
    assert not any(frozenset(pair) in joined for pair in itertools.combinations(survivors, 2))


def test_two_verified_pairs_are_two_clusters() -> None:
    assert dq.clusters(torch.tensor([[1, 3], [2, 4]]), 5).unique().tolist() == [0, 1, 2]


def chain(length: int = 50, words: int = 400) -> list[str]:
    """Texts that each share most of their shingles with the next one, and the ends nothing."""
    vocabulary = [f"w{i}" for i in range(words + 20 * length)]
    return [" ".join(vocabulary[20 * i : 20 * i + words]) for i in range(length)]


def test_a_chain_is_one_cluster_but_its_ends_are_both_kept() -> None:
    texts = chain()
    sets = [dq.shingles(text) for text in texts]
    assert float(dq.jaccard(sets[0], sets[1])) > 0.89
    assert float(dq.jaccard(sets[0], sets[-1])) == 0
    found = dq.near_duplicates(texts, threshold=0.8)
    assert len(dq.clusters(found.pairs, 50).unique()) == 1
    kept = (found.of < 0).nonzero()[:, 0].tolist()
    assert kept == list(range(0, 50, 3))  # two steps lie above 0.8, three below


def test_a_corpus_without_duplicates_comes_back_whole() -> None:
    verses = [verse.text for verse in data.bible_verses()[:1500]]
    verses = [text for text in dict.fromkeys(verses) if len(text.split()) > 12]
    found = dq.near_duplicates(verses, threshold=0.8)
    exact = [(i, j) for i, j in found.pairs.tolist()]
    sets = [dq.shingles(text) for text in verses]
    assert all(float(dq.jaccard(sets[i], sets[j])) >= 0.8 for i, j in exact)
    assert int((found.of >= 0).sum()) <= len(exact)


def test_two_processes_find_what_one_finds() -> None:
    texts = [*chain(30), *(verse.text for verse in data.bible_verses()[:200])]
    alone = dq.near_duplicates(texts, threshold=0.8)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        together = dq.near_duplicates(texts, threshold=0.8, map=pool.map)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)
    assert int((alone.of >= 0).sum()) == 20


def test_estimates_decide_where_candidates_are_not_verified() -> None:
    texts = chain(20)
    exact = dq.near_duplicates(texts, threshold=0.8, bands=128, rows=1)
    rough = dq.near_duplicates(texts, threshold=0.8, bands=128, rows=1, verify=False)
    assert not torch.equal(exact.similarity, rough.similarity[: len(exact.similarity)])
    multiples = rough.similarity * 128
    assert torch.equal(multiples, multiples.round())


def test_planted_copies_are_found_as_the_theory_says() -> None:
    verses = [verse.text for verse in data.bible_verses()]
    passages = [" ".join(verses[i : i + 6]) for i in range(0, 3000, 6)]
    g = torch.Generator().manual_seed(0)
    copies = []
    for text in passages:
        words = text.split()
        for place in torch.randperm(len(words), generator=g)[:4].tolist():
            words[place] = "changed"
        copies.append(" ".join(words))
    sets = [dq.shingles(text) for text in [*passages, *copies]]
    true = torch.stack([dq.jaccard(sets[i], sets[i + 500]) for i in range(500)])
    candidates = dq.lsh_candidates(dq.minhash(sets), bands=16, rows=8)
    hit = set(map(tuple, candidates.tolist()))
    caught = torch.tensor([(i, i + 500) in hit for i in range(500)]).double()
    p = dq.lsh_probability(true, bands=16, rows=8)
    assert 0.2 < float(p.mean()) < 0.98
    # Five standard errors of a sum over independent pairs.
    assert abs(float((caught - p).sum())) < 5 * float((p * (1 - p)).sum().sqrt())


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: dq.shingles("a", n=0), "n must be"),
        (lambda: dq.shingles("a", unit="bytes"), "unknown unit 'bytes'"),
        (lambda: dq.minhash(torch.tensor([0.5])), "must hold integers"),
        (lambda: dq.minhash(torch.tensor([[1]])), "one row of members"),
        (lambda: dq.jaccard(torch.tensor([0.5]), torch.tensor([1])), "hash the members first"),
        (
            lambda: dq.signature_jaccard(torch.tensor([1]), torch.tensor([1, 2])),
            "signatures of one length",
        ),
        (lambda: dq.lsh_probability(torch.tensor(0.5), bands=0, rows=1), "bands must be"),
        (lambda: dq.choose_bands(0.0), "threshold must"),
        (lambda: dq.choose_bands(0.01, k=8, recall=0.99), "take longer signatures"),
        (
            lambda: dq.lsh_candidates(torch.ones(3, 8).int(), bands=3, rows=3),
            "need 9 entries, a signature has 8",
        ),
        (lambda: dq.lsh_candidates(torch.ones(8).int(), bands=2, rows=2), "one row for each set"),
        (lambda: dq.clusters(torch.tensor([[0, 5]]), 5), "numbers from 0 to 4"),
        (lambda: dq.clusters(torch.tensor([0, 1]), 5), "shape"),
        (
            lambda: dq.keep_first(torch.tensor([[0, 1]]), 3, order=torch.tensor([0, 1, 1])),
            "each number from 0 to 2 once",
        ),
        (lambda: dq.near_duplicates("a text"), "texts"),
        (lambda: dq.near_duplicates(["a"], bands=3), "both bands and rows"),
    ],
)
def test_what_is_out_of_its_domain_is_refused(wrong, said) -> None:
    with pytest.raises(ValueError, match=said):
        wrong()


def test_inputs_stay_as_they_were(g: torch.Generator) -> None:
    a = members(31, g)
    before = a.clone()
    signatures = dq.minhash([a, a], k=6)
    held = signatures.clone()
    dq.lsh_candidates(signatures, bands=2, rows=3)
    pairs = torch.tensor([[1, 2], [0, 2]])
    dq.clusters(pairs, 3)
    dq.keep_first(pairs, 3)
    assert torch.equal(a, before)
    assert torch.equal(signatures, held)
    assert pairs.tolist() == [[1, 2], [0, 2]]


@pytest.mark.parametrize("bad", [-0.1, 1.1, torch.nan])
def test_a_similarity_is_a_share(bad: float, own_checks) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        dq.lsh_probability(torch.tensor([bad, 0.5]), bands=3, rows=2)


def test_of_several_kept_texts_the_first_in_order_is_named() -> None:
    pairs = torch.tensor([[1, 2], [0, 2]])
    assert dq.keep_first(pairs, 3).tolist() == [-1, -1, 0]
    assert dq.keep_first(pairs, 3, order=torch.tensor([1, 0, 2])).tolist() == [-1, -1, 1]


def test_a_pair_just_at_the_threshold_is_a_pair() -> None:
    texts = ["a b c", "a b d"]  # 2 of 4 words
    found = dq.near_duplicates(texts, threshold=0.5, n=1, bands=128, rows=1)
    assert found.similarity.tolist() == [0.5]
    assert found.of.tolist() == [-1, 0]


def test_multipliers_are_odd_so_that_each_hash_is_a_permutation() -> None:
    from companion.knowledge.data_quality._minhash import _family

    factor, _ = _family(512, 1, torch.device("cpu"))
    assert bool((factor % 2 != 0).all())
