"""Keys and values that are kept: decoding with a cache computes what reading anew computes."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion import verify
from companion.core import watch
from companion.transformer.attention import causal, padding
from companion.transformer.multi_head import (
    KVCache,
    LayerCache,
    MultiHeadAttention,
    ancestors,
    kv_cache_bytes,
    tree,
)
from companion.transformer.positions import Rotary, ShawRelative, rotate

B, N, D = 2, 11, 12
SIZES = [
    {"heads": 6},
    {"heads": 6, "kv_heads": 3},
    {"heads": 6, "kv_heads": 1, "head_dim": 4, "value_dim": 5},
]
# The same sums of a few dozen products, in another order: some ten rounding units.
EXACT = {"rtol": 1e-12, "atol": 1e-13}
CHUNKS = [[1] * N, [4, 1, 1, 5], [N], [7, 4]]


def draw(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def layer(g: torch.Generator, **sizes: Any) -> MultiHeadAttention:
    made = MultiHeadAttention(D, bias=True, dtype=torch.float64, **sizes)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(draw(*parameter.shape, g=g) / parameter.shape[-1] ** 0.5)
    return made


def cache_for(
    mha: MultiHeadAttention, batch: int = B, capacity: int = N, dtype: Any = None
) -> LayerCache:
    kind = torch.float64 if dtype is None else dtype
    sizes = (1, batch, mha.kv_heads, capacity, mha.head_dim)
    return KVCache(*sizes, value_dim=mha.value_dim, dtype=kind).layers[0]


def attend(mha: MultiHeadAttention, *inputs: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The output of a layer and its attention weights."""
    with watch(mha, read=["weights"]) as seen:
        y = mha(*inputs, **options)
    return y, seen["weights"]


@torch.no_grad()
def in_chunks(
    mha: MultiHeadAttention,
    x: Tensor,
    chunks: list[int],
    *,
    real: Tensor | None = None,
    rotary: Rotary | None = None,
) -> Tensor:
    """Read a text piece by piece, with a cache."""
    cache, parts = cache_for(mha, x.shape[0], sum(chunks), x.dtype), []
    for part in x.split(chunks, 1):
        start, end = cache.length, cache.length + part.shape[1]
        mask: Any = causal(offset=start)
        if real is not None:
            mask = mask & padding(real[:, :end])
        rotation = None
        if rotary is not None:
            places = torch.arange(start, end)
            rotation = partial(rotate, rotation=rotary(places, dtype=x.dtype), head_axis=2)
        parts.append(mha(part, mask=mask, cache=cache, rotation=rotation))
        assert cache.length == end
    return torch.cat(parts, 1)


# --- cached equals uncached -----------------------------------------------------------------


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_reading_with_a_cache_is_reading_at_once(
    g: torch.Generator, sizes: dict[str, int], chunks: list[int]
) -> None:
    mha, x = layer(g, **sizes), draw(B, N, D, g=g)
    torch.testing.assert_close(in_chunks(mha, x, chunks), mha(x, mask=causal()), **EXACT)


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_in_float32_cached_and_uncached_agree_at_every_step(
    g: torch.Generator, chunks: list[int]
) -> None:
    mha, x = layer(g, heads=6, kv_heads=3).float(), draw(B, N, D, g=g).float()
    made, expected = in_chunks(mha, x, chunks), mha(x, mask=causal())
    for t in range(N):
        torch.testing.assert_close(made[:, t], expected[:, t], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_rotated_keys_are_cached_as_they_are_read(g: torch.Generator, chunks: list[int]) -> None:
    mha, x = layer(g, heads=6, kv_heads=3, head_dim=4), draw(B, N, D, g=g)
    rotary = Rotary(4)
    whole = partial(rotate, rotation=rotary(torch.arange(N), dtype=torch.float64), head_axis=2)
    expected = mha(x, mask=causal(), rotation=whole)
    torch.testing.assert_close(in_chunks(mha, x, chunks, rotary=rotary), expected, **EXACT)


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_relative_positions_count_from_the_start_of_the_cache(
    g: torch.Generator, chunks: list[int]
) -> None:
    mha = layer(g, heads=6, relative=ShawRelative(2, 3, dtype=torch.float64))
    x = draw(B, N, D, g=g)
    torch.testing.assert_close(in_chunks(mha, x, chunks), mha(x, mask=causal()), **EXACT)


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_a_batch_padded_on_the_left_decodes_as_its_rows_alone(
    g: torch.Generator, chunks: list[int]
) -> None:
    mha, texts = layer(g, heads=6, kv_heads=3), [draw(1, n, D, g=g) for n in (N, 7, 1)]
    x = torch.full((3, N, D), 1e3, dtype=torch.float64)  # padding that would be noticed
    real = torch.zeros(3, N, dtype=torch.bool)
    for row, text in enumerate(texts):
        x[row, N - text.shape[1] :], real[row, N - text.shape[1] :] = text[0], True
    made = in_chunks(mha, x, chunks, real=real)
    assert bool(torch.isfinite(made).all())
    for row, text in enumerate(texts):
        alone = mha(text, mask=causal())
        torch.testing.assert_close(made[row : row + 1, N - text.shape[1] :], alone, **EXACT)


@settings(max_examples=25, deadline=None)
@given(chunks=st.lists(st.integers(1, 5), min_size=1, max_size=6), kv_heads=st.sampled_from([1, 2]))
def test_property_how_a_text_is_cut_does_not_matter(chunks: list[int], kv_heads: int) -> None:
    g = torch.Generator().manual_seed(sum(chunks) + 97 * len(chunks))
    mha = layer(g, heads=4, kv_heads=kv_heads)
    x = draw(B, sum(chunks), D, g=g)
    torch.testing.assert_close(in_chunks(mha, x, chunks), mha(x, mask=causal()), **EXACT)


@torch.no_grad()
def test_keys_and_values_of_a_context_are_computed_once(g: torch.Generator) -> None:
    mha, x, context = layer(g, heads=6, kv_heads=3), draw(B, N, D, g=g), draw(B, 7, D, g=g)
    cache = cache_for(mha, capacity=7)
    expected = mha(x, context)
    made = [mha(x[:, :4], context, cache=cache)]
    # What is given later is not looked at: the context was read.
    made += [mha(x[:, t : t + 1], torch.full_like(context, torch.nan), cache=cache) for t in (4, 5)]
    torch.testing.assert_close(torch.cat(made, 1), expected[:, :6], **EXACT)
    assert cache.length == 7


@torch.no_grad()
def test_weights_with_a_cache_are_those_of_the_last_rows(g: torch.Generator) -> None:
    mha, x = layer(g, heads=6, kv_heads=3), draw(B, N, D, g=g)
    cache = cache_for(mha)
    mha(x[:, :-1], mask=causal(), cache=cache)
    y, A = attend(mha, x[:, -1:], cache=cache)
    expected_y, expected_A = attend(mha, x, mask=causal())
    torch.testing.assert_close(y, expected_y[:, -1:], **EXACT)
    torch.testing.assert_close(A, expected_A[:, :, -1:], **EXACT)


# --- the cache itself -----------------------------------------------------------------------


@torch.no_grad()
def test_truncating_takes_back_what_was_read(g: torch.Generator) -> None:
    mha, x = layer(g, heads=6), draw(B, N, D, g=g)
    cache = KVCache(2, B, 6, N, 2, dtype=torch.float64)
    for layer_cache in cache.layers:
        mha(x[:, :8], mask=causal(), cache=layer_cache)
    assert cache.length == 8
    cache.truncate(3)
    assert [c.length for c in cache.layers] == [3, 3]
    again = mha(x[:, 3:], mask=causal(offset=3), cache=cache.layers[1])
    torch.testing.assert_close(again, mha(x, mask=causal())[:, 3:], **EXACT)
    cache.reset()
    assert cache.length == 0
    torch.testing.assert_close(
        mha(x, mask=causal(), cache=cache.layers[0]), mha(x, mask=causal()), **EXACT
    )


def test_the_memory_is_reserved_once(g: torch.Generator) -> None:
    cache = KVCache(1, B, 3, N, 4, value_dim=5, dtype=torch.float64).layers[0]
    where = cache.keys.data_ptr(), cache.values.data_ptr()
    for _ in range(N):
        K, V = cache.append(draw(B, 3, 1, 4, g=g), draw(B, 3, 1, 5, g=g))
        assert (K.data_ptr(), V.data_ptr()) == where
    assert K.shape == (B, 3, N, 4)
    assert V.shape == (B, 3, N, 5)


def test_the_cache_takes_the_bytes_of_the_formula() -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        sizes = {"layers": 2, "batch": 3, "kv_heads": 5, "head_dim": 7, "value_dim": 11}
        made = verify.peak_bytes(lambda: KVCache(**sizes, capacity=13, dtype=dtype))  # noqa: B023
        assert made == kv_cache_bytes(**sizes, positions=13, dtype=dtype)
    # Llama 3 8B, 8192 tokens in float16: 32 layers, 8 key-value heads of 128, exactly one GiB.
    assert kv_cache_bytes(layers=32, positions=8192, kv_heads=8, head_dim=128) == 2**30


def test_no_graph_grows_in_the_cache(g: torch.Generator) -> None:
    mha, x = layer(g, heads=6), draw(B, N, D, g=g)
    cache = cache_for(mha)
    for part in x.split(1, 1):
        mha(part, cache=cache)
    assert cache.keys.grad_fn is None
    assert cache.values.grad_fn is None


@pytest.mark.usefixtures("own_checks")
def test_what_does_not_fit_into_the_cache_is_refused_and_not_stored(g: torch.Generator) -> None:
    cache = KVCache(1, B, 3, 5, 4, dtype=torch.float64).layers[0]
    cache.append(draw(B, 3, 3, 4, g=g), draw(B, 3, 3, 4, g=g))
    before = cache.keys.clone(), cache.values.clone()
    for keys, values, message in (
        ((B, 3, 3, 4), (B, 3, 3, 4), "holds 3 of at most 5 positions, and 3 more do not fit"),
        ((3, 3, 1, 4), (3, 3, 1, 4), r"keys .* shape \(2, 3, 1, 4\), got \(3, 3, 1, 4\)"),
        ((B, 6, 1, 4), (B, 6, 1, 4), r"keys .* shape \(2, 3, 1, 4\), got \(2, 6, 1, 4\)"),
        ((B, 3, 1, 4), (B, 3, 2, 4), r"values .* shape \(2, 3, 1, 4\), got \(2, 3, 2, 4\)"),
        ((B, 3, 1, 4), (B, 3, 1, 7), r"values .* shape \(2, 3, 1, 4\), got \(2, 3, 1, 7\)"),
    ):
        with pytest.raises(ValueError, match=message):
            cache.append(draw(*keys, g=g), draw(*values, g=g))
        assert cache.length == 3
        assert torch.equal(cache.keys, before[0])
        assert torch.equal(cache.values, before[1])


def test_sizes_and_lengths_out_of_range_are_refused() -> None:
    for name in ("layers", "batch", "kv_heads", "capacity", "head_dim", "value_dim"):
        sizes = {"layers": 1, "batch": 1, "kv_heads": 1, "capacity": 1, "head_dim": 1}
        with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
            KVCache(**(sizes | {name: 0}))
    for name in ("layers", "positions", "kv_heads", "head_dim", "value_dim", "batch"):
        sizes = {"layers": 1, "positions": 1, "kv_heads": 1, "head_dim": 1}
        with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
            kv_cache_bytes(**(sizes | {name: 0}))
    cache = KVCache(1, 1, 1, 5, 2)
    with pytest.raises(ValueError, match="length must be from 0 to 0, got 1"):
        cache.truncate(1)


def test_the_cache_runs_without_data_on_meta() -> None:
    mha = MultiHeadAttention(D, 6, kv_heads=3, device="meta")
    cache = KVCache(1, B, 3, N, 2, device="meta").layers[0]
    x = torch.ones(B, 4, D, device="meta")
    assert mha(x, mask=causal(), cache=cache).shape == (B, 4, D)
    assert mha(x[:, :1], cache=cache).shape == (B, 1, D)
    assert cache.length == 5


# --- a tree of continuations ----------------------------------------------------------------


def path(parents: list[int], token: int) -> list[int]:
    """The tokens from the root to this one."""
    return [*path(parents, parents[token]), token] if token >= 0 else []


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(1, 13))
def test_property_ancestors_are_what_following_parents_finds(data: Any, n: int) -> None:
    parents = [data.draw(st.integers(-1, i - 1)) for i in range(n)]
    reached = ancestors(torch.tensor(parents))
    for token in range(n):
        assert reached[token].nonzero().flatten().tolist() == path(parents, token)
    chain = ancestors(torch.arange(-1, n - 1))
    assert torch.equal(chain, causal().dense(n, n)[0, 0])


@torch.no_grad()
def test_one_pass_over_a_tree_reads_each_branch_as_if_alone(g: torch.Generator) -> None:
    mha, x, rotary = layer(g, heads=6, kv_heads=3, head_dim=4), draw(1, N, D, g=g), Rotary(4)
    parents = [-1, 0, 0, 1, 2, 2, -1]
    cache = cache_for(mha, 1)
    held = N - len(parents)

    def turn(places: Tensor) -> Any:
        return partial(rotate, rotation=rotary(places, dtype=torch.float64), head_axis=2)

    mha(x[:, :held], mask=causal(), cache=cache, rotation=turn(torch.arange(held)))
    depth = ancestors(torch.tensor(parents)).sum(1) - 1
    made = mha(
        x[:, held:],
        mask=tree(torch.tensor(parents), offset=held),
        cache=cache,
        rotation=turn(held + depth),
    )
    for token in range(len(parents)):
        branch = torch.cat([x[:, :held], x[:, held:][:, path(parents, token)]], 1)
        alone = mha(branch, mask=causal(), rotation=turn(torch.arange(branch.shape[1])))
        torch.testing.assert_close(made[:, token], alone[:, -1], **EXACT)


@pytest.mark.usefixtures("own_checks")
def test_parents_that_form_no_tree_are_refused() -> None:
    for parents, message in (
        (torch.tensor([-1, 1]), "token 1 has 1"),
        (torch.tensor([0, 0]), "token 0 has 0"),
        (torch.tensor([-1, -2]), "token 1 has -2"),
        (torch.tensor([-1.0]), r"integers of shape \(n,\), got torch.float32"),
        (torch.tensor([[-1]]), r"got torch.int64 of shape \(1, 1\)"),
    ):
        for function in (ancestors, tree):
            with pytest.raises(ValueError, match=message):
                function(parents)
    with pytest.raises(ValueError, match="offset must be 0 or more, got -1"):
        tree(torch.tensor([-1]), offset=-1)


def test_trees_run_without_data_on_meta() -> None:
    parents = torch.zeros(5, dtype=torch.int64, device="meta")
    assert ancestors(parents).device.type == "meta"
    assert tree(parents, offset=2).dense(5, 7).shape == (1, 1, 5, 7)
