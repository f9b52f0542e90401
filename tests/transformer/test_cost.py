"""Ledgers against counters, and the collapse against its bound."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from companion.core import watch
from companion.models import TextDecoder, smollm2
from companion.transformer import block, cost
from companion.transformer.attention import attention
from companion.verify import count_flops

# Sums of at most some hundred products of order 1 in float64.
EXACT = {"rtol": 1e-12, "atol": 1e-13}

PLAIN = block.TransformerConfig(vocab=31, dim=12, layers=2, heads=3, ff_dim=29, context=37)
GROUPED = block.TransformerConfig(
    vocab=23,
    dim=24,
    layers=3,
    heads=6,
    kv_heads=2,
    head_dim=10,
    ff_dim=31,
    context=41,
    norm="rms",
    activation="swiglu",
    attention_bias=False,
    ff_bias=False,
)
UNTIED = replace(GROUPED, tied=False)
ALIBI = replace(PLAIN, positions=block.AlibiBias())
LEARNED = replace(PLAIN, positions=block.Learned(), norm_place="post", segments=2)
CONFIGS = [PLAIN, GROUPED, UNTIED, ALIBI, LEARNED]
NAMES = ["plain", "grouped", "untied", "alibi", "learned"]


def zeros(batch: int, n: int, device: str = "cpu") -> Tensor:
    return torch.zeros(batch, n, dtype=torch.long, device=device)


def decoder(config: block.TransformerConfig, device: str = "cpu") -> block.Decoder:
    with torch.device(device):
        return block.Decoder(config)


# The ledger.


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_forward_pass_costs_what_torch_counts(
    config: block.TransformerConfig, device: str
) -> None:
    model = decoder(config, device)
    counted = count_flops(model, zeros(2, 7, device))
    assert counted == cost.forward_flops(config, 7, batch=2).total
    counted = count_flops(model, zeros(2, 7, device), last=3)
    assert counted == cost.forward_flops(config, 7, batch=2, logits=3).total


def test_each_entry_of_the_bill_is_the_count_of_its_module() -> None:
    model, n, B = decoder(GROUPED), 7, 2
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(zeros(B, n))
    by_module = {name: sum(c.values()) for name, c in counter.get_flop_counts().items()}
    bill = cost.forward_flops(GROUPED, n, batch=B)
    layers = range(GROUPED.layers)
    assert bill.head == by_module["Decoder.head"]
    assert bill.feed_forward == sum(by_module[f"Decoder.blocks.{i}.feed_forward"] for i in layers)
    maps = sum(
        by_module[f"Decoder.blocks.{i}.attention.{m}"] for i in layers for m in ("qkv", "out")
    )
    assert bill.projections == maps
    whole = sum(by_module[f"Decoder.blocks.{i}.attention"] for i in layers)
    assert bill.attention == whole - maps


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_an_encoder_costs_what_torch_counts(config: block.TransformerConfig) -> None:
    counted = count_flops(block.Encoder(config), zeros(3, 11))
    assert counted == cost.forward_flops(config, 11, batch=3, logits=0).total
    assert cost.matrix_weights(config, head=False) == counted_matrices(block.Encoder(config))


def counted_matrices(model: nn.Module) -> int:
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_matrix_weights_are_those_of_the_linear_maps(config: block.TransformerConfig) -> None:
    assert cost.matrix_weights(config) == counted_matrices(decoder(config))


@pytest.mark.parametrize("held", [1, 5])
def test_a_decoding_step_costs_what_torch_counts(held: int) -> None:
    model = decoder(GROUPED)
    with torch.no_grad():
        cache = model.cache(2, 13)
        model(zeros(2, held), cache=cache)
        counted = count_flops(model, zeros(2, 1), cache=cache)
    assert counted == cost.forward_flops(GROUPED, 1, batch=2, held=held).total


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_training_costs_what_torch_counts(config: block.TransformerConfig) -> None:
    model = decoder(config, "meta")
    counted = count_flops(lambda: model(zeros(3, 7, "meta")).sum().backward())
    assert counted == cost.training_flops(config, 7, batch=3).total
    tokens, width = 3 * 7, config.heads * config.head_width
    by_hand = 6 * cost.matrix_weights(config) * tokens + 12 * config.layers * width * 7 * tokens
    assert counted == by_hand


def test_an_encoder_trains_at_three_times_its_forward_pass() -> None:
    with torch.device("meta"):
        model = block.Encoder(PLAIN)
    counted = count_flops(lambda: model(zeros(2, 5, "meta")).sum().backward())
    assert counted == cost.training_flops(PLAIN, 5, batch=2, head=False).total


@given(
    dim=st.sampled_from([6, 12, 18]),
    ff=st.integers(1, 40),
    n=st.integers(1, 9),
    layers=st.integers(1, 3),
    gate=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_the_ledger_is_exact_for_any_configuration(
    dim: int, ff: int, n: int, layers: int, gate: bool
) -> None:
    config = replace(
        PLAIN,
        dim=dim,
        ff_dim=ff,
        layers=layers,
        activation="geglu" if gate else "relu",
        positions=block.NoPositions(),
    )
    counted = count_flops(decoder(config, "meta"), zeros(1, n, "meta"))
    assert counted == cost.forward_flops(config, n).total


def test_at_the_crossover_scores_cost_as_much_as_the_other_products_of_a_layer() -> None:
    classical = replace(PLAIN, dim=6, heads=3, ff_dim=24)
    assert cost.crossover(classical) == 36 == 6 * classical.dim
    n = round(cost.crossover(GROUPED) * 1000)  # 1000 times as long: whole numbers
    bill = cost.forward_flops(GROUPED, n)
    ratio = bill.attention / (bill.projections + bill.feed_forward)
    assert ratio == pytest.approx(1000, rel=1e-4)  # n was rounded to a whole number


def test_memory_is_what_the_tensors_take() -> None:
    model, n, B = decoder(UNTIED), 7, 2
    memory = cost.memory_bytes(UNTIED, n, batch=B)
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    cache = model.cache(B, n)
    assert memory.cache == sum(c.keys.nbytes + c.values.nbytes for c in cache.layers)
    with watch(model, read=["blocks.0.attention.weights"]) as seen:
        model(zeros(B, n))
    assert memory.scores == seen["blocks.0.attention.weights"].nbytes
    optimizer = torch.optim.Adam(model.parameters())
    model(zeros(B, n)).sum().backward()
    optimizer.step()
    held = [p.grad for p in model.parameters()]
    held += [s[k] for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
    assert memory.training == sum(t.nbytes for t in held if t is not None)
    half = cost.memory_bytes(UNTIED, n, batch=B, itemsize=2)
    assert (2 * half.weights, 2 * half.cache) == (memory.weights, memory.cache)


@pytest.mark.parametrize("config", [GROUPED, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize(("held", "batch"), [(1, 1), (5, 2), (11, 3)])
def test_a_decoding_step_reads_weights_once_and_its_cache(
    config: block.TransformerConfig, held: int, batch: int
) -> None:
    model = decoder(config)
    with torch.no_grad():
        cache = model.cache(batch, 17)
        if held > 1:
            model(zeros(batch, held - 1), cache=cache)
        of = [*model.parameters(), *(t for c in cache.layers for t in (c.keys, c.values))]
        read = cost.bytes_read(model, zeros(batch, 1), cache=cache, of=of)
    assert read == cost.decode_bytes(config, held, batch=batch)


def test_bytes_read_knows_views_writes_lookups_and_repeats() -> None:
    table, other = torch.ones(11, 3), torch.ones(5, 7)
    ids = torch.tensor([0, 4])
    assert cost.bytes_read(lambda: table.T[:, :2], of=[table]) == 0
    assert cost.bytes_read(lambda: F.embedding(ids, table), of=[table]) == 4 * 2 * 3
    assert cost.bytes_read(lambda: table[ids], of=[table]) == 4 * 2 * 3
    assert cost.bytes_read(lambda: table[:2].copy_(torch.zeros(2, 3)), of=[table]) == 0
    assert cost.bytes_read(lambda: (table[:2] + 1, table[:2] * 2), of=[table]) == 2 * 4 * 2 * 3
    assert cost.bytes_read(lambda: table[:1].expand(9, 3) + 1, of=[table]) == 4 * 3
    assert cost.bytes_read(lambda: other + 1, of=[table]) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cost.forward_flops(PLAIN, 0), "n must be 1 or more, got 0"),
        (lambda: cost.forward_flops(PLAIN, 5, logits=6), "logits must be from 0 to 5, got 6"),
        (lambda: cost.forward_flops(PLAIN, 5, held=-1), "held must be 0 or more, got -1"),
        (
            lambda: cost.forward_flops(replace(PLAIN, positions=block.Shaw()), 5),
            "does not know the products of Shaw",
        ),
        (lambda: cost.memory_bytes(PLAIN, 5, itemsize=0), "itemsize must be 1 or more, got 0"),
    ],
)
def test_the_ledger_refuses_what_it_cannot_count(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


# The roofline.


def test_a_roofline_is_the_slower_of_two_times() -> None:
    machine = cost.Roofline(peak=6.0, bandwidth=2.0)
    assert machine.ridge == 3.0
    assert machine.attainable(1.5) == 3.0
    assert machine.attainable(3.0) == machine.attainable(30.0) == 6.0
    assert machine.seconds(12.0, 2.0) == 2.0
    assert machine.seconds(6.0, 8.0) == 4.0


@given(flops=st.floats(1, 1e12), moved=st.floats(1, 1e12))
@settings(max_examples=50, deadline=None)
def test_speed_at_an_intensity_is_work_over_time(flops: float, moved: float) -> None:
    machine = cost.Roofline(peak=3e9, bandwidth=7e8)
    speed = flops / machine.seconds(flops, moved)
    assert machine.attainable(flops / moved) == pytest.approx(speed, rel=1e-12)


def test_the_machine_at_hand_can_be_measured(device: torch.device) -> None:
    machine = cost.measure_roofline(device=device, size=64, megabytes=1, repeats=2)
    assert 1e6 < machine.peak < 1e16
    assert 1e6 < machine.bandwidth < 1e15


def test_a_roofline_needs_positive_numbers() -> None:
    with pytest.raises(ValueError, match="peak must lie in"):
        cost.Roofline(peak=0.0, bandwidth=1.0)
    with pytest.raises(ValueError, match="bandwidth must lie in"):
        cost.Roofline(peak=1.0, bandwidth=math.nan)
    with pytest.raises(ValueError, match="repeats must be 1 or more"):
        cost.measure_roofline(repeats=0)


# Layers compared.


def reads(kind: str, n: int, kernel: int, layer: int) -> Tensor:
    back = torch.arange(n)[:, None] - torch.arange(n)
    if kind == "attention":
        return back >= 0
    if kind == "recurrent":
        return (back == 0) | (back == 1)
    step = kernel**layer
    return (back >= 0) & (back % step == 0) & (back // step < kernel)


@pytest.mark.parametrize("kind", ["attention", "recurrent", "convolution"])
@pytest.mark.parametrize("n", [1, 2, 3, 9, 10, 27, 28])
def test_path_lengths_are_those_of_the_network(kind: str, n: int) -> None:
    found = cost.path_length(lambda layer: reads(kind, n, 3, layer))
    assert cost.layer_cost(kind, n, 5, kernel=3).path == found  # type: ignore[arg-type]


def test_plain_convolutions_need_n_over_k_layers() -> None:
    n, k = 29, 5
    back = torch.arange(n)[:, None] - torch.arange(n)
    found = cost.path_length(lambda layer: (back >= 0) & (back < k))
    assert found == math.ceil((n - 1) / (k - 1))


def test_layer_costs_are_those_of_the_products() -> None:
    n, d, k = 11, 7, 3
    X, W, taps = torch.ones(n, d), torch.ones(d, d), torch.ones(d, d, k)
    counted = {
        "attention": count_flops(lambda: (X @ X.T) @ X),
        "recurrent": count_flops(lambda: [x[None] @ W for x in X]),
        "convolution": count_flops(lambda: F.conv1d(X.T[None], taps, padding=1)),
    }
    for kind, flops in counted.items():
        assert cost.layer_cost(kind, n, d, kernel=k).flops == flops  # type: ignore[arg-type]
    assert cost.layer_cost("recurrent", n, d).sequential == n


@pytest.mark.usefixtures("own_checks")
def test_layers_are_refused_where_they_make_no_sense() -> None:
    with pytest.raises(ValueError, match="kind must be attention, recurrent or convolution"):
        cost.layer_cost("pooling", 5, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kernel must be 2 or more, got 1"):
        cost.layer_cost("convolution", 5, 3, kernel=1)
    with pytest.raises(ValueError, match=r"square Bool matrices, got \(2, 3\)"):
        cost.path_length(lambda layer: torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="not heard of the first after 4 layers"):
        cost.path_length(lambda layer: torch.eye(5, dtype=torch.bool), most=4)


# Collapse.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_numbers_are_summed_in_wide_ones(dtype: torch.dtype, g: torch.Generator) -> None:
    # A sum of hundreds has a spacing of 1/4 or more here: in this dtype the differences are lost.
    X = (torch.randn(101, 7, generator=g) + 5).to(dtype)
    for function in (cost.rank_residual, cost.token_diameter):
        made, wide = function(X), function(X.double())
        assert made.dtype == dtype
        # One rounding of the result.
        torch.testing.assert_close(made.double(), wide, rtol=torch.finfo(dtype).eps, atol=0)


def test_the_residual_is_one_for_centered_tokens_and_zero_for_equal_ones(
    g: torch.Generator,
) -> None:
    X = torch.randn(2, 7, 5, generator=g, dtype=torch.float64)
    centered = X - X.mean(1, keepdim=True)
    torch.testing.assert_close(cost.rank_residual(centered), torch.ones(2).double(), **EXACT)
    same = torch.ones(7, 1, dtype=torch.float64) * torch.arange(1.0, 6).double()
    assert float(cost.rank_residual(same)) == pytest.approx(0, abs=1e-15)
    assert float(cost.rank_residual(torch.zeros(3, 2))) == 0
    torch.testing.assert_close(cost.rank_residual(3 * X), cost.rank_residual(X), **EXACT)


def test_the_residual_is_the_distance_to_the_nearest_matrix_of_equal_rows(
    g: torch.Generator,
) -> None:
    X = torch.randn(7, 5, generator=g, dtype=torch.float64)
    row = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    nearest = torch.optim.LBFGS([row], max_iter=50, tolerance_grad=1e-12)

    def distance() -> Tensor:
        return (X - row).square().sum()

    def closure() -> Tensor:
        nearest.zero_grad()
        loss = distance()
        loss.backward()
        return loss

    nearest.step(closure)
    least = distance().detach().sqrt() / X.norm()
    torch.testing.assert_close(cost.rank_residual(X), least, rtol=1e-9, atol=0)


def test_the_diameter_is_the_largest_of_all_distances(g: torch.Generator) -> None:
    X = torch.randn(3, 7, 5, generator=g, dtype=torch.float64)
    pairs = X[:, :, None] - X[:, None]
    naive = pairs.square().sum(-1).sqrt().flatten(1).max(1).values
    torch.testing.assert_close(cost.token_diameter(X), naive, **EXACT)
    # Small distances between large tokens keep their digits.
    near = torch.tensor([[1e6, 0.0], [1e6, 1e-6]], dtype=torch.float64)
    assert float(cost.token_diameter(near)) == pytest.approx(1e-6, rel=1e-12)


@given(
    n=st.integers(2, 9),
    scale=st.floats(0.01, 3.0),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=50, deadline=None)
def test_attention_alone_shrinks_tokens_within_the_bound(n: int, scale: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    X, P, W = (
        torch.randn(*size, generator=g, dtype=torch.float64) for size in ((n, 3), (3, 3), (3, 3))
    )
    Y = X = scale * X
    omega = float(torch.linalg.matrix_norm(P, 2) * torch.linalg.matrix_norm(W, 2)) / 3**0.5
    for layers in (1, 2):
        Y = attention(Y @ P, Y, Y @ W)
        bound = cost.collapse_bound(cost.token_diameter(X), omega, layers=layers)
        assert cost.token_diameter(Y) <= bound * (1 + 1e-9) + 1e-12


def test_two_close_tokens_attain_the_bound_and_a_residual_connection_breaks_it() -> None:
    X = torch.tensor([[0.01], [-0.01]], dtype=torch.float64)
    Y = attention(X, X, X, scale=1.0)
    bound = cost.collapse_bound(cost.token_diameter(X), 1.0)
    # tanh(x) = x up to x**3 / 3, with x = omega * diameter**2 / 4 = 1e-4.
    assert float(cost.token_diameter(Y) / bound) == pytest.approx(1, rel=1e-8)
    assert cost.token_diameter(X + Y) > cost.token_diameter(X)


def test_the_bound_composes() -> None:
    start = torch.tensor(0.7, dtype=torch.float64)
    step = start
    for layers in range(4):
        torch.testing.assert_close(cost.collapse_bound(start, 1.3, layers=layers), step, **EXACT)
        step = cost.collapse_bound(step, 1.3)
    with pytest.raises(ValueError, match="omega must be 0 or more, got -1"):
        cost.collapse_bound(start, -1.0)
    with pytest.raises(ValueError, match="layers must be 0 or more, got -1"):
        cost.collapse_bound(start, 1.0, layers=-1)


# Devices and inputs.


def test_tensor_functions_run_on_meta_and_leave_their_inputs_alone(g: torch.Generator) -> None:
    X = torch.randn(2, 3, 5, 7, generator=g)
    for function in (cost.rank_residual, cost.token_diameter):
        before = X.clone()
        made = function(X)
        assert torch.equal(X, before)
        shape = function(X.to("meta"))
        assert (shape.shape, shape.dtype, shape.device.type) == (made.shape, made.dtype, "meta")


# The real models.


@pytest.fixture(scope="module")
def real() -> TextDecoder:
    return smollm2()


def test_the_bill_of_the_real_decoder_is_exact(real: TextDecoder) -> None:
    config = real.model.config
    hollow = decoder(config, "meta")
    assert count_flops(hollow, zeros(1, 64, "meta")) == cost.forward_flops(config, 64).total
    # Embeddings serve as the output layer; only the gains of the norms take part in no product.
    gains = (2 * config.layers + 1) * config.dim
    assert cost.matrix_weights(config) + gains == 134_515_008
