"""BLEU, chrF, ROUGE and answers: equal to their packages, and right where those were wrong."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from sacrebleu.metrics.bleu import BLEU as TheirBLEU
from sacrebleu.metrics.chrf import CHRF

from companion.frontiers import outlook as ou
from companion.frontiers.outlook import _ngrams

WORDS = ["a", "b", "the", "cat", "3.5", "x-y", ",", ".", "(hi)", "é", "中文", "&amp;", "10-20"]
WORDS += ["ok.", "-", "\n", "don't", "<skipped>", "😀"]

SPOKEN = ["a", "b", "c", "d", "é", "3.5", "Don't", "the"]


def corpus(r: random.Random) -> tuple[list[str], list[list[str]]]:
    """Random texts, some of them empty, with one to three references each."""

    def text() -> str:
        return " ".join(r.choice(WORDS) for _ in range(r.choice([0, 1, 2, 3, 5, 8, 13])))

    n, k = r.choice([1, 2, 5]), r.choice([1, 2, 3])
    return [text() for _ in range(n)], [[text() for _ in range(n)] for _ in range(k)]


@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize(
    ("smoothing", "value"),
    [("exp", None), ("none", None), ("floor", None), ("floor", 0.3), ("add-k", None), ("add-k", 2)],
)
def test_bleu_equals_sacrebleu(
    smoothing: ou.Smoothing, value: float | None, effective: bool
) -> None:
    theirs = TheirBLEU(
        smooth_method=smoothing, smooth_value=value, effective_order=effective, force=True
    )
    r = random.Random(0)
    for _ in range(60):
        texts, references = corpus(r)
        want = theirs.corpus_score(texts, references).score
        columns = [list(column) for column in zip(*references, strict=True)]
        made = ou.bleu(texts, columns, smoothing=smoothing, value=value, effective_order=effective)
        assert 100 * float(made.score) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("epsilon", [False, True])
@pytest.mark.parametrize("whitespace", [False, True])
@pytest.mark.parametrize(("words", "beta"), [(0, 2), (2, 2), (1, 1), (0, 3)])
def test_chrf_equals_sacrebleu(words: int, beta: int, whitespace: bool, epsilon: bool) -> None:
    theirs = CHRF(word_order=words, beta=beta, whitespace=whitespace, eps_smoothing=epsilon)
    r = random.Random(1)
    for _ in range(60):
        texts, references = corpus(r)
        want = theirs.corpus_score(texts, references).score
        columns = [list(column) for column in zip(*references, strict=True)]
        options = {"whitespace": whitespace, "epsilon": epsilon}
        made = ou.chrf(texts, columns, words=words, beta=float(beta), **options)
        assert 100 * made == pytest.approx(want, abs=1e-6)


def test_sentences_and_lower_case_are_scored_as_sacrebleu_does() -> None:
    texts, references = ["The cat sat.", "A B c"], ["the cat sat on.", "a b C d"]
    made = ou.sentence_bleu(texts, references)
    theirs = TheirBLEU(effective_order=True)
    want = [theirs.sentence_score(t, [r]).score for t, r in zip(texts, references, strict=True)]
    assert (100 * made).tolist() == pytest.approx(want, abs=1e-6)
    folded = ou.bleu(texts, references, lowercase=True).score
    theirs = TheirBLEU(lowercase=True)
    assert 100 * float(folded) == pytest.approx(
        theirs.corpus_score(texts, [references]).score, abs=1e-6
    )
    assert ou.chrf(texts, references, lowercase=True) == pytest.approx(
        CHRF(lowercase=True).corpus_score(texts, [references]).score / 100, abs=1e-8
    )


def test_the_brevity_penalty_is_below_one_for_short_texts() -> None:
    made = ou.bleu(["a b c d e"], ["a b c d e f g"])
    assert float(made.brevity) == pytest.approx(0.6703, abs=5e-5)
    assert float(made.score) == pytest.approx(0.6703, abs=5e-5)  # all precisions are 1
    assert float(ou.bleu(["a b c d e f g"], ["a b c d e"]).brevity) == 1.0


def test_counts_are_clipped_at_the_reference_that_has_most() -> None:
    made = ou.bleu(["the " * 7], ["the cat is on the mat"], order=1)
    assert float(made.precisions[0]) == pytest.approx(2 / 7)
    both = ou.bleu(["a a a b"], [["a b", "a a c"]], order=1)
    assert float(both.precisions[0]) == pytest.approx(3 / 4)  # two of a, one of b


def test_a_perfect_corpus_scores_one_in_any_order_of_its_sentences() -> None:
    texts = ["a b c d e", "x y z u", "a b"]
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        some = [texts[i] for i in order]
        assert float(ou.bleu(some, some).score) == pytest.approx(1.0)


def test_orders_that_do_not_fit_count_unless_they_are_left_out() -> None:
    assert float(ou.bleu(["a b"], ["a b"], smoothing="none").score) == 0.0
    assert float(ou.bleu(["a b"], ["a b"], effective_order=True).score) == pytest.approx(1.0)


def test_chrf_of_short_texts_by_both_rules() -> None:
    assert ou.chrf(["a"], ["a"]) == pytest.approx(1.0)
    assert ou.chrf(["a"], ["a"], epsilon=True) == pytest.approx(1 / 6, abs=1e-4)
    assert ou.chrf(["aa"], ["ab"]) == pytest.approx(0.25)
    assert ou.chrf(["aa"], ["ab"], epsilon=True) == pytest.approx(0.25 / 3, abs=1e-4)
    pair = "Das ist das Haus von Thomas und Samuel", "Das ist das Haus von Tom and Sam"
    want = CHRF().corpus_score([pair[0]], [[pair[1]]]).score
    assert 100 * ou.chrf([pair[0]], [pair[1]]) == pytest.approx(want, abs=1e-6)
    assert want == pytest.approx(74.98, abs=0.005)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.text("ab c", max_size=9), st.text("ab c", max_size=9)), min_size=1))
def test_matches_are_those_of_the_definition(pairs: list[tuple[str, str]]) -> None:
    texts, others = zip(*pairs, strict=True)
    made = _ngrams.clipped_matches(texts, [[o] for o in others], order=4)
    want = [_ngrams.naive_matches(a, [b], 4) for a, b in pairs]
    assert made.tolist() == want


def test_texts_with_too_many_symbols_for_one_number_are_counted_all_the_same() -> None:
    many = "".join(chr(0x4E00 + i) for i in range(2000))  # 2001 ** 6 exceeds 63 bits
    made = _ngrams.clipped_matches([many, "ab"], [[many[5:]], ["ab"]], order=6)
    assert made.tolist() == [[1995 - n for n in range(6)], [2, 1, 0, 0, 0, 0]]


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: ou.bleu("text", ["text"]), "hypotheses"),
        (lambda: ou.bleu(["text"], "text"), "references"),
        (lambda: ou.chrf(["text"], "text"), "references"),
        (lambda: ou.bleu(["a"], ["a", "b"]), "1 hypotheses and 2 references"),
        (lambda: ou.bleu(["a"], [[]]), r"references\[0\] is empty"),
        (lambda: ou.bleu(["a"], ["a"], smoothing="floor", value=0.0), "value"),
        (lambda: ou.bleu(["a"], ["a"], smoothing="exp", value=1.0), "leave it out"),
        (lambda: ou.bleu(["a"], ["a"], smoothing="epsilon"), "one of none"),  # type: ignore[arg-type]
        (lambda: ou.bleu_from_counts(torch.ones(3)), "2 x order"),
        (lambda: ou.chrf_from_counts(torch.ones(4)), "3 entries"),
        (lambda: ou.chrf(["a"], ["a"], beta=0.0), "beta"),
        (lambda: ou.rouge_n(["a"], ["a"], n=0), "n must"),
        (lambda: ou.rouge_l("a", ["a"]), "predictions"),
        (lambda: ou.rouge_l(["a"], ["a", "b"]), "one each"),
        (lambda: ou.rouge_lsum(["a"], [["a"]]), "prediction"),
        (lambda: ou.rouge_lsum([["a"]], []), "one each"),
        (lambda: ou.token_f1(["a"], ["a"]), r"answers\[0\]"),
        (lambda: ou.token_f1(["a"], [[]]), "at least one"),
        (lambda: ou.exact_match(["a"], []), "0 lists"),
        (lambda: ou.span_answer(torch.ones(3), torch.ones(4)), "end"),
        (lambda: ou.span_answer(torch.ones(3), torch.ones(3), longest=0), "longest"),
        (lambda: ou.span_answer(torch.ones(3).long(), torch.ones(3).long()), "floating"),
        (lambda: ou.span_answer(torch.ones(2, 0), torch.ones(2, 0)), "tokens"),
    ],
)
def test_what_makes_no_sense_is_refused(call: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()  # type: ignore[operator]


def test_rouge_equals_rouge_score() -> None:
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"])
    r = random.Random(2)
    for _ in range(150):
        ours, theirs = (
            "\n".join(
                " ".join(r.choices(SPOKEN, k=r.randint(0, 7))) for _ in range(r.randint(1, 4))
            )
            for _ in range(2)
        )
        want = scorer.score(theirs, ours)
        made = {
            "rouge1": ou.rouge_n([ours], [theirs]),
            "rouge2": ou.rouge_n([ours], [theirs], n=2),
            "rougeL": ou.rouge_l([ours], [theirs]),
            "rougeLsum": ou.rouge_lsum([ours.split("\n")], [theirs.split("\n")]),
        }
        for name, score in made.items():
            found = [float(v) for v in score]
            assert found == pytest.approx(list(want[name]), abs=1e-12), name


def test_no_summaries_have_no_scores() -> None:
    for score in (ou.rouge_n([], []), ou.rouge_l([], []), ou.rouge_lsum([], [])):
        assert [tuple(part.shape) for part in score] == [(0,)] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_counts_of_low_precision_are_scored_in_double(dtype: torch.dtype) -> None:
    counts = ou.bleu_counts(["a b c", "x"], ["a b d e", "y"])
    made, want = ou.bleu_from_counts(counts.to(dtype)), ou.bleu_from_counts(counts)
    assert made.score.tolist() == want.score.tolist()
    assert bool(ou.bleu_from_counts(torch.zeros(10, dtype=dtype)).precisions.isfinite().all())
    counts = ou.chrf_counts(["abc", "x"], ["abd", "y"])
    for epsilon in (False, True):
        again = ou.chrf_from_counts(counts.to(dtype), epsilon=epsilon)
        assert again.tolist() == ou.chrf_from_counts(counts, epsilon=epsilon).tolist()


def test_sentences_that_change_places_halve_rouge_l_alone() -> None:
    assert float(ou.rouge_l(["a b c d e f"], ["d e f a b c"]).f1) == 0.5
    assert float(ou.rouge_lsum([["a b c", "d e f"]], [["d e f", "a b c"]]).f1) == 1.0
    assert float(ou.rouge_n(["a b c d e f"], ["d e f a b c"]).f1) == 1.0


@settings(deadline=None)
@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_the_common_subsequence_is_that_of_the_table(x: str, y: str) -> None:
    table = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i in range(len(x)):
        for j in range(len(y)):
            best = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if x[i] == y[j] else best
    assert ou.common_subsequence(x, y) == table[-1][-1] == ou.common_subsequence(y, x)


def test_answers_are_multisets_of_words() -> None:
    made = ou.token_f1(["Paris " * 5, "", "The"], [["Paris"], ["x"], ["a", "the"]])
    assert made.tolist() == pytest.approx([1 / 3, 0.0, 1.0])


def test_words_count_as_often_as_both_have_them_and_the_best_answer_counts() -> None:
    assert ou.token_f1(["b b c"], [["b b d"]]).tolist() == pytest.approx([2 / 3])
    assert ou.token_f1(["b c"], [["x", "b c", "b"]]).tolist() == [1.0]
    assert ou.token_f1([""], [[""]]).tolist() == [1.0]
    assert ou.normalize_answer("an owl") == "owl"
    assert ou.normalize_answer("1,5, yes", decimals=True) == "1,5 yes"


def test_ends_outside_of_the_passage_do_not_count() -> None:
    s, e = torch.zeros(4), torch.tensor([0.0, 1.0, 2.0, 9.0])
    real = torch.tensor([True, True, True, False])
    assert ou.span_answer(s, e, real=real)[:2] == (0, 2)
    low = ou.span_answer(torch.zeros(2), torch.tensor([-5.0, -4.0]), longest=1)
    assert float(low.score) == -4.0


def test_an_answer_of_one_article_is_an_answer() -> None:
    assert ou.exact_match(["A", "B", "The"], [["a"], ["A"], ["a"]]).tolist() == [1.0, 0.0, 0.0]
    assert ou.token_f1(["A"], [["A"]]).tolist() == [1.0]


def test_decimals_are_kept_on_request() -> None:
    assert ou.normalize_answer("(3.14)") == "314"
    assert ou.normalize_answer("(3.14).", decimals=True) == "3.14"
    assert ou.exact_match(["314"], [["3.14"]]).tolist() == [1.0]
    assert ou.exact_match(["314"], [["3.14"]], decimals=True).tolist() == [0.0]


@settings(deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9), st.data())
def test_the_span_is_the_best_of_all_pairs(start: list[int], drawn: st.DataObject) -> None:
    n = len(start)
    end = drawn.draw(st.lists(st.integers(-4, 4), min_size=n, max_size=n))
    longest = drawn.draw(st.none() | st.integers(1, n + 2))
    s, e = torch.tensor(start).double(), torch.tensor(end).double()
    made = ou.span_answer(s, e, longest=longest)
    reach = n if longest is None else longest
    pairs = [(i, j) for i in range(n) for j in range(i, min(n, i + reach))]
    best = max(pairs, key=lambda pair: start[pair[0]] + end[pair[1]])
    assert (int(made.start), int(made.end)) == best
    assert float(made.score) == start[best[0]] + end[best[1]]


def test_no_span_leaves_the_passage() -> None:
    g = torch.Generator().manual_seed(0)
    s, e = torch.randn(2, 3, 11, generator=g)
    real = torch.zeros(3, 11, dtype=torch.bool)
    real[:, 4:7] = True
    made = ou.span_answer(s, e, real=real, longest=2)
    assert bool(((made.start >= 4) & (made.end < 7) & (made.end - made.start < 2)).all())
    nowhere = ou.span_answer(s, e, real=torch.zeros_like(real))
    assert nowhere.score.tolist() == [-torch.inf] * 3
