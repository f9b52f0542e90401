"""Dropout: its moments, its masks, its modes, and what a seed repeats."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from companion.core import generator, randn
from companion.foundations.cross_entropy import softmax
from companion.foundations.regularization import (
    Dropout,
    dropout,
    dropout_mask,
    enumerate_masks,
    hashed_mask,
    mc_dropout,
)

F64 = torch.float64
KEY = torch.tensor([123456789, 987654321, 5])


def binomial_z(mask, p):
    """How many standard deviations the number of dropped entries lies off its mean."""
    n = mask.numel()
    return abs(float((~mask).sum()) - n * p) / math.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_masks_drop_with_probability_p(p):
    assert binomial_z(dropout_mask((1009, 997), p=p, generator=generator(0)), p) < 5
    assert binomial_z(hashed_mask((1009, 997), p=p, key=KEY), p) < 5


def test_all_masks_give_the_mean_and_the_variance_exactly():
    x = randn(5, generator=generator(0), dtype=F64)
    p = 0.3
    masks, probability = enumerate_masks(5, p=p)
    values = torch.stack([dropout(x, p=p, mask=m) for m in masks])
    mean = probability @ values
    torch.testing.assert_close(mean, x, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        probability @ (values - mean) ** 2, p / (1 - p) * x**2, rtol=1e-12, atol=1e-14
    )


@given(units=st.integers(1, 8), p=st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_the_probabilities_of_all_masks_sum_to_one(units, p):
    masks, probability = enumerate_masks(units, p=p)
    assert len(masks.unique(dim=0)) == 2**units
    assert float(probability.sum()) == pytest.approx(1, abs=1e-12)
    assert float(probability @ masks.double().sum(1)) == pytest.approx(units * (1 - p), abs=1e-12)


def test_the_moments_are_those_of_torch():
    # The two draw different masks, so the laws are compared: mean, variance, and values.
    x = randn(7, generator=generator(0), dtype=F64).abs() + 0.5
    n, p = 40_000, 0.3
    big = x.expand(n, 7)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = nn.Dropout(p)(big)
    ours = Dropout(p, generator=generator(0))(big)
    spread = (p / (1 - p)) ** 0.5 * x / n**0.5
    for one in (ours, theirs):
        assert ((one.mean(0) - x).abs() < 5 * spread).all()
        torch.testing.assert_close(one.var(0), p / (1 - p) * x**2, rtol=0.05, atol=0)
    torch.testing.assert_close(ours.unique(), theirs.unique(), rtol=1e-12, atol=0)


def test_entries_neighbors_and_calls_are_independent():
    n, p = 1_000_003, 0.4
    shifts = [hashed_mask((n,), p=p, key=KEY + torch.tensor(k)) for k in
              ((0, 0, 0), (0, 0, 1), (1, 0, 0), (0, 1, 0), (1 << 16, 0, 0))]  # fmt: skip
    first = shifts[0].double() - (1 - p)
    variance = p * (1 - p)
    for other in shifts[1:]:
        # A mean of products of two independent centered entries has standard deviation var/sqrt n.
        product = (first * (other.double() - (1 - p))).mean()
        assert abs(float(product)) < 5 * variance / n**0.5
    for lag in (1, 2, 3, 64, 4096, 65536):
        product = (first[lag:] * first[:-lag]).mean()
        assert abs(float(product)) < 5 * variance / (n - lag) ** 0.5


def test_runs_of_eight_entries_are_uniform():
    # A chi-squared test of all 256 patterns, 255 degrees of freedom: mean 255, deviation 22.6.
    n = 200_000
    for key in (KEY, KEY * 0, KEY * 0 + 1):
        bits = hashed_mask((n, 8), p=0.5, key=key).long()
        code = (bits << torch.arange(8)).sum(1)
        count = torch.bincount(code, minlength=256).double()
        chi = ((count - n / 256) ** 2 / (n / 256)).sum()
        assert 255 - 5 * 22.6 < chi < 255 + 5 * 22.6


def test_the_number_of_dropped_entries_varies_as_it_should_from_call_to_call():
    # Two keys that differ by a counter must not be permutations of one mask.
    n, p, calls = 1024, 0.3, 2000
    counts = torch.stack(
        [(~hashed_mask((n,), p=p, key=KEY + torch.tensor([0, 0, c]))).sum() for c in range(calls)]
    ).double()
    variance = n * p * (1 - p)
    assert abs(float(counts.mean()) - n * p) < 5 * (variance / calls) ** 0.5
    # The variance of a sample variance is about 2 var^2 / calls.
    assert abs(float(counts.var()) - variance) < 5 * variance * (2 / calls) ** 0.5


def test_one_seed_gives_one_sequence_of_masks():
    x = torch.ones(13, 11)
    runs = []
    for seed in (0, 0, 1):
        layer = Dropout(0.5, generator=generator(seed))
        runs.append(torch.stack([layer(x) for _ in range(3)]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0][0], runs[0][1])
    again = [dropout(x, p=0.5, generator=generator(7)) for _ in range(2)]
    assert torch.equal(*again)


def test_modules_that_share_a_generator_drop_differently():
    g = generator(0)
    x = torch.ones(997)
    one, other = Dropout(0.5, generator=g), Dropout(0.5, generator=g)
    assert not torch.equal(one(x), other(x))


def test_a_saved_state_resumes_the_sequence():
    x = torch.ones(997)
    layer = Dropout(0.5, generator=generator(0))
    layer(x)
    saved = layer.state.clone()
    expected = layer(x)
    resumed = Dropout(0.5, generator=generator(9))
    resumed.state.copy_(saved)
    assert torch.equal(resumed(x), expected)
    assert int(layer.state[2]) == 2
    assert "state" not in layer.state_dict()


def test_a_copy_goes_on_like_its_original():
    layer = Dropout(0.5, generator=generator(0))
    layer(torch.ones(7))
    twin = copy.deepcopy(layer)
    x = torch.ones(997)
    assert torch.equal(layer(x), twin(x))


def test_drawing_leaves_the_global_stream_alone():
    before = torch.random.get_rng_state()
    layer = Dropout(0.5, generator=generator(0))
    layer(torch.ones(5))
    dropout(torch.ones(5), p=0.5, generator=generator(0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_evaluation_is_the_identity_and_does_not_count():
    x = randn(5, 3, generator=generator(0))
    layer = Dropout(0.5, generator=generator(0)).eval()
    assert layer(x) is x
    assert int(layer.state[2]) == 0
    assert dropout(x, p=0.5, training=False) is x


def test_p_zero_is_the_identity_and_p_one_is_zero():
    x = randn(5, 3, generator=generator(0)).requires_grad_()
    assert dropout(x, p=0.0) is x
    made = dropout(x, p=1.0, generator=generator(0))
    assert torch.equal(made, torch.zeros(5, 3))
    made.sum().backward()
    assert torch.equal(x.grad, torch.zeros(5, 3))
    assert Dropout(0.0, generator=generator(0))(x) is x
    assert torch.equal(Dropout(1.0, generator=generator(0))(x), torch.zeros(5, 3))
    assert hashed_mask((1009,), p=0.0, key=KEY).all()
    assert not hashed_mask((1009,), p=1.0, key=KEY).any()


def test_the_gradient_is_the_mask_with_its_scale():
    x = randn(5, 3, generator=generator(0), dtype=F64).requires_grad_()
    mask = dropout_mask((5, 3), p=0.2, generator=generator(1))
    dropout(x, p=0.2, mask=mask).sum().backward()
    torch.testing.assert_close(x.grad, mask.double() / 0.8)


def test_a_dropped_nan_is_gone():
    x = torch.tensor([float("nan"), float("inf"), 2.0], requires_grad=True)
    made = dropout(x, p=0.5, mask=torch.tensor([False, False, True]))
    assert torch.equal(made, torch.tensor([0.0, 0.0, 4.0]))


def test_a_mask_may_be_shared_along_an_axis():
    x = randn(5, 3, 2, generator=generator(0))
    mask = dropout_mask((5, 1, 2), p=0.5, generator=generator(1))
    assert torch.equal(dropout(x, p=0.5, mask=mask), dropout(x, p=0.5, mask=mask.expand(5, 3, 2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_the_mask_does_not_depend_on_the_precision(dtype):
    x = torch.ones(997, dtype=dtype)
    made = dropout(x, p=0.3, generator=generator(0))
    assert made.dtype == dtype
    assert torch.equal(made != 0, dropout_mask((997,), p=0.3, generator=generator(0)))
    layer = Dropout(0.3, generator=generator(0))
    assert layer(x).dtype == dtype
    assert torch.equal(layer.to(dtype).state[:2], Dropout(0.3, generator=generator(0)).state[:2])


def test_dropout_stays_finite_under_autocast(device):
    layer = nn.Sequential(nn.Linear(5, 7), Dropout(0.3, generator=generator(0))).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        made = layer(torch.ones(3, 5, device=device))
    assert made.dtype == torch.bfloat16
    assert torch.isfinite(made).all()


def test_one_seed_drops_the_same_on_every_device(device):
    x = torch.ones(997, device=device)
    layer = Dropout(0.5, generator=generator(0)).to(device)
    expected = Dropout(0.5, generator=generator(0))(x.cpu())
    assert torch.equal(layer(x).cpu(), expected)
    made = dropout(x, p=0.5, generator=generator(0))
    assert torch.equal(made.cpu(), dropout(x.cpu(), p=0.5, generator=generator(0)))


def test_dropout_runs_on_meta():
    x = torch.ones(5, 3, device="meta")
    assert dropout(x, p=0.5, generator=generator(0)).is_meta
    layer = Dropout(0.5, generator=generator(0)).to("meta")
    assert layer(x).shape == (5, 3)
    with torch.device("meta"):
        assert Dropout(0.5, generator=generator(0)).state.is_meta


def test_monte_carlo_switches_on_dropout_alone_and_back():
    model = nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5), Dropout(0.5, generator=generator(0)), nn.Linear(5, 2)
    ).eval()
    model[1].running_mean.fill_(0.3)
    x = randn(7, 3, generator=generator(1))
    made = mc_dropout(model, x, samples=11)
    assert made.shape == (11, 7, 2)
    assert len(made[:, 0, 0].unique()) > 1
    assert not any(m.training for m in model.modules())
    assert (model[1].running_mean == 0.3).all()


def test_the_mean_over_passes_of_a_linear_model_is_the_plain_output():
    x = randn(2, 3, generator=generator(1), dtype=F64)
    W = randn(3, 5, generator=generator(2), dtype=F64)
    layer = Dropout(0.4, generator=generator(0))

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x) @ W

    made = mc_dropout(Linear().eval(), x, samples=4000)
    error = made.std(0) / 4000**0.5
    assert ((made.mean(0) - x @ W).abs() < 5 * error).all()


def test_the_geometric_ensemble_is_the_plain_network_for_one_layer_and_not_for_two():
    p, x = 0.3, randn(5, generator=generator(0), dtype=F64)
    W, V = (randn(*s, generator=generator(3), dtype=F64) / 3 for s in ((5, 3), (3, 2)))
    masks, probability = enumerate_masks(5, p=p)
    noisy = torch.stack([dropout(x, p=p, mask=m) for m in masks])

    def geometric(logits):
        return softmax(probability @ logits.log_softmax(-1))

    torch.testing.assert_close(geometric(noisy @ W), softmax(x @ W), rtol=1e-12, atol=0)
    two = (geometric((noisy @ W).relu() @ V) - softmax((x @ W).relu() @ V)).abs().max()
    assert two > 1e-3


X0 = torch.ones(5, 3)
WRONG = [
    (lambda: dropout(X0, p=1.5, generator=generator(0)), r"p must lie in \[0.0, 1.0\], got 1.5"),
    (lambda: dropout(X0, p=0.5), "give a generator or a mask"),
    (
        lambda: dropout(X0, p=0.5, generator=generator(0), mask=X0 > 0),
        "give a generator or a mask",
    ),
    (lambda: dropout(X0, p=0.5, mask=torch.ones(2, dtype=torch.bool)), r"\(2,\) does not broad"),
    (
        lambda: dropout(X0, p=0.5, mask=torch.ones(2, 5, 3, dtype=torch.bool)),
        r"\(2, 5, 3\) does not broadcast",
    ),
    (lambda: dropout(X0.long(), p=0.5, generator=generator(0)), "x must be floating"),
    (lambda: dropout_mask((3,), p=-0.1, generator=generator(0)), "p must lie"),
    (lambda: hashed_mask((3,), p=0.5, key=KEY[:2]), r"key must have shape \(3,\)"),
    (lambda: hashed_mask((3,), p=0.5, key=KEY.int()), "key must be int64"),
    (lambda: hashed_mask((3,), p=2.0, key=KEY), "p must lie"),
    (lambda: Dropout(float("nan"), generator=generator(0)), "p must lie"),
    (lambda: enumerate_masks(0, p=0.5), r"units must lie in \[1, 20\]"),
    (lambda: enumerate_masks(21, p=0.5), r"units must lie in \[1, 20\]"),
    (lambda: enumerate_masks(3, p=1.1), "p must lie"),
    (lambda: mc_dropout(nn.Linear(3, 2), X0, samples=3), "no Dropout module"),
    (lambda: mc_dropout(nn.Dropout(0.5), X0, samples=0), "samples must be 1 or more, got 0"),
]


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(("call", "message"), WRONG)
def test_wrong_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_inputs_are_left_alone():
    x = randn(5, 3, generator=generator(0))
    key, before = KEY.clone(), x.clone()
    hashed_mask((5, 3), p=0.5, key=key)
    mask = dropout_mask((5, 3), p=0.5, generator=generator(0))
    drawn = mask.clone()
    dropout(x, p=0.5, mask=mask)
    Dropout(0.5, generator=generator(0))(x)
    assert torch.equal(x, before)
    assert torch.equal(mask, drawn)
    assert torch.equal(key, KEY)
