"""Every optimizer equals its equation, PyTorch's own, and itself after a round trip to disk."""

import copy
import functools
import io
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.core import generator, randn
from companion.foundations import optimization as opt

SHAPES = ((5, 3), (7,), (2, 11), ())
MATRICES = ((5, 3), (2, 11), (13, 7))

# Ours, PyTorch's, and settings that both take. Where PyTorch has no such method: None.
METHODS = {
    "SGD": (opt.SGD, torch.optim.SGD, {"lr": 0.05}),
    "SGD, decay": (opt.SGD, torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.3}),
    "Momentum": (opt.Momentum, torch.optim.SGD, {"lr": 0.02, "momentum": 0.9}),
    "Momentum, decay": (
        opt.Momentum,
        torch.optim.SGD,
        {"lr": 0.02, "momentum": 0.7, "weight_decay": 0.3},
    ),
    "Nesterov": (opt.Nesterov, torch.optim.SGD, {"lr": 0.02, "momentum": 0.9}),
    "Nesterov, decay": (
        opt.Nesterov,
        torch.optim.SGD,
        {"lr": 0.02, "momentum": 0.7, "weight_decay": 0.3},
    ),
    "AdaGrad": (opt.AdaGrad, torch.optim.Adagrad, {"lr": 0.1}),
    "AdaGrad, decay": (
        opt.AdaGrad,
        torch.optim.Adagrad,
        {"lr": 0.1, "weight_decay": 0.3, "eps": 1e-2},
    ),
    "RMSProp": (opt.RMSProp, torch.optim.RMSprop, {"lr": 0.01}),
    "RMSProp, decay": (
        opt.RMSProp,
        torch.optim.RMSprop,
        {"lr": 0.01, "alpha": 0.8, "eps": 1e-2, "weight_decay": 0.3},
    ),
    "Adam": (opt.Adam, torch.optim.Adam, {"lr": 0.01}),
    "Adam, decay": (
        opt.Adam,
        torch.optim.Adam,
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.3},
    ),
    "AdamW": (opt.AdamW, torch.optim.AdamW, {"lr": 0.01}),
    "AdamW, decay": (
        opt.AdamW,
        torch.optim.AdamW,
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.3},
    ),
    "Lion": (opt.Lion, None, {"lr": 0.01}),
    "Lion, decay": (opt.Lion, None, {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.3}),
    "Muon": (opt.Muon, None, {"lr": 0.02}),
    "Muon, plain": (opt.Muon, None, {"lr": 0.02, "nesterov": False, "scale": "match_rms"}),
}
CLASSES = [opt.SGD, opt.Momentum, opt.Nesterov, opt.AdaGrad, opt.RMSProp]
CLASSES += [opt.Adam, opt.AdamW, opt.Lion, opt.Muon]
WITH_TORCH = [name for name, (_, theirs, _) in METHODS.items() if theirs is not None]


def shapes_for(ours):
    return MATRICES if ours is opt.Muon else SHAPES


def normal(shape, g):
    return randn(math.prod(shape), generator=g, dtype=torch.float64).reshape(shape)


def parameters(ours, dtype=torch.float64, device="cpu"):
    g = generator(7)
    return [torch.nn.Parameter(normal(shape, g).to(device, dtype)) for shape in shapes_for(ours)]


@functools.cache
def noise(shapes, step):
    g = generator(1000 + step)
    return [normal(shape, g) for shape in shapes]


def gradients(params, step):
    """The same stream of noisy gradients of a quadratic for everyone, from flat to steep."""
    drawn = noise(tuple(tuple(p.shape) for p in params), step)
    for index, (param, extra) in enumerate(zip(params, drawn, strict=True)):
        exact = param.detach().double() + extra.to(param.device)
        param.grad = (exact * 10.0 ** (index - 2)).to(param.dtype)


def run(optimizer, params, steps, start=0):
    trajectory = []
    for step in range(start, start + steps):
        gradients(params, step)
        optimizer.step()
        trajectory.append(torch.cat([p.detach().reshape(-1).double().cpu() for p in params]))
    return torch.stack(trajectory)


def theirs_for(ours, theirs, settings):
    extra = {"nesterov": True} if ours is opt.Nesterov else {}
    return lambda params: theirs(params, foreach=True, **settings, **extra)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("name", WITH_TORCH)
def test_100_steps_equal_those_of_pytorch(name, foreach, device):
    ours, theirs, settings = METHODS[name]
    # 100 steps round 100 times: 1e-13 leaves a factor of five over the rounding unit each.
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        a, b = parameters(ours, dtype, device), parameters(ours, dtype, device)
        mine = run(ours(a, foreach=foreach, **settings), a, 100)
        reference = run(theirs_for(ours, theirs, settings)(b), b, 100)
        scale = reference.abs().max()
        assert float((mine - reference).abs().max() / scale) <= tolerance
        assert float((mine[-1] - mine[0]).abs().max()) > 0.05


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("scale", ["original", "match_rms"])
def test_muon_in_bfloat16_equals_that_of_pytorch(nesterov, scale):
    a, b = parameters(opt.Muon, torch.float32), parameters(opt.Muon, torch.float32)
    mine = opt.Muon(a, 0.02, nesterov=nesterov, scale=scale, dtype=torch.bfloat16)
    name = {"original": "original", "match_rms": "match_rms_adamw"}[scale]
    reference = torch.optim.Muon(b, 0.02, nesterov=nesterov, adjust_lr_fn=name)
    trajectory = run(mine, a, 100)
    expected = run(reference, b, 100)
    assert float((trajectory - expected).abs().max() / expected.abs().max()) <= 1e-6


def test_muon_with_enough_cubic_steps_follows_the_singular_vectors():
    params = parameters(opt.Muon)
    before = [p.detach().clone() for p in params]
    gradients(params, 0)
    opt.Muon(params, 0.5, steps=60, coefficients=opt.CUBIC, scale="none", weight_decay=0.2).step()
    for old, new in zip(before, params, strict=True):
        u, _, vt = torch.linalg.svd(new.grad, full_matrices=False)
        expected = (1 - 0.5 * 0.2) * old - 0.5 * (u @ vt)
        torch.testing.assert_close(new.detach(), expected, rtol=1e-9, atol=1e-9)


def test_matrices_of_one_shape_go_in_one_batch_to_the_same_result():
    g = generator(2)
    starts = [randn(5, 3, generator=g, dtype=torch.float64) for _ in range(4)]
    results = []
    for foreach in (True, False):
        params = [torch.nn.Parameter(start.clone()) for start in starts]
        results.append(run(opt.Muon(params, 0.02, foreach=foreach), params, 20))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


def lion_in_numpy(name, params, steps):
    settings = METHODS[name][2]
    rate, decay = settings["lr"], settings.get("weight_decay", 0.0)
    one, two = settings.get("betas", (0.9, 0.99))
    thetas = [p.detach().numpy().copy() for p in params]
    momenta = [np.zeros_like(t) for t in thetas]
    for step in range(steps):
        holders = [torch.nn.Parameter(torch.from_numpy(np.array(t))) for t in thetas]
        gradients(holders, step)
        for i, holder in enumerate(holders):
            grad = holder.grad.numpy()
            update = np.sign(one * momenta[i] + (1 - one) * grad)
            thetas[i] = thetas[i] - rate * (update + decay * thetas[i])
            momenta[i] = two * momenta[i] + (1 - two) * grad
    return np.concatenate([np.reshape(t, -1) for t in thetas])


@pytest.mark.parametrize("name", ["Lion", "Lion, decay"])
def test_lion_equals_algorithm_2_of_its_paper_in_numpy(name):
    params = parameters(opt.Lion)
    expected = lion_in_numpy(name, params, 100)
    ours, _, settings = METHODS[name]
    mine = run(ours(params, **settings), params, 100)[-1]
    np.testing.assert_allclose(mine.numpy(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", METHODS)
def test_the_fast_path_equals_the_equation(name, device):
    ours, _, settings = METHODS[name]
    a, b = parameters(ours, device=device), parameters(ours, device=device)
    fast = run(ours(a, foreach=True, **settings), a, 30)
    plain = run(ours(b, foreach=False, **settings), b, 30)
    # Lion's sign would turn a rounding error into a full step; none is that close to zero here.
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_through_a_saved_state_equals_an_unbroken_one(name, foreach):
    ours, _, settings = METHODS[name]
    whole = parameters(ours)
    optimizer = ours(whole, foreach=foreach, **settings)
    expected = run(optimizer, whole, 40)

    params = parameters(ours)
    first = ours(params, foreach=foreach, **settings)
    run(first, params, 25)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    again = [torch.nn.Parameter(p.detach().clone()) for p in params]
    second = ours(again, lr=123.0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert second.param_groups[0]["lr"] == settings["lr"]
    assert torch.equal(run(second, again, 15, start=25), expected[25:])
    saved, kept = first.state_dict(), second.state_dict()
    assert saved["param_groups"] == kept["param_groups"]
    assert kept["state"][0]["step"] == 40
    # The two are apart: going on with one leaves the other's state.
    assert saved["state"][0]["step"] == 25


@pytest.mark.parametrize("ours", CLASSES)
def test_low_precision_keeps_its_state_in_float32_through_a_round_trip(ours, device):
    params = parameters(ours, torch.bfloat16, device)
    optimizer = ours(params, 1e-2)
    trajectory = run(optimizer, params, 20)
    assert bool(torch.isfinite(trajectory).all())
    assert params[0].dtype == torch.bfloat16
    again = [torch.nn.Parameter(p.detach().clone()) for p in params]
    second = ours(again, 1.0)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(params, again, strict=True):
        for slot in ours.slots:
            assert second.state[q][slot].dtype == torch.float32
            assert torch.equal(second.state[q][slot], optimizer.state[p][slot])


def test_a_bfloat16_parameter_follows_the_float32_one_up_to_its_own_rounding():
    narrow, wide = parameters(opt.AdamW, torch.bfloat16), parameters(opt.AdamW, torch.float32)
    for p, q in zip(narrow, wide, strict=True):
        q.data.copy_(p.data.float())
    for params in (narrow, wide):
        gradients(params, 0)
    for p, q in zip(narrow, wide, strict=True):
        q.grad = p.grad.float()
    opt.AdamW(narrow, 0.5).step()
    opt.AdamW(wide, 0.5).step()
    for p, q in zip(narrow, wide, strict=True):
        # Computed in float32, rounded once.
        assert torch.equal(p.detach(), q.detach().bfloat16())


@pytest.mark.parametrize("name", METHODS)
def test_maximize_is_descent_on_the_negative(name):
    ours, _, settings = METHODS[name]
    up, down = parameters(ours), parameters(ours)
    climber, walker = ours(up, maximize=True, **settings), ours(down, **settings)
    for step in range(5):
        gradients(up, step)
        for p, q in zip(up, down, strict=True):
            q.grad = -p.grad
        kept = [p.grad.clone() for p in up]
        climber.step()
        walker.step()
        # The gradient belongs to the caller.
        assert all(torch.equal(p.grad, k) for p, k in zip(up, kept, strict=True))
    for p, q in zip(up, down, strict=True):
        assert torch.equal(p.detach(), q.detach())


@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_left_as_they_are(name):
    ours, _, settings = METHODS[name]
    params = parameters(ours)
    gradients(params, 0)
    kept = [p.grad.clone() for p in params]
    ours(params, **settings).step()
    assert all(torch.equal(p.grad, k) for p, k in zip(params, kept, strict=True))


@pytest.mark.parametrize("ours", CLASSES)
def test_groups_have_settings_of_their_own_and_parameters_without_gradient_rest(ours):
    params = parameters(ours)
    alone, still = parameters(ours), parameters(ours)
    optimizer = ours([{"params": params[:1], "lr": 0.5}, {"params": params[1:]}], lr=0.125)
    single = [ours(alone[:1], 0.5), ours(alone[1:], 0.125)]
    for step in range(3):
        gradients(params, step)
        gradients(alone, step)
        if step == 1:
            params[-1].grad = alone[-1].grad = None
        optimizer.step()
        for one in single:
            one.step()
    for p, q in zip(params, alone, strict=True):
        assert torch.equal(p.detach(), q.detach())
    assert optimizer.state[params[-1]]["step"] == 2
    assert optimizer.state[params[0]]["step"] == 3
    frozen = ours(still, 0.5)
    frozen.step()
    assert not frozen.state
    for p, q in zip(still, parameters(ours), strict=True):
        assert torch.equal(p.detach(), q.detach())


def test_a_late_parameter_has_its_own_bias_correction():
    early, late = (torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2))
    optimizer = opt.Adam([early, late], 0.1, eps=0.0)
    early.grad = torch.full((3,), 5.0, dtype=torch.float64)
    for _ in range(4):
        optimizer.step()
    late.grad = torch.full((3,), 0.01, dtype=torch.float64)
    optimizer.step()
    # A first step of Adam has length lr, for whatever gradient.
    torch.testing.assert_close(late.detach(), torch.full((3,), -0.1, dtype=torch.float64))


def test_the_closure_is_called_with_gradients_on_and_its_loss_returned():
    weight = torch.nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
    optimizer = opt.SGD([weight], 0.25)

    def closure():
        optimizer.zero_grad()
        loss = weight**2
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert weight.item() == 3.0 - 0.25 * 6.0
    assert optimizer.step() is None


@pytest.mark.parametrize("ours", CLASSES)
def test_a_scheduler_of_pytorch_steers_the_rate(ours):
    params = parameters(ours)
    optimizer = ours(params, 0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: opt.warmup_cosine(step, warmup=4, total=10)
    )
    assert optimizer.param_groups[0]["lr"] == 0.125
    gradients(params, 0)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("ours", CLASSES)
def test_it_runs_on_the_meta_device(ours, foreach):
    params = parameters(ours, torch.float32, "meta")
    for p in params:
        p.grad = torch.empty_like(p)
    optimizer = ours(params, 0.1, foreach=foreach)
    optimizer.step()
    assert all(
        v.device.type == "meta"
        for s in optimizer.state.values()
        for v in s.values()
        if isinstance(v, torch.Tensor)
    )


def test_hyper_parameters_out_of_their_domain_are_refused():
    weight = torch.nn.Parameter(torch.ones(5, 3))
    for ours in CLASSES:
        with pytest.raises(ValueError, match=r"lr must lie in \[0.0, inf\), got -1"):
            ours([weight], -1.0)
        with pytest.raises(ValueError, match=r"lr must lie in \[0.0, inf\), got nan"):
            ours([weight], float("nan"))
        with pytest.raises(ValueError, match=r"weight_decay must lie .* got -0.5"):
            ours([weight], 0.1, weight_decay=-0.5)
    for ours in (opt.Momentum, opt.Nesterov, opt.Muon):
        with pytest.raises(ValueError, match=r"momentum must lie in \[0.0, 1.0\), got 1.0"):
            ours([weight], 0.1, momentum=1.0)
    for ours in (opt.AdaGrad, opt.RMSProp, opt.Adam, opt.AdamW, opt.Muon):
        with pytest.raises(ValueError, match=r"eps must lie .* got -1e-08"):
            ours([weight], 0.1, eps=-1e-8)
    for ours in (opt.Adam, opt.AdamW, opt.Lion):
        with pytest.raises(ValueError, match=r"betas\[1\] must lie in \[0.0, 1.0\), got 1.0"):
            ours([weight], 0.1, betas=(0.9, 1.0))
        with pytest.raises(ValueError, match=r"betas\[0\] must lie .* got -0.1"):
            ours([weight], 0.1, betas=(-0.1, 0.5))
    with pytest.raises(ValueError, match=r"alpha must lie .* got 1.5"):
        opt.RMSProp([weight], alpha=1.5)
    with pytest.raises(ValueError, match="betas must be two numbers"):
        opt.Adam([{"params": [weight], "betas": (0.9, 0.99, 0.999)}])
    with pytest.raises(ValueError, match="steps must be 0 or more, got -1"):
        opt.Muon([weight], steps=-1)
    with pytest.raises(ValueError, match=r"coefficients must be three numbers, got \(1.5, -0.5\)"):
        opt.Muon([{"params": [weight], "coefficients": (1.5, -0.5)}])
    with pytest.raises(ValueError, match="scale must be one of original, match_rms, none"):
        opt.Muon([{"params": [weight], "scale": "large"}])
    with pytest.raises(ValueError, match=r"Muon updates matrices, got a parameter of shape \(3,\)"):
        opt.Muon([torch.nn.Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match=r"real and floating, got torch\.complex64"):
        opt.SGD([torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))])


def test_a_refused_group_leaves_no_trace():
    first, second = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = opt.Adam([first])
    with pytest.raises(ValueError, match="lr must lie"):
        optimizer.add_param_group({"params": [second], "lr": -1.0})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [second], "lr": 0.5})
    assert optimizer.param_groups[1]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("ours", CLASSES)
def test_sparse_gradients_are_refused(ours):
    embedding = torch.nn.Embedding(11, 5, sparse=True)
    embedding(torch.tensor([3, 7])).sum().backward()
    with pytest.raises(ValueError, match=r"gradients must be dense.*sparse=False"):
        ours(embedding.parameters(), 0.1).step()


def test_a_state_of_another_size_is_refused():
    one, two = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    with pytest.raises(ValueError, match="doesn't match the size"):
        opt.Adam([one, two]).load_state_dict(opt.Adam([one]).state_dict())


def test_a_rule_without_an_update_says_so():
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    with pytest.raises(NotImplementedError, match="UpdateRule defines no update rule"):
        opt.UpdateRule([weight], lr=0.1).step()


UPDATES = {
    "sgd": (opt.sgd_update, 0, {}),
    "momentum": (opt.momentum_update, 1, {}),
    "nesterov": (opt.nesterov_update, 1, {}),
    "adagrad": (opt.adagrad_update, 1, {}),
    "rmsprop": (opt.rmsprop_update, 1, {}),
    "adam": (opt.adam_update, 2, {"step": 3}),
    "adamw": (opt.adamw_update, 2, {"step": 3}),
    "lion": (opt.lion_update, 1, {}),
    "muon": (opt.muon_update, 1, {}),
}


@pytest.mark.parametrize("name", UPDATES)
def test_the_pure_updates_change_no_argument_and_run_on_meta(name, g):
    update, slots, extra = UPDATES[name]
    tensors = [randn(5, 3, generator=g, dtype=torch.float64) for _ in range(2 + slots)]
    tensors[2:] = [t.abs() for t in tensors[2:]]
    kept = [t.clone() for t in tensors]
    out = update(*tensors, lr=0.1, weight_decay=0.2, **extra)
    assert len(out) == 1 + slots
    assert all(o.shape == (5, 3) and o.dtype == torch.float64 for o in out)
    assert all(torch.equal(t, k) for t, k in zip(tensors, kept, strict=True))
    out = update(*(t.to("meta") for t in tensors), lr=0.1, weight_decay=0.2, **extra)
    assert all(o.device.type == "meta" for o in out)


@given(
    factor=st.floats(1e-3, 1e3),
    step=st.integers(1, 50),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=30)
def test_adam_without_eps_does_not_see_the_scale_of_the_loss(factor, step, seed):
    g = generator(seed)
    param, grad, first = (randn(7, generator=g, dtype=torch.float64) for _ in range(3))
    second = randn(7, generator=g, dtype=torch.float64) ** 2
    one, _, _ = opt.adam_update(param, grad, first, second, step=step, lr=0.1, eps=0.0)
    other, _, _ = opt.adam_update(
        param, factor * grad, factor * first, factor**2 * second, step=step, lr=0.1, eps=0.0
    )
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@given(
    lr=st.floats(0, 1),
    decay=st.floats(0, 1),
    momentum=st.floats(0, 0.99),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=30)
def test_momentum_of_zero_is_sgd_and_decay_is_an_l2_penalty(lr, decay, momentum, seed):
    g = generator(seed)
    param, grad, velocity = (randn(7, generator=g, dtype=torch.float64) for _ in range(3))
    (plain,) = opt.sgd_update(param, grad, lr=lr, weight_decay=decay)
    for update in (opt.momentum_update, opt.nesterov_update):
        new, _ = update(param, grad, velocity, lr=lr, momentum=0.0, weight_decay=decay)
        torch.testing.assert_close(new, plain)
        coupled = update(param, grad, velocity, lr=lr, momentum=momentum, weight_decay=decay)
        by_hand = update(param, grad + decay * param, velocity, lr=lr, momentum=momentum)
        torch.testing.assert_close(coupled, by_hand)


@given(lr=st.floats(0, 1), decay=st.floats(0, 1), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_decoupled_decay_shrinks_by_the_same_factor_whatever_the_gradient(lr, decay, seed):
    g = generator(seed)
    param, grad, first = (randn(7, generator=g, dtype=torch.float64) for _ in range(3))
    second = randn(7, generator=g, dtype=torch.float64) ** 2
    with_decay = opt.adamw_update(param, grad, first, second, step=3, lr=lr, weight_decay=decay)[0]
    without = opt.adam_update(param, grad, first, second, step=3, lr=lr)[0]
    torch.testing.assert_close(with_decay, without - lr * decay * param, rtol=1e-9, atol=1e-9)


def model(count=10_000_000):
    """The shapes of a Transformer with ten million parameters, with gradients."""
    g = generator(0)
    layer = [(768, 256), (256, 256), (1024, 256), (256, 1024), (256,), (256,), (1024,), (256,)]
    shapes = [(2100, 256), *(shape for _ in range(12) for shape in layer)]
    params = [torch.nn.Parameter(randn(*shape, generator=g)) for shape in shapes]
    for p in params:
        p.grad = randn(*p.shape, generator=g)
    assert abs(sum(p.numel() for p in params) / count - 1) < 0.01
    return params


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("name", [n for n in WITH_TORCH if "decay" not in n])
def test_a_step_takes_at_most_1_2_times_as_long_as_that_of_pytorch(name):
    ours, theirs, settings = METHODS[name]
    a, b = model(), model()
    mine, reference = ours(a, **settings), theirs_for(ours, theirs, settings)(b)
    best = {mine: float("inf"), reference: float("inf")}
    # By turns, and the best of each: what else the machine does slows both, and a spell of it
    # must pass before the two have had a quiet moment each.
    for turn in range(400):
        for optimizer in best:
            start = time.perf_counter()
            optimizer.step()
            best[optimizer] = min(best[optimizer], time.perf_counter() - start)
        if turn >= 6 and best[mine] <= 1.1 * best[reference]:
            break
    assert best[mine] <= 1.2 * best[reference]
