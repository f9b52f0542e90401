"""Masks: rules, their algebra, and the three forms that follow from them."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.transformer.attention import (
    Mask,
    attention,
    causal,
    documents,
    everything,
    padding,
    prefix,
    sliding_window,
    streaming_mask,
)

B, H, N, M = 2, 3, 5, 7
REAL = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 1, 1]], dtype=torch.bool)
LENGTHS = torch.tensor([2, 4])
IDS = torch.tensor([[0, 0, 1, 1, 1], [4, 4, 4, -1, 4]])

# Each mask with its rule in plain Python, written independently of the tensors.
CASES: dict[str, tuple[Mask, Callable[[int, int, int, int], bool]]] = {
    "everything": (everything(), lambda b, h, i, j: True),
    "causal": (causal(), lambda b, h, i, j: j in range(i + 1)),
    "causal, two keys before": (causal(offset=2), lambda b, h, i, j: j in range(i + 3)),
    "causal, two queries too many": (causal(offset=-2), lambda b, h, i, j: j in range(i - 1)),
    "window": (sliding_window(3), lambda b, h, i, j: j in (i - 2, i - 1, i)),
    "window with cache": (
        sliding_window(2, offset=2),
        lambda b, h, i, j: j in (i + 1, i + 2),
    ),
    "prefix": (prefix(3), lambda b, h, i, j: j in (0, 1, 2) or j <= i),
    "prefix with cache": (prefix(3, offset=2), lambda b, h, i, j: j in (0, 1, 2) or j <= i + 2),
    "prefixes": (prefix(LENGTHS), lambda b, h, i, j: j < (2, 4)[b] or j <= i),
    "padding": (padding(REAL), lambda b, h, i, j: bool(REAL[b, j])),
    "by head": (
        Mask(lambda b, h, i, j: (i + j) % (h + 2) == 0),
        lambda b, h, i, j: (i + j) % (h + 2) == 0,
    ),
}
CASES |= {
    "causal & padding": (
        causal() & padding(REAL),
        lambda b, h, i, j: j <= i and bool(REAL[b, j]),
    ),
    "window | padding": (
        sliding_window(2) | padding(REAL),
        lambda b, h, i, j: i - 1 <= j <= i or bool(REAL[b, j]),
    ),
    "~window": (~sliding_window(2), lambda b, h, i, j: not i - 1 <= j <= i),
    "~causal": (~causal(), lambda b, h, i, j: j > i),
    "~(causal & padding)": (
        ~(causal() & padding(REAL)),
        lambda b, h, i, j: not (j <= i and bool(REAL[b, j])),
    ),
}


def table(rule: Callable[[int, int, int, int], bool]) -> Tensor:
    return torch.tensor(
        [
            [[[rule(b, h, i, j) for j in range(M)] for i in range(N)] for h in range(H)]
            for b in range(B)
        ]
    )


@pytest.mark.parametrize("name", CASES)
def test_dense_is_the_rule_at_every_index(name: str) -> None:
    mask, rule = CASES[name]
    made = mask.dense(N, M, batch=B, heads=H)
    assert made.dtype == torch.bool
    assert torch.equal(made.expand(B, H, N, M), table(rule))


def test_documents_read_only_themselves() -> None:
    made = documents(IDS).dense(N, N)
    for b in range(2):
        for i in range(N):
            for j in range(N):
                assert bool(made[b, 0, i, j]) == (int(IDS[b, i]) == int(IDS[b, j]))


def test_axes_on_which_a_rule_does_not_depend_have_size_one() -> None:
    assert causal().dense(N, M, batch=B, heads=H).shape == (1, 1, N, M)
    assert padding(REAL).dense(N, M, heads=H).shape == (B, 1, 1, M)
    assert (causal() & padding(REAL)).dense(N, M).shape == (B, 1, N, M)
    assert CASES["by head"][0].dense(N, M, batch=B, heads=H).shape == (1, H, N, M)


def test_a_mask_of_a_batch_knows_its_size() -> None:
    assert padding(REAL).dense(N, M).shape[0] == B
    assert (causal() & prefix(LENGTHS)).dense(N, M).shape[0] == B


@pytest.mark.parametrize("name", CASES)
def test_block_masks_say_the_same(name: str) -> None:
    mask, rule = CASES[name]
    blocks = mask.block_mask(N, M, device="cpu", batch=B, heads=H, block=2)
    expected = table(rule)
    # to_dense tells which blocks are visited: those with an allowed pair.
    tall = torch.zeros(B, H, 6, 8, dtype=torch.bool)
    tall[:, :, :N, :M] = expected
    visited = tall.reshape(B, H, 3, 2, 4, 2).any(-1).any(3)
    assert torch.equal(blocks.to_dense().bool(), visited)
    i, j = torch.arange(N)[:, None], torch.arange(M)
    for b in range(B):
        for h in range(H):
            made = blocks.mask_mod(torch.tensor(b), torch.tensor(h), i, j)
            assert torch.equal(made.expand(N, M), expected[b, h])


def test_a_block_mask_takes_its_batch_from_the_mask() -> None:
    assert padding(REAL).block_mask(N, M, device="cpu").shape[:2] == (B, 1)
    assert causal().block_mask(N, M, device="cpu").shape[:2] == (1, 1)


ATOMS = st.one_of(
    st.builds(lambda o: (causal(offset=o), lambda i, j: j <= i + o), st.integers(-4, 6)),
    st.builds(
        lambda w, o: (sliding_window(w, offset=o), lambda i, j: 0 <= i + o - j < w),
        st.integers(1, 5),
        st.integers(-4, 6),
    ),
    st.builds(
        lambda p, o: (prefix(p, offset=o), lambda i, j: j < p or j <= i + o),
        st.integers(0, 6),
        st.integers(-4, 6),
    ),
    st.just((everything(), lambda i, j: True)),
)


def _compose(children: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(
        st.builds(
            lambda a, b: (a[0] & b[0], lambda i, j: a[1](i, j) and b[1](i, j)), children, children
        ),
        st.builds(
            lambda a, b: (a[0] | b[0], lambda i, j: a[1](i, j) or b[1](i, j)), children, children
        ),
        st.builds(lambda a: (~a[0], lambda i, j: not a[1](i, j)), children),
    )


@settings(deadline=None, max_examples=200)
@given(
    pair=st.recursive(ATOMS, _compose, max_leaves=6),
    n=st.integers(1, 7),
    m=st.integers(1, 7),
)
def test_composed_masks_follow_logic_and_their_bands_never_lie(
    pair: tuple[Mask, Callable[[int, int], bool]], n: int, m: int
) -> None:
    mask, rule = pair
    dense = mask.dense(n, m).expand(1, 1, n, m)[0, 0]
    expected = torch.tensor([[rule(i, j) for j in range(m)] for i in range(n)])
    assert torch.equal(dense, expected)
    diagonal = torch.arange(m) - torch.arange(n)[:, None]
    outside = (diagonal < mask.outer[0]) | (diagonal > mask.outer[1])
    inside = (diagonal >= mask.inner[0]) & (diagonal <= mask.inner[1])
    assert not dense[outside].any()
    assert dense[inside].all()
    if mask.allows_all(n, m):
        assert dense.all()
    if mask.is_causal:
        assert torch.equal(dense, torch.ones(n, m).tril().bool())


def test_bands_are_kept_where_they_are_known() -> None:
    assert causal().is_causal
    assert (~~causal()).is_causal
    assert (causal() & everything()).is_causal
    assert (causal() & causal(offset=3)).is_causal
    assert not causal(offset=1).is_causal
    assert not (causal() & padding(REAL)).is_causal
    assert not sliding_window(3).is_causal
    assert (causal() | everything()).allows_all(N, M)
    assert (everything() | causal()).allows_all(N, M)
    assert (~~everything()).allows_all(N, M)


def test_one_query_at_the_end_of_its_cache_needs_no_mask() -> None:
    assert causal(offset=M - 1).allows_all(1, M)
    assert not causal(offset=M - 2).allows_all(1, M)
    assert sliding_window(M, offset=M - 1).allows_all(1, M)
    assert not sliding_window(M - 1, offset=M - 1).allows_all(1, M)
    assert prefix(2, offset=M - 1).allows_all(1, M)
    assert everything().allows_all(N, M)
    assert not causal(offset=M - 1).allows_all(1, M + 1)


def test_a_cached_causal_mask_is_the_last_rows_of_the_whole() -> None:
    whole = causal().dense(M, M)
    assert torch.equal(causal(offset=M - N).dense(N, M), whole[:, :, -N:])


def test_masks_work_on_meta_tensors() -> None:
    real = REAL.to("meta")
    made = (causal() & padding(real)).dense(N, M)
    assert made.is_meta
    assert made.shape == (B, 1, N, M)
    assert causal().dense(N, M, device="meta").is_meta


def test_sizes_are_checked_without_a_device_and_devices_without_an_index() -> None:
    own = Mask(lambda b, h, i, j: j <= i, batch=2, keys=7)
    with pytest.raises(ValueError, match="made for a batch size of 2, got 3"):
        own.dense(N, M, batch=3)
    with pytest.raises(ValueError, match="made for a number of keys of 7, got 5"):
        own.check(N, 5, batch=2, device=torch.device("meta"))
    first = Mask(lambda b, h, i, j: j <= i, device=torch.device("cuda", 0))
    first.check(N, M, batch=None, device=torch.device("cuda"))  # as users write it
    for other in ("cuda:1", "cpu"):
        with pytest.raises(ValueError, match=f"are on cuda:0, but the inputs are on {other}"):
            first.check(N, M, batch=None, device=torch.device(other))


def test_wrong_tensors_are_refused_by_name(own_checks: None) -> None:
    with pytest.raises(ValueError, match=r"real must be Bool .* got torch.int64 of shape \(2, 7\)"):
        padding(REAL.long())
    with pytest.raises(ValueError, match=r"real must be Bool .* of shape \(7,\)"):
        padding(REAL[0])
    with pytest.raises(ValueError, match=r"ids must be integers .* of shape \(5,\)"):
        documents(IDS[0])
    with pytest.raises(ValueError, match=r"ids must be integers .* got torch.float32"):
        documents(IDS.float())
    with pytest.raises(ValueError, match=r"lengths must be an integer.* of shape \(1, 2\)"):
        prefix(LENGTHS[None])
    with pytest.raises(ValueError, match=r"lengths must be an integer.* got torch.float32"):
        prefix(LENGTHS.float())
    with pytest.raises(ValueError, match="lengths must be 0 or more, got -1"):
        prefix(-1)
    with pytest.raises(ValueError, match="width must be 1 or more, got 0"):
        sliding_window(0)
    with pytest.raises(ValueError, match="block must be 1 or more, got 0"):
        causal().block_mask(3, 3, device="cpu", block=0)
    with pytest.raises(ValueError, match=r"must return Bool, got torch.int64"):
        Mask(lambda b, h, i, j: i - j).dense(3, 3)


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="made for a number of keys of 7, got 5"):
        padding(REAL).dense(N, 5)
    with pytest.raises(ValueError, match="made for a batch size of 2, got 3"):
        padding(REAL).dense(N, M, batch=3)
    with pytest.raises(ValueError, match="made for a number of queries of 5, got 3"):
        documents(IDS).dense(3, N)
    with pytest.raises(ValueError, match="batch size of 2 and of 1 do not compose"):
        padding(REAL) & prefix(LENGTHS[:1])
    with pytest.raises(ValueError, match="number of keys of 7 and of 5 do not compose"):
        padding(REAL) | documents(IDS)
    with pytest.raises(ValueError, match="tensors are on cpu, but the inputs are on meta"):
        padding(REAL).dense(N, M, device="meta")
    Q, K = torch.zeros(B, H, N, 2), torch.zeros(B, H, 3, 2)
    with pytest.raises(ValueError, match="made for a number of keys of 7, got 3"):
        attention(Q, K, K, mask=padding(REAL))


def test_a_shifted_mask_is_the_mask_of_later_queries(g: torch.Generator) -> None:
    n, m, held = 5, 13, 3
    real = torch.rand(2, m, generator=g) > 0.3
    for mask in (causal(), sliding_window(4), prefix(6), ~causal() | padding(real), everything()):
        later = mask.shifted(held)
        whole = mask.dense(n + held, m).expand(-1, -1, n + held, m)
        expected = whole[:, :, held:]
        assert torch.equal(later.dense(n, m).expand_as(expected), expected)
        # The bands bound what the rule allows, after the shift as before.
        distance = torch.arange(m) - torch.arange(n)[:, None]
        inside = (distance >= later.inner[0]) & (distance <= later.inner[1])
        outside = (distance < later.outer[0]) | (distance > later.outer[1])
        assert bool(expected[..., inside].all())
        assert not bool(expected[..., outside].any())
    assert not causal().shifted(1).is_causal


def test_the_mask_of_a_stream_is_its_definition() -> None:
    made = streaming_mask(sinks=2, window=3).dense(9, 9)[0, 0]
    naive = [[j <= i and (j < 2 or i - j < 3) for j in range(9)] for i in range(9)]
    assert made.tolist() == naive
    assert streaming_mask(sinks=0, window=3).dense(9, 9)[0, 0].sum() == 3 * 9 - 3
    with pytest.raises(ValueError, match="sinks must be 0 or more, got -1"):
        streaming_mask(sinks=-1, window=3)
