"""The streaming cache against its definition, and against the plain cache where both apply."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.models import smollm2
from companion.transformer import block
from companion.transformer.attention import streaming_mask
from companion.transformer.block import StreamingCache, StreamingLayer, streaming_logits
from companion.transformer.multi_head import KVCache
from companion.transformer.positions import (
    DynamicNTKScaling,
    Llama3Scaling,
    Rotary,
    YarnScaling,
    rotate,
)

# Two layers of sums of at most some hundred products, in float64; logits are of order 10.
CLOSE = {"rtol": 1e-9, "atol": 1e-10}

CONFIG = block.TransformerConfig(
    vocab=31,
    dim=24,
    layers=2,
    heads=6,
    kv_heads=2,
    ff_dim=29,
    context=64,
    norm="rms",
    activation="swiglu",
    attention_bias=False,
    ff_bias=False,
)


def model(g: torch.Generator, config: block.TransformerConfig = CONFIG) -> block.Decoder:
    made = block.Decoder(config).double().requires_grad_(False).eval()
    for weight in made.parameters():
        weight.copy_(torch.randn(weight.shape, generator=g, dtype=torch.float64) / 2)
    return made


def decode(made: block.Decoder, ids: Tensor, cache: KVCache, *, first: int = 1) -> Tensor:
    """Read the first tokens at once, then one after another."""
    out = [made(ids[:, :first], cache=cache)]
    out += [made(ids[:, t : t + 1], cache=cache) for t in range(first, ids.shape[1])]
    return torch.cat(out, 1)


POSITIONS = {
    "half-split": block.Rope(),
    "interleaved": block.Rope(interleaved=True),
    "llama3": block.Rope(scaling=Llama3Scaling(4.0, low=1.0, high=4.0, context=32)),
    "yarn": block.Rope(scaling=YarnScaling(4.0, context=32)),
    "none": block.NoPositions(),
}


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize(("sinks", "window"), [(0, 5), (1, 5), (3, 7), (4, 1)])
def test_token_by_token_is_all_at_once(
    positions: object, sinks: int, window: int, g: torch.Generator
) -> None:
    made = model(g, replace(CONFIG, positions=positions))  # type: ignore[arg-type]
    ids = torch.randint(0, 31, (2, 53), generator=g)
    expected = streaming_logits(made, ids, sinks=sinks, window=window)
    cache = StreamingCache.for_model(made, 2, sinks=sinks, window=window)
    torch.testing.assert_close(decode(made, ids, cache), expected, **CLOSE)
    # And it is not the model that reads everything.
    assert (made(ids) - expected).abs().max() > 0.01


def by_formula(made: block.Decoder, ids: Tensor, *, sinks: int, window: int) -> Tensor:
    """Read one text with the scores of the book's eq:stream-scores, pair by pair."""
    assert made.rotary is not None
    assert made.final_norm is not None
    n = ids.shape[1]
    x, t = made.embed(ids, torch.arange(n))[0], torch.arange(n)
    gap = t[:, None] - t
    distance = torch.where(t < sinks, t.clamp(max=sinks + window - 1)[:, None] - t, gap)
    cos, sin = made.rotary(distance.clamp(min=0).flatten(), dtype=x.dtype)
    unread = (gap < 0) | ((t >= sinks) & (gap >= window))
    group = made.config.heads // made.config.key_value_heads
    for layer in made.blocks:
        a, y = layer.attention, layer.attention_norm(x)
        Q, K, V = (y @ M for M in (a.query_matrix, a.key_matrix, a.value_matrix))
        K, V = (z.repeat_interleave(group, 0) for z in (K, V))
        # For each pair the query, rotated by the distance of the pair: (heads, n * n, key).
        turned = rotate(Q.repeat_interleave(n, 1)[None], (cos, sin))[0].unflatten(1, (n, n))
        S = (turned * K[:, None]).sum(-1) / Q.shape[-1] ** 0.5
        A = torch.softmax(S.masked_fill(unread, -torch.inf), -1)
        x = x + (A @ V @ a.output_matrix).sum(0)
        x = x + layer.feed_forward(layer.feed_forward_norm(x))
    logits: Tensor = made.head(made.final_norm(x))
    return logits[None]


@pytest.mark.parametrize(("sinks", "window"), [(0, 5), (1, 5), (3, 7), (4, 1)])
def test_both_ways_are_the_formula_pair_by_pair(
    sinks: int, window: int, g: torch.Generator
) -> None:
    made = model(g)
    ids = torch.randint(0, 31, (1, 29), generator=g)
    expected = by_formula(made, ids, sinks=sinks, window=window)
    out = streaming_logits(made, ids, sinks=sinks, window=window)
    torch.testing.assert_close(out, expected, **CLOSE)
    cache = StreamingCache.for_model(made, sinks=sinks, window=window)
    torch.testing.assert_close(decode(made, ids, cache), expected, **CLOSE)


@given(
    sinks=st.integers(0, 4),
    window=st.integers(1, 9),
    spare=st.integers(0, 9),
    first=st.integers(1, 13),
    n=st.integers(13, 40),
)
@settings(max_examples=25, deadline=None)
def test_the_length_of_the_strip_does_not_matter(
    sinks: int, window: int, spare: int, first: int, n: int
) -> None:
    g = torch.Generator().manual_seed(0)
    made = model(g, replace(CONFIG, layers=1))
    ids = torch.randint(0, 31, (1, n), generator=g)
    cache = StreamingCache(
        1, 1, 2, sinks, window, 4, rotary=made.rotary, spare=spare, dtype=torch.float64
    )
    made_logits = decode(made, ids, cache, first=min(first, sinks + window))
    expected = streaming_logits(made, ids, sinks=sinks, window=window)
    torch.testing.assert_close(made_logits, expected, **CLOSE)


def test_a_cache_that_never_fills_is_a_plain_cache(g: torch.Generator) -> None:
    made = model(g)
    ids = torch.randint(0, 31, (2, 23), generator=g)
    streaming = StreamingCache.for_model(made, 2, sinks=3, window=20)
    out = decode(made, ids, streaming, first=7)
    assert torch.equal(out, decode(made, ids, made.cache(2, 23), first=7))
    assert streaming.length == 23
    torch.testing.assert_close(out, made(ids), **CLOSE)


def test_a_window_within_the_text_reads_the_streaming_mask(g: torch.Generator) -> None:
    # Without positions the distance to a sink does not matter, so the mask alone is the model.
    made = model(g, replace(CONFIG, positions=block.NoPositions()))
    ids = torch.randint(0, 31, (1, 29), generator=g)
    out = streaming_logits(made, ids, sinks=2, window=5)
    torch.testing.assert_close(out, made(ids, mask=streaming_mask(sinks=2, window=5)), **CLOSE)


def test_positions_are_counted_within_the_cache(g: torch.Generator) -> None:
    made = model(g)
    ids = torch.randint(0, 31, (1, 29), generator=g)
    inside = streaming_logits(made, ids, sinks=2, window=5)
    outside = made(ids, mask=streaming_mask(sinks=2, window=5))
    # The same as long as nothing was let go of, and not after.
    torch.testing.assert_close(inside[:, :7], outside[:, :7], **CLOSE)
    assert (inside[:, 7:] - outside[:, 7:]).abs().max() > 0.01
    # A window alone has no sinks whose distance could differ.
    alone = streaming_logits(made, ids, sinks=0, window=5)
    torch.testing.assert_close(alone, made(ids, mask=streaming_mask(sinks=0, window=5)), **CLOSE)


def test_a_stream_may_be_longer_than_the_context(g: torch.Generator) -> None:
    made = model(g, replace(CONFIG, layers=1, context=16))
    cache = StreamingCache.for_model(made, sinks=2, window=6)
    ids = torch.randint(0, 31, (1, 200), generator=g)
    out = decode(made, ids, cache)
    assert cache.length <= 16
    assert cache.capacity == 8
    # One layer: the last token's logits depend on sinks and window alone. As a text of their own
    # they stand at the positions that the cache counts.
    rest = torch.cat([ids[:, :2], ids[:, -6:]], 1)
    torch.testing.assert_close(out[:, -1:], made(rest, last=1), **CLOSE)


def test_the_cache_holds_the_first_and_the_latest_tokens() -> None:
    cache = StreamingCache(1, 1, 1, 2, 3, 4, value_dim=5)
    layer = cache.layers[0]
    for t in range(20):
        K, V = layer.append(torch.full((1, 1, 1, 4), float(t)), torch.full((1, 1, 1, 5), float(t)))
        expected = list(range(t + 1)) if t < 5 else [0, 1, t - 2, t - 1, t]
        assert K[0, 0, :, 0].tolist() == V[0, 0, :, 4].tolist() == expected
        assert (K.shape[3], V.shape[3]) == (4, 5)
        # Views into memory that was reserved once.
        assert K.untyped_storage().data_ptr() == layer.keys.untyped_storage().data_ptr()


def test_keys_stand_rotated_to_their_places_in_the_cache(g: torch.Generator) -> None:
    rotary = Rotary(6)
    cache = StreamingCache(1, 1, 1, 2, 3, 6, rotary=rotary, dtype=torch.float64)
    layer, plain = cache.layers[0], torch.randn(1, 1, 31, 6, generator=g, dtype=torch.float64)

    def turned(x: Tensor, places: Tensor) -> Tensor:
        return rotate(x, rotary(places, dtype=torch.float64))

    for t in range(31):
        place = torch.tensor([layer.length])
        K, _ = layer.append(turned(plain[:, :, t : t + 1], place), plain[:, :, t : t + 1])
        held = list(range(t + 1)) if t < 5 else [0, 1, t - 2, t - 1, t]
        start = int(place) + 1 - len(held)
        expected = turned(plain[:, :, held], torch.arange(start, start + len(held)))
        torch.testing.assert_close(K, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_does_not_pile_up_in_the_sinks(dtype: torch.dtype, g: torch.Generator) -> None:
    rotary = Rotary(8)
    cache = StreamingCache(1, 1, 1, 1, 4, 8, rotary=rotary, dtype=dtype)
    key = torch.randn(1, 1, 1, 8, generator=g).to(dtype)
    layer = cache.layers[0]
    for _ in range(500):
        place = torch.tensor([layer.length])
        K, V = layer.append(rotate(key, rotary(place, dtype=dtype)), key)
    first = layer.length - 5 if layer.length > 5 else 0
    first = layer.keys.shape[2] - 5 if layer.length == 4 else first
    exact = rotate(key.double(), rotary(torch.tensor([first]), dtype=torch.float64))
    # One rotation: a few roundings of numbers of order 1.
    assert (K[:, :, :1].double() - exact).abs().max() < 8 * torch.finfo(dtype).eps
    assert torch.equal(V[:, :, :1], key)


def test_a_reset_cache_starts_anew(g: torch.Generator) -> None:
    made = model(g)
    ids = torch.randint(0, 31, (1, 29), generator=g)
    cache = StreamingCache.for_model(made, sinks=1, window=5)
    once = decode(made, ids, cache)
    cache.reset()
    assert cache.length == 0
    assert torch.equal(decode(made, ids, cache), once)


def test_a_cache_can_go_back_until_something_was_let_go_of(g: torch.Generator) -> None:
    made = model(g)
    ids = torch.randint(0, 31, (1, 9), generator=g)
    cache = StreamingCache.for_model(made, sinks=2, window=7)
    first = decode(made, ids, cache)
    cache.truncate(4)
    assert torch.equal(made(ids[:, 4:5], cache=cache), first[:, 4:5])
    with pytest.raises(ValueError, match="length must be from 0 to 5, got 6"):
        cache.truncate(6)
    for t in range(5, 9):
        made(ids[:, t : t + 1], cache=cache)
    made(ids[:, :1], cache=cache)
    with pytest.raises(ValueError, match="let go of tokens cannot go back"):
        cache.truncate(4)


@pytest.mark.usefixtures("own_checks")
def test_the_cache_refuses_what_does_not_fit(g: torch.Generator) -> None:
    cache = StreamingCache(1, 2, 3, 1, 4, 6)
    layer, one = cache.layers[0], torch.ones(2, 3, 1, 6)
    with pytest.raises(ValueError, match=r"6 tokens at once do not fit: the cache holds 0 of 5"):
        layer.append(one.expand(-1, -1, 6, -1), one.expand(-1, -1, 6, -1))
    with pytest.raises(
        ValueError, match=r"keys .* must have shape \(2, 3, 1, 6\), got \(2, 3, 1, 5\)"
    ):
        layer.append(one[..., :5], one)
    with pytest.raises(ValueError, match=r"values .* shape \(2, 3, 1, 6\), got \(1, 3, 1, 6\)"):
        layer.append(one, one[:1])
    assert layer.length == 0  # nothing was stored
    layer.append(one.expand(-1, -1, 5, -1), one.expand(-1, -1, 5, -1))
    layer.append(one, one)
    with pytest.raises(ValueError, match="2 tokens at once do not fit"):
        layer.append(one.expand(-1, -1, 2, -1), one.expand(-1, -1, 2, -1))
    with pytest.raises(ValueError, match="window must be 1 or more, got 0"):
        StreamingCache(1, 1, 1, 1, 0, 4)
    dynamic = Rotary(4, scaling=DynamicNTKScaling(2.0, context=16))
    with pytest.raises(ValueError, match="dynamic NTK scaling do not compose"):
        StreamingCache(1, 1, 1, 1, 3, 4, rotary=dynamic)


def test_models_with_other_positions_are_refused(g: torch.Generator) -> None:
    learned = model(g, replace(CONFIG, positions=block.Learned()))
    with pytest.raises(ValueError, match="rotary positions or none, got Learned"):
        StreamingCache.for_model(learned, sinks=1, window=3)
    with pytest.raises(ValueError, match="rotary positions or none, got Learned"):
        streaming_logits(learned, torch.zeros(1, 5, dtype=torch.long), sinks=1, window=3)
    made = model(g)
    with pytest.raises(ValueError, match=r"sinks \+ window must be from 1 to 64, got 70"):
        StreamingCache.for_model(made, sinks=4, window=66)
    with pytest.raises(ValueError, match="tokens must be from 1 to 64, got 65"):
        streaming_logits(made, torch.zeros(1, 65, dtype=torch.long), sinks=1, window=3)


def test_the_cache_and_the_definition_run_on_meta() -> None:
    with torch.device("meta"):
        made = block.Decoder(CONFIG)
    ids = torch.zeros(2, 13, dtype=torch.long, device="meta")
    cache = StreamingCache.for_model(made, 2, sinks=2, window=3)
    out = decode(made, ids, cache)
    assert isinstance(cache.layers[0], StreamingLayer)
    assert (out.shape, out.device.type) == ((2, 13, 31), "meta")
    assert streaming_logits(made, ids, sinks=2, window=3).shape == (2, 13, 31)


def test_a_window_without_a_sink_breaks_the_real_model_and_one_sink_repairs_it() -> None:
    # Xiao et al. 2024, on text that the model has not seen as such.
    real = smollm2()
    text = (
        "The ferry left the harbor a little before nine, with forty passengers and a crate of "
        "oranges on board. Nobody noticed that the crate had been addressed to a street that does "
        "not exist, in a town that was renamed after the war. The captain, who had sailed this "
        "route for thirty years, thought about his daughter's letter. She had written that the "
        "house was sold, that the garden would become a parking lot, and that she was not sorry."
    )
    ids = torch.tensor([[0, *real.tokenizer.encode(text).ids]])
    ids, targets = ids[:, :-1], ids[0, 1:]
    cross_entropy = torch.nn.functional.cross_entropy

    def loss(logits: Tensor) -> float:
        return float(cross_entropy(logits[0, 32:], targets[32:]))

    with torch.no_grad():
        full = loss(real.model(ids))
        windows = {
            s: loss(streaming_logits(real.model, ids, sinks=s, window=16 - s)) for s in (0, 1, 4)
        }
        step = decode(
            real.model, ids[:, :24], StreamingCache.for_model(real.model, sinks=4, window=12)
        )
        dense = streaming_logits(real.model, ids[:, :24], sinks=4, window=12)
    assert windows[0] > full + 1.0
    for s in (1, 4):
        assert windows[s] < full + 0.6
        assert windows[s] < windows[0] - 0.8
    # float32 through 30 layers, logits of order 10.
    torch.testing.assert_close(step, dense, rtol=1e-3, atol=1e-3)
