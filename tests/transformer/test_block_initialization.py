"""Random weights: their sizes, who gets the branch gain, and what they do to the stream."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from companion.core import watch
from companion.transformer.block import (
    Decoder,
    Encoder,
    EncoderDecoder,
    FeedForward,
    GatedFeedForward,
    LayerNorm,
    Learned,
    RMSNorm,
    T5Buckets,
    TransformerConfig,
    branch_outputs,
    initialize_,
)
from companion.transformer.multi_head import MultiHeadAttention

CONFIG = TransformerConfig(
    vocab=101, dim=64, layers=3, heads=8, kv_heads=2, ff_dim=96, context=53,
    norm="rms", activation="swiglu", tied=False,
)  # fmt: skip


def spread(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def near(tensor: Tensor, deviation: float) -> bool:
    """Five standard errors of a sample deviation, 1/sqrt(2 n) each, and a mean that fits."""
    tensor, n = tensor.detach(), tensor.numel()
    return (
        abs(spread(tensor) / deviation - 1) < 5 * (2 * n) ** -0.5
        and abs(float(tensor.double().mean())) < 5 * deviation * n**-0.5
    )


def test_branch_outputs_are_the_maps_that_write_into_the_stream() -> None:
    decoder = Decoder(CONFIG)
    assert [id(m) for m in branch_outputs(decoder)] == [
        id(m) for b in decoder.blocks for m in (b.attention.out, b.feed_forward.down)
    ]
    pair = EncoderDecoder(CONFIG)
    assert len(branch_outputs(pair)) == 2 * 3 + 3 * 3
    assert branch_outputs(nn.Linear(3, 5)) == []


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("kind", [Decoder, Encoder])
def test_gpt2_weights_have_one_size_but_for_the_branches(
    kind: type[Decoder] | type[Encoder], activation: str, g: torch.Generator
) -> None:
    config = dataclasses.replace(CONFIG, activation=activation, positions=Learned())
    model = initialize_(kind(config), generator=g)
    branch = {id(m.weight) for m in branch_outputs(model)}
    assert len(branch) == 6
    seen = 0
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert bool((parameter == 1).all())
        elif name.endswith("bias"):
            assert bool((parameter == 0).all())
        else:
            seen += 1
            assert near(parameter, 0.02 / (6**0.5 if id(parameter) in branch else 1)), name
    assert seen == 2 + 4 * 3 + (kind is Decoder)  # tables, matrices of the blocks, head


def test_the_gain_of_an_encoder_decoder_counts_all_its_branches(g: torch.Generator) -> None:
    model = initialize_(EncoderDecoder(CONFIG), generator=g)
    assert near(model.decoder.blocks[0].cross.out.weight, 0.02 / 15**0.5)


def test_xavier_sizes_each_map_even_where_several_share_a_matrix(g: torch.Generator) -> None:
    model = initialize_(Decoder(CONFIG), generator=g, rule="xavier")
    d, width = 64, 8
    for b in model.blocks:
        q, k, v = b.attention.qkv.weight.split([8 * width, 2 * width, 2 * width])
        assert near(q, (2 / (d + 64)) ** 0.5)
        assert near(k, (2 / (d + 16)) ** 0.5)
        assert near(v, (2 / (d + 16)) ** 0.5)
        gate, up = b.feed_forward.gate_up.weight.chunk(2)
        for part in (gate, up, b.feed_forward.down.weight):
            assert near(part, (2 / (d + 96)) ** 0.5)
    assert near(model.tokens.weight, 1.0)
    assert near(model.head.weight, (2 / (d + 101)) ** 0.5)


@pytest.mark.parametrize("rule", ["gpt2", "xavier"])
def test_a_branch_gain_scales_the_branches_and_nothing_else(rule: str) -> None:
    made = [
        initialize_(
            Decoder(CONFIG), generator=torch.Generator().manual_seed(7), rule=rule, branch_gain=gain
        )
        for gain in (1.0, 0.25)
    ]
    branch = {
        name
        for name, module in made[0].named_modules()
        if any(module is linear for linear in branch_outputs(made[0]))
    }
    for (name, one), other in zip(made[0].named_parameters(), made[1].parameters(), strict=True):
        inside = name.removesuffix(".weight") in branch and name.endswith("weight")
        assert torch.equal(other, 0.25 * one if inside else one), name


def test_norms_are_reset_and_everything_is_overwritten(g: torch.Generator) -> None:
    config = dataclasses.replace(
        CONFIG, norm="layer", activation="gelu", positions=T5Buckets(), segments=3,
        embedding_norm=True,
    )  # fmt: skip
    model = Encoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    initialize_(model, generator=g, std=0.1)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    for module in model.modules():
        if isinstance(module, LayerNorm | RMSNorm):
            assert bool((module.weight == 1).all())
    assert near(model.segments.weight, 0.1)
    assert near(model.bias.weight, 0.1)


def test_a_tied_table_is_drawn_once_and_as_a_table() -> None:
    tied, free = (
        initialize_(
            Decoder(dataclasses.replace(CONFIG, tied=tied)),
            generator=torch.Generator().manual_seed(5),
            rule="xavier",
        )
        for tied in (True, False)
    )
    assert tied.head.weight is tied.tokens.weight
    assert near(tied.tokens.weight, 1.0)
    assert torch.equal(tied.tokens.weight, free.tokens.weight)  # the head did not draw it again


def test_the_seed_decides_and_the_model_is_returned(device: torch.device) -> None:
    model = Decoder(CONFIG).to(device)
    assert initialize_(model, generator=torch.Generator().manual_seed(3)) is model
    here = initialize_(Decoder(CONFIG), generator=torch.Generator().manual_seed(3))
    other = initialize_(Decoder(CONFIG), generator=torch.Generator().manual_seed(4))
    for a, b in zip(model.parameters(), here.parameters(), strict=True):
        assert a.device.type == device.type
        assert torch.equal(a.cpu(), b)  # drawn on the generator's device, then moved
    assert not torch.equal(here.tokens.weight, other.tokens.weight)


def test_the_global_generator_is_left_alone(g: torch.Generator) -> None:
    model = Decoder(CONFIG)
    before = torch.get_rng_state()
    initialize_(model, generator=g)
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_flow_after_it(g: torch.Generator) -> None:
    model = initialize_(Decoder(CONFIG), generator=g)
    model(torch.tensor([[1, 2, 3]])).square().sum().backward()
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())


def test_narrow_and_meta_parameters(g: torch.Generator) -> None:
    narrow = initialize_(FeedForward(64, 96).bfloat16(), generator=g)
    assert narrow.up.weight.dtype == torch.bfloat16
    # Rounding to 8 bits moves each weight by at most 0.4%, far below the error of the sample.
    assert near(narrow.up.weight, 0.02)
    with torch.device("meta"):
        model = Decoder(CONFIG)
    assert all(p.is_meta for p in initialize_(model, generator=g).parameters())


def test_single_layers_can_be_drawn(g: torch.Generator) -> None:
    network = initialize_(GatedFeedForward(64, 96), generator=g, std=0.3)
    assert near(network.gate_up.weight, 0.3)
    assert near(network.down.weight, 0.3)  # one branch: the gain is 1
    attention = initialize_(MultiHeadAttention(64, 4), generator=g, branch_gain=0.5)
    assert near(attention.out.weight, 0.01)


@pytest.mark.parametrize("layers", [4, 16])
def test_the_stream_of_pre_norm_grows_and_the_gain_stops_it(layers: int) -> None:
    config = dataclasses.replace(
        CONFIG, layers=layers, dim=96, ff_dim=96, heads=4, kv_heads=4, norm="layer",
        activation="relu", attention_bias=False, ff_bias=False,
    )  # fmt: skip
    ids = torch.arange(47)[None]
    sizes = {}
    for gain in (1.0, (2 * layers) ** -0.5):
        model = initialize_(
            Decoder(config), generator=torch.Generator().manual_seed(0), rule="xavier",
            branch_gain=gain,
        )  # fmt: skip
        last = f"blocks.{layers - 1}.stream"
        with torch.no_grad(), watch(model, read=[last]) as seen:
            model(ids)
        sizes[gain] = float(seen[last].square().mean())
    # A feed-forward branch adds 1/2 a feature, attention between 0 and 1: Xiong et al., lemma 2,
    # here with 20% for a single draw.
    assert 0.8 * (1 + layers / 2) < sizes[1.0] < 1.2 * (1 + 1.5 * layers)
    assert 1.0 < sizes[(2 * layers) ** -0.5] < 2.0


def test_the_last_gradient_falls_with_depth_in_pre_norm_only() -> None:
    def last(place: str, layers: int) -> float:
        config = dataclasses.replace(
            CONFIG, layers=layers, ff_dim=64, heads=4, kv_heads=4, norm="layer", norm_place=place,
            activation="relu",
        )  # fmt: skip
        total = 0.0
        for seed in range(3):
            g = torch.Generator().manual_seed(seed)
            model = initialize_(Decoder(config), generator=g, rule="xavier")
            ids = torch.randint(101, (4, 33), generator=g)
            loss = nn.functional.cross_entropy(
                model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()
            )
            weight = model.blocks[-1].feed_forward.down.weight
            total += float(torch.autograd.grad(loss, weight)[0].norm())
        return total

    # sqrt(24 / 2) = 3.5 for pre-norm, up to the layer's own 1 in 1 + cL; none for post-norm.
    assert last("pre", 2) / last("pre", 24) > 2
    assert last("post", 2) / last("post", 24) < 1.5


@pytest.mark.usefixtures("own_checks")
def test_misfits_are_named(g: torch.Generator) -> None:
    model = FeedForward(3, 5)
    before = model.up.weight.clone()
    with pytest.raises(ValueError, match=r"rule must be 'gpt2' or 'xavier', got 'he'"):
        initialize_(model, generator=g, rule="he")
    with pytest.raises(ValueError, match=r"std must lie in \(0"):
        initialize_(model, generator=g, std=0.0)
    with pytest.raises(ValueError, match=r"branch_gain must lie in \(0"):
        initialize_(model, generator=g, branch_gain=-0.5)
    assert torch.equal(model.up.weight, before)  # refused before anything is drawn
