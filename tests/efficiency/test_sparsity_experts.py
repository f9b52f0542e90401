"""Mixtures of experts: routing, balance, capacity, and the block of Mixtral."""

import pytest
import torch
from torch import Tensor
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import (
    MixtralSparseMoeBlock,
    load_balancing_loss_func,
)

from companion.core import linear_places, randn, watch
from companion.efficiency.sparsity import (
    MixtureOfExperts,
    Routing,
    balance_bias,
    experts_factory,
    load_balance,
    mixture_by_hand,
    route,
)
from companion.transformer.block import Decoder, GatedFeedForward, TransformerConfig, initialize_


def g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, generator=g(seed), dtype=torch.float64)


def mixture(**options: object) -> MixtureOfExperts:
    layer = MixtureOfExperts(7, 11, experts=5, **options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for number, p in enumerate(layer.parameters()):
            p.copy_(numbers(*p.shape, seed=number))
    return layer


def test_choosing_and_renormalizing_is_the_softmax_of_the_chosen_logits() -> None:
    logits = torch.tensor([[0.7, 0.2, 0.06, 0.04]]).double().log()
    torch.testing.assert_close(route(logits, k=2).gates[0], torch.tensor([7 / 9, 2 / 9]).double())
    plain = route(logits, k=2, renormalize=False)
    torch.testing.assert_close(plain.gates[0], torch.tensor([0.7, 0.2]).double())
    many = numbers(13, 5)
    made = route(many, k=3)
    torch.testing.assert_close(made.gates, torch.softmax(many.gather(1, made.experts), 1))
    sigmoids = route(many, k=3, scores="sigmoid")
    s = torch.sigmoid(many).gather(1, sigmoids.experts)
    torch.testing.assert_close(sigmoids.gates, s / s.sum(1, keepdim=True))
    torch.testing.assert_close(sigmoids.probabilities.sum(1), torch.ones(13).double())
    assert route(torch.full((2, 4), -200.0), k=2, scores="sigmoid").gates.isfinite().all()


def test_the_bias_changes_the_choice_and_not_the_gates() -> None:
    logits = numbers(13, 5)
    lifted = route(logits, k=2, bias=torch.tensor([0.0, 0.0, 9.0, 0.0, 0.0]).double())
    assert (lifted.experts == 2).any(1).all()
    torch.testing.assert_close(lifted.gates, torch.softmax(logits.gather(1, lifted.experts), 1))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_layer_is_its_definition_forward_and_backward(gated: bool, k: int) -> None:
    layer = mixture(k=k, gated=gated, bias=True)
    x = numbers(2, 13, 7, seed=9)
    fast, slow = layer(x), mixture_by_hand(layer, x)
    torch.testing.assert_close(fast, slow)
    names = [name for name, _ in layer.named_parameters()]
    one = torch.autograd.grad(fast.square().sum(), list(layer.parameters()), allow_unused=True)
    two = torch.autograd.grad(slow.square().sum(), list(layer.parameters()), allow_unused=True)
    for name, a, b in zip(names, one, two, strict=True):
        a = torch.zeros_like(b) if a is None else a
        torch.testing.assert_close(a, b, msg=name)
    if k == 1:  # one gate, renormalized, is 1: the router learns nothing from the loss
        assert names[0] == "router.weight"
        assert one[0].abs().max() < 1e-9
        free = mixture(k=1, gated=gated, renormalize=False)
        (grad,) = torch.autograd.grad(free(x).square().sum(), free.router.weight)
        assert grad.abs().max() > 1e-3


def test_the_layer_is_the_block_of_mixtral() -> None:
    config = MixtralConfig(
        hidden_size=7, intermediate_size=11, num_local_experts=5, num_experts_per_tok=2
    )
    theirs, ours = MixtralSparseMoeBlock(config).double(), mixture()
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.router.weight)
        for number, network in enumerate(ours.networks):
            assert isinstance(network, GatedFeedForward)
            theirs.experts.gate_up_proj[number] = network.gate_up.weight
            theirs.experts.down_proj[number] = network.down.weight
    x = numbers(3, 13, 7, seed=9)
    # Their router rounds its probabilities to float32.
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    logits = ours.router(x.flatten(0, 1))
    want = load_balancing_loss_func((logits,), 5, top_k=2)
    torch.testing.assert_close(2 * load_balance(ours.routing(logits)), want, check_dtype=False,
                               rtol=1e-6, atol=1e-6)  # fmt: skip
    real = torch.arange(13).expand(3, -1) < torch.tensor([[13], [5], [2]])
    want = load_balancing_loss_func((logits,), 5, top_k=2, attention_mask=real.long())
    got = 2 * load_balance(ours.routing(logits), real=real.flatten())
    torch.testing.assert_close(got, want, check_dtype=False, rtol=1e-6, atol=1e-6)


def test_balance_is_one_when_even_and_counts_each_choice_once() -> None:
    p = torch.full((4, 8), 1 / 8).double()
    even = Routing(torch.arange(8).view(4, 2), p[:, :2], p)
    assert float(load_balance(even)) == pytest.approx(1.0)
    all_on_two = torch.zeros(4, 8).double()
    all_on_two[:, :2] = 0.5
    collapsed = Routing(torch.tensor([[0, 1]] * 4), all_on_two[:, :2], all_on_two)
    assert float(load_balance(collapsed)) == pytest.approx(4.0)
    padded = Routing(
        torch.cat([even.experts, collapsed.experts]),
        torch.cat([even.gates, collapsed.gates]),
        torch.cat([p, all_on_two]),
    )
    real = torch.arange(8) < 4
    assert float(load_balance(padded, real=real)) == pytest.approx(1.0)
    assert float(load_balance(padded)) > 1.5
    with pytest.raises(ValueError, match="no token to balance"):
        load_balance(padded, real=torch.zeros(8).bool())
    # One is no minimum: three tokens choose the first expert narrowly, one the second surely.
    narrow = torch.tensor([[0.51, 0.49]] * 3 + [[0.0, 1.0]]).double().log()
    assert float(load_balance(route(narrow, k=1))) == pytest.approx(0.8825)
    # Softmax once more over probabilities leaves nearly nothing to learn from.
    once = torch.tensor([0.7, 0.2, 0.06, 0.04])
    assert torch.softmax(once, 0).tolist() == pytest.approx([0.377, 0.229, 0.199, 0.195], abs=1e-3)


def test_the_bias_balances_without_a_gradient() -> None:
    logits = numbers(400, 5) + torch.tensor([3.0, 1.0, 0.0, 0.0, -1.0])
    bias = torch.zeros(5).double()
    first = route(logits, k=2, bias=bias)
    for _ in range(300):
        bias = balance_bias(bias, route(logits, k=2, bias=bias), step=0.01)
    last = route(logits, k=2, bias=bias)
    load = [torch.bincount(r.experts.flatten(), minlength=5).double() / 160 for r in (first, last)]
    uneven = [float((each - 1).abs().max()) for each in load]
    assert uneven[0] > 0.8
    assert uneven[1] < uneven[0] / 3  # one step of the bias still moves some tokens to and fro
    with pytest.raises(ValueError, match="step must lie in"):
        balance_bias(bias, last, step=-1.0)


def test_tokens_beyond_the_capacity_are_left_out_second_choices_first() -> None:
    layer = mixture(k=2, capacity=1.0)
    x = numbers(10, 7, seed=9)
    routing = layer.routing(layer.router(x))
    room = 4  # 1.0 * 2 * 10 / 5
    want = torch.zeros_like(x)
    taken = [0] * 5
    left_out = 0
    for choice in range(2):
        for token in range(10):
            expert = int(routing.experts[token, choice])
            if taken[expert] < room:
                taken[expert] += 1
                y = layer.networks[expert](x[token])
                want[token] += routing.gates[token, choice] * y
            else:
                left_out += 1
    assert left_out > 0
    torch.testing.assert_close(layer(x), want)
    roomy = mixture(k=2, capacity=5.0)
    torch.testing.assert_close(roomy(x), mixture_by_hand(mixture(k=2), x))
    with pytest.raises(ValueError, match="capacity"):
        mixture_by_hand(layer, x)


def test_without_a_capacity_a_token_does_not_see_the_others() -> None:
    layer, x = mixture(), numbers(1, 13, 7, seed=9)
    whole = layer(x)
    torch.testing.assert_close(torch.cat([layer(x[:, :5]), layer(x[:, 5:])], 1), whole)
    (grad,) = torch.autograd.grad(layer(x.requires_grad_())[0, 4].sum(), x)
    assert grad[0, 4].any()
    assert not grad[0, :4].any()
    assert not grad[0, 5:].any()
    # With one, later tokens never push out earlier ones of the same choice, but of a later one.
    tight = mixture(capacity=0.5)
    assert not torch.allclose(torch.cat([tight(x[:, :5]), tight(x[:, 5:])], 1), tight(x))


def test_experts_stand_in_a_model_whose_balance_is_read_through_a_site() -> None:
    config = TransformerConfig(
        vocab=13, dim=12, layers=2, heads=3, ff_dim=20, context=17, activation="swiglu"
    )
    model = Decoder(config, feed_forward=experts_factory(experts=4))
    initialize_(model, generator=g())
    ids = torch.arange(7)[None]
    with watch(model, read=["*.router_logits"]) as seen:
        model(ids)
    assert [z.shape for z in seen.values()] == [(7, 4)] * 2
    layer = model.blocks[0].feed_forward
    assert isinstance(layer, MixtureOfExperts)
    loss = load_balance(layer.routing(seen["blocks.0.feed_forward.router_logits"]))
    (grad,) = torch.autograd.grad(loss, layer.router.weight)
    assert grad.abs().max() > 0
    assert any("networks.3.down" in place.path for place in linear_places(model))
    with pytest.raises(ValueError, match="no multiple of k = 3"):
        Decoder(config, feed_forward=experts_factory(experts=4, k=3))
    # A token costs what it did, besides the router.
    used = 2 * 3 * 12 * 10
    assert used == sum(p.numel() for p in GatedFeedForward(12, 20).parameters())


def test_half_precision_goes_through() -> None:
    layer = mixture().to(torch.bfloat16)
    x = numbers(13, 7).bfloat16()
    assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x), mixture_by_hand(layer, x), rtol=0.05, atol=0.3)


@pytest.mark.usefixtures("own_checks")
def test_what_is_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="k must be from 1 to 4, got 5"):
        route(numbers(3, 4), k=5)
    with pytest.raises(ValueError, match="scores must be"):
        route(numbers(3, 4), k=1, scores="tanh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="capacity must lie in"):
        MixtureOfExperts(3, 4, experts=2, capacity=0.0)
    with pytest.raises(ValueError, match="scores must be"):
        MixtureOfExperts(3, 4, experts=2, scores="tanh")  # type: ignore[arg-type]


def test_sigmoids_that_round_to_zero_or_one_still_route() -> None:
    """In float32 the sigmoid of -200 is 0 and those of 20 and 30 are 1."""
    low = torch.tensor([[-200.0, -210.0, -201.0, -220.0]])
    made = route(low, k=2, scores="sigmoid")
    assert made.experts.tolist() == [[0, 2]]
    # Far below zero the sigmoid is the exponential, so its shares are a softmax.
    torch.testing.assert_close(made.probabilities, torch.softmax(low, 1))
    torch.testing.assert_close(made.gates, torch.softmax(low[:, [0, 2]], 1))
    assert load_balance(made).isfinite()
    high = route(torch.tensor([[20.0, 40.0, 30.0, 50.0]]), k=2, scores="sigmoid")
    assert high.experts.tolist() == [[3, 1]]
    assert high.gates.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_bias_counts_choices_in_full_in_half_precision(dtype: torch.dtype) -> None:
    """A sum of ones stops at 256 in bfloat16 and at 2,048 in float16."""
    logits = torch.zeros(9000, 3)
    logits[:4000, 0] = logits[4000:6900, 1] = logits[6900:, 2] = 1.0
    moved = balance_bias(torch.zeros(3, dtype=dtype), route(logits, k=1), step=0.5)
    assert moved.dtype == dtype
    assert moved.tolist() == [-0.5, 0.5, 0.5]  # 4,000, 2,900 and 2,100 choices


def test_no_token_is_no_work() -> None:
    layer = mixture(k=2)
    assert layer(torch.zeros(2, 0, 7).double()).shape == (2, 0, 7)
    assert route(torch.zeros(0, 5), k=2).gates.shape == (0, 2)
