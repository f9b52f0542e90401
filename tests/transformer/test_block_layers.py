"""A block is PyTorch's own layer with the same weights, in every order of its parts."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from companion.transformer.attention import causal
from companion.transformer.block import Block, TransformerConfig

B, N, M = 2, 5, 7
CONFIG = TransformerConfig(vocab=11, dim=12, layers=1, heads=3, ff_dim=31, context=19)
# Sums of at most 31 products of order 1, through three layers, in float64.
EXACT = {"rtol": 1e-10, "atol": 1e-11}


def twins(
    g: torch.Generator, *, place: str, activation: str = "gelu", cross: bool = False
) -> tuple[Block, nn.Module]:
    """Our block and PyTorch's layer with the same random weights, biases and gains included."""
    config = dataclasses.replace(CONFIG, norm_place=place, activation=activation)
    ours = Block(config, cross=cross).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    kind = nn.TransformerDecoderLayer if cross else nn.TransformerEncoderLayer
    theirs = kind(
        12, 3, 31, dropout=0.0, activation=activation, batch_first=True, norm_first=place == "pre"
    ).double()
    attentions = [(ours.attention, "self_attn")]
    norms = [ours.attention_norm, ours.feed_forward_norm]
    if cross:
        attentions.append((ours.cross, "multihead_attn"))
        norms.insert(1, ours.cross_norm)
    state: dict[str, Tensor] = {}
    for part, name in attentions:
        state |= {f"{name}.in_proj_{k}": v for k, v in part.qkv.state_dict().items()}
        state |= {f"{name}.out_proj.{k}": v for k, v in part.out.state_dict().items()}
    for index, norm in enumerate(norms, 1):
        state |= {f"norm{index}.{k}": v for k, v in norm.state_dict().items()}
    state |= {f"linear1.{k}": v for k, v in ours.feed_forward.up.state_dict().items()}
    state |= {f"linear2.{k}": v for k, v in ours.feed_forward.down.state_dict().items()}
    theirs.load_state_dict(state)
    return ours, theirs


def rows(g: torch.Generator, n: int) -> Tensor:
    return torch.randn(B, n, 12, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("place", ["pre", "post"])
def test_a_block_is_the_encoder_layer_of_torch(
    place: str, activation: str, g: torch.Generator
) -> None:
    ours, theirs = twins(g, place=place, activation=activation)
    x = rows(g, N)
    torch.testing.assert_close(ours(x), theirs(x), **EXACT)
    other, _ = twins(g, place="post" if place == "pre" else "pre", activation=activation)
    other.load_state_dict(ours.state_dict())
    assert not torch.allclose(other(x), theirs(x), atol=1e-3)  # the place matters


@pytest.mark.parametrize("place", ["pre", "post"])
def test_a_block_that_reads_a_context_is_the_decoder_layer_of_torch(
    place: str, g: torch.Generator
) -> None:
    ours, theirs = twins(g, place=place, cross=True)
    x, context = rows(g, N), rows(g, M)
    later = torch.ones(N, N, dtype=torch.bool).triu(1)  # PyTorch's module marks what is forbidden
    made = ours(x, context, mask=causal())
    torch.testing.assert_close(made, theirs(x, context, tgt_mask=later), **EXACT)
    real = torch.arange(M) < torch.tensor([[M], [4]])
    made = ours(x, context, mask=causal(), context_mask=real[:, None, None, :])
    expected = theirs(x, context, tgt_mask=later, memory_key_padding_mask=~real)
    torch.testing.assert_close(made, expected, **EXACT)


@pytest.mark.parametrize("place", ["pre", "post"])
def test_gradients_are_those_of_torch(place: str, g: torch.Generator) -> None:
    ours, theirs = twins(g, place=place)
    x = rows(g, N)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    for module, leaf in zip((ours, theirs), leaves, strict=True):
        module(leaf).square().sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, **EXACT)
    torch.testing.assert_close(
        ours.feed_forward.up.weight.grad, theirs.linear1.weight.grad, **EXACT
    )


def test_the_stream_of_pre_norm_is_only_added_to(g: torch.Generator) -> None:
    ours, _ = twins(g, place="pre")
    with torch.no_grad():
        for linear in (ours.attention.out, ours.feed_forward.down):
            linear.weight.zero_()
            linear.bias.zero_()
    x = rows(g, N)
    assert torch.equal(ours(x), x)
    post, _ = twins(g, place="post")
    post.load_state_dict(ours.state_dict())
    assert not torch.allclose(post(x), x)
