"""Random weights, the size of signals through depth, and rules for width."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from companion import data
from companion.foundations.backpropagation import (
    RULES,
    Node,
    WidthMLP,
    backward,
    feed_forward,
    init_weights,
    orthogonal,
    signal_stats,
    weight_variance,
    width_scaling,
)

N, D, H, K = 3, 5, 7, 11
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def digits(rows: int) -> Tensor:
    x = data.digits().images[:rows]
    return (x - x.mean()) / x.std()


# --- initialization ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "theirs"),
    [
        ("xavier", torch.nn.init.xavier_normal_),
        ("he", lambda w: torch.nn.init.kaiming_normal_(w, nonlinearity="relu")),
        ("lecun", lambda w: torch.nn.init.kaiming_normal_(w, nonlinearity="linear")),
        ("orthogonal", torch.nn.init.orthogonal_),
    ],
)
def test_variances_are_those_of_torch(rule: str, theirs, g: torch.Generator) -> None:
    d_in, d_out = 601, 397
    # PyTorch's matrices are the transpose of ours, and its functions draw from the global state.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = float(theirs(torch.empty(d_out, d_in)).square().mean())
    made = init_weights([d_in, d_out], rule=rule, generator=g)[0]
    # The relative error of a variance from m samples is sqrt(2 / m); five of them.
    slack = 5 * math.sqrt(2 / (d_in * d_out))
    assert float(made.square().mean()) == pytest.approx(reference, rel=2 * slack)
    assert float(made.square().mean()) == pytest.approx(
        weight_variance(rule, d_in, d_out), rel=slack
    )
    assert abs(float(made.mean())) < 5 * math.sqrt(reference / (d_in * d_out))


@given(st.integers(1, 999), st.integers(1, 999))
def test_xavier_lies_between_the_two_ways(d_in: int, d_out: int) -> None:
    forward, back = 1 / d_in, 1 / d_out
    made = weight_variance("xavier", d_in, d_out)
    assert min(forward, back) - 1e-15 <= made <= max(forward, back) + 1e-15
    # The harmonic mean of the two.
    assert made == pytest.approx(2 / (1 / forward + 1 / back))
    assert weight_variance("he", d_in, d_out) == pytest.approx(2 * forward)
    assert weight_variance("he", d_in, d_out, gain=3.0) == pytest.approx(18 * forward)


@given(st.integers(1, 13), st.integers(1, 13), st.integers(0, 99))
def test_orthogonal_matrices_have_equal_singular_values(d_in: int, d_out: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    w = orthogonal(d_in, d_out, generator=g, gain=1.7, dtype=torch.float64)
    assert tuple(w.shape) == (d_in, d_out)
    values = torch.linalg.svdvals(w)
    torch.testing.assert_close(values, torch.full_like(values, 1.7), rtol=1e-12, atol=0)


def test_orthogonal_matrices_are_uniform(g: torch.Generator) -> None:
    """Without the signs of R the diagonal of Q would have a mean away from 0."""
    traces = torch.stack(
        [orthogonal(D, D, generator=g, dtype=torch.float64).trace() for _ in range(2003)]
    )
    # Under the Haar measure the trace has mean 0 and variance 1, and its second moment is 1.
    assert abs(float(traces.mean())) < 5 / math.sqrt(2003)
    assert float(traces.square().mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / 2003))


def test_weights_follow_generator_dtype_and_device(g: torch.Generator) -> None:
    for rule in RULES:
        one, other = (
            init_weights([N, D, H], rule=rule, generator=torch.Generator().manual_seed(3))
            for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert [tuple(w.shape) for w in one] == [(N, D), (D, H)]
        half = init_weights([N, D], rule=rule, generator=g, dtype=torch.bfloat16)
        assert half[0].dtype == torch.bfloat16
        assert init_weights([N, D], rule=rule, generator=g, device="meta")[0].is_meta


@pytest.mark.usefixtures("own_checks")
def test_initialization_errors(g: torch.Generator) -> None:
    with pytest.raises(ValueError, match="rule must be one of he, lecun, orthogonal, xavier"):
        weight_variance("glorot", N, D)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got d_in = 0 and d_out = 5"):
        weight_variance("he", 0, D)
    with pytest.raises(ValueError, match=r"gain must lie in \(0.0, inf\), got 0.0"):
        orthogonal(N, D, generator=g, gain=0.0)
    with pytest.raises(ValueError, match=r"at least two sizes, got \[3\]"):
        init_weights([N], rule="he", generator=g)


# --- signals -------------------------------------------------------------------------------------


def test_feed_forward_is_the_torch_network(g: torch.Generator) -> None:
    weights = init_weights([D, H, K, N], rule="he", generator=g, dtype=torch.float64)
    biases = [torch.randn(w.shape[1], generator=g, dtype=torch.float64) for w in weights]
    x = torch.randn(13, D, generator=g, dtype=torch.float64)
    layers = []
    for w, b in zip(weights, biases, strict=True):
        linear = torch.nn.Linear(*w.shape, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(w.T)
            linear.bias.copy_(b)
        layers += [linear, torch.nn.SiLU()]
    expected = torch.nn.Sequential(*layers[:-1])(x).detach()
    made = feed_forward(Node(x), weights, biases, activation="silu").value
    torch.testing.assert_close(made, expected, **EXACT)


def test_signal_stats_are_means_of_squares_of_autograd(g: torch.Generator) -> None:
    weights = init_weights([D, H, K], rule="xavier", generator=g, dtype=torch.float64)
    biases = [torch.randn(w.shape[1], generator=g, dtype=torch.float64) for w in weights]
    x = torch.randn(13, D, generator=g, dtype=torch.float64)
    out_grad = torch.randn(13, K, generator=g, dtype=torch.float64)
    copies = [t.clone() for t in (x, out_grad, *weights, *biases)]
    made = signal_stats(weights, x, activation="tanh", biases=biases, out_grad=out_grad)
    leaves = [w.clone().requires_grad_() for w in weights]
    y1 = x @ leaves[0] + biases[0]
    y2 = y1.tanh() @ leaves[1] + biases[1]
    grads = torch.autograd.grad(y2, [y1, y2, *leaves], out_grad)
    squares = [float(t.detach().square().mean()) for t in (y1, y2, x, y1.tanh(), *grads)]
    fields = torch.stack([made.forward, made.inputs, made.backward, made.weights]).reshape(-1)
    torch.testing.assert_close(fields, torch.tensor(squares, dtype=torch.float64), **EXACT)
    for tensor, copy in zip((x, out_grad, *weights, *biases), copies, strict=True):
        assert torch.equal(tensor, copy)


def average_growth(rule: str, activation: str, *, depth: int = 12, draws: int = 40) -> Tensor:
    """Forward and backward growth a layer on digits, the mean over weights."""
    g = torch.Generator().manual_seed(0)
    x = digits(200)
    rates = []
    for _ in range(draws):
        weights = init_weights([64, *[97] * depth], rule=rule, generator=g)
        stats = signal_stats(weights, x, activation=activation, generator=g)
        rates.append(torch.stack([stats.forward, stats.backward.flip(0)]))
    means = torch.stack(rates).mean(0)
    return (means[:, -1] / means[:, 0]) ** (1 / (depth - 1))


@pytest.mark.parametrize(
    ("rule", "activation", "factor"),
    [
        ("he", "relu", 1.0),
        ("xavier", "relu", 0.5),
        ("lecun", "relu", 0.5),
        ("lecun", "linear", 1.0),
        ("he", "linear", 2.0),
        ("orthogonal", "linear", 1.0),
    ],
)
def test_signals_grow_by_the_predicted_factor(rule: str, activation: str, factor: float) -> None:
    # One draw of the weights has a relative error of order sqrt(depth / width); 40 draws bring
    # the mean of the product to 5 / sqrt(97 * 40 / (5 * 12)) < 0.7, its 11th root to 0.05.
    growth = average_growth(rule, activation)
    assert float(growth[0]) == pytest.approx(factor, rel=0.05)
    assert float(growth[1]) == pytest.approx(factor, rel=0.05)


def test_the_first_layer_has_the_variance_of_theory() -> None:
    """Var[y] = n_in Var[w] E[x^2], on real digits, within five standard errors."""
    g = torch.Generator().manual_seed(0)
    x = digits(500).double()
    draws = torch.stack(
        [
            signal_stats(
                init_weights([64, 211], rule="he", generator=g, dtype=torch.float64),
                x,
                generator=g,
            ).forward[0]
            for _ in range(50)
        ]
    )
    expected = 64 * weight_variance("he", 64, 211) * float(x.square().mean())
    assert abs(float(draws.mean()) - expected) < 5 * float(draws.std()) / math.sqrt(50)
    assert float(draws.std()) / math.sqrt(50) < 0.01 * expected


def test_orthogonal_linear_networks_keep_every_length(g: torch.Generator) -> None:
    weights = init_weights([D] * 31, rule="orthogonal", generator=g, dtype=torch.float64)
    x = torch.randn(N, D, generator=g, dtype=torch.float64)
    stats = signal_stats(weights, x, activation="linear", generator=g)
    torch.testing.assert_close(stats.forward, x.square().mean().expand(30), **EXACT)
    torch.testing.assert_close(stats.backward, stats.backward[-1].expand(30), **EXACT)


def test_half_precision_is_measured_in_float32(g: torch.Generator) -> None:
    weights = init_weights([64, 31, 10], rule="he", generator=g, dtype=torch.bfloat16)
    stats = signal_stats(weights, digits(50).bfloat16(), generator=g)
    assert stats.forward.dtype == torch.float32
    assert torch.isfinite(stats.backward).all()


def test_networks_and_stats_run_on_meta() -> None:
    g = torch.Generator().manual_seed(0)
    weights = init_weights([D, H, K], rule="he", generator=g, device="meta")
    x = torch.empty(N, D, device="meta")
    stats = signal_stats(weights, x, activation="gelu", generator=g)
    assert stats.backward.is_meta
    assert tuple(stats.weights.shape) == (2,)
    model = WidthMLP(D, H, K, base_width=2, generator=g, device="meta")
    assert model(x).is_meta


@pytest.mark.usefixtures("own_checks")
def test_signal_errors(g: torch.Generator) -> None:
    x, w = torch.ones(N, D), torch.ones(D, H)
    with pytest.raises(ValueError, match="activation must be one of gelu, linear, relu"):
        feed_forward(Node(x), [w], activation="swish")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 weights need as many biases, got 2"):
        feed_forward(Node(x), [w], [w, w])
    with pytest.raises(ValueError, match="at least one weight matrix"):
        feed_forward(Node(x), [])
    with pytest.raises(ValueError, match="either out_grad or a generator"):
        signal_stats([w], x)
    with pytest.raises(ValueError, match="either out_grad or a generator"):
        signal_stats([w], x, generator=g, out_grad=torch.ones(N, H))
    with pytest.raises(ValueError, match=r"out_grad and the output .*\(3, 5\) and \(3, 7\)"):
        signal_stats([w], x, out_grad=torch.ones(N, D))


def train_deep(rule: str, steps: int) -> float:
    """Train 30 ReLU layers on digits with the engine; return the mean of the last ten losses."""
    g = torch.Generator().manual_seed(0)
    x, y = digits(1797), data.digits().labels
    weights = init_weights([64, *[100] * 29, 10], rule=rule, generator=g)
    losses = []
    for _ in range(steps):
        rows = torch.randint(0, len(x), (64,), generator=g)
        nodes = [Node(w) for w in weights]
        loss = feed_forward(Node(x[rows], needs_grad=False), nodes).cross_entropy(y[rows])
        grads = backward(loss, keep="inputs")
        weights = [w - 0.01 * grads[n] for w, n in zip(weights, nodes, strict=True)]
        losses.append(float(loss.value))
    return sum(losses[-10:]) / 10


@pytest.mark.slow
def test_thirty_relu_layers_train_from_he_and_stall_from_xavier() -> None:
    """He et al. 2015, section 2.2, on digits. A guess of all ten digits costs log 10 nats."""
    assert train_deep("he", 300) < 0.8 * math.log(10)
    assert abs(train_deep("xavier", 300) - math.log(10)) < 0.02


# --- width ---------------------------------------------------------------------------------------


def test_both_parametrizations_agree_at_the_base_width() -> None:
    for role in ("input", "hidden", "output"):
        one, other = (
            width_scaling(role, fan_in=H, base_fan_in=H, parametrization=p)
            for p in ("mup", "standard")
        )
        assert one == other


def test_mup_is_table_8_of_its_paper() -> None:
    made = {role: width_scaling(role, fan_in=96, base_fan_in=12) for role in
            ("input", "hidden", "output")}  # fmt: skip
    ours = {role: (s.variance, s.learning_rate, s.multiplier) for role, s in made.items()}
    assert ours == {
        "input": (1 / 96, 1, 1),
        "hidden": (1 / 96, 1 / 8, 1),
        "output": (1 / 12, 1, 1 / 8),
    }


def test_table_3_trains_the_same_function_as_table_8(g: torch.Generator) -> None:
    """A multiplier of the output against a smaller variance and rate, under Adam."""
    width, base, lr = 24, 6, 0.01
    x = torch.randn(31, width, generator=g, dtype=torch.float64)
    y = torch.randint(0, K, (31,), generator=g)
    drawn = torch.randn(width, K, generator=g, dtype=torch.float64)
    scale = width_scaling("output", fan_in=width, base_fan_in=base)
    ratio = base / width

    def train(start: Tensor, multiplier: float, rate: float) -> Tensor:
        w = torch.nn.Parameter(start)
        # Adam forgets the scale of the gradient up to eps.
        adam = torch.optim.Adam([w], lr=rate, eps=1e-30)
        for _ in range(20):
            adam.zero_grad()
            torch.nn.functional.cross_entropy(multiplier * (x @ w), y).backward()
            adam.step()
        return (multiplier * (x @ w)).detach()

    table_8 = train(scale.variance**0.5 * drawn, scale.multiplier, lr * scale.learning_rate)
    table_3 = train((base / width**2) ** 0.5 * drawn, 1.0, lr * ratio)
    torch.testing.assert_close(table_8, table_3, rtol=1e-9, atol=1e-11)


def first_step_moves(parametrization: str, width: int) -> float:
    """Root mean square change of the last hidden signal after one step of Adam, on digits."""
    g = torch.Generator().manual_seed(0)
    x, y = digits(200), data.digits().labels[:200]
    model = WidthMLP(64, width, 10, base_width=16, generator=g, parametrization=parametrization)
    hidden = []

    def signal() -> Tensor:
        h = x
        for w, b in zip(list(model.weights)[:-1], list(model.biases)[:-1], strict=True):
            h = torch.relu(h @ w + b)
        return h.detach()

    adam = torch.optim.Adam(model.parameter_groups(0.001))
    hidden.append(signal())
    torch.nn.functional.cross_entropy(model(x), y).backward()
    adam.step()
    hidden.append(signal())
    return float((hidden[1] - hidden[0]).square().mean().sqrt())


def test_one_step_moves_signals_alike_at_every_width_in_mup_only() -> None:
    """The coordinate check: growth with the width under the standard rules, none under mup."""
    narrow, wide = 64, 1024
    standard = first_step_moves("standard", wide) / first_step_moves("standard", narrow)
    mup = first_step_moves("mup", wide) / first_step_moves("mup", narrow)
    # 16 times the width. The hidden layers add their changes; noise blurs the exponent 1.
    assert standard > 5
    assert 0.5 < mup < 2


def test_parameter_groups_hold_every_parameter_once(g: torch.Generator) -> None:
    model = WidthMLP(D, 28, K, base_width=H, hidden=3, generator=g)
    groups = model.parameter_groups(0.2)
    held = [p for group in groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(model.parameters())) == 10
    assert [group["lr"] for group in groups] == pytest.approx([0.2, 0.05, 0.05, 0.05, 0.2, 0.2])
    torch.optim.Adam(groups).step()


@pytest.mark.usefixtures("own_checks")
def test_width_errors(g: torch.Generator) -> None:
    with pytest.raises(ValueError, match="role must be 'input', 'hidden' or 'output', got 'head'"):
        width_scaling("head", fan_in=2, base_fan_in=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="parametrization must be 'mup' or 'standard', got 'ntk'"):
        width_scaling("input", fan_in=2, base_fan_in=1, parametrization="ntk")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sizes must be 1 or more, got 0 and 3"):
        width_scaling("input", fan_in=0, base_fan_in=3)
    with pytest.raises(ValueError, match="hidden must be 0 or more, got -1"):
        WidthMLP(D, H, K, base_width=2, hidden=-1, generator=g)
    with pytest.raises(ValueError, match=r"lr must lie in \(0.0"):
        WidthMLP(D, H, K, base_width=2, generator=g).parameter_groups(0.0)
