"""N-gram models, mixtures, metrics and the neural model, against definitions and nltk."""

import math
from collections import Counter
from itertools import pairwise, product

import pytest
import sympy as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.lm import KneserNeyInterpolated, Lidstone, Vocabulary
from nltk.lm.counter import NgramCounter
from torch import Tensor

from companion.foundations import language_models as lm
from companion.foundations.language_models import NPLM, NPLMConfig

# Sums of a few thousand float64 terms of one sign.
EXACT = {"rtol": 1e-12, "atol": 1e-14}
EOS, VOCAB = 0, 7


def random_texts(g: torch.Generator, *, texts: int = 11, vocab: int = VOCAB) -> list[Tensor]:
    """Skewed texts, so that some n-grams are frequent and some unseen."""
    lengths = torch.randint(0, 13, (texts,), generator=g).tolist()
    return [(torch.rand(n, generator=g) ** 2 * (vocab - 1)).long() + 1 for n in lengths]


def counted(texts: list[Tensor], order: int, vocab: int = VOCAB) -> lm.NGramCounts:
    return lm.count_ngrams(
        *lm.windows(texts, order=order, vocab_size=vocab, eos=EOS), vocab_size=vocab
    )


def all_contexts(length: int, vocab: int = VOCAB) -> Tensor:
    """Every context, BOS included where it can stand: before all other symbols, as padding."""
    rows = [
        row
        for row in product(range(vocab + 1), repeat=length)
        if all(b != vocab or a == vocab for a, b in pairwise(row))
    ]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), length)


def python_counts(texts: list[Tensor], order: int) -> list[Counter[tuple[int, ...]]]:
    """Counts of the n-grams of order 1, ..., n by their definition."""
    tables: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order)]
    for text in texts:
        padded = [VOCAB] * (order - 1) + text.tolist() + [EOS]
        for end in range(order, len(padded) + 1):
            for k in range(1, order + 1):
                tables[k - 1][tuple(padded[end - k : end])] += 1
    return tables


def naive_kneser_ney(
    tables: list[Counter[tuple[int, ...]]], context: tuple[int, ...], w: int, delta: float
) -> float:
    """The recursion as it is written, with sums over dictionaries."""
    top = len(tables)

    def prob(c: tuple[int, ...]) -> float:
        k = len(c) + 1
        used = tables[k - 1] if k == top else Counter({gram[1:]: 0 for gram in tables[k]})
        if k < top:
            for gram in tables[k]:
                used[gram[1:]] += 1
        here = {gram[-1]: count for gram, count in used.items() if gram[:-1] == c}
        total = sum(here.values())
        if k == 1:
            return here.get(w, 0) / total
        if not here:
            return prob(c[1:])
        gain = max(here.get(w, 0) - delta, 0) / total
        return gain + delta * len(here) / total * prob(c[1:])

    return prob(context)


@pytest.fixture
def texts(g: torch.Generator) -> list[Tensor]:
    return random_texts(g)


# --- counting ------------------------------------------------------------------------------------


def test_counts_are_those_of_a_dictionary(texts: list[Tensor]) -> None:
    counts = counted(texts, 3)
    tables = python_counts(texts, 3)
    for k in (1, 2, 3):
        assert len(counts.gram_counts[k - 1]) == len(tables[k - 1])
        assert sorted(counts.gram_counts[k - 1].tolist()) == sorted(tables[k - 1].values())
    # Through a model: N(c, w) / N(c) for every n-gram of order 3.
    model = lm.maximum_likelihood(counts)
    for *context, w in tables[2]:
        expected = tables[2][*context, w] / sum(tables[2][*context, v] for v in range(VOCAB))
        got = model.log_prob(torch.tensor(context), torch.tensor(w)).exp()
        torch.testing.assert_close(float(got), expected, **EXACT)


def test_continuation_counts_count_different_predecessors(texts: list[Tensor]) -> None:
    counts = counted(texts, 3)
    tables = python_counts(texts, 3)
    for k in (1, 2):
        expected = Counter(gram[1:] for gram in tables[k])
        assert sorted(counts.continuation_counts(k).tolist()) == sorted(expected.values())
        assert int(counts.continuation_counts(k).sum()) == len(tables[k])


def test_windows_close_every_text_and_never_cross_texts() -> None:
    contexts, symbols = lm.windows(
        [torch.tensor([3, 4]), torch.tensor([], dtype=torch.int64)],
        order=3,
        vocab_size=5,
        eos=1,
    )
    assert contexts.tolist() == [[5, 5], [5, 3], [3, 4], [5, 5]]
    assert symbols.tolist() == [3, 4, 1, 1]


def test_truncated_counts_are_those_of_the_lower_order(texts: list[Tensor]) -> None:
    short, cut = counted(texts, 2), counted(texts, 4).truncated(2)
    for name in ("context_keys", "gram_keys", "gram_counts"):
        for a, b in zip(getattr(short, name), getattr(cut, name), strict=True):
            assert torch.equal(a, b)


def test_inputs_stay_as_they_are(texts: list[Tensor]) -> None:
    before = [text.clone() for text in texts]
    contexts, symbols = lm.windows(texts, order=3, vocab_size=VOCAB, eos=EOS)
    kept = contexts.clone(), symbols.clone()
    counts = lm.count_ngrams(contexts, symbols, vocab_size=VOCAB)
    tables = [counts.gram_counts[k].clone() for k in range(3)]
    lm.kneser_ney(counts, discount=0.4).log_prob(contexts, symbols)
    lm.jelinek_mercer(counts, contexts, symbols, steps=2)
    assert all(map(torch.equal, before, texts))
    assert torch.equal(kept[0], contexts)
    assert torch.equal(kept[1], symbols)
    assert all(map(torch.equal, tables, counts.gram_counts))


# --- smoothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    "kind", ["additive", "fraction", "kneser_ney", "per order", "uniform", "jelinek_mercer"]
)
def test_distributions_sum_to_one_after_every_context(
    texts: list[Tensor], g: torch.Generator, order: int, kind: str
) -> None:
    counts = counted(texts, order)
    held = lm.windows(random_texts(g), order=order, vocab_size=VOCAB, eos=EOS)
    model = {
        "additive": lambda: lm.additive(counts),
        "fraction": lambda: lm.additive(counts, k=0.3),
        "kneser_ney": lambda: lm.kneser_ney(counts, discount=0.75),
        "per order": lambda: lm.kneser_ney(counts, discount=[0.2, 0.5, 0.9][:order]),
        "uniform": lambda: lm.kneser_ney(counts, discount=0.6, interpolate_unigrams=True),
        "jelinek_mercer": lambda: lm.jelinek_mercer(counts, *held, buckets=3, steps=3).model,
    }[kind]()
    contexts = all_contexts(order - 1)
    probs = model.probs(contexts)
    torch.testing.assert_close(probs.sum(-1), torch.ones(len(contexts)).double(), **EXACT)
    assert bool((probs >= 0).all())
    one_by_one = torch.stack(
        [model.log_prob(contexts, torch.full((len(contexts),), w)) for w in range(VOCAB)], -1
    )
    torch.testing.assert_close(one_by_one.exp(), probs, **EXACT)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(1, 4), max_size=9), min_size=1, max_size=5),
    st.integers(1, 4),
    st.floats(0, 1),
    st.booleans(),
)
def test_kneser_ney_sums_to_one_on_any_text(
    lists: list[list[int]], order: int, delta: float, uniform: bool
) -> None:
    texts = [torch.tensor(x, dtype=torch.int64) for x in lists]
    counts = counted(texts, order, vocab=5)
    model = lm.kneser_ney(counts, discount=delta, interpolate_unigrams=uniform)
    contexts = all_contexts(order - 1, vocab=5)
    torch.testing.assert_close(
        model.probs(contexts).sum(-1), torch.ones(len(contexts)).double(), **EXACT
    )


def test_modified_kneser_ney_sums_to_one_and_takes_three_discounts(g: torch.Generator) -> None:
    # A longer, more varied text, so that n-grams occur once, twice, three and four times.
    counts = counted(random_texts(g, texts=61, vocab=29), 2, vocab=29)
    model = lm.kneser_ney(counts, modified=True)
    contexts = all_contexts(1, vocab=29)
    torch.testing.assert_close(
        model.probs(contexts).sum(-1), torch.ones(len(contexts)).double(), **EXACT
    )
    three = lm.absolute_discounts(counts.gram_counts[1], modified=True)
    total = counts.context_total(2).double()[counts.gram_context(2)]
    taken = counts.gram_counts[1] - model.gains[1] * total
    for r in (1, 2, 3):
        here = taken[counts.gram_counts[1].clamp(max=3) == r]
        torch.testing.assert_close(here, three[r - 1].expand(len(here)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_kneser_ney_is_its_definition(texts: list[Tensor], order: int) -> None:
    model = lm.kneser_ney(counted(texts, order), discount=0.7)
    tables = python_counts(texts, order)
    contexts, symbols = lm.windows(
        [*texts[:3], torch.tensor([6, 5, 6, 6])], order=order, vocab_size=VOCAB, eos=EOS
    )
    got = model.log_prob(contexts, symbols).exp()
    expected = [
        naive_kneser_ney(tables, tuple(c), w, 0.7)
        for c, w in zip(contexts.tolist(), symbols.tolist(), strict=True)
    ]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), **EXACT)


def nltk_tables(texts: list[Tensor], order: int) -> tuple[NgramCounter, Vocabulary]:
    """The same n-grams for nltk. Its vocabulary adds one unknown word, so ours has one too."""
    names = [str(i) for i in range(VOCAB + 1)]
    counter = NgramCounter(
        [
            [tuple(names[i] for i in gram) for gram, many in table.items() for _ in range(many)]
            for table in python_counts(texts, order)
        ]
    )
    vocabulary = Vocabulary(names[1:VOCAB], unk_cutoff=1, unk_label="0")
    assert len(vocabulary) == VOCAB
    return counter, vocabulary


@pytest.mark.parametrize("order", [2, 3])
def test_kneser_ney_is_that_of_nltk(texts: list[Tensor], order: int) -> None:
    counter, vocabulary = nltk_tables(texts, order)
    theirs = KneserNeyInterpolated(order, discount=0.6, vocabulary=vocabulary, counter=counter)
    contexts = all_contexts(order - 1)
    ours = lm.kneser_ney(counted(texts, order), discount=0.6).probs(contexts)
    expected = [
        [theirs.unmasked_score(str(w), tuple(map(str, c))) for w in range(VOCAB)]
        for c in contexts.tolist()
    ]
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_additive_is_lidstone_of_nltk(texts: list[Tensor], order: int) -> None:
    counter, vocabulary = nltk_tables(texts, order)
    theirs = Lidstone(0.3, order, vocabulary=vocabulary, counter=counter)
    contexts = all_contexts(order - 1)
    ours = lm.additive(counted(texts, order), k=0.3).probs(contexts)
    expected = [
        [theirs.unmasked_score(str(w), tuple(map(str, c)) or None) for w in range(VOCAB)]
        for c in contexts.tolist()
    ]
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), **EXACT)


def test_kneser_ney_bigrams_keep_the_frequency_of_every_symbol(texts: list[Tensor]) -> None:
    # The property from which Kneser and Ney derive the continuation counts.
    counts = counted(texts, 2)
    model = lm.kneser_ney(counts, discount=0.8)
    weight = counts.context_total(2).double()
    weight = weight / weight.sum()
    marginal = weight @ model.probs(counts.context_keys[1].unsqueeze(-1))
    unigram = lm.maximum_likelihood(counts.truncated(1)).probs(torch.empty(0, dtype=torch.int64))
    torch.testing.assert_close(marginal, unigram, **EXACT)
    # The negative control: with relative frequencies below, it fails.
    wrong = [model.gains[0] * 0 + unigram[counts.gram_keys[0]], model.gains[1]]
    other = lm.NGramModel(counts, tuple(wrong), model.backoffs, 0.0)
    off = weight @ other.probs(counts.context_keys[1].unsqueeze(-1)) - unigram
    assert float(off.abs().max()) > 1e-3


def test_kneser_ney_with_symbolic_counts_sums_to_one() -> None:
    a, b, c, delta = sp.symbols("a b c delta", positive=True)
    lower = sp.symbols("p0:4", positive=True)
    total = a + b + c
    gains = [(n - delta) / total for n in (a, b, c)] + [0]
    whole = sum(g + delta * 3 / total * p for g, p in zip(gains, lower, strict=True))
    assert sp.simplify(whole.subs(lower[3], 1 - sum(lower[:3])) - 1) == 0


def test_maximum_likelihood_beats_every_other_estimate_on_its_own_text(
    texts: list[Tensor],
) -> None:
    pairs = lm.windows(texts, order=2, vocab_size=VOCAB, eos=EOS)
    counts = lm.count_ngrams(*pairs, vocab_size=VOCAB)
    best = lm.maximum_likelihood(counts).log_prob(*pairs).mean()
    for other in (lm.additive(counts, k=0.1), lm.kneser_ney(counts, discount=0.5)):
        assert float(other.log_prob(*pairs).mean()) < float(best)


def test_maximum_likelihood_gives_nothing_to_the_unseen() -> None:
    model = lm.maximum_likelihood(counted([torch.tensor([1, 2])], 2))
    contexts = torch.tensor([[1], [3]])
    assert model.log_prob(contexts, torch.tensor([1, 1])).tolist() == [-math.inf, -math.inf]
    assert model.probs(torch.tensor([3])).tolist() == [0.0] * VOCAB


def test_an_unseen_context_backs_off_and_nothing_else_changes(texts: list[Tensor]) -> None:
    known = [text.clamp(max=4) for text in texts]
    counts = counted(known, 3)
    model = lm.kneser_ney(counts, discount=0.5)
    # 6 never occurs, so after "6 3" the model knows what it knows after "3".
    lower = lm.kneser_ney(counts, discount=0.5).probs(torch.tensor([6, 3]))
    cut = lm.NGramModel(counts.truncated(2), model.gains[:2], model.backoffs[:2], 0.0)
    torch.testing.assert_close(lower, cut.probs(torch.tensor([3])), **EXACT)


def test_discounts_are_the_formulas_of_the_papers() -> None:
    counts = torch.tensor([1] * 11 + [2] * 5 + [3] * 3 + [4] * 2 + [9])
    y = 11 / (11 + 2 * 5)
    assert lm.absolute_discounts(counts).tolist() == pytest.approx([y] * 3, abs=1e-15)
    expected = [1 - 2 * y * 5 / 11, 2 - 3 * y * 3 / 5, 3 - 4 * y * 2 / 3]
    got = lm.absolute_discounts(counts, modified=True).tolist()
    assert got == pytest.approx(expected, abs=1e-14)


def test_a_modified_discount_that_would_be_negative_is_zero() -> None:
    # n = (11, 2, 9, 20): y = 11/15, and 2 - 3 y 9/2 and 3 - 4 y 20/9 are below 0.
    counts = torch.tensor([1] * 11 + [2] * 2 + [3] * 9 + [4] * 20)
    y = 11 / 15
    want = torch.tensor([1 - 2 * y * 2 / 11, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(
        lm.absolute_discounts(counts, modified=True), want, rtol=1e-14, atol=0
    )
    assert torch.equal(lm.absolute_discounts(counts), torch.full((3,), y, dtype=torch.float64))


def test_strings_of_a_model_with_eos_have_total_probability_one(texts: list[Tensor]) -> None:
    model = lm.kneser_ney(counted([t.clamp(max=2) for t in texts], 2, vocab=3), discount=0.5)
    step = model.probs(torch.arange(4).unsqueeze(1))
    # All strings of at most 5 symbols, one by one, against the survival after 6 steps.
    mass = 0.0
    for length in range(6):
        for string in product(range(1, 3), repeat=length):
            contexts, symbols = lm.windows(
                [torch.tensor(string, dtype=torch.int64)], order=2, vocab_size=3, eos=0
            )
            mass += float(model.log_prob(contexts, symbols).sum().exp())
    alive = step[3, 1:]
    for _ in range(5):
        alive = alive @ step[1:3, 1:]
    assert mass == pytest.approx(1 - float(alive.sum()), abs=1e-13)
    assert 0.1 < mass < 0.999


# --- interpolation -------------------------------------------------------------------------------


def test_jelinek_mercer_is_its_recursion(texts: list[Tensor], g: torch.Generator) -> None:
    counts = counted(texts, 3)
    held = lm.windows(random_texts(g), order=3, vocab_size=VOCAB, eos=EOS)
    fit = lm.jelinek_mercer(counts, *held, buckets=3, steps=4)
    tables = python_counts(texts, 3)

    def prob(context: tuple[int, ...], w: int) -> float:
        k = len(context) + 1
        below = prob(context[1:], w) if context else 1 / VOCAB
        total = sum(n for gram, n in tables[k - 1].items() if gram[:-1] == context)
        if not total:
            return below
        weight = float(fit.weights[k - 1, 1 + min(int(math.log2(total)), 2)])
        return weight * tables[k - 1][*context, w] / total + (1 - weight) * below

    contexts = all_contexts(2)
    expected = [[prob(tuple(c), w) for w in range(VOCAB)] for c in contexts.tolist()]
    got = fit.model.probs(contexts)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), **EXACT)
    own = fit.model.log_prob(*held).mean()
    torch.testing.assert_close(fit.log_likelihood[-1], own, **EXACT)


def test_em_never_lowers_the_likelihood(texts: list[Tensor], g: torch.Generator) -> None:
    held = lm.windows(random_texts(g), order=3, vocab_size=VOCAB, eos=EOS)
    fit = lm.jelinek_mercer(counted(texts, 3), *held, buckets=3, steps=17)
    rises = fit.log_likelihood.diff()
    assert bool((rises >= -1e-14).all())
    assert float(rises[0]) > 1e-3


def test_em_reaches_a_maximum_in_every_weight(texts: list[Tensor], g: torch.Generator) -> None:
    # Half of it is the training text, so that both orders are of use.
    held = lm.windows([*random_texts(g), *texts[:5]], order=2, vocab_size=VOCAB, eos=EOS)
    counts = counted(texts, 2)
    fit = lm.jelinek_mercer(counts, *held, buckets=1, steps=3000)
    weights = fit.weights[:, 1].clone().requires_grad_()
    uni = lm.maximum_likelihood(counts.truncated(1)).log_prob(*held).exp()
    seen = counts.context_ids(held[0])[1] >= 0
    two = lm.maximum_likelihood(counts).log_prob(*held).exp()
    low = weights[0] * uni + (1 - weights[0]) / VOCAB
    likelihood = torch.where(seen, weights[1] * two + (1 - weights[1]) * low, low).log().mean()
    (slope,) = torch.autograd.grad(likelihood, weights)
    assert bool(((weights > 0.01) & (weights < 0.99)).all())
    # EM converges linearly; 3000 steps leave the slope far below this.
    assert float(slope.abs().max()) < 1e-6


def test_mixture_weights_maximize_the_likelihood(g: torch.Generator) -> None:
    probs = torch.rand(53, 3, generator=g, dtype=torch.float64)
    fit = lm.fit_mixture(probs, steps=2000)
    assert float(fit.weights.sum()) == pytest.approx(1, abs=1e-12)
    # At a maximum over the simplex the mean ratio is 1 where the weight is positive (KKT).
    ratio = (probs / (probs @ fit.weights).unsqueeze(1)).mean(0)
    assert bool((ratio <= 1 + 1e-6).all())
    assert float((fit.weights * (ratio - 1)).abs().max()) < 1e-9
    assert bool((fit.log_likelihood.diff() >= -1e-14).all())


def test_the_likelihood_is_told_before_every_step_and_after_the_last(g: torch.Generator) -> None:
    probs = torch.rand(19, 3, generator=g, dtype=torch.float64)
    fit = lm.fit_mixture(probs, steps=5)
    weights, told = [1 / 3] * 3, []
    for _ in range(6):
        totals = [
            math.fsum(w * p for w, p in zip(weights, row, strict=True)) for row in probs.tolist()
        ]
        told.append(math.fsum(map(math.log, totals)) / 19)
        last = weights
        weights = [
            w * math.fsum(p / t for p, t in zip(column, totals, strict=True)) / 19
            for w, column in zip(weights, probs.T.tolist(), strict=True)
        ]
    assert fit.log_likelihood.tolist() == pytest.approx(told, rel=1e-12)
    assert fit.weights.tolist() == pytest.approx(last, rel=1e-12)


def test_a_chain_tells_the_likelihood_before_every_step_and_after_the_last(
    texts: list[Tensor], g: torch.Generator
) -> None:
    counts = counted(texts, 3)
    held = lm.windows(random_texts(g), order=3, vocab_size=VOCAB, eos=EOS)
    told = lm.jelinek_mercer(counts, *held, buckets=3, steps=4).log_likelihood
    assert told.shape == (5,)
    for steps in (1, 2, 3, 4):
        shorter = lm.jelinek_mercer(counts, *held, buckets=3, steps=steps)
        own = shorter.model.log_prob(*held).mean()
        torch.testing.assert_close(told[steps], own, **EXACT)


def test_two_step_chain_equals_flat_mixture(g: torch.Generator) -> None:
    probs = torch.rand(31, 2, generator=g, dtype=torch.float64)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    flat = lm.em_step(probs, weights)
    share = 0.3 * probs[:, 0] / (0.3 * probs[:, 0] + 0.7 * probs[:, 1])
    torch.testing.assert_close(flat, torch.stack([share.mean(), 1 - share.mean()]), **EXACT)


# --- metrics -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(2, 1000), st.integers(1, 50))
def test_a_uniform_model_is_as_perplexed_as_its_vocabulary(vocab: int, length: int) -> None:
    log_probs = torch.full((length,), -math.log(vocab), dtype=torch.float64)
    assert float(lm.perplexity(log_probs)) == pytest.approx(vocab, rel=1e-12)


@settings(deadline=None)
@given(st.lists(st.floats(-20, 0), min_size=2, max_size=20), st.integers(1, 40))
def test_bits_per_byte_do_not_see_how_the_text_is_cut(values: list[float], size: int) -> None:
    whole = torch.tensor(values, dtype=torch.float64)
    # Two tokens joined into one: log-probabilities add.
    joined = torch.cat([whole[:2].sum(0, keepdim=True), whole[2:]])
    a, b = lm.bits_per_byte(whole, size=size), lm.bits_per_byte(joined, size=size)
    torch.testing.assert_close(a, b, **EXACT)
    by_perplexity = len(values) / size * lm.perplexity(whole).log2()
    torch.testing.assert_close(a, by_perplexity, rtol=1e-10, atol=1e-12)


def test_metrics_are_infinite_where_a_token_is_impossible() -> None:
    log_probs = torch.tensor([-1.0, -math.inf])
    assert float(lm.perplexity(log_probs)) == math.inf
    assert float(lm.bits_per_byte(log_probs, size=3)) == math.inf


def test_half_precision_is_averaged_in_single(device: torch.device) -> None:
    values = torch.full((4099,), -1.0, dtype=torch.bfloat16, device=device)
    assert float(lm.perplexity(values)) == pytest.approx(math.e, rel=1e-6)


# --- the neural model ----------------------------------------------------------------------------

CONFIG = NPLMConfig(vocab_size=11, context=3, dim=5, hidden=7)


@pytest.fixture
def nplm(g: torch.Generator) -> NPLM:
    model = NPLM(CONFIG, generator=g).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    return model


def test_the_neural_model_is_its_equation(nplm: NPLM, g: torch.Generator) -> None:
    contexts = torch.randint(0, 12, (13, 3), generator=g)
    symbols = torch.randint(0, 11, (13,), generator=g)
    for row, w, got in zip(contexts, symbols, nplm.log_prob(contexts, symbols), strict=True):
        joined = torch.cat([nplm.embedding[i] for i in row.tolist()])
        hidden = torch.tanh(nplm.b1 + sum(joined[j] * nplm.w1[j] for j in range(15)))
        logits = torch.stack([(hidden * nplm.w2[:, v]).sum() + nplm.b2[v] for v in range(11)])
        torch.testing.assert_close(got, logits[w] - logits.exp().sum().log(), rtol=1e-11, atol=0)


def test_the_neural_model_starts_uniform(g: torch.Generator) -> None:
    model = NPLM(CONFIG, generator=g)
    log_probs = model.log_prob(torch.tensor([[11, 11, 3]]), torch.tensor([4]))
    torch.testing.assert_close(log_probs, torch.tensor([-math.log(11)]))


def test_the_order_of_the_context_matters(nplm: NPLM) -> None:
    a = nplm(torch.tensor([[1, 2, 3]]))
    assert not torch.allclose(a, nplm(torch.tensor([[3, 2, 1]])))


def test_the_neural_model_learns_a_deterministic_text(g: torch.Generator) -> None:
    texts = [torch.tensor([1, 2, 3, 4, 5] * 4)]
    contexts, symbols = lm.windows(texts, order=4, vocab_size=11, eos=0)
    model = NPLM(CONFIG, generator=g)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        (-model.log_prob(contexts, symbols).mean()).backward()
        optimizer.step()
    # 21 symbols, of which only the EOS after 20 cannot be told from a further 1.
    with torch.no_grad():
        assert float(lm.perplexity(model.log_prob(contexts, symbols))) < 1.3


def test_everything_runs_on_the_meta_device(texts: list[Tensor]) -> None:
    model = lm.kneser_ney(counted(texts, 3), discount=0.5).to("meta")
    contexts = torch.empty(13, 2, dtype=torch.int64, device="meta")
    symbols = torch.empty(13, dtype=torch.int64, device="meta")
    assert model.log_prob(contexts, symbols).shape == (13,)
    assert model.probs(contexts).shape == (13, VOCAB)
    assert model.probs(contexts).is_meta
    net = NPLM(CONFIG, generator=torch.Generator()).to("meta")
    out = net.log_prob(torch.empty(2, 3, dtype=torch.int64, device="meta"), symbols[:2])
    assert out.is_meta
    assert out.shape == (2,)
    probs = torch.empty(5, 3, device="meta")
    assert lm.em_step(probs, probs[0]).shape == (3,)
    assert lm.perplexity(probs).is_meta
    assert lm.bits_per_byte(probs, size=7).is_meta


def test_device_and_dtype_follow(texts: list[Tensor], device: torch.device) -> None:
    contexts, symbols = lm.windows(texts, order=2, vocab_size=VOCAB, eos=EOS)
    model = lm.kneser_ney(counted(texts, 2), discount=0.5).to(device, dtype=torch.float32)
    log_probs = model.log_prob(contexts.to(device), symbols.to(device))
    assert log_probs.device.type == device.type
    assert log_probs.dtype == torch.float32
    exact = lm.kneser_ney(counted(texts, 2), discount=0.5).log_prob(contexts, symbols)
    # One rounding of 2**-24 for each of a handful of operations.
    torch.testing.assert_close(log_probs.cpu().double(), exact, rtol=1e-6, atol=1e-6)


# --- words ---------------------------------------------------------------------------------------


def test_sentences_end_at_their_signs_and_at_blank_lines() -> None:
    text = "HAMLET\n\nTo be, or not: that is 1 question.\nWho's there?"
    assert lm.sentences(text) == [
        ["hamlet"],
        ["to", "be", ",", "or", "not", ":"],
        ["that", "is", "1", "question", "."],
        ["who's", "there", "?"],
    ]


@settings(deadline=None)
@given(st.text(max_size=80))
def test_words_lose_only_space(text: str) -> None:
    joined = "".join(word for sentence in lm.sentences(text) for word in sentence)
    kept = "".join(char for char in text.lower() if not char.isspace())
    # Marks and digits beyond the pattern are dropped; nothing is invented or reordered.
    rest = iter(kept)
    assert all(char in rest for char in joined)


def test_rare_words_are_unknown_and_ties_are_in_order() -> None:
    closed = lm.ClosedVocabulary.build([["b", "a", "c"], ["a", "b", "<unk>", "<unk>"]], min_count=2)
    assert closed.words == ("<unk>", "</s>", "a", "b")
    assert [ids.tolist() for ids in closed.encode([["a", "z"], []])] == [[2, 0], []]
    assert len(closed) == 4


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("own_checks")
def test_errors_name_what_is_wrong(texts: list[Tensor]) -> None:
    counts = counted(texts, 3)
    contexts, symbols = lm.windows(texts, order=3, vocab_size=VOCAB, eos=EOS)
    model = lm.kneser_ney(counts, discount=0.5)
    with pytest.raises(ValueError, match=r"texts must lie in \[0, 3\), got"):
        lm.windows([torch.tensor([5])], order=2, vocab_size=3, eos=0)
    with pytest.raises(ValueError, match="at least one text"):
        lm.windows([], order=2, vocab_size=3, eos=0)
    with pytest.raises(ValueError, match="eos must be from 0 to 2, got 3"):
        lm.windows([torch.tensor([1])], order=2, vocab_size=3, eos=3)
    with pytest.raises(ValueError, match="order must be 1 or more, got 0"):
        lm.windows([torch.tensor([1])], order=0, vocab_size=3, eos=0)
    with pytest.raises(ValueError, match="at least one symbol to count"):
        lm.count_ngrams(contexts[:0], symbols[:0], vocab_size=VOCAB)
    with pytest.raises(ValueError, match=r"symbols must lie in \[0, 7\), got 7"):
        model.log_prob(contexts[:1], torch.tensor([7]))
    with pytest.raises(ValueError, match="contexts must hold 2 symbols for order 3"):
        model.log_prob(contexts[:, :1], symbols)
    with pytest.raises(ValueError, match="order must be from 1 to 3, got 4"):
        counts.truncated(4)
    with pytest.raises(ValueError, match="order must be from 1 to 2, got 3"):
        counts.continuation_counts(3)
    with pytest.raises(ValueError, match=r"k must lie in \[0.0, inf\), got -1"):
        lm.additive(counts, k=-1.0)
    with pytest.raises(ValueError, match=r"discount must lie in \[0.0, 1.0\], got 1.5"):
        lm.kneser_ney(counts, discount=1.5)
    with pytest.raises(ValueError, match="3 numbers, one an order, got 2"):
        lm.kneser_ney(counts, discount=[0.5, 0.5])
    with pytest.raises(ValueError, match="not both"):
        lm.kneser_ney(counts, discount=0.5, modified=True)
    with pytest.raises(ValueError, match="no n-gram of 3 occurs exactly 2 times"):
        lm.absolute_discounts(torch.tensor([1, 1, 3]))
    with pytest.raises(ValueError, match="2 tokens are impossible under every model"):
        lm.fit_mixture(torch.tensor([[0.5, 0.1], [0.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="at least one held-out token"):
        lm.fit_mixture(torch.empty(0, 2))
    with pytest.raises(ValueError, match="at least one held-out token"):
        lm.jelinek_mercer(counts, contexts[:0], symbols[:0])
    with pytest.raises(ValueError, match=r"weights must have shape \(2,\), got \(3,\)"):
        lm.em_step(torch.ones(5, 2), torch.ones(3))
    with pytest.raises(ValueError, match="at least one token"):
        lm.perplexity(torch.empty(0))
    with pytest.raises(ValueError, match="size must be 1 or more, got 0"):
        lm.bits_per_byte(torch.zeros(3), size=0)
    with pytest.raises(ValueError, match="hidden must be 1 or more, got 0"):
        NPLMConfig(vocab_size=3, hidden=0)
    net = NPLM(CONFIG, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"contexts must have shape \(\*, 3\), got \(2, 4\)"):
        net(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"contexts must lie in \[0, 12\), got 12"):
        net(torch.full((2, 3), 12))
    with pytest.raises(ValueError, match="min_count must be 1 or more, got 0"):
        lm.ClosedVocabulary.build([["a"]], min_count=0)


def test_the_text_form_is_short(texts: list[Tensor]) -> None:
    assert repr(counted(texts, 2)).startswith("NGramCounts(order 2: ")
    assert lm.kneser_ney(counted(texts, 2), discount=0.5).order == 2


def test_one_step_of_a_mixture_is_one_em_step_from_equal_weights() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.3, 0.2], [0.1, 0.8]], dtype=torch.float64)
    half = torch.full((2,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(lm.fit_mixture(probs, steps=1).weights, lm.em_step(probs, half))
