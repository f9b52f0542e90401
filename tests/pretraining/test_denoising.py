"""Noises and spans: what is kept, how much is lost, and that all outcomes are equally likely."""

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.pretraining.denoising import (
    UL2,
    Denoiser,
    Pair,
    Tokens,
    compose,
    document_rotation,
    enclose,
    expected_infill_spans,
    fill_in_the_middle,
    infill_lengths,
    mixture_of_denoisers,
    pad_rows,
    random_spans,
    sentence_permutation,
    shift_right,
    span_corruption,
    span_counts,
    split_spans,
    target_labels,
    text_infilling,
    token_deletion,
    token_masking,
    trim,
    unpad,
)

MASK = 5
STOPS = (12, 15, 16, 20)
Rows = list[list[int]]

NOISES = {
    "masking": partial(token_masking, mask_id=MASK, ratio=0.3),
    "deletion": partial(token_deletion, ratio=0.3),
    "infilling": partial(text_infilling, mask_id=MASK),
    "sentences": partial(sentence_permutation, stops=STOPS),
    "rotation": document_rotation,
    "middle": partial(fill_in_the_middle, suffix=2, prefix=3, middle=4),
}


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def texts(*lengths: int) -> Tokens:
    """Distinct tokens, so that every one can be followed."""
    return pad_rows([list(range(10, 10 + n)) for n in lengths], pad=1)


def near(share: float, length: int) -> int:
    return int(torch.round(torch.tensor(float(length)) * share))


def close(counts: Counter[tuple[int, ...]], outcomes: int, draws: int) -> None:
    """All outcomes appear, each within 5 standard deviations of its share."""
    assert len(counts) == outcomes
    p = 1 / outcomes
    slack = 5 * math.sqrt(draws * p * (1 - p))
    assert all(abs(count - draws * p) < slack for count in counts.values())


lengths = st.lists(st.integers(0, 23), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(lengths=lengths, ratio=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_infilling_keeps_the_rest_in_order_and_meets_the_budget(
    lengths: list[int], ratio: float, seed: int
) -> None:
    tokens = texts(*lengths)
    out = text_infilling(tokens, mask_id=MASK, ratio=ratio, generator=gen(seed))
    for before, after in zip(unpad(tokens), unpad(out), strict=True):
        kept = [i for i in after if i != MASK]
        budget = near(ratio, len(before))
        assert len(kept) == len(before) - budget
        assert kept == sorted(kept)
        assert set(kept) <= set(before)
        assert (MASK in after) == (budget > 0)


def test_infilling_by_hand() -> None:
    # Budget 1 of 3 tokens and a huge rate: exactly one span, of length 1 after the cut, which
    # falls before, between or behind the two others with the same chance.
    tokens = pad_rows([[10, 11, 12]] * 6000)
    out = unpad(text_infilling(tokens, mask_id=MASK, ratio=0.3, rate=50.0, generator=gen()))
    close(Counter(tuple(row) for row in out), 3, 6000)
    assert set(map(tuple, out)) == {(MASK, 11, 12), (10, MASK, 12), (10, 11, MASK)}


def test_every_interleaving_of_spans_and_text_is_equally_likely() -> None:
    # 4 tokens stay, and the number of spans differs: given it, all placements are alike.
    out = unpad(
        text_infilling(pad_rows([[10] * 6] * 40000), mask_id=MASK, ratio=0.3, generator=gen())
    )
    for spans in (1, 2):
        rows = [tuple(row) for row in out if row.count(MASK) == spans]
        close(Counter(rows), math.comb(4 + spans, spans), len(rows))


def test_infilling_treats_both_ends_alike() -> None:
    # The length that is cut may be that of any span. Were it always the last one of the row, the
    # right end would be hit less.
    draws, n = 20000, 20
    out = text_infilling(texts(*[n] * draws), mask_id=MASK, generator=gen())
    kept = torch.bincount(out.ids[out.real], minlength=10 + n)[10:].double() / draws
    # Two shares of the same mean; variance of each at most 1/4 a draw, and 6 deviations.
    assert float((kept - kept.flip(0)).abs().max()) < 6 * math.sqrt(0.5 / draws)


def test_lengths_of_spans_are_poisson_and_sum_to_the_budget() -> None:
    draws, budget = 40000, 17
    drawn = infill_lengths(torch.full((draws,), budget), largest=budget, generator=gen())
    real = drawn >= 0
    assert torch.equal(drawn.clamp(min=0).sum(1), torch.full((draws,), budget))
    assert bool((real[:, :-1] | ~real[:, 1:]).all())  # no gap
    first = drawn[:, 0]
    for length in range(8):  # the first span is cut at 17 only: P(Poisson(3) > 17) < 1e-8
        p = math.exp(-3) * 3**length / math.factorial(length)
        share = float((first == length).double().mean())
        assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / draws)
    spans = real.sum(1).double()
    error = float(spans.std() / math.sqrt(draws))
    assert abs(float(spans.mean()) - expected_infill_spans(budget)) < 5 * error


def test_the_mean_number_of_spans_is_that_of_a_recursion() -> None:
    # m(b) = 1 + sum_l P(l) m(b - l), solved for m(b), which also stands on the right for l = 0.
    for rate in (0.7, 3.0):
        p = [math.exp(-rate) * rate**k / math.factorial(k) for k in range(40)]
        m = [0.0]
        for b in range(1, 31):
            m.append((1 + sum(p[k] * m[b - k] for k in range(1, b + 1))) / (1 - p[0]))
        for b in range(31):
            assert math.isclose(expected_infill_spans(b, rate=rate), m[b], rel_tol=1e-10)


@settings(max_examples=40, deadline=None)
@given(lengths=lengths, ratio=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_masking_and_deletion_take_the_same_exact_share(
    lengths: list[int], ratio: float, seed: int
) -> None:
    tokens = texts(*lengths)
    masked = unpad(token_masking(tokens, mask_id=MASK, ratio=ratio, generator=gen(seed)))
    deleted = unpad(token_deletion(tokens, ratio=ratio, generator=gen(seed)))
    for before, one, two in zip(unpad(tokens), masked, deleted, strict=True):
        assert one.count(MASK) == near(ratio, len(before))
        assert all(i in (MASK, j) for i, j in zip(one, before, strict=True))
        # The same draw: what one masks, the other deletes.
        assert two == [i for i in one if i != MASK]


def test_every_subset_is_masked_equally_often() -> None:
    tokens = pad_rows([[10, 11, 12, 13, 14]] * 20000)
    out = token_masking(tokens, mask_id=MASK, ratio=0.4, generator=gen())
    chosen = [tuple((row == MASK).nonzero().flatten().tolist()) for row in out.ids]
    close(Counter(chosen), 10, 20000)


def sentences_of(row: list[int]) -> list[tuple[int, ...]]:
    """The definition, token by token."""
    found: Rows = []
    for place, token in enumerate(row):
        after_stop = place > 0 and row[place - 1] in STOPS
        if place == 0 or (after_stop and token not in STOPS):
            found.append([])
        found[-1].append(token)
    return [tuple(sentence) for sentence in found]


@settings(max_examples=40, deadline=None)
@given(lengths=lengths, seed=st.integers(0, 10**6))
def test_sentence_permutation_moves_whole_sentences(lengths: list[int], seed: int) -> None:
    tokens = texts(*lengths)
    out = sentence_permutation(tokens, stops=STOPS, generator=gen(seed))
    assert torch.equal(out.real, tokens.real)
    for before, after in zip(unpad(tokens), unpad(out), strict=True):
        sentences = sentences_of(before)
        orders = permutations(sentences) if len(sentences) < 6 else None
        flat = [i for s in sorted(sentences, key=lambda s: after.index(s[0])) for i in s]
        assert after == flat
        assert orders is None or tuple(after) in {sum(o, ()) for o in orders}


def test_all_orders_of_sentences_are_equally_likely() -> None:
    tokens = pad_rows([[10, 11, 12, 13, 14, 15, 16, 17]] * 12000)  # 10-12, 13-16, 17
    out = unpad(sentence_permutation(tokens, stops=STOPS, generator=gen()))
    close(Counter(tuple(row) for row in out), 6, 12000)


def test_rotation_starts_at_every_token_equally_often() -> None:
    tokens = texts(*[7] * 7000, 11)
    out = unpad(document_rotation(tokens, generator=gen()))[:-1]
    base = list(range(10, 17))
    assert {tuple(row) for row in out} == {tuple(base[i:] + base[:i]) for i in range(7)}
    close(Counter(tuple(row) for row in out), 7, 7000)


def test_all_pairs_of_cuts_move_a_middle_with_the_right_chance() -> None:
    draws, n = 30000, 4
    tokens = texts(*[n] * draws, 7, 0)
    out = unpad(fill_in_the_middle(tokens, suffix=2, prefix=3, middle=4, generator=gen()))
    assert out[-1] == [2, 3, 4]
    counts: Counter[tuple[int, ...]] = Counter()
    for row in out[:draws]:
        assert row[0] == 2
        prefix, middle = row.index(3), row.index(4)
        first, last = row[prefix + 1 : middle], row[1:prefix]
        assert first + row[middle + 1 :] + last == [10, 11, 12, 13]
        counts[len(first), n - len(last)] += 1
    assert len(counts) == 15  # two of five places, equal ones half as often
    for (a, b), count in counts.items():
        p = (1 if a == b else 2) / 25
        assert abs(count - draws * p) < 5 * math.sqrt(draws * p * (1 - p))


@pytest.mark.parametrize("name", NOISES)
def test_noises_do_not_change_their_input_and_repeat_with_the_seed(name: str) -> None:
    tokens = texts(13, 7, 2)
    ids, real = tokens.ids.clone(), tokens.real.clone()
    one, two = (NOISES[name](tokens, generator=gen(3)) for _ in range(2))
    assert torch.equal(tokens.ids, ids)
    assert torch.equal(tokens.real, real)
    assert torch.equal(one.ids, two.ids)
    other = NOISES[name](tokens, generator=gen(4))
    assert unpad(one) != unpad(other)


@pytest.mark.parametrize("name", NOISES)
def test_noises_do_not_see_what_stands_at_padding(name: str) -> None:
    tokens = texts(13, 7, 2)
    other = Tokens(tokens.ids.masked_fill(~tokens.real, 15), tokens.real)
    one, two = (unpad(NOISES[name](t, generator=gen(3))) for t in (tokens, other))
    assert one == two


def test_composition_is_one_after_the_other() -> None:
    tokens = texts(13, 7)
    both = compose(NOISES["sentences"], NOISES["infilling"])(tokens, generator=gen())
    g = gen()
    again = NOISES["infilling"](NOISES["sentences"](tokens, generator=g), generator=g)
    assert unpad(both) == unpad(again)


# --- T5 --------------------------------------------------------------------------------------


def published_counts(n: int, ratio: float, mean: float) -> tuple[int, int]:
    """The definition in float32; NumPy's round takes halves to the even number, too."""
    noise = min(max(int(np.round(np.float32(n) * np.float32(ratio))), 1), n - 1)
    return noise, max(int(np.round(np.float32(noise) / np.float32(mean))), 1)


def test_counts_are_those_of_the_published_code() -> None:
    for n in range(2, 600):
        assert span_counts(n) == published_counts(n, 0.15, 3.0)
    assert span_counts(512) == (77, 26)
    # 190 * 0.15 is 28.5 in float64, which rounds to the even 28, and a bit more in float32.
    assert span_counts(190) == (29, 10)
    assert round(190 * 0.15) == 28
    assert (span_counts(0), span_counts(1)) == ((0, 0), (0, 0))
    # More spans than there is text between them do not fit; here the published code would fail.
    assert published_counts(10, 0.8, 1.0) == (8, 8)
    assert span_counts(10, ratio=0.8, mean=1.0) == (8, 2)


def marks(mask: Tensor) -> list[tuple[bool, int]]:
    """Runs of equal marks."""
    runs: list[list[int]] = []
    for value in mask.tolist():
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return [(bool(value), length) for value, length in runs]


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths,
    ratio=st.floats(0.01, 0.99),
    mean=st.floats(1, 9) | st.just(math.inf),
    seed=st.integers(0, 10**6),
)
def test_spans_alternate_text_first_and_have_the_counts(
    lengths: list[int], ratio: float, mean: float, seed: int
) -> None:
    tokens = texts(*lengths)
    spans = random_spans(tokens.real, ratio=ratio, mean=mean, generator=gen(seed))
    assert not bool((spans & ~tokens.real).any())
    for mask, n in zip(spans, lengths, strict=True):
        noise, count = span_counts(n, ratio=ratio, mean=mean)
        assert int(mask.sum()) == noise
        runs = marks(mask[:n])
        assert sum(value for value, _ in runs) == count
        if n >= 2:
            assert not runs[0][0]
            assert runs[-1][0]


def test_all_masks_of_t5_are_equally_likely() -> None:
    # 12 tokens, 4 of noise in 2 spans: 3 ways to cut the noise, 7 to cut the text.
    real = torch.ones(42000, 12, dtype=torch.bool)
    assert span_counts(12, ratio=1 / 3, mean=2.0) == (4, 2)
    spans = random_spans(real, ratio=1 / 3, mean=2.0, generator=gen())
    close(Counter(tuple(row.int().tolist()) for row in spans), 21, 42000)


def restore(source: list[int], target: list[int], lowest: int) -> list[int]:
    """Put the spans of a target back into its source."""
    parts: dict[int, list[int]] = {}
    for token in target:
        if token >= lowest:
            parts[token] = current = []
        else:
            current.append(token)
    return [i for token in source for i in (parts[token] if token >= lowest else [token])]


@settings(max_examples=60, deadline=None)
@given(lengths=lengths, seed=st.integers(0, 10**6), p=st.floats(0, 1))
def test_source_and_target_together_are_the_text(lengths: list[int], seed: int, p: float) -> None:
    tokens = texts(*lengths)
    spans = (torch.rand(tokens.ids.shape, generator=gen(seed)) < p) & tokens.real
    pair = split_spans(tokens, spans, sentinel=99)
    for row, source, target in zip(unpad(tokens), *map(unpad, pair), strict=True):
        assert restore(source, target, 70) == row
        signs = [i for i in target if i >= 70]
        assert signs == [i for i in source if i >= 70] == [99 - k for k in range(len(signs))]


def test_lengths_of_source_and_target_are_exact() -> None:
    sizes = (2, 3, 7, 20, 101, 512)
    pair = span_corruption(texts(*sizes), sentinel=9999, end=1, generator=gen())
    for n, source, target in zip(sizes, *map(unpad, pair), strict=True):
        noise, spans = span_counts(n)
        assert len(source) == n - noise + spans + 1
        assert len(target) == noise + spans + 1
        assert source[-1] == target[-1] == 1


def test_sentinels_that_run_out_are_refused_by_every_function_that_makes_them() -> None:
    # 1,024 tokens at half and 3 make 171 spans; T5 has the 100 ids from 32,099 down to 32,000.
    long = texts(1024)
    spans = random_spans(long.real, ratio=0.5, mean=3.0, generator=gen())
    half = Denoiser(mode="X", ratio=0.5, mean=3.0)
    makers: list[Callable[..., object]] = [
        lambda **k: split_spans(long, spans, **k),
        lambda **k: span_corruption(long, ratio=0.5, mean=3.0, generator=gen(), **k),
        lambda **k: mixture_of_denoisers(long, denoisers=[half], generator=gen(), **k),
    ]
    for make in makers:
        with pytest.raises(ValueError, match=r"needs 171 sentinels, and from id 32099 down .* 100"):
            make(sentinel=32099)
        # More are there where the caller says so, but none has an id below 0.
        make(sentinel=32099, sentinels=171)
        make(sentinel=170, sentinels=200)
        with pytest.raises(ValueError, match=r"needs 171 sentinels, and from id 169 down .* 170"):
            make(sentinel=169, sentinels=200)
    with pytest.raises(ValueError, match="needs 33 sentinels, and from id 20 down there are 21"):
        span_corruption(texts(200), sentinel=20, ratio=0.5, mean=3.0, generator=gen())
    # The closing sentinel counts.
    two = torch.tensor([[True, False, True]])
    assert split_spans(texts(3), two, sentinel=2, closing=True).target.ids.min() == 0
    with pytest.raises(ValueError, match="needs 3 sentinels"):
        split_spans(texts(3), two, sentinel=1, closing=True)


def test_the_figure_of_the_paper() -> None:
    # Thank you for inviting me to your party last week .
    text = pad_rows([list(range(10, 21))])
    spans = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0]]).bool()
    pair = split_spans(text, spans, sentinel=99, closing=True, end=1)
    assert unpad(pair.source) == [[10, 11, 99, 14, 15, 16, 17, 98, 19, 20, 1]]
    assert unpad(pair.target) == [[99, 12, 13, 98, 18, 97, 1]]


def test_the_mixture_draws_each_row_by_its_denoiser() -> None:
    tokens = texts(*[40] * 7000)
    pair, drawn = mixture_of_denoisers(
        tokens, sentinel=999, modes={"R": 2, "S": 3, "X": 4}, end=1, generator=gen()
    )
    close(Counter((int(i),) for i in drawn), len(UL2), 7000)
    ids = {"R": 2, "S": 3, "X": 4}
    for row, (source, target) in enumerate(zip(*map(unpad, pair), strict=True)):
        chosen = UL2[int(drawn[row])]
        noise, spans = span_counts(40, ratio=chosen.ratio, mean=chosen.mean)
        assert source[0] == ids[chosen.mode]
        assert len(source) == 1 + 40 - noise + spans + 1
        assert len(target) == noise + spans + 1
        if chosen.mode == "S":  # the end of the text, in one span
            assert target == [999, *range(40, 50), 1]


def test_weights_of_the_mixture() -> None:
    pair, drawn = mixture_of_denoisers(
        texts(*[20] * 9), sentinel=99, weights=[0, 0, 2, 0, 0, 0, 0], generator=gen()
    )
    assert drawn.tolist() == [2] * 9
    assert isinstance(pair, Pair)


# --- rows ------------------------------------------------------------------------------------


def test_rows_round_trip_and_trim() -> None:
    rows = [[3, 4, 5], [], [6]]
    tokens = pad_rows(rows, pad=9)
    assert unpad(tokens) == rows
    wide = Tokens(
        torch.nn.functional.pad(tokens.ids, (0, 4)), torch.nn.functional.pad(tokens.real, (0, 4))
    )
    assert torch.equal(trim(wide).ids, tokens.ids)


def test_decoder_reads_the_target_one_later() -> None:
    target = pad_rows([[5, 6, 7], [8]], pad=1)
    assert shift_right(target, start=2).tolist() == [[2, 5, 6], [2, 8, 1]]
    assert target_labels(target).tolist() == [[5, 6, 7], [8, -100, -100]]
    each = enclose(target, start=torch.tensor([2, 3]), end=torch.tensor([4, 9]))
    assert unpad(each) == [[2, 5, 6, 7, 4], [3, 8, 9]]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_narrow_ids_are_taken_and_kept(dtype: torch.dtype) -> None:
    tokens = texts(13, 7)
    narrow = Tokens(tokens.ids.to(dtype), tokens.real)
    for noise in NOISES.values():
        one, two = noise(tokens, generator=gen()), noise(narrow, generator=gen())
        assert two.ids.dtype == dtype
        assert unpad(one) == unpad(two)
    assert unpad(span_corruption(narrow, sentinel=99, end=1, generator=gen()).source) == unpad(
        span_corruption(tokens, sentinel=99, end=1, generator=gen()).source
    )


@pytest.mark.parametrize("name", NOISES)
def test_noises_run_on_meta(name: str) -> None:
    tokens = Tokens(*(part.to("meta") for part in texts(13, 7)))
    out = NOISES[name](tokens, generator=gen())
    assert out.ids.device.type == out.real.device.type == "meta"
    assert out.ids.shape == out.real.shape


def test_spans_run_on_meta() -> None:
    tokens = Tokens(*(part.to("meta") for part in texts(13, 7)))
    pair = span_corruption(tokens, sentinel=99, end=1, closing=True, generator=gen())
    assert {part.device.type for side in pair for part in side} == {"meta"}
    pair, drawn = mixture_of_denoisers(
        tokens, sentinel=99, modes={"R": 2, "S": 3, "X": 4}, generator=gen()
    )
    assert pair.source.ids.device.type == drawn.device.type == "meta"


@pytest.mark.parametrize("name", NOISES)
def test_noises_follow_the_device(name: str, device: torch.device) -> None:
    tokens = texts(13, 7, 2)
    there = Tokens(*(part.to(device) for part in tokens))
    one, two = (NOISES[name](t, generator=gen(3)) for t in (tokens, there))
    assert two.ids.device.type == device.type
    assert unpad(one) == unpad(two)


@pytest.mark.usefixtures("own_checks")
def test_errors_name_what_is_wrong() -> None:
    tokens = texts(5, 3)
    left = Tokens(tokens.ids.flip(1), tokens.real.flip(1))
    g = gen()
    with pytest.raises(ValueError, match="padded on the right"):
        document_rotation(left, generator=g)
    with pytest.raises(ValueError, match="ratio must lie in"):
        token_deletion(tokens, ratio=1.5, generator=g)
    with pytest.raises(ValueError, match="rate must lie in"):
        text_infilling(tokens, mask_id=MASK, rate=0.0, generator=g)
    with pytest.raises(ValueError, match="stops must hold"):
        sentence_permutation(tokens, stops=[], generator=g)
    with pytest.raises(ValueError, match="ratio must lie in \\(0, 1\\)"):
        random_spans(tokens.real, ratio=1.0, generator=g)
    with pytest.raises(ValueError, match="mean must be 1 or more"):
        random_spans(tokens.real, mean=0.5, generator=g)
    with pytest.raises(ValueError, match="ratio must have shape"):
        random_spans(tokens.real, ratio=torch.tensor([0.1, 0.2, 0.3]), generator=g)
    with pytest.raises(ValueError, match="real must be Bool"):
        random_spans(tokens.ids, generator=g)  # type: ignore[arg-type]
    spans = torch.tensor([[1, 0, 1, 0, 1], [0, 0, 1, 0, 0]]).bool()
    with pytest.raises(
        ValueError, match="a row needs 3 sentinels, and from id 99 down there are 2"
    ):
        split_spans(tokens, spans, sentinel=99, sentinels=2)
    with pytest.raises(ValueError, match="real tokens only"):
        split_spans(tokens, torch.ones(2, 5, dtype=torch.bool), sentinel=99)
    with pytest.raises(ValueError, match="at least one text"):
        pad_rows([])
    with pytest.raises(ValueError, match="weights must be 7 numbers"):
        mixture_of_denoisers(tokens, sentinel=99, weights=[1.0], generator=g)
    with pytest.raises(ValueError, match="'X' has none"):
        mixture_of_denoisers(tokens, sentinel=99, modes={"R": 1, "S": 2}, generator=g)
    with pytest.raises(ValueError, match="denoisers must hold"):
        mixture_of_denoisers(tokens, sentinel=99, denoisers=[], generator=g)
    with pytest.raises(ValueError, match="mean must lie in"):
        Denoiser(mode="R", ratio=0.1, mean=0.5)
    with pytest.raises(ValueError, match="real must be Bool"):
        document_rotation(Tokens(tokens.ids, tokens.ids), generator=g)
    with pytest.raises(ValueError, match="ids must hold integers"):
        document_rotation(Tokens(tokens.ids.double(), tokens.real), generator=g)
    with pytest.raises(ValueError, match="one id for each row"):
        enclose(tokens, start=torch.tensor([1, 2, 3]))
