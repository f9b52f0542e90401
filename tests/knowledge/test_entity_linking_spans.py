"""Tags and spans: equal to seqeval, also where tags are such as nobody would write."""

import random
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, IOBES, Entities

from companion.knowledge import entity_linking as el

SCHEMES = {"BIO": IOB2, "BIOES": IOBES}


def any_tags(prefixes: str) -> st.SearchStrategy[list[str]]:
    tag = st.sampled_from(["O", *(f"{p}-{label}" for p in prefixes for label in "XY")])
    return st.lists(tag, min_size=1, max_size=9)


@given(any_tags("BIES"))
def test_the_lenient_reading_is_that_of_seqeval(tags: list[str]) -> None:
    theirs = [(label, start, end + 1) for label, start, end in get_entities(tags)]
    assert [(s.label, s.start, s.end) for s in el.spans(tags)] == theirs


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_the_strict_readings_are_those_of_seqeval(scheme: Any, data: st.DataObject) -> None:
    tags = data.draw(any_tags({"BIO": "BI", "BIOES": "BIES"}[scheme]))
    theirs = [(e.tag, e.start, e.end) for e in Entities([tags], SCHEMES[scheme]).entities[0]]
    assert [(s.label, s.start, s.end) for s in el.spans(tags, scheme=scheme)] == theirs


def test_f1_is_that_of_seqeval_over_many_sentences() -> None:
    draw = random.Random(3)
    for scheme, theirs in SCHEMES.items():
        prefixes = {"BIO": "BI", "BIOES": "BIES"}[scheme]
        pool = ["O", *(f"{p}-{label}" for p in prefixes for label in "XYZ")]
        gold = [[draw.choice(pool) for _ in range(draw.randint(1, 9))] for _ in range(211)]
        told = [[t if draw.random() < 0.8 else draw.choice(pool) for t in s] for s in gold]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            strict = f1_score(gold, told, mode="strict", scheme=theirs)
            lenient = f1_score(gold, told)
        mine: Any = scheme
        assert el.span_f1(gold, told, scheme=mine).f1 == pytest.approx(strict, abs=1e-12)
        assert el.span_f1(gold, told).f1 == pytest.approx(lenient, abs=1e-12)


HARD = [
    # An orphan I, the label that changes inside, nothing at all, an unclosed span.
    (["B-A", "I-A"], ["I-A", "I-A"], {"conll": 1.0, "BIO": 0.0}),
    (["B-A", "I-A"], ["B-A", "I-B"], {"conll": 0.0, "BIO": 0.0}),
    (["O", "O"], ["O", "O"], {"conll": 0.0, "BIO": 0.0, "BIOES": 0.0}),
    (["B-A", "E-A"], ["B-A", "I-A"], {"conll": 1.0, "BIOES": 0.0}),
    # E, then B of the same label: two spans, so that the second half is wrong.
    (["B-A", "E-A", "B-A", "E-A"], ["B-A", "I-A", "I-A", "E-A"], {"conll": 0.0, "BIOES": 0.0}),
    (["S-A", "S-A"], ["B-A", "E-A"], {"conll": 0.0, "BIOES": 0.0}),
]


@pytest.mark.parametrize(("gold", "told", "wanted"), HARD)
def test_hard_cases(gold: list[str], told: list[str], wanted: dict[Any, float]) -> None:
    for scheme, value in wanted.items():
        scores = el.span_f1([gold], [told], scheme=scheme)
        assert scores.f1 == value
        assert scores.scheme == scheme


def test_two_equal_mentions_in_one_sentence_count_twice() -> None:
    gold = [["B-PER", "O", "B-PER"]]
    scores = el.span_f1(gold, [["B-PER", "O", "O"]])
    assert (scores.right, scores.true, scores.predicted) == (1, 2, 1)
    assert scores.f1 == pytest.approx(2 / 3)


@given(
    st.sampled_from(["BIO", "BIOES"]),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from("XYZ")), max_size=4),
)
def test_spans_come_back_from_their_tags(scheme: Any, pieces: list[tuple[int, int, str]]) -> None:
    found, place = [], 0
    for gap, length, label in pieces:
        found.append(el.Span(place + gap, place + gap + length, label))
        place += gap + length
    tags = el.tags_from_spans(found, place + 1, scheme=scheme)
    assert el.spans(tags, scheme=scheme) == found
    assert el.spans(tags) == found


@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
def test_constraints_allow_exactly_the_tags_of_spans(scheme: Any) -> None:
    import itertools

    names = el.tag_names(["X", "Y"], scheme=scheme)
    rules = el.tag_constraints(names, scheme=scheme)
    for numbers in itertools.product(range(len(names)), repeat=3):
        tags = [names[i] for i in numbers]
        well_formed = el.tags_from_spans(el.spans(tags, scheme=scheme), 3, scheme=scheme) == tags
        allowed = bool(rules.starts[numbers[0]]) and bool(rules.ends[numbers[-1]])
        allowed &= all(bool(rules.allowed[i, j]) for i, j in itertools.pairwise(numbers))
        assert allowed == well_formed, tags


def test_constraints_leave_no_invalid_path() -> None:
    names = el.tag_names(["X", "Y"])
    rules = el.tag_constraints(names)
    layer = el.LinearChainCRF(len(names), **rules._asdict())
    g = torch.Generator().manual_seed(2)
    psi = 3 * torch.randn(300, 11, len(names), generator=g)
    for row in layer.decode(psi).tags.tolist():
        tags = [names[i] for i in row]
        assert el.tags_from_spans(el.spans(tags, scheme="BIO"), 11) == tags


def test_overlap_counts_what_touches() -> None:
    gold = [["B-A", "I-A", "O", "B-B", "I-B", "O", "B-A"]]
    told = [["B-A", "O", "O", "B-A", "I-A", "O", "O"]]
    # Three true and two predicted spans: a part with the label, the borders with another label.
    scores = el.overlap_scores(gold, told)
    assert scores.strict == 0
    assert scores.exact == pytest.approx(2 / 5)
    assert scores.partial == pytest.approx(2 * 1.5 / 5)
    assert scores.label == pytest.approx(2 / 5)


def test_a_long_span_is_paired_once() -> None:
    gold = [["B-A", "O", "B-A", "O", "B-A"]]
    told = [["B-A", "I-A", "I-A", "I-A", "I-A"]]
    scores = el.overlap_scores(gold, told)
    assert scores.label == pytest.approx(2 * 1 / 4)
    assert scores.partial == pytest.approx(2 * 0.5 / 4)


@pytest.mark.parametrize("seed", range(150))
def test_overlaps_are_as_many_pairs_as_there_can_be(seed: int) -> None:
    draw = random.Random(seed)

    def some() -> list[el.Span]:
        found, place = [], 0
        for _ in range(draw.randint(0, 5)):
            start = place + draw.randint(0, 2)
            place = start + draw.randint(1, 4)
            found.append(el.Span(start, place, draw.choice("XY")))
        return found

    def most(gold: list[el.Span], told: list[el.Span], *, label: bool) -> int:
        if not gold:
            return 0
        best = most(gold[1:], told, label=label)
        for i, other in enumerate(told):
            meet = gold[0].start < other.end and other.start < gold[0].end
            if meet and (not label or gold[0].label == other.label):
                best = max(best, 1 + most(gold[1:], [*told[:i], *told[i + 1 :]], label=label))
        return best

    gold, told = some(), some()
    length = max([1, *(s.end for s in gold + told)])
    scores = el.overlap_scores(
        [el.tags_from_spans(gold, length)], [el.tags_from_spans(told, length)], scheme="BIO"
    )
    total = max(len(gold) + len(told), 1)
    exact = len({s[:2] for s in gold} & {s[:2] for s in told})
    assert scores.label == pytest.approx(2 * most(gold, told, label=True) / total)
    assert scores.exact == pytest.approx(2 * exact / total)
    partial = (exact + most(gold, told, label=False)) / 2
    assert scores.partial == pytest.approx(2 * partial / total)


@pytest.mark.usefixtures("own_checks")
def test_what_does_not_fit_is_refused() -> None:
    wrong: Any = "IOB"
    with pytest.raises(ValueError, match="scheme must be one of conll, BIO, BIOES"):
        el.spans(["O"], scheme=wrong)
    with pytest.raises(ValueError, match="got 'E-X'"):
        el.spans(["E-X"], scheme="BIO")
    with pytest.raises(ValueError, match="got 'PER'"):
        el.spans(["PER"])
    with pytest.raises(ValueError, match="tags must hold several texts"):
        el.spans("O")
    with pytest.raises(ValueError, match="1 true sentences, but 2 predicted"):
        el.span_f1([["O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match="sentence 0 has 1 true tags, but 2 predicted"):
        el.span_f1([["O"]], [["O", "O"]])
    with pytest.raises(ValueError, match="labels must be different"):
        el.tag_names(["X", "X"])
    with pytest.raises(ValueError, match=r"span \[1, 3\) is empty, outside"):
        el.tags_from_spans([el.Span(0, 2, "X"), el.Span(1, 3, "X")], 4)
    with pytest.raises(ValueError, match=r"span \[0, 2\) has no label"):
        el.tags_from_spans([el.Span(0, 2, "")], 4)
    for tags in ([], ["O", "O"]):
        with pytest.raises(ValueError, match="tags must be different, and one at least"):
            el.tag_constraints(tags)
