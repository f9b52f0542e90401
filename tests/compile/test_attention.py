"""The paths of attention compile to one graph; FlexAttention runs, compiled, on the CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from companion.transformer.attention import (
    Mask,
    SelfAttention,
    attention,
    attention_by_hand,
    causal,
    dense_attention,
    merge_states,
    padding,
    sliding_window,
    tiled_attention,
)

B, H, KV, N, D = 2, 6, 3, 13, 8
REAL = torch.ones(B, N, dtype=torch.bool)
REAL[0, 5:] = False
REAL[1] = False  # reads nothing at all


def compiled(function: Callable[..., Any], *, backend: str = "aot_eager") -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


def problem(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    Q, K, V = (
        torch.randn(*s, generator=g).requires_grad_()
        for s in ((B, H, N, D), (B, KV, N, D), (B, KV, N, D))
    )
    return Q, K, V


# TorchDynamo itself makes an instance of autograd.Function while it traces one.
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "mask", [causal(), causal() & padding(REAL)], ids=["causal", "causal and padding"]
)
@pytest.mark.parametrize(
    ("function", "backend"),
    [
        (attention, "inductor"),
        (attention_by_hand, "aot_eager"),
        (lambda *a, **k: tiled_attention(*a, block=7, **k), "aot_eager"),
        (lambda *a, **k: dense_attention(*a, **k)[0], "aot_eager"),
    ],
    ids=["fused", "by hand", "tiled", "dense"],
)
def test_paths_compile_with_their_backward_pass(
    function: Callable[..., Tensor], backend: str, mask: Mask, g: torch.Generator
) -> None:
    inputs = problem(g)

    def layer(*a: Tensor) -> Tensor:
        return function(*a, mask=mask)

    made, expected = compiled(layer, backend=backend)(*inputs), layer(*inputs)
    torch.testing.assert_close(made, expected)
    for a, b in zip(
        torch.autograd.grad(made.sum(), inputs),
        torch.autograd.grad(expected.sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_masks_may_be_made_inside_of_a_compiled_function(g: torch.Generator) -> None:
    inputs = problem(g)

    def layer(q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        mask = (sliding_window(5) | causal(offset=-7)) & padding(real)
        return attention(q, k, v, mask=mask)

    torch.testing.assert_close(compiled(layer)(*inputs, REAL), layer(*inputs, REAL))


def test_modules_and_merging_compile(g: torch.Generator) -> None:
    layer = SelfAttention(5, 3, 2)
    x = torch.randn(B, N, 5, generator=g)
    torch.testing.assert_close(compiled(layer)(x, mask=causal()), layer(x, mask=causal()))
    states = [
        (torch.randn(B, N, generator=g), torch.rand(B, N, generator=g), x + s) for s in (0, 1)
    ]
    for a, b in zip(compiled(merge_states)(*states), merge_states(*states), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.inductor
def test_flex_attention_agrees_for_rules_tensors_and_biases(g: torch.Generator) -> None:
    torch._dynamo.reset()
    Q, K, V = (t.detach() for t in problem(g))
    bias = torch.randn(H, 1, N, generator=g)
    rule = causal(offset=-1) & padding(REAL)  # the first query, and the second text, read nothing
    for form in (rule, rule.dense(N, N)):
        made = attention(Q, K, V, mask=form, bias=bias, backend="flex")
        expected = dense_attention(Q, K, V, mask=rule, bias=bias)[0]
        torch.testing.assert_close(made, expected)
        assert not made[1].any()
        assert not made[0, :, 0].any()


@pytest.mark.inductor
def test_flex_attention_makes_its_block_mask_inside_of_a_compiled_function(
    g: torch.Generator,
) -> None:
    torch._dynamo.reset()
    Q, K, V = (t.detach() for t in problem(g))

    def layer(q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        return attention(q, k, v, mask=causal() & padding(real), backend="flex")

    expected = dense_attention(Q, K, V, mask=causal() & padding(REAL))[0]
    torch.testing.assert_close(compiled(layer, backend="inductor")(Q, K, V, REAL), expected)


@pytest.mark.inductor
def test_a_block_mask_is_made_once_and_taken_as_it_is(g: torch.Generator) -> None:
    torch._dynamo.reset()
    Q, K, V = (t.detach() for t in problem(g))
    blocks = sliding_window(4).block_mask(N, N, device="cpu")
    expected = dense_attention(Q, K, V, mask=sliding_window(4), scale=0.3)[0]
    torch.testing.assert_close(attention(Q, K, V, mask=blocks, scale=0.3), expected)

    def layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, mask=blocks, scale=0.3) @ q.mT

    torch.testing.assert_close(compiled(layer, backend="inductor")(Q, K, V), expected @ Q.mT)
