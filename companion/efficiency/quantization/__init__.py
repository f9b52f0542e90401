"""Numbers of few bits: grids, formats, weights that are rounded with care, models that are smaller.

Book: :doc:`/book/efficiency/quantization`.
"""

from companion.efficiency.quantization._affine import (
    affine_parameters,
    code_range,
    dequantize,
    fake_quantize,
    int8_matmul,
    optimal_clip,
    rounding_noise,
    symmetric_scale,
    to_codes,
)
from companion.efficiency.quantization._formats import (
    Q41,
    from_nf4,
    mx_round,
    nf4_table,
    q4_1_decode,
    q4_1_encode,
    to_e4m3,
    to_nf4,
)
from companion.efficiency.quantization._hadamard import hadamard_transform
from companion.efficiency.quantization._layers import QuantizedEmbedding, QuantizedLinear
from companion.efficiency.quantization._model import (
    QuantizationMethod,
    is_quantized,
    load_quantized,
    model_bytes,
    quantize,
    save_quantized,
    smollm2_q4_1,
)
from companion.efficiency.quantization._observers import mse_range, percentile_range
from companion.efficiency.quantization._training import (
    LSQ,
    FakeQuantize,
    lsq_quantize,
    stochastic_round,
    straight_through_round,
)
from companion.efficiency.quantization._weights import (
    WeightCodes,
    awq_scales,
    gptq,
    round_weights,
    smooth_scales,
)

__all__ = [
    "LSQ",
    "Q41",
    "FakeQuantize",
    "QuantizationMethod",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "WeightCodes",
    "affine_parameters",
    "awq_scales",
    "code_range",
    "dequantize",
    "fake_quantize",
    "from_nf4",
    "gptq",
    "hadamard_transform",
    "int8_matmul",
    "is_quantized",
    "load_quantized",
    "lsq_quantize",
    "model_bytes",
    "mse_range",
    "mx_round",
    "nf4_table",
    "optimal_clip",
    "percentile_range",
    "q4_1_decode",
    "q4_1_encode",
    "quantize",
    "round_weights",
    "rounding_noise",
    "save_quantized",
    "smollm2_q4_1",
    "smooth_scales",
    "stochastic_round",
    "straight_through_round",
    "symmetric_scale",
    "to_codes",
    "to_e4m3",
    "to_nf4",
]
