"""Packed tokens: every token a target once an epoch, in an order that processes share."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion.core import generator, randint
from companion.pretraining.autoregressive import PackedTokens, document_places
from companion.transformer.attention import documents


def take(data, count):
    return list(itertools.islice(iter(data), count))


@given(
    spare=st.integers(0, 4),
    blocks=st.integers(1, 13),
    context=st.integers(1, 7),
    batch=st.integers(1, 5),
    seed=st.integers(0, 2**40),
)
def test_every_block_comes_once_an_epoch(spare, blocks, context, batch, seed):
    ids = torch.arange(1 + blocks * context + min(spare, context - 1))
    data = PackedTokens(ids, context=context, batch=batch, seed=seed)
    assert data.blocks == blocks
    # As many batches as blocks are exactly `batch` epochs.
    rows = torch.cat(take(data, blocks))
    assert rows.shape == (blocks * batch, context + 1)
    assert bool((rows.diff(dim=1) == 1).all())
    assert rows.dtype == torch.int64
    for epoch in rows[:, 0].split(blocks):
        assert sorted(epoch.tolist()) == list(range(0, blocks * context, context))
    assert data.epoch == batch


@given(
    world=st.sampled_from([2, 3]),
    batch=st.integers(1, 3),
    accumulate=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_processes_together_read_what_one_reads(world, batch, accumulate, seed):
    ids = randint(0, 97, (1 + 5 * 11,), generator=generator(seed))
    one = PackedTokens(ids, context=5, batch=world * batch * accumulate, seed=seed)
    several = [
        PackedTokens(ids, context=5, batch=batch, seed=seed, rank=rank, world=world)
        for rank in range(world)
    ]
    parts = [iter(data) for data in several]
    for whole in take(one, 7):
        pieces = [next(part) for _ in range(accumulate) for part in parts]
        assert torch.equal(torch.cat(pieces), whole)
    for data in several:
        assert data.state_dict()["position"] == one.state_dict()["position"]


@given(first=st.integers(0, 9), seed=st.integers(0, 99))
def test_a_loaded_position_is_read_on_from(first, seed):
    def make():
        return PackedTokens(torch.arange(1 + 3 * 7), context=3, batch=2, seed=seed)

    data, straight = make(), make()
    batches = take(straight, first + 5)
    take(data, first)
    resumed = make()
    resumed.load_state_dict(data.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(take(resumed, 5), batches[first:], strict=True))


def test_orders_differ_between_epochs_and_between_seeds():
    def order(seed):
        data = PackedTokens(torch.arange(1 + 31), context=1, batch=31, seed=seed)
        return [tuple(batch[:, 0].tolist()) for batch in take(data, 2)]

    made = [*order(0), *order(1), *order(2**31)]
    assert len(set(made)) == len(made)
    assert order(1) == order(1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.int64])
def test_ids_of_every_width_and_mapped_from_a_file(tmp_path, dtype):
    ids = randint(0, 251, (1 + 4 * 9,), generator=generator(0))
    expected = take(PackedTokens(ids, context=4, batch=3), 5)
    path = tmp_path / "ids.bin"
    path.write_bytes(ids.to(dtype).numpy().tobytes())
    mapped = torch.from_file(str(path), shared=False, size=len(ids), dtype=dtype)
    got = take(PackedTokens(mapped, context=4, batch=3), 5)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_batches_are_put_on_the_device(device):
    (batch,) = take(PackedTokens(torch.arange(11), context=5, batch=2, device=device), 1)
    assert batch.device.type == device.type


def test_other_data_are_refused():
    ids = torch.arange(1 + 4 * 9)
    state = PackedTokens(ids, context=4, batch=3).state_dict()
    changed = ids.clone()
    changed[17] = 5
    for data, message in (
        (PackedTokens(ids[:-1], context=4, batch=3), "tokens 36 here, 37 there"),
        (PackedTokens(ids, context=3, batch=3), "context 3 here, 4 there"),
        (PackedTokens(ids, context=4, batch=5), "blocks of a step 5 here, 3 there"),
        (PackedTokens(ids, context=4, batch=3, seed=1), "seed 1 here, 0 there"),
        (PackedTokens(changed, context=4, batch=3), "checksum"),
    ):
        with pytest.raises(ValueError, match=message):
            data.load_state_dict(state)
    with pytest.raises(ValueError, match="state of the data has no 'seed'"):
        PackedTokens(ids, context=4, batch=3).load_state_dict({"position": 0, "tokens": 37,
            "context": 4, "blocks_of_a_step": 3})  # fmt: skip


@pytest.mark.parametrize("place", range(1 + 4 * 9))
def test_one_other_token_anywhere_in_a_short_row_is_noticed(place):
    ids = torch.arange(3, 3 + 1 + 4 * 9)
    state = PackedTokens(ids, context=4, batch=3).state_dict()
    changed = ids.index_fill(0, torch.tensor([place]), 2)
    with pytest.raises(ValueError, match="checksum"):
        PackedTokens(changed, context=4, batch=3).load_state_dict(state)


def test_the_checksum_reads_a_long_row_from_its_first_token_to_its_last():
    # 1,024 tokens at equal steps; a row of 1 + 5 * 1023 has a token at each.
    ids = torch.zeros(1 + 5 * 1023, dtype=torch.int64)
    state = PackedTokens(ids, context=4, batch=3).state_dict()
    assert state["checksum"] == 0
    for number, place in ((1, 0), (2, 5), (1024, 5 * 1023)):
        changed = ids.index_fill(0, torch.tensor([place]), 7)
        assert PackedTokens(changed, context=4, batch=3).state_dict()["checksum"] == 7 * number


def test_bad_arguments_are_refused():
    ids = torch.arange(7)
    with pytest.raises(ValueError, match="7 tokens do not fill one block of context"):
        PackedTokens(ids, context=7, batch=1)
    # Under the hook that checks annotations, those speak first.
    with pytest.raises((ValueError, TypeError), match=r"must hold integers, got|Type-check error"):
        PackedTokens(ids.float(), context=2, batch=1)
    with pytest.raises((ValueError, TypeError), match=r"ids must have shape|Type-check error"):
        PackedTokens(ids[None], context=2, batch=1)
    with pytest.raises(ValueError, match="rank must be from 0 to 1, got 2"):
        PackedTokens(ids, context=2, batch=1, rank=2, world=2)
    with pytest.raises(ValueError, match="batch must be 1 or more, got 0"):
        PackedTokens(ids, context=2, batch=0)


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=3))
def test_documents_are_numbered_as_a_loop_numbers_them(rows):
    ids = torch.tensor(rows)
    before = ids.clone()
    numbers, places = document_places(ids, end=0)
    for row, (numbered, placed) in enumerate(zip(numbers.tolist(), places.tolist(), strict=True)):
        document = place = 0
        for token, number, at in zip(rows[row], numbered, placed, strict=True):
            assert (number, at) == (document, place)
            document, place = (document + 1, 0) if token == 0 else (document, place + 1)
    assert torch.equal(ids, before)


def test_numbered_documents_do_not_read_each_other():
    numbers, _ = document_places(torch.tensor([[5, 0, 7, 2]]), end=0)
    assert documents(numbers).dense(4, 4)[0, 0].tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, True, True],
        [False, False, True, True],
    ]


def test_documents_on_meta():
    ids = torch.zeros(3, 5, dtype=torch.int32, device="meta")
    numbers, places = document_places(ids, end=0)
    assert numbers.shape == places.shape == (3, 5)
