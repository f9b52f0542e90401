"""Suffix arrays and repeated stretches, against the naive definitions."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion import data
from companion.knowledge import data_quality as dq


@given(st.lists(st.integers(0, 3), max_size=40))
def test_suffixes_are_sorted_and_share_what_they_say(symbols: list[int]) -> None:
    found = dq.suffix_array(torch.tensor(symbols, dtype=torch.long))
    order = sorted(range(len(symbols)), key=lambda i: symbols[i:])
    assert found.starts.tolist() == order
    for k in range(1, len(order)):
        a, b = symbols[order[k - 1] :], symbols[order[k] :]
        shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        assert int(found.common[k]) == (min(len(a), len(b)) if shared is None else shared)


def naive_marks(documents: list[str], length: int, keep: str) -> list[list[int]]:
    """Every window against every earlier one."""
    windows = [
        (d, i, text[i : i + length])
        for d, text in enumerate(documents)
        for i in range(len(text) - length + 1)
    ]
    first: dict[str, tuple[int, int]] = {}
    count: dict[str, int] = {}
    for d, i, window in windows:
        first.setdefault(window, (d, i))
        count[window] = count.get(window, 0) + 1
    marks = [[0] * len(text) for text in documents]
    for d, i, window in windows:
        home, start = first[window]
        again = (d, i) != (home, start) and (d != home or i - start >= length)
        if keep == "none":
            again = count[window] > 1
        if again:
            marks[d][i : i + length] = [1] * length
    return marks


@given(
    st.lists(st.text(alphabet="ab好", max_size=20), max_size=5),
    st.integers(1, 6),
    st.sampled_from(["first", "none"]),
)
def test_spans_are_those_of_the_naive_search(documents: list[str], length: int, keep: str) -> None:
    found = dq.duplicate_spans(documents, length=length, keep=keep)
    for spans, marks in zip(found, naive_marks(documents, length, keep), strict=True):
        made = [0] * len(marks)
        for start, stop in spans:
            made[start:stop] = [1] * (stop - start)
        assert made == marks
        assert all(b.start > a.stop for a, b in pairwise(spans))


def test_no_stretch_crosses_the_border_of_two_documents() -> None:
    assert dq.duplicate_spans(["xab", "cdy", "zabcdz"], length=4) == [[], [], []]
    assert dq.duplicate_spans(["xabcd", "abcdy"], length=4)[1] == [(0, 4)]


def test_spans_are_of_characters_and_never_of_bytes() -> None:
    # The second character of "éa" is its third byte.
    assert dq.cut_spans("éa", [dq.Span(0, 1)]) == "a"
    poem = "床前明月光，疑是地上霜。"
    first, second = dq.duplicate_spans([poem, f"诗：{poem}！"], length=12)
    assert first == []
    assert second == [(2, 14)]
    left = dq.cut_spans(f"诗：{poem}！", second)
    assert left == "诗：！"
    assert "\ufffd" not in left


def test_a_run_of_one_letter_keeps_its_first_window() -> None:
    (spans,) = dq.duplicate_spans(["a" * 20], length=5)
    assert spans == [(5, 20)]


def test_tokens_are_taken_as_they_are() -> None:
    rows = [torch.tensor([7, 8, 9, 1]), torch.tensor([2, 7, 8, 9])]
    assert dq.duplicate_spans(rows, length=3) == [[], [(1, 4)]]


def test_after_cutting_no_stretch_of_that_length_is_left_of_a_planted_copy() -> None:
    verses = [verse.text for verse in data.bible_verses()[:300]]
    planted = f"{verses[10]} and so on. {verses[20]}"
    spans = dq.duplicate_spans([*verses, planted], length=60)[-1]
    assert verses[10][:60] not in dq.cut_spans(planted, spans)
    assert " and so on. " in dq.cut_spans(planted, spans)


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: dq.suffix_array(torch.tensor([0.5])), "one row of integers"),
        (lambda: dq.suffix_array(torch.tensor([[1]])), "one row of integers"),
        (lambda: dq.duplicate_spans("ab", length=1), "documents"),
        (lambda: dq.duplicate_spans(["ab"], length=0), "length must be"),
        (lambda: dq.duplicate_spans(["ab"], length=1, keep="last"), "unknown keep 'last'"),
        (lambda: dq.cut_spans("ab", [dq.Span(1, 3)]), "beyond 2 characters"),
        (lambda: dq.cut_spans("abc", [dq.Span(1, 2), dq.Span(0, 1)]), "out of order"),
    ],
)
def test_what_is_out_of_its_domain_is_refused(wrong, said) -> None:
    with pytest.raises(ValueError, match=said):
        wrong()
