"""The layers in the place of usual attention: leaks, padding, caches, SmolLM2 in a window."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from companion.efficiency.sparse_attention import (
    BlockSparseAttention,
    GatedDeltaNet,
    LinearAttention,
    Linformer,
    LSHAttention,
    Performer,
    WindowAttention,
    strided_layout,
)
from companion.models import generate, smollm2
from companion.transformer.attention import Mask, causal, documents, streaming_mask
from companion.transformer.block import Decoder, Encoder, TransformerConfig, initialize_
from companion.transformer.multi_head import MultiHeadAttention

VOCAB, N = 23, 17
CONFIG = TransformerConfig(
    vocab=VOCAB, dim=12, layers=3, heads=3, ff_dim=31, context=59, norm="rms"
)
GROUPED = replace(CONFIG, dim=24, heads=6, kv_heads=2)
# Sums of some tens of products of order 1, through three layers, in float64.
EXACT = {"rtol": 1e-9, "atol": 1e-10}


def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(5)


CAUSAL: dict[str, Any] = {
    "window": WindowAttention.factory(before=3),
    "sinks": WindowAttention.factory(before=3, sinks=2),
    "dilated": WindowAttention.factory(before=2, dilation=3),
    "linear": LinearAttention.factory(),
    "retention": LinearAttention.factory(retention=True),
    "delta": GatedDeltaNet.factory(),
    "delta without decay": GatedDeltaNet.factory(decay=False),
    "blocks": BlockSparseAttention.factory(layout=strided_layout(20, 2), block=3),
    "hashing": LSHAttention.factory(rounds=2, n_buckets=4, chunk=4, generator=drawn()),
    "features": Performer.factory(features=11, generator=drawn()),
}
CACHED = ("window", "sinks", "dilated", "linear", "retention", "delta", "delta without decay")
# Where padding stands on the left, sinks and blocks hold other tokens: not these two.
SHIFTED = ("sinks", "blocks")


def spread(model: Any) -> Any:
    """Weights with which attention is far from uniform and no layer is nearly the identity."""
    return initialize_(model.double().eval(), generator=drawn(), std=0.4, branch_gain=1.0)


def some_ids() -> Tensor:
    return torch.randint(VOCAB, (2, N), generator=drawn())


@pytest.mark.parametrize("config", [CONFIG, GROUPED], ids=["heads", "groups"])
@pytest.mark.parametrize("kind", CAUSAL)
@torch.no_grad()
def test_no_output_depends_on_later_tokens(kind: str, config: TransformerConfig) -> None:
    model, ids = spread(Decoder(config, attention=CAUSAL[kind])), some_ids()
    whole = model(ids)
    for t in (1, 6, 9, 16):
        changed = ids.clone()
        changed[:, t:] = (changed[:, t:] + 1) % VOCAB
        found = model(changed)
        torch.testing.assert_close(found[:, :t], whole[:, :t], **EXACT)
        assert (found[:, t] - whole[:, t]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", CAUSAL)
def test_no_gradient_comes_from_later_tokens(kind: str) -> None:
    model = spread(Decoder(CONFIG, attention=CAUSAL[kind]))
    x = model.tokens(some_ids()).detach().requires_grad_()
    logits = model(None, embeddings=x)
    (gradient,) = torch.autograd.grad(logits[:, 8].square().sum(), x)
    assert (gradient[:, 9:] == 0).all()
    assert gradient[:, 8].abs().max() > 0


@pytest.mark.parametrize("kind", [kind for kind in CAUSAL if kind not in SHIFTED])
@torch.no_grad()
def test_padding_changes_nothing(kind: str) -> None:
    model, ids = spread(Decoder(CONFIG, attention=CAUSAL[kind])), some_ids()
    real = torch.ones(2, N, dtype=torch.bool)
    real[0, :4] = False
    found = model(ids, real=real)[0, 4:]
    torch.testing.assert_close(found, model(ids[:1, 4:])[0], **EXACT)
    alone = model(ids[:1], real=real[:1])[0, 4:]
    torch.testing.assert_close(alone, found, **EXACT)


@pytest.mark.parametrize(
    "kind",
    [
        Linformer.factory(length=N, rank=3),
        CAUSAL["hashing"],
        CAUSAL["features"],
        CAUSAL["blocks"],
        WindowAttention.factory(before=3, after=2, sinks=2),
    ],
    ids=["linformer", "hashing", "features", "blocks", "window"],
)
@torch.no_grad()
def test_padding_on_the_right_changes_no_encoder(kind: Any) -> None:
    model, ids = spread(Encoder(CONFIG, attention=kind)), some_ids()
    real = torch.ones(2, N, dtype=torch.bool)
    real[0, -4:] = False
    found = model(ids, real=real)[0, : N - 4]
    torch.testing.assert_close(found, model(ids[:1, : N - 4])[0], **EXACT)


@pytest.mark.parametrize("kind", CACHED)
@torch.no_grad()
def test_decoding_with_a_cache_is_reading_at_once(kind: str) -> None:
    for config in (CONFIG, GROUPED):
        model, ids = spread(Decoder(config, attention=CAUSAL[kind])), some_ids()
        whole = model(ids)
        cache = model.cache(2, N)
        parts = [model(part, cache=cache) for part in ids.split([6, 1, 1, 5, 4], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, **EXACT)
        cache.reset()
        torch.testing.assert_close(model(ids[:, :3], cache=cache), whole[:, :3], **EXACT)
        with pytest.raises(ValueError, match="cannot go back to 2"):
            cache.truncate(2)
    written = generate(model, ids, tokens=5)
    longer = torch.cat([ids, written], 1)
    assert torch.equal(model(longer)[:, N - 1 : -1].argmax(-1), written)


@pytest.mark.parametrize("kind", CACHED)
@torch.no_grad()
def test_a_text_may_begin_with_one_token(kind: str) -> None:
    # Models give no mask to a single token.
    model, first = spread(Decoder(CONFIG, attention=CAUSAL[kind])), some_ids()[:, :1]
    written = generate(model, first, tokens=5)
    longer = torch.cat([first, written], 1)
    assert torch.equal(model(longer)[:, :-1].argmax(-1), written)


@torch.no_grad()
def test_what_a_window_holds_does_not_grow() -> None:
    model, ids = spread(Decoder(CONFIG, attention=CAUSAL["sinks"])), some_ids()
    cache = model.cache(2, 59)
    for token in ids.repeat(1, 3).split(1, 1):
        model(token, cache=cache)
    assert cache.layers[0].keys.shape == (2, 3, 2 + 3, 4)
    assert cache.layers[0].length == 51


@torch.no_grad()
def test_smollm2_in_a_window_is_smollm2_under_the_mask() -> None:
    lm = smollm2()
    windowed = Decoder(lm.model.config, attention=WindowAttention.factory(before=15, sinks=3))
    windowed.load_state_dict(lm.model.state_dict())
    ids = torch.tensor([[0, *lm.tokenizer.encode("The moon is far away. " * 8).ids]])
    mask = streaming_mask(sinks=3, window=16)
    expected = lm.model(ids, mask=mask)
    # Thirty layers in float32.
    torch.testing.assert_close(windowed(ids), expected, rtol=1e-3, atol=1e-3)
    assert (lm.model(ids) - expected).abs().max() > 0.1


def test_sharing_of_linformer_counts_its_parameters() -> None:
    def count(sharing: str) -> int:
        layer = Linformer(12, 3, length=7, rank=2, sharing=sharing)
        plain = MultiHeadAttention(12, 3)
        return sum(p.numel() for p in layer.parameters()) - sum(
            p.numel() for p in plain.parameters()
        )

    assert [count(s) for s in ("key_value", "heads", "none")] == [14, 28, 84]


def test_a_layer_that_cannot_says_so() -> None:
    x = torch.ones(2, N, 12)
    with pytest.raises(ValueError, match="Linformer cannot be causal"):
        Linformer(12, 3, length=N, rank=2)(x, mask=causal())
    with pytest.raises(ValueError, match="mixes 5 tokens at most, got 17"):
        Linformer(12, 3, length=5, rank=2)(x)
    with pytest.raises(ValueError, match="sharing must be"):
        Linformer(12, 3, length=5, rank=2, sharing="all")
    with pytest.raises(ValueError, match="LinearAttention reads the past only"):
        LinearAttention(12, 3)(x)
    rule = causal() & documents((torch.arange(N) // 5).expand(2, -1))
    with pytest.raises(ValueError, match="GatedDeltaNet takes a causal mask and padding only"):
        GatedDeltaNet(12, 3)(x, mask=rule)
    with pytest.raises(ValueError, match="WindowAttention does not take a bias"):
        WindowAttention(12, 3, before=2)(x, bias=torch.zeros(N, N))
    by_head = Mask(lambda b, h, i, j: (j <= i) & ((h == 0) | (j > i - 2)), outer=causal().outer)
    with pytest.raises(ValueError, match="LinearAttention takes a causal mask and padding only"):
        LinearAttention(12, 3)(x, mask=by_head)
    with pytest.raises(ValueError, match="WindowAttention has no dropout of weights"):
        WindowAttention(12, 3, before=2, dropout=0.1)
    with pytest.raises(ValueError, match="LinearAttention has no relative positions"):
        LinearAttention(12, 3, relative=lambda Q, i, j: Q)
    with pytest.raises(ValueError, match="heads of WindowAttention cannot be taken out"):
        WindowAttention(12, 3, before=2).keep_heads([0, 2])
    with pytest.raises(ValueError, match="Performer has no cache"):
        Performer(12, 3, features=5, generator=drawn()).make_cache(1, 5)
    with pytest.raises(ValueError, match="reads 2 later tokens cannot decode"):
        WindowAttention(12, 3, before=2, after=2).make_cache(1, 5)
    with pytest.raises(ValueError, match=r"Bool of shape \(batch, heads, n, keys\)"):
        WindowAttention(12, 3, before=2)(x, mask=torch.ones(N, N, dtype=torch.bool))


@pytest.mark.usefixtures("own_checks")
def test_a_layout_that_is_not_square_is_refused_when_the_layer_is_made() -> None:
    with pytest.raises(ValueError, match=r"square Bool matrix.*shape \(3, 5\)"):
        BlockSparseAttention(12, 3, layout=torch.ones(3, 5, dtype=torch.bool), block=2)
