"""Which compiler these tests run: AOTAutograd, and Inductor in the tests that carry its mark.

``torch.compile`` works in three steps. TorchDynamo traces Python into one graph and guards it,
AOTAutograd differentiates the graph and makes it functional, Inductor turns it into machine code.
What the library can spoil shows in the first two, which take a second. The third takes ten, so each
module has it tried where its code is hottest. Backends that a test names are left to it.
"""

import functools

import pytest
import torch


@pytest.fixture(autouse=True)
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from no compiled code; without the mark, stop after the second step."""
    torch.compiler.reset()
    if not request.node.get_closest_marker("inductor"):
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
