"""Where tensors live.

Functions of this library follow the device and dtype of their inputs. The helper here serves the
places where nothing is given yet: scripts, experiments and loaders.
"""

import platform
import re
from pathlib import Path

import torch

__all__ = ["processor_name", "resolve_device"]


def processor_name() -> str:
    """Return what the processor is called, to be stated beside a time that was measured on it.

    Returns:
        The maker's name of it where the system tells (Linux), otherwise its kind, such as
        ``"arm64"``.

    Example:
        >>> len(processor_name()) > 0
        True
    """
    information = Path("/proc/cpuinfo")
    if information.is_file():
        text = information.read_text(encoding="utf-8", errors="replace")
        if name := re.search(r"^model name\s*:\s*(\S.*)$", text, re.MULTILINE):
            return name[1].strip()
    return platform.processor() or platform.machine()


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """Return the requested device, or the best one of this machine.

    Args:
        device: A device or its name. ``None`` picks CUDA, then MPS, then the CPU.

    Returns:
        The device.

    Raises:
        ValueError: If the device is requested by name and this machine does not have it.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: use 'cpu', 'cuda', 'cuda:0' or 'mps'") from (
            error
        )
    if resolved.type == "cuda":
        count = torch.cuda.device_count()
        if (resolved.index or 0) >= count:
            raise ValueError(f"device {str(device)!r} asked for, but {count} CUDA devices are here")
    elif resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' asked for, but this machine has none")
    return resolved
