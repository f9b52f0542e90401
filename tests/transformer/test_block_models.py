"""Encoder, decoder and encoder-decoder: what a position may depend on, caches, errors."""

import itertools
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from companion.core import watch
from companion.transformer.attention import documents, sliding_window
from companion.transformer.block import (
    AlibiBias,
    Block,
    Decoder,
    Encoder,
    EncoderDecoder,
    Learned,
    NoPositions,
    Rope,
    Shaw,
    Sinusoidal,
    T5Buckets,
    TransformerConfig,
    parameter_count,
)

VOCAB, N, M = 23, 7, 11

CONFIG = TransformerConfig(
    vocab=VOCAB, dim=12, layers=3, heads=6, kv_heads=2, ff_dim=31, context=29
)

POSITIONS = [
    NoPositions(),
    Learned(),
    Learned(offset=2),
    Sinusoidal(),
    Rope(),
    Rope(base=50.0, interleaved=True),
    AlibiBias(),
    T5Buckets(buckets=8, max_distance=20),
    Shaw(max_distance=5),
]

FORMS: list[dict[str, Any]] = [
    {},
    {"norm": "rms", "activation": "swiglu", "attention_bias": False, "ff_bias": False},
    {"norm_place": "post", "embedding_norm": True, "segments": 2, "positions": Learned()},
    {"activation": "gelu_tanh", "tied": False, "positions": Learned()},
    {"norm": "rms", "norm_place": "post", "activation": "geglu", "head_dim": 4},
]


def name(value: object) -> str:
    return str(value).replace(" ", "")


def spread(model: nn.Module) -> nn.Module:
    """Parameters away from their defaults, so that each of them counts."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=g))
    return model.double()


def some_ids(batch: int, n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (batch, n), generator=torch.Generator().manual_seed(seed))


def moved_rows(model: Any, ids: Tensor, place: int, **options: Any) -> list[int]:
    """Positions whose output changes when one token does."""
    other = ids.clone()
    other[:, place] = (other[:, place] + 1) % VOCAB
    with torch.no_grad():
        difference = (model(ids, **options) - model(other, **options)).abs().amax((0, 2))
    return [index for index, value in enumerate(difference.tolist()) if value > 0]


@pytest.mark.parametrize("positions", POSITIONS, ids=name)
def test_a_decoder_never_sees_the_future(positions: Any) -> None:
    model = spread(Decoder(replace(CONFIG, positions=positions)))
    for place in (0, 3, N - 1):
        assert moved_rows(model, some_ids(2, N), place) == list(range(place, N))


@pytest.mark.parametrize("positions", POSITIONS, ids=name)
def test_in_an_encoder_every_token_reads_every_other(positions: Any) -> None:
    model = spread(Encoder(replace(CONFIG, positions=positions)))
    assert moved_rows(model, some_ids(2, N), 3) == list(range(N))


@pytest.mark.parametrize("positions", POSITIONS, ids=name)
@pytest.mark.parametrize("chunks", [(1,) * N, (3, 1, 1, 2), (N,)], ids=name)
@torch.no_grad()
def test_a_decoder_with_a_cache_computes_what_it_does_without(
    positions: Any, chunks: tuple[int, ...]
) -> None:
    model = spread(Decoder(replace(CONFIG, positions=positions)))
    ids = some_ids(2, N)
    cache = model.cache(2, N)
    parts = [model(part, cache=cache) for part in ids.split(list(chunks), dim=1)]
    # float64, three layers: rounding only.
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=1e-11, atol=1e-11)
    assert cache.length == N


@pytest.mark.parametrize("positions", POSITIONS, ids=name)
@torch.no_grad()
def test_padding_on_the_left_changes_no_logits(positions: Any) -> None:
    model = spread(Decoder(replace(CONFIG, positions=positions)))
    ids = some_ids(1, N)
    padded = torch.cat([torch.full((1, 4), 9), ids], dim=1)
    real = torch.tensor([[False] * 4 + [True] * N])
    alone = model(ids)
    torch.testing.assert_close(model(padded, real=real)[:, 4:], alone, rtol=1e-11, atol=1e-11)
    # ... and with a cache, one token at a time after the padding and two tokens.
    cache = model.cache(1, N + 4)
    parts = [model(padded[:, :6], real=real[:, :6], cache=cache)[:, 4:]]
    for end in range(7, N + 5):
        parts.append(model(padded[:, end - 1 : end], real=real[:, :end], cache=cache))
    torch.testing.assert_close(torch.cat(parts, 1), alone, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", FORMS, ids=name)
@torch.no_grad()
def test_padding_on_the_right_changes_no_hidden_states(form: dict[str, Any]) -> None:
    model = spread(Encoder(replace(CONFIG, **form)))
    ids = some_ids(1, N)
    padded = torch.cat([ids, torch.full((1, 4), 9)], dim=1)
    real = torch.tensor([[True] * N + [False] * 4])
    torch.testing.assert_close(model(padded, real=real)[:, :N], model(ids), rtol=1e-11, atol=1e-11)
    assert not torch.allclose(model(padded)[:, :N], model(ids))


@pytest.mark.parametrize("form", FORMS, ids=name)
@torch.no_grad()
def test_streams_and_weights_that_are_read_are_those_of_the_forward_pass(
    form: dict[str, Any],
) -> None:
    config = replace(CONFIG, **form)
    for kind in (Encoder, Decoder):
        model: Any = spread(kind(config))
        ids = some_ids(2, N)
        with watch(model, read=["embedded", "*.stream", "*.weights"]) as seen:
            out = model(ids)
        torch.testing.assert_close(out, model(ids), rtol=1e-11, atol=1e-11)
        streams = [seen["embedded"], *(seen[f"blocks.{i}.stream"] for i in range(3))]
        for index in range(3):
            weights = seen[f"blocks.{index}.attention.weights"]
            assert weights.shape == (2, 6, N, N)
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6, N).double())
            assert not torch.equal(streams[index], streams[index + 1])
        last = streams[-1] if model.final_norm is None else model.final_norm(streams[-1])
        made = model.head(last) if kind is Decoder else last
        torch.testing.assert_close(made, out, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", FORMS, ids=name)
def test_parameters_are_counted_exactly(form: dict[str, Any]) -> None:
    config = replace(CONFIG, **form)
    for kind, model in (
        ("encoder", Encoder(config)),
        ("decoder", Decoder(config)),
        ("encoder-decoder", EncoderDecoder(config)),
    ):
        assert parameter_count(config, kind=kind) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("positions", POSITIONS, ids=name)
def test_parameters_of_positions_are_counted(positions: Any) -> None:
    config = replace(CONFIG, positions=positions)
    for kind, model in (
        ("encoder", Encoder(config)),
        ("decoder", Decoder(config)),
        ("encoder-decoder", EncoderDecoder(config)),
    ):
        assert parameter_count(config, kind=kind) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("form", FORMS, ids=name)
def test_every_parameter_gets_a_gradient(form: dict[str, Any]) -> None:
    config = replace(CONFIG, **form)
    ids = some_ids(2, N)
    encoder, decoder, pair = Encoder(config), Decoder(config), EncoderDecoder(config)
    segments = ids % 2 if config.segments else None
    losses = [
        (encoder, lambda: encoder(ids, segments=segments).square().sum()),
        (decoder, lambda: decoder(ids).square().sum()),
        (pair, lambda: pair(ids, ids[:, :5]).square().sum()),
    ]
    for model, loss in losses:
        loss().backward()
        lost = [key for key, value in model.named_parameters() if value.grad is None]
        assert lost == []


@torch.no_grad()
def test_the_target_reads_the_whole_source_and_its_own_past() -> None:
    model = spread(EncoderDecoder(replace(CONFIG, positions=Learned())))
    source, target = some_ids(2, M), some_ids(2, N, seed=1)
    assert moved_rows(lambda ids: model(ids, target), source, M - 1) == list(range(N))
    assert moved_rows(lambda ids: model(source, ids), target, 3) == list(range(3, N))
    real = torch.ones(2, M, dtype=torch.bool)
    real[:, -2:] = False
    hidden = moved_rows(lambda ids: model(ids, target, source_real=real), source, M - 1)
    assert hidden == []


@torch.no_grad()
def test_an_encoder_decoder_with_caches_computes_what_it_does_without() -> None:
    model = spread(EncoderDecoder(replace(CONFIG, positions=Learned())))
    source, target = some_ids(2, M), some_ids(2, N, seed=1)
    memory = model.encode(source)
    caches = model.cache(2, N, source=M)
    parts = [model.decode(part, memory, cache=caches) for part in target.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(source, target), rtol=1e-11, atol=1e-11)
    assert (caches[0].length, caches[1].length) == (N, M)


@torch.no_grad()
def test_a_further_mask_narrows_what_a_decoder_reads() -> None:
    model = spread(Decoder(replace(CONFIG, layers=1)))
    ids = some_ids(2, N)
    assert moved_rows(model, ids, 2, mask=sliding_window(2)) == [2, 3]
    dense = sliding_window(2).dense(N, N)
    torch.testing.assert_close(model(ids, mask=dense), model(ids, mask=sliding_window(2)))


@torch.no_grad()
def test_a_further_mask_means_the_same_with_a_cache() -> None:
    model = spread(Decoder(CONFIG))
    ids = some_ids(2, N)
    cache = model.cache(2, N)
    parts = []
    for part in ids.split([3, 1, 1, 2], dim=1):
        parts.append(model(part, cache=cache, mask=sliding_window(2)))
    whole = model(ids, mask=sliding_window(2))
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-11, atol=1e-11)


def test_last_gives_the_last_logits_only() -> None:
    model = spread(Decoder(CONFIG))
    ids = some_ids(2, N)
    torch.testing.assert_close(model(ids, last=2), model(ids)[:, -2:], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.head(model.hidden(ids)), model(ids))


@pytest.mark.parametrize("norm_place", ["pre", "post"])
def test_a_block_is_its_formula(norm_place: Any) -> None:
    block = spread(Block(replace(CONFIG, norm_place=norm_place), cross=True))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, N, 12, generator=g, dtype=torch.float64)
    c = torch.randn(2, M, 12, generator=g, dtype=torch.float64)
    y = x
    for norm, layer in (
        (block.attention_norm, block.attention),
        (block.cross_norm, lambda z: block.cross(z, c)),
        (block.feed_forward_norm, block.feed_forward),
    ):
        y = y + layer(norm(y)) if norm_place == "pre" else norm(y + layer(y))
    torch.testing.assert_close(block(x, c), y, rtol=1e-12, atol=1e-12)


def test_models_run_on_meta_and_leave_inputs_alone() -> None:
    for positions in POSITIONS:
        config = replace(CONFIG, positions=positions)
        ids = some_ids(2, N)
        before = ids.clone()
        Decoder(config)(ids)
        EncoderDecoder(config)(ids, ids)
        assert torch.equal(ids, before)
        with torch.device("meta"):
            encoder, decoder, pair = Encoder(config), Decoder(config), EncoderDecoder(config)
            real = torch.ones(2, N, dtype=torch.bool)
            places = torch.zeros(2, N, dtype=torch.long)
        assert encoder(places, real=real).device.type == "meta"
        assert decoder(places, real=real).shape == (2, N, VOCAB)
        assert decoder(places, cache=decoder.cache(2, N)).shape == (2, N, VOCAB)
        assert pair(places, places, source_real=real).shape == (2, N, VOCAB)


def test_half_precision_stays_finite_and_keeps_its_dtype() -> None:
    for positions, dtype in itertools.product(POSITIONS, (torch.float16, torch.bfloat16)):
        model = Decoder(replace(CONFIG, positions=positions)).to(dtype)
        real = torch.tensor([[False] * 3 + [True] * 4, [True] * 7])
        logits = model(some_ids(2, N), real=real)
        assert logits.dtype == dtype
        assert bool(logits.isfinite().all())


def test_one_description_is_one_set_of_weights() -> None:
    """The same state fits models of one configuration, and of no other width."""
    first, second = Decoder(CONFIG), Decoder(CONFIG)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(first(some_ids(2, N)), second(some_ids(2, N)))
    with pytest.raises(RuntimeError, match="size mismatch"):
        Decoder(replace(CONFIG, ff_dim=37)).load_state_dict(first.state_dict())


def test_tied_weights_are_one_parameter() -> None:
    model = Decoder(CONFIG)
    assert model.head.weight is model.tokens.weight
    untied = Decoder(replace(CONFIG, tied=False))
    assert untied.head.weight is not untied.tokens.weight
    pair = EncoderDecoder(CONFIG)
    assert pair.decoder.tokens is pair.encoder.tokens


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    heads=st.sampled_from([1, 2, 3, 6]),
    layers=st.integers(1, 3),
    ff_dim=st.integers(1, 19),
    place=st.sampled_from(["pre", "post"]),
    norm=st.sampled_from(["layer", "rms"]),
    activation=st.sampled_from(["relu", "gelu", "silu", "swiglu", "reglu"]),
    positions=st.sampled_from(POSITIONS),
)
def test_every_configuration_is_causal_and_counted(
    data: st.DataObject,
    heads: int,
    layers: int,
    ff_dim: int,
    place: Any,
    norm: Any,
    activation: str,
    positions: Any,
) -> None:
    divisors = [k for k in range(1, heads + 1) if heads % k == 0]
    config = TransformerConfig(
        vocab=VOCAB,
        dim=12,
        layers=layers,
        heads=heads,
        kv_heads=data.draw(st.sampled_from(divisors)),
        ff_dim=ff_dim,
        context=13,
        norm_place=place,
        norm=norm,
        activation=activation,
        positions=positions,
    )
    model = Decoder(config).double()
    assert parameter_count(config, kind="decoder") == sum(p.numel() for p in model.parameters())
    assert min(moved_rows(model, some_ids(1, 5), 3), default=3) >= 3


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("own_checks")
def test_a_description_is_frozen_and_checked() -> None:
    with pytest.raises(FrozenInstanceError):
        CONFIG.dim = 13  # type: ignore[misc]
    for change, message in (
        ({"layers": 0}, "layers must be 1 or more"),
        ({"kv_heads": 4}, "kv_heads must divide heads, got 4 and 6"),
        ({"dim": 13}, "heads must divide dim, got 6 heads and dim 13"),
        ({"norm": "batch"}, "norm must be one of layer, rms, got 'batch'"),
        ({"norm_place": "mid"}, "norm_place must be one of pre, post, got 'mid'"),
        ({"activation": "tanh"}, "activation must be one of .* got 'tanh'"),
        ({"segments": -1}, "segments must be 0 or more"),
        ({"kv_heads": 0}, "kv_heads must be 1 or more, got 0"),
        ({"kv_heads": -2}, "kv_heads must be 1 or more, got -2"),
        ({"head_dim": 0}, "head_dim must be 1 or more, got 0"),
        ({"norm_eps": float("inf")}, r"norm_eps must lie in \[0\.0, inf\), got inf"),
        ({"dropout": 1.0}, r"dropout must lie in \[0\.0, 1\.0\), got 1\.0"),
        ({"attention_scale": 0.0}, r"attention_scale must lie in \(0\.0, inf\), got 0\.0"),
        ({"logit_scale": -1.0}, r"logit_scale must lie in \(0\.0, inf\), got -1\.0"),
        ({"positions": "rope"}, r"positions must be a description .* got 'rope'"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **change)


@pytest.mark.usefixtures("own_checks")
def test_bad_inputs_get_errors_that_name_the_values() -> None:
    decoder, encoder = Decoder(CONFIG), Encoder(CONFIG)
    ids = some_ids(2, N)
    with pytest.raises(ValueError, match=r"30 tokens are more than the model's context of 29"):
        decoder(some_ids(1, 30))
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 23\), got 23"):
        decoder(torch.full((1, 3), VOCAB))
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 23\), got -1"):
        encoder(torch.full((1, 3), -1))
    with pytest.raises(ValueError, match=r"ids must hold integers, got torch.float32"):
        decoder.run(ids.float())
    with pytest.raises(ValueError, match=r"ids must have shape \(\*, \*\), got \(7,\)"):
        decoder.run(ids[0])
    with pytest.raises(ValueError, match=r"real must have shape \(2, 7\), got \(2, 6\)"):
        decoder.run(ids, real=torch.ones(2, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"real must be boolean, .* got torch\.int64"):
        decoder.run(ids, real=torch.ones(2, 7, dtype=torch.long))
    with pytest.raises(ValueError, match="this model has no segments"):
        encoder(ids, segments=ids % 2)
    segmented = Encoder(replace(CONFIG, segments=2))
    with pytest.raises(ValueError, match=r"segments must lie in \[0, 2\), got 2"):
        segmented(ids, segments=torch.full((2, N), 2))
    with pytest.raises(ValueError, match="mask of shape"):
        decoder(ids, mask=torch.ones(2, 1, N, N + 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask must be Bool"):
        decoder.run(ids, mask=torch.ones(N, N))


@pytest.mark.usefixtures("own_checks")
def test_kinds_of_models_are_known_by_name() -> None:
    kind: Any = "codec"
    with pytest.raises(ValueError, match=r"kind must be encoder, .* got 'codec'"):
        parameter_count(CONFIG, kind=kind)


def test_empty_sequences_and_foreign_caches_are_refused() -> None:
    decoder, ids = Decoder(CONFIG), some_ids(2, N)
    with pytest.raises(ValueError, match="tokens of each sequence must be 1 or more, got 0"):
        decoder(ids[:, :0])
    for layers in (2, 4):
        other = Decoder(replace(CONFIG, layers=layers)).cache(2, N)
        with pytest.raises(ValueError, match=f"cache has {layers} layers, and the model 3"):
            decoder(ids, cache=other)
        assert other.layers[0].length == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_ids_may_be_integers_of_any_width(dtype: torch.dtype) -> None:
    for kind in (Encoder, Decoder):
        model = kind(CONFIG)
        torch.testing.assert_close(model(some_ids(2, N).to(dtype)), model(some_ids(2, N)))


def test_a_full_cache_says_so_and_keeps_what_it_holds() -> None:
    decoder = Decoder(CONFIG)
    cache = decoder.cache(1, 5)
    decoder(some_ids(1, 4), cache=cache)
    with pytest.raises(ValueError, match="holds 4 of at most 5 positions, and 2 more do not fit"):
        decoder(some_ids(1, 2), cache=cache)
    assert cache.length == 4
    decoder(some_ids(1, 1), cache=cache)
    with pytest.raises(ValueError, match="capacity must be from 1 to 29, got 30"):
        decoder.cache(1, 30)
    with pytest.raises(ValueError, match=r"keys for this cache must have shape \(1, 2, 3, 2\)"):
        decoder(some_ids(2, 3), cache=decoder.cache(1, 5))


def test_a_block_wants_a_context_when_and_only_when_it_reads_one() -> None:
    x = torch.ones(1, N, 12)
    with pytest.raises(ValueError, match="this block reads a context"):
        Block(CONFIG, cross=True)(x)
    with pytest.raises(ValueError, match="no cross-attention"):
        Block(CONFIG)(x, x)


@pytest.mark.usefixtures("own_checks")
@torch.no_grad()
def test_embeddings_may_stand_for_ids() -> None:
    config = replace(CONFIG, positions=Learned(), segments=2)
    encoder = spread(Encoder(config))
    ids = some_ids(2, N)
    expected = encoder(ids)
    torch.testing.assert_close(encoder(None, embeddings=encoder.tokens(ids)), expected)
    assert not torch.allclose(encoder(None, embeddings=2 * encoder.tokens(ids)), expected)
    decoder = spread(Decoder(CONFIG))
    torch.testing.assert_close(
        decoder(None, embeddings=decoder.tokens(ids), last=2), decoder(ids, last=2)
    )
    for wrong in ({}, {"embeddings": decoder.tokens(ids)}):
        with pytest.raises(ValueError, match="give ids, or embeddings and None for ids"):
            decoder(ids if wrong else None, **wrong)
    with pytest.raises(ValueError, match="embeddings"):
        decoder(None, embeddings=torch.zeros(2, N, 5, dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("positions", [Learned(offset=2), Sinusoidal(), Rope()], ids=name)
def test_packed_documents_are_read_as_if_alone(positions: Any) -> None:
    model = spread(Decoder(replace(CONFIG, positions=positions)))
    first, second = some_ids(1, 3), some_ids(1, 5) + 1
    packed = torch.cat([first, second], 1) % VOCAB
    which = torch.tensor([[0] * 3 + [1] * 5])
    places = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    both = model(packed, mask=documents(which), positions=places)
    alone = torch.cat([model(packed[:, :3]), model(packed[:, 3:])], 1)
    torch.testing.assert_close(both, alone, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(model(packed, positions=torch.arange(8)), model(packed))
    if not isinstance(positions, Rope):  # which reads differences only
        without = model(packed, mask=documents(which))
        assert not torch.allclose(without, alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "positions", [AlibiBias(), T5Buckets(), Shaw()], ids=lambda p: type(p).__name__
)
def test_positions_are_refused_where_distances_are_counted(positions: Any) -> None:
    model = Decoder(replace(CONFIG, positions=positions))
    with pytest.raises(ValueError, match=f"{type(positions).__name__} counts distances"):
        model(some_ids(1, 3), positions=torch.arange(3))


@pytest.mark.usefixtures("own_checks")
def test_positions_must_fit() -> None:
    model = Decoder(CONFIG)
    with pytest.raises(ValueError, match="positions"):
        model(some_ids(2, 3), positions=torch.arange(4))
    with pytest.raises(ValueError, match="29"):
        model(some_ids(2, 3), positions=torch.tensor([0, 1, 29]))


@pytest.mark.parametrize("norm_place", ["pre", "post"])
def test_dropout_acts_in_training_on_the_embedding_and_on_each_branch(norm_place: Any) -> None:
    p = 0.25
    config = replace(CONFIG, layers=1, dropout=p, norm_place=norm_place)
    plain, model = Decoder(replace(config, dropout=0.0)).double(), Decoder(config).double()
    model.load_state_dict(plain.state_dict())
    ids = some_ids(3, N)
    torch.testing.assert_close(model.eval()(ids), plain(ids))

    dropped: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    for layer in layers:
        layer.register_forward_hook(lambda _, __, out: dropped.append(out))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out = model.train()(ids)
    assert len(dropped) == 3  # embedding, attention, feed-forward
    assert not torch.allclose(out, plain(ids))
    for part in dropped:
        share = float((part == 0).double().mean())
        # A share of 3 * 7 * 12 coins, within five standard errors.
        assert abs(share - p) < 5 * (p * (1 - p) / part.numel()) ** 0.5
    x, attended, fed = dropped
    block = model.blocks[0]
    with torch.no_grad():  # the formula with the branches that were kept
        if norm_place == "pre":
            expected = model.head(model.final_norm(x + attended + fed))
        else:
            middle = block.attention_norm(x + attended)
            expected = model.head(block.feed_forward_norm(middle + fed))
    torch.testing.assert_close(out, expected)


@torch.no_grad()
def test_scales_of_scores_and_logits() -> None:
    ids = some_ids(2, N)
    plain = spread(Decoder(CONFIG))
    scaled = Decoder(replace(CONFIG, attention_scale=0.5 * 2**-0.5, logit_scale=0.25)).double()
    weights = {key: value.clone() for key, value in plain.state_dict().items()}
    for key in weights:
        if key.endswith("attention.qkv.weight") or key.endswith("attention.qkv.bias"):
            weights[key][:12] *= 2.0  # queries twice as large, scores half as much
    scaled.load_state_dict(weights)
    torch.testing.assert_close(scaled(ids), 0.25 * plain(ids), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(scaled.head(scaled.hidden(ids)), scaled(ids))


@torch.no_grad()
def test_hidden_states_of_an_encoder_decoder_are_what_its_head_reads() -> None:
    model = spread(EncoderDecoder(replace(CONFIG, logit_scale=0.5)))
    source, target = some_ids(2, M), some_ids(2, N)
    real = torch.arange(M) < torch.tensor([[M], [5]])
    hidden = model.hidden(source, target, source_real=real)
    expected = model(source, target, source_real=real)
    torch.testing.assert_close(model.decoder.head(hidden), expected)
    assert not torch.allclose(model(source, target), expected)
