"""Quality rules of published corpora, and choosing texts by a model."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion import data
from companion.knowledge import data_quality as dq

PAGE = " ".join(f"The word number {i} stands with others of that kind." for i in range(12))


def passes(measures: dict[str, dq.Measure]) -> bool:
    return all(measure.passed for measure in measures.values())


# --- rules ---------------------------------------------------------------------------------------


def test_prose_passes_and_each_rule_drops_what_it_is_for() -> None:
    assert passes(dq.gopher_quality(PAGE))
    wrong = {
        "words": "the cat and that dog",
        "mean_word_length": " ".join(["incomprehensibilities"] * 30 + ["the", "and"] * 15),
        "hashes_per_word": PAGE + " #" * 20,
        "ellipses_per_word": PAGE + " wait..." * 20,
        "bullet_lines": "\n".join(f"- {PAGE}" for _ in range(11)),
        "ellipsis_lines": "\n".join([f"{PAGE}…", f"{PAGE}…", PAGE]),
        "words_with_letters": PAGE + " 12 13" * 20,
        "stop_words": "lorem dolor sit amet consectetur " * 12,
    }
    for name, text in wrong.items():
        assert not dq.gopher_quality(text)[name].passed, name
    assert set(wrong) == set(dq.gopher_quality(PAGE))


def test_the_limits_of_gopher_belong_to_what_is_kept() -> None:
    fifty = " ".join(["the", "and", *["word"] * 48])
    assert dq.gopher_quality(fifty)["words"].passed
    assert not dq.gopher_quality(fifty.removesuffix(" word"))["words"].passed
    lines = ["- a"] * 9 + ["b"]
    assert dq.gopher_quality("\n".join(lines))["bullet_lines"] == (0.9, "<= 0.9", True)


def test_blank_lines_are_no_copies_of_each_other() -> None:
    found = dq.gopher_repetition("a\n\n\n\nb")
    assert found["repeated_lines"].value == 0
    assert found["repeated_paragraphs"].value == 0
    assert dq.gopher_repetition("a\nb\na\na")["repeated_lines"].value == 0.5
    assert dq.gopher_repetition("abc\nb\nabc")["repeated_line_characters"].value == 3 / 7


def naive_repeated(words: list[str], n: int) -> float:
    seen: set[tuple[str, ...]] = set()
    marks = [0] * len(words)
    for i in range(len(words) - n + 1):
        run = tuple(words[i : i + n])
        if run in seen:
            marks[i : i + n] = [1] * n
        seen.add(run)
    total = sum(map(len, words))
    return sum(len(w) for w, m in zip(words, marks, strict=True) if m) / total


@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), min_size=12, max_size=40))
def test_characters_of_repeated_ngrams_count_once(words: list[str]) -> None:
    found = dq.gopher_repetition(" ".join(words))
    for n in range(5, 11):
        value = found[f"repeated_{n}gram_characters"].value
        assert math.isclose(value, naive_repeated(words, n), abs_tol=1e-12)
    assert all(0 <= measure.value <= 1 for measure in found.values())


def test_the_top_ngram_is_the_most_frequent_and_then_the_longest() -> None:
    words = ["aa", "b", "x1", "aa", "b", "x2", "cccc", "d", "x3", "cccc", "d", "x4"]
    # Two 2-grams occur twice; the longer holds 5 of its characters twice.
    share = dq.gopher_repetition(" ".join(words))["top_2gram_characters"].value
    assert math.isclose(share, 10 / sum(map(len, words)))
    assert dq.gopher_repetition("a b c d e f")["top_2gram_characters"].value == 0


def test_repetition_is_dropped_and_prose_is_not() -> None:
    assert not passes(dq.gopher_repetition("Buy it now and save a lot. " * 30))
    assert passes(dq.gopher_repetition(data.shakespeare_plays()["Hamlet"][5000:8000]))


def test_c4_keeps_lines_that_are_sentences() -> None:
    page = (
        "Home | About\nThis line is a whole sentence.[3]\nToo short a line.\n"
        "Please enable JavaScript to see this page.\nThis site uses cookies for its own ends.\n"
        'And then it goes on and on...\n“Here is what he said to us."\n'
    )
    assert dq.c4_lines(page) == ('This line is a whole sentence.\n“Here is what he said to us."')


def test_c4_drops_pages_by_sentences_code_and_words() -> None:
    good = "This is one good sentence. Here there is another one! And is this a third?"
    assert passes(dq.c4_quality(good))
    assert not dq.c4_quality(good.rsplit("!", 1)[0] + ".")["sentences"].passed
    assert not dq.c4_quality(good + " f() {}")["curly_brackets"].passed
    assert not dq.c4_quality(good + " Lorem ipsum dolor.")["lorem_ipsum"].passed
    assert not dq.c4_quality(good, blocked=("third",))["blocked_words"].passed
    assert dq.c4_quality(good, blocked=("thir",))["blocked_words"].passed


def test_finewebs_limits_belong_to_what_is_dropped() -> None:
    long = "This line has more than thirty characters in it"
    short = "short line"
    lines = [f"{long} {i}." for i in range(33)] + [f"{short} {i}." for i in range(67)]
    assert not dq.fineweb_quality("\n".join(lines))["short_lines"].passed
    assert dq.fineweb_quality("\n".join(lines[:-1]))["short_lines"].passed
    ends = [f"{long} {i}." for i in range(12)] + [f"{long} {i}" for i in range(88)]
    assert not dq.fineweb_quality("\n".join(ends))["lines_with_an_end"].passed
    assert dq.fineweb_quality("\n".join(ends[:-1]))["lines_with_an_end"].passed
    again = ["x" * 10] * 2 + ["y" * 40, "z" * 40]
    assert dq.fineweb_quality("\n".join(again))["repeated_line_characters"].value == 0.1
    assert not dq.fineweb_quality("\n".join(again))["repeated_line_characters"].passed


def test_an_empty_text_is_dropped_without_an_error() -> None:
    for text in ("", "\n \n"):
        found = dq.quality_filters(text, rules=tuple(dq.RULES))
        assert not found["gopher_quality.words"].passed
        assert all(math.isfinite(measure.value) for measure in found.values())


def test_filters_are_those_asked_for_under_their_names() -> None:
    found = dq.quality_filters(PAGE, rules=("fineweb_quality",))
    assert {name.split(".")[0] for name in found} == {"fineweb_quality"}
    assert dq.quality_filters(PAGE, rules=()) == {}


# --- a model of good text ------------------------------------------------------------------------


def test_perplexity_is_of_a_token_and_the_range_is_closed() -> None:
    nats = torch.tensor([2.0, 4.0, 6.0, 0.0], dtype=torch.float64) * math.log(2)
    tokens = torch.tensor([1, 2, 2, 0])
    kept = dq.perplexity_filter(nats, tokens, high=4 + 1e-9, low=2.0)
    assert kept.tolist() == [True, True, False, False]


def test_hashed_ngrams_count_words_and_pairs_of_words() -> None:
    counts = dq.hashed_ngrams(["the cat the cat", "", "dog"], buckets=9973)
    assert counts.sum(1).tolist() == [7, 0, 1]
    assert sorted(counts[0][counts[0] > 0].tolist()) == [1, 2, 2, 2]
    one = dq.hashed_ngrams(["the cat the cat"], buckets=9973, n=1)
    assert one.sum() == 4


def test_dsir_weights_are_ratios_of_two_bags_of_words(g: torch.Generator) -> None:
    counts = torch.randint(0, 4, (5, 7), generator=g).double()
    p = dq.ngram_log_probs(counts[:2])
    q = dq.ngram_log_probs(counts)
    assert torch.allclose(p.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    for row, told in zip(counts, dq.dsir_log_weights(counts, p, q), strict=True):
        by_hand = sum(float(c) * float(a - b) for c, a, b in zip(row, p, q, strict=True))
        assert math.isclose(float(told), by_hand, rel_tol=1e-9, abs_tol=1e-12)


def test_resampling_includes_texts_as_drawing_without_replacement_does(g: torch.Generator) -> None:
    w = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    trials = 6000
    hits = torch.zeros(3)
    for _ in range(trials):
        hits[dq.dsir_resample(w.log() + 7, 2, generator=g)] += 1
    exact = torch.tensor([0.8393, 0.6750, 0.4857])
    spread = (exact * (1 - exact) / trials).sqrt()
    assert bool(((hits / trials - exact).abs() < 5 * spread + 1e-4).all())
    # Without the noise the first two would always be taken.
    assert float(exact[0]) < 0.9


def test_dsir_finds_the_plays_among_verses() -> None:
    plays = data.shakespeare()
    verses = data.bible()
    pool = [verses[i : i + 800] for i in range(0, 160_000, 800)]
    pool += [plays[i : i + 800] for i in range(0, 40_000, 800)]
    target = [plays[i : i + 800] for i in range(1_000_000, 1_080_000, 800)]
    counts = dq.hashed_ngrams(pool)
    weights = dq.dsir_log_weights(
        counts, dq.ngram_log_probs(dq.hashed_ngrams(target)), dq.ngram_log_probs(counts)
    )
    chosen = dq.dsir_resample(weights, 50, generator=torch.Generator().manual_seed(0))
    assert float((chosen >= 200).double().mean()) > 0.9  # 20 % by chance


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: dq.quality_filters("a", rules=("gopher",)), "unknown rules gopher"),
        (lambda: dq.quality_filters("a", rules="gopher_quality"), "rules"),
        (lambda: dq.c4_quality("a", blocked="bad"), "blocked"),
        (
            lambda: dq.perplexity_filter(torch.ones(2), torch.ones(3).int(), high=3.0),
            "the same shape",
        ),
        (lambda: dq.perplexity_filter(torch.ones(2), torch.ones(2).int(), high=0.5), "high must"),
        (lambda: dq.hashed_ngrams("a text"), "texts"),
        (lambda: dq.hashed_ngrams(["a"], buckets=0), "buckets must"),
        (lambda: dq.ngram_log_probs(torch.ones(2, 3), add=0.0), "add must"),
        (
            lambda: dq.dsir_log_weights(torch.ones(2, 3), torch.ones(3), torch.ones(4)),
            "agree in their buckets",
        ),
        (
            lambda: dq.dsir_resample(torch.ones(3), 4, generator=torch.Generator()),
            "k must",
        ),
    ],
)
def test_what_is_out_of_its_domain_is_refused(wrong, said) -> None:
    with pytest.raises(ValueError, match=said):
        wrong()


def test_the_limits_are_those_of_the_papers() -> None:
    # Rae et al. 2021, appendix A and table A1; Raffel et al. 2020, sec. 2.2; Penedo et al. 2024.
    limits = {
        "gopher_quality": {
            "words": "50 to 100000",
            "mean_word_length": "3 to 10",
            "hashes_per_word": "<= 0.1",
            "ellipses_per_word": "<= 0.1",
            "bullet_lines": "<= 0.9",
            "ellipsis_lines": "<= 0.3",
            "words_with_letters": ">= 0.8",
            "stop_words": ">= 2",
        },
        "gopher_repetition": {
            "repeated_lines": "<= 0.3",
            "repeated_paragraphs": "<= 0.3",
            "repeated_line_characters": "<= 0.2",
            "repeated_paragraph_characters": "<= 0.2",
            "top_2gram_characters": "<= 0.2",
            "top_3gram_characters": "<= 0.18",
            "top_4gram_characters": "<= 0.16",
            "repeated_5gram_characters": "<= 0.15",
            "repeated_6gram_characters": "<= 0.14",
            "repeated_7gram_characters": "<= 0.13",
            "repeated_8gram_characters": "<= 0.12",
            "repeated_9gram_characters": "<= 0.11",
            "repeated_10gram_characters": "<= 0.1",
        },
        "c4_quality": {
            "sentences": ">= 3",
            "lorem_ipsum": "<= 0",
            "curly_brackets": "<= 0",
            "blocked_words": "<= 0",
        },
        "fineweb_quality": {
            "lines_with_an_end": "> 0.12",
            "repeated_line_characters": "< 0.1",
            "short_lines": "< 0.67",
        },
    }
    for name, wanted in limits.items():
        assert {key: found.wanted for key, found in dq.RULES[name](PAGE).items()} == wanted


def test_c4_wants_five_words_a_line() -> None:
    assert dq.c4_lines("Just four words here.\nAnd these here are five.") == (
        "And these here are five."
    )


def test_what_is_added_to_each_bucket_is_what_was_asked_for() -> None:
    found = dq.ngram_log_probs(torch.tensor([[1.0, 0.0]]), add=0.5).exp()
    assert torch.allclose(found, torch.tensor([0.75, 0.25], dtype=torch.float64))
