"""Other attention, other feed-forward layers, sites and replaced maps: nothing else had to change.

The parts below are toys of what later chapters bring: attention with a recurrent state, within a
window, and over latent vectors; a mixture of experts; one set of weights for all layers.
"""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.core import HasSites, LinearLike, replace_linears, restore_linears, site_names, watch
from companion.models import generate
from companion.pretraining.denoising import UnifiedLM, causal_batch, pad_rows
from companion.transformer.attention import attention, causal, sliding_window
from companion.transformer.block import (
    Block,
    Decoder,
    Encoder,
    EncoderDecoder,
    FeedForward,
    NoPositions,
    PartFactory,
    TransformerConfig,
    branch_outputs,
    initialize_,
)
from companion.transformer.multi_head import MultiHeadAttention, attention_at_sites

VOCAB, N = 23, 11
CONFIG = TransformerConfig(
    vocab=VOCAB, dim=12, layers=3, heads=3, ff_dim=31, context=29, norm="rms"
)
BARE = replace(CONFIG, positions=NoPositions())
# Sums of some tens of products of order 1, through three layers, in float64.
EXACT = {"rtol": 1e-10, "atol": 1e-11}


def spread(model: Any) -> Any:
    """Weights with which attention is far from uniform and no layer is nearly the identity."""
    g = torch.Generator().manual_seed(1)
    return initialize_(model.double().eval(), generator=g, std=0.4, branch_gain=1.0)


def some_ids(*shape: int) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(2))


# --- another attention ----------------------------------------------------------------------------


class State:
    """What linear attention knows of the past: one matrix and one vector a head."""

    def __init__(self, S: Tensor, z: Tensor) -> None:
        self.S, self.z, self.length = S, z, 0

    def truncate(self, length: int) -> None:
        if length not in (0, self.length):
            raise ValueError(f"a state cannot go back to {length}: it is a sum over the past")
        if length == 0:
            self.S, self.z, self.length = self.S * 0, self.z * 0, 0


class LinearAttention(HasSites):
    """y_t = phi(q_t) S_t / phi(q_t) z_t, with S_t the sum of phi(k_j)^T v_j: arXiv:2006.16236."""

    sites = ("heads",)

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.width, self.layer = config.heads, config.head_width, layer
        self.query, self.key, self.value, self.out = (
            nn.Linear(config.dim, config.dim, bias=False) for _ in range(4)
        )

    def make_cache(self, batch: int, capacity: int, **kind: Any) -> State:
        shape = (batch, self.heads, self.width)
        return State(torch.zeros(*shape, self.width, **kind), torch.zeros(*shape, **kind))

    def forward(self, x: Tensor, *, cache: State | None = None, **ignored: Any) -> Tensor:
        batch, n, _ = x.shape
        q, k, v = (
            part(x).view(batch, n, self.heads, self.width).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        q, k = F.elu(q) + 1, F.elu(k) + 1
        S = (k[..., None] * v[..., None, :]).cumsum(2)
        z = k.cumsum(2)
        if cache is not None:
            S, z = S + cache.S[:, :, None], z + cache.z[:, :, None]
            cache.S, cache.z, cache.length = S[:, :, -1], z[:, :, -1], cache.length + n
        y = (q[..., None, :] @ S).squeeze(-2) / (q * z).sum(-1, keepdim=True)
        out: Tensor = self.out(self.site("heads", y).transpose(1, 2).flatten(2))
        return out


class Latest:
    """The keys and values of the latest tokens only."""

    def __init__(self, window: int) -> None:
        self.window, self.length = window, 0
        self.kept: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.length += keys.shape[2]
        if self.kept is not None:
            keys, values = (
                torch.cat([old, new], 2) for old, new in zip(self.kept, (keys, values), strict=True)
            )
        self.kept = (keys[:, :, -self.window :], values[:, :, -self.window :])
        return keys, values

    def held(self) -> tuple[Tensor, Tensor]:
        assert self.kept is not None
        return self.kept

    def truncate(self, length: int) -> None:
        assert length == 0
        self.length, self.kept = 0, None


class WindowedAttention(MultiHeadAttention):
    """Attention to the latest tokens, whose cache does not grow."""

    window = 4

    def make_cache(self, batch: int, capacity: int, **kind: Any) -> Any:
        return Latest(self.window)

    def forward(self, x: Tensor, *inputs: Any, mask: Any = None, **told: Any) -> Tensor:
        # The queries are the last of the keys that the cache returns.
        cache = told.get("cache")
        held = 0 if cache is None else min(cache.length, self.window)
        rule = sliding_window(self.window).shifted(held)
        return super().forward(x, *inputs, mask=rule, **told)


def windowed(config: TransformerConfig, layer: int) -> nn.Module:
    return WindowedAttention(config.dim, config.heads)


class Latent:
    """One vector a token, from which keys and values are made."""

    def __init__(self, memory: Tensor) -> None:
        self.memory, self.length = memory, 0

    def append(self, c: Tensor) -> Tensor:
        self.memory[:, self.length : self.length + c.shape[1]] = c
        self.length += c.shape[1]
        return self.memory[:, : self.length]

    def truncate(self, length: int) -> None:
        self.length = length


class LatentAttention(HasSites):
    """The cache holds c = x W; keys and values are c W_k and c W_v (DeepSeek-V2, without RoPE)."""

    sites = ("scores", "weights", "latent")

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.rank = config.heads, 5
        self.query = nn.Linear(config.dim, config.dim, bias=False)
        self.down = nn.Linear(config.dim, self.rank, bias=False)
        self.key, self.value = (nn.Linear(self.rank, config.dim, bias=False) for _ in range(2))
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def make_cache(self, batch: int, capacity: int, **kind: Any) -> Latent:
        return Latent(torch.zeros(batch, capacity, self.rank, **kind))

    def forward(
        self, x: Tensor, *, mask: Any = None, cache: Latent | None = None, **ignored: Any
    ) -> Tensor:
        c = self.site("latent", self.down(x))
        c = c if cache is None else cache.append(c)
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.query(x), self.key(c), self.value(c))
        )
        y = attention_at_sites(self, q, k, v, mask=mask, scale=0.5)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


KINDS: list[tuple[PartFactory, TransformerConfig]] = [
    (LinearAttention, BARE),
    (windowed, CONFIG),
    (LatentAttention, BARE),
]
NAMES = ["linear", "windowed", "latent"]


@pytest.mark.parametrize(("kind", "config"), KINDS, ids=NAMES)
@torch.no_grad()
def test_another_attention_decodes_with_its_own_cache_as_without(
    kind: PartFactory, config: TransformerConfig
) -> None:
    model, ids = spread(Decoder(config, attention=kind)), some_ids(2, N)
    whole = model(ids)
    assert not torch.allclose(whole, spread(Decoder(config))(ids))
    cache = model.cache(2, N)
    parts = [model(part, cache=cache) for part in ids.split([6, 1, 1, 3], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **EXACT)
    assert cache.length == N
    cache.reset()
    torch.testing.assert_close(model(ids[:, :3], cache=cache), whole[:, :3], **EXACT)
    written = generate(model, ids, tokens=5)
    longer = torch.cat([ids, written], 1)
    assert torch.equal(model(longer)[:, N - 1 : -1].argmax(-1), written)


def test_linear_attention_is_the_mean_of_the_values_it_weighs() -> None:
    """An oracle of the toy: rows of weights phi(q) phi(k)^T over the past, normalized."""
    layer = LinearAttention(BARE, 0).double()
    x = torch.randn(2, N, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    q, k, v = (
        part(x).view(2, N, 3, 4).transpose(1, 2) for part in (layer.query, layer.key, layer.value)
    )
    A = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril()
    y = (A / A.sum(-1, keepdim=True)) @ v
    torch.testing.assert_close(layer(x), layer.out(y.transpose(1, 2).flatten(2)), **EXACT)


@torch.no_grad()
def test_a_window_is_the_mask_of_a_window() -> None:
    model, ids = spread(Decoder(CONFIG, attention=windowed)), some_ids(2, N)
    plain = Decoder(CONFIG).double()
    plain.load_state_dict(model.state_dict(), strict=False)
    for block, other in zip(model.blocks, plain.blocks, strict=True):
        other.attention = MultiHeadAttention(12, 3, dtype=torch.float64)
        other.attention.load_state_dict(block.attention.state_dict())
    torch.testing.assert_close(model(ids), plain(ids, mask=sliding_window(4)), **EXACT)


def test_a_cache_of_latent_vectors_holds_so_many_numbers() -> None:
    cache = Decoder(BARE, attention=LatentAttention).cache(2, 7)
    assert [layer.memory.shape for layer in cache.layers] == [(2, 7, 5)] * 3
    linear = Decoder(BARE, attention=LinearAttention)
    state = linear.cache(1, 5)
    linear(some_ids(1, 3), cache=state)
    with pytest.raises(ValueError, match="a state cannot go back to 2"):
        state.truncate(2)


def test_an_attention_without_a_cache_says_so() -> None:
    model = Decoder(CONFIG, attention=lambda config, layer: nn.Identity())
    with pytest.raises(ValueError, match="Identity has no method make_cache"):
        model.cache(1, 5)


def test_a_factory_is_told_the_description_and_the_layer() -> None:
    told: list[tuple[TransformerConfig, int]] = []

    def part(config: TransformerConfig, layer: int) -> nn.Module:
        told.append((config, layer))
        return FeedForward(config.dim, 5 + layer)

    model = Encoder(CONFIG, feed_forward=part)
    assert told == [(CONFIG, 0), (CONFIG, 1), (CONFIG, 2)]
    assert [block.feed_forward.up.out_features for block in model.blocks] == [5, 6, 7]
    told.clear()
    Block(CONFIG, feed_forward=part, layer=4)
    assert told == [(CONFIG, 4)]


@torch.no_grad()
def test_each_side_of_a_pair_has_its_own_parts_and_caches() -> None:
    pair = EncoderDecoder(BARE, decoder_attention=LatentAttention, feed_forward=experts)
    assert isinstance(pair.encoder.blocks[0].attention, MultiHeadAttention)
    assert isinstance(pair.decoder.blocks[0].attention, LatentAttention)
    assert isinstance(pair.encoder.blocks[0].feed_forward, Experts)
    assert isinstance(pair.decoder.blocks[0].feed_forward, FeedForward)
    pair = spread(pair)
    source, target = some_ids(2, 7), some_ids(2, 5)
    memory, cache = pair.encode(source), pair.cache(2, 5, source=7)
    parts = [pair.decode(part, memory, cache=cache) for part in target.split([2, 1, 2], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), pair(source, target), **EXACT)


# --- another feed-forward layer -------------------------------------------------------------------


class Experts(HasSites):
    """Two feed-forward layers, of which each token takes the one that its router prefers."""

    sites = ("routing",)

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.router = nn.Linear(config.dim, 2, bias=False)
        self.experts = nn.ModuleList(FeedForward(config.dim, config.ff_dim) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        share = self.site("routing", self.router(x).softmax(-1))
        best = share.argmax(-1, keepdim=True)
        both = torch.stack([expert(x) for expert in self.experts], -2)
        chosen = both.gather(-2, best[..., None].expand(*best.shape, x.shape[-1])).squeeze(-2)
        return share.gather(-1, best) * chosen


def experts(config: TransformerConfig, layer: int) -> nn.Module:
    return Experts(config)


def balance(share: Tensor) -> Tensor:
    """Switch Transformer, arXiv:2101.03961, eq. 4: 1 where both experts get the same."""
    load = F.one_hot(share.argmax(-1), 2).to(share.dtype).mean((0, 1))
    return 2 * (load * share.mean((0, 1))).sum()


def test_a_mixture_of_experts_is_trained_with_a_loss_of_its_routing() -> None:
    model, ids = spread(Decoder(CONFIG, feed_forward=experts)), some_ids(3, N)
    with watch(model, read=["*.routing"]) as seen:
        logits = model(ids)
    assert list(seen) == [f"blocks.{layer}.feed_forward.routing" for layer in range(3)]
    loss = sum(balance(share) for share in seen.values())
    routers = [block.feed_forward.router.weight for block in model.blocks]
    gradients = torch.autograd.grad(loss, routers, retain_graph=True)
    assert all(bool(gradient.abs().max() > 1e-4) for gradient in gradients)
    # Descent on the balance alone evens out the load.
    optimizer = torch.optim.SGD(routers, lr=0.3)
    before = loss.item()
    for _ in range(30):
        with watch(model, read=["*.routing"]) as seen:
            model(ids)
        loss = sum(balance(share) for share in seen.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < before - 0.05
    assert torch.isfinite(logits).all()


def test_experts_are_initialized_as_what_they_are() -> None:
    config = replace(CONFIG, dim=48, heads=3, ff_dim=193)
    model = Decoder(config, feed_forward=experts)
    assert len(branch_outputs(model)) == 3 * (1 + 2)
    initialize_(model, generator=torch.Generator().manual_seed(0), std=0.1)
    expert = model.blocks[1].feed_forward.experts[1]
    # 9,264 draws each: the deviation is known to 0.7 %, 5 standard errors are 4 %.
    assert expert.up.weight.std().item() == pytest.approx(0.1, rel=0.04)
    assert expert.down.weight.std().item() == pytest.approx(0.1 / 3, rel=0.04)


# --- one set of weights for all layers ------------------------------------------------------------


def shared() -> tuple[PartFactory, PartFactory]:
    """Factories that make one module each, for all layers: ALBERT, arXiv:1909.11942."""
    made: dict[str, nn.Module] = {}

    def attend(config: TransformerConfig, layer: int) -> nn.Module:
        return made.setdefault("attention", MultiHeadAttention(config.dim, config.heads))

    def feed(config: TransformerConfig, layer: int) -> nn.Module:
        return made.setdefault("feed", FeedForward(config.dim, config.ff_dim))

    return attend, feed


def albert() -> Decoder:
    attend, feed = shared()
    return Decoder(CONFIG, attention=attend, feed_forward=feed)


@torch.no_grad()
def test_layers_that_share_their_weights_count_them_once_and_load_them() -> None:
    model, other = spread(albert()), albert().double()
    ids, norms, layers = some_ids(2, N), 2 * 3 + 1, 1
    each = 4 * 12 * 12 + (2 * 12 * 31 + 31 + 12)
    assert sum(p.numel() for p in model.parameters()) == layers * each + norms * 12 + VOCAB * 12
    state = model.state_dict()
    assert "blocks.2.attention.qkv.weight" in state
    other.load_state_dict(state)
    assert torch.equal(other(ids), model(ids))
    cache = model.cache(2, N)  # each layer has its own
    parts = [model(part, cache=cache) for part in ids.split([6, 1, 4], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), **EXACT)


@torch.no_grad()
def test_the_sites_of_shared_layers_are_told_apart() -> None:
    model, ids = spread(albert()), some_ids(2, N)
    apart = spread(Decoder(CONFIG, attention=lambda c, i: MultiHeadAttention(c.dim, c.heads)))
    apart.load_state_dict(model.state_dict())
    name = "blocks.1.attention.weights"
    uniform = torch.ones(N, N, dtype=torch.float64).tril()
    uniform = (uniform / uniform.sum(-1, keepdim=True)).expand(2, 3, N, N)
    for change in ({}, {name: uniform}):
        reads = ["*.weights", "*.hidden", "*.stream"]
        with watch(model, read=reads, replace=change) as seen:
            one = model(ids)
        with watch(apart, read=reads, replace=change) as expected:
            torch.testing.assert_close(apart(ids), one, **EXACT)
        assert list(seen) == list(expected)
        for key, value in expected.items():
            torch.testing.assert_close(seen[key], value, **EXACT)


# --- sites of the usual parts ---------------------------------------------------------------------


def test_the_sites_of_a_decoder() -> None:
    model = Decoder(replace(CONFIG, layers=1))
    block = ("attention_in", "attention_out", "middle", "feed_forward_in", "feed_forward_out")
    assert site_names(model) == (
        *("embedded", "final", "logits"),
        *(f"blocks.0.{name}" for name in (*block, "stream")),
        *(f"blocks.0.attention.{name}" for name in ("queries", "keys", "values")),
        *(f"blocks.0.attention.{name}" for name in ("scores", "weights", "heads")),
        "blocks.0.feed_forward.hidden",
    )
    pair = EncoderDecoder(replace(CONFIG, layers=1))
    assert {"decoder.blocks.0.cross_in", "decoder.blocks.0.cross.weights"} <= set(site_names(pair))


@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@torch.no_grad()
def test_every_site_is_visited_and_what_it_holds_fits_together(place: str, activation: str) -> None:
    config = replace(CONFIG, norm_place=place, activation=activation, logit_scale=0.5)
    pair, source, target = spread(EncoderDecoder(config)), some_ids(2, 7), some_ids(2, N)
    with watch(pair, read=["*"]) as seen:
        out = pair(source, target)
    assert list(seen) == [name for name in site_names(pair) if name != "encoder.logits"]
    assert torch.equal(seen["decoder.logits"], out)
    for side, blocks in (("encoder", pair.encoder.blocks), ("decoder", pair.decoder.blocks)):
        stream = seen[f"{side}.embedded"]
        for index, block in enumerate(blocks):
            at = {
                name.removeprefix(f"{side}.blocks.{index}."): value
                for name, value in seen.items()
                if name.startswith(f"{side}.blocks.{index}.")
            }
            for part in ("attention", "cross") if side == "decoder" else ("attention",):
                read, heads = at[f"{part}_in"], at[f"{part}.heads"]
                norm = getattr(block, f"{part}_norm")
                torch.testing.assert_close(read, norm(stream) if place == "pre" else stream)
                A, S, V = (at[f"{part}.{name}"] for name in ("weights", "scores", "values"))
                torch.testing.assert_close(A, S.softmax(-1), **EXACT)
                torch.testing.assert_close(heads, A @ V, **EXACT)
                Q, K = at[f"{part}.queries"], at[f"{part}.keys"]
                open_ = -torch.inf < S
                torch.testing.assert_close(S[open_], (0.5 * Q @ K.mT)[open_], **EXACT)
                y = at[f"{part}_out"]
                made = getattr(block, part).out(heads.transpose(1, 2).flatten(2))
                torch.testing.assert_close(y, made, **EXACT)
                stream = stream + y if place == "pre" else norm(stream + y)
            torch.testing.assert_close(at["middle"], stream, **EXACT)
            fed = block.feed_forward.down(at["feed_forward.hidden"])
            torch.testing.assert_close(at["feed_forward_out"], fed, **EXACT)
            norm = block.feed_forward_norm
            stream = stream + fed if place == "pre" else norm(stream + fed)
            torch.testing.assert_close(at["stream"], stream, **EXACT)
            stream = at["stream"]


@torch.no_grad()
def test_a_steered_stream_steers_what_is_written_with_and_without_a_cache() -> None:
    model, ids = spread(Decoder(CONFIG)), some_ids(2, N)
    g = torch.Generator().manual_seed(4)
    arrow = 3 * torch.randn(12, generator=g, dtype=torch.float64)
    plain = model(ids)
    with watch(model, replace={"blocks.1.stream": lambda x: x + arrow}):
        steered = model(ids)
        cache = model.cache(2, N)
        parts = [model(part, cache=cache) for part in ids.split([6, 1, 4], 1)]
        written = generate(model, ids, tokens=5)
    assert not torch.allclose(steered, plain, atol=0.1)
    torch.testing.assert_close(torch.cat(parts, 1), steered, **EXACT)
    # The same by hand: the last map of the layer gets a bias more.
    other = copy.deepcopy(model)
    other.blocks[1].feed_forward.down.bias += arrow
    torch.testing.assert_close(other(ids), steered, **EXACT)
    assert torch.equal(generate(other, ids, tokens=5), written)
    assert torch.equal(model(ids), plain)


@torch.no_grad()
def test_an_activation_of_one_text_can_be_patched_into_another() -> None:
    model, clean, other = spread(Decoder(CONFIG)), some_ids(1, N), some_ids(2, N)[1:]
    with watch(model, read=["blocks.0.stream"]) as seen:
        expected = model(clean)
    with watch(model, replace={"blocks.0.stream": seen["blocks.0.stream"]}):
        torch.testing.assert_close(model(other), expected, **EXACT)


@torch.no_grad()
def test_weights_that_are_read_are_computed_in_the_asked_layer_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, ids = spread(Decoder(CONFIG)), some_ids(2, N)
    calls = []

    def fused(*inputs: Any, **options: Any) -> Tensor:
        calls.append(options)
        return attention(*inputs, **options)

    monkeypatch.setattr("companion.transformer.multi_head._attention.attention", fused)
    model(ids)
    assert len(calls) == 3
    calls.clear()
    with watch(model, read=["blocks.1.attention.weights", "*.queries", "*.stream"]):
        model(ids)
    assert len(calls) == 2


@torch.no_grad()
def test_weights_during_generation_cover_what_the_cache_holds() -> None:
    model, ids, shapes = spread(Decoder(CONFIG)), some_ids(2, N), []
    name = "blocks.2.attention.weights"
    with watch(model, replace={name: lambda A: shapes.append(tuple(A.shape))}):
        generate(model, ids, tokens=3)
    assert shapes == [(2, 3, N, N), (2, 3, 1, N + 1), (2, 3, 1, N + 2)]


def test_a_watched_model_runs_on_meta_and_in_half_precision() -> None:
    with torch.device("meta"):
        model, ids = Decoder(CONFIG), torch.zeros(2, N, dtype=torch.long)
        with watch(model, read=["*"], replace={"*.weights": lambda A: A.mT.mT}) as seen:
            model(ids)
    assert {value.device.type for value in seen.values()} == {"meta"}
    half, ids = Decoder(CONFIG).bfloat16(), some_ids(2, N)
    with watch(half, read=["*.weights", "*.scores", "*.heads"]) as seen:
        out = half(ids)
    assert out.dtype == seen["blocks.0.attention.heads"].dtype == torch.bfloat16
    assert seen["blocks.0.attention.weights"].dtype == torch.bfloat16
    assert seen["blocks.0.attention.scores"].dtype == torch.float32


# --- replaced maps --------------------------------------------------------------------------------


class LowRank(LinearLike):
    """A matrix in two factors, cut off behind some of its singular values."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        U, S, Vh = torch.linalg.svd(linear.weight.detach(), full_matrices=False)
        self.left, self.right = nn.Parameter(U[:, :rank] * S[:rank]), nn.Parameter(Vh[:rank])
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        return self.left @ self.right

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.right), self.left, self.bias)


@torch.no_grad()
def test_maps_in_factors_of_full_rank_compute_the_same_and_can_be_taken_back() -> None:
    model, ids = spread(EncoderDecoder(CONFIG)), some_ids(2, N)
    plain, names = model(ids, ids[:, :5]), set(model.state_dict())
    targets = ["query", "out", "*.up", "down", "head"]
    old = replace_linears(model, targets, lambda linear, place: LowRank(linear, 12))
    assert len(old) == 3 * (2 + 2) + 3 * (2 + 2 + 2) + 1
    assert not model.config.tied  # the head has weights of its own now
    torch.testing.assert_close(model(ids, ids[:, :5]), plain, **EXACT)  # cross-attention, too
    restore_linears(model, old)
    assert torch.equal(model(ids, ids[:, :5]), plain)
    assert set(model.state_dict()) == names
    fresh = EncoderDecoder(model.config).double()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(ids, ids[:, :5]), plain, **EXACT)
    replace_linears(model, ["query"], lambda linear, place: LowRank(linear, 1))
    assert not torch.allclose(model(ids, ids[:, :5]), plain, atol=1e-2)


@pytest.mark.parametrize("kind", [Decoder, UnifiedLM])
@torch.no_grad()
def test_untying_keeps_what_a_model_computes_and_says_so(kind: Any) -> None:
    model = spread(kind(CONFIG))
    ids = some_ids(2, N)
    given = ids if kind is Decoder else causal_batch(pad_rows(ids.tolist()))
    plain = model(given)
    model.untie()
    model.untie()  # once is enough
    assert torch.equal(model(given), plain)
    assert not model.config.tied
    table = model.tokens if kind is Decoder else model.encoder.tokens
    assert model.head.weight is not table.weight
    model.head.weight += 1
    again = kind(model.config).double()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(given), model(given))
    assert not torch.allclose(model(given), plain)


@torch.no_grad()
def test_a_layer_with_replaced_maps_keeps_its_heads() -> None:
    layer = MultiHeadAttention(12, 3)
    replace_linears(layer, ["key"], lambda linear, place: LowRank(linear, 2))
    with pytest.raises(ValueError, match=r"whose maps were replaced, .* cannot be taken out"):
        layer.keep_heads([0])
    x = torch.randn(2, 5, 12)
    with watch(layer, read=["heads"]) as seen:
        layer(x, mask=causal())
    assert seen["heads"].shape == (2, 3, 5, 4)
