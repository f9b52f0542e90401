"""Devices: what is asked for, or a good default, or a clear refusal."""

import pytest
import torch

from companion.core import resolve_device


def test_the_default_device_is_the_best_one_here():
    best = "cuda" if torch.cuda.is_available() else "cpu"
    best = "mps" if torch.backends.mps.is_available() else best
    assert resolve_device().type == best


def test_a_requested_device_is_kept(device):
    assert resolve_device(device) == device
    assert resolve_device("meta").type == "meta"


@pytest.mark.parametrize(
    ("name", "message"), [("gpu", "unknown device 'gpu'"), ("cuda:99", "CUDA devices are here")]
)
def test_a_missing_device_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        resolve_device(name)
