"""Fixtures shared by all tests."""

import pytest
import torch


def _devices():
    names = ["cpu"]
    if torch.cuda.is_available():
        names.append("cuda")
    if torch.backends.mps.is_available():
        names.append("mps")
    return [pytest.param(n, marks=[] if n == "cpu" else [pytest.mark.gpu]) for n in names]


@pytest.fixture(params=_devices())
def device(request):
    """Every device of this machine in turn."""
    return torch.device(request.param)


@pytest.fixture
def g():
    """A fresh CPU generator, the same in every test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _full_float32_products():
    """Keep accelerators from rounding float32 products to TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
