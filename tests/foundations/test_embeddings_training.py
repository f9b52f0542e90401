"""The training engine against sums over single pairs, gensim, and what it must learn."""

import gc
import math

import pytest
import torch
import torch.nn.functional as F

from companion.foundations import embeddings as emb
from companion.foundations.embeddings._blocks import window_masks
from companion.foundations.embeddings._engine import Sampler, initial_tables

D = 7
#: A step sums at most a few hundred gradients of order 1.
TIGHT = {"rtol": 1e-11, "atol": 1e-13}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_corpus(size: int = 47) -> emb.Corpus:
    made = emb.Vocabulary(
        words=tuple("abcdefghijk"), counts=torch.tensor([29, 23, 19, 17, 13, 11, 7, 5, 3, 2, 1])
    )
    ids = torch.randint(0, 11, (size,), generator=seeded(5))
    return emb.Corpus(made, ids, (torch.arange(size) // 19))


def plan(**changes) -> emb.Schedule:
    settings = {
        "window": 2, "negatives": 3, "epochs": 1, "threshold": None, "block": 5, "shared": 4,
        "blocks": 13, "learning_rate": 0.1, "min_learning_rate": 0.1,
    }  # fmt: skip
    return emb.Schedule(**{**settings, **changes})


def test_window_masks_list_the_words_in_reach():
    block, window = 5, 3
    masks = window_masks(block=block, window=window)
    for place in range(block):
        for left in range(window + 1):
            for right in range(window + 1):
                row = masks[(place * (window + 1) + left) * (window + 1) + right]
                expected = [
                    float(-left <= j - window - place <= right and j != window + place)
                    for j in range(block + 2 * window)
                ]
                assert row.tolist() == expected


def test_block_gradients_are_those_of_autograd():
    v = torch.randn(2, 5, D, generator=seeded(), dtype=torch.float64).requires_grad_()
    u = torch.randn(2, 13, D, generator=seeded(1), dtype=torch.float64).requires_grad_()
    signs = torch.tensor([-1.0] * 9 + [1.0] * 4, dtype=torch.float64)
    weights = torch.rand(2, 5, 13, generator=seeded(2), dtype=torch.float64) * signs
    weights = weights.detach()
    before = [x.detach().clone() for x in (v, u, weights)]
    expected = torch.autograd.grad(emb.block_loss(v, u, weights, signs), (v, u))
    result = emb.block_gradients(v.detach(), u.detach(), weights, signs)
    for mine, wanted in zip(result, expected, strict=True):
        torch.testing.assert_close(mine, wanted, **TIGHT)
    assert all(torch.equal(a, b) for a, b in zip((v, u, weights), before, strict=True))


def choices(corpus, schedule, predict):
    """The random choices of the only step, and the tables before it."""
    source = seeded(3)
    tables = initial_tables(
        corpus, len(corpus.vocabulary), D, generator=source, device=torch.device("cpu"),
        dtype=torch.float64,
    )  # fmt: skip
    sampler = Sampler(corpus, schedule, device=torch.device("cpu"), predict=predict)
    return sampler.draw(0, len(corpus), generator=source), *tables


def windows(corpus, schedule, chunk):
    """Yield center, words in reach and shared negatives of every position, from the mask rows."""
    m, b = schedule.window, schedule.block
    others = chunk.others[0].view(schedule.blocks, -1)
    for t, word in enumerate(corpus.ids.tolist()):
        left, right = divmod(int(chunk.rows[0, t]) % (m + 1) ** 2, m + 1)
        near = [corpus.ids[j].item() for j in range(t - left, t + right + 1) if j != t]
        same = corpus.documents[t - left : t + right + 1]
        assert len(same.unique()) == 1
        yield word, near, others[t // b, -schedule.shared :].tolist()


@pytest.mark.parametrize("method", ["sgns", "cbow"])
def test_a_step_is_the_sum_of_the_gradients_of_single_pairs(method):
    """With positive pairs in the step: the second epoch starts from nonzero context vectors."""
    corpus, schedule = small_corpus(), plan()
    train = {"sgns": emb.train_sgns, "cbow": emb.train_cbow}[method]
    predict = {"sgns": "context", "cbow": "center"}[method]
    chunk, v, u = choices(corpus, schedule, predict)
    made = train(corpus, dim=D, schedule=schedule, generator=seeded(3), dtype=torch.float64)
    v, u = v.requires_grad_(), u.requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for word, near, negatives in windows(corpus, schedule, chunk):
        if not near:
            continue
        share = schedule.negatives / schedule.shared
        if method == "sgns":
            for context in near:
                loss = loss - F.logsigmoid(v[word] @ u[context])
                for n in negatives:
                    loss = loss - share * F.logsigmoid(-v[word] @ u[n])
        else:
            mean = sum(v[context] for context in near) / len(near)
            loss = loss - F.logsigmoid(mean @ u[word])
            for n in negatives:
                loss = loss - share * F.logsigmoid(-mean @ u[n])
    by_v, by_u = torch.autograd.grad(loss, (v, u))
    torch.testing.assert_close(made.vectors, v.detach() - 0.1 * by_v, **TIGHT)
    torch.testing.assert_close(made.contexts, u.detach() - 0.1 * by_u, **TIGHT)


def test_reaches_and_negatives_have_the_distributions_of_word2vec():
    corpus = small_corpus(100_000)
    corpus = emb.Corpus(corpus.vocabulary, corpus.ids, torch.zeros_like(corpus.ids))
    schedule = plan(window=3, block=7, shared=5, blocks=100)
    sampler = Sampler(corpus, schedule, device=torch.device("cpu"), predict="context")
    chunk = sampler.draw(0, len(corpus), generator=seeded())
    left = chunk.rows.flatten()[10:90_000] % 16 // 4
    for reach in (1, 2, 3):
        share = (left == reach).double().mean().item()
        assert abs(share - 1 / 3) < 5 * math.sqrt(2 / 9 / len(left))
    drawn = chunk.others.view(-1, 7 + 6 + 5)[:, -5:].flatten()
    noise = emb.noise_distribution(corpus.vocabulary.counts)
    share = torch.bincount(drawn, minlength=11) / len(drawn)
    # Stratified draws vary less than independent ones, whose spread is the allowance.
    assert ((share - noise).abs() < 5 * (noise * (1 - noise) / len(drawn)).sqrt()).all()


@pytest.mark.parametrize(
    "train", [emb.train_sgns, emb.train_cbow, emb.train_fasttext], ids=lambda f: f.__name__
)
def test_one_worker_is_reproducible_and_leaves_the_thread_count(train):
    corpus, had = small_corpus(300), torch.get_num_threads()
    more = {"buckets": 53} if train is emb.train_fasttext else {}
    schedule = plan(blocks=None, epochs=3)
    first = train(corpus, dim=D, schedule=schedule, generator=seeded(1), **more)
    again = train(corpus, dim=D, schedule=schedule, generator=seeded(1), **more)
    other = train(corpus, dim=D, schedule=schedule, generator=seeded(2), **more)
    assert torch.equal(first.vectors, again.vectors)
    assert torch.equal(first.contexts, again.contexts)
    assert not torch.equal(first.vectors, other.vectors)
    assert torch.get_num_threads() == had


def two_topics(size: int = 30_000) -> emb.Corpus:
    """Words of two topics that never meet: a0..a9 and b0..b9, in documents of 20 words."""
    topic = torch.randint(0, 2, (size // 20,), generator=seeded(1)).repeat_interleave(20)
    word = torch.randint(0, 10, (size,), generator=seeded(2))
    documents = torch.arange(size) // 20
    names = [f"{'ab'[t]}{w}" for t, w in zip(topic.tolist(), word.tolist(), strict=True)]
    texts = [names[start : start + 20] for start in range(0, size, 20)]
    made = emb.corpus(texts, min_count=1)
    assert torch.equal(made.documents, documents)
    return made


def separated(made: emb.Embeddings) -> bool:
    cosines = emb.cosine_similarity(made.vectors, made.vectors)
    topic = torch.tensor([word[0] == "a" for word in made.words])
    same = topic[:, None] == topic
    return bool(cosines[same].min() > cosines[~same].max())


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("train", [emb.train_sgns, emb.train_cbow], ids=lambda f: f.__name__)
def test_words_that_share_contexts_come_close(train, workers):
    schedule = emb.Schedule(threshold=None, workers=workers, learning_rate=0.03, epochs=20)
    made = train(two_topics(), dim=11, schedule=schedule, generator=seeded())
    assert separated(made)
    # Untrained, each of 1 + 5 products is zero and costs log 2. With two workers the first loss may
    # be that of a model which the other worker has trained already.
    untrained = 6 * math.log(2)
    if workers == 1:
        assert made.losses[0] == pytest.approx(untrained, rel=1e-6)
    assert made.losses[-5:].mean() < untrained - 0.3


def test_glove_and_svd_separate_the_topics_too():
    corpus = two_topics()
    size = len(corpus.vocabulary)
    table = emb.cooccurrence(
        corpus.ids, size=size, window=5, weighting="harmonic", documents=corpus.documents
    )
    assert separated(emb.ppmi_svd(corpus.vocabulary, table, dim=3, generator=seeded()))
    # Cells between the topics are empty and carry no weight, so GloVe never hears that the topics
    # do not meet; one meeting each way tells it.
    dense = table.to_dense() + 1
    made = emb.train_glove(
        corpus.vocabulary, dense.to_sparse(), dim=5, epochs=60, batch_size=23, generator=seeded()
    )
    assert separated(made)
    assert made.losses[-1] < 0.3 * made.losses[0]


def test_a_glove_step_is_adagrad_on_the_paper_gradient():
    vocabulary = emb.Vocabulary(words=("a", "b", "c"), counts=torch.tensor([5, 4, 3]))
    table = torch.tensor([[0.0, 7, 2], [7, 0, 0], [2, 0, 150]], dtype=torch.float64)
    drawn = torch.rand(6, D + 1, generator=seeded(4), dtype=torch.float64)
    start = ((drawn - 0.5) / D).requires_grad_()
    rows, columns = table.nonzero().T
    gradients = []
    for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
        a, b = start[i], start[3 + j]
        cell = emb.glove_loss(a[None, :D], b[None, :D], a[None, D], b[None, D], table[i, j][None])
        # The released code steps along half the gradient.
        gradients.append(torch.autograd.grad(cell / 2, start)[0])
    squares = 1 + sum(g.square() for g in gradients)
    expected = start.detach() - 0.05 * sum(gradients) / squares.sqrt()
    made = emb.train_glove(
        vocabulary, table.to_sparse(), dim=D, epochs=1, batch_size=100, generator=seeded(4),
        dtype=torch.float64,
    )  # fmt: skip
    torch.testing.assert_close(made.vectors, expected[:3, :D] + expected[3:, :D], **TIGHT)


def test_fasttext_composes_seen_words_as_trained_and_unseen_words_from_their_parts(tmp_path):
    corpus = emb.corpus([["king", "kings", "queen", "queens", "the"] * 40], min_count=1)
    made = emb.train_fasttext(
        corpus, dim=D, buckets=97, schedule=emb.Schedule(threshold=None, epochs=1),
        generator=seeded(),
    )  # fmt: skip
    torch.testing.assert_close(made.compose(made.words).vectors, made.vectors)
    parts = [5 + emb.fnv1a(gram) % 97 for gram in emb.character_ngrams("kingz")]
    torch.testing.assert_close(made.vector("kingz"), made.table[parts].mean(0))
    with pytest.raises(ValueError, match="has no n-grams"):
        made.vector("")
    made.save(tmp_path / "subwords.safetensors")
    back = emb.FastTextEmbeddings.load(tmp_path / "subwords.safetensors")
    assert torch.equal(back.vector("kingz"), made.vector("kingz"))
    with pytest.raises(ValueError, match="no word vectors"):
        emb.FastTextEmbeddings.load(_foreign(tmp_path))


def _foreign(folder):
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, folder / "foreign.safetensors")
    return folder / "foreign.safetensors"


def test_a_fasttext_step_is_a_skipgram_step_given_whole_to_every_part():
    corpus, schedule = small_corpus(), plan()
    words, buckets = corpus.vocabulary.words, 53
    parts = emb.subwords(words, buckets=buckets, known=len(words))
    source = seeded(3)
    table, _ = initial_tables(
        corpus, 11 + buckets, D, generator=source, device=torch.device("cpu"), dtype=torch.float64
    )
    sampler = Sampler(corpus, schedule, device=torch.device("cpu"), predict="context")
    chunk = sampler.draw(0, len(corpus), generator=source)
    made = emb.train_fasttext(
        corpus, dim=D, buckets=buckets, schedule=schedule, generator=seeded(3), dtype=torch.float64
    )
    # Context vectors start at zero, so the first step moves them alone.
    v = emb.subword_vectors(table, parts.ids, parts.offsets, mode="mean")
    u = torch.zeros(11, D, dtype=torch.float64, requires_grad=True)
    loss = torch.zeros((), dtype=torch.float64)
    for word, near, negatives in windows(corpus, schedule, chunk):
        for context in near:
            loss = loss - F.logsigmoid(v[word] @ u[context])
            for n in negatives:
                loss = loss - 3 / 4 * F.logsigmoid(-v[word] @ u[n])
    (by_u,) = torch.autograd.grad(loss, u)
    torch.testing.assert_close(made.contexts, -0.1 * by_u, **TIGHT)


def test_skipgram_scores_approach_the_shifted_pmi_on_a_text():
    """A Markov text over 7 words at full rank: the engine finds what the theorem predicts."""
    source, size = seeded(1), 120_000
    steps = torch.rand(7, 7, generator=source, dtype=torch.float64) ** 2 + 0.05
    cumulative = (steps / steps.sum(1, keepdim=True)).cumsum(1)
    text, uniform = [0], torch.rand(size, generator=source, dtype=torch.float64)
    for number in uniform.tolist():
        text.append(min(6, int((cumulative[text[-1]] < number).sum())))
    made = emb.corpus([[f"w{i}" for i in text]], min_count=1)
    schedule = emb.Schedule(
        window=1, threshold=None, epochs=6, learning_rate=0.05, min_learning_rate=1e-4
    )
    vectors = emb.train_sgns(made, dim=11, schedule=schedule, generator=seeded())
    table = emb.cooccurrence(made.ids, size=7, window=1).to_dense()
    noise = emb.noise_distribution(made.vocabulary.counts)
    target = emb.sgns_optimum(table, noise, negatives=5)
    scores = (vectors.vectors @ vectors.contexts.T).double()
    assert emb.spearman(scores.flatten(), target.flatten()) > 0.95
    assert (scores - target).abs().mean() < 0.1
    gc.collect()


def test_steps_shrink_as_the_learning_rate_grows():
    number = torch.tensor([1000, 500, 100] + [10] * 5000)
    assert emb.Schedule(learning_rate=0.2).blocks_for(number) < emb.Schedule(
        learning_rate=0.02
    ).blocks_for(number)
    assert emb.Schedule(blocks=3).blocks_for(number) == 3


ERRORS = {
    "square": ({"counts": torch.eye(2).to_sparse()}, "3 by 3"),
    "empty": ({"counts": torch.zeros(3, 3).to_sparse()}, "no non-empty cell"),
    "dim": ({"counts": torch.eye(3).to_sparse(), "dim": 0}, "dim must be 1 or more, got 0"),
    "rate": ({"counts": torch.eye(3).to_sparse(), "learning_rate": 0.0}, "learning_rate"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_glove_names_mistakes(name):
    settings, message = ERRORS[name]
    vocabulary = emb.Vocabulary(words=("a", "b", "c"), counts=torch.tensor([5, 4, 3]))
    with pytest.raises(Exception, match=message) as caught:
        emb.train_glove(vocabulary, generator=seeded(), **settings)
    assert isinstance(caught.value, ValueError)


def test_one_worker_that_fails_stops_the_others_and_says_why():
    corpus = small_corpus(300)
    broken = emb.Corpus(corpus.vocabulary, corpus.ids + 100, corpus.documents)
    with pytest.raises((IndexError, RuntimeError), match="index"):
        emb.train_sgns(broken, dim=D, schedule=plan(workers=2), generator=seeded())


def test_divergence_is_reported_rather_than_returned():
    schedule = emb.Schedule(threshold=None, learning_rate=2.0, epochs=30)
    with pytest.raises(ValueError, match=r"training diverged: lower learning_rate = 2\.0"):
        emb.train_sgns(two_topics(4000), dim=11, schedule=schedule, generator=seeded())


def test_moving_keeps_the_class_and_every_table():
    corpus = emb.corpus([["king", "queen"] * 20], min_count=1)
    made = emb.train_fasttext(
        corpus, dim=D, buckets=11, schedule=emb.Schedule(threshold=None), generator=seeded()
    )
    moved = made.to("meta")
    assert isinstance(moved, emb.FastTextEmbeddings)
    assert moved.table.is_meta
    assert moved.vectors.is_meta
    assert not made.table.is_meta
