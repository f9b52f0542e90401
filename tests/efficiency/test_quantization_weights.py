"""Weights on grids, layers that hold them, and whole models."""

import copy
import itertools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from companion import data
from companion.core import linear_places
from companion.efficiency.quantization import (
    QuantizedEmbedding,
    QuantizedLinear,
    WeightCodes,
    awq_scales,
    gptq,
    is_quantized,
    load_quantized,
    model_bytes,
    quantize,
    round_weights,
    save_quantized,
    smollm2_q4_1,
    smooth_scales,
)
from companion.efficiency.quantization import _kernels as kernels
from companion.efficiency.sparsity import output_error
from companion.models import TextDecoder, generate, load_pretrained, smollm2
from companion.pretraining.transfer import add_lora
from companion.transformer.block import Decoder, Encoder, EncoderDecoder, Learned, TransformerConfig


def normal(*shape, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=dtype)


def llama(**changes):
    sizes = {"vocab": 41, "dim": 64, "layers": 2, "heads": 4, "ff_dim": 96, "context": 37}
    form = {"norm": "rms", "activation": "swiglu", "attention_bias": False, "ff_bias": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder(TransformerConfig(**(sizes | form | changes))).eval()


IDS = torch.tensor([[1, 5, 2, 7, 11, 3, 0, 40]])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_rounded_weight_is_half_a_step_away_at_most(bits, symmetric):
    W = normal(5, 48)
    made = round_weights(W, bits=bits, group=16, symmetric=symmetric)
    step = made.scale.double().repeat_interleave(16, 1)
    # The step itself is rounded to 8 bits of fraction, so the ends may be cut by 2^-8 of the range.
    slack = 2.0**-8 * W.abs().amax()
    assert bool(((made.values(torch.float64) - W).abs() <= step / 2 + slack).all())
    assert (made.center is None) == symmetric


def test_searching_the_grid_is_never_worse_than_the_whole_range():
    W = normal(7, 64)
    W[0, 0] = 30.0
    plain = (round_weights(W, bits=3, group=64).values(W.dtype) - W).square().sum(1)
    better = (round_weights(W, bits=3, group=64, search=True).values(W.dtype) - W).square().sum(1)
    assert bool((better <= plain + 1e-12).all())
    assert float(better[0]) < 0.95 * float(plain[0])


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_search_for_symmetric_grids_counts_only_codes_that_they_have(bits):
    # With -2^(b-1) counted, which a symmetric grid has not, negative ends came out too short.
    W = -normal(7, 64).abs()
    plain = round_weights(W, bits=bits, group=64, symmetric=True)
    better = round_weights(W, bits=bits, group=64, symmetric=True, search=True)
    errors = [(made.values(W.dtype) - W).square().sum(1) for made in (plain, better)]
    assert bool((errors[1] <= errors[0] + 1e-12).all())
    turned = round_weights(-W, bits=bits, group=64, symmetric=True, search=True)
    assert torch.equal(turned.codes, -better.codes)
    assert torch.equal(turned.scale, better.scale)
    X = normal(97, 64, seed=1)
    H = 2 * X.T @ X
    careful = [gptq(w, H, bits=bits, group=64, symmetric=True, search=True) for w in (W, -W)]
    assert torch.equal(careful[0].codes, -careful[1].codes)


def by_definition(W, H, made):
    """OBQ in a fixed order: round a column, let the free ones adapt, invert anew."""
    W, codes = W.clone(), []
    for q in range(W.shape[1]):
        inverse = torch.linalg.inv(H[q:, q:])
        s, c = made.scale.double()[:, q // made.group], made.center.double()[:, q // made.group]
        low, high = -(2 ** (made.bits - 1)), 2 ** (made.bits - 1) - 1
        code = ((W[:, q] - c) / s).round().clamp(low, high)
        error = (W[:, q] - (s * code + c)) / inverse[0, 0]
        W[:, q:] -= error[:, None] * inverse[0]
        codes.append(code)
    return torch.stack(codes, 1)


@pytest.mark.parametrize("block", [1, 5, 7, 24])
@pytest.mark.parametrize("group", [4, 12, 24])
def test_gptq_in_blocks_is_optimal_brain_surgery_column_by_column(block, group):
    W, X = normal(3, 24), normal(97, 24, seed=1) @ normal(24, 24, seed=2)
    H = 2 * X.T @ X
    made = gptq(W, H, bits=3, group=group, damping=0.0, block=block)
    assert torch.equal(made.codes.double(), by_definition(W, H, made))


def test_gptq_on_independent_inputs_is_rounding_to_nearest():
    W = normal(5, 32)
    diagonal = torch.diag(normal(32, seed=1).square() + 0.1)
    made = gptq(W, diagonal, bits=4, group=16)
    assert torch.equal(made.codes, round_weights(W, bits=4, group=16).codes)


def test_gptq_beats_rounding_and_rounding_may_beat_the_order_but_not_all_codes():
    W, X = normal(17, 32), normal(101, 32, seed=1) @ normal(32, 32, seed=2)
    H = 2 * X.T @ X
    careful = output_error(W, gptq(W, H, bits=3, group=32).values(W.dtype), H)
    plain = output_error(W, round_weights(W, bits=3, group=32).values(W.dtype), H)
    assert float(careful) < 0.7 * float(plain)
    # All codes of one short row, on the same grid: none is better than the best.
    w, H = W[:1, :4], H[:4, :4]
    made = gptq(w, H, bits=2, group=4, damping=0.0)
    all_codes = torch.tensor(list(itertools.product(range(-2, 2), repeat=4))).double()
    change = made.scale.double() * all_codes + made.center.double() - w
    least = (change @ H * change).sum(1).min() / 2
    found = output_error(w, made.values(torch.float64), H)
    assert float(least) <= float(found) * (1 + 1e-9)


def test_gptq_lives_with_dead_and_dependent_inputs():
    W, X = normal(3, 16), normal(5, 16, seed=1)  # fewer rows than inputs: H is singular
    X[:, 3] = 0
    made = gptq(W, 2 * X.T @ X, bits=4, group=16)
    assert bool(made.values().isfinite().all())
    step = float(made.scale.amax())
    assert bool((made.values()[:, 3].abs() <= step).all())


@pytest.mark.parametrize("make", [smooth_scales, None])
def test_scaling_inputs_and_weights_changes_nothing_before_rounding(make):
    W, X = normal(5, 32), normal(29, 32, seed=1)
    X[:, 7] *= 60
    if make is None:
        t = awq_scales(W, 2 * X.T @ X, bits=3, group=16)
    else:
        t = smooth_scales(X.abs().amax(0), W, strength=0.7)
    torch.testing.assert_close((X / t) @ (W * t).T, X @ W.T, rtol=1e-12, atol=1e-11)
    assert bool((t > 0).all())
    assert t.unique().numel() > 1


def test_awq_is_never_worse_than_no_scales_on_its_calibration():
    W, X = normal(11, 64), normal(97, 64, seed=1)
    X[:, 5] *= 30
    H = 2 * X.T @ X
    t = awq_scales(W, H, bits=3, group=32)
    scaled = round_weights(W * t, bits=3, group=32).values(W.dtype) / t
    plain = round_weights(W, bits=3, group=32).values(W.dtype)
    assert float(output_error(W, scaled, H)) < 0.9 * float(output_error(W, plain, H))


# Layers and kernels


def test_packed_codes_can_be_read_back():
    g = torch.Generator().manual_seed(0)
    for outputs in (1, 16, 31, 32, 100, 160):
        codes = torch.randint(0, 16, (outputs, 96), generator=g, dtype=torch.uint8)
        packed = kernels.pack_int4(codes)
        assert packed is not None
        assert torch.equal(kernels.unpack_int4(packed, outputs), codes)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("outputs", [5, 32, 67])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_kernel_is_the_dense_product_up_to_bfloat16(bits, group, outputs, symmetric):
    if bits == 8:
        group, symmetric = None, True
    W = normal(outputs, 128, dtype=torch.float32)
    made = round_weights(W, bits=bits, group=group, symmetric=symmetric)
    layer = QuantizedLinear(made, bias=normal(outputs, seed=2, dtype=torch.float32))
    assert layer.packed == (bits == 4)
    x = normal(3, 7, 128, seed=1, dtype=torch.float32)
    assert layer._fast(x)
    dense = x.double() @ made.values(torch.float64).T + layer.bias.double()
    # Inputs and outputs are rounded to bfloat16, relative 2^-9 each; the first errors add up at
    # random over 128 terms, and the second is of the size of the output.
    scale = float(x.double().norm(dim=-1).amax() * made.values().double().norm(dim=1).amax())
    assert float((layer(x).double() - dense).abs().max()) < 2.0**-8 * scale
    # For inputs that bfloat16 holds nothing is left but the last rounding.
    bare = QuantizedLinear(made)
    whole = x.round().clamp(-3, 3)
    exact = whole.double() @ made.values(torch.float64).T
    torch.testing.assert_close(bare(whole).double(), exact, rtol=2.0**-8, atol=1e-4)


def off_boundary(tensor):
    """The same numbers at an address that is no multiple of 16 bytes."""
    room = torch.empty(tensor.numel() + 64, dtype=tensor.dtype)
    start = -room.data_ptr() % 64 // tensor.element_size() + 1
    made = room[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)
    assert made.data_ptr() % 16 == tensor.element_size()
    return made


@pytest.mark.parametrize("bits", [4, 8])
def test_the_kernel_takes_rows_from_wherever_they_lie(bits):
    options = {"group": None, "symmetric": True} if bits == 8 else {}
    made = round_weights(normal(5, 64, dtype=torch.float32), bits=bits, **options)
    layer = QuantizedLinear(made)
    if bits == 8:
        # As in a file that is mapped. PyTorch's kernel ends the process at such an address.
        moved = QuantizedLinear(
            WeightCodes(off_boundary(made.codes), made.scale, made.center, bits)
        )
    else:
        moved = layer
    x = normal(3, 64, seed=1, dtype=torch.float32)
    assert layer._fast(x)
    assert torch.equal(moved(x), layer(x))
    low = x.bfloat16()
    assert torch.equal(moved(off_boundary(low)), layer(low))
    columns = x.T.contiguous().T
    assert not columns.is_contiguous()
    assert torch.equal(layer(columns), layer(x))
    assert torch.equal(layer(columns.bfloat16()), layer(low))


@pytest.mark.parametrize("inputs", [7, 40, 72, 100])
def test_rows_that_the_kernel_would_read_beyond_are_multiplied_plainly(inputs):
    made = round_weights(normal(5, inputs, dtype=torch.float32), bits=8, group=None, symmetric=True)
    layer = QuantizedLinear(made)
    x = normal(3, inputs, seed=1, dtype=torch.float32)
    assert not layer._fast(x)
    torch.testing.assert_close(layer(x), x @ made.values(torch.float32).T, rtol=1e-5, atol=1e-5)


def test_many_rows_gradients_and_float64_take_the_dense_product():
    made = round_weights(normal(7, 64, dtype=torch.float32), bits=4)
    layer = QuantizedLinear(made)
    W = made.values(torch.float64)
    x = normal(kernels.KERNEL_ROWS + 1, 64, seed=1)
    torch.testing.assert_close(layer(x), x @ W.T, rtol=1e-12, atol=1e-12)
    x32 = x.float().requires_grad_()
    layer(x32[:1]).sum().backward()
    torch.testing.assert_close(x32.grad[0].double(), W.sum(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.weight.double(), W, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3])
def test_planes_hold_the_bits_of_eight_neighbors_in_a_byte(bits):
    made = round_weights(normal(5, 48, dtype=torch.float32), bits=bits, group=16)
    layer = QuantizedLinear(made)
    planes = layer.parts()["codes"]
    assert planes.dtype == torch.uint8
    assert planes.shape == (5, bits, 6)  # bits / 8 bytes for each of 48 inputs
    for row, codes in enumerate(made.codes.tolist()):
        for k in range(bits):
            # One long number in base 2, whose lowest digit is that of the first input.
            number = sum(((code + 2 ** (bits - 1)) >> k & 1) << j for j, code in enumerate(codes))
            assert bytes(planes[row, k].tolist()) == number.to_bytes(6, "little")
    assert torch.equal(layer.weight_codes().codes, made.codes)
    x = normal(3, 48, seed=1, dtype=torch.float32)
    assert not layer._fast(x)
    torch.testing.assert_close(layer(x), x @ made.values().T, rtol=1e-5, atol=1e-5)
    again = QuantizedLinear.from_parts(layer.parts())
    assert again.bits == bits
    assert torch.equal(again(x), layer(x))
    # Grids are 2 of 16 bits for each 16 inputs, so that a weight takes two bits more than its code.
    assert layer.bytes == 5 * 48 * (bits + 2) / 8


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_layer_moves_and_is_copied_without_losing_its_codes(bits):
    made = round_weights(normal(7, 64, dtype=torch.float32), bits=bits)
    layer = QuantizedLinear(made)
    x = normal(2, 64, seed=1, dtype=torch.float32)
    before = layer(x)
    again = copy.deepcopy(layer).double().float()
    assert torch.equal(again(x), before)
    assert torch.equal(again.weight_codes().codes, made.codes)
    other = QuantizedLinear(round_weights(torch.ones(7, 64), bits=bits))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), before)
    meta = copy.deepcopy(layer).to("meta")
    assert meta(torch.empty(2, 64, device="meta")).shape == (2, 7)
    assert layer(torch.empty(0, 64)).shape == (0, 7)


def test_rounded_activations_are_a_product_of_integers():
    W = normal(5, 48, dtype=torch.float32)
    made = round_weights(W, bits=8, group=None, symmetric=True)
    layer = QuantizedLinear(made, round_activations=True)
    x = normal(3, 48, seed=1, dtype=torch.float32)
    step = x.abs().amax(1, keepdim=True).double() / 127
    rounded = (x.double() / step).round() * step
    torch.testing.assert_close(
        layer(x).double(), rounded @ made.values().double().T, rtol=1e-5, atol=1e-5
    )


# Models


@pytest.mark.parametrize(
    ("bits", "smaller", "moved"), [(8, 0.4, 0.03), (4, 0.3, 0.4), (3, 0.25, 0.7), (2, 0.2, 1.5)]
)
def test_a_quantized_model_is_smaller_and_says_nearly_the_same(bits, smaller, moved):
    model = llama()
    before = model(IDS)
    small = quantize(model, bits=bits)
    assert model_bytes(small) < model_bytes(model) * smaller
    change = (small(IDS) - before).norm() / before.norm()
    assert 0 < float(change.detach()) < moved
    assert torch.equal(model(IDS), before)  # the model itself is as it was
    assert all(isinstance(m, nn.Linear) for m in map(model.get_submodule, paths(model)))
    assert all(isinstance(small.get_submodule(path), QuantizedLinear) for path in paths(small))


def paths(model):
    return [place.path for place in linear_places(model)]


def test_a_tied_table_is_held_once_and_stays_tied():
    model = llama(tied=True)
    small = quantize(model, bits=4)
    assert isinstance(small.tokens, QuantizedEmbedding)
    assert small.tokens.table is small.head
    assert small.head.bits == 8
    assert small.config.tied
    looked_up = small.tokens(IDS)[0]
    torch.testing.assert_close(looked_up, small.head.weight[IDS[0]])
    loose = quantize(llama(tied=False), bits=4)
    assert loose.tokens.table is not loose.head


@pytest.mark.parametrize("method", ["mse", "gptq", "awq"])
def test_the_methods_lose_less_than_rounding_on_what_they_were_shown(method):
    model = llama()
    g = torch.Generator().manual_seed(0)
    shown = torch.randint(0, 41, (8, 29), generator=g)
    want = model(shown)

    def lost(small):
        return float((small(shown) - want).norm().detach())

    made = quantize(model, bits=4, method=method, calibration=[shown])
    plain = quantize(model, bits=4)
    assert lost(made) < lost(plain)


def test_smoothing_helps_where_one_input_is_large():
    model = llama()
    with torch.no_grad():
        model.blocks[0].attention_norm.weight[3] = 80.0
        model.blocks[1].feed_forward_norm.weight[5] = 80.0
    want = model(IDS)
    plain = quantize(model, bits=8, round_activations=True)
    smooth = quantize(model, bits=8, method="smooth", round_activations=True, calibration=[IDS])
    assert float((smooth(IDS) - want).norm().detach()) < 0.8 * float(
        (plain(IDS) - want).norm().detach()
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_saved_model_comes_back_bit_for_bit(bits, tied, tmp_path):
    small = quantize(llama(tied=tied), bits=bits)
    save_quantized(small, tmp_path / "a")
    again = load_quantized(tmp_path / "a")
    assert isinstance(again, TextDecoder)
    assert torch.equal(again.model(IDS), small(IDS))
    assert is_quantized(tmp_path / "a")
    size = (tmp_path / "a" / "model.safetensors").stat().st_size
    assert size < 1.2 * model_bytes(small) + 20_000
    with pytest.raises(ValueError, match="holds integers"):
        load_pretrained(tmp_path / "a")
    written = generate(again.model, IDS[:, :3], tokens=5)
    assert torch.equal(written, generate(small, IDS[:, :3], tokens=5))


def test_scales_of_inputs_survive_a_round_trip(tmp_path):
    small = quantize(llama(), bits=4, method="awq", calibration=[IDS])
    save_quantized(small, tmp_path)
    assert torch.equal(load_quantized(tmp_path).model(IDS), small(IDS))
    w8a8 = quantize(llama(), bits=8, method="smooth", round_activations=True, calibration=[IDS])
    save_quantized(w8a8, tmp_path / "b")
    assert torch.equal(load_quantized(tmp_path / "b").model(IDS), w8a8(IDS))


@pytest.mark.parametrize("kind", [Encoder, EncoderDecoder])
def test_the_other_forms_of_model_are_quantized_too(kind):
    config = TransformerConfig(
        vocab=41, dim=64, layers=1, heads=4, ff_dim=96, context=13, positions=Learned()
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = kind(config).eval()
    inputs = (IDS,) if kind is Encoder else (IDS, IDS[:, :5])
    want = model(*inputs)
    made = quantize(model, bits=8)(*inputs)
    assert float(((made - want).norm() / want.norm()).detach()) < 0.03


def test_lora_trains_beside_integers():
    small = quantize(llama(), bits=4)
    g = torch.Generator().manual_seed(0)
    add_lora(small, targets=["query", "down"], rank=2, alpha=4.0, generator=g)
    small(IDS).square().mean().backward()
    layer = small.blocks[0].feed_forward.down
    assert float(layer.B[0].grad.abs().sum()) > 0
    assert all(p.grad is None for n, p in small.named_parameters() if "norm" in n and p.grad)


@pytest.mark.usefixtures("own_checks")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bits": 5}, "bits must be 2, 3, 4 or 8"),
        ({"method": "magic"}, "method must be one of nearest, mse"),
        ({"method": "gptq"}, "give calibration"),
        ({"method": "gptq", "calibration": []}, "calibration is empty"),
        ({"bits": 4, "group": 48}, "blocks.0.attention.qkv: group must divide the 64 inputs"),
        ({"bits": 4, "round_activations": True}, "give bits=8"),
        ({"method": "smooth", "calibration": [IDS]}, "give round_activations=True"),
    ],
)
def test_choices_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        quantize(llama(), **options)


def test_more_errors_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="no linear layer left"):
        quantize(quantize(llama()))
    with pytest.raises(ValueError, match="got a str"):
        quantize("smollm2")
    with pytest.raises(ValueError, match="no quantized layer"):
        save_quantized(llama(), tmp_path)
    five = round_weights(torch.ones(3, 32), bits=5)
    with pytest.raises(ValueError, match="2, 3, 4 or 8 bits"):
        QuantizedLinear(five)
    with pytest.raises(ValueError, match="a multiple of 8 inputs, got 12"):
        QuantizedLinear(round_weights(torch.ones(3, 12), bits=3, group=12))
    four_planes = {"codes": torch.zeros(3, 4, 2, dtype=torch.uint8), "scale": torch.ones(3, 1)}
    with pytest.raises(ValueError, match=r"2 or 3 planes of uint8, got torch.uint8 of shape"):
        QuantizedLinear.from_parts(four_planes)
    with pytest.raises(ValueError, match="one step a row"):
        QuantizedLinear(round_weights(torch.ones(3, 32), bits=4), round_activations=True)
    with pytest.raises(ValueError, match="even number"):
        QuantizedLinear(round_weights(torch.ones(3, 7), bits=4, group=7))
    with pytest.raises(ValueError, match="8 bits"):
        QuantizedEmbedding(QuantizedLinear(round_weights(torch.ones(3, 32), bits=4)))
    with pytest.raises(ValueError, match="needs codes and scale"):
        QuantizedLinear.from_parts({})


def test_a_damaged_folder_is_refused(tmp_path):
    save_quantized(quantize(llama(), bits=4), tmp_path)
    path = tmp_path / "model.safetensors"
    good = load_file(path)
    for change, said in (
        ({"blocks.9.norm": torch.ones(3)}, "left over"),
        (
            {
                "blocks.9.attention.qkv.codes": torch.ones(2, 2, dtype=torch.int8),
                "blocks.9.attention.qkv.scale": torch.ones(2, 1),
            },
            "no place",
        ),
        ({"final_norm.weight": torch.ones(3)}, "wrong shape"),
    ):
        save_file(good | change, path)
        with pytest.raises(ValueError, match=said):
            load_quantized(tmp_path)
    save_file({n: t for n, t in good.items() if n != "final_norm.weight"}, path)
    with pytest.raises(ValueError, match=r"final_norm.weight' is missing"):
        load_quantized(tmp_path)
    save_file(good, path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no model of save_quantized"):
        load_quantized(tmp_path)


def test_the_codes_of_the_file_of_smollm2_are_those_of_the_layers():
    text = smollm2_q4_1()
    whole = smollm2().model
    for path in ("blocks.0.attention.qkv", "blocks.29.feed_forward.gate_up"):
        layer, linear = text.model.get_submodule(path), whole.get_submodule(path)
        step = layer.weight_codes().scale.float().amax()
        # Step and center in bfloat16: 2^-9 of 8 steps and of the center.
        slack = 2.0**-8 * (8 * step + linear.weight.abs().amax())
        assert (layer.weight - linear.weight).detach().abs().max() < slack
    assert model_bytes(text.model) < model_bytes(whole) / 5
    assert len(data.smollm2_blocks()) == 7 * 30
    ids = torch.tensor([text.tokenizer.encode("The capital of France is").ids])
    assert text.tokenizer.decode(generate(text.model, ids, tokens=1)[0].tolist()) == " Paris"


def test_records_hold_tensors_and_compare_by_identity():
    made = round_weights(torch.ones(3, 32), bits=4)
    assert isinstance(made, WeightCodes)
    assert made != round_weights(torch.ones(3, 32), bits=4)
