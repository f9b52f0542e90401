"""Pairs of segments: who follows whom, and what must not give it away."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.core import generator
from companion.pretraining.masked import (
    Boundaries,
    SentencePairs,
    next_sentence_pairs,
    sentence_boundaries,
    sentence_order_pairs,
)

PAD, CLS, SEP, HALF = 0, 1, 2, 13
IDS = {"cls_id": CLS, "sep_id": SEP, "pad_id": PAD}


def library(documents: int = 7, seed: int = 0) -> list[list[list[int]]]:
    """Documents whose tokens are all different, so that a token tells where it comes from."""
    g = generator(seed)
    made, token = [], 10
    for number in range(documents):
        text = []
        for length in torch.randint(1, 8, (5 + 2 * number,), generator=g).tolist():
            text.append(list(range(token, token + length)))
            token += length
        made.append(text)
    return made


def document_of(documents: list[list[list[int]]]) -> dict[int, int]:
    return {i: n for n, text in enumerate(documents) for sentence in text for i in sentence}


def parts(pairs: SentencePairs, row: int) -> tuple[list[int], list[int]]:
    """Take a row apart, and require its layout."""
    ids = pairs.ids[row].tolist()
    length = int(pairs.real[row].sum())
    assert pairs.real[row].tolist() == [True] * length + [False] * (len(ids) - length)
    assert (ids[0], ids[length - 1]) == (CLS, SEP)
    assert ids[length:] == [PAD] * (len(ids) - length)
    middle = ids.index(SEP)
    assert pairs.segments[row].tolist() == [0] * (middle + 1) + [1] * (len(ids) - middle - 1)
    return ids[1:middle], ids[middle + 1 : length - 1]


def test_segments_are_the_longest_runs_of_whole_sentences_on_each_side() -> None:
    documents = library()
    found = sentence_boundaries(documents, half=HALF)
    assert len(found) == sum(len(text) - 1 for text in documents)
    row = 0
    for number, text in enumerate(documents):
        for place in range(1, len(text)):
            before = found.before[row, : found.before_length[row]].tolist()
            after = found.after[row, : found.after_length[row]].tolist()
            flat = [i for sentence in text for i in sentence]
            cut = sum(map(len, text[:place]))
            assert flat[cut - len(before) : cut] == before
            assert flat[cut : cut + len(after)] == after
            ends = {sum(map(len, text[:k])) for k in range(len(text) + 1)}
            assert {cut - len(before), cut + len(after)} <= ends
            longer = [
                e for e in ends if cut - HALF <= e < cut - len(before) or cut + len(after) < e
            ]
            assert all(e - cut > HALF for e in longer)
            assert int(found.document[row]) == number
            row += 1


def test_boundaries_beside_a_long_sentence_are_left_out() -> None:
    found = sentence_boundaries([[[5] * 4, [6] * 3, [7] * 9, [8], [9]]], half=5)
    assert found.before.tolist() == [[5, 5, 5, 5, 0], [8, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match="no document has two neighboring sentences of at most 2"):
        sentence_boundaries([[[5, 5, 5], [6, 6, 6]], [[7]]], half=2)


@pytest.mark.parametrize("negatives", ["other", "same"])
def test_true_pairs_follow_and_false_ones_come_from_where_they_should(
    negatives: Any, g: torch.Generator
) -> None:
    documents = library()
    home = document_of(documents)
    found = sentence_boundaries(documents, half=HALF)
    index = torch.arange(len(found)).repeat(11)
    pairs = next_sentence_pairs(found, index, **IDS, negatives=negatives, generator=g)
    for row, label in enumerate(pairs.labels.tolist()):
        first, second = parts(pairs, row)
        follows = second[0] == first[-1] + 1
        assert follows == (label == 0)
        assert (home[first[0]] == home[second[0]]) == (label == 0 or negatives == "same")
    # Labels are fair coins: five standard deviations.
    assert abs(float(pairs.labels.double().mean()) - 0.5) < 2.5 / len(index) ** 0.5


@pytest.mark.parametrize("negatives", ["other", "same"])
def test_a_false_partner_is_uniform_on_all_that_qualify(negatives: Any, g: torch.Generator) -> None:
    found = sentence_boundaries(library(3), half=HALF)
    count, draws = len(found), 40013
    place = {int(found.after[row, 0]): row for row in range(count)}
    for row in (0, 5, count - 1):
        index = torch.full((draws,), row)
        pairs = next_sentence_pairs(found, index, **IDS, negatives=negatives, generator=g)
        false = pairs.labels == 1
        start = pairs.segments.argmax(1)
        partners = pairs.ids.gather(1, start[:, None]).squeeze(1)[false]
        seen = torch.zeros(count)
        for token, times in zip(*partners.unique(return_counts=True), strict=True):
            seen[place[int(token)]] = times
        own = found.document == found.document[row]
        allowed = own.clone() if negatives == "same" else ~own
        allowed[row] = False
        share = seen[allowed] / false.sum()
        assert float(seen[~allowed].sum()) == 0
        expected = 1 / int(allowed.sum())
        sigma = (expected * (1 - expected) / int(false.sum())) ** 0.5
        assert bool(((share - expected).abs() < 5 * sigma).all())


def test_half_of_the_pairs_are_exchanged_for_sentence_order(g: torch.Generator) -> None:
    documents = library()
    found = sentence_boundaries(documents, half=HALF)
    index = torch.arange(len(found)).repeat(11)
    pairs = sentence_order_pairs(found, index, **IDS, generator=g)
    for row, label in enumerate(pairs.labels.tolist()):
        first, second = parts(pairs, row)
        if label:
            first, second = second, first
        assert second[0] == first[-1] + 1
        boundary = int(index[row])
        assert len(first) == int(found.before_length[boundary])
        assert len(second) == int(found.after_length[boundary])
    assert abs(float(pairs.labels.double().mean()) - 0.5) < 2.5 / len(index) ** 0.5


def test_the_length_of_a_segment_tells_nothing_about_the_label(g: torch.Generator) -> None:
    found = sentence_boundaries(library(29), half=HALF)
    index = torch.arange(len(found)).repeat(7)
    pairs = next_sentence_pairs(found, index, **IDS, generator=g)
    total = pairs.real.sum(1).double()
    true, false = total[pairs.labels == 0], total[pairs.labels == 1]
    error = (true.var() / len(true) + false.var() / len(false)).sqrt()
    assert abs(float(true.mean() - false.mean())) < 5 * float(error)


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=6), min_size=2, max_size=4),
    half=st.integers(9, 20),
    seed=st.integers(0, 99),
)
def test_any_library_gives_well_formed_pairs(
    lengths: list[list[int]], half: int, seed: int
) -> None:
    token = iter(range(10, 10_000))
    documents = [[[next(token) for _ in range(n)] for n in text] for text in lengths]
    found = sentence_boundaries(documents, half=half)
    assert len(found) == sum(len(text) - 1 for text in lengths)
    index = torch.arange(len(found))
    for pairs in (
        next_sentence_pairs(found, index, **IDS, generator=generator(seed)),
        sentence_order_pairs(found, index, **IDS, generator=generator(seed)),
    ):
        assert pairs.ids.shape == (len(found), 2 * half + 3)
        for row in range(len(found)):
            first, second = parts(pairs, row)
            assert min(len(first), len(second)) >= 1


def moved(found: Boundaries, device: str | torch.device) -> Boundaries:
    return found.to(device)


@pytest.mark.parametrize("make", [next_sentence_pairs, sentence_order_pairs])
def test_pairs_are_made_on_every_device(
    make: Callable[..., SentencePairs], device: torch.device
) -> None:
    found, index = sentence_boundaries(library(), half=HALF), torch.tensor([3, 0, 7])
    before = [found.before.clone(), index.clone()]
    made = make(found, index, **IDS, generator=generator(0))
    assert torch.equal(found.before, before[0])
    assert torch.equal(index, before[1])
    there = make(moved(found, device), index.to(device), **IDS, generator=generator(0))
    assert all(torch.equal(a, b.cpu()) for a, b in zip(made, there, strict=True))
    nowhere = make(moved(found, "meta"), index.to("meta"), **IDS, generator=generator(0))
    assert all(part.is_meta for part in nowhere)
    assert [part.shape for part in nowhere] == [part.shape for part in made]


@pytest.mark.usefixtures("own_checks")
def test_what_cannot_be_paired_is_named(g: torch.Generator) -> None:
    one = sentence_boundaries([[[5], [6], [7]]], half=3)
    two = sentence_boundaries([[[5], [6]], [[7], [8]]], half=3)
    index = torch.tensor([0])
    with pytest.raises(ValueError, match=r"1 boundaries have no partner .* negatives='other'"):
        next_sentence_pairs(one, index, **IDS, generator=g)
    with pytest.raises(ValueError, match=r"1 boundaries have no partner .* negatives='same'"):
        next_sentence_pairs(two, index, **IDS, negatives="same", generator=g)
    with pytest.raises(ValueError, match="negatives must be 'other' or 'same', got 'none'"):
        next_sentence_pairs(two, index, **IDS, negatives="none", generator=g)  # type: ignore[arg-type]
    for make in (next_sentence_pairs, sentence_order_pairs):
        with pytest.raises(ValueError, match=r"index must lie in \[0, 2\), got 2"):
            make(two, torch.tensor([2]), **IDS, generator=g)
    with pytest.raises(ValueError, match="half must be 1 or more, got 0"):
        sentence_boundaries([[[5], [6]]], half=0)


def test_lengths_and_rows_are_those_of_a_batch() -> None:
    found = sentence_boundaries(library(), half=HALF)
    fields: list[Tensor] = [found.before, found.after, found.before_length, found.document]
    assert all(len(field) == len(found) for field in fields)
    assert bool((found.document.diff() >= 0).all())
