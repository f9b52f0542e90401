"""What is computed wide: half precision and integers in float32, float64 as it is."""

import pytest
import torch

from companion.core import wide, wide_dtype

DTYPES = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.int64: torch.float32,
}


@pytest.mark.parametrize(("dtype", "expected"), DTYPES.items(), ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_computed_has_32_bits_or_more(
    dtype: torch.dtype, expected: torch.dtype, device: str
) -> None:
    made = wide(torch.ones(3, 5, dtype=dtype, device=device))
    assert (made.dtype, made.shape, made.device.type) == (expected, (3, 5), device)
    assert wide_dtype(dtype) == expected


def test_what_is_wide_is_not_copied_and_gradients_come_back_narrow() -> None:
    x = torch.ones(7, dtype=torch.float64)
    assert wide(x) is x
    half = torch.ones(7, dtype=torch.float16, requires_grad=True)
    (wide(half) * 3).sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.float16
    assert bool((half.grad == 3).all())


def test_a_sum_that_half_precision_cannot_hold_is_exact_when_wide() -> None:
    # 11 * 6553 = 72083 exceeds float16's 65504; float32 holds it exactly.
    x = torch.full((11,), 6553.0, dtype=torch.float16)
    assert float(wide(x).sum()) == 11 * float(x[0])
    assert torch.isinf(x.sum())
