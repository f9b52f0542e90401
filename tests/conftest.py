"""Fixtures that every test shares: a device, a generator, and full float32 precision."""

import os
from collections.abc import Iterator

import pytest

# Tests run side by side: each on one thread, and so on the same sums everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

ACCELERATORS = [
    name
    for name, there in (
        ("cuda", torch.cuda.is_available()),
        ("mps", torch.backends.mps.is_available()),
    )
    if there
]


@pytest.fixture(autouse=True, scope="session")
def full_precision() -> Iterator[None]:
    """Turn TF32 off: it keeps 10 bits of the mantissa, fewer than the tolerances assume."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    if torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(params=["cpu", *(pytest.param(d, marks=pytest.mark.gpu) for d in ACCELERATORS)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine in turn; the accelerators carry the ``gpu`` mark."""
    return torch.device(request.param)


@pytest.fixture
def g() -> torch.Generator:
    """A CPU generator with a fixed seed: the same numbers on every device."""
    return torch.Generator().manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``gpu`` where there is none, and say so."""
    for item in items:
        if item.get_closest_marker("gpu") and not ACCELERATORS:
            item.add_marker(pytest.mark.skip(reason="no accelerator on this machine"))
