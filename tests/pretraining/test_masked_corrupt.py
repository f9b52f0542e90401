"""Hiding tokens: which positions, what is put there, and what is left alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.core import generator
from companion.foundations.cross_entropy import IGNORE
from companion.pretraining.masked import (
    Corrupted,
    corrupt,
    span_corrupt,
    span_lengths,
    whole_word_corrupt,
    word_numbers,
)

VOCAB, MASK = 101, 3
PAD, CLS, SEP = 0, 1, 2
OPTIONS: dict[str, Any] = {"vocab": VOCAB, "mask_id": MASK}


def text(batch: int, n: int, seed: int = 0) -> Tensor:
    return torch.randint(4, VOCAB, (batch, n), generator=generator(seed))


def by_word(ids: Tensor, **options: Any) -> Corrupted:
    words = torch.arange(ids.shape[1], device=ids.device).div(3, rounding_mode="floor")
    return whole_word_corrupt(ids, words.expand(ids.shape), **options)


WAYS = [corrupt, by_word, span_corrupt]


def within(share: float, expected: float, count: int, *, sigmas: float = 5.0) -> bool:
    """Whether a share of independent trials lies within five standard deviations."""
    return abs(share - expected) <= sigmas * (expected * (1 - expected) / count) ** 0.5


@pytest.mark.parametrize("way", WAYS)
def test_only_chosen_positions_change_and_only_they_have_targets(
    way: Callable[..., Corrupted], g: torch.Generator
) -> None:
    ids = text(37, 41)
    before = ids.clone()
    read, targets, chosen = way(ids, **OPTIONS, ratio=0.3, generator=g)
    assert torch.equal(ids, before)
    assert torch.equal(read[~chosen], ids[~chosen])
    assert torch.equal(targets[chosen], ids[chosen])
    assert bool((targets[~chosen] == IGNORE).all())
    assert bool((read[chosen] == MASK).any())
    assert bool((read[chosen] == ids[chosen]).any())


@pytest.mark.parametrize("way", WAYS)
def test_special_tokens_are_never_chosen(way: Callable[..., Corrupted], g: torch.Generator) -> None:
    ids = text(37, 41)
    ids[:, 0], ids[:, 20], ids[:, 35:] = CLS, SEP, PAD
    made = way(ids, **OPTIONS, special=(PAD, CLS, SEP), ratio=0.9, generator=g)
    special = (ids == PAD) | (ids == CLS) | (ids == SEP)
    assert not bool(made.chosen[special].any())
    assert torch.equal(made.ids[special], ids[special])
    # the rule itself would choose them
    assert bool(way(ids, **OPTIONS, ratio=0.9, generator=g).chosen[special].any())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_every_position_is_chosen_at_the_rate(
    way: Callable[..., Corrupted], rate: float, g: torch.Generator
) -> None:
    # Rows are independent, so the share in a column is binomial: also in the first and the last.
    chosen = way(text(20011, 23), **OPTIONS, ratio=rate, generator=g).chosen
    for share in chosen.double().mean(0).tolist():
        assert within(share, rate, 20011)


def test_what_is_put_in_has_the_shares_of_the_collator_of_transformers(
    tmp_path: Any, g: torch.Generator
) -> None:
    from tokenizers import Tokenizer, models

    words = {f"w{i}": i for i in range(VOCAB)}
    words = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3} | {
        w: i for w, i in words.items() if i > 3
    }
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w4")),
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    collator = transformers.DataCollatorForLanguageModeling(
        tokenizer, mlm=True, mlm_probability=0.15, seed=7
    )
    ids = text(997, 211)
    ids[:, 0] = CLS
    theirs = collator([{"input_ids": row.tolist()} for row in ids])
    ours = corrupt(ids, **OPTIONS, special=(PAD, CLS, SEP), generator=g)
    for read, targets in (ours[:2], (theirs["input_ids"], theirs["labels"])):
        chosen = targets != IGNORE
        assert not bool(chosen[:, 0].any())
        assert within(float(chosen[:, 1:].double().mean()), 0.15, chosen[:, 1:].numel())
        count = int(chosen.sum())
        masked = float((read[chosen] == MASK).double().mean())
        kept = float((read[chosen] == ids[chosen]).double().mean())
        # A random token is [MASK] or the true one with probability 1 / VOCAB each.
        assert within(masked, 0.8 + 0.1 / VOCAB, count)
        assert within(kept, 0.1 + 0.1 / VOCAB, count)
        others = read[chosen][(read[chosen] != MASK) & (read[chosen] != ids[chosen])]
        # Uniform over the vocabulary: the mean id of a uniform draw, five standard errors.
        error = 5 * VOCAB / 12**0.5 / len(others) ** 0.5
        assert abs(float(others.double().mean()) - (VOCAB - 1) / 2) < error + 0.5


@pytest.mark.parametrize("split", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_each_part_of_the_split_alone(
    split: tuple[float, float, float], g: torch.Generator
) -> None:
    ids = text(101, 97)
    read, targets, chosen = corrupt(ids, **OPTIONS, ratio=0.5, split=split, generator=g)
    if split[0]:
        assert bool((read[chosen] == MASK).all())
    elif split[1]:
        assert within(float((read[chosen] == ids[chosen]).double().mean()), 1 / VOCAB, 4898)
        assert len(read[chosen].unique()) == VOCAB
    else:
        assert torch.equal(read, ids)
        assert bool((targets != IGNORE).any())


def test_a_rate_for_each_text(g: torch.Generator) -> None:
    rate = torch.tensor([0.0, 1.0, 0.5])
    chosen = corrupt(text(3, 4001), **OPTIONS, ratio=rate, generator=g).chosen.double().mean(1)
    assert chosen[:2].tolist() == [0, 1]
    assert within(float(chosen[2]), 0.5, 4001)


def test_the_seed_decides_between_static_and_dynamic_masks() -> None:
    ids = text(5, 71)
    first, again = (corrupt(ids, **OPTIONS, generator=generator(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    source = generator(3)
    one, two = (corrupt(ids, **OPTIONS, generator=source).chosen for _ in range(2))
    assert not torch.equal(one, two)


def test_a_word_is_chosen_whole_or_not_at_all(g: torch.Generator) -> None:
    starts = torch.rand(VOCAB, generator=g) < 0.4
    ids = text(53, 47)
    words = word_numbers(ids, starts)
    made = whole_word_corrupt(ids, words, **OPTIONS, ratio=0.4, generator=g)
    for row, number in zip(made.chosen, words, strict=True):
        shares = torch.zeros(48).index_add(0, number, row.float())
        sizes = torch.bincount(number, minlength=48)
        assert bool(((shares == 0) | (shares == sizes)).all())
    # ... but the tokens of a word are replaced one by one
    assert bool((made.ids[made.chosen] != MASK).any())


def test_words_are_numbered_from_their_first_tokens() -> None:
    starts = torch.tensor([False, True, False, False, True])
    numbers = word_numbers(torch.tensor([[0, 2, 1, 3, 2, 4, 1], [1, 0, 0, 0, 0, 0, 4]]), starts)
    assert numbers.tolist() == [[0, 0, 0, 0, 0, 1, 2], [0, 0, 0, 0, 0, 0, 1]]


def test_span_lengths_are_a_normalized_geometric_law() -> None:
    lengths = span_lengths(stop=0.2, longest=10)
    # The mean that SpanBERT states.
    assert round(float(lengths @ torch.arange(1.0, 11.0).double()), 1) == 3.8
    torch.testing.assert_close(lengths[1:] / lengths[:-1], torch.full((9,), 0.8).double())
    assert abs(float(lengths.sum()) - 1) < 1e-14
    assert span_lengths(stop=1.0, longest=3).tolist() == [1.0, 0.0, 0.0]


def test_runs_have_the_lengths_of_spans_where_spans_are_rare(g: torch.Generator) -> None:
    # At a rate of 1% two spans rarely meet: about one run in fifty is a union.
    chosen = span_corrupt(text(2003, 503), **OPTIONS, ratio=0.01, generator=g).chosen
    inner = torch.nn.functional.pad(chosen, (1, 1)).int().diff(dim=1)
    lengths = inner.eq(-1).nonzero()[:, 1] - inner.eq(1).nonzero()[:, 1]
    expected = float(span_lengths() @ torch.arange(1.0, 11.0).double())
    assert abs(float(lengths.double().mean()) / expected - 1) < 0.05
    # single tokens would give runs of length 1
    single = corrupt(text(2003, 503), **OPTIONS, ratio=0.01, generator=g).chosen
    inner = torch.nn.functional.pad(single, (1, 1)).int().diff(dim=1)
    assert float((inner.eq(-1).nonzero()[:, 1] - inner.eq(1).nonzero()[:, 1]).double().mean()) < 1.1


def test_all_tokens_of_a_run_are_replaced_alike(g: torch.Generator) -> None:
    ids = text(211, 97)
    made = span_corrupt(ids, **OPTIONS, ratio=0.2, split=(0.5, 0.0, 0.5), generator=g)
    both = made.chosen[:, 1:] & made.chosen[:, :-1]
    masked = made.ids == MASK
    assert torch.equal(masked[:, 1:][both], masked[:, :-1][both])
    assert bool(masked[made.chosen].any())
    assert not bool(masked[made.chosen].all())


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 3),
    n=st.integers(1, 17),
    rate=st.floats(0.0, 0.99),
    way=st.sampled_from(WAYS),
    dtype=st.sampled_from([torch.int64, torch.int32, torch.int16, torch.uint8]),
    seed=st.integers(0, 99),
)
def test_any_text_of_any_integer_type_is_corrupted(
    batch: int,
    n: int,
    rate: float,
    way: Callable[..., Corrupted],
    dtype: torch.dtype,
    seed: int,
) -> None:
    ids = text(batch, n, seed).to(dtype)
    read, targets, chosen = way(ids, **OPTIONS, ratio=rate, generator=generator(seed))
    assert (read.dtype, targets.dtype) == (dtype, torch.int64)
    assert read.shape == targets.shape == chosen.shape == ids.shape
    restored = torch.where(chosen, targets, read.long())
    assert torch.equal(restored, ids.long())
    assert rate > 0 or not bool(chosen.any())


@pytest.mark.parametrize("way", WAYS)
def test_corruption_runs_on_every_device(
    way: Callable[..., Corrupted], device: torch.device
) -> None:
    options = {**OPTIONS, "special": (CLS,), "ratio": 0.3}
    on_cpu = way(text(3, 19), **options, generator=generator(1))
    moved = way(text(3, 19).to(device), **options, generator=generator(1))
    assert all(torch.equal(a, b.cpu()) for a, b in zip(on_cpu, moved, strict=True))
    nowhere = way(text(3, 19).to("meta"), **options, generator=generator(1))
    assert all(part.is_meta and part.shape == (3, 19) for part in nowhere)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": 1.5}, r"ratio must lie in \[0.0, 1.0\], got 1.5"),
        ({"ratio": torch.ones(4)}, r"ratio must have shape \(2,\), got \(4,\)"),
        ({"ratio": torch.tensor([0.5, 1.5])}, r"ratio must lie in \[0.0, 1.0\] for each text, got"),
        (
            {"ratio": torch.tensor([0.5, torch.nan])},
            r"ratio must lie in \[0.0, 1.0\] for each text",
        ),
        ({"split": (0.8, 0.2)}, "split must be three probabilities that sum to 1"),
        ({"split": (0.8, 0.1, float("nan"))}, "split must be three probabilities that sum to 1"),
        ({"split": (0.8, 0.1, 0.2)}, "split must be three probabilities that sum to 1"),
        ({"split": (1.2, -0.2, 0.0)}, "split must be three probabilities that sum to 1"),
        ({"mask_id": VOCAB}, "mask_id must be from 0 to 100, got 101"),
        ({"special": (7, -1)}, "special must be from 0 to 100, got -1"),
        ({"vocab": 50}, r"ids must lie in \[0, 50\)"),
    ],
)
@pytest.mark.usefixtures("own_checks")
def test_what_does_not_fit_is_named(
    change: dict[str, Any], message: str, g: torch.Generator
) -> None:
    ids = torch.full((2, 5), 77)
    with pytest.raises(ValueError, match=message):
        corrupt(ids, **OPTIONS | change, generator=g)


@pytest.mark.usefixtures("own_checks")
def test_what_does_not_fit_words_and_spans_is_named(g: torch.Generator) -> None:
    ids = text(2, 5)
    with pytest.raises(ValueError, match=r"words must have shape \(2, 5\), got \(2, 4\)"):
        whole_word_corrupt(ids, torch.zeros(2, 4).long(), **OPTIONS, generator=g)
    with pytest.raises(ValueError, match=r"words must lie in \[0, 5\), got 5"):
        whole_word_corrupt(ids, torch.full((2, 5), 5), **OPTIONS, generator=g)
    with pytest.raises(ValueError, match=r"ratio must lie in \[0.0, 1.0\), got 1.0"):
        span_corrupt(ids, **OPTIONS, ratio=1.0, generator=g)
    with pytest.raises(ValueError, match=r"stop must lie in \(0.0, 1.0\], got 0.0"):
        span_lengths(stop=0.0)
    with pytest.raises(ValueError, match="longest must be 1 or more, got 0"):
        span_corrupt(ids, **OPTIONS, longest=0, generator=g)
