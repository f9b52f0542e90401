"""Fixtures that tests share: a device, a generator, full float32 precision, the stored runs."""

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jaxtyping
import pytest

# Tests run side by side: each on one thread, and so on the same sums everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from hypothesis import settings

# How long one example takes says nothing about the law, and the first may load a library: on a
# busy machine a deadline fails tests that hold.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

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
def own_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is wrong reach the checks of the library, also where annotations are checked."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def g() -> torch.Generator:
    """A CPU generator with a fixed seed: the same numbers on every device."""
    return torch.Generator().manual_seed(0)


class RunScripts:
    """The scripts of ``book/_runs``; what they would store is handed over, and nothing written."""

    folder = Path(__file__).resolve().parents[1] / "book" / "_runs"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        monkeypatch.syspath_prepend(str(self.folder))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def load(self, name: str) -> ModuleType:
        """Import a script without running it."""
        return importlib.import_module(name)

    def run(self, name: str, *arguments: str) -> SimpleNamespace:
        """Run a script; return its ``seed``, and its ``results`` as JSON gives them back."""
        module, kept = self.load(name), SimpleNamespace()

        def store(stored: str, results: dict[str, Any], *, seed: int, seconds: float) -> None:
            assert stored == name
            assert seconds > 0
            kept.results = json.loads(json.dumps(results, allow_nan=False))
            kept.seed = seed

        self.monkeypatch.setattr(module, "store", store)
        self.monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        module.main()
        assert vars(kept), f"{name} stored nothing"
        return kept


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunScripts]:
    """The scripts of the stored runs, to be run with few steps."""
    yield RunScripts(monkeypatch)
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent == RunScripts.folder:
            del sys.modules[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``gpu`` where there is none, and say so."""
    for item in items:
        if item.get_closest_marker("gpu") and not ACCELERATORS:
            item.add_marker(pytest.mark.skip(reason="no accelerator on this machine"))
