"""Whole models: quantized, stored, and read again."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from companion import data
from companion.core import check_count, linear_places, restore_linears, wide
from companion.efficiency.quantization._formats import q4_1_decode
from companion.efficiency.quantization._layers import QuantizedEmbedding, QuantizedLinear
from companion.efficiency.quantization._weights import (
    WeightCodes,
    awq_scales,
    gptq,
    round_weights,
    smooth_scales,
)
from companion.efficiency.sparsity import input_hessian
from companion.models import (
    TextDecoder,
    TextEncoder,
    TextEncoderDecoder,
    TextTwoStream,
    smollm2,
)
from companion.models._codec import _make_buffers, _NoInitialization
from companion.models._folder import read_json, read_tensors, write_json, write_tensors
from companion.models._pretrained import (
    FAMILIES,
    describe_pretrained,
    new_folder,
    text_of,
    write_words,
)

__all__ = [
    "QuantizationMethod",
    "is_quantized",
    "load_quantized",
    "model_bytes",
    "quantize",
    "save_quantized",
    "smollm2_q4_1",
]

#: How codes are found: to nearest, with clipping to the least squared error, by GPTQ, with the
#: scales of AWQ, or with those of SmoothQuant.
QuantizationMethod = Literal["nearest", "mse", "gptq", "awq", "smooth"]

_TEXTS = (TextDecoder, TextEncoder, TextEncoderDecoder, TextTwoStream)
_NAME = "companion"
Model = TypeVar("Model")


def quantize(
    model: Model,
    *,
    bits: Literal[2, 3, 4, 8] = 8,
    method: QuantizationMethod = "nearest",
    group: int = 32,
    calibration: Iterable[Tensor | tuple[Tensor, ...]] | None = None,
    round_activations: bool = False,
) -> Model:
    """Make a copy of a model whose linear layers hold integers. The model itself stays as it is.

    With 8 bits each row of a matrix has one step and zero in the middle; with fewer each group of
    neighbors has a step and a center. The table of tokens, and an output layer, have 8 bits in
    any case: they are read row by row, and errors of the last layer reach the logits directly.
    Norms, biases and tables of positions are shared with the original model.

    Args:
        model: Any module with linear layers, or a text model such as that of
            :func:`companion.models.smollm2`.
        bits: 8, 4, 3 or 2. Fewer than 4 save memory, and no time: they have no fast kernel.
        method: ``"nearest"`` and ``"mse"`` look at the weights alone. ``"gptq"`` and ``"awq"`` look
            at the inputs of each layer, too, and need ``calibration``; so does ``"smooth"``,
            SmoothQuant, which is for rounded activations.
        group: Inputs that share a step, with fewer than 8 bits; with 4 bits 32, 64, 128 and 256
            have a fast kernel.
        calibration: Inputs that the model is run on, each a batch, or a tuple of arguments. The
            text should be like that which the model will read. No padding.
        round_activations: With 8 bits, round activations to 8 bits, too (W8A8), each token with a
            step of its own. It saves no time here: PyTorch's fast kernels keep activations wide.

    Returns:
        A model of the same class, in evaluation mode, for inference. Its parameters are those that
        were not quantized. LoRA and prefixes can be trained beside it.

    Raises:
        ValueError: If a choice is unknown or does not go with another, calibration is missing, the
            group does not divide the inputs of a layer, or nothing is there to quantize.

    Numerics:
        GPTQ takes each Hessian from one run of the original model; the authors take it after the
        layers before have been quantized. All sums are held at once: for each layer inputs squared
        times 4 bytes.

    References:
        GPTQ: Frantar et al. 2023, arXiv:2210.17323. AWQ: Lin et al. 2024, arXiv:2306.00978.
        SmoothQuant: Xiao et al. 2023, arXiv:2211.10438.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> from companion.transformer.block import Decoder, TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=64, layers=2, heads=4, ff_dim=96, context=9)
        >>> model = Decoder(config).eval()
        >>> small = quantize(model, bits=4)
        >>> model_bytes(small) < model_bytes(model) / 4
        True
    """
    if isinstance(model, _TEXTS):
        if isinstance(model, TextEncoder) and model.heads is not None:
            raise ValueError("heads of pre-training are not quantized: load the model without them")
        inner: Any = quantize(
            model.model,
            bits=bits,
            method=method,
            group=group,
            calibration=calibration,
            round_activations=round_activations,
        )
        return replace(model, model=inner)
    if not isinstance(model, nn.Module):
        raise ValueError(f"a model is quantized, got a {type(model).__name__}")
    _check(bits, method, group, calibration, round_activations)
    layers = {
        place.path: layer
        for place in linear_places(model)
        if isinstance(layer := model.get_submodule(place.path), nn.Linear)
    }
    tables = {
        path: module
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Embedding) and path.rpartition(".")[2] == "tokens"
    }
    if not layers:
        raise ValueError(f"a {type(model).__name__} has no linear layer left to quantize")
    of_tables = {id(table.weight) for table in tables.values()}
    seen = _observe(model, method, calibration)
    made: dict[int, QuantizedLinear] = {}  # by weight: what is shared stays shared

    def held(layer: nn.Linear | nn.Embedding) -> QuantizedLinear:
        weight = layer.weight.detach()
        codes = round_weights(weight, bits=8, group=None, symmetric=True)
        return QuantizedLinear(codes, bias=_bias(layer), dtype=weight.dtype)

    new: dict[str, nn.Module] = {}
    for path, layer in layers.items():
        key = id(layer.weight)
        if key not in made:
            if key in of_tables or path.rpartition(".")[2] == "head":
                made[key] = held(layer)
            else:
                made[key] = _quantized(
                    layer, path, seen.get(path), bits, method, group, round_activations
                )
        new[path] = made[key]
    tabled: dict[int, QuantizedEmbedding] = {}
    for path, table in tables.items():
        key = id(table.weight)
        if key not in tabled:
            tabled[key] = QuantizedEmbedding(made[key] if key in made else held(table))
        new[path] = tabled[key]
    # Large weights are not copied only to be thrown away.
    memo = {id(p): p for p in model.parameters()}
    small = copy.deepcopy(model, memo)
    restore_linears(small, new)
    return small.eval()


def _check(
    bits: int, method: str, group: int, calibration: object, round_activations: bool
) -> None:
    if bits not in (2, 3, 4, 8):
        raise ValueError(f"bits must be 2, 3, 4 or 8, got {bits}")
    if method not in get_args(QuantizationMethod):
        known = ", ".join(get_args(QuantizationMethod))
        raise ValueError(f"method must be one of {known}, got {method!r}")
    check_count("group", group)
    if round_activations and bits != 8:
        raise ValueError("activations are rounded to 8 bits beside 8-bit weights: give bits=8")
    if method == "smooth" and not round_activations:
        raise ValueError(
            "method 'smooth' makes activations easier to round: give round_activations=True"
        )
    if method in ("gptq", "awq", "smooth") and calibration is None:
        raise ValueError(
            f"method {method!r} looks at the inputs of each layer: give calibration, a list of "
            "batches of token ids"
        )


def _bias(layer: nn.Linear | nn.Embedding) -> Tensor | None:
    bias: Tensor | None = getattr(layer, "bias", None)
    return None if bias is None else bias.detach()


def _observe(model: nn.Module, method: str, calibration: Any) -> dict[str, Tensor]:
    """What the method wants to know about the inputs of each layer."""
    if method not in ("gptq", "awq", "smooth"):
        return {}
    training = model.training
    model.eval()
    try:
        watch = _largest_inputs(model) if method == "smooth" else input_hessian(model, ["*"])
        with torch.no_grad(), watch as seen:
            count = 0
            for inputs in calibration:
                model(*(inputs if isinstance(inputs, tuple) else (inputs,)))
                count += 1
        if not count:
            raise ValueError("calibration is empty: give at least one batch of token ids")
        return dict(seen)
    finally:
        model.train(training)


@contextmanager
def _largest_inputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The largest magnitude of each input of each linear layer."""
    largest: dict[str, Tensor] = {}

    def recorder(path: str) -> Any:
        def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            most = wide(inputs[0].detach()).flatten(0, -2).abs().amax(0)
            largest[path] = torch.maximum(most, largest[path]) if path in largest else most

        return record

    hooks = [
        model.get_submodule(place.path).register_forward_pre_hook(recorder(place.path))
        for place in linear_places(model)
    ]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()


def _quantized(
    layer: nn.Linear,
    path: str,
    seen: Tensor | None,
    bits: int,
    method: str,
    group: int,
    round_activations: bool,
) -> QuantizedLinear:
    weight = layer.weight.detach()
    grid: dict[str, Any] = {"bits": bits, "group": None if bits == 8 else group}
    grid["symmetric"] = bits == 8
    divide = None
    codes: WeightCodes
    try:
        if seen is None or method in ("nearest", "mse"):  # or a layer that was never called
            codes = round_weights(weight, search=method == "mse", **grid)
        elif method == "gptq":
            codes = gptq(weight, seen, search=True, **grid)
        else:
            if method == "awq":
                divide = awq_scales(weight, seen, **grid)
            else:
                divide = smooth_scales(seen, weight)
            codes = round_weights(wide(weight) * divide, **grid)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return QuantizedLinear(
        codes,
        bias=_bias(layer),
        divide=divide,
        round_activations=round_activations,
        dtype=weight.dtype,
    )


def model_bytes(model: nn.Module) -> int:
    """Count the bytes that a model holds: parameters and buffers, what is shared once.

    Args:
        model: Any module, quantized or not.

    Returns:
        The bytes. Activations and caches are not part of it.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> model_bytes(nn.Linear(3, 5))
        80
    """
    held: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            held[id(module)] = module.bytes
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            held[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(held.values())


def save_quantized(model: Any, directory: str | Path, *, shard_bytes: int = 5 * 10**9) -> None:
    """Write a folder that :func:`load_quantized` reads: codes and grids as safetensors.

    ``config.json`` is that of :func:`companion.models.save_pretrained`, with an entry
    ``quantization_config`` that keeps other libraries from taking the codes for weights.

    Args:
        model: What :func:`quantize` has made, a model or a text model.
        directory: The folder; it is made if it is not there.
        shard_bytes: Weights beyond this size are split over several files.

    Raises:
        ValueError: If nothing in the model is quantized, or its form has no word in the
            configuration of its family.

    Numerics:
        A round trip changes no bit of what the layers hold, on any machine.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> import tempfile
        >>> from companion.transformer.block import Decoder, TransformerConfig
        >>> llama = TransformerConfig(
        ...     vocab=7, dim=64, layers=1, heads=4, ff_dim=96, context=9, norm="rms",
        ...     activation="swiglu", attention_bias=False, ff_bias=False)
        >>> small = quantize(Decoder(llama).eval(), bits=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_quantized(small, folder)
        ...     again = load_quantized(folder).model
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> torch.equal(again(ids), small(ids))
        True
    """
    inner = model.model if isinstance(model, _TEXTS) else model
    layers = {p: m for p, m in inner.named_modules() if isinstance(m, QuantizedLinear)}
    if not layers:
        raise ValueError("the model has no quantized layer: call quantize first")
    described = describe_pretrained(model)
    rounds = any(layer.round_activations for layer in layers.values())
    described["quantization_config"] = {
        "quant_method": _NAME,
        "bits": min(layer.bits for layer in layers.values()),
        "round_activations": rounds,
    }
    tensors: dict[str, Tensor] = {}
    for path, layer in layers.items():
        tensors |= {f"{path}.{name}": tensor for name, tensor in layer.parts().items()}
    met: set[int] = set()
    for name, parameter in inner.named_parameters():
        if id(parameter) not in met:
            tensors[name] = parameter.detach()
            met.add(id(parameter))
    check_count("shard_bytes", shard_bytes)
    folder = Path(directory).expanduser()
    with new_folder(folder):
        write_words(folder, model, inner.config.context)
        write_tensors(folder, tensors, shard_bytes=shard_bytes)
        write_json(folder / "config.json", described)


def is_quantized(directory: str | Path) -> bool:
    """Tell whether a folder holds what :func:`save_quantized` has written.

    Args:
        directory: The folder.

    Returns:
        What its ``config.json`` says; False without one.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> is_quantized("nowhere")
        False
    """
    raw = read_json(Path(directory).expanduser() / "config.json", needed=False)
    how = raw.get("quantization_config")
    return isinstance(how, dict) and how.get("quant_method") == _NAME


def load_quantized(
    directory: str | Path, *, device: str | torch.device | None = None
) -> TextDecoder | TextEncoder | TextEncoderDecoder | TextTwoStream:
    """Read a folder of :func:`save_quantized`.

    Args:
        directory: The folder.
        device: Where the model is put; by default the CPU.

    Returns:
        The text model, as from :func:`companion.models.load_pretrained`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the folder holds no model of this kind, or a tensor is missing, left over or
            of a wrong shape.

    Book: :doc:`/book/efficiency/quantization`
    """
    folder = Path(directory).expanduser()
    raw = read_json(folder / "config.json")
    if not is_quantized(folder):
        raise ValueError(
            f"{folder} holds no model of save_quantized: read it with load_pretrained, and then "
            "quantize it"
        )
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"{folder}: architecture {kind!r} is not supported")
    codec = FAMILIES[kind]
    read = read_tensors(folder)
    tensors = {name: tensor.to(device or "cpu") for name, tensor in read.items()}
    config = codec.configure(raw, tensors, folder)
    with torch.device("meta"), _NoInitialization():
        model = codec.build(config)
    rounds = bool(raw["quantization_config"].get("round_activations"))
    layers, rest = _layers_of(tensors, rounds)
    like = next((t.dtype for t in rest.values()), torch.float32)
    tied: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear | nn.Embedding):
            tied.setdefault(id(module.weight), []).append(path)
    new: dict[str, nn.Module] = {}
    for names in tied.values():
        stored = [name for n in names for name in (n, f"{n}.table") if name in layers]
        if not stored:
            continue
        parts, rounded = layers.pop(stored[0])
        layer = QuantizedLinear.from_parts(parts, round_activations=rounded, dtype=like)
        table = QuantizedEmbedding(layer) if layer.bits == 8 else None
        for name in names:
            old: Any = model.get_submodule(name)
            if (layer.d_out, layer.d_in) != tuple(old.weight.shape):
                raise ValueError(
                    f"{folder}: {stored[0]} has shape {(layer.d_out, layer.d_in)}, and the "
                    f"configuration wants {tuple(old.weight.shape)}"
                )
            if isinstance(old, nn.Embedding):
                if table is None:
                    raise ValueError(f"{folder}: {stored[0]} is a table, and must have 8 bits")
                new[name] = table
            else:
                new[name] = layer
    if layers:
        raise ValueError(f"{folder}: {min(layers)} has no place in this model")
    restore_linears(model, new)
    wanted = {name: p.shape for name, p in model.named_parameters()}
    missing = sorted(set(wanted) - set(rest))
    odd = sorted(set(rest) - set(wanted))
    wrong = sorted(n for n in set(rest) & set(wanted) if rest[n].shape != wanted[n])
    if missing or odd or wrong:
        which = (missing or odd or wrong)[0]
        why = "is missing" if missing else "is left over" if odd else "has a wrong shape"
        raise ValueError(f"{folder}: tensor {which!r} {why}")
    model.load_state_dict(rest, strict=False, assign=True)
    _make_buffers(model, device or "cpu")
    return text_of(folder, raw, model.eval())


def _layers_of(
    tensors: dict[str, Tensor], rounds: bool
) -> tuple[dict[str, tuple[dict[str, Tensor], bool]], dict[str, Tensor]]:
    """The parts of quantized layers by path, and all other tensors."""
    paths = {name.removesuffix(".codes") for name in tensors if name.endswith(".codes")}
    layers: dict[str, tuple[dict[str, Tensor], bool]] = {}
    rest: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {path: {} for path in paths}
    for name, tensor in tensors.items():
        path, _, part = name.rpartition(".")
        if path in paths:
            parts[path][part] = tensor
        else:
            rest[name] = tensor
    for path, own in parts.items():
        table = path.endswith(("tokens", "tokens.table", "head"))
        layers[path] = own, rounds and not table
    return layers, rest


def smollm2_q4_1(*, directory: str | Path | None = None) -> TextDecoder:
    r"""SmolLM2 with the 4-bit codes of its file as they are: nothing is rounded a second time.

    The file has Q4_1 blocks, :math:`w = d\,q + m` for 32 neighbors, and a table of tokens in Q8_0.
    Its codes become those of the layers, with the step :math:`d` and the center
    :math:`m + 8d` in bfloat16. The table is rounded to 8 bits with one step a row.

    Args:
        directory: As for :func:`companion.data.smollm2`.

    Returns:
        The text model.

    Raises:
        companion.data.MissingDataError: If the data are not installed.
        companion.data.CorruptDataError: If the file differs from the pinned one.

    Numerics:
        :math:`d` and :math:`m + 8d` lose up to :math:`2^{-9}` of themselves in bfloat16.

    Book: :doc:`/book/efficiency/quantization`
    """
    text = smollm2(directory=directory)
    small = quantize(text, bits=4)
    blocks = data.smollm2_blocks(directory=directory)
    for index in range(text.model.config.layers):
        its = f"model.layers.{index}"
        joined = {
            "attention.qkv": [f"self_attn.{n}_proj" for n in "qkv"],
            "attention.out": ["self_attn.o_proj"],
            "feed_forward.gate_up": ["mlp.gate_proj", "mlp.up_proj"],
            "feed_forward.down": ["mlp.down_proj"],
        }
        for mine, theirs in joined.items():
            rows = torch.cat([blocks[f"{its}.{name}.weight"] for name in theirs])
            codes, step, least = q4_1_decode(rows)
            center = (least.float() + 8 * step.float()).bfloat16()
            weight = WeightCodes(codes.to(torch.int8) - 8, step.bfloat16(), center, 4)
            path = f"blocks.{index}.{mine}"
            restore_linears(small.model, {path: QuantizedLinear(weight)})
    return small
