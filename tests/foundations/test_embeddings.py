"""Pure functions of the embeddings chapter against definitions, autograd and other libraries."""

import math
import re
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gensim.models import KeyedVectors
from gensim.models.fasttext_inner import compute_ngrams_bytes, ft_hash_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import svds
from scipy.stats import spearmanr

from companion.foundations import embeddings as emb

B, D, K, V = 5, 7, 3, 11
#: A few roundings of sums of at most a hundred terms of order 1 in float64.
TIGHT = {"rtol": 1e-12, "atol": 1e-13}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids(*shape: int, high: int = V, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def counts(rows: int = V, columns: int = 13, seed: int = 0) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randint(1, 60, (rows, columns), generator=made).double()


# --- text ---------------------------------------------------------------------------------------


def test_tokens_are_lower_case_words_with_inner_apostrophes():
    assert emb.tokenize("Lov’d 2 'tis café-au-lait 中文!") == [
        "lov'd", "tis", "café", "au", "lait", "中文",
    ]  # fmt: skip


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=60))
def test_vocabulary_counts_every_word_once_and_sorts_by_frequency(tokens):
    made = emb.vocabulary(tokens, min_count=1)
    assert dict(zip(made.words, made.counts.tolist(), strict=True)) == {
        word: tokens.count(word) for word in set(tokens)
    }
    assert made.counts.tolist() == sorted(made.counts.tolist(), reverse=True)
    assert [made.words[i] for i in emb.encode(tokens, made)] == tokens
    assert made.words == emb.vocabulary(reversed(tokens), min_count=1).words


def test_encoding_drops_words_outside_the_vocabulary_and_keeps_documents_apart():
    made = emb.corpus([["a", "x", "b"], ["b", "a", "y", "a"]], min_count=2)
    assert [made.vocabulary.words[i] for i in made.ids] == ["a", "b", "b", "a", "a"]
    assert made.documents.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("formula", ["paper", "code"])
def test_keep_probability_is_the_formula_word_by_word(formula):
    number = torch.tensor([700, 200, 90, 9, 1])
    kept = emb.keep_probability(number, threshold=0.05, formula=formula)
    for count, value in zip(number.tolist(), kept.tolist(), strict=True):
        ratio = 0.05 / (count / 1000)
        expected = math.sqrt(ratio) + (ratio if formula == "code" else 0.0)
        assert value == pytest.approx(min(1.0, expected), rel=1e-14)


def test_the_code_formula_agrees_with_gensim():
    from gensim.models import Word2Vec

    text = ["a"] * 700 + ["b"] * 200 + ["c"] * 90 + ["d"] * 10
    model = Word2Vec([text], min_count=1, sample=0.05, vector_size=2, workers=1, epochs=1)
    made = emb.vocabulary(text, min_count=1)
    kept = emb.keep_probability(made.counts, threshold=0.05, formula="code")
    theirs = [model.wv.get_vecattr(word, "sample_int") / 2**32 for word in made.words]
    torch.testing.assert_close(kept, torch.tensor(theirs, dtype=torch.float64), rtol=0, atol=1e-9)


def test_subsampling_keeps_each_word_at_its_rate():
    size, keep = 200_000, torch.tensor([0.2, 0.9])
    text = torch.arange(size) % 2
    chosen = text[emb.subsample(text, keep, generator=torch.Generator().manual_seed(0))]
    for word, rate in enumerate(keep.tolist()):
        spread = math.sqrt(rate * (1 - rate) * size / 2)
        assert abs(int((chosen == word).sum()) - rate * size / 2) < 5 * spread


@given(st.floats(0.0, 2.0))
def test_noise_is_a_distribution_between_uniform_and_unigram(power):
    number = torch.tensor([81, 16, 3])
    noise = emb.noise_distribution(number, power=power)
    expected = np.array([81.0, 16.0, 3.0]) ** power
    np.testing.assert_allclose(noise.numpy(), expected / expected.sum(), rtol=1e-13)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=24),
    st.integers(1, 6),
    st.sampled_from(["uniform", "dynamic", "harmonic"]),
)
def test_cooccurrence_is_the_double_loop(text, window, weighting):
    words = [word for word, _ in text]
    documents = np.cumsum([new for _, new in text]).tolist()
    expected = torch.zeros(5, 5, dtype=torch.float64)
    weight = {
        "uniform": lambda o: 1.0,
        "dynamic": lambda o: (window - o + 1) / window,
        "harmonic": lambda o: 1 / o,
    }[weighting]
    for i, j in product(range(len(words)), repeat=2):
        if i != j and abs(i - j) <= window and documents[i] == documents[j]:
            expected[words[i], words[j]] += weight(abs(i - j))
    result = emb.cooccurrence(
        torch.tensor(words), size=5, window=window, weighting=weighting,
        documents=torch.tensor(documents),
    )  # fmt: skip
    torch.testing.assert_close(result.to_dense(), expected, **TIGHT)


# --- lookup -------------------------------------------------------------------------------------


def test_lookup_is_a_product_with_one_hot_rows():
    table, chosen = draw(V, D), ids(2, 3)
    one_hot = F.one_hot(chosen, V).double()
    assert torch.equal(emb.embed(table, chosen), one_hot @ table)
    assert torch.equal(emb.embed(table, chosen), torch.nn.Embedding.from_pretrained(table)(chosen))


def test_lookup_gradient_adds_up_repeated_words():
    table, chosen = draw(V, D).requires_grad_(), torch.tensor([[2, 5, 2], [2, 0, 9]])
    upstream = draw(2, 3, D, seed=1)
    layer = torch.nn.Embedding.from_pretrained(table, freeze=False)
    (expected,) = torch.autograd.grad((layer(chosen) * upstream).sum(), layer.weight)
    result = emb.embed_gradient(chosen, upstream, size=V)
    torch.testing.assert_close(result, expected, **TIGHT)
    torch.testing.assert_close(result, F.one_hot(chosen, V).double().flatten(0, 1).T
                               @ upstream.flatten(0, 1), **TIGHT)  # fmt: skip


# --- losses -------------------------------------------------------------------------------------


def naive_sgns(v, u, n):
    total = 0.0
    for i in range(len(v)):
        total -= F.logsigmoid(v[i] @ u[i])
        for j in range(n.shape[1]):
            total -= F.logsigmoid(-(v[i] @ n[i, j]))
    return total / len(v)


CASES = {
    "sgns": (emb.sgns_loss, emb.sgns_gradients, (draw(B, D), draw(B, D, seed=1),
             draw(B, K, D, seed=2)), ()),
    "cbow": (emb.cbow_loss, emb.cbow_gradients, (draw(B, 2, D), draw(B, D, seed=1),
             draw(B, K, D, seed=2)), ()),
    "cbow-masked": (emb.cbow_loss, emb.cbow_gradients, (draw(2, 3, D), draw(2, D, seed=1),
                    draw(2, K, D, seed=2)),
                    (torch.tensor([[True, False, True], [False, False, False]]),)),
    "skipgram": (emb.skipgram_loss, emb.skipgram_gradients, (draw(B, D), draw(V, D, seed=1)),
                 (ids(B),)),
    "glove": (emb.glove_loss, emb.glove_gradients, (draw(B, D), draw(B, D, seed=1),
              draw(B, seed=2), draw(B, seed=3)),
              (torch.tensor([3.0, 250.0, 41.0, 0.0, 99.0], dtype=torch.float64),)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_handwritten_gradients_are_those_of_autograd(name):
    loss, gradients, inputs, rest = CASES[name]
    copies = [x.clone() for x in inputs]
    leaves = [x.clone().requires_grad_() for x in inputs]
    expected = torch.autograd.grad(loss(*leaves, *rest), leaves)
    for result, wanted in zip(gradients(*inputs, *rest), expected, strict=True):
        torch.testing.assert_close(result, wanted, **TIGHT)
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


def test_negative_sampling_loss_is_the_sum_over_pairs():
    v, u, n = CASES["sgns"][2]
    torch.testing.assert_close(emb.sgns_loss(v, u, n), naive_sgns(v, u, n), **TIGHT)


def test_cbow_is_skipgram_on_the_mean():
    around, target, noise = draw(B, 2, D), draw(B, D, seed=1), draw(B, K, D, seed=2)
    mean = (around[:, 0] + around[:, 1]) / 2
    torch.testing.assert_close(
        emb.cbow_loss(around, target, noise), naive_sgns(mean, target, noise), **TIGHT
    )


def test_skipgram_is_cross_entropy_over_the_vocabulary():
    v, table, target = draw(B, D), draw(V, D, seed=1), ids(B)
    torch.testing.assert_close(
        emb.skipgram_loss(v, table, target), F.cross_entropy(v @ table.T, target), **TIGHT
    )


def test_losses_stay_finite_where_scores_overflow_the_exponential():
    big = torch.full((2, 1), 200.0)
    assert emb.sgns_loss(big, -big, big.unsqueeze(1)).item() == pytest.approx(80_000.0)
    assert torch.isfinite(emb.skipgram_loss(big, torch.cat([big, -big]), torch.tensor([0, 2])))


def test_glove_ignores_empty_cells_and_saturates():
    weight = emb.glove_weight(torch.tensor([0.0, 100.0, 5000.0]))
    assert weight.tolist() == [0.0, 1.0, 1.0]
    a, b, zero = draw(1, D), draw(1, D, seed=1), torch.zeros(1, dtype=torch.float64)
    assert emb.glove_loss(a, b, zero, zero, zero) == 0


def test_hierarchical_softmax_probabilities_sum_to_one_and_codes_are_shortest():
    number = [30, 21, 13, 8, 5, 3, 2]
    nodes, branches = emb.huffman_codes(number)
    vector, inner = draw(1, D), draw(len(number) - 1, D, seed=1)
    total = sum(
        math.exp(-emb.hierarchical_softmax_loss(
            vector, inner[path].unsqueeze(0), torch.tensor([turns])))
        for path, turns in zip(nodes, branches, strict=True)
    )  # fmt: skip
    assert total == pytest.approx(1.0, rel=1e-12)
    length = sum(n * len(path) for n, path in zip(number, nodes, strict=True)) / sum(number)
    share = np.array(number) / sum(number)
    entropy = -(share * np.log2(share)).sum()
    assert entropy <= length < entropy + 1  # Shannon's bounds on an optimal code


# --- subwords -----------------------------------------------------------------------------------


@given(st.text(min_size=1, max_size=12))
def test_hash_is_that_of_the_released_code(text):
    if text.encode("utf-8", "ignore").decode() != text:  # lone surrogates have no UTF-8 form
        return
    assert emb.fnv1a(text) == ft_hash_bytes(text.encode())


@given(st.text(alphabet="abcé中", min_size=1, max_size=9), st.integers(1, 3), st.integers(0, 3))
def test_ngrams_are_those_of_gensim(word, low, more):
    theirs = [gram.decode() for gram in compute_ngrams_bytes(word, low, low + more)]
    # gensim keeps one-character brackets; the released code, and we, do not.
    ours = emb.character_ngrams(word, min_n=low, max_n=low + more)
    assert sorted(ours) == sorted(gram for gram in theirs if gram not in ("<", ">"))


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_composition_is_embedding_bag(mode):
    table, parts, offsets = draw(V, D), ids(13), torch.tensor([0, 2, 2, 7])
    expected = F.embedding_bag(parts, table, offsets, mode=mode)
    result = emb.subword_vectors(table, parts, offsets, mode=mode)
    torch.testing.assert_close(result, expected, **TIGHT)


# --- factorization ------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 0.75])
def test_full_rank_training_reaches_the_shifted_pmi(power):
    """The theorem of Levy and Goldberg, by L-BFGS on the exact expected loss at full rank."""
    table, k = counts(), 5
    by_context = table.sum(0)
    noise = by_context**power / (by_context**power).sum()
    v, u = (0.1 * draw(V, 13)).requires_grad_(), (0.1 * draw(13, 13, seed=1)).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [v, u], max_iter=3000, tolerance_grad=1e-11, tolerance_change=0.0, history_size=50,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = emb.expected_sgns_loss(v @ u.T, table, noise, negatives=k)
        loss.backward()
        return loss

    optimizer.step(closure)
    target = emb.sgns_optimum(table, noise, negatives=k)
    assert (v @ u.T - target).abs().max() < 1e-4
    shifted = emb.pmi(table) - math.log(k)
    if power == 1.0:
        torch.testing.assert_close(target, shifted, **TIGHT)
    else:  # smoothing moves the optimum
        assert (target - shifted).abs().max() > 0.01


def test_expected_loss_is_the_mean_of_the_sampled_one():
    table = counts(3, 5)
    noise = emb.noise_distribution(table.sum(0).long())
    v, u = draw(3, D), draw(5, D, seed=1)
    generator = torch.Generator().manual_seed(0)
    n = 40_000
    pairs = torch.multinomial(table.flatten(), n, replacement=True, generator=generator)
    drawn = torch.multinomial(noise, n * K, replacement=True, generator=generator).view(n, K)
    w, c = pairs // 5, pairs % 5
    each = torch.func.vmap(lambda a, b, m: emb.sgns_loss(a[None], b[None], m[None]))(
        v[w], u[c], u[drawn]
    )
    exact = emb.expected_sgns_loss(v @ u.T, table, noise, negatives=K)
    assert abs(each.mean() - exact) < 5 * each.std() / math.sqrt(n)


def test_ppmi_is_the_positive_part_of_the_dense_matrix():
    table = counts(V, V)
    table[2, 3] = 0
    by_context = table.sum(0) ** 0.75
    dense = emb.sgns_optimum(table, by_context / by_context.sum(), negatives=1) - 0.3
    result = emb.ppmi(table.to_sparse(), shift=0.3, smoothing=0.75)
    torch.testing.assert_close(result.to_dense(), dense.clamp(min=0), **TIGHT)


@pytest.mark.parametrize("sparse", [False, True])
def test_truncated_svd_is_that_of_arpack(sparse):
    matrix = draw(23, 17)
    left, values, right = emb.truncated_svd(
        matrix.to_sparse() if sparse else matrix, 5, generator=torch.Generator().manual_seed(0)
    )
    u, s, vt = svds(matrix.numpy(), k=5)
    order = np.argsort(-s)
    # 5 + 10 directions of 17 and 4 rounds: the gap makes the error (s16 / s5)**9, about 1e-5.
    np.testing.assert_allclose(values.numpy(), s[order], rtol=1e-6)
    best = torch.tensor((u[:, order] * s[order]) @ vt[order])
    torch.testing.assert_close((left * values) @ right.T, best, rtol=0, atol=1e-4)


# --- similarity ---------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.floats(1e-3, 1e3))
def test_cosine_depends_on_direction_alone(seed, scale):
    u, v = draw(2, 3, D, seed=seed), draw(5, D, seed=seed + 1)
    result = emb.cosine_similarity(u, v)
    assert result.shape == (2, 3, 5)
    assert emb.cosine_similarity(u[0, 0], v[0]).shape == ()
    assert emb.cosine_similarity(u[0, 0], v[0]) == pytest.approx(float(result[0, 0, 0]), abs=1e-12)
    torch.testing.assert_close(emb.cosine_similarity(scale * u, v), result, rtol=1e-9, atol=1e-12)
    expected = F.cosine_similarity(u.unsqueeze(-2), v, dim=-1)
    torch.testing.assert_close(result, expected, **TIGHT)


def test_cosine_gradient_is_that_of_autograd_and_orthogonal():
    u, v = draw(B, D).requires_grad_(), draw(B, D, seed=1)
    (expected,) = torch.autograd.grad(F.cosine_similarity(u, v).sum(), u)
    result = emb.cosine_gradient(u.detach(), v)
    torch.testing.assert_close(result, expected, **TIGHT)
    assert (result * u).sum(1).abs().max() < 1e-14


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=20))
def test_rank_correlation_is_that_of_scipy(pairs):
    a, b = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    if len(set(a)) == 1 or len(set(b)) == 1:
        return
    result = emb.spearman(torch.tensor(a), torch.tensor(b))
    assert float(result) == pytest.approx(spearmanr(a, b)[0], abs=1e-12)


@pytest.fixture(scope="module")
def keyed():
    words = [f"w{i}" for i in range(31)]
    vectors = draw(31, D).float()
    theirs = KeyedVectors(D)
    theirs.add_vectors(words, vectors.numpy())
    return emb.Embeddings(words=tuple(words), vectors=vectors), theirs


def test_neighbors_and_analogies_are_those_of_gensim(keyed):
    ours, theirs = keyed
    assert [w for w, _ in emb.nearest(ours, "w3", count=5)] == [
        w for w, _ in theirs.most_similar("w3", topn=5)
    ]
    result = emb.analogy(ours, "w1", "w2", "w3", count=4)
    expected = theirs.most_similar(positive=["w2", "w3"], negative=["w1"], topn=4)
    assert [w for w, _ in result] == [w for w, _ in expected]
    for (_, mine), (_, other) in zip(result, expected, strict=True):
        assert mine == pytest.approx(other, abs=1e-6)


def test_benchmarks_are_scored_as_gensim_scores_them(keyed, tmp_path):
    ours, theirs = keyed
    pairs = [(f"w{i}", f"w{(3 * i + 1) % 37}", float(i * i % 11)) for i in range(20)]
    file = tmp_path / "pairs.tsv"
    file.write_text("".join(f"{a}\t{b}\t{s}\n" for a, b, s in pairs))
    expected = theirs.evaluate_word_pairs(str(file))[1][0]
    first, second, score = zip(*pairs, strict=True)
    result = emb.evaluate_word_pairs(ours, first, second, torch.tensor(score))
    assert result.correlation == pytest.approx(expected, abs=1e-9)
    assert result.covered == sum(b in ours for b in second)
    questions = [(f"w{i}", f"w{i + 1}", f"w{i + 2}", f"w{(5 * i) % 31}") for i in range(29)]
    questions += [(a, b, c, emb.analogy(ours, a, b, c)[0][0]) for a, b, c, _ in questions[:7]]
    file = tmp_path / "questions.txt"
    file.write_text(": all\n" + "".join(" ".join(q) + "\n" for q in questions))
    theirs_right = theirs.evaluate_word_analogies(str(file))[0]
    scored = emb.evaluate_analogies(ours, [*questions, ("w1", "w2", "w3", "missing")])
    assert scored.accuracy == pytest.approx(theirs_right)
    assert (scored.correct >= 7, scored.covered, scored.questions) == (True, 36, 37)


def test_without_exclusion_the_question_words_may_win(keyed):
    ours, _ = keyed
    assert emb.analogy(ours, "w1", "w1", "w3", exclude=False)[0][0] == "w3"
    assert emb.analogy(ours, "w1", "w1", "w3")[0][0] != "w3"


# --- results, errors, meta ----------------------------------------------------------------------


def test_saved_vectors_come_back_bit_for_bit(tmp_path):
    made = emb.Embeddings(words=("a", "中"), vectors=draw(2, D), contexts=draw(2, D, seed=1))
    made.save(tmp_path / "it.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "it.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    back = emb.Embeddings.load(tmp_path / "it.safetensors")
    assert back.words == made.words
    assert back.losses is None
    assert torch.equal(back.vectors, made.vectors)
    assert torch.equal(back.contexts, made.contexts)
    assert made.restrict(["中", "x"]).words == ("中",)


ERRORS = {
    "min_count": (lambda: emb.vocabulary(["a"], min_count=0), "min_count"),
    "nothing left": (lambda: emb.vocabulary(["a"], min_count=2), "no word occurs min_count = 2"),
    "unseen": (lambda: emb.corpus([["z"]], vocabulary=emb.vocabulary(["a"], min_count=1)),
               "none of the 1 documents"),
    "threshold": (lambda: emb.keep_probability(torch.tensor([1]), threshold=0.0), "threshold"),
    "formula": (lambda: emb.keep_probability(torch.tensor([1]), threshold=0.1, formula="x"),
                'formula must be "paper"'),
    "window": (lambda: emb.cooccurrence(ids(5), size=V, window=0), "window"),
    "weighting": (lambda: emb.cooccurrence(ids(5), size=V, window=1, weighting="x"),
                  "weighting must be one of"),
    "id": (lambda: emb.embed(draw(2, 3), torch.tensor([2])), r"\[0, 2\), got 2"),
    "shapes": (lambda: emb.sgns_loss(draw(2, 3), draw(5, 3), draw(2, 1, 3)), "same shape"),
    "x_max": (lambda: emb.glove_weight(draw(2), x_max=0.0), "x_max"),
    "tree": (lambda: emb.huffman_codes([3]), "at least two words, got 1"),
    "ngrams": (lambda: emb.character_ngrams("a", min_n=4, max_n=3), "max_n"),
    "mode": (lambda: emb.subword_vectors(draw(2, 3), ids(2, high=2), ids(1, high=1), mode="max"),
             'mode must be "sum"'),
    "noise": (lambda: emb.sgns_optimum(counts(), draw(5), negatives=1), "noise"),
    "dense": (lambda: emb.ppmi(counts()), "must be a sparse matrix"),
    "rank": (lambda: emb.truncated_svd(draw(3, 5), 4, generator=torch.Generator()), "rank"),
    "lengths": (lambda: emb.cosine_similarity(draw(3), draw(5)), "got 3 and 5"),
    "missing": (lambda: emb.Embeddings(words=("a",), vectors=draw(1, 2)).vector("b"), "'b'"),
    "rows": (lambda: emb.Embeddings(words=("a",), vectors=draw(2, 2)), "as many, got 1 and 2"),
    "no pairs": (lambda: emb.evaluate_word_pairs(
        emb.Embeddings(words=("a",), vectors=draw(1, 2)), ["a"], ["a"], draw(1)), "only 1 of 1"),
    "block": (lambda: emb.Schedule(block=8), "at least 2"),
    "workers": (lambda: emb.Schedule(workers=0), "workers"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_mistakes_are_named(name):
    call, message = ERRORS[name]
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    if type(caught.value).__module__.split(".")[0] in ("jaxtyping", "beartype"):
        return  # the annotation hook, where it is on, sees the wrong shape first
    assert isinstance(caught.value, ValueError)
    assert re.search(message, str(caught.value))


META = {
    "embed": lambda v, i: emb.embed(v, i),
    "embed_gradient": lambda v, i: emb.embed_gradient(i, v[:3], size=V),
    "skipgram": lambda v, i: (
        emb.skipgram_gradients(v[:3], v, i)[0] + emb.skipgram_loss(v[:3], v, i)
    ),
    "sgns": lambda v, i: (
        emb.sgns_gradients(v[:3], v[3:6], v[:6].view(3, 2, D))[2]
        + emb.sgns_loss(v[:3], v[3:6], v[:6].view(3, 2, D))
    ),
    "cbow": lambda v, i: emb.cbow_gradients(v[:6].view(3, 2, D), v[:3], v[:6].view(3, 2, D))[0],
    "glove": lambda v, i: emb.glove_gradients(v[:3], v[:3], v[0, :3], v[1, :3], v[2, :3])[0],
    "hierarchical": lambda v, i: emb.hierarchical_softmax_loss(
        v[:3], v[:6].view(3, 2, D), i.view(3, 1).expand(3, 2)
    ),
    "subwords": lambda v, i: emb.subword_vectors(v, i, i[:2], mode="mean"),
    "block": lambda v, i: (
        emb.block_gradients(v[None, :3], v[None], v.new_ones(1, 3, V), v[:, 0])[0]
        + emb.block_loss(v[None, :3], v[None], v.new_ones(1, 3, V), v[:, 0])
    ),
    "optimum": lambda v, i: emb.sgns_optimum(v, v[0], negatives=2) + emb.pmi(v),
    "expected": lambda v, i: emb.expected_sgns_loss(v, v, v[0], negatives=2),
    "cosine": lambda v, i: emb.cosine_similarity(v, v[0]).sum() + emb.cosine_gradient(v, v),
    "keep": lambda v, i: emb.keep_probability(i, threshold=0.1),
    "noise": lambda v, i: emb.noise_distribution(i),
}


@pytest.mark.parametrize("name", META)
def test_pure_functions_run_on_the_meta_device(name):
    v = torch.empty(V, D, device="meta")
    assert META[name](v, torch.empty(3, dtype=torch.int64, device="meta")).is_meta


def at_angles(**degrees: float) -> emb.Embeddings:
    """Unit vectors in the plane."""
    angles = torch.tensor(list(degrees.values()), dtype=torch.float64).deg2rad()
    return emb.Embeddings(
        words=tuple(degrees), vectors=torch.stack([angles.cos(), angles.sin()], 1)
    )


@pytest.mark.parametrize("batch", [1, 512])
def test_a_word_of_the_question_that_lies_nearer_than_the_answer_is_ruled_out(batch: int) -> None:
    # b - a + c = (40°) - (0°) + (-40°) = (2 cos 40° - 1, 0) points at 0°, where a itself lies; of
    # the other words, b and c at 40° from there come before d at 100°.
    table = at_angles(a=0.0, b=40.0, c=-40.0, d=100.0)
    questions = [("a", "b", "c", "d")]
    assert emb.evaluate_analogies(table, questions, batch_size=batch).correct == 1
    assert emb.evaluate_analogies(table, questions, batch_size=batch, exclude=False).correct == 0
    assert [word for word, _ in emb.analogy(table, "a", "b", "c", count=1)] == ["d"]
    # Each of the three is the one that would win without the rule: here b, and here c.
    for near in ("b", "c"):
        others = {"b": ("a", "c"), "c": ("a", "b")}[near]
        angles = {near: 10.0, others[0]: 100.0, others[1]: 100.0, "d": 170.0}
        near_table = at_angles(**{name: angles[name] for name in "abcd"})
        made = emb.evaluate_analogies(near_table, questions, batch_size=batch)
        assert made.correct == 1, near
        assert emb.evaluate_analogies(near_table, questions, exclude=False).correct == 0
