"""BM25, PageRank, MMR, fusion, BERTScore: equal to packages or to the definition."""

import itertools
import math
import random

import bm25s
import networkx as nx
import numpy as np
import pytest
import torch
from rank_bm25 import BM25Okapi

from companion.frontiers import outlook as ou
from companion.models import minilm


def documents(seed: int, n: int = 29) -> list[list[str]]:
    r = random.Random(seed)
    return [
        [f"w{int(r.paretovariate(0.7)) % 37}" for _ in range(r.randint(1, 23))] for _ in range(n)
    ]


QUERIES = [["w1"], ["w1", "w2", "w2"], ["w5", "unknown"], [], ["w3", "w7", "w11", "w30"]]


@pytest.mark.parametrize(
    ("variant", "method", "scale"),
    [("lucene", "lucene", False), ("floored", "robertson", False), ("atire", "atire", True)],
)
def test_scores_equal_bm25s(variant: ou.IdfVariant, method: str, scale: bool) -> None:
    texts = documents(0)
    theirs = bm25s.BM25(method=method, k1=1.3, b=0.6, dtype="float64")
    theirs.index(texts, show_progress=False)
    ours = ou.BM25(texts, k1=1.3, b=0.6, variant=variant, scale=scale).scores(QUERIES)
    for row, query in zip(ours, QUERIES, strict=True):
        known = [word for word in query if word != "unknown"]
        want = theirs.get_scores(known) if known else np.zeros(len(texts))
        np.testing.assert_allclose(row.numpy(), want, rtol=1e-9, atol=1e-12)


def test_scores_equal_rank_bm25() -> None:
    texts = documents(1)
    theirs = BM25Okapi(texts, k1=1.5, b=0.75)
    ours = ou.BM25(texts, variant="okapi").scores(QUERIES)
    for row, query in zip(ours, QUERIES, strict=True):
        np.testing.assert_allclose(row.numpy(), theirs.get_scores(query), rtol=1e-9, atol=1e-12)


def test_weights_of_a_frequent_word() -> None:
    assert float(ou.bm25_idf(torch.tensor([2]), 4)[0]) == pytest.approx(math.log(2))
    raw = [
        float(ou.bm25_idf(torch.tensor([n]), N, variant="robertson")[0])
        for n, N in ((2, 4), (6, 10))
    ]
    assert raw == pytest.approx([0.0, -0.3677], abs=5e-5)
    assert float(ou.bm25_idf(torch.tensor([6]), 10)[0]) == pytest.approx(0.5261, abs=5e-5)
    assert float(ou.bm25_idf(torch.tensor([6]), 10, variant="floored")[0]) == 0.0


def test_documents_are_counted_not_occurrences() -> None:
    once = ou.BM25([["a", "b"], ["c", "d"], ["e", "f"]], variant="atire").scores([["a"]])
    assert float(once[0, 0]) == pytest.approx(math.log(3))
    often = ou.BM25([["a"] * 9, ["c"] * 9, ["e"] * 9], variant="atire", k1=0.0).scores([["a"]])
    assert float(often[0, 0]) == pytest.approx(math.log(3))


def test_a_match_on_a_tiny_collection_is_found() -> None:
    index = ou.BM25([["hello", "world"], ["hello", "there"]])
    assert bool((index.scores([["hello"]]) > 0).all())
    assert index.search([["world"]], k=1).documents.tolist() == [[0]]


def test_search_is_the_top_of_the_scores_in_parts() -> None:
    texts = documents(2)
    index = ou.BM25(texts)
    whole = index.scores(QUERIES).topk(5, dim=1)
    found = index.search(QUERIES, k=5, batch_size=2)
    torch.testing.assert_close(found.scores, whole.values)
    assert index.search([], k=3).documents.shape == (0, 3)
    assert len(index) == len(texts)
    counts = torch.zeros(len(index.vocabulary), dtype=torch.float64)
    for word in QUERIES[1]:
        counts[index.vocabulary[word]] += 1
    torch.testing.assert_close(index.weights.to_dense() @ counts, index.scores(QUERIES)[1])


@pytest.mark.parametrize("personal", [False, True])
def test_pagerank_equals_networkx_with_dead_ends(personal: bool) -> None:
    g = torch.Generator().manual_seed(0)
    w = torch.rand(13, 13, generator=g, dtype=torch.float64)
    w = w * (torch.rand(13, 13, generator=g) < 0.3)
    w[4] = 0.0  # no way out
    w[:, 7] = 0.0  # no way in
    v = torch.rand(13, generator=g, dtype=torch.float64) if personal else None
    graph = nx.DiGraph()
    graph.add_nodes_from(range(13))
    graph.add_weighted_edges_from(
        (i, j, float(w[i, j])) for i in range(13) for j in range(13) if w[i, j]
    )
    where = None if v is None else {i: float(v[i]) for i in range(13)}
    want = nx.pagerank(graph, alpha=0.85, tol=1e-14, max_iter=1000, personalization=where)
    made = ou.pagerank(w, personal=v)
    assert made.tolist() == pytest.approx([want[i] for i in range(13)], abs=1e-10)


def test_word_lengths_absent_words_and_frequencies() -> None:
    w = ou.word_overlap([["a", "c"], ["a", "b", "b", "b"]])
    assert float(w[0, 1]) == pytest.approx(1 / math.log(8))
    assert ou.bm25_saturation(torch.zeros(2), torch.ones(2), k1=0.0).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="count documents"):
        ou.bm25_idf(torch.tensor([4]), 3)


def test_pagerank_of_a_batch_is_that_of_each() -> None:
    w = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ou.pagerank(w), torch.stack([ou.pagerank(one) for one in w]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pagerank_of_half_numbers(dtype: torch.dtype) -> None:
    w = torch.rand(5, 5, generator=torch.Generator().manual_seed(6)).to(dtype)
    made = ou.pagerank(w, personal=w[0])
    assert made.dtype == dtype
    torch.testing.assert_close(made, ou.pagerank(w.double(), personal=w[0].double()).to(dtype))


def test_mmr_is_the_greedy_definition() -> None:
    g = torch.Generator().manual_seed(2)
    for trade in (0.0, 0.3, 0.7, 1.0):
        a = torch.rand(11, generator=g)
        s = torch.randn(11, 5, generator=g)
        s = s @ s.T
        chosen: list[int] = []
        for _ in range(6):
            left = [i for i in range(11) if i not in chosen]
            far = {i: max((float(s[i, j]) for j in chosen), default=0.0) for i in left}
            chosen.append(max(left, key=lambda i: trade * float(a[i]) - (1 - trade) * far[i]))
        assert ou.mmr(a, s, k=6, trade=trade).tolist() == chosen


def test_fusion_shares_ranks_of_ties() -> None:
    scores = torch.tensor([[3.0, 1.0, 3.0, 0.0]])
    made = ou.reciprocal_rank_fusion([scores], k=0.0)
    want = [[1 / 1.5, 1 / 3, 1 / 1.5, 1 / 4]]
    assert made.tolist() == [pytest.approx(row) for row in want]
    g = torch.Generator().manual_seed(3)
    two = [torch.randn(3, 17, generator=g) for _ in range(2)]
    ranks = [(s[:, None, :] > s[:, :, None]).sum(-1) + 1 for s in two]
    want_all = sum(1 / (60.0 + r) for r in ranks)
    torch.testing.assert_close(ou.reciprocal_rank_fusion(two), want_all.double(), rtol=1e-6, atol=0)


def test_bertscore_is_greedy_matching_without_padding() -> None:
    g = torch.Generator().manual_seed(4)
    x, y = torch.randn(3, 7, 5, generator=g), torch.randn(3, 11, 5, generator=g)
    ours = torch.rand(3, 7, generator=g) < 0.7
    theirs = torch.rand(3, 11, generator=g) < 0.7
    made = ou.bertscore(x, y, candidate_real=ours, reference_real=theirs)
    for b in range(3):
        a, c = x[b][ours[b]], y[b][theirs[b]]
        cosines = torch.cosine_similarity(a[:, None], c[None], dim=-1)
        p, r = cosines.amax(1).mean(), cosines.amax(0).mean()
        torch.testing.assert_close(made.precision[b], p)
        torch.testing.assert_close(made.recall[b], r)
        torch.testing.assert_close(made.f1[b], 2 * p * r / (p + r))


def test_a_text_without_tokens_has_no_bertscore() -> None:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(5))
    none = torch.tensor([[False] * 3, [True] * 3])
    made = ou.bertscore(x, x, candidate_real=none)
    assert made.f1[0] == 0
    assert made.f1[1] == pytest.approx(1.0)
    for some, other in ((x[:, :0], x), (x, x[:, :0])):
        assert [part.tolist() for part in ou.bertscore(some, other)] == [[0, 0]] * 3
    assert [float(v) for v in ou.bertscore(x[0, :1], -x[0, :1])] == pytest.approx([-1.0] * 3)


def test_special_tokens_are_not_matched() -> None:
    encoder = minilm()
    made = ou.text_bertscore(encoder, ["Rates rose again.", ""], ["A kitten sleeps.", ""])
    ids, real = encoder.tokenize(["Rates rose again."])
    other, other_real = encoder.tokenize(["A kitten sleeps."])
    with torch.no_grad():
        x, y = encoder.model(ids, real=real), encoder.model(other, real=other_real)
    torch.testing.assert_close(made.f1[:1], ou.bertscore(x[:, 1:-1], y[:, 1:-1]).f1)
    assert made.f1[1] == 0
    with_them = ou.bertscore(x, y).f1
    assert abs(float(with_them - made.f1[0])) > 1e-3  # the wrong way is another number


def test_sentences_are_cut_where_a_capital_follows() -> None:
    text = 'He said "No." Then 3.5 km. why not?\nA new line'
    assert ou.split_sentences(text) == ['He said "No.', "Then 3.5 km. why not?", "A new line"]
    assert ou.split_sentences(" ") == []


def test_word_overlap_is_symmetric_and_has_no_loops() -> None:
    w = ou.word_overlap([["a", "b", "b"], ["b"], ["a", "b"], ["x"]])
    torch.testing.assert_close(w, w.T)
    assert w.diagonal().tolist() == [0.0] * 4
    assert float(w[0, 2]) == pytest.approx(2 / (math.log(3) + math.log(2)))
    assert float(w[1, 3]) == 0.0


def test_phrases_are_learned_from_places_that_agree() -> None:
    pairs = [
        ("thou art good", "you are good"),
        ("thou art old", "you are old"),
        ("he art", "he is"),
    ]
    table = ou.PhraseTable(*zip(*pairs, strict=True), least=2)
    assert table.translate("thou art late, (friend)!") == "you are late, (friend)!"
    assert table.translate("") == ""
    assert len(table) == len(table.table)
    log_p = table.table["thou", "art"][1]
    assert log_p == pytest.approx(0.0)
    with pytest.raises(ValueError, match="pairs"):
        ou.PhraseTable(["a"], [])


def test_a_phrase_counts_among_all_places_where_it_stands() -> None:
    pairs = [("a x b", "a y b")] * 3 + [("a x b", "a z b"), ("c", "d")] + [("x w", "y")] * 2
    table = ou.PhraseTable(*zip(*pairs, strict=True), longest=2, least=2).table
    assert table["x",] == (("y",), pytest.approx(math.log(3 / 6)))  # six times, three as y
    assert table["a", "x"] == (("a", "y"), pytest.approx(math.log(3 / 4)))
    assert table["x", "w"] == (("y",), 0.0)  # twice: the least that counts
    assert ("a", "x", "b") not in table  # too long
    assert ("c",) not in table  # seen once
    assert ("a", "x", "b") in ou.PhraseTable(*zip(*pairs, strict=True), longest=3).table
    long = [("the " * 240 + "x", "the " * 240 + "y")] * 2
    assert ou.PhraseTable(*zip(*long, strict=True), longest=1).table["x",] == (("y",), 0.0)


@pytest.mark.parametrize("penalty", [0.0, 0.137, 2.0])
def test_a_translation_is_the_best_of_all_cuts(penalty: float) -> None:
    r = random.Random(7)
    source = [" ".join(r.choices("abcd", k=r.randint(1, 6))) for _ in range(60)]
    target = [" ".join(r.choice([w, w, w.upper(), w + w]) for w in s.split()) for s in source]
    made = ou.PhraseTable(source, target, longest=3, least=2, penalty=penalty)
    for text in source[:25]:
        words = [*text.split(), "new"]
        found: dict[str, float] = {}
        for cuts in itertools.product((False, True), repeat=len(words) - 1):
            ends = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(words)]
            parts = [tuple(words[i:j]) for i, j in itertools.pairwise(ends)]
            if all(len(p) == 1 or (len(p) <= 3 and p in made.table) for p in parts):
                chosen = [made.table.get(p, (p, 0.0)) for p in parts]
                said = " ".join(word for phrase, _ in chosen for word in phrase)
                score = sum(log_p - penalty for _, log_p in chosen)
                found[said] = max(score, found.get(said, -math.inf))
        assert found[made.translate(" ".join(words))] == pytest.approx(max(found.values()))


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: ou.BM25(["a text"]), "split it first"),
        (lambda: ou.BM25([[]]), "no document has a word"),
        (lambda: ou.BM25([["a"]]).scores(["a"]), "split it first"),
        (lambda: ou.BM25([["a"]]).search([["a"]], k=2), "k must"),
        (lambda: ou.BM25([["a"]], variant="none"), "variant"),  # type: ignore[arg-type]
        (lambda: ou.BM25([["a"]], b=1.5), "b must"),
        (lambda: ou.bm25_idf(torch.tensor([0]), 3), "count documents"),
        (lambda: ou.pagerank(-torch.ones(2, 2)), "clamp"),
        (lambda: ou.pagerank(torch.ones(2, 2), damping=1.0), "damping"),
        (lambda: ou.pagerank(torch.ones(2, 2), personal=torch.zeros(2)), "above 0"),
        (lambda: ou.mmr(torch.ones(2), torch.ones(2, 2), k=3), "k must"),
        (lambda: ou.mmr(torch.tensor([-torch.inf, 1.0]), torch.eye(2), k=2), "relevance must"),
        (lambda: ou.mmr(torch.ones(2), torch.full((2, 2), torch.nan), k=2), "similarity must"),
        (lambda: ou.reciprocal_rank_fusion([]), "scores"),
        (lambda: ou.reciprocal_rank_fusion([torch.tensor([torch.nan, 1.0])]), "NaN"),
        (lambda: ou.word_overlap(["a"]), "split it first"),
    ],
)
def test_what_makes_no_sense_is_refused(call: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()  # type: ignore[operator]


def test_shapes_are_known_without_numbers() -> None:
    x, y = torch.empty(3, 7, 5, device="meta"), torch.empty(3, 11, 5, device="meta")
    assert ou.bertscore(x, y).f1.shape == (3,)
    assert ou.span_answer(x[..., 0], x[..., 1], longest=2).start.shape == (3,)
    assert ou.pagerank(torch.empty(3, 5, 5, device="meta")).shape == (3, 5)
    assert ou.mmr(x[0, :, 0], torch.empty(7, 7, device="meta"), k=3).shape == (3,)
    assert ou.reciprocal_rank_fusion([x[..., 0]] * 2).shape == (3, 7)
    assert ou.risk_coverage(x[0, :, 0], x[0, :, 1]).risk.shape == (7,)
    assert ou.deferral_curve(*x[0].T[:3]).shape == (8,)
    assert ou.divergence_frontier(x[0, :, 0], x[0, :, 1], points=9).quality.shape == (9,)
    assert ou.bm25_idf(torch.empty(4, device="meta", dtype=torch.long), 9).shape == (4,)
    counts = torch.empty(2, 10, device="meta")
    assert ou.bleu_from_counts(counts).precisions.shape == (2, 4)
